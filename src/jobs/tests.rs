//! On a real file, in a directory of the test's own.

use super::*;

const WIDE: Bounds =
    Bounds { count: 100, per_owner: 1000, total: 2000, lifetime: Duration::from_secs(3600), running: 2 };

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn open(&self, bounds: Bounds) -> Arc<Jobs> {
        Arc::new(Jobs::open(&std::fs::File::open(self.0.path()).unwrap().into(), bounds).unwrap())
    }
}

fn of(owner: &str, retry: u32, key: Option<&str>, body: &str) -> Submission {
    let hash = |text: &str| crate::config::KeyHash::of(text).bytes().to_owned();
    let idempotency = key.map(|key| Idempotency { key: hash(key), body: hash(body) });
    let (owner, client, kind) = (owner.into(), Client::Key(1), Kind::Execute);
    Submission { owner, client, kind, retry, idempotency, callback: None, note: None }
}

fn submit(jobs: &Jobs, owner: &str, body: &str) -> JobId {
    jobs.submit(of(owner, 0, None, body), body.as_bytes()).unwrap().id
}

fn turn(jobs: &Arc<Jobs>) -> Turn {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), jobs.next()).await }).unwrap().unwrap()
}

fn state(jobs: &Jobs, id: JobId) -> State {
    jobs.store.job(id).unwrap().unwrap().state
}

#[test]
fn a_job_runs_and_is_kept_with_its_response() {
    let place = Place::new();
    let jobs = place.open(WIDE);
    let id = submit(&jobs, "a", "body");
    assert_eq!(jobs.find("b", id).unwrap(), None);
    let next = turn(&jobs);
    assert_eq!((next.id, jobs.body(id).unwrap()), (id, Some(b"body".to_vec())));
    let end = jobs.begin(&next).unwrap().unwrap();
    assert_eq!(state(&jobs, id), State::Running);
    jobs.finish(&next, b"{}").unwrap();
    drop((next, end, jobs));
    let jobs = place.open(WIDE);
    let job = jobs.find("a", id).unwrap().unwrap();
    assert_eq!((job.state, job.runs, job.size()), (State::Done, 1, 2));
    assert_eq!((jobs.response(id).unwrap(), jobs.body(id).unwrap()), (Some(b"{}".to_vec()), None));
}

/// Nothing is dropped in order: what a crash leaves is what was committed.
#[test]
fn what_ran_when_it_ended_is_lost_unless_it_may_run_again() {
    let place = Place::new();
    let jobs = place.open(WIDE);
    let ids = [0, 1, 0].map(|retry| jobs.submit(of("a", retry, None, "b"), b"b").unwrap().id);
    for _ in 0..2 {
        let next = turn(&jobs);
        jobs.begin(&next).unwrap().unwrap();
    }
    drop(jobs);
    let jobs = place.open(WIDE);
    assert_eq!(ids.map(|id| state(&jobs, id)), [State::Lost, State::Queued, State::Queued]);
    assert_eq!(jobs.position(&jobs.store.job(ids[2]).unwrap().unwrap()), Some(1));
    let next = turn(&jobs);
    assert_eq!(next.id, ids[1]);
    jobs.begin(&next).unwrap().unwrap();
    drop((next, jobs));
    let jobs = place.open(WIDE);
    assert_eq!(ids.map(|id| state(&jobs, id)), [State::Lost, State::Lost, State::Queued]);
}

