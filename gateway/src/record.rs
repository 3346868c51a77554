//! What the gateway keeps: a record, its place, and the key space it is placed by.
//!
//! A record is bytes with a partition key. Its place is a stream, a shard of that stream, and a number in that shard.
//! Nothing here knows of disks, sockets or clocks; the log, MQTT, the AWS door and the uplink all speak these types. Pure.

use bytes::{BufMut, Bytes};
use md5::{Digest, Md5};
use std::fmt;
use std::sync::Arc;

/// Longest partition key, in bytes (Kinesis counts 256 characters; a character is at most 4 bytes).
pub const PARTITION_KEY_BYTES_MAX: usize = 1024;
/// Longest value of one record, in bytes (10 MiB, the largest Kinesis allows).
pub const DATA_BYTES_MAX: usize = 10 << 20;
/// All headers of one record together, in bytes.
pub const HEADERS_BYTES_MAX: usize = 64 << 10;

/// A stream's name: 1 to 128 of `[a-zA-Z0-9_.-]`, as Kinesis has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamName(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a stream name is 1 to 128 letters, digits, '_', '.' or '-': {0:?} is not")]
pub struct BadStreamName(pub String);

impl StreamName {
    pub fn new(name: &str) -> Result<Self, BadStreamName> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if name.is_empty() || name.len() > 128 || !name.bytes().all(good) {
            return Err(BadStreamName(name.chars().take(160).collect()));
        }
        Ok(Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A point of the 128-bit key space: MD5 of the partition key, big-endian, unless the producer names one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HashKey(pub u128);

impl HashKey {
    pub const MAX: HashKey = HashKey(u128::MAX);

    pub fn of(partition_key: &[u8]) -> Self {
        HashKey(u128::from_be_bytes(Md5::digest(partition_key).into()))
    }
}

/// Number of a record in its shard, from 1; given at append, never given twice.
pub type Number = u64;
/// Index of a shard in its stream, from 0; never reused. Shown as `shardId-%012d`.
pub type ShardIndex = u32;

/// `shardId-000000000007`, as Kinesis writes it.
pub fn shard_id(index: ShardIndex) -> String {
    format!("shardId-{index:012}")
}

/// The index in `shardId-000000000007`; `None` for anything else.
pub fn parse_shard_id(id: &str) -> Option<ShardIndex> {
    let digits = id.strip_prefix("shardId-")?;
    if digits.len() != 12 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// The number a producer gave its record (promise P3): within one `id` and `epoch`, `sequence` only rises.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Producer {
    pub id: u128,
    pub epoch: u32,
    pub sequence: u64,
}

/// What may stand in a record's header. The ids are on disk and on the wire between gateways: never reuse one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum HeaderId {
    /// MQTT topic the record came in on.
    Topic = 1,
    ContentType = 2,
    ResponseTopic = 3,
    CorrelationData = 4,
    /// Name and value, as [`Header::user`] packs them.
    UserProperty = 5,
    /// The id the record had at the gateway it first came to: see [`RecordId`].
    Origin = 6,
    /// MQTT payload format indicator, one byte.
    PayloadFormat = 7,
    /// QoS of the MQTT PUBLISH, one byte; left out where it is 1, as most are, so that the usual record pays nothing.
    PublishQos = 8,
    /// What a record of a video stream is: see `wire::media`.
    Media = 9,
}

impl HeaderId {
    pub fn from_u8(id: u8) -> Option<Self> {
        use HeaderId::*;
        [Topic, ContentType, ResponseTopic, CorrelationData, UserProperty, Origin, PayloadFormat, PublishQos, Media]
            .into_iter()
            .find(|known| *known as u8 == id)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    pub id: HeaderId,
    pub value: Bytes,
}

impl Header {
    pub fn new(id: HeaderId, value: impl Into<Bytes>) -> Self {
        Header { id, value: value.into() }
    }

    /// A user property: the name's length in two bytes big-endian, the name, the value.
    pub fn user(name: &str, value: &str) -> Self {
        let name = &name.as_bytes()[..name.len().min(usize::from(u16::MAX))];
        let mut packed = Vec::with_capacity(2 + name.len() + value.len());
        packed.extend_from_slice(&(name.len() as u16).to_be_bytes());
        packed.extend_from_slice(name);
        packed.extend_from_slice(value.as_bytes());
        Header::new(HeaderId::UserProperty, packed)
    }

    /// Name and value of a user property; `None` if this header is none.
    pub fn as_user(&self) -> Option<(&str, &str)> {
        if self.id != HeaderId::UserProperty {
            return None;
        }
        let (length, rest) = self.value.split_at_checked(2)?;
        let length = usize::from(u16::from_be_bytes(length.try_into().ok()?));
        let (name, value) = rest.split_at_checked(length)?;
        Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
    }
}

/// A record as it comes to the door of the log.
#[derive(Clone, Debug, Default)]
pub struct NewRecord<'a> {
    pub key: &'a [u8],
    /// Overrides the hash of the key (Kinesis `ExplicitHashKey`).
    pub explicit_hash: Option<HashKey>,
    pub producer: Option<Producer>,
    pub headers: &'a [Header],
    pub data: &'a [u8],
}

impl NewRecord<'_> {
    pub fn hash(&self) -> HashKey {
        self.explicit_hash.unwrap_or_else(|| HashKey::of(self.key))
    }
}

