//! The device SDK: a reading a second through the recorder and the outbox in flash, which the driver delivers for ever.

use embassy_futures::join::join;
use embassy_net::tcp::TcpSocket;
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_time::{Duration, Instant, Ticker};
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
    join(device.run(&mut Commands), measure()).await;
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

struct Commands;

impl Downlink for Commands {
    fn config(&mut self, config: &[u8]) {
        core::hint::black_box(config);
    }

    fn command(&mut self, command: &[u8], answer: &mut [u8]) -> usize {
        core::hint::black_box((command, answer));
        1
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
