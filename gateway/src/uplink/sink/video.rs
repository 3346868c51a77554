//! Kinesis Video Streams, and every gateway that speaks `PutMedia`: fragments of a local video stream go upstream as one
//! Matroska stream a connection, and its acknowledgements move the cursor.
//!
//! A video stream has one shard and one key, and what it sends is one long body, so this sink needs no lanes: one task takes
//! the fragments in order. A fragment is stored when the other side says PERSISTED; whatever was not when a connection
//! ends is sent again over the next.

mod ack;
pub(super) mod assemble;
mod connection;
mod demand;
mod link;
pub(super) mod marks;
mod run;
mod service;
mod window;

pub use run::VideoForwarder;
pub(super) use service::fault_of;

use crate::problem::Problem;
use crate::units::{ByteSize, Span};
use crate::uplink::aws::AwsConfig;
use crate::uplink::config::Common;
use serde::{Deserialize, Serialize};

/// Which fragments go upstream.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Only {
    #[default]
    All,
    /// Those that a mark covers.
    Marked,
}

/// A video stream in Kinesis Video Streams or in another Headwater.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct KinesisVideoConfig {
    #[serde(flatten)]
    pub common: Common,
    /// The stream there; `{stream}` stands for the name of the stream here.
    pub target: String,
    /// Make the stream there if it is missing.
    pub create: bool,
    /// For how long a stream made there keeps its video; whole hours.
    pub create_retention: Span,
    /// "all", or "marked": only fragments that a mark covers (`POST /video/STREAM/marks`).
    pub only: Only,
    /// With only = "marked", a fragment waits so long for a mark before it is passed over.
    pub mark_within: Span,
    #[serde(flatten)]
    pub aws: AwsConfig,
    /// Most memory for fragments on their way, for each stream; one fragment always has room.
    pub memory: ByteSize,
    /// Local stream that takes records the destination refuses for good; empty: the gap ledger alone tells of them.
    pub dead_letter: String,
    /// How long the other side may be silent while something is on its way; longer for much on its way.
    pub timeout: Span,
    /// With nothing more to send for so long the connection ends, so that the last fragment is stored too.
    pub idle: Span,
}

impl Default for KinesisVideoConfig {
    fn default() -> Self {
        KinesisVideoConfig {
            common: Common::default(),
            target: "{stream}".into(),
            create: false,
            create_retention: Span::secs(24 * 3_600),
            only: Only::All,
            mark_within: Span::secs(60),
            aws: AwsConfig::default(),
            memory: ByteSize::mib(16),
            dead_letter: String::new(),
            timeout: Span::secs(15),
            idle: Span::secs(5),
        }
    }
}

impl KinesisVideoConfig {
    pub(in crate::uplink) fn check(&self, key: &str, problems: &mut Vec<Problem>) {
        let mut problem = |of: &str, says: &str| problems.push(Problem::new(format!("{key}.{of}"), says));
        let is_name = |name: &str| crate::record::StreamName::new(name).is_ok();
        if !is_name(&self.target.replace("{stream}", "x")) {
            problem("target", "name the stream there: 1 to 128 letters, digits, '_', '.' or '-', or \"{stream}\"");
        }
        if self.common.streams.len() != 1 && !self.target.contains("{stream}") {
            problem(
                "target",
                "one stream there takes one stream from here: write \"{stream}\", or name one in `streams`",
            );
        }
        if self.create_retention < Span::secs(3_600) || self.create_retention > Span::secs(87_600 * 3_600) {
            problem("create_retention", "write \"1 h\" to \"3650 days\"");
        }
        if self.mark_within > Span::secs(3_600) {
            problem("mark_within", "write at most \"1 h\": every fragment waits for it");
        }
        if self.memory.0 < 1 << 20 {
            problem("memory", "write at least \"1 MiB\"; \"16 MiB\" suits most");
        }
        if self.timeout < Span::ms(100) || self.timeout > Span::secs(600) {
            problem("timeout", "write \"100 ms\" to \"10 min\"");
        }
        if self.idle < Span::ms(100) || self.idle > Span::secs(60) {
            problem("idle", "write \"100 ms\" to \"60 s\"");
        }
        if !self.dead_letter.is_empty() && !is_name(&self.dead_letter) {
            problem("dead_letter", "name a stream of this gateway: 1 to 128 letters, digits, '_', '.' or '-'");
        }
        if self.common.streams.contains(&self.dead_letter) {
            problem("dead_letter", "name a stream that this sink does not forward, or refused records go in circles");
        }
    }
}

#[cfg(test)]
mod tests;
