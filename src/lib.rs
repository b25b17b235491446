//! Faber runs untrusted programs for other programs: one fresh OCI container for every task.
pub mod image;
pub mod sandbox;
pub mod scheduler;
pub mod task;
