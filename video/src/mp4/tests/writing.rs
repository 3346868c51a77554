//! Init and media segments, parts and clips, box by box.

use super::*;
use crate::mp4::{Clip, Mp4Error, PartCutter, Timing, init, media, part, read_init, read_media};
use mp4_atom::{Any, Codec as Entry, DecodeMaybe, Moof, Moov, ReadFrom};
use proptest::prelude::*;

/// All boxes, decoded; each of them whole.
fn atoms(mut bytes: &[u8]) -> Vec<Any> {
    let mut out = Vec::new();
    while let Some(atom) = Any::decode_maybe(&mut bytes).unwrap() {
        out.push(atom);
    }
    assert!(bytes.is_empty());
    out
}

fn moov(tracks: &Tracks) -> Moov {
    let atoms = atoms(&init(tracks).unwrap());
    assert!(matches!(atoms[0], Any::Ftyp(_)));
    let Any::Moov(moov) = &atoms[1] else { panic!("no moov: {atoms:?}") };
    moov.clone()
}

fn moof(bytes: &[u8]) -> Moof {
    Moof::read_from(&mut &bytes[..]).unwrap()
}

/// Decode times, durations and composition offsets of one track.
fn times(moof: &Moof, index: usize) -> (u64, Vec<(u32, i32)>) {
    let traf = &moof.traf[index];
    let entry = |entry: mp4_atom::TrunEntry| (entry.duration.unwrap(), entry.cts.unwrap_or(0) as i32);
    (traf.tfdt.as_ref().unwrap().base_media_decode_time, traf.trun[0].samples.iter().map(entry).collect())
}

fn at(next_start_ms: i64) -> Timing {
    Timing { next_start_ns: Some(next_start_ms * MS), ..Timing::default() }
}

#[test]
fn an_init_segment_says_what_the_tracks_are() {
    let moov = moov(&tracks());
    assert_eq!(moov.mvex.as_ref().map(|mvex| mvex.trex.len()), Some(2));
    let (video, audio) = (&moov.trak[0], &moov.trak[1]);
    assert_eq!((video.tkhd.track_id, video.mdia.mdhd.timescale), (1, 90_000));
    assert_eq!((audio.tkhd.track_id, audio.mdia.mdhd.timescale), (2, 48_000));
    let Entry::Avc1(avc1) = &video.mdia.minf.stbl.stsd.codecs[0] else { panic!("no avc1") };
    assert_eq!((avc1.visual.width, avc1.visual.height), (640, 480));
    assert_eq!((avc1.avcc.avc_profile_indication, avc1.avcc.avc_level_indication), (0x64, 0x1f));
    let Entry::Opus(opus) = &audio.mdia.minf.stbl.stsd.codecs[0] else { panic!("no Opus") };
    assert_eq!((opus.dops.pre_skip, opus.dops.input_sample_rate, opus.dops.output_gain), (312, 44100, -256));
}

#[test]
fn an_init_segment_is_read_as_it_was_written() {
    let tracks = Tracks(vec![
        track(1, Codec::H264, AVCC),
        track(2, Codec::Aac, b"\x11\x90\x56\xe5\x00"),
        track(3, Codec::Av1, b"\x81\x04\x0c\x00\x0a\x01\x00"),
    ]);
    let read = read_init(&init(&tracks).unwrap()).unwrap();
    assert_eq!(*read.tracks, tracks);
}

#[test]
fn tracks_that_mp4_does_not_carry_are_left_out_unless_none_is_left() {
    let other = track(2, Codec::Mjpeg, b"");
    let moov = moov(&Tracks(vec![track(1, Codec::H264, AVCC), other.clone()]));
    assert_eq!(moov.trak.len(), 1);
    assert_eq!(init(&Tracks(vec![other])), Err(Mp4Error::NoTrack));
    assert!(matches!(init(&Tracks(vec![track(1, Codec::H264, b"\x01")])), Err(Mp4Error::Codec(_))));
}

#[test]
fn decode_times_are_sorted_presentation_times_and_fragments_join() {
    let one = moof(&media(&fragment(video(&[0, 160, 80, 40, 120])), 1, at(200)).unwrap());
    let tick = 90;
    let want = [(40, 0), (40, 120), (40, 0), (40, -80), (40, -40)].map(|(a, b)| (a * tick as u32, b * tick));
    assert_eq!(times(&one, 0), (0, want.to_vec()));
    assert_eq!(one.mfhd.sequence_number, 1);
    let two = moof(&media(&fragment(video(&[200, 240])), 2, Timing::default()).unwrap());
    assert_eq!(times(&two, 0), (18_000, vec![(3600, 0), (3600, 0)]));
}

