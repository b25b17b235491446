//! What is to be told of a request and was not written yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::event::Told;
use crate::api::buffers::Held;
use crate::api::error::ApiError;
use crate::execution::{Event, Follower, Step};
use crate::task::Stream;

/// Bytes of output that wait for a client, at most.
const MOST: u64 = 1 << 20;

/// One thing to tell.
#[derive(Debug)]
pub enum Entry {
    Told(Told),
    Output {
        task: usize,
        stream: Stream,
        bytes: Vec<u8>,
        offset: u64,
    },
    /// The end of the stream: all results were told, or why there are none.
    End(Result<(), ApiError>),
}

pub struct Outbox {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    entries: VecDeque<Entry>,
    /// Bytes of output in them, as they are held.
    output: u64,
    held: Held,
    /// What results take, until all is written.
    kept: Option<Held>,
    has_begun: bool,
    /// Nothing more comes.
    is_closed: bool,
}

impl Outbox {
    pub fn new(held: Held) -> Self {
        let entries = VecDeque::new();
        let state = State { entries, output: 0, held, kept: None, has_begun: false, is_closed: false };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// Has it closed when what is returned is dropped, whatever the reason.
    pub fn closed_when_dropped(self: Arc<Self>) -> impl Drop + Send {
        Closed(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn end(&self, end: Result<(), ApiError>) {
        self.state().entries.push_back(Entry::End(end));
        self.changed.notify_waiters();
    }

    /// Waits until something is to be told.
    ///
    /// # Errors
    /// When that is that nothing ran.
    pub async fn has_begun(&self) -> Result<(), ApiError> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                if !state.has_begun
                    && let Some(Entry::End(Err(_))) = state.entries.front()
                    && let Some(Entry::End(Err(error))) = state.entries.pop_front()
                {
                    return Err(error);
                }
                if !state.entries.is_empty() {
                    state.has_begun = true;
                    return Ok(());
                }
                if state.is_closed {
                    return Err(ApiError::Internal);
                }
            }
            changed.await;
        }
    }

    /// What is told next; None at the end, which is no good one unless it was told.
    pub async fn next(&self) -> Option<Entry> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                if let Some(entry) = state.entries.pop_front() {
                    if let Entry::Output { bytes, .. } = &entry {
                        state.output -= bytes.len() as u64;
                        state.held.less(bytes.len() as u64);
                    }
                    return Some(entry);
                }
                if state.is_closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Keeps what is held for results as long as they are not written.
    pub fn keep(&self, held: Held) {
        self.state().kept = Some(held);
    }
}

impl Follower for Outbox {
    fn tell(&self, Step { task, is_compilation }: Step, event: Event) {
        let compile = is_compilation;
        let told = match event {
            Event::Output { stream, bytes, offset } => {
                self.state().push_output(task, stream, bytes, offset);
                return self.changed.notify_waiters();
            }
            Event::Queued { position } => Told::Queued { task, position, compile },
            Event::Started => Told::Started { task, compile },
            Event::Figures(figures) => Told::usage(task, compile, figures),
            Event::Result(result) => Told::Result { task, result },
        };
        let mut state = self.state();
        // Who reads slowly gets the newest figures.
        if let (Told::Usage { .. }, Some(Entry::Told(last @ Told::Usage { .. }))) = (&told, state.entries.back_mut())
            && last.task() == Some(task)
        {
            *last = told;
        } else {
            state.entries.push_back(Entry::Told(told));
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl State {
    fn push_output(&mut self, task: usize, stream: Stream, bytes: Vec<u8>, offset: u64) {
        let size = bytes.len() as u64;
        if self.output + size <= MOST && self.held.more(size).is_ok() {
            self.output += size;
            return self.entries.push_back(Entry::Output { task, stream, bytes, offset });
        }
        match self.entries.back_mut() {
            Some(Entry::Told(Told::Dropped { task: of, stream: from, bytes })) if (*of, *from) == (task, stream) => {
                *bytes += size;
            }
            _ => self.entries.push_back(Entry::Told(Told::Dropped { task, stream, bytes: size })),
        }
    }
}

struct Closed(Arc<Outbox>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.state().is_closed = true;
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::buffers::Buffers;
    use crate::scheduler::Client;

    fn outbox() -> Outbox {
        Outbox::new(Buffers::new(64 << 20).hold(Client::Key(1)))
    }

    const STEP: Step = Step { task: 0, is_compilation: false };

    fn output(stream: Stream, size: usize, offset: u64) -> Event {
        Event::Output { stream, bytes: vec![b'a'; size], offset }
    }

    #[tokio::test]
    async fn what_a_slow_reader_does_not_take_is_dropped_and_told() {
        let outbox = outbox();
        for at in 0..20 {
            outbox.tell(STEP, output(Stream::Stdout, 64 << 10, at * (64 << 10)));
        }
        outbox.tell(STEP, output(Stream::Stderr, 64 << 10, 0));
        let mut kept = 0;
        while let Some(Entry::Output { bytes, offset, .. }) = outbox.next().await {
            assert_eq!(offset, kept);
            kept += bytes.len() as u64;
            if kept == MOST {
                break;
            }
        }
        let dropped = |entry| match entry {
            Some(Entry::Told(Told::Dropped { stream, bytes, .. })) => (stream, bytes),
            other => panic!("{other:?}"),
        };
        assert_eq!(dropped(outbox.next().await), (Stream::Stdout, 4 * (64 << 10)));
        assert_eq!(dropped(outbox.next().await), (Stream::Stderr, 64 << 10));
        outbox.tell(STEP, output(Stream::Stdout, 1, 20 * (64 << 10)));
        assert!(matches!(outbox.next().await, Some(Entry::Output { .. })));
        assert_eq!(outbox.state().output, 0);
    }

    #[tokio::test]
    async fn an_end_before_anything_was_told_is_a_refusal() {
        let outbox = outbox();
        outbox.end(Err(ApiError::Internal));
        assert!(outbox.has_begun().await.is_err());
        let outbox = self::outbox();
        outbox.tell(STEP, Event::Queued { position: 0 });
        outbox.end(Err(ApiError::Internal));
        assert!(outbox.has_begun().await.is_ok());
        assert!(matches!(outbox.next().await, Some(Entry::Told(Told::Queued { .. }))));
        assert!(matches!(outbox.next().await, Some(Entry::End(Err(_)))));
    }

    #[tokio::test]
    async fn what_is_given_up_ends_without_an_end() {
        let outbox = Arc::new(outbox());
        drop(outbox.clone().closed_when_dropped());
        assert!(outbox.next().await.is_none());
    }

    #[tokio::test]
    async fn of_figures_the_newest_wait() {
        let outbox = outbox();
        for wall_time in 1..4 {
            outbox.tell(STEP, Event::Figures(crate::task::Figures { wall_time, ..Default::default() }));
        }
        assert!(matches!(outbox.next().await, Some(Entry::Told(Told::Usage { wall_time_ns: 3, .. }))));
        assert!(outbox.state().entries.is_empty());
    }
}
