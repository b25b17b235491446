//! `faber run`: one slot, one task, no server; the same way as on a server.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use nix::sys::signalfd::SignalFd;

use crate::artifact::{Artifact, Spool};
use crate::config::{Config, Flag, Loaded, Size, Span};
use crate::execution::{all_of, loose, told_inline};
use crate::image::{Catalog, Image, Store};
use crate::keeper::{Instance, take_stop_signals};
use crate::needs;
use crate::sandbox::cgroup::Lack;
use crate::sandbox::confine::keep_what_containers_take;
use crate::sandbox::{Inlet, Links, Ran, Slot, SlotPlace};
use crate::task::{
    Bytes, Compilation, Content, FileRequest, Groups, Job, Limit, MergeOutput, Outcome, OutputGlob, Report,
    ResourceLimits, Taken, Task, TaskRequest, TaskResult,
};

/// The exit status when the task did not run.
pub const FABER_FAILED: u8 = 125;
/// As timeout(1) has it.
const TIME_LIMIT: u8 = 124;
/// 128 + SIGKILL, as whoever the kernel's OOM killer ended has it.
const MEMORY_LIMIT: u8 = 137;

#[derive(Debug, Args)]
#[command(after_help = "\
Standard input is the task's, read as the task reads it.

Exit status: the task's own, and
  1      the task succeeded, but left no file that --output asks for
  124    past the wall or CPU time limit
  125    past the output limit, or when the task could not be run
  126    the command cannot be executed
  127    the command is not found
  130    interrupted (SIGINT, SIGTERM)
  137    past the memory limit
  128+n  ended by signal n

What is not given comes from limits.default and execution.default_image
of the configuration (`faber config`).

Examples:
  faber run -- python3 -c 'print(1)'
  faber run --memory 64M --wall-time 5s --file main.py -- python3 main.py
  faber run --language python main.py < input
  faber run --file a.c --output a.out -- gcc a.c
  faber run --json -- true")]
pub struct RunArgs {
    /// The configuration file, for the default limits
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Without control groups, for an ordinary user who has none: limits are watched for, not enforced
    #[arg(long)]
    no_cgroup: bool,
    /// The image to run in
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Memory of all processes together
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// CPU time of all processes together
    #[arg(long, value_name = "TIME")]
    cpu_time: Option<Span>,
    /// Time from start to end
    #[arg(long, value_name = "TIME")]
    wall_time: Option<Span>,
    /// Processes and threads at once
    #[arg(long, value_name = "N")]
    processes: Option<u64>,
    /// Open files of each process
    #[arg(long, value_name = "N")]
    file_descriptors: Option<u64>,
    /// Standard output and standard error together
    #[arg(long, value_name = "SIZE")]
    max_output: Option<Size>,
    /// The main thread's stack; without it as much as of memory
    #[arg(long, value_name = "SIZE")]
    stack: Option<Size>,
    /// The files in the workspace
    #[arg(long, value_name = "SIZE")]
    workspace: Option<Size>,
    /// One file
    #[arg(long, value_name = "SIZE")]
    max_file_size: Option<Size>,
    /// Processors at once, such as 0.5; takes cgroup v2
    #[arg(long, value_name = "N")]
    cpus: Option<f64>,
    /// The first argument is a program in this language: it is compiled, if the language is, and run
    #[arg(long, value_name = "NAME")]
    language: Option<String>,
    /// A file to put into the workspace under its own name, or as PATH:NAME; can be repeated
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<String>,
    /// An environment variable; can be repeated
    #[arg(long = "env", value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Files of the workspace to write here when the task has ended, as a glob: under their own paths, or all of them as FILE,
    /// or into FILE if that is a directory; can be repeated
    #[arg(long = "output", value_name = "PATH[=FILE]")]
    outputs: Vec<String>,
    /// Standard error goes into standard output, in the order written
    #[arg(long)]
    merge_output: bool,
    /// Print the result as the API has it, instead of the task's output
    #[arg(long)]
    json: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Faber, not the task, is to blame; or the task was refused.
#[derive(Debug, thiserror::Error)]
#[error("the task was not run: {0}")]
pub struct CannotRun(pub String);

pub fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let json = args.json;
    let wanted: Vec<Wanted> = args.outputs.iter().map(|output| Wanted::parse(output)).collect::<anyhow::Result<_>>()?;
    let Done { compile, report, taken } = execute(args).map_err(|error| CannotRun(format!("{error:#}")))?;
    let failed = compile.as_ref().and_then(Option::as_ref).filter(|report| report.outcome != Outcome::Exited(0));
    let status = exit_status(&failed.unwrap_or(&report).outcome);
    if json {
        let result = result(compile, report, taken, !wanted.is_empty());
        return super::print(&serde_json::to_string_pretty(&result)?).map(|_| ExitCode::from(status));
    }
    if let Some(failed) = failed {
        write_all(std::io::stderr(), &[&failed.stdout[..], &failed.stderr[..]].concat())?;
        let error = TaskResult::from(failed.clone()).error.map_or_else(String::new, |error| format!(": {error}"));
        eprintln!("faber: compilation failed{error}");
        return Ok(ExitCode::from(status));
    }
    write_all(std::io::stdout(), &report.stdout)?;
    write_all(std::io::stderr(), &report.stderr)?;
    let all_there = write_outputs(&wanted, &taken)?;
    if let Some(error) = TaskResult::from(report).error {
        eprintln!("faber: {error}");
    }
    Ok(ExitCode::from(if all_there { status } else { status.max(1) }))
}

