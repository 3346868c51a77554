//! The aggregated record of the Kinesis Producer Library: many records in one, written and, as KCL does it, taken apart. Pure.
//!
//! ```text
//! F3 89 9A C2 | AggregatedRecord, protobuf | MD5 of the protobuf
//! AggregatedRecord { repeated string partition_key_table = 1; repeated string explicit_hash_key_table = 2;
//!                    repeated Record records = 3; }
//! Record { uint64 partition_key_index = 1; optional uint64 explicit_hash_key_index = 2; bytes data = 3;
//!          repeated Tag tags = 4; }     Tag { string key = 1; optional string value = 2; }
//! ```
//! The record id travels as the tag [`ID_TAG`].

use crate::record::HashKey;
use md5::{Digest, Md5};
use std::collections::HashMap;

pub const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];
pub const ID_TAG: &str = "headwater-id";
/// The most an entry's own fields add to its key, data and id, in bytes.
pub const ENTRY_OVERHEAD: usize = 96;
/// Magic and digest.
pub const FRAME_BYTES: usize = 20;

/// Partition keys of one aggregated record that is taken apart.
const KEYS_MAX: usize = 1 << 16;

const STRING_OR_MESSAGE: u8 = 2;
const VARINT: u8 = 0;

/// Builds one aggregated record.
#[derive(Default)]
pub struct Aggregate<'a> {
    keys: HashMap<&'a str, u64>,
    hashes: HashMap<HashKey, u64>,
    /// Fields 1 and 2, then field 3, joined at the end.
    tables: Vec<u8>,
    records: Vec<u8>,
    one: Vec<u8>,
    tag: Vec<u8>,
}

impl<'a> Aggregate<'a> {
    pub fn add(&mut self, key: &'a str, hash: Option<HashKey>, data: &[u8], id: Option<&str>) {
        let next = self.keys.len() as u64;
        let tables = &mut self.tables;
        let key_index = *self.keys.entry(key).or_insert_with(|| {
            put_bytes(tables, 1, key.as_bytes());
            next
        });
        let next = self.hashes.len() as u64;
        let hash_index = hash.map(|hash| {
            *self.hashes.entry(hash).or_insert_with(|| {
                put_bytes(tables, 2, hash.0.to_string().as_bytes());
                next
            })
        });
        self.one.clear();
        put_number(&mut self.one, 1, key_index);
        if let Some(index) = hash_index {
            put_number(&mut self.one, 2, index);
        }
        put_bytes(&mut self.one, 3, data);
        if let Some(id) = id {
            self.tag.clear();
            put_bytes(&mut self.tag, 1, ID_TAG.as_bytes());
            put_bytes(&mut self.tag, 2, id.as_bytes());
            put_bytes(&mut self.one, 4, &self.tag);
        }
        put_bytes(&mut self.records, 3, &self.one);
    }

    pub fn finish(self) -> Vec<u8> {
        let mut whole = Vec::with_capacity(FRAME_BYTES + self.tables.len() + self.records.len());
        whole.extend_from_slice(&MAGIC);
        whole.extend_from_slice(&self.tables);
        whole.extend_from_slice(&self.records);
        let digest = Md5::digest(&whole[MAGIC.len()..]);
        whole.extend_from_slice(&digest);
        whole
    }
}

fn put_bytes(into: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    into.push(field << 3 | STRING_OR_MESSAGE);
    put_varint(into, bytes.len() as u64);
    into.extend_from_slice(bytes);
}

fn put_number(into: &mut Vec<u8>, field: u8, value: u64) {
    into.push(field << 3 | VARINT);
    put_varint(into, value);
}

fn put_varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// The records of an aggregated record, by this library or another. `None` if it is none: it lacks magic or digest, or it is
/// not of the form. Memory is the table of keys alone.
pub fn split(record: &[u8]) -> Option<Split<'_>> {
    let (message, digest) = record.strip_prefix(&MAGIC)?.split_last_chunk::<16>()?;
    if Md5::digest(message)[..] != digest[..] {
        return None;
    }
    let mut keys = Vec::new();
    let mut fields = Fields(message);
    while let Some((field, value)) = fields.next_field()? {
        if let (1, Field::Bytes(key)) = (field, value) {
            keys.push(std::str::from_utf8(key).ok().filter(|_| keys.len() < KEYS_MAX)?);
        }
    }
    Some(Split { keys, fields: Fields(message) })
}

