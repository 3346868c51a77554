//! The journal at a start: frames back into state and window, losses into the ledger, numbers to where none is given twice.
//!
//! Part of `recover.rs`, after the segments were looked at. Everything here may be done again by a start that follows one
//! that was cut off: it reads, and writes nothing but rows.

use super::committer::RESERVE_AHEAD;
use super::error::{OpenError, scan_error};
use super::frame::{self, Header, Link};
use super::journal::{Found, Journal, Scan};
use super::mutation::{Mutation, is_on};
use super::recover::Recovering;
use super::schema::Table;
use super::stamp;
use super::state::{self, State};
use super::store::{self, Store};
use super::stream::{Definition, Stream};
use super::window::Run;
use super::{ledger, producer};
use crate::metrics::ReasonLabel;
use crate::record::{Gap, GapReason, Number, Producer, ShardIndex, shard_id};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// Numbers that may have been reserved since the last fold: a full window of the smallest records asks for three reserves.
const LOST_RESERVES: u64 = 4 * RESERVE_AHEAD;

impl Recovering {
    /// Where the journal's frames begin, and what the first chains to; `None` if there never was one.
    pub(super) fn journal_begin(&self, journal: &Journal) -> Result<Option<(u64, Link)>, OpenError> {
        Ok(match self.position {
            Some(position) => Some((position.tail, position.link)),
            None => journal.oldest().map_err(scan_error)?,
        })
    }

    /// Brings the journal's frames into state and window.
    pub(super) fn replay(
        &mut self,
        journal: &Journal,
        from: u64,
        link: Link,
        was_clean: bool,
    ) -> Result<Scan, OpenError> {
        let mut deleted = BTreeSet::new();
        let scan = journal.scan(from, link, &mut |found| self.replay_frame(found, &mut deleted)).map_err(scan_error)?;
        self.report.frames = scan.frames;
        self.report.journal_bytes_read = scan.read;
        self.report.damaged = scan.damaged;
        self.report.clean = was_clean && scan.frames == 0;
        self.report.torn = scan.torn && !self.report.clean;
        if scan.damaged > 0 {
            self.report.told.push(format!(
                "{} places of the journal are damaged; the records they held are in the gap ledger, the changes of state \
                 they held (sessions, cursors) are lost",
                scan.damaged
            ));
        }
        if scan.damaged > 0 || self.report.state_rebuilt {
            self.adopt(&deleted);
        }
        Ok(scan)
    }

    fn replay_frame(&mut self, found: Found, deleted: &mut BTreeSet<u32>) {
        let Some(body) = found.body else { return self.lose_frame(&found.header) };
        let group = found.header.group;
        let contents = match frame::read_body(&found.header, &body) {
            Ok(contents) => contents,
            Err(error) => {
                // Its checksum was right, so this was written so: a fault of ours, told and stepped over.
                self.report.told.push(format!("group {group} of the journal cannot be read: {error}"));
                return self.lose_frame(&found.header);
            }
        };
        for (table, key, value) in &contents.control {
            if let (Table::Streams, None, Ok(id)) = (table, value, key[..].try_into().map(u32::from_be_bytes)) {
                deleted.insert(id);
            }
            self.replay_control(*table, key, value.as_ref());
        }
        self.state.apply(group, contents.control);
        for (stream, shard, run) in contents.runs {
            self.replay_run(stream, shard, run);
        }
    }

    /// A frame of the chain whose body is damaged: its header says which numbers it held.
    fn lose_frame(&mut self, header: &Header) {
        for entry in header.entries.iter().filter(|entry| entry.count > 0) {
            let Some(stream) = self.streams.get(&entry.stream).cloned() else { continue };
            let Some(shard) = stream.shard(entry.shard) else { continue };
            let (first, last) = (entry.first, entry.first + u64::from(entry.count) - 1);
            if first > shard.newest() + 1 {
                self.explain(&stream, entry.shard, shard.newest() + 1, first - 1);
            }
            let first = first.max(shard.newest() + 1);
            if first <= last {
                self.losses.push((stream.id, Gap::of(entry.shard, first, last, GapReason::Corrupt)));
                // What comes next is told apart from it, and a reader is told of it at once.
                shard.lose_up_to(last);
            }
        }
    }

