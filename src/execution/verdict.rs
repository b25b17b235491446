//! What a judge says of a task's end.

use std::io::BufReader;

use super::{Engine, Judged, Loose};
use crate::artifact::{Artifact, INLINE};
use crate::scheduler::Finished;
use crate::task::{self, Compare, Limit, Outcome, Report, Status, Verdict};

/// The verdict that follows from how a task ended alone; None when its output decides.
pub fn of_end(report: &Report) -> Option<Verdict> {
    // Who takes all of a stream, beyond its limit, has a limit too.
    let exceeded_output = report.hits.output || matches!(report.outcome, Outcome::Stopped(Limit::Output, _));
    Some(match Status::of(report) {
        Status::Success if exceeded_output => Verdict::OutputLimitExceeded,
        Status::Success => return None,
        Status::Failure => Verdict::RuntimeError,
        Status::NotExecuted => Verdict::NotExecuted,
        Status::ResourceLimitExceeded if exceeded_output => Verdict::OutputLimitExceeded,
        Status::ResourceLimitExceeded => Verdict::RuntimeError,
        Status::Timeout | Status::CpuLimitExceeded => Verdict::TimeLimitExceeded,
        Status::MemoryLimitExceeded => Verdict::MemoryLimitExceeded,
    })
}

/// Compares what a task wrote with what was expected; large ones beside the front's other work.
///
/// # Errors
/// When one of them cannot be read.
pub async fn compare(how: Compare, expected: Artifact, actual: Artifact) -> Result<Judged, String> {
    let is_small = expected.size() + actual.size() <= INLINE;
    let work = move || {
        let difference = task::compare(how, BufReader::new(expected.reader()), BufReader::new(actual.reader()));
        match difference.map_err(|error| format!("compare: {error}"))? {
            None => Ok((Verdict::Accepted, None)),
            Some(difference) => Ok((Verdict::WrongAnswer, Some(difference.to_string()))),
        }
    };
    if is_small {
        return work();
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err("Faber failed to compare the output".into()))
}

impl Engine {
    /// The verdict on a task that has run.
    pub(super) async fn judge(&self, finished: &Finished, expected: Result<Loose, String>, how: Compare) -> Judged {
        if let Some(verdict) = of_end(&finished.report) {
            return (verdict, None);
        }
        let actual = match &finished.taken.streams[0] {
            Some(whole) => whole.clone(),
            None => finished.report.stdout.clone().into(),
        };
        let expected = match expected {
            Ok(content) => self.open(content).await,
            Err(reason) => Err(reason),
        };
        let judged = match expected {
            Ok(expected) => compare(how, expected, actual).await,
            Err(reason) => Err(format!("expect: {reason}")),
        };
        judged.unwrap_or_else(|reason| (Verdict::NotExecuted, Some(reason)))
    }
}
