//! What a device knows of its updates over a reset: one entry, written anew behind the last one and found again by its
//! number. Pages are used in turn, so a cut in any write or erase leaves the entry before it.

use crate::ota::Rejection;
use embedded_storage_async::nor_flash::NorFlash;
use headwater_wire::crc32;

/// Whole words of any flash.
const ENTRY_BYTES: usize = 32;
const ENTRY: u32 = ENTRY_BYTES as u32;
const FORMAT: u8 = 0x48;

/// How far an offer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// So many bytes of it are in flash.
    Download(u32),
    /// It was verified, and the boot loader was about to be told.
    Verified,
    /// It runs and was found good.
    Installed,
    /// It is not tried again.
    Rejected(Rejection),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Of the offer: its checksum.
    pub key: u32,
    pub stage: Stage,
}

impl Entry {
    fn to_bytes(self, number: u32) -> [u8; ENTRY_BYTES] {
        let (stage, more) = match self.stage {
            Stage::Download(position) => (1, position),
            Stage::Verified => (2, 0),
            Stage::Installed => (3, 0),
            Stage::Rejected(why) => (4, u32::from(why.code())),
        };
        let mut bytes = [0; ENTRY_BYTES];
        bytes[0] = FORMAT;
        bytes[1] = stage;
        bytes[4..8].copy_from_slice(&number.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.key.to_le_bytes());
        bytes[12..16].copy_from_slice(&more.to_le_bytes());
        let checksum = crc32(0, &bytes[..28]);
        bytes[28..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8; ENTRY_BYTES]) -> Option<(u32, Self)> {
        let word = |at: usize| {
            bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes).unwrap_or_default()
        };
        if bytes[0] != FORMAT || crc32(0, &bytes[..28]) != word(28) {
            return None;
        }
        let stage = match (bytes[1], word(12)) {
            (1, position) => Stage::Download(position),
            (2, _) => Stage::Verified,
            (3, _) => Stage::Installed,
            (4, code) => Stage::Rejected(Rejection::of_code(code as u8)?),
            _ => return None,
        };
        Some((word(4), Entry { key: word(8), stage }))
    }
}

/// At least two pages of flash.
pub(super) struct Journal<F> {
    flash: F,
    /// Number and place of the last entry.
    last: Option<(u32, u32)>,
}

impl<F: NorFlash> Journal<F> {
    const PAGE: u32 = F::ERASE_SIZE as u32;

    /// Whether the flash can hold one.
    pub fn fits(flash: &F) -> bool {
        let (word, read, page) = (F::WRITE_SIZE, F::READ_SIZE, F::ERASE_SIZE);
        ENTRY_BYTES.is_multiple_of(word)
            && ENTRY_BYTES.is_multiple_of(read)
            && page.is_multiple_of(ENTRY_BYTES)
            && flash.capacity() >= 2 * page
    }

    pub fn new(flash: F) -> Self {
        Journal { flash, last: None }
    }

    /// Finds the last entry.
    pub async fn open(&mut self) -> Result<Option<Entry>, F::Error> {
        let (mut newest, mut found) = (None, None);
        for slot in 0..self.slots() {
            if let Some((number, entry)) = Entry::read(&self.slot(slot).await?)
                && newest.is_none_or(|(before, _)| number > before)
            {
                (newest, found) = (Some((number, slot)), Some(entry));
            }
        }
        self.last = newest;
        Ok(found)
    }

    /// Writes the next entry.
    pub async fn append(&mut self, entry: Entry) -> Result<(), F::Error> {
        let (number, mut slot) = match self.last {
            Some((number, slot)) => (number.wrapping_add(1), slot + 1),
            None => (1, 0),
        };
        loop {
            if slot >= self.slots() {
                slot = 0;
            }
            let at = slot * ENTRY;
            if at.is_multiple_of(Self::PAGE) {
                self.flash.erase(at, at + Self::PAGE).await?;
            }
            // A write that was torn has left something here. The next page is erased, so this ends.
            if self.slot(slot).await?.iter().all(|byte| *byte == 0xff) {
                break;
            }
            slot += 1;
        }
        self.flash.write(slot * ENTRY, &entry.to_bytes(number)).await?;
        self.last = Some((number, slot));
        Ok(())
    }

    /// Of whole pages.
    fn slots(&self) -> u32 {
        let capacity = self.flash.capacity() as u32;
        (capacity - capacity % Self::PAGE) / ENTRY
    }

    async fn slot(&mut self, slot: u32) -> Result<[u8; ENTRY_BYTES], F::Error> {
        let mut bytes = [0; ENTRY_BYTES];
        self.flash.read(slot * ENTRY, &mut bytes).await?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::FlashSim;
    use embassy_futures::block_on;

    type Small = FlashSim<8, 128>;

    fn entry(position: u32) -> Entry {
        Entry { key: 5, stage: Stage::Download(position) }
    }

    #[test]
    fn a_cut_at_any_step_leaves_the_last_entry_or_the_one_before() {
        let mut flash = Small::new(2);
        let mut kept = None;
        for next in 1..40 {
            let mut whole = Journal::new(flash.clone());
            assert_eq!(block_on(whole.open()), Ok(kept));
            let before = whole.flash.steps;
            block_on(whole.append(entry(next))).unwrap();
            for cut in 0..whole.flash.steps - before {
                let mut torn = Journal::new(FlashSim { power: Some(cut), ..flash.clone() });
                let _ = block_on(torn.open());
                assert!(block_on(torn.append(entry(next))).is_err());
                let mut again = Journal::new(torn.flash.after_reset());
                let found = block_on(again.open()).unwrap();
                assert!(found == kept || found == Some(entry(next)), "{next} cut at {cut}: {found:?}");
                block_on(again.append(entry(99))).unwrap();
                assert_eq!(block_on(Journal::new(again.flash.clone()).open()), Ok(Some(entry(99))));
            }
            (flash, kept) = (whole.flash, Some(entry(next)));
        }
        assert!(flash.erased.iter().all(|erases| *erases > 3), "{:?}", flash.erased);
    }
}
