//! SandboxFusion's `POST /run_code` and `GET /v1/ping`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};

use super::{Caller, both, run_one, told};
use crate::api::answer::{Texts, json_answer};
use crate::api::error::ApiError;
use crate::api::execute::offers;
use crate::api::{App, admission};
use crate::compat::fusion::{self, RunCode};
use crate::task::Text;

pub(super) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    let admitted = both(Router::new(), "/run_code", post(run_code));
    let admitted = admitted.layer(from_fn_with_state(app.clone(), admission::admit));
    let open = both(Router::new(), "/v1/ping", get(|| async { Json("pong") }));
    admitted.merge(open).layer(map_response(as_fusion_tells))
}

/// Its errors have one field, and its clients ask again after 504, while they take 429 and 503 for the end.
async fn as_fusion_tells(response: Response) -> Response {
    let status = match response.status() {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => StatusCode::GATEWAY_TIMEOUT,
        status => status,
    };
    told(response, status, "detail")
}

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
