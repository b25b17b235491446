//! What the tasks of one request say of each other: names, and which files they leave.

use std::fmt;

use glob::{MatchOptions, Pattern};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{WorkspacePath, cut};

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

/// The longest glob, in bytes.
const GLOB_BYTES: usize = 1024;

/// Files of a workspace, by a pattern (glob(7), with `**` for any directories). Written with `?` at its end it may match
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OutputGlob {
    pattern: Pattern,
    pub optional: bool,
}

impl OutputGlob {
    const OPTIONS: MatchOptions = MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        // A file is a file, whatever its name begins with.
        require_literal_leading_dot: false,
    };

    /// Every file, if there is any.
    pub fn everything() -> Self {
        Self { pattern: Pattern::new("**").unwrap_or_default(), optional: true }
    }

    /// One file, if it is there.
    pub fn exactly(path: &WorkspacePath) -> Self {
        Self { pattern: Pattern::new(&Pattern::escape(path.as_str())).unwrap_or_default(), optional: true }
    }

    /// Whether it is one of these files; `path` is relative, as the workspace has it.
    pub fn matches(&self, path: &str) -> bool {
        self.pattern.matches_with(path, Self::OPTIONS)
    }

    pub fn as_str(&self) -> &str {
        self.pattern.as_str()
    }
}

impl TryFrom<String> for OutputGlob {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let quoted = cut(&text);
        let refuse = |why: &str| Err(format!("output glob {quoted:?} {why}"));
        let optional = text.ends_with('?');
        let glob = text.strip_suffix('?').unwrap_or(&text);
        // Written in another way it is the same file.
        let glob = glob.strip_prefix("./").unwrap_or(glob);
        if glob.is_empty() {
            return refuse("is empty");
        }
        if glob.len() > GLOB_BYTES {
            return refuse("is longer than 1024 bytes");
        }
        if glob.starts_with('/') {
            return refuse("is absolute: globs are relative to the workspace");
        }
        if glob.contains('\0') || glob.split('/').any(|name| name == "..") {
            return refuse("holds a NUL byte or a '..'");
        }
        match Pattern::new(glob) {
            Ok(pattern) => Ok(Self { pattern, optional }),
            Err(error) => refuse(&format!("is none: {}", error.msg)),
        }
    }
}

impl From<OutputGlob> for String {
    fn from(OutputGlob { pattern, optional }: OutputGlob) -> String {
        format!("{pattern}{}", if optional { "?" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(text: &str) -> OutputGlob {
        OutputGlob::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn a_glob_takes_files_of_the_workspace() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("main", &["main"], &["main.c", "a/main"]),
            ("./*.txt", &["a.txt", ".txt"], &["a/b.txt"]),
            ("out/**", &["out/a", "out/b/c", "out/.d"], &["out", "outer/a"]),
            ("**/*.o", &["a.o", "b/c/a.o"], &["a.c"]),
            ("**", &["a", "a/b"], &[]),
            ("a?b", &["axb"], &["a/b", "ab"]),
        ];
        for (text, yes, no) in table {
            assert!(yes.iter().all(|path| glob(text).matches(path)), "{text}");
            assert!(!no.iter().any(|path| glob(text).matches(path)), "{text}");
        }
        assert!(glob("plot.png?").optional && glob("plot.png?").matches("plot.png"));
        let odd = WorkspacePath::parse("a[1]*?").unwrap();
        assert!(OutputGlob::exactly(&odd).matches("a[1]*?") && !OutputGlob::exactly(&odd).matches("a1xx"));
    }

    #[test]
    fn what_is_no_glob_of_the_workspace_is_refused() {
        for text in ["", "?", "/etc/passwd", "../x", "a/../b", "a***", "a**b", "[", "a\0"] {
            assert!(OutputGlob::try_from(text.to_owned()).is_err(), "{text:?}");
        }
        assert!(OutputGlob::try_from("x".repeat(1025)).is_err());
    }

    #[test]
    fn a_hostile_glob_does_not_take_forever() {
        let (glob, path) = (glob(&"*a".repeat(100)), "a".repeat(200) + "b");
        assert!(!glob.matches(&path));
    }
}
