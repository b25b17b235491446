//! Requests that are followed while they run: server-sent events, and WebSockets with standard input, signals and terminals.

use std::net::Shutdown;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::live::{Events, Live};
use crate::support::{PATIENT, Server, eventually, memory_of, new_key, running};

fn bash(script: &str) -> Value {
    json!({ "command": "bash", "args": ["-c", script] })
}

fn names(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(name, _)| name.as_str()).collect()
}

/// What was told of a stream, put together, each piece being where it says it is.
#[track_caller]
fn told(events: &[(String, Value)], stream: &str) -> String {
    let mut text = String::new();
    for (_, data) in events.iter().filter(|(name, _)| name == stream) {
        assert_eq!(data["offset"], text.len(), "{data}");
        text += data["text"].as_str().unwrap();
    }
    text
}

#[test]
fn a_stream_tells_all_that_the_answer_says_and_ends_with_done() {
    let server = Server::start_open();
    let task = bash("echo out; echo err >&2; exit 3");
    let events = Events::of(&server, &json!({ "tasks": [task] })).all();
    let names = names(&events);
    assert_eq!(names[..2], ["queued", "started"]);
    assert_eq!(names[names.len() - 2..], ["result", "done"]);
    assert_eq!(events[0].1, json!({ "task": 0, "position": 0 }));
    assert_eq!((told(&events, "stdout"), told(&events, "stderr")), ("out\n".into(), "err\n".into()));
    let (_, result) = &events[names.len() - 2];
    let plain = server.run(task);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(result["task"], 0);
    assert_eq!(keys(&result["result"]), keys(&plain));
    for key in ["status", "exit_code", "stdout", "stderr", "error"] {
        assert_eq!(result["result"][key], plain[key], "{key}");
    }
    assert_eq!(events.last().unwrap().1, json!({}));
}

#[test]
fn output_comes_while_the_task_runs_and_a_client_that_leaves_ends_it() {
    let server = Server::start_open();
    let mut events = Events::of(&server, &json!({ "tasks": [bash("echo first; exec sleep 4321.5")] }));
    assert_eq!(events.wait_for("stdout")["text"], "first\n");
    eventually("it sleeps", || !running(&["sleep", "4321.5"]).is_empty());
    let usage = events.wait_for("usage");
    assert!(usage["cpu_time_ns"].as_u64().unwrap() > 0, "{usage}");
    assert!(usage["memory_bytes"].as_u64().unwrap() > 0, "{usage}");
    assert!(usage["wall_time_ns"].as_u64().unwrap() > 100_000_000, "{usage}");
    drop(events);
    eventually("it is ended", || running(&["sleep", "4321.5"]).is_empty());
    assert_eq!(server.shell("echo on"), "on");
}

#[test]
fn characters_stay_whole_and_other_bytes_are_base64() {
    let server = Server::start_open();
    // The rest of the character is written once its beginning was read, which the shell cannot know: it waits for a while.
    let script =
        r"printf 'a\303'; sleep 0.2; printf '\251b'; sleep 0.2; printf '\377\376'; sleep 0.2; printf 'z\342\202'";
    let events = Events::of(&server, &json!({ "tasks": [bash(script)] })).all();
    let (mut bytes, mut texts) = (Vec::new(), String::new());
    for (_, data) in events.iter().filter(|(name, _)| name == "stdout") {
        assert_eq!(data["offset"], bytes.len(), "{data}");
        match (&data["text"], &data["base64"]) {
            (Value::String(text), Value::Null) => {
                bytes.extend_from_slice(text.as_bytes());
                texts += text;
            }
            (Value::Null, Value::String(base64)) => bytes.extend(decode(base64)),
            _ => panic!("{data}"),
        }
    }
    assert_eq!(bytes, b"a\xc3\xa9b\xff\xfez\xe2\x82");
    assert_eq!(texts, "a\u{e9}bz");
}

fn decode(base64: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(base64).unwrap()
}

