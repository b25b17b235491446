//! Judge0's endpoints: a submission is a job, with what was submitted beside it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};

use super::super::answer::held_bytes;
use super::super::buffers::Held;
use super::super::error::ApiError;
use super::super::execute::{Plan, beside, no_room, output_size, parsed_size, plan, take_body};
use super::super::jobs::{blocking, failed, jobs, owner_of};
use super::super::{App, Owner, admission, images};
use super::{Caller, ErrorText, told};
use crate::archive;
use crate::callbacks::Hosts;
use crate::compat::judge0::{
    self, Accepted, BATCH, Fields, Here, ImageHere, NotUtf8, PAGE, Refusal, Stage, Statistics, Submission, Tasks,
    Terms, Told, VERSION,
};
use crate::image::{Image, Root};
use crate::jobs::{Callback, Job, JobId, Jobs, Kind, Note, StoreError, SubmitError};
use crate::scheduler::Client;

const PREFIX: &str = "/judge0";
/// The note beside a job that is a submission.
pub(super) const NOTE: &str = "judge0";
const TOKEN: &str = "x-auth-token";
/// Of the index.
const LONGEST_PAGE: usize = 100;
/// Jobs that are looked at together, and what one takes in memory at most about.
const AT_ONCE: usize = 500;
const JOB_BYTES: u64 = 512;
/// Who waits for a submission's end waits no longer, as there.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

pub(super) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    let paths: [(&str, MethodRouter<Arc<App>>); 17] = [
        ("/submissions", post(create).get(index)),
        ("/submissions/batch", post(create_batch).get(show_batch)),
        ("/submissions/{token}", get(show).delete(delete)),
        ("/languages", get(languages)),
        ("/languages/all", get(all_languages)),
        ("/languages/{id}", get(language)),
        ("/statuses", get(async || Json(judge0::statuses()))),
        ("/about", get(async || Json(judge0::about()))),
        ("/version", get(async || VERSION)),
        (
            "/isolate",
            get(async || {
                concat!("Faber ", env!("CARGO_PKG_VERSION"), ", which runs OCI containers in place of isolate\n")
            }),
        ),
        ("/license", get(async || "Faber: Apache License, Version 2.0, https://www.apache.org/licenses/LICENSE-2.0\n")),
        ("/config_info", get(config_info)),
        ("/system_info", get(system_info)),
        ("/statistics", get(statistics)),
        ("/workers", get(workers)),
        // Who is let in at all is whoever he says.
        ("/authenticate", post(async || StatusCode::OK)),
        ("/authorize", post(async || StatusCode::OK)),
    ];
    let mut router = Router::new();
    for (path, method) in paths {
        let path = format!("{PREFIX}{path}");
        router = router.route(&format!("{path}/"), method.clone()).route(&path, method);
    }
    let admitted = router.layer(from_fn_with_state(app.clone(), admission::admit)).layer(from_fn(token_is_key));
    let home = || get(async || StatusCode::OK);
    let open = Router::new().route(PREFIX, home()).route(&format!("{PREFIX}/"), home());
    admitted.merge(open).layer(map_response(as_judge0_tells))
}

/// Its token, in a header or in the query, is a key here.
async fn token_is_key(mut request: Request, next: Next) -> Response {
    if !request.headers().contains_key(header::AUTHORIZATION) {
        let told = request.headers().get(TOKEN).and_then(|token| token.to_str().ok()).map(str::to_owned);
        let token = told.or_else(|| {
            let query = request.uri().query().unwrap_or_default();
            let mut named =
                form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name.eq_ignore_ascii_case(TOKEN));
            named.next().map(|(_, token)| token.into_owned())
        });
        let bearer = token.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok());
        if let Some(mut bearer) = bearer {
            bearer.set_sensitive(true);
            request.headers_mut().insert(header::AUTHORIZATION, bearer);
        }
    }
    next.run(request).await
}

