//! `faber serve`: the keeper.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::log;
use crate::config::{Concurrency, Config, Flag, Loaded, Pressure};
use crate::image::{Catalog, Store, StoreError};
use crate::keeper::{self, Instance, Plan, Renewed, run_dir};
use crate::needs;
use crate::runner::wire::Setup;
use crate::sandbox::confine::keep_what_is_used;
use crate::sandbox::starter;
use crate::task::{Groups, ImageName};

#[derive(Debug, Args)]
#[command(after_help = "\
Stops on SIGTERM or SIGINT: no new requests, running tasks may finish for
server.shutdown_grace, everything is removed, exit status 0. A second signal
ends them at once. SIGHUP reads the configuration again: keys, rate limits,
shares, limits and the log's level change, without a task ended. `faber config` prints every other setting.")]
pub struct ServeArgs {
    /// The configuration file [default: ./faber.toml or /etc/faber/faber.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The address to listen on; port 0 lets the kernel choose one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Serve everybody, without API keys
    #[arg(long)]
    open_mode: bool,
    /// Without control groups, for an ordinary user who has none: limits are watched for, not enforced
    #[arg(long)]
    no_cgroup: bool,
    /// Where images are kept
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The image of tasks that name none
    #[arg(long, value_name = "NAME")]
    default_image: Option<String>,
}

impl ServeArgs {
    fn flags(&self) -> Vec<Flag> {
        let flag = |key, flag, value: String| Flag { key, flag, value: value.into() };
        let mut flags = Vec::new();
        flags.extend(self.listen.map(|listen| flag("server.listen", "--listen", listen.to_string())));
        flags.extend(self.data_dir.as_ref().map(|dir| flag("data_dir", "--data-dir", dir.display().to_string())));
        flags.extend(
            self.default_image.as_ref().map(|name| flag("execution.default_image", "--default-image", name.clone())),
        );
        if self.open_mode {
            flags.push(Flag { key: "auth.open_mode", flag: "--open-mode", value: true.into() });
        }
        if self.no_cgroup {
            flags.push(Flag { key: "execution.cgroup", flag: "--no-cgroup", value: false.into() });
        }
        flags
    }
}

pub fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let mut config = Loaded::read(args.config.as_deref(), args.flags())?.config;
    config.check_auth()?;
    // Front and runners are elsewhere.
    config.data_dir = std::path::absolute(&config.data_dir)?;
    super::take_store(&mut config)?;
    needs::require(config.resources().groups)?;
    log::start(&config.log);
    for left in starter::left() {
        tracing::warn!("{left} was set by whoever started Faber and cannot be undone from here: tasks have it, too");
    }
    // From here on there is something to remove: a signal to stop waits until somebody hears it.
    keeper::hold_stop_signals()?;
    let listener = listen(config.server.listen)?;
    let address = listener.local_addr()?;
    if config.resources().groups == Groups::Unused {
        tracing::warn!("{}", super::run::WEAKER);
    }
    // The front cannot look at what the machine has.
    config.execution.concurrency = Concurrency::of(config.concurrency());
    let (open_mode, memory_pressure) = (config.auth.open_mode, config.execution.memory_pressure);
    let shares_processors = config.shares_processors();
    let plan = plan(args, config)?;
    let instance = Instance::found(plan.runner.resources)?;
    // Ports below 1024 are bound by now, and nothing is left that takes more.
    keep_what_is_used().context("give up capabilities")?;
    anyhow::ensure!(
        memory_pressure == Pressure::Off || instance.memory_pressure().is_some(),
        "execution.memory_pressure takes cgroup v2 and a kernel that tells of stalls (CONFIG_PSI, psi=1)"
    );
    anyhow::ensure!(
        !shares_processors || instance.has_shares_of_processors(),
        "shares.cpus, or a key's cpus: a share of the processors takes cgroup v2, and that is not used here"
    );
    tracing::info!(instance = instance.name(), slots = plan.slots, "starting");
    announce(address, open_mode)?;
    keeper::serve(instance, listener, plan)?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

fn plan(args: ServeArgs, mut config: Config) -> anyhow::Result<Plan> {
    let default_image = config.execution.default_image.clone();
    check_images(&config, &default_image)?;
    if config.auth.open_mode && !config.server.listen.ip().is_loopback() {
        tracing::warn!(listen = %config.server.listen, "open mode: whoever reaches this address may run programs here");
    }
    let runner = Setup {
        run_dir: run_dir().into(),
        dir: PathBuf::new(),
        instance: String::new(),
        slot: String::new(),
        data_dir: config.data_dir.clone(),
        default_image,
        max: config.bounds().max,
        resources: config.resources(),
    };
    Ok(Plan {
        config: serde_json::to_string(&config)?,
        shutdown_grace: config.server.shutdown_grace.0,
        slots: config.slots(),
        sessions: config.sessions.count as usize,
        spool: config.spool(),
        sender: config.sender(),
        runner,
        renew: Box::new(move || renew(&args, &mut config).map_err(|error| format!("{error:#}"))),
    })
}

/// Reads the configuration again: what may change while it serves becomes `config`'s.
fn renew(args: &ServeArgs, config: &mut Config) -> anyhow::Result<Renewed> {
    let mut found = Loaded::read(args.config.as_deref(), args.flags())?.config;
    // As they became at the start.
    found.data_dir.clone_from(&config.data_dir);
    found.execution.concurrency = Concurrency::of(found.concurrency());
    let (next, left) = config.renewed(&found);
    next.check_auth()?;
    anyhow::ensure!(
        !next.shares_processors() || config.shares_processors(),
        "a share of the processors takes a restart where none was given before"
    );
    if !left.is_empty() {
        tracing::warn!(keys = left.join(", "), "what stands there takes a restart");
    }
    log::set_level(next.log.level);
    *config = next;
    Ok(Renewed { config: serde_json::to_string(config)?, max: config.bounds().max })
}

/// The default image must be there, and the front, which is nobody, must be able to list what there is.
fn check_images(config: &Config, default_image: &ImageName) -> anyhow::Result<()> {
    let store = Store::new(&config.data_dir);
    if let Some(closed) = store.closed_to_others() {
        anyhow::bail!(
            "data_dir: the HTTP process, which has no privileges, cannot list the images: chmod o+rx {}",
            closed.display()
        );
    }
    let catalog = Catalog::new(store);
    match catalog.image(default_image) {
        Err(StoreError::NoImage(_)) => {
            let images = catalog.images()?;
            let known = images.iter().map(|image| image.name.as_str()).collect::<Vec<_>>().join(", ");
            anyhow::bail!("execution.default_image: there is no image {default_image}; there is {known}")
        }
        other => Ok(other.map(|_| ())?),
    }
}

fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => "; --listen takes another address, with port 0 any that is free",
            _ => "",
        };
        anyhow::Error::new(error).context(format!("cannot listen on {address}{hint}"))
    })
}

/// For whoever started it: a program reads the first line, a person can paste the rest. Who started it may not listen.
fn announce(address: SocketAddr, open_mode: bool) -> anyhow::Result<()> {
    let key = if open_mode { "" } else { " -H 'Authorization: Bearer YOUR_KEY'" };
    super::print(&format!(
        "Faber serves on http://{address}\n\
         Try it:\n  \
         curl http://{address}/execute{key} -H 'Content-Type: application/json' \
         -d '{{\"tasks\": [{{\"command\": \"echo\", \"args\": [\"Hello, Faber!\"]}}]}}'"
    ))
    .map(|_| ())
}
