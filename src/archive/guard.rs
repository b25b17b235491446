//! A reader that fails once it has read more than it was allowed to. The crates that parse an archive hold headers in
//! memory, and follow them for as long as there are any: this is what bounds them.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};

/// How much may be read until more is allowed.
pub struct Allowance {
    left: Cell<u64>,
    /// Said when it is used up.
    refusal: &'static str,
    ended: Cell<bool>,
}

impl Allowance {
    pub fn new(bytes: u64, refusal: &'static str) -> Self {
        Self { left: Cell::new(bytes), refusal, ended: Cell::new(false) }
    }

    pub fn set(&self, bytes: u64) {
        self.left.set(bytes);
    }

    /// Whether the source was read to its end.
    pub fn ended(&self) -> bool {
        self.ended.get()
    }

    fn take(&self, length: u64) -> io::Result<()> {
        let left = self.left.get().checked_sub(length);
        self.left.set(left.unwrap_or(0));
        left.map(|_| ()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, self.refusal))
    }
}

pub struct Guarded<'a, R> {
    source: R,
    allowance: &'a Allowance,
}

impl<'a, R> Guarded<'a, R> {
    pub fn new(source: R, allowance: &'a Allowance) -> Self {
        Self { source, allowance }
    }
}

impl<R: Read> Read for Guarded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        if length == 0 && !buffer.is_empty() {
            self.allowance.ended.set(true);
        }
        self.allowance.take(length as u64)?;
        Ok(length)
    }
}

impl<R: Seek> Seek for Guarded<'_, R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.source.seek(position)
    }
}
