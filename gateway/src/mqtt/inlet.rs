//! From PUBLISH to the batch: route, rights, key, headers. The hot path of the gateway.
//!
//! What depends on the topic alone (may it, where to, which key, which hash) is worked out once per topic and
//! connection; a message then costs a look at the cache and one copy into the batch. No I/O happens here.
//! What a device packs many records into is `envelope`'s.

mod envelope;
mod video;

use super::access::{Access, Who};
use super::acks::{Answer, Item, Outcome};
use super::bus::{Bus, LiveMessage};
use super::chunks::{ChunkDoor, Work};
use super::codec::{PacketId, Properties, PropertyId, Publish, Qos, Reason, Value};
use super::devices::{Devices, is_own_way_up, is_reserved};
use super::lane::Lane;
use super::route::{Routes, Target};
use super::shared::Shared;
use crate::log::{Batch, Log, PushError, Stream};
use crate::record::{self, HashKey, Header, HeaderId, NewRecord, PARTITION_KEY_BYTES_MAX, Producer, Record};
use bytes::Bytes;
use envelope::{Bound, Scratch, is_envelope};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use xxhash_rust::xxh3::xxh3_128;

/// User property by which a producer numbers its records (promise P3): `<epoch>/<sequence>`.
pub const NUMBER_PROPERTY: &str = "headwater-number";
/// Topics remembered per connection, and their bytes; beyond, it starts afresh.
const TOPICS_MAX: usize = 256;
const TOPICS_BYTES_MAX: usize = 16 << 10;
/// What one turn may gather for each byte there is to read from, and beside it: short messages are longer as records.
const GATHERED_PER_BYTE: usize = 4;
const GATHERED_BYTES: usize = 4 << 10;
const GATHERED_BYTES_MAX: usize = 256 << 10;
/// Room for answers that is kept from turn to turn.
const ITEMS_KEPT: usize = 1_024;
/// Of a message, beside its key, topic and payload, in bytes.
const MESSAGE_BYTES: usize = 64;
/// Headers of one record that come from MQTT: two less than the wire between gateways carries, for what they add.
const HEADERS_MAX: usize = crate::wire::HEADERS_MAX - 2;
/// Bytes of them, with room for the origin likewise.
const HEADERS_BYTES_MAX: usize = record::HEADERS_BYTES_MAX - (1 << 10);

/// What the inlet looks things up in.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    pub routes: &'a Routes,
    pub access: &'a Access,
    pub log: &'a Log,
    pub bus: &'a Bus,
    pub devices: &'a Devices,
    pub chunks: Option<&'a dyn ChunkDoor>,
    /// Room for what envelopes are unpacked to.
    pub unpacked: &'a Arc<Semaphore>,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Yes,
    /// It has to wait until what was gathered is handed in. Nothing was done.
    Later,
    /// It has to wait until there is room for so many KiB, which [`Inlet::give_room`] brings. Nothing was done.
    NoRoom(u32),
    /// It has to wait for what [`Inlet::take_work`] gives. Nothing was done.
    NotReady,
}

/// Why a message is refused, and under which name that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub label: &'static str,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Refusal { reason, label: reason.label() }
    }
}

pub struct Inlet {
    who: Who,
    /// Numbers of the client's records, and of the parts of its blobs.
    lanes: [Lane; 2],
    connection: u64,
    topics: Vec<Topic>,
    by_name: HashMap<Bytes, usize>,
    topics_bytes: usize,
    last: usize,
    /// What this turn of reading has gathered.
    pub batch: Batch,
    pub items: Vec<Item>,
    live: Vec<LiveMessage>,
    live_bytes: usize,
    gathered_bytes: usize,
    key: Vec<u8>,
    headers: Vec<Header>,
    scratch: Scratch,
    /// The envelopes in the batch.
    bound: Option<Bound>,
    /// What they were unpacked to, and the room that it has beyond what is free.
    unpacked_bytes: usize,
    room: Option<OwnedSemaphorePermit>,
    lost: u64,
    /// What [`Taken::NotReady`] waits for.
    work: Option<Work>,
    /// More of the last refusal than its reason says.
    says: Option<String>,
}

struct Topic {
    /// Shares its memory with the key of the cache and the header of its records.
    name: Bytes,
    verdict: Verdict,
    /// Whether somebody listens live, as of this generation of the bus.
    wanted: bool,
    generation: u64,
    /// Whether a rule of video wants to know of its messages.
    noticed: bool,
}

