//! What leaves when: traces of single events first, then runs against an upstream that does what it likes.

use super::*;
use crate::record::{Header, HeaderId};
use crate::uplink::map::UpstreamShard;
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::HashMap;

const LIMITS: Limits = Limits {
    group_records_max: 8,
    group_bytes_max: 1 << 20,
    distinct_keys: false,
    alone: None,
    headers_max: usize::MAX,
    record_overhead: 0,
    entry_per_record: false,
    request_entries_max: 500,
    request_bytes_max: 4 << 20,
    requests_in_flight_max: 8,
    blocks: false,
};

fn record(number: Number, key: &str) -> Record {
    Record {
        number,
        arrival_ms: number,
        key: Bytes::copy_from_slice(key.as_bytes()),
        explicit_hash: None,
        producer: None,
        headers: Vec::new(),
        data: Bytes::from_static(b"0123456789"),
    }
}

fn whole() -> Arc<ShardMap> {
    Arc::new(ShardMap::whole())
}

fn lanes() -> Lanes {
    Lanes::new(0, (HashKey(0), HashKey::MAX), &CursorState::default(), whole())
}

fn halves() -> Arc<ShardMap> {
    let half = u128::MAX / 2;
    let shard = |id: &str, a, b| UpstreamShard { id: id.into(), range: (HashKey(a), HashKey(b)) };
    Arc::new(ShardMap::new(vec![shard("a", 0, half), shard("b", half + 1, u128::MAX)]).unwrap())
}

fn take(lanes: &mut Lanes) -> Option<Group> {
    lanes.take(&LIMITS, &mut Fill::default())
}

fn numbers(group: &Group) -> Vec<Number> {
    group.records.iter().map(|out| out.record.number).collect()
}

#[test]
fn a_failed_group_holds_its_lane_and_no_other() {
    let mut lanes = lanes();
    for (number, key) in [(1, "a"), (2, "b"), (3, "a"), (4, "b")] {
        lanes.push(Kind::Record, record(number, key));
    }
    let a = take(&mut lanes).unwrap();
    let b = take(&mut lanes).unwrap();
    assert_eq!((numbers(&a), numbers(&b)), (vec![1, 3], vec![2, 4]));
    lanes.push(Kind::Record, record(5, "a"));
    assert!(take(&mut lanes).is_none(), "one group of a lane in flight");
    lanes.finish(a.id, Verdict::Failed(100), 0);
    lanes.finish(b.id, Verdict::Stored, 0);
    lanes.push(Kind::Record, record(6, "b"));
    assert_eq!(numbers(&take(&mut lanes).unwrap()), [6]);
    assert!(take(&mut lanes).is_none());
    assert_eq!(lanes.next_wake_ms(), Some(100));
    lanes.wake(100);
    assert_eq!(numbers(&take(&mut lanes).unwrap()), [1, 3, 5], "sent again from its oldest record");
    assert_eq!(lanes.progress().cursor(9), CursorState { next: 1, done: vec![(2, 2), (4, 4)] });
}

#[test]
fn a_partial_failure_keeps_what_was_not_stored_in_order() {
    let mut lanes = lanes();
    let limits = Limits { distinct_keys: true, ..LIMITS };
    for number in 1..=4 {
        lanes.push(Kind::Record, record(number, "a"));
    }
    let first = lanes.take(&limits, &mut Fill::default()).unwrap();
    assert_eq!(numbers(&first), [1], "no two records of a key");
    lanes.finish(first.id, Verdict::Partly(&[false], 0), 0);
    lanes.wake(0);
    let again = lanes.take(&limits, &mut Fill::default()).unwrap();
    assert_eq!(numbers(&again), [1]);
}

#[test]
fn a_gap_is_acknowledged_when_all_that_tell_of_it_are_stored() {
    let mut lanes = lanes();
    lanes.follow(&halves());
    let tell = |point| Record { explicit_hash: Some(HashKey(point)), ..record(1, "headwater-gap") };
    lanes.push_gap(9, vec![tell(0), tell(u128::MAX)]);
    let (a, b) = (take(&mut lanes).unwrap(), take(&mut lanes).unwrap());
    assert_ne!(a.upstream, b.upstream);
    lanes.finish(a.id, Verdict::Stored, 0);
    assert_eq!(lanes.progress().next(), 1);
    assert!(lanes.is_telling_a_gap());
    lanes.finish(b.id, Verdict::Stored, 0);
    assert_eq!((lanes.progress().next(), lanes.is_empty(), lanes.is_telling_a_gap()), (10, true, false));
    lanes.push_gap(20, Vec::new());
    assert_eq!(lanes.progress().next(), 21);
}

