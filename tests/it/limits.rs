//! Each limit, hit and just not hit, alone and with children; through HTTP and through `faber run`.

use serde_json::{Value, json};

use crate::support::{Server, eventually, faber_run};

const MIB: u64 = 1 << 20;
const SECOND: u64 = 1_000_000_000;

/// Runs `task` both ways, and lets `check` look at both results.
#[track_caller]
fn both(task: Value, check: impl Fn(&Value)) {
    let server = Server::start_open();
    check(&server.run(task.clone()));
    check(&faber_run(&task));
}

fn shell(script: &str, limits: Value) -> Value {
    json!({ "command": "bash", "args": ["-c", script], "resource_limits": limits })
}

fn python(program: &str, limits: Value) -> Value {
    json!({ "command": "python3", "args": ["-c", program], "resource_limits": limits })
}

#[track_caller]
fn ended(result: &Value, status: &str, flag: &str) {
    assert_eq!(result["status"], status, "{result}");
    assert!(result["exit_code"].is_null() && result["error"].is_string(), "{result}");
    flagged(result, flag);
}

/// Exactly the named flag is set.
#[track_caller]
fn flagged(result: &Value, flag: &str) {
    for (name, value) in result["resource_limits_exceeded"].as_object().unwrap() {
        assert_eq!(value, name == flag, "{name}: {result}");
    }
}

#[track_caller]
fn fine(result: &Value) {
    assert_eq!((&result["status"], &result["exit_code"]), (&json!("Success"), &json!(0)), "{result}");
    flagged(result, "");
}

/// The least that may be asked, by many at once: the set-up has no part in it, however long that takes.
#[test]
fn the_shortest_limits_are_never_met_by_the_set_up() {
    let server = Server::start_open();
    let limits = [("wall_time_limit", "Timeout"), ("cpu_time_limit", "CpuLimitExceeded")];
    for (limit, status) in limits {
        let task = json!({ "command": "bash", "args": ["-c", "while :; do :; done"], "resource_limits": { limit: 1_000_000 } });
        for _ in 0..5 {
            let results = server.execute(json!(vec![task.clone(); 30])).json();
            for result in results["results"].as_array().unwrap() {
                assert_eq!(result["status"], status, "{result}");
            }
        }
    }
}

#[test]
fn wall_time_is_a_timeout_and_keeps_the_output() {
    both(shell("echo before; sleep 60; echo after", json!({ "wall_time_limit": 3 * SECOND })), |result| {
        ended(result, "Timeout", "wall_time_limit_exceeded");
        assert_eq!(result["stdout"], "before\n");
        let wall = result["resource_usage"]["wall_time_ns"].as_u64().unwrap();
        assert!(wall >= 3 * SECOND, "{wall}");
    });
}

#[test]
fn wall_time_counts_for_children_too() {
    both(shell("sleep 60 & sleep 60 & wait", json!({ "wall_time_limit": SECOND / 2 })), |result| {
        ended(result, "Timeout", "wall_time_limit_exceeded");
    });
}

#[test]
fn below_every_limit_is_a_success() {
    let limits = json!({ "wall_time_limit": 20 * SECOND, "cpu_time_limit": 10 * SECOND, "memory_limit": 64 * MIB,
        "max_processes": 5, "max_file_descriptors": 16, "max_output_size": 6 });
    both(shell("(sleep 0.1; printf abc) & (sleep 0.1; printf def >&2) & wait", limits), |result| {
        fine(result);
        assert_eq!((&result["stdout"], &result["stderr"]), (&json!("abc"), &json!("def")));
    });
}

/// Runtimes abort, or wait for ever, when they get no thread: their own words seldom say so.
#[test]
fn the_process_limit_is_told_where_it_is_why_a_runtime_fails() {
    let few = |more: Value| {
        let mut limits = json!({ "max_processes": 3, "wall_time_limit": 20 * SECOND });
        limits.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        limits
    };
    let reached = "the process limit was reached (max_processes)";
    let threads = "import os, threading\ntry:\n  for _ in range(9): threading.Thread(target=threading.Event().wait).start()\nexcept RuntimeError: ";
    both(python(&format!("{threads}os.abort()"), few(json!({}))), |result| {
        assert_eq!(result["status"], "ResourceLimitExceeded", "{result}");
        assert_eq!(result["error"], format!("killed by signal 6 (SIGABRT); {reached}"));
    });
    both(python(&format!("{threads}os._exit(7)"), few(json!({}))), |result| {
        assert_eq!((&result["exit_code"], &result["error"]), (&json!(7), &json!(reached)), "{result}");
    });
    let waits = format!("{threads}import time; time.sleep(60)");
    both(python(&waits, few(json!({ "wall_time_limit": 2 * SECOND }))), |result| {
        assert_eq!(result["error"], format!("wall time limit of 2 s exceeded; {reached}"), "{result}");
    });
}

