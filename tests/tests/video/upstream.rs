//! Camera -> gateway -> gateway: everything that is PERSISTED here is there, in order, once, byte for byte, whatever happens to
//! the one in the middle of it.

use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::mqtt::{Client, Version};
use headwater_tests::video::{self, NO_FFMPEG, PLAIN, fragments, persisted, put, put_headers, sample};
use headwater_tests::{forwarded, matroska, need, tools};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const CAMERA: &str = "cam-1";
/// For all that was sent to be upstream, on a box that is busy.
const SOON: Duration = Duration::from_secs(90);

fn ffmpeg(input: &[&str], output: &[&str]) -> Option<Command> {
    let mut command = Command::new(tools::program("ffmpeg")?);
    command.args(["-v", "error", "-nostdin"]).args(input).args(output).stdin(Stdio::null());
    Some(command)
}

/// A small camera that sends as fast as it films: H.264 with B-frames and AAC, a fragment a second.
fn camera(gateway: &Gateway, seconds: u32) -> Option<Child> {
    let to = format!("http://{}/streams/{CAMERA}/media", gateway.api);
    let (seconds, x264) =
        (seconds.to_string(), ["-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-g", "10", "-c:a", "aac"]);
    let input =
        ["-re", "-f", "lavfi", "-i", "testsrc=size=320x240:rate=10", "-re", "-f", "lavfi", "-i", "sine=frequency=440"];
    let send = ["-f", "matroska", "-cluster_time_limit", "500", "-method", "POST", &to];
    Some(ffmpeg(&input, &[&["-t", &seconds], &x264[..], &send[..]].concat())?.spawn().expect("ffmpeg starts"))
}

fn stored(gateway: &Gateway) -> Vec<Vec<u8>> {
    forwarded::stored(gateway, CAMERA)
}

fn the_same(here: &Gateway, there: &Gateway) {
    assert!(!forwarded::the_same(here, there, CAMERA).is_empty());
}

fn sink(kind: &str, to: &Gateway, more: &str) -> Setup {
    signing(kind, to, &format!("credentials = \"none\"\n{more}"))
}

/// With the credentials that the environment has.
fn signing(kind: &str, to: &Gateway, more: &str) -> Setup {
    let api = to.api;
    Setup::new(&format!(
        "[[sink]]\nname = \"up\"\ntype = \"{kind}\"\nstreams = [\"{CAMERA}\"]\nendpoint = \"http://{api}\"\n\
         region = \"us-east-1\"\nrequired = true\n{more}\n"
    ))
}

#[test]
fn p4_video_is_upstream_in_order_and_once_though_the_upstream_stops_and_is_killed() {
    let mut there = Gateway::plain();
    let here = sink("kinesis-video", &there, "create = true\nidle = \"1 s\"\ntimeout = \"3 s\"").start();
    let mut film = need!(camera(&here, 20), "ffmpeg is not there");
    let seconds = |count| std::thread::sleep(Duration::from_secs(count));
    seconds(4);
    there.kill();
    seconds(2);
    there.restart();
    seconds(4);
    there.stop();
    seconds(2);
    there.restart();
    seconds(3);
    there.kill();
    there.restart();
    assert!(film.wait().expect("ffmpeg ends").success());
    forwarded::drained(&here, SOON);
    the_same(&here, &there);
    assert!(stored(&here).len() >= 18, "{}", stored(&here).len());
}

#[test]
fn p4_a_gateway_that_is_killed_while_it_forwards_goes_on_where_it_was() {
    let there = Gateway::plain();
    let mut here = sink("kinesis-video", &there, "create = true\nidle = \"1 s\"\nmax_bytes_per_s = \"4 KiB\"").start();
    let mut film = need!(camera(&here, 10), "ffmpeg is not there");
    assert!(film.wait().expect("ffmpeg ends").success());
    assert!(here.metric("headwater_sink_backlog") > 0.0, "there is something left to forward");
    here.restart();
    std::thread::sleep(Duration::from_secs(3));
    here.restart();
    forwarded::drained(&here, SOON);
    the_same(&here, &there);
}

