//! One reader of `faber::fuzzing`, the one that FABER_FUZZ names, under libFuzzer.

#![no_main]

use std::sync::LazyLock;

use faber::fuzzing::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("FABER_FUZZ").expect("FABER_FUZZ names a target");
    TARGETS.iter().find(|target| target.name == name).expect("FABER_FUZZ names a target that there is")
});

fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
