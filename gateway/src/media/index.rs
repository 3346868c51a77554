//! Which fragments a stream has, in the order they came: what lists, playlists and searches by time are made of. Pure.
//!
//! An entry is what the header of a record says; no fragment's bytes are here. Entries have ordinals, which count fragments
//! and never come back, since players number segments without gaps and record numbers jump. Of a long recording the index
//! holds the newest part; what is older is looked up in the log (`archive`).

use crate::record::{Number, Record};
use crate::wire::media::Media;
use std::collections::{HashSet, VecDeque};

/// Two fragments with more between them than this do not continue each other, in milliseconds.
const HOLE_MS: i64 = 1_000;
/// Nor do two that overlap by more than this: what is said of the last picture's length is a guess.
const OVERLAP_MS: i64 = 200;

/// A fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of its first record: the fragment number.
    pub number: Number,
    /// By the producer's clock, milliseconds since 1970.
    pub start_ms: i64,
    /// When it came, by this box's clock.
    pub server_ms: u64,
    pub duration_ms: u32,
    pub bytes: u32,
    pub head_id: u64,
    pub parts: u8,
    pub delay_ms: u16,
    /// It does not continue the one before it.
    pub discontinuity: bool,
    /// Discontinuities up to this fragment, itself included: what a live playlist says of those that have left it. Never
    /// fewer after a restart, since counting begins at the number of the first that is kept.
    pub breaks: u32,
}

impl Entry {
    pub fn end_ms(&self) -> i64 {
        self.start_ms.saturating_add(i64::from(self.duration_ms))
    }

    /// Whether `next` goes on where this one ends, as far as their times and tracks say.
    pub fn joins(&self, next: &Entry) -> bool {
        let hole = next.start_ms.saturating_sub(self.end_ms());
        next.head_id == self.head_id && (-OVERLAP_MS..=HOLE_MS).contains(&hole)
    }

    /// Number of the record behind it.
    pub fn next_number(&self) -> Number {
        self.number + u64::from(self.parts)
    }
}

/// By whose clock a time is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Producer,
    Server,
}

impl By {
    pub fn ms(self, entry: &Entry) -> i64 {
        match self {
            By::Producer => entry.start_ms,
            By::Server => entry.server_ms as i64,
        }
    }
}

/// What a producer sent again under the same time, told from what is new. By the server's time all are.
pub struct Once {
    by: By,
    seen: HashSet<i64>,
}

impl Once {
    pub fn new(by: By) -> Once {
        Once { by, seen: HashSet::new() }
    }

    pub fn is_new(&mut self, entry: &Entry) -> bool {
        self.by == By::Server || self.seen.insert(entry.start_ms)
    }
}

/// A fragment whose parts have not all been seen.
#[derive(Clone, Copy, Debug)]
struct Open {
    entry: Entry,
    seen: u8,
}

#[derive(Debug)]
pub struct Index {
    entries: VecDeque<Entry>,
    /// Of the entries' fragments together.
    bytes: u64,
    entries_max: usize,
    /// Fragments that are there still are not in here any more.
    cut: bool,
    /// Ordinal of the first entry.
    first: u64,
    /// Of the newest that was entered.
    breaks: u32,
    open: Option<Open>,
}

impl Index {
    pub fn new(entries_max: usize) -> Index {
        let (entries, entries_max) = (VecDeque::new(), entries_max.max(1));
        Index { entries, bytes: 0, entries_max, cut: false, first: 0, breaks: 0, open: None }
    }

    /// How many it may hold from now on.
    pub fn resize(&mut self, entries_max: usize) {
        self.entries_max = entries_max.max(1);
        while self.entries.len() > self.entries_max {
            self.cut = true;
            self.drop_first();
        }
    }

