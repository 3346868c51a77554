//! Carries one video stream into files of a bucket: between the log's reader, the file and the destination this is the only I/O.
//!
//! What it decides: when a part leaves, when a file is complete, what is done about an error, and when the cursor moves. The
//! order is: part stored -> its row; all parts -> sealed; index -> Complete -> cursor -> rows away. Whatever fails is tried again
//! where it stands, with what is in memory, and nothing more is read meanwhile.

use super::file::{File, Refused, Wanted};
use super::index::{self, Told};
use super::plan::name;
use super::row::{self, Hole, Upload};
use super::store::{Done, No, Op, Store, digest};
use super::{Format, S3VideoConfig};
use crate::backoff::Backoff;
use crate::log::{Batch, CursorState, Entry, Table};
use crate::record::{GapReason, Number, Record};
use crate::uplink::dead::DeadLetters;
use crate::uplink::feed::{Chunk, Feed};
use crate::uplink::figures::{Backlog, Figures};
use crate::uplink::setup::Setup;
use crate::uplink::sink::Fault;
use crate::uplink::sink::video::Only;
use crate::uplink::sink::video::assemble::{Assembled, Assembler, Fragment};
use crate::uplink::sink::video::marks::{self, Verdict};
use crate::wire::media::Mark;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// The longest sleep, and how often figures are shown and marks are looked for, in milliseconds.
const TICK_MS: u64 = 250;
const FIGURES_EVERY_MS: u64 = 1_000;
const MARKS_EVERY_MS: u64 = 500;
/// After so long a row or a letter that could not be kept is tried again.
const KEEP_AGAIN_MS: u64 = 1_000;
/// A stream that is quiet has nothing more for a file whose time is over: for a quarter of that time, within these bounds, in
/// milliseconds, and twice its last fragment's length.
const QUIET_MS: (u64, u64) = (1_000, 60_000);
/// A video stream has one shard.
const SHARD: u32 = 0;

pub struct S3VideoForwarder {
    setup: Setup<S3VideoConfig>,
    store: Arc<Store>,
    cursor: CursorState,
    assembler: Assembler,
    queue: VecDeque<What>,
    file: Option<File>,
    /// Losses in front of the next file.
    holes: Vec<Hole>,
    /// Everything below is in the file, or seen to.
    next: Number,
    /// No file was begun since the last look at the rows: the first may be there already.
    is_fresh: bool,
    /// When the file was begun or taken up, and when something came last.
    begun_ms: u64,
    came_ms: u64,
    marks: (Vec<Mark>, u64),
    /// The fragment that waits for a mark, and since when.
    waits: (Number, u64),
    failures: u32,
    dead: DeadLetters,
    figures: Figures,
    figures_at_ms: u64,
}

enum What {
    Fragment(Fragment),
    Refused(Vec<Record>, String),
    Gone(Hole),
}

/// Why it does not go on.
enum Stop {
    /// It was told to stop, or the stream is deleted.
    Over,
    /// It begins again at the cursor.
    Again,
}

impl S3VideoForwarder {
    pub fn new(setup: Setup<S3VideoConfig>) -> S3VideoForwarder {
        let name = &setup.config.common.name;
        S3VideoForwarder {
            store: Arc::new(Store::new(&setup.config, setup.clock.clone(), setup.budget.clone())),
            cursor: CursorState::default(),
            assembler: Assembler::unbounded(),
            queue: VecDeque::new(),
            file: None,
            holes: Vec::new(),
            next: 1,
            is_fresh: true,
            begun_ms: 0,
            came_ms: 0,
            marks: (Vec::new(), 0),
            waits: (0, 0),
            failures: 0,
            dead: DeadLetters::new(&setup.log, &setup.stream, &setup.config.dead_letter),
            figures: setup.figures(name),
            figures_at_ms: 0,
            setup,
        }
    }