#[test]
fn a_refused_record_is_found_by_halving_and_replaced() {
    let mut lanes = lanes();
    for number in 1..=8 {
        lanes.push(Kind::Record, record(number, "a"));
    }
    let mut dead = None;
    let mut stored = Vec::new();
    while let Some(group) = take(&mut lanes) {
        let (id, sent) = (group.id, numbers(&group));
        drop(group);
        if sent.contains(&5) && dead.is_none() {
            let finished = lanes.finish(id, Verdict::Refused, 0);
            if let Some(out) = finished.dead {
                let told = Outgoing { kind: Kind::Gap, record: out.record.clone() };
                dead = Some(out.record.number);
                assert!(take(&mut lanes).is_none(), "its lane waits");
                lanes.replace(id, out, Some(told));
            }
        } else {
            stored.extend(sent);
            lanes.finish(id, Verdict::Stored, 0);
        }
    }
    assert_eq!((dead, stored), (Some(5), (1..=8).collect::<Vec<_>>()));
    assert!(lanes.is_empty());
}

#[test]
fn a_suspect_group_is_sent_alone() {
    let mut lanes = lanes();
    lanes.push(Kind::Record, record(1, "a"));
    lanes.push(Kind::Record, record(2, "b"));
    let first = take(&mut lanes).unwrap();
    lanes.finish(first.id, Verdict::Refused, 0);
    let mut fill = Fill::default();
    assert_eq!(numbers(&lanes.take(&LIMITS, &mut fill).unwrap()), [2]);
    assert!(lanes.take(&LIMITS, &mut fill).is_none(), "not into a request with others");
    let mut fill = Fill::default();
    assert_eq!(numbers(&lanes.take(&LIMITS, &mut fill).unwrap()), [1]);
    lanes.push(Kind::Record, record(3, "c"));
    assert!(lanes.take(&LIMITS, &mut fill).is_none(), "and none after it");
}

/// One record that did not fit the form of the request made the whole request take another, with 500 records at most.
#[test]
fn a_record_with_more_headers_than_a_request_of_many_takes_is_sent_alone() {
    let mut lanes = lanes();
    let limits = Limits { headers_max: 2, ..LIMITS };
    let header = || Header::new(HeaderId::Topic, "t");
    for (number, key, headers) in [(1, "a", 2), (2, "a", 3), (3, "a", 0), (4, "b", 0)] {
        let headers = (0..headers).map(|_| header()).collect();
        lanes.push(Kind::Record, Record { headers, ..record(number, key) });
    }
    let mut request = || {
        let mut fill = Fill::default();
        let groups: Vec<_> = std::iter::from_fn(|| lanes.take(&limits, &mut fill)).collect();
        let sent: Vec<_> = groups.iter().map(numbers).collect();
        groups.iter().for_each(|group| drop(lanes.finish(group.id, Verdict::Stored, 0)));
        sent
    };
    assert_eq!(request(), [vec![1], vec![4]]);
    assert_eq!(request(), [[2]]);
    assert_eq!(request(), [[3]]);
}

#[test]
fn when_the_map_changes_a_lane_waits_for_what_left_under_the_old_one() {
    let mut lanes = lanes();
    for number in 1..=3 {
        lanes.push(Kind::Record, record(number, "a"));
    }
    let old = take(&mut lanes).unwrap();
    lanes.push(Kind::Record, record(4, "a"));
    lanes.follow(&halves());
    assert!(take(&mut lanes).is_none());
    let id = old.id;
    drop(old);
    lanes.finish(id, Verdict::Partly(&[true, false, false], 50), 0);
    let new = take(&mut lanes).unwrap();
    assert_eq!(numbers(&new), [2, 3, 4]);
    lanes.finish(new.id, Verdict::Stored, 0);
    assert_eq!(lanes.progress().next(), 5);
    assert_eq!(lanes.held_bytes(), 0);
}

/// A record that was found to be refused when its map was gone already was declared dead, and its track given up: the notice
/// in its place then stood in a track that nobody asks, and the shard never came to its end.
#[test]
fn a_record_refused_under_an_old_map_is_doubted_again_under_the_new_one() {
    let mut lanes = lanes();
    lanes.push(Kind::Record, record(1, "a"));
    let group = take(&mut lanes).unwrap();
    let id = group.id;
    drop(group);
    assert!(lanes.finish(id, Verdict::Refused, 0).dead.is_none(), "it stood with others perhaps");
    let alone = take(&mut lanes).unwrap();
    lanes.follow(&halves());
    let id = alone.id;
    drop(alone);
    assert!(lanes.finish(id, Verdict::Refused, 0).dead.is_none());
    let again = take(&mut lanes).unwrap();
    assert_eq!(numbers(&again), [1]);
    lanes.finish(again.id, Verdict::Stored, 0);
    assert!(lanes.is_empty());
    assert_eq!(lanes.progress().next(), 2);
}

