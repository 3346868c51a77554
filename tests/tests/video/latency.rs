//! Glass to glass on loopback: the time is drawn into each picture when it is made, and read off it when a player has it.
//!
//! What a browser adds is its distance from the end of the playlist: three parts of a low-latency one (PART-HOLD-BACK), three
//! target durations of another. It is added here; decoding and the screen are not measured.

use headwater_tests::gateway::Gateway;
use headwater_tests::need;
use headwater_tests::tools::{Process, run};
use headwater_tests::video::{self, NO_FFMPEG, PLAIN};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(60);
/// A bit of the time is a block of the picture, in pixels; the picture is one row of them.
const BITS: usize = 32;
const BLOCK: usize = 8;
const HEIGHT: usize = 32;
const WIDTH: usize = BITS * BLOCK;
const PART_HOLD_BACK_MS: i64 = 750;

fn draw(ms: u32) -> Vec<u8> {
    let row: Vec<u8> = (0..WIDTH).map(|x| if ms >> (x / BLOCK) & 1 == 1 { 235 } else { 16 }).collect();
    row.repeat(HEIGHT)
}

fn read(picture: &[u8]) -> u32 {
    let middle = &picture[WIDTH * HEIGHT / 2..];
    (0..BITS).map(|bit| u32::from(middle[bit * BLOCK + BLOCK / 2] > 125) << bit).sum()
}

/// The age of the last picture of a segment.
fn age_ms(home: &Path, init: &[u8], segment: &[u8], now_ms: u64) -> i64 {
    let path = home.join("piece.mp4");
    std::fs::write(&path, [init, segment].concat()).unwrap();
    let mut ffmpeg = video::ffmpeg().unwrap();
    ffmpeg.arg("-i").arg(&path).args(["-f", "rawvideo", "-pix_fmt", "gray", "-"]);
    let pictures = run(&mut ffmpeg, BOUND).stdout;
    let last = pictures.len().checked_sub(WIDTH * HEIGHT).map(|at| read(&pictures[at..])).expect("a picture");
    i64::from((now_ms as u32).wrapping_sub(last) as i32)
}

/// Bytes of a page on the console's port.
fn fetch(home: &Path, gateway: &Gateway, path: &str) -> Vec<u8> {
    let to = home.join("fetched");
    let mut curl = std::process::Command::new("curl");
    let url = format!("http://{}/video/glass/{path}", gateway.console);
    headwater_tests::tools::run_ok(curl.args(["-sSf", "-o"]).arg(&to).arg(url), BOUND);
    std::fs::read(to).unwrap()
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.rsplit_once(before)?.1.split(after).next()
}

/// Waits for the next part as a player does; the init and all parts of its fragment so far, since a part that is not independent
/// is read with those before it. `None` if it was the fragment's end that came.
fn next_part(home: &Path, gateway: &Gateway) -> Option<(Vec<u8>, Vec<u8>)> {
    let playlist = |query: &str| String::from_utf8(fetch(home, gateway, &format!("live.m3u8{query}"))).unwrap();
    let open = |text: &str| text.rsplit("#EXTINF").next().unwrap_or_default().to_owned();
    let text = playlist("");
    let sequence: u64 = between(&text, "#EXT-X-MEDIA-SEQUENCE:", "\n").unwrap().parse().unwrap();
    let next = sequence + text.matches("#EXTINF").count() as u64;
    let parts = open(&text).matches("#EXT-X-PART:").count();
    let text = playlist(&format!("?_HLS_msn={next}&_HLS_part={parts}"));
    let open = open(&text);
    let parts = open.lines().filter(|line| line.starts_with("#EXT-X-PART:"));
    let parts: Vec<u8> =
        parts.filter_map(|line| between(line, ",URI=\"", "\"")).flat_map(|part| fetch(home, gateway, part)).collect();
    let init = fetch(home, gateway, between(&text, "#EXT-X-MAP:URI=\"", "\"").unwrap());
    (!parts.is_empty()).then_some((init, parts))
}

#[test]
fn a_picture_is_seen_within_its_bound() {
    need!(video::ffmpeg(), NO_FFMPEG);
    need!(headwater_tests::tools::program("curl"), "curl is not installed");
    let home = tempfile::tempdir().unwrap();
    let gateway = Gateway::plain();
    let mut ffmpeg = video::ffmpeg().unwrap();
    ffmpeg.args(["-f", "rawvideo", "-pix_fmt", "gray", "-s", &format!("{WIDTH}x{HEIGHT}"), "-r", "25", "-i", "pipe:0"]);
    ffmpeg.args(PLAIN).args(["-crf", "10", "-pix_fmt", "yuv420p", "-f", "matroska", "-cluster_time_limit", "100"]);
    ffmpeg.args(["-flush_packets", "1", "-content_type", "video/x-matroska", "-method", "POST"]);
    ffmpeg.arg(format!("http://{}/streams/glass/media", gateway.api));
    let mut camera = Process::start(ffmpeg.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()));
    let mut lens = camera.0.stdin.take().unwrap();
    let shooting = std::thread::spawn(move || {
        let began = Instant::now();
        for picture in 0.. {
            let due = Duration::from_millis(40 * picture);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            if lens.write_all(&draw(video::now_ms() as u32)).is_err() {
                return;
            }
        }
    });
    video::wait_for_fragments(gateway.api, "glass", 5, BOUND);
    let (mut low, mut plain) = (Vec::new(), Vec::new());
    for round in 0..10 {
        if let Some((init, parts)) = (0..3).find_map(|_| next_part(home.path(), &gateway)) {
            low.push(age_ms(home.path(), &init, &parts, video::now_ms()) + PART_HOLD_BACK_MS);
        }
        // A part has just come, always at the same moments of a fragment: players come at any.
        std::thread::sleep(Duration::from_millis(97 * round));
        let text = String::from_utf8(fetch(home.path(), &gateway, "live.m3u8?ll=0")).unwrap();
        let target_ms = between(&text, "#EXT-X-TARGETDURATION:", "\n").unwrap().parse::<i64>().unwrap() * 1000;
        let last = text.lines().rev().find(|line| line.starts_with("fragment/")).unwrap();
        let init = fetch(home.path(), &gateway, between(&text, "#EXT-X-MAP:URI=\"", "\"").unwrap());
        let segment = fetch(home.path(), &gateway, last);
        plain.push(age_ms(home.path(), &init, &segment, video::now_ms()) + 3 * target_ms);
    }
    drop(camera);
    shooting.join().unwrap();
    for ages in [&mut low, &mut plain] {
        ages.sort_unstable();
    }
    eprintln!("glass to glass, ms: low latency {low:?}, plain {plain:?}");
    assert!(low.len() >= 8, "of ten rounds so many had a part: {low:?}");
    let [p50, p90] = [5, 9].map(|tenths| move |ages: &[i64]| ages[(ages.len() * tenths / 10).min(ages.len() - 1)]);
    eprintln!("p50 and p90, ms: low latency {} {}, plain {} {}", p50(&low), p90(&low), p50(&plain), p90(&plain));
    assert!(p50(&low) < 1_500 && p90(&low) < 2_000, "low latency {low:?}");
    assert!(p50(&plain) < 4_000 && p90(&plain) < 4_500, "plain {plain:?}");
}
