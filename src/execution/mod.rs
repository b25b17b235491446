//! A request's tasks on their way through the scheduler: each starts as soon as what it needs has ended, with what that left.
//!
//! ```text
//! Plan + Jobs ──graph──> units that may start ──bind──> Task<Artifact> ──scheduler──> Finished ──> TaskEnd
//!                ▲                                                                       │
//!                └───────────────────────────── ended ───────────────────────────────────┘
//! ```
//! Which step may start is the graph's to say, how it is run the scheduler's; here contents become bytes at hand, and what
//! came of a step is kept until everybody who takes of it has started.

mod answer;
mod bind;
mod cache;
mod follow;
mod verdict;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::future;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::archive;
use crate::artifact::{Artifact, Spool};
use crate::blobs::Blobs;
use crate::config::Config;
use crate::graph::{Connection, Plan, PlanError};
use crate::scheduler::{Admission, Asker, Finished, Hosted, QueueTimeout, Saturated, Scheduler, Submission};
use crate::task::{
    Bounds, Content, Expect, ImageName, Job, Limits, Offer, Outcome, Report, ResourceLimits, Status, Task, TaskRequest,
    TaskResult, Verdict,
};
pub use answer::{Room, tell_compilation, told_inline};
pub use bind::{Loose, all_of};
pub use cache::Cache;
use follow::Following;
pub use follow::{Event, Follower, Hands, Step};
pub use verdict::{compare, of_end};

/// What runs requests' tasks.
pub struct Engine {
    pub scheduler: Arc<Scheduler>,
    pub spool: Arc<Spool>,
    /// None where there is no place for them.
    pub blobs: Option<Arc<Blobs>>,
    pub cache: Cache,
    pub archives: archive::Bounds,
    /// Larger files are given back as blobs.
    pub inline_limit: u64,
    bounds: RwLock<Arc<Bounds>>,
    pub default_image: ImageName,
}

/// A request that makes sense.
pub struct Planned {
    plan: Plan,
    tasks: Vec<PlannedTask>,
    graph: crate::graph::Graph,
    /// The tasks whose compilations are steps behind the tasks'.
    compilations: Vec<usize>,
    /// Where they run, if not in containers of their own.
    session: Option<Arc<Hosted>>,
}

/// The session that tasks run in.
pub struct Within<'a> {
    pub hosted: Arc<Hosted>,
    pub image: &'a ImageName,
    /// Of the whole.
    pub limits: &'a Limits,
    /// Of each task, where that says nothing itself.
    pub defaults: &'a ResourceLimits,
    pub env: &'a BTreeMap<String, String>,
}

/// One of its tasks.
struct PlannedTask {
    request: Told,
    /// What runs, or why it will not.
    job: Result<Job, String>,
}

/// What of a request says how its result is told.
struct Told {
    form: answer::FormRequest,
    expect: Option<Expect>,
    cache: bool,
    /// How many of its output globs are the client's own.
    globs: usize,
    is_language: bool,
}

/// How a step ended.
#[derive(Debug, Clone)]
pub enum End {
    /// It was not run, for this reason.
    Refused(String),
    /// It was not run, since what it needs did not end well.
    Blocked(String),
    /// Its turn did not come in time.
    Queued(QueueTimeout),
    Ran {
        finished: Box<Finished>,
        /// Before, for somebody else.
        cached: bool,
    },
}

impl From<Result<Finished, QueueTimeout>> for End {
    fn from(finished: Result<Finished, QueueTimeout>) -> Self {
        match finished {
            Ok(finished) => Self::Ran { finished: finished.into(), cached: false },
            Err(timeout) => Self::Queued(timeout),
        }
    }
}

impl End {
    pub fn status(&self) -> Status {
        match self {
            Self::Ran { finished, .. } => Status::of(&finished.report),
            _ => Status::NotExecuted,
        }
    }

    /// Faber itself failed.
    pub fn is_fault(&self) -> bool {
        matches!(self, Self::Ran { finished, .. } if matches!(finished.report.outcome, Outcome::Fault { .. }))
    }

