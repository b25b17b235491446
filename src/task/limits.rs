//! What a task may use. Numbers here are in the API page's units: bytes and nanoseconds.

use serde::{Deserialize, Serialize};

use super::ResourceLimits;
use super::units::{Bytes, Time};

/// The limits one task runs under; each is enforced as DESIGN's table says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory of the whole container, files in memory included, copies of an image's files not.
    pub memory: u64,
    /// Nanoseconds of CPU time of the whole container.
    pub cpu_time: u64,
    /// Nanoseconds from the start of the command.
    pub wall_time: u64,
    /// Processes and threads alive at once.
    pub processes: u64,
    /// Open file descriptors of one process (`RLIMIT_NOFILE`, getrlimit(2)).
    pub file_descriptors: u64,
    /// Whether it is to be known exactly that one was refused, which costs a task time: who asks for that limit wants it.
    pub count_descriptors: bool,
    /// Bytes of stdout and stderr together.
    pub output: u64,
    /// Bytes of the main thread's stack (`RLIMIT_STACK`); without it as much as of memory.
    pub stack: Option<u64>,
    /// Bytes of the files in the workspace.
    pub workspace: u64,
    /// Bytes of one file (`RLIMIT_FSIZE`).
    pub file_size: Option<u64>,
    /// The processors' time it may use at once.
    pub cpus: Option<Cpus>,
}

/// How many processors' time a container may use at once, in thousandths of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpus(pub std::num::NonZeroU32);

/// What all running tasks of one client may have together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientShare {
    /// Tasks.
    pub places: usize,
    /// Bytes: the sum of their memory limits.
    pub memory: u64,
    /// How many processors' time they may use at once; None for what there is.
    pub cpus: Option<Cpus>,
}

impl ClientShare {
    /// Everything.
    pub const ALL: Self = Self { places: usize::MAX, memory: u64::MAX, cpus: None };
}

/// A number of processors as a client writes it, such as 0.5: thousandths, which may be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "f64", into = "f64")]
pub struct Processors(u32);

impl From<f64> for Processors {
    fn from(number: f64) -> Self {
        // A cast saturates, and makes 0 of what is no number.
        Self((number * 1000.0).round() as u32)
    }
}

impl From<Processors> for f64 {
    fn from(Processors(thousandths): Processors) -> f64 {
        f64::from(thousandths) / 1000.0
    }
}

impl From<Cpus> for Processors {
    fn from(Cpus(thousandths): Cpus) -> Self {
        Self(thousandths.get())
    }
}

impl std::fmt::Display for Processors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f64::from(*self).fmt(f)
    }
}

/// The least share of a processor that a task can start with.
const LEAST_PROCESSORS: Processors = Processors(10);
/// As the configuration has it.
const MOST_PROCESSORS: Processors = Processors(1_024_000);

/// What a client may ask for of a task's outputs, and of its archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferBounds {
    /// Files in all.
    pub count: u32,
    /// Bytes of each.
    pub each: u64,
    /// Bytes in all.
    pub total: u64,
}

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
    /// Interpreters that wait for a program in each slot, at most.
    pub prepared: usize,
}

impl Resources {
    /// By control groups, with what there is of the processors.
    pub const ALL: Self = Self { groups: Groups::Used, cpus: None, prepared: 0 };
}

/// What the server allows: defaults for what a task leaves out, and maxima for what it asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    pub default: Limits,
    pub max: Limits,
    /// What one task's outputs may be.
    pub outputs: TransferBounds,
}

