//! A request's stream as server-sent events (HTML Living Standard, section 9.2): the answer of POST /execute to whoever accepts them.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::{Entry, Running, Told};
use crate::api::answer::{Pieces, pieces};
use crate::api::buffers::Held;

/// So often a client of which nothing is told hears that the connection is alive.
const ALIVE: Duration = Duration::from_secs(15);
pub const EVENTS: &str = "text/event-stream";

/// Whether the client wants events. One that says how much it wants what takes the first form that it names.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let essences = accepted.flat_map(|value| value.split(',')).map(|one| one.split(';').next().unwrap_or_default());
    let first = essences.map(str::trim).find(|one| [EVENTS, "application/json", "*/*"].contains(one));
    first == Some(EVENTS)
}

/// All that is told, as an answer.
pub fn answer(running: Running, held: Held) -> Response {
    let writing = Writing { running, event: None, held: Some(held), is_over: false };
    let body = stream::unfold(writing, async |mut writing| {
        let bytes = writing.next().await?;
        Some((Ok::<_, Infallible>(bytes), writing))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(EVENTS)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    // Proxies keep answers back until they have a buffer full.
    let unbuffered = [("x-accel-buffering", HeaderValue::from_static("no"))];
    (headers, unbuffered, Body::from_stream(body)).into_response()
}

struct Writing {
    running: Running,
    /// What is being written, in pieces.
    event: Option<Pieces>,
    /// None while an event has it.
    held: Option<Held>,
    is_over: bool,
}

impl Writing {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(event) = &mut self.event {
            if let Some(piece) = event.next() {
                return Some(piece);
            }
            self.held = self.event.take().map(Pieces::into_held);
            return Some(Bytes::from_static(b"\n\n"));
        }
        if self.is_over {
            return None;
        }
        let Ok(entry) = tokio::time::timeout(ALIVE, self.running.next()).await else {
            return Some(Bytes::from_static(b": \n\n"));
        };
        let entry = entry?;
        self.is_over = matches!(entry, Entry::End(_));
        let told = Told::from(entry);
        let begin = format!("event: {}\ndata: ", told.name());
        // JSON as it is written here has no line ends.
        match told {
            result @ Told::Result { .. } => {
                self.event = Some(pieces(self.held.take()?, result).ok()?);
                Some(begin.into())
            }
            told => Some(format!("{begin}{}\n\n", serde_json::to_string(&told).ok()?).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_for_whoever_asks_for_them_first() {
        let wanted = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            is_wanted(&headers)
        };
        assert!(wanted("text/event-stream"));
        assert!(wanted("text/event-stream;q=0.9, application/json"));
        assert!(wanted("text/html, text/event-stream"));
        assert!(!wanted("application/json, text/event-stream"));
        assert!(!wanted("*/*"));
        assert!(!is_wanted(&HeaderMap::new()));
    }
}
