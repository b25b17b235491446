//! go-judge's REST API below `/go-judge`: runs, also over a WebSocket, and its file store.

mod socket;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::json;

use super::kept::{Kept, Names};
use super::upload::{self, Uploaded};
use super::{Caller, ErrorText, Orders, Waits, both, percent_encoded, run_orders};
use crate::api::answer::{Texts, json_answer};
use crate::api::buffers::Held;
use crate::api::error::ApiError;
use crate::api::execute::offers;
use crate::api::{App, Owner, admission, blobs};
use crate::compat::gojudge::{self, Cached, Ran, Refusal};
use crate::task::{Digest, Text};

/// Files by their ids, each with its name.
type Files = Arc<Names<String>>;

const BASE: &str = "/go-judge";

pub(super) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    let router = both(Router::new(), &format!("{BASE}/run"), post(run));
    let router = both(router, &format!("{BASE}/ws"), get(socket::connect));
    let router = both(router, &format!("{BASE}/file"), get(list).post(upload_file));
    let router = both(router, &format!("{BASE}/file/{{id}}"), get(download).delete(remove));
    let files: Files = Names::new();
    let admitted = router.layer(Extension(files)).layer(from_fn_with_state(app.clone(), admission::admit));
    let open = both(Router::new(), &format!("{BASE}/version"), get(|| async { Json(gojudge::version()) }));
    let open = both(open, &format!("{BASE}/config"), get(config));
    admitted.merge(open).layer(map_response(as_gojudge_tells))
}

/// Its errors are strings of JSON, but for that of a key.
async fn as_gojudge_tells(mut response: Response) -> Response {
    let Some(ErrorText(text)) = response.extensions_mut().remove() else { return response };
    match response.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            super::in_place_of(response, StatusCode::UNAUTHORIZED, Body::empty())
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            let text = json!(format!("worker queue is full: {text}"));
            super::in_place_of(response, StatusCode::INTERNAL_SERVER_ERROR, Json(text))
        }
        status => super::in_place_of(response, status, Json(text)),
    }
}

/// An array of what came of each command.
#[derive(serde::Serialize)]
struct All(Vec<Ran>);

impl Texts for All {
    fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        self.0.iter_mut().for_each(|ran| ran.each_text(each));
    }
}

async fn run(
    State(app): State<Arc<App>>,
    Extension(files): Extension<Files>,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    match run_all(&app, &files, caller, body).await? {
        Ok((all, held)) => json_answer(held, all),
        Err(Refusal(message)) => Ok((StatusCode::BAD_REQUEST, Json(message)).into_response()),
    }
}

