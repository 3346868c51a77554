//! One simulated device that is a real one but for its board: the SDK over tokio, its outbox in RAM that outlives resets.

use crate::Tcp;
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_time::Duration;
use headwater_device::link::Patience;
use headwater_device::outbox::{self, Outbox, WhenFull};
use headwater_device::ram::RamFlash;
use headwater_device::{Column, ColumnType, Config, Device, Recorder, Status, memory_bytes};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::time::{Instant, sleep_until};

/// Bytes of a batch.
pub const BATCH: usize = 512;
const WINDOW: usize = 4;
/// What a device keeps while its gateway is away.
const OUTBOX_BYTES: usize = 16 << 10;
const COLUMNS: &[Column<'static>] = &[
    Column::new("seq", ColumnType::Counter),
    Column::new("ts", ColumnType::Counter),
    Column::new("temperature", ColumnType::Decimal(2)),
    Column::new("humidity", ColumnType::Decimal(1)),
    Column::new("ok", ColumnType::Bool),
];

/// What each device of a fleet does.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Its gateway.
    pub gateway: SocketAddr,
    /// Where it publishes.
    pub topic: String,
    /// Time between two readings.
    pub every: std::time::Duration,
    /// How many it makes.
    pub records: u64,
    /// How long a reading waits for company.
    pub linger: std::time::Duration,
    /// When it gives up what is not acknowledged yet.
    pub until: Instant,
}

/// What a fleet has done together.
#[derive(Debug, Default)]
pub struct Totals {
    /// Readings made and taken by the recorder.
    pub recorded: AtomicU64,
    /// Readings that found no room, also not after waiting.
    pub unrecorded: AtomicU64,
    /// Readings on the gateway's disk.
    pub acknowledged: AtomicU64,
    /// Connections made.
    pub connections: AtomicU64,
    /// Publishes sent.
    pub publishes: AtomicU64,
    /// Publishes refused for the moment.
    pub refused: AtomicU64,
    /// Devices that have everything acknowledged.
    pub done: AtomicU64,
}

impl Totals {
    /// Adds what a device has done since it was last looked at.
    fn add(&self, now: Status, before: Status) {
        let add = |to: &AtomicU64, more: u64| _ = to.fetch_add(more, Ordering::Relaxed);
        let acknowledged = |status: Status| status.next_number - 1 - status.pending;
        add(&self.acknowledged, acknowledged(now).saturating_sub(acknowledged(before)));
        add(&self.connections, u64::from(now.counts.connections - before.counts.connections));
        add(&self.publishes, now.counts.publishes - before.counts.publishes);
        add(&self.refused, now.counts.refused - before.counts.refused);
    }
}

/// Runs one device until it has made its readings and all are acknowledged, or `until`. A single-threaded runtime is
/// needed: an SDK device does not move between threads.
pub async fn device(id: String, seed: u64, behaviour: Behaviour, totals: Arc<Totals>) -> Result<(), String> {
    let recorder = Recorder::<CriticalSectionRawMutex, BATCH>::new();
    let mut ram = vec![0; OUTBOX_BYTES];
    let flash = RamFlash::<1_024>::new(&mut ram);
    let range = flash.range();
    let outbox = Outbox::open(flash, range, WhenFull::Refuse, seed);
    let outbox = outbox.await.map_err(|error: outbox::Error<_>| format!("{id}: outbox: {error:?}"))?;
    let mut memory = vec![0; memory_bytes(BATCH)];
    let patience = Patience { pause_max: Duration::from_secs(5), ..Patience::default() };
    let linger = Duration::from_micros(behaviour.linger.as_micros() as u64);
    let config = Config { linger, window: WINDOW, patience, ..Config::new(&id, &behaviour.topic) };
    let device = Device::new(&recorder, outbox, Tcp(behaviour.gateway), config, &mut memory, seed);
    let mut app = ();
    let mut device = device.map_err(|error| format!("{id}: {error:?}"))?;
    let sensor = async {
        let start = Instant::now() + behaviour.every.mul_f64(fastrand::f64());
        let mut temperature = 2_150;
        for n in 1..=behaviour.records {
            sleep_until(start + behaviour.every.mul_f64((n - 1) as f64)).await;
            temperature += fastrand::i64(-3..=3);
            let row = [(n as i64).into(), (n as i64 * 1_000).into(), temperature.into(), 455.into(), true.into()];
            match recorder.reading(COLUMNS, &row).await {
                Ok(()) => totals.recorded.fetch_add(1, Ordering::Relaxed),
                Err(_) => totals.unrecorded.fetch_add(1, Ordering::Relaxed),
            };
        }
    };
    let (mut sensor, mut before) = (std::pin::pin!(sensor), recorder.status());
    let mut run = std::pin::pin!(device.run(&mut app));
    let mut made_all = false;
    loop {
        let look = Instant::now() + std::time::Duration::from_millis(250);
        tokio::select! {
            () = &mut run => return Err(format!("{id}: stopped")),
            () = &mut sensor, if !made_all => made_all = true,
            () = sleep_until(look) => {}
        }
        let status = recorder.status();
        totals.add(status, before);
        before = status;
        if made_all && recorder.is_empty() && status.pending == 0 {
            totals.done.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        if Instant::now() >= behaviour.until {
            return Err(format!("{id}: {} records are not acknowledged", status.pending));
        }
    }
}
