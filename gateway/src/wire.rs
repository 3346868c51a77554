//! The batch operation between two Headwaters: what `PutRecords` says, without JSON, base64 and its limit of 500.
//!
//! A door that serves it answers every request with `x-headwater-batch: 2`; an uplink that saw this may `POST /` with the
//! content type [`CONTENT_TYPE`], or with whole [`blocks`]. This is the codec alone, for both sides: no sockets, no log. Pure.
//!
//! ```text
//! request: one zstd frame (level 1) of
//!   "HWB1" | stream: length, bytes | lanes: count, then per lane: producer id u128, epoch u32, origin: length, bytes
//!   records: count, then per record:
//!     flags u8 | key: length, bytes | [hash u128] | [lane index, sequence] | [headers: count, then id u8, length, bytes]
//!     | data: length, bytes
//! answer:  "HWA1" | records: count | runs: status u8, count; until all records have their status
//! ```
//! Lengths, counts, indexes and sequences are LEB128 varints, fixed-width numbers big-endian. A record of a lane has the
//! lane's producer id and epoch; with flag ORIGIN, its Origin header is the lane's origin followed by the sequence in
//! decimal. What is refused: trailing bytes, unknown flags, anything over the bounds below.

pub mod blocks;
pub mod media;

use crate::record::{
    DATA_BYTES_MAX, HEADERS_BYTES_MAX, HashKey, Header, HeaderId, NewRecord, PARTITION_KEY_BYTES_MAX, Producer,
    StreamName, put_decimal,
};
use bytes::{Bytes, BytesMut};
use std::io::Read;

pub const CONTENT_TYPE: &str = "application/vnd.headwater.batch.v1";
/// Header by which a door tells that it serves the operation, and the value of this version.
pub const OFFER_HEADER: &str = "x-headwater-batch";
pub const OFFER: &str = "2";
/// Header by which a door tells which gateway it is.
pub const GATEWAY_HEADER: &str = "x-headwater-gateway";
/// The same as a user property of CONNACK.
pub const GATEWAY_PROPERTY: &str = "headwater-gateway";

/// Most records of one batch.
pub const RECORDS_MAX: usize = 8192;
/// Most lanes of one batch.
pub const LANES_MAX: usize = 4096;
/// A batch before compression, in bytes. A record too large for it goes by `PutRecords`.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// A batch as sent, in bytes: zstd may add a little to what it cannot compress.
pub const BODY_BYTES_MAX: usize = BATCH_BYTES_MAX + (64 << 10);
/// Most headers of one record, the origin of its lane not counted. A record with more goes by `PutRecords`, alone.
pub const HEADERS_MAX: usize = 64;
/// Longest origin of a lane, in bytes: each of its records will have it.
pub const ORIGIN_BYTES_MAX: usize = 256;
/// What a record may be longer in the log than in a batch, its origin not counted, in bytes: the producer and the origin's
/// digits stand in full.
const RECORD_MORE_BYTES: usize = 64;

const REQUEST_MAGIC: &[u8; 4] = b"HWB1";
const ANSWER_MAGIC: &[u8; 4] = b"HWA1";
const ZSTD_LEVEL: i32 = 1;

const HASH: u8 = 1;
const LANE: u8 = 2;
const HEADERS: u8 = 4;
const ORIGIN: u8 = 8;
const KNOWN: u8 = HASH | LANE | HEADERS | ORIGIN;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("the batch is not a zstd frame, or is larger than {BATCH_BYTES_MAX} bytes")]
    Frame,
    #[error("the batch is malformed: {0}")]
    Malformed(&'static str),
}

/// A record of a batch as it was read; it shares the batch's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireRecord {
    pub key: Bytes,
    pub explicit_hash: Option<HashKey>,
    pub producer: Option<Producer>,
    pub headers: Vec<Header>,
    pub data: Bytes,
}

impl WireRecord {
    /// As the log's door takes it.
    pub fn as_new(&self) -> NewRecord<'_> {
        NewRecord {
            key: &self.key,
            explicit_hash: self.explicit_hash,
            producer: self.producer,
            headers: &self.headers,
            data: &self.data,
        }
    }
}

/// What became of a record. The numbers are on the wire: never change or reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// On disk.
    Stored = 1,
    /// Was on disk already: the producer sent this number before.
    Duplicate = 2,
    /// The stream is full: send again later.
    Full = 3,
    /// Refused for good.
    Refused = 4,
    /// Could not be stored now: send again later.
    Failed = 5,
}

impl Status {
    pub fn from_u8(byte: u8) -> Option<Self> {
        use Status::*;
        [Stored, Duplicate, Full, Refused, Failed].into_iter().find(|known| *known as u8 == byte)
    }
}

