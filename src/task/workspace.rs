//! What is in a workspace that stays.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "main.py", "type": "file", "size": 14, "mode": "0644"}))]
pub struct Entry {
    pub name: String,
    /// "file", "directory", "symlink", or "other" for what is neither.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    pub mode: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = EntryType, example = "file")]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Other,
}

/// Why something cannot be done with a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileRefusal {
    /// It is not there.
    Missing,
    /// It is not what it has to be.
    Wrong(String),
    /// It is more than may be given back.
    Large(String),
    Failed(String),
}
