//! /jobs: requests whose answers are fetched later.

mod call;
mod form;
mod run;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use utoipa::IntoParams;

use super::answer::held_bytes;
use super::error::{ApiError, ErrorBody, NotAdmitted};
use super::execute::{beside, no_room, output_size, take_body};
use super::{App, Owner};
use crate::callbacks::Hosts;
use crate::chain::chain;
use crate::jobs::{Idempotency, Job, JobId, Jobs, Kind, Removed, StoreError, Submission, SubmitError};
use crate::scheduler::Client;
pub(super) use call::call_back;
use form::{Accepted, JobInfo, JobList, JobRequest, Summary};
pub(super) use run::run;
use sha2::{Digest as _, Sha256};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Longer waits are this long.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Of one page, unless less is asked for.
const PAGE: usize = 50;

/// Hand in tasks or a judgement to be run later: it is on the disk when this answers.
#[utoipa::path(
    post,
    operation_id = "submit_job",
    path = "/jobs",
    tag = "Jobs",
    params(("Idempotency-Key" = Option<String>, Header, max_length = 255, min_length = 1, pattern = "^[!-~]+$",
        description = "The same key with the same body, byte for byte, is the same job, as long as that is kept",
        example = "homework-7-of-student-12")),
    request_body(content = JobRequest, examples(
        ("Tasks" = (value = json!({"tasks": [{"command": "echo", "args": ["Hello, Faber!"]}], "retry": 1}))),
        ("A judgement" = (value = json!({
            "command": "python3", "args": ["sum.py"], "files": {"sum.py": "print(sum(map(int, input().split())))"},
            "cases": [{"stdin": "1 2\n", "expected": "3\n"}]}))),
    )),
    responses(
        NotAdmitted,
        (status = 202, description = "It will run, whatever happens to the server: the job, or the one that its key stands for.",
            body = Accepted, headers(("Location" = String, description = "Where the job is")),
            example = json!({"id": "000643f1a2b3c4d50123456789abcdef", "state": "queued"})),
        (status = 400, description = "The body cannot be read as tasks or as a judgement; nothing will run.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "Invalid command: command cannot be empty"})),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody,
            example = json!({"error": "Request timeout", "details": "The body did not arrive in time"})),
        (status = 413, description = "The body is too large.", body = ErrorBody,
            example = json!({"error": "Request too large", "details": "Request body exceeds maximum size limit"})),
        (status = 415, description = "The body is not declared as JSON.", body = ErrorBody,
            example = json!({"error": "Unsupported media type", "details": "The Content-Type must be application/json"})),
        (status = 422, description = "The key was sent before, with another body.", body = ErrorBody,
            example = json!({"error": "Idempotency conflict", "details": "this Idempotency-Key was sent before, with another body: it stands for job 000643f1a2b3c4d50123456789abcdef"})),
        (status = 503, description = "There is no memory for the body now, or this server keeps no jobs.", body = ErrorBody,
            example = json!({"error": "Service unavailable", "details": "This server keeps no jobs: its log says why"})),
        (status = 507, description = "There is no room for it, or the client has used up its quota.", body = ErrorBody,
            example = json!({"error": "Insufficient storage", "details": "no room for another job: you have 2 of 2, the ended among them; DELETE /jobs/ID forgets one"})),
    )
)]
pub async fn submit(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let jobs = jobs(&app)?;
    let key = idempotency_key(&headers)?;
    let (body, mut held) = take_body(&app, client, &headers, body).await?;
    // Once as it came, once as it is kept, and once as it is read.
    held.more(2 * body.len() as u64)?;
    let idempotency = key.map(|key| Idempotency { key, body: hash(&body) });
    let shared = app.clone();
    let (request, retry, kind, callback, held) = beside(body.len(), move || {
        let hosts = Hosts(shared.settings().config.jobs.callback_hosts.clone());
        let form::Split { request, retry, kind, callback } = form::split(&body, &hosts)?;
        let (held, output, tasks) = match kind {
            Kind::Execute => {
                let plan = super::execute::plan(&shared, request.clone(), held)?;
                (plan.held, plan.output, plan.tasks)
            }
            Kind::Judge => {
                let plan = super::judge::plan(&shared, request.clone(), held)?;
                (plan.held, plan.output, plan.tasks)
            }
        };
        held.could_have(output_size(output, tasks)).map_err(|lack| no_room(lack, output))?;
        Ok((request, retry, kind, callback, held))
    })
    .await?;
    let submission =
        Submission { owner: owner_of(client, owner), client, kind, retry, idempotency, callback, note: None };
    let job = tokio::task::spawn_blocking(move || {
        let submitted = jobs.submit(submission, &request);
        drop(held);
        submitted
    });
    let Job { id, state, .. } = job.await.map_err(|_| ApiError::Internal)?.map_err(|error| match error {
        SubmitError::OtherBody(_) => ApiError::OtherBody(error.to_string()),
        SubmitError::Store(error) => failed(&error),
        error => ApiError::NoRoom(error.to_string()),
    })?;
    let location = format!("/jobs/{id}");
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(Accepted { id: id.to_string(), state }))
        .into_response())
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document is made of the type alone")]
pub struct Wait {
    /// Answer when the job has ended, or after so long: a number with a unit, 60 s at most.
    #[param(example = "30s", pattern = "^[0-9]{1,4}(s|ms)$")]
    wait: Option<String>,
}

