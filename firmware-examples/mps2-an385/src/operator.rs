//! What an operator may ask of the board through the gateway: another pace, a sign of life, more or less log. The SDK calls
//! these from inside its connection, so nothing here waits.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::log;

/// Microseconds between two records, once a configuration has come; else what the arguments say.
static PACE_US: AtomicU32 = AtomicU32::new(u32::MAX);
static IS_DEBUG: AtomicBool = AtomicBool::new(false);

/// The pace that was asked for, or this one.
pub fn pace_us(otherwise: u32) -> u32 {
    match PACE_US.load(Ordering::Relaxed) {
        u32::MAX => otherwise,
        pace => pace,
    }
}

/// Whether each record is to be logged.
pub fn is_debug() -> bool {
    IS_DEBUG.load(Ordering::Relaxed)
}

/// Lines of `key=value`; keys of other firmware versions are left alone.
pub fn config(config: &[u8]) {
    let lines = str::from_utf8(config).unwrap_or_default().lines();
    let pace = lines.filter_map(|line| line.trim().strip_prefix("pace-us=")?.parse().ok()).next_back();
    match pace {
        Some(pace) => {
            log!("configuration: a record every {pace} us");
            PACE_US.store(pace, Ordering::Relaxed);
        }
        None => log!("a configuration without pace-us=NUMBER changes nothing"),
    }
}

pub fn command(command: &[u8], answer: &mut [u8]) -> usize {
    let text: &[u8] = match command.trim_ascii() {
        b"ping" => b"pong",
        _ => b"unknown command; there is: ping",
    };
    let length = text.len().min(answer.len());
    answer[..length].copy_from_slice(&text[..length]);
    length
}

pub fn log_level(level: &str) {
    let level = level.trim();
    log!("log level: {level}");
    IS_DEBUG.store(matches!(level, "debug" | "trace"), Ordering::Relaxed);
}
