//! Attacks by their tables: programs, with what is to come of each.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::numbers::numbers;
use super::target::{Target, shown};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    attack: Vec<Attack>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Attack {
    name: String,
    /// The program, in one of three languages.
    python: Option<String>,
    shell: Option<String>,
    c: Option<String>,
    /// A program in Python that runs at the same time, in a container of its own; the two hear what the other tells.
    victim: Option<String>,
    /// Other fields of the task.
    #[serde(default)]
    task: Map<String, Value>,
    #[serde(default)]
    limits: Map<String, Value>,
    /// How often, each time in another container: for what one could leave for the next.
    #[serde(default = "once")]
    times: usize,
    /// What may come of it; Success, where nothing is said.
    #[serde(default = "success")]
    status: Vec<String>,
    /// The limits that are told as exceeded, beside that which the status is about; "any": whatever is told.
    #[serde(default)]
    exceeds: Vec<String>,
    /// What it says, line by line, if nothing ended it. In each word alternatives stand between bars, and `*` is any word.
    says: Option<Vec<String>>,
    #[serde(default)]
    victim_says: Vec<String>,
    /// Words in what it says, or in the error of a task that is refused.
    #[serde(default)]
    tells: Vec<String>,
    /// The files it gives back.
    files: Option<Vec<String>>,
    /// The architecture that it is an attack on.
    machine: Option<String>,
}

fn once() -> usize {
    1
}

fn success() -> Vec<String> {
    vec!["Success".to_owned()]
}

const SECOND: u64 = 1_000_000_000;

/// Runs every attack of a table against one server.
pub fn run(name: &str, table: &str) {
    let table: Table = toml::from_str(table).unwrap_or_else(|error| panic!("{name}.toml: {error}"));
    let names: BTreeSet<&str> = table.attack.iter().map(|attack| attack.name.as_str()).collect();
    assert_eq!(names.len(), table.attack.len(), "every attack has a name of its own");
    let mut target = Target::start(name, &[]);
    for attack in &table.attack {
        if attack.machine.as_deref().is_some_and(|machine| machine != std::env::consts::ARCH) {
            println!("{name}: NOT CHECKED, since this is no {:?}: {}", attack.machine, attack.name);
            continue;
        }
        let outcome = (0..attack.times).try_for_each(|_| attack.run(&target));
        target.attacked(&attack.name, outcome);
    }
    target.end();
}

impl Attack {
    fn run(&self, target: &Target) -> Result<(), String> {
        let mut task = self.program();
        task["resource_limits"] = self.limits();
        let fields = task.as_object_mut().unwrap();
        for (field, value) in &self.task {
            match (fields.get_mut(field).and_then(Value::as_object_mut), value) {
                (Some(there), Value::Object(more)) => there.extend(more.clone()),
                _ => drop(fields.insert(field.clone(), value.clone())),
            }
        }
        let mut body = json!({ "tasks": [task] });
        if let Some(victim) = &self.victim {
            let mut victim = python(victim, true);
            victim["name"] = json!("victim");
            victim["resource_limits"] = self.limits();
            body["tasks"][0]["name"] = json!("attacker");
            body["tasks"].as_array_mut().unwrap().push(victim);
            body["connect"] = json!([["attacker.stdout", "victim.stdin"], ["victim.stdout", "attacker.stdin"]]);
        }
        let answer = target.post(&body.to_string());
        if answer.status != 200 {
            return Err(format!("status {}: {}", answer.status, answer.text));
        }
        let answer = answer.json();
        let outcome = self.check(&answer["results"][0]).and_then(|()| match &self.victim {
            Some(_) => {
                says(&self.victim_says, &answer["results"][1]["stderr"]).map_err(|error| format!("the victim: {error}"))
            }
            None => Ok(()),
        });
        outcome.map_err(|error| format!("{error}: {}", shown(&answer)))
    }

    fn program(&self) -> Value {
        match (&self.python, &self.shell, &self.c) {
            (Some(program), None, None) => python(program, self.victim.is_some()),
            (None, Some(program), None) => json!({ "command": "bash", "args": ["-c", program] }),
            (None, None, Some(program)) => {
                let make = "gcc -O1 -w -pthread -o /tmp/attack attack.c && rm attack.c && exec /tmp/attack";
                let source = [include_str!("prelude.h"), program].concat();
                json!({ "command": "bash", "args": ["-c", make], "files": { "attack.c": source } })
            }
            _ => panic!("{}: a program in one language", self.name),
        }
    }

