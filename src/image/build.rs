//! Building: from a definition to a tree in the store. A process of its own does it (`faber builder`): it becomes what it
//! must be for that, and everything it started ends with it.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};
use sha2::{Digest as _, Sha256};

use super::definition::Base;
use super::lock::{Lock, LockError};
use super::oci::{OciError, Request, Source, import};
use super::order::{Additions, Event, Order, Start};
use super::store::Writer;
use super::tree::{self, Unpacked};
use super::{Contents, Definition, Image, InUse, Root, StoreError, Watch, sbom};
use crate::task::{Digest, ImageName, Resources};

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("start the builder")]
    Start(#[source] io::Error),
    #[error("the base")]
    Base(#[source] OciError),
    #[error(
        "the base {0} is another one than image.lock has: `faber image build --update` takes what there is, and renews the lock"
    )]
    OtherBase(String),
    #[error("{0}")]
    Failed(String),
}

/// What a build did.
#[derive(Debug)]
pub enum Built {
    /// The definition is that of the image that is there.
    Unchanged,
    New,
}

/// How to build.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// Build what has not changed too.
    pub force: bool,
    /// Take the newest versions, whatever the lock has.
    pub update: bool,
    /// What holds the steps to their limits.
    pub resources: Resources,
}

/// Builds `definition`, unless that is what is there already.
///
/// # Errors
/// The old image and the old lock stay as they are, whatever fails.
pub fn build(
    writer: &Writer<'_>,
    definition: &Definition,
    choice: Choice,
    watch: &Watch<'_>,
) -> Result<Built, BuildError> {
    let progress = watch.progress;
    let locked = lock_directory(writer, definition);
    let pins = if choice.update { None } else { Lock::read(&locked)? };
    let (base, made_of) = base(writer, definition, pins.as_ref(), watch)?;
    let recipe = |lock: &Lock| recipe(definition, base.as_ref(), lock);
    if !choice.force && pins.as_ref().is_some_and(|lock| is_built(writer, definition, &recipe(lock))) {
        return Ok(Built::Unchanged);
    }
    let staging = writer.stage()?;
    let root = staging.path().join("root");
    std::fs::create_dir(&root).map_err(BuildError::Start)?;
    let mut builder = start(&order(definition, base.as_ref(), root, pins.clone(), choice.resources))?;
    let (Some(archive), Some(talk)) = (builder.stdout.take(), builder.stderr.take()) else {
        return Err(BuildError::Start(io::ErrorKind::BrokenPipe.into()));
    };
    let unpacking = |bytes| progress(&format!("unpacking, {} MiB", bytes >> 20));
    writer.make(&unpacking, |place| {
        let (unpacked, heard) = std::thread::scope(|scope| {
            let listener = scope.spawn(|| listen(talk, progress));
            let unpacked = tree::unpack(Ended { archive, builder: &mut builder, stopped: Some(watch.stopped) }, place);
            let _ = builder.kill();
            let _ = builder.wait();
            (unpacked, listener.join().unwrap_or_default())
        });
        let unpacked = match (unpacked, heard.failed) {
            // Its own words say more than the archive that ended early.
            (_, Some(failed)) => return Err(BuildError::Failed(failed)),
            (unpacked, None) => unpacked.map_err(StoreError::from)?,
        };
        let lock = Lock { base: made_of, ..heard.took.unwrap_or_default() };
        if pins.as_ref() != Some(&lock) {
            lock.write(&locked)?;
        }
        Ok((image(definition, unpacked, &lock, recipe(&lock)), Some(lock)))
    })?;
    Ok(Built::New)
}

/// Where the lock is: beside the definition, or in the store if the definition is the package manager's.
fn lock_directory(writer: &Writer<'_>, definition: &Definition) -> PathBuf {
    if definition.is_packaged() { writer.store().locks(&definition.name) } else { definition.directory.clone() }
}

/// The image that `definition` starts from, held, and the manifest it was made of if it is one of another tool: that one is
/// imported under a name of its own.
fn base(
    writer: &Writer<'_>,
    definition: &Definition,
    pins: Option<&Lock>,
    watch: &Watch<'_>,
) -> Result<(Option<InUse>, Option<Digest>), BuildError> {
    let store = writer.store();
    let source = match &definition.base {
        Base::Debian(_) | Base::Scratch => return Ok((None, None)),
        Base::Image(name) => return Ok((Some(store.hold(&store.image(name)?.digest)?), None)),
        Base::Oci(source) => source,
    };
    let beside = definition.directory.join(source);
    let found = if beside.exists() { beside.to_string_lossy().into_owned() } else { source.clone() };
    let name = ImageName::parse(&format!("{}.base", definition.name))
        .map_err(|refusal| BuildError::Failed(refusal.to_string()))?;
    let source_of = Source::parse(&found).map_err(BuildError::Base)?;
    let request = Request { source: source_of, name, tag: None, workdir: None, plain_http: false, login: None };
    let imported = import(writer, request, watch).map_err(BuildError::Base)?;
    if pins.is_some_and(|pins| pins.base.as_ref().is_some_and(|pinned| *pinned != imported.manifest)) {
        return Err(BuildError::OtherBase(source.clone()));
    }
    Ok((Some(store.hold(&imported.image.digest)?), Some(imported.manifest)))
}

