//! Finding the way back after a reset, and reading frames: whatever lies there, what is sound is found.

use super::layout::{Content, FRAME_HEAD_BYTES, FrameHead, MARK_BYTES, PAGE_HEAD_BYTES, PageHead, u64_at};
use super::{Cursor, Error, Outbox, WORD_BYTES_MAX, WhenFull, random_epoch};
use crate::apart::apart;
use core::ops::Range;
use embedded_storage_async::nor_flash::NorFlash;
use headwater_wire::crc32;

/// Flash is read in pieces of so many bytes where only its checksum is wanted.
const PIECE: usize = 64;
/// A frame's head in whole words of four bytes, which is what flash is read in.
const HEAD_READ_BYTES: usize = (FRAME_HEAD_BYTES + 3) & !3;

/// A sound frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// In front of it.
    pub at: Cursor,
    pub first: u64,
    pub length: usize,
    pub content: Content,
    /// Behind it.
    pub next: Cursor,
}

/// What lies at a place in a page.
pub(super) enum Seen {
    /// A sound frame, and the number of its first record, or the one that a mark holds.
    Frame(FrameHead, u64),
    /// Erased, up to the end of the page.
    Blank,
    /// Neither.
    Damage,
}

impl<F: NorFlash> Outbox<F> {
    /// Finds what is in the flash, or makes a new ring where none is. `seed` is random: epochs are made of it, and two
    /// starts must not have the same.
    ///
    /// # Errors
    /// [`Error::Geometry`], or [`Error::Flash`].
    pub async fn open(flash: F, range: Range<u32>, when_full: WhenFull, seed: u64) -> Result<Self, Error<F::Error>> {
        let length = range.end.saturating_sub(range.start);
        let page = Self::PAGE as u32;
        let whole =
            F::ERASE_SIZE > 0 && length.checked_rem(page) == Some(0) && range.start.checked_rem(page) == Some(0);
        let words = Self::WORD.is_power_of_two() && Self::WORD <= WORD_BYTES_MAX && 4 % F::READ_SIZE.max(1) == 0;
        let pages = length.checked_div(page).unwrap_or(0);
        let roomy = Self::PAGE >= 8 * Self::WORD.max(PAGE_HEAD_BYTES);
        if !whole || !words || !roomy || pages < 2 || range.end as usize > flash.capacity() {
            return Err(Error::Geometry);
        }
        let nowhere = Cursor { page: 0, at: 0, number: 1, epoch: 0 };
        let mut outbox = Outbox {
            flash,
            range,
            pages,
            when_full,
            oldest: 0,
            newest: PageHead { number: 0, epoch: 0, first: 1, head: 1 },
            write_at: page,
            next: 1,
            epoch: 0,
            head: nowhere,
            sent: nowhere,
            marked: 0,
            marked_at: 0,
            bodies: 0,
            given_up: 0,
            torn: None,
            counters: Default::default(),
            seed,
            opened: 1,
        };
        outbox.mount(seed).await?;
        outbox.opened = outbox.next;
        Ok(outbox)
    }

    async fn mount(&mut self, seed: u64) -> Result<(), Error<F::Error>> {
        let mut newest: Option<PageHead> = None;
        for page in 0..self.pages {
            if let Some(head) = apart!(self.page_head(page))
                && newest.is_none_or(|newest| head.number > newest.number)
            {
                newest = Some(head);
            }
        }
        let Some(newest) = newest else {
            // Nothing here is ours. The first page is made with the first frame, and lies at the beginning.
            self.flash.erase(self.range.start, self.range.end).await?;
            self.counters.erases += u64::from(self.pages);
            self.epoch = random_epoch(seed, 0);
            self.newest.number = self.pages.wrapping_sub(1);
            self.oldest = self.pages;
            self.head = self.end();
            self.sent = self.head;
            return Ok(());
        };
        self.newest = newest;
        self.oldest = self.find_oldest(newest.number).await;
        let (mut clean, head) = self.walk_newest().await;
        clean &= self.nothing_behind(newest.number).await;
        self.epoch = if clean { newest.epoch } else { random_epoch(seed, newest.epoch) };
        self.marked = head;
        self.head = self.page_of(head).await;
        self.sent = self.head;
        // Frames in front of the head, in its page.
        apart!(self.forget(head.wrapping_sub(1)));
        self.counters = Default::default();
        Ok(())
    }

