//! POST /judge: a program against cases, in one request.

use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::App;
use super::answer::json_answer;
use super::buffers::Held;
use super::error::{ApiError, ErrorBody, NotAdmitted};
use super::execute::{Plan, beside, hold_output, offers, parse_object, parsed_size, saturated, take_body};
use crate::judge::{JudgeRequest, JudgeResponse, Judged, Judgement};
use crate::scheduler::{Client, RETRY_AFTER};

/// Judge a program: compile it once, run it for each case, and compare what it prints.
#[utoipa::path(
    post,
    path = "/judge",
    tag = "Task Execution",
    request_body(content = JudgeRequest, example = json!({
        "command": "python3", "args": ["sum.py"],
        "files": {"sum.py": "print(sum(map(int, input().split())))"},
        "cases": [{"name": "small", "stdin": "1 2\n", "expected": "3\n"}, {"name": "large", "stdin": "10 20\n", "expected": "30\n"}],
        "compare": "tokens"
    })),
    responses(
        NotAdmitted,
        (status = 200, description = "Every case has its verdict.", body = JudgeResponse),
        (status = 400, description = "The body is no judgement; nothing ran.", body = ErrorBody,
            example = json!({"error": "Validation error", "details": "Invalid cases: at least one case is needed"})),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody,
            example = json!({"error": "Request timeout", "details": "The body did not arrive in time"})),
        (status = 413, description = "The body is too large: put what is large as blobs.", body = ErrorBody,
            example = json!({"error": "Request too large", "details": "Request body exceeds maximum size limit"})),
        (status = 415, description = "The body is not declared as JSON.", body = ErrorBody,
            example = json!({"error": "Unsupported media type", "details": "The Content-Type must be application/json"})),
        (status = 503, description = "The queue is full, or no turn came in time.", body = ErrorBody,
            headers(("Retry-After" = u64, description = "Seconds to wait")),
            example = json!({"error": "Service unavailable", "details": "All capacity is in use, please try again later"})),
    )
)]
pub async fn judge(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let (body, held) = take_body(&app, client, &headers, body).await?;
    let shared = app.clone();
    let (judgement, held) = beside(body.len(), move || {
        let Plan { planned, mut held, output, tasks } = plan(&shared, body, held)?;
        hold_output(&mut held, output, tasks)?;
        Ok((planned, held))
    })
    .await?;
    match judgement.run(&app.engine, client, &[], &|_, _| {}).await.map_err(saturated)? {
        Judged::Response(response) => json_answer(held, *response),
        Judged::Queued => Err(ApiError::Saturated { retry_after: RETRY_AFTER }),
        Judged::Fault => Err(ApiError::Internal),
    }
}

/// The judgement of a body.
pub fn plan(app: &App, body: Bytes, mut held: Held) -> Result<Plan<Judgement>, ApiError> {
    held.more(parsed_size(&body))?;
    let request: JudgeRequest = parse_object(&body)?;
    held.less(body.len() as u64);
    drop(body);
    let (cases, most) = (request.cases.len(), app.settings().config.judge.max_cases as usize);
    if cases > most {
        return Err(ApiError::Invalid(format!("Invalid cases: {cases} cases are more than the {most} allowed")));
    }
    tracing::Span::current().record("tasks", cases);
    let judgement =
        Judgement::parse(&app.engine, request, &offers(app)?).map_err(|error| ApiError::Invalid(error.to_string()))?;
    Ok(Plan { output: judgement.output(), planned: judgement, held, tasks: cases })
}
