//! The keeper: what `faber serve` starts as. Privileged, single-threaded, and it reads nothing from the network.
//!
//! It binds the port, starts the front and the runners, restarts what dies and sweeps what it left, and ends everything
//! when told. It talks only downwards: a runner's socket goes to the front, and the keeper keeps no end of it. All it hears
//! are single bytes of the front's: that tasks can be taken, which is what the service manager shows, and that requests are
//! answered, without which the front is replaced. A front that says so without reason could as well answer nobody.
//! Whatever it waits for has an end: it sends without blocking, and what cannot be started now is tried again later.
//!
//! ```text
//! keeper ──(wire)──> front <══(runner::wire)══> runner, runner, …
//!    │                  ╚═════(callbacks)═══════> sender, if there are callbacks
//!    └── waits for SIGCHLD, SIGTERM, SIGINT, SIGHUP, the next restart or ping, a front's byte, the manager's watchdog
//! ```

mod child;
mod front;
mod instance;
mod manager;
pub mod wire;

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::artifact::Spool;
use crate::callbacks;
use crate::chain::chain;
use crate::frame;
use crate::restart::Restart;
use crate::runner::wire::Setup;
use crate::sandbox::{IdError, Shared, UidRange, share_directory};
use crate::task::Limits;
pub use child::Child;
use front::Front;
pub use instance::{Instance, InstanceError, run_dir};
use manager::Manager;
use wire::Message;

/// A front whose restart is delayed so long has ended several times in a row.
const REPEATED: Duration = Duration::from_secs(1);
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
    /// Runners that there may be beside these: sessions'.
    pub sessions: usize,
    /// Bytes of the spool.
    pub spool: u64,
    /// For who sends callbacks, if anybody does; its user is filled in.
    pub sender: Option<callbacks::Setup>,
    /// For every runner; directory, instance and slot name are filled in.
    pub runner: Setup,
    /// Reads the configuration again; the reason, where it cannot be used.
    pub renew: Box<dyn FnMut() -> std::result::Result<Renewed, String>>,
}

/// What another configuration changes.
pub struct Renewed {
    /// The front's, as JSON.
    pub config: String,
    /// What runners may grant.
    pub max: Limits,
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
    /// The same of jobs.
    jobs: Option<Shared>,
    front: Option<Front>,
    front_restart: Restart,
    slots: Vec<SlotKeeper>,
    sender: SenderKeeper,
    signals: SignalFd,
    manager: Manager,
    terminal: Terminal,
    /// A signal that says stop came while something else was waited for.
    stopping: bool,
}

/// One slot's runner, dead or alive.
struct SlotKeeper {
    name: String,
    runner: Option<(Child, Instant)>,
    restart: Restart,
    /// Something of a dead runner's is still there, under the names that the next one will give.
    has_remains: bool,
}

/// The process that sends callbacks, dead or alive.
struct SenderKeeper {
    process: Option<(Child, Instant)>,
    restart: Restart,
}

/// What a wait ended with.
#[derive(Debug, PartialEq, Eq)]
enum Woken {
    ChildEnded,
    Stop,
    /// SIGHUP: the configuration is to be read again.
    Renew,
    /// The front said something, or closed its socket.
    Front,
    Timeout,
}

/// Serves until SIGTERM or SIGINT, reads the configuration again at SIGHUP; then drains and removes everything.
///
/// # Errors
/// When it cannot be started; later failures are logged and repaired.
pub fn serve(instance: Instance, listener: TcpListener, plan: Plan) -> Result<()> {
    let signals = take_signals().map_err(at("take the signals"))?;
    let front_ids = UidRange::claim(&instance.claims_of_ids())?;
    let spool = Spool::create(plan.spool).map_err(at("make the spool"))?;
    let [blobs, jobs] = ["blobs", "jobs"].map(|name| open_directory(&plan.runner.data_dir, name, &front_ids));
    let slots = (0..plan.slots + plan.sessions)
        .map(|n| SlotKeeper { name: format!("s{n}"), runner: None, restart: Restart::new(), has_remains: false })
        .collect();
    let mut keeper = Keeper {
        plan,
        listener: Some(listener),
        instance,
        front_ids,
        spool,
        blobs,
        jobs,
        front: None,
        front_restart: Restart::new(),
        slots,
        sender: SenderKeeper { process: None, restart: Restart::new() },
        signals,
        manager: Manager::new(),
        terminal: Terminal::find(),
        stopping: false,
    };
    let served = keeper.keep();
    keeper.stop();
    served
}

impl Keeper {
    fn keep(&mut self) -> Result<()> {
        while !self.stopping {
            self.start_due();
            if let Some(front) = &mut self.front {
                front.look_after();
            }
            match self.wait(self.next_due())? {
                Woken::Stop => return Ok(()),
                Woken::Renew => self.renew(),
                Woken::Timeout => {}
                Woken::ChildEnded => self.reap(),
                Woken::Front => self.hear_front(),
            }
        }
        Ok(())
    }

