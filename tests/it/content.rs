//! What goes into a task and comes out of it: input, files, archives, outputs, streams, and what a result tells in detail.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Server, eventually, memory_of};

const NO_LIMIT: (&str, &str) = ("FABER_RATE_LIMIT__ENABLED", "false");

pub fn base64(bytes: &[u8]) -> Value {
    json!({ "base64": STANDARD.encode(bytes) })
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A task that runs `script`, with more fields.
pub fn bash(script: &str, more: Value) -> Value {
    task("bash", &["-c", script], more)
}

pub fn python(program: &str, more: Value) -> Value {
    task("python3", &["-c", program], more)
}

pub fn task(command: &str, args: &[&str], more: Value) -> Value {
    let mut task = json!({ "command": command, "args": args });
    task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    task
}

fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

#[track_caller]
fn succeeds(result: &Value) {
    assert_eq!(result["status"], "Success", "{result}");
}

/// In their order, whatever theirs is.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn stdin_is_read_byte_by_byte_in_every_form() {
    let server = Server::start_open();
    let odd = b"a\0\xff\n\xfe";
    let large: Vec<u8> = (0..8 << 20).map(|at: u32| (at.wrapping_mul(2654435761) >> 13) as u8).collect();
    let mebibyte = "0123456789abcde\n".repeat(1 << 16);
    let table: Vec<(Value, &[u8])> = vec![
        (json!("text\u{e9}"), "text\u{e9}".as_bytes()),
        (json!({ "text": "an object's" }), b"an object's"),
        (base64(odd), odd),
        (json!({ "blob": server.put(odd) }), odd),
        (json!({ "from": "source", "stream": "stdout" }), b"out\0\xff"),
        (json!({ "from": "source", "stream": "stderr" }), b"err"),
        (json!({ "from": "source", "file": "d/f" }), b"file\0\xfe"),
        (json!(""), b""),
        (Value::Null, b""),
        (json!(mebibyte), mebibyte.as_bytes()),
        (base64(&large[..1 << 20]), &large[..1 << 20]),
        (json!({ "blob": server.put(&large) }), &large),
    ];
    let source =
        bash("printf 'out\\0\\377'; printf err >&2; mkdir d; printf 'file\\0\\376' >d/f", json!({ "name": "source" }));
    // Twice: by what it is given, and by its name.
    let readers = table.iter().flat_map(|(stdin, _)| {
        [bash("sha256sum", json!({ "stdin": stdin })), bash("sha256sum /dev/stdin", json!({ "stdin": stdin }))]
    });
    let tasks: Vec<Value> = [source].into_iter().chain(readers).collect();
    let results = server.results(&json!({ "tasks": tasks }));
    for (at, (stdin, bytes)) in table.iter().enumerate() {
        for result in &results[1 + 2 * at..3 + 2 * at] {
            succeeds(result);
            let shown: String = stdin.to_string().chars().take(80).collect();
            assert!(result["stdout"].as_str().unwrap().starts_with(&sha256(bytes)), "{shown}: {result}");
        }
    }
}

#[test]
fn input_that_is_not_read_harms_nobody() {
    let server = Server::start_open();
    let blob = server.put(&vec![b'x'; 8 << 20]);
    for stdin in [json!("x"), json!("x".repeat(1 << 20)), json!({ "blob": blob })] {
        for script in ["true", "exec <&-", "head -c 1 >/dev/null"] {
            let result = server.run(bash(script, json!({ "stdin": stdin })));
            succeeds(&result);
            let limits = result["resource_limits_exceeded"].as_object().unwrap();
            assert!(limits.values().all(|hit| hit == false), "{result}");
        }
    }
}

#[test]
fn input_counts_as_read() {
    let server = Server::start_open();
    let read = |stdin: Value| {
        let result = server.run(task("cat", &[], json!({ "stdin": stdin })));
        succeeds(&result);
        result["resource_usage"]["io_read_bytes"].as_u64().unwrap()
    };
    let (few, many) = (read(json!("x".repeat(1000))), read(json!("x".repeat(1 << 20))));
    assert!((many - few).abs_diff((1 << 20) - 1000) < 1000, "{few} {many}");
}

#[test]
fn input_cannot_be_written_to() {
    let server = Server::start_open();
    let bytes = vec![b'x'; 1 << 20];
    let blob = server.put(&bytes);
    let program = "import os\nfor what in [lambda: open('/dev/stdin', 'r+b'), lambda: os.fchmod(0, 0o777), lambda: os.truncate(0, 0),\n  lambda: os.utime(0)]:\n  try:\n    what(); print('done')\n  except OSError as error:\n    print(error.errno in (1, 9, 13, 22))";
    for stdin in [json!({ "blob": blob }), json!("x".repeat(1 << 20))] {
        let result = server.run(python(program, json!({ "stdin": stdin })));
        assert_eq!(result["stdout"], "True\nTrue\nTrue\nTrue\n", "{result}");
    }
    assert!(server.blob(&blob) == bytes);
}

