//! Ways out: sessions of HLS and DASH as ffmpeg plays them, what is live while it is sent, and the player page in a browser.

use headwater_tests::gateway::Gateway;
use headwater_tests::need;
use headwater_tests::tools::{self, Process, npm_package, run};
use headwater_tests::video::{self, NO_FFMPEG, PLAIN, fragments, put, put_headers, sample};
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(60);
const START_MS: u64 = 1_767_225_600_000;

/// URL of a session; `more` goes into the request.
fn session(gateway: &Gateway, protocol: &str, stream: &str, mode: &str, range: Option<(i64, i64)>) -> String {
    let mut body = json!({ "StreamName": stream, "PlaybackMode": mode, "Expires": 300 });
    if let Some((from, to)) = range {
        let times = json!({ "StartTimestamp": from as f64 / 1000.0, "EndTimestamp": to as f64 / 1000.0 });
        body[format!("{protocol}FragmentSelector")] =
            json!({ "FragmentSelectorType": "PRODUCER_TIMESTAMP", "TimestampRange": times });
    }
    let (status, said) = video::ask(gateway.api, &format!("get{protocol}StreamingSessionURL"), &body);
    let url = said[format!("{protocol}StreamingSessionURL")].as_str().map(str::to_owned);
    url.unwrap_or_else(|| panic!("{status} {said}"))
}

#[test]
fn sessions_play_every_picture_and_every_sound() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::plain();
    let codecs: [(&str, &[&str], Option<&str>); 3] = [
        ("aac", &["-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-g", "25"], Some("aac")),
        (
            "opus",
            &["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:keyint=25"],
            Some("libopus"),
        ),
        ("alone", &PLAIN, None),
    ];
    for (name, pictures, sound) in codecs {
        let file = sample(home.path(), name, 4, "192x108", pictures, sound);
        let (status, _) = put(gateway.api, &put_headers(name, Some(START_MS)), &std::fs::read(&file).unwrap());
        assert_eq!(status, 200);
        let source = file.display().to_string();
        let seen = video::pictures(&source, &[]);
        for protocol in ["HLS", "DASH"] {
            let url = session(&gateway, protocol, name, "ON_DEMAND", Some((START_MS as i64, START_MS as i64 + 60_000)));
            assert!(video::pictures(&url, &[]) == seen, "{name}: other pictures by {protocol}");
            if sound.is_some() {
                assert!(video::sound(&url, &[]) == video::sound(&source, &[]), "{name}: other sound by {protocol}");
            }
        }
    }
}

#[test]
fn a_break_in_the_stream_is_a_discontinuity_and_a_period() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::plain();
    let one = std::fs::read(sample(home.path(), "one", 3, "192x108", &PLAIN, Some("aac"))).unwrap();
    let two = std::fs::read(sample(home.path(), "two", 3, "256x144", &PLAIN, Some("aac"))).unwrap();
    put(gateway.api, &put_headers("cam", Some(START_MS)), &one);
    put(gateway.api, &put_headers("cam", Some(START_MS + 60_000)), &two);
    put(gateway.api, &put_headers("cam", Some(START_MS + 90_000)), &two);
    let (_, plain) = gateway.http_get("/video/cam/playlist.m3u8");
    let count = |text: &str, what: &str| text.matches(what).count();
    assert_eq!((count(&plain, "#EXT-X-DISCONTINUITY\n"), count(&plain, "#EXT-X-MAP")), (2, 2), "{plain}");
    assert_eq!(count(&plain, "#EXTINF"), 9, "{plain}");
    // Six of the nine: the first two breaks have left the live playlist, or are its first fragment's.
    let (_, live) = gateway.http_get("/video/cam/live.m3u8?ll=0");
    assert_eq!((count(&live, "#EXTINF"), count(&live, "#EXT-X-DISCONTINUITY\n")), (8, 2), "{live}");
    assert!(live.contains("#EXT-X-DISCONTINUITY-SEQUENCE:1\n"), "{live}");
    let url = session(&gateway, "DASH", "cam", "ON_DEMAND", Some((START_MS as i64, START_MS as i64 + 3_600_000)));
    let (_, manifest) = headwater_tests::aws::get(gateway.api, url.split_once(&gateway.api.to_string()).unwrap().1);
    assert_eq!((count(&manifest, "<Period"), count(&manifest, "<AdaptationSet")), (3, 6), "{manifest}");
    let (_, refused) = gateway.http_get("/video/cam/clip.mp4");
    assert!(refused.contains("settings changed"), "{refused}");
}

