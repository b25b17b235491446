//! The runner: the single-threaded process that serves one slot, one task at a time.
//!
//! ```text
//! empty ──create──> created ──Order::Run──> running ──report──> removing ──> empty
//!   │                  └─ its init is gone ──(delay, or a task)──> empty
//!   └─ create fails: Notice::Failed, and the process ends (libcontainer leaks with each failure)
//! ```
//! After a task of a request of which more wait it is a cell of that request's own container that is created next ([`sharing`]).
//! One poll at a time, blocking throughout: libcontainer forks without exec, which a threaded process must not.
//! What it forks inherits nothing that speaks: there is no tracing subscriber here, faults travel to the front.

mod session;
mod sharing;
pub mod wire;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::artifact::{Artifact, Data, Packed, Packing, Spool};
use crate::chain::chain;
use crate::frame;
use crate::image::{Catalog, Store, StoreError};
use crate::restart::Restart;
use crate::sandbox::confine::keep_what_containers_take;
use crate::sandbox::{Caller, ContainerError, Created, Inlet, Links, Outlet, Ran, Slot, SlotError, SlotPlace};
use crate::task::{Figures, Groups, ImageId, Limits, Report, Taken, Task, Word};
use sharing::Shared;
use wire::{Notice, Order, Pipes, Setup, Sharing};

