//! Debian's packages: installed by mmdebstrap(1), which checks every archive against the suite's signed lists.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::chown;
use std::process::{Command, Stdio};

use super::place::read_beside;
use super::program::{finish, last_words};
use super::step::Steps;
use super::{BuilderError, Result, UPDATE, at, doing};
use crate::image::{EPOCH, Lock, Locked, Package, Suite, departure};
use crate::sandbox::Workshop;

const PROGRAM: &str = "mmdebstrap";
/// Its hooks, which its shell runs: fixed text. The files they name are ours, beside the root.
///
/// Versions go by apt_preferences(5): above 1000 a version is taken even where a newer one is there.
const BEFORE: &str = r#"if [ -s "$FABER_BESIDE/preferences" ]; then
    mkdir -p "$1/etc/apt/preferences.d"
    cp "$FABER_BESIDE/preferences" "$1/etc/apt/preferences.d/faber"
fi"#;
/// As soon as the lists are there: is every pinned version in them?
const LISTED: &str = r#"if [ -s "$FABER_BESIDE/pins" ]; then
    APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" xargs -a "$FABER_BESIDE/pins" apt-cache show |
        awk '/^Package: /{name=$2} /^Version: /{print name "=" $2}' >"$FABER_BESIDE/there" || true
    if grep -vxF -f "$FABER_BESIDE/there" "$FABER_BESIDE/pins" >"$FABER_BESIDE/gone"; then
        exit 1
    fi
fi"#;
/// At the end: what the lists say of what is installed.
const INSTALLED: &str = r#"dpkg-query --root="$1" --show --showformat='${Package}:${Architecture}=${Version}\n' |
    APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" xargs apt-cache show --no-all-versions >"$FABER_BESIDE/records"
rm -f "$1/etc/apt/preferences.d/faber""#;
/// And what of it only the installers need, which go again: what apt would remove if nobody had asked for them.
const INSTALLERS: &str = r#"if [ -s "$FABER_BESIDE/installers" ]; then
    set -e
    export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
    xargs -a "$FABER_BESIDE/installers" apt-mark auto >/dev/null
    apt-get --simulate -o APT::AutoRemove::RecommendsImportant=false -o APT::AutoRemove::SuggestsImportant=false autoremove \
        >"$FABER_BESIDE/removal"
    awk '/^Remv /{print $2}' "$FABER_BESIDE/removal" >"$FABER_BESIDE/for_the_build"
fi"#;

/// What was installed.
pub struct Installed {
    pub all: Vec<Locked>,
    /// The names of those among them that go again.
    pub for_the_build: Vec<String>,
}

/// Makes a root file system of `packages`, and for the build of `installers` too, all of them in the versions of `pins` that are
/// pinned.
pub fn install(
    workshop: &Workshop<'_>,
    suite: &Suite,
    packages: &[Package],
    installers: &[&str],
    pins: &Lock,
    cancel: BorrowedFd<'_>,
) -> Result<Installed> {
    write(workshop, "preferences", pins.debian.iter().map(preference))?;
    write(workshop, "pins", pins.debian.iter().map(|pin| format!("{}={}\n", pin.name, pin.version)))?;
    // What is in a definition's list stays.
    let is_new = |name: &&str| packages.iter().all(|package| package.as_str() != *name);
    let installers: Vec<&str> = installers.iter().copied().filter(is_new).collect();
    write(workshop, "installers", installers.iter().map(|name| format!("{name}\n")))?;
    let mut command = workshop.program(PROGRAM);
    command.args(["--mode=root", "--variant=essential", "--format=directory", "--aptopt=Acquire::Retries \"3\""]);
    let names: Vec<&str> = packages.iter().map(Package::as_str).chain(installers.iter().copied()).collect();
    if !names.is_empty() {
        command.arg(format!("--include={}", names.join(",")));
    }
    let hooks = [("setup", BEFORE), ("extract", LISTED), ("customize", INSTALLED), ("customize", INSTALLERS)];
    command.args(hooks.map(|(stage, hook)| format!("--{stage}-hook={hook}")));
    command.arg(suite.as_str()).arg(workshop.root());
    command.env("SOURCE_DATE_EPOCH", EPOCH).env("LC_ALL", "C.UTF-8").env("FABER_BESIDE", workshop.beside());
    // Its own default may be a directory that root of the namespace cannot use.
    command.env("TMPDIR", "/tmp");
    let done = bootstrap(command, cancel);
    if let Some(gone) = read_beside(workshop, "gone").ok().as_deref().and_then(gone) {
        return Err(BuilderError::Gone(gone));
    }
    done?;
    let read = |name: &str| read_beside(workshop, name).map_err(at("read what mmdebstrap installed"));
    let all = installed(&read("records")?);
    let for_the_build = if installers.is_empty() { String::new() } else { read("for_the_build")? };
    let for_the_build = for_the_build.lines().map(str::to_owned).collect();
    match departure(&all, &pins.debian) {
        Some((pin, found)) => Err(BuilderError::Gone(format!(
            "image.lock has {} {} with digest {}, the archive has {} with {}: {UPDATE}",
            pin.name, pin.version, pin.sha256, found.version, found.sha256
        ))),
        None => Ok(Installed { all, for_the_build }),
    }
}

