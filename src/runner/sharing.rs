//! Containers of requests with many tasks: the first task of one has a container to itself, as every task has; those that follow
//! have a cell each in one container that is made for the rest of the request. Which runners make one says the front, which knows
//! what waits.

use std::time::{Duration, Instant};

use crate::sandbox::{ContainerError, Created, Host, Slot};
use crate::task::ImageId;

/// So many requests have a container here at most: those whose tasks came last.
const REQUESTS: usize = 4;
/// How long one is kept for a request of which nothing comes: its last tasks may have gone to other runners.
const KEPT: Duration = Duration::from_millis(100);

/// The last one used is last.
#[derive(Default)]
pub struct Shared(Vec<Container>);

struct Container {
    request: u64,
    /// The cell of its next task.
    cell: Option<Created>,
    host: Host,
    used: Instant,
}

impl Container {
    fn is_for(&self, request: u64, image: &ImageId) -> bool {
        self.request == request && self.host.image() == *image
    }
}

impl Shared {
    /// The cell that waits for a task of the request.
    pub fn take(&mut self, request: u64, image: &ImageId) -> Option<Created> {
        let container = self.0.iter_mut().find(|container| container.is_for(request, image))?;
        container.cell.take().filter(Created::is_waiting)
    }

    /// Has a cell wait for the request's next task.
    ///
    /// # Errors
    /// When the container or the cell cannot be made.
    pub fn refill(&mut self, slot: &mut Slot, request: u64, image: &ImageId) -> Result<(), ContainerError> {
        let mut container = match self.0.iter().position(|container| container.is_for(request, image)) {
            Some(index) => self.0.remove(index),
            None => {
                while self.0.len() >= REQUESTS {
                    self.0.remove(0);
                }
                Container { request, cell: None, host: slot.host(image)?, used: Instant::now() }
            }
        };
        if container.cell.is_none() {
            container.cell = Some(slot.cell(&container.host)?);
        }
        container.used = Instant::now();
        self.0.push(container);
        Ok(())
    }

    /// No more of the request comes.
    pub fn end(&mut self, request: u64) {
        self.0.retain(|container| container.request != request);
    }

    /// When the next one has been kept for long enough.
    pub fn due(&self) -> Option<Instant> {
        self.0.first().map(|container| container.used + KEPT)
    }

    /// Lets go of those that were kept for long enough.
    pub fn let_go(&mut self) {
        self.0.retain(|container| container.used.elapsed() < KEPT);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
