//! The steps of one request: what each needs, and what may start next. Values only: no I/O, no clock.
//!
//! ```text
//! waiting ── start ──▶ started ── ended ──▶ ended
//!    └── a need failed ──▶ given up
//! ```
//!
//! Steps joined by live pipes form a unit, which starts as a whole or not at all; most units are a single step.
//! Every event costs time in proportion to the steps and needs it touches, never to the size of the graph.

mod plan;

use std::collections::BTreeSet;

pub use plan::{Connection, Plan, PlanError};

use crate::task::RunWhen;

/// A step before it runs. Steps are named by their index in the list given to [`Graph::new`].
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// The steps that must have ended before this one starts.
    pub needs: BTreeSet<usize>,
    pub run_when: RunWhen,
}

/// Why no order exists in which the steps could run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// Each step needs the next, or is connected with it, and so starts together with it; the last is followed by the
    /// first.
    #[error("steps wait for each other in a cycle: {}", listed(.0))]
    Cycle(Vec<usize>),
    #[error("step {step} needs step {on}, but is connected with it, so both start together")]
    NeedsConnected { step: usize, on: usize },
    #[error("step {0} needs itself")]
    Itself(usize),
    #[error("there is no step {0}")]
    NoSuchStep(usize),
}

/// A step that will never run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocked {
    pub step: usize,
    /// The step without whose success it cannot run.
    pub need: usize,
}

/// Tells which steps may start, from which have ended.
#[derive(Debug, Clone)]
pub struct Graph {
    run_when: Vec<RunWhen>,
    /// For each step, those that need it; emptied when it ends.
    dependents: Vec<Vec<usize>>,
    ended: Vec<bool>,
    unit_of: Vec<usize>,
    /// In the order of their first step.
    units: Vec<Unit>,
    /// The units that wait for nothing but [`Graph::start`].
    ready: BTreeSet<usize>,
    /// How many steps have neither ended nor been given up.
    open_steps: usize,
}

/// Steps that start together.
#[derive(Debug, Clone, Default)]
struct Unit {
    /// Ascending, never empty.
    steps: Vec<usize>,
    /// How many needs of its steps have not ended yet.
    open_needs: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Waiting,
    Started,
    /// Blocked.
    GivenUp,
}

impl Graph {
    /// Refuses steps that could never run.
    ///
    /// `connections` are pairs of steps joined by live pipes; whatever is joined, through others too, is one unit that
    /// starts together or not at all. Every index must be below the number of steps; others are an error.
    pub fn new(steps: Vec<Step>, connections: &[(usize, usize)]) -> Result<Self, GraphError> {
        let named = steps.iter().flat_map(|step| step.needs.iter().copied());
        let connected = connections.iter().flat_map(|&(from, to)| [from, to]);
        if let Some(unknown) = named.chain(connected).find(|&index| index >= steps.len()) {
            return Err(GraphError::NoSuchStep(unknown));
        }
        let graph = Self::build(&steps, connections)?;
        match graph.find_cycle(&steps) {
            Some(cycle) => Err(GraphError::Cycle(cycle)),
            None => Ok(graph),
        }
    }

    /// The graph of steps whose indices exist; it may still have a cycle.
    fn build(steps: &[Step], connections: &[(usize, usize)]) -> Result<Self, GraphError> {
        let (unit_of, mut units) = units(steps.len(), connections);
        let mut dependents = vec![Vec::new(); steps.len()];
        for (index, step) in steps.iter().enumerate() {
            for &need in &step.needs {
                match need {
                    need if need == index => return Err(GraphError::Itself(index)),
                    need if unit_of[need] == unit_of[index] => {
                        return Err(GraphError::NeedsConnected { step: index, on: need });
                    }
                    need => dependents[need].push(index),
                }
            }
            units[unit_of[index]].open_needs += step.needs.len();
        }
        Ok(Self {
            run_when: steps.iter().map(|step| step.run_when).collect(),
            dependents,
            ended: vec![false; steps.len()],
            unit_of,
            ready: (0..units.len()).filter(|&unit| units[unit].open_needs == 0).collect(),
            units,
            open_steps: steps.len(),
        })
    }

