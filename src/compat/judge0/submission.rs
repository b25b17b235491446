//! What is submitted: its fields, what is wrong with them, and the tasks that it stands for.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::from_base64;
use super::languages::{Here, Program};
use crate::archive;
use crate::callbacks::Hosts;
use crate::task::{Bounds, MINIMUM, to_base64};

/// Where a request leaves them out, as there. Seconds, kilobytes.
const CPU_TIME: f64 = 5.0;
const EXTRA_TIME: f64 = 1.0;
const WALL_TIME: f64 = 10.0;
const MEMORY: u64 = 128_000;
const STACK: u64 = 64_000;
const PROCESSES: u64 = 60;
const FILE_SIZE: u64 = 1024;
/// The most that may be asked for, where this server has no limit of its own.
const MOST_EXTRA_TIME: f64 = 5.0;
const MOST_RUNS: u64 = 20;
/// The least stack that a program starts with. Bytes.
const LEAST_STACK: u64 = 128 << 10;
const SECOND: f64 = 1e9;
const KILOBYTE: u64 = 1 << 10;

/// What this server has and allows.
pub struct Terms<'a> {
    pub bounds: &'a Bounds,
    pub languages: &'a [Here],
    pub archives: archive::Bounds,
    /// Where callbacks may go.
    pub hosts: &'a Hosts,
}

/// Limits and counts, by what they are called there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub number_of_runs: u64,
    pub cpu_time_limit: f64,
    pub cpu_extra_time: f64,
    pub wall_time_limit: f64,
    pub memory_limit: u64,
    pub stack_limit: u64,
    pub max_processes_and_or_threads: u64,
    pub max_file_size: u64,
}

impl Terms<'_> {
    /// What a submission has that leaves them out.
    pub fn defaults(&self) -> Limits {
        let most = self.most();
        Limits {
            number_of_runs: 1,
            cpu_time_limit: CPU_TIME.min(most.cpu_time_limit),
            cpu_extra_time: EXTRA_TIME.min(most.cpu_extra_time),
            wall_time_limit: WALL_TIME.min(most.wall_time_limit),
            memory_limit: MEMORY.min(most.memory_limit),
            stack_limit: STACK.min(most.stack_limit),
            max_processes_and_or_threads: PROCESSES.min(most.max_processes_and_or_threads),
            max_file_size: FILE_SIZE.min(most.max_file_size),
        }
    }

    /// What it may ask for at most.
    pub fn most(&self) -> Limits {
        let max = &self.bounds.max;
        Limits {
            number_of_runs: MOST_RUNS,
            cpu_time_limit: max.cpu_time as f64 / SECOND,
            cpu_extra_time: MOST_EXTRA_TIME,
            wall_time_limit: max.wall_time as f64 / SECOND,
            memory_limit: max.memory / KILOBYTE,
            stack_limit: max.memory / KILOBYTE,
            max_processes_and_or_threads: max.processes,
            max_file_size: max.output / KILOBYTE,
        }
    }
}

/// Bytes that are base64 in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_base64(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(from_base64(&String::deserialize(deserializer)?)))
    }
}

/// A submission that makes sense: what is kept beside its job, as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    pub language_id: u32,
    /// What that was called when it came.
    pub language: String,
    pub source_code: Option<Bytes>,
    pub stdin: Option<Bytes>,
    pub expected_output: Option<Bytes>,
    pub additional_files: Option<Bytes>,
    pub compiler_options: Option<String>,
    pub command_line_arguments: Option<String>,
    pub redirect_stderr_to_stdout: bool,
    #[serde(default)]
    pub callback_url: Option<String>,
    #[serde(flatten)]
    pub limits: Limits,
    /// Whether its first task is its compilation, and not a run.
    pub compiles_first: bool,
}

/// What is wrong with each of its fields: the body of an answer 422.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Refusal(pub(super) BTreeMap<String, Vec<String>>);

