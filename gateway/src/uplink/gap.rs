//! What is sent upstream in the place of records that are gone (promise P5). Pure.

use super::map::ShardMap;
use super::sink::Identity;
use crate::log::CursorState;
use crate::record::{Gap, HashKey, Header, HeaderId, Number, Record, ShardIndex};
use serde::Serialize;

/// Partition key of gap records, and the content type that tells them from records of devices.
pub const KEY: &str = "headwater-gap";
pub const CONTENT_TYPE: &str = "application/vnd.headwater.gap+json";
/// A lost range of which parts were delivered is told in at most so many pieces, else as a whole.
const PIECES_MAX: usize = 16;

#[derive(Serialize)]
struct Told<'a> {
    headwater: &'static str,
    gateway: &'a str,
    stream: &'a str,
    shard: ShardIndex,
    from: Number,
    to: Number,
    count: u64,
    reason: &'static str,
    from_time: u64,
    to_time: u64,
}

/// The text of a gap record.
pub fn text(gap: &Gap, who: &Identity) -> Vec<u8> {
    let told = Told {
        headwater: "gap",
        gateway: &who.gateway,
        stream: who.stream.as_str(),
        shard: gap.shard,
        from: gap.from,
        to: gap.to,
        count: gap.count(),
        reason: gap.reason.as_str(),
        from_time: gap.from_ms,
        to_time: gap.to_ms,
    };
    // Numbers and short strings: it cannot fail.
    serde_json::to_vec(&told).unwrap_or_default()
}

/// A gap record for each upstream shard that holds a part of the local shard's range. What of the range was delivered
/// before it was lost is left out.
pub fn records(
    gap: &Gap,
    cursor: &CursorState,
    range: (HashKey, HashKey),
    map: &ShardMap,
    who: &Identity,
) -> Vec<Record> {
    let mut records = Vec::new();
    for (from, to) in missing(gap, cursor) {
        let piece = Gap { from, to, ..gap.clone() };
        for point in map.points_in(range) {
            records.push(record(&piece, KEY.as_bytes().to_vec(), point, who));
        }
    }
    records
}

/// The gap record that takes the place of one record that was refused.
pub fn in_place_of(lost: &Record, gap: &Gap, who: &Identity) -> Record {
    record(gap, lost.key.to_vec(), lost.hash(), who)
}

fn record(gap: &Gap, key: Vec<u8>, point: HashKey, who: &Identity) -> Record {
    Record {
        // The number of a gap's end: a gap that was told before and has grown since is told again.
        number: gap.to,
        arrival_ms: gap.to_ms,
        key: key.into(),
        explicit_hash: Some(point),
        producer: None,
        headers: vec![Header::new(HeaderId::ContentType, CONTENT_TYPE)],
        data: text(gap, who).into(),
    }
}

/// The parts of a gap that were not acknowledged.
fn missing(gap: &Gap, cursor: &CursorState) -> Vec<(Number, Number)> {
    let pieces = cursor.missing(gap.from, gap.to);
    if pieces.len() > PIECES_MAX { vec![(gap.from.max(cursor.next), gap.to)] } else { pieces }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{GapReason, StreamName};
    use crate::uplink::map::UpstreamShard;

    fn gap(from: Number, to: Number) -> Gap {
        Gap { shard: 2, from, to, reason: GapReason::Evicted, from_ms: 5, to_ms: 9 }
    }

    #[test]
    fn a_gap_is_told_once_to_each_affected_upstream_shard() {
        let who = Identity { gateway: "g".into(), incarnation: 1, stream: StreamName::new("s").unwrap() };
        let half = u128::MAX / 2;
        let shard = |id: &str, a, b| UpstreamShard { id: id.into(), range: (HashKey(a), HashKey(b)) };
        let map = ShardMap::new(vec![shard("a", 0, half), shard("b", half + 1, u128::MAX)]).unwrap();
        let told = records(&gap(3, 7), &CursorState::at(3), (HashKey(9), HashKey::MAX), &map, &who);
        assert_eq!(told.iter().map(|r| r.hash().0).collect::<Vec<_>>(), [9, half + 1]);
        let expected = r#"{"headwater":"gap","gateway":"g","stream":"s","shard":2,"from":3,"to":7,"count":5,"reason":"evicted","from_time":5,"to_time":9}"#;
        assert_eq!(std::str::from_utf8(&told[0].data).unwrap(), expected);
        assert_eq!(records(&gap(3, 7), &CursorState::at(3), (HashKey(9), HashKey(10)), &map, &who).len(), 1);
    }

    #[test]
    fn what_was_delivered_before_it_was_lost_is_not_told() {
        let cursor = CursorState { next: 5, done: vec![(7, 9), (12, 30)] };
        assert_eq!(missing(&gap(1, 20), &cursor), [(5, 6), (10, 11)]);
        assert_eq!(missing(&gap(1, 40), &cursor), [(5, 6), (10, 11), (31, 40)]);
        assert_eq!(missing(&gap(7, 8), &cursor), []);
    }
}
