//! Tokens that are ours, forged and over; windows of live, replayed and recorded sessions.

use super::*;
use crate::clock::Clock;
use crate::record::Record;
use crate::wire::media::Media;
use bytes::Bytes;
use proptest::prelude::*;

const WALL_MS: u64 = 1_800_000_000_000;

fn now(clock: &Clock) -> Issued {
    Issued::new(clock.now(), clock.boot_id())
}

fn key(of: u8) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &[of; 32])
}

fn session(mode: Mode, clock: &Clock) -> Session {
    Session {
        stream: "front-door_1.a".into(),
        stream_id: 7,
        protocol: Protocol::Dash,
        mode,
        by: By::Producer,
        breaks: Breaks::OnDiscontinuity,
        dates: true,
        fragments_max: 4,
        from: 0,
        to: i64::MAX,
        lasts_s: 300,
        issued: now(clock),
    }
}

/// What is shown of an index, as the archive selects it.
fn shown(session: &Session, index: &Index, now: &Issued) -> Shown {
    match session.mode {
        Mode::Live => session.live(index),
        _ => session
            .recorded(index.all().map(|(at, entry)| (at, *entry)).filter(|(_, entry)| session.covers(entry)), now),
    }
}

/// Fragments of a second each that begin at these times.
fn index(starts_ms: &[i64]) -> Index {
    let mut index = Index::new(usize::MAX);
    for (at, start_ms) in starts_ms.iter().enumerate() {
        let media = Media {
            part: 0,
            parts: 1,
            discontinuity: false,
            start_ms: *start_ms,
            duration_ms: 1000,
            bytes: 10,
            head_bytes: 5,
            head_id: 1,
            delay_ms: 0,
        };
        index.add(&Record {
            number: 100 + at as u64,
            arrival_ms: WALL_MS + at as u64 * 1000,
            key: Bytes::from_static(b"cam"),
            explicit_hash: None,
            producer: None,
            headers: vec![media.header()],
            data: Bytes::new(),
        });
    }
    index
}

fn starts(shown: &Shown) -> Vec<i64> {
    shown.entries.iter().map(|(_, entry)| entry.start_ms).collect()
}

#[test]
fn a_token_says_all_of_a_session_and_outlives_a_restart() {
    let clock = Clock::manual(1, WALL_MS);
    for mode in [Mode::Live, Mode::Replay, Mode::OnDemand] {
        for (breaks, by) in
            [(Breaks::Always, By::Server), (Breaks::Never, By::Producer), (Breaks::OnDiscontinuity, By::Server)]
        {
            let one = Session { breaks, by, from: -5, ..session(mode, &clock) };
            let text = one.seal(&key(1));
            assert!(text.len() < 120, "a playlist repeats it: {}", text.len());
            assert_eq!(Session::open(&key(1), &text, &now(&clock)), Ok(one));
        }
    }
}

#[test]
fn a_token_of_another_box_is_foreign_and_an_old_one_is_over() {
    let clock = Clock::manual(1, WALL_MS);
    let text = session(Mode::Live, &clock).seal(&key(1));
    assert_eq!(Session::open(&key(2), &text, &now(&clock)), Err(SessionError::Foreign));
    clock.jump_wall(7 * 86_400_000);
    clock.advance(300_000);
    assert!(Session::open(&key(1), &text, &now(&clock)).is_ok(), "a jump of the wall clock ends nothing");
    clock.advance(1);
    assert_eq!(Session::open(&key(1), &text, &now(&clock)), Err(SessionError::Expired));
}

#[test]
fn live_shows_the_newest_and_on_demand_the_oldest_of_its_range() {
    let clock = Clock::manual(1, WALL_MS);
    let index = index(&[0, 1000, 2000, 3000, 4000, 5000]);
    let now = now(&clock);
    assert_eq!(starts(&shown(&session(Mode::Live, &clock), &index, &now)), [2000, 3000, 4000, 5000]);
    let on_demand = Session { from: 1000, to: 4000, fragments_max: 3, ..session(Mode::OnDemand, &clock) };
    let shown = shown(&on_demand, &index, &now);
    assert_eq!((starts(&shown), shown.ended), (vec![1000, 2000, 3000], true));
    assert!(on_demand.covers(index.by_number(104).unwrap()) && !on_demand.covers(index.by_number(105).unwrap()));
}

