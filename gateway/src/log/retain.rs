//! Retention: what goes, in which order, and how it is told.
//!
//! Whole segments go, oldest first. The trim marks and the gap ledger's rows are durable before a file is unlinked (crash
//! rule 4). Precedence when space is short: a required sink holds age retention; at a byte limit `on_full` decides.

use super::engine::{Engine, lock};
use super::frame::Control;
use super::mutation::{Mutation, is_on};
use super::schema::Table;
use super::state;
use super::store::Entry;
use super::stream::{OnFull, Stream, StreamKind};
use crate::clock::Now;
use crate::record::{Gap, GapReason};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A wall clock that moves by this much against the monotonic one has jumped.
const JUMP_MS: u64 = 3_600_000;
/// How long after a jump age retention is held back, and how often it then lets one segment of a stream go.
const AFTER_JUMP_MS: u64 = 24 * 3_600_000;
const AFTER_JUMP_PAUSE_MS: u64 = 3_600_000;
/// Bytes of the budget kept free for the next fold and for control entries.
const SLACK: u64 = 12 << 20;
/// So much before the budget is full video begins to give way: a stream that rejects must not see a full disk because cameras
/// have filled it and their oldest is still on its way out.
const VIDEO_SLACK: u64 = 2 * SLACK;
/// What video streams may hold of the budget, in percent, before records have to give way to make room.
const VIDEO_PERCENT_MAX: u64 = 75;

#[derive(Default)]
pub struct Retaining {
    /// Segments whose trim is on its way to the journal.
    dropping: Vec<Dropping>,
    clock: Option<Now>,
    jumped_mono_ms: Option<u64>,
    last_expiry_mono_ms: u64,
}

struct Dropping {
    stream: Arc<Stream>,
    segment: u32,
    entries: Vec<Control>,
    /// What the ledger did not explain yet.
    gaps: Vec<Gap>,
    ticket: super::Ticket,
}

/// A segment as the plan sees it.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub id: u32,
    /// Of its file and of the large values its records refer to.
    pub bytes: u64,
    pub newest_wall_ms: u64,
    /// A required sink has not delivered all of it.
    pub held: bool,
}

/// What a stream allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub retention_ms: u64,
    pub bytes: u64,
    pub on_full: OnFull,
}

/// Pure: which segments of one stream go now and why. `segments` are oldest first; `wall_ms` is `None` while the wall
/// clock cannot be trusted or age retention is paused.
pub fn plan(segments: &[Candidate], limits: &Limits, wall_ms: Option<u64>) -> Vec<(u32, GapReason)> {
    let mut gone = Vec::new();
    let mut total: u64 = segments.iter().map(|segment| segment.bytes).sum();
    for segment in segments {
        let expired = wall_ms.is_some_and(|now| segment.newest_wall_ms.saturating_add(limits.retention_ms) < now);
        let reason = if expired && !segment.held {
            GapReason::Expired
        } else if total > limits.bytes && limits.on_full == OnFull::DropOldest {
            GapReason::Evicted
        } else {
            break;
        };
        total -= segment.bytes;
        gone.push((segment.id, reason));
    }
    gone
}

impl Engine {
    /// Finishes what is durable, then plans anew. Called every second and before a fold.
    pub fn retain_step(&self) {
        let mut retaining = lock(&self.retaining);
        self.finish(&mut retaining);
        let now = self.stamps.clock().now();
        let wall = retaining.age_now(&now).filter(|_| !self.aging_waits.load(Ordering::Relaxed));
        let mut expired = false;
        for stream in self.all_streams() {
            let segments = self.candidates(&stream, &retaining);
            let limits = self.limits(&stream);
            for (id, reason) in plan(&segments, &limits, wall) {
                expired |= reason == GapReason::Expired;
                self.begin_drop(&mut retaining, &stream, id, reason);
                if reason == GapReason::Expired && retaining.jumped_mono_ms.is_some() {
                    break;
                }
            }
        }
        if expired {
            retaining.last_expiry_mono_ms = now.mono_ms;
        }
        self.tell_who_is_full(&retaining);
        self.keep_the_budget(&mut retaining);
        if let Some((boot, anchor)) = self.stamps.anchor() {
            self.door.put_state([(Table::Boots, boot.to_be_bytes().to_vec().into(), Some(anchor.to_bytes()))]);
        }
    }

