//! The real server, real containers. One binary; a module for each capability.

mod architecture;
mod blobs;
mod cgroup2;
mod clients;
mod commands;
mod content;
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
mod readme;
mod resilience;
mod rootless;
mod scripts;
mod steps;
mod support;
mod swagger;
mod usage;
