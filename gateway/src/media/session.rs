//! A streaming session: what GetHLSStreamingSessionURL and GetDASHStreamingSessionURL give a player to carry, and which
//! fragments it may have at a moment. Pure.
//!
//! The gateway keeps nothing of a session. Its token says all of it (stream, mode, range, limits, end) and is signed with a key
//! of this box, so a restart ends no session, and the token is short, since a playlist repeats it in every line. A token
//! holds both clocks: within one boot its age is judged by the clock that never jumps.

use super::index::{By, Entry, Index, Once};
use crate::clock::Now;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

const VERSION: u8 = 1;
/// The hash is cut to this many bytes.
const MAC_BYTES: usize = 16;
/// Longest token looked at, in bytes of text.
const TEXT_BYTES_MAX: usize = 640;
/// Fragments of a replay that are there from the beginning: a player stays three behind the end, so it begins at the first.
const REPLAY_FIRST: usize = 3;
/// A replay whose end is set is over when so much time has passed since, in milliseconds: the last fragment may be late.
const REPLAY_LATE_MS: i64 = 60_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Hls,
    Dash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Live,
    /// What was, from its beginning, as fast as it came.
    Replay,
    OnDemand,
}

/// `DiscontinuityMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaks {
    Always,
    Never,
    OnDiscontinuity,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub stream: String,
    /// The stream of the name that was there then.
    pub stream_id: u32,
    pub protocol: Protocol,
    pub mode: Mode,
    pub by: By,
    pub breaks: Breaks,
    pub dates: bool,
    pub fragments_max: u16,
    /// Of a live session the number of the first fragment it may have; else milliseconds since 1970, both ends included.
    pub from: i64,
    pub to: i64,
    pub lasts_s: u16,
    pub issued: Issued,
}

/// When a token was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Issued {
    pub wall_ms: u64,
    mono_ms: u64,
    boot: u64,
}

impl Issued {
    pub fn new(now: Now, boot_id: u128) -> Issued {
        Issued { wall_ms: now.wall_ms, mono_ms: now.mono_ms, boot: boot_id as u64 }
    }

