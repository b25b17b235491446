//! `faber doctor`.

use std::process::ExitCode;

use clap::Args;

use super::run::Trial;
use crate::config::{Config, Loaded};
use crate::image::Store;
use crate::needs::{self, Need, State};
use crate::sandbox::cgroup::Lack;

#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 when everything that is needed is there, 1 when something is missing.")]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut config = Loaded::read(None, Vec::new())?.config;
    let mut needs = match super::become_root(&mut config) {
        Ok(()) => needs::check(config.resources().groups),
        Err(error) => vec![Need::missing("privileges", format!("{error:#}"), "or run it as root, with sudo")],
    };
    needs.push(data_directory(&config));
    if !is_missing(&needs) {
        needs.extend(container(&config));
    }
    let text = if args.json { serde_json::to_string_pretty(&needs)? } else { table(&needs) };
    super::print(&text)?;
    Ok(if is_missing(&needs) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn data_directory(config: &Config) -> Need {
    let name = "data directory";
    let path = config.data_dir.display();
    match Store::new(&config.data_dir).check_owner() {
        Ok(()) if config.data_dir.exists() => Need::ok(name, format!("{path}, which nobody else may change")),
        Ok(()) => Need::ok(name, format!("{path}, made when it is needed")),
        Err(error) => Need::missing(name, format!("{path} is not Faber's alone"), format!("{error}")),
    }
}

/// The proof of it all: a task that runs; and what is only seen in its groups.
fn container(config: &Config) -> Vec<Need> {
    let name = "a container";
    let need = match super::run::trial(config) {
        Ok(Trial { complaint: None, lacking, shared }) => {
            return vec![counters(&lacking), apart(shared), Need::ok(name, "ran, and was removed")];
        }
        Ok(Trial { complaint: Some(error), .. }) => {
            Need::missing(name, format!("did not run: {error}"), "this is a defect: please report it")
        }
        Err(error) => Need::missing(
            name,
            format!("did not run: {error:#}"),
            "look for what the first words of this name; if all above is ok, please report it",
        ),
    };
    vec![need]
}

fn counters(lacking: &[Lack]) -> Need {
    let list = |of: fn(&Lack) -> &'static str, between| lacking.iter().map(of).collect::<Vec<_>>().join(between);
    match lacking {
        [] => Need::ok("cgroup counters", "all there"),
        _ => Need::warning(
            "cgroup counters",
            format!("no {}", list(|lack| lack.what, ", no ")),
            format!("nothing to do: {}", list(|lack| lack.instead, "; ")),
        ),
    }
}

fn apart(shared: Option<Lack>) -> Need {
    let name = "files of images";
    shared.map_or_else(
        || Need::ok(name, "locks and watches of a task are its own"),
        |Lack { what, instead }| Need::warning(name, format!("no {what}"), format!("nothing to do: {instead}")),
    )
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
