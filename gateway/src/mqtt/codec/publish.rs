//! PUBLISH (3.3): the packet that is worth being quick for.

use super::properties::IN_PUBLISH;
use super::read::Reader;
use super::{DecodeError, PacketId, Properties, PropertyId, Qos, Version};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Publish<'a> {
    pub duplicate: bool,
    pub qos: Qos,
    pub retain: bool,
    /// Empty only in MQTT 5 together with a topic alias.
    pub topic: &'a str,
    /// `None` at QoS 0 [MQTT-2.2.1-2].
    pub id: Option<PacketId>,
    pub properties: Properties<'a>,
    pub payload: &'a [u8],
}

pub(super) fn decode<'a>(version: Version, first: u8, mut reader: Reader<'a>) -> Result<Publish<'a>, DecodeError> {
    // [MQTT-3.3.1-4] both QoS bits must not be set.
    let qos = Qos::from_bits((first >> 1) & 3).ok_or(DecodeError::Malformed("a QoS of 3"))?;
    let duplicate = first & 8 != 0;
    // [MQTT-3.3.1-2]
    if duplicate && qos == Qos::AtMostOnce {
        return Err(DecodeError::Malformed("DUP at QoS 0"));
    }
    let topic = reader.text()?;
    let id = match qos {
        Qos::AtMostOnce => None,
        _ => Some(reader.packet_id()?),
    };
    let properties = match version {
        Version::V4 => Properties::NONE,
        Version::V5 => Properties::take(&mut reader, IN_PUBLISH)?,
    };
    if topic.is_empty() {
        check_empty_topic(version, properties)?;
    } else if !is_topic_name(topic) {
        return Err(DecodeError::TopicName);
    }
    Ok(Publish { duplicate, qos, retain: first & 1 != 0, topic, id, properties, payload: reader.rest() })
}

/// 3.3.2.1: a topic name of no length is a protocol error unless a topic alias stands for it; [MQTT-4.7.3-1] in 3.1.1.
fn check_empty_topic(version: Version, properties: Properties<'_>) -> Result<(), DecodeError> {
    match version == Version::V5 && properties.number(PropertyId::TopicAlias).is_some() {
        true => Ok(()),
        false => Err(DecodeError::Protocol("an empty topic name")),
    }
}

/// [MQTT-3.3.2-2] a topic name holds no wildcards, [MQTT-4.7.3-1] and at least one character.
pub(in crate::mqtt) fn is_topic_name(topic: &str) -> bool {
    !topic.is_empty() && !topic.bytes().any(|byte| matches!(byte, b'+' | b'#'))
}