#[test]
fn each_task_is_told_when_it_ends() {
    let server = Server::start_open();
    let body = json!({ "tasks": [
        { "name": "a", "command": "echo", "args": ["6"] },
        { "name": "b", "command": "cat", "stdin": { "from": "a", "stream": "stdout" },
            "expect": { "stdout": { "from": "a", "stream": "stdout" } } },
        { "name": "c", "command": "false" },
        { "command": "true", "needs": ["c"] },
        bash("exec sleep 4322.5"),
    ] });
    let mut events = Events::of(&server, &body);
    let mut results = vec![Value::Null; 4];
    for _ in 0..4 {
        let data = events.wait_for("result");
        results[data["task"].as_u64().unwrap() as usize] = data["result"].clone();
    }
    assert_eq!((&results[0]["stdout"], &results[1]["stdout"]), (&json!("6\n"), &json!("6\n")));
    assert_eq!(results[1]["verdict"], "Accepted");
    assert_eq!(results[3]["error"], "needs c, which ended with Failure");
    drop(events);
    eventually("it is ended", || running(&["sleep", "4322.5"]).is_empty());
}

#[test]
fn connected_tasks_and_steps_that_were_run_before_are_told_too() {
    let server = Server::start_open();
    let body = json!({
        "tasks": [
            { "name": "ask", "command": "bash", "args": ["-c", "echo 6 7; read answer; echo $answer >&2"] },
            { "name": "reply", "command": "bash", "args": ["-c", "read a b; echo $((a * b))"] }],
        "connect": [["ask.stdout", "reply.stdin"], ["reply.stdout", "ask.stdin"]] });
    let events = Events::of(&server, &body).all();
    let results = events.iter().filter(|(name, _)| name == "result").count();
    assert_eq!((results, names(&events).last()), (2, Some(&"done")));
    assert!(events.iter().find(|(name, _)| name == "result").unwrap().1["result"]["ended_first"].is_boolean());
    let cached = json!({ "tasks": [{ "command": "echo", "args": ["kept"], "cache": true }] });
    let first = Events::of(&server, &cached).all();
    let again = Events::of(&server, &cached).all();
    assert_eq!((told(&first, "stdout"), told(&again, "stdout")), ("kept\n".into(), "kept\n".into()));
    let result = &again.iter().find(|(name, _)| name == "result").unwrap().1["result"];
    assert_eq!((&result["cached"], &result["stdout"]), (&json!(true), &json!("kept\n")));
}

#[test]
fn what_is_refused_is_answered_as_without_a_stream() {
    let server = Server::start(&["--open-mode"], &[("FABER_EXECUTION__QUEUE_LENGTH", "1")]);
    let accept = [("Accept", "text/event-stream")];
    server.post("{}", &accept).is_error(400, "Validation error", "missing field `tasks` at line 1 column 2");
    let many: Vec<Value> = (0..40).map(|_| bash("true")).collect();
    let full = server.post(&json!({ "tasks": many }).to_string(), &accept);
    full.is_error(503, "Service unavailable", "All capacity is in use, please try again later");
    let task = json!({ "tasks": [{ "command": "true", "tty": { "rows": 24, "columns": 80 } }] });
    for headers in [&accept[..], &[]] {
        let answer = server.post(&task.to_string(), headers);
        assert_eq!(answer.status, 200);
        assert!(answer.text.contains("GET /execute/live"), "{}", answer.text);
    }
}

