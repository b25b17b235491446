//! The command line: one file a subcommand. Here alone errors are gathered with their context and shown.

mod builder;
mod client;
mod config;
mod doctor;
mod export;
mod front;
mod image;
mod import;
mod inspect;
mod jobs;
mod judge;
mod key;
mod log;
mod long;
mod mcp;
mod openapi;
mod pool;
mod problem;
mod run;
mod runner;
mod sender;
mod serve;
mod store;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::image::Store;
use crate::sandbox::{rootless, starter};

/// Runs untrusted programs for other programs: every task in a fresh sandbox of its own.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  faber doctor                              is everything here that Faber needs?
  faber run -- python3 -c 'print(1)'        run one task, without a server
  faber judge main.cpp tests/               judge a program: tests/*.in against tests/*.out
  faber serve --open-mode                   serve everybody on 127.0.0.1:8080";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the HTTP API
    Serve(serve::ServeArgs),
    /// Run one task, without a server
    Run(run::RunArgs),
    /// Run a program against a directory of tests, without a server
    Judge(judge::JudgeArgs),
    /// Serve agents by the Model Context Protocol on standard input and output, without a server
    Mcp(mcp::McpArgs),
    /// Check that this machine has what Faber needs
    Doctor(doctor::DoctorArgs),
    /// Print the effective configuration, and where each value came from
    Config(config::ConfigArgs),
    /// Print the OpenAPI document
    Openapi,
    /// Build, import, prove, list, export and remove images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// List, show and cancel jobs at a server
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// Make API keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// The HTTP process; started by serve
    #[command(hide = true)]
    Front,
    /// The process of one slot; started by serve
    #[command(hide = true)]
    Runner,
    /// The process that sends callbacks; started by serve
    #[command(hide = true)]
    Sender,
    /// The process that makes one image; started by image build
    #[command(hide = true)]
    Builder,
}

/// Does what the command line says. What fails is told in one line, with its causes.
pub fn main() -> ExitCode {
    // Files and mount points get the modes they are made with, and tasks start with this, whatever the caller's is.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    starter::forget();
    let done = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Run(args) => run::run(args),
        Command::Judge(args) => judge::run(args),
        Command::Mcp(args) => mcp::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Openapi => openapi::run(),
        Command::Image(command) => image::run(command),
        Command::Jobs(command) => jobs::run(command),
        Command::Key(command) => key::run(&command),
        Command::Front => front::run(),
        Command::Runner => runner::run(),
        Command::Sender => sender::run(),
        Command::Builder => builder::run(),
    };
    done.unwrap_or_else(|error| {
        // Nobody may be there to read it.
        let _ = writeln!(std::io::stderr(), "faber: {error:#}");
        ExitCode::from(if error.downcast_ref::<run::CannotRun>().is_some() { run::FABER_FAILED } else { 1 })
    })
}

/// An ordinary user goes on as root of a user namespace, where the images are in another place.
fn become_root(config: &mut Config) -> anyhow::Result<()> {
    config.data_dir = rootless::enter(&std::path::absolute(&config.data_dir)?)?;
    Ok(())
}

/// The same for who runs images or changes the store: nobody else may change it meanwhile.
fn take_store(config: &mut Config) -> anyhow::Result<()> {
    become_root(config)?;
    Ok(Store::new(&config.data_dir).check()?)
}

/// Prints what a reader such as `head` may stop reading at any time.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
