//! What becomes durable together: records with their numbers, and changes of state. Pure: the door fills it.
//!
//! What producers hand in takes half of the longest frame, and the log's own changes what is left of it.

use super::ack::Waiter;
use super::frame::{Control, ENTRY_BYTES};
use super::ledger;
use super::producer::{Mark, Place};
use super::schema::Table;
use super::shard::Shard;
use super::state::State;
use super::stream::Stream;
use super::window::Run;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Records of one shard in a group, with their first number.
pub struct Numbered {
    pub stream: Arc<Stream>,
    pub shard: Arc<Shard>,
    pub run: Run,
    pub payload: u64,
}

/// What becomes durable together.
pub struct Group {
    pub number: u64,
    pub parts: Vec<Numbered>,
    pub control: Vec<Control>,
    pub own: Own,
    pub waiters: Vec<Arc<Waiter>>,
    /// Raw bytes of records and of changes that came with them, which the door bounds.
    pub handed_in: usize,
    /// Producer marks as they were before, newest last.
    pub undo: Vec<(Place, u128, Option<Mark>)>,
}

impl Group {
    pub fn new(number: u64) -> Self {
        Group {
            number,
            parts: Vec::new(),
            control: Vec::new(),
            own: Own::default(),
            waiters: Vec::new(),
            handed_in: 0,
            undo: Vec::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.control.is_empty() && self.own.is_empty() && self.waiters.is_empty()
    }

    /// Raw bytes, for thin commits.
    pub fn bytes(&self) -> usize {
        self.handed_in + self.own.bytes
    }

    /// Whether so many more bytes fit; one that fits no group has one for itself.
    pub fn fits(&self, bytes: usize, bytes_max: usize) -> bool {
        self.handed_in == 0 || self.handed_in + bytes <= bytes_max
    }

    pub fn put_control(&mut self, entry: Control) {
        self.handed_in += control_bytes(&entry.1, entry.2.as_ref());
        self.control.push(entry);
    }
}

/// The log's own changes of state. Nobody waits for them, so they outlive a failed group, and those that a frame has no
/// room for go with the next one.
#[derive(Default)]
pub struct Own {
    /// The newest value of each key.
    pub rows: BTreeMap<(Table, Bytes), Option<Bytes>>,
    /// What the ledger is to know: made into rows when the group is written.
    pub gaps: ledger::Pending,
    bytes: usize,
}

impl Own {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.gaps.is_empty()
    }

    pub fn put(&mut self, table: Table, key: Bytes, value: Option<Bytes>) {
        self.bytes += control_bytes(&key, value.as_ref());
        self.rows.insert((table, key), value);
    }

    /// Takes out what `left` bytes of a frame hold.
    pub fn take(&mut self, mut left: usize, state: &State) -> Own {
        let mut taken = Own::default();
        while let Some((stream, gap)) = self.gaps.pop(state, &mut left) {
            taken.gaps.put(stream, &gap);
        }
        // Not a trim mark before the ledger's row about it (crash rule 4).
        while self.gaps.is_empty()
            && let Some(entry) = self.rows.first_entry()
            && let Some(rest) = left.checked_sub(control_bytes(&entry.key().1, entry.get().as_ref()))
        {
            self.bytes = self.bytes.saturating_sub(left - rest);
            left = rest;
            let ((table, key), value) = entry.remove_entry();
            taken.put(table, key, value);
        }
        taken
    }

    pub fn entries(&self) -> impl Iterator<Item = Control> {
        self.rows.iter().map(|((table, key), value)| (*table, key.clone(), value.clone()))
    }

    pub fn take_in(&mut self, other: &Own) {
        other.entries().for_each(|(table, key, value)| self.put(table, key, value));
        self.gaps.take_in(&other.gaps);
    }
}

/// Bytes that an entry takes in a frame, at most.
pub fn control_bytes(key: &Bytes, value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + 12
}

/// Bytes that the records of a shard take in a frame besides themselves, at most.
pub const PART_BYTES: usize = ENTRY_BYTES + 24;
