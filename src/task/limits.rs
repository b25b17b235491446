//! What a task may use. Numbers here are in the API page's units: bytes and nanoseconds.

use serde::{Deserialize, Serialize};

use super::ResourceLimits;

/// The limits one task runs under; each is enforced as DESIGN's table says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory of the whole container, page cache and tmpfs files included.
    pub memory: u64,
    /// Nanoseconds of CPU time of the whole container.
    pub cpu_time: u64,
    /// Nanoseconds from the start of the command.
    pub wall_time: u64,
    /// Processes and threads alive at once.
    pub processes: u64,
    /// Open file descriptors of one process (`RLIMIT_NOFILE`, getrlimit(2)).
    pub file_descriptors: u64,
    /// Bytes of stdout and stderr together.
    pub output: u64,
}

/// How many processors' time a container may use at once, in thousandths of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpus(pub std::num::NonZeroU32);

/// Whether tasks are held to their limits by control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Groups {
    Used,
    /// As an ordinary user may ask who has none: then Faber watches.
    Unused,
}

/// How all tasks of an instance are held to what they may use.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Resources {
    pub groups: Groups,
    /// What each may use of the processors at once.
    pub cpus: Option<Cpus>,
}

impl Resources {
    /// By control groups, with what there is of the processors.
    pub const ALL: Self = Self { groups: Groups::Used, cpus: None };
}

/// What the server allows: defaults for what a task leaves out, and maxima for what it asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    pub default: Limits,
    pub max: Limits,
}

/// A limit that cannot be granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitRefusal {
    #[error("{field} {asked} is above this server's maximum of {max}")]
    AboveMaximum { field: &'static str, asked: u64, max: u64 },
    #[error("{field} {asked} is below {min}, the least a task can start with")]
    BelowMinimum { field: &'static str, asked: u64, min: u64 },
}

/// The least a container can start with: below this the set-up itself, not the task, would meet the limit.
pub const MINIMUM: Limits =
    Limits { memory: 4 << 20, cpu_time: 1_000_000, wall_time: 1_000_000, processes: 1, file_descriptors: 8, output: 0 };

impl Bounds {
    /// The limits for a task that asked for `asked`: what it left out comes from its image, or else from the defaults, and
    /// is never above the maxima.
    pub fn grant(&self, asked: &ResourceLimits, image: &ResourceLimits) -> Result<Limits, LimitRefusal> {
        let Self { default, max } = self;
        let pick = |field, of: fn(&ResourceLimits) -> Option<u64>, value: fn(&Limits) -> u64| {
            pick(field, of(asked), of(image).unwrap_or(value(default)), value(max), value(&MINIMUM))
        };
        Ok(Limits {
            memory: pick("memory_limit", |l| l.memory_limit, |l| l.memory)?,
            cpu_time: pick("cpu_time_limit", |l| l.cpu_time_limit, |l| l.cpu_time)?,
            wall_time: pick("wall_time_limit", |l| l.wall_time_limit, |l| l.wall_time)?,
            processes: pick("max_processes", |l| l.max_processes, |l| l.processes)?,
            file_descriptors: pick("max_file_descriptors", |l| l.max_file_descriptors, |l| l.file_descriptors)?,
            output: pick("max_output_size", |l| l.max_output_size, |l| l.output)?,
        })
    }
}

impl Limits {
    /// Each limit by its name in the configuration.
    fn by_name(&self) -> [(&'static str, u64); 6] {
        [
            ("memory", self.memory),
            ("cpu_time", self.cpu_time),
            ("wall_time", self.wall_time),
            ("processes", self.processes),
            ("file_descriptors", self.file_descriptors),
            ("output", self.output),
        ]
    }

    /// The first limit no task could start under, and the least one.
    pub fn below_minimum(&self) -> Option<(&'static str, u64)> {
        let pairs = self.by_name().into_iter().zip(MINIMUM.by_name());
        pairs.into_iter().find(|((_, value), (_, least))| value < least).map(|((name, _), (_, least))| (name, least))
    }

    /// Whether no limit is above `max`'s.
    pub fn within(&self, max: &Self) -> bool {
        self.by_name().into_iter().zip(max.by_name()).all(|((_, value), (_, max))| value <= max)
    }
}

fn pick(field: &'static str, asked: Option<u64>, default: u64, max: u64, min: u64) -> Result<u64, LimitRefusal> {
    match asked {
        None => Ok(default.min(max)),
        Some(asked) if asked > max => Err(LimitRefusal::AboveMaximum { field, asked, max }),
        Some(asked) if asked < min => Err(LimitRefusal::BelowMinimum { field, asked, min }),
        Some(asked) => Ok(asked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(memory: u64) -> Limits {
        Limits { memory, cpu_time: 1 << 30, wall_time: 1 << 30, processes: 10, file_descriptors: 100, output: 1 << 20 }
    }

    fn ask(memory: Option<u64>) -> ResourceLimits {
        ResourceLimits { memory_limit: memory, ..ResourceLimits::default() }
    }

    #[test]
    fn a_default_above_the_maximum_is_cut_to_it() {
        let bounds = Bounds { default: limits(64 << 20), max: limits(32 << 20) };
        assert_eq!(bounds.grant(&ask(None), &ask(None)).unwrap().memory, 32 << 20);
        assert_eq!(bounds.grant(&ask(None), &ask(Some(48 << 20))).unwrap().memory, 32 << 20, "an image's too");
        assert_eq!(bounds.grant(&ask(None), &ask(Some(16 << 20))).unwrap().memory, 16 << 20);
    }

    proptest! {
        #[test]
        fn a_grant_is_what_was_asked_or_the_default_and_never_above_the_maximum(
            asked in proptest::option::of(any::<u64>()), default in 4u64 << 20.., max in 4u64 << 20..,
        ) {
            let bounds = Bounds { default: limits(default), max: limits(max) };
            match bounds.grant(&ask(asked), &ask(None)) {
                Ok(granted) => {
                    prop_assert!(granted.memory <= max);
                    prop_assert_eq!(granted.memory, asked.unwrap_or(default.min(max)));
                }
                Err(LimitRefusal::AboveMaximum { .. }) => prop_assert!(asked.unwrap() > max),
                Err(LimitRefusal::BelowMinimum { .. }) => prop_assert!(asked.unwrap() < MINIMUM.memory),
            }
        }
    }
}
