//! Numbers and boxes out of bytes.
//!
//! An end too early is an error that names what it cut. Nothing is copied, and what a box means is not known here. Pure.

use super::ReadError;

/// Reads from the front. `within` is what an error names.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    data: &'a [u8],
    within: &'static str,
}

impl<'a> Cursor<'a> {
    pub fn new(data: &'a [u8], within: &'static str) -> Cursor<'a> {
        Cursor { data, within }
    }

    pub fn rest(&self) -> &'a [u8] {
        self.data
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8], ReadError> {
        let (taken, rest) = self.data.split_at_checked(count).ok_or(ReadError::Truncated(self.within))?;
        self.data = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let (taken, rest) = self.data.split_first_chunk().ok_or(ReadError::Truncated(self.within))?;
        self.data = rest;
        Ok(*taken)
    }

    pub fn u8(&mut self) -> Result<u8, ReadError> {
        self.array().map(u8::from_be_bytes)
    }

    pub fn u16(&mut self) -> Result<u16, ReadError> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, ReadError> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, ReadError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Version and flags of a full box.
    pub fn version_flags(&mut self) -> Result<(u8, u32), ReadError> {
        let word = self.u32()?;
        Ok(((word >> 24) as u8, word & 0x00ff_ffff))
    }
}

/// A box: its type, what is in it, and where it begins in the bytes that were walked.
#[derive(Clone, Copy)]
pub(super) struct Mp4Box<'a> {
    pub kind: [u8; 4],
    pub start: usize,
    pub body: &'a [u8],
}

/// The boxes of these bytes one after another; after an error there are no more.
pub(super) fn boxes(data: &[u8]) -> impl Iterator<Item = Result<Mp4Box<'_>, ReadError>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = data.get(at..).filter(|rest| !rest.is_empty())?;
        let found = next_box(rest, at);
        at = match &found {
            Ok((_, length)) => at + length,
            Err(_) => data.len(),
        };
        Some(found.map(|(found, _)| found))
    })
}

/// The first box of this type.
pub(super) fn find<'a>(data: &'a [u8], kind: &[u8; 4], name: &'static str) -> Result<&'a [u8], ReadError> {
    for found in boxes(data) {
        let found = found?;
        if found.kind == *kind {
            return Ok(found.body);
        }
    }
    Err(ReadError::Missing(name))
}

/// ISO/IEC 14496-12 4.2: size 1 means that 64 bits follow, size 0 that the box goes on to the end.
fn next_box(data: &[u8], start: usize) -> Result<(Mp4Box<'_>, usize), ReadError> {
    let mut cursor = Cursor::new(data, "the head of a box");
    let size = cursor.u32()?;
    let kind = cursor.array::<4>()?;
    let length = match size {
        0 => data.len(),
        1 => usize::try_from(cursor.u64()?).map_err(|_| ReadError::Truncated("a box"))?,
        size => size as usize,
    };
    let head = data.len() - cursor.rest().len();
    if length < head {
        return Err(ReadError::Invalid("a box is shorter than its head"));
    }
    let body = data.get(head..length).ok_or(ReadError::Truncated("a box"))?;
    Ok((Mp4Box { kind, start, body }, length))
}
