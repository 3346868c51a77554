//! What all connections together may keep in memory, so that a crowd that announces much, or takes nothing of what it is
//! sent, is bounded as a crowd and not only one by one (promise P6).
//!
//! Three budgets hold what comes in; each is asked before a buffer grows. What goes out is counted as it is held: when it
//! is much, everyone holds less and whoever sits on more than a little is let go; when it is too much, nothing more is read
//! for subscribers. Publishers and their acknowledgements never wait for any of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Semaphore;

/// CONNECT packets beyond the first buffer, of strangers: apart, so that they cannot use up what clients need. In KiB.
const HELLO_KIB: usize = 4 << 10;
/// Read buffers of busy connections. Without it a connection is slower, and nothing else. In KiB.
const BUSY_KIB: usize = 16 << 10;
/// Packets that do not fit a busy connection's buffer. In KiB.
const LARGE_KIB: usize = 32 << 10;
/// Bytes held for clients from which on everyone holds less.
const TIGHT_BYTES: usize = 12 << 20;
/// Bytes held for clients from which on nothing more is read for them.
const FULL_BYTES: usize = 24 << 20;

#[derive(Debug)]
pub struct Memory {
    pub hello: Arc<Semaphore>,
    pub busy: Arc<Semaphore>,
    pub large: Arc<Semaphore>,
    /// Connections that wait for room for a large packet.
    wanting: AtomicUsize,
    outgoing: AtomicUsize,
}

/// Counts a connection as waiting for room.
pub struct Wanting<'a>(&'a AtomicUsize);

impl Default for Memory {
    fn default() -> Self {
        Memory {
            hello: Arc::new(Semaphore::new(HELLO_KIB)),
            busy: Arc::new(Semaphore::new(BUSY_KIB)),
            large: Arc::new(Semaphore::new(LARGE_KIB)),
            wanting: AtomicUsize::new(0),
            outgoing: AtomicUsize::new(0),
        }
    }
}

impl Memory {
    pub fn want(&self) -> Wanting<'_> {
        self.wanting.fetch_add(1, Ordering::Relaxed);
        Wanting(&self.wanting)
    }

    /// Whether somebody waits for room that others have.
    pub fn is_wanted(&self) -> bool {
        self.wanting.load(Ordering::Relaxed) > 0
    }

    #[inline]
    pub fn is_tight(&self) -> bool {
        self.outgoing.load(Ordering::Relaxed) > TIGHT_BYTES
    }

    pub fn is_full(&self) -> bool {
        self.outgoing.load(Ordering::Relaxed) > FULL_BYTES
    }
}

/// Bytes that one holder keeps for a client; given back when dropped.
#[derive(Debug)]
pub struct Holding {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Holding {
    pub fn new(memory: Arc<Memory>) -> Self {
        Holding { memory, bytes: 0 }
    }

    #[inline]
    pub fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.memory.outgoing.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else if bytes < self.bytes {
            self.memory.outgoing.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn take_off(&mut self, bytes: usize) {
        self.set(self.bytes.saturating_sub(bytes));
    }

    pub fn add(&mut self, bytes: usize) {
        self.set(self.bytes + bytes);
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_and_given_back() {
        let memory = Arc::new(Memory::default());
        let mut one = Holding::new(memory.clone());
        let mut other = Holding::new(memory.clone());
        one.set(TIGHT_BYTES);
        assert!(!memory.is_tight());
        other.add(1);
        assert!(memory.is_tight() && !memory.is_full());
        other.set(FULL_BYTES);
        assert!(memory.is_full());
        one.set(0);
        assert!(memory.is_tight() && !memory.is_full());
        drop(other);
        assert!(!memory.is_tight());
        drop(one);
        assert_eq!(memory.outgoing.load(Ordering::Relaxed), 0);
    }
}
