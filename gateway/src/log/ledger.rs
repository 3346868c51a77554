//! The gap ledger: which numbers of a shard are gone, and why (promise P5).
//!
//! Rows of losses never overlap, so that a reader tells each number once: the committer makes them, group after group, out
//! of what the ledger does not explain yet. A number that a destination refused is still here; such rows stand apart.
//!
//! Key of a row: stream u32, shard u32, 0 (lost) or 1 (refused), first number u64, all big-endian. Value: JSON.

use super::frame::Control;
use super::schema::Table;
use super::state::{State, shard_key, to_json};
use crate::record::{Gap, GapReason, Number, ShardIndex};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes that a row takes in a frame, at most, with the end of another that makes room for it.
const ROW_BYTES_MAX: usize = 160;
/// Rows of refused records that a shard has, at most. One more, and the two oldest are one, which spans what lies between
/// them: the record is still here, so nobody misses it for that.
pub const REFUSED_ROWS_MAX: usize = 1024;
const LOST: u8 = 0;
const REFUSED: u8 = 1;

fn class(reason: GapReason) -> u8 {
    if reason == GapReason::Rejected { REFUSED } else { LOST }
}

/// A row besides its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    to: Number,
    reason: u8,
    from_ms: u64,
    to_ms: u64,
}

fn key(stream: u32, shard: ShardIndex, class: u8, from: Number) -> Bytes {
    [&shard_key(stream, shard)[..], &[class], &from.to_be_bytes()].concat().into()
}

fn gap_of(key: &[u8], value: &[u8]) -> Option<Gap> {
    let shard = u32::from_be_bytes(key.get(4..8)?.try_into().ok()?);
    let from = u64::from_be_bytes(key.get(9..17)?.try_into().ok()?);
    let row: Row = serde_json::from_slice(value).ok()?;
    let reason = GapReason::from_u8(row.reason)?;
    Some(Gap { shard, from, to: row.to, reason, from_ms: row.from_ms, to_ms: row.to_ms })
}

fn row(stream: u32, gap: &Gap) -> Control {
    let row = Row { to: gap.to, reason: gap.reason as u8, from_ms: gap.from_ms, to_ms: gap.to_ms };
    (Table::Gaps, key(stream, gap.shard, class(gap.reason), gap.from), Some(to_json(&row)))
}

/// The parts of `from..=to` that no range of `known` covers; those are sorted and apart.
pub(super) fn without(
    from: Number,
    to: Number,
    known: impl Iterator<Item = (Number, Number)>,
) -> Vec<(Number, Number)> {
    let mut left = Vec::new();
    let mut at = from;
    for (first, last) in known.take_while(|(first, _)| *first <= to) {
        if first > at {
            left.push((at, first - 1));
        }
        at = at.max(last + 1);
    }
    if at <= to {
        left.push((at, to));
    }
    left
}

impl State {
    /// What is lost of `from..=to`: rows cut to it, in order.
    pub fn gaps(&self, stream: u32, shard: ShardIndex, from: Number, to: Number) -> Vec<Gap> {
        self.class_of(LOST, stream, shard, from, to)
    }

    fn class_of(&self, class: u8, stream: u32, shard: ShardIndex, from: Number, to: Number) -> Vec<Gap> {
        if from > to {
            return Vec::new();
        }
        let (first, last) = (key(stream, shard, class, 0), key(stream, shard, class, to));
        self.around(Table::Gaps, &first, &key(stream, shard, class, from), &last)
            .iter()
            .filter_map(|(key, value)| gap_of(key, value))
            .filter(|gap| gap.to >= from)
            .map(|gap| Gap { from: gap.from.max(from), to: gap.to.min(to), ..gap })
            .collect()
    }

    /// The whole ledger of a stream, by shard and number.
    pub fn ledger(&self, stream: u32) -> Vec<Gap> {
        let rows = self.scan(Table::Gaps, &stream.to_be_bytes());
        let mut gaps: Vec<Gap> = rows.iter().filter_map(|(key, value)| gap_of(key, value)).collect();
        gaps.sort_by_key(|gap| (gap.shard, gap.from));
        gaps
    }

