//! Piston's API, version 2 (engineer-man/piston): `runtimes`, `execute`, `packages`, `connect`.

pub mod connect;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use semver::{Version, VersionReq};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{LENIENT, version};
use crate::task::{Bounds, Compilation, MINIMUM, Offer, Status, TaskRequest, TaskResult, Text, WorkspacePath};

/// Its languages that have an image here, with that and with what else they are called.
pub const LANGUAGES: [(&str, &str, &[&str]); 36] = [
    ("awk", "awk", &["gawk"]),
    ("bash", "bash", &["sh"]),
    ("c", "c", &["gcc"]),
    ("c++", "cpp", &["cpp", "g++"]),
    ("clojure", "clojure", &["clj"]),
    ("cobol", "cobol", &["cob"]),
    ("coffeescript", "coffeescript", &["coffee"]),
    ("crystal", "crystal", &["cr"]),
    ("csharp", "csharp", &["mono", "c#", "cs"]),
    ("d", "d", &["gdc"]),
    ("elixir", "elixir", &["exs"]),
    ("erlang", "erlang", &["erl", "escript"]),
    ("forth", "forth", &["gforth"]),
    ("fortran", "fortran", &["f90"]),
    ("go", "go", &["golang"]),
    ("groovy", "groovy", &["gvy"]),
    ("haskell", "haskell", &["hs"]),
    ("java", "java", &[]),
    ("javascript", "node", &["node-javascript", "node-js", "js"]),
    ("kotlin", "kotlin", &["kt"]),
    ("lisp", "lisp", &["cl", "sbcl", "commonlisp"]),
    ("lua", "lua", &[]),
    ("ocaml", "ocaml", &["ml"]),
    ("octave", "octave", &["matlab", "m"]),
    ("pascal", "pascal", &["freepascal", "pp", "pas"]),
    ("perl", "perl", &["pl"]),
    ("php", "php", &[]),
    ("prolog", "prolog", &["plg"]),
    ("python", "python", &["py", "py3", "python3"]),
    ("racket", "racket", &["rkt"]),
    ("raku", "raku", &["perl6", "p6"]),
    ("rscript", "r", &["r"]),
    ("ruby", "ruby", &["rb"]),
    ("rust", "rust", &["rs"]),
    ("scala", "scala", &["sc"]),
    ("typescript", "typescript", &["ts", "node-ts", "tsc"]),
];

/// A language of this server, as `GET /runtimes` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Runtime {
    language: &'static str,
    #[serde(serialize_with = "as_text")]
    version: Version,
    aliases: &'static [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<&'static str>,
    #[serde(skip)]
    image: &'static str,
}

fn as_text<S: serde::Serializer>(version: &Version, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(version)
}

/// The languages that these images are for; each image comes with the versions of the packages that it was asked to have.
pub fn runtimes(images: &BTreeMap<String, Vec<String>>) -> Vec<Runtime> {
    let of = |&(language, image, aliases): &(&'static str, &'static str, &'static [&'static str])| {
        let version = version(images.get(image)?);
        Some(Runtime { language, version, aliases, runtime: (image == "node").then_some("node"), image })
    };
    LANGUAGES.iter().filter_map(of).collect()
}

/// As `GET /packages` tells them: what is here is installed.
pub fn packages(runtimes: &[Runtime]) -> Vec<Value> {
    let of = |runtime: &Runtime| {
        let version = runtime.version.to_string();
        json!({ "language": runtime.language, "language_version": version, "installed": true })
    };
    runtimes.iter().map(of).collect()
}

/// Whether there is such a package.
pub fn has(runtimes: &[Runtime], language: &str, version: &str) -> bool {
    runtimes.iter().any(|runtime| runtime.language == language && runtime.version.to_string() == version)
}

/// What a request stands for.
#[derive(Debug)]
pub struct Job {
    pub task: TaskRequest,
    language: &'static str,
    version: Version,
}

/// Why it stands for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// 400 with this message.
    Message(String),
    /// 500 without a body: a file that leaves its directory.
    Internal,
}

/// Milliseconds, where a request names none, of compiling and running.
const TIMEOUTS: [u64; 2] = [10_000, 3_000];

