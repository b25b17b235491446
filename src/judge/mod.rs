//! A judgement: a program compiled once, run for each case, and what its output is worth.
//!
//! ```text
//! JudgeRequest ──parse──> Judgement ──prepare──> programs, compiled ──> each case: run ──> compare, check ──> verdict
//! ```
//! Cases are tasks as any others, apart from each other as all are; a few of them wait for their turn at a time, so that others
//! have theirs in between.

mod request;
mod verdict;

use futures_util::future;
use futures_util::stream::{self, StreamExt};
use tokio::sync::watch;

use crate::artifact::Artifact;
use crate::execution::{self, End, Engine, Loose, Pipe, Prepared, loose, tell_compilation};
use crate::scheduler::{Admission, Asker, Finished, Saturated};
use crate::task::{
    CaseInput, CasePart, Compare, Content, Job, Node, Offer, Report, ResourceLimits, Status, Stream, Task, TaskRequest,
    TaskResult, Verdict, WorkspacePath,
};
pub use request::{CaseRequest, CaseResult, Comparison, JudgeRequest, JudgeResponse, Most, Stop};

/// So much of a case's output is in the answer if all of it was not asked for.
const OUTPUT_SHOWN: usize = 1 << 10;
/// The longest message of a checker.
const MESSAGE_BYTES: usize = 1 << 10;

/// What of a request makes no judgement, before anything runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// A judgement that can be made.
pub struct Judgement {
    solution: Result<Job, String>,
    decision: Decision,
    cases: Vec<Case>,
    stop: Stop,
    all_output: bool,
}

/// What decides, once a case has run.
enum Decision {
    Compare(Compare),
    Checker(Result<Job, String>),
    Interactor(Result<Job, String>),
}

struct Case {
    name: String,
    stdin: Option<Content>,
    expected: Option<Content>,
    /// What it gives the program, or why that cannot run.
    part: Result<CasePart, String>,
}

/// Files of whoever calls on the command line, in the place of a case's content: each is read when its case runs.
#[derive(Debug, Clone, Default)]
pub struct CaseFiles {
    pub stdin: Option<std::path::PathBuf>,
    pub expected: Option<std::path::PathBuf>,
}

/// How a judgement ended.
pub enum Judged {
    Response(Box<JudgeResponse>),
    /// No turn came in time.
    Queued,
    /// Nothing could be run through Faber's own fault.
    Fault,
}

/// Hears of each case as it ends, by its place.
pub type Progress<'a> = &'a (dyn Fn(usize, &CaseResult) + Sync);

impl Judgement {
    /// # Errors
    /// What makes no sense, before anything runs.
    pub fn parse(engine: &Engine, request: JudgeRequest, offers: &[Offer]) -> Result<Self, Invalid> {
        let JudgeRequest { cases, compare, interactor, stop, outputs, args, .. } = request;
        if cases.is_empty() {
            return Err(Invalid("Invalid cases: at least one case is needed".into()));
        }
        let limits = request.resource_limits.unwrap_or_default();
        let program = TaskRequest {
            language: request.language,
            code: request.code,
            command: request.command,
            env: request.env,
            files: request.files,
            image: request.image,
            resource_limits: Some(limits.clone()),
            compile_limits: request.compile_limits,
            // All cases are measured alike.
            prepared: Some(false),
            ..TaskRequest::default()
        };
        check_program("", &program)?;
        let decision = match (interactor, compare) {
            (None, Comparison::With(compare)) => Decision::Compare(compare),
            (None, Comparison::Checker(task)) => Decision::Checker(decider(engine, "compare.checker", *task, offers)?),
            (Some(task), compare) if compare == Comparison::default() => {
                Decision::Interactor(decider(engine, "interactor", task, offers)?)
            }
            (Some(_), _) => return Err(Invalid("interactor stands in place of compare".into())),
        };
        let solution = parse(engine, program, offers);
        let parts = Parts { solution: &solution, args: &args, limits: &limits, engine, offers };
        let needs_expected = matches!(decision, Decision::Compare(_));
        let cases = cases.into_iter().enumerate().map(|(at, case)| parts.case(at, case, needs_expected));
        let cases = cases.collect::<Result<_, _>>()?;
        Ok(Self { solution, decision, cases, stop, all_output: outputs })
    }