    /// Runs until it is told to stop. A file that is not complete then goes on after the next start.
    pub async fn run(mut self) {
        while !self.setup.is_over() {
            let Err(Stop::Again) = self.carry().await else { break };
            self.failures = self.failures.saturating_add(1);
            let wait_ms = Backoff::DEFAULT.wait_ms(self.failures, fastrand::u64(..));
            let _ = tokio::time::timeout(Duration::from_millis(wait_ms), self.setup.stop.changed()).await;
        }
        let prefix = self.rows();
        let rows = self.setup.log.state_scan(Table::Uplink, prefix.as_bytes());
        if self.setup.stream.is_deleted()
            && let Some((Upload { begun, upload_id }, _)) = row::read(&prefix, &rows)
        {
            let key = name(&begun.key, begun.format);
            let _ = self.store.run(&Op::Abort { key, upload_id }).await;
            let _ = self.forget_rows().await;
        }
    }

    async fn carry(&mut self) -> Result<(), Stop> {
        self.take_up().await?;
        let (sender, mut chunks) = mpsc::channel(1);
        let feed = Feed::start(&self.setup.log, &self.setup.stream, 0, SHARD, self.next, None, sender);
        loop {
            while let Some(what) = self.queue.pop_front() {
                if let Some(what) = self.take(what).await? {
                    self.queue.push_front(what);
                    break;
                }
            }
            // A chunk that waits is no silence, though the feed has nothing more.
            if chunks.is_empty() && self.is_due(&feed) {
                self.close().await?;
            }
            self.show();
            if self.setup.is_over() {
                return Err(Stop::Over);
            }
            let has_room = self.queue.is_empty();
            tokio::select! {
                _ = self.setup.stop.changed() => {}
                Some(chunk) = chunks.recv(), if has_room => self.take_in(chunk),
                () = tokio::time::sleep(Duration::from_millis(TICK_MS)) => {}
            }
        }
    }

    // In.

    /// Where it stood: the cursor, and behind it the parts of a file that are stored.
    async fn take_up(&mut self) -> Result<(), Stop> {
        let name = &self.setup.config.common.name;
        self.cursor = self.setup.log.cursor(name, &self.setup.stream, SHARD);
        (self.assembler, self.is_fresh) = (Assembler::unbounded(), true);
        self.queue.clear();
        self.holes.clear();
        (self.file, self.next) = (None, self.cursor.next);
        (self.begun_ms, self.came_ms) = (self.setup.now_ms(), self.setup.now_ms());
        let prefix = self.rows();
        let rows = self.setup.log.state_scan(Table::Uplink, prefix.as_bytes());
        let Some((Upload { begun, upload_id }, parts)) = row::read(&prefix, &rows) else { return Ok(()) };
        let file = File::resume(begun, Some(upload_id), parts);
        let is_ahead = file.next() >= self.cursor.next && !file.parts.is_empty();
        if file.is_sealed() && is_ahead {
            self.next = file.next();
            self.file = Some(file);
            return self.finish().await;
        }
        if is_ahead && file.suits(&self.wanted()) {
            let parts = file.parts.len();
            tracing::info!(stream = %self.setup.stream.name, key = file.begun.key, parts, "a file goes on behind its last part");
            (self.next, self.is_fresh) = (file.next(), false);
            self.file = Some(file);
            return Ok(());
        }
        self.abandon(&file).await
    }

    /// An upload that nobody wants any more.
    async fn abandon(&mut self, file: &File) -> Result<(), Stop> {
        if let (Some(id), true) = (&file.upload_id, file.begun.bucket == self.setup.config.bucket) {
            let key = name(&file.begun.key, file.begun.format);
            let _ = self.insist(Op::Abort { key, upload_id: id.clone() }).await?;
        }
        self.forget_rows().await
    }

    fn take_in(&mut self, chunk: Chunk) {
        self.came_ms = self.setup.now_ms();
        let mut out = Vec::new();
        for entry in chunk.entries {
            let mut gone = None;
            match entry {
                Entry::Record(record) if self.cursor.is_done(record.number) => {}
                Entry::Record(record) => self.assembler.push(record, &mut out),
                Entry::Gap(gap) => {
                    self.assembler.give_up(&mut out);
                    gone = Some(Hole { from: gap.from, to: gap.to, reason: gap.reason.as_str().to_owned() });
                    if gap.reason != GapReason::Unused {
                        let (stream, reason, records) = (&self.setup.stream.name, gap.reason.as_str(), gap.count());
                        tracing::warn!(%stream, from = gap.from, to = gap.to, records, reason, "video is missing upstream");
                    }
                }
            }
            self.queue.extend(out.drain(..).map(|assembled| match assembled {
                Assembled::Fragment(fragment) => What::Fragment(fragment),
                Assembled::Refused(records, why) => What::Refused(records, why.to_owned()),
            }));
            self.queue.extend(gone.map(What::Gone));
        }
    }

