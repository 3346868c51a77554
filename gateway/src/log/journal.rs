//! The journal: a ring of preallocated files that groups are appended to, one write and one sync each.
//!
//! A position is a byte count that only grows; it lies in file `(pos / file bytes) % files`. A frame never spans two files:
//! what does not fit begins the next one. The ring knows nothing of what the frames mean.

use super::disk::{AlignedBuf, Disk, DiskFile, Mode};
use super::frame::{self, FrameError, Header, Link, PAGE, Unplaced};
use super::mutation::{Mutation, is_on};
use std::io;
use std::sync::Arc;

pub const DIR: &str = "journal";
const FILES: u64 = 4;
/// How much is read at a time when the ring is searched, in bytes.
const SEARCH_BYTES: usize = 1 << 20;

pub struct Journal {
    files: Vec<Arc<dyn DiskFile>>,
    file_bytes: u64,
    /// Where the next frame goes.
    head: u64,
    /// Everything below is folded and may be written over.
    tail: u64,
    epoch: u64,
    prev: Link,
    buffer: AlignedBuf,
}

/// How full the ring is, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    pub used: u64,
    pub capacity: u64,
}

impl Journal {
    /// Opens the ring in `journal/`, making it (`ring_bytes` in all, written once so that later writes change no
    /// metadata) when it is not there. An existing ring keeps its size.
    pub fn open(disk: &dyn Disk, ring_bytes: u64) -> io::Result<Journal> {
        disk.create_dir(DIR)?;
        let wanted = (ring_bytes / FILES).next_multiple_of(PAGE as u64);
        // The first file is made last, so that its full length says that the ring is whole.
        let file_bytes = match disk.exists(&path(0))? {
            true => match disk.open(&path(0), Mode::Existing)?.len()? {
                0 => wanted,
                length => length,
            },
            false => wanted,
        };
        for index in (0..FILES).rev() {
            preallocate(disk, &path(index), file_bytes)?;
        }
        disk.sync_dir(DIR)?;
        disk.sync_dir("")?;
        let files = (0..FILES).map(|index| disk.open(&path(index), Mode::ExistingDirect)).collect::<io::Result<_>>()?;
        Ok(Journal {
            files,
            file_bytes,
            head: 0,
            tail: 0,
            epoch: 0,
            prev: Link::default(),
            buffer: AlignedBuf::default(),
        })
    }

    pub fn capacity(&self) -> u64 {
        self.file_bytes * FILES
    }

    /// Longest frame that fits, in bytes.
    pub fn frame_bytes_max(&self) -> u64 {
        self.file_bytes / 2
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

    /// Whether a frame of that length has room now.
    pub fn has_room(&self, frame_bytes: u64) -> bool {
        self.place(frame_bytes) + frame_bytes <= self.tail + self.capacity()
    }

    fn place(&self, frame_bytes: u64) -> u64 {
        let left = self.file_bytes - self.head % self.file_bytes;
        if frame_bytes <= left { self.head } else { self.head + left }
    }

    /// Writes and syncs one group; returns the bytes written. After an error the place is given up: see [`Journal::give_up`].
    pub fn append(&mut self, group: u64, frame: &mut Unplaced<'_>) -> io::Result<u64> {
        let length = frame.header.frame_len();
        assert!(self.has_room(length), "journal law: a frame is written over nothing that is needed");
        let pos = self.place(length);
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
        let mut walk = Walk { journal: self, scan: Scan { head: from, prev, ..Scan::default() }, waiting: None };
        walk.run(visit)?;
        Ok(walk.scan)
    }

    /// Where the oldest readable frame of the ring stands, for a start without a state database.
    pub fn oldest(&self) -> Result<Option<Header>, ScanError> {
        let mut oldest: Option<Header> = None;
        for file in 0..FILES {
            self.search(file * self.file_bytes, (file + 1) * self.file_bytes, &mut 0, &mut |_, header| {
                if oldest.as_ref().is_none_or(|known| header.pos < known.pos) {
                    oldest = Some(header);
                }
                false
            })?;
        }
        Ok(oldest)
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
            file.read_at(offset, frame.as_mut_slice())?;
            file.write_at(offset, frame.as_slice())?;
        }
        self.files.iter().try_for_each(|file| file.sync())
    }

