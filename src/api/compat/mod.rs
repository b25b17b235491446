//! Other systems' endpoints, where the configuration has them: each is a translation (`crate::compat`) around the way of POST /execute.

mod fusion;
mod piston;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use axum::{Extension, Json, Router};
use serde_json::json;

use super::buffers::Held;
use super::error::ApiError;
use super::execute::{beside, hold_output, offers, parsed_size, saturated, take_body};
use super::{App, Owner, images};
use crate::execution::{Ended, Planned};
use crate::image::{Image, Root};
use crate::scheduler::{Client, RETRY_AFTER};
use crate::task::{TaskRequest, TaskResult};

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
    router
}

/// A trailing slash is the same route, answered directly: a redirect turns some clients' POST into GET.
fn both(router: Router<Arc<App>>, path: &str, method: MethodRouter<Arc<App>>) -> Router<Arc<App>> {
    router.route(&format!("{path}/"), method.clone()).route(path, method)
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
