//! EBML (RFC 8794): ids, sizes and values of elements, read from a slice and written to a vector.
//!
//! It knows no element by name and holds no state: which elements there are is Matroska's matter (`matroska::ids`), and
//! input that comes in pieces is the parser's. A slice too short for a head is no fault here but `None`: more may come.
//! Lengths are checked against what is there before anything is cut. Pure.

use thiserror::Error;

/// Longest id, in bytes: EBMLMaxIDLength of Matroska.
pub const ID_BYTES_MAX: usize = 4;
/// Longest size, in bytes: EBMLMaxSizeLength of Matroska.
pub const SIZE_BYTES_MAX: usize = 8;
/// Longest head of an element, in bytes.
pub const HEAD_BYTES_MAX: usize = ID_BYTES_MAX + SIZE_BYTES_MAX;
/// The size that says "until something comes that cannot be inside", in its 8-byte form, which leaves room to patch it.
const UNKNOWN_SIZE: [u8; SIZE_BYTES_MAX] = [0x01, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];

/// What is wrong with bytes that should be EBML.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EbmlFault {
    #[error("no element id begins with {0:#04x}")]
    Id(u8),
    #[error("a size longer than {SIZE_BYTES_MAX} bytes")]
    Size,
    #[error("element {0:#X} has no size, and only a Segment and a Cluster may")]
    UnknownSize(u32),
    #[error("element {0:#X} is longer than what holds it")]
    Overruns(u32),
    #[error("element {id:#X} has {bytes} bytes, which is no number")]
    Number { id: u32, bytes: usize },
    #[error("an element's head is cut off by the end of what holds it")]
    CutHead,
}

/// A fault and the byte of the input it is at.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("at byte {at}: {fault}")]
pub struct EbmlError {
    pub at: u64,
    pub fault: EbmlFault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Known(u64),
    Unknown,
}

/// An element's id and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// With its length marker, as the RFCs print it.
    pub id: u32,
    pub size: Size,
    /// Bytes of the head itself.
    pub bytes: usize,
}

/// Reads a head; `None` if the slice ends before the head does.
pub fn head(input: &[u8]) -> Result<Option<Head>, EbmlFault> {
    let Some((id, id_bytes)) = id(input)? else { return Ok(None) };
    let Some((value, size_bytes)) = vint(input.get(id_bytes..).unwrap_or(&[]))? else { return Ok(None) };
    // RFC 8794 section 6.2: all data bits 1 is the size that is not known.
    let size = if value == vint_ones(size_bytes) { Size::Unknown } else { Size::Known(value) };
    Ok(Some(Head { id, size, bytes: id_bytes + size_bytes }))
}

fn id(input: &[u8]) -> Result<Option<(u32, usize)>, EbmlFault> {
    let Some(&first) = input.first() else { return Ok(None) };
    let bytes = first.leading_zeros() as usize + 1;
    if bytes > ID_BYTES_MAX {
        return Err(EbmlFault::Id(first));
    }
    let Some(whole) = input.get(..bytes) else { return Ok(None) };
    let id = whole.iter().fold(0u32, |id, byte| id << 8 | u32::from(*byte));
    let data = u64::from(id) & vint_ones(bytes);
    // RFC 8794 section 5: data bits all 0 or all 1 are no id. Noise often fails here.
    if data == 0 || data == vint_ones(bytes) {
        return Err(EbmlFault::Id(first));
    }
    Ok(Some((id, bytes)))
}

/// Reads a variable-size integer without its marker, and its length in bytes; `None` if the slice ends before it does.
pub fn vint(input: &[u8]) -> Result<Option<(u64, usize)>, EbmlFault> {
    let Some(&first) = input.first() else { return Ok(None) };
    let bytes = first.leading_zeros() as usize + 1;
    if bytes > SIZE_BYTES_MAX {
        return Err(EbmlFault::Size);
    }
    let Some(whole) = input.get(..bytes) else { return Ok(None) };
    let value = whole.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    Ok(Some((value & vint_ones(bytes), bytes)))
}

/// The greatest data of a variable-size integer of 1 to 8 bytes.
pub(crate) const fn vint_ones(bytes: usize) -> u64 {
    (1 << (7 * bytes)) - 1
}

/// An element that lies in memory whole.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    pub id: u32,
    /// Where its body begins in the input.
    pub at: u64,
    pub body: &'a [u8],
}

