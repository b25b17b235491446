//! `faber openapi`.

use std::process::ExitCode;

pub fn run() -> anyhow::Result<ExitCode> {
    super::print(&crate::api::document().to_pretty_json()?)
}
