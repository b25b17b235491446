//! Packages of the languages' own registries, installed by the languages' own programs: with a start from Debian they come for
//! the build, and go again.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::step::Steps;
use super::{BuilderError, Result, UPDATE};
use crate::image::{Additions, Crate, CrateName, Lock, Locked, NpmPackage, PipRequirement, departure};

/// Where npm's packages are. `/node_modules` leads there, so a program anywhere finds them, by require and by import.
const NPM: &str = "/opt/npm";
/// Where crates are compiled; `rustc @/opt/crates/args` finds them.
const CRATES: &str = "/opt/crates";
const ARGS: &str = "/opt/crates/args";
const CONSTRAINTS: &str = "/run/faber/constraints.txt";
const REPORT: &str = "/run/faber/report.json";
/// How Cargo names its registry in a lock, and how ours does.
const CRATES_IO: (&str, &str) = ("registry+https://github.com/rust-lang/crates.io-index", "crates.io");

/// The Debian packages of the programs that install what `additions` ask for.
pub fn installers(additions: &Additions) -> Vec<&'static str> {
    let programs = [
        (!additions.pip.is_empty(), "python3-pip"),
        (!additions.npm.is_empty(), "npm"),
        (!additions.cargo.is_empty(), "cargo"),
    ];
    programs.into_iter().filter_map(|(is_needed, package)| is_needed.then_some(package)).collect()
}

/// Installs them all, in the versions of `pins` where they are pinned, and puts what it took into `lock`. The Debian packages
/// `for_the_build` go again.
pub fn install(
    steps: &mut Steps<'_, '_>,
    additions: &Additions,
    for_the_build: &[String],
    pins: &Lock,
    lock: &mut Lock,
) -> Result<()> {
    if !additions.pip.is_empty() {
        hide(steps, for_the_build)?;
        lock.pip = pip(steps, &additions.pip, &pins.pip)?;
    }
    if !additions.npm.is_empty() {
        lock.npm = Some(npm(steps, &additions.npm, pins.npm.as_deref())?);
    }
    if !additions.cargo.is_empty() {
        lock.cargo = Some(cargo(steps, &additions.cargo, pins.cargo.as_deref())?);
    }
    Ok(())
}

/// What `pip install --report` writes (pip documentation, installation report).
#[derive(Deserialize)]
struct PipReport {
    install: Vec<PipInstalled>,
}

#[derive(Deserialize)]
struct PipInstalled {
    metadata: PipMetadata,
    download_info: PipDownload,
}

#[derive(Deserialize)]
struct PipMetadata {
    name: String,
    version: String,
}

#[derive(Deserialize)]
struct PipDownload {
    archive_info: PipArchive,
}

#[derive(Deserialize)]
struct PipArchive {
    hashes: BTreeMap<String, String>,
}

/// Python packages of Debian's that will go again must not be taken for installed: pip would leave them out where another needs
/// them. It goes by the directories that say so.
fn hide(steps: &mut Steps<'_, '_>, packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let script = r#"dpkg-query --listfiles "$@" | grep -E '\.(dist|egg)-info$' | xargs -r -d '\n' rm -rf --"#;
    let command = ["sh", "-c", script, "sh"].into_iter().chain(packages.iter().map(String::as_str));
    steps.run("hiding what installs packages", &command.collect::<Vec<_>>())?;
    Ok(())
}

/// Wheels only: what has to be compiled would not be the same twice.
fn pip(steps: &mut Steps<'_, '_>, wanted: &[PipRequirement], pins: &[Locked]) -> Result<Vec<Locked>> {
    let constraints: String = pins.iter().map(|pin| format!("{}=={}\n", pin.name, pin.version)).collect();
    steps.write(Path::new(CONSTRAINTS), constraints.as_bytes())?;
    let mut command = vec!["python3", "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--no-cache-dir"];
    command.extend(["--break-system-packages", "--root-user-action=ignore", "--disable-pip-version-check"]);
    command.extend(["--constraint", CONSTRAINTS, "--report", REPORT]);
    command.extend(wanted.iter().map(PipRequirement::as_str));
    steps.run("pip install", &command)?;
    let report: PipReport = parse("pip", &steps.read(Path::new(REPORT))?)?;
    let locked = |installed: PipInstalled| {
        let sha256 = installed.download_info.archive_info.hashes.get("sha256")?.clone();
        Some(Locked { name: installed.metadata.name, version: installed.metadata.version, sha256 })
    };
    let mut took: Vec<Locked> = report.install.into_iter().filter_map(locked).collect();
    took.sort();
    match departure(&took, pins) {
        Some((pin, _)) => Err(BuilderError::Gone(format!(
            "image.lock has {} {} with another digest than the registry: {UPDATE}",
            pin.name, pin.version
        ))),
        None => Ok(took),
    }
}

