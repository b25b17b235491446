//! The embedded database: one file of redb's, copy-on-write B-trees that a crash leaves as of the last commit.
//!
//! ```text
//! jobs       id -> the job, as JSON              bodies, responses   id -> bytes
//! owners     (owner, id)                         keys                (owner, SHA-256 of the key) -> id
//! ended      (when, id)                          notes               id -> bytes
//! about      "version" -> 1
//! ```

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction,
};
use rustix::fs::{Mode, OFlags, openat};

use super::job::{Idempotency, Job, JobId};
use super::store::{Change, Changed, Result, Store, StoreError};

const FILE: &str = "jobs.redb";
/// Of what is in the file; others are refused.
const VERSION: u64 = 1;
/// Bytes of pages that are held in memory.
const CACHE: usize = 8 << 20;
/// A file of so many bytes of which less than a quarter is used is made smaller when it is opened.
const WORTH_COMPACTING: u64 = 64 << 20;

type Bytes = &'static [u8];
const JOBS: TableDefinition<u128, Bytes> = TableDefinition::new("jobs");
const BODIES: TableDefinition<u128, Bytes> = TableDefinition::new("bodies");
const RESPONSES: TableDefinition<u128, Bytes> = TableDefinition::new("responses");
const NOTES: TableDefinition<u128, Bytes> = TableDefinition::new("notes");
const OWNERS: TableDefinition<(&str, u128), ()> = TableDefinition::new("owners");
const KEYS: TableDefinition<(&str, Bytes), u128> = TableDefinition::new("keys");
const ENDED: TableDefinition<(u64, u128), ()> = TableDefinition::new("ended");
const ABOUT: TableDefinition<&str, u64> = TableDefinition::new("about");

pub struct Embedded(Database);

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("another process has the jobs of this data directory")]
    InUse,
    #[error("the jobs were written by another version of Faber, in form {0} where this one has {VERSION}")]
    Version(u64),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn failed<E: Error + Send + Sync + 'static>(step: &'static str) -> impl FnOnce(E) -> StoreError {
    move |error| StoreError { step, source: Box::new(error) }
}

impl Embedded {
    /// Opens the file in this directory, or makes it. After a crash that may take as long as to read all of it once.
    ///
    /// # Errors
    /// `InUse` when another process has it, `Version` when this Faber cannot read it.
    pub fn open(directory: &OwnedFd) -> std::result::Result<Self, OpenError> {
        // The descriptor may be one of O_PATH.
        let found = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(directory, ".", found, Mode::empty()).map_err(failed("open the jobs' directory"))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&directory, FILE, flags, Mode::RUSR | Mode::WUSR).map_err(failed("open the jobs' file"))?;
        let file = File::from(file);
        let size = file.metadata().map_err(failed("inspect the jobs' file"))?.len();
        // A new file's name survives a power cut, too.
        rustix::fs::fsync(&directory).map_err(failed("sync the jobs' directory"))?;
        let backend = FileBackend::new(file).map_err(failed("open the jobs' file"))?;
        let database = Database::builder().set_cache_size(CACHE).create_with_backend(backend);
        let mut database = database.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse,
            error => failed("open the jobs")(error).into(),
        })?;
        prepare(&database)?;
        if size > WORTH_COMPACTING && used(&database)? < size / 4 {
            database.compact().map_err(failed("compact the jobs"))?;
        }
        Ok(Self(database))
    }

    fn read(&self) -> Result<ReadTransaction> {
        self.0.begin_read().map_err(failed("read jobs"))
    }

    fn write(&self) -> Result<WriteTransaction> {
        self.0.begin_write().map_err(failed("write jobs"))
    }
}

/// Makes the tables that are not there: all of a new file, and those that came later. Refuses those of another version.
fn prepare(database: &Database) -> std::result::Result<(), OpenError> {
    let transaction = database.begin_write().map_err(failed("write jobs"))?;
    {
        let mut about = transaction.open_table(ABOUT).map_err(failed("open a table"))?;
        let version = about.get("version").map_err(failed("read the version"))?.map(|version| version.value());
        match version {
            Some(VERSION) => {}
            Some(other) => return Err(OpenError::Version(other)),
            None => _ = about.insert("version", VERSION).map_err(failed("write the version"))?,
        }
        drop(about);
        Tables::open(&transaction)?;
    }
    Ok(transaction.commit().map_err(failed("commit"))?)
}

