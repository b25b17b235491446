//! What Faber adds to a language: the hello program of each image's definition as a task over HTTP, in a fresh container
//! each time, beside a bare spawn of the same command in the same tree.
//!
//! Bare is fork, chroot, exec and wait: the image's own files, read-only, with a writable workspace, the machine's /proc
//! and /dev, and the environment a task has; no isolation, no limits, no server. The two go in turns, so that whatever
//! disturbs the machine disturbs both. With `--plain`, the same program also runs bare in an image of the same packages
//! without what its definition does to start faster (`benches/plain`). All times are in target/bench/languages.json.

#[allow(dead_code, reason = "the other benchmark uses more of it")]
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use comfy_table::{Table, presets};
use common::support::Server;
use common::{Client, Percentiles, ms};
use faber::config::Loaded;
use faber::image::{Definition, Definitions, Image, InUse, MOUNT_POINTS, Store};
use faber::task::{Content, FileRequest, ImageName, TaskRequest};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use serde_json::{Value, json};
use tempfile::TempDir;

#[derive(Parser)]
#[command(about = "Measures every language: hello as a task, against the same bare, in the same run")]
struct Args {
    /// The images; without one, all that are built and have a language and a hello test
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Pairs of a spawn and a request for each image
    #[arg(long, default_value_t = 50)]
    pairs: usize,
    /// No new pair after this many seconds for one image, once there are five
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// A store of images built from benches/plain, to be run bare in turns with the others
    #[arg(long, value_name = "DATA_DIR")]
    plain: Option<PathBuf>,
    /// Print the table as Markdown
    #[arg(long)]
    markdown: bool,
    /// What cargo bench passes on
    #[arg(long, hide = true)]
    bench: bool,
}

/// Added to an interpreted language's hello, Faber is to cost no more than the larger of the two.
const MOST: Duration = Duration::from_millis(3);
const MOST_RATIO: f64 = 1.15;
/// Programs beside hello: image, what it is called, code.
const MORE: [(&str, &str, &str); 1] = [("python-data", "python-data.imports", "import numpy, pandas; print(1)")];
/// Between two measurements: what the last one left behind is removed, the next container is there.
const PAUSE: Duration = Duration::from_millis(20);
const FEWEST_PAIRS: usize = 5;

fn main() {
    let args = Args::parse();
    let data_dir = std::path::absolute(Loaded::read(None, Vec::new()).unwrap().config.data_dir).unwrap();
    let stage = Stage::set();
    let server = Server::start(
        &["--open-mode", "--data-dir", data_dir.to_str().unwrap()],
        &[("FABER_RATE_LIMIT__ENABLED", "false")],
    );
    let languages = languages(&args, &Store::new(&data_dir), &server, &stage);
    if languages.is_empty() {
        eprintln!("no image with a language is built in {}: faber image build NAME", data_dir.display());
        std::process::exit(1);
    }
    let bar = ProgressBar::new(languages.len() as u64)
        .with_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}, {eta} left").unwrap());
    let mut measured: Vec<(&Language, Times)> = Vec::new();
    for language in &languages {
        match measure(language, &args, &bar) {
            Ok(times) => measured.push((language, times)),
            Err(reason) => bar.suspend(|| eprintln!("{} is left out: {reason}", language.name)),
        }
    }
    bar.finish_and_clear();
    let raw = common::out().join("languages.json");
    let images: BTreeMap<&str, Value> =
        measured.iter().map(|(language, times)| (language.name.as_str(), times.raw())).collect();
    fs::write(&raw, json!({ "machine": common::machine(), "images": images }).to_string()).unwrap();
    if !args.markdown {
        println!("{}\n", common::machine());
    }
    println!("{}", table(&measured, args.markdown));
    eprintln!("\nraw data: {}", common::shown(&raw));
}

/// A mount namespace and a tmpfs of our own, where trees are shown: nothing is written below a store.
struct Stage {
    dir: TempDir,
}

