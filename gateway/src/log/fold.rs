//! Fold: from the journal into segments, off the way of an acknowledgement.
//!
//! One fold writes each stream's full blocks into its newest segment, then the state database with the new folded position,
//! then frees the ring (crash rule 3). What does not fill a block stays in the window until the fold after, or until this
//! one is forced: so blocks are full, and nothing holds the ring for longer than two folds. Replay is by number: what a
//! segment holds already is skipped, so a fold that was cut short anywhere is simply done again.

use super::block::{self, Builder};
use super::encode;
use super::engine::{Committed, Engine, lock};
use super::frame::Control;
use super::mutation::{Mutation, is_on};
use super::producer::Marks;
use super::rebuild::StateCopy;
use super::recover::shielded;
use super::schema::Table;
use super::segment::{Extent, SegmentError, Write};
use super::shard::Shard;
use super::state;
use super::state_db::{FORMAT, Position};
use super::store::Entry;
use super::stream::Stream;
use super::window::{Run, cut_front};
use crate::record::Number;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A stored block should end just below one of these: redb keeps a value in a power of two of pages.
const BLOCK_BYTES: [usize; 4] = [(64 << 10) - 256, (32 << 10) - 256, (16 << 10) - 256, (8 << 10) - 256];
/// Raw bytes of a block, whatever the ratio. Of what cannot be compressed a block must still end below its page.
const RAW_MIN: usize = 48 << 10;
const RAW_MAX: usize = 320 << 10;
/// A last block with fewer raw bytes is taken up again by the next fold of its shard.
const UNDERFILLED: usize = 48 << 10;

#[derive(Default)]
pub struct Folding {
    /// What was committed at the fold before: everything up to here leaves the window with this fold.
    must: u64,
    /// Stored bytes of a raw byte, per stream, as seen last.
    ratio: BTreeMap<u32, f64>,
}

/// What one fold did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    pub records: u64,
    pub blocks: u64,
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("the state database is not open")]
    NoState,
}

/// What of one shard goes into blocks now.
struct ShardFold {
    shard: Arc<Shard>,
    blocks: Vec<(block::Head, Vec<u8>)>,
    /// Bytes of the large values that the blocks refer to.
    blob_bytes: u64,
    /// The same of what goes into the next block.
    next_blob_bytes: u64,
    /// Last number in the blocks.
    last: Number,
    /// The first group that stays, in part or whole.
    stays: Option<u64>,
}

impl Engine {
    /// One fold. `all`: nothing stays in the window. `clean`: the log is closing, and this is its last write.
    pub fn fold_step(&self, all: bool, clean: bool) -> Result<Folded, FoldError> {
        let mut folding = lock(&self.folding);
        let Some(Committed { group: target, .. }) = lock(&self.committed).back().copied() else {
            return Ok(Folded::default());
        };
        let must = if all { target } else { folding.must };
        if is_on(Mutation::SwapSegmentAndState) {
            self.write_state(Vec::new(), &self.committed_at(target), clean)?;
        }
        let mut done = Folded::default();
        let mut folded_group = target;
        let mut rows: Vec<Control> = Vec::new();
        let mut producers = Marks::default();
        let mut freed: Vec<(Arc<Shard>, Number)> = Vec::new();
        for stream in self.all_streams() {
            let ratio = folding.ratio.entry(stream.id).or_insert(0.25);
            let folds = self.fold_stream(&stream, target, must, ratio, &mut producers)?;
            done.blocks += folds.iter().map(|fold| fold.blocks.len() as u64).sum::<u64>();
            done.bytes += folds.iter().flat_map(|fold| &fold.blocks).map(|(_, block)| block.len() as u64).sum::<u64>();
            folded_group =
                folds.iter().filter_map(|fold| fold.stays).map(|stays| stays - 1).fold(folded_group, u64::min);
            rows.extend(self.write_segment(&stream, &folds, target)?);
            freed.extend(folds.into_iter().filter(|fold| !fold.blocks.is_empty()).map(|fold| (fold.shard, fold.last)));
        }
        for stream in self.all_streams() {
            // Also those that the journal had no word of: a lost journal must not lose them.
            let reserve = |shard: &Arc<Shard>| state::reserve_entry(stream.id, shard.index, shard.reserved());
            rows.extend(stream.shards().iter().map(reserve));
        }
        let (marks, forgotten) = self.door.mark_rows(&producers);
        rows.extend(marks);
        let committed = self.committed_at(folded_group);
        self.write_state(rows, &committed, clean)?;
        self.door.marks_folded(forgotten);
        // Everything is durable in its new home: the old one may go.
        for (shard, last) in freed {
            let before = shard.window().folded;
            let freed = shard.window().fold(last);
            done.records += last.saturating_sub(before);
            self.window_bytes.fetch_sub(freed, Ordering::Relaxed);
        }
        self.state.folded(committed.group);
        self.blobs.folded();
        self.set_disk_full(false);
        let free_to = if is_on(Mutation::FreeRingEarly) { self.committed_at(target).head } else { committed.head };
        lock(&self.journal).free(free_to);
        lock(&self.committed).retain(|known| known.group >= committed.group);
        folding.must = target;
        self.metrics.window_size.set(self.window_bytes.load(Ordering::Relaxed) as i64);
        self.metrics.folds.inc();
        Ok(done)
    }

