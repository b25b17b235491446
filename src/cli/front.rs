//! `faber front`: the HTTP process, without privileges. It ends when the keeper says so, or is gone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::unistd::{Gid, Uid};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{mpsc, oneshot};

use super::log;
use crate::api::{Beside, Live, Ping};
use crate::artifact::Spool;
use crate::blobs::{self, Blobs};
use crate::callbacks::Sender;
use crate::chain::chain;
use crate::config::{Config, Pressure};
use crate::execution::Engine;
use crate::image::{Catalog, Store};
use crate::jobs::{self, Jobs, OpenError};
use crate::keeper::wire::{self, Message, Word};
use crate::sandbox::confine::{self, Confined, Reach};
use crate::scheduler::{Capacity, Scheduler, Shares, Stall};
use crate::sessions::{self, Change, Sessions};

/// What remains to be sent when every task has been ended.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

pub fn run() -> anyhow::Result<ExitCode> {
    crate::keeper::ignore_signals()?;
    let keeper = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?);
    let (config, memory_pressure, fds, has_blobs, has_jobs) =
        match wire::receive(&keeper).context("hear from the keeper")? {
            Some((Message::Start { config, id, memory_pressure, has_blobs, has_jobs }, fds)) => {
                // Before anything else: until here there is one thread, and nothing from the network was read.
                give_up_privileges(id).context("give up privileges")?;
                (serde_json::from_str::<Config>(&config)?, memory_pressure, fds, has_blobs, has_jobs)
            }
            _ => anyhow::bail!("the front is started by `faber serve`"),
        };
    let mut fds = fds.into_iter();
    let (Some(listener), Some(spool)) = (fds.next(), fds.next()) else { anyhow::bail!("descriptors are missing") };
    let blobs = if has_blobs { fds.next() } else { None };
    let jobs = if has_jobs { fds.next() } else { None };
    let held = Held { listener: listener.into(), spool: spool.into(), blobs, jobs };
    let confined = confine(&config, memory_pressure.as_deref(), &held).context("confine this process")?;
    log::start(&config.log);
    if confined != Confined::Fully {
        tracing::debug!(?confined, "this kernel enforces less of Landlock than there is");
    }
    // What clients send and get is large, and is here for a short time.
    crate::sandbox::give_back_large_blocks();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(keeper, config, memory_pressure, held))?;
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// Becomes a user nobody else is, for good: root's capabilities go with the change (capabilities(7)).
pub(super) fn give_up_privileges(id: u32) -> anyhow::Result<()> {
    nix::unistd::setgroups(&[])?;
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    rustix::thread::set_no_new_privs(true)?;
    // Connections are descriptors, and the soft limit is kept low for programs that use select(2).
    let descriptors = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: descriptors.maximum, ..descriptors })?;
    Ok(())
}

/// Lets go of all files but the names of the images, the memory pressure, and what was handed over.
fn confine(config: &Config, memory_pressure: Option<&Path>, held: &Held) -> Result<Confined, confine::ConfineError> {
    let names = Store::new(&config.data_dir).names();
    let readable: Vec<PathBuf> = memory_pressure.map(Path::to_owned).into_iter().chain([names]).collect();
    let directories = held.blobs.iter().chain(&held.jobs).map(AsFd::as_fd);
    let writable: Vec<BorrowedFd<'_>> = [held.spool.as_fd()].into_iter().chain(directories).collect();
    confine::confine(&Reach { readable: &readable, writable: &writable })
}

