//! What DESIGN's isolation list says, seen from inside.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Server, eventually, running};

#[test]
fn the_task_is_nobody_and_can_become_nobody_else() {
    let server = Server::start_open();
    let status = server.shell("cat /proc/self/status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{name}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!((field("Uid"), field("Gid")), ("65000 65000 65000 65000".into(), "65000 65000 65000 65000".into()));
    assert_eq!(field("Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()));
    assert_eq!(server.shell("id -un; echo $HOME"), "faber\n/workspace");
    // Set-user-id programs of the machine give nothing.
    let su =
        server.run(json!({ "command": "bash", "args": ["-c", "su -c id || mount -t tmpfs x /tmp || chroot / id"] }));
    assert_eq!(su["status"], "Failure", "{su}");
}

#[test]
fn on_the_machine_every_slot_has_a_user_of_its_own() {
    let server = Server::start(&["--open-mode"], &[("FABER_EXECUTION__CONCURRENCY", "2")]);
    let sleep = json!({ "command": "sleep", "args": ["1.7"] });
    let url = server.url();
    let client = std::thread::spawn(move || {
        let body = json!({ "tasks": [sleep, sleep] }).to_string();
        ureq::post(format!("{url}/execute")).content_type("application/json").send(body).unwrap()
    });
    let mut uids = Vec::new();
    eventually("two tasks run", || {
        uids = users_of(&["sleep", "1.7"]);
        uids.len() == 2
    });
    client.join().unwrap();
    assert!(uids[0] != uids[1] && uids.iter().all(|uid| *uid >= 0x7000_0000), "{uids:?}");
}

/// The real user ids of the processes with this command line.
fn users_of(command: &[&str]) -> Vec<u32> {
    running(command).into_iter().filter_map(|pid| status_field(pid, "Uid")?.parse().ok()).collect()
}

/// The first word of a field of proc_pid_status(5).
fn status_field(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(field.split_whitespace().next()?.to_owned())
}

#[test]
fn namespaces_are_not_the_machines() {
    let server = Server::start(&["--open-mode"], &[("FABER_EXECUTION__CONCURRENCY", "2")]);
    let inside = server.shell("for n in pid mnt ipc uts cgroup user net; do readlink /proc/self/ns/$n; done");
    let names = ["pid", "mnt", "ipc", "uts", "cgroup", "user", "net"];
    assert_eq!(inside.lines().count(), names.len());
    for (name, inside) in names.iter().zip(inside.lines()) {
        let outside = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(outside.to_str().unwrap(), inside, "{name}");
    }
    // Every container has its own. Two at the same time: the numbers of those that are gone are given out again.
    let script =
        "date +%s%N; for n in pid mnt ipc uts cgroup user net; do readlink /proc/self/ns/$n; done; sleep 1; date +%s%N";
    let task = json!({ "command": "bash", "args": ["-c", script] });
    let body = server.execute(json!([task, task])).json();
    let [one, other] = [0, 1].map(|at| {
        let lines: Vec<_> = body["results"][at]["stdout"].as_str().unwrap().lines().map(str::to_owned).collect();
        let times = [0, 8].map(|line| lines[line].parse::<u64>().unwrap());
        (times, lines[1..8].to_vec())
    });
    assert!(one.0[0] < other.0[1] && other.0[0] < one.0[1], "not at the same time: {body}");
    assert!(one.1.iter().zip(&other.1).all(|(one, other)| one != other), "{body}");
}

#[test]
fn nothing_of_the_machine_is_to_be_seen() {
    let server = Server::start_open();
    // Debian has /lib64 on x86-64 only.
    let lib64 = if fs::exists("/lib64").unwrap() { "lib64 " } else { "" };
    let expected = format!("bin dev etc faber lib {lib64}proc sbin sys tmp usr workspace");
    assert_eq!(server.shell("ls / | xargs"), expected);
    for path in ["/home", "/root", "/var", "/opt", "/run", "/boot", "/mnt", "/etc/shadow", "/etc/hostname", "/etc/ssh"]
    {
        assert_eq!(server.shell(&format!("test -e {path} && echo there; true")), "", "{path}");
    }
    assert_eq!(server.shell("cut -d: -f1 /etc/passwd | xargs"), "root faber nobody");
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_ne!(server.shell("uname -n"), host);
    assert_eq!(server.shell("env | cut -d= -f1 | sort | xargs"), "HOME LANG PATH PWD SHLVL _");
    // Other processes: only the task's own; not even the init can be looked at.
    assert_eq!(server.shell("ls /proc > all; grep -c '^[0-9]*$' all"), "2", "bash and ls");
    assert_eq!(server.shell("cat /proc/1/environ /proc/1/maps 2>&1 >/dev/null | wc -l"), "2");
    let mounts = server.shell("cat /proc/self/mountinfo");
    assert!(!mounts.contains(server.instance()) && !mounts.contains("/run/faber"), "{mounts}");
    assert_eq!(server.shell("cat /proc/self/cgroup | cut -d: -f3 | sort -u"), "/");
}

#[test]
fn proc_is_read_only_and_tells_nothing_of_the_machine() {
    let server = Server::start_open();
    // What programs size themselves by, and links to what a process has of its own; of all else there is nothing to read.
    let shown = "cgroups cpuinfo filesystems meminfo mounts net self stat sys sysvipc thread-self uptime version";
    let of_the_machine =
        |name: &String| !name.bytes().all(|b| b.is_ascii_digit()) && !shown.split(' ').any(|s| s == name);
    let names = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let masked: Vec<String> = names.filter(of_the_machine).collect();
    for known in ["bus", "cmdline", "interrupts", "key-users", "loadavg", "vmstat"] {
        assert!(masked.iter().any(|name| name == known), "the machine's own /proc: {masked:?}");
    }
    let script = "cd /proc; for f in $FILES; do test -d $f && ls -A $f; test -f $f -o -c $f && cat $f; done; ls -d $FILES | wc -l";
    let task = json!({ "command": "bash", "args": ["-c", script], "env": { "FILES": masked.join(" ") } });
    let told = server.run(task)["stdout"].as_str().unwrap().to_owned();
    assert_eq!(told.trim(), masked.len().to_string(), "nothing but how many there are: {told}");
    for name in shown.split(' ') {
        assert_eq!(server.shell(&format!("test -e /proc/{name} && echo there")), "there", "{name}");
    }
    let mounts = server.shell("cat /proc/self/mountinfo");
    let proc = mounts.lines().find(|line| line.contains(" / /proc ")).unwrap();
    assert!(proc.split_whitespace().nth(5).unwrap().starts_with("ro,nosuid,nodev,noexec"), "{proc}");
    assert_eq!(server.shell("echo x > /proc/self/comm 2>/dev/null && echo wrote; true"), "");
}

#[test]
fn the_init_keeps_no_more_than_it_needs() {
    let server = Server::start_open();
    let sleep = json!({ "command": "sleep", "args": ["1.9"] });
    let url = server.url();
    let client = std::thread::spawn(move || {
        let body = json!({ "tasks": [sleep] }).to_string();
        ureq::post(format!("{url}/execute")).content_type("application/json").send(body).unwrap()
    });
    let mut init = None;
    eventually("the task runs", || {
        init = running(&["sleep", "1.9"]).first().and_then(|task| status_field(*task, "PPid")?.parse().ok());
        init.is_some()
    });
    let init = init.unwrap();
    // CAP_KILL, CAP_SETGID, CAP_SETUID and CAP_SETPCAP (linux/capability.h).
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status_field(init, set).unwrap(), "00000000000001e0", "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(status_field(init, set).unwrap(), "0000000000000000", "{set}");
    }
    client.join().unwrap();
}

#[test]
fn fabers_own_processes_keep_no_more_than_they_need() {
    let server = Server::start_open();
    assert_eq!(server.shell("echo up"), "up");
    let sets = |pid: i32| ["CapPrm", "CapEff", "CapBnd"].map(|set| status_field(pid, set).unwrap());
    let bits = |numbers: &[u32]| format!("{:016x}", numbers.iter().map(|number| 1u64 << number).sum::<u64>());
    // By their numbers in linux/capability.h: CHOWN, DAC_OVERRIDE, KILL, SETGID, SETUID, SETPCAP, SYS_PTRACE, SYS_ADMIN.
    let keeper = bits(&[0, 1, 5, 6, 7, 8, 19, 21]);
    assert_eq!(sets(server.pid()), [keeper.clone(), keeper.clone(), keeper], "the keeper's");
    let runner = bits(&[0, 1, 5, 19, 21]);
    for pid in server.processes("runner") {
        let mut seen = sets(pid);
        eventually("the runner has its slot", || {
            seen = sets(pid);
            seen == [runner.clone(), runner.clone(), runner.clone()]
        });
    }
    let front = server.processes("front")[0];
    let none = bits(&[]);
    assert_eq!([status_field(front, "CapPrm").unwrap(), status_field(front, "CapEff").unwrap()], [none.clone(), none]);
    for pid in [vec![server.pid(), front], server.processes("runner")].concat() {
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(status_field(pid, set).unwrap(), bits(&[]), "{set}");
        }
    }
    for (field, value) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
        for thread in fs::read_dir(format!("/proc/{front}/task")).unwrap() {
            let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            let found = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
            assert_eq!(found.trim(), value, "{field}");
        }
    }
    assert!(status_field(front, "Uid").unwrap().parse::<u32>().unwrap() >= 0x7000_0000);
    assert!(fs::read_link(format!("/proc/{front}/cwd")).unwrap() == std::path::Path::new("/"));
}

