//! One group as it lies in the journal: a page-aligned frame. Pure: bytes in, bytes out.
//!
//! ```text
//! header   96 bytes: magic, version, flags, epoch, group, pos, prev pos, prev checksum, stored and raw length of the
//!          body, checksum of the body, number of table entries, length of the control section, records of the chain
//!          before this frame, checksum of header and table, 8 zeros
//! table    24 bytes an entry: stream u32, shard u32, first number u64, count u32, length u32 of its runs in the body
//! body     the runs of each entry, one entry after the other, then the control section; zstd when that saves a page;
//!          every 8 bytes of it exclusive-or the epoch
//! padding  to a multiple of 4096
//! run      count varint, arrival stamp u64, length varint, records
//! control  table u8, key length varint, key, 0 | 1 value length varint, value
//! ```
//! Fixed-width numbers are big-endian. `prev pos` and `prev checksum` chain the frames: one that was given up after an I/O
//! error is not in the chain. The epoch is random for each start and nobody outside learns it: a value that a stranger
//! sends never lies in the journal as he wrote it, so an image of a frame that he puts at a page's beginning is none.

use super::encode::{put_varint, read_varint};
use super::mutation::{Mutation, is_on};
use super::schema::Table;
use super::window::Run;
use crate::record::{Number, ShardIndex};
use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

pub const PAGE: usize = super::disk::PAGE_BYTES;
pub const HEADER_BYTES: usize = 96;
pub const ENTRY_BYTES: usize = 24;
/// Shards that one group may touch.
pub const ENTRIES_MAX: usize = 16 << 10;
/// Longest body of a frame before compression, in bytes; larger is damage.
pub const BODY_BYTES_MAX: usize = 32 << 20;
const MAGIC: u32 = u32::from_be_bytes(*b"HWJ1");
/// Version of the frame format; one more than the reader knows is refused.
pub const VERSION: u16 = 1;
const COMPRESSED: u16 = 1;

/// A change of a state table; `None` removes the key.
pub type Control = (Table, Bytes, Option<Bytes>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub stream: u32,
    pub shard: ShardIndex,
    pub first: Number,
    pub count: u32,
    pub length: u32,
}

/// Where a frame stands in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Link {
    pub pos: u64,
    pub checksum: u64,
    /// Records of the chain up to the frame, its own included: says how many a damaged place held.
    pub records: u64,
}

#[derive(Clone, Debug)]
pub struct Header {
    pub epoch: u64,
    pub group: u64,
    pub pos: u64,
    pub prev: Link,
    pub body_len: u32,
    pub raw_len: u32,
    pub body_checksum: u64,
    pub control_len: u32,
    pub compressed: bool,
    pub checksum: u64,
    pub entries: Vec<Entry>,
}

impl Header {
    pub fn head_len(&self) -> usize {
        HEADER_BYTES + self.entries.len() * ENTRY_BYTES
    }

    /// Bytes the frame takes in the journal.
    pub fn frame_len(&self) -> u64 {
        (self.head_len() + self.body_len as usize).next_multiple_of(PAGE) as u64
    }

    pub fn link(&self) -> Link {
        let own: u64 = self.entries.iter().map(|entry| u64::from(entry.count)).sum();
        Link { pos: self.pos, checksum: self.checksum, records: self.prev.records.wrapping_add(own) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Nothing that was ever a frame of this place: zeros, an older lap, noise.
    #[error("no frame")]
    None,
    #[error("a frame of format {0}, newer than this one reads")]
    Newer(u16),
    #[error("the body does not have the checksum its header names")]
    Body,
}

/// The runs of one shard in a group, to be written.
pub struct Section<'a> {
    pub stream: u32,
    pub shard: ShardIndex,
    pub runs: &'a [Run],
}

/// Turns groups into frames. Keeps its buffers and its compressor.
pub struct Encoder {
    raw: BytesMut,
    stored: Vec<u8>,
    zstd: zstd::bulk::Compressor<'static>,
}

impl Encoder {
    pub fn new() -> std::io::Result<Self> {
        Ok(Encoder { raw: BytesMut::new(), stored: Vec::new(), zstd: zstd::bulk::Compressor::new(1)? })
    }

