//! What came of a submission's tasks, in its words.

use serde::Deserialize;

use super::from_base64;
use super::submission::{Bytes, Submission};
use crate::task::{Compilation, Status, TaskResult, Text};

/// Its statuses, by their ids from 1 on.
pub const STATUSES: [&str; 14] = [
    "In Queue",
    "Processing",
    "Accepted",
    "Wrong Answer",
    "Time Limit Exceeded",
    "Compilation Error",
    "Runtime Error (SIGSEGV)",
    "Runtime Error (SIGXFSZ)",
    "Runtime Error (SIGFPE)",
    "Runtime Error (SIGABRT)",
    "Runtime Error (NZEC)",
    "Runtime Error (Other)",
    "Internal Error",
    "Exec Format Error",
];
pub const IN_QUEUE: usize = 1;
pub const PROCESSING: usize = 2;
const ACCEPTED: usize = 3;
const WRONG_ANSWER: usize = 4;
const TIME_LIMIT_EXCEEDED: usize = 5;
const COMPILATION_ERROR: usize = 6;
const SIGXFSZ: usize = 8;
const NZEC: usize = 11;
const OTHER: usize = 12;
const INTERNAL_ERROR: usize = 13;
const EXEC_FORMAT_ERROR: usize = 14;

/// All that is told of how it ended.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    pub status: usize,
    pub stdout: Option<Vec<u8>>,
    pub stderr: Option<Vec<u8>>,
    pub compile_output: Option<Vec<u8>>,
    pub message: Option<String>,
    pub exit_code: Option<i32>,
    pub exit_signal: Option<i32>,
    /// Seconds.
    pub time: Option<f64>,
    pub wall_time: Option<f64>,
    /// Kilobytes.
    pub memory: Option<u64>,
}

impl Outcome {
    /// One of which nothing is known but this.
    pub fn bare(status: usize) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self { message: Some(message.into()), ..Self::bare(INTERNAL_ERROR) }
    }

    /// Of the answer to the request that it was: results, or an error.
    pub fn of(submission: &Submission, response: &[u8]) -> Self {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Response {
            Results { results: Vec<TaskResult> },
            Error { details: String },
        }
        match serde_json::from_slice(response) {
            Ok(Response::Results { results }) => of_results(submission, results),
            Ok(Response::Error { details }) => Self::internal(details),
            Err(error) => Self::internal(format!("what is kept of it cannot be read: {error}")),
        }
    }
}

fn of_results(submission: &Submission, results: Vec<TaskResult>) -> Outcome {
    let mut runs = results.into_iter();
    let mut compile_output = None;
    if submission.compiles_first
        && let Some(compilation) = runs.next()
    {
        let output = compilation.stdout.as_ref().and_then(decoded);
        match failed_to_compile(&compilation, output.clone()) {
            Some(outcome) => return outcome,
            None => compile_output = output,
        }
    }
    let (mut time, mut memory, mut count) = (0, 0, 0);
    let mut last = Outcome::internal("Faber could not run it");
    for mut run in runs {
        if let Some(compilation) = run.compile.take().and_then(|Compilation(compilation)| compilation) {
            // A compilation is told as it is, and apart.
            let texts = [&compilation.stdout, &compilation.stderr].into_iter().flatten().filter_map(Text::plain);
            let output = Some(texts.collect::<String>().into_bytes()).filter(|output| !output.is_empty());
            match failed_to_compile(&compilation, output.clone()) {
                Some(outcome) => return outcome,
                None => compile_output = output,
            }
        }
        (time, memory, count) =
            (time + run.resource_usage.cpu_time_ns, memory + run.resource_usage.memory_peak_bytes, count + 1);
        last = of_a_run(submission, &run);
        if last.status != ACCEPTED {
            break;
        }
    }
    if last.status != INTERNAL_ERROR {
        last.time = Some(seconds(time / count.max(1)));
        last.memory = Some((memory / count.max(1)) >> 10);
    }
    Outcome { compile_output, ..last }
}

/// To the millisecond.
fn seconds(nanoseconds: u64) -> f64 {
    (nanoseconds / 1_000_000) as f64 / 1e3
}

fn failed_to_compile(compilation: &TaskResult, output: Option<Vec<u8>>) -> Option<Outcome> {
    let compile_output = match compilation.status {
        Status::Success => return None,
        Status::NotExecuted => return Some(Outcome::internal(compilation.error.clone().unwrap_or_default())),
        Status::Timeout | Status::CpuLimitExceeded => Some(b"Compilation time limit exceeded.".to_vec()),
        // Nothing that it wrote says so.
        Status::MemoryLimitExceeded => {
            let error = compilation.error.clone().unwrap_or_default();
            Some([output.unwrap_or_default(), error.into_bytes()].concat())
        }
        Status::Failure | Status::ResourceLimitExceeded => output,
    };
    Some(Outcome { compile_output, ..Outcome::bare(COMPILATION_ERROR) })
}

