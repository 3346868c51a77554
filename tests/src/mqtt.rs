//! An MQTT client written by hand, for tests that need to see every byte, or to send bytes no library would.
//!
//! Blocking, one packet at a time, both versions. What it refuses is a broken answer of the gateway: it panics then, for
//! that is a failed test. Errors of the connection come back as `io::Error`, for tests in which the gateway dies.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long an answer may take before a test calls it missing.
const ANSWER_BOUND: Duration = Duration::from_secs(20);

/// Packet types, in the upper four bits of the first byte.
pub mod kind {
    pub const CONNECT: u8 = 1;
    pub const CONNACK: u8 = 2;
    pub const PUBLISH: u8 = 3;
    pub const PUBACK: u8 = 4;
    pub const PUBREC: u8 = 5;
    pub const PUBREL: u8 = 6;
    pub const PUBCOMP: u8 = 7;
    pub const SUBSCRIBE: u8 = 8;
    pub const SUBACK: u8 = 9;
    pub const PINGREQ: u8 = 12;
    pub const PINGRESP: u8 = 13;
    pub const DISCONNECT: u8 = 14;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V311,
    V5,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Type and flags.
    pub first: u8,
    pub body: Vec<u8>,
}

impl Packet {
    pub fn kind(&self) -> u8 {
        self.first >> 4
    }

    /// Packet identifier of an acknowledgement.
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.body[0], self.body[1]])
    }

    /// Reason code of an acknowledgement; 0 where it is left out.
    pub fn reason(&self) -> u8 {
        self.body.get(2).copied().unwrap_or(0)
    }
}

/// A connected client.
pub struct Client {
    pub stream: TcpStream,
    version: Version,
    next_id: u16,
    held: Vec<u8>,
}

impl Client {
    /// Connects with a clean start and no keep-alive.
    pub fn connect(addr: SocketAddr, id: &str, version: Version) -> io::Result<Client> {
        Client::connect_as(addr, version, &connect_packet(version, id, true))
    }

    /// Connects to a session that may be there already, kept for an hour.
    pub fn resume(addr: SocketAddr, id: &str, version: Version) -> io::Result<Client> {
        Client::connect_as(addr, version, &connect_packet(version, id, false))
    }

