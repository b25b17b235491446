//! What goes in and comes out, steps and judgements: beside `true`, and beside the same without Faber.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Run;
use crate::common::support::Server;
use crate::common::{Client, Percentiles, ms};

pub fn all(run: &mut Run, server: &Server) {
    run.tell(format!("\n{:56} {:>8} {:>8}", "in and out, steps and judgements", "ms", "beside"));
    megabytes(run, server);
    much_output(run, server);
    large_blob(run, server);
    judgement(run, server);
    interactor(run, server);
}

/// The medians of things that are done in turns.
pub fn in_turns<const N: usize>(times: usize, ways: [&dyn Fn() -> Duration; N]) -> [f64; N] {
    for way in ways {
        way();
    }
    let mut took: [Vec<Duration>; N] = std::array::from_fn(|_| Vec::new());
    for _ in 0..times {
        for (way, took) in ways.iter().zip(&mut took) {
            took.push(way());
        }
    }
    took.map(|mut took| ms(Percentiles::of(&mut took).p50))
}

fn megabytes(run: &mut Run, server: &Server) {
    run.begins("1 MiB in, 1 MiB out");
    let megabyte = "x".repeat(1 << 20);
    let plain = Client::new(server, &json!({ "command": "true" }));
    let input = Client::new(server, &json!({ "command": "true", "stdin": megabyte }));
    // The same work without its file handed over.
    let script = "head -c 1M /dev/zero | tr '\\0' x > file";
    let make = |outputs: Value| json!({ "command": "sh", "args": ["-c", script], "outputs": outputs });
    let (made, output) = (Client::new(server, &make(json!([]))), Client::new(server, &make(json!(["file"]))));
    let times = run.args.times(100, 5);
    let [plain, input, made, output] =
        in_turns(times, [&|| plain.ask(), &|| input.ask(), &|| made.ask(), &|| output.ask()]);
    let (input, output) = (input - plain, output - made);
    run.tell(format!("  {:54} {input:>8.2} {plain:>8.2}", "1 MiB of stdin, beyond `true`"));
    run.tell(format!("  {:54} {output:>8.2} {made:>8.2}", "1 MiB of output file, beyond making it"));
    run.raw.insert("1 MiB".into(), json!({ "true": plain, "stdin": input, "output": output }));
    run.at_most("1 MiB of stdin, beyond `true`", input, 3.0, 1.0, "ms");
    run.at_most("1 MiB of output file, beyond making it", output, 3.0, 1.0, "ms");
}

/// 16 MiB on standard output: what the request takes beyond the task's own time.
fn much_output(run: &mut Run, server: &Server) {
    run.begins("16 MiB of output");
    let limits = json!({ "max_output_size": 16 << 20 });
    let script = "head -c 16M /dev/zero | tr '\\0' x";
    let task = json!({ "command": "sh", "args": ["-c", script], "resource_limits": limits });
    let client = Client::new(server, &task);
    let mut beyond: Vec<Duration> = (0..run.args.times(20, 4))
        .map(|_| {
            let (took, own) = client.ask_for_wall_time();
            took.saturating_sub(own)
        })
        .collect();
    let beyond = ms(Percentiles::of(&mut beyond).p50);
    run.tell(format!("  {:54} {beyond:>8.2}", "16 MiB of output, beyond the task's own time"));
    run.raw.insert("16 MiB of output".into(), json!(beyond));
    run.at_most("16 MiB of output, beyond the task's own time", beyond, 25.0, 10.0, "ms");
}

/// 64 MiB through `cat`, from a blob to a blob: the memory of front and runners, beyond what they had before.
fn large_blob(run: &mut Run, server: &Server) {
    run.begins("64 MiB through cat");
    let url = format!("{}/blobs", server.url());
    let bytes: Vec<u8> = (0..(64usize << 20)).map(|at| (at * 31 % 251) as u8).collect();
    let mut answer = ureq::put(&url).send(&bytes[..]).unwrap();
    let blob: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
    drop(bytes);
    let task = json!({ "command": "sh", "args": ["-c", "cat > copy"], "stdin": { "blob": blob["blob"] }, "outputs": ["copy"] });
    let client = Client::new(server, &task);
    let members = || server.processes("front").into_iter().chain(server.processes("runner"));
    let before: u64 = members().map(|pid| status(pid, "VmRSS:")).sum();
    members().for_each(|pid| fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap());
    let took = client.ask();
    let peak: u64 = members().map(|pid| status(pid, "VmHWM:")).sum();
    let grown = peak.saturating_sub(before) as f64 / 1024.0;
    run.tell(format!("  {:54} {:>8.2}", "64 MiB from a blob through cat to a blob", ms(took)));
    run.tell(format!("  {:54} {grown:>8.2} MiB", "memory of front and runners meanwhile, beyond idle"));
    run.raw.insert("64 MiB".into(), json!({ "ms": ms(took), "memory": grown }));
    run.at_most("64 MiB, blob to blob: memory beyond idle", grown, 8.0, 2.0, "MiB");
    ureq::delete(format!("{url}/{}", blob["blob"].as_str().unwrap())).call().unwrap();
}