/// Removes the packages that came for the build alone.
pub fn remove(steps: &mut Steps<'_, '_>, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let command = ["env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--purge"];
    steps.run(
        "removing what installed packages",
        &command.into_iter().chain(names.iter().map(String::as_str)).collect::<Vec<_>>(),
    )?;
    Ok(())
}

fn bootstrap(mut command: Command, cancel: BorrowedFd<'_>) -> Result<()> {
    if !on_path(PROGRAM) {
        return Err(BuilderError::NoProgram(PROGRAM));
    }
    let mut errors = String::new();
    let done = finish(PROGRAM, command.stdin(Stdio::null()).stdout(Stdio::null()), cancel, |line| {
        if let Some(step) = line.strip_prefix("I: ") {
            doing(step);
        } else if line.starts_with("E: ") || line.contains("Unable to locate") || line.contains("error") {
            errors.push_str(line);
            errors.push('\n');
        }
    });
    match done {
        Err(BuilderError::Program { program, .. }) if !errors.is_empty() => {
            Err(BuilderError::Program { program, said: last_words(&errors) })
        }
        done => done,
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// A file beside the root, for the hooks.
fn write(workshop: &Workshop<'_>, name: &str, lines: impl Iterator<Item = String>) -> Result<()> {
    let path = workshop.beside().join(name);
    fs::write(&path, lines.collect::<String>()).map_err(at("write the pinned versions"))?;
    chown(&path, Some(workshop.owner()), None).map_err(at("write the pinned versions"))
}

/// A paragraph of apt_preferences(5).
fn preference(pin: &Locked) -> String {
    format!("Package: {}\nPin: version {}\nPin-Priority: 1001\n\n", pin.name, pin.version)
}

/// Tells which of the pinned versions, a line each, the archive has no longer.
fn gone(lines: &str) -> Option<String> {
    const NAMED: usize = 5;
    let all: Vec<String> = lines.lines().map(|line| line.replacen('=', " ", 1)).collect();
    let more = if all.len() > NAMED { format!(" and {} more", all.len() - NAMED) } else { String::new() };
    let named = all[..all.len().min(NAMED)].join(", ");
    (!all.is_empty()).then(|| format!("image.lock has {named}{more}, which the archive has no longer: {UPDATE}"))
}

/// The records of a package list (deb822(5)) as locked packages, by name.
fn installed(records: &str) -> Vec<Locked> {
    let field = |record: &str, name: &str| {
        record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
    };
    let locked = |record: &str| {
        Some(Locked {
            name: field(record, "Package")?,
            version: field(record, "Version")?,
            sha256: field(record, "SHA256")?,
        })
    };
    let mut all: Vec<Locked> = records.split("\n\n").filter_map(locked).collect();
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_become_pins() {
        let record = |name: &str| format!("Package: {name}\nVersion: 1\nDescription: x\n SHA256: no\nSHA256: 00\n\n");
        let all = installed(&[record("b"), record("a"), record("a"), "Package: c\n".into()].concat());
        assert_eq!(all.iter().map(|locked| locked.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(preference(&all[0]), "Package: a\nPin: version 1\nPin-Priority: 1001\n\n");
        assert!(gone("a=1\nb=2\n").unwrap().starts_with("image.lock has a 1, b 2, which the archive"));
        assert!(gone(&"a=1\n".repeat(9)).unwrap().contains("a 1 and 4 more"));
        assert_eq!(gone(""), None);
    }
}
