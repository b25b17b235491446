//! Faber runs untrusted programs for other programs: one fresh OCI container for every task.

pub mod api;
mod archive;
mod artifact;
mod blobs;
mod builder;
mod chain;
pub mod cli;
pub mod config;
mod execution;
mod frame;
mod graph;
pub mod image;
pub mod keeper;
pub mod needs;
pub mod runner;
pub mod sandbox;
pub mod scheduler;
pub mod task;
