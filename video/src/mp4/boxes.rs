//! Writes boxes: a box is opened with its type, filled by a closure, and its size is set when the closure returns.
//!
//! It knows no box in particular: those are in `init`, `entry` and `media`. Pure.

/// Bytes of boxes. A box is less than 4 GiB: who writes an `mdat` checks its length before.
#[derive(Default)]
pub(super) struct Boxes {
    out: Vec<u8>,
}

impl Boxes {
    pub fn with_capacity(bytes: usize) -> Boxes {
        Boxes { out: Vec::with_capacity(bytes) }
    }

    pub fn finish(self) -> Vec<u8> {
        self.out
    }

    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// ISO/IEC 14496-12 4.2: size and type, then what is in it.
    pub fn open(&mut self, kind: &[u8; 4], body: impl FnOnce(&mut Boxes)) {
        let start = self.out.len();
        self.u32(0);
        self.bytes(kind);
        body(self);
        self.patch(start, (self.out.len() - start) as u32);
    }

    /// A box with version and flags.
    pub fn full(&mut self, kind: &[u8; 4], version: u8, flags: u32, body: impl FnOnce(&mut Boxes)) {
        self.open(kind, |boxes| {
            boxes.u32(u32::from(version) << 24 | flags & 0x00ff_ffff);
            body(boxes);
        });
    }

    /// Sets four bytes that were written before.
    pub fn patch(&mut self, at: usize, value: u32) {
        if let Some(place) = self.out.get_mut(at..at + 4) {
            place.copy_from_slice(&value.to_be_bytes());
        }
    }

    pub fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub fn zeros(&mut self, count: usize) {
        self.out.resize(self.out.len() + count, 0);
    }
}
