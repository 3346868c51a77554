//! embassy's executor with a sleep that QEMU sleeps at, too. embassy's own waits with WFE, which QEMU (7.2 and others)
//! emulates as nothing at all, so that an idle board would keep one of the host's processors busy; this one uses WFI.
//! Interrupts are masked from the last look at the flag to the sleep, and a masked interrupt still ends a WFI: so
//! nothing that wakes a task is slept through.

use core::sync::atomic::{AtomicBool, Ordering};

use embassy_executor::{Spawner, raw};
use static_cell::StaticCell;

static WOKEN: AtomicBool = AtomicBool::new(false);

/// Spawns the first tasks by `init` and runs them and theirs for ever.
pub fn run(init: impl FnOnce(Spawner)) -> ! {
    static EXECUTOR: StaticCell<raw::Executor> = StaticCell::new();
    let executor = EXECUTOR.init(raw::Executor::new(core::ptr::null_mut()));
    init(executor.spawner());
    loop {
        // SAFETY: initialised and polled only here, by the one thread.
        unsafe { executor.poll() };
        critical_section::with(|_| {
            if !WOKEN.swap(false, Ordering::Relaxed) {
                cortex_m::asm::wfi();
            }
        });
    }
}

/// What embassy calls when a task is to be polled; by this name it finds it.
#[unsafe(export_name = "__pender")]
fn pender(_executor: *mut ()) {
    WOKEN.store(true, Ordering::Relaxed);
}