/// The runs' own output comes as base64.
fn decoded(text: &Text) -> Option<Vec<u8>> {
    text.plain().map(|text| from_base64(&text)).filter(|bytes| !bytes.is_empty())
}

fn of_a_run(submission: &Submission, run: &TaskResult) -> Outcome {
    let stdout = run.stdout.as_ref().and_then(decoded);
    let signal =
        run.detail.as_ref().and_then(|detail| detail.signal.as_ref()).and(run.exit_code).map(|code| code - 128);
    let error = || run.error.clone().unwrap_or_default();
    let limit = submission.limits.cpu_time_limit;
    let (status, message, exit_code, exit_signal) = match (run.status, signal, run.exit_code) {
        (Status::Success, ..) if limit > 0.0 && run.resource_usage.cpu_time_ns as f64 > limit * 1e9 => {
            (TIME_LIMIT_EXCEEDED, Some("Time limit exceeded".into()), 0, None)
        }
        (Status::Success, ..) => {
            let is_right = match &submission.expected_output {
                None => true,
                Some(Bytes(expected)) => is_same(expected, stdout.as_deref().unwrap_or_default()),
            };
            (if is_right { ACCEPTED } else { WRONG_ANSWER }, None, 0, None)
        }
        (Status::CpuLimitExceeded, ..) => (TIME_LIMIT_EXCEEDED, Some("Time limit exceeded".into()), 0, None),
        (Status::Timeout, ..) => (TIME_LIMIT_EXCEEDED, Some("Time limit exceeded (wall clock)".into()), 0, None),
        (Status::MemoryLimitExceeded, ..) => {
            (OTHER, Some(format!("Caught fatal signal {} ({})", libc::SIGKILL, error())), 0, Some(libc::SIGKILL))
        }
        (Status::ResourceLimitExceeded, _, None) => {
            (SIGXFSZ, Some(format!("Caught fatal signal {} ({})", libc::SIGXFSZ, error())), 0, Some(libc::SIGXFSZ))
        }
        (Status::Failure | Status::ResourceLimitExceeded, Some(signal), _) => {
            (of_a_signal(signal), Some(format!("Caught fatal signal {signal}")), 0, Some(signal))
        }
        // What cannot be run has an error beside these; what ended so by itself has none.
        (Status::Failure, None, Some(126 | 127)) if run.error.is_some() => {
            (EXEC_FORMAT_ERROR, run.error.clone(), 0, None)
        }
        (Status::Failure | Status::ResourceLimitExceeded, None, Some(code)) => {
            let hint = run.error.as_ref().map_or(String::new(), |error| format!("; {error}"));
            (NZEC, Some(format!("Exited with error status {code}{hint}")), code, None)
        }
        (Status::Failure | Status::NotExecuted, ..) => return Outcome::internal(error()),
    };
    Outcome {
        status,
        message,
        exit_code: Some(exit_code),
        exit_signal,
        stdout,
        stderr: run.stderr.as_ref().and_then(decoded),
        wall_time: Some(seconds(run.resource_usage.wall_time_ns)),
        ..Outcome::default()
    }
}

fn of_a_signal(signal: i32) -> usize {
    match signal {
        libc::SIGSEGV => 7,
        libc::SIGXFSZ => SIGXFSZ,
        libc::SIGFPE => 9,
        libc::SIGABRT => 10,
        _ => OTHER,
    }
}

/// Whether they are the same without what Ruby calls white space at the end of each line, and at the end.
fn is_same(expected: &[u8], output: &[u8]) -> bool {
    let mut lines = [stripped(expected).split(is_newline), stripped(output).split(is_newline)];
    let [expected, output] = &mut lines;
    loop {
        match (expected.next(), output.next()) {
            (None, None) => return true,
            (Some(one), Some(other)) if stripped(one) == stripped(other) => {}
            _ => return false,
        }
    }
}

fn is_newline(byte: &u8) -> bool {
    *byte == b'\n'
}

/// Without NUL and white space at the end: Ruby's rstrip.
fn stripped(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| !matches!(byte, b'\0' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r' | b' '));
    &bytes[..end.map_or(0, |end| end + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_at_the_end_of_lines_and_of_all_do_not_count() {
        let same: [(&str, &str); 7] = [
            ("a", "a\n"),
            ("a \nb\t\n\n", "a\r\nb"),
            ("", " \n\0\n"),
            ("\na", "\na"),
            ("a\n \nb", "a\n\nb"),
            ("a\0", "a"),
            ("a\x0b\x0c", "a"),
        ];
        for (expected, output) in same {
            assert!(is_same(expected.as_bytes(), output.as_bytes()), "{expected:?} {output:?}");
        }
        for (expected, output) in
            [("a", "b"), ("a", " a"), ("a", "\na"), ("a b", "a  b"), ("a\nb", "a"), ("", "a"), ("a\rb", "a\nb")]
        {
            assert!(!is_same(expected.as_bytes(), output.as_bytes()), "{expected:?} {output:?}");
        }
    }
}
