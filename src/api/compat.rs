//! Other systems' endpoints, where the configuration has them: each is a translation (`crate::compat`) around the way of POST /execute.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::json;

use super::answer::{Texts, json_answer};
use super::buffers::Held;
use super::error::ApiError;
use super::execute::{beside, hold_output, offers, parsed_size, saturated, take_body};
use super::{App, Owner, admission, images};
use crate::compat::fusion::{self, RunCode};
use crate::compat::piston::{self, Executed, Job, Refusal, Wanted};
use crate::execution::{Ended, Planned};
use crate::image::{Image, Root};
use crate::scheduler::{Client, RETRY_AFTER};
use crate::task::{TaskRequest, TaskResult, Text};

/// What is switched on. A trailing slash is the same route, answered directly: a redirect turns some clients' POST into GET.
pub(super) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    let mut router = Router::new();
    if app.settings().config.compat.sandbox_fusion {
        let admitted = Router::new()
            .route("/run_code", post(run_code))
            .route("/run_code/", post(run_code))
            .layer(from_fn_with_state(app.clone(), admission::admit));
        let pong = || async { Json("pong") };
        let open = Router::new().route("/v1/ping", get(pong)).route("/v1/ping/", get(pong));
        router = router.merge(admitted.merge(open).layer(map_response(as_fusion_tells)));
    }
    if app.settings().config.compat.piston {
        let mut piston = Router::new();
        let paths = [
            ("runtimes", get(runtimes)),
            ("execute", post(execute)),
            ("packages", get(packages).post(install).delete(uninstall)),
        ];
        for (path, method) in paths {
            let path = format!("/api/v2/{path}");
            piston = piston.route(&format!("{path}/"), method.clone()).route(&path, method);
        }
        let admitted = piston.layer(from_fn_with_state(app.clone(), admission::admit));
        router = router.merge(admitted.layer(map_response(as_piston_tells)));
    }
    router
}

/// Piston's errors have one field.
async fn as_piston_tells(response: Response) -> Response {
    let status = response.status();
    told(response, status, "message")
}

/// Fusion's have another, and its clients ask again after 504, while they take 429 and 503 for the end.
async fn as_fusion_tells(response: Response) -> Response {
    let status = match response.status() {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => StatusCode::GATEWAY_TIMEOUT,
        status => status,
    };
    told(response, status, "detail")
}

/// One of Faber's errors with this status and in this field alone; all else stays as it is.
fn told(mut response: Response, status: StatusCode, field: &str) -> Response {
    let Some(ErrorText(text)) = response.extensions_mut().remove() else { return response };
    let mut headers = std::mem::take(response.headers_mut());
    headers.remove(header::CONTENT_LENGTH);
    (status, headers, Json(json!({ field: text }))).into_response()
}

/// What an error says, beside the body in which Faber itself tells it.
#[derive(Debug, Clone)]
pub(super) struct ErrorText(pub String);

impl Texts for RunCode {
    fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        RunCode::each_text(self, each);
    }
}

async fn run_code(State(app): State<Arc<App>>, caller: Caller, body: Body) -> Result<Response, ApiError> {
    let read = |app: &App, body: &[u8]| {
        let offers = offers(app)?;
        Ok(fusion::task(body, &app.engine.bounds(), &offers).map(|task| (task, ())))
    };
    match run_one(&app, caller, body, read).await? {
        Ok(((), result, held)) => {
            json_answer(held, result.map_or_else(|| RunCode::of_a_fault("Faber could not run it"), RunCode::of))
        }
        Err(invalid) => Ok((StatusCode::UNPROCESSABLE_ENTITY, Json(invalid)).into_response()),
    }
}

/// Who asks, and how.
type Caller = (Extension<Client>, Extension<Owner>, HeaderMap);

