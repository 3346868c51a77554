//! Blobs that are being put together, out of parts that may come in any order, twice, from anybody.
//!
//! A blob is a device, an id and a length: parts that name another length are of another blob. Ids come again: a part with other
//! bytes than one that is there replaces it, for the device has used the id anew, and is counted. Memory and files are bounded:
//! of too many blobs at once the one that waits the longest is given up, of too many pieces the blob that has most.

use super::folder::{Folder, Kept};
use super::pieces::Pieces;
use anyhow::Result;
use headwater_wire::Chunk;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;

/// Ranges that are told of what lacks.
const MISSING_MAX: usize = 8;
/// Files of one device, id and length that are remembered.
const PATHS_MAX: usize = 4;

#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Blobs that are begun and not whole.
    pub open: usize,
    /// Pieces of all of them. What comes in order is one piece.
    pub pieces: usize,
    /// Whole blobs that are remembered, to know their parts again.
    pub whole: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { open: 1 << 14, pieces: 1 << 18, whole: 1 << 14 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub device: String,
    pub id: u32,
    pub bytes: u64,
}

/// What became of a blob.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    pub blob: Rc<Key>,
    pub fate: Fate,
    pub parts: Parts,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// Whole; `kept` if it was to be written.
    Whole { kept: Option<Kept> },
    /// The first ranges that lack, and why it was not waited for.
    Incomplete { have: u64, missing: Vec<(u64, u64)>, why: Why },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The stream has no more of it.
    End,
    TooManyBlobs,
    TooManyPieces,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    pub taken: u64,
    /// Bytes of which were there already.
    pub again: u64,
    /// And were others.
    pub replaced: u64,
}

struct Open {
    pieces: Pieces,
    parts: Parts,
    /// When its last part came; its place in `by_age`.
    touched: u64,
    /// Its file's name.
    file: u64,
}

pub struct Assembly {
    bounds: Bounds,
    /// `None`: blobs are listed and not written.
    folder: Option<Folder>,
    open: HashMap<Rc<Key>, Open>,
    by_age: BTreeMap<u64, Rc<Key>>,
    pieces: usize,
    /// Parts taken so far: the clock of `by_age`.
    now: u64,
    /// Blobs that were told of as whole, and the last of their files.
    whole: HashMap<Rc<Key>, VecDeque<PathBuf>>,
    whole_by_age: VecDeque<Rc<Key>>,
}

impl Assembly {
    pub fn new(folder: Option<Folder>, bounds: Bounds) -> Self {
        Assembly {
            bounds,
            folder,
            open: HashMap::new(),
            by_age: BTreeMap::new(),
            pieces: 0,
            now: 0,
            whole: HashMap::new(),
            whole_by_age: VecDeque::new(),
        }
    }

    /// Takes a part of a blob. What ends with it is told: at most the blob itself, and one that had to give way.
    pub fn take(&mut self, device: &str, id: u32, chunk: &Chunk<'_>) -> Result<Vec<Told>> {
        let key = Rc::new(Key { device: device.to_owned(), id, bytes: chunk.total });
        let mut told = Vec::new();
        if !self.open.contains_key(&key)
            && self.open.len() >= self.bounds.open
            && let Some(oldest) = self.by_age.values().next().cloned()
        {
            told.extend(self.give_up(&oldest, Why::TooManyBlobs)?);
        }
        if self.take_in(&key, chunk)? {
            told.extend(self.complete(&key)?);
        } else if self.pieces > self.bounds.pieces
            && let Some((most, _)) = self.open.iter().max_by_key(|(_, open)| open.pieces.count())
        {
            let most = most.clone();
            told.extend(self.give_up(&most, Why::TooManyPieces)?);
        }
        Ok(told)
    }

    /// What is left when no more parts come.
    pub fn end(&mut self) -> Result<Vec<Told>> {
        let mut left: Vec<_> = self.open.keys().cloned().collect();
        left.sort();
        left.iter().filter_map(|key| self.give_up(key, Why::End).transpose()).collect()
    }