/// How long a step that has no end of its own may take: libcontainer's create and start have none. SIGALRM then ends the
/// process, and the keeper sweeps what it left.
const STUCK: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    #[error("{step}")]
    Io { step: &'static str, source: io::Error },
    #[error(transparent)]
    Image(#[from] StoreError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Container(#[from] ContainerError),
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> RunnerError {
    move |error| RunnerError::Io { step, source: error.into() }
}

/// Serves `socket` until its other end is closed.
///
/// # Errors
/// When the slot or a container cannot be made; the front has been told.
pub fn serve(socket: UnixStream) -> Result<(), RunnerError> {
    let Some((setup, mut fds)) = frame::receive_with::<Setup>(&socket).map_err(at("read the set-up"))? else {
        return Ok(());
    };
    let spool = fds.pop().ok_or(io::ErrorKind::InvalidData).map_err(at("take the spool"))?.into();
    raise_descriptors();
    let served = Runner::claim(&setup, &socket, spool).and_then(|mut runner| runner.serve(&socket));
    if let Err(error) = &served {
        // Nobody may be there to hear it.
        let _ = frame::send(&socket, &Notice::Failed(chain(error)));
    }
    served
}

struct Runner {
    slot: Slot,
    /// Containers that wait for a task, one of an image at most; the one that was made last is last.
    waiting: Vec<Waiting>,
    /// How many may.
    most: usize,
    /// Containers of requests with many tasks.
    shared: Shared,
    /// What the next container is made of.
    image: ImageId,
    /// The limits of what was run last, which the like of it most likely has.
    last: Option<Limits>,
    /// When the last task ended.
    busy: Instant,
    /// How many interpreters may wait.
    prepared: usize,
    /// Images whose interpreter has come to an end by itself.
    unprepared: Vec<ImageId>,
    /// What the operator is yet to hear, with the next report.
    to_tell: Option<String>,
    /// What it is made of when that is not there any more.
    default_image: ImageId,
    max: Limits,
}

struct Waiting {
    created: Created,
    since: Instant,
}

/// How long a container waits for a task before an interpreter is started in it: where one task follows the other it would only be in
/// their way.
const QUIET: Duration = Duration::from_millis(2);
/// Of so many images a runner keeps a container waiting: those it ran last.
const IMAGES: usize = 12;

/// What a waiting runner saw first.
enum Event {
    Order(Order, Vec<OwnedFd>),
    /// Of the waiting container with this index.
    InitGone(usize),
    /// It is time to make another container.
    Due,
    Closed,
}

impl Runner {
    fn claim(setup: &Setup, socket: &UnixStream, spool: Spool) -> Result<Self, RunnerError> {
        let foreign = vec![socket.as_raw_fd()];
        let Setup { run_dir, dir, instance, slot, data_dir, default_image, max, resources } = setup;
        let store = Store::new(data_dir);
        // As it is now: it may have been built anew since the keeper started.
        let image = Catalog::new(store.clone()).image(default_image)?.id();
        let slot = Slot::claim(SlotPlace { run_dir, dir, instance, name: slot }, store, foreign, *resources, spool)?;
        keep_what_containers_take().map_err(at("give up capabilities"))?;
        // Without groups the processes of all that is the slot's are counted together.
        let most = if resources.groups == Groups::Used { IMAGES } else { 1 };
        let (waiting, shared) = (Vec::new(), Shared::default());
        Ok(Self {
            slot,
            waiting,
            most,
            shared,
            image: image.clone(),
            last: None,
            busy: Instant::now(),
            prepared: if resources.cpus.is_none() { resources.prepared } else { 0 },
            unprepared: Vec::new(),
            to_tell: None,
            default_image: image,
            max: max.clone(),
        })
    }

    fn serve(&mut self, socket: &UnixStream) -> Result<(), RunnerError> {
        let mut restart = Restart::new();
        self.refill()?;
        say(socket, &Notice::Ready)?;
        loop {
            // One is to wait for the like of what came last.
            let refill =
                self.is_short().then(|| self.shared.quiet().map_or(restart.due(), |quiet| quiet.max(restart.due())));
            let prepare = self.due_to_prepare();
            let due = refill.into_iter().chain(self.shared.due()).chain(prepare).min();
            match wait(socket, &self.waiting, due)? {
                Event::Closed => return Ok(()),
                // Too late: its task has ended.
                Event::Order(Order::Say(_) | Order::Go | Order::Watch | Order::Files(_), _) => {}
                Event::Order(Order::Host { image, limits }, _) => return self.host(&image, &limits, socket),
                // Whoever kills inits does not get as many as there is time for.
                Event::InitGone(index) => {
                    let Waiting { created, since } = self.waiting.remove(index);
                    if created.is_prepared() {
                        self.do_without(created.image(), None);
                    }
                    restart.ended(since.elapsed());
                }
                Event::Due => {
                    self.shared.let_go();
                    if refill.is_some_and(|due| due <= Instant::now()) {
                        self.refill()?;
                    } else if prepare.is_some_and(|due| due <= Instant::now()) {
                        self.prepare();
                    }
                }
                Event::Order(Order::Run { task, pipes, hold, sharing, figures }, fds) => {
                    let image = task.image.clone();
                    let sharing = sharing.filter(|_| self.most > 1);
                    self.run(unpack(*task, pipes, fds)?, sharing, Front { socket, hold, figures })?;
                    self.go_on(&image, sharing)?;
                    say(socket, &Notice::Ready)?;
                }
            }
        }
    }

    /// Has a cell wait for what comes next of the same request, or a container for anything.
    fn go_on(&mut self, image: &ImageId, sharing: Option<Sharing>) -> Result<(), RunnerError> {
        let _watchdog = Watchdog::set(STUCK);
        match sharing {
            // The image may be gone.
            Some(Sharing { request, more: true }) if self.image == *image => {
                if self.shared.refill(&mut self.slot, request, image)? { Ok(()) } else { self.top_up() }
            }
            Some(Sharing { request, .. }) => {
                self.shared.end(request);
                self.top_up()
            }
            None => self.top_up(),
        }
    }

    /// Whether no container waits for the like of what came last, whatever its command is.
    fn is_short(&self) -> bool {
        !self.waiting.iter().any(|waiting| waiting.created.image() == self.image && !waiting.created.is_prepared())
    }

    fn top_up(&mut self) -> Result<(), RunnerError> {
        if self.is_short() { self.refill() } else { Ok(()) }
    }

    /// A container for the like of what came last in which an interpreter could wait, when none does.
    fn to_prepare(&self) -> Option<usize> {
        let is_alike = |waiting: &&Waiting| waiting.created.image() == self.image;
        // A share of the processors is given to a process before it is anything.
        let limits = self.last.as_ref().filter(|limits| limits.cpus.is_none() && self.prepared > 0)?;
        if self.unprepared.contains(&self.image) {
            return None;
        }
        if self.waiting.iter().filter(is_alike).any(|waiting| waiting.created.is_prepared_for(limits)) {
            return None;
        }
        self.waiting.iter().position(|waiting| is_alike(&waiting) && waiting.created.can_prepare())
    }

    fn due_to_prepare(&self) -> Option<Instant> {
        let since = self.to_prepare().map(|index| self.waiting[index].since);
        since.map(|since| since.max(self.busy) + QUIET)
    }

    /// Has an interpreter wait, in a container that then is for nothing else; the one that has waited longest is given up if there are
    /// too many.
    fn prepare(&mut self) {
        let (Some(limits), Some(index)) = (self.last.clone(), self.to_prepare()) else { return };
        let _watchdog = Watchdog::set(STUCK);
        let mut waiting = self.waiting.remove(index);
        if let Err(error) = waiting.created.prepare(&limits) {
            return self.do_without(waiting.created.image(), Some(&error));
        }
        // One that is for other limits has not been of use.
        let image = waiting.created.image();
        self.waiting.retain(|Waiting { created, .. }| created.image() != image || !created.is_prepared());
        self.waiting.push(waiting);
        let prepared = self.waiting.iter().filter(|waiting| waiting.created.is_prepared()).count();
        if prepared > self.prepared
            && let Some(oldest) = self.waiting.iter().position(|waiting| waiting.created.is_prepared())
        {
            self.waiting.remove(oldest);
        }
    }

    /// No interpreter of this image waits here any more.
    fn do_without(&mut self, image: ImageId, error: Option<&ContainerError>) {
        let why = error.map_or_else(|| "it ended by itself".to_owned(), |error| chain(error));
        self.to_tell = Some(format!("no interpreter of the image {} waits in this slot any more: {why}", image.name));
        self.unprepared.push(image);
    }

    /// Has a container wait for what comes next, which is most likely the like of what came last.
    fn refill(&mut self) -> Result<(), RunnerError> {
        // One of what the image was before is of no use any more.
        let image = self.image.clone();
        self.waiting.retain(|Waiting { created, .. }| created.image() == image || created.image().name != image.name);
        let created = self.create()?;
        self.waiting.push(Waiting { created, since: Instant::now() });
        Ok(())
    }

    /// One more, in the place of what has waited longest if there are too many.
    fn create(&mut self) -> Result<Created, RunnerError> {
        while self.waiting.len() >= self.most {
            self.waiting.remove(0);
        }
        let _watchdog = Watchdog::set(STUCK);
        Ok(self.slot.create(&self.image)?)
    }

    /// The cell or the container that waits for such a task, or else a container that is made now.
    fn take(
        &mut self,
        image: &ImageId,
        sharing: Option<Sharing>,
        task: Option<(&Task<Artifact>, &Links)>,
    ) -> Result<Created, RunnerError> {
        self.image = image.clone();
        if let Some(cell) = sharing.and_then(|Sharing { request, .. }| self.shared.take(request, image)) {
            return Ok(cell);
        }
        let is_alike = |waiting: &&Waiting| waiting.created.image() == *image;
        let suits = |waiting: &Waiting| {
            is_alike(&waiting) && task.is_some_and(|(task, links)| waiting.created.has_an_interpreter_for(task, links))
        };
        let is_plain = |waiting: &Waiting| is_alike(&waiting) && !waiting.created.is_prepared();
        match self.waiting.iter().position(suits).or_else(|| self.waiting.iter().position(is_plain)) {
            Some(index) => Ok(self.waiting.remove(index).created),
            None => self.create(),
        }
    }

    /// Has a container stay, until the front lets go of it; then the runner ends.
    fn host(&mut self, image: &ImageId, limits: &Limits, socket: &UnixStream) -> Result<(), RunnerError> {
        let watchdog = Watchdog::set(STUCK);
        if !limits.within(&self.max) {
            return say(socket, &Notice::Failed("the order asks for more than this runner may grant".into()));
        }
        let created = self.take(image, None, None)?;
        let session = created.into_session(limits)?;
        self.waiting.clear();
        self.shared = Shared::default();
        say(socket, &Notice::Ready)?;
        drop(watchdog);
        session::serve(&self.slot, session, &self.max, socket)
    }

    /// Runs one task and reports; the container's removal comes after the report.
    fn run(
        &mut self,
        (task, links): (Task<Artifact>, Links),
        sharing: Option<Sharing>,
        mut front: Front<'_>,
    ) -> Result<(), RunnerError> {
        let socket = front.socket;
        if let Some(reason) = refusal(&task, &self.max) {
            return report(socket, Report::fault(reason), Taken::default(), [Some(reason.into()), None]);
        }
        self.slot.expect(&task.limits);
        self.last = Some(task.limits.clone());
        let mut created = match self.take(&task.image, sharing, Some((&task, &links))) {
            Ok(created) => created,
            // It was removed after the task was taken. libcontainer has had no part in this, so the runner goes on.
            Err(RunnerError::Container(error @ ContainerError::Slot(_))) => {
                let reason = format!("the image {} cannot be used any more", task.image.name);
                self.image = self.default_image.clone();
                return report(socket, Report::not_executed(reason), Taken::default(), [Some(chain(&error)), None]);
            }
            Err(error) => return Err(error),
        };
        let _watchdog = Watchdog::set(STUCK + Duration::from_nanos(task.limits.wall_time));
        if let Err(error) = created.settle(&task) {
            // The task is none the worse for it.
            self.do_without(created.image(), Some(&error));
            drop(created);
            created = self.slot.create(&task.image)?;
        }
        let Ran { report: ended, taken, fault, remains } = created.run(task, links, &mut front);
        report(socket, ended, taken, [fault.map(|fault| chain(&fault)), self.to_tell.take()])?;
        drop(remains);
        self.busy = Instant::now();
        Ok(())
    }
}

/// The front, as whoever ordered a task.
struct Front<'a> {
    socket: &'a UnixStream,
    hold: bool,
    figures: bool,
}

impl Caller for Front<'_> {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Its partners may be made ready yet.
    fn may_start(&mut self) -> io::Result<bool> {
        if !self.hold {
            return Ok(true);
        }
        frame::send(self.socket, &Notice::Prepared)?;
        Ok(matches!(frame::receive::<Order>(self.socket)?, Some(Order::Go)))
    }

    fn hear(&mut self) -> Word {
        match frame::receive::<Order>(self.socket) {
            Ok(Some(Order::Say(word))) => word,
            // A front that is gone, or says what makes no sense now.
            _ => Word::Cancel,
        }
    }

    fn wants_figures(&self) -> bool {
        self.figures
    }

    fn tell(&mut self, figures: Figures) {
        // That nobody hears it shows at the report.
        let _ = frame::send(self.socket, &Notice::Figures(figures));
    }
}

