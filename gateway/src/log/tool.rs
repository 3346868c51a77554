//! What can be done with the data directory of a stopped gateway: look, check, repair.
//!
//! All three do what a start does. `inspect` and `verify` do it over an overlay, so nothing on disk changes; `repair` does
//! it for real, salvages every damaged segment, and says what it did.

use super::blob::Blobs;
use super::disk::{self, Disk, OverlayDisk, RealDisk};
use super::engine::{Engine, Sizes, Step, lock};
use super::error::OpenError;
use super::rebuild::{self, Damaged};
use super::recover::{self, Recovery, guarded};
use super::segment::SegmentError;
use super::state;
use super::store::{self, Entry};
use super::stream::Stream;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::record::{Number, shard_id};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// What a data directory holds.
#[derive(Debug, Serialize)]
pub struct Report {
    pub gateway: String,
    pub incarnation: u32,
    pub recovery: Recovery,
    pub bytes: u64,
    pub streams: Vec<StreamReport>,
    /// Damage, in sentences; empty when all is well.
    pub problems: Vec<String>,
    /// What `repair` did, in sentences.
    pub actions: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct StreamReport {
    pub name: String,
    pub id: u32,
    pub bytes: u64,
    pub records: u64,
    pub shards: Vec<ShardReport>,
    pub segments: Vec<SegmentReport>,
    pub gaps: Vec<GapReport>,
}

#[derive(Debug, Serialize)]
pub struct ShardReport {
    pub shard: String,
    pub oldest: Number,
    pub newest: Number,
}

#[derive(Debug, Serialize)]
pub struct SegmentReport {
    pub file: String,
    pub bytes: u64,
    /// Blocks that were checked; only `verify` and `repair` count them.
    pub blocks: u64,
    pub damaged_blocks: u64,
}

#[derive(Debug, Serialize)]
pub struct GapReport {
    pub shard: String,
    pub from: Number,
    pub to: Number,
    pub count: u64,
    pub reason: &'static str,
}

/// Told after each step: how many of how many bytes are done.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// What is there and what a start would do. Changes nothing.
pub fn inspect(dir: &Path) -> Result<Report, OpenError> {
    let opened = Opened::open(dir, true)?;
    Ok(opened.report())
}

/// The same, with every block read and every missing number accounted for. Changes nothing.
pub fn verify(dir: &Path, progress: Progress<'_>) -> Result<Report, OpenError> {
    let opened = Opened::open(dir, true)?;
    let mut report = opened.report();
    opened.verify(&mut report, progress, &mut |_, _, _| Ok(()))?;
    Ok(report)
}

/// Does what a start does, saves what is whole of every damaged segment, enters what is lost into the gap ledger.
pub fn repair(dir: &Path, progress: Progress<'_>) -> Result<Report, OpenError> {
    let opened = Opened::open(dir, false)?;
    let mut report = opened.report();
    report.actions.append(&mut report.recovery.told.clone());
    let mut actions = Vec::new();
    opened.verify(&mut report, progress, &mut |stream, entry, why| {
        actions.push(opened.engine.salvage(stream, entry, why)?);
        Ok(())
    })?;
    report.actions.append(&mut actions);
    opened.close()?;
    // Said again as it is now, with what was done.
    let after = Opened::open(dir, true)?.report();
    Ok(Report { actions: report.actions, problems: report.problems, ..after })
}

struct Opened {
    engine: Arc<Engine>,
    recovery: Recovery,
    _lock: disk::LockFile,
}

type OnDamage<'a> = &'a mut dyn FnMut(&Arc<Stream>, &Entry, &SegmentError) -> Result<(), SegmentError>;

impl Opened {
    fn open(dir: &Path, overlay: bool) -> Result<Opened, OpenError> {
        let io = |source| OpenError::Io { path: dir.to_owned(), source };
        if !dir.is_dir() {
            return Err(io(std::io::ErrorKind::NotFound.into()));
        }
        let held = disk::lock(dir).map_err(io)?.ok_or_else(|| OpenError::Locked { dir: dir.to_owned() })?;
        let real: Arc<dyn Disk> = Arc::new(RealDisk::open_root(dir).map_err(io)?);
        let setup = recover::Setup {
            disk: if overlay { Arc::new(OverlayDisk::new(real)) } else { real },
            sizes: Sizes::of(super::BUDGET_MIN.0),
            clock: Clock::system(),
            metrics: Metrics::new(),
            entropy: fastrand::Rng::new(),
            machine: super::machine(),
        };
        let (engine, recovery) = recover::recover(setup, Blobs::inline).map_err(|error| error.within(dir))?;
        Ok(Opened { engine: Arc::new(engine), recovery, _lock: held })
    }

    /// Commits what recovery and repair have to tell, folds it, ends cleanly.
    fn close(self) -> Result<(), OpenError> {
        self.engine.door.close();
        while self.engine.commit_step(|| 0.0) == Step::Committed {}
        self.engine.fold_step(true, true).map_err(|error| OpenError::Store(error.to_string()))?;
        self.engine.store.close_all();
        *lock(&self.engine.state_db) = None;
        Ok(())
    }

