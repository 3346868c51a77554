//! Headwater's firmware for an emulated board: QEMU's mps2-an385, a Cortex-M3 with Ethernet. It delivers numbered
//! records to a gateway on the host and ends QEMU with exit code 0 once all of them are acknowledged. It never gives up
//! on a gateway that is away.
//!
//! The board's parts are in the modules; this file joins them to `app.rs`, which is what the firmware does.

#![no_std]
#![no_main]

mod app;
mod board;
mod camera;
mod console;
mod executor;
mod flash;
mod host;
mod lan9118;
mod net;
mod operator;
#[cfg(feature = "ota")]
mod ota;
mod stack;
mod time;
#[cfg(feature = "tls")]
mod tls;

use cortex_m_rt::entry;
use embassy_executor::Spawner;
use embassy_net::{DhcpConfig, StackResources};
use static_cell::StaticCell;

use crate::flash::{Counters, SimulatedFlash, Timing};
use crate::lan9118::Lan9118;

/// DHCP's socket and the connection's, and one that nobody has needed yet.
const SOCKETS: usize = 3;

#[entry]
fn main() -> ! {
    stack::paint();
    time::init();
    console::init();
    // A task's place is taken when it is started; each is started once.
    executor::run(|spawner| spawner.spawn(start(spawner).unwrap()))
}

#[embassy_executor::task]
async fn start(spawner: Spawner) {
    static COMMAND_LINE: StaticCell<[u8; host::ARGUMENTS_MAX_BYTES]> = StaticCell::new();
    let arguments = host::arguments(COMMAND_LINE.init([0; _]));
    let seed = host::seed(arguments.seed);
    log!("{} starts: {} records for port {}", arguments.id, arguments.records, arguments.port);

    let timing = if arguments.slow_flash { Timing::REAL } else { Timing::NONE };
    // SAFETY: the only one here; this task runs once.
    let mut flash: SimulatedFlash = unsafe { SimulatedFlash::new(arguments.flash_kib as usize * 1024, timing) };

    static RESOURCES: StaticCell<StackResources<SOCKETS>> = StaticCell::new();
    let controller = Lan9118::new().unwrap_or_else(|error| panic!("{error}"));
    let mut dhcp = DhcpConfig::default();
    // A lost first request costs a second, and not ten.
    dhcp.retry_config.discover_timeout /= 10;
    let config = embassy_net::Config::dhcpv4(dhcp);
    let (stack, runner) = embassy_net::new(controller, config, RESOURCES.init(StackResources::new()), seed);
    // Their only start, as above.
    spawner.spawn(net::run(runner).unwrap());
    #[cfg(feature = "ota")]
    spawner.spawn(ota::run(timing).unwrap());

    app::run(stack, &mut flash, seed, &arguments).await;
    let Counters { words_programmed, words_programmed_twice, pages_erased } = flash.counters;
    log!("flash: {words_programmed} words programmed ({words_programmed_twice} twice), {pages_erased} pages erased");
    log!("stack: {} bytes at most", stack::used());
    host::exit(0)
}