/// Writes a batch: lanes first, then records.
#[derive(Debug)]
pub struct BatchWriter {
    lanes: Vec<u8>,
    lane_count: usize,
    records: Vec<u8>,
    record_count: usize,
    stream: StreamName,
}

impl BatchWriter {
    pub fn new(stream: &StreamName, bytes: usize) -> Self {
        BatchWriter {
            lanes: Vec::new(),
            lane_count: 0,
            records: Vec::with_capacity(bytes.min(BATCH_BYTES_MAX)),
            record_count: 0,
            stream: stream.clone(),
        }
    }

    /// Adds a lane and returns its index. `origin` is what the record ids of the lane start with, or empty.
    pub fn lane(&mut self, producer: u128, epoch: u32, origin: &str) -> usize {
        debug_assert!(origin.len() <= ORIGIN_BYTES_MAX && self.lane_count < LANES_MAX);
        self.lanes.extend_from_slice(&producer.to_be_bytes());
        self.lanes.extend_from_slice(&epoch.to_be_bytes());
        put_bytes(&mut self.lanes, origin.as_bytes());
        self.lane_count += 1;
        self.lane_count - 1
    }

    /// Adds a record of a lane. `with_origin`: its Origin header is the lane's origin and the sequence.
    pub fn record(&mut self, lane: usize, sequence: u64, with_origin: bool, record: &NewRecord<'_>) {
        self.put_head(LANE | if with_origin { ORIGIN } else { 0 }, record);
        put_varint(&mut self.records, lane as u64);
        put_varint(&mut self.records, sequence);
        self.put_rest(record);
    }

    /// Adds a record without a number: it is stored as often as it is sent.
    pub fn unnumbered(&mut self, record: &NewRecord<'_>) {
        self.put_head(0, record);
        self.put_rest(record);
    }

    fn put_head(&mut self, flags: u8, record: &NewRecord<'_>) {
        let flags = flags
            | if record.explicit_hash.is_some() { HASH } else { 0 }
            | if record.headers.is_empty() { 0 } else { HEADERS };
        self.records.push(flags);
        put_bytes(&mut self.records, record.key);
        if let Some(HashKey(hash)) = record.explicit_hash {
            self.records.extend_from_slice(&hash.to_be_bytes());
        }
    }

    fn put_rest(&mut self, record: &NewRecord<'_>) {
        if !record.headers.is_empty() {
            put_varint(&mut self.records, record.headers.len() as u64);
            for header in record.headers {
                self.records.push(header.id as u8);
                put_bytes(&mut self.records, &header.value);
            }
        }
        put_bytes(&mut self.records, record.data);
        self.record_count += 1;
    }

    /// The most bytes a record can take in a batch, its lane not counted.
    pub fn record_bytes_max(key: usize, headers: &[Header], data: usize) -> usize {
        64 + key + data + headers.iter().map(|h| h.value.len() + 6).sum::<usize>()
    }

    /// Bytes so far, before compression.
    pub fn bytes(&self) -> usize {
        self.lanes.len() + self.records.len() + self.stream.as_str().len() + 24
    }

    /// The body to send.
    pub fn finish(self) -> std::io::Result<Vec<u8>> {
        let mut head = Vec::with_capacity(self.lanes.len() + 160);
        head.extend_from_slice(REQUEST_MAGIC);
        put_bytes(&mut head, self.stream.as_str().as_bytes());
        put_varint(&mut head, self.lane_count as u64);
        head.extend_from_slice(&self.lanes);
        put_varint(&mut head, self.record_count as u64);
        let mut encoder = zstd::stream::Encoder::new(Vec::with_capacity(self.records.len() / 3 + 256), ZSTD_LEVEL)?;
        std::io::Write::write_all(&mut encoder, &head)?;
        std::io::Write::write_all(&mut encoder, &self.records)?;
        encoder.finish()
    }
}

/// A request body unpacked, if it is not longer than `bytes_max`.
pub fn inflate(body: &[u8], bytes_max: usize) -> Result<Bytes, WireError> {
    let decoder = zstd::stream::Decoder::with_buffer(body).map_err(|_| WireError::Frame)?;
    // One byte more than allowed tells a batch that is too large from one that just fits.
    let mut whole = Vec::with_capacity(bytes_max + 1);
    decoder.take(bytes_max as u64 + 1).read_to_end(&mut whole).map_err(|_| WireError::Frame)?;
    if whole.len() > bytes_max {
        return Err(WireError::Frame);
    }
    Ok(whole.into())
}

