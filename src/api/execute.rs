//! POST /execute: from a body to tasks, and from reports to results.

use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use memchr::{memchr, memchr2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::json_answer;
use super::buffers::{Held, NoRoom};
use super::error::{ApiError, ErrorBody, NotAdmitted};
use super::live::{Asking, Running, Told, sse};
use super::pace::Pace;
use super::{App, Owner, images};
use crate::execution::{Ended, Planned};
use crate::image::Image;
use crate::scheduler::{Client, RETRY_AFTER, Saturated};
use crate::task::{self, EMPTY_COMMAND, Object, Offer, TaskRequest, TaskResult, or_default};

/// One or more tasks. They run in parallel as far as capacity allows, each as soon as what it takes of others is there.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"tasks": [{"command": "echo", "args": ["Hello, Faber!"]}]}))]
pub struct ExecuteRequest {
    #[serde(deserialize_with = "bounded")]
    pub tasks: Vec<TaskRequest>,
    /// Live pipes between tasks: `["NAME.stdout", "NAME.stdin"]` each. Connected tasks start together or not at all.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    #[schema(nullable, example = json!([["sol.stdout", "judge.stdin"], ["judge.stdout", "sol.stdin"]]))]
    pub connect: Vec<[String; 2]>,
}

/// The results, in the order of the tasks.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"results": [{
    "status": "Success", "exit_code": 0, "stdout": "Hello, Faber!\n", "stderr": null, "error": null,
    "resource_usage": {
        "cpu_time_ns": 1000000, "wall_time_ns": 5000000, "memory_peak_bytes": 1048576, "memory_current_bytes": 524288,
        "process_count": 1, "file_descriptors": 3, "io_read_bytes": 0, "io_write_bytes": 14,
        "system_time_ns": 500000, "user_time_ns": 500000
    },
    "resource_limits_exceeded": {
        "cpu_time_limit_exceeded": false, "wall_time_limit_exceeded": false, "process_limit_exceeded": false,
        "file_descriptor_limit_exceeded": false, "output_limit_exceeded": false
    }
}]}))]
pub struct ExecuteResponse {
    pub results: Vec<TaskResult>,
}

/// With a body of so many bytes more, other requests would feel how long its reading takes.
pub const LONG_WORK: usize = 256 << 10;
/// What a value of a list or an object takes beside its characters: a string's place, once more when lists grow.
const VALUE_BYTES: u64 = 96;
/// What an object takes: a task, a case, a file.
const OBJECT_BYTES: u64 = 1 << 10;
/// What a task and its result take beside what the task writes.
const RESULT_BYTES: u64 = 16 << 10;

/// No server takes more in one request, whatever its configuration: what is parsed must fit into memory.
const MOST_TASKS: usize = 10_000;

