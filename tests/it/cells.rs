//! Tasks of one large request have a cell each in a container of that request: as apart as containers are.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Server, children, eventually, groups_of, running};

/// As many places everywhere, and patience.
const TWO: [(&str, &str); 2] = [("FABER_EXECUTION__CONCURRENCY", "2"), ("FABER_EXECUTION__QUEUE_TIMEOUT", "10m")];

fn bash(script: &str) -> Value {
    json!({ "command": "bash", "args": ["-c", script] })
}

/// Who a process descends from, up to the server's keeper: for a task in a container init and runner, for one in a cell the cell's
/// init, the container's and the runner.
fn ancestors(server: &Server, mut pid: i32) -> Vec<i32> {
    let mut ancestors = Vec::new();
    loop {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(1)?.parse().ok());
        pid = parent.unwrap_or(0);
        if pid == server.pid() || pid == 0 {
            return ancestors;
        }
        ancestors.push(pid);
    }
}

#[test]
fn many_tasks_of_a_request_have_one_container_at_each_runner() {
    let server = Server::start(&["--open-mode"], &TWO);
    let mut tasks = vec![json!({ "command": "true" }); 7];
    tasks.push(json!({ "command": "sleep", "args": ["2.1"] }));
    let client = server.ask(&json!({ "tasks": tasks }));
    eventually("the last one runs", || running(&["sleep", "2.1"]).len() == 1);
    let pid = running(&["sleep", "2.1"])[0];
    assert_eq!(ancestors(&server, pid).len(), 3, "its init, the container's, the runner");
    drop(client);
    // A few have a container each, as long as some wait for a task.
    let client = server.ask(&json!({ "tasks": [{ "command": "sleep", "args": ["2.2"] }, { "command": "true" }] }));
    eventually("it runs", || running(&["sleep", "2.2"]).len() == 1);
    assert_eq!(ancestors(&server, running(&["sleep", "2.2"])[0]).len(), 2, "its init, the runner");
    drop(client);
}

