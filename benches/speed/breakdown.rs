//! Where the time of one task goes: requests that come ever further, and what the task itself says that it took.

use std::time::Duration;

use serde_json::json;

use crate::Run;
use crate::common::support::Server;
use crate::common::{Client, Percentiles, ms};

pub fn breakdown(run: &mut Run, server: &Server) {
    run.begins("where the time goes");
    let refused = Client::new(server, &json!({ "command": "true", "image": "no-such-image" })).that_is("NotExecuted");
    let task = Client::new(server, &json!({ "command": "true" }));
    let times = run.args.times(500, 5);
    let mut took: [Vec<Duration>; 3] = Default::default();
    for _ in 0..times {
        // Long enough for the next container to be there: what is measured is a task, not the making of its successor.
        std::thread::sleep(Duration::from_millis(8));
        took[0].push(refused.ask());
        let (all, own) = task.ask_for_wall_time();
        took[1].push(own);
        took[2].push(all);
    }
    let [refused, own, all] = took.map(|mut took| ms(Percentiles::of(&mut took).p50));
    let rows = [
        ("HTTP: the request read as tasks, the answer", refused),
        ("the task: from exec to its end, as it is told", own),
        ("front, runner and init: there, its usage, and back", all - refused - own),
        ("all of it", all),
    ];
    run.tell("\nwhere the time of `true` goes, p50, ms");
    for (what, time) in rows {
        run.tell(format!("  {what:52} {time:>6.2}"));
    }
    let raw = rows.map(|(what, time)| json!({ "what": what, "ms": time }));
    run.raw.insert("where the time goes".into(), json!(raw));
}
