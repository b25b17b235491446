//! What the service manager is told (sd_notify(3)): that tasks can be taken, that the keeper lives, that it stops. Without
//! one, NOTIFY_SOCKET is not set and all of this does nothing. No child of the keeper's inherits it.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use sd_notify::NotifyState::{ExtendTimeoutUsec, Ready, Status, Stopping, Watchdog};
use sd_notify::{NotifyState, watchdog_enabled};

use crate::chain::chain;

pub struct Manager {
    /// How often it wants to hear that the keeper lives, and when next; None when it does not ask.
    watchdog: Option<(Duration, Instant)>,
}

impl Manager {
    pub fn new() -> Self {
        // At half of the time, as sd_watchdog_enabled(3) recommends.
        let half = watchdog_enabled().map(|time| time / 2).filter(|half| !half.is_zero());
        Self { watchdog: half.map(|half| (half, Instant::now())) }
    }

    pub fn ready(&self, status: &str) {
        tell(&[Ready, Status(status)]);
    }

    /// And that it may take this long, whatever the manager has been told before.
    pub fn stopping(&self, status: &str, at_most: Duration) {
        let at_most = u32::try_from(at_most.as_micros()).unwrap_or(u32::MAX);
        tell(&[Stopping, Status(status), ExtendTimeoutUsec(at_most)]);
    }

    pub fn status(&self, status: &str) {
        tell(&[Status(status)]);
    }

    /// Says that the keeper lives if it is time to. Returns when it is time again.
    pub fn alive(&mut self) -> Option<Instant> {
        let (every, due) = self.watchdog.as_mut()?;
        let now = Instant::now();
        if *due <= now {
            tell(&[Watchdog]);
            *due = now + *every;
        }
        Some(*due)
    }
}

/// A manager that cannot be told is no reason to end what is served, and one that does not listen none to wait.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = send(states) {
        tracing::warn!(error = chain(&error), "the service manager cannot be told");
    }
}

/// The crate's own way would wait for as long as the manager's queue is full.
fn send(states: &[NotifyState<'_>]) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let text: String = states.iter().map(|state| format!("{state}\n")).collect();
    socket.send_to(text.as_bytes(), path)?;
    Ok(())
}
