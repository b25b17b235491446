//! Requests whose client follows them: as server-sent events ([`sse`]) or over a WebSocket ([`socket`]), in the same words.
//!
//! ```text
//! engine ──tell──> Outbox ──next──> the connection
//! ```
//! The engine never waits for a client: what one does not read in time is kept up to a bound, beyond which its output is dropped
//! from the stream, and told so; the result has it all the same. A stream ends with `done`, or with `error`: one that ends
//! otherwise broke.

mod event;
mod hand;
mod outbox;
mod socket;
pub mod sse;

use std::sync::Arc;

use tokio::task::JoinSet;
use tracing::Instrument;

use super::App;
use super::buffers::Held;
use super::connections::Entered;
use super::error::ApiError;
use super::execute::saturated;
use crate::execution::{Ended, Hands, Planned};
use crate::scheduler::{Client, RETRY_AFTER};
use crate::sessions::Busy;
pub use event::Told;
pub use hand::{Hand, start_in_hand};
pub use outbox::Entry;
use outbox::Outbox;
pub use socket::{__path_live, MESSAGE, READ_PATIENCE, hear_out, live};

/// Who asks, as the middleware knows.
pub struct Asking {
    pub client: Client,
    pub owner: String,
}

/// A request under way, with what is told of it. Dropping it ends its tasks.
pub struct Running {
    outbox: Arc<Outbox>,
    /// It goes on whether or not the client reads.
    _engine: JoinSet<()>,
    _in_flight: Entered,
    /// Where it runs, if that is not to be idle meanwhile.
    _session: Option<Busy>,
}

impl Running {
    /// Starts a request. `held` is what its results take, until all is told.
    ///
    /// # Errors
    /// When too many of the client's tasks wait: nothing ran.
    pub async fn start(
        app: &Arc<App>,
        asking: Asking,
        planned: Planned,
        mut held: Held,
        hands: Option<Hands>,
    ) -> Result<Self, ApiError> {
        let Asking { client, owner } = asking;
        let outbox = Arc::new(Outbox::new(app.buffers.hold(client)));
        let closed = outbox.clone().closed_when_dropped();
        let (engine, shared) = (app.engine.clone(), outbox.clone());
        let run = async move {
            let mut room = |bytes| held.more(bytes).is_ok();
            let ended = engine.follow(client, &owner, planned, &mut room, (&*shared, hands)).await;
            shared.end(match ended {
                Ok(Ended::Results(_)) => Ok(()),
                Ok(Ended::Queued) => Err(ApiError::Saturated { retry_after: RETRY_AFTER }),
                Ok(Ended::Fault) => Err(ApiError::Internal),
                Err(full) => Err(saturated(full)),
            });
            shared.keep(held);
            drop(closed);
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(run.instrument(tracing::Span::current()));
        outbox.has_begun().await?;
        Ok(Self { outbox, _engine: tasks, _in_flight: app.in_flight.enter(), _session: None })
    }

    /// Keeps a session busy as long as this is told.
    pub fn within(self, session: Busy) -> Self {
        Self { _session: Some(session), ..self }
    }

    /// What is told next; None at the end.
    pub async fn next(&self) -> Option<Entry> {
        self.outbox.next().await
    }
}
