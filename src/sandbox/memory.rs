//! A task's memory while it runs: what is its own, and what are only copies of files.
//!
//! The kernel charges whoever reads a page of a file first, so that the same program is charged 50 MiB or 150 by what others
//! have read before, and one whose files do not fit its limit reads them over and over: it does not fail, it never ends. Files
//! that a task cannot change (images) are not its memory here. When a group at its limit reads again what it had to let go
//! (refaults: admin-guide/cgroup-v2.rst, memory.stat), it is given room for files beyond its limit, as long as the machine has
//! it; what is the task's own is then held to the limit by this watch, with the kernel's limit behind it.

use std::fs;
use std::time::{Duration, Instant};

use super::cgroup::{Cgroup, Memory};

/// Room for files beyond the limit, in bytes, at most.
const MOST_ROOM: u64 = 1 << 30;
/// The least that is given at once.
const LEAST_ROOM: u64 = 4 << 20;
/// Of what the machine has available a task is given this part at once.
const PART: u64 = 4;
/// How long pages have to come back when there is no room to give, and how many, for the program to be called thrashing.
const PATIENCE: Duration = Duration::from_secs(1);
const PAGES: u64 = 2048;
const PAGE: u64 = 4096;

/// What a sample leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// The kernel's limit is to be this many bytes above the task's.
    Room(u64),
    Exceeded,
}

/// What was seen of a task's memory.
pub struct MemoryWatch {
    /// What was there before the task.
    held: u64,
    /// The task's, and that.
    limit: u64,
    room: u64,
    /// What was charged at the last look.
    charged: u64,
    /// The most that was its own.
    most: u64,
    refaults: Option<u64>,
    /// Since when pages have been coming back without room to give, and how many.
    thrashing: Option<(Instant, u64)>,
}

impl MemoryWatch {
    /// Of a task with this limit, in whose group so much was there before it. Bytes.
    pub fn new(limit: u64, held: u64) -> Self {
        Self { held, limit: limit + held, room: 0, charged: 0, most: held, refaults: None, thrashing: None }
    }

    /// The most that the task had of its own in any sample, and whether it was given room beyond its limit. Bytes.
    pub fn seen(&self) -> Seen {
        let Self { held, limit, most, room, .. } = *self;
        Seen { held, most: most - held, limit: limit - held, widened: room > 0 }
    }

    /// Whether it is held to its limit by these looks, or may be soon.
    pub fn is_tense(&self) -> bool {
        self.room > 0 || self.thrashing.is_some() || self.is_near(self.charged)
    }

    /// Looks at the group; true when the task has to end for want of memory.
    pub fn sample(&mut self, group: &dyn Cgroup) -> bool {
        // All of it is less than was its own before: nothing to be seen, and the rest takes ten times as long to read.
        let Ok(charged) = group.memory_charged() else { return false };
        self.charged = charged;
        if charged <= self.most && !self.is_near(charged) {
            return false;
        }
        let Ok(memory) = group.memory() else { return false };
        match self.judge(memory, available, Instant::now()) {
            Verdict::Fine => false,
            Verdict::Room(room) => {
                if group.widen(self.limit + room).is_ok() {
                    self.room = room;
                }
                false
            }
            Verdict::Exceeded => true,
        }
    }

    fn is_near(&self, charged: u64) -> bool {
        let limit = self.limit + self.room;
        charged >= limit - limit / 16
    }

    /// `available` is asked only when room is to be given.
    fn judge(&mut self, memory: Memory, available: impl FnOnce() -> u64, now: Instant) -> Verdict {
        let own = memory.own;
        self.most = self.most.max(own);
        if self.room > 0 && own > self.limit + leeway(self.limit) {
            return Verdict::Exceeded;
        }
        let before = self.refaults.replace(memory.refaults).unwrap_or(0);
        let back = memory.refaults.saturating_sub(before);
        if back == 0 || !self.is_near(memory.charged) {
            return Verdict::Fine;
        }
        // Twice what came back: it is still to come.
        let wanted = (2 * back * PAGE).max(LEAST_ROOM).min(MOST_ROOM - self.room);
        if wanted > 0 && wanted <= available() / PART {
            self.thrashing = None;
            return Verdict::Room(self.room + wanted);
        }
        let (since, pages) = self.thrashing.unwrap_or((now, 0));
        self.thrashing = Some((since, pages + back));
        match now.duration_since(since) >= PATIENCE {
            false => Verdict::Fine,
            true if pages + back >= PAGES => Verdict::Exceeded,
            true => {
                self.thrashing = None;
                Verdict::Fine
            }
        }
    }
}

/// What the samples of a task's memory saw. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What was there before the task, which is not in the rest.
    held: u64,
    most: u64,
    limit: u64,
    /// Whether the kernel's limit was more than the task's.
    widened: bool,
}

