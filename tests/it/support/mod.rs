//! A server of a test's own, and the proof that it leaves nothing.

mod cells;
pub mod cgroup2;
pub mod languages;
pub mod left;
pub mod live;
pub mod npm;
pub mod oci;
pub mod pypi;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

pub use left::{Family, assert_nothing_left, children, groups_of, running};

pub const FABER: &str = env!("CARGO_BIN_EXE_faber");

/// What a slow machine cannot do at once waits its turn.
pub const PATIENT: [(&str, &str); 2] =
    [("FABER_RATE_LIMIT__ENABLED", "false"), ("FABER_EXECUTION__QUEUE_TIMEOUT", "10m")];

/// Started in open mode without rate limits, unless told otherwise. Dropping it stops it and looks for remains.
pub struct Server {
    keeper: Child,
    url: String,
    instance: String,
    dir: TempDir,
    stopped: bool,
}

/// An HTTP answer.
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub text: String,
    pub bytes: Vec<u8>,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).to_str().unwrap()
    }

    /// The page's form of an error.
    #[track_caller]
    pub fn is_error(&self, status: u16, error: &str, details: &str) {
        assert_eq!((self.status, self.json()), (status, json!({ "error": error, "details": details })));
    }
}

/// A server that has yet to say where it is. One that never does is ended.
struct Starting {
    keeper: Option<Child>,
    dir: Option<TempDir>,
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            let _ = kill(Pid::from_raw(keeper.id() as i32), Signal::SIGTERM);
            let _ = keeper.wait();
        }
    }
}

impl Starting {
    fn new(dir: TempDir, preparation: &str, args: &[&str], env: &[(&str, &str)], stderr: Stdio) -> Self {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{preparation}\nexec \"$@\""), "bash", FABER]);
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(args);
        // What this machine's own store has is no part of a test. The front, which is nobody, has to pass.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        command.env("FABER_DATA_DIR", dir.path().join("data"));
        command.env("FABER_LOG__FORMAT", "json").env("FABER_LOG__LEVEL", "debug").envs(env.iter().copied());
        command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        let keeper = command.stderr(stderr).spawn().unwrap();
        Self { keeper: Some(keeper), dir: Some(dir) }
    }

    fn log(&self) -> String {
        let dir = self.dir.as_ref().unwrap().path();
        std::fs::read_to_string(dir.join("log")).unwrap_or_default()
    }

    #[track_caller]
    fn url(&mut self) -> String {
        let mut line = String::new();
        let stdout = self.keeper.as_mut().unwrap().stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("Faber serves on ");
        url.unwrap_or_else(|| panic!("no server: {line}{}", self.log())).to_owned()
    }

    fn started(mut self, url: String, instance: String) -> Server {
        let (keeper, dir) = (self.keeper.take().unwrap(), self.dir.take().unwrap());
        Server { keeper, url, instance, dir, stopped: false }
    }
}

/// The server's own name; what it says of others' remains is not that.
fn instance_in(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    Some(line["instance"].as_str().filter(|_| line["message"] == "starting")?.to_owned())
}

impl Server {
    /// For everybody, without rate limits, and with patience.
    pub fn start_open() -> Self {
        Self::start(&["--open-mode"], &PATIENT)
    }

