//! LibreChat's code API, as its own client calls it.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Answer, Server, memory_of, new_key, npm};

const ON: (&str, &str) = ("FABER_COMPAT__LIBRECHAT", "true");

fn server() -> Server {
    Server::with_languages_and(&[ON])
}

fn post(server: &Server, body: &Value) -> Answer {
    server.post_to("/v1/exec", &body.to_string(), &[])
}

fn exec(server: &Server, lang: &str, code: &str, more: Value) -> Value {
    let mut body = json!({ "lang": lang, "code": code });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = post(server, &body);
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// A form of fields, those with a file's name being files.
fn form(fields: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file, content) in fields {
        body.extend_from_slice(format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"").as_bytes());
        let file = file.map(|file| format!("; filename=\"{file}\"\r\nContent-Type: text/csv"));
        body.extend_from_slice(file.unwrap_or_default().as_bytes());
        body.extend_from_slice(b"\r\n\r\n");
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--XX--\r\n");
    body
}

fn upload(server: &Server, path: &str, fields: &[(&str, Option<&str>, &[u8])]) -> Answer {
    server.send("POST", path, &form(fields), &[("Content-Type", "multipart/form-data; boundary=XX")])
}

/// A file as a request has it.
fn reference(session: &Value, id: &Value, name: &str) -> Value {
    json!({ "id": id, "storage_session_id": session, "name": name, "resource_id": "u", "kind": "user" })
}

fn error(answer: Answer) -> (u16, String) {
    (answer.status, answer.json()["error"].as_str().unwrap().to_owned())
}

#[test]
fn it_is_not_there_unless_it_is_asked_for() {
    let server = Server::start_open();
    post(&server, &json!({})).is_error(404, "Not found", "There is nothing at this path");
    assert_eq!(server.get("/v1/health").status, 404);
}