    /// The newest frame whose group is folded.
    fn committed_at(&self, group: u64) -> Committed {
        let committed = lock(&self.committed);
        let at = committed.partition_point(|known| known.group <= group);
        // The front is the last frame that was folded before: there always is one.
        committed[at.max(1) - 1]
    }

    fn fold_stream(
        &self,
        stream: &Stream,
        target: u64,
        must: u64,
        ratio: &mut f64,
        producers: &mut Marks,
    ) -> Result<Vec<ShardFold>, FoldError> {
        let mut folds = Vec::new();
        let mut zstd = zstd::bulk::Compressor::new(1).map_err(SegmentError::Io)?;
        for shard in stream.shards().iter() {
            let runs = shard.window().up_to(target);
            if runs.is_empty() {
                continue;
            }
            // In the order they were stored in, so the last one stands.
            for producer in runs.iter().flat_map(|run| run.producers.iter()) {
                producers.insert(((stream.id, shard.index), producer.id), *producer);
            }
            folds.push(self.fold_shard(stream, shard, &runs, must, ratio, &mut zstd)?);
        }
        Ok(folds)
    }

    fn fold_shard(
        &self,
        stream: &Stream,
        shard: &Arc<Shard>,
        runs: &[Run],
        must: u64,
        ratio: &mut f64,
        zstd: &mut zstd::bulk::Compressor<'_>,
    ) -> Result<ShardFold, FoldError> {
        let mut fold = ShardFold::new(shard);
        let mut builder = Builder::new(stream.id, shard.index);
        let folded = shard.window().folded;
        self.take_up_tail(stream, shard, runs[0].first.max(folded + 1), &mut builder)?;
        let taken_up = builder.raw_len();
        let mut oldest_in_builder = u64::MAX;
        let has_blobs = !self.blobs.files(stream.id).is_empty();
        for run in runs {
            let mut first = run.first.max(folded + 1);
            let Some(mut rest) = cut_front(run, first) else { continue };
            while !rest.is_empty() {
                if !builder.is_empty() && builder.next() != first {
                    fold.finish(&mut builder, zstd, ratio)?;
                }
                let goal = raw_goal(*ratio);
                let room = goal.saturating_sub(builder.raw_len());
                // One record of many kilobytes too much would cost the block a page of twice the size.
                if builder.raw_len() >= goal / 2 && encode::skip(&rest).is_ok_and(|next| next > room) {
                    fold.finish(&mut builder, zstd, ratio)?;
                    oldest_in_builder = u64::MAX;
                    continue;
                }
                let (count, length) = records_within(&rest, room);
                let records = rest.split_to(length);
                if has_blobs {
                    fold.next_blob_bytes += encode::blob_bytes(&records);
                }
                builder.push(first, count, run.stamp, &records);
                oldest_in_builder = oldest_in_builder.min(run.group);
                first += u64::from(count);
                if builder.raw_len() >= goal {
                    fold.finish(&mut builder, zstd, ratio)?;
                    oldest_in_builder = u64::MAX;
                }
            }
        }
        if builder.is_empty() {
            return Ok(fold);
        }
        if oldest_in_builder <= must {
            fold.finish(&mut builder, zstd, ratio)?;
        } else if builder.raw_len() > taken_up || !fold.blocks.is_empty() {
            fold.stays = Some(oldest_in_builder);
        }
        Ok(fold)
    }

