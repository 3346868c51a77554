//! A device's numbers on one connection: what is refused keeps what comes behind it out (pure).
//!
//! A device sends on while answers are on their way. Were the envelope behind a refused one taken, the refused number would
//! be below the mark when it comes again, and be dropped as a duplicate: marks only rise. So what is behind a refused number
//! is refused too, until that number comes again. A device that goes back behind what was refused since, and still does not
//! bring that number, has it no more: it is lost, and the rest is not kept waiting for it.

use headwater_wire::Envelope;

/// A gap larger than this is counted as if it were no larger: the number is a stranger's.
const LOST_MAX: u64 = 1 << 32;

/// The numbers of an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    pub epoch: u32,
    pub first: u64,
    pub last: u64,
}

impl Numbers {
    pub fn of(envelope: &Envelope<'_>) -> Self {
        Numbers { epoch: envelope.epoch, first: envelope.first, last: envelope.last() }
    }
}

/// One number space of a client: its records, or the parts of its blobs.
#[derive(Debug)]
pub struct Lane {
    /// The producer whose marks say what is kept.
    pub producer: u128,
    refused: Option<Refused>,
    last: Last,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused {
    epoch: u32,
    /// The number that has to come again.
    from: u64,
    /// The highest number that began an envelope which was refused since.
    seen: u64,
}

/// The last number that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    NotAsked,
    Unknown,
    Number { epoch: u32, number: u64 },
}

impl Lane {
    pub fn new(producer: u128) -> Self {
        Lane { producer, refused: None, last: Last::NotAsked }
    }

    /// Whether the envelope stands behind nothing that was refused. `answered`: its sender hears of it (QoS 1); what nobody
    /// hears of is not sent again and changes nothing here.
    pub fn admits(&mut self, numbers: &Numbers, answered: bool) -> bool {
        let Some(refused) = self.refused.as_mut().filter(|refused| refused.epoch == numbers.epoch) else { return true };
        if numbers.last < refused.from {
            return true;
        }
        if !answered {
            return false;
        }
        if numbers.first > refused.seen {
            refused.seen = numbers.first;
            return false;
        }
        self.refused = None;
        true
    }

    /// Envelopes of this epoch were refused; `from` is the first number of the first of them, `seen` that of the last.
    pub fn refuse(&mut self, epoch: u32, from: u64, seen: u64) {
        let before = self.refused.filter(|before| before.epoch == epoch);
        let (from, seen) = before.map_or((from, seen), |before| (from.min(before.from), seen.max(before.seen)));
        self.refused = Some(Refused { epoch, from, seen });
        if let Last::Number { epoch: of, number } = &mut self.last
            && *of == epoch
        {
            *number = (*number).min(from - 1);
        }
    }

