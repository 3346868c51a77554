//! Playlists as text, and what must not break out of them.

use super::*;
use m3u8_rs::{MasterPlaylist, MediaPlaylistType};
use proptest::prelude::*;

const S: u64 = 1_000_000_000;

fn playlist(kind: Kind) -> MediaPlaylist<'static> {
    MediaPlaylist {
        target_duration_s: 2,
        media_sequence: 7,
        discontinuity_sequence: 0,
        kind,
        ended: kind == Kind::Vod,
        low_latency: None,
    }
}

fn segment(uri: &str) -> Segment<'static, &str> {
    Segment {
        uri: Some(uri),
        duration_ns: 2 * S,
        program_date_time_ms: None,
        discontinuity: false,
        map: "init-1.mp4",
        map_range: None,
        byte_range: None,
        gap: false,
        parts: &[],
    }
}

fn written<'a>(playlist: &MediaPlaylist, segments: impl IntoIterator<Item = Segment<'a, &'a str>>) -> String {
    let mut out = String::new();
    media(&mut out, playlist, segments);
    out
}

#[test]
fn a_master_playlist_is_parsed_as_it_was_meant() {
    let variant = Variant {
        uri: "media.m3u8?token=a",
        bandwidth: 1_200_000,
        average_bandwidth: Some(900_000),
        codecs: "avc1.64001f,mp4a.40.2",
        resolution: Some((1280, 720)),
        frame_rate_milli: Some(29_970),
    };
    let text = master([variant.clone(), Variant { resolution: None, frame_rate_milli: None, ..variant }]);
    let (_, MasterPlaylist { variants, version, independent_segments, .. }) =
        m3u8_rs::parse_master_playlist(text.as_bytes()).unwrap();
    assert_eq!((variants.len(), version, independent_segments), (2, Some(7), true));
    let first = &variants[0];
    assert_eq!((first.bandwidth, first.average_bandwidth), (1_200_000, Some(900_000)));
    assert_eq!(first.codecs.as_deref(), Some("avc1.64001f,mp4a.40.2"));
    assert_eq!(first.resolution.map(|size| (size.width, size.height)), Some((1280, 720)));
    assert_eq!(first.frame_rate, Some(29.97));
    assert_eq!(first.uri, "media.m3u8?token=a");
}

#[test]
fn a_recording_is_parsed_as_it_was_meant() {
    let range = Some(ByteRange { length: 10, offset: 300 });
    let segments = [
        Segment { program_date_time_ms: Some(1_785_542_399_999), ..segment("a.m4s") },
        Segment { duration_ns: S / 3, byte_range: range, ..segment("b.m4s") },
        Segment { discontinuity: true, map: "init-2.mp4", ..segment("c.m4s") },
        Segment { map: "init-2.mp4", gap: true, ..segment("d.m4s") },
    ];
    let text = written(&playlist(Kind::Vod), segments);
    let (_, parsed) = m3u8_rs::parse_media_playlist(text.as_bytes()).unwrap();
    assert_eq!((parsed.version, parsed.target_duration, parsed.media_sequence), (Some(8), 2, 7));
    assert_eq!((parsed.playlist_type, parsed.end_list), (Some(MediaPlaylistType::Vod), true));
    let [a, b, c, d] = &parsed.segments[..] else { panic!("{text}") };
    assert_eq!(a.program_date_time.unwrap().timestamp_millis(), 1_785_542_399_999);
    assert_eq!((a.uri.as_str(), a.duration, b.duration), ("a.m4s", 2.0, 0.33333));
    assert_eq!(b.byte_range.as_ref().map(|range| (range.length, range.offset)), Some((10, Some(300))));
    let map = |segment: &m3u8_rs::MediaSegment| segment.map.as_ref().map(|map| map.uri.clone());
    assert_eq!((map(a).as_deref(), map(b), map(c).as_deref()), (Some("init-1.mp4"), None, Some("init-2.mp4")));
    assert!(c.discontinuity && !d.discontinuity && map(d).is_none());
    assert_eq!(text.matches("#EXT-X-GAP\n").count(), 1);
}

#[test]
fn a_low_latency_playlist_has_its_tags_in_order() {
    let low_latency = Some(LowLatency {
        part_target_ns: S / 3,
        part_hold_back_ns: S,
        can_block_reload: true,
        preload_hint: Some("9.2.m4s"),
    });
    let part = |uri, independent| Part { uri, duration_ns: S / 3, independent, byte_range: None };
    let (whole, open) = ([part("8.0.m4s", true)], [part("9.0.m4s", true), part("9.1.m4s", false)]);
    let segments = [Segment { parts: &whole, ..segment("8.m4s") }, Segment { uri: None, parts: &open, ..segment("") }];
    let playlist = MediaPlaylist { low_latency, discontinuity_sequence: 3, ..playlist(Kind::Live) };
    let want = "#EXTM3U\n#EXT-X-VERSION:9\n#EXT-X-TARGETDURATION:2\n\
        #EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=1.00000\n#EXT-X-PART-INF:PART-TARGET=0.33333\n\
        #EXT-X-MEDIA-SEQUENCE:7\n#EXT-X-DISCONTINUITY-SEQUENCE:3\n#EXT-X-INDEPENDENT-SEGMENTS\n\
        #EXT-X-MAP:URI=\"init-1.mp4\"\n#EXT-X-PART:DURATION=0.33333,URI=\"8.0.m4s\",INDEPENDENT=YES\n\
        #EXTINF:2.00000,\n8.m4s\n#EXT-X-PART:DURATION=0.33333,URI=\"9.0.m4s\",INDEPENDENT=YES\n\
        #EXT-X-PART:DURATION=0.33333,URI=\"9.1.m4s\"\n#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"9.2.m4s\"\n";
    let text = written(&playlist, segments);
    assert_eq!(text, want);
    let (_, parsed) = m3u8_rs::parse_media_playlist(text.as_bytes()).unwrap();
    assert_eq!((parsed.segments.len(), parsed.discontinuity_sequence, parsed.end_list), (1, 3, false));
}

#[test]
fn a_target_duration_is_rounded_and_never_zero() {
    assert_eq!([0, S, 3 * S / 2 - 1, 3 * S / 2, u64::MAX].map(target_duration_s), [1, 1, 1, 2, 18_446_744_074]);
}

#[test]
fn a_day_of_segments_is_written_at_once() {
    let segments = (0..86_400u64).map(|index| Segment {
        uri: Some(index),
        duration_ns: S,
        program_date_time_ms: Some(1_785_542_399_999 + index as i64 * 1000),
        discontinuity: false,
        map: "init.mp4",
        map_range: None,
        byte_range: None,
        gap: false,
        parts: &[],
    });
    let mut out = String::with_capacity(8 << 20);
    let start = std::time::Instant::now();
    media(&mut out, &playlist(Kind::Vod), segments);
    println!("{} bytes in {:?}", out.len(), start.elapsed());
    assert_eq!(out.matches("#EXTINF").count(), 86_400);
}

proptest! {
    #[test]
    fn no_text_breaks_out_of_its_line(uri in "\\PC*|[\r\n\"#a]*", map in "\\PC*|[\r\n\"#a]*", ns: u64, ms: i64) {
        let one = Segment { map: &map, duration_ns: ns, program_date_time_ms: Some(ms), ..segment(&uri) };
        let text = written(&playlist(Kind::Event), [one]);
        prop_assert_eq!(text.split(['\r', '\n']).count(), 11);
    }
}
