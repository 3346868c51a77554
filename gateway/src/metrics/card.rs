//! How long a memory card would last at the rate the gateway has written since its start.
//!
//! The assumption is an endurance of 32 GB x 1,000 full writes = 32 TB. Card makers seldom state one; those of "endurance"
//! cards state hours of video, which come to about 900 full writes and more (10,000 h of 26 Mbit/s on 128 GB are 117 TB).
//! A card that takes N full writes, or holds N times as much, lasts in proportion. See docs/operations.md.

use super::{Device, Metrics, NoLabel};
use crate::clock::Clock;
use std::path::Path;

/// What the assumed card takes before it wears out, in bytes.
const ENDURANCE_BYTES: u64 = 32_000_000_000 * 1_000;
/// Nothing is said before: a start, with its recovery, is not what the years will be like.
const SETTLE_MS: u64 = 5 * 60_000;
const DAY_MS: f64 = 86_400_000.0;

/// Bytes written since the start of the process, against the time since then.
#[derive(Debug)]
pub struct CardLife {
    clock: Clock,
    since_ms: u64,
    /// The device under the data directory, and what it had been written when we began.
    device: Option<(Device, u64)>,
}

impl CardLife {
    /// Begins to watch the device under a directory; without one that can be asked, our own counters have to do.
    pub fn watch(dir: &Path, clock: Clock) -> Self {
        let device = Device::under(dir).and_then(|device| Some((device.written_bytes()?, device)));
        CardLife { since_ms: clock.now().mono_ms, clock, device: device.map(|(before, device)| (device, before)) }
    }

    /// The gauge as it is now; it stays away until it can say something.
    pub fn show(&self, metrics: &Metrics) {
        let days = life_days(self.written(metrics), self.clock.now().mono_ms.saturating_sub(self.since_ms));
        match days {
            Some(days) => _ = metrics.card_life.get_or_create(&NoLabel {}).set(days),
            None => metrics.card_life.clear(),
        }
    }

    fn written(&self, metrics: &Metrics) -> u64 {
        let by_device = |(device, before): &(Device, u64)| Some(device.written_bytes()?.saturating_sub(*before));
        self.device.as_ref().and_then(by_device).unwrap_or_else(|| {
            metrics.journal_written.get() + metrics.segments_written.get() + metrics.blobs_written.get()
        })
    }
}

/// `None` while it is too early to tell, and where nothing was written at all.
fn life_days(written_bytes: u64, elapsed_ms: u64) -> Option<f64> {
    let known = elapsed_ms >= SETTLE_MS && written_bytes > 0;
    known.then(|| ENDURANCE_BYTES as f64 / written_bytes as f64 * elapsed_ms as f64 / DAY_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_lasts_as_long_as_its_full_writes_take() {
        // A tenth of a megabyte a second is 8.64 GB a day.
        let days = life_days(100_000 * 600, 600_000).unwrap();
        assert!((days - 32_000_000_000_000.0 / 8_640_000_000.0).abs() < 0.001, "{days}");
        assert_eq!(life_days(0, 600_000), None);
        assert_eq!(life_days(1 << 30, SETTLE_MS - 1), None, "a start is not a rate");
    }

    #[test]
    fn the_gauge_comes_after_some_minutes_and_follows_what_is_written() {
        let (metrics, clock) = (Metrics::new(), Clock::manual(1, 1_800_000_000_000));
        // A memory file system has no device that wears, so our own counters are asked.
        let life = CardLife::watch(Path::new("/proc"), clock.clone());
        assert!(life.device.is_none());
        let shown = || {
            life.show(&metrics);
            let text = metrics.render();
            let line = text.lines().find(|line| line.starts_with("headwater_card_life_days"))?;
            Some(line.rsplit(' ').next()?.parse::<f64>().unwrap())
        };
        metrics.journal_written.inc_by(6_000_000);
        metrics.segments_written.inc_by(2_000_000);
        metrics.blobs_written.inc_by(2_000_000);
        clock.advance(299_999);
        assert_eq!(shown(), None);
        clock.advance(1);
        // 10 MB in 5 minutes: 3.2 million times that long.
        let five_minutes_in_days = 300.0 / 86_400.0;
        let days = shown().unwrap();
        assert!((days - 3_200_000.0 * five_minutes_in_days).abs() < 1e-6, "{days}");
        metrics.journal_written.inc_by(10_000_000);
        assert!((shown().unwrap() - days / 2.0).abs() < 1e-6);
    }

    #[test]
    fn the_device_under_a_directory_is_asked_first() {
        let dir = tempfile::tempdir().unwrap();
        let life = CardLife::watch(dir.path(), Clock::manual(1, 1_800_000_000_000));
        // Not every machine that tests has a block device under its temporary directory.
        let Some((device, before)) = &life.device else { return };
        let metrics = Metrics::new();
        metrics.journal_written.inc_by(u64::MAX / 2);
        assert!(life.written(&metrics) < u64::MAX / 2, "{device:?} {before}");
    }
}