/// Reads a batch record by record, so that it is in memory once and not a second time taken apart.
pub struct BatchReader {
    pub stream: StreamName,
    lanes: Vec<Lane>,
    whole: Bytes,
    at: usize,
    left: usize,
    origins: BytesMut,
}

impl BatchReader {
    /// Of a request body that was unpacked.
    pub fn open(whole: Bytes) -> Result<Self, WireError> {
        let mut from = Input { bytes: &whole, at: 0 };
        if from.take(4)? != REQUEST_MAGIC {
            return Err(WireError::Malformed("it does not begin with HWB1"));
        }
        let name = std::str::from_utf8(from.length_and_bytes(128)?).map_err(|_| WireError::Malformed("stream name"))?;
        let stream = StreamName::new(name).map_err(|_| WireError::Malformed("stream name"))?;
        let lanes = (0..from.count(LANES_MAX)?).map(|_| Lane::read(&mut from)).collect::<Result<Vec<_>, _>>()?;
        let left = from.count(RECORDS_MAX)?;
        let at = from.at;
        if left == 0 && at != whole.len() {
            return Err(WireError::Malformed("bytes after the last record"));
        }
        Ok(BatchReader { stream, lanes, whole, at, left, origins: BytesMut::new() })
    }

    /// Records that were not read yet.
    pub fn left(&self) -> usize {
        self.left
    }

    /// What the records can take as the log encodes them, in bytes.
    pub fn log_bytes_max(&self) -> usize {
        let origin = self.lanes.iter().map(|lane| lane.origin.len()).max().unwrap_or(0);
        self.whole.len() + self.left * (origin + RECORD_MORE_BYTES)
    }

    fn read(&mut self) -> Result<WireRecord, WireError> {
        let mut from = Input { bytes: &self.whole, at: self.at };
        let record = read_record(&mut from, &self.lanes, &mut self.origins)?;
        self.at = from.at;
        self.left -= 1;
        match self.left == 0 && self.at != self.whole.len() {
            true => Err(WireError::Malformed("bytes after the last record")),
            false => Ok(record),
        }
    }
}

impl Iterator for BatchReader {
    type Item = Result<WireRecord, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.left > 0).then(|| self.read())
    }
}

struct Lane {
    id: u128,
    epoch: u32,
    /// Where the origin stands in the batch.
    origin: std::ops::Range<usize>,
}

impl Lane {
    fn read(from: &mut Input<'_>) -> Result<Self, WireError> {
        let id = u128::from_be_bytes(from.array()?);
        let epoch = u32::from_be_bytes(from.array()?);
        let origin = from.length_and_bytes(ORIGIN_BYTES_MAX)?;
        if std::str::from_utf8(origin).is_err() {
            return Err(WireError::Malformed("origin"));
        }
        Ok(Lane { id, epoch, origin: from.at - origin.len()..from.at })
    }
}

fn read_record(from: &mut Input<'_>, lanes: &[Lane], origins: &mut BytesMut) -> Result<WireRecord, WireError> {
    let flags = from.array::<1>()?[0];
    if flags & !KNOWN != 0 {
        return Err(WireError::Malformed("unknown flags"));
    }
    let key = from.shared(PARTITION_KEY_BYTES_MAX)?;
    if key.is_empty() {
        return Err(WireError::Malformed("empty partition key"));
    }
    let explicit_hash = match flags & HASH {
        0 => None,
        _ => Some(HashKey(u128::from_be_bytes(from.array()?))),
    };
    let mut headers = Vec::new();
    let mut producer = None;
    if flags & LANE != 0 {
        let lane = lanes.get(from.varint()? as usize).ok_or(WireError::Malformed("no such lane"))?;
        let sequence = from.varint()?;
        producer = Some(Producer { id: lane.id, epoch: lane.epoch, sequence });
        if flags & ORIGIN != 0 {
            headers.push(Header::new(HeaderId::Origin, origin(&from.bytes[lane.origin.clone()], sequence, origins)));
        }
    } else if flags & ORIGIN != 0 {
        return Err(WireError::Malformed("an origin without a lane"));
    }
    if flags & HEADERS != 0 {
        read_headers(from, &mut headers)?;
    }
    let data = from.shared(DATA_BYTES_MAX)?;
    Ok(WireRecord { key, explicit_hash, producer, headers, data })
}

fn read_headers(from: &mut Input<'_>, headers: &mut Vec<Header>) -> Result<(), WireError> {
    let mut bytes = 0;
    for _ in 0..from.count(HEADERS_MAX)? {
        let id = from.array::<1>()?[0];
        let value = from.shared(HEADERS_BYTES_MAX)?;
        bytes += value.len() + 8;
        if bytes > HEADERS_BYTES_MAX {
            return Err(WireError::Malformed("headers too large"));
        }
        // A header of a later version is carried by nobody; the record is still whole.
        if let Some(id) = HeaderId::from_u8(id) {
            headers.push(Header { id, value });
        }
    }
    Ok(())
}

