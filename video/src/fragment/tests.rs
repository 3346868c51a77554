//! Where a stream is cut, what is dropped, and what a wrong clock costs.

use super::*;
use crate::media::{MS, Track};
use crate::testing::{SAMPLE, audio_track, cut, frame, parse, tracks, video_track};
use bytes::Bytes;
use proptest::prelude::*;

const WEEK_MS: i64 = 7 * 24 * 3600 * 1000;

/// A fragmenter that knows its tracks: 1 is video, 2 audio.
fn fragmenter() -> Fragmenter {
    let mut fragmenter = Fragmenter::new(Limits::default());
    assert_eq!(fragmenter.push(Event::Tracks(tracks())), Ok(None));
    fragmenter
}

/// Pushes frames and gives the fragments they ended; no limit is broken.
fn push(fragmenter: &mut Fragmenter, frames: impl IntoIterator<Item = Frame>) -> Vec<Fragment> {
    frames.into_iter().filter_map(|frame| fragmenter.push(Event::Frame(frame)).unwrap()).collect()
}

fn key(pts_ms: i64) -> Frame {
    frame(1, pts_ms, true)
}

fn delta(pts_ms: i64) -> Frame {
    frame(1, pts_ms, false)
}

fn sound(pts_ms: i64) -> Frame {
    frame(2, pts_ms, true)
}

fn tag(name: &str) -> Event {
    Event::Tags(vec![(name.into(), "x".into())])
}

fn names(fragment: &Fragment) -> Vec<&str> {
    fragment.tags.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn every_fragment_begins_with_a_keyframe_of_the_leading_track() {
    let mut it = fragmenter();
    let ended = push(&mut it, [key(0), sound(1), delta(40), key(1000), sound(1001)]);
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].frames, [key(0), sound(1), delta(40)]);
    assert_eq!(it.building(), [key(1000), sound(1001)]);
    assert_eq!(it.finish().unwrap().frames, [key(1000), sound(1001)]);
    assert_eq!(it.finish(), None);
}

#[test]
fn frames_before_the_first_keyframe_are_dropped_and_counted() {
    let mut it = fragmenter();
    push(&mut it, [delta(0), sound(1), key(40)]);
    assert_eq!(it.frames_dropped(), 2);
    let first = it.finish().unwrap();
    assert_eq!(first.frames, [key(40)]);
    assert!(!first.discontinuity);
}

#[test]
fn a_sample_is_cut_at_its_three_keyframes_not_at_its_clusters() {
    let (events, result) = parse(SAMPLE);
    result.unwrap();
    assert!(events.iter().filter(|event| matches!(event, Event::ClusterStart { .. })).count() > 3);
    let fragments = cut(events);
    assert_eq!(fragments.len(), 3);
    for fragment in fragments {
        assert!(!fragment.discontinuity);
        assert_eq!(fragment.of_track(1).count(), 10);
        assert_eq!(fragment.of_track(1).filter(|frame| frame.keyframe).count(), 1);
        assert!(fragment.frames[0].keyframe && fragment.frames[0].track == 1);
        assert_eq!(fragment.duration_ns() / 1_000_000_000, 1);
    }
}

#[test]
fn a_week_between_two_frames_is_no_fragment_of_a_week() {
    let mut it = fragmenter();
    let ended =
        push(&mut it, [key(0), delta(40), delta(WEEK_MS), sound(WEEK_MS), key(WEEK_MS + 40), delta(WEEK_MS + 80)]);
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].frames, [key(0), delta(40)]);
    assert_eq!(it.frames_dropped(), 2, "nothing decodes them");
    let next = it.finish().unwrap();
    assert!(next.discontinuity);
    assert_eq!(next.frames, [key(WEEK_MS + 40), delta(WEEK_MS + 80)]);
}

