//! What a producer hears, as AWS's producer SDK for C reads it: the life of a fragment, the shape of each line, and every error that
//! a producer can bring about, by its number.

use headwater_tests::gateway::Gateway;
use headwater_tests::matroska::{self, block, cluster};
use headwater_tests::need;
use headwater_tests::tools::{self, run_ok};
use headwater_tests::video::{self, Ack, NO_FFMPEG, PLAIN, Put, fragments, put, put_headers, sample};
use serde_json::Value;
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(60);
const START_MS: u64 = 1_767_225_600_000;

/// The fields of a line, by its kind and in their order, and what an error's number is called.
const SHAPES: [(&str, &[&str]); 5] = [
    ("BUFFERING", &["EventType", "FragmentTimecode"]),
    ("RECEIVED", &["EventType", "FragmentTimecode", "FragmentNumber"]),
    ("PERSISTED", &["EventType", "FragmentTimecode", "FragmentNumber"]),
    ("ERROR", &["EventType", "ErrorId", "ErrorCode"]),
    ("IDLE", &["EventType"]),
];
const CODES: [(i64, &str); 6] = [
    (4001, "MAX_FRAGMENT_SIZE_REACHED"),
    (4002, "MAX_FRAGMENT_DURATION_REACHED"),
    (4003, "MAX_CONNECTION_DURATION_REACHED"),
    (4005, "MORE_THAN_ALLOWED_TRACKS_FOUND"),
    (4006, "INVALID_MKV_DATA"),
    (4010, "TRACK_NUMBER_MISMATCH"),
];

/// A line of JSON each, with these fields and no others; numbers of fragments are decimal digits in a string.
fn check_shape(acks: &[Ack]) {
    for ack in acks {
        let (_, fields) = SHAPES.iter().find(|(kind, _)| *kind == ack.kind).unwrap_or_else(|| panic!("{ack:?}"));
        let line: Value = serde_json::from_str(&ack.line).unwrap();
        let line = line.as_object().unwrap();
        // An error may say which fragment it is about.
        let has = |name: &&str| *name != "FragmentTimecode" || ack.kind != "ERROR";
        assert!(line.keys().map(String::as_str).filter(has).eq(sorted(fields)), "{}", ack.line);
        let places: Vec<_> = fields.iter().map(|field| ack.line.find(&format!("\"{field}\":"))).collect();
        assert!(places.is_sorted() && places[0] == Some(1), "{}", ack.line);
        if let Some(timecode) = line.get("FragmentTimecode") {
            assert!(timecode.is_i64(), "{}", ack.line);
        }
        if let Some(number) = line.get("FragmentNumber") {
            let digits = number.as_str().unwrap_or_default();
            assert!(!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()), "{}", ack.line);
        }
        if let Some(id) = ack.error {
            let code = CODES.iter().find(|(known, _)| *known == id).map(|(_, code)| *code);
            assert_eq!(line["ErrorCode"].as_str(), code, "{}", ack.line);
        }
    }
}

fn sorted<'a>(fields: &[&'a str]) -> Vec<&'a str> {
    let mut fields = fields.to_vec();
    fields.sort_unstable();
    fields
}

/// The life of a fragment, by AWS's words: nothing is said twice, out of order, or before its time.
fn check_lives(acks: &[Ack]) {
    let of = |kind: &str| acks.iter().filter(|ack| ack.kind == kind).map(|ack| ack.timecode).collect::<Vec<_>>();
    assert_eq!(of("RECEIVED"), of("PERSISTED"), "{acks:?}");
    for timecode in of("BUFFERING") {
        let life: Vec<_> = acks.iter().filter(|ack| ack.timecode == timecode).map(|ack| &ack.kind[..]).collect();
        let whole = ["BUFFERING", "RECEIVED", "PERSISTED"];
        // One that is dropped, or is not whole when the connection ends, has only begun.
        let begun = [&["BUFFERING"][..], &["BUFFERING", "ERROR"]];
        assert!(life == whole || begun.contains(&&life[..]), "{timecode:?}: {life:?}");
    }
    let numbers: Vec<_> = video::persisted(acks);
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    let numbers = |kind: &str| acks.iter().filter(|ack| ack.kind == kind).map(|ack| ack.number).collect::<Vec<_>>();
    assert_eq!(numbers("RECEIVED"), numbers("PERSISTED"), "{acks:?}");
}

