//! What users of other engines keep reporting.

use serde_json::{Value, json};

use crate::support::Server;

const MIB: u64 = 1 << 20;
const SECOND: u64 = 1_000_000_000;

fn bash(script: &str, limits: Value) -> Value {
    json!({ "command": "bash", "args": ["-c", script], "resource_limits": limits })
}

fn python(program: &str, limits: Value) -> Value {
    json!({ "command": "python3", "args": ["-c", program], "resource_limits": limits })
}

#[track_caller]
fn is(result: &Value, status: &str) {
    assert_eq!(result["status"], status, "{result}");
}

#[test]
fn a_task_that_stops_itself_still_ends_at_its_wall_limit() {
    let result = Server::start_open().run(bash("echo before; kill -STOP $$", json!({ "wall_time_limit": 2 * SECOND })));
    is(&result, "Timeout");
    assert_eq!(result["stdout"], "before\n");
}

#[test]
fn a_task_that_ignores_every_signal_still_ends() {
    let script = "trap '' TERM INT HUP QUIT XCPU; while :; do sleep 1; done";
    is(&Server::start_open().run(bash(script, json!({ "wall_time_limit": SECOND / 2 }))), "Timeout");
}

#[test]
fn a_big_bss_costs_what_is_touched() {
    let server = Server::start_open();
    let program = |body: &str| {
        format!("printf 'char b[1L << 30]; int main(void) {{ {body} return 0; }}' > a.c && cc -O0 a.c && exec ./a.out")
    };
    let limits = json!({ "memory_limit": 256 * MIB });
    is(&server.run(bash(&program(""), limits.clone())), "Success");
    is(
        &server.run(bash(&program("for (long i = 0; i < 1L << 30; i += 4096) b[i] = 1;"), limits)),
        "MemoryLimitExceeded",
    );
}

#[test]
fn a_memory_limit_of_eight_mebibytes_is_one() {
    let server = Server::start_open();
    let limits = json!({ "memory_limit": 8 * MIB });
    is(&server.run(json!({ "command": "true", "resource_limits": limits })), "Success");
    is(&server.run(python("b = bytearray(16 << 20)", limits)), "MemoryLimitExceeded");
}

#[test]
fn a_limit_above_the_machines_memory_is_refused() {
    let result =
        Server::start_open().run(json!({ "command": "true", "resource_limits": { "memory_limit": 1u64 << 50 } }));
    is(&result, "NotExecuted");
    assert!(result["error"].as_str().unwrap().contains("maximum"), "{result}");
}

#[test]
fn a_program_written_and_executed_at_once_is_never_busy() {
    let server = Server::start_open();
    let script = "for i in 1 2 3 4 5; do cp /usr/bin/true p$i && ./p$i || exit 1; done";
    let body = server.execute(json!(vec![bash(script, json!({})); 40])).json();
    for result in body["results"].as_array().unwrap() {
        is(result, "Success");
    }
}

#[test]
fn address_space_may_be_reserved_far_beyond_the_memory_limit() {
    let server = Server::start_open();
    let program = "import mmap; m = mmap.mmap(-1, 64 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000); m[0] = 1; print('reserved')";
    let result = server.run(python(program, json!({ "memory_limit": 32 * MIB })));
    is(&result, "Success");
    assert_eq!(result["stdout"], "reserved\n");
    let limits = json!({ "memory_limit": 128 * MIB, "max_processes": 24 });
    let node =
        server.run(json!({ "command": "node", "args": ["-e", "console.log(6 * 7)"], "resource_limits": limits }));
    is(&node, "Success");
    assert_eq!(node["stdout"], "42\n");
}

#[test]
fn processes_of_other_tasks_never_count() {
    let server = Server::start(&["--open-mode"], &[("FABER_EXECUTION__CONCURRENCY", "4")]);
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.5 & done; wait";
    let body = server.execute(json!(vec![bash(script, json!({ "max_processes": 10 })); 4])).json();
    for result in body["results"].as_array().unwrap() {
        is(result, "Success");
        assert_eq!(result["resource_limits_exceeded"]["process_limit_exceeded"], false);
        assert_eq!(result["resource_usage"]["process_count"], 10, "{result}");
    }
}

#[test]
fn a_child_that_outlives_its_parent_does_not_hold_up_the_answer() {
    let result = Server::start_open().run(bash("(setsid sleep 1000 &); echo done", json!({})));
    is(&result, "Success");
    assert_eq!(result["stdout"], "done\n");
    assert!(result["resource_usage"]["wall_time_ns"].as_u64().unwrap() < 30 * SECOND, "{result}");
}

#[test]
fn partial_output_survives_every_kind_of_end() {
    let server = Server::start_open();
    let cases = [
        ("exit 7", json!({}), "Failure"),
        ("kill -9 $$", json!({}), "Failure"),
        ("kill -SEGV $$", json!({}), "Failure"),
        ("sleep 60", json!({ "wall_time_limit": 2 * SECOND }), "Timeout"),
        ("while :; do :; done", json!({ "cpu_time_limit": SECOND }), "CpuLimitExceeded"),
        ("exec tail /dev/zero", json!({ "memory_limit": 16 * MIB }), "MemoryLimitExceeded"),
        ("yes", json!({ "max_output_size": 12 }), "ResourceLimitExceeded"),
    ];
    for (end, limits, status) in cases {
        let result = server.run(bash(&format!("echo out; echo error >&2; {end}"), limits));
        is(&result, status);
        let [stdout, stderr] = ["stdout", "stderr"].map(|name| result[name].as_str().unwrap_or_default());
        assert!(stdout.starts_with("out\n"), "{end}: {result}");
        if end == "yes" {
            // Which of the two is read first is nobody's promise; that both together are no more is.
            assert_eq!(stdout.len() + stderr.len(), 12, "{result}");
        } else {
            assert_eq!(stderr, "error\n", "{end}: {result}");
        }
    }
}