    fn candidates(&self, stream: &Stream, retaining: &Retaining) -> Vec<Candidate> {
        let held = |entry: &Entry| {
            entry.extent.shards.iter().any(|(shard, extent)| {
                self.cursors.held_by_required(&stream.name, *shard).is_some_and(|next| next <= extent.last)
            })
        };
        self.store
            .entries(stream.id)
            .iter()
            .filter(|entry| !retaining.is_dropping(stream.id, entry.id))
            .map(|entry| Candidate {
                id: entry.id,
                bytes: entry.file_bytes + entry.extent.blob_bytes,
                newest_wall_ms: self.stamps.wall_ms(entry.extent.newest_stamp()),
                held: held(entry),
            })
            .collect()
    }

    fn limits(&self, stream: &Stream) -> Limits {
        let settings = stream.settings();
        // Values that go with no segment: their records are not folded yet, or share a file with others.
        let with_segments: u64 = self.store.entries(stream.id).iter().map(|entry| entry.extent.blob_bytes).sum();
        let blobs = self.blobs.bytes(stream.id).saturating_sub(with_segments);
        let bytes = settings.max_bytes.map_or(u64::MAX, |max| max.0.saturating_sub(blobs));
        Limits { retention_ms: settings.retention.as_ms(), bytes, on_full: settings.on_full }
    }

    /// A stream that rejects is full at its own limit, or at the box's. What cameras hold counts as room there, also while it is
    /// on its way out: they have filled the box, and they give way.
    fn tell_who_is_full(&self, retaining: &Retaining) {
        let streams = self.all_streams();
        let rejects = |stream: &Stream| stream.settings().on_full == OnFull::Reject;
        if !streams.iter().any(|stream| rejects(stream)) {
            return streams.iter().for_each(|stream| stream.full.store(false, Ordering::Relaxed));
        }
        let gives = |stream: &&Arc<Stream>| !rejects(stream) && stream.settings().kind == StreamKind::Video;
        let candidates = streams.iter().filter(gives).flat_map(|stream| self.candidates(stream, retaining));
        let room: u64 = candidates.map(|segment| segment.bytes).sum::<u64>() + retaining.bytes_going(self);
        let is_short = self.bytes_used().saturating_sub(room) + SLACK > self.sizes.budget;
        let is_full = is_short || self.disk_full.load(Ordering::Relaxed);
        for stream in &streams {
            let own = self.store.bytes(stream.id) + self.blobs.bytes(stream.id);
            let own = stream.settings().max_bytes.is_some_and(|max| own >= max.0);
            stream.full.store((is_full || own) && rejects(stream), Ordering::Relaxed);
        }
    }

    /// Bytes of the budget in use.
    pub fn bytes_used(&self) -> u64 {
        let blobs: u64 = self.all_streams().iter().map(|stream| self.blobs.bytes(stream.id)).sum();
        let state = lock(&self.state_db).as_ref().map_or(0, super::state_db::StateDb::file_bytes);
        lock(&self.journal).capacity() + self.store.total_bytes() + state + blobs
    }

    /// The box's own limit: the largest stream that may drop gives its oldest segment. Video gives first, as long as it
    /// holds more than its share: cameras make in a minute what sensors make in a month.
    fn keep_the_budget(&self, retaining: &mut Retaining) {
        let mut used = self.bytes_used().saturating_sub(retaining.bytes_going(self));
        let mut must = self.disk_full.load(Ordering::Relaxed) && retaining.dropping.is_empty();
        while must || used + VIDEO_SLACK > self.sizes.budget {
            let is_short = must || used + SLACK > self.sizes.budget;
            must = false;
            let Some(stream) = self.gives_way(retaining) else { return };
            if !is_short && stream.settings().kind != StreamKind::Video {
                return;
            }
            let Some(oldest) = self.candidates(&stream, retaining).into_iter().next() else { return };
            self.begin_drop(retaining, &stream, oldest.id, GapReason::Evicted);
            used = used.saturating_sub(oldest.bytes);
        }
    }

