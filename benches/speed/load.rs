//! Many clients, by wrk: as many requests as are answered.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Run;
use crate::common::support::Server;
use crate::common::{Client, Percentiles, ms};
use crate::server::cpu_time;

/// What wrk is to ask, and how it is to tell what came of it: JSON, times in milliseconds.
const SCRIPT: &str = r#"
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"tasks":[{"command":"true"}]}'
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('\nJSON {"requests":%d,"seconds":%f,"errors":%d,"p50":%f,"p90":%f,"p99":%f,"max":%f}\n',
    summary.requests, summary.duration / 1e6, errors.status + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
"#;

/// What a load came to.
pub struct Load {
    pub per_second: f64,
    pub p99: f64,
    raw: Value,
}

pub fn all(run: &mut Run, server: &Server) {
    run.tell(format!(
        "\n{:32} {:>8} {:>8} {:>8} {:>8} {:>9} {:>10}",
        "`true`, many clients, ms", "p50", "p90", "p99", "max", "CPU", "requests/s"
    ));
    for clients in [2, 8, 32] {
        run.begins("many clients");
        let before = cpu_time(server);
        let load = saturate(server, clients, run.args.times(10, 5));
        let requests = load.raw["requests"].as_u64().unwrap_or(1).max(1);
        let cpu = ms((cpu_time(server) - before) / requests as u32);
        let [p50, p90, p99, max] = ["p50", "p90", "p99", "max"].map(|key| load.raw[key].as_f64().unwrap_or(f64::NAN));
        let rate = load.per_second;
        run.tell(format!(
            "  {clients:2} clients {:>28.2} {p90:>8.2} {p99:>8.2} {max:>8.2} {cpu:>9.2} {rate:>10.0}",
            p50
        ));
        let mut raw = load.raw;
        raw["cpu"] = json!(cpu);
        run.raw.insert(format!("{clients} clients"), raw);
        // As many as there could be spawned, one after the other, in this many milliseconds.
        let (must, aim) = (420.0 / run.bare, 600.0 / run.bare);
        match clients {
            8 => {
                run.at_least("`true`, 8 clients: 0.42 in the time of a spawn", rate, must, aim, "/s");
                run.at_most("`true`, 8 clients, p99: its p50s", p99 / p50, 4.0, 2.5, "x");
            }
            32 => run.at_least("`true`, 32 clients: 0.42 in the time of a spawn", rate, must, aim, "/s"),
            _ => {}
        }
    }
    beside_a_queue(run, server);
}

/// One client's tasks alone, and while a thousand of another's wait.
fn beside_a_queue(run: &mut Run, server: &Server) {
    run.begins("a thousand tasks of another client");
    let client = Client::new(server, &json!({ "command": "true" }));
    let p50 = |times: usize| {
        let mut took: Vec<Duration> = (0..times).map(|_| client.ask()).collect();
        ms(Percentiles::of(&mut took).p50)
    };
    let times = run.args.times(200, 4);
    let alone = p50(times);
    let body = json!({ "tasks": vec![json!({ "command": "true" }); 100] }).to_string();
    let request = format!(
        "POST /execute HTTP/1.1\r\nhost: faber\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let others: Vec<TcpStream> = (0..10)
        .map(|_| {
            let mut stream = server.connect_from([127, 0, 0, 2]);
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    let beside = p50(times.min(150));
    drop(others);
    let bound = 1.5 * alone + alone;
    run.tell(format!("`true` while a thousand of another client wait: p50 {beside:.2} ms beside {alone:.2} alone"));
    run.raw.insert("beside a queue".into(), json!({ "alone": alone, "beside": beside }));
    run.at_most("beside 1,000 tasks of another: 1.5 of alone + a task", beside, bound, alone * 1.5, "ms");
}

/// So many clients for so many seconds, each with one request at a time.
pub fn saturate(server: &Server, clients: usize, seconds: usize) -> Load {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("true.lua");
    fs::write(&script, SCRIPT).unwrap();
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", &format!("-c{clients}"), &format!("-d{}s", seconds.max(1)), "--timeout", "30s", "-s"])
        .arg(&script);
    let output = wrk.arg(format!("{}/execute", server.url())).output().expect("wrk is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("JSON ")).unwrap_or_else(|| panic!("wrk said: {text}"));
    let raw: Value = serde_json::from_str(line).unwrap();
    let number = |key: &str| raw[key].as_f64().unwrap();
    assert_eq!(number("errors"), 0.0, "{text}");
    std::thread::sleep(Duration::from_millis(200));
    Load { per_second: number("requests") / number("seconds"), p99: number("p99"), raw }
}
