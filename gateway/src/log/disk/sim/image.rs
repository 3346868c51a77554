//! One file of the simulated disk: what a reader sees, what a power cut keeps, and the writes between the two.

use super::super::PAGE_BYTES;
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a device writes whole or not at all, in bytes.
pub const SECTOR_BYTES: usize = 512;

const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Length and pages; a page that is not there is zeros. Clones share their pages until one of them writes.
#[derive(Clone, Default)]
struct Image {
    pages: BTreeMap<u64, Arc<[u8; PAGE_BYTES]>>,
    len: u64,
}

/// A write or a change of length that no sync has made durable yet. A write never crosses a page.
enum Pending {
    Bytes { page: u64, within: usize, bytes: Box<[u8]> },
    Len(u64),
}

/// How much of what was not synced reaches the disk in a power cut.
enum Fate {
    Nothing,
    Everything,
    /// In the order it was written, up to a torn last page.
    Prefix(usize),
    /// Every page for itself stops at some write; the length too.
    Scattered,
}

#[derive(Default)]
pub(super) struct FileState {
    live: Image,
    durable: Image,
    pending: Vec<Pending>,
}

impl FileState {
    pub fn len(&self) -> u64 {
        self.live.len
    }

    /// `false` when the file ends before `into` is full.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        let inside = offset.checked_add(into.len() as u64).is_some_and(|end| end <= self.live.len);
        if inside {
            self.live.read(offset, into);
        }
        inside
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        if end > self.live.len {
            self.set_len(end);
        }
        for (page, within, piece) in pieces(offset, bytes) {
            self.live.write(page, within, piece);
            self.pending.push(Pending::Bytes { page, within, bytes: piece.into() });
        }
    }

    pub fn set_len(&mut self, len: u64) {
        self.live.set_len(len);
        self.pending.push(Pending::Len(len));
    }

    pub fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.reach(&mut self.durable);
        }
    }

    /// A sync that failed: what was pending is on disk or never will be, and nobody knows which. Readers still see it.
    pub fn fail_sync(&mut self, rng: &mut Rng) {
        for change in self.pending.drain(..) {
            if rng.bool() {
                change.reach(&mut self.durable);
            }
        }
    }

    /// A power cut: the durable image and a part of what was pending is all there is from now on.
    pub fn crash(&mut self, rng: &mut Rng) {
        let pending = std::mem::take(&mut self.pending);
        match fate(pending.len(), rng) {
            Fate::Nothing => {}
            Fate::Everything => pending.iter().for_each(|change| change.reach(&mut self.durable)),
            Fate::Prefix(count) => {
                pending[..count].iter().for_each(|change| change.reach(&mut self.durable));
                if let Some(last) = pending.get(count) {
                    last.tear(&mut self.durable, rng);
                }
            }
            Fate::Scattered => scatter(&pending, &mut self.durable, rng),
        }
        self.durable.cut();
        self.live = self.durable.clone();
    }

    pub fn written_pages(&self) -> Vec<u64> {
        self.live.pages.iter().filter(|(_, page)| page[..] != ZEROS).map(|(page, _)| *page).collect()
    }

    /// Damage that no write explains: changes what is live and what is durable alike.
    pub fn damage(&mut self, offset: u64, xor: u8) {
        let (page, within) = (offset / PAGE_BYTES as u64, (offset % PAGE_BYTES as u64) as usize);
        for image in [&mut self.live, &mut self.durable] {
            if offset < image.len {
                image.page_mut(page)[within] ^= xor;
            }
        }
    }
}

fn fate(pending: usize, rng: &mut Rng) -> Fate {
    match rng.u32(0..8) {
        0 | 1 => Fate::Nothing,
        2 => Fate::Everything,
        3 | 4 => Fate::Prefix(rng.usize(0..=pending)),
        _ => Fate::Scattered,
    }
}

/// Writes of one page reach the disk in their order; pages do in any. A page that stops may tear at its next write.
fn scatter(pending: &[Pending], durable: &mut Image, rng: &mut Rng) {
    let keep_percent = [20, 50, 80, 95][rng.usize(0..4)];
    let mut stopped = BTreeSet::new();
    for change in pending {
        // The length stops like a page of its own.
        let place = match change {
            Pending::Bytes { page, .. } => Some(*page),
            Pending::Len(_) => None,
        };
        if stopped.contains(&place) {
            continue;
        }
        if rng.u32(0..100) < keep_percent {
            change.reach(durable);
        } else {
            stopped.insert(place);
            if rng.u32(0..4) == 0 {
                change.tear(durable, rng);
            }
        }
    }
}

impl Pending {
    fn reach(&self, image: &mut Image) {
        match self {
            Pending::Bytes { page, within, bytes } => {
                image.len = image.len.max(page * PAGE_BYTES as u64 + (within + bytes.len()) as u64);
                image.write(*page, *within, bytes);
            }
            Pending::Len(len) => image.set_len(*len),
        }
    }

    /// Some of the sectors reach the disk.
    fn tear(&self, image: &mut Image, rng: &mut Rng) {
        let Pending::Bytes { page, within, bytes } = self else { return };
        let mut at = 0;
        while at < bytes.len() {
            let end = bytes.len().min(at + SECTOR_BYTES - (within + at) % SECTOR_BYTES);
            if rng.bool() {
                image.write(*page, within + at, &bytes[at..end]);
            }
            at = end;
        }
    }
}

impl Image {
    fn read(&self, offset: u64, into: &mut [u8]) {
        let mut at = 0;
        while at < into.len() {
            let place = offset + at as u64;
            let within = (place % PAGE_BYTES as u64) as usize;
            let count = (PAGE_BYTES - within).min(into.len() - at);
            let page = self.pages.get(&(place / PAGE_BYTES as u64)).map_or(&ZEROS, |page| &**page);
            into[at..at + count].copy_from_slice(&page[within..within + count]);
            at += count;
        }
    }

    fn write(&mut self, page: u64, within: usize, bytes: &[u8]) {
        if bytes == ZEROS {
            self.pages.remove(&page);
        } else {
            self.page_mut(page)[within..within + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn page_mut(&mut self, page: u64) -> &mut [u8; PAGE_BYTES] {
        Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new(ZEROS)))
    }

    fn set_len(&mut self, len: u64) {
        let shrinks = len < self.len;
        self.len = len;
        if shrinks {
            self.cut();
        }
    }

    /// Zeros behind the end, as a reader finds them when the file grows again.
    fn cut(&mut self) {
        let (page, within) = (self.len / PAGE_BYTES as u64, (self.len % PAGE_BYTES as u64) as usize);
        self.pages.split_off(&(page + u64::from(within > 0)));
        if within > 0 && self.pages.contains_key(&page) {
            self.page_mut(page)[within..].fill(0);
        }
    }
}

/// Cuts a write at page boundaries: page, offset in it, bytes.
fn pieces(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let place = offset + at as u64;
        let within = (place % PAGE_BYTES as u64) as usize;
        let count = (PAGE_BYTES - within).min(bytes.len() - at);
        let piece = &bytes[at..at + count];
        at += count;
        (count > 0).then_some((place / PAGE_BYTES as u64, within, piece))
    })
}