    /// What cannot be used changes nothing.
    fn renew(&mut self) {
        match (self.plan.renew)() {
            Ok(Renewed { config, max }) => {
                self.plan.runner.max = max;
                self.plan.config.clone_from(&config);
                if let Some(front) = &mut self.front {
                    front.tell(&Message::Renew { config }, &[]);
                }
            }
            Err(reason) => tracing::error!(reason, "the configuration stays as it is"),
        }
    }

    fn hear_front(&mut self) {
        if self.front.as_mut().is_some_and(Front::hear) {
            tracing::info!("ready: a container waits for a task");
            self.manager.ready("Serving");
        }
    }

    /// Starts what is due; what cannot be started now (no process, no descriptor) is due again later.
    fn start_due(&mut self) {
        let now = Instant::now();
        if self.front.is_none() && self.front_restart.due() <= now {
            self.start_front();
        }
        if self.front.is_none() {
            return;
        }
        if self.plan.sender.is_some()
            && self.sender.process.is_none()
            && self.sender.restart.due() <= now
            && let Err(error) = self.start_sender()
        {
            let delay = self.sender.restart.ended(Duration::ZERO);
            tracing::error!(error = chain(&error), ?delay, "the process that sends callbacks cannot be started yet");
        }
        // What the front has said of sessions decides how many are wanted.
        self.hear_front_out();
        for index in 0..self.slots.len() {
            if self.missing() == 0 {
                break;
            }
            if self.slots[index].runner.is_some() || self.slots[index].restart.due() > now {
                continue;
            }
            if let Err(error) = self.start_runner(index) {
                let slot = &mut self.slots[index];
                let delay = slot.restart.ended(Duration::ZERO);
                tracing::error!(slot = slot.name, error = chain(&error), ?delay, "a runner cannot be started yet");
                self.manager.status("A runner cannot be started yet");
            }
        }
    }

    /// How many runners are to be started.
    fn missing(&self) -> usize {
        let sessions = self.front.as_ref().map_or(0, |front| front.sessions);
        // One that ended again and again is waited for, not replaced by another.
        let now = Instant::now();
        let counts = self.slots.iter().filter(|slot| slot.runner.is_some() || slot.restart.due() > now).count();
        (self.plan.slots + sessions).saturating_sub(counts)
    }

    /// Hears what the front has said already.
    fn hear_front_out(&mut self) {
        let has_said = |front: &Front| {
            let Some(socket) = front.awaited() else { return false };
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
        };
        while self.front.as_ref().is_some_and(has_said) {
            self.hear_front();
        }
    }

    fn start_front(&mut self) {
        let Some(listener) = &self.listener else { return };
        let start = Message::Start {
            config: self.plan.config.clone(),
            id: self.front_ids.base(),
            memory_pressure: self.instance.memory_pressure(),
            has_blobs: self.blobs.is_some(),
            has_jobs: self.jobs.is_some(),
        };
        let directories = self.blobs.iter().chain(&self.jobs).map(|shared| shared.directory.as_fd());
        let fds: Vec<BorrowedFd<'_>> = [listener.as_fd(), self.spool.as_fd()].into_iter().chain(directories).collect();
        match Front::start(&start, &fds, self.plan.sessions) {
            Ok(front) => self.front = Some(front),
            Err(error) => {
                let delay = self.front_restart.ended(Duration::ZERO);
                tracing::error!(%error, ?delay, "the front cannot be started yet");
                self.manager.status("The HTTP process cannot be started yet");
            }
        }
    }

    fn start_runner(&mut self, index: usize) -> Result<()> {
        let Some(front) = &mut self.front else { return Ok(()) };
        let slot = &mut self.slots[index];
        if slot.has_remains {
            self.instance.sweep_slot(&slot.name)?;
            slot.has_remains = false;
        }
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
        front.tell(&Message::Runner { slot: slot.name.clone() }, &[socket.as_fd()]);
        Ok(())
    }

    fn start_sender(&mut self) -> Result<()> {
        let (Some(front), Some(setup)) = (&mut self.front, &self.plan.sender) else { return Ok(()) };
        let (socket, theirs) = UnixStream::pair().map_err(at("make a socket pair"))?;
        // Not the front's user: neither is to get at the other.
        let id = self.front_ids.outside(1).unwrap_or(self.front_ids.base());
        frame::send(&socket, &callbacks::Setup { id, ..setup.clone() }).map_err(at("tell the sender"))?;
        let child = Child::start("sender", theirs).map_err(at("start the sender"))?;
        tracing::debug!(pid = child.id(), "the process that sends callbacks is started");
        self.sender.process = Some((child, Instant::now()));
        front.tell(&Message::Sender, &[socket.as_fd()]);
        Ok(())
    }

