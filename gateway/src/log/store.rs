//! All segments of all streams: which there are, what they hold, and a few of them open.

use super::block::{Block, Head};
use super::disk::{Disk, Written};
use super::mutation::{Mutation, is_on};
use super::recover::shielded;
use super::segment::{Cache, Extent, Segment, SegmentError};
use crate::record::{Number, ShardIndex};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub const DIR: &str = "segments";
pub const QUARANTINE: &str = "quarantine";
/// How the file of a segment ends that is being saved.
const SALVAGED: &str = ".salvaged";
/// Segments held open at a time, besides the newest ones.
const OPEN_MAX: usize = 4;

#[derive(Clone, Debug)]
pub struct Entry {
    pub id: u32,
    pub extent: Extent,
    pub file_bytes: u64,
}

pub struct Store {
    disk: Arc<dyn Disk>,
    written: Written,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    streams: BTreeMap<u32, Vec<Entry>>,
    /// Segments that are going: nothing more may be written into them.
    sealed: BTreeSet<(u32, u32)>,
    /// Least recently used first.
    open: Vec<((u32, u32), Arc<Segment>)>,
    /// To be closed once nobody reads them: a file must never be open as two databases.
    closing: Vec<((u32, u32), Arc<Segment>)>,
}

impl Store {
    pub fn new(disk: Arc<dyn Disk>) -> Store {
        Store { disk, written: Written::default(), inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Bytes that redb has written, state included: clones count together.
    pub fn written(&self) -> Written {
        self.written.clone()
    }

    /// Enters a segment, or what it holds now.
    pub fn put(&self, stream: u32, entry: Entry) {
        let mut inner = self.lock();
        let entries = inner.streams.entry(stream).or_default();
        match entries.binary_search_by_key(&entry.id, |known| known.id) {
            Ok(at) => entries[at] = entry,
            Err(at) => entries.insert(at, entry),
        }
    }

    pub fn entries(&self, stream: u32) -> Vec<Entry> {
        self.lock().streams.get(&stream).cloned().unwrap_or_default()
    }

    /// The newest segment, unless it is going.
    pub fn newest_to_write(&self, stream: u32) -> Option<Entry> {
        let inner = self.lock();
        let newest = inner.streams.get(&stream)?.last()?;
        (!inner.sealed.contains(&(stream, newest.id))).then(|| newest.clone())
    }

    pub fn seal(&self, stream: u32, id: u32) {
        if !is_on(Mutation::FillGoingSegment) {
            self.lock().sealed.insert((stream, id));
        }
    }

    pub fn bytes(&self, stream: u32) -> u64 {
        self.lock().streams.get(&stream).map_or(0, |entries| entries.iter().map(|entry| entry.file_bytes).sum())
    }

    pub fn total_bytes(&self) -> u64 {
        self.lock().streams.values().flatten().map(|entry| entry.file_bytes).sum()
    }

    /// Opens a segment, or takes it from those open.
    pub fn open(&self, stream: u32, id: u32, create: bool) -> Result<Arc<Segment>, SegmentError> {
        let mut inner = self.lock_without_closing(stream, id);
        if let Some(at) = inner.open.iter().position(|(of, _)| *of == (stream, id)) {
            let found = inner.open.remove(at);
            let segment = found.1.clone();
            inner.open.push(found);
            return Ok(segment);
        }
        if create {
            self.disk.create_dir(&dir_of(stream))?;
        }
        let cache = if create || inner.is_newest((stream, id)) { Cache::Write } else { Cache::Read };
        let segment =
            Arc::new(Segment::open(&*self.disk, (stream, &path(stream, id)), create, cache, self.written.clone())?);
        if create {
            inner.close_others(stream);
        }
        if create && !is_on(Mutation::SkipDirSync) {
            self.disk.sync_dir(&dir_of(stream))?;
            self.disk.sync_dir(DIR)?;
            self.disk.sync_dir("")?;
        }
        inner.open.push(((stream, id), segment.clone()));
        inner.close_idle();
        Ok(segment)
    }

    /// The lock, once the segment is not in the middle of being closed. Readers hold a segment for one block.
    fn lock_without_closing(&self, stream: u32, id: u32) -> MutexGuard<'_, Inner> {
        loop {
            let mut inner = self.lock();
            inner.closing.retain(|(_, segment)| Arc::strong_count(segment) > 1);
            if inner.closing.iter().all(|(of, _)| *of != (stream, id)) {
                return inner;
            }
            drop(inner);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Closes a segment, so that the next use opens it from disk: after an error, redb's view of the file is void.
    pub fn close(&self, stream: u32, id: u32) {
        let mut inner = self.lock();
        if let Some(at) = inner.open.iter().position(|(of, _)| *of == (stream, id)) {
            let segment = inner.open.remove(at);
            inner.closing.push(segment);
        }
        inner.closing.retain(|(_, segment)| Arc::strong_count(segment) > 1);
    }

    pub fn close_all(&self) {
        let mut inner = self.lock();
        let open = std::mem::take(&mut inner.open);
        inner.closing.extend(open);
        inner.closing.retain(|(_, segment)| Arc::strong_count(segment) > 1);
    }

    /// The block that holds `number` of a shard, or the first behind it.
    pub fn block_from(
        &self,
        stream: u32,
        shard: ShardIndex,
        number: Number,
    ) -> Result<Option<Block>, (u32, SegmentError)> {
        self.found_from(stream, shard, number, |segment, last| segment.block_from(shard, number, last))
    }

    /// The same as it is stored.
    pub fn stored_from(
        &self,
        stream: u32,
        shard: ShardIndex,
        number: Number,
    ) -> Result<Option<(Head, Bytes)>, (u32, SegmentError)> {
        self.found_from(stream, shard, number, |segment, last| segment.stored_from(shard, number, last))
    }

    fn found_from<T>(
        &self,
        stream: u32,
        shard: ShardIndex,
        number: Number,
        find: impl Fn(&Segment, Number) -> Result<Option<T>, SegmentError>,
    ) -> Result<Option<T>, (u32, SegmentError)> {
        let candidates: Vec<(u32, Number)> = {
            let inner = self.lock();
            let entries = inner.streams.get(&stream).map_or(&[][..], Vec::as_slice);
            entries
                .iter()
                .filter_map(|entry| Some((entry.id, entry.extent.shards.get(&shard)?.last)))
                .filter(|(_, last)| *last >= number)
                .collect()
        };
        for (id, last) in candidates {
            let read = || find(&*self.open(stream, id, false)?, last);
            if let Some(found) = shielded(read).map_err(|error| (id, error))? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// First number of the first block whose end satisfies `late_enough`.
    pub fn block_at(
        &self,
        stream: u32,
        shard: ShardIndex,
        late_enough: &dyn Fn(u64) -> bool,
    ) -> Result<Option<Number>, SegmentError> {
        for entry in self.entries(stream) {
            let Some(extent) = entry.extent.shards.get(&shard) else { continue };
            if !late_enough(extent.last_stamp) {
                continue;
            }
            if let Some(number) = shielded(|| self.open(stream, entry.id, false)?.block_at(shard, late_enough))? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Forgets and unlinks a segment whose row is durably gone (crash rule 4).
    pub fn remove(&self, stream: u32, id: u32) -> io::Result<()> {
        self.close(stream, id);
        if let Some(entries) = self.lock().streams.get_mut(&stream) {
            entries.retain(|entry| entry.id != id);
        }
        self.lock().sealed.remove(&(stream, id));
        match self.disk.remove(&path(stream, id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.disk.sync_dir(&dir_of(stream))
    }

    /// Forgets a segment whose file is elsewhere.
    pub fn forget(&self, stream: u32, id: u32) {
        if let Some(entries) = self.lock().streams.get_mut(&stream) {
            entries.retain(|entry| entry.id != id);
        }
    }

    /// Moves a damaged segment aside, for `salvage` and for people.
    pub fn quarantine(&self, stream: u32, id: u32) -> io::Result<String> {
        self.close(stream, id);
        self.disk.create_dir(QUARANTINE)?;
        let taken = self.disk.list(QUARANTINE)?;
        let names = (0..).map(|turn| match turn {
            0 => format!("{stream:08x}-{id:08x}.redb"),
            turn => format!("{stream:08x}-{id:08x}-{turn}.redb"),
        });
        let free = names.into_iter().find(|name| !taken.contains(name)).unwrap_or_default();
        let to = format!("{QUARANTINE}/{free}");
        self.disk.rename(&path(stream, id), &to)?;
        self.disk.sync_dir(&dir_of(stream))?;
        self.disk.sync_dir(QUARANTINE)?;
        self.disk.sync_dir("")?;
        Ok(to)
    }

    /// Begins the segment that takes what is saved of a damaged one; what an earlier attempt left is gone.
    pub fn begin_salvaged(&self, stream: u32, id: u32) -> Result<Segment, SegmentError> {
        let path = salvaged_path(stream, id);
        if self.disk.exists(&path)? {
            self.disk.remove(&path)?;
        }
        let segment = Segment::open(&*self.disk, (stream, &path), true, Cache::Write, self.written.clone())?;
        self.disk.sync_dir(&dir_of(stream))?;
        Ok(segment)
    }

    /// Puts what was saved in the place of damaged segments that are moved away; returns which. Where the damaged one is
    /// still in its place, what was saved may not be whole, and goes.
    pub fn place_salvaged(&self, stream: u32) -> io::Result<Vec<u32>> {
        let mut placed = Vec::new();
        for id in self.in_folder(stream, SALVAGED)? {
            if self.disk.exists(&path(stream, id))? {
                self.disk.remove(&salvaged_path(stream, id))?;
            } else {
                self.disk.rename(&salvaged_path(stream, id), &path(stream, id))?;
                placed.push(id);
            }
            self.disk.sync_dir(&dir_of(stream))?;
        }
        Ok(placed)
    }

    /// The same for a segment that is nowhere: its salvage was refused between two renames.
    pub fn place_left(&self, stream: u32, id: u32) -> io::Result<()> {
        if !self.disk.exists(&path(stream, id))? {
            self.place_salvaged(stream)?;
        }
        Ok(())
    }

    /// Segments that lie in a stream's folder.
    pub fn on_disk(&self, stream: u32) -> io::Result<Vec<u32>> {
        self.in_folder(stream, ".redb")
    }

    fn in_folder(&self, stream: u32, ending: &str) -> io::Result<Vec<u32>> {
        let names = self.disk.list(&dir_of(stream))?;
        Ok(names.iter().filter_map(|name| u32::from_str_radix(name.strip_suffix(ending)?, 16).ok()).collect())
    }

    /// Streams that have a folder.
    pub fn streams_on_disk(&self) -> io::Result<Vec<u32>> {
        Ok(self.disk.list(DIR)?.iter().filter_map(|name| u32::from_str_radix(name, 16).ok()).collect())
    }
}

impl Inner {
    fn is_newest(&self, (stream, id): (u32, u32)) -> bool {
        self.streams.get(&stream).and_then(|entries| entries.last()).is_some_and(|newest| newest.id == id)
    }

    /// A segment that is written no more gives its large cache back: the next read opens it with a small one.
    fn close_others(&mut self, stream: u32) {
        let others = self.open.extract_if(.., |((of, _), _)| *of == stream);
        self.closing.extend(others);
        self.closing.retain(|(_, segment)| Arc::strong_count(segment) > 1);
    }

    fn close_idle(&mut self) {
        let newest: Vec<(u32, u32)> =
            self.streams.iter().filter_map(|(stream, entries)| Some((*stream, entries.last()?.id))).collect();
        let mut idle = self.open.iter().filter(|(of, _)| !newest.contains(of)).count();
        let mut total = self.open.len();
        self.open.retain(|(of, segment)| {
            // Streams beyond a dozen share the places of the idle ones, newest or not. One that is being read stays: the
            // lock is held, so nobody else can take it up meanwhile.
            let surplus = (idle > OPEN_MAX && !newest.contains(of)) || total > 4 * OPEN_MAX;
            let surplus = surplus && Arc::strong_count(segment) == 1;
            if surplus {
                total -= 1;
                idle = idle.saturating_sub(1);
            }
            !surplus
        });
    }
}

fn dir_of(stream: u32) -> String {
    format!("{DIR}/{stream:08x}")
}

fn salvaged_path(stream: u32, id: u32) -> String {
    format!("{}/{id:08x}{SALVAGED}", dir_of(stream))
}

pub fn path(stream: u32, id: u32) -> String {
    format!("{}/{id:08x}.redb", dir_of(stream))
}
