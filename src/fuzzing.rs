//! What reads bytes that others made, one function for each reader: for libFuzzer (scripts/fuzz) and for the test below, which
//! runs the same functions over the seeds and what comes of them in every build. They must end, and must not panic.

use std::io::Cursor;
use std::sync::LazyLock;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::ExecuteRequest;
use crate::archive::{Bounds as ArchiveBounds, Kind, unpack};
use crate::frame;
use crate::graph::Plan;
use crate::image::{fuzz_definition, fuzz_documents};
use crate::judge::JudgeRequest;
use crate::sandbox::init_wire;
use crate::task::{
    ArchiveFormat, Bounds, Compare, Digest, ImageId, ImageName, Job, Object, Offer, OutputGlob, WorkspacePath, compare,
};

/// A reader, and the name of its seeds' directory in fuzz/seeds.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

pub const TARGETS: [Target; 8] = [
    Target { name: "request", run: request },
    Target { name: "judge", run: judge },
    Target { name: "names", run: names },
    Target { name: "archive", run: archive },
    Target { name: "wire", run: wire },
    Target { name: "definition", run: fuzz_definition },
    Target { name: "oci", run: fuzz_documents },
    Target { name: "compare", run: comparison },
];

/// The machine's own image, as the server offers it.
static HOST: LazyLock<Offer> = LazyLock::new(|| Offer {
    id: ImageId { name: ImageName::parse("host").expect("a name"), digest: Digest::new([0; 32]) },
    limits: Default::default(),
    language: None,
});
static BOUNDS: LazyLock<Bounds> = LazyLock::new(|| crate::config::Config::built_in().bounds());

/// The way of POST /execute to its tasks.
fn request(bytes: &[u8]) {
    let Ok(Object(request)) = serde_json::from_slice::<Object<ExecuteRequest>>(bytes) else { return };
    if request.tasks.iter().any(|task| task.nothing_to_run().is_some()) {
        return;
    }
    if let Ok(plan) = Plan::new(&request.tasks, &request.connect) {
        _ = plan.graph(&request.tasks, &[]);
    }
    for task in request.tasks {
        _ = Job::parse(task, &BOUNDS, &HOST.id.name, std::slice::from_ref(&HOST));
    }
}

fn judge(bytes: &[u8]) {
    _ = serde_json::from_slice::<Object<JudgeRequest>>(bytes);
}

/// Lines: each a file's path and a glob, and both against each other.
fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let paths: Vec<_> = text.lines().take(20).filter_map(|line| WorkspacePath::parse(line).ok()).collect();
    let globs = text.lines().take(20).filter_map(|line| OutputGlob::try_from(line.to_owned()).ok());
    for path in &paths {
        assert!(path.parents().count() < path.as_str().len().max(1));
        paths.iter().for_each(|target| _ = path.leads_inside(target.as_str()));
    }
    for glob in globs {
        paths.iter().for_each(|path| _ = glob.matches(path.as_str()));
    }
}

/// A format, by the first byte, and an archive.
fn archive(bytes: &[u8]) {
    let Some((format, bytes)) = bytes.split_first() else { return };
    let formats = [ArchiveFormat::Tar, ArchiveFormat::TarGz, ArchiveFormat::TarZst, ArchiveFormat::Zip];
    let bounds = ArchiveBounds { entries: 100, bytes: 1 << 20 };
    let mut contents = Vec::new();
    let format = formats[usize::from(*format) % formats.len()];
    let Ok(entries) = unpack(format, Cursor::new(bytes), None, bounds, &mut contents) else { return };
    assert!(entries.len() <= bounds.entries && contents.len() as u64 <= bounds.bytes);
    for entry in entries {
        if let Kind::File { offset, size, .. } = entry.kind {
            assert!(offset + size <= contents.len() as u64, "{} is beyond what was unpacked", entry.path.as_str());
        }
    }
}

/// A message of each kind; the first bytes are those before a message as well.
fn wire(bytes: &[u8]) {
    if let Some(prefix) = bytes.first_chunk() {
        _ = frame::lengths(*prefix);
    }
    message::<crate::runner::wire::Order>(bytes);
    message::<crate::runner::wire::Notice>(bytes);
    message::<crate::keeper::wire::Message>(bytes);
    message::<init_wire::Command>(bytes);
    message::<init_wire::Files>(bytes);
    if let Some(bytes) = bytes.first_chunk()
        && let Some(notice) = init_wire::Notice::decode(*bytes)
    {
        assert_eq!(init_wire::Notice::decode(notice.encode()), Some(notice));
    }
}

/// What can be read can be written, and read again.
fn message<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    if let Ok(message) = frame::decode::<T>(bytes) {
        let written = frame::encode(&message, 0).expect("no longer than what was read");
        assert!(frame::decode::<T>(&written[frame::PREFIX..]).is_ok());
    }
}

/// How to compare, by the first byte, and two texts around the first NUL.
fn comparison(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let all = [Compare::Exact, Compare::Lines, Compare::Tokens, Compare::Float(1e-6)];
    let how = all[usize::from(*how) % all.len()];
    let middle = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (one, other) = (&bytes[..middle], bytes.get(middle + 1..).unwrap_or_default());
    let differ = |one, other| compare(how, one, other).expect("memory can be read");
    assert!(differ(one, one).is_none(), "nothing differs from itself");
    // A relative difference is one of the expected number, which is another one the other way round.
    if !matches!(how, Compare::Float(_)) {
        assert_eq!(differ(one, other).is_none(), differ(other, one).is_none());
    }
    if let Some(difference) = differ(one, other) {
        assert!(difference.to_string().chars().count() <= 200);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn mutated(random: &mut fastrand::Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[random.usize(..seeds.len())].clone();
        for _ in 0..=random.usize(..4) {
            let (at, other) = (random.usize(..=bytes.len()), &seeds[random.usize(..seeds.len())]);
            match random.usize(..6) {
                0 => bytes.truncate(at),
                1 if at < bytes.len() => bytes[at] = random.u8(..),
                2 if at < bytes.len() => bytes[at] ^= 1 << random.usize(..8),
                3 => drop(bytes.splice(at..at, other.iter().skip(random.usize(..=other.len())).take(64).copied())),
                4 => drop(bytes.drain(at..(at + random.usize(..16)).min(bytes.len()))),
                _ => bytes.insert(at, [0, 0xff, b'"', b'{', b'[', b'*', b'/', b'-'][random.usize(..8)]),
            }
        }
        bytes
    }

    #[test]
    fn seeds_and_what_comes_of_them_are_read_or_refused() {
        for Target { name, run } in TARGETS {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
            let files = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
            let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
            files.sort();
            let seeds: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
            seeds.iter().for_each(|seed| run(seed));
            // The same in every run.
            let mut random = fastrand::Rng::with_seed(7);
            for _ in 0..5000 {
                let bytes = mutated(&mut random, &seeds);
                // libtest shows it when the target panics.
                print!("\r{name}: {}", bytes.escape_ascii());
                run(&bytes);
            }
        }
    }
}
