//! Attacks of the project's own, a table for each kind: each is a program that says what it got done, and how it was refused
//! what it did not. After each the server and a neighbour have to go on as if nothing had been, and nothing may be left at the
//! end.
//!
//! `TEST_SYSCALLS_SECONDS=300` has the random caller of system calls go on for minutes; `TEST_SEED` repeats one.

mod calls;
mod clients;
mod neighbour;
mod numbers;
mod table;
mod target;

use table::run;

#[test]
fn bombs_meet_their_limits() {
    run("resources", include_str!("resources.toml"));
}

#[test]
fn memory_meets_its_limit_whatever_it_is_taken_for() {
    run("memory", include_str!("memory.toml"));
}

#[test]
fn what_a_compiler_is_given_meets_its_limits() {
    run("compilers", include_str!("compilers.toml"));
}

#[test]
fn published_escapes_lead_nowhere() {
    run("escapes", include_str!("escapes.toml"));
}

#[test]
fn system_calls_of_the_privileged_are_refused() {
    run("kernel", include_str!("kernel.toml"));
}

#[test]
fn nothing_of_the_machine_or_of_others_leaks() {
    run("leaks", include_str!("leaks.toml"));
}

#[test]
fn neighbours_are_out_of_reach() {
    run("neighbours", include_str!("neighbours.toml"));
}

#[test]
fn files_and_outputs_are_what_they_are_called() {
    run("files", include_str!("files.toml"));
}

#[test]
fn the_classes_of_stress_ng_are_contained() {
    run("stress", include_str!("stress.toml"));
}
