//! Files of NDJSON: one line a record, rolled by size and time, compressed, complete or not there at all.
//!
//! A file is written aside as `.tmp`, synced, renamed, and its directory synced; only then does the cursor move over what is
//! in it. A `.tmp` left by a crash is deleted at the next start and written again from the log. Files need no lanes: a
//! disk either takes everything or nothing, so one writer takes the shards as they come.

mod line;
mod roll;

pub use roll::Compression;

use super::weight;
use crate::backoff::Backoff;
use crate::log::{CursorState, Entry, Position};
use crate::problem::Problem;
use crate::record::{GapReason, Number, Record, ShardIndex};
use crate::units::{ByteSize, Span};
use crate::uplink::config::Common;
use crate::uplink::feed::{Chunk, Feed};
use crate::uplink::figures::{Backlog, Figures};
use crate::uplink::setup::Setup;
use roll::Roller;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

const TICK: Duration = Duration::from_millis(500);
/// What of each shard is looked at, for the figures, while nothing can be written.
const LOOK_RECORDS: usize = 256;
const LOOK_BYTES: usize = 64 << 10;

/// Files in a directory.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct FileConfig {
    #[serde(flatten)]
    pub common: Common,
    /// Where the files go; made if it is not there.
    pub dir: PathBuf,
    /// A file is complete at so many bytes before compression, or
    pub roll_bytes: ByteSize,
    /// after so long, whatever comes first.
    pub roll_after: Span,
    /// "zstd", "gzip" or "none".
    pub compression: Compression,
}

impl Default for FileConfig {
    fn default() -> Self {
        FileConfig {
            common: Common::default(),
            dir: PathBuf::new(),
            roll_bytes: ByteSize::mib(64),
            roll_after: Span::secs(300),
            compression: Compression::Zstd,
        }
    }
}

impl FileConfig {
    pub(in crate::uplink) fn check(&self, key: &str, problems: &mut Vec<Problem>) {
        let mut problem = |of: &str, says: &str| problems.push(Problem::new(format!("{key}.{of}"), says));
        if self.dir.as_os_str().is_empty() {
            problem("dir", "name the directory for the files, such as dir = \"/srv/headwater\"");
        }
        if self.roll_bytes.0 < 1024 {
            problem("roll_bytes", "write at least \"1 KiB\"; \"64 MiB\" suits most");
        }
        if self.roll_after < Span::ms(100) {
            problem("roll_after", "write at least \"100 ms\"; \"5 min\" suits most");
        }
    }
}

pub struct FileForwarder {
    setup: Setup<FileConfig>,
    shards: Vec<Shard>,
    figures: Figures,
    failures: u32,
}

struct Shard {
    index: ShardIndex,
    cursor: CursorState,
    /// One above the last number written to the open file.
    written: Number,
    /// Arrival of the first record written to the open file.
    first_arrival_ms: Option<u64>,
    /// Records written to the open file, and what they weigh.
    in_hand: (u64, u64),
}

impl FileForwarder {
    pub fn new(setup: Setup<FileConfig>) -> Self {
        let cursor = |index| setup.log.cursor(&setup.config.common.name, &setup.stream, index);
        let shards = setup.stream.shards().iter().map(|shard| Shard::at(shard.index, cursor(shard.index))).collect();
        let figures = setup.figures(&setup.config.common.name);
        FileForwarder { setup, shards, figures, failures: 0 }
    }

    /// Writes until it is told to stop, and completes the open file then. After an error it begins again at the cursors.
    pub async fn run(mut self) {
        while !self.setup.is_over() {
            let Err(error) = self.write_on().await else { continue };
            self.failures = self.failures.saturating_add(1);
            let text = format!("cannot write: {error}");
            if self.setup.trouble.set(&text) {
                tracing::warn!(sink = self.setup.config.common.name, stream = %self.setup.stream.name, %error, "files are held");
            }
            self.shards.iter_mut().for_each(Shard::begin_again);
            self.look().await;
            self.show();
            let wait_ms = Backoff::DEFAULT.wait_ms(self.failures, fastrand::u64(..));
            let _ = tokio::time::timeout(Duration::from_millis(wait_ms), self.setup.stop.changed()).await;
        }
    }

    async fn write_on(&mut self) -> std::io::Result<()> {
        let config = &self.setup.config;
        let prefix = format!("{}-{}", config.common.name, self.setup.stream.name);
        let (dir, compression) = (config.dir.clone(), config.compression);
        let mut roller = blocking(move || Roller::start(&dir, prefix, compression)).await??;
        self.shards.iter_mut().for_each(Shard::begin_again);
        let (_feeds, mut chunks) = self.feeds();
        let mut opened_ms = None;
        while !self.setup.is_over() {
            let now_ms = self.setup.now_ms();
            let wait_ms = self.setup.budget(|budget| budget.wait_ms(now_ms));
            let tick = if wait_ms > 0 { TICK.min(Duration::from_millis(wait_ms)) } else { TICK };
            tokio::select! {
                Some(chunk) = chunks.recv(), if wait_ms == 0 => {
                    opened_ms.get_or_insert(self.setup.now_ms());
                    roller = self.write(roller, chunk).await?;
                }
                _ = self.setup.stop.changed() => {}
                () = tokio::time::sleep(tick) => {}
            }
            let age_ms = opened_ms.map_or(0, |at| self.setup.now_ms().saturating_sub(at));
            let is_full = roller.bytes() >= self.setup.config.roll_bytes.0;
            if is_full || age_ms >= self.setup.config.roll_after.as_ms() {
                roller = self.complete(roller).await?;
                opened_ms = None;
            }
            self.show();
        }
        self.complete(roller).await.map(drop)
    }

