//! What of a shard was read and what was acknowledged, number by number, between the low mark and the reader. Pure.
//!
//! Lanes acknowledge out of order, hundreds of thousands of numbers a second, so this is a bitmap over the window; the
//! log's [`CursorState`], made from it now and then, is what survives a restart.
//!
//! Laws: everything below `next` is acknowledged, `next` is not.

use crate::log::CursorState;
use crate::record::Number;
use std::collections::VecDeque;

/// Numbers covered by one word.
const WORD: u64 = 64;
/// Numbers a cursor's ranges may reach above its low mark; what lies higher is sent again. 8 MiB of bitmap.
const REACH_MAX: u64 = 1 << 26;

#[derive(Debug)]
pub struct Progress {
    next: Number,
    /// Bits of the numbers from `next` rounded down to a word; a bit is set when the number is acknowledged.
    words: VecDeque<Word>,
    acknowledged_above: u64,
    bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Word {
    bits: u64,
    bytes: u64,
}

impl Progress {
    pub fn new(cursor: &CursorState) -> Self {
        let next = cursor.next.max(1);
        let mut progress = Progress { next, words: VecDeque::new(), acknowledged_above: 0, bytes: 0 };
        for &(from, to) in &cursor.done {
            for number in from.max(next)..=to.min(next.saturating_add(REACH_MAX)) {
                progress.set(number);
            }
        }
        progress
    }

    /// The low mark.
    pub fn next(&self) -> Number {
        self.next
    }

    /// Records between the low mark and the reader, in bytes, acknowledged ones included.
    pub fn window_bytes(&self) -> u64 {
        self.bytes
    }

    /// Numbers above the low mark that are acknowledged.
    pub fn acknowledged_above(&self) -> u64 {
        self.acknowledged_above
    }

    pub fn is_done(&self, number: Number) -> bool {
        number < self.next || self.words.get(self.slot(number)).is_some_and(|word| word.bits & bit(number) != 0)
    }

    /// A number came from the reader; `false` if it is acknowledged already.
    pub fn note_read(&mut self, number: Number, bytes: usize) -> bool {
        if self.is_done(number) {
            return false;
        }
        let slot = self.slot(number);
        self.grow(slot);
        self.words[slot].bytes += bytes as u64;
        self.bytes += bytes as u64;
        true
    }

    pub fn acknowledge(&mut self, number: Number) {
        if number < self.next {
            return;
        }
        self.set(number);
        self.advance();
    }

    /// Acknowledges everything up to `to`: a range that is gone. However long, it costs nothing.
    pub fn raise(&mut self, to: Number) {
        let next = to.saturating_add(1);
        if next <= self.next {
            return;
        }
        let words = (next / WORD - self.next / WORD) as usize;
        for word in self.words.drain(..words.min(self.words.len())) {
            self.bytes -= word.bytes;
        }
        self.next = next;
        self.acknowledged_above = self.count_above();
        self.advance();
    }

    /// As the log keeps it, with at most `ranges_max` ranges: what does not fit is sent again after a restart.
    pub fn cursor(&self, ranges_max: usize) -> CursorState {
        let mut cursor = CursorState::at(self.next);
        let base = self.next / WORD * WORD;
        let mut open: Option<Number> = None;
        for (at, word) in self.words.iter().enumerate() {
            let start = base + at as u64 * WORD;
            let uniform = (word.bits == 0 && open.is_none()) || (word.bits == u64::MAX && open.is_some());
            if uniform {
                continue;
            }
            for number in start.max(self.next)..start + WORD {
                match (word.bits & bit(number) != 0, open) {
                    (true, None) => open = Some(number),
                    (false, Some(from)) => {
                        cursor.done.push((from, number - 1));
                        open = None;
                        if cursor.done.len() >= ranges_max {
                            return cursor;
                        }
                    }
                    _ => {}
                }
            }
        }
        if let Some(from) = open {
            cursor.done.push((from, base + self.words.len() as u64 * WORD - 1));
        }
        cursor
    }

