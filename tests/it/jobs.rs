//! /jobs: accepted once they are on the disk, run once, whatever is killed, and seen by those whose they are.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::blobs::Data;
use crate::content::sha256;
use crate::faults::kills::Witness;
use crate::faults::{dice, times};
use crate::support::{Answer, Family, Server, eventually, memory_of, new_key};

const ONE: (&str, &str) = ("FABER_EXECUTION__CONCURRENCY", "1");
/// Long enough to be still there whenever it is looked for.
const LONG: &str = "100";

fn sleep(seconds: &str) -> Value {
    json!({ "tasks": [{ "command": "sleep", "args": [seconds] }] })
}

fn echo(text: &str) -> Value {
    json!({ "tasks": [{ "command": "echo", "args": [text] }] })
}

fn submit_as(server: &Server, body: &Value, headers: &[(&str, &str)]) -> Answer {
    let json = [("Content-Type", "application/json")];
    server.send("POST", "/jobs", body.to_string().as_bytes(), &[&json, headers].concat())
}

#[track_caller]
fn submit(server: &Server, body: &Value) -> String {
    let answer = submit_as(server, body, &[]);
    assert_eq!(answer.status, 202, "{}", answer.text);
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), format!("/jobs/{id}"));
    id
}

#[track_caller]
fn job(server: &Server, id: &str) -> Value {
    let answer = server.get(&format!("/jobs/{id}"));
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// The job at its end.
#[track_caller]
fn ended(server: &Server, id: &str) -> Value {
    for _ in 0..10 {
        let job = server.get(&format!("/jobs/{id}?wait=60s")).json();
        if !matches!(job["state"].as_str(), Some("queued" | "running")) {
            return job;
        }
    }
    panic!("{id} does not end: {}", job(server, id));
}

fn delete(server: &Server, id: &str) -> Answer {
    server.send("DELETE", &format!("/jobs/{id}"), &[], &[])
}

#[track_caller]
fn is_running(server: &Server, id: &str) {
    eventually("it runs", || job(server, id)["state"] == "running");
}

#[test]
fn a_job_is_answered_as_its_request_would_be() {
    let server = Server::start_open();
    let done = ended(&server, &submit(&server, &echo("later")));
    assert_eq!((&done["state"], &done["position"]), (&json!("done"), &json!(null)));
    assert_eq!(done["response"]["results"][0]["stdout"], "later\n");
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&done), ["id", "state", "position", "created_at", "started_at", "ended_at", "response"]);
    assert_eq!(keys(&done["response"]["results"][0]), keys(&server.results(&echo("now"))[0]));
    let times = ["created_at", "started_at", "ended_at"].map(|key| done[key].as_str().unwrap());
    assert!(times.is_sorted() && times.iter().all(|time| time.len() == 24 && time.ends_with('Z')), "{times:?}");
    let judgement = json!({ "command": "cat", "cases": [{ "stdin": "1", "expected": "1" }], "retry": 2 });
    assert_eq!(ended(&server, &submit(&server, &judgement))["response"]["verdict"], "Accepted");
    // Of any size, and of any bytes.
    let large = json!({ "tasks": [{ "command": "head", "args": ["-c", "1000000", "/dev/zero"] }] });
    let done = ended(&server, &submit(&server, &large));
    assert_eq!(done["response"]["results"][0]["stdout"].as_str().unwrap(), "\0".repeat(1_000_000));
}

