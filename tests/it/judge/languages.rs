//! Languages: what there is, and what compiling one says.

use serde_json::{Value, json};

use super::{judge, verdicts};
use crate::support::Server;

#[test]
fn languages_are_those_of_the_images() {
    let server = Server::with_languages();
    let answer = server.get("/languages");
    assert_eq!(answer.status, 200, "{}", answer.text);
    let languages = answer.json();
    let languages = languages.as_array().unwrap();
    let names: Vec<&Value> = languages.iter().map(|language| &language["language"]).collect();
    assert_eq!(names, ["cpp", "java", "node", "python", "rust"], "without the host image, which is of no language");
    for language in languages {
        let keys: Vec<&String> = language.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["language", "version", "image", "file", "compile", "run"]);
        assert_eq!(language["image"], language["language"]);
        assert!(language["version"].as_str().unwrap().contains(|c: char| c.is_ascii_digit()), "{language}");
    }
    let of = |at: usize, key: &str| languages[at][key].clone();
    assert_eq!([of(0, "file"), of(1, "file"), of(4, "file")], ["main.cpp", "Main.java", "main.rs"]);
    assert_eq!((of(3, "compile"), of(3, "run")), (json!([]), json!(["python3", "main.py"])));
    assert_eq!((of(0, "compile")[0].clone(), of(0, "run")), (json!("g++"), json!(["./main"])));
    assert_eq!(Server::start_open().get("/languages").json(), json!([]));
}

#[test]
fn what_does_not_compile_is_told_once_and_nothing_runs() {
    let server = Server::with_languages();
    let programs = [
        ("cpp", "int main() { return nothing; }", "was not declared"),
        ("java", "public class Main { void main() { nothing(); } }", "cannot find symbol"),
        ("rust", "fn main() { nothing(); }", "cannot find function"),
    ];
    let cases = json!([{ "expected": "" }, { "expected": "" }, { "expected": "" }]);
    for (language, code, said) in programs {
        for stop in ["never", "first_failure"] {
            let answer = judge(&server, &json!({ "language": language, "code": code, "cases": cases, "stop": stop }));
            let rest = if stop == "never" { "CompileError" } else { "Skipped" };
            assert_eq!(verdicts(&answer), ["CompileError", rest, rest], "{answer:#}");
            let compile = &answer["compile"];
            assert_eq!((&answer["verdict"], &compile["status"]), (&json!("CompileError"), &json!("Failure")));
            let words = format!("{}{}", compile["stdout"], compile["stderr"]);
            assert!(words.contains(said), "{compile}");
            let case = &answer["cases"][0];
            assert_eq!(case["exit_code"], compile["exit_code"]);
            assert_eq!((&case["status"], &case["error"]), (&json!("Failure"), &json!("compilation failed")));
            assert_eq!(case["resource_usage"]["wall_time_ns"], 0);
        }
    }
    // One that takes too long is no program either; one that cannot be had was not executed.
    let slow = "template <int n> struct T { static const int v = T<n - 1>::v + T<n - 2>::v; }; int main() {}";
    let slow = format!("{slow} {}", "#include <bits/stdc++.h>\n#include <regex>\nstd::regex r(\"a\");");
    let answer = judge(
        &server,
        &json!({ "language": "cpp", "code": slow, "cases": cases, "compile_limits": { "cpu_time_limit": 20_000_000 } }),
    );
    assert_eq!(answer["verdict"], "CompileError", "{answer:#}");
    assert_eq!(answer["compile"]["status"], "CpuLimitExceeded");
    assert!(answer["cases"][0]["error"].as_str().unwrap().starts_with("compilation failed: CPU time limit"));
    let missing = json!({ "blob": format!("sha256:{}", "0".repeat(64)) });
    let answer = judge(&server, &json!({ "language": "cpp", "code": missing, "cases": cases }));
    assert_eq!((&answer["verdict"], &answer["compile"]["status"]), (&json!("NotExecuted"), &json!("NotExecuted")));
    assert!(answer["cases"][0]["error"].as_str().unwrap().contains("there is no blob"), "{answer:#}");
}

#[test]
fn a_program_is_compiled_once() {
    let server = Server::with_languages();
    let code = "#include <iostream>\nint main() { int n; std::cin >> n; std::cout << n; return n; }";
    let request = |more: Value| {
        let mut request = json!({
            "language": "cpp", "code": code, "cases": [{ "stdin": "0", "expected": "0" }],
            "compare": { "checker": { "language": "rust", "code": "fn main() {}" } },
        });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    let first = judge(&server, &request(json!({})));
    assert_eq!((&first["verdict"], first["compile"].get("cached")), (&json!("Accepted"), None), "{first:#}");
    let other = json!({ "cases": [{ "stdin": "3", "expected": "" }], "compare": "exact" });
    let second = judge(&server, &request(other));
    assert_eq!((&second["verdict"], &second["compile"]["cached"]), (&json!("RuntimeError"), &json!(true)));
    assert_eq!(second["compile"]["resource_usage"], first["compile"]["resource_usage"]);
    assert_eq!(second["cases"][0]["exit_code"], 3);
    // What it is compiled with is part of it.
    let files = judge(&server, &request(json!({ "files": { "more.h": "" } })));
    assert_eq!(files["compile"].get("cached"), None, "{files:#}");
    // What is not kept: a failure.
    for _ in 0..2 {
        let failed = judge(&server, &request(json!({ "code": "int main() {" })));
        assert_eq!((&failed["verdict"], failed["compile"].get("cached")), (&json!("CompileError"), None));
    }
}

/// Files of the request are there when it is compiled, those of the case when it runs.
#[test]
fn files_are_where_they_are_needed() {
    let server = Server::with_languages();
    let answer = judge(
        &server,
        &json!({
            "language": "cpp", "files": { "number.h": "const int number = 42;\n" },
            "code": "#include \"number.h\"\n#include <fstream>\n#include <iostream>\nint main(int n, char **args) { std::string s; std::ifstream(\"case\") >> s; std::cout << number << s << args[n - 1]; }",
            "args": ["all"],
            "cases": [
                { "files": { "case": "a" }, "expected": "42aall" },
                { "args": ["x", "own"], "expected": "42own" },
            ],
        }),
    );
    assert_eq!(verdicts(&answer), ["Accepted", "Accepted"], "{answer:#}");
}

#[test]
fn a_checker_that_does_not_compile_is_an_error_of_the_checker() {
    let server = Server::with_languages();
    let broken = json!({ "language": "cpp", "code": "int main() { return nothing; }" });
    for decider in [json!({ "compare": { "checker": broken } }), json!({ "interactor": broken })] {
        let mut request = json!({ "language": "python", "code": "print(1)", "cases": [{}, {}] });
        request.as_object_mut().unwrap().extend(decider.as_object().unwrap().clone());
        let answer = judge(&server, &request);
        assert_eq!(verdicts(&answer), ["CheckerError", "CheckerError"], "{answer:#}");
        let message = answer["cases"][0]["message"].as_str().unwrap();
        assert!(message.starts_with("compilation failed: ") && message.contains("was not declared"), "{message}");
        assert_eq!((&answer["compile"], &answer["cases"][0]["status"]), (&Value::Null, &json!("NotExecuted")));
    }
    // The solution's own failure comes first.
    let request = json!({ "language": "rust", "code": "fn", "cases": [{}], "compare": { "checker": broken } });
    assert_eq!(judge(&server, &request)["verdict"], "CompileError");
}