    pub fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::start_after("", args, env)
    }

    /// The same from a shell that has done `preparation`, such as setting a limit.
    pub fn start_after(preparation: &str, args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), preparation, args, env)
    }

    /// With the images of C++, Java, Node.js, Python and Rust, as this repository defines them.
    pub fn with_languages() -> Self {
        Self::with_languages_and(&[])
    }

    /// The same with more of the environment.
    pub fn with_languages_and(env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let preparation = languages::shown_in(&dir.path().join("data"));
        Self::start_in(dir, &preparation, &["--open-mode"], &[&PATIENT, env].concat())
    }

    fn start_in(dir: TempDir, preparation: &str, args: &[&str], env: &[(&str, &str)]) -> Self {
        let log = File::create(dir.path().join("log")).unwrap();
        let mut starting = Starting::new(dir, preparation, args, env, log.into());
        let url = starting.url();
        let log = starting.log();
        let instance = log.lines().find_map(instance_in).unwrap_or_else(|| panic!("no instance: {url} {log}"));
        starting.started(url, instance)
    }

    /// With its log going to `stderr`, of which nothing is read here but the beginning, from `reader`.
    pub fn start_logging_to(stderr: impl Into<Stdio>, reader: &mut impl Read, env: &[(&str, &str)]) -> Self {
        let env = [&PATIENT, env].concat();
        let mut starting = Starting::new(tempfile::tempdir().unwrap(), "", &["--open-mode"], &env, stderr.into());
        let mut log = Vec::new();
        let instance = loop {
            let mut byte = [0];
            reader.read_exact(&mut byte).unwrap();
            log.push(byte[0]);
            let last = String::from_utf8_lossy(&log).lines().last().and_then(instance_in);
            if let Some(instance) = last.filter(|_| byte == *b"\n") {
                break instance;
            }
        };
        let url = starting.url();
        starting.started(url, instance)
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    pub fn instance(&self) -> &str {
        &self.instance
    }

    pub fn pid(&self) -> i32 {
        self.keeper.id() as i32
    }

    pub fn data_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The front and the runners, by role.
    pub fn processes(&self, role: &str) -> Vec<i32> {
        let is = |pid: &i32| left::command_line(*pid) == ["faber", role];
        left::children(self.pid()).into_iter().filter(is).collect()
    }

    /// Its front, once that serves.
    pub fn front(&self) -> i32 {
        assert_eq!(self.get("/health").status, 200);
        self.processes("front")[0]
    }

    /// A connection from another address of this machine, such as 127.0.0.2.
    pub fn connect_from(&self, address: [u8; 4]) -> TcpStream {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
        let to: SocketAddr = self.url.strip_prefix("http://").unwrap().parse().unwrap();
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &SocketAddr::from((address, 0))).unwrap();
        connect(&socket, &to).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> Answer {
        answer(agent().get(format!("{}{path}", self.url)).call())
    }

    /// Any request.
    pub fn send(&self, method: &str, path: &str, body: &[u8], headers: &[(&str, &str)]) -> Answer {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // HEAD and GET of ours have none.
        if body.is_empty() && matches!(method, "GET" | "HEAD" | "DELETE") {
            return answer(agent().run(request.body(()).unwrap()));
        }
        answer(agent().run(request.body(body).unwrap()))
    }

    /// Keeps bytes as a blob; its name.
    #[track_caller]
    pub fn put(&self, bytes: &[u8]) -> String {
        let answer = self.send("PUT", "/blobs", bytes, &[]);
        assert!(matches!(answer.status, 200 | 201), "{}", answer.text);
        answer.json()["blob"].as_str().unwrap().to_owned()
    }

    /// A blob's bytes.
    #[track_caller]
    pub fn blob(&self, name: &str) -> Vec<u8> {
        let answer = self.get(&format!("/blobs/{name}"));
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.bytes
    }

    /// The results of a request that is answered with them: its whole body.
    #[track_caller]
    pub fn results(&self, body: &Value) -> Vec<Value> {
        let answer = self.post(&body.to_string(), &[]);
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["results"].as_array().unwrap().clone()
    }

    /// A client that asks and does not wait for the answer.
    pub fn ask(&self, body: &Value) -> TcpStream {
        let mut stream = TcpStream::connect(self.url.strip_prefix("http://").unwrap()).unwrap();
        let body = body.to_string();
        let head = "POST /execute HTTP/1.1\r\nHost: faber\r\nConnection: close\r\nContent-Type: application/json";
        write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        stream
    }

    pub fn post(&self, body: &str, headers: &[(&str, &str)]) -> Answer {
        self.post_to("/execute", body, headers)
    }

    /// With `TEST_CELLS` a request of one task is the last of many, so that it has a cell in a container that others had one in.
    pub fn post_to(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
        match cells::with_others(path, body) {
            None => self.post_as_it_is(path, body, headers),
            Some(body) => cells::only_last(self.post_as_it_is(path, &body, headers)),
        }
    }

    fn post_as_it_is(&self, path: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = agent().post(format!("{}{path}", self.url));
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            request = request.content_type("application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.send(body))
    }

    /// Keeps the bytes as a blob, and says which.
    #[track_caller]
    pub fn put_blob(&self, bytes: &[u8]) -> Value {
        let answer = answer(agent().put(format!("{}/blobs", self.url)).send(bytes));
        assert_eq!(answer.status, 201, "{}", answer.text);
        json!({ "blob": answer.json()["blob"] })
    }

    pub fn execute(&self, tasks: Value) -> Answer {
        self.post(&json!({ "tasks": tasks }).to_string(), &[])
    }

    /// The result of one task.
    #[track_caller]
    pub fn run(&self, task: Value) -> Value {
        let answer = self.execute(json!([task]));
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["results"][0].clone()
    }

    /// The trimmed output of a shell script that must succeed.
    #[track_caller]
    pub fn shell(&self, script: &str) -> String {
        let result = self.run(json!({ "command": "bash", "args": ["-c", script] }));
        assert_eq!(result["status"], "Success", "{result}");
        result["stdout"].as_str().unwrap_or_default().trim().to_owned()
    }

    /// What Python prints, which must succeed.
    #[track_caller]
    pub fn python(&self, program: &str) -> String {
        let result = self.run(json!({ "command": "python3", "args": ["-c", program] }));
        assert_eq!(result["status"], "Success", "{result}");
        result["stdout"].as_str().unwrap_or_default().trim().to_owned()
    }

    /// SIGTERM, and the exit status.
    pub fn stop(&mut self) -> Option<i32> {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).unwrap();
        self.wait()
    }

    /// The exit status of a server that was told to stop.
    pub fn wait(&mut self) -> Option<i32> {
        self.stopped = true;
        self.keeper.wait().unwrap().code()
    }

    /// SIGKILL to the keeper, and nothing else.
    pub fn kill(&mut self) {
        self.stopped = true;
        self.keeper.kill().unwrap();
        self.keeper.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        let family = Family::of(self.pid());
        let status = self.stop();
        if std::thread::panicking() {
            eprintln!("--- the server's log\n{}", self.log());
            return;
        }
        assert_eq!(status, Some(0), "{}", self.log());
        family.assert_gone();
        left::assert_nothing_left(&self.instance);
    }
}

