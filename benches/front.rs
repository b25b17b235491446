//! How many instructions a request costs the front, counted by callgrind: a figure that does not depend on how busy the
//! machine is, so that a change of a few percent shows. All of it is real: the server on a port, the scheduler, a runner
//! with its containers; only the first two are counted, which are all that is in this process.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use faber::artifact::Spool;
use faber::config::Loaded;
use faber::execution::Engine;
use faber::frame;
use faber::image::{Catalog, Store};
use faber::keeper::Instance;
use faber::runner::wire::Setup;
use faber::scheduler::{Capacity, Scheduler, Shares};

const FABER: &str = env!("CARGO_BIN_EXE_faber");
/// What was counted last, by this compiler: instructions.
const KNOWN: &str = include_str!("front.instructions");
/// More than that share above it is worth an explanation, or a new figure.
const TOLERANCE: f64 = 0.03;
/// Set in the process that is counted: how many requests it makes.
const REQUESTS: &str = "COUNTED_REQUESTS";
const BODY: &str = r#"{"tasks":[{"command":"true","args":["--help"],"env":{"LANG":"C"},"files":{"a.txt":"hello"}}]}"#;

fn main() {
    if let Ok(requests) = std::env::var(REQUESTS) {
        return serve(requests.parse().unwrap());
    }
    let (few, many) = (100, 600);
    // The difference leaves out what a start costs.
    let each = (count(many) - count(few)) / (many - few);
    let known: u64 = KNOWN.trim().parse().unwrap();
    let change = each as f64 / known as f64 - 1.0;
    println!("the front executes {each} instructions a request; known: {known} ({:+.1} %)", change * 100.0);
    if change > TOLERANCE {
        println!("that is more than it should be: find out why, or write the new figure to benches/front.instructions");
        std::process::exit(1);
    }
}

/// Instructions of a process that answers so many requests.
fn count(requests: u64) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(std::env::current_exe().unwrap());
    let output = valgrind.env(REQUESTS, requests.to_string()).output().expect("valgrind is installed");
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|line| line.split_once("Collected : ")).filter(|_| output.status.success());
    line.unwrap_or_else(|| panic!("valgrind said: {text}")).1.trim().parse().unwrap()
}

fn serve(requests: u64) {
    let mut config = Loaded::read(None, Vec::new()).unwrap().config;
    config.auth.open_mode = true;
    config.rate_limit.enabled = false;
    let instance = Instance::found(config.resources()).unwrap();
    let (to_runner, theirs) = UnixStream::pair().unwrap();
    let setup = Setup {
        run_dir: instance.run_dir().to_owned(),
        dir: instance.slot_dir("s0"),
        instance: instance.name().to_owned(),
        slot: "s0".into(),
        data_dir: config.data_dir.clone(),
        default_image: config.execution.default_image.clone(),
        max: config.bounds().max,
        resources: config.resources(),
    };
    let spool = Spool::create(16 << 20).unwrap();
    frame::send_with(&to_runner, &setup, &[spool.as_fd()]).unwrap();
    let mut runner = Command::new(FABER)
        .arg("runner")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = std::thread::spawn(move || ask(TcpStream::connect(address).unwrap(), requests));
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let capacity = Capacity {
            concurrency: 1,
            slots: 1,
            memory: config.memory_budget(),
            queue_length: 10,
            queue_timeout: std::time::Duration::from_secs(60),
        };
        let scheduler = Scheduler::new(capacity, Shares::ALL, None);
        tokio::spawn(scheduler.clone().drive("s0".into(), to_runner));
        let catalog = Catalog::new(Store::new(&config.data_dir));
        let done = tokio::task::spawn_blocking(move || client.join().unwrap());
        let engine = Arc::new(Engine::new(&config, scheduler, spool, None));
        let (_, no_pings) = tokio::sync::mpsc::channel(1);
        let bounds = faber::sessions::Bounds { count: 0, per_owner: 0, memory: 0 };
        let sessions = faber::api::Sessions::new(bounds, engine.scheduler.clone(), Box::new(|_| ()));
        let beside = faber::api::Beside { jobs: None, sessions };
        let served =
            faber::api::serve(listener, faber::api::Live::new(config), catalog, engine, beside, no_pings, async {
                done.await.unwrap()
            });
        served.await.unwrap();
    });
    runner.wait().unwrap();
}

/// As few instructions as will do: they are counted, too.
fn ask(mut connection: TcpStream, requests: u64) {
    let request = format!(
        "POST /execute HTTP/1.1\r\nHost: faber\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let mut answer = [0; 4096];
    for _ in 0..requests {
        connection.write_all(request.as_bytes()).unwrap();
        let read = connection.read(&mut answer).unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..read]));
        assert!(answer[..read].ends_with(b"}]}"));
    }
}
