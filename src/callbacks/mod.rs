//! Telling somebody's server that a job has ended: Standard Webhooks (standardwebhooks.com), from a process of its own.
//!
//! ```text
//! front ──Post──> sender: may it go there? ──> the name's addresses ──> may it go to any of them? ──> POST
//!       <─Posted─
//! ```
//! The front has the jobs and may not connect to anything. The sender may, has no files and no jobs, and was told by the keeper, not
//! by the front, where callbacks may go: whoever takes over the front reaches nothing but that.

mod client;
mod hosts;
mod secret;
mod sender;
mod wire;

pub use client::Sender;
pub use hosts::{Host, HostError, Hosts};
pub use secret::{NoSecret, Secret};
pub use sender::{PATIENCE, PrepareError, Prepared};
pub use wire::{Headers, Method, NameServer, Post, Refusal, Setup};
