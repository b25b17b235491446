//! Tasks that depend on each other: the graph, what passes along it, live pipes, verdicts, and steps that need not run again.

use std::fs;
use std::io::Read;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::content::{bash, python, sha256, task};
use crate::support::{FABER, Server, busybox, eventually, left, running};

const NO_LIMIT: (&str, &str) = ("FABER_RATE_LIMIT__ENABLED", "false");

#[track_caller]
fn statuses(results: &[Value]) -> Vec<&str> {
    results.iter().map(|result| result["status"].as_str().unwrap()).collect()
}

#[track_caller]
fn all_succeed(results: &[Value]) {
    assert!(results.iter().all(|result| result["status"] == "Success"), "{results:#?}");
}

#[track_caller]
fn not_executed(result: &Value, error: &str) {
    let told = ["status", "exit_code", "stdout", "error"].map(|key| result[key].clone());
    assert_eq!(told, [json!("NotExecuted"), Value::Null, Value::Null, json!(error)]);
}

#[test]
fn a_step_begins_when_its_needs_have_ended_and_results_keep_the_requests_order() {
    let clock = "import time; a = time.monotonic(); time.sleep(1); print(a, time.monotonic())";
    let step = |name: &str, needs: &[&str]| python(clock, json!({ "name": name, "needs": needs }));
    let tasks = json!([
        step("last", &["left", "right"]),
        step("left", &["first"]),
        step("first", &[]),
        step("right", &["first"])
    ]);
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "2")]);
    let results = server.results(&json!({ "tasks": tasks }));
    all_succeed(&results);
    let names: Vec<&str> = results.iter().map(|result| result["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["last", "left", "first", "right"]);
    let time = |at: usize, which: usize| -> f64 {
        results[at]["stdout"].as_str().unwrap().split_whitespace().nth(which).unwrap().parse().unwrap()
    };
    for (before, after) in [(2, 1), (2, 3), (1, 0), (3, 0)] {
        assert!(time(before, 1) <= time(after, 0), "{results:#?}");
    }
    assert!(time(1, 0) < time(3, 1) && time(3, 0) < time(1, 1), "the two in the middle run at once: {results:#?}");
}

#[test]
fn a_failure_blocks_what_needs_it_and_what_needs_that_but_not_what_always_runs() {
    let results = Server::start_open().results(&json!({ "tasks": [
        bash("echo said; exit 3", json!({ "name": "compile" })),
        bash("echo ran", json!({ "name": "run", "needs": ["compile"] })),
        bash("echo ran", json!({ "needs": ["run"] })),
        bash("echo ran", json!({ "name": "report", "needs": ["compile", "run"], "run_when": "always" })),
        bash("cat", json!({ "stdin": { "from": "compile", "stream": "stdout" }, "run_when": "always" })),
        bash("echo ran", json!({ "needs": ["report"] })),
        bash("sleep 9", json!({ "name": "slow", "resource_limits": { "wall_time_limit": 100_000_000 } })),
        bash("echo ran", json!({ "needs": ["slow"] })),
        bash("cat", json!({ "stdin": { "from": "run", "stream": "stdout" }, "run_when": "always" })),
        bash("echo ran", json!({})),
    ] }));
    not_executed(&results[1], "needs compile, which ended with Failure");
    not_executed(&results[2], "needs run, which ended with NotExecuted");
    assert_eq!([3, 4, 5].map(|at| &results[at]["stdout"]), ["ran\n", "said\n", "ran\n"]);
    not_executed(&results[7], "needs slow, which ended with Timeout");
    not_executed(&results[8], "run did not run, so it left nothing to take");
    assert_eq!(results[9]["stdout"], "ran\n");
}

#[test]
fn what_is_refused_blocks_like_what_has_failed() {
    let results = Server::start_open().results(&json!({ "tasks": [
        bash("true", json!({ "name": "a", "image": "nowhere" })),
        bash("echo ran", json!({ "needs": ["a"] })),
        bash("echo ran", json!({ "needs": ["a"], "run_when": "always" })),
    ] }));
    not_executed(&results[1], "needs a, which ended with NotExecuted");
    assert_eq!(results[2]["stdout"], "ran\n");
}

#[test]
fn references_are_the_exact_bytes_with_the_mode_and_count_in_no_output_limit() {
    let limits = json!({ "max_output_size": 10 });
    let source = "head -c 5242880 /dev/urandom | tee f; chmod 750 f; mkdir d; printf '\\0\\377' >d/e; chmod 604 d/e; echo note >&2";
    let results = Server::start_open().results(&json!({ "tasks": [
        bash(source, json!({ "name": "source", "resource_limits": limits })),
        bash("cmp f -; cmp f in/g; stat -c %a f in/g m d", json!({
            "stdin": { "from": "source", "stream": "stdout" },
            "files": { "f": { "from": "source", "file": "f" }, "in/g": { "from": "source", "file": "f", "mode": "0644" },
                "m": { "from": "source", "stream": "stdout" }, "d": { "from": "source", "file": "d/e" } },
        })),
        bash("cat", json!({ "stdin": { "from": "source", "stream": "stderr" } })),
    ] }));
    assert_eq!(results[0]["status"], "Success", "{}", results[0]);
    assert_eq!(results[0]["resource_limits_exceeded"]["output_limit_exceeded"], false);
    assert_eq!(results[1]["stdout"], "750\n644\n755\n604\n", "{}", results[1]);
    assert_eq!(results[2]["stdout"], "note\n", "{}", results[2]);
    // None of the files was asked for, so none is told.
    assert!(results[0].get("files").is_none());
}

/// What is handed on leaves the limit to what is not.
#[test]
fn a_stream_that_is_handed_on_does_not_use_up_the_others_limit() {
    let server = Server::start_open();
    let ask = |script: &str, merge: Value| {
        let more = json!({ "name": "source", "resource_limits": { "max_output_size": 10 }, "merge_output": merge });
        let sink = bash("wc -c", json!({ "stdin": { "from": "source", "stream": "stdout" }, "run_when": "always" }));
        server.results(&json!({ "tasks": [bash(script, more), sink] }))
    };
    let results = ask("head -c 1M /dev/zero; echo note >&2", json!(false));
    all_succeed(&results);
    assert_eq!((&results[0]["stderr"], &results[1]["stdout"]), (&json!("note\n"), &json!("1048576\n")));
    assert!(results[0]["stdout"].as_str().unwrap().len() <= 5, "{}", results[0]);
    let results = ask("head -c 1M /dev/zero; echo a note of more >&2; sleep 9", json!(false));
    assert_eq!((&results[0]["status"], &results[1]["stdout"]), (&json!("ResourceLimitExceeded"), &json!("1048576\n")));
    let results = ask("head -c 1M /dev/zero; echo note >&2", json!("beside"));
    all_succeed(&results);
    assert!(results[0]["output"].as_str().unwrap().len() <= 15, "{}", results[0]);
}

#[test]
fn what_is_handed_on_is_bounded() {
    let env = [NO_LIMIT, ("FABER_OUTPUTS__EACH", "1M"), ("FABER_OUTPUTS__TOTAL", "2M")];
    let server = Server::start(&["--open-mode"], &env);
    let results = server.results(&json!({ "tasks": [
        bash("head -c 2M /dev/zero", json!({ "name": "fits" })),
        bash("wc -c", json!({ "stdin": { "from": "fits", "stream": "stdout" } })),
        bash("head -c 3M /dev/zero; sleep 9", json!({ "name": "large" })),
        bash("wc -c", json!({ "stdin": { "from": "large", "stream": "stdout" } })),
        bash("head -c 1048577 /dev/zero >f", json!({ "name": "file" })),
        bash("wc -c f", json!({ "files": { "f": { "from": "file", "file": "f" } } })),
    ] }));
    assert_eq!(results[1]["stdout"], "2097152\n", "{}", results[1]);
    assert_eq!(results[2]["status"], "ResourceLimitExceeded", "{}", results[2]);
    not_executed(&results[3], "needs large, which ended with ResourceLimitExceeded");
    not_executed(
        &results[5],
        "file left a file \"f\" that is not handed on: its 1048577 bytes (1.0 MiB) are more than the 1 MiB a file may have",
    );
}

#[test]
fn what_has_no_room_on_its_way_is_told() {
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_OUTPUTS__SPOOL", "4M")]);
    let results = server.results(&json!({ "tasks": [
        bash("head -c 8M /dev/zero; sleep 9", json!({ "name": "a" })),
        bash("wc -c", json!({ "stdin": { "from": "a", "stream": "stdout" } })),
    ] }));
    assert_eq!(results[0]["status"], "Failure", "{}", results[0]);
    assert!(results[0]["error"].as_str().unwrap().contains("outputs.spool"), "{}", results[0]);
    not_executed(&results[1], "needs a, which ended with Failure");
    let fits = server.results(&json!({ "tasks": [
        bash("head -c 3M /dev/zero", json!({ "name": "a" })),
        bash("wc -c", json!({ "stdin": { "from": "a", "stream": "stdout" } })),
    ] }));
    assert_eq!(fits[1]["stdout"], "3145728\n", "{fits:?}");
}

/// Every descriptor that was handed on is closed again, in every process.
#[test]
fn graphs_leave_no_descriptors() {
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "2")]);
    let blob = server.put(&vec![b'x'; 200_000]);
    let body = json!({
        "tasks": [
            bash("head -c 200000 /dev/zero | tee f g", json!({ "name": "source", "stdin": { "blob": blob }, "outputs": ["*"] })),
            bash("cat", json!({ "name": "sink", "stdin": { "from": "source", "stream": "stdout" },
                "files": { "f": { "from": "source", "file": "f" }, "b": { "blob": blob } } })),
            bash("yes", json!({ "name": "a", "needs": ["sink"] })),
            bash("head -n 3", json!({ "name": "b", "record": ["stdout"] })),
            bash("cat", json!({ "name": "c" })),
            bash("exit 1", json!({ "name": "wrong", "cache": true })),
            bash("true", json!({ "needs": ["wrong"], "stdin": { "from": "source", "file": "g" } })),
        ],
        "connect": [["a.stdout", "b.stdin"], ["b.stdout", "c.stdin"]],
    });
    let ask = || drop(server.results(&body));
    let front = server.front();
    let descriptors = || -> Vec<usize> {
        let processes = [server.pid(), front].into_iter().chain(server.processes("runner"));
        processes.map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)).collect()
    };
    (0..5).for_each(|_| ask());
    let (mut before, mut same) = (descriptors(), 0);
    eventually("quiet", || {
        let now = descriptors();
        same = if now == before { same + 1 } else { 0 };
        before = now;
        same == 30
    });
    (0..15).for_each(|_| ask());
    let mut now = Vec::new();
    eventually("as many as before", || {
        now = descriptors();
        // Connections that are kept come and go.
        now.iter().zip(&before).all(|(now, before)| now.abs_diff(*before) <= 3)
    });
}

