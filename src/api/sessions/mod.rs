//! /sessions: containers that stay, and what is run in them.

mod files;
mod form;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::answer::json_answer;
use super::buffers::Held;
use super::error::{ApiError, ErrorBody, NotAdmitted};
use super::execute::{self, ExecuteResponse, hold_output, offers, parse_object, parsed_size, saturated, take_body};
use super::live::{Asking, Running, Told, sse};
use super::{App, Owner, jobs};
use crate::execution::{Ended, Planned, Within};
use crate::scheduler::{Client, NoSession, RETRY_AFTER};
use crate::sessions::{Busy, Found, Full, Opening, Session, SessionId, Sessions};
use crate::task::{FileRefusal, Job, Task};
use files::place;
pub use files::{__path_delete_file, __path_get_file, __path_list_files, __path_put_file, __path_snapshot};
pub use files::{delete_file, get_file, list_files, put_file, snapshot};
pub use form::{SessionInfo, SessionList, SessionRequest};

/// Keep a container: its workspace and its processes stay from one execution to the next.
#[utoipa::path(
    post,
    operation_id = "create_session",
    path = "/sessions",
    tag = "Sessions",
    request_body(content = SessionRequest, example = json!({"image": "host", "idle_timeout": "5m"})),
    responses(
        NotAdmitted,
        (status = 201, description = "The session is there.", body = SessionInfo, headers(("Location" = String, description = "Its address"))),
        (status = 400, description = "The body is no session, or its files cannot be placed.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "idle_timeout: expected a time such as \"10m\", or nanoseconds"})),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody,
            example = json!({"error": "Request timeout", "details": "The body did not arrive in time"})),
        (status = 413, description = "The body is too large.", body = ErrorBody,
            example = json!({"error": "Request too large", "details": "Request body exceeds maximum size limit"})),
        (status = 415, description = "The body is not declared as JSON.", body = ErrorBody,
            example = json!({"error": "Unsupported media type", "details": "The Content-Type must be application/json"})),
        (status = 503, description = "There is no room for another one.", body = ErrorBody,
            example = json!({"error": "Service unavailable", "details": "there are 16 sessions, as many as there may be (sessions.count)"})),
    )
)]
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (body, mut held) = take_body(&app, client, &headers, body).await?;
    held.more(parsed_size(&body))?;
    let request: SessionRequest = parse_object(&body)?;
    let settings = app.settings();
    if !settings.config.execution.cgroup {
        return Err(ApiError::NotHere("Sessions need control groups, which this server does without".into()));
    }
    let (idle_timeout, lifetime) = request.times(&settings.config.sessions)?;
    let (env, defaults) = (request.env.clone(), request.resource_limits.clone().unwrap_or_default());
    let offers = offers(&app)?;
    let job = Job::parse(request.task(), &app.engine.bounds(), &app.engine.default_image, &offers)
        .map_err(|refusal| ApiError::Invalid(refusal.to_string()))?;
    if job.run.limits.cpus.is_some() {
        return Err(ApiError::Invalid("resource_limits.cpus: it is not for sessions".into()));
    }
    let owner = jobs::owner_of(client, owner);
    let reserved = sessions(&app).reserve(&owner, job.run.limits.memory).map_err(full)?;
    let task = fetched(&app, client, job).await?;
    let files = task.files;
    let task = Task { files: Default::default(), ..task };
    let (image, limits) = (task.image.clone(), task.limits.clone());
    let hosted = app.engine.scheduler.host(client, task).await.map_err(no_session)?;
    let opening = Opening { owner: owner.clone(), client, image, limits, defaults, env, idle_timeout, lifetime };
    let session = sessions(&app).begin(&reserved, opening, hosted);
    drop(reserved);
    if !files.is_empty()
        && let Err(error) = place(&session, files).await
    {
        sessions(&app).delete(&owner, session.id);
        return Err(error);
    }
    let location = format!("/sessions/{}", session.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(SessionInfo::of(&session))).into_response())
}