    /// Bytes: the output that is held at once, until it is told.
    pub fn output(&self) -> u64 {
        let limits = |case: &Case| case.part.as_ref().map_or(0, |part| part.limits.output);
        let largest = self.cases.iter().map(limits).max().unwrap_or(0);
        let told = 4 * OUTPUT_SHOWN as u64 * self.cases.len() as u64;
        match self.all_output {
            true => told + self.cases.iter().map(limits).sum::<u64>(),
            false => told + largest * WINDOW.min(self.cases.len()) as u64,
        }
    }

    /// Makes the judgement. Dropping this ends what runs of it.
    ///
    /// # Errors
    /// When too many of the client's tasks wait: then nothing was taken.
    pub async fn run(
        self,
        engine: &Engine,
        asker: impl Into<Asker>,
        files: &[CaseFiles],
        progress: Progress<'_>,
    ) -> Result<Judged, Saturated> {
        let together = if matches!(self.decision, Decision::Interactor(_)) { 2 } else { 1 };
        let admission = engine.scheduler.admit(asker, WINDOW.min(self.cases.len()).max(2) * together)?;
        let (solution, decider) = future::join(prepare(engine, &self.solution, &admission), async {
            match &self.decision {
                Decision::Compare(_) => None,
                Decision::Checker(job) | Decision::Interactor(job) => Some(prepare(engine, job, &admission).await),
            }
        })
        .await;
        let compile = solution.compilation();
        let trial = Trial { judgement: &self, engine, admission: &admission, files, solution, decider };
        Ok(trial.judge(compile, progress).await)
    }
}

/// Cases that wait or run at a time.
const WINDOW: usize = 8;

/// What cases are made of.
struct Parts<'a> {
    solution: &'a Result<Job, String>,
    args: &'a [String],
    limits: &'a ResourceLimits,
    engine: &'a Engine,
    offers: &'a [Offer],
}

impl Parts<'_> {
    fn case(&self, at: usize, case: CaseRequest, needs_expected: bool) -> Result<Case, Invalid> {
        const NAME_BYTES: usize = 256;
        let CaseRequest { name, stdin, expected, args, env, files, resource_limits } = case;
        let name = name.unwrap_or_else(|| (at + 1).to_string());
        if name.len() > NAME_BYTES {
            return Err(Invalid(format!("cases[{at}].name: longer than {NAME_BYTES} bytes")));
        }
        if needs_expected && expected.is_none() {
            return Err(Invalid(format!("cases[{at}]: expected is missing, with which the output is compared")));
        }
        let given = files.values().filter_map(|file| match file {
            crate::task::FileRequest::File { content, .. } => Some(content),
            _ => None,
        });
        let mut contents = given.chain(&stdin).chain(&expected);
        if contents.any(|content| matches!(content, Content::From(_))) {
            return Err(Invalid(format!("cases[{at}]: a judgement has no tasks to take something from")));
        }
        let input = CaseInput { args, env, files, limits: resource_limits.unwrap_or_default() };
        let part = match self.solution {
            Err(reason) => Err(reason.clone()),
            Ok(job) => CasePart::parse(input, &job.run, (self.args, self.limits), &self.engine.bounds(), self.offers)
                .map_err(|refusal| refusal.to_string()),
        };
        Ok(Case { name, stdin, expected, part })
    }
}

fn parse(engine: &Engine, request: TaskRequest, offers: &[Offer]) -> Result<Job, String> {
    Job::parse(request, &engine.bounds(), &engine.default_image, offers).map_err(|refusal| refusal.to_string())
}

/// A program that decides: of what a task can be, only what runs is its own.
fn decider(engine: &Engine, place: &str, task: TaskRequest, offers: &[Offer]) -> Result<Result<Job, String>, Invalid> {
    let place = format!("{place}: ");
    check_program(&place, &task)?;
    let is_more = task.stdin.is_some()
        || !task.needs.is_empty()
        || !task.record.is_empty()
        || !task.outputs.is_empty()
        || task.expect.is_some()
        || task.merge_output.is_some();
    if is_more {
        return Err(Invalid(format!(
            "{place}stdin, outputs, merge_output, needs, record and expect are the judgement's"
        )));
    }
    Ok(parse(engine, task, offers))
}

