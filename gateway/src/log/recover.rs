//! What a start does before anybody may append or read: from whatever a power cut left to the laws of `shard.rs`.
//!
//! First the state database, or its rebuilding from the segments; then the streams and what their newest segments hold;
//! then the frames of the journal behind the folded position, into the window; then numbers that may have been given and
//! lost are jumped over; last, files nothing refers to go. Acknowledging begins before any of it is folded.

use super::blob::{self, BlobFiles, Blobs};
use super::committer::{Door, RESERVE_AHEAD};
use super::cursor::Cursors;
use super::disk::Disk;
use super::engine::{Committed, Engine, Parts, Sizes};
use super::error::{OpenError, io_error, scan_error, store_error};
use super::frame::{self, Control, Link};
use super::journal::{Found, Journal, Scan};
use super::mutation::{Mutation, is_on};
use super::producer::{self, Producers};
use super::rebuild;
use super::schema::Table;
use super::segment::{Extent, SegmentError};
use super::stamp::{Boot, Stamps};
use super::state::{self, State};
use super::state_db::{FORMAT, Position, StateDb};
use super::store::{self, Entry, Store};
use super::stream::{Definition, Stream};
use super::window::Run;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::record::{Gap, GapReason, Producer, StreamName};
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a start found and did, for the log line, `log inspect` and the bench.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Recovery {
    pub streams: usize,
    /// Frames of the journal behind the folded position, and the records of them that no segment held.
    pub frames: u64,
    pub records: u64,
    /// Bytes of the journal that were read.
    pub journal_bytes_read: u64,
    /// A write was cut short, or the last group was damaged: the two look alike.
    pub torn: bool,
    /// Places of the journal that were damaged.
    pub damaged: u64,
    pub state_rebuilt: bool,
    pub clean: bool,
    /// What a person should know, in sentences.
    pub told: Vec<String>,
}

/// What a log needs to open, besides its directory.
pub struct Setup {
    pub disk: Arc<dyn Disk>,
    pub sizes: Sizes,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub entropy: fastrand::Rng,
    /// Hash of what tells this machine from another: a card that was cloned gets a new gateway id.
    pub machine: u64,
}

pub fn recover(setup: Setup, blobs: impl FnOnce(Arc<BlobFiles>) -> Blobs) -> Result<(Engine, Recovery), OpenError> {
    Recovering::open(setup)?.run(blobs)
}

struct Recovering {
    setup: Setup,
    state_db: StateDb,
    state: State,
    store: Store,
    blobs: Arc<BlobFiles>,
    producers: Producers,
    position: Option<Position>,
    streams: BTreeMap<u32, Arc<Stream>>,
    cursors: Cursors,
    /// Rows that the first state write brings, journal or not.
    rows: Vec<Control>,
    /// Entries that go through the journal with the first group.
    entries: Vec<Control>,
    window_bytes: usize,
    /// Segments that have a row and no file.
    missing: Vec<(Arc<Stream>, u32, Extent)>,
    report: Recovery,
}

impl Recovering {
    fn open(setup: Setup) -> Result<Recovering, OpenError> {
        let disk = setup.disk.clone();
        for dir in [store::DIR, blob::DIR] {
            disk.create_dir(dir).map_err(io_error(dir))?;
        }
        let store = Store::new(disk.clone());
        let state = State::default();
        let mut producers = Producers::default();
        let cursors = Cursors::default();
        let mut report = Recovery::default();
        let mut load = |table: Table, key: Bytes, value: Bytes| match table {
            Table::Producers => {
                if let Some((stream, producer)) = producer::mark_from_bytes(&key, &value) {
                    producers.remember(stream, &producer);
                }
            }
            Table::Cursors => {
                cursors.load(&key, &value);
                state.load(table, key, value);
            }
            _ => state.load(table, key, value),
        };
        let (state_db, position) = match guarded(|| {
            let state_db = StateDb::open(&*disk, store.written())?;
            let position = state_db.load(&mut load)?;
            Ok((state_db, position))
        }) {
            Ok(opened) => opened,
            Err(error) => {
                report.told.push(format!("the state database could not be read ({error}) and was moved to quarantine/; it is rebuilt from the segments, cursors fall back to what is known"));
                report.state_rebuilt = true;
                rebuild::set_state_aside(&*disk).map_err(io_error(super::state_db::PATH))?;
                (StateDb::open(&*disk, store.written()).map_err(store_error)?, None)
            }
        };
        if let Some(position) = position
            && position.format > FORMAT
        {
            let path = PathBuf::from(super::state_db::PATH);
            return Err(OpenError::Newer { path, found: position.format as u32, known: FORMAT as u32 });
        }
        let blobs = Arc::new(BlobFiles::new(disk, setup.sizes.blob_file, setup.metrics.clone()));
        Ok(Recovering {
            setup,
            state_db,
            state,
            store,
            blobs,
            producers,
            position,
            streams: BTreeMap::new(),
            cursors,
            rows: Vec::new(),
            entries: Vec::new(),
            window_bytes: 0,
            missing: Vec::new(),
            report,
        })
    }

