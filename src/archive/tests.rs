use std::io::{Cursor, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use ::tar::{EntryType, Header};
use ::zip::ZipWriter;
use ::zip::write::SimpleFileOptions;
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds { entries: 100, bytes: 1 << 20 };
const FORMATS: [Format; 4] = [Format::Tar, Format::TarGz, Format::TarZst, Format::Zip];
const END: [u8; 1024] = [0; 1024];

/// What an archive holds, an entry a line: `644 a = its bytes`, `a/`, `a -> target`.
fn list(format: Format, archive: &[u8], below: Option<&str>, bounds: Bounds) -> Result<Vec<String>, String> {
    let below = below.map(|below| WorkspacePath::parse(below).unwrap());
    let mut contents = Vec::new();
    let entries = unpack(format, Cursor::new(archive), below.as_ref(), bounds, &mut contents);
    let line = |Entry { path, kind }| match (path.as_str(), kind) {
        (path, Kind::Directory) => format!("{path}/"),
        (path, Kind::Symlink { target }) => format!("{path} -> {target}"),
        (path, Kind::File { mode, offset, size }) => {
            let bytes = &contents[offset as usize..][..size as usize];
            format!("{mode:o} {path} = {}", String::from_utf8_lossy(bytes))
        }
    };
    entries.map(|entries| entries.into_iter().map(line).collect()).map_err(|error| error.to_string())
}

#[track_caller]
fn holds(format: Format, archive: &[u8], expected: &[&str]) {
    assert_eq!(list(format, archive, None, BOUNDS).unwrap(), expected);
}

#[track_caller]
fn refused(format: Format, archive: &[u8], expected: &str) {
    let message = list(format, archive, None, BOUNDS).unwrap_err();
    assert!(message.starts_with(expected), "{message:?} does not begin with {expected:?}");
    assert!(!message.contains('\n'));
}

/// A tar's header and content; `link` is its target.
fn member(kind: EntryType, name: &[u8], link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
    [header.as_bytes(), content, &padding].concat()
}

fn file(name: &str, content: &str) -> Vec<u8> {
    member(EntryType::Regular, name.as_bytes(), b"", content.as_bytes())
}

fn directory(name: &str) -> Vec<u8> {
    member(EntryType::Directory, name.as_bytes(), b"", b"")
}

fn symlink(name: &str, target: &str) -> Vec<u8> {
    member(EntryType::Symlink, name.as_bytes(), target.as_bytes(), b"")
}

fn hard_link(name: &str, target: &str) -> Vec<u8> {
    member(EntryType::Link, name.as_bytes(), target.as_bytes(), b"")
}

/// A pax header for the member that follows.
fn pax(key: &str, value: &str) -> Vec<u8> {
    let length = (1..).find(|length: &usize| *length == format!("{length} {key}={value}\n").len()).unwrap();
    member(EntryType::XHeader, b"pax", b"", format!("{length} {key}={value}\n").as_bytes())
}

fn tar(members: &[Vec<u8>]) -> Vec<u8> {
    [&members.concat(), &END[..]].concat()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// Names that end in '/' are directories, contents that begin with "->" targets of links.
fn zip(files: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().unix_permissions(0o755);
    for (name, content) in files {
        match content.strip_prefix("->") {
            Some(target) => writer.add_symlink(*name, target, options).unwrap(),
            None if name.ends_with('/') => writer.add_directory(*name, options).unwrap(),
            None => {
                writer.start_file(*name, options).unwrap();
                writer.write_all(content.as_bytes()).unwrap();
            }
        }
    }
    writer.finish().unwrap().into_inner()
}

/// Replaces bytes wherever they are: a zip has its names twice.
fn replaced(archive: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut archive = archive.to_vec();
    let places: Vec<usize> = (0..archive.len()).filter(|at| archive[*at..].starts_with(from)).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| archive[at..at + to.len()].copy_from_slice(to));
    archive
}

/// A zip of one entry, with a field of its only directory header set; the offsets are APPNOTE's 4.3.12.
fn zip_with(field: usize, value: &[u8]) -> Vec<u8> {
    let mut archive = zip(&[("a", "hello")]);
    let header = archive.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    archive[header + field..][..value.len()].copy_from_slice(value);
    archive
}

#[test]
fn a_tar_is_read_in_each_packing() {
    let git = member(
        EntryType::XGlobalHeader,
        b"pax_global_header",
        b"",
        b"52 comment=0123456789012345678901234567890123456789\n",
    );
    let plain = tar(&[
        git,
        directory("./"),
        directory("a/./"),
        directory("a"),
        file("./a/b", "hello"),
        file("implied/c", ""),
        file("old/", ""),
        symlink("a/up", "../implied//./c"),
        symlink("a/top", ".."),
        hard_link("d", "./a/b"),
        directory("implied"),
        pax("path", &"long/".repeat(50)),
        directory("short"),
    ]);
    let long = format!("{}/", vec!["long"; 50].join("/"));
    let expected = [
        "a/",
        "644 a/b = hello",
        "644 implied/c = ",
        "old/",
        "a/up -> ../implied//./c",
        "a/top -> ..",
        "644 d = hello",
        "implied/",
        &long,
    ];
    holds(Format::Tar, &plain, &expected);
    holds(Format::TarGz, &gz(&plain), &expected);
    holds(Format::TarZst, &zst(&plain), &expected);
    let (first, second) = plain.split_at(1000);
    holds(Format::TarGz, &[gz(first), gz(second)].concat(), &expected);
    holds(Format::TarZst, &[zst(first), zst(second)].concat(), &expected);
}

#[test]
fn a_zip_is_read() {
    let archive = zip(&[("d/", ""), ("d/a", "hello"), ("e/b", ""), ("d/link", "->../e/b")]);
    holds(Format::Zip, &archive, &["d/", "755 d/a = hello", "755 e/b = ", "d/link -> ../e/b"]);
}

#[test]
fn an_archive_may_be_empty() {
    [(Format::Tar, tar(&[])), (Format::TarGz, gz(&END)), (Format::TarZst, zst(&END)), (Format::Zip, zip(&[]))]
        .iter()
        .for_each(|(format, archive)| holds(*format, archive, &[]));
}

#[test]
fn names_are_put_below_a_directory() {
    let archive = tar(&[directory("."), file("a", "hello"), hard_link("d/b", "a"), symlink("d/up", "../../../top")]);
    let listed = list(Format::Tar, &archive, Some("x/y"), BOUNDS).unwrap();
    assert_eq!(listed, ["644 x/y/a = hello", "644 x/y/d/b = hello", "x/y/d/up -> ../../../top"]);
    let error = list(Format::Tar, &tar(&[file("/a", "")]), Some("x"), BOUNDS).unwrap_err();
    assert!(error.starts_with(r#"entry "/a": file path "/a" is absolute"#), "{error}");
    let error = list(Format::Tar, &tar(&[symlink("a", "../../b")]), Some("x"), BOUNDS).unwrap_err();
    assert_eq!(error, r#"entry "a": a symbolic link to "../../b" leads out of the workspace"#);
}

#[test]
fn modes_are_the_permissions_and_the_owner_keeps_his() {
    let mut header = Header::new_gnu();
    header.set_path("a").unwrap();
    header.set_size(0);
    for (mode, expected) in [(0o4755, "755"), (0, "600"), (0o555, "755"), (0o640, "640")] {
        header.set_mode(mode);
        header.set_cksum();
        holds(Format::Tar, &[header.as_bytes(), &END[..]].concat(), &[&format!("{expected} a = ")]);
    }
}

#[test]
fn hostile_tars_are_refused() {
    let device = |kind| member(kind, b"a", b"", b"");
    let table = [
        (vec![file("../x", "")], r#"entry "../x": file path "../x" has a '..'"#),
        (vec![file("a/../b", "")], r#"entry "a/../b": file path "a/../b" has a '..'"#),
        (vec![directory("a/..")], r#"entry "a/..": file path "a/.." has a '..'"#),
        (vec![directory("../")], r#"entry "../": file path ".." has a '..'"#),
        (vec![file("/etc/passwd", "")], r#"entry "/etc/passwd": file path "/etc/passwd" is absolute"#),
        (vec![directory("/")], r#"entry "/": file path "/" is absolute"#),
        (vec![directory("/.")], r#"entry "/.": file path "/." is absolute"#),
        (vec![file(".", "")], r#"entry ".": a file path cannot be empty"#),
        (vec![file("", "")], r#"entry "": a file path cannot be empty"#),
        (vec![symlink("a/", "b")], r#"entry "a/": file path "a/" ends in '/'"#),
        (vec![pax("path", "a\0b"), file("a", "")], r#"entry "a\0b": file path "a\0b" holds a NUL byte"#),
        (vec![pax("path", &"x".repeat(300)), file("a", "")], &format!("entry {:?}: file path", "x".repeat(100))),
        (
            vec![member(EntryType::Regular, b"a\xff", b"", b"")],
            "entry \"a\u{fffd}\": its name or the target of its link is not UTF-8",
        ),
        (
            vec![member(EntryType::Symlink, b"a", b"\xff", b"")],
            "entry \"a\": its name or the target of its link is not UTF-8",
        ),
        (
            vec![symlink("a", "/etc/passwd")],
            r#"entry "a": a symbolic link to "/etc/passwd" leads out of the workspace"#,
        ),
        (vec![symlink("a", "..")], r#"entry "a": a symbolic link to ".." leads out of the workspace"#),
        (vec![symlink("d/a", "x/../../../d/b")], r#"entry "d/a": a symbolic link to "x/../../../d/b" leads out"#),
        (vec![symlink("a", "")], r#"entry "a": the target of a symbolic link has 1 to 4095 bytes and no NUL"#),
        (vec![pax("linkpath", "b\0c"), symlink("a", "b")], r#"entry "a": the target of a symbolic link"#),
        (vec![pax("linkpath", &"b/".repeat(2048)), symlink("a", "b")], r#"entry "a": the target of a symbolic link"#),
        (vec![hard_link("a", "b")], r#"entry "a": a hard link to "b", which is no file before it in the archive"#),
        (vec![hard_link("a", "a")], r#"entry "a": a hard link to "a", which is no file before"#),
        (vec![hard_link("a", "b"), file("b", "")], r#"entry "a": a hard link to "b", which is no file before"#),
        (vec![symlink("b", "c"), hard_link("a", "b")], r#"entry "a": a hard link to "b", which is no file before"#),
        (vec![hard_link("a", "/etc/passwd")], r#"entry "a": file path "/etc/passwd" is absolute"#),
        (vec![device(EntryType::Char)], r#"entry "a": it is a device; files, directories and links are read"#),
        (vec![device(EntryType::Block)], r#"entry "a": it is a device"#),
        (vec![device(EntryType::Fifo)], r#"entry "a": it is a FIFO"#),
        (vec![device(EntryType::new(b'V'))], r#"entry "a": it is of an unknown kind"#),
        (vec![pax("GNU.sparse.major", "1"), file("a", "")], r#"entry "a": it is a sparse file"#),
        (vec![file("a", ""), file("./a", "")], r#"entry "./a": the archive has something else at its path"#),
        (vec![file("a", ""), directory("a")], r#"entry "a": the archive has something else at its path"#),
        (vec![directory("a"), symlink("a", "b")], r#"entry "a": the archive has something else at its path"#),
        (
            vec![file("a/b", ""), file("a-", ""), file("a", "")],
            r#"entry "a": the archive has something else at its path"#,
        ),
        (
            vec![file("a", ""), file("a-", ""), file("a/b/c", "")],
            r#"entry "a/b/c": it lies below "a", which is a file or"#,
        ),
        (vec![symlink("d/a", "b"), file("d/a/b", "")], r#"entry "d/a/b": it lies below "d/a", which is a file or"#),
        (
            vec![symlink("a", "b"), directory("a/b")],
            r#"entry "a/b": it lies below "a", which is a file or a symbolic link"#,
        ),
        (vec![vec![1; 512]], "not a tar: "),
    ];
    table.iter().for_each(|(members, expected)| refused(Format::Tar, &tar(members), expected));
}

#[test]
fn hostile_zips_are_refused() {
    let plain = zip(&[("aa/b", "hello"), ("link", "->aa/b")]);
    let mode = |mode: u32| zip_with(38, &(mode << 16).to_le_bytes());
    let table = [
        (replaced(&plain, b"aa/b", b"../b"), r#"entry "../b": file path "../b" has a '..'"#),
        (replaced(&plain, b"aa/b", b"/a/b"), r#"entry "/a/b": file path "/a/b" is absolute"#),
        (replaced(&plain, b"aa/b", b"a\0/b"), r#"entry "a\0/b": file path "a\0/b" holds a NUL byte"#),
        (
            replaced(&plain, b"aa/b", b"a\xff/b"),
            "entry \"a\u{fffd}/b\": its name or the target of its link is not UTF-8",
        ),
        (replaced(&plain, b"aa/b", b"link"), "not a zip: a name is in its directory twice"),
        (zip(&[("a", "->/etc/passwd")]), r#"entry "a": a symbolic link to "/etc/passwd" leads out of the workspace"#),
        (
            zip(&[("a", &format!("->{}", "b/".repeat(9000)))]),
            r#"entry "a": the target of a symbolic link has 1 to 4095"#,
        ),
        (zip(&[("a", "x"), ("a/b", "y")]), r#"entry "a/b": it lies below "a""#),
        (zip(&[("a/b", "x"), ("a", "y")]), r#"entry "a": the archive has something else at its path"#),
        (zip(&[("a", "->b"), ("a/", "")]), r#"entry "a/": the archive has something else at its path"#),
        (mode(0o010_644), r#"entry "a": it is a device, FIFO or socket; files, directories and links are read"#),
        (mode(0o020_644), r#"entry "a": it is a device"#),
        (zip_with(8, &[1]), r#"entry "a": it is encrypted"#),
        (zip_with(10, &[12]), r#"entry "a": compression method not supported: 12"#),
        (zip_with(16, &[1, 2, 3, 4]), r#"entry "a": Invalid checksum"#),
        (zip_with(24, &[9]), r#"entry "a": it has 5 bytes, and 9 by its header"#),
        (zip_with(24, &[4]), r#"entry "a": File is larger than its declared uncompressed size"#),
        (zip_with(20, &[2]), r#"entry "a": "#),
        (zip_with(42, &[255, 255]), r#"entry "a": "#),
        ([b"junk", &plain[..]].concat(), "not a zip: "),
        (plain[..plain.len() - 1].to_vec(), "not a zip: "),
        (plain[..40].to_vec(), "not a zip: "),
        (vec![], "not a zip: "),
    ];
    table.iter().for_each(|(archive, expected)| refused(Format::Zip, archive, expected));
}

#[test]
fn what_is_cut_short_is_refused() {
    let plain = tar(&[file("a", "hello"), file("b", "world")]);
    // At any byte, and right between two members.
    for length in (0..plain.len() - END.len() + 1).step_by(64) {
        assert!(list(Format::Tar, &plain[..length], None, BOUNDS).is_err(), "{length}");
    }
    refused(Format::Tar, &plain[..1024], "not a tar: it has no end mark, so it may be cut short");
    refused(Format::Tar, &plain[..515], r#"entry "a": it has 3 bytes, and 5 by its header"#);
    let longer = [pax("size", "1000"), file("a", "hello")].concat();
    refused(Format::Tar, &longer, r#"entry "a": it has 512 bytes, and 1000 by its header"#);
    for (format, packed) in
        [(Format::TarGz, gz(&plain)), (Format::TarZst, zst(&plain)), (Format::Zip, zip(&[("a", "b")]))]
    {
        for length in 0..packed.len() {
            assert!(list(format, &packed[..length], None, BOUNDS).is_err(), "{format} of {length}");
        }
    }
}

#[test]
fn garbage_at_the_end_of_packed_tars_is_refused() {
    let plain = tar(&[file("a", "hello")]);
    refused(
        Format::TarGz,
        &[&gz(&plain), &b"garbage, and more of it"[..]].concat(),
        "not a tar.gz: invalid gzip header",
    );
    refused(
        Format::TarZst,
        &[&zst(&plain), &b"garbage, and more of it"[..]].concat(),
        "not a tar.zst: Unknown frame descriptor",
    );
    let mut wrong = gz(&plain);
    let checksum = wrong.len() - 8;
    wrong[checksum] ^= 1;
    refused(Format::TarGz, &wrong, "not a tar.gz: corrupt gzip stream does not have a matching checksum");
}

#[test]
fn no_format_is_taken_for_another() {
    let plain = tar(&[file("a", "hello")]);
    let archives = [plain.clone(), gz(&plain), zst(&plain), zip(&[("a", "hello")])];
    for (archive, own) in archives.iter().zip(FORMATS) {
        for other in FORMATS.into_iter().filter(|other| *other != own) {
            refused(other, archive, &format!("not a {other}: "));
        }
    }
}

#[test]
fn a_zst_that_asks_for_much_memory_is_refused() {
    let plain = tar(&[file("a", "hello")]);
    let packed = |window| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window).unwrap();
        encoder.write_all(&plain).unwrap();
        encoder.finish().unwrap()
    };
    holds(Format::TarZst, &packed(23), &["644 a = hello"]);
    refused(Format::TarZst, &packed(24), "not a tar.zst: Frame requires too much memory for decoding");
}

#[test]
fn more_entries_than_allowed_are_refused() {
    let names: Vec<String> = (0..101).map(|number| format!("f{number}")).collect();
    let members: Vec<Vec<u8>> = names.iter().map(|name| file(name, "")).collect();
    assert_eq!(list(Format::Tar, &tar(&members[..100]), None, BOUNDS).unwrap().len(), 100);
    refused(Format::Tar, &tar(&members), "more than 100 entries");
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    assert_eq!(list(Format::Zip, &zip(&files[..100]), None, BOUNDS).unwrap().len(), 100);
    refused(Format::Zip, &zip(&files), "more than 100 entries");
}

#[test]
fn more_bytes_than_allowed_are_refused() {
    let bounds = |bytes| Bounds { entries: 10, bytes };
    let archives = [
        (Format::Tar, tar(&[file("a", "hello"), hard_link("b", "a")])),
        (Format::Zip, zip(&[("a", "hello"), ("b", "world")])),
    ];
    for (format, archive) in archives {
        assert_eq!(list(format, &archive, None, bounds(10)).unwrap().len(), 2);
        assert_eq!(list(format, &archive, None, bounds(9)).unwrap_err(), "unpacked it is more than 9 bytes");
    }
}

/// A gz of `start` and a gigabyte of zeros, in many members.
fn gigabyte(start: &[u8]) -> Vec<u8> {
    [gz(start), gz(&vec![0; 16 << 20]).repeat(64)].concat()
}

#[test]
fn bombs_end_at_the_bound() {
    let head = |kind, size| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("a").unwrap();
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let large = "not a tar.gz: it has headers or padding that are too large";
    let table = [
        (gigabyte(&head(EntryType::Regular, 1 << 30)), "unpacked it is more than 1048576 bytes"),
        (gigabyte(&head(EntryType::Directory, 1 << 30)), large),
        (gigabyte(&head(EntryType::XHeader, 1 << 30)), large),
        (gigabyte(&head(EntryType::GNULongName, 1 << 30)), large),
        (gigabyte(&[]), large),
        (gz(&tar(&vec![directory("./"); 10_000])), large),
        (gz(&tar(&vec![[pax("comment", &"x".repeat(8000)), directory("./")].concat(); 300])), large),
    ];
    for (archive, expected) in &table {
        let start = Instant::now();
        refused(Format::TarGz, archive, expected);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
    let zeros = "\0".repeat(32 << 20);
    refused(Format::Zip, &zip(&[("a", &zeros)]), "unpacked it is more than 1048576 bytes");
}

#[test]
fn zips_whose_entries_overlap_are_read_no_further_than_their_length() {
    // Blocks of deflate that hold nothing, in many entries: work without a byte.
    let nothing = [0, 0, 0, 255, 255].repeat(100_000);
    let local =
        |name: u8| [&b"PK\x03\x04\x14\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0"[..], &[name]].concat();
    let mut archive = [&local(b'a'), &nothing[..], &[1, 0, 0, 255, 255]].concat();
    let (directory, size) = (archive.len() as u32, archive.len() as u32 - 31);
    for name in b'a'..=b'z' {
        archive.extend(b"PK\x01\x02\x14\0\x14\0\0\0\x08\0\0\0\0\0\0\0\0\0");
        archive.extend(size.to_le_bytes());
        archive.extend(b"\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        archive.push(name);
    }
    let length = archive.len() as u32 - directory;
    archive.extend(b"PK\x05\x06\0\0\0\0\x1a\0\x1a\0");
    archive.extend([length.to_le_bytes(), directory.to_le_bytes()].concat());
    archive.extend(b"\0\0");
    refused(Format::Zip, &archive, r#"entry "b": its entries overlap"#);
}

#[test]
fn the_directory_of_a_zip_is_bounded_before_it_is_held() {
    // By zip64, any number of entries.
    let locator = b"PK\x06\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0";
    let end = b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0";
    refused(Format::Zip, &[&locator[..], end].concat(), "not a zip: its directory is one of zip64");
    // More of them than bounded, and with large comments.
    let header = [&b"PK\x01\x02"[..], &[0; 28], &[0xff, 0xff], &[0; 12]].concat();
    let directory = [header, vec![b'x'; 0xffff]].concat().repeat(100);
    let end = [&b"PK\x05\x06\0\0\0\0\x64\0\x64\0"[..], &(directory.len() as u32).to_le_bytes(), &[0; 6]].concat();
    refused(Format::Zip, &[directory, end].concat(), "not a zip: its directory is too large");
}

#[test]
fn contents_that_cannot_be_written_are_another_error() {
    let archive = tar(&[file("a", "hello")]);
    let error = unpack(Format::Tar, Cursor::new(archive), None, BOUNDS, &mut &mut [0; 3][..]).unwrap_err();
    assert!(matches!(error, ArchiveError::Write(_)), "{error}");
    assert_eq!(error.to_string(), "write the files of the archive: failed to write whole buffer");
}

/// Makes an archive by a shell command, in a directory with a few files.
fn made_by(command: &str) -> Vec<u8> {
    let script = format!(
        "set -e; cd $(mktemp -d); mkdir -p t/d/empty; cd t; printf hello > d/a; chmod 750 d/a; printf x > b; chmod 640 b;
        ln -s d/a link; ln b d/hard; ({command}) >&2; cat ../out; rm -r $(dirname $PWD)"
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}; scripts/test installs what is missing");
    output.stdout
}

#[test]
fn archives_of_the_usual_tools_are_read() {
    let tools = [
        (Format::Tar, "tar cf ../out ."),
        (Format::Tar, "tar cf ../out --format=pax *"),
        (Format::Tar, "tar cf ../out --format=v7 b d link"),
        (Format::Tar, "tar cf ../out -b 1024 ."),
        (Format::Tar, "python3 -m tarfile -c ../out b d link"),
        (Format::TarGz, "tar czf ../out ."),
        (Format::TarZst, "tar cf ../out --zstd ."),
        (Format::TarZst, "tar cf - . | zstd -19 > ../out"),
        (Format::Zip, "zip -qry ../out.zip . && mv ../out.zip ../out"),
        (Format::Zip, "zip -qry - . > ../out"),
        (Format::Zip, "zip -qry0 ../out.zip . && echo a comment | zip -z ../out.zip && mv ../out.zip ../out"),
        (Format::Zip, "rm link && python3 -m zipfile -c ../out b d"),
    ];
    for (format, command) in tools {
        let archive = made_by(command);
        let mut listed = list(format, &archive, None, BOUNDS).unwrap_or_else(|error| panic!("{command}: {error}"));
        listed.sort();
        let link = ["link -> d/a"].iter().filter(|_| !command.starts_with("rm link"));
        let expected = ["640 b = x", "640 d/hard = x", "750 d/a = hello", "d/", "d/empty/"];
        assert_eq!(listed, expected.iter().chain(link).copied().collect::<Vec<_>>(), "{command}");
    }
}

#[test]
fn a_git_archive_is_read() {
    let command = "git init -q . && git add . && git -c user.name=x -c user.email=x@x commit -qm x && \
        git archive --format=tar.gz -o ../out HEAD";
    let listed = list(Format::TarGz, &made_by(command), None, BOUNDS).unwrap();
    assert_eq!(listed, ["664 b = x", "d/", "775 d/a = hello", "664 d/hard = x", "link -> d/a"]);
}

/// Small archives of all kinds of entries, to be damaged.
fn archive(format: Format) -> Vec<u8> {
    let plain =
        tar(&[directory("d"), file("d/a", "hello"), symlink("l", "d/a"), pax("path", "long"), hard_link("h", "d/a")]);
    match format {
        Format::Tar => plain,
        Format::TarGz => gz(&plain),
        Format::TarZst => zst(&plain),
        Format::Zip => zip(&[("d/", ""), ("d/a", "hello"), ("l", "->d/a")]),
    }
}

/// What was read has to be in bounds, whatever it came from.
fn check(format: Format, bytes: &[u8]) {
    let mut contents = Vec::new();
    let Ok(entries) = unpack(format, Cursor::new(bytes), None, BOUNDS, &mut contents) else { return };
    assert!(contents.len() as u64 <= BOUNDS.bytes && entries.len() <= BOUNDS.entries);
    for entry in entries {
        if let Kind::File { mode, offset, size } = entry.kind {
            assert!(offset + size <= contents.len() as u64 && mode & !0o777 == 0);
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        FORMATS.into_iter().for_each(|format| check(format, &bytes));
    }

    #[test]
    fn damaged_archives_never_panic(damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        for format in FORMATS {
            let mut bytes = archive(format);
            damage.iter().for_each(|(at, byte)| { let at = at.index(bytes.len()); bytes[at] = *byte; });
            check(format, &bytes);
        }
    }

    #[test]
    fn damaged_tar_headers_never_panic(damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = archive(Format::Tar);
        damage.iter().for_each(|(at, byte)| { let at = at.index(bytes.len()); bytes[at] = *byte; });
        for block in bytes.chunks_exact_mut(512).filter(|block| block.iter().any(|byte| *byte != 0)) {
            let mut header = Header::from_byte_slice(block).clone();
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        check(Format::Tar, &bytes);
    }
}
