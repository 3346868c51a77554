//! Packs one request from the lanes of many shards. Pure.

use super::lanes::{Fill, Lanes};
use super::sink::{Group, Limits};

/// Groups for one request, in turn from all shards, so that none waits for another; empty if nothing may leave.
/// `turn` says which shard begins and moves on with every call.
pub fn pack(shards: &mut [Lanes], turn: &mut usize, limits: &Limits) -> Vec<Group> {
    let (mut groups, mut fill) = (Vec::new(), Fill::default());
    if shards.is_empty() {
        return groups;
    }
    *turn = (*turn + 1) % shards.len();
    let mut idle = 0;
    let mut at = *turn;
    while idle < shards.len() {
        match shards[at].take(limits, &mut fill) {
            Some(group) => {
                groups.push(group);
                idle = 0;
            }
            None => idle += 1,
        }
        at = (at + 1) % shards.len();
    }
    groups
}
