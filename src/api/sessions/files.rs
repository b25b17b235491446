//! The files of a session.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use super::{enter, refused};
use crate::api::error::{ApiError, ErrorBody, NotAdmitted};
use crate::api::pace::Pace;
use crate::api::{App, Owner, blobs, jobs};
use crate::artifact::{Artifact, Data, Packed, Packing, Spool};
use crate::runner::wire::{FileAnswer, FileOrder};
use crate::scheduler::Client;
use crate::sessions::Session;
use crate::task::{Entry, Node, WorkspacePath};

/// Entries of a directory that are told, at most.
const ENTRIES: usize = 10_000;
const CHUNK: u64 = 256 << 10;

/// What a directory holds.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"entries": [{"name": "main.py", "type": "file", "size": 14, "mode": "0644"}]}))]
pub struct Listing {
    pub entries: Vec<Entry>,
}

/// A workspace, kept as a blob.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"blob": "sha256:98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4", "size": 10240, "format": "tar"}))]
pub struct Snapshot {
    pub blob: String,
    pub size: u64,
    pub format: &'static str,
}

/// What the workspace itself holds.
#[utoipa::path(
    get,
    path = "/sessions/{id}/files",
    tag = "Sessions",
    params(("id" = String, Path, description = "As it was told", example = "00000000000000000000000000000000")),
    responses(
        NotAdmitted,
        (status = 200, description = "The entries, by name.", body = Listing),
        (status = 404, description = "There never was such a session, or it is not yours.", body = ErrorBody,
            example = json!({"error": "Not found", "details": "You have no session 00000000000000000000000000000000"})),
        (status = 410, description = "It has ended.", body = ErrorBody,
            example = json!({"error": "Gone", "details": "The session has ended: it was deleted"})),
        (status = 413, description = "There are more than are told.", body = ErrorBody,
            example = json!({"error": "Request too large", "details": "\".\" has more than 10000 entries"})),
    )
)]
pub async fn list_files(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let session = enter(&app, &jobs::owner_of(client, owner), &id)?;
    entries(&session, None).await
}

/// A file's bytes; with `?list` what a directory holds.
#[utoipa::path(
    get,
    path = "/sessions/{id}/files/{*path}",
    tag = "Sessions",
    params(
        ("id" = String, Path, description = "As it was told", example = "00000000000000000000000000000000"),
        ("path" = String, Path, description = "Relative to the workspace", example = "hello.txt"),
        ("list" = Option<String>, Query, description = "Whether it is a directory to be listed", example = ""),
    ),
    responses(
        NotAdmitted,
        (status = 200, description = "The bytes, or the entries.", body = String, content_type = "application/octet-stream"),
        (status = 400, description = "It is no path, or no regular file.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "\"a\": a link is on the way"})),
        (status = 404, description = "There is no such session of yours, or nothing there.", body = ErrorBody,
            example = json!({"error": "Not found", "details": "There is nothing at \"a\" in the workspace"})),
        (status = 410, description = "The session has ended.", body = ErrorBody,
            example = json!({"error": "Gone", "details": "The session has ended: it was deleted"})),
        (status = 413, description = "It is larger than what is given back.", body = ErrorBody,
            example = json!({"error": "Request too large", "details": "\"a\" has 1 GiB, more than 64 MiB"})),
    )
)]
pub async fn get_file(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    Path((id, path)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let session = enter(&app, &jobs::owner_of(client, owner), &id)?;
    let parsed = workspace_path(&path)?;
    let [list] = jobs::parameters(query.as_deref(), ["list"])?;
    if list.is_some() {
        return entries(&session, Some(parsed)).await;
    }
    let most = app.engine.bounds().outputs.each;
    let (answer, fds) = session.hosted.files(FileOrder::Read { path: parsed, most }, Vec::new()).await.map_err(gone)?;
    let FileAnswer::File { mode, data } = answered(answer, &path)? else { return Err(ApiError::Internal) };
    let content = unpacked(data, fds)?;
    let size = content.size();
    let body = Body::from_stream(chunks(content));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, size.into()),
        // Anybody's bytes: no browser is to take them for a page.
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, [("x-file-mode", format!("{mode:04o}"))], body).into_response())
}

