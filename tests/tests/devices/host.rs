//! A device of the SDK over tokio, in this process, against the real gateway: what an operator sends reaches the firmware's
//! code, a full outbox tells what it cost, and a device that sends and sleeps says when to try again.

use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_time::Duration as DeviceDuration;
use headwater_device::link::Patience;
use headwater_device::outbox::{Outbox, WhenFull};
use headwater_device::ram::RamFlash;
use headwater_device::{Config, Device, Downlink, Recorder, memory_bytes};
use headwater_device_host::Tcp;
use headwater_tests::gateway::Gateway;
use headwater_tests::{aws, tools};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const ID: &str = "host-1";
const BATCH: usize = 512;
const PAGE: usize = 1 << 10;
const BOUND: Duration = Duration::from_secs(60);
const PATIENCE: Patience = Patience {
    pause_min: DeviceDuration::from_millis(50),
    pause_max: DeviceDuration::from_millis(200),
    answer_within: DeviceDuration::from_secs(10),
    hello_within: DeviceDuration::from_secs(5),
};

/// Whoever dies while it is connected leaves it.
const WILL: (&str, &[u8]) = ("plant/gone", b"gone");

type Sensor = Recorder<CriticalSectionRawMutex, BATCH>;
type Driver<'a> = Device<'a, CriticalSectionRawMutex, RamFlash<'a, PAGE>, Tcp, BATCH>;

/// The firmware's own code: it says what it hears, and answers commands.
struct App(mpsc::SyncSender<String>);

impl Downlink for App {
    fn config(&mut self, config: &[u8]) {
        let _ = self.0.send(format!("config {}", String::from_utf8_lossy(config)));
    }

    fn log_level(&mut self, level: &str) {
        let _ = self.0.send(format!("log {level}"));
    }

    fn command(&mut self, command: &[u8], answer: &mut [u8]) -> usize {
        let said = [b"did ", command].concat();
        answer[..said.len()].copy_from_slice(&said);
        said.len()
    }
}

/// A device on a thread of its own runs `script` with what it was made of.
fn device<R>(
    gateway: SocketAddr,
    when_full: WhenFull,
    pages: usize,
    script: impl AsyncFnOnce(&Sensor, Driver<'_>) -> R,
) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let recorder = Sensor::new();
        let (mut ram, mut memory) = (vec![0; pages * PAGE], vec![0; memory_bytes(BATCH)]);
        let flash = RamFlash::<PAGE>::new(&mut ram);
        let range = flash.range();
        let outbox = Outbox::open(flash, range, when_full, 7).await.expect("whole pages");
        let linger = DeviceDuration::from_millis(20);
        let config = Config { linger, patience: PATIENCE, will: Some(WILL), ..Config::new(ID, "plant/t") };
        let device = Device::new(&recorder, outbox, Tcp(gateway), config, &mut memory, 9);
        script(&recorder, device.expect("memory as large as it asks for")).await
    })
}

fn shown(gateway: &Gateway) -> Value {
    let (code, text) = gateway.http_get(&format!("/devices/{ID}"));
    if code == 200 { serde_json::from_str(&text).expect("JSON") } else { Value::Null }
}

/// What the log has of the device, by the numbers in its records; how it died is none.
fn kept(gateway: &Gateway) -> Vec<u64> {
    let number = |data: &[u8]| std::str::from_utf8(data).ok()?.trim().parse().ok();
    let records = aws::read_stream(gateway.api, "default");
    let of_the_outbox = records.iter().filter(|got| got.data != WILL.1);
    of_the_outbox.map(|got| number(&got.data).expect("a number")).collect()
}

fn wills(gateway: &Gateway) -> usize {
    aws::read_stream(gateway.api, "default").iter().filter(|got| got.data == WILL.1 && got.key == ID).count()
}

#[test]
fn what_an_operator_sends_reaches_the_firmwares_code_and_its_answer_comes_back() {
    let gateway = Gateway::plain();
    let put = |what: &str, body: &str| gateway.http_send(&format!("PUT /devices/{ID}/{what}"), &[], body.as_bytes());
    // Left for it before it ever came.
    assert_eq!(put("config", "period=5").0, 200);
    let (heard, hears) = mpsc::sync_channel(16);
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::scope(|scope| {
        let mqtt = gateway.mqtt;
        scope.spawn(move || {
            device(mqtt, WhenFull::Refuse, 8, async |_, mut device| {
                let mut app = App(heard);
                tokio::select! {
                    () = device.run(&mut app) => unreachable!("a device runs for ever"),
                    _ = &mut stopped => {}
                }
            });
        });
        let next = || hears.recv_timeout(BOUND).expect("the device to hear of it");
        assert_eq!(next(), "config period=5");
        assert_eq!(put("config", "period=9").0, 200);
        assert_eq!(next(), "config period=9");
        assert_eq!(put("log", "debug").0, 200);
        assert_eq!(next(), "log debug");
        let command = format!("POST /devices/{ID}/command?timeout=30s");
        assert_eq!(gateway.http_send(&command, &[], b"reboot"), (200, "did reboot".into()));
        // What the SDK says that it takes is what the gateway goes by.
        assert_eq!(shown(&gateway)["packet_bytes_max"], headwater_device::RECEIVE_BYTES);
        let long = "x".repeat(600);
        for line in [format!("PUT /devices/{ID}/config"), command.clone()] {
            let (code, says) = gateway.http_send(&line, &[], long.as_bytes());
            assert!(code == 413 && says.contains("at most 512 bytes"), "{line}: {code} {says}");
        }
        assert_eq!(gateway.http_send(&command, &[], b"go on"), (200, "did go on".into()));
        drop(stop);
    });
}