enum Verdict {
    Refuse(Reason),
    Store {
        stream: Arc<Stream>,
        headers: [Header; 1],
        key: Key,
    },
    Live,
    /// What a device answers to a command.
    Answer,
    /// Video: see `chunks`.
    Chunk,
}

enum Key {
    Fixed(Box<[u8]>, HashKey),
    /// The route's template has to look into each message.
    PerMessage,
}

impl Inlet {
    pub fn new(who: Who, connection: u64) -> Self {
        Inlet {
            lanes: [
                Lane::new(producer_of(&who.client_id)),
                // Blobs are numbered beside the records, each from 1.
                Lane::new(blob_producer_of(&who.client_id)),
            ],
            who,
            connection,
            topics: Vec::new(),
            by_name: HashMap::new(),
            topics_bytes: 0,
            last: 0,
            batch: Batch::new(),
            items: Vec::new(),
            live: Vec::new(),
            live_bytes: 0,
            gathered_bytes: 0,
            key: Vec::new(),
            headers: Vec::new(),
            scratch: Scratch::default(),
            bound: None,
            unpacked_bytes: 0,
            room: None,
            lost: 0,
            work: None,
            says: None,
        }
    }

    pub fn who(&self) -> &Who {
        &self.who
    }

    /// Whether this turn may gather more, before it is handed in; `input_bytes` is what there is to read from.
    #[inline]
    pub fn has_room(&self, input_bytes: usize) -> bool {
        self.gathered_bytes < (GATHERED_BYTES + GATHERED_PER_BYTE * input_bytes).min(GATHERED_BYTES_MAX)
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.live.is_empty()
    }

    /// Bytes of messages that are to go to live listeners.
    pub fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    pub fn take_live(&mut self) -> Vec<LiveMessage> {
        self.live_bytes = 0;
        std::mem::take(&mut self.live)
    }

    /// What was gathered is handed in.
    pub fn end_turn(&mut self) {
        self.items.clear();
        self.items.shrink_to(ITEMS_KEPT);
        self.gathered_bytes = 0;
        self.bound = None;
        self.unpacked_bytes = 0;
        self.room = None;
    }

    /// Room that [`Taken::NoRoom`] asked for.
    pub fn give_room(&mut self, room: OwnedSemaphorePermit) {
        self.room = Some(room);
    }

    /// Records that the device numbered and never sent, as far as this turn has shown.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// What a message waits for that is not ready.
    pub fn take_work(&mut self) -> Option<Work> {
        self.work.take()
    }

    /// What there is to say of the last refusal beside its reason.
    pub fn take_says(&mut self) -> Option<String> {
        self.says.take()
    }

    /// Takes a message in, unless it is one that gives way while the log is behind.
    #[inline]
    pub fn take_unless_behind(&mut self, publish: &Publish<'_>, shared: &Shared) -> Result<Taken, Refusal> {
        if publish.qos == Qos::AtMostOnce && shared.is_behind() {
            return Err(Refusal { reason: Reason::ServerBusy, label: "qos0_overload" });
        }
        self.take(publish, shared.around())
    }

    /// Takes a message into the batch, or says why not.
    #[inline]
    pub fn take(&mut self, publish: &Publish<'_>, around: Around<'_>) -> Result<Taken, Refusal> {
        if !publish.properties.is_empty() && is_envelope(publish) {
            return self.take_envelope(publish, around);
        }
        let at = self.find(publish.topic, around);
        let answer = answer_of(publish.qos, publish.id);
        let stored = match &self.topics[at].verdict {
            Verdict::Refuse(reason) => return Err((*reason).into()),
            Verdict::Answer => {
                around.devices.heard(&self.who.client_id, publish)?;
                false
            }
            Verdict::Live => false,
            Verdict::Chunk => return self.take_chunk(at, publish, around),
            Verdict::Store { .. } => {
                match self.push(at, publish, around.routes) {
                    Err(Refused::Deleted) => self.push_again(publish, around)?,
                    Err(Refused::For(reason)) => return Err(reason.into()),
                    Ok(()) => {}
                }
                true
            }
        };
        let outcome = if stored { Outcome::Placed } else { Outcome::Settled(Reason::Success) };
        self.items.push(Item { answer, outcome });
        // The topic may have moved in the cache when its stream was made again.
        let at = if stored { self.last } else { at };
        self.notice(at, publish.topic, around);
        self.copy_for_listeners(at, publish, stored, around.bus);
        Ok(Taken::Yes)
    }

