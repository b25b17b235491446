//! A task as it can be run, and why one cannot.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::image::{self, ImageId, ImageName, Offer};
use super::{
    ArchiveFormat, ArchiveRequest, Bounds, Bytes, Content, FileRequest, LimitRefusal, Limits, MergeOutput,
    OnOutputLimit, OutputGlob, PathRefusal, ResourceLimits, TaskRequest, TransferBounds, Window, WorkspacePath, cut,
};

/// The longest single string execve(2) takes (`MAX_ARG_STRLEN`: 32 pages), its NUL included.
const ARGUMENT_BYTES: usize = 128 << 10;
/// What arguments and environment may need together: execve(2) allows a quarter of an 8 MiB stack; some stays free.
const ARGUMENTS_BYTES: usize = (2 << 20) - (64 << 10);
/// What execve(2) adds for each string: its pointer.
const POINTER_BYTES: usize = 8;
/// The most files one task may bring.
pub const FILES: usize = 1000;
/// The most archives one task may bring.
const ARCHIVES: usize = 10;
/// The permissions of a file for which the client asks none: a script may be run at once, as one that was checked out.
pub const FILE_MODE: u32 = 0o755;

/// A task that can be run. `C` is its content: as the client gave it, or as it is at hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task<C> {
    pub image: ImageId,
    pub command: String,
    /// Whether the command is of the image's language: then the image's own PATH finds it, whatever the task's is.
    pub is_images: bool,
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub files: BTreeMap<WorkspacePath, Node<C>>,
    pub stdin: Option<C>,
    pub limits: Limits,
    pub outputs: Outputs,
    pub output: Output,
    /// An interpreter that waits may take it.
    pub prepared: bool,
}

/// Something in the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Node<C> {
    /// `mode` when one was asked for.
    File {
        content: C,
        mode: Option<u32>,
    },
    Directory,
    Symlink(String),
}

impl<C> Node<C> {
    /// The same with its content in another form.
    ///
    /// # Errors
    /// `form`'s.
    pub fn try_map<D, E>(self, form: impl FnOnce(C) -> Result<D, E>) -> Result<Node<D>, E> {
        Ok(match self {
            Self::File { content, mode } => Node::File { content: form(content)?, mode },
            Self::Directory => Node::Directory,
            Self::Symlink(target) => Node::Symlink(target),
        })
    }
}

/// The files that are taken when a task has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outputs {
    pub globs: Vec<OutputGlob>,
    pub bounds: TransferBounds,
}

/// What becomes of what a task writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    pub on_limit: OnOutputLimit,
    pub merge: MergeOutput,
    /// Streams that other steps take: all of them, beyond the limit too.
    pub handed_on: [bool; 2],
    /// Its standard descriptors are a terminal of this size.
    pub terminal: Option<Window>,
}

/// An archive that can be unpacked.
#[derive(Debug, Clone, PartialEq)]
pub struct Archive {
    pub content: Content,
    pub format: ArchiveFormat,
    pub below: Option<WorkspacePath>,
}

/// A task as it was taken: what runs, and, if its language compiles, what is run before to make that.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub compile: Option<Box<Task<Content>>>,
    pub run: Task<Content>,
    /// Unpacked for the compilation if there is one, else for the task.
    pub archives: Vec<Archive>,
}

/// How programs of a language are named, compiled and run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Language {
    /// The file name a program gets.
    pub file: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compile: Vec<String>,
    pub run: Vec<String>,
}

