//! OCI image layouts (image-spec, image-layout.md): a directory, or the same in a tar archive; and the older archives of
//! `docker save`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tar::EntryType;

use super::blob::{Blob, Packing, Watched, unpacked};
use super::manifest::{Blobs, Document, read_all};
use super::{OciError, at};
use crate::image::Watch;
use crate::image::tree::{self, TooLarge, Used};

/// The list of images in a layout, and in an archive of `docker save`.
const INDEX: &str = "index.json";
const DOCKER_MANIFEST: &str = "manifest.json";

/// The files of a layout, wherever they are.
pub struct Layout {
    path: PathBuf,
    files: Files,
}

enum Files {
    Directory,
    Archive { file: RefCell<File>, index: BTreeMap<PathBuf, Place> },
}

/// An entry of an archive.
enum Place {
    At {
        start: u64,
        size: u64,
    },
    /// `docker save` writes a layer once and links to it.
    Link(PathBuf),
}

impl Layout {
    pub fn directory(path: &Path) -> Self {
        Self { path: path.to_owned(), files: Files::Directory }
    }

    /// Reads what is where in the archive at `path`; one that is packed is unpacked in `scratch` first.
    pub fn archive(path: &Path, scratch: &Path, watch: &Watch<'_>) -> Result<Self, OciError> {
        let io = at("read", path);
        let mut file = File::open(path).map_err(&io)?;
        if !file.metadata().map_err(&io)?.is_file() {
            return Err(OciError::NotAnImage(path.to_owned()));
        }
        let mut start = [0; 6];
        let length = file.read(&mut start).map_err(&io)?;
        file.seek(SeekFrom::Start(0)).map_err(&io)?;
        if Packing::of(&start[..length]) != Packing::None {
            file = unpacked_in(scratch, Watched { content: file, watch }).map_err(&io)?;
        }
        let index = index(&file, watch).map_err(&io)?;
        Ok(Self { path: path.to_owned(), files: Files::Archive { file: file.into(), index } })
    }

    fn open(&self, name: &Path) -> io::Result<Box<dyn Read + '_>> {
        match &self.files {
            Files::Directory => Ok(Box::new(tree::file_in(&self.path, name)?)),
            Files::Archive { file, index } => {
                let mut place = index.get(name);
                if let Some(Place::Link(target)) = place {
                    place = index.get(target);
                }
                let Some(Place::At { start, size }) = place else {
                    return Err(io::Error::new(io::ErrorKind::NotFound, "the archive has no such file"));
                };
                Ok(Box::new(Part { file, at: *start, left: *size }))
            }
        }
    }

    fn json(&self, name: &str) -> Result<Option<Vec<u8>>, OciError> {
        match self.open(Path::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            content => read_all(content.map_err(at("read", &self.path.join(name)))?, name).map(Some),
        }
    }
}

impl Blobs for Layout {
    fn first(&self) -> Result<Document, OciError> {
        if let Some(text) = self.json(INDEX)? {
            return Ok(Document::Oci(text));
        }
        let Some(text) = self.json(DOCKER_MANIFEST)? else { return Err(OciError::NotAnImage(self.path.clone())) };
        let images: Vec<Saved> =
            serde_json::from_slice(&text).map_err(|source| OciError::Json { name: DOCKER_MANIFEST.into(), source })?;
        Ok(Document::Docker(images))
    }

    fn manifest(&self, blob: &Blob) -> Result<Vec<u8>, OciError> {
        read_all(self.blob(blob)?, &blob.name)
    }

    fn blob(&self, blob: &Blob) -> Result<Box<dyn Read + '_>, OciError> {
        let name = match blob.size {
            // `sha256:…`, and nothing else: it was parsed.
            Some(_) => Path::new("blobs").join(blob.name.replacen(':', "/", 1)),
            None => tree::normal(Path::new(&blob.name))?,
        };
        let content = self.open(&name).map_err(at("read", &self.path.join(&name)))?;
        Ok(Box::new(blob.verified(content)))
    }
}

/// An image in the manifest.json of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Saved {
    pub config: String,
    pub repo_tags: Option<Vec<String>>,
    pub layers: Vec<String>,
}

/// A part of a file that others read from too.
struct Part<'a> {
    file: &'a RefCell<File>,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let mut file = self.file.borrow_mut();
        file.seek(SeekFrom::Start(self.at))?;
        let length = file.read(&mut buffer[..most])?;
        if length == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}

/// What is where: an archive of images holds few files.
fn index(file: &File, watch: &Watch<'_>) -> io::Result<BTreeMap<PathBuf, Place>> {
    let mut index = BTreeMap::new();
    let mut used = Used::default();
    let (guarded, allowance) = used.guard(Watched { content: file, watch });
    let mut archive = tar::Archive::new(guarded);
    let mut entries = archive.entries_with_seek()?;
    loop {
        allowance.headers();
        let Some(entry) = entries.next() else { return Ok(index) };
        let entry = entry?;
        let large = |large: TooLarge| io::Error::other(format!("it holds more than an image may: {}", large.0));
        used.name(entry.path_bytes().len()).map_err(large)?;
        let Ok(path) = tree::normal(&entry.path()?) else { continue };
        let link = entry.link_name()?.map(|link| link.into_owned());
        let place = match (entry.header().entry_type(), link) {
            (EntryType::Regular, _) => Place::At { start: entry.raw_file_position(), size: entry.size() },
            (EntryType::Symlink | EntryType::Link, Some(link)) => match beside(&path, &link) {
                Some(target) => Place::Link(target),
                None => continue,
            },
            _ => continue,
        };
        used.hold(&path).map_err(large)?;
        if let Place::Link(target) = &place {
            used.hold(target).map_err(large)?;
        }
        index.insert(path, place);
    }
}

/// What a link `../other/layer.tar` of `path` names: one step up at most, which is all that is ever written.
fn beside(path: &Path, link: &Path) -> Option<PathBuf> {
    let directory = path.parent()?;
    match link.strip_prefix("..") {
        Ok(below) => tree::normal(&directory.parent()?.join(below)).ok(),
        Err(_) => tree::normal(&directory.join(link)).ok(),
    }
}

fn unpacked_in(scratch: &Path, packed: impl Read) -> io::Result<File> {
    let mut file = tempfile::tempfile_in(scratch)?;
    let mut content = unpacked(packed)?.take(tree::BYTES + 1);
    if io::copy(&mut content, &mut file)? > tree::BYTES {
        return Err(io::Error::other("it is larger than any image"));
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_names_what_is_beside_it() {
        let target = |path: &str, link: &str| beside(Path::new(path), Path::new(link));
        assert_eq!(target("a/layer.tar", "../b/layer.tar"), Some("b/layer.tar".into()));
        assert_eq!(target("a/layer.tar", "../b.tar"), Some("b.tar".into()));
        assert_eq!(target("a", "b"), Some("b".into()));
        assert_eq!([target("a", "../b"), target("a/b", "../../c"), target("a/b", "x/../../../c")], [None, None, None]);
    }
}
