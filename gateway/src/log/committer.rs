//! Group commit: the door gathers batches into a group while the last one is being synced; one thread commits groups.
//!
//! The door gives numbers under its lock, so the order of groups, of numbers and of acknowledgements is one order. A
//! commit that fails is answered to everybody in it and its numbers are never given again. `Committer::step` is one
//! commit; the thread around it and the simulation call the same.

use super::ack::{Ticket, Waiter};
use super::batch::{Batch, Part, Placement, cut, judge_as_one};
use super::blob::{Blobs, WriteError};
use super::error::AppendError;
use super::frame::ENTRIES_MAX;
use super::group::{Group, Numbered, PART_BYTES, control_bytes};
use super::mutation::{Mutation, is_on};
use super::producer::{self, Admission, Marks, Producers, Span};
use super::shard::Shard;
use super::state::State;
use super::stream::OnFull;
use super::window::Run;
use super::{encode, frame, ledger};
use crate::record::{Gap, Producer};
use bytes::BytesMut;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Numbers reserved ahead of use (crash rule 6), and how many are left when the next are asked for.
pub const RESERVE_AHEAD: u64 = 4 << 20;
const RESERVE_LOW: u64 = 2 << 20;

struct Gathering {
    group: Group,
    producers: Producers,
    /// Shards whose reserve is being raised by the group under way or the next.
    raising: HashMap<(u32, u32), u64>,
    closed: bool,
    last_error: String,
    /// The last group that got own changes of one before it, which had no room for them.
    late: u64,
    /// Gaps of the group that is being written, which the ledger does not know yet.
    being_written: ledger::Pending,
}

/// Where producers hand in and the committer takes out.
pub struct Door {
    gathering: Mutex<Gathering>,
    /// Told when there is something to commit or the door closes.
    pub(super) work: Condvar,
    /// Told when a group was taken, so that there is room.
    room: Notify,
    blobs: Blobs,
    /// Raw bytes of one group at most.
    group_bytes_max: usize,
    stamp: super::stamp::Stamps,
}

/// What the thread should do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Waiting {
    Nothing,
    /// Raw bytes gathered, in how many batches.
    Group {
        bytes: usize,
    },
    Closed,
}

