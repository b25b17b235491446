//! What came of a request's tasks, as it is told.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::{End, Ended, Engine, Judged, Loose, Planned, bind};
use crate::artifact::Artifact;
use crate::blobs::{BlobError, Blobs};
use crate::scheduler::Finished;
use crate::task::{
    Compilation, Content, Digest, FileResult, Form, Limits, MergeOutput, Omitted, Outcome, OutputEncoding, OutputGlob,
    Status, StepName, Stream, Taken, TakenFile, TaskRequest, TaskResult, Text, Verdict,
};

/// How a result is to be told, as its request says.
pub struct FormRequest {
    pub name: Option<StepName>,
    encoding: OutputEncoding,
    beside: bool,
    detail: bool,
}

impl FormRequest {
    pub fn new(request: &TaskRequest) -> Self {
        Self {
            name: request.name.clone(),
            encoding: request.output_encoding.unwrap_or_default(),
            beside: request.merge_output == Some(MergeOutput::Beside),
            detail: request.detail,
        }
    }

    /// `limits` are those that were in force.
    fn form(&self, limits: Option<&Limits>, end: &End) -> Form {
        let queued = end.finished().map_or(0, |finished| finished.queued.as_nanos() as u64);
        Form {
            name: self.name.clone(),
            encoding: self.encoding,
            beside: self.beside,
            detail: limits.filter(|_| self.detail).map(|limits| (limits.clone(), queued)),
        }
    }
}

/// Whether so many bytes more may be held in memory until the answer is written.
pub type Room<'a> = dyn FnMut(u64) -> bool + Send + 'a;

impl Engine {
    /// One result for each task that was not `told`, in order; or what stands for all.
    pub(super) async fn answer(
        &self,
        owner: &str,
        planned: &Planned,
        mut ends: Vec<Option<End>>,
        told: &[bool],
        room: &mut Room<'_>,
    ) -> Ended {
        let decides = |end: &&End| !matches!(end, End::Blocked(_));
        let all = |is: fn(&End) -> bool| ends.iter().flatten().filter(decides).all(is);
        if all(|end| matches!(end, End::Queued(_))) {
            return Ended::Queued;
        }
        if all(|end| end.is_fault() || matches!(end, End::Queued(_))) {
            return Ended::Fault;
        }
        let mut results = Vec::new();
        for at in (0..planned.tasks.len()).filter(|at| !told[*at]) {
            results.push(self.tell(owner, planned, &mut ends, at, room).await);
        }
        Ended::Results(results)
    }

    /// One task's result. Its output goes into that, and is held once.
    pub(super) async fn tell(
        &self,
        owner: &str,
        planned: &Planned,
        ends: &mut [Option<End>],
        at: usize,
        room: &mut Room<'_>,
    ) -> TaskResult {
        let judged = self.judged(planned, ends, at).await;
        let mut result = self.result(owner, planned, ends, at, judged, room).await;
        let connections = &planned.plan.connections;
        if connections.iter().any(|pipe| pipe.from == at || pipe.to == at) {
            result.ended_first = ended_first(planned.graph.unit(at), ends, at);
        }
        for pipe in connections.iter().filter(|pipe| pipe.from == at && !pipe.record) {
            if let Some(detail) = &mut result.detail {
                match pipe.stream {
                    Stream::Stdout => detail.stdout_bytes = None,
                    Stream::Stderr => detail.stderr_bytes = None,
                }
            }
        }
        result
    }

    /// The verdict, where one is expected.
    async fn judged(&self, planned: &Planned, ends: &[Option<End>], at: usize) -> Option<Judged> {
        let expect = planned.tasks[at].request.expect.as_ref()?;
        let compile = planned.compilation_of(at).and_then(|step| ends[step].as_ref()).map(End::status);
        if let Some(status) = compile.filter(|status| *status != Status::Success) {
            return Some(uncompiled(status));
        }
        let Some(finished) = ends[at].as_ref().and_then(End::finished) else {
            return Some((Verdict::NotExecuted, None));
        };
        let expected = expected(planned, ends, &expect.stdout);
        Some(self.judge(finished, expected, expect.compare).await)
    }