    /// Sees to the next in line; gives it back if it has to wait.
    async fn take(&mut self, what: What) -> Result<Option<What>, Stop> {
        match what {
            What::Fragment(fragment) => match self.judge(&fragment) {
                Verdict::Send => self.take_fragment(fragment).await?,
                Verdict::Pass => self.pass(fragment.next()),
                Verdict::Wait(_) => return Ok(Some(What::Fragment(fragment))),
            },
            What::Refused(records, why) => self.bury(Refused(records, why)).await?,
            What::Gone(hole) => {
                let next = hole.to + 1;
                if hole.reason != GapReason::Unused.as_str() {
                    self.hole(hole);
                }
                self.pass(next);
            }
        }
        Ok(None)
    }

    fn judge(&mut self, fragment: &Fragment) -> Verdict {
        if self.setup.config.only == Only::All {
            return Verdict::Send;
        }
        let now_ms = self.setup.now_ms();
        if self.waits.0 != fragment.first() {
            self.waits = (fragment.first(), now_ms);
        }
        let (wall_ms, held_ms) = (self.setup.clock.now().wall_ms, now_ms - self.waits.1);
        let within_ms = self.setup.config.mark_within.as_ms();
        let mut verdict = Verdict::Pass;
        // What was marked a moment ago is known by another look.
        for every_ms in [MARKS_EVERY_MS, 1] {
            if now_ms >= self.marks.1 + every_ms {
                let rows =
                    self.setup.log.state_scan(Table::Media, Mark::prefix(self.setup.stream.name.as_str()).as_bytes());
                let marks = rows.iter().filter_map(|(_, row)| serde_json::from_slice(row).ok()).collect();
                self.marks = (marks, now_ms);
            }
            verdict = marks::judge(fragment, &self.marks.0, wall_ms, held_ms, within_ms);
            if verdict != Verdict::Pass {
                break;
            }
        }
        verdict
    }

    async fn take_fragment(&mut self, fragment: Fragment) -> Result<(), Stop> {
        if self.file.as_ref().is_some_and(|file| !file.takes(&fragment)) {
            self.close().await?;
        }
        let next = fragment.next();
        if self.file.is_none() && !self.begin(&fragment).await? {
            let why = "it cannot be read".to_owned();
            return self.bury(Refused(fragment.records, why)).await;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let pushed = file.push(fragment);
        self.next = next;
        if let Err(refused) = pushed {
            self.bury(refused).await?;
        }
        let part_bytes = self.setup.config.part_bytes.0;
        match self.file.as_ref().is_some_and(|file| file.is_full(part_bytes)) {
            true => self.send_part(false).await,
            false => Ok(()),
        }
    }

    /// Begins a file; `false` if the fragment cannot be read.
    async fn begin(&mut self, fragment: &Fragment) -> Result<bool, Stop> {
        let Ok(mut file) = File::begin(fragment, &self.wanted()) else { return Ok(false) };
        if std::mem::take(&mut self.is_fresh) {
            self.skip_what_is_there(&file).await?;
        }
        self.holes.drain(..).for_each(|hole| file.hole(hole));
        self.begun_ms = self.setup.now_ms();
        self.file = Some(file);
        Ok(true)
    }

    fn wanted(&self) -> Wanted<'_> {
        let S3VideoConfig { bucket, prefix, format, every, .. } = &self.setup.config;
        Wanted { bucket, prefix, format: *format, every_ms: every.as_ms() as i64, who: &self.setup.who }
    }

