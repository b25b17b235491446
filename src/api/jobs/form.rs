//! Jobs in JSON: what is sent, and what is told.

use axum::body::Bytes;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{RefOr, schema::AdditionalProperties};
use utoipa::{PartialSchema, ToSchema};

use super::super::error::ApiError;
use super::super::execute::ExecuteRequest;
use crate::callbacks::{Hosts, Secret};
use crate::jobs::{Callback, CallbackState, Job, Kind, State};
use crate::judge::JudgeRequest;

/// A job may be run again so many times.
const MOST_RETRIES: u32 = 10;

/// A body of POST /execute or of POST /judge, with `retry` and `callback`.
pub struct JobRequest;

/// Whom to tell of a job's end, by Standard Webhooks: `POST url` with `{"type": "job.done", "timestamp", "data"}`, `data` being what
/// GET /jobs/ID answers then, and the headers `webhook-id`, `webhook-timestamp` and `webhook-signature`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = JobCallback)]
pub struct CallbackRequest {
    /// One of http or https that `jobs.callback_hosts` allows.
    #[schema(max_length = 2048, example = "https://example.com/hook")]
    url: String,
    /// What the signature is made with: `whsec_` and 24 to 64 bytes in Base64.
    #[schema(max_length = 100, example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    secret: String,
}

impl PartialSchema for JobRequest {
    fn schema() -> RefOr<Schema> {
        let retry = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(0))
            .maximum(Some(MOST_RETRIES))
            .description(Some("How many times it may be run again when Faber ended while it ran; without it never"))
            .examples([serde_json::json!(1)])
            .build();
        let with_own = |schema: RefOr<Schema>| match schema {
            RefOr::T(Schema::Object(mut object)) => {
                object.properties.insert("retry".into(), RefOr::T(retry.clone().into()));
                object.properties.insert("callback".into(), CallbackRequest::schema());
                object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
                RefOr::T(Schema::Object(object))
            }
            other => other,
        };
        let forms = OneOfBuilder::new()
            .item(with_own(ExecuteRequest::schema()))
            .item(with_own(JudgeRequest::schema()))
            .description(Some("A body of POST /execute or of POST /judge, with `retry` and `callback`."));
        RefOr::T(Schema::OneOf(forms.build()))
    }
}

impl ToSchema for JobRequest {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        ExecuteRequest::schemas(schemas);
        JudgeRequest::schemas(schemas);
    }
}

/// A job's body, without what is the job's own.
pub struct Split {
    pub request: Bytes,
    pub kind: Kind,
    pub retry: u32,
    pub callback: Option<Callback>,
}

/// The fields of an object, in their order, each as it stands there.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some((name, value)) = fields.next_entry::<String, &'de RawValue>()? {
                    if all.len() == MOST_FIELDS {
                        return Err(serde::de::Error::custom("too many fields"));
                    }
                    all.push((name, value));
                }
                Ok(Fields(all))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

/// Neither request has so many.
const MOST_FIELDS: usize = 100;

/// Takes what is the job's own out of its body; the rest stays as it is.
///
/// # Errors
/// `Invalid` when it is no object, or its own fields make no sense.
pub fn split(body: &Bytes, hosts: &Hosts) -> Result<Split, ApiError> {
    let invalid = |details: String| Err(ApiError::Invalid(details));
    let text =
        std::str::from_utf8(body).map_err(|error| ApiError::Invalid(format!("the body is not UTF-8: {error}")))?;
    let Fields(fields) = match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
        Ok(fields) => fields,
        Err(error) => return invalid(error.to_string()),
    };
    let (own, rest): (Vec<_>, Vec<_>) = fields.iter().partition(|(name, _)| name == "retry" || name == "callback");
    let value = |wanted: &str| {
        let mut values = own.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.get());
        match (values.next().filter(|value| *value != "null"), values.next()) {
            (_, Some(_)) => Err(ApiError::Invalid(format!("duplicate field `{wanted}`"))),
            (value, None) => Ok(value),
        }
    };
    let retry = value("retry")?.map_or(Some(0), |value| value.parse().ok().filter(|retry| *retry <= MOST_RETRIES));
    let Some(retry) = retry else {
        return invalid(format!("retry: expected a whole number from 0 to {MOST_RETRIES}"));
    };
    let callback = value("callback")?.map(|value| callback_of(value, hosts)).transpose()?;
    let has = |wanted: &str| rest.iter().any(|(name, _)| name == wanted);
    let kind = match (has("tasks"), has("cases")) {
        (true, _) => Kind::Execute,
        (_, true) => Kind::Judge,
        _ => return invalid("a job has tasks, as POST /execute, or cases, as POST /judge".into()),
    };
    // As it is wherever it can be, so that the places of mistakes are the client's.
    let request = if own.is_empty() { body.clone() } else { joined(&rest)?.into() };
    Ok(Split { request, kind, retry, callback })
}

