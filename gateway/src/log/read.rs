//! Reading a shard: a range, or the tail as it grows. Nothing that is not durable is ever seen.
//!
//! A reader holds one block at most. It looks into the window first, then into the segments: what leaves the window is in
//! a segment before it leaves. What is in neither is explained by the gap ledger, or becomes a row of it.

use super::encode::{self, Data};
use super::engine::Engine;
use super::error::ReadError;
use super::relay::StoredBlock;
use super::segment::{SegmentError, may_pass};
use super::shard::Shard;
use super::store;
use super::stream::Stream;
use super::window::{Run, cut_front};
use crate::record::{Gap, GapReason, Number, Record, ShardIndex};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::watch;

/// Where a reader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The oldest record still there (Kinesis TRIM_HORIZON).
    Oldest,
    /// Behind the newest durable record (LATEST).
    Latest,
    /// This number, or the next that exists. What is missing in front of it comes as a gap.
    At(Number),
    /// The first record that arrived at or after this time, in ms since 1970.
    Time(u64),
}

/// What a reader meets, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Record(Record),
    /// Numbers that are gone, with the reason (promise P5).
    Gap(Gap),
}

/// Reads one shard in order. Cheap to clone; a clone goes its own way.
#[derive(Clone)]
pub struct Reader {
    engine: Arc<Engine>,
    stream: Arc<Stream>,
    shard: Arc<Shard>,
    next: Number,
    /// Runs of the block in hand that were not read yet.
    block: VecDeque<Run>,
    /// How often in a row the disk refused the next large value.
    refusals: u32,
    /// Large values are left where they are.
    heads_only: bool,
    durable: watch::Receiver<Number>,
}

/// How often in a row a look for the next number may come back with nothing.
const STILL_MAX: u32 = 100;

/// A large value that the disk refused this often in a row is called lost; before, the reader gets an error and asks again.
const REFUSALS_MAX: u32 = 30;

impl Reader {
    pub(super) fn new(
        engine: Arc<Engine>,
        stream: &Arc<Stream>,
        shard: ShardIndex,
        from: Position,
    ) -> Result<Reader, ReadError> {
        let shard = stream.shard(shard).ok_or(ReadError::NoShard(shard))?;
        let durable = shard.watch();
        let (stream, block) = (stream.clone(), VecDeque::new());
        let mut reader = Reader { engine, stream, next: 0, block, refusals: 0, heads_only: false, durable, shard };
        reader.next = match from {
            Position::Oldest => reader.shard.oldest(),
            Position::Latest => reader.shard.newest() + 1,
            Position::At(number) => number.max(reader.shard.first_number()),
            Position::Time(ms) => reader.first_at(ms)?,
        };
        Ok(reader)
    }

    /// The same reader for one who wants keys and headers: a value that lies in a file of its own comes as no bytes.
    pub fn heads_only(mut self) -> Reader {
        self.heads_only = true;
        self
    }

