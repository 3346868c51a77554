//! The read and write buffers of a connection: small while it is quiet, large while it is busy, never without bound.

use super::codec::frame_bytes;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A quiet connection's read buffer, in bytes.
const QUIET_BYTES: usize = 2 << 10;
/// A busy connection's: what is beyond comes out of a budget that all share.
const BUSY_BYTES: usize = 64 << 10;
/// Reads that left most of the buffer empty before it is halved.
const SMALL_READS: u32 = 64;

/// Bytes that came in and are not decoded yet.
pub struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    small_reads: u32,
    /// Held while the buffer is larger than [`BUSY_BYTES`].
    large: Option<OwnedSemaphorePermit>,
}

/// The budget for large packets is used up.
#[derive(Debug)]
pub struct NoRoom;

impl Input {
    pub fn new() -> Self {
        Input { bytes: vec![0; QUIET_BYTES], start: 0, end: 0, small_reads: 0, large: None }
    }

    #[inline]
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    #[inline]
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
    }

    /// Where to read to; never empty after [`Input::prepare`].
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    /// `count` bytes came in.
    pub fn filled_more(&mut self, count: usize) {
        self.end += count;
        let len = self.bytes.len();
        if self.end == len && len < BUSY_BYTES {
            self.bytes.resize((len * 2).min(BUSY_BYTES), 0);
            self.small_reads = 0;
        } else if count < len / 4 {
            self.small_reads += 1;
        } else {
            self.small_reads = 0;
        }
    }

    /// Makes space for the rest of the packet at the front, whose size has been checked. `None` if that takes more than
    /// is ours: then [`Input::grow`].
    pub fn prepare(&mut self) -> Option<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.shrink();
        }
        let wanted = frame_bytes(self.filled()).unwrap_or(0);
        if self.end == self.bytes.len() || self.start + wanted > self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if wanted > self.bytes.len() && wanted <= BUSY_BYTES {
            self.bytes.resize(wanted.next_power_of_two(), 0);
        }
        (self.end < self.bytes.len() && wanted <= self.bytes.len()).then_some(())
    }

    /// Takes what the packet at the front needs out of the shared budget.
    pub async fn grow(&mut self, budget: &Arc<Semaphore>) -> Result<(), NoRoom> {
        let wanted = frame_bytes(self.filled()).unwrap_or(0).max(BUSY_BYTES + 1);
        let more_kib = wanted.div_ceil(1024);
        self.large = None;
        let permit = budget.clone().acquire_many_owned(u32::try_from(more_kib).map_err(|_| NoRoom)?);
        self.large = Some(permit.await.map_err(|_| NoRoom)?);
        if self.bytes.len() < wanted {
            self.bytes.reserve_exact(wanted - self.bytes.len());
            self.bytes.resize(wanted, 0);
        }
        Ok(())
    }

    /// Of an empty buffer.
    fn shrink(&mut self) {
        let len = self.bytes.len();
        if self.large.is_some() || len > BUSY_BYTES {
            self.bytes = vec![0; BUSY_BYTES];
            self.large = None;
        } else if self.small_reads >= SMALL_READS && len > QUIET_BYTES {
            self.bytes = vec![0; len / 2];
            self.small_reads = 0;
        }
    }
}

/// Bytes on their way out.
#[derive(Default)]
pub struct Output {
    pub bytes: Vec<u8>,
    written: usize,
}

/// What is kept of an empty write buffer, in bytes.
const IDLE_OUTPUT_BYTES: usize = 16 << 10;

impl Output {
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    pub fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn wrote(&mut self, count: usize) {
        self.written += count;
        if self.written >= self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(IDLE_OUTPUT_BYTES);
            self.written = 0;
        } else if self.written > self.bytes.len() / 2 {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(input: &mut Input, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            input.prepare().expect("fits");
            let space = input.space();
            let count = space.len().min(bytes.len() - at);
            space[..count].copy_from_slice(&bytes[at..at + count]);
            at += count;
            input.filled_more(count);
        }
    }

    #[test]
    fn a_busy_connection_gets_a_large_buffer_and_a_quiet_one_gives_it_back() {
        let mut input = Input::new();
        for _ in 0..10 {
            feed(&mut input, &[0xc0, 0].repeat(30_000));
            assert!(input.bytes.len() <= 2 * BUSY_BYTES);
            input.consume(60_000);
        }
        for _ in 0..1_000 {
            feed(&mut input, &[0xc0, 0]);
            input.consume(2);
        }
        assert_eq!(input.bytes.len(), QUIET_BYTES);
    }

    #[tokio::test]
    async fn a_large_packet_takes_from_the_budget_and_returns_it() {
        let budget = Arc::new(Semaphore::new(1024));
        let mut input = Input::new();
        // A PUBLISH of 200,000 bytes.
        feed(&mut input, &[0x30, 0xc0, 0x9a, 0x0c]);
        assert!(input.prepare().is_none());
        input.grow(&budget).await.unwrap();
        assert!(budget.available_permits() < 1024);
        feed(&mut input, &vec![0; 200_000]);
        assert_eq!(input.filled().len(), 200_004);
        input.consume(200_004);
        input.prepare().unwrap();
        assert_eq!(budget.available_permits(), 1024);
    }
}
