//! The journal: a ring of preallocated files that groups are appended to, one write and one sync each.
//!
//! A position is a byte count that only grows; it lies in file `(pos / file bytes) % files`. A frame never spans two files:
//! what does not fit begins the next one. The ring knows nothing of what the frames mean.

use super::disk::{AlignedBuf, Disk, DiskFile, Mode};
use super::frame::{self, BODY_BYTES_MAX, FrameError, Header, Link, PAGE, Unplaced};
use super::mutation::{Mutation, is_on};
use super::segment::{READ_ATTEMPTS, may_pass};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

pub const DIR: &str = "journal";
const FILES: u64 = 4;
/// How much is read at a time when the ring is searched, in bytes.
const SEARCH_BYTES: usize = 1 << 20;
/// Pages that the disk refuses to a start, at most.
const UNREADABLE_MAX: usize = 16;

pub struct Journal {
    files: Vec<Arc<dyn DiskFile>>,
    file_bytes: u64,
    cut_short: bool,
    /// Where the next frame goes.
    head: u64,
    /// Everything below is folded and may be written over.
    tail: u64,
    epoch: u64,
    prev: Link,
    buffer: AlignedBuf,
    /// Places of pages that the disk refused.
    unreadable: RefCell<BTreeSet<u64>>,
}

/// How full the ring is, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    pub used: u64,
    pub capacity: u64,
}

impl Journal {
    /// Opens the ring in `journal/`. What is not there is made, and written once so that later writes change no metadata:
    /// `ring_bytes` in all for a new ring, else as large as it was. `known`: bytes of a file, if a start before this one
    /// left word of it; then a file that is missing or too short was damaged, and its frames are lost.
    pub fn open(disk: &dyn Disk, ring_bytes: u64, known: Option<u64>) -> io::Result<Journal> {
        disk.create_dir(DIR)?;
        let mut lengths = [0; FILES as usize];
        for (index, length) in lengths.iter_mut().enumerate() {
            if disk.exists(&path(index as u64))? {
                *length = disk.open(&path(index as u64), Mode::Existing)?.len()?;
            }
        }
        // The first file is made last, so that it says that the ring is whole.
        let there = (lengths[0] > 0).then(|| lengths.into_iter().max().unwrap_or(0));
        let file_bytes = known.or(there).unwrap_or((ring_bytes / FILES).next_multiple_of(PAGE as u64));
        for index in (0..FILES).rev() {
            preallocate(disk, &path(index), file_bytes)?;
        }
        disk.sync_dir(DIR)?;
        disk.sync_dir("")?;
        let files = (0..FILES).map(|index| disk.open(&path(index), Mode::ExistingDirect)).collect::<io::Result<_>>()?;
        Ok(Journal {
            files,
            file_bytes,
            cut_short: known.is_some() && lengths.iter().any(|length| *length < file_bytes),
            head: 0,
            tail: 0,
            epoch: 0,
            prev: Link::default(),
            buffer: AlignedBuf::default(),
            unreadable: RefCell::default(),
        })
    }

    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// A file was missing or too short.
    pub fn was_cut_short(&self) -> bool {
        self.cut_short
    }

    pub fn capacity(&self) -> u64 {
        self.file_bytes * FILES
    }

    /// Longest frame that is written, in bytes: two fit a file.
    pub fn frame_bytes_max(&self) -> u64 {
        self.file_bytes / 2 / PAGE as u64 * PAGE as u64
    }

    /// Goes on at `head` under a new epoch; frames from `tail` on are still needed.
    pub fn resume(&mut self, epoch: u64, head: u64, tail: u64, prev: Link) {
        assert!(tail <= head && head - tail <= self.capacity(), "journal law: the ring holds what is not folded");
        (self.epoch, self.head, self.tail, self.prev) = (epoch, head, tail, prev);
    }

    pub fn head(&self) -> u64 {
        self.head
    }

    pub fn prev(&self) -> Link {
        self.prev
    }

    pub fn fill(&self) -> Fill {
        Fill { used: self.head - self.tail, capacity: self.capacity() }
    }

    /// Frees everything below `tail`.
    pub fn free(&mut self, tail: u64) {
        assert!(tail <= self.head, "journal law: folded <= durable");
        self.tail = self.tail.max(tail);
    }

