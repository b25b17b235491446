//! Problems as a contest has them: solutions right and wrong in every way, in four languages (tests/problems).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{judge, verdicts};
use crate::support::Server;

/// `problem.toml`: what decides, the cases, and what the solutions beside it are worth.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Problem {
    compare: Option<Value>,
    checker: Option<String>,
    interactor: Option<String>,
    /// A program that prints more cases.
    generate: Option<String>,
    resource_limits: Value,
    cases: Vec<Value>,
    /// By the file's name: the verdict on each case, or on all of them.
    solutions: BTreeMap<String, Verdicts>,
    /// By the file's name: the last case's message.
    #[serde(default)]
    messages: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Verdicts {
    Same(String),
    Each(Vec<String>),
}

impl Verdicts {
    fn of(&self, cases: usize) -> Vec<String> {
        match self {
            Self::Same(verdict) => vec![verdict.clone(); cases],
            Self::Each(verdicts) => verdicts.clone(),
        }
    }
}

fn directory(problem: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/problems").join(problem)
}

/// A file of a problem as a program; its name says in which language.
fn program(path: &Path) -> Value {
    let language = match path.extension().unwrap().to_str().unwrap() {
        "py" => "python",
        "rs" => "rust",
        other => other,
    };
    json!({ "language": language, "code": fs::read_to_string(path).unwrap() })
}

/// The request for a problem, without a solution.
fn request(server: &Server, directory: &Path, problem: &Problem) -> Value {
    let mut cases = problem.cases.clone();
    if let Some(generator) = &problem.generate {
        let mut task = program(&directory.join(generator));
        task["resource_limits"] = json!({ "max_output_size": 8 << 20 });
        let result = server.run(task);
        assert_eq!(result["status"], "Success", "{result}");
        let made: Vec<Value> = serde_json::from_str(result["stdout"].as_str().unwrap()).unwrap();
        // What is large is sent once.
        cases.extend(made.into_iter().map(|mut case| {
            case["stdin"] = server.put_blob(case["stdin"].as_str().unwrap().as_bytes());
            case
        }));
    }
    let mut request = json!({ "resource_limits": problem.resource_limits, "cases": cases });
    if let Some(compare) = &problem.compare {
        request["compare"] = compare.clone();
    }
    if let Some(checker) = &problem.checker {
        request["compare"] = json!({ "checker": program(&directory.join(checker)) });
    }
    if let Some(interactor) = &problem.interactor {
        request["interactor"] = program(&directory.join(interactor));
    }
    request
}

fn with_solution(request: &Value, path: &Path) -> Value {
    let mut request = request.clone();
    request.as_object_mut().unwrap().extend(program(path).as_object().unwrap().clone());
    request
}

/// Every solution of a problem has the verdicts that its table says.
fn check(problem: &str) -> Server {
    let server = Server::with_languages();
    let directory = directory(problem);
    let problem: Problem = toml::from_str(&fs::read_to_string(directory.join("problem.toml")).unwrap()).unwrap();
    let request = request(&server, &directory, &problem);
    let mut wrong = Vec::new();
    for (file, expected) in &problem.solutions {
        let answer = judge(&server, &with_solution(&request, &directory.join(file)));
        let cases = answer["cases"].as_array().unwrap();
        let expected = expected.of(cases.len());
        let first = expected.iter().find(|verdict| *verdict != "Accepted").map_or("Accepted", String::as_str);
        let code = cases.iter().find(|case| case["verdict"] == "RuntimeError").map(|case| &case["exit_code"]);
        let has_code = match file.split('.').next() {
            Some("signal") => code.and_then(Value::as_i64) > Some(128),
            Some("exit") => (1..128).contains(&code.and_then(Value::as_i64).unwrap_or_default()),
            _ => code.is_none(),
        };
        let message = problem.messages.get(file);
        let has_message = message.is_none_or(|text| cases[cases.len() - 1]["message"] == text.as_str());
        if verdicts(&answer) != expected || answer["verdict"] != first || !has_code || !has_message {
            wrong.push(format!("{file}: expected {expected:?}\n{answer:#}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    server
}

#[test]
fn sum() {
    let server = check("sum");
    // What is right but for blanks is wrong only where bytes count.
    let compares = [("tokens", "Accepted"), ("lines", "Accepted"), ("exact", "WrongAnswer")];
    for file in ["presentation.cpp", "presentation.java", "presentation.py", "presentation.rs"] {
        for (compare, expected) in compares {
            let request = json!({ "cases": [{ "stdin": "12 30\n", "expected": "42\n" }], "compare": compare });
            let answer = judge(&server, &with_solution(&request, &directory("sum").join(file)));
            assert_eq!(verdicts(&answer), [expected], "{file} by {compare}: {answer:#}");
        }
    }
}

#[test]
fn lis() {
    check("lis");
}

#[test]
fn maze() {
    check("maze");
}

#[test]
fn primes() {
    check("primes");
}

#[test]
fn area() {
    check("area");
}

#[test]
fn permutation() {
    check("permutation");
}

#[test]
fn guess() {
    check("guess");
}