    /// The steps of one cycle, if there is one: a trial run in which every step succeeds gets stuck before it, and
    /// from any unit that is stuck, the way along needs that are stuck too must come round.
    fn find_cycle(&self, steps: &[Step]) -> Option<Vec<usize>> {
        let mut trial = self.clone();
        trial.run_all();
        let mut unit = trial.units.iter().position(|unit| unit.state == State::Waiting)?;
        let mut path = Vec::new();
        let mut visited_at = vec![None; self.units.len()];
        while visited_at[unit].is_none() {
            visited_at[unit] = Some(path.len());
            let needs = |&step: &usize| steps[step].needs.iter().map(move |&need| (step, need));
            let (step, need) = self.units[unit].steps.iter().flat_map(needs).find(|&(_, need)| !trial.ended[need])?;
            path.push((step, need));
            unit = self.unit_of[need];
        }
        let mut cycle: Vec<usize> = path[visited_at[unit]?..].iter().flat_map(|&(step, need)| [step, need]).collect();
        cycle.dedup();
        // The last need is the first step itself, or connected with it.
        if cycle.first() == cycle.last() {
            cycle.pop();
        }
        Some(cycle)
    }

    /// Runs what can run, with success.
    fn run_all(&mut self) {
        loop {
            let units = self.start();
            if units.is_empty() {
                return;
            }
            for step in units.into_iter().flatten() {
                self.ended(step, true);
            }
        }
    }

    /// The units that may start now, each once, in the order of their first step; a unit is the sorted list of its
    /// steps. They count as started.
    pub fn start(&mut self) -> Vec<Vec<usize>> {
        let ready = std::mem::take(&mut self.ready);
        let start = |unit: usize| {
            self.units[unit].state = State::Started;
            self.units[unit].steps.clone()
        };
        ready.into_iter().map(start).collect()
    }

    /// Takes note that a started step has ended, and returns the steps that will therefore never run, each after the
    /// need that blocks it.
    ///
    /// What is blocked counts as ended without success for the steps that need it. A step connected with a blocked one
    /// is blocked by the same need. No effect unless the step was started and has not ended yet.
    pub fn ended(&mut self, step: usize, success: bool) -> Vec<Blocked> {
        if self.state(step) != Some(State::Started) || self.ended[step] {
            return Vec::new();
        }
        let mut blocked = Vec::new();
        self.end(step, success, &mut blocked);
        self.end_blocked(blocked)
    }

    /// The steps that start together with this one, itself included, ascending; empty if there is no such step.
    pub fn unit(&self, step: usize) -> &[usize] {
        self.unit_of.get(step).map_or(&[], |&unit| &self.units[unit].steps)
    }

    /// Whether every step has ended, is blocked.
    pub fn is_over(&self) -> bool {
        self.open_steps == 0
    }

    fn state(&self, step: usize) -> Option<State> {
        Some(self.units[*self.unit_of.get(step)?].state)
    }

    /// Ends the blocked steps too, and those blocked by them: the list is its own queue.
    fn end_blocked(&mut self, mut blocked: Vec<Blocked>) -> Vec<Blocked> {
        let mut next = 0;
        while let Some(&Blocked { step, .. }) = blocked.get(next) {
            self.end(step, false, &mut blocked);
            next += 1;
        }
        blocked
    }

    /// Ends one step: what needs it is ready if that was its last need, or is blocked if it needed success.
    fn end(&mut self, need: usize, success: bool, blocked: &mut Vec<Blocked>) {
        self.ended[need] = true;
        self.open_steps -= 1;
        for step in std::mem::take(&mut self.dependents[need]) {
            let unit = self.unit_of[step];
            if self.units[unit].state == State::GivenUp {
                continue;
            }
            self.units[unit].open_needs -= 1;
            if !success && self.run_when[step] == RunWhen::Success {
                blocked.extend(self.give_up(unit).into_iter().map(|step| Blocked { step, need }));
            } else if self.units[unit].open_needs == 0 {
                self.ready.insert(unit);
            }
        }
    }