    /// An answer that needs no record of its own.
    pub fn settle(&mut self, answer: Answer, reason: Reason) {
        self.gathered_bytes += size_of::<Item>();
        self.items.push(Item { answer, outcome: Outcome::Settled(reason) });
    }

    /// Answers a refused message.
    pub fn refuse(&mut self, publish: &Publish<'_>, reason: Reason) {
        self.settle(answer_of(publish.qos, publish.id), reason);
    }

    #[inline]
    fn find(&mut self, name: &str, around: Around<'_>) -> usize {
        if self.topics.get(self.last).is_some_and(|topic| topic.name == name.as_bytes()) {
            return self.last;
        }
        self.last = match self.by_name.get(name.as_bytes()) {
            Some(at) => *at,
            None => self.learn(name, around),
        };
        self.last
    }

    #[cold]
    fn learn(&mut self, name: &str, around: Around<'_>) -> usize {
        if self.topics.len() >= TOPICS_MAX || self.topics_bytes + name.len() > TOPICS_BYTES_MAX {
            self.forget_topics();
        }
        let bytes = Bytes::copy_from_slice(name.as_bytes());
        let verdict = judge(name, &bytes, &self.who, around);
        let noticed = matches!(verdict, Verdict::Store { .. } | Verdict::Live)
            && around.chunks.is_some_and(|door| door.notices(name));
        self.topics_bytes += name.len() + verdict.key_bytes();
        self.by_name.insert(bytes.clone(), self.topics.len());
        self.topics.push(Topic { name: bytes, verdict, wanted: false, generation: 0, noticed });
        self.topics.len() - 1
    }

    fn forget_topics(&mut self) {
        self.topics.clear();
        self.by_name.clear();
        self.topics_bytes = 0;
        self.last = 0;
    }

    /// The stream was deleted: if it has been made again since, its new self takes the message.
    #[cold]
    fn push_again(&mut self, publish: &Publish<'_>, around: Around<'_>) -> Result<(), Reason> {
        self.forget_topics();
        let at = self.find(publish.topic, around);
        match self.push(at, publish, around.routes) {
            Ok(()) => Ok(()),
            Err(Refused::Deleted) => Err(Reason::TopicNameInvalid),
            Err(Refused::For(reason)) => Err(reason),
        }
    }

    #[inline]
    fn push(&mut self, at: usize, publish: &Publish<'_>, routes: &Routes) -> Result<(), Refused> {
        let pushed = self.push_record(at, publish, routes);
        // What a long one has needed is not kept for the next.
        self.headers.clear();
        if self.key.capacity() > PARTITION_KEY_BYTES_MAX {
            self.key = Vec::new();
        }
        pushed
    }

    #[inline]
    fn push_record(&mut self, at: usize, publish: &Publish<'_>, routes: &Routes) -> Result<(), Refused> {
        let Inlet { topics, batch, headers, key, who, lanes, gathered_bytes, .. } = self;
        let topic = &topics[at];
        let (stream, topic_header, fixed) = match &topic.verdict {
            Verdict::Store { stream, headers, key } => (stream, headers, key),
            Verdict::Refuse(reason) => return Err(Refused::For(*reason)),
            Verdict::Live | Verdict::Answer | Verdict::Chunk => return Err(Refused::Deleted),
        };
        let usual = publish.qos == Qos::AtLeastOnce && publish.properties.is_empty();
        let (headers, producer) = match usual {
            true => (&topic_header[..], None),
            false => {
                headers.clear();
                headers.extend_from_slice(topic_header);
                headers.extend(qos_header(publish.qos));
                let number = read_properties(publish.properties, headers).map_err(Refused::For)?;
                (&headers[..], number.map(|(epoch, sequence)| Producer { id: lanes[0].producer, epoch, sequence }))
            }
        };
        let (key, hash) = match fixed {
            Key::Fixed(key, hash) => (&key[..], *hash),
            Key::PerMessage => {
                let route = routes.find(publish.topic).ok_or(Refused::For(Reason::TopicNameInvalid))?;
                route.key.write(key, who, publish.topic, publish.properties, publish.payload);
                (&key[..], HashKey::of(key))
            }
        };
        *gathered_bytes += key.len() + publish.topic.len() + publish.payload.len() + MESSAGE_BYTES;
        let record = NewRecord { key, explicit_hash: None, producer, headers, data: publish.payload };
        batch.push_hashed(stream, hash, &record).map_err(|refused| match refused {
            PushError::Deleted => Refused::Deleted,
            other => Refused::For(reason_of(other)),
        })
    }

