//! The API's form of a [`Report`]: status, exit code, error and the flags all come from it, here and nowhere else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Limit, Limits, Omitted, Outcome, OutputEncoding, Processors, Report, StepName, Text, Usage};

/// How a task ended, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Status {
    /// Task completed successfully.
    Success,
    /// Task failed with non-zero exit code.
    Failure,
    /// Task was not executed due to validation errors.
    NotExecuted,
    /// Task exceeded resource limits.
    ResourceLimitExceeded,
    /// Task was killed due to timeout.
    Timeout,
    /// Task exceeded memory limit.
    MemoryLimitExceeded,
    /// Task exceeded CPU limit.
    CpuLimitExceeded,
}

/// What came of one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskResult {
    /// The task's name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "compile")]
    pub name: Option<StepName>,
    pub status: Status,
    /// The command's exit status; 128+n when signal n ended it, 127 when it was not found, null when Faber ended it or
    /// it never ran.
    #[schema(example = 0)]
    pub exit_code: Option<i32>,
    /// What it wrote to standard output; null when nothing. Bytes that are not UTF-8 come as `output_encoding` says.
    #[schema(example = "hello world\n")]
    pub stdout: Option<Text>,
    /// What it wrote to standard error; null when nothing.
    #[schema(example = json!(null))]
    pub stderr: Option<Text>,
    /// Why it did not end well, where there is more to say than the exit code.
    #[schema(example = json!(null))]
    pub error: Option<String>,
    pub resource_usage: ResourceUsage,
    pub resource_limits_exceeded: LimitsExceeded,
    /// With `merge_output` "beside": stdout and stderr in the order in which they arrived.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Text>, example = "hello world\n")]
    pub output: Option<Option<Text>>,
    /// With `outputs`: the files, by path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!({"out.txt": {"size": 3, "mode": "0644",
        "sha256": "98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4", "text": "hi\n"}}))]
    pub files: Option<BTreeMap<String, FileResult>>,
    /// The globs of `outputs` that nothing matched although it had to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(["plot.png"]))]
    pub missing_outputs: Option<Vec<String>>,
    /// Files that matched and are not given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub omitted_outputs: Option<Omitted>,
    /// With `language`: what came of the compilation; null where nothing is compiled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(no_recursion, value_type = Option<TaskResult>, example = json!(null))]
    pub compile: Option<Compilation>,
    /// true: it was not run again, since the same step was run before; usage is that of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = true)]
    pub cached: Option<bool>,
    /// With `expect`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// With `expect` or in a judgement: what there is to say of the verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "line 1: expected \"3\", got \"4\"")]
    pub message: Option<Option<String>>,
    /// With `connect`: whether it was the first of its pipes to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = true)]
    pub ended_first: Option<bool>,
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Detail)]
    pub detail: Option<Detail>,
}

/// A compilation's result; None where nothing is compiled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Compilation(pub Option<Box<TaskResult>>);

/// A judge's word for a program's run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = "Accepted")]
pub enum Verdict {
    Accepted,
    WrongAnswer,
    CompileError,
    /// CPU or wall time.
    TimeLimitExceeded,
    MemoryLimitExceeded,
    OutputLimitExceeded,
    RuntimeError,
    /// Not run, since a case before failed.
    Skipped,
    /// The checker or the interactor failed.
    CheckerError,
    NotExecuted,
}

/// A file that a task left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileResult {
    /// Bytes.
    #[schema(example = 3)]
    pub size: u64,
    /// Its permissions, in octal.
    #[schema(example = "0644")]
    pub mode: String,
    /// Of its bytes, in hexadecimal.
    #[schema(example = "98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4")]
    pub sha256: String,
    /// Its bytes where they are UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "hi\n")]
    pub text: Option<Text>,
    /// Its bytes where they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "AAEC/w==")]
    pub base64: Option<Text>,
    /// In place of both where it is larger than `outputs.inline_limit`: GET /blobs/BLOB has the bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4")]
    pub blob: Option<String>,
}

