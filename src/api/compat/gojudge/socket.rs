//! go-judge's `/ws`: requests as `POST /run` takes them, several at once, each under its client's own id.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tracing::Instrument;

use super::{Caller, Files, Refusal, run_all};
use crate::api::answer::json_bytes;
use crate::api::buffers::Held;
use crate::api::connections::Kept;
use crate::api::error::ApiError;
use crate::api::execute::parse_object;
use crate::api::live::{MESSAGE, READ_PATIENCE};
use crate::api::{App, cors};

/// As its own does.
const ALIVE: Duration = Duration::from_secs(50);
/// Requests of one connection that may be under way.
const REQUESTS: usize = 256;
/// The longest id.
const LONGEST_ID: usize = 256;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    #[serde(default)]
    request_id: String,
    #[serde(default)]
    cancel_request_id: String,
}

pub(super) async fn connect(
    State(app): State<Arc<App>>,
    Extension(files): Extension<Files>,
    kept: Option<Extension<Kept>>,
    caller: Caller,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    cors::check_origin(&app, &caller.2)?;
    let socket = socket.map_err(|_| ApiError::Invalid("/ws takes a WebSocket (RFC 6455)".into()))?;
    let span = tracing::Span::current();
    Ok(socket.max_message_size(MESSAGE).max_frame_size(MESSAGE).on_upgrade(move |socket| {
        let talk = async move {
            talk(app, files, caller, socket).await;
            drop(kept);
        };
        talk.instrument(span)
    }))
}

/// What a request came to, as it is sent, with what is held for that.
type Answer = (String, Option<Held>);

async fn talk(app: Arc<App>, files: Files, caller: Caller, socket: WebSocket) {
    let (mut sink, mut stream) = socket.split();
    let (answer, mut answers) = mpsc::channel::<(String, Answer)>(1);
    // Whatever is under way ends with the connection.
    let mut requests = JoinSet::new();
    let mut under_way: HashMap<String, AbortHandle> = HashMap::new();
    loop {
        let said = tokio::select! {
            Some((id, (text, held))) = answers.recv() => {
                under_way.remove(&id);
                while requests.try_join_next().is_some() {}
                if !matches!(timeout(READ_PATIENCE, sink.send(Message::Text(text.into()))).await, Ok(Ok(()))) {
                    return;
                }
                drop(held);
                continue;
            }
            said = stream.next() => said,
            () = tokio::time::sleep(ALIVE) => {
                if !matches!(timeout(READ_PATIENCE, sink.send(Message::Ping(Bytes::new()))).await, Ok(Ok(()))) {
                    return;
                }
                continue;
            }
        };
        let bytes = match said {
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => message.into_data(),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(_)) | Err(_)) | None => return,
        };
        let refused = |id: &str, error: &str| json!({ "requestId": id, "results": [], "error": error }).to_string();
        let refusal = match parse_object::<Said>(&bytes) {
            Err(error) => refused("", &error.to_string()),
            Ok(Said { cancel_request_id: id, .. }) if !id.is_empty() => {
                under_way.remove(&id).inspect(AbortHandle::abort);
                refused(&id, "the request was cancelled")
            }
            Ok(Said { request_id: id, .. }) if id.is_empty() || id.len() > LONGEST_ID => {
                refused("", "requestId is required, of 256 characters at most")
            }
            Ok(Said { request_id: id, .. }) if under_way.contains_key(&id) => refused(&id, "duplicate requestId"),
            Ok(Said { request_id: id, .. }) if under_way.len() >= REQUESTS => {
                refused(&id, "too many requests of this connection are under way")
            }
            Ok(Said { request_id: id, .. }) => {
                let (app, files, caller, answer) = (app.clone(), files.clone(), caller.clone(), answer.clone());
                let key = id.clone();
                let in_flight = app.in_flight.enter();
                let run = async move {
                    let told = one(&app, &files, caller, &id, bytes).await;
                    let _ = answer.send((id, told)).await;
                    drop(in_flight);
                };
                under_way.insert(key, requests.spawn(run.instrument(tracing::Span::current())));
                continue;
            }
        };
        if !matches!(timeout(READ_PATIENCE, sink.send(Message::Text(refusal.into()))).await, Ok(Ok(()))) {
            return;
        }
    }
}

async fn one(app: &Arc<App>, files: &Files, caller: Caller, id: &str, body: Bytes) -> Answer {
    let failed = |error: String| (json!({ "requestId": id, "results": [], "error": error }).to_string(), None);
    let (all, held) = match run_all(app, files, caller, Body::from(body)).await {
        Ok(Ok(ran)) => ran,
        Ok(Err(Refusal(message))) => return failed(message),
        Err(error) => return failed(error.to_string()),
    };
    match json_bytes(held, all, u64::MAX) {
        Ok((results, held)) => {
            let mut text = format!("{{\"requestId\":{},\"results\":", json!(id));
            text += &String::from_utf8_lossy(&results);
            text.push('}');
            (text, Some(held))
        }
        Err(error) => failed(error.to_string()),
    }
}
