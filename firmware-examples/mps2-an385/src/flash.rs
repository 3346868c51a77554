//! A NOR flash for a board that has none: a window of the 16 MB of PSRAM at 0x21000000, which the linker script leaves
//! alone and QEMU keeps in a file on the host. So it survives what a flash survives: a reset of the board, and a kill
//! of QEMU in the middle of anything.
//!
//! It behaves like NOR: programming only clears bits, erasing sets those of whole pages, both in order and word by
//! word, so that a kill leaves a page or a record half done. Programming a word twice without erasing it in between is
//! what many chips forbid; here it is done as the cells would (AND) and counted, for tests to look at. A new file is
//! all zeroes: a flash that nobody has erased yet.

use core::ops::Range;
use core::ptr;

use embassy_time::{Duration, Instant, Timer};
use embedded_storage_async::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};

const PSRAM: usize = 0x2100_0000;
pub const CAPACITY_MAX_BYTES: usize = 16 << 20;
const ERASED: u32 = u32::MAX;
const WORD_BYTES: usize = size_of::<u32>();

/// What the flash has done since the start.
#[derive(Clone, Copy, Default)]
pub struct Counters {
    pub words_programmed: u32,
    /// Of these, words that were not erased before.
    pub words_programmed_twice: u32,
    pub pages_erased: u32,
}

/// How long the flash takes.
#[derive(Clone, Copy)]
pub struct Timing {
    pub word: Duration,
    pub page: Duration,
}

impl Timing {
    pub const NONE: Self = Self { word: Duration::from_ticks(0), page: Duration::from_ticks(0) };
    /// About that of a microcontroller's own flash.
    pub const REAL: Self = Self { word: Duration::from_micros(16), page: Duration::from_millis(40) };
}

/// Where a picture lies, and what there is of it at most: the upper half of the window, which no flash of ours reaches.
const PICTURE: usize = PSRAM + CAPACITY_MAX_BYTES / 2;

/// The picture of so many bytes that the host has put into memory before the board was switched on.
pub fn picture(length: usize) -> &'static [u8] {
    assert!(length <= CAPACITY_MAX_BYTES / 2, "a picture of {length} bytes");
    // SAFETY: memory of this board that nobody writes while it runs.
    unsafe { core::slice::from_raw_parts(PICTURE as *const u8, length) }
}

/// The flash, with a programming unit of `WRITE` bytes and pages of `ERASE` bytes.
pub struct SimulatedFlash<const WRITE: usize = 4, const ERASE: usize = 4096> {
    /// Where it begins in the window.
    start: usize,
    capacity: usize,
    timing: Timing,
    pub counters: Counters,
}

impl<const WRITE: usize, const ERASE: usize> SimulatedFlash<WRITE, ERASE> {
    const SIZES_FIT: () = assert!(WRITE != 0 && WRITE.is_multiple_of(WORD_BYTES) && ERASE.is_multiple_of(WRITE));

    /// The first `capacity` bytes of the window.
    ///
    /// # Safety
    /// A part of the window belongs to one flash: make only one.
    pub unsafe fn new(capacity: usize, timing: Timing) -> Self {
        // SAFETY: the caller's.
        unsafe { Self::part(0..capacity, timing) }
    }

    /// These bytes of the window.
    ///
    /// # Safety
    /// As for [`SimulatedFlash::new`].
    pub unsafe fn part(range: Range<usize>, timing: Timing) -> Self {
        let () = Self::SIZES_FIT;
        let (start, capacity) = (range.start, range.len());
        assert!(range.end <= CAPACITY_MAX_BYTES && capacity.is_multiple_of(ERASE), "flash of {capacity} bytes");
        Self { start, capacity, timing, counters: Counters::default() }
    }

    fn check(&self, from: usize, to: usize, unit: usize) -> Result<(), NorFlashErrorKind> {
        if from > to || to > self.capacity {
            return Err(NorFlashErrorKind::OutOfBounds);
        }
        if !from.is_multiple_of(unit) || !to.is_multiple_of(unit) {
            return Err(NorFlashErrorKind::NotAligned);
        }
        Ok(())
    }

    fn word(&self, offset: usize) -> *mut u32 {
        debug_assert!(offset < self.capacity && offset.is_multiple_of(WORD_BYTES));
        (PSRAM + self.start + offset) as *mut u32
    }

    /// Clears the bits that are 0 in `value`. The processor stands still as long as the cells take, as it does when it
    /// programs the flash that it runs from.
    fn program(&mut self, offset: usize, value: u32) {
        let word = self.word(offset);
        let until = Instant::now() + self.timing.word;
        // SAFETY: `word` is within the window, which is ours alone.
        let before = unsafe { ptr::read_volatile(word) };
        unsafe { ptr::write_volatile(word, before & value) };
        self.counters.words_programmed += 1;
        self.counters.words_programmed_twice += u32::from(before != ERASED);
        while self.timing.word.as_ticks() != 0 && Instant::now() < until {}
    }

    fn erase_words(&mut self, from: usize, to: usize) {
        for offset in (from..to).step_by(WORD_BYTES) {
            // SAFETY: as in `program`.
            unsafe { ptr::write_volatile(self.word(offset), ERASED) };
        }
    }
}

impl<const WRITE: usize, const ERASE: usize> ErrorType for SimulatedFlash<WRITE, ERASE> {
    type Error = NorFlashErrorKind;
}

impl<const WRITE: usize, const ERASE: usize> ReadNorFlash for SimulatedFlash<WRITE, ERASE> {
    const READ_SIZE: usize = 1;

    async fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        let from = offset as usize;
        self.check(from, from.saturating_add(bytes.len()), Self::READ_SIZE)?;
        for (address, byte) in (PSRAM + self.start + from..).zip(bytes) {
            // SAFETY: within the window, by the check above.
            *byte = unsafe { ptr::read_volatile(address as *const u8) };
        }
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.capacity
    }
}

impl<const WRITE: usize, const ERASE: usize> NorFlash for SimulatedFlash<WRITE, ERASE> {
    const WRITE_SIZE: usize = WRITE;
    const ERASE_SIZE: usize = ERASE;

    async fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        let (from, to) = (from as usize, to as usize);
        self.check(from, to, ERASE)?;
        for page in (from..to).step_by(ERASE) {
            let half = page + (ERASE / 2).next_multiple_of(WORD_BYTES);
            self.erase_words(page, half);
            if self.timing.page.as_ticks() != 0 {
                Timer::after(self.timing.page).await;
            }
            self.erase_words(half, page + ERASE);
            self.counters.pages_erased += 1;
        }
        Ok(())
    }

    async fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        let from = offset as usize;
        self.check(from, from.saturating_add(bytes.len()), WRITE)?;
        for (offset, word) in (from..).step_by(WORD_BYTES).zip(bytes.chunks_exact(WORD_BYTES)) {
            self.program(offset, u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        }
        Ok(())
    }
}
