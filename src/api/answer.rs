//! Answers of JSON. What tasks wrote is in memory once, as it is, and becomes JSON as the client takes it; an answer that is
//! small is written at once, with its length.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;

use super::buffers::Held;
use super::error::ApiError;
use crate::judge::JudgeResponse;
use crate::task::{Bytes as Size, MARK, Text};

/// Larger answers come in chunks of about this size.
const CHUNK: usize = 64 << 10;
/// Larger texts are told apart.
const SMALL: usize = 1 << 10;

/// What of an answer may be large.
pub trait Texts {
    fn each_text(&mut self, each: &mut dyn FnMut(&mut Text));
}

impl Texts for super::ExecuteResponse {
    fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        self.results.iter_mut().for_each(|result| result.each_text(each));
    }
}

impl Texts for JudgeResponse {
    fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        let cases = self.cases.iter_mut().map(|case| &mut case.result);
        self.compile.iter_mut().chain(cases).for_each(|result| result.each_text(each));
    }
}

/// An answer that keeps what is held until it is written, or of no use any more.
pub fn json_answer(held: Held, answer: impl Serialize + Texts) -> Result<Response, ApiError> {
    let mut answer = pieces(held, answer)?;
    let first = answer.next().unwrap_or_default();
    let body = match answer.is_over() {
        true => Body::from(held_bytes(first, answer.held)),
        false => {
            let chunks = std::iter::once(first).chain(answer);
            Body::from_stream(stream::iter(chunks.map(Ok::<_, Infallible>)))
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// An answer as bytes, for which room is taken as they come.
///
/// # Errors
/// `TooLargeFor` with more than `most` bytes, or more than there is room for.
pub fn json_bytes(held: Held, answer: impl Serialize + Texts, most: u64) -> Result<(Vec<u8>, Held), ApiError> {
    let mut answer = pieces(held, answer)?;
    let mut json = Vec::new();
    while let Some(chunk) = answer.next() {
        if (json.len() + chunk.len()) as u64 > most {
            let text = format!("The answer takes more than jobs.response, {}; files are kept as blobs", Size(most));
            return Err(ApiError::TooLargeFor(text));
        }
        answer.held.more(chunk.len() as u64)?;
        json.extend_from_slice(&chunk);
    }
    Ok((json, answer.held))
}

/// An answer in pieces, each made when it is taken.
///
/// # Errors
/// When it cannot be JSON.
pub fn pieces(held: Held, mut answer: impl Serialize + Texts) -> Result<Pieces, ApiError> {
    let mut texts = Vec::new();
    answer.each_text(&mut |text| {
        if text.size() > SMALL {
            texts.push(text.set_apart(texts.len()));
        }
    });
    let json = serde_json::to_vec(&answer).map_err(|_| ApiError::Internal)?;
    Ok(Pieces { json: json.into(), texts, within: None, held })
}

/// Bytes that keep what is held until they are written, or of no use any more.
pub fn held_bytes(bytes: Bytes, held: Held) -> Bytes {
    Bytes::from_owner(Whole { bytes, _held: held })
}

/// An answer of one chunk.
struct Whole {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What is still to be written of an answer.
pub struct Pieces {
    /// With marks where texts go.
    json: Bytes,
    texts: Vec<Text>,
    /// Which text is being written, and so far into it.
    within: Option<(usize, usize)>,
    held: Held,
}

impl Pieces {
    pub fn into_held(self) -> Held {
        self.held
    }

    fn is_over(&self) -> bool {
        self.json.is_empty() && self.within.is_none()
    }

    /// Appends all before the next mark, and takes that.
    fn skeleton(&mut self, chunk: &mut Vec<u8>) {
        let mark = self.json.windows(MARK.len()).position(|window| window == MARK.as_bytes());
        chunk.extend_from_slice(&self.json.split_to(mark.unwrap_or(self.json.len())));
        if mark.is_some() {
            let number = self.json.split_off(MARK.len());
            let end = number.iter().position(|byte| *byte == b'"').unwrap_or(number.len());
            let text = std::str::from_utf8(&number[..end]).ok().and_then(|number| number.parse().ok());
            self.within = text.map(|text| (text, 0));
            self.json = number.slice((end + 1).min(number.len())..);
        }
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK && !self.is_over() {
            match self.within {
                None => self.skeleton(&mut chunk),
                Some((text, at)) => self.within = self.texts[text].write_part(at, &mut chunk).map(|at| (text, at)),
            }
        }
        (!chunk.is_empty()).then(|| chunk.into())
    }
}
