//! Sends the callbacks of jobs that have ended, at least once each.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;

use super::super::App;
use super::super::buffers::Held;
use super::super::compat;
use super::super::error::ApiError;
use super::blocking;
use super::form::{time, whole};
use crate::callbacks::{Headers, Method, Refusal, Secret, Sender};
use crate::jobs::{Call, Callback, Job, Jobs, State};

/// Callbacks under way at a time.
const AT_ONCE: usize = 32;
/// Tries to put on the disk what came of one, with as many seconds between them.
const TRIES: u64 = 5;

/// Sends them until Faber stops.
pub async fn call_back(app: Arc<App>, jobs: Arc<Jobs>, sender: Arc<Sender>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    while let Ok(place) = places.clone().acquire_owned().await {
        let Some(call) = jobs.next_call().await else { return };
        let (app, jobs, sender) = (app.clone(), jobs.clone(), sender.clone());
        tokio::spawn(async move {
            let call = Arc::new(call);
            if let Err(error) = one(&app, &jobs, &sender, &call).await {
                tracing::debug!(job = %call.id, %error, "a callback cannot be sent now");
                jobs.put_off(&call);
            }
            drop(place);
        });
    }
}

/// # Errors
/// What kept it from being tried.
async fn one(app: &Arc<App>, jobs: &Arc<Jobs>, sender: &Sender, call: &Arc<Call>) -> Result<(), ApiError> {
    let looked = call.clone();
    let Some(job) = blocking(jobs, move |jobs| jobs.call(&looked)).await? else { return Ok(()) };
    let Some(callback) = &job.callback else { return Ok(()) };
    let mut held = app.buffers.hold(job.client);
    let result = match request(app, jobs, &job, callback, &mut held).await? {
        Some((method, headers, body)) => sender.post(method, &callback.url, headers, body).await,
        None => Some(Err(Refusal { reason: "this Faber knows no form for it".into(), is_final: true })),
    };
    let Some(result) = result else { return Err(ApiError::Internal) };
    drop(held);
    match &result {
        Ok(()) => tracing::debug!(job = %job.id, "a callback was taken"),
        Err(refusal) => {
            tracing::info!(job = %job.id, attempts = callback.attempts + 1, reason = refusal.reason, "a callback was not taken")
        }
    }
    let most = app.settings().config.jobs.callback_attempts;
    let result = Arc::new(result);
    for wait in 1..=TRIES {
        let (call, result) = (call.clone(), result.clone());
        if blocking(jobs, move |jobs| jobs.called(&call, &result, most)).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(wait)).await;
    }
    Err(ApiError::Internal)
}

/// What is sent. None: nothing here knows in which form, as when a later version took the job.
async fn request(
    app: &App,
    jobs: &Arc<Jobs>,
    job: &Job,
    callback: &Callback,
    held: &mut Held,
) -> Result<Option<(Method, Headers, Vec<u8>)>, ApiError> {
    let Some(secret) = &callback.secret else {
        let told = compat::told_of(app, job, held).await?;
        return Ok(told.map(|(method, body)| (method, Headers::new(), body)));
    };
    // As it is kept, as it is sent, and on its way.
    held.more(3 * job.response_size)?;
    let id = job.id;
    let response = match job.response_size {
        0 => None,
        _ => blocking(jobs, move |jobs| jobs.response(id)).await?,
    };
    let body = event(job, response.as_deref())?;
    Ok(Some((Method::Post, headers(job, secret, &body), body)))
}

/// Standard Webhooks, "Payload structure".
fn event(job: &Job, response: Option<&[u8]>) -> Result<Vec<u8>, ApiError> {
    let kind = match job.state {
        State::Cancelled => "job.cancelled",
        State::Lost => "job.lost",
        _ => "job.done",
    };
    let at = time(job.ended.unwrap_or(job.created));
    let mut json = format!("{{\"type\":\"{kind}\",\"timestamp\":\"{at}\",\"data\":").into_bytes();
    json.append(&mut whole(job, None, response)?);
    json.push(b'}');
    Ok(json)
}

/// Standard Webhooks, "Webhook headers": the id is the same for each attempt.
fn headers(job: &Job, secret: &Secret, body: &[u8]) -> Headers {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let id = format!("job_{}", job.id);
    let signature = secret.sign(&id, now, body);
    [("webhook-id", id), ("webhook-timestamp", now.to_string()), ("webhook-signature", signature)]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}
