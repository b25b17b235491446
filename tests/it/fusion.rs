//! SandboxFusion's endpoints, as its own client and as verl call them.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Answer, Server, new_key, pypi};

const ON: (&str, &str) = ("FABER_COMPAT__SANDBOX_FUSION", "true");

fn run(server: &Server, body: Value) -> Value {
    let answer = server.post_to("/run_code", &body.to_string(), &[]);
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

#[test]
fn it_is_not_there_unless_it_is_asked_for() {
    let server = Server::start_open();
    server.post_to("/run_code", "{}", &[]).is_error(404, "Not found", "There is nothing at this path");
    assert_eq!(server.get("/v1/ping").status, 404);
}

#[test]
fn a_program_is_run_and_told_in_its_words() {
    let server = Server::with_languages_and(&[ON]);
    assert_eq!(server.get("/v1/ping").text, "\"pong\"");
    assert_eq!(server.get("/v1/ping/").text, "\"pong\"");
    let told = run(&server, json!({ "code": "print(input())", "language": "python", "stdin": "hi", "files": null }));
    let stage = &told["run_result"];
    assert_eq!((&told["status"], &told["message"]), (&json!("Success"), &json!("")));
    assert_eq!((&told["compile_result"], &told["executor_pod_name"]), (&Value::Null, &Value::Null));
    assert_eq!((&stage["status"], &stage["return_code"]), (&json!("Finished"), &json!(0)));
    assert_eq!((&stage["stdout"], &stage["stderr"]), (&json!("hi\n"), &json!("")));
    assert!(stage["execution_time"].as_f64().is_some_and(|time| (0.001..10.0).contains(&time)), "{told}");

    // Its ends: exit code, signal, time, memory.
    let python = |code: &str, more: Value| {
        let mut body = json!({ "code": code, "language": "python" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let told = run(&server, body);
        assert_eq!(told["status"], "Failed", "{told}");
        (told["run_result"]["status"].as_str().unwrap().to_owned(), told["run_result"]["return_code"].as_i64())
    };
    assert_eq!(python("exit(3)", json!({})), ("Finished".into(), Some(3)));
    assert_eq!(python("import os; os.abort()", json!({})), ("Finished".into(), Some(-6)));
    assert_eq!(python("while True: pass", json!({ "run_timeout": "0.3" })), ("TimeLimitExceeded".into(), None));
    assert_eq!(python("x = bytearray(1 << 28)", json!({ "memory_limit_MB": 64 })), ("Finished".into(), Some(-9)));

    // A megabyte of each stream, and no end of the program for the rest.
    let told = run(&server, json!({ "code": "print('x' * (3 << 20)); exit(0)", "language": "python" }));
    assert_eq!(told["status"], "Success", "{}", told["message"]);
    let length = told["run_result"]["stdout"].as_str().unwrap().len();
    assert!((1 << 20..=2 << 20).contains(&length), "{length}");

    // Files in and out; what is not there is left out, and no name is a pattern.
    let told = run(
        &server,
        json!({ "language": "python", "files": { "in/a.bin": "AAH/", "nothing": null }, "fetch_files": ["out[1].txt", "in/a.bin", "no"],
            "code": "import os; open('out[1].txt', 'w').write('x'); open('out1.txt', 'w'); print(os.path.exists('nothing'))" }),
    );
    assert_eq!(told["files"], json!({ "out[1].txt": "eA==", "in/a.bin": "AAH/" }), "{told}");
    assert_eq!(told["run_result"]["stdout"], "False\n");

    let cpp = |code: &str| run(&server, json!({ "code": code, "language": "cpp" }));
    let told = cpp("#include <iostream>\nint main() { std::cout << 42; }");
    assert_eq!((&told["compile_result"]["return_code"], &told["run_result"]["stdout"]), (&json!(0), &json!("42")));
    let told = cpp("int main() { return x; }");
    assert_eq!((&told["status"], &told["run_result"]), (&json!("Failed"), &Value::Null));
    assert!(told["compile_result"]["stderr"].as_str().unwrap().contains("error"), "{told}");
}

#[test]
fn what_is_wrong_is_told_as_pydantic_does() {
    let server = Server::with_languages_and(&[ON]);
    let detail = |answer: Answer| {
        assert_eq!(answer.status, 422, "{}", answer.text);
        answer.json()["detail"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["loc"].clone(), one["type"].clone()))
            .collect::<Vec<_>>()
    };
    let post = |body: &str| server.post_to("/run_code", body, &[("Content-Type", "text/plain")]);
    assert_eq!(
        detail(post("{}")),
        [(json!(["body", "code"]), json!("missing")), (json!(["body", "language"]), json!("missing"))]
    );
    let wrong = r#"{"code": 1, "language": "python", "run_timeout": "soon", "files": [], "fetch_files": "x"}"#;
    let fields: Vec<Value> = detail(post(wrong)).into_iter().map(|(place, _)| place[1].clone()).collect();
    assert_eq!(fields, ["code", "run_timeout", "files", "fetch_files"]);
    assert_eq!(detail(post(r#"{"code": "", "language": "cobol"}"#)), [(json!(["body", "language"]), json!("enum"))]);
    let answer = post(r#"{"code": "", "language": "lua"}"#);
    assert!(answer.text.contains("lua is not on this server: faber image build lua"), "{}", answer.text);
    assert_eq!(detail(post("{"))[0].1, "json_invalid");
    assert_eq!(server.post_to("/run_code/", r#"{"code": "", "language": "python"}"#, &[]).status, 200);
}

/// Overload is held, or 504; keys are Faber's.
#[test]
fn who_may_not_or_not_now_is_told_in_its_form() {
    let (_, keys) = new_key();
    let server =
        Server::start(&[], &[ON, ("FABER_AUTH__KEYS", keys.as_str()), ("FABER_RATE_LIMIT__PER_IP_PER_MINUTE", "2")]);
    let post = || server.post_to("/run_code", "{}", &[]);
    let answer = post();
    assert_eq!((answer.status, answer.json()), (401, json!({ "detail": "API key is required for this endpoint" })));
    post();
    let answer = post();
    assert_eq!((answer.status, answer.json()), (504, json!({ "detail": "Too many requests, please try again later" })));
    assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds >= 1));
}

fn client(python: &std::path::Path, server: &Server, script: &str) -> String {
    let mut command = Command::new(python);
    command.args(["-c", script, &server.url()]).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn its_own_client_works_unchanged() {
    let python = pypi::python("sandbox-fusion", &["sandbox-fusion==0.3.7"]);
    let server = Server::with_languages_and(&[ON]);
    let script = r#"
import sys, asyncio
from sandbox_fusion import *
set_endpoint(sys.argv[1])
r = run_code(RunCodeRequest(code="print(int(input()) * 2)", language="python", stdin="21"), max_attempts=1)
print(r.status.value, r.run_result.stdout.strip(), r.run_result.return_code)
r = run_code(RunCodeRequest(code="int main() { return 7; }", language="cpp"), max_attempts=1)
print(r.status.value, r.compile_result.status.value, r.run_result.return_code)
r = run_code(RunCodeRequest(code="while True: pass", language="python", run_timeout=0.3), max_attempts=1)
print(r.status.value, r.run_result.status.value)
requests = [RunCodeRequest(code=f"print({n})", language="python") for n in range(64)]
rs = run_concurrent(run_code, args=[[r] for r in requests], concurrency=64)
print([r.run_result.stdout.strip() for r in rs] == [str(n) for n in range(64)])
print(asyncio.run(run_code_async(RunCodeRequest(code="print(1)", language="python"))).run_result.stdout.strip())
"#;
    let told = client(&python, &server, script);
    assert_eq!(
        told.lines().collect::<Vec<_>>(),
        ["Success 42 0", "Failed Finished 7", "Failed TimeLimitExceeded", "True", "1"]
    );
}

/// `verl.utils.reward_score.sandbox_fusion.utils` alone: the rest of verl takes PyTorch.
#[test]
fn verls_reward_function_works_unchanged() {
    let python = pypi::python("verl", &["requests==2.32.5", "--no-deps", "verl==0.9.1"]);
    let server = Server::with_languages_and(&[ON]);
    let script = r#"
import importlib.util, json, sysconfig, sys
place = sysconfig.get_paths()["purelib"] + "/verl/utils/reward_score/sandbox_fusion/utils.py"
spec = importlib.util.spec_from_file_location("utils", place)
utils = importlib.util.module_from_spec(spec)
spec.loader.exec_module(utils)
url = sys.argv[1] + "/run_code"
cases = {"inputs": [f"{n} {n}\n" for n in range(24)], "outputs": [f"{2 * n}\n" for n in range(24)]}
check = lambda code, cases=cases, language="python": utils.check_correctness(url, cases, code, timeout=5, language=language)[0]
print(all(r is True for r in check("a, b = map(int, input().split())\nprint(a + b)")))
one = {"inputs": ["1 2\n"], "outputs": ["3\n"]}
print(check("print(4)", one), check("exit(1)", one), check("while True: pass", one), check("int main() {", one, "cpp"))
"#;
    let told = client(&python, &server, script);
    assert_eq!(told.lines().collect::<Vec<_>>(), ["True", "[False] [-2] [-3] [-4]"]);
}
