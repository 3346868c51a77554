//! One record as bytes: in the journal, in the window and in a block alike. Pure.
//!
//! ```text
//! flags u8 | key length varint, key | [hash 16] | [producer id 16, epoch 4, sequence 8] | [headers] | data
//! headers: count varint, then per header: id u8, length varint, value
//! data:    length varint, bytes          or, flag BLOB: file u32, offset u64, length u32, xxh3 u64 (24 bytes)
//! ```
//! Fixed-width numbers are big-endian; a varint is LEB128. The number and the arrival time stand in the run around it.

use crate::record::{HashKey, Header, HeaderId, NewRecord, Producer};
use bytes::{BufMut, Bytes, BytesMut};

const HASH: u8 = 1;
const PRODUCER: u8 = 2;
const HEADERS: u8 = 4;
const BLOB: u8 = 8;
const KNOWN: u8 = HASH | PRODUCER | HEADERS | BLOB;

/// Where a large value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobRef {
    pub file: u32,
    pub offset: u64,
    pub length: u32,
    pub checksum: u64,
}

pub const BLOB_REF_BYTES: usize = 24;

/// A record decoded in place.
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded {
    pub key: Bytes,
    pub explicit_hash: Option<HashKey>,
    pub producer: Option<Producer>,
    pub headers: Vec<Header>,
    pub data: Data,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Data {
    Inline(Bytes),
    Blob(BlobRef),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a record of this format")]
pub struct Malformed;

pub fn put(into: &mut BytesMut, record: &NewRecord<'_>) {
    put_head(into, record, 0);
    put_varint(into, record.data.len() as u64);
    into.extend_from_slice(record.data);
}

/// Encodes a record whose data goes to a blob file; returns where [`fill_blob`] has to write the reference.
pub fn put_with_blob(into: &mut BytesMut, record: &NewRecord<'_>) -> usize {
    put_head(into, record, BLOB);
    into.put_bytes(0, BLOB_REF_BYTES);
    into.len() - BLOB_REF_BYTES
}

pub fn fill_blob(at: &mut [u8], blob: &BlobRef) {
    at[0..4].copy_from_slice(&blob.file.to_be_bytes());
    at[4..12].copy_from_slice(&blob.offset.to_be_bytes());
    at[12..16].copy_from_slice(&blob.length.to_be_bytes());
    at[16..24].copy_from_slice(&blob.checksum.to_be_bytes());
}

fn put_head(into: &mut BytesMut, record: &NewRecord<'_>, blob: u8) {
    let headers_len: usize = record.headers.iter().map(|h| h.value.len() + 4).sum();
    // A large value lies elsewhere: room for it would be kept as long as the record is in the window.
    let data_len = if blob == 0 { record.data.len() } else { BLOB_REF_BYTES };
    into.reserve(record.key.len() + data_len + headers_len + 64);
    let mut flags = blob;
    if record.explicit_hash.is_some() {
        flags |= HASH;
    }
    if record.producer.is_some() {
        flags |= PRODUCER;
    }
    if !record.headers.is_empty() {
        flags |= HEADERS;
    }
    into.put_u8(flags);
    put_varint(into, record.key.len() as u64);
    into.extend_from_slice(record.key);
    if let Some(HashKey(hash)) = record.explicit_hash {
        into.put_u128(hash);
    }
    if let Some(producer) = record.producer {
        into.put_u128(producer.id);
        into.put_u32(producer.epoch);
        into.put_u64(producer.sequence);
    }
    if !record.headers.is_empty() {
        put_varint(into, record.headers.len() as u64);
        for header in record.headers {
            into.put_u8(header.id as u8);
            put_varint(into, header.value.len() as u64);
            into.extend_from_slice(&header.value);
        }
    }
}

/// Takes one record off the front of `from`. Values share `from`'s memory.
pub fn take(from: &mut Bytes) -> Result<Decoded, Malformed> {
    let flags = take_u8(from)?;
    if flags & !KNOWN != 0 {
        return Err(Malformed);
    }
    let key_length = take_length(from)?;
    let key = take_bytes(from, key_length)?;
    let explicit_hash = match flags & HASH {
        0 => None,
        _ => Some(HashKey(u128::from_be_bytes(take_array(from)?))),
    };
    let producer = match flags & PRODUCER {
        0 => None,
        _ => Some(Producer {
            id: u128::from_be_bytes(take_array(from)?),
            epoch: u32::from_be_bytes(take_array(from)?),
            sequence: u64::from_be_bytes(take_array(from)?),
        }),
    };
    let mut headers = Vec::new();
    if flags & HEADERS != 0 {
        let count = take_length(from)?;
        headers.reserve(count.min(64));
        for _ in 0..count {
            let id = take_u8(from)?;
            let length = take_length(from)?;
            let value = take_bytes(from, length)?;
            // A header of a later version is carried by nobody; the record is still whole.
            if let Some(id) = HeaderId::from_u8(id) {
                headers.push(Header { id, value });
            }
        }
    }
    let data = if flags & BLOB != 0 {
        Data::Blob(BlobRef {
            file: u32::from_be_bytes(take_array(from)?),
            offset: u64::from_be_bytes(take_array(from)?),
            length: u32::from_be_bytes(take_array(from)?),
            checksum: u64::from_be_bytes(take_array(from)?),
        })
    } else {
        let length = take_length(from)?;
        Data::Inline(take_bytes(from, length)?)
    };
    Ok(Decoded { key, explicit_hash, producer, headers, data })
}

/// Steps over one record without touching reference counts; returns its length in `from`.
pub fn skip(from: &[u8]) -> Result<usize, Malformed> {
    let mut at = Cursor { bytes: from, at: 0 };
    let flags = at.array::<1>()?[0];
    if flags & !KNOWN != 0 {
        return Err(Malformed);
    }
    let key = at.length()?;
    at.advance(key)?;
    if flags & HASH != 0 {
        at.advance(16)?;
    }
    if flags & PRODUCER != 0 {
        at.advance(28)?;
    }
    if flags & HEADERS != 0 {
        for _ in 0..at.length()? {
            at.advance(1)?;
            let length = at.length()?;
            at.advance(length)?;
        }
    }
    if flags & BLOB != 0 {
        at.advance(BLOB_REF_BYTES)?;
    } else {
        let data = at.length()?;
        at.advance(data)?;
    }
    Ok(at.at)
}

/// An encoded record taken apart without copying or counting references, to be encoded again for another log.
#[derive(Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    pub key: &'a [u8],
    pub explicit_hash: Option<HashKey>,
    header_count: usize,
    /// The headers as they are encoded, without their count.
    headers: &'a [u8],
    /// Bytes of the headers' values, with what a header counts beside.
    pub headers_weight: usize,
    /// It names the id it had at the gateway it first came to.
    pub has_origin: bool,
    /// `None`: the value lies in a blob file.
    pub data: Option<&'a [u8]>,
}

/// Takes the record at the front of `from` apart; also returns its length.
pub fn parts(from: &[u8]) -> Result<(Parts<'_>, usize), Malformed> {
    let mut at = Cursor { bytes: from, at: 0 };
    let flags = at.array::<1>()?[0];
    if flags & !KNOWN != 0 {
        return Err(Malformed);
    }
    let key = at.slice()?;
    let explicit_hash = match flags & HASH {
        0 => None,
        _ => Some(HashKey(u128::from_be_bytes(at.array()?))),
    };
    if flags & PRODUCER != 0 {
        at.advance(28)?;
    }
    let (mut header_count, mut headers_weight, mut has_origin) = (0, 0, false);
    let mut headers_at = at.at;
    if flags & HEADERS != 0 {
        header_count = at.length()?;
        headers_at = at.at;
        for _ in 0..header_count {
            has_origin |= at.array::<1>()?[0] == HeaderId::Origin as u8;
            headers_weight += at.slice()?.len() + 8;
        }
    }
    let headers = &from[headers_at..at.at];
    let data = match flags & BLOB {
        0 => Some(at.slice()?),
        _ => at.advance(BLOB_REF_BYTES).map(|()| None)?,
    };
    Ok((Parts { key, explicit_hash, header_count, headers, headers_weight, has_origin, data }, at.at))
}

/// Encodes a record that was taken apart with another producer number, and its id at the gateway it came from unless it has
/// one. The value is inline.
pub fn put_relayed(into: &mut BytesMut, parts: &Parts<'_>, producer: &Producer, origin: &[u8]) {
    let data = parts.data.unwrap_or_default();
    into.reserve(parts.key.len() + parts.headers.len() + origin.len() + data.len() + 96);
    let adds_origin = !parts.has_origin;
    let header_count = parts.header_count + usize::from(adds_origin);
    let hash = if parts.explicit_hash.is_some() { HASH } else { 0 };
    into.put_u8(hash | PRODUCER | if header_count > 0 { HEADERS } else { 0 });
    put_varint(into, parts.key.len() as u64);
    into.extend_from_slice(parts.key);
    if let Some(HashKey(hash)) = parts.explicit_hash {
        into.put_u128(hash);
    }
    into.put_u128(producer.id);
    into.put_u32(producer.epoch);
    into.put_u64(producer.sequence);
    if header_count > 0 {
        put_varint(into, header_count as u64);
    }
    if adds_origin {
        into.put_u8(HeaderId::Origin as u8);
        put_varint(into, origin.len() as u64);
        into.extend_from_slice(origin);
    }
    into.extend_from_slice(parts.headers);
    put_varint(into, data.len() as u64);
    into.extend_from_slice(data);
}

/// The producer number of an encoded record, if it has one.
pub fn producer(record: &[u8]) -> Option<Producer> {
    if record.first()? & PRODUCER == 0 {
        return None;
    }
    let mut at = Cursor { bytes: record, at: 1 };
    let key = at.length().ok()?;
    at.advance(key).ok()?;
    if record[0] & HASH != 0 {
        at.advance(16).ok()?;
    }
    Some(Producer {
        id: u128::from_be_bytes(at.array().ok()?),
        epoch: u32::from_be_bytes(at.array().ok()?),
        sequence: u64::from_be_bytes(at.array().ok()?),
    })
}

/// The blob reference of an encoded record, if its value lies in a blob file.
pub fn blob(record: &[u8]) -> Option<BlobRef> {
    if record.first()? & BLOB == 0 {
        return None;
    }
    let mut at = Cursor { bytes: record, at: record.len().checked_sub(BLOB_REF_BYTES)? };
    Some(BlobRef {
        file: u32::from_be_bytes(at.array().ok()?),
        offset: u64::from_be_bytes(at.array().ok()?),
        length: u32::from_be_bytes(at.array().ok()?),
        checksum: u64::from_be_bytes(at.array().ok()?),
    })
}

/// Bytes of the large values that encoded records refer to.
pub fn blob_bytes(records: &[u8]) -> u64 {
    let (mut bytes, mut rest) = (0, records);
    while let Ok(length) = skip(rest) {
        bytes += blob(&rest[..length]).map_or(0, |blob| u64::from(blob.length));
        rest = &rest[length..];
        if rest.is_empty() {
            break;
        }
    }
    bytes
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// A length and so many bytes.
    fn slice(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.length()?;
        let start = self.at;
        self.advance(length)?;
        Ok(&self.bytes[start..self.at])
    }

    fn advance(&mut self, by: usize) -> Result<(), Malformed> {
        self.at = self.at.checked_add(by).filter(|at| *at <= self.bytes.len()).ok_or(Malformed)?;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let start = self.at;
        self.advance(N)?;
        self.bytes[start..self.at].try_into().map_err(|_| Malformed)
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        let (value, used) = read_varint(&self.bytes[self.at..]).ok_or(Malformed)?;
        self.at += used;
        usize::try_from(value).map_err(|_| Malformed)
    }
}

pub fn put_varint(into: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        into.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    into.put_u8(value as u8);
}

/// Value and bytes used; `None` if cut short or longer than a u64.
pub fn read_varint(from: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (at, byte) in from.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if at == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

fn take_u8(from: &mut Bytes) -> Result<u8, Malformed> {
    take_array::<1>(from).map(|[byte]| byte)
}

fn take_array<const N: usize>(from: &mut Bytes) -> Result<[u8; N], Malformed> {
    take_bytes(from, N)?.as_ref().try_into().map_err(|_| Malformed)
}

fn take_length(from: &mut Bytes) -> Result<usize, Malformed> {
    let (value, used) = read_varint(from).ok_or(Malformed)?;
    let _ = from.split_to(used);
    usize::try_from(value).map_err(|_| Malformed)
}

fn take_bytes(from: &mut Bytes, length: usize) -> Result<Bytes, Malformed> {
    if length > from.len() {
        return Err(Malformed);
    }
    Ok(from.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_reads_back_what_was_written(
            key in prop::collection::vec(any::<u8>(), 1..40),
            data in prop::collection::vec(any::<u8>(), 0..300),
            hash in prop::option::of(any::<u128>()),
            producer in prop::option::of((any::<u128>(), any::<u32>(), any::<u64>())),
            topic in prop::option::of("[a-z/]{1,30}"),
        ) {
            let headers: Vec<_> = topic.into_iter().map(|t| Header::new(HeaderId::Topic, t)).collect();
            let producer = producer.map(|(id, epoch, sequence)| Producer { id, epoch, sequence });
            let explicit_hash = hash.map(HashKey);
            let record = NewRecord { key: &key, explicit_hash, producer, headers: &headers, data: &data };
            let mut bytes = BytesMut::new();
            put(&mut bytes, &record);
            put(&mut bytes, &record);
            prop_assert_eq!(skip(&bytes).unwrap() * 2, bytes.len());
            let (parts, length) = parts(&bytes).unwrap();
            prop_assert_eq!(length * 2, bytes.len());
            let (relay, origin) = (Producer { id: 1, epoch: 2, sequence: 3 }, Header::new(HeaderId::Origin, "hw1/x"));
            let mut relayed = BytesMut::new();
            put_relayed(&mut relayed, &parts, &relay, b"hw1/x");
            let with_origin: Vec<_> = [origin].into_iter().chain(headers.iter().cloned()).collect();
            let mut expected = BytesMut::new();
            put(&mut expected, &NewRecord { producer: Some(relay), headers: &with_origin, ..record.clone() });
            prop_assert_eq!(relayed, expected);
            let mut bytes = bytes.freeze();
            for _ in 0..2 {
                let read = take(&mut bytes).unwrap();
                prop_assert_eq!(&read.key[..], &key[..]);
                prop_assert_eq!(read.explicit_hash, explicit_hash);
                prop_assert_eq!(read.producer, producer);
                prop_assert_eq!(&read.headers, &headers);
                prop_assert_eq!(read.data, Data::Inline(data.clone().into()));
            }
            prop_assert!(bytes.is_empty());
        }

        #[test]
        fn noise_is_refused_or_read_and_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let skipped = skip(&noise);
            let mut bytes = Bytes::from(noise.clone());
            let taken = take(&mut bytes);
            prop_assert_eq!(skipped.is_ok(), taken.is_ok());
            prop_assert_eq!(parts(&noise).ok().map(|(_, length)| length), skipped.ok());
            if let Ok(length) = skipped {
                prop_assert_eq!(length, noise.len() - bytes.len());
            }
        }
    }
}
