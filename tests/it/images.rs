//! Images: built for real from Debian's packages, kept, used, replaced and removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{FABER, Server, eventually, running};

const LUA: &str = r#"
name = "lua"
description = "Lua"
packages = ["lua5.4"]
limits = { processes = 7 }
[language]
file = "main.lua"
run = ["lua5.4", "main.lua"]
[[test]]
name = "hello"
code = "print('hello')"
stdout = "hello\n"
[[test]]
name = "fails"
code = "error('no')"
status = "Failure"
stderr_contains = "no"
"#;

/// A store of a test's own, with definitions beside it.
struct Images {
    dir: TempDir,
}

impl Images {
    fn new() -> Self {
        Self { dir: tempfile::tempdir_in("/var/tmp").unwrap() }
    }

    /// With the image `lua`, which takes some seconds to build. Each test builds its own, and removes it: what is shared
    /// between tests nobody would remove.
    fn with_lua() -> Self {
        let images = Self::new();
        images.define("lua", LUA);
        let output = images.faber(&["build", "lua"]);
        assert!(output.status.success(), "{output:?}");
        images
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn data_dir(&self) -> PathBuf {
        self.path().join("data")
    }

    fn define(&self, name: &str, text: &str) {
        let dir = self.path().join("images").join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("image.toml"), text).unwrap();
    }

    fn faber(&self, args: &[&str]) -> Output {
        let mut command = Command::new(FABER);
        command.current_dir(self.path()).env("FABER_DATA_DIR", self.data_dir());
        command.arg("image").args(args).output().unwrap()
    }

    fn list(&self) -> Value {
        serde_json::from_slice(&self.faber(&["list", "--json"]).stdout).unwrap()
    }