/// What a result tells with `"detail": true`. What a kernel cannot tell is null. In the document nothing of it is required: it is
/// part of a result that may have none of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Detail {
    /// The signal that ended the command.
    #[schema(example = "SIGSEGV", required = false)]
    pub signal: Option<String>,
    /// Bytes written in all; null of a stream that went straight to another task.
    #[schema(example = 12, required = false)]
    pub stdout_bytes: Option<u64>,
    #[schema(example = 0, required = false)]
    pub stderr_bytes: Option<u64>,
    #[schema(required = false)]
    pub stdout_truncated: bool,
    #[schema(required = false)]
    pub stderr_truncated: bool,
    /// An interpreter that waited took its program: what both had used by then is in no figure.
    #[schema(required = false, example = false)]
    pub prepared: bool,
    #[schema(required = false)]
    pub timings: DetailedTimings,
    #[schema(required = false)]
    pub limits: DetailedLimits,
    #[schema(required = false)]
    pub counters: DetailedCounters,
}

/// Where the time went, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DetailedTimings {
    /// Waiting for its turn.
    #[schema(example = 20000)]
    pub queued_ns: u64,
    /// From its turn to the start of the command.
    #[schema(example = 400000)]
    pub setup_ns: u64,
    /// The command.
    #[schema(example = 1100000)]
    pub run_ns: u64,
    /// From its end until everything was taken.
    #[schema(example = 200000)]
    pub collect_ns: u64,
}

/// All limits that were in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DetailedLimits {
    #[schema(example = 536870912)]
    pub memory_limit: u64,
    #[schema(example = 30000000000u64)]
    pub cpu_time_limit: u64,
    #[schema(example = 60000000000u64)]
    pub wall_time_limit: u64,
    #[schema(example = 10)]
    pub max_processes: u64,
    #[schema(example = 100)]
    pub max_file_descriptors: u64,
    #[schema(example = 1048576)]
    pub max_output_size: u64,
    #[schema(example = 536870912)]
    pub stack_limit: u64,
    #[schema(example = 268435456)]
    pub workspace_limit: u64,
    /// null: none.
    #[schema(example = json!(null))]
    pub max_file_size: Option<u64>,
    /// null: what there is.
    #[schema(value_type = Option<f64>, example = json!(null))]
    pub cpus: Option<Processors>,
}

/// What the kernel counted of the whole container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DetailedCounters {
    #[schema(example = 0)]
    pub oom_kills: Option<u64>,
    #[schema(example = 0)]
    pub forks_refused: Option<u64>,
    /// Page faults without and with I/O.
    #[schema(example = 120)]
    pub minor_faults: Option<u64>,
    #[schema(example = 0)]
    pub major_faults: Option<u64>,
    /// Context switches.
    #[schema(example = 1)]
    pub voluntary_switches: Option<u64>,
    #[schema(example = 0)]
    pub involuntary_switches: Option<u64>,
    /// Nanoseconds in which it had used up its `cpus`.
    #[schema(example = json!(null))]
    pub throttled_ns: Option<u64>,
}

/// How a report is told.
#[derive(Debug, Clone, Default)]
pub struct Form {
    pub name: Option<StepName>,
    pub encoding: OutputEncoding,
    /// Whether `output` has both streams.
    pub beside: bool,
    /// With details: under which limits it ran, and nanoseconds in the queue.
    pub detail: Option<(Limits, u64)>,
}

