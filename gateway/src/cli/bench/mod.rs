//! `headwater bench`: what this machine does. Every run prints one line of JSON, so that runs can be compared by a script.
//!
//! The generator is this process and the gateway another, because they share the machine's cores and each side's CPU is
//! to be told apart. `docs/performance.md` says which command stands behind which figure.

mod drain;
mod generator;
mod histogram;
mod ingest;
mod machine;
mod probe;
mod recover;
mod video;

use super::output::Output;
use anyhow::Result;
use clap::{Args, Subcommand};

#[derive(Args)]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Acknowledged QoS 1 messages a second, their latency, CPU, memory, and the bytes that reach the disk.
    Ingest(Box<ingest::Ingest>),
    /// How fast a backlog leaves for another gateway, against how fast it came in.
    Drain(drain::Drain),
    /// Cameras: what is lost, how long a fragment waits for the disk, CPU; or the playlist of a day.
    Video(video::Video),
    /// Time to the first PUBACK after SIGKILL with a full log, and what recovery reads.
    Recover(recover::Recover),
}

impl Bench {
    pub fn run(self, out: &Output) -> Result<()> {
        match self.what {
            What::Ingest(ingest) => ingest.run(out),
            What::Drain(drain) => drain.run(out),
            What::Video(video) => video.run(out),
            What::Recover(recover) => recover.run(out),
        }
    }
}
