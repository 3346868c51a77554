//! What can still be had from damaged files: a lost state from the segments, a damaged segment from its blocks.
//!
//! Damaged files are moved to `quarantine/` and never written again. Whatever cannot be known falls to the safe side (a
//! cursor to earlier: duplicates, never loss) and is told.

use super::block;
use super::disk::{Disk, Mode};
use super::frame::Control;
use super::journal::read_patiently;
use super::ledger::without;
use super::recover::guarded;
use super::schema::Table;
use super::segment::{Extent, SegmentError, Write};
use super::stamp::Boot;
use super::state::{self, State};
use super::store::{QUARANTINE, Store, path};
use super::stream::{Definition, Stream};
use crate::record::{Gap, GapReason, Number, ShardIndex};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;

/// A lost state means that nobody knows which numbers were given last: this many are left out.
const SAFE_JUMP: u64 = 1 << 32;
/// How much of a damaged file is searched at a time, in bytes.
const CHUNK: usize = 4 << 20;

/// Moves the state database to quarantine.
pub fn set_state_aside(disk: &dyn Disk) -> io::Result<()> {
    if !disk.exists(super::state_db::PATH)? {
        return Ok(());
    }
    disk.create_dir(QUARANTINE)?;
    let taken = disk.list(QUARANTINE)?.len();
    disk.rename(super::state_db::PATH, &format!("{QUARANTINE}/state-{taken}.redb"))?;
    disk.sync_dir(QUARANTINE)?;
    disk.sync_dir("")
}

/// What a segment knows of its stream, so that a lost state can be rebuilt (crash rule 5): as of when it was begun.
#[derive(Debug, Serialize, Deserialize)]
pub struct StateCopy {
    gateway: String,
    incarnation: u32,
    definition: Definition,
    oldest: Vec<Number>,
    reserved: Vec<Number>,
    /// Shard, first and last number, reason, times.
    ledger: Vec<(ShardIndex, Number, Number, u8, u64, u64)>,
    /// Index, kernel boot id, wall ms of its zero.
    boots: Vec<(u16, u128, u64)>,
}

/// Lines of the ledger and boots that a copy holds, the newest.
const COPIED_MAX: usize = 4096;

