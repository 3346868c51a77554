//! Ways in over HTTP: PutMedia, the plain POST of ffmpeg and GStreamer, every codec.

use headwater_tests::gateway::Gateway;
use headwater_tests::need;
use headwater_tests::tools::{self, program, run_ok};
use headwater_tests::video::{self, NO_FFMPEG, PLAIN, fragments, put, put_headers, sample};
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
