//! Producer numbers (promise P3): what was stored of each producer, so that nothing is stored twice.
//!
//! A mark is of a producer and a shard. Records of one hand-in for several shards get their places shard by shard, and may
//! become durable in different groups: a mark over all of them would call the lower numbers of the later shard stored.
//! A mark moves when its record gets a number, under the door's lock, and is durable because the record is: recovery and
//! fold read the marks off the records themselves. The table is bounded; the mark that was silent longest goes first, and
//! its row with the next fold: what is on disk is bounded too, and a start has nobody to choose from. A mark that goes is
//! counted: what its producer sends again would be stored again, and nothing else would tell.

use super::encode;
use super::frame::Control;
use super::schema::Table;
use crate::record::{Producer, ShardIndex};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Stream and shard.
pub type Place = (u32, ShardIndex);

/// Marks remembered per gateway.
pub const PRODUCERS_MAX: usize = 64 << 10;

/// The last number of each producer in each shard.
pub type Marks = BTreeMap<(Place, u128), Producer>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub epoch: u32,
    pub sequence: u64,
    /// When the producer was last heard, for eviction: counts batches, not time.
    pub used: u64,
}

#[derive(Default)]
pub struct Producers {
    marks: HashMap<(Place, u128), Mark>,
    used: u64,
    /// Marks that went since the last fold, and may have a row on disk.
    forgotten: Vec<(Place, u128)>,
    /// Marks that had to make room for others and were not told of yet.
    evicted: u64,
}

impl Producers {
    /// Whether the record is new; if so it is remembered. What stood there before is returned for an undo.
    pub fn admit(&mut self, place: Place, producer: &Producer) -> Admission {
        self.used += 1;
        let key = (place, producer.id);
        let before = self.marks.get(&key).copied();
        if let Some(mark) = before
            && mark.epoch == producer.epoch
            && producer.sequence <= mark.sequence
        {
            return Admission::Duplicate;
        }
        self.remember(place, producer);
        Admission::New { before }
    }

    /// Whether [`Producers::admit`] would take the record.
    pub fn is_new(&self, place: Place, producer: &Producer) -> bool {
        let mark = self.marks.get(&(place, producer.id));
        mark.is_none_or(|mark| mark.epoch != producer.epoch || producer.sequence > mark.sequence)
    }

    /// Recovery: a record with this producer number is in the log.
    pub fn remember(&mut self, place: Place, producer: &Producer) {
        self.used += 1;
        if let Some(mark) = self.marks.get(&(place, producer.id))
            && mark.epoch == producer.epoch
            && mark.sequence >= producer.sequence
        {
            return;
        }
        if self.marks.len() >= PRODUCERS_MAX && !self.marks.contains_key(&(place, producer.id)) {
            self.evict();
        }
        let mark = Mark { epoch: producer.epoch, sequence: producer.sequence, used: self.used };
        self.marks.insert((place, producer.id), mark);
    }

    pub fn undo(&mut self, place: Place, id: u128, before: Option<Mark>) {
        match before {
            Some(mark) => _ = self.marks.insert((place, id), mark),
            // It may be one that was forgotten, came again, and was taken for known by a fold in between.
            None => self.forgotten.extend(self.marks.remove(&(place, id)).map(|_| (place, id))),
        }
    }

    /// Rows for a fold of records that have these marks: one that was forgotten since leaves none. The second is for
    /// [`Producers::folded`].
    pub fn rows(&self, marks: &Marks) -> (Vec<Control>, usize) {
        let row = |(place, id): &(Place, u128), value| (Table::Producers, mark_key(*place, *id), value);
        let kept = marks.iter().map(|(of, last)| row(of, self.marks.contains_key(of).then(|| mark_to_bytes(last))));
        let gone = self.forgotten.iter().filter(|of| !self.marks.contains_key(of)).map(|of| row(of, None));
        (kept.chain(gone).collect(), self.forgotten.len())
    }

    /// The rows of so many forgotten marks are durably gone.
    pub fn folded(&mut self, forgotten: usize) {
        self.forgotten.drain(..forgotten);
    }

    pub fn forget_stream(&mut self, stream: u32) {
        self.keep_streams(|of| of != stream);
    }

