//! What an image is to be: images/NAME/image.toml.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::copy::{self, CopiedFile, Copy};
use super::order::Additions;
use super::package::{Crate, CrateName, NpmPackage, Package, PipRequirement, Suite};
use super::{Language, PATH, Prepare, User};
use crate::config::{Size, Span};
use crate::task::{Content, Digest, FileRequest, ImageName, ResourceLimits, Status, TaskRequest};

/// The file in an image's directory.
pub const FILE: &str = "image.toml";
/// What wheels may take for granted of a machine (PEP 600, manylinux_2_28) and Debian's essential packages lack, as Debian's
/// packages. Without what is for a screen: X11, OpenGL, GLib.
const FOR_WHEELS: [&str; 4] = ["libatomic1", "libexpat1", "libstdc++6", "zlib1g"];
/// Definitions that extend each other: longer chains are a mistake, most likely a circle.
const FAMILY: usize = 8;

/// A definition, as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: ImageName,
    description: String,
    extends: Option<ImageName>,
    base: Option<Base>,
    #[serde(default)]
    packages: Vec<Package>,
    #[serde(default)]
    pip: Vec<PipRequirement>,
    #[serde(default)]
    npm: Vec<NpmPackage>,
    #[serde(default)]
    cargo: BTreeMap<CrateName, Crate>,
    #[serde(default)]
    copy: Vec<Copy>,
    #[serde(default)]
    run: Vec<String>,
    path: Option<String>,
    workdir: Option<String>,
    user: Option<User>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    limits: LimitDefaults,
    language: Option<Language>,
    prepare: Option<Prepare>,
    #[serde(default, rename = "test")]
    tests: Vec<Test>,
}

/// What an image is to be, with what it took from the definition it extends.
#[derive(Debug, Clone)]
pub struct Definition {
    pub name: ImageName,
    pub description: String,
    /// The directory it was read from.
    pub directory: PathBuf,
    pub base: Base,
    /// Debian packages; what they need comes with them, what they only recommend does not.
    pub packages: Vec<Package>,
    pub additions: Additions,
    pub path: String,
    /// Where tasks start, if not in the workspace.
    pub workdir: Option<String>,
    /// Whom they run as.
    pub user: User,
    env: BTreeMap<String, String>,
    limits: LimitDefaults,
    pub language: Option<Language>,
    pub prepare: Option<Prepare>,
    pub tests: Vec<Test>,
}

/// What an image starts from: `trixie`, `scratch`, `image:NAME` or `oci:SOURCE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Base {
    Debian(Suite),
    /// Nothing at all.
    Scratch,
    /// Another image, as it is in the store.
    Image(ImageName),
    /// What `faber image import` takes: a reference to a registry, or a file or directory beside the definition.
    Oci(String),
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

#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    #[error("there is no image definition {0}")]
    Missing(String),
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    /// The source says line and column.
    #[error("{path}")]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{path}: {reason}")]
    Refused { path: PathBuf, reason: String },
}

/// Where the definitions of Faber's package are: the package manager's, nobody else writes there.
const PACKAGED: &str = "/usr/share/faber/images";

/// Where definitions are looked for: `DIR/NAME/image.toml`. Of two with the same name the first counts.
#[derive(Debug, Clone)]
pub struct Definitions(Vec<PathBuf>);

impl Definitions {
    /// Those in `directory`, and no others.
    pub fn of(directory: &Path) -> Self {
        Self(vec![directory.to_owned()])
    }

    /// Those in `./images`, if that is there; else the machine's own, then those that came with Faber's package.
    pub fn usual() -> Self {
        let here = Path::new("images");
        if here.is_dir() {
            return Self::of(here);
        }
        Self(["/etc/faber/images", PACKAGED].map(PathBuf::from).into())
    }

    /// # Errors
    /// With the file, and where it is not TOML or not a definition the line.
    pub fn read(&self, name: &ImageName) -> Result<Definition, DefinitionError> {
        self.read_in_family(name, 0)
    }

