//! PUT, GET, HEAD and DELETE /blobs: bytes by their digest, streamed both ways.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum_extra::headers::{HeaderMapExt, Range};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::{ApiError, ErrorBody, NotAdmitted};
use super::pace::Pace;
use super::{App, Owner};
use crate::blobs::{BlobError, Blobs, Stored, Upload};
use crate::chain::chain;
use crate::task::Digest;

/// What is read of a blob, or of a body, at once.
const CHUNK: usize = 256 << 10;

/// A blob that is there.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct BlobInfo {
    /// Its name: what `{"blob": …}` takes.
    #[schema(example = "sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4")]
    pub blob: String,
    /// Bytes.
    #[schema(example = 3)]
    pub size: u64,
}

/// Keep bytes as a blob: any body, which is streamed to the disk.
#[utoipa::path(
    put,
    operation_id = "put_blob",
    path = "/blobs",
    tag = "Blobs",
    request_body(content = Option<String>, content_type = "application/octet-stream", description = "The bytes, as they are."),
    responses(
        NotAdmitted,
        (status = 201, description = "The blob is there.", body = BlobInfo,
            example = json!({"blob": "sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4", "size": 3})),
        (status = 200, description = "It was there before.", body = BlobInfo,
            example = json!({"blob": "sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4", "size": 3})),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody,
            example = json!({"error": "Request timeout", "details": "The body did not arrive in time"})),
        (status = 413, description = "It is larger than a blob may be.", body = ErrorBody,
            example = json!({"error": "Request too large", "details": "a blob may have 1 GiB, and this one has more"})),
        (status = 507, description = "There is no room for it, or the key has used up its quota.", body = ErrorBody,
            example = json!({"error": "Insufficient storage", "details": "no room for 10 bytes: your blobs have 5 of 12 bytes"})),
        (status = 503, description = "This server keeps no blobs.", body = ErrorBody,
            example = json!({"error": "Service unavailable", "details": "This server keeps no blobs: its log says why"})),
    )
)]
pub async fn put(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    body: Body,
) -> Result<Response, ApiError> {
    store(&app, owner, body, None).await
}

/// Keep bytes as the blob of this name: other bytes are refused.
#[utoipa::path(
    put,
    operation_id = "put_named_blob",
    path = "/blobs/{blob}",
    tag = "Blobs",
    params(("blob" = String, Path, pattern = "^sha256:[0-9a-f]{64}$", description = "sha256: and 64 hexadecimal digits",
        example = "sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4")),
    request_body(content = Option<String>, content_type = "application/octet-stream", description = "The bytes, as they are."),
    responses(
        NotAdmitted,
        (status = 201, description = "The blob is there.", body = BlobInfo,
            example = json!({"blob": "sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4", "size": 3})),
        (status = 200, description = "It was there before.", body = BlobInfo,
            example = json!({"blob": "sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4", "size": 3})),
        (status = 400, description = "The bytes have another digest, or the name is none.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "expected sha256: and 64 hexadecimal digits"})),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody,
            example = json!({"error": "Request timeout", "details": "The body did not arrive in time"})),
        (status = 413, description = "It is larger than a blob may be.", body = ErrorBody,
            example = json!({"error": "Request too large", "details": "a blob may have 1 GiB, and this one has more"})),
        (status = 507, description = "There is no room for it.", body = ErrorBody,
            example = json!({"error": "Insufficient storage", "details": "no room for 10 bytes: your blobs have 5 of 12 bytes"})),
        (status = 503, description = "This server keeps no blobs.", body = ErrorBody,
            example = json!({"error": "Service unavailable", "details": "This server keeps no blobs: its log says why"})),
    )
)]
pub async fn put_named(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    Path(blob): Path<String>,
    body: Body,
) -> Result<Response, ApiError> {
    let expected = digest(blob)?;
    store(&app, owner, body, Some(expected)).await
}