#[test]
fn only_the_workspace_tmp_and_shm_can_be_written() {
    let server = Server::start_open();
    for path in ["/", "/usr", "/etc", "/bin/", "/faber/bin", "/dev", "/proc/sys/kernel", "/proc"] {
        let script = format!("touch {path}/x 2>/dev/null && echo wrote; true");
        assert_eq!(server.shell(&script), "", "{path}");
    }
    assert_eq!(server.shell("for d in /workspace /tmp /dev/shm; do echo x > $d/f && cat $d/f; done"), "x\nx\nx");
    assert_eq!(server.shell("echo 1 > /proc/sys/kernel/panic 2>/dev/null && echo wrote; true"), "");
    assert_eq!(server.shell("echo 0 > /proc/sysrq-trigger 2>/dev/null && echo wrote; true"), "");
    // nosuid, nodev.
    let mounts = server.shell("cat /proc/self/mountinfo");
    for mount in [" /workspace ", " /tmp ", " /dev/shm ", " /usr "] {
        let line = mounts.lines().find(|line| line.contains(mount)).unwrap_or_else(|| panic!("{mount}: {mounts}"));
        assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
    }
}

#[test]
fn sizes_and_inodes_of_writable_places_are_limited() {
    let server = Server::start_open();
    let limits =
        json!({ "memory_limit": 1 << 30, "cpu_time_limit": 240_000_000_000u64, "wall_time_limit": 480_000_000_000u64 });
    let fill = |dir: &str| {
        let script = format!("head -c 600M /dev/zero > {dir}/f; stat -c %s {dir}/f");
        let result = server.run(json!({ "command": "bash", "args": ["-c", script], "resource_limits": limits }));
        result["stdout"].as_str().unwrap().trim().parse::<u64>().unwrap() >> 20
    };
    assert_eq!([fill("/workspace"), fill("/tmp"), fill("/dev/shm")], [256, 128, 64]);
    let program = "import errno\ntry:\n  for i in range(10**6): open(f'/tmp/{i}', 'w').close()\nexcept OSError as e: print(errno.errorcode[e.errno], i > 1000)";
    let result = server.run(json!({ "command": "python3", "args": ["-c", program], "resource_limits": limits }));
    assert_eq!(result["stdout"], "ENOSPC True\n", "{result}");
}

