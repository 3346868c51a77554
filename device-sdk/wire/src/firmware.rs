//! How a device gets its next firmware: the gateway offers one, the device asks for it part by part and puts it together in
//! its flash. Each message goes on `$headwater/d/{client id}/` and its topic here.
//!
//! ```text
//! firmware         offer    1 u8 | id u32 | length u32 | Ed25519 signature [u8; 64] | version text
//! firmware/get     request  id u32 | offset u32 | length u16
//! firmware/part    part     id u32 | offset u32 | CRC-32 of id, offset and bytes u32 | bytes
//! firmware/status  text of the device
//! ```
//! All little-endian. The id names the offer and is not the firmware's: the same firmware offered once more has another, so
//! parts of two offers cannot be mixed up and an operator can offer again what a device did not take. An empty offer takes the
//! last one back. The signature is over the firmware's SHA-512 digest, as embassy-boot has it.

use crate::Malformed;
use crate::chunk::crc32;

/// Topic of an [`Offer`].
pub const OFFER_TOPIC: &str = "firmware";
/// Topic of a [`Request`].
pub const REQUEST_TOPIC: &str = "firmware/get";
/// Topic of a [`Part`].
pub const PART_TOPIC: &str = "firmware/part";
/// Topic of the text in which a device tells what it does.
pub const STATUS_TOPIC: &str = "firmware/status";
/// The longest version, in bytes.
pub const VERSION_BYTES_MAX: usize = 32;
/// The most that a device may ask for at once, in bytes.
pub const PART_BYTES_MAX: usize = 1024;
/// The longest status, in bytes.
pub const STATUS_BYTES_MAX: usize = 96;
/// Length of an [`Offer`] without its version, in bytes.
pub const OFFER_HEAD_BYTES: usize = 73;
/// Length of a [`Request`], in bytes.
pub const REQUEST_BYTES: usize = 10;
/// Length of a [`Part`] without its bytes.
pub const PART_HEAD_BYTES: usize = 12;
const OFFER_FORMAT: u8 = 1;

/// A firmware that a device may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer<'a> {
    /// Of this offer.
    pub id: u32,
    /// Of the firmware, in bytes.
    pub length: u32,
    /// Over the firmware's SHA-512 digest.
    pub signature: &'a [u8; 64],
    /// 1 to 32 visible ASCII characters.
    pub version: &'a str,
}

/// Whether a version can be one: 1 to 32 visible ASCII characters.
pub fn is_version(text: &str) -> bool {
    (1..=VERSION_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl<'a> Offer<'a> {
    /// Writes it; `None` if it does not fit, else its length.
    pub fn write(&self, to: &mut [u8]) -> Option<usize> {
        let length = OFFER_HEAD_BYTES + self.version.len();
        let to = to.get_mut(..length)?;
        let (head, version) = to.split_at_mut(OFFER_HEAD_BYTES);
        head.get_mut(..1)?.fill(OFFER_FORMAT);
        head.get_mut(1..5)?.copy_from_slice(&self.id.to_le_bytes());
        head.get_mut(5..9)?.copy_from_slice(&self.length.to_le_bytes());
        head.get_mut(9..)?.copy_from_slice(self.signature);
        version.copy_from_slice(self.version.as_bytes());
        Some(length)
    }

    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (format, rest) = bytes.split_first().ok_or(Malformed::Short)?;
        if *format != OFFER_FORMAT {
            return Err(Malformed::Unknown);
        }
        let (id, rest) = u32_of(rest)?;
        let (length, rest) = u32_of(rest)?;
        let (signature, version) = rest.split_first_chunk().ok_or(Malformed::Short)?;
        let version = core::str::from_utf8(version).map_err(|_| Malformed::Text)?;
        if !is_version(version) {
            return Err(Malformed::Range);
        }
        Ok(Offer { id, length, signature, version })
    }
}

/// A device asks for bytes of what it was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The offer's.
    pub id: u32,
    /// Where the bytes begin.
    pub offset: u32,
    /// How many they are: 1 to [`PART_BYTES_MAX`].
    pub length: u16,
}

