//! Typed readings: the columns once, then of each row what has changed, as small numbers.
//!
//! ```text
//! table:  columns u8 | columns times: type u8, scale u8 if decimal, name length u8, name | rows
//! row:    a bit a column, least significant first: set if the value is not the expected one | of each such column:
//!   0 counter   zigzag varint of value - expected       expected: the last value and the last step again
//!   1 integer   zigzag varint of value - last
//!   2 decimal   as integer; the value is divided by ten to the power of `scale`
//!   3 bool      u8: 0 false, 1 true, 2 null
//!   4 float     varint of the 32 bits, each flipped where the last value's is set
//!   5 text      varint length + 1, bytes; 0 is null
//! ```
//!
//! In front of the first row everything is 0, false or null text. Differences wrap, so that no value is out of reach;
//! the smallest integer stands for null, and so does a float that is not a number. A row that is as expected costs
//! its bits alone, and a table needs nothing that was sent before it.

mod json;
mod read;

pub use json::Json;
pub use read::{Row, Rows, Table};

use crate::Malformed;
use crate::varint::{write, zigzag};

/// Columns of a table.
pub const COLUMNS_MAX: usize = 16;
/// Text of all columns of one row, in bytes.
pub const ROW_TEXT_BYTES_MAX: usize = 512;
/// A column's name, in bytes.
pub const NAME_BYTES_MAX: usize = 32;
/// The most digits behind a decimal's point.
pub const SCALE_MAX: u8 = 9;
const NULL: i64 = i64::MIN;
const NULL_FLOAT: i64 = 0x7fc0_0000;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// Integers that mostly rise evenly: times, numbers, meters.
    Counter,
    /// Any integer.
    Integer,
    /// Integers that count parts of ten to the power of this: `Decimal(2)` with 2153 is 21.53.
    Decimal(u8),
    /// True or false.
    Bool,
    /// 32-bit floating point; better a decimal, which is exact and smaller.
    Float,
    /// UTF-8, best of few different values.
    Text,
}

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    /// The field's name in the JSON object.
    pub name: &'a str,
    /// What it holds.
    pub of: ColumnType,
}

impl<'a> Column<'a> {
    /// A column of this name and type.
    pub const fn new(name: &'a str, of: ColumnType) -> Self {
        Column { name, of }
    }
}

/// One value of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// For counters, integers and decimals. The smallest of all is null.
    Integer(i64),
    /// For bool columns.
    Bool(bool),
    /// For float columns. What is not a finite number is null.
    Float(f32),
    /// For text columns.
    Text(&'a str),
    /// No value: JSON `null`.
    Null,
}

/// The value that is none, for `Value::from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Null;

impl From<Null> for Value<'_> {
    fn from(_: Null) -> Self {
        Value::Null
    }
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Value::Integer(value)
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<f32> for Value<'_> {
    fn from(value: f32) -> Self {
        Value::Float(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Value::Text(value)
    }
}

/// Why a row is not in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// The buffer is full: send it, begin a new table and put the row there.
    Full,
    /// Not one value a column, or a value that is not of its column's type.
    Shape,
    /// More columns, longer names, larger scales or more text than there may be.
    Limit,
}

/// Writes a table row by row into a buffer that the caller keeps: what has to be remembered between two rows is here.
#[derive(Clone, Debug)]
pub struct TableWriter {
    columns: &'static [Column<'static>],
    expected: [State; COLUMNS_MAX],
}

/// What is expected of a column's next value. A text is where it stands in the body: start and length.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    last: i64,
    step: i64,
}

impl TableWriter {
    /// Writes the columns to the front of `to` and says how long that is.
    ///
    /// # Errors
    /// [`TableError::Limit`], or [`TableError::Full`] if `to` is too short for the columns alone.
    pub fn begin(columns: &'static [Column<'static>], to: &mut [u8]) -> Result<(Self, usize), TableError> {
        let written = write_columns(columns, to)?;
        Ok((TableWriter { columns, expected: [State::default(); COLUMNS_MAX] }, written))
    }

    /// The columns it was begun with.
    pub fn columns(&self) -> &'static [Column<'static>] {
        self.columns
    }

    /// Appends a row to the table that fills `body[..length]` and returns the new length. If it fails the table is as it
    /// was.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn row(&mut self, values: &[Value<'_>], body: &mut [u8], length: usize) -> Result<usize, TableError> {
        if values.len() != self.columns.len() {
            return Err(TableError::Shape);
        }
        let (before, room) = body.split_at_mut_checked(length).ok_or(TableError::Full)?;
        let bits = self.columns.len().div_ceil(8);
        let mut changed = 0u16;
        let mut at = bits;
        let mut text = 0;
        let mut next = self.expected;
        for (index, ((column, value), state)) in self.columns.iter().zip(values).zip(next.iter_mut()).enumerate() {
            let place = room.get_mut(at..).ok_or(TableError::Full)?;
            if let Value::Text(value) = value {
                text += value.len();
            }
            let written = state.write(column.of, value, before, place, length + at)?;
            if written > 0 {
                changed |= 1 << index;
            }
            at += written;
        }
        if text > ROW_TEXT_BYTES_MAX {
            return Err(TableError::Limit);
        }
        let places = room.get_mut(..bits).ok_or(TableError::Full)?;
        places.iter_mut().zip(changed.to_le_bytes()).for_each(|(place, byte)| *place = byte);
        self.expected = next;
        Ok(length + at)
    }
}

