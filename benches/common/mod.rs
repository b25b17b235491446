//! What the benchmarks share: a client that asks one thing, percentiles, and where the raw data goes.

#[path = "../../tests/it/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
pub mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::Server;

/// What a server for benchmarks differs in from an installed one: nobody is asked to wait or to come back.
pub const SETTINGS: [(&str, &str); 3] = [
    ("FABER_RATE_LIMIT__ENABLED", "false"),
    ("FABER_EXECUTION__QUEUE_TIMEOUT", "10m"),
    // The tests' servers say more.
    ("FABER_LOG__LEVEL", "info"),
];

/// The directory for raw data, which is there afterwards.
pub fn out() -> PathBuf {
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    fs::create_dir_all(&out).unwrap();
    out
}

/// As it is told at the end: relative to the project.
pub fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(path).display()
}

/// What the numbers were measured on.
pub fn machine() -> String {
    let uname = rustix::system::uname();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    format!("Linux {}, {cpus} processors", uname.release().to_string_lossy())
}

/// One client's connection, kept open, and what it asks for.
pub struct Client {
    agent: ureq::Agent,
    url: String,
    body: String,
    /// The status each result is to have.
    status: &'static str,
}

impl Client {
    pub fn new(server: &Server, task: &Value) -> Self {
        Self::of_tasks(server, std::slice::from_ref(task))
    }

    /// One that asks for all of the tasks at once.
    pub fn of_tasks(server: &Server, tasks: &[Value]) -> Self {
        Self::of(server, "/execute", &json!({ "tasks": tasks }))
    }

    /// One that asks for something else.
    pub fn of(server: &Server, path: &str, body: &Value) -> Self {
        let (url, body) = (format!("{}{path}", server.url()), body.to_string());
        Self { agent: ureq::agent(), url, body, status: "Success" }
    }

    /// The same, whose tasks end in another way.
    pub fn that_is(self, status: &'static str) -> Self {
        Self { status, ..self }
    }

    /// Asks once; the time until the whole answer is there, which must be as expected.
    pub fn ask(&self) -> Duration {
        self.answer().0
    }

    /// The same, and the first task's own time.
    pub fn ask_for_wall_time(&self) -> (Duration, Duration) {
        let (took, body) = self.answer();
        let own = body["results"][0]["resource_usage"]["wall_time_ns"].as_u64().unwrap();
        (took, Duration::from_nanos(own))
    }

    fn answer(&self) -> (Duration, Value) {
        let started = Instant::now();
        let answer = self.agent.post(&self.url).content_type("application/json").send(&self.body);
        let text = answer.unwrap().body_mut().with_config().limit(1 << 30).read_to_string().unwrap();
        let took = started.elapsed();
        let body: Value = serde_json::from_str(&text).unwrap();
        let mut results = body["results"].as_array().into_iter().flatten();
        assert!(results.all(|result| result["status"] == self.status), "{text}");
        assert!(body.get("verdict").is_none_or(|verdict| verdict == "Accepted"), "{text}");
        (took, body)
    }
}

pub struct Percentiles {
    pub p50: Duration,
    pub p90: Duration,
    pub p99: Duration,
    pub max: Duration,
}

impl Percentiles {
    /// By nearest rank.
    pub fn of(times: &mut [Duration]) -> Self {
        times.sort_unstable();
        let rank = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
        Self { p50: rank(50), p90: rank(90), p99: rank(99), max: rank(100) }
    }
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
