//! What only cgroup v2 has: below a group that is not the machine's root, delegated by a service manager or all that a
//! container sees; an end for all at once; shares of the processors; pressure.
//! With cgroup v1 there is nothing of it to see: the virtual machine of scripts/test is where these look.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use serde_json::json;

use crate::support::cgroup2::{Delegated, TREE, hand_down, unified};
use crate::support::{Server, eventually, faber_after};

/// A process in the way.
struct Sleeper(Child);

impl Sleeper {
    fn in_group(group: &Delegated) -> Self {
        let child = Command::new("bash").args(["-c", &format!("{}\nexec sleep 1000", group.enter())]).spawn().unwrap();
        eventually("the sleeper's coming", || {
            fs::read_to_string(group.0.join("cgroup.procs")).unwrap().contains(&child.id().to_string())
        });
        Self(child)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[track_caller]
fn works_below(group: &Delegated, preparation: &str) {
    let mut server = Server::start_after(preparation, &["--open-mode"], &[("FABER_EXECUTION__CONCURRENCY", "1")]);
    assert_eq!(server.shell("echo $((6 * 7)); cut -d: -f3 /proc/self/cgroup"), "42\n/");
    let result = server.run(json!({
        "command": "python3", "args": ["-c", "bytearray(1 << 30)"], "resource_limits": { "memory_limit": 64 << 20 },
    }));
    assert_eq!(result["status"], "MemoryLimitExceeded", "{result}");

    // All of the service is in the leaf, all of its containers beside it, and nothing is anywhere else.
    let own = fs::read_to_string(group.0.join("keeper/cgroup.procs")).unwrap();
    for pid in [server.pid()].into_iter().chain(server.processes("front")).chain(server.processes("runner")) {
        assert!(own.lines().any(|line| line == pid.to_string()), "{pid} is not among {own:?}");
    }
    let instance = format!("faber/{}", server.instance());
    let groups = group.groups();
    assert!(groups.iter().any(|path| path.starts_with(&format!("{instance}/s"))), "{groups:?}");
    assert!(!Path::new(TREE).join(&instance).exists());

    assert_eq!(server.stop(), Some(0), "{}", server.log());
    assert_eq!(group.groups(), ["keeper"]);
}

#[test]
fn a_delegated_group_is_divided_and_nothing_else_is_touched() {
    if unified("a delegated group") {
        let group = Delegated::new("faber-test.service").marked();
        works_below(&group, &group.enter());
    }
}

#[test]
fn a_service_in_a_subgroup_of_what_is_delegated_stays_there() {
    if unified("a subgroup of a delegated group") {
        let group = Delegated::new("faber-test-subgroup.service").marked();
        fs::create_dir(group.0.join("keeper")).unwrap();
        works_below(&group, &format!("echo $$ > {}/keeper/cgroup.procs", group.path()));
    }
}

#[test]
fn all_that_a_container_sees_is_divided() {
    if unified("a cgroup namespace") {
        let group = Delegated::new("faber-test-container");
        works_below(&group, &group.enclose());
    }
}

#[test]
fn images_are_built_below_a_delegated_group() {
    if unified("building in a delegated group") {
        let group = Delegated::new("faber-test-build.service").marked();
        let store = tempfile::tempdir().unwrap();
        let definition = store.path().join("definitions/tiny");
        fs::create_dir_all(&definition).unwrap();
        fs::copy("/bin/true", definition.join("true")).unwrap();
        let text =
            "name = 'tiny'\ndescription = ''\nbase = 'scratch'\ncopy = [{ from = 'true', to = '/usr/bin/true' }]\n";
        fs::write(definition.join("image.toml"), text).unwrap();
        let data = format!("export FABER_DATA_DIR={}\n", store.path().join("data").display());
        let definitions = store.path().join("definitions");
        let args = ["image", "build", "tiny", "--definitions", definitions.to_str().unwrap()];
        let built = faber_after(&(data + &group.enter()), &args);
        assert!(built.status.success(), "{built:?}");
        assert_eq!(group.groups(), ["keeper"]);
    }
}

#[test]
fn a_container_that_runs_out_of_memory_ends_as_a_whole() {
    if unified("memory.oom.group") {
        let server = Server::start_open();
        let script = "python3 -c 'bytearray(1 << 30)'; echo survived";
        let result = server.run(json!({
            "command": "bash", "args": ["-c", script], "resource_limits": { "memory_limit": 64 << 20 },
        }));
        assert_eq!((&result["status"], &result["stdout"]), (&json!("MemoryLimitExceeded"), &json!(null)), "{result}");
        assert!(result["resource_usage"]["memory_peak_bytes"].as_u64().unwrap() <= 64 << 20, "{result}");
    }
}

#[test]
fn a_share_of_the_processors_is_all_a_task_gets() {
    if unified("cpu.max") {
        let env = [("FABER_EXECUTION__CPUS", "0.5"), ("FABER_RATE_LIMIT__ENABLED", "false")];
        let server = Server::start(&["--open-mode"], &env);
        let program = "import time\nwhile time.process_time() < 1: pass";
        let usage = server.run(json!({ "command": "python3", "args": ["-c", program] }))["resource_usage"].clone();
        let time = |field: &str| usage[field].as_u64().unwrap();
        // Its first period may be a fresh one.
        assert!(time("wall_time_ns") + 200_000_000 >= 2 * time("cpu_time_ns"), "{usage}");
    }
}

#[test]
fn what_a_client_may_use_of_the_processors_its_tasks_share() {
    let (key, keys) = crate::support::new_key();
    let keys = keys.replace('}', ", cpus = \"0.5\" }");
    let env = [("FABER_AUTH__KEYS", keys.as_str()), ("FABER_RATE_LIMIT__ENABLED", "false")];
    if unified("cpu.max") {
        let server = Server::start(&[], &env);
        let program = "import time\na = time.time()\nwhile time.process_time() < 0.5: pass\nprint(a, time.time())";
        let task = json!({ "command": "python3", "args": ["-c", program] });
        let body = json!({ "tasks": [task, task] }).to_string();
        let answer = server.post(&body, &[("Authorization", &format!("Bearer {key}"))]).json();
        let spans = [0, 1].map(|at| {
            let result = &answer["results"][at];
            let usage = |field: &str| result["resource_usage"][field].as_u64().unwrap();
            assert!(usage("wall_time_ns") + 200_000_000 >= 2 * usage("cpu_time_ns"), "{result}");
            let (begin, end) = result["stdout"].as_str().unwrap().trim().split_once(' ').unwrap();
            (begin.parse::<f64>().unwrap(), end.parse::<f64>().unwrap())
        });
        // Each took all of the share, so that they ran one after the other.
        assert!(spans[0].1 <= spans[1].0 || spans[1].1 <= spans[0].0, "{spans:?}");
    } else {
        let exported: String = env.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
        let refused = faber_after(&exported, &["serve", "--listen", "127.0.0.1:0"]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("takes cgroup v2"), "{refused:?}");
    }
}

/// Programs start as many threads as they see processors.
#[test]
fn a_task_sees_as_many_processors_as_it_may_use() {
    if !unified("shares of the processors") {
        return;
    }
    let all = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let server = Server::start(
        &["--open-mode"],
        &[("FABER_EXECUTION__CONCURRENCY", "2"), ("FABER_EXECUTION__QUEUE_TIMEOUT", "10m")],
    );
    let script =
        "nproc; cat /sys/devices/system/cpu/online; grep Cpus_allowed_list /proc/self/status | cut -f2; sleep 4";
    let task =
        |limits: serde_json::Value| json!({ "command": "sh", "args": ["-c", script], "resource_limits": limits });
    let seen = |result: &serde_json::Value| -> Vec<String> {
        assert_eq!(result["status"], "Success", "{result}");
        result["stdout"].as_str().unwrap().lines().map(str::to_owned).collect()
    };
    let half = task(json!({ "cpus": 0.5 }));
    let mut are_apart = all.trim() == "0";
    // Beside the tasks of other tests' servers, which are counted, too, they may have to share one.
    for _ in 0..5 {
        let both = server.execute(json!([half, half])).json()["results"].clone();
        let [one, other] = [0, 1].map(|at| seen(&both[at]));
        assert_eq!((one[0].as_str(), other[0].as_str()), ("1", "1"), "{both}");
        assert!(one[1] == one[2] && other[1] == other[2], "{both}");
        are_apart |= one[1] != other[1];
        if are_apart {
            break;
        }
    }
    // Those that the fewest have: here each has one of its own, where there are two.
    assert!(are_apart);
    let every = seen(&server.run(task(json!({}))));
    assert_eq!(every[1..], [all.trim(), all.trim()], "the next task of the slot sees all again");
}

/// Where it cannot be had, that is told, and what was begun is taken back; on v1, too.
#[test]
fn a_share_that_cannot_be_had_is_told_and_leaves_nothing() {
    let asked = "export FABER_EXECUTION__CPUS=0.5\n";
    let (refused, words) = if Path::new(TREE).join("cgroup.controllers").exists() {
        // Only memory and pids come down to it.
        let outer = Delegated::new("faber-test-shares.slice");
        hand_down(&outer.0);
        let inner = outer.0.join("faber-test-shares.service");
        fs::create_dir(&inner).unwrap();
        let group = Delegated(inner).marked();
        let refused = faber_after(&(asked.to_owned() + &group.enter()), &["run", "--", "true"]);
        assert_eq!(group.groups(), ["keeper"]);
        (refused, "the cpu controller is not handed down to the group")
    } else {
        (faber_after(asked, &["run", "--", "true"]), "takes cgroup v2, and that is not used here")
    };
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains(words), "{refused:?}");
}

#[test]
fn tasks_that_stall_for_memory_keep_others_waiting() {
    if unified("memory.pressure") {
        // Nothing is never too little, so that each waits for the other's end.
        let env = [
            ("FABER_EXECUTION__MEMORY_PRESSURE", "0%"),
            ("FABER_EXECUTION__CONCURRENCY", "2"),
            ("FABER_EXECUTION__QUEUE_TIMEOUT", "10m"),
        ];
        let server = Server::start(&["--open-mode"], &env);
        let program = "import time; print(time.monotonic()); time.sleep(1); print(time.monotonic())";
        let task = json!({ "command": "python3", "args": ["-c", program] });
        let results = server.execute(json!([task, task])).json()["results"].clone();
        let time = |task: usize, line: usize| -> f64 {
            results[task]["stdout"].as_str().unwrap().lines().nth(line).unwrap().parse().unwrap()
        };
        assert!(time(0, 1) <= time(1, 0) || time(1, 1) <= time(0, 0), "{results}");
    }
}

#[track_caller]
fn refuses(preparation: &str, words: &[&str]) {
    let run = faber_after(preparation, &["run", "--", "true"]);
    let doctor = faber_after(preparation, &["doctor"]);
    let said = String::from_utf8_lossy(&run.stderr);
    let seen = String::from_utf8_lossy(&doctor.stdout);
    assert!(!run.status.success() && doctor.status.code() == Some(1), "{run:?} {doctor:?}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
        assert!(seen.contains(word), "{word:?} is not in {seen}");
    }
}

#[test]
fn processes_in_the_way_are_told_with_the_fix() {
    if unified("processes in a delegated group") {
        let group = Delegated::new("faber-test-occupied.service").marked();
        let _sleeper = Sleeper::in_group(&group);
        refuses(&group.enter(), &["1 processes are in the group", group.path(), "DelegateSubgroup=keeper"]);
        assert_eq!(group.groups(), Vec::<String>::new());
    }
}

#[test]
fn a_controller_that_is_not_handed_down_is_told_with_the_fix() {
    if unified("a group without controllers") {
        let outer = Delegated::new("faber-test-poor.slice");
        let inner = outer.0.join("faber-test-poor.service");
        fs::create_dir(&inner).unwrap();
        let inner = Delegated(inner).marked();
        refuses(&inner.enter(), &["the memory controller is not handed down", inner.path(), "Delegate=yes"]);
    }
}

#[test]
fn a_tree_that_cannot_be_written_to_is_told_with_the_fix() {
    if unified("a read-only tree") {
        let read_only =
            format!("set -- unshare --mount sh -c 'mount -o remount,bind,ro {TREE} && exec \"$@\"' sh \"$@\"");
        refuses(&read_only, &["cannot be written to", "Read-only file system", "--privileged"]);
    }
}
