//! What an image is to be: images/NAME/image.toml.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{Language, PATH};
use crate::config::{Size, Span};
use crate::task::{Digest, ImageName, ResourceLimits, Status, TaskRequest};

/// The file in an image's directory.
pub const FILE: &str = "image.toml";

/// A definition, as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    pub name: ImageName,
    pub description: String,
    /// A Debian suite.
    #[serde(default = "trixie")]
    pub base: Suite,
    /// Debian packages; what they need comes with them, what they only recommend does not.
    #[serde(default)]
    pub packages: Vec<Package>,
    /// Command lines for `sh -c`, run as root in the finished root file system, without network.
    #[serde(default)]
    pub run: Vec<String>,
    #[serde(default = "path")]
    pub path: String,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    limits: LimitDefaults,
    pub language: Option<Language>,
    #[serde(default, rename = "test")]
    pub tests: Vec<Test>,
}

/// What tasks get in place of the server's defaults.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitDefaults {
    memory: Option<Size>,
    cpu_time: Option<Span>,
    wall_time: Option<Span>,
    processes: Option<u64>,
    file_descriptors: Option<u64>,
    output: Option<Size>,
}

/// A task, and what is to come of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Test {
    pub name: String,
    /// A program of the image's language, to be compiled and run.
    code: Option<String>,
    /// Or a command with its arguments.
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    files: BTreeMap<String, String>,
    #[serde(default = "success")]
    status: Status,
    stdout: Option<String>,
    stdout_contains: Option<String>,
    stderr_contains: Option<String>,
}

/// The name of a Debian suite, such as `trixie`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Suite(String);

/// The name of a Debian package (Debian Policy 5.6.1): it cannot be taken for an option.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Package(String);

#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    #[error("there is no image definition {path}")]
    Missing { path: PathBuf },
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    /// The source says line and column.
    #[error("{path}")]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{path}: {reason}")]
    Refused { path: PathBuf, reason: String },
}

impl Definition {
    /// Reads the definition in `directory`, which has its name.
    ///
    /// # Errors
    /// With the file, and where it is not TOML or not a definition the line.
    pub fn read(directory: &Path) -> Result<Self, DefinitionError> {
        let path = directory.join(FILE);
        let text = fs::read_to_string(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => DefinitionError::Missing { path: path.clone() },
            _ => DefinitionError::Read { path: path.clone(), source },
        })?;
        let definition: Self = toml::from_str(&text)
            .map_err(|source| DefinitionError::Toml { path: path.clone(), source: Box::new(source) })?;
        match definition.mistake(directory) {
            Some(reason) => Err(DefinitionError::Refused { path, reason }),
            None => Ok(definition),
        }
    }

    /// Every definition below `directory`, by name; the embedded `host` is none.
    ///
    /// # Errors
    /// [`Definition::read`]'s, and when the directory cannot be read.
    pub fn all(directory: &Path) -> Result<Vec<Self>, DefinitionError> {
        let read = |source| DefinitionError::Read { path: directory.to_owned(), source };
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(directory).map_err(read)? {
            let path = entry.map_err(read)?.path();
            if path.join(FILE).exists() && path.file_name().is_some_and(|name| name != "host") {
                paths.push(path);
            }
        }
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }

    /// What the parts for themselves cannot show.
    fn mistake(&self, directory: &Path) -> Option<String> {
        let name = self.name.as_str();
        if name == "host" {
            return Some("host is the name of the image that is built in".into());
        }
        if directory.file_name().is_some_and(|directory| directory != name) {
            return Some(format!("the image {name} is in a directory of another name"));
        }
        if self.language.as_ref().is_some_and(|language| language.run.is_empty()) {
            return Some("language.run is empty".into());
        }
        let bad = self.tests.iter().find(|test| test.code.is_some() != test.command.is_empty());
        if let Some(test) = bad {
            return Some(format!("test {:?} needs either code or command", test.name));
        }
        let code = self.tests.iter().find(|test| test.code.is_some() && self.language.is_none());
        code.map(|test| format!("test {:?} has code, but there is no [language] to run it", test.name))
    }

    /// Over everything that decides what is built. Tests do not.
    pub fn digest(&self) -> Digest {
        let Self { name, description, base, packages, run, path, env, limits, language, tests: _ } = self;
        let parts =
            format!("{name} {description:?} {base:?} {packages:?} {run:?} {path:?} {env:?} {limits:?} {language:?}");
        Digest::new(Sha256::digest(format!("{} {parts}", super::tree::FORM)).into())
    }

    /// What tasks find in their environment: text is UTF-8 unless the definition says something else.
    pub fn env(&self) -> BTreeMap<String, String> {
        let mut env = self.env.clone();
        env.entry("LANG".into()).or_insert_with(|| "C.UTF-8".into());
        env
    }

    pub fn limits(&self) -> ResourceLimits {
        let LimitDefaults { memory, cpu_time, wall_time, processes, file_descriptors, output } = &self.limits;
        ResourceLimits {
            memory_limit: memory.map(|size| size.0),
            cpu_time_limit: cpu_time.map(Span::nanos),
            wall_time_limit: wall_time.map(Span::nanos),
            max_processes: *processes,
            max_file_descriptors: *file_descriptors,
            max_output_size: output.map(|size| size.0),
        }
    }
}

