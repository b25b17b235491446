//! The tools: how they are told, and what their arguments stand for.

use std::collections::BTreeMap;

use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use rmcp::schemars::{self, JsonSchema};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Refusal;
use super::results::{JudgementOutput, LanguagesOutput, RunOutput, STREAM};
use crate::judge::{CaseRequest, Comparison, JudgeRequest};
use crate::task::{
    Bounds, Bytes, Content, FileRequest, OnOutputLimit, OutputGlob, ResourceLimits, TaskRequest, Time, or_default,
    unique_keys,
};

/// What a client may tell its model of this server.
pub const INSTRUCTIONS: &str = "Runs programs in fresh, isolated containers without network. Nothing is kept between calls: \
                                pass every file that a program needs with the call, and name in `outputs` the files to get back.";

/// Cases of one judgement, for an answer that a model can read.
const CASES: usize = 100;

const RUN_CODE: &str = "run_code";
const RUN_COMMAND: &str = "run_command";
const JUDGE: &str = "judge";
const LIST_LANGUAGES: &str = "list_languages";

/// A call whose arguments make sense.
pub enum Call {
    Run(Box<TaskRequest>),
    Judge(Box<JudgeRequest>),
    ListLanguages,
}

/// A program in one of the languages.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RunCode {
    /// Its language, as list_languages names it, such as "python".
    language: String,
    /// The whole program.
    code: String,
    /// What it reads from standard input.
    #[serde(default)]
    stdin: Option<String>,
    /// Files to put into its working directory.
    #[serde(default, deserialize_with = "unique_keys")]
    #[schemars(with = "BTreeMap<String, File>")]
    files: BTreeMap<String, FileRequest>,
    /// Its command line arguments.
    #[serde(default, deserialize_with = "or_default")]
    args: Vec<String>,
    /// Files of its working directory to get back, as paths or globs such as "plot.png" or "out/*.csv". Images come as images.
    #[serde(default, deserialize_with = "or_default")]
    #[schemars(with = "Vec<String>")]
    outputs: Vec<OutputGlob>,
}

/// A command, without a shell: for pipes and the like, command "sh" with args ["-c", "..."].
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RunCommand {
    /// The program: a name that is looked up in PATH, or a path.
    command: String,
    /// Its arguments, each by itself.
    #[serde(default, deserialize_with = "or_default")]
    args: Vec<String>,
    /// The image to run in, as list_languages names it; the default image without it.
    #[serde(default)]
    image: Option<String>,
    /// Files to put into its working directory.
    #[serde(default, deserialize_with = "unique_keys")]
    #[schemars(with = "BTreeMap<String, File>")]
    files: BTreeMap<String, FileRequest>,
    /// What it reads from standard input.
    #[serde(default)]
    stdin: Option<String>,
    /// Files of its working directory to get back, as paths or globs such as "plot.png" or "out/*.csv". Images come as images.
    #[serde(default, deserialize_with = "or_default")]
    #[schemars(with = "Vec<String>")]
    outputs: Vec<OutputGlob>,
}

/// A program against cases.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Judge {
    /// Its language, as list_languages names it, such as "python".
    language: String,
    /// The whole program: it reads standard input and writes standard output.
    code: String,
    cases: Vec<Case>,
    /// "lines" (the default: blanks at the end of lines do not count), "tokens" (white space does not count), "exact", or
    /// {"float": 1e-6} (tokens, with numbers within a tolerance).
    #[serde(default, deserialize_with = "or_default")]
    #[schemars(with = "Option<Compare>")]
    compare: Comparison,
}

/// An input with the output that is right.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Case {
    /// Told in the result; its number without it.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    stdin: Option<String>,
    expected: String,
}

/// No arguments.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// A file's content, by its path: text, or any bytes as {"base64": "..."}.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "the schema is made of the type alone")]
enum File {
    Text(String),
    Bytes { base64: String },
}

/// How outputs are compared.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "the schema is made of the type alone")]
enum Compare {
    Word(Word),
    Float { float: f64 },
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "the schema is made of the type alone")]
enum Word {
    Lines,
    Tokens,
    Exact,
}