#[test]
fn a_reference_to_what_was_not_left_names_it() {
    let results = Server::start_open().results(&json!({ "tasks": [
        bash("mkdir dir; ln -s /etc/passwd link; mkfifo fifo; echo x >file", json!({ "name": "a" })),
        bash("echo ran", json!({ "files": { "x": { "from": "a", "file": "none" } } })),
        bash("echo ran", json!({ "files": { "x": { "from": "a", "file": "dir" } } })),
        bash("echo ran", json!({ "files": { "x": { "from": "a", "file": "link" } } })),
        bash("echo ran", json!({ "stdin": { "from": "a", "file": "fifo" } })),
        bash("echo ran", json!({ "archives": [{ "from": "a", "file": "file", "format": "tar" }] })),
    ] }));
    for (at, file) in [(1, "none"), (2, "dir"), (3, "link"), (4, "fifo")] {
        not_executed(&results[at], &format!("a left no file {file:?}"));
    }
    assert_eq!((&results[5]["status"], &results[5]["stdout"]), (&json!("NotExecuted"), &Value::Null), "{}", results[5]);
}

#[test]
fn an_archive_of_one_step_is_unpacked_for_another() {
    let results = Server::start_open().results(&json!({ "tasks": [
        bash("mkdir t; echo in >t/f; tar -cz t", json!({ "name": "pack" })),
        bash("cat w/t/f", json!({ "archives": [{ "from": "pack", "stream": "stdout", "format": "tar.gz", "path": "w" }] })),
    ] }));
    assert_eq!(results[1]["stdout"], "in\n", "{}", results[1]);
}