    /// Whether the blob is whole now.
    fn take_in(&mut self, key: &Rc<Key>, chunk: &Chunk<'_>) -> Result<bool> {
        self.now += 1;
        let now = self.now;
        let fresh = || Open { pieces: Pieces::default(), parts: Parts::default(), touched: now, file: now };
        let open = self.open.entry(key.clone()).or_insert_with(fresh);
        self.by_age.remove(&open.touched);
        open.touched = now;
        self.by_age.insert(now, key.clone());
        let before = open.pieces.count();
        let places = open.pieces.add(chunk.offset, chunk.bytes.len() as u64);
        self.pieces += open.pieces.count() - before;
        open.parts.taken += 1;
        open.parts.again += u64::from(places.iter().any(|place| !place.is_new));
        if let Some(folder) = &self.folder {
            open.parts.replaced += u64::from(folder.put(open.file, &places, chunk.bytes)?);
        }
        Ok(open.pieces.bytes() == key.bytes)
    }

    /// `None` if it was whole before, and this was a repetition.
    fn complete(&mut self, key: &Rc<Key>) -> Result<Option<Told>> {
        let Some(open) = self.forget(key) else { return Ok(None) };
        let kept = match &self.folder {
            Some(folder) => Some(folder.keep(open.file, &open.pieces, &key.device, key.id)?),
            None => None,
        };
        let is_repetition = match (&kept, self.whole.get(key)) {
            (_, None) | (Some(Kept::Written(_) | Kept::Nowhere), _) => false,
            (Some(Kept::There(path)), Some(known)) => known.contains(path),
            (None, Some(_)) => true,
        };
        if !is_repetition {
            self.remember(key, &kept);
        }
        Ok((!is_repetition).then(|| Told { blob: key.clone(), fate: Fate::Whole { kept }, parts: open.parts }))
    }

    fn remember(&mut self, key: &Rc<Key>, kept: &Option<Kept>) {
        if !self.whole.contains_key(key) {
            self.whole_by_age.push_back(key.clone());
        }
        let paths = self.whole.entry(key.clone()).or_default();
        if let Some(Kept::Written(path) | Kept::There(path)) = kept {
            paths.push_back(path.clone());
        }
        if paths.len() > PATHS_MAX {
            paths.pop_front();
        }
        if self.whole.len() > self.bounds.whole
            && let Some(oldest) = self.whole_by_age.pop_front()
        {
            self.whole.remove(&oldest);
        }
    }

    /// `None` if its parts were those of a whole one.
    fn give_up(&mut self, key: &Rc<Key>, why: Why) -> Result<Option<Told>> {
        let Some(open) = self.forget(key) else { return Ok(None) };
        let mut is_repetition = self.whole.contains_key(key);
        if let Some(folder) = &self.folder {
            let paths = self.whole.get(key).into_iter().flatten();
            is_repetition = folder.is_part_of_any(open.file, &open.pieces, paths)?;
            folder.discard(open.file)?;
        }
        let missing = open.pieces.missing(key.bytes, MISSING_MAX);
        let fate = Fate::Incomplete { have: open.pieces.bytes(), missing, why };
        Ok((!is_repetition).then(|| Told { blob: key.clone(), fate, parts: open.parts }))
    }

    fn forget(&mut self, key: &Rc<Key>) -> Option<Open> {
        let open = self.open.remove(key)?;
        self.by_age.remove(&open.touched);
        self.pieces -= open.pieces.count();
        Some(open)
    }

    /// Blobs that are begun, their pieces, and whole ones that are remembered.
    #[cfg(test)]
    pub fn sizes(&self) -> (usize, usize, usize) {
        assert_eq!((self.by_age.len(), self.whole_by_age.len()), (self.open.len(), self.whole.len()));
        (self.open.len(), self.pieces, self.whole.len())
    }
}
