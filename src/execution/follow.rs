//! Requests that are followed: what is told of their tasks while they run, and what one that runs can be told.
//!
//! A task's output goes to whoever follows it by a pipe beside what is kept for its result, which is the same as without. The
//! pipe is emptied as it is filled, so that nobody who reads slowly holds up a task.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use futures_util::future::{self, Either};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{mpsc, oneshot};

use super::{End, Engine};
use crate::artifact::Artifact;
use crate::scheduler::{Admission, Live, Submission};
use crate::task::{Figures, Stream, Task, TaskResult, Word};

/// As much as a pipe takes.
const CHUNK: usize = 64 << 10;
/// Figures that wait to be told.
const FIGURES: usize = 4;

/// What is told of a task; which one is its place in the request.
#[derive(Debug)]
pub enum Event {
    /// It waits for its turn, behind so many others at most.
    Queued {
        position: usize,
    },
    /// Its turn has come.
    Started,
    /// What it wrote, after `offset` bytes of the same stream.
    Output {
        stream: Stream,
        bytes: Vec<u8>,
        offset: u64,
    },
    Figures(Figures),
    Result(Box<TaskResult>),
}

/// What runs: the task, or what makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub task: usize,
    pub is_compilation: bool,
}

/// Whoever is told.
pub trait Follower: Send + Sync {
    /// Does not wait.
    fn tell(&self, step: Step, event: Event);
}

/// What whoever follows a request has in hand of its only task.
pub struct Hands {
    /// The end of a pipe from which the task reads.
    pub stdin: OwnedFd,
    pub words: mpsc::Receiver<Word>,
    /// The task is not to start any more; of one that runs it is a word.
    pub cancelled: oneshot::Receiver<()>,
}

/// A request that is followed.
pub(super) struct Following<'a> {
    follower: &'a dyn Follower,
    hands: Mutex<Option<Hands>>,
}

impl<'a> Following<'a> {
    pub(super) fn new(follower: &'a dyn Follower, hands: Option<Hands>) -> Self {
        Self { follower, hands: Mutex::new(hands) }
    }

    pub(super) fn tell(&self, step: Step, event: Event) {
        self.follower.tell(step, event);
    }

    /// Whether the task is in somebody's hand: then no other one's end stands for its own.
    pub(super) fn is_in_hand(&self) -> bool {
        self.hands.lock().is_ok_and(|hands| hands.is_some())
    }

    fn take_hands(&self) -> Option<Hands> {
        self.hands.lock().ok()?.take()
    }

    /// What a step wrote that was run before, for somebody else.
    pub(super) fn tell_output_of(&self, step: Step, end: &End) {
        let End::Ran { finished, cached: true } = end else { return };
        for (stream, bytes) in [(Stream::Stdout, &finished.report.stdout), (Stream::Stderr, &finished.report.stderr)] {
            if !bytes.is_empty() && !step.is_compilation {
                self.tell(step, Event::Output { stream, bytes: bytes.clone(), offset: 0 });
            }
        }
    }

    /// Has a task's streams, where they do not lead to another one, come here too.
    fn attach(&self, step: Step, submission: &mut Submission) -> io::Result<Attached> {
        let (tell, figures) = mpsc::channel(FIGURES);
        let mut attached = Attached { streams: [None, None], figures, cancelled: None };
        let silent = mpsc::channel(1).1;
        if step.is_compilation {
            submission.live = Some(Live { figures: tell, words: silent });
            return Ok(attached);
        }
        let words = match self.take_hands() {
            Some(Hands { stdin, words, cancelled }) => {
                submission.pipes.stdin = Some(stdin);
                attached.cancelled = Some(cancelled);
                words
            }
            None => silent,
        };
        submission.live = Some(Live { figures: tell, words });
        let outputs = &mut submission.pipes.outputs;
        for (output, stream) in outputs.iter_mut().zip(&mut attached.streams).filter(|(output, _)| output.is_none()) {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            *output = Some((writer, true));
            *stream = Some(Receiver::from_owned_fd(reader)?);
        }
        Ok(attached)
    }
}

/// What comes of a task that runs.
struct Attached {
    streams: [Option<Receiver>; 2],
    figures: mpsc::Receiver<Figures>,
    cancelled: Option<oneshot::Receiver<()>>,
}

