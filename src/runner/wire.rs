//! What passes over a runner's socket. The keeper speaks first, with [`Setup`]; from then on the other end is the
//! front's, which is not trusted with more than orders.
//!
//! ```text
//! runner: Ready ──> front: Run ──> runner: Report ──> (removal) ──> Ready …
//!                   front: Run {hold} ──> runner: Prepared ──> front: Go ──> runner: Report …
//!                   front: Say (of the task that runs; ignored when it comes too late)
//!                   runner: Figures (if they are wanted, until Report)
//! ```
//! Large bytes come along as descriptors of files: those of a task first, then its pipes, stdin before stdout before stderr.
//! A closed socket ends the runner; a runner that ends closes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::artifact::Data;
use crate::task::{
    Entry, Figures, FileRefusal, ImageId, ImageName, Limits, Node, Report, Resources, Taken, Task, Word, WorkspacePath,
};

/// What a runner is to be; the spool's descriptor comes with it.
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
    /// `hold`: say when it could start, and wait for the word. `sharing`: when it is one of many of its request.
    Run {
        task: Box<Task<Data>>,
        pipes: Pipes,
        hold: bool,
        sharing: Option<Sharing>,
        /// Say what it uses while it runs.
        figures: bool,
    },
    Go,
    /// Keep a container of this image for a session, held to these limits as a whole. Ready is said once it is one.
    Host {
        image: ImageId,
        limits: Limits,
    },
    /// Of a session: make a run. Who watches it speaks over the socket that comes with this, as a runner with one task.
    Watch,
    /// Of a session: do this with its files.
    Files(FileOrder),
    /// Of the task that runs.
    Say(Word),
}

/// Tasks of one request that come to this runner one after the other: they may have a container in common, with a cell for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharing {
    /// A number that no other request has.
    pub request: u64,
    /// Whether another one of its tasks waits, of the same image.
    pub more: bool,
}

/// Which standard descriptors are pipes to other tasks, or to whoever asked for the task. What goes into a terminal is read from a pipe,
/// too.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Pipes {
    pub stdin: bool,
    /// stdout and stderr; true: what passes is kept, too.
    pub outputs: [Option<bool>; 2],
}

/// From the runner.
#[derive(Debug, Serialize, Deserialize)]
pub enum Notice {
    /// A container waits for a task.
    Ready,
    /// The task that was to be held could start now.
    Prepared,
    /// What came of an order about files; a file's bytes may come as a descriptor.
    Files(FileAnswer),
    /// What the task that runs has used up to now.
    Figures(Figures),
    /// The task's end, with what it left. For the operator: the fault, when Faber could not start it, and what else there is to say.
    Report { report: Box<Report>, taken: Taken<Data>, fault: Option<String>, note: Option<String> },
    /// The runner cannot make containers and ends; why, for the operator.
    Failed(String),
}

/// What is to be done with the files of a session. Sizes in bytes.
#[derive(Debug, Serialize, Deserialize)]
pub enum FileOrder {
    /// Write them, in the place of what is there; their bytes come as descriptors.
    Place(BTreeMap<WorkspacePath, Node<Data>>),
    /// One that has no more than so much.
    Read { path: WorkspacePath, most: u64 },
    /// A file, a link, or a directory with nothing in it.
    Remove(WorkspacePath),
    /// What is in a directory, without one in the workspace itself; at most so many entries.
    List { path: Option<WorkspacePath>, most: usize },
    /// All of the workspace as an archive, of so much at most.
    Snapshot { most: u64 },
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub enum FileAnswer {
    Done,
    /// Its permissions, and its bytes.
    File {
        mode: u32,
        data: Data,
    },
    Entries(Vec<Entry>),
    Refused(FileRefusal),
}
