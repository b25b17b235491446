//! The Model Context Protocol, as its own Python SDK speaks it: over HTTP and over standard input and output, in both revisions.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{FABER, Family, Server, eventually, languages, new_key, pypi, running};

const ON: (&str, &str) = ("FABER_MCP__ENABLED", "true");
const BOTH: (&str, &str) = ("Accept", "application/json, text/event-stream");

fn python() -> PathBuf {
    pypi::python("mcp", &["mcp==2.3.0"])
}

/// What a program of the SDK prints, a line each.
#[track_caller]
fn client(script: &str, args: &[&str]) -> Vec<String> {
    let mut command = Command::new(python());
    command.args(["-c", script]).args(args).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A call as a client of the revision before 2026-07-28 makes it.
fn call(server: &Server, tool: &str, arguments: Value) -> Value {
    let params = json!({ "name": tool, "arguments": arguments });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
    let answer = server.post_to("/mcp", &body.to_string(), &[BOTH, ("MCP-Protocol-Version", "2025-11-25")]);
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// What all transports and revisions have in common. The SDK checks each result against the tool's output schema.
const TALK: &str = r#"
async def talk(client):
    tools = (await client.list_tools()).tools
    print([tool.name for tool in tools])
    print(all(tool.output_schema and tool.input_schema["type"] == "object" for tool in tools))
    run = next(tool for tool in tools if tool.name == "run_code")
    print(run.input_schema["required"], "512 MiB of memory" in run.description)
    told = lambda r: (r.is_error, r.structured_content and (r.structured_content["status"], r.structured_content["exit_code"]))
    r = await client.call_tool("run_code", {"language": "python", "code": "print(input()); print(open('a').read())",
                                            "stdin": "hi", "files": {"a": {"base64": "eW91"}}})
    print(told(r), repr(r.structured_content["stdout"]), r.content[0].text.split(" (")[0])
    r = await client.call_tool("run_code", {"language": "python", "code": "import sys; print('no', file=sys.stderr); exit(3)"})
    print(told(r), repr(r.structured_content["stderr"]), r.structured_content["usage"]["wall_time_ns"] > 0)
    r = await client.call_tool("run_code", {"language": "cpp", "code": "int main() { return x; }"})
    print(told(r), "was not declared" in r.structured_content["compile"]["stderr"], "was not declared" in r.content[0].text)
    r = await client.call_tool("run_command", {"command": "sh", "args": ["-c", "wc -c; echo '<svg/>' > a.svg; printf '\\377' > b"],
                                               "stdin": "four", "outputs": ["a.svg", "b", "c"]})
    print(told(r), r.structured_content["stdout"].strip(), r.structured_content["missing_outputs"],
          r.structured_content["files"]["b"]["size"], [(c.type, getattr(c, "mime_type", None)) for c in r.content])
    r = await client.call_tool("run_command", {"command": "sh", "args": ["-c", "head -c 100000 /dev/zero | tr '\\0' x; echo end >&2"]})
    s = r.structured_content
    print(told(r), len(s["stdout"]), s["stdout_truncated"], s["stderr_truncated"], "[truncated" in r.content[0].text)
    r = await client.call_tool("judge", {"language": "python", "code": "print(int(input()) * 2)",
                                         "cases": [{"stdin": "2", "expected": "4"}, {"name": "odd", "stdin": "3", "expected": "7"}]})
    s = r.structured_content
    print(r.is_error, s["verdict"], [(c["name"], c["verdict"]) for c in s["cases"]], s["cases"][1]["message"])
    r = await client.call_tool("run_code", {"language": "python"})
    print(r.is_error, r.content[0].text)
    r = await client.call_tool("run_code", {"language": "cobol", "code": ""})
    print(r.is_error, "cobol" in r.content[0].text)
    r = await client.call_tool("list_languages", {})
    print([l["language"] for l in r.structured_content["languages"]], r.structured_content["default_image"])
    try:
        await client.call_tool("rm", {})
    except Exception as error:
        print(error)
"#;

const TOLD: [&str; 15] = [
    "['run_code', 'run_command', 'judge', 'list_languages']",
    "True",
    "['language', 'code'] True",
    r"(False, ('Success', 0)) 'hi\nyou\n' Success, exit code 0",
    r"(False, ('Failure', 3)) 'no\n' True",
    "(False, ('Failure', 1)) True True",
    "(False, ('Success', 0)) 4 ['c'] 1 [('text', None), ('image', 'image/svg+xml')]",
    "(False, ('Success', 0)) 32768 True False True",
    "False WrongAnswer [('1', 'Accepted'), ('odd', 'WrongAnswer')] line 1: expected \"7\", got \"6\"",
    "True Invalid arguments: missing field `code`",
    "True True",
    "['cpp', 'java', 'node', 'python', 'rust'] host",
    "There is no tool \"rm\": expected run_code, run_command, judge or list_languages",
    "2025-11-25",
    "2026-07-28",
];

#[test]
fn its_own_client_works_over_http_in_both_revisions() {
    let server = Server::with_languages_and(&[ON]);
    let script = format!(
        "{TALK}
import asyncio, sys
from mcp import Client
async def main(mode):
    async with Client(sys.argv[1], mode=mode) as client:
        await talk(client)
        print(client.protocol_version)
asyncio.run(main(sys.argv[2]))
"
    );
    let url = server.url() + "/mcp";
    assert_eq!(client(&script, &[&url, "legacy"]), TOLD[..14]);
    let modern = client(&script, &[&url, "2026-07-28"]);
    assert_eq!((&modern[..13], modern[13].as_str()), (&TOLD.map(String::from)[..13], TOLD[14]));
    assert_eq!(client(&script, &[&url, "auto"])[13], TOLD[14]);
}

#[test]
fn its_own_client_works_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let preparation = languages::shown_in(&dir.path().join("data"));
    let script = format!(
        "{TALK}
import asyncio, sys
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
async def main(mode):
    parameters = StdioServerParameters(command='bash', args=['-c', sys.argv[1], 'bash', sys.argv[2], 'mcp'],
                                       env={{'FABER_DATA_DIR': sys.argv[3]}})
    async with Client(stdio_client(parameters), mode=mode) as client:
        await talk(client)
        print(client.protocol_version)
asyncio.run(main(sys.argv[4]))
"
    );
    let data = dir.path().join("data");
    let args = [&preparation, FABER, data.to_str().unwrap()];
    assert_eq!(client(&script, &[&args[..], &["legacy"]].concat()), TOLD[..14]);
    let modern = client(&script, &[&args[..], &["2026-07-28"]].concat());
    assert_eq!((&modern[..13], modern[13].as_str()), (&TOLD.map(String::from)[..13], TOLD[14]));
}

#[test]
fn it_is_not_there_unless_it_is_asked_for() {
    let server = Server::start_open();
    server.post_to("/mcp", "{}", &[BOTH]).is_error(404, "Not found", "There is nothing at this path");
}

/// Keys and rate limits are those of POST /execute.
#[test]
fn who_may_not_ask_is_told_before_anything_is_read() {
    let (key, keys) = new_key();
    let server =
        Server::start(&[], &[ON, ("FABER_AUTH__KEYS", keys.as_str()), ("FABER_RATE_LIMIT__PER_KEY_PER_HOUR", "2")]);
    let bearer = format!("Bearer {key}");
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }).to_string();
    let post = |headers: &[(&str, &str)]| server.post_to("/mcp", &list, &[&[BOTH], headers].concat());
    post(&[]).is_error(401, "Authentication required", "API key is required for this endpoint");
    assert_eq!(post(&[("Authorization", &bearer)]).status, 200);
    assert_eq!(post(&[("Authorization", &bearer)]).status, 200);
    assert_eq!(post(&[("Authorization", &bearer)]).status, 429);
}

