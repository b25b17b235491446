//! `faber serve`: the keeper.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::log;
use crate::config::{Config, Flag, Loaded};
use crate::image;
use crate::keeper::{self, Instance, Plan, RUN_DIR};
use crate::needs;
use crate::runner::wire::Setup;

#[derive(Debug, Args)]
#[command(after_help = "\
Stops on SIGTERM or SIGINT: no new requests, running tasks may finish for server.shutdown_grace, everything is removed.
A second signal ends it at once. `faber config` prints every other setting.")]
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
        flags
    }
}

pub fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let config = Loaded::read(args.config.as_deref(), args.flags())?.config;
    config.check_auth()?;
    needs::require()?;
    log::start(&config.log);
    let listener =
        TcpListener::bind(config.server.listen).with_context(|| format!("listen on {}", config.server.listen))?;
    let address = listener.local_addr()?;
    let plan = plan(config, listener)?;
    let instance = Instance::found()?;
    tracing::info!(instance = instance.name(), slots = plan.slots, "starting");
    announce(address)?;
    keeper::serve(instance, plan)?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

fn plan(config: Config, listener: TcpListener) -> anyhow::Result<Plan> {
    let images = image::all()?;
    let default_image = config.execution.default_image.clone();
    if !images.iter().any(|image| image.name == default_image) {
        let known: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
        anyhow::bail!("execution.default_image: there is no image {default_image}; there is {}", known.join(", "));
    }
    if config.auth.open_mode && !config.server.listen.ip().is_loopback() {
        tracing::warn!(listen = %config.server.listen, "open mode: whoever reaches this address may run programs here");
    }
    Ok(Plan {
        listener,
        config: serde_json::to_string(&config)?,
        shutdown_grace: config.server.shutdown_grace.0,
        // As many run as may, and as many hold a container for what comes next.
        slots: config.concurrency() * 2,
        runner: Setup {
            run_dir: RUN_DIR.into(),
            dir: PathBuf::new(),
            instance: String::new(),
            slot: String::new(),
            images,
            default_image,
            max: config.bounds().max,
        },
    })
}

/// For whoever started it, a person or a program.
fn announce(address: SocketAddr) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "Faber serves on http://{address}")?;
    Ok(out.flush()?)
}