fn image(definition: &Definition, unpacked: Unpacked, lock: &Lock, recipe: Digest) -> Image {
    let Unpacked { digest: tree, size, packages } = unpacked;
    // Two images may have the same files, and the same files another environment: what is told counts too.
    let digest = Digest::new(Sha256::digest(format!("{tree} {}", definition.digest())).into());
    let versions = versions(definition, &packages, lock);
    Image {
        name: definition.name.clone(),
        digest,
        description: definition.description.clone(),
        path: definition.path.clone(),
        env: definition.env(),
        workdir: definition.workdir.clone(),
        user: definition.user,
        limits: definition.limits(),
        language: definition.language.clone(),
        prepare: definition.prepare.clone(),
        root: Root::Tree(Contents { definition: recipe, size, versions, packages }),
    }
}

/// The version of each package that the definition asks for, as far as somebody said it.
fn versions(definition: &Definition, debian: &BTreeMap<String, String>, lock: &Lock) -> BTreeMap<String, String> {
    let others = sbom::packages(lock).unwrap_or_default();
    // PyPI and crates.io take names in another case, and with other dashes.
    let plain = |name: &str| name.to_ascii_lowercase().replace(['_', '.'], "-");
    let other = |name: &str| {
        let version = others.iter().find(|package| plain(&package.name) == plain(name))?.version.clone();
        Some((name.to_owned(), version))
    };
    let debian = definition.packages.iter().filter_map(|package| debian.get_key_value(package.as_str()));
    let debian = debian.map(|(name, version)| (name.clone(), version.clone()));
    let Additions { pip, npm, cargo, .. } = &definition.additions;
    let pip = pip.iter().filter_map(|package| other(package.name()));
    let npm = npm.iter().filter_map(|package| other(&package.name_and_range().0));
    let cargo = cargo.keys().filter_map(|name| other(name.as_str()));
    debian.chain(pip).chain(npm).chain(cargo).collect()
}

/// Over everything that an image is made of.
fn recipe(definition: &Definition, base: Option<&InUse>, lock: &Lock) -> Digest {
    let base = base.map(|base| base.image.digest.to_string()).unwrap_or_default();
    Digest::new(Sha256::digest(format!("{} {base} {}", definition.digest(), lock.digest())).into())
}

fn order(
    definition: &Definition,
    base: Option<&InUse>,
    root: PathBuf,
    pins: Option<Lock>,
    resources: Resources,
) -> Order {
    let start = match (&definition.base, base) {
        (Base::Debian(suite), _) => Start::Debian { suite: suite.clone(), packages: definition.debian_packages() },
        (_, Some(base)) => Start::Tree(base.rootfs.clone()),
        (_, None) => Start::Scratch,
    };
    Order {
        root,
        start,
        additions: definition.additions.clone(),
        path: definition.path.clone(),
        env: definition.env(),
        pins,
        resources,
    }
}

fn start(order: &Order) -> Result<Child, BuildError> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("builder").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut builder = command.spawn().map_err(BuildError::Start)?;
    let text = serde_json::to_vec(order).map_err(|error| BuildError::Start(error.into()))?;
    // What it does not take shows in what it says.
    let _ = builder.stdin.take().map(|mut stdin| stdin.write_all(&text));
    Ok(builder)
}

/// The archive of a builder that also has to end well: an archive that it gave up half-way is none.
struct Ended<'a, R> {
    archive: R,
    builder: &'a mut Child,
    /// Asked as long as the builder was not told to stop.
    stopped: Option<&'a (dyn Fn() -> bool + Sync)>,
}

impl<R: AsFd> Ended<'_, R> {
    /// Waits for the archive; a builder that is to stop is told so, once, and then ends it.
    fn wait(&mut self) -> io::Result<()> {
        const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
        loop {
            if self.stopped.is_some_and(|stopped| stopped()) {
                self.stopped = None;
                rustix::process::kill_process(Pid::from_child(self.builder), Signal::TERM)?;
            }
            let timeout = self.stopped.map(|_| LOOK);
            match poll(&mut [PollFd::new(&self.archive, PollFlags::IN)], timeout.as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                done => return done.map(|_| ()).map_err(io::Error::from),
            }
        }
    }
}

impl<R: Read + AsFd> Read for Ended<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait()?;
        match self.archive.read(buffer)? {
            0 if buffer.is_empty() => Ok(0),
            0 if self.builder.wait()?.success() => Ok(0),
            0 => Err(io::Error::other("the builder ended early")),
            length => Ok(length),
        }
    }
}

#[derive(Default)]
struct Heard {
    took: Option<Lock>,
    failed: Option<String>,
}

/// Passes on what the builder says it does. What is no event of its is the last words of one that broke down.
fn listen(talk: impl Read, progress: &(dyn Fn(&str) + Sync)) -> Heard {
    let mut heard = Heard::default();
    for line in BufReader::new(talk).lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Event::Doing(step)) => progress(&step),
            Ok(Event::Took(lock)) => heard.took = Some(*lock),
            Ok(Event::Failed(reason)) => heard.failed = Some(reason),
            Err(_) => heard.failed = Some(heard.failed.unwrap_or(line)),
        }
    }
    heard
}

/// Whether the image that is there was built by this recipe.
fn is_built(writer: &Writer<'_>, definition: &Definition, recipe: &Digest) -> bool {
    let image = writer.store().image(&definition.name);
    image.is_ok_and(|image| matches!(image.root, Root::Tree(contents) if contents.definition == *recipe))
}
