//! Containers: what a spec and a bundle become, and how a task runs in one. The only module that names libcontainer.
//!
//! ```text
//!            Slot::claim                 Container::create            Created::run
//!  (uid range, namespaces, root) ──────────────> Created ───────────────────────────> Report
//!                          (init and the task's process wait)  (hand over, watch, measure, remove)
//! ```
//! Everything here is for a single-threaded process: libcontainer forks without exec and changes the working directory.

mod caller;
pub mod cgroup;
pub mod confine;
mod container;
mod descriptors;
mod etc;
mod ids;
mod init;
mod kernel;
mod memory;
mod namespaces;
mod outcome;
mod pace;
mod processors;
mod rootfs;
pub mod rootless;
mod seccomp;
mod shared;
mod slot;
mod spec;
pub mod starter;
mod streams;
mod terminal;
mod view;
mod watch;
mod workshop;
mod workspace;

pub use caller::Caller;
pub use container::{ContainerError, Created, Host, Ran, Remains, Session};
pub use ids::{IdError, UidRange};
#[cfg(any(test, feature = "fuzzing"))]
pub use init::wire as init_wire;
pub use kernel::give_back_large_blocks;
pub use namespaces::{probe as probe_namespaces, probe_procfs};
pub use shared::{Shared, share_directory};
pub use slot::{Slot, SlotError, SlotPlace};
pub use streams::{Inlet, Links, Outlet};
pub use workshop::{Workshop, WorkshopError};