    /// The oldest page that belongs to the ring; one that cannot be read in between costs itself alone.
    async fn find_oldest(&mut self, newest: u32) -> u32 {
        let mut oldest = newest;
        for back in 1..self.pages {
            let Some(number) = newest.checked_sub(back) else { break };
            if apart!(self.page_head(number)).is_some_and(|head| head.number == number) {
                oldest = number;
            }
        }
        oldest
    }

    /// Reads the newest page to its end. Says whether that is a clean end, and from where on nothing is released.
    async fn walk_newest(&mut self) -> (bool, u64) {
        let page = self.newest;
        let (mut clean, mut head) = (true, page.head);
        let mut at = Self::padded(PAGE_HEAD_BYTES) as u32;
        self.next = page.first;
        self.marked_at = at;
        loop {
            match self.look(page.number, at, self.next).await {
                Seen::Frame(frame, first) => {
                    let length = usize::from(frame.length);
                    at += Self::padded(FRAME_HEAD_BYTES + length) as u32;
                    if frame.alone || frame.content == Content::Mark {
                        head = head.max(first);
                        self.marked_at = at;
                    }
                    if frame.content != Content::Mark {
                        self.next = first.wrapping_add(u64::from(frame.count()));
                        self.bodies += u32::from(frame.length);
                    }
                }
                Seen::Blank => break,
                Seen::Damage => {
                    // What was cut short may be followed by what was not: flash can lose a bit anywhere.
                    clean = false;
                    at += Self::WORD as u32;
                }
            }
        }
        self.write_at = if clean { at } else { Self::PAGE as u32 };
        (clean, head.min(self.next))
    }

    /// Whether the place of the page behind the newest holds no page that was opened and then damaged.
    async fn nothing_behind(&mut self, newest: u32) -> bool {
        let next = newest.wrapping_add(1);
        let mut bytes = [0; PAGE_HEAD_BYTES];
        let at = self.address(next, 0);
        let is_read = apart!(self.read(at, &mut bytes));
        let is_older = PageHead::read(&bytes).is_some();
        is_read && (is_older || is_blank(&bytes))
    }

    /// The start of the page in which the number is, or would be.
    async fn page_of(&mut self, number: u64) -> Cursor {
        let mut found = None;
        for page in self.live_pages() {
            let Some(head) = apart!(self.page_head(page)) else { continue };
            if head.number == page && (found.is_none() || head.first <= number) {
                let at = Self::padded(PAGE_HEAD_BYTES) as u32;
                found = Some(Cursor { page, at, number: head.first, epoch: head.epoch });
            }
        }
        found.unwrap_or(self.end())
    }

    pub(super) async fn page_head(&mut self, page: u32) -> Option<PageHead> {
        let mut bytes = [0; PAGE_HEAD_BYTES];
        let at = self.address(page, 0);
        if !apart!(self.read(at, &mut bytes)) {
            return None;
        }
        let in_place = |head: &PageHead| head.number.checked_rem(self.pages) == page.checked_rem(self.pages);
        PageHead::read(&bytes).filter(in_place)
    }

    /// Whether the flash reads. One with error correction answers a torn word with an error: it holds nothing, that is all.
    async fn read(&mut self, at: u32, bytes: &mut [u8]) -> bool {
        self.flash.read(at, bytes).await.is_ok()
    }