/// What the whole container used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResourceUsage {
    /// CPU time of all processes, in nanoseconds.
    #[schema(example = 1000000)]
    pub cpu_time_ns: u64,
    /// Wall-clock time from the start of the command to its end, in nanoseconds.
    #[schema(example = 5000000)]
    pub wall_time_ns: u64,
    /// The most memory that was the program's own at once, in bytes: without what the kernel has read of an image's files.
    #[schema(example = 1048576)]
    pub memory_peak_bytes: u64,
    /// Memory of its own still in use when the task ended (its files in the workspace among it), in bytes.
    #[schema(example = 524288)]
    pub memory_current_bytes: u64,
    /// The most processes and threads alive at once.
    #[schema(example = 1)]
    pub process_count: u64,
    /// The most descriptors seen open in one process; sampled, so a short peak can be missed, unless the task names
    /// max_file_descriptors.
    #[schema(example = 3)]
    pub file_descriptors: u64,
    /// Bytes read through system calls, the loading of the program included.
    #[schema(example = 0)]
    pub io_read_bytes: u64,
    /// Bytes written through system calls, the output included.
    #[schema(example = 12)]
    pub io_write_bytes: u64,
    /// CPU time spent in the kernel, in nanoseconds.
    #[schema(example = 500000)]
    pub system_time_ns: u64,
    /// CPU time spent in user mode, in nanoseconds.
    #[schema(example = 500000)]
    pub user_time_ns: u64,
}

/// Which limits the task ran into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitsExceeded {
    pub cpu_time_limit_exceeded: bool,
    pub wall_time_limit_exceeded: bool,
    /// A fork was refused because of max_processes.
    pub process_limit_exceeded: bool,
    /// A descriptor was refused because of max_file_descriptors, if the task names that limit; else a process was seen with all of
    /// them in use, sampled.
    pub file_descriptor_limit_exceeded: bool,
    pub output_limit_exceeded: bool,
}

impl Status {
    /// The word for how a task ended.
    pub fn of(report: &Report) -> Self {
        verdict(report).0
    }
}

impl TaskResult {
    /// A report as it is told in this form; what a task left is added by who has it.
    pub fn new(report: Report, form: Form) -> Self {
        let (status, exit_code, error) = verdict(&report);
        let detail = form.detail.map(|(limits, queued)| Detail::new(&report, &limits, queued));
        let text = |bytes| form.encoding.encode(bytes);
        Self {
            name: form.name,
            status,
            exit_code,
            error,
            resource_usage: report.usage.into(),
            resource_limits_exceeded: exceeded(&report),
            stdout: text(report.stdout),
            stderr: text(report.stderr),
            output: form.beside.then(|| text(report.merged)),
            files: None,
            missing_outputs: None,
            omitted_outputs: None,
            compile: None,
            cached: None,
            verdict: None,
            message: None,
            ended_first: None,
            detail,
        }
    }
}

impl TaskResult {
    /// What the task wrote, and the files that are told.
    pub fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        let compile = self.compile.as_mut().and_then(|compilation| compilation.0.as_mut());
        let files = self.files.iter_mut().flat_map(BTreeMap::values_mut);
        let files = files.flat_map(|file| file.text.iter_mut().chain(&mut file.base64));
        let streams = self.stdout.iter_mut().chain(&mut self.stderr).chain(self.output.iter_mut().flatten());
        streams.chain(files).for_each(&mut *each);
        if let Some(compile) = compile {
            compile.each_text(each);
        }
    }
}

impl From<Report> for TaskResult {
    fn from(report: Report) -> Self {
        Self::new(report, Form::default())
    }
}

impl Detail {
    fn new(report: &Report, limits: &Limits, queued: u64) -> Self {
        let Report { stdout, stderr, written, timings, counters, prepared, .. } = report;
        Self {
            prepared: *prepared,
            signal: match report.outcome {
                Outcome::Signalled(signal) => Some(signal_short(signal)),
                _ => None,
            },
            stdout_bytes: Some(written.stdout),
            stderr_bytes: Some(written.stderr),
            stdout_truncated: written.stdout > stdout.len() as u64,
            stderr_truncated: written.stderr > stderr.len() as u64,
            timings: DetailedTimings {
                queued_ns: queued,
                setup_ns: timings.setup,
                run_ns: timings.run,
                collect_ns: timings.collect,
            },
            limits: limits.into(),
            counters: DetailedCounters {
                oom_kills: counters.oom_kills,
                forks_refused: counters.forks_refused,
                minor_faults: counters.minor_faults,
                major_faults: counters.major_faults,
                voluntary_switches: counters.voluntary_switches,
                involuntary_switches: counters.involuntary_switches,
                throttled_ns: counters.throttled,
            },
        }
    }
}

