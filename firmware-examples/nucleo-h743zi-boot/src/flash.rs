//! A part of the flash for whoever blocks.

use core::cell::RefCell;
use core::ops::Range;

use embassy_stm32::flash::{Blocking, Error, Flash};
use embedded_storage::nor_flash::{ErrorType, NorFlash, ReadNorFlash};

use crate::layout::{SECTOR_BYTES, WORD_BYTES};
use crate::words;

pub struct Part<'a> {
    flash: &'a RefCell<Flash<'static, Blocking>>,
    range: Range<u32>,
}

impl<'a> Part<'a> {
    /// The part of the flash at these offsets.
    pub fn new(flash: &'a RefCell<Flash<'static, Blocking>>, range: Range<u32>) -> Self {
        Part { flash, range }
    }

    /// The offset in the flash, once so many bytes from there on are known to be in the part.
    fn offset(&self, from: u32, bytes: usize) -> Result<u32, Error> {
        let end = u32::try_from(bytes).ok().and_then(|bytes| from.checked_add(bytes)).ok_or(Error::Size)?;
        if end as usize > self.range.len() {
            return Err(Error::Size);
        }
        Ok(self.range.start + from)
    }
}

impl ErrorType for Part<'_> {
    type Error = Error;
}

impl ReadNorFlash for Part<'_> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, from: u32, bytes: &mut [u8]) -> Result<(), Error> {
        words::read(self.offset(from, bytes.len())?, bytes).ok_or(Error::Size)
    }

    fn capacity(&self) -> usize {
        self.range.len()
    }
}

impl NorFlash for Part<'_> {
    const WRITE_SIZE: usize = WORD_BYTES;
    const ERASE_SIZE: usize = SECTOR_BYTES;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Error> {
        let bytes = to.checked_sub(from).ok_or(Error::Size)?;
        let from = self.offset(from, bytes as usize)?;
        self.flash.borrow_mut().blocking_erase(from, from + bytes)
    }

    fn write(&mut self, from: u32, bytes: &[u8]) -> Result<(), Error> {
        let from = self.offset(from, bytes.len())?;
        self.flash.borrow_mut().blocking_write(from, bytes)
    }
}
