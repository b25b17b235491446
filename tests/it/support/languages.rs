//! Images of the repository's own definitions, built once and kept between runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::FABER;

/// Those that tests need. One that extends another has that one's definition beside it.
const IMAGES: [&str; 5] = ["cpp", "java", "node", "python", "rust"];
const DEFINITIONS: [&str; 6] = ["cpp", "java", "jvm", "node", "python", "rust"];

/// What a shell does, in place of going on, to have the images in `data_dir`, which many servers share, and nothing else: mounts that
/// it alone sees, since the front, which is nobody, may not pass to where they are kept.
pub fn shown_in(data_dir: &Path) -> String {
    let store = built();
    let mounts = ["images", "store"].map(|part| {
        fs::create_dir_all(data_dir.join(part)).unwrap();
        format!("mount --bind \"{}\" \"{}\"", store.join(part).display(), data_dir.join(part).display())
    });
    let script = format!("{} && exec \"$@\"", mounts.join(" && "));
    format!("exec unshare --mount --propagation slave bash -c '{script}' bash \"$@\"")
}

/// The store, with what has changed since the last run built anew. Whoever comes first builds, in whatever process; the store
/// itself sees to it that a build which is killed leaves nothing.
fn built() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("judge-images");
    fs::create_dir_all(&dir).unwrap();
    let lock = File::create(dir.join("tests.lock")).unwrap();
    lock.lock().unwrap();
    // A copy, for the locks that a build leaves beside its definition.
    for name in DEFINITIONS {
        let (from, to) =
            (Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(name), definitions(&dir).join(name));
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(from).unwrap().flatten().filter(|entry| entry.file_name() != "image.lock") {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    // Versions that the lock has may be gone from the archive since.
    let said = build(&dir, &lock, &[]).or_else(|_| build(&dir, &lock, &["--update"]));
    said.unwrap_or_else(|said| panic!("{said}"));
    dir.join("data")
}

fn definitions(dir: &Path) -> PathBuf {
    dir.join("definitions")
}

/// The build has the lock for its standard input: it outlives a test that is killed, and then the next waits for it.
fn build(dir: &Path, lock: &File, options: &[&str]) -> Result<(), String> {
    let mut command = Command::new(FABER);
    command
        .stdin(lock.try_clone().unwrap())
        .env("FABER_DATA_DIR", dir.join("data"))
        .args(["image", "build", "--definitions"])
        .arg(definitions(dir));
    let output = command.args(options).args(IMAGES).output().unwrap();
    if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
}