#[test]
fn with_a_decode_delay_no_offset_is_negative() {
    let fragment = fragment(video(&[0, 160, 80, 40, 120]));
    let decode_delay_ns = crate::mp4::reorder_ns(&fragment);
    assert_eq!(decode_delay_ns, 80 * MS as u64);
    let early = Timing { decode_delay_ns, ..at(200) };
    assert_eq!(media(&fragment, 1, early), Err(Mp4Error::Time { track: 1 }));
    let timing = Timing { offset_ns: 80 * MS, ..early };
    let want = [(40, 80), (40, 200), (40, 80), (40, 0), (40, 40)].map(|(a, b)| (a * 90, b * 90));
    assert_eq!(times(&moof(&media(&fragment, 1, timing).unwrap()), 0), (0, want.to_vec()));
}

#[test]
fn the_last_frame_lasts_as_it_says_or_the_track_or_the_step_before() {
    let last = |fragment: &Fragment| times(&moof(&media(fragment, 1, at(10)).unwrap()), 0).1.last().unwrap().0 / 90;
    let mut fragment = fragment(video(&[0, 40]));
    assert_eq!(last(&fragment), 40);
    fragment.tracks = Arc::new(Tracks(vec![Track { default_duration_ns: 30 * MS as u64, ..tracks().0[0].clone() }]));
    assert_eq!(last(&fragment), 30);
    fragment.frames[1].duration_ns = Some(20 * MS as u64);
    assert_eq!(last(&fragment), 20);
}

#[test]
fn times_before_zero_or_beyond_32_bits_are_errors() {
    assert_eq!(media(&fragment(video(&[-1])), 1, Timing::default()), Err(Mp4Error::Time { track: 1 }));
    let shifted = Timing { offset_ns: MS, ..Timing::default() };
    assert_eq!(times(&moof(&media(&fragment(video(&[-1])), 1, shifted).unwrap()), 0), (0, vec![(0, 0)]));
    assert_eq!(media(&fragment(video(&[0, i64::MAX / MS])), 1, Timing::default()), Err(Mp4Error::Time { track: 1 }));
    assert_eq!(media(&fragment(vec![]), 1, Timing::default()), Err(Mp4Error::NoFrame));
}

#[test]
fn parts_of_reordered_frames_have_the_decode_times_of_the_whole() {
    let order = [0, 160, 80, 40, 120, 320, 240, 200, 280, 480, 400, 360, 440, 520];
    for default_ms in [0, 40] {
        let mut tracks = tracks();
        tracks.0[0].default_duration_ns = default_ms * MS as u64;
        let whole =
            media(&Fragment { tracks: Arc::new(tracks.clone()), ..fragment(video(&order)) }, 1, at(560)).unwrap();
        let mut cutter = PartCutter::new(&tracks, 370 * MS as u64);
        let mut parts: Vec<_> = video(&order).into_iter().filter_map(|frame| cutter.push(frame)).collect();
        parts.extend(cutter.finish(Some(560 * MS)));
        assert_eq!(parts.iter().map(|part| part.frames.len()).collect::<Vec<_>>(), [9, 5]);
        assert_eq!(parts.iter().map(|part| part.independent).collect::<Vec<_>>(), [true, false]);
        let mut all = Vec::new();
        let mut at = 0;
        for part in &parts {
            let (start, samples) = times(&moof(&crate::mp4::part(&tracks, &part.frames, 1, part.timing).unwrap()), 0);
            assert_eq!(start, at);
            at += samples.iter().map(|(duration, _)| u64::from(*duration)).sum::<u64>();
            all.extend(samples);
        }
        assert_eq!(all, times(&moof(&whole), 0).1);
    }
}

#[test]
fn parts_without_reordering_hold_back_one_frame() {
    let mut cutter = PartCutter::new(&tracks(), 100 * MS as u64);
    let mut cuts = Vec::new();
    for time in (0..400).step_by(40) {
        cuts.extend(
            cutter.push(frame(1, time, time == 0)).map(|part| (time, part.start_ns / MS, part.duration_ns / MS as u64)),
        );
        assert_eq!(cutter.push(frame(2, time, true)), None);
    }
    assert_eq!(cuts, [(80, 0, 80), (160, 80, 80), (240, 160, 80), (320, 240, 80)]);
    assert_eq!(cutter.finish(None).unwrap().frames.len(), 4);
    assert_eq!(cutter.finish(None), None);
}

