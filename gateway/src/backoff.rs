//! How long to wait before the next try: exponential with full jitter. Pure: the chance is an argument.

/// Bounds of the wait, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub first_ms: u64,
    pub most_ms: u64,
}

impl Backoff {
    pub const DEFAULT: Backoff = Backoff { first_ms: 100, most_ms: 20_000 };
    /// Where a box answers that nobody listens: the question costs a packet and its answer is at hand, so it is asked often.
    pub const ABSENT: Backoff = Backoff { first_ms: 100, most_ms: 1_000 };

    /// The wait after `failures` in a row (at least one): anything between 0 and the doubled bound, by `chance`. Full
    /// jitter, because a fleet of gateways that lost one upstream must not come back in step.
    pub fn wait_ms(&self, failures: u32, chance: u64) -> u64 {
        let doubled = self.first_ms.saturating_mul(1 << failures.saturating_sub(1).min(30));
        let bound = doubled.min(self.most_ms);
        chance % (bound + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_the_most_and_the_jitter_is_full() {
        let backoff = Backoff { first_ms: 100, most_ms: 1000 };
        let most = |failures| (0..5000).map(|chance| backoff.wait_ms(failures, chance)).max().unwrap();
        assert_eq!([most(1), most(2), most(3), most(4), most(5), most(u32::MAX)], [100, 200, 400, 800, 1000, 1000]);
        assert_eq!((0..5000).map(|chance| backoff.wait_ms(9, chance)).min(), Some(0));
    }
}
