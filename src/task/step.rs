//! What the tasks of one request say of each other: names, and which files they leave.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cut;

/// The name of a task in its request: 1 to 64 of `A-Za-z0-9._-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StepName(String);

impl StepName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for StepName {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        if (1..=64).contains(&name.len()) && name.bytes().all(plain) {
            return Ok(Self(name));
        }
        Err(format!("name {:?}: expected 1 to 64 letters, digits, '.', '_' and '-'", cut(&name)))
    }
}

impl From<StepName> for String {
    fn from(name: StepName) -> String {
        name.0
    }
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How what a task needs must have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[schema(example = "success")]
#[serde(rename_all = "lowercase")]
pub enum RunWhen {
    /// In Success.
    #[default]
    Success,
    /// In any way.
    Always,
}
