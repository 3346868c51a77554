//! How an upstream divides the 128-bit key space among its open shards. Pure.

use crate::record::HashKey;

/// Open shards, sorted by range; together they cover the key space without overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    shards: Vec<UpstreamShard>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamShard {
    pub id: String,
    /// First and last hash key, both included.
    pub range: (HashKey, HashKey),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the open shards do not cover the key space: it is being resharded")]
pub struct NotWhole;

impl ShardMap {
    /// For destinations that have no shards.
    pub fn whole() -> Self {
        ShardMap { shards: vec![UpstreamShard { id: String::new(), range: (HashKey(0), HashKey::MAX) }] }
    }

    pub fn new(mut shards: Vec<UpstreamShard>) -> Result<Self, NotWhole> {
        shards.sort_by_key(|shard| shard.range.0);
        let mut next = Some(0u128);
        for shard in &shards {
            if next != Some(shard.range.0.0) || shard.range.1 < shard.range.0 {
                return Err(NotWhole);
            }
            next = shard.range.1.0.checked_add(1);
        }
        // Past the last key there is no next one: only then is the space covered.
        if shards.is_empty() || next.is_some() { Err(NotWhole) } else { Ok(ShardMap { shards }) }
    }

    pub fn shards(&self) -> &[UpstreamShard] {
        &self.shards
    }

    /// Index of the shard that holds the point.
    pub fn index_of(&self, point: HashKey) -> usize {
        self.shards.partition_point(|shard| shard.range.1 < point).min(self.shards.len() - 1)
    }

    pub fn named(&self, id: &str) -> Option<usize> {
        self.shards.iter().position(|shard| shard.id == id)
    }

    pub fn holds(&self, index: usize, point: HashKey) -> bool {
        self.shards.get(index).is_some_and(|shard| (shard.range.0..=shard.range.1).contains(&point))
    }

    /// For each shard that overlaps `range`, a point of both.
    pub fn points_in(&self, range: (HashKey, HashKey)) -> Vec<HashKey> {
        let overlaps = |shard: &&UpstreamShard| shard.range.0 <= range.1 && shard.range.1 >= range.0;
        self.shards.iter().filter(overlaps).map(|shard| shard.range.0.max(range.0)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: &str, from: u128, to: u128) -> UpstreamShard {
        UpstreamShard { id: id.into(), range: (HashKey(from), HashKey(to)) }
    }

    #[test]
    fn every_point_has_one_shard() {
        let half = u128::MAX / 2;
        let map = ShardMap::new(vec![shard("b", half + 1, u128::MAX), shard("a", 0, half)]).unwrap();
        assert_eq!(map.index_of(HashKey(0)), 0);
        assert_eq!(map.index_of(HashKey(half)), 0);
        assert_eq!(map.index_of(HashKey(half + 1)), 1);
        assert_eq!(map.index_of(HashKey::MAX), 1);
        assert_eq!(map.named("b"), Some(1));
        assert_eq!(map.points_in((HashKey(5), HashKey(half))), [HashKey(5)]);
        assert_eq!(map.points_in((HashKey(5), HashKey::MAX)), [HashKey(5), HashKey(half + 1)]);
    }

    #[test]
    fn a_map_with_a_hole_or_an_overlap_is_refused() {
        assert_eq!(ShardMap::new(vec![]), Err(NotWhole));
        assert_eq!(ShardMap::new(vec![shard("a", 0, 9)]), Err(NotWhole));
        assert_eq!(ShardMap::new(vec![shard("a", 0, 9), shard("b", 11, u128::MAX)]), Err(NotWhole));
        assert_eq!(ShardMap::new(vec![shard("a", 0, 9), shard("b", 9, u128::MAX)]), Err(NotWhole));
        assert_eq!(ShardMap::new(vec![shard("a", 0, u128::MAX), shard("b", 0, 5)]), Err(NotWhole));
    }
}