/// Why a task that could be read will not be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Limit(#[from] LimitRefusal),
    #[error(transparent)]
    Path(#[from] PathRefusal),
    #[error("file path {0:?} is given twice")]
    DuplicatePath(String),
    #[error("file path {0:?} is both a file and a directory")]
    FileAndDirectory(String),
    #[error("{0} files are more than the {FILES} a task may bring")]
    ManyFiles(usize),
    #[error("{0} archives are more than the {ARCHIVES} a task may bring")]
    ManyArchives(usize),
    #[error("files of {} do not fit into the task's memory limit of {}", Bytes(*size), Bytes(*limit))]
    LargeFiles { size: u64, limit: u64 },
    #[error("the link {path:?} to {target:?} leads out of the workspace")]
    LinkLeadsOut { path: String, target: String },
    #[error("{0} holds a NUL byte")]
    Nul(&'static str),
    #[error("{what} of {size} bytes is longer than the {ARGUMENT_BYTES} the kernel takes")]
    LongArgument { what: &'static str, size: usize },
    #[error("arguments and environment of {} are more than the {} the kernel takes", Bytes(*.0 as u64), Bytes(ARGUMENTS_BYTES as u64))]
    LongArguments(usize),
    #[error("environment variable name {0:?} is empty or has a '='")]
    VariableName(String),
    #[error("image name {0:?} is not a name: lower-case letters, digits, '-', '_' and '.', at most 64")]
    ImageName(String),
    #[error("unknown image {name:?}: {hint}")]
    UnknownImage { name: String, hint: String },
    #[error("unknown language {name:?}: {hint}")]
    UnknownLanguage { name: String, hint: String },
    #[error("the image {0:?} is not for a language: GET /languages lists those that are")]
    NoLanguage(String),
    #[error("{0:?} is where the code goes")]
    CodePath(String),
}

impl Job {
    /// Looks at everything that could keep `request` from running here. That it has a command, or a language with its code,
    /// is known.
    pub fn parse(
        request: TaskRequest,
        bounds: &Bounds,
        default_image: &ImageName,
        images: &[Offer],
    ) -> Result<Self, Refusal> {
        let image = choose_image(&request, default_image, images)?;
        let asked = request.resource_limits.unwrap_or_default();
        let limits = bounds.grant(&asked, &image.limits)?;
        let files = parse_files(request.files, &limits)?;
        let archives = parse_archives(request.archives)?;
        let output = Output {
            on_limit: request.on_output_limit.unwrap_or_default(),
            merge: request.merge_output.unwrap_or_default(),
            handed_on: [false; 2],
            terminal: request.tty,
        };
        let run = Task {
            image: image.id.clone(),
            is_images: request.language.is_some(),
            command: request.command.unwrap_or_default(),
            args: request.args,
            env: request.env,
            files,
            stdin: request.stdin,
            limits,
            outputs: Outputs { globs: request.outputs, bounds: bounds.outputs },
            output,
            prepared: request.prepared.unwrap_or(true),
        };
        let job = match (request.language, request.code) {
            (Some(_), Some(code)) => {
                let compile_limits = bounds.grant(&request.compile_limits.unwrap_or_default(), &image.limits)?;
                of_a_language(run, code, image, compile_limits)?
            }
            _ => (None, run),
        };
        for task in job.0.as_deref().into_iter().chain([&job.1]) {
            check_strings(&task.command, &task.args, &task.env)?;
        }
        Ok(Self { compile: job.0, run: job.1, archives })
    }
}

/// What one case of a judgement gives a program beside what all of them have.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CaseInput {
    /// In place of the request's.
    pub args: Option<Vec<String>>,
    /// Added to the request's, or in place of them.
    pub env: BTreeMap<String, String>,
    pub files: BTreeMap<String, FileRequest>,
    pub limits: ResourceLimits,
}

/// The part of a task that differs from case to case.
#[derive(Debug, Clone, PartialEq)]
pub struct CasePart {
    /// After the arguments that all have.
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub files: BTreeMap<WorkspacePath, Node<Content>>,
    pub limits: Limits,
}

impl CasePart {
    /// What `input` gives a task that was asked for with these `limits`.
    ///
    /// # Errors
    /// As [`Job::parse`]'s.
    pub fn parse(
        input: CaseInput,
        task: &Task<Content>,
        (args, limits): (&[String], &ResourceLimits),
        bounds: &Bounds,
        images: &[Offer],
    ) -> Result<Self, Refusal> {
        let image = image::find(&task.image.name, images)?;
        let limits = bounds.grant(&input.limits.or(limits), &image.limits)?;
        let files = parse_files(input.files, &limits)?;
        let args = input.args.unwrap_or_else(|| args.to_vec());
        let all: Vec<String> = task.args.iter().chain(&args).cloned().collect();
        let env: BTreeMap<String, String> = task.env.clone().into_iter().chain(input.env.clone()).collect();
        check_strings(&task.command, &all, &env)?;
        Ok(Self { args, env: input.env, files, limits })
    }
}

/// The compilation, if there is one, and what runs. A compilation takes all that the task brings, and everything that is in
/// its workspace at its end is in that of the task.
type Compiled = (Option<Box<Task<Content>>>, Task<Content>);

fn of_a_language(run: Task<Content>, code: Content, image: &Offer, limits: Limits) -> Result<Compiled, Refusal> {
    let language = image.language.as_ref().ok_or_else(|| Refusal::NoLanguage(image.id.name.clone().into()))?;
    let path = WorkspacePath::parse(&language.file)?;
    let mut files = run.files;
    if files.insert(path, Node::File { content: code, mode: None }).is_some() {
        return Err(Refusal::CodePath(language.file.clone()));
    }
    let (command, args) = split(&language.run);
    let run = Task { command, args: args.into_iter().chain(run.args).collect(), files, ..run };
    if language.compile.is_empty() {
        return Ok((None, run));
    }
    let (command, args) = split(&language.compile);
    let outputs = Outputs {
        globs: vec![OutputGlob::everything()],
        bounds: TransferBounds { count: FILES as u32, each: limits.workspace, total: limits.workspace },
    };
    let compile = Task {
        command,
        is_images: true,
        args,
        env: run.env.clone(),
        files: run.files,
        stdin: None,
        limits,
        outputs,
        output: Output { on_limit: OnOutputLimit::Discard, ..Output::default() },
        prepared: false,
        image: run.image.clone(),
    };
    Ok((Some(Box::new(compile)), Task { files: BTreeMap::new(), ..run }))
}

/// A definition's command has at least its program.
fn split(command: &[String]) -> (String, Vec<String>) {
    command.split_first().map_or_else(Default::default, |(program, args)| (program.clone(), args.to_vec()))
}

fn choose_image<'a>(
    request: &TaskRequest,
    default_image: &ImageName,
    images: &'a [Offer],
) -> Result<&'a Offer, Refusal> {
    if let Some(name) = &request.image {
        return image::find(&ImageName::parse(name)?, images);
    }
    match &request.language {
        None => image::find(default_image, images),
        Some(language) => image::find_language(language, images),
    }
}