    /// Returns the unit's steps, none of which will start.
    fn give_up(&mut self, unit: usize) -> Vec<usize> {
        self.ready.remove(&unit);
        self.units[unit].state = State::GivenUp;
        self.units[unit].steps.clone()
    }
}

/// For each step its unit, and the units in the order of their first step: the connected components, by union-find.
fn units(steps: usize, connections: &[(usize, usize)]) -> (Vec<usize>, Vec<Unit>) {
    let mut parents: Vec<usize> = (0..steps).collect();
    for &(one, other) in connections {
        let (one, other) = (root(&mut parents, one), root(&mut parents, other));
        // The root is the first step of its unit, so that the loop below meets it before the others.
        parents[one.max(other)] = one.min(other);
    }
    let mut unit_of = vec![0; steps];
    let mut units: Vec<Unit> = Vec::new();
    for step in 0..steps {
        let first = root(&mut parents, step);
        if first == step {
            unit_of[step] = units.len();
            units.push(Unit::default());
        }
        unit_of[step] = unit_of[first];
        units[unit_of[step]].steps.push(step);
    }
    (unit_of, units)
}

/// The first step of this one's unit. Halves the way for the next time.
fn root(parents: &mut [usize], mut step: usize) -> usize {
    while parents[step] != step {
        parents[step] = parents[parents[step]];
        step = parents[step];
    }
    step
}

