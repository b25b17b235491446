//! Others' clients, as PyPI has them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The Python of an environment with these packages, each `NAME==VERSION`, which is made once; `--no-deps` in front has what is
/// behind it come without what it depends on.
pub fn python(name: &str, packages: &[&str]) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pypi").join(name);
    fs::create_dir_all(&dir).unwrap();
    let lock = File::create(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    let (python, done) = (dir.join("bin/python"), dir.join("done"));
    if fs::read_to_string(&done).is_ok_and(|text| text == packages.join("\n")) {
        return python;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir));
    for group in packages.split(|package| *package == "--no-deps").enumerate() {
        let (at, group) = group;
        if !group.is_empty() {
            let options: &[&str] = if at == 0 { &[] } else { &["--no-deps"] };
            run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(options).args(group));
        }
    }
    fs::write(done, packages.join("\n")).unwrap();
    python
}

/// A test that is killed leaves nobody who goes on here: the lock is not handed on.
fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}
