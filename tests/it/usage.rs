//! Programs of known cost, reported within stated bounds.

use serde_json::{Value, json};

use crate::support::Server;

const MIB: u64 = 1 << 20;
const MS: u64 = 1_000_000;

#[track_caller]
fn run(program: &str) -> Value {
    let server = Server::start_open();
    let result = server.run(json!({ "command": "python3", "args": ["-c", program] }));
    assert_eq!(result["status"], "Success", "{result}");
    result
}

#[track_caller]
fn usage(program: &str) -> Value {
    run(program)["resource_usage"].clone()
}

/// What a program used, and the sum of the nanoseconds of CPU time that its processes print of themselves, each before its
/// end: so the bounds hold on a slow machine too. The first of them has used some before it became the program, which is not
/// on its bill.
#[track_caller]
fn usage_and_own(program: &str) -> (Value, u64) {
    let result = run(program);
    let own = result["stdout"].as_str().unwrap().split_whitespace().map(|number| number.parse::<u64>().unwrap()).sum();
    (result["resource_usage"].clone(), own)
}

#[track_caller]
fn within(usage: &Value, field: &str, least: u64, most: u64) {
    let value = usage[field].as_u64().unwrap();
    assert!((least..=most).contains(&value), "{field}: {value} is not from {least} to {most}: {usage}");
}

#[test]
fn user_time_is_measured() {
    let (usage, own) =
        usage_and_own("import time\nwhile time.process_time() < 0.3: pass\nprint(time.process_time_ns())");
    within(&usage, "cpu_time_ns", own * 9 / 10, own * 2);
    within(&usage, "wall_time_ns", own, 30_000 * MS);
    let sum = usage["user_time_ns"].as_u64().unwrap() + usage["system_time_ns"].as_u64().unwrap();
    assert_eq!(usage["cpu_time_ns"], sum);
}

#[test]
fn system_time_is_told_from_user_time() {
    // As much as it takes to be more than the interpreter's own start, which on a slow machine is long.
    let usage = usage(
        "import os\nf = os.open('/dev/zero', 0)\nb = bytearray(1 << 20)\n\
         while os.times().system < 2 * os.times().user + 0.1: os.readv(f, [b])",
    );
    let (user, system) = (usage["user_time_ns"].as_u64().unwrap(), usage["system_time_ns"].as_u64().unwrap());
    assert!(system > user, "{usage}");
}

#[test]
fn cpu_time_of_ended_children_is_in_the_sum() {
    let program = "import os, time\ndef say(): os.write(1, b'%d\\n' % time.process_time_ns())\nfor i in range(3):\n  if not os.fork():\n    while time.process_time() < 0.1: pass\n    say()\n    os._exit(0)\nwhile True:\n  try: os.wait()\n  except ChildProcessError: break\nsay()";
    let (usage, own) = usage_and_own(program);
    assert!(own > 300 * MS);
    within(&usage, "cpu_time_ns", own * 9 / 10, own * 2);
}

#[test]
fn sleeping_costs_wall_time_only() {
    let (usage, own) = usage_and_own("import time; time.sleep(0.3); print(time.process_time_ns())");
    within(&usage, "wall_time_ns", 300 * MS, 10_000 * MS);
    within(&usage, "cpu_time_ns", own * 9 / 10, own * 2 + 10 * MS);
}

#[test]
fn touched_memory_is_in_the_peak() {
    let usage = usage("b = bytearray(64 << 20); del b");
    within(&usage, "memory_peak_bytes", 64 * MIB, 80 * MIB);
    within(&usage, "memory_current_bytes", 0, 32 * MIB);
}

#[test]
fn memory_of_files_that_stay_is_current() {
    let usage = usage("open('/workspace/f', 'wb').write(bytes(16 << 20))");
    within(&usage, "memory_current_bytes", 16 * MIB, 48 * MIB);
}

#[test]
fn written_bytes_are_counted_by_system_calls() {
    let usage =
        usage("import os\nf = os.open('f', os.O_CREAT | os.O_WRONLY)\nfor i in range(8): os.write(f, bytes(1 << 20))");
    within(&usage, "io_write_bytes", 8 * MIB, 8 * MIB + 4096);
}

#[test]
fn read_bytes_of_children_are_counted() {
    let usage =
        usage("import subprocess\nsubprocess.run(['head', '-c', '4M', '/dev/zero'], stdout=subprocess.DEVNULL)");
    within(&usage, "io_read_bytes", 4 * MIB, 6 * MIB);
    within(&usage, "io_write_bytes", 4 * MIB, 5 * MIB);
}

#[test]
fn output_counts_as_written() {
    let server = Server::start_open();
    let result = server.run(json!({ "command": "echo", "args": ["hello", "world"] }));
    assert_eq!(result["resource_usage"]["io_write_bytes"], 12, "{result}");
    assert_eq!(result["resource_usage"]["process_count"], 1);
    // Its three, and on a slow machine the libraries that a look finds it opening.
    within(&result["resource_usage"], "file_descriptors", 3, 5);
}

#[test]
fn children_alive_at_once_are_counted() {
    let program = "import subprocess as s\np = [s.Popen(['sleep', '0.1']) for i in range(5)]\n[q.wait() for q in p]";
    within(&usage(program), "process_count", 6, 6);
}

#[test]
fn set_up_is_never_charged_to_the_task() {
    let server = Server::start_open();
    let big = "x".repeat(4 << 20);
    let usage = |files: Value| {
        let result = server.run(json!({ "command": "true", "files": files }));
        assert_eq!(result["status"], "Success", "{result}");
        result["resource_usage"].clone()
    };
    let (without, with) = (usage(json!({})), usage(json!({ "a": big, "b": big })));
    assert_eq!(with["io_write_bytes"], 0, "{with}");
    // Copying eight MiB in takes several times what `true` does.
    let alone = without["cpu_time_ns"].as_u64().unwrap();
    within(&with, "cpu_time_ns", 1, 2 * alone + 4 * MS);
    within(&with, "wall_time_ns", 1, 1_000 * MS);
}
