//! The interactive documentation, in a real browser.

use std::path::Path;
use std::process::Command;

use crate::support::Server;

#[test]
fn the_example_can_be_tried_out_in_a_browser() {
    let server = Server::start_open();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let screenshot = root.join("target/swagger-ui.png");
    let output = Command::new("/usr/bin/python3")
        .arg(root.join("tests/browser/try_it_out.py"))
        .args([format!("{}/swagger-ui", server.url()), screenshot.display().to_string()])
        .output()
        .unwrap();
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{error}");
    assert!(said.contains("\"status\": \"Success\"") && said.contains("Hello, Faber!"), "{said}");
    println!("screenshot: {}", screenshot.display());
}
