//! Envelopes of the device SDK (`headwater-wire`): one PUBLISH, many numbered records.
//!
//! Each record is stored as if it had been published by itself, under its own number, and one PUBACK tells of all. An
//! envelope is unpacked as a whole before anything of it is pushed, so one that is malformed leaves nothing. The envelopes
//! of a batch are of one stream and one epoch, and the log takes them all or none: then a device's highest durable number
//! says that all below it were taken (see `lane` and [`crate::log::Batch::take_numbered_as_one`]).

use super::{
    Around, Inlet, Key, MESSAGE_BYTES, Refusal, Taken, Verdict, answer_of, qos_header, read_properties, reason_of,
};
use crate::log::Stream;
use crate::mqtt::acks::{Item, Outcome};
use crate::mqtt::codec::{PropertyId, Publish, Qos, Reason};
use crate::mqtt::lane::Numbers;
use crate::mqtt::memory::UNPACKED_FREE_BYTES;
use crate::record::{HashKey, Header, HeaderId, NewRecord, PARTITION_KEY_BYTES_MAX, Producer};
use headwater_wire::{CONTENT_TYPE, Envelope, Kind, Malformed, Plain};
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What one envelope may unpack to, in bytes: data, keys and headers of its records. Rows that are as expected cost a few
/// bits, so little can unpack to much.
const UNPACKED_BYTES_MAX: usize = 1 << 20;
/// Room for unpacking that is kept from envelope to envelope.
const SCRATCH_BYTES_KEPT: usize = 4 << 10;
const SCRATCH_RECORDS_KEPT: usize = 256;
/// User property of a record that is a part of a blob: `<blob>/<offset>/<total>`.
const BLOB_PROPERTY: &str = "headwater-blob";

/// What the envelopes of a batch have in common, and which numbers began them.
pub(super) struct Bound {
    stream: Arc<Stream>,
    lane: usize,
    epoch: u32,
    /// First numbers of the first and the last envelope whose sender is answered.
    answered: Option<(u64, u64)>,
}

/// What an envelope was unpacked to, besides what stands in it as it is.
#[derive(Default)]
pub(super) struct Scratch {
    rows: Vec<u8>,
    /// Where each row ends.
    row_ends: Vec<usize>,
    /// Where its key ends, if keys have to look into records.
    keys: Vec<u8>,
    key_ends: Vec<usize>,
}