/// So many records on an outbox that is too small for them, while the gateway is away; what it then shows of them, and what
/// its log has.
fn overflow(when_full: WhenFull, records: u64) -> (Value, Vec<u64>) {
    let mut gateway = Gateway::plain();
    gateway.kill();
    let mqtt = gateway.mqtt;
    device(mqtt, when_full, 8, async |recorder, mut device| {
        let script = async {
            for n in 1..=records {
                recorder.record(format!("{n:>80}").as_bytes()).await.expect("a record fits a batch");
            }
            recorder.flush();
            while !recorder.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            gateway.restart();
            let until = Instant::now() + BOUND;
            while !(shown(&gateway)["losses"].is_object() && recorder.status().pending == 0) {
                assert!(Instant::now() < until, "{} {:?}", shown(&gateway), recorder.status());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            (shown(&gateway)["losses"].clone(), recorder.status().outbox, recorder.thinned())
        };
        let mut app = ();
        let (losses, counters, thinned) = tokio::select! {
            () = device.run(&mut app) => unreachable!("a device runs for ever"),
            told = script => told,
        };
        assert_eq!(losses["dropped_oldest"], counters.dropped_oldest, "the device's own count: {losses}");
        assert_eq!(losses["thinned"], thinned, "the device's own count: {losses}");
        (losses, kept(&gateway))
    })
}

fn count(losses: &Value, why: &str) -> u64 {
    losses[why].as_u64().unwrap_or_else(|| panic!("no {why} in {losses}"))
}

#[test]
fn p5_an_outbox_that_drops_the_oldest_shows_how_many_and_keeps_the_newest() {
    const RECORDS: u64 = 400;
    let (losses, kept) = overflow(WhenFull::DropOldest, RECORDS);
    let dropped = count(&losses, "dropped_oldest");
    assert!(dropped > 0, "{losses}");
    assert_eq!(kept, (dropped + 1..=RECORDS).collect::<Vec<_>>(), "all but the oldest, in order");
    assert_eq!(count(&losses, "thinned"), 0);
}

#[test]
fn p5_an_outbox_that_thins_shows_how_many_it_left_out() {
    const RECORDS: u64 = 400;
    let (losses, kept) = overflow(WhenFull::KeepEvery(4), RECORDS);
    let (thinned, dropped) = (count(&losses, "thinned"), count(&losses, "dropped_oldest"));
    assert!(thinned > 0, "{losses}");
    assert!(kept.is_sorted_by(|a, b| a < b), "{kept:?}");
    assert_eq!(kept.len() as u64 + thinned + dropped, RECORDS, "each is kept or told: {losses}");
}

#[test]
fn a_device_that_sends_and_sleeps_keeps_what_it_could_not_send_and_says_when_to_try_again() {
    // No more than fit two batches: nobody empties them before it sends.
    const RECORDS: u64 = 10;
    let mut gateway = Gateway::plain();
    gateway.kill();
    let mqtt = gateway.mqtt;
    device(mqtt, WhenFull::Refuse, 8, async |recorder, mut device| {
        for n in 1..=RECORDS {
            recorder.record(format!("{n:>80}").as_bytes()).await.expect("a record fits a batch");
        }
        let asleep = device.flush(&mut (), DeviceDuration::from_secs(1)).await;
        assert_eq!(asleep.pending, RECORDS);
        let retry_at = asleep.retry_at.expect("when to try again");
        assert!(retry_at <= embassy_time::Instant::now() + PATIENCE.pause_max, "within the patience it was given");
        gateway.restart();
        embassy_time::Timer::at(retry_at).await;
        let done = device.flush(&mut (), DeviceDuration::from_secs(BOUND.as_secs())).await;
        assert_eq!((done.pending, done.retry_at), (0, None));
        // Acknowledged is on disk, and it has gone to sleep: nothing of it is connected.
        assert_eq!(kept(&gateway), (1..=RECORDS).collect::<Vec<_>>());
        assert!(tools::eventually(BOUND, || shown(&gateway)["connected"] == false), "{}", shown(&gateway));
    });
}

// The SDK's `Config::will` promised what the gateway did not do.
#[test]
fn a_device_that_vanishes_leaves_its_will_and_one_that_goes_to_sleep_does_not() {
    let gateway = Gateway::plain();
    let mqtt = gateway.mqtt;
    device(mqtt, WhenFull::Refuse, 8, async |recorder, mut device| {
        recorder.record(b"1").await.expect("a record fits a batch");
        assert_eq!(device.flush(&mut (), DeviceDuration::from_secs(BOUND.as_secs())).await.pending, 0);
        assert!(tools::eventually(BOUND, || shown(&gateway)["connected"] == false), "{}", shown(&gateway));
        assert_eq!(wills(&gateway), 0, "it said goodbye");
        recorder.record(b"2").await.expect("a record fits a batch");
        recorder.flush();
        let acknowledged = async {
            while !(recorder.is_empty() && recorder.status().pending == 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let mut app = ();
        tokio::select! {
            () = device.run(&mut app) => unreachable!("a device runs for ever"),
            () = acknowledged => {}
        }
    });
    assert!(tools::eventually(BOUND, || wills(&gateway) == 1), "{} wills", wills(&gateway));
    assert_eq!(kept(&gateway), [1, 2]);
}
