//! Containers of requests with many tasks: the first task of one has a container to itself, as every task has; those that follow
//! have a cell each in one container that is made for the rest of the request. Which runners make one says the front, which knows
//! what waits.

use std::time::{Duration, Instant};

use crate::sandbox::{ContainerError, Created, Host, Slot};
use crate::task::ImageId;

/// So many requests have a container here at most.
const REQUESTS: usize = 4;
/// One that was used within this time does not make way for another: else each would be made for one task, when many take turns.
const RECENT: Duration = Duration::from_millis(200);
/// How long one is kept for a request of which nothing comes: others have their turns in between, and its last tasks may have gone to
/// other runners.
const KEPT: Duration = Duration::from_secs(2);
/// So long after a request's task the next one here is most likely its, too.
const QUIET: Duration = Duration::from_millis(20);

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

    /// Has a cell wait for the request's next task; false when others have all the places.
    ///
    /// # Errors
    /// When the container or the cell cannot be made.
    pub fn refill(&mut self, slot: &mut Slot, request: u64, image: &ImageId) -> Result<bool, ContainerError> {
        // Whoever kills inits may have killed one of these.
        self.0.retain(|container| container.host.is_there());
        let mut container = match self.0.iter().position(|container| container.is_for(request, image)) {
            Some(index) => self.0.remove(index),
            None => {
                if self.0.len() >= REQUESTS {
                    if self.0[0].used.elapsed() < RECENT {
                        return Ok(false);
                    }
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
        Ok(true)
    }

    /// No more of the request comes.
    pub fn end(&mut self, request: u64) {
        self.0.retain(|container| container.request != request);
    }

    /// When the next one has been kept for long enough.
    pub fn due(&self) -> Option<Instant> {
        self.0.first().map(|container| container.used + KEPT)
    }

    /// When something else is to be expected than another task of these requests; None if there are none.
    pub fn quiet(&self) -> Option<Instant> {
        self.0.last().map(|container| container.used + QUIET)
    }

    /// Lets go of those that were kept for long enough.
    pub fn let_go(&mut self) {
        self.0.retain(|container| container.used.elapsed() < KEPT);
    }
}
