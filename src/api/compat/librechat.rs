//! LibreChat's code API below `/v1`: programs, and the files of their sessions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use serde_json::json;

use super::kept::{Kept, Names};
use super::upload::{self, Uploaded};
use super::{Caller, Order, Waits, both, key_in_its_header, percent_encoded, run_order, told};
use crate::api::answer::{Texts, json_answer};
use crate::api::error::ApiError;
use crate::api::execute::offers;
use crate::api::{App, Owner, admission, blobs};
use crate::compat::librechat::{self, Described, Executed, FileRef, Known, Left, Origin, Refusal};
use crate::image::WORKSPACE;
use crate::task::{Digest, FileResult, Status, TaskResult, Text};

/// A session's file, whose name is both its ids.
#[derive(Debug, Clone)]
struct File {
    name: String,
    size: u64,
    content_type: String,
    read_only: bool,
    at: SystemTime,
}

type Sessions = Arc<Names<File>>;

pub(super) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    let router = both(Router::new(), "/v1/exec", post(exec));
    let router = both(router, "/v1/exec/programmatic", post(programmatic));
    let router = both(router, "/v1/upload", post(upload_files));
    let router = both(router, "/v1/upload/batch", post(upload_batch));
    let router = both(router, "/v1/files/{session}", get(list));
    let router = both(router, "/v1/files/{session}/{id}", delete(remove));
    let router = both(router, "/v1/sessions/{session}/objects/{id}", get(metadata));
    let router = both(router, "/v1/download/{session}/{id}", get(download));
    let sessions: Sessions = Names::new();
    let admitted = router.layer(Extension(sessions)).layer(from_fn_with_state(app.clone(), admission::admit));
    let open = both(Router::new(), "/v1/health", get(|| async { Json(json!({ "status": "ok" })) }));
    admitted.merge(open).layer(map_response(as_librechat_tells)).layer(from_fn(key_in_its_header))
}

/// Its errors have one field.
async fn as_librechat_tells(response: Response) -> Response {
    let status = response.status();
    told(response, status, "error")
}

fn refused(status: StatusCode, error: impl Into<String>) -> Response {
    (status, Json(json!({ "error": error.into() }))).into_response()
}

fn name_of(origin: &Origin) -> String {
    format!("{}/{}", origin.storage_session_id, origin.id)
}

/// A random id, as its own are: 21 letters, digits, `_` and `-`, which clients check.
fn new_id() -> Result<String, ApiError> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
    let mut bytes = [0; 21];
    getrandom::fill(&mut bytes).map_err(|_| ApiError::Internal)?;
    Ok(bytes.map(|byte| char::from(LETTERS[usize::from(byte & 63)])).iter().collect())
}

impl Texts for Executed {
    fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        Executed::each_text(self, each);
    }
}

async fn exec(
    State(app): State<Arc<App>>,
    Extension(sessions): Extension<Sessions>,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let Owner(owner) = caller.1.0.clone();
    let files = sessions.clone();
    let read = move |app: &App, owner: &str, body: &[u8]| {
        let mut failure = None;
        let mut find = |origin: &Origin| match files.find(app, owner, &name_of(origin)) {
            Ok(kept) => kept.map(|Kept { blob, value }| (blob, value.read_only)),
            Err(error) => {
                failure = Some(error);
                None
            }
        };
        let offers = offers(app)?;
        let order = librechat::order(body, &mut find, &offers, WORKSPACE);
        match failure {
            Some(error) => Err(error),
            None => Ok(order.map(|(task, known)| Order { task, offers, known })),
        }
    };
    match run_order(&app, caller, body, Waits::ForDisk, read).await? {
        Ok((known, Some(mut result), mut held)) => {
            if result.status == Status::NotExecuted {
                return Ok(refused(StatusCode::BAD_REQUEST, result.error.unwrap_or_default()));
            }
            // Its stderr is written once more where a file is not kept.
            held.more(result.stderr.as_ref().map_or(0, |text| text.size() as u64))?;
            let session = new_id()?;
            let (files, unkept) = keep(&app, &sessions, &owner, &session, &known, &mut result).await?;
            json_answer(held, Executed::of(session, result, files, &unkept))
        }
        Ok((_, None, _)) => Err(ApiError::Internal),
        Err(Refusal::Message(message)) => Ok(refused(StatusCode::BAD_REQUEST, message)),
        Err(Refusal::NotAFile(message)) => Ok(refused(StatusCode::FORBIDDEN, message)),
    }
}

