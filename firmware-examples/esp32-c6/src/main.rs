//! Headwater on an ESP32-C6: a Wi-Fi sensor, the outbox in a partition of its own.
//!
//! This file brings the chip up and hands its parts to the shared logic; what happens to a record is in `../app`. Logs
//! go to the USB port or the serial bridge, whichever is connected.

#![no_std]
#![no_main]

mod outbox;
mod sensor;
mod wifi;

use embassy_embedded_hal::adapter::BlockingAsync;
use embassy_executor::Spawner;
use esp_backtrace as _;
use esp_hal::clock::CpuClock;
use esp_hal::interrupt::software::SoftwareInterruptControl;
use esp_hal::rng::Rng;
use esp_hal::timer::timg::TimerGroup;
use esp_storage::FlashStorage;
use headwater_example_app::Board;

// What the second-stage bootloader wants to know of a program.
esp_bootloader_esp_idf::esp_app_desc!();

#[esp_rtos::main]
async fn main(spawner: Spawner) -> ! {
    esp_println::logger::init_logger(log::LevelFilter::Info);
    let p = esp_hal::init(esp_hal::Config::default().with_cpu_clock(CpuClock::max()));
    log::info!("headwater esp32-c6, device {}", headwater_example_app::credentials::DEVICE_ID);

    // The radio takes 50 to 60 KiB of it. The first part is what the bootloader had for itself.
    esp_alloc::heap_allocator!(#[esp_hal::ram(reclaimed)] size: 64 * 1024);
    esp_alloc::heap_allocator!(size: 48 * 1024);

    let timers = TimerGroup::new(p.TIMG0);
    let interrupts = SoftwareInterruptControl::new(p.SW_INTERRUPT);
    esp_rtos::start(timers.timer0, interrupts.software_interrupt0);

    let stack = wifi::start(spawner, p.WIFI);
    let mut flash = FlashStorage::new(p.FLASH);
    let outbox = outbox::find(&mut flash).await;
    headwater_example_app::run(Board {
        stack,
        flash: BlockingAsync::new(flash),
        outbox,
        seed: random(),
        hardware: sensor::Sensor::new(p.TSENS, p.LPWR),
    })
    .await
}

/// The generator draws its randomness from the radio, so this is for after the radio's start.
pub fn random() -> u64 {
    let rng = Rng::new();
    u64::from(rng.random()) << 32 | u64::from(rng.random())
}

/// What follows a panic once its message is out: a device in the field has nobody who presses reset.
#[unsafe(no_mangle)]
extern "Rust" fn custom_halt() -> ! {
    esp_hal::delay::Delay::new().delay_millis(500);
    esp_hal::system::software_reset()
}
