//! Content becomes bytes at hand: what other steps left, blobs, archives.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Bound, End, Engine, Planned};
use crate::archive::{self, Kind};
use crate::artifact::{Artifact, INLINE, Slice, Spool, read_only};
use crate::blobs::Blobs;
use crate::task::{
    Archive, ArchiveFormat, Content, Digest, FILES, Node, Part, Reference, Status, Stream, Taken, Task, WorkspacePath,
    check_parents,
};

/// Copying or hashing so many bytes more is done beside the front's other work.
pub(super) const LONG_WORK: u64 = 256 << 10;

/// Bytes at hand, or a blob that has yet to be opened.
#[derive(Debug, Clone)]
pub enum Loose {
    Ready(Artifact),
    Blob(Digest),
    /// A file of whoever calls on the command line, copied when it is needed.
    Path(PathBuf),
}

/// An archive whose bytes are looked for.
#[derive(Debug, Clone)]
pub struct LooseArchive {
    pub content: Loose,
    pub format: ArchiveFormat,
    pub below: Option<WorkspacePath>,
}

impl Engine {
    /// A step with what it takes of steps that have ended.
    ///
    /// # Errors
    /// Why it cannot be run.
    pub(super) fn bind(&self, planned: &Planned, ends: &[Option<End>], step: usize) -> Result<Bound, String> {
        let (at, is_compilation) = planned.task_of(step);
        let planned_task = &planned.tasks[at];
        let job = planned_task.job.as_ref().map_err(Clone::clone)?;
        let sources = Sources { planned, ends };
        let archives = |wanted: bool| match wanted {
            true => job.archives.iter().map(|archive| sources.archive(archive)).collect::<Result<Vec<_>, _>>(),
            false => Ok(Vec::new()),
        };
        match (&job.compile, is_compilation) {
            (Some(compile), true) => Ok(Bound {
                task: sources.task((**compile).clone())?,
                archives: archives(true)?,
                cache: planned.session.is_none(),
            }),
            (compile, _) => {
                let mut task = sources.task(job.run.clone())?;
                if compile.is_some() {
                    let number = planned.compilations.iter().position(|&task| task == at).unwrap_or(0);
                    // Whatever else a task may run after, it does not without what it is.
                    let end = ends[planned.tasks.len() + number].as_ref();
                    let end = end.filter(|end| end.status() == Status::Success).and_then(End::finished);
                    let taken = &end.ok_or("compilation failed")?.taken;
                    for (path, node) in all_of(taken)? {
                        task.files.insert(path, node.try_map(|content| Ok::<_, String>(Loose::Ready(content)))?);
                    }
                }
                let archives = archives(compile.is_none())?;
                Ok(Bound { task, archives, cache: planned_task.request.cache && planned.session.is_none() })
            }
        }
    }

    /// Opens the blobs that a task takes, and unpacks its archives.
    ///
    /// # Errors
    /// Why it cannot be run.
    pub(super) async fn fetch(&self, task: Task<Loose>, archives: Vec<LooseArchive>) -> Result<Task<Artifact>, String> {
        let is_ready = |content: &Loose| matches!(content, Loose::Ready(_));
        let size = task.contents().map(Loose::size_at_hand).sum::<u64>();
        if archives.is_empty() && size <= LONG_WORK && task.contents().all(is_ready) {
            return task.try_map(|content| open(content, None).map(|artifact| self.spool.take_large(artifact)));
        }
        let (blobs, spool, bounds) = (self.blobs.clone(), self.spool.clone(), self.archives);
        let work = move || {
            let mut task = task.try_map(|content| open(content, blobs.as_ref()))?;
            let own = std::mem::take(&mut task.files);
            for archive in archives {
                let content = open(archive.content, blobs.as_ref())?;
                unpack(&content, archive.format, archive.below.as_ref(), bounds, &spool, &mut task.files)?;
            }
            // What the task says itself comes after, in the place of what an archive has there.
            for (path, node) in own {
                task.files.insert(path, node);
            }
            check_parents(&task.files).map_err(|refusal| refusal.to_string())?;
            task.try_map(|artifact| Ok(spool.take_large(artifact)))
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err("Faber failed to read its content".into()))
    }

    /// Opens one content.
    ///
    /// # Errors
    /// Why it is not there.
    pub async fn open(&self, content: Loose) -> Result<Artifact, String> {
        let content = match content {
            Loose::Ready(artifact) if artifact.size() <= LONG_WORK => return Ok(self.spool.take_large(artifact)),
            content => content,
        };
        let (blobs, spool) = (self.blobs.clone(), self.spool.clone());
        let work = move || match content {
            Loose::Path(path) => copy(&path, &spool),
            content => open(content, blobs.as_ref()).map(|artifact| spool.take_large(artifact)),
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err("Faber failed to read content".into()))
    }
}

impl Loose {
    /// Bytes that are in memory.
    fn size_at_hand(&self) -> u64 {
        match self {
            Self::Ready(Artifact::Bytes(bytes)) => bytes.len() as u64,
            _ => 0,
        }
    }

    /// The bytes, if they are at hand.
    ///
    /// # Errors
    /// Without a server there are no blobs.
    pub fn ready(self) -> Result<Artifact, String> {
        open(self, None)
    }
}

/// All that a compilation left, as files of another's workspace.
///
/// # Errors
/// When it left more than is handed on.
pub fn all_of(taken: &Taken<Artifact>) -> Result<BTreeMap<WorkspacePath, Node<Artifact>>, String> {
    // Not all that were left out are named.
    if taken.omitted.count > 0 {
        let named = taken.omitted.files.first_key_value().map(|(path, reason)| format!(": {path}: {reason}"));
        return Err(format!("the compilation left more than can be handed on{}", named.unwrap_or_default()));
    }
    let mut files = BTreeMap::new();
    for file in &taken.files {
        let path = WorkspacePath::parse(&file.path).map_err(|error| error.to_string())?;
        files.insert(path, Node::File { content: file.content.clone(), mode: Some(file.mode) });
    }
    Ok(files)
}