impl State {
    /// Writes the value if it is not the expected one, and says how long that is: 0 if it is.
    fn write(
        &mut self,
        of: ColumnType,
        value: &Value<'_>,
        before: &[u8],
        to: &mut [u8],
        at: usize,
    ) -> Result<usize, TableError> {
        let coded = match (of, value) {
            (ColumnType::Counter | ColumnType::Integer | ColumnType::Decimal(_), Value::Integer(value)) => {
                self.number(of, *value)
            }
            (ColumnType::Counter | ColumnType::Integer | ColumnType::Decimal(_), Value::Null) => self.number(of, NULL),
            (ColumnType::Bool, Value::Bool(value)) => self.exactly(i64::from(*value)),
            (ColumnType::Bool, Value::Null) => self.exactly(2),
            (ColumnType::Float, Value::Float(value)) if value.is_finite() => self.float(i64::from(value.to_bits())),
            (ColumnType::Float, Value::Float(_) | Value::Null) => self.float(NULL_FLOAT),
            (ColumnType::Text, Value::Text(value)) => return self.text(Some(value), before, to, at),
            (ColumnType::Text, Value::Null) => return self.text(None, before, to, at),
            _ => return Err(TableError::Shape),
        };
        match coded {
            None => Ok(0),
            Some(coded) => write(coded, to).ok_or(TableError::Full),
        }
    }

    fn number(&mut self, of: ColumnType, value: i64) -> Option<u64> {
        let expected = self.expect(of);
        self.take(value);
        (value != expected).then(|| zigzag(value.wrapping_sub(expected)))
    }

    fn exactly(&mut self, value: i64) -> Option<u64> {
        let changed = value != self.last;
        self.last = value;
        changed.then_some(value as u64)
    }

    fn float(&mut self, bits: i64) -> Option<u64> {
        let flipped = self.last ^ bits;
        self.last = bits;
        (flipped != 0).then_some(flipped as u64)
    }

    /// `last` and `step` are start and end of the last text, both 0 for null.
    fn text(&mut self, value: Option<&str>, before: &[u8], to: &mut [u8], at: usize) -> Result<usize, TableError> {
        let last = (self.last > 0).then(|| before.get(self.last as usize..self.step as usize)).flatten();
        if value.map(str::as_bytes) == last {
            return Ok(0);
        }
        let Some(value) = value else {
            *self = State::default();
            *to.first_mut().ok_or(TableError::Full)? = 0;
            return Ok(1);
        };
        let head = write(value.len() as u64 + 1, to).ok_or(TableError::Full)?;
        let end = head + value.len();
        to.get_mut(head..end).ok_or(TableError::Full)?.copy_from_slice(value.as_bytes());
        *self = State { last: (at + head) as i64, step: (at + end) as i64 };
        Ok(end)
    }

    fn expect(&self, of: ColumnType) -> i64 {
        if of == ColumnType::Counter { self.last.wrapping_add(self.step) } else { self.last }
    }

    fn take(&mut self, value: i64) {
        self.step = value.wrapping_sub(self.last);
        self.last = value;
    }
}

fn write_columns(columns: &[Column<'_>], to: &mut [u8]) -> Result<usize, TableError> {
    if columns.is_empty() || columns.len() > COLUMNS_MAX {
        return Err(TableError::Limit);
    }
    let (count, mut rest) = to.split_first_mut().ok_or(TableError::Full)?;
    *count = columns.len() as u8;
    let mut length = 1;
    for column in columns {
        let name = column.name.as_bytes();
        let (of, scale) = type_byte(column.of);
        if name.len() > NAME_BYTES_MAX || scale.is_some_and(|scale| scale > SCALE_MAX) {
            return Err(TableError::Limit);
        }
        let head = [of, scale.unwrap_or(name.len() as u8), name.len() as u8];
        let head = if scale.is_some() { &head[..] } else { &head[..2] };
        let (head_place, behind) = rest.split_at_mut_checked(head.len()).ok_or(TableError::Full)?;
        let (name_place, behind) = behind.split_at_mut_checked(name.len()).ok_or(TableError::Full)?;
        head_place.copy_from_slice(head);
        name_place.copy_from_slice(name);
        length += head.len() + name.len();
        rest = behind;
    }
    Ok(length)
}

fn type_byte(of: ColumnType) -> (u8, Option<u8>) {
    match of {
        ColumnType::Counter => (0, None),
        ColumnType::Integer => (1, None),
        ColumnType::Decimal(scale) => (2, Some(scale)),
        ColumnType::Bool => (3, None),
        ColumnType::Float => (4, None),
        ColumnType::Text => (5, None),
    }
}

fn type_of(byte: u8) -> Result<ColumnType, Malformed> {
    Ok(match byte {
        0 => ColumnType::Counter,
        1 => ColumnType::Integer,
        2 => ColumnType::Decimal(0),
        3 => ColumnType::Bool,
        4 => ColumnType::Float,
        5 => ColumnType::Text,
        _ => return Err(Malformed::Unknown),
    })
}

#[cfg(test)]
mod tests;
