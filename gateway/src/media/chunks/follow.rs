//! One camera's numbers and clock, as its chunks come: which one is new, what is missing, when it was taken. Pure.
//!
//! Only a chunk whose bytes are known to be kept counts as repeated; a number that comes again with other bytes is a camera
//! that began anew, and is kept. A camera may store and forward: chunks of one clock that come late keep their times.
//!
//! ```text
//! a camera: version u8 = 1 | last u64 | init u64 | offset i64 ms (MIN: none) | end i64 ms | head u64 | delay u16 ms
//! each of its last 64 chunks: number u64 | hash u64
//! ```
//! Big-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::VecDeque;

/// Chunks remembered: more than a client has on its way when its connection breaks.
const RECENT_MAX: usize = 64;
/// More missing numbers than this are a new beginning, and not counted.
const MISSING_MAX: u64 = 1_000_000;
/// Times from here on are meant since 1970: the year 2001, in milliseconds.
const ABSOLUTE_MS: i64 = 978_307_200_000;
/// Up to so far ahead of this box's clock, in milliseconds.
const ABSOLUTE_AHEAD_MS: i64 = 86_400_000;
/// As late as a camera may be while this box has no clock to judge it by: the year 2100, in milliseconds.
const UNTIMED_MS: i64 = 4_102_444_800_000;
/// A clock that is anchored to ours may run ahead by this much, since a file is published faster than it plays: ten minutes, in
/// milliseconds.
const AHEAD_MS: i64 = 600_000;
/// It may lie behind by this much, since chunks may have waited in the camera: an hour, in milliseconds.
const BEHIND_MS: i64 = 3_600_000;
/// From one chunk to the next a clock goes on by at most this much, in milliseconds.
const FORWARD_MS: i64 = 10_000;
/// And falls back by at most this much.
const BACK_MS: i64 = 1_000;
const VERSION: u8 = 1;
const NO_OFFSET: i64 = i64::MIN;
const ROW_BYTES: usize = 43;

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Publisher {
    last: Option<u64>,
    /// Of the init its last chunk was under.
    init: u64,
    /// Makes its times milliseconds since 1970; 0 where they are.
    offset_ms: Option<i64>,
    /// Where its last chunk ended, by its own clock.
    end_ms: i64,
    /// Id of the head of its fragments and their delay: a decoder goes on only if both stay.
    pub head: (u64, u16),
    /// Numbers and hashes of its last chunks.
    recent: VecDeque<(u64, u64)>,
}

/// What a number says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The same bytes under the same number are kept already.
    Repeated,
    /// The next one, with so many missing before it.
    Next { missing: u64 },
    /// One that was missing.
    Late,
    /// The camera began anew.
    Anew,
}

/// A chunk as it came.
#[derive(Clone, Copy, Debug)]
pub struct Came {
    pub number: u64,
    /// Of its bytes.
    pub hash: u64,
    /// Of the init it is under.
    pub init: u64,
    /// By its own clock.
    pub start_ms: i64,
    pub end_ms: i64,
    /// This box does not know the time yet: it cannot say that a camera is ahead.
    pub untimed: bool,
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub missing: u64,
    pub offset_ms: i64,
    pub discontinuity: bool,
}

impl Publisher {
    pub fn place(&self, number: u64, hash: u64, init: u64) -> Place {
        let Some(last) = self.last else { return Place::Anew };
        let begins = number <= 1 && init != self.init;
        if !begins && self.recent.contains(&(number, hash)) {
            return Place::Repeated;
        }
        if number > last {
            let missing = number - last - 1;
            return if missing > MISSING_MAX { Place::Anew } else { Place::Next { missing } };
        }
        let known = self.recent.iter().any(|(other, _)| *other == number);
        let within = self.recent.front().is_some_and(|(oldest, _)| *oldest < number);
        if known || !within || number <= 1 { Place::Anew } else { Place::Late }
    }

    /// Enters a chunk that is not repeated.
    pub fn take(&mut self, place: Place, came: Came, now_ms: u64) -> Taken {
        if place == Place::Anew {
            *self = Publisher::default();
        }
        let missing = if let Place::Next { missing } = place { missing } else { 0 };
        let is_next = place == Place::Next { missing: 0 };
        let other_init = came.init != self.init;
        let (offset_ms, jumped) = self.clock(came, is_next, place == Place::Late, now_ms as i64);
        if self.recent.len() >= RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((came.number, came.hash));
        self.init = came.init;
        if place != Place::Late {
            (self.last, self.end_ms) = (Some(came.number), came.end_ms);
        }
        Taken { missing, offset_ms, discontinuity: !is_next || other_init || jumped }
    }

