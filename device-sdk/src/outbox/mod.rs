//! The outbox: what the device has and the gateway does not have yet, in a ring of flash pages, power-fail safe.
//!
//! A record leaves it only when the gateway said that it is on disk. Records lie in frames; a frame is what one PUBLISH
//! carries, and the bytes of its body go from flash to the wire as they are. Appending a frame programs it once; releasing
//! it moves a mark in RAM. A frame that is written while nothing else is left says so, the next page's head says where the
//! mark is, and if a reset comes before either, the gateway's hello says what it has. Only for a broker that greets nobody
//! the mark is written down before each sleep.
//!
//! After a reset [`Outbox::open`] finds its way back by reading: a frame that was cut short is not there. If anything at
//! the end of the ring is not as a clean end would be, the numbers go on under a new epoch, so that no number is ever
//! given to two records, whatever the flash has forgotten.

mod layout;
mod mount;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wear;

use crate::apart::apart;
use core::ops::Range;
use embedded_storage_async::nor_flash::NorFlash;
use headwater_wire::Kind;
use layout::{Content, FRAME_HEAD_BYTES, FrameHead, MARK_BYTES, PAGE_HEAD_BYTES, PageHead};
use mount::Seen;

/// Bytes in front of a frame's body in a buffer: room for what flash or the wire wants there. A frame with its head begins at
/// a multiple of 8 in it, because some drivers copy what is not aligned.
pub const HEAD_ROOM: usize = 24 + FRAME_HEAD_BYTES;

/// Before sleep a mark is due when so many times its length was programmed since the last one: once if the page stays below
/// [`WEAR_MAX`] with it, and else, as records are short for their words, at last.
const MARK_SHARE: (u32, u32) = (16, 256);
/// Bytes programmed for each byte of bodies, in fortieths: of records of 64 bytes and more, which have a byte or two of length
/// in front of them, it is less than one and a half.
const WEAR_MAX: u32 = 59;

/// The longest word that flash may want to be programmed in.
pub const WORD_BYTES_MAX: usize = 64;

/// What happens to new records while the ring is full of records that are not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum WhenFull {
    /// The oldest page goes, with all that is in it.
    DropOldest,
    /// The new frame goes.
    DropNewest,
    /// The new frame stays where it is, and whoever makes records has to wait: [`Error::Full`].
    Refuse,
    /// From three quarters on only every n-th record is taken, which is up to whoever appends: [`Outbox::keep_every`].
    /// Then the oldest page goes.
    KeepEvery(u16),
}

/// Why the outbox did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Error<E> {
    /// The flash says no.
    Flash(E),
    /// The range is not made of whole pages, has fewer than two, or its words are longer than [`WORD_BYTES_MAX`].
    Geometry,
    /// The frame is longer than a page or the buffer.
    TooLong,
    /// The ring is full and [`WhenFull::Refuse`] was chosen.
    Full,
}

impl<E> From<E> for Error<E> {
    fn from(error: E) -> Self {
        Error::Flash(error)
    }
}

/// What became of records that did not get to the gateway, and what the flash had to do. Since the outbox was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Counters {
    /// Records that went with the oldest page.
    pub dropped_oldest: u64,
    /// Records that were not taken because the ring was full.
    pub dropped_newest: u64,
    /// Records that were there and cannot be read any more.
    pub damaged: u64,
    /// Records that were given up because they cannot be written. What the flash refuses to write is tried again and is not
    /// among them.
    pub unwritten: u64,
    /// Bytes programmed, heads and padding included.
    pub programmed_bytes: u64,
    /// Pages erased.
    pub erases: u64,
}

/// A frame in a buffer, its body behind [`HEAD_ROOM`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The epoch of its numbers.
    pub epoch: u32,
    /// The number of its first record.
    pub first: u64,
    /// Records.
    pub count: u16,
    /// What the body is.
    pub kind: Kind,
    /// Length of the body in bytes.
    pub length: usize,
    next: Cursor,
}

impl Loaded {
    /// The number of its last record.
    pub fn last(&self) -> u64 {
        self.first.wrapping_add(u64::from(self.count)).wrapping_sub(1)
    }
}

