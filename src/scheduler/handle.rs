//! A runner as the front holds it: one socket, one task at a time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tracing::Instrument;

use super::gate::Ticket;
use super::sharing::{RunnerId, Share};
use super::{Client, Finished, Hosted, Job, Live, Piped, Scheduler, Submission};
use crate::artifact::{Packed, Packing};
use crate::frame;
use crate::runner::wire::{Notice, Order, Pipes, Sharing};
use crate::task::{Outcome, Report, Word};

/// How long a runner may be silent beyond the task's own time.
const RUNNER_PATIENCE: Duration = Duration::from_secs(90);

impl Scheduler {
    /// Gives tasks to the runner behind `socket` until that is closed, which a runner's end does.
    pub async fn drive(self: Arc<Self>, name: String, socket: std::os::unix::net::UnixStream) {
        let runner = {
            let mut state = self.state();
            state.runners += 1;
            state.number()
        };
        match self.take_turns(runner, &name, socket).await {
            Ok(()) => tracing::debug!(runner = name, "the runner is gone"),
            Err(error) => tracing::warn!(runner = name, %error, "the runner is lost"),
        }
        let mut state = self.state();
        state.runners -= 1;
        state.sharing.lose(runner);
        drop(state);
        // What was left to it is for others now.
        self.changed.notify_waiters();
    }

    async fn take_turns(
        self: &Arc<Self>,
        runner: RunnerId,
        name: &str,
        socket: std::os::unix::net::UnixStream,
    ) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let (incoming, mut orders) = UnixStream::from_std(socket)?.into_split();
        let mut notices = Notices::new(incoming);
        let cancelled = self.cancelled.subscribe();
        let mut renewed = self.renewed.subscribe();
        loop {
            match notices.next().await? {
                Some((Notice::Ready, _)) => {
                    self.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
                }
                other => return self.ended(other.map(|(notice, _)| notice), name),
            }
            let (job, share, place) = loop {
                let (mut job, share, place) = tokio::select! {
                    biased;
                    // It ends when its socket does.
                    Ok(()) = renewed.changed() => return Ok(()),
                    next = self.next(runner) => match next {
                        Some(next) => next,
                        // Another one has taken its place.
                        None => return Ok(()),
                    },
                    notice = notices.next() => return self.ended(notice?.map(|(notice, _)| notice), name),
                };
                // Whoever does not hear it waits no more, and was told that it never started.
                if job.started.take().is_some_and(|started| started.send(()).is_ok()) {
                    break (job, share, place);
                }
            };
            let Job { mut submission, mut reply, ticket, span, request, client, .. } = job;
            if let Some(hosting) = submission.hosting.take() {
                drop(place);
                return self.give_away(submission, (hosting, reply), client, orders, notices).await;
            }
            let sharing = share.map(|Share { more }| Sharing { request, more });
            let mut running = Running::new(&mut orders, &mut notices, cancelled.clone(), name);
            let (finished, ended) = running.run(submission, sharing, &mut reply, ticket).instrument(span).await;
            if reply.send(finished).is_err_and(|finished| !matches!(finished.report.outcome, Outcome::Cancelled)) {
                tracing::debug!(runner = name, "nobody waits for the report any more");
            }
            drop(place);
            ended?;
        }
    }

    /// Has a runner become a session's.
    async fn give_away(
        self: &Arc<Self>,
        submission: Submission,
        (hosting, reply): (oneshot::Sender<Hosted>, oneshot::Sender<Finished>),
        client: Client,
        mut orders: OwnedWriteHalf,
        mut notices: Notices,
    ) -> io::Result<()> {
        let task = submission.task;
        let memory = task.limits.memory;
        send(&mut orders, &Order::Host { image: task.image, limits: task.limits }).await?;
        let told = match notices.next().await {
            Ok(Some((Notice::Ready, _))) => {
                let socket = notices.into_socket(orders)?;
                let _ = hosting.send(Hosted::new(self, client, memory, socket));
                Report::not_executed("")
            }
            Ok(Some((Notice::Failed(reason), _))) => {
                tracing::error!(reason, "a session cannot be made");
                Report::fault("Faber could not make a container")
            }
            Ok(_) | Err(_) => Report::fault("Faber lost the runner"),
        };
        let _ = reply.send(told.into());
        Ok(())
    }

    /// What an idle runner says last.
    fn ended(&self, notice: Option<Notice>, name: &str) -> io::Result<()> {
        match notice {
            None => Ok(()),
            Some(Notice::Failed(reason)) => {
                tracing::error!(runner = name, reason, "the runner cannot make containers");
                self.runner_failed();
                Ok(())
            }
            Some(Notice::Ready | Notice::Prepared | Notice::Figures(_) | Notice::Files(_) | Notice::Report { .. }) => {
                Err(io::Error::other("it speaks out of turn"))
            }
        }
    }
}

