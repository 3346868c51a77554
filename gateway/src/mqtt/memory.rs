//! What all connections together may keep in memory, so that a crowd that announces much, or takes nothing of what it is
//! sent, is bounded as a crowd and not only one by one (promise P6).
//!
//! Four budgets hold what comes in; each is asked before a buffer grows. What goes out is counted as it is held: when it
//! is much, everyone holds less and whoever sits on more than a little is let go; when it is too much, nothing more is read
//! for subscribers, and whoever is counted at all has to take what it is sent or go. So it never stays too much. Publishers
//! and their acknowledgements never wait for any of it, but for an envelope that unpacks to much.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// CONNECT packets beyond the first buffer, of strangers: apart, so that they cannot use up what clients need. In KiB.
const HELLO_KIB: usize = 4 << 10;
/// Read buffers of busy connections. Without it a connection is slower, and nothing else. In KiB.
const BUSY_KIB: usize = 16 << 10;
/// Packets that do not fit a busy connection's buffer. In KiB.
const LARGE_KIB: usize = 32 << 10;
/// What envelopes were unpacked to and the log has not taken yet. In KiB.
const UNPACKED_KIB: usize = 16 << 10;
/// What a connection may always unpack in one turn, in bytes: it is not counted.
pub const UNPACKED_FREE_BYTES: usize = 16 << 10;
/// Bytes held for clients from which on everyone holds less.
const TIGHT_BYTES: usize = 12 << 20;
/// Bytes held for clients from which on nothing more is read for them.
const FULL_BYTES: usize = 24 << 20;
/// Turns that are read for subscribers at once: so many may go beyond the bound, each by one record.
const READS_MAX: usize = 4;
/// How often it is looked whether others have let go of memory.
const FULL_PAUSE: Duration = Duration::from_millis(50);
/// What a client may always have to take, in bytes: it is not counted.
pub const LIGHT_BYTES: usize = 4 << 10;
/// Whoever has more than this to take while memory is tight is let go after [`HEAVY_WITHIN_MS`].
pub const HEAVY_BYTES: usize = 32 << 10;
pub const HEAVY_WITHIN_MS: u64 = 5_000;

#[derive(Debug)]
pub struct Memory {
    pub hello: Arc<Semaphore>,
    pub busy: Arc<Semaphore>,
    pub large: Arc<Semaphore>,
    pub unpacked: Arc<Semaphore>,
    reads: Semaphore,
    /// Connections that wait for room for a large packet.
    wanting: AtomicUsize,
    outgoing: AtomicUsize,
}

/// Counts a connection as waiting for room.
pub struct Wanting(Arc<Memory>);

impl Default for Memory {
    fn default() -> Self {
        Memory {
            hello: Arc::new(Semaphore::new(HELLO_KIB)),
            busy: Arc::new(Semaphore::new(BUSY_KIB)),
            large: Arc::new(Semaphore::new(LARGE_KIB)),
            unpacked: Arc::new(Semaphore::new(UNPACKED_KIB)),
            reads: Semaphore::new(READS_MAX),
            wanting: AtomicUsize::new(0),
            outgoing: AtomicUsize::new(0),
        }
    }
}

impl Memory {
    pub fn want(self: &Arc<Self>) -> Wanting {
        self.wanting.fetch_add(1, Ordering::Relaxed);
        Wanting(self.clone())
    }

    /// Whether somebody waits for room that others have.
    pub fn is_wanted(&self) -> bool {
        self.wanting.load(Ordering::Relaxed) > 0
    }

    #[inline]
    pub fn is_tight(&self) -> bool {
        self.outgoing.load(Ordering::Relaxed) > TIGHT_BYTES
    }

    #[cfg(test)]
    pub fn outgoing_bytes(&self) -> usize {
        self.outgoing.load(Ordering::Relaxed)
    }

    #[inline]
    pub fn is_full(&self) -> bool {
        self.outgoing.load(Ordering::Relaxed) > FULL_BYTES
    }

    /// Leave to read one turn for a subscriber, while it is held: as soon as there is some. `None` cannot be, nobody closes
    /// it. Cancel-safe.
    pub async fn leave_to_read(&self) -> Option<SemaphorePermit<'_>> {
        loop {
            let leave = self.reads.acquire().await.ok()?;
            if !self.is_full() {
                return Some(leave);
            }
            drop(leave);
            tokio::time::sleep(FULL_PAUSE).await;
        }
    }

    /// The same, if there is some now.
    pub fn leave_to_read_now(&self) -> Option<SemaphorePermit<'_>> {
        self.reads.try_acquire().ok().filter(|_| !self.is_full())
    }
}