#[test]
fn a_replay_begins_at_its_time_and_grows_as_time_passes() {
    let clock = Clock::manual(1, WALL_MS);
    let index = index(&[0, 1000, 2000, 3000, 4000, 5000, 6000]);
    let replay = Session { from: 1000, ..session(Mode::Replay, &clock) };
    let at = |ms: u64| {
        clock.advance(ms);
        let shown = shown(&replay, &index, &now(&clock));
        (starts(&shown), shown.entries[0].0, shown.begun_ms)
    };
    assert_eq!(at(999), (vec![1000, 2000, 3000], 101, 0));
    assert_eq!(at(1), (vec![1000, 2000, 3000, 4000], 101, 0));
    assert_eq!(at(1000), (vec![2000, 3000, 4000, 5000], 102, 1000));
    assert_eq!(at(60_000), (vec![3000, 4000, 5000, 6000], 103, 2000));
    assert!(!shown(&replay, &index, &now(&clock)).ended, "without an end it waits for more");
}

#[test]
fn what_a_producer_sends_again_is_there_once_and_numbers_have_no_hole() {
    let clock = Clock::manual(1, WALL_MS);
    let index = index(&[0, 1000, 2000, 1000, 2000, 3000, 9000]);
    let nine = Session { fragments_max: 9, ..session(Mode::OnDemand, &clock) };
    let shown = shown(&nine, &index, &now(&clock));
    let list: Vec<_> = shown.entries.iter().map(|(at, entry)| (*at, entry.start_ms, entry.discontinuity)).collect();
    assert_eq!(list, [(100, 0, false), (101, 1000, false), (102, 2000, false), (103, 3000, false), (104, 9000, true)]);
}

/// The fault: one time ten hours ahead, or a clock set back, hid all that came after until the clock had caught up.
#[test]
fn a_time_that_is_wrong_hides_nothing_of_what_comes_after() {
    let clock = Clock::manual(1, WALL_MS);
    let index = index(&[5000, 6000, 36_000_000, 7000, 2500, 3500]);
    let nine = Session { fragments_max: 9, to: 40_000_000, ..session(Mode::OnDemand, &clock) };
    let shown = shown(&nine, &index, &now(&clock));
    let list: Vec<_> = shown.entries.iter().map(|(_, entry)| (entry.start_ms, entry.discontinuity)).collect();
    assert_eq!(list, [(5000, false), (6000, false), (36_000_000, true), (7000, true), (2500, true), (3500, false)]);
}

#[test]
fn discontinuities_may_be_told_always() {
    let clock = Clock::manual(1, WALL_MS);
    let always = Session { breaks: Breaks::Always, ..session(Mode::Live, &clock) };
    let shown = shown(&always, &index(&[0, 1000]), &now(&clock));
    assert!(shown.entries.iter().all(|(at, entry)| entry.discontinuity && u64::from(entry.breaks) == *at));
}

proptest! {
    #[test]
    fn a_token_with_any_bit_changed_is_foreign(bit in 0usize..1000) {
        let clock = Clock::manual(1, WALL_MS);
        let mut bytes = URL_SAFE_NO_PAD.decode(session(Mode::OnDemand, &clock).seal(&key(1))).unwrap();
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let opened = Session::open(&key(1), &URL_SAFE_NO_PAD.encode(bytes), &now(&clock));
        prop_assert_eq!(opened, Err(SessionError::Foreign));
    }

    #[test]
    fn noise_never_panics(noise in ".{0,700}") {
        let clock = Clock::manual(1, WALL_MS);
        prop_assert_eq!(Session::open(&key(1), &noise, &now(&clock)), Err(SessionError::Foreign));
    }
}