fn check_program(place: &str, task: &TaskRequest) -> Result<(), Invalid> {
    if let Some(lack) = task.nothing_to_run() {
        return Err(Invalid(format!("{place}{lack}")));
    }
    let files = task.files.values().filter_map(|file| match file {
        crate::task::FileRequest::File { content, .. } => Some(content),
        _ => None,
    });
    let archives = task.archives.iter().map(|archive| &archive.content);
    match files.chain(archives).chain(&task.code).any(|content| matches!(content, Content::From(_))) {
        true => Err(Invalid(format!("{place}a judgement has no tasks to take something from"))),
        false => Ok(()),
    }
}

/// A program, compiled if it had to be.
struct Program {
    task: Result<Task<Artifact>, String>,
    /// Its compilation, and how that ended.
    compile: Option<End>,
}

impl Program {
    fn failed_compilation(&self) -> Option<&End> {
        self.compile.as_ref().filter(|end| end.status() != Status::Success)
    }

    /// What is told of the compilation; None where nothing is compiled.
    fn compilation(&self) -> Option<TaskResult> {
        let end = self.compile.clone()?;
        let mut result = TaskResult::from(Report::not_executed(""));
        tell_compilation(Some(end), &mut result);
        result.compile.and_then(|compilation| compilation.0).map(|result| *result)
    }
}

async fn prepare(engine: &Engine, job: &Result<Job, String>, admission: &Admission) -> Program {
    match job {
        Err(reason) => Program { task: Err(reason.clone()), compile: None },
        Ok(job) => {
            let Prepared { task, compile } = engine.prepare(job.clone(), admission).await;
            Program { task, compile }
        }
    }
}

/// A judgement under way.
struct Trial<'a> {
    judgement: &'a Judgement,
    engine: &'a Engine,
    admission: &'a Admission,
    files: &'a [CaseFiles],
    solution: Program,
    decider: Option<Program>,
}

/// What came of one case before it is told.
struct Decided {
    verdict: Verdict,
    message: Option<String>,
    end: End,
}

