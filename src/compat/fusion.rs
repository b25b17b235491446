//! SandboxFusion (bytedance/SandboxFusion), what stacks for reinforcement learning call: `POST /run_code`.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::literally;
use crate::task::{Bounds, Compilation, FileResult, MINIMUM, Offer, Status, TaskRequest, TaskResult, Text, to_base64};

/// Its languages, and the image that each has here. Those without one are refused.
pub const LANGUAGES: [(&str, Option<&str>); 30] = [
    ("python", Some("python")),
    ("cpp", Some("cpp")),
    ("nodejs", Some("node")),
    ("go", Some("go")),
    ("go_test", None),
    ("java", Some("java")),
    ("php", Some("php")),
    ("csharp", Some("csharp")),
    ("bash", Some("bash")),
    ("typescript", Some("typescript")),
    ("sql", Some("sqlite")),
    ("rust", Some("rust")),
    ("cuda", None),
    ("lua", Some("lua")),
    ("R", Some("r")),
    ("perl", Some("perl")),
    ("D_ut", None),
    ("ruby", Some("ruby")),
    ("scala", Some("scala")),
    ("julia", None),
    ("pytest", None),
    ("junit", None),
    ("kotlin_script", Some("kotlin")),
    ("jest", None),
    ("verilog", None),
    ("python_gpu", None),
    ("lean", None),
    ("swift", Some("swift")),
    ("racket", Some("racket")),
    ("python2", None),
];

/// Where it cuts each stream. Bytes.
const STREAM: u64 = 1 << 20;
/// Seconds, where a request names none.
const TIMEOUT: f64 = 10.0;

/// What of a request is not as it has to be, as pydantic tells it: the body of an answer 422.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Invalid {
    pub detail: Vec<Complaint>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Complaint {
    #[serde(rename = "type")]
    kind: &'static str,
    loc: Vec<Value>,
    msg: String,
}

/// The answer to a request that could be run.
#[derive(Debug, Serialize)]
pub struct RunCode {
    status: &'static str,
    message: String,
    compile_result: Option<Stage>,
    run_result: Option<Stage>,
    /// The machine, of which nothing is told.
    executor_pod_name: Option<String>,
    files: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Stage {
    status: &'static str,
    /// Seconds.
    execution_time: Option<f64>,
    return_code: Option<i32>,
    stdout: Option<Text>,
    stderr: Option<Text>,
}

impl RunCode {
    /// Whatever of it the programs have written.
    pub fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        let stages = [&mut self.compile_result, &mut self.run_result].into_iter().flatten();
        stages.flat_map(|stage| [&mut stage.stdout, &mut stage.stderr]).flatten().for_each(each);
    }

    /// When the sandbox itself failed: clients ask again.
    pub fn of_a_fault(message: impl Into<String>) -> Self {
        Self {
            status: "SandboxError",
            message: message.into(),
            compile_result: None,
            run_result: None,
            executor_pod_name: None,
            files: BTreeMap::new(),
        }
    }

    pub fn of(result: TaskResult) -> Self {
        let mut result = result;
        let compilation = result.compile.take().and_then(|Compilation(compilation)| compilation);
        let compile = compilation.map(|compilation| Stage::of(*compilation));
        let failed_to_compile = compile.as_ref().is_some_and(|stage| !stage.is_fine());
        if result.status == Status::NotExecuted && !failed_to_compile {
            return Self::of_a_fault(result.error.unwrap_or_default());
        }
        let files = result.files.take().unwrap_or_default();
        let too_large = files.values().find_map(|file| file.blob.as_ref()).is_some();
        let files = files.into_iter().filter_map(|(path, file)| Some((path, base64(file)?))).collect();
        let run = (!failed_to_compile).then(|| Stage::of(result));
        let is_fine = run.as_ref().is_some_and(Stage::is_fine);
        Self {
            status: if is_fine { "Success" } else { "Failed" },
            message: if too_large {
                "files above this server's outputs.inline_limit are left out".into()
            } else {
                String::new()
            },
            compile_result: compile,
            run_result: run,
            executor_pod_name: None,
            files,
        }
    }
}

impl Stage {
    fn of(result: TaskResult) -> Self {
        // 128 + n stands for signal n where one ended it, else it is the program's own.
        let signal = result.detail.as_ref().is_some_and(|detail| detail.signal.is_some());
        let (status, return_code) = match result.status {
            Status::Success | Status::Failure if signal => ("Finished", result.exit_code.map(|code| 128 - code)),
            Status::Success | Status::Failure => ("Finished", result.exit_code),
            Status::Timeout | Status::CpuLimitExceeded => ("TimeLimitExceeded", None),
            Status::MemoryLimitExceeded => ("Finished", Some(-libc::SIGKILL)),
            Status::ResourceLimitExceeded | Status::NotExecuted => ("Error", None),
        };
        let text = |text: Option<Text>| Some(text.unwrap_or_else(|| Text::utf8(Vec::new().into())));
        Self {
            status,
            execution_time: Some(result.resource_usage.wall_time_ns as f64 / 1e9),
            return_code,
            stdout: text(result.stdout),
            stderr: text(result.stderr),
        }
    }

    fn is_fine(&self) -> bool {
        self.status == "Finished" && self.return_code == Some(0)
    }
}

/// A file's bytes; None of one that became a blob.
fn base64(file: FileResult) -> Option<String> {
    match (file.base64, file.text) {
        (Some(bytes), _) => bytes.plain(),
        (None, Some(text)) => Some(to_base64(text.plain()?.as_bytes())),
        (None, None) => None,
    }
}

