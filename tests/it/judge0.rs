//! Judge0's API, version 1.13.1, as its clients call it.

use std::collections::BTreeSet;
use std::io::{Cursor, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::blobs::Data;
use crate::content::sha256;
use crate::support::{Answer, Server, eventually, pypi};

const ON: (&str, &str) = ("FABER_COMPAT__JUDGE0", "true");
/// Of the languages here.
const PYTHON: u32 = 71;
const CPP: u32 = 54;
const TEXT: u32 = 43;
const EXECUTABLE: u32 = 44;
const PROJECT: u32 = 89;

fn server() -> Server {
    Server::with_languages_and(&[ON])
}

/// Without images of languages.
fn bare(env: &[(&str, &str)]) -> Server {
    let patient = [("FABER_RATE_LIMIT__ENABLED", "false"), ("FABER_EXECUTION__QUEUE_TIMEOUT", "10m"), ON];
    Server::start(&["--open-mode"], &[&patient, env].concat())
}

fn post(server: &Server, path: &str, body: &Value) -> Answer {
    server.post_to(&format!("/judge0{path}"), &body.to_string(), &[])
}

fn with(mut fields: Value, more: Value) -> Value {
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    fields
}

fn program(language: u32, code: &str, more: Value) -> Value {
    with(json!({ "language_id": language, "source_code": code }), more)
}

/// The submission at its end.
#[track_caller]
fn run(server: &Server, submission: &Value) -> Value {
    let answer = post(server, "/submissions?wait=true&base64_encoded=false&fields=*", submission);
    assert_eq!(answer.status, 201, "{}", answer.text);
    answer.json()
}

#[track_caller]
fn submit(server: &Server, submission: &Value) -> String {
    let answer = post(server, "/submissions", submission);
    assert_eq!(answer.status, 201, "{}", answer.text);
    answer.json()["token"].as_str().unwrap().to_owned()
}

fn show(server: &Server, token: &str) -> Value {
    let answer = server.get(&format!("/judge0/submissions/{token}"));
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

#[track_caller]
fn is_at(server: &Server, token: &str, status: u32) {
    eventually("its status", || show(server, token)["status"]["id"] == status);
}

/// The id of the job that is the only one.
fn only_job(server: &Server) -> String {
    server.get("/jobs").json()["jobs"][0]["id"].as_str().unwrap().to_owned()
}

fn zip(files: &[(&str, &str)]) -> String {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    STANDARD.encode(zip.finish().unwrap().into_inner())
}

#[test]
fn it_is_not_there_unless_it_is_asked_for() {
    let server = Server::start_open();
    server.post_to("/judge0/submissions", "{}", &[]).is_error(404, "Not found", "There is nothing at this path");
    assert_eq!(server.get("/judge0/languages").status, 404);
}

#[test]
fn a_submission_is_a_job_and_is_told_in_its_words() {
    let server = server();
    let submission = program(PYTHON, "print(input())", json!({ "stdin": "hi", "expected_output": "hi" }));
    let answer = post(&server, "/submissions/", &submission);
    assert_eq!(answer.status, 201, "{}", answer.text);
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(answer.json(), json!({ "token": token }));
    is_at(&server, &token, 3);
    let told = show(&server, &token);
    let keys: Vec<_> = told.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["stdout", "time", "memory", "stderr", "token", "compile_output", "message", "status"]);
    assert_eq!((&told["stdout"], &told["stderr"], &told["message"]), (&json!("hi\n"), &Value::Null, &Value::Null));
    assert_eq!((&told["token"], &told["status"]), (&json!(token), &json!({ "id": 3, "description": "Accepted" })));
    assert!(told["time"].as_str().unwrap().parse::<f64>().is_ok_and(|time| (0.001..5.0).contains(&time)), "{told}");
    assert!(told["memory"].as_u64().is_some_and(|memory| (500..128_000).contains(&memory)), "{told}");

    let all = server
        .get(&format!(
            "/judge0/submissions/{token}/?fields=*,started_at,queued_at,updated_at,queue_host,execution_host"
        ))
        .json();
    assert_eq!(all.as_object().unwrap().len(), 40);
    for (name, value) in [
        ("source_code", json!("print(input())")),
        ("stdin", json!("hi")),
        ("expected_output", json!("hi")),
        ("language_id", json!(PYTHON)),
        ("status_id", json!(3)),
        ("exit_code", json!(0)),
        ("exit_signal", Value::Null),
        ("number_of_runs", json!(1)),
        ("cpu_time_limit", json!("5.0")),
        ("cpu_extra_time", json!("1.0")),
        ("wall_time_limit", json!("10.0")),
        ("memory_limit", json!(128_000)),
        ("stack_limit", json!(64_000)),
        ("max_processes_and_or_threads", json!(60)),
        ("max_file_size", json!(1024)),
        ("redirect_stderr_to_stdout", json!(false)),
        ("additional_files", Value::Null),
        ("callback_url", Value::Null),
    ] {
        assert_eq!(all[name], value, "{name}");
    }
    assert!(all["language"]["name"].as_str().unwrap().starts_with("Python (3."), "{all}");
    let times =
        ["created_at", "queued_at", "started_at", "finished_at", "updated_at"].map(|name| all[name].as_str().unwrap());
    assert!(times.is_sorted() && times.iter().all(|time| time.len() == 24 && time.ends_with('Z')), "{times:?}");

    // A job among others, whose id the token has.
    let id = only_job(&server);
    let digits = token.replace('-', "");
    assert_eq!(format!("00{}{}{}", &digits[..12], &digits[13..16], &digits[17..]), id);
    let job = server.get(&format!("/jobs/{id}")).json();
    assert_eq!(job["response"]["results"][0]["status"], "Success");
    let plain =
        server.send("POST", "/jobs", b"{\"tasks\":[{\"command\":\"true\"}]}", &[("Content-Type", "application/json")]);
    let index = server.get("/judge0/submissions").json();
    assert_eq!((&index["meta"]["total_count"], &index["submissions"][0]["token"]), (&json!(1), &json!(token)));

    let deleted = server.send("DELETE", &format!("/judge0/submissions/{token}?fields=stdout,token"), &[], &[]);
    assert_eq!((deleted.status, deleted.json()), (200, json!({ "stdout": "aGkK\n", "token": token })));
    let gone = server.get(&format!("/judge0/submissions/{token}"));
    assert_eq!((gone.status, gone.json()["error"].is_string()), (404, true));
    assert_eq!(server.get(&format!("/jobs/{id}")).status, 404);
    // What is no submission is none.
    let plain = plain.json()["id"].as_str().unwrap().to_owned();
    let id = &plain[2..];
    let token = format!("{}-{}-4{}-8{}-{}", &id[..8], &id[8..12], &id[12..15], &id[15..18], &id[18..]);
    assert_eq!(server.get(&format!("/judge0/submissions/{token}")).status, 404);
    assert_eq!(server.get(&format!("/jobs/00{id}")).status, 200);
}

#[test]
fn every_end_has_its_status() {
    let server = server();
    let end = |submission: &Value| {
        let told = run(&server, submission);
        let signal = (told["exit_code"].as_i64(), told["exit_signal"].as_i64());
        (told["status_id"].as_i64().unwrap(), told["message"].as_str().unwrap_or_default().to_owned(), signal)
    };
    let python = |code: &str, more: Value| end(&program(PYTHON, code, more));
    let kill = |signal: i32| python(&format!("import os; os.kill(os.getpid(), {signal})"), json!({}));
    let caught = |signal: i32| format!("Caught fatal signal {signal}");
    assert_eq!(python("print(1)", json!({})), (3, String::new(), (Some(0), None)));
    assert_eq!(python("print(1)", json!({ "expected_output": "1 \n\n" })).0, 3);
    assert_eq!(python("print(1)", json!({ "expected_output": " 1" })), (4, String::new(), (Some(0), None)));
    assert_eq!(python("pass", json!({ "expected_output": "" })).0, 3);
    let busy = json!({ "cpu_time_limit": 0.2, "cpu_extra_time": 0.1 });
    assert_eq!(python("while True: pass", busy), (5, "Time limit exceeded".into(), (Some(0), None)));
    let idle = json!({ "wall_time_limit": 1 });
    let late = (5, "Time limit exceeded (wall clock)".into(), (Some(0), None));
    assert_eq!(python("import time; time.sleep(9)", idle), late);
    for (signal, status) in [(11, 7), (8, 9), (6, 10), (15, 12)] {
        assert_eq!(kill(signal), (status, caught(signal), (Some(0), Some(signal.into()))));
    }
    assert_eq!(python("exit(3)", json!({})), (11, "Exited with error status 3".into(), (Some(3), None)));
    assert_eq!(python("exit(127)", json!({})).0, 11);
    let (status, message, signal) = python("x = bytearray(1 << 28)", json!({ "memory_limit": 64_000 }));
    assert_eq!((status, signal), (12, (Some(0), Some(9))));
    assert!(message.starts_with("Caught fatal signal 9 (memory limit of "), "{message}");
    // A stream, and a file.
    let (status, message, _) = python("print('x' * 3000)", json!({ "max_file_size": 2 }));
    assert!(status == 8 && message.starts_with("Caught fatal signal 25"), "{status} {message}");
    let file = "#include <fstream>\n#include <string>\nint main() { std::ofstream(\"x\") << std::string(9000, 'x'); }";
    assert_eq!(end(&program(CPP, file, json!({ "max_file_size": 4 }))), (8, caught(25), (Some(0), Some(25))));
    let (status, message, _) = end(&program(EXECUTABLE, "nothing that runs", json!({})));
    assert!(status == 14 && !message.is_empty(), "{status} {message}");

    // What ends within the time beyond the limit has its output.
    let slow = "import time\nwhile time.process_time() < 0.5: pass\nprint('done')";
    let told = run(&server, &program(PYTHON, slow, json!({ "cpu_time_limit": 0.2, "cpu_extra_time": 4 })));
    assert_eq!((&told["status_id"], &told["stdout"]), (&json!(5), &json!("done\n")));

    let told = run(&server, &program(CPP, "int main() { return x; }", json!({})));
    assert_eq!(
        (&told["status_id"], &told["time"], &told["memory"], &told["stdout"]),
        (&json!(6), &Value::Null, &Value::Null, &Value::Null)
    );
    assert!(told["compile_output"].as_str().unwrap().contains("was not declared"), "{told}");
    let warned = run(&server, &program(CPP, "#warning look\nint main() {}", json!({})));
    assert_eq!(warned["status_id"], 3);
    assert!(warned["compile_output"].as_str().unwrap().contains("#warning look"), "{warned}");
}

/// Within Judge0's own limits, which are narrower than those that an image has here.
#[test]
fn a_program_in_every_language_here_runs_by_default() {
    let server = server();
    for (id, code) in [
        (PYTHON, "print('hello')"),
        (CPP, "#include <iostream>\nint main() { std::cout << \"hello\\n\"; }"),
        (62, "public class Main { public static void main(String[] a) { System.out.println(\"hello\"); } }"),
        (73, "fn main() { println!(\"hello\"); }"),
        (113, "import threading\nt = threading.Thread(target=print, args=('hello',))\nt.start(); t.join()"),
    ] {
        let told = run(&server, &program(id, code, json!({ "expected_output": "hello" })));
        assert_eq!((&told["status_id"], &told["stderr"]), (&json!(3), &Value::Null), "{id} {told}");
    }
}

/// And one is told in each of the states before and beside its end.
#[test]
fn submissions_wait_run_and_are_cancelled() {
    let one = [("FABER_EXECUTION__CONCURRENCY", "1")];
    let server = bare(&one);
    let script = zip(&[("run", "sleep 100")]);
    let sleep = json!({ "language_id": PROJECT, "additional_files": script, "wall_time_limit": 200 });
    // As many run as there are slots.
    let running = [(); 2].map(|()| submit(&server, &sleep));
    running.iter().for_each(|token| is_at(&server, token, 2));
    let queued = submit(&server, &program(TEXT, "next", json!({})));
    assert_eq!(show(&server, &queued)["status"], json!({ "id": 1, "description": "In Queue" }));
    let delete = |token: &str| server.send("DELETE", &format!("/judge0/submissions/{token}"), &[], &[]);
    let refused = delete(&queued);
    let why = "submission cannot be deleted because its status is 1 (In Queue)";
    assert_eq!((refused.status, refused.json()), (400, json!({ "error": why })));
    assert_eq!(delete(&running[0]).status, 400);
    let workers = server.get("/judge0/workers").json();
    assert_eq!(
        (&workers[0]["available"], &workers[0]["working"], &workers[0]["size"]),
        (&json!(1), &json!(1), &json!(2))
    );
    let jobs = server.get("/jobs").json();
    for job in jobs["jobs"].as_array().unwrap().iter().filter(|job| job["state"] == "running") {
        let cancelled = server.send("DELETE", &format!("/jobs/{}", job["id"].as_str().unwrap()), &[], &[]);
        assert_eq!(cancelled.status, 200, "{}", cancelled.text);
    }
    let told = show(&server, &running[1]);
    assert_eq!(
        (&told["status"]["description"], &told["message"]),
        (&json!("Internal Error"), &json!("it was cancelled"))
    );
    is_at(&server, &queued, 3);
    assert_eq!(show(&server, &queued)["stdout"], "next");
    assert_eq!(delete(&queued).status, 200);
}

#[test]
fn submissions_outlive_the_server() {
    let data = Data::new();
    let env = [("FABER_EXECUTION__CONCURRENCY", "1"), ("FABER_SERVER__SHUTDOWN_GRACE", "1s"), ON];
    let mut server = data.server(&env);
    let done = submit(&server, &program(TEXT, "before", json!({})));
    is_at(&server, &done, 3);
    let script = zip(&[("run", "sleep 100")]);
    let sleep = json!({ "language_id": PROJECT, "additional_files": script, "wall_time_limit": 200 });
    let running = [(); 2].map(|()| submit(&server, &sleep));
    running.iter().for_each(|token| is_at(&server, token, 2));
    let queued = submit(&server, &program(TEXT, "after", json!({})));
    assert_eq!(server.stop(), Some(0));
    let server = data.server(&env);
    assert_eq!(show(&server, &done)["stdout"], "before");
    is_at(&server, &queued, 3);
    let lost = show(&server, &running[0]);
    assert_eq!((&lost["status"]["id"], &lost["message"]), (&json!(13), &json!("Faber ended while it ran")));
}

#[test]
fn texts_come_and_go_in_either_encoding() {
    let server = server();
    let code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())";
    let encoded = json!({
        "language_id": PYTHON.to_string(), "source_code": STANDARD.encode(code), "stdin": STANDARD.encode(b"\xff\x00\n"),
        "expected_output": STANDARD.encode(b"\xff"),
    });
    let answer = post(&server, "/submissions?base64_encoded=true&wait=true", &encoded);
    assert_eq!(
        (answer.status, &answer.json()["stdout"], &answer.json()["status"]["id"]),
        (201, &json!("/wAK\n"), &json!(3))
    );
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    let why =
        "some attributes for this submission cannot be converted to UTF-8, use base64_encoded=true query parameter";
    let plain = server.get(&format!("/judge0/submissions/{token}?base64_encoded=false"));
    assert_eq!((plain.status, plain.json()), (400, json!({ "error": why })));
    let many = server.get(&format!("/judge0/submissions/batch?tokens={token}"));
    let one_or_more = why.replace("this submission", "one or more submissions");
    assert_eq!((many.status, many.json()), (400, json!({ "error": one_or_more })));
    assert_eq!(server.get(&format!("/judge0/submissions/{token}?fields=time,source_code")).json()["source_code"], code);
    let waited =
        post(&server, "/submissions?wait=true", &program(PYTHON, "import os; os.write(1, b'\\xff')", json!({})));
    assert_eq!((waited.status, &waited.json()["error"]), (201, &json!(why)));
    let token = waited.json()["token"].as_str().unwrap().to_owned();
    let told = server.get(&format!("/judge0/submissions/{token}?base64_encoded=true")).json();
    assert_eq!((&told["stdout"], &told["message"]), (&json!("/w==\n"), &Value::Null));
    // A line for each 45 bytes; a message is one of the texts.
    let long = post(
        &server,
        "/submissions?wait=true&base64_encoded=true",
        &json!({
        "language_id": PYTHON, "source_code": STANDARD.encode("print('a' * 60); exit(1)") }),
    )
    .json();
    let lines: Vec<usize> = long["stdout"].as_str().unwrap().split('\n').map(str::len).collect();
    assert_eq!((lines, long["message"].as_str()), (vec![60, 24, 0], Some("RXhpdGVkIHdpdGggZXJyb3Igc3RhdHVzIDE=\n")));
}

