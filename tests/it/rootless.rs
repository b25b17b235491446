//! Faber of an ordinary user with subordinate ids: the same containers, the same limits.
//! Where there is no such user the virtual machine of scripts/test is where these look.

use std::fs;
use std::os::unix::fs::chown;

use serde_json::{Value, json};

use crate::support::cgroup2::{Delegated, unified};
use crate::support::{Server, faber_after};

const USER: &str = "ann";
const UID: u32 = 1000;

/// Whether there is cgroup v2, and a user with subordinate ids; where there is not, the test says that it looked at nothing.
fn possible(test: &str) -> bool {
    let user = fs::read_to_string("/etc/subuid").is_ok_and(|text| text.contains(&format!("{USER}:")));
    if !user {
        eprintln!(
            "NOT CHECKED: {test} needs a user {USER} with subordinate ids: scripts/test has one in its virtual machine"
        );
    }
    user && unified(test)
}

/// A group that belongs to the user, as systemd makes it.
fn delegated(name: &str) -> Delegated {
    let group = Delegated::new(name).marked();
    for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        chown(group.0.join(file), Some(UID), Some(UID)).unwrap();
    }
    group
}

/// What a shell of root does to go on as the user, with nothing of root's.
fn become_user(more: &str) -> String {
    format!(
        "cd /\nset -- /usr/bin/setpriv --reuid {UID} --regid {UID} --clear-groups \
         /usr/bin/env HOME=/home/{USER} FABER_DATA_DIR=/home/{USER}/images {more} \"$@\""
    )
}

/// One that is delegated for this run alone.
fn run(args: &[&str]) -> Value {
    let group = delegated("faber-test-user-run.scope");
    let args = [&["run", "--json"], args].concat();
    let output = faber_after(&(group.enter() + "\n" + &become_user("")), &args);
    assert_eq!(group.groups(), ["keeper"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn a_user_runs_tasks_under_the_same_limits() {
    if possible("faber run without root") {
        let result = run(&["--", "bash", "-c", "id -u; cat /proc/self/uid_map | wc -l; ls /home/ann /root; exit 3"]);
        assert_eq!((&result["status"], &result["exit_code"]), (&json!("Failure"), &json!(3)), "{result}");
        assert!(result["stdout"].as_str().unwrap().starts_with("65000\n"), "{result}");
        let result = run(&["--memory", "32M", "--", "python3", "-c", "bytearray(1 << 30)"]);
        assert_eq!(result["status"], "MemoryLimitExceeded", "{result}");
        let result = run(&["--cpu-time", "300ms", "--", "bash", "-c", "while :; do :; done"]);
        assert_eq!(result["status"], "CpuLimitExceeded", "{result}");
        let fork = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait";
        let result = run(&["--processes", "4", "--", "bash", "-c", fork]);
        assert_eq!(result["resource_limits_exceeded"]["process_limit_exceeded"], true, "{result}");
        assert!(result["resource_usage"]["process_count"].as_u64().unwrap() <= 4, "{result}");
    }
}

#[test]
fn a_user_serves() {
    if possible("faber serve without root") {
        let group = delegated("faber-test-user-serve.scope");
        let preparation = group.enter() + "\n" + &become_user("FABER_EXECUTION__CONCURRENCY=1");
        let mut server = Server::start_after(&preparation, &["--open-mode"], &[]);
        assert_eq!(server.shell("echo $((6 * 7))"), "42");
        // Not one of its processes is root's, and none that reads from the network or runs a task is the user's own.
        for pid in [server.pid()].into_iter().chain(server.processes("runner")) {
            assert_eq!(real_uid(pid), UID);
        }
        assert!(server.processes("front").into_iter().all(|pid| real_uid(pid) >= 100_000));
        let seen =
            server.python("import os; print(os.getuid(), sorted(os.listdir('/')), open('/proc/self/uid_map').read())");
        assert!(seen.starts_with("65000 ") && !seen.contains("home"), "{seen}");
        assert_eq!(server.stop(), Some(0), "{}", server.log());
        assert_eq!(group.groups(), ["keeper"]);
    }
}

fn real_uid(pid: i32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    uids.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn what_a_user_lacks_is_told_with_the_fix() {
    if possible("refusals without root") {
        let group = delegated("faber-test-user-lacks.scope");
        let refused = |preparation: &str, words: &str| {
            let output = faber_after(preparation, &["run", "--", "true"]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(125) && said.contains(words), "{words:?} is not in {output:?}");
            let output = faber_after(preparation, &["doctor"]);
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.code() == Some(1) && said.contains(words), "{words:?} is not in {output:?}");
        };
        // Not in a group of the user's.
        refused(&become_user(""), "systemd-run --user --scope -p Delegate=yes");
        // In one, but with ids of nobody.
        let other = group.enter() + "\n" + &become_user("").replace(&UID.to_string(), "1234");
        refused(&other, "usermod --add-subuids");
        // Without the programs that write the maps.
        let path = group.enter() + "\n" + &become_user("PATH=/nowhere");
        refused(&path, "apt-get install uidmap");
    }
}
