//! Each line of the API page.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{FABER, Server, eventually, new_key, running};

const NO_LIMIT: (&str, &str) = ("FABER_RATE_LIMIT__ENABLED", "false");

fn fields(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn health_needs_no_key_and_has_the_pages_fields() {
    let (_, keys) = new_key();
    let server = Server::start(&[], &[("FABER_AUTH__KEYS", &keys)]);
    let answer = server.get("/health");
    let health = answer.json();
    assert_eq!((answer.status, &health["status"], &health["version"]), (200, &json!("healthy"), &json!("0.1.0")));
    let timestamp = humantime::parse_rfc3339(health["timestamp"].as_str().unwrap()).unwrap();
    assert!(timestamp.elapsed().unwrap().as_secs() < 60);
    assert_eq!(fields(&health), BTreeSet::from(["status", "timestamp", "version"]));
}

#[test]
fn the_pages_request_gets_the_pages_response() {
    let task = json!({
        "command": "echo", "args": ["hello", "world"], "env": { "CUSTOM_VAR": "value" },
        "files": { "script.py": "print('Hello from Python')" },
        "resource_limits": { "memory_limit": 536870912, "cpu_time_limit": 30000000000u64, "wall_time_limit": 60000000000u64,
            "max_processes": 10, "max_file_descriptors": 100, "max_output_size": 1048576 }
    });
    let answer = Server::start_open().execute(json!([task]));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "application/json");
    let body = answer.json();
    assert_eq!(fields(&body), BTreeSet::from(["results"]));
    let result = &body["results"][0];
    let page = json!({ "status": "Success", "exit_code": 0, "stdout": "hello world\n", "stderr": null, "error": null });
    for (field, value) in page.as_object().unwrap() {
        assert_eq!(&result[field], value, "{field}");
    }
    let usage = &result["resource_usage"];
    assert_eq!(
        fields(usage),
        BTreeSet::from([
            "cpu_time_ns",
            "wall_time_ns",
            "memory_peak_bytes",
            "memory_current_bytes",
            "process_count",
            "file_descriptors",
            "io_read_bytes",
            "io_write_bytes",
            "system_time_ns",
            "user_time_ns",
        ])
    );
    assert!(usage.as_object().unwrap().values().all(Value::is_u64));
    for field in ["cpu_time_ns", "wall_time_ns", "memory_peak_bytes"] {
        assert!(usage[field].as_u64().unwrap() > 0, "{field}");
    }
    assert_eq!((&usage["process_count"], &usage["io_write_bytes"]), (&json!(1), &json!(12)));
    // The page's three; on a slow machine a look finds the libraries that are being opened too.
    assert!((3..=5).contains(&usage["file_descriptors"].as_u64().unwrap()), "{usage}");
    let flags = json!({ "cpu_time_limit_exceeded": false, "wall_time_limit_exceeded": false, "process_limit_exceeded": false,
        "file_descriptor_limit_exceeded": false, "output_limit_exceeded": false });
    assert_eq!(result["resource_limits_exceeded"], flags);
}

#[test]
fn all_seven_statuses_come_in_the_order_of_the_tasks() {
    let bash =
        |script: &str, limits: Value| json!({ "command": "bash", "args": ["-c", script], "resource_limits": limits });
    let tasks = json!([
        { "command": "true" },
        bash("exit 3", json!({})),
        { "command": "true", "image": "nowhere" },
        bash("yes", json!({ "max_output_size": 10 })),
        bash("sleep 60", json!({ "wall_time_limit": 200_000_000 })),
        bash("exec tail /dev/zero", json!({ "memory_limit": 16 << 20 })),
        bash("while :; do :; done", json!({ "cpu_time_limit": 200_000_000 })),
    ]);
    let body = Server::start_open().execute(tasks).json();
    let statuses: Vec<&str> =
        body["results"].as_array().unwrap().iter().map(|r| r["status"].as_str().unwrap()).collect();
    assert_eq!(
        statuses,
        [
            "Success",
            "Failure",
            "NotExecuted",
            "ResourceLimitExceeded",
            "Timeout",
            "MemoryLimitExceeded",
            "CpuLimitExceeded"
        ]
    );
    assert_eq!(body["results"][1]["exit_code"], 3);
    let refused = &body["results"][2];
    assert_eq!(
        (&refused["exit_code"], &refused["error"]),
        (&Value::Null, &json!("unknown image \"nowhere\": this server has host"))
    );
}

