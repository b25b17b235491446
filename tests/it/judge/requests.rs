//! What a request can ask for, and what it is told.

use std::io::Write;
use std::net::TcpStream;

use serde_json::{Value, json};

use super::{judge, verdicts};
use crate::support::{Server, eventually, groups_of, running};

/// A shell script as the solution, in the machine's own image.
fn shell(script: &str, cases: Value) -> Value {
    json!({ "command": "bash", "args": ["-c", script], "cases": cases })
}

/// A decider of the machine's own image.
fn bash(script: &str) -> Value {
    json!({ "command": "bash", "args": ["-c", script] })
}

/// The request with more in it.
fn with(mut request: Value, more: Value) -> Value {
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

/// Echoes its input, which is right where that is what was expected.
fn echo(inputs: &[(&str, &str)]) -> Value {
    let case = |(stdin, expected): &(&str, &str)| json!({ "stdin": stdin, "expected": expected });
    shell("cat", inputs.iter().map(case).collect())
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn an_answer_has_the_keys_of_the_page() {
    let server = Server::start_open();
    let answer = judge(&server, &echo(&[("1\n", "1\n"), ("2\n", "3\n"), ("4\n", "4")]));
    assert_eq!(keys(&answer), ["verdict", "compile", "cases", "max"]);
    assert_eq!((&answer["verdict"], &answer["compile"]), (&json!("WrongAnswer"), &Value::Null));
    assert_eq!(keys(&answer["max"]), ["cpu_time_ns", "wall_time_ns", "memory_peak_bytes"]);
    let case = &answer["cases"][1];
    let result = ["status", "exit_code", "stdout", "stderr", "error", "resource_usage", "resource_limits_exceeded"];
    assert_eq!(keys(case), [&["name", "verdict", "message"][..], &result].concat());
    assert_eq!(case["message"], "line 1: expected \"3\", got \"2\"");
    assert_eq!([&case["name"], &case["status"], &case["stdout"]], [&json!("2"), &json!("Success"), &json!("2\n")]);
    assert_eq!(answer["cases"][0]["message"], Value::Null);
    for of in ["cpu_time_ns", "wall_time_ns", "memory_peak_bytes"] {
        let most = answer["cases"].as_array().unwrap().iter().map(|case| case["resource_usage"][of].as_u64()).max();
        assert_eq!(answer["max"][of].as_u64(), most.unwrap(), "{of}");
        assert!(answer["max"][of].as_u64() > Some(0), "{of}");
    }
}

/// After the first failure, by the order of the cases, nothing; before it everything: however they overlap in time.
#[test]
fn cases_after_the_first_failure_are_skipped() {
    let server = Server::start_open();
    // Those that come later fail sooner.
    let script = "read wait; sleep $wait; echo $wait";
    let case = |wait: &str, expected: &str| json!({ "stdin": format!("{wait}\n"), "expected": expected });
    let mut cases = vec![case("0.3", "0.3"), case("0.2", "0.2"), case("0.5", "wrong"), case("0.01", "wrong")];
    cases.extend(vec![case("5", "5"); 40]);
    cases[0] = case("0.6", "0.6");
    for _ in 0..3 {
        let request = with(shell(script, cases.clone().into()), json!({ "stop": "first_failure" }));
        let answer = judge(&server, &request);
        let expected = [vec!["Accepted", "Accepted", "WrongAnswer"], vec!["Skipped"; 41]].concat();
        assert_eq!(verdicts(&answer), expected);
        assert_eq!(answer["verdict"], "WrongAnswer");
        let skipped = &answer["cases"][3];
        assert_eq!((&skipped["status"], &skipped["exit_code"]), (&json!("NotExecuted"), &Value::Null));
        assert_eq!(skipped["resource_usage"]["wall_time_ns"], 0);
        assert!(answer["max"]["wall_time_ns"].as_u64() < Some(5_000_000_000), "{}", answer["max"]);
    }
    let never = judge(&server, &shell(script, cases[..5].to_vec().into()));
    assert_eq!(verdicts(&never), ["Accepted", "Accepted", "WrongAnswer", "WrongAnswer", "Accepted"]);
    let accepted = with(shell(script, cases[..2].to_vec().into()), json!({ "stop": "first_failure" }));
    assert_eq!(judge(&server, &accepted)["verdict"], "Accepted");
}

#[test]
fn output_is_cut_unless_all_of_it_is_asked_for() {
    let server = Server::start_open();
    let long = format!("{}é{}", "x".repeat(1023), "y".repeat(5000));
    let request = echo(&[(&long, &long), ("short", "short")]);
    let cut = judge(&server, &request);
    assert_eq!(cut["verdict"], "Accepted", "what is compared is all of it");
    // No half of a letter.
    assert_eq!(cut["cases"][0]["stdout"], "x".repeat(1023));
    assert_eq!(cut["cases"][1]["stdout"], "short");
    let whole = judge(&server, &with(request, json!({ "outputs": true })));
    assert_eq!(whole["cases"][0]["stdout"], long);
    assert_eq!(judge(&server, &echo(&[("", "")]))["cases"][0]["stdout"], Value::Null);
}

#[test]
fn each_case_has_arguments_environment_files_and_limits_of_its_own() {
    let server = Server::start_open();
    let script = "echo \"$1 $A $B $(cat own shared 2>/dev/null | tr '\\n' ' ')\"; touch left; ls | wc -l";
    let request = json!({
        "command": "bash", "args": ["-c", script, "bash", "all"],
        "env": { "A": "a", "B": "b" }, "files": { "shared": "shared\n" },
        "resource_limits": { "wall_time_limit": 20_000_000_000u64 },
        "cases": [
            { "expected": "all a b shared\n2\n" },
            { "args": ["-c", script, "bash", "own"], "expected": "own a b shared\n2\n" },
            { "env": { "B": "case", "C": "more" }, "expected": "all a case shared\n2\n" },
            { "files": { "own": "own\n" }, "expected": "all a b own shared\n3\n" },
            { "files": { "shared": { "base64": "Y2FzZQo=", "mode": "0600" } }, "expected": "all a b case\n2\n" },
            { "args": ["-c", "sleep 5"], "resource_limits": { "wall_time_limit": 100_000_000 }, "expected": "" },
            { "args": ["-c", "x=$(head -c 30000000 /dev/zero | tr '\\0' x)"],
              "resource_limits": { "memory_limit": 16_777_216 }, "expected": "" },
            { "files": { "../out": "" }, "expected": "" },
            { "resource_limits": { "memory_limit": 1u64 << 60 }, "expected": "" },
            { "name": "last", "expected": "all a b shared\n2\n" },
        ],
    });
    let answer = judge(&server, &request);
    let mut expected = vec!["Accepted"; 5];
    expected.extend(["TimeLimitExceeded", "MemoryLimitExceeded", "NotExecuted", "NotExecuted", "Accepted"]);
    assert_eq!(verdicts(&answer), expected, "{answer:#}");
    assert_eq!(answer["verdict"], "TimeLimitExceeded");
    let (path, limit, last) = (&answer["cases"][7], &answer["cases"][8], &answer["cases"][9]);
    assert!(path["error"].as_str().unwrap().contains(".."), "{path}");
    assert!(limit["error"].as_str().unwrap().contains("above this server's maximum"), "{limit}");
    assert_eq!(last["name"], "last");
}

#[test]
fn contents_may_be_blobs() {
    let server = Server::start_open();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let blob = server.put_blob(&bytes);
    let missing = json!({ "blob": format!("sha256:{}", "0".repeat(64)) });
    let cases = json!([
        { "stdin": blob, "expected": blob },
        { "stdin": blob, "expected": "no" },
        { "stdin": missing, "expected": blob },
        { "stdin": "", "expected": missing },
        { "files": { "f": missing }, "expected": "" },
        { "args": ["-c", "cat f"], "files": { "f": blob }, "expected": blob },
    ]);
    let answer = judge(&server, &with(shell("cat", cases), json!({ "compare": "exact" })));
    let expected = ["Accepted", "WrongAnswer", "NotExecuted", "NotExecuted", "NotExecuted", "Accepted"];
    assert_eq!(verdicts(&answer), expected, "{answer:#}");
    for case in 2..5 {
        assert_eq!(answer["cases"][case]["error"], format!("there is no blob {}", missing["blob"].as_str().unwrap()));
    }
}

#[test]
fn what_cannot_be_run_is_not_executed() {
    let server = Server::start_open();
    let cases = json!([{ "expected": "" }, { "expected": "" }]);
    let programs = [
        (json!({ "language": "klingon", "code": "" }), "unknown language \"klingon\""),
        (json!({ "command": "true", "image": "none" }), "unknown image \"none\""),
        (
            json!({ "command": "true", "resource_limits": { "memory_limit": 1u64 << 60 } }),
            "above this server's maximum",
        ),
        (json!({ "command": "true", "files": { "/x": "" } }), "absolute"),
    ];
    for (program, expected) in programs {
        let answer = judge(&server, &with(program, json!({ "cases": cases })));
        assert_eq!((&answer["verdict"], verdicts(&answer)), (&json!("NotExecuted"), vec!["NotExecuted"; 2]));
        for case in answer["cases"].as_array().unwrap() {
            assert!(case["error"].as_str().unwrap().contains(expected), "{case}");
            assert_eq!((&case["status"], &case["exit_code"]), (&json!("NotExecuted"), &Value::Null));
        }
        assert_eq!(answer["max"], json!({ "cpu_time_ns": 0, "wall_time_ns": 0, "memory_peak_bytes": 0 }));
    }
    // A command that is not there is a program's failure, as everywhere.
    let absent = judge(&server, &json!({ "command": "absent", "cases": cases }));
    assert_eq!((&absent["verdict"], &absent["cases"][0]["exit_code"]), (&json!("RuntimeError"), &json!(127)));
}

#[test]
fn too_much_output_is_told_as_that() {
    let server = Server::start_open();
    let cases = json!([
        { "args": ["-c", "yes"], "expected": "" },
        { "args": ["-c", "yes >&2"], "expected": "" },
        { "args": ["-c", "yes | head -c 1000"], "expected": "" },
        { "args": ["-c", "yes | head -c 1001; exit 0"], "expected": "" },
    ]);
    let limits = json!({ "max_output_size": 1000, "wall_time_limit": 10_000_000_000u64 });
    let answer = judge(&server, &with(shell("", cases.clone()), json!({ "resource_limits": limits })));
    let exceeded = "OutputLimitExceeded";
    assert_eq!(verdicts(&answer), [exceeded, exceeded, "WrongAnswer", exceeded], "{answer:#}");
    assert_eq!(answer["cases"][0]["resource_limits_exceeded"]["output_limit_exceeded"], true);
    let checker = json!({ "resource_limits": limits, "compare": { "checker": bash("wc -c < output") } });
    let answer = judge(&server, &with(shell("", cases), checker));
    assert_eq!(verdicts(&answer), [exceeded, exceeded, "Accepted", exceeded], "{answer:#}");
    assert_eq!(answer["cases"][2]["message"], "1000");
}

#[test]
fn a_checker_decides_by_its_exit_status_and_says_why() {
    let server = Server::start_open();
    let cases = json!([
        { "stdin": "in", "args": ["-c", "echo out"], "expected": "out" },
        { "stdin": "in", "args": ["-c", "echo other"], "expected": "out" },
        { "stdin": "other", "args": ["-c", "echo out"] },
        { "args": ["-c", "exit 7"], "expected": "out" },
    ]);
    let judged = |checker: Value| {
        let answer = judge(&server, &with(shell("", cases.clone()), json!({ "compare": { "checker": checker } })));
        let told = |case: &Value| (case["verdict"].as_str().unwrap().to_owned(), case["message"].clone());
        answer["cases"].as_array().unwrap().iter().map(told).collect::<Vec<_>>()
    };
    let told = |verdict: &str, message: Value| (verdict.to_owned(), message);
    let crashed = told("RuntimeError", Value::Null);
    let script = "echo \"$(cat input) $(cat output) $(cat expected)\"; test \"$(cat output)\" = \"$(cat expected)\"";
    assert_eq!(
        judged(bash(script)),
        [
            told("Accepted", json!("in out out")),
            told("WrongAnswer", json!("in other out")),
            told("WrongAnswer", json!("other out")),
            crashed.clone(),
        ]
    );
    let fails = [
        (bash("echo broken; exit 3"), "exit status 3: broken"),
        (bash("exit 2"), "exit status 2"),
        (bash("kill -SEGV $$"), "killed by signal 11 (SIGSEGV)"),
        (
            with(bash("sleep 9"), json!({ "resource_limits": { "wall_time_limit": 200_000_000 } })),
            "wall time limit of 200 ms exceeded",
        ),
        (json!({ "command": "absent" }), "command not found"),
        (json!({ "command": "true", "image": "none" }), "unknown image \"none\""),
        (json!({ "language": "klingon", "code": "" }), "unknown language \"klingon\""),
    ];
    for (checker, expected) in fails {
        let told = judged(checker);
        for (verdict, message) in &told[..3] {
            assert_eq!(verdict, "CheckerError", "{expected}");
            assert!(message.as_str().unwrap().contains(expected), "{message}: {expected}");
        }
    }
    // Its words are a message, not a file.
    let long = judged(bash("printf 'é%.0s' {1..1000}; head -c 2000 /dev/zero | tr '\\0' x; exit 1"));
    assert_eq!(long[0].1, "é".repeat(512));
    // The output is whole, and bytes.
    let bytes = json!({
        "command": "bash", "args": ["-c", "head -c 300000 /dev/zero; printf '\\xff'"], "cases": [{}],
        "compare": { "checker": bash("stat -c %s output; tail -c 1 output | od -An -tx1; ls input expected; cat input expected") },
    });
    assert_eq!(judge(&server, &bytes)["cases"][0]["message"], "300001\n ff\nexpected\ninput");
}

/// A program for each side, and what comes of it.
#[test]
fn an_interactor_and_a_solution_talk_and_who_ends_first_counts() {
    let server = Server::start_open();
    let ask = "echo $(($(cat input) * 2)); read answer; test \"$answer\" = \"$(cat input)\" || { echo no, $answer >&2; exit 1; }; echo yes >&2";
    let halve = "read number; echo $((number / 2))";
    let table = [
        (halve, ask, "Accepted", json!("yes")),
        ("read number; echo $number", ask, "WrongAnswer", json!("no, 42")),
        // Nobody begins.
        ("read number; read more", "read answer; exit 1", "TimeLimitExceeded", Value::Null),
        ("exit 0", ask, "WrongAnswer", Value::Null),
        ("exec >&-; read number; sleep 0.3", ask, "WrongAnswer", json!("no,")),
        ("exit 3", ask, "RuntimeError", Value::Null),
        ("read number; kill -SEGV $$", ask, "RuntimeError", json!("no,")),
        // One that ended took the other with it.
        ("exit 0", "sleep 0.2; while echo more; do :; done; kill -PIPE $$", "WrongAnswer", Value::Null),
        ("while echo more; do :; done; kill -PIPE $$", "read answer; echo enough >&2", "Accepted", json!("enough")),
        (
            "while echo more; do :; done; kill -PIPE $$",
            "read answer; echo bad >&2; exit 1",
            "WrongAnswer",
            json!("bad"),
        ),
        ("read answer || exit 9", "sleep 0.1; exit 1", "WrongAnswer", Value::Null),
        // An interactor that fails is nobody else's failure.
        ("read answer || exit 9", "sleep 0.1; echo oh >&2; exit 3", "CheckerError", json!("exit status 3: oh")),
        ("sleep 0.5", "kill -SEGV $$", "CheckerError", json!("killed by signal 11 (SIGSEGV)")),
        ("exit 0", "cat > /dev/null; exit 4", "CheckerError", json!("exit status 4")),
        // The interactor's clock ran out while the solution let it wait.
        ("read answer || exit 9", "read answer # short", "TimeLimitExceeded", Value::Null),
    ];
    for (solution, interactor, verdict, message) in table {
        let limit = if interactor.ends_with("short") { 300_000_000u64 } else { 20_000_000_000 };
        let answer = judge(
            &server,
            &json!({
                "command": "bash", "args": ["-c", solution], "cases": [{ "stdin": "21\n" }],
                "resource_limits": { "wall_time_limit": 1_500_000_000 },
                "interactor": with(bash(interactor), json!({ "resource_limits": { "wall_time_limit": limit } })),
            }),
        );
        let case = &answer["cases"][0];
        assert_eq!(case["verdict"], verdict, "{solution} | {interactor}: {case:#}");
        if !message.is_null() {
            assert_eq!(case["message"], message, "{solution} | {interactor}: {case:#}");
        }
    }
    let refused = [
        (json!({ "command": "absent" }), "CheckerError"),
        (json!({ "command": "true", "image": "none" }), "CheckerError"),
    ];
    for (interactor, verdict) in refused {
        let request = json!({ "command": "cat", "cases": [{}], "interactor": interactor });
        let answer = judge(&server, &request);
        assert_eq!(answer["verdict"], verdict, "{answer:#}");
    }
}

#[test]
fn requests_that_cannot_be_judged_are_refused_with_the_place() {
    let env = [("FABER_RATE_LIMIT__ENABLED", "false"), ("FABER_JUDGE__MAX_CASES", "3")];
    let server = Server::start(&["--open-mode"], &env);
    let case = r#"{"expected": ""}"#;
    let four = format!(r#"{{"command": "true", "cases": [{}]}}"#, [case; 4].join(","));
    let with_task = |rest: &str| format!(r#"{{"command": "true", "cases": [{case}], {rest}}}"#);
    let with_case = |case: &str| format!(r#"{{"command": "true", "cases": [{{"expected": ""}}, {case}]}}"#);
    let cases = [
        ("".into(), "EOF while parsing"),
        ("[]".into(), "invalid type: sequence"),
        (r#"{"command": "true"}"#.into(), "missing field `cases`"),
        (r#"{"command": "true", "cases": []}"#.into(), "at least one case is needed"),
        (r#"{"command": "true", "cases": {}}"#.into(), "cases: invalid type: map"),
        (four, "4 cases are more than the 3 allowed"),
        (format!(r#"{{"cases": [{case}]}}"#), "missing field `command`"),
        (format!(r#"{{"language": "c", "cases": [{case}]}}"#), "language needs code"),
        (format!(r#"{{"code": "", "cases": [{case}]}}"#), "code needs a language"),
        (with_task(r#""language": "c", "code": """#), "command stands in place of language and code"),
        (with_task(r#""compile_limits": {}"#), "compile_limits goes with language"),
        (with_task(r#""more": 1"#), "unknown field `more`"),
        (with_task(r#""stop": "now""#), "stop: unknown variant `now`"),
        (with_task(r#""outputs": "all""#), "outputs: invalid type: string"),
        (with_task(r#""compare": "near""#), "compare: unknown variant `near`"),
        (with_task(r#""compare": {"float": -1}"#), "tolerance"),
        (with_task(r#""compare": {"checker": {}}"#), "compare.checker: missing field `command`"),
        (with_task(r#""compare": {"checker": ["true"]}"#), "compare.checker: invalid type: sequence"),
        (with_task(r#""compare": {"checker": {"command": "a", "args": [1]}}"#), "compare.checker.args[0]"),
        (with_task(r#""compare": {"checker": {"command": "a", "stdin": ""}}"#), "compare.checker: stdin"),
        (with_task(r#""compare": {"checker": {"command": "a", "needs": ["b"]}}"#), "compare.checker: stdin"),
        (with_task(r#""interactor": {"command": "a", "outputs": ["b"]}"#), "interactor: stdin, outputs"),
        (with_task(r#""interactor": {"language": "a"}"#), "interactor: language needs code"),
        (with_task(r#""interactor": {"command": "a"}, "compare": "exact""#), "interactor stands in place of compare"),
        (with_task(r#""files": {"a": {"from": "b", "file": "c"}}"#), "no tasks to take something from"),
        (with_case("{}"), "cases[1]: expected is missing"),
        (with_case(r#"{"expected": 1}"#), "cases[1].expected"),
        (with_case(r#"{"expected": "", "input": ""}"#), "cases[1].input: unknown field `input`"),
        (with_case(r#"{"expected": "", "stdin": {"text": "a", "base64": ""}}"#), "cases[1].stdin"),
        (with_case(r#"{"expected": "", "stdin": {"base64": "!"}}"#), "cases[1].stdin"),
        (with_case(r#"{"expected": "", "stdin": {"blob": "sha256:1"}}"#), "cases[1].stdin"),
        (with_case(r#"{"expected": {"from": "a", "stream": "stdout"}}"#), "cases[1]: a judgement has no tasks"),
        (with_case(r#"{"expected": "", "resource_limits": {"memory": 1}}"#), "cases[1].resource_limits"),
        (with_case(&format!(r#"{{"expected": "", "name": "{}"}}"#, "n".repeat(257))), "cases[1].name: longer than 256"),
    ];
    let mut wrong = Vec::new();
    for (body, expected) in cases {
        let answer = server.post_to("/judge", &body, &[]);
        let error: Value = serde_json::from_str(&answer.text).unwrap_or_default();
        let details = error["details"].as_str().unwrap_or_default();
        if answer.status != 400 || error["error"] != "Validation error" || !details.contains(expected) {
            wrong.push(format!("{body}\n  says     {} {}\n  expected {expected}", answer.status, answer.text));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let three = format!(r#"{{"command": "true", "cases": [{}]}}"#, [case; 3].join(","));
    assert_eq!(server.post_to("/judge", &three, &[]).json()["verdict"], "Accepted");
    assert_eq!(server.get("/judge").status, 405);
    let text = server.post_to("/judge", &three, &[("Content-Type", "text/plain")]);
    assert_ne!(text.status, 200, "{}", text.text);
}

#[test]
fn what_nobody_waits_for_ends() {
    let server = Server::start_open();
    let body = with(shell("sleep 77.7", vec![json!({ "expected": "" }); 20].into()), json!({})).to_string();
    let mut stream = TcpStream::connect(server.url().strip_prefix("http://").unwrap()).unwrap();
    let head = "POST /judge HTTP/1.1\r\nHost: faber\r\nContent-Type: application/json";
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    eventually("a case runs", || !running(&["sleep", "77.7"]).is_empty());
    drop(stream);
    eventually("everything has ended", || running(&["sleep", "77.7"]).is_empty());
    // The others do not come after it, and the next has its turn.
    assert_eq!(judge(&server, &echo(&[("1", "1")]))["verdict"], "Accepted");
    assert!(running(&["sleep", "77.7"]).is_empty());
    assert!(!groups_of(server.instance()).is_empty(), "the server is still there, with its idle containers");
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[test]
fn many_cases_all_have_their_turn() {
    let server = Server::start_open();
    let numbers: Vec<String> = (0..300).map(|number| format!("{number}\n")).collect();
    let cases: Vec<(&str, &str)> = numbers.iter().map(|number| (number.as_str(), number.as_str())).collect();
    let answer = judge(&server, &echo(&cases));
    assert_eq!(answer["verdict"], "Accepted");
    let stdout: Vec<&str> =
        answer["cases"].as_array().unwrap().iter().map(|case| case["stdout"].as_str().unwrap()).collect();
    assert_eq!(stdout, numbers, "in the request's order");
}
