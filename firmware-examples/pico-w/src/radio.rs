//! The CYW43439: brought up once, then joined to the network again and again by a task that owns it.
//!
//! The light of a Pico W hangs on the radio, not on the processor, so that task switches it as well.

use cyw43::{Control, JoinOptions, NetDriver, PowerManagementMode, SpiBus};
use cyw43_pio::{PioSpi, RM2_CLOCK_DIVIDER};
use embassy_executor::Spawner;
use embassy_futures::select::{Either3, select3};
use embassy_net::{Config, DhcpConfig, Stack};
use embassy_rp::Peri;
use embassy_rp::dma::Channel;
use embassy_rp::gpio::{Level, Output};
use embassy_rp::peripherals::{PIN_23, PIN_24, PIN_25, PIN_29, PIO0};
use embassy_rp::pio::Pio;
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::signal::Signal;
use embassy_time::{Duration, Timer, with_timeout};
use headwater_example_app::{NetResources, credentials};
use static_cell::StaticCell;

/// What `firmware/` held when this was built.
mod firmware {
    include!(concat!(env!("OUT_DIR"), "/firmware.rs"));
}

/// How the radio hangs on the processor: the same on both boards.
pub struct Pins {
    pub power: Peri<'static, PIN_23>,
    pub data: Peri<'static, PIN_24>,
    pub select: Peri<'static, PIN_25>,
    pub clock: Peri<'static, PIN_29>,
}

/// The half-duplex serial bus is a program of the PIO.
pub struct Bus {
    pub pio: Pio<'static, PIO0>,
    pub dma: Channel<'static>,
}

type Runner = cyw43::Runner<'static, SpiBus<Output<'static>, PioSpi<'static, PIO0, 0>>>;

const JOIN_AGAIN_FIRST: Duration = Duration::from_secs(1);
const JOIN_AGAIN_MAX: Duration = Duration::from_secs(60);
const LINK_WITHIN: Duration = Duration::from_secs(5);
const LIGHT: u8 = 0;

// The newest wish counts; older ones may be overwritten unseen.
static LIGHT_WANTED: Signal<CriticalSectionRawMutex, bool> = Signal::new();
static LEAVE_WANTED: Signal<CriticalSectionRawMutex, Duration> = Signal::new();

/// Uploads the radio's firmware and starts the network stack; joining goes on in the background.
pub async fn start(spawner: Spawner, pins: Pins, bus: Bus, seed: u64) -> Stack<'static> {
    require_firmware().await;

    let power = Output::new(pins.power, Level::Low);
    let select = Output::new(pins.select, Level::High);
    let Bus { pio: mut p, dma } = bus;
    // The slowest of the usual clocks: the fastest fails on some boards, and a sensor has no hurry.
    let spi = PioSpi::new(&mut p.common, p.sm0, RM2_CLOCK_DIVIDER, p.irq0, select, pins.data, pins.clock, dma);
    static STATE: StaticCell<cyw43::State> = StaticCell::new();
    let state = STATE.init(cyw43::State::new());
    let (device, mut control, runner) = cyw43::new(state, power, spi, firmware::RADIO, firmware::NVRAM).await;
    spawner.spawn(radio(runner).expect("the task runs once"));
    control.init(firmware::REGULATORY).await;
    control.set_power_management(PowerManagementMode::PowerSave).await;

    static RESOURCES: StaticCell<NetResources> = StaticCell::new();
    let dhcp = Config::dhcpv4(DhcpConfig::default());
    let (stack, runner) = embassy_net::new(device, dhcp, RESOURCES.init(NetResources::new()), seed);
    spawner.spawn(network(runner).expect("the task runs once"));
    spawner.spawn(stay_joined(control, stack).expect("the task runs once"));
    stack
}

pub fn light(on: bool) {
    LIGHT_WANTED.signal(on);
}

/// Leaves the network now and joins again after `duration`.
pub fn leave_for(duration: Duration) {
    LEAVE_WANTED.signal(duration);
}

/// Without its firmware the radio is deaf. Says so for as long as it takes somebody to open the serial port.
async fn require_firmware() {
    // The black box keeps the optimizer from dropping all that follows in a build without the files.
    let missing = core::hint::black_box(firmware::MISSING);
    while !missing.is_empty() {
        for file in missing {
            log::error!("firmware/{file} was missing when this was built; README.md says where to get it");
        }
        Timer::after_secs(5).await;
    }
}

#[embassy_executor::task]
async fn radio(runner: Runner) -> ! {
    runner.run().await
}

#[embassy_executor::task]
async fn network(mut runner: embassy_net::Runner<'static, NetDriver<'static>>) -> ! {
    runner.run().await
}

#[embassy_executor::task]
async fn stay_joined(mut control: Control<'static>, stack: Stack<'static>) -> ! {
    loop {
        join(&mut control).await;
        // The stack hears of the link a moment after the radio; waiting for its loss before that would find it lost.
        let _ = with_timeout(LINK_WITHIN, stack.wait_link_up()).await;
        loop {
            match select3(LIGHT_WANTED.wait(), LEAVE_WANTED.wait(), stack.wait_link_down()).await {
                Either3::First(on) => control.gpio_set(LIGHT, on).await,
                Either3::Second(duration) => {
                    control.gpio_set(LIGHT, false).await;
                    control.leave().await;
                    Timer::after(duration).await;
                    break;
                }
                Either3::Third(()) => {
                    log::warn!("Wi-Fi is lost");
                    control.gpio_set(LIGHT, false).await;
                    break;
                }
            }
        }
    }
}

async fn join(control: &mut Control<'static>) {
    let mut wait = JOIN_AGAIN_FIRST;
    loop {
        log::info!("joining {}", credentials::WIFI_SSID);
        let options = match credentials::WIFI_PASSWORD {
            "" => JoinOptions::new_open(),
            password => JoinOptions::new(password.as_bytes()),
        };
        match control.join(credentials::WIFI_SSID, options).await {
            Ok(()) => return,
            Err(error) => log::warn!("not joined: {error:?}; next try in {} s", wait.as_secs()),
        }
        Timer::after(wait).await;
        wait = (wait * 2).min(JOIN_AGAIN_MAX);
    }
}