/// Its errors have one field; who may not gets none.
async fn as_judge0_tells(mut response: Response) -> Response {
    let is_error = response.extensions().get::<ErrorText>().is_some();
    match response.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if is_error => {
            let mut headers = std::mem::take(response.headers_mut());
            headers.remove(header::CONTENT_LENGTH);
            headers.remove(header::CONTENT_TYPE);
            (StatusCode::UNAUTHORIZED, headers).into_response()
        }
        status => told(response, status, "error"),
    }
}

/// What a request's query says.
struct Asked {
    /// None where it does not say.
    base64: Option<bool>,
    wait: bool,
    fields: Option<String>,
    tokens: Option<String>,
    page: Option<String>,
    per_page: Option<String>,
}

impl Asked {
    fn of(query: Option<&str>) -> Self {
        let query = query.unwrap_or_default();
        let value = |wanted: &str| {
            let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == wanted);
            values.next().map(|(_, value)| value.into_owned())
        };
        Self {
            base64: value("base64_encoded").map(|value| value != "false"),
            wait: value("wait").is_some_and(|value| value == "true"),
            fields: value("fields"),
            tokens: value("tokens"),
            page: value("page"),
            per_page: value("per_page"),
        }
    }

    fn is_base64(&self) -> bool {
        self.base64.unwrap_or(false)
    }

    fn fields(&self) -> Result<Fields, ApiError> {
        Fields::parse(self.fields.as_deref(), self.is_base64()).map_err(ApiError::Invalid)
    }
}

/// The languages that are here now.
fn here(app: &App) -> Result<Vec<Here>, ApiError> {
    let here = |image: &Image| {
        let mut packages = std::collections::BTreeMap::new();
        if let Root::Tree(contents) = &image.root {
            packages.extend(contents.packages.clone());
            packages.extend(contents.versions.clone());
        }
        ImageHere { offer: image.offer(), packages }
    };
    let images = images::all(app)?;
    Ok(judge0::here(&images.iter().filter(|image| image.language.is_some()).map(here).collect::<Vec<_>>()))
}

