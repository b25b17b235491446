//! GET /execute/live: one task over a WebSocket (RFC 6455), which can be talked to while it runs.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, Stream, StreamExt};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::Instrument;

use super::hand::{Hand, TYPED, start_in_hand};
use super::{Asking, Entry, Running, Told};
use crate::api::buffers::Held;
use crate::api::connections::Kept;
use crate::api::error::{ApiError, ErrorBody, NotAdmitted};
use crate::api::execute::{hold_output, offers, parse_object, parsed_size};
use crate::api::{App, Owner, cors};
use crate::execution::Planned;
use crate::scheduler::Client;
use crate::task::{Content, TaskRequest, Window, Word, signal_number};

/// Bytes of a message. Larger files come by blobs.
pub const MESSAGE: usize = TYPED;
/// How long the first message may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// So often a client of which nothing is told is asked whether it is there.
const ALIVE: Duration = Duration::from_secs(15);
/// How long a client may leave what it is told unread.
pub const READ_PATIENCE: Duration = Duration::from_secs(60);
/// How long a client may take to close its side of what is over.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Refusals that wait to be told.
const REFUSALS: usize = 16;
/// The first message: what to run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LiveRequest {
    #[serde(deserialize_with = "object")]
    task: TaskRequest,
}

/// Every later one: one thing to tell the task.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Saying {
    /// More of its standard input.
    Stdin(Content),
    /// The end of that; on a terminal what stands for it (Ctrl-D).
    Eof(True),
    /// A signal for its process group, by name or number.
    Signal(Signal),
    /// Its terminal's size.
    Resize(Window),
    /// End it.
    Cancel(True),
}

/// `true`.
#[derive(Debug)]
struct True;