/// What a session begins with, at hand.
async fn fetched(app: &App, client: Client, job: Job) -> Result<Task<crate::artifact::Artifact>, ApiError> {
    let admission = app.engine.scheduler.admit(client, 0).map_err(saturated)?;
    app.engine.prepare(job, &admission).await.task.map_err(ApiError::Invalid)
}

/// One's own sessions, the newest first.
#[utoipa::path(
    get,
    operation_id = "list_sessions",
    path = "/sessions",
    tag = "Sessions",
    responses(NotAdmitted, (status = 200, description = "Those that have not ended.", body = SessionList))
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
) -> Json<SessionList> {
    let open = sessions(&app).list(&jobs::owner_of(client, owner));
    Json(SessionList { sessions: open.iter().map(|session| SessionInfo::of(session)).collect() })
}

/// What is known of a session; of one that has ended for an hour why it did.
#[utoipa::path(
    get,
    operation_id = "get_session",
    path = "/sessions/{id}",
    tag = "Sessions",
    params(("id" = String, Path, description = "As it was told", example = "00000000000000000000000000000000")),
    responses(
        NotAdmitted,
        (status = 200, description = "It is there, or has ended.", body = SessionInfo),
        (status = 404, description = "There never was one, or it is not yours.", body = ErrorBody,
            example = json!({"error": "Not found", "details": "You have no session 00000000000000000000000000000000"})),
    )
)]
pub async fn get(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Json<SessionInfo>, ApiError> {
    let owner = jobs::owner_of(client, owner);
    let found = id.parse::<SessionId>().ok().and_then(|id| sessions(&app).look(&owner, id));
    match found.ok_or_else(|| unknown(&id))? {
        Ok(session) => Ok(Json(SessionInfo::of(&session))),
        Err(reason) => Ok(Json(SessionInfo::ended(&id, reason))),
    }
}

/// End a session, and everything in it.
#[utoipa::path(
    delete,
    operation_id = "delete_session",
    path = "/sessions/{id}",
    tag = "Sessions",
    params(("id" = String, Path, description = "As it was told", example = "00000000000000000000000000000000")),
    responses(
        NotAdmitted,
        (status = 204, description = "It has ended."),
        (status = 404, description = "There never was one, or it is not yours.", body = ErrorBody,
            example = json!({"error": "Not found", "details": "You have no session 00000000000000000000000000000000"})),
        (status = 410, description = "It had ended before.", body = ErrorBody,
            example = json!({"error": "Gone", "details": "The session has ended: it was deleted"})),
    )
)]
pub async fn delete(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let owner = jobs::owner_of(client, owner);
    let session = enter(&app, &owner, &id)?;
    sessions(&app).delete(&owner, session.id);
    Ok(StatusCode::NO_CONTENT)
}