/// A frame of which nobody knows whether it is there.
#[derive(Clone, Copy, Debug)]
struct Torn {
    at: u32,
    first: u64,
    count: u16,
}

/// A place between two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    page: u32,
    /// Offset in the page, in bytes; 0 is in front of its head.
    at: u32,
    /// The number of the record behind it, unless some were lost.
    number: u64,
    epoch: u32,
}

/// The ring. See the [module](self).
#[derive(Debug)]
pub struct Outbox<F> {
    flash: F,
    range: Range<u32>,
    pages: u32,
    when_full: WhenFull,
    /// Number of the oldest page that is kept.
    oldest: u32,
    /// The newest page, and where the next frame goes in it; at its end when nothing more may be written there.
    newest: PageHead,
    write_at: u32,
    /// The number of the next record.
    next: u64,
    /// The epoch of pages to come.
    epoch: u32,
    /// In front of the first frame that is not released.
    head: Cursor,
    /// In front of the first frame that was not sent on this connection.
    sent: Cursor,
    /// What the last mark or page says of the head.
    marked: u64,
    /// Where that stands in the newest page, and how many bytes of bodies that page has.
    marked_at: u32,
    bodies: u32,
    /// Numbers of frames that the flash did not write: they are missing, and no record is.
    given_up: u64,
    /// The frame that was being written when the flash failed, or whoever waited for it went away.
    torn: Option<Torn>,
    counters: Counters,
    seed: u64,
    /// The number of the next record when the outbox was opened.
    opened: u64,
}

/// Random, not 0, and not the one before.
fn random_epoch(seed: u64, before: u32) -> u32 {
    // SplitMix64: seeds that differ little make epochs that differ much.
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let epoch = (mixed >> 32) as u32 | 1;
    if epoch == before { epoch ^ 2 } else { epoch }
}

impl<F: NorFlash> Outbox<F> {
    /// Records not released yet.
    pub fn len(&self) -> u64 {
        self.next.saturating_sub(self.head.number)
    }

    /// Whether all was released.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number that the next record gets: all below it were given. It only rises, over resets too.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// The epoch of records to come.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// What was lost and what it cost.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The flash, for its owner.
    pub fn flash(&mut self) -> &mut F {
        &mut self.flash
    }

    /// The longest body that fits a page.
    pub fn body_max(&self) -> usize {
        let mark = Self::padded(FRAME_HEAD_BYTES + MARK_BYTES);
        let room = Self::PAGE.saturating_sub(Self::padded(PAGE_HEAD_BYTES) + mark) & !(Self::WORD - 1);
        room.saturating_sub(FRAME_HEAD_BYTES)
    }

    /// With [`WhenFull::KeepEvery`], and three quarters of the ring not released: which n-th record to keep.
    pub fn keep_every(&self) -> Option<u16> {
        let WhenFull::KeepEvery(every) = self.when_full else { return None };
        let used = self.newest.number.wrapping_sub(self.head.page).wrapping_add(1);
        (u64::from(used) * 4 > u64::from(self.pages) * 3).then_some(every)
    }