    async fn result(
        &self,
        owner: &str,
        planned: &Planned,
        ends: &mut [Option<End>],
        at: usize,
        judged: Option<Judged>,
        room: &mut Room<'_>,
    ) -> TaskResult {
        let task = &planned.tasks[at];
        let compile = planned.compilation_of(at).and_then(|step| ends[step].as_mut()).map(End::take_told);
        let lost = || End::Refused("Faber lost the task before it started".into());
        let end = ends[at].as_mut().map_or_else(lost, End::take_told);
        let job = task.job.as_ref().ok();
        let form = task.request.form.form(job.map(|job| &job.run.limits), &end);
        let (finished, cached) = match end {
            End::Ran { finished, cached } => (*finished, cached),
            end => (Finished::from(end.into_report()), false),
        };
        let Finished { report, taken, .. } = finished;
        let mut result = TaskResult::new(report, form);
        result.cached = cached.then_some(true);
        if let Some(job) = job.filter(|_| task.request.globs > 0) {
            self.tell_files(owner, taken, &job.run.outputs.globs[..task.request.globs], room, &mut result).await;
        }
        if task.request.is_language {
            tell_compilation(compile, &mut result);
        }
        if let Some((verdict, message)) = judged {
            (result.verdict, result.message) = (Some(verdict), Some(message));
        }
        result
    }

    /// Adds the files that the client asked for: those for which there is no room in the answer as blobs.
    async fn tell_files(
        &self,
        owner: &str,
        taken: Taken<Artifact>,
        globs: &[OutputGlob],
        room: &mut Room<'_>,
        result: &mut TaskResult,
    ) {
        let Taken { files, missing, mut omitted, .. } = taken;
        let asked = files.into_iter().filter(|file| globs.iter().any(|glob| glob.matches(&file.path)));
        let mut is_inline = |size: u64| size <= self.inline_limit && room(size);
        let asked: Vec<_> = asked.map(|file| (is_inline(file.content.size()), file)).collect();
        let (blobs, owner) = (self.blobs.clone(), owner.to_owned());
        let told = tokio::task::spawn_blocking(move || tell_all(asked, blobs.as_ref(), &owner)).await;
        let (told, failed) = told.unwrap_or_default();
        for (path, reason) in failed {
            omitted.count += 1;
            omitted.files.insert(path, reason);
        }
        result.files = Some(told);
        let own = |glob: &String| globs.iter().any(|known| known.as_str() == glob);
        let missing: Vec<String> = missing.into_iter().filter(own).collect();
        result.missing_outputs = (!missing.is_empty()).then_some(missing);
        result.omitted_outputs = (omitted != Omitted::default()).then_some(omitted);
    }
}

/// Why there is nothing to judge.
fn uncompiled(status: Status) -> Judged {
    match status {
        Status::NotExecuted => (Verdict::NotExecuted, None),
        _ => (Verdict::CompileError, None),
    }
}

fn expected(planned: &Planned, ends: &[Option<End>], content: &Content) -> Result<Loose, String> {
    match content {
        Content::From(reference) => bind::take(planned, ends, reference).map(Loose::Ready),
        other => super::loose(other.clone()),
    }
}

/// Adds what came of the compilation; one that failed is what the task's own result says.
pub fn tell_compilation(compile: Option<End>, result: &mut TaskResult) {
    let Some(end) = compile else {
        result.compile = Some(Compilation(None));
        return;
    };
    let cached = matches!(end, End::Ran { cached: true, .. });
    let status = end.status();
    let mut compiled = TaskResult::from(end.into_report());
    compiled.cached = cached.then_some(true);
    if status != Status::Success {
        (result.status, result.exit_code) = (compiled.status, compiled.exit_code);
        result.error = Some(match &compiled.error {
            Some(error) if status != Status::Failure => format!("compilation failed: {error}"),
            _ => "compilation failed".into(),
        });
    }
    result.compile = Some(Compilation(Some(Box::new(compiled))));
}

