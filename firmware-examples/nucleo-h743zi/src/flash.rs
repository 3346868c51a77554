//! The chip's flash as an asynchronous NOR flash. embassy's driver does the erasing and writing; reading is ours, because of
//! the chip's error correction: see `words`, which the boot loader has as well.

use embassy_stm32::Peri;
use embassy_stm32::flash::{Async, Error, Flash, InterruptHandler};
use embassy_stm32::interrupt::typelevel::{Binding, FLASH as FlashInterrupt};
use embassy_stm32::peripherals::FLASH;
use embedded_storage_async::nor_flash::{ErrorType, NorFlash, ReadNorFlash};

use crate::layout::{FLASH_BYTES, SECTOR_BYTES, WORD_BYTES};
use crate::words;

/// Offsets count from the start of the flash.
pub struct Chip(Flash<'static, Async>);

impl Chip {
    pub fn new(
        peripheral: Peri<'static, FLASH>,
        irq: impl Binding<FlashInterrupt, InterruptHandler> + 'static,
    ) -> Self {
        Self(Flash::new(peripheral, irq))
    }
}

impl ErrorType for Chip {
    type Error = Error;
}

impl ReadNorFlash for Chip {
    const READ_SIZE: usize = 1;

    async fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Error> {
        words::read(offset, bytes).ok_or(Error::Size)
    }

    fn capacity(&self) -> usize {
        FLASH_BYTES
    }
}

impl NorFlash for Chip {
    const WRITE_SIZE: usize = WORD_BYTES;
    const ERASE_SIZE: usize = SECTOR_BYTES;

    async fn erase(&mut self, from: u32, to: u32) -> Result<(), Error> {
        self.0.erase(from, to).await
    }

    async fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        self.0.write(offset, bytes).await
    }
}