impl Seen {
    /// The most that the task had of its own. `charged` is the most that was charged to its group at once, `killed` whether the
    /// kernel ended it for that.
    pub fn peak(&self, charged: u64, at_end: &Memory, killed: bool) -> u64 {
        // What the kernel charges ahead.
        const AHEAD: u64 = 1 << 20;
        let charged = charged.saturating_sub(self.held);
        // Files that are there at the end were there at the peak too, or came later: the rest was its own. Where the kernel has let
        // go of some meanwhile that is not so, unless it found none any more.
        let has_let_go = self.widened || charged + AHEAD >= self.limit;
        let rest = if has_let_go && !killed { 0 } else { charged.saturating_sub(at_end.files()) };
        let most = self.most.max(rest).max(self.own(at_end));
        // What the counters are behind by is no reason to tell of more than was allowed.
        if self.widened && most <= self.limit + leeway(self.limit) { most.min(self.limit) } else { most }
    }

    /// What of a group's memory is the task's own.
    pub fn own(&self, memory: &Memory) -> u64 {
        memory.own.saturating_sub(self.held)
    }

    /// Whether a peak is more than the task was allowed, where the kernel's limit did not see to that.
    pub fn is_above_limit(&self, peak: u64) -> bool {
        self.widened && peak > self.limit
    }
}

/// The counters of memory.stat are a little behind, the more so the more processors there are.
fn leeway(limit: u64) -> u64 {
    (limit / 32).max(2 << 20)
}

/// MemAvailable of proc_meminfo(5), in bytes.
fn available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kilobytes| kilobytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory(own: u64, files: u64, refaults: u64) -> Memory {
        Memory { charged: (own + files) * MIB, own: own * MIB, refaults }
    }

    #[test]
    fn who_reads_again_what_did_not_fit_is_given_room() {
        let mut watch = MemoryWatch::new(64 * MIB, 0);
        let now = Instant::now();
        let plenty = || 8 << 30;
        assert_eq!(watch.judge(memory(40, 23, 0), plenty, now), Verdict::Fine);
        assert_eq!(watch.judge(memory(40, 5, 900), plenty, now), Verdict::Fine, "far from its limit");
        assert_eq!(watch.judge(memory(40, 24, 910), plenty, now), Verdict::Room(4 * MIB));
        watch.room = 4 * MIB;
        assert_eq!(watch.judge(memory(40, 27, 2910), plenty, now), Verdict::Room(4 * MIB + 4000 * PAGE));
        watch.room = 300 * MIB;
        assert_eq!(watch.judge(memory(63, 200, 3000), plenty, now), Verdict::Fine);
        assert_eq!(watch.judge(memory(67, 200, 3000), plenty, now), Verdict::Exceeded, "its own is not files");
        assert_eq!(watch.seen(), Seen { held: 0, most: 67 * MIB, limit: 64 * MIB, widened: true });
    }

    #[test]
    fn without_room_it_has_a_second() {
        let mut watch = MemoryWatch::new(64 * MIB, 0);
        let now = Instant::now();
        let later = now + PATIENCE;
        assert_eq!(watch.judge(memory(40, 24, 1), || MIB, now), Verdict::Fine);
        assert_eq!(watch.judge(memory(40, 24, PAGES), || MIB, later), Verdict::Exceeded);
        // Now and then a page is not thrashing.
        let mut watch = MemoryWatch::new(64 * MIB, 0);
        assert_eq!(watch.judge(memory(40, 24, 1), || MIB, now), Verdict::Fine);
        assert_eq!(watch.judge(memory(40, 24, 100), || MIB, later), Verdict::Fine);
        assert_eq!(watch.judge(memory(40, 24, 100 + PAGES), || MIB, later + PATIENCE / 2), Verdict::Fine);
    }

    #[test]
    fn the_peak_is_what_was_the_tasks_own() {
        let seen = |most, limit, widened| Seen { held: 0, most: most * MIB, limit: limit * MIB, widened };
        let check = |seen: Seen, charged, at_end: Memory, killed, peak| {
            assert_eq!(seen.peak(charged * MIB, &at_end, killed), peak * MIB, "{seen:?}");
        };
        check(seen(0, 512, false), 150, memory(10, 100, 0), false, 50);
        check(seen(0, 512, false), 100, memory(10, 100, 0), false, 10);
        check(seen(60, 512, false), 150, memory(10, 100, 0), false, 60);
        // At its limit what it had is known from samples alone, unless it was ended there.
        check(seen(60, 150, false), 150, memory(10, 20, 0), false, 60);
        check(seen(60, 150, false), 150, memory(10, 20, 0), true, 130);
        check(seen(65, 64, true), 150, memory(10, 100, 0), false, 64);
        check(seen(80, 64, true), 150, memory(10, 100, 0), false, 80);
        // What was there before is not the task's, whether it is there yet or not.
        let held = Seen { held: 30 * MIB, ..seen(0, 512, false) };
        check(held, 150, memory(40, 100, 0), false, 20);
        check(held, 130, memory(10, 100, 0), false, 0);
    }
}