/// Bytes that are kept for clients in one place; given back when dropped.
#[derive(Debug)]
pub struct Holding {
    memory: Arc<Memory>,
    /// What the client they are kept for has in all.
    client: Option<Arc<AtomicUsize>>,
    bytes: usize,
}

/// Whether a client takes what is held for it, so that it goes on (pure).
#[derive(Debug, Default)]
pub struct Burden {
    held: usize,
    taken: usize,
    /// Since when it has how much to take.
    since: Option<(u64, usize)>,
}

impl Holding {
    pub fn new(memory: Arc<Memory>) -> Self {
        Holding { memory, client: None, bytes: 0 }
    }

    /// For one client, whose sum this is added to.
    pub fn of(memory: Arc<Memory>, client: Arc<AtomicUsize>) -> Self {
        Holding { memory, client: Some(client), bytes: 0 }
    }

    #[inline]
    pub fn set(&mut self, bytes: usize) {
        let all = [Some(&self.memory.outgoing), self.client.as_deref()];
        for count in all.into_iter().flatten() {
            if bytes > self.bytes {
                count.fetch_add(bytes - self.bytes, Ordering::Relaxed);
            } else if bytes < self.bytes {
                count.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            }
        }
        self.bytes = bytes;
    }

    pub fn take_off(&mut self, bytes: usize) {
        self.set(self.bytes.saturating_sub(bytes));
    }

    pub fn add(&mut self, bytes: usize) {
        self.set(self.bytes + bytes);
    }
}

impl Burden {
    /// So much is held for it now.
    #[inline]
    pub fn hold(&mut self, bytes: usize, now_ms: u64) {
        self.held = bytes;
        if bytes <= LIGHT_BYTES {
            self.since = None;
            self.taken = 0;
        } else if self.since.is_none_or(|(_, all)| self.taken >= all) {
            self.since = Some((now_ms, bytes));
            self.taken = 0;
        }
    }

    /// It, or its connection on its behalf, took so much of what was held one step further.
    #[inline]
    pub fn took(&mut self, bytes: usize) {
        self.taken += bytes;
    }

    pub fn is_any(&self) -> bool {
        self.since.is_some()
    }

    /// Whether it has not taken in time what others need the room of.
    pub fn is_overdue(&self, now_ms: u64, memory: &Memory) -> bool {
        let most = if memory.is_full() { LIGHT_BYTES } else { HEAVY_BYTES };
        let late = self.since.is_some_and(|(since_ms, _)| since_ms + HEAVY_WITHIN_MS <= now_ms);
        late && self.held > most && memory.is_tight()
    }
}

impl Drop for Wanting {
    fn drop(&mut self) {
        self.0.wanting.fetch_sub(1, Ordering::Relaxed);
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

    #[test]
    fn a_client_has_five_seconds_for_what_it_has_to_take_while_others_need_the_room() {
        let memory = Arc::new(Memory::default());
        let mut others = Holding::new(memory.clone());
        let mut burden = Burden::default();
        burden.hold(LIGHT_BYTES, 0);
        assert!(!burden.is_any());
        burden.hold(HEAVY_BYTES + 1, 1_000);
        assert!(!burden.is_overdue(60_000, &memory), "nobody needs it");
        others.set(TIGHT_BYTES + 1);
        assert!(!burden.is_overdue(5_999, &memory));
        assert!(burden.is_overdue(6_000, &memory));
        // What keeps coming is another five seconds if what was there is gone.
        burden.took(HEAVY_BYTES + 1);
        burden.hold(HEAVY_BYTES + 1, 4_000);
        assert!(!burden.is_overdue(8_999, &memory));
        // A trickle is not enough.
        burden.took(100);
        burden.hold(HEAVY_BYTES + 1, 8_000);
        assert!(burden.is_overdue(9_000, &memory));
        // Less is let be until there is no room at all: then it counts too, or many with little would be in everyone's way.
        burden.hold(HEAVY_BYTES, 9_000);
        assert!(!burden.is_overdue(9_000, &memory));
        others.set(FULL_BYTES + 1);
        assert!(burden.is_overdue(9_000, &memory));
    }
}
