//! Piston's API, version 2, as its clients call it.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Answer, Server, npm, pypi};

const ON: (&str, &str) = ("FABER_COMPAT__PISTON", "true");

fn server() -> Server {
    Server::with_languages_and(&[ON])
}

fn post(server: &Server, body: &Value) -> Answer {
    server.post_to("/api/v2/execute", &body.to_string(), &[])
}

fn execute(server: &Server, language: &str, code: &str, more: Value) -> Value {
    let mut body = json!({ "language": language, "version": "*", "files": [{ "content": code }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = post(server, &body);
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// The version of Python that is here.
fn version(server: &Server) -> String {
    let runtimes = server.get("/api/v2/runtimes").json();
    let python = runtimes.as_array().unwrap().iter().find(|runtime| runtime["language"] == "python").unwrap();
    assert_eq!(python["aliases"], json!(["py", "py3", "python3"]));
    python["version"].as_str().unwrap().to_owned()
}

#[test]
fn a_program_is_run_and_told_in_its_words() {
    let server = server();
    let version = version(&server);
    assert!(version.starts_with("3.") && version.split('.').count() == 3, "{version}");
    let told = execute(
        &server,
        "py",
        "import sys\nprint(input(), sys.argv[1:])",
        json!({ "stdin": "hi", "args": ["a", "b"] }),
    );
    assert_eq!((&told["language"], &told["version"], told.get("compile")), (&json!("python"), &json!(version), None));
    let run = &told["run"];
    assert_eq!((&run["stdout"], &run["stderr"]), (&json!("hi ['a', 'b']\n"), &json!("")));
    assert_eq!((&run["output"], &run["code"], &run["signal"]), (&run["stdout"], &json!(0), &Value::Null));
    assert_eq!((&run["message"], &run["status"]), (&Value::Null, &Value::Null));
    assert!(
        run["memory"].as_u64().unwrap() > 1 << 20 && run["cpu_time"].is_u64() && run["wall_time"].is_u64(),
        "{run}"
    );
    let both = execute(&server, "python", "import sys\nprint(1, flush=True)\nprint(2, file=sys.stderr)\n", json!({}));
    assert_eq!((&both["run"]["output"], &both["run"]["stderr"]), (&json!("1\n2\n"), &json!("2\n")));

    let end = |code: &str, more: Value| {
        let run = execute(&server, "python", code, more)["run"].clone();
        json!([run["status"], run["code"], run["signal"], run["message"]])
    };
    assert_eq!(end("exit(3)", json!({})), json!(["RE", 3, null, "Exited with error status 3"]));
    assert_eq!(end("import os; os.abort()", json!({})), json!(["SG", null, "SIGABRT", "Caught fatal signal 6"]));
    let late = json!({ "run_timeout": 300 });
    assert_eq!(
        end("import time; time.sleep(9)", late),
        json!(["TO", null, "SIGKILL", "Time limit exceeded (wall clock)"])
    );
    let busy = json!({ "run_cpu_time": 200 });
    assert_eq!(end("while True: pass", busy), json!(["TO", null, "SIGKILL", "Time limit exceeded"]));
    let small = json!({ "run_memory_limit": 64_000_000 });
    assert_eq!(end("x = bytearray(1 << 28)", small), json!(["SG", null, "SIGKILL", "Caught fatal signal 9"]));
    assert_eq!(end("while True: print('x' * 99999)", json!({}))[0], "OL");
    assert_eq!(end("import sys\nwhile True: sys.stderr.write('x' * 99999)", json!({}))[0], "EL");

    let files = json!({ "files": [
        { "name": "data.bin", "content": "AAH/", "encoding": "base64" }, { "name": "hex", "content": "00ff", "encoding": "hex" },
        { "content": "import helper\nprint(open('data.bin', 'rb').read() + open('hex', 'rb').read(), helper.x)" },
        { "name": "helper.py", "content": "x = 7" }] });
    assert_eq!(execute(&server, "python", "", files)["run"]["stdout"], "b'\\x00\\x01\\xff\\x00\\xff' 7\n");

    let told = execute(&server, "c++", "#include <iostream>\nint main() { std::cout << 42; }", json!({}));
    assert_eq!((&told["compile"]["code"], &told["run"]["stdout"]), (&json!(0), &json!("42")));
    let told = execute(&server, "cpp", "int main() { return x; }", json!({}));
    assert_eq!((&told["run"], &told["compile"]["status"]), (&told["compile"], &json!("RE")));
}

#[test]
fn what_is_wrong_is_told_in_its_order() {
    let server = server();
    let version = version(&server);
    let message = |body: Value| {
        let answer = post(&server, &body);
        assert_eq!(answer.status, 400, "{}", answer.text);
        answer.json()["message"].as_str().unwrap().to_owned()
    };
    let body = |more: Value| {
        let mut body = json!({ "language": "python", "version": version, "files": [{ "content": "" }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    assert_eq!(message(json!({})), "language is required as a string");
    assert_eq!(message(body(json!({ "version": 3 }))), "version is required as a string");
    assert_eq!(message(body(json!({ "files": "x" }))), "files is required as an array");
    assert_eq!(message(body(json!({ "files": [{ "content": "" }, {}] }))), "files[1].content is required as a string");
    assert_eq!(message(body(json!({ "version": "2.7.18" }))), "python-2.7.18 runtime is unknown");
    assert_eq!(message(body(json!({ "language": "Python" }))), format!("Python-{version} runtime is unknown"));
    let binary = json!({ "files": [{ "content": "", "encoding": "hex" }] });
    assert_eq!(message(body(binary)), "files must include at least one utf8 encoded file");
    assert_eq!(message(body(json!({ "run_timeout": "1" }))), "If specified, run_timeout must be a number");
    assert_eq!(message(body(json!({ "compile_cpu_time": -5 }))), "compile_cpu_time must be non-negative");
    let most = message(body(json!({ "run_timeout": 1e12 })));
    assert_eq!(most, "run_timeout cannot exceed the configured limit of 600000");
    // Leaving the directory is its own failure, without words.
    let answer = post(&server, &body(json!({ "files": [{ "content": "", "name": "../x" }] })));
    assert_eq!((answer.status, answer.text.as_str()), (500, ""));
    // null is as if it were not there, and what is JSON is JSON.
    let lenient = body(json!({ "stdin": null, "args": null, "run_timeout": null, "run_memory_limit": -1 })).to_string();
    assert_eq!(server.post_to("/api/v2/execute/", &lenient, &[("Content-Type", "text/plain")]).status, 200);

    let packages = server.get("/api/v2/packages").json();
    let python = json!({ "language": "python", "language_version": version, "installed": true });
    assert!(packages.as_array().unwrap().contains(&python), "{packages}");
    let install = |version: &str| {
        let answer =
            server.post_to("/api/v2/packages", &json!({ "language": "python", "version": version }).to_string(), &[]);
        (answer.status, answer.json()["message"].as_str().unwrap().to_owned())
    };
    assert_eq!(install(&version), (500, "Already installed".into()));
    assert_eq!(install("1.0.0"), (404, "Requested package python-1.0.0 does not exist".into()));
}

#[test]
fn another_version_will_do_where_the_configuration_says_so() {
    let server = Server::with_languages_and(&[ON, ("FABER_COMPAT__NEAREST_VERSION", "true")]);
    let version = version(&server);
    let told = execute(&server, "python", "print(1)", json!({ "version": "3.10.0" }));
    assert_eq!((&told["version"], &told["run"]["stdout"]), (&json!(version), &json!("1\n")));
}

fn client(program: &Path, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn ultra_piston_works_unchanged() {
    let python = pypi::python("ultra-piston", &["ultra-piston==1.0.1"]);
    let server = server();
    let script = r#"
import sys
from ultra_piston import PistonClient, File
client = PistonClient(base_url=sys.argv[1] + "/api/v2")
version = next(r.version for r in client.get_runtimes() if r.language == "python")
told = client.post_execute(language="python3", version=version, file=File(content="print(input())"), stdin="hi")
print(told.run.output.strip(), told.run.code, any(p.language == "python" for p in client.get_packages()))
"#;
    assert_eq!(client(&python, &["-c", script, &server.url()]), "hi 0 True");
}

#[test]
fn pistonapi_works_unchanged() {
    let python = pypi::python("pistonapi", &["pistonapi==1.0.1", "requests==2.32.5"]);
    let server = server();
    let script = r#"
import sys
from pistonapi import PistonAPI
from pistonapi.exceptions import PistonError
piston = PistonAPI(sys.argv[1] + "/api/v2")
version = piston.languages["python"]["version"]
print(piston.execute("py", version, "import sys\nprint(input(), sys.argv[1:], 'a&b=c')", "hi", ["x", "y"]).strip())
try:
    piston.execute("brainfuck", "*", "+")
except PistonError as error:
    print(error)
"#;
    let told = client(&python, &["-c", script, &server.url()]);
    assert_eq!(told, "hi ['x', 'y'] a&b=c\nbrainfuck-* runtime is unknown");
}

#[test]
fn aiopyston_works_unchanged() {
    let python = pypi::python("aiopyston", &["aiopyston==1.2.1", "setuptools==80.9.0"]);
    let server = server();
    let script = r#"
import asyncio, sys
from pyston import PystonClient, File
async def main():
    client = PystonClient(base_url=sys.argv[1] + "/api/v2/")
    told = await client.execute("python", [File("print(6 * 7)")])
    print(told.run_stage.output.strip(), told.run_stage.code)
    await client.close_session()
asyncio.run(main())
"#;
    assert_eq!(client(&python, &["-c", script, &server.url()]), "42 0");
}

#[test]
fn piston_client_works_unchanged() {
    let modules = npm::modules("piston-client", &["piston-client@1.0.2"]);
    let server = server();
    let script = r#"
const { default: piston } = await import(`${process.env.NODE_PATH}/piston-client/index.js`);
const client = piston({ server: process.argv[1] });
const told = await client.execute({ language: "python", version: "*", files: [{ content: "print(6 * 7)" }] });
console.log(told.run.output.trim(), told.run.code);
"#;
    let output = Command::new("node")
        .args(["--input-type=module", "-e", script, &server.url()])
        .env("NODE_PATH", modules)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "42 0", "{output:?}");
}

/// What is said on its WebSocket, one line each, until the server closes it: then the code and reason.
fn connected(server: &Server, say: &mut dyn FnMut(&Value) -> Vec<Value>, first: &[Value]) -> (Vec<Value>, u16, String) {
    let address = server.url().strip_prefix("http://").unwrap().to_owned();
    let stream = std::net::TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let (mut socket, _) = tungstenite::client(format!("ws://{address}/api/v2/connect"), stream).unwrap();
    let send = |socket: &mut tungstenite::WebSocket<_>, messages: Vec<Value>| {
        messages.into_iter().for_each(|message| socket.send(tungstenite::Message::text(message.to_string())).unwrap());
    };
    send(&mut socket, first.to_vec());
    let mut heard = Vec::new();
    loop {
        match socket.read().unwrap() {
            tungstenite::Message::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                send(&mut socket, say(&message));
                heard.push(message);
            }
            tungstenite::Message::Close(frame) => {
                let frame = frame.unwrap();
                return (heard, frame.code.into(), frame.reason.to_string());
            }
            _ => {}
        }
    }
}

#[test]
fn a_job_can_be_talked_to() {
    let server = server();
    let init = |language: &str, code: &str| json!({ "type": "init", "language": language, "version": "*", "files": [{ "content": code }], "stdin": "dropped" });
    let data = |text: &str| json!({ "type": "data", "stream": "stdin", "data": text });
    let program = "import signal, sys, time\n\
        signal.signal(signal.SIGUSR1, lambda *_: (print('signalled', flush=True), sys.exit(3)))\n\
        print('name?', flush=True)\n\
        print('hello', input(), flush=True)\n\
        time.sleep(60)\n";
    let mut shown = String::new();
    let mut answer = |message: &Value| {
        shown += message["data"].as_str().unwrap_or_default();
        match message["data"].as_str() {
            Some("name?\n") => vec![data("Ada\n")],
            Some("hello Ada\n") => vec![json!({ "type": "signal", "signal": "SIGUSR1" })],
            _ => Vec::new(),
        }
    };
    let (heard, code, reason) = connected(&server, &mut answer, &[init("python", program)]);
    assert_eq!((code, reason.as_str()), (4999, "Job Completed"));
    assert_eq!(heard[0]["type"], "runtime");
    assert_eq!(heard[1], json!({ "type": "stage", "stage": "run" }));
    assert_eq!(heard.last().unwrap(), &json!({ "type": "exit", "stage": "run", "code": 3, "signal": null }));
    assert_eq!(shown, "name?\nhello Ada\nsignalled\n");

    let mut nothing = |_: &Value| Vec::new();
    let (heard, code, _) = connected(&server, &mut nothing, &[init("c++", "int main() { return 4; }")]);
    let types: Vec<_> =
        heard.iter().map(|message| (message["type"].as_str().unwrap(), message["stage"].as_str())).collect();
    let expected = [
        ("runtime", None),
        ("stage", Some("compile")),
        ("exit", Some("compile")),
        ("stage", Some("run")),
        ("exit", Some("run")),
    ];
    assert_eq!((&types[..], code), (&expected[..], 4999), "{heard:?}");
    assert_eq!(heard[4]["code"], 4);
    let (heard, code, _) = connected(&server, &mut nothing, &[init("c++", "int main() { nonsense }")]);
    let last = heard.last().unwrap();
    assert_eq!(
        (&last["type"], &last["stage"], &last["code"], code),
        (&json!("exit"), &json!("compile"), &json!(1), 4999)
    );
    assert!(
        heard.iter().any(|message| message["data"].as_str().is_some_and(|data| data.contains("nonsense"))),
        "{heard:?}"
    );

    // What its own closes a connection for.
    let closed = |messages: &[Value]| {
        let (heard, code, reason) = connected(&server, &mut |_| Vec::new(), messages);
        (heard.last().cloned().unwrap_or_default(), code, reason)
    };
    let sleeper = init("python", "import time\ntime.sleep(60)");
    let stdout = json!({ "type": "data", "stream": "stdout", "data": "" });
    assert_eq!(closed(&[sleeper.clone(), sleeper.clone()]).1, 4000);
    assert_eq!(closed(&[]).1, 4001);
    let (message, code, _) = closed(&[init("nonsense", "")]);
    assert_eq!((message, code), (json!({ "type": "error", "message": "nonsense-* runtime is unknown" }), 4002));
    assert_eq!(closed(&[data("x")]).1, 4003);
    assert_eq!(closed(&[sleeper.clone(), stdout]).1, 4004);
    assert_eq!(closed(&[sleeper, json!({ "type": "signal", "signal": "SIGNOT" })]).1, 4005);
}
