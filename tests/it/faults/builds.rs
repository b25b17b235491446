//! SIGKILL to those who make an image, at any moment.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{dice, times};
use crate::support::{FABER, Family, busybox, children};

fn faber(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(FABER);
    command.args(args).current_dir(dir).env("FABER_DATA_DIR", dir.join("data")).stdin(Stdio::null());
    command
}

#[track_caller]
fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

/// An image that is made in some steps, without a network.
fn define(dir: &Path, version: usize) {
    let steps = format!(
        "run = ['mkdir /d; for i in 1 2 3 4 5 6 7 8 9; do echo $i >/d/$i; done', 'echo {version} >/d/version']"
    );
    fs::write(
        dir.join("images/made/image.toml"),
        format!("name = 'made'\ndescription = ''\nbase = 'image:box'\n{steps}\n"),
    )
    .unwrap();
}

#[test]
fn whenever_a_build_is_killed_the_image_is_the_old_one_or_the_new_one() {
    let temporary = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = temporary.path();
    for name in ["box", "made"] {
        fs::create_dir_all(dir.join("images").join(name)).unwrap();
    }
    let copy = ["sh", "cat", "mkdir"].map(|name| format!("{{ from = 'busybox', to = '/bin/{name}' }}")).join(", ");
    let text = format!("name = 'box'\ndescription = ''\nbase = 'scratch'\ncopy = [{copy}]\n");
    fs::write(dir.join("images/box/image.toml"), text).unwrap();
    fs::copy(busybox(), dir.join("images/box/busybox")).unwrap();
    define(dir, 0);
    succeeds(&mut faber(dir, &["image", "build", "box"]));
    let begun = Instant::now();
    succeeds(&mut faber(dir, &["image", "build", "made"]));
    let (whole, mut dice) = (begun.elapsed(), dice());
    let version = || {
        let output = succeeds(&mut faber(dir, &["run", "--image", "made", "--", "/bin/cat", "/d/version"]));
        String::from_utf8(output.stdout).unwrap().trim().parse::<usize>().unwrap()
    };
    let rounds = times("TEST_KILLS", 40).div_ceil(4);
    let (mut old, mut new) = (0, 0);
    for round in 1..=rounds {
        define(dir, round);
        let mut build = faber(dir, &["image", "build", "made"]);
        let mut build = build.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(dice.u64(..whole.as_millis() as u64)));
        let family = Family::of(build.id() as i32);
        // The command itself, or the builder that it waits for.
        let victim = children(build.id() as i32).first().copied().filter(|_| dice.bool());
        let _ = kill(Pid::from_raw(victim.unwrap_or(build.id() as i32)), Signal::SIGKILL);
        build.wait().unwrap();
        family.assert_gone();
        match version() {
            found if found == round => new += 1,
            found => {
                assert_eq!(found, round - 1);
                old += 1;
            }
        }
        succeeds(&mut faber(dir, &["image", "build", "made"]));
        assert_eq!(version(), round);
        assert_eq!(fs::read_dir(dir.join("data/store/staging")).unwrap().count(), 0, "what the killed one left");
    }
    println!("{rounds} builds of {whole:?} killed: {old} left the old image, {new} the new one");
    succeeds(&mut faber(dir, &["image", "gc"]));
    assert_eq!(version(), rounds);
}
