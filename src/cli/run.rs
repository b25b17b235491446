//! `faber run`: one slot, one task, no server; the same way as on a server.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use nix::sys::signalfd::SignalFd;

use crate::config::{Config, Flag, Loaded, Size, Span};
use crate::image::{Catalog, Image, Store};
use crate::keeper::{Instance, take_stop_signals};
use crate::needs;
use crate::sandbox::cgroup::Lack;
use crate::sandbox::{Ran, Slot};
use crate::task::{Groups, Limit, Outcome, Report, ResourceLimits, Task, TaskRequest, TaskResult};

/// The exit status when the task did not run.
pub const FABER_FAILED: u8 = 125;
/// As timeout(1) has it.
const TIME_LIMIT: u8 = 124;
/// 128 + SIGKILL, as whoever the kernel's OOM killer ended has it.
const MEMORY_LIMIT: u8 = 137;

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: the task's own, and
  124    past the wall or CPU time limit
  125    past the output limit, or when the task could not be run
  126    the command cannot be executed
  127    the command is not found
  130    interrupted (SIGINT, SIGTERM)
  137    past the memory limit
  128+n  ended by signal n

What is not given comes from limits.default and execution.default_image
of the configuration (`faber config`).

Examples:
  faber run -- python3 -c 'print(1)'
  faber run --memory 64M --wall-time 5s --file main.py -- python3 main.py
  faber run --json -- true")]
pub struct RunArgs {
    /// The configuration file, for the default limits
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Without control groups, for an ordinary user who has none: limits are watched for, not enforced
    #[arg(long)]
    no_cgroup: bool,
    /// The image to run in
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Memory of all processes together
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// CPU time of all processes together
    #[arg(long, value_name = "TIME")]
    cpu_time: Option<Span>,
    /// Time from start to end
    #[arg(long, value_name = "TIME")]
    wall_time: Option<Span>,
    /// Processes and threads at once
    #[arg(long, value_name = "N")]
    processes: Option<u64>,
    /// Open files of each process
    #[arg(long, value_name = "N")]
    file_descriptors: Option<u64>,
    /// Standard output and standard error together
    #[arg(long, value_name = "SIZE")]
    output: Option<Size>,
    /// A file to put into the workspace under its own name, or as PATH:NAME; can be repeated
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<String>,
    /// An environment variable; can be repeated
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Print the result as the API has it, instead of the task's output
    #[arg(long)]
    json: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Faber, not the task, is to blame; or the task was refused.
#[derive(Debug, thiserror::Error)]
#[error("the task was not run: {0}")]
pub struct CannotRun(String);

pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let json = args.json;
    let report = execute(args).map_err(|error| CannotRun(format!("{error:#}")))?;
    let status = exit_status(&report.outcome);
    if json {
        return super::print(&serde_json::to_string_pretty(&TaskResult::from(report))?).map(|_| ExitCode::from(status));
    }
    write_all(std::io::stdout(), &report.stdout)?;
    write_all(std::io::stderr(), &report.stderr)?;
    let result = TaskResult::from(report);
    if let Some(error) = result.error {
        eprintln!("faber: {error}");
    }
    Ok(ExitCode::from(status))
}

fn execute(args: RunArgs) -> anyhow::Result<Report> {
    let no_cgroup = Flag { key: "execution.cgroup", flag: "--no-cgroup", value: false.into() };
    let flags = args.no_cgroup.then_some(no_cgroup).into_iter().collect();
    let mut config = Loaded::read(args.config.as_deref(), flags)?.config;
    super::become_root(&mut config)?;
    needs::require(config.resources().groups)?;
    if config.resources().groups == Groups::Unused {
        eprintln!("faber: {WEAKER}");
    }
    run_here(args.request()?, &config)
}

/// What --no-cgroup means.
pub const WEAKER: &str = "WARNING: without control groups tasks are held to memory and processes by being looked at every \
                          10 ms, and can exceed them in between: not for programs that you do not trust";

/// What `faber doctor` sees of a task of no content.
pub struct Trial {
    /// What it says of itself when it did not succeed.
    pub complaint: Option<String>,
    /// What its container did without.
    pub lacking: Vec<Lack>,
}