#[test]
fn system_calls_a_task_never_needs_are_refused() {
    let server = Server::start_open();
    let program = r#"
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(number, *args)
    print(name, "done" if result >= 0 else os.strerror(ctypes.get_errno()))
for number in CALLS: call(number, number, 0, 0, 0, 0, 0)
call("clone newuser", CLONE, 0x10000000 | 17, 0, 0, 0, 0)
for number in ABSENT: call("absent", number, 0, 0)
libc.prctl.argtypes = [ctypes.c_int] + 4 * [ctypes.c_ulong]
for name, option in (("core scheduling", 62), ("merging of pages", 67), ("mitigations", 53)):
    ctypes.set_errno(0)
    print("prctl", name, "done" if libc.prctl(option, 1, 0, 0, 0) >= 0 else os.strerror(ctypes.get_errno()))
for family in (socket.AF_INET, socket.AF_INET6):
    for kind, protocol in ((1, 132), (1, 262), (2, 136), (2, 33), (5, 132), (5, 0), (6, 0), (6, 33), (2, 115), (2, 1), (3, 255)):
        try: socket.socket(family, kind, protocol); print("socket", kind, protocol, "done")
        except OSError as e: print("socket", e.strerror)
for family in ("AF_VSOCK", "AF_ALG", "AF_PACKET"):
    try: socket.socket(getattr(socket, family), socket.SOCK_SEQPACKET if family == "AF_ALG" else socket.SOCK_RAW); print(family, "done")
    except OSError as e: print(family, e.strerror)
"#;
    macro_rules! numbers { ($($name:ident)*) => { [$(libc::$name),*] }; }
    let refused = numbers![
        SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_swapon SYS_reboot SYS_sethostname SYS_init_module
        SYS_keyctl SYS_add_key SYS_request_key SYS_unshare SYS_setns SYS_perf_event_open SYS_bpf SYS_userfaultfd
        SYS_io_uring_setup SYS_open_tree SYS_fsopen SYS_mount_setattr SYS_name_to_handle_at
        SYS_open_by_handle_at SYS_kexec_load SYS_acct SYS_quotactl SYS_syslog
    ];
    // A number that no kernel has yet, among them.
    let absent: Vec<i64> = numbers![SYS_clone3 SYS_io_setup SYS_lookup_dcookie].into_iter().chain([1000]).collect();
    let clone = libc::SYS_clone;
    let output = server.python(&format!("CALLS, ABSENT, CLONE = {refused:?}, {absent:?}, {clone}\n{program}"));
    for line in output.lines() {
        let expected = match line.split(' ').next().unwrap() {
            "absent" => "Function not implemented",
            "prctl" => "Invalid argument",
            "socket" if line.ends_with("Protocol not supported") => continue,
            _ => "Operation not permitted",
        };
        assert!(line.ends_with(expected), "{line}");
    }
    assert_eq!(output.lines().count(), refused.len() + absent.len() + 4 + 3 + 22, "{output}");
    // What programs do every day goes on.
    let program = r#"
import ctypes, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(15, b"a name", 0, 0, 0) == 0 and libc.prctl(38, 1, 0, 0, 0) == 0
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        socket.socket(family, kind).close()
        socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC).close()
socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP).close()
socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDP).close()
print(socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)[0][4][1])
"#;
    assert_eq!(server.python(program), "80");
}

#[test]
fn there_is_loopback_and_no_other_network() {
    let server = Server::start_open();
    assert_eq!(server.shell("cut -d: -f1 -s /proc/net/dev | grep -v '|' | xargs"), "lo");
    let program = "import socket, threading\ns = socket.create_server(('127.0.0.1', 0))\nc = socket.create_connection(s.getsockname())\nprint('connected')\ntry: socket.create_connection(('192.0.2.1', 80), 2); print('out')\nexcept OSError as e: print(e.strerror)";
    assert_eq!(server.python(program), "connected\nNetwork is unreachable");
    let port = server.url().rsplit_once(':').unwrap().1.to_owned();
    let program = format!(
        "import socket\ntry: socket.create_connection(('127.0.0.1', {port}), 2); print('reached')\nexcept OSError as e: print(e.strerror)"
    );
    assert_eq!(server.python(&program), "Connection refused");
}

#[test]
fn no_descriptor_but_the_three_is_inherited() {
    let server = Server::start_open();
    assert_eq!(server.python("import os; print(sorted(int(f) for f in os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')))"), "[0, 1, 2] 4");
    // No input: an empty file, not a terminal and not the server's.
    assert_eq!(server.shell("wc -c; readlink /proc/self/fd/0; tty; true"), "0\n/dev/null\nnot a tty");
}