/// The task that a request stands for.
///
/// # Errors
/// What is not as it has to be, or not on this server.
pub fn task(body: &[u8], bounds: &Bounds, offers: &[Offer]) -> Result<TaskRequest, Invalid> {
    let fields: Map<String, Value> = serde_json::from_slice(body).map_err(|error| {
        let place = vec!["body".into(), error.column().into()];
        Complaint { kind: "json_invalid", loc: place, msg: format!("JSON decode error: {error}") }.alone()
    })?;
    let mut fields = Fields { fields, complaints: Vec::new() };
    let code = fields.text("code", None);
    let language = fields.text("language", None);
    let stdin = fields.text("stdin", Some(""));
    let [compile_timeout, run_timeout] = ["compile_timeout", "run_timeout"].map(|name| fields.number(name, TIMEOUT));
    let memory = fields.number("memory_limit_MB", -1.0);
    let files = fields.files();
    let fetched = fields.list("fetch_files");
    let image = LANGUAGES.iter().find(|(name, _)| *name == language).map(|(_, image)| *image);
    let is_here =
        |image: &&str| offers.iter().any(|offer| offer.id.name.as_str() == *image && offer.language.is_some());
    let image = match image {
        None if language.is_empty() => "",
        None => {
            let known: Vec<String> = LANGUAGES.iter().map(|(name, _)| format!("'{name}'")).collect();
            fields.complain("enum", "language", format!("Input should be {}", known.join(", ")));
            ""
        }
        Some(image) => image.filter(is_here).unwrap_or_else(|| {
            let how = image.map_or(String::new(), |image| format!(": faber image build {image}"));
            fields.complain("enum", "language", format!("{language} is not on this server{how}"));
            ""
        }),
    };
    if !fields.complaints.is_empty() {
        return Err(Invalid { detail: fields.complaints });
    }
    // It knows no other limits: all else is what this server allows at most.
    let max = &bounds.max;
    let limits = |seconds: f64, memory: u64| {
        let wall_time = ((seconds * 1e9) as u64).clamp(MINIMUM.wall_time, max.wall_time);
        json!({
            "wall_time_limit": wall_time, "cpu_time_limit": max.cpu_time, "memory_limit": memory,
            "max_processes": max.processes, "max_output_size": (2 * STREAM).min(max.output),
        })
    };
    let memory = if memory < 0.0 { max.memory } else { ((memory as u64) << 20).clamp(MINIMUM.memory, max.memory) };
    let outputs: Vec<String> = fetched.iter().map(|path| format!("{}?", literally(path))).collect();
    let task = json!({
        "language": image, "code": code, "stdin": stdin, "files": files, "outputs": outputs,
        "on_output_limit": "discard", "output_encoding": "utf8", "detail": true,
        "resource_limits": limits(run_timeout, memory), "compile_limits": limits(compile_timeout, max.memory),
    });
    serde_json::from_value(task).map_err(|error| {
        let place = vec!["body".into()];
        Complaint { kind: "value_error", loc: place, msg: error.to_string() }.alone()
    })
}

impl Complaint {
    fn alone(self) -> Invalid {
        Invalid { detail: vec![self] }
    }
}

/// The fields of a body, each read as pydantic reads it: a number may come as a string, null is as if it were not there, and what
/// has no name here is passed over.
struct Fields {
    fields: Map<String, Value>,
    complaints: Vec<Complaint>,
}

impl Fields {
    fn complain(&mut self, kind: &'static str, field: &str, msg: impl Into<String>) {
        self.complaints.push(Complaint { kind, loc: vec!["body".into(), field.into()], msg: msg.into() });
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &str, default: Option<&str>) -> String {
        match (self.take(name), default) {
            (Some(Value::String(text)), _) => text,
            (Some(_), _) => {
                self.complain("string_type", name, "Input should be a valid string");
                String::new()
            }
            (None, Some(default)) => default.to_owned(),
            (None, None) => {
                self.complain("missing", name, "Field required");
                String::new()
            }
        }
    }

    fn number(&mut self, name: &str, default: f64) -> f64 {
        let number = match self.take(name) {
            None => return default,
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        number.filter(|number: &f64| number.is_finite()).unwrap_or_else(|| {
            self.complain("float_parsing", name, "Input should be a valid number");
            default
        })
    }

    /// Paths with their bytes; a path with null is left out.
    fn files(&mut self) -> Value {
        let files = match self.take("files") {
            None => Map::new(),
            Some(Value::Object(files)) => files,
            Some(_) => {
                self.complain("dict_type", "files", "Input should be a valid dictionary");
                Map::new()
            }
        };
        if files.values().any(|content| !content.is_string() && !content.is_null()) {
            self.complain("string_type", "files", "Input should be a valid string");
        }
        files
            .into_iter()
            .filter(|(_, content)| content.is_string())
            .map(|(path, content)| (path, json!({ "base64": content })))
            .collect()
    }

    fn list(&mut self, name: &str) -> Vec<String> {
        let list = self.take(name).map(serde_json::from_value::<Vec<String>>);
        list.transpose().ok().map(Option::unwrap_or_default).unwrap_or_else(|| {
            self.complain("list_type", name, "Input should be a valid list of strings");
            Vec::new()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every language of its that has an image here is one of this repository's definitions.
    #[test]
    fn the_table_of_languages_is_whole() {
        let images = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
        for (language, image) in LANGUAGES {
            let Some(image) = image else { continue };
            let definition = std::fs::read_to_string(images.join(image).join("image.toml"));
            assert!(definition.is_ok_and(|text| text.contains("[language]")), "{language}: {image}");
        }
    }
}
