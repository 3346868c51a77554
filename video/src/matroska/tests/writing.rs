//! What is written can be read: here, and as one live Segment.

use crate::matroska::{Event, Fault, cluster, head, read_fragment, tags, write_fragment};
use crate::media::{Codec, Fragment, Frame, Kind, MS, Track, Tracks};
use crate::testing::{SAMPLE, cut, fragment, frame, frames, parse, video_track};
use bytes::Bytes;
use proptest::prelude::*;
use std::sync::Arc;

#[test]
fn a_sample_cut_written_and_read_is_the_same() {
    for fragment in cut(parse(SAMPLE).0) {
        assert_eq!(read_fragment(&write_fragment(&fragment, 0)).unwrap(), fragment);
    }
}

#[test]
fn one_segment_of_all_fragments_is_the_sample_again() {
    let fragments = cut(parse(SAMPLE).0);
    let mut live = head(&fragments[0].tracks);
    for fragment in &fragments {
        live.extend_from_slice(&tags(&fragment.tags));
        live.extend_from_slice(&cluster(fragment, 0));
    }
    assert_eq!(frames(&parse(&live).0), frames(&parse(SAMPLE).0));
    assert_eq!(cut(parse(&live).0), fragments);
}

#[test]
fn an_offset_makes_times_absolute() {
    let year_2026_ns = 1_767_225_600_000 * MS;
    let one = fragment(80, 2);
    let absolute = read_fragment(&write_fragment(&one, year_2026_ns)).unwrap();
    let times: Vec<i64> = absolute.frames.iter().map(|frame| frame.pts_ns - year_2026_ns).collect();
    assert_eq!(times, one.frames.iter().map(|frame| frame.pts_ns).collect::<Vec<_>>());
}

#[test]
fn finer_times_are_rounded_to_the_nearest_tick() {
    let mut one = fragment(0, 1);
    for (pts_ns, ticks) in [(33_366_667, 33), (33_500_000, 34), (-400_000, 0), (-600_000, -1)] {
        one.frames[0].pts_ns = pts_ns;
        assert_eq!(read_fragment(&write_fragment(&one, 0)).unwrap().frames[0].pts_ns, ticks * MS, "{pts_ns}");
    }
}

#[test]
fn times_too_far_apart_for_a_block_begin_another_cluster() {
    let mut one = fragment(0, 1);
    one.frames = [0, 32_767, 32_768, 100_000, 70_000, -32_000].map(|ms| frame(1, ms, true)).to_vec();
    let written = write_fragment(&one, 0);
    assert_eq!(read_fragment(&written).unwrap(), one);
    let starts = |event: &&Event| matches!(event, Event::ClusterStart { .. });
    assert_eq!(parse(&written).0.iter().filter(starts).count(), 4);
}

#[test]
fn times_nobody_can_write_are_written_as_near_as_can_be() {
    let mut one = fragment(0, 1);
    let times = [i64::MIN, i64::MAX, i64::MIN, 0];
    one.frames = times.map(|pts_ns| Frame { pts_ns, ..frame(1, 0, true) }).to_vec();
    for offset_ns in [i64::MIN, 0, i64::MAX] {
        assert_eq!(read_fragment(&write_fragment(&one, offset_ns)).unwrap().frames.len(), 4);
    }
}

#[test]
fn a_fragment_of_nothing_is_a_file_of_nothing() {
    let nothing = Fragment { tracks: Arc::default(), frames: vec![], discontinuity: false, tags: vec![] };
    assert_eq!(read_fragment(&write_fragment(&nothing, 0)).unwrap(), nothing);
    assert!(cluster(&nothing, 0).is_empty() && tags(&[]).is_empty());
}

#[test]
fn two_fragments_of_other_tracks_are_not_one() {
    let mut other = fragment(0, 1);
    other.tracks = Arc::new(Tracks(vec![video_track()]));
    other.frames.pop();
    let both = [write_fragment(&fragment(0, 1), 0), write_fragment(&other, 0)].concat();
    assert_eq!(read_fragment(&both).unwrap_err().fault, Fault::SecondTracks);
    let whole = write_fragment(&other, 0);
    assert_eq!(read_fragment(&whole[..whole.len() - 1]).unwrap_err().fault, Fault::Truncated);
}

fn any_track() -> impl Strategy<Value = Track> {
    let codec = prop_oneof![
        Just(Codec::H264),
        Just(Codec::Aac),
        Just(Codec::Mjpeg),
        "[A-Z]_[A-Z0-9/]{1,30}".prop_map(|id| Codec::from_id(&id)),
    ];
    let kind = prop_oneof![Just(Kind::Video), Just(Kind::Audio), Just(Kind::Other)];
    let numbers = (any::<[u32; 3]>(), any::<u8>(), any::<[u64; 3]>());
    (kind, codec, prop::collection::vec(any::<u8>(), 0..40), "[^\0]{0,40}", numbers).prop_map(
        |(kind, codec, private, name, ([width, height, sample_rate], channels, [default, delay, preroll]))| Track {
            number: 0,
            kind,
            codec,
            private: private.into(),
            name,
            width,
            height,
            sample_rate,
            channels,
            default_duration_ns: default,
            codec_delay_ns: delay,
            seek_preroll_ns: preroll,
        },
    )
}

fn any_fragment() -> impl Strategy<Value = Fragment> {
    let tracks = prop::collection::vec((any_track(), 0u8..40), 1..=3).prop_map(|tracks| {
        let numbered =
            |(index, (track, skip)): (usize, (Track, u8))| Track { number: 1 + 42 * index as u8 + skip, ..track };
        Arc::new(Tracks(tracks.into_iter().enumerate().map(numbered).collect()))
    });
    let data = prop::collection::vec(any::<u8>(), 1..300);
    let frame = (any::<prop::sample::Index>(), -32_000i64..200_000, any::<Option<u16>>(), any::<bool>(), data);
    let tags = prop::collection::vec(("[^\0]{1,20}", "[^\0]{0,40}"), 0..=10);
    (tracks, prop::collection::vec(frame, 0..40), tags).prop_map(|(tracks, frames, tags)| {
        let number = |index: prop::sample::Index| tracks.0[index.index(tracks.0.len())].number;
        let frames = frames.into_iter().map(|(index, ms, duration_ms, keyframe, data)| Frame {
            track: number(index),
            pts_ns: ms * MS,
            duration_ns: duration_ms.map(|ms| u64::from(ms) * 1_000_000),
            keyframe,
            data: Bytes::from(data),
        });
        let frames = frames.collect();
        Fragment { tracks, frames, discontinuity: false, tags }
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(fragment in any_fragment()) {
        prop_assert_eq!(read_fragment(&write_fragment(&fragment, 0)).unwrap(), fragment);
    }
}
