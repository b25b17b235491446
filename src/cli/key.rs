//! `faber key`.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::config::KeyHash;

/// 256 bits: nobody guesses it, so a fast hash keeps it safe.
const KEY_BYTES: usize = 32;

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make an API key: print it, once, and the hash that goes into faber.toml
    New(NewArgs),
}

#[derive(Debug, Args)]
pub struct NewArgs {
    /// Whose key it is; the log shows this name
    #[arg(long, default_value = "client", value_parser = plain_name)]
    name: String,
}

pub fn run(command: &KeyCommand) -> anyhow::Result<ExitCode> {
    let KeyCommand::New(NewArgs { name }) = command;
    let mut bytes = [0; KEY_BYTES];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .context("read the kernel's randomness")?;
    let key = bytes.iter().fold("faber_".to_owned(), |key, byte| format!("{key}{byte:02x}"));
    let hash = String::from(KeyHash::of(&key));
    super::print(&format!(
        "API key (shown only now; give it to the client):\n  {key}\n\nFor faber.toml:\n  [auth]\n  keys = [{{ name = \"{name}\", hash = \"{hash}\" }}]"
    ))
}

fn plain_name(name: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 64 && name.chars().all(plain) {
        return Ok(name.to_owned());
    }
    Err("expected letters, digits, '-', '_' and '.', at most 64".into())
}
