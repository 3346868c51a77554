//! The `[video]` section.

use crate::problem::Problem;
use crate::units::Span;
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
}

impl Default for VideoConfig {
    fn default() -> Self {
        VideoConfig {
            create: true,
            retention: Span::days(7),
            max_producers: 32,
            max_readers: 64,
            idle_timeout: Span::secs(60),
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
        problems
    }
}