impl Request {
    /// As a device sends it.
    pub fn to_bytes(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        let (id, rest) = bytes.split_at_mut(4);
        let (offset, length) = rest.split_at_mut(4);
        id.copy_from_slice(&self.id.to_le_bytes());
        offset.copy_from_slice(&self.offset.to_le_bytes());
        length.copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let (id, rest) = u32_of(bytes)?;
        let (offset, rest) = u32_of(rest)?;
        let (length, rest) = rest.split_first_chunk().ok_or(Malformed::Short)?;
        let length = u16::from_le_bytes(*length);
        match () {
            () if !rest.is_empty() => Err(Malformed::Trailing),
            () if length == 0 || usize::from(length) > PART_BYTES_MAX => Err(Malformed::Range),
            () => Ok(Request { id, offset, length }),
        }
    }
}

/// Bytes of a firmware: as many as were asked for, or fewer if it ends there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// The offer's.
    pub id: u32,
    /// Where the bytes begin.
    pub offset: u32,
    /// None: there are none at this offset.
    pub bytes: &'a [u8],
}

impl<'a> Part<'a> {
    /// Writes what stands in front of the bytes.
    pub fn head(&self) -> [u8; PART_HEAD_BYTES] {
        let mut head = [0; PART_HEAD_BYTES];
        let (id, rest) = head.split_at_mut(4);
        let (offset, checksum) = rest.split_at_mut(4);
        id.copy_from_slice(&self.id.to_le_bytes());
        offset.copy_from_slice(&self.offset.to_le_bytes());
        checksum.copy_from_slice(&self.checksum().to_le_bytes());
        head
    }

    /// Reads it and judges its checksum.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(payload: &'a [u8]) -> Result<Self, Malformed> {
        let (id, rest) = u32_of(payload)?;
        let (offset, rest) = u32_of(rest)?;
        let (checksum, bytes) = u32_of(rest)?;
        let part = Part { id, offset, bytes };
        if bytes.len() > PART_BYTES_MAX {
            return Err(Malformed::Range);
        }
        if part.checksum() != checksum {
            return Err(Malformed::Checksum);
        }
        Ok(part)
    }

    fn checksum(&self) -> u32 {
        let sum = crc32(crc32(0, &self.id.to_le_bytes()), &self.offset.to_le_bytes());
        crc32(sum, self.bytes)
    }
}

fn u32_of(bytes: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let (number, rest) = bytes.split_first_chunk().ok_or(Malformed::Short)?;
    Ok((u32::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn an_offer_comes_back() {
        let offer = Offer { id: 7, length: 99_000, signature: &[3; 64], version: "1.2.3+b4" };
        let mut bytes = [0; OFFER_HEAD_BYTES + VERSION_BYTES_MAX];
        let length = offer.write(&mut bytes).unwrap();
        assert_eq!(Offer::read(&bytes[..length]), Ok(offer));
        assert_eq!(Offer::read(&bytes[..OFFER_HEAD_BYTES - 1]), Err(Malformed::Short));
        assert_eq!(Offer::read(&bytes[..OFFER_HEAD_BYTES]), Err(Malformed::Range));
        assert_eq!(Offer::read(&[]), Err(Malformed::Short));
        assert_eq!(offer.write(&mut bytes[..length - 1]), None);
        bytes[OFFER_HEAD_BYTES] = b' ';
        assert_eq!(Offer::read(&bytes[..length]), Err(Malformed::Range));
        bytes[0] = 2;
        assert_eq!(Offer::read(&bytes[..length]), Err(Malformed::Unknown));
    }

    #[test]
    fn a_request_comes_back_and_is_bounded() {
        let request = Request { id: u32::MAX, offset: 256, length: 256 };
        assert_eq!(Request::read(&request.to_bytes()), Ok(request));
        for length in [0, PART_BYTES_MAX as u16 + 1] {
            assert_eq!(Request::read(&Request { length, ..request }.to_bytes()), Err(Malformed::Range));
        }
        assert_eq!(Request::read(&request.to_bytes()[..9]), Err(Malformed::Short));
        assert_eq!(Request::read(&[0; 11]), Err(Malformed::Trailing));
    }

    proptest! {
        #[test]
        fn a_part_comes_back_and_a_flipped_bit_is_seen(
            id: u32, offset: u32, bytes in proptest::collection::vec(any::<u8>(), 0..300), flip: u32
        ) {
            let part = Part { id, offset, bytes: &bytes };
            let mut payload: Vec<u8> = [&part.head()[..], &bytes].concat();
            prop_assert_eq!(Part::read(&payload), Ok(part));
            let bit = flip as usize % (payload.len() * 8);
            payload[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Part::read(&payload), Err(Malformed::Checksum));
        }

        #[test]
        fn whatever_comes_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            let _ = (Offer::read(&bytes), Request::read(&bytes), Part::read(&bytes));
        }
    }
}