impl Refusal {
    /// Of the whole, not of a field.
    pub fn of_all(text: String) -> Self {
        Self(BTreeMap::from([("base".into(), vec![text])]))
    }
}

/// A submission with the tasks that it stands for.
pub type Accepted = (Submission, Tasks);

/// The submission that a body is.
///
/// # Errors
/// The text of an answer 400.
pub fn one(body: &[u8], is_base64: bool, terms: &Terms<'_>) -> Result<Result<Accepted, Refusal>, String> {
    let fields = serde_json::from_slice(body).map_err(|error| format!("the body is no object of JSON: {error}"))?;
    Ok(read(fields, is_base64, terms))
}

/// Those of a batch.
///
/// # Errors
/// The text of an answer 400.
pub fn batch(body: &[u8], is_base64: bool, terms: &Terms<'_>) -> Result<Vec<Result<Accepted, Refusal>>, String> {
    #[derive(Deserialize)]
    struct Batch {
        #[serde(default)]
        submissions: Vec<Value>,
    }
    let batch: Batch = serde_json::from_slice(body).map_err(|error| format!("the body is no batch: {error}"))?;
    check_count(batch.submissions.len())?;
    let read = |submission| match submission {
        Value::Object(fields) => read(fields, is_base64, terms),
        _ => Err(Refusal::of_all("is not an object".into())),
    };
    Ok(batch.submissions.into_iter().map(read).collect())
}

/// # Errors
/// The text of an answer 400.
pub fn check_count(count: usize) -> Result<(), String> {
    match count {
        0 => Err("there should be at least one submission in a batch".into()),
        1..=super::BATCH => Ok(()),
        _ => Err(format!("number of submissions in a batch should be less than or equal to {}", super::BATCH)),
    }
}

fn read(fields: Map<String, Value>, is_base64: bool, terms: &Terms<'_>) -> Result<Accepted, Refusal> {
    let mut fields = Fields::new(fields, is_base64);
    let language = fields.language(terms.languages);
    let source_code = fields.content("source_code");
    let (stdin, expected_output) = (fields.content("stdin"), fields.content("expected_output"));
    let (options, arguments) = (fields.options("compiler_options"), fields.options("command_line_arguments"));
    let additional_files = fields.archive();
    let names = fields.entries(additional_files.as_deref(), terms.archives);
    let limits = fields.limits(terms);
    let redirect_stderr_to_stdout = fields.flag("redirect_stderr_to_stdout");
    fields.what_is_not_here();
    let callback_url = fields.callback(terms.hosts);
    let program = language.map(|language| language.program);
    match (program, source_code.as_deref().is_none_or(|code| code.trim_ascii().is_empty())) {
        (Some(Program::Project), false) => fields.refuse("source_code", "must be blank"),
        (Some(Program::Project), true) if additional_files.is_none() => {
            fields.refuse("additional_files", "can't be blank")
        }
        (Some(Program::Project), true) => {}
        (_, true) => fields.refuse("source_code", "can't be blank"),
        (_, false) => {}
    }
    let is_compiled =
        language.and_then(|here| here.language.as_ref()).is_some_and(|language| !language.compile.is_empty());
    let words = [("compiler_options", &options), ("command_line_arguments", &arguments)].map(|(name, text)| {
        let words = text.as_deref().map_or(Some(Vec::new()), words);
        words.unwrap_or_else(|| {
            fields.refuse(name, "has a quotation mark without the other");
            Vec::new()
        })
    });
    let [option_words, arguments_words] = words;
    if !option_words.is_empty() && language.is_some() && !is_compiled {
        fields.refuse("compiler_options", "setting compiler options is only allowed for compiled languages");
    }
    let (Some(language), true) = (language, fields.refusal.0.is_empty()) else { return Err(fields.refusal) };
    let script = |names: &[String], what: &str| {
        let known = [format!("{what}.sh"), what.to_owned()];
        known.into_iter().find(|known| names.contains(known))
    };
    let steps = match (language.program, &language.language) {
        (Program::Project, _) => {
            let run = script(&names, "run").unwrap_or_else(|| "run".into());
            let compile = script(&names, "compile").map(|compile| vec!["bash".to_owned(), compile]);
            Steps { compile, run: vec!["bash".into(), run], file: None }
        }
        (Program::Text, _) => {
            Steps { compile: None, run: vec!["cat".into(), "text.txt".into()], file: Some("text.txt".into()) }
        }
        (_, Some(here)) if !option_words.is_empty() => {
            let mut compile = here.compile.clone();
            // In front of the program: what comes later has the last word, but for libraries.
            let at = compile.iter().position(|word| *word == here.file).unwrap_or(compile.len());
            compile.splice(at..at, option_words);
            let run = here.run.iter().cloned().chain(arguments_words.clone()).collect();
            Steps { compile: Some(compile), run, file: Some(here.file.clone()) }
        }
        _ => {
            let run = [vec!["./a.out".to_owned()], arguments_words.clone()].concat();
            Steps { compile: None, run, file: Some("a.out".into()) }
        }
    };
    let submission = Submission {
        language_id: language.id,
        language: language.name.clone(),
        source_code: source_code.map(Bytes),
        stdin: stdin.map(Bytes),
        expected_output: expected_output.map(Bytes),
        additional_files: additional_files.map(Bytes),
        compiler_options: options,
        command_line_arguments: arguments,
        redirect_stderr_to_stdout,
        limits,
        callback_url,
        compiles_first: steps.compile.is_some(),
    };
    let image = match language.program {
        Program::Of { image, .. } => Some(image),
        _ => None,
    };
    let run = submission.task(terms);
    let runs = submission.limits.number_of_runs;
    let tasks = match image.filter(|_| steps.compile.is_none()) {
        Some(image) => {
            let mut task = run;
            task.insert("language".into(), image.into());
            task.insert("code".into(), content(submission.source_code.as_ref()));
            task.insert("args".into(), arguments_words.into());
            submission.archive(&mut task);
            Tasks { compile: None, run: task, runs }
        }
        None => submission.steps(steps, image, run),
    };
    Ok((submission, tasks))
}

