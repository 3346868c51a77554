//! The one place that tells a producer that its records are on disk (promise P1).
//!
//! A group keeps the producers that wait for it; [`Waiter::resolve`] is called by the committer after the sync, in group
//! order, and by nobody else.

use super::batch::{Batch, Placement};
use super::committer::Door;
use super::error::AppendError;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use tokio::sync::Notify;

/// Names the group a batch went into. Tickets of one appender become durable in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub(super) u64);

impl Ticket {
    /// Before every batch.
    pub const NONE: Ticket = Ticket(0);
}

/// What a group knows of a producer.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Every group up to here that this producer is in is durable.
    durable: AtomicU64,
    /// The first group that failed.
    failed: AtomicU64,
    /// The last group that holds this waiter; changed under the door's lock.
    pub(super) joined: AtomicU64,
    changed: Notify,
}

impl Waiter {
    /// A producer whose group failed hands in nothing more: what it sends again must not come behind what it sent later.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire) != u64::MAX
    }

    pub(super) fn resolve(&self, group: u64, committed: bool) {
        match committed {
            true => self.durable.store(group, Ordering::Release),
            false => _ = self.failed.fetch_min(group, Ordering::AcqRel),
        }
        self.changed.notify_one();
    }
}

/// A producer's door: batches are committed in the order they are handed in.
pub struct Appender {
    door: Arc<Door>,
    waiter: Arc<Waiter>,
}

impl Appender {
    pub(super) fn new(door: Arc<Door>) -> Self {
        let waiter = Waiter {
            durable: AtomicU64::new(0),
            failed: AtomicU64::new(u64::MAX),
            joined: AtomicU64::new(0),
            changed: Notify::new(),
        };
        Appender { door, waiter: Arc::new(waiter) }
    }

    /// Hands in a batch and empties it. Waits while the log is behind (bounded memory), or for a large value's own
    /// sync; returns at once otherwise, long before the batch is durable. Placements are in push order and mean
    /// nothing until [`Appender::durable`] says so. Dropping the future half-way may leave part of the batch appended.
    pub async fn append(&mut self, batch: &mut Batch) -> Result<(Ticket, Vec<Placement>), AppendError> {
        self.door.append(batch, &self.waiter).await
    }

    /// The same without waiting: `None` if the log is behind, and the batch is as it was.
    #[cfg(any(test, feature = "sim"))]
    pub fn try_append(&mut self, batch: &mut Batch) -> Result<Option<(Ticket, Vec<Placement>)>, AppendError> {
        let mut append = pin!(self.door.append(batch, &self.waiter));
        match append.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Returns when everything up to the ticket is synced to disk. Cancel-safe.
    pub async fn durable(&mut self, ticket: Ticket) -> Result<(), AppendError> {
        loop {
            if self.durable_now()? >= ticket {
                return Ok(());
            }
            self.waiter.changed.notified().await;
        }
    }

    /// The last ticket that is durable, without waiting; an error once a group of this appender failed.
    pub fn durable_now(&self) -> Result<Ticket, AppendError> {
        // Read in this order: a group that failed leaves every later one of this appender unanswered.
        let failed = self.waiter.failed.load(Ordering::Acquire);
        let durable = self.waiter.durable.load(Ordering::Acquire);
        if failed != u64::MAX {
            return Err(AppendError::Failed(self.door.last_error()));
        }
        Ok(Ticket(durable))
    }

    /// Waits until [`Appender::durable_now`] would return something later than `than`. Cancel-safe.
    pub async fn progress(&mut self, than: Ticket) -> Result<Ticket, AppendError> {
        loop {
            let now = self.durable_now()?;
            if now > than {
                return Ok(now);
            }
            self.waiter.changed.notified().await;
        }
    }

    /// Append and wait: for producers with one batch at a time.
    pub async fn commit(&mut self, batch: &mut Batch) -> Result<Vec<Placement>, AppendError> {
        let (ticket, placements) = self.append(batch).await?;
        self.durable(ticket).await?;
        Ok(placements)
    }

    /// The same for a thread that may block.
    pub fn commit_blocking(&mut self, batch: &mut Batch) -> Result<Vec<Placement>, AppendError> {
        block_on(self.commit(batch))
    }
}

/// Polls a future of this module on the calling thread.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
