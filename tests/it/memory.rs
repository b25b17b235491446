//! What of memory is the program's own, whatever others have read before.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{Advice, fadvise};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{FABER, Server, busybox};

const MIB: u64 = 1 << 20;
/// Reads it, as fast as can be.
const READ: &str = "dd if=/big of=/dev/null bs=1M";
/// The image's file.
const BIG: u64 = 32 * MIB;

/// An image with a large file.
struct Files(TempDir);

impl Files {
    fn build() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let image = dir.path().join("images/files");
        fs::create_dir_all(&image).unwrap();
        let links = ["sh", "head", "dd", "echo"].map(|name| format!("{{ from = \"busybox\", to = \"/bin/{name}\" }}"));
        let definition = format!(
            "name = \"files\"\ndescription = \"x\"\nbase = \"scratch\"\ncopy = [{}, {{ from = \"big\", to = \"/big\" }}]\n",
            links.join(", ")
        );
        fs::write(image.join("image.toml"), definition).unwrap();
        fs::copy(busybox(), image.join("busybox")).unwrap();
        // Not zeros: a file system may keep those without any pages.
        let random: Vec<u8> = (0..BIG as u32 / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
        fs::write(image.join("big"), random).unwrap();
        let mut command = Command::new(FABER);
        command.current_dir(dir.path()).env("FABER_DATA_DIR", dir.path().join("data"));
        let built = command.args(["image", "build", "files"]).output().unwrap();
        assert!(built.status.success(), "{built:?}");
        Self(dir)
    }

    fn server(&self) -> Server {
        let data = self.0.path().join("data");
        Server::start(&["--open-mode"], &[("FABER_DATA_DIR", data.to_str().unwrap())])
    }

    /// The page cache forgets the image; false where its files are in nothing but memory.
    fn forget(&self) -> bool {
        let files = self.0.path().join("data/store/files");
        let mut found: Vec<PathBuf> = Vec::new();
        let mut next = vec![files];
        while let Some(dir) = next.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { next.push(path) } else { found.push(path) }
            }
        }
        assert!(found.iter().any(|file| fs::metadata(file).unwrap().len() == BIG), "{found:?}");
        for file in found.iter().map(|path| File::open(path).unwrap()) {
            file.sync_all().unwrap();
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        }
        rustix::fs::statfs(self.0.path()).unwrap().f_type != libc::TMPFS_MAGIC
    }
}

fn task(script: &str, memory: u64) -> Value {
    json!({ "image": "files", "command": "sh", "args": ["-c", script], "detail": true,
        "resource_limits": { "memory_limit": memory, "cpu_time_limit": 300_000_000_000u64, "wall_time_limit": 600_000_000_000u64 } })
}

fn peak(result: &Value) -> u64 {
    assert_eq!(result["status"], "Success", "{result}");
    result["resource_usage"]["memory_peak_bytes"].as_u64().unwrap()
}

#[test]
fn memory_is_the_programs_whoever_has_read_its_files_before() {
    let files = Files::build();
    let server = files.server();
    // 20 MiB of its own, and a file that does not fit beside that in the lesser limit.
    let script = format!("dd if=/dev/zero of=/tmp/own bs=1M count=20; {READ}; {READ}; {READ}");
    if !files.forget() {
        eprintln!("NOT CHECKED: files that are read from a disk, since there is none here");
    }
    for memory in [512, 40].map(|mib| mib * MIB) {
        files.forget();
        let cold = server.run(task(&script, memory));
        let warm = server.run(task(&script, memory));
        let (cold, warm) = (peak(&cold), peak(&warm));
        assert!((20 * MIB..=24 * MIB).contains(&warm), "{warm}");
        assert!(cold.abs_diff(warm) <= warm / 20, "of {memory}: {cold} while nobody had read them, {warm} then");
    }
}

#[test]
fn files_that_do_not_fit_the_limit_are_no_reason_to_fail_nor_to_go_on_for_ever() {
    let files = Files::build();
    let server = files.server();
    let script = format!("for i in 1 2 3 4 5 6 7 8; do {READ} || exit; done; echo done");
    files.forget();
    let cold = server.run(task(&script, 16 * MIB));
    assert!(peak(&cold) <= 16 * MIB, "{cold}");
    assert_eq!(cold["stdout"], "done\n");
    // What is its own is held to the limit all the same, with room for files or without.
    for more in ["".to_owned(), format!("{READ}; {READ}; {READ}; {READ};")] {
        files.forget();
        let result = server.run(task(&format!("{more} dd if=/dev/zero of=/tmp/own bs=1M count=60; {READ}"), 16 * MIB));
        assert_eq!(result["status"], "MemoryLimitExceeded", "{result}");
        assert!(result["error"].as_str().unwrap().contains("memory limit"), "{result}");
    }
}