/// Where references lead.
struct Sources<'a> {
    planned: &'a Planned,
    ends: &'a [Option<End>],
}

impl Sources<'_> {
    fn task(&self, mut task: Task<Content>) -> Result<Task<Loose>, String> {
        for node in task.files.values_mut() {
            if let Node::File { content: Content::From(reference), mode: mode @ None } = node {
                *mode = self.mode(reference);
            }
        }
        task.try_map(|content| self.content(&content))
    }

    fn archive(&self, archive: &Archive) -> Result<LooseArchive, String> {
        let Archive { content, format, below } = archive;
        Ok(LooseArchive { content: self.content(content)?, format: *format, below: below.clone() })
    }

    fn content(&self, content: &Content) -> Result<Loose, String> {
        match content {
            Content::Bytes(bytes) => Ok(Loose::Ready(Artifact::Bytes(bytes.clone()))),
            Content::Blob(digest) => Ok(Loose::Blob(digest.clone())),
            Content::From(reference) => take(self.planned, self.ends, reference).map(Loose::Ready),
        }
    }

    /// The permissions of what is referred to.
    fn mode(&self, Reference { step, part }: &Reference) -> Option<u32> {
        let Part::File(path) = part else { return None };
        let finished = self.ends[self.planned.plan.find(step)?].as_ref()?.finished()?;
        finished.taken.files.iter().find(|file| file.path == path.as_str()).map(|file| file.mode)
    }
}

/// What a step left.
///
/// # Errors
/// When it did not.
pub(super) fn take(planned: &Planned, ends: &[Option<End>], reference: &Reference) -> Result<Artifact, String> {
    let Reference { step, part } = reference;
    let end = planned.plan.find(step).and_then(|at| ends[at].as_ref());
    let Some(finished) = end.and_then(End::finished) else {
        return Err(format!("{step} did not run, so it left nothing to take"));
    };
    match part {
        Part::File(path) => {
            let file = finished.taken.files.iter().find(|file| file.path == path.as_str());
            let reason = || match finished.taken.omitted.files.get(path.as_str()) {
                Some(reason) => format!("{step} left a file {:?} that is not handed on: {reason}", path.as_str()),
                None => format!("{step} left no file {:?}", path.as_str()),
            };
            file.map(|file| file.content.clone()).ok_or_else(reason)
        }
        Part::Stream(stream) => {
            let name = if *stream == Stream::Stdout { "stdout" } else { "stderr" };
            let whole = finished.taken.streams[*stream as usize].clone();
            whole.ok_or_else(|| format!("the {name} of {step} is not there: it did not run"))
        }
    }
}

fn open(content: Loose, blobs: Option<&Arc<Blobs>>) -> Result<Artifact, String> {
    let digest = match content {
        Loose::Ready(artifact) => return Ok(artifact),
        Loose::Blob(digest) => digest,
        Loose::Path(path) => return Err(format!("{} is nobody's content here", path.display())),
    };
    let missing = || format!("there is no blob {digest}");
    match blobs.ok_or_else(missing)?.get(&digest) {
        Ok(Some((file, size))) => Ok(Artifact::File(Slice { file: Arc::new(file), offset: 0, size })),
        Ok(None) => Err(missing()),
        Err(error) => {
            tracing::error!(error = crate::chain::chain(&error), "a blob cannot be read");
            Err(format!("the blob {digest} cannot be read"))
        }
    }
}

/// A copy of a file: the file itself could be changed meanwhile, or by the task that has it.
fn copy(path: &Path, spool: &Spool) -> Result<Artifact, String> {
    let told = |error: std::io::Error| format!("read {}: {error}", path.display());
    let mut file = std::fs::File::open(path).map_err(told)?;
    let size = file.metadata().map_err(told)?.len();
    if size > INLINE {
        return spool.keep(file).map_err(told);
    }
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(&mut file, INLINE), &mut bytes).map_err(told)?;
    Ok(bytes.into())
}

/// Adds what an archive holds to `files`, as parts of one file in the spool: what is unpacked may be a thousand times what was
/// sent, and is never in the front's memory.
fn unpack(
    archive: &Artifact,
    format: ArchiveFormat,
    below: Option<&WorkspacePath>,
    bounds: archive::Bounds,
    spool: &Spool,
    files: &mut BTreeMap<WorkspacePath, Node<Artifact>>,
) -> Result<(), String> {
    let no_room = |error: std::io::Error| format!("there is no room for an archive's content (outputs.spool): {error}");
    let mut contents = spool.file().map_err(no_room)?;
    let entries = archive::unpack(format, archive.reader(), below, bounds, &mut contents)
        .map_err(|error| format!("archives: {error}"))?;
    let file = Arc::new(read_only(&contents).map_err(no_room)?);
    for archive::Entry { path, kind } in entries {
        let node = match kind {
            Kind::Directory => Node::Directory,
            Kind::Symlink { target } => Node::Symlink(target),
            Kind::File { mode, offset, size } => {
                let content = Artifact::File(Slice { file: file.clone(), offset, size });
                Node::File { content, mode: Some(mode) }
            }
        };
        files.insert(path, node);
    }
    // Each is a message's word.
    let most = bounds.entries + FILES;
    if files.len() > most { Err(format!("archives: more than {most} files")) } else { Ok(()) }
}
