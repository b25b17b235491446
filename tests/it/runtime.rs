//! What ordinary programs take for granted: settings of what is installed, sizes to go by, terminals, debuggers, a deep stack.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::Server;

const MIB: u64 = 1 << 20;

#[track_caller]
fn succeeds(result: &Value) -> &str {
    assert_eq!(result["status"], "Success", "{result}");
    result["stdout"].as_str().unwrap_or_default()
}

/// What links of the machine's /usr lead to in /etc, as far as everybody may read it.
fn settings() -> Vec<PathBuf> {
    let found = std::process::Command::new("find").args(["/usr", "-type", "l", "-lname", "/etc/*"]).output().unwrap();
    let links = String::from_utf8(found.stdout).unwrap();
    let is_open =
        |path: &Path| path.ancestors().all(|path| fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o4 != 0));
    let is_private = |path: &Path| path.starts_with("/etc/ssl/private") || path == Path::new("/etc/environment");
    let targets = links.lines().filter_map(|link| fs::read_link(link).ok());
    targets.filter(|target| is_open(target) && !is_private(target)).collect()
}

#[test]
fn what_usr_links_to_in_etc_is_there_and_nothing_secret() {
    let server = Server::start_open();
    let settings = settings();
    assert!(!settings.is_empty(), "no machine is without alternatives");
    let list = settings.iter().map(|path| format!("{}\n", path.display())).collect::<String>();
    let script = "while read -r path; do test -r \"$path\" || echo \"$path\"; done < list";
    let task = json!({ "command": "sh", "args": ["-c", script], "files": { "list": list } });
    assert_eq!(succeeds(&server.run(task)), "", "of {} settings these are missing", settings.len());
    // Neither a name nor a byte of what is not for everybody, or of the machine alone.
    let program = r#"
import os
for directory, directories, files in os.walk("/etc"):
    for name in directories + files:
        path = os.path.join(directory, name)
        if any(word in path.split("/")[2:] for word in ("shadow", "gshadow", "ssh", "private", "machine-id", "hostname", "sudoers")):
            print("secret", path)
        if not os.path.islink(path) and not os.access(path, os.R_OK):
            print("closed", path)
        try: open(path, "a").close(); print("writable", path)
        except OSError: pass
"#;
    assert_eq!(server.python(program), "");
}

