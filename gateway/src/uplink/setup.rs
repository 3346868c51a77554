//! What every forwarder is made of: one stream, one sink, and what all of them share. `C` is what its kind is told beside that.

use super::budget::Budget;
use super::figures::{Figures, Trouble};
use super::is_stopped;
use super::sink::Identity;
use crate::clock::Clock;
use crate::log::{Log, Stream};
use crate::metrics::Metrics;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

pub struct Setup<C> {
    pub log: Log,
    pub stream: Arc<Stream>,
    pub config: C,
    pub who: Identity,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    /// Of all streams of the sink.
    pub budget: Arc<Mutex<Budget>>,
    pub trouble: Trouble,
    pub stop: watch::Receiver<bool>,
}

impl<C> Setup<C> {
    pub fn now_ms(&self) -> u64 {
        self.clock.now().mono_ms
    }

    pub fn budget<T>(&self, what: impl FnOnce(&mut Budget) -> T) -> T {
        what(&mut self.budget.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The figures of the sink of this name.
    pub fn figures(&self, sink: &str) -> Figures {
        Figures::new(self.metrics.clone(), sink, self.stream.name.as_str())
    }

    /// It was told to stop, or has nothing left to forward.
    pub fn is_over(&self) -> bool {
        is_stopped(&self.stop) || self.stream.is_deleted()
    }
}