type Unkept = Vec<(String, String)>;

/// Makes the program's files those of a session, unless it failed; those that are not kept come with the reason.
async fn keep(
    app: &Arc<App>,
    sessions: &Sessions,
    owner: &str,
    session: &str,
    known: &Known,
    result: &mut TaskResult,
) -> Result<(Vec<FileRef>, Unkept), ApiError> {
    let files = result.files.take().unwrap_or_default();
    if result.status != Status::Success {
        for file in files.into_values() {
            forget_blob(app, sessions, owner, file.blob).await?;
        }
        return Ok((Vec::new(), Vec::new()));
    }
    let (mut told, mut unkept) = (Vec::new(), librechat::unkept(result.omitted_outputs.take()));
    for (name, file) in files {
        match known.left(&name, &file) {
            Left::Input(input) => {
                // One that is read-only may have other bytes, which nobody gets.
                if file.blob.as_deref() != Some(input.blob.to_string().as_str()) {
                    forget_blob(app, sessions, owner, file.blob).await?;
                }
                told.push(FileRef::inherited(name, input.origin));
            }
            Left::Program => forget_blob(app, sessions, owner, file.blob).await?,
            Left::New { modified_from } => match store(app, sessions, owner, session, &name, file).await {
                Ok(origin) => told.push(FileRef::new(name, origin, modified_from)),
                Err(error) => unkept.push((name, error.to_string())),
            },
        }
    }
    Ok((told, unkept))
}

/// Makes one of a program's files a session's.
async fn store(
    app: &App,
    sessions: &Sessions,
    owner: &str,
    session: &str,
    name: &str,
    file: FileResult,
) -> Result<Origin, ApiError> {
    let blob = match file.blob {
        Some(blob) => Digest::try_from(blob).map_err(|_| ApiError::Internal)?,
        None => {
            let text = file.text.or(file.base64).ok_or(ApiError::Internal)?;
            blobs::receive(app, owner.to_owned(), Body::from(text.bytes().clone()), None).await?.digest
        }
    };
    let content_type = "application/octet-stream".to_owned();
    let file = File { name: name.to_owned(), size: file.size, content_type, read_only: false, at: SystemTime::now() };
    insert(sessions, owner, session, blob, file)
}

fn insert(sessions: &Sessions, owner: &str, session: &str, blob: Digest, file: File) -> Result<Origin, ApiError> {
    let origin = Origin { id: new_id()?, storage_session_id: session.to_owned() };
    let size = file.name.len() + file.content_type.len();
    sessions.insert(owner, name_of(&origin), Kept { blob, value: file }, size);
    Ok(origin)
}

/// Takes a blob that a program left, and that is no file of a session, out of the owner's account.
async fn forget_blob(app: &App, sessions: &Sessions, owner: &str, blob: Option<String>) -> Result<(), ApiError> {
    let blob = blob.and_then(|blob| Digest::try_from(blob).ok());
    match blob.filter(|blob| !sessions.has(owner, blob)) {
        Some(blob) => blobs::take_out(app, owner.to_owned(), blob).await.map(|_| ()),
        None => Ok(()),
    }
}

/// Tools that code calls in rounds take more than one task.
async fn programmatic() -> Response {
    refused(StatusCode::NOT_IMPLEMENTED, "Programmatic tool calling is not there: this server has /exec alone")
}

