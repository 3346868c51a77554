//! What of a shard is durable in the journal and not folded yet: runs of encoded records, in memory.
//!
//! A run is what one batch put into one shard: the numbers are consecutive and the arrival time is one. Its bytes are the
//! ones the producer encoded; journal, window and fold share them.

use super::encode;
use crate::record::{Number, Producer};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;

/// Memory a run takes besides its bytes, for the bounds.
pub const RUN_OVERHEAD_BYTES: usize = 112;

#[derive(Clone, Debug)]
pub struct Run {
    pub first: Number,
    pub count: u32,
    /// Arrival: see `stamp.rs`.
    pub stamp: u64,
    /// `count` records, as `encode` writes them.
    pub bytes: Bytes,
    /// Journal group the run became durable with.
    pub group: u64,
    /// Highest number of each producer in the run.
    pub producers: Arc<[Producer]>,
}

impl Run {
    pub fn last(&self) -> Number {
        self.first + u64::from(self.count) - 1
    }

    pub fn footprint(&self) -> usize {
        self.bytes.len() + RUN_OVERHEAD_BYTES
    }
}

#[derive(Default)]
pub struct Window {
    runs: VecDeque<Run>,
    /// Highest number that a segment holds.
    pub folded: Number,
    /// The stream was deleted: nothing comes in any more.
    closed: bool,
}

impl Window {
    /// Returns the memory taken; nothing once the stream is deleted.
    pub fn push(&mut self, run: Run) -> usize {
        debug_assert!(self.runs.back().is_none_or(|last| last.last() < run.first));
        if self.closed {
            return 0;
        }
        let taken = run.footprint();
        self.runs.push_back(run);
        taken
    }

    /// Drops everything, for good; returns the memory freed.
    pub fn close(&mut self) -> usize {
        self.closed = true;
        std::mem::take(&mut self.runs).iter().map(Run::footprint).sum()
    }

    /// The run that holds `number`, or the first behind it.
    pub fn from(&self, number: Number) -> Option<&Run> {
        let at = self.runs.partition_point(|run| run.last() < number);
        self.runs.get(at)
    }

    pub fn first(&self) -> Option<Number> {
        self.runs.front().map(|run| run.first)
    }

    /// Copies (cheaply) all runs of groups up to `group`.
    pub fn up_to(&self, group: u64) -> Vec<Run> {
        self.runs.iter().take_while(|run| run.group <= group).cloned().collect()
    }

    /// First and last number of each run.
    pub fn spans(&self) -> Vec<(Number, Number)> {
        self.runs.iter().map(|run| (run.first, run.last())).collect()
    }

    /// Forgets the runs up to `number`, which a segment holds now; returns the memory freed.
    pub fn fold(&mut self, number: Number) -> usize {
        let mut freed = 0;
        while let Some(run) = self.runs.front()
            && run.last() <= number
        {
            freed += run.footprint();
            self.runs.pop_front();
        }
        self.folded = self.folded.max(number);
        freed
    }
}

/// Cuts a run so that it begins at `number`; `None` if the bytes are not what they should be.
pub fn cut_front(run: &Run, number: Number) -> Option<Bytes> {
    let mut bytes = run.bytes.clone();
    for _ in run.first..number {
        let length = encode::skip(&bytes).ok()?;
        let _ = bytes.split_to(length);
    }
    Some(bytes)
}
