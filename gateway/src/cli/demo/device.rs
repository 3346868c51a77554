//! One simulated device: the device SDK, as it runs on a microcontroller, over TCP of this machine. Its outbox is in RAM that
//! lasts as long as the demo; whatever happens to the connection or the gateway, it keeps what is not acknowledged.

use super::audit::Sent;
use crate::cli::telemetry;
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_time::Duration as DeviceDuration;
use headwater_device::link::Patience;
use headwater_device::outbox::{Outbox, WhenFull};
use headwater_device::ram::RamFlash;
use headwater_device::{Config, Device as SdkDevice, Recorder, Status, memory_bytes};
use headwater_device_host::Tcp;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, interval_at, sleep_until};

/// Bytes of a batch, and publishes on their way at once.
const BATCH: usize = 512;
const WINDOW: usize = 4;
/// What a device keeps while it cannot send; a real one has little memory, and stops measuring when it is full.
const OUTBOX_BYTES: usize = 256 << 10;
const PAGE: usize = 4 << 10;
/// A reading waits so long for company.
const LINGER: DeviceDuration = DeviceDuration::from_millis(50);
const PATIENCE: Patience = Patience {
    pause_min: DeviceDuration::from_millis(100),
    pause_max: DeviceDuration::from_millis(400),
    answer_within: DeviceDuration::from_secs(5),
    hello_within: DeviceDuration::from_secs(2),
};
/// Somebody looks after the device so often.
const LOOK: Duration = Duration::from_millis(50);

/// What the display shows of all devices together.
#[derive(Debug, Default)]
pub struct Fleet {
    pub connected: AtomicU64,
    pub sent: AtomicU64,
    pub acked: AtomicU64,
    pub reconnects: AtomicU64,
}

impl Fleet {
    /// Adds what a device has done since it was last looked at.
    fn add(&self, now: Status, before: Status) {
        let add = |to: &AtomicU64, more: u64| _ = to.fetch_add(more, Ordering::Relaxed);
        add(&self.sent, now.next_number - before.next_number);
        add(&self.acked, (now.next_number - now.pending) - (before.next_number - before.pending));
        // The first connection is none.
        let again = |status: Status| u64::from(status.counts.connections.saturating_sub(1));
        add(&self.reconnects, again(now) - again(before));
        match (before.is_connected, now.is_connected) {
            (false, true) => add(&self.connected, 1),
            (true, false) => _ = self.connected.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
    }
}

pub struct Device {
    pub number: u32,
    pub seed: u64,
    pub gateway: SocketAddr,
    /// Time between two messages.
    pub every: Duration,
    pub fleet: Arc<Fleet>,
    /// Turns true when the device shall measure no more.
    pub stop: watch::Receiver<bool>,
}

/// `d-0007`: client id, partition key and part of the topic.
pub fn name(number: u32) -> String {
    format!("d-{number:04}")
}

impl Device {
    /// Measures until it is stopped, then goes on until all is acknowledged or `settle` is over.
    pub async fn run(self, settle: Duration) -> Sent {
        let Device { number, seed, gateway, fleet, .. } = &self;
        let recorder = Recorder::<CriticalSectionRawMutex, BATCH>::new();
        let mut ram = vec![0; OUTBOX_BYTES];
        let flash = RamFlash::<PAGE>::new(&mut ram);
        let range = flash.range();
        let mut memory = vec![0; memory_bytes(BATCH)];
        let (name, topic) = (name(*number), format!("site/1/dev/{}/t", name(*number)));
        let seed = seed ^ u64::from(*number) << 32;
        // RAM of this size is an outbox, and the name is one that a device may have.
        let outbox = Outbox::open(flash, range, WhenFull::Refuse, seed).await.expect("RAM in whole pages");
        let config = Config { linger: LINGER, window: WINDOW, patience: PATIENCE, ..Config::new(&name, &topic) };
        let device = SdkDevice::new(&recorder, outbox, Tcp(*gateway), config, &mut memory, seed);
        let mut device = device.expect("memory as large as it asks for");
        let mut before = recorder.status();
        let mut app = ();
        let mut running = std::pin::pin!(device.run(&mut app));
        let mut measuring = std::pin::pin!(self.measure(&recorder));
        let mut end = None;
        let status = loop {
            tokio::select! {
                () = &mut running => unreachable!("a device runs for ever"),
                () = &mut measuring, if end.is_none() => end = Some(Instant::now() + settle),
                () = sleep_until(Instant::now() + LOOK) => {}
            }
            let status = recorder.status();
            fleet.add(status, before);
            before = status;
            let all_acknowledged = recorder.is_empty() && status.pending == 0;
            if end.is_some_and(|end| all_acknowledged || Instant::now() >= end) {
                break status;
            }
        };
        // What the outbox never took was not sent; what it has and cannot get rid of is open.
        let sent = status.next_number - 1;
        Sent { sent, unacknowledged: (sent - status.pending + 1..=sent).collect() }
    }

    /// Makes a message at a time, whose number is the one it gets in the outbox.
    async fn measure(&self, recorder: &Recorder<CriticalSectionRawMutex, BATCH>) {
        let phase = self.every.mul_f64(f64::from(self.number % 97) / 97.0);
        let mut clock = interval_at(Instant::now() + phase, self.every);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop = self.stop.clone();
        for number in 1.. {
            tokio::select! {
                _ = clock.tick() => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            let reading = telemetry::reading(self.seed, self.number, number);
            // It waits for room, and a reading is shorter than a batch.
            recorder.record(reading.as_bytes()).await.expect("a reading fits a batch");
        }
        recorder.flush();
    }
}