/// The result as the API has it; files are in it whatever their size.
fn result(compile: Option<Option<Report>>, report: Report, taken: Taken<Artifact>, with_files: bool) -> TaskResult {
    let mut result = TaskResult::from(report);
    if with_files {
        told_inline(taken, &mut result);
    }
    if let Some(compile) = compile {
        let failed = compile.as_ref().filter(|report| report.outcome != Outcome::Exited(0)).cloned();
        if let Some(failed) = failed {
            let failed = TaskResult::from(failed);
            (result.status, result.exit_code) = (failed.status, failed.exit_code);
            result.error = Some("compilation failed".into());
        }
        result.compile = Some(Compilation(compile.map(|report| Box::new(report.into()))));
    }
    result
}

/// What came of a request without a server.
pub struct Done {
    /// With a language; None in it where nothing is compiled.
    pub compile: Option<Option<Report>>,
    pub report: Report,
    pub taken: Taken<Artifact>,
}

fn execute(args: RunArgs) -> anyhow::Result<Done> {
    let no_cgroup = Flag { key: "execution.cgroup", flag: "--no-cgroup", value: false.into() };
    let flags = args.no_cgroup.then_some(no_cgroup).into_iter().collect();
    let mut config = Loaded::read(args.config.as_deref(), flags)?.config;
    // Before the user namespace, in which the caller's files may be somebody else's.
    let request = args.request()?;
    super::take_store(&mut config)?;
    needs::require(config.resources().groups)?;
    if config.resources().groups == Groups::Unused {
        eprintln!("faber: {WEAKER}");
    }
    let stdin = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
    let mut here = Here::claim(&config)?;
    keep_what_containers_take().context("give up capabilities")?;
    here.run_all(request, Some(stdin))
}

/// Files that are to be written when the task has ended.
struct Wanted {
    glob: OutputGlob,
    /// None: under their own paths.
    file: Option<PathBuf>,
}

impl Wanted {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (glob, file) = text.split_once('=').map_or((text, None), |(glob, file)| (glob, Some(file)));
        let glob =
            OutputGlob::try_from(glob.to_owned()).map_err(|error| anyhow::anyhow!("--output {text}: {error}"))?;
        Ok(Self { glob, file: file.map(PathBuf::from) })
    }

    /// Where a file of the workspace goes. Its path leads to no place above.
    fn place(&self, path: &str) -> PathBuf {
        match &self.file {
            None => PathBuf::from(path),
            Some(directory) if directory.is_dir() => directory.join(path),
            Some(file) => file.clone(),
        }
    }
}

/// Whether each that had to be there was.
fn write_outputs(wanted: &[Wanted], taken: &Taken<Artifact>) -> anyhow::Result<bool> {
    let mut all_there = true;
    for wanted in wanted {
        let files: Vec<_> = taken.files.iter().filter(|file| wanted.glob.matches(&file.path)).collect();
        if files.len() > 1
            && let Some(file) = wanted.file.as_ref().filter(|file| !file.is_dir())
        {
            anyhow::bail!(
                "--output {}: {} files match, and {} is no directory",
                wanted.glob.as_str(),
                files.len(),
                file.display()
            );
        }
        for file in &files {
            write_file(&wanted.place(&file.path), file.mode, &file.content)?;
        }
        if files.is_empty() && !wanted.glob.optional {
            eprintln!("faber: the task left no file {}", wanted.glob.as_str());
            all_there = false;
        }
    }
    for (path, reason) in &taken.omitted.files {
        eprintln!("faber: {path} is not written: {reason}");
        all_there = false;
    }
    Ok(all_there)
}

