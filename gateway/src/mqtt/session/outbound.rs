//! Messages to the client: packet identifiers and the window that the client's receive maximum opens (pure).

use super::Reply;
use crate::mqtt::codec::{Answer, PacketId, Qos, Reason};
use std::collections::HashMap;

/// What a message in flight waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "the packets' names in the specification")]
enum Waits {
    PubAck,
    PubRec,
    PubComp,
}

#[derive(Debug)]
pub struct Outbound {
    window: u16,
    last: u16,
    flight: HashMap<PacketId, Waits>,
}

impl Outbound {
    pub fn new(window: u16) -> Self {
        Outbound { window, last: 0, flight: HashMap::new() }
    }

    /// Whether one more QoS 1 or 2 message may be sent [MQTT-3.3.4-9].
    pub fn has_room(&self) -> bool {
        self.flight.len() < usize::from(self.window)
    }

    /// An identifier that no message in flight has [MQTT-2.2.1-4]; `None` when the window is full.
    pub fn open(&mut self, qos: Qos) -> Option<PacketId> {
        if !self.has_room() {
            return None;
        }
        let waits = if qos == Qos::ExactlyOnce { Waits::PubRec } else { Waits::PubAck };
        // The window is at most 65,535, and there is room in it: one of the 65,535 identifiers is free.
        loop {
            self.last = self.last.wrapping_add(1);
            let Some(id) = PacketId::new(self.last) else { continue };
            if let std::collections::hash_map::Entry::Vacant(free) = self.flight.entry(id) {
                free.insert(waits);
                return Some(id);
            }
        }
    }

    /// The message was not sent after all.
    pub fn give_back(&mut self, id: PacketId) {
        self.flight.remove(&id);
    }

    pub(super) fn acknowledged(&mut self, id: PacketId) {
        self.end(id, Waits::PubAck);
    }

    pub(super) fn received(&mut self, answer: Answer) -> Option<Reply> {
        let Answer { id, reason } = answer;
        match self.flight.get_mut(&id) {
            // 4.3.3: a PUBREC with an error ends the exchange.
            Some(Waits::PubRec) if reason >= 0x80 => {
                self.flight.remove(&id);
                None
            }
            Some(waits @ (Waits::PubRec | Waits::PubComp)) => {
                *waits = Waits::PubComp;
                Some(Reply::PubRel(id, Reason::Success))
            }
            // 3.5.4 with an identifier we do not know: the answer ends whatever the client has open under it.
            Some(Waits::PubAck) | None => Some(Reply::PubRel(id, Reason::PacketIdentifierNotFound)),
        }
    }

    pub(super) fn completed(&mut self, id: PacketId) {
        self.end(id, Waits::PubComp);
    }

    /// An answer nobody waits for is ignored: it cannot hurt, and clients send some after a reconnect.
    fn end(&mut self, id: PacketId, waits: Waits) {
        if self.flight.get(&id) == Some(&waits) {
            self.flight.remove(&id);
        }
    }
}
