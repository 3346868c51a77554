//! How frames lie in flash (pure). All numbers little-endian, everything aligned to the flash's write size.
//!
//! ```text
//! page:   magic "HWP1" | number u32 | epoch u32 | first u64 | head u64 | CRC-32 of these     then frames until blank
//! frame:  CRC-32 | first u32 | length u16 | kind (3 bits) and count (13 bits) u16 | body | 0xff up to the next word
//! ```
//!
//! A page is an erase unit. Pages are numbered without end and lie at `number % pages`, so erases go round. A frame's
//! checksum begins with the number of its page: what an erase left behind is never taken for a frame. `first` is the low
//! half of the number of the first record. A mark is a frame without records whose body says from where on nothing has
//! been released; so do the pages' heads. Nothing is ever programmed twice.

use headwater_wire::{Kind, crc32};

pub const PAGE_HEAD_BYTES: usize = 32;
pub const FRAME_HEAD_BYTES: usize = 12;
/// The body of a mark.
pub const MARK_BYTES: usize = 8;
/// `kind` of a mark.
const MARK: u16 = 7;
const MAGIC: u32 = u32::from_le_bytes(*b"HWP1");

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
    pub first_low: u32,
    /// Of the body, in bytes.
    pub length: u16,
    pub content: Content,
}

impl FrameHead {
    /// The head of a frame in the page of this number.
    pub fn new(page: u32, first: u64, content: Content, body: &[u8]) -> Self {
        let mut head = FrameHead { sum: 0, first_low: first as u32, length: body.len() as u16, content };
        head.sum = crc32(head.sum_of_head(page), body);
        head
    }

    pub fn to_bytes(self) -> [u8; FRAME_HEAD_BYTES] {
        let mut bytes = [0; FRAME_HEAD_BYTES];
        put(&mut bytes, 0, &self.sum.to_le_bytes());
        put(&mut bytes, 4, &self.first_low.to_le_bytes());
        put(&mut bytes, 8, &self.length.to_le_bytes());
        put(&mut bytes, 10, &self.content_bits().to_le_bytes());
        bytes
    }

    /// `None` where no frame can be: erased flash, or what is left of one.
    pub fn read(bytes: &[u8; FRAME_HEAD_BYTES]) -> Option<Self> {
        let bits = u16::from_le_bytes([bytes[10], bytes[11]]);
        let content = match (bits >> 13, bits & 0x1fff) {
            (MARK, 0) => Content::Mark,
            (kind, count) if count > 0 => Content::Records { kind: Kind::of(kind as u8)?, count },
            _ => return None,
        };
        let length = u16::from_le_bytes([bytes[8], bytes[9]]);
        Some(FrameHead { sum: u32_at(bytes, 0), first_low: u32_at(bytes, 4), length, content })
    }

    /// What the checksum of the body is added to.
    pub fn sum_of_head(&self, page: u32) -> u32 {
        crc32(crc32(0, &page.to_le_bytes()), self.to_bytes().get(4..).unwrap_or_default())
    }

    pub fn count(&self) -> u16 {
        match self.content {
            Content::Records { count, .. } => count,
            Content::Mark => 0,
        }
    }

    /// The whole number whose low half stands here, seen from one close below it.
    pub fn first(&self, below: u64) -> u64 {
        below.wrapping_add(u64::from(self.first_low.wrapping_sub(below as u32)))
    }

    fn content_bits(&self) -> u16 {
        match self.content {
            Content::Records { kind, count } => (kind as u16) << 13 | count,
            Content::Mark => MARK << 13,
        }
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
        let frame = FrameHead::new(7, (1 << 40) + 3, content, b"body");
        assert_eq!(FrameHead::read(&frame.to_bytes()), Some(frame));
        assert_eq!(frame.first(1 << 40), (1 << 40) + 3);
        assert_ne!(FrameHead::new(8, (1 << 40) + 3, content, b"body").sum, frame.sum, "another page, another checksum");
        assert_eq!(FrameHead::read(&[0xff; FRAME_HEAD_BYTES]), None, "erased");
    }
}
