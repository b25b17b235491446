//! A submission as it is told: the fields that are asked for, each as its text or in base64.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::outcome::{IN_QUEUE, Outcome, PROCESSING, STATUSES};
use super::submission::{Bytes, Submission};
use super::{to_mime, token};

/// Every field, in the order in which they are told.
const FIELDS: [&str; 40] = [
    "source_code",
    "language_id",
    "stdin",
    "expected_output",
    "stdout",
    "status_id",
    "created_at",
    "finished_at",
    "time",
    "memory",
    "stderr",
    "token",
    "number_of_runs",
    "cpu_time_limit",
    "cpu_extra_time",
    "wall_time_limit",
    "memory_limit",
    "stack_limit",
    "max_processes_and_or_threads",
    "enable_per_process_and_thread_time_limit",
    "enable_per_process_and_thread_memory_limit",
    "max_file_size",
    "compile_output",
    "exit_code",
    "exit_signal",
    "message",
    "wall_time",
    "compiler_options",
    "command_line_arguments",
    "redirect_stderr_to_stdout",
    "callback_url",
    "additional_files",
    "enable_network",
    "started_at",
    "queued_at",
    "updated_at",
    "queue_host",
    "execution_host",
    "status",
    "language",
];
/// Those that are told unless others are asked for.
const DEFAULT: [&str; 8] = ["stdout", "time", "memory", "stderr", "token", "compile_output", "message", "status"];

/// Those that are told only by their names: its own client takes an answer with everything for none when these are in it.
const BY_NAME: [&str; 5] = ["started_at", "queued_at", "updated_at", "queue_host", "execution_host"];

/// What is to be told of submissions, and how.
#[derive(Debug, Clone)]
pub struct Fields {
    names: Vec<&'static str>,
    is_base64: bool,
}

/// A text that is to be told as it is, and is not UTF-8.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("some attributes for this submission cannot be converted to UTF-8, use base64_encoded=true query parameter")]
pub struct NotUtf8;

impl Fields {
    /// `asked` are names between commas; `*` stands for all but a few.
    ///
    /// # Errors
    /// The text of an answer 400.
    pub fn parse(asked: Option<&str>, is_base64: bool) -> Result<Self, String> {
        let asked: Vec<&str> = asked.unwrap_or_default().split(',').filter(|name| !name.is_empty()).collect();
        let unknown: Vec<String> = asked
            .iter()
            .filter(|name| **name != "*" && !FIELDS.contains(name))
            .map(|name| name.chars().take(100).collect())
            .collect();
        if !unknown.is_empty() {
            return Err(format!("invalid fields: [{}]", unknown.join(", ")));
        }
        let is_asked = |name: &&str| match &asked[..] {
            [] => DEFAULT.contains(name),
            asked => asked.contains(name) || asked.contains(&"*") && !BY_NAME.contains(name),
        };
        Ok(Self { names: FIELDS.into_iter().filter(is_asked).collect(), is_base64 })
    }

    /// The same in base64, in which everything can be told.
    pub fn in_base64(self) -> Self {
        Self { is_base64: true, ..self }
    }

    fn content(&self, bytes: Option<&[u8]>) -> Result<Value, NotUtf8> {
        match bytes {
            None => Ok(Value::Null),
            Some(bytes) if self.is_base64 => Ok(to_mime(bytes).into()),
            Some(bytes) => std::str::from_utf8(bytes).map(Value::from).map_err(|_| NotUtf8),
        }
    }
}

/// How far a submission is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Queued,
    Running,
    Done,
    Cancelled,
    Lost,
}

/// A submission, with what is known of it.
pub struct Told {
    token: String,
    submission: Submission,
    outcome: Outcome,
    created: u64,
    started: Option<u64>,
    ended: Option<u64>,
}

impl Told {
    /// `times` are when it was made, when it began and when it ended, in milliseconds since 1970; `note` is what was kept beside it.
    ///
    /// # Errors
    /// When the note is none.
    pub fn new(
        id: &str,
        stage: Stage,
        times: (u64, Option<u64>, Option<u64>),
        note: &[u8],
        response: Option<&[u8]>,
    ) -> Result<Self, serde_json::Error> {
        let submission: Submission = serde_json::from_slice(note)?;
        let outcome = match stage {
            Stage::Queued => Outcome::bare(IN_QUEUE),
            Stage::Running => Outcome::bare(PROCESSING),
            Stage::Done => Outcome::of(&submission, response.unwrap_or_default()),
            Stage::Cancelled => Outcome::internal("it was cancelled"),
            Stage::Lost => Outcome::internal("Faber ended while it ran"),
        };
        let (created, started, ended) = times;
        Ok(Self { token: token(id), submission, outcome, created, started, ended })
    }

