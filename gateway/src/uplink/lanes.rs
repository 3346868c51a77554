//! One local shard on its way out: its records in lanes by key, at most one group of each in flight, order kept. Pure.
//!
//! ```text
//! reader -> push -> lane by the key's hash -> track (lane x upstream shard) -> take: a group -> sink
//!                                                ^---- failed: back to the front, waits ----+
//!                                                      stored: progress -> cursor <---------+
//! ```
//! Laws: records of one key are in one lane, and in one track as long as the upstream's map stands; a track has one group in
//! flight or none and always sends its oldest record first; when the map changes, a lane sends nothing before the groups
//! it has in flight under the old map have come back. So the first occurrences of a key's records are in order upstream,
//! whatever fails: promise P2. A failed group holds its track alone.

use super::map::ShardMap;
use super::progress::Progress;
use super::sink::{Group, GroupId, Kind, Limits, Outgoing, weight};
use crate::log::CursorState;
use crate::record::{HashKey, Number, Record, ShardIndex};
use crate::wire::blocks::lane_of;
use bytes::{Bytes, BytesMut};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// Lanes of one shard. Part of the producer ids between gateways.
pub const LANES: u16 = 64;
/// Version of how records are divided among lanes: the epoch of producer numbers between gateways.
pub const FORMAT: u32 = 1;
/// The lane of gap records, behind those of the keys.
pub const GAP_LANE: u16 = LANES;
/// Memory a record costs beside its bytes.
const RECORD_OVERHEAD: usize = 256;
/// How far a group of distinct keys looks ahead in its track, in records.
const DISTINCT_LOOK_AHEAD: usize = 256;
/// A suspect track is trusted again once a group of so many records went through.
const TRUSTED_AGAIN: usize = 512;
/// Failures in a row after which a track's records are copied out of the blocks they were read from.
const DETACH_AFTER: u32 = 2;
/// Failures in a row after which a track counts as stuck.
const STUCK_AFTER: u32 = 3;

#[derive(Debug)]
pub struct Lanes {
    pub shard: ShardIndex,
    range: (HashKey, HashKey),
    map: Arc<ShardMap>,
    tracks: Vec<Track>,
    /// Tracks that can be used again.
    free: Vec<usize>,
    lanes: Vec<Lane>,
    /// Tracks that may send, longest waiting first.
    ready: VecDeque<usize>,
    waiting: usize,
    progress: Progress,
    held_records: usize,
    held_bytes: usize,
    /// A range that is being told of: acknowledged once all its gap records are stored.
    gap: Option<PendingGap>,
}

#[derive(Debug)]
struct PendingGap {
    to: Number,
    left: usize,
}

#[derive(Debug, Default)]
struct Lane {
    /// (upstream shard, track): usually one.
    tracks: Vec<(usize, usize)>,
    /// Groups in flight that left under an older map.
    from_old_map: usize,
}

#[derive(Debug, Default)]
struct Track {
    lane: u16,
    upstream: usize,
    queue: VecDeque<Outgoing>,
    state: State,
    /// Stands in `ready`.
    queued: bool,
    /// Its map is gone: it only waits for its group to come back.
    retired: bool,
    failures: u32,
    /// Landings in a shard where records of the group do not belong, in a row.
    landings: u32,
    /// Most records of a group while the destination refuses what the track sends; it is then sent alone.
    suspect: Option<usize>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    InFlight(Arc<Vec<Outgoing>>),
    Waiting {
        until_ms: u64,
    },
}

/// What became of a group.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    Stored,
    /// Stored where the flag is true. What is left waits so long.
    Partly(&'a [bool], u64),
    /// The same, but something of what is left was refused for good.
    PartlyRefused(&'a [bool]),
    /// Not stored; waits so long.
    Failed(u64),
    /// Refused for good, as a whole.
    Refused,
}

/// What a verdict did.
#[derive(Debug, Default)]
pub struct Finished {
    pub records: u64,
    /// Payload of the records alone.
    pub payload_bytes: u64,
    /// One record that the destination refuses for good. Its track is held until [`Lanes::replace`].
    pub dead: Option<Outgoing>,
}

/// What a request holds already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fill {
    pub entries: usize,
    pub bytes: usize,
    /// A group is in it that goes alone: a suspect one, or a record that fits no request of many.
    pub closed: bool,
}