async fn serve(keeper: UnixStream, config: Config, memory_pressure: Option<PathBuf>, held: Held) -> anyhow::Result<()> {
    let Held { listener, spool, blobs, jobs } = held;
    let catalog = Catalog::new(Store::new(&config.data_dir));
    let execution = &config.execution;
    let capacity = Capacity {
        concurrency: config.concurrency(),
        slots: config.slots(),
        memory: config.memory_budget(),
        queue_length: execution.queue_length as usize,
        queue_timeout: execution.queue_timeout.0,
    };
    let stall = match (execution.memory_pressure, memory_pressure) {
        (Pressure::Percent(most), Some(file)) => Some(Stall { file, most }),
        _ => None,
    };
    let scheduler = Scheduler::new(capacity, shares(&config), stall);
    let (drain, mut draining) = mpsc::channel(1);
    let (ping, pings) = mpsc::channel(1);
    tokio::spawn({
        let (scheduler, keeper) = (scheduler.clone(), keeper.try_clone()?);
        async move {
            scheduler.ready().await;
            // A keeper that is gone is seen by who listens to it.
            let _ = wire::say(&keeper, Word::Ready);
        }
    });
    let blobs = blobs.and_then(|directory| open_blobs(&config, directory));
    if let Some(blobs) = &blobs {
        tokio::spawn(sweep_blobs(blobs.clone(), config.blobs.lifetime.0));
    }
    let jobs = match jobs {
        Some(directory) => open_jobs(&config, directory).await,
        None => None,
    };
    if let Some(jobs) = &jobs {
        tokio::spawn(sweep_jobs(jobs.clone()));
    }
    let engine = Arc::new(Engine::new(&config, scheduler.clone(), spool, blobs));
    let sessions = open_sessions(&config, &scheduler, keeper.try_clone()?);
    let sender = Arc::new(Sender::default());
    let grace = config.server.shutdown_grace.0;
    let live = Live::new(config);
    std::thread::spawn({
        let (scheduler, runtime) = (scheduler.clone(), tokio::runtime::Handle::current());
        let (live, keeper) = (live.clone(), Arc::new(keeper));
        let (engine, sender) = (engine.clone(), sender.clone());
        move || listen(&keeper, &Renewed { live, engine, scheduler, sender }, &runtime, &drain, &ping)
    });
    let (begin, begun) = oneshot::channel();
    let beside = Beside { jobs: jobs.clone().map(|jobs| (jobs, sender)), sessions };
    let served = crate::api::serve(listener, live, catalog, engine, beside, pings, async {
        let _ = begun.await;
    });
    tokio::pin!(served);
    tokio::select! {
        ended = &mut served => return Ok(ended?),
        _ = draining.recv() => {}
    }
    let _ = begin.send(());
    if tokio::time::timeout(grace, &mut served).await.is_err() {
        // What their tasks come to from here on is not what they would have come to.
        jobs.inspect(|jobs| jobs.abandon());
        scheduler.cancel_all();
        let _ = tokio::time::timeout(LAST_ANSWERS, &mut served).await;
    }
    Ok(())
}

fn open_sessions(config: &Config, scheduler: &Arc<Scheduler>, keeper: UnixStream) -> Arc<Sessions> {
    let crate::config::Sessions { count, per_key, .. } = &config.sessions;
    // The other half is for everybody else's tasks, whatever sessions there are.
    let memory = config.memory_budget() / 2;
    let bounds = sessions::Bounds { count: usize::from(*count), per_owner: usize::from(*per_key), memory };
    let pool = move |change| {
        // A keeper that is gone is seen by who listens to it.
        let _ = wire::say(
            &keeper,
            match change {
                Change::More => Word::More,
                Change::Fewer => Word::Fewer,
            },
        );
    };
    Sessions::new(bounds, scheduler.clone(), Box::new(pool))
}

fn shares(config: &Config) -> Shares {
    let keys = config.auth.keys.iter().map(|key| (key.hash.id(), config.share(Some(key)))).collect();
    Shares { keys, others: config.share(None) }
}

/// What the keeper's words change.
struct Renewed {
    live: Live,
    engine: Arc<Engine>,
    scheduler: Arc<Scheduler>,
    sender: Arc<Sender>,
}

impl Renewed {
    fn with(&self, config: Config) {
        log::set_level(config.log.level);
        self.scheduler.share(shares(&config));
        let bounds = config.bounds();
        // A runner was told what it may grant when it was started.
        if bounds.max != self.engine.bounds().max {
            self.scheduler.renew_runners();
        }
        self.engine.bound(bounds);
        self.live.renew(config);
        tracing::info!("the configuration was read again");
    }
}

/// What the keeper opened for the front.
struct Held {
    listener: std::net::TcpListener,
    spool: Spool,
    /// The directory of the blobs.
    blobs: Option<OwnedFd>,
    /// That of the jobs.
    jobs: Option<OwnedFd>,
}

/// Without them the service goes on, and says so.
fn open_blobs(config: &Config, directory: OwnedFd) -> Option<Arc<Blobs>> {
    let crate::config::Blobs { each, total, per_key, lifetime } = &config.blobs;
    let bounds = blobs::Bounds { each: each.0, total: total.0, per_owner: per_key.0, lifetime: lifetime.0 };
    match Blobs::open(directory, bounds) {
        Ok(blobs) => Some(Arc::new(blobs)),
        Err(error) => {
            tracing::error!(error = chain(&error), "blobs cannot be kept");
            None
        }
    }
}

