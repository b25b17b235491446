//! `faber doctor`.

use std::process::ExitCode;

use clap::Args;

use crate::needs::{self, Need, State};

#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 when everything that is needed is there, 1 when something is missing.")]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut needs = needs::check();
    if !is_missing(&needs) {
        needs.push(container());
    }
    let text = if args.json { serde_json::to_string_pretty(&needs)? } else { table(&needs) };
    super::print(&text)?;
    Ok(if is_missing(&needs) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The proof of it all: a task that runs.
fn container() -> Need {
    let name = "a container";
    match super::run::trial() {
        Ok(None) => Need::ok(name, "ran, and was removed"),
        Ok(Some(error)) => Need::missing(name, format!("did not run: {error}"), "this is a defect: please report it"),
        Err(error) => Need::missing(
            name,
            format!("did not run: {error:#}"),
            "look for what the first words of this name; if all above is ok, please report it",
        ),
    }
}

fn is_missing(needs: &[Need]) -> bool {
    needs.iter().any(|need| need.state == State::Missing)
}

fn table(needs: &[Need]) -> String {
    let width = needs.iter().map(|need| need.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Need { name, state, found, fix } in needs {
        let state = match state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Missing => "MISSING",
        };
        text.push_str(&format!("{state:8} {name:width$}  {found}\n"));
        if let Some(fix) = fix {
            text.push_str(&format!("{:8} {:width$}  -> {fix}\n", "", ""));
        }
    }
    text
}