#[test]
fn cpu_time_is_its_own_status() {
    both(shell("echo before; while :; do :; done", json!({ "cpu_time_limit": SECOND / 2 })), |result| {
        ended(result, "CpuLimitExceeded", "cpu_time_limit_exceeded");
        assert_eq!(result["stdout"], "before\n");
    });
}

#[test]
fn cpu_time_is_that_of_all_processes_together() {
    let script = "for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait";
    both(
        shell(script, json!({ "cpu_time_limit": SECOND, "wall_time_limit": 60 * SECOND, "max_processes": 20 })),
        |result| {
            ended(result, "CpuLimitExceeded", "cpu_time_limit_exceeded");
            // Eight burners of the same priority: no single one got near the limit.
            let usage = &result["resource_usage"];
            assert!(usage["cpu_time_ns"].as_u64().unwrap() >= SECOND, "{usage}");
            assert!(usage["process_count"].as_u64().unwrap() >= 9, "{usage}");
        },
    );
}

#[test]
fn cpu_time_just_below_the_limit_is_fine() {
    let program = "import time\nwhile time.process_time() < 0.5: pass";
    both(python(program, json!({ "cpu_time_limit": 5 * SECOND })), fine);
}

#[test]
fn memory_is_its_own_status_and_keeps_the_output() {
    both(shell("echo before; exec tail /dev/zero", json!({ "memory_limit": 32 * MIB })), |result| {
        ended(result, "MemoryLimitExceeded", "");
        assert_eq!(result["stdout"], "before\n");
        let peak = result["resource_usage"]["memory_peak_bytes"].as_u64().unwrap();
        assert!((24 * MIB..=32 * MIB).contains(&peak), "{peak}");
    });
}

#[test]
fn memory_of_a_child_ends_the_whole_task() {
    let script = "bash -c 'exec tail /dev/zero'; echo $?; sleep 60";
    both(shell(script, json!({ "memory_limit": 32 * MIB })), |result| ended(result, "MemoryLimitExceeded", ""));
}

#[test]
fn memory_counts_files_in_every_tmpfs() {
    for dir in ["/workspace", "/tmp", "/dev/shm"] {
        let script = format!("exec head -c 60M /dev/zero > {dir}/file");
        both(shell(&script, json!({ "memory_limit": 32 * MIB })), |result| ended(result, "MemoryLimitExceeded", ""));
    }
}

#[test]
fn memory_just_below_the_limit_is_fine() {
    both(python("b = bytearray(64 << 20)", json!({ "memory_limit": 96 * MIB })), |result| {
        fine(result);
        let peak = result["resource_usage"]["memory_peak_bytes"].as_u64().unwrap();
        assert!((64 * MIB..=96 * MIB).contains(&peak), "{peak}");
    });
}

#[test]
fn memory_that_the_machine_lacks_is_not_the_tasks_limit() {
    let server = Server::start_open();
    // A machine, or a container that Faber is in, whose memory is less than what tasks may have together.
    let files = ["memory.limit_in_bytes", "memory.max"].map(|file| format!("faber/{}/{file}", server.instance()));
    let is_above = |path: &std::path::Path| files.iter().any(|file| path.ends_with(file));
    let groups = crate::support::groups_of(server.instance());
    let candidates =
        groups.iter().flat_map(|group| ["memory.limit_in_bytes", "memory.max"].map(|file| group.join(file)));
    let limits: Vec<_> = candidates.filter(|path| path.exists() && is_above(path)).collect();
    assert_eq!(limits.len(), 1, "{groups:?}");
    std::fs::write(&limits[0], (160 * MIB).to_string()).unwrap();
    let hungry =
        python("x = bytearray(300 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\nprint('done')", json!({}));
    let result = server.run(hungry.clone());
    assert_eq!((&result["status"], &result["exit_code"]), (&json!("Failure"), &Value::Null), "{result}");
    assert!(result["error"].as_str().unwrap().contains("machine ran out of memory"), "{result}");
    assert!(server.log().contains("lower execution.memory_budget"), "{}", server.log());
    // Its own limit is told as such all the same.
    let own = python(
        "x = bytearray(100 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1",
        json!({ "memory_limit": 48 * MIB }),
    );
    ended(&server.run(own), "MemoryLimitExceeded", "memory_limit_exceeded");
    std::fs::write(&limits[0], "8G").unwrap();
    fine(&server.run(hungry));
}

