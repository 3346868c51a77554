//! What a start does before anybody may append or read: from whatever a power cut left to the laws of `shard.rs`.
//!
//! First the state database, or its rebuilding from the segments; then the streams and what their newest segments hold;
//! then the frames of the journal behind the folded position, into the window; then numbers that may have been given and
//! lost are jumped over; last, files nothing refers to go. Acknowledging begins before any of it is folded.

use super::blob::{self, BlobFiles, Blobs};
use super::committer::{Door, RESERVE_AHEAD};
use super::cursor::Cursors;
use super::disk::{Disk, Mode};
use super::engine::{Committed, Engine, Parts, Sizes};
use super::error::{OpenError, io_error, store_error};
use super::frame::Control;
use super::journal::{self, Journal};
use super::mutation::{Mutation, is_on};
use super::producer::{self, Producers};
use super::rebuild::{self, Damaged, StateCopy};
use super::schema::Table;
use super::segment::{Extent, READ_ATTEMPTS, SegmentError};
use super::stamp::{self, Boot, Stamps};
use super::state::{self, State};
use super::state_db::{FORMAT, Position, StateDb};
use super::store::{self, Entry, Store};
use super::stream::{Definition, Stream};
use super::window::Run;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::record::{Gap, StreamName};
use bytes::Bytes;
use serde::Serialize;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
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
    /// Hashes of what tells this machine from another, if anything does: a card that was cloned gets a new gateway id.
    pub machine: Vec<u64>,
}

pub fn recover(setup: Setup, blobs: impl FnOnce(Arc<BlobFiles>) -> Blobs) -> Result<(Engine, Recovery), OpenError> {
    Recovering::open(setup)?.run(blobs)
}

pub(super) struct Recovering {
    pub(super) setup: Setup,
    /// `None` after an error: redb's view of the file is void then, and the next fold opens it anew.
    state_db: Option<StateDb>,
    pub(super) state: State,
    pub(super) store: Store,
    pub(super) blobs: Arc<BlobFiles>,
    pub(super) producers: Producers,
    marks_on_disk: usize,
    pub(super) position: Option<Position>,
    pub(super) streams: BTreeMap<u32, Arc<Stream>>,
    pub(super) cursors: Cursors,
    gateway: String,
    incarnation: u32,
    /// Rows that are durable before anybody may append or read.
    pub(super) rows: Vec<Control>,
    /// Entries that go through the journal with the first group.
    pub(super) entries: Vec<Control>,
    /// What is lost, until it is in the ledger.
    pub(super) losses: Vec<(u32, Gap)>,
    /// The records among them, for the sinks' figures.
    pub(super) found_lost: Vec<(u32, Gap)>,
    /// Numbers that are missing between those of the journal's frames.
    pub(super) explained: u64,
    /// Records of streams that nobody knows: see [`Recovering::adopt`].
    pub(super) orphans: BTreeMap<u32, Vec<(u32, Run)>>,
    /// Ids below it are of streams that the state knows or that were deleted.
    pub(super) next_stream: u32,
    /// Highest boot index that a record bears.
    pub(super) newest_boot: u16,
    pub(super) window_bytes: usize,
    /// Segments that have a row and no file.
    pub(super) missing: Vec<(Arc<Stream>, u32, Extent)>,
    /// What segments lost, by their numbers, unless the journal still has it.
    pub(super) missed: Vec<(Arc<Stream>, u32, Gap)>,
    /// Newest segments that hold more than the state knows, of a fold that was cut short: nothing of that is replayed.
    ahead: BTreeSet<(u32, u32)>,
    /// Segments that the journal says are trimmed, until they are unlinked.
    pub(super) trimmed: Vec<(u32, u32)>,
    pub(super) report: Recovery,
}

/// What the state database holds.
struct Loaded {
    state_db: StateDb,
    position: Option<Position>,
    state: State,
    producers: Producers,
    marks_on_disk: usize,
    cursors: Cursors,
}