/// Execute one or more tasks in isolated sandboxes.
#[utoipa::path(
    post,
    path = "/execute",
    tag = "Task Execution",
    request_body(content = ExecuteRequest, examples(
        ("A command" = (value = json!({"tasks": [{"command": "echo", "args": ["Hello, Faber!"]}]}))),
        ("Input, and files back" = (value = json!({"tasks": [{
            "command": "sh", "args": ["-c", "sort -u > words.txt"], "stdin": "pear\napple\npear\n",
            "files": {"data/blob.bin": {"base64": "AAEC/w==", "mode": "0644"}, "empty": {"directory": true}},
            "outputs": ["*.txt", "plot.png?"], "detail": true}]}))),
        ("Output of any kind" = (value = json!({"tasks": [{
            "command": "sh", "args": ["-c", "printf '\\377\\n'; echo done >&2"], "output_encoding": "auto",
            "merge_output": "beside", "on_output_limit": "discard"}]}))),
        ("Steps" = (value = json!({"tasks": [
            {"name": "make", "command": "seq", "args": ["3"]},
            {"name": "sum", "command": "awk", "args": ["{ s += $1 } END { print s }"],
                "stdin": {"from": "make", "stream": "stdout"}, "expect": {"stdout": "6\n", "compare": "tokens"}},
            {"command": "echo", "args": ["the end"], "needs": ["sum"], "run_when": "always"}]}))),
        ("Pipes" = (value = json!({
            "tasks": [
                {"name": "ask", "command": "sh", "args": ["-c", "echo 6 7; read answer; echo $answer >&2"]},
                {"name": "reply", "command": "sh", "args": ["-c", "read a b; echo $((a * b))"], "record": ["stdout"]}],
            "connect": [["ask.stdout", "reply.stdin"], ["reply.stdout", "ask.stdin"]]}))),
    )),
    responses(
        NotAdmitted,
        (status = 200, description = "Every task has its result, those that failed or were refused too. Who accepts \
            text/event-stream gets LiveEvents as they happen, the last of which is `done`.",
            content((ExecuteResponse = "application/json"), (Told = "text/event-stream")), headers(
                ("X-RateLimit-Limit" = u32, description = "Requests allowed, by the tighter of the two limits"),
                ("X-RateLimit-Remaining" = u32, description = "Requests left"),
                ("X-RateLimit-Reset" = u64, description = "When all are back, in Unix seconds"),
                ("X-Request-Id" = String, description = "The id under which the request is logged"))),
        (status = 400, description = "The body cannot be read as tasks; nothing ran.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "Invalid command: command cannot be empty"})),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody,
            example = json!({"error": "Request timeout", "details": "The body did not arrive in time"})),
        (status = 413, description = "The body is too large.", body = ErrorBody,
            example = json!({"error": "Request too large", "details": "Request body exceeds maximum size limit"})),
        (status = 415, description = "The body is not declared as JSON.", body = ErrorBody,
            example = json!({"error": "Unsupported media type", "details": "The Content-Type must be application/json"})),
        (status = 503, description = "The queue is full, or the turn did not come in time.", body = ErrorBody,
            headers(("Retry-After" = u64, description = "Seconds to wait")),
            example = json!({"error": "Service unavailable", "details": "All capacity is in use, please try again later"})),
    )
)]
pub async fn execute(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (body, held) = take_body(&app, client, &headers, body).await?;
    let shared = app.clone();
    let (planned, mut held) = beside(body.len(), move || {
        let Plan { planned, mut held, output, tasks } = plan(&shared, body, held)?;
        hold_output(&mut held, output, tasks)?;
        Ok((planned, held))
    })
    .await?;
    if sse::is_wanted(&headers) {
        let writing = app.buffers.hold(client);
        let running = Running::start(&app, Asking { client, owner }, planned, held, None).await?;
        return Ok(sse::answer(running, writing));
    }
    let mut room = |bytes| held.more(bytes).is_ok();
    let ended = app.engine.run(client, &owner, planned, &mut room).await.map_err(saturated)?;
    let results = match ended {
        Ended::Results(results) => results,
        Ended::Queued => return Err(ApiError::Saturated { retry_after: RETRY_AFTER }),
        Ended::Fault => return Err(ApiError::Internal),
    };
    json_answer(held, ExecuteResponse { results })
}

/// What a body asks for, with what is held for it.
pub struct Plan<T> {
    pub planned: T,
    pub held: Held,
    /// Bytes that its tasks may write.
    pub output: u64,
    pub tasks: usize,
}

/// The tasks of a body.
pub fn plan(app: &App, body: Bytes, mut held: Held) -> Result<Plan<Planned>, ApiError> {
    held.more(parsed_size(&body))?;
    let ExecuteRequest { tasks, connect } = parse(&body, app.settings().config.execution.max_tasks as usize)?;
    held.less(body.len() as u64);
    drop(body);
    let count = tasks.len();
    tracing::Span::current().record("tasks", count);
    let planned = Planned::new(&app.engine, tasks, &connect, &offers(app)?)
        .map_err(|error| ApiError::Invalid(error.to_string()))?;
    Ok(Plan { output: planned.output(), planned, held, tasks: count })
}

/// Takes room for what so many tasks may write, and for their results beside that.
///
/// # Errors
/// `Invalid` when it is more than there ever is, `Saturated` when it is more than there is now.
pub fn hold_output(held: &mut Held, bytes: u64, tasks: usize) -> Result<(), ApiError> {
    held.more(output_size(bytes, tasks)).map_err(|lack| no_room(lack, bytes))
}