    /// Begins with the shard's last block when that is under-filled and the new records follow it.
    fn take_up_tail(
        &self,
        stream: &Stream,
        shard: &Shard,
        next: Number,
        builder: &mut Builder,
    ) -> Result<(), FoldError> {
        let Some(newest) = self.segment_to_write(stream) else { return Ok(()) };
        let follows = newest.extent.shards.get(&shard.index).is_some_and(|extent| extent.last + 1 == next);
        if !follows {
            return Ok(());
        }
        let tail = shielded(|| self.store.open(stream.id, newest.id, false)?.last_block(shard.index));
        // A damaged tail is left where it is, for its reader to report.
        if let Ok(Some(tail)) = tail
            && (tail.head.raw_len as usize) < UNDERFILLED
            && tail.head.last() + 1 == next
        {
            for run in tail.runs() {
                builder.push(run.first, run.count, run.stamp, &run.bytes);
            }
        }
        Ok(())
    }

    /// The segment that the stream's next blocks go into; `None`: a new one is begun.
    fn segment_to_write(&self, stream: &Stream) -> Option<Entry> {
        let bound = stream
            .settings()
            .max_bytes
            .map_or(u64::MAX, |max| max.0 / 4)
            .clamp((1 << 20).min(self.sizes.segment), self.sizes.segment);
        // Records that refer to a blob file's worth of values have a segment of their own, so that those can go alone.
        let blobs = bound.max(self.blobs.file_bytes_max());
        let has_room = |newest: &Entry| newest.extent.bytes < bound && newest.extent.blob_bytes < blobs;
        self.store.newest_to_write(stream.id).filter(has_room)
    }

    /// Writes the blocks; returns the row of the segment for the state. With a new segment goes what its stream is: that may
    /// be in a group that stays in the journal, and a start removes the segments of streams that the state does not know.
    fn write_segment(&self, stream: &Stream, folds: &[ShardFold], target: u64) -> Result<Vec<Control>, FoldError> {
        let blocks: Vec<_> = folds.iter().flat_map(|fold| fold.blocks.iter().cloned()).collect();
        if blocks.is_empty() || stream.is_deleted() {
            return Ok(Vec::new());
        }
        let newest = self.segment_to_write(stream);
        let (id, mut extent, begins) = match newest {
            Some(entry) => (entry.id, entry.extent, false),
            None => (stream.next_segment.fetch_add(1, Ordering::Relaxed), Extent::default(), true),
        };
        extent.folded_group = target;
        for (head, block) in &blocks {
            extent.add(head);
            extent.bytes += block.len() as u64;
        }
        extent.blob_bytes += folds.iter().map(|fold| fold.blob_bytes).sum::<u64>();
        let renews = begins || stream.copy_is_old.load(Ordering::Relaxed);
        let copy = renews.then(|| self.copy_of(stream));
        let written = shielded(|| {
            let segment = self.store.open(stream.id, id, begins)?;
            segment.write(&Write { blocks: &blocks, extent: &extent, copy: copy.as_deref() })?;
            Ok(segment.file_bytes())
        });
        let file_bytes = match written {
            Ok(file_bytes) => file_bytes,
            Err(error) => {
                self.store.close(stream.id, id);
                if begins {
                    // Nothing refers to it, and on a full disk each attempt would leave another.
                    if let Err(error) = self.store.remove(stream.id, id) {
                        tracing::warn!(stream = %stream.name, %error, "a segment that could not be begun stays until the next start");
                    }
                } else if !error.may_pass() {
                    // The next fold begins a new segment; whoever reads this one asks for its healing.
                    self.store.seal(stream.id, id);
                }
                return Err(error.into());
            }
        };
        if renews {
            stream.copy_is_old.store(false, Ordering::Relaxed);
        }
        self.store.put(stream.id, Entry { id, extent: extent.clone(), file_bytes });
        stream.size.store(self.store.bytes(stream.id) + self.blobs.bytes(stream.id), Ordering::Relaxed);
        let row = (state::shard_key(stream.id, id), state::to_json(&extent));
        self.state.load(Table::Segments, row.0.clone(), row.1.clone());
        let key = state::stream_key(stream.id);
        let definition = self.state.get(Table::Streams, &key).filter(|_| begins);
        let definition = definition.map(|value| (Table::Streams, key, Some(value)));
        Ok(definition.into_iter().chain([(Table::Segments, row.0, Some(row.1))]).collect())
    }