#[test]
fn a_request_that_makes_no_sense_is_400_with_the_place_and_nothing_runs() {
    let server = Server::start_open();
    let named = |name: &str, more: Value| {
        let mut task = bash("sleep 4713.5", more);
        task["name"] = name.into();
        task
    };
    let plain = |name: &str| named(name, json!({}));
    let from = |name: &str| json!({ "stdin": { "from": name, "stream": "stdout" } });
    let table = [
        (json!([plain("a"), plain("a")]), json!([]), "tasks[1].name: a is the name of tasks[0], too"),
        (
            json!([named("a", json!({ "needs": ["b"] })), plain("bb")]),
            json!([]),
            "tasks[0]: there is no task b: did you mean bb?",
        ),
        (json!([named("a", json!({ "needs": ["a"] }))]), json!([]), "tasks[0]: it needs itself"),
        (json!([plain("b"), named("a", from("a"))]), json!([]), "tasks[1]: it needs itself"),
        (json!([plain("b"), named("a", from("nobody"))]), json!([]), "tasks[1]: there is no task nobody"),
        (
            json!([named("a", from("b")), named("b", json!({ "needs": ["a"] })), plain("c")]),
            json!([]),
            "tasks need each other in a circle: a needs b needs a",
        ),
        (json!([plain("a b")]), json!([]), "tasks[0].name"),
        (json!([plain(&"n".repeat(65))]), json!([]), "tasks[0].name"),
        (
            json!([plain("a"), named("b", json!({ "outputs": ["["] }))]),
            json!([]),
            "tasks[1].outputs[0]: output glob \"[\"",
        ),
        (
            json!([plain("a"), named("b", json!({ "outputs": ["/etc/passwd"] }))]),
            json!([]),
            "tasks[1].outputs[0]: output glob \"/etc/passwd\" is absolute",
        ),
        (json!([plain("a"), named("b", json!({ "run_when": "never" }))]), json!([]), "tasks[1].run_when"),
        (json!([plain("a"), plain("b")]), json!([["a.stdout", "c.stdin"]]), "connect[0]: there is no task c"),
        (json!([plain("a"), plain("b")]), json!([["a.stdin", "b.stdin"]]), "connect[0]: expected"),
        (json!([plain("a"), plain("b")]), json!([["a.stdout", "b.stdout"]]), "connect[0]: expected"),
        (json!([plain("a"), plain("b")]), json!([["a", "b.stdin"]]), "connect[0]: expected"),
        (json!([plain("a"), plain("b")]), json!([["a.stdout", "a.stdin"]]), "connect[0]: a is connected with itself"),
        (
            json!([plain("a"), plain("b")]),
            json!([["a.stdout", "b.stdin"], ["a.stderr", "b.stdin"]]),
            "connect[1]: b.stdin is connected already",
        ),
        (
            json!([plain("a"), plain("b")]),
            json!([["a.stdout", "b.stdin"], ["a.stdout", "b.stdin"]]),
            "connect[1]: a.stdout is connected already",
        ),
        (
            json!([plain("a"), named("b", json!({ "stdin": "x" }))]),
            json!([["a.stdout", "b.stdin"]]),
            "connect[0]: b has a stdin of its own",
        ),
        (
            json!([plain("a"), named("b", json!({ "needs": ["a"] }))]),
            json!([["a.stdout", "b.stdin"]]),
            "tasks[1]: it needs a, with which it is connected",
        ),
        (
            json!([plain("a"), plain("b"), named("c", from("a"))]),
            json!([["a.stdout", "b.stdin"]]),
            "tasks[2]: a is connected, so its stdout",
        ),
        (json!([named("a", json!({ "record": ["stdout"] }))]), json!([]), "tasks[0].record"),
        (
            json!([named("a", json!({ "expect": { "stdout": "" } })), plain("b")]),
            json!([["a.stdout", "b.stdin"]]),
            "tasks[0]: its output is connected",
        ),
        (
            json!([named("a", json!({ "expect": { "stdout": "", "compare": "fuzzy" } }))]),
            json!([]),
            "tasks[0].expect.compare",
        ),
        (
            json!([named("a", json!({ "expect": { "stdout": "", "compare": { "float": -1.0 } } }))]),
            json!([]),
            "tasks[0].expect.compare",
        ),
    ];
    for (tasks, connect, words) in table {
        let body = json!({ "tasks": tasks, "connect": connect }).to_string();
        let answer = server.post(&body, &[]);
        assert_eq!(answer.status, 400, "{words}: {}", answer.text);
        assert!(answer.json()["details"].as_str().unwrap().contains(words), "{words}: {}", answer.text);
    }
    assert!(running(&["sleep", "4713.5"]).is_empty());
}

#[test]
fn a_step_sees_nothing_of_anothers_workspace_processes_or_memory() {
    let leave = "echo secret >left; echo secret >/tmp/left; ln -s /workspace shared; sleep 4713.6 & sleep 4713.6 & disown -a; echo secret >/dev/shm/left; true";
    let look = "ls -A /workspace /tmp /dev/shm 2>/dev/null | grep -c left; grep -lc 4713.6 /proc/[0-9]*/cmdline 2>/dev/null | grep -v self | wc -l";
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "1")]);
    let results = server.results(&json!({ "tasks": [
        bash(leave, json!({ "name": "a" })),
        python(&format!("import subprocess; print(subprocess.run(['bash', '-c', {look:?}], capture_output=True, text=True).stdout)"), json!({ "needs": ["a"] })),
    ] }));
    // The one process whose command line has it is the looker's own shell.
    let seen: Vec<&str> =
        results[1]["stdout"].as_str().unwrap_or_else(|| panic!("{results:?}")).split_whitespace().collect();
    assert_eq!(seen[0], "0", "{results:?}");
    assert!(running(&["sleep", "4713.6"]).is_empty());
}

/// Both sides read a number, and write it one higher. The first one writes before, and not any more at its end.
fn counter(first: bool) -> String {
    let words = if first { ("True", 99) } else { ("False", 100) };
    format!(
        "import sys\nn = 0\nif {}: print(0, flush=True)\nfor at in range(100):\n  n = int(input()) + 1\n  \
         if at < {}: print(n, flush=True)\nprint('end at', n, file=sys.stderr)",
        words.0, words.1
    )
}

const BOTH_WAYS: [[&str; 2]; 2] = [["a.stdout", "b.stdin"], ["b.stdout", "a.stdin"]];