    fn report(&self) -> Report {
        let engine = &self.engine;
        Report {
            gateway: engine.gateway_id.clone(),
            incarnation: engine.incarnation,
            recovery: self.recovery.clone(),
            bytes: engine.bytes_used(),
            streams: engine.all_streams().iter().map(|stream| stream_report(engine, stream)).collect(),
            problems: self.recovery.told.clone(),
            actions: Vec::new(),
        }
    }

    /// Reads every block of every segment.
    fn verify(&self, report: &mut Report, progress: Progress<'_>, on_damage: OnDamage<'_>) -> Result<(), OpenError> {
        let engine = &self.engine;
        let total = engine.store.total_bytes();
        let mut done = 0;
        for stream in engine.all_streams() {
            for entry in engine.store.entries(stream.id) {
                let checked = guarded(&*engine.disk, || engine.store.open(stream.id, entry.id, false)?.verify());
                engine.store.close(stream.id, entry.id);
                let damage = match &checked {
                    Ok(verified) => note_segment(report, &stream, &entry, verified),
                    Err(error) => Some(error.to_string()),
                };
                if let Some(says) = damage {
                    report.problems.push(format!("{}: {says}", store::path(stream.id, entry.id)));
                    on_damage(&stream, &entry, &SegmentError::Io(std::io::Error::other(says)))
                        .map_err(|error| OpenError::Store(error.to_string()))?;
                }
                done += entry.file_bytes;
                progress(done, total);
            }
            report.problems.extend(unexplained(engine, &stream));
        }
        Ok(())
    }
}

fn stream_report(engine: &Engine, stream: &Stream) -> StreamReport {
    let segment = |entry: &Entry| SegmentReport {
        file: store::path(stream.id, entry.id),
        bytes: entry.file_bytes,
        blocks: 0,
        damaged_blocks: 0,
    };
    StreamReport {
        name: stream.name.to_string(),
        id: stream.id,
        bytes: engine.store.bytes(stream.id) + engine.blobs.bytes(stream.id),
        records: engine.record_count(stream),
        shards: stream
            .shards()
            .iter()
            .map(|shard| ShardReport { shard: shard_id(shard.index), oldest: shard.oldest(), newest: shard.newest() })
            .collect(),
        segments: engine.store.entries(stream.id).iter().map(segment).collect(),
        gaps: engine
            .state
            .ledger(stream.id)
            .into_iter()
            .map(|gap| GapReport {
                shard: shard_id(gap.shard),
                from: gap.from,
                to: gap.to,
                count: gap.count(),
                reason: gap.reason.as_str(),
            })
            .collect(),
    }
}

fn note_segment(
    report: &mut Report,
    stream: &Stream,
    entry: &Entry,
    verified: &super::segment::Verified,
) -> Option<String> {
    let file = store::path(stream.id, entry.id);
    let segments = report.streams.iter_mut().flat_map(|stream| &mut stream.segments);
    if let Some(segment) = segments.into_iter().find(|segment| segment.file == file) {
        segment.blocks = (verified.good.len() + verified.damaged.len()) as u64;
        segment.damaged_blocks = verified.damaged.len() as u64;
    }
    (!verified.damaged.is_empty()).then(|| format!("{} blocks do not have their checksum", verified.damaged.len()))
}

fn unexplained(engine: &Engine, stream: &Stream) -> Vec<String> {
    let missing = super::replay::unexplained(&engine.store, &engine.state, stream);
    let says = |(shard, from, to)| {
        let (name, shard) = (&stream.name, shard_id(shard));
        format!("stream {name}, {shard}: numbers {from} to {to} are missing and no gap record says why")
    };
    missing.into_iter().map(says).collect()
}

impl Engine {
    /// Saves what is whole of a damaged segment; returns what was done, as a sentence.
    pub(super) fn salvage(
        &self,
        stream: &Arc<Stream>,
        entry: &Entry,
        why: &SegmentError,
    ) -> Result<String, SegmentError> {
        let (name, known) = (stream.name.as_str(), Some(&self.state));
        let damaged = Damaged { stream: stream.id, name, id: entry.id, row: &entry.extent, known, why };
        let oldest = |shard| stream.shard(shard).map_or(0, |shard| shard.oldest());
        let salvaged = rebuild::salvage(&self.store, &damaged, oldest, Some(&self.copy_of(stream)))?;
        for gap in salvaged.gaps {
            self.note_gap(stream, &gap);
        }
        match salvaged.extent {
            Some(extent) => {
                let file_bytes = self.store.open(stream.id, entry.id, false)?.file_bytes();
                let row = state::shard_key(stream.id, entry.id);
                self.door.put_state([(super::schema::Table::Segments, row, Some(state::to_json(&extent)))]);
                self.store.put(stream.id, Entry { id: entry.id, extent, file_bytes });
            }
            None => {
                let row = state::shard_key(stream.id, entry.id);
                self.door.put_state([(super::schema::Table::Segments, row, None)]);
                self.store.forget(stream.id, entry.id);
            }
        }
        Ok(salvaged.says)
    }
}