/// Of tasks that were joined by pipes: whether this one ended by itself, before the others. One that a broken pipe ended did not,
/// whatever the clocks say: the other's end may be told only after it. One that was lost, of which no time is known, is what the others
/// ended because of.
fn ended_first(unit: &[usize], ends: &[Option<End>], at: usize) -> Option<bool> {
    const BROKEN_PIPE: Outcome = Outcome::Signalled(13);
    let report = |at: usize| {
        let end = ends[at].as_ref().filter(|end| end.status() != Status::NotExecuted);
        end.and_then(End::finished).map(|finished| &finished.report)
    };
    let ended = unit.iter().filter_map(|&at| Some((at, report(at)?)));
    let first = ended.min_by_key(|(_, report)| (report.outcome == BROKEN_PIPE, report.ended_at)).map(|(at, _)| at);
    report(at).map(|_| Some(at) == first)
}

/// Adds all files that were taken, whatever their size.
pub fn told_inline(taken: Taken<Artifact>, result: &mut TaskResult) {
    let Taken { files, missing, omitted, .. } = taken;
    let files = files.into_iter().map(|file| (true, file)).collect();
    result.files = Some(tell_all(files, None, "").0);
    result.missing_outputs = (!missing.is_empty()).then_some(missing);
    result.omitted_outputs = (omitted != Omitted::default()).then_some(omitted);
}

type Files = (BTreeMap<String, FileResult>, BTreeMap<String, String>);

/// `files` with whether their bytes are to be in the answer.
fn tell_all(files: Vec<(bool, TakenFile<Artifact>)>, blobs: Option<&Arc<Blobs>>, owner: &str) -> Files {
    let (mut told, mut failed) = Files::default();
    for (is_inline, TakenFile { path, mode, content }) in files {
        let one = if is_inline { tell(&content) } else { put(&content, blobs, owner) };
        match one {
            Ok(file) => _ = told.insert(path, FileResult { mode: format!("{mode:04o}"), ..file }),
            Err(reason) => _ = failed.insert(path, reason),
        }
    }
    (told, failed)
}

fn tell(content: &Artifact) -> Result<FileResult, String> {
    let bytes = content.read().map_err(|error| format!("it cannot be read: {error}"))?;
    let sha256 = Digest::new(Sha256::digest(&bytes).into()).hex().to_owned();
    let (text, base64) = match std::str::from_utf8(&bytes) {
        Ok(_) => (Some(Text::utf8(bytes)), None),
        Err(_) => (None, Some(Text::base64(bytes))),
    };
    Ok(FileResult { size: content.size(), mode: String::new(), sha256, text, base64, blob: None })
}

/// Makes a blob of it, which never is in memory as a whole.
fn put(content: &Artifact, blobs: Option<&Arc<Blobs>>, owner: &str) -> Result<FileResult, String> {
    let blobs = blobs.ok_or("it is larger than outputs.inline_limit, and this server keeps no blobs")?;
    let told = |error: BlobError| {
        tracing::warn!(error = crate::chain::chain(&error), "an output cannot be kept as a blob");
        format!("it cannot be kept as a blob: {error}")
    };
    let mut upload = blobs.begin(owner, Some(content.size())).map_err(told)?;
    let (mut reader, mut chunk) = (content.reader(), vec![0; 256 << 10]);
    loop {
        match reader.read(&mut chunk).map_err(|error| format!("it cannot be read: {error}"))? {
            0 => break,
            length => upload.write(&chunk[..length]).map_err(told)?,
        }
    }
    let stored = upload.finish(None).map_err(told)?;
    Ok(FileResult {
        size: stored.size,
        mode: String::new(),
        sha256: stored.digest.hex().to_owned(),
        text: None,
        base64: None,
        blob: Some(stored.digest.to_string()),
    })
}