#[test]
fn commands_that_cannot_run_say_why() {
    let server = Server::start_open();
    let code_and_error = |task| {
        let result = server.run(task);
        assert_eq!(result["status"], "Failure");
        (result["exit_code"].as_i64().unwrap(), result["error"].as_str().unwrap().to_owned())
    };
    assert_eq!(code_and_error(json!({ "command": "no-such" })), (127, "command not found in the image".into()));
    assert_eq!(code_and_error(json!({ "command": "./no-such" })), (127, "command not found in the image".into()));
    assert_eq!(code_and_error(json!({ "command": "/etc" })).0, 126);
    assert_eq!(code_and_error(json!({ "command": "./text", "files": { "text": "hello" } })).0, 126);
    let script = |script: &str| json!({ "command": "./a", "files": { "a": script } });
    let because = |why: &str| (126, format!("command cannot be executed: {why}"));
    let interpreter = |name: &str, why: &str| because(&format!("the interpreter {name} named in its #! line {why}"));
    let windows = "is not there; its lines end in \\r\\n, as on Windows, and have to end in \\n";
    assert_eq!(code_and_error(script("#!/bin/sh\r\necho hi\r\n")), interpreter("/bin/sh\\r", windows));
    assert_eq!(code_and_error(script("#!/opt/none/perl -w\n")), interpreter("/opt/none/perl", "is not there"));
    assert_eq!(
        code_and_error(script("#!/etc/passwd\n")),
        interpreter(
            "/etc/passwd",
            "cannot be executed: permission denied: its mode is 0644, without the right to execute it"
        )
    );
    let of_another = json!({ "command": "./a", "files": { "a": "#!./b\n", "b": "#!/none\n" } });
    assert_eq!(
        code_and_error(of_another),
        interpreter("./b", "cannot be executed: the interpreter /none named in its #! line is not there")
    );
    let unmarked = json!({ "command": "./a", "files": { "a": { "text": "#!/bin/sh\n", "mode": "0644" } } });
    assert_eq!(
        code_and_error(unmarked),
        because("permission denied: its mode is 0644, without the right to execute it")
    );
    assert_eq!(code_and_error(json!({ "command": "/etc" })), because("it is a directory"));
    let link = json!({ "command": "./a", "files": { "a": { "symlink": "b" } } });
    assert_eq!(code_and_error(link), (127, "command not found: it is a link to b".into()));
    let no_program = |why: &str| (126, format!("command is not a program: {why}"));
    assert_eq!(code_and_error(script("")), no_program("it is empty"));
    assert_eq!(code_and_error(script("echo")), no_program("it needs a '#!' line or an executable format"));
    // Programs for other C libraries and other machines, of true's own bytes.
    let program = std::fs::read("/usr/bin/true").unwrap();
    let bytes = |bytes: &[u8]| json!({ "command": "./a", "files": { "a": { "base64": STANDARD.encode(bytes) } } });
    let loader =
        if cfg!(target_arch = "x86_64") { "/lib64/ld-linux-x86-64.so.2" } else { "/lib/ld-linux-aarch64.so.1" };
    let at = program.windows(loader.len()).position(|window| window == loader.as_bytes()).unwrap();
    let mut musl = program.clone();
    musl[at..at + 13].copy_from_slice(b"/lib/ld-musl\0");
    let error = code_and_error(bytes(&musl));
    assert_eq!(error.0, 126);
    assert!(error.1.contains("its loader /lib/ld-musl is not in the image"), "{error:?}");
    let mut foreign = program;
    foreign[18..20].copy_from_slice(&[243, 0]);
    let arch = std::env::consts::ARCH;
    assert_eq!(
        code_and_error(bytes(&foreign)),
        no_program(&format!("it is one for riscv64, and this machine is {arch}"))
    );
    let killed = code_and_error(json!({ "command": "bash", "args": ["-c", "kill -SEGV $$"] }));
    assert_eq!(killed, (139, "killed by signal 11 (SIGSEGV)".into()));
}

