//! Streams of events, and WebSockets.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

use super::Server;

/// A stream of server-sent events, as one client reads it.
pub struct Events {
    lines: BufReader<Box<dyn Read>>,
}

impl Events {
    /// The answer to a body of /execute.
    #[track_caller]
    pub fn of(server: &Server, body: &Value) -> Self {
        Self::of_path(server, "/execute", body)
    }

    /// The same of another path.
    #[track_caller]
    pub fn of_path(server: &Server, path: &str, body: &Value) -> Self {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let request = agent.post(format!("{}{path}", server.url())).header("Accept", "text/event-stream");
        let answer = request.content_type("application/json").send(body.to_string()).unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self { lines: BufReader::new(Box::new(answer.into_body().into_reader())) }
    }

    /// The next event's name and what it says; None at the stream's end, however that is.
    pub fn next(&mut self) -> Option<(String, Value)> {
        let (mut name, mut data) = (String::new(), Value::Null);
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end_matches('\n').split_once(": ") {
                Some(("event", value)) => name = value.to_owned(),
                Some(("data", value)) => data = serde_json::from_str(value).unwrap(),
                // What only says that the connection is alive has no name.
                Some(_) => {}
                None if name.is_empty() => {}
                None => return Some((name, data)),
            }
        }
    }

    /// The next event of this name; those before it are passed over.
    #[track_caller]
    pub fn wait_for(&mut self, name: &str) -> Value {
        loop {
            match self.next() {
                Some((is, data)) if is == name => return data,
                Some(_) => {}
                None => panic!("the stream ended before {name}"),
            }
        }
    }

    pub fn all(mut self) -> Vec<(String, Value)> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

/// A WebSocket at /execute/live, as one client has it.
pub struct Live {
    pub socket: WebSocket<TcpStream>,
    /// What it has shown so far.
    pub shown: String,
}

impl Live {
    #[track_caller]
    pub fn start(server: &Server, task: &Value) -> Self {
        let mut live = Self::open(server, &[]).unwrap();
        live.say(&json!({ "task": task }));
        live
    }

    /// Without saying anything. The error is the answer's status.
    pub fn open(server: &Server, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let address = server.url().strip_prefix("http://").unwrap().to_owned();
        let stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut request =
            tungstenite::ClientRequestBuilder::new(format!("ws://{address}/execute/live").parse().unwrap());
        for (name, value) in headers {
            request = request.with_header(*name, *value);
        }
        match tungstenite::client(request, stream) {
            Ok((socket, _)) => Ok(Self { socket, shown: String::new() }),
            Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
                Err(answer.status().as_u16())
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[track_caller]
    pub fn say(&mut self, message: &Value) {
        self.socket.send(Message::text(message.to_string())).unwrap();
    }

    #[track_caller]
    pub fn type_in(&mut self, text: &str) {
        self.say(&json!({ "stdin": text }));
    }

    /// The next event; None when the connection is closed.
    pub fn next(&mut self) -> Option<Value> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    let event: Value = serde_json::from_str(text.as_str()).unwrap();
                    if event["event"] == "stdout" {
                        self.shown += event["text"].as_str().unwrap_or_default();
                    }
                    return Some(event);
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(_) | Err(_) => return None,
            }
        }
    }

    #[track_caller]
    pub fn wait_for(&mut self, name: &str) -> Value {
        loop {
            match self.next() {
                Some(event) if event["event"] == name => return event,
                Some(_) => {}
                None => panic!("closed before {name}; it showed {:?}", self.shown),
            }
        }
    }

    /// Reads until this was shown.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        while !self.shown.contains(text) {
            assert!(self.next().is_some(), "closed before {text:?} was shown, but {:?}", self.shown);
        }
        let at = self.shown.find(text).unwrap() + text.len();
        self.shown.drain(..at);
    }

    /// The result, after which it is done and closed.
    #[track_caller]
    pub fn result(mut self) -> Value {
        let result = self.wait_for("result")["result"].clone();
        assert_eq!(self.next().unwrap(), json!({ "event": "done" }));
        assert_eq!(self.closed(), 1000);
        result
    }

    /// The code with which the server closes.
    #[track_caller]
    pub fn closed(&mut self) -> u16 {
        loop {
            match self.socket.read() {
                Ok(Message::Close(Some(CloseFrame { code, .. }))) => return code.into(),
                Ok(Message::Close(None)) => return 1005,
                Ok(_) => {}
                Err(_) => return 1006,
            }
        }
    }
}