#[test]
fn jobs_wait_for_their_turn_and_can_be_cancelled() {
    let server = Server::start(&["--open-mode"], &[ONE, ("FABER_RATE_LIMIT__ENABLED", "false")]);
    let running = [(); 2].map(|()| submit(&server, &sleep(LONG)));
    running.iter().for_each(|id| is_running(&server, id));
    let queued: Vec<String> = (0..3).map(|n| submit(&server, &echo(&n.to_string()))).collect();
    for (at, id) in queued.iter().enumerate() {
        let job = job(&server, id);
        assert_eq!((&job["state"], &job["position"], &job["response"]), (&json!("queued"), &json!(at), &json!(null)));
    }
    let begun = Instant::now();
    assert_eq!(server.get(&format!("/jobs/{}?wait=300ms", queued[0])).json()["state"], "queued");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    // Newest first, in pages.
    let mut listed = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server.get(&format!("/jobs?limit=2{cursor}")).json();
        listed.extend(page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    listed.reverse();
    assert_eq!(listed, [&running[..], &queued].concat());
    for id in [&queued[0], &running[0], &running[1]] {
        let cancelled = delete(&server, id);
        assert_eq!((cancelled.status, &cancelled.json()["state"]), (200, &json!("cancelled")));
        assert_eq!(job(&server, id)["state"], "cancelled");
        assert_eq!(delete(&server, id).status, 204);
        let details = format!("You have no job {id}");
        delete(&server, id).is_error(404, "Not found", &details);
        server.get(&format!("/jobs/{id}")).is_error(404, "Not found", &details);
    }
    // The machine is free for the others: what ran has ended.
    assert_eq!(ended(&server, &queued[1])["response"]["results"][0]["stdout"], "1\n");
    assert_eq!(ended(&server, &queued[2])["state"], "done");
}

#[test]
fn the_same_key_is_the_same_job() {
    let server = Server::start_open();
    let ask = |body: &Value, key: &str| submit_as(&server, body, &[("Idempotency-Key", key)]);
    let first = ask(&echo("1"), "k").json()["id"].clone();
    assert_eq!(ask(&echo("1"), "k").json()["id"], first);
    ended(&server, first.as_str().unwrap());
    let again = ask(&echo("1"), "k");
    assert_eq!((again.status, again.json()), (202, json!({ "id": first, "state": "done" })));
    assert_ne!(ask(&echo("1"), "other").json()["id"], first);
    let id = first.as_str().unwrap();
    let details = format!("this Idempotency-Key was sent before, with another body: it stands for job {id}");
    ask(&echo("2"), "k").is_error(422, "Idempotency conflict", &details);
    for wrong in ["", "a b", "\u{e9}", &"x".repeat(256)] {
        assert_eq!(ask(&echo("1"), wrong).status, 400, "{wrong}");
    }
    // Two at once are one.
    let ids: Vec<Value> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| ask(&echo("3"), "at once").json()["id"].clone())).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn what_makes_no_sense_is_refused_before_it_is_taken() {
    let server = Server::start_open();
    for (body, details) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        ("[]", "invalid type: sequence, expected an object at line 1 column 0"),
        ("{}", "a job has tasks, as POST /execute, or cases, as POST /judge"),
        ("{\"tasks\": []}", "Invalid tasks: at least one task is needed"),
        ("{\"tasks\": [{\"command\": \"\"}]}", "Invalid command: command cannot be empty"),
        ("{\"tasks\": [{\"command\": \"a\"}], \"retry\": -1}", "retry: expected a whole number from 0 to 10"),
        ("{\"tasks\": [{\"command\": \"a\"}], \"retry\": 99999999999}", "retry: expected a whole number from 0 to 10"),
        ("{\"command\": \"a\", \"cases\": []}", "Invalid cases: at least one case is needed"),
    ] {
        let answer = server.send("POST", "/jobs", body.as_bytes(), &[("Content-Type", "application/json")]);
        answer.is_error(400, "Validation error", details);
    }
    for (body, content_type, status) in [
        ("{\"tasks\": [{\"command\": \"a\"}], \"callback\": {\"url\": \"http://x\"}}", "application/json", 400),
        ("{\"tasks\": [{\"command\": \"a\"}], \"tasks\": []}", "application/json", 400),
        ("{\"tasks\": [{\"command\": \"a\"}]}", "text/plain", 415),
        (&format!("{}1", "[".repeat(100_000)), "application/json", 400),
        (&format!("{{\"tasks\": {}", "[".repeat(100_000)), "application/json", 400),
    ] {
        let answer = server.send("POST", "/jobs", body.as_bytes(), &[("Content-Type", content_type)]);
        assert_eq!(answer.status, status, "{}", answer.text);
    }
    let invalid = server.send("POST", "/jobs", b"{\"tasks\": \"\xff\"}", &[("Content-Type", "application/json")]);
    assert_eq!(invalid.status, 400, "{}", invalid.text);
    for path in
        ["/jobs/x", "/jobs?limit=0", "/jobs?limit=51", "/jobs?cursor=1", "/jobs?page=1", "/jobs?limit=1&limit=2"]
    {
        assert_eq!(server.get(path).status, 400, "{path}");
    }
    let id = submit(&server, &echo("x"));
    for wait in ["", "x", "-1s", "0", "1", "999999999999999999999s"] {
        assert_eq!(server.get(&format!("/jobs/{id}?wait={wait}")).status, 400, "{wait}");
    }
    assert_eq!(server.get("/jobs").json()["jobs"].as_array().unwrap().len(), 1);
}