/// A blob's bytes, or with `Range` a part of them.
#[utoipa::path(
    get,
    operation_id = "get_blob",
    path = "/blobs/{blob}",
    tag = "Blobs",
    params(("blob" = String, Path, pattern = "^sha256:[0-9a-f]{64}$", description = "sha256: and 64 hexadecimal digits",
        example = "sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4")),
    responses(
        NotAdmitted,
        (status = 200, description = "The bytes.", body = String, content_type = "application/octet-stream"),
        (status = 206, description = "The part that was asked for.", body = String, content_type = "application/octet-stream"),
        (status = 400, description = "The name is none.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "expected sha256: and 64 hexadecimal digits"})),
        (status = 404, description = "There is no such blob.", body = ErrorBody,
            example = json!({"error": "Not found", "details": "There is no blob sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4"})),
        (status = 416, description = "It has no such part.", body = ErrorBody,
            example = json!({"error": "Range not satisfiable", "details": "the blob has 3 bytes"})),
        (status = 503, description = "This server keeps no blobs.", body = ErrorBody,
            example = json!({"error": "Service unavailable", "details": "This server keeps no blobs: its log says why"})),
    )
)]
pub async fn get(
    State(app): State<Arc<App>>,
    Path(blob): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let digest = digest(blob)?;
    let (file, size) = open(&app, &digest).await?;
    let (status, start, end) = match part(&headers, size)? {
        None => (StatusCode::OK, 0, size),
        Some((start, end)) => (StatusCode::PARTIAL_CONTENT, start, end),
    };
    let mut response = (status, Body::from_stream(chunks(file, start, end))).into_response();
    describe(response.headers_mut(), &digest, end - start);
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {start}-{}/{size}", end - 1);
        response
            .headers_mut()
            .insert(header::CONTENT_RANGE, HeaderValue::from_str(&range).map_err(|_| ApiError::Internal)?);
    }
    Ok(response)
}

/// Whether a blob is there, and how large it is.
#[utoipa::path(
    head,
    operation_id = "head_blob",
    path = "/blobs/{blob}",
    tag = "Blobs",
    params(("blob" = String, Path, pattern = "^sha256:[0-9a-f]{64}$", description = "sha256: and 64 hexadecimal digits",
        example = "sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4")),
    responses(
        (status = 200, description = "It is there."),
        (status = 400, description = "The name is none."),
        (status = 401, description = "No API key, or a malformed header."),
        (status = 403, description = "An unknown API key."),
        (status = 404, description = "It is not."),
        (status = 429, description = "Too many requests from this address or with this key."),
        (status = 500, description = "Faber itself failed."),
        (status = 503, description = "This server keeps no blobs."),
    )
)]
pub async fn head(State(app): State<Arc<App>>, Path(blob): Path<String>) -> Result<Response, ApiError> {
    let digest = digest(blob)?;
    let (_, size) = open(&app, &digest).await?;
    let mut response = StatusCode::OK.into_response();
    describe(response.headers_mut(), &digest, size);
    Ok(response)
}

/// Take a blob out of one's own account; its bytes go with the last one's.
#[utoipa::path(
    delete,
    operation_id = "delete_blob",
    path = "/blobs/{blob}",
    tag = "Blobs",
    params(("blob" = String, Path, pattern = "^sha256:[0-9a-f]{64}$", description = "sha256: and 64 hexadecimal digits",
        example = "sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4")),
    responses(
        NotAdmitted,
        (status = 204, description = "It is no longer yours."),
        (status = 400, description = "The name is none.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "expected sha256: and 64 hexadecimal digits"})),
        (status = 404, description = "It was not.", body = ErrorBody,
            example = json!({"error": "Not found", "details": "You have no blob sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4"})),
        (status = 503, description = "This server keeps no blobs.", body = ErrorBody,
            example = json!({"error": "Service unavailable", "details": "This server keeps no blobs: its log says why"})),
    )
)]
pub async fn delete(
    State(app): State<Arc<App>>,
    Extension(Owner(owner)): Extension<Owner>,
    Path(blob): Path<String>,
) -> Result<StatusCode, ApiError> {
    let digest = digest(blob)?;
    match take_out(&app, owner, digest.clone()).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::Missing(format!("You have no blob {digest}"))),
    }
}

async fn store(app: &App, owner: String, body: Body, expected: Option<Digest>) -> Result<Response, ApiError> {
    let Stored { digest, size, known } = receive(app, owner, body, expected).await?;
    let status = if known { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(BlobInfo { blob: digest.to_string(), size })).into_response())
}

/// Keeps a body as a blob of the owner's.
pub(super) async fn receive(
    app: &App,
    owner: String,
    mut body: Body,
    expected: Option<Digest>,
) -> Result<Stored, ApiError> {
    let mut upload = begin(app, owner, body.size_hint().exact()).await?;
    let mut pace = Pace::default();
    while let Some(bytes) = pace.next(&mut body).await? {
        upload = write(upload, bytes).await?;
    }
    blocking(move || upload.finish(expected.as_ref())).await
}

/// A blob of the owner's that is yet to come.
pub(super) async fn begin(app: &App, owner: String, declared: Option<u64>) -> Result<Upload, ApiError> {
    let blobs = blobs(app)?;
    blocking(move || blobs.begin(&owner, declared)).await
}

