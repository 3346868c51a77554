//! The `[video]` section.

use crate::problem::Problem;
use crate::units::{ByteSize, Span};
use serde::{Deserialize, Serialize};

/// Video in and out: see docs/video.md. It is on the AWS port and the console's.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct VideoConfig {
    /// Whether a producer that names a stream which is not there makes it. Off: it gets an error.
    pub create: bool,
    /// How long the fragments of a stream are kept that was made so.
    pub retention: Span,
    /// Producers at once, over all streams.
    pub max_producers: u32,
    /// Readers of media at once: players, GetMedia, clips.
    pub max_readers: u32,
    /// A producer that sends nothing for so long is given up.
    pub idle_timeout: Span,
    /// Memory for fragments that are being built or written, of all producers together. A fragment takes twice its size.
    pub memory: ByteSize,
    /// Keep one picture in so long a time for longer, in a stream of its own: "cam" is thinned out into "cam.thin".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thin_every: Option<Span>,
    /// How long those pictures are kept.
    pub thin_retention: Span,
}

impl Default for VideoConfig {
    fn default() -> Self {
        VideoConfig {
            create: true,
            retention: Span::days(7),
            max_producers: 32,
            max_readers: 64,
            idle_timeout: Span::secs(60),
            memory: ByteSize::mib(128),
            thin_every: None,
            thin_retention: Span::days(90),
        }
    }
}

impl VideoConfig {
    /// Mistakes, with what to write instead.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut wrong = |key: &str, says: &str| problems.push(Problem::new(format!("video.{key}"), says));
        if self.max_producers == 0 {
            wrong("max_producers", "at least 1");
        }
        if self.max_readers == 0 {
            wrong("max_readers", "at least 1");
        }
        if self.retention < Span::secs(60) {
            wrong("retention", "at least \"1 min\"; whole segments go, so less keeps no less");
        }
        if self.idle_timeout < Span::secs(1) {
            wrong("idle_timeout", "at least \"1 s\"");
        }
        if self.memory < ByteSize::mib(16) {
            wrong("memory", "at least \"16 MiB\": a fragment of 8 MiB takes it all");
        }
        if self.thin_every.is_some_and(|every| every < Span::secs(1)) {
            wrong("thin_every", "at least \"1 s\"; leave it out to keep no pictures for longer");
        }
        problems
    }
}