/// The fault: a frame lasts as long as it says, and so did its fragment: 49 days, and players waited as long for the next.
#[test]
fn a_frame_that_says_it_lasts_a_week_makes_no_fragment_of_a_week() {
    let week_ns = WEEK_MS as u64 * MS as u64;
    let mut it = fragmenter();
    it.push(Event::Frame(key(0))).unwrap();
    it.push(Event::Frame(Frame { duration_ns: Some(week_ns), ..delta(40) })).unwrap();
    assert_eq!(it.finish().unwrap().duration_ns(), (20_000 + 40) * MS as u64);
    let slow = Tracks(vec![Track { default_duration_ns: week_ns, ..tracks().0[0].clone() }]);
    assert_eq!(it.push(Event::Tracks(Arc::new(slow.clone()))), Ok(None));
    it.push(Event::Frame(key(1000))).unwrap();
    assert_eq!(it.push(Event::Tracks(Arc::new(slow))), Ok(None), "the same tracks again");
    assert_eq!(it.finish().unwrap().duration_ns(), 20_000 * MS as u64);
}

#[test]
fn a_jump_at_a_keyframe_loses_nothing() {
    for jump_ms in [WEEK_MS, -WEEK_MS, 10_041, -1_041] {
        let mut it = fragmenter();
        let ended = push(&mut it, [key(0), delta(40), key(40 + jump_ms), delta(80 + jump_ms), key(120 + jump_ms)]);
        let discontinuities: Vec<bool> = ended.iter().map(|fragment| fragment.discontinuity).collect();
        assert_eq!(discontinuities, [false, true], "{jump_ms} ms");
        assert_eq!(it.frames_dropped(), 0);
        assert!(!it.finish().unwrap().discontinuity, "only the first after a jump");
    }
}

#[test]
fn a_clock_that_falls_back_between_keyframes_ends_the_fragment() {
    let mut it = fragmenter();
    let ended = push(&mut it, [key(60_000), delta(60_040), delta(58_000), delta(58_040), key(58_080)]);
    assert_eq!(ended.len(), 1);
    assert_eq!(it.frames_dropped(), 2);
    assert!(it.finish().unwrap().discontinuity);
}

#[test]
fn the_times_of_extremes_do_not_overflow() {
    let mut it = fragmenter();
    let at = |pts_ns: i64, keyframe| Frame { pts_ns, ..frame(1, 0, keyframe) };
    for pts_ns in [i64::MIN, i64::MAX, 0, i64::MAX, i64::MIN] {
        push(&mut it, [at(pts_ns, true), at(pts_ns, false), Frame { track: 2, ..at(-pts_ns.max(-i64::MAX), true) }]);
    }
    assert!(it.finish().unwrap().discontinuity);
}

/// At one picture a second three B-frames in a row fall back by seconds, which is no jump.
#[test]
fn pictures_shown_in_another_order_are_no_jump() {
    let mut it = fragmenter();
    let group = |ms: i64| [key(ms), delta(ms + 4000), delta(ms + 2000), delta(ms + 1000), delta(ms + 3000)];
    let mut ended = push(&mut it, group(0));
    ended.extend(push(&mut it, group(5000)));
    // An open group: the keyframe is followed by pictures that are shown before it.
    ended.extend(push(&mut it, [key(13_000), delta(11_000), delta(10_000), delta(12_000), key(14_000)]));
    assert_eq!(ended.len(), 3);
    assert!(ended.iter().all(|fragment| !fragment.discontinuity));
    assert_eq!(it.frames_dropped(), 0);
}

#[test]
fn another_codec_begins_another_fragment() {
    let mut it = fragmenter();
    push(&mut it, [key(0)]);
    assert_eq!(it.push(Event::Tracks(tracks())), Ok(None), "the same tracks once more are no change");
    let mut changed = video_track();
    changed.private = Bytes::from_static(&[1, 77, 0, 30]);
    let changed = Arc::new(Tracks(vec![changed, audio_track()]));
    let ended = it.push(Event::Tracks(changed.clone())).unwrap().unwrap();
    assert_eq!((ended.frames, ended.tracks), (vec![key(0)], tracks()));
    push(&mut it, [delta(40), sound(40), key(80)]);
    let next = it.finish().unwrap();
    assert_eq!((next.discontinuity, next.frames, next.tracks), (true, vec![key(80)], changed));
}