impl<'de> Deserialize<'de> for True {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match bool::deserialize(deserializer)? {
            true => Ok(Self),
            false => Err(serde::de::Error::custom("expected true")),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Signal {
    Name(String),
    Number(i32),
}

impl Signal {
    fn number(&self) -> Result<i32, ApiError> {
        let known = match self {
            Self::Name(name) => signal_number(name),
            Self::Number(number) => Some(*number).filter(|number| (1..=64).contains(number)),
        };
        known.ok_or_else(|| ApiError::Invalid(format!("signal: {self:?} is no signal; expected \"SIGINT\" or 2")))
    }
}

fn object<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<TaskRequest, D::Error> {
    let crate::task::Object(task) = Deserialize::deserialize(deserializer)?;
    Ok(task)
}

/// Execute one task and talk to it while it runs, over a WebSocket.
///
/// The client sends text messages, the first `{"task": …}`, which may have `"tty"` for a terminal; then any of `{"stdin": content}`,
/// `{"eof": true}`, `{"signal": "SIGINT"}`, `{"resize": {"rows", "columns"}}`, `{"cancel": true}`. It is told the events of
/// `POST /execute` with `Accept: text/event-stream`, as `{"event": name, …}`; a message that makes no sense is answered by `refused`
/// and changes nothing. A client that goes away ends its task.
#[utoipa::path(
    get,
    operation_id = "execute_live",
    path = "/execute/live",
    tag = "Task Execution",
    responses(
        NotAdmitted,
        (status = 101, description = "The connection is a WebSocket now. The server's messages are LiveEvents, the client's first \
            is the task.", body = Told),
        (status = 400, description = "It is no WebSocket's beginning.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "GET /execute/live takes a WebSocket (RFC 6455)"})),
    )
)]
pub async fn live(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    kept: Option<Extension<Kept>>,
    headers: HeaderMap,
    socket: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    cors::check_origin(&app, &headers)?;
    let no_socket = |_| ApiError::Invalid("GET /execute/live takes a WebSocket (RFC 6455)".into());
    let socket = socket.map_err(no_socket)?.max_message_size(MESSAGE).max_frame_size(MESSAGE);
    let span = tracing::Span::current();
    Ok(socket.on_upgrade(move |socket| {
        let talk = async move {
            talk(&app, Asking { client, owner }, socket).await;
            // The connection's place is taken as long as it is open.
            drop(kept);
        };
        talk.instrument(span)
    }))
}

async fn talk(app: &Arc<App>, asking: Asking, mut socket: WebSocket) {
    let held = app.buffers.hold(asking.client);
    let talking = match begin(app, asking, &mut socket).await {
        Ok(talking) => talking,
        Err(None) => return,
        Err(Some(error)) => {
            let (mut sink, mut stream) = socket.split();
            let told = Told::from(Entry::End(Err(error)));
            let _ = say(&mut sink, told, held).await;
            close(&mut sink, close_code::POLICY).await;
            return hear_out(&mut stream).await;
        }
    };
    let Talking { running, hand } = talking;
    let (mut sink, mut stream) = socket.split();
    let (refuse, mut refusals) = mpsc::channel(REFUSALS);
    let is_there = tokio::select! {
        () = listen(&mut stream, hand, refuse) => false,
        () = tell(&mut sink, &running, &mut refusals, held) => true,
    };
    // Its tasks end with it.
    drop(running);
    if is_there {
        hear_out(&mut stream).await;
    }
}

/// Waits for a client that was told of the end to close its side: a connection that is closed with bytes unread takes what was
/// said last along.
pub async fn hear_out<T, E>(stream: &mut (impl Stream<Item = Result<T, E>> + Unpin)) {
    let rest = async { while let Some(Ok(_)) = stream.next().await {} };
    let _ = timeout(LAST_WORDS, rest).await;
}

/// A task under way, and what can be said to it.
struct Talking {
    running: Running,
    hand: Hand,
}

/// Takes the first message. None: the client went away.
async fn begin(app: &Arc<App>, asking: Asking, socket: &mut WebSocket) -> Result<Talking, Option<ApiError>> {
    let first = loop {
        match timeout(PATIENCE, socket.recv()).await {
            Err(_) => return Err(Some(ApiError::Late)),
            Ok(Some(Ok(Message::Text(text)))) => break text,
            Ok(Some(Ok(Message::Binary(_)))) => return Err(Some(not_text())),
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
            Ok(_) => return Err(None),
        }
    };
    start(app, asking, first.as_bytes()).await.map_err(Some)
}

async fn start(app: &Arc<App>, asking: Asking, first: &[u8]) -> Result<Talking, ApiError> {
    let mut held = app.buffers.hold(asking.client);
    held.more(parsed_size(first))?;
    let LiveRequest { task } = parse_object(first)?;
    if let Some(lack) = task.nothing_to_run() {
        return Err(ApiError::Invalid(format!("task: {lack}")));
    }
    if task.stdin.is_some() {
        return Err(ApiError::Invalid("task.stdin: it comes by messages here: {\"stdin\": …}, {\"eof\": true}".into()));
    }
    let has_terminal = task.tty.is_some();
    let planned =
        Planned::live(&app.engine, task, &offers(app)?).map_err(|error| ApiError::Invalid(error.to_string()))?;
    hold_output(&mut held, planned.output(), 1)?;
    let (running, hand) = start_in_hand(app, asking, planned, held, has_terminal).await?;
    Ok(Talking { running, hand })
}

/// Hears the client until it goes away.
async fn listen(stream: &mut SplitStream<WebSocket>, mut hand: Hand, refuse: mpsc::Sender<ApiError>) {
    while let Some(Ok(message)) = stream.next().await {
        let heard = match message {
            Message::Text(text) => take(&mut hand, text.as_bytes()).await,
            Message::Binary(_) => Err(not_text()),
            Message::Ping(_) | Message::Pong(_) => Ok(()),
            Message::Close(_) => break,
        };
        if let Err(error) = heard
            && refuse.send(error).await.is_err()
        {
            break;
        }
    }
}

fn not_text() -> ApiError {
    ApiError::Invalid("messages are JSON, in text frames; bytes come as {\"stdin\": {\"base64\": …}}".into())
}

/// # Errors
/// What makes no sense, and then changed nothing.
async fn take(hand: &mut Hand, message: &[u8]) -> Result<(), ApiError> {
    match parse_object(message)? {
        Saying::Stdin(Content::Bytes(bytes)) => match hand.write(bytes.to_vec().into()).await {
            true => {}
            false => return Err(ApiError::Invalid("stdin: it was ended by {\"eof\": true}".into())),
        },
        Saying::Stdin(_) => return Err(ApiError::Invalid("stdin: expected text or base64".into())),
        Saying::Eof(True) => hand.end_input(),
        Saying::Signal(signal) => hand.say(Word::Signal(signal.number()?)).await,
        Saying::Resize(_) if !hand.has_terminal() => {
            return Err(ApiError::Invalid("resize: the task has no terminal; ask for one with \"tty\"".into()));
        }
        Saying::Resize(window) => hand.say(Word::Resize(window)).await,
        Saying::Cancel(True) => hand.cancel().await,
    }
    Ok(())
}

/// Tells the client what happens until all was told.
async fn tell(
    sink: &mut SplitSink<WebSocket, Message>,
    running: &Running,
    refusals: &mut mpsc::Receiver<ApiError>,
    mut held: Held,
) {
    loop {
        let entry = tokio::select! {
            entry = timeout(ALIVE, running.next()) => entry,
            Some(error) = refusals.recv() => {
                match say(sink, Told::refused(&error), held).await {
                    Some(given_back) => held = given_back,
                    None => return,
                }
                continue;
            }
        };
        let entry = match entry {
            Ok(Some(entry)) => entry,
            // It broke: a close without an end tells so.
            Ok(None) => return close(sink, close_code::ERROR).await,
            Err(_) => match timeout(READ_PATIENCE, sink.send(Message::Ping(Bytes::new()))).await {
                Ok(Ok(())) => continue,
                _ => return,
            },
        };
        let end = match &entry {
            Entry::End(Ok(())) => Some(close_code::NORMAL),
            Entry::End(Err(_)) => Some(close_code::ERROR),
            _ => None,
        };
        match say(sink, entry.into(), held).await {
            Some(given_back) => held = given_back,
            None => return,
        }
        if let Some(code) = end {
            return close(sink, code).await;
        }
    }
}

/// None: nobody hears it.
async fn say(sink: &mut SplitSink<WebSocket, Message>, told: Told, held: Held) -> Option<Held> {
    let (text, mut held) = match told.message(held) {
        Ok(both) => both,
        // A message is in memory as a whole: a result of many bytes that are no text may be more than there is.
        Err(error) => {
            let text = Told::from(Entry::End(Err(error))).last_message();
            timeout(READ_PATIENCE, sink.send(Message::Text(text.into()))).await.ok()?.ok()?;
            close(sink, close_code::SIZE).await;
            return None;
        }
    };
    let size = text.len() as u64;
    timeout(READ_PATIENCE, sink.send(Message::Text(text.into()))).await.ok()?.ok()?;
    held.less(size);
    Some(held)
}

async fn close(sink: &mut SplitSink<WebSocket, Message>, code: u16) {
    let frame = CloseFrame { code, reason: "".into() };
    let _ = timeout(READ_PATIENCE, sink.send(Message::Close(Some(frame)))).await;
}
