//! Where a sink stands in a shard: a low mark and what it has acknowledged above it. Pure.

use super::frame::Control;
use super::ledger::without;
use super::mutation::{Mutation, is_on};
use super::schema::Table;
use super::state;
use crate::record::{Number, ShardIndex, StreamName};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Everything below `next` is acknowledged, and so are the ranges of `done`; they are sorted, apart, and above `next`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CursorState {
    /// The lowest number that is not acknowledged.
    pub next: Number,
    /// Acknowledged ranges above it, both ends included.
    pub done: Vec<(Number, Number)>,
}

impl Default for CursorState {
    fn default() -> Self {
        CursorState { next: 1, done: Vec::new() }
    }
}

impl CursorState {
    pub fn at(next: Number) -> Self {
        CursorState { next, done: Vec::new() }
    }

    pub fn is_done(&self, number: Number) -> bool {
        number < self.next || self.done.iter().any(|(from, to)| (*from..=*to).contains(&number))
    }

    /// Marks `from..=to` acknowledged, joins what touches and raises the low mark over it.
    pub fn acknowledge(&mut self, from: Number, to: Number) {
        if to < self.next || from > to {
            return;
        }
        let (mut from, mut to) = (from.max(self.next), to);
        self.done.retain(|&(a, b)| {
            let apart = b.saturating_add(1) < from || a > to.saturating_add(1);
            if !apart {
                from = from.min(a);
                to = to.max(b);
            }
            apart
        });
        if from == self.next {
            self.next = to + 1;
        } else {
            let at = self.done.partition_point(|&(a, _)| a < from);
            self.done.insert(at, (from, to));
        }
        debug_assert!(
            self.done.iter().all(|&(a, b)| a > self.next && a <= b),
            "cursor law: ranges stand above the low mark"
        );
    }

    /// The parts of `from..=to` that are not acknowledged.
    pub fn missing(&self, from: Number, to: Number) -> Vec<(Number, Number)> {
        let done = self.done.iter().copied().filter(|(first, _)| *first <= to);
        without(from.max(self.next), to, done)
    }

    /// Moves the low mark to at least `next`: what lies below is gone.
    pub fn raise(&mut self, next: Number) {
        if next > self.next {
            self.acknowledge(self.next, next - 1);
        }
    }
}

/// All cursors of all sinks. A moved cursor is seen at once and saved with a later commit; after a crash a sink may stand
/// a little earlier than it did: that costs duplicates, never a loss.
#[derive(Default)]
pub struct Cursors {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    sinks: BTreeMap<String, Sink>,
    unsaved: BTreeSet<Key>,
    at: BTreeMap<Key, CursorState>,
    /// Low marks that are durable: retention goes by them.
    saved: BTreeMap<Key, Number>,
    /// Saves that are on their way, with the mark they carry.
    saving: Vec<(Key, Number)>,
}

type Key = (String, StreamName, ShardIndex);

struct Sink {
    streams: BTreeSet<StreamName>,
    required: bool,
}

impl Cursors {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn register(&self, sink: &str, streams: impl IntoIterator<Item = StreamName>, required: bool) {
        let streams = streams.into_iter().collect();
        self.lock().sinks.insert(sink.to_owned(), Sink { streams, required });
    }

    /// Recovery: a row of the state.
    pub fn load(&self, key: &[u8], value: &[u8]) {
        let Some(key) = from_row_key(key) else { return };
        let Ok(cursor) = serde_json::from_slice::<CursorState>(value) else { return };
        let mut inner = self.lock();
        inner.saved.insert(key.clone(), cursor.next);
        inner.at.insert(key, cursor);
    }

    pub fn get(&self, sink: &str, stream: &StreamName, shard: ShardIndex) -> Option<CursorState> {
        self.lock().at.get(&(sink.to_owned(), stream.clone(), shard)).cloned()
    }

    pub fn set(&self, sink: &str, stream: &StreamName, shard: ShardIndex, to: CursorState) {
        let key = (sink.to_owned(), stream.clone(), shard);
        let mut inner = self.lock();
        inner.unsaved.insert(key.clone());
        inner.at.insert(key, to);
    }

    /// Entries that save what has moved, to be put into the next group.
    pub fn save(&self) -> Vec<Control> {
        let mut inner = self.lock();
        let unsaved = std::mem::take(&mut inner.unsaved);
        let mut entries = Vec::with_capacity(unsaved.len());
        for key in unsaved {
            let Some(cursor) = inner.at.get(&key) else { continue };
            let ahead = CursorState { next: cursor.next + 1, ..cursor.clone() };
            let cursor = if is_on(Mutation::CursorAhead) { &ahead } else { cursor };
            entries.push((Table::Cursors, row_key(&key), Some(state::to_json(cursor))));
            let next = cursor.next;
            inner.saving.push((key, next));
        }
        entries
    }

    /// The group that [`Cursors::save`]'s entries went into is durable.
    pub fn saved(&self) {
        let mut inner = self.lock();
        for (key, next) in std::mem::take(&mut inner.saving) {
            inner.saved.insert(key, next);
        }
    }

    /// A commit failed: what was on its way may not have arrived.
    pub fn mark_all_unsaved(&self) {
        let mut inner = self.lock();
        inner.saving.clear();
        let keys: Vec<Key> = inner.at.keys().cloned().collect();
        inner.unsaved.extend(keys);
    }

