//! The words of a stream: each event has a name, and what it says as an object of JSON.

use serde::Serialize;
use utoipa::ToSchema;

use super::outbox::Entry;
use crate::api::answer::{Texts, json_bytes};
use crate::api::buffers::Held;
use crate::api::error::{ApiError, ErrorBody};
use crate::task::{Figures, Stream, TaskResult, Text, to_base64};

/// What an event says. `task` is the task's place in the request, from 0 on.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LiveEvent, example = json!({"task": 0, "text": "Hello\n", "offset": 0}))]
#[serde(untagged)]
pub enum Told {
    /// `queued`: it waits for its turn, behind `position` others at most. `compile`: this is of its compilation.
    Queued {
        #[schema(example = 0)]
        task: usize,
        #[schema(example = 0)]
        position: usize,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        compile: bool,
    },
    /// `started`: its turn has come.
    Started {
        #[schema(example = 0)]
        task: usize,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        compile: bool,
    },
    /// `stdout` and `stderr`: what it wrote, after `offset` bytes of the same stream; as text where it is UTF-8.
    Output {
        #[schema(example = 0)]
        task: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(example = "Hello\n")]
        text: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(example = "/wA=")]
        base64: Option<String>,
        #[schema(example = 0)]
        offset: u64,
        #[serde(skip)]
        #[schema(ignore)]
        stream: Stream,
    },
    /// `usage`: what it has used so far; every half second.
    Usage {
        #[schema(example = 0)]
        task: usize,
        #[schema(example = 480000000)]
        cpu_time_ns: u64,
        #[schema(example = 9437184)]
        memory_bytes: u64,
        #[schema(example = 500000000)]
        wall_time_ns: u64,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        compile: bool,
    },
    /// `dropped`: so many bytes of a stream were not told, since the client had not read those before. The result has them.
    Dropped {
        #[schema(example = 0)]
        task: usize,
        stream: Stream,
        #[schema(example = 65536)]
        bytes: u64,
    },
    /// `result`: it has ended; the result is the same as without a stream.
    Result {
        #[schema(example = 0)]
        task: usize,
        result: Box<TaskResult>,
    },
    /// `error`: the end of the request, of which no result can be told. `refused`: of a message, that it changed nothing.
    Error {
        #[serde(flatten)]
        #[schema(inline)]
        body: ErrorBody,
        #[serde(skip)]
        #[schema(ignore)]
        is_end: bool,
    },
    /// `done`: all was told.
    Done {},
}

impl Told {
    pub fn usage(task: usize, compile: bool, figures: Figures) -> Self {
        let Figures { cpu_time, memory, wall_time } = figures;
        Self::Usage { task, cpu_time_ns: cpu_time, memory_bytes: memory, wall_time_ns: wall_time, compile }
    }

    /// Of a message that changed nothing.
    pub fn refused(error: &ApiError) -> Self {
        Self::Error { body: error.body(), is_end: false }
    }

    pub fn task(&self) -> Option<usize> {
        match self {
            Self::Queued { task, .. }
            | Self::Started { task, .. }
            | Self::Output { task, .. }
            | Self::Usage { task, .. }
            | Self::Dropped { task, .. }
            | Self::Result { task, .. } => Some(*task),
            Self::Error { .. } | Self::Done {} => None,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued { .. } => "queued",
            Self::Started { .. } => "started",
            Self::Output { stream: Stream::Stdout, .. } => "stdout",
            Self::Output { stream: Stream::Stderr, .. } => "stderr",
            Self::Usage { .. } => "usage",
            Self::Dropped { .. } => "dropped",
            Self::Result { .. } => "result",
            Self::Error { is_end: true, .. } => "error",
            Self::Error { is_end: false, .. } => "refused",
            Self::Done {} => "done",
        }
    }
}

impl From<Entry> for Told {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::Told(told) => told,
            Entry::Output { task, stream, bytes, offset } => {
                let (text, base64) = match String::from_utf8(bytes) {
                    Ok(text) => (Some(text), None),
                    Err(error) => (None, Some(to_base64(error.as_bytes()))),
                };
                Self::Output { task, text, base64, offset, stream }
            }
            Entry::End(Ok(())) => Self::Done {},
            Entry::End(Err(error)) => Self::Error { body: error.body(), is_end: true },
        }
    }
}

impl Texts for Told {
    fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        if let Self::Result { result, .. } = self {
            result.each_text(each);
        }
    }
}

/// An event with its name, where nothing else says it.
#[derive(Serialize)]
struct Named<'a> {
    event: &'static str,
    #[serde(flatten)]
    told: &'a mut Told,
}

impl Texts for Named<'_> {
    fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        self.told.each_text(each);
    }
}

impl Told {
    /// The same of an end, which takes no room to speak of.
    pub fn last_message(mut self) -> String {
        let named = Named { event: self.name(), told: &mut self };
        serde_json::to_string(&named).unwrap_or_default()
    }

    /// As a message by itself.
    ///
    /// # Errors
    /// When there is no room for it in the server's memory.
    pub fn message(mut self, held: Held) -> Result<(String, Held), ApiError> {
        let named = Named { event: self.name(), told: &mut self };
        let (json, held) = json_bytes(held, named, u64::MAX)?;
        Ok((String::from_utf8(json).map_err(|_| ApiError::Internal)?, held))
    }
}