    /// Milliseconds from `self` to `now`.
    pub fn age_ms(&self, now: &Issued) -> u64 {
        match self.boot == now.boot {
            true => now.mono_ms.saturating_sub(self.mono_ms),
            false => now.wall_ms.saturating_sub(self.wall_ms),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("the SessionToken was not given out by this gateway: ask for a new URL")]
    Foreign,
    #[error("the session has expired: ask for a new URL, with a longer Expires if need be")]
    Expired,
}

impl Session {
    pub fn seal(&self, key: &hmac::Key) -> String {
        let mut bytes = vec![VERSION, self.choices()];
        bytes.extend(self.stream_id.to_be_bytes());
        bytes.extend(self.fragments_max.to_be_bytes());
        bytes.extend(self.lasts_s.to_be_bytes());
        for number in [self.from as u64, self.to as u64, self.issued.wall_ms, self.issued.mono_ms, self.issued.boot] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(self.stream.as_bytes());
        let mac = hmac::sign(key, &bytes);
        bytes.extend(&mac.as_ref()[..MAC_BYTES]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// A token that is ours and not over.
    pub fn open(key: &hmac::Key, text: &str, now: &Issued) -> Result<Session, SessionError> {
        let session = Session::read(key, text).ok_or(SessionError::Foreign)?;
        match session.issued.age_ms(now) > u64::from(session.lasts_s) * 1000 {
            true => Err(SessionError::Expired),
            false => Ok(session),
        }
    }

    fn read(key: &hmac::Key, text: &str) -> Option<Session> {
        let bytes = Some(text).filter(|text| text.len() <= TEXT_BYTES_MAX)?;
        let bytes = URL_SAFE_NO_PAD.decode(bytes).ok()?;
        let (bytes, mac) = bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)?;
        let right = hmac::sign(key, bytes);
        let differ = right.as_ref().iter().zip(mac).fold(0, |differ, (a, b)| differ | (a ^ b));
        let mut rest = bytes;
        let [version, choices] = take(&mut rest)?;
        if differ != 0 || version != VERSION {
            return None;
        }
        let stream_id = u32::from_be_bytes(take(&mut rest)?);
        let fragments_max = u16::from_be_bytes(take(&mut rest)?);
        let lasts_s = u16::from_be_bytes(take(&mut rest)?);
        let mut number = || take(&mut rest).map(u64::from_be_bytes);
        let (from, to) = (number()? as i64, number()? as i64);
        let issued = Issued { wall_ms: number()?, mono_ms: number()?, boot: number()? };
        let stream = String::from_utf8(rest.to_vec()).ok()?;
        Some(Session {
            stream,
            stream_id,
            protocol: [Protocol::Hls, Protocol::Dash][usize::from(choices & 1)],
            mode: *[Mode::Live, Mode::Replay, Mode::OnDemand].get(usize::from(choices >> 1 & 3))?,
            by: [By::Producer, By::Server][usize::from(choices >> 3 & 1)],
            breaks: *[Breaks::Always, Breaks::Never, Breaks::OnDiscontinuity].get(usize::from(choices >> 4 & 3))?,
            dates: choices >> 6 & 1 == 1,
            fragments_max,
            from,
            to,
            lasts_s,
            issued,
        })
    }

    fn choices(&self) -> u8 {
        let mode = self.mode as u8;
        let by = u8::from(self.by == By::Server);
        self.protocol as u8 | mode << 1 | by << 3 | (self.breaks as u8) << 4 | u8::from(self.dates) << 6
    }

    /// Whether a fragment is of the session's range.
    pub fn covers(&self, entry: &Entry) -> bool {
        match self.mode {
            Mode::Live => entry.number >= self.from.unsigned_abs(),
            Mode::Replay | Mode::OnDemand => (self.from..=self.to).contains(&self.by.ms(entry)),
        }
    }

    /// What a player of a live session may have now, each with its place in the session's list.
    pub fn live(&self, index: &Index) -> Shown {
        let mut entries: Vec<_> = index.all().rev().take(self.most()).map(|(at, entry)| (at, *entry)).collect();
        entries.reverse();
        self.broken(Shown { entries, ended: false, begun_ms: 0 })
    }

    /// The same of a recorded one, or of a replay, made of all fragments of its range.
    pub fn recorded(&self, of_range: impl IntoIterator<Item = (u64, Entry)>, now: &Issued) -> Shown {
        let mut entries = self.once(of_range);
        let shown = if self.mode == Mode::Replay {
            self.replay(entries, now)
        } else {
            entries.truncate(self.most());
            Shown { entries, ended: true, begun_ms: 0 }
        };
        self.broken(shown)
    }

    /// How many fragments a player is told of at once.
    pub fn most(&self) -> usize {
        usize::from(self.fragments_max).max(1)
    }

    fn broken(&self, mut shown: Shown) -> Shown {
        if self.breaks == Breaks::Always {
            for (at, entry) in &mut shown.entries {
                entry.discontinuity = true;
                entry.breaks = *at as u32;
            }
        }
        shown
    }

    /// Those of a producer that sent the same time again are there once, as they came first. A time that goes back is no
    /// reason to hide anything: it is a discontinuity.
    fn once(&self, of_range: impl IntoIterator<Item = (u64, Entry)>) -> Vec<(u64, Entry)> {
        let mut entries: Vec<(u64, Entry)> = Vec::new();
        let (mut once, mut skipped) = (Once::new(self.by), 0);
        for (at, mut entry) in of_range {
            if !once.is_new(&entry) {
                skipped += 1;
                continue;
            }
            if let Some((_, last)) = entries.last() {
                entry.discontinuity |= !last.joins(&entry);
                entry.breaks = last.breaks.wrapping_add(u32::from(entry.discontinuity));
            }
            entries.push((at - skipped, entry));
        }
        entries
    }

    /// A fragment more whenever as much time has passed as it lasts.
    fn replay(&self, mut entries: Vec<(u64, Entry)>, now: &Issued) -> Shown {
        let (all, most) = (entries.len(), self.most());
        let mut left_ms = self.issued.age_ms(now);
        let first = REPLAY_FIRST.min(most);
        let mut count = first.min(all);
        while let Some((_, entry)) = entries.get(count) {
            let Some(left) = left_ms.checked_sub(u64::from(entry.duration_ms)) else { break };
            (left_ms, count) = (left, count + 1);
        }
        let ended = count == all && now.wall_ms as i64 > self.to.saturating_add(REPLAY_LATE_MS);
        let begin = count.saturating_sub(most);
        let begun_ms = entries.iter().take(begin).map(|(_, entry)| u64::from(entry.duration_ms)).sum();
        entries.truncate(count);
        entries.drain(..begin);
        Shown { entries, ended, begun_ms }
    }
}

/// Fragments of a session at a moment.
#[derive(Debug, Default)]
pub struct Shown {
    /// Each with the number a playlist gives it.
    pub entries: Vec<(u64, Entry)>,
    /// No further one will come.
    pub ended: bool,
    /// How much of a replay has left its window, in milliseconds.
    pub begun_ms: u64,
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*head)
}

#[cfg(test)]
mod tests;
