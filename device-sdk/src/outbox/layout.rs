//! How frames lie in flash (pure). All numbers little-endian, everything aligned to the flash's write size.
//!
//! ```text
//! page:   magic "HWP2" | number u32 | epoch u32 | first u64 | head u64 | CRC-32 of these     then frames until blank
//! frame:  CRC-32 | first u16 | length u16 | kind, alone, count u16 | body | 0xff up to the next word
//!         kind in 2 bits, alone in 1, count in 13
//! ```
//!
//! A page is an erase unit. Pages are numbered without end and lie at `number % pages`, so erases go round. A frame's
//! checksum begins with the number of its page and the whole number of its first record, of which `first` is the low end:
//! what an erase left behind is never taken for a frame, and no frame gets another number than its own. `alone` says that
//! everything in front of the frame was released when it was written: so a device that empties its outbox before each sleep
//! writes nothing but its records. A mark is a frame without records whose body says from where on nothing has been
//! released; so do the pages' heads. Nothing is ever programmed twice.
//!
//! A frame's head has ten bytes, and not one more: with eleven a record of 85 bytes would need a fourth word of 32.

use headwater_wire::{Kind, crc32};

pub const PAGE_HEAD_BYTES: usize = 32;
pub const FRAME_HEAD_BYTES: usize = 10;
/// The body of a mark.
pub const MARK_BYTES: usize = 8;
/// `kind` of a mark, whose count is 0. It is that of parts of blobs as well, which have a count and never lie in flash.
const MARK: u16 = 3;
const ALONE: u16 = 1 << 13;
const MAGIC: u32 = u32::from_le_bytes(*b"HWP2");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHead {
    pub number: u32,
    pub epoch: u32,
    /// The number that the first record of this page gets.
    pub first: u64,
    /// When the page was opened everything below was released.
    pub head: u64,
}

impl PageHead {
    pub fn to_bytes(self) -> [u8; PAGE_HEAD_BYTES] {
        let mut bytes = [0; PAGE_HEAD_BYTES];
        put(&mut bytes, 0, &MAGIC.to_le_bytes());
        put(&mut bytes, 4, &self.number.to_le_bytes());
        put(&mut bytes, 8, &self.epoch.to_le_bytes());
        put(&mut bytes, 12, &self.first.to_le_bytes());
        put(&mut bytes, 20, &self.head.to_le_bytes());
        let sum = crc32(0, bytes.get(..28).unwrap_or_default());
        put(&mut bytes, 28, &sum.to_le_bytes());
        bytes
    }

    pub fn read(bytes: &[u8; PAGE_HEAD_BYTES]) -> Option<Self> {
        let sound = u32_at(bytes, 0) == MAGIC && u32_at(bytes, 28) == crc32(0, bytes.get(..28)?);
        let (number, epoch) = (u32_at(bytes, 4), u32_at(bytes, 8));
        sound.then(|| PageHead { number, epoch, first: u64_at(bytes, 12), head: u64_at(bytes, 20) })
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Records { kind: Kind, count: u16 },
    Mark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    pub sum: u32,
    /// The low end of the number of the first record.
    pub first_low: u16,
    /// Of the body, in bytes.
    pub length: u16,
    /// Everything in front of it was released when it was written.
    pub alone: bool,
    pub content: Content,
}

impl FrameHead {
    /// The head of a frame in the page of this number.
    pub fn new(page: u32, first: u64, alone: bool, content: Content, body: &[u8]) -> Self {
        let mut head = FrameHead { sum: 0, first_low: first as u16, length: body.len() as u16, alone, content };
        head.sum = crc32(head.sum_of_head(page, first), body);
        head
    }

    pub fn to_bytes(self) -> [u8; FRAME_HEAD_BYTES] {
        let mut bytes = [0; FRAME_HEAD_BYTES];
        put(&mut bytes, 0, &self.sum.to_le_bytes());
        put(&mut bytes, 4, &self.first_low.to_le_bytes());
        put(&mut bytes, 6, &self.length.to_le_bytes());
        put(&mut bytes, 8, &self.content_bits().to_le_bytes());
        bytes
    }

    /// `None` where no frame can be: erased flash, or what is left of one.
    pub fn read(bytes: &[u8; FRAME_HEAD_BYTES]) -> Option<Self> {
        let bits = u16::from_le_bytes([bytes[8], bytes[9]]);
        let content = match (bits >> 14, bits & (ALONE - 1)) {
            (MARK, 0) => Content::Mark,
            (MARK, _) | (_, 0) => return None,
            (kind, count) => Content::Records { kind: Kind::of(kind as u8)?, count },
        };
        let first_low = u16::from_le_bytes([bytes[4], bytes[5]]);
        let length = u16::from_le_bytes([bytes[6], bytes[7]]);
        Some(FrameHead { sum: u32_at(bytes, 0), first_low, length, alone: bits & ALONE > 0, content })
    }

    /// What the checksum of the body is added to.
    pub fn sum_of_head(&self, page: u32, first: u64) -> u32 {
        let place = crc32(crc32(0, &page.to_le_bytes()), &first.to_le_bytes());
        crc32(place, self.to_bytes().get(4..).unwrap_or_default())
    }

    pub fn count(&self) -> u16 {
        match self.content {
            Content::Records { count, .. } => count,
            Content::Mark => 0,
        }
    }

    /// The whole number whose low end stands here, seen from one close below it. A mark's is 0.
    pub fn first(&self, below: u64) -> u64 {
        match self.content {
            Content::Records { .. } => below.wrapping_add(u64::from(self.first_low.wrapping_sub(below as u16))),
            Content::Mark => 0,
        }
    }

    fn content_bits(&self) -> u16 {
        let bits = match self.content {
            Content::Records { kind, count } => (kind as u16) << 14 | count,
            Content::Mark => MARK << 14,
        };
        bits | if self.alone { ALONE } else { 0 }
    }
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = to.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_back() {
        let page = PageHead { number: 7, epoch: 0xdead_beef, first: 1 << 40, head: (1 << 40) - 5 };
        assert_eq!(PageHead::read(&page.to_bytes()), Some(page));
        let mut flipped = page.to_bytes();
        flipped[9] ^= 1;
        assert_eq!(PageHead::read(&flipped), None);
        let content = Content::Records { kind: Kind::Readings, count: 4_096 };
        let first = (1 << 40) + 3;
        for alone in [false, true] {
            let frame = FrameHead::new(7, first, alone, content, b"body");
            assert_eq!(FrameHead::read(&frame.to_bytes()), Some(frame));
            assert_eq!(frame.first(1 << 40), first);
            assert_eq!(frame.first(first - 0xffff), first);
            assert_ne!(frame.first(first - 0x1_0000), first);
            for (page, first) in [(8, first), (7, first + 0x1_0000)] {
                let other = FrameHead::new(page, first, alone, content, b"body");
                assert_ne!(other.sum, frame.sum, "another page, another number: another checksum");
            }
        }
        let mark = FrameHead::new(7, 0, false, Content::Mark, &[0; MARK_BYTES]);
        assert_eq!(FrameHead::read(&mark.to_bytes()), Some(mark));
        assert_eq!(FrameHead::read(&[0xff; FRAME_HEAD_BYTES]), None, "erased");
    }
}
