//! CONNECT (3.1): names the version, the client and what it wants.

use super::properties::{IN_CONNECT, IN_WILL};
use super::publish::is_topic_name;
use super::read::Reader;
use super::{DecodeError, Properties, Qos, Version};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Connect<'a> {
    pub version: Version,
    /// Clean Session in 3.1.1, Clean Start in 5.
    pub clean: bool,
    /// Seconds; 0 turns it off.
    pub keep_alive_s: u16,
    pub properties: Properties<'a>,
    pub client_id: &'a str,
    pub will: Option<Will<'a>>,
    pub user_name: Option<&'a str>,
    pub password: Option<&'a [u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Will<'a> {
    pub qos: Qos,
    pub retain: bool,
    pub properties: Properties<'a>,
    pub topic: &'a str,
    pub payload: &'a [u8],
}

pub(super) fn decode<'a>(reader: &mut Reader<'a>) -> Result<Connect<'a>, DecodeError> {
    let version = version(reader)?;
    let flags = reader.u8()?;
    // [MQTT-3.1.2-3]
    if flags & 1 != 0 {
        return Err(DecodeError::Malformed("the reserved flag of CONNECT"));
    }
    let keep_alive_s = reader.u16()?;
    let properties = match version {
        Version::V4 => Properties::NONE,
        Version::V5 => Properties::take(reader, IN_CONNECT)?,
    };
    let client_id = reader.text()?;
    let will = will(version, flags, reader)?;
    let (has_user_name, has_password) = (flags & 0x80 != 0, flags & 0x40 != 0);
    // [MQTT-3.1.2-22] of 3.1.1; MQTT 5 allows a password alone.
    if version == Version::V4 && has_password && !has_user_name {
        return Err(DecodeError::Malformed("a password without a user name"));
    }
    let user_name = if has_user_name { Some(reader.text()?) } else { None };
    let password = if has_password { Some(reader.binary()?) } else { None };
    Ok(Connect { version, clean: flags & 2 != 0, keep_alive_s, properties, client_id, will, user_name, password })
}

fn version(reader: &mut Reader<'_>) -> Result<Version, DecodeError> {
    let name = reader.binary()?;
    let level = reader.u8()?;
    match (name, level) {
        (b"MQTT", 4) => Ok(Version::V4),
        (b"MQTT", 5) => Ok(Version::V5),
        (b"MQTT" | b"MQIsdp", _) => Err(DecodeError::Version),
        // [MQTT-3.1.2-1]: another protocol altogether; it need not be answered.
        _ => Err(DecodeError::Malformed("the protocol name is not MQTT")),
    }
}

fn will<'a>(version: Version, flags: u8, reader: &mut Reader<'a>) -> Result<Option<Will<'a>>, DecodeError> {
    let qos = Qos::from_bits((flags >> 3) & 3).ok_or(DecodeError::Malformed("a will with a QoS of 3"))?;
    let retain = flags & 0x20 != 0;
    if flags & 4 == 0 {
        // [MQTT-3.1.2-11], [MQTT-3.1.2-13]
        return match qos == Qos::AtMostOnce && !retain {
            true => Ok(None),
            false => Err(DecodeError::Malformed("will flags without a will")),
        };
    }
    let properties = match version {
        Version::V4 => Properties::NONE,
        Version::V5 => Properties::take(reader, IN_WILL)?,
    };
    let topic = reader.text()?;
    if !is_topic_name(topic) {
        return Err(DecodeError::TopicName);
    }
    Ok(Some(Will { qos, retain, properties, topic, payload: reader.binary()? }))
}
