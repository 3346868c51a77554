//! The second flash bank as an asynchronous NOR flash for the outbox.
//!
//! embassy's driver does the erasing and writing. Reading is ours because of the chip's error correction: every
//! 32-byte flash word carries ten check bits, and a word whose programming was cut off by a power failure may hold two
//! wrong bits. Reading it through a plain pointer is then a bus fault, the fault a reset, and the next boot reads the
//! same word again: one power cut at the wrong moment and the device never starts again. Here such a word reads as
//! zeros, which no checksum of a log takes for data, and the outbox skips it like any other torn write.

use core::ops::Range;
use core::sync::atomic::{Ordering, compiler_fence};

use embassy_stm32::Peri;
use embassy_stm32::flash::{Async, Bank2Region, Error, Flash, InterruptHandler};
use embassy_stm32::interrupt::typelevel::{Binding, FLASH as FlashInterrupt};
use embassy_stm32::pac;
use embassy_stm32::peripherals::FLASH;
use embedded_storage_async::nor_flash::{ErrorType, NorFlash, ReadNorFlash};

const BASE: usize = 0x0810_0000;
const BYTES: usize = 1024 * 1024;
const WORD_BYTES: usize = 32;

/// Offsets count from the start of the bank.
pub struct Bank2(Bank2Region<'static, Async>);

impl Bank2 {
    /// The linker keeps the code in bank 1, so the outbox may have all of this one.
    pub const WHOLE: Range<u32> = 0..BYTES as u32;

    pub fn new(
        peripheral: Peri<'static, FLASH>,
        irq: impl Binding<FlashInterrupt, InterruptHandler> + 'static,
    ) -> Self {
        Self(Flash::new(peripheral, irq).into_regions().bank2_region)
    }
}

impl ErrorType for Bank2 {
    type Error = Error;
}

impl ReadNorFlash for Bank2 {
    const READ_SIZE: usize = 1;

    async fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Error> {
        let mut offset = offset as usize;
        if offset > BYTES || bytes.len() > BYTES - offset {
            return Err(Error::Size);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let in_word = offset % WORD_BYTES;
            let (part, after) = rest.split_at_mut(rest.len().min(WORD_BYTES - in_word));
            let word = read_word(offset - in_word);
            part.copy_from_slice(&word[in_word..in_word + part.len()]);
            offset += part.len();
            rest = after;
        }
        Ok(())
    }

    fn capacity(&self) -> usize {
        BYTES
    }
}

impl NorFlash for Bank2 {
    const WRITE_SIZE: usize = <Bank2Region<'static, Async> as NorFlash>::WRITE_SIZE;
    const ERASE_SIZE: usize = <Bank2Region<'static, Async> as NorFlash>::ERASE_SIZE;

    async fn erase(&mut self, from: u32, to: u32) -> Result<(), Error> {
        self.0.erase(from, to).await
    }

    async fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        self.0.write(offset, bytes).await
    }
}

/// One flash word, or zeros where its error correction gives up. `offset` is a multiple of the word within the bank.
fn read_word(offset: usize) -> [u8; WORD_BYTES] {
    debug_assert!(offset % WORD_BYTES == 0 && offset < BYTES);
    let bank = pac::FLASH.bank(1);
    bank.ccr().write(|w| w.set_clr_dbeccerr(true));

    let mut words = [0_u32; WORD_BYTES / 4];
    // Armv7-M B1.5.4 and B3.2.8: with FAULTMASK set, code runs at priority -1, where CCR.BFHFNMIGN makes data bus
    // faults of loads harmless. Nothing else runs in between, so nobody else's fault is swallowed.
    const BFHFNMIGN: u32 = 1 << 8;
    // SAFETY: the addresses lie in bank 2, which is always mapped; FAULTMASK and CCR are put back before anything
    // else can run, and both are this core's own.
    unsafe {
        let scb = &*cortex_m::peripheral::SCB::PTR;
        core::arch::asm!("cpsid f", options(nostack, preserves_flags));
        scb.ccr.modify(|ccr| ccr | BFHFNMIGN);
        cortex_m::asm::dsb();
        cortex_m::asm::isb();
        let start = (BASE + offset) as *const u32;
        for (index, word) in words.iter_mut().enumerate() {
            *word = start.add(index).read_volatile();
        }
        cortex_m::asm::dsb();
        scb.ccr.modify(|ccr| ccr & !BFHFNMIGN);
        core::arch::asm!("cpsie f", options(nostack, preserves_flags));
    }
    compiler_fence(Ordering::SeqCst);

    let mut bytes = [0; WORD_BYTES];
    if !bank.sr().read().dbeccerr() {
        for (four, word) in bytes.chunks_exact_mut(4).zip(words) {
            four.copy_from_slice(&word.to_le_bytes());
        }
    }
    bank.ccr().write(|w| w.set_clr_dbeccerr(true));
    bytes
}
