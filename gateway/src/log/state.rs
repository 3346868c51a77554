//! The gateway's own state: small tables, all in memory, changed by control entries of the journal.
//!
//! A change is seen once its group is durable. Fold writes the changes of the groups it folds into the `state` database,
//! in the transaction that moves the folded position.

use super::frame::Control;
use super::schema::Table;
use crate::record::{Number, ShardIndex};
use bytes::Bytes;
use serde::Serialize;
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

    /// A number of `Table::Meta`.
    pub fn number(&self, name: &str) -> Option<u64> {
        std::str::from_utf8(&self.get(Table::Meta, name.as_bytes())?).ok()?.parse().ok()
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

    /// Rows with keys in `from..=to`, and the one in front of them that is not below `first`. In key order.
    pub fn around(&self, table: Table, first: &[u8], from: &[u8], to: &[u8]) -> Vec<(Bytes, Bytes)> {
        let inner = self.read();
        let Some(rows) = inner.tables.get(&table) else { return Vec::new() };
        let range = |from, to| rows.range::<[u8], _>((from, to));
        let before = range(Bound::Included(first), Bound::Excluded(from)).next_back();
        let inside = range(Bound::Included(from), Bound::Included(to));
        before.into_iter().chain(inside).map(|(key, value)| (key.clone(), value.clone())).collect()
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
