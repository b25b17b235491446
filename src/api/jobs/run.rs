//! Runs jobs, each as the request would have been run that it is.
//!
//! ```text
//! turn ──> body ──> plan, and room for its output ──> begin (on the disk) ──> engine ──> response ──> finish (on the disk)
//!            │                 │ no room now                                    │ saturated
//!            └──── put back <──┘                                  queued again <──┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use serde::Serialize;

use super::super::App;
use super::super::admission::OPEN;
use super::super::answer::{Texts, json_bytes};
use super::super::buffers::Held;
use super::super::error::ApiError;
use super::super::execute::{ExecuteResponse, Plan, beside, hold_output};
use super::super::{execute, judge};
use super::blocking;
use crate::execution::{Ended, Planned};
use crate::jobs::{Job, Jobs, Kind, Turn};
use crate::judge::{Judged, Judgement};
use crate::scheduler::{Asker, Client, Patience, Saturated};

/// Until what had no room is tried again.
const BREATH: Duration = Duration::from_millis(200);
/// Tries to put a response on the disk, with as many seconds between them.
const TRIES: u64 = 5;

/// What a job asks for.
enum Work {
    Execute(Box<Planned>, Held),
    Judge(Box<Judgement>, Held),
}

/// How a run ended.
enum Ran {
    Answered(Vec<u8>),
    /// There was no room in the queue.
    Saturated,
    /// Nothing could be run through Faber's own fault.
    Fault,
}

/// Runs jobs until Faber stops.
pub async fn run(app: Arc<App>, jobs: Arc<Jobs>) {
    while let Some(turn) = jobs.next().await {
        tokio::spawn(one(app.clone(), jobs.clone(), turn));
    }
}

async fn one(app: Arc<App>, jobs: Arc<Jobs>, turn: Turn) {
    let turn = Arc::new(turn);
    // What fails is in the log, and the job stays as it is on the disk.
    if let Err(error) = run_one(&app, &jobs, &turn).await {
        tracing::debug!(job = %turn.id, %error, "a job cannot be run now");
        tokio::time::sleep(BREATH).await;
        if let Some(turn) = Arc::into_inner(turn) {
            jobs.put_back(turn);
        }
    }
}

/// # Errors
/// What kept it from being begun: it is to be put back.
async fn run_one(app: &Arc<App>, jobs: &Arc<Jobs>, turn: &Arc<Turn>) -> Result<(), ApiError> {
    let looked = turn.clone();
    let Some(job) = blocking(jobs, move |jobs| jobs.look_at(&looked)).await? else { return Ok(()) };
    let prepared = prepare(app, jobs, &job).await;
    if let Err(ApiError::Saturated { .. } | ApiError::Internal) = prepared {
        return prepared.map(drop);
    }
    let begun = turn.clone();
    let Some(cancelled) = blocking(jobs, move |jobs| jobs.begin(&begun)).await? else { return Ok(()) };
    tracing::debug!(job = %job.id, "a job is begun");
    let ran = tokio::select! {
        biased;
        _ = cancelled => return Ok(()),
        () = jobs.abandoned() => return Ok(()),
        ran = work(app, &job, prepared) => ran,
    };
    end(jobs, turn, ran).await;
    Ok(())
}

/// The job's body as what it asks for, with room for its output.
async fn prepare(app: &Arc<App>, jobs: &Arc<Jobs>, job: &Job) -> Result<Work, ApiError> {
    let mut held = app.buffers.hold(job.client);
    held.more(job.body_size)?;
    let id = job.id;
    // Cancelled meanwhile, as will be seen when it is begun.
    let body = Bytes::from(blocking(jobs, move |jobs| jobs.body(id)).await?.unwrap_or_default());
    let (shared, kind) = (app.clone(), job.kind);
    beside(body.len(), move || match kind {
        Kind::Execute => {
            let Plan { planned, mut held, output, tasks } = execute::plan(&shared, body, held)?;
            hold_output(&mut held, output, tasks)?;
            Ok(Work::Execute(planned.into(), held))
        }
        Kind::Judge => {
            let Plan { planned, mut held, output, tasks } = judge::plan(&shared, body, held)?;
            hold_output(&mut held, output, tasks)?;
            Ok(Work::Judge(planned.into(), held))
        }
    })
    .await
}

async fn work(app: &Arc<App>, job: &Job, prepared: Result<Work, ApiError>) -> Ran {
    let asker = Asker { client: job.client, patience: Patience::Endless };
    match prepared {
        Ok(Work::Execute(planned, mut held)) => {
            let mut room = |bytes| held.more(bytes).is_ok();
            match app.engine.run(asker, blobs_owner(job), *planned, &mut room).await {
                Ok(Ended::Results(results)) => answered(app, held, ExecuteResponse { results }),
                Ok(Ended::Queued) | Err(Saturated { .. }) => Ran::Saturated,
                Ok(Ended::Fault) => Ran::Fault,
            }
        }
        Ok(Work::Judge(judgement, held)) => match judgement.run(&app.engine, asker, &[], &|_, _| {}).await {
            Ok(Judged::Response(response)) => answered(app, held, *response),
            Ok(Judged::Queued) | Err(Saturated { .. }) => Ran::Saturated,
            Ok(Judged::Fault) => Ran::Fault,
        },
        // What made sense when it came, and does not any more: the configuration is another.
        Err(error) => refused(&error),
    }
}

/// Whose blobs its tasks leave: as the request's would be.
fn blobs_owner(job: &Job) -> &str {
    match job.client {
        Client::Key(_) => &job.owner,
        Client::Address(_) => OPEN,
    }
}

fn answered(app: &App, held: Held, response: impl Serialize + Texts) -> Ran {
    let most = app.settings().config.jobs.response.0;
    match json_bytes(held, response, most) {
        Ok((json, _held)) => Ran::Answered(json),
        Err(error) => refused(&error),
    }
}

fn refused(error: &ApiError) -> Ran {
    serde_json::to_vec(&error.body()).map_or(Ran::Fault, Ran::Answered)
}

/// Puts on the disk what came of a run. What cannot be written for a while is lost, as if Faber had ended.
async fn end(jobs: &Arc<Jobs>, turn: &Arc<Turn>, ran: Ran) {
    if let Ran::Saturated = ran {
        tokio::time::sleep(BREATH).await;
    }
    let ran = Arc::new(ran);
    for wait in 1..=TRIES {
        let (ran, turn) = (ran.clone(), turn.clone());
        let ended = blocking(jobs, move |jobs| match &*ran {
            Ran::Answered(response) => jobs.finish(&turn, response),
            Ran::Saturated => jobs.unbegin(&turn),
            Ran::Fault => jobs.lose(&turn),
        });
        if ended.await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(wait)).await;
    }
    tracing::error!(job = %turn.id, "what came of a job cannot be kept");
}