/// What is run in an image without its language's own way.
struct Steps {
    compile: Option<Vec<String>>,
    run: Vec<String>,
    /// Where the program is.
    file: Option<String>,
}

/// The compilation, if it is a task of its own, and what is run so many times.
pub struct Tasks {
    compile: Option<Map<String, Value>>,
    run: Map<String, Value>,
    runs: u64,
}

/// A program that makes a workspace hands it on as this, packed behind its back.
const PACKED: &str = ".faber-workspace.tar";
/// `$@` compiles, without input.
const COMPILE: &str = "\"$@\" </dev/null && tar -cf /tmp/workspace.tar . && mv /tmp/workspace.tar .faber-workspace.tar";

impl Tasks {
    /// The body of POST /execute that has them. Each run needs what is before it to have ended well.
    ///
    /// # Errors
    /// None: all of it is JSON.
    pub fn body(self) -> Result<Vec<u8>, serde_json::Error> {
        let Self { compile, mut run, runs } = self;
        let mut body = b"{\"tasks\":[".to_vec();
        let mut before = None;
        if let Some(compile) = compile {
            serde_json::to_writer(&mut body, &compile)?;
            body.push(b',');
            before = Some("compile".to_owned());
        }
        for number in 1..=runs {
            if number > 1 {
                body.push(b',');
            }
            let name = format!("run{number}");
            run.insert("name".into(), name.clone().into());
            if let Some(before) = before.replace(name) {
                run.insert("needs".into(), json!([before]));
            }
            serde_json::to_writer(&mut body, &run)?;
        }
        body.extend_from_slice(b"]}");
        Ok(body)
    }
}

fn content(bytes: Option<&Bytes>) -> Value {
    json!({ "base64": bytes.map_or_else(String::new, |Bytes(bytes)| to_base64(bytes)) })
}

/// What a task takes beside what it brings. Bytes.
const TASK_BYTES: u64 = 4 << 10;

