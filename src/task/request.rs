//! A task as the client writes it.

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::content::ContentForms;
use super::json::{objects, optional_object, or_default, unique_keys, whole_number};
use super::limits::Processors;
use super::{
    ArchiveFormat, Compare, Content, FileRequest, OutputEncoding, OutputGlob, RunWhen, StepName, Stream, Window,
    WorkspacePath,
};

/// The API page's own words.
pub const EMPTY_COMMAND: &str = "Invalid command: command cannot be empty";

/// One command to run, with everything it needs.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "command": "python",
    "args": ["script.py"],
    "files": {"script.py": "print('Hello from Python')"}
}))]
pub struct TaskRequest {
    /// A name, unique in the request: others refer to it, and the result has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "compile")]
    pub name: Option<StepName>,
    /// The program: a name looked up in PATH, that of `env` or else the image's, or a path inside the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "echo")]
    pub command: Option<String>,
    /// In place of `command`: a language of GET /languages, whose program is `code`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "python")]
    pub language: Option<String>,
    /// The program in that language: compiled, if the language is, then run with `args`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ContentForms>, example = "print(6 * 7)")]
    pub code: Option<Content>,
    /// Its arguments, without the program's own name.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    #[schema(nullable, example = json!(["hello", "world"]))]
    pub args: Vec<String>,
    /// Environment variables, added to the image's own. A PATH is also where the command is looked up.
    #[serde(default, deserialize_with = "unique_keys", skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(nullable, example = json!({"CUSTOM_VAR": "value"}))]
    pub env: BTreeMap<String, String>,
    /// What the task reads from its standard input; without it that is at its end at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ContentForms>, example = "1 2\n")]
    pub stdin: Option<Content>,
    /// Files to put into the workspace before the start: relative path to content, at most 1000.
    #[serde(default, deserialize_with = "unique_keys", skip_serializing)]
    #[schema(nullable, value_type = BTreeMap<String, super::content::FileForms>, example = json!({"script.py": "print('Hello from Python')"}))]
    pub files: BTreeMap<String, FileRequest>,
    /// Archives to unpack into the workspace, before the files.
    #[serde(default, deserialize_with = "objects", skip_serializing_if = "Vec::is_empty")]
    #[schema(nullable, example = json!([{"blob": "sha256:0e223acf24a6b7c1b545e4603a2fa6a09f7f2492924be4d0e0935551a27e66a0", "format": "tar.gz"}]))]
    pub archives: Vec<ArchiveRequest>,
    /// Files to give back, as globs of the workspace. One that ends in `?` may be missing.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    #[schema(nullable, value_type = Vec<String>, example = json!(["main", "out/**", "plot.png?"]))]
    pub outputs: Vec<OutputGlob>,
    /// How stdout and stderr become strings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_encoding: Option<OutputEncoding>,
    /// What happens at `max_output_size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_output_limit: Option<OnOutputLimit>,
    /// true: stderr goes into stdout, in the order written. "beside": `output` has both in the order in which they arrived.
    #[serde(default, deserialize_with = "merge_output", skip_serializing)]
    #[schema(value_type = Option<MergeForms>)]
    pub merge_output: Option<MergeOutput>,
    /// Names of tasks that must have ended before this one starts.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    #[schema(nullable, value_type = Vec<String>, example = json!(["compile"]))]
    pub needs: Vec<StepName>,
    /// How what it needs must have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_when: Option<RunWhen>,
    /// With `connect`: connected streams that are to be in the result all the same.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    #[schema(nullable, example = json!(["stdout"]))]
    pub record: Vec<Stream>,
    /// What its output is compared with: the result has a verdict.
    #[serde(default, deserialize_with = "optional_object", skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
    /// A terminal of this size in the place of its standard descriptors: on a connection that both sides can say more on.
    #[serde(default, deserialize_with = "optional_object", skip_serializing_if = "Option::is_none")]
    pub tty: Option<Window>,
    /// true: the same step need not be run again; it may be answered with what it left before.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    #[schema(nullable)]
    pub cache: bool,
    /// false: its interpreter is started for it, also where the image has one that waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = false)]
    pub prepared: Option<bool>,
    /// true: the result tells more.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    #[schema(nullable)]
    pub detail: bool,
    /// Limits; what is left out comes from the server's defaults.
    #[serde(default, deserialize_with = "optional_object")]
    pub resource_limits: Option<ResourceLimits>,
    /// Limits of the compilation; what is left out comes from the image's or the server's defaults.
    #[serde(default, deserialize_with = "optional_object", skip_serializing_if = "Option::is_none")]
    pub compile_limits: Option<ResourceLimits>,
    /// The image to run in; without it the server's default image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "host")]
    pub image: Option<String>,
}

/// An archive to unpack into the workspace: content, its format, and where.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[schema(example = json!({"blob": "sha256:0e223acf24a6b7c1b545e4603a2fa6a09f7f2492924be4d0e0935551a27e66a0", "format": "tar.gz"}))]
#[serde(try_from = "super::content::ArchiveKeys")]
pub struct ArchiveRequest {
    #[serde(flatten)]
    #[schema(value_type = ContentForms)]
    pub content: Content,
    #[schema(value_type = String, example = "tar.gz")]
    pub format: ArchiveFormat,
    /// A directory of the workspace; without it, or ".", the workspace itself.
    #[serde(skip)]
    #[schema(value_type = Option<String>, example = ".")]
    pub path: Option<WorkspacePath>,
}

/// What happens to a task that writes more than `max_output_size`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[schema(example = "kill")]
#[serde(rename_all = "lowercase")]
pub enum OnOutputLimit {
    /// It is ended.
    #[default]
    Kill,
    /// It runs on; the rest is read and dropped.
    Discard,
}