/// All tools, in the order in which they are told.
pub fn all(bounds: &Bounds, max_cases: usize) -> Vec<Tool> {
    let limits = &bounds.default;
    let within = format!(
        "Limits, unless its image has others: {} of memory, {} of CPU time, {} in all, {} processes, {} of files, no network. \
         Of stdout and stderr the first {} each are told; more is dropped and marked as truncated.",
        Bytes(limits.memory),
        Time(limits.cpu_time),
        Time(limits.wall_time),
        limits.processes,
        Bytes(limits.workspace),
        Bytes(stream(bounds)),
    );
    // Nothing outside of a container changes, which is gone afterwards.
    let hints = |title: &str| ToolAnnotations::with_title(title).read_only(true).destructive(false).open_world(false);
    let tool = |name: &'static str, description: String| Tool::new(name, description, JsonObject::new());
    vec![
        tool(
            RUN_CODE,
            format!(
                "Run a program given as source code, compiled first where its language is, in a fresh isolated container. \
                 Returns exit code, stdout, stderr, usage, and the files named in outputs; a failing program is a normal \
                 result. {within}"
            ),
        )
        .with_input_schema::<RunCode>()
        .with_output_schema::<RunOutput>()
        .with_annotations(hints("Run code")),
        tool(
            RUN_COMMAND,
            format!(
                "Run one command with arguments in a fresh isolated container, in an image of list_languages. It is not \
                 given to a shell: use command \"sh\" with args [\"-c\", \"...\"] for pipes. Returns what run_code does. \
                 {within}"
            ),
        )
        .with_input_schema::<RunCommand>()
        .with_output_schema::<RunOutput>()
        .with_annotations(hints("Run a command")),
        tool(
            JUDGE,
            format!(
                "Test a program against up to {} cases: it is compiled once and run for each with the case's stdin, and its \
                 stdout is compared with what is expected. Returns a verdict for each (Accepted, WrongAnswer, RuntimeError, \
                 TimeLimitExceeded, ...) with where the output differs. Limits of each case are those of run_code.",
                max_cases.min(CASES)
            ),
        )
        .with_input_schema::<Judge>()
        .with_output_schema::<JudgementOutput>()
        .with_annotations(hints("Judge a program")),
        tool(
            LIST_LANGUAGES,
            "List the languages that run_code and judge know, with their versions, and the images of run_command.".into(),
        )
        .with_input_schema::<Nothing>()
        .with_output_schema::<LanguagesOutput>()
        .with_annotations(hints("List languages")),
    ]
}

/// What is said of a tool that is not there.
pub fn unknown(name: &str) -> String {
    let name: String = name.chars().take(100).collect();
    format!("There is no tool {name:?}: expected {RUN_CODE}, {RUN_COMMAND}, {JUDGE} or {LIST_LANGUAGES}")
}

impl Call {
    /// None of a tool that is not there; an error where its arguments make no sense.
    pub fn read(name: &str, arguments: JsonObject, bounds: &Bounds, max_cases: usize) -> Option<Result<Self, Refusal>> {
        Some(match name {
            RUN_CODE => arguments_of(arguments).map(|code: RunCode| code.call(bounds)),
            RUN_COMMAND => arguments_of(arguments).and_then(|command: RunCommand| command.call(bounds)),
            JUDGE => arguments_of(arguments).and_then(|judge: Judge| judge.call(max_cases.min(CASES))),
            LIST_LANGUAGES => arguments_of(arguments).map(|Nothing {}| Self::ListLanguages),
            _ => return None,
        })
    }
}

impl RunCode {
    fn call(self, bounds: &Bounds) -> Call {
        Call::Run(Box::new(TaskRequest {
            language: Some(self.language),
            code: Some(text(self.code)),
            stdin: self.stdin.map(text),
            files: self.files,
            args: self.args,
            outputs: self.outputs,
            ..bounded(bounds)
        }))
    }
}

