//! Others' clients, as npm has them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The `node_modules` with these packages, each `NAME@VERSION`, which is made once.
pub fn modules(name: &str, packages: &[&str]) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("npm").join(name);
    fs::create_dir_all(&dir).unwrap();
    let lock = File::create(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    let (modules, done) = (dir.join("node_modules"), dir.join("done"));
    if !fs::read_to_string(&done).is_ok_and(|text| text == packages.join("\n")) {
        let mut command = Command::new("npm");
        command.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(&dir).args(packages);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        fs::write(done, packages.join("\n")).unwrap();
    }
    modules
}
