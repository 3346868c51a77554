//! Where a sink stands in a shard: a low mark and what it has acknowledged above it.

use crate::record::Number;
use serde::{Deserialize, Serialize};

/// Everything below `next` is acknowledged, and so are the ranges of `done`; they are sorted, apart, and above `next`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CursorState {
    /// The lowest number that is not acknowledged.
    pub next: Number,
    /// Acknowledged ranges above it, both ends included.
    pub done: Vec<(Number, Number)>,
}

impl Default for CursorState {
    fn default() -> Self {
        CursorState { next: 1, done: Vec::new() }
    }
}

impl CursorState {
    pub fn at(next: Number) -> Self {
        CursorState { next, done: Vec::new() }
    }

    pub fn is_done(&self, number: Number) -> bool {
        number < self.next || self.done.iter().any(|(from, to)| (*from..=*to).contains(&number))
    }

    /// Marks `from..=to` acknowledged, joins what touches and raises the low mark over it.
    pub fn acknowledge(&mut self, from: Number, to: Number) {
        if to < self.next || from > to {
            return;
        }
        let (mut from, mut to) = (from.max(self.next), to);
        self.done.retain(|&(a, b)| {
            let apart = b.saturating_add(1) < from || a > to.saturating_add(1);
            if !apart {
                from = from.min(a);
                to = to.max(b);
            }
            apart
        });
        if from == self.next {
            self.next = to + 1;
        } else {
            let at = self.done.partition_point(|&(a, _)| a < from);
            self.done.insert(at, (from, to));
        }
        debug_assert!(
            self.done.iter().all(|&(a, b)| a > self.next && a <= b),
            "cursor law: ranges stand above the low mark"
        );
    }

    /// Moves the low mark to at least `next`: what lies below is gone.
    pub fn raise(&mut self, next: Number) {
        if next > self.next {
            self.acknowledge(self.next, next - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_low_mark_rises_over_what_was_acknowledged_out_of_order() {
        let mut cursor = CursorState::default();
        cursor.acknowledge(3, 4);
        cursor.acknowledge(6, 6);
        assert_eq!((cursor.next, cursor.done.as_slice()), (1, &[(3, 4), (6, 6)][..]));
        cursor.acknowledge(1, 2);
        assert_eq!((cursor.next, cursor.done.as_slice()), (5, &[(6, 6)][..]));
        cursor.acknowledge(5, 5);
        assert_eq!((cursor.next, cursor.done.as_slice()), (7, &[][..]));
    }

    proptest! {
        #[test]
        fn it_is_the_set_of_what_was_acknowledged(ranges in prop::collection::vec((1u64..60, 0u64..6), 0..40)) {
            let mut cursor = CursorState::default();
            let mut model = BTreeSet::new();
            for (from, length) in ranges {
                cursor.acknowledge(from, from + length);
                model.extend(from..=from + length);
                for number in 1..70 {
                    prop_assert_eq!(cursor.is_done(number), model.contains(&number), "{} in {:?}", number, &cursor);
                }
            }
        }
    }
}