/// Write a file, in the place of what is there; its directories are made.
#[utoipa::path(
    put,
    path = "/sessions/{id}/files/{*path}",
    tag = "Sessions",
    params(
        ("id" = String, Path, description = "As it was told", example = "00000000000000000000000000000000"),
        ("path" = String, Path, description = "Relative to the workspace", example = "hello.txt"),
        ("mode" = Option<String>, Query, description = "Its permissions, in octal", example = "0644"),
    ),
    request_body(content = Option<String>, content_type = "application/octet-stream", description = "The bytes, as they are."),
    responses(
        NotAdmitted,
        (status = 204, description = "It is there."),
        (status = 400, description = "It is no path, or cannot be written.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "\"a/b\": Not a directory"})),
        (status = 404, description = "There is no such session of yours.", body = ErrorBody,
            example = json!({"error": "Not found", "details": "You have no session 00000000000000000000000000000000"})),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody,
            example = json!({"error": "Request timeout", "details": "The body did not arrive in time"})),
        (status = 410, description = "The session has ended.", body = ErrorBody,
            example = json!({"error": "Gone", "details": "The session has ended: it was deleted"})),
        (status = 413, description = "It is larger than the workspace.", body = ErrorBody,
            example = json!({"error": "Request too large", "details": "The workspace has 256 MiB"})),
        (status = 507, description = "The server has no room for it on its way.", body = ErrorBody,
            example = json!({"error": "Insufficient storage", "details": "There is no room for what is handed on (outputs.spool)"})),
    )
)]
pub async fn put_file(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    Path((id, path)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let session = enter(&app, &jobs::owner_of(client, owner), &id)?;
    let parsed = workspace_path(&path)?;
    let [mode] = jobs::parameters(query.as_deref(), ["mode"])?;
    let octal = |text: &str| u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    let mode = match mode.as_deref().map(octal) {
        Some(None) => return Err(ApiError::Invalid("mode: expected permissions such as 0644".into())),
        mode => mode.flatten().or(Some(0o644)),
    };
    let content = spooled(&app.engine.spool, body, session.opening.limits.workspace).await?;
    place(&session, BTreeMap::from([(parsed, Node::File { content, mode })])).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove a file, a link, or an empty directory.
#[utoipa::path(
    delete,
    path = "/sessions/{id}/files/{*path}",
    tag = "Sessions",
    params(
        ("id" = String, Path, description = "As it was told", example = "00000000000000000000000000000000"),
        ("path" = String, Path, description = "Relative to the workspace", example = "hello.txt"),
    ),
    responses(
        NotAdmitted,
        (status = 204, description = "It is gone."),
        (status = 400, description = "It is no path, or a directory with something in it.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "\"a\": Directory not empty"})),
        (status = 404, description = "There is no such session of yours, or nothing there.", body = ErrorBody,
            example = json!({"error": "Not found", "details": "There is nothing at \"a\" in the workspace"})),
        (status = 410, description = "The session has ended.", body = ErrorBody,
            example = json!({"error": "Gone", "details": "The session has ended: it was deleted"})),
    )
)]
pub async fn delete_file(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    Path((id, path)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let session = enter(&app, &jobs::owner_of(client, owner), &id)?;
    let parsed = workspace_path(&path)?;
    let (answer, _) = session.hosted.files(FileOrder::Remove(parsed), Vec::new()).await.map_err(gone)?;
    answered(answer, &path)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Keep all of a session's workspace as a blob, an archive that `archives` of a new session or of a task takes.
#[utoipa::path(
    post,
    path = "/sessions/{id}/snapshot",
    tag = "Sessions",
    params(("id" = String, Path, description = "As it was told", example = "00000000000000000000000000000000")),
    responses(
        NotAdmitted,
        (status = 201, description = "The blob is there.", body = Snapshot),
        (status = 404, description = "There is no such session of yours.", body = ErrorBody,
            example = json!({"error": "Not found", "details": "You have no session 00000000000000000000000000000000"})),
        (status = 410, description = "The session has ended.", body = ErrorBody,
            example = json!({"error": "Gone", "details": "The session has ended: it was deleted"})),
        (status = 413, description = "The workspace is larger than a snapshot may be.", body = ErrorBody,
            example = json!({"error": "Request too large", "details": "the workspace has more than a snapshot may have (outputs.total)"})),
        (status = 503, description = "This server keeps no blobs.", body = ErrorBody,
            example = json!({"error": "Service unavailable", "details": "This server keeps no blobs: its log says why"})),
        (status = 507, description = "There is no room for it.", body = ErrorBody,
            example = json!({"error": "Insufficient storage", "details": "no room for 10 bytes: your blobs have 5 of 12 bytes"})),
    )
)]
pub async fn snapshot(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    Extension(Owner(owner)): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let session = enter(&app, &jobs::owner_of(client, owner.clone()), &id)?;
    let most = app.engine.bounds().outputs.total;
    let (answer, fds) = session.hosted.files(FileOrder::Snapshot { most }, Vec::new()).await.map_err(gone)?;
    let FileAnswer::File { data, .. } = answered(answer, ".")? else { return Err(ApiError::Internal) };
    let content = unpacked(data, fds)?;
    let stored = blobs::receive(&app, owner, Body::from_stream(chunks(content)), None).await?;
    let told = Snapshot { blob: stored.digest.to_string(), size: stored.size, format: "tar" };
    Ok((StatusCode::CREATED, Json(told)).into_response())
}