    #[inline]
    fn copy_for_listeners(&mut self, at: usize, publish: &Publish<'_>, stored: bool, bus: &Bus) {
        if !self.is_wanted(at, publish.topic, bus) {
            return;
        }
        let mut headers = Vec::new();
        // A property that was refused has refused the message before.
        let _ = read_properties(publish.properties, &mut headers);
        self.put_live(at, publish.payload, headers, stored);
    }

    /// Whether somebody listens live to the topic.
    #[inline]
    fn is_wanted(&mut self, at: usize, topic_name: &str, bus: &Bus) -> bool {
        let generation = bus.generation();
        if generation == Bus::NOBODY {
            return false;
        }
        let Some(topic) = self.topics.get_mut(at) else { return false };
        if topic.generation != generation {
            topic.generation = generation;
            topic.wanted = bus.wants(topic_name);
        }
        topic.wanted && !matches!(topic.verdict, Verdict::Refuse(_) | Verdict::Answer) && !bus.gives_way()
    }

    fn put_live(&mut self, at: usize, payload: &[u8], headers: Vec<Header>, stored: bool) {
        let Some(topic) = self.topics.get(at) else { return };
        let message = LiveMessage {
            topic: topic.name.clone(),
            payload: Bytes::copy_from_slice(payload),
            headers,
            stored,
            from: self.connection,
        };
        self.live_bytes += message.weight();
        self.gathered_bytes += message.weight();
        self.live.push(message);
    }
}

impl Verdict {
    fn key_bytes(&self) -> usize {
        match self {
            Verdict::Store { key: Key::Fixed(key, _), .. } => key.len(),
            _ => 0,
        }
    }
}

enum Refused {
    Deleted,
    For(Reason),
}

fn reason_of(refused: PushError) -> Reason {
    match refused {
        PushError::Deleted => Reason::TopicNameInvalid,
        PushError::Data(_) => Reason::PacketTooLarge,
        PushError::Key(_) | PushError::Headers(_) => Reason::QuotaExceeded,
    }
}

fn answer_of(qos: Qos, id: Option<PacketId>) -> Answer {
    match (qos, id) {
        (Qos::AtLeastOnce, Some(id)) => Answer::PubAck(id),
        (Qos::ExactlyOnce, Some(id)) => Answer::PubRec(id),
        _ => Answer::None,
    }
}

/// The producer whose numbers are those of a client's records.
pub fn producer_of(client_id: &str) -> u128 {
    xxh3_128(client_id.as_bytes())
}

/// Under which number the parts of a client's blobs are known to the log.
pub fn blob_producer_of(client_id: &str) -> u128 {
    xxh3_128(&[client_id.as_bytes(), b"\0blob"].concat())
}

/// Whether a client's message to the topic would be taken, as far as that can be said before it is there.
pub fn may_publish(topic_name: &str, who: &Who, around: Around<'_>) -> Result<(), Reason> {
    match judge(topic_name, &Bytes::copy_from_slice(topic_name.as_bytes()), who, around) {
        Verdict::Refuse(reason) => Err(reason),
        // To the gateway itself only who is there can speak.
        Verdict::Answer | Verdict::Chunk => Err(Reason::TopicNameInvalid),
        Verdict::Store { .. } | Verdict::Live => Ok(()),
    }
}