    pub fn keep_streams(&mut self, keep: impl Fn(u32) -> bool) {
        let gone = self.marks.extract_if(|((stream, _), _), _| !keep(*stream));
        self.forgotten.extend(gone.map(|(of, _)| of));
    }

    pub fn knows(&self, place: Place, id: u128) -> bool {
        self.marks.contains_key(&(place, id))
    }

    pub fn len(&self) -> usize {
        self.marks.len()
    }

    fn evict(&mut self) {
        let oldest = silent_longest(self.marks.values());
        let before = self.marks.len();
        let gone = self.marks.extract_if(|_, mark| mark.used <= oldest);
        self.forgotten.extend(gone.map(|(of, _)| of));
        self.evicted += (before - self.marks.len()) as u64;
    }

    /// How many marks had to make room for others since this was asked last.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }
}

/// The eighth that was silent longest was used no later than this. It goes at once: rarely, so that the cost is spread
/// over many new producers.
fn silent_longest<'a>(marks: impl Iterator<Item = &'a Mark>) -> u64 {
    let mut used: Vec<u64> = marks.map(|mark| mark.used).collect();
    *used.select_nth_unstable(PRODUCERS_MAX / 8).1
}

/// The last durable number of each producer, over all shards. Bounded as the marks are.
///
/// Everything up to it was taken if the producer hands in what [`super::Batch::take_numbered_as_one`] binds, in order, and
/// nothing behind what was refused: a batch is in one group, groups become durable in order, and one that fails takes
/// those behind it along.
#[derive(Default)]
pub struct Kept {
    numbers: HashMap<u128, Mark>,
    used: u64,
    /// Producers that had to make room for others and were not told of yet.
    evicted: u64,
}

impl Kept {
    /// What a start found. Of several epochs the one read last counts: what a producer says of another it cannot use, and
    /// sends again what it has, which its marks know.
    pub fn of(producers: &Producers) -> Self {
        let mut marks: Vec<(u128, Mark)> = producers.marks.iter().map(|((_, id), mark)| (*id, *mark)).collect();
        marks.sort_unstable_by_key(|(_, mark)| mark.used);
        let mut kept = Kept::default();
        for (id, Mark { epoch, sequence, .. }) in marks {
            kept.note(&Producer { id, epoch, sequence });
        }
        kept
    }

    /// A record with this number is on disk.
    pub fn note(&mut self, producer: &Producer) {
        self.used += 1;
        if self.numbers.len() >= PRODUCERS_MAX && !self.numbers.contains_key(&producer.id) {
            let oldest = silent_longest(self.numbers.values());
            let before = self.numbers.len();
            self.numbers.retain(|_, mark| mark.used > oldest);
            self.evicted += (before - self.numbers.len()) as u64;
        }
        let Producer { id, epoch, sequence } = *producer;
        let mark = self.numbers.entry(id).or_insert(Mark { epoch, sequence, used: 0 });
        let highest = if mark.epoch == epoch { mark.sequence.max(sequence) } else { sequence };
        *mark = Mark { epoch, sequence: highest, used: self.used };
    }

    /// How many producers had to make room for others since this was asked last.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    pub fn get(&self, id: u128) -> Option<(u32, u64)> {
        self.numbers.get(&id).map(|mark| (mark.epoch, mark.sequence))
    }
}

/// When to log that producers are forgotten: once a burst.
#[derive(Debug, Default)]
pub struct Burst {
    logged_s: Option<f64>,
    kept_back: u64,
}

/// A burst ends when this long nothing was logged of it, in seconds.
const QUIET_S: f64 = 10.0;

impl Burst {
    /// How many a line should tell of, if it is time for one.
    pub fn note(&mut self, count: u64, now_s: f64) -> Option<u64> {
        self.kept_back += count;
        if self.logged_s.is_some_and(|logged| now_s - logged < QUIET_S) {
            return None;
        }
        self.logged_s = Some(now_s);
        Some(std::mem::take(&mut self.kept_back))
    }
}

/// What a part of a batch holds of one producer: as long as its numbers rise, it is admitted at once and not record by record.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub first: Producer,
    pub last: Producer,
    pub rises: bool,
}

