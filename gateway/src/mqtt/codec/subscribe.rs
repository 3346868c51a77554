//! SUBSCRIBE and UNSUBSCRIBE (3.8, 3.10): lists that are checked whole and walked later.

use super::properties::{IN_SUBSCRIBE, IN_UNSUBSCRIBE};
use super::read::Reader;
use super::{DecodeError, PacketId, Properties, Qos, Version};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Subscribe<'a> {
    pub id: PacketId,
    pub properties: Properties<'a>,
    pub filters: Filters<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unsubscribe<'a> {
    pub id: PacketId,
    pub filters: Filters<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribeFilter<'a> {
    pub filter: &'a str,
    /// Always `AtMostOnce` in UNSUBSCRIBE.
    pub qos: Qos,
    pub no_local: bool,
    pub retain_as_published: bool,
    /// 0: send retained messages, 1: only if the subscription is new, 2: do not.
    pub retain_handling: u8,
}

/// Topic filters of one packet, checked; at least one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filters<'a> {
    raw: &'a [u8],
    version: Version,
    options: bool,
}

impl<'a> Filters<'a> {
    pub fn iter(self) -> impl Iterator<Item = SubscribeFilter<'a>> {
        let mut reader = Reader::new(self.raw);
        // The list was checked when it was decoded, so the error that ends the walk cannot happen.
        std::iter::from_fn(
            move || if reader.is_empty() { None } else { one(&mut reader, self.version, self.options).ok() },
        )
    }

    fn take(reader: &mut Reader<'a>, version: Version, options: bool) -> Result<Self, DecodeError> {
        let filters = Filters { raw: reader.rest(), version, options };
        // [MQTT-3.8.3-2], [MQTT-3.10.3-2] at least one filter.
        if reader.is_empty() {
            return Err(DecodeError::Protocol("no topic filter"));
        }
        while !reader.is_empty() {
            one(reader, version, options)?;
        }
        Ok(filters)
    }
}

pub(super) fn decode<'a>(version: Version, reader: &mut Reader<'a>) -> Result<Subscribe<'a>, DecodeError> {
    let id = reader.packet_id()?;
    let properties = match version {
        Version::V4 => Properties::NONE,
        Version::V5 => Properties::take(reader, IN_SUBSCRIBE)?,
    };
    Ok(Subscribe { id, properties, filters: Filters::take(reader, version, true)? })
}

pub(super) fn decode_unsubscribe<'a>(
    version: Version,
    reader: &mut Reader<'a>,
) -> Result<Unsubscribe<'a>, DecodeError> {
    let id = reader.packet_id()?;
    if version == Version::V5 {
        Properties::take(reader, IN_UNSUBSCRIBE)?;
    }
    Ok(Unsubscribe { id, filters: Filters::take(reader, version, false)? })
}

fn one<'a>(reader: &mut Reader<'a>, version: Version, options: bool) -> Result<SubscribeFilter<'a>, DecodeError> {
    let filter = reader.text()?;
    if !is_topic_filter(filter) {
        return Err(DecodeError::TopicFilter);
    }
    let bits = if options { reader.u8()? } else { 0 };
    let qos = Qos::from_bits(bits & 3).ok_or(DecodeError::Malformed("a QoS of 3"))?;
    let (no_local, retain_as_published, retain_handling) = (bits & 4 != 0, bits & 8 != 0, (bits >> 4) & 3);
    match version {
        // [MQTT-3.8.3-4] of 3.1.1: the upper six bits are reserved.
        Version::V4 if bits & !3 != 0 => return Err(DecodeError::Malformed("reserved bits of a subscription")),
        Version::V5 if bits & 0xc0 != 0 => return Err(DecodeError::Malformed("reserved bits of a subscription")),
        Version::V5 if retain_handling == 3 => return Err(DecodeError::Protocol("a retain handling of 3")),
        // [MQTT-3.8.3-4] of 5
        Version::V5 if no_local && filter.starts_with("$share/") => {
            return Err(DecodeError::Protocol("No Local on a shared subscription"));
        }
        _ => {}
    }
    Ok(SubscribeFilter { filter, qos, no_local, retain_as_published, retain_handling })
}

/// [MQTT-4.7.1-1] `#` stands last and alone in its level, [MQTT-4.7.1-2] `+` alone in its level, [MQTT-4.7.3-1] at
/// least one character.
pub fn is_topic_filter(filter: &str) -> bool {
    if filter.is_empty() {
        return false;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let wild = level.bytes().any(|byte| matches!(byte, b'+' | b'#'));
        if wild && (level.len() != 1 || (level == "#" && levels.peek().is_some())) {
            return false;
        }
    }
    true
}
