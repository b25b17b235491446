//! What a client may ask, and what came of it. Values only: no I/O, no clock, no tokio, no nix.
//!
//! Invariant: a [`Task`] that exists can be run; everything that could refuse it has already looked at it
//! ([`Task::parse`] is the only way in).

mod files;
mod image;
mod json;
mod limits;
mod outcome;
mod request;
mod result;

pub use files::{PathRefusal, WorkspacePath};
pub use image::{Digest, ImageId, ImageName, Offer};
pub use json::Object;
pub use limits::{Bounds, Cpus, Groups, LimitRefusal, Limits, MINIMUM, Resources};
pub use outcome::{Hits, Limit, Outcome, Report, Usage};
pub use request::{Refusal, ResourceLimits, Task, TaskRequest};
pub use result::{LimitsExceeded, ResourceUsage, Status, TaskResult};
