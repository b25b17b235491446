//! A server that is attacked by one client while it serves another.

use std::fs;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::neighbour::Neighbour;
use crate::content::sha256;
use crate::support::{Answer, FABER, Server, memory_of, new_key};

/// What attacks write where they should not be able to.
pub const MARK: &str = "faber-attack";

pub struct Target {
    name: String,
    server: Arc<Server>,
    key: String,
    front: i32,
    neighbour: Neighbour,
    machine: Vec<(String, String)>,
    held: usize,
    failures: Vec<String>,
    /// When the last attack was over.
    since: Instant,
}

impl Target {
    /// `name` is that of the attacks.
    pub fn start(name: &str, env: &[(&str, &str)]) -> Self {
        let ((key, one), (other_key, other)) = (new_key(), new_key());
        let keys =
            format!("{}, {}", one.trim_end_matches(']'), other.trim_start_matches('[').replace("class", "neighbour"));
        let usual = [
            ("FABER_AUTH__KEYS", keys.as_str()),
            ("FABER_RATE_LIMIT__ENABLED", "false"),
            ("FABER_EXECUTION__QUEUE_TIMEOUT", "10m"),
            ("FABER_EXECUTION__CONCURRENCY", "2"),
        ];
        let machine = machine();
        let server = Arc::new(Server::start(&[], &[&usual, env].concat()));
        let front = server.front();
        let neighbour = Neighbour::start(server.clone(), other_key);
        Self {
            name: name.to_owned(),
            server,
            key,
            front,
            neighbour,
            machine,
            held: 0,
            failures: Vec::new(),
            since: Instant::now(),
        }
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.key)
    }

    /// The attacker's request, and its answer.
    pub fn post(&self, body: &str) -> Answer {
        self.server.post(body, &[("Authorization", &self.authorization())])
    }

    /// Takes down what came of an attack, and looks at all that it should not have reached.
    pub fn attacked(&mut self, attack: &str, outcome: Result<(), String>) {
        println!("{}: {attack} ({:?})", self.name, self.since.elapsed());
        let begun = self.neighbour.rounds();
        let outcome = outcome.and_then(|()| self.is_unharmed(begun));
        match outcome {
            Ok(()) => self.held += 1,
            Err(failure) => {
                println!("{}: {attack}: {failure}", self.name);
                self.failures.push(format!("{attack}: {failure}"));
            }
        }
        self.since = Instant::now();
    }

    fn is_unharmed(&self, begun: usize) -> Result<(), String> {
        let health = self.server.get("/health").status;
        if health != 200 {
            return Err(format!("GET /health answers {health}"));
        }
        let fronts = self.server.processes("front");
        if fronts != [self.front] {
            return Err(format!("the front was {}, now there is {fronts:?}", self.front));
        }
        // One that began when the attack was over.
        self.neighbour.has_run_since(begun + 1)
    }

    /// Prints what was held, and fails with all that was not.
    pub fn end(mut self) {
        let memory = memory_of(self.front, "VmHWM") >> 10;
        match self.neighbour.end() {
            Ok(longest) => println!("{}: a neighbour's request took at most {longest:?}", self.name),
            Err(failure) => self.failures.push(format!("the neighbour: {failure}")),
        }
        println!(
            "{}: {} attacks held, {} not; the front had at most {memory} KiB",
            self.name,
            self.held,
            self.failures.len()
        );
        for (before, after) in self.machine.iter().zip(machine()).filter(|(before, after)| *before != after) {
            self.failures.push(format!("the machine had {before:?}, and has {after:?}"));
        }
        let log = self.server.log();
        let is_bad = |line: &&str| line.contains("\"level\":\"ERROR\"") || line.contains("a runner ended");
        self.failures.extend(log.lines().filter(is_bad).map(|line| format!("the log has {line}")));
        if !self.failures.is_empty() {
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains("\"answered\"")).collect();
            eprintln!("--- the server's log, without what was answered\n{}", lines.join("\n"));
        }
        // Which looks for remains.
        drop(Arc::into_inner(self.server).expect("the neighbour has ended"));
        assert!(self.failures.is_empty(), "{}:\n{}", self.name, self.failures.join("\n"));
    }
}

/// What attacks try to change of the machine.
fn machine() -> Vec<(String, String)> {
    let settings =
        ["core_pattern", "domainname", "hostname", "modprobe", "panic", "printk", "randomize_va_space", "sysrq"];
    let settings = settings.map(|name| format!("/proc/sys/kernel/{name}"));
    let others = ["/proc/swaps", "/proc/sys/vm/overcommit_memory", "/sys/kernel/uevent_helper"].map(str::to_owned);
    let read = |path: &String| (path.clone(), fs::read_to_string(path).unwrap_or_default());
    let mut state: Vec<_> = settings.iter().chain(&others).map(read).collect();
    for path in [FABER, "/usr/bin/env", "/usr/bin/bash", "/usr/bin/su"] {
        state.push((path.to_owned(), fs::read(path).map(|bytes| sha256(&bytes)).unwrap_or_default()));
    }
    for path in ["/etc/passwd", "/etc/shadow", "/etc/crontab", "/etc/ld.so.preload"] {
        let is_marked = fs::read_to_string(path).is_ok_and(|text| text.contains(MARK));
        state.push((path.to_owned(), format!("marked: {is_marked}")));
    }
    for dir in ["/", "/etc", "/root", "/tmp", "/var/tmp", "/dev/shm", "/usr", "/usr/bin", "/run"] {
        let path = format!("{dir}/{MARK}");
        state.push((path.clone(), format!("there: {}", fs::exists(&path).unwrap())));
    }
    // Attacks set the clock by years.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec as u64;
    state.push(("the clock".to_owned(), format!("{}", (now - boot) / 100_000)));
    state
}

/// What a result says of a task, for who has to find out why.
pub fn shown(result: &Value) -> String {
    let mut text = result.to_string();
    if text.len() > 4000 {
        text = text.chars().take(4000).collect::<String>() + "…";
    }
    text
}
