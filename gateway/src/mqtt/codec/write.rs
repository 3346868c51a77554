//! What the gateway sends, appended to a buffer that is reused. Nothing here can fail: what does not fit a field is
//! judged before it comes here.

use super::{PacketId, PropertyId, Qos, Reason, Version};
use crate::record::{Header, HeaderId};
use crate::wire::GATEWAY_PROPERTY;

const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBREL: u8 = 0x62;
const PUBCOMP: u8 = 0x70;

/// What CONNACK of MQTT 5 tells beside the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnackProperties {
    pub assigned_client_id: Option<String>,
    pub session_expiry_s: Option<u32>,
    pub receive_maximum: u16,
    pub maximum_packet_size: u32,
    pub server_keep_alive_s: Option<u16>,
    /// Whom the client has reached, so that a sink knows its own gateway.
    pub gateway: Option<String>,
}

/// An accepted connection.
pub fn connack(out: &mut Vec<u8>, version: Version, session_present: bool, properties: &ConnackProperties) {
    if version == Version::V4 {
        out.extend_from_slice(&[0x20, 2, u8::from(session_present), 0]);
        return;
    }
    let mut list = Vec::with_capacity(64);
    two(&mut list, PropertyId::ReceiveMaximum, properties.receive_maximum);
    four(&mut list, PropertyId::MaximumPacketSize, properties.maximum_packet_size);
    if let Some(seconds) = properties.session_expiry_s {
        four(&mut list, PropertyId::SessionExpiry, seconds);
    }
    if let Some(seconds) = properties.server_keep_alive_s {
        two(&mut list, PropertyId::ServerKeepAlive, seconds);
    }
    if let Some(id) = &properties.assigned_client_id {
        list.push(PropertyId::AssignedClientId as u8);
        binary(&mut list, id.as_bytes());
    }
    if let Some(gateway) = &properties.gateway {
        field(&mut list, PropertyId::UserProperty, GATEWAY_PROPERTY.as_bytes());
        binary(&mut list, gateway.as_bytes());
    }
    // What is not there yet is said, so that no client waits for it. Topic aliases are off by leaving the maximum out.
    list.extend_from_slice(&[PropertyId::RetainAvailable as u8, 0, PropertyId::SharedAvailable as u8, 0]);
    out.push(0x20);
    varint(out, 2 + varint_bytes(list.len()) + list.len());
    out.extend_from_slice(&[u8::from(session_present), Reason::Success as u8]);
    varint(out, list.len());
    out.extend_from_slice(&list);
}

/// A refused connection [MQTT-3.2.2-6]: no session. Writes nothing where 3.1.1 has no code.
pub fn connack_refused(out: &mut Vec<u8>, version: Version, reason: Reason) {
    match version {
        Version::V5 => out.extend_from_slice(&[0x20, 3, 0, reason as u8, 0]),
        Version::V4 => {
            if let Some(code) = reason.connack_v4() {
                out.extend_from_slice(&[0x20, 2, 0, code]);
            }
        }
    }
}

pub fn puback(out: &mut Vec<u8>, id: PacketId, reason: Reason) {
    answer(out, PUBACK, id, reason);
}
pub fn pubrec(out: &mut Vec<u8>, id: PacketId, reason: Reason) {
    answer(out, PUBREC, id, reason);
}
pub fn pubrel(out: &mut Vec<u8>, id: PacketId, reason: Reason) {
    answer(out, PUBREL, id, reason);
}
pub fn pubcomp(out: &mut Vec<u8>, id: PacketId, reason: Reason) {
    answer(out, PUBCOMP, id, reason);
}

/// Success has the same four bytes in both versions; only MQTT 5 is ever given another reason.
fn answer(out: &mut Vec<u8>, first: u8, id: PacketId, reason: Reason) {
    let [high, low] = id.get().to_be_bytes();
    match reason {
        Reason::Success => out.extend_from_slice(&[first, 2, high, low]),
        _ => out.extend_from_slice(&[first, 3, high, low, reason as u8]),
    }
}

/// One code a filter, in the order of the SUBSCRIBE [MQTT-3.9.3-1].
pub fn suback(out: &mut Vec<u8>, version: Version, id: PacketId, codes: &[u8]) {
    codes_packet(out, 0x90, version, id, codes);
}

/// 3.1.1 knows no codes here.
pub fn unsuback(out: &mut Vec<u8>, version: Version, id: PacketId, codes: &[u8]) {
    match version {
        Version::V4 => codes_packet(out, 0xb0, version, id, &[]),
        Version::V5 => codes_packet(out, 0xb0, version, id, codes),
    }
}

