//! A part of the simulated flash for whoever blocks: as strict as the firmware's own view of it (`mps2-an385/src/flash.rs`),
//! with nothing of its clocks and counters.

use core::ops::Range;
use core::ptr;

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};

use crate::layout::{PAGE_BYTES, PSRAM, WORD_BYTES};

pub struct Part {
    start: usize,
    bytes: usize,
}

impl Part {
    /// The part of the flash at these offsets.
    ///
    /// # Safety
    /// It belongs to one `Part`, and no code runs from it while it is written.
    pub unsafe fn new(range: Range<usize>) -> Self {
        Part { start: PSRAM + range.start, bytes: range.end - range.start }
    }

    /// The address of the bytes, once they are known to be in the part and whole units.
    fn address(&self, from: u32, bytes: usize, unit: usize) -> Result<usize, NorFlashErrorKind> {
        let from = from as usize;
        let end = from.checked_add(bytes).ok_or(NorFlashErrorKind::OutOfBounds)?;
        if end > self.bytes {
            return Err(NorFlashErrorKind::OutOfBounds);
        }
        if !from.is_multiple_of(unit) || !bytes.is_multiple_of(unit) {
            return Err(NorFlashErrorKind::NotAligned);
        }
        Ok(self.start + from)
    }
}

impl ErrorType for Part {
    type Error = NorFlashErrorKind;
}

impl ReadNorFlash for Part {
    const READ_SIZE: usize = 1;

    fn read(&mut self, from: u32, bytes: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        let address = self.address(from, bytes.len(), Self::READ_SIZE)?;
        for (address, byte) in (address..).zip(bytes) {
            // SAFETY: within the part, which is memory.
            *byte = unsafe { ptr::read_volatile(address as *const u8) };
        }
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes
    }
}

impl NorFlash for Part {
    const WRITE_SIZE: usize = WORD_BYTES;
    const ERASE_SIZE: usize = PAGE_BYTES;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        let bytes = to.checked_sub(from).ok_or(NorFlashErrorKind::OutOfBounds)? as usize;
        let address = self.address(from, bytes, PAGE_BYTES)?;
        for word in (address..address + bytes).step_by(WORD_BYTES) {
            // SAFETY: within the part, which is ours alone.
            unsafe { ptr::write_volatile(word as *mut u32, u32::MAX) };
        }
        Ok(())
    }

    fn write(&mut self, from: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        let address = self.address(from, bytes.len(), WORD_BYTES)?;
        for (word, bytes) in (address..).step_by(WORD_BYTES).zip(bytes.as_chunks().0) {
            let word = word as *mut u32;
            // SAFETY: as in `erase`. Programming only clears bits.
            unsafe { ptr::write_volatile(word, ptr::read_volatile(word) & u32::from_le_bytes(*bytes)) };
        }
        Ok(())
    }
}
