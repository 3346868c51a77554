//! Sizes, spans of time and addresses as people write them in a configuration: `"64 MiB"`, `"5 s"`, `"127.0.0.1:4567"`. Pure.

use core::net::SocketAddr;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes. Text: a number, then `B`, `KB`, `MB`, `GB`, `TB` (powers of 1000) or `KiB` ... `TiB` (of 1024).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteSize(pub u64);

/// A span of time. Text: a number, then `ms`, `s`, `min`, `h` or `days`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Span(pub Duration);

impl ByteSize {
    pub const fn mib(n: u64) -> Self {
        ByteSize(n << 20)
    }
}

impl Span {
    pub const fn ms(n: u64) -> Self {
        Span(Duration::from_millis(n))
    }
    pub const fn secs(n: u64) -> Self {
        Span(Duration::from_secs(n))
    }
    pub const fn days(n: u64) -> Self {
        Span(Duration::from_secs(n * 86_400))
    }
    pub fn as_ms(self) -> u64 {
        self.0.as_millis() as u64
    }
}

const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Unit and its milliseconds; the first of each length is the one we write.
const SPANS: [(&str, u64); 13] = [
    ("days", 86_400_000),
    ("day", 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("hours", 3_600_000),
    ("hour", 3_600_000),
    ("min", 60_000),
    ("minutes", 60_000),
    ("minute", 60_000),
    ("m", 60_000),
    ("s", 1_000),
    ("seconds", 1_000),
    ("ms", 1),
];

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim());
    let scale = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1;
    match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(scale),
        Err(_) => {
            let value = number.parse::<f64>().ok()? * scale as f64;
            (value.is_finite() && value < u64::MAX as f64).then_some(value as u64)
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUnit {
    #[error("write a size as a number and a unit, such as \"64 MiB\" or \"16 GiB\", not {0:?}")]
    Size(String),
    #[error("write a span of time as a number and a unit, such as \"20 ms\", \"5 s\" or \"7 days\", not {0:?}")]
    Span(String),
}

impl FromStr for ByteSize {
    type Err = BadUnit;
    fn from_str(text: &str) -> Result<Self, BadUnit> {
        parse(text, &SIZES).map(ByteSize).ok_or_else(|| BadUnit::Size(text.into()))
    }
}

impl FromStr for Span {
    type Err = BadUnit;
    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let ms = parse(text, &SPANS).ok_or_else(|| BadUnit::Span(text.into()))?;
        Ok(Span(Duration::from_millis(ms)))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = SIZES
            .iter()
            .filter(|(_, scale)| scale.is_power_of_two())
            .find(|(_, scale)| self.0 >= *scale && self.0.is_multiple_of(*scale));
        let (unit, scale) = exact.unwrap_or(&("B", 1));
        write!(f, "{} {unit}", self.0 / scale)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.as_ms();
        let written = ["days", "h", "min", "s", "ms"];
        let exact = SPANS
            .iter()
            .filter(|(unit, _)| written.contains(unit))
            .find(|(_, scale)| ms >= *scale && ms.is_multiple_of(*scale));
        let (unit, scale) = exact.unwrap_or(&("ms", 1));
        write!(f, "{} {unit}", ms / scale)
    }
}

macro_rules! text_serde {
    ($type:ty, $expected:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Visit;
                impl de::Visitor<'_> for Visit {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                from.deserialize_str(Visit)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
    };
}
text_serde!(ByteSize, "a size as a number and a unit, such as \"64 MiB\"");
text_serde!(Span, "a span of time as a number and a unit, such as \"20 ms\"");
text_serde!(Listen, "an IP address and a port such as \"127.0.0.1:4567\", or \"off\"");

/// Where a listener listens. Text: an IP address and a port, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    Off,
    At(SocketAddr),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address; write an IP address and a port such as \"127.0.0.1:4567\", or \"off\"")]
pub struct BadListen(String);

impl Listen {
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Listen::Off => None,
            Listen::At(address) => Some(address),
        }
    }

    /// Whether others than this machine can reach it.
    pub fn is_open(self) -> bool {
        self.address().is_some_and(|address| !address.ip().is_loopback())
    }
}

impl<A: Into<SocketAddr>> From<A> for Listen {
    fn from(address: A) -> Self {
        Listen::At(address.into())
    }
}

impl FromStr for Listen {
    type Err = BadListen;
    fn from_str(text: &str) -> Result<Self, BadListen> {
        match text {
            "off" => Ok(Listen::Off),
            _ => text.parse().map(Listen::At).map_err(|_| BadListen(text.to_owned())),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Off => f.write_str("off"),
            Listen::At(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_read_back_what_they_wrote() {
        for text in ["64 MiB", "16 GiB", "1 B", "1000 B", "0 B"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        for text in ["20 ms", "5 s", "7 days", "90 min", "1 h"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!("1.5 GiB".parse::<ByteSize>().unwrap().0, 3 << 29);
        assert!("64".parse::<ByteSize>().is_err());
        assert!("5 parsecs".parse::<Span>().is_err());
        assert!("99999999999 TiB".parse::<ByteSize>().is_err());
    }

    #[test]
    fn an_address_and_off_read_back_what_they_wrote() {
        for text in ["off", "127.0.0.1:4567", "[::]:80"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in ["", "Off", "4567", "localhost:4567", "127.0.0.1"] {
            let says = text.parse::<Listen>().unwrap_err().to_string();
            assert!(says.contains("or \"off\""), "{says}");
        }
    }

    #[test]
    fn only_what_others_can_reach_is_open() {
        let open = |text: &str| text.parse::<Listen>().unwrap().is_open();
        assert!(open("0.0.0.0:1") && open("[::]:1") && open("192.168.1.7:1"));
        assert!(!open("127.0.0.1:1") && !open("[::1]:1") && !open("off"));
    }
}
