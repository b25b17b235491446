//! What README shows to be pasted, as it stands there; only the address is this server's.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Server, pypi};

const README: &str = include_str!("../../README.md");
const ADDRESS: &str = "http://127.0.0.1:8080";

/// The blocks of a section in this language.
fn blocks<'a>(section: &str, language: &str) -> Vec<&'a str> {
    let start = README.find(&format!("\n## {section}\n")).unwrap_or_else(|| panic!("README has no section {section}"));
    let text = &README[start + 1..];
    let text = &text[..text.find("\n## ").unwrap_or(text.len())];
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

/// The requests of a section that curl makes.
fn curls(section: &str) -> Vec<&'static str> {
    let commands = blocks(section, "console").into_iter().filter_map(|block| block.strip_prefix("$ "));
    commands.filter(|command| command.starts_with("curl") && command.contains(" -d ")).collect()
}

#[track_caller]
fn output(program: &str, flag: &str, text: &str, server: &Server) -> String {
    let text = text.replace(ADDRESS, &server.url());
    let output = Command::new(program).args([flag, &text]).output().unwrap();
    assert!(output.status.success(), "{program} {flag} {text}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn answers(section: &str) -> Vec<Value> {
    let server = Server::start_open();
    let ask = |command: &&str| {
        let text = output("bash", "-c", command, &server);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}: {text}"))
    };
    curls(section).iter().map(ask).collect()
}

#[test]
fn judge_a_program() {
    let [judgement] = &answers("Judge a program")[..] else { panic!("one request") };
    assert_eq!((&judgement["verdict"], &judgement["compile"]), (&json!("WrongAnswer"), &json!(null)), "{judgement}");
    let cases: Vec<_> =
        judgement["cases"].as_array().unwrap().iter().map(|case| (&case["name"], &case["verdict"])).collect();
    assert_eq!(cases, [(&json!("small"), &json!("Accepted")), (&json!("large"), &json!("WrongAnswer"))]);
    assert_eq!(judgement["cases"][1]["message"], "token 1 (line 1): expected \"30\", got \"10\"");
}

#[test]
fn get_files_back() {
    let [answer] = &answers("Get files back")[..] else { panic!("one request") };
    let files = &answer["results"][0]["files"];
    assert_eq!(
        (&files["count"]["text"], &files["words.txt"]["text"]),
        (&json!("2\n"), &json!("apple\npear\n")),
        "{answer}"
    );
    // What README shows of the digests is theirs.
    for file in ["count", "words.txt"] {
        assert!(README.contains(files[file]["sha256"].as_str().unwrap()), "{files}");
    }
}

#[test]
fn steps() {
    let [steps, pipes] = &answers("Steps")[..] else { panic!("two requests") };
    let results = &steps["results"];
    assert_eq!((&results[1]["stdout"], &results[1]["verdict"]), (&json!("1\n2\n3\n"), &json!("Accepted")), "{steps}");
    assert_eq!(results[2]["stdout"], "always\n");
    assert_eq!(pipes["results"][0]["stderr"], "42\n", "{pipes}");
}

#[test]
fn follow_a_task_and_talk_to_it() {
    let server = Server::start_open();
    let [follow] = curls("Follow a task, and talk to it")[..] else { panic!("one request") };
    // What is shown below it is its answer.
    let (command, shown) = follow.split_once("\nevent: ").unwrap();
    let told = output("bash", "-c", command, &server);
    let (first, _) = shown.split_once('…').unwrap();
    assert!(told.starts_with(&format!("event: {first}")), "{told}");
    assert!(told.ends_with("event: done\ndata: {}\n\n"), "{told}");
    let python = pypi::python("websockets", &["websockets==15.0.1"]);
    let [program] = blocks("Follow a task, and talk to it", "python")[..] else { panic!("one program") };
    let program = program.replace("ws://127.0.0.1:8080", &server.url().replace("http", "ws"));
    let shown = output(python.to_str().unwrap(), "-c", &program, &server);
    assert!(shown.starts_with("queued\nstarted\n") && shown.contains("/dev/pts/0"), "{shown}");
    assert!(shown.ends_with("result\ndone\n"), "{shown}");
}

#[test]
fn sessions() {
    let server = Server::start_open();
    let [script] = blocks("Sessions", "sh")[..] else { panic!("one script") };
    let told = output("bash", "-c", script, &server);
    for part in ["Hello, session\\n", "Hello, file\n", "\"notes.txt\"", "\"blob\":\"sha256:", "\"format\":\"tar\""] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!(server.get("/sessions").json(), json!({ "sessions": [] }));
}

#[test]
fn jobs() {
    let server = Server::start_open();
    let [submit] = curls("Jobs")[..] else { panic!("one request") };
    // What is shown below it is its answer.
    let (command, shown) = submit.split_once("\n{\"id\"").unwrap();
    let shown = shown.split('"').nth(1).unwrap();
    let accepted: Value = serde_json::from_str(&output("bash", "-c", command, &server)).unwrap();
    let ask = blocks("Jobs", "console")[1].strip_prefix("$ ").unwrap();
    let id = accepted["id"].as_str().unwrap();
    let job: Value = serde_json::from_str(&output("bash", "-c", &ask.replace(shown, id), &server)).unwrap();
    assert_eq!(job["response"]["results"][0]["stdout"], "Hello, later!\n", "{job}");
}

#[test]
fn the_clients() {
    let server = Server::start_open();
    let [python] = blocks("Get files back", "python")[..] else { panic!("one program") };
    assert_eq!(output("/usr/bin/python3", "-c", python, &server), "256\n");
    let [javascript] = blocks("Get files back", "javascript")[..] else { panic!("one program") };
    assert_eq!(output("node", "-e", javascript, &server), "8\n9\n10\n\n");
}

#[test]
fn the_openapi_examples_execute() {
    let server = Server::start_open();
    let document = server.get("/api-docs/openapi.json").json();
    let mut run = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let body = &operations["post"]["requestBody"]["content"]["application/json"];
        let examples = body["examples"].as_object().into_iter().flatten().map(|(_, example)| &example["value"]);
        for example in examples.chain(body.get("example")) {
            let answer = server.post_to(path, &example.to_string(), &[]);
            if answer.status == 201 {
                let deleted = server.send("DELETE", answer.header("location"), &[], &[]);
                assert_eq!(deleted.status, 204, "{path} {example}");
                continue;
            }
            assert!(matches!(answer.status, 200 | 202), "{path} {example}: {}", answer.text);
            let answer = match answer.status {
                200 => answer.json(),
                _ => server.get(&format!("{}?wait=60s", answer.header("location"))).json()["response"].clone(),
            };
            let ok =
                |result: &Value| result["status"] == "Success" && result.get("verdict").is_none_or(|v| v == "Accepted");
            let results = answer["results"].as_array().or(answer["cases"].as_array()).unwrap();
            assert!(results.iter().all(ok), "{path} {example}: {answer:#}");
            run += 1;
        }
    }
    assert!(run >= 6, "only {run} examples");
}