#[test]
fn files_have_their_bytes_modes_and_kinds() {
    let server = Server::start_open();
    let script = "stat -c '%a %F %n' a d d/e s w; readlink l d/up; cat l; ./s; od -An -tx1 b; ls -A empty | wc -l";
    let files = json!({
        "a": "text", "b": base64(b"\0\xff\n"), "w": { "text": "", "mode": "640" },
        "s": { "text": "#!/bin/sh\necho ran\n", "mode": "0755" },
        "d/e": { "base64": "", "mode": "0400" }, "empty": { "directory": true },
        "l": { "symlink": "a" }, "d/up": { "symlink": "../a" },
    });
    let result = server.run(bash(script, json!({ "files": files })));
    let expected = "755 regular file a\n755 directory d\n400 regular empty file d/e\n755 regular file s\n\
        640 regular empty file w\na\n../a\ntextran\n 00 ff 0a\n0\n";
    assert_eq!(result["stdout"], expected, "{result}");
}

#[test]
fn files_that_cannot_be_there_are_refused_and_their_siblings_run() {
    let table = [
        (json!({ "l": { "symlink": "/etc/passwd" } }), "the link \"l\" to \"/etc/passwd\" leads out of the workspace"),
        (json!({ "d/l": { "symlink": "../../x" } }), "the link \"d/l\" to \"../../x\" leads out of the workspace"),
        (json!({ "l": { "symlink": "d" }, "l/x": "" }), "file path \"l\" is both a file and a directory"),
        (json!({ "a": "", "./a": "" }), "file path \"a\" is given twice"),
        (json!({ "../a": "" }), "file path \"../a\" has a '..': paths stay inside the workspace"),
    ];
    let tasks = table.iter().map(|(files, _)| bash("echo ran", json!({ "files": files })));
    let tasks: Vec<Value> = tasks.chain([bash("echo ran", json!({}))]).collect();
    let results = Server::start_open().results(&json!({ "tasks": tasks }));
    for (result, (files, error)) in results.iter().zip(&table) {
        assert_eq!((&result["status"], &result["stdout"]), (&json!("NotExecuted"), &Value::Null), "{files}: {result}");
        assert_eq!(result["error"], *error);
    }
    assert_eq!(results.last().unwrap()["stdout"], "ran\n");
}

#[test]
fn content_that_cannot_be_read_is_400_with_its_place() {
    let server = Server::start_open();
    let table = [
        (json!({ "stdin": { "base64": "AA" } }), "tasks[0].stdin"),
        (json!({ "stdin": { "base64": "AA==", "text": "" } }), "exactly one of"),
        (json!({ "stdin": {} }), "exactly one of"),
        (json!({ "stdin": { "blob": "sha256:12" } }), "64 hexadecimal digits"),
        (json!({ "files": { "a": { "text": "", "mode": "4755" } } }), "mode \"4755\""),
        (json!({ "archives": [{ "text": "", "format": "rar" }] }), "tasks[0].archives"),
        (json!({ "outputs": ["../x"] }), "output glob \"../x\""),
        (json!({ "output_encoding": "latin1" }), "latin1"),
        (json!({ "merge_output": "yes" }), "beside"),
        (json!({ "on_output_limit": "ignore" }), "ignore"),
        (json!({ "resource_limits": { "cpus": "half" } }), "cpus"),
        (json!({ "resource_limits": { "stack": 1 } }), "stack"),
    ];
    for (more, words) in table {
        let answer = server.execute(json!([bash("true", more.clone())]));
        assert_eq!(answer.status, 400, "{more}: {}", answer.text);
        assert!(answer.json()["details"].as_str().unwrap().contains(words), "{more}: {}", answer.text);
    }
}

#[test]
fn a_blob_that_is_not_there_keeps_its_task_from_running_and_no_other() {
    let blob = format!("sha256:{}", "0".repeat(64));
    let missing = json!({ "blob": blob });
    let tasks = json!([
        bash("echo ran", json!({ "stdin": missing })),
        bash("echo ran", json!({ "files": { "a": missing } })),
        bash("echo ran", json!({ "archives": [{ "blob": blob, "format": "tar" }] })),
        bash("echo ran", json!({})),
    ]);
    let results = Server::start_open().results(&json!({ "tasks": tasks }));
    for result in &results[..3] {
        assert_eq!((&result["status"], &result["stdout"]), (&json!("NotExecuted"), &Value::Null), "{result}");
        assert_eq!(result["error"], format!("there is no blob {blob}"));
    }
    assert_eq!(results[3]["stdout"], "ran\n");
}

/// What a shell makes in `archive`.
fn made_by(script: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("bash").args(["-ec", script]).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::read(dir.path().join("archive")).unwrap()
}

#[test]
fn archives_of_every_format_are_unpacked_before_the_files() {
    let tree = "mkdir -p t/d; echo '#!/bin/sh\necho ran' >t/run; chmod 755 t/run; printf 'in the archive' >t/d/a; \
        chmod 640 t/d/a; head -c 200000 /dev/zero >t/large";
    let table = [
        ("tar", "ln -s d/a t/l; tar -C t -cf archive ."),
        ("tar.gz", "ln -s d/a t/l; tar -C t -czf archive ."),
        ("tar.zst", "ln -s d/a t/l; tar -C t --zstd -cf archive ."),
        ("zip", "ln -s d/a t/l; (cd t && zip -qry ../archive.zip . && mv ../archive.zip ../archive)"),
    ];
    let server = Server::start_open();
    for (format, make) in table {
        let bytes = made_by(&format!("{tree}\n{make}"));
        let script = "./run; stat -c %a d/a run; stat -c %s large; readlink l; cat l x/y/d/a";
        let archives = json!([
            { "base64": STANDARD.encode(&bytes), "format": format },
            { "blob": server.put(&bytes), "format": format, "path": "x/y/" },
        ]);
        let files = json!({ "x/y/d/a": "; a file's" });
        let result = server.run(bash(script, json!({ "archives": archives, "files": files })));
        assert_eq!(result["stdout"], "ran\n640\n755\n200000\nd/a\nin the archive; a file's", "{format}: {result}");
    }
}

