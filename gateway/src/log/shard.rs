//! One shard: its range of the key space, its numbers, and what of it is in memory.

use super::window::{Run, Window};
use crate::record::{HashKey, Number, ShardIndex};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Laws: `trimmed <= folded + 1`, `folded <= durable <= assigned <= reserved`. All but `assigned` and `reserved` concern
/// records that are on disk.
pub struct Shard {
    pub index: ShardIndex,
    /// First and last hash key, both included.
    pub range: (HashKey, HashKey),
    first_number: Number,
    /// Last number given. Changed under the door's lock only.
    assigned: AtomicU64,
    /// Numbers up to here may be given; durable before it is used (crash rule 6).
    reserved: AtomicU64,
    /// Lowest number still there.
    trimmed: AtomicU64,
    window: Mutex<Window>,
    durable: watch::Sender<Number>,
}

impl Shard {
    pub(super) fn new(index: ShardIndex, range: (HashKey, HashKey), first_number: Number) -> Self {
        let last = first_number - 1;
        Shard {
            index,
            range,
            first_number,
            assigned: AtomicU64::new(last),
            reserved: AtomicU64::new(last),
            trimmed: AtomicU64::new(first_number),
            window: Mutex::new(Window::default()),
            durable: watch::channel(last).0,
        }
    }

    /// The lowest number still there (or the next to be given, if the shard is empty).
    pub fn oldest(&self) -> Number {
        self.trimmed.load(Ordering::Acquire)
    }

    /// The newest durable number; below [`Shard::first_number`] if there was none ever.
    pub fn newest(&self) -> Number {
        *self.durable.borrow()
    }

    /// First number ever given, for the sequence number range of a shard's description.
    pub fn first_number(&self) -> Number {
        self.first_number
    }

    pub(super) fn watch(&self) -> watch::Receiver<Number> {
        self.durable.subscribe()
    }

    pub(super) fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn assigned(&self) -> Number {
        self.assigned.load(Ordering::Relaxed)
    }

    pub(super) fn reserved(&self) -> Number {
        self.reserved.load(Ordering::Relaxed)
    }

    pub(super) fn reserve_up_to(&self, number: Number) {
        self.reserved.fetch_max(number, Ordering::Relaxed);
    }

    /// Gives `count` numbers; returns the first. The door's lock is held and has checked the reserve.
    pub(super) fn assign(&self, count: u32) -> Number {
        let first = self.assigned() + 1;
        let last = self.assigned() + u64::from(count);
        assert!(last <= self.reserved(), "number law: assigned <= reserved");
        self.assigned.store(last, Ordering::Relaxed);
        first
    }

    /// Leaves out numbers up to `last`: they will never be given.
    pub(super) fn jump_to(&self, last: Number) {
        self.assigned.fetch_max(last, Ordering::Relaxed);
    }

    /// Makes a run visible to readers; its group is synced. Returns the memory it takes.
    pub(super) fn publish(&self, run: Run) -> usize {
        let last = run.last();
        let mut window = self.window();
        assert!(run.first > *self.durable.borrow(), "number law: a durable number is not given again");
        let taken = window.push(run);
        drop(window);
        self.durable.send_replace(last);
        taken
    }

    /// The stream is deleted: wakes readers, returns the memory freed.
    pub(super) fn close(&self) -> usize {
        let freed = self.window().close();
        self.durable.send_modify(|_| {});
        freed
    }

    /// Recovery: what the segments hold.
    pub(super) fn restore(&self, folded: Number) {
        self.assigned.fetch_max(folded, Ordering::Relaxed);
        self.reserved.fetch_max(folded, Ordering::Relaxed);
        let mut window = self.window();
        window.folded = window.folded.max(folded);
        drop(window);
        self.durable.send_if_modified(|durable| {
            let newer = folded > *durable;
            *durable = (*durable).max(folded);
            newer
        });
    }

    /// Recovery: a run of the journal that no segment holds whole.
    pub(super) fn replay(&self, run: Run) {
        let last = run.last();
        self.window().push(run);
        self.assigned.fetch_max(last, Ordering::Relaxed);
        self.reserved.fetch_max(last, Ordering::Relaxed);
        self.durable.send_replace(last);
    }

    /// Recovery: numbers up to `last` were durable and are lost. They are given to nobody else, and readers are told.
    pub(super) fn lose_up_to(&self, last: Number) {
        self.assigned.fetch_max(last, Ordering::Relaxed);
        self.reserved.fetch_max(last, Ordering::Relaxed);
        self.durable.send_replace(last.max(self.newest()));
    }

    pub(super) fn trim_to(&self, oldest: Number) {
        self.trimmed.fetch_max(oldest, Ordering::AcqRel);
    }
}