    /// The frame at `pos`, if one stands there.
    fn read(&self, pos: u64) -> Result<Result<(Header, Vec<u8>), FrameError>, ScanError> {
        let (file, offset) = self.at(pos);
        let mut head = vec![0; PAGE];
        file.read_at(offset, &mut head)?;
        let Some(length) = frame::head_len(&head).filter(|length| *length as u64 <= self.file_bytes - offset) else {
            return Ok(Err(FrameError::None));
        };
        if length > PAGE {
            head.resize(length.next_multiple_of(PAGE), 0);
            file.read_at(offset, &mut head)?;
        }
        let header = match frame::read_head(&head) {
            Ok(header) if header.pos == pos && header.frame_len() <= self.file_bytes - offset => header,
            Ok(_) => return Ok(Err(FrameError::None)),
            Err(FrameError::Newer(version)) => return Err(ScanError::Newer(version)),
            Err(error) => return Ok(Err(error)),
        };
        let mut body = vec![0; header.body_len as usize];
        file.read_at(offset + header.head_len() as u64, &mut body)?;
        Ok(Ok((header, body)))
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
            let (file, offset) = self.at(pos);
            let length = (SEARCH_BYTES as u64).min(self.file_bytes - offset).min(to - pos);
            chunk.clear();
            chunk.pad_to(length as usize);
            file.read_at(offset, chunk.as_mut_slice())?;
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
            let (file, offset) = self.at(pos);
            if length as u64 > self.file_bytes - offset {
                return Ok(None);
            }
            let mut buffer = vec![0; length];
            file.read_at(offset, &mut buffer)?;
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
    /// Its body as stored.
    pub body: Vec<u8>,
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
    /// Places where frames were unreadable with a readable one behind.
    pub damaged: u64,
    /// Something stood behind the last frame that is neither empty nor of an earlier lap: a write cut short, or an
    /// acknowledged last group that was damaged; the two look alike.
    pub torn: bool,
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
    /// Counts unless the next frame chains past it.
    waiting: Option<Found>,
}

impl Walk<'_> {
    fn run(&mut self, visit: &mut dyn FnMut(Found)) -> Result<(), ScanError> {
        let limit = self.scan.head + self.journal.capacity();
        let mut pos = self.scan.head;
        while pos < limit {
            match self.frame_from(pos)? {
                Some((header, body)) => {
                    pos = header.pos + header.frame_len();
                    self.meet(header, body, visit);
                }
                None => match self.behind_damage(pos, limit)? {
                    Some(next) => pos = next,
                    None => break,
                },
            }
        }
        if is_on(Mutation::DropTail) {
            self.waiting = None;
        }
        if let Some(last) = self.waiting.take() {
            self.count(last, visit);
        }
        Ok(())
    }

    /// The frame at `pos`. What did not fit begins the next file; that is found like anything behind an unreadable place,
    /// because a frame that was given up may stand here and a good one still follow it in this file.
    fn frame_from(&mut self, pos: u64) -> Result<Option<(Header, Vec<u8>)>, ScanError> {
        let Ok((header, body)) = self.journal.read(pos)? else { return Ok(None) };
        self.scan.read += header.frame_len();
        if xxhash_rust::xxh3::xxh3_64(&body) == header.body_checksum || is_on(Mutation::IgnoreBodyChecksum) {
            return Ok(Some((header, body)));
        }
        self.scan.torn = true;
        Ok(None)
    }

    fn meet(&mut self, header: Header, body: Vec<u8>, visit: &mut dyn FnMut(Found)) {
        self.scan.torn = false;
        let known = self.scan.prev;
        let waiting = self.waiting.as_ref().map(|frame| frame.header.link());
        if Some(header.prev) == waiting || (waiting.is_none() && header.prev == known) {
            // The chain goes on.
            if let Some(frame) = self.waiting.take() {
                self.count(frame, visit);
            }
        } else if header.prev == known {
            // It chains past the one that waits: that one was given up.
            self.waiting = None;
        } else {
            if let Some(frame) = self.waiting.take() {
                self.count(frame, visit);
            }
            self.scan.damaged += 1;
        }
        self.scan.head = header.pos + header.frame_len();
        self.waiting = Some(Found { header, body });
    }

    fn count(&mut self, frame: Found, visit: &mut dyn FnMut(Found)) {
        self.scan.prev = frame.header.link();
        self.scan.last_group = frame.header.group;
        self.scan.frames += 1;
        visit(frame);
    }

    /// Looks for a later frame behind an unreadable place; none means that the journal ends here.
    fn behind_damage(&mut self, pos: u64, limit: u64) -> Result<Option<u64>, ScanError> {
        let mut next = None;
        let mut read = 0;
        let last_group = self.waiting.as_ref().map_or(self.scan.last_group, |frame| frame.header.group);
        self.journal.search(pos + PAGE as u64, limit, &mut read, &mut |place, header| {
            let later = header.pos == place && header.group > last_group;
            if later
                && self.journal.read(place).is_ok_and(|frame| {
                    frame.is_ok_and(|(header, body)| xxhash_rust::xxh3::xxh3_64(&body) == header.body_checksum)
                })
            {
                next = Some(place);
            }
            next.is_some()
        })?;
        self.scan.read += read;
        if next.is_none() {
            self.scan.torn |= self.is_strange(pos)?;
        }
        Ok(next)
    }

    /// Whether the page at `pos` is neither empty nor the start of an older lap's frame.
    fn is_strange(&self, pos: u64) -> Result<bool, ScanError> {
        let (file, offset) = self.journal.at(pos);
        let mut page = vec![0; PAGE];
        file.read_at(offset, &mut page)?;
        let empty = page.iter().all(|byte| *byte == 0);
        Ok(!empty && self.journal.header_at(pos, &page)?.is_none())
    }
}
