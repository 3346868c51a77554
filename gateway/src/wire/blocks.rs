//! Blocks of a shard between two Headwaters, compressed once by the sender's fold and inflated once by the receiver. Pure.
//!
//! What is in a block is the log's matter (`log/block.rs`); here it is bytes. Nothing around it is compressed.
//!
//! ```text
//! request: "HWK1" | stream: length, bytes | origin: length, bytes | range: first and last hash key, u128 | lanes u16
//!   | epoch u32 | from: number | blocks: count, then length, bytes of each
//! answer:  "HWL1" | payload: bytes | an answer to a batch of the records from `from` to the end of the last block
//! ```
//! The producer of a record is the one it would have in a batch: [`producer_id`] of the lane its key falls into
//! ([`lane_of`]) towards the receiver's shard; its sequence is its number. So what was sent by one operation is known when
//! it comes again by the other.

use super::{
    Input, LANES_MAX, ORIGIN_BYTES_MAX, Status, WireError, decode_answer, encode_answer, put_bytes, put_varint,
};
use crate::record::{HashKey, StreamName};
use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

pub const CONTENT_TYPE: &str = "application/vnd.headwater.blocks.v1";
/// Blocks of one request, inflated, in bytes.
pub const RAW_BYTES_MAX: usize = 2 << 20;
/// Most blocks of one request.
pub const BLOCKS_MAX: usize = 64;
/// A request, in bytes.
pub const BODY_BYTES_MAX: usize = RAW_BYTES_MAX + (64 << 10);
/// Most records of one request.
pub const RECORDS_MAX: usize = 256 << 10;
/// The records of one request as the receiver's log encodes them, in bytes: each with its producer and its origin.
pub const LOG_BYTES_MAX: usize = 4 * RAW_BYTES_MAX;
/// What a record may be longer there than in its block, its origin not counted, and what is noted of it meanwhile, in bytes.
const RECORD_MORE_BYTES: usize = 96;

const REQUEST_MAGIC: &[u8; 4] = b"HWK1";
const ANSWER_MAGIC: &[u8; 4] = b"HWL1";

/// A request, as it is written and read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    pub stream: StreamName,
    /// What the ids of the shard's records begin with; the number follows.
    pub origin: String,
    /// The shard's range of the key space, which its lanes divide.
    pub range: (HashKey, HashKey),
    pub lanes: u16,
    pub epoch: u32,
    /// The first number that is meant: the first block may begin before it.
    pub from: u64,
    pub blocks: Vec<Bytes>,
}

impl Blocks {
    pub fn encode(&self) -> Vec<u8> {
        let length: usize = self.blocks.iter().map(|block| block.len() + 8).sum();
        let mut body = Vec::with_capacity(length + self.origin.len() + 256);
        body.extend_from_slice(REQUEST_MAGIC);
        put_bytes(&mut body, self.stream.as_str().as_bytes());
        put_bytes(&mut body, self.origin.as_bytes());
        body.extend_from_slice(&self.range.0.0.to_be_bytes());
        body.extend_from_slice(&self.range.1.0.to_be_bytes());
        body.extend_from_slice(&self.lanes.to_be_bytes());
        body.extend_from_slice(&self.epoch.to_be_bytes());
        put_varint(&mut body, self.from);
        put_varint(&mut body, self.blocks.len() as u64);
        self.blocks.iter().for_each(|block| put_bytes(&mut body, block));
        body
    }