#[test]
fn a_new_segment_whose_clock_goes_on_is_no_discontinuity() {
    let mut it = fragmenter();
    push(&mut it, [key(0), delta(40)]);
    for event in [Event::NewSegment, Event::Tracks(tracks()), tag("new")] {
        assert_eq!(it.push(event), Ok(None));
    }
    let ended = push(&mut it, [sound(78), key(80)]);
    assert_eq!(ended[0].frames, [key(0), delta(40), sound(78)]);
    assert_eq!(names(&ended[0]), Vec::<&str>::new(), "the tags at a Segment's head are its own");
    let next = it.finish().unwrap();
    assert!(!next.discontinuity);
    assert_eq!(names(&next), ["new"]);
}

#[test]
fn a_new_segment_with_another_clock_is_seen_at_its_first_frame() {
    let mut it = fragmenter();
    push(&mut it, [key(60_000), delta(60_040)]);
    assert_eq!(it.push(Event::NewSegment), Ok(None));
    let ended = push(&mut it, [sound(0), key(10)]);
    assert_eq!(ended[0].frames, [key(60_000), delta(60_040)]);
    let next = it.finish().unwrap();
    assert_eq!((next.discontinuity, next.frames), (true, vec![key(10)]));
}

#[test]
fn a_fragment_that_outgrows_a_limit_is_dropped_by_name_and_the_next_keyframe_goes_on() {
    let limits = Limits { duration_ns_max: 100 * 1_000_000, bytes_max: 20, frames_max: 4, duration_ns_min: 0 };
    let cases: [(&[Frame], FragmentError); 3] = [
        (&[key(0), delta(60), delta(101)], FragmentError::TooLong { duration_ns_max: limits.duration_ns_max }),
        (&[key(100), delta(140), delta(180), delta(190), delta(199)], FragmentError::TooLarge { bytes_max: 20 }),
        (&[key(0), delta(1), delta(2), delta(3), delta(4)], FragmentError::TooManyFrames { frames_max: 4 }),
    ];
    for (frames, expected) in cases {
        let mut it = Fragmenter::new(limits);
        it.push(Event::Tracks(tracks())).unwrap();
        let (last, before) = frames.split_last().unwrap();
        assert!(push(&mut it, before.iter().cloned()).is_empty());
        assert_eq!(it.push(Event::Frame(last.clone())), Err(expected));
        assert!(it.building().is_empty());
        assert!(push(&mut it, [delta(200), sound(200), key(240)]).is_empty());
        assert_eq!(it.frames_dropped(), frames.len() as u64 + 2);
        assert!(it.finish().unwrap().discontinuity);
    }
}

#[test]
fn where_all_are_keyframes_a_shortest_duration_makes_fragments_of_more_than_one() {
    let limits = Limits { duration_ns_min: 1_000_000_000, bytes_max: 200, ..Limits::default() };
    let mut it = Fragmenter::new(limits);
    it.push(Event::Tracks(tracks())).unwrap();
    let ended = push(&mut it, (0..=50).map(|index| key(index * 40)));
    // 200 bytes are up before the second is: a keyframe cuts rather than breaks a limit.
    let lengths: Vec<usize> = ended.iter().map(|fragment| fragment.frames.len()).collect();
    assert_eq!(lengths.iter().sum::<usize>() + it.building().len(), 51);
    assert!(ended.iter().all(|fragment| fragment.bytes() <= 200 && fragment.frames.len() > 20));
}

#[test]
fn a_video_track_that_never_sends_holds_no_memory() {
    let mut it = fragmenter();
    let ended = push(&mut it, (0..100_000).map(|index| sound(index * 20)));
    assert!(ended.is_empty() && it.building().is_empty());
    assert_eq!(it.frames_dropped(), 100_000);
}