#[test]
fn hostile_archives_are_refused_by_the_entry_and_nothing_runs() {
    let python = |entries: &str| {
        made_by(&format!(
            "python3 -c \"\nimport tarfile, io\nt = tarfile.open('archive', 'w')\ndef add(name, type=tarfile.REGTYPE, link='', \
             size=0):\n  i = tarfile.TarInfo(name); i.type = type; i.linkname = link; i.size = size; \
             t.addfile(i, io.BytesIO(b'x' * size))\nadd('good')\n{entries}\nt.close()\""
        ))
    };
    let table = [
        ("add('../evil')", "\"../evil\""),
        ("add('/evil')", "\"/evil\""),
        ("add('l', tarfile.SYMTYPE, '/etc')", "\"l\": a symbolic link to \"/etc\" leads out"),
        ("add('d', tarfile.SYMTYPE, '.'); add('d/../../x')", "\"d/../../x\""),
        ("add('d', tarfile.SYMTYPE, 'e'); add('d/x')", "\"d/x\": it lies below \"d\""),
        ("add('h', tarfile.LNKTYPE, '/etc/passwd')", "\"h\""),
        ("add('p', tarfile.FIFOTYPE)", "\"p\": it is a"),
        ("add('c', tarfile.CHRTYPE)", "\"c\": it is a"),
        ("add('twice'); add('twice')", "\"twice\""),
    ];
    let server = Server::start_open();
    let tasks = table.iter().map(|(entries, _)| {
        let archive = json!({ "base64": STANDARD.encode(python(entries)), "format": "tar" });
        bash("echo ran", json!({ "archives": [archive] }))
    });
    let cut = made_by("head -c 100000 /dev/urandom >f; tar -cf whole f; head -c 50000 whole >archive");
    let cut = json!({ "base64": STANDARD.encode(cut), "format": "tar" });
    let tasks: Vec<Value> = tasks.chain([bash("echo ran", json!({ "archives": [cut] }))]).collect();
    let results = server.results(&json!({ "tasks": tasks }));
    let cut_off = [("a tar that is cut off", "\"f\"")];
    for (result, (entries, words)) in results.iter().zip(table.iter().chain(&cut_off)) {
        assert_eq!(
            (&result["status"], &result["stdout"]),
            (&json!("NotExecuted"), &Value::Null),
            "{entries}: {result}"
        );
        assert!(result["error"].as_str().unwrap().contains(words), "{entries}: {result}");
    }
}

#[test]
fn archives_are_bounded_in_entries_and_bytes_and_cost_the_front_no_memory() {
    let server = Server::start(
        &["--open-mode"],
        &[
            ("FABER_EXECUTION__QUEUE_TIMEOUT", "10m"),
            NO_LIMIT,
            ("FABER_ARCHIVES__ENTRIES", "2001"),
            ("FABER_ARCHIVES__TOTAL", "128M"),
        ],
    );
    let result = |make: &str| {
        let archive = json!({ "base64": STANDARD.encode(made_by(make)), "format": "tar.zst" });
        server.run(bash(
            "ls t | wc -l",
            json!({ "archives": [archive], "resource_limits": { "memory_limit": 512 << 20 } }),
        ))
    };
    let front = server.front();
    succeeds(&result("mkdir t; tar --zstd -cf archive t"));
    let before = memory_of(front, "VmHWM");
    // 2000 files of 60000 zeros: a few kilobytes on the wire.
    let many = "mkdir t; truncate -s 60000 t/{1..2000}; tar --zstd -cf archive t";
    let unpacked = result(many);
    assert_eq!(unpacked["stdout"], "2000\n", "{unpacked}");
    let grown = memory_of(front, "VmHWM") - before;
    assert!(grown < 16 << 20, "the front has grown by {grown} bytes");
    let refused = result("mkdir t; touch t/{1..2001}; tar --zstd -cf archive t");
    assert_eq!(refused["error"], "archives: more than 2001 entries");
    let refused = result("mkdir t; truncate -s 129M t/x; tar --zstd -cf archive t");
    assert_eq!(refused["error"], format!("archives: unpacked it is more than {} bytes", 128 << 20));
}

#[test]
fn outputs_come_back_with_their_bytes_and_modes() {
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_OUTPUTS__INLINE_LIMIT", "100000")]);
    let script = "mkdir -p out/b; echo hi >out/a; printf '\\0\\377' >out/b/c; chmod 700 out/a; : >.hidden; : >'odd [1]'; \
        head -c 100000 /dev/zero >edge; head -c 100001 /dev/zero >large";
    let outputs = json!(["out/**", ".hidden", "edge", "large", "odd [[]1]", "none?", "missing", "out/*.o"]);
    let result = server.run(bash(script, json!({ "outputs": outputs })));
    let files = &result["files"];
    assert_eq!(keys(files), [".hidden", "edge", "large", "odd [1]", "out/a", "out/b/c"], "{result}");
    let sum = sha256(b"hi\n");
    assert_eq!(files["out/a"], json!({ "size": 3, "mode": "0700", "sha256": sum, "text": "hi\n" }));
    assert_eq!(files["out/b/c"], json!({ "size": 2, "mode": "0644", "sha256": sha256(b"\0\xff"), "base64": "AP8=" }));
    assert_eq!(files[".hidden"], json!({ "size": 0, "mode": "0644", "sha256": sha256(b""), "text": "" }));
    assert_eq!(files["edge"]["text"].as_str().unwrap().len(), 100_000);
    let (zeros, large) = (vec![0; 100_001], &files["large"]);
    assert_eq!(keys(large), ["blob", "mode", "sha256", "size"]);
    assert_eq!(large["blob"], format!("sha256:{}", sha256(&zeros)));
    assert!(server.blob(large["blob"].as_str().unwrap()) == zeros);
    assert_eq!(result["missing_outputs"], json!(["missing", "out/*.o"]));
    assert!(result.get("omitted_outputs").is_none(), "{result}");
}

