//! One client's session as a pure state machine: `handle(packet, now) -> action`.
//!
//! No sockets, no runtime, no log: it says what must happen and the connection does it. Here live packet identifiers in
//! both directions, QoS 2, receive maximum, keep-alive, subscriptions and the last will. What is not offered yet (retained
//! messages, persistent subscriptions, shared subscriptions) is refused or told in [`accept`], and gets a state of its own
//! beside these.
//! On the way of a record: `connection` -> **session** -> `inlet` -> log; and back: log -> `tail` -> **session** -> client.

pub mod accept;
pub mod inbound;
pub mod kept;
pub mod outbound;
pub mod subscriptions;
pub mod will;

pub use accept::{Accepted, Limits, accept};
pub use kept::Kept;
pub use subscriptions::Subscriptions;
pub use will::{Due, Will};

use super::codec::{
    DecodeError, Packet, PacketId, Properties, PropertyId, Publish, Reason, Subscribe, Unsubscribe, Version,
};
use inbound::{Inbound, Seen};
use outbound::Outbound;

/// What the connection has to do about a packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action<'a> {
    Nothing,
    /// A message to store. Answer it with PUBACK or PUBREC, by its QoS, once it is durable.
    Store(Publish<'a>),
    /// A QoS 2 message that came again: PUBREC once everything before it is durable.
    StoredBefore(PacketId),
    /// PUBREL: the identifier is free; PUBCOMP once that is durable.
    Release(PacketId),
    Subscribe(Subscribe<'a>),
    Unsubscribe(Unsubscribe<'a>),
    Send(Reply),
    /// The client said goodbye.
    Goodbye,
}

/// A packet to send at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Pong,
    PubRel(PacketId, Reason),
    PubComp(PacketId, Reason),
}

/// The client broke a rule: DISCONNECT with the reason in MQTT 5, close in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{says}")]
pub struct Violation {
    pub reason: Reason,
    pub says: &'static str,
}

impl Violation {
    pub fn new(reason: Reason, says: &'static str) -> Self {
        Violation { reason, says }
    }
}

impl From<DecodeError> for Violation {
    fn from(error: DecodeError) -> Self {
        let says = match error {
            DecodeError::Malformed(says) | DecodeError::Protocol(says) => says,
            DecodeError::TooLarge => "the packet is larger than the maximum packet size",
            DecodeError::TopicName => "not a topic name",
            DecodeError::TopicFilter => "not a topic filter",
            DecodeError::TopicAlias => "a topic alias that was not offered",
            DecodeError::Version => "neither MQTT 3.1.1 nor MQTT 5",
        };
        Violation { reason: error.reason(), says }
    }
}

#[derive(Debug)]
pub struct Session {
    version: Version,
    keep_alive_ms: Option<u64>,
    last_packet_ms: u64,
    session_expiry_s: u32,
    will: Option<Will>,
    pub inbound: Inbound,
    pub outbound: Outbound,
    pub subscriptions: Subscriptions,
}

impl Session {
    /// `kept` are the QoS 2 identifiers an earlier connection of this client left behind.
    pub fn new(accepted: &Accepted, limits: &Limits, kept: &[PacketId], now_ms: u64) -> Self {
        Session {
            version: accepted.version,
            keep_alive_ms: accepted.keep_alive_ms(),
            last_packet_ms: now_ms,
            session_expiry_s: accepted.session_expiry_s,
            will: accepted.will.clone(),
            inbound: Inbound::new(accepted.version, limits.receive_maximum, kept),
            outbound: Outbound::new(accepted.client_receive_maximum),
            subscriptions: Subscriptions::new(limits.subscriptions_max),
        }
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// When the client is overdue [MQTT-3.1.2-22]; `None` if it asked for no keep-alive.
    pub fn overdue_at_ms(&self) -> Option<u64> {
        Some(self.last_packet_ms + self.keep_alive_ms?)
    }

    /// Time in which we did not read does not count against the client.
    pub fn excuse(&mut self, now_ms: u64) {
        self.last_packet_ms = now_ms;
    }

    #[inline]
    pub fn handle<'a>(&mut self, packet: Packet<'a>, now_ms: u64) -> Result<Action<'a>, Violation> {
        self.last_packet_ms = now_ms;
        match packet {
            Packet::Publish(publish) => self.publish(publish),
            Packet::PubAck(answer) => {
                self.outbound.acknowledged(answer.id);
                Ok(Action::Nothing)
            }
            Packet::PubRec(answer) => Ok(self.outbound.received(answer).map_or(Action::Nothing, Action::Send)),
            Packet::PubComp(answer) => {
                self.outbound.completed(answer.id);
                Ok(Action::Nothing)
            }
            Packet::PubRel(answer) => Ok(match self.inbound.release(answer.id) {
                true => Action::Release(answer.id),
                // 3.7.2.1; 3.1.1 has no reasons and wants PUBCOMP all the same [MQTT-4.3.3-2].
                false => Action::Send(Reply::PubComp(answer.id, self.not_found())),
            }),
            Packet::Subscribe(subscribe) => Ok(Action::Subscribe(subscribe)),
            Packet::Unsubscribe(unsubscribe) => Ok(Action::Unsubscribe(unsubscribe)),
            Packet::PingReq => Ok(Action::Send(Reply::Pong)),
            Packet::Disconnect { reason, properties } => self.goodbye(reason, properties),
            // [MQTT-3.1.0-2]
            Packet::Connect(_) => Err(Violation::new(Reason::ProtocolError, "a second CONNECT")),
            // [MQTT-4.12.0-6]: no authentication method was agreed on.
            Packet::Auth { .. } => Err(Violation::new(Reason::ProtocolError, "AUTH without an authentication method")),
        }
    }

    #[inline]
    fn publish<'a>(&mut self, publish: Publish<'a>) -> Result<Action<'a>, Violation> {
        if self.version == Version::V5 {
            // [MQTT-3.2.2-14] Retain Available was 0.
            if publish.retain {
                return Err(Violation::new(Reason::RetainNotSupported, "RETAIN, which was announced as unavailable"));
            }
            // [MQTT-3.3.2-9] Topic Alias Maximum was left out, so it is 0. (A topic is empty only beside an alias.)
            if publish.topic.is_empty() || has_alias(&publish) {
                return Err(DecodeError::TopicAlias.into());
            }
        }
        let Some(id) = publish.id else { return Ok(Action::Store(publish)) };
        match self.inbound.seen(id, publish.qos, publish.duplicate)? {
            Seen::New => Ok(Action::Store(publish)),
            Seen::Before => Ok(Action::StoredBefore(id)),
        }
    }

    fn goodbye<'a>(&mut self, reason: u8, properties: Properties<'_>) -> Result<Action<'a>, Violation> {
        if let Some(wanted) = properties.number(PropertyId::SessionExpiry) {
            // 3.14.2.2.2: a session that was to end with the connection cannot be made to last.
            if wanted > 0 && self.session_expiry_s == 0 {
                return Err(Violation::new(
                    Reason::ProtocolError,
                    "a session expiry in DISCONNECT and none in CONNECT",
                ));
            }
            // Never longer than was granted.
            self.session_expiry_s = self.session_expiry_s.min(wanted);
        }
        // [MQTT-3.14.4-3]; 0x04 and all others leave the will to be published.
        if reason == Reason::Success as u8 {
            self.will = None;
        }
        Ok(Action::Goodbye)
    }

    /// The connection is over: the will that is left of it.
    pub fn end(&mut self) -> Option<Due> {
        Some(self.will.take()?.due(self.session_expiry_s))
    }

    fn not_found(&self) -> Reason {
        match self.version {
            Version::V4 => Reason::Success,
            Version::V5 => Reason::PacketIdentifierNotFound,
        }
    }
}

fn has_alias(publish: &Publish<'_>) -> bool {
    !publish.properties.is_empty() && publish.properties.number(super::codec::PropertyId::TopicAlias).is_some()
}

#[cfg(test)]
mod tests;
