//! The one place that reads a clock. Everything else takes time as an argument or through a [`Clock`].
//!
//! A Raspberry Pi has no battery clock, so a moment is first of all (boot, milliseconds since that boot); the wall time
//! of a boot is an anchor that the log learns once the wall clock can be trusted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A moment as the box sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the machine started, sleep included.
    pub mono_ms: u64,
    /// Milliseconds since 1970, as the box believes.
    pub wall_ms: u64,
    /// Whether the wall clock is worth believing: the kernel calls it synchronised, or it is not before this build.
    pub trusted: bool,
}

/// Where time comes from: the machine, or a test that steps it by hand.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System { boot_id: u128 },
    Manual { boot_id: u128, mono_ms: Arc<AtomicU64>, wall_base_ms: Arc<AtomicU64> },
}

/// 2026-01-01, before the first release: a wall clock that is earlier has not been set.
const EARLIEST_WALL_MS: u64 = 1_767_225_600_000;

impl Clock {
    pub fn system() -> Self {
        Clock(Source::System { boot_id: kernel_boot_id() })
    }

    /// A clock that stands still until [`Clock::advance`] moves it.
    pub fn manual(boot_id: u128, wall_ms: u64) -> Self {
        Clock(Source::Manual {
            boot_id,
            mono_ms: Arc::new(AtomicU64::new(1_000)),
            wall_base_ms: Arc::new(AtomicU64::new(wall_ms.saturating_sub(1_000))),
        })
    }

    /// Moves a manual clock; a system clock moves by itself.
    pub fn advance(&self, ms: u64) {
        if let Source::Manual { mono_ms, .. } = &self.0 {
            mono_ms.fetch_add(ms, Ordering::SeqCst);
        }
    }

    /// Makes the wall of a manual clock jump while the monotonic time goes on.
    pub fn jump_wall(&self, by_ms: i64) {
        if let Source::Manual { wall_base_ms, .. } = &self.0 {
            let moved = wall_base_ms.load(Ordering::SeqCst).saturating_add_signed(by_ms);
            wall_base_ms.store(moved, Ordering::SeqCst);
        }
    }

    /// Same for all moments between two starts of the machine.
    pub fn boot_id(&self) -> u128 {
        match &self.0 {
            Source::System { boot_id } | Source::Manual { boot_id, .. } => *boot_id,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn now(&self) -> Now {
        match &self.0 {
            Source::System { .. } => {
                let since_boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
                let wall = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .map_or(0, |d| d.as_millis() as u64);
                Now {
                    mono_ms: since_boot.tv_sec as u64 * 1000 + since_boot.tv_nsec as u64 / 1_000_000,
                    wall_ms: wall,
                    trusted: wall >= EARLIEST_WALL_MS,
                }
            }
            Source::Manual { mono_ms, wall_base_ms, .. } => {
                let mono_ms = mono_ms.load(Ordering::SeqCst);
                let wall_ms = wall_base_ms.load(Ordering::SeqCst) + mono_ms;
                Now { mono_ms, wall_ms, trusted: wall_ms >= EARLIEST_WALL_MS }
            }
        }
    }
}

fn kernel_boot_id() -> u128 {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .and_then(|text| u128::from_str_radix(&text.trim().replace('-', ""), 16).ok())
        .unwrap_or(0)
}