#[test]
fn outputs_are_taken_however_the_task_ends() {
    let limits = |end: &str| {
        // Each meets its own, however slow the machine is.
        let cpu = if end.starts_with("while") { 300_000_000u64 } else { 30_000_000_000 };
        let wall = if end.starts_with("sleep") { 3_000_000_000u64 } else { 60_000_000_000 };
        json!({ "cpu_time_limit": cpu, "wall_time_limit": wall, "memory_limit": 64 << 20, "max_output_size": 1000 })
    };
    let table = [
        ("exit 3", "Failure"),
        ("kill -SEGV $$", "Failure"),
        ("sleep 60", "Timeout"),
        ("while :; do :; done", "CpuLimitExceeded"),
        ("yes", "ResourceLimitExceeded"),
        ("exec tail /dev/zero", "MemoryLimitExceeded"),
        ("head -c 1G /dev/zero >more", "MemoryLimitExceeded"),
    ];
    let tasks: Vec<Value> = table
        .iter()
        .map(|(end, _)| {
            bash(&format!("echo kept >f; {end}"), json!({ "outputs": ["f"], "resource_limits": limits(end) }))
        })
        .collect();
    for (result, (end, status)) in Server::start_open().results(&json!({ "tasks": tasks })).iter().zip(table) {
        assert_eq!(
            (&result["status"], &result["files"]["f"]["text"]),
            (&json!(status), &json!("kept\n")),
            "{end}: {result}"
        );
    }
}

#[test]
fn outputs_are_bounded_in_number_each_and_in_all() {
    let env =
        [NO_LIMIT, ("FABER_OUTPUTS__COUNT", "3"), ("FABER_OUTPUTS__EACH", "1000"), ("FABER_OUTPUTS__TOTAL", "2000")];
    let server = Server::start(&["--open-mode"], &env);
    let check = |sizes: &[usize], taken: &[&str], omitted: &[(&str, &str)]| {
        let make: String =
            sizes.iter().enumerate().map(|(at, size)| format!("head -c {size} /dev/zero >f{at};")).collect();
        let result = server.run(bash(&make, json!({ "outputs": ["f*"] })));
        succeeds(&result);
        assert_eq!(keys(&result["files"]), taken, "{sizes:?}: {result}");
        let expected: Value = omitted.iter().map(|(path, reason)| ((*path).to_owned(), json!(reason))).collect();
        match omitted {
            [] => assert!(result.get("omitted_outputs").is_none(), "{result}"),
            _ => assert_eq!(result["omitted_outputs"], json!({ "count": omitted.len(), "files": expected })),
        }
    };
    check(&[1000, 1000], &["f0", "f1"], &[]);
    check(&[1000, 1001], &["f0"], &[("f1", "its 1001 bytes are more than the 1000 bytes a file may have")]);
    check(&[1000, 999, 2], &["f0", "f1"], &[("f2", "with it all would have more than 2000 bytes")]);
    check(&[1, 1, 1], &["f0", "f1", "f2"], &[]);
    let many = "there are 3 files already, as many as a task may leave";
    check(&[1, 1, 1, 1, 0], &["f0", "f1", "f2"], &[("f3", many), ("f4", many)]);
}

#[test]
fn what_is_no_file_of_the_workspace_is_left_out_and_blocks_nobody() {
    let program = r#"
import os, socket, time
open("real", "w").write("mine")
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
for kind in (0o060000, 0o020000):
    try: os.mknod("device", kind | 0o666, os.makedev(8 if kind == 0o060000 else 1, 0 if kind == 0o060000 else 5))
    except OSError: pass
os.symlink("/etc/passwd", "passwd")
os.symlink("real", "near")
os.symlink("/etc", "etc")
os.symlink("/proc/self/root", "root")
os.mkdir("d"); open("d/inside", "w").write("x"); os.symlink("d", "e"); os.symlink("..", "d/up")
os.symlink("loop", "loop")
os.mkdir("closed"); open("closed/f", "w").write("closed"); os.chmod("closed", 0)
open("secret", "w").write("secret"); os.chmod("secret", 0)
for name in (b"new\nline", b"quo\"te'", b"\xff\xfe", "\u00e9".encode()):
    open(name, "w").write("odd")
deep = "x"
for _ in range(70):
    os.makedirs(deep, exist_ok=True); deep += "/x"
open("x/x/f", "w").write("deep")
"#;
    let result =
        Server::start_open().run(python(program, json!({ "outputs": ["**", "etc/passwd?", "root/**?", "fifo?"] })));
    succeeds(&result);
    let found = ["closed/f", "d/inside", "new\nline", "quo\"te'", "real", "secret", "x/x/f", "\u{e9}"];
    assert_eq!(keys(&result["files"]), found, "{result}");
    assert_eq!(
        (&result["files"]["secret"]["mode"], &result["files"]["secret"]["text"]),
        (&json!("0000"), &json!("secret"))
    );
    assert_eq!(
        result["omitted_outputs"],
        json!({ "count": 1, "files": { "\u{fffd}\u{fffd}": "its name is not UTF-8" } })
    );
    assert!(!result.to_string().contains("root:"), "{result}");
}

