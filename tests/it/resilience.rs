//! What may not stop the service: a log that nobody reads, a front that hangs, a machine that gives no process or descriptor,
//! containers that are killed, an image that is gone.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::json;

use crate::support::left::children;
use crate::support::oci::Trial;
use crate::support::{Server, eventually, running};

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Both ends of what a log may go through: a reader, and what is a server's standard error.
fn log_ends(is_socket: bool) -> (File, Stdio) {
    if is_socket {
        let (here, there) = UnixStream::pair().unwrap();
        return (OwnedFd::from(here).into(), OwnedFd::from(there).into());
    }
    let (reader, writer) = io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&reader, 4096).unwrap();
    (OwnedFd::from(reader).into(), OwnedFd::from(writer).into())
}

/// Every process of the server's: it serves, replaces what is killed, and stops.
fn goes_on(server: &mut Server) {
    eventually("both runners", || server.processes("runner").len() == 2);
    let runner = server.processes("runner")[0];
    for _ in 0..300 {
        assert_eq!(server.get("/health").status, 200);
    }
    signal(runner, Signal::SIGKILL);
    eventually("another runner", || {
        let now = server.processes("runner");
        now.len() == 2 && !now.contains(&runner)
    });
    assert_eq!(server.shell("echo serving"), "serving");
    let front = server.front();
    signal(front, Signal::SIGKILL);
    eventually("another front", || server.processes("front").first().is_some_and(|pid| *pid != front));
    assert_eq!(server.shell("echo serving"), "serving");
}

/// One place for tasks, so two runners.
const ONE: (&str, &str) = ("FABER_EXECUTION__CONCURRENCY", "1");

#[test]
fn a_log_that_nobody_reads_stops_nothing_and_tells_later_what_was_lost() {
    for is_socket in [false, true] {
        let (mut reader, stderr) = log_ends(is_socket);
        let mut server = Server::start_logging_to(stderr, &mut reader, &[ONE]);
        for _ in 0..300 {
            assert_eq!(server.get("/health").status, 200);
        }
        // Now somebody reads: first what there was room for.
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            reader.read_to_string(&mut log).unwrap();
            log
        });
        assert_eq!(server.shell("echo serving"), "serving");
        assert_eq!(server.stop(), Some(0));
        let log = log.join().unwrap();
        let lost =
            log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["lost"].as_u64());
        assert!(lost.sum::<u64>() > 100, "{log}");
        assert!(log.contains(" lines of the log were lost"), "{log}");
        assert!(log.lines().last().unwrap().contains("stopped"), "{log}");
    }
}

#[test]
fn a_log_that_nobody_reads_delays_no_stop() {
    for is_socket in [false, true] {
        let (mut reader, stderr) = log_ends(is_socket);
        let mut server = Server::start_logging_to(stderr, &mut reader, &[ONE]);
        goes_on(&mut server);
        assert_eq!(server.stop(), Some(0));
    }
}

#[test]
fn a_log_whose_reader_is_gone_stops_nothing() {
    for is_socket in [false, true] {
        let (mut reader, stderr) = log_ends(is_socket);
        let mut server = Server::start_logging_to(stderr, &mut reader, &[ONE]);
        drop(reader);
        goes_on(&mut server);
        assert_eq!(server.stop(), Some(0));
    }
}

#[test]
fn a_front_that_hangs_is_replaced_and_the_keeper_goes_on_meanwhile() {
    let mut server = Server::start_open();
    let front = server.front();
    let runners = server.processes("runner");
    signal(front, Signal::SIGSTOP);
    let stopped = Instant::now();
    // What the keeper has to tell the front meanwhile, the front does not read.
    signal(runners[0], Signal::SIGKILL);
    eventually("another runner", || server.processes("runner").iter().any(|pid| !runners.contains(pid)));
    eventually("another front", || server.processes("front").first().is_some_and(|pid| *pid != front));
    println!("replaced after {:?}", stopped.elapsed());
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.shell("echo serving"), "serving");
    assert!(server.log().contains("it answers no request"), "{}", server.log());
    // One that serves is left alone for longer than that.
    let front = server.front();
    std::thread::sleep(Duration::from_secs(18));
    assert_eq!(server.front(), front);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_front_that_hangs_is_no_reason_not_to_stop() {
    let mut server = Server::start(&["--open-mode"], &[("FABER_SERVER__SHUTDOWN_GRACE", "100ms")]);
    signal(server.front(), Signal::SIGSTOP);
    assert_eq!(server.stop(), Some(0), "{}", server.log());
}