#[test]
fn options_arguments_streams_and_runs_are_as_asked() {
    let server = server();
    let code = "#include <iostream>\nint main(int n, char **v) { std::cout << FIRST << SECOND; for (int i = 1; i < n; i++) std::cout << ' ' << v[i]; }";
    let more = json!({ "compiler_options": "-DFIRST=4 -DSECOND='\"2 3\"' -std=c++17", "command_line_arguments": "a 'b c' $d `e` *" });
    let told = run(&server, &program(CPP, code, more.clone()));
    assert_eq!((&told["stdout"], &told["compile_output"]), (&json!("42 3 a b c d e *"), &Value::Null), "{told}");
    assert_eq!(told["compiler_options"], more["compiler_options"]);
    let told = run(&server, &program(CPP, "int main() { return 1 }", json!({ "compiler_options": "-O0" })));
    assert_eq!((&told["status_id"], &told["exit_code"]), (&json!(6), &Value::Null));
    assert!(told["compile_output"].as_str().unwrap().contains("error: expected"), "{told}");

    let both = "import sys\nprint(1, flush=True)\nprint(2, file=sys.stderr, flush=True)\nprint(3)";
    let told = run(&server, &program(PYTHON, both, json!({ "redirect_stderr_to_stdout": true })));
    assert_eq!((&told["stdout"], &told["stderr"]), (&json!("1\n2\n3\n"), &Value::Null));
    let told = run(&server, &program(PYTHON, both, json!({})));
    assert_eq!((&told["stdout"], &told["stderr"]), (&json!("1\n3\n"), &json!("2\n")));

    let told = run(&server, &program(PYTHON, "print(1)", json!({ "number_of_runs": "5", "expected_output": "1" })));
    assert_eq!((&told["status_id"], &told["number_of_runs"], &told["stdout"]), (&json!(3), &json!(5), &json!("1\n")));
    let told = run(&server, &program(PYTHON, "exit(1)", json!({ "number_of_runs": 3 })));
    assert_eq!((&told["status_id"], &told["message"]), (&json!(11), &json!("Exited with error status 1")));
    let program = program(
        CPP,
        "#include <cstdio>\nint main() { std::puts(X); }",
        json!({ "number_of_runs": 2, "compiler_options": "-DX='\"y\"'" }),
    );
    assert_eq!(run(&server, &program)["stdout"], "y\n");
}

