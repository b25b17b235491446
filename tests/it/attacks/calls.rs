//! A caller of random system calls: whatever a program may think of, and what nobody would.

use std::time::{Duration, Instant};

use serde_json::json;

use super::target::{Target, shown};
use crate::faults::{seed, times};

/// How long one task calls.
const ROUND: Duration = Duration::from_secs(2);

#[test]
fn random_system_calls_harm_nobody() {
    let mut target = Target::start("calls", &[]);
    let source = [include_str!("prelude.h"), include_str!("calls.c")].concat();
    let (begun, seconds) = (Instant::now(), times("TEST_SYSCALLS_SECONDS", 10) as u64);
    let (first, mut round, mut calls) = (seed(), 0, 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let seed = first + round;
        let script = format!("gcc -O1 -w -pthread -o /tmp/calls calls.c && exec /tmp/calls {seed} {}", ROUND.as_secs());
        let task = json!({
            "command": "bash", "args": ["-c", script], "files": { "calls.c": source }, "outputs": ["**"],
            "resource_limits": {
                "memory_limit": 256 << 20, "max_processes": 24, "cpu_time_limit": 10_000_000_000u64,
                "wall_time_limit": 15_000_000_000u64, "max_output_size": 1 << 20,
            },
        });
        let answer = target.post(&json!({ "tasks": [task] }).to_string());
        let result = &answer.json()["results"][0];
        // However it ends, and whatever its calls wrote: `calls` is told again and again.
        let stdout = result["stdout"].as_str().unwrap_or_default();
        let told = stdout.rsplit("calls ").find_map(|rest| rest.lines().next()?.parse::<u64>().ok());
        let error = result["error"].as_str().unwrap_or_default();
        let is_contained = answer.status == 200
            && result["status"] != "NotExecuted"
            && !error.contains("lost")
            && !stdout.contains("ESCAPED");
        let outcome = if is_contained { Ok(()) } else { Err(shown(result)) };
        let told = told.unwrap_or(0);
        calls += told;
        println!("TEST_SEED={seed}: {told} calls, {}", result["status"]);
        target.attacked(&format!("TEST_SEED={seed}"), outcome);
        round += 1;
    }
    println!("calls: {calls} random system calls in {round} tasks");
    target.end();
    assert!(calls > 1000 * round, "{calls} calls");
}