/// As docker and podman have it.
#[test]
fn a_command_is_found_in_the_path_of_its_env() {
    let server = Server::start_open();
    let tool = "#!/bin/sh\necho ran\n";
    let run = |path: &str| {
        let task =
            json!({ "command": "tool", "env": { "PATH": path }, "files": { "bin/tool": tool, "other/tool/x": "" } });
        server.run(task)
    };
    // Relative entries, and empty ones, are of the place where the task starts.
    for path in ["/workspace/bin:/usr/bin", "/none:bin", "/usr/bin:./bin", "/workspace/other:bin"] {
        assert_eq!(run(path)["stdout"], "ran\n", "{path}");
    }
    let here = json!({ "command": "tool", "env": { "PATH": ":/usr/bin" }, "files": { "tool": tool } });
    assert_eq!(server.run(here)["stdout"], "ran\n");
    let absent = run("/usr/bin:/opt");
    assert_eq!(absent["exit_code"], 127);
    assert_eq!(absent["error"], "command not found in the PATH of its env, /usr/bin:/opt");
    // Whoever brings a PATH brings all of it.
    let image = server.run(json!({ "command": "true", "env": { "PATH": "/workspace/bin" } }));
    assert_eq!(image["error"], "command not found in the PATH of its env, /workspace/bin");
    let broken = json!({ "command": "tool", "env": { "PATH": "bin:/usr/bin" }, "files": { "bin/tool": "#!/none\n" } });
    assert_eq!(
        server.run(broken)["error"],
        "command bin/tool cannot be executed: the interpreter /none named in its #! line is not there"
    );
    // A path is a path, and other variables change nothing.
    let path = json!({ "command": "/usr/bin/true", "env": { "PATH": "" } });
    assert_eq!(server.run(path)["status"], "Success");
    assert_eq!(server.run(json!({ "command": "true", "env": { "A": "b" } }))["status"], "Success");
}

#[test]
fn files_land_in_the_workspace_and_env_is_added() {
    let server = Server::start_open();
    let result = server.run(json!({
        "command": "bash", "args": ["-c", "pwd; cat a/b/c.txt; echo $CUSTOM_VAR; ls -ld a | cut -c1-10"],
        "files": { "a/b/c.txt": "deep\n", "top": "" }, "env": { "CUSTOM_VAR": "custom_value" }
    }));
    assert_eq!(result["stdout"], "/workspace\ndeep\ncustom_value\ndrwxr-xr-x\n", "{result}");
}

#[test]
fn output_that_is_not_utf8_is_decoded() {
    let result = Server::start_open().run(json!({ "command": "printf", "args": ["a\\377b"] }));
    assert_eq!(result["stdout"], "a\u{fffd}b");
}

#[test]
fn errors_have_the_pages_words() {
    let (key, keys) = new_key();
    let server = Server::start(&[], &[("FABER_AUTH__KEYS", &keys), NO_LIMIT, ("FABER_SERVER__BODY_LIMIT", "1K")]);
    let bearer = format!("Bearer {key}");
    let good = r#"{"tasks": [{"command": "true"}]}"#;
    let post = |body: &str, authorization: &str| server.post(body, &[("Authorization", authorization)]);

    assert_eq!(post(good, &bearer).status, 200);
    let empty = r#"{"tasks": [{"command": ""}]}"#;
    post(empty, &bearer).is_error(400, "Validation error", "Invalid command: command cannot be empty");
    let missing = server.post(good, &[]);
    missing.is_error(401, "Authentication required", "API key is required for this endpoint");
    assert_eq!(missing.header("www-authenticate"), "Bearer realm=\"faber\"");
    post(good, "Basic abc").is_error(401, "Authentication required", "API key is required for this endpoint");
    post(good, "Bearer wrong").is_error(403, "Access denied", "Invalid API key");
    post(&" ".repeat(1025), &bearer).is_error(413, "Request too large", "Request body exceeds maximum size limit");
    let text = server.post(good, &[("Authorization", &bearer), ("Content-Type", "text/plain")]);
    text.is_error(415, "Unsupported media type", "The Content-Type must be application/json");
    server.get("/nothing").is_error(404, "Not found", "There is nothing at this path");
    let method = server.get("/execute");
    method.is_error(405, "Method not allowed", "This path does not answer to this method");
    assert_eq!(method.header("allow"), "POST");
    assert!(!server.log().contains(&key), "keys are not logged");
}