impl<C> Task<C> {
    /// The same with its content in another form.
    ///
    /// # Errors
    /// The first one of `form`'s.
    pub fn try_map<D, E>(self, mut form: impl FnMut(C) -> Result<D, E>) -> Result<Task<D>, E> {
        let mut files = BTreeMap::new();
        for (path, node) in self.files {
            files.insert(path, node.try_map(&mut form)?);
        }
        let stdin = self.stdin.map(form).transpose()?;
        let Self { image, command, is_images, args, env, limits, outputs, output, prepared, .. } = self;
        Ok(Task { image, command, is_images, args, env, files, stdin, limits, outputs, output, prepared })
    }

    /// Every content it takes.
    pub fn contents(&self) -> impl Iterator<Item = &C> {
        let files = self.files.values().filter_map(|node| match node {
            Node::File { content, .. } => Some(content),
            _ => None,
        });
        files.chain(&self.stdin)
    }
}

/// What execve(2) would refuse, refused before anything is made.
fn check_strings(command: &str, args: &[String], env: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let mut total = 0;
    let mut check = |what, size: usize, nul| {
        total += size + 1 + POINTER_BYTES;
        match () {
            () if nul => Err(Refusal::Nul(what)),
            () if size >= ARGUMENT_BYTES => Err(Refusal::LongArgument { what, size }),
            () => Ok(()),
        }
    };
    check("the command", command.len(), command.contains('\0'))?;
    for arg in args {
        check("an argument", arg.len(), arg.contains('\0'))?;
    }
    for (name, value) in env {
        if name.is_empty() || name.contains('=') {
            return Err(Refusal::VariableName(cut(name)));
        }
        let nul = name.contains('\0') || value.contains('\0');
        check("an environment variable", name.len() + 1 + value.len(), nul)?;
    }
    if total > ARGUMENTS_BYTES { Err(Refusal::LongArguments(total)) } else { Ok(()) }
}