    /// The first frame of records at or behind the place, and how many records are missing in front of it.
    pub(super) async fn find(&mut self, from: Cursor) -> Option<(Found, u64)> {
        let mut at = from;
        loop {
            let end = if at.page == self.newest.number { self.write_at } else { Self::PAGE as u32 };
            if at.at < end {
                match self.look(at.page, at.at, at.number).await {
                    Seen::Frame(frame, first) => {
                        let length = usize::from(frame.length);
                        let behind = at.at + Self::padded(FRAME_HEAD_BYTES + length) as u32;
                        if frame.content == Content::Mark {
                            at.at = behind;
                            continue;
                        }
                        let number = first.wrapping_add(u64::from(frame.count()));
                        let next = Cursor { at: behind, number, ..at };
                        let skipped = first.saturating_sub(from.number);
                        return Some((Found { at, first, length, content: frame.content, next }, skipped));
                    }
                    Seen::Damage => {
                        at.at += Self::WORD as u32;
                        continue;
                    }
                    Seen::Blank => {}
                }
            }
            // The next page that can be read.
            loop {
                if at.page == self.newest.number {
                    return None;
                }
                at.page = at.page.wrapping_add(1);
                if let Some(head) = apart!(self.page_head(at.page))
                    && head.number == at.page
                {
                    at.at = Self::padded(PAGE_HEAD_BYTES) as u32;
                    at.epoch = head.epoch;
                    at.number = head.first;
                    break;
                }
            }
        }
    }

    /// What lies there; `below` is a number close below those of the frame.
    pub(super) async fn look(&mut self, page: u32, at: u32, below: u64) -> Seen {
        let room = Self::PAGE.saturating_sub(at as usize);
        if room < HEAD_READ_BYTES {
            return Seen::Blank;
        }
        let mut bytes = [0; HEAD_READ_BYTES];
        let address = self.address(page, at);
        if !apart!(self.read(address, &mut bytes)) {
            return Seen::Damage;
        }
        let head = bytes.first_chunk().and_then(FrameHead::read);
        // Behind a head the body, and behind none nothing up to the end of the page.
        let (length, first) = match head {
            Some(head) => (usize::from(head.length), head.first(below)),
            None if is_blank(&bytes) => (room - FRAME_HEAD_BYTES, 0),
            None => return Seen::Damage,
        };
        if FRAME_HEAD_BYTES + length > room {
            return Seen::Damage;
        }
        let before = head.map_or(0, |head| head.sum_of_head(page, first));
        let Some(body) = self.scan(address, FRAME_HEAD_BYTES + length, before).await else {
            return Seen::Damage;
        };
        match head {
            None if body.is_blank => Seen::Blank,
            Some(head) if body.sum != head.sum => Seen::Damage,
            Some(head) if head.content != Content::Mark => Seen::Frame(head, first),
            Some(head) if length == MARK_BYTES => Seen::Frame(head, body.low),
            _ => Seen::Damage,
        }
    }

    /// Reads a frame of this length, with `before` in front of the checksum of what is behind its head; `None` if it cannot
    /// be read.
    async fn scan(&mut self, from: u32, length: usize, before: u32) -> Option<Body> {
        let mut body = Body { sum: before, low: 0, is_blank: true };
        let (mut piece, mut at, mut head) = ([0; PIECE], 0, FRAME_HEAD_BYTES);
        while at < length {
            let take = PIECE.min(length - at);
            // Reads are of whole words of four bytes.
            if !apart!(self.read(from + at as u32, piece.get_mut(..(take + 3) & !3)?)) {
                return None;
            }
            let bytes = piece.get(head..take)?;
            body.sum = crc32(body.sum, bytes);
            body.is_blank &= is_blank(bytes);
            body.low = u64_at(bytes, 0);
            (at, head) = (at + take, 0);
        }
        Some(body)
    }
}

/// What a body is known by.
struct Body {
    sum: u32,
    /// Its first number, if it is as short as a mark.
    low: u64,
    is_blank: bool,
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0xff)
}
