//! What is known of the connection that is open: what may still go into it, and since when the other side is silent.

use super::assemble::Fragment;
use super::link::Link;
use crate::uplink::sink::Fault;
use bytes::Bytes;
use tokio::sync::mpsc;

/// After an error, so long what was sent before it may still be acknowledged, in milliseconds.
const GRACE_MS: u64 = 2_000;
/// The thinnest link that what is on its way has to get through in time, in bytes a millisecond.
const LINK_BYTES_PER_MS: u64 = 64;

pub struct Connection {
    pub link: Link,
    /// Where bytes go in; `None` before it is open, and when nothing more will come.
    pub body: Option<mpsc::Sender<Bytes>>,
    is_open: bool,
    /// Nothing more goes in; the rest is heard until then.
    closing_until_ms: Option<u64>,
    head_id: u64,
    /// Time and length of the last fragment that was begun.
    last: Option<(i64, u32)>,
    /// When something moved last.
    pub moved_ms: u64,
    /// Why it is given up, if it is.
    pub fault: Option<Fault>,
    /// It ends because of a fragment that was refused: no reason to wait before the next.
    pub excused: bool,
}

/// What may be done with the next fragment.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Begin,
    Wait,
    /// It wants a connection of its own.
    Close,
}

impl Connection {
    pub fn new(link: Link, first: &Fragment, now_ms: u64) -> Connection {
        Connection {
            link,
            body: None,
            is_open: false,
            closing_until_ms: None,
            head_id: first.media.head_id,
            last: None,
            moved_ms: now_ms,
            fault: None,
            excused: false,
        }
    }

    pub fn opened(&mut self, body: mpsc::Sender<Bytes>, now_ms: u64) {
        self.moved_ms = now_ms;
        self.is_open = true;
        // Whoever gave it up meanwhile gave up nothing that was sent.
        self.body = Some(body).filter(|_| !self.is_closing());
    }

    pub fn is_closing(&self) -> bool {
        self.closing_until_ms.is_some()
    }

    /// Nothing was sent yet: the head has to go first.
    pub fn is_new(&self) -> bool {
        self.last.is_none()
    }

    /// A connection holds one Matroska stream: one set of tracks, times that rise. `alone`: and one fragment.
    pub fn next(&self, fragment: &Fragment, alone: bool) -> Next {
        let time = fragment.timecodes[0];
        match self.last {
            _ if self.is_closing() || self.body.is_none() => Next::Wait,
            _ if fragment.media.head_id != self.head_id => Next::Close,
            Some((last, _)) if time <= last || alone => Next::Close,
            _ => Next::Begin,
        }
    }

    pub fn begin(&mut self, fragment: &Fragment, now_ms: u64) {
        self.last = Some((fragment.timecodes[0], fragment.media.duration_ms));
        self.moved_ms = now_ms;
    }

    /// When the connection ends if nothing more comes; a camera with long fragments is waited for longer.
    pub fn idle_at_ms(&self, idle_ms: u64) -> u64 {
        let longest = self.last.map_or(0, |(_, duration_ms)| u64::from(duration_ms)).min(60_000);
        self.moved_ms + idle_ms + longest
    }

    /// Ends the body behind a whole fragment: what was sent is all, and is acknowledged.
    pub fn close(&mut self, now_ms: u64) {
        self.body = None;
        self.moved_ms = now_ms;
        self.closing_until_ms.get_or_insert(u64::MAX);
    }

    /// Gives it up. In the middle of a fragment (`torn`) its body must not end well, or half of it would be kept.
    pub fn give_up(&mut self, fault: Option<Fault>, torn: bool, now_ms: u64) {
        if !torn {
            self.body = None;
        }
        self.closing_until_ms = Some(self.closing_until_ms.map_or(u64::MAX, |until| until).min(now_ms + GRACE_MS));
        self.fault = self.fault.take().or(fault);
    }

    /// Why nothing more is to be expected of it now. `expects`: something has to move.
    pub fn overdue(&self, expects: bool, in_flight: usize, timeout_ms: u64, now_ms: u64) -> Option<Fault> {
        if self.closing_until_ms.is_some_and(|until| until <= now_ms) {
            return Some(self.fault.clone().unwrap_or_else(|| Fault::Broken("the connection is given up".into())));
        }
        let allowed_ms = timeout_ms + in_flight as u64 / LINK_BYTES_PER_MS;
        let silent_ms = now_ms.saturating_sub(self.moved_ms);
        let is_due = self.is_open && (expects || self.is_closing()) && silent_ms > allowed_ms;
        is_due.then(|| Fault::Broken(format!("nothing was acknowledged for {} s", silent_ms.div_ceil(1000))))
    }
}
