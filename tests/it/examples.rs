//! Every example of the API page, as it stands there; only the address is this server's.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::Server;

const PAGES_ADDRESS: &str = "http://localhost:8080";

/// What `program` prints when it is given the page's text, with the server's address in it.
#[track_caller]
fn print(server: &Server, program: &str, flag: &str, text: &str) -> Value {
    let text = text.replace(PAGES_ADDRESS, &server.url());
    let output = Command::new(program).args([flag, &text]).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; scripts/test installs what is missing"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {error}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stdout)))
}

#[track_caller]
fn curl(text: &str) -> Value {
    let body = print(&Server::start_open(), "bash", "-c", text);
    body["results"].clone()
}

#[test]
fn simple_command_execution() {
    let results = curl(include_str!("../examples/simple.sh"));
    assert_eq!((&results[0]["status"], &results[0]["stdout"]), (&json!("Success"), &json!("Hello, Faber!\n")));
}

#[test]
fn python_script_execution() {
    let results = curl(include_str!("../examples/python.sh"));
    assert_eq!(results[0]["status"], "Success", "{results}");
    let text = results[0]["stdout"].as_str().unwrap();
    assert!(text.starts_with("Python 3.") && text.ends_with("\nHello from sandbox!\n"), "{text}");
}

#[test]
fn multiple_tasks() {
    let results = curl(include_str!("../examples/multiple.sh"));
    let texts: Vec<&str> =
        results.as_array().unwrap().iter().map(|result| result["stdout"].as_str().unwrap()).collect();
    assert_eq!(texts, ["Task 1\n", "Task 2\n", "Task 3\n"]);
}

#[test]
fn resource_constrained_task() {
    let results = curl(include_str!("../examples/constrained.sh"));
    // It sleeps for as long as its wall time limit, and starting Python comes on top: the limit is met first.
    assert_eq!(results[0]["status"], "Timeout", "{results}");
    assert_eq!(results[0]["resource_limits_exceeded"]["wall_time_limit_exceeded"], true);
}

#[test]
fn the_python_client() {
    let server = Server::start_open();
    let call = "\nimport json\nprint(json.dumps(execute_task('echo', ['from', 'Python'], {'A': 'b'})))\n";
    let text = format!("{}{call}", include_str!("../examples/client.py"));
    let body = print(&server, "/usr/bin/python3", "-c", &text);
    assert_eq!(body["results"][0]["stdout"], "from Python\n");
}

#[test]
fn the_javascript_client() {
    let server = Server::start_open();
    let call = "\nexecuteTask('echo', ['from', 'JavaScript']).then(body => console.log(JSON.stringify(body)));\n";
    let text = format!("{}{call}", include_str!("../examples/client.js"));
    let body = print(&server, "node", "-e", &text);
    assert_eq!(body["results"][0]["stdout"], "from JavaScript\n");
}

#[test]
fn task_types() {
    let server = Server::start_open();
    let list = server.run(json!({ "command": "ls", "args": ["-la"] }));
    assert!(list["stdout"].as_str().unwrap().starts_with("total "), "{list}");
    let script = server.run(json!({
        "command": "python", "args": ["script.py"],
        "files": { "script.py": "print('Hello from Python')\nimport sys\nprint(f'Python version: {sys.version}')" }
    }));
    assert!(script["stdout"].as_str().unwrap().starts_with("Hello from Python\nPython version: 3."), "{script}");
    let env = server.run(json!({ "command": "env", "env": { "CUSTOM_VAR": "custom_value", "DEBUG": "true" } }));
    let text = env["stdout"].as_str().unwrap();
    assert!(text.contains("CUSTOM_VAR=custom_value\n") && text.contains("DEBUG=true\n"), "{text}");
}