#[test]
fn a_sound_track_that_never_sends_is_not_waited_for() {
    let mut it = fragmenter();
    assert_eq!(push(&mut it, [key(0), delta(40), key(80), key(120)]).len(), 2);
}

#[test]
fn sound_far_off_the_pictures_clock_is_dropped() {
    let mut it = fragmenter();
    push(&mut it, [key(WEEK_MS), sound(0), sound(WEEK_MS + 20), sound(2 * WEEK_MS)]);
    assert_eq!(it.building(), [key(WEEK_MS), sound(WEEK_MS + 20)]);
    assert_eq!(it.frames_dropped(), 2);
}

#[test]
fn sound_alone_leads() {
    let mut it = Fragmenter::new(Limits { duration_ns_min: 1_000_000_000, ..Limits::default() });
    it.push(Event::Tracks(Arc::new(Tracks(vec![audio_track()])))).unwrap();
    let ended = push(&mut it, (0..150).map(|index| sound(index * 20)));
    assert_eq!(ended.iter().map(|fragment| fragment.frames.len()).collect::<Vec<_>>(), [50, 50]);
    assert_eq!(ended[1].start_ns(), 1000 * MS);
}

#[test]
fn tags_belong_to_the_fragment_being_built() {
    let mut it = fragmenter();
    it.push(tag("first")).unwrap();
    push(&mut it, [key(0)]);
    it.push(tag("also first")).unwrap();
    let ended = push(&mut it, [key(40)]);
    assert_eq!(names(&ended[0]), ["first", "also first"]);
    for index in 0..TAGS_MAX + 2 {
        it.push(tag(&index.to_string())).unwrap();
    }
    assert_eq!(it.finish().unwrap().tags.len(), TAGS_MAX);
    assert_eq!(it.tags_dropped(), 2);
}

/// Frames whose clock mostly goes on, sometimes falls back a little, and sometimes jumps anywhere.
fn any_frames() -> impl Strategy<Value = Vec<Frame>> {
    let step = prop_oneof![8 => 0i64..80, 2 => -200i64..0, 1 => -WEEK_MS..WEEK_MS];
    let steps = prop::collection::vec((step, 1u8..=2, prop::bool::weighted(0.1)), 0..400);
    steps.prop_map(|steps| {
        let mut pts_ms = 0;
        let frame = |(step, track, keyframe): (i64, u8, bool)| {
            pts_ms += step;
            frame(track, pts_ms, keyframe)
        };
        steps.into_iter().map(frame).collect()
    })
}

proptest! {
    #[test]
    fn every_frame_is_in_one_fragment_or_counted_and_no_fragment_breaks_a_limit(frames in any_frames()) {
        let limits = Limits { duration_ns_max: 500_000_000, bytes_max: 150, frames_max: 12, duration_ns_min: 100_000_000 };
        let mut it = Fragmenter::new(limits);
        it.push(Event::Tracks(tracks())).unwrap();
        let mut fragments: Vec<Fragment> = frames.iter().filter_map(|frame| it.push(Event::Frame(frame.clone())).ok().flatten()).collect();
        fragments.extend(it.finish());
        let kept: usize = fragments.iter().map(|fragment| fragment.frames.len()).sum();
        prop_assert_eq!(kept as u64 + it.frames_dropped(), frames.len() as u64);
        let mut all = frames.iter();
        for fragment in &fragments {
            let first = &fragment.frames[0];
            prop_assert!(first.keyframe && first.track == 1);
            prop_assert!(fragment.frames.len() <= 12 && fragment.bytes() <= 150);
            prop_assert!(fragment.of_track(1).all(|frame| frame.pts_ns - first.pts_ns <= 500_000_000));
            // Pictures shown before the keyframe: at most a fall of the clock and what the fragment before lasts.
            prop_assert!(fragment.of_track(1).all(|frame| first.pts_ns - frame.pts_ns <= JUMP_BACK_NS + JUMP_FORWARD_NS));
            prop_assert!(fragment.frames.iter().all(|frame| all.any(|pushed| pushed == frame)), "in the order they came");
        }
    }
}