    fn run(mut self, blobs: impl FnOnce(Arc<BlobFiles>) -> Blobs) -> Result<(Engine, Recovery), OpenError> {
        let on_disk = self.store.streams_on_disk().map_err(io_error(store::DIR))?;
        if self.position.is_none() && !on_disk.is_empty() {
            self.report.state_rebuilt = true;
            self.rows = rebuild::from_segments(&self.store, &self.state, &mut self.report.told).map_err(store_error)?;
        }
        for (key, value) in self.state.scan(Table::Streams, b"") {
            self.make_stream(&key, &value);
        }
        self.load_segments()?;
        self.load_blobs()?;
        let (incarnation, gateway_id) = self.identity();
        let boots =
            self.state.scan(Table::Boots, b"").iter().filter_map(|(_, value)| Boot::from_bytes(value)).collect();
        let (stamps, boot) = Stamps::new(self.setup.clock.clone(), boots);
        if let Some((index, boot)) = boot {
            self.row(Table::Boots, index.to_be_bytes().to_vec().into(), boot.to_bytes());
        }
        let mut journal =
            Journal::open(&*self.setup.disk, self.setup.sizes.ring).map_err(io_error(super::journal::DIR))?;
        let position = self.position.unwrap_or_default();
        let (tail, link, scan) = self.replay(&journal, &position)?;
        journal.settle_tail(scan.prev).map_err(io_error(super::journal::DIR))?;
        let epoch = self.setup.entropy.u64(..);
        journal.resume(epoch, scan.head, tail, scan.prev);
        self.lose_missing();
        self.settle_numbers(&scan);
        let position = Position { format: FORMAT, clean: false, tail, link, ..position };
        self.state_db.write(&self.rows, &position).map_err(store_error)?;
        self.blobs.tidy(self.report.state_rebuilt).map_err(io_error(blob::DIR))?;
        let next_group = scan.last_group.max(position.group) + 1;
        let blobs = blobs(self.blobs.clone());
        let door = Door::new(next_group, self.producers, blobs, self.setup.sizes.group_max, stamps.clone());
        door.put_state(self.entries);
        self.report.streams = self.streams.len();
        let parts = Parts {
            sizes: self.setup.sizes,
            metrics: self.setup.metrics,
            disk: self.setup.disk,
            gateway_id,
            incarnation,
            stamps,
            state: self.state,
            store: self.store,
            blobs: self.blobs,
            door: Arc::new(door),
            streams: self.streams.into_values().map(|stream| (stream.name.clone(), stream)).collect(),
            journal,
            committed: Committed { group: position.group, head: tail, link },
            last: Committed { group: next_group - 1, head: scan.head, link: scan.prev },
            cursors: self.cursors,
            state_db: self.state_db,
            window_bytes: self.window_bytes,
            entropy: self.setup.entropy,
        };
        let engine = Engine::new(parts).map_err(io_error("zstd"))?;
        Ok((engine, self.report))
    }

    fn row(&mut self, table: Table, key: Bytes, value: Bytes) {
        self.state.load(table, key.clone(), value.clone());
        self.rows.push((table, key, Some(value)));
    }

    fn make_stream(&mut self, key: &[u8], value: &[u8]) {
        let Some(id) = key.try_into().ok().map(u32::from_be_bytes) else { return };
        let Ok(definition) = serde_json::from_slice::<Definition>(value) else { return };
        let Ok(name) = StreamName::new(&definition.name) else { return };
        if let Some(known) = self.streams.get(&id) {
            known.set_settings(definition.settings);
            return;
        }
        let stream = Arc::new(Stream::new(id, name, &definition));
        for (key, value) in self.state.scan(Table::Shards, &id.to_be_bytes()) {
            note_mark(&stream, &key, &value);
        }
        self.streams.insert(id, stream);
    }

