//! What the firmware does: makes numbered records and hands them to the device SDK, which keeps them in the flash until the
//! gateway has them on its disk. Nothing of it knows of resets: after one it goes on with the next number.

use embassy_futures::select::select;
use embassy_net::Stack;
use embassy_net::tcp::TcpSocket;
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_time::{Duration, Instant, Timer};
use embedded_storage_async::nor_flash::NorFlash;
#[cfg(feature = "ota")]
use headwater_device::Status;
use headwater_device::outbox::{Outbox, WhenFull};
use headwater_device::{Column, ColumnType, Config, Counts, Device, Recorder, Transport, memory_bytes};
use static_cell::StaticCell;

use crate::camera::{self, Camera};
use crate::host::Arguments;
use crate::{log, net};

const BATCH: usize = 512;
const WINDOW: usize = 4;
const TCP_BUFFER_BYTES: usize = 2048;
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
    for seq in first..=u64::from(arguments.records) {
        let uptime = Instant::now().as_millis() as i64;
        let row = [(seq as i64).into(), uptime.into(), (2_000 + (seq as i64 * 7) % 300).into()];
        if RECORDER.reading(READING, &row).await.is_err() {
            panic!("a reading is not of the shape of its columns");
        }
        if arguments.pace_us > 0 {
            Timer::after_micros(arguments.pace_us.into()).await;
        }
    }
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
