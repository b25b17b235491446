//! Archives of anybody, and what becomes of them.

use super::*;
use crate::image::SKELETON;
use std::fs;
use std::os::unix::fs::MetadataExt;
use tar::EntryType;
use tempfile::TempDir;

struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// An entry as it is given: names are not looked at, as the tar crate would by itself.
    fn add(mut self, kind: EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.add(EntryType::Regular, name, "", 0o644, content)
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, name, target, 0o777, b"")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn unpack_into(dir: &TempDir, name: &str, bytes: &[u8]) -> Result<Unpacked> {
    let (tree, files) = (dir.path().join(name), dir.path().join("files"));
    fs::create_dir_all(&files).unwrap();
    fs::create_dir(&tree).unwrap();
    unpack(bytes, &Place { tree: &tree, files: &files, scratch: dir.path(), progress: &|_| {} })
}

/// What an archive becomes, and that nothing beside tree and files was made.
fn unpacked(archive: Archive) -> (TempDir, Result<Unpacked>) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("outside"), "untouched").unwrap();
    let result = unpack_into(&dir, "tree", &archive.bytes());
    assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    (dir, result)
}

#[test]
fn names_that_lead_out_are_refused() {
    let out = |archive: Archive| {
        let (_dir, result) = unpacked(archive);
        let error = result.unwrap_err();
        assert!(matches!(error, TreeError::LeadsOut(_)), "{error:?}");
    };
    out(Archive::new().file("../outside", b"x"));
    out(Archive::new().file("a/../../outside", b"x"));
    out(Archive::new().symlink("a", "..").file("a/outside", b"x"));
    out(Archive::new().symlink("a", "/").file("a/outside", b"x"));
    out(Archive::new().symlink("a", "..").add(EntryType::Directory, "a/b", "", 0o755, b""));
    out(Archive::new().add(EntryType::Link, "a", "../outside", 0o644, b""));
    out(Archive::new().symlink("a", "..").add(EntryType::Link, "b", "a/outside", 0o644, b""));
}

#[test]
fn absolute_names_and_links_stay_inside() {
    let archive = Archive::new().file("/usr/a", b"a").symlink("b", "/outside").symlink("usr/a2", "../../outside");
    let (dir, result) = unpacked(archive);
    result.unwrap();
    let tree = dir.path().join("tree");
    assert_eq!(fs::read(tree.join("usr/a")).unwrap(), b"a");
    // A link may say anything: it is the task's root that it is followed in.
    assert_eq!(fs::read_link(tree.join("b")).unwrap(), Path::new("/outside"));
}

#[test]
fn a_link_is_replaced_and_not_written_through() {
    let (dir, result) = unpacked(Archive::new().symlink("a", "../outside").file("a", b"new"));
    result.unwrap();
    assert_eq!(fs::read(dir.path().join("tree/a")).unwrap(), b"new");
}

#[test]
fn devices_and_setuid_bits_do_not_come_in() {
    let archive = Archive::new()
        .add(EntryType::Block, "etc/disk", "", 0o666, b"")
        .add(EntryType::Fifo, "etc/fifo", "", 0o666, b"")
        .add(EntryType::Regular, "su", "", 0o6755, b"x")
        .file("usr/share/doc/x", b"x")
        .file("etc/shadow", b"x");
    let (dir, result) = unpacked(archive);
    result.unwrap();
    let tree = dir.path().join("tree");
    assert_eq!(fs::metadata(tree.join("su")).unwrap().mode() & 0o7777, 0o755);
    for name in ["etc/disk", "etc/fifo", "usr/share/doc", "etc/shadow"] {
        assert!(fs::symlink_metadata(tree.join(name)).is_err(), "{name}");
    }
    let etc: Vec<String> = SKELETON.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert!(etc.iter().all(|name| tree.join("etc").join(name).is_file()));
}

#[test]
fn what_is_cut_or_lies_about_its_size_is_an_error() {
    let whole = Archive::new().file("a", &[7; 5000]).bytes();
    let dir = tempfile::tempdir().unwrap();
    assert!(unpack_into(&dir, "cut", &whole[..2048]).is_err());
    let mut bomb = tar::Header::new_gnu();
    bomb.set_entry_type(EntryType::Regular);
    bomb.set_path("a").unwrap();
    bomb.set_size(BYTES + 1);
    bomb.set_mode(0o644);
    bomb.set_uid(0);
    bomb.set_gid(0);
    bomb.set_mtime(0);
    bomb.set_cksum();
    assert!(matches!(unpack_into(&dir, "bomb", bomb.as_bytes()), Err(TreeError::TooLarge("bytes"))));
    assert!(unpack_into(&dir, "noise", &[0xff; 2048]).is_err());
}