fn parse_files(
    files: BTreeMap<String, FileRequest>,
    limits: &Limits,
) -> Result<BTreeMap<WorkspacePath, Node<Content>>, Refusal> {
    if files.len() > FILES {
        return Err(Refusal::ManyFiles(files.len()));
    }
    let size = files.values().map(FileRequest::size).sum();
    if size >= limits.memory {
        return Err(Refusal::LargeFiles { size, limit: limits.memory });
    }
    let mut parsed = BTreeMap::new();
    for (key, file) in files {
        let path = WorkspacePath::parse(&key)?;
        let node = match file {
            FileRequest::File { content, mode } => Node::File { content, mode },
            FileRequest::Directory => Node::Directory,
            FileRequest::Symlink(target) if path.leads_inside(&target) => Node::Symlink(target),
            FileRequest::Symlink(target) => {
                return Err(Refusal::LinkLeadsOut { path: cut(&key), target: cut(&target) });
            }
        };
        if parsed.insert(path, node).is_some() {
            return Err(Refusal::DuplicatePath(cut(&key)));
        }
    }
    check_parents(&parsed)?;
    Ok(parsed)
}

/// What has something below it must be a directory.
///
/// # Errors
/// `FileAndDirectory` for what is not.
pub fn check_parents<C>(files: &BTreeMap<WorkspacePath, Node<C>>) -> Result<(), Refusal> {
    for path in files.keys() {
        let clash = path.parents().find(|parent| {
            WorkspacePath::parse(parent)
                .is_ok_and(|parent| files.get(&parent).is_some_and(|node| !matches!(node, Node::Directory)))
        });
        if let Some(parent) = clash {
            return Err(Refusal::FileAndDirectory(cut(parent)));
        }
    }
    Ok(())
}

fn parse_archives(archives: Vec<ArchiveRequest>) -> Result<Vec<Archive>, Refusal> {
    if archives.len() > ARCHIVES {
        return Err(Refusal::ManyArchives(archives.len()));
    }
    let parse = |ArchiveRequest { content, format, path }| Archive { content, format, below: path };
    Ok(archives.into_iter().map(parse).collect())
}