    /// Every definition, by name; the embedded `host` is none.
    ///
    /// # Errors
    /// [`Definitions::read`]'s, and when no directory can be read.
    pub fn all(&self) -> Result<Vec<Definition>, DefinitionError> {
        let mut names = BTreeSet::new();
        let mut there = self.0.iter().filter(|place| place.is_dir()).peekable();
        // That there is none of them is told of the first.
        let none = there.peek().is_none().then_some(&self.0[0]);
        for place in there.chain(none) {
            let read = |source| DefinitionError::Read { path: place.clone(), source };
            for entry in fs::read_dir(place).map_err(read)? {
                let entry = entry.map_err(read)?;
                let (name, path) = (entry.file_name(), entry.path().join(FILE));
                if name == "host" || !path.exists() {
                    continue;
                }
                let name = ImageName::parse(&name.to_string_lossy());
                names.insert(name.map_err(|refusal| DefinitionError::Refused { path, reason: refusal.to_string() })?);
            }
        }
        names.iter().map(|name| self.read(name)).collect()
    }

    fn read_in_family(&self, name: &ImageName, depth: usize) -> Result<Definition, DefinitionError> {
        let mut directories = self.0.iter().map(|place| place.join(name.as_str()));
        let Some(directory) = directories.find(|directory| directory.join(FILE).exists()) else {
            let paths = self.0.iter().map(|place| place.join(name.as_str()).join(FILE).display().to_string());
            return Err(DefinitionError::Missing(paths.collect::<Vec<_>>().join(" or ")));
        };
        let path = directory.join(FILE);
        let text = fs::read_to_string(&path).map_err(|source| DefinitionError::Read { path: path.clone(), source })?;
        let written: Written = toml::from_str(&text)
            .map_err(|source| DefinitionError::Toml { path: path.clone(), source: Box::new(source) })?;
        let refused = |reason| DefinitionError::Refused { path: path.clone(), reason };
        if written.name != *name {
            return Err(refused(format!("the image {} is in a directory of another name", written.name)));
        }
        let parent = match &written.extends {
            Some(_) if depth == FAMILY => {
                return Err(refused(format!("more than {FAMILY} definitions extend each other: is it a circle?")));
            }
            Some(name) => Some(self.read_in_family(name, depth + 1)?),
            None => None,
        };
        let copied = copy::find(&directory, &written.copy).map_err(refused)?;
        let definition = written.complete(&directory, copied, parent).map_err(refused)?;
        match definition.mistake() {
            Some(reason) => Err(refused(reason)),
            None => Ok(definition),
        }
    }
}

/// A definition's text, without the files it copies and the definition it extends.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(written) = toml::from_str::<Written>(text) else { return };
    if let Ok(definition) = written.complete(Path::new("/"), Vec::new(), None) {
        _ = (definition.mistake(), definition.digest(), definition.env(), definition.limits());
    }
}

impl Definition {
    /// What the parts for themselves cannot show.
    fn mistake(&self) -> Option<String> {
        if self.name.as_str() == "host" {
            return Some("host is the name of the image that is built in".into());
        }
        if self.workdir.as_ref().is_some_and(|workdir| !workdir.starts_with('/')) {
            return Some("workdir is no absolute path".into());
        }
        if !matches!(self.base, Base::Debian(_)) && !self.packages.is_empty() {
            return Some(format!(
                "packages are Debian's, and its base is {}: install what it needs in a run step",
                String::from(self.base.clone())
            ));
        }
        if self.language.as_ref().is_some_and(|language| language.run.is_empty()) {
            return Some("language.run is empty".into());
        }
        if let Some(mistake) = self.prepare.as_ref().and_then(Prepare::mistake) {
            return Some(mistake.into());
        }
        let bad = self.tests.iter().find(|test| test.code.is_some() != test.command.is_empty());
        if let Some(test) = bad {
            return Some(format!("test {:?} needs either code or command", test.name));
        }
        let code = self.tests.iter().find(|test| test.code.is_some() && self.language.is_none());
        code.map(|test| format!("test {:?} has code, but there is no [language] to run it", test.name))
    }

    /// The Debian packages that it asks for, and those that wheels take for granted, where it has any.
    pub fn debian_packages(&self) -> Vec<Package> {
        let wheels = if self.additions.pip.is_empty() { &[][..] } else { &FOR_WHEELS };
        let wheels = wheels.iter().filter_map(|name| Package::try_from((*name).to_owned()).ok());
        let mut all = self.packages.clone();
        all.extend(wheels.filter(|package| !self.packages.contains(package)));
        all
    }

    /// Whether it came with Faber's package.
    pub fn is_packaged(&self) -> bool {
        self.directory.starts_with(PACKAGED)
    }