    /// What to add to its times, and whether that is not what it was.
    fn clock(&mut self, came: Came, is_next: bool, is_late: bool, now_ms: i64) -> (i64, bool) {
        let before = self.offset_ms;
        let latest_ms = if came.untimed { UNTIMED_MS } else { now_ms.saturating_add(ABSOLUTE_AHEAD_MS) };
        let offset_ms = if (ABSOLUTE_MS..=latest_ms).contains(&came.start_ms) {
            0
        } else {
            let fits = |offset: &i64| {
                let behind_ms = now_ms.saturating_sub(came.end_ms.saturating_add(*offset));
                let fell = came.start_ms < self.end_ms.saturating_sub(BACK_MS) && !is_late;
                let leapt = is_next && came.start_ms > self.end_ms.saturating_add(FORWARD_MS);
                // An offset of 0 is that of times which say themselves what they mean.
                *offset != 0 && (-AHEAD_MS..=BEHIND_MS).contains(&behind_ms) && !fell && !leapt
            };
            before.filter(fits).unwrap_or(now_ms.saturating_sub(came.end_ms))
        };
        self.offset_ms = Some(offset_ms);
        (offset_ms, before != Some(offset_ms))
    }

    /// All but the chunks themselves, each of which has a row of its own: see [`kept_chunk`].
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(ROW_BYTES);
        out.put_u8(VERSION);
        out.put_u64(self.last.unwrap_or(0));
        out.put_u64(self.init);
        out.put_i64(self.offset_ms.unwrap_or(NO_OFFSET));
        out.put_i64(self.end_ms);
        out.put_u64(self.head.0);
        out.put_u16(self.head.1);
        out.freeze()
    }

    /// `None`: of another version, or broken; the camera then begins anew.
    pub fn decode(mut row: &[u8], chunks: impl Iterator<Item = (u64, u64)>) -> Option<Publisher> {
        if row.len() != ROW_BYTES || row.get_u8() != VERSION {
            return None;
        }
        let (last, init, offset_ms, end_ms) = (row.get_u64(), row.get_u64(), row.get_i64(), row.get_i64());
        let head = (row.get_u64(), row.get_u16());
        let offset_ms = Some(offset_ms).filter(|offset| *offset != NO_OFFSET);
        // Those of a life before the last beginning lie in the other places, or too far back.
        let is_recent = |(number, _): &(u64, u64)| *number <= last && last - *number < RECENT_MAX as u64;
        let mut recent: Vec<_> = chunks.filter(is_recent).take(RECENT_MAX).collect();
        recent.sort_unstable();
        Some(Publisher { last: Some(last), init, offset_ms, end_ms, head, recent: recent.into() })
    }
}

/// Under which name the row of a chunk stands: the next [`RECENT_MAX`] chunks have others.
pub fn chunk_slot(number: u64) -> u64 {
    number % RECENT_MAX as u64
}

/// The row of a chunk. It is written with the chunk's record and says nothing of any other: a chunk that the log has refused
/// or lost has none, whatever came of those behind it.
pub fn chunk_row(number: u64, hash: u64) -> Bytes {
    Bytes::from([number.to_be_bytes(), hash.to_be_bytes()].concat())
}