#[test]
fn who_reads_slowly_is_told_what_was_dropped_and_costs_nobody() {
    let server = Server::start_open();
    let before = memory_of(server.front(), "VmRSS");
    let task = json!({ "command": "head", "args": ["-c", "15M", "/dev/zero"], "output_encoding": "base64",
        "resource_limits": { "max_output_size": 16 << 20 } });
    let slow = Events::of(&server, &json!({ "tasks": [task] }));
    // It is over while nobody reads; all it costs is what the result takes.
    eventually("it has ended", || running(&["head", "-c", "15M", "/dev/zero"]).is_empty());
    for _ in 0..5 {
        assert_eq!(server.shell("echo on"), "on");
    }
    let held = memory_of(server.front(), "VmRSS").saturating_sub(before);
    assert!(held < 40 << 20, "{held} bytes");
    let events = slow.all();
    let sum = |name: &str, size: fn(&Value) -> u64| {
        events.iter().filter(|(is, _)| is == name).map(|(_, data)| size(data)).sum::<u64>()
    };
    let dropped = sum("dropped", |data| data["bytes"].as_u64().unwrap());
    let told = sum("stdout", |data| data["text"].as_str().unwrap().len() as u64);
    assert_eq!(dropped + told, 15 << 20, "{dropped} dropped, {told} told");
    assert!(dropped > 0);
    let result = &events.iter().find(|(name, _)| name == "result").unwrap().1["result"];
    assert_eq!(decode(result["stdout"].as_str().unwrap()).len(), 15 << 20);
    assert_eq!(names(&events).last(), Some(&"done"));
}

#[test]
fn what_goes_beyond_the_output_limit_is_not_told() {
    let server = Server::start_open();
    let task = json!({ "command": "yes", "on_output_limit": "discard",
        "resource_limits": { "max_output_size": 100_000, "wall_time_limit": 1_000_000_000u64 } });
    let events = Events::of(&server, &json!({ "tasks": [task] })).all();
    assert_eq!(told(&events, "stdout").len(), 100_000);
    let result = &events.iter().find(|(name, _)| name == "result").unwrap().1["result"];
    assert_eq!(result["status"], "Timeout");
}

#[test]
fn a_stream_that_breaks_has_no_end() {
    let server = Server::start_open();
    let body = json!({ "tasks": [bash("echo on; exec sleep 4323.5")] });
    let mut events = Events::of(&server, &body);
    events.wait_for("stdout");
    let mut live = Live::start(&server, &bash("echo on; exec sleep 4324.5"));
    live.expect("on\n");
    kill(Pid::from_raw(server.front()), Signal::SIGKILL).unwrap();
    let rest = events.all();
    assert!(!names(&rest).contains(&"done") && !names(&rest).contains(&"result"), "{rest:?}");
    assert_eq!(live.closed(), 1006);
    eventually("both are ended", || {
        running(&["sleep", "4323.5"]).is_empty() && running(&["sleep", "4324.5"]).is_empty()
    });
    // A runner that is killed loses its task, of which the stream has a result.
    eventually("it serves again", || server.get("/health").status == 200);
    let mut events = Events::of(&server, &body);
    events.wait_for("stdout");
    eventually("it sleeps", || !running(&["sleep", "4323.5"]).is_empty());
    for runner in server.processes("runner") {
        kill(Pid::from_raw(runner), Signal::SIGKILL).unwrap();
    }
    let rest = events.all();
    assert_eq!(names(&rest)[rest.len() - 2..], ["result", "done"]);
    assert_eq!(rest[rest.len() - 2].1["result"]["error"], "Faber lost the task while it ran");
}

#[test]
fn a_stop_lets_streams_finish() {
    let mut server = Server::start_open();
    let mut events = Events::of(&server, &json!({ "tasks": [bash("echo on; sleep 1; echo off")] }));
    events.wait_for("stdout");
    let mut live = Live::start(&server, &bash("echo on; read line; echo $line"));
    live.expect("on\n");
    kill(Pid::from_raw(server.pid()), Signal::SIGTERM).unwrap();
    let rest = events.all();
    assert_eq!((told_from(&rest), names(&rest).last()), ("off\n".into(), Some(&"done")));
    live.type_in("end\n");
    assert_eq!(live.result()["stdout"], "on\nend\n");
    assert_eq!(server.wait(), Some(0));
}

