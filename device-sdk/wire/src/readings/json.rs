//! A row as a JSON object, for whoever reads the stream.

use super::read::Row;
use super::{ColumnType, Value};
use core::fmt::{Display, Formatter, Result, Write};

/// Displays a row as a JSON object with a field for each column, in their order.
#[derive(Clone, Copy, Debug)]
pub struct Json<'r>(Row<'r>);

impl<'r> Row<'r> {
    /// For `write!` and the like.
    pub fn as_json(&self) -> Json<'r> {
        Json(*self)
    }

    /// The JSON object in the front of `to`; `None` if it does not fit.
    pub fn json<'t>(&self, to: &'t mut [u8]) -> Option<&'t [u8]> {
        let mut cursor = Cursor { to, length: 0 };
        write!(cursor, "{}", self.as_json()).ok()?;
        let Cursor { to, length } = cursor;
        to.get(..length)
    }
}

impl Display for Json<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut before = '{';
        for (column, value) in self.0.columns.iter().zip(self.0.values) {
            f.write_char(before)?;
            before = ',';
            write_text(f, column.name)?;
            f.write_char(':')?;
            match (column.of, value) {
                (_, Value::Null) => f.write_str("null")?,
                (ColumnType::Decimal(scale), Value::Integer(value)) => write_decimal(f, *value, scale)?,
                (_, Value::Integer(value)) => write!(f, "{value}")?,
                (_, Value::Bool(value)) => write!(f, "{value}")?,
                (_, Value::Float(value)) => write!(f, "{value}")?,
                (_, Value::Text(value)) => write_text(f, value)?,
            }
        }
        f.write_char('}')
    }
}

fn write_decimal(f: &mut Formatter<'_>, value: i64, scale: u8) -> Result {
    let unit = 10u64.pow(u32::from(scale));
    let sign = if value < 0 { "-" } else { "" };
    let (whole, part) = (value.unsigned_abs() / unit, value.unsigned_abs() % unit);
    match scale {
        0 => write!(f, "{sign}{whole}"),
        _ => write!(f, "{sign}{whole}.{part:0width$}", width = usize::from(scale)),
    }
}

fn write_text(f: &mut Formatter<'_>, text: &str) -> Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            c if c < ' ' => write!(f, "\\u{:04x}", u32::from(c))?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

struct Cursor<'t> {
    to: &'t mut [u8],
    length: usize,
}

impl Write for Cursor<'_> {
    fn write_str(&mut self, text: &str) -> Result {
        let end = self.length + text.len();
        self.to.get_mut(self.length..end).ok_or(core::fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}
