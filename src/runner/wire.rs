//! What passes over a runner's socket. The keeper speaks first, with [`Setup`]; from then on the other end is the
//! front's, which is not trusted with more than orders.
//!
//! ```text
//! runner: Ready ──> front: Run(task) ──> runner: Report ──> (removal) ──> Ready …
//!                   front: Cancel (at most once a task; ignored when it comes too late)
//! ```
//! A closed socket ends the runner; a runner that ends closes it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::task::{ImageName, Limits, Report, Resources, Task};

/// What a runner is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// Where the machine's Faber instances live.
    pub run_dir: PathBuf,
    /// The slot's own directory.
    pub dir: PathBuf,
    pub instance: String,
    /// The slot's name; its containers' names begin with it.
    pub slot: String,
    /// Where the images are.
    pub data_dir: PathBuf,
    /// The image to make a container of before any task is known.
    pub default_image: ImageName,
    /// No order may ask for more.
    pub max: Limits,
    /// How tasks are held to their limits.
    pub resources: Resources,
}

/// From the front.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Run(Task),
    Cancel,
}

/// From the runner.
#[derive(Debug, Serialize, Deserialize)]
pub enum Notice {
    /// A container waits for a task.
    Ready,
    /// The task's end; with the fault, for the operator, when Faber could not start it.
    Report { report: Report, fault: Option<String> },
    /// The runner cannot make containers and ends; why, for the operator.
    Failed(String),
}