#[test]
fn files_come_with_a_program_or_are_it() {
    let server = server();
    let files = zip(&[("helper.py", "x = 7"), ("data/in.txt", "text"), ("main.py", "print('not this')")]);
    let code = "import helper\nprint(helper.x, open('data/in.txt').read())";
    let told = run(&server, &program(PYTHON, code, json!({ "additional_files": files })));
    assert_eq!((&told["stdout"], &told["status_id"]), (&json!("7 text\n"), &json!(3)), "{told}");
    assert_eq!(told["additional_files"].as_str().unwrap().replace('\n', ""), files);

    let project = |files: &[(&str, &str)], more: Value| {
        run(&server, &with(json!({ "language_id": PROJECT, "additional_files": zip(files) }), more))
    };
    let told = project(&[("run", "cat in.txt -")], json!({ "stdin": "more" }));
    assert!(told["stderr"].as_str().unwrap().contains("in.txt"), "{told}");
    let files = [("in.txt", "text "), ("run", "echo not this"), ("run.sh", "cat in.txt -; exit 2")];
    let told = project(&files, json!({ "stdin": "more" }));
    assert_eq!(
        (&told["stdout"], &told["exit_code"], &told["language"]["name"]),
        (&json!("text more"), &json!(2), &json!("Multi-file program"))
    );
    let made = [
        ("compile", "echo told; mkdir -p made/deep; echo 42 > made/deep/x"),
        ("run", "cat made/deep/x; rm made/deep/x"),
    ];
    let told = project(&made, json!({ "number_of_runs": 2, "expected_output": "42" }));
    assert_eq!(
        (&told["status_id"], &told["stdout"], &told["compile_output"]),
        (&json!(3), &json!("42\n"), &json!("told\n")),
        "{told}"
    );
    let told = project(&[("compile.sh", "echo why >&2; exit 1"), ("run", "echo never")], json!({}));
    assert_eq!(
        (&told["status_id"], &told["stdout"], &told["compile_output"]),
        (&json!(6), &Value::Null, &json!("why\n"))
    );
    let told = project(&[("other", "")], json!({}));
    assert_eq!((&told["status_id"], &told["exit_code"]), (&json!(11), &json!(127)), "{told}");
    // Bytes that run, and text that is its own output.
    let script =
        run(&server, &program(EXECUTABLE, "#!/bin/sh\necho \"$1\"", json!({ "command_line_arguments": "'a b'" })));
    assert_eq!(script["stdout"], "a b\n");
    assert_eq!(run(&server, &program(TEXT, "as it is", json!({})))["stdout"], "as it is");
}

