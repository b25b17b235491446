//! Jobe's runs, files and languages, below `/jobe/index.php/restapi`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};

use super::kept::{Kept, Names};
use super::{Caller, ErrorText, Order, Waits, both, key_in_its_header, read_body, run_order, versions};
use crate::api::answer::{Texts, json_answer};
use crate::api::error::ApiError;
use crate::api::execute::offers;
use crate::api::{App, Owner, admission, blobs};
use crate::compat::jobe::{self, Ran, Refusal};
use crate::task::Text;

type Files = Extension<Arc<Names<()>>>;

const BASE: &str = "/jobe/index.php/restapi";

pub(super) fn routes(app: &Arc<App>) -> Router<Arc<App>> {
    let router = both(Router::new(), &format!("{BASE}/languages"), get(languages));
    let router = both(router, &format!("{BASE}/runs"), post(runs));
    let router = both(router, &format!("{BASE}/files/{{id}}"), put(put_file).head(head_file));
    let admitted = router.layer(Extension(Names::<()>::new())).layer(from_fn_with_state(app.clone(), admission::admit));
    admitted.layer(map_response(as_jobe_tells)).layer(from_fn(key_in_its_header))
}

/// Its errors are strings of JSON, and it has words of its own for who may not ask.
async fn as_jobe_tells(mut response: Response) -> Response {
    let Some(ErrorText(text)) = response.extensions_mut().remove() else { return response };
    let (status, text) = match response.status() {
        StatusCode::UNAUTHORIZED => (StatusCode::FORBIDDEN, "Missing API key".into()),
        StatusCode::FORBIDDEN => (StatusCode::FORBIDDEN, "Unknown API key".into()),
        StatusCode::TOO_MANY_REQUESTS => {
            (StatusCode::TOO_MANY_REQUESTS, "Max RUN rate for this server exceeded".into())
        }
        status if status.is_server_error() => (status, format!("Server exception ({text})")),
        status => (status, text),
    };
    super::in_place_of(response, status, Json(text))
}

impl Texts for Ran {
    fn each_text(&mut self, each: &mut dyn FnMut(&mut Text)) {
        Ran::each_text(self, each);
    }
}

async fn languages(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    Ok(Json(jobe::languages(&versions(&app)?)).into_response())
}

async fn runs(
    State(app): State<Arc<App>>,
    Extension(files): Files,
    caller: Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let read = move |app: &App, owner: &str, body: &[u8]| {
        let mut failure = None;
        let mut find = |id: &str| match files.find(app, owner, id) {
            Ok(kept) => kept.map(|Kept { blob, .. }| blob),
            Err(error) => {
                failure = Some(error);
                None
            }
        };
        let order = jobe::order(body, &mut find, &app.engine.bounds(), offers(app)?);
        match failure {
            Some(error) => Err(error),
            None => Ok(order.map(|jobe::Order { task, offers, language }| Order { task, offers, known: language })),
        }
    };
    let message = |status, message: String| Ok((status, Json(message)).into_response());
    match run_order(&app, caller, body, Waits::ForDisk, read).await {
        Ok(Ok((language, result, mut held))) => {
            let Some(result) = result else { return json_answer(held, Ran::of_a_fault("Faber could not run it")) };
            match held.more(jobe::escaped_size(&result)) {
                Ok(()) => json_answer(held, Ran::of(language, result)),
                Err(_) => json_answer(held, Ran::of_an_overload()),
            }
        }
        Ok(Err(Refusal::Message(text))) => message(StatusCode::BAD_REQUEST, text),
        Ok(Err(Refusal::MissingFile)) => {
            message(StatusCode::NOT_FOUND, "One or more of the specified files is missing/unavailable".into())
        }
        Ok(Err(Refusal::Overload)) | Err(ApiError::Saturated { .. }) => Ok(Json(Ran::of_an_overload()).into_response()),
        Err(error) => Err(error),
    }
}

/// Keeps a file as a blob.
async fn put_file(
    State(app): State<Arc<App>>,
    Extension(files): Files,
    Path(id): Path<String>,
    (Extension(client), Extension(Owner(owner)), headers): Caller,
    body: Body,
) -> Result<Response, ApiError> {
    let name = id.clone();
    let read = move |body: &[u8]| Ok(jobe::contents(&name, body));
    let (contents, _held) = read_body(&app, client, headers, body, Waits::Not, read).await?;
    match contents {
        Ok(contents) => {
            let stored = blobs::receive(&app, owner.clone(), Body::from(contents), None).await?;
            files.insert(&owner, id, Kept { blob: stored.digest, value: () }, 0);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Err(message) => Ok((StatusCode::BAD_REQUEST, Json(message)).into_response()),
    }
}

async fn head_file(
    State(app): State<Arc<App>>,
    Extension(files): Files,
    Extension(Owner(owner)): Extension<Owner>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let found = tokio::task::spawn_blocking(move || files.find(&app, &owner, &id)).await;
    Ok(match found.map_err(|_| ApiError::Internal)?? {
        Some(_) => StatusCode::NO_CONTENT,
        None => StatusCode::NOT_FOUND,
    })
}
