//! Sequence numbers as Kinesis shows them: 56 decimal digits that sort as the records of a shard do. Pure.
//!
//! In hex, as observed at AWS: `2`, 9 digits shard creation in seconds, 1 digit shard index, 16 digits number, `00`,
//! 9 digits record time in seconds, 8 digits shard index, `2`. We fill both times with the stream's creation: the arrival
//! time is given after the number, and the number PutRecord answers must be the one GetRecords shows. What consumers rely
//! on holds: numbers of a shard rise, and those of a stream made again are above those of the old one.

use crate::record::{Number, ShardIndex};
use serde::{Serialize, Serializer};
use std::fmt;

/// Decimal digits of a sequence number.
pub const DIGITS: usize = 56;
/// Longest number a client may send, in digits (AWS's own pattern).
pub const DIGITS_MAX: usize = 129;

/// Where the fields end, in bits from the right: version 4, shard 32, time 36, zeros 8, number 64, nibble 4, created 36, 2.
const SHARD_SHIFT: u32 = 4;
const TIME_SHIFT: u32 = 36;
const NUMBER_SHIFT: u32 = 80;
const NIBBLE_SHIFT: u32 = 144;
const CREATED_SHIFT: u32 = 148;
const LEAD_SHIFT: u32 = 184;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// When the stream was created, in seconds since 1970.
    pub created_s: u64,
    pub shard: ShardIndex,
    pub number: Number,
}

/// Not a sequence number of version 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a sequence number")]
pub struct NotASequence;

impl Sequence {
    pub fn new(created_ms: u64, shard: ShardIndex, number: Number) -> Self {
        Sequence { created_s: (created_ms / 1000) & SECONDS_MASK, shard, number }
    }

    pub fn parse(text: &str) -> Result<Self, NotASequence> {
        let wide = Wide::from_decimal(text).ok_or(NotASequence)?;
        let sequence = Sequence {
            created_s: wide.field(CREATED_SHIFT, 36),
            shard: wide.field(SHARD_SHIFT, 32) as ShardIndex,
            number: wide.field(NUMBER_SHIFT, 64),
        };
        // Everything else in it follows from these three.
        if sequence.wide() == wide { Ok(sequence) } else { Err(NotASequence) }
    }

    fn wide(&self) -> Wide {
        let mut wide = Wide::default();
        wide.put(2, 0);
        wide.put(u64::from(self.shard), SHARD_SHIFT);
        wide.put(self.created_s, TIME_SHIFT);
        wide.put(self.number, NUMBER_SHIFT);
        wide.put(u64::from(self.shard & 15), NIBBLE_SHIFT);
        wide.put(self.created_s, CREATED_SHIFT);
        wide.put(2, LEAD_SHIFT);
        wide
    }

    /// The 56 digits.
    pub fn digits(&self) -> [u8; DIGITS] {
        let mut wide = self.wide();
        let mut digits = [b'0'; DIGITS];
        // Three times 19 digits; the first of the 57 is a zero, since 2^185 <= value < 2^186 has 56.
        for end in [56usize, 37, 18] {
            let mut rest = wide.divide(TEN_TO_19);
            for at in (end.saturating_sub(19)..end).rev() {
                digits[at] = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
        digits
    }
}

const SECONDS_MASK: u64 = (1 << 36) - 1;
const TEN_TO_19: u64 = 10_000_000_000_000_000_000;

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for digit in self.digits() {
            fmt::Write::write_char(f, char::from(digit))?;
        }
        Ok(())
    }
}

impl Serialize for Sequence {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(std::str::from_utf8(&self.digits()).map_err(serde::ser::Error::custom)?)
    }
}

/// 192 bits, lowest first.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Wide([u64; 3]);

impl Wide {
    /// Sets the bits from `shift` on; they are zero before.
    fn put(&mut self, value: u64, shift: u32) {
        let (limb, bit) = ((shift / 64) as usize, shift % 64);
        self.0[limb] |= value << bit;
        if bit > 0 && limb + 1 < self.0.len() {
            self.0[limb + 1] |= value >> (64 - bit);
        }
    }

    fn field(&self, shift: u32, bits: u32) -> u64 {
        let (limb, bit) = ((shift / 64) as usize, shift % 64);
        let mut value = self.0[limb] >> bit;
        if bit > 0 && limb + 1 < self.0.len() {
            value |= self.0[limb + 1] << (64 - bit);
        }
        if bits == 64 { value } else { value & ((1 << bits) - 1) }
    }

    /// Divides in place and returns the remainder.
    fn divide(&mut self, by: u64) -> u64 {
        let mut rest = 0u64;
        for limb in self.0.iter_mut().rev() {
            if rest == 0 && *limb == 0 {
                continue;
            }
            let part = u128::from(rest) << 64 | u128::from(*limb);
            *limb = (part / u128::from(by)) as u64;
            rest = (part % u128::from(by)) as u64;
        }
        rest
    }

    /// `None` for anything but digits, and for what does not fit.
    fn from_decimal(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > DIGITS_MAX {
            return None;
        }
        let mut wide = Wide::default();
        for digit in text.bytes() {
            let mut carry = u128::from(digit.checked_sub(b'0').filter(|d| *d < 10)?);
            for limb in &mut wide.0 {
                let part = u128::from(*limb) * 10 + carry;
                *limb = part as u64;
                carry = part >> 64;
            }
            if carry > 0 {
                return None;
            }
        }
        Some(wide)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_has_the_layout_observed_at_aws() {
        // 0x2 053ea1ed1 3 000000000000000b 00 053ea1ed1 00000003 2
        let sequence = Sequence { created_s: 0x0_53ea_1ed1, shard: 3, number: 11 };
        assert_eq!(sequence.to_string(), "49542195773434886946213697076674881627398989855523340338");
    }

    #[test]
    fn numbers_that_are_not_ours_are_refused() {
        for text in
            ["", "0", "1", "abc", "-5", "49542195773434886946213697076674881627398989855523340339", &"9".repeat(200)]
        {
            assert_eq!(Sequence::parse(text), Err(NotASequence), "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_text_reads_back(created_s in 0..=SECONDS_MASK, shard: u32, number: u64) {
            let sequence = Sequence { created_s, shard, number };
            let text = sequence.to_string();
            prop_assert_eq!(text.len(), DIGITS);
            prop_assert!(!text.starts_with('0'));
            prop_assert_eq!(Sequence::parse(&text), Ok(sequence));
        }

        #[test]
        fn texts_sort_as_numbers_do(created_s in 0..=SECONDS_MASK, shard: u32, a: u64, b: u64) {
            let text = |number| Sequence { created_s, shard, number }.to_string();
            prop_assert_eq!(a.cmp(&b), text(a).cmp(&text(b)));
        }

        #[test]
        fn a_stream_made_again_continues_above(created_s in 0..SECONDS_MASK, a in 0u32..64, b in 0u32..64, n: u64, m: u64) {
            let old = Sequence { created_s, shard: a, number: n }.to_string();
            let new = Sequence { created_s: created_s + 1, shard: b, number: m }.to_string();
            prop_assert!(old < new);
        }

        #[test]
        fn noise_never_panics(noise in ".{0,200}") {
            let _ = Sequence::parse(&noise);
        }
    }
}
