//! What a gateway tells a device that has subscribed to its topics.

use crate::Malformed;

/// Length of a [`Hello`] on the wire, in bytes. A later version may be longer.
pub const HELLO_BYTES: usize = 39;

/// The first message on `$headwater/d/{client id}/hello` after each subscription.
///
/// ```text
/// version u8 = 1 | time u64 | known u8 | epoch u32 | sequence u64 | waiting u32 | blob id u32 | blob parts u64 | 0 u8
/// ```
/// All little-endian; `known` has bit 0 set if epoch and sequence say something, and bit 1 if the blob does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The gateway's clock, milliseconds since 1970; 0 if the gateway does not trust its clock yet.
    pub time_ms: u64,
    /// The last number of this device that the gateway has on its disk, if it knows the device: epoch and sequence.
    /// Everything of that epoch up to the sequence was taken. `None`: the gateway has never heard of the device, or not
    /// for so long that it has forgotten its numbers.
    pub kept: Option<(u32, u64)>,
    /// The last blob of this device that the gateway has a part of: its id, and how many parts, from the first on.
    pub blob: Option<(u32, u64)>,
    /// Messages that follow: configuration and commands that wait for the device.
    pub waiting: u32,
}

impl Hello {
    /// As the gateway sends it.
    pub fn to_bytes(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        let (epoch, sequence) = self.kept.unwrap_or_default();
        let (blob, parts) = self.blob.unwrap_or_default();
        bytes[0] = 1;
        bytes[1..9].copy_from_slice(&self.time_ms.to_le_bytes());
        bytes[9] = u8::from(self.kept.is_some()) | u8::from(self.blob.is_some()) << 1;
        bytes[10..14].copy_from_slice(&epoch.to_le_bytes());
        bytes[14..22].copy_from_slice(&sequence.to_le_bytes());
        bytes[22..26].copy_from_slice(&self.waiting.to_le_bytes());
        bytes[26..30].copy_from_slice(&blob.to_le_bytes());
        bytes[30..38].copy_from_slice(&parts.to_le_bytes());
        bytes
    }

    /// As a device reads it; bytes behind what this version knows are left alone.
    ///
    /// # Errors
    /// [`Malformed::Short`], or [`Malformed::Unknown`] for another version.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let bytes: &[u8; HELLO_BYTES] = bytes.first_chunk().ok_or(Malformed::Short)?;
        if bytes[0] != 1 || bytes[9] > 3 {
            return Err(Malformed::Unknown);
        }
        let u64_at = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let u32_at = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        let kept = (bytes[9] & 1 == 1).then(|| (u32_at(10), u64_at(14)));
        let blob = (bytes[9] & 2 == 2).then(|| (u32_at(26), u64_at(30)));
        Ok(Hello { time_ms: u64_at(1), kept, blob, waiting: u32_at(22) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back() {
        for kept in [None, Some((u32::MAX, 17))] {
            for blob in [None, Some((7, u64::MAX))] {
                let hello = Hello { time_ms: 1_700_000_000_123, kept, blob, waiting: 2 };
                assert_eq!(Hello::read(&hello.to_bytes()), Ok(hello));
            }
        }
        assert_eq!(Hello::read(&[1; 10]), Err(Malformed::Short));
        assert_eq!(Hello::read(&[2; HELLO_BYTES]), Err(Malformed::Unknown));
    }
}
