//! Jobs while the processors work, and what other systems' endpoints cost beyond /execute.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Run;
use crate::common::support::Server;
use crate::common::{Client, Percentiles, SETTINGS, ms};
use crate::transfer::in_turns;

pub fn all(run: &mut Run) {
    polls(run);
    endpoints(run);
}

/// 1,000 jobs that take some time each, and somebody who asks for one after the other meanwhile.
fn polls(run: &mut Run) {
    const JOBS: usize = 1000;
    run.begins("1,000 queued jobs");
    let server = Server::start(&["--open-mode"], &SETTINGS);
    let agent = ureq::agent();
    let url = format!("{}/jobs", server.url());
    let script = "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done";
    let body = json!({ "tasks": [{ "command": "sh", "args": ["-c", script] }] }).to_string();
    let begun = Instant::now();
    let ids: Vec<String> = (0..JOBS)
        .map(|_| {
            let mut answer = agent.post(&url).content_type("application/json").send(&body).unwrap();
            let job: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
            job["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let submitted = ms(begun.elapsed()) / JOBS as f64;
    let until = Instant::now() + Duration::from_secs(run.args.times(10, 4) as u64);
    let mut took = Vec::new();
    for id in ids.iter().cycle() {
        if Instant::now() >= until {
            break;
        }
        let begun = Instant::now();
        agent.get(format!("{url}/{id}")).call().unwrap().body_mut().read_to_string().unwrap();
        took.push(begun.elapsed());
    }
    let last = agent.get(format!("{url}/{}", ids[JOBS - 1])).call().unwrap().body_mut().read_to_string().unwrap();
    assert!(last.contains("\"queued\""), "the processors had nothing to do: {last}");
    let asked = took.len();
    let Percentiles { p50, p99, .. } = Percentiles::of(&mut took);
    run.tell(format!(
        "\n{JOBS} jobs: submitted in {submitted:.2} ms each; {asked} polls while they run: p50 {:.2} ms, p99 {:.2} ms",
        ms(p50),
        ms(p99)
    ));
    run.raw.insert("polls of 1000 jobs".into(), json!({ "submitted": submitted, "p50": ms(p50), "p99": ms(p99) }));
    run.at_most("1,000 queued jobs: a poll, p99", ms(p99), 5.0, 2.0, "ms");
}

/// One small program by each, beside the same by /execute.
fn endpoints(run: &mut Run) {
    run.begins("other systems' endpoints");
    let on = ["SANDBOX_FUSION", "PISTON"].map(|name| (format!("FABER_COMPAT__{name}"), "true"));
    let on: Vec<(&str, &str)> = on.iter().map(|(name, value)| (&**name, *value)).chain(SETTINGS).collect();
    let server = Server::with_languages_and(&on);
    let own = Client::new(&server, &json!({ "language": "python", "code": "print(1)" }));
    let ways = [
        ("SandboxFusion", "/run_code", json!({ "language": "python", "code": "print(1)" })),
        (
            "Piston",
            "/api/v2/execute",
            json!({ "language": "python", "version": "*", "files": [{ "content": "print(1)" }] }),
        ),
    ];
    for (name, path, body) in ways {
        let theirs = Client::of(&server, path, &body);
        let [own, theirs] = in_turns(run.args.times(300, 6), [&|| own.ask(), &|| theirs.ask()]);
        run.tell(format!("{name}, beyond /execute of the same ({own:.2} ms): {:.2} ms", theirs - own));
        run.raw.insert(name.into(), json!({ "own": own, "theirs": theirs }));
        run.at_most("another system's endpoint, beyond /execute", theirs - own, 0.5, 0.1, "ms");
    }
}