/// What was told, wherever it was in its stream.
fn told_from(events: &[(String, Value)]) -> String {
    events.iter().filter(|(name, _)| name == "stdout").filter_map(|(_, data)| data["text"].as_str()).collect()
}

#[test]
fn a_program_can_be_talked_to() {
    let server = Server::start_open();
    let mut live = Live::start(&server, &bash("while read line; do echo \"<$line>\"; done; echo over >&2"));
    assert_eq!(live.next().unwrap(), json!({ "event": "queued", "task": 0, "position": 0 }));
    live.type_in("one\n");
    live.expect("<one>\n");
    live.say(&json!({ "stdin": { "base64": "dHdvCg==" } }));
    live.expect("<two>\n");
    live.say(&json!({ "eof": true }));
    let result = live.result();
    assert_eq!(
        (&result["status"], &result["stdout"], &result["stderr"]),
        (&json!("Success"), &json!("<one>\n<two>\n"), &json!("over\n"))
    );
    // One that is gone before all was sent, and one that never reads.
    let mut live = Live::start(&server, &bash("read line"));
    for _ in 0..50 {
        live.type_in(&"x".repeat(100_000));
        if live.socket.send(tungstenite::Message::text(json!({ "stdin": "\n" }).to_string())).is_err() {
            break;
        }
    }
    assert_eq!(live.result()["exit_code"], 0);
}

#[test]
fn signals_reach_the_task_and_cancel_ends_it() {
    let server = Server::start_open();
    let script = "trap 'echo got it; exit 7' INT; trap 'echo usr' USR1; echo ready; while :; do sleep 0.05; done";
    let mut live = Live::start(&server, &bash(script));
    live.expect("ready\n");
    live.say(&json!({ "signal": "SIGUSR1" }));
    live.expect("usr\n");
    live.say(&json!({ "signal": 2 }));
    live.expect("got it\n");
    assert_eq!(live.result()["exit_code"], 7);
    let mut live = Live::start(&server, &bash("echo ready; exec sleep 4325.5"));
    live.expect("ready\n");
    live.say(&json!({ "cancel": true }));
    let result = live.result();
    assert_eq!((&result["error"], &result["stdout"]), (&json!("cancelled while it ran"), &json!("ready\n")));
    assert!(running(&["sleep", "4325.5"]).is_empty());
    // One that goes away ends it too.
    let mut live = Live::start(&server, &bash("echo ready; exec sleep 4326.5"));
    live.expect("ready\n");
    live.socket.get_ref().shutdown(Shutdown::Both).unwrap();
    eventually("it is ended", || running(&["sleep", "4326.5"]).is_empty());
}

#[test]
fn a_task_that_waits_can_be_cancelled() {
    let env = [("FABER_EXECUTION__CONCURRENCY", "1"), PATIENT[0]];
    let server = Server::start(&["--open-mode"], &env);
    let mut first = Live::start(&server, &bash("echo ready; read line"));
    first.expect("ready\n");
    let mut second = Live::start(&server, &bash("echo never"));
    second.wait_for("queued");
    let mut third = Live::start(&server, &bash("echo third"));
    assert_eq!(third.wait_for("queued")["position"], 1);
    second.say(&json!({ "cancel": true }));
    let result = second.result();
    assert_eq!((&result["status"], &result["error"]), (&json!("NotExecuted"), &json!("cancelled before it started")));
    first.type_in("\n");
    assert_eq!(first.result()["exit_code"], 0);
    assert_eq!(third.result()["stdout"], "third\n");
}

