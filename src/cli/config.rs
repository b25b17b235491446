//! `faber config`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::config::Loaded;

#[derive(Debug, Args)]
#[command(after_help = "\
Later ones win: the defaults; faber.toml (--config, ./faber.toml or
/etc/faber/faber.toml); the environment (FABER_SERVER__LISTEN=127.0.0.1:9000);
the flags of `faber serve`.")]
pub struct ConfigArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let loaded = Loaded::read(args.config.as_deref(), Vec::new())?;
    if args.json {
        let origins: serde_json::Map<String, serde_json::Value> =
            loaded.lines().map(|(key, _, origin)| (key.to_owned(), json!(origin.to_string()))).collect();
        return super::print(&serde_json::to_string_pretty(&json!({ "config": loaded.config, "origins": origins }))?);
    }
    let lines: Vec<(String, String)> =
        loaded.lines().map(|(key, value, origin)| (format!("{key} = {value}"), origin.to_string())).collect();
    let width = lines.iter().map(|(line, _)| line.chars().count()).filter(|width| *width <= 60).max().unwrap_or(0);
    let text: String = lines.iter().map(|(line, origin)| format!("{line:width$}  # {origin}\n")).collect();
    super::print(&text)
}