/// # Errors
/// The first of what Piston looks at, in its order, that is not as it has to be.
pub fn job(
    body: &[u8],
    runtimes: &[Runtime],
    nearest: bool,
    bounds: &Bounds,
    offers: &[Offer],
) -> Result<Job, Refusal> {
    let refused = |message: String| Err(Refusal::Message(message));
    let Some(fields) = serde_json::from_slice(body).ok().or_else(|| form(body)) else {
        return refused("the body is not JSON".into());
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let Some(language) = text("language") else { return refused("language is required as a string".into()) };
    let Some(asked) = text("version") else { return refused("version is required as a string".into()) };
    let Some(files) = fields.get("files").and_then(Value::as_array) else {
        return refused("files is required as an array".into());
    };
    if let Some(at) = files.iter().position(|file| file.get("content").is_none_or(|content| !content.is_string())) {
        return refused(format!("files[{at}].content is required as a string"));
    }
    let Some(runtime) = find(runtimes, language, asked, nearest) else {
        return refused(format!("{language}-{asked} runtime is unknown"));
    };
    let Some(main) = files.iter().position(is_text) else {
        return refused("files must include at least one utf8 encoded file".into());
    };
    let stage = |at: usize, name: &str| -> Result<Value, Refusal> {
        let max = &bounds.max;
        let memory = limit(&fields, &format!("{name}_memory_limit"), max.memory)?;
        let wall = limit(&fields, &format!("{name}_timeout"), max.wall_time / MILLISECOND)?;
        let cpu = limit(&fields, &format!("{name}_cpu_time"), max.cpu_time / MILLISECOND)?;
        let time = |asked: Option<u64>, max: u64| (asked.unwrap_or(TIMEOUTS[at]) * MILLISECOND).min(max);
        Ok(json!({
            "memory_limit": memory.unwrap_or(max.memory).max(MINIMUM.memory), "max_processes": 64.min(max.processes),
            "wall_time_limit": time(wall, max.wall_time).max(MINIMUM.wall_time),
            "cpu_time_limit": time(cpu, max.cpu_time).max(MINIMUM.cpu_time),
        }))
    };
    let (compile_limits, resource_limits) = (stage(0, "compile")?, stage(1, "run")?);
    let place =
        offers.iter().find(|offer| offer.id.name.as_str() == runtime.image).and_then(|offer| offer.language.as_ref());
    let place = place.map_or("", |language| language.file.as_str());
    let mut others = Map::new();
    for (at, file) in files.iter().enumerate().filter(|(at, _)| *at != main) {
        let name = file.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = name.map_or_else(|| format!("file{at}.code"), str::to_owned);
        if WorkspacePath::parse(&name).is_err() {
            return Err(Refusal::Internal);
        }
        if name == place {
            return refused(format!("files[{at}].name is where this server has the first file: {name}"));
        }
        others.insert(name, json!({ "base64": STANDARD.encode(bytes(file)) }));
    }
    let name = files[main].get("name").and_then(Value::as_str).unwrap_or_default();
    if !name.is_empty() && WorkspacePath::parse(name).is_err() {
        return Err(Refusal::Internal);
    }
    let mut stdin = fields.get("stdin").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !stdin.is_empty() && !stdin.ends_with('\n') {
        stdin.push('\n');
    }
    let args: Vec<&str> =
        fields.get("args").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let task = json!({
        "language": runtime.image, "code": files[main]["content"], "files": others, "stdin": stdin, "args": args,
        "env": { "PISTON_LANGUAGE": runtime.language }, "merge_output": "beside", "output_encoding": "utf8", "detail": true,
        "resource_limits": resource_limits, "compile_limits": compile_limits,
    });
    let task = serde_json::from_value(task).map_err(|error| Refusal::Message(error.to_string()))?;
    Ok(Job { task, language: runtime.language, version: runtime.version.clone() })
}

const MILLISECOND: u64 = 1_000_000;

fn is_text(file: &Value) -> bool {
    !matches!(file.get("encoding").and_then(Value::as_str), Some("base64" | "hex"))
}

/// What cannot be decoded is what Node.js makes of it: as far as it goes.
fn bytes(file: &Value) -> Vec<u8> {
    let content = file["content"].as_str().unwrap_or_default();
    match file.get("encoding").and_then(Value::as_str) {
        Some("base64") => {
            let is_its = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/');
            let mut plain: String = content.chars().filter(is_its).collect();
            // Six bits are no byte.
            if plain.len() % 4 == 1 {
                plain.pop();
            }
            LENIENT.decode(plain).unwrap_or_default()
        }
        Some("hex") => {
            let digits = content
                .as_bytes()
                .chunks_exact(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
            digits.map_while(|byte| byte).collect()
        }
        _ => content.as_bytes().to_vec(),
    }
}

/// A body as a form has it (application/x-www-form-urlencoded): some clients send `files` so, of which each is a program's text.
fn form(body: &[u8]) -> Option<Map<String, Value>> {
    let mut fields = Map::new();
    for (name, value) in form_urlencoded::parse(body) {
        match &*name {
            "language" | "version" | "stdin" => drop(fields.insert(name.into_owned(), value.into())),
            "files" | "args" => {
                let value = if name == "files" { json!({ "content": value }) } else { value.into() };
                let list = fields.entry(name).or_insert_with(|| json!([]));
                list.as_array_mut()?.push(value);
            }
            // What it has for all limits together says nothing of any.
            "timeout" => {}
            _ => return None,
        }
    }
    fields.contains_key("language").then_some(fields)
}

/// A limit of a request, in its own unit; None where it has none.
fn limit(fields: &Map<String, Value>, name: &str, most: u64) -> Result<Option<u64>, Refusal> {
    let refused = |message| Err(Refusal::Message(message));
    let number = match fields.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => return Ok(None),
        Some(Value::String(text)) if text.is_empty() => return Ok(None),
        Some(Value::Number(number)) => number.as_f64().unwrap_or(0.0),
        Some(_) => return refused(format!("If specified, {name} must be a number")),
    };
    // 0 is as if it were not there, and -1 is none for memory.
    if number == 0.0 || number == -1.0 && name.ends_with("memory_limit") {
        return Ok(None);
    }
    if number > most as f64 {
        return refused(format!("{name} cannot exceed the configured limit of {most}"));
    }
    if number < 0.0 {
        return refused(format!("{name} must be non-negative"));
    }
    Ok(Some(number as u64))
}

/// The language by its name or another of its names, if its version will do.
fn find<'a>(runtimes: &'a [Runtime], language: &str, asked: &str, nearest: bool) -> Option<&'a Runtime> {
    let is_called = |runtime: &&Runtime| runtime.language == language || runtime.aliases.contains(&language);
    runtimes.iter().find(is_called).filter(|runtime| nearest || will_do(asked, &runtime.version))
}

