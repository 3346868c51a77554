//! RAM as the outbox's flash: retained RAM that survives a deep sleep or a reset, or plain RAM for a board with no flash to
//! spare, whose outbox then lasts as long as its power.

use embedded_storage_async::nor_flash::{ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash};

/// RAM in pages of `PAGE` bytes (256 at least) that behaves as flash does. Whatever stands in it at the beginning, the
/// outbox finds out whether it is its own.
#[derive(Debug)]
pub struct RamFlash<'a, const PAGE: usize = 512> {
    bytes: &'a mut [u8],
}

impl<'a, const PAGE: usize> RamFlash<'a, PAGE> {
    /// All of `bytes` that is whole pages.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        RamFlash { bytes }
    }

    /// The range for [`Outbox::open`](crate::outbox::Outbox::open).
    pub fn range(&self) -> core::ops::Range<u32> {
        0..(self.bytes.len() - self.bytes.len() % PAGE) as u32
    }

    fn part(&mut self, at: u32, length: usize) -> Result<&mut [u8], OutOfBounds> {
        let at = at as usize;
        self.bytes.get_mut(at..at.saturating_add(length)).ok_or(OutOfBounds)
    }
}

/// Beyond the end of the RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct OutOfBounds;

impl NorFlashError for OutOfBounds {
    fn kind(&self) -> NorFlashErrorKind {
        NorFlashErrorKind::OutOfBounds
    }
}

impl<const PAGE: usize> ErrorType for RamFlash<'_, PAGE> {
    type Error = OutOfBounds;
}

impl<const PAGE: usize> ReadNorFlash for RamFlash<'_, PAGE> {
    const READ_SIZE: usize = 1;

    async fn read(&mut self, at: u32, bytes: &mut [u8]) -> Result<(), OutOfBounds> {
        bytes.copy_from_slice(self.part(at, bytes.len())?);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl<const PAGE: usize> NorFlash for RamFlash<'_, PAGE> {
    const WRITE_SIZE: usize = 4;
    const ERASE_SIZE: usize = PAGE;

    async fn erase(&mut self, from: u32, to: u32) -> Result<(), OutOfBounds> {
        self.part(from, to.saturating_sub(from) as usize)?.fill(0xff);
        Ok(())
    }

    async fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), OutOfBounds> {
        self.part(at, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }
}