    /// What stands for it where a report is told.
    pub fn into_report(self) -> Report {
        match self {
            Self::Refused(reason) | Self::Blocked(reason) => Report::not_executed(reason),
            Self::Queued(timeout) => Report::not_executed(timeout.to_string()),
            Self::Ran { finished, .. } => finished.report,
        }
    }

    /// What is told of it; what others take of it stays here.
    fn take_told(&mut self) -> Self {
        match self {
            Self::Ran { finished, cached } => Self::Ran { finished: finished.take_told().into(), cached: *cached },
            end => end.clone(),
        }
    }

    /// Why it was not run.
    pub fn reason(&self) -> String {
        match self {
            Self::Refused(reason) | Self::Blocked(reason) => reason.clone(),
            Self::Queued(timeout) => timeout.to_string(),
            Self::Ran { .. } => String::new(),
        }
    }

    pub fn finished(&self) -> Option<&Finished> {
        match self {
            Self::Ran { finished, .. } => Some(finished),
            _ => None,
        }
    }
}

/// How all of a request's tasks ended.
pub enum Ended {
    Results(Vec<TaskResult>),
    /// No task's turn came in time.
    Queued,
    /// No task could be run through Faber's own fault.
    Fault,
}

impl Planned {
    /// # Errors
    /// What makes no sense, before anything runs.
    pub fn new(
        engine: &Engine,
        requests: Vec<TaskRequest>,
        connect: &[[String; 2]],
        offers: &[Offer],
    ) -> Result<Self, PlanError> {
        let mut planned = Self::parse(engine, requests, connect, offers)?;
        for task in &mut planned.tasks {
            if task.job.as_ref().is_ok_and(|job| job.run.output.terminal.is_some()) {
                task.job =
                    Err("tty: a terminal takes a connection on which more can be said: GET /execute/live".into());
            }
        }
        Ok(planned)
    }