/// A selector as npm has them: bare numbers stand for themselves, however many there are.
fn will_do(asked: &str, version: &Version) -> bool {
    let asked = asked.trim();
    let is_bare = asked.starts_with(|c: char| c.is_ascii_digit() || c == 'v');
    let asked = asked.trim_start_matches('v');
    let selector = if is_bare { format!("={asked}") } else { asked.to_owned() };
    VersionReq::parse(&selector).is_ok_and(|selector| selector.matches(version))
}

/// The answer to a request that could be run.
#[derive(Debug, Serialize)]
pub struct Executed {
    #[serde(skip_serializing_if = "Option::is_none")]
    compile: Option<Stage>,
    run: Stage,
    language: &'static str,
    version: String,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Stage {
    pub signal: Option<String>,
    pub stdout: Text,
    pub stderr: Text,
    pub code: Option<i32>,
    output: Text,
    memory: Option<u64>,
    pub message: Option<String>,
    pub status: Option<&'static str>,
    /// Milliseconds, as the next.
    cpu_time: u64,
    pub wall_time: u64,
}

impl Executed {
    pub fn of(job: (&'static str, Version), mut result: TaskResult) -> Self {
        let compilation = result.compile.take().and_then(|Compilation(compilation)| compilation);
        let compile = compilation.map(|compilation| Stage::of(*compilation));
        // Where compiling failed, that is also what is told of the run.
        let failed = compile.as_ref().filter(|stage| stage.status.is_some() || stage.code != Some(0)).cloned();
        let run = failed.unwrap_or_else(|| Stage::of(result));
        Self { compile, run, language: job.0, version: job.1.to_string() }
    }

    /// Whatever of it the programs have written.
    pub fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        let stages = self.compile.iter_mut().chain([&mut self.run]);
        stages.flat_map(|stage| [&mut stage.stdout, &mut stage.stderr, &mut stage.output]).for_each(each);
    }
}

impl Job {
    /// What is told of it with its result.
    pub fn split(self) -> (TaskRequest, (&'static str, Version)) {
        (self.task, (self.language, self.version))
    }
}

impl Stage {
    pub(super) fn of(result: TaskResult) -> Self {
        let detail = result.detail.as_ref();
        let signal = detail.and_then(|detail| detail.signal.clone());
        let killed = || Some("SIGKILL".to_owned());
        let usage = &result.resource_usage;
        let (status, message, code, signal) = match (result.status, signal) {
            (Status::Success, _) => (None, None, Some(0), None),
            (Status::Failure, Some(signal)) => {
                let number = result.exit_code.map_or(0, |code| code - 128);
                (Some("SG"), Some(format!("Caught fatal signal {number}")), None, Some(signal))
            }
            (Status::Failure, None) => {
                let code = result.exit_code.unwrap_or(1);
                (Some("RE"), Some(format!("Exited with error status {code}")), Some(code), None)
            }
            (Status::CpuLimitExceeded, _) => (Some("TO"), Some("Time limit exceeded".into()), None, killed()),
            (Status::Timeout, _) => (Some("TO"), Some("Time limit exceeded (wall clock)".into()), None, killed()),
            (Status::MemoryLimitExceeded, _) => (Some("SG"), Some("Caught fatal signal 9".into()), None, killed()),
            (Status::ResourceLimitExceeded, _) => {
                let is_stderr = detail.is_some_and(|detail| detail.stderr_truncated && !detail.stdout_truncated);
                let (status, stream) = if is_stderr { ("EL", "stderr") } else { ("OL", "stdout") };
                (Some(status), Some(format!("{stream} length exceeded")), None, killed())
            }
            (Status::NotExecuted, _) => (Some("XX"), result.error.clone(), None, None),
        };
        let text = |text: Option<Text>| text.unwrap_or_else(|| Text::utf8(Vec::new().into()));
        Self {
            signal,
            code,
            memory: Some(usage.memory_peak_bytes),
            message,
            status,
            cpu_time: usage.cpu_time_ns / MILLISECOND,
            wall_time: usage.wall_time_ns / MILLISECOND,
            stdout: text(result.stdout),
            stderr: text(result.stderr),
            output: text(result.output.flatten()),
        }
    }
}

/// `{"language", "version"}`: a package that is asked for.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    pub language: String,
    #[serde(default)]
    pub version: String,
}

#[cfg(test)]
mod tests {
    use super::super::numbers;
    use super::*;