#[test]
fn a_clip_begins_at_zero_and_goes_on_without_a_gap() {
    let (mut clip, _) = Clip::begin(&tracks()).unwrap();
    let mut start = |times_ms: &[i64], discontinuity| {
        let bytes = clip.push(&Fragment { discontinuity, ..fragment(video(times_ms)) }, None).unwrap();
        (moof(&bytes).mfhd.sequence_number, times(&moof(&bytes), 0).0 / 90)
    };
    assert_eq!(start(&[5000, 5040], false), (1, 0));
    assert_eq!(start(&[5080, 5120], false), (2, 80));
    assert_eq!(start(&[900, 940], true), (3, 160));
    assert_eq!(start(&[980, 1020], false), (4, 240));
    // A clock that runs back unannounced.
    assert_eq!(start(&[0, 40], false), (5, 320));
    assert_eq!(clip.duration_ns(), 400 * MS as u64);
    let other = Fragment { tracks: Arc::new(Tracks(vec![track(1, Codec::H264, AVCC)])), ..fragment(video(&[0])) };
    assert_eq!(clip.push(&other, None), Err(Mp4Error::TracksChanged));
}

/// Frames with any times, in any order.
fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let frame = (1u8..4, prop_oneof![0i64..10_000, any::<i64>()], any::<bool>(), proptest::option::of(any::<u64>()));
    let frame = frame.prop_map(|(track, pts_ns, keyframe, duration_ns)| Frame {
        track,
        pts_ns,
        duration_ns,
        keyframe,
        data: vec![1, 2, 3].into(),
    });
    proptest::collection::vec(frame, 0..40)
}

proptest! {
    #[test]
    fn any_times_are_written_or_refused(frames in frames(), offset_ns: i64, next: Option<i64>) {
        let decode_delay_ns = next.unwrap_or(0).unsigned_abs();
        let timing = Timing { offset_ns, next_start_ns: next, decode_delay_ns, decode_floor_ns: next };
        let _ = media(&fragment(frames.clone()), 1, timing);
        let mut clip = Clip::begin(&tracks()).unwrap().0;
        for discontinuity in [false, true, false] {
            let _ = clip.push(&Fragment { discontinuity, ..fragment(frames.clone()) }, next);
        }
    }

    #[test]
    fn parts_of_any_frames_are_all_of_them_and_decode_forward(frames in frames(), target_ns in 0u64..20_000) {
        let mut cutter = PartCutter::new(&tracks(), target_ns);
        let mut parts: Vec<_> = frames.iter().cloned().filter_map(|frame| cutter.push(frame)).collect();
        parts.extend(cutter.finish(None));
        prop_assert_eq!(parts.iter().flat_map(|part| part.frames.clone()).collect::<Vec<_>>(), frames);
        let mut before = 0;
        for one in parts {
            let Ok(bytes) = part(&tracks(), &one.frames, 1, one.timing) else { continue };
            let moof = moof(&bytes);
            let decode = moof.traf.iter().find(|traf| traf.tfhd.track_id == 1).map(|_| times(&moof, 0).0);
            prop_assert!(decode.is_none_or(|time| time >= before));
            before = decode.unwrap_or(before);
        }
    }

    #[test]
    fn what_is_written_is_read_back(times in proptest::collection::hash_set(0i64..50_000, 1..60), audio in 0i64..40) {
        let mut frames = video(&times.into_iter().collect::<Vec<_>>());
        frames.extend((0..audio).map(|index| frame(2, index * 20, true)));
        let init = read_init(&init(&tracks()).unwrap()).unwrap();
        let read = read_media(&init, &media(&fragment(frames.clone()), 1, Timing::default()).unwrap().into()).unwrap();
        for number in [1, 2] {
            let of = |frames: &[Frame]| {
                let of = frames.iter().filter(|frame| frame.track == number).cloned();
                of.map(|frame| Frame { duration_ns: None, ..frame }).collect::<Vec<_>>()
            };
            prop_assert_eq!(of(&read.frames), of(&frames));
        }
    }
}