#[test]
fn only_marked_video_goes_and_the_rest_when_somebody_asks() {
    let there = Gateway::plain();
    let here =
        sink("kinesis-video", &there, "create = true\nidle = \"500 ms\"\nonly = \"marked\"\nmark_within = \"1 s\"")
            .start();
    let json = [("content-type", "application/json")];
    let mut film = need!(camera(&here, 6), "ffmpeg is not there");
    std::thread::sleep(Duration::from_secs(3));
    let mark = br#"{"pre_roll_s": 0.5, "post_roll_s": 0.6, "name": "door"}"#;
    assert_eq!(here.http_send(&format!("POST /video/{CAMERA}/marks"), &json, mark).0, 200);
    assert!(film.wait().expect("ffmpeg ends").success());
    forwarded::drained(&here, SOON);
    let (all, marked) = (stored(&here), stored(&there));
    assert!((1..=3).contains(&marked.len()) && all.len() > marked.len(), "{} of {}", marked.len(), all.len());
    assert!(marked.iter().all(|fragment| all.contains(fragment)));
    let (status, said) =
        here.http_send(&format!("POST /video/{CAMERA}/send"), &json, br#"{"from_ms": 0, "to_ms": 9000000000000}"#);
    assert_eq!((status, said.contains("\"sinks\":[\"up\"]")), (200, true), "{said}");
    let done = tools::eventually(SOON, || stored(&there).len() == all.len());
    assert!(done, "{} of {}", stored(&there).len(), all.len());
    assert!(all.iter().all(|fragment| stored(&there).contains(fragment)));
    let nobody = br#"{"from_ms": 0, "to_ms": 9000000000000, "sink": "nobody"}"#;
    assert_eq!(here.http_send(&format!("POST /video/{CAMERA}/send"), &json, nobody).0, 404);
}

/// The door behind the sink wants Signature Version 4; the keys are in the environment.
#[test]
fn signed_video_is_taken_by_a_door_that_wants_signatures() {
    let mut there = behind_keys();
    let setup = signing("kinesis-video", &there, "create = true\nidle = \"1 s\"");
    let here = setup.env("AWS_ACCESS_KEY_ID", KEY.0).env("AWS_SECRET_ACCESS_KEY", KEY.1).start();
    let mut film = need!(camera(&here, 5), "ffmpeg is not there");
    assert!(film.wait().expect("ffmpeg ends").success());
    forwarded::drained(&here, SOON);
    open(&mut there);
    the_same(&here, &there);
}

#[test]
fn wrong_keys_hold_video_and_say_so_until_there_are_right_ones() {
    let (mut there, home) = (behind_keys(), tempfile::tempdir().unwrap());
    let file = home.path().join("credentials");
    let keys = |secret: &str| {
        let (id, text) = (KEY.0, "[default]\naws_access_key_id");
        std::fs::write(&file, format!("{text} = {id}\naws_secret_access_key = {secret}\n")).unwrap();
    };
    keys("another secret");
    let setup = signing("kinesis-video", &there, "create = true\nidle = \"1 s\"");
    let here = setup.env("AWS_SHARED_CREDENTIALS_FILE", &file.display().to_string()).start();
    let mut film = need!(camera(&here, 5), "ffmpeg is not there");
    assert!(film.wait().expect("ffmpeg ends").success());
    let told = tools::eventually(SOON, || here.log().contains("uplink holds"));
    assert!(told && here.log().contains("denies access: InvalidSignatureException"), "{}", here.log());
    std::thread::sleep(Duration::from_secs(3));
    let all = stored(&here).len();
    assert_eq!(here.metric("headwater_sink_backlog"), all as f64, "all of it waits");
    assert_eq!(here.log().matches("uplink holds").count(), 1, "it is told once: {}", here.log());
    keys(KEY.1);
    forwarded::drained(&here, SOON);
    open(&mut there);
    the_same(&here, &there);
    assert_eq!(here.metric("headwater_sink_dead_total"), 0.0);
    assert!(all >= 4, "{all}");
}

const KEY: (&str, &str) = ("AKIDUPSTREAM", "the secret");

fn behind_keys() -> Gateway {
    Setup::default().api(&format!("access_keys = [{{ id = {:?}, secret = {:?} }}]", KEY.0, KEY.1)).start()
}

/// Without keys, for the test to look into.
fn open(gateway: &mut Gateway) {
    gateway.setup().api = String::new();
    gateway.stop();
    gateway.restart();
}

/// Matroska's tags belong to the fragment in front of them, here, in every answer, and there.
#[test]
fn tags_stay_with_their_fragments_here_and_upstream() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let (home, there) = (tempfile::tempdir().unwrap(), Gateway::plain());
    let here = sink("kinesis-video", &there, "create = true\nidle = \"1 s\"").start();
    let film = sample(home.path(), "film", 4, "192x108", &[&PLAIN[..], &["-live", "1"]].concat(), None);
    let (head, clusters) = matroska::by_keyframe(&std::fs::read(film).unwrap());
    let tagged = |(at, cluster): (usize, &Vec<u8>)| {
        let told = matroska::tags(&[("HW_DOOR", &format!("door {at}")), ("HW_TEMPERATURE", "20,5 °C")]);
        [cluster.clone(), told].concat()
    };
    let body = [head, clusters.iter().enumerate().flat_map(tagged).collect()].concat();
    let start_ms = video::now_ms() - 4_000;
    let (status, acks) = put(here.api, &put_headers(CAMERA, Some(start_ms)), &body);
    assert_eq!((status, persisted(&acks).len(), clusters.len()), (200, 4, 4), "{acks:?}");
    forwarded::drained(&here, SOON);
    for gateway in [&here, &there] {
        let numbers: Vec<_> = fragments(gateway.api, CAMERA).iter().map(|one| format!("{:020}", one.0)).collect();
        let list = json!({ "StreamName": CAMERA, "Fragments": numbers });
        let all = json!({ "StreamName": CAMERA, "StartSelector": { "StartSelectorType": "EARLIEST" } });
        for (operation, body) in [("getMediaForFragmentList", list), ("getMedia", all)] {
            let bytes = media(home.path(), gateway, operation, &body, "door 3");
            let told = tags_by_fragment(&bytes);
            assert_eq!(told.iter().map(|(number, _)| number).collect::<Vec<_>>(), numbers.iter().collect::<Vec<_>>());
            for (at, (_, fragment)) in told.iter().enumerate() {
                assert_eq!(matroska::tag_values(fragment, "HW_DOOR"), [format!("door {at}")], "{operation}");
                assert_eq!(matroska::tag_values(fragment, "HW_TEMPERATURE"), ["20,5 °C"], "{operation}");
            }
        }
    }
}