/// The order's descriptors become what they are for.
fn unpack(task: Task<Data>, pipes: Pipes, mut fds: Vec<OwnedFd>) -> Result<(Task<Artifact>, Links), RunnerError> {
    let mut links = Links::default();
    for stream in [1, 0] {
        links.outputs[stream] = pipes.outputs[stream].and_then(|record| fds.pop().map(|pipe| Outlet { pipe, record }));
    }
    let inlet = if task.output.terminal.is_some() { Inlet::Stream } else { Inlet::Pipe };
    links.stdin = pipes.stdin.then(|| fds.pop()).flatten().map(inlet);
    let packed = Packed::new(fds);
    Ok((task.try_map(|data| packed.unpack(data)).map_err(at("take an order's descriptors"))?, links))
}

fn report(
    socket: &UnixStream,
    report: Report,
    taken: Taken<Artifact>,
    [fault, note]: [Option<String>; 2],
) -> Result<(), RunnerError> {
    let mut packing = Packing::default();
    let taken = taken.try_map(|artifact| Ok::<_, std::convert::Infallible>(packing.pack(artifact)));
    let taken = taken.unwrap_or_else(|never| match never {});
    let notice = Notice::Report { report: report.into(), taken, fault, note };
    frame::send_with(socket, &notice, &packing.fds()).map_err(at("tell the front"))
}

