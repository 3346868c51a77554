//! Telemetry as a fleet would send it, made from a seed. The values of [`Sensor`] are noisy on purpose: what they measure
//! must not look better than a real fleet's data, which zstd level 1 presses 4 to 6 times; a checksum, as many devices send one, presses not at all.

use fastrand::Rng;
use std::fmt::Write;

/// The least a payload of [`Sensor::fixed`] has, in bytes.
pub const FIXED_BYTES_MIN: usize = 100;
/// Where the eight digits of the sequence and the ten of the time's seconds stand in it; three of milliseconds follow.
pub const SEQUENCE_AT: std::ops::Range<usize> = 23..31;
pub const SECONDS_AT: std::ops::Range<usize> = 37..47;

/// One device's values.
pub struct Sensor {
    random: Rng,
    /// Hundredths of a degree.
    temperature: i32,
    /// Tenths of a percent.
    humidity: i32,
    /// Hundredths of a volt.
    voltage: i32,
}

impl Sensor {
    pub fn new(seed: u64, device: u32) -> Self {
        let mut random = Rng::with_seed(seed ^ (u64::from(device) << 32) ^ 0x9e37_79b9);
        Sensor {
            temperature: random.i32(1800..2600),
            humidity: random.i32(350..650),
            voltage: random.i32(360..415),
            random,
        }
    }

    fn step(&mut self) {
        self.temperature = (self.temperature + self.random.i32(-500..=500)).clamp(1000, 3999);
        self.humidity = (self.humidity + self.random.i32(-200..=200)).clamp(200, 899);
        self.voltage = (self.voltage + self.random.i32(-45..=45)).clamp(320, 419);
    }

    /// The next payload of exactly `size` bytes (at least [`FIXED_BYTES_MIN`]), with room for a sequence and a time.
    pub fn fixed(&mut self, device: u32, size: usize) -> Vec<u8> {
        self.step();
        let mut text = format!(
            r#"{{"id":"d-{device:06}","seq":10000000,"ts":1767225600{:03},"temp":{},"hum":{},"volt":{},"crc":"{:04x}""#,
            self.random.u32(..1000),
            hundredths(self.temperature),
            tenths(self.humidity),
            hundredths(self.voltage),
            self.random.u16(..)
        );
        self.pad(&mut text, size);
        text.push('}');
        text.into_bytes()
    }

    /// Fills up to one byte less than `size`: with a field of hexadecimal digits where one fits, with blanks where not.
    fn pad(&mut self, text: &mut String, size: usize) {
        const FIELD: &str = r#","raw":"""#;
        if let Some(room) = size.checked_sub(text.len() + FIELD.len() + 1) {
            text.push_str(&FIELD[..FIELD.len() - 1]);
            for _ in 0..room {
                text.push(char::from_digit(self.random.u32(..16), 16).unwrap_or('0'));
            }
            text.push('"');
        }
        while text.len() + 1 < size {
            text.push(' ');
        }
    }
}

fn hundredths(value: i32) -> String {
    format!("{}.{:02}", value / 100, value % 100)
}

fn tenths(value: i32) -> String {
    format!("{}.{}", value / 10, value % 10)
}

/// The payload of message `number` of a device: a pure function, so that an audit can make it again.
pub fn reading(seed: u64, device: u32, number: u64) -> String {
    let mut random = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(device) << 40) ^ number);
    let wave = ((number % 600) as f64 / 600.0 * std::f64::consts::TAU + f64::from(device)).sin();
    let temperature = 2200 + (wave * 350.0) as i32 + random.i32(-10..=10);
    let mut text = String::with_capacity(120);
    // Writing into a String cannot fail.
    let _ = write!(
        text,
        r#"{{"device":"d-{device:04}","n":{number},"temp":{},"humid":{},"volt":{},"rssi":-{},"ok":true}}"#,
        hundredths(temperature),
        tenths(450 + random.i32(-40..=40)),
        hundredths(390 - (number / 5000) as i32),
        random.i32(50..80)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_payload_is_json_of_its_size_with_digits_where_we_say() {
        for size in [100, 101, 108, 109, 110, 256, 1000] {
            let payload = Sensor::new(7, 42).fixed(42, size);
            assert_eq!(payload.len(), size);
            let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            assert_eq!(value["seq"], 10_000_000);
            assert_eq!(value["ts"].as_u64().unwrap() / 1000, 1_767_225_600);
            assert_eq!(&payload[SEQUENCE_AT], b"10000000");
            assert_eq!(&payload[SECONDS_AT], b"1767225600");
        }
    }

    #[test]
    fn a_reading_is_the_same_every_time_and_json() {
        assert_eq!(reading(1, 2, 3), reading(1, 2, 3));
        assert_ne!(reading(1, 2, 3), reading(1, 2, 4));
        serde_json::from_str::<serde_json::Value>(&reading(1, 2, 3)).unwrap();
    }
}
