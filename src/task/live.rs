//! What passes between a task that runs and whoever follows it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"rows": 24, "columns": 80}))]
pub struct Window {
    pub rows: u16,
    pub columns: u16,
}

/// What can be said of a task that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// End it. So does whoever goes away.
    Cancel,
    /// Send its process group this signal (signal(7)).
    Signal(i32),
    /// Its terminal is so large now.
    Resize(Window),
}

/// What a task has used so far. Times in nanoseconds, sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Figures {
    pub cpu_time: u64,
    pub memory: u64,
    pub wall_time: u64,
}