/// As many as a workspace takes, with names that would fill a runner's memory.
#[test]
fn a_hundred_thousand_files_cost_the_runner_little() {
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "1")]);
    let program = r#"
import os
name = "d" * 250
for _ in range(14): os.mkdir(name); os.chdir(name)
for i in range(2000): os.mkdir(f"{i:0250}")
made = 0
try:
    for made in range(100000): os.close(os.open(f"{made:06}", os.O_CREAT | os.O_WRONLY))
except OSError: pass
print(made)
"#;
    let ask = |program: &str| {
        server.run(python(program, json!({ "outputs": ["**"], "resource_limits": { "memory_limit": 1 << 30 } })))
    };
    succeeds(&ask(""));
    let memory = || server.processes("runner").into_iter().map(|pid| memory_of(pid, "VmHWM")).max().unwrap();
    let before = memory();
    let result = ask(program);
    succeeds(&result);
    let made: u64 = result["stdout"].as_str().unwrap().trim().parse().unwrap();
    assert!(made > 50_000, "{made}");
    assert_eq!((keys(&result["files"]).len(), &result["omitted_outputs"]["count"]), (100, &json!(made - 100)));
    assert!(memory() - before < 16 << 20, "a runner has grown by {} bytes", memory() - before);
}

#[test]
fn a_hole_of_a_tebibyte_is_no_output_and_no_disaster() {
    let program = "import os\nos.truncate(os.open('hole', os.O_CREAT | os.O_RDWR), 1 << 40)\nos.truncate(os.open('small', os.O_CREAT | os.O_RDWR), 32 << 20)";
    let server = Server::start_open();
    let result =
        server.run(python(program, json!({ "outputs": ["*"], "resource_limits": { "memory_limit": 64 << 20 } })));
    succeeds(&result);
    assert_eq!(result["omitted_outputs"]["files"]["hole"], "its 1 TiB are more than the 64 MiB a file may have");
    assert!(server.blob(result["files"]["small"]["blob"].as_str().unwrap()) == vec![0; 32 << 20]);
}

/// Whoever still swaps when the task ends has ended when its files are taken.
#[test]
fn a_file_that_is_swapped_for_a_link_never_leads_out() {
    let program = r#"
import os, time
if os.fork() == 0:
    os.setsid()
    while True:
        open("a", "w").write("mine"); os.rename("a", "f")
        os.symlink("/etc/passwd", "b"); os.rename("b", "f")
        os.mkdir("c"); open("c/passwd", "w").write("mine"); os.rename("c", "d")
        os.rename("d", "old"); os.symlink("/etc", "d"); os.unlink("d")
        os.unlink("old/passwd"); os.rmdir("old")
time.sleep(0.1)
"#;
    let tasks = vec![python(program, json!({ "outputs": ["f?", "d/*?"] })); 20];
    for result in Server::start_open().results(&json!({ "tasks": tasks })) {
        succeeds(&result);
        for (path, file) in result["files"].as_object().unwrap() {
            assert!(matches!(file["text"].as_str(), Some("mine" | "")), "{path}: {file}");
        }
    }
}

#[test]
fn answers_with_many_outputs_stay_within_what_requests_may_hold() {
    let buffers = [("FABER_SERVER__BUFFERS", "32M"), ("FABER_SERVER__BODY_LIMIT", "1M")];
    let env = [NO_LIMIT, buffers[0], buffers[1], ("FABER_EXECUTION__CONCURRENCY", "1")];
    let server = Server::start(&["--open-mode"], &env);
    let script = "for i in {10..89}; do { echo $i; head -c 1048573 /dev/zero | tr '\\0' x; } >$i; done";
    let limits = json!({ "max_output_size": 1000 });
    let front = server.front();
    let before = memory_of(front, "VmHWM");
    let result = server.run(bash(script, json!({ "outputs": ["*"], "resource_limits": limits })));
    succeeds(&result);
    let files = result["files"].as_object().unwrap();
    assert_eq!(files.len(), 80, "{:?}", files.keys());
    assert!(files.values().all(|file| file.get("text").is_some() != file.get("blob").is_some()));
    let grown = memory_of(front, "VmHWM") - before;
    assert!(grown < 64 << 20, "the front has grown by {grown} bytes");
}

#[test]
fn output_is_encoded_as_asked() {
    let server = Server::start_open();
    let table = [
        ("utf8", json!("a\u{fffd}"), json!("e\n")),
        ("base64", json!("Yf8="), json!("ZQo=")),
        ("auto", json!({ "base64": "Yf8=" }), json!("e\n")),
    ];
    for (encoding, stdout, stderr) in table {
        let result = server.run(bash("printf 'a\\377'; echo e >&2", json!({ "output_encoding": encoding })));
        assert_eq!((&result["stdout"], &result["stderr"]), (&stdout, &stderr), "{encoding}");
    }
    let nothing = server.run(bash(":", json!({ "output_encoding": "base64" })));
    assert_eq!((&nothing["stdout"], &nothing["stderr"]), (&Value::Null, &Value::Null));
}