fn errors(acks: &[Ack]) -> Vec<i64> {
    acks.iter().filter(|ack| ack.kind == "ERROR").filter_map(|ack| ack.error).collect()
}

fn plain(seconds: u32, more: &[&str]) -> Vec<u8> {
    let home = tempfile::tempdir().unwrap();
    std::fs::read(sample(home.path(), "plain", seconds, "192x108", &[&PLAIN[..], more].concat(), None)).unwrap()
}

/// Of a Segment without end, so that clusters made by hand may follow.
fn open_ended(seconds: u32) -> Vec<u8> {
    let (head, clusters) = matroska::by_keyframe(&plain(seconds, &["-live", "1"]));
    [head, clusters.concat()].concat()
}

#[test]
fn acknowledgements_come_while_the_body_still_comes() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let gateway = Gateway::plain();
    let file = plain(5, &[]);
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
    assert_eq!(acks.len(), 15, "three lines for each: {acks:?}");
    check_lives(&acks);
    check_shape(&acks);
}

fn four_tracks() -> Vec<u8> {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("four.mkv");
    let mut command = video::ffmpeg().unwrap();
    for _ in 0..4 {
        command.args(["-f", "lavfi", "-i", "sine=440:duration=1"]);
    }
    command.args(["-map", "0", "-map", "1", "-map", "2", "-map", "3", "-c:a", "aac", "-f", "matroska"]);
    run_ok(command.arg(&path), BOUND);
    std::fs::read(path).unwrap()
}

/// What is sent, the errors that must come back, and how many fragments are kept. 4001 and 4002 cost one fragment, the others end
/// the connection.
#[test]
fn a_producer_hears_of_its_mistakes_by_their_numbers() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let gateway = Gateway::plain();
    let (good, open) = (plain(3, &[]), open_ended(3));
    let and = |more: &[Vec<u8>]| [open.clone(), more.concat()].concat();
    let next = |at_ms: u64| cluster(at_ms, &[block(1, 0, true, b"a keyframe"), block(1, 500, false, b"another")]);
    let crowd: Vec<_> = (0..66_000).map(|at| block(1, (at / 100) as i16, at == 0, b"x")).collect();
    let heavy: Vec<_> = (0..60i16).map(|at| block(1, at * 40, at == 0, &vec![7; 1 << 20])).collect();
    let slow: Vec<_> = (0..25i16).map(|at| block(1, at * 1_000, at == 0, b"x")).collect();
    let cut = good[..good.len() * 2 / 3].to_vec();
    let cases: [(&str, Vec<u8>, &[i64], usize); 9] = [
        ("well", good.clone(), &[], 3),
        ("no Matroska", vec![b'x'; 64 << 10], &[4006], 0),
        ("no Matroska any more", and(&[vec![0; 4 << 10]]), &[4006], 2),
        ("cut within a frame", cut, &[4006], 1),
        ("four tracks", four_tracks(), &[4005], 0),
        ("a track that was not announced", and(&[cluster(3_000, &[block(9, 0, true, b"what?")])]), &[4010], 2),
        ("too many frames", and(&[cluster(3_000, &crowd), next(4_000), next(5_000)]), &[4001], 5),
        ("too many bytes", and(&[cluster(3_000, &heavy), next(6_000), next(7_000)]), &[4001], 5),
        ("too long", and(&[cluster(3_000, &slow), next(28_000), next(29_000)]), &[4002], 5),
    ];
    for (at, (name, body, expected, kept)) in cases.into_iter().enumerate() {
        let stream = format!("case-{at}");
        let (status, acks) = put(gateway.api, &put_headers(&stream, Some(START_MS)), &body);
        assert_eq!(status, 200, "{name}");
        assert_eq!(errors(&acks), expected, "{name}: {acks:?}");
        check_shape(&acks);
        check_lives(&acks);
        assert_eq!(video::persisted(&acks).len(), kept, "{name}: {acks:?}");
        if kept == 0 {
            let (_, streams) = gateway.http_get("/video/streams");
            assert!(name != "no Matroska" || !streams.contains(&stream), "it makes no stream: {streams}");
            continue;
        }
        let there: Vec<_> = fragments(gateway.api, &stream).into_iter().map(|(number, ..)| number).collect();
        assert_eq!(there, video::persisted(&acks), "{name}: nothing is kept that was not acknowledged");
        // Who goes on hears which fragment it has lost.
        if let [4001 | 4002] = expected {
            let told = acks.iter().find(|ack| ack.kind == "ERROR").and_then(|ack| ack.timecode);
            assert_eq!(told, Some(3_000), "{name}: {acks:?}");
        }
    }
}

