//! Clients that take all they can get: connections, time, memory. Others are served meanwhile, and the server stays small.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{Server, eventually};

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
