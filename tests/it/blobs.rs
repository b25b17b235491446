//! PUT, GET, HEAD and DELETE /blobs: kept once, verified, counted, and gone when they are not used.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::content::{bash, sha256, task};
use crate::support::{Answer, Server, eventually, memory_of, new_key};

const NO_LIMIT: (&str, &str) = ("FABER_RATE_LIMIT__ENABLED", "false");

fn open(env: &[(&str, &str)]) -> Server {
    Server::start(&["--open-mode"], &[&[NO_LIMIT], env].concat())
}

fn name(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

fn put(server: &Server, path: &str, bytes: &[u8]) -> Answer {
    server.send("PUT", path, bytes, &[])
}

fn get(server: &Server, blob: &str, headers: &[(&str, &str)]) -> Answer {
    server.send("GET", &format!("/blobs/{blob}"), &[], headers)
}

/// Whether there is room for so many bytes, of which none is sent.
fn has_room(server: &Server, bytes: usize) -> bool {
    let mut stream = TcpStream::connect(server.url().strip_prefix("http://").unwrap()).unwrap();
    write!(stream, "PUT /blobs HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes}\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert!(matches!(&status, b"HTTP/1.1 100" | b"HTTP/1.1 507"), "{}", String::from_utf8_lossy(&status));
    status.ends_with(b"100")
}

/// A directory for a server's data, which it shares with the next.
pub struct Data(TempDir);

impl Data {
    pub fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self(dir)
    }

    pub fn path(&self) -> String {
        self.0.path().join("data").to_str().unwrap().to_owned()
    }

    pub fn server(&self, env: &[(&str, &str)]) -> Server {
        let path = self.path();
        open(&[&[("FABER_DATA_DIR", path.as_str())], env].concat())
    }

    /// Files of blobs, and of uploads.
    fn files(&self) -> usize {
        fn count(dir: &Path) -> usize {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
        }
        count(&self.0.path().join("data/blobs"))
    }
}

#[test]
fn a_blob_is_put_once_and_read_by_its_digest() {
    let server = Server::start_open();
    let bytes = b"any\0bytes\xff";
    let blob = name(bytes);
    let info = json!({ "blob": blob, "size": bytes.len() });
    let first = put(&server, "/blobs", bytes);
    assert_eq!((first.status, first.json()), (201, info.clone()));
    let again = put(&server, "/blobs", bytes);
    assert_eq!((again.status, again.json()), (200, info.clone()));
    let named = put(&server, &format!("/blobs/{blob}"), bytes);
    assert_eq!((named.status, named.json()), (200, info));

    let read = get(&server, &blob, &[]);
    assert_eq!((read.status, &read.bytes[..], read.header("content-length")), (200, &bytes[..], "10"));
    assert_eq!((read.header("accept-ranges"), read.header("content-type")), ("bytes", "application/octet-stream"));
    let head = server.send("HEAD", &format!("/blobs/{blob}"), &[], &[]);
    assert_eq!((head.status, head.header("content-length"), head.bytes.len()), (200, "10", 0));

    let delete = || server.send("DELETE", &format!("/blobs/{blob}"), &[], &[]);
    assert_eq!(delete().status, 204);
    let details = format!("You have no blob {blob}");
    delete().is_error(404, "Not found", &details);
    get(&server, &blob, &[]).is_error(404, "Not found", &format!("There is no blob {blob}"));
    assert_eq!(server.send("HEAD", &format!("/blobs/{blob}"), &[], &[]).status, 404);
    assert_eq!(put(&server, &format!("/blobs/{blob}"), bytes).status, 201);
    let empty = put(&server, "/blobs", b"");
    assert_eq!((empty.status, empty.json()), (201, json!({ "blob": name(b""), "size": 0 })));
    assert_eq!(server.blob(&name(b"")), b"");
}

#[test]
fn a_part_of_a_blob_is_read() {
    let server = Server::start_open();
    let bytes: Vec<u8> = (0..600_000u32).map(|at| (at % 251) as u8).collect();
    let blob = server.put(&bytes);
    let table = [
        ("bytes=0-0", 0, 1),
        ("bytes=1-", 1, 600_000),
        ("bytes=-7", 599_993, 600_000),
        ("bytes=100000-499999", 100_000, 500_000),
        ("bytes=599999-9999999", 599_999, 600_000),
    ];
    for (range, start, end) in table {
        let part = get(&server, &blob, &[("Range", range)]);
        assert_eq!(
            (part.status, part.header("content-range")),
            (206, &*format!("bytes {start}-{}/600000", end - 1)),
            "{range}"
        );
        assert!(part.bytes == bytes[start..end], "{range}");
    }
    let beyond = get(&server, &blob, &[("Range", "bytes=600000-")]);
    beyond.is_error(416, "Range not satisfiable", "the blob has 600000 bytes");
    for nonsense in ["bytes=0-1,5-6", "lines=1-2"] {
        let whole = get(&server, &blob, &[("Range", nonsense)]);
        assert!((whole.status, whole.bytes.len()) == (200, 600_000), "{nonsense}: {}", whole.status);
    }
}

#[test]
fn other_bytes_than_the_name_says_are_refused_and_leave_nothing() {
    let data = Data::new();
    let server = data.server(&[]);
    let blob = name(b"these");
    let refused = put(&server, &format!("/blobs/{blob}"), b"others");
    refused.is_error(400, "Validation error", &format!("expected {blob}, but the bytes are {}", name(b"others")));
    for blob in [blob, name(b"others")] {
        assert_eq!(get(&server, &blob, &[]).status, 404);
    }
    assert_eq!(data.files(), 0);
    for no_name in ["sha256:12", "md5:0", "sha256:..%2f..", &name(b"x").to_uppercase()] {
        assert_eq!(put(&server, &format!("/blobs/{no_name}"), b"x").status, 400, "{no_name}");
        assert_eq!(get(&server, no_name, &[]).status, 400, "{no_name}");
    }
}

#[test]
fn what_is_too_large_is_413_and_what_has_no_room_507_with_the_figures() {
    let data = Data::new();
    let env = [("FABER_BLOBS__EACH", "1000"), ("FABER_BLOBS__PER_KEY", "2000"), ("FABER_BLOBS__TOTAL", "10000")];
    let server = data.server(&env);
    assert_eq!(put(&server, "/blobs", &[1; 1000]).status, 201);
    let large = put(&server, "/blobs", &[2; 1001]);
    large.is_error(413, "Request too large", "a blob may have 1000 bytes, and this one has more");
    assert_eq!(put(&server, "/blobs", &[3; 999]).status, 201);
    let full = put(&server, "/blobs", &[4; 2]);
    full.is_error(507, "Insufficient storage", "no room for 2 bytes: your blobs have 1999 of 2000 bytes");
    assert_eq!(put(&server, "/blobs", &[5; 1]).status, 201);
    // What is there already needs no more room than what is deleted gives back.
    assert_eq!(server.send("DELETE", &format!("/blobs/{}", name(&[1; 1000])), &[], &[]).status, 204);
    assert_eq!(put(&server, "/blobs", &[6; 1000]).status, 201);
    // Without its length it is found out as it comes.
    let mut stream = TcpStream::connect(server.url().strip_prefix("http://").unwrap()).unwrap();
    let chunk = format!("258\r\n{}\r\n", "x".repeat(0x258));
    let head = "PUT /blobs HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(format!("{head}{chunk}{chunk}0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 413 ") || answer.starts_with("HTTP/1.1 507 "), "{answer}");
    // Three blobs, and who has them.
    eventually("the upload is given up", || data.files() == 6);
}

#[test]
fn an_output_that_has_no_room_as_a_blob_is_left_out_with_the_reason() {
    let env = [("FABER_BLOBS__PER_KEY", "150000"), ("FABER_OUTPUTS__INLINE_LIMIT", "1000")];
    let server = open(&env);
    let script = "head -c 100000 /dev/zero >a; head -c 100001 /dev/zero >b; echo c >c";
    let result = server.run(bash(script, json!({ "outputs": ["*"] })));
    let files: Vec<&String> = result["files"].as_object().unwrap().keys().collect();
    assert_eq!((&result["status"], files.len()), (&json!("Success"), 2), "{result}");
    let omitted = &result["omitted_outputs"];
    assert_eq!(omitted["count"], 1);
    assert!(omitted["files"]["b"].as_str().unwrap().contains("your blobs have 100000 of 150000 bytes"), "{result}");
}

#[test]
fn all_keys_share_the_whole_and_each_has_a_quota_of_its_own() {
    let ((one, keys), (other, others)) = (new_key(), new_key());
    let keys = format!("{}, {}", keys.trim_end_matches(']'), others.trim_start_matches('[').replace("class", "judge"));
    let env = [NO_LIMIT, ("FABER_AUTH__KEYS", &keys), ("FABER_BLOBS__PER_KEY", "1000"), ("FABER_BLOBS__TOTAL", "1500")];
    let server = Server::start(&[], &env);
    let (one, other) = (format!("Bearer {one}"), format!("Bearer {other}"));
    let ask =
        |key: &str, method: &str, path: &str, bytes: &[u8]| server.send(method, path, bytes, &[("Authorization", key)]);
    assert_eq!(put(&server, "/blobs", b"x").status, 401);
    assert_eq!(get(&server, &name(b"x"), &[]).status, 401);

    let shared = format!("/blobs/{}", name(&[1; 800]));
    assert_eq!(ask(&one, "PUT", "/blobs", &[1; 800]).status, 201);
    let full = ask(&one, "PUT", "/blobs", &[2; 300]);
    full.is_error(507, "Insufficient storage", "no room for 300 bytes: your blobs have 800 of 1000 bytes");
    let full = ask(&other, "PUT", "/blobs", &[2; 900]);
    full.is_error(507, "Insufficient storage", "no room for 900 bytes: all blobs together have 800 of 1500 bytes");
    // To know its digest is to read it, not to own it.
    assert!(ask(&other, "GET", &shared, &[]).bytes == [1; 800]);
    assert_eq!(ask(&other, "DELETE", &shared, &[]).status, 404);
    assert_eq!(ask(&one, "HEAD", &shared, &[]).status, 200);
    // In both accounts it goes with the last.
    assert_eq!(ask(&other, "PUT", &shared, &[1; 700]).status, 400);
    assert_eq!(ask(&other, "DELETE", &shared, &[]).status, 404);
}

#[test]
fn a_blob_of_two_keys_goes_with_the_second() {
    let ((one, keys), (other, others)) = (new_key(), new_key());
    let keys = format!("{}, {}", keys.trim_end_matches(']'), others.trim_start_matches('[').replace("class", "judge"));
    let server = Server::start(&[], &[NO_LIMIT, ("FABER_AUTH__KEYS", &keys)]);
    let (one, other) = (format!("Bearer {one}"), format!("Bearer {other}"));
    let ask = |key: &str, method: &str, path: &str, bytes: &[u8]| {
        server.send(method, path, bytes, &[("Authorization", key)]).status
    };
    let path = format!("/blobs/{}", name(b"shared"));
    let put = [ask(&one, "PUT", "/blobs", b"shared"), ask(&other, "PUT", "/blobs", b"shared")];
    assert_eq!(put, [201, 200]);
    assert_eq!(
        [ask(&one, "DELETE", &path, &[]), ask(&one, "GET", &path, &[]), ask(&one, "DELETE", &path, &[])],
        [204, 200, 404]
    );
    assert_eq!([ask(&other, "DELETE", &path, &[]), ask(&other, "GET", &path, &[])], [204, 404]);
}

#[test]
fn half_an_upload_leaves_nothing() {
    let data = Data::new();
    let server = data.server(&[("FABER_BLOBS__PER_KEY", "1000000")]);
    for head in ["Content-Length: 900000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\nDBBA0\r\n"] {
        let mut stream = TcpStream::connect(server.url().strip_prefix("http://").unwrap()).unwrap();
        stream.write_all(format!("PUT /blobs HTTP/1.1\r\nHost: a\r\n{head}").as_bytes()).unwrap();
        stream.write_all(&[b'x'; 600_000]).unwrap();
        eventually("it takes room", || !has_room(&server, 600_000));
        drop(stream);
        eventually("its room is given back", || has_room(&server, 600_000));
    }
    assert_eq!(get(&server, &name(&[b'x'; 600_000]), &[]).status, 404);
    assert_eq!(data.files(), 0);
}

#[test]
fn a_blob_that_is_not_used_goes_and_one_that_is_used_stays() {
    let data = Data::new();
    let server = data.server(&[("FABER_BLOBS__LIFETIME", "1s")]);
    let [unused, read, taken] = [b"unused".as_slice(), b"read", b"taken"].map(|bytes| server.put(bytes));
    let gone = |blob: &str| get(&server, blob, &[("Range", "bytes=0-0")]).status == 404;
    // To look whether it is there would be a use: the directory tells.
    let file = |blob: &str| Path::new(&data.path()).join("blobs/data").join(&blob[7..9]).join(&blob[7..]).exists();
    eventually("the unused one goes", || {
        let cat = task("cat", &[], json!({ "stdin": { "blob": taken } }));
        assert_eq!(server.run(cat)["stdout"], "taken");
        assert!(!gone(&read));
        !file(&unused)
    });
    assert!(gone(&unused));
    eventually("then the others do", || !file(&read) && !file(&taken));
    assert_eq!(put(&server, "/blobs", b"unused").status, 201);
}

#[test]
fn blobs_survive_a_restart_and_so_does_their_account() {
    let data = Data::new();
    let env = [("FABER_BLOBS__PER_KEY", "1000")];
    let mut server = data.server(&env);
    let blob = server.put(&[7; 400]);
    assert_eq!(server.stop(), Some(0));
    let mut server = data.server(&env);
    assert!(server.blob(&blob) == [7; 400]);
    assert_eq!(put(&server, "/blobs", &[7; 400]).status, 200);
    let full = put(&server, "/blobs", &[8; 601]);
    full.is_error(507, "Insufficient storage", "no room for 601 bytes: your blobs have 400 of 1000 bytes");
    // After a kill in the middle of an upload, too.
    let mut stream = TcpStream::connect(server.url().strip_prefix("http://").unwrap()).unwrap();
    stream.write_all(b"PUT /blobs HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
    eventually("it takes room", || !has_room(&server, 597));
    let family = crate::support::Family::of(server.pid());
    server.kill();
    family.assert_gone();
    let server = data.server(&env);
    assert_eq!(put(&server, "/blobs", &[8; 600]).status, 201);
    assert!(server.blob(&blob) == [7; 400]);
}

#[test]
fn a_damaged_blob_is_never_served() {
    let data = Data::new();
    let server = data.server(&[]);
    let blob = server.put(b"whole");
    let file = Path::new(&data.path()).join("blobs/data").join(&blob[7..9]).join(&blob[7..]);
    fs::write(&file, "who").unwrap();
    assert_eq!(get(&server, &blob, &[]).status, 404);
    let result = server.run(task("cat", &[], json!({ "stdin": { "blob": blob } })));
    assert_eq!(
        (&result["status"], &result["error"]),
        (&json!("NotExecuted"), &json!(format!("there is no blob {blob}")))
    );
    assert_eq!(put(&server, "/blobs", b"whole").status, 201);
    assert_eq!(server.blob(&blob), b"whole");
}

/// A task may take it as input, as a file and in an archive, and cannot change it.
#[test]
fn a_task_takes_a_blob_and_cannot_change_it() {
    let server = Server::start_open();
    let bytes = vec![b'b'; 300_000];
    let blob = server.put(&bytes);
    let script = "wc -c <f; cmp f - && echo more >>f; wc -c <f";
    let stdin = json!({ "blob": blob });
    let result = server.run(bash(script, json!({ "stdin": stdin, "files": { "f": stdin } })));
    assert_eq!(result["stdout"], "300000\n300005\n", "{result}");
    assert!(server.blob(&blob) == bytes);
}

#[test]
fn a_client_that_sends_much_hears_why_it_was_refused() {
    let server = open(&[("FABER_BLOBS__EACH", "4M"), ("FABER_BLOBS__PER_KEY", "4M")]);
    for _ in 0..10 {
        assert_eq!(put(&server, "/blobs", &vec![0; 8 << 20]).status, 413);
    }
    // Who asks first is told before it sends anything.
    let mut stream = TcpStream::connect(server.url().strip_prefix("http://").unwrap()).unwrap();
    let head = "PUT /blobs HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

/// Front and runners hold what they always do, whatever passes through.
#[test]
fn large_blobs_pass_through_without_being_held() {
    let server = open(&[("FABER_EXECUTION__CONCURRENCY", "1")]);
    let bytes: Vec<u8> = (0..16u32 << 20).flat_map(|at| at.wrapping_mul(2654435761).to_le_bytes()).collect();
    let limits = json!({ "memory_limit": 1u64 << 30 });
    let ask = |blob: &str| {
        let more = json!({ "stdin": { "blob": blob }, "outputs": ["out"], "resource_limits": limits });
        server.run(bash("cat >out", more))
    };
    // Once with little, so that everything there is has been used.
    let small = server.put(&bytes[..2 << 20]);
    assert_eq!(ask(&small)["files"]["out"]["blob"], small);
    let front = server.front();
    let memory = || {
        let runners = server.processes("runner").into_iter().map(|pid| memory_of(pid, "VmHWM"));
        [memory_of(front, "VmHWM"), runners.max().unwrap()]
    };
    let before = memory();
    let blob = server.put(&bytes);
    let result = ask(&blob);
    assert_eq!(
        (&result["status"], &result["files"]["out"]["blob"]),
        (&Value::from("Success"), &json!(blob)),
        "{result}"
    );
    let part = get(&server, &blob, &[("Range", "bytes=-10")]);
    assert!(part.bytes == bytes[bytes.len() - 10..]);
    assert!(server.blob(&blob) == bytes);
    for (now, then) in memory().into_iter().zip(before) {
        assert!(now - then <= 8 << 20, "{} bytes more than before", now - then);
    }
}