impl Loaded {
    fn from(disk: &dyn Disk, store: &Store) -> Result<Loaded, SegmentError> {
        let (state, cursors, mut producers) = (State::default(), Cursors::default(), Producers::default());
        let state_db = StateDb::open(disk, store.written())?;
        let mut marks_on_disk = 0;
        let position = state_db.load(|table, key, value| match table {
            Table::Producers => {
                marks_on_disk += 1;
                if let Some((place, producer)) = producer::mark_from_bytes(&key, &value) {
                    producers.remember(place, &producer);
                }
            }
            Table::Cursors => {
                cursors.load(&key, &value);
                state.load(table, key, value);
            }
            _ => state.load(table, key, value),
        })?;
        Ok(Loaded { state_db, position, state, producers, marks_on_disk, cursors })
    }
}

impl Recovering {
    fn open(setup: Setup) -> Result<Recovering, OpenError> {
        let disk = setup.disk.clone();
        for dir in [store::DIR, blob::DIR] {
            disk.create_dir(dir).map_err(io_error(dir))?;
        }
        let store = Store::new(disk.clone());
        let mut report = Recovery::default();
        let loaded = match guarded(&*disk, || Loaded::from(&*disk, &store)) {
            Ok(loaded) => loaded,
            Err(error) if !error.is_damage() => return Err(store_error(error)),
            Err(error) => {
                report.told.push(format!("the state database could not be read ({error}) and was moved to quarantine/; it is rebuilt from the segments, cursors fall back to what is known"));
                report.state_rebuilt = true;
                rebuild::set_state_aside(&*disk).map_err(io_error(super::state_db::PATH))?;
                Loaded::from(&*disk, &store).map_err(store_error)?
            }
        };
        let Loaded { state_db, position, state, producers, marks_on_disk, cursors } = loaded;
        if let Some(position) = position
            && position.format > FORMAT
        {
            let path = PathBuf::from(super::state_db::PATH);
            return Err(OpenError::Newer { path, found: position.format as u32, known: FORMAT as u32 });
        }
        let blobs = Arc::new(BlobFiles::new(disk, setup.sizes.blob_file, setup.metrics.clone()));
        Ok(Recovering {
            setup,
            state_db: Some(state_db),
            state,
            store,
            blobs,
            producers,
            marks_on_disk,
            position,
            streams: BTreeMap::new(),
            cursors,
            gateway: String::new(),
            incarnation: 1,
            rows: Vec::new(),
            entries: Vec::new(),
            losses: Vec::new(),
            found_lost: Vec::new(),
            explained: 0,
            orphans: BTreeMap::new(),
            next_stream: 1,
            newest_boot: 0,
            window_bytes: 0,
            missing: Vec::new(),
            missed: Vec::new(),
            ahead: BTreeSet::new(),
            trimmed: Vec::new(),
            report,
        })
    }