/// A job, with its response once there is one.
#[utoipa::path(
    get,
    operation_id = "get_job",
    path = "/jobs/{id}",
    tag = "Jobs",
    params(("id" = String, Path, pattern = "^[0-9a-f]{32}$", description = "As POST /jobs told it", example = "000643f1a2b3c4d50123456789abcdef"), Wait),
    responses(
        NotAdmitted,
        (status = 200, description = "The job as it is now.", body = JobInfo),
        (status = 400, description = "What is asked cannot be read.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "wait: expected a time such as 30s"})),
        (status = 404, description = "There is no such job, or it is somebody else's.", body = ErrorBody,
            example = json!({"error": "Not found", "details": "You have no job 000643f1a2b3c4d50123456789abcdef"})),
        (status = 503, description = "There is no memory for the response now, or this server keeps no jobs.", body = ErrorBody,
            example = json!({"error": "Service unavailable", "details": "This server keeps no jobs: its log says why"})),
    )
)]
pub async fn get(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let jobs = jobs(&app)?;
    let [wait] = parameters(query.as_deref(), ["wait"])?;
    let wait = wait.as_deref().map(wait_of).transpose()?;
    let (id, owner) = (id_of(&id)?, owner_of(client, owner));
    let find = async || {
        blocking(&jobs, {
            let owner = owner.clone();
            move |jobs| jobs.find(&owner, id)
        })
        .await?
        .ok_or_else(|| no_job(id))
    };
    let mut job = find().await?;
    if let Some(wait) = wait.filter(|_| !job.state.is_over()) {
        let ended = jobs.ended(id);
        job = find().await?;
        if !job.state.is_over() {
            let _ = tokio::time::timeout(wait, ended).await;
            job = find().await?;
        }
    }
    let mut held = app.buffers.hold(client);
    held.more(2 * job.response_size)?;
    let response = match job.response_size {
        0 => None,
        _ => blocking(&jobs, move |jobs| jobs.response(id)).await?,
    };
    let position = jobs.position(&job);
    let json = form::whole(&job, position, response.as_deref())?;
    let body = Body::from(held_bytes(json.into(), held));
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document is made of the type alone")]
pub struct Page {
    /// Older ones than this job: `next` of the page before.
    #[param(example = "000643f1a2b3c4d50123456789abcdef", pattern = "^[0-9a-f]{32}$")]
    cursor: Option<String>,
    /// At most so many, 50 without it.
    #[param(example = 20, minimum = 1, maximum = 50)]
    limit: Option<u8>,
}

/// One's own jobs, newest first, without their responses.
#[utoipa::path(
    get,
    operation_id = "list_jobs",
    path = "/jobs",
    tag = "Jobs",
    params(Page),
    responses(
        NotAdmitted,
        (status = 200, description = "A page of them.", body = JobList),
        (status = 400, description = "What is asked cannot be read.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "limit: expected 1 to 50"})),
        (status = 503, description = "This server keeps no jobs.", body = ErrorBody,
            example = json!({"error": "Service unavailable", "details": "This server keeps no jobs: its log says why"})),
    )
)]
pub async fn list(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    RawQuery(query): RawQuery,
) -> Result<Json<JobList>, ApiError> {
    let jobs = jobs(&app)?;
    let [cursor, limit] = parameters(query.as_deref(), ["cursor", "limit"])?;
    let limit = limit.map_or(Some(PAGE), |limit| limit.parse().ok().filter(|limit| (1..=PAGE).contains(limit)));
    let limit = limit.ok_or_else(|| ApiError::Invalid(format!("limit: expected 1 to {PAGE}")))?;
    let before = cursor.as_deref().map(id_of).transpose()?;
    let owner = owner_of(client, owner);
    let mut found = blocking(&jobs, move |jobs| jobs.list(&owner, before, limit + 1)).await?;
    let next = (found.len() > limit).then(|| found[limit - 1].id.to_string());
    found.truncate(limit);
    let listed = found.iter().map(|job| Summary::new(job, jobs.position(job))).collect();
    Ok(Json(JobList { jobs: listed, next }))
}

