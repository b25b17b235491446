//! The API's form of a [`Report`]: status, exit code, error and the flags all come from it, here and nowhere else.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Limit, Outcome, Report, Usage};

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskResult {
    pub status: Status,
    /// The command's exit status; 128+n when signal n ended it, 127 when it was not found, null when Faber ended it or
    /// it never ran.
    #[schema(example = 0)]
    pub exit_code: Option<i32>,
    /// What it wrote to standard output; null when nothing. Bytes that are not UTF-8 come as U+FFFD.
    #[schema(example = "hello world\n")]
    pub stdout: Option<String>,
    /// What it wrote to standard error; null when nothing.
    #[schema(example = json!(null))]
    pub stderr: Option<String>,
    /// Why it did not end well, where there is more to say than the exit code.
    #[schema(example = json!(null))]
    pub error: Option<String>,
    pub resource_usage: ResourceUsage,
    pub resource_limits_exceeded: LimitsExceeded,
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
    /// The most memory used at once, in bytes.
    #[schema(example = 1048576)]
    pub memory_peak_bytes: u64,
    /// Memory still in use when the task ended (its files in the workspace, page cache), in bytes.
    #[schema(example = 524288)]
    pub memory_current_bytes: u64,
    /// The most processes and threads alive at once.
    #[schema(example = 1)]
    pub process_count: u64,
    /// The most descriptors seen open in one process; sampled, so a short peak can be missed.
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
    /// A process was seen with all of max_file_descriptors in use; sampled.
    pub file_descriptor_limit_exceeded: bool,
    pub output_limit_exceeded: bool,
}

impl From<Report> for TaskResult {
    fn from(report: Report) -> Self {
        let (status, exit_code, error) = verdict(&report);
        Self {
            status,
            exit_code,
            error,
            resource_usage: report.usage.into(),
            resource_limits_exceeded: exceeded(&report),
            stdout: text(report.stdout),
            stderr: text(report.stderr),
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
    match &report.outcome {
        Outcome::Exited(0) => (Status::Success, Some(0), None),
        Outcome::Exited(code) => (failed(), Some((*code).into()), hit_text(report)),
        Outcome::Signalled(signal) => {
            (failed(), Some(128 + signal), Some(format!("killed by {}", signal_name(*signal))))
        }
        Outcome::Stopped(limit, value) => stopped(*limit, *value),
        Outcome::CannotRun { exit_code, reason } => (Status::Failure, Some((*exit_code).into()), Some(reason.clone())),
        Outcome::NotExecuted { reason } | Outcome::Fault { reason } => {
            (Status::NotExecuted, None, Some(reason.clone()))
        }
        Outcome::Lost { reason } => (Status::Failure, None, Some(reason.clone())),
        Outcome::Cancelled => (Status::Failure, None, Some("cancelled while it ran".into())),
    }
}

fn stopped(limit: Limit, value: u64) -> (Status, Option<i32>, Option<String>) {
    let (status, error) = match limit {
        Limit::Memory => (Status::MemoryLimitExceeded, format!("memory limit of {value} bytes exceeded")),
        Limit::CpuTime => (Status::CpuLimitExceeded, format!("CPU time limit of {value} ns exceeded")),
        Limit::WallTime => (Status::Timeout, format!("wall time limit of {value} ns exceeded")),
        Limit::Output => (Status::ResourceLimitExceeded, format!("output limit of {value} bytes exceeded")),
    };
    (status, None, Some(error))
}

fn hit_text(report: &Report) -> Option<String> {
    match report.hits {
        hits if hits.processes => Some("the process limit was reached".into()),
        hits if hits.file_descriptors => Some("the file descriptor limit was reached".into()),
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
        output_limit_exceeded: stopped_by(Limit::Output),
    }
}

fn text(bytes: Vec<u8>) -> Option<String> {
    let text = String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    (!text.is_empty()).then_some(text)
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

/// `signal 9 (SIGKILL)`; the names of signal(7) on x86-64 and arm64.
fn signal_name(signal: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    match usize::try_from(signal - 1).ok().and_then(|at| NAMES.get(at)) {
        Some(name) => format!("signal {signal} (SIG{name})"),
        None => format!("signal {signal}"),
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
        let hits = Hits { processes: true, file_descriptors: false };
        assert_eq!(result(Outcome::Exited(0), hits).status, Status::Success);
        let failed = result(Outcome::Exited(1), hits);
        assert_eq!(failed.status, Status::ResourceLimitExceeded);
        assert!(failed.resource_limits_exceeded.process_limit_exceeded);
    }

    #[test]
    fn signals_are_named() {
        assert_eq!(signal_name(9), "signal 9 (SIGKILL)");
        assert_eq!(signal_name(31), "signal 31 (SIGSYS)");
        assert_eq!(signal_name(34), "signal 34");
    }

    #[test]
    fn output_that_is_not_utf8_is_decoded_and_empty_output_is_null() {
        assert_eq!(text(b"a\xffb".to_vec()).as_deref(), Some("a\u{fffd}b"));
        assert_eq!(text(Vec::new()), None);
    }
}
