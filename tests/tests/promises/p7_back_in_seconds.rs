//! P7: it is back in seconds after a power cut, however large the backlog is.

use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::mqtt::{Client, Version};
use headwater_tests::tools;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const RECORD_BYTES: usize = 32 << 10;
/// The journal's ring of a gateway with more than 512 MiB of data budget.
const RING_BYTES: u64 = 64 << 20;
/// What recovery may read besides: state, the newest segments, the last blob file's end; programs and configuration too.
const REST_BYTES: u64 = 48 << 20;

/// Publishes without end until the gateway is gone.
fn load(mqtt: SocketAddr, name: &str) -> std::thread::JoinHandle<()> {
    let mut client = Client::connect(mqtt, name, Version::V5).unwrap();
    let topic = format!("dev/{name}");
    std::thread::spawn(move || {
        let payload = vec![b'x'; 1 << 10];
        for n in 0.. {
            let sent = client.send(&topic, &payload);
            if sent.is_err() || (n >= 64 && client.read().is_err()) {
                return;
            }
        }
    })
}

/// Time from the start of the process to the first PUBACK, after a SIGKILL under load, with nothing of it in the page cache.
fn back_after_kill(gateway: &mut Gateway) -> Duration {
    let loads: Vec<_> = (0..4).map(|n| load(gateway.mqtt, &format!("load-{n}"))).collect();
    std::thread::sleep(Duration::from_millis(500));
    gateway.kill();
    loads.into_iter().for_each(|load| load.join().unwrap());
    forget(&gateway.dir());
    let started = Instant::now();
    gateway.restart();
    let mut client = Client::connect(gateway.mqtt, "first", Version::V5).unwrap();
    assert!(client.publish("dev/first", b"after the power cut").unwrap() < 0x80);
    started.elapsed()
}

/// Takes the files below a directory out of the page cache, as a power cut does.
fn forget(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            forget(&path);
        } else if let Ok(file) = std::fs::File::open(&path) {
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    }
}

fn bytes_read(gateway: &Gateway) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", gateway.pid())).unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).unwrap_or(0)
}

#[test]
fn p7_the_first_puback_comes_within_2_s_of_a_start_on_a_large_log() {
    let bytes = tools::rounds(2048, 256) as u64 * (1 << 20);
    let mut gateway = Setup::default().data("max_bytes = \"8 GiB\"").start();
    let mut client = Client::connect(gateway.mqtt, "filler", Version::V5).unwrap();
    let mut payload = vec![0; RECORD_BYTES];
    let count = bytes / RECORD_BYTES as u64;
    for n in 0..count {
        fastrand::fill(&mut payload);
        client.send("dev/filler", &payload).unwrap();
        if n >= 16 {
            assert!(client.read().unwrap().reason() < 0x80);
        }
    }
    drop(client);
    let mut fewest = f64::MAX;
    for _ in 0..3 {
        let took = back_after_kill(&mut gateway);
        let (read, folds) = (bytes_read(&gateway), gateway.metric("headwater_folds_total"));
        eprintln!(
            "{} MiB in the log: ready after {:?}, first PUBACK after {took:?}, {} MiB read, {folds} folds",
            bytes >> 20,
            gateway.start_took,
            read >> 20
        );
        assert!(took < Duration::from_secs(2), "first PUBACK {took:?} after the start");
        assert!(read < RING_BYTES + REST_BYTES, "{read} bytes were read to be back");
        fewest = fewest.min(folds);
    }
    // A kill may find the window full, and a fold be quick on an idle machine; but an acknowledgement waits for none.
    assert_eq!(fewest, 0.0, "each start folded before it acknowledged");
}