    /// Numbers of `from..=to` that the ledger does not call lost.
    pub fn unexplained(&self, stream: u32, shard: ShardIndex, from: Number, to: Number) -> Vec<(Number, Number)> {
        without(from, to, self.gaps(stream, shard, from, to).iter().map(|gap| (gap.from, gap.to)))
    }

    /// Records of `from..=to`: numbers that the ledger does not call lost.
    pub fn records(&self, stream: u32, shard: ShardIndex, from: Number, to: Number) -> u64 {
        let lost: u64 = self.gaps(stream, shard, from, to).iter().map(Gap::count).sum();
        (to + 1).saturating_sub(from).saturating_sub(lost)
    }

    /// Ends the rows of refused records that are below `number`: those are gone, and rows of losses say why.
    pub fn end_refused_below(&self, stream: u32, shard: ShardIndex, number: Number) -> Vec<Control> {
        let below = self.class_of(REFUSED, stream, shard, 0, number).into_iter();
        // Cut to what was asked for: one that goes on has all of it.
        let below = below.filter(|gap| gap.to < number);
        below.map(|gap| (Table::Gaps, key(stream, shard, REFUSED, gap.from), None)).collect()
    }

    /// Makes the oldest rows of refused records one where `rows` would make them too many.
    fn join_refused(&self, stream: u32, shard: ShardIndex, rows: &mut Vec<Control>) {
        let known = self.class_of(REFUSED, stream, shard, 0, Number::MAX);
        let mut all: BTreeMap<Bytes, Gap> =
            known.iter().map(|gap| (key(stream, shard, REFUSED, gap.from), gap.clone())).collect();
        let of_shard = &key(stream, shard, REFUSED, 0)[..9];
        for (_, key, value) in rows.iter().filter(|(_, key, _)| key.starts_with(of_shard)) {
            all.extend(value.as_ref().and_then(|value| gap_of(key, value)).map(|gap| (key.clone(), gap)));
        }
        // As many as came, so that the frame has room for their ends.
        let surplus = all.len().saturating_sub(REFUSED_ROWS_MAX).min(all.len() - known.len());
        if surplus == 0 {
            return;
        }
        let oldest: BTreeMap<Bytes, Gap> = all.into_iter().take(surplus + 1).collect();
        rows.retain(|(_, key, _)| !oldest.contains_key(key));
        if let Some((first, last)) = oldest.values().next().zip(oldest.values().last()) {
            rows.push(row(stream, &Gap { to: last.to, to_ms: last.to_ms, ..first.clone() }));
        }
        rows.extend(oldest.into_keys().skip(1).map(|key| (Table::Gaps, key, None)));
    }

    /// Rows for what of a gap the ledger does not know. The first may prolong the row in front of it.
    pub fn gap_rows(&self, stream: u32, gap: &Gap) -> Vec<Control> {
        let Some(before) = gap.from.checked_sub(1) else { return self.new_gap_rows(stream, gap) };
        let mut rows = Vec::new();
        let touching = self.whole_row(class(gap.reason), stream, gap.shard, before);
        for part in self.new_gaps(stream, gap) {
            match &touching {
                Some(row_before) if part.from == gap.from && row_before.reason == gap.reason => {
                    rows.push(row(stream, &Gap { to: part.to, to_ms: part.to_ms, ..row_before.clone() }));
                }
                _ => rows.push(row(stream, &part)),
            }
        }
        rows
    }

    /// The same as rows of their own: whatever older frame is replayed over them, it has no row of the same key.
    pub fn new_gap_rows(&self, stream: u32, gap: &Gap) -> Vec<Control> {
        self.new_gaps(stream, gap).iter().map(|part| row(stream, part)).collect()
    }

    /// What of it the ledger does not know.
    pub fn new_gaps(&self, stream: u32, gap: &Gap) -> Vec<Gap> {
        let known = self.class_of(class(gap.reason), stream, gap.shard, gap.from, gap.to);
        let parts = without(gap.from, gap.to, known.iter().map(|known| (known.from, known.to)));
        parts.into_iter().map(|(from, to)| Gap { from, to, ..gap.clone() }).collect()
    }