fn callback_of(text: &str, hosts: &Hosts) -> Result<Callback, ApiError> {
    let invalid = |field: &str, error: &dyn std::fmt::Display| ApiError::Invalid(format!("callback{field}: {error}"));
    let CallbackRequest { url, secret } = serde_json::from_str(text).map_err(|error| invalid("", &error))?;
    let url = hosts.url(&url).map_err(|error| invalid(".url", &error))?;
    let secret = secret.parse::<Secret>().map_err(|error| invalid(".secret", &error))?;
    Ok(Callback::new(url.into(), Some(secret)))
}

fn joined(fields: &[&(String, &RawValue)]) -> Result<Vec<u8>, ApiError> {
    let mut json = vec![b'{'];
    for (at, (name, value)) in fields.iter().enumerate() {
        if at > 0 {
            json.push(b',');
        }
        serde_json::to_writer(&mut json, name).map_err(|_| ApiError::Internal)?;
        json.push(b':');
        json.extend_from_slice(value.get().as_bytes());
    }
    json.push(b'}');
    Ok(json)
}

/// A job that was taken.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobAccepted)]
pub struct Accepted {
    #[schema(example = "000643f1a2b3c4d50123456789abcdef")]
    pub id: String,
    #[schema(example = "queued")]
    pub state: State,
}

/// What is told of a job without its response.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobSummary)]
pub struct Summary {
    #[schema(example = "000643f1a2b3c4d50123456789abcdef")]
    id: String,
    #[schema(example = "queued")]
    state: State,
    /// How many of one's own jobs are to be begun before it; null when it is not queued.
    #[schema(required, example = 0)]
    position: Option<usize>,
    /// RFC 3339, in UTC.
    #[schema(example = "2026-11-27T06:40:00.000Z")]
    created_at: String,
    /// When its last run began.
    #[schema(required, example = "2026-11-27T06:40:00.100Z")]
    started_at: Option<String>,
    #[schema(required, example = "2026-11-27T06:40:01.200Z")]
    ended_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback: Option<CallbackInfo>,
}

/// How far the callback of a job has come; not there without one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobCallbackState)]
pub struct CallbackInfo {
    #[schema(example = "https://example.com/hook")]
    url: String,
    #[schema(example = "pending")]
    state: CallbackState,
    /// How many times it was sent.
    #[schema(example = 1)]
    attempts: u32,
    /// When it is sent next.
    #[schema(required, example = "2026-11-27T06:40:06.200Z")]
    next_attempt_at: Option<String>,
    #[schema(required, example = json!(null))]
    delivered_at: Option<String>,
    /// Why the last attempt came to nothing.
    #[schema(required, example = "the answer was 503 Service Unavailable")]
    error: Option<String>,
}

impl CallbackInfo {
    fn new(callback: &Callback) -> Self {
        Self {
            url: callback.url.clone(),
            state: callback.state(),
            attempts: callback.attempts,
            next_attempt_at: callback.due.map(time),
            delivered_at: callback.delivered.map(time),
            error: callback.error.clone(),
        }
    }
}