    /// Over everything that decides what is built. Tests do not.
    pub fn digest(&self) -> Digest {
        let Self { name, description, base, additions, path, workdir, user, env, limits, language, prepare, .. } = self;
        let packages = self.debian_packages();
        let Additions { pip, npm, cargo, copied, run } = additions;
        let copied: Vec<_> = copied.iter().map(|file| (&file.to, file.mode, &file.digest)).collect();
        let sources = format!("{base:?} {packages:?} {pip:?} {npm:?} {cargo:?} {copied:?} {run:?}");
        let told = format!("{name} {description:?} {path:?} {workdir:?} {user:?} {env:?} {limits:?} {language:?}");
        let prepare = prepare.as_ref().map(|prepare| format!(" {prepare:?}")).unwrap_or_default();
        Digest::new(Sha256::digest(format!("{} {sources} {told}{prepare}", super::tree::FORM)).into())
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
            ..ResourceLimits::default()
        }
    }
}

impl Written {
    /// With what the definition it extends has: lists go on, what is there once is taken where it is missing here.
    fn complete(
        self,
        directory: &Path,
        copied: Vec<CopiedFile>,
        parent: Option<Definition>,
    ) -> Result<Definition, String> {
        let Self { name, description, extends: _, base, packages, pip, npm, cargo, copy: _, run, path, env, .. } = self;
        let (has_workdir, has_user) = (self.workdir.is_some(), self.user.is_some());
        let is_of_parent = self.language.is_none();
        let own = Definition {
            name,
            description,
            directory: directory.to_owned(),
            base: Base::Debian(Suite::trixie()),
            packages,
            additions: Additions { pip, npm, cargo, copied, run },
            path: path.clone().unwrap_or_else(|| PATH.into()),
            workdir: self.workdir,
            user: self.user.unwrap_or_default(),
            env,
            limits: self.limits,
            language: self.language,
            prepare: self.prepare,
            tests: self.tests,
        };
        let Some(parent) = parent else { return Ok(Definition { base: base.unwrap_or(own.base), ..own }) };
        if base.is_some() {
            return Err("it extends another image, and has the base of that one".into());
        }
        fn joined<T: PartialEq>(mut first: Vec<T>, then: Vec<T>) -> Vec<T> {
            for item in then {
                if !first.contains(&item) {
                    first.push(item);
                }
            }
            first
        }
        let (first, then) = (parent.additions, own.additions);
        Ok(Definition {
            base: parent.base,
            packages: joined(parent.packages, own.packages),
            additions: Additions {
                pip: joined(first.pip, then.pip),
                npm: joined(first.npm, then.npm),
                cargo: first.cargo.into_iter().chain(then.cargo).collect(),
                copied: joined(first.copied, then.copied),
                run: joined(first.run, then.run),
            },
            path: path.unwrap_or(parent.path),
            workdir: if has_workdir { own.workdir } else { parent.workdir },
            user: if has_user { own.user } else { parent.user },
            env: parent.env.into_iter().chain(own.env).collect(),
            limits: own.limits.or(parent.limits),
            language: own.language.or(parent.language),
            // What waits for a program of the parent's language is of no use to another one.
            prepare: own.prepare.or(if is_of_parent { parent.prepare } else { None }),
            ..own
        })
    }
}

impl LimitDefaults {
    fn or(self, other: Self) -> Self {
        Self {
            memory: self.memory.or(other.memory),
            cpu_time: self.cpu_time.or(other.cpu_time),
            wall_time: self.wall_time.or(other.wall_time),
            processes: self.processes.or(other.processes),
            file_descriptors: self.file_descriptors.or(other.file_descriptors),
            output: self.output.or(other.output),
        }
    }
}

impl TryFrom<String> for Base {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text == "scratch" {
            return Ok(Self::Scratch);
        }
        if let Some(source) = text.strip_prefix("oci:") {
            return Ok(Self::Oci(source.to_owned()));
        }
        match text.strip_prefix("image:") {
            Some(name) => ImageName::parse(name).map(Self::Image).map_err(|refusal| refusal.to_string()),
            None => Suite::try_from(text).map(Self::Debian).map_err(str::to_owned),
        }
    }
}

impl From<Base> for String {
    fn from(base: Base) -> Self {
        match base {
            Base::Debian(suite) => suite.as_str().to_owned(),
            Base::Scratch => "scratch".to_owned(),
            Base::Image(name) => format!("image:{name}"),
            Base::Oci(source) => format!("oci:{source}"),
        }
    }
}

