//! Sessions: containers that stay from one execution to the next.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::live::Events;
use crate::support::{Answer, PATIENT, Server, eventually, new_key, running};

fn create(server: &Server, body: Value) -> String {
    let answer = server.post_to("/sessions", &body.to_string(), &[]);
    assert_eq!(answer.status, 201, "{}", answer.text);
    let session = answer.json();
    assert_eq!(session["state"], "open");
    let id = session["id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), format!("/sessions/{id}"));
    id
}

fn post(server: &Server, id: &str, body: &Value) -> Answer {
    server.post_to(&format!("/sessions/{id}/execute"), &body.to_string(), &[])
}

#[track_caller]
fn run(server: &Server, id: &str, task: Value) -> Value {
    let answer = post(server, id, &json!({ "tasks": [task] }));
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()["results"][0].clone()
}

fn bash(script: &str) -> Value {
    json!({ "command": "bash", "args": ["-c", script] })
}

#[track_caller]
fn shell(server: &Server, id: &str, script: &str) -> String {
    let result = run(server, id, bash(script));
    assert_eq!(result["status"], "Success", "{result}");
    result["stdout"].as_str().unwrap_or_default().trim().to_owned()
}

/// Waits until what a shell has left in the background is one that sleeps: it may end before that has been executed.
fn sleeps(time: &str) {
    eventually("it sleeps", || running(&["sleep", time]).len() == 1);
}

#[track_caller]
fn ended(server: &Server, id: &str, reason: &str) {
    eventually("it has ended", || server.get(&format!("/sessions/{id}")).json()["state"] == "ended");
    let told = server.get(&format!("/sessions/{id}")).json();
    assert!(told["reason"].as_str().unwrap().contains(reason), "{told}");
    let gone = post(server, id, &json!({ "tasks": [bash("true")] }));
    assert_eq!(gone.status, 410, "{}", gone.text);
    assert!(gone.json()["details"].as_str().unwrap().contains(reason), "{}", gone.text);
}

#[test]
fn files_and_processes_stay_and_figures_are_each_runs_own() {
    let server = Server::start_open();
    let id = create(&server, json!({ "files": { "a/hello.txt": "Hello\n" }, "env": { "WHO": "session" } }));
    assert_eq!(shell(&server, &id, "cat a/hello.txt; echo $WHO; echo kept > kept; echo t > /tmp/t"), "Hello\nsession");
    assert_eq!(shell(&server, &id, "cat kept /tmp/t"), "kept\nt");
    // What is left running is there for the next one, as files are.
    shell(&server, &id, "sleep 4401.5 > /dev/null 2>&1 & echo $! > pid");
    sleeps("4401.5");
    assert_eq!(shell(&server, &id, "tr '\\0' ' ' < /proc/$(cat pid)/cmdline"), "sleep 4401.5");
    let busy = run(&server, &id, bash("i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done"));
    let quiet = run(&server, &id, bash("true"));
    let cpu = |result: &Value| result["resource_usage"]["cpu_time_ns"].as_u64().unwrap();
    assert!(cpu(&busy) > 100_000_000 && cpu(&quiet) * 2 < cpu(&busy), "{busy} {quiet}");
    assert_eq!(quiet["resource_usage"]["process_count"], 1, "{quiet}");
    // A request of several tasks is a graph as everywhere.
    let body = json!({ "tasks": [
        { "name": "a", "command": "seq", "args": ["3"] },
        { "command": "cat", "stdin": { "from": "a", "stream": "stdout" }, "expect": { "stdout": "1\n2\n3\n" } },
        { "command": "bash", "args": ["-c", "echo made > out.txt"], "outputs": ["out.txt", "kept"], "detail": true },
    ] });
    let results = post(&server, &id, &body).json()["results"].clone();
    assert_eq!(results[1]["verdict"], "Accepted", "{results}");
    assert_eq!(results[2]["files"]["out.txt"]["text"], "made\n", "{results}");
    // More than run at once wait for each other.
    let many: Vec<Value> = (0..40).map(|n| bash(&format!("echo {n}"))).collect();
    let results = post(&server, &id, &json!({ "tasks": many })).json()["results"].clone();
    for n in 0..40 {
        assert_eq!(results[n]["stdout"], format!("{n}\n"), "{}", results[n]);
    }
    let deleted = server.send("DELETE", &format!("/sessions/{id}"), &[], &[]);
    assert_eq!(deleted.status, 204);
    eventually("its processes end with it", || running(&["sleep", "4401.5"]).is_empty());
    ended(&server, &id, "it was deleted");
    assert_eq!(server.shell("echo on"), "on");
}

#[test]
fn a_run_is_held_to_its_limits_and_the_session_goes_on() {
    let server = Server::start_open();
    let id = create(&server, json!({ "resource_limits": { "memory_limit": 128 << 20, "max_processes": 20 } }));
    let python = |program: &str, limits: Value| {
        run(
            &server,
            &id,
            json!({ "command": "python3", "args": ["-c", program], "resource_limits": limits, "detail": true }),
        )
    };
    let fat = python("x = bytearray(200 << 20)", json!({ "memory_limit": 64 << 20 }));
    assert_eq!(fat["status"], "MemoryLimitExceeded", "{fat}");
    let whole = python("x = bytearray(200 << 20)", json!({ "memory_limit": 1 << 30 }));
    assert_eq!(
        (&whole["status"], &whole["limits"]["memory_limit"]),
        (&json!("MemoryLimitExceeded"), &json!(128 << 20)),
        "{whole}"
    );
    let slow = python("while True: pass", json!({ "cpu_time_limit": 300_000_000 }));
    assert_eq!(slow["status"], "CpuLimitExceeded", "{slow}");
    // At a limit all that the run has started ends, and nothing else.
    shell(&server, &id, "sleep 4402.5 > /dev/null 2>&1 &");
    sleeps("4402.5");
    let late = run(
        &server,
        &id,
        json!({ "command": "bash", "args": ["-c", "sleep 4403.5 & setsid sleep 4403.5 & wait"],
        "resource_limits": { "wall_time_limit": 300_000_000 } }),
    );
    assert_eq!(late["status"], "Timeout", "{late}");
    eventually("the run's processes end", || running(&["sleep", "4403.5"]).is_empty());
    assert_eq!(running(&["sleep", "4402.5"]).len(), 1);
    let bomb = run(
        &server,
        &id,
        json!({ "command": "bash", "args": ["-c", ":(){ :|:& };:; sleep 0.3; echo on"],
        "resource_limits": { "max_processes": 15, "wall_time_limit": 2_000_000_000u64 } }),
    );
    assert_ne!(bomb["status"], "NotExecuted", "{bomb}");
    eventually("the session has room again", || {
        let result = run(&server, &id, bash("echo on"));
        result["stdout"] == "on\n"
    });
    let limit = run(&server, &id, json!({ "command": "true", "resource_limits": { "workspace_limit": 1 << 20 } }));
    assert!(limit["error"].as_str().unwrap().contains("workspace_limit is the session's"), "{limit}");
    let other = run(&server, &id, json!({ "command": "true", "image": "elsewhere" }));
    assert!(other["error"].as_str().unwrap().contains("the session is of the image host"), "{other}");
}

#[test]
fn runs_go_on_beside_each_other_and_can_be_followed() {
    let server = Server::start_open();
    let id = create(&server, json!({}));
    let mut slow = Events::of_path(
        &server,
        &format!("/sessions/{id}/execute"),
        &json!({ "tasks": [bash("echo on; while [ ! -e go ]; do sleep 0.02; done; echo off")] }),
    );
    assert_eq!(slow.wait_for("stdout")["text"], "on\n");
    assert_eq!(shell(&server, &id, "echo beside"), "beside");
    assert_eq!(server.send("PUT", &format!("/sessions/{id}/files/go"), b"", &[]).status, 204);
    assert_eq!(slow.wait_for("result")["result"]["stdout"], "on\noff\n");
    slow.wait_for("done");
    // A client that leaves ends its run, not the session.
    let leaving = Events::of_path(
        &server,
        &format!("/sessions/{id}/execute"),
        &json!({ "tasks": [bash("echo on; exec sleep 4404.5")] }),
    );
    eventually("it sleeps", || !running(&["sleep", "4404.5"]).is_empty());
    drop(leaving);
    eventually("it is ended", || running(&["sleep", "4404.5"]).is_empty());
    assert_eq!(shell(&server, &id, "echo still"), "still");
    // A server that is left running answers the next run.
    shell(
        &server,
        &id,
        "mkdir www; echo page > www/index.html; cd www; python3 -m http.server 8000 --bind 127.0.0.1 > /dev/null 2>&1 &",
    );
    let ask = "import time, urllib.request\n\
        for _ in range(500):\n\
        \x20   try: print(urllib.request.urlopen('http://127.0.0.1:8000/').read().decode()); break\n\
        \x20   except OSError: time.sleep(0.02)\n";
    let result = run(&server, &id, json!({ "command": "python3", "args": ["-c", ask] }));
    assert_eq!(result["stdout"], "page\n\n", "{result}");
}

#[test]
fn files_are_put_listed_read_and_removed() {
    let server = Server::start_open();
    let id = create(&server, json!({}));
    let path = |path: &str| format!("/sessions/{id}/files/{path}");
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n * 7 % 251) as u8).collect();
    assert_eq!(server.send("PUT", &path("deep/er/data.bin?mode=0755"), &bytes, &[]).status, 204);
    assert_eq!(
        server.send("PUT", &path("deep/er/data.bin?mode=0755"), &bytes, &[]).status,
        204,
        "in the place of what was there"
    );
    assert_eq!(
        shell(&server, &id, "stat -c '%a %s %U' deep/er/data.bin; touch deep/er/mine"),
        format!("755 300000 {}", shell(&server, &id, "id -un"))
    );
    let read = server.get(&path("deep/er/data.bin"));
    assert_eq!((read.status, &read.bytes, read.header("x-file-mode")), (200, &bytes, "0755"));
    shell(
        &server,
        &id,
        "ln -s data.bin deep/er/link; ln -s /etc deep/etc; mkfifo deep/fifo; mkdir deep/empty; echo x > deep/empty/x",
    );
    let listed = server.get(&path("deep/er?list")).json();
    let names: Vec<_> = listed["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["name"].as_str().unwrap(), entry["type"].as_str().unwrap()))
        .collect();
    assert_eq!(names, [("data.bin", "file"), ("link", "symlink"), ("mine", "file")]);
    assert_eq!(listed["entries"][0]["size"], 300_000);
    assert_eq!(server.get(&format!("/sessions/{id}/files")).json()["entries"][0]["name"], "deep");
    for (path_, status, details) in [
        ("deep/er/link", 400, "link"),
        ("deep/etc/passwd", 400, "link"),
        ("deep/fifo", 400, "no regular file"),
        ("deep", 400, "no regular file"),
        ("nothing", 404, "There is nothing at \"nothing\""),
        ("deep/%2e%2e/%2e%2e/etc", 400, ""),
    ] {
        let answer = server.get(&path(path_));
        assert_eq!(answer.status, status, "{path_}: {}", answer.text);
        assert!(answer.json()["details"].as_str().unwrap().contains(details), "{path_}: {}", answer.text);
    }
    let remove = |name: &str| server.send("DELETE", &path(name), &[], &[]).status;
    assert_eq!(
        [
            remove("deep/empty"),
            remove("deep/empty/x"),
            remove("deep/empty"),
            remove("deep/er/link"),
            remove("deep/er/link")
        ],
        [400, 204, 204, 204, 404]
    );
    assert_eq!(server.get(&path("deep/er/data.bin")).status, 200, "what the link led to");
    assert_eq!(server.send("PUT", &path("deep/etc/x"), b"x", &[]).status, 400);
    assert_eq!(server.send("PUT", &path("a?mode=nonsense"), b"x", &[]).status, 400);
    // A snapshot is the beginning of another session, or of a task.
    let snapshot = server.post_to(&format!("/sessions/{id}/snapshot"), "", &[]);
    assert_eq!(snapshot.status, 201, "{}", snapshot.text);
    let archive = json!([{ "blob": snapshot.json()["blob"], "format": snapshot.json()["format"] }]);
    let second = create(&server, json!({ "archives": archive }));
    assert_eq!(
        shell(&server, &second, "sha256sum < deep/er/data.bin; ls deep"),
        shell(&server, &id, "sha256sum < deep/er/data.bin; ls deep | grep -v -e etc -e fifo")
    );
    let task = server.run(json!({ "command": "cat", "args": ["deep/er/mine"], "archives": archive }));
    assert_eq!(task["status"], "Success", "{task}");
}