/// `faber run` with a task as the API has it; its result.
#[track_caller]
pub fn faber_run(task: &Value) -> Value {
    let mut command = Command::new(FABER);
    command.args(["run", "--json"]).env("FABER_DATA_DIR", "/nonexistent").stdin(Stdio::null());
    let limits = &task["resource_limits"];
    let nanos = |n: u64| format!("{n}ns");
    let bytes = |n: u64| n.to_string();
    type Unit<'a> = &'a dyn Fn(u64) -> String;
    let flags: [(&str, &str, Unit); 6] = [
        ("memory_limit", "--memory", &bytes),
        ("cpu_time_limit", "--cpu-time", &nanos),
        ("wall_time_limit", "--wall-time", &nanos),
        ("max_processes", "--processes", &bytes),
        ("max_file_descriptors", "--file-descriptors", &bytes),
        ("max_output_size", "--max-output", &bytes),
    ];
    for (field, flag, unit) in flags {
        if let Some(value) = limits[field].as_u64() {
            command.args([flag, &unit(value)]);
        }
    }
    command.arg("--").arg(task["command"].as_str().unwrap());
    command.args(task["args"].as_array().into_iter().flatten().map(|arg| arg.as_str().unwrap()));
    let output = command.output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// `faber` started by a shell that has done `preparation`.
pub fn faber_after(preparation: &str, args: &[&str]) -> Output {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("{preparation}\nexec \"$@\""), "bash", FABER]).args(args);
    command.stdin(Stdio::null()).output().unwrap()
}

/// By whoever comes next, be it only for one task.
#[track_caller]
pub fn is_swept(instance: &str) {
    let output = Command::new(FABER).args(["run", "--", "echo", "next"]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "next\n");
    assert_eq!(groups_of(instance), Vec::<std::path::PathBuf>::new());
    assert!(!Path::new("/run/faber").join(instance).exists());
}

/// A static busybox: Debian's, or that of the virtual machine.
pub fn busybox() -> &'static Path {
    let known = ["/bin/busybox", "/busybox"].map(Path::new);
    known.into_iter().find(|path| path.exists()).expect("scripts/test installs busybox-static")
}

/// Waits until `is` holds: for what is an event somewhere else.
#[track_caller]
pub fn eventually(what: &str, is: impl FnMut() -> bool) {
    assert!(settles(is), "{what} did not happen");
}

/// The same, for who has more to say when it does not.
pub fn settles(mut is: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match is() {
            true => return true,
            false if Instant::now() >= deadline => return false,
            false => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn agent() -> ureq::Agent {
    let config =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(900)));
    config.build().into()
}

#[track_caller]
fn answer(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
    let mut response = response.unwrap();
    let bytes = response.body_mut().with_config().limit(256 << 20).read_to_vec().unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Answer { status: response.status().as_u16(), headers: response.headers().clone(), text, bytes }
}

/// A key, and the value of FABER_AUTH__KEYS that lets it in.
pub fn new_key() -> (String, String) {
    let output = Command::new(FABER).args(["key", "new", "--name", "class"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let key = text.lines().find_map(|line| line.trim().starts_with("faber_").then(|| line.trim().to_owned())).unwrap();
    let keys = text.lines().find_map(|line| line.trim().strip_prefix("keys = ")).unwrap().to_owned();
    assert!(!keys.contains(&key), "the key itself is not for the file");
    (key, keys)
}

/// A field of /proc/PID/status that is told in kB, in bytes.
pub fn memory_of(pid: i32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}
