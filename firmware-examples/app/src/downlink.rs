//! What the gateway may ask of the device: another interval, a sign of life, more or less log.
//!
//! The SDK calls this from inside its connection, so nothing here waits: what takes time is left in a signal, where the
//! loop that owns the hardware finds it. Only the newest wish counts. Bytes come from far away and are bounded here.

use core::str::FromStr;

use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::signal::Signal;
use embassy_time::{Duration, Instant};
use headwater_device::Downlink;
use log::LevelFilter;

/// From one reading to the next, unless the gateway's configuration says otherwise.
pub const INTERVAL: Duration = Duration::from_secs(10);
const INTERVAL_S_MAX: u64 = 24 * 60 * 60;

/// The interval that was asked for.
pub static NEW_INTERVAL: Signal<CriticalSectionRawMutex, Duration> = Signal::new();
/// Somebody wants to see which device this is.
pub static BLINK: Signal<CriticalSectionRawMutex, ()> = Signal::new();

pub struct Wishes;

impl Downlink for Wishes {
    fn config(&mut self, config: &[u8]) {
        match interval(config) {
            Some(interval) => NEW_INTERVAL.signal(interval),
            None => log::warn!("a configuration without interval_s=1 to {INTERVAL_S_MAX} changes nothing"),
        }
    }

    fn command(&mut self, command: &[u8], answer: &mut [u8]) -> usize {
        match command.trim_ascii() {
            b"ping" => pong(Instant::now(), answer),
            b"blink" => {
                BLINK.signal(());
                put(answer, b"blinking")
            }
            _ => put(answer, b"unknown command; there are: ping, blink"),
        }
    }

    fn log_level(&mut self, level: &str) {
        match LevelFilter::from_str(level.trim()) {
            // SAFETY: nobody else sets the level once the board has set its logger. The safe function is not there for
            // the Cortex-M0+, which has no compare-and-swap.
            Ok(level) => unsafe { log::set_max_level_racy(level) },
            Err(_) => log::warn!("a log level is one of off, error, warn, info, debug, trace"),
        }
    }
}

/// The value of `interval_s` in lines of `key=value`; keys of other firmware versions are left alone.
fn interval(config: &[u8]) -> Option<Duration> {
    let text = core::str::from_utf8(config).ok()?;
    let mut values = text.lines().filter_map(|line| line.split_once('='));
    let (_, value) = values.find(|(key, _)| key.trim() == "interval_s")?;
    let seconds = value.trim().parse::<u64>().ok()?;
    (1..=INTERVAL_S_MAX).contains(&seconds).then(|| Duration::from_secs(seconds))
}

/// `pong`, and for how many seconds the device has been up.
fn pong(now: Instant, answer: &mut [u8]) -> usize {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut left = now.as_secs();
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    let length = put(answer, b"pong uptime_s=");
    length + put(answer.get_mut(length..).unwrap_or_default(), &digits[at..])
}

/// As much of `text` as fits.
fn put(answer: &mut [u8], text: &[u8]) -> usize {
    let length = text.len().min(answer.len());
    answer[..length].copy_from_slice(&text[..length]);
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_taken_within_its_bounds_and_nothing_else_is() {
        assert_eq!(interval(b"interval_s=30"), Some(Duration::from_secs(30)));
        assert_eq!(interval(b"color=blue\n interval_s = 5 \n"), Some(Duration::from_secs(5)));
        for wrong in ["", "interval_s=0", "interval_s=86401", "interval_s=-1", "interval_s=ten", "interval=5", "\u{0}"]
        {
            assert_eq!(interval(wrong.as_bytes()), None, "{wrong:?}");
        }
        assert_eq!(interval(&[0xff, b'=', 1]), None);
    }

    #[test]
    fn commands_are_answered_also_in_too_little_room() {
        let mut answer = [0; 64];
        let length = pong(Instant::from_secs(1205), &mut answer);
        assert_eq!(&answer[..length], b"pong uptime_s=1205");
        let length = Wishes.command(b"blink\n", &mut answer);
        assert_eq!((&answer[..length], BLINK.signaled()), (&b"blinking"[..], true));
        assert!(Wishes.command(b"format", &mut answer) > 0);
        assert_eq!(pong(Instant::from_secs(0), &mut answer[..3]), 3);
    }
}