/// Cancel a job that is queued or running, forget one that has ended.
#[utoipa::path(
    delete,
    operation_id = "delete_job",
    path = "/jobs/{id}",
    tag = "Jobs",
    params(("id" = String, Path, pattern = "^[0-9a-f]{32}$", description = "As POST /jobs told it", example = "000643f1a2b3c4d50123456789abcdef")),
    responses(
        NotAdmitted,
        (status = 200, description = "It had not ended, and is cancelled: its tasks end.", body = Summary),
        (status = 204, description = "It had ended, and is forgotten."),
        (status = 400, description = "The id is none.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "expected a job's id: 32 hexadecimal digits in lower case"})),
        (status = 404, description = "There is no such job, or it is somebody else's.", body = ErrorBody,
            example = json!({"error": "Not found", "details": "You have no job 000643f1a2b3c4d50123456789abcdef"})),
        (status = 503, description = "This server keeps no jobs.", body = ErrorBody,
            example = json!({"error": "Service unavailable", "details": "This server keeps no jobs: its log says why"})),
    )
)]
pub async fn delete(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let jobs = jobs(&app)?;
    let (id, owner) = (id_of(&id)?, owner_of(client, owner));
    match blocking(&jobs, move |jobs| jobs.remove(&owner, id)).await? {
        Some(Removed::Cancelled(job)) => Ok(Json(Summary::new(&job, None)).into_response()),
        Some(Removed::Forgotten) => Ok(StatusCode::NO_CONTENT.into_response()),
        None => Err(no_job(id)),
    }
}

/// The values of the parameters of these names; there are no others, and each once.
pub(super) fn parameters<const N: usize>(
    query: Option<&str>,
    names: [&str; N],
) -> Result<[Option<String>; N], ApiError> {
    let mut values = [const { None }; N];
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let Some(at) = names.iter().position(|known| *known == name) else {
            return Err(ApiError::Invalid(format!("there is no parameter {name:?} here, but {}", names.join(", "))));
        };
        if values[at].replace(value.into_owned()).is_some() {
            return Err(ApiError::Invalid(format!("{name}: given twice")));
        }
    }
    Ok(values)
}

/// Whose jobs a request's are: a key's, or without one a client address's.
pub(super) fn owner_of(client: Client, owner: String) -> String {
    match client {
        Client::Key(_) => owner,
        Client::Address(address) => format!("address {address}"),
    }
}

pub(super) fn jobs(app: &App) -> Result<Arc<Jobs>, ApiError> {
    let missing = || ApiError::NotHere("This server keeps no jobs: its log says why".into());
    app.jobs.clone().ok_or_else(missing)
}

fn id_of(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|error: crate::jobs::NoId| ApiError::Invalid(error.to_string()))
}

fn no_job(id: JobId) -> ApiError {
    ApiError::Missing(format!("You have no job {id}"))
}

fn wait_of(text: &str) -> Result<Duration, ApiError> {
    let wait = humantime::parse_duration(text).ok();
    // It takes 0 without a unit, too.
    let wait = wait.filter(|_| !text.ends_with(|c: char| c.is_ascii_digit()));
    let wait = wait.ok_or_else(|| ApiError::Invalid("wait: expected a time such as 30s".into()))?;
    Ok(wait.min(LONGEST_WAIT))
}

/// The hash of the key that a request brings.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<[u8; 32]>, ApiError> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let is_plain = key.as_bytes().iter().all(u8::is_ascii_graphic);
    if keys.next().is_some() || !is_plain || !(1..=255).contains(&key.len()) {
        return Err(ApiError::Invalid("Idempotency-Key: expected one of 1 to 255 printable ASCII characters".into()));
    }
    Ok(Some(hash(key.as_bytes())))
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

pub(super) fn failed(error: &StoreError) -> ApiError {
    tracing::error!(error = chain(error), "jobs cannot be used");
    ApiError::Internal
}

/// The disk is waited for beside the front's other work.
pub(super) async fn blocking<T: Send + 'static>(
    jobs: &Arc<Jobs>,
    work: impl FnOnce(&Jobs) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let jobs = jobs.clone();
    let done = tokio::task::spawn_blocking(move || work(&jobs)).await.map_err(|_| ApiError::Internal)?;
    done.map_err(|error| failed(&error))
}
