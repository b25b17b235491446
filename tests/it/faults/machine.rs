//! What an operator does to a server that runs, and what a machine can lack meanwhile.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Server, eventually, new_key, running};

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Starts a server with this configuration file, which may be written anew.
fn server_with(config: &Path, text: &str) -> Server {
    fs::write(config, text).unwrap();
    Server::start(&["--config", config.to_str().unwrap()], &[("FABER_RATE_LIMIT__ENABLED", "false")])
}

fn ask(server: &Server, key: &str, task: Value) -> (u16, Value) {
    let body = json!({ "tasks": [task] }).to_string();
    let answer = server.post(&body, &[("Authorization", &format!("Bearer {key}"))]);
    (answer.status, answer.json())
}

#[test]
fn a_configuration_is_read_again_without_a_task_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("faber.toml");
    let ((old, old_keys), (new, new_keys)) = (new_key(), new_key());
    let text = |keys: &str, memory: &str, rest: &str| {
        format!("[auth]\nkeys = {keys}\n[limits.max]\nmemory = '{memory}'\n[execution]\nconcurrency = 2\n{rest}")
    };
    let server = server_with(&path, &text(&old_keys, "600MiB", ""));
    let large = json!({ "command": "echo", "args": ["large"], "resource_limits": { "memory_limit": 700 << 20 } });
    let (status, body) = ask(&server, &old, large.clone());
    assert_eq!((status, &body["results"][0]["status"]), (200, &json!("NotExecuted")), "{body}");
    // One runs meanwhile, and one waits for it and its like.
    let sleep = ["sleep", "3.3"];
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (url, key) = (server.url(), old.clone());
            let body = json!({ "tasks": [{ "command": sleep[0], "args": [sleep[1]] }] }).to_string();
            std::thread::spawn(move || {
                let request = ureq::post(format!("{url}/execute")).header("Authorization", format!("Bearer {key}"));
                request.content_type("application/json").send(body).unwrap().body_mut().read_json::<Value>().unwrap()
            })
        })
        .collect();
    eventually("the tasks run", || running(&sleep).len() == 2);
    // What cannot be used changes nothing.
    fs::write(&path, "colour = 'red'").unwrap();
    signal(server.pid(), Signal::SIGHUP);
    eventually("it is refused", || server.log().contains("the configuration stays as it is"));
    assert_eq!(ask(&server, &new, json!({ "command": "true" })).0, 403);
    fs::write(&path, text(&new_keys, "800MiB", "[judge]\nmax_cases = 7")).unwrap();
    signal(server.pid(), Signal::SIGHUP);
    eventually("the new key is known", || ask(&server, &new, json!({ "command": "true" })).0 == 200);
    assert_eq!(ask(&server, &old, json!({ "command": "true" })).0, 403);
    // Runners that grant more take the place of the others.
    let (_, body) = ask(&server, &new, large);
    assert_eq!(body["results"][0]["stdout"], "large\n", "{body}");
    for client in waiting {
        let body = client.join().unwrap();
        assert_eq!(body["results"][0]["status"], "Success", "{body}");
    }
    let log = server.log();
    assert!(log.contains("\"keys\":\"judge.max_cases\""), "{log}");
    assert!(!log.contains("a runner ended; it will be restarted"), "{log}");
}

#[test]
fn the_logs_level_changes_with_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("faber.toml");
    let level = |level: &str| {
        fs::write(&path, format!("[auth]\nopen_mode = true\n[log]\nlevel = '{level}'\nformat = 'json'")).unwrap();
    };
    level("info");
    // The tests' own level would win over the file's.
    let server = Server::start_after("unset FABER_LOG__LEVEL", &["--config", path.to_str().unwrap()], &[]);
    let is_told = || {
        let told = || server.log().matches("answered").count();
        let before = told();
        assert_eq!(server.shell("echo up"), "up");
        told() > before
    };
    assert!(is_told());
    level("error");
    signal(server.pid(), Signal::SIGHUP);
    eventually("requests are not told any more", || !is_told());
    level("info");
    signal(server.pid(), Signal::SIGHUP);
    eventually("requests are told again", is_told);
}

/// Starts a server whose data directory is a file system of its own, of this size (tmpfs(5)); what else is done to it first.
fn server_on(size: &str, then: &str) -> Server {
    let preparation = format!(
        "mkdir -p \"$FABER_DATA_DIR\" && exec unshare --mount bash -c '
         mount -t tmpfs -o mode=755,{size} none \"$FABER_DATA_DIR\" && {then} exec \"$@\"' bash \"$@\""
    );
    Server::start_after(&preparation, &["--open-mode"], &[("FABER_RATE_LIMIT__ENABLED", "false")])
}