    /// The frame of a group, padded; its header's fields beside. Place it with [`seal`].
    pub fn frame(&mut self, sections: &[Section<'_>], control: &[Control]) -> Unplaced<'_> {
        self.raw.clear();
        let mut entries = Vec::with_capacity(sections.len());
        for section in sections {
            let start = self.raw.len();
            let mut count = 0;
            for run in section.runs {
                put_run(&mut self.raw, run);
                count += run.count;
            }
            let first = section.runs.first().map_or(0, |run| run.first);
            let length = (self.raw.len() - start) as u32;
            entries.push(Entry { stream: section.stream, shard: section.shard, first, count, length });
        }
        let control_start = self.raw.len();
        for (table, key, value) in control {
            put_control(&mut self.raw, *table, key, value.as_ref());
        }
        let control_len = (self.raw.len() - control_start) as u32;
        let head = HEADER_BYTES + entries.len() * ENTRY_BYTES;
        let mut compressed = false;
        if head + self.raw.len() > PAGE {
            self.stored.clear();
            self.stored.resize(zstd::zstd_safe::compress_bound(self.raw.len()), 0);
            if let Ok(length) = self.zstd.compress_to_buffer(&self.raw[..], &mut self.stored[..]) {
                self.stored.truncate(length);
                compressed = pages(head + length) < pages(head + self.raw.len());
            }
        }
        let body: &[u8] = if compressed { &self.stored } else { &self.raw };
        let header = Header {
            epoch: 0,
            group: 0,
            pos: 0,
            prev: Link::default(),
            body_len: body.len() as u32,
            raw_len: self.raw.len() as u32,
            body_checksum: xxh3_64(body),
            control_len,
            compressed,
            checksum: 0,
            entries,
        };
        Unplaced { header, body }
    }

    /// Lets go of memory that one large group needed.
    pub fn shrink(&mut self) {
        const KEPT_BYTES: usize = 2 << 20;
        if self.raw.capacity() > KEPT_BYTES {
            self.raw = BytesMut::new();
        }
        if self.stored.capacity() > KEPT_BYTES {
            self.stored = Vec::new();
        }
    }
}

/// A frame that has no place yet.
pub struct Unplaced<'a> {
    pub header: Header,
    pub body: &'a [u8],
}

impl Unplaced<'_> {
    /// Writes the frame for its place into `into`, which has [`Header::frame_len`] bytes.
    pub fn seal(&mut self, epoch: u64, group: u64, pos: u64, prev: Link, into: &mut [u8]) -> Link {
        let header = &mut self.header;
        (header.epoch, header.group, header.pos, header.prev) = (epoch, group, pos, prev);
        let head = header.head_len();
        write_head(header, &mut into[..head]);
        into[head..head + self.body.len()].copy_from_slice(self.body);
        mask(epoch, &mut into[head..head + self.body.len()]);
        into[head + self.body.len()..].fill(0);
        header.link()
    }
}

/// Puts the mask on a stored body, or takes it off.
pub fn mask(epoch: u64, body: &mut [u8]) {
    let mask = epoch.to_be_bytes();
    let mut words = body.chunks_exact_mut(mask.len());
    for word in &mut words {
        word.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
    words.into_remainder().iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

fn pages(bytes: usize) -> usize {
    bytes.div_ceil(PAGE)
}

fn put_run(into: &mut BytesMut, run: &Run) {
    put_varint(into, u64::from(run.count));
    into.put_u64(run.stamp);
    put_varint(into, run.bytes.len() as u64);
    into.extend_from_slice(&run.bytes);
}

fn put_control(into: &mut BytesMut, table: Table, key: &Bytes, value: Option<&Bytes>) {
    into.put_u8(table as u8);
    put_varint(into, key.len() as u64);
    into.extend_from_slice(key);
    match value {
        None => into.put_u8(0),
        Some(value) => {
            into.put_u8(1);
            put_varint(into, value.len() as u64);
            into.extend_from_slice(value);
        }
    }
}

fn write_head(header: &mut Header, into: &mut [u8]) {
    let table = into.len() - HEADER_BYTES;
    let mut out = &mut into[..HEADER_BYTES];
    out.put_u32(MAGIC);
    out.put_u16(VERSION);
    out.put_u16(if header.compressed { COMPRESSED } else { 0 });
    out.put_u64(header.epoch);
    out.put_u64(header.group);
    out.put_u64(header.pos);
    out.put_u64(header.prev.pos);
    out.put_u64(header.prev.checksum);
    out.put_u32(header.body_len);
    out.put_u32(header.raw_len);
    out.put_u64(header.body_checksum);
    out.put_u32(header.entries.len() as u32);
    out.put_u32(header.control_len);
    out.put_u64(header.prev.records);
    out.put_bytes(0, 16);
    let mut out = &mut into[HEADER_BYTES..HEADER_BYTES + table];
    for entry in &header.entries {
        out.put_u32(entry.stream);
        out.put_u32(entry.shard);
        out.put_u64(entry.first);
        out.put_u32(entry.count);
        out.put_u32(entry.length);
    }
    header.checksum = head_checksum(into);
    into[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&header.checksum.to_be_bytes());
}

const CHECKSUM_AT: usize = 80;

fn head_checksum(head: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&head[..CHECKSUM_AT]);
    hash.update(&head[CHECKSUM_AT + 8..]);
    hash.digest()
}

#[cfg(test)]
pub fn set_version(frame: &mut [u8], version: u16) {
    frame[4..6].copy_from_slice(&version.to_be_bytes());
    let length = head_len(frame).expect("a header is there");
    let checksum = head_checksum(&frame[..length]);
    frame[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&checksum.to_be_bytes());
}

/// Bytes of header and table together, from the first bytes of a page; `None` if no header can be there.
pub fn head_len(page: &[u8]) -> Option<usize> {
    let count = u32_at(page, 64)? as usize;
    let magic = u32_at(page, 0)?;
    (magic == MAGIC && count <= ENTRIES_MAX).then_some(HEADER_BYTES + count * ENTRY_BYTES)
}

/// Reads and checks a header with its table; `head` holds at least [`head_len`] bytes.
pub fn read_head(head: &[u8]) -> Result<Header, FrameError> {
    let length = head_len(head).filter(|length| *length <= head.len()).ok_or(FrameError::None)?;
    let head = &head[..length];
    let u32_at = |at| u32_at(head, at).ok_or(FrameError::None);
    let u64_at = |at| u64_at(head, at).ok_or(FrameError::None);
    let checksum = u64_at(CHECKSUM_AT)?;
    if checksum != head_checksum(head) {
        return Err(FrameError::None);
    }
    let version = (u32_at(4)? >> 16) as u16;
    if version > VERSION {
        return Err(FrameError::Newer(version));
    }
    let mut entries = Vec::with_capacity((length - HEADER_BYTES) / ENTRY_BYTES);
    for at in (HEADER_BYTES..length).step_by(ENTRY_BYTES) {
        entries.push(Entry {
            stream: u32_at(at)?,
            shard: u32_at(at + 4)?,
            first: u64_at(at + 8)?,
            count: u32_at(at + 16)?,
            length: u32_at(at + 20)?,
        });
    }
    let header = Header {
        epoch: u64_at(8)?,
        group: u64_at(16)?,
        pos: u64_at(24)?,
        prev: Link { pos: u64_at(32)?, checksum: u64_at(40)?, records: u64_at(72)? },
        body_len: u32_at(48)?,
        raw_len: u32_at(52)?,
        body_checksum: u64_at(56)?,
        control_len: u32_at(68)?,
        compressed: u32_at(4)? as u16 & COMPRESSED != 0,
        checksum,
        entries,
    };
    match header.raw_len as usize <= BODY_BYTES_MAX && header.body_len as usize <= BODY_BYTES_MAX {
        true => Ok(header),
        false => Err(FrameError::None),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// What a frame holds: runs with their stream and shard, and control entries.
#[derive(Debug, Default)]
pub struct Contents {
    pub runs: Vec<(u32, ShardIndex, Run)>,
    pub control: Vec<Control>,
}

/// Reads a frame's body. `stored` is the body without its mask.
pub fn read_body(header: &Header, stored: &[u8]) -> Result<Contents, FrameError> {
    let believed = xxh3_64(stored) == header.body_checksum || is_on(Mutation::IgnoreBodyChecksum);
    if stored.len() != header.body_len as usize || !believed {
        return Err(FrameError::Body);
    }
    let raw = match header.compressed {
        true => zstd::bulk::decompress(stored, header.raw_len as usize).map_err(|_| FrameError::Body)?,
        false => stored.to_vec(),
    };
    if raw.len() != header.raw_len as usize {
        return Err(FrameError::Body);
    }
    contents(header, Bytes::from(raw)).ok_or(FrameError::Body)
}

fn contents(header: &Header, mut raw: Bytes) -> Option<Contents> {
    let mut contents = Contents::default();
    for entry in &header.entries {
        let mut section = split(&mut raw, entry.length as usize)?;
        let mut first = entry.first;
        while !section.is_empty() {
            let run = take_run(&mut section, first, header.group)?;
            first += u64::from(run.count);
            contents.runs.push((entry.stream, entry.shard, run));
        }
        if first != entry.first + u64::from(entry.count) {
            return None;
        }
    }
    if raw.len() != header.control_len as usize {
        return None;
    }
    while !raw.is_empty() {
        contents.control.push(take_control(&mut raw)?);
    }
    Some(contents)
}

fn take_run(from: &mut Bytes, first: Number, group: u64) -> Option<Run> {
    let count = u32::try_from(take_varint(from)?).ok().filter(|count| *count > 0)?;
    let stamp = u64::from_be_bytes(split(from, 8)?.as_ref().try_into().ok()?);
    let length = take_varint(from)? as usize;
    let bytes = split(from, length)?;
    let producers = super::producer::highest(&bytes)?;
    Some(Run { first, count, stamp, bytes, group, producers })
}

fn take_control(from: &mut Bytes) -> Option<Control> {
    let table = Table::from_u8(split(from, 1)?[0])?;
    let length = take_varint(from)? as usize;
    let key = split(from, length)?;
    let value = match split(from, 1)?[0] {
        0 => None,
        _ => {
            let length = take_varint(from)? as usize;
            Some(split(from, length)?)
        }
    };
    Some((table, key, value))
}

fn take_varint(from: &mut Bytes) -> Option<u64> {
    let (value, used) = read_varint(from)?;
    split(from, used)?;
    Some(value)
}

fn split(from: &mut Bytes, at: usize) -> Option<Bytes> {
    (at <= from.len()).then(|| from.split_to(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::encode;
    use crate::record::NewRecord;
    use proptest::prelude::*;

    fn run(first: Number, keys: &[&str]) -> Run {
        let mut bytes = BytesMut::new();
        for key in keys {
            encode::put(&mut bytes, &NewRecord { key: key.as_bytes(), data: &[7; 300], ..Default::default() });
        }
        let count = keys.len() as u32;
        Run { first, count, stamp: 5, bytes: bytes.freeze(), group: 9, producers: [].into() }
    }

    fn frame(keys: usize) -> Vec<u8> {
        let keys: Vec<String> = (0..keys).map(|n| format!("key{n}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let runs = [run(10, &keys), run(10 + keys.len() as u64, &["last"])];
        let sections = [Section { stream: 1, shard: 2, runs: &runs }];
        let control = [(Table::Meta, Bytes::from_static(b"k"), Some(Bytes::from_static(b"v")))];
        let mut encoder = Encoder::new().unwrap();
        let mut unplaced = encoder.frame(&sections, &control);
        let mut bytes = vec![0xee; unplaced.header.frame_len() as usize];
        unplaced.seal(77, 9, 4096, Link { pos: 0, checksum: 3, records: 5 }, &mut bytes);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<(Header, Contents), FrameError> {
        let header = read_head(bytes)?;
        let body =
            bytes.get(header.head_len()..header.head_len() + header.body_len as usize).ok_or(FrameError::Body)?;
        let mut body = body.to_vec();
        mask(header.epoch, &mut body);
        let contents = read_body(&header, &body)?;
        Ok((header, contents))
    }

    #[test]
    fn a_frame_reads_back_what_was_written() {
        for keys in [1, 3, 200] {
            let bytes = frame(keys);
            let (header, contents) = read(&bytes).unwrap();
            assert_eq!(bytes.len() % PAGE, 0);
            assert_eq!(header.compressed, keys == 200);
            assert_eq!((header.epoch, header.group, header.pos, header.prev.checksum), (77, 9, 4096, 3));
            assert_eq!(contents.runs.iter().map(|(_, _, run)| run.count as usize).sum::<usize>(), keys + 1);
            assert_eq!(contents.runs[1].2.first, 10 + keys as u64);
            assert_eq!(contents.control.len(), 1);
            assert_eq!(header.link().records, 5 + keys as u64 + 1);
        }
    }

    // Bodies lay in the journal as their senders wrote them: the image of a frame at a page's beginning, with a position of
    // the next lap, was taken for one by a start that looked behind an unreadable place.
    #[test]
    fn a_value_that_looks_like_a_frame_is_none() {
        let mut image = frame(1);
        let used = {
            let h = read_head(&image).unwrap();
            h.head_len() + h.body_len as usize
        };
        let mut noise = fastrand::Rng::with_seed(1);
        image[used..].iter_mut().for_each(|byte| *byte = noise.u8(..));
        let mut stored = |shift: usize, epoch: u64| {
            let mut data: Vec<u8> = std::iter::repeat_with(|| noise.u8(..)).take(shift).collect();
            data.extend_from_slice(&image);
            // The last page is full enough that nothing is won by compressing.
            let tail = 2 * PAGE - 1000 - (shift + 200) % PAGE;
            data.extend(std::iter::repeat_with(|| noise.u8(..)).take(tail));
            let mut bytes = BytesMut::new();
            encode::put(&mut bytes, &NewRecord { key: b"k", data: &data, ..Default::default() });
            let runs = [Run { first: 1, count: 1, stamp: 5, bytes: bytes.freeze(), group: 9, producers: [].into() }];
            let mut encoder = Encoder::new().unwrap();
            let mut unplaced = encoder.frame(&[Section { stream: 1, shard: 2, runs: &runs }], &[]);
            let mut bytes = vec![0; unplaced.header.frame_len() as usize];
            unplaced.seal(epoch, 9, 4096, Link::default(), &mut bytes);
            assert!(!unplaced.header.compressed);
            bytes
        };
        let mut shift = PAGE;
        for _ in 0..2 {
            // Twice: the value's length may take another byte.
            shift = shift + 2 * PAGE - stored(shift, 0).windows(64).position(|bytes| *bytes == image[..64]).unwrap();
        }
        assert!(read_head(&stored(shift, 0)[2 * PAGE..]).is_ok(), "without a mask it is one");
        assert!(read_head(&stored(shift, 77)[2 * PAGE..]).is_err());
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8u8, keys in 1usize..100) {
            let mut bytes = frame(keys);
            let used = { let h = read_head(&bytes).unwrap(); h.head_len() + h.body_len as usize };
            bytes[at.index(used)] ^= 1 << bit;
            // The padding of the header (after its checksum's own 8 bytes) is covered too.
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn noise_is_no_frame(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(read(&noise).is_err());
        }
    }
}
