//! Globs of a workspace. A pattern and a file's name may both be hostile, so that matching takes time that grows with their
//! lengths and no faster: a glob becomes a regular expression, which `regex` matches without trying again.

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::{WorkspacePath, cut};

/// Bytes of a glob.
const GLOB_BYTES: usize = 1024;

/// Files of a workspace, by a pattern (glob(7), with `**` for any directories). Written with `?` at its end it may match
/// nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OutputGlob {
    glob: String,
    regex: Regex,
    pub optional: bool,
}

impl PartialEq for OutputGlob {
    fn eq(&self, other: &Self) -> bool {
        (&self.glob, self.optional) == (&other.glob, other.optional)
    }
}

impl Eq for OutputGlob {}

impl OutputGlob {
    fn new(glob: &str, optional: bool) -> Result<Self, String> {
        // What can be too large here are the tables of a glob that is too long.
        let regex = Regex::new(&expression(glob)?).map_err(|_| "is too large".to_owned())?;
        Ok(Self { glob: glob.to_owned(), regex, optional })
    }

    /// Every file, if there is any.
    pub fn everything() -> Self {
        Self::new("**", true).expect("it is a glob")
    }

    /// One file, if it is there.
    pub fn exactly(path: &WorkspacePath) -> Self {
        let escaped = path.as_str().chars().fold(String::new(), |mut glob, c| {
            match c {
                '*' | '?' | '[' | ']' => glob.extend(['[', c, ']']),
                _ => glob.push(c),
            }
            glob
        });
        Self::new(&escaped, true).expect("it has no wildcards")
    }

    /// Whether it is one of these files; `path` is relative, as the workspace has it.
    pub fn matches(&self, path: &str) -> bool {
        self.regex.is_match(path)
    }

    pub fn as_str(&self) -> &str {
        &self.glob
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
        Self::new(glob, optional).or_else(|why| refuse(&why))
    }
}

impl From<OutputGlob> for String {
    fn from(OutputGlob { glob, optional, .. }: OutputGlob) -> String {
        format!("{glob}{}", if optional { "?" } else { "" })
    }
}

/// The regular expression of a whole path.
///
/// # Errors
/// Why it is no glob.
fn expression(glob: &str) -> Result<String, String> {
    let mut expression = String::from(r"\A(?s)");
    let mut names = glob.split('/').peekable();
    while let Some(name) = names.next() {
        let is_last = names.peek().is_none();
        match (name, is_last) {
            // Any directories, or none.
            ("**", false) => expression.push_str("(?:.+/)?"),
            ("**", true) => expression.push_str(".+"),
            _ => {
                one_name(name, &mut expression)?;
                expression.push_str(if is_last { "" } else { "/" });
            }
        }
    }
    Ok(expression + r"\z")
}

fn one_name(name: &str, expression: &mut String) -> Result<(), String> {
    let mut rest = name.chars();
    while let Some(c) = rest.next() {
        match c {
            '*' if rest.as_str().starts_with('*') => {
                return Err("is none: ** stands for directories, and takes a place between slashes of its own".into());
            }
            '*' => expression.push_str("[^/]*"),
            '?' => expression.push_str("[^/]"),
            '[' => {
                let (class, behind) = class(rest.as_str()).ok_or("is none: a [ has no ] that belongs to it")?;
                expression.push_str(&class);
                rest = behind.chars();
            }
            c => expression.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    Ok(())
}

/// One character of some, or with `!` of all others; and what comes behind it.
fn class(text: &str) -> Option<(String, &str)> {
    let (is_negated, text) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
    // A ] that is the first of them is one of them.
    let first = text.chars().next()?.len_utf8();
    let end = first + text[first..].find(']')?;
    let (mut members, behind) = (text[..end].chars(), &text[end + 1..]);
    let mut class = String::from(if is_negated { "[^/" } else { "[" });
    let mut is_empty = true;
    while let Some(from) = members.next() {
        let mut range = members.clone();
        let to = match (range.next(), range.next()) {
            (Some('-'), Some(to)) => {
                members = range;
                to
            }
            _ => from,
        };
        if from <= to {
            is_empty = false;
            class.push_str(&format!(r"\x{{{:x}}}-\x{{{:x}}}", u32::from(from), u32::from(to)));
        }
    }
    match (is_negated, is_empty) {
        // Of ranges from later to earlier characters nothing is left.
        (false, true) => return Some(("[^\\s\\S]".into(), behind)),
        // Never a slash.
        (false, false) => class.push_str("&&[^/]]"),
        (true, _) => class.push(']'),
    }
    Some((class, behind))
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
            ("a?b", &["axb", "aäb"], &["a/b", "ab"]),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["ab", "a/bb", "b"]),
            ("[a-c]x[!0-9]", &["axy", "cx-", "bxä"], &["dxy", "ax1", "ax/"]),
            ("a[+-0]b", &["a+b", "a-b", "a0b"], &["a/b"]),
            ("[]-]", &["]", "-"], &["a"]),
            ("[!]]", &["a"], &["]"]),
            ("[z-a]x?", &[], &["zx", "ax", "x"]),
            ("{a,b}.(c)\\d^$", &["{a,b}.(c)\\d^$"], &["a.c1"]),
            ("*\n*", &["a\nb"], &["ab"]),
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
        for part in ["*a", "*[!b]", "*[!1a]*[!a]*[Dp]", "**/*a/", "?*"] {
            let glob = glob(&(part.repeat(1000 / part.len()) + "c"));
            assert!(!glob.matches(&("a/".repeat(2000) + "b")) && !glob.matches(&("a".repeat(4000) + "b")));
        }
    }
}
