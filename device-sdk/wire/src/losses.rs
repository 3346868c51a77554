//! What a device tells of what it did not deliver.

use crate::Malformed;

/// Topic of [`Losses`] behind `$headwater/d/{client id}/`.
pub const LOSSES_TOPIC: &str = "losses";
/// Length of [`Losses`] on the wire, in bytes. A later version may be longer.
pub const LOSSES_BYTES: usize = 1 + 8 * FIELDS;
const FIELDS: usize = 9;
const FORMAT: u8 = 1;

/// Records that will never come, by why, and how the device's flash is doing; counted since the device's last reset.
///
/// On the wire `1 u8` and the fields as `u64` in this order, little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Went with the oldest page of a full outbox.
    pub dropped_oldest: u64,
    /// Were not taken by a full outbox.
    pub dropped_newest: u64,
    /// Were left out while the outbox was filling up, as the firmware chose.
    pub thinned: u64,
    /// Were in flash and could not be read any more.
    pub damaged: u64,
    /// Were given up because they cannot be written.
    pub unwritten: u64,
    /// A gateway called them malformed.
    pub rejected: u64,
    /// Not lost: in the outbox, and not on the gateway's disk yet.
    pub pending: u64,
    /// Bytes programmed into flash.
    pub programmed_bytes: u64,
    /// Pages of flash erased.
    pub erases: u64,
}

impl Losses {
    /// The fields, as on the wire: [`Losses::NAMES`].
    pub fn fields(self) -> [u64; FIELDS] {
        [
            self.dropped_oldest,
            self.dropped_newest,
            self.thinned,
            self.damaged,
            self.unwritten,
            self.rejected,
            self.pending,
            self.programmed_bytes,
            self.erases,
        ]
    }

    /// What [`Losses::fields`] are called.
    pub const NAMES: [&'static str; FIELDS] = [
        "dropped_oldest",
        "dropped_newest",
        "thinned",
        "damaged",
        "unwritten",
        "rejected",
        "pending",
        "programmed_bytes",
        "erases",
    ];

    /// How many records in all will never come.
    pub fn records(self) -> u64 {
        self.fields().iter().take(6).fold(0, |sum, lost| sum.saturating_add(*lost))
    }

    /// As a device sends it.
    pub fn to_bytes(self) -> [u8; LOSSES_BYTES] {
        let mut bytes = [FORMAT; LOSSES_BYTES];
        for (place, field) in bytes.iter_mut().skip(1).zip(self.fields().iter().flat_map(|field| field.to_le_bytes())) {
            *place = field;
        }
        bytes
    }

    /// As a gateway reads it; bytes behind what this version knows are left alone.
    ///
    /// # Errors
    /// [`Malformed::Short`], or [`Malformed::Unknown`] for another version.
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let (format, rest) = bytes.split_first().ok_or(Malformed::Short)?;
        if *format != FORMAT {
            return Err(Malformed::Unknown);
        }
        let (fields, _) = rest.as_chunks::<8>();
        let fields: &[[u8; 8]; FIELDS] = fields.first_chunk().ok_or(Malformed::Short)?;
        let [dropped_oldest, dropped_newest, thinned, damaged, unwritten, rejected, pending, programmed_bytes, erases] =
            fields.map(u64::from_le_bytes);
        Ok(Losses {
            dropped_oldest,
            dropped_newest,
            thinned,
            damaged,
            unwritten,
            rejected,
            pending,
            programmed_bytes,
            erases,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_back() {
        let losses = Losses {
            dropped_oldest: 1,
            dropped_newest: 20,
            thinned: 300,
            damaged: 4_000,
            unwritten: 50_000,
            rejected: 600_000,
            pending: 7,
            programmed_bytes: u64::MAX,
            erases: 9,
        };
        let bytes = losses.to_bytes();
        assert_eq!((Losses::read(&bytes), losses.records()), (Ok(losses), 654_321));
        assert_eq!(Losses::read(&[&bytes[..], &[0; 9]].concat()), Ok(losses));
        for length in 0..LOSSES_BYTES {
            assert_eq!(Losses::read(&bytes[..length]), Err(Malformed::Short), "{length}");
        }
        assert_eq!(Losses::read(&[2; LOSSES_BYTES]), Err(Malformed::Unknown));
        assert_eq!(Losses { damaged: u64::MAX, rejected: 1, ..losses }.records(), u64::MAX);
    }
}