    /// The blocks share the body's memory.
    pub fn decode(body: &Bytes) -> Result<Self, WireError> {
        let mut from = Input { bytes: body, at: 0 };
        if from.take(4)? != REQUEST_MAGIC {
            return Err(WireError::Malformed("it does not begin with HWK1"));
        }
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| WireError::Malformed("text"));
        let stream = StreamName::new(text(from.length_and_bytes(128)?)?);
        let stream = stream.map_err(|_| WireError::Malformed("stream name"))?;
        let origin = text(from.length_and_bytes(ORIGIN_BYTES_MAX)?)?.to_owned();
        let range = (u128::from_be_bytes(from.array()?), u128::from_be_bytes(from.array()?));
        let lanes = u16::from_be_bytes(from.array()?);
        if range.0 > range.1 || lanes == 0 || usize::from(lanes) > LANES_MAX {
            return Err(WireError::Malformed("range"));
        }
        let epoch = u32::from_be_bytes(from.array()?);
        let number = from.varint()?;
        let count = from.count(BLOCKS_MAX)?;
        let blocks = (0..count).map(|_| from.shared(BODY_BYTES_MAX)).collect::<Result<Vec<_>, _>>()?;
        if from.at != body.len() {
            return Err(WireError::Malformed("bytes after the last block"));
        }
        let range = (HashKey(range.0), HashKey(range.1));
        Ok(Blocks { stream, origin, range, lanes, epoch, from: number, blocks })
    }

    /// What it takes to unpack blocks of so many records and inflated bytes, one at a time, and to put them into a batch
    /// for the log.
    pub fn unpacked_bytes_max(&self, records: u64, largest: usize, all: usize) -> usize {
        let more = (self.origin.len() + RECORD_MORE_BYTES) as u64;
        let records = usize::try_from(records.min(RECORDS_MAX as u64).saturating_mul(more)).unwrap_or(LOG_BYTES_MAX);
        largest.min(RAW_BYTES_MAX) + (all.min(RAW_BYTES_MAX) + records).min(LOG_BYTES_MAX)
    }
}

/// The answer: the payload of the records, in bytes, and what became of them.
pub fn encode_blocks_answer(payload: u64, statuses: &[Status]) -> Vec<u8> {
    let mut answer = ANSWER_MAGIC.to_vec();
    put_varint(&mut answer, payload);
    answer.extend_from_slice(&encode_answer(statuses));
    answer
}

/// Reads the answer to a request of `count` records.
pub fn decode_blocks_answer(answer: &Bytes, count: usize) -> Result<(u64, Vec<Status>), WireError> {
    let mut from = Input { bytes: answer, at: 0 };
    if from.take(4)? != ANSWER_MAGIC {
        return Err(WireError::Malformed("the answer does not begin with HWL1"));
    }
    let payload = from.varint()?;
    Ok((payload, decode_answer(&answer[from.at..], count)?))
}

/// Lanes are equal slices of the shard's range, so that most lanes lie in one shard of the receiver. By the key's own hash
/// also when the record names another: all records of a key are in one lane.
pub fn lane_of(hash: HashKey, range: (HashKey, HashKey), lanes: u16) -> u16 {
    let slice = ((range.1.0 - range.0.0) / u128::from(lanes)).max(1);
    let within = hash.0.wrapping_sub(range.0.0);
    ((within / slice) % u128::from(lanes)) as u16
}

/// The number a lane's records carry must only rise at the receiver, so it is one producer for each lane and shard there:
/// what a full shard refused can be sent again while another shard went on.
pub fn producer_id(origin: &str, lane: u16, lanes: u16, shard: &str) -> u128 {
    xxh3_128(format!("{origin}{lane}/{lanes}/{shard}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(blocks: Vec<Bytes>) -> Blocks {
        Blocks {
            stream: StreamName::new("telemetry").unwrap(),
            origin: "hw1/g/1/telemetry/0/".into(),
            range: (HashKey(5), HashKey::MAX),
            lanes: 64,
            epoch: 1,
            from: 300,
            blocks,
        }
    }

    proptest! {
        #[test]
        fn blocks_read_back_as_they_were_written(
            blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..6),
        ) {
            let request = request(blocks.into_iter().map(Bytes::from).collect());
            prop_assert_eq!(Blocks::decode(&request.encode().into()), Ok(request));
        }

        #[test]
        fn noise_is_refused_or_read_and_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Blocks::decode(&[&REQUEST_MAGIC[..], &noise].concat().into());
            let _ = decode_blocks_answer(&[&ANSWER_MAGIC[..], &noise].concat().into(), 5);
        }
    }

    #[test]
    fn an_answer_says_what_was_stored() {
        let answer = encode_blocks_answer(77, &[Status::Stored, Status::Full]);
        assert_eq!(decode_blocks_answer(&answer.clone().into(), 2), Ok((77, vec![Status::Stored, Status::Full])));
        assert!(decode_blocks_answer(&answer.into(), 3).is_err());
    }

    #[test]
    fn a_key_at_the_end_of_the_range_has_a_lane() {
        let range = (HashKey(0), HashKey::MAX);
        assert!([0, 1, u128::MAX - 1, u128::MAX].iter().all(|hash| lane_of(HashKey(*hash), range, 64) < 64));
        assert_eq!(lane_of(HashKey(9), (HashKey(9), HashKey(9)), 64), 0);
    }
}
