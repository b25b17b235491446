//! Clients that take all they can get: connections, time, memory. Others are served meanwhile, and the server stays small.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Server, eventually, memory_of, new_key, running};

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: faber\r\nConnection: close\r\n\r\n";

/// What comes until the end, or the connection's being reset.
fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn health_from(server: &Server, from: [u8; 4]) -> String {
    let mut stream = server.connect_from(from);
    let _ = stream.write_all(HEALTH);
    rest(stream)
}

#[test]
fn one_address_cannot_take_all_connections() {
    let server = Server::start(&["--open-mode"], &[("FABER_SERVER__CONNECTIONS_PER_IP", "500")]);
    let sockets: Vec<TcpStream> = (0..4000)
        .map(|_| {
            let mut socket = server.connect_from([127, 0, 0, 1]);
            let _ = socket.write_all(b"G");
            socket
        })
        .collect();
    let begun = Instant::now();
    assert!(health_from(&server, [127, 0, 0, 2]).starts_with("HTTP/1.1 200 "));
    println!("another address is served after {:?}", begun.elapsed());
    // It is told, unless the connection is reset before it has looked.
    let refused = health_from(&server, [127, 0, 0, 1]);
    assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(!server.processes("front").is_empty());
    drop(sockets);
    eventually("its share again", || health_from(&server, [127, 0, 0, 1]).starts_with("HTTP/1.1 200 "));
}

/// Sends `head`, then a byte now and then, until the server has enough of it: what it said, and when.
fn trickle(server: &Server, head: &str, byte: &str) -> (String, Duration) {
    let mut stream = server.connect_from([127, 0, 0, 1]);
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let (begun, mut answer) = (Instant::now(), Vec::new());
    loop {
        let is_over = stream.write_all(byte.as_bytes()).is_err();
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&bytes[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !is_over => {}
            Err(_) => break,
        }
    }
    (String::from_utf8_lossy(&answer).into_owned(), begun.elapsed())
}

#[test]
fn whoever_sends_a_byte_now_and_then_is_not_waited_for() {
    let server = Server::start_open();
    let cases = [
        ("a head", "GET /health HTTP/1.1\r\nX: ", ""),
        (
            "a task",
            "POST /execute HTTP/1.1\r\nHost: f\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n{",
            "408",
        ),
        ("a blob", "PUT /blobs HTTP/1.1\r\nHost: f\r\nContent-Length: 9999\r\n\r\n", "408"),
        ("a chunked blob", "PUT /blobs HTTP/1.1\r\nHost: f\r\nTransfer-Encoding: chunked\r\n\r\n", "408"),
    ];
    std::thread::scope(|scope| {
        for (name, head, status) in cases {
            let server = &server;
            scope.spawn(move || {
                let byte = if name.starts_with("a chunked") { "1\r\nx\r\n" } else { " " };
                let (answer, after) = trickle(server, head, byte);
                println!("{name} after {after:?}");
                assert!(
                    answer.starts_with(&format!("HTTP/1.1 {status}")) || answer.is_empty() && status.is_empty(),
                    "{name}: {answer}"
                );
                assert!(after > Duration::from_secs(25) && after < Duration::from_secs(45), "{name}: {after:?}");
            });
        }
    });
}

/// An answer's status and bytes, as they come; chunks undone.
fn execute_from(server: &Server, from: [u8; 4], body: &str) -> (u16, Vec<u8>) {
    execute_then(server, from, body, || ())
}

/// The same of a client that does something else before it reads on, once the answer begins.
fn execute_then(server: &Server, from: [u8; 4], body: &str, begins: impl FnOnce()) -> (u16, Vec<u8>) {
    let mut stream = server.connect_from(from);
    let head = "POST /execute HTTP/1.1\r\nHost: faber\r\nConnection: close\r\nContent-Type: application/json";
    stream.write_all(format!("{head}\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes()).unwrap();
    // Whoever is refused early hears so before it has sent all.
    let _ = stream.write_all(body.as_bytes());
    stream.set_read_timeout(Some(Duration::from_secs(150))).unwrap();
    let mut bytes = vec![0];
    if stream.read_exact(&mut bytes).is_err() {
        bytes.clear();
    }
    begins();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(bytes.len());
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = bytes.get(end + 4..).unwrap_or_default();
    (status, if head.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_vec() })
}

/// RFC 9112 section 7.1.
fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 2 + size + 2..];
    }
}

