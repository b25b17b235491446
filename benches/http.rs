//! What a task costs over HTTP, beside a bare spawn of the same command in the same run.
//!
//! Latency: one client, the two in turns (spawn, request, spawn, …), so that whatever disturbs the machine disturbs both.
//! Throughput: 2, 8 and 32 clients that ask as fast as they are answered. The raw data stays in target/bench.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use common::support::{self, Server};
use common::{Client, Percentiles, ms, ratio};
use serde_json::{Value, json};

#[derive(Parser)]
#[command(about = "Measures Faber over HTTP, against bare spawns in the same run")]
struct Args {
    /// Pairs of a spawn and a request for `true`
    #[arg(long, default_value_t = 500)]
    pairs: usize,
    /// Pairs for `python3 -c 'print(1)'`
    #[arg(long, default_value_t = 100)]
    python_pairs: usize,
    /// Requests for each number of clients
    #[arg(long, default_value_t = 1000)]
    requests: usize,
    /// What cargo bench passes on
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let server = Server::start_open();
    let out = common::out();
    println!("{}", common::machine());
    println!("\none client           bare spawn p50    p99     request p50    p99     ratio p50    p99");
    latency(&server, &out, "true", &["true"], args.pairs);
    latency(&server, &out, "python3", &["python3", "-c", "print(1)"], args.python_pairs);
    println!("\n`true`, many clients   requests/s    p50        p99      CPU a request (all of Faber)");
    for clients in [2, 8, 32] {
        throughput(&server, &out, clients, args.requests);
    }
    memory(&server);
    println!("\nraw data: {}", common::shown(&out));
}

/// The command as a task of the host image.
fn task(command: &[&str]) -> Value {
    json!({ "command": command[0], "args": command[1..] })
}

/// fork, exec, the program's life and wait: no isolation, no limits, no server.
fn spawn(command: &[&str]) -> Duration {
    let started = Instant::now();
    let mut bare = Command::new(command[0]);
    bare.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(bare.status().unwrap().success());
    started.elapsed()
}

fn latency(server: &Server, out: &Path, name: &str, command: &[&str], pairs: usize) {
    // The system's own program, as the task finds it.
    let program = format!("/usr/bin/{}", command[0]);
    let bare: Vec<&str> = [program.as_str()].into_iter().chain(command[1..].iter().copied()).collect();
    let client = Client::new(server, &task(command));
    for _ in 0..pairs.min(20) {
        spawn(&bare);
        client.ask();
    }
    let (mut spawns, mut requests): (Vec<_>, Vec<_>) = (0..pairs).map(|_| (spawn(&bare), client.ask())).unzip();
    save(
        &out.join(format!("{name}.csv")),
        "spawn_us,request_us",
        spawns.iter().zip(&requests).map(|(s, r)| vec![*s, *r]),
    );
    let (spawn, request) = (Percentiles::of(&mut spawns), Percentiles::of(&mut requests));
    println!(
        "{name:20} {:>8.2} ms {:>8.2} ms {:>8.2} ms {:>8.2} ms {:>8.2} x {:>6.2} x",
        ms(spawn.p50),
        ms(spawn.p99),
        ms(request.p50),
        ms(request.p99),
        ratio(request.p50, spawn.p50),
        ratio(request.p99, spawn.p99)
    );
}

fn throughput(server: &Server, out: &Path, clients: usize, requests: usize) {
    let left = AtomicUsize::new(requests);
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
    let work = || {
        let client = Client::new(server, &task(&["true"]));
        let mut took = Vec::new();
        while take() {
            took.push(client.ask());
        }
        took
    };
    let (cpu, started) = (cpu_time(server), Instant::now());
    let mut took: Vec<Duration> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(work)).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let (elapsed, cpu) = (started.elapsed(), cpu_time(server).saturating_sub(cpu));
    save(&out.join(format!("clients-{clients}.csv")), "request_us", took.iter().map(|took| vec![*took]));
    let percentiles = Percentiles::of(&mut took);
    println!(
        "{clients:>4} clients {:>19.0} {:>8.2} ms {:>8.2} ms {:>8.2} ms",
        requests as f64 / elapsed.as_secs_f64(),
        ms(percentiles.p50),
        ms(percentiles.p99),
        ms(cpu) / requests as f64
    );
}

fn save(path: &Path, head: &str, rows: impl Iterator<Item = Vec<Duration>>) {
    let mut file = std::io::BufWriter::new(fs::File::create(path).unwrap());
    writeln!(file, "{head}").unwrap();
    for row in rows {
        let row: Vec<String> = row.iter().map(|time| time.as_micros().to_string()).collect();
        writeln!(file, "{}", row.join(",")).unwrap();
    }
}

/// CPU time of the server's processes and of every child they have reaped (proc_pid_stat(5), fields 14 to 17).
fn cpu_time(server: &Server) -> Duration {
    let pids = ["front", "runner"].iter().flat_map(|role| server.processes(role)).chain([server.pid()]);
    let ticks: u64 = pids.map(|pid| ticks(pid).unwrap_or(0)).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = stat.rsplit_once(')')?.1.split_whitespace();
    fields.skip(11).take(4).map(|field| field.parse::<u64>().ok()).sum()
}

/// What a waiting runner and its container's init hold: their proportional set size (proc_pid_smaps(5)).
fn memory(server: &Server) {
    let runners = server.processes("runner");
    let slots: Vec<u64> = runners.iter().map(|pid| family(*pid).into_iter().map(pss_kib).sum()).collect();
    println!(
        "\nan idle slot holds {} KiB (proportional set size, the mean of {})",
        slots.iter().sum::<u64>() / slots.len().max(1) as u64,
        slots.len()
    );
}

fn family(pid: i32) -> Vec<i32> {
    let children = support::left::children(pid).into_iter().flat_map(family);
    [pid].into_iter().chain(children).collect()
}

fn pss_kib(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
