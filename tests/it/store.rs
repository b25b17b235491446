//! The store against who else is on the machine, against damage, and against death at any moment.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tar::EntryType;

use crate::support::oci::{Layout, Trial, files};
use crate::support::{FABER, busybox};

/// nobody's, who is an ordinary user.
const NOBODY: &str = "65534";

/// A layer, entry by entry, each with the mode it says.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// With a shell.
    fn of_busybox() -> Self {
        let layer = Self::new().file("bin/busybox", 0o755, &fs::read(busybox()).unwrap());
        ["sh", "cat", "stat", "ls", "sleep"]
            .iter()
            .fold(layer, |layer, name| layer.link(&format!("bin/{name}"), "busybox"))
    }

    fn add(mut self, kind: EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path(name).unwrap();
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.add(EntryType::Regular, name, "", mode, content)
    }

    fn directory(self, name: &str, mode: u32) -> Self {
        self.add(EntryType::Directory, name, "", mode, b"")
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, name, target, 0o777, b"")
    }

    /// An image with this one layer, in a layout of its own.
    fn image(self, trial: &Trial, name: &str) -> String {
        Layout::new(trial.path(name), &[&self.0.into_inner().unwrap()]).write();
        name.to_owned()
    }
}

#[track_caller]
fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a shell in an image prints.
#[track_caller]
fn shell(trial: &Trial, image: &str, script: &str) -> String {
    ok(&trial.faber(&["run", "--image", image, "--", "sh", "-c", script]))
}

/// A shell script of nobody's.
fn nobody(script: &str, argument: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "bash", "-c", script, "bash"]).arg(argument);
    command.current_dir("/").stdin(Stdio::null());
    command
}

#[track_caller]
fn assert_nothing_staged(trial: &Trial) {
    let staging = trial.path("data/store/staging");
    assert_eq!(
        fs::read_dir(&staging).unwrap().flatten().map(|entry| entry.path()).collect::<Vec<_>>(),
        [] as [PathBuf; 0]
    );
}

/// Files of which anybody may write one, and a directory for everybody, as in any image of Debian's.
fn open_to_all() -> Layer {
    Layer::of_busybox().directory("var/tmp", 0o1777).file("open", 0o666, b"true\n").file("group", 0o2775, b"true\n")
}

