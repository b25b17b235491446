//! Sessions as the front holds them: a runner that was taken out of the pool with its container. Runs go around the queue, each to a
//! process of its own that watches it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::handle::{Notices, Running, send_with};
use super::share::Held;
use super::{Client, Finished, Job, Scheduler};
use crate::runner::wire::{FileAnswer, FileOrder, Notice, Order};
use crate::task::{FileRefusal, Report};

/// Runs of a session at once; others wait for them.
const RUNS: usize = 8;
/// Orders that wait for a session's runner.
const ORDERS: usize = 16;

/// What a session takes of the machine's memory as long as it lives; given back when dropped.
struct Lease {
    scheduler: Arc<Scheduler>,
    client: Client,
    held: Held,
}

impl Lease {
    fn take(scheduler: &Arc<Scheduler>, client: Client, memory: u64) -> Self {
        let held = Held { memory, ..Held::default() };
        scheduler.state().running.add(client, held);
        Self { scheduler: scheduler.clone(), client, held }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.scheduler.state().running.give_back(self.client, self.held);
        self.scheduler.changed.notify_waiters();
    }
}

/// A runner that is a session's. It ends, with everything in its container, when this is dropped.
pub struct Hosted {
    orders: mpsc::Sender<Asked>,
    ended: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    /// For runs at once.
    places: Semaphore,
    _lease: Lease,
}

/// An order, and where its answer is awaited.
struct Asked {
    order: Order,
    fds: Vec<OwnedFd>,
    answer: Option<oneshot::Sender<(Notice, Vec<OwnedFd>)>>,
}

impl Hosted {
    pub(super) fn new(scheduler: &Arc<Scheduler>, client: Client, memory: u64, socket: UnixStream) -> Self {
        let (orders, asked) = mpsc::channel(ORDERS);
        let (end, ended) = watch::channel(false);
        let (stop, mut stopped) = watch::channel(false);
        tokio::spawn(async move {
            let driven = async {
                tokio::select! {
                    driven = drive(socket, asked) => driven,
                    _ = stopped.wait_for(|stopped| *stopped) => Ok(()),
                }
            };
            if let Err(error) = driven.await {
                tracing::debug!(%error, "a session's runner is gone");
            }
            end.send_replace(true);
        });
        Self { orders, ended, stop, places: Semaphore::new(RUNS), _lease: Lease::take(scheduler, client, memory) }
    }

    /// Lets go of its runner, which ends with everything in its container, whoever is still at work in it.
    pub fn end(&self) {
        self.stop.send_replace(true);
    }

    /// Ends when its runner has.
    pub async fn lost(&self) {
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Has something done with its files.
    ///
    /// # Errors
    /// When the session has ended.
    pub async fn files(&self, order: FileOrder, fds: Vec<OwnedFd>) -> io::Result<(FileAnswer, Vec<OwnedFd>)> {
        let (answer, answered) = oneshot::channel();
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        self.orders.send(Asked { order: Order::Files(order), fds, answer: Some(answer) }).await.map_err(|_| gone())?;
        match answered.await.map_err(|_| gone())? {
            (Notice::Files(answer), fds) => Ok((answer, fds)),
            _ => Ok((FileAnswer::Refused(FileRefusal::Failed("the runner speaks out of turn".into())), Vec::new())),
        }
    }

    /// Runs a job, which nothing else stands before.
    pub(super) async fn run(self: Arc<Self>, job: Job) {
        let Job { submission, mut reply, ticket, started, .. } = job;
        let mut lost = std::pin::pin!(self.lost());
        // Nobody who does not wait any more has one.
        let _place = tokio::select! {
            place = self.places.acquire() => place,
            () = &mut lost => return drop(reply.send(Report::not_executed("the session has ended").into())),
            () = reply.closed() => return,
        };
        let (socket, theirs) = match std::os::unix::net::UnixStream::pair() {
            Ok(pair) => pair,
            Err(error) => return drop(reply.send(Report::fault(format!("make a socket pair: {error}")).into())),
        };
        let asked = Asked { order: Order::Watch, fds: vec![theirs.into()], answer: None };
        let gone = || Finished::from(Report::not_executed("the session has ended"));
        if self.orders.send(asked).await.is_err() {
            return drop(reply.send(gone()));
        }
        let finished = async {
            socket.set_nonblocking(true)?;
            let (incoming, mut orders) = UnixStream::from_std(socket)?.into_split();
            let mut notices = Notices::new(incoming);
            match notices.next().await? {
                Some((Notice::Ready, _)) => {}
                Some((Notice::Failed(reason), _)) => return Ok(Report::fault(reason).into()),
                _ => return Ok(gone()),
            }
            if started.is_some_and(|started| started.send(()).is_err()) {
                return Ok(gone());
            }
            let mut running = Running::new(&mut orders, &mut notices, self.lease_cancelled(), "session");
            let (finished, ended) = running.run(submission, None, &mut reply, ticket).await;
            if let Err(error) = ended {
                tracing::warn!(%error, "a session's run is lost");
            }
            io::Result::Ok(finished)
        };
        let finished =
            finished.await.unwrap_or_else(|error| Report::fault(format!("talk to the session: {error}")).into());
        let _ = reply.send(finished);
    }

    fn lease_cancelled(&self) -> watch::Receiver<bool> {
        self._lease.scheduler.cancelled.subscribe()
    }
}

/// Passes orders on, and answers back, until either side is gone.
async fn drive(socket: UnixStream, mut asked: mpsc::Receiver<Asked>) -> io::Result<()> {
    let (incoming, mut orders) = socket.into_split();
    let mut notices = Notices::new(incoming);
    let mut awaited: Option<oneshot::Sender<(Notice, Vec<OwnedFd>)>> = None;
    loop {
        tokio::select! {
            notice = notices.next() => match (notice?, awaited.take()) {
                (Some(notice), Some(answer)) => _ = answer.send(notice),
                (Some(_), None) => return Err(io::Error::other("it speaks out of turn")),
                (None, _) => return Ok(()),
            },
            // One answer at a time.
            next = asked.recv(), if awaited.is_none() => {
                let Some(Asked { order, fds, answer }) = next else { return Ok(()) };
                let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                send_with(&mut orders, &order, &borrowed).await?;
                awaited = answer;
            }
        }
    }
}
