//! Where a task's files may land: below its workspace, and nowhere else.

use serde::{Deserialize, Serialize};

/// The longest path a file key may have, in bytes (`PATH_MAX` is 4096 with the workspace's own prefix and the NUL).
const PATH_BYTES: usize = 3072;
/// The longest name of one file or directory (`NAME_MAX`, limits.h(0p)).
const NAME_BYTES: usize = 255;

/// A path below the workspace: relative, normalised, never empty, no `..`, no NUL.
///
/// [`WorkspacePath::parse`] is the only way in; deserialising goes through it too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkspacePath(String);

/// Why a file key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathRefusal {
    #[error("a file path cannot be empty")]
    Empty,
    #[error("file path {0:?} is absolute: paths are relative to the workspace")]
    Absolute(String),
    #[error("file path {0:?} has a '..': paths stay inside the workspace")]
    Parent(String),
    #[error("file path {0:?} holds a NUL byte")]
    Nul(String),
    #[error("file path {0:?} ends in '/': it names a directory, not a file")]
    Directory(String),
    #[error("a file path of {0} bytes is longer than {PATH_BYTES}")]
    Long(usize),
    #[error("file path {0:?} has a name longer than {NAME_BYTES} bytes")]
    LongName(String),
}

impl WorkspacePath {
    /// Takes a client's file key; `.` and doubled slashes are normalised away.
    pub fn parse(key: &str) -> Result<Self, PathRefusal> {
        let quoted = || key.chars().take(100).collect::<String>();
        if key.is_empty() {
            return Err(PathRefusal::Empty);
        }
        if key.len() > PATH_BYTES {
            return Err(PathRefusal::Long(key.len()));
        }
        if key.contains('\0') {
            return Err(PathRefusal::Nul(quoted()));
        }
        if key.starts_with('/') {
            return Err(PathRefusal::Absolute(quoted()));
        }
        if key.ends_with('/') || key.ends_with("/.") {
            return Err(PathRefusal::Directory(quoted()));
        }
        let names: Vec<&str> = key.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
        if names.contains(&"..") {
            return Err(PathRefusal::Parent(quoted()));
        }
        if names.iter().any(|name| name.len() > NAME_BYTES) {
            return Err(PathRefusal::LongName(quoted()));
        }
        if names.is_empty() {
            return Err(PathRefusal::Empty);
        }
        Ok(Self(names.join("/")))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a link at this path with this target leads to a place below the workspace, as far as names tell.
    pub fn leads_inside(&self, target: &str) -> bool {
        if target.is_empty() || target.starts_with('/') || target.contains('\0') || target.len() > PATH_BYTES {
            return false;
        }
        let mut depth = self.0.matches('/').count();
        for name in target.split('/') {
            match name {
                "" | "." => {}
                ".." if depth == 0 => return false,
                ".." => depth -= 1,
                _ => depth += 1,
            }
        }
        true
    }

    /// The directories this file needs, outermost first.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(at, _)| &self.0[..at])
    }
}

impl TryFrom<String> for WorkspacePath {
    type Error = PathRefusal;
    fn try_from(key: String) -> Result<Self, PathRefusal> {
        Self::parse(&key)
    }
}

impl From<WorkspacePath> for String {
    fn from(path: WorkspacePath) -> String {
        path.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(key: &str, expected: Result<&str, PathRefusal>) {
        assert_eq!(WorkspacePath::parse(key).as_ref().map(WorkspacePath::as_str), expected.as_ref().copied());
    }

    #[test]
    fn normal_paths_are_normalised() {
        check("script.py", Ok("script.py"));
        check("./src//main.rs", Ok("src/main.rs"));
        check("a/./b/..c", Ok("a/b/..c"));
        check("ünï/日本", Ok("ünï/日本"));
    }

    #[test]
    fn paths_that_could_lead_out_are_refused() {
        check("", Err(PathRefusal::Empty));
        check("./", Err(PathRefusal::Directory("./".into())));
        check(".", Err(PathRefusal::Empty));
        check("/etc/passwd", Err(PathRefusal::Absolute("/etc/passwd".into())));
        check("..", Err(PathRefusal::Parent("..".into())));
        check("a/../../b", Err(PathRefusal::Parent("a/../../b".into())));
        check("a\0b", Err(PathRefusal::Nul("a\0b".into())));
        check("a/", Err(PathRefusal::Directory("a/".into())));
        check(&"x".repeat(256), Err(PathRefusal::LongName("x".repeat(100))));
        check(&"x/".repeat(2000), Err(PathRefusal::Long(4000)));
    }

    #[test]
    fn parents_are_outermost_first() {
        let path = WorkspacePath::parse("a/b/c.txt").unwrap();
        assert_eq!(path.parents().collect::<Vec<_>>(), ["a", "a/b"]);
    }

    #[test]
    fn a_link_leads_inside_or_not() {
        let leads = |path: &str, target: &str| WorkspacePath::parse(path).unwrap().leads_inside(target);
        assert!(leads("a", "b") && leads("a/b", "../c") && leads("a/b", "./c/../..") && leads("a", "."));
        for target in ["", "/etc", "..", "../x", "b/../../x", "a\0"] {
            assert!(!leads("a", target), "{target:?}");
        }
        assert!(!leads("a/b", "../../x"));
    }

    proptest! {
        #[test]
        fn what_is_accepted_stays_below_the_workspace(key in "[a-c./\0é]{0,24}") {
            if let Ok(path) = WorkspacePath::parse(&key) {
                prop_assert!(!path.as_str().is_empty() && !path.as_str().starts_with('/'));
                prop_assert!(path.as_str().split('/').all(|name| !matches!(name, "" | "." | "..")));
                prop_assert!(!path.as_str().contains('\0'));
                prop_assert_eq!(WorkspacePath::parse(path.as_str()), Ok(path.clone()));
            }
        }
    }
}