/// A camera that sends until the test ends.
fn camera(gateway: &Gateway) -> Process {
    let mut ffmpeg = video::ffmpeg().expect("ffmpeg is there");
    ffmpeg.args(["-re", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=25:duration=300"]);
    ffmpeg.args(["-f", "lavfi", "-i", "sine=440:duration=300"]).args(PLAIN).args(["-c:a", "aac"]);
    ffmpeg.args([
        "-f",
        "matroska",
        "-cluster_time_limit",
        "100",
        "-flush_packets",
        "1",
        "-content_type",
        "video/x-matroska",
    ]);
    ffmpeg.args(["-method", "POST"]).arg(format!("http://{}/streams/cam/media", gateway.api));
    Process::start(ffmpeg.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

/// The newest moment that a low-latency playlist has, and how old it was: the parts of the fragment that is being built count.
fn newest(playlist: &str) -> Option<(i64, i64)> {
    let now_ms = video::now_ms() as i64;
    let (mut start_ms, mut length_s) = (None, 0.0);
    for line in playlist.lines() {
        if let Some(time) = line.strip_prefix("#EXT-X-PROGRAM-DATE-TIME:") {
            (start_ms, length_s) = (parse_time(time), 0.0);
        }
        if let Some(part) = line.strip_prefix("#EXT-X-PART:DURATION=") {
            length_s += part.split(',').next()?.parse::<f64>().ok()?;
        }
    }
    let newest_ms = start_ms? + (length_s * 1000.0) as i64;
    Some((newest_ms, now_ms - newest_ms))
}

/// `2026-01-31T12:00:00.123Z` of today, in milliseconds since 1970: the day is the clock's own.
fn parse_time(text: &str) -> Option<i64> {
    let time = text.split_once('T')?.1.trim_end_matches('Z');
    let mut parts = time.splitn(3, ':');
    let (hour, minute) = (parts.next()?.parse::<i64>().ok()?, parts.next()?.parse::<i64>().ok()?);
    let second = parts.next()?.parse::<f64>().ok()?;
    let of_day = (hour * 60 + minute) * 60_000 + (second * 1000.0).round() as i64;
    let now = video::now_ms() as i64;
    let midnight = now - now.rem_euclid(86_400_000);
    let days = [midnight - 86_400_000, midnight, midnight + 86_400_000];
    days.map(|day| day + of_day).into_iter().min_by_key(|at| at.abs_diff(now))
}

#[test]
fn what_is_live_plays_while_it_is_sent() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let gateway = Gateway::plain();
    let _camera = camera(&gateway);
    video::wait_for_fragments(gateway.api, "cam", 5, BOUND);
    // A blocked playlist comes back when there is news of it, with a part that was not there before.
    let (mut last_ms, mut ages) = (0, Vec::new());
    for _ in 0..12 {
        let (_, playlist) = gateway.http_get("/video/cam/live.m3u8");
        let sequence = number_after(&playlist, "#EXT-X-MEDIA-SEQUENCE:") + playlist.matches("#EXTINF").count() as u64;
        let parts = playlist.rsplit("#EXTINF").next().unwrap_or_default().matches("#EXT-X-PART:").count();
        let began = Instant::now();
        let (status, playlist) =
            gateway.http_get(&format!("/video/cam/live.m3u8?_HLS_msn={sequence}&_HLS_part={parts}"));
        assert_eq!(status, 200);
        assert!(began.elapsed() < Duration::from_secs(3), "a blocked playlist has a bound");
        let (newest_ms, age_ms) = newest(&playlist).unwrap_or_else(|| panic!("no parts in\n{playlist}"));
        assert!(newest_ms >= last_ms, "{playlist}");
        last_ms = newest_ms;
        ages.push(age_ms);
    }
    ages.sort_unstable();
    eprintln!("age of the newest part when its playlist came, ms: {ages:?}");
    assert!(ages[ages.len() / 2] < 1_500, "{ages:?}");
    for protocol in ["HLS", "DASH"] {
        let url = session(&gateway, protocol, "cam", "LIVE", None);
        let mut ffmpeg = video::ffmpeg().unwrap();
        ffmpeg.args(["-i", &url, "-map", "0:v:0", "-frames:v", "75", "-f", "framemd5", "-"]);
        let done = run(&mut ffmpeg, BOUND);
        let text = String::from_utf8_lossy(&done.stdout);
        let pictures = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(
            done.status.success() && pictures == 75,
            "{protocol}: {pictures}\n{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
    let before = fragments(gateway.api, "cam").len();
    let (_, again) = gateway.http_get("/video/streams");
    let again: Value = serde_json::from_str(&again).unwrap();
    assert!(again["streams"][0]["live"] == true && before >= 5, "{again}");
}

fn number_after(text: &str, tag: &str) -> u64 {
    let rest = text.split_once(tag).map_or("", |(_, rest)| rest);
    rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[test]
fn the_player_page_plays_a_live_camera_in_a_browser() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let mut player = need!(tools::browser_client("player.mjs"), tools::NO_BROWSER);
    let gateway = Gateway::plain();
    let _camera = camera(&gateway);
    video::wait_for_fragments(gateway.api, "cam", 25, BOUND);
    let done = run(player.arg(format!("http://{}", gateway.console)).arg("cam"), BOUND * 2);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    eprintln!("{}", said.trim());
    let saw: Value = serde_json::from_str(&said).unwrap();
    assert!(saw["latency_s"].as_f64().is_some_and(|seconds| seconds < 4.0), "{said}");
}

/// dash.js in a page of another origin; `more` are the words of `clients/dash.mjs`.
fn dash_js(mut player: std::process::Command, url: &str, more: &[&str]) -> Value {
    let done = run(player.arg(url).args(more), BOUND);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    eprintln!("{}", said.trim());
    serde_json::from_str(&said).unwrap()
}

#[test]
fn dash_js_plays_a_recording_over_a_break_in_a_page_of_another_origin() {
    need!(video::ffmpeg(), NO_FFMPEG);
    need!(npm_package("dashjs"), tools::NO_BROWSER);
    let player = need!(tools::browser_client("dash.mjs"), tools::NO_BROWSER);
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::plain();
    let film = std::fs::read(sample(home.path(), "film", 4, "192x108", &PLAIN, Some("aac"))).unwrap();
    for start_ms in [START_MS, START_MS + 60_000] {
        put(gateway.api, &put_headers("cam", Some(start_ms)), &film);
    }
    let range = (START_MS as i64, START_MS as i64 + 3_600_000);
    let url = session(&gateway, "DASH", "cam", "ON_DEMAND", Some(range));
    let saw = dash_js(player, &url, &["--to-the-end"]);
    assert_eq!(saw["periods"].as_array().map(Vec::len), Some(2), "{saw}");
    assert_eq!(saw["frames_all"], 200, "{saw}");
}

/// The fault: a live manifest did not say what time it is, so dash.js asked a server in the internet, which is not there.
#[test]
fn dash_js_plays_what_is_live_and_asks_nobody_else_for_the_time() {
    need!(video::ffmpeg(), NO_FFMPEG);
    need!(npm_package("dashjs"), tools::NO_BROWSER);
    let player = need!(tools::browser_client("dash.mjs"), tools::NO_BROWSER);
    let gateway = Gateway::plain();
    let _camera = camera(&gateway);
    video::wait_for_fragments(gateway.api, "cam", 6, BOUND);
    let saw = dash_js(player, &session(&gateway, "DASH", "cam", "LIVE", None), &["--seconds", "6"]);
    assert!(saw["latency_s"].as_f64().is_some_and(|seconds| seconds < 8.0), "{saw}");
}