#[test]
fn the_idle_and_the_old_end_and_say_why() {
    let server = Server::start_open();
    let idle = create(&server, json!({ "idle_timeout": "1s" }));
    let old = create(&server, json!({ "lifetime": 2_000_000_000u64, "idle_timeout": "1m" }));
    // Work is no idleness.
    assert_eq!(shell(&server, &idle, "sleep 1.5; echo on"), "on");
    ended(&server, &idle, "nothing was done in it for 1s");
    ended(&server, &old, "its lifetime of 2s is over");
    for (body, details) in [
        (json!({ "idle_timeout": "soon" }), "idle_timeout: expected a time"),
        (json!({ "idle_timeout": 60 }), "a number is nanoseconds"),
        (json!({ "lifetime": "2days" }), "lifetime: at most 1day here"),
        (json!({ "lifetime": [] }), "lifetime: expected a time"),
        (json!({ "image": "nothing" }), "unknown image"),
        (json!({ "files": { "../x": "" } }), "x"),
        (json!({ "nonsense": 1 }), "unknown field `nonsense`"),
    ] {
        let answer = server.post_to("/sessions", &body.to_string(), &[]);
        assert_eq!(answer.status, 400, "{body}: {}", answer.text);
        assert!(answer.json()["details"].as_str().unwrap().contains(details), "{body}: {}", answer.text);
    }
    assert_eq!(server.get("/sessions").json(), json!({ "sessions": [] }));
}

