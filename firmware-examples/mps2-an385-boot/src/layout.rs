//! What lies where in the board's simulated flash, which is the 16 MB of PSRAM that QEMU keeps in a file (and of which the
//! processor may execute). The boot loader and the firmware that it starts share this file; `mps2-an385/link/ota/memory.x`
//! and `mps2-an385/run` repeat where the firmware lies.

use core::ops::Range;

/// Where the simulated flash begins in the processor's address space.
pub const PSRAM: usize = 0x2100_0000;
/// Erased at once.
pub const PAGE_BYTES: usize = 4096;
/// Programmed at once.
pub const WORD_BYTES: usize = 4;

// Offsets from the flash's beginning. What is below STATE is the outbox's.

/// The boot loader's state: whether to swap, and how far that is.
pub const STATE: Range<usize> = 0x10_0000..0x10_1000;
/// What the firmware knows of its updates.
#[allow(dead_code)] // the boot loader leaves it alone
pub const JOURNAL: Range<usize> = 0x10_1000..0x10_3000;
/// The firmware that runs.
pub const ACTIVE: Range<usize> = 0x11_0000..0x15_0000;
/// The firmware that comes, or the one before. One page more, which the swap needs.
pub const DFU: Range<usize> = 0x15_0000..0x19_1000;

const _: () = assert!(DFU.end - DFU.start == ACTIVE.end - ACTIVE.start + PAGE_BYTES);
const _: () = assert!(STATE.end <= JOURNAL.start && JOURNAL.end <= ACTIVE.start && ACTIVE.end <= DFU.start);
// VTOR of a processor with 32 interrupts: 48 words, up to the next power of two.
const _: () = assert!((PSRAM + ACTIVE.start).is_multiple_of(256));
