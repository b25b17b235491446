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
