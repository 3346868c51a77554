//! Chunks over MQTT: what ffmpeg cuts, published by real clients, through power cuts, and out again as it went in.

use headwater_tests::gateway::Gateway;
use headwater_tests::mqtt::{Client, Version};
use headwater_tests::need;
use headwater_tests::tools::{program, rounds, run_ok};
use headwater_tests::{aws, cameras, matroska, video};
use std::process::Command;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(60);
/// The head of a JPEG of 640 by 480, and a scan of nothing.
const JPEG: &[u8] = b"\xff\xd8\xff\xe0\x00\x04\x00\x00\xff\xff\xc0\x00\x0b\x08\x01\xe0\x02\x80\x01\x01\x11\x00\xff\xda";

fn playlist(gateway: &Gateway, stream: &str) -> String {
    format!("http://{}/video/{stream}/playlist.m3u8", gateway.console)
}

#[test]
fn segments_of_mp4_come_out_as_they_went_in() {
    need!(program("ffmpeg"), "ffmpeg is not installed");
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    let list = cameras::segments(home.path(), 4).display().to_string();
    let gateway = Gateway::plain();
    let mut camera = Client::connect(gateway.mqtt, "camera", Version::V5).unwrap();
    let init = std::fs::read(at("init.mp4")).unwrap();
    assert_eq!(camera.publish("video/cam/0", &std::fs::read(at("0.m4s")).unwrap()).unwrap(), 0x83, "before its init");
    assert_eq!(camera.publish("video/cam/init", &init).unwrap(), 0);
    for number in 0..4 {
        let chunk = std::fs::read(at(&format!("{number}.m4s"))).unwrap();
        for _again in 0..2 {
            assert_eq!(camera.publish(&format!("video/cam/{number}"), &chunk).unwrap(), 0, "{number}");
        }
    }
    assert_eq!(camera.publish("video/cam/9", b"garbage").unwrap(), 0x99);
    assert_eq!(camera.publish("video/cam/mark", br#"{"name": "door"}"#).unwrap(), 0);
    let (seen, there) = (video::pictures(&list, &[]), video::pictures(&playlist(&gateway, "cam"), &[]));
    assert_eq!(seen.len(), 100);
    assert!(seen == there, "other pictures come out");
    assert_eq!(gateway.metric("headwater_video_chunks_repeated_total"), 4.0);
    assert!(gateway.http_get("/video/cam/marks").1.contains("door"));
    assert!(gateway.log().contains("publish the init"), "{}", gateway.log());
}

#[test]
fn clusters_of_matroska_come_from_mosquitto_pub_a_connection_each() {
    need!(program("ffmpeg"), "ffmpeg is not installed");
    let mosquitto = need!(program("mosquitto_pub"), "mosquitto_pub is not installed");
    let home = tempfile::tempdir().unwrap();
    let (file, streamed) = (home.path().join("whole.mkv"), home.path().join("streamed.mkv"));
    // A cluster begins at a keyframe if nothing else ends it before.
    cameras::film(4, &["-f", "matroska", "-cluster_time_limit", "5000", "-live", "1", file.to_str().unwrap()]);
    let (head, clusters) = matroska::split(&std::fs::read(&file).unwrap());
    assert!(clusters.len() >= 4, "{}", clusters.len());
    std::fs::write(&streamed, [head.clone(), clusters.concat()].concat()).unwrap();
    let mut gateway = Gateway::plain();
    let publish = |gateway: &Gateway, what: &str, bytes: &[u8]| {
        let payload = home.path().join("payload");
        std::fs::write(&payload, bytes).unwrap();
        let (host, port) = (gateway.mqtt.ip().to_string(), gateway.mqtt.port().to_string());
        let topic = format!("video/cam/{what}");
        let mut command = Command::new(&mosquitto);
        command.args(["-h", &host, "-p", &port, "-q", "1", "-i", "camera", "-t", &topic, "-f"]).arg(&payload);
        run_ok(&mut command, BOUND);
    };
    publish(&gateway, "init", &head);
    for (number, cluster) in clusters.iter().enumerate() {
        publish(&gateway, &number.to_string(), cluster);
        if number == 1 {
            // The init and the numbers outlive it.
            gateway.kill();
            gateway.restart();
        }
    }
    let (seen, there) =
        (video::pictures(streamed.to_str().unwrap(), &[]), video::pictures(&playlist(&gateway, "cam"), &[]));
    assert_eq!(seen.len(), 100);
    let differ = seen.iter().zip(&there).position(|(seen, there)| seen != there);
    assert!(seen == there, "{} pictures come out, the first that differs is {differ:?}", there.len());
}

/// Promise P1 for chunks: SIGKILL comes between PUBACKs, and the camera goes on with what was not acknowledged.
#[test]
fn every_acknowledged_chunk_outlives_the_gateway_and_is_there_once() {
    let mut gateway = Gateway::plain();
    // Long enough for a blob file, and no two alike.
    let chunk = |number: u64| [JPEG, &number.to_be_bytes(), &vec![number as u8; 80 << 10]].concat();
    let (mut next, mut acked) = (0u64, 0u64);
    for round in 0..rounds(6, 3) {
        let mut camera = Client::connect(gateway.mqtt, "camera", Version::V311).unwrap();
        let stop_at = next + 5 + fastrand::u64(..10);
        let mut sent = acked;
        while acked < stop_at {
            while sent < acked + 4 {
                camera.send(&format!("video/cam/{sent}"), &chunk(sent)).unwrap();
                sent += 1;
            }
            let answer = camera.read().unwrap_or_else(|error| panic!("round {round}, chunk {acked}: {error}"));
            assert_eq!((answer.kind(), answer.reason()), (headwater_tests::mqtt::kind::PUBACK, 0));
            acked += 1;
        }
        next = acked;
        gateway.kill();
        gateway.restart();
    }
    let mut camera = Client::connect(gateway.mqtt, "camera", Version::V311).unwrap();
    for number in acked..acked + 4 {
        camera.publish(&format!("video/cam/{number}"), &chunk(number)).unwrap();
    }
    let got = aws::read_stream(gateway.api, "cam");
    for number in 0..acked + 4 {
        let bytes = chunk(number);
        let times = got.iter().filter(|got| got.data.windows(bytes.len()).any(|window| window == bytes)).count();
        assert_eq!(times, 1, "chunk {number} of {acked} acknowledged ones");
    }
    assert_eq!(got.len() as u64, acked + 4);
    assert_eq!(gateway.metric("headwater_video_chunks_missing_total"), 0.0);
}

#[test]
fn a_camera_may_send_where_its_rights_say_and_nowhere_else() {
    let toml = "[[allow]]\nidentity = \"*\"\npublish = [\"video/{client_id}/+\"]\n";
    let gateway = headwater_tests::gateway::Setup::new(toml).start();
    let mut camera = Client::connect(gateway.mqtt, "yard", Version::V5).unwrap();
    assert_eq!(camera.publish("video/yard/1", JPEG).unwrap(), 0);
    assert_eq!(camera.publish("video/door/1", JPEG).unwrap(), 0x87);
    assert_eq!(aws::read_stream(gateway.api, "yard").len(), 1);
}
