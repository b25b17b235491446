//! Images that lie, are broken, or are no images: each is refused in a sentence, and nothing of it stays. What hostile
//! layers do in a tree is tested where trees are made (src/image/tree/tests.rs).

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::oci::{Layout, Trial, digest};

/// A layer with one file.
fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    // Not through set_path, which takes no hostile names.
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    archive.append(&header, content).unwrap();
    archive.into_inner().unwrap()
}

type Spoil = fn(&mut Layout);

fn first_layer(layout: &Layout) -> PathBuf {
    layout.blob_path(layout.manifest["layers"][0]["digest"].as_str().unwrap())
}

fn append(layout: &Layout, bytes: &[u8]) {
    let path = first_layer(layout);
    let content = [fs::read(&path).unwrap(), bytes.to_vec()].concat();
    fs::write(path, content).unwrap();
}

/// Puts `content` in place of the first layer, with a digest that is right.
fn replace(layout: &mut Layout, content: &[u8]) {
    layout.manifest["layers"][0] = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", content);
}

const CASES: &[(&str, Spoil, &str)] = &[
    (
        "another content",
        |l| fs::write(first_layer(l), layer("a", b"other....")).unwrap(),
        "has another content: sha256:",
    ),
    ("cut", |l| fs::write(first_layer(l), &layer("a", b"content")[..512]).unwrap(), "write a: sha256:"),
    ("cut after its end", |l| fs::write(first_layer(l), &layer("a", b"content")[..1536]).unwrap(), "is cut short"),
    ("longer", |l| append(l, &[0; 512]), "is longer than its manifest says"),
    ("gone", |l| fs::remove_file(first_layer(l)).unwrap(), "No such file"),
    (
        "a link out",
        |l| {
            fs::remove_file(first_layer(l)).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", first_layer(l)).unwrap();
        },
        "No such file",
    ),
    (
        "a pipe",
        |l| {
            fs::remove_file(first_layer(l)).unwrap();
            nix::unistd::mkfifo(&first_layer(l), nix::sys::stat::Mode::S_IRWXU).unwrap();
        },
        "invalid input parameter",
    ),
    (
        "another diff id",
        |l| l.config["rootfs"]["diff_ids"][0] = json!(digest(b"")),
        "holds has another content: sha256:",
    ),
    ("no diff id", |l| l.config["rootfs"]["diff_ids"] = json!([]), "its config has another number of layers"),
    ("a strange diff id", |l| l.config["rootfs"]["diff_ids"][0] = json!("md5:x"), "\"md5:x\" is not sha256's"),
    (
        "a digest that is a path",
        |l| l.manifest["layers"][0]["digest"] = json!("sha256:../../../etc/passwd"),
        "its manifest cannot be understood",
    ),
    ("sha512", |l| l.manifest["layers"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128))), "is not sha256's"),
    (
        "packed with bzip2",
        |l| replace(l, b"BZh91AY&SY"),
        "it is packed with bzip2; Faber reads gzip, zstd and plain tar",
    ),
    ("gzip that is cut", |l| replace(l, &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1]), "layer 1 of 1"),
    ("zstd that is none", |l| replace(l, &[0x28, 0xb5, 0x2f, 0xfd, 0xff, 0xff, 0xff]), "layer 1 of 1"),
    ("no tar", |l| replace(l, &[7; 1024]), "layer 1 of 1: read the archive"),
    (
        "for another machine",
        |l| l.config["architecture"] = json!("s390x"),
        "the image is for linux/s390x, and this machine is linux/",
    ),
    ("of another system", |l| l.config["os"] = json!("windows"), "the image is for windows/"),
    ("a config of nonsense", |l| l.manifest["config"] = l.blob("x/y", b"[1"), "its config cannot be understood"),
    (
        "a config that is large",
        |l| l.manifest["config"] = l.blob("x/y", &vec![b' '; (4 << 20) + 1]),
        "is larger than 4 MiB",
    ),
    (
        "a config that is deep",
        |l| l.manifest["config"] = l.blob("x/y", &[b'['; 4 << 20]),
        "its config cannot be understood",
    ),
    (
        "many layers",
        |l| {
            let layer = l.manifest["layers"][0].clone();
            l.manifest["layers"] = Value::Array(vec![layer; 501]);
        },
        "it has too many layers",
    ),
    ("no manifest", |l| l.manifest = json!({ "config": {} }), "it has either manifests or layers"),
];