/// By a package.json that names them, so that what the lock has is taken from it; its digests are npm's to check.
fn npm(steps: &mut Steps<'_, '_>, wanted: &[NpmPackage], pins: Option<&str>) -> Result<String> {
    let dependencies: BTreeMap<String, &str> = wanted.iter().map(NpmPackage::name_and_range).collect();
    let manifest = json!({ "private": true, "dependencies": dependencies }).to_string();
    let file = |name: &str| Path::new(NPM).join(name);
    steps.write(&file("package.json"), manifest.as_bytes())?;
    if let Some(pins) = pins {
        steps.write(&file("package-lock.json"), pins.as_bytes())?;
    }
    let mut command = vec!["npm", "install", "--prefix", NPM, "--cache", "/tmp/npm", "--no-audit", "--no-fund"];
    command.extend(["--no-update-notifier", "--omit-lockfile-registry-resolved", "--loglevel=error"]);
    steps.run("npm install", &command)?;
    steps.run("npm: links", &["ln", "-sfn", "opt/npm/node_modules", "/node_modules"])?;
    let links = "for program in /opt/npm/node_modules/.bin/*; do if [ -e \"$program\" ]; then ln -sf \"$program\" /usr/local/bin/; fi; done";
    steps.run("npm: programs", &["sh", "-ec", links])?;
    steps.read(&file("package-lock.json"))
}

/// A line of `cargo build --message-format=json` (Cargo book, external tools).
#[derive(Deserialize)]
struct CargoMessage {
    reason: String,
    #[serde(default)]
    package_id: String,
    #[serde(default)]
    filenames: Vec<String>,
}

/// Compiled once with optimisation, as a package of our own that needs them all.
fn cargo(steps: &mut Steps<'_, '_>, wanted: &BTreeMap<CrateName, Crate>, pins: Option<&str>) -> Result<String> {
    #[derive(serde::Serialize)]
    struct Manifest<'a> {
        package: BTreeMap<&'static str, &'static str>,
        dependencies: &'a BTreeMap<CrateName, Crate>,
    }
    let package = BTreeMap::from([("name", "crates"), ("version", "0.0.0"), ("edition", "2021")]);
    let manifest =
        toml::to_string(&Manifest { package, dependencies: wanted }).map_err(|_| BuilderError::Unsaid("cargo"))?;
    let file = |name: &str| Path::new(CRATES).join(name);
    steps.write(&file("Cargo.toml"), manifest.as_bytes())?;
    steps.write(&file("src/lib.rs"), b"")?;
    if let Some(pins) = pins {
        steps.write(&file("Cargo.lock"), pins.replace(CRATES_IO.1, CRATES_IO.0).as_bytes())?;
    }
    let command =
        ["env", "CARGO_HOME=/tmp/cargo", "CARGO_TARGET_DIR=/opt/crates/target", "cargo", "build", "--release"];
    let options = ["--quiet", "--message-format=json", "--manifest-path", "/opt/crates/Cargo.toml"];
    let said = steps.run("cargo build", &[&command[..], &options[..]].concat())?;
    let said = String::from_utf8_lossy(&said);
    let messages = said.lines().filter_map(|line| serde_json::from_str::<CargoMessage>(line).ok());
    steps.write(Path::new(ARGS), arguments(messages, wanted).as_bytes())?;
    let unneeded = ["build", ".fingerprint", "incremental", "../.rustc_info.json"];
    let unneeded: Vec<String> = unneeded.iter().map(|name| format!("{CRATES}/target/release/{name}")).collect();
    let remove: Vec<&str> = ["rm", "-rf", "--"].into_iter().chain(unneeded.iter().map(String::as_str)).collect();
    steps.run("cargo: tidying", &remove)?;
    Ok(steps.read(&file("Cargo.lock"))?.replace(CRATES_IO.0, CRATES_IO.1))
}

/// rustc's arguments, one a line (rustc book, @path), that let a program name the crates.
fn arguments(messages: impl Iterator<Item = CargoMessage>, wanted: &BTreeMap<CrateName, Crate>) -> String {
    let mut externs = std::collections::BTreeSet::new();
    for message in messages.filter(|message| message.reason == "compiler-artifact") {
        // registry+URL#NAME@VERSION (Cargo book, package id specifications).
        let name = message.package_id.rsplit_once('#').map_or("", |(_, id)| id.split('@').next().unwrap_or(id));
        let library = message.filenames.iter().find(|file| file.ends_with(".rlib") || file.ends_with(".so"));
        if let (true, Some(library)) = (wanted.keys().any(|crate_name| crate_name.as_str() == name), library) {
            externs.insert(format!("--extern\n{}={library}\n", name.replace('-', "_")));
        }
    }
    let externs: String = externs.into_iter().collect();
    format!("-Ldependency={CRATES}/target/release/deps\n{externs}")
}

fn parse<'a, T: Deserialize<'a>>(program: &'static str, text: &'a str) -> Result<T> {
    serde_json::from_str(text).map_err(|_| BuilderError::Unsaid(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_crates_that_were_asked_for_are_named_to_rustc() {
        let message = |id: &str, file: &str| CargoMessage {
            reason: "compiler-artifact".into(),
            package_id: format!("registry+x#{id}"),
            filenames: vec![file.into()],
        };
        let name = CrateName::try_from("rand-core".to_owned()).unwrap();
        let wanted =
            BTreeMap::from([(name, toml::from_str::<BTreeMap<String, Crate>>("a = '1'").unwrap()["a"].clone())]);
        let messages = [message("rand-core@0.6.4", "/a.rlib"), message("libc@0.2", "/b.rlib")];
        let expected = "-Ldependency=/opt/crates/target/release/deps\n--extern\nrand_core=/a.rlib\n";
        assert_eq!(arguments(messages.into_iter(), &wanted), expected);
    }
}
