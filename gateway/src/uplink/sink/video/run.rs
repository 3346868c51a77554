//! Carries one video stream to one sink: between the log's reader, the window and the connection this is the only I/O.
//!
//! ```text
//! feed -> assembler -> window -> (marks) -> pieces -> link ... PERSISTED -> window -> cursor
//! rows of the state: marks, and ranges on demand (a window of their own, which goes first)
//! ```
//! What it decides: when to read on (memory), which fragment goes next, when a connection begins and ends, when it is waited
//! before the next try, and when the cursor moves.

use super::ack::{Ack, Means, meaning};
use super::assemble::{Assembler, Fragment};
use super::connection::{Connection, Next};
use super::demand::Job;
use super::link::{Heard, Link};
use super::marks::{self, Verdict};
use super::service::Service;
use super::window::{Stored, Window};
use super::{KinesisVideoConfig, Only};
use crate::backoff::Backoff;
use crate::log::{CursorState, Entry, Table};
use crate::record::{GapReason, Number, Record};
use crate::uplink::dead::DeadLetters;
use crate::uplink::feed::{Chunk, Feed};
use crate::uplink::figures::{Backlog, Figures};
use crate::uplink::is_stopped;
use crate::uplink::pace::Pace;
use crate::uplink::setup::Setup;
use crate::uplink::sink::Fault;
use crate::wire::media::{Mark, Wanted};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Bytes given to the connection at once.
const PIECE_BYTES: usize = 64 << 10;
/// How often marks and wishes are looked for, the cursor is saved, and figures are shown, in milliseconds.
const ROWS_EVERY_MS: u64 = 500;
const SAVE_EVERY_MS: u64 = 200;
const FIGURES_EVERY_MS: u64 = 1_000;
/// The longest sleep.
const TICK_MS: u64 = 250;
/// After so long a letter that could not be kept is tried again.
const KEEP_AGAIN_MS: u64 = 1_000;
/// Fragments refused in a row before it is taken for a fault of the destination, and nothing more is dropped.
const REFUSED_IN_ROW_MAX: u32 = 16;
/// Fragments acknowledged behind one that is not: then it is sent again.
const OVERTAKEN_MAX: usize = 64;
/// A video stream has one shard.
const SHARD: u32 = 0;

pub struct VideoForwarder {
    setup: Setup<KinesisVideoConfig>,
    service: Arc<Service>,
    /// As the cursor stood at the start: what is above its low mark may be done already.
    began: CursorState,
    assembler: Assembler,
    window: Window,
    job: Option<Job>,
    connection: Option<Connection>,
    /// What is left of the fragment that is leaving.
    pieces: VecDeque<Bytes>,
    /// The fragment that is leaving is one on demand.
    leaving_job: bool,
    /// An error named no fragment: the next go one by one, until it is known whose it is.
    alone: bool,
    marks: Vec<Mark>,
    /// The fragment that waits for a mark, and since when.
    held: (Number, u64),
    rows_at_ms: u64,
    saved: (Number, u64),
    figures_at_ms: u64,
    bury_at_ms: u64,
    failures: u32,
    hold_until_ms: u64,
    refused_in_row: u32,
    pace: Pace,
    dead: DeadLetters,
    figures: Figures,
    is_stopping: bool,
}

enum Event {
    Stop,
    Heard(Heard),
    /// The next piece is on its way, or nobody takes it any more.
    Gave(bool),
    Chunk(Chunk),
    Tick,
}

impl VideoForwarder {
    pub fn new(setup: Setup<KinesisVideoConfig>) -> VideoForwarder {
        let (name, stream) = (&setup.config.common.name, &setup.stream);
        let began = setup.log.cursor(name, stream, SHARD);
        VideoForwarder {
            service: Arc::new(Service::new(&setup.config, setup.who.clone())),
            assembler: Assembler::default(),
            window: Window::new(began.next),
            job: None,
            connection: None,
            pieces: VecDeque::new(),
            leaving_job: false,
            alone: false,
            marks: Vec::new(),
            held: (0, 0),
            rows_at_ms: 0,
            saved: (began.next, 0),
            figures_at_ms: 0,
            bury_at_ms: 0,
            failures: 0,
            hold_until_ms: 0,
            refused_in_row: 0,
            pace: Pace::default(),
            dead: DeadLetters::new(&setup.log, stream, &setup.config.dead_letter),
            figures: setup.figures(name),
            is_stopping: false,
            began,
            setup,
        }
    }