impl Trial<'_> {
    async fn judge(self, compile: Option<TaskResult>, progress: Progress<'_>) -> Judged {
        // The first case that is not accepted, after which the rest is skipped, what runs of it too.
        let first_failure = watch::Sender::new(usize::MAX);
        let stop = self.judgement.stop == Stop::FirstFailure;
        let cases = (0..self.judgement.cases.len()).map(|at| {
            let (this, first_failure, mut failed) = (&self, &first_failure, first_failure.subscribe());
            async move {
                let decided = tokio::select! {
                    biased;
                    _ = failed.wait_for(|first| *first < at) => skip(),
                    decided = this.decide(at) => decided,
                };
                if stop && decided.verdict != Verdict::Accepted {
                    first_failure.send_if_modified(|first| at < *first && std::mem::replace(first, at) != at);
                }
                let is_fault = decided.end.is_fault();
                let is_queued = matches!(decided.end, End::Queued(_));
                let result = this.tell(at, decided);
                progress(at, &result);
                (at, result, is_fault, is_queued)
            }
        });
        let mut ended: Vec<_> = stream::iter(cases).buffer_unordered(WINDOW).collect().await;
        ended.sort_by_key(|(at, ..)| *at);
        if ended.iter().all(|(.., is_queued)| *is_queued) {
            return Judged::Queued;
        }
        if ended.iter().all(|(_, _, is_fault, is_queued)| *is_fault || *is_queued) {
            return Judged::Fault;
        }
        let mut cases: Vec<CaseResult> = ended.into_iter().map(|(_, case, ..)| case).collect();
        self.skip_after_failure(&mut cases);
        let verdict = verdict::of_all(cases.iter().map(|case| case.verdict));
        let max = most(&cases);
        Judged::Response(Box::new(JudgeResponse { verdict, compile, cases, max }))
    }

    /// What ran before an earlier case's failure was known is told as if it had not.
    fn skip_after_failure(&self, cases: &mut [CaseResult]) {
        let failure = cases.iter().position(|case| case.verdict != Verdict::Accepted);
        let Some(failure) = failure.filter(|_| self.judgement.stop == Stop::FirstFailure) else { return };
        for (at, case) in cases.iter_mut().enumerate().skip(failure + 1) {
            *case = self.tell(at, skip());
        }
    }

    async fn decide(&self, at: usize) -> Decided {
        let refused =
            |verdict, reason: String| Decided { verdict, message: Some(reason.clone()), end: End::Refused(reason) };
        if let Some(end) = self.solution.failed_compilation() {
            let is_unknown = end.status() == Status::NotExecuted;
            let verdict = if is_unknown { Verdict::NotExecuted } else { Verdict::CompileError };
            return Decided { verdict, message: None, end: End::Refused(end.reason()) };
        }
        if let Some(Program { task: Err(reason), compile }) = &self.decider {
            let words = compile.as_ref().and_then(End::finished).map(|finished| text(&finished.report.stderr));
            let words = words.filter(|words| !words.is_empty()).map_or(String::new(), |words| format!(": {words}"));
            return refused(Verdict::CheckerError, format!("{reason}{words}"));
        }
        match self.run_case(at).await {
            Ok(decided) => decided,
            Err(reason) => refused(Verdict::NotExecuted, reason),
        }
    }

    async fn run_case(&self, at: usize) -> Result<Decided, String> {
        let case = &self.judgement.cases[at];
        let stdin = self.content(&case.stdin, self.files.get(at).and_then(|files| files.stdin.as_ref())).await?;
        let expected =
            self.content(&case.expected, self.files.get(at).and_then(|files| files.expected.as_ref())).await?;
        let mut task = self.task(case).await?;
        match (&self.judgement.decision, &self.decider) {
            (Decision::Compare(how), _) => {
                task.stdin = stdin;
                let end = self.engine.submit(task, self.admission).await;
                self.compare(end, *how, expected.unwrap_or_else(|| Vec::new().into())).await
            }
            (Decision::Checker(_), Some(Program { task: Ok(checker), .. })) => {
                task.stdin = stdin.clone();
                let end = self.engine.submit(task, self.admission).await;
                self.check(end, checker.clone(), stdin, expected).await
            }
            (Decision::Interactor(_), Some(Program { task: Ok(interactor), .. })) => {
                self.interact(task, interactor.clone(), stdin, expected).await
            }
            _ => Err("the program that decides is not there".into()),
        }
    }

    /// The solution with what the case gives it.
    async fn task(&self, case: &Case) -> Result<Task<Artifact>, String> {
        let mut task = self.solution.task.clone()?;
        let CasePart { args, env, files, limits } = case.part.clone()?;
        task.args.extend(args);
        task.env.extend(env);
        task.limits = limits;
        for (path, node) in files {
            let node = match node {
                Node::File { content, mode } => Node::File { content: self.engine.open(loose(content)?).await?, mode },
                Node::Directory => Node::Directory,
                Node::Symlink(target) => Node::Symlink(target),
            };
            task.files.insert(path, node);
        }
        crate::task::check_parents(&task.files).map_err(|refusal| refusal.to_string())?;
        Ok(task)
    }

    async fn content(
        &self,
        content: &Option<Content>,
        file: Option<&std::path::PathBuf>,
    ) -> Result<Option<Artifact>, String> {
        let content = match (content, file) {
            (_, Some(path)) => Loose::Path(path.clone()),
            (Some(content), None) => loose(content.clone())?,
            (None, None) => return Ok(None),
        };
        self.engine.open(content).await.map(Some)
    }

    async fn compare(&self, end: End, how: Compare, expected: Artifact) -> Result<Decided, String> {
        let (verdict, message) = match ended(&end) {
            Err(verdict) => (verdict, None),
            Ok(finished) => execution::compare(how, expected, finished.report.stdout.clone().into()).await?,
        };
        Ok(Decided { verdict, message, end })
    }

    async fn check(
        &self,
        end: End,
        mut checker: Task<Artifact>,
        stdin: Option<Artifact>,
        expected: Option<Artifact>,
    ) -> Result<Decided, String> {
        let output = match ended(&end) {
            Err(verdict) => return Ok(Decided { verdict, message: None, end }),
            Ok(finished) => finished.report.stdout.clone().into(),
        };
        give(&mut checker, [("input", stdin), ("output", Some(output)), ("expected", expected)])?;
        let checked = self.engine.submit(checker, self.admission).await;
        let (verdict, message) = match checked.finished() {
            Some(finished) => {
                let verdict = verdict::of_checker(&finished.report);
                (verdict, said(&finished.report, &finished.report.stdout, verdict))
            }
            None => (Verdict::CheckerError, Some(checked.reason())),
        };
        Ok(Decided { verdict, message, end })
    }

    async fn interact(
        &self,
        task: Task<Artifact>,
        mut interactor: Task<Artifact>,
        stdin: Option<Artifact>,
        expected: Option<Artifact>,
    ) -> Result<Decided, String> {
        give(&mut interactor, [("input", stdin), ("expected", expected)])?;
        let memory = task.limits.memory + interactor.limits.memory;
        if let Some(reason) = self.engine.scheduler.cannot_run_together(2, memory) {
            return Err(reason);
        }
        let pipe = |from, to| Pipe { from, stream: Stream::Stdout, to, record: false };
        let ends =
            self.engine.submit_connected(vec![task, interactor], &[pipe(0, 1), pipe(1, 0)], self.admission).await;
        let [end, other]: [End; 2] = ends.try_into().map_err(|_| "Faber lost the tasks before they started")?;
        let (verdict, message) = match (end.finished(), other.finished()) {
            (Some(solution), Some(interactor)) => {
                let verdict = verdict::of_interaction(&solution.report, &interactor.report);
                (verdict, said(&interactor.report, &interactor.report.stderr, verdict))
            }
            _ => (Verdict::NotExecuted, None),
        };
        Ok(Decided { verdict, message, end })
    }

    /// The case as it is told.
    fn tell(&self, at: usize, Decided { verdict, message, end }: Decided) -> CaseResult {
        let mut report = end.into_report();
        if !self.judgement.all_output {
            report.stdout = shown(&report.stdout, OUTPUT_SHOWN).to_vec();
            report.stderr = shown(&report.stderr, OUTPUT_SHOWN).to_vec();
        }
        let mut result = TaskResult::from(report);
        if let Some(end) = self.solution.failed_compilation().filter(|_| verdict != Verdict::Skipped) {
            // As with any task of a language; the compilation itself is told once, for all cases.
            tell_compilation(Some(end.clone()), &mut result);
            result.compile = None;
        }
        CaseResult { name: self.judgement.cases[at].name.clone(), verdict, message, result }
    }
}