#[test]
fn a_program_is_run_and_told() {
    let server = server();
    assert_eq!(server.get("/v1/health").json(), json!({ "status": "ok" }));
    let told = exec(
        &server,
        "py",
        "import sys, os\nprint(sys.argv[1:], os.getcwd())",
        json!({ "args": ["/mnt/data/x", "b"], "files": null }),
    );
    assert_eq!(told["stdout"], "['/workspace/x', 'b'] /workspace\n");
    assert_eq!((&told["stderr"], &told["code"], &told["files"]), (&json!(""), &json!(0), &json!([])));
    assert_eq!((&told["status"], &told["signal"], &told["message"]), (&Value::Null, &Value::Null, &Value::Null));
    let session = told["session_id"].as_str().unwrap();
    let is_its = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    assert!(session.len() == 21 && session.chars().all(is_its) && told["storage_session_id"] == session, "{told}");

    let told = exec(&server, "py", "import sys; sys.stderr.write('oh'); exit(3)", json!({}));
    assert_eq!((&told["stderr"], &told["code"], &told["status"]), (&json!("oh"), &json!(3), &json!("RE")));
    let told = exec(&server, "cpp", "#include <iostream>\nint main() { std::cout << 42; }", json!({}));
    assert_eq!((&told["stdout"], &told["files"]), (&json!("42"), &json!([])));
    let told = exec(&server, "CPP", "int main() { return x; }", json!({}));
    assert!(told["stderr"].as_str().unwrap().contains("not declared") && told["code"] == 1, "{told}");
    let java = "import java.nio.file.*; public class Main { public static void main(String[] a) throws Exception {
        Files.writeString(Path.of(\"/mnt/data/out.txt\"), \"x\"); } }";
    let told = exec(&server, "java", java, json!({}));
    let names: Vec<&Value> = told["files"].as_array().unwrap().iter().map(|file| &file["name"]).collect();
    assert_eq!(names, ["out.txt"], "neither the program nor its classes: {told}");
    // The binary is larger than what is told at once: it stays in nobody's account.
    let told = exec(&server, "rs", "fn main() { println!(\"hi\"); }", json!({}));
    assert_eq!((&told["stdout"], &told["files"]), (&json!("hi\n"), &json!([])));
    let used = |server: &Server| {
        server
            .data_dir()
            .join("blobs/owners")
            .read_dir()
            .unwrap()
            .flat_map(|dir| dir.unwrap().path().read_dir().unwrap())
            .count()
    };
    assert_eq!(used(&server), 1, "out.txt alone");
}

#[test]
fn what_is_wrong_is_told_in_its_form() {
    let server = server();
    let told = |body: Value| error(post(&server, &body));
    assert_eq!(told(json!([])), (400, "the body is no JSON object".into()));
    assert_eq!(told(json!({ "code": "" })), (400, "lang must be a string".into()));
    assert_eq!(told(json!({ "lang": "py" })), (400, "code must be a string".into()));
    assert_eq!(told(json!({ "lang": "cobol", "code": "" })), (400, "Unsupported language: cobol".into()));
    let missing = "Unsupported language: f90 is not on this server: faber image build fortran";
    assert_eq!(told(json!({ "lang": "f90", "code": "" })), (400, missing.into()));
    let with = |more: Value| {
        let mut body = json!({ "lang": "py", "code": "" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        told(body)
    };
    assert_eq!(with(json!({ "args": "x" })), (400, "args must be a list of strings".into()));
    assert_eq!(with(json!({ "files": {} })), (400, "files must be an array".into()));
    let incomplete = "files[0] must have id, storage_session_id and name";
    assert_eq!(with(json!({ "files": [{ "id": "a", "name": "b" }] })), (400, incomplete.into()));
    let file = |name: &str| with(json!({ "files": [reference(&json!("s"), &json!("f"), name)] }));
    assert_eq!(file("x"), (403, "Unauthorized file reference: s/f is not there".into()));
    assert_eq!(file("main.py"), (400, "files[0]: main.py is where the code goes".into()));
    assert_eq!(file("../x").0, 400);
    let (status, text) = error(server.post_to("/v1/exec/programmatic", "{}", &[]));
    assert!(status == 501 && text.contains("not there"), "{text}");

    assert_eq!(error(server.get("/v1/files/none")), (404, "Session not found".into()));
    assert_eq!(error(server.get("/v1/download/none/none")), (404, "File not found".into()));
    assert_eq!(error(server.get("/v1/sessions/none/objects/none")).0, 404);
    assert_eq!(error(server.send("DELETE", "/v1/files/none/none", b"", &[])).0, 404);
}

#[test]
fn files_go_from_session_to_session() {
    let server = server();
    let table = b"a,b\n1,2\n";
    let answer = upload(&server, "/v1/upload", &[("kind", None, b"user"), ("file", Some("in/t\u{e4}ble.csv"), table)]);
    assert_eq!(answer.status, 200, "{}", answer.text);
    let told = answer.json();
    let (session, id) = (&told["storage_session_id"], &told["files"][0]["fileId"]);
    assert_eq!((&told["message"], &told["files"][0]["filename"]), (&json!("success"), &json!("in/täble.csv")));
    assert_eq!(&told["session_id"], session);
    let path = |kind: &str, session: &Value, id: &Value| {
        format!("/v1/{kind}/{}/{}", session.as_str().unwrap(), id.as_str().unwrap())
    };

    // It is read, another is made, and both can be had.
    let code = "text = open('/mnt/data/in/täble.csv').read()\nprint(text)\nopen('/mnt/data/out.bin', 'wb').write(b'\\x00\\xff' * 1000000)\n";
    let first = exec(&server, "py", code, json!({ "files": [reference(session, id, "in/täble.csv")] }));
    assert_eq!(first["stdout"], "a,b\n1,2\n\n", "{first}");
    let files = first["files"].as_array().unwrap();
    assert_eq!(files.len(), 2, "{first}");
    assert_eq!((&files[0]["id"], &files[0]["storage_session_id"], &files[0]["inherited"]), (id, session, &json!(true)));
    let made = &files[1];
    assert_eq!(
        (&made["name"], &made["storage_session_id"], made.get("inherited")),
        (&json!("out.bin"), &first["session_id"], None)
    );
    assert_eq!(made["session_id"], first["session_id"]);
    let answer = server.get(&path("download", &made["storage_session_id"], &made["id"]));
    assert_eq!((answer.status, answer.bytes.len(), &answer.bytes[..2]), (200, 2_000_000, &b"\x00\xff"[..]));
    assert_eq!(answer.header("content-disposition"), "attachment; filename*=UTF-8''out.bin");
    let answer = server.get(&path("download", session, id));
    assert_eq!((answer.bytes.as_slice(), answer.header("content-type")), (&table[..], "text/csv"));
    assert_eq!(answer.header("content-disposition"), "attachment; filename*=UTF-8''t%C3%A4ble.csv");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");

    // One that is changed is another, by the old name of its session too.
    let old = json!({ "id": id, "session_id": session, "name": "/mnt/data/in/täble.csv" });
    let second = exec(&server, "py", "open('in/täble.csv', 'a').write('3,4\\n')", json!({ "files": [old] }));
    let changed = &second["files"][0];
    assert_eq!(changed["modified_from"], json!({ "id": id, "storage_session_id": session }), "{second}");
    assert!(changed["id"] != *id && changed["storage_session_id"] == second["session_id"]);
    assert_eq!(server.get(&path("download", &changed["storage_session_id"], &changed["id"])).text, "a,b\n1,2\n3,4\n");
    assert_eq!(server.get(&path("download", session, id)).bytes, table);

    // A program that fails keeps none.
    let failed = exec(&server, "py", "open('x', 'w').write('x' * 2000000); exit(1)", json!({}));
    assert_eq!(failed["files"], json!([]));

    let list = |detail: &str| server.get(&format!("/v1/files/{}?detail={detail}", session.as_str().unwrap())).json();
    let object = format!("{}/{}.csv", session.as_str().unwrap(), id.as_str().unwrap());
    assert_eq!(list("simple"), json!([object]));
    assert_eq!((&list("summary")[0]["name"], &list("summary")[0]["size"]), (&json!(object), &json!(8)));
    assert_eq!(list("full")[0]["metadata"], json!({ "content-type": "text/csv", "original-filename": "in/täble.csv" }));
    let normalized = &list("normalized")[0];
    assert_eq!(
        (&normalized["id"], &normalized["name"], &normalized["storage_session_id"]),
        (id, &json!("in/täble.csv"), session)
    );
    let metadata =
        server.get(&format!("/v1/sessions/{}/objects/{}", session.as_str().unwrap(), id.as_str().unwrap())).json();
    assert_eq!((&metadata["originalFilename"], &metadata["readOnly"]), (&json!("in/täble.csv"), &json!(false)));
    let modified = metadata["lastModified"].as_str().unwrap();
    assert!(modified.ends_with('Z') && modified.len() == "2026-01-02T03:04:05.678Z".len(), "{modified}");

    let answer = server.send("DELETE", &path("files", session, id), b"", &[]);
    assert_eq!((answer.status, &answer.json()["fileId"]), (200, id));
    assert_eq!(server.get(&path("download", session, id)).status, 404);
    assert_eq!(
        error(post(&server, &json!({ "lang": "py", "code": "", "files": [reference(session, id, "x")] }))).0,
        403
    );
    assert_eq!(server.get(&path("download", &changed["storage_session_id"], &changed["id"])).status, 200);
}

#[test]
fn what_is_read_only_stays_what_it_was() {
    let server = server();
    let told =
        upload(&server, "/v1/upload/batch/", &[("read_only", None, b"true"), ("file", Some("skill/run.py"), b"x = 7")])
            .json();
    assert_eq!((&told["succeeded"], &told["failed"], &told["message"]), (&json!(1), &json!(0), &json!("success")));
    let (session, id) = (&told["storage_session_id"], &told["files"][0]["fileId"]);
    let files = json!({ "files": [reference(session, id, "skill/run.py")] });
    let told = exec(&server, "py", "open('skill/run.py', 'w').write('y')", files);
    assert_eq!((&told["files"][0]["id"], &told["files"][0]["inherited"]), (id, &json!(true)), "{told}");
}

#[test]
fn an_upload_is_taken_or_changes_nothing() {
    let server =
        Server::start(&["--open-mode"], &[ON, ("FABER_BLOBS__EACH", "1MiB"), ("FABER_RATE_LIMIT__ENABLED", "false")]);
    let (large, small) = (vec![b'x'; (1 << 20) + 1], b"small");
    let put = |path: &str, fields: &[(&str, Option<&str>, &[u8])]| upload(&server, path, fields);
    let blobs = || {
        std::fs::read_dir(server.data_dir().join("blobs/owners"))
            .unwrap()
            .flat_map(|dir| dir.unwrap().path().read_dir().unwrap())
            .count()
    };
    let both = [("file", Some("a"), &small[..]), ("file", Some("b"), &large[..]), ("file", Some("c"), &small[..])];
    assert_eq!(error(put("/v1/upload", &both)), (413, "File size limit exceeded".into()));
    assert_eq!(error(put("/v1/upload", &[("file", Some("a"), &small[..]), ("file", Some("../b"), &small[..])])).0, 400);
    assert_eq!(error(put("/v1/upload", &[("kind", None, &large[..])])), (400, "No files provided".into()));
    assert_eq!(error(put("/v1/upload/batch", &[])).0, 400);
    let plain = server.send("POST", "/v1/upload", b"{}", &[("Content-Type", "application/json")]);
    assert_eq!(error(plain), (400, "Invalid content type. Must be multipart/form-data.".into()));
    let mut cut = form(&[("file", Some("a"), &small[..]), ("file", Some("b"), &large[..])]);
    cut.truncate(1000);
    let multipart = [("Content-Type", "multipart/form-data; boundary=XX")];
    assert_eq!(server.send("POST", "/v1/upload", &cut, &multipart).status, 400);
    // What is before the first file, or between two, is bounded.
    let noise = vec![b'-'; 8 << 20];
    assert_eq!(server.send("POST", "/v1/upload", &noise, &multipart).status, 400);
    assert_eq!(blobs(), 0, "nothing stays");

    let answer = put("/v1/upload/batch", &both);
    let told = answer.json();
    assert_eq!(
        (answer.status, &told["message"], &told["succeeded"], &told["failed"]),
        (200, &json!("partial_success"), &json!(2), &json!(1))
    );
    assert_eq!((&told["files"][1]["status"], &told["files"][1]["filename"]), (&json!("error"), &json!("b")));
    let answer = put("/v1/upload/batch", &[("file", Some("/etc/x"), &small[..])]);
    assert_eq!((answer.status, &answer.json()["message"]), (400, &json!("error")));
    let many: Vec<(&str, Option<&str>, &[u8])> = (0..201).map(|_| ("file", Some("x"), &b"1"[..])).collect();
    let told = put("/v1/upload/batch", &many).json();
    assert_eq!(
        (&told["succeeded"], &told["filesLimitReached"], &told["maxFiles"]),
        (&json!(200), &json!(true), &json!(200))
    );
    assert_eq!(error(put("/v1/upload", &many)).0, 400);
}

#[test]
fn an_upload_that_stops_is_over() {
    let server = Server::start(&["--open-mode"], &[ON]);
    let mut client = server.connect_from([127, 0, 0, 2]);
    let head = "POST /v1/upload HTTP/1.1\r\nHost: faber\r\nContent-Type: multipart/form-data; boundary=XX\r\nContent-Length: 100000";
    write!(client, "{head}\r\n\r\n").unwrap();
    client.write_all(&form(&[("file", Some("a"), b"some")])[..80]).unwrap();
    let mut answer = [0; 4096];
    let length = client.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.ends_with(r#"{"error":"Upload timeout"}"#), "{answer}");
}

/// A file goes to the disk as it comes.
#[test]
fn a_large_file_takes_little_memory() {
    let server = Server::start(&["--open-mode"], &[ON]);
    let front = server.front();
    let content = vec![b'\r'; 192 << 20];
    let told = upload(&server, "/v1/upload", &[("file", Some("large"), &content)]);
    assert_eq!(told.status, 200, "{}", told.text);
    let peak = memory_of(front, "VmHWM");
    assert!(peak < 128 << 20, "{peak}");
}

#[test]
fn keys_have_files_of_their_own() {
    let ((one, first), (other, second)) = (new_key(), new_key());
    let name = |keys: &str, name: &str| keys.replace("\"class\"", &format!("\"{name}\""));
    let keys = format!(
        "[{},{}]",
        name(&first, "one").trim_matches(['[', ']']),
        name(&second, "other").trim_matches(['[', ']'])
    );
    let server = Server::start(&[], &[ON, ("FABER_AUTH__KEYS", keys.as_str())]);
    let ask = |key: (&str, &str)| server.send("GET", "/v1/files/none", b"", &[key]);
    assert_eq!(error(server.get("/v1/files/none")), (401, "API key is required for this endpoint".into()));
    assert_eq!(error(ask(("X-API-Key", "faber_nobodys"))), (403, "Invalid API key".into()));
    assert_eq!(server.get("/v1/health/").status, 200);
    let body = form(&[("file", Some("a"), b"mine")]);
    let headers = [("X-API-Key", one.as_str()), ("Content-Type", "multipart/form-data; boundary=XX")];
    let told = server.send("POST", "/v1/upload", &body, &headers).json();
    let path = format!(
        "/v1/download/{}/{}",
        told["storage_session_id"].as_str().unwrap(),
        told["files"][0]["fileId"].as_str().unwrap()
    );
    let bearer = format!("Bearer {one}");
    assert_eq!(server.send("GET", &path, b"", &[("Authorization", &bearer)]).text, "mine");
    assert_eq!(server.send("GET", &path, b"", &[("X-API-Key", &other)]).status, 404);
    assert_eq!(server.send("DELETE", &path.replace("download", "files"), b"", &[("X-API-Key", &other)]).status, 404);
    assert_eq!(server.send("GET", &path, b"", &[("X-API-Key", &one)]).status, 200);
}

/// `createCodeExecutionTool`, as LibreChat has it called.
#[test]
fn its_own_client_works_unchanged() {
    let modules = npm::modules("librechat-agents", &["@librechat/agents@3.2.21"]);
    let server = server();
    let script = r#"
const { createCodeExecutionTool } = await import(`${process.env.MODULES}/@librechat/agents/dist/esm/main.mjs`);
const tool = createCodeExecutionTool({ user_id: "u", authHeaders: { "X-API-Key": "any" } });
const call = (args, more) => tool.invoke({ name: tool.name, args, id: "1", type: "tool_call", ...more });
const first = await call({ lang: "py", code: "print(6 * 7)\nopen('/mnt/data/a.txt', 'w').write('hi')" });
console.log(JSON.stringify(first.content));
const files = first.artifact.files.map((file) => ({ ...file, resource_id: "u", kind: "user" }));
const second = await call({ lang: "py", code: "print(open('/mnt/data/a.txt').read())" },
  { session_id: first.artifact.session_id, _injected_files: files });
console.log(JSON.stringify(second.content), second.artifact.files[0].inherited);
const third = await call({ lang: "cpp", code: "int main() { return x; }" });
console.log(third.content.includes("stderr:") && third.content.includes("error"));
await call({ lang: "go", code: "" }).catch((error) => console.log(error.message.includes("returned 400")));
"#;
    let mut command = Command::new("node");
    command.args(["--input-type=module", "-e", script]).stdin(Stdio::null());
    command.env("MODULES", modules).env("LIBRECHAT_CODE_BASEURL", format!("{}/v1", server.url()));
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let told: Vec<&str> = told.lines().collect();
    assert!(output.status.success() && told.len() == 4, "{output:?}");
    assert!(told[0].starts_with(r#""stdout:\n42\n\nGenerated files:\nSession files: 1 persisted file(s)"#), "{told:?}");
    assert_eq!(told[1..], [r#""stdout:\nhi" true"#, "true", "true"]);
}