#[test]
fn resource_limits_that_engines_forget_are_set() {
    let server = Server::start_open();
    assert_eq!(server.shell("ulimit -c; ulimit -n; ulimit -Hn"), "0\n100\n100");
    // No swap: the group's memory is all there is.
    assert_eq!(server.shell("ulimit -v"), "unlimited");
}

#[test]
fn nothing_of_whoever_started_it_reaches_a_task() {
    let script = "ulimit -Sa; ulimit -Ha; nice; nproc; umask; grep -E '^(Sig|Cpus)' /proc/self/status; chrt -p $$ | cut -d: -f2; \
                  ionice -p $$; cat /proc/self/timerslack_ns 2>/dev/null; setarch --show 2>/dev/null; env | grep -v ^_";
    let usual = Server::start_open().shell(script);
    let preparation = "ulimit -S -f 100 -l 4 -i 3 -q 5 -t 7777 -s 256 -d 4000000 -v 8000000 -x 9; ulimit -S -u 5000; \
                       renice -n 10 $$ >&2; taskset -p 1 $$ >&2; chrt --batch -p 0 $$; ionice -c 3 -p $$; umask 077; \
                       trap '' CHLD USR1 PIPE QUIT; export SECRET=x LD_LIBRARY_PATH=/tmp";
    let server = Server::start_after(preparation, &["--open-mode"], &[]);
    assert_eq!(server.shell(script), usual);
    // The limits are Faber's, not by chance the same.
    assert_eq!(
        server.shell("ulimit -Sf; ulimit -Hf; ulimit -l; ulimit -i; ulimit -q; ulimit -e; ulimit -r; nice"),
        "unlimited\nunlimited\n8192\n4096\n819200\n0\n0\n0"
    );
    let output = crate::support::faber_after(preparation, &["run", "--", "bash", "-c", script]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), usual, "{output:?}");
}

#[test]
fn devices_are_the_harmless_ones() {
    let server = Server::start_open();
    let expected = "core fd full kcore mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    let found = server.shell("ls /dev | sort | xargs");
    for device in found.split(' ') {
        assert!(expected.split(' ').any(|known| known == device), "{device}: {found}");
    }
    assert_eq!(server.shell("mknod /tmp/disk b 8 0 2>/dev/null && echo made; true"), "");
}

#[test]
fn locks_and_watches_of_files_reach_nobody_else() {
    let server = Server::start_open();
    let program = r#"
import ctypes, fcntl, os, struct, time
libc = ctypes.CDLL(None)
queue = libc.inotify_init1(os.O_NONBLOCK)
for path in (b"/usr/bin/env", b"/dev/null", b"/usr/bin"): assert libc.inotify_add_watch(queue, path, 0xfff) >= 0
time.sleep(1)
try: print("seen", len(os.read(queue, 4096)))
except BlockingIOError: print("nothing seen")
for path in ("/usr/bin/env", "/dev/null", "/usr/bin", "/dev/zero"):
    file = os.open(path, os.O_RDONLY)
    try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB); print("locked")
    except OSError: print("busy", path)