#[test]
fn output_beyond_the_limit_can_be_discarded() {
    let server = Server::start_open();
    let more = json!({ "on_output_limit": "discard", "resource_limits": { "max_output_size": 100 }, "detail": true });
    let result = server.run(bash("seq 1000000; echo end >&2; exit 3", more.clone()));
    assert_eq!((&result["status"], &result["exit_code"]), (&json!("Failure"), &json!(3)), "{result}");
    assert_eq!(result["resource_limits_exceeded"]["output_limit_exceeded"], true);
    assert_eq!(result["stdout"].as_str().unwrap().len(), 100);
    let detail =
        ["stdout_bytes", "stdout_truncated", "stderr_bytes", "stderr_truncated"].map(|key| result[key].clone());
    assert_eq!(detail, [json!(6_888_896), json!(true), json!(4), json!(true)]);
    let within = server.run(bash("printf %100d 1", more));
    succeeds(&within);
    assert_eq!(within["resource_limits_exceeded"]["output_limit_exceeded"], false);
}

/// A stream has half of the limit for itself, whatever the other wrote before, and all of it where the other leaves it.
#[test]
fn a_flood_on_one_stream_leaves_the_other_what_it_wrote() {
    let server = Server::start_open();
    let run = |script: &str, limit: u64, on_limit: &str| {
        let limits = json!({ "max_output_size": limit });
        server.run(bash(script, json!({ "on_output_limit": on_limit, "resource_limits": limits })))
    };
    let lengths = |result: &Value| ["stdout", "stderr"].map(|name| result[name].as_str().map_or(0, str::len));
    for (script, expected) in [
        // Before the flood, behind it, and beside it.
        ("echo result; head -c 100000 /dev/zero >&2", [7, 9993]),
        ("head -c 100000 /dev/zero >&2; echo result", [7, 9993]),
        ("head -c 100000 /dev/zero; echo why >&2", [9996, 4]),
        ("head -c 100000 /dev/zero >&2; head -c 100000 /dev/zero", [5000, 5000]),
        ("head -c 100000 /dev/zero; head -c 6000 /dev/zero >&2", [5904, 4096]),
        ("head -c 9000 /dev/zero; head -c 1000 /dev/zero >&2", [9000, 1000]),
        ("head -c 10000 /dev/zero", [10000, 0]),
    ] {
        let result = run(script, 10_000, "discard");
        assert_eq!(lengths(&result), expected, "{script}");
        succeeds(&result);
    }
    // Where there is next to nothing to share stderr takes nothing away.
    assert_eq!(lengths(&run("head -c 9999 /dev/zero; echo why >&2", 100, "discard")), [100, 0]);
    let little = "head -c 9999 /dev/zero >&2; head -c 9999 /dev/zero; head -c 9999 /dev/zero >&2";
    // Which of the two is read first is not certain, stdout's half is.
    let [stdout, stderr] = lengths(&run(little, 100, "discard"));
    assert!(stdout >= 50 && stdout + stderr == 100, "{stdout} {stderr}");
    let killed = run("echo result; yes >&2", 1000, "kill");
    assert_eq!((&killed["status"], lengths(&killed)), (&json!("ResourceLimitExceeded"), [7, 993]), "{killed}");
    let beyond = run("head -c 501 /dev/zero; head -c 500 /dev/zero >&2; sleep 60", 1000, "kill");
    assert_eq!(beyond["error"], "output limit of 1000 bytes exceeded");
}

#[test]
fn merged_output_is_in_the_order_written() {
    let server = Server::start_open();
    let script = "for i in {1..500}; do echo out $i; echo err $i >&2; done";
    let both: String = (1..=500).map(|i| format!("out {i}\nerr {i}\n")).collect();
    let of = |stream: &str| -> String { (1..=500).map(|i| format!("{stream} {i}\n")).collect() };
    let merged = server.run(bash(script, json!({ "merge_output": true })));
    assert_eq!((&merged["stdout"], &merged["stderr"]), (&json!(both), &Value::Null));
    assert!(merged.get("output").is_none());

    let beside =
        server.run(bash("echo a; sleep 0.3; echo b >&2; sleep 0.3; echo c", json!({ "merge_output": "beside" })));
    let streams = ["stdout", "stderr", "output"].map(|key| beside[key].clone());
    assert_eq!(streams, [json!("a\nc\n"), json!("b\n"), json!("a\nb\nc\n")]);
    let beside = server.run(bash(script, json!({ "merge_output": "beside" })));
    assert_eq!((&beside["stdout"], &beside["stderr"]), (&json!(of("out")), &json!(of("err"))));
    let output = beside["output"].as_str().unwrap();
    let lines = |word: &str| -> String {
        output.lines().filter(|line| line.starts_with(word)).map(|line| format!("{line}\n")).collect()
    };
    assert_eq!((output.len(), lines("out"), lines("err")), (both.len(), of("out"), of("err")));

    let limits = json!({ "max_output_size": 8 });
    let cut =
        server.run(bash("echo 12345; echo 67890 >&2", json!({ "merge_output": true, "resource_limits": limits })));
    assert_eq!((&cut["status"], &cut["stdout"]), (&json!("ResourceLimitExceeded"), &json!("12345\n67")), "{cut}");
}