    /// Whether fragments of this stream are on disk that are not in here.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// Enters the next record of the stream. Records that are no fragments are passed over; a fragment whose parts are not all
    /// there is none.
    pub fn add(&mut self, record: &Record) {
        let Some(media) = Media::of(record) else { return };
        let entry = Entry {
            number: record.number,
            start_ms: media.start_ms,
            server_ms: record.arrival_ms,
            duration_ms: media.duration_ms,
            bytes: media.bytes,
            head_id: media.head_id,
            parts: media.parts,
            delay_ms: media.delay_ms,
            discontinuity: media.discontinuity,
            breaks: 0,
        };
        match (media.part, self.open.take()) {
            (0, _) if media.parts == 1 => self.push(entry),
            (0, _) => self.open = Some(Open { entry, seen: 1 }),
            (part, Some(open)) if part == open.seen && record.number == open.entry.number + u64::from(part) => {
                match open.seen + 1 == open.entry.parts {
                    true => self.push(open.entry),
                    false => self.open = Some(Open { seen: open.seen + 1, ..open }),
                }
            }
            _ => {}
        }
    }

    fn push(&mut self, mut entry: Entry) {
        // Numbers go up; whatever reads twice enters once.
        if self.entries.back().is_some_and(|last| entry.number <= last.number) {
            return;
        }
        match self.entries.back() {
            None if self.first == 0 => {
                self.first = entry.number;
                entry.breaks = entry.number as u32;
            }
            None => entry.breaks = self.breaks.wrapping_add(1),
            Some(last) => {
                entry.discontinuity |= !last.joins(&entry);
                entry.breaks = last.breaks.wrapping_add(u32::from(entry.discontinuity));
            }
        }
        self.breaks = entry.breaks;
        self.bytes += u64::from(entry.bytes);
        self.entries.push_back(entry);
        if self.entries.len() > self.entries_max {
            self.cut = true;
            self.drop_first();
        }
    }