fn write_file(path: &Path, mode: u32, content: &Artifact) -> anyhow::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let write = || {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)?;
        }
        // Never setuid, and writable for its owner, whatever the task made of it.
        let mode = mode & 0o755 | 0o200;
        let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(mode).open(path)?;
        std::io::copy(&mut content.reader(), &mut file)?;
        if file.metadata()?.is_file() {
            file.set_permissions(PermissionsExt::from_mode(mode))?;
        }
        std::io::Result::Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// What --no-cgroup means.
pub const WEAKER: &str = "WARNING: without control groups tasks are held to memory and processes by being looked at every \
                          10 ms, and can exceed them in between: not for programs that you do not trust";

/// What `faber doctor` sees of a task of no content.
pub struct Trial {
    /// What it says of itself when it did not succeed.
    pub complaint: Option<String>,
    /// What its container did without.
    pub lacking: Vec<Lack>,
    /// What it shares with others.
    pub shared: Option<Lack>,
}

/// Tries a task of no content.
pub fn trial(config: &Config) -> anyhow::Result<Trial> {
    let mut here = Here::claim(config)?;
    let lacking = here.slot.create(&Image::host().id())?.lacking();
    let shared = here.slot.lacking();
    let result = TaskResult::from(here.run(TaskRequest { command: Some("true".into()), ..TaskRequest::default() })?);
    let complaint =
        (result.exit_code != Some(0)).then(|| result.error.unwrap_or_else(|| format!("{:?}", result.status)));
    Ok(Trial { complaint, lacking, shared })
}

/// This process as the runner of one slot.
pub struct Here<'a> {
    config: &'a Config,
    catalog: Catalog,
    // Before the instance: what the slot has in its directory goes first.
    slot: Slot,
    _instance: Instance,
    signals: SignalFd,
}

impl<'a> Here<'a> {
    pub fn claim(config: &'a Config) -> anyhow::Result<Self> {
        let store = Store::new(&config.data_dir);
        let signals = take_stop_signals()?;
        let instance = Instance::found(config.resources())?;
        let dir = instance.slot_dir("s0");
        let place = SlotPlace { run_dir: instance.run_dir(), dir: &dir, instance: instance.name(), name: "s0" };
        let spool = Spool::create(config.spool())?;
        let slot = Slot::claim(place, store.clone(), Vec::new(), config.resources(), spool)?;
        Ok(Self { config, catalog: Catalog::new(store), slot, _instance: instance, signals })
    }

    /// Runs one task that is in no language, without input.
    pub fn run(&mut self, request: TaskRequest) -> anyhow::Result<Report> {
        Ok(self.run_all(request, None)?.report)
    }

    /// Runs one task, after its compilation if its language has one; `stdin` is read as the task reads.
    pub fn run_all(&mut self, request: TaskRequest, stdin: Option<OwnedFd>) -> anyhow::Result<Done> {
        let default_image = &self.config.execution.default_image;
        let is_language = request.language.is_some();
        let job = Job::parse(request, &self.config.bounds(), default_image, &self.catalog.offers()?)?;
        let at_hand = |task: Task<Content>| {
            let ready = task.try_map(loose).and_then(|task| task.try_map(|content| content.ready()));
            ready.map_err(|reason| anyhow::anyhow!(reason))
        };
        let mut task = at_hand(job.run)?;
        let mut compile = is_language.then_some(None);
        if let Some(compilation) = job.compile {
            let (report, taken) = self.once(at_hand(*compilation)?, Links::default())?;
            let ended = report.outcome == Outcome::Exited(0);
            compile = Some(Some(report));
            if !ended {
                let report = Report::not_executed("compilation failed");
                return Ok(Done { compile, report, taken: Taken::default() });
            }
            task.files = all_of(&taken).map_err(|reason| anyhow::anyhow!(reason))?;
        }
        let links = Links { stdin: stdin.map(Inlet::Stream), ..Links::default() };
        let (report, taken) = self.once(task, links)?;
        Ok(Done { compile, report, taken })
    }