    /// Every language is one of this repository's definitions, and no name stands for two.
    #[test]
    fn the_table_of_languages_is_whole() {
        let images = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
        let mut names = std::collections::BTreeSet::new();
        for (language, image, aliases) in LANGUAGES {
            let definition = std::fs::read_to_string(images.join(image).join("image.toml"));
            assert!(definition.is_ok_and(|text| text.contains("[language]")), "{language}: {image}");
            assert!([language].iter().chain(aliases).all(|name| names.insert(*name)), "{language}");
        }
    }

    #[test]
    fn versions_are_selected_as_npm_does() {
        let version = numbers("2:3.13.5-1+b2");
        assert_eq!(version, Version::new(3, 13, 5));
        for good in ["*", "3", "3.x", "3.13", "3.13.5", "v3.13.5", "^3.1", "~3.13.0", ">=3.0.0", "3.*"] {
            assert!(will_do(good, &version), "{good}");
        }
        for bad in ["2", "3.1", "3.12.x", "3.13.4", "^4", "latest", "", "<3"] {
            assert!(!will_do(bad, &version), "{bad}");
        }
    }

    #[test]
    fn bytes_are_decoded_as_far_as_they_go() {
        let of = |content: &str, encoding: &str| bytes(&json!({ "content": content, "encoding": encoding }));
        assert_eq!(
            (of("aGk=", "base64"), of("aGk", "base64"), of("aG\nk=!", "base64")),
            (b"hi".into(), b"hi".into(), b"hi".into())
        );
        assert_eq!(
            (of("aGl=", "base64"), of("aGkaa", "base64")),
            (b"hi".into(), b"hi\x1a".into()),
            "bits that are left over"
        );
        assert_eq!((of("6869", "hex"), of("68zz69", "hex"), of("h", "hex")), (b"hi".into(), b"h".into(), b"".into()));
        assert_eq!(of("hi", "rot13"), b"hi");
    }
}
