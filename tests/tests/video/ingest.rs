//! Ways in over HTTP: PutMedia and its acknowledgements, the plain POST of ffmpeg and GStreamer, every codec.

use headwater_tests::gateway::Gateway;
use headwater_tests::need;
use headwater_tests::tools::{self, program, run_ok};
use headwater_tests::video::{self, Ack, NO_FFMPEG, PLAIN, Put, fragments, put, put_headers, sample};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(60);
const START_MS: u64 = 1_767_225_600_000;

/// What a camera may send: name, ffmpeg's words for pictures, encoder of sound.
const CODECS: [(&str, &[&str], Option<&str>); 6] = [
    ("h264-b-frames-aac", &["-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-g", "25"], Some("aac")),
    (
        "h264-open-gop-opus",
        &["-c:v", "libx264", "-preset", "veryfast", "-bf", "3", "-x264-params", "open-gop=1:keyint=25"],
        Some("libopus"),
    ),
    ("h264-alone", &PLAIN, None),
    (
        "hevc-opus",
        &["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:keyint=25"],
        Some("libopus"),
    ),
    (
        "hevc-alone",
        &["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:keyint=25:bframes=3"],
        None,
    ),
    ("av1-opus", &["-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime", "-g", "25"], Some("libopus")),
];

/// The Matroska of GetMedia, from the first fragment on; it goes on for ever, so it is cut when all is there.
fn get_media(gateway: &Gateway, stream: &str, fragments: &[(u64, i64, i64)], to: &Path) {
    let numbers: Vec<String> = fragments.iter().map(|(number, ..)| format!("{number:020}")).collect();
    let body = serde_json::json!({ "StreamName": stream, "Fragments": numbers }).to_string();
    let mut curl = Command::new(program("curl").expect("curl is there"));
    let url = format!("http://{}/getMediaForFragmentList", gateway.api);
    run_ok(curl.args(["-sSf", "-d", &body, "-o"]).arg(to).arg(url), BOUND);
}

#[test]
fn every_codec_comes_out_as_it_went_in() {
    need!(video::ffmpeg(), NO_FFMPEG);
    need!(program("curl"), "curl is not installed");
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::plain();
    for (name, pictures, sound) in CODECS {
        let file = sample(home.path(), name, 4, "192x108", pictures, sound);
        let (status, acks) = put(gateway.api, &put_headers(name, Some(START_MS)), &std::fs::read(&file).unwrap());
        assert_eq!(status, 200, "{name}");
        let kept = fragments(gateway.api, name);
        assert_eq!(video::persisted(&acks), kept.iter().map(|(number, ..)| *number).collect::<Vec<_>>(), "{name}");
        assert!(kept.len() >= 4, "{name}: a fragment a keyframe, {kept:?}");
        let source = file.display().to_string();
        let (seen, heard) = (video::pictures(&source, &[]), sound.map(|_| video::sound(&source, &[])));
        assert_eq!(seen.len(), 100, "{name}");
        let back = home.path().join("back.mkv");
        get_media(&gateway, name, &kept, &back);
        let base = format!("http://{}/video/{name}", gateway.console);
        // ffmpeg remarks that a Segment follows a Segment: so GetMedia is.
        let outs = [
            (format!("{base}/playlist.m3u8"), "error"),
            (format!("{base}/clip.mp4"), "error"),
            (back.display().to_string(), "quiet"),
        ];
        for (out, says) in outs {
            assert!(video::pictures(&out, &["-v", says]) == seen, "{name}: other pictures come out of {out}");
            if let Some(heard) = &heard {
                // Sound in front of the first picture belongs to no fragment.
                let out_heard = video::sound(&out, &["-v", says]);
                let missing = heard.len().checked_sub(out_heard.len());
                let same = missing.is_some_and(|missing| missing <= 2) && heard.ends_with(&out_heard);
                assert!(same, "{name}: other sound comes out of {out}");
            }
        }
    }
}

/// The life of a fragment, by AWS's words: nothing is said twice, out of order, or before its time.
fn check_grammar(acks: &[Ack]) {
    let of = |kind: &str| acks.iter().filter(|ack| ack.kind == kind).map(|ack| ack.timecode).collect::<Vec<_>>();
    assert_eq!(of("BUFFERING"), of("RECEIVED"), "{acks:?}");
    assert_eq!(of("RECEIVED"), of("PERSISTED"), "{acks:?}");
    for timecode in of("BUFFERING") {
        let life: Vec<_> = acks.iter().filter(|ack| ack.timecode == timecode).map(|ack| &ack.kind[..]).collect();
        assert_eq!(life, ["BUFFERING", "RECEIVED", "PERSISTED"], "{timecode:?}");
    }
    let numbers: Vec<_> = video::persisted(acks);
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}

#[test]
fn acknowledgements_come_while_the_body_still_comes() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::plain();
    let file = std::fs::read(sample(home.path(), "plain", 5, "192x108", &PLAIN, None)).unwrap();
    let mut put = Put::begin(gateway.api, &put_headers("cam", Some(START_MS))).unwrap();
    let half = file.len() / 2;
    put.send(&file[..half]).unwrap();
    let early = || put.heard().iter().any(|ack| ack.kind == "PERSISTED");
    assert!(tools::eventually(BOUND, early), "nothing is persisted before the body ends: {:?}", put.heard());
    let before = put.heard();
    assert!(before.iter().filter(|ack| ack.kind == "BUFFERING").count() < 5, "not all has been sent: {before:?}");
    put.send(&file[half..]).unwrap();
    let (status, acks) = put.finish();
    assert_eq!(status, 200);
    assert_eq!(video::persisted(&acks).len(), 5);
    check_grammar(&acks);
}