    /// Looks which children have ended.
    fn reap(&mut self) {
        if let Some((status, lived)) = self.sender.ended() {
            let delay = self.sender.restart.ended(lived);
            tracing::warn!(%status, ?delay, "the process that sends callbacks ended; it will be restarted");
        }
        for slot in &mut self.slots {
            let Some((runner, started)) = &mut slot.runner else { continue };
            let Some(status) = runner.ended() else { continue };
            let lived = started.elapsed();
            slot.runner = None;
            let delay = slot.restart.ended(lived);
            match status.success() {
                // It was let go of.
                true => tracing::debug!(slot = slot.name, ?delay, "a runner ended; another takes its place"),
                false => tracing::warn!(slot = slot.name, %status, ?delay, "a runner ended; it will be restarted"),
            }
            slot.sweep(&self.instance);
        }
        let Some((status, lived)) = self.front.as_mut().and_then(Front::ended) else { return };
        self.front = None;
        let delay = self.front_restart.ended(lived);
        tracing::error!(%status, ?delay, "the front ended; everything is restarted");
        self.manager.status(match delay {
            delay if delay < REPEATED => "The HTTP process ended; everything is restarted",
            _ => "The HTTP process ends again and again; it is restarted ever later",
        });
        // Their sockets are closed now, so the runners end by themselves.
        self.end_runners();
    }

    /// Drains the front, then lets the runners end. A second signal means: at once.
    fn stop(&mut self) {
        self.listener = None;
        self.manager.stopping("Draining: running tasks may finish", self.plan.shutdown_grace + 2 * PATIENCE);
        if let Some(mut front) = self.front.take() {
            tracing::info!(grace = ?self.plan.shutdown_grace, "draining: running tasks may finish");
            front.tell(&Message::Drain, &[]);
            self.await_front(&mut front, Instant::now() + self.plan.shutdown_grace + PATIENCE);
        }
        self.end_runners();
    }

    /// Waits for its end, and makes it after the deadline, at a signal, or when it does not read what it is told.
    fn await_front(&mut self, front: &mut Front, deadline: Instant) {
        let mut deadline = Some(deadline);
        while front.ended().is_none() {
            match self.wait(deadline) {
                Ok(Woken::ChildEnded | Woken::Renew) => {}
                Ok(Woken::Timeout) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {}
                _ if deadline.is_none() => {}
                _ => {
                    tracing::warn!("the front is ended before it has drained");
                    front.kill();
                    deadline = None;
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
                    slot.restart.at_once();
                    slot.sweep(&self.instance);
                }
            }
            if self.sender.ended().is_some() {
                self.sender.restart.at_once();
            }
            if self.sender.process.is_none() && self.slots.iter().all(|slot| slot.runner.is_none()) {
                return;
            }
            if Instant::now() >= deadline {
                if let Some((sender, _)) = &mut self.sender.process {
                    sender.kill();
                }
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
        let Some(front) = &self.front else { return Some(self.front_restart.due()) };
        let (missing, now) = (self.missing(), Instant::now());
        let dead = self.slots.iter().filter(|slot| slot.runner.is_none());
        let dead = dead.filter(|slot| missing > 0 || slot.restart.due() > now);
        let is_wanted = self.plan.sender.is_some() && self.sender.process.is_none();
        let sender = is_wanted.then(|| self.sender.restart.due());
        dead.map(|slot| slot.restart.due()).chain(sender).chain(front.due()).min()
    }

    /// Waits for what comes first, and tells the manager in time that the keeper lives.
    fn wait(&mut self, until: Option<Instant>) -> Result<Woken> {
        let until = [until, self.manager.alive()].into_iter().flatten().min();
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = timeout
            .map(|timeout| Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() });
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(self.front.iter().filter_map(Front::awaited).map(|socket| PollFd::new(socket, PollFlags::IN)));
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
            Some(libc::SIGHUP) if !self.terminal.is_gone() => Woken::Renew,
            Some(_) => Woken::Stop,
            None => Woken::Timeout,
        })
    }
}

/// The terminal that Faber was started from, if it was. When that goes, SIGHUP says so, and means stop (signal(7)).
struct Terminal {
    was_there: bool,
}

impl Terminal {
    fn find() -> Self {
        Self { was_there: Self::is_there() }
    }

    fn is_gone(&self) -> bool {
        self.was_there && !Self::is_there()
    }

    /// ENXIO without one (tty(4)).
    fn is_there() -> bool {
        std::fs::File::open("/dev/tty").is_ok()
    }
}

/// Without a place for blobs or jobs the service goes on, and says so.
fn open_directory(data_dir: &Path, name: &str, front: &UidRange) -> Option<Shared> {
    let path = data_dir.join(name);
    share_directory(&path, front)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "{name} cannot be kept here"))
        .ok()
}

impl SenderKeeper {
    /// Its status and how long it lived, once it has ended.
    fn ended(&mut self) -> Option<(ExitStatus, Duration)> {
        let (process, started) = self.process.as_mut()?;
        let ended = (process.ended()?, started.elapsed());
        self.process = None;
        Some(ended)
    }
}

impl SlotKeeper {
    /// What cannot be removed now stands in the log, and goes before the next start.
    fn sweep(&mut self, instance: &Instance) {
        self.has_remains = true;
        match instance.sweep_slot(&self.name) {
            Ok(()) => self.has_remains = false,
            Err(error) => {
                tracing::warn!(
                    slot = self.name,
                    error = chain(&error),
                    "a dead runner's remains cannot be removed yet"
                );
            }
        }
    }
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
