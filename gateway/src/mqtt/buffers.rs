//! The read and write buffers of a connection: small while it is quiet, large while it is busy, never without bound.

use super::codec::frame_bytes;
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// A quiet connection's read buffer, in bytes.
const QUIET_BYTES: usize = 2 << 10;
/// A busy connection's: what is beyond comes out of a budget that all share.
const BUSY_BYTES: usize = 64 << 10;
/// Reads that left most of the buffer empty before it is halved.
const SMALL_READS: u32 = 64;

/// Bytes that came in and are not decoded yet. What it has beyond a quiet connection's buffer is out of a budget.
pub struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    small_reads: u32,
    /// In KiB.
    budget: Arc<Semaphore>,
    /// Held while the buffer is larger than [`QUIET_BYTES`].
    held: Option<OwnedSemaphorePermit>,
}

impl Input {
    pub fn new(budget: Arc<Semaphore>) -> Self {
        Input { bytes: vec![0; QUIET_BYTES], start: 0, end: 0, small_reads: 0, budget, held: None }
    }

    /// From now on it grows out of another budget, and what it can give back to the first goes back.
    pub fn set_budget(&mut self, budget: Arc<Semaphore>) {
        self.budget = budget;
        if self.held.is_some() {
            self.shrink_to((self.filled().len() + 1).next_power_of_two());
            let more = kib(self.bytes.len() - QUIET_BYTES);
            if more > 0
                && let Ok(permit) = self.budget.clone().try_acquire_many_owned(more)
            {
                self.held = Some(permit);
            }
        }
    }

    /// Whether it has more than every connection has.
    pub fn is_large(&self) -> bool {
        self.held.is_some()
    }

    pub fn capacity(&self) -> usize {
        self.bytes.len()
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
            self.double();
            self.small_reads = 0;
        } else if count < len / 4 {
            self.small_reads += 1;
        } else {
            self.small_reads = 0;
        }
    }

    /// Makes space to read more. What a packet announces is not believed: the buffer grows with what has come. `None` if
    /// there is none without [`Input::grow`]. Room that the packet at the front does not need is not kept: one that never
    /// leaves the buffer empty would hold it for ever.
    pub fn prepare(&mut self) -> Option<()> {
        let (filled, len) = (self.end - self.start, self.bytes.len());
        let wanted = frame_bytes(self.filled()).unwrap_or(0);
        if filled == 0 {
            (self.start, self.end) = (0, 0);
        }
        if len > BUSY_BYTES && wanted.max(filled) <= BUSY_BYTES {
            self.shrink_to((filled + 1).next_power_of_two());
        } else if self.small_reads >= SMALL_READS && len > QUIET_BYTES && filled < len / 2 {
            self.small_reads = 0;
            self.shrink_to(len / 2);
        } else if self.end == len || self.start + wanted > len {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.bytes.len() && self.bytes.len() < BUSY_BYTES {
            self.double();
        }
        (self.end < self.bytes.len()).then_some(())
    }

    /// As far as the budget lasts.
    fn double(&mut self) {
        let len = (self.bytes.len() * 2).min(BUSY_BYTES);
        if let Ok(permit) = self.budget.clone().try_acquire_many_owned(kib(len - QUIET_BYTES)) {
            self.held = Some(permit);
            self.bytes.resize(len, 0);
        }
    }

    /// What the packet at the front needs, out of the budget for large packets: for [`Input::grow`].
    pub fn room(
        &self,
        budget: &Arc<Semaphore>,
    ) -> impl Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + use<> {
        budget.clone().acquire_many_owned(kib(self.wanted()))
    }

    /// Grows to what the packet at the front needs. What was held before goes back only now, when there is the rest: several
    /// that wait for each other are told so by their deadlines.
    pub fn grow(&mut self, room: OwnedSemaphorePermit) {
        let wanted = self.wanted();
        self.held = Some(room);
        self.bytes.reserve_exact(wanted - self.bytes.len());
        self.bytes.resize(wanted, 0);
    }

    /// Beyond what it has.
    fn wanted(&self) -> usize {
        frame_bytes(self.filled()).unwrap_or(0).max(self.bytes.len() + 1)
    }

    /// To a size that holds what is in it.
    fn shrink_to(&mut self, len: usize) {
        let len = len.clamp(QUIET_BYTES, BUSY_BYTES);
        let mut bytes = vec![0; len];
        let filled = self.end - self.start;
        bytes[..filled].copy_from_slice(self.filled());
        (self.bytes, self.start, self.end) = (bytes, 0, filled);
        let more = kib(len - QUIET_BYTES) as usize;
        self.held = self.held.take().and_then(|mut held| held.split(more)).filter(|_| more > 0);
    }
}

fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

/// Bytes on their way out: small ones in one piece, large payloads as they lie in memory, shared with whoever else is
/// owed them.
#[derive(Default)]
pub struct Output {
    pub bytes: Vec<u8>,
    written: usize,
    /// Payloads, and where in `bytes` they belong.
    shared: VecDeque<(usize, Bytes)>,
    shared_bytes: usize,
}

/// What is kept of an empty write buffer, in bytes.
const IDLE_OUTPUT_BYTES: usize = 4 << 10;
/// A payload of this size is not copied.
const SHARED_BYTES_MIN: usize = 8 << 10;

impl Output {
    /// What is to be written next.
    pub fn pending(&self) -> &[u8] {
        match self.shared.front() {
            Some((at, payload)) if *at == self.written => payload,
            Some((at, _)) => &self.bytes[self.written..*at],
            None => &self.bytes[self.written..],
        }
    }

    pub fn len(&self) -> usize {
        self.bytes.len() - self.written + self.shared_bytes
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn put_payload(&mut self, payload: &Bytes) {
        if payload.len() < SHARED_BYTES_MIN {
            return self.bytes.extend_from_slice(payload);
        }
        self.shared.push_back((self.bytes.len(), payload.clone()));
        self.shared_bytes += payload.len();
    }

    /// `count` bytes of [`Output::pending`] were written.
    pub fn wrote(&mut self, count: usize) {
        if let Some((at, payload)) = self.shared.front_mut()
            && *at == self.written
        {
            payload.advance(count);
            self.shared_bytes -= count;
            if payload.is_empty() {
                self.shared.pop_front();
            }
        } else {
            self.written += count;
        }
        if self.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(IDLE_OUTPUT_BYTES);
            self.written = 0;
        } else if self.written > self.bytes.len() / 2 {
            self.bytes.drain(..self.written);
            self.shared.iter_mut().for_each(|(at, _)| *at -= self.written);
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

    fn budget(kib: usize) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(kib))
    }

    #[test]
    fn a_busy_connection_gets_a_large_buffer_and_a_quiet_one_gives_it_back() {
        let budget = budget(100);
        let mut input = Input::new(budget.clone());
        for _ in 0..10 {
            feed(&mut input, &[0xc0, 0].repeat(30_000));
            assert_eq!(input.bytes.len(), BUSY_BYTES);
            assert_eq!(budget.available_permits(), 100 - 62);
            input.consume(60_000);
        }
        for _ in 0..1_000 {
            feed(&mut input, &[0xc0, 0]);
            input.consume(2);
        }
        assert_eq!(input.bytes.len(), QUIET_BYTES);
        assert_eq!(budget.available_permits(), 100);
    }

    #[tokio::test]
    async fn a_large_packet_takes_from_the_budget_once_much_of_it_has_come_and_returns_it() {
        let (busy, large) = (budget(100), budget(1024));
        let mut input = Input::new(busy.clone());
        // A PUBLISH of 200,000 bytes.
        feed(&mut input, &[0x30, 0xc0, 0x9a, 0x0c]);
        input.prepare().expect("its first bytes fit");
        assert_eq!(input.bytes.len(), QUIET_BYTES, "nothing is set aside for a promise");
        feed(&mut input, &vec![0; BUSY_BYTES - 4]);
        assert!(input.prepare().is_none());
        let room = input.room(&large).await.unwrap();
        input.grow(room);
        assert_eq!((busy.available_permits(), large.available_permits()), (100, 1024 - 196));
        feed(&mut input, &vec![0; 200_000 - (BUSY_BYTES - 4)]);
        assert_eq!(input.filled().len(), 200_004);
        input.consume(200_004);
        input.prepare().unwrap();
        assert_eq!(large.available_permits(), 1024);
    }

