//! The whole way: ffmpeg piped into curl, an RTSP camera and an MQTT camera, all in the player page of one gateway, and upstream
//! after an outage of the link in which the gateway is killed as well: complete, in order, byte for byte.

use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::mqtt::{Client, Version};
use headwater_tests::proxy::Proxy;
use headwater_tests::tools::{self, Process, eventually, free_port, program, run};
use headwater_tests::video::{self, NO_FFMPEG, fragments, persisted};
use headwater_tests::{cameras, forwarded, need};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(60);
const STREAMS: [&str; 3] = ["piped", "rtsp", "chunks"];
/// Pictures of a fragment, of the two cameras whose pictures are known beforehand.
const PICTURES: usize = 25;
/// What the piped camera sends at a time. It outlasts the outage.
const FILM_S: usize = 40;

/// `ffmpeg ... | curl` with the headers of PutMedia, as fast as it was filmed.
struct Piped {
    ffmpeg: Process,
    curl: Process,
    answer: PathBuf,
}

impl Piped {
    fn start(api: SocketAddr, film: &Path, answer: PathBuf) -> Piped {
        let mut ffmpeg = video::ffmpeg().expect("ffmpeg is there");
        ffmpeg.arg("-re").arg("-i").arg(film).args(["-c", "copy", "-f", "matroska", "-cluster_time_limit", "100"]);
        let mut ffmpeg = Process::start(ffmpeg.args(["-flush_packets", "1", "-"]).stdout(Stdio::piped()));
        let mut curl = Command::new(program("curl").expect("curl is there"));
        curl.args(["-sS", "-N", "-T", "-", "-X", "POST", "-H", "Transfer-Encoding: chunked"]);
        for header in video::put_headers(STREAMS[0], Some(video::now_ms())).lines() {
            curl.args(["-H", header]);
        }
        let pipe = ffmpeg.0.stdout.take().expect("a pipe");
        let said = std::fs::File::create(&answer).expect("a file for the answer");
        let curl = curl.arg(format!("http://{api}/putMedia")).stdin(pipe).stdout(said);
        let curl = Process::start(curl);
        Piped { ffmpeg, curl, answer }
    }

    /// Waits for both; how curl ended, and the numbers that are PERSISTED.
    fn ended(mut self) -> (ExitStatus, Vec<u64>) {
        let mut status = None;
        let ended = eventually(BOUND, || {
            status = self.curl.0.try_wait().expect("a child that can be waited for");
            status.is_some()
        });
        assert!(ended, "curl does not end");
        let _ = self.ffmpeg.0.wait();
        let said = std::fs::read_to_string(&self.answer).expect("an answer");
        (status.expect("it ended"), persisted(&video::acks(&said)))
    }
}

/// An MQTT camera that publishes a segment a second until it is stopped, and after a break goes on with what was not acknowledged.
/// How many were.
fn publish(mqtt: SocketAddr, folder: &Path, stop: &AtomicBool) -> usize {
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a file of the film");
    let (init, began, mut acked) = (read("init.mp4"), Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
        let Ok(mut camera) = Client::connect(mqtt, "camera", Version::V5) else { continue };
        let mut send = |what: &str, payload: &[u8]| camera.publish(&format!("video/chunks/{what}"), payload);
        if send("init", &init).is_err() {
            continue;
        }
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_secs(acked as u64).saturating_sub(began.elapsed()));
            match send(&acked.to_string(), &read(&format!("{acked}.m4s"))) {
                Ok(reason) => assert_eq!(reason, 0, "chunk {acked}"),
                Err(_) => break,
            }
            acked += 1;
        }
    }
    acked
}

fn setup(link: &Proxy, rtsp_port: u16) -> Setup {
    let to = link.addr;
    Setup::new(&format!(
        "[[camera]]\nname = \"rtsp\"\nurl = \"rtsp://127.0.0.1:{rtsp_port}/cam\"\n\
         [[sink]]\nname = \"up\"\ntype = \"kinesis-video\"\nendpoint = \"http://{to}\"\ncredentials = \"none\"\n\
         region = \"us-east-1\"\nrequired = true\ncreate = true\nidle = \"1 s\"\ntimeout = \"3 s\"\n"
    ))
}

fn counts(gateway: &Gateway) -> [usize; 3] {
    STREAMS.map(|stream| fragments(gateway.api, stream).len())
}

/// Waits until each stream has so many more fragments.
fn grow(gateway: &Gateway, from: [usize; 3], by: usize) {
    for (stream, from) in STREAMS.iter().zip(from) {
        video::wait_for_fragments(gateway.api, stream, from + by, BOUND);
    }
}