#[test]
fn pages_of_other_origins_may_not_ask() {
    let server = Server::start(&["--open-mode"], &[ON, ("FABER_SERVER__CORS_ORIGINS", "[\"https://here.example\"]")]);
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }).to_string();
    let post = |origin: &str| server.post_to("/mcp", &list, &[BOTH, ("Origin", origin)]);
    assert_eq!(post("https://here.example").status, 200);
    for origin in ["https://there.example", "http://here.example", "null"] {
        let text = "Pages of this origin may not ask: server.cors_origins has those that may";
        post(origin).is_error(403, "Access denied", text);
    }
}

#[test]
fn what_is_no_request_of_the_protocol_is_told_as_json_rpc_does() {
    let server = Server::start(&["--open-mode"], &[ON, ("FABER_SERVER__BODY_LIMIT", "1MiB")]);
    let code = |body: &str, headers: &[(&str, &str)]| {
        let answer = server.post_to("/mcp", body, &[&[BOTH], headers].concat());
        (answer.status, answer.json()["error"]["code"].as_i64())
    };
    assert_eq!(code("{", &[]), (400, Some(-32700)));
    let meta = |version: &str| {
        json!({ "io.modelcontextprotocol/protocolVersion": version, "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": { "name": "test", "version": "1" } })
    };
    let ask = |method: &str, version: &str| {
        let params = json!({ "_meta": meta(version) });
        json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string()
    };
    let modern = [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", "tools/list")];
    assert_eq!(code(&ask("tools/list", "2026-07-28"), &modern), (200, None));
    assert_eq!(code(&ask("server/discover", "2026-07-28"), &modern), (400, Some(-32020)));
    let unknown = [("MCP-Protocol-Version", "2099-01-01"), ("Mcp-Method", "tools/list")];
    assert_eq!(code(&ask("tools/list", "2099-01-01"), &unknown), (400, Some(-32022)));
    let other = [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", "prompts/list")];
    assert_eq!(code(&ask("prompts/list", "2026-07-28"), &other), (404, Some(-32601)));
    server.post_to("/mcp", "{}", &[BOTH, ("Content-Type", "text/plain")]).is_error(
        415,
        "Unsupported media type",
        "The Content-Type must be application/json",
    );
    assert_eq!(server.get("/mcp").status, 405);
    let long = json!({ "jsonrpc": "2.0", "id": 1, "method": "x".repeat(1 << 20) }).to_string();
    assert_eq!(server.post_to("/mcp", &long, &[BOTH]).status, 413);
    // What is long is read as what is short.
    assert_eq!(code(&"[".repeat(600 << 10), &[]), (400, Some(-32700)));
    let count = json!({ "command": "wc", "args": ["-c"], "stdin": "x".repeat(600 << 10) });
    assert_eq!(call(&server, "run_command", count)["result"]["structuredContent"]["stdout"], "614400\n");
}

/// A limit is told as a result; so is a program that does not end.
#[test]
fn a_program_at_its_limit_is_a_result() {
    let server = Server::start(&["--open-mode"], &[ON, ("FABER_LIMITS__DEFAULT__WALL_TIME", "300ms")]);
    let answer = call(&server, "run_command", json!({ "command": "sleep", "args": ["60"] }));
    let result = &answer["result"];
    assert_eq!(
        (&result["isError"], &result["structuredContent"]["status"]),
        (&json!(false), &json!("Timeout")),
        "{answer}"
    );
    assert!(
        result["content"][0]["text"].as_str().unwrap().starts_with("Timeout: wall time limit of 300 ms"),
        "{answer}"
    );
    assert_eq!(result.get("resultType"), None, "a field of the next revision");
}

#[test]
fn a_client_that_is_gone_has_its_task_ended() {
    let server = Server::start(&["--open-mode"], &[ON]);
    let sleep = ["sleep", "98.76"];
    let script = r#"
import asyncio, sys
from mcp import Client
async def main():
    async with Client(sys.argv[1]) as client:
        await client.call_tool("run_command", {"command": "sleep", "args": ["98.76"]})
asyncio.run(main())
"#;
    let url = server.url() + "/mcp";
    let mut client = Command::new(python()).args(["-c", script, &url]).stdin(Stdio::null()).spawn().unwrap();
    eventually("the task's start", || !running(&sleep).is_empty());
    client.kill().unwrap();
    client.wait().unwrap();
    eventually("the task's end", || running(&sleep).is_empty());
}

/// Standard output has answers alone; what was asked before the end of input is answered after it; nothing is left.
#[test]
fn without_a_server_it_ends_with_its_input() {
    let mut command = Command::new(FABER);
    command.arg("mcp").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    eventually("runners", || Family::of(process.id() as i32).len() > 1);
    let family = Family::of(process.id() as i32);
    let info =
        json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let run = json!({ "name": "run_command", "arguments": { "command": "echo", "args": ["hi"] } });
    let messages = [
        json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": info }),
        json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }),
        json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": run }),
    ];
    let mut stdin = process.stdin.take().unwrap();
    for message in messages {
        writeln!(stdin, "{message}").unwrap();
    }
    drop(stdin);
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    family.assert_gone();
    let answers: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert_eq!(answers.iter().map(|answer| &answer["id"]).collect::<Vec<_>>(), [&json!(1), &json!(2)]);
    assert_eq!(answers[1]["result"]["structuredContent"]["stdout"], "hi\n");
}

