//! `faber image import`: an image of another tool becomes one of Faber's.

use std::io::Read;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::long::{INTERRUPTED, Looker};
use super::store::StoreArgs;
use crate::image::{Image, Imported, Login, OciError, Request, Source, Store, WORKSPACE, Watch, import};
use crate::task::ImageName;

/// No password is longer.
const PASSWORD_BYTES: u64 = 64 << 10;

#[derive(Debug, Args)]
#[command(after_help = "\
SOURCE is a directory with an OCI layout, an archive of one or of `docker save`,
or a reference such as docker.io/library/alpine:3.20. ENV applies to every task;
tasks start in WORKDIR (or in /workspace, where their files are) and run as USER,
but never as root. Exit status 130 when interrupted: then nothing is left.

Examples:
  faber image import docker.io/library/alpine:3.20
  faber image import --name tools 127.0.0.1:5000/team/tools@sha256:…
  docker save -o app.tar app && faber image import app.tar")]
pub struct ImportArgs {
    /// A directory, a file, or a reference to an image in a registry
    #[arg(value_name = "SOURCE")]
    source: String,
    /// What tasks name it by; without it the last name of SOURCE
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Which image, where a layout or an archive has several
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Where its tasks start, in place of its WORKDIR; /workspace: where their files are
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// Talk plain HTTP to the registry, without a password; loopback needs no such word
    #[arg(long)]
    plain_http: bool,
    /// Log in with this name; without it what `docker login` or `podman login` keeps
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Serialize)]
struct ImportLine<'a> {
    name: &'a ImageName,
    /// "imported" or "unchanged".
    outcome: &'static str,
    digest: String,
    /// The digest of the manifest it was made of.
    manifest: String,
    seconds: f64,
    workdir: &'a str,
    user: (u32, u32),
    /// What of its config could not be kept.
    notes: &'a [String],
}

pub fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    // First, since an ordinary user's program begins again there, and standard input can be read once.
    let store = Store::new(&args.store.config_of_owner()?.data_dir);
    let request = args.request()?;
    let writer = store.write()?;
    let (looker, started) = (Looker::new(request.name.as_str())?, Instant::now());
    let done = import(&writer, request, &Watch { progress: &|step| looker.says(step), stopped: &|| looker.stopped() });
    looker.bar.finish_and_clear();
    match done {
        Ok(imported) => tell(&imported, started.elapsed(), args.store.json),
        Err(OciError::Interrupted) => {
            eprintln!("faber: interrupted: nothing was imported");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error).with_context(|| format!("import {}", args.source)),
    }
}

impl ImportArgs {
    fn request(&self) -> anyhow::Result<Request> {
        let source = Source::parse(&self.source)?;
        let name = match &self.name {
            Some(name) => ImageName::parse(name)?,
            None => source.name().with_context(|| format!("{}: --name says what to call it", self.source))?,
        };
        anyhow::ensure!(
            name != Image::host().name,
            "host is the name of the image that is built in: --name gives another"
        );
        let login =
            self.username.clone().map(|username| Ok::<_, anyhow::Error>(Login { username, password: password()? }));
        Ok(Request {
            source,
            name,
            tag: self.tag.clone(),
            workdir: self.workdir.clone(),
            plain_http: self.plain_http,
            login: login.transpose()?,
        })
    }
}

/// One line of standard input.
fn password() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().take(PASSWORD_BYTES).read_to_string(&mut text).context("read the password")?;
    let password = text.lines().next().unwrap_or_default();
    anyhow::ensure!(!password.is_empty(), "there is no password on standard input");
    Ok(password.to_owned())
}

fn tell(imported: &Imported, took: Duration, json: bool) -> anyhow::Result<ExitCode> {
    let Imported { image, manifest, unchanged, notes } = imported;
    let outcome = if *unchanged { "unchanged" } else { "imported" };
    let (seconds, workdir) = (took.as_secs_f64(), image.workdir.as_deref().unwrap_or(WORKSPACE));
    let user = <(u32, u32)>::from(image.user);
    let (name, digest) = (&image.name, image.digest.to_string());
    if json {
        let manifest = manifest.to_string();
        let line = ImportLine { name, outcome, digest, manifest, seconds, workdir, user, notes };
        return super::print(&serde_json::to_string_pretty(&line)?);
    }
    for note in notes {
        eprintln!("faber: {name}: {note}");
    }
    let (uid, gid) = user;
    super::print(&format!("{name}: {outcome} in {seconds:.1} s; tasks start in {workdir} as {uid}:{gid}"))
}
