//! Every field wrong in every way a client gets it wrong: a clear error, and nothing changes.

use serde_json::{Value, json};

use crate::support::Server;

/// What cannot be read as tasks: 400, with the place and the reason.
#[test]
fn requests_that_cannot_be_read_are_refused_with_the_place() {
    let server = Server::start_open();
    let long = format!(r#"{{"tasks": [{}]}}"#, vec![r#"{"command": "true"}"#; 101].join(","));
    let cases = [
        ("", "EOF while parsing a value"),
        ("nonsense", "expected ident"),
        ("[]", "invalid type: sequence"),
        ("null", "invalid type: null"),
        ("{}", "missing field `tasks`"),
        (r#"{"tasks": null}"#, "tasks: invalid type: null, expected a list of tasks"),
        (r#"{"tasks": {}}"#, "tasks: invalid type: map, expected a list of tasks"),
        (r#"{"tasks": []}"#, "at least one task"),
        (&long, "101 tasks are more than the 100 allowed"),
        (r#"{"tasks": [{"command": "true"}], "more": 1}"#, "unknown field `more`"),
        (r#"{"tasks": [{"command": "true"}], "tasks": []}"#, "duplicate field `tasks`"),
        (r#"{"tasks": [{"command": "true"}]} x"#, "trailing characters"),
        (r#"{"tasks": [{"command": "true"}"#, "EOF while parsing"),
        (r#"{"tasks": ["true"]}"#, "tasks[0]: invalid type: string \"true\""),
        (r#"{"tasks": [{}]}"#, "tasks[0]: missing field `command`"),
        (r#"{"tasks": [{"command": null}]}"#, "tasks[0]: missing field `command`"),
        (r#"{"tasks": [{"command": 1}]}"#, "tasks[0].command: invalid type: integer `1`, expected a string"),
        (r#"{"tasks": [{"command": "   "}]}"#, "Invalid command: command cannot be empty"),
        (r#"{"tasks": [{"command": "a", "command": "b"}]}"#, "duplicate field `command`"),
        (r#"{"tasks": [{"command": "a", "arguments": []}]}"#, "unknown field `arguments`"),
        (r#"{"tasks": [{"command": "a", "args": "b"}]}"#, "tasks[0].args: invalid type: string"),
        (r#"{"tasks": [{"command": "a", "args": [1]}]}"#, "tasks[0].args[0]: invalid type: integer"),
        (r#"{"tasks": [{"command": "a", "args": [null]}]}"#, "tasks[0].args[0]: invalid type: null"),
        (r#"{"tasks": [{"command": "a", "env": []}]}"#, "tasks[0].env: invalid type: sequence"),
        (r#"{"tasks": [{"command": "a", "env": {"A": 1}}]}"#, "invalid type: integer `1`, expected a string"),
        (r#"{"tasks": [{"command": "a", "env": {"A": "1", "A": "2"}}]}"#, "duplicate key `A`"),
        (
            r#"{"tasks": [{"command": "a", "files": {"f": ["x"]}}]}"#,
            "invalid type: sequence, expected text, or an object of a file",
        ),
        (r#"{"tasks": [{"command": "a", "files": {"f": "", "f": ""}}]}"#, "duplicate key `f`"),
        (r#"{"tasks": [{"command": "a", "image": 1}]}"#, "tasks[0].image: invalid type: integer"),
        (r#"{"tasks": [{"command": "a", "resource_limits": []}]}"#, "tasks[0].resource_limits"),
        (r#"{"tasks": [{"command": "a", "resource_limits": {"memory": 1}}]}"#, "unknown field `memory`"),
        (
            r#"{"tasks": [{"command": "a", "resource_limits": {"memory_limit": -1}}]}"#,
            "memory_limit: invalid value: integer `-1`",
        ),
        (
            r#"{"tasks": [{"command": "a", "resource_limits": {"memory_limit": 1.5}}]}"#,
            "memory_limit: invalid type: floating point `1.5`, expected a whole number",
        ),
        (
            r#"{"tasks": [{"command": "a", "resource_limits": {"memory_limit": "64M"}}]}"#,
            "memory_limit: invalid type: string",
        ),
        (
            r#"{"tasks": [{"command": "a", "resource_limits": {"memory_limit": 99999999999999999999}}]}"#,
            "memory_limit: invalid value: floating point `1e+20`, expected at most 18446744073709551615",
        ),
        (r#"{"tasks": [{"command": "\ud800"}]}"#, "tasks[0].command"),
    ];
    for (body, expected) in cases {
        let answer = server.post(body, &[]);
        assert_eq!(answer.status, 400, "{body}: {}", answer.text);
        let error = answer.json();
        assert_eq!(error["error"], "Validation error", "{body}");
        let details = error["details"].as_str().unwrap();
        assert!(details.contains(expected), "{body}\n  says     {details}\n  expected {expected}");
    }
    let deep = format!(r#"{{"tasks": {}"#, "[".repeat(100_000));
    assert_eq!(server.post(&deep, &[]).status, 400);
}

/// As serializers of other languages write them.
#[test]
fn numbers_may_be_floats_and_what_is_left_out_null() {
    let server = Server::start_open();
    let schemas = server.get("/api-docs/openapi.json").json()["components"]["schemas"].clone();
    let optional = |name: &str| -> Vec<String> {
        let required = schemas[name]["required"].as_array().cloned().unwrap_or_default();
        let keys = schemas[name]["properties"].as_object().unwrap().keys();
        keys.filter(|key| !required.contains(&json!(key))).cloned().collect()
    };
    let nulls = |name: &str, value: Value| {
        let mut value = value;
        for key in optional(name) {
            let object = value.as_object_mut().unwrap();
            object.entry(key).or_insert(Value::Null);
        }
        value
    };
    let limits = nulls("ResourceLimits", json!({}));
    let task = nulls("TaskRequest", json!({ "command": "echo", "resource_limits": limits }));
    assert!(task.as_object().unwrap().len() > 15, "{task}");
    let body = nulls("ExecuteRequest", json!({ "tasks": [task] }));
    let answer = server.post(&body.to_string(), &[]);
    assert_eq!(answer.json()["results"][0]["stdout"], "\n", "{}", answer.text);
    let expect = json!({ "command": "echo", "expect": nulls("Expect", json!({ "stdout": "" })) });
    assert_eq!(server.run(expect)["verdict"], "Accepted");
    let case = nulls("CaseRequest", json!({ "expected": "" }));
    let judge = nulls("JudgeRequest", json!({ "command": "echo", "cases": [case] }));
    let answer = server.post_to("/judge", &judge.to_string(), &[]);
    assert_eq!(answer.json()["verdict"], "Accepted", "{}", answer.text);
    let floats = r#"{"tasks": [{"command": "true", "detail": true,
        "resource_limits": {"wall_time_limit": 2e9, "cpu_time_limit": 1000000000.0, "max_processes": 5.0, "cpus": null}}]}"#;
    let result = server.post(floats, &[]).json()["results"][0].clone();
    assert_eq!(result["status"], "Success", "{result}");
    let in_force = ["wall_time_limit", "cpu_time_limit", "max_processes"].map(|key| result["limits"][key].clone());
    assert_eq!(in_force, [json!(2_000_000_000), json!(1_000_000_000), json!(5)]);
}

#[test]
fn a_byte_order_mark_and_a_slash_at_the_end_change_nothing() {
    let server = Server::start_open();
    let body = "\u{feff}{\"tasks\": [{\"command\": \"true\"}]}";
    assert_eq!(server.post(body, &[]).json()["results"][0]["status"], "Success");
    assert_eq!(server.post_to("/execute/", body, &[]).json()["results"][0]["status"], "Success");
    let judge = r#"{"command": "true", "cases": [{"expected": ""}]}"#;
    for path in ["/judge", "/judge/"] {
        assert_eq!(server.post_to(path, judge, &[]).status, 200, "{path}");
    }
    let blob = server.send("PUT", "/blobs/", b"hi", &[]).json()["blob"].as_str().unwrap().to_owned();
    assert_eq!(server.get(&format!("/blobs/{blob}/")).bytes, b"hi");
    for path in ["/health/", "/images/", "/languages/", "/api-docs/openapi.json/", "/health/?a=/", "/swagger-ui/"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    assert_eq!(server.get("/").status, 404);
}

#[test]
fn one_bad_command_among_many_is_named() {
    let server = Server::start_open();
    let answer = server.execute(json!([{ "command": "true" }, { "command": "true" }, { "command": "" }]));
    answer.is_error(400, "Validation error", "Invalid command: command cannot be empty (tasks[2])");
}

/// What can be read but will not be run here: that task is NotExecuted, its siblings run.
#[test]
fn tasks_that_will_not_be_run_say_why_and_leave_their_siblings_alone() {
    let server = Server::start_open();
    let limits = |field: &str, value: u64| json!({ "command": "true", "resource_limits": { (field): value } });
    let files = |path: &str| json!({ "command": "true", "files": { (path): "" } });
    let many: serde_json::Map<String, Value> = (0..1001).map(|n| (format!("f{n}"), json!(""))).collect();
    let cases = [
        (json!({ "command": "true", "image": "none" }), "unknown image \"none\""),
        (json!({ "command": "true", "image": "../host" }), "is not a name"),
        (limits("memory_limit", u64::MAX), "above this server's maximum"),
        (limits("memory_limit", 1000), "below 4194304"),
        (limits("cpu_time_limit", 0), "below 1000000"),
        (limits("wall_time_limit", u64::MAX), "above this server's maximum"),
        (limits("max_processes", 0), "below 1"),
        (limits("max_processes", 100_000), "above this server's maximum of 512"),
        (limits("max_file_descriptors", 0), "below 8"),
        (limits("max_output_size", 1 << 40), "above this server's maximum"),
        (files(""), "empty"),
        (files("/etc/passwd"), "absolute"),
        (files("../out"), ".."),
        (files("a/../../out"), ".."),
        (files("dir/"), "directory"),
        (files("nul\0"), "NUL"),
        (files(&"x".repeat(300)), "255"),
        (json!({ "command": "true", "files": { "a": "", "./a": "" } }), "given twice"),
        (json!({ "command": "true", "files": { "a": "", "a/b": "" } }), "both a file and a directory"),
        (json!({ "command": "true", "files": many }), "1001 files are more than"),
        (
            json!({ "command": "true", "files": { "big": "x".repeat(5 << 20) }, "resource_limits": { "memory_limit": 4 << 20 } }),
            "do not fit",
        ),
        (json!({ "command": "tr\0ue" }), "the command holds a NUL byte"),
        (json!({ "command": "true", "args": ["\0"] }), "an argument holds a NUL byte"),
        (json!({ "command": "true", "env": { "A": "\0" } }), "an environment variable holds a NUL byte"),
        (json!({ "command": "true", "env": { "": "x" } }), "is empty or has a '='"),
        (json!({ "command": "true", "env": { "A=B": "x" } }), "is empty or has a '='"),
        (json!({ "command": "true", "args": ["x".repeat(131_072)] }), "longer than the 131072 the kernel takes"),
        (json!({ "command": "true", "args": vec!["x".repeat(100_000); 25] }), "more than the"),
    ];
    for (task, expected) in cases {
        let body = server.execute(json!([{ "command": "true" }, task, { "command": "true" }])).json();
        let [first, refused, last] = [0, 1, 2].map(|at| &body["results"][at]);
        assert_eq!((&first["status"], &last["status"]), (&json!("Success"), &json!("Success")), "{expected}");
        let error = refused["error"].as_str().unwrap_or_else(|| panic!("{expected}: {refused}"));
        assert_eq!((&refused["status"], &refused["exit_code"]), (&json!("NotExecuted"), &Value::Null), "{error}");
        assert!(error.contains(expected), "says {error}, expected {expected}");
    }
}

#[test]
fn the_largest_of_everything_that_is_allowed_works() {
    let server = Server::start_open();
    let result = server.run(json!({ "command": "true", "args": vec!["x".repeat(100_000); 19] }));
    assert_eq!(result["status"], "Success", "{result}");
    let files: serde_json::Map<String, Value> = (0..1000).map(|n| (format!("d{}/f{n}", n % 50), json!("x"))).collect();
    let result = server.run(json!({ "command": "bash", "args": ["-c", "cat */* | wc -c"], "files": files }));
    assert_eq!(result["stdout"], "1000\n", "{result}");
}