#[test]
fn a_task_that_kills_itself_has_not_met_the_memory_limit() {
    both(shell("kill -9 $$", json!({ "memory_limit": 32 * MIB })), |result| {
        assert_eq!((&result["status"], &result["exit_code"]), (&json!("Failure"), &json!(137)), "{result}");
        assert_eq!(result["error"], "killed by signal 9 (SIGKILL)");
        flagged(result, "");
    });
}

#[test]
fn processes_beyond_the_limit_cannot_be_made() {
    let program = "import os, sys, time\nmade = 0\nwhile True:\n  try: pid = os.fork()\n  except BlockingIOError: break\n  if not pid: time.sleep(60)\n  made += 1\nprint(made); sys.exit(1)";
    both(python(program, json!({ "max_processes": 5 })), |result| {
        assert_eq!((&result["status"], &result["exit_code"]), (&json!("ResourceLimitExceeded"), &json!(1)), "{result}");
        // Itself and four more.
        assert_eq!(result["stdout"], "4\n");
        flagged(result, "process_limit_exceeded");
        assert_eq!(result["resource_usage"]["process_count"], 5);
    });
}

#[test]
fn meeting_the_process_limit_and_succeeding_all_the_same_is_a_success() {
    let program = "import os, time\nwhile True:\n  try: pid = os.fork()\n  except BlockingIOError: break\n  if not pid: time.sleep(60)";
    both(python(program, json!({ "max_processes": 3 })), |result| {
        assert_eq!((&result["status"], &result["exit_code"]), (&json!("Success"), &json!(0)), "{result}");
        flagged(result, "process_limit_exceeded");
    });
}

#[test]
fn as_many_processes_as_allowed_can_be_made() {
    both(shell("sleep 0.1 & sleep 0.1 & sleep 0.1 & wait", json!({ "max_processes": 4 })), |result| {
        fine(result);
        assert_eq!(result["resource_usage"]["process_count"], 4);
    });
}

#[test]
fn a_descriptor_that_was_refused_is_told_however_short_it_was() {
    let wanting = [
        "f = [open('/dev/null') for _ in range(200)]",
        "while True: os.dup(0)",
        "while True: fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 0)",
        "held = []\nwhile True: held.append(socket.socket())",
        "while True: os.pipe()",
        "while True: os.eventfd(0)",
        // Another process, and another thread, of the task's.
        "import subprocess\nsubprocess.run([sys.executable, '-c', 'import os\\nwhile True: os.dup(0)'], check=True)",
        "import threading\nt = threading.Thread(target=lambda: [os.dup(0) for _ in range(60)])\nt.start(); t.join(); sys.exit(3)",
    ];
    for wanting in wanting {
        let program = format!("import fcntl, os, socket, sys\n{wanting}");
        both(python(&program, json!({ "max_file_descriptors": 50 })), |result| {
            assert_eq!(result["status"], "ResourceLimitExceeded", "{wanting}: {result}");
            flagged(result, "file_descriptor_limit_exceeded");
            assert_eq!(result["resource_usage"]["file_descriptors"], 50, "{wanting}");
        });
    }
    // All of them, and none refused; a refusal that the program makes nothing of.
    both(
        python("import os\nfor _ in range(5): os.dup(0)\nos._exit(4)", json!({ "max_file_descriptors": 8 })),
        |result| {
            assert_eq!((&result["status"], &result["exit_code"]), (&json!("Failure"), &json!(4)), "{result}");
            flagged(result, "");
            assert_eq!(result["resource_usage"]["file_descriptors"], 8);
        },
    );
    let program = "import os\ntry:\n  while True: os.dup(0)\nexcept OSError: print('full')";
    both(python(program, json!({ "max_file_descriptors": 20 })), |result| {
        assert_eq!((&result["status"], &result["stdout"]), (&json!("Success"), &json!("full\n")), "{result}");
        flagged(result, "file_descriptor_limit_exceeded");
    });
}

#[test]
fn file_descriptors_that_are_not_counted_are_sampled() {
    let program = "import os, sys, time\ntry:\n  while True: os.open('/dev/null', 0)\nexcept OSError: pass\nprint('full', flush=True); time.sleep(0.3); sys.exit(1)";
    both(python(program, json!({})), |result| {
        assert_eq!(
            (&result["status"], &result["stdout"]),
            (&json!("ResourceLimitExceeded"), &json!("full\n")),
            "{result}"
        );
        flagged(result, "file_descriptor_limit_exceeded");
        assert_eq!(result["resource_usage"]["file_descriptors"], 100);
    });
}

#[test]
fn as_many_file_descriptors_as_the_server_allows_can_be_asked_for() {
    both(shell("ulimit -n; ulimit -Hn", json!({ "max_file_descriptors": 4096 })), |result| {
        fine(result);
        assert_eq!(result["stdout"], "4096\n4096\n");
    });
}

