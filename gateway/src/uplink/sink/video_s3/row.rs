//! What is remembered of a file that is not complete yet: rows of the state (table `Uplink`), one for the upload and one for each part
//! that the destination has. From them the file goes on behind its last part, without reading what is in it again. Pure.
//!
//! Keys: `s3/<sink>/<stream id>/` and then `upload`, or `part/` and five digits. Values: JSON.

use super::Format;
use super::plan::Last;
use crate::record::Number;
use headwater_video::mp4::Place;
use serde::{Deserialize, Serialize};

/// What the file is, told when it begins.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Begun {
    pub bucket: String,
    /// Without its extension.
    pub key: String,
    /// As the configuration had it, and what it became.
    pub wanted: Format,
    pub format: Format,
    pub every_ms: i64,
    pub slot_ms: i64,
    pub head_id: u64,
    pub head_bytes: u64,
    /// The number it begins with, and when that came.
    pub first: Number,
    pub arrival_ms: u64,
    pub tracks: Vec<TrackLine>,
    /// For playlists; empty where there is none.
    pub codecs: String,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct TrackLine {
    pub number: u8,
    pub codec: String,
    #[serde(skip_serializing_if = "is_zero", default)]
    pub width: u32,
    #[serde(skip_serializing_if = "is_zero", default)]
    pub height: u32,
    #[serde(skip_serializing_if = "is_zero", default)]
    pub sample_rate: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The row of the upload.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Upload {
    pub begun: Begun,
    pub upload_id: String,
}

/// A fragment in a file.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Line {
    pub number: Number,
    pub start_ms: i64,
    pub duration_ms: u32,
    pub offset: u64,
    pub length: u64,
    /// It does not continue the one before.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub discontinuity: bool,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tags: Vec<(String, String)>,
}

/// Records that are in no file, and why.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Hole {
    pub from: Number,
    pub to: Number,
    pub reason: String,
}

/// The row of a part.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Part {
    pub etag: String,
    pub sha256: String,
    pub bytes: u64,
    pub lines: Vec<Line>,
    pub holes: Vec<Hole>,
    /// The file goes on with this number.
    pub next: Number,
    /// How far the MP4 is, and the last fragment's beginning and end.
    pub place: (u32, Option<i64>, u64, i64, i64),
    pub last_ms: (i64, i64),
    pub last_next: Number,
    /// Records and their payload, for the figures.
    pub counted: (u64, u64),
    /// Nothing comes behind it: the file is to be completed.
    pub sealed: bool,
}

impl Part {
    pub fn place(&self) -> Place {
        let (sequence, offset_ns, decode_delay_ns, start_ns, end_ns) = self.place;
        Place { sequence, offset_ns, decode_delay_ns, start_ns, end_ns }
    }

    pub fn set_place(&mut self, at: Place) {
        self.place = (at.sequence, at.offset_ns, at.decode_delay_ns, at.start_ns, at.end_ns);
    }

    pub fn last(&self, begun: &Begun) -> Last {
        Last { slot_ms: begun.slot_ms, head_id: begun.head_id, start_ms: self.last_ms.0, end_ms: self.last_ms.1 }
    }
}

/// What the keys of a sink's rows of a stream begin with; a sink's name holds no slash.
pub fn prefix(sink: &str, stream_id: u32) -> String {
    format!("s3/{sink}/{stream_id}/")
}

pub fn upload_key(prefix: &str) -> String {
    format!("{prefix}upload")
}

/// `at`: from 0.
pub fn part_key(prefix: &str, at: usize) -> String {
    format!("{prefix}part/{at:05}")
}

/// The rows of a scan by [`prefix`], as far as they make one upload.
pub fn read(prefix: &str, rows: &[(bytes::Bytes, bytes::Bytes)]) -> Option<(Upload, Vec<Part>)> {
    let row = |key: &str| rows.iter().find(|(of, _)| of == key.as_bytes()).map(|(_, row)| row);
    let upload = serde_json::from_slice(row(&upload_key(prefix))?).ok()?;
    let mut parts = Vec::new();
    while let Some(part) = row(&part_key(prefix, parts.len())).and_then(|row| serde_json::from_slice(row).ok()) {
        parts.push(part);
    }
    Some((upload, parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_back_and_a_part_behind_a_missing_one_does_not_count() {
        let begun = Begun {
            bucket: "b".into(),
            key: "k".into(),
            wanted: Format::Mp4,
            format: Format::Mkv,
            every_ms: 1,
            slot_ms: 2,
            head_id: u64::MAX,
            head_bytes: 4,
            first: 5,
            arrival_ms: 6,
            tracks: Vec::new(),
            codecs: String::new(),
        };
        let upload = Upload { begun, upload_id: "u".into() };
        let part = Part { place: (1, Some(-2), 3, 4, 5), ..Part::default() };
        let prefix = prefix("up", 7);
        let row = |key: String, value: String| (bytes::Bytes::from(key), bytes::Bytes::from(value));
        let json = |part: &Part| serde_json::to_string(part).unwrap();
        let mut rows = vec![row(upload_key(&prefix), serde_json::to_string(&upload).unwrap())];
        rows.extend([0, 1, 3].map(|at| row(part_key(&prefix, at), json(&part))));
        assert_eq!(read(&prefix, &rows), Some((upload, vec![part.clone(), part])));
        assert_eq!(read(&prefix, &rows[1..]), None);
    }
}