#[test]
fn bodies_that_are_too_large_or_encoded_are_refused_before_they_are_sent() {
    use std::io::{Read, Write};
    let server = Server::start_open();
    for (header, status) in [("Content-Length: 99999999", "413"), ("Content-Encoding: gzip", "415")] {
        let mut stream = std::net::TcpStream::connect(server.url().strip_prefix("http://").unwrap()).unwrap();
        let head = "POST /execute HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json";
        stream.write_all(format!("{head}\r\n{header}\r\nExpect: 100-continue\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{header}: {answer}");
    }
}

#[test]
fn what_requests_hold_in_memory_is_bounded() {
    let env = [NO_LIMIT, ("FABER_SERVER__BUFFERS", "16M"), ("FABER_SERVER__BODY_LIMIT", "1M")];
    let server = Server::start(&["--open-mode"], &env);
    let task = |seconds: &str, output: u64| {
        json!([{ "command": "sleep", "args": [seconds],
        "resource_limits": { "max_output_size": output << 20 } }])
    };
    let never = server.execute(task("0", 9));
    assert_eq!(never.status, 400);
    assert!(never.json()["details"].as_str().unwrap().contains("8 MiB at most"), "{}", never.text);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.execute(task("1.41", 6)).status);
        eventually("the first one runs", || running(&["sleep", "1.41"]).len() == 1);
        assert_eq!(server.execute(task("0", 6)).status, 503);
        assert_eq!(server.execute(task("0", 1)).status, 200);
        assert_eq!(first.join().unwrap(), 200);
    });
    eventually("it is given back", || server.execute(task("0", 6)).status == 200);
}

