//! POST /mcp: the Model Context Protocol over streamable HTTP. Each request stands alone, in both revisions, and is answered with JSON.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{self, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::task::block_in_place;

use super::answer::held_bytes;
use super::buffers::Held;
use super::error::ApiError;
use super::execute::{LONG_WORK, hold_output, offers, parsed_size, saturated, take_body};
use super::{App, Owner, admission, cors, images};
use crate::execution::{Ended, Planned};
use crate::image::Image;
use crate::judge::{JudgeRequest, JudgeResponse, Judged, Judgement};
use crate::mcp::{Host, Refusal, Server};
use crate::scheduler::{Client, RETRY_AFTER};
use crate::task::{Bounds, ImageName, TaskRequest, TaskResult};

/// What an answer takes beside its files: each stream as a value, in the text and in JSON, where a byte may be six.
const ANSWER_BYTES: u64 = 3 << 20;
/// How often a file is in memory: as it was taken, as base64 or a string, and in JSON.
const COPIES: u64 = 8;

pub(super) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    if !app.settings().config.mcp.enabled {
        return Router::new();
    }
    let admitted = Router::new().route("/mcp", post(mcp));
    let admitted = admitted.layer(from_fn_with_state(app.clone(), admission::admit));
    admitted.layer(from_fn_with_state(app.clone(), known_origin))
}

async fn known_origin(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match cors::check_origin(&app, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn mcp(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let (body, mut held) = take_body(&app, client, &parts.headers, body).await?;
    // The protocol's reader makes values of it, and they become a task.
    held.more(3 * parsed_size(&body))?;
    let size = body.len();
    let caller = Arc::new(Caller { app, client, owner, held: Mutex::new(Some(held)) });
    let mut answering = pin!(answer(caller.clone(), parts, body));
    // The body is read when this is first polled: what is long is read beside the other work of this thread.
    let mut is_long = size > LONG_WORK;
    let answer = poll_fn(|cx| match std::mem::take(&mut is_long) {
        true => block_in_place(|| answering.as_mut().poll(cx)),
        false => answering.as_mut().poll(cx),
    })
    .await;
    let (parts, body) = answer.into_parts();
    let Ok::<_, Infallible>(body) = body.collect().await;
    let body = match caller.take() {
        Some(held) => held_bytes(body.to_bytes(), held),
        None => body.to_bytes(),
    };
    Ok(Response::from_parts(parts, Body::from(body)))
}

/// The protocol's own answer. Dropping the future, as happens when the client is gone, ends what runs for it.
async fn answer(caller: Arc<Caller>, parts: Parts, body: Bytes) -> http::Response<BoxBody<Bytes, Infallible>> {
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(&body) {
        return not_json(&error);
    }
    let server = Server::new(caller);
    // Hosts are whatever names this server has: keys and origins say who may ask.
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        .disable_allowed_hosts()
        .with_max_request_body_bytes(usize::MAX);
    let service =
        StreamableHttpService::new(move || Ok(server.clone()), Arc::new(NeverSessionManager::default()), config);
    service.handle(http::Request::from_parts(parts, Full::new(body))).await
}

/// JSON-RPC 2.0 section 5.1.
fn not_json(error: &serde_json::Error) -> http::Response<BoxBody<Bytes, Infallible>> {
    let error = json!({ "code": -32700, "message": format!("Parse error: {error}") });
    let body = json!({ "jsonrpc": "2.0", "id": null, "error": error }).to_string();
    let mut response = http::Response::new(Full::from(body).boxed());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Who asks, with what is held for the request.
struct Caller {
    app: Arc<App>,
    client: Client,
    owner: String,
    /// None while it is used.
    held: Mutex<Option<Held>>,
}

impl Caller {
    fn take(&self) -> Option<Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn give_back(&self, held: Held) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    async fn run_task(&self, task: TaskRequest, held: &mut Held) -> Result<TaskResult, ApiError> {
        let engine = &self.app.engine;
        let planned = Planned::new(engine, vec![task], &[], &offers(&self.app)?)
            .map_err(|error| ApiError::Invalid(error.to_string()))?;
        held.more(ANSWER_BYTES)?;
        hold_output(held, planned.output(), 1)?;
        let mut room = |bytes: u64| held.more(COPIES * bytes).is_ok();
        match engine.run(self.client, &self.owner, planned, &mut room).await.map_err(saturated)? {
            Ended::Results(results) => results.into_iter().next().ok_or(ApiError::Internal),
            Ended::Queued => Err(ApiError::Saturated { retry_after: RETRY_AFTER }),
            Ended::Fault => Err(ApiError::Internal),
        }
    }

    async fn judge_program(&self, request: JudgeRequest, held: &mut Held) -> Result<JudgeResponse, ApiError> {
        let engine = &self.app.engine;
        let count = request.cases.len();
        let judgement = Judgement::parse(engine, request, &offers(&self.app)?)
            .map_err(|error| ApiError::Invalid(error.to_string()))?;
        held.more(ANSWER_BYTES)?;
        hold_output(held, judgement.output(), count)?;
        match judgement.run(engine, self.client, &[], &|_, _| {}).await.map_err(saturated)? {
            Judged::Response(response) => Ok(*response),
            Judged::Queued => Err(ApiError::Saturated { retry_after: RETRY_AFTER }),
            Judged::Fault => Err(ApiError::Internal),
        }
    }
}

fn told(error: ApiError) -> Refusal {
    error.to_string()
}

impl Host for Caller {
    fn images(&self) -> Result<Arc<Vec<Image>>, Refusal> {
        images::all(&self.app).map_err(told)
    }

    fn bounds(&self) -> Arc<Bounds> {
        self.app.engine.bounds()
    }

    fn default_image(&self) -> &ImageName {
        &self.app.engine.default_image
    }

    fn max_cases(&self) -> usize {
        self.app.settings().config.judge.max_cases as usize
    }

    async fn run(&self, task: TaskRequest) -> Result<TaskResult, Refusal> {
        let mut held = self.take().ok_or_else(|| told(ApiError::Internal))?;
        let ran = self.run_task(task, &mut held).await;
        self.give_back(held);
        ran.map_err(told)
    }

    async fn judge(&self, request: JudgeRequest) -> Result<JudgeResponse, Refusal> {
        let mut held = self.take().ok_or_else(|| told(ApiError::Internal))?;
        let judged = self.judge_program(request, &mut held).await;
        self.give_back(held);
        judged.map_err(told)
    }
}
