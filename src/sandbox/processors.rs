//! Which processors a task runs on that may use a part of them only: so many that it sees how many threads are of use, and those
//! that the fewest others were given. A lock for each (F_OFD_SETLK, fcntl(2)) in a file that all runners share: the kernel gives
//! it back whatever becomes of the process.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::thread::{CpuSet, sched_getaffinity};

use super::kernel;
use crate::task::Cpus;

/// How many tasks a processor is told apart by; more share the last place.
const PLACES: usize = 64;

/// The processors of one task, until it is dropped. Empty: all there are.
pub struct Chosen {
    pub processors: Vec<usize>,
    /// The locks are the open file's.
    _locks: Option<File>,
}

impl Chosen {
    pub fn all() -> Self {
        Self { processors: Vec::new(), _locks: None }
    }

    /// As many as `cpus` takes, of those that this process may use.
    ///
    /// # Errors
    /// When `file`, which is made, cannot be opened.
    pub fn take(file: &Path, cpus: Cpus) -> io::Result<Self> {
        let here = here();
        let wanted = cpus.0.get().div_ceil(1000) as usize;
        if wanted >= here.len() {
            return Ok(Self::all());
        }
        let locks = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(file)?;
        let mut processors = Vec::with_capacity(wanted);
        for place in 0..PLACES {
            for &processor in &here {
                let is_ours = !processors.contains(&processor)
                    && (place + 1 == PLACES || kernel::try_lock(&locks, (processor * PLACES + place) as u64)?);
                if is_ours {
                    processors.push(processor);
                }
                if processors.len() == wanted {
                    processors.sort_unstable();
                    return Ok(Self { processors, _locks: Some(locks) });
                }
            }
        }
        Ok(Self::all())
    }
}

/// The processors that this process may use, in order.
pub fn here() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    (0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn each_task_is_given_those_that_the_fewest_have() {
        let count = here().len();
        if count < 2 {
            eprintln!("NOT CHECKED: there is one processor here");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let take = || Chosen::take(&dir.path().join("processors"), Cpus(NonZeroU32::new(500).unwrap())).unwrap();
        let mut all: Vec<Chosen> = (0..count).map(|_| take()).collect();
        let mut given: Vec<usize> = all.iter().flat_map(|chosen| chosen.processors.clone()).collect();
        given.sort_unstable();
        assert_eq!(given, here(), "one each");
        let freed = all.remove(1).processors;
        assert_eq!(take().processors, freed);
        let everything = Cpus(NonZeroU32::new(count as u32 * 1000).unwrap());
        assert!(Chosen::take(&dir.path().join("processors"), everything).unwrap().processors.is_empty());
    }
}
