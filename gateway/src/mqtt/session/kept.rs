//! What a session leaves on disk: the QoS 2 identifiers of a publisher, in `Table::Sessions` under its client id (pure).
//!
//! They are written in the batch of the records they belong to, so a message is stored and its identifier taken, or
//! neither. Value: version 1 (u8), flags (u8: 1 = had subscriptions), owner (u64 BE, hash of the identity),
//! last change (u64 BE, ms since 1970), then the identifiers (u16 BE each).

use crate::mqtt::codec::PacketId;
use bytes::{BufMut, Bytes, BytesMut};

const FORMAT: u8 = 1;
const SUBSCRIBED: u8 = 1;
const HEAD_BYTES: usize = 18;

/// How long identifiers are kept after their last change, in ms: a day.
pub const KEPT_MS: u64 = 86_400_000;
/// Clients whose identifiers are kept at most.
pub const CLIENTS_MAX: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Kept {
    /// A session with subscriptions is not brought back whole, so the client must not be told that it is.
    pub subscribed: bool,
    pub owner: u64,
    pub changed_ms: u64,
    pub ids: Vec<PacketId>,
}

impl Kept {
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEAD_BYTES + 2 * self.ids.len());
        bytes.put_u8(FORMAT);
        bytes.put_u8(if self.subscribed { SUBSCRIBED } else { 0 });
        bytes.put_u64(self.owner);
        bytes.put_u64(self.changed_ms);
        for id in &self.ids {
            bytes.put_u16(id.get());
        }
        bytes.freeze()
    }

    /// `None` for what this version did not write.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, ids) = bytes.split_at_checked(HEAD_BYTES)?;
        let number = |from: usize| head[from..from + 8].try_into().map(u64::from_be_bytes).ok();
        if head[0] != FORMAT || ids.len() % 2 != 0 {
            return None;
        }
        let ids = ids.chunks_exact(2).filter_map(|id| PacketId::new(u16::from_be_bytes([id[0], id[1]]))).collect();
        Some(Kept { subscribed: head[1] & SUBSCRIBED != 0, owner: number(2)?, changed_ms: number(10)?, ids })
    }

    pub fn is_stale(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.changed_ms) > KEPT_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_kept_reads_back(subscribed: bool, owner: u64, changed_ms: u64, ids: Vec<std::num::NonZeroU16>) {
            let kept = Kept { subscribed, owner, changed_ms, ids };
            prop_assert_eq!(Kept::decode(&kept.encode()), Some(kept));
        }

        #[test]
        fn noise_is_refused_or_read_and_never_panics(noise in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Kept::decode(&noise);
        }
    }
}