#[test]
fn what_was_acknowledged_before_a_restart_is_not_sent_again() {
    let cursor = CursorState { next: 2, done: vec![(3, 3)] };
    let mut lanes = Lanes::new(0, (HashKey(0), HashKey::MAX), &cursor, whole());
    for number in 2..=4 {
        lanes.push(Kind::Record, record(number, "a"));
    }
    assert_eq!(numbers(&take(&mut lanes).unwrap()), [2, 4]);
}

/// Steps of a run against an upstream that does what it likes.
#[derive(Clone, Debug)]
enum Step {
    Push(u8),
    Take,
    Answer(prop::sample::Index, Fate),
    Wake,
    Remap,
}

#[derive(Clone, Debug)]
enum Fate {
    Stored,
    /// Committed, but the answer is lost.
    AnswerLost,
    Failed,
    Refused,
    /// The first so many landed where they belong.
    Partly(prop::sample::Index),
}

fn any_step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![
        3 => Just(Fate::Stored),
        1 => Just(Fate::AnswerLost),
        1 => Just(Fate::Failed),
        2 => Just(Fate::Refused),
        1 => any::<prop::sample::Index>().prop_map(Fate::Partly),
    ];
    prop_oneof![
        6 => (0u8..20).prop_map(Step::Push),
        4 => Just(Step::Take),
        4 => (any::<prop::sample::Index>(), fate).prop_map(|(at, fate)| Step::Answer(at, fate)),
        1 => Just(Step::Wake),
        1 => Just(Step::Remap),
    ]
}

struct Run {
    lanes: Lanes,
    in_flight: Vec<Group>,
    /// Upstream: numbers as they were stored, by key.
    stored: HashMap<Bytes, Vec<Number>>,
    pushed: Number,
    split: bool,
}

impl Run {
    fn step(&mut self, step: Step) {
        match step {
            Step::Push(key) => {
                self.pushed += 1;
                self.lanes.push(Kind::Record, record(self.pushed, &format!("key-{key}")));
            }
            Step::Take => self.in_flight.extend(take(&mut self.lanes)),
            Step::Wake => self.lanes.wake(u64::MAX - 1),
            Step::Remap => {
                self.split = !self.split;
                self.lanes.follow(&if self.split { halves() } else { whole() });
            }
            Step::Answer(at, fate) if !self.in_flight.is_empty() => {
                let group = self.in_flight.swap_remove(at.index(self.in_flight.len()));
                self.answer(group, fate);
            }
            Step::Answer(..) => {}
        }
    }

    fn answer(&mut self, group: Group, fate: Fate) {
        let count = match fate {
            Fate::Stored | Fate::AnswerLost => group.records.len(),
            Fate::Failed | Fate::Refused => 0,
            Fate::Partly(at) => at.index(group.records.len() + 1),
        };
        for out in &group.records[..count] {
            self.stored.entry(out.record.key.clone()).or_default().push(out.record.number);
        }
        let flags: Vec<bool> = (0..group.records.len()).map(|at| at < count).collect();
        let id = group.id;
        drop(group);
        let verdict = match fate {
            Fate::Stored => Verdict::Stored,
            Fate::AnswerLost | Fate::Failed => Verdict::Failed(5),
            Fate::Refused => Verdict::Refused,
            Fate::Partly(_) => Verdict::Partly(&flags, 5),
        };
        if let Some(dead) = self.lanes.finish(id, verdict, 0).dead {
            // It is held, as where everything is refused.
            self.lanes.replace(id, dead.clone(), Some(dead));
        }
    }

    fn drain(&mut self) {
        for _ in 0..10_000 {
            self.lanes.wake(u64::MAX - 1);
            self.in_flight.extend(take(&mut self.lanes));
            match self.in_flight.pop() {
                Some(group) => self.answer(group, Fate::Stored),
                None if self.lanes.is_empty() => return,
                None => {}
            }
        }
        panic!("records are stuck: {:?}", self.lanes);
    }
}

proptest! {
    /// P2 and P4: whatever fails, gets lost or is resharded, first occurrences of a key's records are in order and complete.
    #[test]
    fn order_is_kept_per_key_through_everything(steps in prop::collection::vec(any_step(), 0..400)) {
        let mut run =
            Run { lanes: lanes(), in_flight: Vec::new(), stored: HashMap::new(), pushed: 0, split: false };
        steps.into_iter().for_each(|step| run.step(step));
        run.drain();
        let mut seen = 0;
        for numbers in run.stored.values() {
            let mut firsts: Vec<Number> = Vec::new();
            for &number in numbers {
                if !firsts.contains(&number) {
                    prop_assert!(firsts.last().is_none_or(|last| *last < number), "{number} late in {numbers:?}");
                    firsts.push(number);
                }
            }
            seen += firsts.len() as u64;
        }
        prop_assert_eq!(seen, run.pushed);
        prop_assert_eq!(run.lanes.progress().next(), run.pushed + 1);
        prop_assert_eq!(run.lanes.held_bytes(), 0);
    }
}
