//! What a client may ask, and what came of it. Values only: no I/O, no clock, no tokio, no nix.
//!
//! Invariant: a [`Job`] that exists can be run; everything that could refuse it has already looked at it
//! ([`Job::parse`] is the only way in).

mod compare;
mod content;
mod files;
mod glob;
mod image;
mod job;
mod json;
mod limits;
mod live;
mod outcome;
mod request;
mod result;
mod step;
mod text;
mod units;
mod workspace;

pub use compare::{Compare, Difference, compare};
pub use content::{Content, ContentForms, FileForms, FileRequest, Part, Reference, Stream};
pub use files::{PathRefusal, WorkspacePath};
pub use glob::OutputGlob;
pub use image::{Digest, ImageId, ImageName, Offer};
pub use job::{
    Archive, CaseInput, CasePart, FILE_MODE, FILES, Job, Language, Node, Output, Outputs, Refusal, Task, check_parents,
};
pub use json::{Object, objects, optional_object, or_default, unique_keys};
pub use limits::{
    Bounds, ClientShare, Cpus, Groups, LimitRefusal, Limits, MINIMUM, Processors, Resources, TransferBounds,
    WORKSPACE_BYTES,
};
pub use live::{Figures, Window, Word};
pub use outcome::{Counters, Hits, Limit, Omitted, Outcome, Report, Taken, TakenFile, Timings, Usage, Written};
pub use request::{
    ArchiveRequest, CompareForms, EMPTY_COMMAND, Expect, MergeOutput, OnOutputLimit, ResourceLimits, TaskRequest,
};
pub use result::{
    Compilation, FileResult, Form, LimitsExceeded, ResourceUsage, Status, TaskResult, Verdict, signal_number,
};
pub use step::{RunWhen, StepName};
pub use text::{MARK, OutputEncoding, Text, to_base64};
pub use units::{Bytes, Time, part_of};
pub use workspace::{Entry, FileRefusal, Kind};

/// The form of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ArchiveFormat {
    #[serde(rename = "tar")]
    Tar,
    #[serde(rename = "tar.gz")]
    TarGz,
    #[serde(rename = "tar.zst")]
    TarZst,
    #[serde(rename = "zip")]
    Zip,
}

impl std::fmt::Display for ArchiveFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tar => "tar",
            Self::TarGz => "tar.gz",
            Self::TarZst => "tar.zst",
            Self::Zip => "zip",
        })
    }
}

/// As much of a client's own words as an error repeats.
fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}
