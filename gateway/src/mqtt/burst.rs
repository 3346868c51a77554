//! What goes wrong is counted each time and logged once a burst (pure).

use std::collections::HashMap;

/// A burst ends when this long nothing was logged of its kind, in ms.
const QUIET_MS: u64 = 10_000;

/// Remembers when each kind of refusal was last logged. Bounded by the number of kinds.
#[derive(Debug, Default)]
pub struct Bursts(HashMap<&'static str, Burst>);

#[derive(Debug)]
struct Burst {
    logged_ms: u64,
    kept_back: u64,
}

impl Bursts {
    /// `Some(n)` if it is time for a line, which then speaks for `n` more that were kept back before it.
    pub fn note(&mut self, label: &'static str, now_ms: u64) -> Option<u64> {
        let Some(burst) = self.0.get_mut(label) else {
            self.0.insert(label, Burst { logged_ms: now_ms, kept_back: 0 });
            return Some(0);
        };
        if now_ms.saturating_sub(burst.logged_ms) < QUIET_MS {
            burst.kept_back += 1;
            return None;
        }
        burst.logged_ms = now_ms;
        Some(std::mem::take(&mut burst.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_one_line_and_the_next_line_tells_what_was_kept_back() {
        let mut bursts = Bursts::default();
        assert_eq!(bursts.note("quota", 0), Some(0));
        assert_eq!(bursts.note("malformed", 1), Some(0));
        assert_eq!(bursts.note("quota", 5), None);
        assert_eq!(bursts.note("quota", 9_999), None);
        assert_eq!(bursts.note("quota", 10_000), Some(2));
        assert_eq!(bursts.note("quota", 10_001), None);
    }
}