    fn pass(&mut self, next: Number) {
        self.next = next;
        match &mut self.file {
            Some(file) => file.pass(next),
            None if self.holes.is_empty() => self.move_cursor(next),
            None => {}
        }
    }

    fn hole(&mut self, hole: Hole) {
        match &mut self.file {
            Some(file) => file.hole(hole),
            None => self.holes.push(hole),
        }
        // Nothing of them is lost: the ledger has them all.
        self.holes.truncate(100);
    }

    /// Records that are refused for good: a letter, the ledger, a hole in the index.
    async fn bury(&mut self, Refused(records, why): Refused) -> Result<(), Stop> {
        for record in &records {
            while self.dead.bury(SHARD, record, &self.setup.who, &why).await.is_err() {
                self.rest(KEEP_AGAIN_MS).await?;
            }
            self.figures.dead();
        }
        if let (Some(first), Some(last)) = (records.first(), records.last()) {
            self.hole(Hole { from: first.number, to: last.number, reason: GapReason::Rejected.as_str().to_owned() });
            let next = self.next.max(last.number + 1);
            self.pass(next);
        }
        Ok(())
    }

    /// The file's time is over, by the clock on the wall or by how long it is open, and the stream is quiet.
    fn is_due(&self, feed: &Feed) -> bool {
        let Some(file) = &self.file else { return false };
        let every_ms = self.setup.config.every.as_ms();
        let quiet_ms = (every_ms / 4).clamp(QUIET_MS.0, QUIET_MS.1) + 2 * file.last_duration_ms();
        let now = self.setup.clock.now();
        let is_quiet = self.queue.is_empty() && feed.at_tail() && now.mono_ms >= self.came_ms + quiet_ms;
        let is_over = now.wall_ms as i64 >= file.ends_ms().saturating_add(quiet_ms as i64)
            || now.mono_ms >= self.begun_ms + every_ms + quiet_ms;
        is_quiet && is_over
    }

    // Out.