    fn run(mut self, blobs: impl FnOnce(Arc<BlobFiles>) -> Blobs) -> Result<(Engine, Recovery), OpenError> {
        let known = self.position.map(|position| position.ring_file).filter(|bytes| *bytes > 0);
        let ring = self.setup.sizes.ring;
        let mut journal = Journal::open(&*self.setup.disk, ring, known).map_err(io_error(journal::DIR))?;
        let begin = self.journal_begin(&journal)?;
        let on_disk = self.store.streams_on_disk().map_err(io_error(store::DIR))?;
        if self.position.is_none() && (!on_disk.is_empty() || begin.is_some()) {
            if !self.report.state_rebuilt {
                let says = "the state database is missing or empty; it is rebuilt from segments and journal, cursors fall back to what is known";
                self.report.told.push(says.into());
            }
            self.report.state_rebuilt = true;
            self.rows = rebuild::from_segments(&self.store, &self.state, &mut self.report.told).map_err(store_error)?;
        }
        self.identity();
        self.next_stream = self.state.number("next_stream").unwrap_or(1) as u32;
        for (key, value) in self.state.scan(Table::Streams, b"") {
            self.make_stream(&key, &value);
        }
        self.load_segments()?;
        self.load_blobs();
        let position = self.position.unwrap_or_default();
        let (tail, link) = begin.unwrap_or_default();
        let scan = self.replay(&journal, tail, link, position.clean)?;
        let link = if scan.gone { scan.prev } else { link };
        journal.settle_tail(scan.prev).map_err(io_error(journal::DIR))?;
        if self.unlink_trimmed().iter().any(|segment| self.ahead.contains(segment)) {
            // It went with what only the journal has then, and that was passed over.
            let Recovering { setup, state_db, store, .. } = self;
            store.close_all();
            drop(state_db);
            return Recovering::open(setup)?.run(blobs);
        }
        let epoch = self.setup.entropy.u64(..);
        journal.resume(epoch, scan.head, tail, scan.prev);
        self.lose_missing();
        self.lose_missed();
        self.settle(&scan, journal.was_cut_short());
        self.forget_marks();
        self.forget_rows();
        let stamps = self.stamps();
        let ring_file = journal.file_bytes();
        let position = Position { format: FORMAT, clean: false, tail, link, ring_file, ..position };
        if self.report.state_rebuilt {
            self.adopt_blobs()?;
        }
        match self.state_db.as_ref().map_or(Ok(()), |state_db| state_db.write(&self.rows, &position)) {
            Ok(()) => self.streams.values().for_each(|stream| {
                stream.shards().iter().for_each(|shard| shard.reserve_up_to(shard.assigned() + RESERVE_AHEAD));
            }),
            // The journal has its room, full disk or not: they are durable before anything that counts on them.
            Err(error) if error.is_full() => {
                self.entries.append(&mut self.rows);
                self.state_db = None;
            }
            Err(error) => return Err(store_error(error)),
        }
        self.blobs.tidy().map_err(io_error(blob::DIR))?;
        let next_group = scan.last_group.max(position.group) + 1;
        let blobs = blobs(self.blobs.clone());
        // The ring may have been made for another budget.
        let group_max = self.setup.sizes.group_max.min(journal.frame_bytes_max() as usize / 2);
        let kept = producer::Kept::of(&self.producers);
        let door = Door::new(next_group, self.producers, blobs, group_max, stamps.clone());
        door.put_state(self.entries);
        self.report.streams = self.streams.len();
        let parts = Parts {
            sizes: self.setup.sizes,
            metrics: self.setup.metrics,
            disk: self.setup.disk,
            gateway_id: self.gateway,
            incarnation: self.incarnation,
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
            kept,
            state_db: self.state_db,
            window_bytes: self.window_bytes,
            found_lost: self.found_lost,
            entropy: self.setup.entropy,
        };
        let engine = Engine::new(parts).map_err(io_error("zstd"))?;
        Ok((engine, self.report))
    }

    /// Removes the rows of producers that had to make room for others, and of streams that are gone: what is on disk is
    /// bounded by what is remembered.
    fn forget_marks(&mut self) {
        self.producers.keep_streams(|stream| self.streams.contains_key(&stream));
        let Some(state_db) = self.state_db.as_ref().filter(|_| self.marks_on_disk > self.producers.len()) else {
            return;
        };
        let mut forgotten = Vec::new();
        // Read a moment ago, and whole: an error now leaves them for the next start.
        let _ = state_db.load(|table, key, value| {
            let mark = if table == Table::Producers { producer::mark_from_bytes(&key, &value) } else { None };
            if mark.is_some_and(|(place, producer)| !self.producers.knows(place, producer.id)) {
                forgotten.push((Table::Producers, key, None));
            }
        });
        // What was found on the way here comes after, and may name one of them anew.
        self.rows.splice(0..0, forgotten);
    }

