//! What every destination of the uplink looks like to the lanes: a map of its shards, limits, and one way to send.
//!
//! A sink keeps no position and no queue; it takes a request of groups, tries once, and says what became of each. Holding,
//! retrying and acknowledging is the work of `forward` and `lanes`. One `Sink` serves one local stream.

pub mod file;
pub mod kinesis;
pub mod mqtt;
pub mod video;
pub mod video_s3;

use super::map::ShardMap;
use crate::record::{HashKey, HeaderId, Number, Record, RecordId, ShardIndex, StreamName};
use bytes::Bytes;
use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;

pub type SinkFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A destination of one stream. `Send` futures, so that requests run beside each other.
pub trait Sink: Send + Sync + 'static {
    /// What fits into a group and a request now; it may change after an answer.
    fn limits(&self) -> Limits;
    /// Asks the destination how it divides the key space.
    fn map(&self) -> SinkFuture<'_, Result<ShardMap, Fault>>;
    /// Sends once. The answer has one outcome for each group, in order.
    fn send(&self, request: Request) -> SinkFuture<'_, Answer>;
    /// Sends stored blocks once. Only asked for if [`Limits::blocks`].
    fn relay(&self, _relay: Arc<Relay>) -> SinkFuture<'_, Relayed> {
        Box::pin(async { Relayed { stored: Err(Fault::Refused("blocks".into())), map_is_stale: false } })
    }
    /// Why the destination would refuse the record for good, as far as that is known without asking.
    fn refusal(&self, record: &Record) -> Option<String>;
}

/// Bounds of what the destination takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub group_records_max: usize,
    pub group_bytes_max: usize,
    /// A group holds no two records of one key: for destinations that may store part of a request and promise no order.
    pub distinct_keys: bool,
    /// Records whose data begins so are a group of their own: they are aggregates already.
    pub alone: Option<[u8; 4]>,
    /// Most headers of a record; one with more is a request of its own, whose form the sink chooses for it.
    pub headers_max: usize,
    /// What a record takes in a request beside its weight, in bytes.
    pub record_overhead: usize,
    /// What counts against `request_entries_max`: the group as a whole, or each of its records.
    pub entry_per_record: bool,
    pub request_entries_max: usize,
    pub request_bytes_max: usize,
    pub requests_in_flight_max: usize,
    /// It takes blocks as they are stored: [`Sink::relay`].
    pub blocks: bool,
}

/// Records of one lane for one upstream shard, in order. Stored whole or not at all, unless the keys are distinct.
#[derive(Clone, Debug)]
pub struct Group {
    pub id: GroupId,
    pub lane: u16,
    /// Index into the map of the request.
    pub upstream: usize,
    pub records: Arc<Vec<Outgoing>>,
    /// Payload, keys and headers.
    pub bytes: usize,
}

/// What is sent for one number of the log.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub kind: Kind,
    pub record: Record,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Record,
    /// Made by the uplink to tell of a loss. It has no record id: the id belongs to what was lost.
    Gap,
}

/// Names a group in flight: the local shard and the track it left from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GroupId {
    pub shard: ShardIndex,
    pub track: usize,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub groups: Vec<Group>,
    pub map: Arc<ShardMap>,
}

#[derive(Debug)]
pub struct Answer {
    pub outcomes: Vec<Outcome>,
    /// The destination divides the key space in another way than the request's map says.
    pub map_is_stale: bool,
    /// The request failed as a whole: it says something about the destination, not about a group.
    pub whole: Option<Fault>,
}

impl Answer {
    /// The same fault for all groups.
    pub fn all(request: &Request, fault: Fault) -> Self {
        let outcomes = request.groups.iter().map(|_| Outcome::Failed(fault.clone())).collect();
        Answer { outcomes, map_is_stale: false, whole: Some(fault) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Stored,
    /// Stored where the flag is true; only for groups of distinct keys.
    Partly(Vec<bool>, Fault),
    /// An aggregate was stored in the shard of this name, not where the map said.
    Landed(String),
    Failed(Fault),
}

impl Outcome {
    pub fn stored_something(&self) -> bool {
        match self {
            Outcome::Stored | Outcome::Landed(_) => true,
            Outcome::Partly(stored, _) => stored.contains(&true),
            Outcome::Failed(_) => false,
        }
    }
}

/// Consecutive blocks of a shard, as they are stored.
#[derive(Debug)]
pub struct Relay {
    pub shard: ShardIndex,
    /// The shard's range of the key space.
    pub range: (HashKey, HashKey),
    /// The first number that is meant; the first block may begin before it.
    pub from: Number,
    /// The last number of the last block.
    pub to: Number,
    /// Arrival of the first record.
    pub arrival_ms: u64,
    pub blocks: Vec<Bytes>,
}

impl Relay {
    /// Bytes on the wire.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(Bytes::len).sum()
    }

    pub fn records(&self) -> usize {
        (self.to + 1 - self.from) as usize
    }
}

#[derive(Debug)]
pub struct Relayed {
    pub stored: Result<Taken, Fault>,
    /// As in [`Answer`].
    pub map_is_stale: bool,
}

/// What a destination took of a [`Relay`].
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// All of it: payload of the records, in bytes.
    All(u64),
    /// Stored where the flag is true.
    Some(Vec<bool>),
}

/// Why something was not stored, by what is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// The box answers, but nobody listens there: it is being started, or will be.
    #[error("cannot be reached: {0}")]
    Absent(String),
    #[error("asks to slow down")]
    Throttled,
    /// Credentials or permission: held until they are there, never a reason to drop.
    #[error("{0}")]
    Denied(String),
    /// A mistake of the other side, or an answer that says nothing.
    #[error("failed: {0}")]
    Broken(String),
    /// What was sent will never be taken as it is.
    #[error("refuses: {0}")]
    Refused(String),
}

impl Fault {
    /// The other side says no to who we are or to what we may.
    pub fn denied(said: &str) -> Self {
        Fault::Denied(format!("denies access: {said}"))
    }

    pub fn reason(&self) -> &'static str {
        match self {
            Fault::Unreachable(_) | Fault::Absent(_) => "unreachable",
            Fault::Throttled => "throttled",
            Fault::Denied(_) => "denied",
            Fault::Broken(_) => "broken",
            Fault::Refused(_) => "refused",
        }
    }
}

/// Who sends: the part of a record id that does not change from record to record.
#[derive(Clone, Debug)]
pub struct Identity {
    pub gateway: String,
    pub incarnation: u32,
    pub stream: StreamName,
}

impl Identity {
    /// What the ids of a shard's records start with; the number follows.
    pub fn prefix(&self, shard: ShardIndex) -> String {
        let number: Number = 0;
        let id = RecordId {
            gateway: self.gateway.clone(),
            incarnation: self.incarnation,
            stream: self.stream.clone(),
            shard,
            number,
        };
        let mut text = id.to_string();
        text.pop();
        text
    }

    /// The id a record has everywhere: the one of the gateway it first came to.
    pub fn id_of<'a>(&self, prefix: &str, record: &'a Record) -> Cow<'a, str> {
        match record.header(HeaderId::Origin).and_then(|value| std::str::from_utf8(value).ok()) {
            Some(origin) => Cow::Borrowed(origin),
            None => Cow::Owned(format!("{prefix}{}", record.number)),
        }
    }
}

/// What a record weighs against the bounds of groups, requests and budgets, in bytes.
pub fn weight(record: &Record) -> usize {
    record.key.len() + record.data.len() + record.headers.iter().map(|h| h.value.len() + 4).sum::<usize>()
}