/// Key and data of each record. One that is not of the form is left out.
pub struct Split<'a> {
    keys: Vec<&'a str>,
    fields: Fields<'a>,
}

impl<'a> Iterator for Split<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        // All fields were looked at when it was opened.
        while let Some((field, value)) = self.fields.next_field().flatten() {
            if let (3, Field::Bytes(record)) = (field, value)
                && let Some((key, data)) = one(record)
                && let Some(key) = usize::try_from(key).ok().and_then(|index| self.keys.get(index))
            {
                return Some((*key, data));
            }
        }
        None
    }
}

/// Index of the key, and the data.
fn one(record: &[u8]) -> Option<(u64, &[u8])> {
    let (mut key, mut data) = (None, None);
    let mut fields = Fields(record);
    while let Some((field, value)) = fields.next_field()? {
        match (field, value) {
            (1, Field::Number(index)) => key = Some(index),
            (3, Field::Bytes(bytes)) => data = Some(bytes),
            _ => {}
        }
    }
    Some((key?, data?))
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Number and value of the next field, `Some(None)` at the end; `None` if it is no protobuf of strings and numbers.
    fn next_field(&mut self) -> Option<Option<(u64, Field<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let head = self.varint()?;
        let value = match (head & 7) as u8 {
            VARINT => Field::Number(self.varint()?),
            STRING_OR_MESSAGE => {
                let length = usize::try_from(self.varint()?).ok()?;
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Field::Bytes(bytes)
            }
            _ => return None,
        };
        Some(Some((head >> 3, value)))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_put_together_comes_apart(
            records in prop::collection::vec(("[a-c]{1,2}", prop::collection::vec(any::<u8>(), 0..50), any::<bool>()), 0..20),
        ) {
            let mut aggregate = Aggregate::default();
            for (key, data, more) in &records {
                aggregate.add(key, more.then_some(HashKey(7)), data, more.then_some("id"));
            }
            let whole = aggregate.finish();
            let apart: Vec<_> = split(&whole).unwrap().collect();
            let expected: Vec<_> = records.iter().map(|(key, data, _)| (key.as_str(), &data[..])).collect();
            prop_assert_eq!(apart, expected);
            prop_assert!(split(&whole[..whole.len() - 1]).is_none(), "cut short, the digest is another");
        }

        #[test]
        fn noise_with_the_right_digest_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut whole = MAGIC.to_vec();
            whole.extend_from_slice(&noise);
            whole.extend_from_slice(&Md5::digest(&noise));
            let _ = split(&whole).map(Iterator::count);
            let _ = split(&noise);
        }
    }

    #[test]
    fn a_record_with_more_keys_than_any_has_is_none() {
        let table = |keys: usize| {
            let message = [0x0a, 0].repeat(keys);
            [&MAGIC[..], &message, &Md5::digest(&message)].concat()
        };
        assert!(split(&table(KEYS_MAX)).is_some() && split(&table(KEYS_MAX + 1)).is_none());
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut aggregate = Aggregate::default();
        aggregate.add("k", None, b"one", Some("id"));
        aggregate.add("k", Some(HashKey(7)), b"", None);
        let bytes = aggregate.finish();
        let mut body = vec![0x0a, 1, b'k', 0x12, 1, b'7'];
        body.extend_from_slice(&[0x1a, 27, 0x08, 0, 0x1a, 3, b'o', b'n', b'e', 0x22, 18, 0x0a, 12]);
        body.extend_from_slice(b"headwater-id");
        body.extend_from_slice(&[0x12, 2, b'i', b'd', 0x1a, 6, 0x08, 0, 0x10, 0, 0x1a, 0]);
        assert_eq!(bytes[..4], MAGIC);
        assert_eq!(bytes[4..bytes.len() - 16], body[..]);
        assert_eq!(bytes[bytes.len() - 16..], Md5::digest(&body)[..]);
    }
}