const NO_LIMIT: (&str, &str) = ("FABER_RATE_LIMIT__ENABLED", "false");
const PATIENT: (&str, &str) = ("FABER_EXECUTION__QUEUE_TIMEOUT", "10m");

/// A task's own bytes as an answer has them, read with little memory: 16 MiB of NULs are 96 MiB of JSON.
fn nuls_in(answer: &[u8]) -> usize {
    let start = answer.windows(10).position(|window| window == b"\"stdout\":\"").unwrap() + 10;
    answer[start..].chunks_exact(6).take_while(|escape| *escape == b"\\u0000").count()
}

#[test]
fn the_front_holds_what_tasks_wrote_once_however_long_it_is_in_json() {
    const BUDGET: u64 = 160 << 20;
    let env = [NO_LIMIT, PATIENT, ("FABER_SERVER__BUFFERS", "160M")];
    let server = Server::start(&["--open-mode"], &env);
    let front = server.front();
    let before = memory_of(front, "VmHWM");
    let limits = json!({ "max_output_size": 16 << 20, "memory_limit": 64 << 20 });
    let body =
        json!({ "tasks": [{ "command": "head", "args": ["-c", "16777216", "/dev/zero"], "resource_limits": limits }] });
    let body = body.to_string();
    // Nobody reads on before everybody's answer begins: until then all of them are held.
    let all_begin = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for client in 0..8 {
            let (server, body, all_begin) = (&server, &body, &all_begin);
            scope.spawn(move || {
                let begins = || {
                    if all_begin.wait().is_leader() {
                        println!("holding all answers the front has {} MiB", memory_of(front, "VmRSS") >> 20);
                    }
                };
                let (status, answer) = execute_then(server, [127, 0, 0, 10 + client], body, begins);
                assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
                assert_eq!(nuls_in(&answer), 16 << 20);
            });
        }
    });
    let grown = memory_of(front, "VmHWM") - before;
    println!("8 x 16 MiB of NULs: the front has grown by {} MiB, with a budget of {} MiB", grown >> 20, BUDGET >> 20);
    // One runner's report is there twice while it is read, for each of the tasks that run at once.
    assert!(grown < BUDGET + (64 << 20), "{grown}");
    eventually("it is given back", || memory_of(front, "VmRSS") < before + (48 << 20));
    println!("and holds {} MiB afterwards, {} MiB before", memory_of(front, "VmRSS") >> 20, before >> 20);
}

