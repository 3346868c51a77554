//! Headwater on a Raspberry Pi Pico 2 W: telemetry over Wi-Fi, the outbox at the end of the flash.
//!
//! This file brings the chip up and hands its parts to the shared logic; what happens to a record is in `../app`.
//! Radio, USB and sensor are those of the Pico W, so their modules are in its folder.

#![no_std]
#![no_main]

#[cfg(feature = "deep-sleep")]
mod deep_sleep;
#[path = "../../pico-w/src/panic.rs"]
mod panic;
#[path = "../../pico-w/src/pico.rs"]
mod pico;
#[path = "../../pico-w/src/radio.rs"]
mod radio;
#[path = "../../pico-w/src/usb_log.rs"]
mod usb_log;

use embassy_embedded_hal::adapter::BlockingAsync;
use embassy_executor::Spawner;
use embassy_rp::flash::{Blocking, Flash};
use embassy_rp::peripherals::{DMA_CH0, PIO0, TRNG, USB};
use embassy_rp::trng::{self, Trng};
use embassy_rp::{bind_interrupts, dma, pio, usb};
use headwater_example_app::Board;

bind_interrupts!(struct Irqs {
    DMA_IRQ_0 => dma::InterruptHandler<DMA_CH0>;
    PIO0_IRQ_0 => pio::InterruptHandler<PIO0>;
    TRNG_IRQ => trng::InterruptHandler<TRNG>;
    USBCTRL_IRQ => usb::InterruptHandler<USB>;
});

const FLASH_BYTES: usize = 4 * 1024 * 1024;
/// `memory.x` keeps the program out of it.
const OUTBOX_BYTES: usize = 512 * 1024;

#[embassy_executor::main]
async fn main(spawner: Spawner) -> ! {
    let p = embassy_rp::init(Default::default());
    usb_log::start(spawner, usb::Driver::new(p.USB, Irqs));
    panic::report_last_words();
    log::info!("headwater pico-2-w, device {}", headwater_example_app::credentials::DEVICE_ID);

    let mut trng = Trng::new(p.TRNG, Irqs, trng::Config::default());
    let pins = radio::Pins { power: p.PIN_23, data: p.PIN_24, select: p.PIN_25, clock: p.PIN_29 };
    let bus = radio::Bus { pio: pio::Pio::new(p.PIO0, Irqs), dma: dma::Channel::new(p.DMA_CH0, Irqs) };
    let stack = radio::start(spawner, pins, bus, trng.blocking_next_u64()).await;

    let hardware = pico::Pico::new(p.ADC, p.ADC_TEMP_SENSOR);
    #[cfg(feature = "deep-sleep")]
    let hardware = deep_sleep::DeepSleeper::new(hardware);
    headwater_example_app::run(Board {
        stack,
        flash: BlockingAsync::new(Flash::<_, Blocking, FLASH_BYTES>::new_blocking(p.FLASH)),
        outbox: (FLASH_BYTES - OUTBOX_BYTES) as u32..FLASH_BYTES as u32,
        seed: trng.blocking_next_u64(),
        hardware,
    })
    .await
}
