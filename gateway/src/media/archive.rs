//! The fragments that a stream keeps, read back from the log: the index follows the log, and a fragment's bytes are read when
//! somebody wants them. What is not durable is not here.

use super::index::{By, Entry, Index};
use super::intake::Ready;
use crate::log::{Entry as LogEntry, Log, Position, ReadError, Reader, Stream};
use crate::record::Number;
use crate::wire::media::{Media, PARTS_MAX};
use bytes::{Bytes, BytesMut};
use headwater_video::{Fragment, matroska};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Mutex, MutexGuard};

/// Records looked at in one go while the index catches up.
const LOOK_RECORDS: usize = 2_000;
const LOOK_BYTES: usize = 4 << 20;
/// Fragments among which one that is sent again is looked for: more than a producer has on its way.
const LATELY: usize = 2_000;

/// A producer's clock and this box's differ by less than this, or what is older than the index is not found by time, in
/// milliseconds.
const CLOCKS_APART_MS: i64 = 3_600_000;
/// Fragments older than the index that one question may find: more than a day of one a second.
const OLDER_MAX: usize = 100_000;

/// Which fragments are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Select {
    pub by: By,
    pub from_ms: i64,
    pub to_ms: i64,
    /// Those that show something of the range, not only those that begin in it.
    pub showing: bool,
}

impl Select {
    /// What shows something of a range of the producer's time.
    pub fn showing(from_ms: i64, to_ms: i64) -> Select {
        Select { by: By::Producer, from_ms, to_ms, showing: true }
    }

    pub fn takes(&self, entry: &Entry) -> bool {
        match self.showing {
            true => entry.start_ms < self.to_ms && entry.end_ms() > self.from_ms,
            false => (self.from_ms..=self.to_ms).contains(&self.by.ms(entry)),
        }
    }

    /// Whether there may be some that are older than the first of the index.
    fn reaches_before(&self, first: &Entry) -> bool {
        self.from_ms < first.start_ms.max(first.server_ms as i64)
    }
}

/// One stream's fragments. Shared by all who read the stream.
pub struct Archive {
    log: Log,
    pub stream: Arc<Stream>,
    followed: Mutex<Followed>,
    /// What came last, for `twin`: a producer does not wait until the whole stream has been looked at.
    lately: Mutex<Followed>,
    /// How many entries the index may hold.
    entries_max: AtomicUsize,
}

struct Followed {
    index: Index,
    /// `None` before the first look.
    reader: Option<Reader>,
    /// It has been as far as the log.
    is_warm: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum FragmentError {
    #[error("the fragment is not there any more")]
    Gone,
    #[error("more than {OLDER_MAX} fragments lie in that time: ask for a shorter one")]
    TooMany,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the stored fragment cannot be read: {0}")]
    Damaged(String),
}

/// A fragment as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    pub media: Media,
    /// A Matroska file: head, then clusters.
    pub bytes: Bytes,
    /// Name and value of what its producer tagged it with.
    pub tags: Vec<(String, String)>,
}

impl Stored {
    /// EBML, Segment, Info and Tracks.
    pub fn head(&self) -> Bytes {
        self.bytes.slice(..(self.media.head_bytes as usize).min(self.bytes.len()))
    }

    pub fn clusters(&self) -> Bytes {
        self.bytes.slice((self.media.head_bytes as usize).min(self.bytes.len())..)
    }

    pub fn fragment(&self) -> Result<Fragment, FragmentError> {
        matroska::read_fragment(&self.bytes).map_err(|error| FragmentError::Damaged(error.to_string()))
    }
}

impl Archive {
    pub fn new(log: Log, stream: Arc<Stream>) -> Archive {
        let of = |entries| Mutex::new(Followed { index: Index::new(entries), reader: None, is_warm: false });
        let (followed, lately) = (of(usize::MAX), of(LATELY));
        Archive { log, stream, followed, lately, entries_max: AtomicUsize::new(usize::MAX) }
    }

