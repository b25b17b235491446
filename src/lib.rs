//! Faber runs untrusted programs for other programs: one fresh OCI container for every task.

mod frame;
pub mod image;
pub mod keeper;
pub mod runner;
pub mod sandbox;
pub mod scheduler;
pub mod task;