/// Bytes of what is in the tables.
fn used(database: &Database) -> Result<u64> {
    let transaction = database.begin_write().map_err(failed("write jobs"))?;
    let stats = transaction.stats().map_err(failed("count pages"))?;
    transaction.abort().map_err(failed("end a transaction"))?;
    Ok(stats.stored_bytes())
}

/// The tables of one transaction that writes.
struct Tables<'a> {
    jobs: Table<'a, u128, Bytes>,
    bodies: Table<'a, u128, Bytes>,
    responses: Table<'a, u128, Bytes>,
    notes: Table<'a, u128, Bytes>,
    owners: Table<'a, (&'static str, u128), ()>,
    keys: Table<'a, (&'static str, Bytes), u128>,
    ended: Table<'a, (u64, u128), ()>,
}

impl<'a> Tables<'a> {
    fn open(transaction: &'a WriteTransaction) -> Result<Self> {
        let opened = || -> std::result::Result<_, redb::TableError> {
            Ok(Self {
                jobs: transaction.open_table(JOBS)?,
                bodies: transaction.open_table(BODIES)?,
                responses: transaction.open_table(RESPONSES)?,
                notes: transaction.open_table(NOTES)?,
                owners: transaction.open_table(OWNERS)?,
                keys: transaction.open_table(KEYS)?,
                ended: transaction.open_table(ENDED)?,
            })
        };
        opened().map_err(failed("open the tables"))
    }

    fn job(&self, id: JobId) -> Result<Option<Job>> {
        let found = self.jobs.get(id.0).map_err(failed("read a job"))?;
        found.map(|bytes| decode(bytes.value())).transpose()
    }

    fn set(&mut self, job: &Job) -> Result<()> {
        let bytes = serde_json::to_vec(job).map_err(failed("write a job"))?;
        let mut set = || -> std::result::Result<(), redb::StorageError> {
            self.jobs.insert(job.id.0, &*bytes)?;
            if let Some(ended) = job.ended {
                self.ended.insert((ended, job.id.0), ())?;
                self.bodies.remove(job.id.0)?;
            }
            Ok(())
        };
        set().map_err(failed("write a job"))
    }

    fn add(&mut self, job: &Job, body: &[u8], note: Option<&[u8]>) -> Result<Option<Job>> {
        if let Some(Idempotency { key, .. }) = &job.idempotency {
            let known =
                self.keys.get((&*job.owner, &key[..])).map_err(failed("read a key"))?.map(|id| JobId(id.value()));
            if let Some(known) = known {
                return self.job(known);
            }
        }
        self.set(job)?;
        let mut add = || -> std::result::Result<(), redb::StorageError> {
            self.bodies.insert(job.id.0, body)?;
            if let Some(note) = note {
                self.notes.insert(job.id.0, note)?;
            }
            self.owners.insert((&*job.owner, job.id.0), ())?;
            if let Some(Idempotency { key, .. }) = &job.idempotency {
                self.keys.insert((&*job.owner, &key[..]), job.id.0)?;
            }
            Ok(())
        };
        add().map_err(failed("add a job"))?;
        Ok(None)
    }

    fn remove(&mut self, job: &Job) -> Result<()> {
        let mut remove = || -> std::result::Result<(), redb::StorageError> {
            self.jobs.remove(job.id.0)?;
            self.bodies.remove(job.id.0)?;
            self.responses.remove(job.id.0)?;
            self.notes.remove(job.id.0)?;
            self.owners.remove((&*job.owner, job.id.0))?;
            if let Some(Idempotency { key, .. }) = &job.idempotency {
                self.keys.remove((&*job.owner, &key[..]))?;
            }
            if let Some(ended) = job.ended {
                self.ended.remove((ended, job.id.0))?;
            }
            Ok(())
        };
        remove().map_err(failed("remove a job"))
    }

