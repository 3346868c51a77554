//! A bandwidth cap: a token bucket of bytes. Pure: time is an argument.

/// Bytes that may be sent, refilled at a rate, at most a second's worth in hand.
#[derive(Debug, Clone)]
pub struct Budget {
    /// `None`: no cap.
    bytes_per_s: Option<u64>,
    /// May go below zero: a request larger than what is in hand is sent whole and paid for afterwards.
    in_hand: i64,
    at_ms: u64,
}

impl Budget {
    pub fn new(bytes_per_s: Option<u64>, now_ms: u64) -> Self {
        let in_hand = bytes_per_s.map_or(0, |rate| rate.min(i64::MAX as u64) as i64);
        Budget { bytes_per_s, in_hand, at_ms: now_ms }
    }

    /// When something may be sent: now, or that many milliseconds from now.
    pub fn wait_ms(&mut self, now_ms: u64) -> u64 {
        let Some(rate) = self.bytes_per_s else { return 0 };
        let rate = rate.max(1);
        let passed = now_ms.saturating_sub(self.at_ms).min(60_000);
        // Milliseconds that earn less than a byte are left for the next call.
        let earned = rate.saturating_mul(passed) / 1000;
        if earned > 0 {
            self.at_ms = now_ms;
            self.in_hand = self.in_hand.saturating_add(earned as i64).min(rate as i64);
        }
        match self.in_hand {
            in_hand if in_hand > 0 => 0,
            owed => (owed.unsigned_abs() + 1).saturating_mul(1000).div_ceil(rate),
        }
    }

    /// Most bytes to ask for at once, so that what others wait for is never more than a second's worth.
    pub fn bytes_max(&self) -> usize {
        self.bytes_per_s.map_or(usize::MAX, |rate| rate.max(16 << 10) as usize)
    }

    pub fn spend(&mut self, bytes: usize) {
        if self.bytes_per_s.is_some() {
            self.in_hand = self.in_hand.saturating_sub(bytes as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_of_sending_stays_within_the_rate() {
        let (mut budget, mut sent, mut now) = (Budget::new(Some(1000), 0), 0, 0);
        while now < 60_000 {
            match budget.wait_ms(now) {
                0 => {
                    budget.spend(300);
                    sent += 300;
                }
                wait => now += wait,
            }
        }
        assert!((59_000..=62_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_link_that_was_idle_has_a_seconds_worth_and_no_more() {
        let mut budget = Budget::new(Some(1000), 0);
        assert_eq!(budget.wait_ms(50_000), 0);
        budget.spend(1000);
        assert!(budget.wait_ms(50_000) > 0);
    }

    #[test]
    fn without_a_cap_nothing_waits() {
        let mut budget = Budget::new(None, 0);
        budget.spend(usize::MAX);
        assert_eq!(budget.wait_ms(0), 0);
    }
}
