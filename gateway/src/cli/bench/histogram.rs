//! Latencies in buckets that grow with the value: 32 to a doubling, so a percentile is right to 3 %.

use serde::Serialize;
use std::time::Duration;

const BUCKETS_PER_DOUBLING: usize = 32;
/// Up to 2^40 ns, about 18 minutes.
const DOUBLINGS: usize = 40;

pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

/// What a run reports, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    pub samples: u64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Histogram {
    pub fn new() -> Self {
        Histogram { buckets: vec![0; BUCKETS_PER_DOUBLING * DOUBLINGS], count: 0, max: 0 }
    }

    pub fn add(&mut self, value: Duration) {
        let ns = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        let last = self.buckets.len() - 1;
        self.buckets[bucket(ns).min(last)] += 1;
        self.count += 1;
        self.max = self.max.max(ns);
    }

    /// The upper edge of the bucket that holds the quantile, never above the largest value seen.
    fn quantile_ns(&self, quantile: f64) -> u64 {
        let rank = (self.count as f64 * quantile).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_edge(at).min(self.max);
            }
        }
        self.max
    }

    pub fn percentiles(&self) -> Percentiles {
        let ms = |ns: u64| (ns as f64 / 1000.0).round() / 1000.0;
        Percentiles {
            samples: self.count,
            p50: ms(self.quantile_ns(0.5)),
            p99: ms(self.quantile_ns(0.99)),
            max: ms(self.max),
        }
    }
}

fn bucket(ns: u64) -> usize {
    let ns = ns.max(BUCKETS_PER_DOUBLING as u64);
    let doubling = ns.ilog2() as usize - BUCKETS_PER_DOUBLING.ilog2() as usize;
    doubling * BUCKETS_PER_DOUBLING + (ns >> doubling) as usize - BUCKETS_PER_DOUBLING
}

fn upper_edge(bucket: usize) -> u64 {
    let (doubling, rest) = (bucket / BUCKETS_PER_DOUBLING, bucket % BUCKETS_PER_DOUBLING);
    (((BUCKETS_PER_DOUBLING + rest + 1) as u64) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_three_percent() {
        let mut histogram = Histogram::new();
        for us in 1..=10_000u64 {
            histogram.add(Duration::from_micros(us));
        }
        let Percentiles { samples, p50, p99, max } = histogram.percentiles();
        assert_eq!((samples, max), (10_000, 10.0));
        assert!((5.0..5.16).contains(&p50) && (9.9..10.0).contains(&p99) || p99 == 10.0, "{p50} {p99}");
        for ns in [0, 31, 32, 33, 1000, 123_456_789] {
            assert!(upper_edge(bucket(ns)) >= ns, "{ns}");
        }
    }
}
