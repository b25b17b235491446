//! Runners without a server: what the scheduler needs for a command that runs many tasks.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::artifact::Spool;
use crate::config::Config;
use crate::execution::Engine;
use crate::frame;
use crate::keeper::{Child, Instance};
use crate::runner::wire::Setup;
use crate::sandbox::confine::keep_what_is_used;
use crate::scheduler::{Capacity, Scheduler, Shares};

/// How long runners may take to end when their sockets are closed.
const PATIENCE: Duration = Duration::from_secs(10);

/// To each runner, by its slot's name.
pub type Sockets = Vec<(String, UnixStream)>;

/// An instance with its runners. Dropping it waits for their ends, and removes what they left.
pub struct Pool {
    instance: Instance,
    runners: Vec<(String, Child)>,
}

impl Pool {
    /// Starts as many runners as the configuration has. They end when the engine, which has their sockets, is gone.
    ///
    /// # Errors
    /// When something of it cannot be made.
    pub fn start(config: &Config) -> anyhow::Result<(Self, Engine, Sockets)> {
        let instance = Instance::found(config.resources())?;
        let spool = Spool::create(config.spool())?;
        keep_what_is_used()?;
        let mut pool = Self { instance, runners: Vec::new() };
        let mut sockets = Vec::new();
        for number in 0..config.slots() {
            let name = format!("s{number}");
            let (socket, theirs) = UnixStream::pair()?;
            frame::send_with(&socket, &pool.setup(config, &name), &[spool.as_fd()])?;
            pool.runners.push((name.clone(), Child::start("runner", theirs)?));
            sockets.push((name, socket));
        }
        let capacity = Capacity {
            concurrency: config.concurrency(),
            slots: config.slots(),
            memory: config.memory_budget(),
            queue_length: usize::MAX / 2,
            // Nobody else waits, and who calls can end it.
            queue_timeout: Duration::from_secs(24 * 60 * 60),
        };
        let scheduler: Arc<Scheduler> = Scheduler::new(capacity, Shares::ALL, None);
        Ok((pool, Engine::new(config, scheduler, spool, None), sockets))
    }

    fn setup(&self, config: &Config, slot: &str) -> Setup {
        Setup {
            run_dir: self.instance.run_dir().to_owned(),
            dir: self.instance.slot_dir(slot),
            instance: self.instance.name().to_owned(),
            slot: slot.to_owned(),
            data_dir: config.data_dir.clone(),
            default_image: config.execution.default_image.clone(),
            max: config.bounds().max,
            resources: config.resources(),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        for (slot, runner) in &mut self.runners {
            while runner.ended().is_none() {
                if Instant::now() >= deadline {
                    runner.kill();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            // What cannot be removed now goes with the next start.
            let _ = self.instance.sweep_slot(slot);
        }
    }
}
