//! How large a request may be on this link now. Pure: times are arguments.
//!
//! A request that takes minutes on a thin link would run into its timeout for ever, and a lost one would cost as much again.

/// The least bound, in bytes: 16 KiB takes 13 s at 10 kbit/s.
const BYTES_MIN: usize = 16 << 10;
const BYTES_MAX: usize = 64 << 20;
/// An answer that takes less lets requests grow; one that takes more makes them shrink.
const QUICK_MS: u64 = 1_000;
const SLOW_MS: u64 = 4_000;

#[derive(Debug, Clone)]
pub struct Pace {
    bytes_max: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { bytes_max: BYTES_MAX }
    }
}

impl Pace {
    /// The bound, under the destination's own.
    pub fn bytes_max(&self, limit: usize) -> usize {
        self.bytes_max.min(limit)
    }

    pub fn answered(&mut self, bytes: usize, took_ms: u64) {
        if took_ms > SLOW_MS {
            self.bytes_max = (bytes / 2).max(BYTES_MIN).min(self.bytes_max);
        } else if took_ms < QUICK_MS {
            self.bytes_max = self.bytes_max.saturating_mul(2).min(BYTES_MAX);
        }
    }

    /// The request went nowhere.
    pub fn failed(&mut self, bytes: usize) {
        self.bytes_max = (bytes / 2).max(BYTES_MIN).min(self.bytes_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_shrink_until_the_link_carries_them_and_stay_there() {
        // 50 KB/s, and a timeout of 15 s.
        let (mut pace, mut carried) = (Pace::default(), 0);
        for _ in 0..40 {
            let bytes = pace.bytes_max(2 << 20);
            let took_ms = bytes as u64 / 50;
            if took_ms > 15_000 {
                pace.failed(bytes);
            } else {
                pace.answered(bytes, took_ms);
                carried += 1;
            }
        }
        assert!(carried > 35, "{carried}");
        assert!((32 << 10..400 << 10).contains(&pace.bytes_max(2 << 20)), "{pace:?}");
    }

    #[test]
    fn a_good_link_is_used_in_full_again() {
        let mut pace = Pace::default();
        (0..20).for_each(|_| pace.failed(1000));
        assert_eq!(pace.bytes_max(2 << 20), BYTES_MIN);
        (0..20).for_each(|_| pace.answered(1000, 5));
        assert_eq!(pace.bytes_max(2 << 20), 2 << 20);
    }
}