/// Text in which every number that is a user's of some slot is the same.
fn without_users(text: &Value) -> Vec<String> {
    let text = text.as_str().unwrap();
    let word = |word: &str| {
        if word.len() > 8 && word.bytes().all(|byte| byte.is_ascii_digit()) { "N" } else { word }.to_owned()
    };
    text.lines()
        .map(|line| {
            line.split_inclusive(['=', ',', ' '])
                .map(|part| word(part.trim_end_matches(['=', ',', ' '])))
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect()
}

#[test]
fn no_cell_sees_anything_of_the_one_before() {
    let server = Server::start(&["--open-mode"], &TWO);
    // What it finds, and then what it leaves.
    let look = "ls -A /tmp /dev/shm /dev/mqueue /workspace 2>/dev/null; ls /dev /dev/pts; ls /proc | grep '^[0-9]' | sort -n | head -1; pgrep -c sleep; \
        ipcs | tr -s '\n'; cut -d ' ' -f 4- /proc/self/mountinfo | sort; cat /proc/self/cgroup /proc/sys/kernel/random/boot_id; \
        ulimit -a; id; env | sort; jobs; df /tmp /dev/shm /workspace | cut -d ' ' -f 1; ls -la /proc/self/fd | awk '{ print $9 }'";
    let leave = "touch /tmp/left /dev/shm/left /workspace/left; ipcmk -M 64 -S 1 -Q >/dev/null; \
        (trap '' TERM HUP; setsid sleep 60 >/dev/null 2>&1 </dev/null &)";
    let tasks: Vec<Value> = (0..12).map(|_| bash(&format!("{look}; {leave}"))).collect();
    let results = server.results(&json!({ "tasks": tasks }));
    let first = without_users(&results[0]["stdout"]);
    for result in &results[1..] {
        assert_eq!(without_users(&result["stdout"]), first);
    }
    assert!(results.iter().all(|result| result["status"] == "Success" && result["stderr"].is_null()), "{results:#?}");
}

#[test]
fn each_cell_has_its_own_limits_figures_and_outcome() {
    let server = Server::start(&["--open-mode"], &TWO);
    let limits = |limits: Value| json!({ "resource_limits": limits });
    let kinds: [(&str, Value, &str); 6] = [
        ("exit 0", json!({}), "Success"),
        ("exit 7", json!({}), "Failure"),
        ("tail /dev/zero", limits(json!({ "memory_limit": 16 << 20 })), "MemoryLimitExceeded"),
        ("while :; do :; done", limits(json!({ "cpu_time_limit": 100_000_000 })), "CpuLimitExceeded"),
        ("sleep 60", limits(json!({ "wall_time_limit": 100_000_000 })), "Timeout"),
        ("yes", limits(json!({ "max_output_size": 1000 })), "ResourceLimitExceeded"),
    ];
    let tasks: Vec<Value> = (0..4)
        .flat_map(|_| &kinds)
        .map(|(script, limits, _)| {
            let mut task = bash(script);
            task.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
            task
        })
        .collect();
    let results = server.results(&json!({ "tasks": tasks }));
    for (result, (script, _, status)) in results.iter().zip(kinds.iter().cycle()) {
        assert_eq!(result["status"], *status, "{script}: {result}");
    }
    // 40 MiB, a second of CPU (a shell takes a third of one where the machine is emulated), three processes: told of each, and of no neighbour.
    let large = json!({ "command": "python3", "args": ["-c", "x = bytearray(40 << 20)\nimport time\nwhile time.process_time() < 1: pass"] });
    let small = bash("sleep 0.01 & sleep 0.01 & wait");
    let tasks: Vec<&Value> = (0..10).flat_map(|_| [&large, &small]).collect();
    let (mut least, mut most) = (u64::MAX, 0);
    for (result, is_large) in server.results(&json!({ "tasks": tasks })).iter().zip([true, false].iter().cycle()) {
        let usage = &result["resource_usage"];
        let figure = |name: &str| usage[name].as_u64().unwrap();
        let (memory, cpu, processes) =
            (figure("memory_peak_bytes") >> 20, figure("cpu_time_ns") / 1_000_000, figure("process_count"));
        match is_large {
            true => assert!((40..60).contains(&memory) && cpu >= 1000 && processes == 1, "{usage}"),
            false => assert!(memory < 8 && processes == 3, "{usage}"),
        }
        if *is_large { least = least.min(cpu) } else { most = most.max(cpu) }
    }
    assert!(most < least, "{most} {least}");
}

#[test]
fn no_two_requests_have_a_container_in_common() {
    let server = Server::start(&["--open-mode"], &TWO);
    let clients: Vec<_> = ["0.31", "0.32"]
        .iter()
        .map(|time| server.ask(&json!({ "tasks": vec![json!({ "command": "sleep", "args": [time] }); 16] })))
        .collect();
    // The containers of a request's cells, as far as there are any now.
    let containers = |time: &str| -> BTreeSet<i32> {
        let above = running(&["sleep", time]).into_iter().map(|pid| ancestors(&server, pid));
        above.filter(|ancestors| ancestors.len() == 3).map(|ancestors| ancestors[1]).collect()
    };
    let mut seen = ["0.31", "0.32"].map(|_| BTreeSet::new());
    eventually("both have cells", || {
        seen[0].extend(containers("0.31"));
        seen[1].extend(containers("0.32"));
        seen.iter().all(|seen| !seen.is_empty())
    });
    assert_eq!(seen[0].intersection(&seen[1]).count(), 0, "{seen:?}");
    drop(clients);
}

#[test]
fn a_container_with_cells_ends_with_its_request() {
    let server = Server::start(&["--open-mode"], &TWO);
    let groups = || groups_of(server.instance()).len();
    // A container with its task's process, and nothing else.
    let is_idle = || {
        let only = |pid: i32| <[i32; 1]>::try_from(children(pid)).ok().map(|[child]| child);
        let runners = server.processes("runner");
        let is_idle = |runner: i32| only(runner).and_then(only).is_some_and(|task| children(task).is_empty());
        !runners.is_empty() && runners.into_iter().all(is_idle)
    };
    eventually("every runner has a container", is_idle);
    let before = groups();
    let tasks: Vec<Value> = (0..20).map(|_| bash("exit 0")).collect();
    assert_eq!(server.results(&json!({ "tasks": tasks })).len(), 20);
    eventually("what is left is as before", || is_idle() && groups() == before);
    // A client that goes away takes it along.
    let client = server.ask(&json!({ "tasks": vec![json!({ "command": "sleep", "args": ["0.4"] }); 12] }));
    eventually("cells run", || running(&["sleep", "0.4"]).iter().any(|pid| ancestors(&server, *pid).len() == 3));
    drop(client);
    eventually("what is left is as before", || is_idle() && groups() == before);
}

#[test]
fn a_container_that_is_killed_takes_one_task_along_and_no_more() {
    let server = Server::start(&["--open-mode"], &TWO);
    let tasks: Vec<Value> = (0..30).map(|_| json!({ "command": "sleep", "args": ["0.15"] })).collect();
    let body = json!({ "tasks": tasks }).to_string();
    let results = std::thread::scope(|scope| {
        let client = scope.spawn(|| server.post(&body, &[]));
        let mut hosts = Vec::new();
        eventually("a cell runs", || {
            let cells = running(&["sleep", "0.15"]).into_iter().map(|pid| ancestors(&server, pid));
            hosts = cells.filter(|ancestors| ancestors.len() == 3).map(|ancestors| ancestors[1]).collect();
            !hosts.is_empty()
        });
        let _ = kill(Pid::from_raw(hosts[0]), Signal::SIGKILL);
        client.join().unwrap().json()["results"].as_array().unwrap().clone()
    });
    let lost = results.iter().filter(|result| result["status"] != "Success").count();
    assert!(lost <= 2, "{results:#?}");
    assert_eq!(server.shell("echo serving"), "serving");
}