/// A task on a runner.
pub(super) struct Running<'a> {
    orders: &'a mut OwnedWriteHalf,
    notices: &'a mut Notices,
    cancelled: watch::Receiver<bool>,
    name: &'a str,
    /// A task that was to start together with this one could not.
    partner_failed: bool,
}

impl<'a> Running<'a> {
    pub(super) fn new(
        orders: &'a mut OwnedWriteHalf,
        notices: &'a mut Notices,
        cancelled: watch::Receiver<bool>,
        name: &'a str,
    ) -> Self {
        Self { orders, notices, cancelled, name, partner_failed: false }
    }
}

impl Running<'_> {
    /// Runs one task. Whatever happens, there is an end of it; the error is the runner's, which is lost then.
    pub(super) async fn run(
        &mut self,
        submission: Submission,
        sharing: Option<Sharing>,
        reply: &mut oneshot::Sender<Finished>,
        ticket: Option<Ticket>,
    ) -> (Finished, io::Result<()>) {
        // The runner keeps the task's time, and has an alarm behind that. This is for one that is stopped, or stuck for good.
        let patience = Duration::from_nanos(submission.task.limits.wall_time) + RUNNER_PATIENCE;
        let heard = tokio::time::timeout(patience, self.talk(submission, sharing, reply, ticket)).await;
        match heard.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(Some((Notice::Report { report, taken, fault, note }, fds))) => {
                if let Some(note) = note {
                    tracing::warn!(runner = self.name, note, "a runner goes on with less");
                }
                if let Some(fault) = fault {
                    tracing::error!(runner = self.name, fault, "a task failed, and not by its own doing");
                }
                let packed = Packed::new(fds);
                if self.partner_failed {
                    let report = Report::not_executed("a task that it is connected with could not be started");
                    return (report.into(), Ok(()));
                }
                match taken.try_map(|data| packed.unpack(data)) {
                    Ok(taken) => (Finished { report: *report, taken, queued: Duration::ZERO }, Ok(())),
                    Err(error) => (lost().into(), Err(error)),
                }
            }
            Ok(Some((Notice::Failed(reason), _))) => {
                tracing::error!(runner = self.name, reason, "a container could not be made");
                (Report::fault("Faber could not make a container").into(), Err(io::Error::other("the runner failed")))
            }
            Ok(_) => (lost().into(), Err(io::Error::other("it ended in the middle of a task"))),
            Err(error) => (lost().into(), Err(error)),
        }
    }

    /// Orders the task, and hears the runner until its last word of it.
    async fn talk(
        &mut self,
        submission: Submission,
        sharing: Option<Sharing>,
        reply: &mut oneshot::Sender<Finished>,
        ticket: Option<Ticket>,
    ) -> io::Result<Option<(Notice, Vec<OwnedFd>)>> {
        let mut submission = submission;
        let mut live = submission.live.take();
        order(self.orders, submission, sharing, (ticket.is_some(), live.is_some())).await?;
        let mut ticket = ticket;
        let mut cancelled = self.cancelled.clone();
        let given_up = async {
            tokio::select! {
                () = reply.closed() => {}
                _ = cancelled.wait_for(|cancelled| *cancelled) => {}
            }
        };
        // Who was heard once is not asked again.
        let given_up = given_up.fuse();
        tokio::pin!(given_up);
        if let Some(ticket) = &mut ticket {
            tokio::select! {
                notice = self.notices.next() => match notice? {
                    Some((Notice::Prepared, _)) => {}
                    other => {
                        ticket.give_up();
                        return Ok(other);
                    }
                },
                () = &mut given_up => {
                    ticket.give_up();
                    send(self.orders, &Order::Say(Word::Cancel)).await?;
                    return self.last_word().await;
                }
            }
            let all_can = tokio::select! {
                all_can = ticket.prepared() => {
                    self.partner_failed = !all_can;
                    all_can
                }
                () = &mut given_up => false,
            };
            send(self.orders, if all_can { &Order::Go } else { &Order::Say(Word::Cancel) }).await?;
        }
        loop {
            tokio::select! {
                notice = self.notices.next() => match (notice?, &live) {
                    (Some((Notice::Figures(figures), _)), Some(live)) => _ = live.figures.try_send(figures),
                    (notice, _) => return Ok(notice),
                },
                Some(word) = next_word(&mut live) => send(self.orders, &Order::Say(word)).await?,
                () = &mut given_up => break,
            }
        }
        send(self.orders, &Order::Say(Word::Cancel)).await?;
        self.last_word().await
    }

    /// A task that was given up while it was made ready still says that it is.
    async fn last_word(&mut self) -> io::Result<Option<(Notice, Vec<OwnedFd>)>> {
        loop {
            match self.notices.next().await? {
                Some((Notice::Prepared | Notice::Figures(_), _)) => {}
                other => return Ok(other),
            }
        }
    }
}