    /// Its status with that's name.
    pub fn status(&self) -> (usize, &'static str) {
        (self.outcome.status, STATUSES[self.outcome.status - 1])
    }

    /// Its language with that's name.
    pub fn language(&self) -> (u32, &str) {
        (self.submission.language_id, &self.submission.language)
    }

    /// # Errors
    /// When a text that is asked for cannot be told so.
    pub fn json(&self, fields: &Fields) -> Result<Map<String, Value>, NotUtf8> {
        fields.names.iter().map(|name| Ok(((*name).to_owned(), self.field(name, fields)?))).collect()
    }

    fn field(&self, name: &str, fields: &Fields) -> Result<Value, NotUtf8> {
        let Self { submission, outcome, .. } = self;
        let limits = &submission.limits;
        let bytes = |content: &Option<Bytes>| fields.content(content.as_ref().map(|Bytes(bytes)| &bytes[..]));
        Ok(match name {
            "source_code" => bytes(&submission.source_code)?,
            "stdin" => bytes(&submission.stdin)?,
            "expected_output" => bytes(&submission.expected_output)?,
            "stdout" => fields.content(outcome.stdout.as_deref())?,
            "stderr" => fields.content(outcome.stderr.as_deref())?,
            "compile_output" => fields.content(outcome.compile_output.as_deref())?,
            "message" => fields.content(outcome.message.as_ref().map(String::as_bytes))?,
            "additional_files" => submission.additional_files.as_ref().map(|Bytes(zip)| to_mime(zip)).into(),
            "language_id" => submission.language_id.into(),
            "language" => json!({ "id": submission.language_id, "name": submission.language }),
            "status_id" => outcome.status.into(),
            "status" => json!({ "id": outcome.status, "description": self.status().1 }),
            "token" => self.token.clone().into(),
            "created_at" | "queued_at" => time(self.created).into(),
            "started_at" => self.started.map(time).into(),
            "finished_at" => self.ended.map(time).into(),
            "updated_at" => time(self.ended.or(self.started).unwrap_or(self.created)).into(),
            "time" => outcome.time.map(decimal).into(),
            "wall_time" => outcome.wall_time.map(decimal).into(),
            "memory" => outcome.memory.into(),
            "exit_code" => outcome.exit_code.into(),
            "exit_signal" => outcome.exit_signal.into(),
            "number_of_runs" => limits.number_of_runs.into(),
            "cpu_time_limit" => decimal(limits.cpu_time_limit).into(),
            "cpu_extra_time" => decimal(limits.cpu_extra_time).into(),
            "wall_time_limit" => decimal(limits.wall_time_limit).into(),
            "memory_limit" => limits.memory_limit.into(),
            "stack_limit" => limits.stack_limit.into(),
            "max_processes_and_or_threads" => limits.max_processes_and_or_threads.into(),
            "max_file_size" => limits.max_file_size.into(),
            "compiler_options" => submission.compiler_options.clone().into(),
            "command_line_arguments" => submission.command_line_arguments.clone().into(),
            "redirect_stderr_to_stdout" => submission.redirect_stderr_to_stdout.into(),
            "enable_network"
            | "enable_per_process_and_thread_time_limit"
            | "enable_per_process_and_thread_memory_limit" => false.into(),
            "callback_url" => submission.callback_url.clone().into(),
            // Of machines nothing is told.
            _ => Value::Null,
        })
    }
}

/// A number as a text with a point.
fn decimal(number: f64) -> String {
    format!("{number:?}")
}

/// To the millisecond.
pub fn time(millis: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_that_are_asked_for() {
        let names = |asked| Fields::parse(asked, false).map(|fields| fields.names);
        assert_eq!((names(None), names(Some(""))), (Ok(DEFAULT.to_vec()), Ok(DEFAULT.to_vec())));
        assert_eq!(names(Some("status,stdout")), Ok(vec!["stdout", "status"]));
        let all = ["*", &BY_NAME.join(",")].join(",");
        assert_eq!((names(Some(&all)), names(Some("*,stdout")).unwrap().len()), (Ok(FIELDS.to_vec()), 35));
        assert_eq!(names(Some("a,stdout,b")), Err("invalid fields: [a, b]".into()));
    }

    #[test]
    fn numbers_and_times_have_its_form() {
        assert_eq!((decimal(0.002), decimal(5.0), decimal(0.0)), ("0.002".into(), "5.0".into(), "0.0".into()));
        assert_eq!(time(1_767_323_045_678), "2026-01-02T03:04:05.678Z");
    }
}