#[test]
fn layouts_that_lie_are_refused_and_leave_nothing() {
    let trial = Trial::new();
    fs::write(trial.path("outside"), "untouched").unwrap();
    for (name, spoil, expected) in CASES {
        let dir = trial.path("layout");
        let mut layout = Layout::new(dir.clone(), &[&layer("a", b"content")]);
        spoil(&mut layout);
        layout.write();
        let said = trial.refused(&["layout"]);
        assert!(said.starts_with("faber: import layout: ") && said.contains(expected), "{name}: {said}");
        trial.assert_empty();
        fs::remove_dir_all(dir).unwrap();
    }
    let bad: Vec<u8> = layer("../../../../outside", b"x");
    Layout::new(trial.path("layout"), &[&layer("a", b"content"), &bad]).write();
    let said = trial.refused(&["layout"]);
    assert!(
        said.contains("layer 2 of 2: the archive holds \"../../../../outside\", which leads out of the tree"),
        "{said}"
    );
    trial.assert_empty();
    assert_eq!(fs::read_to_string(trial.path("outside")).unwrap(), "untouched");
    let names = fs::read_dir(trial.path("")).unwrap().flatten().count();
    assert_eq!(names, 3, "data, layout, outside");
}

#[test]
fn indexes_that_lead_nowhere_are_refused() {
    let trial = Trial::new();
    let layout = Layout::new(trial.path("layout"), &[]);
    let refused = |expected: &str| {
        let said = trial.refused(&["layout"]);
        assert!(said.contains(expected), "{said}");
    };
    layout.index(json!([]));
    refused("there is nothing");
    // An index in an index in an index.
    let kind = "application/vnd.oci.image.index.v1+json";
    let mut inner = layout.blob(kind, br#"{"schemaVersion":2,"manifests":[]}"#);
    for _ in 0..6 {
        inner = layout.blob(kind, json!({ "schemaVersion": 2, "manifests": [inner] }).to_string().as_bytes());
    }
    layout.index(json!([inner]));
    refused("there are too many indexes in indexes");
    fs::write(layout.dir.join("index.json"), "{").unwrap();
    refused("its manifest cannot be understood");
    fs::remove_file(layout.dir.join("index.json")).unwrap();
    refused("has no index.json and no manifest.json");
    trial.assert_empty();
}

#[test]
fn archives_that_are_none_are_refused() {
    let trial = Trial::new();
    let saved = |manifest: Value, more: &[(&str, Vec<u8>)]| {
        let mut archive = tar::Builder::new(Vec::new());
        let manifest = manifest.to_string().into_bytes();
        for (name, content) in [("manifest.json", manifest)].iter().chain(more) {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, &content[..]).unwrap();
        }
        archive.into_inner().unwrap()
    };
    let config =
        json!({ "architecture": "none", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] } }).to_string();
    let named = format!("{}.json", digest(config.as_bytes()).trim_start_matches("sha256:"));
    let image = |config: &str| json!([{ "Config": config, "RepoTags": ["a/b:1"], "Layers": ["x/layer.tar"] }]);
    let gzip = {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, b"no archive").unwrap();
        gzip.finish().unwrap()
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "has no index.json and no manifest.json"),
        (vec![b'x'; 5000], "read image.tar"),
        (gzip[..gzip.len() - 4].to_vec(), "read image.tar"),
        (gzip, "read image.tar"),
        (saved(json!({}), &[]), "manifest.json cannot be understood"),
        (saved(json!([]), &[]), "there is no image for this machine"),
        (saved(image("../../etc/passwd"), &[]), "is not sha256's"),
        (saved(image(&named), &[]), "the archive has no such file"),
        (saved(image(&named), &[(&named, b"{}".to_vec())]), "has another content"),
        (saved(image(&named), &[(&named, config.into_bytes())]), "the image is for linux/none"),
    ];
    for (content, expected) in cases {
        fs::write(trial.path("image.tar"), content).unwrap();
        let said = trial.refused(&["image.tar"]);
        assert!(said.starts_with("faber: import image.tar: ") && said.contains(expected), "{expected}: {said}");
        trial.assert_empty();
    }
    let said = |args: &[&str]| trial.refused(args);
    assert_eq!(
        said(&["./absent.tar"]),
        "faber: \"./absent.tar\" is no file, no directory and no reference to an image in a registry\n"
    );
    fs::rename(trial.path("image.tar"), trial.path("Image.tar")).unwrap();
    assert_eq!(said(&["Image.tar"]), "faber: Image.tar: --name says what to call it\n");
    assert!(said(&["Image.tar", "--name", "host"]).contains("host is the name of the image that is built in"));
    assert!(said(&["/dev/null", "--name", "x"]).contains("/dev/null is neither an OCI layout nor an archive"));
}
