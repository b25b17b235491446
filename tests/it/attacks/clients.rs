//! Clients that lie, dawdle, flood and cut: raw bytes over TCP.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::target::Target;
use crate::support::{Server, eventually, running};

/// Bytes, and the statuses with which they may be answered; 0 is a connection that is closed without a word.
struct Sent {
    name: String,
    bytes: Vec<u8>,
    statuses: &'static [u16],
    /// How many answers there may be, at most: who has more has a request smuggled in.
    answers: usize,
    /// Is more to come, which never does? Else a last request ends the connection.
    is_cut: bool,
}

const LAST: &[u8] = b"GET /health HTTP/1.1\r\nHost: f\r\nConnection: close\r\n\r\n";

fn sent(name: &str, bytes: impl Into<Vec<u8>>, statuses: &'static [u16]) -> Sent {
    Sent { name: name.to_owned(), bytes: bytes.into(), statuses, answers: 1, is_cut: false }
}

fn cut(name: &str, bytes: impl Into<Vec<u8>>, statuses: &'static [u16]) -> Sent {
    Sent { is_cut: true, ..sent(name, bytes, statuses) }
}

/// What a client hears that says this.
fn said_to(server: &Server, bytes: &[u8], is_cut: bool) -> Vec<u8> {
    let mut stream = server.connect_from([127, 0, 0, 9]);
    // Who is refused early hears it before it has sent all.
    let _ = stream.write_all(bytes);
    if is_cut {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// Is another client of the attacker's address still answered?
fn is_served(server: &Server) -> Result<(), String> {
    let heard = said_to(server, LAST, false);
    if statuses(&heard) == [200] { Ok(()) } else { Err(format!("/health says {:?}", String::from_utf8_lossy(&heard))) }
}

/// The statuses of all answers in what was heard.
fn statuses(heard: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(heard);
    text.split("HTTP/1.").skip(1).filter_map(|answer| answer.get(2..5)?.parse().ok()).collect()
}

fn check(server: &Server, row: &Sent) -> Result<(), String> {
    let last = if row.is_cut { &[] } else { LAST };
    let heard = said_to(server, &[&row.bytes, last].concat(), row.is_cut);
    let statuses = statuses(&heard);
    let first = statuses.first().copied().unwrap_or(0);
    // The last request has an answer too, if the connection lives to see it.
    match row.statuses.contains(&first) && statuses.len() <= row.answers + usize::from(!row.is_cut) {
        true => Ok(()),
        false => {
            let start: String = String::from_utf8_lossy(&heard).chars().take(600).collect();
            Err(format!("answered {statuses:?}, not {:?} at most {} times: {start}", row.statuses, row.answers))
        }
    }
}

#[test]
fn bytes_that_are_no_request_are_refused() {
    let mut target = Target::start("clients", &[]);
    for row in heads().into_iter().chain(lengths(&target)) {
        let outcome = check(target.server(), &row);
        target.attacked(&row.name, outcome);
    }
    target.end();
}

/// Heads that are none, or too much of one.
fn heads() -> Vec<Sent> {
    let health = |more: &str| format!("GET /health HTTP/1.1\r\nHost: f\r\n{more}\r\n");
    let line = |line: &str| format!("{line}\r\nHost: f\r\n\r\n");
    let noise: Vec<u8> = (0..65536u32).map(|at| (at.wrapping_mul(2654435761) >> 11) as u8).collect();
    let many = |count: usize, line: &str| health(&line.repeat(count));
    let mut rows = vec![
        cut("nothing at all", "", &[0]),
        sent("HTTP/1.0", "GET /health HTTP/1.0\r\n\r\n", &[200]),
        sent("HTTP/1.0 that stays", "GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &[200]),
        sent("HTTP/0.9", "GET /health\r\n", &[0, 400]),
        sent("HTTP/2 without being asked", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0", &[0, 400, 505]),
        sent(
            "HTTP/2 by an upgrade",
            health("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
            &[200],
        ),
        sent("a web socket", health("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n"), &[200]),
        sent("HTTP/9.9", line("GET /health HTTP/9.9"), &[0, 400, 505]),
        sent("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), &[0, 400]),
        sent("NULs", vec![0; 4096], &[0, 400]),
        sent("noise", noise, &[0, 400, 431]),
        sent("empty lines", "\r\n".repeat(100_000), &[0, 200, 400, 431]),
        sent("no host", "GET /health HTTP/1.1\r\n\r\n", &[200, 400]),
        sent("two hosts", health("Host: g\r\n"), &[200, 400]),
        sent("a target that is a proxy's", line("GET http://169.254.169.254/ HTTP/1.1"), &[400, 404]),
        sent("a tunnel", line("CONNECT 169.254.169.254:80 HTTP/1.1"), &[400, 404, 405]),
        sent("TRACE", line("TRACE /health HTTP/1.1"), &[400, 404, 405]),
        sent(
            "a method of a thousand letters",
            line(&format!("{} / HTTP/1.1", "A".repeat(1000))),
            &[0, 400, 404, 405, 501],
        ),
        sent("a target of 1 MiB", line(&format!("GET /{} HTTP/1.1", "a".repeat(1 << 20))), &[0, 400, 404, 414, 431]),
        sent("a line of 1 MiB in the head", many(1, &format!("X: {}\r\n", "a".repeat(1 << 20))), &[0, 400, 431]),
        sent("ten thousand lines in the head", many(10_000, "X: y\r\n"), &[0, 400, 431]),
        cut(
            "a head without end",
            format!("GET /health HTTP/1.1\r\n{}", "X: yyyyyyyyyyyyyyyy\r\n".repeat(100_000)),
            &[0, 400, 431],
        ),
        sent("no colon", health("Host\r\n"), &[400]),
        sent("a blank before the colon", health("X : y\r\n"), &[400]),
        sent("a folded line", health("X: y\r\n z\r\n"), &[200, 400]),
        sent("a NUL in a value", health("X: y\0z\r\n"), &[400]),
        sent("CR alone", health("X: y\rZ: z\r\n"), &[400]),
        sent("LF alone", "GET /health HTTP/1.1\nHost: f\n\n", &[200, 400]),
        sent("an empty name", health(": y\r\n"), &[400]),
        sent("bytes above 127 in a name", health("\u{e9}: y\r\n"), &[400]),
        sent("a nonsensical expectation", health("Expect: 7-of-9\r\n"), &[200, 417]),
        sent(
            "addresses of others",
            health("X-Forwarded-For: 127.0.0.1, ::1, \u{1b}[2J, 999.9.9.9\r\nForwarded: for=x\r\n"),
            &[200, 400],
        ),
        sent(
            "a key of 1 MiB",
            format!("GET /images HTTP/1.1\r\nHost: f\r\nAuthorization: Bearer {}\r\n\r\n", "a".repeat(1 << 20)),
            &[0, 400, 403, 431],
        ),
        sent(
            "a hundred keys",
            format!("GET /images HTTP/1.1\r\nHost: f\r\n{}\r\n", "Authorization: Bearer x\r\n".repeat(90)),
            &[400, 401, 403, 431],
        ),
        sent(
            "a key that is no text",
            b"GET /images HTTP/1.1\r\nHost: f\r\nAuthorization: Bearer \xff\xfe\r\n\r\n".to_vec(),
            &[400, 401, 403],
        ),
    ];
    for path in [
        "/../../etc/passwd",
        "/blobs/../../../etc/passwd",
        "/blobs/sha256:../../../../etc/passwd",
        "/swagger-ui/..%2f..%2f..%2fetc/passwd",
        "/swagger-ui/%2e%2e/%2e%2e/etc/passwd",
        "/images/%00",
        "//etc/passwd",
        "/swagger-ui/\\..\\..\\etc\\passwd",
        "/%ff%fe",
        "/health/%2e%2e/images",
    ] {
        rows.push(sent(&format!("the path {path}"), line(&format!("GET {path} HTTP/1.1")), &[400, 401, 404]));
    }
    rows.push(Sent { answers: 1000, ..sent("a thousand requests at once", health("").repeat(1000), &[200]) });
    rows
}

/// Bodies whose length is another than is told, or that are told twice.
fn lengths(target: &Target) -> Vec<Sent> {
    let authorization = target.authorization();
    let post = |head: &str, body: &str| {
        format!(
            "POST /execute HTTP/1.1\r\nHost: f\r\nAuthorization: {authorization}\r\nContent-Type: application/json\r\n{head}\r\n{body}"
        )
    };
    let good = r#"{"tasks":[{"command":"true"}]}"#;
    let smuggled = "GET /health HTTP/1.1\r\nHost: f\r\n\r\n";
    let mut rows = vec![
        sent("more than is told", post("Content-Length: 5\r\n", good), &[400]),
        cut("less than is told", post("Content-Length: 100000\r\n", good), &[0, 400, 408]),
        sent("no length", post("", good), &[400, 411]),
        sent("HTTP/1.0 without a length", post("", good).replace("HTTP/1.1", "HTTP/1.0"), &[400, 411]),
        sent("two lengths", post("Content-Length: 30\r\nContent-Length: 5\r\n", good), &[400]),
        sent(
            "a length and chunks",
            post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{smuggled}")),
            &[400],
        ),
        sent(
            "chunks and a length",
            post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", &format!("0\r\n\r\n{smuggled}")),
            &[400],
        ),
        sent(
            "chunks in HTTP/1.0",
            post("Transfer-Encoding: chunked\r\n", "0\r\n\r\n").replace("HTTP/1.1", "HTTP/1.0"),
            &[0, 400],
        ),
        sent("chunks by another name", post("Transfer-Encoding: xchunked\r\n", good), &[400, 501]),
        sent("chunks that are no last encoding", post("Transfer-Encoding: chunked, identity\r\n", good), &[400, 501]),
        sent("chunks twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), &[400]),
        Sent {
            answers: 2,
            ..cut(
                "100 is waited for, and never sent",
                post("Content-Length: 30\r\nExpect: 100-continue\r\n", ""),
                &[0, 100],
            )
        },
        sent(
            "a body that is compressed",
            post("Content-Length: 30\r\nContent-Encoding: gzip\r\n", good),
            &[200, 400, 415],
        ),
        sent(
            "a bomb of zeros, compressed",
            post("Content-Length: 12\r\nContent-Encoding: gzip\r\n", "\u{1f}\0\0\0\0\0\0\0\0\0\0\0"),
            &[400, 415],
        ),
        sent("eleven mebibytes", post("Content-Length: 11534336\r\n", &" ".repeat(11 << 20)), &[0, 413]),
        sent(
            "eleven mebibytes in chunks",
            post("Transfer-Encoding: chunked\r\n", &format!("b00000\r\n{}\r\n0\r\n\r\n", " ".repeat(11 << 20))),
            &[0, 413],
        ),
        sent(
            "trailers without end",
            post("Transfer-Encoding: chunked\r\n", &format!("0\r\n{}\r\n", "X: y\r\n".repeat(100_000))),
            &[0, 400, 431],
        ),
        sent(
            "an extension of 1 MiB",
            post("Transfer-Encoding: chunked\r\n", &format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(1 << 20))),
            &[0, 400],
        ),
        sent(
            "a chunk for each byte",
            post(
                "Transfer-Encoding: chunked\r\n",
                &format!("{}0\r\n\r\n", good.chars().map(|c| format!("1\r\n{c}\r\n")).collect::<String>()),
            ),
            &[200],
        ),
    ];
    for length in [
        "-1",
        "+30",
        "30,30",
        "30 ",
        "0x1e",
        "1e9",
        "18446744073709551615",
        "18446744073709551616",
        "99999999999999999999999",
        "",
        "\u{663}",
    ] {
        let may: &[u16] = &[0, 200, 400, 408, 413, 431];
        rows.push(cut(&format!("the length {length:?}"), post(&format!("Content-Length: {length}\r\n"), good), may));
    }
    for size in ["-1", "ffffffffffffffff", "10000000000000000", "0x5", "", "g", "7fffffffffffffff"] {
        let body = format!("{size}\r\n{good}\r\n0\r\n\r\n");
        rows.push(cut(
            &format!("a chunk of {size:?}"),
            post("Transfer-Encoding: chunked\r\n", &body),
            &[0, 400, 408, 413],
        ));
    }
    rows
}

#[test]
fn json_is_read_to_its_edges_and_no_further() {
    let mut target = Target::start("json", &[]);
    let deep = |open: &str, close: &str, times: usize| format!("{}{}", open.repeat(times), close.repeat(times));
    let task = |rest: &str| format!(r#"{{"tasks":[{{"command":"true"{rest}}}]}}"#);
    let bodies: Vec<(&str, String, &[u16])> = vec![
        ("nothing", String::new(), &[400]),
        ("blanks", " ".repeat(1 << 20), &[400]),
        ("lists, a hundred thousand deep", deep("[", "]", 100_000), &[400]),
        ("objects, a hundred thousand deep", deep("{\"a\":", "}", 100_000), &[400]),
        ("lists that never close", "[".repeat(4 << 20), &[400, 413]),
        ("deep where nobody looks", task(&format!(r#","x":{}"#, deep("[", "]", 100_000))), &[400]),
        ("deep in the environment", task(&format!(r#","env":{{"A":{}}}"#, deep("[", "]", 1000))), &[400]),
        ("deep in a comparison", task(&format!(r#","expect":{}"#, deep("{\"compare\":", "}", 5000))), &[400]),
        ("a name twice", r#"{"tasks":[{"command":"true","command":"false"}]}"#.into(), &[400]),
        ("a name twice, once escaped", r#"{"tasks":[{"command":"true","\u0063ommand":"false"}]}"#.into(), &[400]),
        ("half a character", task(r#","args":["\ud800"]"#), &[400]),
        ("a NUL", task(r#","args":["\u0000"]"#), &[200]),
        ("a byte order mark", format!("\u{feff}{}", task("")), &[200]),
        ("two byte order marks", format!("\u{feff}\u{feff}{}", task("")), &[400]),
        ("a comment", format!("/* */{}", task("")), &[400]),
        ("two documents", format!("{0}{0}", task("")), &[400]),
        ("a comma too many", task(","), &[400]),
        ("not a number", task(r#","resource_limits":{"memory_limit":NaN}"#), &[400]),
        ("no object", "[]".into(), &[400]),
        ("null", "null".into(), &[400]),
        ("no tasks", r#"{"tasks":[]}"#.into(), &[200, 400]),
        ("tasks that are null", r#"{"tasks":[null]}"#.into(), &[400]),
        (
            "a hundred and one tasks",
            format!(r#"{{"tasks":[{}]}}"#, vec![r#"{"command":"true"}"#; 101].join(",")),
            &[400, 413],
        ),
        ("a command of 1 MiB", format!(r#"{{"tasks":[{{"command":"{}"}}]}}"#, "a".repeat(1 << 20)), &[200, 400]),
        (
            "a hundred thousand arguments",
            task(&format!(r#","args":[{}]"#, vec![r#""""#; 100_000].join(","))),
            &[200, 413],
        ),
        (
            "a hundred thousand variables",
            task(&format!(
                r#","env":{{{}}}"#,
                (0..100_000).map(|n| format!(r#""A{n}":"""#)).collect::<Vec<_>>().join(",")
            )),
            &[200, 413],
        ),
        (
            "a hundred thousand files",
            task(&format!(
                r#","files":{{{}}}"#,
                (0..100_000).map(|n| format!(r#""{n}":"""#)).collect::<Vec<_>>().join(",")
            )),
            &[200, 413],
        ),
        (
            "a hundred thousand globs",
            task(&format!(r#","outputs":[{}]"#, vec![r#""*""#; 100_000].join(","))),
            &[200, 400, 413],
        ),
        (
            "a number of a million digits",
            task(&format!(r#","resource_limits":{{"memory_limit":{}}}"#, "9".repeat(1 << 20))),
            &[400],
        ),
        ("a task that needs itself", task(r#","name":"a","needs":["a"]"#), &[400]),
        ("a mebibyte of escapes", task(&format!(r#","args":["{}"]"#, r"\u0041".repeat(170_000))), &[200]),
    ];
    for (name, body, statuses) in bodies {
        let status = target.post(&body).status;
        let outcome = if statuses.contains(&status) { Ok(()) } else { Err(format!("answered {status}")) };
        target.attacked(name, outcome);
    }
    let limits = [
        "memory_limit",
        "cpu_time_limit",
        "wall_time_limit",
        "max_processes",
        "max_file_descriptors",
        "max_output_size",
        "stack_limit",
        "workspace_limit",
        "max_file_size",
        "cpus",
    ];
    let numbers = [
        "0",
        "-0",
        "1",
        "-1",
        "0.5",
        "1e3",
        "1e400",
        "-1e400",
        "2147483647",
        "2147483648",
        "4294967295",
        "4294967296",
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "1e19",
        "\"1\"",
        "true",
        "null",
        "[]",
    ];
    for number in numbers {
        let mut outcome = Ok(());
        for limit in limits {
            let answer = target.post(&task(&format!(r#","resource_limits":{{"{limit}":{number}}}"#)));
            let is_answered = match answer.status {
                // It ran within what the server allows, or was refused by name.
                200 => [
                    "Success",
                    "NotExecuted",
                    "Failure",
                    "Timeout",
                    "CpuLimitExceeded",
                    "MemoryLimitExceeded",
                    "ResourceLimitExceeded",
                ]
                .contains(&answer.json()["results"][0]["status"].as_str().unwrap()),
                400 => answer.json()["details"].is_string(),
                _ => false,
            };
            if !is_answered || answer.text.contains("lost") {
                outcome = Err(format!("{limit}: {} {}", answer.status, answer.text));
            }
        }
        target.attacked(&format!("every limit {number}"), outcome);
    }
    target.end();
}

/// What a client that does not go on is, in the end, to the server: nothing.
#[test]
fn clients_that_idle_flood_and_cut_keep_nobody_waiting() {
    let mut target = Target::start("floods", &[]);
    type Flood = fn(&Target) -> Result<(), String>;
    let floods: [(&str, Flood); 9] = [
        ("5,000 connections that say nothing", idle),
        ("slow loris: 400 heads, a line at a time", loris),
        ("2,000 connections that are closed at once", |target| {
            (0..2000).for_each(|_| drop(target.server().connect_from([127, 0, 0, 9])));
            Ok(())
        }),
        ("a request, a byte at a time", bytewise),
        ("half closed once it has asked", half_closed),
        ("reset once it has asked", reset),
        ("answers that nobody reads", unread),
        ("bodies that stop half way, from many", unfinished),
        ("a request behind the other, the first of which is slow", pipelined),
    ];
    for (name, flood) in floods {
        let outcome = flood(&target);
        target.attacked(name, outcome);
    }
    target.end();
}

fn ask(target: &Target, task: &Value) -> Vec<u8> {
    let (body, authorization) = (json!({ "tasks": [task] }).to_string(), target.authorization());
    let head = format!(
        "POST /execute HTTP/1.1\r\nHost: f\r\nAuthorization: {authorization}\r\nContent-Type: application/json"
    );
    format!("{head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn sleep(seconds: &str) -> Value {
    json!({ "command": "sleep", "args": [seconds] })
}

/// From eight addresses, so that it is not the bound of one that helps.
fn idle(target: &Target) -> Result<(), String> {
    let connections: Vec<TcpStream> =
        (0..5000u32).map(|number| target.server().connect_from([127, 0, 1, (number % 8) as u8 + 1])).collect();
    // Others go on meanwhile, which the neighbour shows, and the attacker's own from another address.
    let outcome = is_served(target.server());
    drop(connections);
    outcome
}

fn loris(target: &Target) -> Result<(), String> {
    let mut connections: Vec<TcpStream> = (0..400).map(|_| target.server().connect_from([127, 0, 0, 9])).collect();
    for line in ["GET /health HTTP/1.1\r\n", "Host: f\r\n", "X-A: b\r\n", "X-B: c\r\n", "X-C"] {
        for connection in &mut connections {
            let _ = connection.write_all(line.as_bytes());
        }
        is_served(target.server())?;
    }
    Ok(())
}

fn bytewise(target: &Target) -> Result<(), String> {
    let mut stream = target.server().connect_from([127, 0, 0, 9]);
    stream.set_nodelay(true).unwrap();
    for byte in ask(target, &json!({ "command": "echo", "args": ["slowly"] })) {
        stream.write_all(&[byte]).map_err(|error| error.to_string())?;
    }
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    if answer.contains("slowly") { Ok(()) } else { Err(answer) }
}

/// Who shuts down its sending side may well read on.
fn half_closed(target: &Target) -> Result<(), String> {
    for _ in 0..20 {
        let heard = statuses(&said_to(target.server(), &ask(target, &json!({ "command": "true" })), true));
        if heard != [200] {
            return Err(format!("{heard:?}"));
        }
    }
    Ok(())
}

fn reset(target: &Target) -> Result<(), String> {
    let asleep = ["sleep", "613.7"];
    for _ in 0..100 {
        let mut stream = target.server().connect_from([127, 0, 0, 9]);
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        let _ = stream.write_all(&ask(target, &sleep(asleep[1])));
    }
    // Some may have begun.
    eventually("the tasks of clients that are gone are ended", || running(&asleep).is_empty());
    Ok(())
}

/// Twelve of 4 MiB, whose windows stay shut.
fn unread(target: &Target) -> Result<(), String> {
    let task = json!({ "command": "head", "args": ["-c", "4194304", "/dev/zero"], "resource_limits": { "max_output_size": 4 << 20 } });
    let mut connections = Vec::new();
    for _ in 0..12 {
        let mut stream = target.server().connect_from([127, 0, 0, 9]);
        stream.write_all(&ask(target, &task)).map_err(|error| error.to_string())?;
        connections.push(stream);
    }
    for connection in &mut connections {
        let mut first = [0; 12];
        connection.read_exact(&mut first).map_err(|error| error.to_string())?;
        if !first.ends_with(b"200") && !first.ends_with(b"503") {
            return Err(String::from_utf8_lossy(&first).into_owned());
        }
    }
    Ok(())
}

fn unfinished(target: &Target) -> Result<(), String> {
    let whole = ask(target, &json!({ "command": "true", "stdin": "x".repeat(100_000) }));
    let mut connections: Vec<TcpStream> = (0..300).map(|_| target.server().connect_from([127, 0, 0, 9])).collect();
    for connection in &mut connections {
        let _ = connection.write_all(&whole[..60_000]);
    }
    is_served(target.server())
}

fn pipelined(target: &Target) -> Result<(), String> {
    let health = b"GET /health HTTP/1.1\r\nHost: f\r\n\r\n".to_vec();
    let slow = String::from_utf8(ask(target, &sleep("0.3"))).unwrap().replace("Connection: close\r\n", "");
    let heard = statuses(&said_to(target.server(), &[slow.as_bytes(), &health.repeat(50), LAST].concat(), false));
    if heard == [200; 52] { Ok(()) } else { Err(format!("{heard:?}")) }
}