/// The records of an envelope that was looked at as a whole.
#[derive(Clone)]
enum Body<'a> {
    Plain(Plain<'a>),
    /// In the scratch.
    Rows,
    /// The envelope as it came: whoever reads the stream finds in it where the part belongs.
    Chunk(&'a [u8]),
}

pub(super) fn is_envelope(publish: &Publish<'_>) -> bool {
    publish.properties.text(PropertyId::ContentType) == Some(CONTENT_TYPE)
}

fn malformed(_: Malformed) -> Refusal {
    Reason::PayloadFormatInvalid.into()
}

impl Inlet {
    /// Takes all records of an envelope, or none.
    pub(super) fn take_envelope(&mut self, publish: &Publish<'_>, around: Around<'_>) -> Result<Taken, Refusal> {
        if publish.qos == Qos::ExactlyOnce {
            // Numbers make QoS 1 exactly once. An identifier of its own beside them could say the opposite.
            return Err(Refusal { reason: Reason::ImplementationSpecific, label: "envelope_qos" });
        }
        let envelope = Envelope::read(publish.payload).map_err(malformed)?;
        let numbers = Numbers::of(&envelope);
        let lane = usize::from(envelope.kind == Kind::Chunk);
        let is_answered = publish.id.is_some();
        if !self.lanes[lane].admits(&numbers, is_answered) {
            return Err(Refusal { reason: Reason::QuotaExceeded, label: "behind_refused" });
        }
        let taken = self.unpack_and_push(publish, &envelope, lane, around);
        if matches!(taken, Ok(Taken::Yes)) {
            let at = self.find(publish.topic, around);
            self.notice(at, publish.topic, around);
        }
        let lane = &mut self.lanes[lane];
        match taken {
            Ok(Taken::Yes) if envelope.kind != Kind::Chunk => {
                let producer = lane.producer;
                self.lost += lane.take(&numbers, || around.log.kept_of(producer));
            }
            Ok(_) => {}
            // What is malformed will never be another, so nothing waits for it.
            Err(refusal) if refusal.reason == Reason::PayloadFormatInvalid || !is_answered => {}
            Err(_) => lane.refuse(numbers.epoch, numbers.first, numbers.first),
        }
        taken
    }

    /// The log has refused the envelopes of this turn.
    pub fn envelopes_refused(&mut self) {
        if let Some(Bound { lane, epoch, answered: Some((first, last)), .. }) = self.bound {
            self.lanes[lane].refuse(epoch, first, last);
        }
    }

    fn unpack_and_push(
        &mut self,
        publish: &Publish<'_>,
        envelope: &Envelope<'_>,
        lane: usize,
        around: Around<'_>,
    ) -> Result<Taken, Refusal> {
        let mut at = self.find(publish.topic, around);
        if let Verdict::Store { stream, .. } = &self.topics[at].verdict
            && stream.is_deleted()
        {
            // If it has been made again since, its new self takes the records.
            self.forget_topics();
            at = self.find(publish.topic, around);
        }
        self.headers.clear();
        let fixed_key_bytes = match &self.topics[at].verdict {
            Verdict::Refuse(reason) => return Err((*reason).into()),
            Verdict::Answer | Verdict::Chunk => return Err(Reason::TopicNameInvalid.into()),
            Verdict::Live => 0,
            Verdict::Store { stream, key, headers } => {
                let joins = |bound: &Bound| {
                    Arc::ptr_eq(&bound.stream, stream) && bound.lane == lane && bound.epoch == envelope.epoch
                };
                if self.bound.as_ref().is_some_and(|bound| !joins(bound)) {
                    return Ok(Taken::Later);
                }
                self.headers.extend_from_slice(headers);
                if let Key::Fixed(key, _) = key { key.len() } else { 0 }
            }
        };
        envelope_headers(publish, envelope.kind, &mut self.headers)?;
        let mut scratch = std::mem::take(&mut self.scratch);
        let most = UNPACKED_BYTES_MAX.min(around.log.numbered_bytes_max());
        let headers_bytes: usize = self.headers.iter().map(|header| header.value.len() + 8).sum();
        let each_bytes = fixed_key_bytes + headers_bytes + MESSAGE_BYTES;
        let unpacked = self.unpack(&mut scratch, at, publish, envelope, each_bytes, most, around);
        let taken = unpacked.and_then(|(body, bytes)| {
            if !self.items.is_empty() && self.gathered_bytes + bytes > most {
                return Ok(Taken::Later);
            }
            // A part of a blob is no longer than the packet, which has its room.
            if envelope.kind != Kind::Chunk
                && let Some(kib) = self.lacks_room(bytes, around.unpacked)
            {
                return Ok(if self.items.is_empty() { Taken::NoRoom(kib) } else { Taken::Later });
            }
            self.push_unpacked(&scratch, at, publish, envelope, lane, body.clone())?;
            self.gathered_bytes += bytes;
            self.unpacked_bytes += bytes;
            self.copy_unpacked(&scratch, at, publish, envelope, body, around);
            Ok(Taken::Yes)
        });
        scratch.clear();
        self.scratch = scratch;
        self.headers.clear();
        taken
    }

    /// Takes room for so many bytes more; how many KiB it would take all in all if there is not as much now. Whoever waits
    /// for it holds none: it would be waited for in turn.
    fn lacks_room(&mut self, bytes: usize, unpacked: &Arc<Semaphore>) -> Option<u32> {
        let all = self.unpacked_bytes + bytes;
        let has = self.room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        // Two times the bound of an envelope at most.
        let kib = if all > UNPACKED_FREE_BYTES { all.div_ceil(1 << 10) } else { 0 };
        let more = kib.checked_sub(has).filter(|more| *more > 0)?;
        let Ok(room) = unpacked.clone().try_acquire_many_owned(more as u32) else { return Some(kib as u32) };
        match &mut self.room {
            Some(held) => held.merge(room),
            None => self.room = Some(room),
        }
        None
    }

    /// Looks at all of it, writes rows as JSON, and works out the keys that depend on the records. With it comes what the
    /// records weigh.
    #[expect(clippy::too_many_arguments, reason = "an envelope and where it goes")]
    fn unpack<'a>(
        &mut self,
        scratch: &mut Scratch,
        at: usize,
        publish: &Publish<'a>,
        envelope: &Envelope<'a>,
        each_bytes: usize,
        most: usize,
        around: Around<'_>,
    ) -> Result<(Body<'a>, usize), Refusal> {
        let template = match &self.topics[at].verdict {
            Verdict::Store { key: Key::PerMessage, .. } => {
                Some(&around.routes.find(publish.topic).ok_or(Reason::TopicNameInvalid)?.key)
            }
            _ => None,
        };
        let mut bytes = 0;
        let mut weigh = |scratch: &mut Scratch, key: &mut Vec<u8>, data: &[u8]| -> Result<(), Refusal> {
            if let Some(template) = template {
                template.write(key, &self.who, publish.topic, publish.properties, data);
                if key.len() > PARTITION_KEY_BYTES_MAX {
                    return Err(Reason::PayloadFormatInvalid.into());
                }
                scratch.keys.extend_from_slice(key);
                scratch.key_ends.push(scratch.keys.len());
                bytes += key.len();
            }
            bytes += data.len() + each_bytes;
            // A part of a blob is as long as it was sent.
            let fits = bytes <= most || envelope.kind == Kind::Chunk;
            if fits { Ok(()) } else { Err(Reason::PayloadFormatInvalid.into()) }
        };
        let key = &mut self.key;
        let body = match envelope.kind {
            Kind::Plain => {
                let records = envelope.plain().map_err(malformed)?;
                for data in records.clone() {
                    weigh(scratch, key, data)?;
                }
                Body::Plain(records)
            }
            Kind::Readings => {
                let table = envelope.readings().map_err(malformed)?;
                let mut rows = table.rows();
                while let Some(row) = rows.next_row() {
                    let from = scratch.rows.len();
                    // Writing into memory cannot fail.
                    let _ = write!(scratch.rows, "{}", row.as_json());
                    scratch.row_ends.push(scratch.rows.len());
                    let data = std::mem::take(&mut scratch.rows);
                    let weighed = weigh(scratch, key, &data[from..]);
                    scratch.rows = data;
                    weighed?;
                }
                Body::Rows
            }
            Kind::Chunk => {
                let chunk = envelope.chunk().map_err(malformed)?;
                weigh(scratch, key, publish.payload)?;
                let value = format!("{}/{}/{}", envelope.epoch, chunk.offset, chunk.total);
                self.headers.push(Header::user(BLOB_PROPERTY, &value));
                Body::Chunk(publish.payload)
            }
        };
        if self.key.capacity() > PARTITION_KEY_BYTES_MAX {
            self.key = Vec::new();
        }
        Ok((body, bytes))
    }

    /// Pushes the records, each with its number, and the one item that answers for all.
    fn push_unpacked(
        &mut self,
        scratch: &Scratch,
        at: usize,
        publish: &Publish<'_>,
        envelope: &Envelope<'_>,
        lane: usize,
        body: Body<'_>,
    ) -> Result<(), Refusal> {
        let Inlet { topics, batch, headers, lanes, items, bound, .. } = self;
        let answer = answer_of(publish.qos, publish.id);
        let (stream, fixed) = match &topics[at].verdict {
            Verdict::Store { stream, key, .. } => (stream, key),
            _ => {
                items.push(Item { answer, outcome: Outcome::Settled(Reason::Success) });
                return Ok(());
            }
        };
        let mut pushed = 0;
        let mut reason = Reason::Success;
        for (nth, (data, key)) in scratch.records(body).enumerate() {
            let (key, hash) = match fixed {
                Key::Fixed(key, hash) => (&key[..], *hash),
                Key::PerMessage => (key, HashKey::of(key)),
            };
            let sequence = envelope.first + nth as u64;
            let producer = Some(Producer { id: lanes[lane].producer, epoch: envelope.epoch, sequence });
            let record = NewRecord { key, explicit_hash: None, producer, headers, data };
            match batch.push_hashed(stream, hash, &record) {
                Ok(()) => pushed += 1,
                Err(refused) if pushed == 0 => return Err(reason_of(refused).into()),
                // Everything else was looked at before: the stream went this very moment, with what was pushed to it.
                Err(refused) => {
                    reason = reason_of(refused);
                    break;
                }
            }
        }
        batch.take_numbered_as_one();
        items.push(Item { answer, outcome: Outcome::Unpacked { records: pushed, reason } });
        let epoch = envelope.epoch;
        let bound = bound.get_or_insert_with(|| Bound { stream: stream.clone(), lane, epoch, answered: None });
        if publish.id.is_some() {
            let (first, last) = bound.answered.unwrap_or((u64::MAX, 0));
            bound.answered = Some((first.min(envelope.first), last.max(envelope.first)));
        }
        match reason {
            Reason::Success => Ok(()),
            _ => {
                lanes[lane].refuse(epoch, envelope.first, envelope.first);
                Ok(())
            }
        }
    }

    fn copy_unpacked(
        &mut self,
        scratch: &Scratch,
        at: usize,
        publish: &Publish<'_>,
        envelope: &Envelope<'_>,
        body: Body<'_>,
        around: Around<'_>,
    ) {
        if !self.is_wanted(at, publish.topic, around.bus) {
            return;
        }
        let stored = matches!(self.topics[at].verdict, Verdict::Store { .. });
        let of_message = |header: &&Header| !matches!(header.id, HeaderId::Topic | HeaderId::PublishQos);
        let headers: Vec<Header> = self.headers.iter().filter(of_message).cloned().collect();
        debug_assert!(envelope.count > 0, "an envelope has records");
        for (data, _) in scratch.records(body) {
            self.put_live(at, data, headers.clone(), stored);
        }
    }
}