    /// Tasks that run in a session, in its workspace and beside its processes.
    ///
    /// # Errors
    /// What makes no sense, before anything runs.
    pub fn in_session(
        engine: &Engine,
        mut requests: Vec<TaskRequest>,
        connect: &[[String; 2]],
        offers: &[Offer],
        within: Within<'_>,
    ) -> Result<Self, PlanError> {
        let refusals: Vec<Option<String>> =
            requests.iter().map(|request| not_for_a_session(request, within.image)).collect();
        for request in &mut requests {
            request.image = Some(within.image.to_string());
            request.resource_limits = Some(request.resource_limits.take().unwrap_or_default().or(within.defaults));
            for (name, value) in within.env {
                request.env.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        let mut planned = Self::new(engine, requests, connect, offers)?;
        for (task, refusal) in planned.tasks.iter_mut().zip(refusals) {
            if let Some(reason) = refusal {
                task.job = Err(reason);
            }
            let Ok(job) = &mut task.job else { continue };
            for task in job.compile.as_deref_mut().into_iter().chain([&mut job.run]) {
                task.limits.memory = task.limits.memory.min(within.limits.memory);
                task.limits.processes = task.limits.processes.min(within.limits.processes);
                task.limits.workspace = within.limits.workspace;
            }
            if let Some(compile) = &mut job.compile {
                // It is there already, with everything else.
                compile.outputs.globs.clear();
            }
        }
        planned.session = Some(within.hosted);
        Ok(planned)
    }

    /// One task that is in its client's hands.
    ///
    /// # Errors
    /// What makes no sense, before anything runs.
    pub fn live(engine: &Engine, request: TaskRequest, offers: &[Offer]) -> Result<Self, PlanError> {
        Self::parse(engine, vec![request], &[], offers)
    }

    fn parse(
        engine: &Engine,
        requests: Vec<TaskRequest>,
        connect: &[[String; 2]],
        offers: &[Offer],
    ) -> Result<Self, PlanError> {
        let plan = Plan::new(&requests, connect)?;
        // Circles are the request's own, whatever its languages do.
        plan.graph(&requests, &[])?;
        let bounds = engine.bounds();
        let jobs: Vec<Result<Job, String>> = requests
            .iter()
            .cloned()
            .map(|request| {
                Job::parse(request, &bounds, &engine.default_image, offers).map_err(|refusal| refusal.to_string())
            })
            .collect();
        let compiles = |at: &usize| jobs[*at].as_ref().is_ok_and(|job| job.compile.is_some());
        let compilations: Vec<usize> = (0..jobs.len()).filter(compiles).collect();
        let graph = plan.graph(&requests, &compilations)?;
        let tasks = requests.into_iter().zip(jobs).zip(&plan.handed_on);
        let tasks = tasks.map(|((request, mut job), handed_on)| {
            let told = Told {
                globs: request.outputs.len(),
                is_language: request.language.is_some(),
                cache: request.cache,
                form: answer::FormRequest::new(&request),
                expect: request.expect,
            };
            if let Ok(job) = &mut job {
                job.run.outputs.globs.extend(handed_on.files.iter().cloned());
                job.run.output.handed_on = handed_on.streams;
            }
            PlannedTask { request: told, job }
        });
        Ok(Self { tasks: tasks.collect(), plan, graph, compilations, session: None })
    }

    /// Bytes: the output that its tasks may write, and that is held until it is told.
    pub fn output(&self) -> u64 {
        let jobs = self.tasks.iter().filter_map(|task| task.job.as_ref().ok());
        jobs.flat_map(|job| job.compile.as_deref().into_iter().chain([&job.run])).map(|task| task.limits.output).sum()
    }

    /// Why the first of its tasks that will not be run will not.
    pub fn refusal(&self) -> Option<&str> {
        self.tasks.iter().find_map(|task| task.job.as_ref().err()).map(String::as_str)
    }

    /// How many steps may have to wait for their turn.
    fn steps(&self) -> usize {
        self.tasks.iter().filter(|task| task.job.is_ok()).count() + self.compilations.len()
    }

    /// The task of a step, and whether the step is its compilation.
    fn task_of(&self, step: usize) -> (usize, bool) {
        match step.checked_sub(self.tasks.len()) {
            None => (step, false),
            Some(number) => (self.compilations[number], true),
        }
    }

    /// Whether all that a task's result is made of is there; one that may stand for the whole request waits for that.
    fn can_be_told(&self, ends: &[Option<End>], at: usize) -> bool {
        let is_there = |step: usize| ends[step].is_some();
        let stands_for_all = |end: &End| matches!(end, End::Queued(_)) || end.is_fault();
        let awaits_another = |expect: &Expect| matches!(&expect.stdout, Content::From(from) if !self.plan.find(&from.step).is_some_and(is_there));
        self.graph.unit(at).iter().copied().all(is_there)
            && self.compilation_of(at).is_none_or(is_there)
            && !ends[at].as_ref().is_some_and(stands_for_all)
            && !self.tasks[at].request.expect.as_ref().is_some_and(awaits_another)
    }

    /// The step that is a task's compilation, if there is one.
    fn compilation_of(&self, task: usize) -> Option<usize> {
        self.compilations.iter().position(|&compiled| compiled == task).map(|number| self.tasks.len() + number)
    }

    fn name(&self, step: usize) -> String {
        let (task, is_compilation) = self.task_of(step);
        let name = match &self.tasks[task].request.form.name {
            Some(name) => name.to_string(),
            None => format!("tasks[{task}]"),
        };
        if is_compilation { format!("the compilation of {name}") } else { name }
    }
}

impl Engine {
    pub fn new(config: &Config, scheduler: Arc<Scheduler>, spool: Spool, blobs: Option<Arc<Blobs>>) -> Self {
        Self {
            scheduler,
            spool: Arc::new(spool),
            blobs,
            cache: Cache::new(config.cache.size.0),
            archives: archive::Bounds { entries: config.archives.entries as usize, bytes: config.archives.total.0 },
            inline_limit: config.outputs.inline_limit.0,
            bounds: RwLock::new(Arc::new(config.bounds())),
            default_image: config.execution.default_image.clone(),
        }
    }

    /// What tasks may ask.
    pub fn bounds(&self) -> Arc<Bounds> {
        self.bounds.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on tasks may ask for this.
    pub fn bound(&self, bounds: Bounds) {
        *self.bounds.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(bounds);
    }

    /// Runs all of a request's tasks. Dropping this ends them. Files for which there is no `room` in the answer become blobs.
    ///
    /// # Errors
    /// When too many of the client's tasks wait: then none was taken.
    pub async fn run(
        &self,
        asker: impl Into<Asker>,
        owner: &str,
        planned: Planned,
        room: &mut Room<'_>,
    ) -> Result<Ended, Saturated> {
        self.run_all(asker.into(), owner, planned, room, None).await
    }

    /// The same, with what happens told as it does. Results that were told so are not among those at the end. What is in somebody's
    /// `hands` is the request's only task.
    ///
    /// # Errors
    /// When too many of the client's tasks wait: then none was taken, and nothing told.
    pub async fn follow(
        &self,
        asker: impl Into<Asker>,
        owner: &str,
        planned: Planned,
        room: &mut Room<'_>,
        (follower, hands): (&dyn Follower, Option<Hands>),
    ) -> Result<Ended, Saturated> {
        let following = Following::new(follower, hands);
        self.run_all(asker.into(), owner, planned, room, Some(&following)).await
    }

    async fn run_all(
        &self,
        asker: Asker,
        owner: &str,
        mut planned: Planned,
        room: &mut Room<'_>,
        following: Option<&Following<'_>>,
    ) -> Result<Ended, Saturated> {
        let admission = match &planned.session {
            Some(session) => self.scheduler.admit_to(asker.client, session.clone()),
            None => self.scheduler.admit(asker, planned.steps())?,
        };
        let mut told = vec![false; planned.tasks.len()];
        let mut ends: Vec<Option<End>> = vec![None; planned.tasks.len() + planned.compilations.len()];
        let mut running = FuturesUnordered::new();
        loop {
            for unit in planned.graph.start() {
                running.push(self.run_unit(&planned, &ends, unit, (&admission, following)));
            }
            let Some(ended) = running.next().await else { break };
            for (step, end) in ended {
                let blocked = planned.graph.ended(step, end.status() == Status::Success);
                ends[step] = Some(end);
                for blocked in blocked {
                    let reason = self.why_blocked(&planned, &ends, blocked);
                    ends[blocked.step].get_or_insert(End::Blocked(reason));
                }
            }
            let Some(following) = following else { continue };
            for (at, told) in told.iter_mut().enumerate() {
                if !*told && planned.can_be_told(&ends, at) {
                    *told = true;
                    let result = self.tell(owner, &planned, &mut ends, at, room).await;
                    following.tell(Step { task: at, is_compilation: false }, Event::Result(result.into()));
                }
            }
        }
        debug_assert!(planned.graph.is_over(), "every step has started or is blocked");
        // Their ends of pipes, and what they hold, go before the answer is made.
        drop(running);
        drop(admission);
        let ended = self.answer(owner, &planned, ends, &told, room).await;
        match (ended, following) {
            (Ended::Results(results), Some(following)) => {
                let left = (0..planned.tasks.len()).filter(|at| !told[*at]);
                for (at, result) in left.zip(results) {
                    following.tell(Step { task: at, is_compilation: false }, Event::Result(result.into()));
                }
                Ok(Ended::Results(Vec::new()))
            }
            (ended, _) => Ok(ended),
        }
    }

    fn why_blocked(&self, planned: &Planned, ends: &[Option<End>], blocked: crate::graph::Blocked) -> String {
        // A task whose compilation failed has the status of that.
        let compile = planned.compilation_of(blocked.need).and_then(|step| ends[step].as_ref());
        let failed = compile.map(End::status).filter(|status| *status != Status::Success);
        let status = failed.or(ends[blocked.need].as_ref().map(End::status)).unwrap_or(Status::NotExecuted);
        format!("needs {}, which ended with {status:?}", planned.name(blocked.need))
    }

    /// The steps that start together, bound to what they take; what keeps one of them from it keeps all.
    fn run_unit<'a>(
        &'a self,
        planned: &Planned,
        ends: &[Option<End>],
        unit: Vec<usize>,
        (admission, following): (&'a Admission, Option<&'a Following<'a>>),
    ) -> future::BoxFuture<'a, Vec<(usize, End)>> {
        let mut bound = Vec::new();
        for &step in &unit {
            match self.bind(planned, ends, step) {
                Ok(step) => bound.push(step),
                Err(reason) => return Box::pin(future::ready(none_starts(planned, &unit, step, &reason))),
            }
        }
        if let [step] = &unit[..] {
            let (step, bound) = (*step, bound.pop());
            let (task, is_compilation) = planned.task_of(step);
            let following = following.map(|following| (following, Step { task, is_compilation }));
            return Box::pin(async move {
                let end = match bound {
                    Some(bound) => self.run_step(bound, admission, following).await,
                    None => End::Refused("it was not bound".into()),
                };
                vec![(step, end)]
            });
        }
        let memory = bound.iter().map(|step: &Bound| step.task.limits.memory).sum();
        if let Some(reason) = self.scheduler.cannot_run_together(unit.len(), memory) {
            let refused = unit.into_iter().map(|step| (step, End::Refused(reason.clone()))).collect();
            return Box::pin(future::ready(refused));
        }
        let names: Vec<String> = unit.iter().map(|&step| planned.name(step)).collect();
        let pipes = planned.plan.connections.iter().filter(|pipe| unit.contains(&pipe.from)).copied().collect();
        Box::pin(self.run_together(unit, names, bound, pipes, admission))
    }

    async fn run_step(&self, bound: Bound, admission: &Admission, following: Option<(&Following<'_>, Step)>) -> End {
        let Bound { task, archives, cache } = bound;
        let task = match self.fetch(task, archives).await {
            Ok(task) => task,
            Err(reason) => return End::Refused(reason),
        };
        let submit = |task| async move {
            match following {
                Some((following, step)) => self.submit_followed(task, admission, following, step).await,
                None => self.submit(task, admission).await,
            }
        };
        if !cache || following.is_some_and(|(following, step)| !step.is_compilation && following.is_in_hand()) {
            return submit(task).await;
        }
        let end = self.cache.get_or(task, submit).await;
        following.inspect(|(following, step)| following.tell_output_of(*step, &end));
        end
    }

    /// One task by itself.
    pub async fn submit(&self, task: Task<Artifact>, admission: &Admission) -> End {
        let pending = admission.submit(vec![Submission::plain(task)]);
        match future::join_all(pending.into_iter().map(|pending| pending.finished())).await.pop() {
            Some(finished) => finished.into(),
            None => End::Refused("Faber lost the task before it started".into()),
        }
    }

    async fn run_together(
        &self,
        unit: Vec<usize>,
        names: Vec<String>,
        bound: Vec<Bound>,
        connections: Vec<Connection>,
        admission: &Admission,
    ) -> Vec<(usize, End)> {
        let mut tasks = Vec::new();
        for (Bound { task, archives, .. }, name) in bound.into_iter().zip(&names) {
            match self.fetch(task, archives).await {
                Ok(task) => tasks.push(task),
                Err(reason) => {
                    let reason = format!("{name}, which is connected, could not be started: {reason}");
                    return unit.into_iter().map(|step| (step, End::Refused(reason.clone()))).collect();
                }
            }
        }
        let place = |step: usize| unit.iter().position(|&member| member == step).unwrap_or(0);
        let pipes: Vec<Pipe> = connections
            .iter()
            .map(|pipe| Pipe { from: place(pipe.from), to: place(pipe.to), stream: pipe.stream, record: pipe.record })
            .collect();
        let ends = self.submit_connected(tasks, &pipes, admission).await;
        unit.into_iter().zip(ends).collect()
    }

    /// Tasks joined by pipes, which start together or not at all.
    pub async fn submit_connected(
        &self,
        tasks: Vec<Task<Artifact>>,
        pipes: &[Pipe],
        admission: &Admission,
    ) -> Vec<End> {
        let count = tasks.len();
        let submissions = match connected(tasks, pipes) {
            Ok(submissions) => submissions,
            Err(error) => return vec![End::Refused(format!("make a pipe: {error}")); count],
        };
        let pending = admission.submit(submissions);
        future::join_all(pending.into_iter().map(|pending| async { pending.finished().await.into() })).await
    }
}

/// A program that can be run for case after case.
pub struct Prepared {
    /// What runs, with all that its compilation left; or why it cannot.
    pub task: Result<Task<Artifact>, String>,
    /// None where nothing is compiled.
    pub compile: Option<End>,
}

impl Engine {
    /// Compiles a job, if it has to be, and fetches what it takes.
    pub async fn prepare(&self, job: Job, admission: &Admission) -> Prepared {
        let archives = job.archives.into_iter().map(|archive| {
            let content = loose(archive.content)?;
            Ok(bind::LooseArchive { content, format: archive.format, below: archive.below })
        });
        let archives = match archives.collect::<Result<Vec<_>, String>>() {
            Ok(archives) => archives,
            Err(reason) => return Prepared { task: Err(reason), compile: None },
        };
        let run = job.run.try_map(loose);
        let Some(compilation) = job.compile else {
            let task = match run {
                Ok(run) => self.fetch(run, archives).await,
                Err(reason) => Err(reason),
            };
            return Prepared { task, compile: None };
        };
        let end = match compilation.try_map(loose) {
            Ok(task) => self.run_step(Bound { task, archives, cache: true }, admission, None).await,
            Err(reason) => End::Refused(reason),
        };
        let task = match end.finished().filter(|_| end.status() == Status::Success) {
            None => Err("compilation failed".into()),
            Some(finished) => match (run, all_of(&finished.taken)) {
                (Ok(run), Ok(files)) => self.fetch(run, Vec::new()).await.map(|run| Task { files, ..run }),
                (Err(reason), _) | (_, Err(reason)) => Err(reason),
            },
        };
        Prepared { task, compile: Some(end) }
    }
}

/// A step with what it takes of others, its blobs and archives not fetched yet.
struct Bound {
    task: Task<Loose>,
    archives: Vec<bind::LooseArchive>,
    cache: bool,
}

/// A live pipe between two tasks of a unit, by their places in it.
#[derive(Debug, Clone, Copy)]
pub struct Pipe {
    pub from: usize,
    pub stream: crate::task::Stream,
    pub to: usize,
    pub record: bool,
}

/// What of a task is the session's to say.
fn not_for_a_session(request: &TaskRequest, image: &ImageName) -> Option<String> {
    let limits = request.resource_limits.as_ref();
    match () {
        () if request.image.as_deref().is_some_and(|asked| asked != image.as_str()) => {
            Some(format!("the session is of the image {image}"))
        }
        () if limits.is_some_and(|limits| limits.workspace_limit.is_some()) => {
            Some("workspace_limit is the session's: POST /sessions takes it".into())
        }
        () if limits.is_some_and(|limits| limits.cpus.is_some()) => Some("cpus is not for a session's tasks".into()),
        () => None,
    }
}

fn none_starts(planned: &Planned, unit: &[usize], step: usize, reason: &str) -> Vec<(usize, End)> {
    let refused = |&member: &usize| match member == step {
        true => (member, End::Refused(reason.to_owned())),
        false => {
            let text = format!("{}, which is connected, could not be started: {reason}", planned.name(step));
            (member, End::Blocked(text))
        }
    };
    unit.iter().map(refused).collect()
}

/// The tasks with the ends of their pipes.
fn connected(tasks: Vec<Task<Artifact>>, pipes: &[Pipe]) -> std::io::Result<Vec<Submission>> {
    let mut submissions: Vec<Submission> = tasks.into_iter().map(Submission::plain).collect();
    for pipe in pipes {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // Each end is one task's own to open, as /dev/stdin is, and neither task is the other's user.
        rustix::fs::fchmod(&reader, rustix::fs::Mode::from_raw_mode(0o666))?;
        submissions[pipe.to].pipes.stdin = Some(reader);
        submissions[pipe.from].pipes.outputs[pipe.stream as usize] = Some((writer, pipe.record));
    }
    Ok(submissions)
}

/// Bytes that came with a request are at hand; everything else has yet to be looked for.
pub fn loose(content: Content) -> Result<Loose, String> {
    match content {
        Content::Bytes(bytes) => Ok(Loose::Ready(Artifact::Bytes(bytes))),
        Content::Blob(digest) => Ok(Loose::Blob(digest)),
        Content::From(_) => Err("there are no other tasks to take it from".into()),
    }
}

/// What a verdict says of a task, and why.
pub type Judged = (Verdict, Option<String>);