impl RunCommand {
    fn call(self, bounds: &Bounds) -> Result<Call, Refusal> {
        let task = TaskRequest {
            command: Some(self.command),
            args: self.args,
            image: self.image,
            files: self.files,
            stdin: self.stdin.map(text),
            outputs: self.outputs,
            ..bounded(bounds)
        };
        task.nothing_to_run().map_or(Ok(Call::Run(Box::new(task))), |lack| Err(lack.into()))
    }
}

impl Judge {
    fn call(self, most: usize) -> Result<Call, Refusal> {
        let count = self.cases.len();
        if count > most {
            return Err(format!("Invalid cases: {count} cases are more than the {most} of one call"));
        }
        let case = |case: Case| CaseRequest {
            name: case.name,
            stdin: case.stdin.map(text),
            expected: Some(text(case.expected)),
            ..CaseRequest::default()
        };
        Ok(Call::Judge(Box::new(JudgeRequest {
            language: Some(self.language),
            code: Some(text(self.code)),
            cases: self.cases.into_iter().map(case).collect(),
            compare: self.compare,
            ..JudgeRequest::default()
        })))
    }
}

/// Bytes of a stream that are told.
fn stream(bounds: &Bounds) -> u64 {
    STREAM.min(bounds.max.output / 2)
}

/// A task that writes as much as is told, and is not ended for more.
fn bounded(bounds: &Bounds) -> TaskRequest {
    let limits = ResourceLimits { max_output_size: Some(2 * stream(bounds)), ..ResourceLimits::default() };
    TaskRequest {
        on_output_limit: Some(OnOutputLimit::Discard),
        resource_limits: Some(limits),
        detail: true,
        ..TaskRequest::default()
    }
}

fn text(text: String) -> Content {
    Content::Bytes(text.into())
}

/// A tool's arguments; what is wrong is told with its place.
fn arguments_of<T: DeserializeOwned>(arguments: JsonObject) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(Value::Object(arguments)).map_err(|error| {
        let place = error.path().to_string();
        let place = if place == "." { String::new() } else { format!("{place}: ") };
        format!("Invalid arguments: {place}{}", error.inner())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Limits, MINIMUM, TransferBounds};
    use serde_json::json;

    fn read(name: &str, arguments: Value) -> Result<Call, Refusal> {
        let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
        let outputs = TransferBounds { count: 1, each: 1, total: 1 };
        let bounds = Bounds { default: MINIMUM, max: Limits { output: 1 << 20, ..MINIMUM }, outputs };
        Call::read(name, arguments, &bounds, 1000).expect("the tool is there")
    }

    #[track_caller]
    fn refused(name: &str, arguments: Value, expected: &str) {
        match read(name, arguments) {
            Err(refusal) => assert_eq!(refusal, expected),
            Ok(_) => panic!("it is taken"),
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        refused(RUN_CODE, json!({ "language": "python" }), "Invalid arguments: missing field `code`");
        refused(
            RUN_CODE,
            json!({ "language": "python", "code": "", "args": ["a", 1] }),
            "Invalid arguments: args[1]: invalid type: integer `1`, expected a string",
        );
        refused(RUN_COMMAND, json!({ "command": " " }), "Invalid command: command cannot be empty");
        let cases = vec![json!({ "expected": "" }); CASES + 1];
        refused(
            JUDGE,
            json!({ "language": "c", "code": "", "cases": cases }),
            "Invalid cases: 101 cases are more than the 100 of one call",
        );
        assert!(read(LIST_LANGUAGES, json!({ "language": "c" })).is_err());
    }

    #[test]
    fn what_is_null_is_as_if_it_were_not_there() {
        let nulls =
            json!({ "command": "true", "args": null, "image": null, "files": null, "stdin": null, "outputs": null });
        let Ok(Call::Run(task)) = read(RUN_COMMAND, nulls) else { panic!("it is a task") };
        assert_eq!(task.command.as_deref(), Some("true"));
        assert_eq!(task.resource_limits.and_then(|limits| limits.max_output_size), Some(2 * STREAM));
    }
}
