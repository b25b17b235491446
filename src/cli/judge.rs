//! `faber judge`: a program against a directory of tests, without a server.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use super::long::INTERRUPTED;
use super::pool::Pool;
use super::problem::{self, TestFiles};
use super::run::{CannotRun, WEAKER, read_bytes};
use crate::config::{Flag, Loaded, Size, Span};
use crate::image::{Catalog, Store};
use crate::judge::{
    CaseFiles, CaseRequest, CaseResult, Comparison, JudgeRequest, JudgeResponse, Judged, Judgement, Stop,
};
use crate::needs;
use crate::scheduler::Client;
use crate::task::{Compare, Content, Groups, Offer, ResourceLimits, TaskRequest, Text, Verdict};

/// What the end of a file says of its language; any other is looked for among the images.
const ENDINGS: [(&str, &str); 12] = [
    ("py", "python"),
    ("cpp", "cpp"),
    ("cc", "cpp"),
    ("cxx", "cpp"),
    ("js", "node"),
    ("rb", "ruby"),
    ("hs", "haskell"),
    ("cs", "csharp"),
    ("pl", "perl"),
    ("scm", "scheme"),
    ("sh", "bash"),
    ("lua", "lua"),
];

/// Columns of a table that can be read.
const NARROWEST: u16 = 60;

#[derive(Debug, Args)]
#[command(after_help = "\
Tests are NAME.in with NAME.out or NAME.ans beside it (or NAME with NAME.a),
in the directory itself and in its sample/, secret/, data/ and tests/.

Exit status:
  0    every case is accepted
  1    one is not
  125  the program could not be judged
  130  interrupted

Examples:
  faber judge main.cpp tests/
  faber judge --cpu-time 1s --memory 256M --compare float=1e-6 main.py tests/
  faber judge --checker check.py main.cpp problem/
  faber judge --json main.rs tests/3.in")]
pub struct JudgeArgs {
    /// The program
    #[arg(value_name = "PROGRAM")]
    program: PathBuf,
    /// The directory of its tests, or the input of one
    #[arg(value_name = "TESTS")]
    tests: PathBuf,
    /// The configuration file, for the default limits
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Without control groups, for an ordinary user who has none: limits are watched for, not enforced
    #[arg(long)]
    no_cgroup: bool,
    /// The program's language; without it what the end of its name says
    #[arg(long, value_name = "NAME")]
    language: Option<String>,
    /// exact, lines, tokens, or float=TOLERANCE
    #[arg(long, value_name = "HOW", value_parser = compare, default_value = "lines")]
    compare: Compare,
    /// A program that decides, with the files input, output and expected: exit status 0 accepted, 1 wrong
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    checker: Option<PathBuf>,
    /// A program that talks with the solution, with the files input and expected, and decides likewise
    #[arg(long, value_name = "FILE", conflicts_with_all = ["compare", "checker"])]
    interactor: Option<PathBuf>,
    /// Memory of each case
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// CPU time of each case
    #[arg(long, value_name = "TIME")]
    cpu_time: Option<Span>,
    /// Time of each case from start to end
    #[arg(long, value_name = "TIME")]
    wall_time: Option<Span>,
    /// Processes and threads at once
    #[arg(long, value_name = "N")]
    processes: Option<u64>,
    /// A file to put into the workspace, in the compilation too; can be repeated
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<String>,
    /// Skip the cases after the first that is not accepted
    #[arg(long)]
    stop: bool,
    /// Print the answer as the API has it, instead of a table
    #[arg(long)]
    json: bool,
}

fn compare(text: &str) -> Result<Compare, String> {
    match (text, text.strip_prefix("float=").map(str::parse)) {
        ("exact", _) => Ok(Compare::Exact),
        ("lines", _) => Ok(Compare::Lines),
        ("tokens", _) => Ok(Compare::Tokens),
        (_, Some(Ok(tolerance))) => Compare::parse_float(tolerance).ok_or_else(|| "a tolerance is not negative".into()),
        _ => Err("expected exact, lines, tokens, or float=TOLERANCE such as float=1e-6".into()),
    }
}

