//! P7: it is back in seconds after a power cut, however large the backlog is.

use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::mqtt::{Client, Version};
use headwater_tests::tools;
use std::time::{Duration, Instant};

const RECORD_BYTES: usize = 32 << 10;

/// Time from the start of the process to the first PUBACK.
fn back_after_kill(gateway: &mut Gateway) -> Duration {
    gateway.kill();
    let started = Instant::now();
    gateway.restart();
    let mut client = Client::connect(gateway.mqtt, "first", Version::V5).unwrap();
    assert!(client.publish("dev/first", b"after the power cut").unwrap() < 0x80);
    started.elapsed()
}

fn bytes_read(gateway: &Gateway) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", gateway.pid())).unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).unwrap_or(0)
}

#[test]
fn p7_the_first_puback_comes_within_2_s_of_a_start_on_a_large_log() {
    let gib = tools::rounds(2048, 256) as u64 * (1 << 20);
    let mut gateway = Setup::default().data("max_bytes = \"8 GiB\"").start();
    let mut client = Client::connect(gateway.mqtt, "filler", Version::V5).unwrap();
    let mut payload = vec![0; RECORD_BYTES];
    let count = gib / RECORD_BYTES as u64;
    for n in 0..count {
        fastrand::fill(&mut payload);
        client.send("dev/filler", &payload).unwrap();
        if n >= 16 {
            assert!(client.read().unwrap().reason() < 0x80);
        }
    }
    drop(client);
    for _ in 0..3 {
        let took = back_after_kill(&mut gateway);
        eprintln!(
            "{} MiB in the log: ready after {:?}, first PUBACK after {took:?}, {} MiB read",
            gib >> 20,
            gateway.start_took,
            bytes_read(&gateway) >> 20
        );
        assert!(took < Duration::from_secs(2), "first PUBACK {took:?} after the start");
    }
}
