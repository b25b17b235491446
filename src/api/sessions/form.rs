//! Sessions in JSON: what is asked, and what is told.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::error::ApiError;
use crate::config::{Sessions, Span};
use crate::sessions::{Reason, Session};
use crate::task::{
    ArchiveRequest, FileForms, FileRequest, ResourceLimits, TaskRequest, objects, optional_object, unique_keys,
};

/// The shortest time that a session is given.
const SHORTEST: Duration = Duration::from_secs(1);

/// A session to be made.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"image": "host", "idle_timeout": "5m", "files": {"hello.txt": "Hello\n"}}))]
pub struct SessionRequest {
    /// The image of its container; without it the server's default image.
    #[serde(default)]
    #[schema(example = "host")]
    pub image: Option<String>,
    /// memory_limit, max_processes and workspace_limit are the session's as a whole; all of them are those of its tasks, where these
    /// say nothing themselves.
    #[serde(default, deserialize_with = "optional_object")]
    pub resource_limits: Option<ResourceLimits>,
    /// Environment variables of its tasks, added to the image's own.
    #[serde(default, deserialize_with = "unique_keys")]
    #[schema(nullable, example = json!({"LANG": "C.UTF-8"}))]
    pub env: BTreeMap<String, String>,
    /// Files of its workspace, as a task's.
    #[serde(default, deserialize_with = "unique_keys")]
    #[schema(nullable, value_type = BTreeMap<String, FileForms>, example = json!({"hello.txt": "Hello\n"}))]
    pub files: BTreeMap<String, FileRequest>,
    /// Archives to unpack into it before, as a task's: what POST /sessions/ID/snapshot gives, too.
    #[serde(default, deserialize_with = "objects")]
    #[schema(nullable, value_type = Vec<ArchiveRequest>, example = json!([]))]
    pub archives: Vec<ArchiveRequest>,
    /// After how long without anything to do it ends: "10m", or nanoseconds.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "5m")]
    pub idle_timeout: Option<TimeForms>,
    /// How long it lives at most: "1h", or nanoseconds.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "1h")]
    pub lifetime: Option<TimeForms>,
}

/// A time, as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum TimeForms {
    Nanos(u64),
    Text(String),
    Other(serde::de::IgnoredAny),
}

impl TimeForms {
    fn time(&self, name: &str, most: Span) -> Result<Duration, ApiError> {
        let time = match self {
            Self::Nanos(nanos) => Some(Duration::from_nanos(*nanos)),
            Self::Text(text) => text.parse::<Span>().ok().map(|span| span.0),
            Self::Other(_) => None,
        };
        let time =
            time.ok_or_else(|| ApiError::Invalid(format!("{name}: expected a time such as \"10m\", or nanoseconds")))?;
        match () {
            () if time < SHORTEST => Err(ApiError::Invalid(format!("{name}: at least 1s; a number is nanoseconds"))),
            () if time > most.0 => Err(ApiError::Invalid(format!("{name}: at most {most} here (sessions.max_{name})"))),
            () => Ok(time),
        }
    }
}

impl SessionRequest {
    /// How long it may be idle, and how long it lives.
    ///
    /// # Errors
    /// What makes no sense, or is more than there may be.
    pub fn times(&self, config: &Sessions) -> Result<(Duration, Duration), ApiError> {
        let time = |asked: &Option<TimeForms>, name, usual: Span, most| match asked {
            Some(asked) => asked.time(name, most),
            None => Ok(usual.0),
        };
        Ok((
            time(&self.idle_timeout, "idle_timeout", config.idle_timeout, config.max_idle_timeout)?,
            time(&self.lifetime, "lifetime", config.lifetime, config.max_lifetime)?,
        ))
    }

    /// A task that would begin with the same.
    pub fn task(self) -> TaskRequest {
        TaskRequest {
            command: Some("session".into()),
            image: self.image,
            resource_limits: self.resource_limits,
            env: self.env,
            files: self.files,
            archives: self.archives,
            ..TaskRequest::default()
        }
    }
}

/// A session; of one that has ended there is its id, its state and the reason.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(example = json!({"id": "7f9c24e8b1d04f6a9e3d5c2b1a0f8e7d", "state": "open", "image": "host", "created_at": "2026-01-02T03:04:05.000Z",
    "expires_at": "2026-01-02T04:04:05.000Z", "idle_timeout": "5m", "lifetime": "1h",
    "limits": {"memory_limit": 536870912, "max_processes": 10, "workspace_limit": 268435456}}))]
pub struct SessionInfo {
    pub id: String,
    /// "open", or "ended".
    pub state: &'static str,
    /// Why it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// When it ends whatever is done in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<SessionLimits>,
}

/// What all of it is held to. Bytes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"memory_limit": 536870912, "max_processes": 10, "workspace_limit": 268435456}))]
pub struct SessionLimits {
    pub memory_limit: u64,
    pub max_processes: u64,
    pub workspace_limit: u64,
}

/// One's own sessions.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"sessions": []}))]
pub struct SessionList {
    pub sessions: Vec<SessionInfo>,
}

impl SessionInfo {
    pub fn of(session: &Session) -> Self {
        let opening = &session.opening;
        let time = |time: SystemTime| humantime::format_rfc3339_millis(time).to_string();
        Self {
            id: session.id.to_string(),
            state: "open",
            reason: None,
            image: Some(opening.image.name.to_string()),
            created_at: Some(time(session.created_at)),
            expires_at: Some(time(session.expires_at())),
            idle_timeout: Some(Span(opening.idle_timeout).to_string()),
            lifetime: Some(Span(opening.lifetime).to_string()),
            limits: Some(SessionLimits {
                memory_limit: opening.limits.memory,
                max_processes: opening.limits.processes,
                workspace_limit: opening.limits.workspace,
            }),
        }
    }

    pub fn ended(id: &str, reason: Reason) -> Self {
        Self { id: id.to_owned(), state: "ended", reason: Some(reason.to_string()), ..Self::default() }
    }
}
