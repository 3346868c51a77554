//! The reading side of a table: judged once as a whole, then row by row.

use super::{COLUMNS_MAX, Column, ColumnType, NAME_BYTES_MAX, NULL, NULL_FLOAT, ROW_TEXT_BYTES_MAX, SCALE_MAX, State};
use super::{Value, type_of};
use crate::Malformed;
use crate::varint::{read, unzigzag};

/// A table whose columns and rows were looked at once: its rows can be read without a mistake.
#[derive(Clone, Debug)]
pub struct Table<'a> {
    columns: [Column<'a>; COLUMNS_MAX],
    width: usize,
    count: u32,
    rows: &'a [u8],
}

impl<'a> Table<'a> {
    /// Reads a table of `count` rows.
    ///
    /// # Errors
    /// What is wrong with the columns or a row.
    pub fn read(body: &'a [u8], count: u32) -> Result<Self, Malformed> {
        let (width, mut rest) = body.split_first().ok_or(Malformed::Short)?;
        let width = usize::from(*width);
        let mut columns = [Column::new("", ColumnType::Bool); COLUMNS_MAX];
        if width == 0 {
            return Err(Malformed::Range);
        }
        for column in columns.get_mut(..width).ok_or(Malformed::Range)? {
            let (read, behind) = read_column(rest)?;
            *column = read;
            rest = behind;
        }
        let table = Table { columns, width, count, rows: rest };
        let mut rows = table.rows();
        while rows.left > 0 {
            rows.read_row()?;
        }
        if !rows.rest.is_empty() {
            return Err(Malformed::Trailing);
        }
        Ok(table)
    }

    /// The columns.
    pub fn columns(&self) -> &[Column<'a>] {
        self.columns.get(..self.width).unwrap_or_default()
    }

    /// The rows, in order.
    pub fn rows(&self) -> Rows<'a, '_> {
        let state = [State::default(); COLUMNS_MAX];
        Rows { table: self, left: self.count, rest: self.rows, state, values: [Value::Null; COLUMNS_MAX] }
    }
}

/// The rows of a table. Each lends its values until the next is read.
#[derive(Clone, Debug)]
pub struct Rows<'a, 't> {
    table: &'t Table<'a>,
    left: u32,
    rest: &'a [u8],
    state: [State; COLUMNS_MAX],
    values: [Value<'a>; COLUMNS_MAX],
}

/// A row: a value a column.
#[derive(Clone, Copy, Debug)]
pub struct Row<'r> {
    pub(super) columns: &'r [Column<'r>],
    pub(super) values: &'r [Value<'r>],
}

impl<'r> Row<'r> {
    /// The values, in the order of the columns.
    pub fn values(&self) -> &'r [Value<'r>] {
        self.values
    }
}

impl<'a> Rows<'a, '_> {
    /// The next row.
    pub fn next_row(&mut self) -> Option<Row<'_>> {
        if self.left == 0 || self.read_row().is_err() {
            return None;
        }
        Some(Row { columns: self.table.columns(), values: self.values.get(..self.table.width)? })
    }

    fn read_row(&mut self) -> Result<(), Malformed> {
        let width = self.table.width;
        let (bits, mut rest) = self.rest.split_at_checked(width.div_ceil(8)).ok_or(Malformed::Short)?;
        let changed = bits.iter().rev().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        if changed >> width != 0 {
            return Err(Malformed::Range);
        }
        let mut text = 0;
        let columns = self.table.columns.iter().take(width);
        for (index, ((column, state), value)) in columns.zip(&mut self.state).zip(&mut self.values).enumerate() {
            let is_changed = changed >> index & 1 == 1;
            rest = state.read(column.of, is_changed, value, rest)?;
            if let Value::Text(value) = value {
                text += value.len();
            }
        }
        if text > ROW_TEXT_BYTES_MAX {
            return Err(Malformed::Range);
        }
        self.rest = rest;
        self.left -= 1;
        Ok(())
    }
}

impl State {
    fn read<'a>(
        &mut self,
        of: ColumnType,
        changed: bool,
        value: &mut Value<'a>,
        bytes: &'a [u8],
    ) -> Result<&'a [u8], Malformed> {
        let (coded, rest) = if changed { read(bytes)? } else { (0, bytes) };
        match of {
            ColumnType::Counter | ColumnType::Integer | ColumnType::Decimal(_) => {
                let number = self.expect(of).wrapping_add(unzigzag(coded));
                self.take(number);
                *value = if number == NULL { Value::Null } else { Value::Integer(number) };
            }
            ColumnType::Bool => {
                if changed {
                    self.last = coded as i64;
                }
                *value = match self.last {
                    0 => Value::Bool(false),
                    1 => Value::Bool(true),
                    2 => Value::Null,
                    _ => return Err(Malformed::Range),
                };
            }
            ColumnType::Float => {
                self.last ^= i64::try_from(coded).map_err(|_| Malformed::Range)?;
                let bits = u32::try_from(self.last).map_err(|_| Malformed::Range)?;
                let float = f32::from_bits(bits);
                let none = self.last == NULL_FLOAT || !float.is_finite();
                *value = if none { Value::Null } else { Value::Float(float) };
            }
            // An unchanged text is what the last row has left in its place.
            ColumnType::Text if !changed => {}
            ColumnType::Text if coded == 0 => *value = Value::Null,
            ColumnType::Text => {
                let length = usize::try_from(coded - 1).map_err(|_| Malformed::Range)?;
                let (text, rest) = rest.split_at_checked(length).ok_or(Malformed::Short)?;
                *value = Value::Text(core::str::from_utf8(text).map_err(|_| Malformed::Text)?);
                return Ok(rest);
            }
        }
        Ok(rest)
    }
}

fn read_column(bytes: &[u8]) -> Result<(Column<'_>, &[u8]), Malformed> {
    let (of, mut rest) = bytes.split_first().ok_or(Malformed::Short)?;
    let mut of = type_of(*of)?;
    if let ColumnType::Decimal(scale) = &mut of {
        let (byte, behind) = rest.split_first().ok_or(Malformed::Short)?;
        if *byte > SCALE_MAX {
            return Err(Malformed::Range);
        }
        *scale = *byte;
        rest = behind;
    }
    let (length, rest) = rest.split_first().ok_or(Malformed::Short)?;
    if usize::from(*length) > NAME_BYTES_MAX {
        return Err(Malformed::Range);
    }
    let (name, rest) = rest.split_at_checked(usize::from(*length)).ok_or(Malformed::Short)?;
    let name = core::str::from_utf8(name).map_err(|_| Malformed::Text)?;
    Ok((Column { name, of }, rest))
}
