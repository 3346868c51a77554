//! Blob files: values too large for the journal are written once, in append-only files of bounded size.
//!
//! A value is synced here before its record may enter a group, so a durable record never refers to bytes that are not.
//! One thread writes; only the producer of the large value waits for it. A file goes when no record that is left needs it;
//! at start, files that nothing refers to go and tails behind the last reference are cut.

use super::batch::Batch;
use super::disk::{Disk, DiskFile, Mode};
use super::encode::{self, BlobRef};
use super::mutation::{Mutation, is_on};
use super::state;
use crate::metrics::Metrics;
use crate::record::{Number, ShardIndex};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, oneshot};
use xxhash_rust::xxh3::xxh3_64;

pub const DIR: &str = "blobs";
/// Jobs that wait for the blob thread at most; each holds one batch's large values.
const JOBS_MAX: usize = 16;

/// What of a blob file is referred to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// End of the last value that a record refers to, in bytes.
    pub bytes: u64,
    /// Highest number of each shard that refers to it.
    pub last: BTreeMap<ShardIndex, Number>,
}

/// The door's way to the blob files. Cheap to clone.
#[derive(Clone)]
pub struct Blobs {
    files: Arc<BlobFiles>,
    /// `None`: write on the calling thread (simulation, tests).
    jobs: Option<mpsc::Sender<Job>>,
}

/// Files that values are written to, by stream and file, with their lengths before.
type Touched = BTreeMap<(u32, u32), (Arc<dyn DiskFile>, u64)>;

#[derive(Debug)]
pub enum WriteError {
    Io(io::Error),
    /// The log is closing.
    Closed,
}

pub struct Job {
    values: Vec<(u32, Bytes)>,
    answer: oneshot::Sender<io::Result<Vec<BlobRef>>>,
}

impl Blobs {
    pub fn inline(files: Arc<BlobFiles>) -> Blobs {
        Blobs { files, jobs: None }
    }

    /// The queue is worked off by [`run`].
    pub fn threaded(files: Arc<BlobFiles>) -> (Blobs, mpsc::Receiver<Job>) {
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        (Blobs { files, jobs: Some(jobs) }, queue)
    }

    /// Writes and syncs the large values of a batch and fills in their references.
    pub async fn write(&self, batch: &mut Batch) -> Result<(), WriteError> {
        let values: Vec<_> =
            batch.large.iter().map(|large| (batch.parts[large.part].stream.id, large.data.clone())).collect();
        let written = match &self.jobs {
            None => self.files.write(&values),
            Some(jobs) => {
                let (answer, answered) = oneshot::channel();
                jobs.send(Job { values, answer }).await.map_err(|_| WriteError::Closed)?;
                answered.await.map_err(|_| WriteError::Closed)?
            }
        };
        let refs = written.map_err(WriteError::Io)?;
        for (large, blob) in batch.large.iter().zip(refs) {
            let part = &mut batch.parts[large.part];
            encode::fill_blob(&mut part.bytes[large.offset..large.offset + encode::BLOB_REF_BYTES], &blob);
        }
        batch.large.clear();
        Ok(())
    }

    /// Notes that a record refers to a value; returns the entry that makes the note durable with the record.
    pub fn refer(&self, stream: u32, blob: &BlobRef, shard: ShardIndex, number: Number) -> super::frame::Control {
        self.files.refer(stream, blob, shard, number)
    }
}

/// Works off the queue until it closes.
pub fn run(files: &BlobFiles, mut queue: mpsc::Receiver<Job>) {
    while let Some(first) = queue.blocking_recv() {
        let mut jobs = vec![first];
        while jobs.len() < JOBS_MAX
            && let Ok(job) = queue.try_recv()
        {
            jobs.push(job);
        }
        let all: Vec<_> = jobs.iter().flat_map(|job| job.values.iter().cloned()).collect();
        match files.write(&all) {
            Ok(refs) => {
                let mut refs = refs.into_iter();
                for job in jobs {
                    let own = refs.by_ref().take(job.values.len()).collect();
                    // A producer that went away does not want its answer.
                    let _ = job.answer.send(Ok(own));
                }
            }
            Err(error) => {
                for job in jobs {
                    let _ = job.answer.send(Err(io::Error::new(error.kind(), error.to_string())));
                }
            }
        }
    }
}

pub struct BlobFiles {
    disk: Arc<dyn Disk>,
    file_bytes_max: u64,
    metrics: Arc<Metrics>,
    /// Held while values are written and synced; taken before `known`, never after it.
    writing: Mutex<Writing>,
    /// Held for a moment only: the door asks for it.
    known: Mutex<Known>,
    /// Bytes referred to since the last fold.
    unfolded: AtomicU64,
}

