//! go-judge (criyle/go-judge), version 1, over REST: `POST /run` and what it says of itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::literally;
use crate::task::{Bounds, Digest, FileResult, Limits, MINIMUM, Status, TaskRequest, TaskResult, Text};

/// The body of an answer 400: a string.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

fn refuse<T>(message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(message.into()))
}

/// As it is sent. What has no name here is refused, but for null.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    cmd: Option<Vec<Cmd>>,
    #[serde(default)]
    pipe_mapping: Option<Vec<PipeMapping>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cmd {
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    files: Option<Vec<Option<Map<String, Value>>>>,
    #[serde(default)]
    tty: Option<bool>,
    #[serde(default)]
    cpu_limit: Option<u64>,
    #[serde(default, alias = "realCpuLimit")]
    clock_limit: Option<u64>,
    #[serde(default)]
    memory_limit: Option<u64>,
    #[serde(default)]
    stack_limit: Option<u64>,
    #[serde(default)]
    proc_limit: Option<u64>,
    #[serde(default)]
    copy_in: Option<BTreeMap<String, Map<String, Value>>>,
    #[serde(default)]
    copy_out: Option<Vec<String>>,
    #[serde(default)]
    copy_out_cached: Option<Vec<String>>,
    #[serde(default)]
    copy_out_max: Option<u64>,
    #[serde(default)]
    copy_out_truncate: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PipeMapping {
    #[serde(rename = "in")]
    source: PipeEnd,
    #[serde(rename = "out")]
    target: PipeEnd,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    max: Option<u64>,
    #[serde(default)]
    proxy: Option<bool>,
}

#[derive(Deserialize)]
struct PipeEnd {
    index: usize,
    fd: usize,
}

/// What a request stands for.
pub struct Order {
    pub tasks: Vec<TaskRequest>,
    pub connect: Vec<[String; 2]>,
    pub known: Vec<Known>,
}

/// What is to be known of a command once it has run.
#[derive(Debug, Default)]
pub struct Known {
    /// Of stdout and stderr.
    collectors: [Option<Collector>; 2],
    copy_out: Vec<Wanted>,
    cached: Vec<Wanted>,
    /// Bytes of a file.
    most: Option<u64>,
    truncates: bool,
    memory: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Collector {
    name: String,
    max: u64,
}

#[derive(Debug)]
struct Wanted {
    path: String,
    may_be_missing: bool,
}

/// Bytes of a stream that has no collector.
const UNCOLLECTED: u64 = 64 << 10;

/// The tasks that a body stands for; `find` has the bytes of its file store.
///
/// # Errors
/// What keeps it from being a request.
pub fn order(
    body: &[u8],
    find: &mut dyn FnMut(&str) -> Option<Digest>,
    bounds: &Bounds,
    most: usize,
) -> Result<Order, Refusal> {
    let run: Run = serde_json::from_slice(body).map_err(|error| Refusal(error.to_string()))?;
    let commands = run.cmd.unwrap_or_default();
    if commands.is_empty() {
        return refuse("no cmd provided");
    }
    if commands.len() > most {
        return refuse(format!("at most {most} cmd are run at once"));
    }
    let pipes = run.pipe_mapping.unwrap_or_default();
    let mut piped: Vec<[Option<&PipeMapping>; 3]> = vec![[None; 3]; commands.len()];
    for pipe in &pipes {
        let ends = [(&pipe.source, 1..=2), (&pipe.target, 0..=0)];
        for (end, fds) in ends {
            if end.index >= commands.len() || !fds.contains(&end.fd) {
                return refuse(format!("pipeMapping: there is no such end: index {}, fd {}", end.index, end.fd));
            }
            if piped[end.index][end.fd].replace(pipe).is_some() {
                return refuse(format!("pipeMapping: fd {} of index {} is joined twice", end.fd, end.index));
            }
        }
    }
    let name = |index: usize| format!("cmd{index}");
    let stream = |fd: usize| if fd == 1 { "stdout" } else { "stderr" };
    let connect = pipes.iter().map(|pipe| {
        [
            format!("{}.{}", name(pipe.source.index), stream(pipe.source.fd)),
            format!("{}.stdin", name(pipe.target.index)),
        ]
    });
    let connect = connect.collect();
    let read = commands.into_iter().zip(&piped).enumerate();
    let read = read.map(|(index, (cmd, piped))| task(name(index), cmd, piped, find, bounds));
    let (tasks, known) = read.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    Ok(Order { tasks, connect, known })
}

fn task(
    name: String,
    cmd: Cmd,
    piped: &[Option<&PipeMapping>; 3],
    find: &mut dyn FnMut(&str) -> Option<Digest>,
    bounds: &Bounds,
) -> Result<(TaskRequest, Known), Refusal> {
    if cmd.tty == Some(true) {
        return refuse("tty: there are no terminals here");
    }
    let mut args = cmd.args.unwrap_or_default().into_iter();
    let Some(mut command) = args.next() else { return refuse("args: a command is missing") };
    // There it is a path, which is looked for in the working directory; here a bare name is looked up in PATH.
    if !command.contains('/') && cmd.copy_in.as_ref().is_some_and(|files| files.contains_key(&command)) {
        command.insert_str(0, "./");
    }
    let mut known = Known {
        most: cmd.copy_out_max.filter(|most| *most > 0),
        truncates: cmd.copy_out_truncate == Some(true),
        ..Known::default()
    };
    let mut stdin = json!("");
    let mut record = Vec::new();
    for (fd, file) in cmd.files.unwrap_or_default().into_iter().enumerate() {
        match (fd, file) {
            (_, None) => {}
            (0..=2, Some(_)) if piped[fd].is_some() => return refuse(format!("files: {fd} is joined by pipeMapping")),
            (0, Some(file)) => stdin = content(&file, find)?,
            (1 | 2, Some(file)) => known.collectors[fd - 1] = Some(collector(&file)?),
            _ => return refuse("files: descriptors above 2 are not opened here"),
        }
    }
    for (fd, pipe) in piped.iter().enumerate().skip(1) {
        let Some(pipe) = pipe.filter(|pipe| pipe.proxy == Some(true)) else { continue };
        let Some(name) = pipe.name.clone().filter(|name| !name.is_empty()) else { continue };
        record.push(if fd == 1 { "stdout" } else { "stderr" });
        known.collectors[fd - 1] = Some(Collector { name, max: pipe.max.unwrap_or(bounds.max.output / 2) });
    }
    let merges = match &known.collectors {
        [Some(out), Some(err)] if out.name == err.name => {
            if piped[1].or(piped[2]).is_some() {
                return refuse("files: two streams of one name, of which one is joined by pipeMapping");
            }
            true
        }
        _ => false,
    };
    let collected: BTreeSet<String> =
        known.collectors.iter().flatten().map(|collector| collector.name.clone()).collect();
    let wanted = |list: Option<Vec<String>>| -> Vec<Wanted> {
        let list = list.unwrap_or_default().into_iter().filter(|path| !collected.contains(path.trim_end_matches('?')));
        list.map(|path| match path.strip_suffix('?') {
            Some(path) => Wanted { path: path.into(), may_be_missing: true },
            None => Wanted { path, may_be_missing: false },
        })
        .collect()
    };
    known.copy_out = wanted(cmd.copy_out);
    known.cached = wanted(cmd.copy_out_cached);
    let paths: BTreeSet<&str> = known.copy_out.iter().chain(&known.cached).map(|wanted| &*wanted.path).collect();
    let outputs: Vec<String> = paths.iter().map(|path| format!("{}?", literally(path))).collect();
    let files = cmd.copy_in.unwrap_or_default().into_iter().map(|(path, file)| {
        let content = content(&file, find).map_err(|Refusal(message)| Refusal(format!("copyIn: {path}: {message}")))?;
        // As there: whoever runs it may execute it.
        let Value::Object(mut content) = (if content.is_string() { json!({ "text": content }) } else { content })
        else {
            return refuse("copyIn");
        };
        content.insert("mode".into(), "0755".into());
        Ok((path, Value::Object(content)))
    });
    let files = files.collect::<Result<Map<_, _>, _>>()?;
    let env: BTreeMap<String, String> = cmd
        .env
        .unwrap_or_default()
        .iter()
        .map(|pair| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
        .collect::<Option<_>>()
        .ok_or_else(|| Refusal("env: expected NAME=VALUE".into()))?;
    let limits =
        limits(&known, cmd.cpu_limit, cmd.clock_limit, cmd.memory_limit, cmd.stack_limit, cmd.proc_limit, bounds);
    known.memory = limits["memory_limit"].as_u64().unwrap_or(u64::MAX);
    let mut task = json!({
        "name": name, "command": command, "args": args.collect::<Vec<_>>(), "env": env, "files": files, "outputs": outputs,
        "merge_output": merges, "record": record, "detail": true, "output_encoding": "utf8", "resource_limits": limits,
    });
    if piped[0].is_none() {
        task["stdin"] = stdin;
    }
    let task = serde_json::from_value(task).map_err(|error| Refusal(error.to_string()))?;
    Ok((task, known))
}

/// What is not given, or 0, is what this server has for whoever says nothing.
fn limits(
    known: &Known,
    cpu: Option<u64>,
    clock: Option<u64>,
    memory: Option<u64>,
    stack: Option<u64>,
    processes: Option<u64>,
    bounds: &Bounds,
) -> Value {
    let Limits { cpu_time, wall_time, memory: most_memory, processes: most_processes, output, .. } = &bounds.max;
    let given = |value: Option<u64>| value.filter(|value| *value > 0);
    let cpu = given(cpu);
    let clock = given(clock).or(cpu).map(|clock| clock.clamp(MINIMUM.wall_time, *wall_time));
    let most =
        known.collectors.iter().map(|collector| collector.as_ref().map_or(UNCOLLECTED, |collector| collector.max));
    // Each stream has half, and one byte more than its own limit shows that it was met.
    let most = most.max().unwrap_or(UNCOLLECTED).saturating_add(1).saturating_mul(2).clamp(MINIMUM.output, *output);
    json!({
        "cpu_time_limit": cpu.map(|cpu| cpu.clamp(MINIMUM.cpu_time, *cpu_time)),
        "wall_time_limit": clock,
        "memory_limit": given(memory).unwrap_or(bounds.default.memory).clamp(MINIMUM.memory, *most_memory),
        "stack_limit": given(stack),
        "max_processes": given(processes).map(|processes| processes.min(*most_processes)),
        "max_output_size": most,
    })
}

/// Bytes that are given: as text, or of the file store.
fn content(file: &Map<String, Value>, find: &mut dyn FnMut(&str) -> Option<Digest>) -> Result<Value, Refusal> {
    match (file.get("content"), file.get("fileId"), file.len()) {
        (Some(Value::String(text)), None, 1) => Ok(json!(text)),
        (None, Some(Value::String(id)), 1) => match find(id) {
            Some(blob) => Ok(json!({ "blob": blob.to_string() })),
            None => refuse(format!("fileId {id} not found")),
        },
        _ if file.contains_key("src") => refuse("src: files of the host are not given"),
        _ if file.contains_key("symlink") => refuse("symlink: links are not made here"),
        _ => refuse("expected content or fileId"),
    }
}

fn collector(file: &Map<String, Value>) -> Result<Collector, Refusal> {
    let name = file.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let max = file.get("max").and_then(Value::as_u64);
    match (name, max) {
        (Some(name), Some(max)) => Ok(Collector { name: name.to_owned(), max }),
        _ => refuse("files: expected a collector, {\"name\", \"max\"}, for descriptors 1 and 2"),
    }
}

/// What came of one command.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ran {
    status: &'static str,
    exit_status: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// CPU, in nanoseconds.
    time: u64,
    memory: u64,
    /// Wall clock.
    run_time: u64,
    proc_peak: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    files: BTreeMap<String, Text>,
    /// Filled in by whoever has the file store.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub file_ids: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    file_error: Vec<FileError>,
}

#[derive(Debug, Serialize)]
struct FileError {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    message: String,
}

/// A file that is to go to the file store, with its name there.
pub struct Cached {
    pub name: String,
    pub file: FileResult,
}

impl Ran {
    /// Whatever of it the programs have written.
    pub fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        self.files.values_mut().for_each(each);
    }

    /// When Faber itself failed.
    pub fn of_a_fault(message: impl Into<String>) -> Self {
        Self {
            status: "Internal Error",
            exit_status: 0,
            error: Some(message.into()),
            time: 0,
            memory: 0,
            run_time: 0,
            proc_peak: 0,
            files: BTreeMap::new(),
            file_ids: BTreeMap::new(),
            file_error: Vec::new(),
        }
    }

    pub fn of(known: Known, mut result: TaskResult) -> (Self, Vec<Cached>) {
        let (status, exit_status) = outcome(&result);
        let usage = &result.resource_usage;
        let mut ran = Self {
            status,
            exit_status,
            error: result.error.take(),
            time: usage.cpu_time_ns,
            // What it had when it was ended for more is told as the limit's, at most.
            memory: usage.memory_peak_bytes.min(known.memory),
            run_time: usage.wall_time_ns,
            proc_peak: usage.process_count,
            files: BTreeMap::new(),
            file_ids: BTreeMap::new(),
            file_error: Vec::new(),
        };
        let texts = [result.stdout.take(), result.stderr.take()];
        for (collector, text) in known.collectors.into_iter().zip(texts) {
            let Some(Collector { name, max }) = collector else { continue };
            // The second of two of one name is empty: what there is came by the first.
            if ran.files.contains_key(&name) {
                continue;
            }
            let text = text.unwrap_or_else(|| Text::utf8(Vec::new().into()));
            let (text, is_cut) = cut(text, max);
            ran.files.insert(name, text);
            if is_cut && ran.status == "Accepted" {
                ran.status = "Output Limit Exceeded";
            }
        }
        let mut left = result.files.take().unwrap_or_default();
        let mut cached = Vec::new();
        for Wanted { path, may_be_missing } in known.cached {
            match left.get(&path) {
                // It may be wanted twice; its bytes are shared.
                Some(file) => cached.push(Cached { name: path, file: file.clone() }),
                None => ran.is_missing(&path, may_be_missing),
            }
        }
        for Wanted { path, may_be_missing } in known.copy_out {
            let Some(file) = left.remove(&path) else {
                ran.is_missing(&path, may_be_missing);
                continue;
            };
            let size = file.size;
            let most = known.most.unwrap_or(u64::MAX);
            match plain(file) {
                Some(text) if size <= most || known.truncates => drop(ran.files.insert(path, cut(text, most).0)),
                _ => {
                    let message = format!("it has {size} bytes");
                    ran.fails(FileError { name: path, kind: "CopyOutSizeExceeded", message });
                }
            }
        }
        (ran, cached)
    }

    fn is_missing(&mut self, path: &str, may_be: bool) {
        // After another end than the normal one nobody expects it.
        if !may_be && ["Accepted", "File Error"].contains(&self.status) {
            let message = format!("open {path}: no such file or directory");
            self.fails(FileError { name: path.to_owned(), kind: "CopyOutOpen", message });
        }
    }

    fn fails(&mut self, error: FileError) {
        if self.status == "Accepted" {
            self.status = "File Error";
        }
        self.file_error.push(error);
    }
}

fn outcome(result: &TaskResult) -> (&'static str, i32) {
    let is_signal = result.detail.as_ref().is_some_and(|detail| detail.signal.is_some());
    let code = result.exit_code.unwrap_or(0);
    match result.status {
        Status::Success => ("Accepted", 0),
        Status::Failure if is_signal => ("Signalled", code - 128),
        // It was not there, or could not be run.
        Status::Failure if result.error.is_some() && (126..=127).contains(&code) => ("Internal Error", code),
        Status::Failure => ("Nonzero Exit Status", code),
        Status::Timeout | Status::CpuLimitExceeded => ("Time Limit Exceeded", libc::SIGKILL),
        Status::MemoryLimitExceeded => ("Memory Limit Exceeded", libc::SIGKILL),
        Status::ResourceLimitExceeded => ("Output Limit Exceeded", libc::SIGKILL),
        Status::NotExecuted => ("Internal Error", 0),
    }
}

/// So many of its bytes, and whether there were more.
fn cut(text: Text, most: u64) -> (Text, bool) {
    match text.bytes() {
        bytes if bytes.len() as u64 <= most => (text, false),
        bytes => (Text::utf8(bytes.slice(..most as usize)), true),
    }
}

/// A file's bytes as text; None of one that became a blob.
fn plain(file: FileResult) -> Option<Text> {
    file.text.or(file.base64).map(|text| Text::utf8(text.bytes().clone()))
}

/// What `GET /version` tells: which of the things that came with time are there.
pub fn version() -> Value {
    json!({
        "buildVersion": concat!("Faber ", env!("CARGO_PKG_VERSION")), "goVersion": "", "platform": std::env::consts::ARCH,
        "os": "linux", "copyOutOptional": true, "pipeProxy": true, "symlink": false, "addressSpaceLimit": false, "stream": false,
        "procPeak": true, "copyOutTruncate": true, "pipeProxyZeroCopy": false, "fixSymlinkEscape": true,
    })
}