#[test]
fn sessions_are_their_owners_and_so_many() {
    let (key, hash) = new_key();
    let (other, other_hash) = new_key();
    let inside = |keys: &str| keys.trim_matches(['[', ']']).to_owned();
    let keys = format!("[{}, {}]", inside(&hash), inside(&other_hash).replace("class", "other"));
    let env = [
        ("FABER_AUTH__KEYS", keys.as_str()),
        ("FABER_SESSIONS__PER_KEY", "2"),
        ("FABER_SESSIONS__COUNT", "3"),
        PATIENT[0],
        PATIENT[1],
    ];
    let server = Server::start(&[], &env);
    let [key, other] = [key, other].map(|key| format!("Bearer {key}"));
    let make = |key: &str| {
        server.post_to(
            "/sessions",
            &json!({ "resource_limits": { "memory_limit": 32 << 20 } }).to_string(),
            &[("Authorization", key)],
        )
    };
    let ids: Vec<String> = (0..2).map(|_| make(&key).json()["id"].as_str().unwrap().to_owned()).collect();
    let full = make(&key);
    assert_eq!(
        (full.status, full.json()["details"].as_str().unwrap().contains("sessions.per_key")),
        (429, true),
        "{}",
        full.text
    );
    assert_eq!(make(&other).status, 201);
    let full = make(&other);
    assert!(full.json()["details"].as_str().unwrap().contains("sessions.count"), "{}", full.text);
    let get =
        |key: &str, id: &str| server.send("GET", &format!("/sessions/{id}"), &[], &[("Authorization", key)]).status;
    assert_eq!([get(&key, &ids[0]), get(&other, &ids[0]), get(&key, "nonsense")], [200, 404, 404]);
    let delete =
        |key: &str| server.send("DELETE", &format!("/sessions/{}", ids[0]), &[], &[("Authorization", key)]).status;
    assert_eq!([delete(&other), delete(&key), delete(&key)], [404, 204, 410]);
    let list = |key: &str| {
        server.send("GET", "/sessions", &[], &[("Authorization", key)]).json()["sessions"].as_array().unwrap().len()
    };
    assert_eq!([list(&key), list(&other)], [1, 1]);
    assert_eq!(make(&key).status, 201, "there is room again");
}