# Until the other has tried.
print(time.clock_gettime(time.CLOCK_MONOTONIC)); time.sleep(1); print(time.clock_gettime(time.CLOCK_MONOTONIC))
"#;
    // Beside each other, and beside somebody on the machine who does the same.
    let paths = ["/usr/bin/env", "/dev/null", "/usr/bin", "/dev/zero"];
    let held: Vec<fs::File> = paths.iter().map(|path| fs::File::open(path).unwrap()).collect();
    held.iter().for_each(|file| file.lock().unwrap());
    let opening = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let neighbour = std::thread::spawn({
        let opening = opening.clone();
        move || {
            while opening.load(std::sync::atomic::Ordering::Relaxed) {
                paths.iter().for_each(|path| drop(fs::File::open(path).unwrap()));
            }
        }
    });
    let task = json!({ "command": "python3", "args": ["-c", program] });
    let body = server.execute(json!([task, task])).json();
    opening.store(false, std::sync::atomic::Ordering::Relaxed);
    neighbour.join().unwrap();
    let times = [0, 1].map(|at| {
        let text = body["results"][at]["stdout"].as_str().unwrap_or_else(|| panic!("{body}"));
        let rest =
            text.strip_prefix("nothing seen\nlocked\nlocked\nlocked\nlocked\n").unwrap_or_else(|| panic!("{body}"));
        let (begin, end) = rest.trim().split_once('\n').unwrap();
        (begin.parse::<f64>().unwrap(), end.parse::<f64>().unwrap())
    });
    assert!(times[0].0 < times[1].1 && times[1].0 < times[0].1, "not at the same time: {body}");
}

#[test]
fn nothing_stays_from_one_task_to_the_next() {
    let server = Server::start(
        &["--open-mode"],
        &[("FABER_RATE_LIMIT__ENABLED", "false"), ("FABER_EXECUTION__CONCURRENCY", "1")],
    );
    let leave = "echo x > /workspace/f; echo x > /tmp/f; echo x > /dev/shm/f; python3 -c 'import mmap'; (setsid sleep 100 &) ; exit 0";
    for _ in 0..4 {
        server.shell(leave);
        // Counted by the shell itself, which then is the only process: one end of a pipe may not be there yet.
        assert_eq!(
            server.shell("ls -A /workspace /tmp /dev/shm | xargs; set -- /proc/[0-9]*; echo $#"),
            "/dev/shm: /tmp: /workspace:\n1"
        );
    }
}

#[test]
fn limits_are_in_force_inside() {
    // The kernel's own view of the group, from outside, while the task runs.
    let server = Server::start_open();
    let url = server.url();
    let task = json!({ "command": "sleep", "args": ["1.3"], "resource_limits": { "memory_limit": 48 << 20, "max_processes": 7 } });
    let client = std::thread::spawn(move || {
        ureq::post(format!("{url}/execute"))
            .content_type("application/json")
            .send(json!({ "tasks": [task] }).to_string())
            .unwrap()
    });
    let mut seen = Vec::new();
    eventually("the limits are in force", || {
        seen = crate::support::groups_of(server.instance()).iter().flat_map(|group| limits_of(group)).collect();
        let memory = (48u64 << 20).to_string();
        seen.contains(&memory) && seen.contains(&"8".to_owned())
    });
    let mut answer = client.join().unwrap();
    let body: Value = answer.body_mut().read_json().unwrap();
    assert_eq!(body["results"][0]["status"], "Success");
}

fn limits_of(group: &std::path::Path) -> Vec<String> {
    let files = ["memory.limit_in_bytes", "memory.max", "pids.max"];
    files.iter().filter_map(|file| Some(fs::read_to_string(group.join(file)).ok()?.trim().to_owned())).collect()
}