    fn slot(&self, number: Number) -> usize {
        (number / WORD - self.next / WORD) as usize
    }

    fn grow(&mut self, slot: usize) {
        while self.words.len() <= slot {
            self.words.push_back(Word::default());
        }
    }

    fn set(&mut self, number: Number) {
        let slot = self.slot(number);
        self.grow(slot);
        if self.words[slot].bits & bit(number) == 0 {
            self.words[slot].bits |= bit(number);
            self.acknowledged_above += 1;
        }
    }

    /// Moves the low mark over what is acknowledged.
    fn advance(&mut self) {
        while let Some(word) = self.words.front() {
            let within = self.next % WORD;
            let run = u64::from((word.bits >> within).trailing_ones()).min(WORD - within);
            self.next += run;
            self.acknowledged_above -= run;
            if within + run < WORD {
                break;
            }
            self.bytes -= word.bytes;
            self.words.pop_front();
        }
    }

    fn count_above(&self) -> u64 {
        let within = self.next % WORD;
        let ones = |(at, word): (usize, &Word)| {
            u64::from(if at == 0 { (word.bits >> within).count_ones() } else { word.bits.count_ones() })
        };
        self.words.iter().enumerate().map(ones).sum()
    }
}

fn bit(number: Number) -> u64 {
    1 << (number % WORD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_low_mark_rises_over_what_was_acknowledged_out_of_order() {
        let mut progress = Progress::new(&CursorState::default());
        for number in 1..=200 {
            assert!(progress.note_read(number, 10));
        }
        assert_eq!(progress.window_bytes(), 2000);
        for number in 2..=200 {
            progress.acknowledge(number);
        }
        assert_eq!((progress.next(), progress.acknowledged_above()), (1, 199));
        assert_eq!(progress.cursor(9).done, [(2, 200)]);
        progress.acknowledge(1);
        assert_eq!((progress.next(), progress.acknowledged_above()), (201, 0));
    }

    #[test]
    fn a_restart_goes_on_where_the_cursor_stood() {
        let cursor = CursorState { next: 5, done: vec![(7, 9), (100, 300)] };
        let mut progress = Progress::new(&cursor);
        assert_eq!(progress.cursor(9), cursor);
        assert!(progress.note_read(5, 1) && progress.note_read(6, 1));
        assert!(!progress.note_read(7, 1));
        progress.acknowledge(5);
        progress.acknowledge(6);
        assert_eq!(progress.next(), 10);
    }

    // A window that never empties is one that nothing enters any more.
    #[test]
    fn what_is_passed_over_leaves_the_window() {
        let mut progress = Progress::new(&CursorState::default());
        (1..=200).for_each(|number| _ = progress.note_read(number, 10));
        progress.raise(5_000);
        assert_eq!(progress.window_bytes(), 0);
    }

    #[test]
    fn a_lost_range_of_billions_costs_nothing() {
        let mut progress = Progress::new(&CursorState::at(10));
        progress.raise(5_000_000_000_000);
        assert_eq!((progress.next(), progress.words.len()), (5_000_000_000_001, 0));
    }

    proptest! {
        #[test]
        fn it_says_the_same_as_the_logs_cursor(
            start in 1u64..200,
            steps in prop::collection::vec((0u64..300, any::<bool>()), 0..200),
        ) {
            let mut model = CursorState::at(start);
            let mut progress = Progress::new(&model);
            for (above, raise) in steps {
                let number = start + above;
                if raise && above % 7 == 0 {
                    progress.raise(number);
                    model.raise(number + 1);
                } else {
                    progress.note_read(number, 1);
                    progress.acknowledge(number);
                    model.acknowledge(number, number);
                }
                prop_assert_eq!(progress.cursor(usize::MAX), model.clone());
                let above: u64 = model.done.iter().map(|(a, b)| b - a + 1).sum();
                prop_assert_eq!(progress.acknowledged_above(), above);
            }
        }
    }
}