    fn gives_way(&self, retaining: &Retaining) -> Option<Arc<Stream>> {
        let mut droppable: Vec<_> = self
            .all_streams()
            .into_iter()
            .filter(|stream| stream.settings().on_full == OnFull::DropOldest)
            .map(|stream| {
                (self.candidates(&stream, retaining).iter().map(|segment| segment.bytes).sum::<u64>(), stream)
            })
            .filter(|(bytes, _)| *bytes > 0)
            .collect();
        let is_video = |stream: &Stream| stream.settings().kind == StreamKind::Video;
        let video: u64 = droppable.iter().filter(|(_, stream)| is_video(stream)).map(|(bytes, _)| bytes).sum();
        if video > self.sizes.budget / 100 * VIDEO_PERCENT_MAX {
            droppable.retain(|(_, stream)| is_video(stream));
        }
        droppable.into_iter().max_by_key(|(bytes, _)| *bytes).map(|(_, stream)| stream)
    }

    /// Sends trim marks, ledger rows and the end of the segment's row to the journal; the file goes when they are durable.
    fn begin_drop(&self, retaining: &mut Retaining, stream: &Arc<Stream>, id: u32, reason: GapReason) {
        let Some(entry) = self.store.entries(stream.id).into_iter().find(|entry| entry.id == id) else { return };
        // What this promises to drop is what the segment holds now: a fold must not add to it.
        self.store.seal(stream.id, id);
        let mut entries = vec![(Table::Segments, state::shard_key(stream.id, id), None)];
        let mut gaps = Vec::new();
        for (index, extent) in &entry.extent.shards {
            let Some(shard) = stream.shard(*index) else { continue };
            let from = shard.oldest().max(extent.first);
            if from > extent.last {
                continue;
            }
            // A jump of numbers or damage within it was told before, and is no loss of now.
            let news = self.state.unexplained(stream.id, *index, from, extent.last);
            gaps.extend(news.into_iter().map(|(from, to)| Gap {
                from_ms: self.stamps.wall_ms(extent.first_stamp),
                to_ms: self.stamps.wall_ms(extent.last_stamp),
                ..Gap::of(*index, from, to, reason)
            }));
            entries.push(state::trim_entry(stream.id, *index, extent.last + 1));
            entries.extend(self.state.end_refused_below(stream.id, *index, extent.last + 1));
        }
        let stream = stream.clone();
        let mut dropping = Dropping { stream, segment: id, entries, gaps, ticket: super::Ticket::NONE };
        self.send(&mut dropping);
        if is_on(Mutation::UnlinkBeforeLedger) {
            self.trim(&dropping);
        }
        retaining.dropping.push(dropping);
    }

    /// In one group: a ledger row that is durable before its trim mark calls records lost that a start still serves.
    fn send(&self, drop: &mut Dropping) {
        drop.ticket = self.door.put_gaps_and_state(drop.stream.id, &drop.gaps, &drop.entries);
    }

    /// Unlinks what is durably trimmed.
    fn finish(&self, retaining: &mut Retaining) {
        let committed = lock(&self.committed).back().map_or(0, |last| last.group);
        let mut kept = Vec::new();
        for mut drop in std::mem::take(&mut retaining.dropping) {
            let row = state::shard_key(drop.stream.id, drop.segment);
            if self.state.get(Table::Segments, &row).is_none() {
                self.trim(&drop);
            } else {
                if committed >= drop.ticket.0 {
                    // That commit failed: once more.
                    self.send(&mut drop);
                }
                kept.push(drop);
            }
        }
        retaining.dropping = kept;
    }

    fn trim(&self, drop: &Dropping) {
        for (table, key, value) in &drop.entries {
            if *table == Table::Shards
                && let Some(value) = value
                && let Some((_, shard, b't', oldest)) = state::mark_from_row(key, value)
                && let Some(shard) = drop.stream.shard(shard)
            {
                shard.trim_to(oldest);
            }
        }
        drop.gaps.iter().for_each(|gap| self.count_gap(&drop.stream, gap));
        if let Err(error) = self.store.remove(drop.stream.id, drop.segment) {
            // The row is gone, so the next start removes the file.
            tracing::warn!(stream = %drop.stream.name, segment = drop.segment, %error, "a trimmed segment could not be unlinked");
        }
        self.free_blobs(&drop.stream);
        let size = self.store.bytes(drop.stream.id) + self.blobs.bytes(drop.stream.id);
        drop.stream.size.store(size, Ordering::Relaxed);
    }

