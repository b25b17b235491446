//! Bytes on their way from one process of Faber's to another: small ones as they are, large ones as a part of a file in a
//! tmpfs of Faber's own, handed on by its descriptor. They never pass through JSON, nor through the front's memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use serde::{Deserialize, Serialize};

/// What is not larger travels in the message itself: a file costs more.
pub const INLINE: u64 = 64 << 10;

/// Bytes that a step takes or leaves.
#[derive(Debug, Clone)]
pub enum Artifact {
    Bytes(Bytes),
    File(Slice),
}

/// A part of a file that never changes.
#[derive(Debug, Clone)]
pub struct Slice {
    pub file: Arc<File>,
    pub offset: u64,
    pub size: u64,
}

/// An artifact in a message: itself, or which of the message's descriptors has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Data {
    Bytes(#[serde(with = "serde_bytes")] Vec<u8>),
    File { index: u32, offset: u64, size: u64 },
}

impl Artifact {
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(slice) => slice.size,
        }
    }

    /// All of a file.
    ///
    /// # Errors
    /// fstat(2)'s.
    pub fn whole(file: Arc<File>) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self::File(Slice { file, offset: 0, size }))
    }

    /// A reader with a position of its own.
    pub fn reader(&self) -> Reader {
        Reader { artifact: self.clone(), at: 0 }
    }

    /// The bytes, which the caller knows to fit into memory.
    ///
    /// # Errors
    /// pread(2)'s.
    pub fn read(&self) -> io::Result<Bytes> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::File(slice) => {
                let mut bytes = vec![0; usize::try_from(slice.size).map_err(io::Error::other)?];
                slice.file.read_exact_at(&mut bytes, slice.offset)?;
                Ok(bytes.into())
            }
        }
    }
}

impl From<Vec<u8>> for Artifact {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// Reads an artifact.
pub struct Reader {
    artifact: Artifact,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.artifact.size().saturating_sub(self.at);
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..length];
        let read = match &self.artifact {
            Artifact::Bytes(bytes) => {
                let start = self.at as usize;
                buffer.copy_from_slice(&bytes[start..start + length]);
                length
            }
            Artifact::File(slice) => slice.file.read_at(buffer, slice.offset + self.at)?,
        };
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let size = self.artifact.size();
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        // Beyond the end there is nothing to read.
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?.min(size);
        Ok(self.at)
    }
}

/// Gathers the descriptors of one message.
#[derive(Default)]
pub struct Packing {
    files: Vec<Arc<File>>,
}

impl Packing {
    pub fn pack(&mut self, artifact: Artifact) -> Data {
        match artifact {
            Artifact::Bytes(bytes) => Data::Bytes(bytes.into()),
            Artifact::File(Slice { file, offset, size }) => {
                let known = self.files.iter().position(|known| Arc::ptr_eq(known, &file));
                let index = known.unwrap_or_else(|| {
                    self.files.push(file);
                    self.files.len() - 1
                });
                Data::File { index: index as u32, offset, size }
            }
        }
    }

    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.files.iter().map(|file| file.as_fd()).collect()
    }
}

/// The descriptors that came with a message.
pub struct Packed(Vec<Arc<File>>);

impl Packed {
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(|fd| Arc::new(File::from(fd))).collect())
    }

    /// # Errors
    /// `InvalidData` when it is none of these.
    pub fn unpack(&self, data: Data) -> io::Result<Artifact> {
        Ok(match data {
            Data::Bytes(bytes) => bytes.into(),
            Data::File { index, offset, size } => {
                let file = self.0.get(index as usize).ok_or(io::ErrorKind::InvalidData)?.clone();
                Artifact::File(Slice { file, offset, size })
            }
        })
    }
}

/// A tmpfs of Faber's own that is mounted nowhere: it goes with the last descriptor that leads to it, so nothing of it can be
/// left, and its size bounds what all steps together hand on. (fsopen(2), fsmount(2), tmpfs(5))
pub struct Spool(OwnedFd);

impl Spool {
    /// # Errors
    /// Those of the three calls.
    pub fn create(bytes: u64) -> io::Result<Self> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "size", bytes.to_string())?;
        // Whoever has the descriptor may make files in it: Faber's own processes, never a task.
        fsconfig_set_string(context.as_fd(), "mode", "1777")?;
        fsconfig_create(context.as_fd())?;
        let attributes =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        Ok(Self(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?))
    }

    /// A file without a name. What may still read it by then may only read it.
    ///
    /// # Errors
    /// open(2)'s: ENOSPC when the spool is full.
    pub fn file(&self) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(openat(&self.0, ".", flags, Mode::from_raw_mode(0o444))?.into())
    }

    /// Keeps these bytes.
    ///
    /// # Errors
    /// ENOSPC when the spool is full.
    pub fn keep(&self, mut bytes: impl Read) -> io::Result<Artifact> {
        let mut file = self.file()?;
        io::copy(&mut bytes, &mut file)?;
        file.flush()?;
        Artifact::whole(Arc::new(read_only(&file)?))
    }
}

impl Spool {
    /// The same bytes in a file, if they are many: they then go to a runner by descriptor, and are not copied with every message.
    /// As long as there is room; without it they go as they are.
    pub fn take_large(&self, artifact: Artifact) -> Artifact {
        match artifact {
            Artifact::Bytes(bytes) if bytes.len() as u64 > INLINE => {
                self.keep(&bytes[..]).unwrap_or(Artifact::Bytes(bytes))
            }
            other => other,
        }
    }
}

impl AsFd for Spool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Spool {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

/// The same file opened anew, to be read, with a position of its own.
///
/// # Errors
/// open(2)'s.
pub fn read_only(file: impl AsFd) -> io::Result<File> {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_file_is_read_from_its_start_whoever_reads_it_too() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let part = Artifact::File(Slice { file: Arc::new(file), offset: 2, size: 5 });
        let (mut one, mut other) = (part.reader(), part.reader());
        let mut text = String::new();
        one.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), &part.read().unwrap()[..]), ("23456", &b"23456"[..]));
        other.seek(SeekFrom::End(-2)).unwrap();
        let mut rest = Vec::new();
        other.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"56");
    }

    #[test]
    fn a_message_names_each_file_once() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let slice = |offset| Artifact::File(Slice { file: file.clone(), offset, size: 1 });
        let mut packing = Packing::default();
        let all: Vec<Data> =
            [slice(0), b"x".to_vec().into(), slice(1)].into_iter().map(|part| packing.pack(part)).collect();
        assert_eq!(packing.fds().len(), 1);
        let packed = Packed::new(packing.fds().iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect());
        let sizes: Vec<u64> = all.into_iter().map(|data| packed.unpack(data).unwrap().size()).collect();
        assert_eq!(sizes, [1, 1, 1]);
        assert!(packed.unpack(Data::File { index: 1, offset: 0, size: 0 }).is_err());
    }
}