#[test]
fn each_key_sees_its_own() {
    let keys =
        ["one", "two"].map(|name| format!("{{ name = \"{name}\", hash = \"sha256:{}\" }}", sha256(name.as_bytes())));
    let keys = format!("[{}]", keys.join(", "));
    let server = Server::start(&[], &[("FABER_AUTH__KEYS", &keys), ("FABER_RATE_LIMIT__ENABLED", "false")]);
    let (one, two) = (("Authorization", "Bearer one"), ("Authorization", "Bearer two"));
    let asked = submit_as(&server, &echo("mine"), &[one, ("Idempotency-Key", "k")]).json();
    let path = format!("/jobs/{}", asked["id"].as_str().unwrap());
    let send = |method: &str, path: &str, key| server.send(method, path, &[], &[key]);
    assert_eq!(send("GET", &format!("{path}?wait=60s"), one).json()["state"], "done");
    for method in ["GET", "DELETE"] {
        assert_eq!(send(method, &path, two).status, 404);
        assert_eq!(server.send(method, &path, &[], &[]).status, 401);
        assert_eq!(send(method, &path, ("Authorization", "Bearer three")).status, 403);
    }
    assert_eq!(send("GET", "/jobs", two).json(), json!({ "jobs": [], "next": null }));
    assert_eq!(submit_as(&server, &echo("mine"), &[]).status, 401);
    let others = submit_as(&server, &echo("other"), &[two, ("Idempotency-Key", "k")]);
    assert_eq!(others.status, 202, "{}", others.text);
    assert_eq!(send("GET", "/jobs", one).json()["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(send("DELETE", &path, one).status, 204);
}

#[test]
fn in_open_mode_each_address_sees_its_own() {
    let server = Server::start_open();
    let path = format!("/jobs/{}", submit(&server, &echo("mine")));
    let status_from = |address| {
        let mut stream = server.connect_from(address);
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer[9..12].to_owned()
    };
    assert_eq!([status_from([127, 0, 0, 1]), status_from([127, 0, 0, 2])], ["200", "404"]);
}

#[test]
fn each_client_has_room_for_so_much() {
    let env = [ONE, ("FABER_JOBS__COUNT", "3"), ("FABER_JOBS__PER_KEY", "600"), ("FABER_JOBS__RESPONSE", "10KiB")];
    let server = Server::start(&["--open-mode"], &[&env[..], &[("FABER_RATE_LIMIT__ENABLED", "false")]].concat());
    let running = submit(&server, &sleep(LONG));
    let full = submit_as(&server, &echo(&"x".repeat(600)), &[]);
    assert_eq!((full.status, &full.json()["error"]), (507, &json!("Insufficient storage")));
    assert!(full.text.contains("your jobs have 46 of 600 bytes"), "{}", full.text);
    let others = [(); 2].map(|()| submit(&server, &sleep(LONG)));
    let details = "no room for another job: you have 3 of 3, the ended among them; DELETE /jobs/ID forgets one";
    submit_as(&server, &sleep("1"), &[]).is_error(507, "Insufficient storage", details);
    for id in others.iter().chain([&running]) {
        assert_eq!((delete(&server, id).status, delete(&server, id).status), (200, 204));
    }
    let much = json!({ "tasks": [{ "command": "head", "args": ["-c", "9000", "/dev/zero"] }] });
    let done = ended(&server, &submit(&server, &much));
    assert_eq!(done["response"]["error"], "Request too large", "{done}");
}

#[test]
fn what_has_ended_is_forgotten_after_a_time() {
    let data = Data::new();
    let server = data.server(&[ONE, ("FABER_JOBS__LIFETIME", "1s")]);
    let running = [(); 2].map(|()| submit(&server, &sleep(LONG)));
    let queued = submit(&server, &echo("x"));
    delete(&server, &queued);
    eventually("it is forgotten", || server.get(&format!("/jobs/{queued}")).status == 404);
    running.iter().for_each(|id| assert_eq!(job(&server, id)["state"], "running"));
    running.iter().for_each(|id| assert_eq!(delete(&server, id).status, 200));
}

#[test]
fn queued_jobs_run_after_a_restart_and_those_that_ran_do_not() {
    let data = Data::new();
    let env = [ONE, ("FABER_SERVER__SHUTDOWN_GRACE", "1s")];
    let mut server = data.server(&env);
    let lost = submit(&server, &sleep(LONG));
    let mut again = sleep("3");
    again["retry"] = json!(1);
    let again = submit(&server, &again);
    [&lost, &again].iter().for_each(|id| is_running(&server, id));
    let queued = submit(&server, &echo("after"));
    let cancelled = submit(&server, &echo("never"));
    delete(&server, &cancelled);
    // Who waits is answered when the server stops, not after what it waits for.
    let waiting = std::thread::spawn({
        let url = server.url();
        let path = format!("/jobs/{queued}?wait=60s");
        move || exchange(&url, "GET", &path, "", "").unwrap()
    });
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.stop(), Some(0));
    assert!(waiting.join().unwrap().contains("\"queued\""));
    let server = data.server(&env);
    assert_eq!((&ended(&server, &lost)["state"], &job(&server, &lost)["response"]), (&json!("lost"), &json!(null)));
    assert_eq!(ended(&server, &queued)["response"]["results"][0]["stdout"], "after\n");
    assert_eq!(ended(&server, &again)["response"]["results"][0]["status"], "Success");
    assert_eq!(job(&server, &cancelled)["state"], "cancelled");
}

#[test]
fn a_data_directory_has_one_server_of_jobs() {
    let data = Data::new();
    let first = data.server(&[]);
    let id = submit(&first, &echo("x"));
    let second = data.server(&[]);
    submit_as(&second, &echo("x"), &[]).is_error(
        503,
        "Service unavailable",
        "This server keeps no jobs: its log says why",
    );
    assert!(second.log().contains("another process has the jobs of this data directory"));
    assert_eq!(second.shell("echo all else"), "all else");
    assert_eq!(ended(&first, &id)["state"], "done");
}

/// Bodies stay in the store.
#[test]
fn what_is_queued_takes_no_memory() {
    let server = Server::start(&["--open-mode"], &[ONE, ("FABER_RATE_LIMIT__ENABLED", "false")]);
    let running = [(); 2].map(|()| submit(&server, &sleep(LONG)));
    running.iter().for_each(|id| is_running(&server, id));
    let body = json!({ "tasks": [{ "command": "wc", "args": ["-c"], "stdin": "x".repeat(1 << 20) }] });
    (0..20).for_each(|_| drop(submit(&server, &body)));
    let front = server.front();
    let before = memory_of(front, "VmRSS");
    let more: Vec<String> = (0..60).map(|_| submit(&server, &body)).collect();
    let last = &more[59];
    let grown = memory_of(front, "VmRSS").saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes for 60 jobs of 1 MiB");
    running.iter().for_each(|id| assert_eq!(delete(&server, id).status, 200));
    assert_eq!(ended(&server, last)["response"]["results"][0]["stdout"], "1048576\n");
}

/// The whole answer; an error where there was none.
fn exchange(url: &str, method: &str, path: &str, headers: &str, body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://"))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: faber\r\nConnection: close\r\nContent-Type: application/json\r\n");
    write!(stream, "{head}{headers}Content-Length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A client that sends again what was not answered, with the same key; the job's id.
fn insist(url: &str, key: &str, body: &str) -> Option<String> {
    let headers = format!("Idempotency-Key: {key}\r\n");
    let answer = exchange(url, "POST", "/jobs", &headers, body).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 202 ") || head.starts_with("HTTP/1.1 503 "), "{answer}");
    let body: Value = serde_json::from_str(body).ok()?;
    body["id"].as_str().map(str::to_owned)
}

#[test]
fn whatever_is_killed_no_job_is_forgotten_and_none_runs_twice() {
    let kills = times("TEST_KILLS", 12);
    let mut dice = dice();
    let data = Data::new();
    let env = [("FABER_EXECUTION__CONCURRENCY", "2")];
    let mut server = data.server(&env);
    let mark = format!("job-{}-", std::process::id());
    let witness = Witness::new(mark.clone());
    let mut accepted = BTreeMap::new();
    let mut done = [0; 2];
    let mut round = 0;
    while done.iter().sum::<usize>() < kills {
        // What is sent while it is killed, and again until it is accepted.
        round += 1;
        let asked: Vec<(String, u64)> = (0..3).map(|n| (format!("{mark}{round}-{n}"), dice.u64(..2))).collect();
        let body = |(name, retry): &(String, u64)| {
            let script = format!("echo {name}; exec -a {name} sleep 0.1");
            json!({ "tasks": [{ "command": "bash", "args": ["-c", script] }], "retry": retry }).to_string()
        };
        let url = server.url();
        let clients: Vec<_> = asked
            .iter()
            .map(|asked| {
                let (url, key, body) = (url.clone(), asked.0.clone(), body(asked));
                std::thread::spawn(move || insist(&url, &key, &body))
            })
            .collect();
        std::thread::sleep(Duration::from_micros(dice.u64(..150_000)));
        if dice.u64(..3) > 0 {
            if let [front, ..] = server.processes("front")[..] {
                done[0] += usize::from(kill(Pid::from_raw(front), Signal::SIGKILL).is_ok());
            }
        } else {
            let family = Family::of(server.pid());
            server.kill();
            done[1] += 1;
            family.assert_gone();
            server = data.server(&env);
        }
        for (client, asked) in clients.into_iter().zip(&asked) {
            let mut id = client.join().unwrap();
            eventually("it is accepted", || {
                id = id.take().or_else(|| insist(&server.url(), &asked.0, &body(asked)));
                id.is_some()
            });
            accepted.insert(asked.0.clone(), (id.unwrap(), asked.1));
        }
    }
    let mut states = BTreeMap::new();
    let mut ends = BTreeMap::new();
    for (name, (id, retry)) in &accepted {
        let end = ended(&server, id);
        match end["state"].as_str().unwrap() {
            "done" => {
                let result = &end["response"]["results"][0];
                // One whose runner ended with its front was not told as done.
                assert_eq!(
                    (&result["status"], &result["stdout"]),
                    (&json!("Success"), &json!(format!("{name}\n"))),
                    "{end}"
                );
            }
            other => assert_eq!((other, &end["response"]), ("lost", &json!(null))),
        }
        *states.entry((end["state"].as_str().unwrap().to_owned(), *retry)).or_insert(0) += 1;
        ends.insert(name.clone(), end);
    }
    let seen = witness.end();
    for (name, (_, retry)) in &accepted {
        let runs = seen.get(name).map_or(0, |pids| pids.len() as u64);
        assert!(runs <= 1 + retry, "{name}, which may run {} times, ran {runs} times", 1 + retry);
    }
    // Each was taken once, whatever was sent again.
    let mut listed = 0;
    let mut cursor = String::new();
    loop {
        let page = server.get(&format!("/jobs?{cursor}")).json();
        listed += page["jobs"].as_array().unwrap().len();
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("cursor={next}");
    }
    assert_eq!(listed, accepted.len());
    println!("killed {done:?} (fronts, keepers); ends, by retry: {states:?}");
    assert!(states.keys().any(|(state, _)| state == "done"));
}

#[test]
fn the_command_line_lists_shows_and_cancels() {
    let (key, keys) = new_key();
    let server = Server::start(&[], &[ONE, ("FABER_AUTH__KEYS", &keys)]);
    let bearer = format!("Bearer {key}");
    let submit = |body: &Value| {
        let answer = submit_as(&server, body, &[("Authorization", &bearer)]);
        answer.json()["id"].as_str().unwrap().to_owned()
    };
    let faber = |key: Option<&str>, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_faber"));
        command.arg("jobs").args(args).env("FABER_URL", server.url()).env_remove("FABER_API_KEY");
        let output = command.envs(key.map(|key| ("FABER_API_KEY", key))).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(faber(Some(&key), &["list"]), (true, "no jobs\n".into(), String::new()));
    let long = submit(&sleep(LONG));
    let queued = submit(&echo("never"));
    let (_, list, _) = faber(Some(&key), &["list"]);
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["ID", "STATE", "CREATED", "ENDED", "CALLBACK"], "{list}");
    assert_eq!([rows[1][0], rows[2][0]], [&queued, &long], "{list}");
    let (_, list, _) = faber(Some(&key), &["list", "--json", "--limit", "1"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list[0]["id"], list.as_array().unwrap().len()), (&json!(queued), 1));
    assert!(list[0]["ended_at"].is_null() && list[0]["state"].is_string(), "{list}");
    let (_, cancelled, _) = faber(Some(&key), &["cancel", &queued, &long]);
    assert_eq!(cancelled, format!("{queued}: cancelled\n{long}: cancelled\n"));
    let done = submit(&echo("shown"));
    let (_, shown, _) = faber(Some(&key), &["show", &done, "--wait", "2m"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["response"]["results"][0]["stdout"], "shown\n");
    let (_, forgotten, _) = faber(Some(&key), &["cancel", &done]);
    assert_eq!(forgotten, format!("{done}: had ended, and is forgotten\n"));

    let refused = |key, args: &[&str], why: &str| {
        let (is_fine, said, error) = faber(key, args);
        assert!(!is_fine && said.is_empty() && error.contains(why), "{said}{error}");
    };
    refused(Some(&key), &["show", &done], "Not found: You have no job");
    refused(Some(&key), &["show", "../images"], "expected a job's id");
    refused(Some("faber_wrong"), &["list"], "Access denied: Invalid API key");
    refused(None, &["list"], "FABER_API_KEY is where a key is looked for");
    refused(None, &["list", "--server", "http://127.0.0.1:9"], "ask http://127.0.0.1:9/");
    refused(None, &["list", "--server", "nowhere"], "invalid value 'nowhere'");
}