/// Origin and sequence in decimal, cut from one growing piece of memory instead of an allocation each.
fn origin(prefix: &[u8], sequence: u64, arena: &mut BytesMut) -> Bytes {
    if arena.capacity() < prefix.len() + 20 {
        *arena = BytesMut::with_capacity(16 << 10);
    }
    arena.extend_from_slice(prefix);
    put_decimal(arena, sequence);
    arena.split().freeze()
}

/// The answer to a batch, statuses in the order of its records.
pub fn encode_answer(statuses: &[Status]) -> Vec<u8> {
    let mut answer = Vec::with_capacity(32);
    answer.extend_from_slice(ANSWER_MAGIC);
    put_varint(&mut answer, statuses.len() as u64);
    for run in statuses.chunk_by(|a, b| a == b) {
        answer.push(run[0] as u8);
        put_varint(&mut answer, run.len() as u64);
    }
    answer
}

/// Reads an answer to a batch of `count` records.
pub fn decode_answer(answer: &[u8], count: usize) -> Result<Vec<Status>, WireError> {
    let answer = Bytes::copy_from_slice(answer);
    let mut from = Input { bytes: &answer, at: 0 };
    if from.take(4)? != ANSWER_MAGIC {
        return Err(WireError::Malformed("the answer does not begin with HWA1"));
    }
    if from.varint()? != count as u64 {
        return Err(WireError::Malformed("the answer is to another number of records"));
    }
    let mut statuses = Vec::with_capacity(count.min(RECORDS_MAX));
    while statuses.len() < count {
        let status = Status::from_u8(from.array::<1>()?[0]).ok_or(WireError::Malformed("unknown status"))?;
        let run = from.count(count - statuses.len())?;
        if run == 0 {
            return Err(WireError::Malformed("empty run"));
        }
        statuses.resize(statuses.len() + run, status);
    }
    if from.at != answer.len() {
        return Err(WireError::Malformed("bytes after the last run"));
    }
    Ok(statuses)
}

fn put_varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

fn put_bytes(into: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(into, bytes.len() as u64);
    into.extend_from_slice(bytes);
}

