//! Callbacks of jobs: told once they have ended, by Standard Webhooks, and nowhere but where the operator allows it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{Server, eventually};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PATIENCE: Duration = Duration::from_secs(60);

/// Somebody's server that takes callbacks: each comes out of the channel, and is answered with what the test says.
struct Hook {
    address: SocketAddr,
    came: mpsc::Receiver<Came>,
    status: Arc<Mutex<&'static str>>,
}

#[derive(Debug)]
struct Came {
    head: String,
    body: String,
}

impl Came {
    fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).unwrap_or_else(|| panic!("{name}: {}", self.head)).1
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Hook {
    fn on(address: [u8; 4]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::from(address), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, came) = mpsc::channel();
        let status = Arc::new(Mutex::new("204 No Content"));
        let answer = status.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut bytes = Vec::new();
                let whole = loop {
                    let mut some = [0; 4096];
                    let count = stream.read(&mut some).unwrap();
                    bytes.extend(&some[..count]);
                    let text = String::from_utf8(bytes.clone()).unwrap();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let came = Came { head: head.into(), body: body.into() };
                    if body.len() == came.header("content-length").parse::<usize>().unwrap() {
                        break came;
                    }
                };
                let status = *answer.lock().unwrap();
                write!(
                    stream,
                    "HTTP/1.1 {status}\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                .unwrap();
                if tell.send(whole).is_err() {
                    return;
                }
            }
        });
        Self { address, came, status }
    }

    fn answer(&self, status: &'static str) {
        *self.status.lock().unwrap() = status;
    }

    #[track_caller]
    fn next(&self) -> Came {
        self.came.recv_timeout(PATIENCE).unwrap()
    }

    fn is_quiet(&self) -> bool {
        self.came.try_recv().is_err()
    }
}

/// A name server that says of every name the same, which the test changes.
struct Names {
    address: SocketAddr,
    addresses: Arc<Mutex<Vec<Ipv4Addr>>>,
    asked: Arc<AtomicBool>,
}

impl Names {
    fn new(addresses: &[[u8; 4]]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let (names, asked) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let this = Self { address, addresses: names.clone(), asked: asked.clone() };
        this.are(addresses);
        std::thread::spawn(move || {
            let mut bytes = [0; 512];
            loop {
                let (count, from) = socket.recv_from(&mut bytes).unwrap();
                // RFC 1035, 4.1: a header of 12 bytes, then the name, its type and its class.
                let question = bytes[12..count].iter().position(|byte| *byte == 0).unwrap() + 12 + 5;
                let is_a = bytes[question - 4..question - 2] == [0, 1];
                let found: Vec<Ipv4Addr> = if is_a { names.lock().unwrap().clone() } else { Vec::new() };
                asked.store(true, Ordering::SeqCst);
                let mut answer = bytes[..question].to_vec();
                answer[2..4].copy_from_slice(&[0x81, 0x80]);
                answer[6..12].copy_from_slice(&[0, found.len() as u8, 0, 0, 0, 0]);
                for address in found {
                    // The question's name, A, IN, no time to live, four bytes.
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                    answer.extend(address.octets());
                }
                socket.send_to(&answer, from).unwrap();
            }
        });
        this
    }

    fn are(&self, addresses: &[[u8; 4]]) {
        *self.addresses.lock().unwrap() = addresses.iter().copied().map(Ipv4Addr::from).collect();
    }
}

fn server(hosts: &str, more: &[(&str, &str)]) -> Server {
    Server::start(&["--open-mode"], &[&[("FABER_JOBS__CALLBACK_HOSTS", hosts)], more].concat())
}

fn submit(server: &Server, url: &str, command: &[&str]) -> String {
    let body = json!({ "tasks": [{ "command": command[0], "args": &command[1..] }],
        "callback": { "url": url, "secret": SECRET } });
    let answer = server.post_to("/jobs", &body.to_string(), &[]);
    assert_eq!(answer.status, 202, "{}", answer.text);
    answer.json()["id"].as_str().unwrap().to_owned()
}

fn job(server: &Server, id: &str) -> Value {
    server.get(&format!("/jobs/{id}")).json()
}