    /// The row that ends with `number`, whole.
    fn whole_row(&self, class: u8, stream: u32, shard: ShardIndex, number: Number) -> Option<Gap> {
        let (first, at) = (key(stream, shard, class, 0), key(stream, shard, class, number));
        let rows = self.around(Table::Gaps, &first, &at, &at);
        rows.last().and_then(|(key, value)| gap_of(key, value)).filter(|gap| gap.to == number)
    }
}

/// Gaps on their way into the ledger: apart, and joined where they touch.
#[derive(Clone, Default)]
pub struct Pending {
    gaps: BTreeMap<(u32, ShardIndex, u8, Number), Gap>,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.gaps.is_empty()
    }

    /// What of a gap it does not have.
    pub fn unknown(&self, stream: u32, gap: &Gap) -> Vec<Gap> {
        let at = |from| (stream, gap.shard, class(gap.reason), from);
        let before = self.gaps.range(at(0)..=at(gap.from)).next_back();
        let behind = self.gaps.range(at(gap.from.saturating_add(1))..=at(gap.to.max(gap.from + 1)));
        let known: Vec<_> = before.into_iter().chain(behind).map(|(_, gap)| (gap.from, gap.to)).collect();
        let known = known.into_iter().filter(|(_, to)| *to >= gap.from);
        let parts = without(gap.from, gap.to, known).into_iter();
        parts.map(|(from, to)| Gap { from, to, ..gap.clone() }).collect()
    }

    /// Takes it in; what of it is new.
    pub fn put(&mut self, stream: u32, gap: &Gap) -> Vec<Gap> {
        let at = |from| (stream, gap.shard, class(gap.reason), from);
        let news = self.unknown(stream, gap);
        for Gap { from, to, .. } in news.iter().cloned() {
            let before = self.gaps.range_mut(at(0)..at(from)).next_back().map(|(_, gap)| gap);
            match before.filter(|before| before.to + 1 == from && before.reason == gap.reason) {
                Some(before) => (before.to, before.to_ms) = (to, gap.to_ms),
                None => _ = self.gaps.insert(at(from), Gap { from, to, ..gap.clone() }),
            }
        }
        news
    }

    /// Takes one out, or as much of it as there is room for: its rows take their bytes from `left`.
    pub fn pop(&mut self, state: &State, left: &mut usize) -> Option<(u32, Gap)> {
        let first = self.gaps.first_entry()?;
        let rows = state.gap_rows(first.key().0, first.get());
        let fitting = rows.len().min(*left / ROW_BYTES_MAX);
        let end = match rows.len() > fitting {
            false => Number::MAX,
            true => rows[..fitting].last().and_then(|(_, key, value)| gap_of(key, value.as_ref()?))?.to,
        };
        *left -= fitting * ROW_BYTES_MAX;
        let ((stream, ..), mut gap) = first.remove_entry();
        if end < gap.to {
            self.put(stream, &Gap { from: end + 1, ..gap.clone() });
            gap.to = end;
        }
        Some((stream, gap))
    }

    /// A group failed: what was on its way is so again.
    pub fn take_in(&mut self, other: &Pending) {
        for ((stream, ..), gap) in &other.gaps {
            self.put(*stream, gap);
        }
    }

    /// The rows that make them known, given everything that is.
    pub fn rows(&self, state: &State) -> Vec<Control> {
        let mut rows = self.gaps.iter().flat_map(|((stream, ..), gap)| state.gap_rows(*stream, gap)).collect();
        let refused = self.gaps.keys().filter(|(_, _, class, _)| *class == REFUSED);
        for (stream, shard) in refused.map(|(stream, shard, ..)| (*stream, *shard)).collect::<BTreeSet<_>>() {
            state.join_refused(stream, shard, &mut rows);
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use GapReason::*;

    fn gap(from: Number, to: Number, reason: GapReason) -> Gap {
        Gap { shard: 2, from, to, reason, from_ms: from, to_ms: to }
    }

    fn note(state: &State, gaps: &[Gap]) {
        let mut pending = Pending::default();
        gaps.iter().for_each(|gap| _ = pending.put(1, gap));
        state.apply(0, pending.rows(state));
    }

    fn ledger(state: &State) -> Vec<(Number, Number, GapReason)> {
        state.ledger(1).iter().map(|gap| (gap.from, gap.to, gap.reason)).collect()
    }

    #[test]
    fn a_gap_that_continues_a_row_joins_it() {
        let state = State::default();
        note(&state, &[gap(1, 10, Expired)]);
        note(&state, &[gap(11, 20, Expired)]);
        note(&state, &[gap(21, 21, Corrupt)]);
        assert_eq!(ledger(&state), [(1, 20, Expired), (21, 21, Corrupt)]);
        let cut: Vec<_> = state.gaps(1, 2, 15, 30).iter().map(|gap| (gap.from, gap.to)).collect();
        assert_eq!(cut, [(15, 20), (21, 21)]);
        assert!(state.gaps(1, 3, 1, 30).is_empty(), "another shard");
        assert_eq!(state.gaps(1, 2, 21, 21).len(), 1, "a single number");
        assert_eq!(state.unexplained(1, 2, 0, 25), [(0, 0), (22, 25)]);
    }

    // An eviction covers a block that was damaged and numbers that were jumped over: they used to be told twice, and what
    // lay behind them a third time as unknown, because the rows overlapped.
    #[test]
    fn what_is_explained_is_not_explained_again() {
        let state = State::default();
        note(&state, &[gap(5, 6, Corrupt), gap(10, 12, Unused)]);
        note(&state, &[gap(1, 20, Evicted)]);
        let expected = [(1, 4, Evicted), (5, 6, Corrupt), (7, 9, Evicted), (10, 12, Unused), (13, 20, Evicted)];
        assert_eq!(ledger(&state), expected);
        assert_eq!(state.gaps(1, 2, 1, 20).len(), 5);
        note(&state, &[gap(1, 20, Evicted)]);
        assert_eq!(ledger(&state), expected);
    }

    // A sink's refusal of number 1 that came after its eviction used to replace the row of 1 to 9.
    #[test]
    fn what_a_destination_refused_explains_no_loss_and_hides_none() {
        let state = State::default();
        note(&state, &[gap(1, 9, Evicted)]);
        note(&state, &[gap(1, 1, Rejected), gap(4, 4, Rejected)]);
        assert_eq!(state.gaps(1, 2, 1, 9), [gap(1, 9, Evicted)]);
        assert_eq!(ledger(&state), [(1, 9, Evicted), (1, 1, Rejected), (4, 4, Rejected)]);
    }

    #[test]
    fn refused_records_have_a_bounded_number_of_rows_which_name_each_of_them() {
        let state = State::default();
        let newest = 2 * (REFUSED_ROWS_MAX as u64 + 100);
        for from in (2..newest).step_by(20) {
            let group: Vec<_> = (from..from + 20).step_by(2).map(|number| gap(number, number, Rejected)).collect();
            note(&state, &group);
        }
        let rows = ledger(&state);
        assert_eq!(rows.len(), REFUSED_ROWS_MAX);
        assert!(rows[0].0 == 2 && rows[0].1 >= 200, "{:?}", rows[0]);
        assert!(rows.windows(2).all(|pair| pair[0].1 + 2 == pair[1].0), "in order, and none is missing");
        note(&state, &[gap(50, 50, Rejected)]);
        assert_eq!(ledger(&state), rows);
        let ends = state.end_refused_below(1, 2, 1_001);
        state.apply(0, ends);
        assert_eq!(ledger(&state)[0].0, 1_002);
        state.apply(0, state.end_refused_below(1, 2, u64::MAX));
        assert_eq!(ledger(&state), []);
    }

    #[test]
    fn gaps_on_their_way_are_apart_and_joined() {
        let mut pending = Pending::default();
        for gap in [gap(5, 9, Unused), gap(10, 12, Unused), gap(3, 20, Corrupt), gap(7, 7, Rejected), gap(1, 1, Unused)]
        {
            pending.put(1, &gap);
        }
        let state = State::default();
        let mut again = Pending::default();
        again.put(1, &gap(8, 14, Unused));
        again.take_in(&pending);
        state.apply(0, again.rows(&state));
        let losses: Vec<_> = ledger(&state).into_iter().filter(|(_, _, reason)| *reason != Rejected).collect();
        assert_eq!(losses, [(1, 1, Unused), (3, 4, Corrupt), (5, 7, Unused), (8, 14, Unused), (15, 20, Corrupt)]);
    }
}