#[test]
fn a_terminal_is_one() {
    let server = Server::start_open();
    // Whatever is typed before a program asks for it may be thrown away (TCSAFLUSH), so each prompt is waited for.
    let shell = json!({ "command": "bash", "args": ["--norc"], "env": { "PS1": "go> " }, "tty": { "rows": 30, "columns": 100 },
        "detail": true });
    let mut live = Live::start(&server, &shell);
    live.expect("go> ");
    live.type_in("tty; stty size; echo term=$TERM\r");
    live.expect("/dev/pts/0\r\n30 100\r\nterm=xterm-256color\r\n");
    live.expect("go> ");
    live.say(&json!({ "resize": { "rows": 50, "columns": 132 } }));
    live.type_in("stty size\r");
    live.expect("50 132\r\n");
    live.expect("go> ");
    // Job control: what is in the foreground is stopped, goes on, and is interrupted.
    live.type_in("sleep 4327.5\r");
    eventually("it sleeps", || !running(&["sleep", "4327.5"]).is_empty());
    live.type_in("\u{1a}");
    live.expect("Stopped");
    live.expect("go> ");
    live.type_in("fg\r");
    live.expect("\rsleep 4327.5\r\n");
    live.type_in("\u{3}");
    live.expect("go> ");
    live.type_in("echo code $?\r");
    live.expect("\rcode 130\r\n");
    live.expect("go> ");
    // What is read without an echo is not shown.
    live.type_in("read -sp 'pass''word? ' secret; echo; echo \"it was ${#secret} long\"\r");
    live.expect("password? ");
    live.type_in("hidden\r");
    live.expect("it was 6 long\r\n");
    live.expect("go> ");
    live.say(&json!({ "eof": true }));
    let result = live.result();
    assert_eq!((&result["status"], &result["stderr"]), (&json!("Success"), &Value::Null), "{result}");
    assert!(!result["stdout"].as_str().unwrap().contains("hidden"), "{result}");
    // A program that ends while others still have its terminal.
    let left = json!({ "command": "bash", "args": ["-c", "trap '' HUP; sleep 4328.5 & tput cols; exit 4"], "tty": { "rows": 24, "columns": 81 } });
    let result = Live::start(&server, &left).result();
    assert_eq!((&result["exit_code"], &result["stdout"]), (&json!(4), &json!("81\r\n")), "{result}");
    assert!(running(&["sleep", "4328.5"]).is_empty());
}

#[test]
fn hostile_programs_in_terminals_harm_nobody() {
    let server = Server::start_open();
    let tty = json!({ "rows": 24, "columns": 80 });
    let limits = json!({ "max_output_size": 100_000, "wall_time_limit": 20_000_000_000u64 });
    // Escapes are bytes; a flood ends at the output limit.
    let flood = json!({ "command": "python3", "tty": tty, "resource_limits": limits, "output_encoding": "base64",
        "args": ["-c", "import sys\nwhile True: sys.stdout.buffer.write(b'\\x1b]0;a\\x07\\x1b[6n\\x1bc\\x9b21t' * 99)"] });
    let result = Live::start(&server, &flood).result();
    assert_eq!(result["status"], "ResourceLimitExceeded", "{}", result["error"]);
    // It may not type into it (TIOCSTI), take another one, or keep it open for ever.
    let tricks = "import fcntl, os, termios\n\
        for call in (lambda: fcntl.ioctl(0, termios.TIOCSTI, b'x'), lambda: os.open('/dev/console', os.O_RDWR)):\n\
        \x20   try: print('did', call())\n\
        \x20   except OSError as error: print('refused')\n\
        attributes = termios.tcgetattr(0)\n\
        attributes[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG)\n\
        termios.tcsetattr(0, termios.TCSANOW, attributes)\n\
        if os.fork() == 0:\n\
        \x20   os.setsid()\n\
        \x20   while True: os.write(1, b'.')\n\
        os._exit(9)\n";
    let task = json!({ "command": "python3", "args": ["-c", tricks], "tty": tty });
    let result = Live::start(&server, &task).result();
    assert_eq!(result["exit_code"], 9, "{result}");
    assert!(result["stdout"].as_str().unwrap().starts_with("refused\r\nrefused\r\n"), "{result}");
    assert_eq!(server.shell("ls /dev/pts"), "ptmx");
}