    /// The index as the log is now. It is locked until dropped: take from it what is needed, and let go.
    pub async fn index(&self) -> Result<Looked<'_>, ReadError> {
        let mut followed = self.followed.lock().await;
        followed.index.resize(self.entries_max.load(Ordering::Relaxed));
        followed.catch_up(&self.log, &self.stream, Position::Oldest).await?;
        if let Some(shard) = self.stream.shard(0) {
            followed.index.trim(shard.oldest());
        }
        Ok(Looked(followed))
    }

    /// Goes on with an index that has been made, so that whoever looks at it next finds little to do; not while somebody is at it.
    pub async fn follow(&self) {
        if let Ok(mut followed) = self.followed.try_lock()
            && followed.is_warm
        {
            // Whoever looks hears of the fault.
            let _ = followed.catch_up(&self.log, &self.stream, Position::Oldest).await;
        }
    }

    /// Fragments in the index as it stands, if it has been made.
    #[cfg(test)]
    pub fn indexed(&self) -> Option<usize> {
        self.followed.try_lock().ok().filter(|followed| followed.is_warm).map(|followed| followed.index.len())
    }

    pub fn hold_at_most(&self, entries: usize) {
        self.entries_max.store(entries, Ordering::Relaxed);
    }

    /// Fragments that begin within a range of time, or show something of it, each with its ordinal; what the index does
    /// not hold any more is looked up, and is numbered backwards from what it does.
    pub async fn select(&self, what: Select) -> Result<Vec<(u64, Entry)>, FragmentError> {
        let (mut found, first) = {
            let index = self.index().await?;
            let found: Vec<(u64, Entry)> =
                index.all().filter(|(_, entry)| what.takes(entry)).map(|(ordinal, entry)| (ordinal, *entry)).collect();
            (found, index.first().filter(|_| index.is_cut()).copied())
        };
        if let Some(first) = first.filter(|first| what.reaches_before(first)) {
            let older = self.older(what, 0..first.number, OLDER_MAX + 1).await?;
            if older.len() > OLDER_MAX {
                return Err(FragmentError::TooMany);
            }
            let next = found.first().map_or(0, |(ordinal, _)| *ordinal);
            let begin = next.saturating_sub(older.len() as u64);
            let older = older.into_iter().enumerate().map(|(at, entry)| (begin + at as u64, entry));
            found = older.chain(found).collect();
        }
        Ok(found)
    }

    /// As many as `select` would find, or more.
    pub async fn count(&self, what: Select) -> Result<usize, ReadError> {
        let index = self.index().await?;
        let first = index.first().filter(|_| index.is_cut());
        let older = first.is_some_and(|first| what.reaches_before(first));
        Ok(index.all().filter(|(_, entry)| what.takes(entry)).count() + if older { OLDER_MAX } else { 0 })
    }

    /// The first `most` of those behind a record, wherever they are: a page of a list.
    pub async fn page(&self, what: Select, after: Option<Number>, most: usize) -> Result<Vec<Entry>, ReadError> {
        let from = after.map_or(0, |after| after.saturating_add(1));
        let first = {
            let index = self.index().await?;
            index.first().filter(|_| index.is_cut()).copied()
        };
        let mut found = match first.filter(|first| from < first.number) {
            Some(first) => self.older(what, from..first.number, most).await?,
            None => Vec::new(),
        };
        let index = self.index().await?;
        let from = found.last().map_or(from, |last| last.next_number());
        let rest = index.from(index.behind(from.saturating_sub(1))).map(|(_, entry)| *entry);
        found.extend(rest.filter(|entry| entry.number >= from && what.takes(entry)).take(most - found.len().min(most)));
        Ok(found)
    }

    /// Looks the log through for fragments of a run of numbers that the index does not hold: the first `most`, from the time
    /// asked for on, give or take what a producer's clock may differ from this box's.
    async fn older(&self, what: Select, within: Range<Number>, most: usize) -> Result<Vec<Entry>, ReadError> {
        let from_ms = u64::try_from(what.from_ms.saturating_sub(CLOCKS_APART_MS)).unwrap_or(0);
        let to_ms = u64::try_from(what.to_ms.saturating_add(CLOCKS_APART_MS)).unwrap_or(0);
        let (log, stream) = (self.log.clone(), self.stream.clone());
        // Finding a time reads a block or two.
        let opened = tokio::task::spawn_blocking(move || log.reader(&stream, 0, Position::Time(from_ms))).await;
        let mut reader = opened.map_err(|error| ReadError::Store(error.to_string()))??;
        if reader.position() < within.start {
            reader = self.log.reader(&self.stream, 0, Position::At(within.start))?;
        }
        let mut reader = reader.heads_only();
        // Of what was seen only the last, which says whether the next goes on from it.
        let (mut seen, mut known, mut found) = (Index::new(1), None, Vec::new());
        while reader.position() < within.end && seen.last().is_none_or(|last| last.server_ms <= to_ms) {
            let entries = reader.next(LOOK_RECORDS, LOOK_BYTES).await?;
            if entries.is_empty() {
                break;
            }
            for entry in &entries {
                let LogEntry::Record(record) = entry else { continue };
                seen.add(record);
                let Some(entry) = seen.last().filter(|entry| known != Some(entry.number)) else { continue };
                known = Some(entry.number);
                if within.contains(&entry.number) && what.takes(entry) {
                    found.push(*entry);
                    if found.len() == most {
                        return Ok(found);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The fragment that begins with a record, and the one behind it; from the log if the index does not hold it.
    pub async fn entry(&self, number: Number) -> Result<Option<(u64, Entry, Option<Entry>)>, ReadError> {
        {
            let index = self.index().await?;
            if let Some(entry) = index.by_number(number) {
                let ordinal = index.behind(number).saturating_sub(1);
                return Ok(Some((ordinal, *entry, index.at(ordinal + 1).copied())));
            }
            if !index.is_cut() {
                return Ok(None);
            }
        }
        let mut reader = self.log.reader(&self.stream, 0, Position::At(number))?.heads_only();
        let mut index = Index::new(2);
        let most = 2 * (u64::from(PARTS_MAX) + 1);
        while index.len() < 2 && reader.position() < number.saturating_add(most) {
            let entries = reader.next(1, 1).await?;
            match entries.first() {
                Some(LogEntry::Record(record)) => index.add(record),
                _ => break,
            }
        }
        let entry = index.first().filter(|entry| entry.number == number).copied();
        Ok(entry.map(|entry| (number, entry, index.last().filter(|last| last.number > number).copied())))
    }

    /// The first fragment behind a record, wherever it is, and by how much it is older than the newest, in milliseconds.
    pub async fn behind(&self, number: Number) -> Result<Option<(Entry, u64)>, ReadError> {
        let newest_ms = {
            let index = self.index().await?;
            let newest_ms = index.last().map_or(0, |last| last.server_ms);
            if !index.is_cut() || index.first().is_none_or(|first| number >= first.number) {
                let ordinal = index.behind(number);
                return Ok(index.at(ordinal).map(|entry| (*entry, newest_ms.saturating_sub(entry.server_ms))));
            }
            newest_ms
        };
        let mut reader = self.log.reader(&self.stream, 0, Position::At(number + 1))?.heads_only();
        let mut index = Index::new(1);
        while index.len() == 0 {
            let entries = reader.next(1, 1).await?;
            if entries.is_empty() {
                break;
            }
            if let Some(LogEntry::Record(record)) = entries.first() {
                index.add(record);
            }
        }
        Ok(index.first().map(|entry| (*entry, newest_ms.saturating_sub(entry.server_ms))))
    }

    /// The first fragment at or behind a time.
    pub async fn first_at(&self, by: By, ms: i64) -> Result<Option<Entry>, ReadError> {
        let (found, first) = {
            let index = self.index().await?;
            (index.first_at(by, ms).map(|(_, entry)| *entry), index.first().filter(|_| index.is_cut()).copied())
        };
        match first.filter(|first| ms < by.ms(first)) {
            Some(first) => {
                let what = Select { by, from_ms: ms, to_ms: by.ms(&first), showing: false };
                Ok(self.older(what, 0..first.number, 1).await?.first().copied().or(found))
            }
            None => Ok(found),
        }
    }

    /// Returns when there are records behind `number`, or the stream is deleted. Cancel-safe.
    pub async fn changed(&self, number: Number) -> Result<(), ReadError> {
        let mut reader = self.log.reader(&self.stream, 0, Position::At(number + 1))?;
        reader.ready().await;
        Ok(())
    }

    /// The number of a fragment that is there already and is this one, byte for byte: a producer whose connection broke
    /// sends what it was not told of again. Only what came lately is looked at.
    pub async fn twin(&self, ready: &Ready) -> Option<Number> {
        let is_like = |entry: &Entry| {
            let (it, its) = (&ready.media, (entry.start_ms, entry.bytes, entry.head_id));
            its == (it.start_ms, it.bytes, it.head_id)
        };
        let found = {
            let mut lately = self.lately.lock().await;
            let newest = self.stream.shard(0)?.newest();
            let from = Position::At(newest.saturating_sub(LATELY as u64));
            lately.catch_up(&self.log, &self.stream, from).await.ok()?;
            lately.index.all().rev().map(|(_, entry)| *entry).find(is_like)?
        };
        let stored = self.read(&found).await.ok()?;
        (stored.bytes == ready.bytes).then_some(found.number)
    }

    /// Reads a fragment's parts and puts them together.
    pub async fn read(&self, entry: &Entry) -> Result<Stored, FragmentError> {
        let mut reader = self.log.reader(&self.stream, 0, Position::At(entry.number))?;
        let mut whole: Option<Stored> = None;
        let mut bytes = BytesMut::new();
        for part in 0..entry.parts {
            let found = reader.next(1, 1).await?;
            let Some(LogEntry::Record(record)) = found.into_iter().next() else { return Err(FragmentError::Gone) };
            let media = Media::of(&record).filter(|media| media.part == part && media.parts == entry.parts);
            let Some(media) = media.filter(|_| record.number == entry.number + u64::from(part)) else {
                return Err(FragmentError::Gone);
            };
            if entry.parts == 1 {
                let tags = tags_of(&record);
                return Ok(Stored { media, bytes: record.data, tags });
            }
            whole.get_or_insert_with(|| Stored { media, bytes: Bytes::new(), tags: tags_of(&record) });
            bytes.extend_from_slice(&record.data);
        }
        let mut whole = whole.ok_or(FragmentError::Gone)?;
        whole.bytes = bytes.freeze();
        Ok(whole)
    }
}

fn tags_of(record: &crate::record::Record) -> Vec<(String, String)> {
    let users = record.headers.iter().filter_map(|header| header.as_user());
    users.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The index, locked.
pub struct Looked<'a>(MutexGuard<'a, Followed>);

impl std::ops::Deref for Looked<'_> {
    type Target = Index;

    fn deref(&self) -> &Index {
        &self.0.index
    }
}

impl Followed {
    /// `from` is where the first look begins.
    async fn catch_up(&mut self, log: &Log, stream: &Arc<Stream>, from: Position) -> Result<(), ReadError> {
        // It stays where it is: whoever looks may go away in the middle, and the next one goes on from there.
        let reader = match &mut self.reader {
            Some(reader) => reader,
            None => self.reader.insert(log.reader(stream, 0, from)?.heads_only()),
        };
        loop {
            let entries = reader.next(LOOK_RECORDS, LOOK_BYTES).await?;
            if entries.is_empty() {
                self.is_warm = true;
                return Ok(());
            }
            for entry in &entries {
                if let LogEntry::Record(record) = entry {
                    self.index.add(record);
                }
            }
        }
    }
}