fn judge(name: &str, bytes: &Bytes, who: &Who, around: Around<'_>) -> Verdict {
    if is_reserved(name) {
        // Whose client id it is has been judged with the CONNECT: no `[[allow]]` is asked, and no route.
        let own = is_own_way_up(&who.client_id, name);
        return if own { Verdict::Answer } else { Verdict::Refuse(Reason::TopicNameInvalid) };
    }
    if !around.access.may_publish(who, name) {
        return Verdict::Refuse(Reason::NotAuthorized);
    }
    if around.chunks.is_some_and(|door| door.wants(name)) {
        return Verdict::Chunk;
    }
    let Some(route) = around.routes.find(name) else { return Verdict::Refuse(Reason::TopicNameInvalid) };
    let stream = match &route.target {
        Target::Live => return Verdict::Live,
        Target::Stream(stream) => around.log.stream(stream.as_str()),
    };
    let Some(stream) = stream else { return Verdict::Refuse(Reason::TopicNameInvalid) };
    let key = match route.key.is_fixed() {
        false => Key::PerMessage,
        true => {
            let mut key = Vec::new();
            route.key.write(&mut key, who, name, Properties::NONE, &[]);
            if key.len() > PARTITION_KEY_BYTES_MAX {
                return Verdict::Refuse(Reason::QuotaExceeded);
            }
            let hash = HashKey::of(&key);
            Key::Fixed(key.into(), hash)
        }
    };
    Verdict::Store { stream, headers: [Header::new(HeaderId::Topic, bytes.clone())], key }
}

/// What a record remembers of its QoS, so that a subscriber gets no more than was published [MQTT-3.8.4-8].
fn qos_header(qos: Qos) -> Option<Header> {
    let value: &'static [u8] = match qos {
        Qos::AtMostOnce => &[0],
        Qos::AtLeastOnce => return None,
        Qos::ExactlyOnce => &[2],
    };
    Some(Header::new(HeaderId::PublishQos, value))
}

/// The QoS a record was published with: 1 where it does not say, as of all that came in through another door.
pub fn published_qos(record: &Record) -> Qos {
    match record.header(HeaderId::PublishQos).map(|value| &value[..]) {
        Some([bits]) => Qos::from_bits(*bits).unwrap_or(Qos::AtLeastOnce),
        _ => Qos::AtLeastOnce,
    }
}

/// Properties that travel with the record, and the number its producer gave it.
fn read_properties(properties: Properties<'_>, headers: &mut Vec<Header>) -> Result<Option<(u32, u64)>, Reason> {
    let mut number = None;
    let mut headers_bytes = headers.iter().map(|header| header.value.len() + 8).sum::<usize>();
    for (id, value) in properties.iter() {
        let header = match (id, value) {
            (PropertyId::PayloadFormat, Value::Number(format)) => {
                Header::new(HeaderId::PayloadFormat, vec![format as u8])
            }
            (PropertyId::ContentType, Value::Text(text)) => Header::new(HeaderId::ContentType, text.to_owned()),
            (PropertyId::ResponseTopic, Value::Text(text)) => Header::new(HeaderId::ResponseTopic, text.to_owned()),
            (PropertyId::CorrelationData, Value::Binary(data)) => Header::new(HeaderId::CorrelationData, data.to_vec()),
            (PropertyId::UserProperty, Value::Pair(NUMBER_PROPERTY, text)) => {
                // A number that cannot be read must not be dropped in silence: the producer counts on it.
                number = Some(parse_number(text).ok_or(Reason::ImplementationSpecific)?);
                continue;
            }
            (PropertyId::UserProperty, Value::Pair(name, text)) => Header::user(name, text),
            _ => continue,
        };
        headers_bytes += header.value.len() + 8;
        if headers.len() >= HEADERS_MAX || headers_bytes > HEADERS_BYTES_MAX {
            return Err(Reason::QuotaExceeded);
        }
        headers.push(header);
    }
    Ok(number)
}

/// `<epoch>/<sequence>`, decimal.
pub fn parse_number(text: &str) -> Option<(u32, u64)> {
    let (epoch, sequence) = text.split_once('/')?;
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(epoch) || !digits(sequence) {
        return None;
    }
    Some((epoch.parse().ok()?, sequence.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse_number;

    #[test]
    fn a_number_is_epoch_and_sequence_in_decimal() {
        assert_eq!(parse_number("3/17"), Some((3, 17)));
        assert_eq!(parse_number("0/18446744073709551615"), Some((0, u64::MAX)));
        for bad in ["", "3", "/", "3/", "/17", "+3/17", "3/-1", "4294967296/1", "3/17/1", "3/18446744073709551616"] {
            assert_eq!(parse_number(bad), None, "{bad}");
        }
    }
}
