//! LEB128: seven bits a byte, least significant first.

use crate::Malformed;

/// The longest varint: 64 bits.
pub const VARINT_BYTES_MAX: usize = 10;

/// Reads a varint and says what is left behind it.
///
/// # Errors
/// [`Malformed::Short`] if the bytes end first, [`Malformed::Range`] if it has more than 64 bits.
pub fn read(bytes: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    let mut value = 0u64;
    let mut rest = bytes;
    let mut shift = 0u32;
    while let Some((byte, behind)) = rest.split_first() {
        let bits = u64::from(byte & 0x7f);
        if shift > 63 || (shift == 63 && bits > 1) {
            return Err(Malformed::Range);
        }
        value |= bits << shift;
        rest = behind;
        if byte & 0x80 == 0 {
            return Ok((value, rest));
        }
        shift += 7;
    }
    Err(Malformed::Short)
}

/// Writes a varint to the front of `to`; `None` if it does not fit, else its length in bytes.
pub fn write(mut value: u64, to: &mut [u8]) -> Option<usize> {
    let mut length = 0;
    for place in to.iter_mut().take(VARINT_BYTES_MAX) {
        length += 1;
        *place = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return Some(length);
        }
        *place |= 0x80;
    }
    None
}

/// Maps small numbers of either sign to small unsigned ones.
pub const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The inverse of [`zigzag`].
pub const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_comes_back() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut bytes = [0; VARINT_BYTES_MAX];
                let length = write(value, &mut bytes).unwrap();
                assert_eq!(read(&bytes[..length]), Ok((value, &[][..])));
                assert_eq!(write(value, &mut bytes[..length - 1]), None);
                assert_eq!(read(&bytes[..length - 1]), Err(Malformed::Short));
                assert_eq!(unzigzag(zigzag(value as i64)), value as i64);
            }
        }
    }

    #[test]
    fn more_than_64_bits_are_refused() {
        assert_eq!(read(&[0xff; 11]), Err(Malformed::Range));
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]), Err(Malformed::Range));
    }
}
