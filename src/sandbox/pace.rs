//! How often a task is looked at.

use std::num::NonZero;
use std::sync::LazyLock;
use std::thread::available_parallelism;
use std::time::Duration;

/// How often what the kernel does not tell is looked at, where it matters.
pub const SAMPLE: Duration = Duration::from_millis(10);
/// And at least, while the task uses its processors.
const AT_WORK: Duration = Duration::from_millis(100);
/// And while it does not.
const AT_REST: Duration = Duration::from_millis(640);
/// Between two looks there is this part of the time that the task has run.
const PART: u32 = 64;

/// Asked once: the answer takes reading the control groups of this process.
static PROCESSORS: LazyLock<u64> = LazyLock::new(|| available_parallelism().map_or(1, NonZero::get) as u64);

/// What a look finds goes by the CPU time that was used since the last: without any nothing has changed, and no limit can be met
/// sooner than all processors together use up what is left of it.
pub struct Pace {
    /// CPU time in all, at the last look. Nanoseconds.
    used: Option<u64>,
    wait: Duration,
    processors: u64,
}

impl Pace {
    pub fn new() -> Self {
        Self { used: None, wait: SAMPLE, processors: *PROCESSORS }
    }

    /// How long to wait for the next look.
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// Looks again soon.
    pub fn hurry(&mut self) {
        self.wait = SAMPLE;
    }

    /// Whether the task, which has used `used` of its CPU time and has `left` of it, has run since the last look; if not, the next one
    /// is later.
    pub fn has_run(&mut self, used: u64, left: u64) -> bool {
        let has_run = self.used.replace(used) != Some(used);
        if !has_run {
            self.wait = self.until(left, (self.wait * 2).min(AT_REST));
        }
        has_run
    }

    /// After a task was looked at that was started so long ago; `is_tense` says whether its memory has to be seen often.
    pub fn go_on(&mut self, ago: Duration, left: u64, is_tense: bool) {
        self.wait = if is_tense { SAMPLE } else { self.until(left, (ago / PART).min(AT_WORK)) };
    }

    fn until(&self, left: u64, wait: Duration) -> Duration {
        wait.min(Duration::from_nanos(left / self.processors)).max(SAMPLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn pace() -> Pace {
        Pace { processors: 2, ..Pace::new() }
    }

    #[test]
    fn what_rests_is_looked_at_ever_less_often_until_it_runs() {
        let mut pace = pace();
        let waits: Vec<u128> = (0..9)
            .map(|look| {
                assert_eq!(pace.has_run(7, 10 * SECOND), look == 0);
                pace.wait().as_millis()
            })
            .collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 640, 640]);
        assert!(pace.has_run(8, 10 * SECOND));
        pace.go_on(Duration::from_secs(10), SECOND / 5, false);
        assert!(!pace.has_run(8, SECOND / 5));
        assert_eq!(pace.wait().as_millis(), 100, "all processors at once");
        pace.go_on(Duration::from_secs(1), SECOND, false);
        assert_eq!(pace.wait().as_millis(), 15);
    }

    #[test]
    fn no_limit_is_passed_unseen() {
        let mut pace = pace();
        let mut after = |run, left, is_tense| {
            pace.go_on(Duration::from_millis(run), left, is_tense);
            pace.wait().as_millis()
        };
        assert_eq!(after(100, SECOND, false), 10);
        assert_eq!(after(60_000, SECOND, false), 100);
        assert_eq!(after(60_000, SECOND / 20, false), 25, "two processors use up 50 ms in 25");
        assert_eq!(after(60_000, 0, false), 10);
        assert_eq!(after(60_000, SECOND, true), 10);
    }
}
