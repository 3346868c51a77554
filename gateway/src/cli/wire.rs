//! MQTT as a device writes it: the few packets that `bench` sends and reads. Not a codec of the gateway, and on
//! purpose not its code: what the gateway reads here was not written by itself.

use bytes::{Buf, BufMut, BytesMut};

pub const CONNACK: u8 = 2;
pub const PUBACK: u8 = 4;

/// Largest packet we take from a gateway, in bytes: it only ever sends us short ones.
const PACKET_BYTES_MAX: usize = 64 << 10;

/// CONNECT of MQTT 3.1.1 with a clean session.
pub fn connect_v4(client_id: &str, keep_alive_s: u16) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, "MQTT");
    body.extend_from_slice(&[4, 0b10]);
    body.put_u16(keep_alive_s);
    text(&mut body, client_id);
    packet(0x10, &body)
}

/// PUBLISH of MQTT 3.1.1 at QoS 1. The packet id stands right behind the topic.
pub fn publish_v4(topic: &str, packet_id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic);
    body.put_u16(packet_id);
    body.extend_from_slice(payload);
    packet(0x32, &body)
}

/// A packet as it came: its type (1 to 15) and what follows the length.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet {
    pub kind: u8,
    pub body: BytesMut,
}

impl Packet {
    /// The packet id of a PUBACK.
    pub fn packet_id(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.body.get(..2)?.try_into().ok()?))
    }

    /// Reason code of a PUBACK or CONNACK, 0 if it stands for success.
    pub fn reason(&self) -> u8 {
        match self.kind {
            CONNACK => self.body.get(1).copied().unwrap_or(0xff),
            _ => self.body.get(2).copied().unwrap_or(0),
        }
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("what the gateway sent is not MQTT")]
pub struct NotMqtt;

/// Takes one packet off the front, once it is there as a whole.
pub fn take(from: &mut BytesMut) -> Result<Option<Packet>, NotMqtt> {
    let mut size = 0usize;
    for at in 1..5 {
        let Some(byte) = from.get(at) else { return Ok(None) };
        size |= usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            if size > PACKET_BYTES_MAX {
                return Err(NotMqtt);
            }
            if from.len() < at + 1 + size {
                return Ok(None);
            }
            let kind = from[0] >> 4;
            from.advance(at + 1);
            return Ok(Some(Packet { kind, body: from.split_to(size) }));
        }
    }
    Err(NotMqtt)
}

fn packet(head: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + 5);
    bytes.push(head);
    length(&mut bytes, body.len());
    bytes.extend_from_slice(body);
    bytes
}

fn text(into: &mut Vec<u8>, text: &str) {
    // Topics and names of ours are short.
    into.put_u16(text.len() as u16);
    into.extend_from_slice(text.as_bytes());
}

fn length(into: &mut Vec<u8>, mut value: usize) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return into.push(low);
        }
        into.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_publish_is_what_the_standard_says() {
        assert_eq!(publish_v4("a/b", 7, b"x"), [0x32, 8, 0, 3, b'a', b'/', b'b', 0, 7, b'x']);
    }

    proptest! {
        #[test]
        fn packets_are_taken_whole_and_noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = BytesMut::from(&noise[..]);
            while let Ok(Some(_)) = take(&mut bytes) {}
            let mut bytes = BytesMut::from(&publish_v4("t", 9, &noise)[..]);
            let packet = take(&mut bytes).unwrap().unwrap();
            prop_assert_eq!(packet.kind, 3);
            prop_assert!(packet.body.ends_with(&noise) && bytes.is_empty());
        }
    }
}
