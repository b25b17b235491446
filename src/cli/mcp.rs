//! `faber mcp`: the Model Context Protocol on standard input and output, without a server.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use rmcp::ServiceExt;
use rmcp::service::ServerInitializeError;
use rmcp::transport::stdio_pipes;
use tokio::signal::unix::{SignalKind, signal};

use super::long::INTERRUPTED;
use super::pool::Pool;
use super::run::WEAKER;
use crate::config::{Flag, Loaded};
use crate::execution::{Ended, Engine, Planned};
use crate::image::{Catalog, Image, Store};
use crate::judge::{JudgeRequest, JudgeResponse, Judged, Judgement};
use crate::mcp::{Host, Refusal, Server};
use crate::needs;
use crate::scheduler::Client;
use crate::task::{Bounds, Groups, ImageName, TaskRequest, TaskResult};

#[derive(Debug, Args)]
#[command(after_help = "\
Tools: run_code, run_command, judge, list_languages. Standard output has the
protocol alone, standard error the log. Ends when standard input does.

For an agent's configuration:
  {\"mcpServers\": {\"faber\": {\"command\": \"faber\", \"args\": [\"mcp\"]}}}")]
pub struct McpArgs {
    /// The configuration file, for the default limits
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Without control groups, for an ordinary user who has none: limits are watched for, not enforced
    #[arg(long)]
    no_cgroup: bool,
}

pub fn run(args: McpArgs) -> anyhow::Result<ExitCode> {
    let no_cgroup = Flag { key: "execution.cgroup", flag: "--no-cgroup", value: false.into() };
    let mut config =
        Loaded::read(args.config.as_deref(), args.no_cgroup.then_some(no_cgroup).into_iter().collect())?.config;
    super::take_store(&mut config)?;
    needs::require(config.resources().groups)?;
    if config.resources().groups == Groups::Unused {
        eprintln!("faber: {WEAKER}");
    }
    super::log::start(&config.log);
    let (pool, engine, sockets) = Pool::start(&config)?;
    let max_cases = config.judge.max_cases as usize;
    let here = Here { engine, catalog: Catalog::new(Store::new(&config.data_dir)), max_cases };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(async {
        for (name, socket) in sockets {
            tokio::spawn(here.engine.scheduler.clone().drive(name, socket));
        }
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            served = serve(here) => served.map(|()| ExitCode::SUCCESS),
            _ = interrupt.recv() => Ok(ExitCode::from(INTERRUPTED)),
            _ = terminate.recv() => Ok(ExitCode::from(INTERRUPTED)),
        }
    });
    // Runners end when their sockets close, which their tasks here hold. A thread that reads standard input is not waited for.
    runtime.shutdown_background();
    drop(pool);
    ended
}

/// Until the client closes its end.
async fn serve(here: Here) -> anyhow::Result<()> {
    match Server::new(Arc::new(here)).serve(stdio_pipes()).await {
        Ok(running) => {
            running.waiting().await?;
            Ok(())
        }
        // Before anything was asked.
        Err(ServerInitializeError::ConnectionClosed(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// This machine, for one client.
struct Here {
    engine: Engine,
    catalog: Catalog,
    max_cases: usize,
}

const CLIENT: Client = Client::Key(0);

fn not_run() -> Refusal {
    "It could not be run: `faber doctor` may say why".into()
}

impl Host for Here {
    fn images(&self) -> Result<Arc<Vec<Image>>, Refusal> {
        self.catalog.images().map_err(|error| format!("The images cannot be read: {error}"))
    }

    fn bounds(&self) -> Arc<Bounds> {
        self.engine.bounds()
    }

    fn default_image(&self) -> &ImageName {
        &self.engine.default_image
    }

    fn max_cases(&self) -> usize {
        self.max_cases
    }

    async fn run(&self, task: TaskRequest) -> Result<TaskResult, Refusal> {
        let offers: Vec<_> = self.images()?.iter().map(Image::offer).collect();
        let planned = Planned::new(&self.engine, vec![task], &[], &offers).map_err(|error| error.to_string())?;
        match self.engine.run(CLIENT, "", planned, &mut |_| true).await.map_err(|full| full.to_string())? {
            Ended::Results(results) => results.into_iter().next().ok_or_else(not_run),
            Ended::Queued | Ended::Fault => Err(not_run()),
        }
    }

    async fn judge(&self, request: JudgeRequest) -> Result<JudgeResponse, Refusal> {
        let offers: Vec<_> = self.images()?.iter().map(Image::offer).collect();
        let judgement = Judgement::parse(&self.engine, request, &offers).map_err(|error| error.to_string())?;
        match judgement.run(&self.engine, CLIENT, &[], &|_, _| {}).await.map_err(|full| full.to_string())? {
            Judged::Response(response) => Ok(*response),
            Judged::Queued | Judged::Fault => Err(not_run()),
        }
    }
}