/// Bytes that so many tasks and their output take.
pub fn output_size(bytes: u64, tasks: usize) -> u64 {
    bytes + RESULT_BYTES * tasks as u64
}

/// Why there is no room for output of so many bytes.
pub fn no_room(lack: NoRoom, bytes: u64) -> ApiError {
    match lack {
        NoRoom::Ever { most } => ApiError::Invalid(format!(
            "Invalid tasks: their output limits add up to {}, and this server holds {} at most for one client",
            task::Bytes(bytes),
            task::Bytes(most)
        )),
        NoRoom::Now => lack.into(),
    }
}

pub fn saturated(Saturated { retry_after }: Saturated) -> ApiError {
    ApiError::Saturated { retry_after }
}

/// What tasks may choose from now.
pub fn offers(app: &App) -> Result<Vec<Offer>, ApiError> {
    Ok(images::all(app)?.iter().map(Image::offer).collect())
}

/// A body of JSON, with its share of what requests may hold.
pub async fn take_body(app: &App, client: Client, headers: &HeaderMap, body: Body) -> Result<(Bytes, Held), ApiError> {
    check_headers(headers)?;
    let limit = app.settings().config.server.body_limit.0;
    if body.size_hint().lower() > limit {
        return Err(ApiError::TooLarge);
    }
    let mut held = app.buffers.hold(client);
    Ok((read(body, limit, &mut held).await?, held))
}

/// Does what takes long with so many bytes beside the front's other work.
pub async fn beside<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= LONG_WORK {
        return work();
    }
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work)).await.map_err(|_| ApiError::Internal)?
}

/// How much memory what is read from a body takes, in bytes, at most about: its strings, and what holds each value of it. A
/// body of empty strings takes eight times its size.
pub fn parsed_size(body: &[u8]) -> u64 {
    let (mut values, mut objects) = (0, 0);
    let mut count = |between: &[u8]| {
        values += between.iter().filter(|byte| matches!(byte, b',' | b':' | b'[')).count() as u64;
        objects += between.iter().filter(|byte| **byte == b'{').count() as u64;
    };
    let mut rest = body;
    while let Some(start) = memchr(b'"', rest) {
        count(&rest[..start]);
        rest = after_string(&rest[start + 1..]);
    }
    count(rest);
    body.len() as u64 + values * VALUE_BYTES + objects * OBJECT_BYTES
}

/// What comes after a string that has begun.
fn after_string(mut rest: &[u8]) -> &[u8] {
    while let Some(at) = memchr2(b'"', b'\\', rest) {
        let is_end = rest[at] == b'"';
        rest = rest.get(at + if is_end { 1 } else { 2 }..).unwrap_or_default();
        if is_end {
            return rest;
        }
    }
    &[]
}

/// The body must be JSON, as it is.
fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::NotJson);
    }
    let plain = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().all(plain) { Ok(()) } else { Err(ApiError::Encoded) }
}

/// Takes room for the body as it comes.
async fn read(mut body: Body, limit: u64, held: &mut Held) -> Result<Bytes, ApiError> {
    // Memory of which nothing is written yet costs nothing. Without a length it is doubled whenever it is full.
    let declared = body.size_hint().exact();
    let capacity = declared.unwrap_or(0).min(limit);
    let mut bytes = Vec::with_capacity(usize::try_from(capacity).unwrap_or_default());
    let mut pace = Pace::default();
    while let Some(more) = pace.next(&mut body).await? {
        if (bytes.len() + more.len()) as u64 > limit {
            return Err(ApiError::TooLarge);
        }
        held.more(more.len() as u64 * if declared.is_some() { 1 } else { 2 })?;
        bytes.extend_from_slice(&more);
    }
    if declared.is_none() {
        bytes.shrink_to_fit();
        held.less(bytes.len() as u64);
    }
    Ok(bytes.into())
}

