//! A gateway that takes half a page: enough MQTT 5 to judge the SDK by, in memory and without time, with every fault a
//! test asks for. What it stores is what a real one would: a number of an epoch once.

use embedded_io_async::{ErrorType, Read, Write};
use headwater_device::Transport;
use headwater_wire::{CONTENT_TYPE, Envelope, Hello, Kind, LOSSES_TOPIC, Losses, TOPIC_ROOT};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

/// One record in the gateway's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub epoch: u32,
    pub number: u64,
    pub data: String,
}

/// What goes wrong, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends behind the n-th publish, which is stored, and its answer is lost.
    LoseAnswer(u32),
    /// The n-th publish and all behind it are refused until the n-th comes again, for this MQTT reason.
    Refuse(u32, u8),
    /// Instead of the n-th answer there are bytes that are no MQTT.
    Garbage(u32),
    /// The n-th answer has only its first byte.
    HalfPacket(u32),
    /// The n-th publish and all behind it are never answered.
    Silence(u32),
    /// There is no hello, as with any other broker.
    NoHello,
    /// Nobody answers a PINGREQ.
    NoPong,
}

#[derive(Debug, Default)]
pub struct Gateway {
    pub stored: Vec<Stored>,
    /// The highest number of the newest epoch.
    pub kept: Option<(u32, u64)>,
    pub faults: Vec<Fault>,
    pub publishes: u32,
    pub connections: u32,
    /// Connections that the device has ended as it should.
    pub goodbyes: u32,
    pub duplicates: u32,
    pub answers: Vec<Vec<u8>>,
    /// What the device told of what it lost.
    pub losses: Vec<Losses>,
    /// The last blob and how many parts of it there are, its bytes, and parts that came, also those that came again.
    pub blob: Option<(u32, u64)>,
    pub blob_bytes: Vec<u8>,
    /// What its hello says; the test's own if there is nothing.
    pub time_ms: Option<u64>,
    pub chunks: u64,
    /// Sent to the device behind the hello: topic and payload.
    pub down: Vec<(String, Vec<u8>)>,
    /// Numbers refused and what has to come first.
    refused_from: Option<(u32, u64)>,
    input: Vec<u8>,
    output: VecDeque<u8>,
    is_open: bool,
    is_mute: bool,
}

pub type Shared = Rc<RefCell<Gateway>>;

impl Gateway {
    pub fn new(faults: &[Fault]) -> Shared {
        Rc::new(RefCell::new(Gateway { faults: faults.to_vec(), ..Gateway::default() }))
    }

    /// The numbers of the records' data, which are numbers as well.
    pub fn data(&self) -> Vec<u64> {
        self.stored.iter().map(|stored| stored.data.parse().expect("a number")).collect()
    }

    fn fault(&mut self, is: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let at = self.faults.iter().position(is)?;
        Some(self.faults.remove(at))
    }

    fn take_packets(&mut self) {
        while self.is_open {
            let Some((first, length, head)) = packet_head(&self.input) else { return };
            if self.input.len() < head + length {
                return;
            }
            let packet: Vec<u8> = self.input.drain(..head + length).skip(head).collect();
            self.take_packet(first, &packet);
        }
    }

    fn take_packet(&mut self, first: u8, packet: &[u8]) {
        match first >> 4 {
            1 => self.say(&[0x20, 3, 0, 0, 0]),
            8 => {
                self.say(&[0x90, 4, packet[0], packet[1], 0, 0]);
                if self.fault(|fault| *fault == Fault::NoHello).is_some() {
                    self.faults.push(Fault::NoHello);
                    return;
                }
                let hello = Hello {
                    time_ms: self.time_ms.unwrap_or(1_790_000_000_000),
                    kept: self.kept,
                    blob: self.blob,
                    waiting: self.down.len() as u32,
                };
                self.publish(&format!("{TOPIC_ROOT}device/hello"), &hello.to_bytes(), &[]);
                for (topic, payload) in std::mem::take(&mut self.down) {
                    let response = format!("{TOPIC_ROOT}device/answer");
                    let mut properties = vec![8];
                    properties.extend_from_slice(&(response.len() as u16).to_be_bytes());
                    properties.extend_from_slice(response.as_bytes());
                    properties.extend_from_slice(&[9, 0, 3, 1, 2, 3]);
                    self.publish(&topic, &payload, &properties);
                }
            }
            3 => self.take_publish(first, packet),
            12 if self.faults.contains(&Fault::NoPong) => {}
            12 => self.say(&[0xd0, 0]),
            14 => {
                self.is_open = false;
                self.goodbyes += 1;
            }
            _ => panic!("a device does not send {first:#x}"),
        }
    }

