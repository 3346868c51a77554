//! The flash in parts: of the outbox, of the firmware that comes, of the boot loader's state.

use core::ops::Range;

use cortex_m::peripheral::SCB;
use embassy_embedded_hal::flash::partition::Partition;
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::mutex::Mutex;
use embassy_time::Timer;
use headwater_device::ota::Partitions;
use headwater_example_app::updates;
use static_cell::StaticCell;

use crate::flash::Chip;
use crate::layout::{DFU, FLASH_BYTES, JOURNAL, STATE};

/// Parts of one flash are used in turn: while a sector is erased, up to seconds, the others wait.
pub type Part = Partition<'static, CriticalSectionRawMutex, Chip>;
pub type Shared = &'static Mutex<CriticalSectionRawMutex, Chip>;

pub fn share(flash: Chip) -> Shared {
    static FLASH: StaticCell<Mutex<CriticalSectionRawMutex, Chip>> = StaticCell::new();
    FLASH.init(Mutex::new(flash))
}

/// All of it, for who keeps within a range of its own.
pub fn whole(flash: Shared) -> Part {
    Partition::new(flash, 0, FLASH_BYTES as u32)
}

/// Updates the firmware for ever: each time it has to, it resets the board.
#[embassy_executor::task]
pub async fn run(flash: Shared) -> ! {
    let part = |range: Range<u32>| Partition::new(flash, range.start, range.end - range.start);
    updates::run(Partitions { dfu: part(DFU), state: part(STATE), journal: part(JOURNAL) }).await;
    Timer::after_millis(100).await; // for the probe to fetch the last words
    SCB::sys_reset()
}
