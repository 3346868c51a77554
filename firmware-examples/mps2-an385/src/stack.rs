//! How deep the stack gets: it is painted at the start, and what was overwritten tells.

use core::mem::size_of;

/// Far deeper than anything here goes.
const PAINTED_BYTES: usize = 128 * 1024;
/// What `paint` itself may stand on.
const IN_USE_BYTES: usize = 1024;
const PAINT: u32 = 0xC5C5_C5C5;

unsafe extern "C" {
    /// Above the first word of the stack, from cortex-m-rt. It grows down.
    static _stack_start: u32;
}

fn words() -> (*mut u32, usize) {
    let top = &raw const _stack_start as usize;
    ((top - PAINTED_BYTES) as *mut u32, PAINTED_BYTES / size_of::<u32>())
}

/// First thing of all, while the stack is short.
pub fn paint() {
    let (bottom, count) = words();
    for word in 0..count - IN_USE_BYTES / size_of::<u32>() {
        // SAFETY: the linker leaves nearly 4 MB to the stack, and what is painted lies below what is in use.
        unsafe { bottom.add(word).write_volatile(PAINT) };
    }
}

/// Bytes from the top down to the deepest word that was written.
pub fn used() -> usize {
    let (bottom, count) = words();
    // SAFETY: as above; whatever stands there may be read as words.
    let untouched = (0..count).take_while(|word| unsafe { bottom.add(*word).read_volatile() } == PAINT).count();
    (count - untouched) * size_of::<u32>()
}
