//! The device SDK: a reading a second through the recorder and the outbox in flash, which the driver delivers for ever.

use embassy_futures::join::join;
use embassy_net::tcp::TcpSocket;
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_time::{Duration, Instant, Ticker};
#[cfg(feature = "sdk-blobs")]
use headwater_device::Blob;
use headwater_device::outbox::{Outbox, WhenFull};
#[cfg(feature = "sdk")]
use headwater_device::{Column, ColumnType};
use headwater_device::{Config, Device, Downlink, Recorder, Transport, memory_bytes};
use static_cell::StaticCell;

use crate::{Board, FLASH_BYTES, PORT, SEED, net};

const BATCH: usize = 512;
#[cfg(feature = "sdk")]
const READING: &[Column<'static>] = &[
    Column::new("uptime_ms", ColumnType::Counter),
    Column::new("temperature", ColumnType::Decimal(2)),
    Column::new("state", ColumnType::Text),
];

static RECORDER: Recorder<CriticalSectionRawMutex, BATCH> = Recorder::new();
static MEMORY: StaticCell<[u8; memory_bytes(BATCH)]> = StaticCell::new();

pub async fn run(board: Board) {
    let Board { stack, flash, rx, tx } = board;
    let Ok(outbox) = Outbox::open(flash, 0..FLASH_BYTES as u32, WhenFull::DropOldest, SEED).await else { return };
    let config = Config::new("footprint", "footprint/readings");
    let memory = MEMORY.init([0; _]);
    let device = Device::new(&RECORDER, outbox, Tcp { stack, rx, tx }, config, memory, SEED);
    let Ok(mut device) = device else { return };
    let mut app = Commands {
        #[cfg(feature = "sdk-blobs")]
        blob: Some(Blob { id: SEED as u32, length: 100_000 }),
    };
    join(device.run(&mut app), measure()).await;
}

async fn measure() {
    let mut every = Ticker::every(Duration::from_secs(1));
    loop {
        every.next().await;
        let uptime = Instant::now().as_millis() as i64;
        #[cfg(feature = "sdk")]
        let _ = RECORDER.reading(READING, &[uptime.into(), (uptime % 300).into(), "fine".into()]).await;
        #[cfg(not(feature = "sdk"))]
        let _ = RECORDER.record(&uptime.to_le_bytes()).await;
    }
}

struct Commands {
    #[cfg(feature = "sdk-blobs")]
    blob: Option<Blob>,
}

impl Downlink for Commands {
    fn config(&mut self, config: &[u8]) {
        core::hint::black_box(config);
    }

    fn command(&mut self, command: &[u8], answer: &mut [u8]) -> usize {
        core::hint::black_box((command, answer));
        1
    }

    #[cfg(feature = "sdk-blobs")]
    fn blob(&mut self) -> Option<Blob> {
        self.blob
    }

    #[cfg(feature = "sdk-blobs")]
    async fn read_blob(&mut self, _id: u32, _offset: u64, into: &mut [u8]) -> bool {
        core::hint::black_box(into);
        true
    }

    #[cfg(feature = "sdk-blobs")]
    fn blob_ended(&mut self, _id: u32, _delivered: bool) {
        self.blob = None;
    }
}

struct Tcp {
    stack: embassy_net::Stack<'static>,
    rx: &'static mut [u8],
    tx: &'static mut [u8],
}

impl Transport for Tcp {
    type Stream<'a> = TcpSocket<'a>;
    type Error = &'static str;

    async fn connect(&mut self) -> Result<TcpSocket<'_>, &'static str> {
        net::open(self.stack, PORT, self.rx, self.tx).await
    }
}
