//! The builder: a process that makes one image's root file system and ends.
//!
//! ```text
//! Order ──> start (Debian, another image, nothing) ──> pip, npm, cargo ──> copied files ──> run ──> tar on stdout
//! ```
//! Debian's packages are installed by `mmdebstrap`; everything after that runs in containers whose root is the one in the
//! making. None of it is root of the machine. Single-threaded, as everything that makes containers.

mod debian;
mod place;
mod program;
mod registries;
mod step;

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::process::{Command, Stdio};

use crate::image::{EPOCH, Event, Lock, Order, Start, architecture};
use crate::sandbox::{ContainerError, Slot, Workshop, WorkshopError};
use program::finish;
use step::Steps;

#[derive(Debug, thiserror::Error)]
pub enum BuilderError {
    #[error(transparent)]
    Workshop(#[from] WorkshopError),
    #[error("{step}")]
    Io { step: &'static str, source: io::Error },
    #[error("{0} is missing: apt-get install {0}")]
    NoProgram(&'static str),
    #[error("{program} failed: {said}")]
    Program { program: &'static str, said: String },
    #[error("run {step}")]
    Container { step: String, source: Box<ContainerError> },
    #[error("{step}: {said}")]
    Step { step: String, said: String },
    #[error("{0}")]
    Gone(String),
    #[error("copy {path}")]
    Copy { path: std::path::PathBuf, source: io::Error },
    #[error("{0} did not say what it installed")]
    Unsaid(&'static str),
}

/// What helps against a lock that is out of date.
const UPDATE: &str = "`faber image build --update` takes what there is, and renews the lock";

type Result<T> = std::result::Result<T, BuilderError>;

fn at<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> BuilderError {
    move |error| BuilderError::Io { step, source: error.into() }
}

/// Says what is being done. A line that nobody reads any more is no reason to stop: the archive's end will be.
pub fn tell(event: &Event) {
    if let Ok(line) = serde_json::to_string(event) {
        let _ = writeln!(io::stderr(), "{line}");
    }
}

fn doing(step: impl Into<String>) {
    tell(&Event::Doing(step.into()));
}

/// Carries `order` out in `slot`; the archive goes to standard output. `cancel` becoming readable ends a step.
///
/// # Errors
/// What failed, with its own words where it had some.
pub fn build(order: &Order, slot: &mut Slot, cancel: BorrowedFd<'_>) -> Result<()> {
    let mut workshop = Workshop::open(slot, &order.root)?;
    let pins = order.pins.clone().unwrap_or_default();
    let mut lock = Lock { architecture: architecture().to_owned(), ..Lock::default() };
    let mut for_the_build = Vec::new();
    match &order.start {
        Start::Debian { suite, packages } => {
            let installers = registries::installers(&order.additions);
            let installed = debian::install(&workshop, suite, packages, &installers, &pins, cancel)?;
            (lock.debian, for_the_build) = (installed.all, installed.for_the_build);
        }
        Start::Tree(tree) => {
            doing("copying the base");
            copy_tree(&workshop, tree, cancel)?;
        }
        Start::Scratch => {}
    }
    let mut steps = Steps::new(&mut workshop, order, cancel);
    registries::install(&mut steps, &order.additions, &for_the_build, &pins, &mut lock)?;
    place::files(steps.workshop(), &order.additions.copied)?;
    for script in &order.additions.run {
        let name = script.lines().next().unwrap_or_default();
        steps.run(name, &["sh", "-ec", script])?;
    }
    debian::remove(&mut steps, &for_the_build)?;
    tell(&Event::Took(Box::new(lock)));
    doing("packing");
    pack(&workshop, cancel)
}

/// What belongs to the machine that builds: its servers' names, where it gets packages, what the kernel shows.
const NOT_PACKED: [&str; 5] = ["./etc/apt", "./etc/hostname", "./etc/resolv.conf", "./proc/*", "./run/*"];

/// tar(1), in names' order and with no time later than [`EPOCH`]: the same files are the same archive.
fn pack(workshop: &Workshop<'_>, cancel: BorrowedFd<'_>) -> Result<()> {
    let mut tar = workshop.program("tar");
    tar.arg("--directory").arg(workshop.root()).args(["--create", "--file=-", "--format=gnu", "--sort=name"]);
    tar.args(["--numeric-owner", "--clamp-mtime", &format!("--mtime=@{EPOCH}")]);
    tar.args(NOT_PACKED.map(|name| format!("--exclude={name}"))).arg(".");
    finish("tar", tar.stdin(Stdio::null()).stdout(Stdio::inherit()), cancel, |_| {})
}

/// A copy of the files of a tree: what is the store's nobody may change.
fn copy_tree(workshop: &Workshop<'_>, tree: &std::path::Path, cancel: BorrowedFd<'_>) -> Result<()> {
    let mut from = Command::new("tar");
    from.arg("--directory").arg(tree).args(["--create", "--file=-", "--numeric-owner", "."]);
    let mut from =
        from.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(at("start tar"))?;
    let mut to = workshop.program("tar");
    to.arg("--directory").arg(workshop.root()).args([
        "--extract",
        "--file=-",
        "--numeric-owner",
        "--preserve-permissions",
    ]);
    if let Some(archive) = from.stdout.take() {
        to.stdin(archive);
    }
    let done = finish("tar", &mut to, cancel, |_| {});
    // Nobody reads from it any more, if that went wrong.
    drop(to);
    let read = from.wait().map_err(at("wait for tar"))?;
    done.and(if read.success() {
        Ok(())
    } else {
        Err(BuilderError::Program { program: "tar", said: "the base cannot be read".into() })
    })
}
