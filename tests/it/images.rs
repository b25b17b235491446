//! Images: built for real from Debian's packages, kept, used, replaced and removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{FABER, Server, busybox, eventually, running};

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
    let expected = "bin\ndev\netc\nlib\nlib64\nopt\nproc\nsbin\nsys\ntmp\nusr\nvar\nworkspace\nfaber\nPRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\n3\n";
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
    assert_eq!(fs::read_dir(images.data_dir().join("store/trees")).unwrap().count(), 0);
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
    assert_eq!(fs::read_dir(images.data_dir().join("store/staging")).unwrap().count(), 0);

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

/// What a lock says of a package.
fn locked_version(lock: &str, package: &str) -> String {
    let rest = lock.split(&format!("name = \"{package}\"\nversion = \"")).nth(1).unwrap();
    rest.split('"').next().unwrap().to_owned()
}

#[test]
fn a_lock_pins_every_package_and_gives_the_same_files_again() {
    let images = Images::with_lua();
    let path = images.path().join("images/lua/image.lock");
    let lock = fs::read_to_string(&path).unwrap();
    assert!(!lock.contains("://"), "no host stands in a lock");
    let digest = |images: &Images| images.list()[1]["digest"].clone();
    let before = digest(&images);

    // Another store, another day: the definition and its lock are all that is needed.
    let other = Images::new();
    other.define("lua", LUA);
    fs::write(other.path().join("images/lua/image.lock"), &lock).unwrap();
    let built = other.faber(&["build", "lua"]);
    assert!(built.status.success(), "{built:?}");
    assert_eq!(digest(&other), before);
    assert_eq!(fs::read_to_string(other.path().join("images/lua/image.lock")).unwrap(), lock);

    let bill: Value = serde_json::from_slice(&images.faber(&["inspect", "lua", "--sbom"]).stdout).unwrap();
    let components = bill["components"].as_array().unwrap();
    let version = locked_version(&lock, "lua5.4");
    let lua = components.iter().find(|component| component["name"] == "lua5.4").unwrap();
    assert_eq!((&bill["specVersion"], &lua["version"]), (&json!("1.5"), &json!(version)));
    assert_eq!(lua["hashes"][0]["content"].as_str().unwrap().len(), 64);
    assert!(components.len() > 50, "{}", components.len());

    // A version that is gone, and one that has become something else.
    let stale = lock.replacen(&format!("version = \"{version}\""), "version = \"5.4.0-0\"", 1);
    fs::write(&path, &stale).unwrap();
    let gone = text(&images.faber(&["build", "lua"]).stdout);
    assert!(gone.contains("image.lock has lua5.4 5.4.0-0, which the archive has no longer"), "{gone}");
    let digits = lock.split("sha256 = \"").nth(1).unwrap().split('"').next().unwrap();
    fs::write(&path, lock.replacen(digits, &"0".repeat(64), 1)).unwrap();
    let other_content = text(&images.faber(&["build", "lua"]).stdout);
    assert!(other_content.contains(&format!("with digest {}", "0".repeat(64))), "{other_content}");
    assert_eq!(digest(&images), before, "what failed changed nothing");
    assert_eq!(images.list().as_array().unwrap().len(), 2);

    fs::write(&path, stale).unwrap();
    let renewed = images.faber(&["build", "--update", "lua"]);
    assert!(renewed.status.success(), "{renewed:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), lock);
    assert_eq!(digest(&images), before);
}

#[test]
fn a_family_shares_a_definition_and_steps_run_as_root_of_nothing() {
    let images = Images::new();
    images.define("lua", LUA);
    let tool = "#!/bin/sh\necho tool $(cat /usr/local/share/data/one)\n";
    images.define(
        "kid",
        r#"
name = "kid"
description = "Lua with more"
extends = "lua"
packages = ["jq"]
env = { KID = "yes" }
copy = [{ from = "tool.sh", to = "/usr/local/bin/tool" }, { from = "data", to = "/usr/local/share/data" }]
run = [
  "chown 7:8 /usr/local/bin/tool; id -u > /usr/local/who; id -un > /workspace/x 2>&1 || true",
  """
  grep CapEff /proc/self/status >> /usr/local/who; touch /etc/made; ln -s / /usr/local/out
  cat /proc/1/environ > /dev/null && mount -t tmpfs x /mnt 2>/dev/null && echo mounted >> /usr/local/who
  echo $KID >> /usr/local/who
  """,
]
[[test]]
name = "all of it"
command = ["sh", "-c", "tool; cat /usr/local/who; jq -n 1; lua5.4 -e 'print(2)'; echo $KID; stat -c %u:%g:%a /usr/local/bin/tool"]
stdout = "tool first\n0\nCapEff:\t00000000800001fb\nyes\n1\n2\nyes\n7:8:755\n"
"#,
    );
    let beside = images.path().join("images/kid");
    fs::create_dir(beside.join("data")).unwrap();
    fs::write(beside.join("data/one"), "first").unwrap();
    fs::write(beside.join("tool.sh"), tool).unwrap();
    fs::set_permissions(beside.join("tool.sh"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    // An image on an image, and one on nothing.
    images.define(
        "grandchild",
        "name = 'grandchild'\ndescription = ''\nbase = 'image:kid'\nrun = ['rm /usr/local/who /etc/made']\n\
         [[test]]\nname = 'a'\ncommand = ['sh', '-c', 'ls /usr/local; tool']\nstdout_contains = 'tool first'\n",
    );
    images.define(
        "nothing",
        "name = 'nothing'\ndescription = ''\nbase = 'scratch'\ncopy = [{ from = 'a', to = '/a' }]\n",
    );
    fs::write(images.path().join("images/nothing/a"), "a").unwrap();

    let built = images.faber(&["build", "kid", "nothing"]);
    assert!(built.status.success(), "{built:?}");
    let built = images.faber(&["build", "grandchild"]);
    assert!(built.status.success(), "{built:?}");
    let tested = images.faber(&["test", "kid", "grandchild"]);
    assert!(tested.status.success(), "{}", text(&tested.stdout));
    assert!(!fs::exists("/etc/made").unwrap(), "a step writes to its own root");

    // What a definition brings is part of it.
    assert!(text(&images.faber(&["build", "kid"]).stdout).starts_with("kid: unchanged"));
    fs::write(beside.join("data/one"), "second").unwrap();
    assert!(text(&images.faber(&["build", "kid"]).stdout).starts_with("kid: built"));

    // A step that fails says so in its own words, and leaves nothing.
    images.define("bad", "name = 'bad'\ndescription = ''\nbase = 'image:kid'\nrun = ['echo of course >&2; exit 3']\n");
    let failed = images.faber(&["build", "bad", "--json"]);
    let lines: Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert_eq!(lines[0]["error"], "echo of course >&2; exit 3: exit status 3; of course", "{lines}");
    let orphan = "name = 'orphan'\ndescription = ''\nbase = 'image:absent'\n";
    images.define("orphan", orphan);
    let orphan = text(&images.faber(&["build", "orphan"]).stdout);
    assert!(orphan.contains("there is no image absent in the store"), "{orphan}");
    assert_eq!(fs::read_dir(images.data_dir().join("store/staging")).unwrap().count(), 0);
}

#[test]
fn packages_of_languages_come_from_their_own_registries() {
    let images = Images::new();
    images.define(
        "all",
        r#"
name = "all"
description = ""
packages = ["python3-minimal", "nodejs", "rustc"]
limits = { processes = 32 }
pip = ["six==1.16.0"]
npm = ["is-number@7.0.0", "semver@7.6.0"]
cargo = { itoa = "=1.0.11" }
[[test]]
name = "pip"
command = ["python3", "-c", "import six; print(six.__version__)"]
stdout = "1.16.0\n"
[[test]]
name = "npm, imported"
command = ["node", "main.mjs"]
files = { "main.mjs" = "import isNumber from 'is-number'; console.log(isNumber('5'))" }
stdout = "true\n"
[[test]]
name = "npm, a program"
command = ["semver", "1.2.3", "--range", "^1"]
stdout = "1.2.3\n"
[[test]]
name = "cargo"
command = ["sh", "-c", "rustc @/opt/crates/args main.rs && ./main"]
files = { "main.rs" = "fn main() { println!(\"{}\", itoa::Buffer::new().format(42)) }" }
stdout = "42\n"
[[test]]
name = "what installed them is gone"
command = ["sh", "-c", "for program in pip npm cargo; do ! command -v $program || exit 1; done"]
"#,
    );
    let built = images.faber(&["build", "all"]);
    assert!(built.status.success(), "{}", text(&built.stdout));
    let tested = images.faber(&["test", "all"]);
    assert!(tested.status.success(), "{}", text(&tested.stdout));
    let lock = fs::read_to_string(images.path().join("images/all/image.lock")).unwrap();
    assert_eq!(locked_version(&lock, "six"), "1.16.0");
    assert!(!locked_version(&lock, "npm").is_empty(), "a build from the lock takes the same npm");
    let bill = text(&images.faber(&["inspect", "all", "--sbom"]).stdout);
    for package in ["pypi/six@1.16.0", "npm/is-number@7.0.0", "cargo/itoa@1.0.11", "deb/debian/nodejs@"] {
        assert!(bill.contains(&format!("pkg:{package}")), "{package}: {bill}");
    }
    assert!(!bill.contains("pkg:deb/debian/npm@"), "{bill}");
    let before = images.list();
    let again = images.faber(&["build", "--force", "all"]);
    assert!(again.status.success(), "{}", text(&again.stdout));
    assert_eq!(images.list(), before, "the same bit for bit");
}

/// NumPy's is in C++, and links the machine's library; what it extends has none. And what a package needs is there too when
/// Debian's pip, which goes again, had brought it.
#[test]
fn wheels_find_the_libraries_that_they_take_for_granted() {
    let images = Images::new();
    images.define("snake", "name = 'snake'\ndescription = ''\npackages = ['python3']\n");
    images.define(
        "numbers",
        r#"
name = "numbers"
description = ""
extends = "snake"
pip = ["numpy", "deprecation"]
[[test]]
name = "packaging, of which deprecation is made"
command = ["python3", "-c", "import deprecation; print(deprecation.version.__name__)"]
stdout = "packaging.version\n"
[[test]]
name = "numpy"
command = ["python3", "-c", "import numpy; print(numpy.arange(4).sum())"]
stdout = "6\n"
"#,
    );
    let built = images.faber(&["build", "numbers"]);
    assert!(built.status.success(), "{}", text(&built.stdout));
    let tested = images.faber(&["test", "numbers"]);
    assert!(tested.status.success(), "{}", text(&tested.stdout));
}

/// The processes that were started with this store, and have not changed their environment since.
fn processes_of(images: &Images) -> Vec<String> {
    let marker = format!("FABER_DATA_DIR={}", images.data_dir().display());
    let processes = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes())
    });
    processes.map(|entry| fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default()).collect()
}