    /// Room that is kept for the log's own entries, in bytes: retention makes room with them when a full disk keeps folds
    /// from it.
    pub fn reserve(&self) -> u64 {
        (self.file_bytes / 16).clamp(2 * PAGE as u64, 256 << 10) / PAGE as u64 * PAGE as u64
    }

    /// Whether frames of these lengths, one after the other, have room now.
    pub fn has_room(&self, frames: &[u64]) -> bool {
        let end = frames.iter().fold(self.head, |head, frame_bytes| self.place(head, *frame_bytes) + frame_bytes);
        end <= self.tail + self.capacity()
    }

    fn place(&self, head: u64, frame_bytes: u64) -> u64 {
        let left = self.file_bytes - head % self.file_bytes;
        if frame_bytes <= left { head } else { head + left }
    }

    /// Writes and syncs one group; returns the bytes written. After an error the place is given up: see [`Journal::give_up`].
    /// A frame that would reach over its file's end, over what is still needed, or that no start reads is refused.
    pub fn append(&mut self, group: u64, frame: &mut Unplaced<'_>) -> io::Result<u64> {
        let length = frame.header.frame_len();
        let is_readable = length <= self.file_bytes && frame.header.raw_len as usize <= BODY_BYTES_MAX;
        if !is_readable || !self.has_room(&[length]) {
            let says = format!("a group of {length} bytes has no room in the journal");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, says));
        }
        let pos = self.place(self.head, length);
        self.buffer.clear();
        self.buffer.pad_to(length as usize);
        let link = frame.seal(self.epoch, group, pos, self.prev, self.buffer.as_mut_slice());
        let (file, offset) = self.at(pos);
        let written = file.write_at(offset, self.buffer.as_slice()).and_then(|()| sync(file.as_ref()));
        if is_on(Mutation::ChainGivenUp) {
            self.prev = link;
        }
        // Whether it worked or not, nothing else is ever written to this place before the ring comes round.
        self.head = pos + length;
        written?;
        self.prev = link;
        Ok(length)
    }

    /// After a failed append: the frame may or may not be on disk, so a new epoch that chains to the frame before it
    /// says that it does not count.
    pub fn give_up(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    fn at(&self, pos: u64) -> (&Arc<dyn DiskFile>, u64) {
        let file = (pos / self.file_bytes) % FILES;
        (&self.files[file as usize], pos % self.file_bytes)
    }

    /// Walks the frames from `from`, whose predecessor was `prev`, to the end; `visit` gets each that counts, in order.
    pub fn scan(&self, from: u64, prev: Link, visit: &mut dyn FnMut(Found)) -> Result<Scan, ScanError> {
        let mut walk = Walk {
            journal: self,
            scan: Scan { head: from, prev, ..Scan::default() },
            waiting: None,
            rivals: Vec::new(),
        };
        walk.run(visit)?;
        let mut scan = walk.scan;
        if scan.frames == 0 && prev != Link::default() && !self.holds(prev)? {
            (scan.gone, scan.prev) = (true, Link::default());
        }
        Ok(scan)
    }

    /// Whether this frame is there, whole. The last one that is folded is not written over before others stand behind it.
    fn holds(&self, frame: Link) -> Result<bool, ScanError> {
        Ok(self.read(frame.pos)?.is_ok_and(|(header, body)| header.link() == frame && is_whole(&header, &body)))
    }

    /// The oldest readable frame of the ring, for a start without a state database: not one of an earlier lap that stands
    /// where a later one left a file's end empty.
    pub fn oldest(&self) -> Result<Option<(u64, Link)>, ScanError> {
        let mut frames: Vec<(u64, Link)> = Vec::new();
        let mut end = 0;
        for file in 0..FILES {
            self.search(file * self.file_bytes, (file + 1) * self.file_bytes, &mut 0, &mut |_, header| {
                end = end.max(header.pos + header.frame_len());
                frames.push((header.pos, header.prev));
                false
            })?;
        }
        let of_this_lap = frames.into_iter().filter(|(pos, _)| pos + self.capacity() >= end);
        Ok(of_this_lap.min_by_key(|(pos, _)| *pos))
    }

    /// Makes what a start found durable (crash rule 2). The last frame may be one whose sync failed before the process
    /// ended: then it stands in a cache that takes it for clean, and only a write makes it dirty again. All frames before
    /// it were synced, or another would not chain to them.
    pub fn settle_tail(&self, last: Link) -> io::Result<()> {
        if is_on(Mutation::TrustTail) {
            return Ok(());
        }
        if let Ok(Ok((header, _))) = self.read(last.pos)
            && header.link() == last
        {
            let (file, offset) = self.at(last.pos);
            let mut frame = AlignedBuf::zeroed(header.frame_len() as usize);
            read_patiently(file.as_ref(), offset, frame.as_mut_slice())?;
            file.write_at(offset, frame.as_slice())?;
        }
        self.files.iter().try_for_each(|file| file.sync())
    }

    /// The frame at `pos`, if one stands there.
    fn read(&self, pos: u64) -> Result<Result<(Header, Vec<u8>), FrameError>, ScanError> {
        let (_, offset) = self.at(pos);
        let mut frame = vec![0; PAGE];
        self.read_pages(pos, &mut frame)?;
        let Some(length) = frame::head_len(&frame).filter(|length| *length as u64 <= self.file_bytes - offset) else {
            return Ok(Err(FrameError::None));
        };
        if length > PAGE {
            frame.resize(length.next_multiple_of(PAGE), 0);
            self.read_pages(pos, &mut frame)?;
        }
        let header = match frame::read_head(&frame) {
            Ok(header) if header.pos == pos && header.frame_len() <= self.file_bytes - offset => header,
            Ok(_) => return Ok(Err(FrameError::None)),
            Err(FrameError::Newer(version)) => return Err(ScanError::Newer(version)),
            Err(error) => return Ok(Err(error)),
        };
        let read = frame.len();
        frame.resize(header.frame_len() as usize, 0);
        self.read_pages(pos + read as u64, &mut frame[read..])?;
        frame.drain(..header.head_len());
        frame.truncate(header.body_len as usize);
        frame::mask(header.epoch, &mut frame);
        Ok(Ok((header, frame)))
    }

    /// Reads whole pages of one file. A page that the disk refuses again and again is zeros: damage like another. When it
    /// refuses many, the disk may be away and come back, and nothing is decided.
    fn read_pages(&self, pos: u64, into: &mut [u8]) -> io::Result<()> {
        let (file, offset) = self.at(pos);
        match read_patiently(file.as_ref(), offset, into) {
            Err(error) if may_pass(&error) => {}
            result => return result,
        }
        for (index, page) in into.chunks_mut(PAGE).enumerate() {
            let along = (index * PAGE) as u64;
            if let Err(error) = read_patiently(file.as_ref(), offset + along, page) {
                page.fill(0);
                let mut unreadable = self.unreadable.borrow_mut();
                unreadable.insert((pos + along) % self.capacity());
                if unreadable.len() > UNREADABLE_MAX {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Calls `found` for each page of `from..to` that begins a frame of that place, until it returns true.
    fn search(
        &self,
        from: u64,
        to: u64,
        read: &mut u64,
        found: &mut dyn FnMut(u64, Header) -> bool,
    ) -> Result<(), ScanError> {
        let mut chunk = AlignedBuf::default();
        let mut pos = from;
        while pos < to {
            let (_, offset) = self.at(pos);
            let length = (SEARCH_BYTES as u64).min(self.file_bytes - offset).min(to - pos);
            chunk.clear();
            chunk.pad_to(length as usize);
            self.read_pages(pos, chunk.as_mut_slice())?;
            *read += length;
            for at in (0..length as usize).step_by(PAGE) {
                if frame::head_len(&chunk.as_slice()[at..]).is_none() {
                    continue;
                }
                if let Some(header) = self.header_at(pos + at as u64, &chunk.as_slice()[at..])?
                    && found(pos + at as u64, header)
                {
                    return Ok(());
                }
            }
            pos += length;
        }
        Ok(())
    }

    /// A valid header that claims to stand where it stands: same place in the ring, whatever the lap.
    fn header_at(&self, pos: u64, bytes: &[u8]) -> Result<Option<Header>, ScanError> {
        let length = frame::head_len(bytes).unwrap_or(0);
        let longer;
        let bytes = if length <= bytes.len() {
            bytes
        } else {
            let (_, offset) = self.at(pos);
            let pages = length.next_multiple_of(PAGE);
            if pages as u64 > self.file_bytes - offset {
                return Ok(None);
            }
            let mut buffer = vec![0; pages];
            self.read_pages(pos, &mut buffer)?;
            longer = buffer;
            &longer
        };
        match frame::read_head(bytes) {
            Ok(header) if header.pos % self.capacity() == pos % self.capacity() => Ok(Some(header)),
            Err(FrameError::Newer(version)) => Err(ScanError::Newer(version)),
            _ => Ok(None),
        }
    }
}

/// Asks again when the disk refuses what it may give the next time.
pub fn read_patiently(file: &dyn DiskFile, offset: u64, into: &mut [u8]) -> io::Result<()> {
    let mut attempts = 1;
    loop {
        match file.read_at(offset, into) {
            Err(error) if may_pass(&error) && attempts < READ_ATTEMPTS => attempts += 1,
            result => return result,
        }
    }
}

fn sync(file: &dyn DiskFile) -> io::Result<()> {
    if is_on(Mutation::SkipSync) {
        return Ok(());
    }
    let synced = file.sync();
    if is_on(Mutation::IgnoreFailedSync) { Ok(()) } else { synced }
}

fn path(index: u64) -> String {
    format!("{DIR}/{index:04}")
}

fn preallocate(disk: &dyn Disk, path: &str, bytes: u64) -> io::Result<()> {
    let file = disk.open(path, Mode::Create)?;
    let mut at = file.len()?;
    if at == bytes {
        return Ok(());
    }
    let zeros = vec![0; SEARCH_BYTES];
    while at < bytes {
        let length = (bytes - at).min(zeros.len() as u64);
        file.write_at(at, &zeros[..length as usize])?;
        at += length;
    }
    file.sync()
}

/// A frame that a scan came across and that counts.
pub struct Found {
    pub header: Header,
    /// Its body as stored, without the mask; `None` if it is damaged.
    pub body: Option<Vec<u8>>,
}

/// What a scan learnt.
#[derive(Debug, Default, Clone)]
pub struct Scan {
    /// Where the journal goes on.
    pub head: u64,
    pub prev: Link,
    pub frames: u64,
    pub last_group: u64,
    /// Bytes read from disk.
    pub read: u64,
    /// Places where a frame of the chain is damaged.
    pub damaged: u64,
    /// Records of frames that are gone with their headers: nobody knows of which shards.
    pub nameless: u64,
    /// Something stood behind the last frame that is neither empty nor of an earlier lap: a write cut short, or an
    /// acknowledged last group that was damaged; the two look alike.
    pub torn: bool,
    /// Nothing is behind the place where the scan began, and what stood in front of it is not there either: whatever was
    /// behind it is gone. The next frame chains to nothing.
    pub gone: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the journal has a frame of format {0}; this headwater reads up to {known}", known = frame::VERSION)]
    Newer(u16),
}

struct Walk<'a> {
    journal: &'a Journal,
    scan: Scan,
    /// Counts unless one of its rivals does.
    waiting: Option<Found>,
    /// Frames behind it that chain past it: it was given up, or they are what an earlier life left.
    rivals: Vec<Rival>,
}

struct Rival {
    link: Link,
    group: u64,
    is_whole: bool,
}

impl Walk<'_> {
    fn run(&mut self, visit: &mut dyn FnMut(Found)) -> Result<(), ScanError> {
        let limit = self.scan.head + self.journal.capacity();
        let mut pos = self.scan.head;
        while pos < limit {
            let Some(frame) = self.frame_at(pos)? else {
                // What did not fit begins the next file; that is found like anything behind an unreadable place, because a
                // frame that was given up may stand here and a good one still follow it in this file.
                match self.behind(pos + PAGE as u64, limit)? {
                    Some(next) => pos = next,
                    None => {
                        self.scan.torn |= self.ends_strangely(pos, limit)?;
                        break;
                    }
                }
                continue;
            };
            // The length of a damaged frame says nothing: it may be a write that was cut short, over which a start wrote
            // shorter frames, the first of which is not on the disk.
            let next = match frame.body {
                Some(_) => Some(frame.header.pos + frame.header.frame_len()),
                None => self.behind(pos + PAGE as u64, limit)?,
            };
            let Some(next) = next else {
                self.scan.torn = true;
                break;
            };
            self.meet(frame, visit)?;
            pos = next;
        }
        if is_on(Mutation::DropTail) {
            self.waiting = None;
        }
        self.count_one(None, visit)
    }

    fn frame_at(&mut self, pos: u64) -> Result<Option<Found>, ScanError> {
        let Ok((header, body)) = self.journal.read(pos)? else { return Ok(None) };
        self.scan.read += header.frame_len();
        let whole = is_whole(&header, &body) || is_on(Mutation::IgnoreBodyChecksum);
        Ok(Some(Found { header, body: whole.then_some(body) }))
    }

    fn meet(&mut self, frame: Found, visit: &mut dyn FnMut(Found)) -> Result<(), ScanError> {
        let prev = frame.header.prev;
        self.scan.head = frame.header.pos + frame.header.frame_len();
        if prev == self.scan.prev && self.waiting.is_some() {
            let Header { group, .. } = frame.header;
            self.rivals.push(Rival { link: frame.header.link(), group, is_whole: frame.body.is_some() });
            return Ok(());
        }
        self.count_one(Some(prev), visit)?;
        let last = self.scan.prev;
        if prev != last {
            self.scan.damaged += 1;
            self.scan.nameless += prev.records.saturating_sub(last.records);
        }
        self.waiting = Some(frame);
        Ok(())
    }

    /// Of the frame that waits and its rivals the one counts that the next frame names. If that names none of them, or there
    /// is none, the last whole one does: each was written because those before it had been given up.
    fn count_one(&mut self, named: Option<Link>, visit: &mut dyn FnMut(Found)) -> Result<(), ScanError> {
        let rivals = std::mem::take(&mut self.rivals);
        let Some(first) = self.waiting.take() else { return Ok(()) };
        let chosen = match named {
            Some(named) if named == first.header.link() => None,
            Some(named) if rivals.iter().any(|rival| rival.link == named) => Some(named),
            _ => {
                let last = rivals.iter().rfind(|rival| rival.is_whole);
                last.or(rivals.last().filter(|_| first.body.is_none())).map(|rival| rival.link)
            }
        };
        let rival = match chosen {
            Some(link) => self.frame_at(link.pos)?.filter(|frame| frame.header.link() == link),
            None => None,
        };
        self.count(rival.unwrap_or(first), visit);
        Ok(())
    }

    fn count(&mut self, frame: Found, visit: &mut dyn FnMut(Found)) {
        self.scan.prev = frame.header.link();
        self.scan.last_group = frame.header.group;
        self.scan.frames += 1;
        self.scan.damaged += u64::from(frame.body.is_none());
        visit(frame);
    }

    /// Looks for a whole frame in `from..limit` of a group behind the last that counts; none means that the journal ends
    /// before. A frame that was cut short and the one that was written instead of it have one group.
    fn behind(&mut self, from: u64, limit: u64) -> Result<Option<u64>, ScanError> {
        let first = self.waiting.as_ref().map(|frame| (frame.header.group, frame.body.is_some()));
        let last = self.rivals.last().map(|rival| (rival.group, rival.is_whole)).or(first);
        let group = last.filter(|(_, is_whole)| *is_whole).map_or(self.scan.last_group, |(group, _)| group);
        let (mut next, mut failed, mut read) = (None, None, 0);
        self.journal.search(from, limit, &mut read, &mut |place, header| {
            let later = header.pos == place && header.group > group;
            match later.then(|| self.journal.read(place)) {
                Some(Err(error)) => failed = Some(error),
                Some(Ok(Ok((header, body)))) if is_whole(&header, &body) => next = Some(place),
                _ => {}
            }
            next.is_some() || failed.is_some()
        })?;
        self.scan.read += read;
        failed.map_or(Ok(next), Err)
    }

    /// Whether something was written where the journal ends: there, or, if it did not fit there, at the start of the next
    /// file.
    fn ends_strangely(&self, pos: u64, limit: u64) -> Result<bool, ScanError> {
        let next_file = pos.next_multiple_of(self.journal.file_bytes);
        Ok(self.is_strange(pos)? || next_file < limit && self.is_strange(next_file)?)
    }

    /// Whether the page at `pos` is unreadable, or neither empty nor the start of an older lap's frame.
    fn is_strange(&self, pos: u64) -> Result<bool, ScanError> {
        let mut page = vec![0; PAGE];
        self.journal.read_pages(pos, &mut page)?;
        let unreadable = self.journal.unreadable.borrow().contains(&(pos % self.journal.capacity()));
        let empty = page.iter().all(|byte| *byte == 0);
        let older = self.journal.header_at(pos, &page)?.is_some_and(|header| header.pos < pos);
        Ok(unreadable || !empty && !older)
    }
}

fn is_whole(header: &Header, body: &[u8]) -> bool {
    xxhash_rust::xxh3::xxh3_64(body) == header.body_checksum
}
