//! Faber runs untrusted programs for other programs: one fresh OCI container for every task.

pub mod api;
mod archive;
pub mod artifact;
mod blobs;
mod builder;
pub mod callbacks;
mod chain;
pub mod cli;
mod compat;
pub mod config;
pub mod execution;
pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod graph;
pub mod image;
mod jobs;
pub mod judge;
pub mod keeper;
mod mcp;
pub mod needs;
mod restart;
pub mod runner;
pub mod sandbox;
pub mod scheduler;
pub mod sessions;
pub mod task;