#[test]
fn connected_tasks_talk_to_each_other() {
    for concurrency in ["1", "2", "4"] {
        let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", concurrency)]);
        let body = json!({
            "tasks": [
                python(&counter(true), json!({ "name": "a", "record": ["stdout"] })),
                python(&counter(false), json!({ "name": "b" })),
                bash("echo beside", json!({})),
            ],
            "connect": BOTH_WAYS,
        });
        for _ in 0..3 {
            let results = server.results(&body);
            all_succeed(&results);
            assert_eq!([&results[0]["stderr"], &results[1]["stderr"]], ["end at 200\n", "end at 199\n"]);
            let recorded: String = (0..100).map(|n| format!("{}\n", 2 * n)).collect();
            assert_eq!((&results[0]["stdout"], &results[1]["stdout"]), (&json!(recorded), &Value::Null));
            assert!(results[0]["ended_first"].is_boolean() && results[2].get("ended_first").is_none());
        }
    }
}

#[test]
fn the_end_of_one_is_end_of_file_or_a_broken_pipe_for_the_other() {
    let server = Server::start_open();
    let ask = |a: Value, b: Value| server.results(&json!({ "tasks": [a, b], "connect": [["a.stdout", "b.stdin"]] }));
    for record in [json!([]), json!(["stdout"])] {
        let named = |name: &str| json!({ "name": name, "detail": true, "record": if name == "a" { record.clone() } else { json!([]) } });
        let results = ask(bash("echo x; exec sleep 0.3", named("a")), bash("wc -c; sleep 0.3", named("b")));
        all_succeed(&results);
        assert_eq!(results[1]["stdout"], "2\n");
        assert_eq!([&results[0]["ended_first"], &results[1]["ended_first"]], [&json!(true), &json!(false)]);

        let results = ask(task("yes", &[], named("a")), bash("head -n 1", named("b")));
        assert_eq!((&results[0]["signal"], &results[1]["stdout"]), (&json!("SIGPIPE"), &json!("y\n")), "{results:?}");
        assert_eq!([&results[0]["ended_first"], &results[1]["ended_first"]], [&json!(false), &json!(true)]);

        // Much more than pipes take, and byte by byte.
        let results = ask(bash("head -c 3M /dev/zero", named("a")), bash("sleep 0.2; sha256sum", named("b")));
        assert_eq!(
            results[0]["status"],
            if record == json!([]) { "Success" } else { "ResourceLimitExceeded" },
            "{results:?}"
        );
        if record == json!([]) {
            assert!(results[1]["stdout"].as_str().unwrap().starts_with(&sha256(&vec![0; 3 << 20])), "{results:?}");
        }
    }
}

/// Who closes its output says that it is at its end, and may go on.
#[test]
fn a_stream_that_is_closed_early_is_end_of_file_at_once() {
    let server = Server::start_open();
    for record in [json!([]), json!(["stdout"])] {
        let results = server.results(&json!({
            "tasks": [
                bash("echo question; exec >&-; cat >&2", json!({ "name": "a", "record": record })),
                bash("wc -c", json!({ "name": "b", "resource_limits": { "wall_time_limit": 5_000_000_000u64 } })),
            ],
            "connect": BOTH_WAYS,
        }));
        all_succeed(&results);
        assert_eq!(results[0]["stderr"], "9\n", "{results:?}");
    }
}

#[test]
fn many_connected_tasks_share_what_there_is() {
    let server = Server::start(
        &["--open-mode"],
        &[NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "2"), ("FABER_EXECUTION__QUEUE_TIMEOUT", "10m")],
    );
    let pair = |at: usize| {
        let part = |name: &str, script: &str| bash(script, json!({ "name": format!("{name}{at}") }));
        [part("a", "echo $$; read line; echo $line >&2"), part("b", "read line; echo reply"), part("c", "echo alone")]
    };
    let connect: Vec<Value> = (0..12)
        .flat_map(|at| {
            [[format!("a{at}.stdout"), format!("b{at}.stdin")], [format!("b{at}.stdout"), format!("a{at}.stdin")]]
        })
        .map(|ports| json!(ports))
        .collect();
    let body = json!({ "tasks": (0..12).flat_map(pair).collect::<Vec<_>>(), "connect": connect });
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3).map(|_| scope.spawn(|| all_succeed(&server.results(&body)))).collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
}

#[test]
fn connected_tasks_whose_turn_does_not_come_are_not_executed() {
    let env = [NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "1"), ("FABER_EXECUTION__QUEUE_TIMEOUT", "1s")];
    let server = Server::start(&["--open-mode"], &env);
    eventually("a task is run", || server.execute(json!([bash("true", json!({}))])).status == 200);
    let results = server.results(&json!({
        "tasks": [bash("sleep 3", json!({})), bash("echo ran >&2", json!({ "name": "a" })), bash("echo ran >&2", json!({ "name": "b" }))],
        "connect": [["a.stdout", "b.stdin"]],
    }));
    assert_eq!(statuses(&results), ["Success", "NotExecuted", "NotExecuted"], "{results:?}");
    assert!(results[1]["error"].as_str().unwrap().contains("for its turn"), "{results:?}");
}

#[test]
fn a_connected_stream_can_be_recorded_and_taken_by_a_third() {
    let results = Server::start_open().results(&json!({
        "tasks": [
            bash("seq 5; echo note >&2", json!({ "name": "a", "record": ["stdout"] })),
            bash("sort -rn", json!({ "name": "b" })),
            bash("wc -l", json!({ "stdin": { "from": "a", "stream": "stdout" } })),
            bash("cat", json!({ "stdin": { "from": "b", "stream": "stdout" } })),
        ],
        "connect": [["a.stdout", "b.stdin"]],
    }));
    all_succeed(&results);
    let stdout: Vec<&Value> = results.iter().map(|result| &result["stdout"]).collect();
    assert_eq!(stdout, ["1\n2\n3\n4\n5\n", "5\n4\n3\n2\n1\n", "5\n", "5\n4\n3\n2\n1\n"]);
    assert_eq!(results[0]["stderr"], "note\n");
}