    /// Runs until it is told to stop, and then until what is on its way is acknowledged; whoever stops it may lose patience.
    pub async fn run(mut self) {
        let (sender, mut chunks) = mpsc::channel(1);
        let (log, stream) = (&self.setup.log, &self.setup.stream);
        let _feed = Feed::start(log, stream, 0, SHARD, self.began.next, None, sender);
        while !self.setup.stream.is_deleted() {
            self.is_stopping |= is_stopped(&self.setup.stop);
            let now_ms = self.now_ms();
            self.look(now_ms).await;
            self.bury(now_ms).await;
            self.save(now_ms);
            self.show(now_ms);
            self.proceed(now_ms);
            if self.is_stopping && self.connection.is_none() {
                break;
            }
            match self.wait(&mut chunks).await {
                Event::Heard(heard) => self.heard(heard),
                Event::Gave(taken) => self.gave(taken),
                Event::Chunk(chunk) => self.take_in(chunk),
                Event::Stop | Event::Tick => {}
            }
        }
        self.is_stopping = true;
        self.save(self.now_ms());
    }

    fn now_ms(&self) -> u64 {
        self.setup.now_ms()
    }

    fn memory(&self) -> usize {
        self.setup.config.memory.0 as usize
    }

    async fn wait(&mut self, chunks: &mut mpsc::Receiver<Chunk>) -> Event {
        let now_ms = self.now_ms();
        let thrift_ms = if self.pieces.is_empty() { 0 } else { self.setup.budget(|budget| budget.wait_ms(now_ms)) };
        let hold_ms = self.hold_until_ms.saturating_sub(now_ms);
        let sleep_ms = [thrift_ms, hold_ms].into_iter().filter(|ms| *ms > 0).fold(TICK_MS, u64::min);
        let has_room = !self.is_stopping && self.window.has_room(self.memory());
        let piece = self.pieces.front().cloned().filter(|_| thrift_ms == 0);
        let VideoForwarder { connection, setup, .. } = self;
        let (link, body) = match connection {
            Some(Connection { link, body, .. }) => (Some(link), body.as_ref()),
            None => (None, None),
        };
        let hear = async {
            match link {
                Some(link) => link.hear().await,
                None => std::future::pending().await,
            }
        };
        let give = async {
            match (body, piece) {
                (Some(body), Some(piece)) => body.send(piece).await.is_ok(),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = setup.stop.changed(), if !self.is_stopping => Event::Stop,
            heard = hear => Event::Heard(heard),
            taken = give => Event::Gave(taken),
            Some(chunk) = chunks.recv(), if has_room => Event::Chunk(chunk),
            () = tokio::time::sleep(Duration::from_millis(sleep_ms)) => Event::Tick,
        }
    }

    // In.

    fn take_in(&mut self, chunk: Chunk) {
        let mut out = Vec::new();
        for entry in chunk.entries {
            match entry {
                Entry::Record(record) if self.began.is_done(record.number) => {}
                Entry::Record(record) => self.assembler.push(record, &mut out),
                Entry::Gap(gap) => {
                    self.assembler.give_up(&mut out);
                    out.drain(..).for_each(|assembled| self.window.push(assembled));
                    self.window.pass(gap.to + 1);
                    if gap.reason != GapReason::Unused {
                        let (sink, stream, reason) =
                            (&self.setup.config.common.name, &self.setup.stream.name, gap.reason.as_str());
                        let records = gap.count();
                        tracing::warn!(sink, %stream, from = gap.from, to = gap.to, records, reason, "video is missing upstream");
                    }
                }
            }
            out.drain(..).for_each(|assembled| self.window.push(assembled));
        }
    }

    /// Marks and wishes are rows of the state.
    async fn look(&mut self, now_ms: u64) {
        let (log, name) = (&self.setup.log, self.setup.stream.name.as_str());
        if now_ms >= self.rows_at_ms {
            self.rows_at_ms = now_ms + ROWS_EVERY_MS;
            if self.setup.config.only == Only::Marked && self.window.waiting().is_some() {
                let rows = log.state_scan(Table::Media, Mark::prefix(name).as_bytes());
                self.marks = rows.iter().filter_map(|(_, row)| serde_json::from_slice(row).ok()).collect();
            }
            if self.job.is_none() && !self.is_stopping {
                self.job = Job::next(log, &Wanted::prefix(&self.setup.config.common.name, name));
            }
        }
        let memory = self.memory();
        if let Some(job) = &mut self.job
            && let Err(error) = job.fill(&self.setup.log, &self.setup.stream, memory).await
        {
            tracing::warn!(stream = %self.setup.stream.name, %error, "video on demand cannot be read, it is tried again");
            self.give_up_job();
        }
        if self.job.as_mut().is_some_and(Job::is_done)
            && let Some(job) = self.job.take()
            && let Err(error) = job.forget(&self.setup.log).await
        {
            tracing::warn!(stream = %self.setup.stream.name, %error, "video on demand is sent again");
        }
    }

    fn give_up_job(&mut self) {
        self.job = None;
        self.rows_at_ms = self.now_ms() + KEEP_AGAIN_MS;
        if self.leaving_job && !self.pieces.is_empty() {
            self.ended(Err(Fault::Broken("what was being sent cannot be read".into())));
        }
    }

    // Out.

    /// Begins the next fragment, or a connection, or ends one.
    fn proceed(&mut self, now_ms: u64) {
        self.check_time(now_ms);
        if !self.pieces.is_empty() {
            return;
        }
        let Some((fragment, is_job)) = self.next(now_ms) else {
            let idle_ms = self.setup.config.idle.as_ms();
            let is_idle =
                |connection: &&mut Connection| !connection.is_closing() && connection.idle_at_ms(idle_ms) <= now_ms;
            let is_over = |connection: &&mut Connection| self.is_stopping && !connection.is_closing();
            if let Some(connection) = self.connection.as_mut().filter(|one| is_idle(one) || is_over(one)) {
                connection.close(now_ms);
            }
            return;
        };
        let Some(connection) = &mut self.connection else {
            if now_ms >= self.hold_until_ms {
                let link = Link::open(self.service.clone(), fragment.media.start_ms);
                self.connection = Some(Connection::new(link, &fragment, now_ms));
            }
            return;
        };
        match connection.next(&fragment, self.alone) {
            Next::Wait => {}
            Next::Close => connection.close(now_ms),
            Next::Begin => self.begin(fragment, is_job, now_ms),
        }
    }

    /// What goes next, and whether somebody wished for it.
    fn next(&mut self, now_ms: u64) -> Option<(Fragment, bool)> {
        if self.is_stopping {
            return None;
        }
        if let Some(fragment) = self.job.as_ref().and_then(|job| job.window.waiting()) {
            return Some((fragment.clone(), true));
        }
        let wall_ms = self.setup.clock.now().wall_ms;
        while let Some(fragment) = self.window.waiting() {
            if self.setup.config.only == Only::All {
                return Some((fragment.clone(), false));
            }
            if self.held.0 != fragment.first() {
                self.held = (fragment.first(), now_ms);
            }
            let (held_ms, within_ms) = (now_ms - self.held.1, self.setup.config.mark_within.as_ms());
            match marks::judge(fragment, &self.marks, wall_ms, held_ms, within_ms) {
                Verdict::Send => return Some((fragment.clone(), false)),
                // What was marked a moment ago is known by the next look.
                Verdict::Pass if self.rows_at_ms < now_ms + ROWS_EVERY_MS => {
                    self.rows_at_ms = 0;
                    return None;
                }
                Verdict::Pass => self.window.skip(),
                Verdict::Wait(_) => return None,
            }
        }
        None
    }

    fn begin(&mut self, fragment: Fragment, is_job: bool, now_ms: u64) {
        let (count, bytes) = self.in_flight();
        let bytes_max = self.pace.bytes_max(self.memory());
        // The one before is only whole to the other side when the next has begun: two always have room.
        if count >= 2 && bytes + fragment.media.bytes as usize > bytes_max {
            return;
        }
        let Some(connection) = &mut self.connection else { return };
        let head = Some(fragment.head()).filter(|_| connection.is_new());
        for mut bytes in head.into_iter().chain(fragment.body()) {
            while !bytes.is_empty() {
                self.pieces.push_back(bytes.split_to(bytes.len().min(PIECE_BYTES)));
            }
        }
        connection.begin(&fragment, now_ms);
        self.leaving_job = is_job;
        self.leaving().leave();
    }

    /// The window of the fragment that is leaving.
    fn leaving(&mut self) -> &mut Window {
        match &mut self.job {
            Some(job) if self.leaving_job => &mut job.window,
            _ => &mut self.window,
        }
    }

    fn windows(&mut self) -> impl Iterator<Item = &mut Window> {
        [&mut self.window].into_iter().chain(self.job.as_mut().map(|job| &mut job.window))
    }

    fn in_flight(&mut self) -> (usize, usize) {
        self.windows().map(|window| window.in_flight()).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    fn gave(&mut self, taken: bool) {
        let now_ms = self.now_ms();
        let Some(connection) = &mut self.connection else { return };
        if !taken {
            // Why will be heard.
            connection.give_up(None, false, now_ms);
            return;
        }
        connection.moved_ms = now_ms;
        if let Some(piece) = self.pieces.pop_front() {
            self.setup.budget(|budget| budget.spend(piece.len()));
        }
        if self.pieces.is_empty() {
            self.leaving().left();
        }
    }

    // Back.

    fn heard(&mut self, heard: Heard) {
        let now_ms = self.now_ms();
        let Some(connection) = &mut self.connection else { return };
        match heard {
            Heard::Open(body) => connection.opened(body, now_ms),
            Heard::Ack(Ack::Alive) => connection.moved_ms = now_ms,
            Heard::Ack(Ack::Idle) => {}
            Heard::Ack(Ack::Persisted(timecode)) => {
                let stored = self.windows().find_map(|window| window.stored(timecode));
                match stored {
                    Some(stored) => self.stored(stored, now_ms),
                    None => tracing::debug!(timecode, "an acknowledgement of nothing that was sent"),
                }
            }
            Heard::Ack(Ack::Error { timecode, id, says }) => self.refused(timecode, id, &says, now_ms),
            Heard::Ended(ended) => {
                let fault = connection.fault.take();
                self.ended(fault.map_or(ended, Err));
            }
        }
    }

    fn stored(&mut self, stored: Stored, now_ms: u64) {
        if let Some(connection) = &mut self.connection {
            connection.moved_ms = now_ms;
        }
        self.figures.stored(stored.records, stored.bytes);
        self.pace.answered(stored.bytes as usize, 0);
        (self.failures, self.refused_in_row, self.alone) = (0, 0, false);
        let torn = !self.pieces.is_empty();
        let overtaken = self.windows().any(|window| {
            window.settle();
            window.overtaken_by() >= OVERTAKEN_MAX
        });
        if let Some(connection) = self.connection.as_mut().filter(|connection| overtaken && !connection.is_closing()) {
            let fault = Fault::Broken("it acknowledges later fragments, and not an earlier one".into());
            connection.give_up(Some(fault), torn, now_ms);
        }
        if self.setup.trouble.clear() {
            tracing::info!(sink = self.setup.config.common.name, stream = %self.setup.stream.name, "uplink flows again");
        }
    }

    fn refused(&mut self, timecode: Option<i64>, id: u32, says: &str, now_ms: u64) {
        let fault = match meaning(id) {
            Means::Again => Some(Fault::Broken(says.to_owned())),
            Means::Refused if self.refused_in_row >= REFUSED_IN_ROW_MAX => {
                Some(Fault::Broken(format!("it refuses everything: {says}")))
            }
            Means::Refused => {
                let only = self.in_flight().0 == 1;
                let found = self.windows().any(|window| window.refuse(timecode, only, says));
                match found {
                    true => self.refused_in_row += 1,
                    false => self.alone = true,
                }
                None
            }
        };
        let torn = !self.pieces.is_empty();
        if let Some(connection) = &mut self.connection {
            connection.excused |= fault.is_none();
            connection.give_up(fault, torn, now_ms);
        }
    }

    /// The connection is gone; what it did not acknowledge waits again.
    fn ended(&mut self, ended: Result<(), Fault>) {
        let excused = self.connection.take().is_some_and(|connection| connection.excused);
        self.pieces.clear();
        let (_, bytes) = self.in_flight();
        let back: usize = self.windows().map(Window::broken).sum();
        let fault = match ended {
            Err(fault) => fault,
            Ok(()) if back > 0 && !excused => Fault::Broken("the connection ended before everything was stored".into()),
            Ok(()) => return,
        };
        self.figures.retried(back as u64);
        if bytes > 0 && matches!(fault, Fault::Broken(_) | Fault::Unreachable(_)) {
            self.pace.failed(bytes);
        }
        self.failures = self.failures.saturating_add(1);
        let backoff = if matches!(fault, Fault::Absent(_)) { Backoff::ABSENT } else { Backoff::DEFAULT };
        self.hold_until_ms = self.now_ms() + backoff.wait_ms(self.failures, fastrand::u64(..));
        if self.setup.trouble.set(&fault.to_string()) {
            tracing::warn!(sink = self.setup.config.common.name, stream = %self.setup.stream.name, %fault, "uplink holds");
        }
    }

    fn check_time(&mut self, now_ms: u64) {
        let (count, bytes) = self.in_flight();
        // One fragment that was sent and has none behind it is waited for until the connection is idle.
        let expects = count > 1 || !self.pieces.is_empty();
        let is_thrifty = !self.pieces.is_empty() && self.setup.budget(|budget| budget.wait_ms(now_ms)) > 0;
        let timeout_ms = self.setup.config.timeout.as_ms();
        let Some(connection) = &mut self.connection else { return };
        if is_thrifty {
            connection.moved_ms = now_ms;
        }
        if let Some(fault) = connection.overdue(expects, bytes, timeout_ms, now_ms) {
            let is_excused = connection.excused && connection.fault.is_none();
            self.ended(if is_excused { Ok(()) } else { Err(fault) });
        }
    }

    /// Records that are refused for good: a letter, the ledger, and a line in the log. A video stream holds no gap records.
    async fn bury(&mut self, now_ms: u64) {
        while now_ms >= self.bury_at_ms {
            let Some((records, why)) = self.window.dead() else { return };
            let (records, why): (Vec<Record>, String) = (records.to_vec(), why.to_owned());
            for record in &records {
                if self.dead.bury(SHARD, record, &self.setup.who, &why).await.is_err() {
                    self.bury_at_ms = now_ms + KEEP_AGAIN_MS;
                    return;
                }
                self.figures.dead();
            }
            self.window.buried();
        }
    }

    // The cursor and the figures.

    fn save(&mut self, now_ms: u64) {
        let next = self.window.settle();
        if next == self.saved.0 || (now_ms < self.saved.1 + SAVE_EVERY_MS && !self.is_stopping) {
            return;
        }
        self.saved = (next, now_ms);
        let mut cursor = self.began.clone();
        cursor.raise(next);
        self.setup.log.move_cursor(&self.setup.config.common.name, &self.setup.stream, SHARD, cursor);
    }

    fn show(&mut self, now_ms: u64) {
        if now_ms < self.figures_at_ms {
            return;
        }
        self.figures_at_ms = now_ms + FIGURES_EVERY_MS;
        let (in_hand, oldest_arrival_ms) = self.window.held();
        let newest = self.setup.stream.shard(SHARD).map_or(0, |shard| shard.newest());
        let records = self.setup.log.records_between(&self.setup.stream, SHARD, self.window.next(), newest);
        self.figures.backlog(Backlog { records, in_hand, oldest_arrival_ms }, self.setup.clock.now().wall_ms);
    }
}
