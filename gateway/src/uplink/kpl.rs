//! The aggregated record of the Kinesis Producer Library: many records in one, as KCL takes them apart again. Pure.
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

#[cfg(test)]
mod tests {
    use super::*;

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