/// Files come and go as descriptors, and the soft limit is kept low for programs that use select(2). A task has its own.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// The front parsed the task and granted its limits; a front that was taken over must gain nothing by not doing so.
fn refusal(task: &Task<Artifact>, max: &Limits) -> Option<&'static str> {
    (!task.limits.within(max)).then_some("the order asks for more than this runner may grant")
}

fn say(socket: &UnixStream, notice: &Notice) -> Result<(), RunnerError> {
    frame::send(socket, notice).map_err(at("tell the front"))
}

/// Waits for the front and for the end of a waiting container's init, and until another one is due.
fn wait(socket: &UnixStream, waiting: &[Waiting], due: Option<Instant>) -> Result<Event, RunnerError> {
    let ends: Vec<[BorrowedFd<'_>; 2]> = waiting.iter().map(|waiting| waiting.created.ends()).collect();
    let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
    fds.extend(ends.iter().flatten().map(|end| PollFd::new(end, PollFlags::IN)));
    loop {
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(Event::Due),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(at("wait for an order")(errno)),
        }
    }
    if fds[0].revents().is_empty() {
        let gone = fds[1..].iter().position(|fd| !fd.revents().is_empty());
        return Ok(gone.map_or(Event::Due, |end| Event::InitGone(end / 2)));
    }
    let order = frame::receive_with(socket).map_err(at("read an order"))?;
    Ok(order.map_or(Event::Closed, |(order, fds)| Event::Order(order, fds)))
}

/// alarm(2) while it lives. A forked child does not inherit it.
struct Watchdog;

impl Watchdog {
    fn set(patience: Duration) -> Self {
        nix::unistd::alarm::set(u32::try_from(patience.as_secs()).unwrap_or(u32::MAX));
        Self
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        nix::unistd::alarm::cancel();
    }
}

/// The runner's process: its socket is its standard input.
///
/// # Errors
/// When the socket is not there, and [`serve`]'s.
pub fn main() -> Result<(), RunnerError> {
    let socket = rustix::io::dup(io::stdin()).map_err(at("take the socket"))?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).map_err(at("take the socket"))?;
    let null = File::open("/dev/null").map_err(at("open /dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(at("close the standard input"))?;
    serve(UnixStream::from(socket))
}