pub fn run(args: JudgeArgs) -> anyhow::Result<ExitCode> {
    let json = args.json;
    let response = match judge(args).map_err(|error| CannotRun(format!("{error:#}")))? {
        Some(response) => response,
        None => return Ok(ExitCode::from(INTERRUPTED)),
    };
    if json {
        super::print(&serde_json::to_string_pretty(&response)?)?;
    } else {
        super::print(&told(&response))?;
    }
    Ok(if response.verdict == Verdict::Accepted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// None when it was interrupted.
fn judge(args: JudgeArgs) -> anyhow::Result<Option<JudgeResponse>> {
    let no_cgroup = Flag { key: "execution.cgroup", flag: "--no-cgroup", value: false.into() };
    let mut config =
        Loaded::read(args.config.as_deref(), args.no_cgroup.then_some(no_cgroup).into_iter().collect())?.config;
    let tests = problem::find(&args.tests)?;
    super::take_store(&mut config)?;
    needs::require(config.resources().groups)?;
    if config.resources().groups == Groups::Unused {
        eprintln!("faber: {WEAKER}");
    }
    let offers = Catalog::new(Store::new(&config.data_dir)).offers()?;
    let (request, files) = args.request(&tests, &offers)?;
    let bar = progress(tests.len() as u64, args.json);
    let (pool, engine, sockets) = Pool::start(&config)?;
    let judgement = Judgement::parse(&engine, request, &offers)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let judged = runtime.block_on(async {
        for (name, socket) in sockets {
            tokio::spawn(engine.scheduler.clone().drive(name, socket));
        }
        let seen = |_: usize, case: &CaseResult| {
            bar.inc(1);
            if case.verdict != Verdict::Accepted {
                bar.set_message(format!("{}: {:?}", case.name, case.verdict));
            }
        };
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            judged = judgement.run(&engine, Client::Key(0), &files, &seen) => anyhow::Ok(Some(judged?)),
            _ = interrupt.recv() => Ok(None),
            _ = terminate.recv() => Ok(None),
        }
    });
    // Runners end when their sockets close, which their tasks here hold.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    drop(engine);
    drop(pool);
    bar.finish_and_clear();
    match judged? {
        None => Ok(None),
        Some(Judged::Response(response)) => Ok(Some(*response)),
        Some(Judged::Queued | Judged::Fault) => anyhow::bail!("no case could be run: `faber doctor` may say why"),
    }
}

fn progress(cases: u64, json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(cases);
    if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len} {elapsed:>4}  {wide_msg}") {
        bar.set_style(style);
    }
    bar
}

impl JudgeArgs {
    fn request(&self, tests: &[TestFiles], offers: &[Offer]) -> anyhow::Result<(JudgeRequest, Vec<CaseFiles>)> {
        let decides = self.checker.is_some() || self.interactor.is_some();
        if let Some(test) = tests.iter().find(|test| test.answer.is_none() && !decides) {
            anyhow::bail!("{} has no answer beside it: expected {}.out or .ans", test.input.display(), test.name);
        }
        // The files themselves are read when their case runs.
        let later = || Some(Content::Bytes(Vec::new().into()));
        let case = |test: &TestFiles| CaseRequest {
            name: Some(test.name.clone()),
            stdin: later(),
            expected: test.answer.as_ref().and_then(|_| later()),
            ..CaseRequest::default()
        };
        let files = |test: &TestFiles| CaseFiles { stdin: Some(test.input.clone()), expected: test.answer.clone() };
        let (language, code) = program(&self.program, self.language.as_deref(), offers)?;
        let decider = |path: &Path| -> anyhow::Result<TaskRequest> {
            let (language, code) = program(path, None, offers)?;
            Ok(TaskRequest { language: Some(language), code: Some(code), ..TaskRequest::default() })
        };
        let limits = ResourceLimits {
            memory_limit: self.memory.map(|size| size.0),
            cpu_time_limit: self.cpu_time.map(Span::nanos),
            wall_time_limit: self.wall_time.map(Span::nanos),
            max_processes: self.processes,
            ..ResourceLimits::default()
        };
        let request = JudgeRequest {
            language: Some(language),
            code: Some(code),
            files: self.files.iter().map(|file| super::run::read(file)).collect::<anyhow::Result<BTreeMap<_, _>>>()?,
            resource_limits: Some(limits),
            cases: tests.iter().map(case).collect(),
            compare: match &self.checker {
                Some(checker) => Comparison::Checker(Box::new(decider(checker)?)),
                None => Comparison::With(self.compare),
            },
            interactor: self.interactor.as_deref().map(decider).transpose()?,
            stop: if self.stop { Stop::FirstFailure } else { Stop::Never },
            ..JudgeRequest::default()
        };
        Ok((request, tests.iter().map(files).collect()))
    }
}

