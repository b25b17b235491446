//! clients/python: built, installed and used as by anybody.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{FABER, Server, pypi};

fn client() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python")
}

#[track_caller]
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A wheel is made of a copy, as it would be of a checkout, and its tests run beside nothing but what it depends on.
#[test]
fn it_is_built_installed_and_used() {
    let python = pypi::python("faber-client", &["hatchling==1.27.0", "httpx==0.28.1"]);
    let dir = tempfile::tempdir().unwrap();
    run(Command::new("cp").arg("-r").arg(client()).arg(dir.path().join("client")));
    let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--force-reinstall", "--target"];
    let site = dir.path().join("site");
    run(Command::new(&python).args(pip).arg(&site).arg(dir.path().join("client")));
    assert!(site.join("faber_client/py.typed").exists());
    let server = Server::start_open();
    let mut command = Command::new(&python);
    command.arg(dir.path().join("client/tests/test_client.py")).env("PYTHONPATH", &site).env("FABER_URL", server.url());
    let output = run(&mut command);
    assert!(text(&output.stdout).ends_with("faber_client 7\n"), "{}", text(&output.stdout));
    // README's first three lines, with another server's address.
    let readme = fs::read_to_string(client().join("README.md")).unwrap();
    let example = readme.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(example.trim().lines().filter(|line| !line.is_empty()).count(), 3);
    let example = example.replace("http://127.0.0.1:8080", &server.url());
    let example = example.replace("faber.run(\"python\", \"print(6 * 7)\")", "faber.command(\"echo\", [\"42\"])");
    let output = run(Command::new(&python).args(["-c", &example]).env("PYTHONPATH", &site));
    assert_eq!(text(&output.stdout), "42\n\n");
}

#[test]
fn it_is_typed_linted_and_what_the_document_says() {
    let packages = ["datamodel-code-generator==0.89.0", "httpx==0.28.1", "mypy==2.4.1", "ruff==0.17.6"];
    let python = pypi::python("faber-client-lints", &packages);
    let dir = tempfile::tempdir().unwrap();
    let types = dir.path().join("types.py");
    run(Command::new("bash").arg(client().join("generate")).arg(FABER).arg(&python).arg(&types));
    let (made, kept) =
        [types, client().join("src/faber_client/types.py")].map(|path| fs::read_to_string(path).unwrap()).into();
    assert!(made == kept, "clients/python/generate makes other types than are there");
    for tool in [&["ruff", "check"][..], &["ruff", "format", "--check"], &["mypy", "--cache-dir", "/dev/null"]] {
        let mut command = Command::new(&python);
        run(command.arg("-m").args(tool).current_dir(client()).env("RUFF_NO_CACHE", "true"));
    }
}
