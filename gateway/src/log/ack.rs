//! The one place that tells a producer that its records are on disk (promise P1).

use super::batch::{Batch, Placement};
use super::error::AppendError;

/// Names the group a batch went into. Tickets of one appender become durable in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub(super) u64);

/// A producer's door: batches are committed in the order they are handed in.
pub struct Appender;

impl Appender {
    /// Hands in a batch and empties it. Waits while the log is behind (bounded memory), or for a large value's own
    /// sync; returns at once otherwise, long before the batch is durable. Placements are in push order and mean
    /// nothing until [`Appender::durable`] says so.
    pub async fn append(&mut self, _batch: &mut Batch) -> Result<(Ticket, Vec<Placement>), AppendError> {
        unimplemented!()
    }

    /// Returns when everything up to the ticket is synced to disk. Cancel-safe.
    pub async fn durable(&mut self, _ticket: Ticket) -> Result<(), AppendError> {
        unimplemented!()
    }

    /// The last ticket that is durable, without waiting; an error once a group of this appender failed.
    pub fn durable_now(&self) -> Result<Ticket, AppendError> {
        unimplemented!()
    }

    /// Waits until [`Appender::durable_now`] would return something later than `than`. Cancel-safe.
    pub async fn progress(&mut self, _than: Ticket) -> Result<Ticket, AppendError> {
        unimplemented!()
    }

    /// Append and wait: for producers with one batch at a time.
    pub async fn commit(&mut self, batch: &mut Batch) -> Result<Vec<Placement>, AppendError> {
        let (ticket, placements) = self.append(batch).await?;
        self.durable(ticket).await?;
        Ok(placements)
    }

    /// The same for a thread that may block.
    pub fn commit_blocking(&mut self, _batch: &mut Batch) -> Result<Vec<Placement>, AppendError> {
        unimplemented!()
    }
}