    /// What each stream's segments hold. The row of all but the newest is final; the newest is asked itself, because a
    /// fold that was cut short may have written it and not the state.
    fn load_segments(&mut self) -> Result<(), OpenError> {
        for stream in self.streams.values().cloned().collect::<Vec<_>>() {
            let mut on_disk = self.store.on_disk(stream.id).map_err(io_error(store::DIR))?;
            let rows = self.state.scan(Table::Segments, &stream.id.to_be_bytes());
            let known: Vec<(u32, Extent)> = rows
                .iter()
                .filter_map(|(key, value)| Some((state::pair_from_key(key)?.1, serde_json::from_slice(value).ok()?)))
                .collect();
            let newest = known.last().map(|(id, _)| *id);
            for (id, extent) in known {
                stream.next_segment.fetch_max(id + 1, Ordering::Relaxed);
                let here = on_disk.contains(&id);
                on_disk.retain(|other| *other != id);
                let extent = match (here, Some(id) == newest) {
                    (false, _) => {
                        // The journal may say that it was trimmed; its numbers were given either way.
                        restore_numbers(&stream, &extent);
                        self.missing.push((stream.clone(), id, extent));
                        continue;
                    }
                    (true, false) => extent,
                    (true, true) => match self.extent_of(&stream, id, &extent)? {
                        Some(found) => {
                            if found != extent && !is_on(Mutation::KeepStaleRow) {
                                // Once there is a newer segment, the row alone says what this one holds.
                                self.row(Table::Segments, state::shard_key(stream.id, id), state::to_json(&found));
                            }
                            found
                        }
                        None => continue,
                    },
                };
                self.enter_segment(&stream, id, extent);
            }
            for id in on_disk {
                // Begun by a fold that was cut short, or trimmed by a retention that was: nothing refers to it.
                stream.next_segment.fetch_max(id + 1, Ordering::Relaxed);
                self.store.remove(stream.id, id).map_err(io_error(store::DIR))?;
            }
        }
        let gone: Vec<u32> = self.store.streams_on_disk().map_err(io_error(store::DIR))?;
        for stream in gone.into_iter().filter(|id| !self.streams.contains_key(id)) {
            for id in self.store.on_disk(stream).map_err(io_error(store::DIR))? {
                self.store.remove(stream, id).map_err(io_error(store::DIR))?;
            }
        }
        Ok(())
    }

    fn enter_segment(&mut self, stream: &Stream, id: u32, extent: Extent) {
        restore_numbers(stream, &extent);
        let length =
            self.setup.disk.open(&store::path(stream.id, id), super::disk::Mode::Existing).and_then(|file| file.len());
        self.store.put(stream.id, Entry { id, extent, file_bytes: length.unwrap_or(0) });
        stream.size.store(self.store.bytes(stream.id), Ordering::Relaxed);
    }

    fn extent_of(&mut self, stream: &Stream, id: u32, row: &Extent) -> Result<Option<Extent>, OpenError> {
        let read = guarded(|| {
            // After an error redb's view of the file is void.
            self.store.close(stream.id, id);
            self.store.open(stream.id, id, false)?.extent()
        });
        match read {
            Ok(extent) => Ok(Some(extent)),
            Err(error) => {
                let salvaged = rebuild::salvage(&self.store, stream, id, row, &error).map_err(store_error)?;
                self.report.told.push(salvaged.says.clone());
                for gap in &salvaged.gaps {
                    let entry = self.state.gap_entry(stream.id, gap);
                    self.entries.push(entry);
                }
                Ok(salvaged.extent)
            }
        }
    }

    /// Tells of segments that are gone and that no retention dropped; the journal has been replayed.
    fn lose_missing(&mut self) {
        for (stream, id, extent) in std::mem::take(&mut self.missing) {
            let row = state::shard_key(stream.id, id);
            if self.state.get(Table::Segments, &row).is_some() {
                self.report.told.push(format!(
                    "segment {} of stream {} is missing; its numbers are in the gap ledger",
                    store::path(stream.id, id),
                    stream.name
                ));
                self.lose_segment(&stream, id, &extent);
            }
        }
    }