impl Test {
    /// The test as a task of `definition`'s image.
    pub fn request(&self, definition: &Definition) -> TaskRequest {
        let mut files = self.files.clone();
        let (command, args) = match (&self.code, &definition.language) {
            (Some(code), Some(language)) => {
                files.insert(language.file.clone(), code.clone());
                language.command()
            }
            _ => (self.command[0].clone(), self.command[1..].to_vec()),
        };
        let image = Some(definition.name.to_string());
        TaskRequest { command, args, files, image, ..TaskRequest::default() }
    }

    /// What is not as expected, if anything.
    pub fn complaint(&self, status: Status, stdout: &str, stderr: &str) -> Option<String> {
        if status != self.status {
            return Some(format!("ended with {status:?}, not {:?}: {stderr}{stdout}", self.status));
        }
        let lacks = |name: &str, text: &str, part: &Option<String>| {
            let part = part.as_deref().filter(|part| !text.contains(part))?;
            Some(format!("{name} lacks {part:?}: {text}"))
        };
        let other = self.stdout.as_deref().filter(|expected| *expected != stdout);
        other
            .map(|expected| format!("printed {stdout:?}, not {expected:?}"))
            .or_else(|| lacks("stdout", stdout, &self.stdout_contains))
            .or_else(|| lacks("stderr", stderr, &self.stderr_contains))
    }
}

impl Language {
    /// Compiles, if there is something to compile, and runs. The words are arguments of the shell, never its text.
    pub fn command(&self) -> (String, Vec<String>) {
        if self.compile.is_empty() {
            return (self.run[0].clone(), self.run[1..].to_vec());
        }
        let count = self.compile.len();
        let words: Vec<String> = (1..=count).map(|n| format!("\"${{{n}}}\"")).collect();
        let script = format!("{} && shift {count} && exec \"$@\"", words.join(" "));
        let args = ["-c".to_owned(), script, "sh".to_owned()].into_iter().chain(self.compile.iter().cloned());
        ("sh".to_owned(), args.chain(self.run.iter().cloned()).collect())
    }
}

fn trixie() -> Suite {
    Suite("trixie".into())
}

fn path() -> String {
    PATH.into()
}

fn success() -> Status {
    Status::Success
}

impl Suite {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Package {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_plain(text: &str, also: &[char]) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(plain) && text.len() <= 100 && text.chars().all(|c| plain(c) || also.contains(&c))
}

impl TryFrom<String> for Suite {
    type Error = &'static str;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        if is_plain(&name, &['-']) {
            Ok(Self(name))
        } else {
            Err("expected the name of a Debian suite, such as trixie")
        }
    }
}

impl TryFrom<String> for Package {
    type Error = &'static str;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        if is_plain(&name, &['+', '-', '.']) { Ok(Self(name)) } else { Err("expected the name of a Debian package") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("x");
        fs::create_dir(&image).unwrap();
        fs::write(image.join(FILE), text).unwrap();
        let error = crate::chain::chain(&Definition::read(&image).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn mistakes_are_told_with_file_and_line() {
        let start = "name = 'x'\ndescription = ''\n";
        refused(&format!("{start}colour = 1"), "x/image.toml: TOML parse error at line 3");
        refused(&format!("{start}packages = ['--help']"), "expected the name of a Debian package");
        refused(&format!("{start}base = '../x'"), "expected the name of a Debian suite");
        refused("name = 'y'\ndescription = ''", "another name");
        refused(&format!("{start}[[test]]\nname = 'a'"), "needs either code or command");
        refused(&format!("{start}[[test]]\nname = 'a'\ncode = ''"), "no [language]");
    }

    #[test]
    fn words_of_a_language_are_never_shell_text() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let language = Language {
            file: "a.c".into(),
            compile: words(&["echo", "$(id)", "a b"]),
            run: words(&["echo", "; exit 3"]),
        };
        let (command, args) = language.command();
        let output = std::process::Command::new(command).args(args).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "$(id) a b\n; exit 3\n");
    }

    #[test]
    fn every_definition_here_can_be_read() {
        let definitions = Definition::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("images")).unwrap();
        for definition in definitions {
            assert!(definition.tests.len() >= 2, "{} is not proven", definition.name);
        }
    }
}