impl Span {
    pub fn of(producer: Producer) -> Self {
        Span { first: producer, last: producer, rises: true }
    }

    pub fn add(&mut self, next: Producer) {
        self.rises &= next.epoch == self.last.epoch && next.sequence > self.last.sequence;
        self.last = next;
    }
}

/// Notes a record's number and returns where. Records of a producer mostly come in a row.
pub fn note_span(spans: &mut Vec<Span>, producer: Producer) -> usize {
    match spans.iter_mut().rposition(|span| span.first.id == producer.id) {
        Some(at) => {
            spans[at].add(producer);
            at
        }
        None => {
            spans.push(Span::of(producer));
            spans.len() - 1
        }
    }
}

pub enum Admission {
    New { before: Option<Mark> },
    Duplicate,
}

/// The last number of each producer in encoded records; `None` if they are not well-formed.
pub fn highest(records: &Bytes) -> Option<Arc<[Producer]>> {
    let mut found: Vec<Producer> = Vec::new();
    let mut rest = &records[..];
    while !rest.is_empty() {
        let length = encode::skip(rest).ok()?;
        if let Some(producer) = encode::producer(&rest[..length]) {
            note(&mut found, producer);
        }
        rest = &rest[length..];
    }
    Some(found.into())
}

/// Keeps the last number of each producer: within a run the numbers rise.
pub fn note(found: &mut Vec<Producer>, producer: Producer) {
    match found.iter_mut().rev().find(|known| known.id == producer.id) {
        Some(known) => *known = producer,
        None => found.push(producer),
    }
}

/// A mark as the state database keeps it: epoch u32, sequence u64, big-endian.
pub fn mark_to_bytes(producer: &Producer) -> Bytes {
    let mut bytes = Vec::with_capacity(12);
    bytes.extend_from_slice(&producer.epoch.to_be_bytes());
    bytes.extend_from_slice(&producer.sequence.to_be_bytes());
    bytes.into()
}

pub fn mark_key((stream, shard): Place, id: u128) -> Bytes {
    let mut key = Vec::with_capacity(24);
    key.extend_from_slice(&stream.to_be_bytes());
    key.extend_from_slice(&shard.to_be_bytes());
    key.extend_from_slice(&id.to_be_bytes());
    key.into()
}