    fn server(&self) -> Server {
        fs::set_permissions(self.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let data_dir = self.data_dir();
        let env = [("FABER_DATA_DIR", data_dir.to_str().unwrap()), ("FABER_RATE_LIMIT__ENABLED", "false")];
        Server::start(&["--open-mode"], &env)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn lua(program: &str) -> Value {
    json!({ "command": "lua5.4", "args": ["-e", program], "image": "lua" })
}

#[test]
fn an_image_is_built_proven_used_and_removed() {
    let images = Images::with_lua();
    let unchanged = images.faber(&["build", "lua"]);
    assert!(text(&unchanged.stdout).starts_with("lua: unchanged"), "{unchanged:?}");
    let tested: Value = serde_json::from_slice(&images.faber(&["test", "lua", "--json"]).stdout).unwrap();
    assert!(tested.as_array().unwrap().iter().all(|line| line["ok"] == true), "{tested:#}");

    // The same files under another name, with another environment, are another image.
    images.define("twin", &LUA.replace("\"lua\"\n", "\"twin\"\n").replace("limits =", "env = { A = \"b\" }\nlimits ="));
    assert!(images.faber(&["build", "twin"]).status.success());
    let listed = images.list();
    assert_eq!([&listed[1]["name"], &listed[2]["name"]], [&json!("lua"), &json!("twin")], "{listed}");
    assert_ne!(listed[1]["digest"], listed[2]["digest"]);

    let server = images.server();
    let env = |image: &str| {
        server.run(json!({ "command": "sh", "args": ["-c", "echo $A."], "image": image }))["stdout"].clone()
    };
    assert_eq!([env("lua"), env("twin"), env("lua")], [json!(".\n"), json!("b.\n"), json!(".\n")]);
    let result = server.run(lua("print(6 * 7, os.getenv('LANG'))"));
    assert_eq!(result["stdout"], "42\tC.UTF-8\n", "{result}");
    let listed = server.get("/images").json();
    let image = &listed["images"][1];
    assert_eq!((&image["name"], &image["language"]["run"][0]), (&json!("lua"), &json!("lua5.4")), "{listed}");
    assert!(image["versions"]["lua5.4"].as_str().unwrap().starts_with("5.4."), "{image}");
    assert_eq!(image["resource_limits"]["max_processes"], 7);
    // The image's own default, and nothing of the machine.
    let inside = |script: &str| server.run(json!({ "command": "sh", "args": ["-c", script], "image": "lua" }));
    let forks = inside("for i in 1 2 3 4 5 6 7 8; do sleep 0.2 & done; wait");
    assert_eq!(forks["resource_limits_exceeded"]["process_limit_exceeded"], true, "{forks}");
    let seen =
        inside("ls /; id -un; head -n 1 /etc/os-release; touch /usr/x /etc/x /x 2>&1 | grep -c Read-only")["stdout"]
            .clone();
    let expected = "bin\ndev\netc\nlib\nlib64\nopt\nproc\nsbin\ntmp\nusr\nvar\nworkspace\nfaber\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n3\n";
    assert_eq!(seen, expected);
    assert_eq!(
        inside("stat -c %U:%a /usr/bin/lua5.4 /etc/passwd /workspace; find / -xdev -perm /6000 | wc -l")["stdout"],
        "root:755\nroot:644\nfaber:755\n0\n"
    );

    let wrong = server.run(json!({ "command": "true", "image": "luna" }));
    assert_eq!(wrong["error"], "unknown image \"luna\": did you mean lua?");

    let used = images.faber(&["rm", "lua"]);
    assert_eq!((used.status.code(), text(&used.stderr)), (Some(1), "faber: the image lua is in use\n".into()));
    drop(server);
    let removed = images.faber(&["rm", "lua", "twin"]);
    assert!(removed.status.success() && text(&removed.stdout).starts_with("freed "), "{removed:?}");
    assert_eq!(images.list().as_array().unwrap().len(), 1);
    assert_eq!(fs::read_dir(images.data_dir().join("trees")).unwrap().count(), 0);
}

#[test]
fn a_new_build_is_for_new_tasks_and_a_failed_one_changes_nothing() {
    let images = Images::with_lua();
    let server = images.server();
    let digest = || server.get("/images").json()["images"][1]["digest"].as_str().unwrap().to_owned();
    let before = digest();
    images.define("lua", &LUA.replace("[\"lua5.4\"]", "[\"lua5.4\", \"no-such-package\"]"));
    let failed = images.faber(&["build", "lua"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed.stdout).contains("no-such-package"), "{failed:?}");
    assert_eq!(digest(), before);
    assert_eq!(fs::read_dir(images.data_dir().join("staging")).unwrap().count(), 0);

    // One task of the old image goes on while the new one takes its place.
    let program = "print(io.open('/usr/local/new')); os.execute('sleep 58.3'); print(io.open('/usr/local/new'))";
    let old = std::thread::scope(|scope| {
        let old = scope.spawn(|| server.run(lua(program)));
        eventually("the old one runs", || !running(&["sleep", "58.3"]).is_empty());
        images.define("lua", &LUA.replace("limits =", "run = [\"touch /usr/local/new\"]\nlimits ="));
        let built = images.faber(&["build", "lua"]);
        assert!(built.status.success(), "{built:?}");
        assert_ne!(digest(), before);
        kill(Pid::from_raw(running(&["sleep", "58.3"])[0]), Signal::SIGTERM).unwrap();
        old.join().unwrap()
    });
    let text = old["stdout"].as_str().unwrap();
    assert_eq!(text.matches("No such file").count(), 2, "{old}");
    let new = server.run(lua("print(io.open('/usr/local/new'))"));
    assert!(new["stdout"].as_str().unwrap().starts_with("file ("), "{new}");
}

#[test]
fn a_store_that_the_front_cannot_read_is_told_at_the_start() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::create_dir_all(dir.path().join("data/images")).unwrap();
    let serve = || {
        let mut command = Command::new(FABER);
        command.args([
            "serve",
            "--open-mode",
            "--listen",
            "127.0.0.1:0",
            "--default-image",
            "none",
            "--data-dir",
            "data",
        ]);
        text(&command.current_dir(dir.path()).output().unwrap().stderr)
    };
    let mode = |mode| fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(0o700);
    let said = serve();
    assert!(said.ends_with(&format!("chmod o+rx {}\n", dir.path().display())), "{said}");
    mode(0o711);
    let said = serve();
    assert!(said.ends_with("execution.default_image: there is no image none; there is host\n"), "{said}");
}

#[test]
fn what_is_wrong_with_a_definition_is_said_with_its_line() {
    let images = Images::new();
    images.define("bad", "name = \"bad\"\ndescription = \"\"\ncolour = 1\n");
    let refused = images.faber(&["build", "bad"]);
    let said = text(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && said.contains("images/bad/image.toml") && said.contains("line 3"),
        "{said}"
    );
    let missing = text(&images.faber(&["build", "absent"]).stderr);
    assert_eq!(missing, "faber: there is no image definition images/absent/image.toml\n");
    assert!(text(&images.faber(&["test", "--all", "--definitions", "nowhere"]).stderr).contains("read nowhere"));
    assert_eq!(images.list().as_array().unwrap().len(), 1, "the host image is always there");
    let absent = text(&images.faber(&["rm", "absent"]).stderr);
    assert_eq!(absent, "faber: there is no image absent in the store\n");
}
