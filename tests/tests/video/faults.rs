//! What breaks: the gateway is killed, bodies are cut and changed, clocks jump, producers crowd or stall. What was PERSISTED
//! stays and plays; what was not is gone without a trace.

use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::tools::{self, rounds};
use headwater_tests::video::{self, NO_FFMPEG, PLAIN, Put, fragments, persisted, put, put_headers, sample};
use headwater_tests::{matroska, need};
use std::collections::BTreeSet;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(60);
const START_MS: u64 = 1_767_225_600_000;
const WEEK_MS: u64 = 7 * 86_400_000;

fn plain(seconds: u32, size: &str) -> Vec<u8> {
    let home = tempfile::tempdir().unwrap();
    std::fs::read(sample(home.path(), "plain", seconds, size, &PLAIN, None)).unwrap()
}

fn playlist(gateway: &Gateway, stream: &str) -> String {
    format!("http://{}/video/{stream}/playlist.m3u8", gateway.console)
}

/// Sends pieces until the gateway is gone or the file ends; what was heard.
fn send_until_cut(api: std::net::SocketAddr, stream: &str, start_ms: u64, file: &[u8], pause: Duration) -> Vec<u64> {
    let Ok(mut put) = Put::begin(api, &put_headers(stream, Some(start_ms))) else { return Vec::new() };
    for piece in file.chunks(3_000) {
        if put.send(piece).is_err() {
            break;
        }
        std::thread::sleep(pause);
    }
    persisted(&put.finish().1)
}

/// P1 and P7 for video.
#[test]
fn a_persisted_fragment_survives_sigkill_and_a_torn_one_is_gone() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let file = plain(30, "128x72");
    let mut gateway = Gateway::plain();
    let names = ["one", "two", "three"];
    let mut acked: [BTreeSet<u64>; 3] = Default::default();
    let mut chance = fastrand::Rng::with_seed(4);
    for round in 0..rounds(10, 3) {
        let start_ms = START_MS + round as u64 * 3_600_000;
        let api = gateway.api;
        let heard = std::thread::scope(|scope| {
            let send = |name| {
                scope.spawn({
                    let file = &file;
                    move || send_until_cut(api, name, start_ms, file, Duration::from_millis(8))
                })
            };
            let sending = names.map(send);
            std::thread::sleep(Duration::from_millis(chance.u64(150..900)));
            gateway.kill();
            sending.map(|sending| sending.join().unwrap())
        });
        gateway.restart();
        for (acked, heard) in acked.iter_mut().zip(heard) {
            acked.extend(heard);
        }
        for (name, acked) in names.iter().zip(&acked) {
            if acked.is_empty() {
                continue;
            }
            let kept: BTreeSet<u64> = fragments(gateway.api, name).iter().map(|(number, ..)| *number).collect();
            let lost: Vec<_> = acked.difference(&kept).collect();
            assert!(lost.is_empty(), "round {round}, {name}: persisted and lost: {lost:?}");
        }
    }
    let all: usize = acked.iter().map(BTreeSet::len).sum();
    assert!(all > 0, "no round was long enough for a fragment");
    for name in names {
        let kept = fragments(gateway.api, name);
        // 25 pictures each: nothing torn, nothing short. The decoder has nothing to complain of.
        assert_eq!(video::pictures(&playlist(&gateway, name), &[]).len(), kept.len() * 25, "{name}");
    }
}

#[test]
fn a_torn_or_changed_body_costs_its_own_fragments_only() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let file = plain(4, "64x36");
    let mut chance = fastrand::Rng::with_seed(7);
    let gateway = Gateway::plain();
    let (_, good) = put(gateway.api, &put_headers("good", Some(START_MS)), &file);
    // A fragment is whole when the keyframe of the next one is.
    let whole_at = &matroska::keyframe_ends(&file)[1..];
    assert_eq!((persisted(&good).len(), whole_at.len()), (4, 3));
    let mut spared = 0;
    for round in 0..rounds(60, 20) {
        let mut body = file.clone();
        let damage = if round % 2 == 0 {
            body.truncate(chance.usize(..body.len()));
            body.len()
        } else {
            let places: Vec<usize> = (0..=chance.usize(..4)).map(|_| chance.usize(..body.len())).collect();
            places.iter().for_each(|at| body[*at] ^= 1 << chance.u32(..8));
            places.into_iter().min().expect("a change at least")
        };
        let stream = format!("bad-{}", round % 4);
        let start_ms = START_MS + round as u64 * 60_000;
        let (status, acks) = put(gateway.api, &put_headers(&stream, Some(start_ms)), &body);
        assert_eq!(status, 200, "round {round}");
        let kept = fragments(gateway.api, &stream);
        let told = persisted(&acks);
        assert!(told.iter().all(|told| kept.iter().any(|(number, ..)| number == told)), "round {round}: {acks:?}");
        assert!(acks.iter().filter(|ack| ack.kind == "ERROR").count() <= 4, "round {round}: {acks:?}");
        // What was whole before the damage is kept as it is without it.
        let whole = whole_at.iter().filter(|end| **end <= damage).count();
        spared += whole;
        for (at, number) in told.iter().enumerate().take(whole) {
            let (_, start, length) = kept.iter().find(|(kept, ..)| kept == number).expect("it is kept");
            let expected = (start_ms as i64 + at as i64 * 1_000, 1_000);
            assert_eq!((*start, *length), expected, "round {round}, fragment {at}: {kept:?}");
        }
        assert!(told.len() >= whole, "round {round}: {whole} fragments were whole at byte {damage}: {acks:?}");
    }
    assert!(spared > rounds(60, 20) / 2, "hardly a fragment was whole: {spared}");
    // Whatever came of them, every playlist and page still answers, and the good one plays.
    for stream in 0..4 {
        let (status, said) = gateway.http_get(&format!("/video/bad-{stream}/playlist.m3u8"));
        assert!(status == 200 || status == 404, "{status} {said}");
    }
    assert_eq!(video::pictures(&playlist(&gateway, "good"), &[]).len(), 100);
}

