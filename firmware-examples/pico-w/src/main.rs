//! Headwater on a Raspberry Pi Pico W: telemetry over Wi-Fi, the outbox at the end of the flash.
//!
//! This file brings the chip up and hands its parts to the shared logic; what happens to a record is in `../app`. The
//! modules beside it know the board's radio, USB and sensor, and the Pico 2 W uses them as well.

#![no_std]
#![no_main]

mod panic;
mod pico;
mod radio;
mod usb_log;

use embassy_embedded_hal::adapter::BlockingAsync;
use embassy_executor::Spawner;
use embassy_rp::clocks::RoscRng;
use embassy_rp::flash::{Blocking, Flash};
use embassy_rp::peripherals::{DMA_CH0, PIO0, USB};
use embassy_rp::{bind_interrupts, dma, pio, usb};
use headwater_example_app::Board;

bind_interrupts!(struct Irqs {
    DMA_IRQ_0 => dma::InterruptHandler<DMA_CH0>;
    PIO0_IRQ_0 => pio::InterruptHandler<PIO0>;
    USBCTRL_IRQ => usb::InterruptHandler<USB>;
});

const FLASH_BYTES: usize = 2 * 1024 * 1024;
/// `memory.x` keeps the program out of it.
const OUTBOX_BYTES: usize = 256 * 1024;

#[embassy_executor::main]
async fn main(spawner: Spawner) -> ! {
    let p = embassy_rp::init(Default::default());
    usb_log::start(spawner, usb::Driver::new(p.USB, Irqs));
    panic::report_last_words();
    log::info!("headwater pico-w, device {}", headwater_example_app::credentials::DEVICE_ID);

    let pins = radio::Pins { power: p.PIN_23, data: p.PIN_24, select: p.PIN_25, clock: p.PIN_29 };
    let bus = radio::Bus { pio: pio::Pio::new(p.PIO0, Irqs), dma: dma::Channel::new(p.DMA_CH0, Irqs) };
    let stack = radio::start(spawner, pins, bus, random()).await;

    headwater_example_app::run(Board {
        stack,
        flash: BlockingAsync::new(Flash::<_, Blocking, FLASH_BYTES>::new_blocking(p.FLASH)),
        outbox: (FLASH_BYTES - OUTBOX_BYTES) as u32..FLASH_BYTES as u32,
        seed: random(),
        hardware: pico::Pico::new(p.ADC, p.ADC_TEMP_SENSOR),
    })
    .await
}

/// The RP2040 has no certified generator, only a bit of the ring oscillator's phase, and neighbouring bits of it are
/// alike. Many bits are folded into few: enough to tell devices and boots apart, not for keys.
fn random() -> u64 {
    let mut rosc = RoscRng;
    (0..32).fold(0, |folded: u64, _| folded.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ rosc.next_u64())
}