/// A build in a process group of its own, as a shell has it: Ctrl-C goes to all of it.
fn build_in_background(images: &Images, name: &str) -> std::process::Child {
    let mut command = Command::new(FABER);
    command.current_dir(images.path()).env("FABER_DATA_DIR", images.data_dir()).args(["image", "build", name]);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
}

/// However a build ends, the old images stay, and nothing of the build goes on or is left.
#[test]
fn a_build_that_is_interrupted_or_killed_leaves_nothing() {
    let images = Images::new();
    images.define("lua", LUA);
    // busybox is whatever it is called.
    let copy = ["sh", "sleep"].map(|name| format!("{{ from = 'busybox', to = '/bin/{name}' }}")).join(", ");
    images.define("box", &format!("name = 'box'\ndescription = ''\nbase = 'scratch'\ncopy = [{copy}]\n"));
    fs::copy(busybox(), images.path().join("images/box/busybox")).unwrap();
    images.define("step", "name = 'step'\ndescription = ''\nbase = 'image:box'\nrun = ['sleep 4711.5']\n");
    let built = images.faber(&["build", "box"]);
    assert!(built.status.success(), "{built:?}");
    let before = images.list();
    let in_the_step = || !running(&["sleep", "4711.5"]).is_empty();
    let in_mmdebstrap = || processes_of(&images).iter().any(|command| command.contains("mmdebstrap\0--mode"));
    let end = |name: &str, is_on: &dyn Fn() -> bool, signal: Signal| {
        let mut build = build_in_background(&images, name);
        eventually("the build is on its way", is_on);
        let pid = Pid::from_raw(build.id() as i32);
        match signal {
            Signal::SIGINT => nix::sys::signal::killpg(pid, signal).unwrap(),
            _ => kill(pid, signal).unwrap(),
        }
        assert!(!build.wait().unwrap().success());
        eventually("everything has ended", || processes_of(&images).is_empty() && !in_the_step());
        assert_eq!(images.list(), before);
    };
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        end("step", &in_the_step, signal);
        end("lua", &in_mmdebstrap, signal);
    }
    // What the killed ones could not remove, the next one does.
    assert!(images.faber(&["build", "--force", "box"]).status.success());
    assert_eq!(fs::read_dir(images.data_dir().join("store/staging")).unwrap().count(), 0);
}