#[test]
fn twenty_producers_of_one_stream_keep_all_they_are_told() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let file = plain(3, "64x36");
    let gateway = Gateway::plain();
    let api = gateway.api;
    let heard: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let send = |at: u64| {
            scope.spawn({
                let file = &file;
                move || send_until_cut(api, "crowd", START_MS + at * 60_000, file, Duration::from_millis(3))
            })
        };
        let sending: Vec<_> = (0..20).map(send).collect();
        sending.into_iter().map(|sending| sending.join().unwrap()).collect()
    });
    assert!(heard.iter().all(|numbers| numbers.len() == 3), "{heard:?}");
    let kept = fragments(gateway.api, "crowd");
    let told: BTreeSet<u64> = heard.into_iter().flatten().collect();
    assert_eq!(kept.iter().map(|(number, ..)| *number).collect::<BTreeSet<_>>(), told);
    assert!(kept.iter().all(|(.., length)| (900..=1_100).contains(length)), "{kept:?}");
    // One producer's time at a time is one that plays.
    let one = format!("{}?from={}&to={}", playlist(&gateway, "crowd"), START_MS, START_MS + 59_000);
    assert_eq!(video::pictures(&one, &[]).len(), 75);
}

#[test]
fn a_producer_that_stalls_is_told_and_given_up_and_holds_nobody_up() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let file = plain(3, "128x72");
    let gateway = Setup::new("[video]\nidle_timeout = \"2 s\"\nmax_producers = 2\n").start();
    let mut stalled = Put::begin(gateway.api, &put_headers("cam", Some(START_MS))).unwrap();
    stalled.send(&file[..file.len() / 2]).unwrap();
    let persisted_some = || !persisted(&stalled.heard()).is_empty();
    assert!(tools::eventually(BOUND, persisted_some), "{:?}", stalled.heard());
    let (status, acks) = put(gateway.api, &put_headers("cam", Some(START_MS + 60_000)), &file);
    assert_eq!((status, persisted(&acks).len()), (200, 3));
    let (_, heard) = stalled.wait();
    let errors: Vec<_> = heard.iter().filter_map(|ack| ack.error).collect();
    assert_eq!(errors, [4000], "{heard:?}");
    // Its place is free again.
    for _ in 0..3 {
        assert_eq!(put(gateway.api, &put_headers("cam", Some(START_MS + 120_000)), &file).0, 200);
    }
}

#[test]
fn a_further_producer_than_allowed_is_refused_in_words() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let file = plain(2, "64x36");
    let gateway = Setup::new("[video]\nmax_producers = 1\n").start();
    let mut first = Put::begin(gateway.api, &put_headers("cam", Some(START_MS))).unwrap();
    first.send(&file[..file.len() / 2]).unwrap();
    assert!(tools::eventually(BOUND, || !first.heard().is_empty()));
    let (status, _) = put(gateway.api, &put_headers("cam", Some(START_MS)), &file);
    assert_eq!(status, 400, "ConnectionLimitExceededException");
    first.send(&file[file.len() / 2..]).unwrap();
    assert_eq!(persisted(&first.finish().1).len(), 2);
}

/// A second Segment in one body, whose clock begins again, then one of another size, and one of another codec.
#[test]
fn a_second_segment_and_other_tracks_are_a_discontinuity_with_a_new_init() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let (small, large) = (plain(3, "64x36"), plain(3, "128x72"));
    // Other pictures: the same ones at the same time are taken for what was sent again, and are kept once.
    let home = tempfile::tempdir().unwrap();
    let negative = sample(home.path(), "negative", 3, "64x36", &[&PLAIN[..], &["-vf", "negate"]].concat(), None);
    let gateway = Gateway::plain();
    let hevc = ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:keyint=25"];
    let other = sample(home.path(), "hevc", 3, "128x72", &hevc, None);
    let body = [small, std::fs::read(negative).unwrap(), large, std::fs::read(other).unwrap()].concat();
    let (status, acks) = put(gateway.api, &put_headers("cam", Some(START_MS)), &body);
    assert_eq!((status, persisted(&acks).len()), (200, 12), "{acks:?}");
    let (_, text) = gateway.http_get("/video/cam/playlist.m3u8");
    assert_eq!(text.matches("#EXT-X-DISCONTINUITY\n").count(), 3, "{text}");
    assert_eq!(text.matches("#EXT-X-MAP").count(), 3, "{text}");
    // By plain POST the clock is this box's, and goes on.
    let (status, said) = video::post(gateway.api, "anchored", &body);
    assert!(status == 200 && said.contains("\"fragments\":12"), "{status} {said}");
    let now = video::now_ms() as i64;
    let kept = fragments(gateway.api, "anchored");
    assert!(
        // Sent faster than it plays, so its last second is that much ahead.
        kept.iter().all(|(_, start, length)| (now - 60_000..now + 13_000).contains(start) && *length <= 1_100),
        "{kept:?}"
    );
    assert!(kept.windows(2).all(|two| two[1].1 == two[0].1 + two[0].2), "a time comes twice, or falls: {kept:?}");
}