impl Stage {
    /// Before there are threads, which would stay in the old namespace.
    fn set() -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let dir = tempfile::tempdir().unwrap();
        rustix::mount::mount("bench", dir.path(), "tmpfs", MountFlags::NODEV, Some(c"mode=755")).unwrap();
        Self { dir }
    }

    /// The tree, read-only, with what a task finds at its mount points.
    fn show(&self, name: &str, tree: &Path) -> PathBuf {
        let root = self.dir.path().join(name);
        fs::create_dir(&root).unwrap();
        rustix::mount::mount_bind(tree, &root).unwrap();
        rustix::mount::mount_remount(&root, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
        for point in MOUNT_POINTS {
            let target = root.join(point);
            match point {
                "proc" | "dev" => rustix::mount::mount_bind(format!("/{point}"), &target),
                _ => rustix::mount::mount("bench", &target, "tmpfs", MountFlags::NODEV, Some(c"mode=1777")),
            }
            .unwrap();
        }
        root
    }
}

impl Drop for Stage {
    /// Everything on it goes too, before the directory below is removed.
    fn drop(&mut self) {
        rustix::mount::unmount(self.dir.path(), UnmountFlags::DETACH).unwrap();
    }
}

/// The hello program of an image, in all the ways it is measured.
struct Language {
    name: ImageName,
    request: Client,
    bare: Bare,
    /// The last step alone, of a language that is compiled.
    run: Option<Bare>,
    plain: Option<Bare>,
    /// By an interpreter that waits, where the image has one; its compilation, if there is one, is remembered.
    prepared: Option<Client>,
}

/// A command in a tree.
struct Bare {
    root: PathBuf,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
    _held: Option<InUse>,
}

fn languages(args: &Args, store: &Store, server: &Server, stage: &Stage) -> Vec<Language> {
    let definitions = Definitions::of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("images")).all().unwrap();
    for name in &args.names {
        assert!(definitions.iter().any(|one| one.name.as_str() == name), "{name} is not defined");
        assert!(store.image(&ImageName::parse(name).unwrap()).is_ok(), "{name} is not built");
    }
    let wanted = |one: &&Definition| args.names.is_empty() || args.names.iter().any(|name| name == one.name.as_str());
    let plain = args.plain.as_ref().map(|dir| Store::new(dir));
    let read = |one: &Definition| {
        let hello = language(one, store, plain.as_ref(), server, stage, None);
        let more = MORE.iter().filter(|(name, ..)| one.name.as_str() == *name);
        let more = more.filter_map(|program| language(one, store, None, server, stage, Some(program)));
        hello.into_iter().chain(more).collect::<Vec<_>>()
    };
    definitions.iter().filter(wanted).flat_map(read).collect()
}

fn language(
    definition: &Definition,
    store: &Store,
    plain: Option<&Store>,
    server: &Server,
    stage: &Stage,
    other: Option<&(&str, &str, &str)>,
) -> Option<Language> {
    let language = definition.language.as_ref()?;
    let hello = definition.tests.iter().find(|test| test.name == "hello")?;
    let mut task = hello.request(definition);
    let mut name = definition.name.clone();
    if let Some((_, label, code)) = other {
        name = ImageName::parse(label).unwrap();
        let code = Content::Bytes((*code).to_owned().into());
        task.files.insert(language.file.clone(), FileRequest::File { content: code, mode: None });
    }
    let image = store.image(&definition.name).ok()?;
    let env = environment(server, &definition.name);
    let bare = Bare::new(name.as_str(), &image, store, &task, env.clone(), stage);
    let run = (!language.compile.is_empty()).then(|| bare.without_files(&language.run));
    let plain = plain.and_then(|plain| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/plain");
        let there = directory.join(definition.name.as_str()).exists();
        let without = there.then(|| Definitions::of(&directory).read(&definition.name).unwrap())?;
        let has = |package| definition.packages.contains(package);
        assert!(without.packages.iter().all(has), "{}: a package that the image has not", directory.display());
        let image = plain.image(&without.name).ok()?;
        // The program is the image's; how it is compiled and run is told by the plain one.
        let task = hello.request(&without);
        let mut env = env.clone();
        env.retain(|name, _| !definition.env().contains_key(name));
        env.extend(without.env());
        Some(Bare::new(&format!("plain-{}", without.name), &image, plain, &task, env, stage))
    });
    let anew = TaskRequest { prepared: Some(false), ..task };
    let files: BTreeMap<&String, String> = anew.files.iter().map(|(name, file)| (name, text(file))).collect();
    let mut whole = serde_json::to_value(&anew).unwrap();
    whole["files"] = json!(files);
    let request = Client::new(server, &whole);
    let code = files.get(&language.file);
    let by_its_language = |code| json!({ "image": definition.name, "language": definition.name, "code": code });
    let prepared = image.prepare.and(code).map(|code| Client::new(server, &by_its_language(code)));
    Some(Language { name, request, bare, run, plain, prepared })
}

