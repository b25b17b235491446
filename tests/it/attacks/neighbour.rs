//! A client that attacks nobody, and gets what it asks for.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Server, settles};

/// Files, processes and time of its own, and nobody else's.
const PROGRAM: &str = "ls -A /workspace /tmp /dev/shm; sum=0; for i in {1..300}; do sum=$((sum + i * i)); done; \
    for dir in /workspace /tmp /dev/shm; do echo $sum >$dir/sum; done; (sleep 0.05; cat /tmp/sum) | cat; \
    cat /workspace/sum /dev/shm/sum; set -- /proc/[0-9]*; echo $#";

const OUTPUT: &str = "/dev/shm:\n\n/tmp:\n\n/workspace:\n9045050\n9045050\n9045050\n1\n";

#[derive(Default)]
struct Seen {
    rounds: AtomicUsize,
    over: AtomicBool,
    failure: Mutex<Option<String>>,
}

pub struct Neighbour {
    seen: Arc<Seen>,
    thread: JoinHandle<Duration>,
}

impl Neighbour {
    /// Runs a task after the other until it is ended.
    pub fn start(server: Arc<Server>, key: String) -> Self {
        let seen = Arc::<Seen>::default();
        let thread = std::thread::spawn({
            let seen = seen.clone();
            move || run(&server, &key, &seen)
        });
        Self { seen, thread }
    }

    pub fn rounds(&self) -> usize {
        self.seen.rounds.load(Ordering::SeqCst)
    }

    /// Waits until more rounds than this are over.
    pub fn has_run_since(&self, rounds: usize) -> Result<(), String> {
        let is_heard = settles(|| self.rounds() > rounds || self.seen.failure.lock().unwrap().is_some());
        match &*self.seen.failure.lock().unwrap() {
            Some(failure) => Err(format!("the neighbour: {failure}")),
            None if is_heard => Ok(()),
            None => Err("the neighbour had no answer in time".to_owned()),
        }
    }

    /// The longest that a request of its took, unless one had another answer than it should.
    pub fn end(self) -> Result<Duration, String> {
        self.seen.over.store(true, Ordering::SeqCst);
        let longest = self.thread.join().map_err(|_| "the neighbour had no answer".to_owned())?;
        self.seen.failure.lock().unwrap().take().map_or(Ok(longest), Err)
    }
}

fn run(server: &Server, key: &str, seen: &Seen) -> Duration {
    let body = json!({ "tasks": [{ "command": "bash", "args": ["-c", PROGRAM] }] }).to_string();
    let mut longest = Duration::ZERO;
    while !seen.over.load(Ordering::SeqCst) {
        let begun = Instant::now();
        let answer = server.post(&body, &[("Authorization", &format!("Bearer {key}"))]);
        longest = longest.max(begun.elapsed());
        if answer.status != 200 || answer.json()["results"][0]["stdout"] != OUTPUT {
            *seen.failure.lock().unwrap() = Some(answer.text);
            break;
        }
        seen.rounds.fetch_add(1, Ordering::SeqCst);
    }
    longest
}