/// proc_pid_status(5), in KiB.
fn status(pid: i32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// 50 cases that read a line and print one, of a program that is compiled already, beside as many bare spawns of it, two at a
/// time.
fn judgement(run: &mut Run, server: &Server) {
    run.begins("50 cases of a judgement");
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("sum.c"), dir.path().join("sum"));
    const SUM: &str =
        "#include <stdio.h>\nint main(void) { int a, b; scanf(\"%d %d\", &a, &b); printf(\"%d\\n\", a + b); }\n";
    fs::write(&source, SUM).unwrap();
    assert!(Command::new("gcc").args(["-O2", "-o"]).arg(&program).arg(&source).status().unwrap().success());
    let bytes = fs::read(&program).unwrap();
    let cases: Vec<Value> =
        (0..50).map(|n| json!({ "stdin": format!("{n} {n}\n"), "expected": format!("{}\n", 2 * n) })).collect();
    let body = json!({ "command": "./sum", "files": { "sum": { "base64": base64(&bytes) } }, "cases": cases });
    let client = Client::of(server, "/judge", &body);
    let spawn = || {
        let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"1 2\n").unwrap();
        assert_eq!(child.wait_with_output().unwrap().stdout, b"3\n");
    };
    let spawns = || {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..25).for_each(|_| spawn()));
            }
        });
        started.elapsed()
    };
    let [bare, judged] = in_turns(run.args.times(20, 4), [&spawns, &|| client.ask()]);
    let ratio = judged / bare;
    run.tell(format!(
        "  {:54} {judged:>8.2} {bare:>8.2} {ratio:.1} x",
        "50 cases, beside 50 bare spawns two at a time"
    ));
    run.raw.insert("50 cases".into(), json!({ "judge": judged, "bare": bare }));
    run.at_most("50 cases of /judge: 50 bare spawns, two at once", ratio, 1.6, 1.2, "x");
}

fn base64(bytes: &[u8]) -> String {
    let mut child = Command::new("base64").arg("-w0").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(bytes).unwrap());
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    })
}

const ASK: &str = "import sys\nfor n in range(1000):\n    print(n, flush=True)\n    assert input() == str(n)\n";
const REPLY: &str = "import sys\nfor line in sys.stdin:\n    print(line, end='', flush=True)\n";

/// 1,000 lines to and fro between two programs, beside the same over a bare pair of pipes; what starting them takes is in both.
fn interactor(run: &mut Run, server: &Server) {
    run.begins("1,000 lines to and fro");
    let python = |name: &str, program: &str| json!({ "name": name, "command": "python3", "args": ["-c", program] });
    let body = json!({
        "tasks": [python("ask", ASK), python("reply", REPLY)],
        "connect": [["ask.stdout", "reply.stdin"], ["reply.stdout", "ask.stdin"]]
    });
    let client = Client::of(server, "/execute", &body);
    let piped = || {
        let started = Instant::now();
        let script = "PATH=/usr/bin:/bin; mkfifo \"$0/p\"; python3 -c \"$1\" < \"$0/p\" | python3 -c \"$2\" > \"$0/p\"; rm \"$0/p\"";
        let dir = tempfile::tempdir().unwrap();
        let status = Command::new("bash").args(["-c", script]).arg(dir.path()).args([ASK, REPLY]).status().unwrap();
        assert!(status.success());
        started.elapsed()
    };
    let [piped, faber] = in_turns(run.args.times(20, 4), [&piped, &|| client.ask()]);
    let ratio = faber / piped;
    run.tell(format!(
        "  {:54} {faber:>8.2} {piped:>8.2} {ratio:.2} x",
        "1,000 lines to and fro, beside a pair of pipes"
    ));
    run.raw.insert("1,000 lines".into(), json!({ "faber": faber, "pipes": piped }));
    run.at_most("1,000 lines to and fro: a bare pair of pipes", ratio, 3.0, 1.5, "x");
}
