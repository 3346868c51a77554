//! Fragments on their way, in order: which may leave, which were sent, which are stored, and how far the cursor may move. Pure.
//!
//! ```text
//! push -> Waiting -> (leave) Leaving -> (left) Sent -> PERSISTED -> Done -> settle: the cursor moves over it
//!            ^---- the connection broke: back ----+---- ERROR -> Refused -> buried by the forwarder -> Done
//! ```
//! Laws: what leaves is always the oldest that waits; the cursor never passes what is not done; an acknowledgement of what was
//! not sent whole on this connection moves nothing.

use super::assemble::{Assembled, Fragment};
use crate::record::{Number, Record};
use crate::uplink::sink::weight;
use std::collections::VecDeque;

#[derive(Debug)]
enum State {
    Waiting,
    /// A part of it was given to the connection.
    Leaving,
    Sent,
    Refused(String),
    Done,
    /// Done without having been sent.
    Passed,
}

#[derive(Debug)]
struct Held {
    what: What,
    state: State,
    bytes: usize,
    /// The first number behind it.
    next: Number,
}

#[derive(Debug)]
enum What {
    Fragment(Fragment),
    Records(Vec<Record>),
    /// Nothing to send: numbers that are gone.
    Nothing,
}

#[derive(Debug)]
pub struct Window {
    held: VecDeque<Held>,
    bytes: usize,
    /// Everything below is done.
    next: Number,
}

/// What an acknowledgement told us.
#[derive(Debug, PartialEq, Eq)]
pub struct Stored {
    pub records: u64,
    pub bytes: u64,
}

impl Window {
    pub fn new(next: Number) -> Window {
        Window { held: VecDeque::new(), bytes: 0, next }
    }

    pub fn push(&mut self, what: Assembled) {
        let next = what.records().last().map_or(0, |record| record.number) + 1;
        let bytes = what.records().iter().map(weight).sum();
        let (what, state) = match what {
            Assembled::Fragment(fragment) => (What::Fragment(fragment), State::Waiting),
            Assembled::Refused(records, why) => (What::Records(records), State::Refused(why.into())),
        };
        self.bytes += bytes;
        self.held.push_back(Held { what, state, bytes, next });
    }

    /// Numbers that are gone, or that somebody else has seen to.
    pub fn pass(&mut self, next: Number) {
        self.held.push_back(Held { what: What::Nothing, state: State::Passed, bytes: 0, next });
    }

    /// Whether to read on. Beyond `memory` only while all in hand is on its way: the other side has a fragment whole when the
    /// next begins. What is refused and cannot be buried yet is not, or it would be read behind it without end.
    pub fn has_room(&self, memory: usize) -> bool {
        let is_on_its_way = |held: &Held| !matches!(held.state, State::Waiting | State::Refused(_));
        self.bytes < memory || self.held.iter().all(is_on_its_way)
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub fn next(&self) -> Number {
        self.next
    }

    /// Records in hand, what they weigh, and when the oldest came.
    pub fn held(&self) -> ((u64, u64), Option<u64>) {
        let records = self.held.iter().map(|held| held.records().len() as u64).sum();
        (
            (records, self.bytes as u64),
            self.held.iter().find_map(|held| held.records().first()).map(|record| record.arrival_ms),
        )
    }

    /// The oldest fragment that waits.
    pub fn waiting(&self) -> Option<&Fragment> {
        self.held.iter().find_map(|held| match (&held.what, &held.state) {
            (What::Fragment(fragment), State::Waiting) => Some(fragment),
            _ => None,
        })
    }

    /// The oldest that waits will not be sent.
    pub fn skip(&mut self) {
        if let Some(held) = self.held.iter_mut().find(|held| matches!(held.state, State::Waiting)) {
            self.bytes -= held.done();
            held.state = State::Passed;
        }
    }

    /// The oldest that waits begins to leave; `left` when all of it has.
    pub fn leave(&mut self) {
        if let Some(held) = self.held.iter_mut().find(|held| matches!(held.state, State::Waiting)) {
            held.state = State::Leaving;
        }
    }

    pub fn left(&mut self) {
        if let Some(held) = self.held.iter_mut().find(|held| matches!(held.state, State::Leaving)) {
            held.state = State::Sent;
        }
    }

    /// Fragments and bytes that were sent, in part at least, and are not stored.
    pub fn in_flight(&self) -> (usize, usize) {
        let flying = self.held.iter().filter(|held| matches!(held.state, State::Leaving | State::Sent));
        flying.fold((0, 0), |sum, held| (sum.0 + 1, sum.1 + held.bytes))
    }

    /// PERSISTED. `None` if nothing that was sent whole has this time: the other side is mistaken, or says it twice.
    pub fn stored(&mut self, timecode: i64) -> Option<Stored> {
        let held = self.held.iter_mut().find(|held| matches!(held.state, State::Sent) && held.is_named(timecode))?;
        let records = held.records();
        let stored = Stored {
            records: records.len() as u64,
            bytes: records.iter().map(|record| record.data.len() as u64).sum(),
        };
        self.bytes -= held.done();
        Some(stored)
    }

    /// ERROR, for good: about the fragment of this time, or about the `only` one in flight. `false` if it is none of these.
    pub fn refuse(&mut self, timecode: Option<i64>, only: bool, why: &str) -> bool {
        let mut flying = self.held.iter_mut().filter(|held| matches!(held.state, State::Leaving | State::Sent));
        let Some(held) = flying.find(|held| only || timecode.is_some_and(|timecode| held.is_named(timecode))) else {
            return false;
        };
        held.state = State::Refused(why.to_owned());
        true
    }

    /// How many that came after the oldest in hand were stored before it, though it was sent too.
    pub fn overtaken_by(&self) -> usize {
        if self.held.front().is_none_or(|oldest| !matches!(oldest.state, State::Sent)) {
            return 0;
        }
        self.held.iter().filter(|held| matches!(held.state, State::Done)).count()
    }

    /// The connection is gone: what it did not acknowledge waits again. How many fragments that are.
    pub fn broken(&mut self) -> usize {
        let flying = self.held.iter_mut().filter(|held| matches!(held.state, State::Leaving | State::Sent));
        flying.map(|held| held.state = State::Waiting).count()
    }

    /// What was refused and stands in front of everything else: it is to be buried now.
    pub fn dead(&mut self) -> Option<(&[Record], &str)> {
        self.settle();
        let held = self.held.front()?;
        match &held.state {
            State::Refused(why) => Some((held.records(), why)),
            _ => None,
        }
    }

    /// What [`Window::dead`] gave is buried.
    pub fn buried(&mut self) {
        if let Some(held) = self.held.front_mut().filter(|held| matches!(held.state, State::Refused(_))) {
            self.bytes -= held.done();
        }
    }

    /// Lets go of what is done in front; the first number that is not.
    pub fn settle(&mut self) -> Number {
        while let Some(held) = self.held.front().filter(|held| matches!(held.state, State::Done | State::Passed)) {
            self.next = self.next.max(held.next);
            self.held.pop_front();
        }
        self.next
    }
}

impl Held {
    fn records(&self) -> &[Record] {
        match &self.what {
            What::Fragment(fragment) => &fragment.records,
            What::Records(records) => records,
            What::Nothing => &[],
        }
    }