/// Execute tasks in a session: a body as of POST /execute, and the same answer.
///
/// They share its workspace, /tmp and processes with all that ran and runs there; each has its own limits, within the session's, its
/// own usage and outcome. What they leave running stays until the session ends.
#[utoipa::path(
    post,
    operation_id = "execute_in_session",
    path = "/sessions/{id}/execute",
    tag = "Sessions",
    params(("id" = String, Path, description = "As it was told", example = "00000000000000000000000000000000")),
    request_body = execute::ExecuteRequest,
    responses(
        NotAdmitted,
        (status = 200, description = "Every task has its result; or events, as of POST /execute.",
            content((ExecuteResponse = "application/json"), (Told = "text/event-stream"))),
        (status = 400, description = "The body cannot be read as tasks; nothing ran.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "Invalid command: command cannot be empty"})),
        (status = 404, description = "There never was one, or it is not yours.", body = ErrorBody,
            example = json!({"error": "Not found", "details": "You have no session 00000000000000000000000000000000"})),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody,
            example = json!({"error": "Request timeout", "details": "The body did not arrive in time"})),
        (status = 410, description = "It has ended.", body = ErrorBody,
            example = json!({"error": "Gone", "details": "The session has ended: nothing was done in it for 10m"})),
        (status = 413, description = "The body is too large.", body = ErrorBody,
            example = json!({"error": "Request too large", "details": "Request body exceeds maximum size limit"})),
        (status = 415, description = "The body is not declared as JSON.", body = ErrorBody,
            example = json!({"error": "Unsupported media type", "details": "The Content-Type must be application/json"})),
        (status = 503, description = "The server has no room for what they may write.", body = ErrorBody,
            example = json!({"error": "Service unavailable", "details": "All capacity is in use, please try again later"})),
    )
)]
pub async fn run(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (body, mut held) = take_body(&app, client, &headers, body).await?;
    held.more(parsed_size(&body))?;
    let request = execute::parse(&body, app.settings().config.execution.max_tasks as usize)?;
    drop(body);
    let session = enter(&app, &jobs::owner_of(client, owner.clone()), &id)?;
    let (planned, mut held) = plan(&app, &session, request, held)?;
    if sse::is_wanted(&headers) {
        let writing = app.buffers.hold(client);
        let running = Running::start(&app, Asking { client, owner }, planned, held, None).await?;
        return Ok(sse::answer(running.within(session), writing));
    }
    let mut room = |bytes| held.more(bytes).is_ok();
    match app.engine.run(client, &owner, planned, &mut room).await.map_err(saturated)? {
        Ended::Results(results) => json_answer(held, ExecuteResponse { results }),
        Ended::Queued => Err(ApiError::Saturated { retry_after: RETRY_AFTER }),
        Ended::Fault => Err(ApiError::Internal),
    }
}

fn plan(
    app: &App,
    session: &Session,
    execute::ExecuteRequest { tasks, connect }: execute::ExecuteRequest,
    mut held: Held,
) -> Result<(Planned, Held), ApiError> {
    let count = tasks.len();
    tracing::Span::current().record("tasks", count);
    let opening = &session.opening;
    let within = Within {
        hosted: session.hosted.clone(),
        image: &opening.image.name,
        limits: &opening.limits,
        defaults: &opening.defaults,
        env: &opening.env,
    };
    let planned = Planned::in_session(&app.engine, tasks, &connect, &offers(app)?, within)
        .map_err(|error| ApiError::Invalid(error.to_string()))?;
    hold_output(&mut held, planned.output(), count)?;
    Ok((planned, held))
}

fn sessions(app: &App) -> &Arc<Sessions> {
    &app.sessions
}

fn unknown(id: &str) -> ApiError {
    ApiError::Missing(format!("You have no session {}", id.chars().take(64).collect::<String>()))
}

/// A session to be at work in.
fn enter(app: &App, owner: &str, id: &str) -> Result<Busy, ApiError> {
    let found = id.parse::<SessionId>().ok().and_then(|id| sessions(app).find(owner, id));
    match found.ok_or_else(|| unknown(id))? {
        Found::Here(session) => Ok(session),
        Found::Ended(reason) => Err(ApiError::Gone(format!("The session has ended: {reason}"))),
    }
}

fn full(full: Full) -> ApiError {
    match full {
        Full::Owner(_) => ApiError::Quota(full.to_string()),
        Full::All(_) | Full::Memory => ApiError::NotHere(full.to_string()),
    }
}

fn no_session(lack: NoSession) -> ApiError {
    match lack {
        NoSession::Later { retry_after } => ApiError::Saturated { retry_after },
        NoSession::Refused(reason) => ApiError::Invalid(reason),
        NoSession::Failed => ApiError::NotHere("No container can be kept here: the server's log says why".into()),
    }
}

fn refused(refusal: FileRefusal, path: &str) -> ApiError {
    match refusal {
        FileRefusal::Missing => ApiError::Missing(format!("There is nothing at {path:?} in the workspace")),
        FileRefusal::Wrong(reason) | FileRefusal::Failed(reason) => ApiError::Invalid(format!("{path:?}: {reason}")),
        FileRefusal::Large(reason) => ApiError::TooLargeFor(reason),
    }
}
