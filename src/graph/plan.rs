//! The tasks of a request as a graph: what each takes of which, and which are joined by pipes. What makes no sense is found
//! here, before anything runs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Graph, GraphError, Step};
use crate::task::{Content, Expect, FileRequest, OutputGlob, Part, Reference, StepName, Stream, TaskRequest};

/// Which tasks there are, and how they hang together. Tasks are named by their index.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// What each needs, by name or by what it takes of it.
    pub needs: Vec<BTreeSet<usize>>,
    pub connections: Vec<Connection>,
    /// Files and streams of each that others take.
    pub handed_on: Vec<HandedOn>,
    names: BTreeMap<StepName, usize>,
}

/// A live pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    pub from: usize,
    pub stream: Stream,
    pub to: usize,
    /// What passes is kept, too.
    pub record: bool,
}

/// What others take of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HandedOn {
    pub files: Vec<OutputGlob>,
    /// stdout and stderr.
    pub streams: [bool; 2],
}

/// What of a request makes no sense, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("tasks[{at}].name: {name} is the name of tasks[{first}], too")]
    SameName { at: usize, first: usize, name: StepName },
    #[error("tasks[{at}]: there is no task {name}{}", nearest(.name, .known))]
    Unknown { at: usize, name: StepName, known: Vec<StepName> },
    #[error("tasks[{at}]: it needs itself")]
    Itself { at: usize },
    #[error("tasks need each other in a circle: {}", .0.join(" needs "))]
    Cycle(Vec<String>),
    #[error("tasks[{at}]: it needs {name}, with which it is connected: both start together")]
    NeedsConnected { at: usize, name: String },
    #[error("connect[{at}]: expected [\"NAME.stdout\" or \"NAME.stderr\", \"NAME.stdin\"], got {found}")]
    Port { at: usize, found: String },
    #[error("connect[{at}]: there is no task {name}{}", nearest(.name, .known))]
    NoTask { at: usize, name: StepName, known: Vec<StepName> },
    #[error("connect[{at}]: {port} is connected already")]
    Twice { at: usize, port: String },
    #[error("connect[{at}]: {name} is connected with itself")]
    WithItself { at: usize, name: StepName },
    #[error("connect[{at}]: {name} has a stdin of its own")]
    OwnStdin { at: usize, name: StepName },
    #[error("tasks[{at}]: {name} is connected, so its {} is handed on while it runs: record it to take it, too", stream_name(.stream))]
    NotRecorded { at: usize, name: StepName, stream: Stream },
    #[error("tasks[{at}].record: its {} is not connected, and is in the result anyway", stream_name(.stream))]
    NothingToRecord { at: usize, stream: Stream },
    #[error("tasks[{at}]: its output is connected, which leaves nothing to {what}")]
    Connected { at: usize, what: &'static str },
}

fn nearest(name: &StepName, known: &[StepName]) -> String {
    let close = |known: &&StepName| strsim::jaro_winkler(name.as_str(), known.as_str()) > 0.8;
    match known.iter().find(close) {
        Some(known) => format!(": did you mean {known}?"),
        None => String::new(),
    }
}

fn stream_name(stream: &Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}

impl Plan {
    /// # Errors
    /// The first thing that makes no sense.
    pub fn new(tasks: &[TaskRequest], connect: &[[String; 2]]) -> Result<Self, PlanError> {
        let mut plan = Self { names: names(tasks)?, ..Self::default() };
        plan.handed_on = vec![HandedOn::default(); tasks.len()];
        plan.connections = plan.connect(tasks, connect)?;
        for (at, task) in tasks.iter().enumerate() {
            let needs = plan.needs_of(at, task)?;
            plan.needs.push(needs);
            plan.check_output(at, task)?;
        }
        Ok(plan)
    }