#[test]
fn what_is_wrong_is_told_by_field_and_changes_nothing() {
    let server = server();
    let refused = |submission: Value| {
        let answer = post(&server, "/submissions?wait=true", &submission);
        assert_eq!(answer.status, 422, "{}", answer.text);
        answer.json()
    };
    let python = |more: Value| refused(program(PYTHON, "print(1)", more));
    assert_eq!(refused(json!({})), json!({ "language_id": ["can't be blank"], "source_code": ["can't be blank"] }));
    for id in [json!(70), json!(4), json!("none"), json!(-1), json!(60)] {
        let text = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        let told = refused(json!({ "language_id": id, "source_code": "x" }));
        assert_eq!(told, json!({ "language_id": [format!("language with id {text} doesn't exist")] }));
    }
    for (name, value, why) in [
        ("cpu_time_limit", json!(1000), "must be less than or equal to 300"),
        ("cpu_time_limit", json!(-1), "must be greater than or equal to 0"),
        ("wall_time_limit", json!(0.5), "must be greater than or equal to 1"),
        ("memory_limit", json!("2047"), "must be greater than or equal to 2048"),
        ("max_processes_and_or_threads", json!(0), "must be greater than or equal to 1"),
        ("number_of_runs", json!(21), "must be less than or equal to 20"),
        ("max_file_size", json!("much"), "is not a number"),
        ("stack_limit", json!([1]), "is not a text"),
        ("stdin", json!({ "a": 1 }), "is not a text"),
        ("enable_network", json!(true), "enabling network is not allowed"),
        ("callback_url", json!("http://127.0.0.1/"), "setting callback is not allowed"),
        ("enable_per_process_and_thread_time_limit", json!(true), "this option cannot be enabled"),
        ("compiler_options", json!("-O2"), "setting compiler options is only allowed for compiled languages"),
        ("command_line_arguments", json!("x".repeat(513)), "is too long (maximum is 512 characters)"),
        ("command_line_arguments", json!("it's"), "has a quotation mark without the other"),
    ] {
        assert_eq!(python(json!({ name: value })), json!({ name: [why] }));
    }
    for files in ["aGk=", &zip(&[("../out", "")]), "!"] {
        let told = python(json!({ "additional_files": files }));
        assert!(told["additional_files"][0].is_string() && told.as_object().unwrap().len() == 1, "{told}");
    }
    let project = refused(json!({ "language_id": PROJECT, "source_code": "x" }));
    assert_eq!(project, json!({ "source_code": ["must be blank"] }));
    assert_eq!(refused(json!({ "language_id": PROJECT })), json!({ "additional_files": ["can't be blank"] }));
    // What is false is as if it were not there.
    let none =
        json!({ "enable_network": false, "callback_url": "", "stdin": null, "compiler_options": " ", "unknown": [1] });
    assert_eq!(run(&server, &program(PYTHON, "print(1)", none))["status_id"], 3);

    let error = |answer: Answer| (answer.status, answer.json()["error"].as_str().unwrap_or_default().to_owned());
    let told = error(post(&server, "/submissions?fields=status,a,b", &program(PYTHON, "print(1)", json!({}))));
    assert_eq!(told, (400, "invalid fields: [a, b]".into()));
    assert_eq!(
        error(server.post_to("/judge0/submissions", "a=b", &[("Content-Type", "application/x-www-form-urlencoded")])).0,
        400
    );
    let lenient = server.post_to(
        "/judge0/submissions",
        &program(TEXT, "x", json!({})).to_string(),
        &[("Content-Type", "text/plain")],
    );
    assert_eq!(lenient.status, 201, "{}", lenient.text);
    assert_eq!(error(server.get("/judge0/submissions/none")).0, 404);
    for query in ["page=0", "per_page=x", "per_page=101"] {
        let (status, why) = error(server.get(&format!("/judge0/submissions?{query}")));
        assert!(status == 400 && why.starts_with("invalid "), "{status} {why}");
    }
    assert_eq!(server.get("/judge0/submissions").json()["meta"]["total_count"], 2);
}

