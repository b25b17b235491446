//! The uid and gid range of a slot: one that nothing else on the machine and no other slot uses.
//!
//! As root of the machine: 65536 ids for each. systemd's list of ranges (uids-gids, systemd.io) leaves 0x7000_0000–0x7fff_ffff
//! to local use, above everything that user databases, subordinate ids and container managers hand out. In a user namespace,
//! which has the ids of some user, what there is is divided.
//!
//! Fabers that share a tree of control groups share the ranges out by it. Those that share nothing (containers, each with
//! groups of its own) begin their search at a range drawn by lot, of 4096.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::kernel;
use crate::image::User;

const MACHINE: Space = Space { first: 0x7000_0000, ranges: 4096, size: FULL };
/// Ids of a whole range: all that a container's files and users may name.
const FULL: u32 = 65_536;
/// Ranges that a namespace of few ids is divided into.
const FEW: u32 = 16;
/// Ids that such a namespace has to have.
pub const LEAST: u32 = 4096;

/// What ranges are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Space {
    first: u32,
    ranges: u32,
    size: u32,
}

/// A claimed range. Given back when dropped, or when the process ends.
#[derive(Debug)]
pub struct UidRange {
    base: u32,
    size: u32,
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum IdError {
    #[error("open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("lock {path}")]
    Lock { path: PathBuf, source: io::Error },
    #[error(
        "all {0} uid ranges are in use: lower execution.concurrency, which takes two for each task at once, and one"
    )]
    Exhausted(u32),
    #[error("read /proc/self/{0}")]
    Map(&'static str, #[source] io::Error),
    #[error("this user namespace has {0} ids beside root, and {LEAST} are needed: see subuid(5)")]
    TooFew(u32),
}

impl UidRange {
    /// Claims a free range of the machine by a lock on its byte in `file`. The lock belongs to the open file
    /// (F_OFD_SETLK, fcntl(2)), so the kernel gives it back whatever becomes of the process.
    pub fn claim(file: &Path) -> Result<Self, IdError> {
        let open = |source| IdError::Open { path: file.to_owned(), source };
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).map_err(open)?;
        }
        let lock =
            File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(file).map_err(open)?;
        // A control group's file is everybody's to read, which is enough for a lock of one's own.
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).map_err(open)?;
        let space = Space::here()?;
        let first = draw().map_err(open)? % space.ranges;
        for range in (first..space.ranges).chain(0..first) {
            if kernel::try_lock(&lock, range.into())
                .map_err(|source| IdError::Lock { path: file.to_owned(), source })?
            {
                return Ok(Self { base: space.first + range * space.size, size: space.size, _lock: lock });
            }
        }
        Err(IdError::Exhausted(space.ranges))
    }

    /// What a container's root is outside.
    pub fn base(&self) -> u32 {
        self.base
    }

    /// What a container's id is outside; none when the range has no place for it.
    pub fn outside(&self, id: u32) -> Option<u32> {
        match id {
            id if id < self.size - 1 || self.size == FULL => Some(self.base + id),
            id if id == User::FABER.uid => Some(self.base + self.size - 1),
            _ => None,
        }
    }

    /// The lines for uid_map and gid_map (user_namespaces(7)): a small range has its last id for Faber's own user.
    pub fn map(&self) -> String {
        let Self { base, size, .. } = *self;
        match size {
            FULL => format!("0 {base} {FULL}"),
            _ => format!("0 {base} {}\n{} {} 1", size - 1, User::FABER.uid, base + size - 1),
        }
    }
}

impl Space {
    /// The machine's; or what there is in the user namespace that this process is in.
    fn here() -> Result<Self, IdError> {
        let read = |name| fs::read_to_string(format!("/proc/self/{name}")).map_err(|error| IdError::Map(name, error));
        Self::of(&read("uid_map")?, &read("gid_map")?)
    }

    fn of(uid_map: &str, gid_map: &str) -> Result<Self, IdError> {
        let (uids, gids) = (largest(uid_map), largest(gid_map));
        let first = uids.0.max(gids.0);
        let end = uids.1.min(gids.1);
        if end > MACHINE.first + MACHINE.ranges * MACHINE.size {
            return Ok(MACHINE);
        }
        let count = end.saturating_sub(first);
        let size = FULL.min(count / FEW);
        if count < LEAST { Err(IdError::TooFew(count)) } else { Ok(Self { first, ranges: count / size, size }) }
    }
}

/// First id and end of the largest range of a map, root left out.
fn largest(map: &str) -> (u32, u32) {
    let ranges = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u32>().ok());
        let (first, _, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some((first.max(1), first.saturating_add(count)))
    });
    ranges.max_by_key(|(first, end)| end.saturating_sub(*first)).unwrap_or((1, 1))
}

/// A number of the kernel's randomness (random(4)).
fn draw() -> io::Result<u32> {
    let mut bytes = [0; 4];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_claims_never_share_a_range_and_a_dropped_one_is_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("uid-ranges");
        let mut claims: Vec<UidRange> = (0..100).map(|_| UidRange::claim(&file).unwrap()).collect();
        let mut bases: Vec<u32> = claims.iter().map(UidRange::base).collect();
        bases.sort_unstable();
        bases.dedup();
        assert_eq!(bases.len(), 100);
        let end = MACHINE.first + (MACHINE.ranges - 1) * FULL;
        assert!(
            bases.iter().all(|base| base.is_multiple_of(FULL) && (MACHINE.first..=end).contains(base)),
            "{bases:?}"
        );
        // All others are somebody's: what was given back is found, wherever the search begins.
        let others = File::options().read(true).write(true).open(&file).unwrap();
        for range in 0..MACHINE.ranges {
            kernel::try_lock(&others, range.into()).unwrap();
        }
        assert!(matches!(UidRange::claim(&file), Err(IdError::Exhausted(_))));
        let freed = claims.pop().unwrap().base();
        assert_eq!(UidRange::claim(&file).unwrap().base(), freed);
    }

    #[test]
    fn a_namespace_of_few_ids_is_divided() {
        let whole = "         0          0 4294967295\n";
        assert_eq!(Space::of(whole, whole).unwrap(), MACHINE);
        let few = "0 1000 1\n1 100000 65536\n";
        assert_eq!(Space::of(few, few).unwrap(), Space { first: 1, ranges: 16, size: 4096 });
        assert!(matches!(Space::of(few, "0 1000 1\n1 100000 100\n"), Err(IdError::TooFew(100))));
        let many = "0 1000 1\n1 100000 6553600\n";
        assert_eq!(Space::of(many, many).unwrap(), Space { first: 1, ranges: 100, size: FULL });
    }

    #[test]
    fn a_small_range_has_a_place_for_fabers_own_user() {
        let range = UidRange { base: 1, size: 4096, _lock: tempfile::tempfile().unwrap() };
        assert_eq!(range.map(), "0 1 4095\n65000 4096 1");
        assert_eq!(
            [0, 1000, 4094, 4095, 65_000].map(|id| range.outside(id)),
            [Some(1), Some(1001), Some(4095), None, Some(4096)]
        );
    }
}