    /// Appends a frame of `count` records. Its body is `buffer[HEAD_ROOM..][..length]`; the buffer needs a word behind it.
    /// When this returns the frame is in flash, and the number of its first record is given.
    ///
    /// # Errors
    /// [`Error`]. A frame that failed is not sent, also not after a reset, but for one whose writing the flash called
    /// failed and had done.
    pub async fn append(
        &mut self,
        kind: Kind,
        count: u16,
        buffer: &mut [u8],
        length: usize,
    ) -> Result<Option<u64>, Error<F::Error>> {
        let frame = Self::padded(FRAME_HEAD_BYTES + length);
        if length > self.body_max() || length > usize::from(u16::MAX) || count == 0 {
            return Err(Error::TooLong);
        }
        let body = buffer.get(HEAD_ROOM..HEAD_ROOM + length).ok_or(Error::TooLong)?;
        let content = Content::Records { kind, count };
        if let Some(torn) = self.torn
            && let Some(there) = apart!(self.settle(torn))
            && there.sum == FrameHead::new(self.newest.number, torn.first, there.alone, content, body).sum
        {
            return Ok(Some(torn.first));
        }
        let mark = Self::padded(FRAME_HEAD_BYTES + MARK_BYTES);
        if self.write_at as usize + frame + mark > Self::PAGE || self.newest.epoch != self.epoch {
            match self.open_page().await {
                Err(Error::Full) if self.when_full == WhenFull::DropNewest => {
                    self.counters.dropped_newest += u64::from(count);
                    return Ok(None);
                }
                other => other?,
            }
        }
        let first = self.next;
        let alone = self.head.number == first;
        let head = FrameHead::new(self.newest.number, first, alone, content, body);
        let start = HEAD_ROOM - FRAME_HEAD_BYTES;
        let bytes = buffer.get_mut(start..start + frame).ok_or(Error::TooLong)?;
        if let Some(padding) = bytes.get_mut(FRAME_HEAD_BYTES + length..) {
            padding.fill(0xff);
        }
        if let Some(place) = bytes.first_chunk_mut() {
            *place = head.to_bytes();
        }
        // The numbers are given before the flash is asked: it may say no to what it has done.
        self.next = self.next.wrapping_add(u64::from(count));
        let torn = Torn { at: self.write_at, first, count };
        self.torn = Some(torn);
        self.given_up += u64::from(count);
        let written = apart!(self.program(bytes));
        if written.is_err() && apart!(self.settle(torn)).is_none() {
            return written.map(|()| None);
        }
        self.written(count);
        self.bodies += length as u32;
        if alone {
            (self.marked, self.marked_at) = (first, self.write_at);
        }
        Ok(Some(first))
    }

    /// Looks whether the frame is there after all. If not, no record is lost: whoever made it still has it, and only its numbers
    /// are missing.
    async fn settle(&mut self, torn: Torn) -> Option<FrameHead> {
        if let Seen::Frame(head, _) = self.look(self.newest.number, torn.at, torn.first).await {
            self.written(torn.count);
            return Some(head);
        }
        self.torn = None;
        if self.head.number == torn.first {
            self.head = self.end();
            self.sent = self.head;
            self.given_up = 0;
        }
        None
    }

    fn written(&mut self, count: u16) {
        if self.torn.take().is_some() {
            self.given_up = self.given_up.saturating_sub(u64::from(count));
        }
    }

    /// So many numbers are missing: records of damaged frames, but for numbers that no record has.
    fn lost(&mut self, count: u64) {
        let given_up = count.min(self.given_up);
        self.given_up -= given_up;
        self.counters.damaged += count - given_up;
    }

    /// Records that nobody keeps any more, and that no page would take.
    pub(crate) fn gave_up(&mut self, count: u16) {
        self.counters.unwritten += u64::from(count);
    }