impl Lanes {
    pub fn new(shard: ShardIndex, range: (HashKey, HashKey), cursor: &CursorState, map: Arc<ShardMap>) -> Self {
        Lanes {
            shard,
            range,
            map,
            tracks: Vec::new(),
            free: Vec::new(),
            lanes: (0..=GAP_LANE).map(|_| Lane::default()).collect(),
            ready: VecDeque::new(),
            waiting: 0,
            progress: Progress::new(cursor),
            held_records: 0,
            held_bytes: 0,
            gap: None,
        }
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Memory of the records in hand, in flight or not.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Records in hand, in flight or not, and what they weigh.
    pub fn held(&self) -> (u64, u64) {
        (self.held_records as u64, (self.held_bytes - self.held_records * RECORD_OVERHEAD) as u64)
    }

    /// Nothing in hand: all that was pushed is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.held_records == 0
    }

    /// Nothing may follow before the gap is told.
    pub fn is_telling_a_gap(&self) -> bool {
        self.gap.is_some()
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Failures in a row of the track a group came from.
    pub fn failures(&self, id: GroupId) -> u32 {
        self.tracks.get(id.track).map_or(0, |track| track.failures)
    }

    /// A group's records landed in a shard where some of them do not belong: how often in a row, now. Unlike
    /// [`Lanes::failures`] it knows nothing of throttling.
    pub fn landed_astray(&mut self, id: GroupId) -> u32 {
        self.tracks.get_mut(id.track).map_or(0, |track| {
            track.landings = track.landings.saturating_add(1);
            track.landings
        })
    }

    /// Arrival of the oldest record in hand.
    pub fn oldest_arrival_ms(&self) -> Option<u64> {
        let oldest = |track: &Track| {
            let flying = match &track.state {
                State::InFlight(records) => records.first(),
                _ => None,
            };
            flying.into_iter().chain(track.queue.front()).map(|out| out.record.arrival_ms).min()
        };
        self.tracks.iter().filter_map(oldest).min()
    }

    // In.

    /// Takes a record from the reader; one that was acknowledged before a restart is skipped.
    pub fn push(&mut self, kind: Kind, record: Record) {
        debug_assert!(self.gap.is_none(), "law: nothing passes a gap that is being told of");
        if !self.progress.note_read(record.number, weight(&record)) {
            return;
        }
        self.hold(&record);
        let hash = HashKey::of(&record.key);
        let point = record.explicit_hash.unwrap_or(hash);
        self.enqueue(lane_of(hash, self.range, LANES), point, Outgoing { kind, record });
    }

    /// Takes the records that tell of a lost range up to `to`; none: the range is acknowledged in silence. Only when
    /// [`Lanes::is_empty`], so that the gap stands in order.
    pub fn push_gap(&mut self, to: Number, told_by: Vec<Record>) {
        debug_assert!(self.is_empty() && self.gap.is_none(), "law: a gap waits for what was before it");
        if told_by.is_empty() {
            self.progress.raise(to);
            return;
        }
        self.gap = Some(PendingGap { to, left: told_by.len() });
        for record in told_by {
            self.hold(&record);
            self.enqueue(GAP_LANE, record.hash(), Outgoing { kind: Kind::Gap, record });
        }
    }

    /// Everything up to `to` was stored by another way. Only when [`Lanes::is_empty`].
    pub fn pass(&mut self, to: Number) {
        debug_assert!(self.is_empty() && self.gap.is_none(), "law: what is in a lane goes before what is not");
        self.progress.raise(to);
    }

    /// The same for single numbers.
    pub fn pass_some(&mut self, numbers: impl Iterator<Item = Number>) {
        debug_assert!(self.is_empty() && self.gap.is_none(), "law: what is in a lane goes before what is not");
        numbers.for_each(|number| self.progress.acknowledge(number));
    }

    /// What is in hand will not be gone soon: a track has failed again and again, or is doubted.
    pub fn is_stuck(&self) -> bool {
        let is_stuck = |track: &Track| track.failures >= STUCK_AFTER || track.suspect.is_some();
        !self.is_empty() && self.tracks.iter().any(is_stuck)
    }

    fn hold(&mut self, record: &Record) {
        self.held_records += 1;
        self.held_bytes += weight(record) + RECORD_OVERHEAD;
    }

    fn enqueue(&mut self, lane: u16, point: HashKey, out: Outgoing) {
        let upstream = self.map.index_of(point);
        let found = self.lanes[usize::from(lane)].tracks.iter().find(|(shard, _)| *shard == upstream);
        let at = match found {
            Some(&(_, track)) => track,
            None => self.open_track(lane, upstream),
        };
        let track = &mut self.tracks[at];
        let out = if track.failures >= DETACH_AFTER { detached(out) } else { out };
        track.queue.push_back(out);
        self.make_ready(at);
    }

    fn open_track(&mut self, lane: u16, upstream: usize) -> usize {
        let track = Track { lane, upstream, ..Track::default() };
        let at = match self.free.pop() {
            Some(at) => {
                self.tracks[at] = track;
                at
            }
            None => {
                self.tracks.push(track);
                self.tracks.len() - 1
            }
        };
        self.lanes[usize::from(lane)].tracks.push((upstream, at));
        at
    }

    fn make_ready(&mut self, at: usize) {
        let track = &mut self.tracks[at];
        let may_send = matches!(track.state, State::Idle) && !track.queued && !track.retired;
        if may_send && !track.queue.is_empty() && self.lanes[usize::from(track.lane)].from_old_map == 0 {
            track.queued = true;
            self.ready.push_back(at);
        }
    }

    // Out.

    /// The next group that fits into a request that holds `fill` already.
    pub fn take(&mut self, limits: &Limits, fill: &mut Fill) -> Option<Group> {
        let at = *self.ready.front()?;
        let track = &mut self.tracks[at];
        let is_large = track.queue.front().is_some_and(|out| out.record.headers.len() > limits.headers_max);
        let alone = track.suspect.is_some() || is_large;
        if fill.closed || (alone && fill.entries > 0) {
            return None;
        }
        let room = limits.request_bytes_max.saturating_sub(fill.bytes);
        let entries = limits.request_entries_max.saturating_sub(fill.entries);
        let first = track.queue.front().map_or(0, |out| weight(&out.record) + limits.record_overhead);
        // A record larger than any request is sent alone all the same: the sink knows whether it can.
        if entries == 0 || (first > room && fill.entries > 0) {
            return None;
        }
        let most = if is_large { 1 } else { track.suspect.unwrap_or(limits.group_records_max) };
        let most = if limits.entry_per_record { most.min(entries) } else { most };
        let limits = Limits { group_records_max: most, group_bytes_max: limits.group_bytes_max.min(room), ..*limits };
        let (records, bytes) = match limits.distinct_keys {
            true => take_distinct(&mut track.queue, &limits),
            false => take_front(&mut track.queue, &limits),
        };
        fill.entries += if limits.entry_per_record { records.len() } else { 1 };
        fill.bytes += bytes;
        fill.closed = alone;
        let records = Arc::new(records);
        track.state = State::InFlight(records.clone());
        track.queued = false;
        self.ready.pop_front();
        let id = GroupId { shard: self.shard, track: at };
        Some(Group { id, lane: track.lane, upstream: track.upstream, records, bytes })
    }

    /// Takes a group back with what became of it.
    pub fn finish(&mut self, id: GroupId, verdict: Verdict<'_>, now_ms: u64) -> Finished {
        let mut finished = Finished::default();
        let Some(track) = self.tracks.get_mut(id.track) else { return finished };
        let State::InFlight(records) = std::mem::take(&mut track.state) else { return finished };
        let records = Arc::try_unwrap(records).unwrap_or_else(|shared| (*shared).clone());
        let mut wait = None;
        let back = match verdict {
            Verdict::Stored => {
                self.trust(id.track);
                records.into_iter().for_each(|out| self.acknowledge(&out, &mut finished));
                Vec::new()
            }
            Verdict::Partly(stored, wait_ms) => {
                wait = Some(wait_ms);
                track.failures = track.failures.saturating_add(1);
                self.acknowledge_some(records, stored, &mut finished)
            }
            Verdict::PartlyRefused(stored) => {
                let back = self.acknowledge_some(records, stored, &mut finished);
                self.tracks[id.track].suspect = Some((back.len() / 2).max(1));
                back
            }
            Verdict::Failed(wait_ms) => {
                wait = Some(wait_ms);
                track.failures = track.failures.saturating_add(1);
                records
            }
            Verdict::Refused => self.doubt(id.track, records, &mut finished),
        };
        if finished.dead.is_some() {
            wait = Some(u64::MAX);
        }
        self.give_back(id.track, back, wait.map(|wait_ms| now_ms.saturating_add(wait_ms)));
        finished
    }

    /// Puts something in the place of a dead record (`None`: nothing) and lets its track go on.
    pub fn replace(&mut self, id: GroupId, dead: Outgoing, with: Option<Outgoing>) {
        let mut finished = Finished::default();
        let Some(with) = with else {
            self.acknowledge(&dead, &mut finished);
            return self.give_back(id.track, Vec::new(), None);
        };
        self.held_bytes -= weight(&dead.record) + RECORD_OVERHEAD;
        self.held_bytes += weight(&with.record) + RECORD_OVERHEAD;
        self.give_back(id.track, vec![with], None);
    }

    /// Puts a dead record back to be tried again, from `until_ms` on.
    pub fn put_back(&mut self, id: GroupId, dead: Outgoing, until_ms: u64) {
        let track = &mut self.tracks[id.track];
        track.failures = track.failures.saturating_add(1);
        self.give_back(id.track, vec![dead], Some(until_ms));
    }

    fn acknowledge(&mut self, out: &Outgoing, finished: &mut Finished) {
        self.held_records -= 1;
        self.held_bytes -= weight(&out.record) + RECORD_OVERHEAD;
        match &mut self.gap {
            Some(gap) => {
                gap.left -= 1;
                if gap.left == 0 {
                    self.progress.raise(gap.to);
                    self.gap = None;
                }
            }
            None => self.progress.acknowledge(out.record.number),
        }
        if out.kind == Kind::Record {
            finished.records += 1;
            finished.payload_bytes += out.record.data.len() as u64;
        }
    }

    fn acknowledge_some(&mut self, records: Vec<Outgoing>, stored: &[bool], finished: &mut Finished) -> Vec<Outgoing> {
        let mut back = Vec::new();
        for (at, out) in records.into_iter().enumerate() {
            match stored.get(at) {
                Some(true) => self.acknowledge(&out, finished),
                _ => back.push(out),
            }
        }
        back
    }

    fn trust(&mut self, at: usize) {
        let track = &mut self.tracks[at];
        (track.failures, track.landings) = (0, 0);
        track.suspect = track.suspect.map(|most| most * 2).filter(|most| *most < TRUSTED_AGAIN);
    }

    /// A refused group is cut in halves until the one record is found that the destination does not want. Under a map that
    /// is gone nothing is found: the track is given up with its group, and has none to put in the place of a dead record.
    fn doubt(&mut self, at: usize, mut records: Vec<Outgoing>, finished: &mut Finished) -> Vec<Outgoing> {
        let track = &mut self.tracks[at];
        let was_alone = track.suspect.is_some();
        track.suspect = Some((records.len() / 2).max(1));
        if was_alone && records.len() == 1 && !track.retired {
            finished.dead = records.pop();
        }
        records
    }

    /// Records of a group return to the front of their track, or, if its map is gone, to where they belong now.
    fn give_back(&mut self, at: usize, records: Vec<Outgoing>, until_ms: Option<u64>) {
        let track = &mut self.tracks[at];
        if track.retired {
            return self.give_back_retired(at, records);
        }
        if track.failures == DETACH_AFTER {
            let queue = std::mem::take(&mut track.queue);
            track.queue = records.into_iter().chain(queue).map(detached).collect();
        } else {
            records.into_iter().rev().for_each(|out| track.queue.push_front(out));
        }
        if matches!(track.state, State::Waiting { .. }) {
            self.waiting -= 1;
        }
        track.state = match until_ms {
            Some(until_ms) => State::Waiting { until_ms },
            None => State::Idle,
        };
        self.waiting += usize::from(until_ms.is_some());
        self.make_ready(at);
    }

    fn give_back_retired(&mut self, at: usize, mut records: Vec<Outgoing>) {
        let lane = self.tracks[at].lane;
        self.tracks[at] = Track::default();
        self.free.push(at);
        self.lanes[usize::from(lane)].from_old_map -= 1;
        let tracks: Vec<usize> = self.lanes[usize::from(lane)].tracks.iter().map(|(_, track)| *track).collect();
        if !records.is_empty() {
            tracks.iter().for_each(|track| records.extend(self.tracks[*track].queue.drain(..)));
            self.enqueue_sorted(lane, records);
        }
        let tracks: Vec<usize> = self.lanes[usize::from(lane)].tracks.iter().map(|(_, track)| *track).collect();
        tracks.into_iter().for_each(|track| self.make_ready(track));
    }

    fn enqueue_sorted(&mut self, lane: u16, mut records: Vec<Outgoing>) {
        records.sort_by_key(|out| out.record.number);
        for out in records {
            self.enqueue(lane, out.record.hash(), out);
        }
    }

    // Time and the map.

    /// Lets tracks go on whose wait is over.
    pub fn wake(&mut self, now_ms: u64) {
        if self.waiting == 0 {
            return;
        }
        for at in 0..self.tracks.len() {
            if matches!(self.tracks[at].state, State::Waiting { until_ms } if until_ms <= now_ms) {
                self.tracks[at].state = State::Idle;
                self.waiting -= 1;
                self.make_ready(at);
            }
        }
    }

    /// When [`Lanes::wake`] would do something.
    pub fn next_wake_ms(&self) -> Option<u64> {
        if self.waiting == 0 {
            return None;
        }
        let until = |track: &Track| match track.state {
            State::Waiting { until_ms } => Some(until_ms),
            _ => None,
        };
        self.tracks.iter().filter_map(until).min()
    }

    /// The upstream may divide the key space anew.
    pub fn follow(&mut self, map: &Arc<ShardMap>) {
        if *self.map == **map {
            return;
        }
        self.map = map.clone();
        self.ready.clear();
        self.waiting = 0;
        for lane in 0..=GAP_LANE {
            let mut records = Vec::new();
            for (_, at) in std::mem::take(&mut self.lanes[usize::from(lane)].tracks) {
                let track = &mut self.tracks[at];
                records.extend(track.queue.drain(..));
                if matches!(track.state, State::InFlight(_)) {
                    (track.retired, track.queued) = (true, false);
                    self.lanes[usize::from(lane)].from_old_map += 1;
                } else {
                    *track = Track::default();
                    self.free.push(at);
                }
            }
            self.enqueue_sorted(lane, records);
        }
    }
}

/// The oldest records, at least one.
fn take_front(queue: &mut VecDeque<Outgoing>, limits: &Limits) -> (Vec<Outgoing>, usize) {
    let is_alone = |out: &Outgoing| {
        let is_large = out.record.headers.len() > limits.headers_max;
        is_large || limits.alone.is_some_and(|magic| out.record.data.starts_with(&magic))
    };
    let (mut count, mut bytes) = (0, 0);
    for out in queue.iter().take(limits.group_records_max.max(1)) {
        let weight = weight(&out.record) + limits.record_overhead;
        let alone = is_alone(out);
        if count > 0 && (alone || bytes + weight > limits.group_bytes_max) {
            break;
        }
        count += 1;
        bytes += weight;
        if alone {
            break;
        }
    }
    (queue.drain(..count).collect(), bytes)
}

/// The oldest record of each key, at least one. What is passed over stays in order.
fn take_distinct(queue: &mut VecDeque<Outgoing>, limits: &Limits) -> (Vec<Outgoing>, usize) {
    let look_ahead: Vec<Outgoing> = queue.drain(..queue.len().min(DISTINCT_LOOK_AHEAD)).collect();
    let mut seen: HashSet<Bytes> = HashSet::new();
    let (mut taken, mut kept, mut bytes) = (Vec::new(), Vec::new(), 0);
    for out in look_ahead {
        let weight = weight(&out.record) + limits.record_overhead;
        let room = taken.len() < limits.group_records_max && bytes + weight <= limits.group_bytes_max;
        if seen.insert(out.record.key.clone()) && (room || taken.is_empty()) {
            bytes += weight;
            taken.push(out);
        } else {
            kept.push(out);
        }
    }
    kept.into_iter().rev().for_each(|out| queue.push_front(out));
    (taken, bytes)
}

/// A copy that shares no memory: a record that waits long must not keep the whole block it was read from.
fn detached(mut out: Outgoing) -> Outgoing {
    let record = &mut out.record;
    let mut memory = BytesMut::with_capacity(weight(record));
    let mut own = |bytes: &mut Bytes| {
        memory.extend_from_slice(bytes);
        *bytes = memory.split().freeze();
    };
    own(&mut record.key);
    own(&mut record.data);
    record.headers.iter_mut().for_each(|header| own(&mut header.value));
    out
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
