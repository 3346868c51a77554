//! The envelope's head, and the plain body.

use crate::varint::{VARINT_BYTES_MAX, read, write};
use crate::{Chunk, Malformed, Table};

/// Records of one envelope.
pub const RECORDS_MAX: u32 = 4_096;

/// Room for the head: kind, epoch, first number, count.
pub const ENVELOPE_HEADER_BYTES_MAX: usize = 1 + 3 * VARINT_BYTES_MAX;

/// What the body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Records as they stand.
    Plain = 1,
    /// Typed readings.
    Readings = 2,
    /// A part of a blob.
    Chunk = 3,
}

impl Kind {
    /// The kind of this byte.
    pub const fn of(byte: u8) -> Option<Kind> {
        match byte {
            1 => Some(Kind::Plain),
            2 => Some(Kind::Readings),
            3 => Some(Kind::Chunk),
            _ => None,
        }
    }
}

/// An envelope: numbered records of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// What the body holds.
    pub kind: Kind,
    /// One life of the device's numbers: random, new when what it kept them in is lost.
    pub epoch: u32,
    /// The number of the first record; 1 is an epoch's first.
    pub first: u64,
    /// Records in the body, at least one.
    pub count: u32,
    /// Of the kind's form.
    pub body: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Writes the head to the front of `to`; `None` if it does not fit, else its length. The body comes behind it.
    pub fn write_head(&self, to: &mut [u8]) -> Option<usize> {
        let (kind, mut rest) = to.split_first_mut()?;
        *kind = self.kind as u8;
        let mut length = 1;
        for value in [u64::from(self.epoch), self.first, u64::from(self.count)] {
            let written = write(value, rest)?;
            rest = rest.get_mut(written..)?;
            length += written;
        }
        Some(length)
    }

    /// Reads the head. The body is judged when it is read: see [`Envelope::plain`], [`Envelope::readings`] and
    /// [`Envelope::chunk`].
    ///
    /// # Errors
    /// What is wrong with the head.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (kind, rest) = bytes.split_first().ok_or(Malformed::Short)?;
        let kind = Kind::of(*kind).ok_or(Malformed::Unknown)?;
        let (epoch, rest) = read(rest)?;
        let (first, rest) = read(rest)?;
        let (count, body) = read(rest)?;
        let epoch = u32::try_from(epoch).map_err(|_| Malformed::Range)?;
        let count = u32::try_from(count).map_err(|_| Malformed::Range)?;
        let counts = if kind == Kind::Chunk { 1..=1 } else { 1..=RECORDS_MAX };
        if first == 0 || !counts.contains(&count) || first.checked_add(u64::from(count)).is_none() {
            return Err(Malformed::Range);
        }
        Ok(Envelope { kind, epoch, first, count, body })
    }

    /// The number of the last record.
    pub fn last(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count).saturating_sub(1))
    }

    /// The records of a plain body, after all of it was looked at once.
    ///
    /// # Errors
    /// [`Malformed::Unknown`] if it is of another kind, else what is wrong with the body.
    pub fn plain(&self) -> Result<Plain<'a>, Malformed> {
        if self.kind != Kind::Plain {
            return Err(Malformed::Unknown);
        }
        let mut rest = self.body;
        for _ in 0..self.count {
            rest = take_record(rest)?.1;
        }
        if !rest.is_empty() { Err(Malformed::Trailing) } else { Ok(Plain { rest: self.body }) }
    }

    /// The table of a body of readings.
    ///
    /// # Errors
    /// [`Malformed::Unknown`] if it is of another kind, else what is wrong with the columns or a row.
    pub fn readings(&self) -> Result<Table<'a>, Malformed> {
        if self.kind == Kind::Readings { Table::read(self.body, self.count) } else { Err(Malformed::Unknown) }
    }

    /// The part of a blob.
    ///
    /// # Errors
    /// [`Malformed::Unknown`] if it is of another kind, else what is wrong with the part.
    pub fn chunk(&self) -> Result<Chunk<'a>, Malformed> {
        if self.kind == Kind::Chunk { Chunk::read(self.body) } else { Err(Malformed::Unknown) }
    }
}

/// The records of a plain body.
#[derive(Clone, Debug)]
pub struct Plain<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Plain<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (record, rest) = take_record(self.rest).ok()?;
        self.rest = rest;
        Some(record)
    }
}

/// Appends a record to a plain body; `None` if it does not fit, else how much longer the body is.
pub fn plain(record: &[u8], to: &mut [u8]) -> Option<usize> {
    let head = write(record.len() as u64, to)?;
    let length = head.checked_add(record.len())?;
    to.get_mut(head..length)?.copy_from_slice(record);
    Some(length)
}

fn take_record(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (length, rest) = read(bytes)?;
    let length = usize::try_from(length).map_err(|_| Malformed::Range)?;
    rest.split_at_checked(length).ok_or(Malformed::Short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn plain_records_come_back_with_their_numbers() {
        let mut bytes = [0; 64];
        let envelope = Envelope { kind: Kind::Plain, epoch: 7, first: 300, count: 2, body: &[] };
        let mut length = envelope.write_head(&mut bytes).unwrap();
        length += plain(b"one", &mut bytes[length..]).unwrap();
        length += plain(b"", &mut bytes[length..]).unwrap();
        let read = Envelope::read(&bytes[..length]).unwrap();
        assert_eq!((read.epoch, read.first, read.last()), (7, 300, 301));
        assert_eq!(read.plain().unwrap().collect::<Vec<_>>(), [&b"one"[..], b""]);
        assert_eq!(Envelope::read(&bytes[..length - 1]).unwrap().plain().err(), Some(Malformed::Short));
        assert_eq!(Envelope::read(&bytes[..length + 1]).unwrap().plain().err(), Some(Malformed::Trailing));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (bytes, why) in [
            (&[][..], Malformed::Short),
            (&[9, 0, 1, 1], Malformed::Unknown),
            (&[1, 0, 0, 1], Malformed::Range),
            (&[1, 0, 1, 0], Malformed::Range),
            (&[3, 0, 1, 2], Malformed::Range),
            (&[1, 0xff, 0xff, 0xff, 0xff, 0x1f, 1, 1], Malformed::Range),
        ] {
            assert_eq!(Envelope::read(bytes), Err(why), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_comes_in_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 1u8..4) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if let Ok(envelope) = Envelope::read(&bytes) {
                let _ = envelope.plain().map(Iterator::count);
                let _ = envelope.chunk();
                if let Ok(table) = envelope.readings() {
                    let mut json = [0; 2_048];
                    let mut rows = table.rows();
                    while let Some(row) = rows.next_row() {
                        let _ = row.json(&mut json);
                    }
                }
            }
        }
    }
}
