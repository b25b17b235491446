//! docs/compatibility.md, line by line: what it says that a task finds is what one finds.

use serde_json::{Value, json};

use crate::support::Server;

const PAGE: &str = include_str!("../../docs/compatibility.md");

/// A line of a table: what it is about, and what is said of a task.
fn lines() -> Vec<(String, String)> {
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let rows = rows.map(|row| row.split(" | ").map(str::trim).collect::<Vec<_>>());
    let rows = rows.filter(|row| !row[0].starts_with("a program finds"));
    rows.map(|row| {
        assert_eq!(row.len(), 5, "{row:?}");
        let said = row[1].split('`').nth(1).unwrap_or_else(|| panic!("{}: what does a shell print?", row[0]));
        (row[0].replace('`', ""), said.to_owned())
    })
    .collect()
}

/// The scripts that look, each behind a comment that says at what.
fn scripts() -> Vec<(String, String)> {
    let blocks = PAGE.split("```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    let scripts = blocks.flat_map(|block| block.strip_prefix("# ").unwrap().split("\n# "));
    scripts.map(|script| script.split_once('\n').unwrap()).map(|(what, script)| (what.into(), script.into())).collect()
}

#[test]
fn every_line_is_what_a_task_finds() {
    let (lines, scripts) = (lines(), scripts());
    let names = |pairs: &[(String, String)]| pairs.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&lines), names(&scripts), "each line has its script, in the same order");
    assert!(lines.len() > 40, "{}", lines.len());
    let server = Server::start_open();
    let tasks = scripts.iter().map(|(_, script)| json!({ "command": "sh", "args": ["-c", script] }));
    let results = server.execute(Value::from_iter(tasks)).json();
    let mut wrong = Vec::new();
    for ((what, said), result) in lines.iter().zip(results["results"].as_array().unwrap()) {
        let found = result["stdout"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        if found != *said {
            wrong.push(format!("{what}\n  says  {said}\n  finds {found}\n  {}", result["stderr"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
