//! A runner whose container stays: a session's. It makes runs and serves files; each run is watched by a process of its own, forked from this
//! one, which is a runner of one task to the front.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{WaitOptions, wait};

use super::wire::{FileAnswer, FileOrder, Notice, Order};
use super::{Front, RunnerError, Watchdog, at, report, say, unpack};
use crate::artifact::{Artifact, Data, Packed, Packing};
use crate::chain::chain;
use crate::frame;
use crate::sandbox::{Created, Ran, Session, Slot};
use crate::task::{FileRefusal, Limits, Node, Report, Taken, WorkspacePath};

/// How long the front may take for the order of a run that cannot be made.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves the front until it lets go of the session, or that comes to an end.
///
/// # Errors
/// When the front cannot be heard.
pub fn serve(slot: &Slot, mut session: Session, max: &Limits, socket: &UnixStream) -> Result<(), RunnerError> {
    loop {
        let ended = session.ended();
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(at("wait for an order")(errno)),
        }
        // Watchers that have ended. That the init is among them shows below.
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        let [asked, ended] = fds.map(|fd| !fd.revents().is_empty());
        if ended {
            return Ok(());
        }
        if !asked {
            continue;
        }
        let _watchdog = Watchdog::set(super::STUCK);
        match frame::receive_with::<Order>(socket).map_err(at("read an order"))? {
            None => return Ok(()),
            Some((Order::Watch, fds)) => {
                for fd in fds {
                    watch(slot, &mut session, max, socket, &UnixStream::from(fd));
                }
            }
            Some((Order::Files(order), fds)) => {
                let (answer, fds) = files(&session, order, fds);
                frame::send_with(socket, &Notice::Files(answer), &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())
                    .map_err(at("tell the front"))?;
            }
            Some(_) => {}
        }
    }
}

/// Makes a run, and forks who watches it.
fn watch(slot: &Slot, session: &mut Session, max: &Limits, front: &UnixStream, socket: &UnixStream) {
    let made = match session.run(slot) {
        Ok(made) => made,
        Err(error) => return refuse(socket, &chain(&error)),
    };
    let forked = made.watched_by(|created| {
        // With this one's socket closed the front sees that it is gone, whoever is still there.
        let _ = nix::unistd::close(front.as_raw_fd());
        i32::from(run(created, max, socket).is_err())
    });
    if let Err(error) = forked {
        refuse(socket, &format!("fork: {error}"));
    }
}

/// In the place of a run that cannot be made: most likely the session has as many processes as it may have.
fn refuse(socket: &UnixStream, reason: &str) {
    let _ = socket.set_read_timeout(Some(PATIENCE));
    if say(socket, &Notice::Ready).is_ok() && matches!(frame::receive_with::<Order>(socket), Ok(Some(_))) {
        let refused = Report::not_executed(format!("the session has no room for another run: {reason}"));
        let _ = report(socket, refused, Taken::default(), [None, None]);
    }
}

/// Runs what the front says, and ends.
fn run(created: Created, max: &Limits, socket: &UnixStream) -> Result<(), RunnerError> {
    say(socket, &Notice::Ready)?;
    let order = frame::receive_with::<Order>(socket).map_err(at("read an order"))?;
    let Some((Order::Run { task, pipes, hold, figures, .. }, fds)) = order else { return Ok(()) };
    let (task, links) = unpack(*task, pipes, fds)?;
    if let Some(reason) = super::refusal(&task, max) {
        return report(socket, Report::fault(reason), Taken::default(), [Some(reason.into()), None]);
    }
    let _watchdog = Watchdog::set(super::STUCK + Duration::from_nanos(task.limits.wall_time));
    let mut front = Front { socket, hold, figures };
    let Ran { report: ended, taken, fault, remains } = created.run(task, links, &mut front);
    report(socket, ended, taken, [fault.map(|fault| chain(&fault)), None])?;
    drop(remains);
    Ok(())
}

/// Does what is asked for with the files of the workspace; the descriptors belong to the answer.
fn files(session: &Session, order: FileOrder, fds: Vec<OwnedFd>) -> (FileAnswer, Vec<OwnedFd>) {
    match try_files(session, order, fds) {
        Ok(answer) => answer,
        Err(reason) => (FileAnswer::Refused(reason), Vec::new()),
    }
}

fn try_files(
    session: &Session,
    order: FileOrder,
    fds: Vec<OwnedFd>,
) -> Result<(FileAnswer, Vec<OwnedFd>), FileRefusal> {
    let workspace = || session.workspace().map_err(|error| FileRefusal::Failed(format!("open the workspace: {error}")));
    let answer = match order {
        FileOrder::Place(nodes) => {
            let packed = Packed::new(fds);
            let nodes: io::Result<BTreeMap<WorkspacePath, Node<Artifact>>> =
                nodes.into_iter().map(|(path, node)| Ok((path, node.try_map(|data| packed.unpack(data))?))).collect();
            let nodes = nodes.map_err(|error| FileRefusal::Failed(error.to_string()))?;
            let placed = session.place(&nodes).map_err(|error| FileRefusal::Failed(chain(&error)))?;
            placed.map_err(FileRefusal::Failed)?;
            FileAnswer::Done
        }
        FileOrder::Read { path, most } => {
            let (mode, content) = session.read(&workspace()?, &path, most)?;
            let mut packing = Packing::default();
            let data: Data = packing.pack(content);
            let fds = packing.fds().into_iter().filter_map(|fd| fd.try_clone_to_owned().ok()).collect();
            return Ok((FileAnswer::File { mode, data }, fds));
        }
        FileOrder::Remove(path) => {
            workspace()?.remove(path.as_str())?;
            FileAnswer::Done
        }
        FileOrder::List { path, most } => {
            FileAnswer::Entries(workspace()?.list(path.as_ref().map_or(".", WorkspacePath::as_str), most)?)
        }
        FileOrder::Snapshot { most } => {
            let content = session.pack(&workspace()?, most)?;
            let mut packing = Packing::default();
            let data = packing.pack(content);
            let fds = packing.fds().into_iter().filter_map(|fd| fd.try_clone_to_owned().ok()).collect();
            return Ok((FileAnswer::File { mode: 0, data }, fds));
        }
    };
    Ok((answer, Vec::new()))
}