impl StateCopy {
    pub fn of(stream: &Stream, state: &State, gateway: &str, incarnation: u32) -> StateCopy {
        let ledger = state.ledger(stream.id);
        let line = |gap: &Gap| (gap.shard, gap.from, gap.to, gap.reason as u8, gap.from_ms, gap.to_ms);
        let boot = |(key, value): &(Bytes, Bytes)| {
            let (index, boot) = (u16::from_be_bytes(key[..].try_into().ok()?), Boot::from_bytes(value)?);
            Some((index, boot.id, boot.zero_ms))
        };
        let boots: Vec<_> = state.scan(Table::Boots, b"").iter().filter_map(boot).collect();
        StateCopy {
            gateway: gateway.to_owned(),
            incarnation,
            definition: Definition {
                name: stream.name.to_string(),
                created_ms: stream.created_ms,
                first_number: stream.shards().first().map_or(1, |shard| shard.first_number()),
                settings: stream.settings(),
            },
            oldest: stream.shards().iter().map(|shard| shard.oldest()).collect(),
            reserved: stream.shards().iter().map(|shard| shard.reserved()).collect(),
            ledger: ledger[ledger.len().saturating_sub(COPIED_MAX)..].iter().map(line).collect(),
            boots: boots[boots.len().saturating_sub(COPIED_MAX)..].to_vec(),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn rows(&self, stream: u32, highest: &BTreeMap<ShardIndex, Number>, state: &State) -> Vec<Control> {
        let mut rows = vec![
            (Table::Streams, state::stream_key(stream), Some(state::to_json(&self.definition))),
            (Table::Meta, Bytes::from_static(b"gateway"), Some(self.gateway.clone().into())),
            (Table::Meta, Bytes::from_static(b"incarnation"), Some(self.incarnation.to_string().into())),
        ];
        for (shard, (oldest, reserved)) in self.oldest.iter().zip(&self.reserved).enumerate() {
            let shard = shard as u32;
            let given = highest.get(&shard).copied().unwrap_or(0).max(*reserved);
            rows.push(state::trim_entry(stream, shard, *oldest));
            rows.push(state::reserve_entry(stream, shard, given + SAFE_JUMP));
        }
        for &(shard, from, to, reason, from_ms, to_ms) in &self.ledger {
            if let Some(reason) = GapReason::from_u8(reason) {
                rows.extend(state.new_gap_rows(stream, &Gap { shard, from, to, reason, from_ms, to_ms }));
            }
        }
        for &(index, id, zero_ms) in &self.boots {
            let value = Boot { id, zero_ms }.to_bytes();
            rows.push((Table::Boots, index.to_be_bytes().to_vec().into(), Some(value)));
        }
        rows
    }
}

/// Streams, marks and segment rows as the segments remember them; loads them into `state` and returns them as rows.
pub fn from_segments(store: &Store, state: &State, told: &mut Vec<String>) -> Result<Vec<Control>, SegmentError> {
    let mut rows: Vec<Control> = Vec::new();
    let mut next_stream = 1;
    for stream in store.streams_on_disk()? {
        next_stream = next_stream.max(stream + 1);
        let mut known: Option<StateCopy> = None;
        let mut highest: BTreeMap<ShardIndex, Number> = BTreeMap::new();
        store.place_salvaged(stream)?;
        for id in store.on_disk(stream)? {
            let Some((extent, copy)) = read_or_salvage(store, stream, id, told)? else { continue };
            known = copy.and_then(|copy| serde_json::from_slice(&copy).ok()).or(known);
            for (shard, range) in &extent.shards {
                highest.insert(*shard, range.last);
            }
            rows.push((Table::Segments, state::shard_key(stream, id), Some(state::to_json(&extent))));
        }
        if highest.is_empty() {
            continue;
        }
        match known {
            Some(copy) => {
                told.push(format!("stream {} was rebuilt from its segments", copy.definition.name));
                rows.extend(copy.rows(stream, &highest, state));
            }
            None => {
                let shards = highest.keys().max().map_or(1, |shard| shard + 1);
                let definition = Definition::adopted(stream, shards, 1, 0, |_| false);
                told.push(format!("nothing is left of the name of stream {stream}; it is {} now", definition.name));
                rows.push((Table::Streams, state::stream_key(stream), Some(state::to_json(&definition))));
                for (shard, last) in &highest {
                    rows.push(state::reserve_entry(stream, *shard, last + SAFE_JUMP));
                }
            }
        }
    }
    rows.push((Table::Meta, Bytes::from_static(b"next_stream"), Some(next_stream.to_string().into())));
    for (table, key, value) in &rows {
        if let Some(value) = value {
            state.load(*table, key.clone(), value.clone());
        }
    }
    Ok(rows)
}

type ExtentAndCopy = (Extent, Option<Vec<u8>>);

fn read_or_salvage(
    store: &Store,
    stream: u32,
    id: u32,
    told: &mut Vec<String>,
) -> Result<Option<ExtentAndCopy>, SegmentError> {
    let read = guarded(&**store.disk(), || {
        store.close(stream, id);
        let segment = store.open(stream, id, false)?;
        Ok((segment.extent()?, segment.copy()?))
    });
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error) if !error.is_damage() => Err(error),
        Err(error) => {
            let name = format!("{stream}");
            let damaged = Damaged { stream, name: &name, id, row: &Extent::default(), known: None, why: &error };
            let salvaged = salvage(store, &damaged, |_| 0, None)?;
            told.push(salvaged.says);
            Ok(salvaged.extent.map(|extent| (extent, None)))
        }
    }
}

