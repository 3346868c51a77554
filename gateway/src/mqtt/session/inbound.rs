//! Messages from the client: how many are unanswered, and which QoS 2 identifiers are taken (pure).

use super::Violation;
use crate::mqtt::codec::{PacketId, Qos, Reason, Version};
use std::collections::BTreeMap;

/// Since when a QoS 2 identifier is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// Its PUBLISH came on this connection.
    Here,
    /// It is left from an earlier one.
    Before,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    New,
    /// QoS 2, and it is stored already or on its way.
    Before,
}

#[derive(Debug)]
pub struct Inbound {
    version: Version,
    receive_maximum: u16,
    /// PUBLISH packets whose PUBACK or PUBREC is not written yet.
    unanswered: u32,
    /// QoS 2 identifiers between PUBLISH and PUBREL.
    taken: BTreeMap<PacketId, Taken>,
    /// How many of them are `Here`.
    taken_here: u32,
}

impl Inbound {
    pub fn new(version: Version, receive_maximum: u16, kept: &[PacketId]) -> Self {
        let taken = kept.iter().map(|id| (*id, Taken::Before)).collect();
        Inbound { version, receive_maximum, unanswered: 0, taken, taken_here: 0 }
    }

    /// Whether one more packet may be taken now. A 3.1.1 client cannot know our bound, so it is made to wait at it; one of
    /// MQTT 5 may go one beyond, which [`Inbound::seen`] then judges.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.unanswered < u32::from(self.receive_maximum) + u32::from(self.version == Version::V5)
    }

    #[inline]
    pub(super) fn seen(&mut self, id: PacketId, qos: Qos, duplicate: bool) -> Result<Seen, Violation> {
        if qos == Qos::ExactlyOnce {
            return self.seen_qos2(id, duplicate);
        }
        self.check_quota()?;
        self.unanswered += 1;
        Ok(Seen::New)
    }

    /// A QoS 1 message that is not taken yet, and will be looked at again.
    pub fn unsee(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
    }

    fn seen_qos2(&mut self, id: PacketId, duplicate: bool) -> Result<Seen, Violation> {
        let before = match self.taken.get(&id) {
            // [MQTT-4.3.3-10]: until PUBREL it is the same message.
            Some(Taken::Here) => {
                self.unanswered += 1;
                return Ok(Seen::Before);
            }
            // On a new connection a message sent again has DUP set [MQTT-3.3.1-1]. Without it the client has forgotten
            // the old session and this is another message: taking it for the old one would lose it.
            Some(Taken::Before) if duplicate => Seen::Before,
            Some(Taken::Before) | None => Seen::New,
        };
        self.check_quota()?;
        self.unanswered += 1;
        self.taken.insert(id, Taken::Here);
        self.taken_here += 1;
        Ok(before)
    }

    /// [MQTT-3.3.4-7] in MQTT 5. In 3.1.1 it bounds the identifiers a client may leave without PUBREL.
    fn check_quota(&self) -> Result<(), Violation> {
        let maximum = u32::from(self.receive_maximum);
        let used = match self.version {
            // A QoS 2 message counts once, as unanswered or as taken; the larger of both is never too much.
            Version::V5 => self.unanswered.max(self.taken_here),
            Version::V4 => self.taken_here,
        };
        if used >= maximum {
            return Err(Violation::new(Reason::ReceiveMaximumExceeded, "more messages at once than receive maximum"));
        }
        Ok(())
    }

    /// `count` PUBACK or PUBREC were written.
    pub fn answered(&mut self, count: u32) {
        self.unanswered = self.unanswered.saturating_sub(count);
    }

    /// PUBREL, or a PUBREC that refused: the identifier is free. False if it was not taken.
    pub fn release(&mut self, id: PacketId) -> bool {
        match self.taken.remove(&id) {
            None => false,
            Some(Taken::Here) => {
                self.taken_here -= 1;
                true
            }
            Some(Taken::Before) => true,
        }
    }

    /// QoS 2 identifiers that must outlive this connection.
    pub fn taken(&self) -> impl ExactSizeIterator<Item = PacketId> + '_ {
        self.taken.keys().copied()
    }
}