    /// Runs one task that is in no language, without input, by an interpreter of the image that waited; None where it takes none.
    pub fn run_prepared(&mut self, request: TaskRequest) -> anyhow::Result<Option<Report>> {
        let default_image = &self.config.execution.default_image;
        let job = Job::parse(request, &self.config.bounds(), default_image, &self.catalog.offers()?)?;
        let task = job.run.try_map(loose).and_then(|task| task.try_map(|content| content.ready()));
        let task = task.map_err(|reason| anyhow::anyhow!(reason))?;
        self.slot.expect(&task.limits);
        let mut created = self.slot.create(&task.image)?;
        if !created.can_prepare() {
            return Ok(None);
        }
        created.prepare(&task.limits)?;
        created.wait_for_interpreter().context("its interpreter did not wait")?;
        if !created.has_an_interpreter_for(&task, &Links::default()) {
            return Ok(None);
        }
        created.settle(&task).context("its interpreter did not wait")?;
        let Ran { report, fault, remains, .. } = created.run(task, Links::default(), &mut self.signals.as_fd());
        drop(remains);
        fault.map_or(Ok(Some(report)), |fault| Err(fault.into()))
    }

    /// One container's life.
    fn once(&mut self, task: Task<Artifact>, links: Links) -> anyhow::Result<(Report, Taken<Artifact>)> {
        let created = self.slot.create(&task.image)?;
        let Ran { report, taken, fault, remains } = created.run(task, links, &mut self.signals.as_fd());
        drop(remains);
        match fault {
            Some(fault) => Err(fault.into()),
            None => Ok((report, taken)),
        }
    }
}

impl RunArgs {
    fn request(self) -> anyhow::Result<TaskRequest> {
        let mut command = self.command.into_iter();
        let limits = ResourceLimits {
            memory_limit: self.memory.map(|size| size.0),
            cpu_time_limit: self.cpu_time.map(Span::nanos),
            wall_time_limit: self.wall_time.map(Span::nanos),
            max_processes: self.processes,
            max_file_descriptors: self.file_descriptors,
            max_output_size: self.max_output.map(|size| size.0),
            stack_limit: self.stack.map(|size| size.0),
            workspace_limit: self.workspace.map(|size| size.0),
            max_file_size: self.max_file_size.map(|size| size.0),
            cpus: self.cpus.map(Into::into),
        };
        let first = command.next().filter(|command| !command.trim().is_empty()).context("command cannot be empty")?;
        let (command_or_none, code) = match &self.language {
            Some(_) => (None, Some(Content::Bytes(read_bytes(&first)?.into()))),
            None => (Some(first), None),
        };
        let glob = |output: &String| Ok(Wanted::parse(output)?.glob);
        Ok(TaskRequest {
            command: command_or_none,
            code,
            language: self.language,
            args: command.collect(),
            env: self.env.iter().map(|pair| variable(pair)).collect::<anyhow::Result<_>>()?,
            files: self.files.iter().map(|file| read(file)).collect::<anyhow::Result<BTreeMap<_, _>>>()?,
            outputs: self.outputs.iter().map(glob).collect::<anyhow::Result<_>>()?,
            merge_output: self.merge_output.then_some(MergeOutput::Into),
            resource_limits: Some(limits),
            image: self.image,
            ..TaskRequest::default()
        })
    }
}

fn variable(pair: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = pair.split_once('=').with_context(|| format!("--env {pair}: expected NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A file's name in the workspace and its bytes.
pub fn read(file: &str) -> anyhow::Result<(String, FileRequest)> {
    let (path, name) = match file.split_once(':') {
        Some((path, name)) => (path, Some(name.to_owned())),
        None => (file, Path::new(file).file_name().and_then(|name| name.to_str()).map(str::to_owned)),
    };
    let name = name.with_context(|| format!("--file {file}: expected a file"))?;
    Ok((name, FileRequest::File { content: Content::Bytes(read_bytes(path)?.into()), mode: None }))
}

/// What is more than this is no program, nor a file for one: it would be held in memory.
const LARGEST_FILE: u64 = 1 << 30;

pub fn read_bytes(path: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).with_context(|| format!("open {path}"))?;
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).with_context(|| format!("read {path}"))?;
    anyhow::ensure!(bytes.len() as u64 <= LARGEST_FILE, "{path} is larger than {}", Bytes(LARGEST_FILE));
    Ok(bytes)
}

fn exit_status(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Exited(code) => *code,
        Outcome::Signalled(signal) => 128u8.wrapping_add(*signal as u8),
        Outcome::CannotRun { exit_code, .. } => *exit_code,
        Outcome::Stopped(Limit::CpuTime | Limit::WallTime, _) => TIME_LIMIT,
        Outcome::Stopped(Limit::Memory, _) => MEMORY_LIMIT,
        Outcome::Cancelled => 130,
        Outcome::Stopped(Limit::Output, _)
        | Outcome::NotExecuted { .. }
        | Outcome::Fault { .. }
        | Outcome::Lost { .. } => FABER_FAILED,
    }
}

fn write_all(mut to: impl Write, bytes: &[u8]) -> anyhow::Result<()> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
