//! What the firmware does: makes numbered records and hands them to the device SDK, which keeps them in the flash until the
//! gateway has them on its disk. Nothing of it knows of resets: after one it goes on with the next number.

use core::ops::RangeInclusive;

use cortex_m::peripheral::SCB;
use embassy_futures::select::select;
use embassy_net::Stack;
use embassy_net::tcp::TcpSocket;
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_time::{Duration, Instant, Timer};
use embedded_storage_async::nor_flash::NorFlash;
#[cfg(feature = "ota")]
use headwater_device::Status;
use headwater_device::outbox::{Outbox, WhenFull};
use headwater_device::{Column, ColumnType, Config, Counts, Device, Downlink, Recorder, Transport, memory_bytes};
use static_cell::StaticCell;

use crate::camera::{self, Camera};
use crate::host::Arguments;
use crate::{log, net, operator};

const BATCH: usize = 512;
const WINDOW: usize = 4;
const TCP_BUFFER_BYTES: usize = 2048;
/// A board that sleeps makes so many records, and is awake for its gateway so long.
const RECORDS_A_WAKE: u64 = 10;
const AWAKE_MAX: Duration = Duration::from_secs(30);
const TOPIC: &str = "emulated/readings";
/// Each reading is a JSON object of these fields for those who read the stream.
const READING: &[Column<'static>] = &[
    Column::new("seq", ColumnType::Counter),
    Column::new("uptime_ms", ColumnType::Counter),
    Column::new("temperature", ColumnType::Decimal(2)),
];

static RECORDER: Recorder<CriticalSectionRawMutex, BATCH> = Recorder::new();
static MEMORY: StaticCell<[u8; memory_bytes(BATCH)]> = StaticCell::new();

/// Returns when every record is acknowledged.
pub async fn run(stack: Stack<'static>, flash: &mut impl NorFlash, seed: u64, arguments: &Arguments) {
    let range = 0..arguments.flash_kib * 1024;
    let outbox = Outbox::open(flash, range, WhenFull::Refuse, seed).await;
    let outbox = outbox.unwrap_or_else(|_| panic!("the outbox cannot be opened"));
    log!("outbox: {} records wait, the next is number {}", outbox.len(), outbox.next_number());
    let (mut rx, mut tx) = ([0; TCP_BUFFER_BYTES], [0; TCP_BUFFER_BYTES]);
    let transport = HostTcp { stack, port: arguments.port, rx: &mut rx, tx: &mut tx };
    #[cfg(feature = "tls")]
    let transport = crate::tls::over(transport, arguments, || crate::tls::now(RECORDER.unix_ms()));
    let mut config = Config { window: WINDOW, linger: Duration::from_millis(50), ..Config::new(arguments.id, TOPIC) };
    config.patience.pause_max = Duration::from_secs(2);
    config.patience.answer_within = Duration::from_secs(5);
    let memory = MEMORY.init([0; _]);
    let device = Device::new(&RECORDER, outbox, transport, config, memory, seed);
    let mut device = device.unwrap_or_else(|_| panic!("the device cannot be made"));
    let app = Camera::new(arguments.picture_bytes);
    #[cfg(feature = "ota")]
    let app = crate::ota::MAILBOX.downlink(app);
    let mut app = app;
    if arguments.sleep_ms > 0 {
        return send_then_sleep(&mut device, &mut app, arguments).await;
    }
    let all = async {
        measure(arguments).await;
        if arguments.picture_bytes > 0 && !camera::ENDED.wait().await {
            panic!("the gateway does not take the picture");
        }
    };
    select(device.run(&mut app), all).await;
    let status = RECORDER.status();
    let Counts { connections, publishes, refused, rejected } = status.counts;
    log!("all {} records are acknowledged", arguments.records);
    log!("{connections} connections, {publishes} publishes, of these {refused} refused; {rejected} records rejected");
}

/// Returns once the gateway has acknowledged something since the start.
#[cfg(feature = "ota")]
pub async fn acknowledged() {
    let acknowledged = |status: &Status| status.next_number.saturating_sub(status.pending);
    let mut before = None;
    let mut status = RECORDER.status();
    loop {
        // Before the first connection the outbox may not have been opened.
        if status.is_connected && acknowledged(&status) > *before.get_or_insert(acknowledged(&status)) {
            return;
        }
        status = RECORDER.status_change(&status).await;
    }
}

/// Makes the records that were not made before a reset, and waits until the gateway has all of them.
async fn measure(arguments: &Arguments) {
    // One record a number: what the outbox has was made.
    let first = RECORDER.status().next_number;
    make(first..=u64::from(arguments.records), arguments).await;
    RECORDER.flush();
    let mut told = Instant::now();
    while !RECORDER.is_empty() || RECORDER.status().pending > 0 {
        Timer::after_millis(10).await;
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            log!("{} records are not acknowledged yet", RECORDER.status().pending);
        }
    }
}

async fn make(numbers: RangeInclusive<u64>, arguments: &Arguments) {
    for seq in numbers {
        let uptime = Instant::now().as_millis() as i64;
        let row = [(seq as i64).into(), uptime.into(), (2_000 + (seq as i64 * 7) % 300).into()];
        if RECORDER.reading(READING, &row).await.is_err() {
            panic!("a reading is not of the shape of its columns");
        }
        if operator::is_debug() {
            log!("record {seq}");
        }
        let pace_us = operator::pace_us(arguments.pace_us);
        if pace_us > 0 {
            Timer::after_micros(pace_us.into()).await;
        }
    }
}

/// One wake of a board on a battery: some records, sent, and a sleep out of which it comes by a reset. Returns when there is
/// nothing left to make, and nothing to send.
async fn send_then_sleep<F: NorFlash, T: Transport>(
    device: &mut Device<'_, CriticalSectionRawMutex, F, T, BATCH>,
    app: &mut impl Downlink,
    arguments: &Arguments,
) {
    let (first, records) = (RECORDER.status().next_number, u64::from(arguments.records));
    let last = records.min(first + RECORDS_A_WAKE - 1);
    make(first..=last, arguments).await;
    let rest = device.flush(app, AWAKE_MAX).await;
    if rest.pending == 0 && last == records {
        return log!("all {records} records are acknowledged");
    }
    let now = Instant::now();
    let pause = rest.retry_at.map_or(Duration::MIN, |at| at.saturating_duration_since(now));
    let pause = pause.max(Duration::from_millis(arguments.sleep_ms.into()));
    log!("{} records wait; asleep for {} ms", rest.pending, pause.as_millis());
    Timer::after(pause).await;
    SCB::sys_reset()
}

/// TCP to a port of the host.
struct HostTcp<'d> {
    stack: Stack<'static>,
    port: u16,
    rx: &'d mut [u8],
    tx: &'d mut [u8],
}

impl Transport for HostTcp<'_> {
    type Stream<'a>
        = TcpSocket<'a>
    where
        Self: 'a;
    type Error = &'static str;

    async fn connect(&mut self) -> Result<TcpSocket<'_>, &'static str> {
        let opened = net::open(self.stack, self.port, self.rx, self.tx).await;
        match &opened {
            Ok(_) => log!("connected"),
            Err(reason) => log!("{reason}"),
        }
        opened
    }
}
