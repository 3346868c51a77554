//! The base program: the emulated board with its network stack, a TCP connection and a flash driver, all of them used.
//! What is on top of it is one of the variants; without a feature it is a socket that exchanges bytes. Nothing formats
//! text here, and the panic handler looks at nothing, so that `core::fmt` is linked only by who asks for it.

#![no_std]
#![no_main]

#[path = "../../mps2-an385/src/board.rs"]
mod board;
#[path = "../../mps2-an385/src/executor.rs"]
mod executor;
#[path = "../../mps2-an385/src/flash.rs"]
#[allow(dead_code)]
mod flash;
#[path = "../../mps2-an385/src/lan9118.rs"]
mod lan9118;
#[path = "../../mps2-an385/src/net.rs"]
mod net;
#[path = "../../mps2-an385/src/time.rs"]
mod time;

#[cfg_attr(feature = "minimq", path = "minimq.rs")]
#[cfg_attr(feature = "rust-mqtt", path = "rust_mqtt.rs")]
#[cfg_attr(feature = "sdk-plain", path = "sdk.rs")]
#[cfg_attr(not(any(feature = "minimq", feature = "rust-mqtt", feature = "sdk-plain")), path = "base.rs")]
mod variant;

use cortex_m_rt::entry;
use embassy_executor::Spawner;
use embassy_net::tcp::TcpSocket;
use embassy_net::{DhcpConfig, Stack, StackResources};
use embedded_io_async::Write;
use embedded_storage_async::nor_flash::{NorFlash, ReadNorFlash};
use static_cell::StaticCell;

use crate::flash::{SimulatedFlash, Timing};
use crate::lan9118::Lan9118;

const FLASH_BYTES: usize = 256 << 10;
const TCP_BUFFER_BYTES: usize = 2048;
const SOCKETS: usize = 3;
const SEED: u64 = 1;
const PORT: u16 = 1883;

static TCP_RX: StaticCell<[u8; TCP_BUFFER_BYTES]> = StaticCell::new();
static TCP_TX: StaticCell<[u8; TCP_BUFFER_BYTES]> = StaticCell::new();

/// What a variant builds on.
struct Board {
    stack: Stack<'static>,
    flash: SimulatedFlash,
    rx: &'static mut [u8],
    tx: &'static mut [u8],
}

#[entry]
fn main() -> ! {
    time::init();
    executor::run(|spawner| {
        if let Ok(task) = start(spawner) {
            spawner.spawn(task);
        }
    })
}

#[embassy_executor::task]
async fn start(spawner: Spawner) {
    // SAFETY: this is the only one; this task runs once.
    let flash = unsafe { SimulatedFlash::new(FLASH_BYTES, Timing::NONE) };
    static RESOURCES: StaticCell<StackResources<SOCKETS>> = StaticCell::new();
    let Ok(controller) = Lan9118::new() else { return };
    let config = embassy_net::Config::dhcpv4(DhcpConfig::default());
    let (stack, runner) = embassy_net::new(controller, config, RESOURCES.init(StackResources::new()), SEED);
    let Ok(network) = net::run(runner) else { return };
    spawner.spawn(network);
    let mut board = Board { stack, flash, rx: TCP_RX.init([0; _]), tx: TCP_TX.init([0; _]) };
    board.exchange().await;
    variant::run(board).await;
}

impl Board {
    /// Uses each thing once, so that it is in every variant: bytes over a socket, bytes into flash and back.
    async fn exchange(&mut self) {
        let mut bytes = [0xff; 16];
        let _ = self.flash.erase(0, 4096).await;
        let _ = self.flash.write(0, &bytes).await;
        let _ = self.flash.read(0, &mut bytes).await;
        if let Ok(mut socket) = self.connect().await {
            let _ = socket.write_all(&bytes).await;
            let _ = socket.read(&mut bytes).await;
            let _ = socket.flush().await;
        }
    }

    async fn connect(&mut self) -> Result<TcpSocket<'_>, &'static str> {
        net::open(self.stack, PORT, self.rx, self.tx).await
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {
        cortex_m::asm::wfi();
    }
}