#[test]
fn one_session_knows_nothing_of_another() {
    let server = Server::start_open();
    let [one, other] = [(); 2].map(|()| create(&server, json!({})));
    shell(&server, &one, "echo secret > secret; echo t > /tmp/t; sleep 4405.5 > /dev/null 2>&1 &");
    sleeps("4405.5");
    assert_eq!(shell(&server, &other, "ls; ls /tmp; pgrep -c sleep; kill -9 -1; echo on"), "0\non");
    assert_eq!(running(&["sleep", "4405.5"]).len(), 1);
    assert_eq!(server.shell("find /workspace /tmp -mindepth 1; echo on"), "on");
    // Nor may a run do anything to whoever leads it.
    assert_eq!(shell(&server, &one, "kill -9 1 $PPID 2>/dev/null; kill -STOP $PPID 2>/dev/null; echo on"), "on");
    assert_eq!(shell(&server, &one, "cat secret"), "secret");
}

#[test]
fn whoever_dies_takes_no_more_along_than_was_its() {
    const RUNNERS: usize = 2;
    let runners = RUNNERS;
    let server = Server::start(&["--open-mode"], &[("FABER_EXECUTION__CONCURRENCY", "1"), PATIENT[0], PATIENT[1]]);
    eventually("all runners are there", || server.processes("runner").len() == runners);
    let [one, other] = [(); 2].map(|()| create(&server, json!({})));
    shell(&server, &one, "echo kept > kept");
    shell(&server, &other, "sleep 4406.5 > /dev/null 2>&1 &");
    sleeps("4406.5");
    eventually("others take the runners' places", || server.processes("runner").len() == runners + 2);
    // The one whose sleep it is.
    let of_sleep = {
        let mut pid = running(&["sleep", "4406.5"])[0];
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let parent: i32 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
            if server.processes("runner").contains(&pid) {
                break pid;
            }
            pid = parent;
        }
    };
    kill(Pid::from_raw(of_sleep), Signal::SIGKILL).unwrap();
    ended(&server, &other, "Faber lost it");
    eventually("its processes end with it", || running(&["sleep", "4406.5"]).is_empty());
    assert_eq!(shell(&server, &one, "cat kept"), "kept");
    eventually("no more runners than are needed", || server.processes("runner").len() == runners + 1);
    assert_eq!(server.send("DELETE", &format!("/sessions/{one}"), &[], &[]).status, 204);
    eventually("as many as before", || server.processes("runner").len() == runners);
    let id = create(&server, json!({}));
    shell(&server, &id, "sleep 4407.5 > /dev/null 2>&1 &");
    sleeps("4407.5");
    kill(Pid::from_raw(server.front()), Signal::SIGKILL).unwrap();
    eventually("nothing of it is left", || running(&["sleep", "4407.5"]).is_empty());
    eventually("it serves again", || server.get("/health").status == 200);
    assert_eq!(server.get(&format!("/sessions/{id}")).status, 404);
    eventually("as many as before", || server.processes("runner").len() == runners);
}