fn codes_packet(out: &mut Vec<u8>, first: u8, version: Version, id: PacketId, codes: &[u8]) {
    out.push(first);
    let properties = usize::from(version == Version::V5);
    varint(out, 2 + properties + codes.len());
    out.extend_from_slice(&id.get().to_be_bytes());
    if version == Version::V5 {
        out.push(0);
    }
    out.extend_from_slice(codes);
}

pub fn pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xd0, 0]);
}

/// Only MQTT 5 lets a server say goodbye; 3.1.1 is closed without.
pub fn disconnect(out: &mut Vec<u8>, version: Version, reason: Reason) {
    if version == Version::V5 {
        out.extend_from_slice(&[0xe0, 2, reason as u8, 0]);
    }
}

/// A message on its way to a subscriber.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub topic: &'a [u8],
    pub payload: &'a [u8],
    /// Headers of the record; the ones that MQTT 5 has properties for travel, the rest does not.
    pub headers: &'a [Header],
    pub subscription_ids: &'a [u32],
}

/// Appends a PUBLISH up to its payload, which the caller puts behind it, unless the packet would be larger than
/// `packet_bytes_max` [MQTT-3.1.2-24]; says whether it did.
pub fn publish_head(
    out: &mut Vec<u8>,
    version: Version,
    qos: Qos,
    id: Option<PacketId>,
    message: &Message<'_>,
    packet_bytes_max: usize,
) -> bool {
    let mut properties = Vec::new();
    if version == Version::V5 {
        message_properties(&mut properties, message);
    }
    let list = if version == Version::V5 { varint_bytes(properties.len()) + properties.len() } else { 0 };
    let remaining = 2 + message.topic.len() + if id.is_some() { 2 } else { 0 } + list + message.payload.len();
    if message.topic.len() > usize::from(u16::MAX)
        || remaining > REMAINING_BYTES_MAX
        || 1 + varint_bytes(remaining) + remaining > packet_bytes_max
    {
        return false;
    }
    out.push(0x30 | (qos as u8) << 1);
    varint(out, remaining);
    binary(out, message.topic);
    if let Some(id) = id {
        out.extend_from_slice(&id.get().to_be_bytes());
    }
    if version == Version::V5 {
        varint(out, properties.len());
        out.extend_from_slice(&properties);
    }
    true
}

const REMAINING_BYTES_MAX: usize = 268_435_455;

/// How long a PUBLISH at QoS 0 would be, in bytes.
pub fn publish_bytes(version: Version, message: &Message<'_>) -> usize {
    let mut properties = Vec::new();
    let mut list = 0;
    if version == Version::V5 {
        message_properties(&mut properties, message);
        list = varint_bytes(properties.len()) + properties.len();
    }
    let remaining = 2 + message.topic.len() + list + message.payload.len();
    1 + varint_bytes(remaining) + remaining
}

fn message_properties(list: &mut Vec<u8>, message: &Message<'_>) {
    for header in message.headers {
        let value = &header.value[..];
        // A header from another door may be longer than MQTT can say; it stays with the record.
        if value.len() > usize::from(u16::MAX) {
            continue;
        }
        match header.id {
            HeaderId::PayloadFormat if value.len() == 1 => list.extend([PropertyId::PayloadFormat as u8, value[0]]),
            HeaderId::ContentType => field(list, PropertyId::ContentType, value),
            HeaderId::ResponseTopic => field(list, PropertyId::ResponseTopic, value),
            HeaderId::CorrelationData => field(list, PropertyId::CorrelationData, value),
            HeaderId::UserProperty => {
                if let Some((name, text)) = header.as_user() {
                    field(list, PropertyId::UserProperty, name.as_bytes());
                    binary(list, text.as_bytes());
                }
            }
            HeaderId::Topic | HeaderId::Origin | HeaderId::PayloadFormat | HeaderId::PublishQos | HeaderId::Media => {}
        }
    }
    for id in message.subscription_ids {
        list.push(PropertyId::SubscriptionId as u8);
        varint(list, *id as usize);
    }
}

fn field(list: &mut Vec<u8>, id: PropertyId, value: &[u8]) {
    list.push(id as u8);
    binary(list, value);
}

fn two(list: &mut Vec<u8>, id: PropertyId, value: u16) {
    list.push(id as u8);
    list.extend_from_slice(&value.to_be_bytes());
}

fn four(list: &mut Vec<u8>, id: PropertyId, value: u32) {
    list.push(id as u8);
    list.extend_from_slice(&value.to_be_bytes());
}

/// Length and bytes; callers pass nothing that is longer than the length can say.
fn binary(out: &mut Vec<u8>, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_bytes(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}
