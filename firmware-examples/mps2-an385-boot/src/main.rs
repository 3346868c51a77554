//! The emulated board's boot loader: embassy-boot. It lies where the processor starts, brings the firmware that shall run
//! into its place, and jumps there. A new firmware runs on trial: if it has not marked itself good by the next reset, the one
//! before comes back. A power cut in the middle of the exchange is made up for at the next start.
//!
//! It checks no signature: the firmware did, before it asked for the exchange, and no other way leads into the flash.

#![no_std]
#![no_main]

mod flash;
mod layout;

use core::ptr;

use cortex_m_rt::entry;
use cortex_m_semihosting::debug;
use embassy_boot::{AlignedBuffer, BootLoader, BootLoaderConfig, State};

use crate::flash::Part;
use crate::layout::{ACTIVE, DFU, PAGE_BYTES, PSRAM, STATE};

/// All of the board's RAM, for the first word of a vector table.
const RAM: core::ops::RangeInclusive<usize> = 0x2000_0000..=0x2040_0000;

#[entry]
fn main() -> ! {
    uart::init();
    // SAFETY: the parts are made once and lie apart; this program runs from elsewhere.
    let (active, dfu, state) = unsafe { (Part::new(ACTIVE), Part::new(DFU), Part::new(STATE)) };
    let mut boot = BootLoader::new(BootLoaderConfig { active, dfu, state });
    let mut page = AlignedBuffer([0; PAGE_BYTES]);
    if boot.read_state(page.as_mut()) == Ok(State::Swap) {
        say("boot loader: exchanges the firmware\n");
    }
    let Ok(before) = boot.prepare_boot(page.as_mut()) else { end("boot loader: the flash does not work\n") };
    if before == State::Swap {
        match boot.read_state(page.as_mut()) {
            Ok(State::Revert) => say("boot loader: the firmware did not mark itself good; the one before is back\n"),
            _ => say("boot loader: a new firmware runs on trial\n"),
        }
    }
    start()
}

/// Jumps to the firmware.
fn start() -> ! {
    let table = (PSRAM + ACTIVE.start) as *const u32;
    // SAFETY: the flash is memory.
    let (stack, reset) = unsafe { (ptr::read_volatile(table) as usize, ptr::read_volatile(table.add(1)) as usize) };
    if !RAM.contains(&stack) || !(PSRAM + ACTIVE.start..PSRAM + ACTIVE.end).contains(&reset) || reset & 1 == 0 {
        end("boot loader: no firmware\n");
    }
    // SAFETY: a vector table is there. Nothing of this program is needed any more, and no interrupt is on.
    unsafe {
        (*cortex_m::peripheral::SCB::PTR).vtor.write(table as u32);
        cortex_m::asm::bootload(table)
    }
}

fn say(text: &str) {
    text.bytes().for_each(uart::put);
}

fn end(text: &str) -> ! {
    say(text);
    loop {
        debug::exit(debug::EXIT_FAILURE);
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    end("boot loader: its partitions do not fit\n")
}

/// UART0, which QEMU shows on its standard error.
mod uart {
    use core::ptr;

    const UART0: usize = 0x4000_4000;
    const STATE: usize = UART0 + 0x4;
    const CTRL: usize = UART0 + 0x8;
    const BAUD_DIVISOR: usize = UART0 + 0x10;

    pub fn init() {
        // SAFETY: registers of a device that this board has.
        unsafe {
            ptr::write_volatile(BAUD_DIVISOR as *mut u32, 25_000_000 / 115_200);
            ptr::write_volatile(CTRL as *mut u32, 1);
        }
    }

    pub fn put(byte: u8) {
        // SAFETY: as above.
        unsafe {
            while ptr::read_volatile(STATE as *const u32) & 1 != 0 {}
            ptr::write_volatile(UART0 as *mut u32, u32::from(byte));
        }
    }
}