impl Engine {
    /// One task by itself, followed.
    pub(super) async fn submit_followed(
        &self,
        task: Task<Artifact>,
        admission: &Admission,
        following: &Following<'_>,
        step: Step,
    ) -> End {
        let limit = task.limits.output;
        let mut submission = Submission::plain(task);
        let mut attached = match following.attach(step, &mut submission) {
            Ok(attached) => attached,
            Err(error) => return End::Refused(format!("make a pipe: {error}")),
        };
        following.tell(step, Event::Queued { position: admission.position() });
        let Some(pending) = admission.submit(vec![submission]).pop() else {
            return End::Refused("Faber lost the task before it started".into());
        };
        let has_started = AtomicBool::new(false);
        let cancelled = attached.cancelled.take();
        let cancelled = async {
            let is_so = match cancelled {
                Some(cancelled) => cancelled.await.is_ok(),
                None => false,
            };
            if !is_so || has_started.load(Relaxed) {
                std::future::pending().await
            }
        };
        let finished = pending.finished_after(|| {
            has_started.store(true, Relaxed);
            following.tell(step, Event::Started);
        });
        let ended = async {
            tokio::select! {
                biased;
                finished = finished => finished.into(),
                () = cancelled => End::Refused("cancelled before it started".into()),
            }
        };
        let (ended, told) = (pin!(ended), pin!(attached.tell(following, step, limit)));
        match future::select(ended, told).await {
            Either::Left((ended, told)) => {
                // What never started may hold its ends of the pipes yet, until the queue lets go of it.
                if has_started.load(Relaxed) {
                    told.await;
                }
                ended
            }
            Either::Right(((), ended)) => ended.await,
        }
    }
}

impl Attached {
    /// Tells all that comes, until the task has ended; of its output as much as it may write.
    async fn tell(self, following: &Following<'_>, step: Step, limit: u64) {
        let Self { streams: [stdout, stderr], mut figures, .. } = self;
        let left = AtomicU64::new(limit);
        let told = async {
            while let Some(figures) = figures.recv().await {
                following.tell(step, Event::Figures(figures));
            }
        };
        let read = |pipe, stream| {
            read(pipe, &left, move |bytes, offset| {
                following.tell(step, Event::Output { stream, bytes, offset });
            })
        };
        tokio::join!(told, read(stdout, Stream::Stdout), read(stderr, Stream::Stderr));
    }
}

/// Reads a stream to its end, and tells it in pieces that end where characters do.
async fn read(pipe: Option<Receiver>, left: &AtomicU64, tell: impl Fn(Vec<u8>, u64)) {
    let Some(pipe) = pipe else { return };
    let (mut offset, mut pending) = (0, Vec::new());
    loop {
        // As long as nothing comes there is no memory for it.
        let is_readable = pipe.readable().await.is_ok();
        let at_hand = pending.len();
        pending.reserve(CHUNK);
        let came = if is_readable { pipe.try_read_buf(&mut pending) } else { Ok(0) };
        match came {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            // What a stream ends with is told, whatever it is.
            Ok(0) | Err(_) if pending.is_empty() => return,
            Ok(0) | Err(_) => {
                tell(std::mem::take(&mut pending), offset);
                return;
            }
        }
        // What is beyond the limit is read and dropped, as for the result.
        let most = usize::try_from(left.load(Relaxed)).unwrap_or(usize::MAX);
        pending.truncate(at_hand + (pending.len() - at_hand).min(most));
        left.fetch_sub((pending.len() - at_hand) as u64, Relaxed);
        let rest = pending.split_off(pending.len() - begun_character(&pending));
        if !pending.is_empty() {
            let told = pending.len() as u64;
            tell(std::mem::replace(&mut pending, rest), offset);
            offset += told;
        } else {
            pending = rest;
        }
    }
}

/// How many bytes at the end are the beginning of a character of UTF-8.
fn begun_character(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let from = tail.iter().rposition(|byte| *byte >= 0xc0);
    let begun = from.map_or(&[][..], |from| &tail[from..]);
    match std::str::from_utf8(begun) {
        Err(error) if error.error_len().is_none() => begun.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_has_only_begun_waits_for_its_rest() {
        assert_eq!(begun_character("é".as_bytes()), 0);
        assert_eq!(begun_character(&"aé".as_bytes()[..2]), 1);
        assert_eq!(begun_character(&"a\u{1f600}".as_bytes()[..4]), 3);
        assert_eq!(begun_character(b"a\xff"), 0);
        assert_eq!(begun_character(b"\xe2\x28"), 0);
        assert_eq!(begun_character(b""), 0);
        assert_eq!(begun_character(b"abc"), 0);
    }
}