/// Who POSTs has the answer alone to go by.
#[test]
fn a_plain_post_is_told_what_was_kept_and_why_the_rest_was_not() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let gateway = Gateway::plain();
    let open = open_ended(3);
    let slow: Vec<_> = (0..25i16).map(|at| block(1, at * 1_000, at == 0, b"x")).collect();
    let damaged = [open.clone(), vec![0; 4 << 10]].concat();
    let (head, _) = matroska::by_keyframe(&plain(1, &["-live", "1"]));
    let cases = [
        ("good", plain(3, &[]), 200, "\"dropped\":0,\"fragments\":3"),
        ("in-part", [open, cluster(3_000, &slow)].concat(), 200, "\"dropped_for\":\"more than 20 s without a keyframe"),
        ("in-vain", [head, cluster(0, &slow)].concat(), 400, "No fragment was kept: more than 20 s without a keyframe"),
        ("damaged", damaged, 400, "Fragments kept before it: 2"),
    ];
    for (stream, body, status, says) in cases {
        let (answered, said) = video::post(gateway.api, stream, &body);
        assert!(answered == status && said.contains(says), "{stream}: {answered} {said}");
    }
}

#[test]
fn requests_that_make_no_sense_are_refused_in_words() {
    let gateway = Gateway::plain();
    let refused = [
        ("x-amzn-stream-name: a\r\nx-amzn-fragment-timecode-type: RELATIVE\r\n", "RELATIVE"),
        ("x-amzn-stream-name: a\r\nx-amzn-fragment-timecode-type: SOMETIMES\r\n", "SOMETIMES"),
        ("x-amzn-fragment-timecode-type: ABSOLUTE\r\n", "StreamName"),
        // Milliseconds where seconds are meant.
        (
            "x-amzn-stream-name: a\r\nx-amzn-fragment-timecode-type: RELATIVE\r\nx-amzn-producer-start-timestamp: 1796026508624\r\n",
            "seconds since 1970",
        ),
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

/// 15 seconds of silence are told, and cost nothing: the same connection goes on. When the gateway stops it says so: 4003.
#[test]
fn silence_is_told_and_a_gateway_that_stops_says_so() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let mut gateway = Gateway::plain();
    let file = plain(4, &[]);
    let mut put = Put::begin(gateway.api, &put_headers("cam", Some(START_MS))).unwrap();
    put.send(&file[..file.len() / 2]).unwrap();
    let silent = Instant::now();
    let told = |put: &Put, kind: &str| put.heard().iter().filter(|ack| ack.kind == kind).count();
    assert!(tools::eventually(BOUND, || told(&put, "IDLE") == 1), "{:?}", put.heard());
    let after = silent.elapsed();
    assert!((14..18).contains(&after.as_secs()), "told after {after:?}");
    let before = told(&put, "PERSISTED");
    put.send(&file[file.len() / 2..]).unwrap();
    assert!(tools::eventually(BOUND, || told(&put, "PERSISTED") >= 3), "{before}: {:?}", put.heard());
    gateway.stop();
    let (_, acks) = put.wait();
    assert_eq!(errors(&acks), [4003], "{acks:?}");
    assert_eq!(acks.iter().filter(|ack| ack.kind == "IDLE").count(), 1, "{acks:?}");
    check_shape(&acks);
    check_lives(&acks);
}