#[test]
fn detail_tells_how_a_task_ended_and_what_it_was_allowed() {
    let server = Server::start_open();
    let result = server.run(bash("printf abc; printf de >&2; kill -SEGV $$", json!({ "detail": true })));
    assert_eq!((&result["signal"], &result["exit_code"]), (&json!("SIGSEGV"), &json!(139)), "{result}");
    assert_eq!((&result["stdout_bytes"], &result["stderr_bytes"]), (&json!(3), &json!(2)));
    assert_eq!((&result["stdout_truncated"], &result["stderr_truncated"]), (&json!(false), &json!(false)));
    let timings = &result["timings"];
    assert_eq!(keys(timings), ["collect_ns", "queued_ns", "run_ns", "setup_ns"]);
    assert!(timings.as_object().unwrap().values().all(|time| time.as_u64().is_some_and(|time| time > 0)), "{timings}");
    assert_eq!(timings["run_ns"], result["resource_usage"]["wall_time_ns"]);
    let expected = json!({ "memory_limit": 512 << 20, "cpu_time_limit": 30_000_000_000u64, "wall_time_limit": 60_000_000_000u64,
        "max_processes": 10, "max_file_descriptors": 100, "max_output_size": 1 << 20, "stack_limit": 512 << 20,
        "workspace_limit": 256 << 20, "max_file_size": null, "cpus": null });
    assert_eq!(result["limits"], expected);
    let (unified, counters) = (is_unified(), &result["counters"]);
    assert_eq!(keys(counters).len(), 7, "{counters}");
    assert_eq!((&counters["oom_kills"], &counters["forks_refused"]), (&json!(0), &json!(0)));
    assert_eq!(counters["throttled_ns"].is_u64(), unified, "{counters}");
    assert!(counters["minor_faults"].as_u64().unwrap() > 0 && counters["voluntary_switches"].is_u64(), "{counters}");

    let forks = bash(
        "for i in 1 2 3 4 5 6; do sleep 0.1 & done; wait",
        json!({ "detail": true, "resource_limits": { "max_processes": 3 } }),
    );
    assert!(server.run(forks)["counters"]["forks_refused"].as_u64().unwrap() > 0);
    let hog = task("tail", &["/dev/zero"], json!({ "detail": true, "resource_limits": { "memory_limit": 16 << 20 } }));
    let hog = server.run(hog);
    // Ended by the kernel, or by Faber, where it was given room for files beside its own memory.
    assert_eq!(hog["status"], "MemoryLimitExceeded", "{hog}");
    assert!(hog["counters"]["oom_kills"].is_u64(), "{hog}");
    assert_eq!(hog["signal"], Value::Null, "Faber's end is no signal of its own");
    assert_eq!(server.run(bash("exit 3", json!({ "detail": true })))["signal"], Value::Null);
}

#[test]
fn the_queue_shows_in_the_timings() {
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_EXECUTION__CONCURRENCY", "1")]);
    let sleep = bash("sleep 0.3", json!({ "detail": true }));
    let results = server.results(&json!({ "tasks": [sleep, sleep] }));
    let queued: Vec<u64> = results.iter().map(|result| result["timings"]["queued_ns"].as_u64().unwrap()).collect();
    assert!(queued.iter().max().unwrap() - queued.iter().min().unwrap() >= 300_000_000, "{queued:?}");
}

#[test]
fn the_stack_is_as_deep_as_it_may_be() {
    let source = "#include <stdio.h>\n#include <stdlib.h>\nstatic long deep(long n) { volatile char room[1000]; room[0] = n; \
        return n ? deep(n - 1) + room[0] - (char)n : 0; }\nint main(int c, char **v) { printf(\"%ld\\n\", deep(atol(v[1]))); }";
    let compile = bash("gcc -O0 -o deep deep.c", json!({ "name": "compile", "files": { "deep.c": source } }));
    let run = |kilobytes: &str, limits: Value| {
        let files = json!({ "deep": { "from": "compile", "file": "deep" } });
        task("./deep", &[kilobytes], json!({ "files": files, "resource_limits": limits, "detail": true }))
    };
    let (mebi, memory) = (1u64 << 20, 256u64 << 20);
    let tasks = json!([
        compile,
        run("100000", json!({ "memory_limit": memory })),
        run("100000", json!({ "memory_limit": memory, "stack_limit": 8 * mebi })),
        run("7000", json!({ "memory_limit": memory, "stack_limit": 8 * mebi })),
        run("7000", json!({ "memory_limit": memory, "stack_limit": mebi })),
    ]);
    let results = Server::start_open().results(&json!({ "tasks": tasks }));
    for (result, signal) in results[1..].iter().zip([None, Some("SIGSEGV"), None, Some("SIGSEGV")]) {
        assert_eq!(result["signal"].as_str(), signal, "{result}");
        assert_eq!(result["status"], if signal.is_some() { "Failure" } else { "Success" });
    }
    assert_eq!([&results[1]["limits"]["stack_limit"], &results[2]["limits"]["stack_limit"]], [memory, 8 * mebi]);
}

