//! What a builder is told, and what it tells: JSON, the order on its standard input, an event a line on its standard error.
//! Its standard output is the finished root file system, a tar archive.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::copy::CopiedFile;
use super::lock::Lock;
use super::package::{Crate, CrateName, NpmPackage, Package, PipRequirement, Suite};
use crate::task::Resources;

/// Every file that a build makes has this time at most: 2025-01-01 in seconds of Unix time.
pub const EPOCH: &str = "1735689600";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// An empty directory for the root file system in the making.
    pub root: PathBuf,
    pub start: Start,
    pub additions: Additions,
    pub path: String,
    pub env: BTreeMap<String, String>,
    /// Versions to take.
    pub pins: Option<Lock>,
    pub resources: Resources,
}

/// What is added to the start, in this order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Additions {
    pub pip: Vec<PipRequirement>,
    pub npm: Vec<NpmPackage>,
    pub cargo: BTreeMap<CrateName, Crate>,
    pub copied: Vec<CopiedFile>,
    /// Command lines for `sh -ec`, run as root in the root file system.
    pub run: Vec<String>,
}

/// What the root file system starts as.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Start {
    Debian {
        suite: Suite,
        packages: Vec<Package>,
    },
    Scratch,
    /// A copy of these files.
    Tree(PathBuf),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    Doing(String),
    /// What it took, told before the archive begins.
    Took(Box<Lock>),
    Failed(String),
}
