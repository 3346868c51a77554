//! A part of a blob: an image or a clip that is sent in pieces and put together again at the gateway.

use crate::Malformed;
use crate::varint::{VARINT_BYTES_MAX, read, write};

/// Room for a chunk's head: offset, total, checksum.
pub const CHUNK_HEADER_BYTES_MAX: usize = 2 * VARINT_BYTES_MAX + 4;

/// A part of a blob. The envelope's epoch is the blob's id and its number the part's, counted from 1: a device's blobs
/// have numbers of their own beside its records.
///
/// ```text
/// offset varint | total varint | CRC-32 of the bytes u32 LE | bytes
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Where the bytes stand in the blob.
    pub offset: u64,
    /// How long the blob is, in bytes.
    pub total: u64,
    /// The bytes, at least one.
    pub bytes: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// Writes what stands in front of the bytes; `None` if it does not fit, else its length.
    pub fn write_head(&self, to: &mut [u8]) -> Option<usize> {
        let offset = write(self.offset, to)?;
        let total = write(self.total, to.get_mut(offset..)?)?;
        let at = offset + total;
        to.get_mut(at..at + 4)?.copy_from_slice(&crc32(0, self.bytes).to_le_bytes());
        Some(at + 4)
    }

    /// Reads a part and judges its checksum.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let (offset, rest) = read(body)?;
        let (total, rest) = read(rest)?;
        let (checksum, bytes) = rest.split_first_chunk::<4>().ok_or(Malformed::Short)?;
        let end = offset.checked_add(bytes.len() as u64).ok_or(Malformed::Range)?;
        if bytes.is_empty() || end > total {
            return Err(Malformed::Range);
        }
        if crc32(0, bytes) != u32::from_le_bytes(*checksum) {
            return Err(Malformed::Checksum);
        }
        Ok(Chunk { offset, total, bytes })
    }
}

/// CRC-32 (IEEE 802.3), four bits at a time: sixteen words of table, which a microcontroller can spare. `before` is the
/// checksum of what came before, 0 at the beginning.
pub fn crc32(before: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 16] = {
        let mut table = [0; 16];
        let mut at = 0;
        while at < 16 {
            let mut value = at as u32;
            let mut bit = 0;
            while bit < 4 {
                value = if value & 1 == 1 { (value >> 1) ^ 0xedb8_8320 } else { value >> 1 };
                bit += 1;
            }
            table[at] = value;
            at += 1;
        }
        table
    };
    let step = |sum: u32, nibble: u32| (sum >> 4) ^ TABLE[((sum ^ nibble) & 15) as usize];
    !bytes.iter().fold(!before, |sum, byte| step(step(sum, u32::from(*byte)), u32::from(*byte) >> 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_ethernet() {
        assert_eq!(crc32(0, b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(crc32(0, b"1234"), b"56789"), 0xcbf4_3926);
    }

    #[test]
    fn a_flipped_bit_is_seen() {
        let mut body = [0; 40];
        let chunk = Chunk { offset: 512, total: 600, bytes: b"picture" };
        let head = chunk.write_head(&mut body).unwrap();
        body[head..head + 7].copy_from_slice(b"picture");
        assert_eq!(Chunk::read(&body[..head + 7]), Ok(chunk));
        body[head + 3] ^= 4;
        assert_eq!(Chunk::read(&body[..head + 7]), Err(Malformed::Checksum));
        assert_eq!(Chunk::read(&body[..head]), Err(Malformed::Range));
    }
}