    /// The envelope is taken: how many numbers there are between it and the one before, which the device has lost. `kept`
    /// says what an earlier connection has left.
    pub fn take(&mut self, numbers: &Numbers, kept: impl FnOnce() -> Option<(u32, u64)>) -> u64 {
        if self.last == Last::NotAsked {
            self.last = kept().map_or(Last::Unknown, |(epoch, number)| Last::Number { epoch, number });
        }
        let (lost, last) = match self.last {
            Last::Number { epoch, number } if epoch == numbers.epoch => {
                (numbers.first.saturating_sub(number.saturating_add(1)), number.max(numbers.last))
            }
            _ => (0, numbers.last),
        };
        self.last = Last::Number { epoch: numbers.epoch, number: last };
        lost.min(LOST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn n(first: u64, last: u64) -> Numbers {
        Numbers { epoch: 1, first, last }
    }

    #[test]
    fn what_is_behind_a_refused_number_waits_until_it_comes_again() {
        let mut lane = Lane::new(7);
        assert!(lane.admits(&n(1, 3), true));
        lane.refuse(1, 4, 4);
        assert!(!lane.admits(&n(7, 9), true));
        assert!(!lane.admits(&n(10, 10), true));
        assert!(lane.admits(&n(1, 3), true), "what is before it is taken, and lifts nothing");
        assert!(!lane.admits(&n(11, 11), true));
        assert!(lane.admits(&Numbers { epoch: 2, first: 9, last: 9 }, true), "another epoch has numbers of its own");
        assert!(lane.admits(&n(4, 6), true));
        assert!(lane.admits(&n(7, 9), true));
    }

    #[test]
    fn it_may_come_again_in_another_envelope() {
        let mut lane = Lane::new(7);
        lane.refuse(1, 4, 10);
        assert!(lane.admits(&n(2, 5), true));
        assert!(lane.admits(&n(6, 6), true));
    }

    // The device's memory was full and the oldest went: the number never comes.
    #[test]
    fn a_device_that_goes_back_without_the_number_is_not_kept_waiting() {
        let mut lane = Lane::new(7);
        lane.refuse(1, 4, 4);
        assert!(!lane.admits(&n(5, 5), true));
        assert!(!lane.admits(&n(6, 6), true));
        assert!(lane.admits(&n(5, 5), true));
        assert!(lane.admits(&n(6, 6), true));
        lane.refuse(1, 7, 7);
        assert!(!lane.admits(&n(8, 8), true), "this may be on its way since before the answer");
        assert!(lane.admits(&n(8, 8), true));
    }

    #[test]
    fn what_nobody_answers_neither_passes_nor_lifts() {
        let mut lane = Lane::new(7);
        lane.refuse(1, 4, 4);
        assert!(!lane.admits(&n(9, 9), false));
        assert!(!lane.admits(&n(4, 4), false));
        assert!(lane.admits(&n(3, 3), false));
        assert!(!lane.admits(&n(5, 5), true), "the one at QoS 0 was not seen");
    }

    #[test]
    fn numbers_that_are_left_out_are_counted_once() {
        let mut lane = Lane::new(7);
        assert_eq!(lane.take(&n(11, 12), || Some((1, 5))), 5);
        assert_eq!(lane.take(&n(13, 13), || panic!("asked once")), 0);
        assert_eq!(lane.take(&n(20, 29), || None), 6);
        assert_eq!(lane.take(&n(11, 12), || None), 0, "sent again");
        lane.refuse(1, 20, 20);
        assert_eq!(lane.take(&n(20, 29), || None), 0, "they were counted before they were refused");
        assert_eq!(lane.take(&Numbers { epoch: 2, first: 9, last: 9 }, || None), 0, "nothing is known of the epoch");
        assert_eq!(Lane::new(7).take(&n(9, 9), || None), 0);
        assert_eq!(Lane::new(7).take(&n(u64::MAX, u64::MAX), || Some((1, 1))), LOST_MAX);
    }

    proptest! {
        /// A device with a window, and a gateway that refuses as it likes: marks only rise, and nothing is swallowed.
        #[test]
        fn nothing_is_swallowed(refusals in prop::collection::vec(any::<bool>(), 1..200), window in 1usize..9) {
            let (mut lane, mut mark, mut refusals) = (Lane::new(1), 0u64, refusals.into_iter());
            let mut stored = Vec::new();
            let (mut oldest, last) = (1u64, 30u64);
            for _ in 0..400 {
                // The device sends a window from its oldest, and hears all answers.
                let mut acked = oldest;
                for number in oldest..=last.min(oldest + window as u64 - 1) {
                    let numbers = n(number, number);
                    let taken = lane.admits(&numbers, true) && !refusals.next().unwrap_or(false);
                    if !taken {
                        // A refusal of either kind: the lane was told, or told us.
                        if lane.refused.is_none() {
                            lane.refuse(1, number, number);
                        }
                        continue;
                    }
                    if number > mark {
                        mark = number;
                        stored.push(number);
                    }
                    if acked == number {
                        acked += 1;
                    }
                }
                oldest = acked;
            }
            prop_assert_eq!(stored, (1..=last).collect::<Vec<_>>());
        }
    }
}