impl<'a> Element<'a> {
    /// An unsigned integer; no bytes are 0 (RFC 8794 section 7.2).
    pub fn uint(&self) -> Result<u64, EbmlError> {
        if self.body.len() > 8 {
            return Err(self.no_number());
        }
        Ok(self.body.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// A float of 0, 4 or 8 bytes.
    pub fn float(&self) -> Result<f64, EbmlError> {
        if self.body.is_empty() {
            return Ok(0.0);
        }
        let double = <[u8; 8]>::try_from(self.body).map(f64::from_be_bytes);
        let single = <[u8; 4]>::try_from(self.body).map(|bytes| f64::from(f32::from_be_bytes(bytes)));
        double.or(single).map_err(|_| self.no_number())
    }

    /// Text up to its first NUL (RFC 8794 section 7.5); what is no UTF-8 in it is replaced.
    pub fn text(&self) -> String {
        let end = self.body.iter().position(|byte| *byte == 0).unwrap_or(self.body.len());
        String::from_utf8_lossy(&self.body[..end]).into_owned()
    }

    pub fn children(&self) -> Elements<'a> {
        Elements::new(self.body, self.at)
    }

    fn no_number(&self) -> EbmlError {
        EbmlError { at: self.at, fault: EbmlFault::Number { id: self.id, bytes: self.body.len() } }
    }
}

/// The elements of a slice, one after another; a fault is the last item.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    rest: &'a [u8],
    at: u64,
}

impl<'a> Elements<'a> {
    /// `at`: where the slice begins in the input.
    pub fn new(body: &'a [u8], at: u64) -> Elements<'a> {
        Elements { rest: body, at }
    }

    fn take(&mut self) -> Result<Element<'a>, EbmlFault> {
        let head = head(self.rest)?.ok_or(EbmlFault::CutHead)?;
        let Size::Known(size) = head.size else { return Err(EbmlFault::UnknownSize(head.id)) };
        let end = usize::try_from(size).ok().and_then(|size| size.checked_add(head.bytes));
        let whole = end.and_then(|end| self.rest.get(..end)).ok_or(EbmlFault::Overruns(head.id))?;
        let element =
            Element { id: head.id, at: self.at.saturating_add(head.bytes as u64), body: &whole[head.bytes..] };
        self.rest = &self.rest[whole.len()..];
        self.at = self.at.saturating_add(whole.len() as u64);
        Ok(element)
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, EbmlError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let at = self.at;
        Some(self.take().map_err(|fault| {
            self.rest = &[];
            EbmlError { at, fault }
        }))
    }
}

/// Writes an id that carries its marker.
pub fn put_id(out: &mut Vec<u8>, id: u32) {
    let skip = (id.leading_zeros() / 8).min(3) as usize;
    out.extend_from_slice(&id.to_be_bytes()[skip..]);
}

/// Writes a size in as few bytes as it fits.
pub fn put_size(out: &mut Vec<u8>, size: u64) {
    let bytes = size_bytes(size);
    let marked = size | 1 << (7 * bytes);
    out.extend_from_slice(&marked.to_be_bytes()[8 - bytes..]);
}

/// All ones are kept for the size that is not known.
fn size_bytes(size: u64) -> usize {
    (1..SIZE_BYTES_MAX).find(|bytes| size < vint_ones(*bytes)).unwrap_or(SIZE_BYTES_MAX)
}

/// Opens a master that ends where something comes that cannot be in it.
pub fn put_unknown(out: &mut Vec<u8>, id: u32) {
    put_id(out, id);
    out.extend_from_slice(&UNKNOWN_SIZE);
}

pub fn put_binary(out: &mut Vec<u8>, id: u32, body: &[u8]) {
    put_id(out, id);
    put_size(out, body.len() as u64);
    out.extend_from_slice(body);
}

pub fn put_text(out: &mut Vec<u8>, id: u32, text: &str) {
    put_binary(out, id, text.as_bytes());
}

pub fn put_uint(out: &mut Vec<u8>, id: u32, value: u64) {
    let skip = (value.leading_zeros() / 8).min(7) as usize;
    put_binary(out, id, &value.to_be_bytes()[skip..]);
}

pub fn put_float(out: &mut Vec<u8>, id: u32, value: f64) {
    put_binary(out, id, &value.to_be_bytes());
}

/// Opens a master whose size is not known yet and will be: [`end_master`] takes what this gives.
pub fn begin_master(out: &mut Vec<u8>, id: u32) -> usize {
    put_unknown(out, id);
    out.len()
}

/// Closes the master whose body began at `body`, writing its size in 8 bytes.
pub fn end_master(out: &mut [u8], body: usize) {
    let size = out.len().saturating_sub(body) as u64 | 1 << 56;
    if let Some(place) = body.checked_sub(SIZE_BYTES_MAX).and_then(|begin| out.get_mut(begin..body)) {
        place.copy_from_slice(&size.to_be_bytes());
    }
}

/// Writes a master whose children `fill` writes.
pub fn put_master(out: &mut Vec<u8>, id: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut body = Vec::new();
    fill(&mut body);
    put_binary(out, id, &body);
}

#[cfg(test)]
mod tests;
