//! Manifests as text, and what must not break out of them.

use super::*;
use proptest::prelude::*;

const S: u64 = 1_000_000_000;

fn period<'a, U>(addressing: Addressing<'a, U>, starts_s: &[u64]) -> Period<'a, U, Vec<Segment>> {
    let segment = |start: &u64| Segment { start_ns: start * S, duration_ns: 2 * S };
    let set = AdaptationSet {
        media_start_ns: 10 * S,
        init_uri: "init.mp4?a=1&b=2",
        codecs: "avc1.64001f,mp4a.40.2",
        size: Some((640, 480)),
        bandwidth: 800_000,
        addressing,
        segments: starts_s.iter().map(segment).collect(),
    };
    Period { id: "p7", start_ns: 0, sets: vec![set] }
}

#[test]
fn a_live_manifest_has_runs_of_equal_segments() {
    let live = Mpd {
        kind: Kind::Dynamic {
            availability_start_ms: 0,
            publish_ms: 1500,
            minimum_update_ns: 2 * S,
            time_shift_buffer_ns: Some(60 * S),
        },
        min_buffer_ns: 4 * S,
    };
    let addressing: Addressing<&str> = Addressing::Template { media: "$Number$.m4s", start_number: 5 };
    let mut out = String::new();
    mpd(&mut out, &live, [period(addressing, &[10, 12, 14, 20])]);
    let want = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
        <MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" profiles=\"urn:mpeg:dash:profile:isoff-main:2011\" \
        minBufferTime=\"PT4.00000S\" type=\"dynamic\" availabilityStartTime=\"1970-01-01T00:00:00.000Z\" \
        publishTime=\"1970-01-01T00:00:01.500Z\" minimumUpdatePeriod=\"PT2.00000S\" \
        timeShiftBufferDepth=\"PT60.00000S\">\n\
        <Period id=\"p7\" start=\"PT0.00000S\">\n\
        <AdaptationSet segmentAlignment=\"true\" startWithSAP=\"1\" mimeType=\"video/mp4\">\n\
        <Representation id=\"0\" codecs=\"avc1.64001f,mp4a.40.2\" bandwidth=\"800000\" width=\"640\" height=\"480\">\n\
        <SegmentTemplate timescale=\"90000\" presentationTimeOffset=\"900000\" initialization=\"init.mp4?a=1&amp;b=2\" \
        media=\"$Number$.m4s\" startNumber=\"5\">\n\
        <SegmentTimeline>\n<S t=\"900000\" d=\"180000\" r=\"2\"/>\n<S t=\"1800000\" d=\"180000\"/>\n</SegmentTimeline>\n\
        </SegmentTemplate>\n</Representation>\n</AdaptationSet>\n</Period>\n\
        <UTCTiming schemeIdUri=\"urn:mpeg:dash:utc:direct:2014\" value=\"1970-01-01T00:00:01.500Z\"/>\n</MPD>\n";
    assert_eq!(out, want);
}

#[test]
fn a_recording_lists_the_uri_of_each_segment() {
    let recording = Mpd { kind: Kind::Static { duration_ns: 4 * S }, min_buffer_ns: 2 * S };
    let mut out = String::new();
    mpd(&mut out, &recording, [period(Addressing::List(vec!["a.m4s", "b\"<.m4s"]), &[10, 12])]);
    assert!(!out.contains("UTCTiming"), "what is recorded is there at any time");
    assert!(out.contains("type=\"static\" mediaPresentationDuration=\"PT4.00000S\""));
    assert!(out.contains("<Initialization sourceURL=\"init.mp4?a=1&amp;b=2\"/>"));
    assert!(out.contains("<SegmentURL media=\"a.m4s\"/>\n<SegmentURL media=\"b&quot;&lt;.m4s\"/>\n</SegmentList>"));
}

proptest! {
    #[test]
    fn no_text_breaks_out_of_its_attribute(uri in "\\PC*|[<>&\"'\r\n]*", times: Vec<(u64, u64)>) {
        let mut one = period(Addressing::List(vec![uri.as_str()]), &[]);
        one.sets[0].init_uri = &uri;
        one.sets[0].segments = times.iter().map(|time| Segment { start_ns: time.0, duration_ns: time.1 }).collect();
        let mut out = String::new();
        mpd(&mut out, &Mpd { kind: Kind::Static { duration_ns: 1 }, min_buffer_ns: 1 }, [one]);
        prop_assert!(out.lines().all(|line| line.starts_with('<') && line.ends_with('>')));
        prop_assert!(out.lines().all(|line| line.matches('"').count() % 2 == 0 && line.matches('<').count() == 1));
    }
}