/// A segment that cannot be read.
pub struct Damaged<'a> {
    pub stream: u32,
    pub name: &'a str,
    pub id: u32,
    /// What it should hold, as far as that is known.
    pub row: &'a Extent,
    /// What is lost already, or was never given.
    pub known: Option<&'a State>,
    pub why: &'a SegmentError,
}

/// What came of a damaged segment.
pub struct Salvaged {
    /// What the segment made anew under the same id holds; `None` if nothing could be saved.
    pub extent: Option<Extent>,
    pub gaps: Vec<Gap>,
    pub says: String,
}

/// Writes what blocks of a damaged segment are whole into a new one, moves the damaged one to quarantine and puts the new
/// one in its place. Wherever that is cut off, either the damaged one is in its place or the new one is whole.
pub fn salvage(
    store: &Store,
    damaged: &Damaged<'_>,
    oldest: impl Fn(ShardIndex) -> Number,
    copy: Option<&[u8]>,
) -> Result<Salvaged, SegmentError> {
    let &Damaged { stream, name, id, row, known, why } = damaged;
    store.close(stream, id);
    let blocks: Vec<_> = find_blocks(store, stream, &path(stream, id))?.into_values().collect();
    let mut extent = Extent { folded_group: row.folded_group, ..Extent::default() };
    for (head, block) in &blocks {
        extent.add(head);
        extent.bytes += block.len() as u64;
    }
    if !blocks.is_empty() {
        let segment = store.begin_salvaged(stream, id)?;
        segment.write(&Write { blocks: &blocks, extent: &extent, copy })?;
    }
    let aside = store.quarantine(stream, id)?;
    store.place_salvaged(stream)?;
    let gaps = missing_of(row, blocks.iter().map(|(head, _)| head), oldest);
    let news = |gap: &Gap| known.map_or(gap.count(), |known| known.records(stream, gap.shard, gap.from, gap.to));
    let lost: u64 = gaps.iter().map(news).sum();
    let says = format!(
        "segment {} of stream {name} was damaged ({why}) and moved to {aside}; {} blocks were saved, {lost} records are lost and in the gap ledger",
        path(stream, id),
        blocks.len(),
    );
    Ok(Salvaged { extent: (!blocks.is_empty()).then_some(extent), gaps, says })
}

/// What a segment's row names and its blocks, in order, do not have.
pub fn missing_of<'a>(
    row: &Extent,
    blocks: impl Iterator<Item = &'a block::Head>,
    oldest: impl Fn(ShardIndex) -> Number,
) -> Vec<Gap> {
    let mut held: BTreeMap<ShardIndex, Vec<(Number, Number)>> = BTreeMap::new();
    for head in blocks {
        held.entry(head.shard).or_default().push((head.first, head.last()));
    }
    let mut gaps = Vec::new();
    for (shard, range) in &row.shards {
        let held = held.remove(shard).unwrap_or_default();
        let from = range.first.max(oldest(*shard));
        let parts = without(from, range.last, held.into_iter());
        gaps.extend(parts.into_iter().map(|(from, to)| Gap::of(*shard, from, to, GapReason::Corrupt)));
    }
    gaps
}

type Blocks = BTreeMap<(ShardIndex, Number), (block::Head, Vec<u8>)>;

/// How many pages of a file the disk may refuse before it counts as away, of so many bytes: a spot, not a good part.
fn refused_pages_max(length: u64) -> u64 {
    (length / super::disk::PAGE_BYTES as u64 / 4).clamp(16, 256)
}

