//! Arrival times: (boot, milliseconds since that boot) in one u64, and the anchors that turn them into wall time.
//!
//! A box without a battery clock starts with a wrong wall time. So records carry the boot they came in and the time since
//! it began, and the wall time of a boot's zero is learnt once the clock can be trusted; nothing is rewritten for it.

use crate::clock::Clock;
use std::sync::{Arc, PoisonError, RwLock};

const MONO_BITS: u32 = 48;

/// One start of the machine: its kernel boot id and the wall time of its zero, 0 while unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    pub id: u128,
    pub zero_ms: u64,
}

impl Boot {
    /// A boot that records name and nobody knows any more.
    pub const UNKNOWN: Boot = Boot { id: 0, zero_ms: 0 };
}

/// The index of the boot that a stamp names.
pub fn boot_of(stamp: u64) -> u16 {
    (stamp >> MONO_BITS) as u16
}

/// Cheap to clone; clones share the anchors.
#[derive(Clone)]
pub struct Stamps {
    clock: Clock,
    boots: Arc<RwLock<Vec<Boot>>>,
    current: u16,
}

impl Stamps {
    /// `known` are the boots of the state database, by index. Returns the boots to be stored, if this one is new.
    pub fn new(clock: Clock, known: Vec<Boot>) -> (Stamps, Option<(u16, Boot)>) {
        let now = clock.now();
        let zero_ms = if now.trusted { now.wall_ms.saturating_sub(now.mono_ms) } else { 0 };
        let boot = Boot { id: clock.boot_id(), zero_ms };
        let mut boots = known;
        // The newest 65,536 starts are told apart; older ones share the last index.
        let at = boots.iter().position(|known| known.id == boot.id && known.id != 0);
        let (current, fresh) = match at {
            Some(at) => (at, boots[at].zero_ms == 0 && zero_ms != 0),
            None => {
                if boots.len() <= usize::from(u16::MAX) {
                    boots.push(boot);
                } else if let Some(last) = boots.last_mut() {
                    *last = boot;
                }
                (boots.len() - 1, true)
            }
        };
        if fresh {
            boots[current] = boot;
        }
        let entry = fresh.then_some((current as u16, boot));
        (Stamps { clock, boots: Arc::new(RwLock::new(boots)), current: current as u16 }, entry)
    }

    /// The stamp of this moment.
    pub fn now(&self) -> u64 {
        u64::from(self.current) << MONO_BITS | (self.clock.now().mono_ms & ((1 << MONO_BITS) - 1))
    }

    /// Milliseconds since 1970, as far as it is known. A boot whose clock was never set ended before the next one that is
    /// known began, so its records are said to have come then: what is too late keeps a record longer, too early would
    /// let it expire. With none after it, it came after the last one that is known.
    pub fn wall_ms(&self, stamp: u64) -> u64 {
        let (boot, mono) = ((stamp >> MONO_BITS) as usize, stamp & ((1 << MONO_BITS) - 1));
        let boots = self.boots.read().unwrap_or_else(PoisonError::into_inner);
        let known = |at: usize| boots.get(at).map(|boot| boot.zero_ms).filter(|zero| *zero > 0);
        if let Some(zero) = known(boot) {
            return zero + mono;
        }
        let later = (boot + 1..boots.len()).find_map(known);
        later.unwrap_or_else(|| mono + (0..boot.min(boots.len())).rev().find_map(known).unwrap_or(0))
    }

    /// Learns the wall time of this boot anew; returns what to store if it moved by a second or more.
    pub fn anchor(&self) -> Option<(u16, Boot)> {
        let now = self.clock.now();
        if !now.trusted {
            return None;
        }
        let zero_ms = now.wall_ms.saturating_sub(now.mono_ms);
        let mut boots = self.boots.write().unwrap_or_else(PoisonError::into_inner);
        let boot = boots.get_mut(usize::from(self.current))?;
        if boot.zero_ms.abs_diff(zero_ms) < 1_000 {
            return None;
        }
        boot.zero_ms = zero_ms;
        Some((self.current, *boot))
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}

impl Boot {
    pub fn to_bytes(self) -> bytes::Bytes {
        let mut value = Vec::with_capacity(24);
        value.extend_from_slice(&self.id.to_be_bytes());
        value.extend_from_slice(&self.zero_ms.to_be_bytes());
        value.into()
    }

    pub fn from_bytes(value: &[u8]) -> Option<Boot> {
        let id = u128::from_be_bytes(value.get(..16)?.try_into().ok()?);
        let zero_ms = u64::from_be_bytes(value.get(16..24)?.try_into().ok()?);
        Some(Boot { id, zero_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_an_untrusted_boot_gets_its_time_once_the_clock_is_set() {
        let clock = Clock::manual(7, 1_000_000);
        let (stamps, entry) = Stamps::new(clock.clone(), Vec::new());
        assert_eq!(entry, Some((0, Boot { id: 7, zero_ms: 0 })));
        let stamp = stamps.now();
        clock.advance(5_000);
        clock.jump_wall(1_800_000_000_000);
        assert_eq!(stamps.anchor(), Some((0, Boot { id: 7, zero_ms: 1_800_000_999_000 })));
        assert_eq!(stamps.wall_ms(stamp), 1_800_001_000_000, "the moment it came, not the moment the clock was set");
        assert_eq!(stamps.anchor(), None);
    }

    // A day without network on a board without a battery clock: its records used to count as of 1970, so that the first
    // start with a clock let all of them expire.
    #[test]
    fn records_of_a_boot_that_never_knew_the_time_are_as_young_as_they_can_be() {
        let known = Boot { id: 1, zero_ms: 1_800_000_000_000 };
        let never = Boot { id: 2, zero_ms: 0 };
        let (stamps, _) = Stamps::new(Clock::manual(3, 1_000_000), vec![known, never]);
        let stamp = (1 << MONO_BITS) | 7_000;
        assert_eq!(stamps.wall_ms(stamp), 1_800_000_007_000, "after the last boot that is known");
        let (stamps, entry) = Stamps::new(Clock::manual(3, 1_800_500_000_000), vec![known, never]);
        assert_eq!(entry, Some((2, Boot { id: 3, zero_ms: 1_800_499_999_000 })));
        assert_eq!(stamps.wall_ms(stamp), 1_800_499_999_000, "before the boot that followed it");
        assert_eq!(stamps.wall_ms(9_000), 1_800_000_009_000);
        assert_eq!(stamps.wall_ms(9 << MONO_BITS | 5), 1_800_499_999_005, "a boot of which nothing is left");
    }
}