struct Input<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..length).ok_or(WireError::Malformed("cut short"))?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError::Malformed("cut short"))
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for at in 0..10 {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if at == 9 && bits > 1 {
                break;
            }
            value |= bits << (7 * at);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Malformed("a number of more than 64 bits"))
    }

    fn count(&mut self, max: usize) -> Result<usize, WireError> {
        let count = self.varint()?;
        usize::try_from(count).ok().filter(|count| *count <= max).ok_or(WireError::Malformed("a count over its bound"))
    }

    fn length_and_bytes(&mut self, max: usize) -> Result<&'a [u8], WireError> {
        let length = self.count(max)?;
        self.take(length)
    }

    /// A length and its bytes, sharing the batch's memory.
    fn shared(&mut self, max: usize) -> Result<Bytes, WireError> {
        let length = self.count(max)?;
        let start = self.at;
        self.take(length)?;
        Ok(self.bytes.slice(start..self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream() -> StreamName {
        StreamName::new("telemetry").unwrap()
    }

    fn decode(body: &[u8]) -> Result<Vec<WireRecord>, WireError> {
        let reader = BatchReader::open(inflate(body, BATCH_BYTES_MAX)?)?;
        reader.collect()
    }

    #[test]
    fn a_lane_gives_its_records_producer_and_origin() {
        let mut writer = BatchWriter::new(&stream(), 0);
        let lane = writer.lane(7, 1, "hw1/g/1/telemetry/0/");
        writer.record(lane, 42, true, &NewRecord { key: b"k", data: b"v", ..Default::default() });
        let batch = decode(&writer.finish().unwrap()).unwrap();
        assert_eq!(batch[0].producer, Some(Producer { id: 7, epoch: 1, sequence: 42 }));
        assert_eq!(batch[0].headers, [Header::new(HeaderId::Origin, "hw1/g/1/telemetry/0/42")]);
        assert_eq!((&batch[0].key[..], &batch[0].data[..]), (&b"k"[..], &b"v"[..]));
    }

    #[test]
    fn a_record_without_a_number_has_no_producer() {
        let mut writer = BatchWriter::new(&stream(), 0);
        writer.unnumbered(&NewRecord { key: b"k", explicit_hash: Some(HashKey(5)), data: b"v", ..Default::default() });
        let batch = decode(&writer.finish().unwrap()).unwrap();
        assert_eq!((batch[0].producer, batch[0].explicit_hash), (None, Some(HashKey(5))));
    }

    #[test]
    fn a_small_body_cannot_make_a_large_batch() {
        let bomb = zstd::bulk::compress(&vec![0u8; BATCH_BYTES_MAX + 1], 1).unwrap();
        assert!(bomb.len() < 1024, "{}", bomb.len());
        assert_eq!(decode(&bomb), Err(WireError::Frame));
    }

    #[test]
    fn bytes_behind_the_last_record_are_refused() {
        for count in [0, 1] {
            let mut writer = BatchWriter::new(&stream(), 0);
            (0..count).for_each(|_| writer.unnumbered(&NewRecord { key: b"k", data: b"v", ..Default::default() }));
            let mut inside = zstd::stream::decode_all(&writer.finish().unwrap()[..]).unwrap();
            inside.push(0);
            let refused = decode(&zstd::bulk::compress(&inside, 1).unwrap());
            assert_eq!(refused, Err(WireError::Malformed("bytes after the last record")), "{count} records");
        }
    }

    #[test]
    fn an_answer_is_a_few_bytes_when_all_went_well() {
        let answer = encode_answer(&[Status::Stored; 8000]);
        assert!(answer.len() < 12);
        assert_eq!(decode_answer(&answer, 8000).unwrap(), [Status::Stored; 8000]);
        assert!(decode_answer(&answer, 7999).is_err());
    }

    type Fields = (Vec<u8>, Option<u128>, u64, bool, Vec<Vec<u8>>, Vec<u8>);

    fn any_record() -> impl Strategy<Value = Fields> {
        (
            prop::collection::vec(any::<u8>(), 1..40),
            any::<Option<u128>>(),
            any::<u64>(),
            any::<bool>(),
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..4),
            prop::collection::vec(any::<u8>(), 0..300),
        )
    }

    fn written(records: &[Fields]) -> Vec<u8> {
        let mut writer = BatchWriter::new(&stream(), 0);
        let lane = writer.lane(9, 3, "o/");
        for (key, hash, sequence, with_origin, headers, data) in records {
            let headers: Vec<_> = headers.iter().map(|v| Header::new(HeaderId::UserProperty, v.clone())).collect();
            let record = NewRecord { key, explicit_hash: hash.map(HashKey), producer: None, headers: &headers, data };
            writer.record(lane, *sequence, *with_origin, &record);
        }
        writer.finish().unwrap()
    }

    proptest! {
        #[test]
        fn a_batch_reads_back_what_was_written(records in prop::collection::vec(any_record(), 0..20)) {
            let batch = decode(&written(&records)).unwrap();
            prop_assert_eq!(batch.len(), records.len());
            for (read, (key, hash, sequence, with_origin, headers, data)) in batch.iter().zip(&records) {
                prop_assert_eq!(&read.key, key);
                prop_assert_eq!(&read.data, data);
                prop_assert_eq!(read.explicit_hash, hash.map(HashKey));
                prop_assert_eq!(read.producer, Some(Producer { id: 9, epoch: 3, sequence: *sequence }));
                let mut expected = Vec::new();
                if *with_origin {
                    expected.push(Header::new(HeaderId::Origin, format!("o/{sequence}")));
                }
                expected.extend(headers.iter().map(|v| Header::new(HeaderId::UserProperty, v.clone())));
                prop_assert_eq!(&read.headers, &expected);
            }
        }

        #[test]
        fn noise_is_refused_or_read_and_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&noise);
            let mut inside = REQUEST_MAGIC.to_vec();
            inside.extend_from_slice(&noise);
            let _ = decode(&zstd::bulk::compress(&inside, 1).unwrap());
            let mut answer = ANSWER_MAGIC.to_vec();
            answer.extend_from_slice(&noise);
            let _ = decode_answer(&answer, 5);
        }

        #[test]
        fn a_mutated_batch_never_panics(
            records in prop::collection::vec(any_record(), 1..6),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut inside = zstd::bulk::decompress(&written(&records), BATCH_BYTES_MAX).unwrap_or_else(|_| Vec::new());
            if inside.is_empty() {
                inside = zstd::stream::decode_all(&written(&records)[..]).unwrap();
            }
            for (at, byte) in edits {
                let at = at.index(inside.len());
                inside[at] = byte;
            }
            inside.truncate(cut.index(inside.len()) + 1);
            let _ = decode(&zstd::bulk::compress(&inside, 1).unwrap());
        }
    }
}