    /// The next entries, up to `records_max` and `bytes_max` of keys, headers and values (at least one if there is
    /// one); empty at the tail.
    /// Reads from memory at once and from disk on a blocking thread. Cancel-safe.
    pub async fn next(&mut self, records_max: usize, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        if self.at_tail() {
            return Ok(Vec::new());
        }
        if self.in_memory() {
            return self.next_blocking(records_max, bytes_max);
        }
        let mut reader = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let entries = reader.next_blocking(records_max, bytes_max);
            (reader, entries)
        });
        let (reader, entries) = read.await.map_err(|error| ReadError::Store(error.to_string()))?;
        *self = reader;
        entries
    }

    /// The next records as the blocks they are stored in, compressed: up to `stored_max` and `raw_max` bytes, stored and
    /// not. The first may begin before the position. Empty where [`Reader::next`] has to be asked: what comes next is in
    /// memory, missing, or not to be had. From disk on a blocking thread. Cancel-safe.
    pub async fn next_blocks(&mut self, stored_max: usize, raw_max: usize) -> Result<Vec<StoredBlock>, ReadError> {
        if !self.is_folded() {
            return Ok(Vec::new());
        }
        let mut reader = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let blocks = reader.blocks(stored_max, raw_max);
            (reader, blocks)
        });
        let (reader, blocks) = read.await.map_err(|error| ReadError::Store(error.to_string()))?;
        *self = reader;
        Ok(blocks)
    }

    fn blocks(&mut self, mut stored_max: usize, mut raw_max: usize) -> Vec<StoredBlock> {
        let mut blocks = Vec::new();
        while self.is_folded() && !self.stream.is_deleted() {
            let found = self.engine.store.stored_from(self.stream.id, self.shard.index, self.next);
            // A gap or an error is told by who reads records.
            let Ok(Some((head, bytes))) = found else { break };
            let fits = bytes.len() <= stored_max && head.raw_len as usize <= raw_max;
            if head.first > self.next || !fits || self.next < self.shard.oldest() {
                break;
            }
            (stored_max, raw_max) = (stored_max - bytes.len(), raw_max - head.raw_len as usize);
            self.block.clear();
            self.refusals = 0;
            self.next = head.last() + 1;
            blocks.push(StoredBlock {
                first: head.first,
                last: head.last(),
                arrival_ms: self.engine.stamps.wall_ms(head.first_stamp),
                raw_bytes: head.raw_len,
                bytes,
            });
        }
        blocks
    }

    /// The next record is in a segment and not in memory any more.
    fn is_folded(&self) -> bool {
        let in_window = self.shard.window().first().is_some_and(|first| first <= self.next);
        !in_window && !self.at_tail() && self.next >= self.shard.oldest()
    }

    /// The same as [`Reader::next`] for a thread that may block.
    pub fn next_blocking(&mut self, records_max: usize, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        if self.stream.is_deleted() {
            return Err(ReadError::Deleted);
        }
        let mut out = Out { entries: Vec::new(), records_max: records_max.max(1), bytes_left: bytes_max.max(1) as i64 };
        let mut stands_still = 0;
        while !out.is_full() && !self.at_tail() {
            let before = (self.next, self.block.len());
            let stepped = self.step(&mut out);
            // A fold may have moved what was looked for, once or twice; more often, a segment does not hold what it says.
            stands_still = if before == (self.next, self.block.len()) { stands_still + 1 } else { 0 };
            if let Err(error) = if stands_still > STILL_MAX { Err(self.stuck()) } else { stepped } {
                // What was read before it is delivered; the next call meets the error again.
                if out.entries.is_empty() {
                    return Err(error);
                }
                break;
            }
        }
        Ok(out.entries)
    }

    fn step(&mut self, out: &mut Out) -> Result<(), ReadError> {
        if self.next < self.shard.oldest() {
            self.gap_up_to(self.shard.oldest() - 1, GapReason::Expired, out);
            return Ok(());
        }
        match self.block.pop_front() {
            Some(run) => self.read_run(run, out),
            None => self.fetch(out),
        }
    }

    /// Returns when [`Reader::next`] would return something, or the stream is deleted. Cancel-safe.
    pub async fn ready(&mut self) {
        let next = self.next;
        let stream = self.stream.clone();
        // The sender lives in the shard that this reader holds.
        let _ = self.durable.wait_for(|newest| *newest >= next || stream.is_deleted()).await;
    }

    /// The number the next entry will have at least.
    pub fn position(&self) -> Number {
        self.next
    }

    fn at_tail(&self) -> bool {
        self.next > self.shard.newest()
    }

    fn in_memory(&self) -> bool {
        !self.block.is_empty() || self.shard.window().first().is_some_and(|first| first <= self.next)
    }

    /// Puts runs that hold the next number in hand, or steps over what is gone.
    fn fetch(&mut self, out: &mut Out) -> Result<(), ReadError> {
        // First the tail: what is added behind it meanwhile is not missing.
        let newest = self.shard.newest();
        let (begins, run) = {
            let window = self.shard.window();
            (window.first(), window.from(self.next).cloned())
        };
        let end = run.as_ref().map_or(newest, |run| run.first - 1);
        if let Some(run) = run.filter(|_| begins.is_some_and(|first| first <= self.next)) {
            if run.first > self.next {
                self.gap_up_to(run.first - 1, GapReason::Corrupt, out);
            }
            self.block.push_back(run);
            return Ok(());
        }
        match self.engine.store.block_from(self.stream.id, self.shard.index, self.next) {
            Ok(Some(block)) => {
                if block.head.first > self.next {
                    // A segment may have been dropped meanwhile: then the trim mark says so first.
                    let end = block.head.first.max(self.shard.oldest()) - 1;
                    self.gap_up_to(end.min(block.head.first - 1), GapReason::Corrupt, out);
                }
                let next = self.next;
                self.block.extend(block.runs().filter(|run| run.last() >= next));
                Ok(())
            }
            Ok(None) => {
                let explained = self.engine.state.gaps(self.stream.id, self.shard.index, self.next, end);
                if let Some(gap) = explained.first().filter(|gap| gap.from == self.next) {
                    self.gap_up_to(gap.to, GapReason::Corrupt, out);
                } else if end >= self.next && self.next >= self.shard.oldest() && self.segment_of_next().is_none() {
                    self.gap_up_to(end, GapReason::Corrupt, out);
                }
                Ok(())
            }
            Err((_, SegmentError::Block { from, to, .. })) => {
                // All of the block, wherever this reader came in: the next one may come in before it.
                let from = from.max(self.shard.oldest());
                self.engine.note_gap(&self.stream, &Gap::of(self.shard.index, from, to, GapReason::Corrupt));
                self.gap_up_to(to, GapReason::Corrupt, out);
                Ok(())
            }
            Err((segment, error)) => {
                self.engine.suspect(&self.stream, segment, &error);
                Err(ReadError::Store(error.to_string()))
            }
        }
    }

    /// The segment that says that it holds the next number: a fold may have moved it there between our two looks.
    fn segment_of_next(&self) -> Option<u32> {
        let holds = |entry: &store::Entry| {
            let extent = entry.extent.shards.get(&self.shard.index);
            extent.is_some_and(|extent| (extent.first..=extent.last).contains(&self.next))
        };
        self.engine.store.entries(self.stream.id).into_iter().find(holds).map(|entry| entry.id)
    }

    fn stuck(&self) -> ReadError {
        let says = SegmentError::Missing { shard: self.shard.index, number: self.next };
        if let Some(segment) = self.segment_of_next() {
            self.engine.suspect(&self.stream, segment, &says);
        }
        ReadError::Store(says.to_string())
    }

    fn read_run(&mut self, run: Run, out: &mut Out) -> Result<(), ReadError> {
        if run.last() < self.next {
            return Ok(());
        }
        if run.first > self.next {
            self.gap_up_to(run.first - 1, GapReason::Corrupt, out);
        }
        let Some(mut rest) = cut_front(&run, self.next) else {
            return Err(ReadError::Store(format!(
                "run {} of shard {} is not well-formed",
                run.first, self.shard.index
            )));
        };
        let arrival_ms = self.engine.stamps.wall_ms(run.stamp);
        while !rest.is_empty() {
            if out.is_full() {
                let count = (run.last() + 1 - self.next) as u32;
                self.block.push_front(Run { first: self.next, count, bytes: rest, ..run });
                return Ok(());
            }
            let number = self.next;
            match self.record(number, arrival_ms, &mut rest) {
                Ok(Ok(record)) => out.push(record),
                Ok(Err(gap)) => out.entries.push(Entry::Gap(gap)),
                Err(error) => {
                    // The next call begins with this very number.
                    self.refusals += 1;
                    self.block.clear();
                    return Err(error);
                }
            }
            self.refusals = 0;
            self.next += 1;
        }
        Ok(())
    }

    /// The next record of `rest`; a gap if its large value is damaged.
    fn record(&self, number: Number, arrival_ms: u64, rest: &mut Bytes) -> Result<Result<Record, Gap>, ReadError> {
        let decoded = encode::take(rest).map_err(|error| ReadError::Store(error.to_string()))?;
        let data = match decoded.data {
            Data::Inline(data) => data,
            Data::Blob(_) if self.heads_only => Bytes::new(),
            Data::Blob(blob) => match self.engine.blobs.read(self.stream.id, &blob) {
                Ok(data) => data,
                Err(error) if may_pass(&error) && self.refusals < REFUSALS_MAX => {
                    return Err(ReadError::Store(format!("a large value could not be read: {error}")));
                }
                Err(error) => {
                    tracing::error!(stream = %self.stream.name, shard = self.shard.index, number, %error, "a large value is damaged");
                    let gap = Gap {
                        from_ms: arrival_ms,
                        to_ms: arrival_ms,
                        ..Gap::of(self.shard.index, number, number, GapReason::Corrupt)
                    };
                    self.engine.note_gap(&self.stream, &gap);
                    return Ok(Err(gap));
                }
            },
        };
        Ok(Ok(Record {
            number,
            arrival_ms,
            key: decoded.key,
            explicit_hash: decoded.explicit_hash,
            producer: decoded.producer,
            headers: decoded.headers,
            data,
        }))
    }

    /// Tells of `next..=to` as the ledger does; what it does not know has `reason`, and is known from now on.
    fn gap_up_to(&mut self, to: Number, reason: GapReason, out: &mut Out) {
        let mut at = self.next;
        let shard = self.shard.index;
        let unknown = |from: Number, to: Number| Gap::of(shard, from, to, reason);
        for gap in self.engine.state.gaps(self.stream.id, shard, at, to) {
            if gap.from > at {
                self.tell_unknown(unknown(at, gap.from - 1), out);
            }
            at = gap.to + 1;
            out.entries.push(Entry::Gap(gap));
        }
        if at <= to {
            self.tell_unknown(unknown(at, to), out);
        }
        self.next = to + 1;
        self.block.retain(|run| run.last() > to);
    }

    fn tell_unknown(&self, gap: Gap, out: &mut Out) {
        self.engine.note_gap(&self.stream, &gap);
        out.entries.push(Entry::Gap(gap));
    }

    /// The first number that arrived at or after a time.
    fn first_at(&self, ms: u64) -> Result<Number, ReadError> {
        let stamps = &self.engine.stamps;
        let late_enough = |stamp: u64| stamps.wall_ms(stamp) >= ms;
        let in_segments = self
            .engine
            .store
            .block_at(self.stream.id, self.shard.index, &late_enough)
            .map_err(|error| ReadError::Store(error.to_string()))?;
        let mut probe = self.clone();
        probe.next = in_segments
            .or_else(|| self.shard.window().first())
            .unwrap_or_else(|| self.shard.newest() + 1)
            .max(self.shard.oldest());
        loop {
            let start = probe.next;
            for entry in probe.next_blocking(1_000, 1 << 20)? {
                if let Entry::Record(record) = entry
                    && record.arrival_ms >= ms
                {
                    return Ok(record.number);
                }
            }
            if probe.next == start {
                return Ok(probe.next);
            }
        }
    }
}

struct Out {
    entries: Vec<Entry>,
    records_max: usize,
    bytes_left: i64,
}

impl Out {
    fn is_full(&self) -> bool {
        self.entries.len() >= self.records_max || self.bytes_left <= 0
    }

    fn push(&mut self, record: Record) {
        self.bytes_left -= record.weight() as i64;
        self.entries.push(Entry::Record(record));
    }
}
