//! go-judge's REST API, as its clients call it.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Answer, Server, new_key, pypi};

const ON: (&str, &str) = ("FABER_COMPAT__GO_JUDGE", "true");

fn server() -> Server {
    Server::start(&["--open-mode"], &[ON, ("FABER_RATE_LIMIT__ENABLED", "false")])
}

fn ask(server: &Server, body: &Value) -> Answer {
    server.post_to("/go-judge/run", &body.to_string(), &[])
}

#[track_caller]
fn run(server: &Server, body: &Value) -> Vec<Value> {
    let answer = ask(server, body);
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json().as_array().unwrap().clone()
}

/// A command with these streams, and more.
fn cmd(args: &[&str], stdin: &str, more: Value) -> Value {
    let mut cmd = json!({
        "args": args, "env": ["PATH=/usr/bin:/bin"], "cpuLimit": 5_000_000_000u64, "clockLimit": 10_000_000_000u64,
        "memoryLimit": 256 << 20, "procLimit": 50,
        "files": [{ "content": stdin }, { "name": "stdout", "max": 10240 }, { "name": "stderr", "max": 10240 }],
    });
    cmd.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    cmd
}

#[track_caller]
fn one(server: &Server, cmd: &Value) -> Value {
    let all = run(server, &json!({ "cmd": [cmd] }));
    assert_eq!(all.len(), 1);
    all[0].clone()
}

#[test]
fn a_command_is_run_and_told_in_its_words() {
    let server = server();
    let told = one(
        &server,
        &cmd(&["/bin/sh", "-c", "cat; echo $HOME$X >&2"], "in", json!({ "env": ["PATH=/bin", "HOME=/", "X=1=2"] })),
    );
    assert_eq!((&told["status"], &told["exitStatus"]), (&json!("Accepted"), &json!(0)), "{told}");
    assert_eq!(told["files"], json!({ "stdout": "in", "stderr": "/1=2\n" }));
    for figure in ["time", "memory", "runTime", "procPeak"] {
        assert!(told[figure].as_u64().unwrap() > 0, "{figure}: {told}");
    }
    assert!(["error", "fileIds", "fileError"].iter().all(|name| told.get(name).is_none()), "{told}");

    let end = |script: &str, more: Value| {
        let told = one(&server, &cmd(&["/bin/sh", "-c", script], "", more));
        (told["status"].as_str().unwrap().to_owned(), told["exitStatus"].as_i64().unwrap())
    };
    assert_eq!(end("exit 3", json!({})), ("Nonzero Exit Status".into(), 3));
    assert_eq!(end("kill -SEGV $$", json!({})), ("Signalled".into(), 11));
    assert_eq!(end("while :; do :; done", json!({ "cpuLimit": 100_000_000 })), ("Time Limit Exceeded".into(), 9));
    assert_eq!(end("sleep 100", json!({ "clockLimit": 200_000_000 })), ("Time Limit Exceeded".into(), 9));
    assert_eq!(end("head -c 100M /dev/zero | tail", json!({ "memoryLimit": 16 << 20 })).0, "Memory Limit Exceeded");
    assert_eq!(end("yes", json!({})).0, "Output Limit Exceeded");
    let missing = one(&server, &cmd(&["/no/such"], "", json!({})));
    assert_eq!(missing["status"], "Internal Error", "{missing}");
    assert!(missing["error"].is_string());

    let cut = one(&server, &cmd(&["/bin/echo", "12345"], "", json!({ "files": [null, { "name": "o", "max": 3 }] })));
    assert_eq!((&cut["status"], &cut["files"]), (&json!("Output Limit Exceeded"), &json!({ "o": "123" })));
    let shared = json!({ "files": [{ "content": "" }, { "name": "all", "max": 99 }, { "name": "all", "max": 99 }] });
    let both = one(&server, &cmd(&["/bin/sh", "-c", "echo 1; echo 2 >&2; echo 3"], "", shared));
    assert_eq!(both["files"], json!({ "all": "1\n2\n3\n" }));
}

