//! The closing audit: what was sent, against what both logs really hold. Pure; the logs are read by `mod.rs`.
//!
//! Counters are not asked. A record counts only if its key and its bytes are what that device made at that number.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What a device says of itself: it sent the numbers `1..=sent`, and all but these were acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub sent: u64,
    pub unacknowledged: BTreeSet<u64>,
}

/// A record as a log holds it, in the order of its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Message `number` of the device, byte for byte.
    Message { device: u32, number: u64 },
    /// Something that no device sent.
    Alien,
}

/// The closing line. Good if all that was sent was acknowledged and the last four are 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    pub sent: u64,
    pub acked: u64,
    /// Different messages in the gateway's log.
    pub stored: u64,
    /// Different messages in the upstream's log.
    pub upstream: u64,
    /// Acknowledged messages that one of the logs does not hold, and stored ones that the upstream does not hold.
    pub lost: u64,
    /// Second and further copies, in either log.
    pub duplicated: u64,
    /// Messages whose first copy stands behind a later one of the same device, in either log.
    pub reordered: u64,
    /// Records in either log that no device sent.
    pub altered: u64,
}

impl Audit {
    /// What is wrong, if anything. A gateway that acknowledges nothing loses nothing either, so that is a fault too.
    pub fn fault(&self) -> Option<String> {
        let open = self.sent - self.acked;
        if (self.lost, self.duplicated, self.reordered, self.altered) != (0, 0, 0, 0) {
            Some("the audit failed".to_owned())
        } else if open > 0 || self.sent == 0 {
            Some(format!("{open} of {} messages were never acknowledged", self.sent))
        } else {
            None
        }
    }

    pub fn line(&self) -> String {
        let Audit { sent, acked, stored, upstream, lost, duplicated, reordered, altered } = self;
        let altered = if *altered == 0 { String::new() } else { format!(" altered={altered}") };
        format!(
            "sent={sent} acked={acked} stored={stored} upstream={upstream} lost={lost} duplicated={duplicated} reordered={reordered}{altered}"
        )
    }
}

/// Judges both logs; each is a list of shards, each in its order.
pub fn audit(devices: &BTreeMap<u32, Sent>, gateway: &[Vec<Found>], upstream: &[Vec<Found>]) -> Audit {
    let (stored, delivered) = (Census::take(devices, gateway), Census::take(devices, upstream));
    let mut audit = Audit {
        stored: stored.count(),
        upstream: delivered.count(),
        duplicated: stored.duplicated + delivered.duplicated,
        reordered: stored.reordered + delivered.reordered,
        altered: stored.altered + delivered.altered,
        ..Audit::default()
    };
    for (device, sent) in devices {
        audit.sent += sent.sent;
        audit.acked += sent.sent - sent.unacknowledged.len() as u64;
        for number in 1..=sent.sent {
            let owed = !sent.unacknowledged.contains(&number) || stored.holds(*device, number);
            if owed && !(stored.holds(*device, number) && delivered.holds(*device, number)) {
                audit.lost += 1;
            }
        }
    }
    audit
}

/// What one log holds.
#[derive(Default)]
struct Census {
    seen: BTreeMap<u32, BTreeSet<u64>>,
    duplicated: u64,
    reordered: u64,
    altered: u64,
}

impl Census {
    fn take(devices: &BTreeMap<u32, Sent>, shards: &[Vec<Found>]) -> Census {
        let mut census = Census::default();
        for found in shards.iter().flatten() {
            match *found {
                Found::Message { device, number } if devices.get(&device).is_some_and(|sent| number <= sent.sent) => {
                    let seen = census.seen.entry(device).or_default();
                    // A device's records are all in one shard, so what was seen of it before stands in front of this.
                    let late = seen.last().is_some_and(|last| number < *last);
                    match seen.insert(number) {
                        true => census.reordered += u64::from(late),
                        false => census.duplicated += 1,
                    }
                }
                _ => census.altered += 1,
            }
        }
        census
    }

