//! Interpreters that wait for their program: it sees what it would see if it were started, but for the time.

use serde_json::{Value, json};

use crate::support::{Server, eventually, running};

const MIB: u64 = 1 << 20;

fn python(code: &str) -> Value {
    json!({ "image": "python", "command": "python3", "args": ["-c", code], "detail": true })
}

fn with(mut task: Value, more: Value) -> Value {
    let (task_map, more) = (task.as_object_mut().unwrap(), more.as_object().unwrap().clone());
    task_map.extend(more);
    task
}

/// The task, run by an interpreter that waited: some runner has one after the first of its kind.
#[track_caller]
fn prepared(server: &Server, task: &Value) -> Value {
    let mut last = Value::Null;
    eventually("an interpreter waits", || {
        last = server.run(task.clone());
        last["prepared"] == true
    });
    last
}

fn started(server: &Server, task: &Value) -> Value {
    let result = server.run(with(task.clone(), json!({ "prepared": false })));
    assert_eq!(result["prepared"], false, "{result}");
    result
}

/// What two runs of a program say alike.
fn told(result: &Value) -> Value {
    ["status", "exit_code", "stdout", "stderr", "error"].iter().map(|key| (*key, result[*key].clone())).collect()
}

#[track_caller]
fn same(server: &Server, task: &Value) {
    assert_eq!(told(&prepared(server, task)), told(&started(server, task)), "{task}");
}

/// Whether a process has `ancestor` above it (proc_pid_stat(5)).
fn descends(mut pid: i32, ancestor: i32) -> bool {
    while pid > 1 && pid != ancestor {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(1)?.parse().ok());
        pid = parent.unwrap_or(0);
    }
    pid == ancestor
}

#[test]
fn a_python_program_finds_what_it_would_find_if_it_were_started() {
    let server = Server::with_languages();
    let programs = [
        "import sys; print(sys.argv, sys.orig_argv, sys.path, sys.flags, sys.executable, sorted(sys.modules))",
        "print(sorted((name, str(value).split(' at ')[0]) for name, value in globals().items()))",
        "import os; print(os.getpid(), os.getppid(), os.getsid(0), os.getcwd(), sorted(os.environ.items()), os.umask(0))",
        "import os; child = os.fork(); print(child) if child else os._exit(0)",
        "import os; print(sorted(os.listdir('/proc/self/fd')), sorted(os.listdir('/workspace')))",
        "import resource as r; print([(n, r.getrlimit(getattr(r, n))) for n in sorted(dir(r)) if n.startswith('RLIMIT')])",
        "print([line for line in open('/proc/self/status') if line[:3] in 'Uid Gid Cap NoN Sec SigIgnSigBlk Gro Thr Pid PPi Cpu']);\
         print(open('/proc/self/oom_score_adj').read())",
        "import sys; print(sys.stdin.read(), sys.stdin.seekable(), sys.stdout.encoding, sys.stdout.line_buffering)",
        "def f():\n  raise ValueError('no')\nf()",
        "try:\n  1/0\nexcept ZeroDivisionError as error:\n  raise KeyError('b') from error",
        "print(1)\nprint(\n",
        "import sys; sys.exit('bye')",
        "import os, signal; os.kill(os.getpid(), signal.SIGINT); input()",
        "import atexit, threading; atexit.register(print, 'end'); threading.Thread(target=print, args=('thread',)).start()",
        "import pickle\nclass A: pass\nprint(pickle.loads(pickle.dumps(A())).__class__)",
        "import sys; sys.stdout.close()",
        "import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'print(2)'], capture_output=True).stdout)",
    ];
    for program in programs {
        let input = json!({ "stdin": "some\ninput\n", "env": { "OWN": "é = 1" } });
        same(&server, &with(python(program), input.clone()));
        let file = json!({ "args": ["main.py", "-v", "x"], "files": { "main.py": program } });
        same(&server, &with(with(python(""), input), file));
    }
    // By its other name.
    let tells = "import os, sys; print(sys.executable, sys._base_executable, sys.orig_argv, os.environ['PATH'])";
    same(&server, &with(python(tells), json!({ "command": "python" })));
    for args in [json!(["missing.py"]), json!(["."]), json!(["dir/a.py"])] {
        let files = json!({ "dir/a.py": "import sys; print(sys.path[0], __file__)", "__main__.py": "print(__name__)" });
        same(&server, &with(python(""), json!({ "args": args, "files": files })));
    }
}

