//! The Nucleo's boot loader: embassy-boot. It lies where the processor starts, brings the firmware that shall run into its
//! place, and jumps there. A new firmware runs on trial: if it has not marked itself good by the next reset, the one before
//! comes back. A power cut in the middle of the exchange is made up for at the next start.
//!
//! It checks no signature: the firmware did, before it asked for the exchange, and no other way leads into the flash. While it
//! exchanges, all three lights are on.

#![no_std]
#![no_main]

mod flash;
mod layout;
mod words;

use core::cell::RefCell;

use cortex_m::peripheral::SCB;
use cortex_m_rt::entry;
use embassy_boot::{AlignedBuffer, BootLoader, BootLoaderConfig, State};
use embassy_stm32::flash::Flash;
use embassy_stm32::gpio::{Level, Output, Speed};

use crate::flash::Part;
use crate::layout::{ACTIVE, DFU, FLASH, STATE};

/// Copied at once.
const COPY_BYTES: usize = 4096;
/// The chip's AXI SRAM, for the first word of a vector table.
const RAM: core::ops::RangeInclusive<u32> = 0x2400_0000..=0x2408_0000;

#[entry]
fn main() -> ! {
    let p = embassy_stm32::init(Default::default());
    let flash = RefCell::new(Flash::new_blocking(p.FLASH));
    let [active, dfu, state] = [ACTIVE, DFU, STATE].map(|range| Part::new(&flash, range));
    let mut boot = BootLoader::new(BootLoaderConfig { active, dfu, state });
    let mut bytes = AlignedBuffer([0; COPY_BYTES]);
    let is_exchange = matches!(boot.read_state(bytes.as_mut()), Ok(State::Swap | State::Revert));
    let level = if is_exchange { Level::High } else { Level::Low };
    let lights = (
        Output::new(p.PB0, level, Speed::Low),
        Output::new(p.PE1, level, Speed::Low),
        Output::new(p.PB14, level, Speed::Low),
    );
    if boot.prepare_boot(bytes.as_mut()).is_err() {
        again();
    }
    drop(lights);
    start()
}

/// Jumps to the firmware.
fn start() -> ! {
    let table = FLASH as u32 + ACTIVE.start;
    let mut first = [0; 8];
    let _ = words::read(ACTIVE.start, &mut first);
    let [a, b, c, d, e, f, g, h] = first;
    let (stack, reset) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    let is_code = (table..FLASH as u32 + ACTIVE.end).contains(&reset) && reset & 1 == 1;
    if !RAM.contains(&stack) || !is_code {
        again();
    }
    // SAFETY: a vector table is there. Nothing of this program is needed any more, and no interrupt is on.
    unsafe {
        (*SCB::PTR).vtor.write(table);
        cortex_m::asm::bootload(table as *const u32)
    }
}

/// There is no firmware, or the flash does not work: tries again, slowly.
fn again() -> ! {
    cortex_m::asm::delay(64_000_000); // about a second
    SCB::sys_reset()
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    again()
}