impl From<&Limits> for DetailedLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            memory_limit: limits.memory,
            cpu_time_limit: limits.cpu_time,
            wall_time_limit: limits.wall_time,
            max_processes: limits.processes,
            max_file_descriptors: limits.file_descriptors,
            max_output_size: limits.output,
            stack_limit: limits.stack.unwrap_or(limits.memory),
            workspace_limit: limits.workspace,
            max_file_size: limits.file_size,
            cpus: limits.cpus.map(Into::into),
        }
    }
}

fn verdict(report: &Report) -> (Status, Option<i32>, Option<String>) {
    let failed = || {
        if report.hits.processes || report.hits.file_descriptors {
            Status::ResourceLimitExceeded
        } else {
            Status::Failure
        }
    };
    let with_hits = |text: String| match hit_text(report) {
        Some(hit) => Some(format!("{text}; {hit}")),
        None => Some(text),
    };
    match &report.outcome {
        Outcome::Exited(0) => (Status::Success, Some(0), None),
        Outcome::Exited(code) => (failed(), Some((*code).into()), hit_text(report).map(str::to_owned)),
        Outcome::Signalled(signal) => {
            (failed(), Some(128 + signal), with_hits(format!("killed by {}", signal_name(*signal))))
        }
        Outcome::Stopped(limit, value) => (stopped(*limit), None, with_hits(limit.exceeded(*value))),
        Outcome::CannotRun { exit_code, reason } => (Status::Failure, Some((*exit_code).into()), Some(reason.clone())),
        Outcome::NotExecuted { reason } | Outcome::Fault { reason } => {
            (Status::NotExecuted, None, Some(reason.clone()))
        }
        Outcome::Lost { reason } => (Status::Failure, None, Some(reason.clone())),
        Outcome::Cancelled => (Status::Failure, None, Some("cancelled while it ran".into())),
    }
}

fn stopped(limit: Limit) -> Status {
    match limit {
        Limit::Memory => Status::MemoryLimitExceeded,
        Limit::CpuTime => Status::CpuLimitExceeded,
        Limit::WallTime => Status::Timeout,
        Limit::Output => Status::ResourceLimitExceeded,
    }
}

/// What may be why a task failed: a runtime that gets no thread or no descriptor aborts, or waits for ever.
fn hit_text(report: &Report) -> Option<&'static str> {
    match report.hits {
        hits if hits.processes => Some("the process limit was reached (max_processes)"),
        hits if hits.file_descriptors => Some("the file descriptor limit was reached (max_file_descriptors)"),
        _ => None,
    }
}

fn exceeded(report: &Report) -> LimitsExceeded {
    let stopped_by = |limit| matches!(report.outcome, Outcome::Stopped(by, _) if by == limit);
    LimitsExceeded {
        cpu_time_limit_exceeded: stopped_by(Limit::CpuTime),
        wall_time_limit_exceeded: stopped_by(Limit::WallTime),
        process_limit_exceeded: report.hits.processes,
        file_descriptor_limit_exceeded: report.hits.file_descriptors,
        output_limit_exceeded: report.hits.output || stopped_by(Limit::Output),
    }
}

impl From<Usage> for ResourceUsage {
    fn from(usage: Usage) -> Self {
        Self {
            cpu_time_ns: usage.cpu_time,
            wall_time_ns: usage.wall_time,
            memory_peak_bytes: usage.memory_peak,
            memory_current_bytes: usage.memory_current,
            process_count: usage.processes,
            file_descriptors: usage.file_descriptors,
            io_read_bytes: usage.io_read,
            io_write_bytes: usage.io_write,
            system_time_ns: usage.system_time,
            user_time_ns: usage.user_time,
        }
    }
}