/// Writes files into the workspace.
pub async fn place(session: &Session, nodes: BTreeMap<WorkspacePath, Node<Artifact>>) -> Result<(), ApiError> {
    let mut packing = Packing::default();
    let pack = |(path, node): (WorkspacePath, Node<Artifact>)| {
        let node = node.try_map(|artifact| Ok::<_, std::convert::Infallible>(packing.pack(artifact)));
        (path, node.unwrap_or_else(|never| match never {}))
    };
    let nodes: BTreeMap<WorkspacePath, Node<Data>> = nodes.into_iter().map(pack).collect();
    let fds: Result<Vec<OwnedFd>, _> = packing.fds().into_iter().map(|fd| fd.try_clone_to_owned()).collect();
    let fds = fds.map_err(|_| ApiError::Internal)?;
    let named = nodes.keys().next().map_or_else(String::new, |path| path.as_str().to_owned());
    let (answer, _) = session.hosted.files(FileOrder::Place(nodes), fds).await.map_err(gone)?;
    answered(answer, &named).map(drop)
}

async fn entries(session: &Session, path: Option<WorkspacePath>) -> Result<Response, ApiError> {
    let told = path.as_ref().map_or(".", WorkspacePath::as_str).to_owned();
    let order = FileOrder::List { path, most: ENTRIES };
    let (answer, _) = session.hosted.files(order, Vec::new()).await.map_err(gone)?;
    match answered(answer, &told)? {
        FileAnswer::Entries(entries) => Ok(Json(Listing { entries }).into_response()),
        _ => Err(ApiError::Internal),
    }
}

fn workspace_path(path: &str) -> Result<WorkspacePath, ApiError> {
    WorkspacePath::parse(path).map_err(|error| ApiError::Invalid(error.to_string()))
}

fn answered(answer: FileAnswer, path: &str) -> Result<FileAnswer, ApiError> {
    match answer {
        FileAnswer::Refused(refusal) => Err(refused(refusal, path)),
        answer => Ok(answer),
    }
}

fn gone(_: std::io::Error) -> ApiError {
    ApiError::Gone("The session has ended".into())
}

fn unpacked(data: Data, fds: Vec<OwnedFd>) -> Result<Artifact, ApiError> {
    Packed::new(fds).unpack(data).map_err(|_| ApiError::Internal)
}

/// A body of so many bytes at most, kept as it comes.
async fn spooled(spool: &Arc<Spool>, mut body: Body, most: u64) -> Result<Artifact, ApiError> {
    let no_room = |_| ApiError::NoRoom("There is no room for what is handed on (outputs.spool)".into());
    let mut file = spool.file().map_err(no_room)?;
    let (mut pace, mut size) = (Pace::default(), 0);
    while let Some(bytes) = pace.next(&mut body).await? {
        size += bytes.len() as u64;
        if size > most {
            return Err(ApiError::TooLargeFor(format!("The workspace has {}", crate::task::Bytes(most))));
        }
        // Memory, not a disk.
        std::io::Write::write_all(&mut file, &bytes).map_err(no_room)?;
    }
    let file = crate::artifact::read_only(&file).map_err(no_room)?;
    Artifact::whole(Arc::new(file)).map_err(no_room)
}

/// An artifact's bytes, read as the client takes them.
fn chunks(content: Artifact) -> impl futures_util::Stream<Item = std::io::Result<axum::body::Bytes>> {
    let mut reader = content.reader();
    futures_util::stream::iter(std::iter::from_fn(move || {
        let mut bytes = Vec::new();
        match std::io::Read::read_to_end(&mut std::io::Read::take(&mut reader, CHUNK), &mut bytes) {
            Ok(0) => None,
            Ok(_) => Some(Ok(bytes.into())),
            Err(error) => Some(Err(error)),
        }
    }))
}
