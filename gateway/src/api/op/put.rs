//! Records on their way in, as PutRecord and PutRecords share them: checked, decoded and pushed into one batch.
//!
//! Data is decoded into one buffer that serves record after record and copied once, into the batch; a batch of which
//! one record turns out malformed is dropped whole, before the log has seen it.

use super::shown::sequence;
use crate::api::Call;
use crate::api::check::Checks;
use crate::api::error::{ApiError, Kind};
use crate::api::sequence::Sequence;
use crate::api::shape::{BadBase64, Blob, List, Shape, Text, Whole};
use crate::log::{Batch, Placement, PushError, Stream, StreamKind};
use crate::record::{DATA_BYTES_MAX, HashKey, Header, HeaderId, NewRecord, Producer, ShardIndex, shard_id};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::sync::Arc;

/// Partition key, in UTF-16 units.
const KEY_MAX: usize = 256;
/// Headers of one record between two Headwaters: what does not fit the batch form comes this way. Bounded because 500 records
/// of a request are parsed before the first is looked at, and a header costs far more in memory than on the wire.
const HEADERS_MAX: usize = 256;

/// A record of a request.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
pub struct Entry<'a> {
    #[serde(borrow)]
    pub data: Option<Blob<'a>>,
    #[serde(borrow)]
    pub explicit_hash_key: Option<Text<'a>>,
    #[serde(borrow)]
    pub partition_key: Option<Text<'a>>,
    #[serde(borrow)]
    pub headwater: Option<Shape<Extra<'a>>>,
}

/// What another Headwater sends along.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
pub struct Extra<'a> {
    #[serde(borrow)]
    producer: Option<Text<'a>>,
    epoch: Option<Whole>,
    sequence: Option<Whole>,
    #[serde(borrow)]
    headers: Option<List<Pair<'a>, HEADERS_MAX>>,
}

/// Header id and base64 of its value.
#[derive(Default)]
struct Pair<'a>(Whole, Text<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for Pair<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for V<'a> {
            type Value = Pair<'a>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a header's id and value")
            }
            // Not echoed: it may be as long as the request.
            fn visit_str<E: Error>(self, _: &str) -> Result<Pair<'a>, E> {
                Err(E::custom("Expected list"))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Pair<'a>, A::Error> {
                let short = || A::Error::custom("A header needs its id and its value.");
                let id = list.next_element()?.ok_or_else(short)?;
                Ok(Pair(id, list.next_element()?.ok_or_else(short)?))
            }
        }
        d.deserialize_any(V(PhantomData))
    }
}

impl Entry<'_> {
    /// `at` names a member of this entry in messages: `partitionKey`, or `records.3.member.partitionKey`.
    pub fn check<D: Display>(&self, checks: &mut Checks, at: impl Fn(&'static str) -> D) {
        checks.present(&self.partition_key, at("partitionKey"));
        if let Some(key) = &self.partition_key {
            checks.length(key, at("partitionKey"), 1, KEY_MAX);
        }
        checks.decimal(&self.explicit_hash_key, at("explicitHashKey"), 38);
        checks.present(&self.data, at("data"));
        let length = self.data.as_ref().map_or(0, Blob::len);
        if length > DATA_BYTES_MAX {
            checks.fail(
                format_args!("java.nio.HeapByteBuffer[pos=0 lim={length} cap={length}]"),
                at("data"),
                format_args!("Member must have length less than or equal to {DATA_BYTES_MAX}"),
            );
        }
    }

    /// Bytes that count towards the limit of a request.
    pub fn bytes(&self) -> usize {
        self.data.as_ref().map_or(0, Blob::len) + self.partition_key.as_ref().map_or(0, |key| key.len())
    }

    /// A malformed blob is told before a failed constraint, as AWS reads types first.
    pub fn check_blob(&self, buffer: &mut Vec<u8>) -> Result<(), ApiError> {
        self.data.as_ref().map_or(Ok(()), |data| data.decode(buffer)).map_err(malformed)
    }

    pub fn push(&self, stream: &Arc<Stream>, batch: &mut Batch, buffer: &mut Vec<u8>) -> Result<(), ApiError> {
        self.check_blob(buffer)?;
        let (producer, headers) = match &self.headwater {
            // Another Headwater has its fragments and gaps; of anybody else it would be a record that is no fragment.
            None if stream.settings().kind == StreamKind::Video => {
                return Err(ApiError::invalid(format!(
                    "Stream {0} is one of video: send it fragments, by PutMedia or POST /streams/{0}/media.",
                    stream.name
                )));
            }
            None => (None, Vec::new()),
            Some(Shape(extra)) => (extra.producer()?, extra.headers()?),
        };
        let record = NewRecord {
            key: self.partition_key.as_deref().unwrap_or_default().as_bytes(),
            explicit_hash: self.explicit_hash()?,
            producer,
            headers: &headers,
            data: buffer,
        };
        batch.push(stream, &record).map_err(|error| match error {
            PushError::Deleted => ApiError::not_found(format!("Stream {} not found.", stream.name)),
            PushError::Key(_) | PushError::Data(_) | PushError::Headers(_) => ApiError::invalid(error.to_string()),
        })
    }

    fn explicit_hash(&self) -> Result<Option<HashKey>, ApiError> {
        let Some(text) = self.explicit_hash_key.as_deref() else { return Ok(None) };
        text.parse().map(|hash| Some(HashKey(hash))).map_err(|_| {
            ApiError::invalid(format!(
                "Invalid ExplicitHashKey. ExplicitHashKey must be in the range: [0, 2^128-1]. Specified value was {text}"
            ))
        })
    }
}