#[test]
fn a_batch_is_as_many_jobs() {
    let server = server();
    let error = |answer: Answer| (answer.status, answer.json()["error"].as_str().unwrap_or_default().to_owned());
    let many = "number of submissions in a batch should be less than or equal to 20";
    let none = "there should be at least one submission in a batch";
    let text = |n: usize| program(TEXT, &n.to_string(), json!({}));
    let batch = |count: usize| json!({ "submissions": (0..count).map(text).collect::<Vec<_>>() });
    assert_eq!(error(post(&server, "/submissions/batch", &batch(21))), (400, many.into()));
    assert_eq!(error(post(&server, "/submissions/batch", &batch(0))), (400, none.into()));
    assert_eq!(error(post(&server, "/submissions/batch", &json!({}))), (400, none.into()));
    assert_eq!(error(server.get("/judge0/submissions/batch")), (400, none.into()));
    let wrong = json!({ "submissions": [{}, 1] });
    let answer = post(&server, "/submissions/batch", &wrong);
    assert_eq!((answer.status, answer.json()[1].clone()), (422, json!({ "base": ["is not an object"] })));
    assert_eq!(server.get("/judge0/submissions").json()["meta"]["total_count"], 0);

    let mixed = json!({ "submissions": [text(7), { "language_id": 1, "source_code": "x" }, program(PYTHON, "print(8)", json!({}))] });
    let answer = post(&server, "/submissions/batch/?wait=true", &mixed);
    assert_eq!(answer.status, 201, "{}", answer.text);
    let told = answer.json();
    assert_eq!(told[1], json!({ "language_id": ["language with id 1 doesn't exist"] }));
    let tokens = [&told[0], &told[2]].map(|one| one["token"].as_str().unwrap().to_owned());
    tokens.iter().for_each(|token| is_at(&server, token, 3));
    let path = format!("/judge0/submissions/batch?tokens={},none,{}&fields=stdout", tokens[0], tokens[1]);
    assert_eq!(server.get(&path).json(), json!({ "submissions": [{ "stdout": "7" }, null, { "stdout": "8\n" }] }));

    // In order, all of them, and in pages newest first.
    let answer = post(&server, "/submissions/batch", &batch(20));
    let tokens: Vec<String> =
        answer.json().as_array().unwrap().iter().map(|one| one["token"].as_str().unwrap().to_owned()).collect();
    assert_eq!(tokens.iter().collect::<BTreeSet<_>>().len(), 20);
    tokens.iter().for_each(|token| is_at(&server, token, 3));
    let all = server.get(&format!("/judge0/submissions/batch?tokens={}", tokens.join(","))).json();
    for (n, one) in all["submissions"].as_array().unwrap().iter().enumerate() {
        assert_eq!(one["stdout"], n.to_string());
    }
    let index = server.get("/judge0/submissions?page=2&fields=token").json();
    let meta = json!({ "current_page": 2, "next_page": null, "prev_page": 1, "total_pages": 2, "total_count": 22 });
    assert_eq!((&index["meta"], index["submissions"].as_array().unwrap().len()), (&meta, 2));
    let index = server.get("/judge0/submissions?per_page=3&fields=stdout").json();
    assert_eq!(index["submissions"], json!([{ "stdout": "19" }, { "stdout": "18" }, { "stdout": "17" }]));
    assert_eq!(index["meta"]["next_page"], 2);
    let statistics = server.get("/judge0/statistics").json();
    assert_eq!((&statistics["submissions"]["total"], &statistics["submissions"]["today"]), (&json!(22), &json!(22)));
    assert_eq!(statistics["languages"][0], json!({ "language": { "id": TEXT, "name": "Plain Text" }, "count": 21 }));
    assert_eq!(statistics["statuses"], json!([{ "status": { "id": 3, "name": "Accepted" }, "count": 22 }]));
    assert_eq!(statistics["submissions"]["last_30_days"].as_object().unwrap().len(), 30);
}

