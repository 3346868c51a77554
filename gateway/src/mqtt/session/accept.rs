//! CONNECT judged: what the client asked for, what it gets, and what it is told (pure).

use super::will::Will;
use crate::mqtt::codec::write::ConnackProperties;
use crate::mqtt::codec::{Connect, PropertyId, Reason, Version};

/// Longest client id taken, in bytes: it is a partition key, a table's key and part of log lines.
pub const CLIENT_ID_BYTES_MAX: usize = 256;
/// No CONNACK is longer, in bytes.
const CONNACK_BYTES_MAX: usize = 512;
/// Messages to a 3.1.1 client on their way at once; the version has no way to say.
const WINDOW_V4: u16 = 100;
/// Messages to an MQTT 5 client on their way at once, whatever more it offers: each costs memory here.
const WINDOW_V5_MAX: u16 = 1_024;

/// What the gateway grants any client.
#[derive(Clone, Debug)]
pub struct Limits {
    pub receive_maximum: u16,
    pub packet_bytes_max: usize,
    pub keep_alive_max_s: u16,
    pub subscriptions_max: u32,
    /// Longest that identifiers of QoS 2 are kept for a client that is away.
    pub session_expiry_max_s: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub version: Version,
    pub client_id: String,
    /// The id is ours, not the client's.
    pub assigned: bool,
    pub clean: bool,
    /// The client wants its session to outlive the connection, in seconds.
    pub session_expiry_s: u32,
    /// As granted; 0 is off.
    pub keep_alive_s: u16,
    keep_alive_differs: bool,
    session_expiry_differs: bool,
    pub client_receive_maximum: u16,
    pub client_packet_bytes_max: usize,
    pub will: Option<Will>,
}

/// Judges a CONNECT; `fresh_id` makes a client id for one that has none.
pub fn accept(connect: &Connect<'_>, limits: &Limits, fresh_id: impl FnOnce() -> String) -> Result<Accepted, Reason> {
    // [MQTT-4.12.0-1]
    if connect.properties.text(PropertyId::AuthenticationMethod).is_some() {
        return Err(Reason::BadAuthenticationMethod);
    }
    // [MQTT-3.2.2-13] Retain Available is 0. In 3.1.1 there is no way to say so, and the will is one that is not retained.
    if connect.version == Version::V5 && connect.will.is_some_and(|will| will.retain) {
        return Err(Reason::RetainNotSupported);
    }
    // An envelope's numbers belong to a device that lives.
    let content = connect.will.and_then(|will| will.properties.text(PropertyId::ContentType));
    if content == Some(headwater_wire::CONTENT_TYPE) {
        return Err(Reason::PayloadFormatInvalid);
    }
    let assigned = connect.client_id.is_empty();
    // [MQTT-3.1.3-8] of 3.1.1: no id wants a clean session.
    if connect.client_id.len() > CLIENT_ID_BYTES_MAX || (assigned && connect.version == Version::V4 && !connect.clean) {
        return Err(Reason::ClientIdentifierNotValid);
    }
    let wanted_expiry_s = wanted_expiry(connect);
    let session_expiry_s = wanted_expiry_s.min(limits.session_expiry_max_s);
    let keep_alive_s = keep_alive(connect, limits);
    let number = |id| connect.properties.number(id);
    let window = match connect.version {
        Version::V4 => WINDOW_V4,
        Version::V5 => number(PropertyId::ReceiveMaximum).map_or(u16::MAX, |n| n as u16).min(WINDOW_V5_MAX),
    };
    Ok(Accepted {
        version: connect.version,
        client_id: if assigned { fresh_id() } else { connect.client_id.to_owned() },
        assigned,
        clean: connect.clean,
        session_expiry_s,
        keep_alive_s,
        keep_alive_differs: keep_alive_s != connect.keep_alive_s,
        session_expiry_differs: session_expiry_s != wanted_expiry_s,
        client_receive_maximum: window,
        client_packet_bytes_max: number(PropertyId::MaximumPacketSize).map_or(usize::MAX, |n| n as usize),
        will: connect.will.as_ref().map(Will::of),
    })
}

fn wanted_expiry(connect: &Connect<'_>) -> u32 {
    match connect.version {
        Version::V4 if connect.clean => 0,
        Version::V4 => u32::MAX,
        Version::V5 => connect.properties.number(PropertyId::SessionExpiry).unwrap_or(0),
    }
}

/// MQTT 5 can be told another keep-alive [MQTT-3.2.2-21]; 3.1.1 gets what it asks for.
fn keep_alive(connect: &Connect<'_>, limits: &Limits) -> u16 {
    match (connect.version, connect.keep_alive_s) {
        (Version::V4, asked) => asked,
        (Version::V5, 0) => limits.keep_alive_max_s,
        (Version::V5, asked) => asked.min(limits.keep_alive_max_s),
    }
}

impl Accepted {
    /// One and a half times the keep-alive [MQTT-3.1.2-22].
    pub fn keep_alive_ms(&self) -> Option<u64> {
        (self.keep_alive_s > 0).then(|| u64::from(self.keep_alive_s) * 1_500)
    }

    /// Whether QoS 2 identifiers are to outlive the connection.
    pub fn is_persistent(&self) -> bool {
        self.session_expiry_s > 0
    }

    pub fn connack(&self, limits: &Limits, gateway: &str) -> ConnackProperties {
        ConnackProperties {
            // [MQTT-3.2.2-20]
            gateway: (self.client_packet_bytes_max >= CONNACK_BYTES_MAX).then(|| gateway.to_owned()),
            assigned_client_id: self.assigned.then(|| self.client_id.clone()),
            session_expiry_s: self.session_expiry_differs.then_some(self.session_expiry_s),
            receive_maximum: limits.receive_maximum,
            maximum_packet_size: u32::try_from(limits.packet_bytes_max).unwrap_or(u32::MAX),
            server_keep_alive_s: self.keep_alive_differs.then_some(self.keep_alive_s),
        }
    }
}