/// What a task is to be told next; None when nobody has anything more to say.
async fn next_word(live: &mut Option<Live>) -> Option<Word> {
    live.as_mut()?.words.recv().await
}

/// Sends the order for a task. Its descriptors are then the runner's alone, so that the ends of its pipes show.
async fn order(
    socket: &mut OwnedWriteHalf,
    submission: Submission,
    sharing: Option<Sharing>,
    (hold, figures): (bool, bool),
) -> io::Result<()> {
    let Submission { task, pipes: Piped { stdin, outputs: [stdout, stderr] }, .. } = submission;
    let mut packing = Packing::default();
    let task = task.try_map(|artifact| Ok::<_, std::convert::Infallible>(packing.pack(artifact)));
    let task = task.unwrap_or_else(|never| match never {});
    let record = |output: &Option<(OwnedFd, bool)>| output.as_ref().map(|(_, record)| *record);
    let pipes = Pipes { stdin: stdin.is_some(), outputs: [record(&stdout), record(&stderr)] };
    let ends: Vec<OwnedFd> =
        stdin.into_iter().chain([stdout, stderr].into_iter().flatten().map(|(pipe, _)| pipe)).collect();
    let fds: Vec<BorrowedFd<'_>> = packing.fds().into_iter().chain(ends.iter().map(AsFd::as_fd)).collect();
    send_with(socket, &Order::Run { task: task.into(), pipes, hold, sharing, figures }, &fds).await
}

fn lost() -> Report {
    Report::lost("Faber lost the task while it ran")
}

async fn send(socket: &mut OwnedWriteHalf, order: &Order) -> io::Result<()> {
    send_with(socket, order, &[]).await
}

/// [`frame::send_with`], without blocking.
pub(super) async fn send_with(socket: &mut OwnedWriteHalf, order: &Order, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = frame::encode(order, fds.len())?;
    if fds.is_empty() {
        return socket.write_all(&bytes).await;
    }
    socket.write_all(&bytes[..frame::PREFIX]).await?;
    for batch in frame::batches(fds) {
        let stream: &UnixStream = socket.as_ref();
        stream.async_io(Interest::WRITABLE, || frame::send_batch(stream, batch)).await?;
    }
    socket.write_all(&bytes[frame::PREFIX..]).await
}

/// The runner's side of the conversation, as it comes in.
pub(super) struct Notices {
    socket: OwnedReadHalf,
    /// Of one message, never more: descriptors come between its prefix and the rest.
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Notices {
    pub(super) fn new(socket: OwnedReadHalf) -> Self {
        Self { socket, buffer: Vec::new(), fds: Vec::new() }
    }

    /// The whole socket, of which nothing is read half-way.
    fn into_socket(self, orders: OwnedWriteHalf) -> io::Result<UnixStream> {
        self.socket.reunite(orders).map_err(io::Error::other)
    }

    /// One notice with its descriptors; None at the end of the stream. May be dropped half-way: what was read is kept for the
    /// next call.
    pub(super) async fn next(&mut self) -> io::Result<Option<(Notice, Vec<OwnedFd>)>> {
        loop {
            let mut missing = frame::PREFIX.saturating_sub(self.buffer.len());
            if let Some((prefix, rest)) = self.buffer.split_first_chunk::<{ frame::PREFIX }>() {
                let (length, fds) = frame::lengths(*prefix)?;
                if self.fds.len() < fds {
                    let stream: &UnixStream = self.socket.as_ref();
                    let received = &mut self.fds;
                    stream.async_io(Interest::READABLE, || frame::receive_batch(stream, received)).await?;
                    continue;
                }
                if rest.len() == length {
                    let notice = frame::decode(rest)?;
                    self.buffer = Vec::new();
                    return Ok(Some((notice, std::mem::take(&mut self.fds))));
                }
                missing = length - rest.len();
            }
            if (&mut self.socket).take(missing as u64).read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}