    fn change<'r>(&mut self, id: JobId, decide: &mut dyn FnMut(&Job) -> Change<'r>) -> Result<Changed> {
        let Some(job) = self.job(id)? else { return Ok(None) };
        let after = match decide(&job) {
            Change::Keep => Some(job.clone()),
            Change::Set(after) => {
                self.set(&after)?;
                Some(after)
            }
            Change::Answer(after, response) => {
                self.set(&after)?;
                self.responses.insert(id.0, response).map_err(failed("write a response"))?;
                Some(after)
            }
            Change::Remove => {
                self.remove(&job)?;
                None
            }
        };
        Ok(Some((job, after)))
    }
}

fn decode(bytes: &[u8]) -> Result<Job> {
    serde_json::from_slice(bytes).map_err(failed("read a job"))
}

fn bytes_of(read: &ReadTransaction, table: TableDefinition<u128, Bytes>, id: JobId) -> Result<Option<Vec<u8>>> {
    let found = || -> std::result::Result<_, redb::Error> {
        Ok(read.open_table(table)?.get(id.0)?.map(|bytes| bytes.value().to_vec()))
    };
    found().map_err(failed("read what is kept of a job"))
}

impl Store for Embedded {
    fn each(&self, visit: &mut dyn FnMut(Job)) -> Result<()> {
        let jobs = self.read()?.open_table(JOBS).map_err(failed("open a table"))?;
        for entry in jobs.iter().map_err(failed("read jobs"))? {
            let (_, bytes) = entry.map_err(failed("read jobs"))?;
            visit(decode(bytes.value())?);
        }
        Ok(())
    }

    fn job(&self, id: JobId) -> Result<Option<Job>> {
        bytes_of(&self.read()?, JOBS, id)?.map(|bytes| decode(&bytes)).transpose()
    }

    fn keyed(&self, owner: &str, key: &[u8; 32]) -> Result<Option<Job>> {
        let read = self.read()?;
        let id = || -> std::result::Result<_, redb::Error> {
            Ok(read.open_table(KEYS)?.get((owner, &key[..]))?.map(|id| JobId(id.value())))
        };
        let id = id().map_err(failed("read a key"))?;
        id.map_or(Ok(None), |id| bytes_of(&read, JOBS, id)?.map(|bytes| decode(&bytes)).transpose())
    }

    fn body(&self, id: JobId) -> Result<Option<Vec<u8>>> {
        bytes_of(&self.read()?, BODIES, id)
    }

    fn response(&self, id: JobId) -> Result<Option<Vec<u8>>> {
        bytes_of(&self.read()?, RESPONSES, id)
    }

    fn note(&self, id: JobId) -> Result<Option<Vec<u8>>> {
        bytes_of(&self.read()?, NOTES, id)
    }

    fn list(&self, owner: &str, before: Option<JobId>, most: usize) -> Result<Vec<Job>> {
        let read = self.read()?;
        let ids = || -> std::result::Result<Vec<JobId>, redb::Error> {
            let owners = read.open_table(OWNERS)?;
            let range = owners.range((owner, 0)..(owner, before.map_or(u128::MAX, |id| id.0)))?;
            range.rev().take(most).map(|entry| Ok(JobId(entry?.0.value().1))).collect()
        };
        let ids = ids().map_err(failed("list jobs"))?;
        let jobs = ids.into_iter().map(|id| bytes_of(&read, JOBS, id)?.map(|bytes| decode(&bytes)).transpose());
        jobs.filter_map(Result::transpose).collect()
    }

    fn add(&self, job: &Job, body: &[u8], note: Option<&[u8]>) -> Result<Option<Job>> {
        let transaction = self.write()?;
        let known = Tables::open(&transaction)?.add(job, body, note)?;
        match known {
            Some(_) => transaction.abort().map_err(failed("end a transaction"))?,
            None => transaction.commit().map_err(failed("commit"))?,
        }
        Ok(known)
    }

    fn change<'a>(&self, ids: &[JobId], decide: &mut dyn FnMut(&Job) -> Change<'a>) -> Result<Vec<Changed>> {
        let transaction = self.write()?;
        let mut tables = Tables::open(&transaction)?;
        let changed = ids.iter().map(|id| tables.change(*id, decide)).collect::<Result<Vec<_>>>()?;
        drop(tables);
        match changed.iter().flatten().all(|(before, after)| after.as_ref() == Some(before)) {
            true => transaction.abort().map_err(failed("end a transaction"))?,
            false => transaction.commit().map_err(failed("commit"))?,
        }
        Ok(changed)
    }

    fn ended_before(&self, then: u64, most: usize) -> Result<Vec<JobId>> {
        let read = self.read()?;
        let found = || -> std::result::Result<Vec<JobId>, redb::Error> {
            let ended = read.open_table(ENDED)?;
            let range = ended.range(..(then, 0))?;
            range.take(most).map(|entry| Ok(JobId(entry?.0.value().1))).collect()
        };
        found().map_err(failed("find old jobs"))
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        failed("use the jobs' file")(error)
    }
}

