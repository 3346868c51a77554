//! The log without threads: every step is called by hand, so that a simulation replays exactly. Not in product builds.

use super::CursorState;
use super::ack::{Appender, Ticket};
use super::batch::{Batch, Placement};
use super::blob::Blobs;
use super::disk::Disk;
use super::engine::{Engine, Sizes, Step, lock};
use super::error::{AppendError, CreateError, OpenError, ReadError};
use super::fold::{FoldError, Folded};
pub use super::mutation::{Mutation, turn_on, turn_on_for_process};
use super::read::{Position, Reader};
use super::recover::{self, Recovery};
use super::stream::{Stream, StreamSettings};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::record::{Gap, ShardIndex, StreamName};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Sizes small enough that a few hundred operations lap the ring and roll segments.
#[derive(Clone, Copy, Debug)]
pub struct SimSizes {
    pub budget: u64,
    pub ring: u64,
    pub segment: u64,
    pub blob_file: u64,
}

pub struct SteppedLog {
    pub(super) engine: Arc<Engine>,
    pub recovery: Recovery,
    saving: Option<Ticket>,
}

impl SteppedLog {
    pub fn open(disk: Arc<dyn Disk>, clock: Clock, seed: u64, sizes: SimSizes) -> Result<SteppedLog, OpenError> {
        let SimSizes { budget, ring, segment, blob_file } = sizes;
        let group_max = (ring / 16) as usize;
        let sizes =
            Sizes { budget, ring, segment, blob_file, fold_at: 64 << 10, window_max: 2 * ring as usize, group_max };
        let metrics = Metrics::new();
        let entropy = fastrand::Rng::with_seed(seed);
        let setup = recover::Setup { disk, sizes, clock, metrics, entropy, machine: vec![1] };
        let (engine, recovery) = recover::recover(setup, Blobs::inline)?;
        Ok(SteppedLog { engine: Arc::new(engine), recovery, saving: None })
    }

    pub fn appender(&self) -> Appender {
        Appender::new(self.engine.door.clone())
    }

    /// `None`: the log is behind and takes nothing now.
    pub fn append(
        &self,
        appender: &mut Appender,
        batch: &mut Batch,
    ) -> Result<Option<(Ticket, Vec<Placement>)>, AppendError> {
        appender.try_append(batch)
    }

    pub fn commit_step(&self) -> SimStep {
        match self.engine.commit_step(|| 0.0) {
            Step::Idle => SimStep::Idle,
            Step::Committed => SimStep::Committed,
            Step::NoRoom => SimStep::NoRoom,
            Step::Failed => SimStep::Failed,
        }
    }

    pub fn fold_step(&self, all: bool) -> Result<Folded, FoldError> {
        let folded = self.engine.fold_step(all, false);
        if folded.as_ref().is_err_and(super::threads::is_full) {
            self.engine.set_disk_full(true);
        }
        folded
    }

    /// Retention, cursors, healing: what the second thread does each second.
    pub fn tick(&mut self) {
        self.engine.heal_step();
        self.engine.save_cursors(&mut self.saving);
        self.engine.retain_step();
    }

    /// Saves what is whole of segments that readers were refused.
    pub fn heal(&self) {
        self.engine.heal_step();
    }

    /// A clean stop. Without it, dropping the log is a crash of the process.
    pub fn close(self) -> Result<(), FoldError> {
        self.engine.door.put_state(self.engine.cursors.save());
        self.engine.door.close();
        while self.engine.commit_step(|| 0.0) == Step::Committed {}
        self.engine.fold_step(true, true)?;
        self.engine.store.close_all();
        *lock(&self.engine.state_db) = None;
        Ok(())
    }

    pub fn create_stream(&self, name: &StreamName, settings: StreamSettings) -> Result<Arc<Stream>, CreateError> {
        self.engine.create_stream(name, settings, &mut |batch| self.commit(batch))
    }

    pub fn delete_stream(&self, name: &StreamName) -> Result<(), super::DeleteError> {
        self.engine.delete_stream(name, &mut |batch| self.commit(batch))
    }

    fn commit(&self, batch: &mut Batch) -> Result<(), AppendError> {
        let mut appender = self.appender();
        let Some((ticket, _)) = appender.try_append(batch)? else {
            return Err(AppendError::Failed("the log is behind".into()));
        };
        for _ in 0..4 {
            match self.engine.commit_step(|| 0.0) {
                Step::NoRoom => _ = self.engine.fold_step(true, false),
                _ if appender.durable_now()? >= ticket => return Ok(()),
                _ => {}
            }
        }
        Err(AppendError::Failed("not committed".into()))
    }

    pub fn stream(&self, name: &str) -> Option<Arc<Stream>> {
        self.engine.all_streams().into_iter().find(|stream| stream.name.as_str() == name)
    }

    pub fn reader(&self, stream: &Arc<Stream>, shard: ShardIndex, from: Position) -> Result<Reader, ReadError> {
        Reader::new(self.engine.clone(), stream, shard, from)
    }

    pub fn gaps(&self, stream: &Stream) -> Vec<Gap> {
        self.engine.state.ledger(stream.id)
    }

    pub fn record_gap(&self, stream: &Stream, gap: &Gap) {
        self.engine.note_gap(stream, gap);
    }

    pub fn register_sink(&self, sink: &str, stream: &Stream, required: bool) {
        self.engine.cursors.register(sink, [stream.name.clone()], required);
    }

    pub fn cursor(&self, sink: &str, stream: &Stream, shard: ShardIndex) -> Option<CursorState> {
        self.engine.cursors.get(sink, &stream.name, shard)
    }

    pub fn move_cursor(&self, sink: &str, stream: &Stream, shard: ShardIndex, to: CursorState) {
        self.engine.cursors.set(sink, &stream.name, shard, to);
    }

    pub fn state(&self, table: super::schema::Table, key: &[u8]) -> Option<bytes::Bytes> {
        self.engine.state.get(table, key)
    }

    pub fn trouble(&self) -> Option<String> {
        self.engine.trouble()
    }

    /// Raw bytes not folded yet.
    pub fn window_bytes(&self) -> usize {
        self.engine.window_bytes.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SimStep {
    Idle,
    Committed,
    NoRoom,
    Failed,
}