pub fn kept_chunk(mut row: &[u8]) -> Option<(u64, u64)> {
    (row.len() == 16).then(|| (row.get_u64(), row.get_u64()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_700_000_000_000;

    fn came(number: u64, start_ms: i64) -> Came {
        Came { number, hash: number + 100, init: 7, start_ms, end_ms: start_ms + 1_000, untimed: false }
    }

    fn take(publisher: &mut Publisher, came: Came, now_ms: u64) -> (Place, Taken) {
        let place = publisher.place(came.number, came.hash, came.init);
        (place, publisher.take(place, came, now_ms))
    }

    /// A camera that has sent 1 to 9, a second each.
    fn running() -> Publisher {
        let mut publisher = Publisher::default();
        for number in 1..10 {
            let (_, taken) = take(&mut publisher, came(number, number as i64 * 1_000), NOW + number * 1_000);
            assert_eq!(taken.discontinuity, number == 1, "{number}");
        }
        publisher
    }

    #[test]
    fn a_missing_number_marks_the_next_and_is_counted() {
        let mut publisher = running();
        let (place, taken) = take(&mut publisher, came(13, 13_000), NOW + 13_000);
        assert_eq!((place, taken.missing, taken.discontinuity), (Place::Next { missing: 3 }, 3, true));
        let (place, taken) = take(&mut publisher, came(14, 14_000), NOW + 14_000);
        assert_eq!((place, taken.missing, taken.discontinuity), (Place::Next { missing: 0 }, 0, false));
        let (place, taken) = take(&mut publisher, came(11, 11_000), NOW + 14_500);
        assert_eq!((place, taken.discontinuity, taken.offset_ms), (Place::Late, true, NOW as i64 - 1_000));
        assert_eq!(take(&mut publisher, came(15, 15_000), NOW + 15_000).0, Place::Next { missing: 0 });
    }

    #[test]
    fn only_the_same_bytes_are_repeated() {
        let publisher = running();
        assert_eq!(publisher.place(9, 109, 7), Place::Repeated);
        assert_eq!(publisher.place(3, 103, 7), Place::Repeated);
        assert_eq!(publisher.place(9, 5, 7), Place::Anew, "other bytes under the number");
        assert_eq!(publisher.place(1, 5, 7), Place::Anew);
        assert_eq!(publisher.place(0, 5, 7), Place::Anew);
        assert_eq!(publisher.place(1, 101, 8), Place::Anew, "the first under a new init");
        assert_eq!(publisher.place(2_000_000, 5, 7), Place::Anew);
    }

    #[test]
    fn chunks_that_waited_in_the_camera_keep_their_times() {
        let mut publisher = running();
        for number in 10..70 {
            let (_, taken) = take(&mut publisher, came(number, number as i64 * 1_000), NOW + 70_000);
            assert_eq!((taken.offset_ms, taken.discontinuity), (NOW as i64 - 1_000, false), "{number}");
        }
    }

    #[test]
    fn chunks_that_come_faster_than_they_play_have_each_time_once() {
        let mut publisher = running();
        for number in 10..300 {
            let (_, taken) = take(&mut publisher, came(number, number as i64 * 1_000), NOW + 10_000);
            assert_eq!((taken.offset_ms, taken.discontinuity), (NOW as i64 - 1_000, false), "{number}");
        }
    }

    #[test]
    fn a_clock_that_jumps_is_anchored_anew_and_an_absolute_one_is_believed() {
        let mut publisher = running();
        let (_, taken) = take(&mut publisher, came(10, 604_800_000), NOW + 10_000);
        assert_eq!((taken.offset_ms + 604_801_000, taken.discontinuity), (NOW as i64 + 10_000, true), "a week ahead");
        let (_, taken) = take(&mut publisher, came(11, 0), NOW + 11_000);
        assert_eq!((taken.offset_ms + 1_000, taken.discontinuity), (NOW as i64 + 11_000, true), "and back");
        let (_, taken) = take(&mut publisher, came(12, NOW as i64 - 50_000), NOW + 12_000);
        assert_eq!((taken.offset_ms, taken.discontinuity), (0, true));
        let (_, taken) = take(&mut publisher, came(13, NOW as i64 - 49_000), NOW + 12_000);
        assert_eq!((taken.offset_ms, taken.discontinuity), (0, false));
        let (_, taken) = take(&mut publisher, came(14, NOW as i64 * 2), NOW + 12_000);
        assert_eq!(taken.offset_ms + NOW as i64 * 2 + 1_000, NOW as i64 + 12_000, "no camera is in the year 2077");
        let booting = Came { untimed: true, ..came(15, NOW as i64) };
        let (_, taken) = take(&mut publisher, booting, 5_000);
        assert_eq!(taken.offset_ms, 0, "a box without a clock, in 1970, believes a camera that has one");
    }

    proptest! {
        #[test]
        fn what_is_remembered_reads_back_and_what_was_taken_is_repeated(
            numbers in prop::collection::vec((0u64..200, any::<u64>(), any::<i64>()), 1..150), noise in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut publisher = Publisher::default();
            for (number, hash, start_ms) in numbers {
                let place = publisher.place(number, hash, 1);
                if place != Place::Repeated {
                    let end_ms = start_ms.saturating_add(1_000);
                    publisher.take(place, Came { number, hash, init: 1, start_ms, end_ms, untimed: false }, NOW);
                }
                prop_assert_eq!(publisher.place(number, hash, 1), Place::Repeated);
                prop_assert!(publisher.recent.len() <= RECENT_MAX);
            }
            let rows = publisher.recent.iter().map(|(number, hash)| chunk_row(*number, *hash));
            let read = Publisher::decode(&publisher.encode(), rows.filter_map(|row| kept_chunk(&row))).unwrap();
            let known = |number: &u64| publisher.recent.iter().any(|(other, _)| other == number);
            prop_assert!(read.recent.iter().all(|(number, _)| known(number)));
            prop_assert_eq!(Publisher { recent: publisher.recent.clone(), ..read }, publisher);
            let _ = (Publisher::decode(&noise, std::iter::empty()), kept_chunk(&noise));
        }
    }
}