/// Makes of the file in this directory what a version without notes leaves.
#[cfg(test)]
pub(super) fn as_before_notes(directory: &OwnedFd) {
    let Embedded(database) = Embedded::open(directory).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.delete_table(NOTES).unwrap();
    let mut jobs = transaction.open_table(JOBS).unwrap();
    let ids: Vec<u128> = jobs.iter().unwrap().map(|entry| entry.unwrap().0.value()).collect();
    for id in ids {
        let job = String::from_utf8(jobs.get(id).unwrap().unwrap().value().to_vec()).unwrap();
        assert!(job.contains(",\"note\":null"), "{job}");
        jobs.insert(id, job.replace(",\"note\":null", "").as_bytes()).unwrap();
    }
    drop(jobs);
    transaction.commit().unwrap();
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::jobs::{Bounds, Jobs, Kind, State, Submission};
    use crate::scheduler::Client;

    /// What it prints are the figures of ARCHITECTURE.md.
    #[test]
    fn a_hundred_thousand_jobs_are_opened_and_used_as_few_are() {
        const COUNT: u64 = 100_000;
        let place = tempfile::tempdir().unwrap();
        let open = |path: &std::path::Path| OwnedFd::from(File::open(path).unwrap());
        let client = Client::Key(1);
        let job = |n: u64| Job {
            id: JobId(u128::from(n) << 64),
            owner: format!("key {}", n % 10),
            client,
            kind: Kind::Execute,
            state: if n.is_multiple_of(2) { State::Queued } else { State::Done },
            created: n,
            started: None,
            ended: (!n.is_multiple_of(2)).then_some(n),
            retry: 0,
            runs: 0,
            body_size: 1000,
            response_size: 0,
            idempotency: None,
            callback: None,
            note: None,
        };
        let store = Embedded::open(&open(place.path())).unwrap();
        let transaction = store.write().unwrap();
        let mut tables = Tables::open(&transaction).unwrap();
        (1..=COUNT).for_each(|n| drop(tables.add(&job(n), &[b'x'; 1000], None).unwrap()));
        drop(tables);
        transaction.commit().unwrap();
        // As a crash leaves it.
        let crashed = tempfile::tempdir().unwrap();
        std::fs::copy(place.path().join(FILE), crashed.path().join(FILE)).unwrap();
        drop(store);
        let bounds = Bounds {
            count: COUNT,
            per_owner: 1 << 30,
            total: 1 << 30,
            lifetime: Duration::from_secs(1 << 40),
            running: 1,
        };
        for (what, place) in [("closed", &place), ("killed", &crashed)] {
            let begun = Instant::now();
            let jobs = Jobs::open(&open(place.path()), bounds).unwrap();
            let opened = begun.elapsed();
            let submission = || Submission {
                owner: "key 1".into(),
                client,
                kind: Kind::Execute,
                retry: 0,
                idempotency: None,
                callback: None,
                note: None,
            };
            let begun = Instant::now();
            let ids: Vec<JobId> = (0..20).map(|_| jobs.submit(submission(), b"{}").unwrap().id).collect();
            let submitted = begun.elapsed() / 20;
            let begun = Instant::now();
            ids.iter().for_each(|id| assert!(jobs.find("key 1", *id).unwrap().is_some()));
            let found = begun.elapsed() / 20;
            let begun = Instant::now();
            assert_eq!(jobs.list("key 1", None, 50).unwrap().len(), 50);
            println!(
                "{what}: opened in {opened:?}, submitted in {submitted:?}, found in {found:?}, 50 listed in {:?}",
                begun.elapsed()
            );
            assert!(opened < Duration::from_secs(30) && found < Duration::from_millis(50), "{opened:?} {found:?}");
        }
    }
}