#[test]
fn a_program_can_see_its_limits() {
    let server = Server::start_open();
    let script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null
        grep MemTotal /proc/meminfo; lscpu >/dev/null && echo lscpu; cat /sys/devices/system/cpu/online
        find /sys -maxdepth 3 ! -path '*/fs/*' | sort | xargs; find /sys ! -type d -writable
        touch /sys/x /sys/fs/cgroup/x /sys/fs/cgroup/*/x 2>/dev/null && echo written
        find /sys/fs/cgroup -mindepth 3 -name '*.procs'; cat /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs | grep -vx 0 | sort -u | wc -l";
    let of = |memory: u64| {
        let task = json!({ "command": "bash", "args": ["-c", script], "resource_limits": { "memory_limit": memory } });
        succeeds(&server.run(task)).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let shown = "/sys /sys/devices /sys/devices/system /sys/devices/system/cpu /sys/fs /sys/kernel /sys/kernel/mm \
                 /sys/kernel/mm/meminfo /sys/kernel/mm/transparent_hugepage";
    for mib in [200, 300, 200] {
        let seen = of(mib * MIB);
        let expected = [(mib * MIB).to_string(), format!("MemTotal:{:>15} kB", mib * 1024), "lscpu".into()];
        assert_eq!(seen[..3], expected, "{seen:?}");
        assert_eq!(seen[3..5], [online.trim(), shown], "{seen:?}");
        // Its own processes: shell, pipeline and all, no neighbour's.
        assert!(seen.len() == 6 && seen[5].parse::<u32>().unwrap() < 10, "{seen:?}");
    }
    let heap = "console.log(require('v8').getHeapStatistics().heap_size_limit >> 20)";
    let task = json!({ "command": "node", "args": ["-e", heap], "resource_limits": { "memory_limit": 512 * MIB } });
    let heap: u64 = succeeds(&server.run(task)).trim().parse().unwrap();
    assert!(heap <= 512, "a heap of {heap} MiB");
}

#[test]
fn there_are_pseudo_terminals_of_ones_own() {
    let server = Server::start_open();
    let program = r#"
import fcntl, os, pty, struct, termios
pty.spawn(["echo", "hi"])
leader, follower = pty.openpty()
fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
print(os.ttyname(follower), os.get_terminal_size(follower))
try: fcntl.ioctl(follower, termios.TIOCSTI, b"x"); print("typed for others")
except OSError as error: print(error.strerror)
held = []
try:
    while True: held += pty.openpty()
except OSError as error: print(len(held) // 2 < 64, error)
"#;
    let task =
        json!({ "command": "python3", "args": ["-c", program] , "resource_limits": { "max_file_descriptors": 512 } });
    let expected =
        "hi\r\n/dev/pts/0 os.terminal_size(columns=77, lines=33)\nOperation not permitted\nTrue out of pty devices\n";
    assert_eq!(succeeds(&server.run(task)), expected);
    assert_eq!(
        server.shell("script -qec 'stty rows 5 cols 6; stty size; tty' /dev/null").replace('\r', ""),
        "5 6\n/dev/pts/0"
    );
    // The next task's begin anew.
    assert_eq!(server.shell("ls /dev/pts"), "ptmx");
}

#[test]
fn debuggers_have_their_own_processes_and_no_others() {
    let server = Server::start_open();
    let traced = server.run(json!({ "command": "strace", "args": ["-f", "-c", "sh", "-c", "true; true | true"] }));
    assert!(succeeds(&traced).is_empty() && traced["stderr"].as_str().unwrap().contains("execve"), "{traced}");
    let leaking = "#include <stdio.h>\n#include <stdlib.h>\nint main() { int *p = malloc(4); *p = 3; printf(\"%d\\n\", *p); free(p); }\n";
    let script = "gcc -fsanitize=address a.c -o a && ./a";
    let task = json!({ "command": "sh", "args": ["-c", script], "files": { "a.c": leaking } });
    assert_eq!(succeeds(&server.run(task)), "3\n", "LeakSanitizer stops its process to look at it");
    // The init is another user's; one who asks to be traced by it goes on, untraced, and ends as it would.
    let program = r#"
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
def tried(name, *arguments):
    libc.ptrace.restype = ctypes.c_long
    print(name, os.strerror(ctypes.get_errno()) if libc.ptrace(*arguments) < 0 else "done")
tried("attach", 16, 1, 0, 0)
tried("seize", 0x4206, 1, 0, 0)
buffer = ctypes.create_string_buffer(8)
class Part(ctypes.Structure): _fields_ = [("at", ctypes.c_void_p), ("length", ctypes.c_size_t)]
part = Part(ctypes.addressof(buffer), 8)
print("read", os.strerror(ctypes.get_errno()) if libc.process_vm_readv(1, ctypes.byref(part), 1, ctypes.byref(part), 1, 0) < 0 else "done")
tried("traceme", 0, 0, 0, 0)
sys.stdout.flush()
signal.signal(signal.SIGUSR1, lambda *_: print("heard", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
if os.fork() == 0:
    if os.fork() == 0:
        # Its parent becomes the init.
        while os.getppid() != 1: pass
        libc.ptrace(0, 0, 0, 0)
        os.execvp("echo", ["echo", "an orphan"])
    os._exit(0)
os.wait()
os.execvp("sh", ["sh", "-c", "while ! wait; do :; done; sleep 0.2; exit 7"])
"#;
    let result = server.run(json!({ "command": "python3", "args": ["-c", program] }));
    let refused = "Operation not permitted";
    let expected = format!("attach {refused}\nseize {refused}\nread {refused}\ntraceme done\nheard\nan orphan\n");
    assert_eq!((&result["stdout"], &result["exit_code"]), (&json!(expected), &json!(7)), "{result}");
}

#[test]
fn the_stack_is_bounded_by_memory_alone() {
    let server = Server::start_open();
    let deep = "#include <stdio.h>\nstatic long sum(long depth) { volatile char frame[1000]; frame[0] = 1;\n\
                return depth ? sum(depth - 1) + frame[0] : 0; }\nint main() { printf(\"%ld\\n\", sum(200000)); }\n";
    let task = |limits: Value| {
        let script = "gcc -O0 a.c -o a && exec ./a";
        json!({ "command": "sh", "args": ["-c", script], "files": { "a.c": deep }, "resource_limits": limits })
    };
    assert_eq!(succeeds(&server.run(task(json!({})))), "200000\n");
    let less = server.run(task(json!({ "stack_limit": 16 * MIB })));
    assert_eq!((&less["status"], &less["exit_code"]), (&json!("Failure"), &json!(139)), "{less}");
    let memory = server.run(task(json!({ "memory_limit": 96 * MIB })));
    assert!(memory["status"] == "MemoryLimitExceeded" || memory["exit_code"] == 139, "{memory}");
}