/// All three play in a browser, as they come.
fn seen(mut player: Command, gateway: &Gateway) {
    let done = run(player.arg(format!("http://{}", gateway.console)).args(STREAMS), BOUND * 2);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    eprintln!("{}", said.trim());
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    let saw: Value = serde_json::from_str(&said).unwrap();
    for stream in STREAMS {
        assert!(saw["streams"][stream]["frames"].as_u64().is_some_and(|frames| frames > 0), "{said}");
    }
}

#[test]
fn p4_all_ways_in_are_in_the_player_page_and_upstream_after_an_outage() {
    need!(video::ffmpeg(), NO_FFMPEG);
    need!(program("curl"), "curl is not installed");
    need!(cameras::rtsp_is_there(), cameras::NO_RTSP);
    let player = need!(tools::browser_client("player_streams.mjs"), tools::NO_BROWSER);
    let home = tempfile::tempdir().unwrap();
    let codec =
        ["-c:v", "libx264", "-preset", "veryfast", "-bf", "2", "-g", "25", "-sc_threshold", "0", "-threads", "1"];
    let film = video::sample(home.path(), "film", FILM_S as u32, "192x108", &codec, Some("aac"));
    let segments = cameras::segments(home.path(), 180);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let there = Gateway::plain();
    let link = runtime.block_on(Proxy::start(there.api));
    let rtsp_port = free_port();
    let rtsp = cameras::rtsp(rtsp_port, &[]);
    let mut here = setup(&link, rtsp_port).start();

    let cut = Piped::start(here.api, &film, home.path().join("cut"));
    let stop = Arc::new(AtomicBool::new(false));
    let (mqtt, folder, until) = (here.mqtt, home.path().to_path_buf(), stop.clone());
    let chunks = std::thread::spawn(move || publish(mqtt, &folder, &until));
    grow(&here, [0; 3], 1);
    grow(&there, [0; 3], 2);

    link.refuse(100);
    link.cut();
    std::thread::sleep(Duration::from_secs(1));
    let before = counts(&there);
    grow(&here, counts(&here), 2);
    here.kill();
    here.restart();
    let (ended, first) = cut.ended();
    assert!(!ended.success(), "curl is told that the gateway was killed");
    let piped = Piped::start(here.api, &film, home.path().join("whole"));
    grow(&here, counts(&here), 3);
    seen(player, &here);
    assert_eq!(counts(&there), before, "the link is down");
    link.refuse(0);

    let (ended, second) = piped.ended();
    stop.store(true, Ordering::Relaxed);
    let published = chunks.join().expect("an MQTT camera");
    drop(rtsp);
    assert!(ended.success());
    assert_eq!(second.len(), FILM_S);
    forwarded::drained(&here, BOUND);

    let times = |gateway: &Gateway, stream: &str| -> Vec<(i64, i64)> {
        fragments(gateway.api, stream).into_iter().map(|(_, start, length)| (start, length)).collect()
    };
    for stream in STREAMS {
        let (sent, came) = (times(&here, stream), times(&there, stream));
        // RTSP's times have parts of a millisecond, which the index and the bytes round alike.
        assert_eq!(sent, came, "{stream}");
        assert!(came.is_sorted_by(|a, b| a.0 < b.0), "{stream}: out of order, {came:?}");
        eprintln!("{stream}: {} fragments", came.len());
    }
    let kept: Vec<u64> = fragments(here.api, STREAMS[0]).into_iter().map(|(number, ..)| number).collect();
    assert!(first.iter().chain(&second).all(|number| kept.contains(number)), "{first:?} {second:?}: kept {kept:?}");
    let [piped, from_rtsp, chunked] = STREAMS.map(|stream| forwarded::the_same(&here, &there, stream));
    // Of the film that was cut there is all that was PERSISTED, and perhaps a fragment whose acknowledgement was lost.
    let film = video::pictures(film.to_str().unwrap(), &[]);
    let begun = kept.len() - FILM_S;
    assert!(
        (first.len()..=first.len() + 1).contains(&begun),
        "{begun} fragments of which {} are PERSISTED",
        first.len()
    );
    assert!(piped == [&film[..begun * PICTURES], &film].concat(), "{} pictures", piped.len());
    let segments = video::pictures(segments.to_str().unwrap(), &[]);
    assert!(chunked == segments[..published * PICTURES], "{} pictures of {published} chunks", chunked.len());
    assert!(from_rtsp.len() >= 10 * (times(&there, "rtsp").len() - 2), "{} pictures", from_rtsp.len());
}
