//! What can still be had from damaged files: a lost state from the segments, a damaged segment from its blocks.
//!
//! Damaged files are moved to `quarantine/` and never written again. Whatever cannot be known falls to the safe side (a
//! cursor to earlier: duplicates, never loss) and is told.

use super::block;
use super::disk::{Disk, Mode};
use super::fold::StateCopy;
use super::frame::Control;
use super::recover::guarded;
use super::schema::Table;
use super::segment::{Extent, SegmentError, Write};
use super::state::{self, State};
use super::store::{QUARANTINE, Store, path};
use super::stream::Stream;
use crate::record::{Gap, GapReason, Number, ShardIndex};
use bytes::Bytes;
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

/// Streams, marks and segment rows as the segments remember them; loads them into `state` and returns them as rows.
pub fn from_segments(store: &Store, state: &State, told: &mut Vec<String>) -> Result<Vec<Control>, SegmentError> {
    let mut rows: Vec<Control> = Vec::new();
    let mut next_stream = 1;
    for stream in store.streams_on_disk()? {
        let mut known: Option<StateCopy> = None;
        let mut highest: BTreeMap<ShardIndex, Number> = BTreeMap::new();
        for id in store.on_disk(stream)? {
            let read = guarded(|| {
                store.close(stream, id);
                let segment = store.open(stream, id, false)?;
                Ok((segment.extent()?, segment.copy()?))
            });
            let extent = match read {
                Ok((extent, copy)) => {
                    known = copy.and_then(|copy| serde_json::from_slice(&copy).ok()).or(known);
                    extent
                }
                Err(error) => {
                    told.push(format!(
                        "{} cannot be read ({error}); it stays for `headwater log repair`",
                        path(stream, id)
                    ));
                    continue;
                }
            };
            for (shard, range) in &extent.shards {
                highest.insert(*shard, range.last);
            }
            rows.push((Table::Segments, state::shard_key(stream, id), Some(state::to_json(&extent))));
        }
        next_stream = next_stream.max(stream + 1);
        let Some(copy) = known else { continue };
        told.push(format!("stream {} was rebuilt from its segments", copy.definition.name));
        for (shard, (oldest, reserved)) in copy.oldest.iter().zip(&copy.reserved).enumerate() {
            let shard = shard as u32;
            let given = highest.get(&shard).copied().unwrap_or(0).max(*reserved);
            rows.push(state::trim_entry(stream, shard, *oldest));
            rows.push(state::reserve_entry(stream, shard, given + SAFE_JUMP));
        }
        rows.push((Table::Streams, state::stream_key(stream), Some(state::to_json(&copy.definition))));
        rows.push((Table::Meta, Bytes::from_static(b"gateway"), Some(copy.gateway.into())));
        rows.push((Table::Meta, Bytes::from_static(b"incarnation"), Some(copy.incarnation.to_string().into())));
    }
    rows.push((Table::Meta, Bytes::from_static(b"next_stream"), Some(next_stream.to_string().into())));
    for (table, key, value) in &rows {
        if let Some(value) = value {
            state.load(*table, key.clone(), value.clone());
        }
    }
    Ok(rows)
}

/// What came of a damaged segment.
pub struct Salvaged {
    /// What the segment made anew under the same id holds; `None` if nothing could be saved.
    pub extent: Option<Extent>,
    pub gaps: Vec<Gap>,
    pub says: String,
}

/// Moves a damaged segment to quarantine and writes what blocks of it are whole into a new one of the same id.
pub fn salvage(
    store: &Store,
    stream: &Stream,
    id: u32,
    row: &Extent,
    why: &SegmentError,
) -> Result<Salvaged, SegmentError> {
    let aside = store.quarantine(stream.id, id)?;
    let mut blocks = find_blocks(store, stream.id, &aside)?;
    let mut extent = Extent { folded_group: row.folded_group, ..Extent::default() };
    let mut gaps = Vec::new();
    for (shard, range) in &row.shards {
        let oldest = stream.shard(*shard).map_or(0, |shard| shard.oldest());
        let mut next = range.first.max(oldest);
        for ((_, first), (head, _)) in blocks.range((*shard, 0)..=(*shard, Number::MAX)) {
            if *first > next {
                gaps.push(corrupt(*shard, next, first - 1));
            }
            next = next.max(head.last() + 1);
        }
        if next <= range.last {
            gaps.push(corrupt(*shard, next, range.last));
        }
    }
    let lost: u64 = gaps.iter().map(Gap::count).sum();
    let blocks: Vec<_> = std::mem::take(&mut blocks).into_values().collect();
    for (head, block) in &blocks {
        extent.add(head);
        extent.bytes += block.len() as u64;
    }
    let says = format!(
        "segment {} of stream {} was damaged ({why}) and moved to {aside}; {} blocks were saved, {lost} records are lost and in the gap ledger",
        path(stream.id, id),
        stream.name,
        blocks.len(),
    );
    if blocks.is_empty() {
        return Ok(Salvaged { extent: None, gaps, says });
    }
    let segment = store.open(stream.id, id, true)?;
    segment.write(&Write { blocks: &blocks, extent: &extent, copy: None })?;
    Ok(Salvaged { extent: Some(extent), gaps, says })
}

fn corrupt(shard: ShardIndex, from: Number, to: Number) -> Gap {
    Gap { shard, from, to, reason: GapReason::Corrupt, from_ms: 0, to_ms: 0 }
}

type Blocks = BTreeMap<(ShardIndex, Number), (block::Head, Vec<u8>)>;

/// Every whole block of a file, wherever it lies: the file's own tree may be gone. Of blocks that overlap (an under-filled
/// one and the one it was merged into) the longer counts.
fn find_blocks(store: &Store, stream: u32, file: &str) -> Result<Blocks, SegmentError> {
    let file = store.disk().open(file, Mode::Existing)?;
    let length = file.len()?;
    let mut blocks: Blocks = BTreeMap::new();
    let mut at = 0;
    let mut chunk = Vec::new();
    while at < length {
        chunk.resize(CHUNK.min((length - at) as usize), 0);
        read_what_can_be_read(&*file, at, &mut chunk);
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

/// Fills `into`; pages that the disk refuses are zeros, and the blocks on them lost.
fn read_what_can_be_read(file: &dyn super::disk::DiskFile, at: u64, into: &mut [u8]) {
    if file.read_at(at, into).is_ok() {
        return;
    }
    for (index, page) in into.chunks_mut(super::disk::PAGE_BYTES).enumerate() {
        if file.read_at(at + (index * super::disk::PAGE_BYTES) as u64, page).is_err() {
            page.fill(0);
        }
    }
}

fn block_at(file: &dyn super::disk::DiskFile, place: u64, length: u64) -> Option<(block::Head, Vec<u8>)> {
    let mut head = [0; block::HEAD_BYTES];
    if place + head.len() as u64 > length {
        return None;
    }
    file.read_at(place, &mut head).ok()?;
    let stored_len = block::stored_len(&head)?;
    if place + stored_len as u64 > length {
        return None;
    }
    let mut stored = vec![0; stored_len];
    file.read_at(place, &mut stored).ok()?;
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
