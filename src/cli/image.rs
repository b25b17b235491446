//! `faber image`: building, proving, listing and removing images.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use serde::Serialize;

use super::inspect::{self, InspectArgs};
use super::long::{Stop, spinner};
use super::run::Here;
use super::store::{StoreArgs, mib};
use crate::config::Size;
use crate::image::{Built, Catalog, Choice, Definition, Definitions, Image, Root, Store, Test, Watch, Writer, build};
use crate::needs;
use crate::sandbox::cgroup::Tree;
use crate::task::{ImageName, Report, TaskResult, Text};

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build images from their definitions, where these have changed
    Build(BuildArgs),
    /// Make an image of one of another tool, from a registry or an archive
    Import(super::import::ImportArgs),
    /// Write an image as an OCI archive, for other tools
    Export(super::export::ExportArgs),
    /// Run the tests of images' definitions, and print what came of them
    Test(TestArgs),
    /// List the images that tasks can name
    List(ListArgs),
    /// Tell all of one image, or print its bill of materials
    Inspect(InspectArgs),
    /// Take away the names of images, unless they are in use
    Rm(RmArgs),
    /// Remove files that belong to no image any more
    Gc(StoreArgs),
}

#[derive(Debug, Args)]
struct Which {
    /// The images
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    names: Vec<String>,
    /// All that are defined
    #[arg(long)]
    all: bool,
    /// Where the definitions are: DIR/NAME/image.toml [default: ./images if there is one, or else /etc/faber/images and
    /// /usr/share/faber/images]
    #[arg(long, value_name = "DIR")]
    definitions: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Needs mmdebstrap. A definition that has not changed builds nothing; a build
that fails leaves the image that was there. Each build leaves image.lock, with
the version and digest of every package it took, beside its definition (for
those in /usr/share/faber/images: in DATA_DIR/locks): as long as that is there,
the same versions are taken again. Exit status 1 when one failed.")]
pub struct BuildArgs {
    #[command(flatten)]
    which: Which,
    /// Builds at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Build what has not changed too
    #[arg(long)]
    force: bool,
    /// Take the newest versions of all packages, and renew the locks
    #[arg(long)]
    update: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each test runs twice, as a task of its image: for the first run's time, and for
a warm one; a third time where an interpreter of the image that waits can take
it. Exit status 1 when one failed.")]
pub struct TestArgs {
    #[command(flatten)]
    which: Which,
    /// Print a Markdown table with a line for each image
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    #[command(flatten)]
    store: StoreArgs,
}

impl Which {
    fn definitions(&self) -> anyhow::Result<Vec<Definition>> {
        let definitions = self.definitions.as_deref().map_or_else(Definitions::usual, Definitions::of);
        if self.all {
            return Ok(definitions.all()?);
        }
        self.names.iter().map(|name| Ok(definitions.read(&ImageName::parse(name)?)?)).collect()
    }
}

pub fn run(command: ImageCommand) -> anyhow::Result<ExitCode> {
    match command {
        ImageCommand::Build(args) => build_all(&args),
        ImageCommand::Import(args) => super::import::run(args),
        ImageCommand::Export(args) => super::export::run(&args),
        ImageCommand::Test(args) => test_all(&args),
        ImageCommand::List(args) => list(&args.store),
        ImageCommand::Inspect(args) => inspect::run(&args),
        ImageCommand::Rm(args) => remove(&args),
        ImageCommand::Gc(args) => collect(&args),
    }
}

#[derive(Serialize)]
struct BuildLine {
    name: ImageName,
    /// "built", "unchanged" or "failed".
    outcome: &'static str,
    seconds: f64,
    error: Option<String>,
}

fn build_all(args: &BuildArgs) -> anyhow::Result<ExitCode> {
    let definitions = args.which.definitions()?;
    let config = args.store.config_of_owner()?;
    let (store, resources) = (Store::new(&config.data_dir), config.resources());
    let writer = store.write()?;
    // The builders' groups may not have this process beside them.
    Tree::detect(resources.groups)?.make_way()?;
    let choice = Choice { force: args.force || args.update, update: args.update, resources };
    // A Ctrl-C ends the builders too, and what they leave half-made is then removed here.
    let stop = Stop::take()?;
    let stopped = || stop.is_asked();
    let bars = MultiProgress::new();
    let queue = Mutex::new(definitions.iter());
    let work = || {
        let mut lines = Vec::new();
        loop {
            let next = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some(definition) = next.filter(|_| !stopped()) else { return lines };
            lines.push(build_one(&writer, definition, choice, &bars, &stopped));
        }
    };
    let mut lines: Vec<BuildLine> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    lines.sort_by(|one, other| one.name.cmp(&other.name));
    let not_begun = definitions.len() - lines.len();
    if not_begun > 0 {
        eprintln!("faber: interrupted: {not_begun} not begun");
    }
    let failed = not_begun > 0 || lines.iter().any(|line| line.error.is_some());
    if args.store.json {
        super::print(&serde_json::to_string_pretty(&lines)?)?;
    } else {
        for BuildLine { name, outcome, seconds, error } in &lines {
            let error = error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
            super::print(&format!("{name}: {outcome} in {seconds:.1} s{error}"))?;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn build_one(
    writer: &Writer<'_>,
    definition: &Definition,
    choice: Choice,
    bars: &MultiProgress,
    stopped: &(dyn Fn() -> bool + Sync),
) -> BuildLine {
    let name = definition.name.clone();
    let bar = bars.add(spinner(name.as_str()));
    let started = Instant::now();
    let watch = Watch { progress: &|step| bar.set_message(step.to_owned()), stopped };
    let built = build(writer, definition, choice, &watch);
    bar.finish_and_clear();
    let (outcome, error) = match built {
        Ok(Built::New) => ("built", None),
        Ok(Built::Unchanged) => ("unchanged", None),
        Err(error) => ("failed", Some(crate::chain::chain(&error))),
    };
    BuildLine { name, outcome, seconds: started.elapsed().as_secs_f64(), error }
}

#[derive(Serialize)]
struct TestLine {
    image: ImageName,
    test: String,
    ok: bool,
    /// What was not as expected.
    complaint: Option<String>,
    first_ms: f64,
    warm_ms: f64,
    /// By an interpreter that waited, where the image has one for it.
    prepared_ms: Option<f64>,
    memory_peak_bytes: u64,
    image_bytes: u64,
}

fn test_all(args: &TestArgs) -> anyhow::Result<ExitCode> {
    let definitions = args.which.definitions()?;
    let config = args.store.config_of_owner()?;
    needs::require(config.resources().groups)?;
    let store = Store::new(&config.data_dir);
    let mut here = Here::claim(&config)?;
    let (mut lines, mut tested) = (Vec::new(), Vec::new());
    // It draws itself when something is done: no thread may tick beside what makes containers.
    let bar = ProgressBar::new(definitions.iter().map(|definition| definition.tests.len() as u64).sum());
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg:20}") {
        bar.set_style(style);
    }
    for definition in &definitions {
        bar.set_message(definition.name.to_string());
        let image = store
            .image(&definition.name)
            .with_context(|| format!("build it: faber image build {}", definition.name))?;
        for test in &definition.tests {
            lines.push(prove(&mut here, definition, &image, test)?);
            bar.inc(1);
        }
        tested.push(image);
    }
    bar.finish_and_clear();
    if args.store.json {
        super::print(&serde_json::to_string_pretty(&lines)?)?;
    } else if args.markdown {
        super::print(&markdown(&tested, &lines))?;
    } else {
        super::print(&table(&lines))?;
    }
    Ok(if lines.iter().all(|line| line.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn prove(here: &mut Here<'_>, definition: &Definition, image: &Image, test: &Test) -> anyhow::Result<TestLine> {
    let judge = |report: Report| -> (Option<String>, TaskResult) {
        let result = TaskResult::from(report);
        let told = |text: &Option<Text>| text.as_ref().and_then(Text::plain).unwrap_or_default();
        let said = told(&result.stderr) + result.error.as_deref().unwrap_or_default();
        (test.complaint(result.status, &told(&result.stdout), &said), result)
    };
    let (first_complaint, first) = judge(here.run(test.request(definition))?);
    let (warm_complaint, warm) = judge(here.run(test.request(definition))?);
    let (prepared_complaint, prepared) = match here.run_prepared(test.request(definition)) {
        Ok(report) => report.map(judge).unzip(),
        Err(error) => (Some(Some(format!("{error:#}"))), None),
    };
    let complaint = first_complaint.or(warm_complaint).or(prepared_complaint.flatten());
    let ms = |result: &TaskResult| result.resource_usage.wall_time_ns as f64 / 1e6;
    Ok(TestLine {
        image: image.name.clone(),
        test: test.name.clone(),
        ok: complaint.is_none(),
        complaint,
        first_ms: ms(&first),
        warm_ms: ms(&warm),
        prepared_ms: prepared.as_ref().map(ms),
        memory_peak_bytes: warm.resource_usage.memory_peak_bytes,
        image_bytes: size(image),
    })
}

fn size(image: &Image) -> u64 {
    match &image.root {
        Root::Machine(_) => 0,
        Root::Tree(contents) => contents.size,
    }
}

fn table(lines: &[TestLine]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["image", "test", "", "first run", "warm", "prepared", "peak memory", "size"]);
    for line in lines {
        let TestLine { image, test, ok, first_ms, warm_ms, prepared_ms, memory_peak_bytes, image_bytes, complaint } =
            line;
        table.add_row([
            image.to_string(),
            test.clone(),
            if *ok { "ok".into() } else { "FAILED".to_owned() },
            format!("{first_ms:.0} ms"),
            format!("{warm_ms:.0} ms"),
            prepared_ms.map(|ms| format!("{ms:.0} ms")).unwrap_or_default(),
            mib(*memory_peak_bytes),
            mib(*image_bytes),
        ]);
        if let Some(complaint) = complaint {
            table.add_row(["", complaint.chars().take(500).collect::<String>().as_str()]);
        }
    }
    table.to_string()
}

/// A line for each image: the versions of what it is for, and what its tests say together. The first test is hello's.
fn markdown(images: &[Image], lines: &[TestLine]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["image", "packages", "size", "tests", "hello, warm", "most memory"]);
    for image in images {
        let versions = match &image.root {
            Root::Machine(_) => Default::default(),
            Root::Tree(contents) => contents.versions.clone(),
        };
        let versions =
            versions.iter().map(|(name, version)| format!("{name} {version}")).collect::<Vec<_>>().join(", ");
        let tests: Vec<&TestLine> = lines.iter().filter(|line| line.image == image.name).collect();
        let passed = tests.iter().filter(|line| line.ok).count();
        let peak = tests.iter().map(|line| line.memory_peak_bytes).max().unwrap_or(0);
        let hello = tests.first().map(|line| format!("{:.0} ms", line.warm_ms)).unwrap_or_default();
        let tests = format!("{passed} of {}", tests.len());
        table.add_row([image.name.as_str(), &versions, &mib(size(image)), &tests, &hello, &mib(peak)]);
    }
    table.to_string()
}

#[derive(Serialize)]
struct ListLine<'a> {
    name: &'a ImageName,
    description: &'a str,
    digest: String,
    size: Size,
    packages: usize,
}

fn list(args: &StoreArgs) -> anyhow::Result<ExitCode> {
    let catalog = Catalog::new(Store::new(&args.config()?.data_dir));
    let images = catalog.images()?;
    if args.json {
        return super::print(&serde_json::to_string_pretty(&images.iter().map(list_line).collect::<Vec<_>>())?);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["name", "digest", "size", "description"]);
    for image in images.iter() {
        let size = if matches!(image.root, Root::Tree(_)) { mib(size(image)) } else { "-".into() };
        table.add_row([image.name.as_str(), &image.digest.hex()[..12], &size, &image.description]);
    }
    super::print(&table.to_string())
}

fn list_line(image: &Image) -> ListLine<'_> {
    let Image { name, description, digest, root, .. } = image;
    let packages = match root {
        Root::Machine(_) => 0,
        Root::Tree(contents) => contents.packages.len(),
    };
    ListLine { name, description, digest: digest.to_string(), size: Size(size(image)), packages }
}

fn remove(args: &RmArgs) -> anyhow::Result<ExitCode> {
    let store = Store::new(&args.store.config_of_owner()?.data_dir);
    let writer = store.write()?;
    for name in &args.names {
        writer.remove(&ImageName::parse(name)?)?;
    }
    freed(&writer, args.store.json)
}

fn collect(args: &StoreArgs) -> anyhow::Result<ExitCode> {
    let store = Store::new(&args.config_of_owner()?.data_dir);
    freed(&store.write()?, args.json)
}

fn freed(writer: &Writer<'_>, json: bool) -> anyhow::Result<ExitCode> {
    let bytes = writer.collect()?;
    let text = if json { format!("{{\"freed_bytes\": {bytes}}}") } else { format!("freed {}", mib(bytes)) };
    super::print(&text)
}
