//! Other systems' endpoints, where the configuration has them: each is a translation (`crate::compat`) around the way of POST /execute.

mod fusion;
mod gojudge;
mod jobe;
mod judge0;
mod kept;
mod librechat;
mod piston;
mod upload;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use axum::{Extension, Json, Router};
use serde_json::json;

use super::buffers::Held;
use super::error::ApiError;
use super::execute::{beside, hold_output, offers, parsed_size, saturated, take_body};
use super::{App, Owner, images};
use crate::callbacks::Method;
use crate::execution::{Ended, Planned};
use crate::image::{Image, Root};
use crate::jobs::Job;
use crate::scheduler::{Client, RETRY_AFTER};
use crate::task::{Offer, TaskRequest, TaskResult};

/// What is switched on.
pub(super) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    let settings = app.settings();
    let compat = &settings.config.compat;
    let mut router = Router::new();
    if compat.sandbox_fusion {
        router = router.merge(fusion::routes(app));
    }
    if compat.piston {
        router = router.merge(piston::routes(app));
    }
    if compat.jobe {
        router = router.merge(jobe::routes(app));
    }
    if compat.librechat {
        router = router.merge(librechat::routes(app));
    }
    if compat.judge0 {
        router = router.merge(judge0::routes(app));
    }
    if compat.go_judge {
        router = router.merge(gojudge::routes(app));
    }
    router
}

/// What somebody's server is told of the end of a job that came by one of these endpoints. None: by none of them.
pub(super) async fn told_of(app: &App, job: &Job, held: &mut Held) -> Result<Option<(Method, Vec<u8>)>, ApiError> {
    match job.note.as_ref().map(|note| &*note.name) {
        Some(judge0::NOTE) => Ok(Some((Method::Put, judge0::told_of(app, job, held).await?))),
        _ => Ok(None),
    }
}

/// A trailing slash is the same route, answered directly: a redirect turns some clients' POST into GET.
fn both(router: Router<Arc<App>>, path: &str, method: MethodRouter<Arc<App>>) -> Router<Arc<App>> {
    router.route(&format!("{path}/"), method.clone()).route(path, method)
}

/// One of Faber's errors with this status and in this field alone; all else stays as it is.
fn told(mut response: Response, status: StatusCode, field: &str) -> Response {
    let Some(ErrorText(text)) = response.extensions_mut().remove() else { return response };
    in_place_of(response, status, Json(json!({ field: text })))
}

/// Another status and body with the headers of an error.
fn in_place_of(mut response: Response, status: StatusCode, body: impl IntoResponse) -> Response {
    let mut headers = std::mem::take(response.headers_mut());
    headers.remove(header::CONTENT_LENGTH);
    (status, headers, body).into_response()
}

/// A key in `X-API-Key` is one in `Authorization`, where there is none.
async fn key_in_its_header(mut request: Request, next: Next) -> Response {
    let headers = request.headers_mut();
    let key = headers.get("x-api-key").and_then(|key| key.to_str().ok());
    let bearer = key.and_then(|key| HeaderValue::from_str(&format!("Bearer {key}")).ok());
    if let Some(bearer) = bearer.filter(|_| !headers.contains_key(header::AUTHORIZATION)) {
        headers.insert(header::AUTHORIZATION, bearer);
    }
    next.run(request).await
}

/// What an error says, beside the body in which Faber itself tells it.
#[derive(Debug, Clone)]
pub(super) struct ErrorText(pub String);

/// Who asks, and how.
type Caller = (Extension<Client>, Extension<Owner>, HeaderMap);

