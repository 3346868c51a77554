//! The log's parts in one place, without threads: what the threads of `threads.rs` and the simulation both drive.

use super::batch::Batch;
use super::blob::BlobFiles;
use super::committer::{Door, RESERVE_AHEAD};
use super::cursor::Cursors;
use super::disk::Disk;
use super::frame::{Control, Encoder, Link, Section};
use super::group::{Group, Numbered};
use super::journal::Journal;
use super::mutation::{Mutation, is_on};
use super::producer::{self, Kept};
use super::rebuild;
use super::schema::Table;
use super::segment::{SegmentError, Verified};
use super::stamp::Stamps;
use super::state::{self, State};
use super::state_db::StateDb;
use super::store::{Entry, Store};
use super::stream::Stream;
use super::window::Run;
use crate::metrics::{Metrics, ReasonLabel, SinkLabel, StreamLabel};
use crate::record::{Gap, GapReason, StreamName};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Sizes that follow from the data budget, all in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub budget: u64,
    pub ring: u64,
    pub segment: u64,
    pub blob_file: u64,
    /// Raw bytes in memory at which a fold begins, and at which commits wait for it.
    pub fold_at: usize,
    pub window_max: usize,
    /// Raw bytes of one group.
    pub group_max: usize,
}

impl Sizes {
    pub fn of(budget: u64) -> Sizes {
        let ring = (budget / 8).clamp(8 << 20, 64 << 20);
        Sizes {
            budget,
            ring,
            segment: (budget / 16).min(256 << 20),
            blob_file: (budget / 16).clamp(1 << 20, 64 << 20),
            fold_at: 8 << 20,
            window_max: 24 << 20,
            group_max: (ring / 4 / 4).min(4 << 20) as usize,
        }
    }
}

/// Where the journal stood after a group.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    pub group: u64,
    pub head: u64,
    pub link: Link,
}

pub struct Engine {
    pub sizes: Sizes,
    pub metrics: Arc<Metrics>,
    pub disk: Arc<dyn Disk>,
    pub gateway_id: String,
    pub incarnation: u32,
    pub stamps: Stamps,
    pub state: State,
    pub store: Store,
    pub blobs: Arc<BlobFiles>,
    pub door: Arc<Door>,
    pub streams: RwLock<BTreeMap<StreamName, Arc<Stream>>>,
    pub journal: Mutex<Journal>,
    pub encoder: Mutex<Encoder>,
    /// Groups whose frames are still needed, oldest first; the front is the last folded one.
    pub committed: Mutex<VecDeque<Committed>>,
    pub window_bytes: AtomicUsize,
    pub cursors: Cursors,
    /// What is durable of each producer.
    pub kept: Mutex<Kept>,
    forgetting: Mutex<producer::Burst>,
    pub state_db: Mutex<Option<StateDb>>,
    pub folding: Mutex<super::fold::Folding>,
    pub retaining: Mutex<super::retain::Retaining>,
    trouble: Mutex<BTreeMap<&'static str, String>>,
    /// The file system has no room: a state, not an error (promise P6).
    pub disk_full: AtomicBool,
    /// A stream was made that only the journal knows of: were its frame damaged, another would be made under the name.
    pub has_new_stream: AtomicBool,
    /// No record expires by age yet.
    pub aging_waits: AtomicBool,
    /// Commits since start, for the bench and for tests.
    pub commits: AtomicU64,
    /// Segments that a reader could not read: `heal` looks at them.
    suspects: Mutex<Vec<(Arc<Stream>, u32, String)>>,
    /// What the start found lost, by stream, and the sinks that it was counted for.
    found_lost: Vec<(u32, Gap)>,
    told_of_lost: Mutex<BTreeSet<(String, u32)>>,
    /// Where epochs come from: seeded by the kernel, or by a simulation.
    entropy: Mutex<fastrand::Rng>,
}

/// What a commit step did.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Idle,
    Committed,
    /// The ring or the window is full: fold first.
    NoRoom,
    Failed,
}

/// What the ring and the window still take.
enum Room {
    /// A frame of so many bytes.
    ForAll(usize),
    /// The same, of the log's own entries.
    ForOwn(usize),
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// One group: take, write, sync, publish, acknowledge. In this order, always.
    pub fn commit_step(&self, now_s: impl Fn() -> f64) -> Step {
        let (mut group, nothing) = match self.room() {
            Room::ForAll(bytes) => (self.door.take(bytes, &self.state), Step::Idle),
            Room::ForOwn(bytes) => (self.door.take_own(bytes, &self.state), Step::NoRoom),
        };
        if group.is_empty() {
            return nothing;
        }
        let ledger = group.own.gaps.rows(&self.state);
        group.control.extend(ledger);
        if is_on(Mutation::AcknowledgeEarly) {
            group.waiters.iter().for_each(|waiter| waiter.resolve(group.number, true));
        }
        let began = now_s();
        match self.write(&group) {
            Ok(bytes) => {
                self.metrics.commit_latency.observe(now_s() - began);
                self.metrics.journal_written.inc_by(bytes);
                let is_numbered = group.parts.iter().any(|part| !part.run.producers.is_empty());
                self.publish(&mut group);
                if is_numbered {
                    self.tell_forgotten(now_s());
                }
                self.commits.fetch_add(1, Ordering::Relaxed);
                self.metrics.commits.inc();
                self.set_trouble("commit", None);
                for waiter in &group.waiters {
                    waiter.resolve(group.number, true);
                }
                Step::Committed
            }
            Err(error) => {
                self.give_up(group, &error);
                Step::Failed
            }
        }
    }

