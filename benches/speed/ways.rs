//! Ways to run a command once.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libcontainer::oci_spec::runtime::{MountBuilder, ProcessBuilder, RootBuilder, Spec};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::Client;

/// What is run: a program with arguments and files.
pub struct Job {
    pub name: &'static str,
    pub command: Vec<&'static str>,
    pub files: Vec<(&'static str, String)>,
}

impl Job {
    /// As a task of the host image.
    pub fn task(&self) -> Value {
        let files: serde_json::Map<String, Value> =
            self.files.iter().map(|(name, text)| ((*name).to_owned(), json!(text))).collect();
        json!({ "command": self.command[0], "args": self.command[1..], "files": files })
    }
}

/// How long a run took, and the CPU time that it cost as far as it is known at once.
pub struct Took {
    pub wall: Duration,
    pub cpu: Duration,
}

pub trait Way {
    fn name(&self) -> &'static str;
    fn once(&self) -> Took;
}

/// A process of the machine: spawned, and waited for.
struct Spawned {
    name: &'static str,
    argv: Vec<String>,
    dir: TempDir,
    /// What is in the directory before each run.
    files: Vec<(&'static str, String)>,
    /// An argument that is another one each time: a container's name.
    numbered: bool,
}

impl Way for Spawned {
    fn name(&self) -> &'static str {
        self.name
    }

    fn once(&self) -> Took {
        self.run().unwrap_or_else(|reason| panic!("{}: {reason}", self.name))
    }
}

impl Spawned {
    fn run(&self) -> Result<Took, String> {
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        for (name, text) in &self.files {
            fs::write(self.dir.path().join(name), text).unwrap();
        }
        let (started, cpu) = (Instant::now(), children());
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).current_dir(self.dir.path());
        if self.numbered {
            let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            command.arg(format!("faber-bench-{}-{number}", std::process::id()));
        }
        // Read, as Faber reads it.
        let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        let took = Took { wall: started.elapsed(), cpu: children() - cpu };
        if output.status.success() { Ok(took) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }
}

/// CPU time of the children that were waited for, and of theirs (getrusage(2)).
fn children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let time = |value: nix::sys::time::TimeVal| Duration::new(value.tv_sec() as u64, value.tv_usec() as u32 * 1000);
    time(usage.user_time()) + time(usage.system_time())
}

struct Faber(Client);

impl Way for Faber {
    fn name(&self) -> &'static str {
        "Faber"
    }

    fn once(&self) -> Took {
        Took { wall: self.0.ask(), cpu: Duration::ZERO }
    }
}

/// The program's own path: what a shell finds first may be a wrapper.
fn program(job: &Job) -> Vec<String> {
    let path = format!("/usr/bin/{}", job.command[0]);
    [path].into_iter().chain(job.command[1..].iter().map(|arg| (*arg).to_owned())).collect()
}

fn spawned(name: &'static str, argv: Vec<String>, job: &Job) -> Spawned {
    Spawned { name, argv, dir: tempfile::tempdir().unwrap(), files: job.files.clone(), numbered: false }
}

pub fn bare(job: &Job) -> Box<dyn Way> {
    Box::new(spawned("bare spawn", program(job), job))
}

pub fn faber(client: Client) -> Box<dyn Way> {
    Box::new(Faber(client))
}

/// The sandboxes that are installed and run here: each with the machine's /usr read-only, as Faber's host image has it. And
/// why another does not.
pub fn others(job: &Job) -> (Vec<Box<dyn Way>>, Vec<String>) {
    let candidates = [
        bwrap(job),
        oci("crun run", &["crun", "run"], job),
        // Where it refuses a machine with both versions of control groups, it may still do without.
        oci("crun run, without cgroups", &["crun", "--cgroup-manager=disabled", "run"], job),
        oci("runc run", &["runc", "run"], job),
    ];
    let (mut ways, mut refusals): (Vec<Box<dyn Way>>, _) = (Vec::new(), Vec::new());
    for way in candidates {
        if way.name.starts_with("crun") && ways.iter().any(|way| way.name().starts_with("crun")) {
            continue;
        }
        match way.run() {
            Ok(_) => ways.push(Box::new(way)),
            Err(reason) => refusals.push(format!("{} does not run here: {}", way.name, reason.trim())),
        }
    }
    (ways, refusals)
}

fn bwrap(job: &Job) -> Spawned {
    let mut way = spawned("bwrap", Vec::new(), job);
    let dir = way.dir.path().to_str().unwrap().to_owned();
    let mut argv: Vec<String> =
        ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr"].map(str::to_owned).into();
    for (link, target) in links() {
        argv.extend(["--symlink".to_owned(), target, link]);
    }
    argv.extend(
        ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--bind", &dir, "/workspace", "--chdir", "/workspace"]
            .map(str::to_owned),
    );
    way.argv = argv.into_iter().chain(program(job)).collect();
    way
}

/// A bundle with the defaults of the runtimes' own `spec` command.
fn oci(name: &'static str, command: &[&str], job: &Job) -> Spawned {
    let mut way = spawned(name, Vec::new(), job);
    let rootfs = way.dir.path().join("rootfs");
    fs::create_dir_all(rootfs.join("usr")).unwrap();
    fs::create_dir_all(rootfs.join("workspace")).unwrap();
    for (link, target) in links() {
        std::os::unix::fs::symlink(target, rootfs.join(link.trim_start_matches('/'))).unwrap();
    }
    let bind = |source: &Path, destination: &str, mode: &str| {
        let options = ["rbind", mode].map(str::to_owned).to_vec();
        MountBuilder::default().destination(destination).typ("bind").source(source).options(options).build().unwrap()
    };
    let mut spec = Spec::default();
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.retain(|mount| !mount.destination().starts_with("/sys"));
    mounts.push(bind(Path::new("/usr"), "/usr", "ro"));
    mounts.push(bind(way.dir.path(), "/workspace", "rw"));
    spec.set_mounts(Some(mounts));
    spec.set_root(Some(RootBuilder::default().path(rootfs).readonly(true).build().unwrap()));
    let process = ProcessBuilder::default().terminal(false).args(program(job)).cwd("/workspace");
    spec.set_process(Some(process.env(vec!["PATH=/usr/bin:/bin".to_owned()]).build().unwrap()));
    spec.save(way.dir.path().join("config.json")).unwrap();
    let bundle = ["--bundle", way.dir.path().to_str().unwrap()];
    way.argv = command.iter().chain(&bundle).map(|arg| (*arg).to_owned()).collect();
    way.numbered = true;
    way
}

/// The top directories that are links into /usr.
fn links() -> Vec<(String, String)> {
    let link = |path: &str| Some((path.to_owned(), fs::read_link(path).ok()?.to_str()?.to_owned()));
    ["/bin", "/sbin", "/lib", "/lib64"].into_iter().filter_map(link).collect()
}
