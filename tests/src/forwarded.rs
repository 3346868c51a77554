//! One gateway forwards video to the next: what both have of a stream, and that it is the same.

use crate::gateway::Gateway;
use crate::{aws, tools, video};
use std::time::Duration;

const SHARD: &str = "shardId-000000000000";

/// The records of a stream of video, in order.
pub fn stored(gateway: &Gateway, stream: &str) -> Vec<Vec<u8>> {
    aws::read_shard(gateway.api, stream, SHARD, None).into_iter().map(|got| got.data).collect()
}

/// Waits until the sinks have nothing left to send.
pub fn drained(gateway: &Gateway, bound: Duration) {
    let done = tools::eventually(bound, || {
        std::thread::sleep(Duration::from_millis(1_100));
        // It is shown once the sink has looked at the stream.
        let is_shown = gateway.http_get("/metrics").1.contains("headwater_sink_backlog{");
        is_shown && gateway.metric("headwater_sink_backlog") == 0.0
    });
    assert!(done, "still {} records behind", gateway.metric("headwater_sink_backlog"));
}

/// Both have the same of a stream, byte for byte, in one order; MD5 of every picture in it, as both decode.
pub fn the_same(here: &Gateway, there: &Gateway, stream: &str) -> Vec<String> {
    let (sent, came) = (stored(here, stream), stored(there, stream));
    let digest =
        |records: &[Vec<u8>]| records.iter().map(|record| (record.len(), record[record.len() / 2])).collect::<Vec<_>>();
    assert!(sent == came, "{stream}: {:?}\n{:?}", digest(&sent), digest(&came));
    let clip = |gateway: &Gateway| video::pictures(&format!("http://{}/video/{stream}/clip.mp4", gateway.console), &[]);
    let (sent, came) = (clip(here), clip(there));
    assert!(sent == came, "{stream}: {} pictures here, {} there, or others", sent.len(), came.len());
    came
}
