//! What remains: nothing, after many tasks, after a stop, after any process was killed.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::oci::Trial;
use crate::support::{FABER, Family, Server, assert_nothing_left, eventually, groups_of, is_swept, running, settles};

/// A client that asks and does not wait for the answer.
fn ask(server: &Server, tasks: Value) -> TcpStream {
    let body = json!({ "tasks": tasks }).to_string();
    let mut stream = TcpStream::connect(server.url().strip_prefix("http://").unwrap()).unwrap();
    let head = "POST /execute HTTP/1.1\r\nHost: faber\r\nConnection: close\r\nContent-Type: application/json";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    stream
}

fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    let _ = std::io::Read::read_to_string(&mut stream, &mut text);
    text
}

fn sleep(seconds: &str) -> Value {
    json!({ "command": "sleep", "args": [seconds] })
}

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Those of the instance: what others mount on the machine shows in a runner's namespace too.
fn mounts(pid: i32, instance: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    text.lines().filter(|line| line.contains(instance)).count()
}

/// What there is of the instance below its run directory, as a runner sees it: its own slot, mounted in its namespace.
fn files(pid: i32, instance: &str) -> usize {
    fn count(dir: &std::path::Path) -> usize {
        let Ok(entries) = fs::read_dir(dir) else { return 0 };
        let below = |path: PathBuf| if path.is_dir() && !path.ends_with("rootfs") { count(&path) } else { 0 };
        entries.flatten().map(|entry| 1 + below(entry.path())).sum()
    }
    count(&PathBuf::from(format!("/proc/{pid}/root/run/faber/{instance}")))
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn a_thousand_tasks_leave_nothing() {
    let server = Server::start_open();
    let hundred = json!(vec![json!({ "command": "bash", "args": ["-c", "echo x > f; true & wait"] }); 100]);
    let all_succeed = || {
        let body = server.execute(hundred.clone()).json();
        assert!(body["results"].as_array().unwrap().iter().all(|result| result["status"] == "Success"), "{body}");
    };
    let state = || {
        let runners = server.processes("runner");
        let per_runner: Vec<(usize, usize)> =
            runners.iter().map(|pid| (descriptors(*pid), mounts(*pid, server.instance()))).collect();
        (
            Family::of(server.pid()).len(),
            runners.iter().map(|pid| files(*pid, server.instance())).collect::<Vec<_>>(),
            groups_of(server.instance()).len(),
            descriptors(server.pid()),
            descriptors(server.processes("front")[0]),
            per_runner,
        )
    };
    all_succeed();
    let (mut before, mut since) = (state(), Instant::now());
    // Quiet is what stays: a runner may be at the making of a container for long, and one for cells is kept for two seconds.
    eventually("quiet", || {
        let now = state();
        if now != before {
            (before, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(4)
    });
    for _ in 0..10 {
        all_succeed();
    }
    let mut after = state();
    let came_back = settles(|| {
        after = state();
        after == before
    });
    assert!(came_back, "before: {before:?}\nafter: {after:?}");
    let log = server.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[test]
fn a_killed_runner_costs_its_task_and_nothing_else() {
    let server = Server::start_open();
    let client = ask(&server, json!([sleep("61.1"), { "command": "echo", "args": ["fine"] }]));
    eventually("the task runs", || running(&["sleep", "61.1"]).len() == 1);
    let runners = server.processes("runner");
    // The one whose container has the task.
    let task = running(&["sleep", "61.1"])[0];
    let runner = *runners.iter().find(|pid| is_ancestor(**pid, task)).unwrap();
    signal(runner, Signal::SIGKILL);
    let text = answer(client);
    let body: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
    let lost = &body["results"][0];
    assert_eq!((&lost["status"], &lost["exit_code"]), (&json!("Failure"), &Value::Null), "{lost}");
    assert!(lost["error"].as_str().unwrap().contains("lost"), "{lost}");
    assert_eq!(body["results"][1]["stdout"], "fine\n");
    eventually("the task's end", || running(&["sleep", "61.1"]).is_empty());
    eventually("a new runner", || {
        let now = server.processes("runner");
        now.len() == runners.len() && !now.contains(&runner)
    });
    assert_eq!(server.shell("echo serving"), "serving");
}

fn is_ancestor(pid: i32, mut of: i32) -> bool {
    while of > 1 && of != pid {
        let status = fs::read_to_string(format!("/proc/{of}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        of = parent.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    }
    of == pid
}

#[test]
fn a_killed_front_is_replaced_at_the_same_address() {
    let server = Server::start_open();
    let client = ask(&server, json!([sleep("61.2")]));
    eventually("the task runs", || running(&["sleep", "61.2"]).len() == 1);
    let front = server.processes("front");
    signal(front[0], Signal::SIGKILL);
    assert_eq!(answer(client), "");
    eventually("the task's end", || running(&["sleep", "61.2"]).is_empty());
    eventually("a new front", || server.processes("front").first().is_some_and(|pid| *pid != front[0]));
    // The port was never closed: who asks meanwhile waits.
    assert_eq!(server.shell("echo serving"), "serving");
}

#[test]
fn a_killed_keeper_takes_everything_with_it_and_the_next_start_sweeps() {
    let mut server = Server::start_open();
    let client = ask(&server, json!([sleep("61.3")]));
    eventually("the task runs", || running(&["sleep", "61.3"]).len() == 1);
    let family = Family::of(server.pid());
    server.kill();
    family.assert_gone();
    drop(client);
    is_swept(server.instance());
}

#[test]
fn everything_killed_at_once_is_swept_by_the_next_start() {
    let mut server = Server::start_open();
    let client = ask(&server, json!([sleep("61.4")]));
    eventually("the task runs", || running(&["sleep", "61.4"]).len() == 1);
    let family = Family::of(server.pid());
    // A runner whose front is gone would remove its groups while it still can.
    let others = [server.processes("runner"), server.processes("front")].concat();
    signal(server.pid(), Signal::SIGSTOP);
    for pid in others {
        signal(pid, Signal::SIGKILL);
    }
    server.kill();
    family.assert_gone();
    drop(client);
    assert!(!groups_of(server.instance()).is_empty(), "there is something to sweep");
    is_swept(server.instance());
}

#[test]
fn a_start_leaves_other_instances_alone() {
    let server = Server::start_open();
    let other = Server::start_open();
    assert_eq!(other.shell("echo two"), "two");
    drop(other);
    assert_eq!(server.shell("echo one"), "one");
}

/// In a mount namespace with a /run of its own, as in a container that was given the machine's control groups.
const ELSEWHERE: &str = r#"exec unshare --mount bash -c 'mount -t tmpfs none /run && exec "$@"' bash "$@""#;

#[test]
fn fabers_that_share_control_groups_and_nothing_else_leave_each_other_alone() {
    let mut first = Server::start(&["--open-mode"], &[("FABER_EXECUTION__CONCURRENCY", "2")]);
    let client = ask(&first, json!([sleep("25.1"), sleep("25.1")]));
    eventually("the tasks run", || running(&["sleep", "25.1"]).len() == 2);
    let second = Server::start_after(ELSEWHERE, &["--open-mode"], &[("FABER_EXECUTION__CONCURRENCY", "2")]);
    let other = ask(&second, json!([sleep("25.2"), sleep("25.2")]));
    eventually("the other's run", || running(&["sleep", "25.2"]).len() == 2);
    let user = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap().to_owned()
    };
    let tasks = [running(&["sleep", "25.1"]), running(&["sleep", "25.2"])].concat();
    let mut users: Vec<String> = tasks.into_iter().map(user).collect();
    users.sort();
    users.dedup();
    assert_eq!(users.len(), 4, "each task has a user of its own: {users:?}");
    for client in [client, other] {
        assert_eq!(answer(client).matches("\"Success\"").count(), 2);
    }
    drop(second);
    // The dead are still found from anywhere.
    let family = Family::of(first.pid());
    let others = [first.processes("front"), first.processes("runner")].concat();
    signal(first.pid(), Signal::SIGSTOP);
    for pid in others {
        signal(pid, Signal::SIGKILL);
    }
    first.kill();
    family.assert_gone();
    drop(Server::start_after(ELSEWHERE, &["--open-mode"], &[]));
    assert_eq!(groups_of(first.instance()), Vec::<PathBuf>::new());
    is_swept(first.instance());
}

#[test]
fn a_client_that_goes_away_has_its_tasks_ended() {
    let server = Server::start(&["--open-mode"], &[("FABER_EXECUTION__CONCURRENCY", "1")]);
    let mut client = ask(&server, json!([sleep("61.5"), sleep("61.6")]));
    eventually("the first runs", || running(&["sleep", "61.5"]).len() == 1);
    // However much it has said beyond its request.
    client.write_all(b"\r\nGET").unwrap();
    drop(client);
    eventually("its end", || running(&["sleep", "61.5"]).is_empty());
    // The second one, which waited, never runs.
    assert_eq!(server.shell("echo next"), "next");
    assert!(running(&["sleep", "61.6"]).is_empty());
}

#[test]
fn a_stop_lets_running_tasks_finish() {
    let mut server = Server::start_open();
    let client = ask(&server, json!([{ "command": "bash", "args": ["-c", "exec -a drain-me sleep 1; echo"] }]));
    eventually("the task runs", || running(&["drain-me", "1"]).len() == 1);
    let family = Family::of(server.pid());
    assert_eq!(server.stop(), Some(0), "{}", server.log());
    let text = answer(client);
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("\"Success\""), "{text}");
    assert!(TcpStream::connect(server.url().strip_prefix("http://").unwrap()).is_err());
    family.assert_gone();
    assert_eq!(groups_of(server.instance()), Vec::<PathBuf>::new());
}

#[test]
fn a_stop_ends_what_takes_longer_than_the_grace() {
    let env = [("FABER_SERVER__SHUTDOWN_GRACE", "200ms"), ("FABER_EXECUTION__CONCURRENCY", "1")];
    let mut server = Server::start(&["--open-mode"], &env);
    let client = ask(&server, json!([sleep("61.7"), sleep("61.7")]));
    eventually("the task runs", || running(&["sleep", "61.7"]).len() == 1);
    assert_eq!(server.stop(), Some(0), "{}", server.log());
    let text = answer(client);
    assert!(text.contains("cancelled while it ran"), "{text}");
    assert!(text.contains("\"NotExecuted\"") && text.contains("the server is stopping"), "{text}");
    assert!(running(&["sleep", "61.7"]).is_empty());
    assert_eq!(groups_of(server.instance()), Vec::<PathBuf>::new());
}

#[test]
fn a_stop_waits_for_tasks_and_for_nothing_else() {
    let mut server = Server::start(&["--open-mode"], &[("FABER_SERVER__SHUTDOWN_GRACE", "10m")]);
    let address = server.url().strip_prefix("http://").unwrap().to_owned();
    let silent = TcpStream::connect(&address).unwrap();
    let mut half = TcpStream::connect(&address).unwrap();
    half.write_all(b"POST /execute HTTP/1.1\r\nHost: ").unwrap();
    let client = ask(&server, json!([{ "command": "bash", "args": ["-c", "exec -a wait-for-me sleep 1.6"] }]));
    eventually("the task runs", || running(&["wait-for-me", "1.6"]).len() == 1);
    signal(server.pid(), Signal::SIGTERM);
    eventually("nobody new is let in", || TcpStream::connect(&address).is_err());
    assert!(answer(client).contains("\"Success\""));
    assert_eq!(server.wait(), Some(0), "{}", server.log());
    drop((silent, half));
}

#[test]
fn a_second_signal_ends_a_stop_at_once() {
    let mut server = Server::start(&["--open-mode"], &[("FABER_SERVER__SHUTDOWN_GRACE", "10m")]);
    let client = ask(&server, json!([sleep("61.9")]));
    eventually("the task runs", || running(&["sleep", "61.9"]).len() == 1);
    signal(server.pid(), Signal::SIGTERM);
    eventually("the drain", || server.log().contains("draining"));
    assert_eq!(server.stop(), Some(0), "{}", server.log());
    assert_eq!(answer(client), "", "the task was not waited for");
    assert!(running(&["sleep", "61.9"]).is_empty());
    assert_eq!(groups_of(server.instance()), Vec::<PathBuf>::new());
}

/// A service manager, as far as it listens: sd_notify(3).
struct Manager {
    heard: mpsc::Receiver<String>,
    trial: Trial,
}

impl Manager {
    fn new() -> Self {
        let trial = Trial::new();
        let socket = UnixDatagram::bind(trial.path("notify")).unwrap();
        let (hears, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Ok(length) = socket.recv(&mut bytes) {
                let _ = hears.send(String::from_utf8(bytes[..length].to_vec()).unwrap());
            }
        });
        Self { heard, trial }
    }

    fn server(&self, env: &[(&str, &str)]) -> Server {
        let (notify, data) = (self.trial.path("notify"), self.trial.path("data"));
        let own = [("NOTIFY_SOCKET", notify.to_str().unwrap()), ("FABER_DATA_DIR", data.to_str().unwrap())];
        Server::start(&["--open-mode"], &[&own, env].concat())
    }

    /// What is said next.
    #[track_caller]
    fn hear(&self) -> String {
        self.heard.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    #[track_caller]
    fn has_heard_nothing(&self) {
        assert_eq!(self.heard.try_recv(), Err(mpsc::TryRecvError::Empty));
    }
}

#[test]
fn the_service_manager_hears_when_tasks_can_be_taken_and_when_they_no_longer_can() {
    let manager = Manager::new();
    let definition = manager.trial.path("images/bare");
    fs::create_dir_all(&definition).unwrap();
    fs::write(definition.join("image.toml"), "name = 'bare'\ndescription = ''\nbase = 'scratch'").unwrap();
    assert!(manager.trial.faber(&["image", "build", "bare"]).status.success());
    let tree = manager.trial.tree("bare");
    // An image without its files: everything is started, no container can be made.
    fs::rename(tree.join("rootfs"), tree.join("away")).unwrap();
    let env = [("FABER_EXECUTION__DEFAULT_IMAGE", "bare"), ("FABER_EXECUTION__CONCURRENCY", "1")];
    let mut server = manager.server(&env);
    assert_eq!(server.get("/health").status, 200);
    eventually("runners fail", || server.log().matches("the runner cannot make containers").count() >= 3);
    manager.has_heard_nothing();
    fs::rename(tree.join("away"), tree.join("rootfs")).unwrap();
    assert_eq!(manager.hear(), "READY=1\nSTATUS=Serving\n");
    assert_eq!(server.run(json!({ "command": "echo", "args": ["x"], "image": "host" }))["stdout"], "x\n");

    for pid in [server.processes("front"), server.processes("runner")].concat() {
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/environ")).unwrap(), "", "nothing to speak to it with");
    }
    signal(server.processes("front")[0], Signal::SIGKILL);
    assert_eq!(manager.hear(), "STATUS=The HTTP process ended; everything is restarted\n");
    assert_eq!(manager.hear(), "READY=1\nSTATUS=Serving\n");
    // No watchdog was asked for, so nothing was said of that kind; stopping may take the grace, and what follows on it.
    assert_eq!(server.stop(), Some(0), "{}", server.log());
    let stopping = "STOPPING=1\nSTATUS=Draining: running tasks may finish\nEXTEND_TIMEOUT_USEC=30000000\n";
    assert_eq!(manager.hear(), stopping);
    manager.has_heard_nothing();
}

#[test]
fn a_front_that_ends_again_and_again_is_restarted_ever_later_and_the_manager_hears_of_it() {
    let manager = Manager::new();
    let mut server = manager.server(&[]);
    assert_eq!(manager.hear(), "READY=1\nSTATUS=Serving\n");
    let mut ended = std::collections::BTreeSet::new();
    while !server.log().contains("\"delay\":\"1.6s\"") {
        for pid in server.processes("front") {
            // It may be gone, and is not waited for: whatever ends it, it ends at once.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            ended.insert(pid);
        }
        std::thread::yield_now();
    }
    // The log may be ahead of what the manager is told.
    let said = "STATUS=The HTTP process ends again and again; it is restarted ever later\n";
    while manager.hear() != said {}
    for delay in ["100ms", "200ms", "400ms", "800ms"] {
        assert!(server.log().contains(&format!("\"delay\":\"{delay}\"")), "{}", server.log());
    }
    assert!(ended.len() < 30, "{ended:?}");
    assert_eq!(server.shell("echo serving"), "serving");
    assert_eq!(server.stop(), Some(0), "{}", server.log());
}

#[test]
fn a_watchdog_hears_of_the_keeper_in_time_until_the_end() {
    let manager = Manager::new();
    let started = std::time::Instant::now();
    let mut server = manager.server(&[("WATCHDOG_USEC", "400000")]);
    let five_times = || {
        let heard = std::iter::repeat_with(|| manager.hear());
        assert_eq!(heard.filter(|heard| heard == "WATCHDOG=1\n").take(5).count(), 5);
    };
    five_times();
    // The first is said at once, then one each half of the time.
    assert!(started.elapsed() >= Duration::from_millis(4 * 200), "no more often than needed");
    let client = ask(&server, json!([sleep("3.5")]));
    eventually("the task runs", || running(&["sleep", "3.5"]).len() == 1);
    signal(server.pid(), Signal::SIGTERM);
    while !manager.hear().starts_with("STOPPING=1\n") {}
    five_times();
    assert!(answer(client).contains("\"Success\""));
    assert_eq!(server.wait(), Some(0), "{}", server.log());
}

#[test]
fn a_service_manager_that_does_not_listen_stops_nothing() {
    let manager = Manager::new();
    let notify = manager.trial.path("notify");
    fs::remove_file(&notify).unwrap();
    let _deaf = UnixDatagram::bind(&notify).unwrap();
    // Its queue is full soon.
    let mut server = manager.server(&[("WATCHDOG_USEC", "20000")]);
    eventually("it is full", || server.log().contains("the service manager cannot be told"));
    assert_eq!(server.shell("echo serving"), "serving");
    assert_eq!(server.stop(), Some(0), "{}", server.log());
    fs::remove_file(manager.trial.path("notify")).unwrap();
    let server = manager.server(&[]);
    eventually("it is tried", || server.log().contains("the service manager cannot be told"));
    assert_eq!(server.shell("echo serving"), "serving");
}

#[test]
fn faber_run_is_the_task_to_its_caller() {
    let run = |args: &[&str]| {
        let output = Command::new(FABER).arg("run").args(args).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(run(&["--", "python3", "-c", "print(1)"]), (0, "1\n".into(), String::new()));
    assert_eq!(run(&["bash", "-c", "echo e >&2; exit 3"]), (3, String::new(), "e\n".into()));
    assert_eq!(run(&["--wall-time", "200ms", "--", "sleep", "60"]).0, 124);
    assert_eq!(run(&["--cpu-time", "200ms", "--", "bash", "-c", "while :; do :; done"]).0, 124);
    assert_eq!(run(&["--memory", "16M", "--", "tail", "/dev/zero"]).0, 137);
    assert_eq!(run(&["--max-output", "10", "--", "yes"]).0, 125);
    assert_eq!(run(&["--", "no-such-command"]).0, 127);
    assert_eq!(run(&["--", "/etc"]).0, 126);
    assert_eq!(run(&["--", "bash", "-c", "kill -TERM $$"]).0, 143);
    assert_eq!(run(&["--image", "none", "--", "true"]).0, 125);
    assert_eq!(run(&["--memory", "1", "--", "true"]).0, 125);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("main.py");
    fs::write(&file, "import os; print(open('main.py').read() != '', os.environ['A'])").unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(run(&["--file", file, "--env", "A=b", "--", "python3", "main.py"]).1, "True b\n");
    let (status, json, _) = run(&["--json", "--", "echo", "x"]);
    assert_eq!((status, serde_json::from_str::<Value>(&json).unwrap()["stdout"].clone()), (0, json!("x\n")));
}

#[test]
fn what_faber_was_started_with_does_not_show_in_a_task() {
    let script = "umask 077; ulimit -S -s 512; ulimit -c 0; exec nice -n 5 \"$@\"";
    let task = "umask; ulimit -s; mkdir d; stat -c %a d /etc/passwd";
    let output = Command::new("bash")
        .args(["-c", script, "bash", FABER, "run", "--", "bash", "-c", task])
        .env("SECRET", "sesame")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "0022\n524288\n755\n644\n");
}

#[test]
fn an_interrupted_faber_run_ends_its_task() {
    let mut run = Command::new(FABER).args(["run", "--", "sleep", "61.8"]).spawn().unwrap();
    eventually("the task runs", || running(&["sleep", "61.8"]).len() == 1);
    let instance = instance_of(running(&["sleep", "61.8"])[0]);
    assert!(!groups_of(&instance).is_empty());
    signal(run.id() as i32, Signal::SIGINT);
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert!(running(&["sleep", "61.8"]).is_empty());
    assert_nothing_left(&instance);
}

/// The instance whose task `pid` is: its control group says so (cgroups(7)).
fn instance_of(pid: i32) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let below = groups.lines().find_map(|line| line.split_once("/faber/")).unwrap_or_else(|| panic!("{groups}")).1;
    below.split('/').next().unwrap().to_owned()
}

#[test]
fn doctor_finds_everything_here() {
    let output = Command::new(FABER).args(["doctor", "--json"]).output().unwrap();
    let needs: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{needs:#}");
    let names: Vec<&str> = needs.as_array().unwrap().iter().map(|need| need["name"].as_str().unwrap()).collect();
    for name in ["kernel", "privileges", "namespaces", "cgroups", "seccomp", "overlayfs", "a container"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
}

/// The machine's own clock, which is put right again by how much time has gone by.
struct Clock(std::time::SystemTime, std::time::Instant);

impl Clock {
    /// None where the machine is not the test's own.
    fn take() -> Option<Self> {
        if std::env::var_os("TEST_OWN_MACHINE").is_none() {
            eprintln!(
                "NOT CHECKED: a clock that is set, which is done in the virtual machine alone (scripts/vm --tests)"
            );
            return None;
        }
        Some(Self(std::time::SystemTime::now(), std::time::Instant::now()))
    }

    fn set(&self, seconds_from_now: i64) {
        let now = (self.0 + self.1.elapsed()).duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let set =
            std::process::Command::new("date").args(["-s", &format!("@{}", now + seconds_from_now)]).output().unwrap();
        assert!(set.status.success(), "{set:?}");
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[test]
fn a_clock_that_is_set_changes_no_limit_and_no_figure() {
    let Some(clock) = Clock::take() else { return };
    const DAY: i64 = 86_400;
    let server = Server::start_open();
    let blob = server.put(b"kept");
    for by in [-DAY, DAY] {
        let url = server.url();
        let task = json!({ "command": "sleep", "args": ["2.71"], "resource_limits": { "wall_time_limit": 600_000_000_000u64 } });
        let client = std::thread::spawn(move || {
            let body = json!({ "tasks": [task] }).to_string();
            let mut answer = ureq::post(format!("{url}/execute")).content_type("application/json").send(body).unwrap();
            answer.body_mut().read_json::<Value>().unwrap()
        });
        eventually("the task runs", || !running(&["sleep", "2.71"]).is_empty());
        clock.set(by);
        let body = client.join().unwrap();
        let result = &body["results"][0];
        assert_eq!(result["status"], "Success", "{by}: {result}");
        let wall = result["resource_usage"]["wall_time_ns"].as_u64().unwrap();
        assert!((2_700_000_000..600_000_000_000).contains(&wall), "{by}: {result}");
        let late = server.run(
            json!({ "command": "sleep", "args": ["60"], "resource_limits": { "wall_time_limit": 1_000_000_000 } }),
        );
        assert_eq!(late["status"], "Timeout", "{by}: {late}");
        assert_eq!(server.get("/health").status, 200);
        // A day back nothing is too old, whatever it says it is from.
        assert!(by > 0 || server.blob(&blob) == b"kept");
    }
}
