//! Tasks that start together or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

/// Opens when every task could start, shuts when one cannot.
pub struct Gate {
    missing: AtomicUsize,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Open,
    Shut,
}

/// One task's part in it. Dropped before the task could start, it shuts the gate.
pub struct Ticket {
    gate: Arc<Gate>,
    prepared: bool,
}

impl Gate {
    /// A ticket for each of so many tasks.
    pub fn tickets(tasks: usize) -> Vec<Ticket> {
        let gate = Arc::new(Self { missing: AtomicUsize::new(tasks), state: watch::Sender::new(State::Waiting) });
        (0..tasks).map(|_| Ticket { gate: gate.clone(), prepared: false }).collect()
    }

    /// Never opens again what is shut.
    fn set(&self, state: State) {
        self.state.send_if_modified(|now| *now == State::Waiting && std::mem::replace(now, state) != state);
    }
}

impl Ticket {
    /// Says that this task could start, and waits for the others: whether all can.
    pub async fn prepared(&mut self) -> bool {
        if !std::mem::replace(&mut self.prepared, true) && self.gate.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.gate.set(State::Open);
        }
        let mut state = self.gate.state.subscribe();
        let decided = state.wait_for(|state| *state != State::Waiting).await.map(|state| *state);
        matches!(decided, Ok(State::Open))
    }

    /// Gives the start of all up.
    pub fn give_up(&self) {
        self.gate.set(State::Shut);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Without effect once the gate is open.
        self.gate.set(State::Shut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_start_or_none() {
        let mut tickets = Gate::tickets(2);
        let (mut two, mut one) = (tickets.pop().unwrap(), tickets.pop().unwrap());
        assert_eq!(tokio::join!(one.prepared(), two.prepared()), (true, true));
        drop(two);
        assert!(one.prepared().await, "it is open");
        let mut tickets = Gate::tickets(2);
        let (two, mut one) = (tickets.pop().unwrap(), tickets.pop().unwrap());
        let shut = async { drop(two) };
        assert_eq!(tokio::join!(one.prepared(), shut), (false, ()));
    }
}
