//! The keeper: what `faber serve` starts as. Privileged, single-threaded, and it reads nothing from the network.
//!
//! It binds the port, starts the front and the runners, restarts what dies and sweeps what it left, and ends everything
//! when told. It talks only downwards: a runner's socket goes to the front, and the keeper keeps no end of it. The one
//! thing it hears is a single byte of each front's, that tasks can be taken: all that follows is what the service manager
//! shows, and a front that says so without reason could as well answer nobody.
//!
//! ```text
//! keeper ──(wire)──> front <══(runner::wire)══> runner, runner, …
//!    └── waits for SIGCHLD, SIGTERM, SIGINT, the next restart, a new front's byte, the manager's watchdog; nothing else
//! ```

mod child;
mod instance;
mod manager;
pub mod wire;

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::artifact::Spool;
use crate::chain::chain;
use crate::frame;
use crate::runner::wire::Setup;
use crate::sandbox::{IdError, Shared, UidRange, share_directory};
pub use child::Child;
pub use instance::{Instance, InstanceError, run_dir};
use manager::Manager;
use wire::Message;

/// A runner that lived shorter than this when it ended has its restart delayed.
const HEALTHY: Duration = Duration::from_secs(5);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// How long what is told to end may take beyond its own grace, before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error(transparent)]
    Ids(#[from] IdError),
    #[error("{step}")]
    Io { step: &'static str, source: io::Error },
}

type Result<T> = std::result::Result<T, KeeperError>;

fn at<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> KeeperError {
    move |error| KeeperError::Io { step, source: error.into() }
}

/// What to keep running.
pub struct Plan {
    /// The front's configuration, as JSON.
    pub config: String,
    pub shutdown_grace: Duration,
    pub slots: usize,
    /// Bytes of the spool.
    pub spool: u64,
    /// For every runner; directory, instance and slot name are filled in.
    pub runner: Setup,
}

struct Keeper {
    plan: Plan,
    /// None once nobody new is to be served: with the front's own it is the last that keeps the port open.
    listener: Option<TcpListener>,
    instance: Instance,
    front_ids: UidRange,
    /// Where what tasks leave is, as long as somebody wants it.
    spool: Spool,
    /// Where blobs are kept, as the front may write there.
    blobs: Option<Shared>,
    front: Option<Front>,
    slots: Vec<SlotKeeper>,
    signals: SignalFd,
    manager: Manager,
    /// A signal that says stop came while something else was waited for.
    stopping: bool,
}

struct Front {
    child: Child,
    socket: UnixStream,
    /// It has said what it has to say: its socket is not looked at any more.
    heard: bool,
}

/// One slot's runner, dead or alive.
struct SlotKeeper {
    name: String,
    runner: Option<(Child, Instant)>,
    delay: Duration,
    due: Instant,
}

/// What a wait ended with.
#[derive(Debug, PartialEq, Eq)]
enum Woken {
    ChildEnded,
    Stop,
    /// The front said that tasks can be taken, or closed its socket.
    Front,
    Timeout,
}

/// Serves until SIGTERM or SIGINT, then drains and removes everything.
///
/// # Errors
/// When it cannot be started; later failures are logged and repaired.
pub fn serve(instance: Instance, listener: TcpListener, plan: Plan) -> Result<()> {
    let signals = take_signals().map_err(at("take the signals"))?;
    let front_ids = UidRange::claim(&instance.claims_of_ids())?;
    let spool = Spool::create(plan.spool).map_err(at("make the spool"))?;
    let blobs = open_blobs(&plan.runner.data_dir, &front_ids);
    let now = Instant::now();
    let slots = (0..plan.slots)
        .map(|n| SlotKeeper { name: format!("s{n}"), runner: None, delay: Duration::ZERO, due: now })
        .collect();
    let mut keeper = Keeper {
        plan,
        listener: Some(listener),
        instance,
        front_ids,
        spool,
        blobs,
        front: None,
        slots,
        signals,
        manager: Manager::new(),
        stopping: false,
    };
    let served = keeper.keep();
    keeper.stop();
    served
}

impl Keeper {
    fn keep(&mut self) -> Result<()> {
        self.start_front()?;
        while !self.stopping {
            self.start_due()?;
            match self.wait(self.next_due())? {
                Woken::Stop => return Ok(()),
                Woken::Timeout => {}
                Woken::ChildEnded => self.reap()?,
                Woken::Front => self.hear_front()?,
            }
        }
        Ok(())
    }

    /// Takes a front's word, once.
    fn hear_front(&mut self) -> Result<()> {
        let Some(front) = &mut self.front else { return Ok(()) };
        front.heard = true;
        if wire::is_ready(&front.socket).map_err(at("hear from the front"))? {
            tracing::info!("ready: a container waits for a task");
            self.manager.ready("Serving");
        }
        Ok(())
    }

    fn start_front(&mut self) -> Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        let (socket, theirs) = UnixStream::pair().map_err(at("make a socket pair"))?;
        let child = Child::start("front", theirs).map_err(at("start the front"))?;
        let message = Message::Start {
            config: self.plan.config.clone(),
            id: self.front_ids.base(),
            memory_pressure: self.instance.memory_pressure(),
        };
        let mut fds = vec![listener.as_fd(), self.spool.as_fd()];
        fds.extend(self.blobs.as_ref().map(|blobs| blobs.directory.as_fd()));
        let sent = wire::send(&socket, &message, &fds);
        tracing::debug!(pid = child.id(), "the front is started");
        self.front = Some(Front { child, socket, heard: false });
        // A front that is gone already is seen by its end.
        sent.or_else(gone).map_err(at("tell the front"))
    }

    fn start_due(&mut self) -> Result<()> {
        let now = Instant::now();
        for at in 0..self.slots.len() {
            if self.slots[at].runner.is_none() && self.slots[at].due <= now {
                self.start_runner(at)?;
            }
        }
        Ok(())
    }

    fn start_runner(&mut self, index: usize) -> Result<()> {
        let Some(front) = &self.front else { return Ok(()) };
        let slot = &mut self.slots[index];
        let (socket, theirs) = UnixStream::pair().map_err(at("make a socket pair"))?;
        let setup = Setup {
            dir: self.instance.slot_dir(&slot.name),
            instance: self.instance.name().to_owned(),
            slot: slot.name.clone(),
            ..self.plan.runner.clone()
        };
        frame::send_with(&socket, &setup, &[self.spool.as_fd()]).map_err(at("tell a runner"))?;
        let child = Child::start("runner", theirs).map_err(at("start a runner"))?;
        tracing::debug!(pid = child.id(), slot = slot.name, "a runner is started");
        slot.runner = Some((child, Instant::now()));
        let message = Message::Runner { slot: slot.name.clone() };
        wire::send(&front.socket, &message, &[socket.as_fd()]).or_else(gone).map_err(at("tell the front"))
    }

    /// Looks which children have ended.
    fn reap(&mut self) -> Result<()> {
        for slot in &mut self.slots {
            let Some((runner, started)) = &mut slot.runner else { continue };
            let Some(status) = runner.ended() else { continue };
            let lived = started.elapsed();
            slot.runner = None;
            slot.delay = if lived >= HEALTHY {
                Duration::ZERO
            } else {
                (slot.delay * 2).clamp(Duration::from_millis(100), LONGEST_DELAY)
            };
            slot.due = Instant::now() + slot.delay;
            tracing::warn!(slot = slot.name, %status, delay = ?slot.delay, "a runner ended; it will be restarted");
            sweep(&self.instance, &slot.name);
        }
        let Some(status) = self.front.as_mut().and_then(|front| front.child.ended()) else { return Ok(()) };
        tracing::error!(%status, "the front ended; everything is restarted");
        self.manager.status("The HTTP process ended; everything is restarted");
        self.front = None;
        // Their sockets are closed now, so the runners end by themselves.
        self.end_runners();
        if self.stopping {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
        self.start_front()
    }

    /// Drains the front, then lets the runners end. A second signal means: at once.
    fn stop(&mut self) {
        self.listener = None;
        self.manager.stopping("Draining: running tasks may finish", self.plan.shutdown_grace + 2 * PATIENCE);
        if let Some(mut front) = self.front.take() {
            tracing::info!(grace = ?self.plan.shutdown_grace, "draining: running tasks may finish");
            let _ = wire::send(&front.socket, &Message::Drain, &[]);
            self.await_front(&mut front, Instant::now() + self.plan.shutdown_grace + PATIENCE);
        }
        self.end_runners();
    }

    fn await_front(&mut self, front: &mut Front, deadline: Instant) {
        while front.child.ended().is_none() {
            match self.wait(Some(deadline)) {
                Ok(Woken::ChildEnded) => {}
                Ok(Woken::Timeout) if Instant::now() < deadline => {}
                _ => {
                    tracing::warn!("the front is ended before it has drained");
                    front.child.kill();
                }
            }
        }
    }

    /// Waits for the runners, whose sockets are closed, and kills those that do not end; at once on a signal to stop.
    fn end_runners(&mut self) {
        let mut deadline = Instant::now() + PATIENCE;
        loop {
            for slot in &mut self.slots {
                let ended = slot.runner.as_mut().is_some_and(|(runner, _)| runner.ended().is_some());
                if ended {
                    slot.runner = None;
                    slot.due = Instant::now();
                    sweep(&self.instance, &slot.name);
                }
            }
            if self.slots.iter().all(|slot| slot.runner.is_none()) {
                return;
            }
            if Instant::now() >= deadline {
                for (runner, _) in self.slots.iter_mut().filter_map(|slot| slot.runner.as_mut()) {
                    tracing::warn!(pid = runner.id(), "a runner does not end: it is killed");
                    runner.kill();
                }
            }
            if let Ok(Woken::Stop) = self.wait(Some(deadline.max(Instant::now() + Duration::from_millis(50)))) {
                self.stopping = true;
                deadline = Instant::now();
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.slots.iter().filter(|slot| slot.runner.is_none()).map(|slot| slot.due).min()
    }

    /// Waits for what comes first, and tells the manager in time that the keeper lives.
    fn wait(&mut self, until: Option<Instant>) -> Result<Woken> {
        let until = [until, self.manager.alive()].into_iter().flatten().min();
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = timeout
            .map(|timeout| Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() });
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(
            self.front.iter().filter(|front| !front.heard).map(|front| PollFd::new(&front.socket, PollFlags::IN)),
        );
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Woken::Timeout),
            other => other.map_err(at("wait for a signal"))?,
        };
        if fds[0].revents().is_empty() {
            return Ok(Woken::Front);
        }
        let signal = self.signals.read_signal().map_err(at("read a signal"))?;
        Ok(match signal.map(|signal| signal.ssi_signo as i32) {
            Some(libc::SIGCHLD) => Woken::ChildEnded,
            Some(_) => Woken::Stop,
            None => Woken::Timeout,
        })
    }
}

