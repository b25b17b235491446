//! The README's first command, as a newcomer meets it; only the build is left out, since these tests are built already.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::FABER;

fn script(name: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("scripts").join(name));
    command.current_dir(root).stdin(Stdio::null());
    command
}

#[test]
fn run_serves_and_prints_a_request_that_can_be_pasted() {
    let mut run = script("run")
        .args(["--binary", FABER, "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(run.stdout.take().unwrap()).lines().map_while(Result::ok);
    let request = lines.map(|line| line.trim().to_owned()).find(|line| line.starts_with("curl "));
    let request = request.expect("a curl line");
    let answer = Command::new("bash").args(["-c", &request]).output().unwrap();
    let body: Value = serde_json::from_slice(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    assert_eq!(body["results"][0]["stdout"], "Hello, Faber!\n");
    kill(Pid::from_raw(run.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(0));
}

#[test]
fn what_cannot_be_done_is_said_in_a_sentence() {
    let said = |args: &[&str]| {
        let output = script("run").args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(said(&["--binary", "/nowhere"]).ends_with("run: --binary /nowhere: there is no such program\n"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let text = said(&["--binary", FABER, "--listen", &address]);
    assert!(text.contains(&format!("cannot listen on {address}; --listen takes another address")), "{text}");
}

/// Wherever cargo puts it: what it says of that is what counts.
#[test]
fn the_built_binary_is_found_where_cargo_puts_it() {
    let dir = tempfile::tempdir().unwrap();
    let cargo = r#"#!/bin/sh
echo "$*" >&2
echo '{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"faber"},"executable":null,"fresh":true}'
echo '{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"faber"},"executable":"/else where/release/faber","fresh":true}'
echo '{"reason":"build-finished","success":true}'
[ -z "$FAILS" ]
"#;
    std::fs::write(dir.path().join("cargo"), cargo).unwrap();
    std::fs::set_permissions(dir.path().join("cargo"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let build = |fails: &str| {
        let mut bash = Command::new("bash");
        let sourced = "set -e; . scripts/lib.sh; binary=$(build_faber --release); echo \"$binary\"";
        bash.args(["-c", sourced]).current_dir(env!("CARGO_MANIFEST_DIR")).env("PATH", &path).env("FAILS", fails);
        bash.output().unwrap()
    };
    let built = build("");
    assert_eq!(String::from_utf8(built.stdout).unwrap(), "/else where/release/faber\n");
    let said = String::from_utf8(built.stderr).unwrap();
    assert!(said.contains("build --locked --bin faber") && said.contains("--release"), "{said}");
    assert_eq!(build("yes").status.code(), Some(1), "a build that fails is not passed over");
}

#[test]
fn every_script_has_help() {
    for name in [
        "run",
        "test",
        "check",
        "soak",
        "fuzz",
        "bench",
        "bench-store",
        "images",
        "vm",
        "arm64",
        "container",
        "package",
    ] {
        let output = script(name).arg("--help").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.starts_with(&format!("Usage: scripts/{name}")), "{text}");
    }
}