#[test]
fn a_deadlock_ends_at_the_wall_limit_of_who_waits_and_it_is_told_who_was_first() {
    let limits = |millis: u64| json!({ "wall_time_limit": millis * 1_000_000 });
    let results = Server::start_open().results(&json!({
        "tasks": [
            bash("read line; echo got $? >&2", json!({ "name": "a", "resource_limits": limits(9000) })),
            bash("read line", json!({ "name": "b", "resource_limits": limits(400) })),
        ],
        "connect": BOTH_WAYS,
    }));
    assert_eq!(statuses(&results), ["Success", "Timeout"], "{results:?}");
    assert_eq!(results[0]["stderr"], "got 1\n");
    assert_eq!([&results[0]["ended_first"], &results[1]["ended_first"]], [&json!(false), &json!(true)]);
    let time = |at: usize| results[at]["resource_usage"]["wall_time_ns"].as_u64().unwrap();
    assert!(time(0) < 5_000_000_000 && time(1) < 5_000_000_000, "{results:?}");
}

#[test]
fn each_of_the_connected_has_limits_and_usage_of_its_own() {
    let results = Server::start_open().results(&json!({
        "tasks": [
            bash("cat >/dev/null; echo survived >&2", json!({ "name": "b", "resource_limits": { "memory_limit": 64 << 20 } })),
            bash("echo x; exec tail /dev/zero", json!({ "name": "a", "resource_limits": { "memory_limit": 16 << 20 } })),
        ],
        "connect": [["a.stdout", "b.stdin"]],
    }));
    assert_eq!(statuses(&results), ["Success", "MemoryLimitExceeded"], "{results:?}");
    assert_eq!(results[0]["stderr"], "survived\n");
}

#[test]
fn more_connected_tasks_than_there_is_room_for_are_refused_with_the_reason() {
    let env = [NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "1"), ("FABER_EXECUTION__MEMORY_BUDGET", "1G")];
    let server = Server::start(&["--open-mode"], &env);
    let named = |name: &str, memory: u64| {
        bash("echo ran >&2", json!({ "name": name, "resource_limits": { "memory_limit": memory << 20 } }))
    };
    let three = json!({ "tasks": [named("a", 64), named("b", 64), named("c", 64), bash("echo ran", json!({ "needs": ["a"] }))],
        "connect": [["a.stdout", "b.stdin"], ["b.stdout", "c.stdin"]] });
    let results = server.results(&three);
    for result in &results[..3] {
        not_executed(result, "3 connected tasks are more than the 2 that this server can run together");
        assert_eq!(result["stderr"], Value::Null);
    }
    not_executed(&results[3], "needs a, which ended with NotExecuted");
    let large = json!({ "tasks": [named("a", 600), named("b", 600)], "connect": [["a.stdout", "b.stdin"]] });
    for result in server.results(&large) {
        not_executed(&result, "the memory limits of connected tasks add up to 1200 MiB, and this server has 1 GiB");
    }
    let fits = json!({ "tasks": [named("a", 500), named("b", 500)], "connect": [["a.stdout", "b.stdin"]] });
    assert_eq!(statuses(&server.results(&fits)), ["Success", "Success"]);
}

#[test]
fn connected_tasks_start_together_or_not_at_all() {
    let server = Server::start_open();
    let named = |name: &str, mut more: Value| {
        more["name"] = name.into();
        bash("echo ran >&2", more)
    };
    let blob = format!("sha256:{}", "0".repeat(64));
    let table = [
        (json!({ "image": "nowhere" }), "unknown image \"nowhere\": this server has host"),
        (json!({ "files": { "f": { "blob": blob } } }), "there is no blob"),
        (
            json!({ "files": { "f": "x".repeat(2 << 20) }, "resource_limits": { "workspace_limit": 1 << 20 } }),
            "files: ",
        ),
        (json!({ "archives": [{ "text": "x", "format": "zip" }] }), "archives: "),
    ];
    for (more, reason) in table {
        let results = server.results(&json!({
            "tasks": [named("a", json!({})), named("b", more)], "connect": [["a.stdout", "b.stdin"]],
        }));
        for result in &results {
            assert_eq!((&result["status"], &result["stderr"]), (&json!("NotExecuted"), &Value::Null), "{result}");
        }
        assert!(results[1]["error"].as_str().unwrap().contains(reason), "{}", results[1]);
    }
}

#[test]
fn connected_tasks_are_blocked_together() {
    let results = Server::start_open().results(&json!({
        "tasks": [
            bash("false", json!({ "name": "first" })),
            bash("echo ran >&2", json!({ "name": "a", "needs": ["first"] })),
            bash("echo ran >&2", json!({ "name": "b" })),
        ],
        "connect": [["a.stdout", "b.stdin"]],
    }));
    for result in &results[1..] {
        not_executed(result, "needs first, which ended with Failure");
    }
}

#[test]
fn output_is_compared_with_what_was_expected() {
    let server = Server::start_open();
    let table = [
        ("exact", "1 2\n", "1 2\n", "Accepted"),
        ("exact", "1 2", "1 2\n", "WrongAnswer"),
        ("lines", "1 2  \n\n\n", "1 2", "Accepted"),
        ("lines", "1  2\n", "1 2\n", "WrongAnswer"),
        ("tokens", " 1\n\n2 ", "1 2", "Accepted"),
        ("tokens", "1 2 3", "1 2", "WrongAnswer"),
        ("float", "1.0000001 x", "1 x", "Accepted"),
        ("float", "1e9", "1000000100", "Accepted"),
        ("float", "1.1", "1", "WrongAnswer"),
    ];
    let tasks: Vec<Value> = table
        .iter()
        .map(|(compare, output, expected, _)| {
            let compare = if *compare == "float" { json!({ "float": 1e-6 }) } else { json!(compare) };
            task("printf", &["%s", output], json!({ "expect": { "stdout": expected, "compare": compare } }))
        })
        .collect();
    for (result, (compare, output, expected, verdict)) in server.results(&json!({ "tasks": tasks })).iter().zip(table) {
        assert_eq!(result["verdict"], verdict, "{compare} {output:?} {expected:?}");
        assert_eq!(result["message"].is_string(), verdict == "WrongAnswer", "{result}");
        assert_eq!(result["status"], "Success");
    }
}

