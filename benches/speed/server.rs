//! The server itself: what it costs when it does nothing, how it takes long times, bursts and pauses, how fast it starts.

use std::fs;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Run;
use crate::common::support::{self, Server};
use crate::common::{Client, Percentiles, SETTINGS, ms};

/// CPU time of the server's processes and of every child they have reaped (proc_pid_stat(5), fields 14 to 17).
pub fn cpu_time(server: &Server) -> Duration {
    let ticks: u64 = processes(server).into_iter().map(|pid| ticks(pid).unwrap_or(0)).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn processes(server: &Server) -> Vec<i32> {
    ["front", "runner"].iter().flat_map(|role| server.processes(role)).chain([server.pid()]).collect()
}

fn ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = stat.rsplit_once(')')?.1.split_whitespace();
    fields.skip(11).take(4).map(|field| field.parse::<u64>().ok()).sum()
}

fn client(server: &Server) -> Client {
    Client::new(server, &json!({ "command": "true" }))
}

fn ask(client: &Client, times: usize) -> Percentiles {
    Percentiles::of(&mut (0..times).map(|_| client.ask()).collect::<Vec<_>>())
}

pub fn all(run: &mut Run, server: &Server) {
    run.tell("");
    pause(run, server);
    burst(run, server);
    idle(run, server);
    at_rest(run, server);
    drift(run, server);
}

fn pause(run: &mut Run, server: &Server) {
    run.begins("one request after 5 s");
    let client = client(server);
    let usual = ask(&client, run.args.times(200, 2)).p50;
    let mut after: Vec<Duration> = (0..run.args.times(10, 5))
        .map(|_| {
            std::thread::sleep(Duration::from_secs(5));
            client.ask()
        })
        .collect();
    let after = Percentiles::of(&mut after).p50;
    let ratio = ms(after) / ms(usual);
    run.tell(format!("one request after 5 s of idleness: {:.2} ms, {ratio:.2} times the p50 without", ms(after)));
    run.raw.insert("after 5 s".into(), json!({ "p50": ms(after), "usual": ms(usual), "ratio": ratio }));
    run.at_most("one request after 5 s of idleness: p50s", ratio, 1.3, 1.1, "x");
}