/// Runs the task that a body stands for: `read` says which it is, with what is to be known of it later, or why there is none. No
/// result means that Faber could not run it.
async fn run_one<K: Send + 'static, R: Send + 'static>(
    app: &Arc<App>,
    (Extension(client), Extension(Owner(owner)), mut headers): Caller,
    body: Body,
    read: impl FnOnce(&App, &[u8]) -> Result<Result<(TaskRequest, K), R>, ApiError> + Send + 'static,
) -> Result<Result<(K, Option<TaskResult>, Held), R>, ApiError> {
    // What parses as JSON is JSON, whatever it is called.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let (body, mut held) = take_body(app, client, &headers, body).await?;
    let shared = app.clone();
    let planned = beside(body.len(), move || {
        // What is read of it becomes a task by way of that task's own form.
        held.more(parsed_size(&body) + 2 * body.len() as u64)?;
        let (task, known) = match read(&shared, &body)? {
            Ok(read) => read,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let planned = Planned::new(&shared.engine, vec![task], &[], &offers(&shared)?)
            .map_err(|error| ApiError::Invalid(error.to_string()))?;
        hold_output(&mut held, planned.output(), 1)?;
        Ok(Ok((planned, known, held)))
    });
    let (planned, known, mut held) = match planned.await? {
        Ok(planned) => planned,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let mut room = |bytes| held.more(bytes).is_ok();
    match app.engine.run(client, &owner, planned, &mut room).await.map_err(saturated)? {
        Ended::Results(results) => Ok(Ok((known, results.into_iter().next(), held))),
        Ended::Queued => Err(ApiError::Saturated { retry_after: RETRY_AFTER }),
        Ended::Fault => Ok(Ok((known, None, held))),
    }
}

impl Texts for Executed {
    fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        Executed::each_text(self, each);
    }
}

/// Piston's names of the images that are here.
fn runtimes_of(app: &App) -> Result<Vec<piston::Runtime>, ApiError> {
    let images = images::all(app)?;
    let images = images.iter().filter(|image| image.language.is_some());
    let versions = |image: &Image| match &image.root {
        Root::Machine(_) => Vec::new(),
        Root::Tree(contents) => contents.versions.values().cloned().collect(),
    };
    Ok(piston::runtimes(&images.map(|image| (image.name.to_string(), versions(image))).collect()))
}

async fn runtimes(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    Ok(Json(runtimes_of(&app)?).into_response())
}

async fn packages(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    Ok(Json(piston::packages(&runtimes_of(&app)?)).into_response())
}

/// There is nothing to install: images are the operator's.
async fn install(State(app): State<Arc<App>>, body: Bytes) -> Result<Response, ApiError> {
    package(&app, &body, "Already installed")
}

async fn uninstall(State(app): State<Arc<App>>, body: Bytes) -> Result<Response, ApiError> {
    package(&app, &body, "Packages are images here, which the operator removes: faber image rm")
}

fn package(app: &App, body: &[u8], refusal: &str) -> Result<Response, ApiError> {
    let wanted = serde_json::from_slice::<piston::Wanted>(body);
    let Wanted { language, version } = wanted.map_err(|error| ApiError::Invalid(error.to_string()))?;
    let (status, message) = match piston::has(&runtimes_of(app)?, &language, &version) {
        true => (StatusCode::INTERNAL_SERVER_ERROR, refusal.to_owned()),
        false => (StatusCode::NOT_FOUND, format!("Requested package {language}-{version} does not exist")),
    };
    Ok((status, Json(json!({ "message": message }))).into_response())
}

async fn execute(State(app): State<Arc<App>>, caller: Caller, body: Body) -> Result<Response, ApiError> {
    let read = |app: &App, body: &[u8]| {
        let (runtimes, nearest) = (runtimes_of(app)?, app.settings().config.compat.nearest_version);
        Ok(piston::job(body, &runtimes, nearest, &app.engine.bounds(), &offers(app)?).map(Job::split))
    };
    match run_one(&app, caller, body, read).await? {
        Ok((known, Some(result), held)) => json_answer(held, Executed::of(known, result)),
        Ok((_, None, _)) => Err(ApiError::Internal),
        Err(Refusal::Message(message)) => {
            Ok((StatusCode::BAD_REQUEST, Json(json!({ "message": message }))).into_response())
        }
        Err(Refusal::Internal) => Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response()),
    }
}