/// A program's language and its text.
fn program(path: &Path, language: Option<&str>, offers: &[Offer]) -> anyhow::Result<(String, Content)> {
    let language = match language {
        Some(language) => language.to_owned(),
        None => language_of(path, offers)?,
    };
    let path = path.to_str().ok_or_else(|| anyhow::anyhow!("{} is not UTF-8", path.display()))?;
    Ok((language, Content::Bytes(read_bytes(path)?.into())))
}

/// The language whose programs are named so.
fn language_of(path: &Path, offers: &[Offer]) -> anyhow::Result<String> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let known = ENDINGS.iter().find(|(known, _)| *known == ending).map(|(_, language)| *language);
    let named = |offer: &&Offer| {
        offer
            .language
            .as_ref()
            .is_some_and(|language| Path::new(&language.file).extension().is_some_and(|e| e == ending))
    };
    let images: Vec<&str> = offers.iter().filter(named).map(|offer| offer.id.name.as_str()).collect();
    let has = |name: &str| offers.iter().any(|offer| offer.id.name.as_str() == name && offer.language.is_some());
    match (known, &images[..]) {
        (Some(language), _) if has(language) => Ok(language.to_owned()),
        (_, [one]) => Ok((*one).to_owned()),
        (Some(language), []) => {
            anyhow::bail!("there is no image {language} for {}: `faber image build {language}`", path.display())
        }
        (None, []) => anyhow::bail!(
            "no image here has programs whose names end as {}: --language NAME, or `faber image build`",
            path.display()
        ),
        (_, several) => anyhow::bail!("{} may be {}: --language NAME", path.display(), several.join(" or ")),
    }
}

/// A table of the cases, and what there is to say of the first that is wrong.
fn told(response: &JudgeResponse) -> String {
    let mut lines = Vec::new();
    if response.verdict == Verdict::CompileError
        && let Some(compile) = &response.compile
    {
        let text = |text: &Option<Text>| text.as_ref().and_then(Text::plain).unwrap_or_default().trim_end().to_owned();
        lines.extend([text(&compile.stdout), text(&compile.stderr)].into_iter().filter(|text| !text.is_empty()));
        lines.extend(compile.error.clone());
        lines.push("CompileError".into());
        return lines.join("\n");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    // A terminal that does not say how wide it is says 0.
    if table.width().is_some_and(|width| width < NARROWEST) {
        table.set_width(NARROWEST);
    }
    table.set_header(["case", "verdict", "CPU", "memory", ""]);
    for case in &response.cases {
        table.add_row(row(case));
    }
    for column in [2, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    lines.push(table.to_string());
    let accepted = response.cases.iter().filter(|case| case.verdict == Verdict::Accepted).count();
    lines.push(format!(
        "{:?}: {accepted} of {} accepted, at most {} and {}",
        response.verdict,
        response.cases.len(),
        milliseconds(response.max.cpu_time_ns),
        mebibytes(response.max.memory_peak_bytes)
    ));
    lines.join("\n")
}

fn row(case: &CaseResult) -> Vec<Cell> {
    let color = match case.verdict {
        Verdict::Accepted => Color::Green,
        Verdict::Skipped => Color::Grey,
        _ => Color::Red,
    };
    let ran = case.verdict != Verdict::Skipped;
    let usage = &case.result.resource_usage;
    let note = case.message.clone().or_else(|| case.result.error.clone().filter(|_| ran));
    vec![
        Cell::new(&case.name),
        Cell::new(format!("{:?}", case.verdict)).fg(color),
        Cell::new(if ran { milliseconds(usage.cpu_time_ns) } else { String::new() }),
        Cell::new(if ran { mebibytes(usage.memory_peak_bytes) } else { String::new() }),
        Cell::new(note.unwrap_or_default().replace('\n', " ")),
    ]
}

fn milliseconds(nanoseconds: u64) -> String {
    format!("{:.0} ms", nanoseconds as f64 / 1e6)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
