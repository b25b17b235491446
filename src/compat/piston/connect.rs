//! Its WebSocket, `/connect`: what is said on it.

use serde_json::{Value, json};

use super::Stage;
use crate::task::{TaskResult, signal_number};

/// The code and the reason with which a connection is closed.
pub type Close = (u16, &'static str);

pub const COMPLETED: Close = (4999, "Job Completed");
pub const LATE: Close = (4001, "Initialization Timeout");
/// After a message of type `error`.
pub const NOTIFIED: Close = (4002, "Notified Error");
const AGAIN: Close = (4000, "Already Initialized");
const TOO_SOON: Close = (4003, "Not yet initialized");
const NOT_STDIN: Close = (4004, "Can only write to stdin");
const NO_SIGNAL: Close = (4005, "Invalid signal");

/// A client's message.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// The message is a job as /execute takes it.
    Init,
    Stdin(String),
    Signal(i32),
    /// Of a type that nobody knows, to which its own does nothing.
    Nothing,
}

/// Why a message is none.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    Close(Close),
    /// It is told so, and the connection is closed.
    Error(String),
}

/// # Errors
/// What its own closes the connection for.
pub fn read(message: &[u8], is_initialized: bool) -> Result<Said, Wrong> {
    let message: Value = serde_json::from_slice(message).map_err(|error| Wrong::Error(error.to_string()))?;
    let text = |name: &str| message.get(name).and_then(Value::as_str).unwrap_or_default();
    match (text("type"), is_initialized) {
        ("init", false) => Ok(Said::Init),
        ("init", true) => Err(Wrong::Close(AGAIN)),
        ("data" | "signal", false) => Err(Wrong::Close(TOO_SOON)),
        ("data", true) if text("stream") != "stdin" => Err(Wrong::Close(NOT_STDIN)),
        ("data", true) => Ok(Said::Stdin(text("data").to_owned())),
        ("signal", true) => match signal_number(text("signal")).filter(|_| text("signal").starts_with("SIG")) {
            Some(signal) => Ok(Said::Signal(signal)),
            None => Err(Wrong::Close(NO_SIGNAL)),
        },
        _ => Ok(Said::Nothing),
    }
}

pub fn stage(name: &str) -> Value {
    json!({ "type": "stage", "stage": name })
}

pub fn data(stream: &str, bytes: &[u8]) -> Value {
    json!({ "type": "data", "stream": stream, "data": String::from_utf8_lossy(bytes) })
}

pub fn error(message: &str) -> Value {
    json!({ "type": "error", "message": message })
}

/// The end of a compilation that went well.
pub fn compiled() -> Value {
    json!({ "type": "exit", "stage": "compile", "code": 0, "signal": null })
}

/// What is said at a job's end; the error is why there was none. A compiler that failed has said things that are told only now.
///
/// # Errors
/// When it was not run.
pub fn end(mut result: TaskResult) -> Result<Vec<Value>, String> {
    let compilation = result.compile.take().and_then(|compilation| compilation.0).map(|result| Stage::of(*result));
    let failed = compilation.filter(|stage| stage.status.is_some() || stage.code != Some(0));
    let (name, stage) = match failed {
        Some(stage) => ("compile", stage),
        None => ("run", Stage::of(result)),
    };
    if stage.status == Some("XX") {
        return Err(stage.message.unwrap_or_default());
    }
    let mut said = Vec::new();
    if name == "compile" {
        for (stream, text) in [("stdout", &stage.stdout), ("stderr", &stage.stderr)] {
            if text.size() > 0 {
                said.push(data(stream, text.bytes()));
            }
        }
    }
    said.push(json!({ "type": "exit", "stage": name, "code": stage.code, "signal": stage.signal }));
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_what_its_own_takes_them_for() {
        let said = |message: Value, is_initialized| read(message.to_string().as_bytes(), is_initialized);
        assert_eq!(said(json!({ "type": "init" }), false), Ok(Said::Init));
        assert_eq!(said(json!({ "type": "init" }), true), Err(Wrong::Close(AGAIN)));
        let data = json!({ "type": "data", "stream": "stdin", "data": "a" });
        assert_eq!(said(data.clone(), true), Ok(Said::Stdin("a".into())));
        assert_eq!(said(data, false), Err(Wrong::Close(TOO_SOON)));
        let other = json!({ "type": "data", "stream": "stdout", "data": "a" });
        assert_eq!(said(other, true), Err(Wrong::Close(NOT_STDIN)));
        let signal = |signal: &str| said(json!({ "type": "signal", "signal": signal }), true);
        assert_eq!(signal("SIGINT"), Ok(Said::Signal(2)));
        assert_eq!([signal("INT"), signal("SIGNOT")], [const { Err(Wrong::Close(NO_SIGNAL)) }; 2]);
        assert_eq!(said(json!({ "type": "other" }), false), Ok(Said::Nothing));
        assert!(matches!(read(b"{", false), Err(Wrong::Error(_))));
    }
}