impl Test {
    /// The test as a task of `definition`'s image.
    pub fn request(&self, definition: &Definition) -> TaskRequest {
        let text = |text: &String| FileRequest::File { content: Content::Bytes(text.clone().into()), mode: None };
        let mut files: BTreeMap<String, FileRequest> =
            self.files.iter().map(|(name, content)| (name.clone(), text(content))).collect();
        let (command, args) = match (&self.code, &definition.language) {
            (Some(code), Some(language)) => {
                files.insert(language.file.clone(), text(code));
                language.command()
            }
            _ => (self.command[0].clone(), self.command[1..].to_vec()),
        };
        let image = Some(definition.name.to_string());
        TaskRequest { command: Some(command), args, files, image, ..TaskRequest::default() }
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

fn success() -> Status {
    Status::Success
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
        let read = Definitions::of(dir.path()).read(&ImageName::parse("x").unwrap());
        let error = crate::chain::chain(&read.unwrap_err());
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn mistakes_are_told_with_file_and_line() {
        let start = "name = 'x'\ndescription = ''\n";
        refused(&format!("{start}colour = 1"), "x/image.toml: TOML parse error at line 3");
        refused(&format!("{start}packages = ['--help']"), "expected the name of a Debian package");
        refused(&format!("{start}base = '../x'"), "expected the name of a Debian suite");
        refused(&format!("{start}base = 'image:X'"), "is not a name");
        refused(&format!("{start}base = 'scratch'\npackages = ['a']"), "its base is scratch");
        refused(&format!("{start}user = [0, 0]"), "a user and a group that a task may have");
        refused(&format!("{start}workdir = 'x'"), "no absolute path");
        refused(&format!("{start}extends = 'y'"), "there is no image definition");
        refused(&format!("{start}extends = 'x'"), "is it a circle?");
        refused(&format!("{start}pip = ['-r x']"), "expected a Python package");
        refused(&format!("{start}npm = ['--x']"), "expected an npm package");
        refused(&format!("{start}cargo = {{ '../x' = '1' }}"), "expected the name of a crate");
        refused(&format!("{start}copy = [{{ from = '../x', to = '/x' }}]"), "leads out of");
        refused(&format!("{start}copy = [{{ from = 'none', to = '/x' }}]"), "x/none");
        refused("name = 'y'\ndescription = ''", "another name");
        refused(&format!("{start}[[test]]\nname = 'a'"), "needs either code or command");
        refused(&format!("{start}[[test]]\nname = 'a'\ncode = ''"), "no [language]");
    }

    #[test]
    fn a_definition_with_wheels_has_what_they_take_for_granted() {
        let read = |more: &str| {
            let text = format!("name = 'x'\ndescription = ''\npackages = ['zlib1g', 'a']\n{more}");
            let definition =
                toml::from_str::<Written>(&text).unwrap().complete(Path::new("/"), Vec::new(), None).unwrap();
            definition.debian_packages().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(read(""), ["zlib1g", "a"]);
        assert_eq!(read("pip = ['numpy']"), ["zlib1g", "a", "libatomic1", "libexpat1", "libstdc++6"]);
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
        let definitions = Definitions::of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("images"));
        for definition in definitions.all().unwrap() {
            assert!(definition.tests.len() >= 2, "{} is not proven", definition.name);
        }
    }

    #[test]
    fn the_first_place_counts_and_may_extend_what_another_has() {
        let dir = tempfile::tempdir().unwrap();
        let define = |place: &str, name: &str, rest: &str| {
            fs::create_dir_all(dir.path().join(place).join(name)).unwrap();
            let text = format!("name = '{name}'\ndescription = '{place}'\n{rest}");
            fs::write(dir.path().join(place).join(name).join(FILE), text).unwrap();
        };
        define("own", "a", "extends = 'b'");
        define("packaged", "a", "");
        define("packaged", "b", "packages = ['lua5.4']");
        let definitions = Definitions(["own", "packaged", "absent"].map(|place| dir.path().join(place)).into());
        let all = definitions.all().unwrap();
        let told: Vec<_> = all.iter().map(|one| (one.name.as_str(), one.description.as_str())).collect();
        assert_eq!(told, [("a", "own"), ("b", "packaged")]);
        assert_eq!((all[0].packages.len(), all[0].directory.clone()), (1, dir.path().join("own/a")));
        let missing = definitions.read(&ImageName::parse("c").unwrap()).unwrap_err().to_string();
        assert!(missing.contains("own/c/image.toml or ") && missing.contains("packaged/c/image.toml"), "{missing}");
    }
}