    fn replay_control(&mut self, table: Table, key: &Bytes, value: Option<&Bytes>) {
        match (table, value) {
            (Table::Streams, Some(value)) => self.make_stream(key, value),
            (Table::Streams, None) => {
                if let Ok(id) = key[..].try_into().map(u32::from_be_bytes)
                    && let Some(stream) = self.streams.remove(&id)
                {
                    stream.set_deleted();
                    self.window_bytes -= stream.shards().iter().map(|shard| shard.close()).sum::<usize>();
                    self.producers.forget_stream(id);
                    // Their rows may not be gone yet, and what has no row goes with the start.
                    self.blobs.files(id).into_iter().for_each(|file| self.blobs.forget(id, file));
                }
            }
            (Table::Shards, Some(value)) => {
                if let Some((stream, _)) = state::pair_from_key(key)
                    && let Some(stream) = self.streams.get(&stream)
                {
                    note_mark(stream, key, value);
                }
            }
            (Table::Segments, value) => self.replay_segment(key, value.is_none()),
            (Table::Cursors, Some(value)) => self.cursors.load(key, value),
            (Table::Producers, Some(value)) => {
                if let Some((place, producer)) = producer::mark_from_bytes(key, value) {
                    self.producers.remember(place, &producer);
                }
            }
            (Table::Blobs, Some(value)) => {
                if let Some((stream, file)) = state::pair_from_key(key)
                    && let Ok(extent) = serde_json::from_slice(value)
                {
                    self.blobs.restore(stream, file, extent);
                }
            }
            (Table::Blobs, None) => {
                if let Some((stream, file)) = state::pair_from_key(key) {
                    self.blobs.forget(stream, file);
                }
            }
            _ => {}
        }
    }

    /// A segment that was trimmed: the unlink may not have happened, and may not happen before the frame that says so is
    /// settled.
    fn replay_segment(&mut self, key: &[u8], removed: bool) {
        let Some((stream, id)) = state::pair_from_key(key) else { return };
        if let Some(stream) = self.streams.get(&stream) {
            stream.next_segment.fetch_max(id + 1, Ordering::Relaxed);
        }
        if removed {
            self.store.forget(stream, id);
            self.trimmed.push((stream, id));
        }
    }

    /// Unlinks what the journal says was trimmed. Its last frame is durable (crash rules 2 and 4).
    /// Returns those that are gone.
    pub(super) fn unlink_trimmed(&mut self) -> Vec<(u32, u32)> {
        let mut trimmed = std::mem::take(&mut self.trimmed);
        trimmed.retain(|(stream, id)| {
            let removed = self.store.remove(*stream, *id);
            if let Err(error) = &removed {
                let path = store::path(*stream, *id);
                self.report.told.push(format!("trimmed segment {path} could not be unlinked: {error}"));
            }
            removed.is_ok()
        });
        trimmed
    }

    fn replay_run(&mut self, stream: u32, shard: u32, mut run: Run) {
        self.newest_boot = self.newest_boot.max(stamp::boot_of(run.stamp));
        for producer in run.producers.iter().filter(|_| !is_on(Mutation::ForgetMarks)) {
            self.producers.remember((stream, shard), producer);
        }
        let Some(of) = self.streams.get(&stream).cloned() else {
            self.orphans.entry(stream).or_default().push((shard, run));
            return;
        };
        let Some(shard) = of.shard(shard) else { return };
        let newest = shard.newest();
        if is_on(Mutation::ReplayTwice) {
            run.first = run.first.max(newest + 1);
        }
        if run.last() <= newest {
            // A fold that was cut short took it and did not come to write its marks, and no later fold meets it.
            let place = (of.id, shard.index);
            let mark = |producer: &Producer| {
                (Table::Producers, producer::mark_key(place, producer.id), Some(producer::mark_to_bytes(producer)))
            };
            self.rows.extend(run.producers.iter().map(mark));
            return;
        }
        if run.first > newest + 1 {
            self.explain(&of, shard.index, newest + 1, run.first - 1);
        }
        self.report.records += u64::from(run.count);
        self.window_bytes += run.footprint();
        // A run that a segment holds in part is cut by whoever reads it: the window knows what is folded.
        shard.replay(run);
    }

