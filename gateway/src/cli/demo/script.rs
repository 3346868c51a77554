//! What happens when: the demo's outage, drawn from the seed. Pure.

use super::proxy::Fault;
use fastrand::Rng;
use std::time::Duration;

/// A step of the demo, from its start on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub at: Duration,
    pub does: Does,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Does {
    Fault(Fault),
    /// SIGKILL for the gateway, and a new start at once.
    Kill,
}

/// The steps of a demo of this length, in order. The first fifth and the last quarter are quiet.
///
/// Before the kill the proxy hides that the upstream is a Headwater with a batch door, so the gateway forwards by
/// PutRecords, where entries can fail one by one; after it, by batches.
pub fn script(seed: u64, length: Duration) -> Vec<Step> {
    let mut random = Rng::with_seed(seed);
    let mut first = [Fault::Throttle, Fault::Partial, Fault::AnswerLost];
    let mut last = [Fault::AnswerLost, Fault::ServerError];
    random.shuffle(&mut first);
    random.shuffle(&mut last);
    let jitter = |random: &mut Rng| (random.f64() - 0.5) * 0.02;
    let mut steps = Vec::new();
    let mut step = |share: f64, does: Does| steps.push(Step { at: length.mul_f64(share), does });
    for (at, fault) in [0.20, 0.29, 0.38].into_iter().zip(first) {
        step(at + jitter(&mut random), Does::Fault(fault));
    }
    step(0.47 + jitter(&mut random), Does::Fault(Fault::Refuse));
    step(0.53 + random.f64() * 0.04, Does::Kill);
    step(0.61 + jitter(&mut random), Does::Fault(last[0]));
    step(0.68 + jitter(&mut random), Does::Fault(last[1]));
    step(0.74 + jitter(&mut random), Does::Fault(Fault::None));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_and_one_kill_come_in_order_and_a_seed_repeats() {
        for seed in 0..50 {
            let steps = script(seed, Duration::from_secs(30));
            assert_eq!(steps, script(seed, Duration::from_secs(30)));
            assert!(steps.is_sorted_by_key(|step| step.at), "{steps:?}");
            assert_eq!(steps.iter().filter(|step| step.does == Does::Kill).count(), 1);
            for fault in [Fault::Throttle, Fault::Partial, Fault::AnswerLost, Fault::Refuse, Fault::ServerError] {
                assert!(steps.iter().any(|step| step.does == Does::Fault(fault)), "{fault:?} in {steps:?}");
            }
            assert_eq!(steps.last().map(|step| step.does), Some(Does::Fault(Fault::None)));
        }
    }
}