    fn count(&self) -> u64 {
        self.seen.values().map(|numbers| numbers.len() as u64).sum()
    }

    fn holds(&self, device: u32, number: u64) -> bool {
        self.seen.get(&device).is_some_and(|numbers| numbers.contains(&number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> BTreeMap<u32, Sent> {
        let sent = |sent, open: &[u64]| Sent { sent, unacknowledged: open.iter().copied().collect() };
        BTreeMap::from([(1, sent(3, &[])), (2, sent(2, &[2]))])
    }

    fn shard(messages: &[(u32, u64)]) -> Vec<Found> {
        messages.iter().map(|&(device, number)| Found::Message { device, number }).collect()
    }

    /// Device 2's number 2 was neither acknowledged nor stored, which is nobody's loss.
    fn whole() -> Vec<Vec<Found>> {
        vec![shard(&[(1, 1), (1, 2), (1, 3)]), shard(&[(2, 1)])]
    }

    #[test]
    fn two_whole_logs_are_good_if_all_was_acknowledged() {
        let mut answered = devices();
        answered.insert(2, Sent { sent: 1, ..Sent::default() });
        let good = audit(&answered, &whole(), &whole());
        assert_eq!(good.fault(), None);
        assert_eq!(good.line(), "sent=4 acked=4 stored=4 upstream=4 lost=0 duplicated=0 reordered=0");
        let open = audit(&devices(), &whole(), &whole());
        assert_eq!(open.line(), "sent=5 acked=4 stored=4 upstream=4 lost=0 duplicated=0 reordered=0");
        assert_eq!(open.fault().as_deref(), Some("1 of 5 messages were never acknowledged"));
        assert!(audit(&BTreeMap::new(), &[], &[]).fault().is_some(), "nothing was shown");
    }

    #[test]
    fn a_missing_record_is_lost_wherever_it_is_missing() {
        let broken = [shard(&[(1, 1), (1, 3)]), shard(&[(2, 1)])];
        assert_eq!(audit(&devices(), &broken, &whole()).lost, 1);
        assert_eq!(audit(&devices(), &whole(), &broken).lost, 1);
        assert_eq!(audit(&devices(), &broken, &broken).lost, 1);
        assert_eq!(audit(&devices(), &[], &[]).lost, 4);
    }

    #[test]
    fn what_was_stored_without_an_acknowledgement_is_owed_to_the_upstream() {
        let stored = [shard(&[(1, 1), (1, 2), (1, 3)]), shard(&[(2, 1), (2, 2)])];
        assert_eq!(audit(&devices(), &stored, &whole()).lost, 1);
        assert_eq!(audit(&devices(), &stored, &stored).lost, 0);
    }

    #[test]
    fn a_second_copy_is_a_duplicate_and_not_a_reordering() {
        let broken = [shard(&[(1, 1), (1, 2), (1, 3), (1, 1)]), shard(&[(2, 1)])];
        let audit = audit(&devices(), &broken, &whole());
        assert_eq!((audit.lost, audit.duplicated, audit.reordered), (0, 1, 0));
        assert_eq!(audit.fault().as_deref(), Some("the audit failed"));
    }

    #[test]
    fn a_record_behind_a_later_one_is_reordered() {
        let broken = [shard(&[(1, 1), (1, 3), (1, 2)]), shard(&[(2, 1)])];
        let audit = audit(&devices(), &whole(), &broken);
        assert_eq!((audit.lost, audit.duplicated, audit.reordered), (0, 0, 1));
        assert_eq!(audit.fault().as_deref(), Some("the audit failed"));
    }

    #[test]
    fn records_that_nobody_sent_are_told() {
        for alien in [Found::Alien, Found::Message { device: 1, number: 4 }, Found::Message { device: 9, number: 1 }] {
            let mut broken = whole();
            broken[0].push(alien);
            let audit = audit(&devices(), &broken, &whole());
            assert_eq!(audit.altered, 1);
            assert!(audit.fault().is_some() && audit.line().ends_with("altered=1"), "{}", audit.line());
        }
    }
}