    /// Rows of deleted streams go after their streams; a crash may leave some.
    fn forget_rows(&mut self) {
        for table in Table::OF_STREAMS {
            let rows = self.state.scan(table, b"").into_iter().map(|(key, _)| (table, key, None));
            let is_gone = |key: &[u8]| state::pair_from_key(key).is_some_and(|of| !self.streams.contains_key(&of.0));
            self.entries.extend(rows.filter(|(_, key, _)| is_gone(key)));
        }
    }

    pub(super) fn row(&mut self, table: Table, key: Bytes, value: Bytes) {
        self.state.load(table, key.clone(), value.clone());
        self.rows.push((table, key, Some(value)));
    }

    pub(super) fn make_stream(&mut self, key: &[u8], value: &[u8]) {
        let Some(id) = key.try_into().ok().map(u32::from_be_bytes) else { return };
        let Ok(definition) = serde_json::from_slice::<Definition>(value) else { return };
        let Ok(name) = StreamName::new(&definition.name) else { return };
        if let Some(known) = self.streams.get(&id) {
            known.set_settings(definition.settings);
            return;
        }
        let stream = Arc::new(Stream::new(id, name, &definition));
        for (key, value) in self.state.scan(Table::Shards, &id.to_be_bytes()) {
            super::replay::note_mark(&stream, &key, &value);
        }
        self.streams.insert(id, stream);
    }

