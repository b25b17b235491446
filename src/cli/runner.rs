//! `faber runner`: one slot's process.

use std::process::ExitCode;

use super::log;

pub fn run() -> anyhow::Result<ExitCode> {
    crate::keeper::ignore_signals()?;
    log::panics_only();
    // The front has been told what went wrong, and logs it.
    Ok(crate::runner::main().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}