impl FileRequest {
    /// Bytes that came with the request.
    fn size(&self) -> u64 {
        match self {
            Self::File { content: Content::Bytes(bytes), .. } => bytes.len() as u64,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Digest, Limits, MINIMUM};

    fn parse(request: TaskRequest) -> Result<Task<Content>, Refusal> {
        job(request).map(|job| job.run)
    }

    fn job(request: TaskRequest) -> Result<Job, Refusal> {
        let limits = Limits {
            memory: 64 << 20,
            cpu_time: 1 << 30,
            wall_time: 1 << 30,
            processes: 10,
            file_descriptors: 100,
            count_descriptors: false,
            output: 1 << 20,
            workspace: 1 << 20,
            ..MINIMUM
        };
        let outputs = TransferBounds { count: 10, each: 100, total: 1000 };
        let host = ImageName::parse("host").unwrap();
        let id = ImageId { name: host.clone(), digest: Digest::new([0; 32]) };
        let asked = ResourceLimits { max_processes: Some(7), ..ResourceLimits::default() };
        let language = |compile: &[&str]| Language {
            file: "main.x".into(),
            compile: compile.iter().map(|&arg| arg.to_owned()).collect(),
            run: vec!["run".into(), "it".into()],
        };
        let offer = |name: &str, language| Offer {
            id: ImageId { name: ImageName::parse(name).unwrap(), ..id.clone() },
            limits: asked.clone(),
            language,
        };
        let offers = [
            offer("host", None),
            offer("script", Some(language(&[]))),
            offer("compiled", Some(language(&["cc", "main.x"]))),
        ];
        Job::parse(request, &Bounds { default: limits.clone(), max: limits, outputs }, &host, &offers)
    }

    fn request(json: serde_json::Value) -> TaskRequest {
        serde_json::from_value(json).unwrap()
    }

    #[track_caller]
    fn refused(json: serde_json::Value, expected: &str) {
        assert_eq!(parse(request(json)).unwrap_err().to_string(), expected);
    }

    #[test]
    fn a_minimal_task_takes_the_defaults() {
        let task = parse(request(serde_json::json!({"command": "true"}))).unwrap();
        assert_eq!(task.image.name.as_str(), "host");
        assert_eq!((task.limits.memory, task.limits.processes), (64 << 20, 7), "the server's, and the image's own");
        let asked = parse(request(serde_json::json!({"command": "true", "resource_limits": {"max_processes": 3}})));
        assert_eq!(asked.unwrap().limits.processes, 3);
    }

    #[test]
    fn what_cannot_run_is_refused_with_the_reason() {
        use serde_json::json;
        refused(json!({"command": "a\0b"}), "the command holds a NUL byte");
        refused(json!({"command": "a", "args": ["\0"]}), "an argument holds a NUL byte");
        refused(json!({"command": "a", "env": {"A=B": ""}}), "environment variable name \"A=B\" is empty or has a '='");
        refused(json!({"command": "a", "files": {"a": "", "./a": ""}}), "file path \"a\" is given twice");
        refused(
            json!({"command": "a", "files": {"a": "", "a/b": ""}}),
            "file path \"a\" is both a file and a directory",
        );
        refused(
            json!({"command": "a", "image": "nope"}),
            "unknown image \"nope\": this server has host, script, compiled",
        );
        refused(
            json!({"command": "a", "args": ["x".repeat(128 << 10)]}),
            "an argument of 131072 bytes is longer than the 131072 the kernel takes",
        );
    }

    #[test]
    fn a_language_is_a_command_of_its_image() {
        use serde_json::json;
        let run = json!({"language": "script", "code": "x", "args": ["a"], "files": {"f": "y"}});
        let Job { compile, run, .. } = job(request(run)).unwrap();
        assert!(compile.is_none());
        assert_eq!((run.command.as_str(), run.args, run.files.len()), ("run", vec!["it".into(), "a".into()], 2));
        let both = json!({"language": "compiled", "code": "x", "files": {"f": "y"}, "stdin": "z",
            "compile_limits": {"max_processes": 5}, "resource_limits": {"max_processes": 2}});
        let Job { compile, run, .. } = job(request(both)).unwrap();
        let compile = compile.unwrap();
        assert_eq!((compile.command.as_str(), compile.files.len(), compile.limits.processes), ("cc", 2, 5));
        assert!(compile.stdin.is_none() && run.stdin.is_some());
        assert_eq!((run.command.as_str(), run.files.len(), run.limits.processes), ("run", 0, 2));
        refused(json!({"language": "scrip", "code": ""}), "unknown language \"scrip\": did you mean script?");
        refused(
            json!({"language": "x", "image": "host", "code": ""}),
            "the image \"host\" is not for a language: GET /languages lists those that are",
        );
        refused(
            json!({"language": "script", "code": "", "files": {"main.x": ""}}),
            "\"main.x\" is where the code goes",
        );
    }

    #[test]
    fn files_are_more_than_text() {
        use serde_json::json;
        let files =
            json!({"d": {"directory": true}, "d/l": {"symlink": "../f"}, "f": {"base64": "AP8=", "mode": "0600"}});
        let task = parse(request(json!({"command": "a", "files": files}))).unwrap();
        assert_eq!(task.files.len(), 3);
        refused(
            json!({"command": "a", "files": {"l": {"symlink": "../x"}}}),
            "the link \"l\" to \"../x\" leads out of the workspace",
        );
        refused(
            json!({"command": "a", "files": {"l": {"symlink": "x"}, "l/f": ""}}),
            "file path \"l\" is both a file and a directory",
        );
    }
}