/// The fragments of an answer: each one's number, and all from there to the next.
fn tags_by_fragment(bytes: &[u8]) -> Vec<(String, &[u8])> {
    const NUMBER: &str = "AWS_KINESISVIDEO_FRAGMENT_NUMBER";
    let is_there = |at: &usize| bytes[*at..].starts_with(NUMBER.as_bytes());
    let starts: Vec<usize> = (0..bytes.len()).filter(is_there).collect();
    let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
    let fragments = starts.iter().zip(ends).map(|(start, end)| &bytes[*start..end]);
    fragments.map(|fragment| (matroska::tag_values(fragment, NUMBER).remove(0), fragment)).collect()
}

/// What an operation answers, until something stands in it: GetMedia goes on for ever.
fn media(home: &Path, gateway: &Gateway, operation: &str, body: &Value, until: &str) -> Vec<u8> {
    let to = home.join("answer");
    let _ = std::fs::remove_file(&to);
    let url = format!("http://{}/{operation}", gateway.api);
    let mut curl = Command::new(tools::program("curl").expect("curl is there"));
    let _curl = tools::Process::start(curl.args(["-sSfN", "-d", &body.to_string(), "-o"]).arg(&to).arg(url));
    let mut bytes = Vec::new();
    let came = tools::eventually(SOON, || {
        bytes = std::fs::read(&to).unwrap_or_default();
        bytes.windows(until.len()).any(|window| window == until.as_bytes())
    });
    assert!(came, "{operation}: {} bytes, and nowhere {until:?}", bytes.len());
    bytes
}