/// Its callback, once it is in this state.
#[track_caller]
fn callback(server: &Server, id: &str, state: &str) -> Value {
    eventually(state, || job(server, id)["callback"]["state"] == state);
    job(server, id)["callback"].clone()
}

/// By another implementation than the server's.
fn signature(came: &Came) -> String {
    let program = "import base64, hashlib, hmac, sys\n\
        key = base64.b64decode(sys.argv[1].removeprefix('whsec_'))\n\
        print('v1,' + base64.b64encode(hmac.new(key, sys.stdin.buffer.read(), hashlib.sha256).digest()).decode())";
    let mut child = std::process::Command::new("python3")
        .args(["-c", program, SECRET])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let [id, timestamp] = ["webhook-id", "webhook-timestamp"].map(|name| came.header(name));
    child.stdin.take().unwrap().write_all(format!("{id}.{timestamp}.{}", came.body).as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
}

#[test]
fn the_end_of_a_job_is_told_signed_and_once() {
    let hook = Hook::on([127, 0, 0, 1]);
    let server = server("[\"127.0.0.1\"]", &[]);
    let id = submit(&server, &format!("http://{}/hook?from=faber", hook.address), &["echo", "told"]);
    let came = hook.next();
    assert!(came.head.starts_with("POST /hook?from=faber HTTP/1.1\r\n"), "{}", came.head);
    assert_eq!((came.header("content-type"), came.header("webhook-id")), ("application/json", &*format!("job_{id}")));
    assert_eq!(came.header("webhook-signature"), signature(&came));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(now.abs_diff(came.header("webhook-timestamp").parse().unwrap()) < 60);
    let mut told = came.json();
    assert_eq!(told["type"], "job.done");
    assert_eq!(told["data"]["response"]["results"][0]["stdout"], "told\n");
    let delivered = callback(&server, &id, "delivered");
    assert_eq!((&delivered["attempts"], &delivered["error"]), (&json!(1), &Value::Null), "{delivered}");
    let mut seen = job(&server, &id);
    assert_eq!(seen["ended_at"], told["timestamp"]);
    for job in [&mut told["data"], &mut seen] {
        job.as_object_mut().unwrap().remove("callback");
    }
    assert_eq!(told["data"], seen);
    assert!(!server.get("/jobs").text.contains("whsec_") && !server.log().contains("whsec_"));

    let id = submit(&server, &format!("http://{}/", hook.address), &["sleep", "100"]);
    eventually("it runs", || job(&server, &id)["state"] == "running");
    assert_eq!(job(&server, &id)["callback"]["state"], "waiting");
    server.send("DELETE", &format!("/jobs/{id}"), &[], &[]);
    let came = hook.next();
    assert_eq!((&came.json()["type"], &came.json()["data"]["id"]), (&json!("job.cancelled"), &json!(id)));
    callback(&server, &id, "delivered");
    assert!(hook.is_quiet());
}

#[test]
fn a_hook_that_refuses_is_called_again_and_in_the_end_no_more() {
    let hook = Hook::on([127, 0, 0, 1]);
    let server = server("[\"127.0.0.1\"]", &[("FABER_JOBS__CALLBACK_ATTEMPTS", "2")]);
    let url = format!("http://{}/", hook.address);
    hook.answer("503 Service Unavailable");
    let id = submit(&server, &url, &["true"]);
    let first = hook.next();
    let pending = callback(&server, &id, "pending");
    eventually("it is told of", || job(&server, &id)["callback"]["attempts"] == 1);
    assert_eq!(job(&server, &id)["callback"]["error"], "the answer was 503 Service Unavailable", "{pending}");
    let second = hook.next();
    assert_eq!(first.header("webhook-id"), second.header("webhook-id"));
    let failed = callback(&server, &id, "failed");
    assert_eq!((&failed["attempts"], &failed["next_attempt_at"]), (&json!(2), &Value::Null), "{failed}");

    // It leads elsewhere: nobody goes there.
    hook.answer("302 Found");
    let id = submit(&server, &url, &["true"]);
    assert!(hook.next().head.starts_with("POST / "));
    eventually("it is tried", || job(&server, &id)["callback"]["attempts"] == 1);
    assert_eq!(job(&server, &id)["callback"]["error"], "the answer was 302 Found");
    hook.answer("410 Gone");
    assert!(hook.next().head.starts_with("POST / "));
    callback(&server, &id, "failed");
    let id = submit(&server, &url, &["true"]);
    hook.next();
    assert_eq!(callback(&server, &id, "failed")["attempts"], 1, "gone is gone");

    hook.answer("200 OK");
    let id = submit(&server, "http://127.0.0.1:9/", &["true"]);
    eventually("it is tried", || job(&server, &id)["callback"]["attempts"] == 1);
    let error = job(&server, &id)["callback"]["error"].clone();
    assert!(error.as_str().unwrap().contains("Connection refused"), "{error}");
    assert!(hook.is_quiet());
}

#[test]
fn what_is_pending_survives_a_killed_front_and_a_killed_sender() {
    let hook = Hook::on([127, 0, 0, 1]);
    let server = server("[\"127.0.0.1\"]", &[]);
    let url = format!("http://{}/", hook.address);
    hook.answer("500 Internal Server Error");
    let id = submit(&server, &url, &["echo", "x"]);
    hook.next();
    eventually("it is tried", || job(&server, &id)["callback"]["attempts"] == 1);
    hook.answer("200 OK");
    let front = server.front();
    kill(Pid::from_raw(front), Signal::SIGKILL).unwrap();
    eventually("another front", || server.processes("front").first().is_some_and(|pid| *pid != front));
    let came = hook.next();
    assert_eq!(came.json()["data"]["id"], json!(id));
    eventually("it serves", || server.get("/health").status == 200);
    callback(&server, &id, "delivered");

    let [sender] = server.processes("sender")[..] else { panic!("one sender") };
    kill(Pid::from_raw(sender), Signal::SIGKILL).unwrap();
    let id = submit(&server, &url, &["echo", "y"]);
    assert_eq!(hook.next().json()["data"]["id"], json!(id));
    callback(&server, &id, "delivered");
}

#[test]
fn a_name_leads_only_where_its_addresses_may_be() {
    let [allowed, other] = [Hook::on([127, 0, 0, 2]), Hook::on([127, 0, 0, 1])];
    let names = Names::new(&[[127, 0, 0, 2]]);
    let name_server = names.address.to_string();
    let more = [("FABER_JOBS__NAME_SERVER", &*name_server), ("FABER_JOBS__CALLBACK_ATTEMPTS", "1")];
    let server = server("[\"*.hook.test\", \"127.0.0.2\"]", &more);
    let to = |hook: &Hook, name: &str| format!("http://{name}:{}/", hook.address.port());

    let id = submit(&server, &to(&allowed, "a.hook.test"), &["true"]);
    assert!(allowed.next().header("host").starts_with("a.hook.test:"));
    callback(&server, &id, "delivered");

    // The name stands for another address now, as one would have it who wants to reach what is not his.
    names.are(&[[127, 0, 0, 1]]);
    names.asked.store(false, Ordering::SeqCst);
    let id = submit(&server, &to(&other, "b.hook.test"), &["true"]);
    let failed = callback(&server, &id, "failed");
    assert!(failed["error"].as_str().unwrap().contains("127.0.0.1, which is no public address"), "{failed}");
    assert!(names.asked.load(Ordering::SeqCst));

    // For both: only the one that is allowed is connected to.
    names.are(&[[127, 0, 0, 1], [127, 0, 0, 2], [169, 254, 169, 254], [10, 0, 0, 1]]);
    let id = submit(&server, &to(&other, "c.hook.test"), &["true"]);
    let failed = callback(&server, &id, "failed");
    assert!(failed["error"].as_str().unwrap().contains("refused"), "{failed}");
    let id = submit(&server, &to(&allowed, "d.hook.test"), &["true"]);
    allowed.next();
    callback(&server, &id, "delivered");
    for address in ["169.254.169.254", "10.0.0.1", "100.100.100.200"] {
        let IpAddr::V4(address) = address.parse().unwrap() else { unreachable!() };
        names.are(&[address.octets()]);
        let id = submit(&server, &to(&other, "e.hook.test"), &["true"]);
        let failed = callback(&server, &id, "failed");
        assert!(failed["error"].as_str().unwrap().contains(&format!("{address}, which is no public")), "{failed}");
    }
    assert!(other.is_quiet());
}

#[test]
fn what_may_not_be_called_is_refused_at_once() {
    let named = server("[\"hooks.example.com\"]", &[]);
    let refused = |server: &Server, callback: Value, details: &str| {
        let body = json!({ "tasks": [{ "command": "true" }], "callback": callback });
        let answer = server.post_to("/jobs", &body.to_string(), &[]);
        assert_eq!(answer.status, 400, "{}", answer.text);
        assert!(answer.json()["details"].as_str().unwrap().contains(details), "{}", answer.text);
    };
    let to = |url: &str| json!({ "url": url, "secret": SECRET });
    refused(&named, to("http://127.0.0.1/"), "which is no public address");
    refused(&named, to("http://169.254.169.254/latest/meta-data"), "which is no public address");
    refused(&named, to("https://example.com/"), "jobs.callback_hosts does not have it");
    refused(&named, to("ftp://hooks.example.com/"), "http or https");
    refused(&named, to("https://me:too@hooks.example.com/"), "password");
    refused(&named, to("hooks.example.com"), "expected a URL");
    refused(
        &named,
        json!({ "url": "https://hooks.example.com/", "secret": "short" }),
        "callback.secret: expected whsec_",
    );
    refused(&named, json!({ "url": "https://hooks.example.com/" }), "missing field `secret`");
    refused(&named, json!({ "url": "https://hooks.example.com/", "secret": SECRET, "method": "PUT" }), "unknown field");
    refused(&named, json!("https://hooks.example.com/"), "callback:");
    assert_eq!(named.get("/jobs").json()["jobs"], json!([]));
    let without = Server::start_open();
    refused(&without, to("https://hooks.example.com/"), "this server sends no callbacks");
    assert!(without.processes("sender").is_empty());
    let env = [("FABER_JOBS__CALLBACK_HOSTS", "[\"https://example.com\"]")];
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_faber")).arg("config").envs(env).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("expected a host's name"), "{said}");
}

/// In that API's own form, which knows no signatures.
#[test]
fn a_submission_of_judge0_is_told_with_put() {
    let hook = Hook::on([127, 0, 0, 1]);
    let env = [("FABER_COMPAT__JUDGE0", "true"), ("FABER_JOBS__CALLBACK_HOSTS", "[\"127.0.0.1\"]")];
    let server = Server::with_languages_and(&env);
    let send = |url: &str| {
        let body = json!({ "language_id": 71, "source_code": "print('later')", "callback_url": url });
        server.post_to("/judge0/submissions?base64_encoded=false", &body.to_string(), &[])
    };
    let url = format!("http://{}/hook", hook.address);
    let token = send(&url).json()["token"].as_str().unwrap().to_owned();
    let came = hook.next();
    assert!(came.head.starts_with("PUT /hook HTTP/1.1\r\n"), "{}", came.head);
    let told = came.json();
    assert_eq!(
        (&told["token"], &told["status"]["id"], &told["stdout"]),
        (&json!(token), &json!(3), &json!("bGF0ZXIK\n"))
    );
    let id = server.get("/jobs").json()["jobs"][0]["id"].as_str().unwrap().to_owned();
    callback(&server, &id, "delivered");
    assert_eq!(
        server.get(&format!("/judge0/submissions/{token}?fields=callback_url")).json(),
        json!({ "callback_url": url })
    );
    let refused = send("http://10.0.0.1/");
    assert_eq!(refused.status, 422, "{}", refused.text);
    assert!(
        refused.json()["callback_url"][0].as_str().unwrap().contains("which is no public address"),
        "{}",
        refused.text
    );
    assert_eq!(server.get("/judge0/config_info").json()["enable_callbacks"], true);
}