    /// Forgets what retention has taken.
    pub fn trim(&mut self, oldest: Number) {
        // All that is there is in here again once retention has come so far.
        self.cut &= self.entries.front().is_none_or(|first| first.number > oldest);
        while self.entries.front().is_some_and(|entry| entry.number < oldest) {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        let gone = self.entries.pop_front();
        self.bytes -= gone.map_or(0, |entry| u64::from(entry.bytes));
        self.first += 1;
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn first(&self) -> Option<&Entry> {
        self.entries.front()
    }

    pub fn last(&self) -> Option<&Entry> {
        self.entries.back()
    }

    /// Ordinal of the next fragment that will come.
    pub fn next_ordinal(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    pub fn at(&self, ordinal: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(ordinal.checked_sub(self.first)?).ok()?)
    }

    pub fn by_number(&self, number: Number) -> Option<&Entry> {
        let at = self.entries.binary_search_by_key(&number, |entry| entry.number).ok()?;
        self.entries.get(at)
    }

    /// Fragments from an ordinal on, each with its ordinal.
    pub fn from(&self, ordinal: u64) -> impl DoubleEndedIterator<Item = (u64, &Entry)> {
        let skip = usize::try_from(ordinal.saturating_sub(self.first)).unwrap_or(usize::MAX).min(self.entries.len());
        let first = self.first + skip as u64;
        self.entries.range(skip..).enumerate().map(move |(at, entry)| (first + at as u64, entry))
    }

    pub fn all(&self) -> impl DoubleEndedIterator<Item = (u64, &Entry)> {
        self.from(self.first)
    }

    /// Ordinal of the first fragment behind a record.
    pub fn behind(&self, number: Number) -> u64 {
        self.first + self.entries.partition_point(|entry| entry.number <= number) as u64
    }

    /// Fragments that begin within a range of time, in the order they came: a producer's clock may go anywhere.
    pub fn within(&self, by: By, from_ms: i64, to_ms: i64) -> impl Iterator<Item = (u64, &Entry)> {
        self.all().filter(move |(_, entry)| (from_ms..=to_ms).contains(&by.ms(entry)))
    }

    /// The first fragment at or behind a time.
    pub fn first_at(&self, by: By, ms: i64) -> Option<(u64, &Entry)> {
        self.all().find(|(_, entry)| by.ms(entry) >= ms)
    }
}

/// What is recorded of the producer's time, merged where fragments continue each other; at most `most` ranges, of which the
/// smallest holes are closed.
pub fn ranges<'a>(entries: impl Iterator<Item = &'a Entry>, most: usize) -> Vec<(i64, i64)> {
    let mut spans: Vec<(i64, i64)> = entries.map(|entry| (entry.start_ms, entry.end_ms())).collect();
    spans.sort_unstable();
    let mut hole = HOLE_MS;
    loop {
        let merged = merge(&spans, hole);
        if merged.len() <= most.max(1) {
            return merged;
        }
        hole = hole.saturating_mul(2);
    }
}

fn merge(spans: &[(i64, i64)], hole: i64) -> Vec<(i64, i64)> {
    let mut merged: Vec<(i64, i64)> = Vec::new();
    for (start, end) in spans {
        match merged.last_mut() {
            Some(last) if start.saturating_sub(last.1) <= hole => last.1 = last.1.max(*end),
            _ => merged.push((*start, *end)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn record(number: u64, part: u8, parts: u8, start_ms: i64) -> Record {
        let media = Media {
            part,
            parts,
            discontinuity: false,
            start_ms,
            duration_ms: 1000,
            bytes: 10,
            head_bytes: 5,
            head_id: 1,
            delay_ms: 0,
        };
        Record {
            number,
            arrival_ms: start_ms as u64 + 5_000,
            key: Bytes::from_static(b"cam"),
            explicit_hash: None,
            producer: None,
            headers: vec![media.header()],
            data: Bytes::new(),
        }
    }

    fn index(records: &[(u64, u8, u8, i64)]) -> Index {
        let mut index = Index::new(100);
        records.iter().for_each(|(number, part, parts, start)| index.add(&record(*number, *part, *parts, *start)));
        index
    }

    #[test]
    fn a_fragment_is_there_when_all_its_parts_are() {
        let index = index(&[(5, 0, 1, 0), (6, 0, 3, 1000), (7, 1, 3, 1000), (9, 0, 2, 2000), (10, 1, 2, 2000)]);
        let numbers: Vec<_> = index.all().map(|(ordinal, entry)| (ordinal, entry.number)).collect();
        assert_eq!(numbers, [(5, 5), (6, 9)], "ordinals have no gap");
        assert_eq!(index.by_number(9).unwrap().next_number(), 11);
        assert_eq!(index.by_number(6), None);
    }

    /// The fault: a viewer who went away while the index was made left it to be made again behind what was there.
    #[test]
    fn what_is_read_twice_is_entered_once() {
        let index = index(&[(1, 0, 1, 0), (2, 0, 1, 1000), (1, 0, 1, 0), (2, 0, 1, 1000), (3, 0, 1, 2000)]);
        assert_eq!(index.all().map(|(_, entry)| entry.number).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn ordinals_stay_when_retention_takes_the_first() {
        let mut index = index(&[(5, 0, 1, 0), (6, 0, 1, 1000), (7, 0, 1, 2000)]);
        index.trim(7);
        assert_eq!(index.at(7).unwrap().number, 7);
        assert_eq!((index.at(6), index.at(8), index.len(), index.next_ordinal()), (None, None, 1, 8));
        assert_eq!(index.from(0).count(), 1);
    }

    #[test]
    fn of_a_long_recording_the_newest_part_is_held() {
        let mut index = index(&[(1, 0, 1, 0), (2, 0, 1, 1000), (3, 0, 1, 2000)]);
        let each = index.bytes() / 3;
        index.resize(2);
        assert_eq!(index.bytes(), 2 * each);
        assert!(index.is_cut() && index.len() == 2 && index.at(1).is_none() && index.at(2).is_some());
        index.trim(2);
        assert!(!index.is_cut(), "what is not in the index is gone from the disk too");
    }

    #[test]
    fn a_hole_or_a_clock_that_goes_back_is_a_discontinuity() {
        let index = index(&[(1, 0, 1, 0), (2, 0, 1, 1200), (3, 0, 1, 9_000), (4, 0, 1, 5_000)]);
        let breaks: Vec<_> = index.all().map(|(_, entry)| entry.discontinuity).collect();
        assert_eq!(breaks, [false, false, true, true]);
        let counted: Vec<_> = index.all().map(|(_, entry)| entry.breaks).collect();
        assert_eq!(counted, [1, 1, 2, 3]);
        assert_eq!(ranges(index.all().map(|(_, entry)| entry), 10), [(0, 2_200), (5_000, 6_000), (9_000, 10_000)]);
        assert_eq!(
            ranges(index.all().map(|(_, entry)| entry), 1),
            [(0, 10_000)],
            "the smallest holes are closed first"
        );
        assert_eq!(index.first_at(By::Producer, 8_000).unwrap().1.number, 3);
    }
}
