//! Long work at a terminal: a line that says what is being done, and Ctrl-C.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signalfd::SignalFd;

use crate::keeper::take_stop_signals;

/// As a shell tells of SIGINT.
pub const INTERRUPTED: u8 = 130;

/// SIGINT and SIGTERM, which end nothing by themselves any more.
pub struct Stop {
    signals: SignalFd,
    asked: AtomicBool,
}

impl Stop {
    pub fn take() -> anyhow::Result<Self> {
        Ok(Self { signals: take_stop_signals()?, asked: AtomicBool::new(false) })
    }

    /// Whether one of them has come.
    pub fn is_asked(&self) -> bool {
        if matches!(self.signals.read_signal(), Ok(Some(_))) {
            self.asked.store(true, Ordering::Relaxed);
        }
        self.asked.load(Ordering::Relaxed)
    }
}

/// Shows what is being done, and sees Ctrl-C.
pub struct Looker {
    pub bar: ProgressBar,
    stop: Stop,
}

impl Looker {
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Ok(Self { stop: Stop::take()?, bar: spinner(name) })
    }

    pub fn says(&self, step: &str) {
        self.bar.set_message(step.to_owned());
    }

    pub fn stopped(&self) -> bool {
        self.stop.is_asked()
    }
}

/// A line for work whose end nobody knows: its name, how long it has taken, what is being done.
pub fn spinner(name: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix:14} {elapsed:>5}  {wide_msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