/// What AWS's C producer SDK knows of acknowledgements, as a table: what is sent, and the errors that must come back.
#[test]
fn a_producer_hears_of_its_mistakes_by_their_numbers() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::plain();
    let good = std::fs::read(sample(home.path(), "plain", 3, "128x72", &PLAIN, None)).unwrap();
    let four_tracks = home.path().join("four.mkv");
    let mut command = video::ffmpeg().unwrap();
    for _ in 0..4 {
        command.args(["-f", "lavfi", "-i", "sine=440:duration=1"]);
    }
    command.args(["-map", "0", "-map", "1", "-map", "2", "-map", "3", "-c:a", "aac", "-f", "matroska"]);
    run_ok(command.arg(&four_tracks), BOUND);
    let no_matroska = vec![b'x'; 64 << 10];
    let cut = &good[..good.len() * 2 / 3];
    let cases: [(&str, &[u8], Option<i64>, usize); 4] = [
        ("well", &good, None, 3),
        ("no Matroska", &no_matroska, Some(4006), 0),
        ("four tracks", &std::fs::read(&four_tracks).unwrap(), Some(4005), 0),
        ("cut within a frame", cut, Some(4006), 1),
    ];
    for (at, (name, body, error, least)) in cases.into_iter().enumerate() {
        let (status, acks) = put(gateway.api, &put_headers(&format!("case-{at}"), Some(START_MS)), body);
        assert_eq!(status, 200, "{name}");
        let errors: Vec<_> = acks.iter().filter(|ack| ack.kind == "ERROR").filter_map(|ack| ack.error).collect();
        assert_eq!(errors, error.into_iter().collect::<Vec<_>>(), "{name}: {acks:?}");
        assert!(video::persisted(&acks).len() >= least, "{name}: {acks:?}");
        let kept: Vec<_> =
            fragments(gateway.api, &format!("case-{at}")).into_iter().map(|(number, ..)| number).collect();
        assert_eq!(kept, video::persisted(&acks), "{name}: nothing is kept that was not acknowledged");
    }
    let refused = [
        ("x-amzn-stream-name: a\r\nx-amzn-fragment-timecode-type: RELATIVE\r\n", "RELATIVE"),
        ("x-amzn-stream-name: a\r\nx-amzn-fragment-timecode-type: SOMETIMES\r\n", "SOMETIMES"),
        ("x-amzn-fragment-timecode-type: ABSOLUTE\r\n", "StreamName"),
        ("x-amzn-stream-name: a/b\r\n", "name"),
    ];
    for (headers, says) in refused {
        let head = format!(
            "POST /putMedia HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}Content-Length: 0\r\n\r\n",
            gateway.api
        );
        let (status, body) = headwater_tests::aws::request(gateway.api, &head, b"").unwrap();
        assert!(status == 400 && body.contains(says), "{headers}: {status} {body}");
    }
}

/// `docs/video.md` has these words for a camera.
///
/// The fault: ffmpeg hangs up behind the last byte, the server dropped the request then, and the last fragment was lost.
#[test]
fn ffmpeg_posts_a_camera_as_documented() {
    let mut ffmpeg = need!(video::ffmpeg(), NO_FFMPEG);
    let gateway = Gateway::plain();
    let before = video::now_ms() as i64;
    ffmpeg.args(["-re", "-f", "lavfi", "-i", "testsrc2=size=192x108:rate=25:duration=4"]).args(PLAIN);
    ffmpeg.args([
        "-f",
        "matroska",
        "-cluster_time_limit",
        "1000",
        "-content_type",
        "video/x-matroska",
        "-method",
        "POST",
    ]);
    run_ok(ffmpeg.arg(format!("http://{}/streams/cam/media", gateway.api)), BOUND);
    let after = video::now_ms() as i64;
    video::wait_for_fragments(gateway.api, "cam", 4, BOUND);
    let kept = fragments(gateway.api, "cam");
    assert_eq!(kept.len(), 4, "{kept:?}");
    assert!(kept.iter().all(|(_, start, _)| (before - 1000..after).contains(start)), "taken when they came: {kept:?}");
    assert!(kept.windows(2).all(|two| (900..1100).contains(&(two[1].1 - two[0].1))), "{kept:?}");
    let playlist = format!("http://{}/video/cam/playlist.m3u8", gateway.console);
    assert_eq!(video::pictures(&playlist, &[]).len(), 100);
}

/// A second muxer: Matroska as GStreamer writes it, sent by both of its HTTP clients that can.
#[test]
fn gstreamer_posts_a_camera_as_documented() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let launch = need!(program("gst-launch-1.0"), "gst-launch-1.0 is not installed");
    let inspect = need!(program("gst-inspect-1.0"), "gst-inspect-1.0 is not installed");
    let has = |element: &str| tools::run(Command::new(&inspect).arg(element), BOUND).status.success();
    if !has("x264enc") || !has("matroskamux") || !has("curlhttpsink") {
        return tools::skip("gstreamer_posts_a_camera_as_documented", "GStreamer's plugins are not installed");
    }
    let gateway = Gateway::plain();
    let line = format!(
        "videotestsrc num-buffers=100 pattern=ball ! video/x-raw,width=192,height=108,framerate=25/1 ! \
         videoconvert ! video/x-raw,format=I420 ! x264enc tune=zerolatency key-int-max=25 ! h264parse ! matroskamux streamable=true ! \
         curlhttpsink location=http://{}/streams/gst/media use-content-length=false content-type=video/x-matroska",
        gateway.api
    );
    run_ok(Command::new(launch).arg("-q").args(line.split_whitespace()), BOUND);
    video::wait_for_fragments(gateway.api, "gst", 4, BOUND);
    let playlist = format!("http://{}/video/gst/playlist.m3u8", gateway.console);
    assert_eq!(video::pictures(&playlist, &[]).len(), 100);
}
