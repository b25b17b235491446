//! Piston's runtimes, execute, packages and connect, below `/api/v2`.

mod connect;

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;

use super::{Caller, both, run_one, told, versions};
use crate::api::answer::{Texts, json_answer};
use crate::api::error::ApiError;
use crate::api::execute::offers;
use crate::api::{App, admission};
use crate::compat::piston::{self, Executed, Job, Refusal, Wanted};
use crate::task::Text;

pub(super) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    let router = Router::new();
    let router = both(router, "/api/v2/runtimes", get(runtimes));
    let router = both(router, "/api/v2/execute", post(execute));
    let router = both(router, "/api/v2/packages", get(packages).post(install).delete(uninstall));
    let router = both(router, "/api/v2/connect", get(connect::connect));
    let admitted = router.layer(from_fn_with_state(app.clone(), admission::admit));
    admitted.layer(map_response(as_piston_tells))
}

/// Its errors have one field.
async fn as_piston_tells(response: Response) -> Response {
    let status = response.status();
    told(response, status, "message")
}

impl Texts for Executed {
    fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        Executed::each_text(self, each);
    }
}

/// Its names of the images that are here.
fn runtimes_of(app: &App) -> Result<Vec<piston::Runtime>, ApiError> {
    Ok(piston::runtimes(&versions(app)?))
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