#[test]
fn files_go_in_come_back_and_stay() {
    let server = server();
    let script = "chmod -x run.sh; cat a.txt > b.txt; ./main > c; head -c 3M /dev/zero > large";
    let more = json!({
        "copyIn": { "a.txt": { "content": "a" }, "main": { "content": "#!/bin/sh\necho ran" }, "run.sh": { "content": script } },
        "copyOut": ["stdout", "b.txt", "maybe?", "a[1].txt?"], "copyOutCached": ["c", "large", "none?"], "copyOutMax": 64,
    });
    let told = one(&server, &cmd(&["/bin/sh", "run.sh"], "", more));
    assert_eq!((&told["status"], told.get("fileError")), (&json!("Accepted"), None), "{told}");
    assert_eq!(told["files"], json!({ "stdout": "", "stderr": "", "b.txt": "a" }));
    let id = |name: &str| told["fileIds"][name].as_str().unwrap().to_owned();
    assert_eq!(told["fileIds"].as_object().unwrap().len(), 2);
    assert!(id("c").len() == 8 && id("c").bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()));
    let file = |id: &str| server.get(&format!("/go-judge/file/{id}"));
    let c = file(&id("c"));
    assert_eq!((c.text.as_str(), c.header("content-disposition")), ("ran\n", "attachment; filename*=UTF-8''c"));
    assert_eq!(file(&id("large")).bytes.len(), 3 << 20);
    assert_eq!(server.get("/go-judge/file/").json(), json!({ id("c"): "c", id("large"): "large" }));

    let again = json!({ "copyIn": { "x": { "fileId": id("c") } }, "files": [{ "fileId": id("c") }, { "name": "stdout", "max": 99 }] });
    assert_eq!(one(&server, &cmd(&["/bin/cat", "-", "x"], "", again))["files"]["stdout"], "ran\nran\n");
    let program = json!({ "copyIn": { "prog": { "content": "#!/bin/sh\necho by name" } } });
    assert_eq!(one(&server, &cmd(&["prog"], "", program))["files"]["stdout"], "by name\n");

    let delete = |id: &str| server.send("DELETE", &format!("/go-judge/file/{id}"), b"", &[]);
    let gone = delete(&id("c"));
    assert_eq!((gone.status, gone.text.as_str()), (200, ""));
    assert_eq!((delete(&id("c")).status, file(&id("c")).status), (404, 404));

    let lack = json!({ "copyOut": ["none", "stdout"], "copyOutCached": ["neither"] });
    let told = one(&server, &cmd(&["/bin/true"], "", lack.clone()));
    let errors: Vec<_> =
        told["fileError"].as_array().unwrap().iter().map(|error| (&error["name"], &error["type"])).collect();
    let missing = json!("CopyOutOpen");
    assert_eq!(told["status"], "File Error", "{told}");
    assert_eq!(errors, [(&json!("neither"), &missing), (&json!("none"), &missing)]);
    let told = one(&server, &cmd(&["/bin/false"], "", lack));
    assert_eq!((&told["status"], told.get("fileError")), (&json!("Nonzero Exit Status"), None), "{told}");
    let large = |truncate: bool| {
        let more = json!({ "copyOut": ["f"], "copyOutMax": 4, "copyOutTruncate": truncate });
        one(&server, &cmd(&["/bin/sh", "-c", "echo 123456 > f"], "", more))
    };
    let told = large(false);
    assert_eq!((&told["status"], &told["fileError"][0]["type"]), (&json!("File Error"), &json!("CopyOutSizeExceeded")));
    let told = large(true);
    assert_eq!((&told["status"], &told["files"]["f"]), (&json!("Accepted"), &json!("1234")));

    let form =
        "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"in.txt\"\r\n\r\nuploaded\r\n--XX--\r\n";
    let headers = [("Content-Type", "multipart/form-data; boundary=XX")];
    let answer = server.send("POST", "/go-judge/file", form.as_bytes(), &headers);
    let id = answer.json().as_str().unwrap_or_else(|| panic!("{}", answer.text)).to_owned();
    assert_eq!(file(&id).text, "uploaded");
}

