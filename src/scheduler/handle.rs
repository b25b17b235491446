//! A runner as the front holds it: one socket, one task at a time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tracing::Instrument;

use super::{Job, Scheduler};
use crate::frame;
use crate::runner::wire::{Notice, Order};
use crate::task::{Outcome, Report, Task};

/// How long a runner may be silent beyond the task's own time.
const RUNNER_PATIENCE: Duration = Duration::from_secs(90);

impl Scheduler {
    /// Gives tasks to the runner behind `socket` until that is closed, which a runner's end does.
    pub async fn drive(self: Arc<Self>, name: String, socket: std::os::unix::net::UnixStream) {
        self.state().runners += 1;
        match self.serve(&name, socket).await {
            Ok(()) => tracing::debug!(runner = name, "the runner is gone"),
            Err(error) => tracing::warn!(runner = name, %error, "the runner is lost"),
        }
        self.state().runners -= 1;
    }

    async fn serve(&self, name: &str, socket: std::os::unix::net::UnixStream) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let (incoming, mut orders) = UnixStream::from_std(socket)?.into_split();
        let mut notices = Notices { socket: incoming, buffer: Vec::new() };
        let mut cancelled = self.cancelled.subscribe();
        loop {
            match notices.next().await? {
                Some(Notice::Ready) => {
                    self.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
                }
                other => return self.ended(other, name),
            }
            let (job, place) = tokio::select! {
                next = self.next() => next,
                notice = notices.next() => return self.ended(notice?, name),
            };
            let Job { task, started, reply, span } = job;
            let _ = started.send(());
            let ended = run(&mut orders, &mut notices, task, reply, &mut cancelled, name).instrument(span).await;
            drop(place);
            ended?;
        }
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
            Some(Notice::Ready | Notice::Report { .. }) => Err(io::Error::other("it speaks out of turn")),
        }
    }
}

/// Runs one task on the runner. Whatever happens, `reply` is answered if anybody still listens.
async fn run(
    orders: &mut OwnedWriteHalf,
    notices: &mut Notices,
    task: Task,
    mut reply: oneshot::Sender<Report>,
    cancelled: &mut watch::Receiver<bool>,
    name: &str,
) -> io::Result<()> {
    // The runner keeps the task's time, and has an alarm behind that. This is for one that is stopped, or stuck for good.
    let patience = Duration::from_nanos(task.limits.wall_time) + RUNNER_PATIENCE;
    let heard = async {
        send(orders, &Order::Run(task)).await?;
        tokio::select! {
            notice = notices.next() => return notice,
            () = reply.closed() => {}
            _ = cancelled.wait_for(|cancelled| *cancelled) => {}
        }
        send(orders, &Order::Cancel).await?;
        notices.next().await
    };
    let heard = tokio::time::timeout(patience, heard).await;
    let (report, ended) = match heard.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(Some(Notice::Report { report, fault })) => {
            if let Some(fault) = fault {
                tracing::error!(runner = name, fault, "a task could not be started");
            }
            (report, Ok(()))
        }
        Ok(Some(Notice::Failed(reason))) => {
            tracing::error!(runner = name, reason, "a container could not be made");
            (Report::fault("Faber could not make a container"), Err(io::Error::other("the runner failed")))
        }
        Ok(_) => (lost(), Err(io::Error::other("it ended in the middle of a task"))),
        Err(error) => (lost(), Err(error)),
    };
    if reply.send(report).is_err_and(|report| !matches!(report.outcome, Outcome::Cancelled)) {
        tracing::debug!(runner = name, "nobody waits for the report any more");
    }
    ended
}

fn lost() -> Report {
    Report::lost("Faber lost the task while it ran")
}

async fn send(socket: &mut OwnedWriteHalf, message: &impl Serialize) -> io::Result<()> {
    socket.write_all(&frame::encode(message)?).await
}

/// The runner's side of the conversation, as it comes in.
struct Notices {
    socket: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Notices {
    /// One notice; None at the end of the stream. May be dropped half-way: what was read is kept for the next call.
    async fn next(&mut self) -> io::Result<Option<Notice>> {
        loop {
            if let Some((prefix, rest)) = self.buffer.split_first_chunk::<4>() {
                let length = frame::length(*prefix)?;
                if rest.len() >= length {
                    let notice = frame::decode(&rest[..length])?;
                    self.buffer.drain(..4 + length);
                    return Ok(Some(notice));
                }
            }
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}
