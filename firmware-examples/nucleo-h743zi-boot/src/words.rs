//! Reading flash that corrects errors, and survives what it cannot correct.
//!
//! Every 32-byte flash word carries ten check bits, and a word whose programming was cut off by a power failure may hold two
//! wrong bits. Reading it through a plain pointer is then a bus fault, the fault a reset, and the next boot reads the
//! same word again: one power cut at the wrong moment and the device never starts again. Here such a word reads as
//! zeros, which no checksum of a log takes for data, and the outbox skips it like any other torn write.

use core::sync::atomic::{Ordering, compiler_fence};

use embassy_stm32::pac;

use crate::layout::{BANK_BYTES, FLASH, FLASH_BYTES, WORD_BYTES};

/// Reads from this offset of the flash on; `None` beyond its end.
pub fn read(offset: u32, mut bytes: &mut [u8]) -> Option<()> {
    let mut offset = offset as usize;
    if bytes.len() > FLASH_BYTES.checked_sub(offset)? {
        return None;
    }
    while !bytes.is_empty() {
        let in_word = offset % WORD_BYTES;
        let (part, rest) = bytes.split_at_mut(bytes.len().min(WORD_BYTES - in_word));
        let word = read_word(offset - in_word);
        part.copy_from_slice(&word[in_word..in_word + part.len()]);
        offset += part.len();
        bytes = rest;
    }
    Some(())
}

/// One flash word, or zeros where its error correction gives up. `offset` is a multiple of the word within the flash.
fn read_word(offset: usize) -> [u8; WORD_BYTES] {
    debug_assert!(offset % WORD_BYTES == 0 && offset < FLASH_BYTES);
    let bank = pac::FLASH.bank(offset / BANK_BYTES);
    bank.ccr().write(|w| w.set_clr_dbeccerr(true));

    let mut words = [0_u32; WORD_BYTES / 4];
    // Armv7-M B1.5.4 and B3.2.8: with FAULTMASK set, code runs at priority -1, where CCR.BFHFNMIGN makes data bus
    // faults of loads harmless. Nothing else runs in between, so nobody else's fault is swallowed.
    const BFHFNMIGN: u32 = 1 << 8;
    // SAFETY: the addresses lie in the flash, which is always mapped; FAULTMASK and CCR are put back before anything
    // else can run, and both are this core's own.
    unsafe {
        let scb = &*cortex_m::peripheral::SCB::PTR;
        core::arch::asm!("cpsid f", options(nostack, preserves_flags));
        scb.ccr.modify(|ccr| ccr | BFHFNMIGN);
        cortex_m::asm::dsb();
        cortex_m::asm::isb();
        let start = (FLASH + offset) as *const u32;
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