    fn room(&self) -> Room {
        let journal = lock(&self.journal);
        let window = self.window_bytes.load(Ordering::Relaxed) < self.sizes.window_max;
        match window && journal.has_room(&[journal.frame_bytes_max(), journal.reserve()]) {
            true => Room::ForAll(journal.frame_bytes_max() as usize),
            false if journal.has_room(&[journal.reserve()]) => Room::ForOwn(journal.reserve() as usize),
            false => Room::ForOwn(0),
        }
    }

    /// Writes and syncs the group's frame.
    fn write(&self, group: &Group) -> io::Result<u64> {
        let mut order: Vec<&Numbered> = group.parts.iter().collect();
        // Stable: runs of a shard stay in the order of their numbers.
        order.sort_by_key(|part| (part.stream.id, part.shard.index));
        let runs: Vec<Run> = order.iter().map(|part| part.run.clone()).collect();
        let mut sections = Vec::new();
        let mut from = 0;
        while from < order.len() {
            let of = (order[from].stream.id, order[from].shard.index);
            let same = order[from..].iter().take_while(|part| (part.stream.id, part.shard.index) == of).count();
            sections.push(Section { stream: of.0, shard: of.1, runs: &runs[from..from + same] });
            from += same;
        }
        let mut encoder = lock(&self.encoder);
        let mut frame = encoder.frame(&sections, &group.control);
        let written = lock(&self.journal).append(group.number, &mut frame)?;
        encoder.shrink();
        Ok(written)
    }

    /// The group is on disk: readers may see it.
    fn publish(&self, group: &mut Group) {
        let committed = {
            let journal = lock(&self.journal);
            Committed { group: group.number, head: journal.head(), link: journal.prev() }
        };
        if group.parts.iter().any(|part| !part.run.producers.is_empty()) {
            let mut kept = lock(&self.kept);
            let producers = group.parts.iter().flat_map(|part| part.run.producers.iter());
            producers.for_each(|producer| kept.note(producer));
        }
        for part in group.parts.drain(..) {
            let label = StreamLabel { stream: part.stream.name.to_string() };
            self.metrics.records_in.get_or_create(&label).inc_by(u64::from(part.run.count));
            self.metrics.payload_in.get_or_create(&label).inc_by(part.payload);
            let taken = part.shard.publish(part.run);
            self.window_bytes.fetch_add(taken, Ordering::Relaxed);
        }
        self.metrics.window_size.set(self.window_bytes.load(Ordering::Relaxed) as i64);
        self.note_reserves(&group.control);
        self.state.apply(group.number, std::mem::take(&mut group.control));
        if !group.own.gaps.is_empty() {
            self.door.ledger_is_written();
        }
        lock(&self.committed).push_back(committed);
    }

    /// Producers that had to make room for others: what one of them sends again would be stored again (promise P3).
    fn tell_forgotten(&self, now_s: f64) {
        let (held, marks) = self.door.marks();
        let numbers = lock(&self.kept).take_evicted();
        self.metrics.producer_marks.set(held as i64);
        self.metrics.producer_marks_forgotten.inc_by(marks);
        self.metrics.producer_numbers_forgotten.inc_by(numbers);
        if marks > 0
            && let Some(marks) = lock(&self.forgetting).note(marks, now_s)
        {
            tracing::warn!(
                marks,
                remembered = producer::PRODUCERS_MAX,
                "the numbers of producers that were silent longest are forgotten: what they send again would be stored again"
            );
        }
    }

    fn note_reserves(&self, control: &[Control]) {
        for (table, key, value) in control {
            if *table == Table::Shards
                && let Some(value) = value
                && let Some((stream, shard, b'r', up_to)) = state::mark_from_row(key, value)
                && let Some(shard) = self.stream_by_id(stream).and_then(|stream| stream.shard(shard))
            {
                self.door.reserved(stream, &shard, up_to);
            }
        }
    }