    /// The task of that name.
    pub fn find(&self, name: &StepName) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// The graph of these tasks, and of compilations: each is a step of its own behind the tasks', which takes the part of its
    /// task in what the code needs.
    ///
    /// # Errors
    /// When tasks need each other in a circle.
    pub fn graph(&self, tasks: &[TaskRequest], compilations: &[usize]) -> Result<Graph, PlanError> {
        let steps = self.needs.iter().zip(tasks);
        let mut steps: Vec<Step> = steps
            .map(|(needs, task)| Step { needs: needs.clone(), run_when: task.run_when.unwrap_or_default() })
            .collect();
        for (number, &task) in compilations.iter().enumerate() {
            steps.push(steps[task].clone());
            steps[task].needs.insert(tasks.len() + number);
        }
        let joined: Vec<(usize, usize)> = self.connections.iter().map(|pipe| (pipe.from, pipe.to)).collect();
        let name = |step: usize| {
            let task = if step < tasks.len() { step } else { compilations[step - tasks.len()] };
            tasks[task].name.as_ref().map_or_else(|| format!("tasks[{task}]"), ToString::to_string)
        };
        Graph::new(steps, &joined).map_err(|error| match error {
            GraphError::Cycle(steps) => {
                const SHOWN: usize = 10;
                let mut names: Vec<String> = steps.iter().take(SHOWN).map(|&step| name(step)).collect();
                names.dedup();
                names.push(if steps.len() > SHOWN { "…".into() } else { names[0].clone() });
                PlanError::Cycle(names)
            }
            GraphError::NeedsConnected { step, on } => PlanError::NeedsConnected { at: step, name: name(on) },
            GraphError::Itself(at) | GraphError::NoSuchStep(at) => PlanError::Itself { at },
        })
    }

    fn connect(&self, tasks: &[TaskRequest], connect: &[[String; 2]]) -> Result<Vec<Connection>, PlanError> {
        let mut connections = Vec::new();
        let mut used = BTreeSet::new();
        for (at, ports) in connect.iter().enumerate() {
            let (from, from_stream) = self.port(at, &ports[0], ports)?;
            let (to, to_stream) = self.port(at, &ports[1], ports)?;
            let (Some(stream), None) = (from_stream, to_stream) else { return Err(no_port(at, ports)) };
            if from == to {
                return Err(PlanError::WithItself { at, name: name_of(tasks, from) });
            }
            if let Some(port) = ports.iter().find(|port| !used.insert(port.as_str())) {
                return Err(PlanError::Twice { at, port: port.clone() });
            }
            if tasks[to].stdin.is_some() {
                return Err(PlanError::OwnStdin { at, name: name_of(tasks, to) });
            }
            let record = tasks[from].record.contains(&stream);
            connections.push(Connection { from, stream, to, record });
        }
        Ok(connections)
    }

    /// The task and the stream of `NAME.stdout`; no stream for `NAME.stdin`.
    fn port(&self, at: usize, port: &str, ports: &[String; 2]) -> Result<(usize, Option<Stream>), PlanError> {
        let (name, stream) = port.rsplit_once('.').ok_or_else(|| no_port(at, ports))?;
        let stream = match stream {
            "stdin" => None,
            "stdout" => Some(Stream::Stdout),
            "stderr" => Some(Stream::Stderr),
            _ => return Err(no_port(at, ports)),
        };
        let name = StepName::try_from(name.to_owned()).map_err(|_| no_port(at, ports))?;
        let task = self.find(&name).ok_or_else(|| PlanError::NoTask { at, known: self.known(), name })?;
        Ok((task, stream))
    }

    fn needs_of(&mut self, at: usize, task: &TaskRequest) -> Result<BTreeSet<usize>, PlanError> {
        let mut needs = BTreeSet::new();
        for name in &task.needs {
            needs.insert(self.need(at, name)?);
        }
        for Reference { step, part } in references(task) {
            let on = self.need(at, step)?;
            needs.insert(on);
            match part {
                Part::File(path) => {
                    let glob = OutputGlob::exactly(path);
                    if !self.handed_on[on].files.contains(&glob) {
                        self.handed_on[on].files.push(glob);
                    }
                }
                &Part::Stream(stream) => {
                    let is_connected = |pipe: &&Connection| pipe.from == on && pipe.stream == stream;
                    if self.connections.iter().find(is_connected).is_some_and(|pipe| !pipe.record) {
                        return Err(PlanError::NotRecorded { at, name: step.clone(), stream });
                    }
                    self.handed_on[on].streams[stream as usize] = true;
                }
            }
        }
        Ok(needs)
    }

