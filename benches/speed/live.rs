//! Requests that are followed: how soon output is told, and what those cost that wait.

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::Run;
use crate::common::support::Server;
use crate::common::support::live::Events;
use crate::common::{Percentiles, SETTINGS, ms};

pub fn all(run: &mut Run, server: &Server) {
    first_byte(run, server);
    idle_streams(run);
}

/// From the time that a task writes to the time at which a client has read it.
fn first_byte(run: &mut Run, server: &Server) {
    run.begins("the first byte of a stream");
    // It goes on for a while, so that its end is no part of it.
    let task = json!({ "command": "sh", "args": ["-c", "date +%s%N; sleep 0.05"] });
    let mut took: Vec<Duration> = (0..run.args.times(200, 10))
        .map(|_| {
            let mut events = Events::of(server, &json!({ "tasks": [task] }));
            let told = events.wait_for("stdout");
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let written = Duration::from_nanos(told["text"].as_str().unwrap().trim().parse().unwrap());
            events.wait_for("done");
            now.saturating_sub(written)
        })
        .collect();
    let p50 = ms(Percentiles::of(&mut took).p50);
    run.tell(format!("\nfrom a task's write to its client, p50 {p50:.2} ms"));
    run.raw.insert("first byte".into(), json!(p50));
    run.at_most("a stream: from a task's write to its client, p50", p50, 1.0, 0.5, "ms");
}

/// 1,000 streams whose tasks wait for their turn: the memory of the front, beyond what it had before.
fn idle_streams(run: &mut Run) {
    const STREAMS: usize = 1000;
    run.begins("1,000 open streams");
    let streams = STREAMS.to_string();
    let more = [
        ("FABER_SERVER__CONNECTIONS_PER_IP", "2000"),
        ("FABER_EXECUTION__QUEUE_LENGTH", &streams),
        ("FABER_EXECUTION__CONCURRENCY", "1"),
    ];
    let server = Server::start(&["--open-mode"], &[&SETTINGS[..], &more].concat());
    let body = json!({ "tasks": [{ "command": "sleep", "args": ["50"] }] });
    let mut first = Events::of(&server, &body);
    first.wait_for("started");
    let before = private(server.front());
    let mut open: Vec<Events> = (0..STREAMS).map(|_| Events::of(&server, &body)).collect();
    open.iter_mut().for_each(|events| _ = events.wait_for("queued"));
    let grown = private(server.front()).saturating_sub(before) as f64 / 1024.0;
    run.tell(format!("{STREAMS} open streams that wait: {grown:.1} MiB of the front's memory"));
    run.raw.insert("1000 streams".into(), Value::from(grown));
    run.at_most("1,000 open idle streams: the front's memory", grown, 20.0, 10.0, "MiB");
}

/// KiB that are this process's alone (proc_pid_smaps(5)).
fn private(pid: i32) -> u64 {
    let mut text = String::new();
    let file = std::fs::File::open(format!("/proc/{pid}/smaps_rollup")).unwrap();
    BufReader::new(file).read_to_string(&mut text).unwrap();
    let of = |field: &str| {
        let line = text.as_bytes().lines().map_while(Result::ok).find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    of("Private_Clean:") + of("Private_Dirty:")
}