/// Does something with what this server has and allows.
fn with_terms<T>(app: &App, work: impl FnOnce(&Terms<'_>) -> T) -> Result<T, ApiError> {
    let languages = here(app)?;
    let settings = app.settings();
    let archives = &settings.config.archives;
    let archives = archive::Bounds { entries: archives.entries as usize, bytes: archives.total.0 };
    let hosts = Hosts(settings.config.jobs.callback_hosts.clone());
    Ok(work(&Terms { bounds: &app.engine.bounds(), languages: &languages, archives, hosts: &hosts }))
}

async fn languages(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    Ok(Json(here(&app)?.iter().map(Here::brief).collect()))
}

async fn all_languages(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    Ok(Json(here(&app)?.iter().map(Here::with_archived).collect()))
}

async fn language(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let found = here(&app)?.into_iter().find(|here| here.id.to_string() == id);
    found.map(|here| Json(here.whole())).ok_or_else(|| ApiError::Missing("there is no such language".into()))
}

async fn config_info(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let crate::config::Jobs { count, callback_attempts, .. } = app.settings().config.jobs;
    Ok(Json(with_terms(&app, |terms| judge0::config_info(terms, count, callback_attempts))?))
}

/// What tasks may have of the machine.
async fn system_info(State(app): State<Arc<App>>) -> Json<Value> {
    let config = &app.settings().config;
    Json(json!({
        "Architecture": std::env::consts::ARCH, "CPU(s)": config.concurrency().to_string(),
        "Mem": crate::task::Bytes(config.memory_budget()).to_string(),
    }))
}

async fn workers(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let (waiting, running) = jobs(&app)?.load();
    let places = app.settings().config.concurrency();
    let working = running.min(places);
    Ok(Json(json!([{
        "queue": VERSION, "size": waiting + (running - working), "available": places, "idle": places - working,
        "working": working, "paused": 0, "failed": 0,
    }])))
}

/// What is to become a job.
struct Taken {
    note: Note,
    callback: Option<Callback>,
    request: Vec<u8>,
}

/// A submission with its tasks, or what is wrong with it.
type Read = Result<Accepted, Refusal>;

/// Reads submissions, and finds room for them: `read` says which a body has.
async fn take(
    app: &Arc<App>,
    client: Client,
    mut headers: HeaderMap,
    body: Body,
    read: impl FnOnce(&[u8], &Terms<'_>) -> Result<Vec<Read>, String> + Send + 'static,
) -> Result<(Vec<Result<Taken, Refusal>>, Held), ApiError> {
    // What parses as JSON is JSON, whatever it is called.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let (body, mut held) = take_body(app, client, &headers, body).await?;
    let shared = app.clone();
    beside(body.len(), move || {
        // As values, as bytes, as what is kept and as what is run.
        held.more(parsed_size(&body) + 5 * body.len() as u64)?;
        let submissions = with_terms(&shared, |terms| read(&body, terms))?.map_err(ApiError::Invalid)?;
        let mut taken = Vec::new();
        for submission in submissions {
            taken.push(match submission {
                Ok((submission, tasks)) => prepared(&shared, &mut held, client, &submission, tasks)?,
                Err(refusal) => Err(refusal),
            });
        }
        Ok((taken, held))
    })
    .await
}

/// Looks whether its tasks could be run.
fn prepared(
    app: &App,
    held: &mut Held,
    client: Client,
    submission: &Submission,
    tasks: Tasks,
) -> Result<Result<Taken, Refusal>, ApiError> {
    held.more(submission.body_size())?;
    let request = Bytes::from(tasks.body().map_err(|_| ApiError::Internal)?);
    // For as long as this takes.
    let mut own = app.buffers.hold(client);
    own.more(request.len() as u64)?;
    let Plan { planned, held: own, output, tasks } = plan(app, request.clone(), own)?;
    if let Some(refusal) = planned.refusal() {
        return Ok(Err(Refusal::of_all(refusal.to_owned())));
    }
    own.could_have(output_size(output, tasks)).map_err(|lack| no_room(lack, output))?;
    let bytes = serde_json::to_vec(submission).map_err(|_| ApiError::Internal)?;
    let callback = submission.callback_url.clone().map(|url| Callback::new(url, None));
    Ok(Ok(Taken { note: Note { name: NOTE, bytes }, callback, request: request.into() }))
}

/// Makes jobs of them, in order, each on the disk when this returns. When there is no room for the first, there is none for all.
async fn submit(
    app: &App,
    client: Client,
    owner: &str,
    taken: Vec<Result<Taken, Refusal>>,
    held: Held,
) -> Result<Vec<Result<Job, Value>>, ApiError> {
    let (jobs, owner) = (jobs(app)?, owner.to_owned());
    let submitted = tokio::task::spawn_blocking(move || {
        let mut submitted = Vec::new();
        for one in taken {
            submitted.push(match one {
                Err(refusal) => Err(json!(refusal)),
                Ok(taken) => match submit_one(&jobs, client, &owner, taken) {
                    Ok(job) => Ok(job),
                    Err(error) if submitted.iter().any(Result::is_ok) => Err(json!({ "error": error.to_string() })),
                    Err(error) => return Err(error),
                },
            });
        }
        drop(held);
        Ok(submitted)
    });
    submitted.await.map_err(|_| ApiError::Internal)?
}

fn submit_one(jobs: &Jobs, client: Client, owner: &str, taken: Taken) -> Result<Job, ApiError> {
    let Taken { note, callback, request } = taken;
    let submission = crate::jobs::Submission {
        owner: owner.to_owned(),
        client,
        kind: Kind::Execute,
        retry: 0,
        idempotency: None,
        callback,
        note: Some(note),
    };
    jobs.submit(submission, &request).map_err(|error| match error {
        SubmitError::Store(error) => failed(&error),
        error => ApiError::NotHere(format!("queue is full: {error}")),
    })
}

/// Whose submissions a request's are.
fn whose(client: Extension<Client>, owner: Extension<Owner>) -> (Client, String) {
    let (Extension(client), Extension(Owner(owner))) = (client, owner);
    (client, owner_of(client, owner))
}

async fn create(
    State(app): State<Arc<App>>,
    (client, owner, headers): Caller,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Response, ApiError> {
    let asked = Asked::of(query.as_deref());
    let (fields, is_base64) = (asked.fields()?, asked.is_base64());
    let (client, owner) = whose(client, owner);
    let read = move |body: &[u8], terms: &Terms<'_>| Ok(vec![judge0::one(body, is_base64, terms)?]);
    let (taken, held) = take(&app, client, headers, body, read).await?;
    let job = match submit(&app, client, &owner, taken, held).await?.pop() {
        Some(Ok(job)) => job,
        Some(Err(refusal)) => return Ok((StatusCode::UNPROCESSABLE_ENTITY, Json(refusal)).into_response()),
        None => return Err(ApiError::Internal),
    };
    let token = judge0::token(&job.id.to_string());
    if !asked.wait {
        return Ok((StatusCode::CREATED, Json(json!({ "token": token }))).into_response());
    }
    let job = ended(&app, &owner, job).await?;
    let mut held = app.buffers.hold(client);
    match tell(&app, &job, &mut held).await?.json(&fields) {
        Ok(told) => answer(StatusCode::CREATED, &told.into(), held),
        Err(error) => {
            let told = json!({ "error": error.to_string(), "token": token });
            Ok((StatusCode::CREATED, Json(told)).into_response())
        }
    }
}

async fn create_batch(
    State(app): State<Arc<App>>,
    (client, owner, headers): Caller,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Response, ApiError> {
    let is_base64 = Asked::of(query.as_deref()).is_base64();
    let (client, owner) = whose(client, owner);
    let read = move |body: &[u8], terms: &Terms<'_>| judge0::batch(body, is_base64, terms);
    let (taken, held) = take(&app, client, headers, body, read).await?;
    let submitted = submit(&app, client, &owner, taken, held).await?;
    let status = match submitted.iter().any(Result::is_ok) {
        true => StatusCode::CREATED,
        false => StatusCode::UNPROCESSABLE_ENTITY,
    };
    let told = submitted.into_iter().map(|one| match one {
        Ok(job) => json!({ "token": judge0::token(&job.id.to_string()) }),
        Err(refusal) => refusal,
    });
    Ok((status, Json(Value::from_iter(told))).into_response())
}

/// The submission at its end, or as it is when Faber stops.
async fn ended(app: &App, owner: &str, job: Job) -> Result<Job, ApiError> {
    let jobs = jobs(app)?;
    let ended = jobs.ended(job.id);
    let now = find(&jobs, owner, job.id).await?.unwrap_or(job);
    if now.state.is_over() {
        return Ok(now);
    }
    let _ = tokio::time::timeout(LONGEST_WAIT, ended).await;
    Ok(find(&jobs, owner, now.id).await?.unwrap_or(now))
}

/// A job that is a submission of this owner's.
async fn find(jobs: &Arc<Jobs>, owner: &str, id: JobId) -> Result<Option<Job>, ApiError> {
    let owner = owner.to_owned();
    let found = blocking(jobs, move |jobs| jobs.find(&owner, id)).await?;
    Ok(found.filter(is_submission))
}

fn is_submission(job: &Job) -> bool {
    job.note.as_ref().is_some_and(|note| note.name == NOTE)
}

async fn find_token(jobs: &Arc<Jobs>, owner: &str, token: &str) -> Result<Option<Job>, ApiError> {
    match judge0::id_of(token).and_then(|id| id.parse().ok()) {
        Some(id) => find(jobs, owner, id).await,
        None => Ok(None),
    }
}

fn no_such() -> ApiError {
    ApiError::Missing("there is no such submission, or it is somebody else's".into())
}

/// What is known of a submission, with room for it: as it is kept, as what it says, and as it is told.
async fn tell(app: &App, job: &Job, held: &mut Held) -> Result<Told, ApiError> {
    held.more(4 * (job.response_size + job.note.as_ref().map_or(0, |note| note.size)))?;
    let job = job.clone();
    blocking(&jobs(app)?, move |jobs| tell_now(jobs, &job)).await?.ok_or(ApiError::Internal)
}

/// None when its note cannot be read.
/// What its client's server is told at its end: the usual fields, their texts as base64.
pub(super) async fn told_of(app: &App, job: &Job, held: &mut Held) -> Result<Vec<u8>, ApiError> {
    let fields = Fields::parse(None, true).map_err(ApiError::Invalid)?;
    // Base64 has no text that could not be told.
    let told = tell(app, job, held).await?.json(&fields).map_err(|_| ApiError::Internal)?;
    serde_json::to_vec(&told).map_err(|_| ApiError::Internal)
}

fn tell_now(jobs: &Jobs, job: &Job) -> Result<Option<Told>, StoreError> {
    let note = jobs.note(job.id)?.unwrap_or_default();
    let response = match job.response_size {
        0 => None,
        _ => jobs.response(job.id)?,
    };
    let stage = match job.state {
        crate::jobs::State::Queued => Stage::Queued,
        crate::jobs::State::Running => Stage::Running,
        crate::jobs::State::Done => Stage::Done,
        crate::jobs::State::Cancelled => Stage::Cancelled,
        crate::jobs::State::Lost => Stage::Lost,
    };
    let times = (job.created, job.started, job.ended);
    let told = Told::new(&job.id.to_string(), stage, times, &note, response.as_deref());
    Ok(told
        .inspect_err(|error| tracing::error!(job = %job.id, %error, "what is kept of a submission cannot be read"))
        .ok())
}

/// JSON that keeps what is held until it is written.
fn answer(status: StatusCode, told: &Value, held: Held) -> Result<Response, ApiError> {
    let bytes = serde_json::to_vec(told).map_err(|_| ApiError::Internal)?;
    let body = Body::from(held_bytes(bytes.into(), held));
    Ok((status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}

async fn show(
    State(app): State<Arc<App>>,
    (client, owner, _): Caller,
    Path(token): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let fields = Asked::of(query.as_deref()).fields()?;
    let (client, owner) = whose(client, owner);
    let job = find_token(&jobs(&app)?, &owner, &token).await?.ok_or_else(no_such)?;
    let mut held = app.buffers.hold(client);
    let told = tell(&app, &job, &mut held).await?.json(&fields).map_err(not_utf8)?;
    answer(StatusCode::OK, &told.into(), held)
}

fn not_utf8(error: NotUtf8) -> ApiError {
    ApiError::Invalid(error.to_string())
}

/// One of many.
fn some_not_utf8(error: NotUtf8) -> ApiError {
    ApiError::Invalid(error.to_string().replace("this submission", "one or more submissions"))
}

async fn show_batch(
    State(app): State<Arc<App>>,
    (client, owner, headers): Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let asked = Asked::of(query.as_deref());
    let fields = asked.fields()?;
    let told = headers.get("tokens").and_then(|tokens| tokens.to_str().ok());
    let tokens = told.or(asked.tokens.as_deref()).unwrap_or_default().trim();
    let tokens: Vec<&str> = tokens.split(',').filter(|token| !token.is_empty()).take(BATCH + 1).collect();
    judge0::check_count(tokens.len()).map_err(ApiError::Invalid)?;
    let (client, owner) = whose(client, owner);
    let (jobs, mut held, mut submissions) = (jobs(&app)?, app.buffers.hold(client), Vec::new());
    for token in tokens {
        submissions.push(match find_token(&jobs, &owner, token).await? {
            Some(job) => tell(&app, &job, &mut held).await?.json(&fields).map_err(some_not_utf8)?.into(),
            None => Value::Null,
        });
    }
    answer(StatusCode::OK, &json!({ "submissions": submissions }), held)
}

/// All of this owner's submissions, newest first.
async fn all(app: &App, owner: &str, held: &mut Held) -> Result<Vec<Job>, ApiError> {
    let (jobs, mut all, mut before) = (jobs(app)?, Vec::new(), None);
    loop {
        held.more(AT_ONCE as u64 * JOB_BYTES)?;
        let owner = owner.to_owned();
        let some = blocking(&jobs, move |jobs| jobs.list(&owner, before, AT_ONCE)).await?;
        before = some.last().map(|job| job.id);
        let is_last = some.len() < AT_ONCE;
        all.extend(some.into_iter().filter(is_submission));
        if is_last {
            return Ok(all);
        }
    }
}

async fn index(
    State(app): State<Arc<App>>,
    (client, owner, _): Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let asked = Asked::of(query.as_deref());
    let fields = asked.fields()?;
    let number =
        |name: &str, value: &Option<String>, default: usize, most: usize| match value {
            None => Ok(default),
            Some(text) => text.parse().ok().filter(|number| (1..=most).contains(number)).ok_or_else(|| {
                ApiError::Invalid(format!("invalid {name}: {}", text.chars().take(20).collect::<String>()))
            }),
        };
    let page = number("page", &asked.page, 1, usize::MAX)?;
    let per_page = number("per_page", &asked.per_page, PAGE, LONGEST_PAGE)?;
    let (client, owner) = whose(client, owner);
    let mut held = app.buffers.hold(client);
    let all = all(&app, &owner, &mut held).await?;
    let mut submissions = Vec::new();
    for job in all.iter().skip((page - 1).saturating_mul(per_page)).take(per_page) {
        submissions.push(Value::from(tell(&app, job, &mut held).await?.json(&fields).map_err(some_not_utf8)?));
    }
    let pages = all.len().div_ceil(per_page).max(1);
    let meta = json!({
        "current_page": page, "next_page": (page < pages).then_some(page + 1),
        "prev_page": (page > 1).then(|| page - 1), "total_pages": pages, "total_count": all.len(),
    });
    answer(StatusCode::OK, &json!({ "submissions": submissions, "meta": meta }), held)
}

async fn delete(
    State(app): State<Arc<App>>,
    (client, owner, _): Caller,
    Path(token): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let fields = Asked::of(query.as_deref()).fields()?.in_base64();
    let (client, owner) = whose(client, owner);
    let jobs = jobs(&app)?;
    let job = find_token(&jobs, &owner, &token).await?.ok_or_else(no_such)?;
    let mut held = app.buffers.hold(client);
    let told = tell(&app, &job, &mut held).await?;
    if !job.state.is_over() {
        let (id, name) = told.status();
        return Err(ApiError::Invalid(format!("submission cannot be deleted because its status is {id} ({name})")));
    }
    let told = told.json(&fields).map_err(not_utf8)?;
    blocking(&jobs, move |jobs| jobs.remove(&owner, job.id)).await?.ok_or_else(no_such)?;
    answer(StatusCode::OK, &told.into(), held)
}

/// Of one's own submissions, counted now.
async fn statistics(State(app): State<Arc<App>>, (client, owner, _): Caller) -> Result<Response, ApiError> {
    let (client, owner) = whose(client, owner);
    let mut held = app.buffers.hold(client);
    let mut statistics = Statistics::default();
    for job in all(&app, &owner, &mut held).await? {
        let mut own = app.buffers.hold(client);
        statistics.add(&tell(&app, &job, &mut own).await?, job.created, job.size());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    answer(StatusCode::OK, &statistics.json(now.as_millis() as u64), held)
}
