//! The real server, real containers. One binary; a module for each capability.

mod architecture;
mod cgroup2;
mod contract;
mod engines;
mod examples;
mod hostile;
mod images;
mod input;
mod isolation;
mod judge;
mod lifecycle;
mod limits;
mod oci;
mod rootless;
mod scripts;
mod support;
mod swagger;
mod usage;
