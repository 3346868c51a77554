//! Takes aggregated records of the Kinesis Producer Library apart, as KCL does: written apart from the gateway's own writer.

use md5::{Digest, Md5};

const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sub {
    pub key: String,
    pub explicit_hash: Option<u128>,
    pub data: Vec<u8>,
    /// Tags, in order.
    pub tags: Vec<(String, String)>,
}

impl Sub {
    /// The point of the key space the record belongs to.
    pub fn hash(&self) -> u128 {
        self.explicit_hash.unwrap_or_else(|| hash_of(&self.key))
    }

    pub fn tag(&self, name: &str) -> Option<&str> {
        self.tags.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

pub fn hash_of(key: &str) -> u128 {
    u128::from_be_bytes(Md5::digest(key.as_bytes()).into())
}

/// The records of an aggregate; `None` if it is a plain record (wrong magic or digest).
pub fn split(record: &[u8]) -> Option<Vec<Sub>> {
    let body = record.strip_prefix(&MAGIC)?;
    let (message, digest) = body.split_at_checked(body.len().checked_sub(16)?)?;
    if Md5::digest(message)[..] != *digest {
        return None;
    }
    let (mut keys, mut hashes, mut subs) = (Vec::new(), Vec::new(), Vec::new());
    for (field, value) in fields(message)? {
        match (field, value) {
            (1, Value::Bytes(key)) => keys.push(String::from_utf8(key.to_vec()).ok()?),
            (2, Value::Bytes(hash)) => hashes.push(std::str::from_utf8(hash).ok()?.parse().ok()?),
            (3, Value::Bytes(record)) => subs.push(sub(record, &keys, &hashes)?),
            _ => return None,
        }
    }
    Some(subs)
}

fn sub(record: &[u8], keys: &[String], hashes: &[u128]) -> Option<Sub> {
    let mut sub = Sub { key: String::new(), explicit_hash: None, data: Vec::new(), tags: Vec::new() };
    for (field, value) in fields(record)? {
        match (field, value) {
            (1, Value::Number(index)) => sub.key = keys.get(index as usize)?.clone(),
            (2, Value::Number(index)) => sub.explicit_hash = Some(*hashes.get(index as usize)?),
            (3, Value::Bytes(data)) => sub.data = data.to_vec(),
            (4, Value::Bytes(tag)) => sub.tags.push(self::tag(tag)?),
            _ => return None,
        }
    }
    Some(sub)
}

fn tag(tag: &[u8]) -> Option<(String, String)> {
    let text = |value: &Value<'_>| match value {
        Value::Bytes(text) => String::from_utf8(text.to_vec()).ok(),
        Value::Number(_) => None,
    };
    match &fields(tag)?[..] {
        [(1, key), (2, value)] => Some((text(key)?, text(value)?)),
        [(1, key)] => Some((text(key)?, String::new())),
        _ => None,
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn fields(mut message: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        fields.push((
            tag >> 3,
            match tag & 7 {
                0 => Value::Number(varint(&mut message)?),
                2 => {
                    let length = varint(&mut message)? as usize;
                    let (value, rest) = message.split_at_checked(length)?;
                    message = rest;
                    Value::Bytes(value)
                }
                _ => return None,
            },
        ));
    }
    Some(fields)
}

fn varint(from: &mut &[u8]) -> Option<u64> {
    let (mut value, mut shift) = (0u64, 0);
    loop {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
        shift += 7;
        if shift > 63 {
            return None;
        }
    }
}