    fn limits(&self) -> Value {
        let mut limits = json!({
            "memory_limit": 256 << 20, "cpu_time_limit": 10 * SECOND, "wall_time_limit": 60 * SECOND,
            "max_processes": 10, "max_file_descriptors": 100, "max_output_size": 64 << 10,
        });
        limits.as_object_mut().unwrap().extend(self.limits.clone());
        limits
    }

    fn check(&self, result: &Value) -> Result<(), String> {
        let status = result["status"].as_str().unwrap();
        if !self.status.iter().any(|expected| expected == status) {
            return Err(format!("status {status}"));
        }
        self.limits_were_kept(result)?;
        let text = |stream: &str| result[stream].as_str().unwrap_or_default().to_owned();
        let told = [text("stdout"), text("stderr"), text("error")].concat();
        if told.contains("ESCAPED") {
            return Err("it says that it escaped".to_owned());
        }
        let files = result["files"].as_object();
        let texts = files.into_iter().flat_map(Map::values).filter_map(|file| file["text"].as_str());
        if texts.into_iter().any(|text| text.contains("root:")) {
            return Err("it has been given a file that is not its own".to_owned());
        }
        if let Some(words) = self.tells.iter().find(|words| !told.contains(words.as_str())) {
            return Err(format!("nothing is told of {words:?}"));
        }
        if let Some(lines) = &self.says
            && status == "Success"
        {
            says(lines, &result[if self.victim.is_some() { "stderr" } else { "stdout" }])?;
        }
        let files: Vec<&String> = files.into_iter().flat_map(Map::keys).collect();
        match &self.files {
            Some(expected) if !files.iter().copied().eq(expected) => Err(format!("files {files:?}")),
            _ => Ok(()),
        }
    }

    /// What was used, and what is told of limits.
    fn limits_were_kept(&self, result: &Value) -> Result<(), String> {
        let (limits, usage) = (self.limits(), &result["resource_usage"]);
        let bounds = [
            // A task that was given room for files is held to its own memory by looks, every 10 ms.
            ("memory_peak_bytes", "memory_limit", 64 << 20),
            ("process_count", "max_processes", 0),
            ("file_descriptors", "max_file_descriptors", 0),
            // A watch every 10 ms, by a runner that has to have its turn.
            ("cpu_time_ns", "cpu_time_limit", 2 * SECOND),
            ("wall_time_ns", "wall_time_limit", 5 * SECOND),
        ];
        for (used, limit, slack) in bounds {
            let (used_up, most) = (usage[used].as_u64().unwrap_or(0), limits[limit].as_u64().unwrap());
            if used_up > most {
                println!("{}: {used} is {used_up}, with {limit} {most}", self.name);
            }
            if used_up > most + slack {
                return Err(format!("{used} is {used_up}, with {limit} {most}"));
            }
        }
        let own = match result["status"].as_str().unwrap() {
            "Timeout" => "wall_time",
            "CpuLimitExceeded" => "cpu_time",
            _ => "",
        };
        let exceeded = result["resource_limits_exceeded"].as_object().unwrap();
        let told: BTreeSet<&str> = exceeded
            .iter()
            .filter(|(_, is)| **is == json!(true))
            .map(|(name, _)| name.strip_suffix("_limit_exceeded").unwrap())
            .collect();
        let expected: BTreeSet<&str> =
            self.exceeds.iter().map(String::as_str).chain([own]).filter(|name| !name.is_empty()).collect();
        match told == expected || expected.contains("any") {
            true => Ok(()),
            false => Err(format!("exceeded is {told:?}, not {expected:?}")),
        }
    }
}

/// With what attacks have in common before it.
fn python(program: &str, is_one_of_two: bool) -> Value {
    let settings = format!("PAIRED = {}\nN = {}\n", if is_one_of_two { "True" } else { "False" }, numbers());
    let program = [&settings, include_str!("prelude.py"), program].concat();
    json!({ "command": "python3", "args": ["-c", program] })
}

/// Are these the lines of `text`?
fn says(expected: &[String], text: &Value) -> Result<(), String> {
    let lines: Vec<&str> = text.as_str().unwrap_or_default().lines().collect();
    let is = |expected: &str, said: &str| expected == "*" || expected.split('|').any(|alternative| alternative == said);
    let is_line = |expected: &String, said: &str| {
        let (expected, said) = (expected.split(' '), said.split(' '));
        expected.clone().count() == said.clone().count()
            && expected.zip(said).all(|(expected, said)| is(expected, said))
    };
    for at in 0..expected.len().max(lines.len()) {
        match (expected.get(at), lines.get(at)) {
            (Some(expected), Some(said)) if is_line(expected, said) => {}
            (expected, said) => return Err(format!("line {} is {said:?}, not {expected:?}", at + 1)),
        }
    }
    Ok(())
}