/// Lets the keeper start nothing, and later again everything.
trait Want {
    fn begin(&self, keeper: i32);
    fn end(&self, keeper: i32);
}

/// No descriptors: EMFILE. The limit on processes does not count for root.
struct Descriptors;

impl Want for Descriptors {
    fn begin(&self, keeper: i32) {
        limit_descriptors(keeper, Some(3));
    }

    fn end(&self, keeper: i32) {
        limit_descriptors(keeper, None);
    }
}

fn limit_descriptors(pid: i32, most: Option<u64>) {
    let pid = rustix::process::Pid::from_raw(pid);
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current: most.or(maximum), maximum }).unwrap();
}

/// No processes: fork(2) says EAGAIN, in a control group of the test's own.
struct Processes {
    group: PathBuf,
    before: PathBuf,
}

impl Processes {
    /// None where the hierarchy is v2's: a keeper cannot leave what is delegated to it.
    fn new(server: &Server) -> Option<Self> {
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", server.pid())).unwrap();
        let own = groups.lines().find_map(|line| line.split_once(":pids:"))?.1.trim_start_matches('/');
        let before = PathBuf::from("/sys/fs/cgroup/pids").join(own);
        let group = before.join(format!("faber-test-{}", server.pid()));
        fs::create_dir(&group).unwrap();
        Some(Self { group, before })
    }
}

impl Want for Processes {
    fn begin(&self, keeper: i32) {
        fs::write(self.group.join("pids.max"), "1").unwrap();
        fs::write(self.group.join("cgroup.procs"), keeper.to_string()).unwrap();
    }

    fn end(&self, keeper: i32) {
        fs::write(self.group.join("pids.max"), "max").unwrap();
        for pid in fs::read_to_string(self.group.join("cgroup.procs")).unwrap().lines() {
            let _ = fs::write(self.before.join("cgroup.procs"), pid);
        }
        assert_ne!(keeper, 0);
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        eventually("the group is empty", || {
            for pid in fs::read_to_string(self.group.join("cgroup.procs")).unwrap().lines() {
                let _ = fs::write(self.before.join("cgroup.procs"), pid);
            }
            fs::remove_dir(&self.group).is_ok()
        });
    }
}

#[test]
fn what_cannot_be_started_now_is_started_later() {
    let server = Server::start_open();
    let processes = Processes::new(&server);
    let wants: Vec<(&dyn Want, &str)> = [(&Descriptors as &dyn Want, "Too many open files")]
        .into_iter()
        .chain(processes.iter().map(|want| (want as &dyn Want, "Resource temporarily unavailable")))
        .collect();
    for (want, error) in wants {
        let (front, runners) = (server.front(), server.processes("runner"));
        want.begin(server.pid());
        signal(runners[0], Signal::SIGKILL);
        let told = |what: &str| server.log().lines().any(|line| line.contains(what) && line.contains(error));
        eventually("a runner cannot be started", || told("a runner cannot be started yet"));
        signal(front, Signal::SIGKILL);
        eventually("a front cannot be started", || told("the front cannot be started yet"));
        want.end(server.pid());
        assert_eq!(server.shell("echo serving"), "serving");
        eventually("every runner", || server.processes("runner").len() == runners.len());
    }
}

/// The inits of containers that wait for a task.
fn inits(server: &Server) -> Vec<i32> {
    server.processes("runner").into_iter().flat_map(children).collect()
}

#[test]
fn containers_that_are_killed_while_they_wait_are_replaced_ever_later_and_at_once_for_a_task() {
    let server = Server::start(&["--open-mode"], &[ONE, ("FABER_RATE_LIMIT__ENABLED", "false")]);
    assert_eq!(server.shell("echo serving"), "serving");
    eventually("every container", || inits(&server).len() == 2);
    let runners = server.processes("runner");
    let (started, mut before, mut killed) = (Instant::now(), Vec::new(), 0);
    while started.elapsed() < Duration::from_secs(4) {
        std::thread::sleep(Duration::from_millis(50));
        let now = inits(&server);
        // One that is older than a look waits for a task: before that, its end is that of the runner.
        for pid in now.iter().filter(|pid| before.contains(*pid)) {
            killed += i32::from(kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok());
        }
        before = now;
    }
    println!("{killed} inits of two runners in 4 s");
    assert!((4..=24).contains(&killed), "{killed}");
    // There may be no container now.
    assert_eq!(server.shell("echo serving"), "serving");
    assert_eq!(server.processes("runner"), runners);
}