#[test]
fn programs_of_java_and_node_do_too() {
    let server = Server::with_languages();
    let java = r#"public class Main { public static void main(String[] args) throws Exception {
        System.out.println(args.length + " " + System.getenv() + Runtime.getRuntime().maxMemory() + Thread.currentThread());
        System.out.println(new java.util.Scanner(System.in).next());
        new Exception("printed").printStackTrace();
        throw new IllegalStateException("thrown");
    } }"#;
    let node =
        "console.log(process.argv, process.execArgv, __filename, require.main === module, Object.keys(require.cache));
        console.log(process.env, require('fs').readFileSync(0, 'utf8'), new Error('made').stack);
        setTimeout(() => { throw new Error('thrown'); }, 1);";
    for (language, code) in [("java", java), ("node", node)] {
        let task = json!({ "language": language, "code": code, "stdin": "input\n", "detail": true });
        same(&server, &task);
    }
    let task = json!({ "language": "node", "code": node, "args": ["a", "b"], "env": { "OWN": "1" }, "detail": true });
    same(&server, &task);
}

#[test]
fn figures_are_without_what_was_there_before_and_limits_hold() {
    let server = Server::with_languages();
    let figure = |result: &Value, name: &str| result["resource_usage"][name].as_u64().unwrap();
    let (quick, usual) = (prepared(&server, &python("print(1)")), started(&server, &python("print(1)")));
    for name in ["memory_peak_bytes", "cpu_time_ns", "io_read_bytes"] {
        assert!(figure(&quick, name) < figure(&usual, name), "{name}: {quick} {usual}");
    }
    let large = prepared(&server, &python("a = bytearray(50 << 20)"));
    assert!((50 * MIB..56 * MIB).contains(&figure(&large, "memory_peak_bytes")), "{large}");
    let read = prepared(&server, &python("open('a', 'wb').write(bytes(100000)); open('a', 'rb').read()"));
    assert!((100_000..110_000).contains(&figure(&read, "io_read_bytes")), "{read}");
    let busy = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass";
    let busy = prepared(&server, &python(busy));
    assert!((190_000_000..400_000_000).contains(&figure(&busy, "cpu_time_ns")), "{busy}");

    let limits = |task, limits: Value| with(task, json!({ "resource_limits": limits }));
    let cases = [
        ("a = bytearray(100 << 20)", json!({ "memory_limit": 64 * MIB })),
        ("while True: pass", json!({ "cpu_time_limit": 300_000_000 })),
        ("import time; time.sleep(60)", json!({ "wall_time_limit": 300_000_000 })),
        ("while True: print('x' * 1000)", json!({ "max_output_size": 10_000 })),
        ("open('a', 'wb').write(bytes(100000))", json!({ "max_file_size": 50_000 })),
    ];
    for (code, values) in cases {
        let task = limits(python(code), values);
        let (quick, usual) = (prepared(&server, &task), started(&server, &task));
        assert_ne!(usual["status"], "Success", "{code}: {usual}");
        for key in ["status", "error", "resource_limits_exceeded"] {
            assert_eq!(quick[key], usual[key], "{code}: {quick} {usual}");
        }
    }
}

#[test]
fn each_program_has_a_container_and_randomness_of_its_own() {
    let server = Server::with_languages();
    let code = "import os, random\nprint(hash('a'), random.random(), os.listdir('.'), os.listdir('/tmp'))\n\
                open('left', 'w'); open('/tmp/left', 'w')";
    let said: Vec<String> =
        (0..4).map(|_| prepared(&server, &python(code))["stdout"].as_str().unwrap().to_owned()).collect();
    assert!(said.iter().all(|said| said.ends_with("[] []\n")), "{said:?}");
    let different: std::collections::BTreeSet<_> = said.iter().flat_map(|said| said.split(' ').take(2)).collect();
    assert_eq!(different.len(), 8, "{said:?}");
}