    /// See [`StateCopy`].
    pub fn copy_of(&self, stream: &Stream) -> Vec<u8> {
        StateCopy::of(stream, &self.state, &self.gateway_id, self.incarnation).encode()
    }

    /// Writes the state of everything up to a frame.
    fn write_state(&self, mut rows: Vec<Control>, at: &Committed, clean: bool) -> Result<(), FoldError> {
        let mut all = self.state.up_to(at.group);
        all.append(&mut rows);
        let ring_file = lock(&self.journal).file_bytes();
        let position = Position { group: at.group, tail: at.head, link: at.link, format: FORMAT, clean, ring_file };
        let mut database = lock(&self.state_db);
        if database.is_none() {
            *database = Some(shielded(|| super::state_db::StateDb::open(&*self.disk, self.store.written()))?);
        }
        let state_db = database.as_ref().ok_or(FoldError::NoState)?;
        let written = shielded(|| state_db.write(&all, &position));
        if written.is_err() {
            // redb's view of the file is void after an error; the next fold opens it anew.
            *database = None;
        }
        written?;
        self.metrics_of_disk();
        Ok(())
    }

    fn metrics_of_disk(&self) {
        let total = self.store.written().bytes();
        let counted = self.metrics.segments_written.get();
        self.metrics.segments_written.inc_by(total.saturating_sub(counted));
    }
}

impl ShardFold {
    fn new(shard: &Arc<Shard>) -> Self {
        ShardFold { shard: shard.clone(), blocks: Vec::new(), blob_bytes: 0, next_blob_bytes: 0, last: 0, stays: None }
    }

    fn finish(
        &mut self,
        builder: &mut Builder,
        zstd: &mut zstd::bulk::Compressor<'_>,
        ratio: &mut f64,
    ) -> Result<(), FoldError> {
        let raw = builder.raw_len();
        let (head, block) = builder.finish(zstd).map_err(SegmentError::Io)?;
        if raw >= RAW_MIN / 2 {
            // Rises at once and falls slowly, with a little to spare: a block over the page costs twice its size.
            let seen = block.len() as f64 / raw as f64 * 1.02;
            *ratio = if seen > *ratio { seen } else { *ratio * 0.9 + seen * 0.1 }.clamp(0.01, 1.1);
        }
        self.last = head.last();
        self.blob_bytes += std::mem::take(&mut self.next_blob_bytes);
        self.blocks.push((head, block));
        Ok(())
    }
}

/// Raw bytes that end up just below the largest page that keeps a block readable in one piece.
fn raw_goal(ratio: f64) -> usize {
    let goals = BLOCK_BYTES.map(|page| (page as f64 / ratio) as usize);
    let fitting = goals.into_iter().find(|raw| *raw <= RAW_MAX);
    fitting.unwrap_or(RAW_MAX).clamp(RAW_MIN, RAW_MAX)
}

/// How many records of `bytes`, at least one, fit into `room`, and their length.
fn records_within(bytes: &Bytes, room: usize) -> (u32, usize) {
    let (mut count, mut length) = (0, 0);
    while length < bytes.len() {
        let next = encode::skip(&bytes[length..]).unwrap_or(bytes.len() - length);
        if count > 0 && length + next > room {
            break;
        }
        (count, length) = (count + 1, length + next);
    }
    (count, length)
}