/// A case that is not run, since one before it failed.
fn skip() -> Decided {
    let reason = "a case before it was not accepted".to_owned();
    Decided { verdict: Verdict::Skipped, message: None, end: End::Refused(reason) }
}

/// A run whose output decides, or else the verdict.
fn ended(end: &End) -> Result<&Finished, Verdict> {
    let finished = end.finished().ok_or(Verdict::NotExecuted)?;
    execution::of_end(&finished.report).map_or(Ok(finished), Err)
}

/// Files for a program that decides, in the place of its own of these names.
fn give<const N: usize>(task: &mut Task<Artifact>, files: [(&str, Option<Artifact>); N]) -> Result<(), String> {
    for (name, content) in files {
        let path = WorkspacePath::parse(name).map_err(|refusal| refusal.to_string())?;
        let content = content.unwrap_or_else(|| Vec::new().into());
        task.files.insert(path, Node::File { content, mode: Some(0o644) });
    }
    Ok(())
}

/// What a program that decides said, or how it failed.
fn said(report: &Report, words: &[u8], verdict: Verdict) -> Option<String> {
    let words = text(words);
    let failed = || {
        let result = TaskResult::from(report.clone());
        result.error.unwrap_or_else(|| format!("exit status {}", result.exit_code.unwrap_or_default()))
    };
    match verdict {
        Verdict::CheckerError if words.is_empty() => Some(failed()),
        Verdict::CheckerError => Some(format!("{}: {words}", failed())),
        _ => (!words.is_empty()).then_some(words),
    }
}

/// The beginning of a message.
fn text(words: &[u8]) -> String {
    String::from_utf8_lossy(shown(words, MESSAGE_BYTES)).trim().to_owned()
}

/// At most so many of the bytes, without a part of a character at their end.
fn shown(bytes: &[u8], most: usize) -> &[u8] {
    match bytes.get(..most) {
        Some(cut) if bytes.len() > most => {
            let part = cut.utf8_chunks().last().map_or(0, |chunk| chunk.invalid().len());
            &cut[..most - part]
        }
        _ => bytes,
    }
}

fn most(cases: &[CaseResult]) -> Most {
    let most = |of: fn(&TaskResult) -> u64| cases.iter().map(|case| of(&case.result)).max().unwrap_or(0);
    Most {
        cpu_time_ns: most(|result| result.resource_usage.cpu_time_ns),
        wall_time_ns: most(|result| result.resource_usage.wall_time_ns),
        memory_peak_bytes: most(|result| result.resource_usage.memory_peak_bytes),
    }
}