#[test]
fn a_body_without_a_length_is_limited_too() {
    use std::io::{Read, Write};
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_SERVER__BODY_LIMIT", "1K")]);
    let mut stream = std::net::TcpStream::connect(server.url().strip_prefix("http://").unwrap()).unwrap();
    let head = "POST /execute HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("400\r\n{}\r\n", " ".repeat(1024));
    stream.write_all(format!("{head}{chunk}{chunk}0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[test]
fn rate_limits_count_by_address() {
    let server = Server::start(&["--open-mode"], &[("FABER_RATE_LIMIT__PER_IP_PER_MINUTE", "2")]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for (body, status, remaining) in [(r#"{"tasks": [{"command": "true"}]}"#, 200, "1"), ("{", 400, "0")] {
        let answer = server.post(body, &[]);
        assert_eq!((answer.status, answer.header("x-ratelimit-limit")), (status, "2"));
        assert_eq!(answer.header("x-ratelimit-remaining"), remaining);
        let reset: u64 = answer.header("x-ratelimit-reset").parse().unwrap();
        assert!((now..now + 120).contains(&reset), "{reset}");
    }
    let refused = server.post("{", &[]);
    refused.is_error(429, "Rate limit exceeded", "Too many requests, please try again later");
    assert_eq!(refused.header("x-ratelimit-remaining"), "0");
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    // Neither health nor the documentation is limited.
    assert_eq!(server.get("/health").status, 200);
    // No proxy is trusted, so the header names nobody.
    assert_eq!(server.post("{", &[("X-Forwarded-For", "192.0.2.9")]).status, 429);
}

#[test]
fn rate_limits_count_by_key_and_behind_a_trusted_proxy() {
    let (key, keys) = new_key();
    let env = [
        ("FABER_AUTH__KEYS", keys.as_str()),
        ("FABER_RATE_LIMIT__PER_KEY_PER_HOUR", "2"),
        ("FABER_RATE_LIMIT__PER_IP_PER_MINUTE", "3"),
        ("FABER_SERVER__TRUSTED_PROXIES", "127.0.0.0/8"),
    ];
    let server = Server::start(&[], &env);
    let bearer = format!("Bearer {key}");
    let ask = |client: &str| server.post("{", &[("Authorization", &bearer), ("X-Forwarded-For", client)]);
    let first = ask("192.0.2.1");
    // The tighter of the two is the key's.
    assert_eq!((first.header("x-ratelimit-limit"), first.header("x-ratelimit-remaining")), ("2", "1"));
    assert_eq!(ask("192.0.2.2").status, 400);
    assert_eq!(ask("192.0.2.3").status, 429);
    // Without a key only the address counts, and each client has its own.
    let other = server.post("{", &[("X-Forwarded-For", "192.0.2.4")]);
    assert_eq!((other.status, other.header("x-ratelimit-remaining")), (401, "2"));
}

#[test]
fn pages_of_other_origins_may_ask_where_the_operator_says_so() {
    const PREFLIGHT: [(&str, &str); 3] = [
        ("Origin", "https://page.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization,content-type"),
    ];
    let task = r#"{"tasks": [{"command": "true"}]}"#;
    let without = Server::start_open();
    assert_eq!(without.send("OPTIONS", "/execute", b"", &PREFLIGHT).status, 405);
    assert!(!without.post(task, &PREFLIGHT[..1]).headers.contains_key("access-control-allow-origin"));
    drop(without);

    let file = tempfile::NamedTempFile::new().unwrap();
    let origins = |list: &str| std::fs::write(file.path(), format!("[server]\ncors_origins = {list}\n")).unwrap();
    origins("['https://page.example', 'http://localhost:3000']");
    let server = Server::start(&["--open-mode", "--config", file.path().to_str().unwrap()], &[]);
    let preflight = server.send("OPTIONS", "/execute", b"", &PREFLIGHT);
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (200, "https://page.example"));
    let allows = |header: &str, value: &str| {
        preflight.header(header).to_ascii_lowercase().split(',').any(|allowed| allowed.trim() == value)
    };
    assert!(["get", "post", "put", "delete"].iter().all(|method| allows("access-control-allow-methods", method)));
    assert!(
        ["authorization", "content-type", "x-api-key", "mcp-method"]
            .iter()
            .all(|name| allows("access-control-allow-headers", name))
    );
    // What a page may read: of errors too.
    for answer in [server.post(task, &PREFLIGHT[..1]), server.post("{", &PREFLIGHT[..1])] {
        assert_eq!(answer.header("access-control-allow-origin"), "https://page.example", "{}", answer.status);
        let exposed = answer.header("access-control-expose-headers").to_ascii_lowercase();
        for name in ["x-request-id", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"] {
            assert!(exposed.contains(name) && answer.headers.contains_key(name), "{name}: {exposed}");
        }
        assert!(!answer.headers.contains_key("access-control-allow-credentials"));
    }
    let stranger = [("Origin", "https://other.example"), PREFLIGHT[1]];
    let refused = server.send("OPTIONS", "/execute", b"", &stranger);
    assert!(!refused.headers.contains_key("access-control-allow-origin"), "{:?}", refused.headers);
    assert!(!server.post(task, &stranger[..1]).headers.contains_key("access-control-allow-origin"));
    // Who is no browser sees nothing of it.
    assert_eq!(server.send("OPTIONS", "/execute", b"", &[]).status, 405);
    // Read anew with the rest.
    origins("['*']");
    kill(Pid::from_raw(server.pid()), Signal::SIGHUP).unwrap();
    eventually("all may ask", || {
        let answer = server.send("OPTIONS", "/execute", b"", &stranger);
        answer.status == 200 && answer.headers.get("access-control-allow-origin").is_some_and(|origin| origin == "*")
    });
}

#[test]
fn rate_limits_can_be_switched_off() {
    let answer = Server::start_open().execute(json!([{ "command": "true" }]));
    assert!(!answer.headers.contains_key("x-ratelimit-limit"));
}

#[test]
fn a_full_queue_is_503_with_the_time_to_wait() {
    let env = [NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "1"), ("FABER_EXECUTION__QUEUE_LENGTH", "1")];
    let server = Server::start(&["--open-mode"], &env);
    let three = json!([{ "command": "true" }, { "command": "true" }, { "command": "true" }]);
    let refused = server.execute(three);
    refused.is_error(503, "Service unavailable", "All capacity is in use, please try again later");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    // All or nothing: two of them would have fit, and still do.
    assert_eq!(server.execute(json!([{ "command": "true" }, { "command": "true" }])).status, 200);
}

#[test]
fn a_thousand_tasks_of_one_key_are_not_ahead_of_anothers_one() {
    let ((flood, one), (single, other)) = (new_key(), new_key());
    let keys = format!("{}, {}", one.trim_end_matches(']'), other.trim_start_matches('[').replace("class", "judge"));
    let env = [
        NO_LIMIT,
        ("FABER_AUTH__KEYS", &keys),
        ("FABER_EXECUTION__CONCURRENCY", "1"),
        ("FABER_EXECUTION__MAX_TASKS", "1001"),
    ];
    let server = Server::start(&[], &env);
    let ask = |key: &str, body: &str| server.post(body, &[("Authorization", &format!("Bearer {key}"))]);
    // Five minutes, if all of it were run; it ends with its connection.
    let sleep = ["sleep", "0.31"];
    // Of little output, for all of which there is to be room.
    let task = json!({ "command": sleep[0], "args": [sleep[1]], "resource_limits": { "max_output_size": 1024 } });
    let body = json!({ "tasks": vec![task; 1001] }).to_string();
    let mut client = TcpStream::connect(server.url().strip_prefix("http://").unwrap()).unwrap();
    let head = format!(
        "POST /execute HTTP/1.1\r\nHost: faber\r\nAuthorization: Bearer {flood}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.write_all(head.as_bytes()).unwrap();
    eventually("the flood is taken", || !running(&sleep).is_empty());
    assert_eq!(ask(&flood, &body).status, 503, "it has no room for more");
    let answer = ask(&single, &json!({ "tasks": [{ "command": "echo", "args": ["mine"] }] }).to_string());
    assert_eq!(answer.json()["results"][0]["stdout"], "mine\n");
    client.set_nonblocking(true).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "the flood goes on");
}

#[test]
fn two_long_tasks_of_one_key_do_not_keep_others_out() {
    let ((greedy, one), (single, other)) = (new_key(), new_key());
    let keys = format!("{}, {}", one.trim_end_matches(']'), other.trim_start_matches('[').replace("class", "judge"));
    let env = [NO_LIMIT, ("FABER_AUTH__KEYS", &keys), ("FABER_EXECUTION__CONCURRENCY", "2")];
    let server = Server::start(&[], &env);
    let (url, sleep) = (server.url(), ["sleep", "97.1"]);
    let mut client = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    let body = json!({ "tasks": vec![json!({ "command": sleep[0], "args": [sleep[1]] }); 4] }).to_string();
    let head = format!(
        "POST /execute HTTP/1.1\r\nHost: faber\r\nAuthorization: Bearer {greedy}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.write_all(head.as_bytes()).unwrap();
    eventually("both places are taken", || running(&sleep).len() == 2);
    let echo = json!({ "tasks": [{ "command": "echo", "args": ["mine"] }] }).to_string();
    let answer = server.post(&echo, &[("Authorization", &format!("Bearer {single}"))]);
    assert_eq!(answer.json()["results"][0]["stdout"], "mine\n");
    assert_eq!(running(&sleep).len(), 2, "nobody had to end for it, and the greedy one has no more than there is");
}

#[test]
fn a_key_has_the_share_of_its_own() {
    let (key, keys) = new_key();
    let keys = keys.replace('}', ", places = 1 }");
    let env = [NO_LIMIT, ("FABER_AUTH__KEYS", keys.as_str()), ("FABER_EXECUTION__CONCURRENCY", "4")];
    let server = Server::start(&[], &env);
    let body = json!({ "tasks": vec![span(""); 3] }).to_string();
    let answer = server.post(&body, &[("Authorization", &format!("Bearer {key}"))]).json();
    let spans = spans_of(&answer);
    assert!(spans.iter().zip(&spans[1..]).all(|(one, next)| one.1 <= next.0), "{spans:?}");
}

/// A task that tells when it began and ended.
fn span(limits: &str) -> Value {
    let program = "import time; a = time.time(); time.sleep(0.2); print(a, time.time())";
    let limits: Value = serde_json::from_str(&format!("{{{limits}}}")).unwrap();
    json!({ "command": "python3", "args": ["-c", program], "resource_limits": limits })
}

fn spans_of(answer: &Value) -> Vec<(f64, f64)> {
    let results = answer["results"].as_array().unwrap().iter();
    let of = |result: &Value| {
        let text = result["stdout"].as_str().unwrap_or_else(|| panic!("{result}"));
        let (begin, end) = text.trim().split_once(' ').unwrap();
        (begin.parse().unwrap(), end.parse().unwrap())
    };
    results.map(of).collect()
}

#[test]
fn a_large_task_is_passed_by_small_ones_but_not_for_ever() {
    let env = [
        NO_LIMIT,
        ("FABER_EXECUTION__CONCURRENCY", "4"),
        ("FABER_EXECUTION__MEMORY_BUDGET", "200M"),
        ("FABER_EXECUTION__QUEUE_TIMEOUT", "10m"),
        ("FABER_SHARES__MEMORY", "100%"),
    ];
    let server = Server::start(&["--open-mode"], &env);
    let (small, large) = (span("\"memory_limit\": 50331648"), span("\"memory_limit\": 188743680"));
    let mut tasks = vec![small; 40];
    tasks.insert(1, large);
    let spans = spans_of(&server.execute(json!(tasks)).json());
    let (begin, end) = spans[1];
    let others = spans.iter().enumerate().filter(|(at, _)| *at != 1).map(|(_, span)| span);
    let before = others.clone().filter(|span| span.0 < begin).count();
    assert!(before > 1, "others need not wait while there is room for them");
    // Those that ran already, or were behind none that was passed, and sixteen that passed.
    assert!(before <= 16 + 4, "{before} were before it");
    assert!(others.clone().all(|span| span.1 <= begin || span.0 >= end), "there is no room beside it: {spans:?}");
}

#[test]
fn a_task_whose_turn_does_not_come_in_time_is_not_executed() {
    let env = [NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "1"), ("FABER_EXECUTION__QUEUE_TIMEOUT", "1s")];
    let server = Server::start(&["--open-mode"], &env);
    // The first must not wait for its runner to come up.
    eventually("a task is run", || server.execute(json!([{ "command": "true" }])).status == 200);
    let sleep = json!({ "command": "sleep", "args": ["4"] });
    let body = server.execute(json!([sleep, { "command": "true" }])).json();
    assert_eq!(body["results"][0]["status"], "Success", "{body}");
    assert_eq!(body["results"][1]["status"], "NotExecuted");
    assert!(body["results"][1]["error"].as_str().unwrap().contains("for its turn"), "{body}");
}

#[test]
fn the_wall_clock_begins_with_the_task_not_with_the_queue() {
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "1")]);
    let sleep =
        json!({ "command": "sleep", "args": ["1"], "resource_limits": { "wall_time_limit": 6_000_000_000u64 } });
    let body = server.execute(json!(vec![sleep; 8])).json();
    for result in body["results"].as_array().unwrap() {
        assert_eq!(result["status"], "Success", "{result}");
    }
}

