//! A task from its command to its report.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::time::ClockId;

use super::hand_over::Ready;
use super::prepared::Program;
use super::{ContainerError, Result, Running, Told, at, cancelled, late, set_up_failed};
use crate::artifact::Artifact;
use crate::frame;
use crate::sandbox::caller::Caller;
use crate::sandbox::cgroup::{Measured, OutOfMemory};
use crate::sandbox::init::wire::{Notice, Step, Unrunnable, nanoseconds};
use crate::sandbox::outcome::{Baseline, Io, outcome};
use crate::sandbox::streams::Whole;
use crate::sandbox::watch::{Ended, Ends, Kept, Stop, Watch};
use crate::sandbox::workspace::Workspace;
use crate::task::{Counters, Hits, Limits, Outputs, Report, Taken, Task, Timings};

/// When things were, for the report.
#[derive(Clone, Copy)]
pub struct Times {
    pub ordered: Instant,
    pub finished: Instant,
}

/// What the kernel says of a task at its end.
struct Figures {
    out_of_memory: OutOfMemory,
    measured: Measured,
    io: Io,
}

impl Running {
    /// Hands the command over and watches it to its end; `ordered` is when the task was.
    pub fn run(
        &mut self,
        task: Task<Artifact>,
        (ready, program): (Ready, Option<Program>),
        before: &Baseline,
        caller: &mut dyn Caller,
        ordered: Instant,
    ) -> Result<Told> {
        let (limits, outputs) = (task.limits.clone(), task.outputs.clone());
        let pipes = self.outputs.take().ok_or(ContainerError::NoInit)?;
        let init = self.init.pid.as_raw_nonzero().get();
        let held = program.as_ref().map_or(0, |program| program.held);
        let mut watch = Watch::new(&*self.group, (&limits, task.output), pipes, init, (before.cpu.total, held));
        let Ready { replaced, links, feed, forwards, whole, workspace, terminal } = ready;
        for (stream, (forward, whole)) in forwards.into_iter().zip(whole).enumerate() {
            forward.into_iter().for_each(|forward| watch.forward(stream, forward));
            whole.into_iter().for_each(|whole| watch.keep_whole(stream, whole));
        }
        feed.into_iter().for_each(|feed| watch.feed(feed));
        if self.is_run {
            watch.within_session();
        }
        if let Some(terminal) = terminal {
            watch.show(terminal).map_err(at("read a terminal"))?;
        }
        watch.hold(links);
        let is_prepared = program.is_some();
        if let Some(program) = program {
            watch.has_begun(program.start(), before.used);
        } else if let Some(counter) = self.hand_over(task, replaced) {
            watch.count(counter);
        }
        let ended = watch.until_end(&Ends { control: &self.control, init: self.init.handle.as_fd() }, caller);
        self.is_stopped = self.is_run && ended.stop.is_some();
        let times = Times { ordered, finished: Instant::now() };
        let (mut kept, descriptors) = (watch.take_output(), watch.file_descriptors());
        let figures = self.figures(before, &ended);
        let out_of_memory = figures.as_ref().map(|figures| figures.out_of_memory).unwrap_or_default();
        if !ended.started && out_of_memory.kills == 0 {
            return match ended.stop {
                None => Err(set_up_failed(ended.notice)),
                Some(Stop::Cancelled) => Ok(Told::only(Report { outcome: cancelled(), ..Report::not_executed("") })),
                Some(Stop::MachineOutOfMemory) => Err(ContainerError::MachineOutOfMemory),
                Some(Stop::Limit(_) | Stop::NoRoom) => Err(late()),
            };
        }
        let taken = self.take(workspace, &outputs, std::mem::take(&mut kept.whole));
        let figures = match figures {
            Ok(figures) => figures,
            // Without them nobody knows how it ended, either.
            Err(error) => {
                let report = Report::lost("Faber could not read what the task used");
                return Ok(Told { fault: Some(error), ..Told::only(report) });
            }
        };
        let is_machines = out_of_memory.kills > 0 && !out_of_memory.is_own;
        let fault = is_machines.then_some(ContainerError::MachineOutOfMemory);
        let report = self.report(&limits, before, (ended, kept), (descriptors, figures), times);
        let report = Report { prepared: is_prepared, ..report };
        match taken {
            Ok(taken) => Ok(Told { report, taken, fault }),
            // The command has run, but nobody can have what it left.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let lost = Report::lost("Faber has no room for what the task left (outputs.spool)");
                Ok(Told { fault, ..Told::only(Report { outcome: lost.outcome, ..report }) })
            }
            Err(error) => Err(at("take what the task left")(error)),
        }
    }

    /// Everything but the init is reaped, or the init is a zombie: its sums are complete, and still there to be read.
    /// What a dead init has read and written is lost with its children's, and of a zombie a kernel may not tell it.
    fn figures(&self, before: &Baseline, ended: &Ended) -> Result<Figures> {
        let io = match self.io() {
            Err(_) if ended.notice.is_none() => before.io,
            other => other.map_err(at("read what the task read and wrote"))?,
        };
        let out_of_memory = self.group.out_of_memory().map_err(ContainerError::Figures)?;
        // What a session's run met may be the limit of all that runs there.
        let is_own = out_of_memory.is_own || self.is_run && out_of_memory.kills > 0;
        Ok(Figures {
            out_of_memory: OutOfMemory { is_own, ..out_of_memory },
            measured: self.group.measure().map_err(ContainerError::Figures)?,
            io,
        })
    }

    /// All that is told of a task that was started.
    fn report(
        &self,
        limits: &Limits,
        before: &Baseline,
        (ended, kept): (Ended, Kept),
        ((file_descriptors, refused), figures): ((u64, bool), Figures),
        times: Times,
    ) -> Report {
        let Figures { out_of_memory, measured: after, io } = figures;
        let usage = before.usage(&after, io, (&ended, out_of_memory.kills > 0), file_descriptors);
        let Kept { streams: [stdout, stderr], merged, written, exceeded, .. } = kept;
        let counted = |count| self.group.enforces().then_some(count);
        Report {
            prepared: false,
            outcome: outcome(&ended, limits, &usage, out_of_memory, self.unrunnable(&ended)),
            stdout,
            stderr,
            merged,
            written,
            usage,
            hits: Hits { processes: after.forks_refused > 0, file_descriptors: refused, output: exceeded },
            timings: Timings {
                setup: nanos(ended.started_at.saturating_duration_since(times.ordered)),
                run: usage.wall_time,
                collect: nanos(times.finished.elapsed()),
            },
            counters: Counters {
                oom_kills: counted(out_of_memory.kills),
                forks_refused: counted(after.forks_refused),
                minor_faults: ended.used.map(|used| used.minor_faults),
                major_faults: ended.used.map(|used| used.major_faults),
                voluntary_switches: ended.used.map(|used| used.voluntary_switches),
                involuntary_switches: ended.used.map(|used| used.involuntary_switches),
                throttled: after.throttled,
            },
            ended_at: nanoseconds(ClockId::Monotonic).saturating_sub(nanos(ended.ended_at.elapsed())),
        }
    }

    /// Why the command could not be executed, if that is what was said.
    fn unrunnable(&self, ended: &Ended) -> Option<Unrunnable> {
        let is_so = matches!(ended.notice, Some(Notice::Failed { step: Step::Exec, .. }));
        is_so.then(|| frame::receive(&self.commands).ok().flatten()).flatten()
    }

    /// What the task left, once its last process is gone.
    fn take(
        &self,
        workspace: Option<Workspace>,
        outputs: &Outputs,
        whole: [Option<Whole>; 2],
    ) -> io::Result<Taken<Artifact>> {
        let taken = match workspace.filter(|_| !outputs.globs.is_empty()) {
            Some(workspace) => workspace.take(outputs, &self.spool)?,
            None => Taken::default(),
        };
        let [stdout, stderr] = whole.map(|whole| whole.map(Whole::finish).transpose());
        Ok(Taken { streams: [stdout?, stderr?], ..taken })
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