/// A body as it comes, and what `read` makes of it, with what is held for both. What parses as JSON is JSON, whatever it is called.
async fn read_body<T: Send + 'static>(
    app: &App,
    client: Client,
    mut headers: HeaderMap,
    body: Body,
    waits: Waits,
    read: impl FnOnce(&[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<(T, Held), ApiError> {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let (body, mut held) = take_body(app, client, &headers, body).await?;
    let work = match waits {
        Waits::Not => body.len(),
        Waits::ForDisk => usize::MAX,
    };
    let read = move || {
        // What is read of it becomes a task by way of that task's own form.
        held.more(parsed_size(&body) + 2 * body.len() as u64)?;
        Ok((read(&body)?, held))
    };
    beside(work, read).await
}

/// Whether the reading of a body looks at files.
enum Waits {
    Not,
    ForDisk,
}

/// A task, with what it may choose from and what is to be known of it later.
struct Order<K> {
    task: TaskRequest,
    offers: Vec<Offer>,
    known: K,
}

/// Several of them, and which streams are joined.
struct Orders<K> {
    tasks: Vec<TaskRequest>,
    connect: Vec<[String; 2]>,
    offers: Vec<Offer>,
    known: K,
}

/// Runs the task that a body stands for: `read` says which it is, with what is to be known of it later, or why there is none. No
/// result means that Faber could not run it.
async fn run_one<K: Send + 'static, R: Send + 'static>(
    app: &Arc<App>,
    caller: Caller,
    body: Body,
    read: impl FnOnce(&App, &[u8]) -> Result<Result<(TaskRequest, K), R>, ApiError> + Send + 'static,
) -> Result<Result<(K, Option<TaskResult>, Held), R>, ApiError> {
    let order = |app: &App, _: &str, body: &[u8]| {
        let read = read(app, body)?;
        let offers = offers(app)?;
        Ok(read.map(|(task, known)| Order { task, offers, known }))
    };
    run_order(app, caller, body, Waits::Not, order).await
}

/// The same for a task whose languages may be the request's own, and whose reading may ask what the owner has.
async fn run_order<K: Send + 'static, R: Send + 'static>(
    app: &Arc<App>,
    caller: Caller,
    body: Body,
    waits: Waits,
    read: impl FnOnce(&App, &str, &[u8]) -> Result<Result<Order<K>, R>, ApiError> + Send + 'static,
) -> Result<Result<(K, Option<TaskResult>, Held), R>, ApiError> {
    let orders = |app: &App, owner: &str, body: &[u8]| {
        let read = read(app, owner, body)?;
        Ok(read.map(|Order { task, offers, known }| Orders { tasks: vec![task], connect: Vec::new(), offers, known }))
    };
    let ran = run_orders(app, caller, body, waits, orders).await?;
    Ok(ran.map(|(known, results, held)| (known, results.and_then(|results| results.into_iter().next()), held)))
}

/// The same for several tasks, which may be connected.
async fn run_orders<K: Send + 'static, R: Send + 'static>(
    app: &Arc<App>,
    (Extension(client), Extension(Owner(owner)), headers): Caller,
    body: Body,
    waits: Waits,
    read: impl FnOnce(&App, &str, &[u8]) -> Result<Result<Orders<K>, R>, ApiError> + Send + 'static,
) -> Result<Result<(K, Option<Vec<TaskResult>>, Held), R>, ApiError> {
    let (shared, asking) = (app.clone(), owner.clone());
    let plan = move |body: &[u8]| {
        let Orders { tasks, connect, offers, known } = match read(&shared, &asking, body)? {
            Ok(order) => order,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let count = tasks.len();
        let planned = Planned::new(&shared.engine, tasks, &connect, &offers)
            .map_err(|error| ApiError::Invalid(error.to_string()))?;
        Ok(Ok((planned, known, count)))
    };
    let (planned, known, count, mut held) = match read_body(app, client, headers, body, waits, plan).await? {
        (Ok((planned, known, count)), held) => (planned, known, count, held),
        (Err(refusal), _) => return Ok(Err(refusal)),
    };
    hold_output(&mut held, planned.output(), count)?;
    let mut room = |bytes| held.more(bytes).is_ok();
    match app.engine.run(client, &owner, planned, &mut room).await.map_err(saturated)? {
        Ended::Results(results) => Ok(Ok((known, Some(results), held))),
        Ended::Queued => Err(ApiError::Saturated { retry_after: RETRY_AFTER }),
        Ended::Fault => Ok(Ok((known, None, held))),
    }
}

/// As the parameters of a header have it (RFC 8187 section 3.2.1).
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |encoded, byte| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' => {
            encoded + char::from(byte).encode_utf8(&mut [0; 4])
        }
        _ => encoded + &format!("%{byte:02X}"),
    })
}

/// The images of languages that are here, each with the versions of what it is made of.
fn versions(app: &App) -> Result<BTreeMap<String, Vec<String>>, ApiError> {
    let images = images::all(app)?;
    let images = images.iter().filter(|image| image.language.is_some());
    let versions = |image: &Image| match &image.root {
        Root::Machine(_) => Vec::new(),
        Root::Tree(contents) => contents.versions.values().cloned().collect(),
    };
    Ok(images.map(|image| (image.name.to_string(), versions(image))).collect())
}
