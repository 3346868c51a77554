//! The stream under TLS, record by record, for two reasons.
//!
//! Whoever reads may give up waiting at any time and come back, and `embedded-tls` loses its place when that happens
//! within a record. So a record is given to it when it is all here. Longer ones than [`WHOLE_BYTES`] come only in the
//! handshake, which nobody comes back to, or from a gateway with much to say; those go through as they come, and a flag
//! tells that one is on its way.
//!
//! And an encrypted record with nothing in it makes `embedded-tls` panic; it ends here, with whatever is no TLS at all.

use core::cell::Cell;
use embedded_io_async::{Error, ErrorKind, ErrorType, Read, Write};

/// An acknowledgement takes thirty, a hello sixty.
const WHOLE_BYTES: usize = 256;
const HEAD_BYTES: usize = 5;
const APPLICATION_DATA: u8 = 23;
/// A tag, the inner content type, and an alert or a byte of data.
const ENCRYPTED_BYTES_MIN: usize = 17;
/// 2^14 and what encryption may add [RFC 8446, section 5.2].
const RECORD_BYTES_MAX: usize = (1 << 14) + 256;

pub struct Records<'s, S> {
    stream: S,
    /// The head of a record, and its body if that is short.
    here: [u8; HEAD_BYTES + WHOLE_BYTES],
    length: usize,
    given: usize,
    /// Bytes of the body that are still in the stream.
    left: usize,
    is_within_record: &'s Cell<bool>,
}

/// Why it does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The stream says so.
    Stream(ErrorKind),
    /// What comes is no TLS record.
    NotTls,
}

impl core::fmt::Display for RecordError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the stream is of no use")
    }
}

impl core::error::Error for RecordError {}

impl Error for RecordError {
    fn kind(&self) -> ErrorKind {
        match self {
            RecordError::Stream(kind) => *kind,
            RecordError::NotTls => ErrorKind::InvalidData,
        }
    }
}

impl<'s, S: Read> Records<'s, S> {
    pub fn new(stream: S, is_within_record: &'s Cell<bool>) -> Self {
        Records { stream, here: [0; _], length: 0, given: 0, left: 0, is_within_record }
    }

    /// Until the head is here, and the body too if it is short; `false` at the end of the stream. May be dropped.
    async fn fill(&mut self) -> Result<bool, RecordError> {
        loop {
            let wanted = match self.body()? {
                None => HEAD_BYTES,
                Some(body) if body <= WHOLE_BYTES => HEAD_BYTES + body,
                Some(body) => {
                    self.left = body;
                    return Ok(true);
                }
            };
            let room = self.here.get_mut(self.length..wanted).unwrap_or_default();
            if room.is_empty() {
                return Ok(true);
            }
            match self.stream.read(room).await.map_err(|error| RecordError::Stream(error.kind()))? {
                0 => return Ok(false),
                read => self.length += read,
            }
        }
    }

    /// How long the body is, once the head says so.
    fn body(&self) -> Result<Option<usize>, RecordError> {
        if self.length < HEAD_BYTES {
            return Ok(None);
        }
        let [kind, major, _, high, low, ..] = self.here;
        let body = usize::from(u16::from_be_bytes([high, low]));
        let least = if kind == APPLICATION_DATA { ENCRYPTED_BYTES_MIN } else { 1 };
        let is_tls = (20..=APPLICATION_DATA).contains(&kind) && major == 3;
        if is_tls && (least..=RECORD_BYTES_MAX).contains(&body) { Ok(Some(body)) } else { Err(RecordError::NotTls) }
    }
}

impl<S: ErrorType> ErrorType for Records<'_, S> {
    type Error = RecordError;
}

impl<S: Read> Read for Records<'_, S> {
    async fn read(&mut self, into: &mut [u8]) -> Result<usize, RecordError> {
        if into.is_empty() {
            return Ok(0);
        }
        if self.given == 0 && !self.fill().await? {
            return Ok(0);
        }
        let read = if self.given < self.length {
            let here = self.here.get(self.given..self.length).unwrap_or_default();
            let read = here.len().min(into.len());
            into.iter_mut().zip(here).for_each(|(place, byte)| *place = *byte);
            self.given += read;
            read
        } else {
            let room = into.len().min(self.left);
            let room = into.get_mut(..room).unwrap_or_default();
            let read = self.stream.read(room).await.map_err(|error| RecordError::Stream(error.kind()))?;
            self.left = self.left.saturating_sub(read);
            read
        };
        let is_over = self.given == self.length && self.left == 0;
        self.is_within_record.set(!is_over);
        if is_over {
            (self.length, self.given) = (0, 0);
        }
        Ok(read)
    }
}

impl<S: Write> Write for Records<'_, S> {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, RecordError> {
        self.stream.write(bytes).await.map_err(|error| RecordError::Stream(error.kind()))
    }

    async fn flush(&mut self) -> Result<(), RecordError> {
        self.stream.flush().await.map_err(|error| RecordError::Stream(error.kind()))
    }
}