#[test]
fn whoever_cancels_is_told_what_became_of_it() {
    let jobs = Place::new().open(WIDE);
    let (running, queued) = (submit(&jobs, "a", "1"), submit(&jobs, "a", "2"));
    let next = turn(&jobs);
    let mut end = jobs.begin(&next).unwrap().unwrap();
    assert_eq!(jobs.remove("b", running).unwrap(), None);
    end.try_recv().unwrap_err();
    for id in [running, queued] {
        assert!(matches!(jobs.remove("a", id).unwrap(), Some(Removed::Cancelled(_))));
        assert_eq!(state(&jobs, id), State::Cancelled);
    }
    assert!(matches!(end.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
    // A response that comes all the same is too late.
    jobs.finish(&next, b"{}").unwrap();
    assert_eq!(state(&jobs, running), State::Cancelled);
    assert_eq!(jobs.remove("a", running).unwrap(), Some(Removed::Forgotten));
    assert_eq!(jobs.remove("a", running).unwrap(), None);
    assert_eq!(jobs.list("a", None, 9).unwrap().len(), 1);
}

#[test]
fn a_key_stands_for_one_body() {
    let jobs = Place::new().open(WIDE);
    let ask = |owner, body: &str| jobs.submit(of(owner, 0, Some("key"), body), body.as_bytes());
    let id = ask("a", "1").unwrap().id;
    assert_eq!(ask("a", "1").unwrap().id, id);
    assert!(matches!(ask("a", "2"), Err(SubmitError::OtherBody(other)) if other == id));
    assert_ne!(ask("b", "2").unwrap().id, id);
    // When it is forgotten, so is its key.
    jobs.remove("a", id).unwrap();
    jobs.remove("a", id).unwrap();
    assert_ne!(ask("a", "2").unwrap().id, id);
}

#[test]
fn each_has_so_much_and_gets_it_back() {
    let jobs = Place::new().open(Bounds { count: 2, per_owner: 10, total: 15, ..WIDE });
    let ask = |owner, bytes: usize| jobs.submit(of(owner, 0, None, ""), &vec![b'x'; bytes]).map(|job| job.id);
    let first = ask("a", 8).unwrap();
    assert!(matches!(ask("a", 3), Err(SubmitError::OwnerFull { used: 8, wanted: 3, most: 10 })));
    assert!(matches!(ask("b", 8), Err(SubmitError::Full { used: 8, wanted: 8, most: 15 })));
    ask("a", 1).unwrap();
    assert!(matches!(ask("a", 1), Err(SubmitError::TooMany { have: 2, most: 2 })));
    // Over, its body is not kept; forgotten, it does not count.
    jobs.remove("a", first).unwrap();
    ask("b", 8).unwrap();
    jobs.remove("a", first).unwrap();
    ask("a", 1).unwrap();
}

#[test]
fn a_note_is_kept_with_its_job_and_counts() {
    let place = Place::new();
    let jobs = place.open(Bounds { per_owner: 10, ..WIDE });
    let noted = |bytes: usize| Submission {
        note: Some(Note { name: "for whom", bytes: vec![b'n'; bytes] }),
        ..of("a", 0, None, "")
    };
    assert!(matches!(jobs.submit(noted(9), b"12"), Err(SubmitError::OwnerFull { wanted: 11, .. })));
    let job = jobs.submit(noted(8), b"12").unwrap();
    assert_eq!((job.note.as_ref().unwrap().name.as_str(), job.size()), ("for whom", 10));
    jobs.remove("a", job.id).unwrap();
    drop(jobs);
    let jobs = place.open(WIDE);
    let kept = jobs.find("a", job.id).unwrap().unwrap();
    assert_eq!((kept.size(), jobs.note(job.id).unwrap()), (8, Some(b"nnnnnnnn".to_vec())));
    jobs.remove("a", job.id).unwrap();
    assert_eq!(jobs.note(job.id).unwrap(), None);
}

/// A file of before there were notes has no table for them, and its jobs no such field.
#[test]
fn jobs_of_an_earlier_version_are_read() {
    let place = Place::new();
    let jobs = place.open(WIDE);
    let id = submit(&jobs, "a", "x");
    drop(jobs);
    embedded::as_before_notes(&std::fs::File::open(place.0.path()).unwrap().into());
    let jobs = place.open(WIDE);
    assert_eq!((jobs.note(id).unwrap(), state(&jobs, id)), (None, State::Queued));
}

#[test]
fn lists_go_on_where_they_ended_and_old_jobs_go() {
    let place = Place::new();
    let jobs = place.open(WIDE);
    let mut ids: Vec<JobId> = (0..5).map(|_| submit(&jobs, "a", "x")).collect();
    submit(&jobs, "b", "x");
    ids.reverse();
    let list = |before| jobs.list("a", before, 2).unwrap().iter().map(|job| job.id).collect::<Vec<_>>();
    assert_eq!([list(None), list(Some(ids[1])), list(Some(ids[3]))].concat(), ids);
    jobs.remove("a", ids[0]).unwrap();
    assert_eq!(jobs.sweep().unwrap(), 0);
    drop(jobs);
    let jobs = place.open(Bounds { lifetime: Duration::ZERO, ..WIDE });
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!((jobs.sweep().unwrap(), jobs.find("a", ids[0]).unwrap()), (1, None));
    assert_eq!(jobs.list("a", None, 9).unwrap().len(), 4);
}

#[test]
fn one_process_has_them() {
    let place = Place::new();
    let jobs = place.open(WIDE);
    let again = Jobs::open(&std::fs::File::open(place.0.path()).unwrap().into(), WIDE);
    assert!(matches!(again, Err(OpenError::InUse)));
    drop(jobs);
    place.open(WIDE);
}