    fn connect_as(addr: SocketAddr, version: Version, connect: &[u8]) -> io::Result<Client> {
        let mut client = Client::open(addr, version)?;
        client.stream.write_all(connect)?;
        let answer = client.read()?;
        assert_eq!(answer.kind(), kind::CONNACK, "{answer:?}");
        match answer.body[1] {
            0 => Ok(client),
            refused => Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("CONNACK {refused:#04x}"))),
        }
    }

    /// A TCP connection with nothing sent yet.
    pub fn open(addr: SocketAddr, version: Version) -> io::Result<Client> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_BOUND))?;
        stream.set_write_timeout(Some(ANSWER_BOUND))?;
        Ok(Client { stream, version, next_id: 0, held: Vec::new() })
    }

    /// Sends a QoS 1 PUBLISH and returns its packet identifier without waiting.
    pub fn send(&mut self, topic: &str, payload: &[u8]) -> io::Result<u16> {
        let id = self.take_id();
        self.stream.write_all(&publish(self.version, topic, payload, 1, id, false, None))?;
        Ok(id)
    }

    /// The same with a producer number (promise P3); MQTT 5 only.
    pub fn send_numbered(&mut self, topic: &str, payload: &[u8], number: (u32, u64), again: bool) -> io::Result<u16> {
        let id = self.take_id();
        self.stream.write_all(&publish(self.version, topic, payload, 1, id, again, Some(number)))?;
        Ok(id)
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Publishes with QoS 1 and waits for the answer's reason code.
    pub fn publish(&mut self, topic: &str, payload: &[u8]) -> io::Result<u8> {
        let id = self.send(topic, payload)?;
        let answer = self.read()?;
        assert_eq!((answer.kind(), answer.id()), (kind::PUBACK, id), "{answer:?}");
        Ok(answer.reason())
    }

    /// Subscribes and returns the reason code of the one filter.
    pub fn subscribe(&mut self, filter: &str, qos: u8) -> io::Result<u8> {
        let id = self.take_id();
        let mut body = id.to_be_bytes().to_vec();
        if self.version == Version::V5 {
            body.push(0);
        }
        put_text(&mut body, filter);
        body.push(qos);
        self.stream.write_all(&packet(kind::SUBSCRIBE << 4 | 2, &body))?;
        let answer = self.read()?;
        assert_eq!((answer.kind(), answer.id()), (kind::SUBACK, id), "{answer:?}");
        Ok(answer.body[answer.body.len() - 1])
    }

    /// The next packet; an error at the end of the connection or after [`ANSWER_BOUND`].
    pub fn read(&mut self) -> io::Result<Packet> {
        loop {
            if let Some(packet) = self.take_held() {
                return Ok(packet);
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.held.extend_from_slice(&chunk[..n]),
            }
        }
    }

    /// The next packet if it comes within `bound`.
    pub fn read_within(&mut self, bound: Duration) -> io::Result<Option<Packet>> {
        self.stream.set_read_timeout(Some(bound))?;
        let read = self.read();
        self.stream.set_read_timeout(Some(ANSWER_BOUND))?;
        match read {
            Ok(packet) => Ok(Some(packet)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub fn take_id(&mut self) -> u16 {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.next_id
    }

    fn take_held(&mut self) -> Option<Packet> {
        let (length, used) = remaining_length(self.held.get(1..)?)?;
        let whole = 1 + used + length;
        if self.held.len() < whole {
            return None;
        }
        let packet = Packet { first: self.held[0], body: self.held[1 + used..whole].to_vec() };
        self.held.drain(..whole);
        Some(packet)
    }
}

/// A whole packet from its first byte and its body.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    put_length(&mut bytes, body.len());
    bytes.extend_from_slice(body);
    bytes
}

pub fn connect_packet(version: Version, id: &str, clean: bool) -> Vec<u8> {
    let mut body = Vec::new();
    put_text(&mut body, "MQTT");
    body.push(if version == Version::V5 { 5 } else { 4 });
    body.push(if clean { 2 } else { 0 });
    body.extend_from_slice(&[0, 0]);
    if version == Version::V5 {
        // Session expiry interval: an hour for a session that is to be resumed.
        body.extend_from_slice(if clean { &[0] } else { &[5, 0x11, 0, 0, 0x0e, 0x10] });
    }
    put_text(&mut body, id);
    packet(kind::CONNECT << 4, &body)
}

pub fn publish(
    version: Version,
    topic: &str,
    payload: &[u8],
    qos: u8,
    id: u16,
    dup: bool,
    number: Option<(u32, u64)>,
) -> Vec<u8> {
    let mut body = Vec::with_capacity(topic.len() + payload.len() + 64);
    put_text(&mut body, topic);
    if qos > 0 {
        body.extend_from_slice(&id.to_be_bytes());
    }
    if version == Version::V5 {
        let mut properties = Vec::new();
        if let Some((epoch, sequence)) = number {
            properties.push(0x26);
            put_text(&mut properties, "headwater-number");
            put_text(&mut properties, &format!("{epoch}/{sequence}"));
        }
        put_length(&mut body, properties.len());
        body.extend_from_slice(&properties);
    }
    body.extend_from_slice(payload);
    packet(kind::PUBLISH << 4 | u8::from(dup) << 3 | qos << 1, &body)
}

pub fn put_text(into: &mut Vec<u8>, text: &str) {
    into.extend_from_slice(&(text.len() as u16).to_be_bytes());
    into.extend_from_slice(text.as_bytes());
}

pub fn put_length(into: &mut Vec<u8>, mut length: usize) {
    loop {
        let byte = (length % 128) as u8;
        length /= 128;
        into.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            return;
        }
    }
}

/// The length in front of a packet's body and the bytes it takes; `None` if it is not all there.
pub fn remaining_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((length, at + 1));
        }
    }
    None
}