impl Extra<'_> {
    fn producer(&self) -> Result<Option<Producer>, ApiError> {
        let wrong =
            || ApiError::invalid("Headwater needs Producer (32 hex digits), Epoch and Sequence, or none of them.");
        match (&self.producer, self.epoch, self.sequence) {
            (None, None, None) => Ok(None),
            (Some(id), Some(Whole(epoch)), Some(Whole(sequence)))
                if id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) =>
            {
                let id = u128::from_str_radix(id, 16).map_err(|_| wrong())?;
                let epoch = u32::try_from(epoch).map_err(|_| wrong())?;
                Ok(Some(Producer { id, epoch, sequence }))
            }
            _ => Err(wrong()),
        }
    }

    fn headers(&self) -> Result<Vec<Header>, ApiError> {
        let Some(list) = &self.headers else { return Ok(Vec::new()) };
        if list.count > HEADERS_MAX {
            return Err(ApiError::invalid(format!("At most {HEADERS_MAX} Headers are allowed, not {}.", list.count)));
        }
        let id_of = |Whole(id): Whole| HeaderId::from_u8(u8::try_from(id).ok()?);
        let known = list.members.iter().filter_map(|Pair(id, value)| Some((id_of(*id)?, value)));
        known
            .map(|(id, value)| {
                let value =
                    STANDARD.decode(value.as_bytes()).map_err(|_| ApiError::invalid("Headers must be base64."))?;
                Ok(Header::new(id, value))
            })
            .collect()
    }
}

fn malformed(error: BadBase64) -> ApiError {
    ApiError::new(Kind::Serialization, error.to_string())
}

/// What became of a record that was pushed.
pub enum Put {
    Stored(ShardIndex, Sequence),
    Full(ShardIndex),
}

/// Commits a batch for one stream and tells of each record where it went.
pub async fn commit(call: &Call<'_>, stream: &Stream, mut batch: Batch) -> Result<Vec<Put>, ApiError> {
    let placements = call.session.commit(&call.door.log, &mut batch).await?;
    Ok(placements
        .into_iter()
        .map(|placement| match placement {
            Placement::Stored { shard, number } => Put::Stored(shard, sequence(stream, shard, number)),
            // Its own number is not known any more; it is at or below the newest.
            Placement::Duplicate { shard } => {
                let newest = stream.shard(shard).map_or(0, |shard| shard.newest());
                Put::Stored(shard, sequence(stream, shard, newest))
            }
            Placement::Full { shard } => Put::Full(shard),
        })
        .collect())
}

/// Why a full stream takes nothing.
pub fn full(stream: &Stream, shard: ShardIndex) -> String {
    format!("Stream {} is full and refuses new records for {} (on_full = \"reject\").", stream.name, shard_id(shard))
}