/// Where stderr goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum MergeOutput {
    #[default]
    Apart,
    /// Into stdout, by one pipe.
    Into,
    /// Apart; a third text has both as they arrived.
    Beside,
}

/// As it is written.
#[derive(Deserialize, ToSchema)]
#[schema(as = MergeOutput, example = true)]
#[serde(untagged)]
pub enum MergeForms {
    /// true: stderr goes into stdout.
    Whether(bool),
    /// "beside".
    Named(String),
}

fn merge_output<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MergeOutput>, D::Error> {
    let expected = || D::Error::custom("expected true, false or \"beside\"");
    match Option::<MergeForms>::deserialize(deserializer).map_err(|_| expected())? {
        None => Ok(None),
        Some(MergeForms::Whether(false)) => Ok(Some(MergeOutput::Apart)),
        Some(MergeForms::Whether(true)) => Ok(Some(MergeOutput::Into)),
        Some(MergeForms::Named(name)) if name == "beside" => Ok(Some(MergeOutput::Beside)),
        Some(MergeForms::Named(_)) => Err(expected()),
    }
}

/// What a task's output is compared with.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"stdout": "3\n", "compare": "tokens"}))]
pub struct Expect {
    /// The right output.
    #[schema(value_type = ContentForms, example = "3\n")]
    pub stdout: Content,
    /// How they are compared.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<CompareForms>)]
    pub compare: Compare,
}

/// How a program's output is compared with what was expected: by a word, or `{"float": 1e-6}`.
#[derive(ToSchema)]
#[schema(as = Compare, example = "tokens")]
#[serde(untagged)]
pub enum CompareForms {
    /// "exact", "lines" (without blanks at the end of lines, and blank lines at the end) or "tokens" (what is between white
    /// space).
    Word(String),
    /// Tokens, of which numbers are compared by their absolute or relative difference.
    Float {
        #[schema(example = 1e-6)]
        float: f64,
    },
}

/// Limits of one task, in bytes and nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResourceLimits {
    /// Bytes of memory for all its processes together.
    #[serde(deserialize_with = "whole_number")]
    #[schema(example = 536870912)]
    pub memory_limit: Option<u64>,
    /// Nanoseconds of CPU time for all its processes together.
    #[serde(deserialize_with = "whole_number")]
    #[schema(example = 30000000000u64)]
    pub cpu_time_limit: Option<u64>,
    /// Nanoseconds of wall-clock time from its start.
    #[serde(deserialize_with = "whole_number")]
    #[schema(example = 60000000000u64)]
    pub wall_time_limit: Option<u64>,
    /// Processes and threads alive at once.
    #[serde(deserialize_with = "whole_number")]
    #[schema(example = 10)]
    pub max_processes: Option<u64>,
    /// Open file descriptors of each process.
    #[serde(deserialize_with = "whole_number")]
    #[schema(example = 100)]
    pub max_file_descriptors: Option<u64>,
    /// Bytes of stdout and stderr together, of which each has half for itself.
    #[serde(deserialize_with = "whole_number")]
    #[schema(example = 1048576)]
    pub max_output_size: Option<u64>,
    /// Bytes of the main thread's stack; without it as much as of memory.
    #[serde(deserialize_with = "whole_number", skip_serializing_if = "Option::is_none")]
    #[schema(example = 8388608)]
    pub stack_limit: Option<u64>,
    /// Bytes of the files in the workspace, which count as memory, too.
    #[serde(deserialize_with = "whole_number", skip_serializing_if = "Option::is_none")]
    #[schema(example = 268435456)]
    pub workspace_limit: Option<u64>,
    /// Bytes of one file: a process that writes more gets SIGXFSZ.
    #[serde(deserialize_with = "whole_number", skip_serializing_if = "Option::is_none")]
    #[schema(example = 67108864)]
    pub max_file_size: Option<u64>,
    /// Processors it may use at once, such as 0.5; takes cgroup v2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>, example = 0.5)]
    pub cpus: Option<Processors>,
}

impl TaskRequest {
    /// What keeps it from being a task: it has a command, or a language and code.
    pub fn nothing_to_run(&self) -> Option<&'static str> {
        match (&self.command, &self.language, &self.code) {
            (Some(command), None, None) if command.trim().is_empty() => Some(EMPTY_COMMAND),
            (Some(_), None, None) => self.compile_limits.is_some().then_some("compile_limits goes with language"),
            (None, Some(_), Some(_)) => None,
            (None, None, None) => Some("missing field `command`"),
            (Some(_), ..) => Some("command stands in place of language and code"),
            (None, Some(_), None) => Some("language needs code"),
            (None, None, Some(_)) => Some("code needs a language"),
        }
    }
}

impl ResourceLimits {
    /// These, and where they say nothing, `others`.
    pub fn or(&self, others: &Self) -> Self {
        Self {
            memory_limit: self.memory_limit.or(others.memory_limit),
            cpu_time_limit: self.cpu_time_limit.or(others.cpu_time_limit),
            wall_time_limit: self.wall_time_limit.or(others.wall_time_limit),
            max_processes: self.max_processes.or(others.max_processes),
            max_file_descriptors: self.max_file_descriptors.or(others.max_file_descriptors),
            max_output_size: self.max_output_size.or(others.max_output_size),
            stack_limit: self.stack_limit.or(others.stack_limit),
            workspace_limit: self.workspace_limit.or(others.workspace_limit),
            max_file_size: self.max_file_size.or(others.max_file_size),
            cpus: self.cpus.or(others.cpus),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_key_is_an_error() {
        let error = serde_json::from_str::<TaskRequest>(r#"{"command":"a","env":{"A":"1","A":"2"}}"#).unwrap_err();
        assert!(error.to_string().contains("duplicate key `A`"), "{error}");
    }
}
