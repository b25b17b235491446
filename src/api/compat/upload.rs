//! Files that come as multipart/form-data (RFC 7578): each is streamed to the disk and becomes a blob.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use futures_util::stream::{self, Stream};
use multer::{Field, Multipart};

use crate::api::App;
use crate::api::blobs;
use crate::api::error::ApiError;
use crate::api::pace::Pace;
use crate::blobs::Stored;
use crate::compat::librechat::file_path;
use crate::scheduler::Client;

/// The most files of one upload.
pub(super) const FILES: usize = 200;
/// Bytes that are on their way from the client to the disk, and of what is between the files.
const UNDER_WAY: u64 = 1 << 20;
/// Bytes of a field that is no file.
const FIELD: usize = 8 << 10;

/// What came.
pub(super) struct Uploaded {
    pub files: Vec<File>,
    /// Whether they are for reading alone.
    pub read_only: bool,
    /// Whether there were more, which are not kept.
    pub too_many: bool,
}

pub(super) struct File {
    pub name: String,
    pub content_type: String,
    pub content: Result<Stored, ApiError>,
}

/// Takes the files of a body, which become the owner's blobs.
///
/// # Errors
/// When the body does not come; within, what keeps it from being an upload.
pub(super) async fn receive(
    app: &App,
    client: Client,
    owner: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Result<Uploaded, String>, ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Ok(boundary) = multer::parse_boundary(content_type) else {
        return Ok(Err("Invalid content type. Must be multipart/form-data.".into()));
    };
    let mut held = app.buffers.hold(client);
    held.more(UNDER_WAY)?;
    let under_way = Arc::new(AtomicU64::new(0));
    let mut parts = Multipart::new(incoming(body, under_way.clone()), boundary);
    let mut uploaded = Uploaded { files: Vec::new(), read_only: false, too_many: false };
    loop {
        let mut part = match parts.next_field().await {
            Ok(Some(part)) => part,
            Ok(None) => return Ok(Ok(uploaded)),
            Err(error) => return given_up(app, owner, uploaded, error).await,
        };
        let done = match part.file_name().map(str::to_owned) {
            Some(_) if uploaded.files.len() == FILES => {
                uploaded.too_many = true;
                pass_over(&mut part, &under_way).await
            }
            Some(name) => match file(app, owner, name, &mut part, &under_way).await {
                Ok(file) => {
                    uploaded.files.push(file);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            None => match text(&mut part, &under_way).await {
                Ok(text) => {
                    if part.name() == Some("read_only") {
                        uploaded.read_only = text.eq_ignore_ascii_case(b"true");
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            },
        };
        if let Err(error) = done {
            return given_up(app, owner, uploaded, error).await;
        }
    }
}

/// Nothing stays of an upload that does not come to its end.
async fn given_up(
    app: &App,
    owner: &str,
    uploaded: Uploaded,
    error: multer::Error,
) -> Result<Result<Uploaded, String>, ApiError> {
    let stored = uploaded.files.into_iter().filter_map(|file| file.content.ok());
    for stored in stored.filter(|stored| !stored.known) {
        blobs::take_out(app, owner.to_owned(), stored.digest).await?;
    }
    match error {
        multer::Error::StreamReadFailed(error) => match error.downcast::<ApiError>() {
            Ok(error) => Err(*error),
            Err(error) => Ok(Err(error.to_string())),
        },
        error => Ok(Err(format!("The upload cannot be read: {error}"))),
    }
}

/// A body's bytes, one piece at a time: what reads them takes all that there is at once.
fn incoming(body: Body, under_way: Arc<AtomicU64>) -> impl Stream<Item = Result<Bytes, ApiError>> {
    stream::try_unfold((Pace::default(), body, under_way), |(mut pace, mut body, under_way)| async move {
        tokio::task::yield_now().await;
        let Some(bytes) = pace.next(&mut body).await? else { return Ok(None) };
        let before = under_way.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if before + bytes.len() as u64 > UNDER_WAY {
            return Err(ApiError::Invalid("the upload has too much between its files".into()));
        }
        Ok(Some((bytes, (pace, body, under_way))))
    })
}

async fn next(part: &mut Field<'_>, under_way: &AtomicU64) -> Result<Option<Bytes>, multer::Error> {
    let chunk = part.chunk().await?;
    under_way.fetch_sub(chunk.as_ref().map_or(0, Bytes::len) as u64, Ordering::Relaxed);
    Ok(chunk)
}

async fn pass_over(part: &mut Field<'_>, under_way: &AtomicU64) -> Result<(), multer::Error> {
    while next(part, under_way).await?.is_some() {}
    Ok(())
}

/// A file, or why it is not kept.
async fn file(
    app: &App,
    owner: &str,
    name: String,
    part: &mut Field<'_>,
    under_way: &AtomicU64,
) -> Result<File, multer::Error> {
    let content_type = part.content_type().map_or("application/octet-stream", |kind| kind.essence_str()).to_owned();
    let (name, begun) = match file_path(&name) {
        Ok(path) => (path, blobs::begin(app, owner.to_owned(), None).await),
        Err(error) => (name.chars().take(FIELD).collect(), Err(ApiError::Invalid(error))),
    };
    let content = match begun {
        Err(error) => Err(error),
        Ok(upload) => {
            let mut upload = Ok(upload);
            while let Some(bytes) = next(part, under_way).await? {
                // What is left of one that cannot be kept is passed over.
                if let Ok(before) = upload {
                    upload = blobs::write(before, bytes).await;
                }
            }
            match upload {
                Ok(upload) => blobs::finish(upload).await,
                Err(error) => Err(error),
            }
        }
    };
    pass_over(part, under_way).await?;
    Ok(File { name, content_type, content })
}

/// A field that is no file, as far as one may be long.
async fn text(part: &mut Field<'_>, under_way: &AtomicU64) -> Result<Vec<u8>, multer::Error> {
    let mut text = Vec::new();
    while let Some(bytes) = next(part, under_way).await? {
        let room = FIELD - text.len();
        text.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
    Ok(text)
}