#[test]
fn what_an_interpreter_cannot_take_is_started_as_ever() {
    let server = Server::with_languages();
    let said = |task: &Value| {
        prepared(&server, &python("print(1)"));
        let result = server.run(task.clone());
        assert_eq!(result["prepared"], false, "{task} {result}");
        assert_eq!(result["status"], "Success", "{task} {result}");
        result["stdout"].as_str().unwrap().to_owned()
    };
    assert_eq!(said(&json!({ "image": "python", "command": "sh", "args": ["-c", "echo $$"], "detail": true })), "2\n");
    let path = json!({ "env": { "PYTHONPATH": "/workspace/lib" }, "files": { "lib/own.py": "print('own')" } });
    assert_eq!(said(&with(python("import own"), path)), "own\n");
    // Python looks for itself there.
    let path = json!({ "language": "python", "code": "print(5)", "env": { "PATH": "/nowhere" }, "detail": true });
    assert_eq!(said(&path), "5\n");
    let none = json!({ "args": ["-X", "utf8", "-c", "import sys; print(sys.flags.utf8_mode)"] });
    assert_eq!(said(&with(python(""), none)), "1\n");
    assert_eq!(said(&with(python("print(2)"), json!({ "merge_output": true }))), "2\n");
    let input = "a".repeat(200_000);
    assert_eq!(said(&with(python("print(len(input()))"), json!({ "stdin": input }))), "200000\n");
    // A larger stack; descriptors that are counted exactly.
    for limits in [json!({ "memory_limit": 700 * MIB }), json!({ "max_file_descriptors": 40 })] {
        assert_eq!(said(&with(python("print(3)"), json!({ "resource_limits": limits }))), "3\n");
    }
}

#[test]
fn an_interpreter_that_is_gone_costs_nobody_a_task() {
    let server = Server::with_languages();
    prepared(&server, &python("print(1)"));
    let waiting = || -> Vec<i32> {
        let all = running(&["python3", "/usr/local/lib/faber/prepared.py"]);
        all.into_iter().filter(|pid| descends(*pid, server.pid())).collect()
    };
    eventually("one waits", || !waiting().is_empty());
    for pid in waiting() {
        // The task of one that has just been told its program may be ended by this.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    for _ in 0..6 {
        assert_eq!(server.run(python("print(4)"))["stdout"], "4\n");
    }
}

#[test]
fn none_waits_where_none_is_to_wait() {
    let server = Server::with_languages_and(&[("FABER_EXECUTION__PREPARED", "0")]);
    for _ in 0..6 {
        assert_eq!(server.run(python("print(1)"))["prepared"], false);
    }
    let answer = server.send(
        "POST",
        "/execute",
        br#"{"tasks":[{"command":"true","prepared":"no"}]}"#,
        &[("content-type", "application/json")],
    );
    assert_eq!(answer.status, 400, "{}", answer.text);
}

#[test]
fn a_session_takes_over_a_container_with_an_interpreter() {
    let server = Server::with_languages();
    prepared(&server, &python("print(1)"));
    let json = [("content-type", "application/json")];
    for _ in 0..3 {
        let answer = server.send("POST", "/sessions", br#"{"image":"python"}"#, &json);
        assert_eq!(answer.status, 201, "{}", answer.text);
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        let body = json!({ "tasks": [python("import os; print(os.getpid() > 1)")] }).to_string();
        let answer = server.send("POST", &format!("/sessions/{id}/execute"), body.as_bytes(), &json);
        assert_eq!(answer.json()["results"][0]["stdout"], "True\n", "{}", answer.text);
        server.send("DELETE", &format!("/sessions/{id}"), b"", &[]);
    }
}

/// What waits, takes a program, says what it was told, or ends at once: as its first argument says.
const INTERPRETER: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    static char said[65536];
    size_t more = 0;
    if (argc > 1 && !strcmp(argv[1], "--end")) return 1;
    if (argc > 1 && !strcmp(argv[1], "--wait")) {
        if (write(1, "\n", 1) != 1) return 1;
        int length = 0;
        for (char digit; read(0, &digit, 1) == 1 && digit != '\n';) length = 10 * length + digit - '0';
        if (length == 0) return 0;
        for (int at = 0; at < length;) {
            int got = read(0, said + at, length - at);
            if (got <= 0) return 1;
            at += got;
        }
        for (int at = 0; at < length; at += strlen(said + at) + 1) printf("%s;", said + at);
    } else {
        printf("%d;", argc);
        for (int at = 0; at < argc; at++) printf("%s;", argv[at]);
    }
    for (int at = 0; at < (int)sizeof said && more == 0; at += strlen(said + at) + 1)
        if (!strncmp(said + at, "memory=", 7)) more = atol(said + at + 7) << 20;
    if (more) memset(malloc(more), 1, more);
    int input = read(0, said, sizeof said);
    printf("%d;%d\n", getpid(), input);
}
"#;