/// What a task of the image finds in its environment.
fn environment(server: &Server, image: &ImageName) -> BTreeMap<String, String> {
    let result = server.run(json!({ "image": image.as_str(), "command": "env" }));
    let text = result["stdout"].as_str().unwrap_or_else(|| panic!("{result}"));
    text.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect()
}

fn text(file: &FileRequest) -> String {
    match file {
        FileRequest::File { content: Content::Bytes(bytes), .. } => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("definitions' files are text: {other:?}"),
    }
}

impl Bare {
    fn new(
        name: &str,
        image: &Image,
        store: &Store,
        task: &TaskRequest,
        env: BTreeMap<String, String>,
        stage: &Stage,
    ) -> Self {
        let held = store.hold(&image.digest).unwrap();
        let root = stage.show(name, &held.rootfs);
        let command = task.command.iter().chain(&task.args).cloned().collect();
        let files = task.files.iter().map(|(name, file)| (name.clone(), text(file))).collect();
        Self { root, command, env, files, _held: Some(held) }
    }

    /// Another command in the same tree, on what the first one left in the workspace.
    fn without_files(&self, command: &[String]) -> Self {
        let Self { root, env, .. } = self;
        Self { root: root.clone(), command: command.to_owned(), env: env.clone(), files: BTreeMap::new(), _held: None }
    }

    /// The workspace with the program's files and nothing else; without files, as it is.
    fn prepare(&self) {
        let workspace = self.root.join("workspace");
        if self.files.is_empty() {
            return;
        }
        for entry in [&workspace, &self.root.join("tmp")].into_iter().flat_map(|dir| fs::read_dir(dir).unwrap()) {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
        }
        for (name, text) in &self.files {
            fs::write(workspace.join(name), text).unwrap();
        }
    }

