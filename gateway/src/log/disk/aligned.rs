//! A growing byte buffer that starts at a page boundary of memory, as writes past the page cache want it.

use super::PAGE_BYTES;

/// Filled from the front like a `Vec<u8>`. It over-allocates by a page and starts where the address is aligned, so no
/// unsafe code is needed.
#[derive(Default)]
pub struct AlignedBuf {
    /// All of it initialised: the slack before `start`, the bytes, and room after them.
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    pub fn with_capacity(bytes: usize) -> Self {
        let memory = vec![0; bytes.next_multiple_of(PAGE_BYTES) + PAGE_BYTES];
        let start = memory.as_ptr().addr().next_multiple_of(PAGE_BYTES) - memory.as_ptr().addr();
        AlignedBuf { memory, start, len: 0 }
    }

    /// `len` zeros, to be filled through [`AlignedBuf::as_mut_slice`].
    pub fn zeroed(len: usize) -> Self {
        let mut buf = AlignedBuf::with_capacity(len);
        buf.len = len;
        buf
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes it can hold without moving.
    pub fn capacity(&self) -> usize {
        self.memory.len().saturating_sub(self.start)
    }

    /// Forgets the bytes and keeps the room.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        let at = self.start + self.len;
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends zeros up to `len`; nothing when it is that long already.
    pub fn pad_to(&mut self, len: usize) {
        if len > self.len {
            self.reserve(len - self.len);
            self.memory[self.start + self.len..self.start + len].fill(0);
            self.len = len;
        }
    }

    /// Appends zeros up to the next page boundary.
    pub fn pad_to_page(&mut self) {
        self.pad_to(self.len.next_multiple_of(PAGE_BYTES));
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    fn reserve(&mut self, more: usize) {
        let wanted = self.len + more;
        if wanted > self.capacity() {
            let mut larger = AlignedBuf::with_capacity(wanted.max(self.capacity() * 2));
            larger.len = self.len;
            larger.as_mut_slice().copy_from_slice(self.as_slice());
            *self = larger;
        }
    }
}

impl std::io::Write for AlignedBuf {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(super) fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(PAGE_BYTES) && bytes.len().is_multiple_of(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_aligned_while_it_grows_and_keeps_its_bytes() {
        let mut buf = AlignedBuf::default();
        let mut plain = Vec::new();
        for i in 0..3_000u32 {
            buf.extend_from_slice(&i.to_le_bytes());
            plain.extend_from_slice(&i.to_le_bytes());
            assert!(buf.as_slice().as_ptr().addr().is_multiple_of(PAGE_BYTES));
        }
        assert_eq!(buf.as_slice(), plain);
        buf.pad_to_page();
        assert_eq!(buf.len(), plain.len().next_multiple_of(PAGE_BYTES));
        assert!(buf.as_slice()[plain.len()..].iter().all(|b| *b == 0));
    }

    #[test]
    fn padding_is_zero_also_where_old_bytes_were() {
        let mut buf = AlignedBuf::with_capacity(PAGE_BYTES);
        buf.extend_from_slice(&[7; 100]);
        buf.clear();
        buf.extend_from_slice(&[9; 10]);
        buf.pad_to_page();
        assert!(buf.as_slice()[10..].iter().all(|b| *b == 0));
    }
}