/// A record as it is read back from the log. Cloning is cheap: the bytes are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub number: Number,
    /// Arrival at the gateway, milliseconds since 1970 as far as the box knew or has learnt since.
    pub arrival_ms: u64,
    pub key: Bytes,
    pub explicit_hash: Option<HashKey>,
    pub producer: Option<Producer>,
    pub headers: Vec<Header>,
    pub data: Bytes,
}

/// Writes a number in decimal, without memory of its own: record ids are made by the million.
pub fn put_decimal(into: &mut impl BufMut, number: u64) {
    let (mut digits, mut at, mut rest) = ([0u8; 20], 20, number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    into.put_slice(&digits[at..]);
}

impl Record {
    pub fn hash(&self) -> HashKey {
        self.explicit_hash.unwrap_or_else(|| HashKey::of(&self.key))
    }

    pub fn header(&self, id: HeaderId) -> Option<&Bytes> {
        self.headers.iter().find(|h| h.id == id).map(|h| &h.value)
    }

    pub fn topic(&self) -> Option<&str> {
        std::str::from_utf8(self.header(HeaderId::Topic)?).ok()
    }

    /// Bytes of key, headers and value: a record without a value may still carry [`HEADERS_BYTES_MAX`].
    pub fn weight(&self) -> usize {
        self.key.len() + self.data.len() + self.headers.iter().map(|h| h.value.len() + 8).sum::<usize>()
    }
}

/// The name of a record that stays the same everywhere it travels: (gateway, incarnation, stream, shard, number).
/// Text form: `hw1/<gateway>/<incarnation>/<stream>/<shard>/<number>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecordId {
    pub gateway: String,
    /// Which life of the gateway's log: counts up when a log is made anew or its numbers had to jump.
    pub incarnation: u32,
    pub stream: StreamName,
    pub shard: ShardIndex,
    pub number: Number,
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RecordId { gateway, incarnation, stream, shard, number } = self;
        write!(f, "hw1/{gateway}/{incarnation}/{stream}/{shard}/{number}")
    }
}

impl std::str::FromStr for RecordId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('/');
        let mut next = || parts.next().ok_or(());
        if next()? != "hw1" {
            return Err(());
        }
        let id = RecordId {
            gateway: next()?.to_owned(),
            incarnation: next()?.parse().map_err(drop)?,
            stream: StreamName::new(next()?).map_err(drop)?,
            shard: next()?.parse().map_err(drop)?,
            number: next()?.parse().map_err(drop)?,
        };
        if parts.next().is_some() { Err(()) } else { Ok(id) }
    }
}

/// Why a range of numbers is not there any more (promise P5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GapReason {
    /// Dropped to make room (`on_full = "drop-oldest"` or the box's budget).
    Evicted = 1,
    /// Older than the stream's retention while a required sink still wanted it, or while it was never read.
    Expired = 2,
    /// Found damaged on disk.
    Corrupt = 3,
    /// Refused by the destination for good.
    Rejected = 4,
    /// Numbers that were never given to an acknowledged record: a commit failed, or a start jumped past a reserve.
    Unused = 5,
}

impl GapReason {
    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::Evicted => "evicted",
            GapReason::Expired => "expired",
            GapReason::Corrupt => "corrupt",
            GapReason::Rejected => "rejected",
            GapReason::Unused => "unused",
        }
    }

    pub fn from_u8(byte: u8) -> Option<Self> {
        use GapReason::*;
        [Evicted, Expired, Corrupt, Rejected, Unused].into_iter().find(|known| *known as u8 == byte)
    }
}

/// A line of the gap ledger: numbers `from..=to` of a shard are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub shard: ShardIndex,
    pub from: Number,
    pub to: Number,
    pub reason: GapReason,
    /// Arrival times of the first and last record of the range as far as known, else 0. Milliseconds since 1970.
    pub from_ms: u64,
    pub to_ms: u64,
}

impl Gap {
    /// A range of which no times are known.
    pub fn of(shard: ShardIndex, from: Number, to: Number, reason: GapReason) -> Gap {
        Gap { shard, from, to, reason, from_ms: 0, to_ms: 0 }
    }

    pub fn count(&self) -> u64 {
        self.to - self.from + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_key_is_md5_big_endian() {
        // MD5("") = d41d8cd98f00b204e9800998ecf8427e
        assert_eq!(HashKey::of(b"").0, 0xd41d_8cd9_8f00_b204_e980_0998_ecf8_427e);
    }

    #[test]
    fn record_id_reads_back_what_it_wrote() {
        let id = RecordId {
            gateway: "g-1".into(),
            incarnation: 3,
            stream: StreamName::new("tele.metry-1").unwrap(),
            shard: 7,
            number: 99,
        };
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("hw1/a/b".parse::<RecordId>(), Err(()));
        assert_eq!("hw1/g/1/s/1/1/x".parse::<RecordId>(), Err(()));
    }

    #[test]
    fn shard_ids_are_twelve_digits() {
        assert_eq!(shard_id(7), "shardId-000000000007");
        assert_eq!(parse_shard_id("shardId-000000000007"), Some(7));
        assert_eq!(parse_shard_id("shardId-7"), None);
    }

    #[test]
    fn user_property_packs_and_unpacks() {
        assert_eq!(Header::user("unit", "°C").as_user(), Some(("unit", "°C")));
        assert_eq!(Header::new(HeaderId::UserProperty, vec![0, 9, b'x']).as_user(), None);
    }
}
