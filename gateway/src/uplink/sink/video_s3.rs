//! Video in S3: fragments of a local video stream become files of an hour, MP4 or Matroska, each with an index beside it.
//!
//! ```text
//! feed -> assembler -> (marks) -> file -> parts -> multipart upload -> index -> Complete, if nothing is there yet -> cursor
//! ```
//! A file is there complete or not at all, and its key says which record it begins with, so it is there once (promise P4). What
//! was uploaded of one that is not complete is kept in rows of the state and never sent twice.

mod file;
mod index;
mod plan;
mod row;
mod run;
mod store;
mod xml;

pub use run::S3VideoForwarder;

use super::video::Only;
use crate::problem::Problem;
use crate::units::{ByteSize, Span};
use crate::uplink::aws::AwsConfig;
use crate::uplink::config::Common;
use serde::{Deserialize, Serialize};

const DAY_MS: u64 = 86_400_000;
/// What S3 takes as a part.
const PART_BYTES: (u64, u64) = (5 << 20, 1 << 30);

/// What a file is.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    #[default]
    Mp4,
    Mkv,
}

impl Format {
    pub fn extension(self) -> &'static str {
        match self {
            Format::Mp4 => "mp4",
            Format::Mkv => "mkv",
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Format::Mp4 => "video/mp4",
            Format::Mkv => "video/x-matroska",
        }
    }
}

/// Files of video in a bucket of S3, or of something that speaks as it does.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct S3VideoConfig {
    #[serde(flatten)]
    pub common: Common,
    /// The bucket; it has to be there.
    pub bucket: String,
    /// What keys begin with; `{stream}` and `{gateway}` stand for the names of these.
    pub prefix: String,
    /// "mp4" (a track that MP4 cannot hold makes its file Matroska) or "mkv".
    pub format: Format,
    /// What of a stream is in one file; a day is a whole number of these.
    pub every: Span,
    /// Uploaded at once, and held in memory for each stream, together with the fragment that completes it.
    pub part_bytes: ByteSize,
    /// "all", or "marked": only fragments that a mark covers (`POST /video/STREAM/marks`).
    pub only: Only,
    /// With only = "marked", a fragment waits so long for a mark before it is passed over.
    pub mark_within: Span,
    #[serde(flatten)]
    pub aws: AwsConfig,
    /// Local stream that takes records that are no video; empty: the gap ledger and the index alone tell of them.
    pub dead_letter: String,
    /// How long the other side may be silent while something is on its way.
    pub timeout: Span,
}

impl Default for S3VideoConfig {
    fn default() -> Self {
        S3VideoConfig {
            common: Common::default(),
            bucket: String::new(),
            prefix: "{stream}/".into(),
            format: Format::Mp4,
            every: Span::secs(3_600),
            part_bytes: ByteSize::mib(8),
            only: Only::All,
            mark_within: Span::secs(60),
            aws: AwsConfig::default(),
            dead_letter: String::new(),
            timeout: Span::secs(15),
        }
    }
}

impl S3VideoConfig {
    pub(in crate::uplink) fn check(&self, key: &str, problems: &mut Vec<Problem>) {
        let mut problem = |of: &str, says: &str| problems.push(Problem::new(format!("{key}.{of}"), says));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        if !(3..=63).contains(&self.bucket.len()) || !self.bucket.chars().all(plain) {
            problem("bucket", "name the bucket: 3 to 63 lower-case letters, digits, '-' or '.'");
        }
        let words = self.prefix.replace("{stream}", "").replace("{gateway}", "");
        if words.contains(['{', '}']) || self.prefix.starts_with('/') || self.prefix.contains("//") {
            problem("prefix", "write a folder such as \"{stream}/\" or \"site-7/{stream}/\", without '/' in front");
        }
        if words.len() > 512 || words.split('/').any(|part| part == "." || part == "..") {
            problem("prefix", "write at most 512 bytes, and no folder named \".\" or \"..\"");
        }
        if self.common.streams.len() != 1 && !self.prefix.contains("{stream}") {
            problem("prefix", "name one stream in `streams`, or write \"{stream}\" so that each has its own folder");
        }
        let every = self.every.as_ms();
        if every < 1_000 || !DAY_MS.is_multiple_of(every) {
            problem("every", "write a span that divides a day, such as \"1 h\", \"15 min\" or \"1 day\"");
        }
        if self.part_bytes.0 < PART_BYTES.0 || self.part_bytes.0 > PART_BYTES.1 {
            problem("part_bytes", "write \"5 MiB\", the least S3 takes, to \"1 GiB\"; \"8 MiB\" suits most");
        }
        if self.mark_within > Span::secs(3_600) {
            problem("mark_within", "write at most \"1 h\": every fragment waits for it");
        }
        if self.timeout < Span::ms(100) || self.timeout > Span::secs(600) {
            problem("timeout", "write \"100 ms\" to \"10 min\"");
        }
        if !self.dead_letter.is_empty() && crate::record::StreamName::new(&self.dead_letter).is_err() {
            problem("dead_letter", "name a stream of this gateway: 1 to 128 letters, digits, '_', '.' or '-'");
        }
        if self.common.streams.contains(&self.dead_letter) {
            problem("dead_letter", "name a stream that this sink does not forward, or refused records go in circles");
        }
    }
}

#[cfg(test)]
mod tests;