/// Each needs a processor for as long as it sleeps, by what is to be had at once.
#[test]
fn a_batch_uses_every_place() {
    let server = bare(&[("FABER_EXECUTION__CONCURRENCY", "10")]);
    let script = zip(&[("run", "sleep 1")]);
    let one = json!({ "language_id": PROJECT, "additional_files": script });
    let begun = std::time::Instant::now();
    let answer = post(&server, "/submissions/batch", &json!({ "submissions": vec![one; 20] }));
    let tokens = answer.json();
    tokens.as_array().unwrap().iter().for_each(|one| is_at(&server, one["token"].as_str().unwrap(), 3));
    // One after the other they take twenty.
    assert!(begun.elapsed().as_secs() < 15, "{:?}", begun.elapsed());
}

#[test]
fn each_key_has_its_own_submissions() {
    let keys =
        ["one", "two"].map(|name| format!("{{ name = \"{name}\", hash = \"sha256:{}\" }}", sha256(name.as_bytes())));
    let keys = format!("[{}]", keys.join(", "));
    let env = [("FABER_AUTH__KEYS", keys.as_str()), ("FABER_RATE_LIMIT__ENABLED", "false"), ON];
    let server = Server::start(&[], &env);
    let (one, two) = (("X-Auth-Token", "one"), ("x-auth-token", "two"));
    let send = |method: &str, path: &str, headers: &[(&str, &str)]| {
        server.send(method, &format!("/judge0{path}"), &[], headers)
    };
    for (path, headers) in [
        ("/authenticate", &[][..]),
        ("/authenticate?X-Auth-Token=three", &[]),
        ("/authorize", &[("X-Auth-Token", "three")]),
    ] {
        let answer = send("POST", path, headers);
        assert_eq!((answer.status, answer.text.as_str()), (401, ""), "{path}");
    }
    for path in ["/languages", "/submissions", "/config_info", "/about"] {
        assert_eq!(send("GET", path, &[]).status, 401, "{path}");
    }
    for (path, headers) in [
        ("/authenticate", &[one][..]),
        ("/authorize/", &[two, ("X-Auth-User", "anybody")]),
        ("/authenticate?X-Auth-Token=two", &[]),
        ("/authenticate", &[("Authorization", "Bearer one")]),
    ] {
        let answer = send("POST", path, headers);
        assert_eq!((answer.status, answer.text.as_str()), (200, ""), "{path}");
    }
    assert_eq!((send("GET", "", &[]).status, send("GET", "/", &[]).text.as_str()), (200, ""));
    let body = program(TEXT, "mine", json!({})).to_string();
    let told = server.post_to("/judge0/submissions?wait=true", &body, &[one]).json();
    assert_eq!(told["stdout"], "mine");
    let path = format!("/submissions/{}", told["token"].as_str().unwrap());
    for method in ["GET", "DELETE"] {
        assert_eq!(send(method, &path, &[two]).status, 404);
    }
    let index = |key| send("GET", "/submissions", &[key]).json()["meta"]["total_count"].clone();
    assert_eq!((index(one), index(two)), (json!(1), json!(0)));
    assert_eq!(send("DELETE", &path, &[one]).status, 200);
    assert!(!server.log().contains("X-Auth-Token"), "a token is in the log");
}

