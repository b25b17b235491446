//! The interactive documentation, in a real browser.

use std::path::Path;
use std::process::Command;

use crate::support::Server;

/// What the page shows when the operation's own example is executed.
fn try_out(operation: &str) -> String {
    let server = Server::start_open();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let screenshot = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("swagger-ui-{operation}.png"));
    let output = Command::new("/usr/bin/python3")
        .arg(root.join("tests/browser/try_it_out.py"))
        .args([format!("{}/swagger-ui", server.url()), screenshot.display().to_string(), operation.to_owned()])
        .output()
        .unwrap();
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{error}");
    println!("screenshot: {}", screenshot.display());
    said.into_owned()
}

#[test]
fn the_example_can_be_tried_out_in_a_browser() {
    let said = try_out("execute");
    assert!(said.contains("\"status\": \"Success\"") && said.contains("Hello, Faber!"), "{said}");
}

#[test]
fn a_judgement_can_be_tried_out_in_a_browser() {
    let said = try_out("judge");
    assert!(said.contains("\"verdict\": \"Accepted\"") && said.contains("\"large\""), "{said}");
}