#[test]
fn the_same_archive_is_the_same_tree_and_equal_files_are_kept_once() {
    let dir = tempfile::tempdir().unwrap();
    let one = || Archive::new().file("usr/a", b"same").file("usr/b", b"same").file("usr/empty", b"");
    let first = unpack_into(&dir, "first", &one().bytes()).unwrap();
    let second = unpack_into(&dir, "second", &one().bytes()).unwrap();
    assert_eq!(
        (&first.digest, first.size),
        (&second.digest, 8 + SKELETON.iter().map(|(_, c)| c.len() as u64).sum::<u64>())
    );
    let inode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().ino();
    assert_eq!(inode("first/usr/a"), inode("second/usr/b"));
    assert_eq!(fs::metadata(dir.path().join("first/usr/a")).unwrap().mtime(), 1);
    for (name, other) in [("third", one().file("c", b"")), ("fourth", Archive::new().file("usr/a", b"other"))] {
        assert_ne!(unpack_into(&dir, name, &other.bytes()).unwrap().digest, first.digest);
    }
}

/// The layers of an image, from the lowest, as a tree beside a file that is not theirs.
struct Layers {
    dir: TempDir,
    result: Result<Unpacked>,
}

fn layers(archives: Vec<Archive>) -> Layers {
    let dir = tempfile::tempdir().unwrap();
    let (tree, files) = (dir.path().join("tree"), dir.path().join("files"));
    fs::write(dir.path().join("outside"), "untouched").unwrap();
    fs::create_dir(&files).unwrap();
    fs::create_dir(&tree).unwrap();
    let place = Place { tree: &tree, files: &files, scratch: dir.path(), progress: &|_| {} };
    let mut unpacking = Unpacking::new(Kind::Layers, &place).unwrap();
    let unpacked = archives.into_iter().try_for_each(|archive| unpacking.archive(&archive.bytes()[..]));
    let result = unpacked.and_then(|()| unpacking.finish());
    assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    Layers { dir, result }
}

impl Layers {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("tree").join(name)
    }

    #[track_caller]
    fn has(&self, name: &str, content: &str) {
        assert_eq!(fs::read_to_string(self.path(name)).unwrap(), content, "{name}");
    }

    #[track_caller]
    fn lacks(&self, name: &str) {
        assert!(fs::symlink_metadata(self.path(name)).is_err(), "{name}");
    }

    #[track_caller]
    fn ok(self) -> Self {
        if let Err(error) = &self.result {
            panic!("{error:?}");
        }
        self
    }

    fn error(self) -> String {
        crate::chain::chain(&self.result.unwrap_err())
    }
}

impl Archive {
    fn directory(self, name: &str) -> Self {
        self.add(EntryType::Directory, name, "", 0o755, b"")
    }

    /// An archive that is over, and goes on.
    fn padded(mut self, length: usize) -> Self {
        self.0.get_mut().resize(length, 0);
        self
    }

    /// An entry whose header says something else of its size than is there.
    fn claims(mut self, kind: EntryType, name: &str, size: u64) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path(name).unwrap();
        header.set_size(size);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        self.0.get_mut().extend_from_slice(header.as_bytes());
        self
    }
}

#[test]
fn a_layer_takes_away_what_is_below_it_and_nothing_of_its_own() {
    let below = || {
        Archive::new()
            .file("gone/deep/a", b"a")
            .file("one/a", b"a")
            .file("one/b", b"b")
            .file("all/old/a", b"a")
            .file("all/x", b"x")
    };
    // An opaque mark may come after what it does not hide.
    let above = Archive::new()
        .file(".wh.gone", b"")
        .file("one/.wh.a", b"")
        .file("all/new", b"new")
        .file("all/old/kept", b"kept")
        .file("all/.wh..wh..opq", b"")
        .file("one/.wh.c", b"")
        .file("one/c", b"c")
        .file(".wh..wh.plnk", b"");
    let layers = layers(vec![below(), above]).ok();
    for name in ["gone", "one/a", "all/x", "all/old/a", ".wh.gone", "all/.wh..wh..opq", ".wh..wh.plnk"] {
        layers.lacks(name);
    }
    layers.has("one/b", "b");
    layers.has("one/c", "c");
    layers.has("all/new", "new");
    layers.has("all/old/kept", "kept");
}