/// An image of nothing but a busybox, under this name.
fn bare(trial: &Trial, name: &str) {
    let definition = trial.path(&format!("images/{name}"));
    fs::create_dir_all(&definition).unwrap();
    fs::copy(crate::support::busybox(), definition.join("busybox")).unwrap();
    let copy = "copy = [{ from = 'busybox', to = '/bin/sleep' }]";
    // Each with something of its own: it would be the same image under several names.
    let text = format!("name = '{name}'\ndescription = ''\nbase = 'scratch'\nenv = {{ NAME = '{name}' }}\n{copy}");
    fs::write(definition.join("image.toml"), text).unwrap();
    let built = trial.faber(&["image", "build", name]);
    assert!(built.status.success(), "{built:?}");
}

#[test]
fn containers_of_several_images_wait_at_once() {
    let trial = Trial::new();
    let images = ["one", "two", "three"];
    images.iter().for_each(|name| bare(&trial, name));
    let data = trial.path("data");
    let env = [("FABER_DATA_DIR", data.to_str().unwrap()), ONE, ("FABER_RATE_LIMIT__ENABLED", "false")];
    let server = Server::start(&["--open-mode"], &env);
    let tasks = images.map(|image| json!({ "command": "sleep", "args": ["0"], "image": image }));
    assert_eq!(server.shell("echo serving"), "serving");
    eventually("every container", || inits(&server).len() == 2);
    let runners = server.processes("runner");
    let all = runners.len() * 4;
    let are_there = || {
        (0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            inits(&server).len() == all
        })
    };
    // Which runner takes a task is its own affair: until each has had one of each image.
    let mut rounds = (0..50).map(|_| {
        let body = server.execute(json!(tasks)).json();
        assert!(body["results"].as_array().unwrap().iter().all(|result| result["status"] == "Success"), "{body}");
    });
    while !are_there() {
        rounds.next().expect("every runner has one of each, and of the host image");
    }
    for image in images {
        let mut waiting = Vec::new();
        eventually("one of each, and of the host image, waits in every runner", || {
            waiting = inits(&server);
            waiting.len() == all
        });
        let sleep = ["sleep", "1.93"];
        let stream = server.ask(&json!({ "tasks": [{ "command": sleep[0], "args": [sleep[1]], "image": image }] }));
        let mut parent = 0;
        eventually("the task runs", || {
            let pids = running(&sleep);
            parent = pids.first().map_or(0, |pid| parent_of(*pid));
            parent > 1
        });
        assert!(waiting.contains(&parent), "{image}: {parent} is none of {waiting:?}");
        drop(stream);
        eventually("the task is ended", || running(&sleep).is_empty());
    }
    assert_eq!(server.processes("runner"), runners);
}

/// proc_pid_stat(5); 0 when it is gone.
fn parent_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(1)?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_task_whose_image_is_gone_is_refused_and_costs_nothing_else() {
    let trial = Trial::new();
    let definition = trial.path("images/bare");
    fs::create_dir_all(&definition).unwrap();
    fs::write(definition.join("image.toml"), "name = 'bare'\ndescription = ''\nbase = 'scratch'").unwrap();
    assert!(trial.faber(&["image", "build", "bare"]).status.success());
    let data = trial.path("data");
    let env = [("FABER_DATA_DIR", data.to_str().unwrap()), ONE, ("FABER_RATE_LIMIT__ENABLED", "false")];
    let server = Server::start(&["--open-mode"], &env);
    assert_eq!(server.shell("echo serving"), "serving");
    let runners = server.processes("runner");
    // The second is taken with the first, and begins after it.
    let tasks = json!([
        { "name": "first", "command": "sleep", "args": ["62.1"] },
        { "needs": ["first"], "run_when": "always", "image": "bare", "command": "x" },
    ]);
    let mut client = server.ask(&json!({ "tasks": tasks }));
    eventually("the first runs", || running(&["sleep", "62.1"]).len() == 1);
    assert!(trial.faber(&["image", "rm", "bare"]).status.success());
    assert!(trial.faber(&["image", "gc"]).status.success());
    signal(running(&["sleep", "62.1"])[0], Signal::SIGKILL);
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert!(text.contains("NotExecuted") && text.contains("the image bare cannot be used any more"), "{text}");
    assert_eq!(server.shell("echo serving"), "serving");
    assert_eq!(server.processes("runner"), runners);
}