/// An image of one's own, in which that waits; and one in which it ends.
fn own_images() -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("interpreter.c");
    std::fs::write(&source, INTERPRETER).unwrap();
    for (name, option) in [("waits", "--wait"), ("ends", "--end")] {
        let definition = dir.path().join("definitions").join(name);
        std::fs::create_dir_all(&definition).unwrap();
        let mut gcc = std::process::Command::new("gcc");
        let gcc = gcc.args(["-static", "-O0", "-o"]).arg(definition.join("run")).arg(&source).output().unwrap();
        assert!(gcc.status.success(), "{}", String::from_utf8_lossy(&gcc.stderr));
        let text = format!(
            "name = '{name}'\ndescription = ''\nbase = 'scratch'\ncopy = [{{ from = 'run', to = '/bin/run' }}]\n\
             [prepare]\nrun = ['run', '{option}']\ntakes = [['run', '*']]\nenvironment = ['READ']\n"
        );
        std::fs::write(definition.join("image.toml"), text).unwrap();
    }
    let data_dir = dir.path().join("data");
    let mut build = std::process::Command::new(crate::support::FABER);
    build.env("FABER_DATA_DIR", &data_dir).args(["image", "build", "--all", "--definitions"]);
    let built = build.arg(dir.path().join("definitions")).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // The front, which is nobody, has to come to it.
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let server = Server::start(&["--open-mode", "--data-dir", data_dir.to_str().unwrap()], &crate::support::PATIENT);
    (dir, server)
}

#[test]
fn an_image_of_ones_own_says_what_waits_in_it() {
    let (_dir, server) = own_images();
    let task = json!({
        "image": "waits", "command": "run", "args": ["a", "b"], "env": { "A": "b" }, "stdin": "12345", "detail": true
    });
    let quick = prepared(&server, &task);
    assert_eq!(quick["stdout"], "3;run;a;b;A=b;2;5\n", "{quick}");
    assert_eq!(started(&server, &task)["stdout"], "3;run;a;b;2;5\n");
    let limit =
        |mib: u64| json!({ "args": [format!("memory={mib}")], "resource_limits": { "memory_limit": 64 * MIB } });
    let fits = prepared(&server, &with(task.clone(), limit(60)));
    let peak = fits["resource_usage"]["memory_peak_bytes"].as_u64().unwrap();
    assert_eq!(fits["status"], "Success", "{fits}");
    assert!((60 * MIB..=64 * MIB).contains(&peak), "{fits}");
    let large = prepared(&server, &with(task.clone(), limit(80)));
    assert_eq!(large["status"], "MemoryLimitExceeded", "{large}");
    let other = server.run(with(task, json!({ "env": { "READ_AT_THE_START": "1" } })));
    assert_eq!((&other["prepared"], &other["status"]), (&json!(false), &json!("Success")), "{other}");
}

#[test]
fn an_interpreter_that_ends_by_itself_is_told_and_not_tried_again() {
    let (_dir, server) = own_images();
    let task = json!({ "image": "ends", "command": "run", "args": ["a"], "detail": true });
    eventually("it is told", || {
        let result = server.run(task.clone());
        assert_eq!((&result["status"], &result["prepared"]), (&json!("Success"), &json!(false)), "{result}");
        server.log().contains("no interpreter of the image ends waits in this slot any more")
    });
}