/// Tries a task of no content.
pub fn trial(config: &Config) -> anyhow::Result<Trial> {
    let mut here = Here::claim(config)?;
    let lacking = here.slot.create(&Image::host().id())?.lacking();
    let result = TaskResult::from(here.run(TaskRequest { command: "true".into(), ..TaskRequest::default() })?);
    let complaint =
        (result.exit_code != Some(0)).then(|| result.error.unwrap_or_else(|| format!("{:?}", result.status)));
    Ok(Trial { complaint, lacking })
}

/// This process becomes the runner of one slot for one task.
fn run_here(request: TaskRequest, config: &Config) -> anyhow::Result<Report> {
    Here::claim(config)?.run(request)
}

/// This process as the runner of one slot.
pub struct Here<'a> {
    config: &'a Config,
    catalog: Catalog,
    // Before the instance: what the slot has in its directory goes first.
    slot: Slot,
    _instance: Instance,
    signals: SignalFd,
}

impl<'a> Here<'a> {
    pub fn claim(config: &'a Config) -> anyhow::Result<Self> {
        let store = Store::new(&config.data_dir);
        let signals = take_stop_signals()?;
        let instance = Instance::found(config.resources())?;
        let dir = instance.slot_dir("s0");
        let slot = Slot::claim(
            instance.run_dir(),
            &dir,
            instance.name(),
            "s0",
            store.clone(),
            Vec::new(),
            config.resources(),
        )?;
        Ok(Self { config, catalog: Catalog::new(store), slot, _instance: instance, signals })
    }

    pub fn run(&mut self, request: TaskRequest) -> anyhow::Result<Report> {
        let default_image = &self.config.execution.default_image;
        let task = Task::parse(request, &self.config.bounds(), default_image, &self.catalog.offers()?)?;
        let Ran { report, fault, remains } = self.slot.create(&task.image)?.run(task, self.signals.as_fd());
        drop(remains);
        match fault {
            Some(fault) => Err(fault.into()),
            None => Ok(report),
        }
    }
}

impl RunArgs {
    fn request(self) -> anyhow::Result<TaskRequest> {
        let mut command = self.command.into_iter();
        let limits = ResourceLimits {
            memory_limit: self.memory.map(|size| size.0),
            cpu_time_limit: self.cpu_time.map(Span::nanos),
            wall_time_limit: self.wall_time.map(Span::nanos),
            max_processes: self.processes,
            max_file_descriptors: self.file_descriptors,
            max_output_size: self.output.map(|size| size.0),
        };
        Ok(TaskRequest {
            command: command.next().filter(|command| !command.trim().is_empty()).context("command cannot be empty")?,
            args: command.collect(),
            env: self.env.iter().map(|pair| variable(pair)).collect::<anyhow::Result<_>>()?,
            files: self.files.iter().map(|file| read(file)).collect::<anyhow::Result<BTreeMap<_, _>>>()?,
            resource_limits: Some(limits),
            image: self.image,
        })
    }
}

fn variable(pair: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = pair.split_once('=').with_context(|| format!("--env {pair}: expected NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A file's name in the workspace and its text.
fn read(file: &str) -> anyhow::Result<(String, String)> {
    let (path, name) = match file.split_once(':') {
        Some((path, name)) => (path, Some(name.to_owned())),
        None => (file, Path::new(file).file_name().and_then(|name| name.to_str()).map(str::to_owned)),
    };
    let name = name.with_context(|| format!("--file {file}: expected a file"))?;
    let text = std::fs::read_to_string(path).with_context(|| format!("--file {path}"))?;
    Ok((name, text))
}

fn exit_status(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Exited(code) => *code,
        Outcome::Signalled(signal) => 128u8.wrapping_add(*signal as u8),
        Outcome::CannotRun { exit_code, .. } => *exit_code,
        Outcome::Stopped(Limit::CpuTime | Limit::WallTime, _) => TIME_LIMIT,
        Outcome::Stopped(Limit::Memory, _) => MEMORY_LIMIT,
        Outcome::Cancelled => 130,
        Outcome::Stopped(Limit::Output, _)
        | Outcome::NotExecuted { .. }
        | Outcome::Fault { .. }
        | Outcome::Lost { .. } => FABER_FAILED,
    }
}

fn write_all(mut to: impl Write, bytes: &[u8]) -> anyhow::Result<()> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
