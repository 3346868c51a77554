//! The board's clock for embassy-time: two CMSDK timers, no periodic tick.
//!
//! TIMER0 counts down from 2^32 at 25 MHz and starts again (every 171 s); what `now` has seen of it is added up in 64
//! bits, so somebody must look at least once in 85 s. TIMER1 is the alarm: it is set for the next timer in embassy's
//! queue, but never further than a minute away, which is also what keeps `now` looked at.

use core::cell::{Cell, RefCell};
use core::task::Waker;

use critical_section::{CriticalSection, Mutex};
use embassy_time_driver::{Driver, TICK_HZ};
use embassy_time_queue_utils::Queue;

use crate::board::{self, Irq};

const COUNTER: usize = 0x4000_0000;
const ALARM: usize = 0x4000_1000;
const CTRL: usize = 0x0;
const VALUE: usize = 0x4;
const RELOAD: usize = 0x8;
const INT_CLEAR: usize = 0xC;
const ENABLE: u32 = 1;
const INTERRUPT: u32 = 1 << 3;

/// Timer clocks in one embassy tick, which is a microsecond.
const CLOCKS: u64 = board::CLOCK_HZ / TICK_HZ;
const ALARM_MAX_TICKS: u64 = 60 * TICK_HZ;

struct Clock {
    /// All the clocks counted so far, and what the counter showed then.
    clocks: Mutex<Cell<(u64, u32)>>,
    queue: Mutex<RefCell<Queue>>,
}

embassy_time_driver::time_driver_impl!(static CLOCK: Clock = Clock {
    clocks: Mutex::new(Cell::new((0, 0))),
    queue: Mutex::new(RefCell::new(Queue::new())),
});

/// Starts the clock at zero. Before this, `now` is always zero and no alarm goes off.
pub fn init() {
    board::write(COUNTER + RELOAD, u32::MAX);
    board::write(COUNTER + CTRL, ENABLE);
    board::enable(Irq::TIMER1);
}

/// TIMER1 has run out.
pub fn on_alarm() {
    board::write(ALARM + CTRL, 0);
    board::write(ALARM + INT_CLEAR, 1);
    critical_section::with(|cs| CLOCK.set_alarm(cs));
}

impl Driver for Clock {
    fn now(&self) -> u64 {
        critical_section::with(|cs| {
            let (mut clocks, seen) = self.clocks.borrow(cs).get();
            let value = board::read(COUNTER + VALUE);
            let passed = seen.wrapping_sub(value);
            // A counter that seems to have run backwards by a rounding has not run for 171 s.
            if passed < u32::MAX / 2 {
                clocks += u64::from(passed);
                self.clocks.borrow(cs).set((clocks, value));
            }
            clocks / CLOCKS
        })
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        critical_section::with(|cs| {
            if self.queue.borrow(cs).borrow_mut().schedule_wake(at, waker) {
                self.set_alarm(cs);
            }
        })
    }
}

impl Clock {
    /// Wakes what is due and starts TIMER1 for what comes next. The timer stops itself in `on_alarm`.
    fn set_alarm(&self, cs: CriticalSection) {
        let now = self.now();
        let next = self.queue.borrow(cs).borrow_mut().next_expiration(now);
        let ticks = next.saturating_sub(now).clamp(1, ALARM_MAX_TICKS);
        board::write(ALARM + CTRL, 0);
        board::write(ALARM + RELOAD, (ticks * CLOCKS) as u32);
        board::write(ALARM + CTRL, ENABLE | INTERRUPT);
    }
}