/// A limit that cannot be granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitRefusal {
    #[error("{field} {} is above this server's maximum of {}", in_unit(field, *asked), in_unit(field, *max))]
    AboveMaximum { field: &'static str, asked: u64, max: u64 },
    #[error("{field} {} is below {}, the least a task can start with", in_unit(field, *asked), in_unit(field, *min))]
    BelowMinimum { field: &'static str, asked: u64, min: u64 },
    #[error("cpus {asked} is not between {LEAST_PROCESSORS} and {MOST_PROCESSORS}")]
    Processors { asked: Processors },
}

/// A limit's value as a message tells it: the number that a request has, and what it is for people.
fn in_unit(field: &str, value: u64) -> String {
    let text = match field {
        "cpu_time_limit" | "wall_time_limit" | "cpu_time" | "wall_time" => Time(value).to_string(),
        "max_processes" | "max_file_descriptors" | "processes" | "file_descriptors" => return value.to_string(),
        _ => Bytes(value).to_string(),
    };
    let number = value.to_string();
    match text.strip_prefix(&number) {
        // It has its unit, and what is no round number of a larger one has that behind.
        Some(unit) if value < 1024 || unit.contains('(') => text,
        _ => format!("{number} ({text})"),
    }
}

/// Bytes of the workspace that a container is made with; another size is given to it when its task is known.
pub const WORKSPACE_BYTES: u64 = 256 << 20;

/// The least a container can start with: below this the set-up itself, not the task, would meet the limit.
pub const MINIMUM: Limits = Limits {
    memory: 4 << 20,
    cpu_time: 1_000_000,
    wall_time: 1_000_000,
    processes: 1,
    file_descriptors: 8,
    count_descriptors: false,
    output: 0,
    stack: None,
    workspace: 64 << 10,
    file_size: None,
    cpus: None,
};

/// The least stack a program starts with: its arguments and what the loader needs.
const LEAST_STACK: u64 = 128 << 10;

impl Bounds {
    /// The limits for a task that asked for `asked`: what it left out comes from its image, or else from the defaults, and
    /// is never above the maxima.
    pub fn grant(&self, asked: &ResourceLimits, image: &ResourceLimits) -> Result<Limits, LimitRefusal> {
        let Self { default, max, .. } = self;
        let pick = |field, of: fn(&ResourceLimits) -> Option<u64>, value: fn(&Limits) -> u64| {
            pick(field, of(asked), of(image).unwrap_or(value(default)), value(max), value(&MINIMUM))
        };
        Ok(Limits {
            memory: pick("memory_limit", |l| l.memory_limit, |l| l.memory)?,
            cpu_time: pick("cpu_time_limit", |l| l.cpu_time_limit, |l| l.cpu_time)?,
            wall_time: pick("wall_time_limit", |l| l.wall_time_limit, |l| l.wall_time)?,
            processes: pick("max_processes", |l| l.max_processes, |l| l.processes)?,
            file_descriptors: pick("max_file_descriptors", |l| l.max_file_descriptors, |l| l.file_descriptors)?,
            count_descriptors: asked.max_file_descriptors.is_some(),
            output: pick("max_output_size", |l| l.max_output_size, |l| l.output)?,
            stack: match asked.stack_limit.or(image.stack_limit) {
                Some(asked) if asked < LEAST_STACK => {
                    return Err(LimitRefusal::BelowMinimum { field: "stack_limit", asked, min: LEAST_STACK });
                }
                stack => stack,
            },
            workspace: pick("workspace_limit", |l| l.workspace_limit, |l| l.workspace)?,
            file_size: asked.max_file_size.or(image.max_file_size),
            cpus: asked.cpus.or(image.cpus).map(processors).transpose()?,
        })
    }
}

fn processors(asked: Processors) -> Result<Cpus, LimitRefusal> {
    let granted = (LEAST_PROCESSORS..=MOST_PROCESSORS).contains(&asked).then(|| std::num::NonZeroU32::new(asked.0));
    granted.flatten().map(Cpus).ok_or(LimitRefusal::Processors { asked })
}

impl Limits {
    /// Each limit by its name in the configuration.
    fn by_name(&self) -> [(&'static str, u64); 7] {
        [
            ("memory", self.memory),
            ("cpu_time", self.cpu_time),
            ("wall_time", self.wall_time),
            ("processes", self.processes),
            ("file_descriptors", self.file_descriptors),
            ("output", self.output),
            ("workspace", self.workspace),
        ]
    }

    /// At most so many processors' time, and no less only if less was asked for.
    pub fn hold_to(&mut self, Cpus(most): Cpus) {
        self.cpus = Some(Cpus(self.cpus.map_or(most, |Cpus(asked)| asked.min(most))));
    }

    /// The first limit no task could start under, and the least one.
    pub fn below_minimum(&self) -> Option<(&'static str, String)> {
        let pairs = self.by_name().into_iter().zip(MINIMUM.by_name());
        pairs
            .into_iter()
            .find(|((_, value), (_, least))| value < least)
            .map(|((name, _), (_, least))| (name, in_unit(name, least)))
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
        Limits {
            memory,
            cpu_time: 1 << 30,
            wall_time: 1 << 30,
            processes: 10,
            file_descriptors: 100,
            count_descriptors: false,
            output: 1 << 20,
            workspace: 1 << 20,
            ..MINIMUM
        }
    }

    const OUTPUTS: TransferBounds = TransferBounds { count: 1, each: 1, total: 1 };

    fn ask(memory: Option<u64>) -> ResourceLimits {
        ResourceLimits { memory_limit: memory, ..ResourceLimits::default() }
    }

    #[test]
    fn a_refusal_has_the_requests_number_and_peoples() {
        let below = |field, asked, min| LimitRefusal::BelowMinimum { field, asked, min }.to_string();
        assert_eq!(
            below("memory_limit", 10, 4 << 20),
            "memory_limit 10 bytes is below 4194304 (4 MiB), the least a task can start with"
        );
        assert_eq!(
            below("wall_time_limit", 1000, 1_000_000),
            "wall_time_limit 1000 (1 µs) is below 1000000 (1 ms), the least a task can start with"
        );
        assert_eq!(below("max_processes", 0, 1), "max_processes 0 is below 1, the least a task can start with");
    }

    #[test]
    fn a_default_above_the_maximum_is_cut_to_it() {
        let bounds = Bounds { default: limits(64 << 20), max: limits(32 << 20), outputs: OUTPUTS };
        assert_eq!(bounds.grant(&ask(None), &ask(None)).unwrap().memory, 32 << 20);
        assert_eq!(bounds.grant(&ask(None), &ask(Some(48 << 20))).unwrap().memory, 32 << 20, "an image's too");
        assert_eq!(bounds.grant(&ask(None), &ask(Some(16 << 20))).unwrap().memory, 16 << 20);
    }

    #[test]
    fn a_share_of_the_processors_is_what_can_work() {
        let bounds = Bounds { default: limits(64 << 20), max: limits(64 << 20), outputs: OUTPUTS };
        let grant = |cpus: f64| {
            let asked = ResourceLimits { cpus: Some(cpus.into()), ..ResourceLimits::default() };
            bounds.grant(&asked, &ask(None)).map(|limits| limits.cpus.unwrap().0.get())
        };
        assert_eq!(grant(0.5), Ok(500));
        for nonsense in [0.0, -1.0, 0.001, 1e9, f64::NAN] {
            assert!(matches!(grant(nonsense), Err(LimitRefusal::Processors { .. })), "{nonsense}");
        }
    }

    proptest! {
        #[test]
        fn a_grant_is_what_was_asked_or_the_default_and_never_above_the_maximum(
            asked in proptest::option::of(any::<u64>()), default in 4u64 << 20.., max in 4u64 << 20..,
        ) {
            let bounds = Bounds { default: limits(default), max: limits(max), outputs: OUTPUTS };
            match bounds.grant(&ask(asked), &ask(None)) {
                Ok(granted) => {
                    prop_assert!(granted.memory <= max);
                    prop_assert_eq!(granted.memory, asked.unwrap_or(default.min(max)));
                }
                Err(LimitRefusal::AboveMaximum { .. }) => prop_assert!(asked.unwrap() > max),
                Err(LimitRefusal::BelowMinimum { .. }) => prop_assert!(asked.unwrap() < MINIMUM.memory),
                Err(LimitRefusal::Processors { .. }) => prop_assert!(false),
            }
        }
    }
}
