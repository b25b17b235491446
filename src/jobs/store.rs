//! What keeps jobs: one small trait, since elsewhere it may be an existing database.

use std::error::Error;

use super::job::{Job, JobId};

/// A failed call of whatever keeps the jobs.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct StoreError {
    pub step: &'static str,
    pub source: Box<dyn Error + Send + Sync>,
}

pub type Result<T> = std::result::Result<T, StoreError>;

/// What becomes of a job.
pub enum Change<'a> {
    /// It stays as it is.
    Keep,
    Set(Job),
    /// It is over, with this response.
    Answer(Job, &'a [u8]),
    Remove,
}

/// A job before and after a change; None: there is none.
pub type Changed = Option<(Job, Option<Job>)>;

/// Keeps jobs with their bodies, notes and responses. Every change is one transaction, and is on the disk when the call returns
/// (fsync(2)); readers see all of a change or nothing. Calls block; any number of threads may make them.
pub trait Store: Send + Sync {
    /// Every job, oldest first.
    ///
    /// # Errors
    /// As all calls here: those of the database.
    fn each(&self, visit: &mut dyn FnMut(Job)) -> Result<()>;
    fn job(&self, id: JobId) -> Result<Option<Job>>;
    /// The owner's job that this key, as its SHA-256, stands for.
    fn keyed(&self, owner: &str, key: &[u8; 32]) -> Result<Option<Job>>;
    /// The request of a job that is not over.
    fn body(&self, id: JobId) -> Result<Option<Vec<u8>>>;
    fn response(&self, id: JobId) -> Result<Option<Vec<u8>>>;
    /// What is kept beside it until it is forgotten.
    fn note(&self, id: JobId) -> Result<Option<Vec<u8>>>;
    /// An owner's jobs, newest first: at most so many of those that are older than `before`.
    fn list(&self, owner: &str, before: Option<JobId>, most: usize) -> Result<Vec<Job>>;
    /// Adds a job, unless its owner has one with the same key: then that is given back, and nothing added.
    fn add(&self, job: &Job, body: &[u8], note: Option<&[u8]>) -> Result<Option<Job>>;
    /// Looks at jobs, and changes them, in one transaction. `decide` is asked in order.
    fn change<'a>(&self, ids: &[JobId], decide: &mut dyn FnMut(&Job) -> Change<'a>) -> Result<Vec<Changed>>;
    /// At most so many of the jobs that ended before then, in milliseconds since 1970.
    fn ended_before(&self, then: u64, most: usize) -> Result<Vec<JobId>>;
}