#[test]
fn a_local_user_gets_nowhere_in_the_store() {
    let trial = Trial::new();
    trial.import(&[&open_to_all().image(&trial, "one")]);
    let data = trial.path("data");
    // Whatever it finds it tries to change.
    let script = r#"
cd "$1" && ls images && cat images/one > /dev/null && echo read
for d in . images store store/trees store/files store/staging; do touch $d/x 2>/dev/null && echo wrote $d; done
for f in $(find . -type f 2>/dev/null); do { echo forged > $f; } 2>/dev/null && echo forged $f; done
for d in $(find . -type d 2>/dev/null); do ls $d > /dev/null 2>&1 && echo listed $d; done
cat store/trees/*/rootfs/open 2>/dev/null
"#;
    let said = ok(&nobody(&format!("{script}true"), &data).output().unwrap());
    assert_eq!(said, "one\nread\nlisted .\nlisted ./images\n");
    // By a name that it knows, no more than by one that it finds.
    let known = files(&data.join("store/trees"));
    assert!(known.len() > 5, "{known:?}");
    for path in known {
        assert!(!nobody("test -e \"$1\"", &path).status().unwrap().success(), "{}", path.display());
    }
    for (path, mode) in [("", 0o755), ("images", 0o755), ("images/one", 0o644), ("store", 0o700), ("store/lock", 0o600)]
    {
        let meta = fs::symlink_metadata(data.join(path)).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (mode, 0), "{path}");
    }
    assert_eq!(shell(&trial, "one", "cat /open; stat -c %a /open /group /var/tmp /"), "true\n644\n755\n755\n755\n");
}

/// A user who holds every lock that can be had, shared or alone, for as long as this lives.
struct Holder(Child);

impl Holder {
    fn of(data: &Path) -> Self {
        let script = r#"
for path in $(find "$1" -not -type l 2>/dev/null); do
    { exec {fd}<"$path"; } 2>/dev/null && { flock -n -x $fd || flock -n -s $fd; } && held=$((held + 1))
done
echo $held; exec sleep 1000
"#;
        let mut child = nobody(script, data).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.trim().parse::<u32>().unwrap() >= 2, "{line}");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn locks_of_a_local_user_stall_nobody() {
    let trial = Trial::new();
    trial.import(&[&open_to_all().image(&trial, "one")]);
    let other = open_to_all().file("other", 0o644, b"other").image(&trial, "other");
    let _holder = Holder::of(&trial.path("data"));
    let begun = Instant::now();
    trial.import(&[&other]);
    assert_eq!(shell(&trial, "other", "cat /other"), "other");
    ok(&trial.faber(&["image", "export", "one", "one.tar"]));
    ok(&trial.faber(&["image", "rm", "one", "other"]));
    trial.assert_empty();
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

/// The shared file with this content.
fn shared(trial: &Trial, content: &[u8]) -> PathBuf {
    let all = files(&trial.path("data/store/files"));
    all.into_iter().find(|path| fs::read(path).unwrap() == content).expect("it is shared")
}

#[test]
fn a_file_that_was_changed_is_not_shared() {
    let trial = Trial::new();
    let image = |name: &str| {
        let layer =
            Layer::of_busybox().file("a", 0o644, b"true\n").file("b", 0o644, b"b is b\n").file("c", 0o644, b"c is c\n");
        layer.image(&trial, name)
    };
    trial.import(&[&image("one")]);
    let damage = |content: &[u8], change: &dyn Fn(&Path)| {
        let path = shared(&trial, content);
        let meta = fs::metadata(&path).unwrap();
        change(&path);
        let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mtime(), meta.mtime());
    };
    // The size and every attribute are as before; another one has only an attribute that is not; the last one is a link.
    damage(b"true\n", &|path| fs::write(path, "lie!\n").unwrap());
    damage(b"b is b\n", &|path| fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap());
    let c = shared(&trial, b"c is c\n");
    fs::remove_file(&c).unwrap();
    fs::write(trial.path("planted"), "c is c\n").unwrap();
    symlink(trial.path("planted"), &c).unwrap();

    let seen = |image: &str| shell(&trial, image, "cat /a /b /c; stat -c %a:%h /a /b /c");
    let listed = trial.import(&[&image("two")]);
    assert_eq!(listed["outcome"], "imported", "{listed}");
    // In its tree and among the shared files.
    assert_eq!(seen("two"), "true\nb is b\nc is c\n644:2\n644:2\n644:2\n");
    trial.import(&[&image("three")]);
    assert_eq!(seen("three"), "true\nb is b\nc is c\n644:3\n644:3\n644:3\n");
    // Made anew, the damaged image is whole too.
    ok(&trial.faber(&["image", "rm", "one"]));
    trial.import(&["one"]);
    assert_eq!(seen("one"), "true\nb is b\nc is c\n644:4\n644:4\n644:4\n");
}

#[test]
fn a_tree_that_is_there_already_is_made_anew_unless_it_is_used() {
    let trial = Trial::new();
    trial.import(&[&open_to_all().image(&trial, "one")]);
    // Half a tree, with all of its digest: as one that lost its files without a word.
    let tree = fs::read_dir(trial.path("data/store/trees")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(tree.join("rootfs/open")).unwrap();
    fs::remove_file(trial.path("data/images/one")).unwrap();
    trial.import(&["one"]);
    assert_eq!(shell(&trial, "one", "cat /open"), "true\n");
    assert_nothing_staged(&trial);
}

#[test]
fn an_export_follows_no_link() {
    let trial = Trial::new();
    fs::create_dir(trial.path("secret")).unwrap();
    fs::write(trial.path("secret/key"), "secret").unwrap();
    let secret = trial.path("secret").display().to_string();
    let layer = Layer::of_busybox()
        .link("directory", &secret)
        .link("file", &format!("{secret}/key"))
        .link("up", "../../../../../../../../../..")
        .link("shadow", "/etc/shadow")
        .link("self", "self");
    trial.import(&[&layer.image(&trial, "hostile")]);
    ok(&trial.faber(&["image", "export", "hostile", "hostile.tar"]));
    trial.import(&["hostile.tar", "--name", "back"]);
    let script =
        "for l in directory file up shadow self; do test -L /$l || echo $l; done; test ! -e /key && echo no key";
    assert_eq!(shell(&trial, "back", script), "no key\n");

    // Links where a tree has none: its root, and a directory that was one.
    let root = trial.tree("hostile").join("rootfs");
    fs::rename(&root, trial.path("aside")).unwrap();
    symlink(&secret, &root).unwrap();
    let refused = trial.faber(&["image", "export", "hostile", "root.tar"]);
    assert!(!refused.status.success() && !trial.path("root.tar").exists(), "{refused:?}");
    let ran = trial.faber(&["run", "--image", "hostile", "--", "cat", "/key"]);
    assert!(!ran.status.success() && !String::from_utf8_lossy(&ran.stdout).contains("secret"), "{ran:?}");
    fs::remove_file(&root).unwrap();
    fs::rename(trial.path("aside"), &root).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let refused = trial.faber(&["image", "export", "hostile", "fifo.tar"]);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("fifo is no file, no directory and no link"),
        "{refused:?}"
    );
}

/// Enough files for a kill to find an import anywhere on its way.
fn large() -> Layer {
    let content = vec![7; 2000];
    (0..600).fold(Layer::of_busybox(), |layer, n| {
        layer.file(&format!("data/{}/{n}", n % 50), 0o644, &[n.to_string().as_bytes(), &content].concat())
    })
}

#[test]
fn an_import_that_is_killed_anywhere_leaves_the_old_image_or_the_new_one() {
    let trial = Trial::new();
    trial.import(&[&Layer::of_busybox().file("a", 0o644, b"old").image(&trial, "old")]);
    let new = large().file("a", 0o644, b"new").image(&trial, "new");
    let import = || trial.command(&["image", "import", &new, "--name", "old"]).stdout(Stdio::null()).spawn().unwrap();
    assert!(import().wait().unwrap().success());
    trial.import(&["old", "--name", "old"]);
    ok(&trial.faber(&["image", "gc"]));
    let begun = Instant::now();
    assert!(import().wait().unwrap().success());
    let whole = begun.elapsed();
    let mut interrupted = 0;
    const ROUNDS: u32 = 30;
    for round in 0..ROUNDS {
        trial.import(&["old", "--name", "old"]);
        if round % 2 == 0 {
            // Else the tree of the new one is there already.
            ok(&trial.faber(&["image", "gc"]));
        }
        let mut killed = import();
        // Which moment is tried; whichever it is, what follows holds.
        std::thread::sleep(whole * round / ROUNDS);
        killed.kill().unwrap();
        interrupted += u32::from(!killed.wait().unwrap().success());
        let sees = || shell(&trial, "old", "cat /a; stat -c %s /data/49/599 2>/dev/null; true");
        let seen = sees();
        assert!(["old", "new2003\n"].contains(&&*seen), "{round}: {seen}");
        assert!(import().wait().unwrap().success());
        assert_eq!(sees(), "new2003\n", "{round}");
        assert_nothing_staged(&trial);
    }
    assert!(interrupted > ROUNDS / 4, "{interrupted} of {ROUNDS}");
    ok(&trial.faber(&["image", "rm", "old"]));
    trial.assert_empty();
}

/// What changes names, or waits for the disk.
const STEPS: [&str; 11] = [
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlinkat",
    "mkdir",
    "mkdirat",
    "unlinkat",
    "fsync",
    "syncfs",
];

/// Faber as strace(1) runs it.
fn traced(trial: &Trial, options: &[&str], args: &[&str]) -> Output {
    let mut command = Command::new("strace");
    command.args(["--follow-forks", "--decode-fds=path", "--output"]).arg(trial.path("trace"));
    command.arg(format!("--trace={}", STEPS.join(","))).args(options).arg(FABER).args(args);
    command.current_dir(trial.path("")).env("FABER_DATA_DIR", trial.path("data")).stdin(Stdio::null()).output().unwrap()
}

/// Has Faber killed at every of its steps in turn, and tells `then` of each. A step is a system call and its number, from 1 on,
/// among those of its kind.
fn kill_at_each_step(trial: &Trial, args: &[&str], then: &dyn Fn(&str)) -> u32 {
    let mut steps = 0;
    for call in STEPS {
        for number in 1.. {
            let output = traced(trial, &[&format!("--inject={call}:signal=SIGKILL:when={number}")], args);
            let was_killed = output.status.signal() == Some(9);
            assert!(was_killed || output.status.success(), "{output:?}");
            then(&format!("{call} {number}"));
            if !was_killed {
                break;
            }
            steps += 1;
        }
    }
    steps
}

#[test]
fn death_between_any_two_steps_leaves_the_old_image_or_the_new_one() {
    let trial = Trial::new();
    let image = |name: &str| {
        let layer = Layer::of_busybox().file("a", 0o644, name.as_bytes()).file(&format!("b/{name}"), 0o644, b"b");
        layer.image(&trial, name)
    };
    let (old, new) = (image("old"), image("new"));
    let sees = || shell(&trial, "one", "cat /a /b/*");
    trial.import(&[&old, "--name", "one"]);
    let steps = kill_at_each_step(&trial, &["image", "import", &new, "--name", "one"], &|step| {
        let seen = sees();
        assert!(["oldb", "newb"].contains(&&*seen), "{step}: {seen}");
        trial.import(&[&new, "--name", "one"]);
        assert_eq!(sees(), "newb", "{step}");
        assert_nothing_staged(&trial);
        trial.import(&[&old, "--name", "one"]);
        ok(&trial.faber(&["image", "gc"]));
    });
    assert!(steps > 30, "{steps} steps");
    let gone = image("gone");
    trial.import(&[&gone]);
    let steps = kill_at_each_step(&trial, &["image", "rm", "gone"], &|step| {
        assert_eq!(sees(), "oldb", "{step}");
        let is_listed = ok(&trial.faber(&["image", "list", "--json"])).contains("\"gone\"");
        assert!(!is_listed || shell(&trial, "gone", "cat /a /b/gone") == "goneb", "{step}");
        trial.import(&[&gone]);
        assert_eq!(shell(&trial, "gone", "cat /a /b/gone"), "goneb", "{step}");
        assert_nothing_staged(&trial);
    });
    assert!(steps > 10, "{steps} steps");
    ok(&trial.faber(&["image", "rm", "one", "gone"]));
    trial.assert_empty();
}

/// What a power cut may undo cannot be tried here; that nothing is promised before it is on the disk can be seen.
#[test]
fn a_tree_is_on_the_disk_before_its_place_and_that_before_its_name() {
    let trial = Trial::new();
    let image = Layer::of_busybox().image(&trial, "one");
    ok(&traced(&trial, &[], &["image", "import", &image]));
    let trace = fs::read_to_string(trial.path("trace")).unwrap();
    let mut from = 0;
    let steps = [
        ("syncfs(", "/store/staging/"),
        ("rename", "/store/trees/"),
        ("fsync(", "/store/trees>"),
        ("fsync(", "/store/staging/"),
        ("rename", "/images/one\""),
        ("fsync(", "/images>"),
    ];
    for (call, path) in steps {
        let next = trace
            .lines()
            .skip(from)
            .position(|line| line.contains(call) && line.contains(path) && line.ends_with(" = 0"));
        from += 1 + next.unwrap_or_else(|| panic!("no {call} of {path} from line {from} on: {trace}"));
    }
}

/// As a former version had it: everything in the data directory itself, and names that are links.
fn make_former(data: &Path) {
    for name in ["trees", "files", "staging"] {
        fs::rename(data.join("store").join(name), data.join(name)).unwrap();
        fs::set_permissions(data.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::remove_file(data.join("store/lock")).unwrap();
    fs::remove_dir(data.join("store")).unwrap();
    fs::write(data.join("lock"), "").unwrap();
    fs::create_dir(data.join("staging/left")).unwrap();
    for entry in fs::read_dir(data.join("trees")).unwrap().flatten() {
        fs::remove_file(entry.path().join("lock")).unwrap();
    }
    for entry in fs::read_dir(data.join("images")).unwrap().flatten() {
        let told: Value = serde_json::from_slice(&fs::read(entry.path()).unwrap()).unwrap();
        let digest = told["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        fs::remove_file(entry.path()).unwrap();
        symlink(Path::new("../trees").join(digest), entry.path()).unwrap();
    }
}

#[test]
fn a_store_of_a_former_version_is_moved_without_losing_an_image() {
    let trial = Trial::new();
    let data = trial.path("data");
    for name in ["one", "two", "three"] {
        trial.import(&[&Layer::of_busybox().file("a", 0o644, name.as_bytes()).image(&trial, name)]);
    }
    let told = ok(&trial.faber(&["image", "list", "--json"]));
    let all_there = |how: &str| {
        assert_eq!(ok(&trial.faber(&["image", "list", "--json"])), told, "{how}");
        for name in ["one", "two", "three"] {
            assert_eq!(shell(&trial, name, "cat /a"), name, "{how}");
        }
        for gone in ["trees", "files", "staging", "lock"] {
            assert!(!data.join(gone).exists(), "{how}: {gone}");
        }
        assert_eq!(fs::metadata(data.join("store")).unwrap().mode() & 0o7777, 0o700);
    };
    make_former(&data);
    symlink("../trees/none", data.join("images/gone")).unwrap();
    assert_eq!(shell(&trial, "one", "cat /a"), "one");
    all_there("by a run");

    make_former(&data);
    assert_eq!(trial.server().get("/health").status, 200);
    all_there("by a server");

    // One that was interrupted: a name and a tree are where they belong.
    make_former(&data);
    let tree = fs::canonicalize(data.join("images/two")).unwrap();
    fs::create_dir(data.join("store")).unwrap();
    fs::create_dir(data.join("store/trees")).unwrap();
    fs::copy(tree.join("image.json"), data.join("new")).unwrap();
    fs::rename(data.join("new"), data.join("images/two")).unwrap();
    fs::write(tree.join("lock"), "").unwrap();
    fs::rename(&tree, data.join("store/trees").join(tree.file_name().unwrap())).unwrap();
    ok(&trial.faber(&["image", "gc"]));
    all_there("by gc");
    ok(&trial.faber(&["image", "gc"]));
    assert_nothing_staged(&trial);
    // What they share is shared still.
    assert_eq!(shell(&trial, "one", "stat -c %h /bin/busybox"), "4\n");
}

#[test]
fn a_data_directory_that_others_may_write_to_is_refused() {
    let trial = Trial::new();
    let data = trial.path("data");
    trial.import(&[&Layer::of_busybox().image(&trial, "one")]);
    let refused = |owner: u32, mode: u32| {
        std::os::unix::fs::chown(&data, Some(owner), None).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(mode)).unwrap();
        for args in [&["run", "--image", "one", "--", "sh"][..], &["image", "import", "one"], &["serve", "--open-mode"]]
        {
            let output = trial.faber(args);
            let said = String::from_utf8_lossy(&output.stderr);
            let expected = format!(
                "data_dir: others may write to {0}: chown it to who runs Faber, chmod go-w {0}\n",
                data.display()
            );
            assert!(!output.status.success() && said.ends_with(&expected), "{args:?}: {said}");
        }
    };
    refused(0, 0o777);
    refused(0, 0o775);
    refused(65_534, 0o755);
    std::os::unix::fs::chown(&data, Some(0), None).unwrap();
    // What is only too open is closed again.
    for name in ["store", "images"] {
        fs::set_permissions(data.join(name), fs::Permissions::from_mode(0o777)).unwrap();
    }
    fs::create_dir(data.join("blobs")).unwrap();
    fs::set_permissions(data.join("blobs"), fs::Permissions::from_mode(0o777)).unwrap();
    let server = trial.server();
    assert_eq!(server.run(json!({ "command": "sh", "args": ["-c", "echo $0"], "image": "one" }))["status"], "Success");
    server.put(b"kept");
    for (name, mode) in [("store", 0o700), ("images", 0o755), ("blobs", 0o700)] {
        assert_eq!(fs::metadata(data.join(name)).unwrap().mode() & 0o7777, mode, "{name}");
    }
}

/// Names that are links are none of Faber's, wherever they lead.
#[test]
fn a_name_that_is_a_link_is_no_image() {
    let trial = Trial::new();
    trial.import(&[&Layer::of_busybox().image(&trial, "one")]);
    let data = trial.path("data");
    fs::rename(data.join("images/one"), trial.path("aside")).unwrap();
    symlink(trial.path("aside"), data.join("images/one")).unwrap();
    let listed: Value = serde_json::from_str(&ok(&trial.faber(&["image", "list", "--json"]))).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    let said = String::from_utf8(trial.faber(&["image", "gc"]).stderr).unwrap();
    assert!(said.contains("open ") && said.contains("images/one"), "nobody knows which tree it names: {said}");
    ok(&trial.faber(&["image", "rm", "one"]));
    assert!(trial.path("aside").exists());
    trial.assert_empty();
}

/// A step that answers in the place of pip, with what is no report.
#[test]
fn what_a_step_left_is_read_over_no_link_and_waits_for_nobody() {
    let trial = Trial::new();
    let busybox = busybox().display();
    let cases = [
        ("link", "ln -s /etc/passwd report.json", "Too many levels of symbolic links"),
        ("directory", "mkdir report.json", "it is no regular file"),
        ("fifo", "mkfifo report.json", "it is no regular file"),
        ("large", "truncate -s 70M report.json", "file too large"),
        (
            "over",
            "mv /run/faber /x; echo '{\"install\":[]}' > /x/report.json; ln -s /x /run/faber",
            "Too many levels of symbolic links",
        ),
    ];
    for (name, script, _) in cases {
        let dir = trial.path("images").join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("python3"), format!("#!/bin/sh\nmkdir -p /run/faber; cd /run/faber; {script}\n")).unwrap();
        fs::set_permissions(dir.join("python3"), fs::Permissions::from_mode(0o755)).unwrap();
        let copied = ["sh", "mkdir", "ln", "mv", "mkfifo", "truncate"]
            .map(|name| format!("{{ from = \"busybox\", to = \"/bin/{name}\" }}"));
        fs::copy(busybox.to_string(), dir.join("busybox")).unwrap();
        let text = |name: &str, more: &str| format!("name = \"{name}\"\ndescription = \"\"\npath = \"/bin\"\n{more}\n");
        let copied = format!(
            "base = \"scratch\"\ncopy = [{}, {{ from = \"python3\", to = \"/bin/python3\" }}]",
            copied.join(", ")
        );
        let base = format!("{name}.box");
        let beside = trial.path("images").join(&base);
        fs::rename(&dir, &beside).unwrap();
        fs::write(beside.join("image.toml"), text(&base, &copied)).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("image.toml"), text(name, &format!("base = \"image:{base}\"\npip = [\"six\"]"))).unwrap();
        ok(&trial.faber(&["image", "build", &base]));
    }
    for (name, _, expected) in cases {
        let failed = trial.faber(&["image", "build", name]);
        let said = String::from_utf8_lossy(&failed.stdout);
        assert!(!failed.status.success() && said.to_lowercase().contains(&expected.to_lowercase()), "{name}: {said}");
    }
}

/// An ext4 in a file of the trial's, mounted where its data is: what has not been written to the file is lost with the power.
struct Disk<'a> {
    trial: &'a Trial,
    /// Its file, and where it is mounted.
    file: PathBuf,
    place: PathBuf,
}

impl<'a> Disk<'a> {
    /// None where no such file can be mounted.
    fn new(trial: &'a Trial) -> Option<Self> {
        let file = trial.path("disk");
        fs::File::create(&file).unwrap().set_len(96 << 20).unwrap();
        ok(&Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file).output().expect("mkfs.ext4 of e2fsprogs"));
        Self::mount(trial, file, trial.path("data"))
    }

    fn mount(trial: &'a Trial, file: PathBuf, place: PathBuf) -> Option<Self> {
        fs::create_dir_all(&place).unwrap();
        let mounted = Command::new("mount").args(["-o", "loop"]).args([&file, &place]).output().unwrap();
        if !mounted.status.success() {
            eprintln!("NOT CHECKED: a machine that loses power: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(Self { trial, file, place })
    }

    /// What is left of it when the power goes now, after the journal was replayed.
    fn after_power_loss(&self) -> Disk<'a> {
        let file = self.trial.path("left");
        fs::copy(&self.file, &file).unwrap();
        Self::mount(self.trial, file, self.trial.path("after")).unwrap()
    }

    /// The images there are, each of which runs and is what it was made of.
    fn whole_images(&self, content: impl Fn(&str) -> String) -> Vec<String> {
        let faber = |args: &[&str]| self.trial.command(args).env("FABER_DATA_DIR", &self.place).output().unwrap();
        let images: Value = serde_json::from_str(&ok(&faber(&["image", "list", "--json"]))).unwrap();
        let names = images.as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap().to_owned());
        let names: Vec<String> = names.filter(|name| name != "host").collect();
        for name in &names {
            let said = ok(&faber(&["run", "--image", name, "--", "sh", "-c", "cat /part-*"]));
            assert!(said == content(name), "{name} is not whole");
        }
        names
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.place).status().unwrap();
        assert!(unmounted.success() || std::thread::panicking(), "{}", self.place.display());
    }
}

#[test]
fn a_machine_that_loses_power_has_images_that_are_whole() {
    let trial = Trial::new();
    let Some(disk) = Disk::new(&trial) else { return };
    let content = |name: &str| (0..40).map(|part| format!("{name} {part}\n").repeat(1000)).collect::<String>();
    let image = |name: &str| {
        let part = |layer: Layer, part: usize| {
            layer.file(&format!("part-{part:02}"), 0o644, format!("{name} {part}\n").repeat(1000).as_bytes())
        };
        (0..40).fold(Layer::of_busybox(), part).image(&trial, name)
    };
    let import = |name: &str| {
        let mut command = trial.command(&["image", "import", &image(name)]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    // One that was told to be there is there.
    let begun = Instant::now();
    assert!(import("told").status().unwrap().success());
    let took = begun.elapsed();
    assert_eq!(disk.after_power_loss().whole_images(content), ["told"]);
    // At any moment before that it is there or is not, and the other one is what it was.
    let mut seen = [0; 2];
    for round in 0..8 {
        let name = format!("n{round}");
        let mut child = import(&name).spawn().unwrap();
        std::thread::sleep(took * round / 7);
        let left = disk.after_power_loss();
        let _ = child.kill();
        child.wait().unwrap();
        let images = left.whole_images(content);
        assert!(images.contains(&"told".to_owned()), "{images:?}");
        seen[usize::from(images.contains(&name))] += 1;
        drop(left);
    }
    println!("{} imports were there when the power went, {} were not", seen[1], seen[0]);
    assert!(seen[0] > 0);
}
