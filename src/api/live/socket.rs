//! GET /execute/live: one task over a WebSocket (RFC 6455), which can be talked to while it runs.

use std::os::fd::OwnedFd;
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
use futures_util::{SinkExt, StreamExt};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::Instrument;

use super::{Asking, Entry, Running, Told};
use crate::api::buffers::Held;
use crate::api::connections::Kept;
use crate::api::error::{ApiError, ErrorBody, NotAdmitted};
use crate::api::execute::{hold_output, offers, parse_object, parsed_size};
use crate::api::{App, Owner, cors};
use crate::execution::{Hands, Planned};
use crate::scheduler::Client;
use crate::task::{Content, TaskRequest, Window, Word, signal_number};

/// Bytes of a message. Larger files come by blobs.
const MESSAGE: usize = 1 << 20;
/// How long the first message may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// So often a client of which nothing is told is asked whether it is there.
const ALIVE: Duration = Duration::from_secs(15);
/// How long a client may leave what it is told unread.
const READ_PATIENCE: Duration = Duration::from_secs(60);
/// Words that wait for the task's runner.
const WORDS: usize = 64;
/// What a terminal takes for the end of a line of input, where the program lets it (termios(3), VEOF).
const END_OF_FILE: u8 = 4;

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
            let (mut sink, _) = socket.split();
            let told = Told::from(Entry::End(Err(error)));
            let _ = say(&mut sink, told, held).await;
            return close(&mut sink, close_code::POLICY).await;
        }
    };
    let Talking { running, hand } = talking;
    let (mut sink, stream) = socket.split();
    let (refuse, mut refusals) = mpsc::channel(WORDS);
    tokio::select! {
        () = listen(stream, hand, refuse) => {}
        () = tell(&mut sink, &running, &mut refusals, held) => {}
    }
    // Its tasks end with it.
    drop(running);
}

/// A task under way, and what can be said to it.
struct Talking {
    running: Running,
    hand: Hand,
}

/// What the client has in hand of its task.
struct Hand {
    stdin: mpsc::UnboundedSender<Typed>,
    words: mpsc::Sender<Word>,
    cancel: Option<oneshot::Sender<()>>,
    /// Bytes of standard input that may still come before the task has read some.
    room: Arc<Semaphore>,
    has_terminal: bool,
}

enum Typed {
    Bytes(Bytes),
    End,
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
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|_| ApiError::Internal)?;
    // Its own to open, as /dev/stdin is.
    rustix::fs::fchmod(&reader, rustix::fs::Mode::from_raw_mode(0o666)).map_err(|_| ApiError::Internal)?;
    let (words, hears) = mpsc::channel(WORDS);
    let (stdin, typed) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(MESSAGE));
    let (cancel, cancelled) = oneshot::channel();
    let hands = Hands { stdin: reader, words: hears, cancelled };
    let running = Running::start(app, asking, planned, held, Some(hands)).await?;
    tokio::spawn(type_in(writer, typed, room.clone(), has_terminal));
    Ok(Talking { running, hand: Hand { stdin, words, cancel: Some(cancel), room, has_terminal } })
}

/// Writes what the client sends into the task's standard input, until the client or the task has enough.
async fn type_in(pipe: OwnedFd, mut typed: mpsc::UnboundedReceiver<Typed>, room: Arc<Semaphore>, has_terminal: bool) {
    let Ok(mut pipe) = Sender::from_owned_fd(pipe) else { return };
    // A task that reads no more is none the worse for it; what is sent then is dropped.
    let mut is_read = true;
    while let Some(typed) = typed.recv().await {
        match typed {
            Typed::Bytes(bytes) => {
                is_read = is_read && pipe.write_all(&bytes).await.is_ok();
                room.add_permits(bytes.len());
            }
            Typed::End if has_terminal => is_read = is_read && pipe.write_all(&[END_OF_FILE]).await.is_ok(),
            Typed::End => break,
        }
    }
}

/// Hears the client until it goes away.
async fn listen(mut stream: SplitStream<WebSocket>, mut hand: Hand, refuse: mpsc::Sender<ApiError>) {
    while let Some(Ok(message)) = stream.next().await {
        let heard = match message {
            Message::Text(text) => hand.take(text.as_bytes()).await,
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

impl Hand {
    /// # Errors
    /// What makes no sense, and then changed nothing.
    async fn take(&mut self, message: &[u8]) -> Result<(), ApiError> {
        match parse_object(message)? {
            Saying::Stdin(Content::Bytes(bytes)) => {
                if self.stdin.is_closed() {
                    return Err(ApiError::Invalid("stdin: it was ended by {\"eof\": true}".into()));
                }
                // What the task does not read holds up what comes after it.
                if let Ok(room) = self.room.acquire_many(bytes.len() as u32).await {
                    room.forget();
                    let _ = self.stdin.send(Typed::Bytes(bytes.to_vec().into()));
                }
                Ok(())
            }
            Saying::Stdin(_) => Err(ApiError::Invalid("stdin: expected text or base64".into())),
            Saying::Eof(True) => {
                let _ = self.stdin.send(Typed::End);
                Ok(())
            }
            Saying::Signal(signal) => self.say(Word::Signal(signal.number()?)).await,
            Saying::Resize(_) if !self.has_terminal => {
                Err(ApiError::Invalid("resize: the task has no terminal; ask for one with \"tty\"".into()))
            }
            Saying::Resize(window) => self.say(Word::Resize(window)).await,
            Saying::Cancel(True) => {
                self.cancel.take().map(|cancel| cancel.send(()));
                self.say(Word::Cancel).await
            }
        }
    }

    /// A task that has ended hears nothing.
    async fn say(&self, word: Word) -> Result<(), ApiError> {
        let _ = self.words.send(word).await;
        Ok(())
    }
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
    let (text, mut held) = told.message(held).ok()?;
    let size = text.len() as u64;
    timeout(READ_PATIENCE, sink.send(Message::Text(text.into()))).await.ok()?.ok()?;
    held.less(size);
    Some(held)
}

async fn close(sink: &mut SplitSink<WebSocket, Message>, code: u16) {
    let frame = CloseFrame { code, reason: "".into() };
    let _ = timeout(READ_PATIENCE, sink.send(Message::Close(Some(frame)))).await;
    let _ = timeout(READ_PATIENCE, sink.close()).await;
}