impl Summary {
    pub fn new(job: &Job, position: Option<usize>) -> Self {
        Self {
            id: job.id.to_string(),
            state: job.state,
            position: position.filter(|_| job.state == State::Queued),
            created_at: time(job.created),
            started_at: job.started.map(time),
            ended_at: job.ended.map(time),
            callback: job.callback.as_ref().map(CallbackInfo::new),
        }
    }
}

/// A job with its response. That is JSON already, and may be large: it becomes the last field as it is.
///
/// # Errors
/// None that a job could cause.
pub fn whole(job: &Job, position: Option<usize>, response: Option<&[u8]>) -> Result<Vec<u8>, ApiError> {
    let mut json = serde_json::to_vec(&Summary::new(job, position)).map_err(|_| ApiError::Internal)?;
    json.pop();
    json.extend_from_slice(b",\"response\":");
    json.extend_from_slice(response.unwrap_or(b"null"));
    json.push(b'}');
    Ok(json)
}

pub fn time(millis: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(millis);
    humantime::format_rfc3339_millis(time).to_string()
}

/// A job with what POST /execute or POST /judge would have answered. (For the document alone.)
#[derive(ToSchema)]
#[schema(as = Job, example = json!({
    "id": "000643f1a2b3c4d50123456789abcdef", "state": "done", "position": null, "created_at": "2026-11-27T06:40:00.000Z",
    "started_at": "2026-11-27T06:40:00.100Z", "ended_at": "2026-11-27T06:40:01.200Z", "response": {"results": []}
}))]
#[allow(dead_code, reason = "the document is made of the type alone")]
pub struct JobInfo {
    #[schema(example = "000643f1a2b3c4d50123456789abcdef")]
    id: String,
    #[schema(example = "done")]
    state: State,
    /// How many of one's own jobs are to be begun before it; null when it is not queued.
    #[schema(required, example = 0)]
    position: Option<usize>,
    /// RFC 3339, in UTC.
    #[schema(example = "2026-11-27T06:40:00.000Z")]
    created_at: String,
    /// When its last run began.
    #[schema(required, example = "2026-11-27T06:40:00.100Z")]
    started_at: Option<String>,
    #[schema(required, example = "2026-11-27T06:40:01.200Z")]
    ended_at: Option<String>,
    #[schema(nullable = false)]
    callback: Option<CallbackInfo>,
    /// What the request would have been answered, an error's body where that was an error; null unless the job is done.
    #[schema(required, value_type = Option<Object>, example = json!({"results": []}))]
    response: Option<serde_json::Value>,
}

/// A page of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub struct JobList {
    #[schema(example = json!([]))]
    pub jobs: Vec<Summary>,
    /// What `cursor` takes for the next page; null on the last.
    #[schema(required, example = "000643f1a2b3c4d50123456789abcdef")]
    pub next: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_of(body: &str) -> Result<(String, u32), String> {
        let split = split(&Bytes::from(body.to_owned()), &Hosts(Vec::new())).map_err(|error| error.to_string())?;
        Ok((String::from_utf8(split.request.to_vec()).unwrap(), split.retry))
    }

    #[test]
    fn what_is_the_jobs_own_is_taken_out_and_all_else_stays() {
        let same = |body: &str| assert_eq!(split_of(body), Ok((body.to_owned(), 0)));
        same("{ \"tasks\" : [ {} ] , \"connect\":[]}");
        assert_eq!(
            split_of(r#"{"retry": 2, "ca\u0073es": [ 1e400 ], "a\"": "\ud800", "cases": 1}"#),
            Ok((r#"{"cases":[ 1e400 ],"a\"":"\ud800","cases":1}"#.to_owned(), 2))
        );
        for retry in ["-1", "11", "1.0", "\"1\"", "true", "[]"] {
            let refused = split_of(&format!(r#"{{"tasks": [], "retry": {retry}}}"#));
            assert_eq!(refused, Err("retry: expected a whole number from 0 to 10".into()), "{retry}");
        }
        for wrong in ["", "[]", "null", "{}", "{\"tasks\": []} {}", "{\"tasks\": [], \"retry\": 1, \"retry\": 1}"] {
            split_of(wrong).unwrap_err();
        }
    }
}
