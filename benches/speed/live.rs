//! Requests that are followed: how soon output is told, and what those cost that wait. Sessions: what one costs, and what is run in it.

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::Run;
use crate::common::support::Server;
use crate::common::support::live::Events;
use crate::common::{Client, Percentiles, SETTINGS, ms};
use crate::transfer::in_turns;

pub fn all(run: &mut Run, server: &Server) {
    first_byte(run, server);
    idle_streams(run);
    sessions(run);
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

/// Making one beside a task, a task in one beside a bare spawn, and the memory of one in which nothing is done.
fn sessions(run: &mut Run) {
    run.begins("sessions");
    const IDLE: usize = 10;
    let more = [("FABER_SESSIONS__COUNT", "20"), ("FABER_SESSIONS__PER_KEY", "20")];
    let server = Server::start(&["--open-mode"], &[&SETTINGS[..], &more].concat());
    let agent = ureq::agent();
    let small = json!({ "resource_limits": { "memory_limit": 64 << 20 } }).to_string();
    let url = format!("{}/sessions", server.url());
    let create = || {
        let mut answer = agent.post(&url).content_type("application/json").send(&small).unwrap();
        let session: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
        format!("{url}/{}", session["id"].as_str().unwrap())
    };
    let plain = Client::new(&server, &json!({ "command": "true" }));
    let session = create();
    let path = format!("{}/execute", session.strip_prefix(&server.url()).unwrap());
    let within = Client::of(&server, &path, &json!({ "tasks": [{ "command": "true" }] }));
    let made = || {
        let begun = std::time::Instant::now();
        let session = create();
        let took = begun.elapsed();
        agent.delete(&session).call().unwrap();
        // Another runner takes the place of the one that this took.
        std::thread::sleep(Duration::from_millis(100));
        took
    };
    let bare = || {
        let begun = std::time::Instant::now();
        std::process::Command::new("true").status().unwrap();
        begun.elapsed()
    };
    let [bare, plain, within, made] =
        in_turns(run.args.times(100, 5), [&bare, &|| plain.ask(), &|| within.ask(), &made]);
    let runners = |server: &Server| server.processes("runner").into_iter().map(private).sum::<u64>();
    let before = runners(&server);
    let idle: Vec<String> = (0..IDLE).map(|_| create()).collect();
    std::thread::sleep(Duration::from_secs(1));
    let each = runners(&server).saturating_sub(before) as f64 / 1024.0 / IDLE as f64;
    run.tell(format!(
        "a session: made in {made:.2} ms beside {plain:.2} of `true`, `true` in it {within:.2} ms beside {bare:.2} bare, its runner {each:.1} MiB"
    ));
    idle.iter().chain([&session]).for_each(|session| _ = agent.delete(session).call().unwrap());
    run.raw
        .insert("session".into(), json!({ "bare": bare, "true": plain, "within": within, "made": made, "idle": each }));
    run.at_most("creating a session: a `true` task", made / plain, 1.2, 1.0, "x");
    run.at_most("`true` in a session: a bare spawn", within / bare, 1.5, 1.2, "x");
    run.at_most("an idle session's runner", each, 7.5, 5.0, "MiB");
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