    fn feeds(&self) -> (Vec<Feed>, mpsc::Receiver<Chunk>) {
        let (sender, chunks) = mpsc::channel(self.shards.len().max(1));
        let feed = |(at, shard): (usize, &Shard)| {
            Feed::start(&self.setup.log, &self.setup.stream, at, shard.index, shard.written, None, sender.clone())
        };
        (self.shards.iter().enumerate().map(feed).collect(), chunks)
    }

    /// Looks at what waits at the cursors, so that a backlog has its age and its bytes while nothing can be written.
    async fn look(&mut self) {
        for shard in &mut self.shards {
            let from = Position::At(shard.cursor.next);
            let Ok(mut reader) = self.setup.log.reader(&self.setup.stream, shard.index, from) else { continue };
            for entry in reader.next(LOOK_RECORDS, LOOK_BYTES).await.unwrap_or_default() {
                if let Entry::Record(record) = entry
                    && !shard.cursor.is_done(record.number)
                {
                    shard.note(&record);
                }
            }
        }
    }

    async fn write(&mut self, mut roller: Roller, chunk: Chunk) -> std::io::Result<Roller> {
        let shard = &mut self.shards[chunk.at];
        let (who, index, prefix) = (&self.setup.who, shard.index, self.setup.who.prefix(shard.index));
        let (mut lines, mut records, mut payload) = (Vec::new(), 0, 0);
        for entry in &chunk.entries {
            match entry {
                Entry::Record(record) => {
                    shard.written = record.number + 1;
                    if shard.cursor.is_done(record.number) {
                        continue;
                    }
                    shard.note(record);
                    line::put_record(&mut lines, record, index, &who.id_of(&prefix, record), who.stream.as_str());
                    records += 1;
                    payload += record.data.len() as u64;
                }
                Entry::Gap(gap) => {
                    shard.written = gap.to + 1;
                    if gap.reason != GapReason::Unused {
                        line::put_gap(&mut lines, gap, who);
                    }
                }
            }
        }
        roller.note(records, payload);
        self.setup.budget(|budget| budget.spend(lines.len()));
        let now_ms = self.setup.clock.now().wall_ms;
        blocking(move || roller.write(&lines, now_ms).map(|()| roller)).await?
    }

    /// Completes the open file and moves the cursors over what is in it.
    async fn complete(&mut self, mut roller: Roller) -> std::io::Result<Roller> {
        let (records, payload) = roller.noted();
        let roller = blocking(move || roller.complete().map(|()| roller)).await??;
        for shard in self.shards.iter_mut().filter(|shard| shard.written > shard.cursor.next) {
            shard.cursor.raise(shard.written);
            shard.begin_again();
            let (name, cursor) = (&self.setup.config.common.name, shard.cursor.clone());
            self.setup.log.move_cursor(name, &self.setup.stream, shard.index, cursor);
        }
        self.figures.stored(records, payload);
        self.failures = 0;
        if self.setup.trouble.clear() {
            tracing::info!(sink = self.setup.config.common.name, "files are written again");
        }
        Ok(roller)
    }

    fn show(&mut self) {
        let mut backlog = Backlog::default();
        for shard in &self.shards {
            let newest = self.setup.stream.shard(shard.index).map_or(0, |shard| shard.newest());
            backlog.records +=
                self.setup.log.records_between(&self.setup.stream, shard.index, shard.cursor.next, newest);
            backlog.in_hand = (backlog.in_hand.0 + shard.in_hand.0, backlog.in_hand.1 + shard.in_hand.1);
            backlog.oldest_arrival_ms = [backlog.oldest_arrival_ms, shard.first_arrival_ms].into_iter().flatten().min();
        }
        self.figures.backlog(backlog, self.setup.clock.now().wall_ms);
    }
}

impl Shard {
    fn at(index: ShardIndex, cursor: CursorState) -> Self {
        Shard { index, written: cursor.next, cursor, first_arrival_ms: None, in_hand: (0, 0) }
    }

    fn begin_again(&mut self) {
        self.written = self.cursor.next;
        self.first_arrival_ms = None;
        self.in_hand = (0, 0);
    }

    fn note(&mut self, record: &Record) {
        self.first_arrival_ms.get_or_insert(record.arrival_ms);
        self.in_hand = (self.in_hand.0 + 1, self.in_hand.1 + weight(record) as u64);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)
}
