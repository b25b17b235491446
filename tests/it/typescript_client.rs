//! clients/typescript: built, packed, installed and used as by anybody.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{FABER, Server, npm};

fn client() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/typescript")
}

#[track_caller]
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    output
}

#[test]
fn it_is_built_packed_installed_and_used() {
    let tools = npm::modules("faber-client", &["typescript@5.9.3", "openapi-typescript@7.13.0"]).join(".bin");
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("client");
    run(Command::new("cp").arg("-r").arg(client()).arg(&copy));
    // Its types are those of the document.
    let types = dir.path().join("types.ts");
    run(Command::new("bash").arg(copy.join("generate")).arg(FABER).arg(tools.join("openapi-typescript")).arg(&types));
    let [made, kept] = [types, copy.join("src/types.ts")].map(|path| fs::read_to_string(path).unwrap());
    assert!(made == kept, "clients/typescript/generate makes other types than are there");
    run(Command::new(tools.join("tsc")).arg("-p").arg(&copy));
    let pack = ["pack", "--silent", "--ignore-scripts", "--pack-destination"];
    run(Command::new("npm").args(pack).arg(dir.path()).current_dir(&copy));
    let user = dir.path().join("user");
    fs::create_dir(&user).unwrap();
    fs::write(user.join("package.json"), "{}").unwrap();
    let install = ["install", "--silent", "--offline", "--no-audit", "--no-fund", "../faber-client-0.1.0.tgz"];
    run(Command::new("npm").args(install).current_dir(&user));
    fs::copy(copy.join("tests/test.mjs"), user.join("test.mjs")).unwrap();
    let server = Server::start_open();
    let output = run(Command::new("node").arg("test.mjs").current_dir(&user).env("FABER_URL", server.url()));
    assert!(output.stdout.ends_with(b"\nfaber-client 6\n"), "{}", String::from_utf8_lossy(&output.stdout));
    // README's first three lines, with another server's address, and what that has.
    let readme = fs::read_to_string(copy.join("README.md")).unwrap();
    let example = readme.split("```typescript\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(example.trim().lines().count(), 3);
    let example = example.replace("http://127.0.0.1:8080", &server.url());
    let example = example.replace("faber.run(\"python\", \"print(6 * 7)\")", "faber.command(\"echo\", [\"42\"])");
    fs::write(user.join("example.mjs"), example).unwrap();
    let output = run(Command::new("node").arg("example.mjs").current_dir(&user));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "42\n\n");
}