    /// Uploads what is in memory as the next part, and makes a row of it.
    async fn send_part(&mut self, sealed: bool) -> Result<(), Stop> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let (bytes, begun, number) = (file.part(), file.begun.clone(), file.parts.len() + 1);
        let key = name(&begun.key, begun.format);
        let id = match file.upload_id.clone() {
            Some(id) => id,
            None => {
                let kind = begun.format.content_type();
                let create = Op::Create { key: key.clone(), kind };
                let Ok(Done::Name(upload_id)) = self.insist(create).await? else { return Err(Stop::Again) };
                let upload = Upload { begun, upload_id: upload_id.clone() };
                self.keep(vec![(row::upload_key(&self.rows()), Some(row_of(&upload)))]).await?;
                upload_id
            }
        };
        let Some(file) = &mut self.file else { return Ok(()) };
        file.upload_id = Some(id.clone());
        let sha256 = digest(bytes.clone()).await;
        let sent = self.insist(Op::Part { key, upload_id: id, number, body: bytes }).await?;
        let Ok(Done::Name(etag)) = sent else { return self.begin_again("its upload is gone").await };
        let row_key = row::part_key(&self.rows(), number - 1);
        let Some(file) = &mut self.file else { return Ok(()) };
        let row = row_of(file.stored(etag, sha256, sealed));
        self.keep(vec![(row_key, Some(row))]).await
    }

    /// The file is whole.
    async fn close(&mut self) -> Result<(), Stop> {
        let next = self.next;
        let Some(file) = &mut self.file else { return Ok(()) };
        if let Err(refused) = file.close(next) {
            self.bury(refused).await?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        if file.is_empty() {
            self.file = None;
            self.move_cursor(next);
            return Ok(());
        }
        match (&file.upload_id, file.in_memory()) {
            (Some(_), 0) => {
                let (at, row) = file.seal(next);
                let row = (row::part_key(&self.rows(), at), Some(row_of(&row)));
                self.keep(vec![row]).await?;
            }
            (Some(_), _) => self.send_part(true).await?,
            (None, _) => {}
        }
        self.finish().await
    }

    /// Index first, then the object, then the cursor: an object is never without its index.
    async fn finish(&mut self) -> Result<(), Stop> {
        let Some(mut file) = self.file.take() else { return Ok(()) };
        self.skip_what_is_there(&file).await?;
        let small = file.part();
        if file.upload_id.is_none() {
            let sha256 = digest(small.clone()).await;
            file.stored(String::new(), sha256, true);
        }
        let begun = file.begun.clone();
        let key = name(&begun.key, begun.format);
        self.put_index(&file).await?;
        let done = match &file.upload_id {
            None => Op::Put { key: key.clone(), body: small, kind: begun.format.content_type(), only_new: true },
            Some(id) => {
                let etags = file.parts.iter().map(|part| part.etag.clone()).collect();
                Op::Complete { key: key.clone(), upload_id: id.clone(), etags }
            }
        };
        let done = self.insist(done).await?;
        // It was not there before, so what is there now is what was sent, and its answer was lost.
        if done.is_err() && !self.is_there(&key).await? {
            self.file = Some(file);
            return self.begin_again("its upload is gone").await;
        }
        let next = file.next();
        let (records, payload) = file.counted();
        self.figures.stored(records, payload);
        let bytes: u64 = file.parts.iter().map(|part| part.bytes).sum();
        let (sink, stream) = (&self.setup.config.common.name, &self.setup.stream.name);
        tracing::info!(sink, %stream, key, records, bytes, "a file of video is complete");
        self.move_cursor(next);
        self.next = self.next.max(next);
        self.forget_rows().await
    }

    async fn put_index(&mut self, file: &File) -> Result<(), Stop> {
        let (begun, parts) = (&file.begun, &file.parts);
        let mut beside = vec![("json", "application/json", index::json(begun, parts, &self.setup.who))];
        if begun.format == Format::Mp4 {
            beside.push(("m3u8", "application/vnd.apple.mpegurl", index::playlist(begun, parts).into_bytes()));
        }
        for (extension, kind, text) in beside {
            let (key, text) = (format!("{}.{extension}", begun.key), bytes::Bytes::from(text));
            let _ = self.insist(Op::Put { key, body: text, kind, only_new: false }).await?;
        }
        Ok(())
    }

    async fn is_there(&mut self, key: &str) -> Result<bool, Stop> {
        let said = self.insist(Op::IsThere { key: key.to_owned() }).await?;
        Ok(matches!(said, Ok(Done::There(true))))
    }

    /// If an object of the file's key is there, it was made of the same records before the cursor was durable: its index says how
    /// far it goes, and there it goes on.
    async fn skip_what_is_there(&mut self, file: &File) -> Result<(), Stop> {
        let key = name(&file.begun.key, file.begun.format);
        let index = format!("{}.json", file.begun.key);
        loop {
            if !self.is_there(&key).await? {
                return Ok(());
            }
            let told = match self.insist(Op::Get { key: index.clone() }).await? {
                Ok(Done::Object(Some(json))) => Told::read(&json),
                _ => None,
            };
            if let Some(told) = told.filter(|told| told.is_ours(&self.setup.who, file.begun.first)) {
                tracing::info!(stream = %self.setup.stream.name, key, next = told.next, "a file is there already");
                self.move_cursor(told.next);
                self.abandon(file).await?;
                return Err(Stop::Again);
            }
            self.hold(&Fault::Broken(format!("{key:?} is there, and no index of ours says what is in it"))).await?;
        }
    }

    /// What was uploaded is not there any more: the file is made again from the log.
    async fn begin_again(&mut self, why: &str) -> Result<(), Stop> {
        if let Some(file) = self.file.take() {
            tracing::warn!(stream = %self.setup.stream.name, key = file.begun.key, why, "a file is made again");
            self.abandon(&file).await?;
        }
        Err(Stop::Again)
    }

    // Rows, cursor, figures.

    fn rows(&self) -> String {
        row::prefix(&self.setup.config.common.name, self.setup.stream.id)
    }

    /// Durable when it returns.
    async fn keep(&mut self, rows: Vec<(String, Option<Vec<u8>>)>) -> Result<(), Stop> {
        loop {
            let mut batch = Batch::new();
            for (key, row) in &rows {
                batch.put_state(Table::Uplink, key.clone().into_bytes(), row.clone().map(Into::into));
            }
            match self.setup.log.appender().commit(&mut batch).await {
                Ok(_) => return Ok(()),
                Err(error) => {
                    tracing::warn!(stream = %self.setup.stream.name, %error, "a part's row is not kept yet");
                    self.rest(KEEP_AGAIN_MS).await?;
                }
            }
        }
    }

    async fn forget_rows(&mut self) -> Result<(), Stop> {
        let rows = self.setup.log.state_scan(Table::Uplink, self.rows().as_bytes());
        let keys = rows.iter().map(|(key, _)| (String::from_utf8_lossy(key).into_owned(), None)).collect::<Vec<_>>();
        if keys.is_empty() { Ok(()) } else { self.keep(keys).await }
    }

    fn move_cursor(&mut self, next: Number) {
        if next <= self.cursor.next {
            return;
        }
        self.cursor.raise(next);
        let name = &self.setup.config.common.name;
        self.setup.log.move_cursor(name, &self.setup.stream, SHARD, self.cursor.clone());
    }

    fn show(&mut self) {
        let now = self.setup.clock.now();
        if now.mono_ms < self.figures_at_ms {
            return;
        }
        self.figures_at_ms = now.mono_ms + FIGURES_EVERY_MS;
        let newest = self.setup.stream.shard(SHARD).map_or(0, |shard| shard.newest());
        let records = self.setup.log.records_between(&self.setup.stream, SHARD, self.cursor.next, newest);
        let in_hand = self.file.as_ref().map_or((0, 0), File::counted);
        let oldest_arrival_ms = self.file.as_ref().map(|file| file.begun.arrival_ms);
        self.figures.backlog(Backlog { records, in_hand, oldest_arrival_ms }, now.wall_ms);
    }

    // Trying again.

    /// Asks until it is done, or will not be done: then it says which of the two it is.
    async fn insist(&mut self, op: Op) -> Result<Result<Done, No>, Stop> {
        let store = self.store.clone();
        loop {
            let mut stop = self.setup.stop.clone();
            // In a box: looking for credentials is deep, and a worker's stack is not.
            let asked = Box::pin(store.run(&op));
            let asked = tokio::select! {
                biased;
                asked = asked => asked,
                _ = stop.changed() => return Err(Stop::Over),
            };
            match asked {
                Err(No::Fault(fault)) => self.hold(&fault).await?,
                said => {
                    self.failures = 0;
                    if self.setup.trouble.clear() {
                        let (sink, stream) = (&self.setup.config.common.name, &self.setup.stream.name);
                        tracing::info!(sink, %stream, "uplink flows again");
                    }
                    return Ok(said);
                }
            }
        }
    }

    /// Waits after a fault, and says so.
    async fn hold(&mut self, fault: &Fault) -> Result<(), Stop> {
        self.failures = self.failures.saturating_add(1);
        self.figures.retried(1);
        if self.setup.trouble.set(&fault.to_string()) {
            let (sink, stream) = (&self.setup.config.common.name, &self.setup.stream.name);
            tracing::warn!(sink, %stream, %fault, "uplink holds");
        }
        let backoff = if matches!(fault, Fault::Absent(_)) { Backoff::ABSENT } else { Backoff::DEFAULT };
        self.rest(backoff.wait_ms(self.failures, fastrand::u64(..))).await
    }

    async fn rest(&mut self, ms: u64) -> Result<(), Stop> {
        let until = tokio::time::Instant::now() + Duration::from_millis(ms);
        loop {
            self.show();
            if self.setup.is_over() {
                return Err(Stop::Over);
            }
            let tick = until.min(tokio::time::Instant::now() + Duration::from_millis(FIGURES_EVERY_MS));
            let _ = tokio::time::timeout_at(tick, self.setup.stop.changed()).await;
            if tokio::time::Instant::now() >= until {
                return Ok(());
            }
        }
    }
}

fn row_of<T: serde::Serialize>(row: &T) -> Vec<u8> {
    // Numbers and strings: it cannot fail.
    serde_json::to_vec(row).unwrap_or_default()
}
