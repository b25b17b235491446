//! The front as the keeper holds it: a child, a socket on which nothing is waited for, and the pings that it answers.
//!
//! A front that does not answer, does not read, closes its socket or speaks out of turn is killed; its end is then learned
//! from SIGCHLD, as that of any front.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::Child;
use super::wire::{self, Message, Word};

/// Between two pings.
const PING: Duration = Duration::from_secs(4);
/// Pings' times without an answer after which a front is given up. Counted, not clocked: what a stop of the whole machine takes
/// is one of them.
const UNANSWERED: u32 = 3;
/// The same until the first answer: there may be much to open.
const UNANSWERED_AT_FIRST: u32 = 15;
/// How long the configuration may take to be sent, which may be longer than a socket holds.
const START_PATIENCE: Duration = Duration::from_secs(2);

pub struct Front {
    child: Child,
    socket: UnixStream,
    started: Instant,
    /// It has said that tasks can be taken.
    is_ready: bool,
    /// Runners that are sessions'.
    pub sessions: usize,
    /// As many as there may be.
    most: usize,
    has_answered: bool,
    /// A ping has no answer yet, for so many pings' times.
    awaited: Option<u32>,
    next_ping: Instant,
    /// It is killed.
    is_over: bool,
}

impl Front {
    /// # Errors
    /// When no process can be started.
    pub fn start(start: &Message, fds: &[BorrowedFd<'_>], most: usize) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let child = Child::start("front", theirs)?;
        let now = Instant::now();
        let mut front = Self {
            child,
            socket,
            started: now,
            is_ready: false,
            sessions: 0,
            most,
            has_answered: false,
            awaited: None,
            // Answered as soon as it serves.
            next_ping: now,
            is_over: false,
        };
        let sent = front
            .socket
            .set_write_timeout(Some(START_PATIENCE))
            .and_then(|()| wire::send(&front.socket, start, fds))
            .and_then(|()| front.socket.set_nonblocking(true));
        front.sent(sent);
        Ok(front)
    }

    /// Sends without waiting: a front that has read nothing of what its socket holds is none.
    pub fn tell(&mut self, message: &Message, fds: &[BorrowedFd<'_>]) {
        if !self.is_over {
            let sent = wire::send(&self.socket, message, fds);
            self.sent(sent);
        }
    }

    fn sent(&mut self, sent: io::Result<()>) {
        match sent {
            Ok(()) => {}
            // Most likely it has ended, which is told by its status.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.kill(),
            Err(error) => self.give_up(&format!("it does not read: {error}")),
        }
    }

    /// Its socket, while it lives.
    pub fn awaited(&self) -> Option<&UnixStream> {
        (!self.is_over).then_some(&self.socket)
    }

    /// Reads what it says. Whether it says for the first time that tasks can be taken.
    pub fn hear(&mut self) -> bool {
        let words = match wire::words(&self.socket) {
            Ok(words) if words.is_empty() => {
                self.kill();
                return false;
            }
            Ok(words) => words,
            Err(error) => {
                self.give_up(&format!("it cannot be heard: {error}"));
                return false;
            }
        };
        let mut is_news = false;
        for word in words {
            match word {
                Some(Word::Ready) if !self.is_ready => (self.is_ready, is_news) = (true, true),
                Some(Word::Serving) if self.awaited.is_some() => (self.awaited, self.has_answered) = (None, true),
                Some(Word::More) if self.sessions < self.most => self.sessions += 1,
                Some(Word::Fewer) if self.sessions > 0 => self.sessions -= 1,
                _ => {
                    self.give_up("it speaks out of turn");
                    return false;
                }
            }
        }
        is_news
    }

    /// When to look after it again.
    pub fn due(&self) -> Option<Instant> {
        (!self.is_over).then_some(self.next_ping)
    }

    /// Pings it when it is time to, and gives it up when it has left too many without an answer.
    pub fn look_after(&mut self) {
        let now = Instant::now();
        if self.is_over || now < self.next_ping {
            return;
        }
        self.next_ping = now + PING;
        match &mut self.awaited {
            None => {
                self.awaited = Some(0);
                self.tell(&Message::Ping, &[]);
            }
            Some(times) => {
                *times += 1;
                if *times >= if self.has_answered { UNANSWERED } else { UNANSWERED_AT_FIRST } {
                    self.give_up("it answers no request");
                }
            }
        }
    }

    fn give_up(&mut self, reason: &str) {
        tracing::error!(pid = self.child.id(), reason, "the front is given up and killed");
        self.kill();
    }

    pub fn kill(&mut self) {
        self.is_over = true;
        self.child.kill();
    }

    /// Its status and how long it lived, once it has ended.
    pub fn ended(&mut self) -> Option<(ExitStatus, Duration)> {
        self.child.ended().map(|status| (status, self.started.elapsed()))
    }
}
