//! What all commands about the store have in common.

use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, Loaded};

#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The configuration file, for the place of the store
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl StoreArgs {
    pub fn config(&self) -> anyhow::Result<Config> {
        Ok(Loaded::read(self.config.as_deref(), Vec::new())?.config)
    }
}

pub fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
