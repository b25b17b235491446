//! A task as the client wrote it, and as it can be run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::image::{self, ImageId, ImageName, Offer};
use super::json::{optional_object, unique_keys};
use super::{Bounds, LimitRefusal, Limits, PathRefusal, WorkspacePath};

/// The longest single string execve(2) takes (`MAX_ARG_STRLEN`: 32 pages), its NUL included.
const ARGUMENT_BYTES: usize = 128 << 10;
/// What arguments and environment may need together: execve(2) allows a quarter of the 8 MiB stack; some stays free.
const ARGUMENTS_BYTES: usize = (2 << 20) - (64 << 10);
/// What execve(2) adds for each string: its pointer.
const POINTER_BYTES: usize = 8;
/// The most files one task may bring.
const FILES: usize = 1000;

/// One command to run, with everything it needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "command": "python",
    "args": ["script.py"],
    "files": {"script.py": "print('Hello from Python')"}
}))]
pub struct TaskRequest {
    /// The program: a name looked up in the image's PATH, or a path inside the container.
    #[schema(example = "echo")]
    pub command: String,
    /// Its arguments, without the program's own name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(example = json!(["hello", "world"]))]
    pub args: Vec<String>,
    /// Environment variables, added to the image's own.
    #[serde(default, deserialize_with = "unique_keys", skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(example = json!({"CUSTOM_VAR": "value"}))]
    pub env: BTreeMap<String, String>,
    /// Files to put into the workspace before the start: relative path to content.
    #[serde(default, deserialize_with = "unique_keys", skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(example = json!({"script.py": "print('Hello from Python')"}))]
    pub files: BTreeMap<String, String>,
    /// Limits; what is left out comes from the server's defaults.
    #[serde(default, deserialize_with = "optional_object")]
    pub resource_limits: Option<ResourceLimits>,
    /// The image to run in; without it the server's default image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "host")]
    pub image: Option<String>,
}

/// Limits of one task, in bytes and nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceLimits {
    /// Bytes of memory for all its processes together.
    #[schema(example = 536870912)]
    pub memory_limit: Option<u64>,
    /// Nanoseconds of CPU time for all its processes together.
    #[schema(example = 30000000000u64)]
    pub cpu_time_limit: Option<u64>,
    /// Nanoseconds of wall-clock time from its start.
    #[schema(example = 60000000000u64)]
    pub wall_time_limit: Option<u64>,
    /// Processes and threads alive at once.
    #[schema(example = 10)]
    pub max_processes: Option<u64>,
    /// Open file descriptors of each process.
    #[schema(example = 100)]
    pub max_file_descriptors: Option<u64>,
    /// Bytes of stdout and stderr together.
    #[schema(example = 1048576)]
    pub max_output_size: Option<u64>,
}

/// A task that can be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub image: ImageId,
    pub command: String,
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub files: BTreeMap<WorkspacePath, String>,
    pub limits: Limits,
}

/// Why a task that could be read will not be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Limit(#[from] LimitRefusal),
    #[error("{0}")]
    Path(#[from] PathRefusal),
    #[error("file path {0:?} is given twice")]
    DuplicatePath(String),
    #[error("file path {0:?} is both a file and a directory")]
    FileAndDirectory(String),
    #[error("{0} files are more than the {FILES} a task may bring")]
    ManyFiles(usize),
    #[error("files of {size} bytes do not fit into the task's memory limit of {limit} bytes")]
    LargeFiles { size: u64, limit: u64 },
    #[error("{0} holds a NUL byte")]
    Nul(&'static str),
    #[error("{what} of {size} bytes is longer than the {ARGUMENT_BYTES} the kernel takes")]
    LongArgument { what: &'static str, size: usize },
    #[error("arguments and environment of {0} bytes are more than the {ARGUMENTS_BYTES} the kernel takes")]
    LongArguments(usize),
    #[error("environment variable name {0:?} is empty or has a '='")]
    VariableName(String),
    #[error("image name {0:?} is not a name: lower-case letters, digits, '-', '_' and '.', at most 64")]
    ImageName(String),
    #[error("unknown image {name:?}: {hint}")]
    UnknownImage { name: String, hint: String },
}

impl Task {
    /// Looks at everything that could keep `request` from running here. The command is known not to be empty.
    pub fn parse(
        request: TaskRequest,
        bounds: &Bounds,
        default_image: &ImageName,
        images: &[Offer],
    ) -> Result<Self, Refusal> {
        let name = request.image.as_deref().map(ImageName::parse).transpose()?;
        let image = image::find(name.as_ref().unwrap_or(default_image), images)?;
        let limits = bounds.grant(&request.resource_limits.unwrap_or_default(), &image.limits)?;
        check_strings(&request.command, &request.args, &request.env)?;
        let files = parse_files(request.files, &limits)?;
        Ok(Self {
            image: image.id.clone(),
            command: request.command,
            args: request.args,
            env: request.env,
            files,
            limits,
        })
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
            return Err(Refusal::VariableName(name.chars().take(100).collect()));
        }
        let nul = name.contains('\0') || value.contains('\0');
        check("an environment variable", name.len() + 1 + value.len(), nul)?;
    }
    if total > ARGUMENTS_BYTES { Err(Refusal::LongArguments(total)) } else { Ok(()) }
}

fn parse_files(files: BTreeMap<String, String>, limits: &Limits) -> Result<BTreeMap<WorkspacePath, String>, Refusal> {
    if files.len() > FILES {
        return Err(Refusal::ManyFiles(files.len()));
    }
    let size = files.values().map(|content| content.len() as u64).sum();
    if size >= limits.memory {
        return Err(Refusal::LargeFiles { size, limit: limits.memory });
    }
    let mut parsed = BTreeMap::new();
    for (key, content) in files {
        let path = WorkspacePath::parse(&key)?;
        if parsed.insert(path, content).is_some() {
            return Err(Refusal::DuplicatePath(key.chars().take(100).collect()));
        }
    }
    for path in parsed.keys() {
        let clash = path.parents().find(|parent| WorkspacePath::parse(parent).is_ok_and(|p| parsed.contains_key(&p)));
        if let Some(parent) = clash {
            return Err(Refusal::FileAndDirectory(parent.chars().take(100).collect()));
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Digest, Limits};

    fn parse(request: TaskRequest) -> Result<Task, Refusal> {
        let limits = Limits {
            memory: 64 << 20,
            cpu_time: 1 << 30,
            wall_time: 1 << 30,
            processes: 10,
            file_descriptors: 100,
            output: 1 << 20,
        };
        let host = ImageName::parse("host").unwrap();
        let id = ImageId { name: host.clone(), digest: Digest::new([0; 32]) };
        let asked = ResourceLimits { max_processes: Some(7), ..ResourceLimits::default() };
        let offers = [Offer { id, limits: asked }];
        Task::parse(request, &Bounds { default: limits.clone(), max: limits }, &host, &offers)
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
        refused(json!({"command": "a", "image": "nope"}), "unknown image \"nope\": this server has host");
        refused(
            json!({"command": "a", "args": ["x".repeat(128 << 10)]}),
            "an argument of 131072 bytes is longer than the 131072 the kernel takes",
        );
    }

    #[test]
    fn a_repeated_key_is_an_error() {
        let error = serde_json::from_str::<TaskRequest>(r#"{"command":"a","env":{"A":"1","A":"2"}}"#).unwrap_err();
        assert!(error.to_string().contains("duplicate key `A`"), "{error}");
    }
}
