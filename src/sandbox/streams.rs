//! What moves between a task's standard descriptors and others while it runs. Nothing here blocks: who is slow is waited for
//! by the watch's poll, with everything else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags};

use crate::artifact::{Artifact, Spool, read_only};

const CHUNK: usize = 64 << 10;

/// What takes the place of a task's standard descriptors.
#[derive(Default)]
pub struct Links {
    pub stdin: Option<Inlet>,
    /// For stdout and stderr.
    pub outputs: [Option<Outlet>; 2],
}

/// Where standard input comes from, if it is no artifact.
pub enum Inlet {
    /// The end of a pipe, for the task itself.
    Pipe(OwnedFd),
    /// Somebody's stream that is read as the task reads: it is never given to the task.
    Stream(OwnedFd),
}

/// A pipe to another task.
pub struct Outlet {
    pub pipe: OwnedFd,
    /// What passes is kept, too.
    pub record: bool,
}

/// Fills a pipe from a stream, as fast as it is emptied.
pub struct Feed {
    stream: File,
    /// Non-blocking. None when the stream has ended, or nobody reads any more.
    pipe: Option<File>,
    pending: Pending,
}

/// A recorded stream on its way to another task.
pub struct Forward {
    pipe: Option<File>,
    pending: Pending,
}

/// Bytes that were read and not yet written.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    written: usize,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Writes what the pipe takes.
    ///
    /// # Errors
    /// When nobody reads any more.
    fn write(&mut self, mut pipe: &File) -> io::Result<()> {
        while !self.is_empty() {
            match pipe.write(&self.bytes[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Feed {
    pub fn new(stream: OwnedFd, pipe: File) -> Self {
        Self { stream: stream.into(), pipe: Some(pipe), pending: Pending::default() }
    }

    /// What to wait for: room in the pipe if there is something to write, else the stream.
    pub fn wants(&self) -> Option<PollFd<'_>> {
        let pipe = self.pipe.as_ref()?;
        Some(match self.pending.is_empty() {
            true => PollFd::new(&self.stream, PollFlags::IN),
            false => PollFd::new(pipe, PollFlags::OUT),
        })
    }

    /// After that came.
    pub fn go_on(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        if self.pending.is_empty() {
            let mut bytes = std::mem::take(&mut self.pending.bytes);
            bytes.resize(CHUNK, 0);
            match self.stream.read(&mut bytes) {
                Ok(length @ 1..) => bytes.truncate(length),
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                    bytes.clear();
                }
                // At its end, or as good as.
                Ok(_) | Err(_) => return self.pipe = None,
            }
            self.pending = Pending { bytes, written: 0 };
        }
        // A task that reads no more is none the worse for it.
        if self.pending.write(pipe).is_err() {
            self.pipe = None;
        }
    }
}

impl Forward {
    /// # Errors
    /// When the pipe cannot be made non-blocking.
    pub fn new(pipe: OwnedFd) -> io::Result<Self> {
        // This end is open in this process alone, so that the flag is nobody else's.
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self { pipe: Some(pipe.into()), pending: Pending::default() })
    }

    /// Whether it has room: else nothing more is to be read from the task.
    pub fn is_free(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether the other task reads.
    pub fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    pub fn wants(&self) -> Option<PollFd<'_>> {
        let pipe = self.pipe.as_ref()?;
        // Without anything to write it tells that nobody reads any more.
        Some(PollFd::new(pipe, if self.pending.is_empty() { PollFlags::empty() } else { PollFlags::OUT }))
    }

    /// Passes on what was read; only when it is free.
    pub fn pass(&mut self, bytes: &[u8]) {
        self.pending = Pending { bytes: bytes.to_vec(), written: 0 };
        self.go_on();
    }

    pub fn go_on(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        let nobody_reads = || {
            let mut fds = [PollFd::new(pipe, PollFlags::empty())];
            let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
        };
        if self.pending.write(pipe).is_err() || (self.pending.is_empty() && nobody_reads()) {
            self.pipe = None;
            self.pending = Pending::default();
        }
    }
}

/// A file for a task's standard input with these bytes, at its start.
///
/// # Errors
/// When the spool has no room for what is not a file by itself.
pub fn input_file(artifact: &Artifact, spool: &Spool) -> io::Result<File> {
    let whole = match artifact {
        Artifact::File(slice) if slice.offset == 0 && slice.file.metadata()?.len() == slice.size => slice.file.clone(),
        part => match spool.keep(part.reader())? {
            Artifact::File(slice) => slice.file,
            Artifact::Bytes(_) => return Err(io::ErrorKind::InvalidData.into()),
        },
    };
    read_only(&*whole)
}

/// All that a task writes to one of its streams, beyond what is kept in memory.
pub struct Whole {
    file: File,
    size: u64,
    most: u64,
}

impl Whole {
    /// # Errors
    /// When the spool is full.
    pub fn new(spool: &Spool, most: u64) -> io::Result<Self> {
        Ok(Self { file: spool.file()?, size: 0, most })
    }

    /// # Errors
    /// ENOSPC when the spool is full, EFBIG when it is more than a step may hand on.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.size += bytes.len() as u64;
        if self.size > self.most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.file.write_all(bytes)
    }

    /// # Errors
    /// open(2)'s.
    pub fn finish(self) -> io::Result<Artifact> {
        Artifact::whole(std::sync::Arc::new(read_only(&self.file)?))
    }
}