#[test]
fn a_signal_ends_it_with_what_it_runs() {
    let sleep = ["sleep", "98.77"];
    let mut command = Command::new(FABER);
    command.arg("mcp").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = command.spawn().unwrap();
    let meta = json!({ "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {}, "io.modelcontextprotocol/clientInfo": { "name": "t", "version": "1" } });
    let params =
        json!({ "_meta": meta, "name": "run_command", "arguments": { "command": "sleep", "args": ["98.77"] } });
    let mut stdin = process.stdin.take().unwrap();
    writeln!(stdin, "{}", json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params })).unwrap();
    eventually("the task's start", || !running(&sleep).is_empty());
    let family = Family::of(process.id() as i32);
    kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(130));
    family.assert_gone();
    assert!(running(&sleep).is_empty());
}

#[test]
fn a_call_can_be_cancelled_without_a_server() {
    let sleep = ["sleep", "98.78"];
    let mut command = Command::new(FABER);
    command.arg("mcp").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let process = command.spawn().unwrap();
    let run = json!({ "name": "run_command", "arguments": { "command": "sleep", "args": ["98.78"] } });
    let mut stdin = process.stdin.as_ref().unwrap();
    let info =
        json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    for message in [
        json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": info }),
        json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }),
        json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": run }),
    ] {
        writeln!(stdin, "{message}").unwrap();
    }
    eventually("the task's start", || !running(&sleep).is_empty());
    let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 2 } });
    writeln!(stdin, "{cancel}").unwrap();
    eventually("the task's end", || running(&sleep).is_empty());
    assert!(process.wait_with_output().unwrap().status.success());
}