/// The first few, for a message.
fn listed(steps: &[usize]) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<String> = steps.iter().take(SHOWN).map(usize::to_string).collect();
    shown.join(", ") + if steps.len() > SHOWN { ", …" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    fn step(needs: &[usize]) -> Step {
        Step { needs: needs.iter().copied().collect(), run_when: RunWhen::Success }
    }

    fn always(needs: &[usize]) -> Step {
        Step { run_when: RunWhen::Always, ..step(needs) }
    }

    fn graph(steps: &[Step], connections: &[(usize, usize)]) -> Graph {
        Graph::new(steps.to_vec(), connections).unwrap()
    }

    fn blocked(pairs: &[(usize, usize)]) -> Vec<Blocked> {
        pairs.iter().map(|&(step, need)| Blocked { step, need }).collect()
    }

    #[track_caller]
    fn refused(steps: &[Step], connections: &[(usize, usize)], error: GraphError) {
        assert_eq!(Graph::new(steps.to_vec(), connections).err(), Some(error));
    }

    #[test]
    fn a_step_starts_when_its_needs_have_succeeded() {
        let mut graph = graph(&[step(&[]), step(&[0]), step(&[0]), step(&[1, 2])], &[]);
        assert_eq!(graph.start(), [[0]]);
        assert!(graph.start().is_empty());
        graph.ended(0, true);
        assert_eq!(graph.start(), [[1], [2]]);
        graph.ended(2, true);
        assert!(graph.start().is_empty());
        graph.ended(1, true);
        assert_eq!(graph.start(), [[3]]);
        assert!(!graph.is_over());
        graph.ended(3, true);
        assert!(graph.is_over());
    }

    #[test]
    fn a_failure_blocks_what_needs_it_through_others_too_but_not_what_always_runs() {
        let mut graph = graph(&[step(&[]), step(&[0]), step(&[1]), always(&[2]), step(&[3])], &[]);
        graph.start();
        assert_eq!(graph.ended(0, false), blocked(&[(1, 0), (2, 1)]));
        assert_eq!(graph.start(), [[3]]);
        graph.ended(3, true);
        assert_eq!(graph.start(), [[4]]);
    }

    #[test]
    fn a_failure_blocks_at_once_whatever_else_is_waited_for() {
        let mut graph = graph(&[step(&[]), step(&[]), step(&[0, 1])], &[]);
        graph.start();
        assert_eq!(graph.ended(1, false), blocked(&[(2, 1)]));
        assert_eq!(graph.ended(0, false), []);
        assert!(graph.is_over());
    }

    #[test]
    fn connected_steps_start_together_and_are_blocked_together() {
        let steps = [step(&[]), always(&[]), step(&[0]), step(&[4]), step(&[])];
        let mut one = graph(&steps, &[(3, 1), (2, 1)]);
        assert_eq!(one.unit(3), [1, 2, 3]);
        assert_eq!(one.start(), [[0], [4]]);
        one.ended(0, true);
        assert!(one.start().is_empty());
        let mut other = one.clone();
        one.ended(4, true);
        assert_eq!(one.start(), [[1, 2, 3]]);
        assert_eq!(other.ended(4, false), blocked(&[(1, 4), (2, 4), (3, 4)]));
        assert!(other.is_over());
    }

    #[test]
    fn an_end_out_of_place_changes_nothing() {
        let mut graph = graph(&[step(&[]), step(&[0]), step(&[1])], &[]);
        assert_eq!(graph.ended(0, false), []);
        assert_eq!(graph.start(), [[0]]);
        assert_eq!(graph.ended(1, false), []);
        assert_eq!(graph.ended(7, true), []);
        assert!(graph.unit(7).is_empty());
        assert_eq!(graph.ended(0, false), blocked(&[(1, 0), (2, 1)]));
        assert_eq!(graph.ended(0, true), []);
        assert_eq!(graph.ended(1, true), []);
        assert!(graph.start().is_empty() && graph.is_over());
    }

    #[test]
    fn no_steps_are_over_from_the_beginning() {
        let mut graph = graph(&[], &[]);
        assert!(graph.is_over() && graph.start().is_empty());
    }

    #[test]
    fn graphs_that_could_not_end_are_refused() {
        use GraphError::*;
        refused(&[step(&[0])], &[], Itself(0));
        refused(&[step(&[3])], &[], NoSuchStep(3));
        refused(&[step(&[])], &[(0, 1)], NoSuchStep(1));
        refused(&[step(&[]), step(&[2]), step(&[3]), step(&[1])], &[], Cycle(vec![1, 2, 3]));
        refused(&[step(&[1]), step(&[2]), step(&[1])], &[], Cycle(vec![1, 2]));
        refused(&[step(&[]), step(&[0])], &[(0, 1)], NeedsConnected { step: 1, on: 0 });
        refused(&[step(&[2]), step(&[]), step(&[])], &[(0, 1), (1, 2)], NeedsConnected { step: 0, on: 2 });
    }

    #[test]
    fn a_cycle_may_go_through_connections() {
        refused(&[step(&[2]), step(&[]), step(&[1])], &[(0, 1)], GraphError::Cycle(vec![0, 2, 1]));
        let two_units = [step(&[2]), step(&[]), step(&[]), step(&[1])];
        refused(&two_units, &[(0, 1), (2, 3)], GraphError::Cycle(vec![0, 2, 3, 1]));
    }

    #[test]
    fn messages_name_the_steps_but_not_thousands_of_them() {
        assert_eq!(GraphError::Cycle(vec![1, 2]).to_string(), "steps wait for each other in a cycle: 1, 2");
        let long = GraphError::Cycle((0..10_000).collect()).to_string();
        assert!(long.ends_with(" 9, …"), "{long}");
    }

    /// Far above what linear work takes, even without optimisation, and far below what quadratic work would.
    #[track_caller]
    fn soon(work: impl FnOnce()) {
        let begun = Instant::now();
        work();
        assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    }

    const MANY: usize = 10_000;

    fn chain() -> Vec<Step> {
        (0..MANY).map(|index| if index == 0 { step(&[]) } else { step(&[index - 1]) }).collect()
    }

    #[test]
    fn a_deep_chain_runs_or_is_blocked_without_deep_recursion() {
        soon(|| {
            let mut failing = graph(&chain(), &[]);
            let mut running = failing.clone();
            running.run_all();
            assert!(running.is_over());
            failing.start();
            assert_eq!(failing.ended(0, false).len(), MANY - 1);
            assert!(failing.is_over());
        });
    }

    #[test]
    fn a_long_cycle_is_found_whole() {
        let mut steps = chain();
        steps[0] = step(&[MANY - 1]);
        soon(|| match Graph::new(steps, &[]) {
            Err(GraphError::Cycle(cycle)) => assert_eq!(cycle.len(), MANY),
            other => panic!("{other:?}"),
        });
    }

    #[test]
    fn a_wide_unit_and_a_wide_fan_take_no_quadratic_time() {
        let connections: Vec<_> = (1..MANY).rev().map(|step| (step - 1, step)).collect();
        soon(|| assert_eq!(graph(&vec![step(&[]); MANY], &connections).start(), [(0..MANY).collect::<Vec<_>>()]));
        let mut fan = vec![step(&[0]); MANY];
        fan[0] = step(&[]);
        soon(|| {
            let mut graph = graph(&fan, &[]);
            graph.run_all();
            assert!(graph.is_over());
        });
    }

    /// Any steps and connections, with any cycles.
    fn any_steps() -> impl Strategy<Value = (Vec<Step>, Vec<(usize, usize)>)> {
        (1..9usize).prop_flat_map(|count| {
            let one = (prop::collection::btree_set(0..count, 0..3), any::<bool>()).prop_map(|(needs, success)| Step {
                needs,
                run_when: if success { RunWhen::Success } else { RunWhen::Always },
            });
            let connections = prop::collection::vec((0..count, 0..count), 0..3);
            (prop::collection::vec(one, count), connections)
        })
    }

    /// Steps that need only units before their own, and connections of neighbours.
    fn acyclic_steps() -> impl Strategy<Value = (Vec<Step>, Vec<(usize, usize)>)> {
        let steps = prop::collection::vec((any::<[prop::sample::Index; 3]>(), 0..4usize, any::<[bool; 2]>()), 1..30);
        steps.prop_map(|drawn| {
            let mut unit_start = 0;
            let (mut steps, mut connections) = (Vec::new(), Vec::new());
            for (index, (needs, count, [success, connected])) in drawn.into_iter().enumerate() {
                if connected && index > 0 {
                    connections.push((index, index - 1));
                } else {
                    unit_start = index;
                }
                let needs = needs.iter().take(if unit_start == 0 { 0 } else { count });
                let run_when = if success { RunWhen::Success } else { RunWhen::Always };
                steps.push(Step { needs: needs.map(|need| need.index(unit_start)).collect(), run_when });
            }
            (steps, connections)
        })
    }

    /// Whether the units can be put in an order, by trying: the plainest way to say it.
    fn has_order(steps: &[Step], connections: &[(usize, usize)]) -> bool {
        let mut done = vec![false; steps.len()];
        let unit = |step: usize| {
            let mut unit = BTreeSet::from([step]);
            for _ in steps {
                for &(one, other) in connections {
                    if unit.contains(&one) || unit.contains(&other) {
                        unit.extend([one, other]);
                    }
                }
            }
            unit
        };
        for _ in steps {
            for step in 0..steps.len() {
                let unit = unit(step);
                if unit.iter().all(|&step| steps[step].needs.iter().all(|&need| done[need])) {
                    unit.iter().for_each(|&step| done[step] = true);
                }
            }
        }
        done.iter().all(|&done| done)
    }

    /// What one run of a graph saw, checked as it goes.
    struct Run {
        steps: Vec<Step>,
        graph: Graph,
        /// For each ended step, whether it succeeded.
        ended: Vec<Option<bool>>,
        started: Vec<bool>,
        running: Vec<usize>,
    }

    impl Run {
        fn new(steps: Vec<Step>, connections: &[(usize, usize)]) -> Self {
            let graph = graph(&steps, connections);
            let (ended, started) = (vec![None; steps.len()], vec![false; steps.len()]);
            Self { steps, graph, ended, started, running: Vec::new() }
        }

        fn start(&mut self) {
            let units = self.graph.start();
            assert!(units.is_sorted_by_key(|unit| unit[0]));
            for unit in units {
                assert_eq!(self.graph.unit(unit[0]), unit);
                for step in unit {
                    let Step { needs, run_when } = &self.steps[step];
                    let fits = |need: &usize| match run_when {
                        RunWhen::Success => self.ended[*need] == Some(true),
                        RunWhen::Always => self.ended[*need].is_some(),
                    };
                    assert!(needs.iter().all(fits), "step {step} started too early or after a failure");
                    assert!(!self.started[step] && self.ended[step].is_none());
                    self.started[step] = true;
                    self.running.push(step);
                }
            }
        }

        fn note(&mut self, blocked: Vec<Blocked>) {
            for Blocked { step, need } in blocked {
                let unit = self.graph.unit(step).to_vec();
                let kept = |step: &usize| {
                    self.steps[*step].needs.contains(&need) && self.steps[*step].run_when == RunWhen::Success
                };
                assert!(unit.iter().any(kept), "step {step} is not kept by {need}");
                assert_eq!(self.ended[need], Some(false));
                assert!(!self.started[step] && self.ended[step].is_none());
                self.ended[step] = Some(false);
            }
        }

        fn end(&mut self, success: bool, pick: usize) {
            let step = self.running.swap_remove(pick % self.running.len());
            self.ended[step] = Some(success);
            let blocked = self.graph.ended(step, success);
            self.note(blocked);
        }
    }

    proptest! {
        #[test]
        fn an_acyclic_graph_comes_to_its_end_whatever_becomes_of_its_steps(
            (steps, connections) in acyclic_steps(),
            ends in prop::collection::vec((0..8u8, any::<usize>()), 30..100),
        ) {
            let mut run = Run::new(steps, &connections);
            let mut ends = ends.into_iter().cycle();
            while !run.graph.is_over() {
                let (what, pick) = ends.next().unwrap();
                if what != 1 {
                    run.start();
                }
                match what {
                    _ if run.running.is_empty() => run.start(),
                    2 | 3 => run.end(false, pick),
                    _ => run.end(true, pick),
                }
                prop_assert!(run.graph.is_over() || !run.running.is_empty() || !run.graph.ready.is_empty());
            }
            prop_assert!(run.ended.iter().all(Option::is_some) && run.running.is_empty());
            prop_assert!(run.graph.start().is_empty());
        }

        #[test]
        fn with_successes_only_every_step_starts((steps, connections) in acyclic_steps(), picks in any::<[usize; 7]>()) {
            let mut run = Run::new(steps, &connections);
            for pick in picks.into_iter().cycle() {
                run.start();
                if run.running.is_empty() {
                    break;
                }
                run.end(true, pick);
            }
            prop_assert!(run.graph.is_over() && run.started.iter().all(|&started| started));
        }

        #[test]
        fn a_graph_is_refused_exactly_if_it_has_no_order((steps, connections) in any_steps()) {
            let made = Graph::new(steps.clone(), &connections);
            prop_assert_eq!(made.is_ok(), has_order(&steps, &connections));
            let Err(GraphError::Cycle(cycle)) = made else { return Ok(()) };
            let (unit_of, _) = units(steps.len(), &connections);
            let mut needs = 0;
            for (&step, &next) in cycle.iter().zip(cycle.iter().cycle().skip(1)) {
                let needed = steps[step].needs.contains(&next);
                prop_assert!(needed || unit_of[step] == unit_of[next], "{step} does not wait for {next}");
                needs += usize::from(needed);
            }
            prop_assert!(needs >= 2, "only {needs} needs in {cycle:?}");
            prop_assert_eq!(cycle.iter().collect::<BTreeSet<_>>().len(), cycle.len());
        }
    }
}
