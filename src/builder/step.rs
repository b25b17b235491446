//! A build step: a command in a container whose root is the one in the making, with the machine's network.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use super::program::last_words;
use super::{BuilderError, Result, doing};
use crate::artifact::Artifact;
use crate::image::{Contents, EPOCH, Image, Order, Root, User};
use crate::sandbox::Workshop;
use crate::task::{
    Digest, ImageName, Limits, MINIMUM, Outcome, Output, Outputs, Report, ResourceLimits, Task, TransferBounds,
};

/// Where the machine's certificates are in a step; below /run, which no image keeps.
const CERTIFICATES: &str = "/run/faber/ca-certificates.crt";
/// What programs are told of them by.
const CERTIFICATES_IN: [&str; 7] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "CARGO_HTTP_CAINFO",
];
/// Where Linux distributions have them.
const MACHINE_CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// How the operator says where networks and registries are: what else is in the environment may be secret.
const PASSED_ON: [&str; 8] = [
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "PIP_INDEX_URL",
    "NPM_CONFIG_REGISTRY",
];
/// Files of the machine that name its network's servers.
const NETWORK_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
const HOUR: u64 = 3_600_000_000_000;

/// Runs steps.
pub struct Steps<'a, 'slot> {
    workshop: &'a mut Workshop<'slot>,
    cancel: BorrowedFd<'a>,
    image: Rc<Image>,
    files: Vec<(String, String)>,
}

impl<'a, 'slot> Steps<'a, 'slot> {
    pub fn new(workshop: &'a mut Workshop<'slot>, order: &Order, cancel: BorrowedFd<'a>) -> Self {
        let mut files: Vec<(String, String)> = NETWORK_FILES
            .iter()
            .filter(|path| Path::new(path).is_file())
            .map(|path| ((*path).to_owned(), (*path).to_owned()))
            .collect();
        let mut env = order.env.clone();
        env.extend([("HOME", "/root"), ("SOURCE_DATE_EPOCH", EPOCH)].map(owned));
        env.extend(PASSED_ON.iter().filter_map(|name| Some(owned((name, &std::env::var(name).ok()?)))));
        if let Some(certificates) = certificates() {
            files.push((certificates, CERTIFICATES.to_owned()));
            env.extend(CERTIFICATES_IN.iter().map(|name| owned((name, CERTIFICATES))));
        }
        Self { workshop, cancel, image: Rc::new(image(&order.path, env)), files }
    }

    /// Runs a command to its end; its standard output.
    ///
    /// # Errors
    /// With its last words when it did not succeed.
    pub fn run(&mut self, name: &str, command: &[&str]) -> Result<Vec<u8>> {
        doing(name);
        let task = task(self.image.id(), command);
        let done = self.workshop.step(self.image.clone(), self.files.clone(), task, self.cancel);
        let step = || name.chars().take(80).collect::<String>();
        let report = done.map_err(|source| BuilderError::Container { step: step(), source: Box::new(source) })?;
        if report.outcome == Outcome::Exited(0) {
            return Ok(report.stdout);
        }
        Err(BuilderError::Step { step: step(), said: said(&report) })
    }

    /// Writes a file for a step to find, with its directories.
    ///
    /// # Errors
    /// When the root is not as it should be, or the disk is full.
    pub fn write(&self, path: &Path, content: &[u8]) -> Result<()> {
        super::place::write(self.workshop, path, 0o644, &mut &*content)
            .map_err(|source| BuilderError::Copy { path: path.to_owned(), source })
    }

    /// The text of a file that a step made.
    ///
    /// # Errors
    /// When there is none, or it is longer than 64 MiB.
    pub fn read(&self, path: &Path) -> Result<String> {
        super::place::read(self.workshop, path).map_err(|source| BuilderError::Copy { path: path.to_owned(), source })
    }

    pub fn workshop(&self) -> &Workshop<'slot> {
        self.workshop
    }
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// The machine's certificates, where everybody may read them.
fn certificates() -> Option<String> {
    let named = std::env::var("SSL_CERT_FILE").ok();
    let all = named.into_iter().chain(MACHINE_CERTIFICATES.map(str::to_owned));
    all.filter(|path| fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o004 != 0))
        .find_map(|path| fs::canonicalize(path).ok()?.to_str().map(str::to_owned))
}

/// The environment of steps, in the form that a container takes it.
fn image(path: &str, env: BTreeMap<String, String>) -> Image {
    let digest = Digest::new([0; 32]);
    let contents =
        Contents { definition: digest.clone(), size: 0, versions: BTreeMap::new(), packages: BTreeMap::new() };
    let name = ImageName::parse("build").expect("a name: tested");
    Image {
        name,
        digest,
        description: String::new(),
        path: path.to_owned(),
        env,
        workdir: Some("/".to_owned()),
        user: User::FABER,
        limits: ResourceLimits::default(),
        language: None,
        prepare: None,
        root: Root::Tree(contents),
    }
}

/// Limits against what runs away, not against who works: a compiler may take half of the machine, for an hour.
fn task(image: crate::task::ImageId, command: &[&str]) -> Task<Artifact> {
    let (program, args) = command.split_first().map_or(("", &[][..]), |(program, args)| (*program, args));
    let limits = Limits {
        memory: crate::config::machine_memory() / 2,
        cpu_time: 4 * HOUR,
        wall_time: HOUR,
        processes: 4096,
        file_descriptors: 4096,
        output: 64 << 20,
        workspace: crate::task::WORKSPACE_BYTES,
        ..MINIMUM
    };
    let nothing = TransferBounds { count: 0, each: 0, total: 0 };
    Task {
        image,
        command: program.to_owned(),
        is_images: true,
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: BTreeMap::new(),
        files: BTreeMap::new(),
        stdin: None,
        limits,
        outputs: Outputs { globs: Vec::new(), bounds: nothing },
        output: Output::default(),
        prepared: false,
    }
}

fn said(report: &Report) -> String {
    let how = match &report.outcome {
        Outcome::Exited(code) => format!("exit status {code}"),
        Outcome::Signalled(signal) => format!("signal {signal}"),
        Outcome::Stopped(limit, value) => limit.exceeded(*value),
        Outcome::CannotRun { reason, .. } | Outcome::NotExecuted { reason } => reason.clone(),
        other => format!("{other:?}"),
    };
    let words = [&report.stdout, &report.stderr].map(|bytes| last_words(&String::from_utf8_lossy(bytes)));
    [how].into_iter().chain(words).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
}