    fn need(&self, at: usize, name: &StepName) -> Result<usize, PlanError> {
        match self.find(name) {
            Some(on) if on == at => Err(PlanError::Itself { at }),
            Some(on) => Ok(on),
            None => Err(PlanError::Unknown { at, name: name.clone(), known: self.known() }),
        }
    }

    /// What is asked of an output must be of one that is there.
    fn check_output(&self, at: usize, task: &TaskRequest) -> Result<(), PlanError> {
        let is_connected = |stream| self.connections.iter().any(|pipe| pipe.from == at && pipe.stream == stream);
        if let Some(&stream) = task.record.iter().find(|&&stream| !is_connected(stream)) {
            return Err(PlanError::NothingToRecord { at, stream });
        }
        let is_gone = |stream| is_connected(stream) && !task.record.contains(&stream);
        if is_gone(Stream::Stdout) && task.expect.is_some() {
            return Err(PlanError::Connected { at, what: "compare: record it" });
        }
        let is_any = is_connected(Stream::Stdout) || is_connected(Stream::Stderr);
        if is_any && task.merge_output.unwrap_or_default() != Default::default() {
            return Err(PlanError::Connected { at, what: "merge" });
        }
        Ok(())
    }

    fn known(&self) -> Vec<StepName> {
        self.names.keys().cloned().collect()
    }
}

fn no_port(at: usize, ports: &[String; 2]) -> PlanError {
    let found: String = format!("{ports:?}").chars().take(100).collect();
    PlanError::Port { at, found }
}

fn names(tasks: &[TaskRequest]) -> Result<BTreeMap<StepName, usize>, PlanError> {
    let mut names = BTreeMap::new();
    for (at, task) in tasks.iter().enumerate() {
        let Some(name) = &task.name else { continue };
        if let Some(first) = names.insert(name.clone(), at) {
            return Err(PlanError::SameName { at, first, name: name.clone() });
        }
    }
    Ok(names)
}

/// Only tasks with names are connected.
fn name_of(tasks: &[TaskRequest], at: usize) -> StepName {
    tasks[at].name.clone().unwrap_or_else(|| unreachable!("it was found by its name"))
}