    /// Blob files that only trimmed records refer to. Their rows go first; a crash between leaves a file for the next start.
    fn free_blobs(&self, stream: &Stream) {
        let unneeded =
            self.blobs.unneeded(stream.id, |shard| stream.shard(shard).map_or(u64::MAX, |shard| shard.oldest()));
        for file in unneeded {
            self.door.put_state([(Table::Blobs, state::shard_key(stream.id, file), None)]);
            if let Err(error) = self.blobs.remove(stream.id, file) {
                tracing::warn!(stream = %stream.name, file, %error, "a trimmed blob file could not be unlinked");
            }
        }
    }

    /// Saves cursors that have moved; those saved before count once their group is durable.
    pub fn save_cursors(&self, saving: &mut Option<super::Ticket>) {
        if let Some(ticket) = saving {
            let committed = lock(&self.committed).back().map_or(0, |last| last.group);
            if committed < self.door.durable_with(*ticket).0 {
                return;
            }
            self.cursors.saved();
            *saving = None;
        }
        let entries = self.cursors.save();
        if !entries.is_empty() {
            *saving = Some(self.door.put_state(entries));
        }
    }
}

impl Retaining {
    fn is_dropping(&self, stream: u32, segment: u32) -> bool {
        self.dropping.iter().any(|drop| drop.stream.id == stream && drop.segment == segment)
    }

    fn bytes_going(&self, engine: &Engine) -> u64 {
        let bytes = |drop: &Dropping| {
            let entries = engine.store.entries(drop.stream.id);
            entries
                .iter()
                .find(|entry| entry.id == drop.segment)
                .map_or(0, |entry| entry.file_bytes + entry.extent.blob_bytes)
        };
        self.dropping.iter().map(bytes).sum()
    }

    /// The wall time to judge age by; `None` while it cannot be trusted, or just after it jumped.
    fn age_now(&mut self, now: &Now) -> Option<u64> {
        if let Some(before) = self.clock {
            let expected = before.wall_ms + (now.mono_ms - before.mono_ms);
            if before.trusted && expected.abs_diff(now.wall_ms) > JUMP_MS {
                tracing::warn!(
                    by_s = now.wall_ms as i64 / 1000 - expected as i64 / 1000,
                    "the wall clock jumped; age retention is slowed for a day"
                );
                self.jumped_mono_ms = Some(now.mono_ms);
            }
        }
        self.clock = Some(*now);
        if self.jumped_mono_ms.is_some_and(|at| now.mono_ms - at > AFTER_JUMP_MS) {
            self.jumped_mono_ms = None;
        }
        let paused =
            self.jumped_mono_ms.is_some_and(|at| now.mono_ms - at.max(self.last_expiry_mono_ms) < AFTER_JUMP_PAUSE_MS);
        (now.trusted && !paused).then_some(now.wall_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(id: u32, bytes: u64, newest_wall_ms: u64) -> Candidate {
        Candidate { id, bytes, newest_wall_ms, held: false }
    }

    const LIMITS: Limits = Limits { retention_ms: 100, bytes: 50, on_full: OnFull::DropOldest };

    #[test]
    fn age_goes_before_bytes_and_oldest_first() {
        let segments = [segment(1, 20, 10), segment(2, 30, 500), segment(3, 30, 900)];
        let gone = plan(&segments, &LIMITS, Some(600));
        assert_eq!(gone, [(1, GapReason::Expired), (2, GapReason::Evicted)]);
    }

    #[test]
    fn a_required_sink_holds_age_retention_but_not_the_byte_limit() {
        let mut segments = [segment(1, 20, 10), segment(2, 20, 10)];
        segments[0].held = true;
        assert_eq!(plan(&segments, &LIMITS, Some(600)), []);
        segments[0].bytes = 40;
        assert_eq!(plan(&segments, &LIMITS, Some(600))[0], (1, GapReason::Evicted));
    }

    #[test]
    fn reject_drops_nothing_for_bytes_and_no_trusted_time_drops_nothing_for_age() {
        let segments = [segment(1, 80, 10), segment(2, 80, 10)];
        let limits = Limits { on_full: OnFull::Reject, ..LIMITS };
        assert_eq!(plan(&segments, &limits, None), []);
    }
}