#[test]
fn commands_are_joined_by_pipes() {
    let server = server();
    let echo = json!({ "args": ["/bin/sh", "-c", "read x; echo \"got $x\""], "env": ["PATH=/bin"], "files": [null, null, null] });
    let asks = json!({ "args": ["/bin/sh", "-c", "echo 7; read y; echo \"$y\" >&2"], "env": ["PATH=/bin"],
        "files": [null, null, { "name": "stderr", "max": 99 }] });
    let told = run(
        &server,
        &json!({
            "requestId": "1", "cmd": [asks, echo], "pipeMapping": [
                { "in": { "index": 0, "fd": 1 }, "out": { "index": 1, "fd": 0 } },
                { "in": { "index": 1, "fd": 1 }, "out": { "index": 0, "fd": 0 }, "proxy": true, "name": "said", "max": 99 },
            ]
        }),
    );
    assert_eq!(told[0]["files"], json!({ "stderr": "got 7\n" }), "{told:?}");
    assert_eq!(told[1]["files"], json!({ "said": "got 7\n" }), "{told:?}");
    // Some that have nothing to do with each other.
    let all: Vec<Value> = (0..3).map(|n| cmd(&["/bin/echo", &n.to_string()], "", json!({}))).collect();
    let told = run(&server, &json!({ "cmd": all }));
    assert_eq!(told.iter().map(|ran| &ran["files"]["stdout"]).collect::<Vec<_>>(), ["0\n", "1\n", "2\n"]);
}

#[test]
fn what_is_not_there_is_refused_in_its_form() {
    let server = server();
    let refused = |body: &Value, why: &str| {
        let answer = ask(&server, body);
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert!(answer.json().as_str().is_some_and(|text| text.contains(why)), "{}: {why}", answer.text);
    };
    refused(&json!({}), "no cmd provided");
    refused(&json!({ "cmd": [] }), "no cmd provided");
    refused(&json!([]), "");
    let with = |more: Value| json!({ "cmd": [cmd(&["/bin/true"], "", more)] });
    refused(&with(json!({ "tty": true })), "no terminals");
    refused(&with(json!({ "args": [] })), "a command is missing");
    refused(&with(json!({ "copyIn": { "a": { "src": "/etc/passwd" } } })), "files of the host are not given");
    refused(&with(json!({ "copyIn": { "a": { "symlink": "b" } } })), "links are not made here");
    refused(&with(json!({ "copyIn": { "a": { "fileId": "NOTTHERE" } } })), "NOTTHERE not found");
    let astray = run(&server, &with(json!({ "copyIn": { "../a": { "content": "" } } })));
    assert_eq!(astray[0]["status"], "Internal Error", "{astray:?}");
    assert!(astray[0]["error"].as_str().unwrap().contains("../a"), "{astray:?}");
    refused(&with(json!({ "files": [{ "src": "/etc/passwd" }] })), "files of the host");
    refused(&with(json!({ "files": [null, { "content": "" }] })), "collector");
    refused(&with(json!({ "files": [null, null, null, { "name": "x", "max": 1 }] })), "above 2");
    refused(&with(json!({ "env": ["X"] })), "NAME=VALUE");
    let pipe = |index: usize, fd: usize| json!({ "in": { "index": index, "fd": fd }, "out": { "index": 0, "fd": 0 } });
    let piped = |pipe: Value| json!({ "cmd": [{ "args": ["/bin/true"] }], "pipeMapping": [pipe] });
    refused(&piped(pipe(1, 1)), "there is no such end");
    refused(&piped(pipe(0, 0)), "there is no such end");
    assert_eq!(server.get("/go-judge/file").json(), json!({}));
    let version = server.get("/go-judge/version").json();
    assert_eq!(
        (&version["copyOutOptional"], &version["fixSymlinkEscape"], &version["stream"]),
        (&json!(true), &json!(true), &json!(false))
    );
    assert!(server.get("/go-judge/config").json()["runnerConfig"]["outputLimit"].is_u64());
    assert_eq!((server.get("/go-judge/ws").status, server.get("/go-judge/stream").status), (400, 404));

    let (key, keys) = new_key();
    let server = Server::start(&[], &[ON, ("FABER_AUTH__KEYS", keys.as_str())]);
    let list = |headers: &[(&str, &str)]| {
        let answer = server.send("GET", "/go-judge/file", b"", headers);
        (answer.status, answer.text)
    };
    assert_eq!(list(&[]), (401, String::new()));
    assert_eq!(list(&[("Authorization", "Bearer wrong")]), (401, String::new()));
    assert_eq!(list(&[("Authorization", &format!("Bearer {key}"))]), (200, "{}".into()));
    assert_eq!(server.get("/go-judge/version").status, 200);
}