impl Door {
    pub fn new(
        next_group: u64,
        producers: Producers,
        blobs: Blobs,
        group_bytes_max: usize,
        stamp: super::stamp::Stamps,
    ) -> Door {
        let gathering = Gathering {
            group: Group::new(next_group),
            producers,
            raising: HashMap::new(),
            closed: false,
            last_error: String::new(),
            late: 0,
            being_written: ledger::Pending::default(),
        };
        Door {
            gathering: Mutex::new(gathering),
            work: Condvar::new(),
            room: Notify::new(),
            blobs,
            group_bytes_max,
            stamp,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Gathering> {
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raw bytes of one group at most.
    pub fn group_bytes_max(&self) -> usize {
        self.group_bytes_max
    }

    pub fn last_error(&self) -> String {
        self.lock().last_error.clone()
    }

    /// See [`super::Appender::append`].
    pub async fn append(
        &self,
        batch: &mut Batch,
        waiter: &Arc<Waiter>,
    ) -> Result<(Ticket, Vec<Placement>), AppendError> {
        self.write_large(batch).await?;
        self.split_oversized(batch);
        // A change that goes with the records goes into their group. A batch that no group holds is the exception: there
        // the change comes with the last of them, so that a crash in between repeats records and loses none.
        let control = batch.control_bytes();
        let mut unjudged = std::mem::take(&mut batch.as_one);
        let together = control > 0 || unjudged;
        let whole = together && self.fits_a_group(&batch.parts, control) && !is_on(Mutation::PartFromRecords);
        let order = std::mem::take(&mut batch.order);
        let mut parts = std::mem::take(&mut batch.parts).into_iter();
        let mut numbered: Vec<Vec<Placement>> = Vec::with_capacity(parts.len());
        loop {
            let room = self.room.notified();
            {
                let mut gathering = self.lock();
                if gathering.closed {
                    return Err(AppendError::Closed);
                }
                if waiter.has_failed() {
                    return Err(AppendError::Failed(gathering.last_error.clone()));
                }
                let has_room = !whole || self.has_room_for_all(&gathering, parts.as_slice(), control);
                if has_room {
                    if std::mem::take(&mut unjudged) {
                        judge_as_one(parts.as_mut_slice());
                    }
                    while parts.as_slice().first().is_some_and(|part| whole || self.has_room(&gathering, part))
                        && let Some(part) = parts.next()
                    {
                        numbered.push(self.admit(&mut gathering, part));
                        gathering.join(waiter);
                    }
                }
                if has_room
                    && parts.as_slice().is_empty()
                    && gathering.take_control(batch, waiter, self.group_bytes_max)
                {
                    let placements = in_push_order(&order, &numbered);
                    let ticket = gathering.finish(batch, &placements, waiter);
                    self.work.notify_one();
                    return Ok((ticket, placements));
                }
                // Groups that fail use numbers up, and what asked for more failed with them.
                for part in parts.as_slice().iter().filter(|part| !Door::is_reserved(part)) {
                    gathering.ask_for_numbers(part);
                }
                self.work.notify_one();
            }
            room.await;
        }
    }

    /// Large values reach their files first. A stream that is full is not written to: what it refuses would take room too.
    async fn write_large(&self, batch: &mut Batch) -> Result<(), AppendError> {
        for part in batch.parts.iter_mut().filter(|part| part.has_blobs) {
            part.refused = part.stream.refuses();
        }
        let Batch { large, parts, .. } = &mut *batch;
        large.retain(|large| !parts[large.part].refused);
        if large.is_empty() {
            return Ok(());
        }
        match self.blobs.write(batch).await {
            Ok(()) => Ok(()),
            Err(WriteError::Closed) => Err(AppendError::Closed),
            Err(WriteError::Io(error)) => {
                let rejects = |part: &Part| part.stream.settings().on_full == OnFull::Reject;
                if error.kind() != io::ErrorKind::StorageFull || !batch.parts.iter().all(rejects) {
                    return Err(AppendError::Failed(format!("a large value could not be written: {error}")));
                }
                batch.parts.iter_mut().filter(|part| part.has_blobs).for_each(|part| part.refused = true);
                batch.large.clear();
                Ok(())
            }
        }
    }

    /// Changes of state alone, from the log itself: no waiting, no waiter; durable with the next commit that works and has
    /// room for them.
    pub fn put_state(&self, entries: impl IntoIterator<Item = frame::Control>) -> Ticket {
        let mut gathering = self.lock();
        for (table, key, value) in entries {
            gathering.group.own.put(table, key, value);
        }
        self.work.notify_one();
        Ticket(gathering.group.number)
    }

    /// Changes with the gaps that they make, in one group; where a frame does not hold all, the gaps are ahead.
    pub fn put_gaps_and_state(&self, stream: u32, gaps: &[Gap], entries: &[frame::Control]) -> Ticket {
        let mut gathering = self.lock();
        gaps.iter().for_each(|gap| _ = gathering.group.own.gaps.put(stream, gap));
        for (table, key, value) in entries {
            gathering.group.own.put(*table, key.clone(), value.clone());
        }
        self.work.notify_one();
        Ticket(gathering.group.number)
    }

    /// A gap for the ledger, from the log itself; as [`Door::put_state`]. What of it neither the ledger knew nor was on its
    /// way: each number is told once.
    pub fn put_gap(&self, stream: u32, gap: &Gap, state: &State) -> Vec<Gap> {
        let mut gathering = self.lock();
        let Gathering { group, being_written, .. } = &mut *gathering;
        let parts = state.new_gaps(stream, gap).into_iter();
        let parts = parts.flat_map(|part| being_written.unknown(stream, &part));
        let news = parts.flat_map(|part| group.own.gaps.put(stream, &part)).collect();
        self.work.notify_one();
        news
    }

    /// The ledger knows the gaps of the group that was written.
    pub fn ledger_is_written(&self) {
        self.lock().being_written = ledger::Pending::default();
    }

    /// The group with which changes of [`Door::put_state`] are durable that were put into `ticket`.
    pub fn durable_with(&self, ticket: Ticket) -> Ticket {
        Ticket(ticket.0.max(self.lock().late))
    }

    fn has_room(&self, gathering: &Gathering, part: &Part) -> bool {
        let group = &gathering.group;
        let fits = group.fits(part.bytes.len() + PART_BYTES, self.group_bytes_max);
        fits && group.parts.len() < ENTRIES_MAX && Door::is_reserved(part)
    }

    fn fits_a_group(&self, parts: &[Part], control: usize) -> bool {
        bytes_of(parts) + control <= self.group_bytes_max && parts.len() <= ENTRIES_MAX
    }

    /// Each part is of another shard: it fits a group, so it was not split.
    fn has_room_for_all(&self, gathering: &Gathering, parts: &[Part], control: usize) -> bool {
        let group = &gathering.group;
        let fits = group.fits(bytes_of(parts) + control, self.group_bytes_max);
        fits && group.parts.len() + parts.len() <= ENTRIES_MAX && parts.iter().all(Door::is_reserved)
    }

    fn is_reserved(part: &Part) -> bool {
        part.shard.assigned() + u64::from(part.count) <= part.shard.reserved()
    }

    /// Gives numbers to a part and puts it into the group. The placements are of its records, in order.
    fn admit(&self, gathering: &mut Gathering, mut part: Part) -> Vec<Placement> {
        let shard = part.shard.index;
        if part.refused || !part.judged && part.stream.refuses() {
            return vec![Placement::Full { shard }; part.count as usize];
        }
        let mut highest = Vec::new();
        let kept = gathering.admit_producers(&mut part, &mut highest);
        let first = part.shard.assign(part.count);
        let mut number = first;
        let placements = match kept {
            None => (first..first + u64::from(part.count)).map(|number| Placement::Stored { shard, number }).collect(),
            Some(kept) => kept
                .into_iter()
                .map(|kept| match kept {
                    true => {
                        number += 1;
                        Placement::Stored { shard, number: number - 1 }
                    }
                    false => Placement::Duplicate { shard },
                })
                .collect(),
        };
        gathering.ask_for_numbers(&part);
        if part.has_blobs {
            self.refer_to_blobs(gathering, &part, first);
        }
        if part.count > 0 {
            let run = Run {
                first,
                count: part.count,
                stamp: self.stamp.now(),
                bytes: part.bytes.freeze(),
                group: gathering.group.number,
                producers: highest.into(),
            };
            gathering.group.handed_in += run.bytes.len() + PART_BYTES;
            gathering.group.parts.push(Numbered { stream: part.stream, shard: part.shard, run, payload: part.payload });
        }
        placements
    }

    /// The blob files' extents become durable with the records that refer to them.
    fn refer_to_blobs(&self, gathering: &mut Gathering, part: &Part, first: u64) {
        let mut rest = &part.bytes[..];
        for number in first.. {
            let Ok(length) = encode::skip(rest) else { break };
            if let Some(blob) = encode::blob(&rest[..length]) {
                let entry = self.blobs.refer(part.stream.id, &blob, part.shard.index, number);
                // It says all that the one before said of the file.
                let same = |known: &&mut frame::Control| (known.0, &known.1) == (entry.0, &entry.1);
                match gathering.group.control.iter_mut().rfind(same) {
                    Some(known) => *known = entry,
                    None => gathering.group.put_control(entry),
                }
            }
            rest = &rest[length..];
        }
    }

    /// A part that no group could hold is cut between records.
    fn split_oversized(&self, batch: &mut Batch) {
        if batch.parts.iter().all(|part| part.bytes.len() <= self.group_bytes_max) {
            return;
        }
        let parts = std::mem::take(&mut batch.parts);
        let mut moved: Vec<Vec<(u32, u32)>> = Vec::new();
        for part in parts {
            let mut homes = Vec::with_capacity(part.count as usize);
            for piece in cut(part, self.group_bytes_max) {
                let at = batch.parts.len() as u32;
                homes.extend((0..piece.count).map(|record| (at, record)));
                batch.parts.push(piece);
            }
            moved.push(homes);
        }
        for (part, record) in &mut batch.order {
            (*part, *record) = moved[*part as usize][*record as usize];
        }
    }

    /// Sleeps until there is something to commit, the door closes, or `bound` is over.
    pub fn wait(&self, bound: std::time::Duration) -> Waiting {
        let gathering = self.lock();
        match gathering.waiting() {
            Waiting::Nothing => {
                let (gathering, _) = self.work.wait_timeout(gathering, bound).unwrap_or_else(PoisonError::into_inner);
                gathering.waiting()
            }
            waiting => waiting,
        }
    }

    /// Sleeps until the group has more than `bytes`, the door closes, or `bound` is over.
    pub fn wait_for_company(&self, bytes: usize, bound: std::time::Duration) {
        let gathering = self.lock();
        let alone = |gathering: &mut Gathering| gathering.group.bytes() <= bytes && !gathering.closed;
        drop(self.work.wait_timeout_while(gathering, bound, alone).unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes the group, with as many of the log's own entries as a frame of `bytes` holds beside what producers handed in;
    /// the next batches go into a new one.
    pub fn take(&self, bytes: usize, state: &State) -> Group {
        let mut gathering = self.lock();
        let next = Group::new(gathering.group.number + 1);
        let mut group = std::mem::replace(&mut gathering.group, next);
        let mut late = std::mem::take(&mut group.own);
        group.own = late.take(bytes.saturating_sub(frame::HEADER_BYTES + group.handed_in), state);
        // A caller's change of a row stands over the log's own, which it may have been made from.
        for (table, key, _) in &group.control {
            late.rows.remove(&(*table, key.clone()));
        }
        if !late.is_empty() {
            gathering.late = gathering.group.number;
            gathering.group.own = late;
        }
        gathering.being_written = group.own.gaps.clone();
        drop(gathering);
        self.room.notify_waiters();
        group.control = group.own.entries().chain(std::mem::take(&mut group.control)).collect();
        group
    }

    /// Takes the log's own entries alone, as many as a frame of `bytes` holds; what producers handed in is the next group,
    /// and waits.
    pub fn take_own(&self, bytes: usize, state: &State) -> Group {
        let mut gathering = self.lock();
        let number = gathering.group.number;
        let mut group = Group::new(number);
        if bytes > 0 {
            group.own = gathering.group.own.take(bytes.saturating_sub(frame::HEADER_BYTES), state);
            gathering.being_written = group.own.gaps.clone();
        }
        group.control = group.own.entries().collect();
        if !group.is_empty() {
            gathering.group.number = number + 1;
            if !gathering.group.own.is_empty() {
                gathering.late = number + 1;
            }
            gathering.group.parts.iter_mut().for_each(|part| part.run.group = number + 1);
        }
        group
    }

    /// A group failed, and with it what came in behind it: order would be lost if that went on alone. What both did to
    /// the door is undone, and their producers are told, all in one: one that was not told yet and hands in more would
    /// come behind the failure with what follows, and be told afterwards that what it follows is lost.
    pub fn failed(&self, group: &Group, error: &str) -> Group {
        let mut gathering = self.lock();
        error.clone_into(&mut gathering.last_error);
        group.waiters.iter().for_each(|waiter| waiter.resolve(group.number, false));
        if is_on(Mutation::KeepGroupBehind) {
            return Group::new(gathering.group.number);
        }
        gathering.being_written = ledger::Pending::default();
        let next = Group::new(gathering.group.number + 1);
        let behind = std::mem::replace(&mut gathering.group, next);
        for of in [group, &behind] {
            gathering.group.own.take_in(&of.own);
        }
        for (place, id, before) in behind.undo.iter().rev().chain(group.undo.iter().rev()) {
            gathering.producers.undo(*place, *id, *before);
        }
        gathering.raising.clear();
        behind.waiters.iter().for_each(|waiter| waiter.resolve(behind.number, false));
        drop(gathering);
        self.room.notify_waiters();
        behind
    }

    /// New numbers may be given: wakes who waits for them.
    pub fn reserved(&self, stream: u32, shard: &Shard, up_to: u64) {
        self.lock().raising.remove(&(stream, shard.index));
        shard.reserve_up_to(up_to);
        self.room.notify_waiters();
    }

    /// See [`Producers::rows`].
    pub fn mark_rows(&self, marks: &Marks) -> (Vec<frame::Control>, usize) {
        self.lock().producers.rows(marks)
    }

    /// See [`Producers::folded`].
    pub fn marks_folded(&self, forgotten: usize) {
        self.lock().producers.folded(forgotten);
    }

    /// How many marks are remembered, and how many had to make room for others since this was asked last.
    pub fn marks(&self) -> (usize, u64) {
        let producers = &mut self.lock().producers;
        (producers.len(), producers.take_evicted())
    }

    pub fn forget_stream(&self, stream: u32) {
        self.lock().producers.forget_stream(stream);
    }

    pub fn close(&self) {
        self.lock().closed = true;
        self.work.notify_all();
        self.room.notify_waiters();
    }
}

impl Gathering {
    fn waiting(&self) -> Waiting {
        match (self.group.is_empty(), self.closed) {
            (true, true) => Waiting::Closed,
            (true, false) => Waiting::Nothing,
            (false, _) => Waiting::Group { bytes: self.group.bytes() },
        }
    }

    fn join(&mut self, waiter: &Arc<Waiter>) {
        if waiter.joined.swap(self.group.number, Ordering::Relaxed) != self.group.number {
            self.group.waiters.push(waiter.clone());
        }
    }

    fn finish(&mut self, batch: &mut Batch, placements: &[Placement], waiter: &Arc<Waiter>) -> Ticket {
        let stored;
        let placements = match is_on(Mutation::ForgetPlaces) {
            false => placements,
            true => {
                stored = vec![Placement::Stored { shard: 0, number: 0 }; placements.len()];
                &stored
            }
        };
        let on_places = batch.on_places.drain(..).map(|(table, key, value)| (table, key, value(placements)));
        on_places.for_each(|entry| self.group.put_control(entry));
        self.join(waiter);
        batch.large.clear();
        Ticket(self.group.number)
    }

    /// Takes of a batch's changes what the group has room for. A batch that no group holds comes in pieces; whether this was
    /// the last.
    fn take_control(&mut self, batch: &mut Batch, waiter: &Arc<Waiter>, bytes_max: usize) -> bool {
        let mut taken = 0;
        while let Some((_, key, value)) = batch.control.get(taken)
            && self.group.fits(control_bytes(key, value.as_ref()), bytes_max)
        {
            self.group.put_control(batch.control[taken].clone());
            taken += 1;
        }
        batch.control.drain(..taken);
        if taken > 0 {
            self.join(waiter);
        }
        batch.control.is_empty()
    }

    /// Drops the records of `part` that were stored before. `None`: all are kept; else which of them are.
    fn admit_producers(&mut self, part: &mut Part, highest: &mut Vec<Producer>) -> Option<Vec<bool>> {
        if part.producers.is_empty() {
            return None;
        }
        let place = (part.stream.id, if is_on(Mutation::OneMark) { 0 } else { part.shard.index });
        if part.producers.iter().all(|span| span.rises && self.producers.is_new(place, &span.first)) {
            for Span { last, .. } in &part.producers {
                if let Admission::New { before } = self.producers.admit(place, last) {
                    self.group.undo.push((place, last.id, before));
                    highest.push(*last);
                }
            }
            return None;
        }
        let mut kept = vec![true; part.count as usize];
        let mut rest = &part.bytes[..];
        for kept in &mut kept {
            let length = encode::skip(rest).unwrap_or(rest.len());
            if let Some(producer) = encode::producer(&rest[..length]) {
                match self.producers.admit(place, &producer) {
                    Admission::New { before } => {
                        self.group.undo.push((place, producer.id, before));
                        producer::note(highest, producer);
                    }
                    Admission::Duplicate => *kept = false,
                }
            }
            rest = &rest[length..];
        }
        if kept.iter().all(|kept| *kept) {
            return None;
        }
        let mut bytes = BytesMut::with_capacity(part.bytes.len());
        let mut rest = &part.bytes[..];
        for kept in &kept {
            // The batch encoded these bytes itself; a record that cannot be stepped over would be our own fault.
            let length = encode::skip(rest).unwrap_or(rest.len());
            if *kept {
                bytes.extend_from_slice(&rest[..length]);
            }
            rest = &rest[length..];
        }
        part.bytes = bytes;
        part.count = kept.iter().filter(|kept| **kept).count() as u32;
        Some(kept)
    }

    /// Asks for more numbers before they run out; the marks travel in this very group.
    fn ask_for_numbers(&mut self, part: &Part) {
        let (assigned, reserved) = (part.shard.assigned(), part.shard.reserved());
        if assigned + RESERVE_LOW <= reserved {
            return;
        }
        let up_to = assigned + RESERVE_AHEAD;
        if self.raising.insert((part.stream.id, part.shard.index), up_to).is_none() {
            self.group.put_control(super::state::reserve_entry(part.stream.id, part.shard.index, up_to));
        }
    }
}

/// Bytes that parts take in a frame, at most.
fn bytes_of(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.bytes.len() + PART_BYTES).sum()
}

fn in_push_order(order: &[(u32, u32)], numbered: &[Vec<Placement>]) -> Vec<Placement> {
    order.iter().map(|(part, record)| numbered[*part as usize][*record as usize]).collect()
}