#[test]
fn tasks_beyond_the_memory_budget_wait() {
    let env = [NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "4"), ("FABER_EXECUTION__MEMORY_BUDGET", "100M")];
    let server = Server::start(&["--open-mode"], &env);
    // Two of them at once would be above the budget: so each sees the time of those before it.
    let program = "import time; a = time.time(); time.sleep(0.2); print(a, time.time())";
    let task =
        json!({ "command": "python3", "args": ["-c", program], "resource_limits": { "memory_limit": 60 << 20 } });
    let body = server.execute(json!(vec![task; 3])).json();
    let mut spans: Vec<(f64, f64)> = body["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| {
            let text = result["stdout"].as_str().unwrap_or_else(|| panic!("{result}"));
            let mut times = text.split_whitespace().map(|time| time.parse().unwrap());
            (times.next().unwrap(), times.next().unwrap())
        })
        .collect();
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{spans:?}");
    // Nobody may ask for more than everybody has.
    let refused = server.run(json!({ "command": "true", "resource_limits": { "memory_limit": 101 << 20 } }));
    assert_eq!(refused["status"], "NotExecuted");
}

#[test]
fn when_faber_itself_cannot_make_containers_the_answer_is_500() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "1")]);
    assert_eq!(server.execute(json!([{ "command": "true" }])).status, 200);
    // The keeper and its runners may open nothing any more; the front is as it was.
    let front = server.processes("front");
    for pid in server.processes("runner").into_iter().chain([server.pid()]) {
        let few = Rlimit { current: Some(16), maximum: Some(16) };
        prlimit(Pid::from_raw(pid), Resource::Nofile, few).unwrap();
    }
    eventually("an answer that says so", || {
        let answer = server.execute(json!([{ "command": "true" }]));
        let failed = answer.status == 500;
        if failed {
            answer.is_error(500, "Internal server error", "Failed to execute task");
        }
        failed
    });
    assert_eq!(server.processes("front"), front);
    // The operator finds the cause.
    assert!(server.log().contains("Too many open files"), "{}", server.log());
}

