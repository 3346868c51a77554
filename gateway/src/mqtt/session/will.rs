//! A client's last will: what is published for it when it goes without saying goodbye (pure).
//!
//! The session has it from CONNECT until DISCONNECT with reason 0 takes it back [MQTT-3.14.4-3]. What else ends the
//! connection leaves it, and `wills` publishes it, as if the client had done so itself.

use crate::mqtt::codec::{Properties, PropertyId, Publish, Qos, Will as Asked};

/// Of a topic and what else a will has, beside its payload, in bytes.
const WILL_BYTES: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    pub qos: Qos,
    pub topic: Box<str>,
    payload: Box<[u8]>,
    /// As they came: checked.
    properties: Box<[u8]>,
    /// What the client asked for, in seconds.
    delay_s: u32,
}

/// A will that is to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    pub will: Will,
    /// After so many seconds, unless the client takes its session up again before. 0: at once.
    pub delay_s: u32,
}

impl Will {
    pub fn of(asked: &Asked<'_>) -> Self {
        Will {
            qos: asked.qos,
            topic: asked.topic.into(),
            payload: asked.payload.into(),
            properties: asked.properties.raw().into(),
            delay_s: asked.properties.number(PropertyId::WillDelay).unwrap_or(0),
        }
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> usize {
        WILL_BYTES + self.topic.len() + self.payload.len() + self.properties.len()
    }

    /// As the message that the client would have sent. What is the will's alone (delay) and what is not kept of any message
    /// (expiry) is passed over by whoever stores it.
    pub fn publish(&self) -> Publish<'_> {
        Publish {
            duplicate: false,
            qos: self.qos,
            retain: false,
            topic: &self.topic,
            // Nobody waits for an answer.
            id: None,
            properties: Properties::again(&self.properties),
            payload: &self.payload,
        }
    }

    /// The connection is over, and the session lasts for so long behind it [MQTT-3.1.3-9].
    pub fn due(self, session_expiry_s: u32) -> Due {
        let delay_s = self.delay_s.min(session_expiry_s);
        Due { will: self, delay_s }
    }
}