    fn lose_segment(&mut self, stream: &Stream, id: u32, extent: &Extent) {
        let row = state::shard_key(stream.id, id);
        self.entries.push((Table::Segments, row, None));
        for (shard, range) in &extent.shards {
            let oldest = stream.shard(*shard).map_or(0, |shard| shard.oldest());
            if range.last < oldest {
                continue;
            }
            let gap = Gap {
                shard: *shard,
                from: range.first.max(oldest),
                to: range.last,
                reason: GapReason::Corrupt,
                from_ms: 0,
                to_ms: 0,
            };
            let entry = self.state.gap_entry(stream.id, &gap);
            self.entries.push(entry);
        }
    }

    fn load_blobs(&mut self) -> Result<(), OpenError> {
        for (key, value) in self.state.scan(Table::Blobs, b"") {
            if let Some((stream, file)) = state::pair_from_key(&key)
                && let Ok(extent) = serde_json::from_slice(&value)
            {
                self.blobs.restore(stream, file, extent);
            }
        }
        Ok(())
    }

    /// Gateway id and incarnation. Both are made anew when the card is found in another machine.
    fn identity(&mut self) -> (u32, String) {
        let text = |state: &State, name: &str| {
            state.get(Table::Meta, name.as_bytes()).and_then(|value| String::from_utf8(value.to_vec()).ok())
        };
        let machine = format!("{:016x}", self.setup.machine);
        let known =
            text(&self.state, "gateway").filter(|_| text(&self.state, "machine").is_none_or(|of| of == machine));
        let mut incarnation = text(&self.state, "incarnation").and_then(|text| text.parse().ok()).unwrap_or(1);
        let gateway = known.unwrap_or_else(|| {
            if text(&self.state, "gateway").is_some() {
                self.report
                    .told
                    .push("this data directory comes from another machine; the gateway takes a new id".into());
            }
            format!("{:016x}", self.setup.entropy.u64(..))
        });
        if self.report.state_rebuilt {
            incarnation += 1;
        }
        self.row(Table::Meta, Bytes::from_static(b"gateway"), gateway.clone().into());
        self.row(Table::Meta, Bytes::from_static(b"machine"), machine.into());
        self.row(Table::Meta, Bytes::from_static(b"incarnation"), incarnation.to_string().into());
        (incarnation, gateway)
    }

    /// Brings the journal's frames into state and window. Returns where the ring's tail is, what the
    /// first frame chains to, and what was found.
    fn replay(&mut self, journal: &Journal, position: &Position) -> Result<(u64, Link, Scan), OpenError> {
        let (from, link) = match self.position {
            Some(_) => (position.tail, position.link),
            None => match journal.oldest().map_err(scan_error)? {
                Some(oldest) => (oldest.pos, oldest.prev),
                None => (0, Link::default()),
            },
        };
        let scan = journal.scan(from, link, &mut |found| self.replay_frame(found)).map_err(scan_error)?;
        self.report.frames = scan.frames;
        self.report.journal_bytes_read = scan.read;
        self.report.torn = scan.torn;
        self.report.damaged = scan.damaged;
        self.report.clean = position.clean && scan.frames == 0;
        if scan.damaged > 0 {
            self.report.told.push(format!(
                "{} places of the journal are damaged; what they held is in the gap ledger",
                scan.damaged
            ));
        }
        Ok((from, link, scan))
    }

    fn replay_frame(&mut self, found: Found) {
        let group = found.header.group;
        let contents = match frame::read_body(&found.header, &found.body) {
            Ok(contents) => contents,
            Err(error) => {
                // Its checksum was right, so this was written so: a fault of ours, told and stepped over.
                self.report.told.push(format!("group {group} of the journal cannot be read: {error}"));
                return;
            }
        };
        for (table, key, value) in &contents.control {
            self.replay_control(*table, key, value.as_ref());
        }
        self.state.apply(group, contents.control);
        for (stream, shard, run) in contents.runs {
            self.replay_run(stream, shard, run);
        }
    }