#[test]
fn a_full_disk_is_told_and_forgotten_when_there_is_room_again() {
    let server = server_on("size=2m", "");
    let put = |bytes: &[u8]| server.send("PUT", "/blobs", bytes, &[]);
    let small = put(b"small").json()["blob"].as_str().unwrap().to_owned();
    let answer = put(&[7; 3 << 20]);
    assert_eq!(answer.status, 507, "{}", answer.text);
    assert!(answer.text.contains("disk is full"), "{}", answer.text);
    // Nothing of it stays, what was there is whole, and tasks need no disk.
    assert_eq!(server.blob(&small), b"small");
    assert_eq!(put(&[7; 1 << 20]).status, 201);
    assert_eq!(server.shell("echo still"), "still");
    let output = json!({ "command": "bash", "args": ["-c", "head -c 3000000 /dev/zero > big"], "outputs": ["big"] });
    let body = server.execute(json!([output, { "command": "echo", "args": ["beside"] }])).json();
    assert_eq!(body["results"][1]["stdout"], "beside\n", "{body}");
    assert!(body["results"][0]["omitted_outputs"]["files"]["big"].is_string(), "{body}");
}

#[test]
fn a_disk_without_inodes_is_told_and_forgotten_when_there_are_some_again() {
    let server = server_on("size=64m,nr_inodes=400", "");
    let mut kept = Vec::new();
    let refused = loop {
        let answer = server.send("PUT", "/blobs", format!("blob {}", kept.len()).as_bytes(), &[]);
        match answer.status {
            201 if kept.len() < 400 => kept.push(answer.json()["blob"].as_str().unwrap().to_owned()),
            _ => break answer,
        }
    };
    assert_eq!(refused.status, 507, "after {} blobs: {}", kept.len(), refused.text);
    assert!(refused.text.contains("disk is full"), "{}", refused.text);
    println!("{} blobs had an inode", kept.len());
    for (number, blob) in kept.iter().enumerate() {
        assert_eq!(server.blob(blob), format!("blob {number}").as_bytes());
    }
    // Tasks need none, what they give back as a blob does.
    assert_eq!(server.shell("echo still"), "still");
    let output =
        json!({ "command": "bash", "args": ["-c", "head -c 3000000 /dev/zero > big; echo said"], "outputs": ["big"] });
    let result = server.run(output.clone());
    assert_eq!(result["stdout"], "said\n", "{result}");
    assert!(result["omitted_outputs"]["files"]["big"].is_string(), "{result}");
    assert_eq!(server.send("DELETE", &format!("/blobs/{}", kept[0]), b"", &[]).status, 204);
    let result = server.run(output);
    assert!(result["files"]["big"]["blob"].is_string(), "{result}");
}

#[test]
fn a_data_directory_that_cannot_be_written_costs_blobs_and_nothing_else() {
    let server = server_on("size=1m", "mount -o remount,ro \"$FABER_DATA_DIR\" &&");
    assert_eq!(server.shell("echo up"), "up");
    let answer = server.send("PUT", "/blobs", b"x", &[]);
    assert!(answer.status >= 500 && answer.json()["error"].is_string(), "{} {}", answer.status, answer.text);
    assert!(server.log().contains("blobs cannot be kept"), "{}", server.log());
}

#[test]
fn a_data_directory_that_is_gone_costs_what_was_in_it_and_nothing_else() {
    let server = Server::start_open();
    let blob = server.put(b"kept");
    fs::rename(server.data_dir(), server.data_dir().with_extension("away")).unwrap();
    assert_eq!(server.shell("echo up"), "up");
    assert_eq!(server.get("/images").status, 200);
    let result = server.run(json!({ "command": "true", "image": "nowhere" }));
    assert_eq!(result["status"], "NotExecuted", "{result}");
    // The blobs' directory is held, under whatever name.
    assert_eq!(server.blob(&blob), b"kept");
    fs::rename(server.data_dir().with_extension("away"), server.data_dir()).unwrap();
    assert_eq!(server.blob(&blob), b"kept");
}

#[test]
fn a_stopped_keeper_keeps_nobody_from_being_served() {
    let server = Server::start_open();
    assert_eq!(server.shell("echo up"), "up");
    signal(server.pid(), Signal::SIGSTOP);
    for _ in 0..20 {
        assert_eq!(server.shell("echo served"), "served");
    }
    signal(server.pid(), Signal::SIGCONT);
    assert_eq!(server.shell("echo on"), "on");
}

#[test]
fn a_stopped_init_cannot_stretch_its_tasks_time() {
    let server = Server::start(&["--open-mode"], &[("FABER_EXECUTION__CONCURRENCY", "1")]);
    let limits = json!({ "wall_time_limit": 2_000_000_000u64 });
    let body = json!({ "tasks": [{ "command": "sleep", "args": ["94.1"], "resource_limits": limits }] });
    let client = server.ask(&body);
    let mut init = None;
    eventually("the task runs", || {
        let status = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/status")).ok();
        let parent = |text: String| text.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        init = running(&["sleep", "94.1"]).first().and_then(status).and_then(parent);
        init.is_some()
    });
    signal(init.unwrap(), Signal::SIGSTOP);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut { client }, &mut text).unwrap();
    assert!(text.contains("\"Timeout\""), "{text}");
    assert!(running(&["sleep", "94.1"]).is_empty());
    assert_eq!(server.shell("echo next"), "next");
}