    #[tokio::test]
    async fn without_a_budget_a_connection_goes_on_with_a_small_buffer() {
        let (busy, large) = (budget(1), budget(1024));
        let mut input = Input::new(busy.clone());
        for _ in 0..100 {
            feed(&mut input, &[0xc0, 0].repeat(QUIET_BYTES / 2));
            input.consume(QUIET_BYTES);
        }
        assert_eq!(input.bytes.len(), QUIET_BYTES);
        // A PUBLISH of 5,000 bytes does not fit it.
        feed(&mut input, &[0x30, 0x88, 0x27]);
        feed(&mut input, &[0; QUIET_BYTES - 3]);
        assert!(input.prepare().is_none());
        let room = input.room(&large).await.unwrap();
        input.grow(room);
        feed(&mut input, &[0; 5_000 - (QUIET_BYTES - 3)]);
        assert_eq!(input.filled().len(), 5_003);
    }

    /// Whoever always leaves the first byte of the next packet behind must not keep what a large one has needed.
    #[tokio::test]
    async fn room_goes_back_though_the_buffer_is_never_empty() {
        let (hello, busy, large) = (budget(100), budget(100), budget(1024));
        let mut input = Input::new(hello.clone());
        // A CONNECT of 40,000 bytes.
        feed(&mut input, &[&[0x10, 0xc0, 0xb8, 0x02][..], &vec![0; 40_000], &[0x30]].concat());
        assert_eq!(hello.available_permits(), 100 - 62);
        input.consume(40_004);
        input.set_budget(busy.clone());
        assert_eq!((hello.available_permits(), busy.available_permits()), (100, 100));
        // The rest of a PUBLISH of 200,000 bytes, and the first byte of another.
        feed(&mut input, &[&[0xc0, 0x9a, 0x0c][..], &vec![0; BUSY_BYTES - 4]].concat());
        assert!(input.prepare().is_none());
        let room = input.room(&large).await.unwrap();
        input.grow(room);
        input.prepare().unwrap();
        feed(&mut input, &vec![0; 200_000 - (BUSY_BYTES - 4)]);
        input.consume(200_003);
        assert_eq!(large.available_permits(), 1024 - 196);
        input.prepare().unwrap();
        assert_eq!((input.filled().len(), large.available_permits(), busy.available_permits()), (1, 1024, 100));
        assert!(!input.is_large());
    }

    proptest::proptest! {
        #[test]
        fn what_is_put_comes_out_in_order_however_it_is_written(
            sizes in proptest::collection::vec((0usize..20_000, 0usize..40), 1..20),
            writes in proptest::collection::vec(1usize..9_000, 1..40),
        ) {
            let (mut output, mut expected, mut got) = (Output::default(), Vec::new(), Vec::new());
            let mut writes = writes.into_iter().cycle();
            let mut write = |output: &mut Output, got: &mut Vec<u8>| {
                let count = writes.next().unwrap_or(1).min(output.pending().len());
                assert!(count > 0 || output.is_empty());
                got.extend_from_slice(&output.pending()[..count]);
                output.wrote(count);
            };
            for (n, (payload, head)) in sizes.into_iter().enumerate() {
                let (payload, head) = (Bytes::from(vec![n as u8; payload]), vec![100 + n as u8; head]);
                output.bytes.extend_from_slice(&head);
                output.put_payload(&payload);
                expected.extend_from_slice(&head);
                expected.extend_from_slice(&payload);
                write(&mut output, &mut got);
                assert_eq!(output.len(), expected.len() - got.len());
            }
            while !output.is_empty() {
                write(&mut output, &mut got);
            }
            assert_eq!(got, expected);
        }
    }
}