/// Every whole block of a file, wherever it lies: the file's own tree may be gone. Of blocks that overlap (an under-filled
/// one and the one it was merged into) the longer counts. An error when the disk refuses much of it: it may be away and
/// come back, and nothing is decided.
fn find_blocks(store: &Store, stream: u32, file: &str) -> Result<Blocks, SegmentError> {
    let file = store.disk().open(file, Mode::Existing)?;
    let length = file.len()?;
    let mut blocks: Blocks = BTreeMap::new();
    let (mut at, mut refused) = (0, 0);
    let mut chunk = Vec::new();
    while at < length {
        chunk.resize(CHUNK.min((length - at) as usize), 0);
        if let Some((pages, error)) = read_what_can_be_read(&*file, at, &mut chunk) {
            refused += pages;
            if refused > refused_pages_max(length) {
                return Err(error.into());
            }
        }
        for offset in memchr_all(&chunk, &block::MAGIC) {
            let place = at + offset as u64;
            if let Some((head, stored)) = block_at(&*file, place, length)
                && head.stream == stream
            {
                let longer = blocks.get(&(head.shard, head.first)).is_none_or(|(known, _)| known.count < head.count);
                if longer {
                    blocks.insert((head.shard, head.first), (head, stored));
                }
            }
        }
        // A magic that the chunk's end cuts is found by the next one.
        let step = chunk.len().saturating_sub(block::MAGIC.len() - 1).max(1);
        at += if at + chunk.len() as u64 == length { chunk.len() as u64 } else { step as u64 };
    }
    Ok(without_overlaps(blocks))
}

/// Fills `into`; pages that the disk refuses are zeros, and the blocks on them lost. Returns how many, and what it said.
fn read_what_can_be_read(file: &dyn super::disk::DiskFile, at: u64, into: &mut [u8]) -> Option<(u64, io::Error)> {
    if read_patiently(file, at, into).is_ok() {
        return None;
    }
    let mut refused = None;
    for (index, page) in into.chunks_mut(super::disk::PAGE_BYTES).enumerate() {
        if let Err(error) = read_patiently(file, at + (index * super::disk::PAGE_BYTES) as u64, page) {
            page.fill(0);
            refused = Some((refused.map_or(0, |(pages, _)| pages) + 1, error));
        }
    }
    refused
}

fn block_at(file: &dyn super::disk::DiskFile, place: u64, length: u64) -> Option<(block::Head, Vec<u8>)> {
    let mut head = [0; block::HEAD_BYTES];
    if place + head.len() as u64 > length {
        return None;
    }
    read_patiently(file, place, &mut head).ok()?;
    let stored_len = block::stored_len(&head)?;
    if place + stored_len as u64 > length {
        return None;
    }
    let mut stored = vec![0; stored_len];
    read_patiently(file, place, &mut stored).ok()?;
    let head = block::read_head(&stored).ok()?;
    Some((head, stored))
}

fn without_overlaps(blocks: Blocks) -> Blocks {
    let mut kept: Blocks = BTreeMap::new();
    for (at, (head, stored)) in blocks {
        let covered = kept
            .range(..at)
            .next_back()
            .is_some_and(|((shard, _), (before, _))| *shard == at.0 && before.last() >= head.first);
        if !covered {
            kept.insert(at, (head, stored));
        }
    }
    kept
}

fn memchr_all<'a>(bytes: &'a [u8], pattern: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    bytes.windows(pattern.len()).enumerate().filter(move |(_, window)| *window == pattern).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::super::block::Builder;
    use super::*;
    use crate::log::disk::RealDisk;
    use std::sync::Arc;

    #[test]
    fn blocks_are_found_in_a_file_without_a_tree_and_the_longer_of_two_counts() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::open_root(dir.path()).unwrap());
        let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
        let mut block = |first: Number, count: u32| {
            let mut builder = Builder::new(1, 0);
            builder.push(first, count, 5, &[first as u8; 100]);
            builder.finish(&mut zstd).unwrap().1
        };
        let mut noise = vec![0x48; 5000];
        for stored in [block(1, 2), block(1, 4), block(5, 3), block(3, 1)] {
            noise.extend_from_slice(&stored);
            noise.extend_from_slice(b"HWB1 is not always a block");
        }
        disk.open("x", Mode::Create).unwrap().write_at(0, &noise).unwrap();
        let found = find_blocks(&Store::new(disk), 1, "x").unwrap();
        let found: Vec<_> = found.values().map(|(head, _)| (head.first, head.count)).collect();
        assert_eq!(found, [(1, 4), (5, 3)]);
    }
}