/// As after the package's installation, in a mount namespace of its own: /usr/share and /etc/faber are this test's.
#[test]
fn definitions_of_the_package_keep_their_locks_in_the_store() {
    let images = Images::new();
    let share = "mount -t tmpfs tmpfs /usr/share; test ! -d /etc/faber || mount -t tmpfs tmpfs /etc/faber; mkdir -p /usr/share/faber/images/bare; cd /usr/share/faber/images/bare";
    let define = "echo text > file; printf '%s' \"$1\" > image.toml; cd /";
    let build = "\"$2\" image build bare; \"$2\" image build --all; ls /usr/share/faber/images/bare; find \"$FABER_DATA_DIR/locks\" -type f";
    let definition =
        "name = \"bare\"\ndescription = \"Nothing\"\nbase = \"scratch\"\ncopy = [{ from = \"file\", to = \"/file\" }]";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "bash", "-euc", &format!("{share}; {define}; {build}"), "bash"])
        .args([definition, FABER])
        .env("FABER_DATA_DIR", images.data_dir())
        .output()
        .unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("bare: built") && lines[1].starts_with("bare: unchanged"), "{said}");
    let lock = images.data_dir().join("locks/bare/image.lock");
    assert_eq!(lines[2..], ["file", "image.toml", lock.to_str().unwrap()]);
}