#[test]
fn a_later_layer_replaces_whatever_was_there() {
    let below = Archive::new().file("d/a", b"a").file("f", b"f").symlink("l", "d").symlink("m", "d");
    let above = Archive::new().file("d", b"d").directory("f").directory("l").file("l/x", b"x").file("m/y", b"y");
    let layers = layers(vec![below, above]);
    // m is still a link, and what it led to is a file now.
    assert!(layers.error().contains("\"m/y\", below what is no directory"));
}

#[test]
fn names_go_through_links_as_in_a_container() {
    let below = Archive::new().directory("usr/lib").symlink("lib", "usr/lib").symlink("abs", "/usr/lib");
    let above =
        Archive::new().file("lib/x", b"x").file("abs/y", b"y").add(EntryType::Link, "abs/z", "lib/x", 0o644, b"");
    let layers = layers(vec![below, above, Archive::new().file("lib/.wh.y", b"")]).ok();
    layers.has("usr/lib/x", "x");
    layers.has("usr/lib/z", "x");
    layers.lacks("usr/lib/y");
    assert!(layers.path("lib").is_symlink());
}

#[test]
fn links_of_hostile_layers_lead_to_the_root_at_most() {
    for target in ["..", "/", "../../..", "/proc/self/root/.."] {
        let one = || Archive::new().directory("proc").directory("keep").symlink("a", target);
        let made = layers(vec![one().file("a/made", b"x").file("a/.wh.outside", b"")]);
        if target.starts_with("/proc") {
            assert!(made.error().contains("below what is no directory"));
            continue;
        }
        made.ok().has("made", "x");
        layers(vec![one(), Archive::new().file("a/.wh.keep", b"")]).ok().lacks("keep");
        layers(vec![one(), Archive::new().file("a/.wh..wh..opq", b"")]).ok().lacks("keep");
        layers(vec![one(), Archive::new().add(EntryType::Link, "stolen", "a/outside", 0o644, b"")])
            .ok()
            .lacks("stolen");
    }
}

#[test]
fn hostile_layers_are_refused() {
    let deep = "d/".repeat(40);
    // Each link leads forty directories further down.
    let down = (0..8).fold(Archive::new(), |archive, n| {
        let above = if n == 0 { String::new() } else { format!("s{}/", n - 1) };
        archive.directory(&format!("{above}{deep}")).symlink(&format!("s{n}"), &format!("{above}{deep}"))
    });
    // Round and round is no deeper.
    layers(vec![Archive::new().symlink("r", ".").file(&format!("{}f", "r/".repeat(30)), b"f")]).ok().has("f", "f");
    let pax = |archive: Archive| {
        archive.add(EntryType::XHeader, "x", "", 0o644, b"22 GNU.sparse.major=1\n").file("sparse", b"x")
    };
    let cases: Vec<(Archive, &str)> = vec![
        (Archive::new().file("../outside", b"x"), "\"../outside\", which leads out"),
        (Archive::new().file("/../outside", b"x"), "which leads out"),
        (Archive::new().file("a/../../outside", b"x"), "which leads out"),
        (Archive::new().add(EntryType::Link, "a", "../outside", 0o644, b""), "which leads out"),
        (Archive::new().file("a/.wh...", b""), "which leads out"),
        (Archive::new().file("a/.wh..", b""), "which leads out"),
        (Archive::new().file("a/.wh.", b""), "which leads out"),
        (Archive::new().symlink("a", "/none").file("a/b", b""), "below what is no directory"),
        (Archive::new().symlink("a", "a").file("a/b", b""), "below what is no directory"),
        (Archive::new().file("etc", b""), "below what is no directory"),
        (Archive::new().claims(EntryType::Regular, "a", BYTES + 1), "more than a root file system may: bytes"),
        (
            Archive::new().claims(EntryType::GNULongName, "a", 3 << 20).file("a", &vec![b'a'; 3 << 20]),
            "headers or padding that are too large",
        ),
        (
            Archive::new().claims(EntryType::XHeader, "a", 3 << 20).file("a", &vec![b'a'; 3 << 20]),
            "headers or padding that are too large",
        ),
        (Archive::new().claims(EntryType::Regular, "a", 5000), "unexpected end of file"),
        (Archive::new().padded(2 << 20), "headers or padding that are too large"),
        (pax(Archive::new()), "\"sparse\", a sparse file in a form"),
        (down, "directories in directories"),
    ];
    for (archive, expected) in cases {
        let error = layers(vec![archive]).error();
        assert!(error.contains(expected), "{error}, not {expected}");
    }
}