    /// What each stream's segments hold.
    fn load_segments(&mut self) -> Result<(), OpenError> {
        for stream in self.streams.values().cloned().collect::<Vec<_>>() {
            let placed = self.store.place_salvaged(stream.id).map_err(io_error(store::DIR))?;
            let mut on_disk = self.store.on_disk(stream.id).map_err(io_error(store::DIR))?;
            let rows = self.state.scan(Table::Segments, &stream.id.to_be_bytes());
            let known: Vec<(u32, Extent)> = rows
                .iter()
                .filter_map(|(key, value)| Some((state::pair_from_key(key)?.1, serde_json::from_slice(value).ok()?)))
                .collect();
            let newest = known.last().map(|(id, _)| *id);
            for (id, row) in known {
                stream.next_segment.fetch_max(id + 1, Ordering::Relaxed);
                let here = on_disk.contains(&id);
                on_disk.retain(|other| *other != id);
                let extent = if !here {
                    // The journal may say that it was trimmed.
                    self.missing.push((stream.clone(), id, row));
                    continue;
                } else if placed.contains(&id) {
                    self.extent_of_saved(&stream, id, &row)?
                } else if Some(id) == newest {
                    match self.extent_of_newest(&stream, id, &row)? {
                        Some(extent) => extent,
                        None => continue,
                    }
                } else {
                    row.clone()
                };
                if extent != row {
                    self.ahead.insert((stream.id, id));
                }
                if extent != row && !is_on(Mutation::KeepStaleRow) {
                    // Once there is a newer segment, the row alone says what this one holds.
                    self.row(Table::Segments, state::shard_key(stream.id, id), state::to_json(&extent));
                }
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

    /// The row of all but the newest is final; the newest is asked itself, because a fold that was cut short may have
    /// written it and not the state. `None`: nothing of it could be saved.
    fn extent_of_newest(&mut self, stream: &Arc<Stream>, id: u32, row: &Extent) -> Result<Option<Extent>, OpenError> {
        let read = guarded(&*self.setup.disk, || {
            // After an error redb's view of the file is void.
            self.store.close(stream.id, id);
            self.store.open(stream.id, id, false)?.extent()
        });
        let error = match read {
            Ok(extent) => return Ok(Some(extent)),
            Err(error) => error,
        };
        let known = Some(&self.state);
        let damaged = Damaged { stream: stream.id, name: stream.name.as_str(), id, row, known, why: &error };
        let copy = self.copy_of(stream);
        let oldest = |shard| stream.shard(shard).map_or(0, |shard| shard.oldest());
        let salvaged = match error.is_damage() {
            true => rebuild::salvage(&self.store, &damaged, oldest, Some(&copy)).map_err(|error| error.to_string()),
            false => Err("the machine refuses it".to_owned()),
        };
        match salvaged {
            Ok(salvaged) => {
                self.report.told.push(salvaged.says);
                self.missed.extend(salvaged.gaps.into_iter().map(|gap| (stream.clone(), id, gap)));
                if salvaged.extent.is_none() {
                    self.entries.push((Table::Segments, state::shard_key(stream.id, id), None));
                }
                Ok(salvaged.extent)
            }
            // It stays as it is, and nothing is written into it; whoever reads it asks for its healing.
            Err(again) => {
                self.report.told.push(format!(
                    "segment {} of stream {} cannot be read ({error}) and could not be salvaged now: {again}",
                    store::path(stream.id, id),
                    stream.name
                ));
                self.store.seal(stream.id, id);
                Ok(Some(row.clone()))
            }
        }
    }

    /// A salvage was cut off before it was told: what it saved is in its place now.
    fn extent_of_saved(&mut self, stream: &Arc<Stream>, id: u32, row: &Extent) -> Result<Extent, OpenError> {
        let read = guarded(&*self.setup.disk, || {
            self.store.close(stream.id, id);
            let segment = self.store.open(stream.id, id, false)?;
            Ok((segment.extent()?, segment.verify()?.good))
        });
        let (extent, good) = read.map_err(store_error)?;
        let oldest = |shard| stream.shard(shard).map_or(0, |shard| shard.oldest());
        let gaps = rebuild::missing_of(row, good.iter(), oldest);
        self.missed.extend(gaps.into_iter().map(|gap| (stream.clone(), id, gap)));
        Ok(extent)
    }

    fn enter_segment(&mut self, stream: &Stream, id: u32, extent: Extent) {
        restore_numbers(stream, &extent);
        self.newest_boot = self.newest_boot.max(stamp::boot_of(extent.newest_stamp()));
        let length = self.setup.disk.open(&store::path(stream.id, id), Mode::Existing).and_then(|file| file.len());
        self.store.put(stream.id, Entry { id, extent, file_bytes: length.unwrap_or(0) });
        stream.size.store(self.store.bytes(stream.id), Ordering::Relaxed);
    }

    fn load_blobs(&mut self) {
        for (key, value) in self.state.scan(Table::Blobs, b"") {
            if let Some((stream, file)) = state::pair_from_key(&key)
                && self.streams.contains_key(&stream)
                && let Ok(extent) = serde_json::from_slice(&value)
            {
                self.blobs.restore(stream, file, extent);
            }
        }
    }

    /// Blob files that a lost state knew of: they go with the last record there is now.
    fn adopt_blobs(&mut self) -> Result<(), OpenError> {
        for stream in self.streams.values().cloned().collect::<Vec<_>>() {
            let last = stream.shards().iter().map(|shard| (shard.index, shard.newest())).collect();
            for (file, extent) in self.blobs.adopt(stream.id, &last).map_err(io_error(blob::DIR))? {
                self.row(Table::Blobs, state::shard_key(stream.id, file), state::to_json(&extent));
            }
        }
        Ok(())
    }

    fn copy_of(&self, stream: &Stream) -> Vec<u8> {
        StateCopy::of(stream, &self.state, &self.gateway, self.incarnation).encode()
    }

    /// Gateway id and incarnation. Both are made anew when the card is found in another machine.
    fn identity(&mut self) {
        let text = |state: &State, name: &str| {
            state.get(Table::Meta, name.as_bytes()).and_then(|value| String::from_utf8(value.to_vec()).ok())
        };
        let machine: Vec<String> = self.setup.machine.iter().map(|mark| format!("{mark:016x}")).collect();
        let before = text(&self.state, "machine").unwrap_or_default();
        let is_another = !before.is_empty()
            && !machine.is_empty()
            && !before.split(',').any(|mark| machine.iter().any(|own| own == mark));
        let known = text(&self.state, "gateway").filter(|_| !is_another);
        let mut incarnation = text(&self.state, "incarnation").and_then(|text| text.parse().ok()).unwrap_or(1);
        let gateway = known.unwrap_or_else(|| {
            if text(&self.state, "gateway").is_some() {
                self.report
                    .told
                    .push("this data directory comes from another machine; the gateway takes a new id".into());
            }
            if self.report.state_rebuilt {
                self.report.told.push("nothing is left that says which gateway this is; it takes a new id".into());
            }
            format!("{:016x}", self.setup.entropy.u64(..))
        });
        if self.report.state_rebuilt {
            incarnation += 1;
        }
        self.row(Table::Meta, Bytes::from_static(b"gateway"), gateway.clone().into());
        let machine = if machine.is_empty() { before } else { machine.join(",") };
        self.row(Table::Meta, Bytes::from_static(b"machine"), machine.into());
        self.row(Table::Meta, Bytes::from_static(b"incarnation"), incarnation.to_string().into());
        (self.gateway, self.incarnation) = (gateway, incarnation);
    }

    /// Arrival times from now on. Every boot that a record names has its place, known or not: a new one gets another.
    fn stamps(&mut self) -> Stamps {
        let rows = self.state.scan(Table::Boots, b"");
        let mut boots = Vec::new();
        for (key, value) in rows {
            if let (Ok(index), Some(boot)) = (key[..].try_into().map(u16::from_be_bytes), Boot::from_bytes(&value)) {
                boots.resize(boots.len().max(usize::from(index) + 1), Boot::UNKNOWN);
                boots[usize::from(index)] = boot;
            }
        }
        let has_records = |stream: &Arc<Stream>| stream.shards().iter().any(|shard| shard.oldest() <= shard.newest());
        if self.streams.values().any(has_records) {
            boots.resize(boots.len().max(usize::from(self.newest_boot) + 1), Boot::UNKNOWN);
        }
        let (stamps, boot) = Stamps::new(self.setup.clock.clone(), boots);
        if let Some((index, boot)) = boot {
            self.row(Table::Boots, index.to_be_bytes().to_vec().into(), boot.to_bytes());
        }
        stamps
    }
}

fn restore_numbers(stream: &Stream, extent: &Extent) {
    for (shard, range) in &extent.shards {
        if let Some(shard) = stream.shard(*shard) {
            shard.restore(range.last);
        }
    }
}

thread_local! {
    static SHIELDED: Cell<bool> = const { Cell::new(false) };
}

/// From now on a panic that is an error here prints no trace: what it means is told where it is known. Once a process.
pub fn hush_shielded_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !SHIELDED.get() {
            usual(panic);
        }
    }));
}

/// Runs what may meet a damaged file: redb may panic on one, and that is an error like another here.
pub fn shielded<T>(run: impl FnOnce() -> Result<T, SegmentError>) -> Result<T, SegmentError> {
    let outer = SHIELDED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(run));
    SHIELDED.set(outer);
    done.unwrap_or_else(|_| {
        Err(SegmentError::Io(io::Error::new(io::ErrorKind::InvalidData, "the database is damaged")))
    })
}

/// The same, and an error of the disk itself is tried again first: setting a sound file aside for a loose cable would lose
/// what it holds.
pub fn guarded<T>(disk: &dyn Disk, mut run: impl FnMut() -> Result<T, SegmentError>) -> Result<T, SegmentError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match shielded(&mut run) {
            Err(error) if error.may_pass() && attempts < READ_ATTEMPTS => disk.pause(attempts),
            result => return result,
        }
    }
}