/// However small the body is of which it would be made.
#[test]
fn what_is_made_of_a_submission_is_bounded_too() {
    let server = bare(&[("FABER_SERVER__BUFFERS", "256MiB")]);
    let large = program(TEXT, &"x".repeat(6 << 20), json!({ "number_of_runs": 20 }));
    let answer = post(&server, "/submissions", &large);
    assert_eq!(answer.status, 413, "{}", answer.text);
    assert!(answer.json()["error"].is_string(), "{}", answer.text);
    assert_eq!(server.get("/judge0/submissions").json()["meta"]["total_count"], 0);
}

/// What a client may have is used up: that is told in its form, and nothing is taken.
#[test]
fn a_full_queue_is_told_as_such() {
    let server = bare(&[("FABER_JOBS__COUNT", "3")]);
    let one = program(TEXT, "x", json!({}));
    let batch = json!({ "submissions": vec![one.clone(); 5] });
    let answer = post(&server, "/submissions/batch", &batch);
    assert_eq!(answer.status, 201, "{}", answer.text);
    let told = answer.json();
    assert!(
        told[2]["token"].is_string() && told[3]["error"].as_str().unwrap().starts_with("queue is full: "),
        "{told}"
    );
    for path in ["/submissions", "/submissions/batch"] {
        let answer = post(&server, path, if path == "/submissions" { &one } else { &batch });
        assert_eq!(answer.status, 503, "{}", answer.text);
        assert!(answer.json()["error"].as_str().unwrap().starts_with("queue is full: "), "{}", answer.text);
    }
    let token = told[0]["token"].as_str().unwrap();
    is_at(&server, token, 3);
    assert_eq!(server.send("DELETE", &format!("/judge0/submissions/{token}"), &[], &[]).status, 200);
    submit(&server, &one);
}

#[test]
fn it_tells_what_it_is() {
    let server = server();
    let get = |path: &str| {
        let answer = server.get(&format!("/judge0{path}"));
        assert_eq!(answer.status, 200, "{path} {}", answer.text);
        answer
    };
    let languages = get("/languages/").json();
    let languages: Vec<(u64, &str)> = languages
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["id"].as_u64().unwrap(), one["name"].as_str().unwrap()))
        .collect();
    assert!(languages.is_sorted_by_key(|(id, name)| (*name, *id)), "{languages:?}");
    let name = |id: u64| languages.iter().find(|(known, _)| *known == id).map(|(_, name)| *name);
    for (id, begins) in [
        (71, "Python (3."),
        (54, "C++ (GCC 1"),
        (62, "Java (OpenJDK "),
        (73, "Rust (1."),
        (43, "Plain Text"),
        (89, "Multi-file program"),
    ] {
        let name = name(id).unwrap();
        assert!(name.starts_with(begins), "{name}");
        let shown = get(&format!("/languages/{id}")).json();
        assert_eq!((&shown["id"], &shown["name"], &shown["is_archived"]), (&json!(id), &json!(name), &json!(false)));
    }
    assert_eq!((name(50), name(70)), (None, None));
    assert_eq!(server.get("/judge0/languages/50").status, 404);
    let cpp = get("/languages/54").json();
    assert_eq!((&cpp["source_file"], &cpp["run_cmd"]), (&json!("main.cpp"), &json!("./main")));
    assert!(cpp["compile_cmd"].as_str().unwrap().starts_with("g++ "), "{cpp}");
    assert_eq!(get("/languages/all").json().as_array().unwrap().len(), languages.len());

    let statuses = get("/statuses").json();
    assert_eq!(
        (statuses.as_array().unwrap().len(), &statuses[13]),
        (14, &json!({ "id": 14, "description": "Exec Format Error" }))
    );
    assert_eq!((get("/version").text.as_str(), &get("/about").json()["version"]), ("1.13.1", &json!("1.13.1")));
    assert!(get("/isolate").text.starts_with("Faber ") && get("/license").text.contains("Apache"));
    let config = get("/config_info").json();
    assert_eq!(config.as_object().unwrap().len(), 40);
    for (name, value) in [
        ("enable_callbacks", json!(false)),
        ("allow_enable_network", json!(false)),
        ("enable_wait_result", json!(true)),
        ("cpu_time_limit", json!(5.0)),
        ("max_cpu_time_limit", json!(300.0)),
        ("memory_limit", json!(128_000)),
        ("max_max_file_size", json!(16_384)),
        ("max_submission_batch_size", json!(20)),
        ("max_queue_size", json!(10_000)),
    ] {
        assert_eq!(config[name], value, "{name}");
    }
    let system = get("/system_info").json();
    assert_eq!(system["Architecture"], std::env::consts::ARCH);
    let workers = get("/workers").json();
    assert_eq!(
        (&workers[0]["working"], &workers[0]["failed"], &workers[0]["paused"]),
        (&json!(0), &json!(0), &json!(0))
    );
    assert_eq!(workers[0]["idle"], workers[0]["available"]);
}