/// Headers of each record besides its topic: what the message says of its content is of the envelope, not of the records.
fn envelope_headers(publish: &Publish<'_>, kind: Kind, headers: &mut Vec<Header>) -> Result<(), Refusal> {
    headers.extend(qos_header(publish.qos));
    read_properties(publish.properties, headers)?;
    headers.retain(|header| !matches!(header.id, HeaderId::ContentType | HeaderId::PayloadFormat));
    let content_type = match kind {
        Kind::Readings => "application/json",
        Kind::Chunk => CONTENT_TYPE,
        Kind::Plain => return Ok(()),
    };
    headers.push(Header::new(HeaderId::ContentType, content_type.as_bytes()));
    Ok(())
}

impl Scratch {
    /// Data and key of each record. The key is empty where it is the topic's.
    fn records<'s>(&'s self, body: Body<'s>) -> impl Iterator<Item = (&'s [u8], &'s [u8])> {
        let (mut plain, chunk, rows) = match body {
            Body::Plain(plain) => (Some(plain), None, &[][..]),
            Body::Rows => (None, None, &self.row_ends[..]),
            Body::Chunk(chunk) => (None, Some(chunk), &[][..]),
        };
        let mut rows = pieces(&self.rows, rows);
        let mut keys = pieces(&self.keys, &self.key_ends);
        let mut chunk = chunk.into_iter();
        std::iter::from_fn(move || {
            let data = match &mut plain {
                Some(plain) => plain.next()?,
                None => rows.next().or_else(|| chunk.next())?,
            };
            Some((data, keys.next().unwrap_or_default()))
        })
    }

    fn clear(&mut self) {
        for bytes in [&mut self.rows, &mut self.keys] {
            bytes.clear();
            bytes.shrink_to(SCRATCH_BYTES_KEPT);
        }
        for ends in [&mut self.row_ends, &mut self.key_ends] {
            ends.clear();
            ends.shrink_to(SCRATCH_RECORDS_KEPT);
        }
    }
}

fn pieces<'s>(bytes: &'s [u8], ends: &'s [usize]) -> impl Iterator<Item = &'s [u8]> {
    let mut from = 0;
    ends.iter().map(move |end| {
        let piece: Range<usize> = from..*end;
        from = *end;
        &bytes[piece]
    })
}