#[test]
fn a_task_that_did_not_end_well_has_its_verdict_from_that() {
    let expect = json!({ "stdout": "x\n" });
    let table = [
        ("echo x", json!({}), "Accepted"),
        ("echo x; exit 1", json!({}), "RuntimeError"),
        ("echo x; kill -SEGV $$", json!({}), "RuntimeError"),
        ("echo x; sleep 9", json!({ "resource_limits": { "wall_time_limit": 200_000_000 } }), "TimeLimitExceeded"),
        ("while :; do :; done", json!({ "resource_limits": { "cpu_time_limit": 200_000_000 } }), "TimeLimitExceeded"),
        ("exec tail /dev/zero", json!({ "resource_limits": { "memory_limit": 16 << 20 } }), "MemoryLimitExceeded"),
        ("yes", json!({}), "OutputLimitExceeded"),
        (
            "seq 99999",
            json!({ "on_output_limit": "discard", "resource_limits": { "max_output_size": 9 } }),
            "OutputLimitExceeded",
        ),
        ("echo x", json!({ "image": "nowhere" }), "NotExecuted"),
        ("echo x", json!({ "needs": ["none"] }), "NotExecuted"),
    ];
    let tasks = table.iter().map(|(script, more, _)| {
        let mut task = bash(script, more.clone());
        task["expect"] = expect.clone();
        task
    });
    let none = bash("false", json!({ "name": "none" }));
    let tasks: Vec<Value> = tasks.chain([none]).collect();
    for (result, (script, _, verdict)) in Server::start_open().results(&json!({ "tasks": tasks })).iter().zip(table) {
        assert_eq!(result["verdict"], verdict, "{script}: {result}");
        assert!(result.get("message").is_some());
    }
}

#[test]
fn what_is_expected_may_be_a_blob_or_another_steps() {
    let server = Server::start_open();
    let large = "0123456789abcde\n".repeat(1 << 17);
    let blob = server.put(large.as_bytes());
    let print = "print('0123456789abcde\\n' * (1 << 17), end='')";
    let limits = json!({ "max_output_size": 4 << 20 });
    let missing = format!("sha256:{}", "0".repeat(64));
    let expect = |expected: Value, name: &str| json!({ "expect": { "stdout": expected, "compare": "exact" }, "resource_limits": limits, "name": name });
    let results = server.results(&json!({ "tasks": [
        python(print, expect(json!({ "blob": blob }), "whole")),
        python(print, expect(json!({ "from": "whole", "stream": "stdout" }), "same")),
        python("print('0123456789abcdf')", expect(json!({ "from": "whole", "stream": "stdout" }), "other")),
        bash("true", expect(json!({ "blob": missing }), "none")),
        bash("true", expect(json!({ "from": "whole", "file": "f" }), "left")),
    ] }));
    let verdicts: Vec<&str> = results.iter().map(|result| result["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["Accepted", "Accepted", "WrongAnswer", "NotExecuted", "NotExecuted"], "{results:?}");
    assert_eq!(results[3]["message"], format!("expect: there is no blob {missing}"));
}

const DICE: &str = "head -c 16 /dev/urandom | sha256sum | tee f; echo to stderr >&2";

#[test]
fn a_cached_step_is_not_run_again_and_says_so() {
    let server = Server::start_open();
    let dice = |more: Value| {
        let mut task = bash(DICE, more);
        task["cache"] = true.into();
        task["outputs"] = json!(["f"]);
        server.run(task)
    };
    let (first, again) = (dice(json!({})), dice(json!({})));
    assert!(first.get("cached").is_none(), "{first}");
    assert_eq!(again["cached"], true);
    for key in ["stdout", "stderr", "files", "status", "resource_usage"] {
        assert_eq!(first[key], again[key], "{key}");
    }
    // Whatever can matter is another step.
    let others = [
        json!({ "env": { "A": "b" } }),
        json!({ "stdin": "x" }),
        json!({ "files": { "x": "" } }),
        json!({ "files": { "x": { "text": "", "mode": "0600" } } }),
        json!({ "resource_limits": { "memory_limit": 64 << 20 } }),
    ];
    let mut seen = vec![first["stdout"].clone()];
    for other in others {
        let result = dice(other.clone());
        assert!(result.get("cached").is_none() && !seen.contains(&result["stdout"]), "{other}: {result}");
        seen.push(result["stdout"].clone());
    }
    // Its name, and how it is told, are not.
    let told = dice(json!({ "name": "again", "output_encoding": "base64" }));
    assert_eq!((&told["cached"], &told["name"]), (&json!(true), &json!("again")), "{told}");
    let plain = server.run(bash(DICE, json!({ "outputs": ["f"] })));
    assert_ne!(plain["stdout"], first["stdout"]);
}

#[test]
fn failures_are_not_kept() {
    let server = Server::start_open();
    for (end, limits) in [("exit 1", json!({})), ("sleep 9", json!({ "wall_time_limit": 300_000_000 }))] {
        let task = bash(&format!("{DICE}; {end}"), json!({ "cache": true, "resource_limits": limits }));
        let (first, again) = (server.run(task.clone()), server.run(task));
        assert_ne!(first["stdout"], again["stdout"], "{end}");
        assert!(again.get("cached").is_none());
    }
}

#[test]
fn the_same_cached_step_twice_at_once_is_run_once() {
    let server = Server::start_open();
    let task = bash(&format!("{DICE}; sleep 0.3"), json!({ "cache": true }));
    let results = server.results(&json!({ "tasks": vec![task; 4] }));
    all_succeed(&results);
    assert!(results.iter().all(|result| result["stdout"] == results[0]["stdout"]), "{results:?}");
    assert_eq!(results.iter().filter(|result| result["cached"] == true).count(), 3);
}

/// Who waited for it runs it, and that is kept for who comes then.
#[test]
fn a_cached_step_whose_client_leaves_is_run_by_the_next_and_kept() {
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "4")]);
    let cached = bash(&format!("{DICE}; sleep 0.4714"), json!({ "cache": true }));
    let client = server.ask(&json!({ "tasks": [cached] }));
    eventually("it runs", || running(&["sleep", "0.4714"]).len() == 1);
    let body = json!({ "tasks": [cached, task("sleep", &["0.4717"], json!({}))] });
    std::thread::scope(|scope| {
        let next = scope.spawn(|| server.results(&body).remove(0));
        eventually("the next one waits", || running(&["sleep", "0.4717"]).len() == 1);
        drop(client);
        let next = next.join().unwrap();
        assert!(next.get("cached").is_none(), "{next}");
        let third = server.run(cached);
        assert_eq!((&third["cached"], &third["stdout"]), (&json!(true), &next["stdout"]));
    });
}