    /// The lowest number of a shard that a required sink still wants; `None` if none holds it.
    pub fn held_by_required(&self, stream: &StreamName, shard: ShardIndex) -> Option<Number> {
        let inner = self.lock();
        let required = inner.sinks.iter().filter(|(_, sink)| sink.required && sink.streams.contains(stream));
        required.map(|(name, _)| inner.saved.get(&(name.clone(), stream.clone(), shard)).copied().unwrap_or(0)).min()
    }

    /// Of numbers that are gone: how many each sink of the stream had not acknowledged.
    pub fn lost(&self, stream: &StreamName, shard: ShardIndex, from: Number, to: Number) -> Vec<(String, u64)> {
        let inner = self.lock();
        let sinks = inner.sinks.iter().filter(|(_, sink)| sink.streams.contains(stream));
        let lost = sinks.map(|(name, _)| {
            let cursor = inner.at.get(&(name.clone(), stream.clone(), shard));
            let missing = cursor.map_or_else(|| vec![(from, to)], |cursor| cursor.missing(from, to));
            (name.clone(), missing.iter().map(|(from, to)| to - from + 1).sum())
        });
        lost.collect()
    }

    /// Forgets the cursors of a stream; returns the entries that do so durably.
    pub fn forget_stream(&self, stream: &StreamName) -> Vec<Control> {
        let mut inner = self.lock();
        let gone: Vec<Key> = inner.at.keys().filter(|(_, of, _)| of == stream).cloned().collect();
        for key in &gone {
            inner.at.remove(key);
            inner.saved.remove(key);
            inner.unsaved.remove(key);
        }
        gone.iter().map(|key| (Table::Cursors, row_key(key), None)).collect()
    }
}

/// Sink name, 0, stream name, 0, shard.
fn row_key((sink, stream, shard): &Key) -> Bytes {
    let mut key = Vec::with_capacity(sink.len() + stream.as_str().len() + 6);
    key.extend_from_slice(sink.as_bytes());
    key.push(0);
    key.extend_from_slice(stream.as_str().as_bytes());
    key.push(0);
    key.extend_from_slice(&shard.to_be_bytes());
    key.into()
}

fn from_row_key(key: &[u8]) -> Option<Key> {
    let (names, shard) = key.split_at_checked(key.len().checked_sub(4)?)?;
    let mut names = names.split(|byte| *byte == 0);
    let sink = std::str::from_utf8(names.next()?).ok()?;
    let stream = StreamName::new(std::str::from_utf8(names.next()?).ok()?).ok()?;
    Some((sink.to_owned(), stream, u32::from_be_bytes(shard.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_low_mark_rises_over_what_was_acknowledged_out_of_order() {
        let mut cursor = CursorState::default();
        cursor.acknowledge(3, 4);
        cursor.acknowledge(6, 6);
        assert_eq!((cursor.next, cursor.done.as_slice()), (1, &[(3, 4), (6, 6)][..]));
        cursor.acknowledge(1, 2);
        assert_eq!((cursor.next, cursor.done.as_slice()), (5, &[(6, 6)][..]));
        cursor.acknowledge(5, 5);
        assert_eq!((cursor.next, cursor.done.as_slice()), (7, &[][..]));
    }

    #[test]
    fn a_cursor_holds_retention_by_what_is_saved_of_it() {
        let cursors = Cursors::default();
        let stream = StreamName::new("s").unwrap();
        cursors.register("cloud", [stream.clone()], true);
        assert_eq!(cursors.held_by_required(&stream, 0), Some(0), "a sink that never said a word holds everything");
        cursors.set("cloud", &stream, 0, CursorState::at(9));
        let entries = cursors.save();
        assert_eq!(cursors.held_by_required(&stream, 0), Some(0));
        cursors.saved();
        assert_eq!(cursors.held_by_required(&stream, 0), Some(9));
        let (_, key, value) = &entries[0];
        let reloaded = Cursors::default();
        reloaded.load(key, value.as_ref().unwrap());
        assert_eq!(reloaded.get("cloud", &stream, 0), Some(CursorState::at(9)));
    }

    #[test]
    fn what_a_sink_lost_is_what_it_had_not_acknowledged() {
        let cursors = Cursors::default();
        let (stream, other) = (StreamName::new("s").unwrap(), StreamName::new("t").unwrap());
        cursors.register("cloud", [stream.clone()], true);
        cursors.register("files", [stream.clone()], false);
        cursors.register("elsewhere", [other], false);
        cursors.set("cloud", &stream, 0, CursorState { next: 5, done: vec![(7, 9), (12, 30), (40, 50)] });
        let lost = |from, to| cursors.lost(&stream, 0, from, to).into_iter().map(|(_, lost)| lost).collect::<Vec<_>>();
        assert_eq!(lost(1, 20), [2 + 2, 20]);
        assert_eq!(lost(1, 35), [2 + 2 + 5, 35]);
        assert_eq!(lost(7, 8), [0, 2]);
        assert_eq!(lost(1, 4), [0, 4]);
    }

    proptest! {
        #[test]
        fn it_is_the_set_of_what_was_acknowledged(ranges in prop::collection::vec((1u64..60, 0u64..6), 0..40)) {
            let mut cursor = CursorState::default();
            let mut model = BTreeSet::new();
            for (from, length) in ranges {
                cursor.acknowledge(from, from + length);
                model.extend(from..=from + length);
                for number in 1..70 {
                    prop_assert_eq!(cursor.is_done(number), model.contains(&number), "{} in {:?}", number, &cursor);
                }
                let missing: Vec<_> = cursor.missing(from, 60).iter().flat_map(|(from, to)| *from..=*to).collect();
                let expected: Vec<_> = (from..=60).filter(|number| !model.contains(number)).collect();
                prop_assert_eq!(missing, expected);
            }
        }
    }
}
