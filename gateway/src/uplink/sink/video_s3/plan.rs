//! Which file a fragment belongs to, and what the file is called. Pure.

use super::Format;
use crate::record::Number;
use crate::uplink::sink::Identity;
use crate::wire::media::Media;
use headwater_video::text;

/// What has to be known of a file, and of the last fragment in it, to say whether another goes on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    pub slot_ms: i64,
    pub head_id: u64,
    pub start_ms: i64,
    pub end_ms: i64,
}

/// The beginning of the span of time that a moment is in, both in milliseconds since 1970.
pub fn slot_ms(start_ms: i64, every_ms: i64) -> i64 {
    start_ms.div_euclid(every_ms.max(1)) * every_ms.max(1)
}

/// Whether a fragment goes into the same file: the same span of time and the same tracks, and its time does not go back.
pub fn goes_on(last: &Last, media: &Media, every_ms: i64) -> bool {
    // One that goes on may overlap a little: its predecessor's length is rounded, or sound reaches over.
    let from_ms = if media.discontinuity { last.end_ms } else { last.start_ms };
    last.slot_ms == slot_ms(media.start_ms, every_ms) && last.head_id == media.head_id && media.start_ms >= from_ms
}

/// The key of a file without its extension: by the time and the number of its first fragment, so that the same fragments give the
/// same key whenever it is made.
pub fn key(prefix: &str, who: &Identity, start_ms: i64, slot_ms: i64, first: Number) -> String {
    let prefix = prefix.replace("{stream}", who.stream.as_str()).replace("{gateway}", &who.gateway);
    let (folder, time) = (date(slot_ms), date(start_ms));
    let folder = format!("{}/{}/{}/{}", &folder[..4], &folder[5..7], &folder[8..10], &folder[11..13]);
    let time = time.replace(['-', ':'], "");
    format!("{prefix}{folder}/{}-{time}-{}-{first}", who.stream, who.incarnation)
}

/// Always as long as `2026-01-31T23:59:59.123Z`.
fn date(ms: i64) -> String {
    let mut out = String::with_capacity(24);
    text::date_time(&mut out, ms);
    out
}

/// A key, the way an address and a signature have it.
pub fn encoded(key: &str) -> String {
    let mut out = String::with_capacity(key.len() + 16);
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(byte.into()),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

pub fn name(key: &str, format: Format) -> String {
    format!("{key}.{}", format.extension())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::StreamName;

    const HOUR: i64 = 3_600_000;

    fn media(start_ms: i64, head_id: u64, discontinuity: bool) -> Media {
        Media {
            part: 0,
            parts: 1,
            discontinuity,
            start_ms,
            duration_ms: 1000,
            bytes: 10,
            head_bytes: 1,
            head_id,
            delay_ms: 0,
        }
    }

    #[test]
    fn a_file_ends_with_its_hour_its_tracks_or_where_time_goes_back() {
        let last = Last { slot_ms: HOUR, head_id: 7, start_ms: HOUR + 5_000, end_ms: HOUR + 6_000 };
        let goes_on = |start_ms, head_id, broken| goes_on(&last, &media(start_ms, head_id, broken), HOUR);
        assert!(goes_on(HOUR + 6_000, 7, false) && goes_on(2 * HOUR - 1, 7, true));
        assert!(!goes_on(2 * HOUR, 7, false), "the next hour");
        assert!(!goes_on(HOUR + 6_000, 8, false), "other tracks");
        assert!(goes_on(HOUR + 5_990, 7, false) && !goes_on(HOUR + 4_999, 7, false), "time goes back");
        assert!(!goes_on(HOUR + 5_990, 7, true), "it does not continue, and overlaps");
        assert_eq!((slot_ms(-1, HOUR), slot_ms(0, HOUR)), (-HOUR, 0));
    }

    #[test]
    fn a_key_says_hour_time_and_number_and_is_the_same_each_time() {
        let who = Identity { gateway: "g7".into(), incarnation: 2, stream: StreamName::new("cam-1").unwrap() };
        let made = key("site {gateway}/{stream}/", &who, 1_785_542_399_123, slot_ms(1_785_542_399_123, HOUR), 42);
        assert_eq!(made, "site g7/cam-1/2026/07/31/23/cam-1-20260731T235959.123Z-2-42");
        assert_eq!(name(&made, Format::Mkv), format!("{made}.mkv"));
        assert_eq!(encoded("site g7/ä+=.mp4"), "site%20g7/%C3%A4%2B%3D.mp4");
    }
}