    /// Writes the next bytes of the newest page.
    async fn program(&mut self, bytes: &[u8]) -> Result<(), Error<F::Error>> {
        // Until it is done the page counts as full: nobody programs this place again if the flash fails, or if this future is
        // dropped in the middle of it.
        let write_at = core::mem::replace(&mut self.write_at, Self::PAGE as u32);
        let at = self.address(self.newest.number, write_at);
        self.flash.write(at, bytes).await?;
        self.write_at = write_at + bytes.len() as u32;
        self.counters.programmed_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Loads the first frame that was not sent yet into `buffer`, behind [`HEAD_ROOM`] bytes. It counts as sent once
    /// [`Outbox::sent`] says so.
    ///
    /// # Errors
    /// [`Error::Flash`], or [`Error::TooLong`] if the buffer is too short for it.
    pub async fn load(&mut self, buffer: &mut [u8]) -> Result<Option<Loaded>, Error<F::Error>> {
        let Some((frame, skipped)) = self.find(self.sent).await else {
            if self.sent == self.head && self.head.number < self.next {
                // What is left cannot be read.
                self.lost(self.next - self.head.number);
                self.head = self.end();
                self.sent = self.head;
            }
            return Ok(None);
        };
        if skipped > 0 && self.sent == self.head {
            self.lost(skipped);
            // Told once: what is not there is behind the head now.
            self.head = Cursor { number: frame.first, ..frame.at };
            self.sent = self.head;
        }
        let at = self.address(frame.at.page, frame.at.at);
        let start = HEAD_ROOM - FRAME_HEAD_BYTES;
        let padded = Self::padded(FRAME_HEAD_BYTES + frame.length);
        self.flash.read(at, buffer.get_mut(start..start + padded).ok_or(Error::TooLong)?).await?;
        let Content::Records { kind, count } = frame.content else { return Ok(None) };
        let (epoch, first, length) = (frame.at.epoch, frame.first, frame.length);
        Ok(Some(Loaded { epoch, first, count, kind, length, next: frame.next }))
    }

    /// The loaded frame is on its way: the next one is behind it.
    pub fn sent(&mut self, frame: &Loaded) {
        self.sent = frame.next;
    }

    /// Nothing that was sent may be counted on: the connection is gone.
    pub fn rewind(&mut self) {
        self.sent = self.head;
    }

    /// Everything up to and with this number is on the gateway's disk.
    ///
    /// # Errors
    /// [`Error::Flash`].
    pub async fn release(&mut self, through: u64) -> Result<(), Error<F::Error>> {
        apart!(self.forget(through));
        Ok(())
    }

    async fn forget(&mut self, through: u64) {
        while self.head.number <= through && self.head.number < self.next {
            let Some((frame, skipped)) = self.find(self.head).await else {
                // What is left cannot be read.
                self.lost(self.next.saturating_sub(self.head.number));
                self.head = self.end();
                break;
            };
            if frame.next.number > through.saturating_add(1) {
                break;
            }
            self.lost(skipped);
            self.head = frame.next;
        }
        if self.sent.number < self.head.number {
            self.sent = self.head;
        }
    }

    /// The gateway has everything of this epoch up to the number, and so everything older.
    ///
    /// # Errors
    /// [`Error::Flash`].
    pub async fn release_epoch(&mut self, epoch: u32, through: u64) -> Result<(), Error<F::Error>> {
        let mut last = None;
        for page in self.live_pages() {
            if let Some(head) = apart!(self.page_head(page))
                && head.epoch == epoch
            {
                last = Some(page);
            }
        }
        let Some(last) = last else { return Ok(()) };
        if epoch == self.epoch && through >= self.next {
            // The gateway has numbers that nobody here remembers: this flash has forgotten its end and seemed sound. What
            // was numbered since the start would be taken for what the gateway has; what comes gets another epoch.
            self.counters.damaged += self.next.saturating_sub(self.opened);
            self.epoch = random_epoch(self.seed, epoch);
        }
        let end = match apart!(self.page_head(last.wrapping_add(1))) {
            Some(head) if head.number == last.wrapping_add(1) && last != self.newest.number => head.first,
            _ => self.next,
        };
        self.release(through.min(end.wrapping_sub(1))).await
    }

    /// Before sleep. `greeted` says that a hello will tell again what was released. Then it is written down only now and then,
    /// so that wear stays what it is, and a device that finds no gateway when it wakes, or a full ring, does not take too
    /// many records for undelivered that were not.
    pub(crate) async fn rest(&mut self, greeted: bool) -> Result<(), Error<F::Error>> {
        let mark = Self::padded(FRAME_HEAD_BYTES + MARK_BYTES) as u32;
        let unmarked = self.write_at.saturating_sub(self.marked_at);
        let fits = (self.write_at + mark).saturating_mul(40) <= self.bodies.saturating_mul(WEAR_MAX);
        let is_due = unmarked >= mark * if fits { MARK_SHARE.0 } else { MARK_SHARE.1 };
        if is_due || !greeted { self.mark().await } else { Ok(()) }
    }

    /// Writes down what was released, so that a reset does not ask for it again: before the first frame of another epoch is
    /// sent, and before sleep where no hello says it.
    ///
    /// # Errors
    /// [`Error::Flash`].
    pub async fn mark(&mut self) -> Result<(), Error<F::Error>> {
        let frame = Self::padded(FRAME_HEAD_BYTES + MARK_BYTES);
        if self.marked == self.head.number || self.write_at as usize + frame > Self::PAGE {
            return Ok(());
        }
        let body = self.head.number.to_le_bytes();
        let head = FrameHead::new(self.newest.number, 0, false, Content::Mark, &body);
        let mut bytes = [0xff; FRAME_HEAD_BYTES + MARK_BYTES + WORD_BYTES_MAX];
        if let Some(place) = bytes.first_chunk_mut() {
            *place = head.to_bytes();
        }
        if let Some(place) = bytes.get_mut(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + MARK_BYTES) {
            place.copy_from_slice(&body);
        }
        apart!(self.program(bytes.get(..frame).unwrap_or_default()))?;
        (self.marked, self.marked_at) = (self.head.number, self.write_at);
        Ok(())
    }

    /// Opens the next page, with the oldest one's place if the policy says so.
    async fn open_page(&mut self) -> Result<(), Error<F::Error>> {
        let number = self.newest.number.wrapping_add(1);
        if number.wrapping_sub(self.oldest) >= self.pages {
            self.free_oldest().await?;
        }
        let start = self.address(number, 0);
        let head = PageHead { number, epoch: self.epoch, first: self.next, head: self.head.number };
        let was_at_end = self.sent.number == self.next;
        let mut bytes = [0xff; PAGE_HEAD_BYTES + WORD_BYTES_MAX];
        if let Some(place) = bytes.first_chunk_mut() {
            *place = head.to_bytes();
        }
        let length = Self::padded(PAGE_HEAD_BYTES);
        self.newest = head;
        // If the flash fails here, the page after this one is tried next.
        self.write_at = Self::PAGE as u32;
        self.flash.erase(start, start + Self::PAGE as u32).await?;
        self.counters.erases += 1;
        self.write_at = 0;
        apart!(self.program(bytes.get(..length).unwrap_or_default()))?;
        (self.marked, self.marked_at, self.bodies) = (head.head, self.write_at, 0);
        if self.head.number == self.next {
            self.head = self.end();
        }
        if was_at_end {
            self.sent = self.end();
        }
        Ok(())
    }

    async fn free_oldest(&mut self) -> Result<(), Error<F::Error>> {
        let follower = self.oldest.wrapping_add(1);
        if self.head.page == self.oldest && self.head.number < self.next {
            // Some of the page is not released, unless what is behind the head are marks.
            let first = match apart!(self.page_head(follower)) {
                Some(head) if head.number == follower => Some(head),
                _ => None,
            };
            let to = first.map_or(self.end(), |head| Cursor {
                page: follower,
                at: Self::padded(PAGE_HEAD_BYTES) as u32,
                number: head.first,
                epoch: head.epoch,
            });
            if to.number > self.head.number {
                if matches!(self.when_full, WhenFull::Refuse | WhenFull::DropNewest) {
                    return Err(Error::Full);
                }
                self.counters.dropped_oldest += to.number - self.head.number;
            }
            self.head = to;
            if self.sent.number < to.number || self.sent.page == self.oldest {
                self.sent = to;
            }
        }
        self.oldest = follower;
        Ok(())
    }

    fn end(&self) -> Cursor {
        Cursor { page: self.newest.number, at: self.write_at, number: self.next, epoch: self.newest.epoch }
    }

    fn live_pages(&self) -> impl Iterator<Item = u32> + use<F> {
        let count = self.newest.number.wrapping_sub(self.oldest).wrapping_add(1).min(self.pages);
        let oldest = self.oldest;
        (0..count).map(move |at| oldest.wrapping_add(at))
    }

    fn address(&self, page: u32, at: u32) -> u32 {
        self.range.start + page.checked_rem(self.pages).unwrap_or(0) * Self::PAGE as u32 + at
    }

    const WORD: usize = if F::WRITE_SIZE > 4 { F::WRITE_SIZE } else { 4 };
    const PAGE: usize = F::ERASE_SIZE;

    /// So many bytes are programmed for so many: whole words.
    fn padded(length: usize) -> usize {
        (length + Self::WORD - 1) & !(Self::WORD - 1)
    }
}
