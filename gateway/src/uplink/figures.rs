//! The figures of one sink and stream, and its state in words.

use crate::metrics::{Metrics, SinkLabel};
use std::sync::{Arc, Mutex};

/// What is wrong with a sink now, if anything: for the console and `/readyz`.
#[derive(Clone, Default)]
pub struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub fn get(&self) -> Option<String> {
        self.lock().clone()
    }

    /// Sets the trouble; `true` if there was none of this kind before (its first words differ).
    pub fn set(&self, what: &str) -> bool {
        let mut now = self.lock();
        let is_new = now.is_none();
        *now = Some(what.to_owned());
        is_new
    }

    /// `true` if there was trouble.
    pub fn clear(&self) -> bool {
        self.lock().take().is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// How much a sink has not acknowledged yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    pub records: u64,
    /// Those of them that were read: how many, and what they weigh in bytes.
    pub in_hand: (u64, u64),
    pub oldest_arrival_ms: Option<u64>,
}

impl Backlog {
    /// What all of them weigh, if those not read are like those in hand, or else `mean_bytes` each.
    fn bytes(&self, mean_bytes: f64) -> u64 {
        let (records, bytes) = self.in_hand;
        let mean = if records > 0 { bytes as f64 / records as f64 } else { mean_bytes };
        // A gap is told by records of its own, so there may be more in hand than the log counts.
        if records >= self.records {
            (self.records as f64 * mean) as u64
        } else {
            bytes + ((self.records - records) as f64 * mean) as u64
        }
    }
}

pub struct Figures {
    metrics: Arc<Metrics>,
    label: SinkLabel,
    /// Mean payload of the records acknowledged lately, for a backlog of which nothing was read yet.
    mean_bytes: f64,
}

impl Figures {
    pub fn new(metrics: Arc<Metrics>, sink: &str, stream: &str) -> Self {
        let label = SinkLabel { sink: sink.to_owned(), stream: stream.to_owned() };
        Figures { metrics, label, mean_bytes: 0.0 }
    }

    pub fn stored(&mut self, records: u64, payload_bytes: u64) {
        if records == 0 {
            return;
        }
        self.metrics.sink_records.get_or_create(&self.label).inc_by(records);
        self.metrics.sink_payload.get_or_create(&self.label).inc_by(payload_bytes);
        let mean = payload_bytes as f64 / records as f64;
        self.mean_bytes = if self.mean_bytes == 0.0 { mean } else { self.mean_bytes * 0.95 + mean * 0.05 };
    }

    pub fn retried(&self, groups: u64) {
        self.metrics.sink_retries.get_or_create(&self.label).inc_by(groups);
    }

    pub fn dead(&self) {
        self.metrics.sink_dead.get_or_create(&self.label).inc();
    }

    pub fn backlog(&self, backlog: Backlog, wall_ms: u64) {
        let age_ms = match backlog.oldest_arrival_ms {
            Some(arrival_ms) if backlog.records > 0 => wall_ms.saturating_sub(arrival_ms),
            _ => 0,
        };
        self.metrics.sink_backlog.get_or_create(&self.label).set(backlog.records as i64);
        self.metrics.sink_backlog_size.get_or_create(&self.label).set(backlog.bytes(self.mean_bytes) as i64);
        self.metrics.sink_backlog_age.get_or_create(&self.label).set((age_ms / 1000) as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_weighs_what_is_in_hand_and_its_mean_for_the_rest() {
        let backlog = |records, in_hand| Backlog { records, in_hand, oldest_arrival_ms: None };
        assert_eq!(backlog(10, (10, 1234)).bytes(7.0), 1234);
        assert_eq!(backlog(100, (10, 1000)).bytes(7.0), 10_000);
        assert_eq!(backlog(100, (0, 0)).bytes(7.0), 700);
        assert_eq!(backlog(1, (2, 200)).bytes(7.0), 100);
        assert_eq!(backlog(0, (0, 0)).bytes(7.0), 0);
    }
}