    fn is_named(&self, timecode: i64) -> bool {
        matches!(&self.what, What::Fragment(fragment) if fragment.timecodes.contains(&timecode))
    }

    /// Done, and out of memory: how many bytes that frees.
    fn done(&mut self) -> usize {
        self.what = What::Nothing;
        self.state = State::Done;
        std::mem::take(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::assemble::Assembler;
    use super::super::tests::records;
    use super::*;

    /// Fragments of one record each, a second long, numbered from 1.
    fn window(count: u64) -> Window {
        let (mut window, mut assembler, mut out) = (Window::new(1), Assembler::default(), Vec::new());
        for number in 1..=count {
            records(number, number as i64 * 1000, 100, 1 << 20, b"h")
                .into_iter()
                .for_each(|record| assembler.push(record, &mut out));
        }
        out.into_iter().for_each(|fragment| window.push(fragment));
        window
    }

    fn send(window: &mut Window, count: usize) {
        (0..count).for_each(|_| {
            window.leave();
            window.left();
        });
    }

    #[test]
    fn the_cursor_passes_nothing_that_is_not_persisted_however_acknowledgements_come() {
        let mut window = window(4);
        send(&mut window, 3);
        for timecode in [3000, 3000, 9999, 4000] {
            window.stored(timecode);
            assert_eq!(window.settle(), 1, "{timecode}");
        }
        assert!(window.stored(1000).is_some());
        assert_eq!(window.settle(), 2);
        assert_eq!(window.broken(), 1);
        assert_eq!(window.waiting().unwrap().media.start_ms, 2000, "it goes on at the first that is not persisted");
        send(&mut window, 2);
        assert!(window.stored(2000).is_some() && window.stored(4000).is_some());
        assert_eq!((window.settle(), window.bytes, window.is_empty()), (5, 0, true));
    }

    #[test]
    fn what_was_not_sent_whole_is_not_stored_whatever_is_said() {
        let mut window = window(2);
        assert_eq!(window.stored(1000), None);
        window.leave();
        assert_eq!(window.stored(1000), None);
        window.left();
        assert_eq!(window.stored(1000).map(|stored| stored.records), Some(1));
    }

    #[test]
    fn an_error_that_names_nobody_is_believed_only_of_one_alone() {
        let mut window = window(3);
        send(&mut window, 2);
        assert!(!window.refuse(None, false, "no") && !window.refuse(Some(77), false, "no"));
        assert_eq!(window.broken(), 2);
        send(&mut window, 1);
        assert!(window.refuse(None, true, "no"));
        assert_eq!(window.dead().map(|(records, why)| (records[0].number, why.to_owned())), Some((1, "no".into())));
        window.buried();
        assert_eq!(window.settle(), 2);
    }

    /// The fault: behind a refused one that could not be buried, every PERSISTED looked like one that had overtaken it.
    #[test]
    fn only_one_that_was_sent_and_not_answered_is_overtaken() {
        let mut window = window(3);
        send(&mut window, 3);
        assert!(window.stored(2000).is_some() && window.stored(3000).is_some());
        assert_eq!(window.overtaken_by(), 2);
        assert!(window.refuse(Some(1000), false, "no"));
        assert_eq!(window.overtaken_by(), 0);
    }

    #[test]
    fn beyond_the_memory_only_the_end_of_what_is_on_its_way_is_read() {
        let mut window = window(2);
        assert!(window.has_room(1 << 20) && !window.has_room(1));
        send(&mut window, 1);
        assert!(!window.has_room(1), "one waits");
        send(&mut window, 1);
        assert!(window.has_room(1), "the last is whole for the other side when another begins");
        assert!(window.refuse(Some(1000), false, "no"));
        assert!(!window.has_room(1), "it cannot be buried");
        window.dead();
        window.buried();
        assert!(window.has_room(1));
    }

    #[test]
    fn a_refused_one_is_buried_in_its_turn() {
        let mut window = window(2);
        send(&mut window, 2);
        assert!(window.refuse(Some(2000), false, "no"));
        assert!(window.dead().is_none());
        assert!(window.stored(1000).is_some());
        assert!(window.dead().is_some());
    }
}