#[test]
fn messages_that_make_no_sense_change_nothing() {
    let server = Server::start_open();
    let mut live = Live::start(&server, &bash("read line; echo \"<$line>\""));
    live.wait_for("started");
    let refused = [
        (
            json!({ "resize": { "rows": 1, "columns": 1 } }),
            "resize: the task has no terminal; ask for one with \"tty\"",
        ),
        (json!({ "signal": "SIGNONSENSE" }), "signal: Name(\"SIGNONSENSE\") is no signal"),
        (json!({ "signal": 65 }), "signal"),
        (json!({ "stdin": { "blob": "sha256:00" } }), "stdin"),
        (json!({ "stdin": { "from": "a", "stream": "stdout" } }), "stdin: expected text or base64"),
        (json!({ "eof": false }), "eof: expected true"),
        (json!({ "what": 1 }), "unknown variant `what`"),
        (json!({ "stdin": "a", "eof": true }), ""),
        (json!([]), "an object"),
        (json!({}), ""),
    ];
    for (message, details) in refused {
        live.say(&message);
        let refusal = live.wait_for("refused");
        assert_eq!(refusal["error"], "Validation error");
        assert!(refusal["details"].as_str().unwrap().contains(details), "{message}: {refusal}");
    }
    live.socket.send(tungstenite::Message::binary(vec![1, 2])).unwrap();
    live.wait_for("refused");
    live.type_in("on\n");
    live.say(&json!({ "eof": true }));
    live.say(&json!({ "eof": true }));
    assert_eq!(live.result()["stdout"], "<on>\n");
    let first = [
        ("{}", "missing field `task`"),
        ("nonsense", ""),
        (r#"{"task": {}}"#, "task: missing field `command`"),
        (r#"{"task": {"command": "a", "stdin": "b"}}"#, "task.stdin: it comes by messages here"),
        (r#"{"task": {"command": "a", "tty": {"rows": 70000, "columns": 1}}}"#, "task.tty.rows"),
    ];
    for (message, details) in first {
        let mut live = Live::open(&server, &[]).unwrap();
        live.socket.send(tungstenite::Message::text(message)).unwrap();
        let error = live.next().unwrap();
        assert_eq!(error["event"], "error");
        assert!(error["details"].as_str().unwrap().contains(details), "{message}: {error}");
        assert_eq!(live.closed(), 1008);
    }
    server.get("/execute/live").is_error(400, "Validation error", "GET /execute/live takes a WebSocket (RFC 6455)");
}

#[test]
fn a_result_that_is_more_than_a_message_may_be_is_told_so() {
    let env = [("FABER_SERVER__BUFFERS", "64MiB"), PATIENT[0], PATIENT[1]];
    let server = Server::start(&["--open-mode"], &env);
    // Of a NUL there are six characters in JSON.
    let task = json!({ "command": "head", "args": ["-c", "12M", "/dev/zero"], "resource_limits": { "max_output_size": 13 << 20 } });
    let mut live = Live::start(&server, &task);
    live.wait_for("error");
    assert_eq!(live.closed(), 1009);
    assert_eq!(server.shell("echo on"), "on");
}

#[test]
fn who_may_not_ask_gets_no_socket() {
    let (key, hash) = new_key();
    let env = [("FABER_AUTH__KEYS", hash.as_str()), ("FABER_SERVER__CORS_ORIGINS", "https://here.example")];
    let server = Server::start(&[], &env);
    let bearer = format!("Bearer {key}");
    assert_eq!(Live::open(&server, &[]).err(), Some(401));
    assert_eq!(Live::open(&server, &[("Authorization", "Bearer wrong")]).err(), Some(403));
    assert_eq!(
        Live::open(&server, &[("Authorization", &bearer), ("Origin", "https://there.example")]).err(),
        Some(403)
    );
    let mut live = Live::open(&server, &[("Authorization", &bearer), ("Origin", "https://here.example")]).unwrap();
    live.say(&json!({ "task": { "command": "echo", "args": ["in"] } }));
    assert_eq!(live.result()["stdout"], "in\n");
}