#[test]
fn the_workspace_is_as_large_as_it_may_be() {
    let server = Server::start_open();
    let written = |limit: Option<u64>, bytes: u64| {
        let mut limits = json!({ "memory_limit": 1u64 << 30 });
        if let Some(limit) = limit {
            limits["workspace_limit"] = limit.into();
        }
        let script = format!("head -c {bytes} /dev/zero >f; stat -c %s f");
        let result = server.run(bash(&script, json!({ "resource_limits": limits })));
        result["stdout"].as_str().unwrap_or_else(|| panic!("{result}")).trim().parse::<u64>().unwrap()
    };
    assert_eq!(written(None, 257 << 20), 256 << 20);
    assert_eq!(written(Some(1 << 20), 2 << 20), 1 << 20);
    assert_eq!(written(Some(400 << 20), 399 << 20), 399 << 20);
    assert_eq!(written(Some(400 << 20), 401 << 20), 400 << 20);
    // The next task's is its own.
    assert_eq!(written(None, 2 << 20), 2 << 20);
    let files = json!({ "a": "x".repeat(2 << 20) });
    let full = server.run(bash("true", json!({ "files": files, "resource_limits": { "workspace_limit": 1 << 20 } })));
    assert_eq!(full["status"], "NotExecuted", "{full}");
    let beyond = server.run(bash("true", json!({ "resource_limits": { "workspace_limit": 2u64 << 30 } })));
    assert_eq!(beyond["status"], "NotExecuted", "{beyond}");
}

#[test]
fn a_file_is_as_large_as_it_may_be() {
    let server = Server::start_open();
    let limits = json!({ "max_file_size": 1 << 20 });
    let more = json!({ "resource_limits": limits, "detail": true, "outputs": ["f"] });
    let held = server.run(task("dd", &["if=/dev/zero", "of=f", "bs=1M", "count=1"], more.clone()));
    succeeds(&held);
    let broken = server.run(task("dd", &["if=/dev/zero", "of=f", "bs=1M", "count=2"], more.clone()));
    assert_eq!((&broken["status"], &broken["signal"]), (&json!("Failure"), &json!("SIGXFSZ")), "{broken}");
    assert_eq!(broken["files"]["f"]["size"], 1 << 20);
    // A pipe is no file.
    succeeds(&server.run(bash("head -c 2M /dev/zero | wc -c", json!({ "resource_limits": limits }))));
}

/// A share of the processors takes cgroup v2: there it holds, elsewhere the task is not run.
#[test]
fn a_share_of_the_processors_holds_or_is_refused() {
    let server = Server::start_open();
    let limits = json!({ "cpus": 0.5 });
    let program = "import time\nwhile time.process_time() < 1: pass";
    let result = server.run(python(program, json!({ "resource_limits": limits, "detail": true })));
    if is_unified() {
        succeeds(&result);
        let time = |field: &str| result["resource_usage"][field].as_u64().unwrap();
        assert!(time("wall_time_ns") + 200_000_000 >= 2 * time("cpu_time_ns"), "{result}");
        // Where the machine is slow by itself it is none.
        assert!(result["counters"]["throttled_ns"].is_u64(), "{result}");
        assert_eq!(result["limits"]["cpus"], 0.5);
    } else {
        assert_eq!((&result["status"], &result["stdout"]), (&json!("NotExecuted"), &Value::Null));
        assert!(result["error"].as_str().unwrap().contains("takes cgroup v2"), "{result}");
    }
    succeeds(&server.run(bash("true", json!({}))));
}

#[test]
fn a_request_that_uses_nothing_new_has_exactly_the_pages_keys() {
    let page = ["error", "exit_code", "resource_limits_exceeded", "resource_usage", "status", "stderr", "stdout"];
    let tasks = json!([
        { "command": "echo", "args": ["x"], "files": { "f": "text" } },
        { "command": "false" },
        { "command": "true", "image": "nowhere" },
        { "command": "nothing-of-this-name" },
        { "command": "sleep", "args": ["9"], "resource_limits": { "wall_time_limit": 100_000_000 } },
    ]);
    for result in Server::start_open().results(&json!({ "tasks": tasks })) {
        assert_eq!(keys(&result), page, "{result}");
    }
}

/// A task that leaves nothing that was asked for says so, whatever it could not do.
#[test]
fn a_task_that_never_ran_has_no_files() {
    let result =
        Server::start_open().run(json!({ "command": "true", "image": "nowhere", "outputs": ["f"], "detail": true }));
    assert_eq!(result["status"], "NotExecuted");
    assert!(result.get("files").is_none_or(|files| files == &json!({})), "{result}");
}

#[test]
fn nothing_of_what_was_handed_over_stays_in_the_spool() {
    let server = Server::start(&["--open-mode"], &[NO_LIMIT, ("FABER_OUTPUTS__SPOOL", "64M")]);
    let script = "head -c 40M /dev/zero >f";
    for _ in 0..4 {
        let result = server.run(bash(script, json!({ "outputs": ["f"] })));
        assert_eq!(result["files"]["f"]["size"], 40 << 20, "{result}");
    }
    // What has no room is told, and the server goes on.
    let full = server.run(bash("head -c 60M /dev/zero >f; head -c 60M /dev/zero >g", json!({ "outputs": ["*"] })));
    assert_eq!(full["status"], "Failure", "{full}");
    assert!(full["error"].as_str().unwrap().contains("outputs.spool"), "{full}");
    eventually("there is room again", || {
        server.run(bash(script, json!({ "outputs": ["f"] })))["files"]["f"]["size"] == 40 << 20
    });
}