    fn take_publish(&mut self, first: u8, packet: &[u8]) {
        let topic_length = usize::from(u16::from_be_bytes([packet[0], packet[1]]));
        let topic = std::str::from_utf8(&packet[2..2 + topic_length]).unwrap();
        let mut at = 2 + topic_length;
        if first & 6 == 0 {
            let payload = &packet[at + 1 + usize::from(packet[at])..];
            match topic.rsplit_once('/') {
                Some((_, "answer")) => self.answers.push(payload.to_vec()),
                Some((_, LOSSES_TOPIC)) => self.losses.push(Losses::read(payload).expect("losses")),
                _ => panic!("a message to {topic}"),
            }
            return;
        }
        let id = [packet[at], packet[at + 1]];
        at += 2;
        let properties = usize::from(packet[at]);
        let content = String::from_utf8_lossy(&packet[at + 4..at + 1 + properties]).into_owned();
        assert_eq!(content, CONTENT_TYPE);
        let envelope = Envelope::read(&packet[at + 1 + properties..]).expect("an envelope");
        self.publishes += 1;
        let now = self.publishes;
        if self.fault(|fault| *fault == Fault::Silence(now)).is_some() {
            self.is_mute = true;
        }
        if let Some(Fault::Refuse(_, reason)) = self.fault(|fault| matches!(fault, Fault::Refuse(n, _) if *n == now)) {
            if reason != 0x99 {
                self.refused_from = Some((envelope.epoch, envelope.first));
            }
            return self.say(&[0x40, 3, id[0], id[1], reason]);
        }
        if let Some((epoch, number)) = self.refused_from
            && epoch == envelope.epoch
        {
            if envelope.first > number {
                return self.say(&[0x40, 3, id[0], id[1], 0x97]);
            }
            self.refused_from = None;
        }
        self.store(&envelope);
        if self.fault(|fault| *fault == Fault::LoseAnswer(now)).is_some() {
            self.is_open = false;
        } else if self.fault(|fault| *fault == Fault::Garbage(now)).is_some() {
            self.say(&[0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0x13, 0x37]);
        } else if self.fault(|fault| *fault == Fault::HalfPacket(now)).is_some() {
            self.say(&[0x40]);
            self.is_open = false;
        } else {
            self.say(&[0x40, 2, id[0], id[1]]);
        }
    }

    fn store(&mut self, envelope: &Envelope<'_>) {
        if envelope.kind == Kind::Chunk {
            let chunk = envelope.chunk().expect("a part of a blob");
            self.chunks += 1;
            if self.blob.is_none_or(|(id, parts)| id != envelope.epoch || envelope.first > parts) {
                assert_eq!(chunk.offset as usize, self.blob_bytes.len(), "in order, and each once");
                self.blob = Some((envelope.epoch, envelope.first));
                self.blob_bytes.extend_from_slice(chunk.bytes);
            }
            return;
        }
        assert_eq!(envelope.kind, Kind::Plain);
        for (number, data) in (envelope.first..).zip(envelope.plain().unwrap()) {
            // The rule of the real one: within an epoch numbers rise, another epoch is another life.
            if self.kept.is_some_and(|(epoch, kept)| epoch == envelope.epoch && number <= kept) {
                self.duplicates += 1;
                continue;
            }
            self.kept = Some((envelope.epoch, number));
            let data = String::from_utf8(data.to_vec()).unwrap();
            self.stored.push(Stored { epoch: envelope.epoch, number, data });
        }
    }

    fn publish(&mut self, topic: &str, payload: &[u8], properties: &[u8]) {
        let mut body = (topic.len() as u16).to_be_bytes().to_vec();
        body.extend_from_slice(topic.as_bytes());
        body.push(properties.len() as u8);
        body.extend_from_slice(properties);
        body.extend_from_slice(payload);
        assert!(body.len() < 128, "one byte of length");
        let mut packet = vec![0x30, body.len() as u8];
        packet.extend_from_slice(&body);
        self.say(&packet);
    }

    fn say(&mut self, bytes: &[u8]) {
        if !self.is_mute {
            self.output.extend(bytes);
        }
    }
}

/// First byte, remaining length, and how long both are.
fn packet_head(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, rest) = bytes.split_first()?;
    let mut length = 0;
    for (at, byte) in rest.iter().enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((*first, length, at + 2));
        }
    }
    None
}

/// Connects to the model.
pub struct Wire(pub Shared);

pub struct Socket(Shared, u32);

#[derive(Debug)]
pub struct Broken;

impl core::fmt::Display for Broken {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("broken")
    }
}

impl core::error::Error for Broken {}

impl embedded_io_async::Error for Broken {
    fn kind(&self) -> embedded_io_async::ErrorKind {
        embedded_io_async::ErrorKind::ConnectionReset
    }
}

/// Every operation comes back once before it is done, so that there is a place to stop at.
pub async fn yield_once() {
    let mut has = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Transport for Wire {
    type Stream<'a> = Socket;
    type Error = Broken;

    async fn connect(&mut self) -> Result<Socket, Broken> {
        yield_once().await;
        let mut gateway = self.0.borrow_mut();
        gateway.connections += 1;
        (gateway.is_open, gateway.is_mute, gateway.refused_from) = (true, false, None);
        gateway.input.clear();
        gateway.output.clear();
        Ok(Socket(Rc::clone(&self.0), gateway.connections))
    }
}

impl ErrorType for Socket {
    type Error = Broken;
}

impl Read for Socket {
    async fn read(&mut self, into: &mut [u8]) -> Result<usize, Broken> {
        yield_once().await;
        poll_fn(|context| {
            let mut gateway = self.0.borrow_mut();
            if gateway.connections != self.1 {
                return Poll::Ready(Err(Broken));
            }
            // A byte or two at a time: a packet comes in parts.
            let take = into.len().min(3).min(gateway.output.len());
            if take == 0 && gateway.is_open {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            gateway.output.drain(..take).zip(into.iter_mut()).for_each(|(byte, place)| *place = byte);
            Poll::Ready(Ok(take))
        })
        .await
    }
}

impl Write for Socket {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        yield_once().await;
        let mut gateway = self.0.borrow_mut();
        if gateway.connections != self.1 || !gateway.is_open {
            return Err(Broken);
        }
        let take = bytes.len().min(40);
        gateway.input.extend_from_slice(&bytes[..take]);
        gateway.take_packets();
        Ok(take)
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        yield_once().await;
        Ok(())
    }
}
