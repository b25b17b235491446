//! An image as other tools take it: an OCI archive with one layer.
//!
//! The same image is the same bytes: entries are in the order of their names, and nothing says when it was made.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::OFlags;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};
use tempfile::NamedTempFile;

use super::blob::Watched;
use super::choose;
use crate::image::Watch;
use crate::image::tree;
use crate::image::{Image, InUse, Store, StoreError, WORKSPACE};
use crate::task::{Digest, ImageName};

const BLOCK: u64 = 512;
/// What needs a time has this one.
const EPOCH: &str = "1970-01-01T00:00:00Z";

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the image host is this machine's own files: there is nothing to export")]
    Host,
    #[error("{step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("interrupted")]
    Interrupted,
}

type Result<T> = std::result::Result<T, ExportError>;

fn at(step: &'static str, path: &Path) -> impl Fn(io::Error) -> ExportError {
    move |source| ExportError::Io { step, path: path.to_owned(), source }
}

/// What an export made.
#[derive(Debug)]
pub struct Exported {
    /// Bytes of the archive.
    pub size: u64,
    /// The manifest's digest, by which registries know the image.
    pub digest: Digest,
}

/// Writes the image `name` to `file`, which is there whole or not at all.
///
/// # Errors
/// When there is no such image, or it cannot be read or written.
pub fn export(store: &Store, name: &ImageName, file: &Path, watch: &Watch<'_>) -> Result<Exported> {
    if *name == Image::host().name {
        return Err(ExportError::Host);
    }
    let held = store.hold(&store.image(name)?.digest)?;
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staged = NamedTempFile::new_in(directory).map_err(at("create a file in", directory))?;
    let digest = write(staged.as_file(), &held, watch).map_err(|error| match (watch.stopped)() {
        true => ExportError::Interrupted,
        false => at("write", file)(error),
    })?;
    staged.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(at("set the mode of", file))?;
    let size = staged.as_file().metadata().map_err(at("look at", file))?.len();
    staged.persist(file).map_err(|error| at("write", file)(error.error))?;
    Ok(Exported { size, digest })
}

/// The layer comes first: its name is its digest, so the header before it is written when all of it is there.
fn write(mut file: &File, held: &InUse, watch: &Watch<'_>) -> io::Result<Digest> {
    file.seek(SeekFrom::Start(BLOCK))?;
    let layer = layer(file, held, watch)?;
    let end = BLOCK + layer.size;
    file.write_all(&vec![0; (end.next_multiple_of(BLOCK) - end) as usize])?;
    let end = file.stream_position()?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(header(&blob_path(&layer.digest), layer.size)?.as_bytes())?;
    file.seek(SeekFrom::Start(end))?;

    let mut archive = tar::Builder::new(BufWriter::new(file));
    let mut add = |name: &Path, content: &[u8]| archive.append(&header(name, content.len() as u64)?, content);
    let config = json(&config(held, &layer.content))?;
    let manifest = json(&manifest(&held.image, &config, &layer))?;
    let digest = digest(&manifest);
    let index = json(&index(&held.image, &manifest))?;
    add(&blob_path(&self::digest(&config)), &config)?;
    add(&blob_path(&digest), &manifest)?;
    add(Path::new("index.json"), &index)?;
    add(Path::new("oci-layout"), &json(&json!({ "imageLayoutVersion": "1.0.0" }))?)?;
    archive.into_inner()?.flush()?;
    Ok(digest)
}

struct Layer {
    /// Of the layer as it is packed.
    digest: Digest,
    size: u64,
    /// Of what it holds: the diff id.
    content: Digest,
}

fn layer(file: &File, held: &InUse, watch: &Watch<'_>) -> io::Result<Layer> {
    let packed = Counted::new(BufWriter::new(file));
    let archive = tar::Builder::new(Counted::new(GzEncoder::new(packed, Compression::default())));
    let root = held.root()?;
    let mut packing = Packing { archive, image: &held.image, size: 0, watch };
    packing.entries(&root, Path::new(""))?;
    let (content, gzip, _) = packing.archive.into_inner()?.end();
    let (digest, mut written, size) = gzip.finish()?.end();
    written.flush()?;
    Ok(Layer { digest, size, content })
}

/// A tree on its way into an archive. Each name is opened in its directory and not followed: what is exported is below the
/// tree's root, whatever is linked to.
struct Packing<'a, W: Write> {
    archive: tar::Builder<W>,
    image: &'a Image,
    /// Bytes of files so far.
    size: u64,
    watch: &'a Watch<'a>,
}