    fn replay_control(&mut self, table: Table, key: &Bytes, value: Option<&Bytes>) {
        match (table, value) {
            (Table::Streams, Some(value)) => self.make_stream(key, value),
            (Table::Streams, None) => {
                if let Some(id) = key[..].try_into().ok().map(u32::from_be_bytes)
                    && let Some(stream) = self.streams.remove(&id)
                {
                    stream.set_deleted();
                    self.producers.forget_stream(id);
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

    /// A segment that was trimmed: the unlink may not have happened.
    fn replay_segment(&mut self, key: &[u8], removed: bool) {
        let Some((stream, id)) = state::pair_from_key(key) else { return };
        if let Some(stream) = self.streams.get(&stream) {
            stream.next_segment.fetch_max(id + 1, Ordering::Relaxed);
        }
        if removed && let Err(error) = self.store.remove(stream, id) {
            self.report
                .told
                .push(format!("trimmed segment {} could not be unlinked: {error}", store::path(stream, id)));
        }
    }

    fn replay_run(&mut self, stream: u32, shard: u32, mut run: Run) {
        for producer in run.producers.iter().filter(|_| !is_on(Mutation::ForgetMarks)) {
            self.producers.remember(stream, producer);
        }
        let Some(of) = self.streams.get(&stream).cloned() else { return };
        let Some(shard) = of.shard(shard) else { return };
        let newest = shard.newest();
        if is_on(Mutation::ReplayTwice) {
            run.first = run.first.max(newest + 1);
        }
        if run.last() <= newest {
            // A fold that was cut short took it and did not come to write its marks, and no later fold meets it.
            let mark = |producer: &Producer| {
                (Table::Producers, producer::mark_key(of.id, producer.id), Some(producer::mark_to_bytes(producer)))
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
    fn explain(&mut self, stream: &Stream, shard: u32, from: u64, to: u64) {
        let mut at = from;
        let known = self.state.gaps(stream.id, shard, from, to);
        let mut unknown = Vec::new();
        for gap in known {
            if gap.from > at {
                unknown.push((at, gap.from - 1));
            }
            at = gap.to + 1;
        }
        if at <= to {
            unknown.push((at, to));
        }
        for (from, to) in unknown {
            let gap = Gap { shard, from, to, reason: GapReason::Corrupt, from_ms: 0, to_ms: 0 };
            let entry = self.state.gap_entry(stream.id, &gap);
            self.entries.push(entry);
        }
    }

    /// After a start that lost anything, or may have, no number that can have been given is given again (crash rule 6).
    fn settle_numbers(&mut self, scan: &Scan) {
        let lost = scan.torn || scan.damaged > 0 || self.report.state_rebuilt;
        for stream in self.streams.values() {
            // Numbers that failed groups left out may stand above every record.
            for gap in self.state.ledger(stream.id) {
                if let Some(shard) = stream.shard(gap.shard).filter(|_| !is_on(Mutation::ReuseNumbers)) {
                    shard.jump_to(gap.to);
                }
            }
            for shard in stream.shards().iter() {
                let newest = shard.newest();
                if lost && shard.reserved() > newest {
                    let (from, to) = (newest + 1, shard.reserved());
                    shard.jump_to(to);
                    let gap = Gap { shard: shard.index, from, to, reason: GapReason::Unused, from_ms: 0, to_ms: 0 };
                    self.entries.push(self.state.gap_entry(stream.id, &gap));
                }
                self.entries.push(state::reserve_entry(stream.id, shard.index, shard.assigned() + RESERVE_AHEAD));
            }
        }
        if scan.torn {
            self.report.told.push("the journal ends in a write that was cut short; nothing acknowledged is missing unless that very group was damaged later, which would look the same".into());
        }
    }
}

fn restore_numbers(stream: &Stream, extent: &Extent) {
    for (shard, range) in &extent.shards {
        if let Some(shard) = stream.shard(*shard) {
            shard.restore(range.last);
        }
    }
}

fn note_mark(stream: &Stream, key: &[u8], value: &[u8]) {
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

/// How often a file is read before an error that may pass is taken for damage.
const READ_ATTEMPTS: u32 = 3;

/// Runs what may meet a damaged file. redb may panic on one: that is an error like another here. An error of the disk
/// itself is tried again first: setting a sound file aside for a loose cable would lose what it holds.
pub fn guarded<T>(mut run: impl FnMut() -> Result<T, SegmentError>) -> Result<T, SegmentError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let result = catch_unwind(AssertUnwindSafe(&mut run)).unwrap_or_else(|_| {
            Err(SegmentError::Io(io::Error::new(io::ErrorKind::InvalidData, "the database is damaged")))
        });
        match result {
            Err(error) if error.may_pass() && attempts < READ_ATTEMPTS => {}
            result => return result,
        }
    }
}
