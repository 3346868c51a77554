//! `only = "marked"`: which fragments a mark covers, and how long one waits for a mark. Pure.

use super::assemble::Fragment;
use crate::wire::media::Mark;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Send,
    /// No mark came in time.
    Pass,
    /// One may still come, for so many milliseconds.
    Wait(u64),
}

/// `held_ms`: for so long it has been the next to go, whatever the clock on the wall has done since it came.
pub fn judge(fragment: &Fragment, marks: &[Mark], now_ms: u64, held_ms: u64, within_ms: u64) -> Verdict {
    if marks.iter().any(|mark| mark.covers(&fragment.media)) {
        return Verdict::Send;
    }
    let left_ms = fragment.arrival_ms().saturating_add(within_ms).saturating_sub(now_ms);
    match left_ms.min(within_ms.saturating_sub(held_ms)) {
        0 => Verdict::Pass,
        left_ms => Verdict::Wait(left_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::super::assemble::{Assembled, Assembler};
    use super::super::tests::records;
    use super::*;

    #[test]
    fn a_fragment_goes_when_it_is_marked_and_waits_for_a_mark_only_so_long() {
        let mut out = Vec::new();
        let mut assembler = Assembler::default();
        records(1, 5_000, 10, 1 << 20, b"h").into_iter().for_each(|record| assembler.push(record, &mut out));
        let [Assembled::Fragment(fragment)] = &out[..] else { panic!("{out:?}") };
        let mark = |from_ms, to_ms| vec![Mark { id: String::new(), from_ms, to_ms, name: String::new() }];
        // It came at 1,000 and lasts from 5,000 to 6,000.
        let judge = |marks: &[Mark], now_ms| judge(fragment, marks, now_ms, 0, 60_000);
        assert_eq!(judge(&mark(5_999, 9_000), 99_000), Verdict::Send);
        assert_eq!(judge(&mark(6_000, 9_000), 99_000), Verdict::Pass);
        assert_eq!(judge(&mark(0, 5_000), 31_000), Verdict::Wait(30_000));
        assert_eq!(judge(&[], 0), Verdict::Wait(60_000));
        assert_eq!(judge(&[], 61_000), Verdict::Pass);
        assert_eq!(super::judge(fragment, &[], 0, 60_000, 60_000), Verdict::Pass, "a clock set back holds nothing");
    }
}