pub(super) async fn write(mut upload: Upload, bytes: Bytes) -> Result<Upload, ApiError> {
    blocking(move || upload.write(&bytes).map(|()| upload)).await
}

pub(super) async fn finish(upload: Upload) -> Result<Stored, ApiError> {
    blocking(move || upload.finish(None)).await
}

/// Takes a blob out of the owner's account; false if it was not in it.
pub(super) async fn take_out(app: &App, owner: String, digest: Digest) -> Result<bool, ApiError> {
    let blobs = blobs(app)?;
    blocking(move || blobs.remove(&owner, &digest)).await
}

/// All of a blob's bytes.
pub(super) async fn whole(app: &App, digest: &Digest) -> Result<Response, ApiError> {
    let (file, size) = open(app, digest).await?;
    let mut response = Body::from_stream(chunks(file, 0, size)).into_response();
    describe(response.headers_mut(), digest, size);
    // Of a part nobody asks here.
    response.headers_mut().remove(header::ACCEPT_RANGES);
    Ok(response)
}

fn digest(text: String) -> Result<Digest, ApiError> {
    Digest::try_from(text).map_err(|error| ApiError::Invalid(error.to_string()))
}

fn blobs(app: &App) -> Result<Arc<Blobs>, ApiError> {
    let missing = || ApiError::NotHere("This server keeps no blobs: its log says why".into());
    app.engine.blobs.clone().ok_or_else(missing)
}

/// Whether there is such a blob; counts as a use. Waits for the disk.
pub(super) fn is_there(app: &App, digest: &Digest) -> Result<bool, ApiError> {
    Ok(blobs(app)?.get(digest).map_err(told)?.is_some())
}

async fn open(app: &App, digest: &Digest) -> Result<(File, u64), ApiError> {
    let (blobs, named) = (blobs(app)?, digest.clone());
    let found = blocking(move || blobs.get(&named)).await?;
    found.ok_or_else(|| ApiError::Missing(format!("There is no blob {digest}")))
}

/// Disks are waited for beside the front's other work.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::Internal)?;
    done.map_err(told)
}

fn told(error: BlobError) -> ApiError {
    match error {
        BlobError::TooLarge { .. } => ApiError::TooLargeFor(error.to_string()),
        BlobError::Full { .. } | BlobError::OwnerFull { .. } => ApiError::NoRoom(error.to_string()),
        BlobError::DiskFull { .. } => {
            tracing::error!(error = chain(&error), "no room for a blob");
            ApiError::NoRoom("the server's disk is full".into())
        }
        BlobError::Mismatch { .. } => ApiError::Invalid(error.to_string()),
        BlobError::Io { .. } => {
            tracing::error!(error = chain(&error), "blobs cannot be used");
            ApiError::Internal
        }
    }
}

/// The part that `Range` asks for, as start and end; None for all. One that is no single range counts for nothing (RFC 9110
/// section 14.2).
fn part(headers: &HeaderMap, size: u64) -> Result<Option<(u64, u64)>, ApiError> {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let Some(range) = headers.typed_get::<Range>() else { return Ok(None) };
    let mut parts = range.satisfiable_ranges(size);
    let unsatisfiable = || ApiError::Unsatisfiable(format!("the blob has {size} bytes"));
    let (first, others) = (parts.next().ok_or_else(unsatisfiable)?, parts.next());
    if others.is_some() {
        return Ok(None);
    }
    let start = match first.0 {
        Included(start) => start,
        Excluded(start) => start + 1,
        Unbounded => 0,
    };
    let end = match first.1 {
        Included(end) => end.saturating_add(1).min(size),
        Excluded(end) => end.min(size),
        Unbounded => size,
    };
    if start < end { Ok(Some((start, end))) } else { Err(unsatisfiable()) }
}

fn describe(headers: &mut HeaderMap, digest: &Digest, length: u64) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // Anybody's bytes: no browser is to take them for a page.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", digest.hex())) {
        headers.insert(header::ETAG, tag);
    }
}

/// A file's bytes, read as the client takes them.
fn chunks(file: File, start: u64, end: u64) -> impl stream::Stream<Item = io::Result<Bytes>> {
    let file = Arc::new(file);
    stream::try_unfold(start, move |at| {
        let file = file.clone();
        async move {
            if at >= end {
                return Ok(None);
            }
            let length = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let read = move || {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, at).map(|()| Bytes::from(bytes))
            };
            let bytes = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
            Ok(Some((bytes, at + length as u64)))
        }
    })
}