/// A message marks what a camera showed before it and shows after it, and just that goes.
#[test]
fn a_message_marks_video_and_only_that_is_sent() {
    let there = Gateway::plain();
    let rule = format!(
        "create = true\nidle = \"500 ms\"\nonly = \"marked\"\nmark_within = \"2 s\"\n\
         [[mark]]\ntopic = \"plant/door/+/open\"\nstreams = [\"{CAMERA}\"]\npre_roll = \"1500 ms\"\npost_roll = \"500 ms\"\n\
         name = \"{{topic}}!\"\n"
    );
    let here = sink("kinesis-video", &there, &rule).start();
    let mut film = need!(camera(&here, 9), "ffmpeg is not there");
    video::wait_for_fragments(here.api, CAMERA, 4, SOON);
    let mut door = Client::connect(here.mqtt, "door", Version::V5).unwrap();
    assert_eq!(door.publish("plant/door/1/shut", b"").unwrap() & 0x80, 0);
    let before = video::now_ms() as i64;
    assert_eq!(door.publish("plant/door/1/open", b"").unwrap() & 0x80, 0);
    let after = video::now_ms() as i64;
    let (status, said) = here.http_get(&format!("/video/{CAMERA}/marks"));
    let said: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{status} {error}: {said}"));
    let marks = said["marks"].as_array().unwrap();
    assert_eq!((marks.len(), marks[0]["name"].as_str()), (1, Some("plant/door/1/open!")), "{said}");
    let ms = |name: &str| marks[0][name].as_i64().unwrap();
    let (from, to) = (ms("from_ms"), ms("to_ms"));
    assert!((before - 1_500..=after - 1_500).contains(&from), "{from} is not 1.5 s before {before}");
    // A mark covers a second more than is asked for: an alarm that repeats makes it longer once a second.
    assert!((before + 1_500..=after + 1_500).contains(&to), "{to} is not 0.5 s and one behind {after}");
    assert!(film.wait().expect("ffmpeg ends").success());
    forwarded::drained(&here, SOON);
    let all = stored(&here);
    let times = fragments(here.api, CAMERA);
    assert_eq!(times.len(), all.len());
    let covered = |(_, start, length): &(u64, i64, i64)| *start < to && start + length > from;
    let marked: Vec<_> = all.iter().zip(&times).filter(|(_, time)| covered(time)).map(|(one, _)| one.clone()).collect();
    assert!((2..=5).contains(&marked.len()) && marked.len() < all.len(), "{} of {}", marked.len(), all.len());
    assert!(stored(&there) == marked, "{} fragments are there, {} are marked", stored(&there).len(), marked.len());
}

/// Fragments of many megabytes are records of 8 MiB; they go as what they are to a stream of video there.
#[test]
fn p4_an_ordinary_sink_carries_video_to_another_headwater_once() {
    let stream = format!("[[stream]]\nname = \"{CAMERA}\"\nkind = \"video\"\nshards = 1\n");
    let mut there = Setup::new(&stream).start();
    let here = sink("kinesis", &there, &stream).start();
    let mut film = need!(camera(&here, 6), "ffmpeg is not there");
    std::thread::sleep(Duration::from_secs(3));
    there.kill();
    there.restart();
    assert!(film.wait().expect("ffmpeg ends").success());
    // Noise, losslessly: pictures of a megabyte and more.
    let to = format!("http://{}/streams/{CAMERA}/media", here.api);
    let input = ["-f", "lavfi", "-i", "color=size=1280x720:rate=10", "-vf", "noise=alls=100:allf=t", "-frames:v", "20"];
    let output =
        ["-c:v", "libx264", "-preset", "ultrafast", "-qp", "0", "-g", "10", "-f", "matroska", "-method", "POST", &to];
    assert!(ffmpeg(&input, &output).expect("ffmpeg").status().expect("ffmpeg").success());
    forwarded::drained(&here, SOON);
    let (sent, came) = (stored(&here), stored(&there));
    assert!(sent.iter().any(|record| record.len() > 7 << 20), "{:?}", sent.iter().map(Vec::len).collect::<Vec<_>>());
    assert!(sent == came, "{} {}", sent.len(), came.len());
    let timeline = |gateway: &Gateway| gateway.http_get(&format!("/video/{CAMERA}/timeline"));
    assert_eq!(timeline(&here), timeline(&there), "it is video there too");
}
