//! Piston's WebSocket: a job that its client talks to.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::Instrument;

use super::{Refusal, piston, runtimes_of};
use crate::api::connections::Kept;
use crate::api::error::ApiError;
use crate::api::execute::{hold_output, offers, parsed_size};
use crate::api::live::{Asking, Entry, Hand, MESSAGE, READ_PATIENCE, Running, Told, hear_out, start_in_hand};
use crate::api::{App, Owner, cors};
use crate::compat::piston::connect::{self, COMPLETED, Close, LATE, NOTIFIED, Said, Wrong};
use crate::execution::Planned;
use crate::scheduler::Client;
use crate::task::{Stream, Word};

/// How long a client may take to say what is to be run.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) async fn connect(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    kept: Option<Extension<Kept>>,
    headers: HeaderMap,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    cors::check_origin(&app, &headers)?;
    let socket = socket.map_err(|_| ApiError::Invalid("/connect takes a WebSocket (RFC 6455)".into()))?;
    let span = tracing::Span::current();
    Ok(socket.max_message_size(MESSAGE).max_frame_size(MESSAGE).on_upgrade(move |mut socket| {
        let talk = async move {
            let close = match first(&mut socket).await {
                Ok(Some(message)) => job(&app, Asking { client, owner }, &message, &mut socket).await,
                Ok(None) => None,
                Err(wrong) => tell_wrong(&mut socket, wrong).await,
            };
            if let Some((code, reason)) = close {
                let frame = CloseFrame { code, reason: reason.into() };
                let _ = timeout(READ_PATIENCE, socket.send(Message::Close(Some(frame)))).await;
                hear_out(&mut socket).await;
            }
            drop(kept);
        };
        talk.instrument(span)
    }))
}

/// The message with which a job begins. None: nobody is there any more.
async fn first(socket: &mut WebSocket) -> Result<Option<Vec<u8>>, Wrong> {
    let first = async {
        while let Some(Ok(message)) = socket.recv().await {
            if let Message::Text(_) | Message::Binary(_) = message {
                let bytes = message.into_data();
                if connect::read(&bytes, false)? == Said::Init {
                    return Ok(Some(bytes.to_vec()));
                }
            }
        }
        Ok(None)
    };
    timeout(PATIENCE, first).await.unwrap_or(Err(Wrong::Close(LATE)))
}

async fn tell_wrong(socket: &mut (impl SinkExt<Message> + Unpin), wrong: Wrong) -> Option<Close> {
    match wrong {
        Wrong::Close(close) => Some(close),
        Wrong::Error(message) => say(socket, &connect::error(&message)).await.map(|()| NOTIFIED),
    }
}

/// None: nobody hears it.
async fn say(socket: &mut (impl SinkExt<Message> + Unpin), message: &Value) -> Option<()> {
    let sent = timeout(READ_PATIENCE, socket.send(Message::Text(message.to_string().into()))).await;
    sent.ok()?.ok()
}

/// A job under way.
struct Begun {
    running: Running,
    hand: Hand,
    runtime: Value,
    compiles: bool,
}

async fn begin(app: &Arc<App>, asking: Asking, message: &[u8]) -> Result<Begun, String> {
    let told = |error: ApiError| error.to_string();
    let mut held = app.buffers.hold(asking.client);
    held.more(3 * parsed_size(message)).map_err(|lack| told(lack.into()))?;
    let nearest = app.settings().config.compat.nearest_version;
    let offers = offers(app).map_err(told)?;
    let runtimes = runtimes_of(app).map_err(told)?;
    let job =
        piston::job(message, &runtimes, nearest, &app.engine.bounds(), &offers).map_err(|refusal| match refusal {
            Refusal::Message(message) => message,
            Refusal::Internal => "a file's name leads out of its directory".into(),
        })?;
    let (mut task, (language, version)) = job.split();
    // As its own does.
    task.stdin = None;
    let compiles = offers.iter().any(|offer| {
        let is_it = task.language.as_deref() == Some(offer.id.name.as_str());
        is_it && offer.language.as_ref().is_some_and(|language| !language.compile.is_empty())
    });
    let planned = Planned::live(&app.engine, task, &offers).map_err(|error| error.to_string())?;
    hold_output(&mut held, planned.output(), 1).map_err(told)?;
    let runtime = json!({ "type": "runtime", "language": language, "version": version.to_string() });
    let (running, hand) = start_in_hand(app, asking, planned, held, false).await.map_err(told)?;
    Ok(Begun { running, hand, runtime, compiles })
}

/// Runs a job; what the connection is closed with, if anybody is there.
async fn job(app: &Arc<App>, asking: Asking, message: &[u8], socket: &mut WebSocket) -> Option<Close> {
    let Begun { running, mut hand, runtime, compiles } = match begin(app, asking, message).await {
        Ok(begun) => begun,
        Err(message) => return tell_wrong(socket, Wrong::Error(message)).await,
    };
    let (mut sink, mut stream) = socket.split();
    say(&mut sink, &runtime).await?;
    if compiles {
        say(&mut sink, &connect::stage("compile")).await?;
    }
    let heard = async {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Text(_) | Message::Binary(_) => match connect::read(&message.into_data(), true) {
                    Ok(Said::Stdin(text)) => _ = hand.write(text.into()).await,
                    Ok(Said::Signal(signal)) => hand.say(Word::Signal(signal)).await,
                    Ok(Said::Init | Said::Nothing) => {}
                    Err(wrong) => return Some(wrong),
                },
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Close(_) => break,
            }
        }
        None
    };
    let wrong = tokio::select! {
        close = tell(&mut sink, &running, compiles) => return close,
        wrong = heard => wrong?,
    };
    tell_wrong(&mut sink, wrong).await
}

/// Tells what happens until the job has ended.
async fn tell(sink: &mut SplitSink<&mut WebSocket, Message>, running: &Running, compiles: bool) -> Option<Close> {
    loop {
        match running.next().await? {
            Entry::Output { stream, bytes, .. } => {
                let name = if stream == Stream::Stdout { "stdout" } else { "stderr" };
                say(sink, &connect::data(name, &bytes)).await?;
            }
            Entry::Told(Told::Started { compile: false, .. }) => {
                if compiles {
                    say(sink, &connect::compiled()).await?;
                }
                say(sink, &connect::stage("run")).await?;
            }
            Entry::Told(Told::Result { result, .. }) => match connect::end(*result) {
                Ok(said) => {
                    for message in said {
                        say(sink, &message).await?;
                    }
                }
                Err(reason) => {
                    say(sink, &connect::error(&reason)).await?;
                    return Some(NOTIFIED);
                }
            },
            Entry::Told(_) => {}
            Entry::End(Ok(())) => return Some(COMPLETED),
            Entry::End(Err(error)) => {
                say(sink, &connect::error(&error.to_string())).await?;
                return Some(NOTIFIED);
            }
        }
    }
}