fn client(python: &Path, server: &Server, script: &str) -> String {
    let mut command = Command::new(python);
    command.args(["-c", script, &format!("{}/judge0", server.url())]).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn its_own_client_works_unchanged() {
    let python = pypi::python("judge0", &["judge0==0.0.8"]);
    let server = server();
    let script = r#"
import sys, uuid, judge0
from judge0 import TestCase, Filesystem, File
client = judge0.Client(sys.argv[1], {})
client.retry_strategy = None
print(client.version, client.is_language_supported(judge0.PYTHON), client.is_language_supported(judge0.CPP), client.is_language_supported(judge0.GO))
r = judge0.run(client=client, source_code="print('hello, ' + input())", language=judge0.PYTHON, stdin="you")
print(r.status.name, r.stdout.strip(), r.exit_code, r.time > 0, r.memory > 0, (r.finished_at - r.created_at).total_seconds() >= 0)
r = judge0.run(client=client, source_code="int main() { return x; }", language=judge0.CPP)
print(r.status.name, "not declared" in r.compile_output)
rs = judge0.run(client=client, source_code="print(int(input()) * 2)", language=judge0.PYTHON,
    test_cases=[TestCase(input=str(n), expected_output=str(2 * n) if n != 7 else "no") for n in range(30)])
print([n for n, r in enumerate(rs) if r.status.name != "ACCEPTED"], rs[7].status.name)
fs = Filesystem(content=[File(name="run", content="cat one"), File(name="one", content="1 2")])
print(judge0.run(client=client, source_code="", language=judge0.MULTI_FILE, additional_files=fs).stdout)
r = judge0.run(client=client, source_code="while True: pass", language=judge0.PYTHON, cpu_time_limit=0.3, cpu_extra_time=0)
print(r.status)
print(client.get_config_info().max_submission_batch_size, len(client.get_statuses()), client.get_language(71).id)
print(uuid.UUID(r.token).version)
"#;
    let told = client(&python, &server, script);
    let lines = [
        "1.13.1 True True False",
        "ACCEPTED hello, you 0 True True True",
        "COMPILATION_ERROR True",
        "[7] WRONG_ANSWER",
        "1 2",
        "Time Limit Exceeded",
        "20 14 71",
        "4",
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), lines);
}

#[test]
fn a_typed_client_works_unchanged() {
    let python = pypi::python("judge0-client", &["judge0-client==0.4.0"]);
    let server = server();
    let script = r#"
import sys, asyncio
from judge0_client import Judge0Client, SingleFileSubmission, MultiFileSubmission, Judge0Error
async def main():
    async with Judge0Client(sys.argv[1], auth_token="whatever") as client:
        async def run(submission):
            token = (await client.create_submission(submission)).token
            while True:
                detail = await client.get_submission(token)
                if detail.status.id > 2:
                    return detail
                await asyncio.sleep(0.05)
        d = await run(SingleFileSubmission(source_code="print(open('x').read() + input())", language_id=71, stdin="!", additional_files={"x": "7"}))
        print(d.status.id, d.stdout.strip(), d.memory > 0, d.time > 0)
        d = await run(MultiFileSubmission(additional_files={"compile": "echo made > out", "run": "cat out; exit 4"}))
        print(d.status.id, d.stdout.strip(), d.message)
        w = await client.get_workers()
        print(w[0].available > 0, w[0].failed, (await client.get_about()).version, (await client.get_isolate())[:5])
        try:
            await client.create_submission(SingleFileSubmission(source_code="x", language_id=1))
        except Judge0Error as error:
            print(type(error).__name__)
asyncio.run(main())
"#;
    let told = client(&python, &server, script);
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[..3], ["3 7! True True", "11 made Exited with error status 4", "True 0 1.13.1 Faber"]);
    assert_eq!(lines.len(), 4, "{lines:?}");
}

#[test]
fn clients_that_ask_who_may_work_unchanged() {
    let python = pypi::python("judge0-api-wrapper", &["judge0-api-wrapper==1.1.3"]);
    let server = server();
    let script = r#"
import sys
from judge0_api_wrapper import Judge0, CreateSubmission
judge = Judge0(sys.argv[1], "token", "user")
print(judge.languages[89])
one = judge.submit(CreateSubmission(source_code="print(input())", language_id=71, stdin="hi", expected_output="hi"))
r = judge.wait_for_completion(one, poll_interval=0.1)
print(r.result.name, r.stdout.strip(), r.time > 0, r.memory > 0)
many = judge.submit_batch([CreateSubmission(source_code=f"print({n})", language_id=71) for n in range(5)], encode_in_base64=False)
print([r.stdout.strip() for r in judge.wait_for_completions(many, poll_interval=0.1)])
"#;
    let told = client(&python, &server, script);
    assert_eq!(
        told.lines().collect::<Vec<_>>(),
        ["Multi-file program", "ACCEPTED hi True True", "['0', '1', '2', '3', '4']"]
    );

    let python = pypi::python("judge0api", &["judge0api==0.1.20"]);
    let script = r#"
import sys, judge0api
client = judge0api.Client(sys.argv[1], auth_token="token", auth_user="user")
s = judge0api.submission.submit(client, b"print(input())", 71, stdin=b"hi", expected_output=b"hi", number_of_runs=2)
print(s.status["id"], s.stdout)
s = judge0api.submission.get(client, s.token)
print(s.status["description"], s.language_id, s.exit_code, s["stdout"].strip())
"#;
    let told = client(&python, &server, script);
    assert_eq!(told.lines().collect::<Vec<_>>(), ["3 b'hi\\n'", "Accepted 71 0 hi"]);
}
