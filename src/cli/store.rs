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

    /// For who changes the store, whose files belong to many users: root, or an ordinary user's own root.
    pub fn config_of_owner(&self) -> anyhow::Result<Config> {
        let mut config = self.config()?;
        super::take_store(&mut config)?;
        Ok(config)
    }
}

pub fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