/// 200 clients that have a connection each, and ask at the same moment.
fn burst(run: &mut Run, server: &Server) {
    const CLIENTS: usize = 200;
    run.begins("a burst of 200");
    let barrier = Barrier::new(CLIENTS);
    let mut took: Vec<Duration> = std::thread::scope(|scope| {
        let ask = || {
            let client = client(server);
            barrier.wait();
            client.ask()
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let p = Percentiles::of(&mut took);
    let [p50, p90, p99, max] = [p.p50, p.p90, p.p99, p.max].map(ms);
    run.tell(format!("a burst of {CLIENTS} at once: p50 {p50:.0} ms, p90 {p90:.0} ms, the last after {max:.0} ms"));
    run.raw.insert("burst of 200".into(), json!({ "p50": p50, "p90": p90, "p99": p99, "max": max }));
}

fn idle(run: &mut Run, server: &Server) {
    run.begins("an idle server");
    std::thread::sleep(Duration::from_secs(1));
    let seconds = run.args.times(10, 2) as u64;
    let (cpu, wakeups) = (cpu_time(server), switches(server));
    std::thread::sleep(Duration::from_secs(seconds));
    let cpu = ms(cpu_time(server) - cpu) / seconds as f64;
    let wakeups = (switches(server) - wakeups) as f64 / seconds as f64;
    let runners = server.processes("runner");
    let slot = runners.iter().map(|pid| family(*pid)).sum::<u64>() as f64 / runners.len().max(1) as f64 / 1024.0;
    let [keeper, front] = [server.pid(), server.processes("front")[0]].map(|pid| pss_kib(pid) as f64 / 1024.0);
    run.tell(format!(
        "an idle server: {wakeups:.1} wake-ups and {cpu:.1} ms of CPU a second; MiB (PSS): keeper {keeper:.1}, front \
         {front:.1}, each of {} slots {slot:.1}",
        runners.len()
    ));
    let told = json!({ "wakeups": wakeups, "cpu": cpu, "keeper": keeper, "front": front, "slot": slot });
    run.raw.insert("idle".into(), told);
    run.at_most("an idle slot's memory (PSS)", slot * 1.048_576, 3.0, 2.0, "MB");
    run.at_most("wake-ups of an idle server a second", wakeups, 1.0, 0.0, "/s");
}

/// What tasks cost Faber that do nothing: one process, and 300.
fn at_rest(run: &mut Run, server: &Server) {
    let seconds = run.args.times(10, 4);
    let sleep = format!("sleep {}", seconds + 3);
    let many = format!("for i in $(seq 300); do {sleep} & done; wait");
    let one = ("a task that sleeps: CPU of Faber", &sleep, 0.2, 0.01);
    let all = ("a task with 300 processes that sleep: CPU of Faber", &many, 1.0, 0.2);
    for (name, script, must, aim) in [one, all] {
        run.begins("a task that sleeps");
        let task = json!({ "command": "bash", "args": ["-c", script], "resource_limits": { "max_processes": 310 } });
        let share = std::thread::scope(|scope| {
            let client = Client::new(server, &task);
            scope.spawn(move || client.ask());
            std::thread::sleep(Duration::from_millis(2500));
            let before = runners_cpu_time(server);
            std::thread::sleep(Duration::from_secs(seconds as u64));
            100.0 * (runners_cpu_time(server) - before).as_secs_f64() / seconds as f64
        });
        run.tell(format!("{name}: {share:.2} % of a core"));
        run.raw.insert(name.into(), json!({ "percent": share }));
        run.at_most(name, share, must, aim, "%");
    }
}

/// CPU time of keeper, front and runners themselves up to now, to the nanosecond (sched-stats.rst).
fn runners_cpu_time(server: &Server) -> Duration {
    let of =
        |pid: i32| fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?.split(' ').next()?.parse::<u64>().ok();
    Duration::from_nanos(processes(server).into_iter().filter_map(of).sum())
}

/// Context switches of all threads up to now: each is somebody who was woken.
fn switches(server: &Server) -> u64 {
    let threads =
        processes(server).into_iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
    let of = |status: String| -> u64 {
        let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
        counts.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    };
    threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok()).map(of).sum()
}

fn drift(run: &mut Run, server: &Server) {
    let (tasks, part) = if run.args.quick { (1000, 200) } else { (10_000, 1000) };
    run.begins("ten thousand in a row");
    let client = client(server);
    let all = |server: &Server| -> f64 {
        let rest = server.processes("front").into_iter().chain([server.pid()]).map(pss_kib).sum::<u64>();
        (server.processes("runner").into_iter().map(family).sum::<u64>() + rest) as f64 / 1024.0
    };
    let (first, before) = (ask(&client, part), all(server));
    ask(&client, tasks - 2 * part);
    let (last, after) = (ask(&client, part), all(server));
    let of = |p: &Percentiles| json!({ "p50": ms(p.p50), "p90": ms(p.p90), "p99": ms(p.p99), "max": ms(p.max) });
    let (slower, grown) = ((ms(last.p50) / ms(first.p50) - 1.0) * 100.0, (after - before) * 1.048_576);
    let words = |p: &Percentiles| format!("p50 {:.2} ms, p99 {:.2} ms", ms(p.p50), ms(p.p99));
    run.tell(format!(
        "{tasks} in a row, as fast as they are answered: the first {part} {}; the last {} ({slower:+.1} %); memory {before:.1} \
         and {after:.1} MiB",
        words(&first),
        words(&last)
    ));
    let told = json!({
        "tasks": tasks, "first": of(&first), "last": of(&last), "memory_before": before, "memory_after": after
    });
    run.raw.insert("in a row".into(), told);
    run.at_most("10,000 in a row: p50 of the last thousand", slower, 5.0, 0.0, "%");
    run.at_most("10,000 in a row: memory", grown, 2.0, 0.0, "MB");
}

/// From the start of `faber serve` to the answer of the first task.
pub fn start(run: &mut Run) {
    run.begins("start to first answer");
    let mut took: Vec<Duration> = (0..run.args.times(20, 4))
        .map(|_| {
            let started = Instant::now();
            let server = Server::start(&["--open-mode"], &SETTINGS);
            client(&server).ask();
            started.elapsed()
        })
        .collect();
    let p = Percentiles::of(&mut took);
    run.tell(format!(
        "from the start of `serve` to the first answer: {:.0} ms, at most {:.0} ms",
        ms(p.p50),
        ms(p.max)
    ));
    run.raw.insert("start".into(), json!({ "p50": ms(p.p50), "max": ms(p.max) }));
    run.at_most("start of `serve` to the first answered task", ms(p.p50), 150.0, 60.0, "ms");
}

/// A process and all that comes of it: their proportional set sizes (proc_pid_smaps(5)), in KiB.
fn family(pid: i32) -> u64 {
    pss_kib(pid) + support::left::children(pid).into_iter().map(family).sum::<u64>()
}

fn pss_kib(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