#[test]
fn a_hundred_tasks_at_once_all_answer() {
    let server = Server::start_open();
    let ask = |n: usize| {
        let body = json!({ "tasks": [{ "command": "echo", "args": [n.to_string()] }] }).to_string();
        let mut answer =
            ureq::post(format!("{}/execute", server.url())).content_type("application/json").send(body).unwrap();
        answer.body_mut().read_json::<Value>().unwrap()
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..100).map(|n| (n, scope.spawn(move || ask(n)))).collect();
        for (n, client) in clients {
            assert_eq!(client.join().unwrap()["results"][0]["stdout"], format!("{n}\n"));
        }
    });
}

#[test]
fn shared_memory_is_never_shared_between_tasks() {
    let server = Server::start(&["--open-mode"], &[("FABER_EXECUTION__CONCURRENCY", "2")]);
    // Both create the same names, and live at the same time.
    let program = r#"
import ctypes, os, time
os.open("/dev/shm/mine", os.O_CREAT | os.O_EXCL | os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
IPC_CREAT, IPC_EXCL = 0o1000, 0o2000
for make in (lambda: libc.shmget(4711, 4096, IPC_CREAT | IPC_EXCL | 0o666), lambda: libc.semget(4711, 1, IPC_CREAT | IPC_EXCL | 0o666),
             lambda: libc.msgget(4711, IPC_CREAT | IPC_EXCL | 0o666)):
    print(make() >= 0)
time.sleep(0.5)
"#;
    for _ in 0..2 {
        let body = server.execute(json!([python(program, json!({})), python(program, json!({}))])).json();
        for result in body["results"].as_array().unwrap() {
            assert_eq!(result["stdout"], "True\nTrue\nTrue\n", "{result}");
        }
    }
}

#[test]
fn death_by_a_real_time_signal_is_told_at_once() {
    let result = Server::start_open().run(bash("kill -40 $$", json!({})));
    is(&result, "Failure");
    assert_eq!((&result["exit_code"], &result["error"]), (&json!(168), &json!("killed by signal 40")));
}

#[test]
fn the_output_can_be_opened_by_its_name() {
    let result = Server::start_open().run(bash("echo out > /dev/stdout; echo err > /dev/stderr", json!({})));
    assert_eq!((&result["stdout"], &result["stderr"]), (&json!("out\n"), &json!("err\n")), "{result}");
}

#[test]
fn files_need_no_more_memory_than_they_have() {
    let task = json!({ "command": "wc", "args": ["-c", "f"], "files": { "f": "x".repeat(9 << 20) },
        "resource_limits": { "memory_limit": 12 * MIB } });
    let result = Server::start_open().run(task);
    is(&result, "Success");
    assert_eq!(result["stdout"], format!("{} f\n", 9 << 20));
}

/// What the kernel counts for a user or for the whole machine must not be used up for others: not for root, whose
/// namespaces the slots' are not, and not for the next slot.
#[test]
fn a_task_cannot_use_up_what_everybody_shares() {
    let server = Server::start(&["--open-mode"], &[("FABER_RATE_LIMIT__ENABLED", "false")]);
    let hoard = r#"
import ctypes, os, signal, time
libc = ctypes.CDLL(None, use_errno=True)
signal.pthread_sigmask(signal.SIG_BLOCK, {40})
made = dict(inotify=0, aio=0, signals=0)
while libc.inotify_init() >= 0: made["inotify"] += 1
context = ctypes.c_ulong(0)
while libc.syscall(206, 8192, ctypes.byref(context)) == 0: made["aio"] += 1; context.value = 0
while made["signals"] < 200000 and libc.sigqueue(os.getpid(), 40, None) == 0: made["signals"] += 1
print(made, flush=True)
time.sleep(1.9)
"#;
    let url = server.url();
    let task = python(hoard, json!({ "max_file_descriptors": 1000 }));
    let client = std::thread::spawn(move || {
        let body = json!({ "tasks": [task] }).to_string();
        ureq::post(format!("{url}/execute"))
            .content_type("application/json")
            .send(body)
            .unwrap()
            .body_mut()
            .read_json::<Value>()
            .unwrap()
    });
    // While they are held: root here, and another task, still get theirs. Six looks cover the time it holds them.
    for _ in 0..6 {
        std::thread::sleep(std::time::Duration::from_millis(250));
        drop(
            rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).expect("an inotify instance for root"),
        );
        let other = "import ctypes, signal; print(ctypes.CDLL(None).inotify_init() >= 0); signal.setitimer(signal.ITIMER_REAL, 9)";
        assert_eq!(server.python(other), "True");
    }
    let body = client.join().unwrap();
    let result = &body["results"][0];
    is(result, "Success");
    let said = result["stdout"].as_str().unwrap();
    assert!(said.contains("'aio': 0") && !said.contains("'inotify': 0"), "{said}");
}

#[test]
fn a_fork_bomb_is_a_task_like_any_other() {
    let server = Server::start_open();
    let limits = json!({ "wall_time_limit": 5 * SECOND, "max_processes": 50 });
    let bomb = server.run(bash("b() { b | b & b; }; b", limits));
    assert_ne!(bomb["status"], "Success", "{bomb}");
    assert_eq!(bomb["resource_limits_exceeded"]["process_limit_exceeded"], true, "{bomb}");
    assert_eq!(server.shell("echo alive"), "alive");
}
