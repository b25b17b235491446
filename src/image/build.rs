//! Building: from a definition to a tree in the store, by `mmdebstrap` from Debian's packages.

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use super::store::Writer;
use super::{Definition, Root, StoreError};

/// The program that makes root file systems of Debian packages, and the package it is in.
const PROGRAM: &str = "mmdebstrap";
/// Every file that a build makes has this time: 2025-01-01. What packages bring keeps its own, if it is older.
const EPOCH: &str = "1735689600";

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{PROGRAM} is missing: apt-get install {PROGRAM}")]
    NoProgram,
    #[error("start {PROGRAM}")]
    Start(#[source] io::Error),
    #[error("{PROGRAM} failed: {0}")]
    Failed(String),
}

/// What a build did.
#[derive(Debug)]
pub enum Built {
    /// The definition is that of the image that is there.
    Unchanged,
    New,
}

/// Builds `definition`, unless that is what is there already. `progress` hears what is being done.
///
/// # Errors
/// The old image stays as it is, whatever fails.
pub fn build(
    writer: &Writer<'_>,
    definition: &Definition,
    force: bool,
    progress: &(dyn Fn(&str) + Sync),
) -> Result<Built, BuildError> {
    if !force && is_built(writer, definition) {
        return Ok(Built::Unchanged);
    }
    let mut bootstrap = start(definition)?;
    let (archive, talk) = (bootstrap.stdout.take(), bootstrap.stderr.take());
    let (Some(archive), Some(talk)) = (archive, talk) else { return Err(BuildError::NoProgram) };
    std::thread::scope(|scope| {
        let listener = scope.spawn(|| listen(talk, progress));
        let done = writer.put(definition, Ended { archive, bootstrap: &mut bootstrap }, &|bytes| {
            progress(&format!("unpacking, {} MiB", bytes >> 20));
        });
        let _ = bootstrap.kill();
        let _ = bootstrap.wait();
        let said = listener.join().unwrap_or_default();
        match done {
            Ok(_) => Ok(Built::New),
            // Its own words say more than the archive that ended early.
            Err(_) if !said.is_empty() => Err(BuildError::Failed(said)),
            Err(error) => Err(error.into()),
        }
    })
}

fn start(definition: &Definition) -> Result<Child, BuildError> {
    let mut command = Command::new(PROGRAM);
    command.args(["--variant=essential", "--format=tar", "--aptopt=Acquire::Retries \"3\""]);
    let packages: Vec<&str> = definition.packages.iter().map(super::definition::Package::as_str).collect();
    if !packages.is_empty() {
        command.arg(format!("--include={}", packages.join(",")));
    }
    // The text of a step is a definition's, which is the operator's own; the hook passes it on as one argument.
    for step in &definition.run {
        command.arg(format!("--customize-hook=unshare --net -- chroot \"$1\" sh -ec {}", quoted(step)));
    }
    command.args([definition.base.as_str(), "-"]);
    command.env("SOURCE_DATE_EPOCH", EPOCH).env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => BuildError::NoProgram,
        _ => BuildError::Start(error),
    })
}

/// One word for the shell that mmdebstrap gives its hooks to.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The archive of a program that also has to end well: an archive that it gave up half-way is none.
struct Ended<'a, R> {
    archive: R,
    bootstrap: &'a mut Child,
}

impl<R: Read> Read for Ended<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.archive.read(buffer)? {
            0 if buffer.is_empty() => Ok(0),
            0 if self.bootstrap.wait()?.success() => Ok(0),
            0 => Err(io::Error::other("it ended early")),
            length => Ok(length),
        }
    }
}

/// Characters of a line that are worth reading: mmdebstrap's own commands, which name every package, are longer.
const LINE: usize = 200;

/// Passes on what mmdebstrap says it does; returns what it said last of errors.
fn listen(talk: impl Read, progress: &(dyn Fn(&str) + Sync)) -> String {
    let mut errors = Vec::new();
    for line in BufReader::new(talk).lines().map_while(Result::ok) {
        if let Some(step) = line.strip_prefix("I: ") {
            progress(step);
        } else if line.starts_with("E: ") || line.contains("Unable to locate") || line.contains("error") {
            errors.push(line.chars().take(LINE).collect::<String>());
        }
    }
    errors.split_off(errors.len().saturating_sub(5)).join("; ")
}

/// Whether the image that is there was built from this definition.
fn is_built(writer: &Writer<'_>, definition: &Definition) -> bool {
    let image = writer.store().image(&definition.name);
    image.is_ok_and(|image| matches!(image.root, Root::Tree(contents) if contents.definition == definition.digest()))
}