#[test]
fn what_a_body_takes_when_it_is_read_counts() {
    let env = [NO_LIMIT, ("FABER_SERVER__BUFFERS", "128M"), ("FABER_SERVER__BODY_LIMIT", "8M")];
    let server = Server::start(&["--open-mode"], &env);
    let front = server.front();
    let before = memory_of(front, "VmHWM");
    let many = |value: &str, bytes: usize| vec![value; bytes / (value.len() + 1)].join(",");
    let bodies = [
        ("arguments", format!(r#"{{"tasks":[{{"command":"true","args":[{}]}}]}}"#, many(r#""""#, 7 << 20))),
        ("tasks", format!(r#"{{"tasks":[{}]}}"#, many(r#"{"command":"a"}"#, 7 << 20))),
        ("connections", format!(r#"{{"tasks":[{{"command":"true"}}],"connect":[{}]}}"#, many(r#"["",""]"#, 7 << 20))),
    ];
    for (name, body) in &bodies {
        let (status, answer) = execute_from(&server, [127, 0, 0, 1], body);
        assert_eq!(status, 413, "{name}: {}", String::from_utf8_lossy(&answer));
        assert!(String::from_utf8_lossy(&answer).contains("this server has for one client"), "{name}");
    }
    // As many as there is room for are read, from several clients at once.
    let body = format!(r#"{{"tasks":[{{"command":"true","args":[{}]}}]}}"#, many(r#""""#, 1 << 20));
    std::thread::scope(|scope| {
        for client in 0..8 {
            let (server, body) = (&server, &body);
            scope.spawn(move || assert!([200, 503].contains(&execute_from(server, [127, 0, 0, 10 + client], body).0)));
        }
    });
    let grown = memory_of(front, "VmHWM") - before;
    println!("bodies of many values: the front has grown by {} MiB, with a budget of 128 MiB", grown >> 20);
    assert!(grown < (128 + 32) << 20, "{grown}");
    assert_eq!(server.shell("echo serving"), "serving");
}

#[test]
fn a_client_that_asks_for_all_buffers_leaves_room_for_others() {
    let env = [NO_LIMIT, PATIENT, ("FABER_SERVER__BUFFERS", "512M"), ("FABER_EXECUTION__CONCURRENCY", "1")];
    let server = Server::start(&["--open-mode"], &env);
    let limits = json!({ "max_output_size": 16 << 20 });
    let body = |seconds: &str| {
        json!({ "tasks": [{ "command": "sleep", "args": [seconds], "resource_limits": limits }] }).to_string()
    };
    let greedy = body("62.2");
    let mut asked = Vec::new();
    for _ in 0..376 {
        let mut stream = server.connect_from([127, 0, 0, 1]);
        let head = "POST /execute HTTP/1.1\r\nHost: faber\r\nContent-Type: application/json";
        write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{greedy}", greedy.len()).unwrap();
        asked.push(stream);
    }
    eventually("its first one runs", || running(&["sleep", "62.2"]).len() == 1);
    eventually("it has no more room", || execute_from(&server, [127, 0, 0, 1], &body("0")).0 == 503);
    // Another one's task waits for its turn, which comes when the first is over.
    std::thread::scope(|scope| {
        let other = scope.spawn(|| execute_from(&server, [127, 0, 0, 2], &body("0.2")));
        while !other.is_finished() {
            for pid in running(&["sleep", "62.2"]) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
            std::thread::yield_now();
        }
        let (status, answer) = other.join().unwrap();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["results"][0]["status"], "Success", "{answer}");
    });
    drop(asked);
    eventually("all is given back", || execute_from(&server, [127, 0, 0, 1], &body("0")).0 == 200);
}

#[test]
fn a_small_answer_has_a_length_and_a_large_one_comes_in_chunks() {
    let server = Server::start_open();
    for (bytes, is_small) in [(0, true), (2000, true), (60_000, true), (70_000, false), (900_000, false)] {
        let script = format!("head -c {bytes} /dev/zero | tr '\\0' x; printf '\"\\\\/0\"\\377' >&2");
        let answer = server.execute(json!([{ "command": "bash", "args": ["-c", script] }]));
        assert_eq!(answer.headers.contains_key("content-length"), is_small, "{bytes}: {:?}", answer.headers);
        let result = &answer.json()["results"][0];
        assert_eq!(result["stdout"].as_str().unwrap_or_default(), "x".repeat(bytes));
        assert_eq!(result["stderr"], "\"\\/0\"\u{fffd}", "what looks like a mark is none");
    }
}

/// Clients as people write them, which send all of a body before they look for an answer. Each reads what to ask from its
/// standard input, and prints a status a line.
const CLIENTS: [(&str, &str, &str); 4] = [
    (
        "python3",
        "http_client.py",
        "import sys, json, http.client
for case in json.load(sys.stdin):
    connection = http.client.HTTPConnection(case['host'], timeout=60)
    connection.request(case['method'], case['path'], b' ' * case['size'], case['headers'])
    print(connection.getresponse().status)",
    ),
    (
        "python3",
        "urllib_request.py",
        "import sys, json, urllib.request, urllib.error
for case in json.load(sys.stdin):
    url = 'http://' + case['host'] + case['path']
    request = urllib.request.Request(url, b' ' * case['size'], case['headers'], method=case['method'])
    try:
        print(urllib.request.urlopen(request, timeout=60).status)
    except urllib.error.HTTPError as error:
        print(error.code)",
    ),
    (
        "node",
        "fetch.mjs",
        "import fs from 'node:fs';
for (const {method, host, path, size, headers} of JSON.parse(fs.readFileSync(0)))
    console.log((await fetch(`http://${host}${path}`, {method, headers, body: Buffer.alloc(size, 32)})).status);",
    ),
    (
        "java",
        "Client.java",
        r#"import java.net.URI;
import java.net.http.*;
import java.util.regex.*;
public class Client {
    public static void main(String[] args) throws Exception {
        String all = new String(System.in.readAllBytes());
        HttpClient client = HttpClient.newHttpClient();
        Matcher cases = Pattern.compile("\\{\"method\":\"(.*?)\",\"host\":\"(.*?)\",\"path\":\"(.*?)\",\"size\":(.*?),\"headers\":\\{(.*?)\\}\\}").matcher(all);
        while (cases.find()) {
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create("http://" + cases.group(2) + cases.group(3)));
            Matcher headers = Pattern.compile("\"(.*?)\":\"(.*?)\"").matcher(cases.group(5));
            while (headers.find()) request.header(headers.group(1), headers.group(2));
            byte[] body = new byte[Integer.parseInt(cases.group(4))];
            request.method(cases.group(1), HttpRequest.BodyPublishers.ofByteArray(body));
            System.out.println(client.send(request.build(), HttpResponse.BodyHandlers.ofString()).statusCode());
        }
    }
}"#,
    ),
];

#[test]
fn whoever_sends_a_large_body_that_is_refused_reads_why() {
    let (key, keys) = new_key();
    let server = Server::start(&[], &[NO_LIMIT, ("FABER_AUTH__KEYS", &keys)]);
    let limited = Server::start(&["--open-mode"], &[("FABER_RATE_LIMIT__PER_IP_PER_MINUTE", "1")]);
    limited.post("{", &[]);
    let full = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_SERVER__CONNECTIONS_PER_IP", "1")]);
    let mut only = full.connect_from([127, 0, 0, 1]);
    only.write_all(b"G").unwrap();
    let bearer = format!("Bearer {key}");
    let host = |server: &Server| server.url().strip_prefix("http://").unwrap().to_owned();
    let case =
        |server: &Server, method: &str, path: &str, megabytes: u64, authorization: &str, kind: &str, status: u16| {
            let headers = match authorization {
                "" => json!({ "Content-Type": kind }),
                _ => json!({ "Content-Type": kind, "Authorization": authorization }),
            };
            let size = megabytes * 1_000_000;
            (json!({ "method": method, "host": host(server), "path": path, "size": size, "headers": headers }), status)
        };
    let json = "application/json";
    let cases = [
        case(&server, "POST", "/execute", 5, &bearer, "text/plain", 415),
        case(&server, "POST", "/run", 5, &bearer, json, 404),
        case(&server, "PUT", "/execute", 5, &bearer, json, 405),
        case(&server, "POST", "/execute", 5, "", json, 401),
        case(&server, "POST", "/execute", 5, "Bearer wrong", json, 403),
        case(&server, "POST", "/judge", 5, "Bearer wrong", json, 403),
        case(&server, "PUT", "/blobs/x", 5, &bearer, json, 400),
        case(&server, "POST", "/execute", 12, &bearer, json, 413),
        case(&server, "POST", "/execute", 60, &bearer, json, 413),
        case(&limited, "POST", "/execute", 5, "", json, 429),
        case(&full, "POST", "/execute", 5, "", json, 503),
    ];
    let asked = Value::from_iter(cases.iter().map(|(case, _)| case.clone())).to_string();
    let expected: Vec<u16> = cases.iter().map(|(_, status)| *status).collect();
    let dir = tempfile::tempdir().unwrap();
    for (program, file, text) in CLIENTS {
        // A runtime alone, without the compiler, does not run Java's source.
        let lacks = match program {
            "java" => !Command::new("javac").arg("-version").output().is_ok_and(|output| output.status.success()),
            _ => Command::new(program).arg("--version").output().is_err(),
        };
        if lacks {
            println!("NOT CHECKED, since it is not installed here: {program} ({file})");
            continue;
        }
        std::fs::write(dir.path().join(file), text).unwrap();
        let mut client = Command::new(program);
        client.arg(dir.path().join(file)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = client.spawn().unwrap();
        client.stdin.take().unwrap().write_all(asked.as_bytes()).unwrap();
        let output = client.wait_with_output().unwrap();
        let statuses: Vec<u16> = String::from_utf8_lossy(&output.stdout).lines().map(|n| n.parse().unwrap()).collect();
        assert_eq!(statuses, expected, "{file}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// What a client that sends without a break gets rid of before the connection is closed.
fn sent_of_a_refused_body(server: &Server, from: [u8; 4]) -> u64 {
    let mut stream = server.connect_from(from);
    write!(stream, "POST /nothing HTTP/1.1\r\nHost: f\r\nContent-Length: {}\r\n\r\n", 1u64 << 40).unwrap();
    let (chunk, mut sent) = (vec![b' '; 1 << 20], 0);
    while let Ok(more) = stream.write(&chunk) {
        sent += more as u64;
    }
    sent
}

#[test]
fn what_is_read_of_refused_bodies_is_bounded() {
    let server = Server::start_open();
    let front = server.front();
    let before = memory_of(front, "VmHWM");
    let sent = sent_of_a_refused_body(&server, [127, 0, 0, 1]);
    println!("of a body without end {} MiB were taken", sent >> 20);
    // Beside it are the buffers of two sockets.
    assert!(((256 << 20)..(256 + 64) << 20).contains(&sent), "{sent}");
    // Those who take their time, too, do not keep one another from being served, and one address has no more than its part.
    let head = "POST /nothing HTTP/1.1\r\nHost: f\r\nContent-Length: 99999999\r\n\r\n";
    let slow: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = server.connect_from([127, 0, 0, 1]);
            stream.write_all(head.as_bytes()).unwrap();
            let mut status = [0; 12];
            stream.read_exact(&mut status).unwrap();
            assert_eq!(&status, b"HTTP/1.1 404");
            stream
        })
        .collect();
    let is_closed = |stream: &TcpStream| {
        let mut rest = [0; 4096];
        stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let mut stream = stream;
        loop {
            match stream.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
            }
        }
    };
    eventually("those beyond the bound are closed", || slow.iter().filter(|stream| !is_closed(stream)).count() <= 16);
    assert_eq!(server.shell("echo served"), "served");
    let grown = memory_of(front, "VmHWM") - before;
    assert!(grown < 48 << 20, "the front has grown by {grown} bytes");
}

#[test]
fn a_client_that_only_ends_its_side_gets_its_answer() {
    let server = Server::start_open();
    let ask = |seconds: &str, padding: usize| {
        let body = json!({ "tasks": [{ "command": "sleep", "args": [seconds], "env": { "A": "x".repeat(padding) } }] });
        let stream = server.ask(&body);
        stream.shutdown(Shutdown::Write).unwrap();
        stream
    };
    // At once, and after it was looked for several times.
    for (seconds, padding) in [("0", 0), ("0", 100_000), ("0.2", 0), ("4.25", 0)] {
        let answer = rest(ask(seconds, padding));
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\"Success\""), "{seconds}: {answer}");
    }
    // Requests before on the same connection, and those of HTTP/1.0.
    let mut stream = server.connect_from([127, 0, 0, 1]);
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: f\r\n\r\n").unwrap();
    let mut first = [0; 16];
    stream.read_exact(&mut first).unwrap();
    let body = json!({ "tasks": [{ "command": "sleep", "args": ["1.1"] }] }).to_string();
    let head = "POST /execute HTTP/1.0\r\nContent-Type: application/json";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let answers = rest(stream);
    assert!(answers.contains("}HTTP/1.0 200 OK\r\n") && answers.contains("\"Success\""), "{answers}");
    // One that then goes away has its tasks ended all the same.
    let client = ask("63.7", 0);
    eventually("its task runs", || running(&["sleep", "63.7"]).len() == 1);
    drop(client);
    eventually("its end", || running(&["sleep", "63.7"]).is_empty());
}
