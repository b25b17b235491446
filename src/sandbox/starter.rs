//! What a process has from whoever started it, and would hand on to every task: a shell's `ulimit`, `nice` and `taskset`, a
//! scheduler's idle class, a test harness that ignores SIGCHLD. Tasks are to be alike whatever started Faber, so it goes.
//!
//! What an operator confines the service with stays: control groups and cpusets (in systemd's words AllowedCPUs=, CPUWeight=).

use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::kernel;

/// Limits that would hold Faber itself or its tasks by chance. That on descriptors is the operator's, and the init's affair.
const LIMITS: [(Resource, &str); 11] = [
    (Resource::As, "address space (ulimit -v)"),
    (Resource::Cpu, "CPU time (ulimit -t)"),
    (Resource::Data, "data (ulimit -d)"),
    (Resource::Fsize, "the size of files (ulimit -f)"),
    (Resource::Locks, "locks (ulimit -x)"),
    (Resource::Memlock, "locked memory (ulimit -l)"),
    (Resource::Msgqueue, "message queues (ulimit -q)"),
    (Resource::Nproc, "processes (ulimit -u)"),
    (Resource::Rss, "resident memory (ulimit -m)"),
    (Resource::Rttime, "real-time CPU time (ulimit -R)"),
    (Resource::Sigpending, "pending signals (ulimit -i)"),
];
/// What every task may have of what the kernel counts for a user (getrlimit(2)); the kernel's own defaults, or near them. Bytes
/// of locked memory, bytes of message queues, and signals.
pub const MEMLOCK: u64 = 8 << 20;
pub const MSGQUEUE: u64 = 800 << 10;
pub const SIGPENDING: u64 = 4096;

/// Faber's own: the kernel's default.
const STACK: u64 = 8 << 20;

/// Lets go of it, as far as this process may; for a process with one thread, before it starts any other.
pub fn forget() {
    // Ignored, it would have the kernel reap children unseen (wait(2)). Others that are ignored stay so: nohup(1).
    kernel::expect_children();
    for (resource, _) in LIMITS {
        raise(resource);
    }
    let stack = getrlimit(Resource::Stack);
    raise(Resource::Stack);
    let maximum = getrlimit(Resource::Stack).maximum;
    let current = maximum.map_or(STACK, |maximum| maximum.min(STACK));
    if stack.current != Some(current) {
        let _ = setrlimit(Resource::Stack, Rlimit { current: Some(current), maximum });
    }
    // Those of a cpuset stay (sched_setaffinity(2)).
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    let _ = sched_setaffinity(None, &all);
    let _ = setpriority_process(None, 0);
    kernel::schedule_as_usual();
}

/// As far as the hard limit goes, and that as far as may be: raising it takes CAP_SYS_RESOURCE (getrlimit(2)).
fn raise(resource: Resource) {
    if setrlimit(resource, Rlimit { current: None, maximum: None }).is_err() {
        let limit = getrlimit(resource);
        let _ = setrlimit(resource, Rlimit { current: limit.maximum, ..limit });
    }
}

/// What is left of it all the same, in words: limits that tasks would be held to as well.
pub fn left() -> Vec<String> {
    // As much as any task has is no matter.
    let enough = |resource| match resource {
        Resource::Memlock => Some(MEMLOCK),
        Resource::Msgqueue => Some(MSGQUEUE),
        // The kernel gives some by the machine's memory; groups hold tasks to far fewer.
        Resource::Nproc => Some(4096),
        Resource::Sigpending => Some(SIGPENDING),
        _ => None,
    };
    let is_low = |resource| match (getrlimit(resource).maximum, enough(resource)) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(maximum), Some(enough)) => maximum < enough,
    };
    let limits = LIMITS
        .iter()
        .filter(|(resource, _)| is_low(*resource))
        .map(|(resource, words)| format!("a limit of {} on {words}", getrlimit(*resource).maximum.unwrap_or_default()));
    let nice = rustix::process::getpriority_process(None).ok().filter(|nice| *nice != 0);
    limits.chain(nice.map(|nice| format!("a nice value of {nice}"))).collect()
}