#[test]
fn a_cache_that_keeps_nothing_runs_every_time() {
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_CACHE__SIZE", "0")]);
    let task = bash(&format!("{DICE}; sleep 0.1"), json!({ "cache": true }));
    assert_ne!(server.run(task.clone())["stdout"], server.run(task.clone())["stdout"]);
    // What comes at once is run once all the same.
    let results = server.results(&json!({ "tasks": vec![task; 3] }));
    assert!(results.iter().all(|result| result["stdout"] == results[0]["stdout"]), "{results:?}");
}

/// A store with the image `shell`, whose language is compiled: the compiler adds a number of its own to the program.
struct Shell(tempfile::TempDir);

const SHELL: &str = r#"
name = "shell"
description = "busybox"
base = "scratch"
copy = [{ from = "busybox", to = "/bin/busybox" }, { from = "compile", to = "/bin/compile" }, COPIES]
[language]
file = "main.sh"
compile = ["compile", "main.sh"]
run = ["sh", "./main"]
"#;
const COMPILE: &str = "#!/bin/sh
grep -q syntax $1 && { echo 'main.sh:1: syntax error' >&2; exit 2; }
echo compiling >&2
{ echo \"echo compiled $(head -c 8 /dev/urandom | od -An -tx1)\"; cat $1; } >main
chmod 755 main
mkdir -p lib; cp $1 lib/source
";

impl Shell {
    fn build() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let image = dir.path().join("images/shell");
        fs::create_dir_all(&image).unwrap();
        let programs = ["sh", "cat", "grep", "head", "od", "chmod", "mkdir", "cp", "ls", "sleep", "tail"];
        let copies = programs.map(|name| format!("{{ from = \"busybox\", to = \"/bin/{name}\" }}")).join(", ");
        fs::write(image.join("image.toml"), SHELL.replace("COPIES", &copies)).unwrap();
        fs::copy(busybox(), image.join("busybox")).unwrap();
        fs::write(image.join("compile"), COMPILE).unwrap();
        fs::set_permissions(image.join("compile"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = Command::new(FABER);
        command.current_dir(dir.path()).env("FABER_DATA_DIR", dir.path().join("data"));
        let built = command.args(["image", "build", "shell"]).output().unwrap();
        assert!(built.status.success(), "{built:?}");
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self(dir)
    }

    fn server(&self) -> Server {
        let data = self.0.path().join("data");
        Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_DATA_DIR", data.to_str().unwrap())])
    }
}

#[test]
fn code_in_a_language_is_compiled_once_and_run() {
    let shell = Shell::build();
    let server = shell.server();
    let run = |code: &str, mut more: Value| {
        more["language"] = "shell".into();
        more["code"] = code.into();
        server.run(more)
    };
    let code = "echo args $@; cat; cat data";
    let first = run(code, json!({ "args": ["a", "b"], "stdin": "input;", "files": { "data": "a file" } }));
    assert_eq!(first["status"], "Success", "{first}");
    let told = first["stdout"].as_str().unwrap();
    assert!(told.starts_with("compiled ") && told.ends_with("\nargs a b\ninput;a file"), "{first}");
    let compile = &first["compile"];
    assert_eq!((&compile["status"], &compile["stderr"]), (&json!("Success"), &json!("compiling\n")), "{first}");
    assert!(compile["resource_usage"]["wall_time_ns"].as_u64().unwrap() > 0 && compile.get("cached").is_none());

    // Arguments and input are the run's alone.
    let again = run(code, json!({ "args": ["c"], "files": { "data": "a file" } }));
    assert_eq!(again["compile"]["cached"], true, "{again}");
    assert_eq!(again["compile"]["resource_usage"], compile["resource_usage"]);
    let number = |result: &Value| result["stdout"].as_str().unwrap().lines().next().unwrap().to_owned();
    assert_eq!(number(&first), number(&again));
    assert!(again.get("cached").is_none(), "the run itself is not");
    let mut seen = vec![number(&first)];
    for other in [
        json!({ "files": { "data": "another" } }),
        json!({ "files": { "data": "a file" }, "env": { "A": "b" } }),
        json!({ "files": { "data": "a file" }, "compile_limits": { "memory_limit": 64 << 20 } }),
    ] {
        let result = run(code, other);
        assert!(result["compile"].get("cached").is_none() && !seen.contains(&number(&result)), "{result}");
        seen.push(number(&result));
    }

    let wrong = run("syntax", json!({ "expect": { "stdout": "" } }));
    let told = ["status", "exit_code", "error", "stdout", "verdict"].map(|key| wrong[key].clone());
    assert_eq!(
        told,
        [json!("Failure"), json!(2), json!("compilation failed"), Value::Null, json!("CompileError")],
        "{wrong}"
    );
    let compile = &wrong["compile"];
    assert_eq!((&compile["exit_code"], &compile["stderr"]), (&json!(2), &json!("main.sh:1: syntax error\n")));
    assert!(run("syntax", json!({}))["compile"].get("cached").is_none(), "failures are not kept");
    // What is not compiled does not run, whatever it may run after.
    let always = run("syntax", json!({ "run_when": "always" }));
    let told = [&always["status"], &always["exit_code"], &always["resource_usage"]["wall_time_ns"]];
    assert_eq!(told, [&json!("Failure"), &json!(2), &json!(0)], "{always}");

    let slow = run("sleep 9", json!({ "resource_limits": { "wall_time_limit": 300_000_000 } }));
    assert_eq!((&slow["status"], &slow["compile"]["status"]), (&json!("Timeout"), &json!("Success")), "{slow}");
    let outputs = run("echo x >made", json!({ "outputs": ["**"] }));
    let files: Vec<&String> = outputs["files"].as_object().unwrap().keys().collect();
    assert_eq!(files, ["lib/source", "made", "main", "main.sh"], "{outputs}");
    assert_eq!(outputs["files"]["main"]["mode"], "0755");
}

#[test]
fn the_same_code_many_times_at_once_is_compiled_once() {
    let shell = Shell::build();
    let task = json!({ "language": "shell", "code": "echo x" });
    let results = shell.server().results(&json!({ "tasks": vec![task; 5] }));
    all_succeed(&results);
    assert!(results.iter().all(|result| result["stdout"] == results[0]["stdout"]), "{results:?}");
    assert_eq!(results.iter().filter(|result| result["compile"]["cached"] == true).count(), 4);
}

#[test]
fn code_may_be_another_steps_and_what_needs_it_waits_for_its_run() {
    let shell = Shell::build();
    let results = shell.server().results(&json!({ "tasks": [
        { "name": "write", "command": "sh", "image": "shell", "args": ["-c", "echo 'echo generated >f; exit 3'"] },
        { "name": "run", "language": "shell", "code": { "from": "write", "stream": "stdout" } },
        { "command": "cat", "image": "shell", "stdin": { "from": "run", "file": "f" }, "run_when": "always" },
        { "command": "cat", "image": "shell", "needs": ["run"] },
        { "name": "wrong", "language": "shell", "code": "syntax" },
        { "command": "cat", "image": "shell", "needs": ["wrong"] },
    ] }));
    assert_eq!((&results[1]["status"], &results[1]["exit_code"]), (&json!("Failure"), &json!(3)), "{}", results[1]);
    assert_eq!(results[2]["stdout"], "generated\n", "{}", results[2]);
    not_executed(&results[3], "needs run, which ended with Failure");
    assert_eq!((&results[4]["status"], &results[4]["exit_code"]), (&json!("Failure"), &json!(2)), "{}", results[4]);
    not_executed(&results[5], "needs wrong, which ended with Failure");
}

#[test]
fn two_programs_in_a_language_can_be_connected() {
    let shell = Shell::build();
    let results = shell.server().results(&json!({
        "tasks": [
            { "name": "a", "language": "shell", "code": "echo question >&1; cat >&2" },
            { "name": "b", "language": "shell", "code": "cat >&2" },
        ],
        "connect": [["a.stdout", "b.stdin"]],
    }));
    all_succeed(&results);
    let heard = results[1]["stderr"].as_str().unwrap();
    assert!(heard.starts_with("compiled ") && heard.ends_with("\nquestion\n"), "{results:?}");
}

#[test]
fn a_client_that_leaves_ends_all_of_its_graph() {
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "4")]);
    let sleep = |name: &str, more: Value| {
        let mut task = task("sleep", &["4714.5"], more);
        task["name"] = name.into();
        task
    };
    let body = json!({
        "tasks": [
            bash("true", json!({ "name": "first" })),
            sleep("a", json!({ "needs": ["first"] })), sleep("b", json!({ "needs": ["first"] })),
            sleep("alone", json!({ "needs": ["first"] })),
            sleep("later", json!({ "needs": ["a"], "run_when": "always" })),
        ],
        "connect": [["a.stdout", "b.stdin"]],
    });
    let client = server.ask(&body);
    eventually("three of them run", || running(&["sleep", "4714.5"]).len() == 3);
    drop(client);
    eventually("all end", || running(&["sleep", "4714.5"]).is_empty());
    all_succeed(&server.results(&json!({ "tasks": vec![bash("true", json!({})); 8] })));
    assert!(running(&["sleep", "4714.5"]).is_empty());
}

