//! Whether a message for a device fits the packets that it takes (pure).
//!
//! MQTT has a server leave out what is larger than a client's Maximum Packet Size [MQTT-3.1.2-25]. For a subscriber that is
//! right; an operator who has been told "ok" would wait for ever. So it is worked out before anything is sent.

use crate::mqtt::bus::LiveMessage;
use crate::mqtt::codec::Version;
use crate::mqtt::codec::write::{Message, publish_bytes};

/// What a connection has said of what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    pub version: Version,
    /// Maximum Packet Size; `usize::MAX` if there is none.
    pub packet_bytes_max: usize,
}

/// A message that a device does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the device takes packets of at most {takes} bytes (its Maximum Packet Size) and this is one of {bytes}: shorten the \
     message to {payload_max} bytes, or give the device's firmware more room to receive"
)]
pub struct TooLarge {
    /// Of the whole packet.
    pub bytes: usize,
    pub takes: usize,
    /// What a message on this topic may have.
    pub payload_max: usize,
}

impl Takes {
    pub fn fits(self, down: &LiveMessage) -> Result<(), TooLarge> {
        let message =
            Message { topic: &down.topic, payload: &down.payload, headers: &down.headers, subscription_ids: &[] };
        let (bytes, takes) = (publish_bytes(self.version, &message), self.packet_bytes_max);
        if bytes <= takes {
            return Ok(());
        }
        // The length of the packet may take a byte less then, which the device does not mind.
        let payload_max = takes.saturating_sub(bytes - down.payload.len());
        Err(TooLarge { bytes, takes, payload_max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_is_told_to_shorten_a_message_to_fits() {
        let down = |payload: usize| LiveMessage {
            topic: "$headwater/d/d1/config".into(),
            payload: vec![0; payload].into(),
            headers: Vec::new(),
            stored: false,
            from: 0,
        };
        for version in [Version::V4, Version::V5] {
            for packet_bytes_max in [30, 127, 128, 129, 130, 512, 4_096] {
                let takes = Takes { version, packet_bytes_max };
                let refused = takes.fits(&down(5_000)).unwrap_err();
                assert_eq!(takes.fits(&down(refused.payload_max)), Ok(()), "{packet_bytes_max}");
                assert!(takes.fits(&down(refused.payload_max + 3)).is_err(), "{packet_bytes_max}: it could be longer");
            }
            assert_eq!(Takes { version, packet_bytes_max: usize::MAX }.fits(&down(5_000)), Ok(()));
        }
    }
}
