//! Where the log goes: standard error, in the configured form.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat, LogLevel};

pub fn start(config: &Log) {
    let level = match config.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    // Other crates are heard from `info` on only when they warn.
    let filter = EnvFilter::new(format!("warn,faber={level}"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    match config.format {
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
        LogFormat::Pretty => subscriber.with_ansi(std::io::IsTerminal::is_terminal(&io::stderr())).init(),
    }
}
