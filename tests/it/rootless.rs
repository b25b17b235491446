//! Faber of an ordinary user with subordinate ids: the same containers, the same limits.
//! Where there is no such user the virtual machine of scripts/test is where these look.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use serde_json::{Value, json};

use crate::support::cgroup2::{Delegated, unified};
use crate::support::{Server, faber_after};

const USER: &str = "ann";
const UID: u32 = 1000;
/// Where the virtual machine has it.
const BUSYBOX: &str = "/busybox";

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
        // What goes in and comes out does so by root's descriptors, who is the user here.
        let blob = server.put(b"kept by a user");
        let result = server.run(json!({
            "command": "sh", "args": ["-c", "cat > copy; head -c 2M /dev/zero > large; stat -c %s large"],
            "stdin": { "blob": blob }, "outputs": ["copy"], "resource_limits": { "workspace_limit": 1 << 20 }
        }));
        assert_eq!(result["files"]["copy"]["text"], "kept by a user", "{result}");
        assert!(result["stdout"].as_str().unwrap().trim().parse::<u64>().unwrap() < 1 << 20, "{result}");
        assert_eq!(server.stop(), Some(0), "{}", server.log());
        assert_eq!(group.groups(), ["keeper"]);
    }
}

fn real_uid(pid: i32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    uids.split_whitespace().next().unwrap().parse().unwrap()
}

/// busybox, which is whatever it is called, and a step that the second image adds to the first.
const BOX: &str = r#"
name = "box"
description = "busybox"
base = "scratch"
copy = [{ from = "busybox", to = "/bin/sh" }, { from = "busybox", to = "/bin/id" }]
[[test]]
name = "runs"
command = ["sh", "-c", "id -u; echo a line"]
stdout = "65000\na line\n"
"#;
const STEPPED: &str = r#"
name = "stepped"
description = ""
base = "image:box"
run = ["echo made by $(id -u) >/made"]
[[test]]
name = "made"
command = ["sh", "-c", "read line </made; echo $line"]
stdout = "made by 0\n"
"#;

#[test]
fn a_user_builds_images() {
    if possible("faber image without root") {
        let home = tempfile::tempdir_in(format!("/home/{USER}")).unwrap();
        let (own, path) = (|path: &Path| chown(path, Some(UID), Some(UID)).unwrap(), home.path());
        own(path);
        for (name, text) in [("box", BOX), ("stepped", STEPPED)] {
            let dir = path.join(name);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("image.toml"), text).unwrap();
            own(&dir);
        }
        fs::copy(BUSYBOX, path.join("box/busybox")).unwrap();
        let image = |args: &[&str]| {
            let group = delegated("faber-test-user-image.scope");
            let become_user = become_user(&format!("FABER_DATA_DIR={}/data", path.display()));
            let output = faber_after(&(group.enter() + "\n" + &become_user), &[&["image"], args].concat());
            assert!(output.status.success(), "{args:?}: {output:?}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let (definitions, archive) = (path.to_str().unwrap(), path.join("box.tar"));
        image(&["build", "--definitions", definitions, "box", "--jobs", "1"]);
        image(&["build", "--definitions", definitions, "stepped"]);
        image(&["test", "--definitions", definitions, "box", "stepped"]);
        image(&["export", "stepped", archive.to_str().unwrap()]);
        assert_eq!(fs::metadata(&archive).unwrap().uid(), UID);
        image(&["import", archive.to_str().unwrap(), "--name", "again"]);
        image(&["rm", "box"]);
        image(&["gc"]);
        let left: Value = serde_json::from_str(&image(&["list", "--json"])).unwrap();
        let names: Vec<&str> = left.as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["again", "host", "stepped"]);
    }
}

#[test]
fn a_user_without_groups_is_warned_and_watched() {
    if possible("--no-cgroup") {
        let run = |args: &[&str]| {
            let output = faber_after(&become_user(""), &[&["run", "--no-cgroup", "--json"], args].concat());
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("WARNING: without control groups"), "{output:?}");
            serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
        };
        let result = run(&["--", "bash", "-c", "echo $((6 * 7)); sleep 0.2"]);
        assert_eq!((&result["status"], &result["stdout"]), (&json!("Success"), &json!("42\n")), "{result}");
        assert!(result["resource_usage"]["memory_peak_bytes"].as_u64().unwrap() > 100_000, "{result}");
        // A step at a time, as a task that means no harm does.
        let greedy = "import time\nhold = []\nwhile True: hold.append(bytearray(1 << 20)); time.sleep(0.001)";
        let result = run(&["--memory", "64M", "--", "python3", "-c", greedy]);
        assert_eq!(result["status"], "MemoryLimitExceeded", "{result}");
        // Files are memory, too.
        let files = "head -c 100M /dev/zero >/workspace/file; sleep 60";
        let result = run(&["--memory", "64M", "--wall-time", "5m", "--", "bash", "-c", files]);
        assert_eq!(result["status"], "MemoryLimitExceeded", "{result}");
        let result = run(&["--memory", "64M", "--", "python3", "-c", "bytearray(1 << 30)"]);
        assert_ne!(result["status"], "Success", "{result}");
        let result = run(&["--cpu-time", "300ms", "--", "bash", "-c", "while :; do :; done"]);
        assert_eq!(result["status"], "CpuLimitExceeded", "{result}");
        let result =
            run(&["--processes", "4", "--", "bash", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait"]);
        assert!(result["resource_usage"]["process_count"].as_u64().unwrap() <= 4, "{result}");
        assert!(result["stderr"].as_str().unwrap().contains("Resource temporarily unavailable"), "{result}");

        let preparation = become_user("FABER_EXECUTION__CONCURRENCY=1");
        let mut server = Server::start_after(&preparation, &["--open-mode", "--no-cgroup"], &[]);
        assert!(server.log().contains("WARNING: without control groups"), "{}", server.log());
        assert_eq!(server.shell("echo served"), "served");
        let text = "Sessions need control groups, which this server does without";
        server.post_to("/sessions", "{}", &[]).is_error(503, "Service unavailable", text);
        assert_eq!(server.stop(), Some(0), "{}", server.log());
    }
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
        refused(&become_user(""), "--no-cgroup");
        // In one, but with ids of nobody.
        let other = group.enter() + "\n" + &become_user("").replace(&UID.to_string(), "1234");
        refused(&other, "usermod --add-subuids");
        // Without the programs that write the maps.
        let path = group.enter() + "\n" + &become_user("PATH=/nowhere");
        refused(&path, "apt-get install uidmap");
    }
}