fn is_ancestor(pid: i32, of: i32) -> bool {
    left::children(pid).into_iter().any(|child| child == of || is_ancestor(child, of))
}

fn runner_of(server: &Server, task: i32) -> i32 {
    server.processes("runner").into_iter().find(|runner| is_ancestor(*runner, task)).unwrap()
}

fn answer_of(mut client: std::net::TcpStream) -> Vec<Value> {
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    let body: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
    body["results"].as_array().unwrap_or_else(|| panic!("{body}")).clone()
}

#[test]
fn a_killed_runner_costs_its_step_and_what_needs_that() {
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "4")]);
    let client = server.ask(&json!({ "tasks": [
        task("sleep", &["4715.5"], json!({ "name": "killed" })),
        bash("echo ran", json!({ "needs": ["killed"] })),
        bash("echo ran", json!({ "needs": ["killed"], "run_when": "always" })),
        bash("sleep 0.5; echo fine", json!({ "name": "other" })),
        bash("cat", json!({ "stdin": { "from": "other", "stream": "stdout" } })),
    ] }));
    eventually("it runs", || running(&["sleep", "4715.5"]).len() == 1);
    kill(Pid::from_raw(runner_of(&server, running(&["sleep", "4715.5"])[0])), Signal::SIGKILL).unwrap();
    let results = answer_of(client);
    assert_eq!(results[0]["status"], "Failure", "{}", results[0]);
    assert!(results[0]["error"].as_str().unwrap().contains("lost"), "{}", results[0]);
    not_executed(&results[1], "needs killed, which ended with Failure");
    let stdout = [2, 3, 4].map(|at| &results[at]["stdout"]);
    assert_eq!(stdout, ["ran\n", "fine\n", "fine\n"], "{results:?}");
}

#[test]
fn a_killed_runner_is_the_end_of_its_pipes_for_its_partner() {
    let server = Server::start_open();
    for record in [json!([]), json!(["stdout"])] {
        let client = server.ask(&json!({
            "tasks": [
                task("sleep", &["4716.5"], json!({ "name": "a", "record": record })),
                bash("cat; echo end of file", json!({ "name": "b" })),
            ],
            "connect": [["a.stdout", "b.stdin"]],
        }));
        eventually("it runs", || running(&["sleep", "4716.5"]).len() == 1);
        kill(Pid::from_raw(runner_of(&server, running(&["sleep", "4716.5"])[0])), Signal::SIGKILL).unwrap();
        let results = answer_of(client);
        assert_eq!(
            (&results[0]["status"], &results[1]["stdout"]),
            (&json!("Failure"), &json!("end of file\n")),
            "{results:?}"
        );
        eventually("its sleep is gone", || running(&["sleep", "4716.5"]).is_empty());
    }
}

/// A hundred steps, each of which takes of the one before.
#[test]
fn a_long_chain_passes_on_what_it_was_given() {
    let step = |at: usize| {
        let stdin = match at {
            0 => json!("0"),
            _ => json!({ "from": format!("s{}", at - 1), "stream": "stdout" }),
        };
        bash("read n; echo $((n + 1))", json!({ "name": format!("s{at}"), "stdin": stdin }))
    };
    let results = Server::start_open().results(&json!({ "tasks": (0..100).rev().map(step).collect::<Vec<_>>() }));
    assert_eq!(results[0]["stdout"], "100\n", "{}", results[0]);
}