/// Everything that a task takes of others.
fn references(task: &TaskRequest) -> impl Iterator<Item = &Reference> {
    let files = task.files.values().filter_map(|file| match file {
        FileRequest::File { content, .. } => Some(content),
        _ => None,
    });
    let archives = task.archives.iter().map(|archive| &archive.content);
    let expected = task.expect.as_ref().map(|Expect { stdout, .. }| stdout);
    let contents = files.chain(archives).chain(&task.stdin).chain(&task.code).chain(expected);
    contents.filter_map(|content| match content {
        Content::From(reference) => Some(reference),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn plan(tasks: Value, connect: Value) -> Result<(Plan, Graph), String> {
        let tasks: Vec<TaskRequest> = serde_json::from_value(tasks).map_err(|error| error.to_string())?;
        let connect: Vec<[String; 2]> = serde_json::from_value(connect).unwrap();
        let plan = Plan::new(&tasks, &connect).map_err(|error| error.to_string())?;
        let graph = plan.graph(&tasks, &[]).map_err(|error| error.to_string())?;
        Ok((plan, graph))
    }

    #[track_caller]
    fn refused(tasks: Value, connect: Value, expected: &str) {
        assert_eq!(plan(tasks, connect).unwrap_err(), expected);
    }

    #[test]
    fn what_is_taken_of_a_task_is_what_it_hands_on() {
        let tasks = json!([
            { "name": "a", "command": "x" },
            { "command": "y", "stdin": { "from": "a", "stream": "stdout" }, "files": { "f": { "from": "a", "file": "g" } } },
            { "command": "z", "needs": ["a"], "expect": { "stdout": { "from": "a", "file": "g" } } },
        ]);
        let (plan, mut graph) = plan(tasks, json!([])).unwrap();
        assert_eq!(plan.needs, [BTreeSet::new(), BTreeSet::from([0]), BTreeSet::from([0])]);
        assert_eq!((plan.handed_on[0].files.len(), plan.handed_on[0].streams), (1, [true, false]));
        assert_eq!(graph.start(), [[0]]);
    }

    #[test]
    fn connected_tasks_are_one_unit() {
        let tasks = json!([{ "name": "s.1", "command": "x", "record": ["stdout"] }, { "name": "j", "command": "y" }]);
        let connect = json!([["s.1.stdout", "j.stdin"], ["j.stdout", "s.1.stdin"]]);
        let (plan, mut graph) = plan(tasks, connect).unwrap();
        assert_eq!(plan.connections[0], Connection { from: 0, stream: Stream::Stdout, to: 1, record: true });
        assert_eq!(graph.start(), [[0, 1]]);
    }

    #[test]
    fn a_compilation_is_a_step_before_its_task() {
        let tasks = json!([{ "name": "a", "command": "x" }, { "command": "y", "needs": ["a"] }]);
        let tasks: Vec<TaskRequest> = serde_json::from_value(tasks).unwrap();
        let mut graph = Plan::new(&tasks, &[]).unwrap().graph(&tasks, &[1]).unwrap();
        let mut order = Vec::new();
        while let [unit] = &graph.start()[..] {
            graph.ended(unit[0], true);
            order.push(unit[0]);
        }
        assert_eq!(order, [0, 2, 1]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        let a = json!({ "name": "a", "command": "x" });
        let b = json!({ "name": "b", "command": "x" });
        refused(json!([a, a]), json!([]), "tasks[1].name: a is the name of tasks[0], too");
        refused(
            json!([{ "name": "build", "command": "x" }, { "command": "x", "needs": ["biuld"] }]),
            json!([]),
            "tasks[1]: there is no task biuld: did you mean build?",
        );
        refused(json!([{ "name": "a", "command": "x", "needs": ["a"] }]), json!([]), "tasks[0]: it needs itself");
        refused(
            json!([{ "name": "a", "command": "x", "needs": ["b"] }, { "name": "b", "command": "x", "needs": ["a"] }]),
            json!([]),
            "tasks need each other in a circle: a needs b needs a",
        );
        let port =
            "connect[0]: expected [\"NAME.stdout\" or \"NAME.stderr\", \"NAME.stdin\"], got [\"a.stdout\", \"b\"]";
        refused(json!([a, b]), json!([["a.stdout", "b"]]), port);
        refused(json!([a, b]), json!([["a.stdout", "c.stdin"]]), "connect[0]: there is no task c");
        refused(json!([a]), json!([["a.stdout", "a.stdin"]]), "connect[0]: a is connected with itself");
        refused(
            json!([a, b]),
            json!([["a.stdout", "b.stdin"], ["a.stderr", "b.stdin"]]),
            "connect[1]: b.stdin is connected already",
        );
        let with_stdin = json!({ "name": "b", "command": "x", "stdin": "" });
        refused(json!([a, with_stdin]), json!([["a.stdout", "b.stdin"]]), "connect[0]: b has a stdin of its own");
        refused(
            json!([{ "command": "x", "record": ["stderr"] }]),
            json!([]),
            "tasks[0].record: its stderr is not connected, and is in the result anyway",
        );
        let needs = json!({ "name": "b", "command": "x", "needs": ["a"] });
        refused(
            json!([a, needs]),
            json!([["a.stdout", "b.stdin"]]),
            "tasks[1]: it needs a, with which it is connected: both start together",
        );
        let takes = json!({ "command": "x", "stdin": { "from": "a", "stream": "stdout" } });
        refused(
            json!([a, b, takes]),
            json!([["a.stdout", "b.stdin"]]),
            "tasks[2]: a is connected, so its stdout is handed on while it runs: record it to take it, too",
        );
    }
}