#[test]
fn output_is_cut_at_the_limit_and_the_task_ended() {
    both(shell("yes", json!({ "max_output_size": 1000 })), |result| {
        ended(result, "ResourceLimitExceeded", "output_limit_exceeded");
        assert_eq!(result["stdout"].as_str().unwrap(), "y\n".repeat(500));
    });
}

#[test]
fn output_of_both_streams_counts_together() {
    // Between two pipes there is no order, so which of the last bytes is lost is open; how many are kept is not.
    both(shell("printf 1234567; printf 12345678 >&2", json!({ "max_output_size": 10 })), |result| {
        ended(result, "ResourceLimitExceeded", "output_limit_exceeded");
        let text = |stream: &str| result[stream].as_str().unwrap_or_default().to_owned();
        let (out, err) = (text("stdout"), text("stderr"));
        assert!("1234567".starts_with(&out) && "12345678".starts_with(&err), "{result}");
        assert_eq!(out.len() + err.len(), 10, "{result}");
    });
}

#[test]
fn output_of_exactly_the_limit_is_fine() {
    both(shell("head -c 100000 /dev/zero | tr '\\0' x", json!({ "max_output_size": 100_000 })), |result| {
        fine(result);
        assert_eq!(result["stdout"].as_str().unwrap().len(), 100_000);
    });
}

#[test]
fn a_gigabyte_of_output_costs_the_server_its_limit_and_no_more() {
    let server = Server::start_open();
    let peaks = || {
        let pids: Vec<i32> = ["front", "runner"].iter().flat_map(|role| server.processes(role)).collect();
        pids.iter().map(|pid| peak_kib(*pid)).max().unwrap()
    };
    fine(&server.run(json!({ "command": "true" })));
    let before = peaks();
    let result = server.run(shell("exec head -c 1G /dev/zero", json!({ "max_output_size": MIB })));
    ended(&result, "ResourceLimitExceeded", "output_limit_exceeded");
    assert_eq!(result["stdout"].as_str().unwrap().len() as u64, MIB);
    // Some copies on its way: the wire's, the text, the JSON with six characters for each NUL.
    assert!(peaks() < before + (40 << 10), "{before} KiB, then {} KiB", peaks());
}

/// The most physical memory a process has used (proc_pid_status(5), VmHWM).
fn peak_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_task_whose_limit_is_not_in_force_is_not_executed() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let server = Server::start_open();
    fine(&server.run(json!({ "command": "true" })));
    eventually("every runner is there", || server.processes("runner").len() > 1);
    // Nobody here may raise a hard limit again, so the task's hundred descriptors cannot be granted.
    for pid in server.processes("runner") {
        prlimit(Pid::from_raw(pid), Resource::Nofile, Rlimit { current: Some(50), maximum: Some(50) }).unwrap();
    }
    // Containers that were made before that are used up first.
    let ask =
        |descriptors: u64| json!({ "command": "true", "resource_limits": { "max_file_descriptors": descriptors } });
    let mut body = Value::Null;
    eventually("the limit cannot be granted", || {
        body = server.execute(json!([ask(100), ask(20)])).json();
        body["results"][0]["status"] == "NotExecuted"
    });
    let refused = &body["results"][0];
    assert_eq!((&refused["exit_code"], &refused["stdout"]), (&Value::Null, &Value::Null), "{refused}");
    assert_eq!(refused["error"], "a resource limit could not be put in force");
    fine(&body["results"][1]);
    let log = server.log();
    let cause =
        log.lines().find(|line| line.contains("put the task's limits in force")).unwrap_or_else(|| panic!("{log}"));
    let id = serde_json::from_str::<Value>(cause).unwrap()["span"]["id"].clone();
    assert!(id.is_string(), "the operator finds the cause under the request's id: {cause}");
}

#[test]
fn the_configured_maxima_cap_what_a_task_may_ask() {
    let env = [("FABER_LIMITS__MAX__MEMORY", "64M"), ("FABER_RATE_LIMIT__ENABLED", "false")];
    let server = Server::start(&["--open-mode"], &env);
    let ask = |memory: u64| server.run(json!({ "command": "true", "resource_limits": { "memory_limit": memory } }));
    fine(&ask(64 * MIB));
    let refused = ask(64 * MIB + 1);
    assert_eq!(refused["status"], "NotExecuted");
    assert_eq!(
        refused["error"],
        "memory_limit 67108865 bytes (64.0 MiB) is above this server's maximum of 67108864 (64 MiB)"
    );
    // A default above the maximum is cut to it.
    ended(&server.run(json!({ "command": "tail", "args": ["/dev/zero"] })), "MemoryLimitExceeded", "");
}
