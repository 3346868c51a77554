//! What a client carries for us between two calls: shard iterators and next tokens. Pure.
//!
//! Opaque text: base64 of a body and a keyed hash of it, so that only what this gateway gave out is taken back. The key is
//! made from the gateway's id and the secrets of its access keys, so it is the same after a restart. A token holds both
//! clocks: within one boot its age is judged by the clock that never jumps.

use super::keys::Keys;
use crate::clock::Now;
use crate::log::Position;
use crate::record::{ShardIndex, StreamName};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// How long a token is good, in milliseconds.
pub const AGE_MS_MAX: u64 = 300_000;
/// The hash is cut to this many bytes.
const MAC_BYTES: usize = 16;
const HEAD_BYTES: usize = 1 + 8 + 8 + 8;
/// Longest token looked at, in bytes of text.
const TEXT_BYTES_MAX: usize = 512;

pub struct TokenKey(hmac::Key);

/// When a token was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issued {
    pub wall_ms: u64,
    mono_ms: u64,
    boot: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Use {
    Iterator = 1,
    Shards = 2,
    Streams = 3,
}

/// Where a shard iterator stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iterator {
    pub stream: StreamName,
    /// The stream of the name that was there when the iterator was given out.
    pub stream_id: u32,
    pub shard: ShardIndex,
    pub from: Position,
}

/// Where ListShards goes on: behind this shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardsAfter {
    pub stream: StreamName,
    pub stream_id: u32,
    pub after: ShardIndex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("not given out by this gateway")]
    Foreign,
    #[error("expired")]
    Expired(Issued),
}

impl Issued {
    pub fn new(now: Now, boot_id: u128) -> Self {
        Issued { wall_ms: now.wall_ms, mono_ms: now.mono_ms, boot: boot_id as u64 }
    }

    fn age_ms(&self, now: &Issued) -> u64 {
        if self.boot == now.boot {
            now.mono_ms.saturating_sub(self.mono_ms)
        } else {
            now.wall_ms.saturating_sub(self.wall_ms)
        }
    }
}

impl TokenKey {
    pub fn new(gateway_id: &str, keys: &Keys) -> Self {
        let mut secret = format!("headwater token 1\n{gateway_id}\n").into_bytes();
        for (id, key) in keys.iter() {
            secret.extend_from_slice(format!("{id}\n{key}\n").as_bytes());
        }
        TokenKey(hmac::Key::new(hmac::HMAC_SHA256, &secret))
    }

    pub fn iterator(&self, now: Issued, iterator: &Iterator) -> String {
        let (kind, at) = match iterator.from {
            Position::Oldest => (0, 0),
            Position::Latest => (1, 0),
            Position::At(number) => (2, number),
            Position::Time(ms) => (3, ms),
        };
        let mut body = Vec::with_capacity(17 + iterator.stream.as_str().len());
        body.extend_from_slice(&iterator.stream_id.to_be_bytes());
        body.extend_from_slice(&iterator.shard.to_be_bytes());
        body.push(kind);
        body.extend_from_slice(&at.to_be_bytes());
        body.extend_from_slice(iterator.stream.as_str().as_bytes());
        self.seal(Use::Iterator, now, &body)
    }

    pub fn read_iterator(&self, now: Issued, text: &str) -> Result<Iterator, TokenError> {
        let body = self.open(Use::Iterator, now, text)?;
        let mut rest = &body[..];
        let stream_id = u32::from_be_bytes(take(&mut rest)?);
        let shard = u32::from_be_bytes(take(&mut rest)?);
        let [kind] = take(&mut rest)?;
        let at = u64::from_be_bytes(take(&mut rest)?);
        let from = match kind {
            0 => Position::Oldest,
            1 => Position::Latest,
            2 => Position::At(at),
            3 => Position::Time(at),
            _ => return Err(TokenError::Foreign),
        };
        Ok(Iterator { stream: name(rest)?, stream_id, shard, from })
    }

    pub fn shards_after(&self, now: Issued, at: &ShardsAfter) -> String {
        let numbers = [at.stream_id.to_be_bytes(), at.after.to_be_bytes()].concat();
        self.seal(Use::Shards, now, &[&numbers, at.stream.as_str().as_bytes()].concat())
    }

    pub fn read_shards_after(&self, now: Issued, text: &str) -> Result<ShardsAfter, TokenError> {
        let body = self.open(Use::Shards, now, text)?;
        let mut rest = &body[..];
        let stream_id = u32::from_be_bytes(take(&mut rest)?);
        let after = u32::from_be_bytes(take(&mut rest)?);
        Ok(ShardsAfter { stream: name(rest)?, stream_id, after })
    }

    pub fn streams_after(&self, now: Issued, name: &str) -> String {
        self.seal(Use::Streams, now, name.as_bytes())
    }

    pub fn read_streams_after(&self, now: Issued, text: &str) -> Result<String, TokenError> {
        String::from_utf8(self.open(Use::Streams, now, text)?).map_err(|_| TokenError::Foreign)
    }