/// Frames of a raw Matroska file with their clusters moved in time: the muxer's own clusters, whose timestamps are rewritten.
fn jump(file: &[u8], from_cluster: usize, by_ms: i64) -> Vec<u8> {
    const CLUSTER: [u8; 4] = [0x1f, 0x43, 0xb6, 0x75];
    let mut out = Vec::with_capacity(file.len() + 64);
    let (mut rest, mut seen) = (file, 0);
    while let Some(at) = rest.windows(4).position(|four| four == CLUSTER) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        // Cluster id, a length of 8 bytes (or 1, unknown), Timestamp 0xe7 with its length and value.
        let size_bytes = rest[4].leading_zeros() as usize + 1;
        let (id, length_at) = (4 + size_bytes, 4 + size_bytes + 1);
        assert_eq!(rest[id], 0xe7, "a Timestamp opens a cluster");
        let bytes = usize::from(rest[length_at] & 0x7f);
        let value = rest[length_at + 1..][..bytes].iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let value = if seen >= from_cluster { value.saturating_add_signed(by_ms) } else { value };
        // Unknown length of the cluster: its Timestamp may grow.
        out.extend_from_slice(&CLUSTER);
        out.extend_from_slice(&[0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xe7, 0x88]);
        out.extend_from_slice(&value.to_be_bytes());
        rest = &rest[length_at + 1 + bytes..];
        seen += 1;
    }
    out.extend_from_slice(rest);
    assert!(seen > from_cluster, "{seen} clusters");
    out
}

/// Live Matroska: clusters of half a second, nothing that says where they are.
fn live(seconds: u32) -> Vec<u8> {
    let home = tempfile::tempdir().unwrap();
    let source = sample(home.path(), "source", seconds, "64x36", &PLAIN, None);
    let path = home.path().join("live.mkv");
    let mut ffmpeg = video::ffmpeg().unwrap();
    ffmpeg.arg("-i").arg(source).args([
        "-c",
        "copy",
        "-f",
        "matroska",
        "-live",
        "1",
        "-write_crc32",
        "0",
        "-cluster_time_limit",
        "500",
    ]);
    tools::run_ok(ffmpeg.arg(&path), BOUND);
    std::fs::read(path).unwrap()
}

#[test]
fn a_clock_that_jumps_makes_a_discontinuity_and_never_a_fragment_of_a_week() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let file = live(6);
    let gateway = Gateway::plain();
    // The middle: clusters are half a second, the jump comes after three seconds.
    let cases = [
        ("week", jump(&file, 6, WEEK_MS as i64)),
        ("back", jump(&file, 6, -2_000)),
        ("hour", jump(&file, 6, 3_600_000)),
    ];
    for (name, body) in cases {
        for (stream, headers) in [
            (format!("{name}-relative"), put_headers(&format!("{name}-relative"), Some(START_MS))),
            (format!("{name}-absolute"), put_headers(&format!("{name}-absolute"), None)),
        ] {
            let (status, acks) = put(gateway.api, &headers, &body);
            assert_eq!(status, 200);
            let kept = fragments(gateway.api, &stream);
            assert!(kept.len() >= 5 && persisted(&acks).len() == kept.len(), "{stream}: {kept:?}");
            assert!(kept.iter().all(|(.., length)| *length <= 1_100), "{stream}: {kept:?}");
            let (_, text) = gateway.http_get(&format!("/video/{stream}/playlist.m3u8"));
            assert!(text.matches("#EXT-X-DISCONTINUITY\n").count() == 1, "{stream}: {text}");
            assert!(text.contains("#EXT-X-TARGETDURATION:1\n"), "{stream}: {text}");
            // The jump may come within a group of pictures: what was there of it plays. As a clip, which goes on where the clock
            // went back: ffmpeg's HLS does not know discontinuities and leaves out what it has shown the time of.
            let clip = format!("http://{}/video/{stream}/clip.mp4", gateway.console);
            let seen = video::pictures(&clip, &[]).len();
            assert!(((kept.len() - 1) * 25..=kept.len() * 25).contains(&seen), "{stream}: {seen} of {kept:?}");
        }
    }
}