impl<W: Write> Packing<'_, W> {
    /// What is in the directory `path`, in the order of the names.
    fn entries(&mut self, directory: &OwnedFd, path: &Path) -> io::Result<()> {
        let mut names = tree::names_in(directory)?;
        names.sort_by(|one, other| one.as_os_str().as_bytes().cmp(other.as_os_str().as_bytes()));
        names.iter().try_for_each(|name| self.entry(directory, name, &path.join(name)))
    }

    fn entry(&mut self, parent: &OwnedFd, name: &Path, path: &Path) -> io::Result<()> {
        if (self.watch.stopped)() {
            return Err(io::Error::other("interrupted"));
        }
        // The kind that it was opened as, not one that was looked at before.
        let entry = File::from(tree::open_below(parent, name, OFlags::PATH | OFlags::NOFOLLOW)?);
        let meta = entry.metadata()?;
        let mut header = Header::new_gnu();
        header.set_mode(meta.mode() & 0o7777);
        header.set_uid(meta.uid().into());
        header.set_gid(meta.gid().into());
        header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
        header.set_size(0);
        if meta.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = rustix::fs::readlinkat(&entry, "", Vec::new())?;
            return self.archive.append_link(&mut header, path, OsStr::from_bytes(target.as_bytes()));
        }
        if meta.is_dir() {
            header.set_entry_type(EntryType::Directory);
            writable(&mut header, path, self.image);
            self.archive.append_data(&mut header, path.join(""), io::empty())?;
            let directory = tree::open_below(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
            return self.entries(&directory, path);
        }
        if !meta.is_file() {
            return Err(io::Error::other(format!("{} is no file, no directory and no link", path.display())));
        }
        let content = File::from(tree::open_below(parent, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)?);
        header.set_size(meta.len());
        self.size += meta.len();
        (self.watch.progress)(&format!("packing, {} MiB", self.size >> 20));
        // Not more than was promised, even if the file grows: what would be less is an error of the reader's.
        let content = Watched { content, watch: self.watch }.take(meta.len());
        self.archive.append_data(&mut header, path, content)
    }
}

/// Faber mounts something on these, or has cut what they let others do; elsewhere they are what they seem.
fn writable(header: &mut Header, path: &Path, image: &Image) {
    if ["tmp", "var/tmp"].map(Path::new).contains(&path) {
        header.set_mode(0o1777);
    } else if Path::new("/").join(path) == Path::new(WORKSPACE) {
        header.set_uid(image.user.uid.into());
        header.set_gid(image.user.gid.into());
    }
}

fn config(held: &InUse, diff_id: &Digest) -> Value {
    let Image { name, description, path, env, workdir, user, .. } = &held.image;
    let (os, architecture) = choose::here();
    let env: Vec<String> = std::iter::once(format!("PATH={path}"))
        .chain(env.iter().map(|(name, value)| format!("{name}={value}")))
        .collect();
    json!({
        "created": EPOCH,
        "architecture": architecture,
        "os": os,
        "config": {
            "User": format!("{}:{}", user.uid, user.gid),
            "Env": env,
            "WorkingDir": workdir.as_deref().unwrap_or(WORKSPACE),
            "Labels": { "org.opencontainers.image.title": name, "org.opencontainers.image.description": description },
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created": EPOCH, "created_by": format!("faber image export {name}") }],
    })
}

fn manifest(image: &Image, config: &[u8], layer: &Layer) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &digest(config), config.len() as u64),
        "layers": [descriptor("layer.v1.tar+gzip", &layer.digest, layer.size)],
        "annotations": { "org.opencontainers.image.title": image.name },
    })
}

fn index(image: &Image, manifest: &[u8]) -> Value {
    let mut entry = descriptor("manifest.v1+json", &digest(manifest), manifest.len() as u64);
    entry["annotations"] = json!({ choose::TAG: format!("{}:latest", image.name) });
    json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry] })
}

fn descriptor(kind: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size })
}

fn json(value: &Value) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::new(Sha256::digest(bytes).into())
}

fn blob_path(digest: &Digest) -> PathBuf {
    Path::new("blobs/sha256").join(digest.hex())
}

fn header(name: &Path, size: u64) -> io::Result<Header> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    header.set_mode(0o644);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

/// A writer that knows what went through it.
struct Counted<W> {
    to: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Counted<W> {
    fn new(to: W) -> Self {
        Self { to, hash: Sha256::new(), size: 0 }
    }

    fn end(self) -> (Digest, W, u64) {
        (Digest::new(self.hash.finalize().into()), self.to, self.size)
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.to.write(bytes)?;
        self.hash.update(&bytes[..length]);
        self.size += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