/// Those of a server that was killed are its front's until that has ended, too.
const LET_GO: Duration = Duration::from_secs(3);

/// Without them the service goes on, and says so.
async fn open_jobs(config: &Config, directory: OwnedFd) -> Option<Arc<Jobs>> {
    let crate::config::Jobs { count, total, per_key, lifetime, .. } = &config.jobs;
    let (count, running) = (u64::from(*count), config.slots());
    let bounds = jobs::Bounds { count, per_owner: per_key.0, total: total.0, lifetime: lifetime.0, running };
    let opened = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        loop {
            match Jobs::open(&directory, bounds) {
                Err(OpenError::InUse) if begun.elapsed() < LET_GO => std::thread::sleep(Duration::from_millis(20)),
                opened => return opened,
            }
        }
    });
    match opened.await {
        Ok(Ok(jobs)) => Some(Arc::new(jobs)),
        Ok(Err(error)) => {
            tracing::error!(error = chain(&error), "jobs cannot be kept");
            None
        }
        Err(_) => None,
    }
}

/// Forgets jobs that ended before their lifetime, some time after that.
async fn sweep_jobs(jobs: Arc<Jobs>) {
    let interval = (jobs.lifetime() / 10).clamp(Duration::from_secs(1), Duration::from_secs(600));
    loop {
        tokio::time::sleep(interval).await;
        let jobs = jobs.clone();
        match tokio::task::spawn_blocking(move || jobs.sweep()).await {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(forgotten)) => tracing::info!(forgotten, "jobs ended long ago and are forgotten"),
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "jobs cannot be forgotten yet"),
        }
    }
}

/// Removes blobs that were not used for their lifetime, some time after that.
async fn sweep_blobs(blobs: Arc<Blobs>, lifetime: Duration) {
    let interval = (lifetime / 10).clamp(Duration::from_secs(1), Duration::from_secs(600));
    loop {
        tokio::time::sleep(interval).await;
        let blobs = blobs.clone();
        match tokio::task::spawn_blocking(move || blobs.sweep()).await {
            Ok(Ok((0, _))) | Err(_) => {}
            Ok(Ok((removed, bytes))) => tracing::info!(removed, bytes, "blobs were not used and are removed"),
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "blobs cannot be removed yet"),
        }
    }
}

/// Hears the keeper in a thread of its own: descriptors come with the messages.
fn listen(
    keeper: &Arc<UnixStream>,
    renewed: &Renewed,
    runtime: &tokio::runtime::Handle,
    drain: &mpsc::Sender<()>,
    ping: &mpsc::Sender<Ping>,
) {
    loop {
        match wire::receive(keeper) {
            Ok(Some((Message::Runner { slot }, fds))) => {
                fds.into_iter().for_each(|socket| adopt(&renewed.scheduler, runtime, slot.clone(), socket));
            }
            Ok(Some((Message::Sender, fds))) => {
                for socket in fds {
                    if let Err(error) = renewed.sender.adopt(socket) {
                        tracing::error!(%error, "callbacks cannot be sent");
                    }
                }
            }
            Ok(Some((Message::Ping, _))) => {
                let (answered, is_answered) = oneshot::channel();
                let _ = ping.try_send(answered);
                let keeper = keeper.clone();
                runtime.spawn(async move {
                    if is_answered.await.is_ok() {
                        let _ = wire::say(&keeper, Word::Serving);
                    }
                });
            }
            Ok(Some((Message::Renew { config }, _))) => match serde_json::from_str(&config) {
                Ok(config) => renewed.with(config),
                Err(error) => tracing::error!(%error, "the keeper's configuration cannot be read"),
            },
            Ok(Some((Message::Drain, _))) => {
                let _ = drain.try_send(());
            }
            Ok(Some(_)) => tracing::error!("the keeper said something that makes no sense"),
            // Without a keeper nobody restarts runners or drains: better gone than half there.
            Ok(None) | Err(_) => {
                tracing::error!("the keeper is gone; the front ends too");
                std::process::exit(1);
            }
        }
    }
}

fn adopt(scheduler: &Arc<Scheduler>, runtime: &tokio::runtime::Handle, slot: String, socket: OwnedFd) {
    runtime.spawn(scheduler.clone().drive(slot, UnixStream::from(socket)));
}