/// Runs the commands of a request.
async fn run_all(
    app: &Arc<App>,
    files: &Files,
    caller: Caller,
    body: Body,
) -> Result<Result<(All, Held), Refusal>, ApiError> {
    let (Owner(owner), kept) = (caller.1.0.clone(), files.clone());
    let read = move |app: &App, owner: &str, body: &[u8]| {
        let mut failure = None;
        let mut find = |id: &str| match kept.find(app, owner, id) {
            Ok(kept) => kept.map(|Kept { blob, .. }| blob),
            Err(error) => {
                failure = Some(error);
                None
            }
        };
        let most = app.settings().config.execution.max_tasks as usize;
        let order = gojudge::order(body, &mut find, &app.engine.bounds(), most);
        if let Some(error) = failure {
            return Err(error);
        }
        let offers = offers(app)?;
        Ok(order.map(|gojudge::Order { tasks, connect, known }| Orders { tasks, connect, offers, known }))
    };
    let (known, results, held) = match run_orders(app, caller, body, Waits::ForDisk, read).await? {
        Ok(ran) => ran,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let Some(results) = results else {
        let faults = known.iter().map(|_| Ran::of_a_fault("Faber could not run it"));
        return Ok(Ok((All(faults.collect()), held)));
    };
    let mut all = Vec::new();
    for (known, result) in known.into_iter().zip(results) {
        // What became a blob and is not kept by a name is in nobody's account.
        let blobs: Vec<Digest> =
            result.files.iter().flatten().filter_map(|(_, file)| file.blob.clone()?.try_into().ok()).collect();
        let (mut ran, cached) = Ran::of(known, result);
        for Cached { name, file } in cached {
            let id = keep(app, files, &owner, &name, file.blob, file.text.or(file.base64)).await?;
            ran.file_ids.insert(name, id);
        }
        for blob in blobs {
            if !files.has(&owner, &blob) {
                blobs::take_out(app, owner.clone(), blob).await?;
            }
        }
        all.push(ran);
    }
    Ok(Ok((All(all), held)))
}

/// Makes a file that a program left one of the store.
async fn keep(
    app: &App,
    files: &Files,
    owner: &str,
    name: &str,
    blob: Option<String>,
    text: Option<Text>,
) -> Result<String, ApiError> {
    let blob = match (blob, text) {
        (Some(blob), _) => Digest::try_from(blob).map_err(|_| ApiError::Internal)?,
        (None, Some(text)) => {
            blobs::receive(app, owner.to_owned(), Body::from(text.bytes().clone()), None).await?.digest
        }
        (None, None) => return Err(ApiError::Internal),
    };
    insert(files, owner, name, blob)
}

fn insert(files: &Files, owner: &str, name: &str, blob: Digest) -> Result<String, ApiError> {
    let id = new_id()?;
    files.insert(owner, id.clone(), Kept { blob, value: name.to_owned() }, name.len());
    Ok(id)
}

/// As its own are: eight characters of Base32 (RFC 4648).
fn new_id() -> Result<String, ApiError> {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut chance = [0; 8];
    getrandom::fill(&mut chance).map_err(|_| ApiError::Internal)?;
    Ok(chance.iter().map(|byte| char::from(DIGITS[usize::from(byte % 32)])).collect())
}

async fn list(
    State(app): State<Arc<App>>,
    Extension(files): Extension<Files>,
    Extension(Owner(owner)): Extension<Owner>,
) -> Result<Json<BTreeMap<String, String>>, ApiError> {
    let found = tokio::task::spawn_blocking(move || {
        let all = files.beginning(&owner, "").into_iter().map(|(id, _)| id);
        let there = all.filter_map(|id| Some(files.find(&app, &owner, &id).transpose()?.map(|kept| (id, kept.value))));
        there.collect::<Result<_, _>>()
    });
    Ok(Json(found.await.map_err(|_| ApiError::Internal)??))
}

async fn upload_file(
    State(app): State<Arc<App>>,
    Extension(files): Extension<Files>,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let (Extension(Owner(owner)), client) = (caller.1.clone(), caller.0.0);
    let uploaded = match upload::receive(&app, client, &owner, &caller.2, body).await? {
        Ok(uploaded) => uploaded,
        Err(message) => return Ok((StatusCode::BAD_REQUEST, Json(message)).into_response()),
    };
    let Uploaded { files: mut came, .. } = uploaded;
    let only = came.pop().filter(|_| came.is_empty());
    for stored in came.into_iter().filter_map(|file| file.content.ok()).filter(|stored| !stored.known) {
        blobs::take_out(&app, owner.clone(), stored.digest).await?;
    }
    let Some(file) = only else {
        return Ok((StatusCode::BAD_REQUEST, Json("expected one file, in the field file")).into_response());
    };
    let id = insert(&files, &owner, &file.name, file.content?.digest)?;
    Ok(Json(id).into_response())
}

async fn download(
    State(app): State<Arc<App>>,
    Extension(files): Extension<Files>,
    Extension(Owner(owner)): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let shared = app.clone();
    let found = tokio::task::spawn_blocking(move || files.find(&shared, &owner, &id)).await;
    let Some(Kept { blob, value: name }) = found.map_err(|_| ApiError::Internal)?? else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    let mut response = blobs::whole(&app, &blob).await?;
    let name = name.rsplit('/').next().unwrap_or_default();
    let disposition = format!("attachment; filename*=UTF-8''{}", percent_encoded(name));
    let disposition = HeaderValue::from_str(&disposition).map_err(|_| ApiError::Internal)?;
    response.headers_mut().insert(header::CONTENT_DISPOSITION, disposition);
    Ok(response)
}

async fn remove(
    State(app): State<Arc<App>>,
    Extension(files): Extension<Files>,
    Extension(Owner(owner)): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let Some(Kept { blob, .. }) = files.remove(&owner, &id) else { return Ok(StatusCode::NOT_FOUND) };
    if !files.has(&owner, &blob) {
        blobs::take_out(&app, owner, blob).await?;
    }
    Ok(StatusCode::OK)
}

/// What limits it has, as far as its own are there.
async fn config(State(app): State<Arc<App>>) -> Json<serde_json::Value> {
    let bounds = app.engine.bounds();
    Json(json!({
        "copyOutOptional": true, "pipeProxy": true, "fileStorePath": "", "runnerConfig": {
            "cgroupType": "", "workDir": crate::image::WORKSPACE, "extraMemoryLimit": 0, "outputLimit": bounds.max.output,
            "copyOutLimit": bounds.outputs.each, "timeLimitTickInterval": "0s",
        }
    }))
}