#[derive(Default)]
struct Writing {
    /// The file each stream appends to, and its length.
    open: BTreeMap<u32, (u32, Arc<dyn DiskFile>, u64)>,
    next_file: BTreeMap<u32, u32>,
}

#[derive(Default)]
struct Known {
    extents: BTreeMap<(u32, u32), Extent>,
    /// The file each stream appends to.
    appending: BTreeMap<u32, u32>,
}

impl BlobFiles {
    pub fn new(disk: Arc<dyn Disk>, file_bytes_max: u64, metrics: Arc<Metrics>) -> BlobFiles {
        let (writing, known, unfolded) = (Mutex::default(), Mutex::default(), AtomicU64::new(0));
        BlobFiles { disk, file_bytes_max, metrics, writing, known, unfolded }
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether so much was written since the last fold that its records should become a segment, which can go alone.
    pub fn is_fold_due(&self) -> bool {
        self.unfolded.load(Ordering::Relaxed) >= self.file_bytes_max
    }

    pub fn folded(&self) {
        self.unfolded.store(0, Ordering::Relaxed);
    }

    pub fn file_bytes_max(&self) -> u64 {
        self.file_bytes_max
    }

    /// Recovery: a file that records refer to.
    pub fn restore(&self, stream: u32, file: u32, extent: Extent) {
        let mut writing = self.writing();
        let next = writing.next_file.entry(stream).or_default();
        *next = (*next).max(file + 1);
        self.known().extents.insert((stream, file), extent);
    }

    /// Recovery: a file whose row is gone.
    pub fn forget(&self, stream: u32, file: u32) {
        self.known().extents.remove(&(stream, file));
    }

    /// Recovery after a lost state: takes up the files of a stream that nothing is known of.
    pub fn adopt(&self, stream: u32, last: &BTreeMap<ShardIndex, Number>) -> io::Result<Vec<(u32, Extent)>> {
        let mut known = self.known();
        let mut adopted = Vec::new();
        for name in self.disk.list(&dir_of(stream))? {
            let Some(file) = file_of(&name).filter(|file| !known.extents.contains_key(&(stream, *file))) else {
                continue;
            };
            let bytes = self.disk.open(&path(stream, file), Mode::Existing)?.len()?;
            let extent = Extent { bytes, last: last.clone() };
            known.extents.insert((stream, file), extent.clone());
            adopted.push((file, extent));
        }
        Ok(adopted)
    }

    /// Recovery, after all extents are known: unreferenced files go, tails are cut.
    pub fn tidy(&self) -> io::Result<()> {
        let (mut writing, known) = (self.writing(), self.known());
        for name in self.disk.list(DIR)? {
            let Ok(stream) = u32::from_str_radix(&name, 16) else { continue };
            let dir = dir_of(stream);
            for file_name in self.disk.list(&dir)? {
                let Some(file) = file_of(&file_name) else { continue };
                let next = writing.next_file.entry(stream).or_default();
                *next = (*next).max(file + 1);
                match known.extents.get(&(stream, file)) {
                    Some(extent) => {
                        let open = self.disk.open(&path(stream, file), Mode::Existing)?;
                        if open.len()? > extent.bytes {
                            open.set_len(extent.bytes)?;
                            open.sync()?;
                        }
                    }
                    None => {
                        self.disk.remove(&path(stream, file))?;
                        self.disk.sync_dir(&dir)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn write(&self, values: &[(u32, Bytes)]) -> io::Result<Vec<BlobRef>> {
        let mut writing = self.writing();
        let mut touched = Touched::new();
        let mut refs = Vec::with_capacity(values.len());
        let mut run = || -> io::Result<()> {
            for (stream, data) in values {
                let (file, handle, at) = self.file_for(&mut writing, *stream)?;
                touched.entry((*stream, file)).or_insert((handle.clone(), at));
                handle.write_at(at, data)?;
                self.metrics.blobs_written.inc_by(data.len() as u64);
                if let Some(open) = writing.open.get_mut(stream) {
                    open.2 = at + data.len() as u64;
                }
                refs.push(BlobRef { file, offset: at, length: data.len() as u32, checksum: xxh3_64(data) });
            }
            if is_on(Mutation::SkipBlobSync) {
                return Ok(());
            }
            touched.values().try_for_each(|(file, _)| file.sync())
        };
        let done = run();
        if done.is_err() {
            // Nobody knows what these files hold now: the next value begins a new one.
            for (stream, _) in values {
                writing.open.remove(stream);
                self.known().appending.remove(stream);
            }
            self.take_back(&touched);
        }
        done.map(|()| refs)
    }

    /// Gives back what values took that were not stored, or each try on a full disk would take some more. Where that fails
    /// too, the next start does it.
    fn take_back(&self, touched: &Touched) {
        for ((stream, file), (handle, length)) in touched {
            let _ = match length {
                0 => self.disk.remove(&path(*stream, *file)),
                length => handle.set_len(*length),
            };
        }
    }

    fn file_for(&self, writing: &mut Writing, stream: u32) -> io::Result<(u32, Arc<dyn DiskFile>, u64)> {
        if let Some((file, handle, length)) = writing.open.get(&stream)
            && *length < self.file_bytes_max
        {
            return Ok((*file, handle.clone(), *length));
        }
        let next = writing.next_file.entry(stream).or_default();
        let file = *next;
        *next += 1;
        let dir = dir_of(stream);
        self.disk.create_dir(&dir)?;
        let handle = self.disk.open(&path(stream, file), Mode::Create)?;
        self.disk.sync_dir(&dir)?;
        self.disk.sync_dir(DIR)?;
        self.disk.sync_dir("")?;
        writing.open.insert(stream, (file, handle.clone(), 0));
        self.known().appending.insert(stream, file);
        Ok((file, handle, 0))
    }

    fn refer(&self, stream: u32, blob: &BlobRef, shard: ShardIndex, number: Number) -> super::frame::Control {
        self.unfolded.fetch_add(u64::from(blob.length), Ordering::Relaxed);
        let mut known = self.known();
        let extent = known.extents.entry((stream, blob.file)).or_default();
        extent.bytes = extent.bytes.max(blob.offset + u64::from(blob.length));
        extent.last.insert(shard, number);
        (super::schema::Table::Blobs, state::shard_key(stream, blob.file), Some(state::to_json(extent)))
    }

    /// Reads a value back; an error when it is not what was written.
    pub fn read(&self, stream: u32, blob: &BlobRef) -> io::Result<Bytes> {
        let file = self.disk.open(&path(stream, blob.file), Mode::Existing)?;
        let mut data = vec![0; blob.length as usize];
        file.read_at(blob.offset, &mut data)?;
        match xxh3_64(&data) == blob.checksum {
            true => Ok(data.into()),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "a large value does not have its checksum")),
        }
    }

    /// Files of a stream that nothing above the trim marks needs and that nobody appends to.
    pub fn unneeded(&self, stream: u32, oldest: impl Fn(ShardIndex) -> Number) -> Vec<u32> {
        let known = self.known();
        let appending = known.appending.get(&stream).copied();
        known
            .extents
            .range((stream, 0)..=(stream, u32::MAX))
            .filter(|((_, file), extent)| {
                Some(*file) != appending && extent.last.iter().all(|(shard, last)| *last < oldest(*shard))
            })
            .map(|((_, file), _)| *file)
            .collect()
    }

    /// Bytes of a stream's blob files.
    pub fn bytes(&self, stream: u32) -> u64 {
        self.known().extents.range((stream, 0)..=(stream, u32::MAX)).map(|(_, extent)| extent.bytes).sum()
    }

    /// Removes a file whose row is durably gone.
    pub fn remove(&self, stream: u32, file: u32) -> io::Result<()> {
        let mut writing = self.writing();
        self.known().extents.remove(&(stream, file));
        if writing.open.get(&stream).is_some_and(|(open, _, _)| *open == file) {
            writing.open.remove(&stream);
            self.known().appending.remove(&stream);
        }
        drop(writing);
        match self.disk.remove(&path(stream, file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.disk.sync_dir(&dir_of(stream))
    }

    pub fn files(&self, stream: u32) -> Vec<u32> {
        self.known().extents.range((stream, 0)..=(stream, u32::MAX)).map(|((_, file), _)| *file).collect()
    }
}

fn dir_of(stream: u32) -> String {
    format!("{DIR}/{stream:08x}")
}

fn file_of(name: &str) -> Option<u32> {
    name.strip_suffix(".blob").and_then(|hex| u32::from_str_radix(hex, 16).ok())
}

fn path(stream: u32, file: u32) -> String {
    format!("{}/{file:08x}.blob", dir_of(stream))
}

#[cfg(test)]
mod tests {
    use super::super::disk::sim::SimDisk;
    use super::*;

    #[test]
    fn a_file_is_needed_as_long_as_its_last_record() {
        let files = BlobFiles::new(SimDisk::new(1).mount(), 1 << 20, Metrics::new());
        let blob = |file| BlobRef { file, offset: 0, length: 70_000, checksum: 0 };
        for (file, shard, number) in [(0, 0, 4), (0, 0, 7), (0, 1, 3), (1, 0, 9)] {
            files.refer(5, &blob(file), shard, number);
        }
        let unneeded = |oldest: [u64; 2]| files.unneeded(5, |shard| oldest[shard as usize]);
        assert_eq!(unneeded([7, 4]), [] as [u32; 0]);
        assert_eq!(unneeded([8, 3]), [] as [u32; 0], "another shard has one in it");
        assert_eq!(unneeded([8, 4]), [0]);
        assert_eq!(unneeded([10, 4]), [0, 1]);
    }
}
