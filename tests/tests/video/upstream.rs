//! Camera -> gateway -> gateway: everything that is PERSISTED here is there, in order, once, byte for byte, whatever happens to
//! the one in the middle of it.

use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::{forwarded, need, tools};
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
    let api = to.api;
    Setup::new(&format!(
        "[[sink]]\nname = \"up\"\ntype = \"{kind}\"\nstreams = [\"{CAMERA}\"]\nendpoint = \"http://{api}\"\n\
         credentials = \"none\"\nregion = \"us-east-1\"\nrequired = true\n{more}\n"
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
