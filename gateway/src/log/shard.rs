//! One shard: its range of the key space, its numbers, and what of it is in memory.

use crate::record::{HashKey, Number, ShardIndex};

/// Laws: `trimmed <= folded <= durable <= assigned`.
pub struct Shard {
    pub index: ShardIndex,
    /// First and last hash key, both included.
    pub range: (HashKey, HashKey),
}

impl Shard {
    /// The lowest number still there (or the next to be given, if the shard is empty).
    pub fn oldest(&self) -> Number {
        unimplemented!()
    }
    /// The newest durable number; 0 if there was none ever.
    pub fn newest(&self) -> Number {
        unimplemented!()
    }
    /// First number ever given, for the sequence number range of a shard's description.
    pub fn first_number(&self) -> Number {
        unimplemented!()
    }
}
