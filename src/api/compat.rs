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
use super::{App, Owner, admission};
use crate::compat::fusion::{self, RunCode};
use crate::execution::{Ended, Planned};
use crate::scheduler::{Client, RETRY_AFTER};
use crate::task::Text;

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
    router
}

/// Its clients ask again after 504, and take 429 and 503 for the end; its errors have one field.
async fn as_fusion_tells(mut response: Response) -> Response {
    let status = match response.status() {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => StatusCode::GATEWAY_TIMEOUT,
        status => status,
    };
    let Some(ErrorText(text)) = response.extensions_mut().remove() else { return response };
    let retry_after = response.headers_mut().remove(header::RETRY_AFTER);
    let mut response = (status, Json(json!({ "detail": text }))).into_response();
    retry_after.and_then(|value| response.headers_mut().insert(header::RETRY_AFTER, value));
    response
}

/// What an error says, beside the body in which Faber itself tells it.
#[derive(Debug, Clone)]
pub(super) struct ErrorText(pub String);

impl Texts for RunCode {
    fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        RunCode::each_text(self, each);
    }
}

async fn run_code(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    mut headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    // What parses as JSON is JSON, whatever it is called.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let (body, held) = take_body(&app, client, &headers, body).await?;
    let shared = app.clone();
    let (planned, mut held) = match beside(body.len(), move || plan(&shared, &body, held)).await? {
        Ok(planned) => planned,
        Err(invalid) => return Ok((StatusCode::UNPROCESSABLE_ENTITY, Json(invalid)).into_response()),
    };
    let mut room = |bytes| held.more(bytes).is_ok();
    let answer = match app.engine.run(client, &owner, planned, &mut room).await.map_err(saturated)? {
        Ended::Results(results) => results.into_iter().next().map(RunCode::of),
        Ended::Queued => return Err(ApiError::Saturated { retry_after: RETRY_AFTER }),
        Ended::Fault => None,
    };
    json_answer(held, answer.unwrap_or_else(|| RunCode::of_a_fault("Faber could not run it")))
}

fn plan(app: &App, body: &Bytes, mut held: Held) -> Result<Result<(Planned, Held), fusion::Invalid>, ApiError> {
    held.more(parsed_size(body))?;
    let task = match fusion::task(body, &app.engine.bounds(), &offers(app)?) {
        Ok(task) => task,
        Err(invalid) => return Ok(Err(invalid)),
    };
    let planned = Planned::new(&app.engine, vec![task], &[], &offers(app)?)
        .map_err(|error| ApiError::Invalid(error.to_string()))?;
    hold_output(&mut held, planned.output(), 1)?;
    Ok(Ok((planned, held)))
}