#[test]
fn connections_that_say_nothing_do_not_use_up_the_server() {
    let server = Server::start_after("ulimit -n 64", &["--open-mode"], &[NO_LIMIT]);
    assert_eq!(server.get("/health").status, 200);
    // Of many addresses, none with more than its share.
    let idle: Vec<_> = (0..100).map(|n| server.connect_from([127, 0, 0, 10 + n / 4])).collect();
    // As many as may are taken, and the others wait.
    let front = server.processes("front")[0];
    let descriptors = || std::fs::read_dir(format!("/proc/{front}/fd")).unwrap().count();
    eventually("the bound is reached", || descriptors() >= 42);
    // Four of the 64 are left for what else the front does.
    assert!(descriptors() <= 60, "{}", descriptors());
    drop(idle);
    assert_eq!(server.get("/health").status, 200);
    assert!(!server.log().contains("no connection can be accepted"), "{}", server.log());
}

#[test]
fn every_answer_carries_an_id_that_the_log_has_too() {
    let server = Server::start_open();
    let answer = server.post("{", &[("X-Request-Id", "my-id.1")]);
    assert_eq!(answer.header("x-request-id"), "my-id.1");
    let own = server.get("/health").header("x-request-id").to_owned();
    let strange = server.post("{", &[("X-Request-Id", "a b")]);
    assert_ne!(strange.header("x-request-id"), "a b");
    let log = server.log();
    assert!(log.contains("my-id.1") && log.contains(&own), "{log}");
}

#[test]
fn files_and_output_are_not_logged() {
    let server = Server::start_open();
    server.run(json!({ "command": "bash", "args": ["-c", "cat f; echo $SECRET-1"], "env": { "SECRET": "sesame" },
        "files": { "f": "sesame-2" } }));
    assert!(!server.log().contains("sesame"), "{}", server.log());
}

#[test]
fn the_documentation_is_there_and_can_be_switched_off() {
    let server = Server::start_open();
    assert_eq!(server.get("/swagger-ui").status, 200);
    let served = server.get("/api-docs/openapi.json").json();
    let printed = std::process::Command::new(FABER).arg("openapi").output().unwrap();
    assert_eq!(served, serde_json::from_slice::<Value>(&printed.stdout).unwrap());
    let without = Server::start(&["--open-mode"], &[("FABER_SERVER__SWAGGER", "false")]);
    assert_eq!([without.get("/swagger-ui").status, without.get("/api-docs/openapi.json").status], [404, 404]);
}

#[test]
fn serve_refuses_to_start_where_nobody_could_be_served() {
    let output = std::process::Command::new(FABER).args(["serve", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("faber key new") && text.contains("--open-mode"), "{text}");
}
