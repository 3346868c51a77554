//! Logs as a USB serial port, so that a Pico with nothing but its cable can be watched.
//!
//! What is logged while nobody has opened the port waits in a small buffer; when that is full, newer lines are lost.

use embassy_executor::Spawner;
use embassy_rp::peripherals::USB;
use embassy_rp::usb::Driver;
use embassy_usb_logger::{DummyHandler, LoggerState, UsbLogger};
use static_cell::StaticCell;

static LOGGER: UsbLogger<2048, DummyHandler> = UsbLogger::new();

/// Once, first of all: from here on `log` has somewhere to write.
pub fn start(spawner: Spawner, driver: Driver<'static, USB>) {
    // SAFETY: nothing else has run yet, in no interrupt either, so no one can log or set a logger at the same time.
    unsafe {
        let _ = log::set_logger_racy(&LOGGER);
        log::set_max_level_racy(log::LevelFilter::Info);
    }
    spawner.spawn(run(driver).expect("the task runs once"));
}

#[embassy_executor::task]
async fn run(driver: Driver<'static, USB>) -> ! {
    static STATE: StaticCell<LoggerState<'static>> = StaticCell::new();
    LOGGER.run(STATE.init(LoggerState::new()), driver).await
}
