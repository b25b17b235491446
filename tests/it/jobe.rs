//! Jobe's endpoints, as Moodle's CodeRunner calls them.

use serde_json::{Value, json};

use crate::support::{Answer, Server, new_key};

const ON: (&str, &str) = ("FABER_COMPAT__JOBE", "true");
const BASE: &str = "/jobe/index.php/restapi";

fn server() -> Server {
    Server::with_languages_and(&[ON])
}

fn post(server: &Server, run: &Value) -> Answer {
    server.post_to(&format!("{BASE}/runs"), &json!({ "run_spec": run }).to_string(), &[])
}

/// A program's run with what else its request has.
fn run(server: &Server, language: &str, code: &str, more: Value) -> Value {
    let mut run = json!({ "language_id": language, "sourcecode": code });
    run.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = post(server, &run);
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// Its outcome and the streams.
fn end(run: &Value) -> (u64, &str, &str) {
    (run["outcome"].as_u64().unwrap(), run["stdout"].as_str().unwrap(), run["stderr"].as_str().unwrap())
}

fn put(server: &Server, id: &str, body: &str) -> Answer {
    server.send("PUT", &format!("{BASE}/files/{id}"), body.as_bytes(), &[])
}

#[test]
fn it_is_not_there_unless_it_is_asked_for() {
    let server = Server::start_open();
    post(&server, &json!({})).is_error(404, "Not found", "There is nothing at this path");
    assert_eq!(server.get(&format!("{BASE}/languages")).status, 404);
}

#[test]
fn a_program_ends_with_its_outcomes() {
    let server = server();
    let languages = server.get(&format!("{BASE}/languages/")).json();
    let names: Vec<&str> = languages.as_array().unwrap().iter().map(|pair| pair[0].as_str().unwrap()).collect();
    assert_eq!(names, ["cpp", "java", "nodejs", "python3"]);
    assert!(languages[3][1].as_str().unwrap().starts_with("3."), "{languages}");

    let python = |code: &str, more: Value| run(&server, "Python3", code, more);
    let told = python("print(input())", json!({ "input": "hi\n", "sourcefilename": "__tester__.py", "debug": false }));
    assert_eq!((end(&told), &told["cmpinfo"], &told["run_id"]), ((15, "hi\n", ""), &json!(""), &Value::Null));
    // An exit code is no error, and whatever is written to stderr is one.
    assert_eq!(end(&python("exit(3)", json!({}))), (15, "", ""));
    assert_eq!(end(&python("import sys\nprint(1)\nsys.stderr.write('oh')", json!({}))), (12, "1\n", "oh"));
    let told = python("print(1)\nprint(x)", json!({}));
    assert_eq!((told["outcome"].as_u64(), &told["stdout"]), (Some(12), &json!("1\n")));
    assert!(told["stderr"].as_str().unwrap().contains("NameError"), "{told}");
    let told = python("print('a'", json!({}));
    assert_eq!(end(&told), (11, "", ""));
    assert!(told["cmpinfo"].as_str().unwrap().contains("SyntaxError"), "{told}");
    let busy = "import sys\nprint(1, flush=True)\nsys.stderr.write('x')\nsys.stderr.flush()\nwhile True: pass";
    assert_eq!(end(&python(busy, json!({ "parameters": { "cputime": 1 } }))), (13, "1\n", ""));
    let slow = "import time; time.sleep(60)";
    assert_eq!(end(&python(slow, json!({ "parameters": { "cputime": "0.2" } }))), (13, "", ""));
    let large = python("x = bytearray(1 << 28)", json!({ "parameters": { "memorylimit": 64 } }));
    assert_eq!(large["outcome"], 17, "{large}");
    assert_eq!(
        end(&python("import os; os.abort()", json!({}))),
        (12, "", "warning: command terminated with signal 6\n")
    );
    assert_eq!(end(&python("import os; os.kill(os.getpid(), 11)", json!({}))), (12, "", ""));
    // A file above the limit; a stream that is cut goes on.
    let file = python("open('f', 'wb').write(bytes(3 << 20))", json!({ "parameters": { "disklimit": 1 } }));
    assert_eq!(file["outcome"], 12, "{file}");
    let long = python("print('é' * 3000000)\nopen('f', 'w')", json!({ "parameters": { "streamsize": 1 } }));
    let length = long["stdout"].as_str().unwrap().len();
    assert!(long["outcome"] == 15 && (1_024_000 - 2..2_100_000).contains(&length), "{length} {}", long["outcome"]);
    assert!(long["stdout"].as_str().unwrap().chars().all(|c| c == 'é'));
    let bytes = python(r"import os; os.write(1, b'Hi\n\x01\x06\xc0\xc9')", json!({}));
    assert_eq!(end(&bytes), (15, "Hi\n\\x01\\x06\\xc0\\xc9", ""));

    assert_eq!(
        end(&run(&server, "cpp", "#include <iostream>\nint main() { std::cout << 42; }", json!({}))),
        (15, "42", "")
    );
    let deep = "int f(int n) { volatile char c[1000]; c[0] = n; return n == 0 ? c[0] : f(n + 1) + c[0]; }\nint main() { return f(1); }";
    assert_eq!(end(&run(&server, "cpp", deep, json!({}))), (12, "", ""));
    let told = run(&server, "cpp", "int main() { int unused; }", json!({}));
    assert_eq!(end(&told), (11, "", ""), "a warning counts");
    assert!(told["cmpinfo"].as_str().unwrap().contains("unused"), "{told}");
    let java = "public class Hello { public static void main(String[] a) { System.out.println(\"hi\"); } }";
    assert_eq!(end(&run(&server, "java", java, json!({ "sourcefilename": "prog.java" }))), (15, "hi\n", ""));
    assert_eq!(run(&server, "java", "public class A { void main() { x } }", json!({}))["outcome"], 11);
    // So is tried how a client takes an overload.
    let told = python("!** TESTING OVERLOAD EXCEPTION **!", json!({}));
    assert_eq!((end(&told), &told["run_id"]), ((21, "", ""), &json!("0")));
}

#[test]
fn arguments_do_what_they_say() {
    let server = server();
    let with = |language: &str, code: &str, parameters: Value| {
        let told = run(&server, language, code, json!({ "parameters": parameters }));
        format!("{}{}", told["stdout"].as_str().unwrap(), told["cmpinfo"].as_str().unwrap())
    };
    assert_eq!(with("python3", "", json!({ "interpreterargs": [r#"-c "print(\"Blah\")""#] })), "Blah\n");
    let show = "import sys; print(sys.argv[1:], sys.flags.optimize)";
    assert_eq!(
        with("python3", show, json!({ "interpreterargs": ["-O"], "runargs": ["a", "'b c'"] })),
        "['a', 'b c'] 1\n"
    );
    let cpp = "#include <cstdio>\n#include <cmath>\nint main(int n, char **a) { puts(n > 1 ? a[1] : WORD); int x; }";
    assert_eq!(with("cpp", cpp, json!({ "compileargs": ["-DWORD='\"w\"'"] })), "w\n", "-Werror is not the request's");
    assert_eq!(with("cpp", cpp, json!({ "compileargs": ["-DWORD=0"], "runargs": ["$((6 * 7))"] })), "42\n");
    let missing = with("cpp", "int main() {}", json!({ "linkargs": ["-lnothing"] }));
    assert!(missing.contains("cannot find -lnothing"), "{missing}");
    let java = "public class A { public static void main(String[] a) { System.out.println(a[0] + System.getProperty(\"x\")); } }
        class B { public static void main(String[] a) { System.out.println(\"B\"); } }";
    assert_eq!(with("java", java, json!({ "interpreterargs": ["-Dx=y"], "runargs": ["z"] })), "zy\n");
    assert_eq!(with("java", java, json!({ "main_class": "B" })), "B\n");
}

/// As CodeRunner does: it runs, puts the files that are said to be missing, and runs again.
#[test]
fn files_are_put_when_they_are_missing() {
    let server = server();
    let (first, second) = ("0123456789abcdef0123456789abcdef", "randomid0980128");
    let spec = json!({ "language_id": "python3", "sourcefilename": "__tester__.py",
        "sourcecode": "import helper\nprint(helper.x, open('data.bin', 'rb').read())",
        "file_list": [[first, "helper.py"], [second, "data.bin", true]], "input": "\n" });
    let headers = [("X-CodeRunner-Job-Id", "17"), ("Content-Type", "text/plain")];
    let again = || server.post_to(&format!("{BASE}/runs/"), &json!({ "run_spec": spec }).to_string(), &headers);
    let answer = again();
    let missing = json!("One or more of the specified files is missing/unavailable");
    assert_eq!((answer.status, answer.json()), (404, missing.clone()));
    let head = |id: &str| server.send("HEAD", &format!("{BASE}/files/{id}"), b"", &[]).status;
    assert_eq!(head(first), 404);
    for (id, contents) in [(first, "eCA9IDcK"), (second, "AAH/")] {
        let answer = put(&server, id, &json!({ "file_contents": contents }).to_string());
        assert_eq!((answer.status, answer.text.as_str()), (204, ""));
        assert_eq!(head(id), 204);
    }
    let answer = again();
    assert_eq!((answer.status, end(&answer.json())), (200, (15, "7 b'\\x00\\x01\\xff'\n", "")));
    // A file that is put again is what it is then, and one whose bytes are gone is missing.
    assert_eq!(put(&server, second, r#"{"file_contents": "aGk="}"#).status, 204);
    assert_eq!(end(&again().json()), (15, "7 b'hi'\n", ""));
    let name = server.put(b"hi");
    assert_eq!(server.send("DELETE", &format!("/blobs/{name}"), b"", &[]).status, 204);
    assert_eq!((head(second), again().status, head(first)), (404, 404, 204));

    let refused = |id: &str, body: &str| {
        let answer = put(&server, id, body);
        (answer.status, answer.json())
    };
    assert_eq!(refused(first, "{}"), (400, json!("put: missing file_contents parameter")));
    assert_eq!(refused(first, "no"), (400, json!("put: missing file_contents parameter")));
    let invalid = json!(format!("put: contents of file {first} are not valid base-64"));
    assert_eq!(refused(first, r#"{"file_contents": "a!"}"#), (400, invalid));
    assert_eq!(refused("..%2fx", "{}").0, 400);
    assert_eq!(head(first), 204, "what is refused changes nothing");
}

#[test]
fn what_is_wrong_is_told_in_its_words() {
    let server = server();
    let message = |answer: Answer| {
        assert_eq!(answer.status, 400, "{}", answer.text);
        answer.json().as_str().unwrap().to_owned()
    };
    let raw = |body: &str| message(server.post_to(&format!("{BASE}/runs"), body, &[]));
    assert_eq!(raw("{"), "Non-JSON post data received");
    assert_eq!(raw("[]"), "Non-JSON post data received");
    assert_eq!(raw("{}"), "No run_spec attribute found in post data");
    let told = |run: Value| message(post(&server, &run));
    assert_eq!(told(json!({ "language_id": "c" })), "run_spec is missing the required attribute 'sourcecode'");
    assert_eq!(told(json!({ "sourcecode": "" })), "run_spec is missing the required attribute 'language_id'");
    assert_eq!(told(json!({ "sourcecode": "", "language_id": "nosuch" })), "Language 'nosuch' is not known");
    assert_eq!(
        told(json!({ "sourcecode": "", "language_id": "pascal" })),
        "Language 'pascal' is not known on this server: faber image build pascal"
    );
    let with = |more: Value| {
        let mut run = json!({ "language_id": "python3", "sourcecode": "" });
        run.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        told(run)
    };
    let most = "cputime exceeds maximum allowed on this Jobe server (120 secs)";
    assert_eq!(with(json!({ "parameters": { "cputime": 151 } })), most);
    assert_eq!(with(json!({ "parameters": { "cputime": "1e300" } })), most);
    let illegal = "The sourcefilename for the run_spec is illegal";
    for name in ["../x", "a/b", "-o", ".x", "a;b", "$x"] {
        assert_eq!(with(json!({ "sourcefilename": name })), illegal, "{name}");
    }
    let invalid = |list: Value| assert!(with(json!({ "file_list": list })).starts_with("Invalid file specifier: "));
    [json!([["short", "f"]]), json!([["0123-4567", "f"]]), json!([["01234567", "../f"]]), json!([7]), json!("x")]
        .into_iter()
        .for_each(invalid);
    invalid(json!([["01234567", "prog.py"]]));
    assert_eq!(with(json!({ "parameters": { "runargs": "a" } })), "The parameter runargs must be a list of strings");
    assert_eq!(with(json!({ "input": 7 })), "The input of the run_spec must be a string");
    // What is null is as if it were not there, and a parameter that is no number, too.
    let lenient = json!({ "input": null, "file_list": null, "parameters": { "cputime": "x; rm", "numprocs": null } });
    assert_eq!(run(&server, "python3", "print(1)", lenient)["outcome"], 15);
}

#[test]
fn keys_are_told_by_its_header() {
    let (key, keys) = new_key();
    let server =
        Server::start(&[], &[ON, ("FABER_AUTH__KEYS", keys.as_str()), ("FABER_RATE_LIMIT__PER_IP_PER_MINUTE", "4")]);
    let ask = |headers: &[(&str, &str)]| {
        let answer = server.send("GET", &format!("{BASE}/languages"), b"", headers);
        (answer.status, answer.json())
    };
    assert_eq!(ask(&[]), (403, json!("Missing API key")));
    assert_eq!(ask(&[("X-API-KEY", "faber_nobodys")]), (403, json!("Unknown API key")));
    assert_eq!(ask(&[("X-API-KEY", &key)]), (200, json!([])));
    assert_eq!(ask(&[("Authorization", &format!("Bearer {key}"))]), (200, json!([])));
    assert_eq!(ask(&[("X-API-KEY", &key)]), (429, json!("Max RUN rate for this server exceeded")));
}

/// A compilation and a run may wait for their turn, and no more of them.
#[test]
fn an_overload_is_an_outcome() {
    let queue = [("FABER_EXECUTION__QUEUE_LENGTH", "2"), ("FABER_EXECUTION__CONCURRENCY", "1")];
    let server = Server::with_languages_and(&[&[ON][..], &queue].concat());
    let slow = json!({ "language_id": "python3", "sourcecode": "import time; time.sleep(1)" });
    let outcomes: Vec<u64> = std::thread::scope(|scope| {
        let asks = (0..6).map(|_| scope.spawn(|| post(&server, &slow)));
        let asks: Vec<_> = asks.collect();
        asks.into_iter()
            .map(|ask| ask.join().unwrap())
            .map(|answer| {
                assert_eq!(answer.status, 200, "{}", answer.text);
                answer.json()["outcome"].as_u64().unwrap()
            })
            .collect()
    });
    assert!([15, 21].iter().all(|outcome| outcomes.contains(outcome)), "{outcomes:?}");
    assert!(outcomes.iter().all(|outcome| [15, 21].contains(outcome)), "{outcomes:?}");
}
