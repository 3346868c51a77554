//! A flash for tests: it programs each word once, tears what it does when its power is cut, fails when it is told to, and
//! counts.

use embedded_storage_async::nor_flash::{ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash};
use std::vec;
use std::vec::Vec;

/// Flash of words of `WORD` bytes and pages of `PAGE`, as strict as the strictest part.
#[derive(Clone, Debug)]
pub struct FlashSim<const WORD: usize, const PAGE: usize> {
    /// What is in it.
    pub bytes: Vec<u8>,
    /// Steps until the power goes; a byte that is programmed is one, and so is a sixteenth of a page that is erased.
    pub power: Option<u64>,
    /// Steps so far.
    pub steps: u64,
    /// Bytes programmed.
    pub programmed: u64,
    /// Erases of each page.
    pub erased: Vec<u64>,
    /// The next write programs so many bytes and fails then, with the power on.
    pub fail_next: Option<usize>,
    /// As flash with error correction a word that was not programmed to its end answers with an error until it is erased.
    pub has_ecc: bool,
    /// Words that cannot be read.
    pub unreadable: Vec<bool>,
}

/// Why the flash does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlashSimError {
    /// There is no power.
    Off,
    /// Not of whole words or pages, or beyond the end.
    Shape,
    /// The word was programmed before.
    Twice,
    /// It was told to fail.
    Worn,
    /// There is a word that error correction cannot mend.
    Unreadable,
}

impl NorFlashError for FlashSimError {
    fn kind(&self) -> NorFlashErrorKind {
        NorFlashErrorKind::Other
    }
}

impl<const WORD: usize, const PAGE: usize> FlashSim<WORD, PAGE> {
    /// Flash of so many pages, full of what was in it before.
    pub fn new(pages: usize) -> Self {
        let bytes = (0..pages * PAGE).map(|at| (at * 31) as u8).collect();
        FlashSim {
            bytes,
            power: None,
            steps: 0,
            programmed: 0,
            erased: vec![0; pages],
            fail_next: None,
            has_ecc: false,
            unreadable: vec![false; pages * PAGE / WORD],
        }
    }

    /// The same flash after a reset, with the power back.
    pub fn after_reset(&self) -> Self {
        FlashSim { power: None, ..self.clone() }
    }

    fn step(&mut self) -> Result<(), FlashSimError> {
        if let Some(left) = &mut self.power {
            *left = left.checked_sub(1).ok_or(FlashSimError::Off)?;
        }
        self.steps += 1;
        Ok(())
    }
}

impl<const WORD: usize, const PAGE: usize> ErrorType for FlashSim<WORD, PAGE> {
    type Error = FlashSimError;
}

impl<const WORD: usize, const PAGE: usize> ReadNorFlash for FlashSim<WORD, PAGE> {
    const READ_SIZE: usize = 4;

    async fn read(&mut self, at: u32, bytes: &mut [u8]) -> Result<(), FlashSimError> {
        let at = at as usize;
        if self.power == Some(0) {
            return Err(FlashSimError::Off);
        }
        if !at.is_multiple_of(4) || !bytes.len().is_multiple_of(4) {
            return Err(FlashSimError::Shape);
        }
        let words = self.unreadable.get(at / WORD..(at + bytes.len()).div_ceil(WORD)).ok_or(FlashSimError::Shape)?;
        if words.contains(&true) {
            return Err(FlashSimError::Unreadable);
        }
        bytes.copy_from_slice(self.bytes.get(at..at + bytes.len()).ok_or(FlashSimError::Shape)?);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl<const WORD: usize, const PAGE: usize> NorFlash for FlashSim<WORD, PAGE> {
    const WRITE_SIZE: usize = WORD;
    const ERASE_SIZE: usize = PAGE;

    async fn erase(&mut self, from: u32, to: u32) -> Result<(), FlashSimError> {
        let (from, to) = (from as usize, to as usize);
        if !from.is_multiple_of(PAGE) || !to.is_multiple_of(PAGE) || to > self.bytes.len() || from > to {
            return Err(FlashSimError::Shape);
        }
        for page in from / PAGE..to / PAGE {
            self.erased[page] += 1;
            for part in 0..16 {
                self.step()?;
                let at = page * PAGE + part * (PAGE / 16);
                self.bytes[at..at + PAGE / 16].fill(0xff);
                self.unreadable[at / WORD..(at + PAGE / 16).div_ceil(WORD)].fill(false);
            }
        }
        Ok(())
    }

    async fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), FlashSimError> {
        let at = at as usize;
        if !at.is_multiple_of(WORD) || !bytes.len().is_multiple_of(WORD) || at + bytes.len() > self.bytes.len() {
            return Err(FlashSimError::Shape);
        }
        if self.bytes[at..at + bytes.len()].iter().any(|byte| *byte != 0xff) {
            return Err(FlashSimError::Twice);
        }
        let fails_at = self.fail_next.take();
        for (offset, byte) in bytes.iter().enumerate() {
            let done = if fails_at == Some(offset) { Err(FlashSimError::Worn) } else { self.step() };
            if done.is_err() {
                self.unreadable[(at + offset) / WORD] |= self.has_ecc && !offset.is_multiple_of(WORD);
                return done;
            }
            self.bytes[at + offset] = *byte;
            self.programmed += 1;
        }
        if fails_at == Some(bytes.len()) { Err(FlashSimError::Worn) } else { Ok(()) }
    }
}
