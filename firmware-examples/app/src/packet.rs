//! The three MQTT 3.1.1 packets that the example sends, written into a buffer of the caller.
//!
//! Pure: bytes only. Section numbers are those of the OASIS standard MQTT 3.1.1.

/// Longest packet: CONNECT with an id, a user and a password of 64 bytes each, or PUBLISH with a topic of 96 and a
/// payload of 128 bytes. Both stay under this, and under two bytes of remaining length.
pub const BYTES_MAX: usize = 256;

pub const CONNACK: u8 = 0x20;
pub const PUBACK: u8 = 0x40;
pub const DISCONNECT: [u8; 2] = [0xe0, 0];

/// 3.1: a clean session without keep-alive, as the connection lives for one record.
pub fn connect<'a>(buffer: &'a mut [u8; BYTES_MAX], id: &str, user: &str, password: &str) -> &'a [u8] {
    const CLEAN_SESSION: u8 = 0x02;
    const PASSWORD: u8 = 0x40;
    const USER: u8 = 0x80;
    let mut flags = CLEAN_SESSION;
    if !user.is_empty() {
        flags |= USER;
    }
    if !password.is_empty() {
        flags |= PASSWORD;
    }
    let mut packet = Packet::new(buffer);
    packet.string("MQTT");
    packet.bytes(&[4, flags, 0, 0]);
    packet.string(id);
    if !user.is_empty() {
        packet.string(user);
    }
    if !password.is_empty() {
        packet.string(password);
    }
    packet.finish(0x10)
}

/// 3.3: QoS 1. The packet identifier may be the same each time: one message a connection.
pub fn publish<'a>(buffer: &'a mut [u8; BYTES_MAX], topic: &str, payload: &[u8]) -> &'a [u8] {
    let mut packet = Packet::new(buffer);
    packet.string(topic);
    packet.bytes(&[0, 1]);
    packet.bytes(payload);
    packet.finish(0x32)
}

/// The body is written first, behind room for a fixed header of three bytes: type and a two-byte remaining length.
struct Packet<'a> {
    buffer: &'a mut [u8; BYTES_MAX],
    end: usize,
}

impl<'a> Packet<'a> {
    const HEADER: usize = 3;

    fn new(buffer: &'a mut [u8; BYTES_MAX]) -> Self {
        Self { buffer, end: Self::HEADER }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.buffer[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    fn string(&mut self, text: &str) {
        self.bytes(&(text.len() as u16).to_be_bytes());
        self.bytes(text.as_bytes());
    }

    fn finish(self, kind: u8) -> &'a [u8] {
        let length = self.end - Self::HEADER;
        // 2.2.3: seven bits a byte, low ones first. A length of one byte starts the packet one byte later.
        if length < 128 {
            self.buffer[1] = kind;
            self.buffer[2] = length as u8;
            &self.buffer[1..self.end]
        } else {
            self.buffer[0] = kind;
            self.buffer[1] = (length % 128) as u8 | 0x80;
            self.buffer[2] = (length / 128) as u8;
            &self.buffer[..self.end]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_packet_has_a_length_of_one_byte() {
        let mut buffer = [0; BYTES_MAX];
        assert_eq!(publish(&mut buffer, "t", b"x"), [0x32, 6, 0, 1, b't', 0, 1, b'x']);
    }

    #[test]
    fn a_long_packet_has_a_length_of_two_bytes() {
        let mut buffer = [0; BYTES_MAX];
        let packet = publish(&mut buffer, "t", &[7; 200]);
        assert_eq!(packet[..3], [0x32, (205 % 128) | 0x80, 1]);
        assert_eq!(packet.len(), 3 + 205);
    }

    #[test]
    fn a_user_and_a_password_follow_the_client_id() {
        let mut buffer = [0; BYTES_MAX];
        let expected = b"\x10\x13\0\x04MQTT\x04\xc2\0\0\0\x01d\0\x01u\0\x01p";
        assert_eq!(connect(&mut buffer, "d", "u", "p"), expected);
    }
}