    /// The group, and all that came behind it, is not on disk and is answered so; its numbers go into the ledger.
    fn give_up(&self, group: Group, error: &io::Error) {
        let says = format!("writing the journal failed: {error}");
        tracing::error!(error = %error, "a group could not be committed; nothing of it was acknowledged");
        self.metrics.commit_errors.inc();
        self.set_trouble("commit", Some(says.clone()));
        let behind = self.door.failed(&group, &says);
        {
            let mut journal = lock(&self.journal);
            journal.give_up(lock(&self.entropy).u64(..));
            if let Some(last) = lock(&self.committed).back_mut() {
                last.head = journal.head();
            }
        }
        for part in group.parts.iter().chain(&behind.parts).filter(|_| !is_on(Mutation::ForgetLostNumbers)) {
            let gap = Gap::of(part.shard.index, part.run.first, part.run.last(), GapReason::Unused);
            self.door.put_gap(part.stream.id, &gap, &self.state);
        }
        self.cursors.mark_all_unsaved();
    }

    pub fn stream_by_id(&self, id: u32) -> Option<Arc<Stream>> {
        let streams = self.streams.read().unwrap_or_else(PoisonError::into_inner);
        streams.values().find(|stream| stream.id == id).cloned()
    }

    pub fn all_streams(&self) -> Vec<Arc<Stream>> {
        self.streams.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Something is wrong that people should know of, or is not any more.
    pub fn set_trouble(&self, part: &'static str, what: Option<String>) {
        let mut trouble = lock(&self.trouble);
        match what {
            Some(what) => _ = trouble.insert(part, what),
            None => _ = trouble.remove(part),
        }
    }

    pub fn set_disk_full(&self, full: bool) {
        if self.disk_full.swap(full, Ordering::Relaxed) != full {
            let says = "the file system is full: free some space, or lower max_bytes in [data]";
            self.set_trouble("disk", full.then(|| says.to_owned()));
            match full {
                true => tracing::error!("{says}"),
                false => tracing::info!("the file system has room again"),
            }
        }
    }

    pub fn trouble(&self) -> Option<String> {
        let trouble = lock(&self.trouble);
        (!trouble.is_empty()).then(|| trouble.values().cloned().collect::<Vec<_>>().join("; "))
    }

    /// Puts what the ledger does not know of a gap into it, with the next commit.
    pub fn note_gap(&self, stream: &Stream, gap: &Gap) {
        let news = self.door.put_gap(stream.id, gap, &self.state);
        if news.is_empty() {
            return;
        }
        for part in &news {
            self.count_gap(stream, part);
        }
        if gap.reason == GapReason::Corrupt {
            tracing::warn!(stream = %stream.name, shard = gap.shard, from = gap.from, to = gap.to, "records are damaged and lost; they are in the gap ledger");
        }
    }

    /// Counts a gap that was not known, and what of it is a loss to a sink.
    pub fn count_gap(&self, stream: &Stream, gap: &Gap) {
        // Numbers that nobody was given.
        if gap.reason == GapReason::Unused {
            return;
        }
        let label = ReasonLabel { part: "log", reason: gap.reason.as_str() };
        self.metrics.gap_records.get_or_create(&label).inc_by(gap.count());
        // What a sink refused is still here, and counted as refused.
        if gap.reason == GapReason::Rejected {
            return;
        }
        for (sink, lost) in self.cursors.lost(&stream.name, gap.shard, gap.from, gap.to) {
            let label = SinkLabel { sink, stream: stream.name.to_string() };
            self.metrics.sink_lost.get_or_create(&label).inc_by(lost);
        }
    }

    /// Counts for a sink what the start found lost of a stream, once: sinks are not known before.
    pub fn count_found_lost(&self, sink: &str, stream: &Stream) {
        if !lock(&self.told_of_lost).insert((sink.to_owned(), stream.id)) {
            return;
        }
        let label = SinkLabel { sink: sink.to_owned(), stream: stream.name.to_string() };
        // There from the beginning: a first loss is a rise from zero, which an alert can see.
        let counter = self.metrics.sink_lost.get_or_create(&label);
        for (_, gap) in self.found_lost.iter().filter(|(of, _)| *of == stream.id) {
            let lost = self.cursors.lost(&stream.name, gap.shard, gap.from, gap.to).into_iter();
            counter.inc_by(lost.filter(|(of, _)| of == sink).map(|(_, lost)| lost).sum());
        }
    }

    /// A segment gave an error: it is looked at off the reader's way.
    pub fn suspect(&self, stream: &Arc<Stream>, segment: u32, error: &SegmentError) {
        let mut suspects = lock(&self.suspects);
        if !suspects.iter().any(|(of, id, _)| of.id == stream.id && *id == segment) {
            suspects.push((stream.clone(), segment, error.to_string()));
        }
    }

    /// Salvages the segments that gave errors. An error that was the disk's own and passed leaves them as they are.
    pub fn heal_step(&self) {
        for (stream, id, why) in std::mem::take(&mut *lock(&self.suspects)) {
            let Some(entry) = self.store.entries(stream.id).into_iter().find(|entry| entry.id == id) else { continue };
            if let Err(error) = self.store.place_left(stream.id, id) {
                tracing::warn!(stream = %stream.name, segment = id, %error, "what was saved of a segment is not in its place");
            }
            let again = super::recover::guarded(&*self.disk, || {
                self.store.close(stream.id, id);
                self.store.open(stream.id, id, false)?.verify()
            });
            // A tree that is damaged may simply not show what is there.
            let whole = again.is_ok_and(|verified| self.holds_what_it_says(&stream, &entry, &verified));
            if whole {
                continue;
            }
            let why = SegmentError::Io(io::Error::other(why));
            match self.salvage(&stream, &entry, &why) {
                Ok(says) => tracing::error!("{says}"),
                Err(error) => {
                    tracing::error!(stream = %stream.name, segment = id, %error, "a damaged segment could not be salvaged")
                }
            }
        }
    }

    fn holds_what_it_says(&self, stream: &Stream, entry: &Entry, verified: &Verified) -> bool {
        let oldest = |shard| stream.shard(shard).map_or(0, |shard| shard.oldest());
        let missing = rebuild::missing_of(&entry.extent, verified.good.iter(), oldest);
        missing.iter().all(|gap| {
            let damaged = |at: &(u32, u64)| at.0 == gap.shard && (gap.from..=gap.to).contains(&at.1);
            verified.damaged.iter().any(damaged)
                || self.state.unexplained(stream.id, gap.shard, gap.from, gap.to).is_empty()
        })
    }

    /// Records that can be read, over all shards.
    pub fn record_count(&self, stream: &Stream) -> u64 {
        let of = |shard: &Arc<super::shard::Shard>| {
            self.state.records(stream.id, shard.index, shard.oldest(), shard.newest())
        };
        stream.shards().iter().map(of).sum()
    }

    /// Entries that give a new stream's shards their first numbers.
    pub fn first_reserves(stream: &Stream) -> Vec<Control> {
        let shards = stream.shards();
        shards
            .iter()
            .map(|shard| state::reserve_entry(stream.id, shard.index, shard.assigned() + RESERVE_AHEAD))
            .collect()
    }

    /// A batch of state changes, for a caller that waits for its commit.
    pub fn control_batch(entries: impl IntoIterator<Item = Control>) -> Batch {
        let mut batch = Batch::new();
        for (table, key, value) in entries {
            batch.put_state(table, key, value);
        }
        batch
    }
}

/// Everything a recovered engine is made of.
pub struct Parts {
    pub sizes: Sizes,
    pub metrics: Arc<Metrics>,
    pub disk: Arc<dyn Disk>,
    pub gateway_id: String,
    pub incarnation: u32,
    pub stamps: Stamps,
    pub state: State,
    pub store: Store,
    pub blobs: Arc<BlobFiles>,
    pub door: Arc<Door>,
    pub streams: BTreeMap<StreamName, Arc<Stream>>,
    pub journal: Journal,
    /// The last frame that is folded, and the last there is.
    pub committed: Committed,
    pub last: Committed,
    pub cursors: Cursors,
    pub kept: Kept,
    pub state_db: Option<StateDb>,
    pub window_bytes: usize,
    pub found_lost: Vec<(u32, Gap)>,
    pub entropy: fastrand::Rng,
}

impl Engine {
    pub fn new(parts: Parts) -> io::Result<Engine> {
        Ok(Engine {
            sizes: parts.sizes,
            metrics: parts.metrics,
            disk: parts.disk,
            gateway_id: parts.gateway_id,
            incarnation: parts.incarnation,
            stamps: parts.stamps,
            state: parts.state,
            store: parts.store,
            blobs: parts.blobs,
            door: parts.door,
            streams: RwLock::new(parts.streams),
            journal: Mutex::new(parts.journal),
            encoder: Mutex::new(Encoder::new()?),
            committed: Mutex::new(VecDeque::from([parts.committed, parts.last])),
            window_bytes: AtomicUsize::new(parts.window_bytes),
            cursors: parts.cursors,
            kept: Mutex::new(parts.kept),
            forgetting: Mutex::default(),
            state_db: Mutex::new(parts.state_db),
            folding: Mutex::default(),
            retaining: Mutex::default(),
            trouble: Mutex::default(),
            disk_full: AtomicBool::new(false),
            has_new_stream: AtomicBool::new(false),
            aging_waits: AtomicBool::new(false),
            commits: AtomicU64::new(0),
            suspects: Mutex::default(),
            found_lost: parts.found_lost,
            told_of_lost: Mutex::default(),
            entropy: Mutex::new(parts.entropy),
        })
    }
}