/// What is uploaded, and whose it is; or why there is nothing.
async fn uploaded(
    app: &App,
    (Extension(client), Extension(Owner(owner)), headers): Caller,
    body: Body,
) -> Result<Result<(String, Uploaded), Response>, ApiError> {
    match upload::receive(app, client, &owner, &headers, body).await {
        Ok(Ok(uploaded)) => Ok(Ok((owner, uploaded))),
        Ok(Err(message)) => Ok(Err(refused(StatusCode::BAD_REQUEST, message))),
        Err(ApiError::Late) => Ok(Err(refused(StatusCode::GATEWAY_TIMEOUT, "Upload timeout"))),
        Err(error) => Err(error),
    }
}

async fn upload_files(
    State(app): State<Arc<App>>,
    Extension(sessions): Extension<Sessions>,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let (owner, uploaded) = match uploaded(&app, caller, body).await? {
        Ok(uploaded) => uploaded,
        Err(response) => return Ok(response),
    };
    // All of them, or none.
    let Uploaded { files, read_only, too_many } = uploaded;
    let lack = match (files.iter().find(|file| file.content.is_err()), too_many) {
        (Some(file), _) => match &file.content {
            Err(ApiError::TooLargeFor(_)) => {
                Some((StatusCode::PAYLOAD_TOO_LARGE, "File size limit exceeded".to_owned()))
            }
            Err(error) => {
                let status = error.clone().into_response().status();
                Some((status, format!("{}: {error}", file.name)))
            }
            Ok(_) => None,
        },
        (None, true) => Some((StatusCode::BAD_REQUEST, format!("An upload has at most {} files", upload::FILES))),
        (None, false) if files.is_empty() => Some((StatusCode::BAD_REQUEST, "No files provided".to_owned())),
        (None, false) => None,
    };
    if let Some((status, error)) = lack {
        for stored in files.into_iter().filter_map(|file| file.content.ok()).filter(|stored| !stored.known) {
            forget_blob(&app, &sessions, &owner, Some(stored.digest.to_string())).await?;
        }
        return Ok(refused(status, error));
    }
    let session = new_id()?;
    let mut told = Vec::new();
    for file in files {
        let (name, origin) = file_of(&sessions, &owner, &session, read_only, file)?;
        told.push(json!({ "filename": name, "fileId": origin.map_err(|_| ApiError::Internal)?.id }));
    }
    let answer = json!({ "message": "success", "storage_session_id": session, "session_id": session, "files": told });
    Ok(Json(answer).into_response())
}

/// Those that can be kept; of the others each has its reason.
async fn upload_batch(
    State(app): State<Arc<App>>,
    Extension(sessions): Extension<Sessions>,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let (owner, Uploaded { files, read_only, too_many }) = match uploaded(&app, caller, body).await? {
        Ok(uploaded) => uploaded,
        Err(response) => return Ok(response),
    };
    if files.is_empty() {
        return Ok(refused(StatusCode::BAD_REQUEST, "No files provided"));
    }
    let session = new_id()?;
    let (mut told, mut failed) = (Vec::new(), 0);
    for file in files {
        let (name, origin) = file_of(&sessions, &owner, &session, read_only, file)?;
        told.push(match origin {
            Ok(origin) => json!({ "status": "success", "filename": name, "fileId": origin.id }),
            Err(error) => {
                failed += 1;
                json!({ "status": "error", "filename": name, "error": error.to_string() })
            }
        });
    }
    let succeeded = told.len() - failed;
    let (status, message) = match (succeeded, failed) {
        (_, 0) => (StatusCode::OK, "success"),
        (0, _) => (StatusCode::BAD_REQUEST, "error"),
        _ => (StatusCode::OK, "partial_success"),
    };
    let mut answer = json!({
        "message": message, "storage_session_id": session, "session_id": session, "files": told,
        "succeeded": succeeded, "failed": failed,
    });
    if too_many {
        (answer["filesLimitReached"], answer["maxFiles"]) = (true.into(), upload::FILES.into());
    }
    Ok((status, Json(answer)).into_response())
}

type OneUploaded = (String, Result<Origin, ApiError>);

