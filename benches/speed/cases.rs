//! One client that asks for one thing after the other, the ways in turns.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Run;
use crate::common::support::Server;
use crate::common::{Client, Percentiles, ms};
use crate::server::cpu_time;
use crate::ways::{self, Job, Took, Way};

pub fn all(run: &mut Run, server: &Server) {
    run.tell(format!(
        "\n{:32} {:>8} {:>8} {:>8} {:>8} {:>9} {:>10}",
        "one client, ms", "p50", "p90", "p99", "max", "CPU", "× spawn"
    ));
    let job = |name, command: &[&'static str], files| Job { name, command: command.to_vec(), files };
    let print = ["python3", "-c", "print('x' * 1048575)"];
    let jobs = [
        (job("true", &["true"], vec![]), 500, false),
        (job("true, beside others", &["true"], vec![]), 200, true),
        (job("python3 -c 'print(1)'", &["python3", "-c", "print(1)"], vec![]), 100, true),
        (job("gcc hello.c", &["gcc", "hello.c"], vec![("hello.c", HELLO.into())]), 40, false),
        (job("1 MiB of files in", &["true"], vec![("data", "x".repeat(1 << 20))]), 100, false),
        (job("1 MiB of output", &print, vec![]), 100, false),
    ];
    for (job, times, with_others) in jobs {
        in_turns(run, server, &job, times, with_others);
    }
    many_tasks(run, server);
}

const HELLO: &str = "#include <stdio.h>\nint main(void) { puts(\"hello\"); }\n";

fn in_turns(run: &mut Run, server: &Server, job: &Job, times: usize, with_others: bool) {
    run.begins(job.name);
    let mut ways = vec![ways::bare(job), ways::faber(Client::new(server, &job.task()))];
    if job.command == ["true"] && job.files.is_empty() {
        ways.push(Box::new(run.floor.clone()));
    }
    if with_others {
        let (others, refusals) = ways::others(job);
        ways.extend(others);
        // Told once: the reasons do not change with the command.
        if !std::mem::replace(&mut run.refusals_told, true) {
            refusals.iter().for_each(|refusal| run.tell(refusal));
        }
    }
    let times = run.args.times(times, 5).max(10);
    measure(run, server, job.name, &ways, times);
}

/// Runs each of the ways once, `times` times over, and tells what came of it. The first way is the one to compare with.
fn measure(run: &mut Run, server: &Server, name: &'static str, ways: &[Box<dyn Way>], times: usize) {
    for way in ways {
        for _ in 0..times.min(10) {
            way.once();
        }
    }
    let before = cpu_time(server);
    let mut took: Vec<Vec<Took>> = ways.iter().map(|_| Vec::with_capacity(times)).collect();
    for _ in 0..times {
        for (way, took) in ways.iter().zip(&mut took) {
            took.push(way.once());
        }
    }
    let faber_cpu = (cpu_time(server) - before) / times as u32;
    run.tell(name);
    let mut reference = f64::NAN;
    let mut raw = serde_json::Map::new();
    let mut bare_cpu = f64::NAN;
    for (way, took) in ways.iter().zip(took) {
        let cpu: Duration = took.iter().map(|took| took.cpu).sum::<Duration>() / times as u32;
        let cpu = if cpu.is_zero() { faber_cpu } else { cpu };
        let mut walls: Vec<Duration> = took.into_iter().map(|took| took.wall).collect();
        let micros: Vec<u128> = walls.iter().map(Duration::as_micros).collect();
        let p = Percentiles::of(&mut walls);
        if reference.is_nan() {
            reference = ms(p.p50);
        }
        let ratio = ms(p.p50) / reference;
        let [p50, p90, p99, max] = [p.p50, p.p90, p.p99, p.max].map(ms);
        let cpu = ms(cpu);
        if bare_cpu.is_nan() {
            bare_cpu = cpu;
        }
        run.tell(format!("  {:30} {p50:>8.2} {p90:>8.2} {p99:>8.2} {max:>8.2} {cpu:>9.2} {ratio:>8.2} x", way.name()));
        let told = json!({ "p50": p50, "p90": p90, "p99": p99, "max": max, "cpu": cpu, "ratio": ratio, "us": micros });
        raw.insert(way.name().to_owned(), told);
        if way.name() == "Faber" {
            targets(run, name, ratio, p99 / p50, cpu / bare_cpu);
        }
    }
    if name == "true" {
        run.bare = reference;
    }
    run.raw.insert(name.to_owned(), Value::Object(raw));
}

fn targets(run: &mut Run, name: &str, ratio: f64, tail: f64, cpu: f64) {
    match name {
        "true" => {
            run.at_most("`true`, p50, one client: bare spawns", ratio, 2.0, 1.6, "x");
            run.at_most("`true`, CPU time of all of Faber: a bare spawn's", cpu, 5.0, 3.0, "x");
            run.at_most("`true`, p99, one client: its p50s", tail, 3.0, 2.0, "x");
        }
        "python3 -c 'print(1)'" => run.at_most("python3, p50: bare spawns of the same", ratio, 1.15, 1.08, "x"),
        _ => {}
    }
}

/// 64 tasks in one request, beside as many spawns one after the other.
fn many_tasks(run: &mut Run, server: &Server) {
    run.begins("64 tasks in one request");
    struct Many(Vec<Box<dyn Way>>, &'static str);
    impl Way for Many {
        fn name(&self) -> &'static str {
            self.1
        }
        fn once(&self) -> Took {
            let all: Vec<Took> = self.0.iter().map(|way| way.once()).collect();
            Took { wall: all.iter().map(|took| took.wall).sum(), cpu: all.iter().map(|took| took.cpu).sum() }
        }
    }
    let job = Job { name: "true", command: vec!["true"], files: vec![] };
    let spawns = Many((0..64).map(|_| ways::bare(&job)).collect(), "64 bare spawns");
    let tasks = vec![job.task(); 64];
    let ways: [Box<dyn Way>; 2] = [Box::new(spawns), ways::faber(Client::of_tasks(server, &tasks))];
    let times = run.args.times(30, 5);
    measure(run, server, "64 tasks in one request", &ways, times);
}