pub fn mark_from_bytes(key: &[u8], value: &[u8]) -> Option<(Place, Producer)> {
    let stream = u32::from_be_bytes(key.get(..4)?.try_into().ok()?);
    let shard = u32::from_be_bytes(key.get(4..8)?.try_into().ok()?);
    let id = u128::from_be_bytes(key.get(8..24)?.try_into().ok()?);
    let epoch = u32::from_be_bytes(value.get(..4)?.try_into().ok()?);
    let sequence = u64::from_be_bytes(value.get(4..12)?.try_into().ok()?);
    Some(((stream, shard), Producer { id, epoch, sequence }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(sequence: u64) -> Producer {
        Producer { id: 1, epoch: 1, sequence }
    }

    #[test]
    fn a_number_is_admitted_once() {
        let mut producers = Producers::default();
        assert!(matches!(producers.admit((1, 0), &numbered(5)), Admission::New { before: None }));
        assert!(matches!(producers.admit((1, 0), &numbered(5)), Admission::Duplicate));
        assert!(matches!(producers.admit((1, 0), &numbered(4)), Admission::Duplicate));
        assert!(
            matches!(producers.admit((2, 0), &numbered(4)), Admission::New { .. }),
            "another stream knows nothing of it"
        );
        assert!(matches!(producers.admit((1, 1), &numbered(4)), Admission::New { .. }), "nor another shard");
        assert!(matches!(producers.admit((1, 0), &numbered(6)), Admission::New { before: Some(_) }));
    }

    #[test]
    fn a_new_epoch_starts_anew() {
        let mut producers = Producers::default();
        producers.admit((1, 0), &numbered(5));
        assert!(matches!(producers.admit((1, 0), &Producer { id: 1, epoch: 2, sequence: 1 }), Admission::New { .. }));
    }

    #[test]
    fn the_highest_durable_number_of_the_epoch_heard_last_is_kept() {
        let of = |epoch, sequence| Producer { id: 1, epoch, sequence };
        let mut kept = Kept::default();
        assert_eq!(kept.get(1), None);
        for (producer, expected) in
            [(of(7, 5), (7, 5)), (of(7, 3), (7, 5)), (of(7, 9), (7, 9)), (of(2, 1), (2, 1)), (of(7, 9), (7, 9))]
        {
            kept.note(&producer);
            assert_eq!(kept.get(1), Some(expected));
        }
        (0..=PRODUCERS_MAX as u128 + 10).for_each(|id| kept.note(&Producer { id: 10 + id, epoch: 1, sequence: 1 }));
        assert!(kept.numbers.len() <= PRODUCERS_MAX);
        assert_eq!((kept.get(1), kept.get(20 + PRODUCERS_MAX as u128)), (None, Some((1, 1))));
    }

    #[test]
    fn a_start_knows_the_last_number_over_all_shards() {
        let mut producers = Producers::default();
        for (shard, epoch, sequence) in [(0, 1, 90), (1, 2, 4), (2, 2, 9), (3, 2, 7)] {
            producers.remember((1, shard), &Producer { id: 1, epoch, sequence });
        }
        assert_eq!(Kept::of(&producers).get(1), Some((2, 9)));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_who_spoke_last() {
        let mut producers = Producers::default();
        for id in 0..PRODUCERS_MAX as u128 + 10 {
            producers.admit((1, 0), &Producer { id, epoch: 1, sequence: 1 });
        }
        assert!(producers.len() <= PRODUCERS_MAX);
        let last = Producer { id: PRODUCERS_MAX as u128, epoch: 1, sequence: 1 };
        assert!(matches!(producers.admit((1, 0), &last), Admission::Duplicate));
    }

    #[test]
    fn whoever_makes_room_for_others_is_counted_once() {
        let (mut producers, mut kept) = (Producers::default(), Kept::default());
        let of = |id| Producer { id, epoch: 1, sequence: 1 };
        for id in 0..PRODUCERS_MAX as u128 {
            producers.admit((1, 0), &of(id));
            kept.note(&of(id));
        }
        assert_eq!((producers.take_evicted(), kept.take_evicted()), (0, 0));
        producers.admit((1, 0), &of(PRODUCERS_MAX as u128));
        kept.note(&of(PRODUCERS_MAX as u128));
        let left = (PRODUCERS_MAX + 1 - producers.len()) as u64;
        assert!(left > 0);
        assert_eq!((producers.take_evicted(), kept.take_evicted()), (left, left));
        assert_eq!((producers.take_evicted(), kept.take_evicted()), (0, 0));
        producers.forget_stream(1);
        assert_eq!(producers.take_evicted(), 0, "a deleted stream's marks make room for nobody");
    }

    #[test]
    fn a_burst_of_the_forgotten_is_one_line() {
        let mut burst = Burst::default();
        let told = [(8, 0.0), (8, 1.0), (8, 9.9), (8, 10.0), (8, 10.1)].map(|(count, now_s)| burst.note(count, now_s));
        assert_eq!(told, [Some(8), None, None, Some(24), None]);
    }

    #[test]
    fn a_forgotten_mark_has_no_row_unless_it_came_again() {
        let mut producers = Producers::default();
        let of = |id| Producer { id, epoch: 1, sequence: 1 };
        (0..=PRODUCERS_MAX as u128).for_each(|id| _ = producers.admit((1, 0), &of(id)));
        producers.admit((1, 0), &of(3));
        let (rows, forgotten) = producers.rows(&Marks::from([(((1, 0), 1), of(1)), (((1, 0), 3), of(3))]));
        let row = |id| rows.iter().rfind(|(_, key, _)| *key == mark_key((1, 0), id)).map(|(_, _, value)| value.clone());
        assert_eq!([row(1), row(2)], [Some(None), Some(None)]);
        assert_eq!([row(3), row(PRODUCERS_MAX as u128)], [Some(Some(mark_to_bytes(&of(3)))), None]);
        producers.folded(forgotten);
        assert_eq!(producers.rows(&Marks::new()), (Vec::new(), 0));
    }
}