    fn seal(&self, usage: Use, now: Issued, body: &[u8]) -> String {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len() + MAC_BYTES);
        bytes.push(usage as u8);
        bytes.extend_from_slice(&now.wall_ms.to_be_bytes());
        bytes.extend_from_slice(&now.mono_ms.to_be_bytes());
        bytes.extend_from_slice(&now.boot.to_be_bytes());
        bytes.extend_from_slice(body);
        let mac = hmac::sign(&self.0, &bytes);
        bytes.extend_from_slice(&mac.as_ref()[..MAC_BYTES]);
        STANDARD.encode(bytes)
    }

    fn open(&self, usage: Use, now: Issued, text: &str) -> Result<Vec<u8>, TokenError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenError::Foreign);
        }
        let bytes = STANDARD.decode(text).map_err(|_| TokenError::Foreign)?;
        let sealed = bytes.len().checked_sub(MAC_BYTES).ok_or(TokenError::Foreign)?;
        let (bytes, mac) = bytes.split_at(sealed);
        if !same(&hmac::sign(&self.0, bytes).as_ref()[..MAC_BYTES], mac) {
            return Err(TokenError::Foreign);
        }
        let mut rest = bytes;
        let [used] = take(&mut rest)?;
        let wall_ms = u64::from_be_bytes(take(&mut rest)?);
        let mono_ms = u64::from_be_bytes(take(&mut rest)?);
        let boot = u64::from_be_bytes(take(&mut rest)?);
        let issued = Issued { wall_ms, mono_ms, boot };
        if used != usage as u8 {
            return Err(TokenError::Foreign);
        }
        if issued.age_ms(&now) > AGE_MS_MAX {
            return Err(TokenError::Expired(issued));
        }
        Ok(rest.to_vec())
    }
}

/// Equality that takes as long whatever the bytes are.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

fn name(bytes: &[u8]) -> Result<StreamName, TokenError> {
    let name = std::str::from_utf8(bytes).map_err(|_| TokenError::Foreign)?;
    StreamName::new(name).map_err(|_| TokenError::Foreign)
}

fn take<const N: usize>(from: &mut &[u8]) -> Result<[u8; N], TokenError> {
    let (head, rest) = from.split_first_chunk::<N>().ok_or(TokenError::Foreign)?;
    *from = rest;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use proptest::prelude::*;

    const WALL: u64 = 1_800_000_000_000;

    fn at(clock: &Clock) -> Issued {
        Issued::new(clock.now(), clock.boot_id())
    }

    fn key(gateway: &str) -> TokenKey {
        TokenKey::new(gateway, &Keys::default())
    }

    fn here() -> Iterator {
        Iterator { stream: StreamName::new("s").unwrap(), stream_id: 3, shard: 7, from: Position::At(99) }
    }

    #[test]
    fn an_iterator_lives_five_minutes_and_survives_a_restart() {
        let clock = Clock::manual(1, WALL);
        let text = key("g").iterator(at(&clock), &here());
        clock.advance(300_000);
        assert_eq!(key("g").read_iterator(at(&clock), &text), Ok(here()));
        clock.advance(1);
        assert!(matches!(key("g").read_iterator(at(&clock), &text), Err(TokenError::Expired(_))));
    }

    #[test]
    fn a_jump_of_the_wall_clock_expires_nothing() {
        let clock = Clock::manual(1, WALL);
        let text = key("g").iterator(at(&clock), &here());
        clock.jump_wall(86_400_000);
        assert_eq!(key("g").read_iterator(at(&clock), &text), Ok(here()));
        let after_reboot = Clock::manual(2, WALL + 86_400_000);
        assert!(matches!(key("g").read_iterator(at(&after_reboot), &text), Err(TokenError::Expired(_))));
    }

    #[test]
    fn a_token_of_another_gateway_or_for_another_use_is_refused() {
        let now = at(&Clock::manual(1, WALL));
        let text = key("g").iterator(now, &here());
        assert_eq!(key("h").read_iterator(now, &text), Err(TokenError::Foreign));
        assert_eq!(key("g").read_shards_after(now, &text), Err(TokenError::Foreign));
        assert_eq!(key("g").read_streams_after(now, &key("g").streams_after(now, "a-b")), Ok("a-b".into()));
    }

    #[test]
    fn where_a_list_goes_on_is_no_other_token() {
        let now = at(&Clock::manual(1, WALL));
        let after = ShardsAfter { stream: StreamName::new("s").unwrap(), stream_id: 3, after: 7 };
        assert_eq!(key("g").read_streams_after(now, &key("g").shards_after(now, &after)), Err(TokenError::Foreign));
        assert_eq!(
            key("g").read_shards_after(now, &key("g").streams_after(now, "12345678s")),
            Err(TokenError::Foreign)
        );
    }

    proptest! {
        #[test]
        fn a_token_with_any_bit_changed_is_refused(bit in 0usize..400) {
            let now = at(&Clock::manual(1, WALL));
            let mut bytes = STANDARD.decode(key("g").iterator(now, &here())).unwrap();
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(key("g").read_iterator(now, &STANDARD.encode(bytes)), Err(TokenError::Foreign));
        }

        #[test]
        fn noise_never_panics(noise in ".{0,600}") {
            let now = at(&Clock::manual(1, WALL));
            prop_assert_eq!(key("g").read_iterator(now, &noise), Err(TokenError::Foreign));
        }
    }
}
