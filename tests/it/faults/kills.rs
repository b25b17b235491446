//! SIGKILL to each of Faber's processes, at any moment, under load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{dice, times};
use crate::support::{Family, Server, children, eventually};

/// Looks from outside which tasks run: each tells its number by its name.
pub struct Witness {
    seen: Arc<Mutex<BTreeMap<String, BTreeSet<i32>>>>,
    over: Arc<AtomicBool>,
    looking: Option<JoinHandle<()>>,
}

impl Witness {
    pub fn new(mark: String) -> Self {
        let (seen, over) = (Arc::new(Mutex::new(BTreeMap::new())), Arc::new(AtomicBool::new(false)));
        let looking = std::thread::spawn({
            let (seen, over) = (seen.clone(), over.clone());
            move || {
                while !over.load(Ordering::Relaxed) {
                    look(&mark, &seen);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Self { seen, over, looking: Some(looking) }
    }

    pub fn end(mut self) -> BTreeMap<String, BTreeSet<i32>> {
        self.over.store(true, Ordering::Relaxed);
        self.looking.take().unwrap().join().unwrap();
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

fn look(mark: &str, seen: &Mutex<BTreeMap<String, BTreeSet<i32>>>) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let Some(name) = line.split('\0').next().filter(|name| name.starts_with(mark)) else { continue };
        seen.lock().unwrap().entry(name.to_owned()).or_default().insert(pid);
    }
}

/// A request and what came of it.
struct Asked {
    names: Vec<String>,
    begun: Instant,
    ended: Instant,
    answer: String,
}

/// Clients that ask all the time.
struct Load {
    over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Asked>>>,
}

impl Load {
    fn start(server: &Server, mark: &str, clients: usize) -> Self {
        let (over, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |_| {
            let (url, mark, over, next) = (server.url(), mark.to_owned(), over.clone(), next.clone());
            std::thread::spawn(move || {
                let mut asked = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let names: Vec<String> =
                        (0..3).map(|_| format!("{mark}{}", next.fetch_add(1, Ordering::Relaxed))).collect();
                    asked.push(ask(&url, names));
                }
                asked
            })
        };
        Self { clients: (0..clients).map(client).collect(), over }
    }

    fn end(self) -> Vec<Asked> {
        self.over.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }
}

fn ask(url: &str, names: Vec<String>) -> Asked {
    let task = |name: &String| json!({ "command": "bash", "args": ["-c", format!("exec -a {name} sleep 0.04")] });
    let tasks: Vec<Value> = names.iter().map(task).collect();
    let body = json!({ "tasks": tasks }).to_string();
    let begun = Instant::now();
    let answer = exchange(url, &body).unwrap_or_default();
    Asked { names, begun, ended: Instant::now(), answer }
}

/// The whole answer; an error where there was none.
fn exchange(url: &str, body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://"))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let head = "POST /execute HTTP/1.1\r\nHost: faber\r\nConnection: close\r\nContent-Type: application/json";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The inits of a runner's containers: children that are the first of a PID namespace (proc_pid_status(5), NSpid).
fn inits(runner: i32) -> Vec<i32> {
    let is_init = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        let ids: Vec<&str> = ids.split_whitespace().collect();
        ids.len() > 1 && ids.last() == Some(&"1")
    };
    children(runner).into_iter().filter(is_init).collect()
}

#[test]
fn whatever_is_killed_under_load_every_answer_is_true() {
    let kills = times("TEST_KILLS", 40);
    let mut dice = dice();
    let env = [("FABER_RATE_LIMIT__ENABLED", "false"), ("FABER_EXECUTION__CONCURRENCY", "4")];
    let server = Server::start(&["--open-mode"], &env);
    assert_eq!(server.shell("echo up"), "up");
    let mark = format!("witness-{}-", std::process::id());
    let (witness, load) = (Witness::new(mark.clone()), Load::start(&server, &mark, 4));
    let (mut fronts, mut longest, mut done) = (Vec::new(), Duration::ZERO, [0; 3]);
    while done.iter().sum::<usize>() < kills {
        std::thread::sleep(Duration::from_millis(dice.u64(..60)));
        let role = [0, 1, 1, 2, 2, 2][dice.u64(..6) as usize];
        let runners = server.processes("runner");
        let candidates = match role {
            0 => server.processes("front"),
            1 => runners,
            _ => runners.into_iter().flat_map(inits).collect(),
        };
        if candidates.is_empty() {
            continue;
        }
        let victim = candidates[dice.u64(..candidates.len() as u64) as usize];
        // Before the kill, which the clients may see at once.
        let at = Instant::now();
        if role == 0 {
            fronts.push(at);
        }
        if kill(Pid::from_raw(victim), Signal::SIGKILL).is_err() {
            continue;
        }
        done[role] += 1;
        eventually("somebody is served again", || {
            let asked =
                ask(&server.url(), vec![format!("{mark}again-{}-{}", done.iter().sum::<usize>(), dice.u64(..1 << 30))]);
            asked.answer.contains("\"Success\"")
        });
        longest = longest.max(at.elapsed());
    }
    let (asked, seen) = (load.end(), witness.end());
    println!("killed {done:?} (fronts, runners, inits); {} requests, back after {longest:?} at most", asked.len());
    for (name, pids) in &seen {
        assert_eq!(pids.len(), 1, "{name} ran more than once");
    }
    let (mut ended, mut lost, mut never) = (0, 0, 0);
    for Asked { names, begun, ended: end, answer } in asked {
        let Some((head, body)) = answer.split_once("\r\n\r\n").filter(|_| !answer.is_empty()) else {
            let is_excused = fronts.iter().any(|at| (begun..=end).contains(at));
            assert!(is_excused, "{names:?} had no answer, and no front was killed meanwhile");
            continue;
        };
        // Only where none of its tasks could run.
        if head.starts_with("HTTP/1.1 500") {
            assert!(names.iter().all(|name| !seen.contains_key(name)), "{names:?}: {answer}");
            continue;
        }
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
        for (name, result) in names.iter().zip(body["results"].as_array().unwrap()) {
            match result["status"].as_str().unwrap() {
                "Success" => ended += 1,
                "NotExecuted" => {
                    assert!(!seen.contains_key(name), "{name} was seen running: {result}");
                    never += 1;
                }
                "Failure" => {
                    assert_eq!(result["exit_code"], Value::Null, "{result}");
                    assert!(result["error"].as_str().unwrap().contains("lost"), "{result}");
                    lost += 1;
                }
                other => panic!("{other}: {result}"),
            }
        }
    }
    println!("{ended} tasks ended, {lost} were lost, {never} never started");
    assert!(ended > 0);
}

#[test]
fn whenever_the_keeper_is_killed_the_next_start_finds_nothing_in_its_way() {
    let mut dice = dice();
    for round in 0..times("TEST_KILLS", 40).div_ceil(10) {
        let mut server = Server::start(&["--open-mode"], &[("FABER_RATE_LIMIT__ENABLED", "false")]);
        let mark = format!("keeper-{}-{round}-", std::process::id());
        let load = Load::start(&server, &mark, 2);
        std::thread::sleep(Duration::from_millis(dice.u64(..400)));
        let family = Family::of(server.pid());
        server.kill();
        load.end();
        family.assert_gone();
        let left = Mutex::default();
        look(&mark, &left);
        assert_eq!(left.into_inner().unwrap(), BTreeMap::new(), "tasks that go on");
        crate::support::is_swept(server.instance());
    }
}
