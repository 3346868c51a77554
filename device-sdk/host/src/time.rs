//! The time driver of `embassy-time`: one thread that wakes tasks, however many there are.
//!
//! A task has one alarm, the earliest it has asked for: it asks anew for the others whenever it runs.

use embassy_time_driver::Driver;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

struct HostTime {
    start: OnceLock<Instant>,
    alarms: Mutex<Option<Alarms>>,
    earlier: Condvar,
}

#[derive(Default)]
struct Alarms {
    /// When, and whose. A task is told by where its waker points: as long as a waker is kept nobody else has its place.
    queue: BTreeSet<(u64, usize)>,
    tasks: HashMap<usize, (u64, Waker)>,
}

embassy_time_driver::time_driver_impl!(static TIME: HostTime = HostTime {
    start: OnceLock::new(),
    alarms: Mutex::new(None),
    earlier: Condvar::new(),
});

impl Driver for HostTime {
    fn now(&self) -> u64 {
        ticks(self.start.get_or_init(Instant::now).elapsed())
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        let mut guard = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = guard.is_none();
        let alarms = guard.get_or_insert_default();
        if is_first {
            thread::Builder::new()
                .name("alarms".into())
                .spawn(|| TIME.wake_when_due())
                .expect("a thread for the clock");
        }
        let task = waker.data() as usize;
        if let Some((set, known)) = alarms.tasks.get(&task) {
            if *set <= at && known.will_wake(waker) {
                return;
            }
            alarms.queue.remove(&(*set, task));
        }
        let is_earliest = alarms.queue.first().is_none_or(|(first, _)| at < *first);
        alarms.queue.insert((at, task));
        alarms.tasks.insert(task, (at, waker.clone()));
        if is_earliest {
            self.earlier.notify_one();
        }
    }
}

impl HostTime {
    fn wake_when_due(&self) {
        let mut due = Vec::new();
        let mut guard = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = self.now();
            let alarms = guard.get_or_insert_default();
            while let Some((at, task)) = alarms.queue.first().copied()
                && at <= now
            {
                alarms.queue.remove(&(at, task));
                due.extend(alarms.tasks.remove(&task).map(|(_, waker)| waker));
            }
            let pause = alarms.queue.first().map(|(at, _)| duration(at - now)).unwrap_or(Duration::from_secs(3600));
            if !due.is_empty() {
                // A waker may ask for the next alarm at once.
                drop(guard);
                due.drain(..).for_each(Waker::wake);
                guard = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            guard = self.earlier.wait_timeout(guard, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn ticks(time: Duration) -> u64 {
    (time.as_nanos() * u128::from(embassy_time_driver::TICK_HZ) / 1_000_000_000) as u64
}

fn duration(ticks: u64) -> Duration {
    Duration::from_nanos((u128::from(ticks) * 1_000_000_000 / u128::from(embassy_time_driver::TICK_HZ)) as u64 + 1)
}