/// `signal 9 (SIGKILL)`.
fn signal_name(signal: i32) -> String {
    match signal_short(signal) {
        name if name.starts_with("SIG") => format!("signal {signal} ({name})"),
        name => format!("signal {name}"),
    }
}

/// Of signal 1 and those after it, without `SIG`.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The number of a signal with this name: `SIGINT`, or `INT` as kill(1) has it.
pub fn signal_number(name: &str) -> Option<i32> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    SIGNALS.iter().position(|known| *known == name).map(|at| at as i32 + 1)
}

/// `SIGKILL`; the names of signal(7) on x86-64 and arm64, or else the number.
fn signal_short(signal: i32) -> String {
    match usize::try_from(signal - 1).ok().and_then(|at| SIGNALS.get(at)) {
        Some(name) => format!("SIG{name}"),
        None => signal.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Hits;

    fn result(outcome: Outcome, hits: Hits) -> TaskResult {
        Report { outcome, hits, ..Report::not_executed("") }.into()
    }

    #[test]
    fn every_outcome_has_its_status_and_code() {
        let quiet = Hits::default();
        let check = |outcome, status, code| {
            let result = result(outcome, quiet);
            assert_eq!((result.status, result.exit_code), (status, code));
            assert_eq!(result.error.is_none(), matches!(status, Status::Success) || code == Some(3));
        };
        check(Outcome::Exited(0), Status::Success, Some(0));
        check(Outcome::Exited(3), Status::Failure, Some(3));
        check(Outcome::Signalled(9), Status::Failure, Some(137));
        check(Outcome::Stopped(Limit::Memory, 1), Status::MemoryLimitExceeded, None);
        check(Outcome::Stopped(Limit::CpuTime, 1), Status::CpuLimitExceeded, None);
        check(Outcome::Stopped(Limit::WallTime, 1), Status::Timeout, None);
        check(Outcome::Stopped(Limit::Output, 1), Status::ResourceLimitExceeded, None);
        check(Outcome::CannotRun { exit_code: 127, reason: "x".into() }, Status::Failure, Some(127));
        check(Outcome::NotExecuted { reason: "x".into() }, Status::NotExecuted, None);
        check(Outcome::Lost { reason: "x".into() }, Status::Failure, None);
        check(Outcome::Cancelled, Status::Failure, None);
    }

    #[test]
    fn a_hit_limit_counts_only_when_the_task_failed_too() {
        let hits = Hits { processes: true, ..Hits::default() };
        assert_eq!(result(Outcome::Exited(0), hits).status, Status::Success);
        let failed = result(Outcome::Exited(1), hits);
        assert_eq!(failed.status, Status::ResourceLimitExceeded);
        assert!(failed.resource_limits_exceeded.process_limit_exceeded);
        assert_eq!(failed.error.as_deref(), Some("the process limit was reached (max_processes)"));
        let error = |outcome| result(outcome, hits).error.unwrap();
        assert_eq!(
            error(Outcome::Signalled(6)),
            "killed by signal 6 (SIGABRT); the process limit was reached (max_processes)"
        );
        assert_eq!(
            error(Outcome::Stopped(Limit::WallTime, 2_000_000_000)),
            "wall time limit of 2 s exceeded; the process limit was reached (max_processes)"
        );
    }

    #[test]
    fn signals_are_named() {
        assert_eq!(signal_name(9), "signal 9 (SIGKILL)");
        assert_eq!(signal_name(31), "signal 31 (SIGSYS)");
        assert_eq!(signal_name(34), "signal 34");
        assert_eq!(
            ["SIGINT", "TERM", "SIGSYS", "int", ""].map(signal_number),
            [Some(2), Some(15), Some(31), None, None]
        );
    }
}