    /// Numbers that neither a segment nor the journal holds: if the ledger does not say why, they were damaged.
    fn explain(&mut self, stream: &Stream, shard: u32, from: Number, to: Number) {
        let of_segments = self.of_segments(stream.id, shard);
        for (from, to) in self.state.unexplained(stream.id, shard, from, to) {
            for (from, to) in ledger::without(from, to, of_segments.iter().copied()) {
                self.explained += to - from + 1;
                self.losses.push((stream.id, Gap::of(shard, from, to, GapReason::Corrupt)));
            }
        }
    }

    /// Tells of segments that are gone and that no retention dropped; the journal has been replayed.
    pub(super) fn lose_missing(&mut self) {
        for (stream, id, extent) in std::mem::take(&mut self.missing) {
            let row = state::shard_key(stream.id, id);
            if self.state.get(Table::Segments, &row).is_none() || stream.is_deleted() {
                continue;
            }
            self.report.told.push(format!(
                "segment {} of stream {} is missing; what the journal does not have of it either is in the gap ledger",
                store::path(stream.id, id),
                stream.name
            ));
            self.entries.push((Table::Segments, row, None));
            for (shard, range) in &extent.shards {
                let from = stream.shard(*shard).map_or(0, |shard| shard.oldest()).max(range.first);
                if from <= range.last {
                    self.missed.push((stream.clone(), id, Gap::of(*shard, from, range.last, GapReason::Corrupt)));
                }
            }
        }
    }

