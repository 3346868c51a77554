//! What lies where in the chip's 2 MB of flash, which are two banks of eight sectors. The boot loader and the firmware that it
//! starts share this file; `nucleo-h743zi/link/ota/memory.x` and `ota-image` repeat where the firmware lies.
//!
//! The controller erases one bank while the other is read: what is written while the firmware runs is in the second bank,
//! the code in the first. Only the boot loader's state is beside the code, and is written when a reset is near.

use core::ops::Range;

/// Where the flash begins in the processor's address space.
pub const FLASH: usize = 0x0800_0000;
pub const FLASH_BYTES: usize = 2 << 20;
pub const BANK_BYTES: usize = 1 << 20;
/// Erased at once.
pub const SECTOR_BYTES: usize = 128 << 10;
/// Programmed at once, and once: each word has check bits.
pub const WORD_BYTES: usize = 32;

// Offsets from the flash's beginning, in sectors. The first is the boot loader's.

/// The boot loader's state: whether to swap, and how far that is.
pub const STATE: Range<u32> = sectors(1, 2);
/// The firmware that runs.
pub const ACTIVE: Range<u32> = sectors(2, 5);
/// The firmware that comes, or the one before. One sector more, which the swap needs.
pub const DFU: Range<u32> = sectors(8, 12);
/// What the firmware knows of its updates.
#[allow(dead_code)] // the boot loader leaves it alone
pub const JOURNAL: Range<u32> = sectors(12, 14);
/// The firmware's outbox.
pub const OUTBOX: Range<u32> = sectors(14, 16);

const fn sectors(from: usize, to: usize) -> Range<u32> {
    (from * SECTOR_BYTES) as u32..(to * SECTOR_BYTES) as u32
}

const _: () = assert!(DFU.end - DFU.start == ACTIVE.end - ACTIVE.start + SECTOR_BYTES as u32);
const _: () = assert!(OUTBOX.end as usize == FLASH_BYTES && ACTIVE.end as usize <= BANK_BYTES);
// VTOR of a processor with 150 interrupts: 166 words, up to the next power of two.
const _: () = assert!((FLASH + ACTIVE.start as usize).is_multiple_of(1024));