    /// fork, chroot, exec, the program's life and wait. What it says when it fails is the error: not every program runs
    /// in a bare tree.
    fn spawn(&self) -> Result<Duration, String> {
        self.prepare();
        let root = self.root.clone();
        let mut command = Command::new(self.program());
        command.args(&self.command[1..]).env_clear().envs(&self.env).stdin(Stdio::null());
        let enter = move || {
            nix::unistd::chroot(&root)?;
            nix::unistd::chdir("/workspace").map_err(Into::into)
        };
        // SAFETY: between fork and exec it makes two system calls, with paths that were allocated before, short enough
        // for nix to hand them on from the stack.
        unsafe { command.pre_exec(enter) };
        let started = Instant::now();
        let output: Output = command.output().unwrap();
        let took = started.elapsed();
        if output.status.success() {
            return Ok(took);
        }
        Err(format!("{:?} bare: {}", self.command, String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// As the task finds it: by the path of the image, in the image.
    fn program(&self) -> PathBuf {
        let name = &self.command[0];
        if name.contains('/') {
            return PathBuf::from(name);
        }
        let path = self.env.get("PATH").map_or("/usr/bin", String::as_str);
        let mut found = path.split(':').map(|dir| Path::new(dir).join(name));
        let is_there = |file: &PathBuf| self.root.join(file.strip_prefix("/").unwrap()).symlink_metadata().is_ok();
        found.find(is_there).unwrap_or_else(|| panic!("{name} is not in {}", self.root.display()))
    }
}

/// What was measured of one language; what it does not have stays empty.
#[derive(Default)]
struct Times {
    plain: Vec<Duration>,
    bare: Vec<Duration>,
    run: Vec<Duration>,
    request: Vec<Duration>,
    prepared: Vec<Duration>,
}

fn measure(language: &Language, args: &Args, bar: &ProgressBar) -> Result<Times, String> {
    bar.set_message(language.name.to_string());
    let mut warming = Times::default();
    (0..2).try_for_each(|_| turn(language, &mut warming))?;
    let (mut times, started) = (Times::default(), Instant::now());
    for count in 0..args.pairs {
        if count >= FEWEST_PAIRS && started.elapsed() > Duration::from_secs(args.seconds) {
            break;
        }
        turn(language, &mut times)?;
    }
    bar.inc(1);
    Ok(times)
}

/// Each way once.
fn turn(language: &Language, times: &mut Times) -> Result<(), String> {
    let Language { name: _, request, bare, run, plain, prepared } = language;
    if let Some(plain) = plain {
        times.plain.push(plain.spawn()?);
        sleep(PAUSE);
    }
    times.bare.push(bare.spawn()?);
    times.run.extend(run.as_ref().map(Bare::spawn).transpose()?);
    sleep(PAUSE);
    times.request.push(request.ask());
    sleep(PAUSE);
    if let (Some(prepared), Some(bare)) = (prepared, times.bare.last()) {
        // One waits, and is ready.
        sleep(*bare * 2);
        times.prepared.push(prepared.ask());
        sleep(PAUSE);
    }
    Ok(())
}

impl Times {
    fn raw(&self) -> Value {
        let micros = |times: &[Duration]| times.iter().map(|time| time.as_micros() as u64).collect::<Vec<_>>();
        let Self { plain, bare, run, request, prepared } = self;
        json!({ "plain_us": micros(plain), "bare_us": micros(bare), "run_us": micros(run), "request_us": micros(request), "prepared_us": micros(prepared) })
    }
}

fn table(measured: &[(&Language, Times)], markdown: bool) -> Table {
    let mut table = Table::new();
    table.load_style(if markdown { presets::ASCII_MARKDOWN } else { presets::NOTHING });
    table.set_header([
        "image",
        "plain, bare",
        "bare",
        "its run alone",
        "Faber",
        "overhead",
        "",
        "≤ 3 ms or 15 %",
        "prepared",
        "× bare",
    ]);
    for (language, times) in measured {
        let p50 = |times: &[Duration]| (!times.is_empty()).then(|| Percentiles::of(&mut times.to_vec()).p50);
        let shown = |time: Option<Duration>| time.map_or_else(String::new, |time| format!("{:.1} ms", ms(time)));
        let (Some(bare), Some(request)) = (p50(&times.bare), p50(&times.request)) else { continue };
        let within = request <= bare + MOST || ratio(request, bare) <= MOST_RATIO;
        table.add_row([
            language.name.to_string(),
            shown(p50(&times.plain)),
            shown(Some(bare)),
            shown(p50(&times.run)),
            shown(Some(request)),
            format!("{:+.1} ms", ms(request) - ms(bare)),
            format!("{:+.0} %", (ratio(request, bare) - 1.0) * 100.0),
            if within { "yes" } else { "no" }.to_owned(),
            shown(p50(&times.prepared)),
            p50(&times.prepared)
                .map_or_else(String::new, |time| format!("{:.2}", ratio(time, p50(&times.run).unwrap_or(bare)))),
        ]);
    }
    table
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}
