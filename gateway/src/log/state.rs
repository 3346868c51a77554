//! The gateway's own state: small tables, all in memory, changed by control entries of the journal.
//!
//! A change is seen once its group is durable. Fold writes the changes of the groups it folds into the `state` database,
//! in the transaction that moves the folded position.

use super::frame::Control;
use super::schema::Table;
use crate::record::{Gap, GapReason, Number, ShardIndex};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[derive(Default)]
pub struct State {
    inner: RwLock<Tables>,
}

#[derive(Default)]
struct Tables {
    tables: BTreeMap<Table, BTreeMap<Bytes, Bytes>>,
    /// Changes that the state database does not hold yet, by group.
    unfolded: VecDeque<(u64, Control)>,
}

/// A row of the gap ledger besides its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct GapRow {
    to: Number,
    reason: u8,
    from_ms: u64,
    to_ms: u64,
}

impl State {
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, table: Table, key: &[u8]) -> Option<Bytes> {
        self.read().tables.get(&table)?.get(key).cloned()
    }

    pub fn scan(&self, table: Table, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        let inner = self.read();
        let Some(rows) = inner.tables.get(&table) else { return Vec::new() };
        rows.range(Bytes::copy_from_slice(prefix)..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Recovery: what the state database holds.
    pub fn load(&self, table: Table, key: Bytes, value: Bytes) {
        self.write().tables.entry(table).or_default().insert(key, value);
    }

    /// A group is durable.
    pub fn apply(&self, group: u64, control: Vec<Control>) {
        if control.is_empty() {
            return;
        }
        let mut inner = self.write();
        for entry in control {
            inner.set(&entry);
            inner.unfolded.push_back((group, entry));
        }
    }

    /// Rows of a shard of the ledger that touch `from..=to`, cut to it.
    pub fn gaps(&self, stream: u32, shard: ShardIndex, from: Number, to: Number) -> Vec<Gap> {
        let inner = self.read();
        let Some(rows) = inner.tables.get(&Table::Gaps) else { return Vec::new() };
        let prefix = shard_key(stream, shard);
        let before = rows.range(prefix.clone()..=gap_key(stream, shard, from)).next_back();
        // Excluded and included: an empty range that begins behind its end would panic.
        let behind =
            (Bound::Excluded(gap_key(stream, shard, from)), Bound::Included(gap_key(stream, shard, to.max(from))));
        let inside = rows.range(behind);
        before
            .into_iter()
            .chain(inside)
            .filter(|(key, _)| key.starts_with(&prefix))
            .filter_map(|(key, value)| gap_from_row(shard, key, value))
            .filter(|gap| gap.to >= from && gap.from <= to)
            .map(|gap| Gap { from: gap.from.max(from), to: gap.to.min(to), ..gap })
            .collect()
    }

    /// The whole ledger of a stream.
    pub fn ledger(&self, stream: u32) -> Vec<Gap> {
        self.scan(Table::Gaps, &stream.to_be_bytes())
            .iter()
            .filter_map(|(key, value)| {
                let shard = u32::from_be_bytes(key.get(4..8)?.try_into().ok()?);
                gap_from_row(shard, key, value)
            })
            .collect()
    }

    /// The entry that puts a gap into the ledger, joined with the row it continues.
    pub fn gap_entry(&self, stream: u32, gap: &Gap) -> Control {
        let before = match gap.from {
            0 => None,
            from => {
                self.gaps_row(stream, gap.shard, from - 1).filter(|row| row.to == from - 1 && row.reason == gap.reason)
            }
        };
        let (from, from_ms) = before.map_or((gap.from, gap.from_ms), |row| (row.from, row.from_ms));
        let row = GapRow { to: gap.to, reason: gap.reason as u8, from_ms, to_ms: gap.to_ms };
        (Table::Gaps, gap_key(stream, gap.shard, from), Some(to_json(&row)))
    }

    /// The row that holds `number`, whole.
    fn gaps_row(&self, stream: u32, shard: ShardIndex, number: Number) -> Option<Gap> {
        let inner = self.read();
        let rows = inner.tables.get(&Table::Gaps)?;
        let (key, value) = rows.range(shard_key(stream, shard)..=gap_key(stream, shard, number)).next_back()?;
        gap_from_row(shard, key, value).filter(|gap| gap.to >= number)
    }

    /// Changes of groups up to `group`, for fold.
    pub fn up_to(&self, group: u64) -> Vec<Control> {
        self.read().unfolded.iter().take_while(|(of, _)| *of <= group).map(|(_, entry)| entry.clone()).collect()
    }

    pub fn folded(&self, group: u64) {
        let mut inner = self.write();
        while inner.unfolded.front().is_some_and(|(of, _)| *of <= group) {
            inner.unfolded.pop_front();
        }
    }
}

impl Tables {
    fn set(&mut self, (table, key, value): &Control) {
        let rows = self.tables.entry(*table).or_default();
        match value {
            Some(value) => _ = rows.insert(key.clone(), value.clone()),
            None => _ = rows.remove(key),
        }
    }
}

fn gap_from_row(shard: ShardIndex, key: &[u8], value: &[u8]) -> Option<Gap> {
    let from = u64::from_be_bytes(key.get(8..16)?.try_into().ok()?);
    let row: GapRow = serde_json::from_slice(value).ok()?;
    let reason = GapReason::from_u8(row.reason)?;
    Some(Gap { shard, from, to: row.to, reason, from_ms: row.from_ms, to_ms: row.to_ms })
}

pub fn to_json<T: Serialize>(value: &T) -> Bytes {
    // The types of this folder have string keys and no fallible Serialize of their own.
    serde_json::to_vec(value).unwrap_or_default().into()
}

pub fn stream_key(stream: u32) -> Bytes {
    Bytes::copy_from_slice(&stream.to_be_bytes())
}

/// Key of a shard; the same shape serves a segment or a blob file of a stream.
pub fn shard_key(stream: u32, shard: u32) -> Bytes {
    Bytes::from([stream.to_be_bytes(), shard.to_be_bytes()].concat())
}

pub fn pair_from_key(key: &[u8]) -> Option<(u32, u32)> {
    let stream = u32::from_be_bytes(key.get(..4)?.try_into().ok()?);
    let second = u32::from_be_bytes(key.get(4..8)?.try_into().ok()?);
    Some((stream, second))
}

fn gap_key(stream: u32, shard: ShardIndex, from: Number) -> Bytes {
    let mut key = Vec::with_capacity(16);
    key.extend_from_slice(&stream.to_be_bytes());
    key.extend_from_slice(&shard.to_be_bytes());
    key.extend_from_slice(&from.to_be_bytes());
    key.into()
}

/// The reserved number of a shard; kept apart from the trim mark so that either moves alone. Key: shard key, then `r`.
pub fn reserve_entry(stream: u32, shard: ShardIndex, up_to: Number) -> Control {
    let key = [&shard_key(stream, shard)[..], b"r"].concat();
    (Table::Shards, key.into(), Some(Bytes::copy_from_slice(&up_to.to_be_bytes())))
}

/// The trim mark of a shard. Key: shard key, then `t`.
pub fn trim_entry(stream: u32, shard: ShardIndex, oldest: Number) -> Control {
    let key = [&shard_key(stream, shard)[..], b"t"].concat();
    (Table::Shards, key.into(), Some(Bytes::copy_from_slice(&oldest.to_be_bytes())))
}

/// A row of `Table::Shards`: stream, shard, and which mark has which value.
pub fn mark_from_row(key: &[u8], value: &[u8]) -> Option<(u32, ShardIndex, u8, Number)> {
    let (stream, shard) = pair_from_key(key)?;
    Some((stream, shard, *key.get(8)?, u64::from_be_bytes(value.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(from: Number, to: Number, reason: GapReason) -> Gap {
        Gap { shard: 2, from, to, reason, from_ms: from, to_ms: to }
    }

    #[test]
    fn a_gap_that_continues_a_row_joins_it() {
        let state = State::default();
        for (group, next) in
            [gap(1, 10, GapReason::Expired), gap(11, 20, GapReason::Expired), gap(21, 21, GapReason::Corrupt)]
                .into_iter()
                .enumerate()
        {
            let entry = state.gap_entry(1, &next);
            state.apply(group as u64, vec![entry]);
        }
        let ledger: Vec<_> = state.ledger(1).iter().map(|gap| (gap.from, gap.to, gap.reason)).collect();
        assert_eq!(ledger, [(1, 20, GapReason::Expired), (21, 21, GapReason::Corrupt)]);
        let cut: Vec<_> = state.gaps(1, 2, 15, 30).iter().map(|gap| (gap.from, gap.to)).collect();
        assert_eq!(cut, [(15, 20), (21, 21)]);
        assert!(state.gaps(1, 3, 1, 30).is_empty(), "another shard");
        assert_eq!(state.gaps(1, 2, 21, 21).len(), 1, "a single number");
    }

    #[test]
    fn fold_takes_the_changes_of_its_groups_alone() {
        let state = State::default();
        let put = |key: &'static str| vec![(Table::Meta, Bytes::from(key), Some(Bytes::new()))];
        state.apply(1, put("a"));
        state.apply(2, put("b"));
        assert_eq!(state.up_to(1).len(), 1);
        state.folded(1);
        assert_eq!(state.up_to(9).len(), 1);
        assert_eq!(state.scan(Table::Meta, b"").len(), 2);
    }
}
