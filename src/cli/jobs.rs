//! `faber jobs`: one's jobs at a server.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::{Server, ServerArgs};
use crate::config::Span;

/// The longest that a server holds one request.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The most jobs that a page has.
const PAGE: usize = 50;

#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// One's own jobs, newest first
    List(ListArgs),
    /// A job with its response, as JSON
    Show(ShowArgs),
    /// Cancel what has not ended, forget what has
    Cancel(CancelArgs),
}

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct ListArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = PAGE)]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct ShowArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// As it was told when it was submitted
    #[arg(value_name = "ID")]
    id: String,
    /// Wait for its end, so long at most
    #[arg(long, value_name = "TIME")]
    wait: Option<Span>,
}

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct CancelArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// One or more
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

const AFTER: &str = "\
The API key is taken from the environment variable FABER_API_KEY.

Examples:
  faber jobs list
  FABER_API_KEY=faber_… faber jobs list --server https://judge.example.com
  faber jobs show 000643f1a2b3c4d50123456789abcdef --wait 5m
  faber jobs cancel 000643f1a2b3c4d50123456789abcdef";

/// A page of jobs, as far as it is shown; the rest of each is passed on.
#[derive(Deserialize)]
struct Page {
    jobs: Vec<Listed>,
    next: Option<String>,
}

#[derive(Deserialize, Serialize)]
struct Listed {
    id: String,
    state: String,
    created_at: String,
    #[serde(flatten)]
    more: serde_json::Map<String, Value>,
}

pub fn run(command: JobsCommand) -> anyhow::Result<ExitCode> {
    match command {
        JobsCommand::List(args) => list(&args),
        JobsCommand::Show(args) => show(&args),
        JobsCommand::Cancel(args) => cancel(&args),
    }
}

fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let server = args.server.reach()?;
    let (mut jobs, mut cursor) = (Vec::new(), None);
    while jobs.len() < args.limit {
        let mut query = vec![("limit", PAGE.min(args.limit - jobs.len()).to_string())];
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let Some(Page { jobs: page, next }) = server.ask(Method::GET, &["jobs"], &query, Duration::ZERO)? else {
            break;
        };
        jobs.extend(page);
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    if args.json {
        return super::print(&serde_json::to_string_pretty(&jobs)?);
    }
    if jobs.is_empty() {
        return super::print("no jobs");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["ID", "STATE", "CREATED", "ENDED", "CALLBACK"]);
    for job in &jobs {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let more = |name: &str| job.more.get(name).unwrap_or(&Value::Null);
        let state = match more("position").as_u64() {
            Some(position) => format!("{}, {position} before it", job.state),
            None => job.state.clone(),
        };
        let row =
            [job.id.clone(), state, job.created_at.clone(), text(more("ended_at")), text(&more("callback")["state"])];
        table.add_row(row);
    }
    super::print(&table.to_string())
}

fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let server = args.server.reach()?;
    let mut left = args.wait.map_or(Duration::ZERO, |wait| wait.0);
    loop {
        let wait = left.min(LONGEST_WAIT);
        let query = [("wait", format!("{}ms", wait.as_millis()))];
        let query = if wait.is_zero() { &query[..0] } else { &query[..] };
        let job: Value = server.ask(Method::GET, &["jobs", &args.id], query, wait)?.unwrap_or_default();
        left -= wait;
        if left.is_zero() || job["ended_at"].is_string() {
            return super::print(&serde_json::to_string_pretty(&job)?);
        }
    }
}

/// Each is tried; the first that fails is told.
fn cancel(args: &CancelArgs) -> anyhow::Result<ExitCode> {
    let server = args.server.reach()?;
    let mut failed = Ok(());
    for id in &args.ids {
        match remove(&server, id) {
            Ok(what) => drop(super::print(&format!("{id}: {what}"))?),
            Err(error) => failed = failed.and(Err(error)),
        }
    }
    failed.map(|()| ExitCode::SUCCESS)
}

fn remove(server: &Server, id: &str) -> anyhow::Result<&'static str> {
    let cancelled: Option<Value> = server.ask(Method::DELETE, &["jobs", id], &[], Duration::ZERO)?;
    Ok(if cancelled.is_some() { "cancelled" } else { "had ended, and is forgotten" })
}