#[test]
fn what_a_container_cannot_use_does_not_come_in() {
    let archive = Archive::new()
        .symlink("dev", "/etc")
        .symlink("proc", "..")
        .file("tmp/x", b"x")
        .file("workspace/x", b"x")
        .symlink("a", ".")
        .symlink("a/tmp", "/etc")
        .file("a/dev/x", b"x")
        .add(EntryType::Char, "null", "", 0o666, b"")
        .add(EntryType::Fifo, "fifo", "", 0o666, b"")
        .add(EntryType::Regular, "su", "", 0o6755, b"x")
        .file("usr/share/doc/kept", b"x");
    let layers = layers(vec![archive]).ok();
    for name in ["tmp/x", "workspace/x", "dev/x", "null", "fifo"] {
        layers.lacks(name);
    }
    assert!(["dev", "proc", "tmp"].iter().all(|name| fs::symlink_metadata(layers.path(name)).unwrap().is_dir()));
    assert_eq!(fs::metadata(layers.path("su")).unwrap().mode() & 0o7777, 0o755);
    layers.has("usr/share/doc/kept", "x");
}

#[test]
fn an_image_keeps_its_users_and_gets_fabers() {
    let passwd = "root:x:0:0::/:\napp:x:1000:1000::/:";
    let layers = layers(vec![Archive::new().file("etc/passwd", passwd.as_bytes()).file("etc/hosts", b"x")]).ok();
    layers.has("etc/passwd", &format!("{passwd}\nfaber:x:65000:65000:the task:/workspace:/bin/sh\n"));
    let ours = |name: &str| SKELETON.iter().find(|(known, _)| *known == name).unwrap().1;
    layers.has("etc/group", ours("group"));
    layers.has("etc/hosts", ours("hosts"));
}

#[test]
fn the_same_layers_are_the_same_tree() {
    let digest = |archives: Vec<Archive>| layers(archives).ok().result.as_ref().unwrap().digest.clone();
    let (low, high) = (|| Archive::new().file("a", b"a"), || Archive::new().file("b/.wh.a", b"").file("c", b"c"));
    assert_eq!(digest(vec![low(), high()]), digest(vec![low(), high()]));
    assert_ne!(digest(vec![low(), high()]), digest(vec![high(), low()]));
    assert_ne!(digest(vec![low()]), digest(vec![low(), Archive::new().file(".wh.a", b"")]));
}

#[test]
fn others_than_the_owner_may_write_nothing() {
    let archive = || {
        Archive::new()
            .add(EntryType::Directory, "var", "", 0o2775, b"")
            .add(EntryType::Directory, "var/tmp", "", 0o1777, b"")
            .add(EntryType::Regular, "var/open", "", 0o666, b"x")
            .add(EntryType::Regular, "var/program", "", 0o7777, b"y")
            .add(EntryType::Regular, "var/own", "", 0o600, b"z")
    };
    let modes = |root: &Path| {
        ["var", "var/tmp", "var/open", "var/program", "var/own"]
            .map(|name| fs::metadata(root.join(name)).unwrap().mode() & 0o7777)
    };
    let expected = [0o755, 0o755, 0o644, 0o755, 0o600];
    let (dir, result) = unpacked(archive());
    result.unwrap();
    assert_eq!(modes(&dir.path().join("tree")), expected);
    let layers = layers(vec![archive()]).ok();
    assert_eq!(modes(&layers.path("")), expected);
}

/// A short name that goes through links stands for a long path, and that is what is held.
#[test]
fn long_paths_are_counted_and_not_their_short_names() {
    let down = "d".repeat(90);
    // Not more: the kernel follows 40 links for a name, and counts those of an attempt that it repeats.
    let (last, mut archive) = (18, Archive::new());
    for n in 0..=last {
        let above = if n == 0 { String::new() } else { format!("s{}/", n - 1) };
        archive = archive.directory(&format!("{above}{down}")).symlink(&format!("s{n}"), &format!("{above}{down}"));
    }
    // Names of some 1 MiB; paths of 1,700 bytes each. Links to nothing leave nothing to be removed.
    for n in 0..160_000 {
        archive = archive.add(EntryType::Link, &format!("s{last}/{n}"), "x", 0o644, b"");
    }
    let error = layers(vec![archive]).error();
    assert_eq!(error, "the archive holds more than a root file system may: bytes of paths");
}
