//! MQTT 5 packets as bytes (pure): the few that a client writes, as lists of their parts, and a reader for what comes.
//!
//! The sections are those of <https://docs.oasis-open.org/mqtt/mqtt/v5.0/mqtt-v5.0.html>.

/// The first byte of each packet: its type and the flags that go with it (2.1.2, 2.1.3).
pub const CONNECT: u8 = 0x10;
pub const CONNACK: u8 = 0x20;
pub const PUBLISH: u8 = 0x30;
pub const PUBACK: u8 = 0x40;
pub const SUBSCRIBE: u8 = 0x82;
pub const SUBACK: u8 = 0x90;
pub const PINGREQ: u8 = 0xc0;
pub const PINGRESP: u8 = 0xd0;
pub const DISCONNECT: u8 = 0xe0;

/// Identifiers of properties (2.2.2.2).
pub const CONTENT_TYPE: u8 = 0x03;
const RESPONSE_TOPIC: u8 = 0x08;
pub const CORRELATION_DATA: u8 = 0x09;
const SERVER_KEEP_ALIVE: u8 = 0x13;
const RECEIVE_MAXIMUM: u8 = 0x21;
pub const MAXIMUM_PACKET_SIZE: u8 = 0x27;

/// The longest a packet can be behind its length (2.1.4).
const REMAINING_BYTES_MAX: usize = 268_435_455;

/// A packet that breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Writes a packet made of these parts; how long it is, `None` if it does not fit.
pub fn write(to: &mut [u8], first: u8, parts: &[&[u8]]) -> Option<usize> {
    let remaining: usize = parts.iter().map(|part| part.len()).sum();
    if remaining > REMAINING_BYTES_MAX {
        return None;
    }
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        let end = bytes.len().checked_add(at)?;
        to.get_mut(at..end)?.copy_from_slice(bytes);
        at = end;
        Some(())
    };
    put(&[first])?;
    let mut left = remaining;
    loop {
        let more = if left > 127 { 128 } else { 0 };
        put(&[(left & 127) as u8 | more])?;
        left >>= 7;
        if more == 0 {
            break;
        }
    }
    for part in parts {
        put(part)?;
    }
    Some(at)
}

/// The length that stands in front of a string or of binary data (1.5.4, 1.5.6); these are never longer than 65,535 bytes.
pub fn length(bytes: &[u8]) -> [u8; 2] {
    (bytes.len().min(65_535) as u16).to_be_bytes()
}

/// The packet at the start of the bytes: its first byte, what stands behind its length, and how long it is in all. `None`
/// if there is more to come.
pub fn read(bytes: &[u8]) -> Result<Option<(u8, Reader<'_>, usize)>, Malformed> {
    let Some((first, rest)) = bytes.split_first() else { return Ok(None) };
    let mut reader = Reader(rest);
    let Some(remaining) = reader.variable() else {
        // Four bytes are the most there can be.
        return if rest.len() < 4 { Ok(None) } else { Err(Malformed) };
    };
    let head = bytes.len() - reader.0.len();
    Ok(reader.take(remaining).map(|body| (*first, Reader(body), head + remaining)))
}

/// Reads from the front.
pub struct Reader<'b>(pub &'b [u8]);

impl<'b> Reader<'b> {
    pub fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub fn two_bytes(&mut self) -> Option<u16> {
        let (two, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*two))
    }

    /// A string, or binary data.
    pub fn prefixed(&mut self) -> Option<&'b [u8]> {
        let length = self.two_bytes()?;
        self.take(usize::from(length))
    }

    /// A variable byte integer (1.5.5).
    fn variable(&mut self) -> Option<usize> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value |= usize::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }

    /// The properties of a packet, of which a device knows a few and leaves the others alone.
    pub fn properties(&mut self) -> Option<Properties<'b>> {
        let length = self.variable()?;
        let mut reader = Reader(self.take(length)?);
        let mut properties = Properties::default();
        while let Some(id) = reader.byte() {
            match id {
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2a => drop(reader.byte()?),
                SERVER_KEEP_ALIVE => properties.keep_alive = Some(reader.two_bytes()?),
                RECEIVE_MAXIMUM => properties.receive_max = Some(reader.two_bytes()?),
                0x22 | 0x23 => drop(reader.two_bytes()?),
                MAXIMUM_PACKET_SIZE => {
                    let bytes = reader.take(4)?.first_chunk()?;
                    properties.packet_bytes_max = Some(u32::from_be_bytes(*bytes));
                }
                0x02 | 0x11 | 0x18 => drop(reader.take(4)?),
                0x0b => drop(reader.variable()?),
                RESPONSE_TOPIC => properties.response_topic = Some(reader.prefixed()?),
                CORRELATION_DATA => properties.correlation = reader.prefixed()?,
                CONTENT_TYPE | 0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => drop(reader.prefixed()?),
                0x26 => drop((reader.prefixed()?, reader.prefixed()?)),
                _ => return None,
            }
        }
        Some(properties)
    }
}

/// What a device wants to know of a packet's properties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'b> {
    pub keep_alive: Option<u16>,
    pub receive_max: Option<u16>,
    pub packet_bytes_max: Option<u32>,
    pub response_topic: Option<&'b [u8]>,
    pub correlation: &'b [u8],
}
