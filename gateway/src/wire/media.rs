//! What a record of a video stream is, as its header `Media` says. Pure.
//!
//! A fragment is one record, or several in a row where it is longer than a record may be. Its bytes are a Matroska file of
//! its own: a head (EBML, Segment, Info, Tracks), then a Cluster whose times are milliseconds since 1970. The header lets
//! fragments be listed, searched by time and evicted without reading a byte of them.
//!
//! ```text
//! version u8 = 1 | flags u8 | part u8 | parts u8 | start i64 ms | duration u32 ms | bytes u32 | head bytes u32 | head id u64 | delay u16 ms
//! ```
//! Big-endian. All parts of a fragment carry the same but for `part`, which counts from 0.
//!
//! Beside the fragments stand rows of the state (table `Media`), which both the video part and the sinks know: [`Mark`] and
//! [`Wanted`].

use crate::record::{Header, HeaderId, Number, Record};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of one record of a fragment: with headers it has to fit through every door a record passes.
pub const PART_BYTES_MAX: usize = 8 << 20;
/// Parts of a fragment: 50 MiB and its head are seven.
pub const PARTS_MAX: u8 = 8;

const VERSION: u8 = 1;
const DISCONTINUITY: u8 = 1;
const ENCODED_BYTES: usize = 34;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Media {
    pub part: u8,
    pub parts: u8,
    /// It does not continue the fragment before.
    pub discontinuity: bool,
    /// When its first picture was taken, by the producer's clock: milliseconds since 1970.
    pub start_ms: i64,
    pub duration_ms: u32,
    /// Of the whole fragment.
    pub bytes: u32,
    /// Of the head in front of the cluster.
    pub head_bytes: u32,
    /// The same for two fragments that one decoder can play one after the other: see [`head_id`].
    pub head_id: u64,
    /// By so much pictures are decoded before they are shown, in milliseconds: 0 without B-frames.
    pub delay_ms: u16,
}

/// Names a head by what stands in it.
pub fn head_id(head: &[u8]) -> u64 {
    xxh3_64(head)
}

impl Media {
    /// `None` if the record is no fragment, or one of a later version.
    pub fn of(record: &Record) -> Option<Media> {
        Media::decode(record.header(HeaderId::Media)?)
    }

    pub fn header(&self) -> Header {
        let mut bytes = Vec::with_capacity(ENCODED_BYTES);
        bytes.extend([VERSION, if self.discontinuity { DISCONTINUITY } else { 0 }, self.part, self.parts]);
        bytes.extend(self.start_ms.to_be_bytes());
        bytes.extend(self.duration_ms.to_be_bytes());
        bytes.extend(self.bytes.to_be_bytes());
        bytes.extend(self.head_bytes.to_be_bytes());
        bytes.extend(self.head_id.to_be_bytes());
        bytes.extend(self.delay_ms.to_be_bytes());
        Header::new(HeaderId::Media, bytes)
    }

    pub fn decode(bytes: &[u8]) -> Option<Media> {
        let bytes: &[u8; ENCODED_BYTES] = bytes.try_into().ok()?;
        let u32_at = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        let media = Media {
            part: bytes[2],
            parts: bytes[3],
            discontinuity: bytes[1] & DISCONTINUITY != 0,
            start_ms: u64_at(4) as i64,
            duration_ms: u32_at(12),
            bytes: u32_at(16),
            head_bytes: u32_at(20),
            head_id: u64_at(24),
            delay_ms: u16::from_be_bytes([bytes[32], bytes[33]]),
        };
        let is_sound = media.part < media.parts && media.parts <= PARTS_MAX && media.head_bytes <= media.bytes;
        (bytes[0] == VERSION && is_sound).then_some(media)
    }
}

/// Something happened, and this time of the stream shows it: a sink that is told `only = "marked"` sends what it covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub id: String,
    pub from_ms: i64,
    pub to_ms: i64,
    pub name: String,
}

impl Mark {
    /// What the keys of a stream's marks begin with.
    pub fn prefix(stream: &str) -> String {
        format!("m/{stream}/")
    }

    /// It covers something of the fragment.
    pub fn covers(&self, media: &Media) -> bool {
        self.from_ms < media.start_ms.saturating_add(i64::from(media.duration_ms)) && self.to_ms > media.start_ms
    }
}

/// Somebody wants a sink to send old fragments, wherever its cursor stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub from_ms: i64,
    pub to_ms: i64,
    /// The records that hold them: first and last number of each run.
    pub runs: Vec<(Number, Number)>,
}

impl Wanted {
    /// What the keys of a sink's work on a stream begin with; neither name holds a slash.
    pub fn prefix(sink: &str, stream: &str) -> String {
        format!("w/{sink}/{stream}/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_reads_back_what_it_wrote(
            (part, more, start_ms, duration_ms) in (0u8..4, 1u8..5, any::<i64>(), any::<u32>()),
            (bytes, head_id, discontinuity, delay_ms) in (1000u32.., any::<u64>(), any::<bool>(), any::<u16>()),
        ) {
            let media = Media {
                part, parts: part + more, discontinuity, start_ms, duration_ms, bytes, head_bytes: 999, head_id, delay_ms,
            };
            prop_assert_eq!(Media::decode(&media.header().value), Some(media));
        }

        #[test]
        fn noise_is_no_fragment_or_a_sane_one(noise in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Some(media) = Media::decode(&noise) {
                prop_assert!(media.part < media.parts && media.parts <= PARTS_MAX && media.head_bytes <= media.bytes);
            }
        }
    }
}
