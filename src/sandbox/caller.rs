//! Whoever ordered a task, and may have more to say while it runs.

use std::io;
use std::os::fd::BorrowedFd;

use crate::task::{Figures, Word};

pub trait Caller {
    /// Readable when there is something to hear.
    fn socket(&self) -> BorrowedFd<'_>;

    /// Whether a task that could start now is to. May wait for that.
    ///
    /// # Errors
    /// When whoever ordered it cannot be asked.
    fn may_start(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    /// What was said, once [`socket`](Self::socket) is readable.
    fn hear(&mut self) -> Word {
        Word::Cancel
    }

    /// Whether it wants to be told what the task uses while it runs.
    fn wants_figures(&self) -> bool {
        false
    }

    fn tell(&mut self, _figures: Figures) {}
}

/// One who can only cancel, by making it readable.
impl Caller for BorrowedFd<'_> {
    fn socket(&self) -> BorrowedFd<'_> {
        *self
    }
}