/// Without a place for blobs the service goes on, and says so.
fn open_blobs(data_dir: &Path, front: &UidRange) -> Option<Shared> {
    let path = data_dir.join("blobs");
    share_directory(&path, front)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "blobs cannot be kept here"))
        .ok()
}

/// What cannot be removed now stands in the log, and goes with the next start.
fn sweep(instance: &Instance, slot: &str) {
    if let Err(error) = instance.sweep_slot(slot) {
        tracing::warn!(slot, error = chain(&error), "a dead runner's remains cannot be removed yet");
    }
}

/// The other side's death is learned from its exit status, not from the socket.
fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
}

/// What tells a process to end.
fn stop_signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

/// A signal to stop waits until it is read, or until it is let through.
///
/// # Errors
/// sigprocmask(2)'s.
pub fn hold_stop_signals() -> nix::Result<()> {
    stop_signals().thread_block()
}

/// For front and runners: a service manager signals every process of a service, and only the keeper knows what follows
/// from it. They end when a socket is closed.
///
/// # Errors
/// sigprocmask(2)'s.
pub fn ignore_signals() -> nix::Result<()> {
    hold_stop_signals()
}

/// From now on the signals that say stop are read, not delivered.
///
/// # Errors
/// sigprocmask(2)'s and signalfd(2)'s.
pub fn take_stop_signals() -> nix::Result<SignalFd> {
    take(stop_signals())
}

fn take_signals() -> nix::Result<SignalFd> {
    let mut signals = stop_signals();
    signals.add(Signal::SIGCHLD);
    take(signals)
}

fn take(signals: SigSet) -> nix::Result<SignalFd> {
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