impl Submission {
    /// Bytes of the body that has its tasks, at most: each run brings all.
    pub fn body_size(&self) -> u64 {
        let content = [&self.source_code, &self.stdin, &self.additional_files].into_iter().flatten();
        let base64: u64 = content.map(|Bytes(bytes)| bytes.len() as u64 * 4 / 3).sum();
        (self.limits.number_of_runs + 1) * (base64 + TASK_BYTES)
    }

    /// What all of its runs have in common.
    fn task(&self, terms: &Terms<'_>) -> Map<String, Value> {
        let (asked, max) = (&self.limits, &terms.bounds.max);
        let time = |seconds: f64| (seconds * SECOND) as u64;
        // 0 is no limit there. What is used of the time beyond the limit is judged when it has ended.
        let cpu_time = match asked.cpu_time_limit {
            0.0 => max.cpu_time,
            limit => time(limit + asked.cpu_extra_time).clamp(MINIMUM.cpu_time, max.cpu_time),
        };
        let limits = json!({
            "cpu_time_limit": cpu_time,
            "wall_time_limit": time(asked.wall_time_limit).clamp(MINIMUM.wall_time, max.wall_time),
            "memory_limit": (asked.memory_limit * KILOBYTE).clamp(MINIMUM.memory, max.memory),
            "stack_limit": (asked.stack_limit * KILOBYTE).max(LEAST_STACK),
            "max_processes": asked.max_processes_and_or_threads,
            "max_file_size": asked.max_file_size * KILOBYTE,
            // There a stream is a file.
            "max_output_size": asked.max_file_size * KILOBYTE,
        });
        let mut task = Map::new();
        task.insert("output_encoding".into(), "base64".into());
        task.insert("detail".into(), true.into());
        task.insert("merge_output".into(), self.redirect_stderr_to_stdout.into());
        task.insert("resource_limits".into(), limits);
        if self.stdin.is_some() {
            task.insert("stdin".into(), content(self.stdin.as_ref()));
        }
        task
    }

    fn archive(&self, task: &mut Map<String, Value>) {
        if let Some(Bytes(zip)) = &self.additional_files {
            task.insert("archives".into(), json!([{ "base64": to_base64(zip), "format": "zip" }]));
        }
    }

    fn steps(&self, steps: Steps, image: Option<&str>, mut run: Map<String, Value>) -> Tasks {
        let (Steps { compile, run: command, file }, runs) = (steps, self.limits.number_of_runs);
        let brings = |task: &mut Map<String, Value>| {
            self.archive(task);
            if let Some(file) = &file {
                task.insert("files".into(), json!({ file: content(self.source_code.as_ref()) }));
            }
        };
        let (program, args) = command.split_first().map_or(("", &[][..]), |(program, args)| (program.as_str(), args));
        run.insert("command".into(), program.into());
        run.insert("args".into(), args.into());
        if let Some(image) = image {
            run.insert("image".into(), image.into());
        }
        let Some(words) = compile else {
            brings(&mut run);
            return Tasks { compile: None, run, runs };
        };
        run.insert("archives".into(), json!([{ "from": "compile", "file": PACKED, "format": "tar" }]));
        let args: Vec<&str> = ["-c", COMPILE, "compile"].into_iter().chain(words.iter().map(String::as_str)).collect();
        let compile = json!({
            "name": "compile", "image": image, "command": "sh", "args": args, "merge_output": true,
            "on_output_limit": "discard", "output_encoding": "base64", "detail": true,
        });
        let Value::Object(mut compile) = compile else { return Tasks { compile: None, run, runs } };
        brings(&mut compile);
        Tasks { compile: Some(compile), run, runs }
    }
}

/// What a shell makes of it, without what means more to that; None where a quotation mark has no other.
fn words(text: &str) -> Option<Vec<String>> {
    let plain: String = text.trim().chars().filter(|c| !"$&;<>|`".contains(*c)).collect();
    shlex::split(&plain)
}