/// Makes an uploaded file a session's, if it came.
fn file_of(
    sessions: &Sessions,
    owner: &str,
    session: &str,
    read_only: bool,
    file: upload::File,
) -> Result<OneUploaded, ApiError> {
    let upload::File { name, content_type, content } = file;
    let stored = match content {
        Ok(stored) => stored,
        Err(error) => return Ok((name, Err(error))),
    };
    let file = File { name: name.clone(), size: stored.size, content_type, read_only, at: SystemTime::now() };
    Ok((name, Ok(insert(sessions, owner, session, stored.digest, file)?)))
}

/// A file with its ids, if its bytes are still here.
async fn find(app: &Arc<App>, sessions: &Sessions, owner: &str, origin: Origin) -> Result<Option<Described>, ApiError> {
    let (app, sessions, owner) = (app.clone(), sessions.clone(), owner.to_owned());
    let found = move || Ok(sessions.find(&app, &owner, &name_of(&origin))?.map(|kept| described(origin, kept)));
    tokio::task::spawn_blocking(found).await.map_err(|_| ApiError::Internal)?
}

fn described(origin: Origin, Kept { blob, value }: Kept<File>) -> Described {
    let File { name, size, content_type, read_only, at } = value;
    let modified = humantime::format_rfc3339_millis(at).to_string();
    Described { origin, name, blob, size, content_type, modified, read_only }
}

fn no_file() -> Response {
    let details = "The file may have expired or does not exist";
    (StatusCode::NOT_FOUND, Json(json!({ "error": "File not found", "details": details }))).into_response()
}

async fn list(
    State(app): State<Arc<App>>,
    Extension(sessions): Extension<Sessions>,
    Extension(Owner(owner)): Extension<Owner>,
    Path(session): Path<String>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let query: BTreeMap<_, _> =
        form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let detail = query.get("detail").map_or("simple", String::as_str);
    let mut told = Vec::new();
    for (name, _) in sessions.beginning(&owner, &format!("{session}/")) {
        let id = name.split_at(session.len() + 1).1.to_owned();
        let origin = Origin { id, storage_session_id: session.clone() };
        told.extend(find(&app, &sessions, &owner, origin).await?.map(|file| file.listed(detail)));
    }
    if told.is_empty() {
        return Ok(refused(StatusCode::NOT_FOUND, "Session not found"));
    }
    Ok(Json(told).into_response())
}

async fn metadata(
    State(app): State<Arc<App>>,
    Extension(sessions): Extension<Sessions>,
    Extension(Owner(owner)): Extension<Owner>,
    Path((session, id)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let found = find(&app, &sessions, &owner, Origin { id, storage_session_id: session }).await?;
    Ok(found.map_or_else(no_file, |file| Json(file.metadata()).into_response()))
}

async fn download(
    State(app): State<Arc<App>>,
    Extension(sessions): Extension<Sessions>,
    Extension(Owner(owner)): Extension<Owner>,
    Path((session, id)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let found = find(&app, &sessions, &owner, Origin { id, storage_session_id: session }).await?;
    let Some(file) = found else { return Ok(no_file()) };
    let mut response = blobs::whole(&app, &file.blob).await?;
    let headers = response.headers_mut();
    if let Ok(content_type) = HeaderValue::from_str(&file.content_type) {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    let name = file.name.rsplit('/').next().unwrap_or_default();
    let disposition = format!("attachment; filename*=UTF-8''{}", percent_encoded(name));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_str(&disposition).map_err(|_| ApiError::Internal)?);
    if file.read_only {
        headers.insert("x-read-only", HeaderValue::from_static("true"));
    }
    Ok(response)
}

async fn remove(
    State(app): State<Arc<App>>,
    Extension(sessions): Extension<Sessions>,
    Extension(Owner(owner)): Extension<Owner>,
    Path((session, id)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let origin = Origin { id, storage_session_id: session };
    let Some(Kept { blob, .. }) = sessions.remove(&owner, &name_of(&origin)) else { return Ok(no_file()) };
    forget_blob(&app, &sessions, &owner, Some(blob.to_string())).await?;
    let Origin { id, storage_session_id } = origin;
    let answer = json!({ "message": "File deleted successfully", "session_id": storage_session_id, "fileId": id });
    Ok(Json(answer).into_response())
}
