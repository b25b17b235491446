//! What was seen becomes what is told: how a task ended, and what it used. No I/O.

use super::cgroup::{CpuTimes, Measured, OutOfMemory};
use super::init::wire::{Notice, Rusage, Step, Unrunnable};
use super::watch::{Ended, Stop};
use crate::task::{Limit, Limits, Outcome, Usage};

/// What the set-up had used, to be taken off the task's bill.
pub struct Baseline {
    pub cpu: CpuTimes,
    pub io: Io,
    /// Of what its children's sums will tell.
    pub used: Rusage,
}

/// Bytes moved by system calls (proc_pid_io(5), rchar and wchar).
#[derive(Debug, Clone, Copy, Default)]
pub struct Io {
    pub read: u64,
    pub write: u64,
}

impl Baseline {
    /// What the task used since then; `after` and `io` are the sums at its end, `killed` says whether the kernel ended it for want of
    /// memory.
    pub fn usage(&self, after: &Measured, io: Io, (ended, killed): (&Ended, bool), file_descriptors: u64) -> Usage {
        let cpu_time = after.cpu.total.saturating_sub(self.cpu.total + ended.set_up);
        let user_time = after.cpu.user.saturating_sub(self.cpu.user).min(cpu_time);
        Usage {
            cpu_time,
            user_time,
            system_time: cpu_time - user_time,
            wall_time: u64::try_from(ended.wall_time.as_nanos()).unwrap_or(u64::MAX),
            memory_peak: ended.memory.peak(after.memory_peak, &after.memory, killed),
            memory_current: ended.memory.own(&after.memory),
            processes: after.processes,
            file_descriptors,
            io_read: io.read.saturating_sub(self.io.read),
            io_write: io.write.saturating_sub(self.io.write),
        }
    }
}

/// The one place where everything that was seen becomes one outcome. A limit that Faber acted on comes first; then what
/// only the counters know; then how the command itself ended, or why it could not begin.
pub fn outcome(
    ended: &Ended,
    limits: &Limits,
    usage: &Usage,
    oom: OutOfMemory,
    unrunnable: Option<Unrunnable>,
) -> Outcome {
    let stopped = |limit| {
        let value = match limit {
            Limit::Memory => limits.memory,
            Limit::CpuTime => limits.cpu_time,
            Limit::WallTime => limits.wall_time,
            Limit::Output => limits.output,
        };
        Outcome::Stopped(limit, value)
    };
    match ended.stop {
        Some(Stop::Limit(limit)) => return stopped(limit),
        Some(Stop::Cancelled) => return Outcome::Cancelled,
        Some(Stop::NoRoom) => {
            return Outcome::Lost { reason: "Faber has no room for what the task writes (outputs.spool)".into() };
        }
        Some(Stop::MachineOutOfMemory) => return machine_out_of_memory(),
        None => {}
    }
    match oom {
        OutOfMemory { kills: 0, .. } => {}
        OutOfMemory { is_own: true, .. } => return stopped(Limit::Memory),
        OutOfMemory { is_own: false, .. } => return machine_out_of_memory(),
    }
    // Between two samples, while the kernel's limit was more than the task's.
    if ended.memory.is_above_limit(usage.memory_peak) {
        return stopped(Limit::Memory);
    }
    if usage.cpu_time > limits.cpu_time {
        return stopped(Limit::CpuTime);
    }
    match ended.notice {
        Some(Notice::Exited { status, .. }) if status & 0x7f == 0 => Outcome::Exited((status >> 8 & 0xff) as u8),
        Some(Notice::Exited { status, .. }) => Outcome::Signalled(status & 0x7f),
        Some(Notice::Failed { step: Step::Exec, errno }) => match unrunnable {
            Some(Unrunnable { exit_code, reason }) => Outcome::CannotRun { exit_code, reason },
            None => cannot_run(errno),
        },
        _ => Outcome::Lost { reason: "Faber lost the task while it ran".into() },
    }
}

/// Not the task's doing: it may be run again.
pub fn machine_out_of_memory() -> Outcome {
    Outcome::Lost { reason: "the server's machine ran out of memory, and the task was within its own limit".into() }
}

/// When the task's process did not live to say more.
fn cannot_run(errno: i32) -> Outcome {
    let (exit_code, reason) = match errno {
        libc::ENOENT => (127, "command not found in the image".to_owned()),
        errno => (126, format!("command cannot be executed: {}", errno_text(errno))),
    };
    Outcome::CannotRun { exit_code, reason }
}

pub fn errno_text(errno: i32) -> String {
    nix::errno::Errno::from_raw(errno).desc().to_lowercase()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::sandbox::memory::MemoryWatch;

    const LIMITS: Limits =
        Limits { memory: 64 << 20, cpu_time: 1000, wall_time: 1000, output: 10, ..crate::task::MINIMUM };

    #[track_caller]
    fn check(stop: Option<Stop>, notice: Option<Notice>, cpu_time: u64, oom: OutOfMemory, expected: Outcome) {
        let (started_at, wall_time) = (Instant::now(), Duration::ZERO);
        let ended_at = started_at;
        let memory = MemoryWatch::new(LIMITS.memory, 0).seen();
        let ended =
            Ended { stop, notice, started: true, set_up: 0, wall_time, started_at, ended_at, used: None, memory };
        assert_eq!(outcome(&ended, &LIMITS, &Usage { cpu_time, ..Usage::default() }, oom, None), expected);
    }

    #[test]
    fn what_ended_the_task_first_is_what_is_told() {
        let none = OutOfMemory::default();
        let own = OutOfMemory { kills: 1, is_own: true };
        let others = OutOfMemory { kills: 1, is_own: false };
        let exited = |status| Some(Notice::Exited { at: 0, status, alone: true, used: Default::default() });
        let killed = exited(9);
        check(None, exited(3 << 8), 0, none, Outcome::Exited(3));
        check(None, killed, 0, none, Outcome::Signalled(9));
        check(None, killed, 0, own, Outcome::Stopped(Limit::Memory, 64 << 20));
        check(None, killed, 0, others, machine_out_of_memory());
        check(Some(Stop::MachineOutOfMemory), killed, 0, own, machine_out_of_memory());
        check(None, exited(0), 1001, none, Outcome::Stopped(Limit::CpuTime, 1000));
        check(Some(Stop::Limit(Limit::WallTime)), killed, 0, own, Outcome::Stopped(Limit::WallTime, 1000));
        check(Some(Stop::Cancelled), killed, 5000, own, Outcome::Cancelled);
        let failed = |errno| Some(Notice::Failed { step: Step::Exec, errno });
        let not_found = Outcome::CannotRun { exit_code: 127, reason: "command not found in the image".into() };
        check(None, failed(libc::ENOENT), 0, none, not_found);
        assert!(matches!(cannot_run(libc::EISDIR), Outcome::CannotRun { exit_code: 126, .. }));
        check(None, None, 0, none, Outcome::Lost { reason: "Faber lost the task while it ran".into() });
    }
}