    /// Numbers of a shard that segments lost, or may have, in order: they are told of when all of the journal is known.
    fn of_segments(&self, stream: u32, shard: ShardIndex) -> Vec<(Number, Number)> {
        let missed = self.missed.iter().filter(|(of, _, gap)| of.id == stream && gap.shard == shard);
        let missing = self.missing.iter().filter(|(of, ..)| of.id == stream);
        let missing = missing.filter_map(|(.., extent)| extent.shards.get(&shard));
        let missed = missed.map(|(.., gap)| (gap.from, gap.to));
        let mut numbers: Vec<_> = missed.chain(missing.map(|range| (range.first, range.last))).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Of what segments lost, what neither the journal has nor a segment that it was folded into since. Its numbers were given,
    /// whatever is left of it.
    pub(super) fn lose_missed(&mut self) {
        let mut saved = 0;
        for (stream, id, gap) in std::mem::take(&mut self.missed) {
            let Some(shard) = stream.shard(gap.shard) else { continue };
            let others = self.store.entries(stream.id).into_iter().filter(|entry| entry.id != id);
            let others =
                others.filter_map(|entry| entry.extent.shards.get(&gap.shard).map(|range| (range.first, range.last)));
            let mut held: Vec<_> = others.chain(shard.window().spans()).collect();
            held.sort_unstable();
            let lost = ledger::without(gap.from, gap.to, held.into_iter());
            let lost = lost.into_iter().map(|(from, to)| Gap { from, to, ..gap.clone() });
            saved += gap.count() - lost.clone().map(|gap| gap.count()).sum::<u64>();
            self.losses.extend(lost.map(|gap| (stream.id, gap)));
            shard.lose_up_to(gap.to);
        }
        if saved > 0 {
            self.report.told.push(format!("the journal still has {saved} records of what segments lost"));
        }
    }

    /// The frame that created a stream is damaged, and frames behind it hold its records: they were acknowledged, so they
    /// are kept, in a stream that is named after the id.
    fn adopt(&mut self, deleted: &BTreeSet<u32>) {
        for (id, runs) in std::mem::take(&mut self.orphans) {
            if id < self.next_stream || deleted.contains(&id) {
                // Handed in while the stream was being deleted.
                continue;
            }
            let shards = runs.iter().map(|(shard, _)| shard + 1).max().unwrap_or(1);
            let first = runs.iter().map(|(_, run)| run.first).min().unwrap_or(1);
            let definition = self.adopted(id, shards, first);
            self.report.told.push(format!(
                "the creation of stream {id} is lost with a damaged place of the journal; its records are in the stream {}",
                definition.name
            ));
            let (key, value) = (state::stream_key(id), state::to_json(&definition));
            self.make_stream(&key, &value);
            self.row(Table::Streams, key, value);
            runs.into_iter().for_each(|(shard, run)| self.replay_run(id, shard, run));
        }
    }

    fn adopted(&self, id: u32, shards: u32, first: Number) -> Definition {
        let taken = |name: &str| self.streams.values().any(|stream| stream.name.as_str() == name);
        // A stream that was made again under its name begins above the reserve of the one before.
        let first_number = if first <= RESERVE_AHEAD { 1 } else { first };
        Definition::adopted(id, shards, first_number, self.setup.clock.now().wall_ms, taken)
    }

    /// Enters what was lost into the ledger, and sees to it that no number that can have been given is given again (crash
    /// rule 6): after whatever was not a clean stop a disk may have taken back what it said was written.
    pub(super) fn settle(&mut self, scan: &Scan, journal_cut_short: bool) {
        let end_lost = match self.report.clean {
            true => None,
            false if journal_cut_short => Some("a file of the journal was missing or too short and was made anew"),
            false if self.report.state_rebuilt && scan.frames == 0 => {
                Some("neither the state nor the journal is there")
            }
            false => {
                scan.gone.then_some("the journal does not hold the last group that is known of, nor any behind it")
            }
        };
        self.report.told.extend(end_lost.map(|what| format!("{what}; the newest records may be lost")));
        // Of records whose frame is gone with its header, those that no number behind them gives away may have been the
        // last of any shard.
        let nameless = scan.nameless.saturating_sub(self.explained);
        let damaged = scan.damaged > 0 || end_lost.is_some();
        for stream in self.streams.values() {
            stream.copy_is_old.store(!self.report.clean, Ordering::Relaxed);
            // Numbers that failed groups left out may stand above every record.
            for gap in self.state.ledger(stream.id) {
                let Some(shard) = stream.shard(gap.shard).filter(|_| !is_on(Mutation::ReuseNumbers)) else { continue };
                match gap.reason {
                    GapReason::Unused => shard.jump_to(gap.to),
                    // What was lost had been durable, also when nothing came behind it.
                    _ => shard.lose_up_to(gap.to),
                }
            }
            for shard in stream.shards().iter() {
                // The marks of the last reserves may themselves have been in what is damaged.
                let reserved = shard.reserved() + if damaged { LOST_RESERVES } else { 0 };
                let tail = if end_lost.is_some() { reserved } else { shard.assigned() + nameless };
                if tail > shard.assigned() {
                    self.losses.push((stream.id, Gap::of(shard.index, shard.newest() + 1, tail, GapReason::Corrupt)));
                    shard.lose_up_to(tail);
                }
                let jumps = !self.report.clean && !is_on(Mutation::TrustTheEnd);
                if jumps && reserved > shard.assigned() {
                    let gap = Gap::of(shard.index, shard.assigned() + 1, reserved, GapReason::Unused);
                    self.losses.push((stream.id, gap));
                    shard.jump_to(reserved);
                }
                self.rows.push(state::reserve_entry(stream.id, shard.index, shard.assigned() + RESERVE_AHEAD));
            }
        }
        self.enter_losses();
        self.account();
        self.raise_next_stream();
        if self.report.torn {
            self.report.told.push("the journal ends in a write that was cut short; nothing acknowledged is missing unless that very group was damaged later, which would look the same".into());
        }
    }

    /// With the first state write, so that they are known before anybody reads and durable before a fold can leave the
    /// place behind where they were found.
    fn enter_losses(&mut self) {
        for (stream, gap) in std::mem::take(&mut self.losses) {
            if is_on(Mutation::LoseQuietly) {
                continue;
            }
            if gap.reason == GapReason::Corrupt {
                let news = self.state.unexplained(stream, gap.shard, gap.from, gap.to);
                let label = ReasonLabel { part: "log", reason: gap.reason.as_str() };
                let lost = news.iter().map(|(from, to)| to - from + 1).sum();
                self.setup.metrics.gap_records.get_or_create(&label).inc_by(lost);
                let news = news.into_iter().map(|(from, to)| (stream, Gap { from, to, ..gap.clone() }));
                self.found_lost.extend(news);
            }
            for (table, key, value) in self.state.new_gap_rows(stream, &gap) {
                if let Some(value) = value {
                    self.row(table, key, value);
                }
            }
        }
    }

    /// Law: numbers of a shard have no gap that the ledger does not explain. What is left is what a lost state knew.
    fn account(&mut self) {
        for stream in self.streams.values() {
            for (shard, from, to) in unexplained(&self.store, &self.state, stream) {
                self.report.told.push(format!(
                    "stream {}, {}: numbers {from} to {to} are missing and nothing said why; they are in the gap ledger",
                    stream.name,
                    shard_id(shard)
                ));
                self.losses.push((stream.id, Gap::of(shard, from, to, GapReason::Corrupt)));
            }
        }
        self.enter_losses();
    }

    /// An id is not given twice, also when the frame that gave it is lost.
    fn raise_next_stream(&mut self) {
        let Some(above) = self.streams.keys().next_back().map(|id| id + 1) else { return };
        if self.state.number("next_stream").is_none_or(|next| next < u64::from(above)) {
            let (key, value) = (Bytes::from_static(b"next_stream"), Bytes::from(above.to_string()));
            self.state.load(Table::Meta, key.clone(), value.clone());
            self.entries.push((Table::Meta, key, Some(value)));
        }
    }
}

/// Numbers of a stream that neither a segment, nor the window, nor the ledger accounts for.
pub(super) fn unexplained(store: &Store, state: &State, stream: &Stream) -> Vec<(ShardIndex, Number, Number)> {
    let entries = store.entries(stream.id);
    let mut found = Vec::new();
    for shard in stream.shards().iter() {
        let in_segments = entries.iter().filter_map(|entry| entry.extent.shards.get(&shard.index));
        let mut held: Vec<(Number, Number)> = in_segments.map(|extent| (extent.first, extent.last)).collect();
        held.extend(shard.window().spans());
        held.sort_unstable();
        for (from, to) in ledger::without(shard.first_number(), shard.newest(), held.into_iter()) {
            let left = state.unexplained(stream.id, shard.index, from, to);
            found.extend(left.into_iter().map(|(from, to)| (shard.index, from, to)));
        }
    }
    found
}

pub(super) fn note_mark(stream: &Stream, key: &[u8], value: &[u8]) {
    if let Some((_, shard, mark, number)) = state::mark_from_row(key, value)
        && let Some(shard) = stream.shard(shard)
    {
        match mark {
            b'r' => shard.reserve_up_to(number),
            b't' => {
                shard.trim_to(number);
                // What was trimmed had been given, also when nothing of it is left.
                if !is_on(Mutation::ReuseNumbers) {
                    shard.restore(number.saturating_sub(1));
                }
            }
            _ => {}
        }
    }
}