/// `RemoteSandbox` of go-judge's author.
#[test]
fn its_own_client_works_unchanged() {
    let python = pypi::python("go-judge", &["go-judge==0.1.0"]);
    let server = server();
    let script = r##"
import sys
from go_judge.client import RemoteSandbox
sandbox = RemoteSandbox(sys.argv[1])
print(sandbox.check_health())
ran = sandbox.run("python", "print(int(input()) * 2)", "21\n")
print(ran["status"], repr(ran["stdout"]))
source = "#include <iostream>\nint main() { int a; std::cin >> a; std::cout << a + 1; if (a == 3) return 1; }"
print([(ran["status"], ran["stdout"]) for ran in sandbox.run_multiple("cpp", source, ["1", "2", "3"])])
broken = sandbox.run("cpp", "int main() { return x; }")
print(broken["status"], "error" in broken["stderr"])
print(sandbox.run("python", "while True: pass", exec_cpu_limit_ns=200_000_000)["status"])
sandbox.close()
"##;
    let mut command = Command::new(python);
    let output =
        command.args(["-c", script, &format!("{}/go-judge", server.url())]).stdin(Stdio::null()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let told: Vec<&str> = told.lines().collect();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        told,
        [
            "True",
            "Accepted '42\\n'",
            "[('Accepted', '2'), ('Accepted', '3'), ('Nonzero Exit Status', '4')]",
            "Compile Error True",
            "Time Limit Exceeded"
        ]
    );
    assert_eq!(server.get("/go-judge/file").json(), json!({}), "the program is deleted");
}

#[test]
fn requests_come_over_a_socket_too() {
    let server = server();
    let address = server.url().strip_prefix("http://").unwrap().to_owned();
    let stream = std::net::TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let (mut socket, _) = tungstenite::client(format!("ws://{address}/go-judge/ws"), stream).unwrap();
    let say = |socket: &mut tungstenite::WebSocket<_>, message: Value| {
        socket.send(tungstenite::Message::text(message.to_string())).unwrap();
    };
    let hear = |socket: &mut tungstenite::WebSocket<std::net::TcpStream>| loop {
        if let tungstenite::Message::Text(text) = socket.read().unwrap() {
            return serde_json::from_str::<Value>(&text).unwrap();
        }
    };
    let request = |id: &str, args: &[&str]| json!({ "requestId": id, "cmd": [cmd(args, "in", json!({}))] });
    say(&mut socket, request("long", &["/bin/sleep", "4329.5"]));
    say(&mut socket, request("a", &["/bin/cat"]));
    let told = hear(&mut socket);
    assert_eq!((&told["requestId"], &told["results"][0]["files"]["stdout"]), (&json!("a"), &json!("in")), "{told}");
    assert!(told.get("error").is_none());
    for (message, id, error) in [
        (request("long", &["/bin/true"]), "long", "duplicate requestId"),
        (request("", &["/bin/true"]), "", "requestId is required"),
        (json!({ "requestId": "b", "cmd": 7 }), "b", ""),
        (json!([]), "", "expected an object"),
        (json!({ "cancelRequestId": "long" }), "long", "cancelled"),
    ] {
        say(&mut socket, message);
        let told = hear(&mut socket);
        assert_eq!(told["requestId"], id, "{told}");
        assert!(told["error"].as_str().unwrap().contains(error), "{told}");
    }
    crate::support::eventually("it is ended", || crate::support::running(&["/bin/sleep", "4329.5"]).is_empty());
    say(&mut socket, request("last", &["/bin/sleep", "4330.5"]));
    crate::support::eventually("it sleeps", || !crate::support::running(&["/bin/sleep", "4330.5"]).is_empty());
    drop(socket);
    crate::support::eventually("it ends too", || crate::support::running(&["/bin/sleep", "4330.5"]).is_empty());
}