/// A body as an object of JSON; what is wrong is told with its place.
pub fn parse_object<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // Which may be ignored (RFC 8259 section 8.1), and which editors and shells of Windows write.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize::<_, Object<T>>(&mut json).map_err(|error| {
        let place = error.path().to_string();
        let place = if place == "." { String::new() } else { format!("{place}: ") };
        ApiError::Invalid(format!("{place}{}", error.inner()))
    })?;
    json.end().map_err(|error| ApiError::Invalid(error.to_string()))?;
    let Object(value) = parsed;
    Ok(value)
}

/// The tasks of a body that is one, each with something to run.
pub fn parse(body: &[u8], max_tasks: usize) -> Result<ExecuteRequest, ApiError> {
    let invalid = |details: String| Err(ApiError::Invalid(details));
    let request: ExecuteRequest = parse_object(body)?;
    let tasks = &request.tasks;
    if tasks.is_empty() {
        return invalid("Invalid tasks: at least one task is needed".into());
    }
    if tasks.len() > max_tasks {
        return invalid(format!("Invalid tasks: {} tasks are more than the {max_tasks} allowed", tasks.len()));
    }
    for (at, task) in tasks.iter().enumerate() {
        match task.nothing_to_run() {
            // The page's own words.
            Some(EMPTY_COMMAND) => {
                let place = if tasks.len() > 1 { format!(" (tasks[{at}])") } else { String::new() };
                return invalid(format!("{EMPTY_COMMAND}{place}"));
            }
            Some(lack) => return invalid(format!("tasks[{at}]: {lack}")),
            None => {}
        }
    }
    Ok(request)
}

fn bounded<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<TaskRequest>, D::Error> {
    struct Tasks;
    impl<'de> serde::de::Visitor<'de> for Tasks {
        type Value = Vec<TaskRequest>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of tasks")
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut tasks = Vec::new();
            while let Some(Object(task)) = items.next_element()? {
                tasks.push(task);
                if tasks.len() > MOST_TASKS {
                    return Err(serde::de::Error::custom(format_args!("more than {MOST_TASKS} tasks")));
                }
            }
            Ok(tasks)
        }
    }
    deserializer.deserialize_seq(Tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(body: &str, expected: &str) {
        match parse(body.as_bytes(), 3).map(|request| request.tasks) {
            Err(ApiError::Invalid(details)) => assert_eq!(details, expected),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_and_objects_count_and_what_strings_hold_does_not() {
        let beyond = |body: &str| parsed_size(body.as_bytes()) - body.len() as u64;
        assert_eq!(beyond(r#"["","",""]"#), 3 * VALUE_BYTES);
        assert_eq!(beyond(r#"{"a,b:{[":"\\\",{"}"#), VALUE_BYTES + OBJECT_BYTES);
        assert_eq!([beyond(r#"{"a\"#), beyond(r#"["a,["#), beyond("\"")], [OBJECT_BYTES, VALUE_BYTES, 0]);
    }

    #[test]
    fn the_place_of_a_mistake_is_named() {
        refused(r#"{"tasks": [{"command": ""}]}"#, "Invalid command: command cannot be empty");
        refused(
            r#"{"tasks": [{"command": "a"}, {"command": " "}]}"#,
            "Invalid command: command cannot be empty (tasks[1])",
        );
        refused(r#"{"tasks": []}"#, "Invalid tasks: at least one task is needed");
        let four = r#"{"tasks": [{"command": "a"}, {"command": "a"}, {"command": "a"}, {"command": "a"}]}"#;
        refused(four, "Invalid tasks: 4 tasks are more than the 3 allowed");
        refused("{}", "missing field `tasks` at line 1 column 2");
        refused("{}{}", "missing field `tasks` at line 1 column 2");
        refused(r#"{"tasks": [{"args": []}]}"#, "tasks[0]: missing field `command`");
        refused(r#"{"tasks": [{"language": "c"}]}"#, "tasks[0]: language needs code");
        refused(
            r#"{"tasks": [{"language": "c", "code": "", "command": "x"}]}"#,
            "tasks[0]: command stands in place of language and code",
        );
        let number = r#"{"tasks": [{"command": "a", "args": ["b", 1]}]}"#;
        refused(number, "tasks[0].args[1]: invalid type: integer `1`, expected a string at line 1 column 43");
    }
}
