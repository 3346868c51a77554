//! MQTT 3.1.1 and 5 on the wire, as a server meets them: strict, bounded, without a copy or an allocation.
//!
//! [`frame`] finds where a packet ends, [`decode`] turns it into a [`Packet`] that borrows from the read buffer, and
//! [`write`] encodes what the gateway answers. Everything a stranger sends comes through here first, so after this
//! edge the types cannot hold nonsense: topics are UTF-8 without wildcards, packet identifiers are not zero, properties
//! are allowed where they stand and stand there once. Why it is our own: `docs/adr/0001-own-mqtt-codec.md`.
//! Not here: what a packet means (that is `session`) and where bytes come from (`connection`).

mod connect;
mod error;
#[cfg(test)]
pub(in crate::mqtt) mod fuzz;
mod properties;
mod publish;
mod read;
mod subscribe;
#[cfg(test)]
mod tests;
pub mod write;

pub use connect::{Connect, Will};
pub use error::{DecodeError, Reason};
pub use properties::{Properties, PropertyId, Value};
pub use publish::Publish;
pub(super) use publish::is_topic_name;
pub use subscribe::is_topic_filter;
pub use subscribe::{Filters, Subscribe, SubscribeFilter, Unsubscribe};

use read::Reader;
use std::num::NonZeroU16;

/// Names one message in flight between one client and the gateway. Never zero [MQTT-2.2.1-3].
pub type PacketId = NonZeroU16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// MQTT 3.1.1
    V4,
    /// MQTT 5
    V5,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum Qos {
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl Qos {
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Qos::AtMostOnce),
            1 => Some(Qos::AtLeastOnce),
            2 => Some(Qos::ExactlyOnce),
            _ => None,
        }
    }
}

/// What a client may send, decoded in place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Packet<'a> {
    Connect(Connect<'a>),
    Publish(Publish<'a>),
    PubAck(Answer),
    PubRec(Answer),
    PubRel(Answer),
    PubComp(Answer),
    Subscribe(Subscribe<'a>),
    Unsubscribe(Unsubscribe<'a>),
    PingReq,
    /// Reason 0 in 3.1.1.
    Disconnect {
        reason: u8,
        properties: Properties<'a>,
    },
    Auth {
        reason: u8,
        properties: Properties<'a>,
    },
}

/// PUBACK, PUBREC, PUBREL and PUBCOMP look the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub id: PacketId,
    /// Always 0 in 3.1.1.
    pub reason: u8,
}

/// A packet's outline: everything of it is in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Type and flags.
    pub first: u8,
    /// Where the variable header starts, in bytes from the first.
    pub body: usize,
    /// Where the packet ends, in bytes from the first.
    pub end: usize,
}

/// The packet at the front of `bytes`; `None` while it is not complete. `packet_bytes_max` counts the whole packet, as
/// Maximum Packet Size does, and is enforced before the body has arrived.
pub fn frame(bytes: &[u8], packet_bytes_max: usize) -> Result<Option<Frame>, DecodeError> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    check_first(first)?;
    let mut length = 0usize;
    for at in 0..4 {
        let Some(byte) = rest.get(at) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let (body, end) = (at + 2, at + 2 + length);
            if end > packet_bytes_max {
                return Err(DecodeError::TooLarge);
            }
            return Ok((bytes.len() >= end).then_some(Frame { first, body, end }));
        }
    }
    Err(DecodeError::Malformed("the remaining length has more than four bytes"))
}

/// Bytes the packet at the front will have, once its length is known.
pub fn frame_bytes(bytes: &[u8]) -> Option<usize> {
    let mut length = 0usize;
    for (at, byte) in bytes.get(1..)?.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(at + 2 + length);
        }
    }
    None
}

/// Types and flags are judged from the first byte alone, before a sender can make us wait for a body.
fn check_first(first: u8) -> Result<(), DecodeError> {
    let (kind, flags) = (first >> 4, first & 0x0f);
    let expected = match kind {
        3 => return Ok(()), // the flags of PUBLISH are data
        // [MQTT-3.6.1-1], [MQTT-3.8.1-1], [MQTT-3.10.1-1]
        6 | 8 | 10 => 0b0010,
        1 | 4 | 5 | 7 | 12 | 14 | 15 => 0,
        2 | 9 | 11 | 13 => return Err(DecodeError::Protocol("only a server sends this packet")),
        _ => return Err(DecodeError::Malformed("there is no packet type 0")),
    };
    // [MQTT-2.1.3-1] a reserved flag with another value is a malformed packet.
    if flags != expected {
        return Err(DecodeError::Malformed("reserved flags of the fixed header"));
    }
    Ok(())
}

/// Decodes a packet of a connection whose CONNECT named `version`. CONNECT itself names its own.
pub fn decode<'a>(version: Version, first: u8, body: &'a [u8]) -> Result<Packet<'a>, DecodeError> {
    check_first(first)?;
    let mut reader = Reader::new(body);
    let packet = match first >> 4 {
        3 => return publish::decode(version, first, reader).map(Packet::Publish),
        1 => Packet::Connect(connect::decode(&mut reader)?),
        4 => Packet::PubAck(answer(version, &mut reader)?),
        5 => Packet::PubRec(answer(version, &mut reader)?),
        6 => Packet::PubRel(answer(version, &mut reader)?),
        7 => Packet::PubComp(answer(version, &mut reader)?),
        8 => Packet::Subscribe(subscribe::decode(version, &mut reader)?),
        10 => Packet::Unsubscribe(subscribe::decode_unsubscribe(version, &mut reader)?),
        12 => Packet::PingReq,
        14 => disconnect(version, &mut reader)?,
        15 => auth(version, &mut reader)?,
        _ => return Err(DecodeError::Protocol("only a server sends this packet")),
    };
    reader.finish()?;
    Ok(packet)
}

fn answer(version: Version, reader: &mut Reader<'_>) -> Result<Answer, DecodeError> {
    let id = reader.packet_id()?;
    if version == Version::V4 || reader.is_empty() {
        return Ok(Answer { id, reason: 0 });
    }
    let reason = reader.u8()?;
    // 3.4.2.2.1: the property length may be left out when the remaining length is below 4.
    if !reader.is_empty() {
        Properties::take(reader, properties::IN_ANSWER)?;
    }
    Ok(Answer { id, reason })
}

fn disconnect<'a>(version: Version, reader: &mut Reader<'a>) -> Result<Packet<'a>, DecodeError> {
    // 3.14.2.1: an empty DISCONNECT means reason 0; the property length may be left out when there is no more.
    if version == Version::V4 || reader.is_empty() {
        return Ok(Packet::Disconnect { reason: 0, properties: Properties::NONE });
    }
    let reason = reader.u8()?;
    let properties = match reader.is_empty() {
        true => Properties::NONE,
        false => Properties::take(reader, properties::IN_DISCONNECT)?,
    };
    Ok(Packet::Disconnect { reason, properties })
}

fn auth<'a>(version: Version, reader: &mut Reader<'a>) -> Result<Packet<'a>, DecodeError> {
    if version == Version::V4 {
        return Err(DecodeError::Malformed("there is no packet type 15 in MQTT 3.1.1"));
    }
    // 3.15.2.1: reason and property length may be left out together.
    if reader.is_empty() {
        return Ok(Packet::Auth { reason: 0, properties: Properties::NONE });
    }
    let reason = reader.u8()?;
    Ok(Packet::Auth { reason, properties: Properties::take(reader, properties::IN_AUTH)? })
}
