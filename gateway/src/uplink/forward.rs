//! Carries one stream to one sink: the only I/O between the log's readers, the lanes and the destination.
//!
//! ```text
//! feeds -> inbox -> lanes -> pack -> request (a task each, bounded) -> answer -> lanes -> cursor -> log
//! ```
//! What it decides: when to read on (window and memory), when to send (linger, backoff of the whole sink, bandwidth), when
//! the upstream's map is asked for anew, and when the durable cursor moves. Which record may leave is decided by `lanes`.

mod backlog;
mod map;
mod refused;
mod relay;

use super::batch;
use super::config::{Common, Sending};
use super::dead::DeadLetters;
use super::feed::{BlocksWanted, Chunk, Feed};
use super::figures::Figures;
use super::gap;
use super::lanes::{Lanes, Verdict};
use super::map::ShardMap;
use super::pace::Pace;
use super::setup::Setup;
use super::sink::{Answer, Fault, Group, Kind, Outcome, Relayed, Request, Sink};
use crate::backoff::Backoff;
use crate::log::Entry;
use crate::record::{Gap, GapReason, HashKey};
use relay::Relaying;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinSet};

/// Cursors move at most so often; each is a few bytes in the next commit.
const SAVE_EVERY_MS: u64 = 200;
/// With many ranges a cursor is larger, and moves less often.
const SAVE_LARGE_EVERY_MS: u64 = 2_000;
const LARGE_RANGES: usize = 64;
/// Ranges a durable cursor keeps above its low mark; what lies higher is sent again after a restart.
const RANGES_MAX: usize = 2_048;
const FIGURES_EVERY_MS: u64 = 1_000;
/// The landing in a shard that a fresh map does not know, in a row, that is believed.
const LANDED_MAX: u32 = 4;

/// Where records go, and within what bounds.
pub struct Through {
    pub sink: Arc<dyn Sink>,
    pub common: Common,
    pub sending: Sending,
}

pub struct Forwarder {
    setup: Setup<Through>,
    shards: Vec<Shard>,
    lanes: Vec<Lanes>,
    chunks: mpsc::Receiver<Chunk>,
    sender: mpsc::Sender<Chunk>,
    /// The destination takes blocks as they are stored.
    blocks_wanted: Arc<AtomicBool>,
    map: Map,
    requests: JoinSet<Back>,
    in_flight: HashMap<Id, Flight>,
    pace: Pace,
    landed: Vec<(Group, String)>,
    /// Whole requests that failed in a row.
    failures: u32,
    hold_until_ms: u64,
    /// The last request failed as a whole: only one that goes well says that it is over.
    request_failed: bool,
    /// When what is in hand leaves even if it has little company.
    linger_until_ms: Option<u64>,
    refused_in_row: u32,
    turn: usize,
    dead: DeadLetters,
    figures: Figures,
    figures_at_ms: u64,
}

struct Shard {
    index: u32,
    range: (HashKey, HashKey),
    feed: Feed,
    inbox: VecDeque<Chunk>,
    /// A chunk that was begun.
    begun: VecDeque<Entry>,
    relaying: Option<Relaying>,
    /// Nothing more goes into its lanes before: a dead letter is not kept yet.
    held_until_ms: u64,
    /// How far records go through the lanes after blocks were not taken.
    detour: u64,
    saved: (u64, u64),
    saved_at_ms: u64,
    saved_large: bool,
}

struct Flight {
    what: Sent,
    bytes: usize,
    since_ms: u64,
}

enum Sent {
    Groups(Vec<Group>),
    /// The blocks of the shard at this place.
    Blocks(usize),
}

/// What came back.
enum Back {
    Answer(Answer),
    Blocks(Relayed),
}

enum Map {
    /// Asked for; nothing is sent meanwhile.
    Asked(JoinSet<Result<ShardMap, Fault>>),
    /// To be asked for from then on.
    Wanted(u64),
    Known(Arc<ShardMap>),
}

impl Forwarder {
    pub fn new(setup: Setup<Through>) -> Self {
        let shards: Vec<_> = setup.stream.shards().iter().cloned().collect();
        let (sender, chunks) = mpsc::channel(shards.len().max(1) * 2);
        let whole = Arc::new(ShardMap::whole());
        let (mut states, mut lanes) = (Vec::new(), Vec::new());
        let blocks_wanted = Arc::new(AtomicBool::new(false));
        let memory = setup.config.sending.memory.0 as usize / shards.len().max(1);
        for (at, shard) in shards.iter().enumerate() {
            let cursor = setup.log.cursor(&setup.config.common.name, &setup.stream, shard.index);
            // Behind what was acknowledged out of order.
            let from = cursor.done.last().map_or(0, |(_, to)| to + 1);
            let blocks = Some(BlocksWanted { wanted: blocks_wanted.clone(), from, memory });
            let feed = Feed::start(&setup.log, &setup.stream, at, shard.index, cursor.next, blocks, sender.clone());
            lanes.push(Lanes::new(shard.index, shard.range, &cursor, whole.clone()));
            states.push(Shard {
                index: shard.index,
                range: shard.range,
                feed,
                inbox: VecDeque::new(),
                begun: VecDeque::new(),
                relaying: None,
                held_until_ms: 0,
                detour: relay::DETOUR,
                saved: (cursor.next, lanes[at].progress().acknowledged_above()),
                saved_at_ms: 0,
                saved_large: false,
            });
        }
        let figures = setup.figures(&setup.config.common.name);
        let dead = DeadLetters::new(&setup.log, &setup.stream, &setup.config.sending.dead_letter);
        Forwarder {
            shards: states,
            lanes,
            chunks,
            sender,
            blocks_wanted,
            map: Map::Wanted(0),
            requests: JoinSet::new(),
            in_flight: HashMap::new(),
            pace: Pace::default(),
            landed: Vec::new(),
            failures: 0,
            hold_until_ms: 0,
            request_failed: false,
            linger_until_ms: None,
            // Before anything was taken nothing can be told about single records.
            refused_in_row: refused::IN_ROW_MAX,
            turn: 0,
            dead,
            figures,
            figures_at_ms: 0,
            setup,
        }
    }

    /// Runs until it is told to stop, and then until what is in flight has come back.
    pub async fn run(mut self) {
        while !self.setup.is_over() {
            self.turn().await;
        }
        self.drain().await;
    }

    /// Does what can be done now, and waits until there is more to do.
    async fn turn(&mut self) {
        let now_ms = self.now_ms();
        self.follow_map(now_ms);
        self.blocks_wanted.store(self.setup.config.sink.limits().blocks, Ordering::Relaxed);
        self.fill(now_ms).await;
        self.wake(now_ms);
        self.send(now_ms);
        self.save(now_ms, false);
        self.show(now_ms);
        self.wait(self.sleep_ms(self.now_ms())).await;
    }

    /// Waits for what is in flight. Whoever stops it may lose patience, so what is known already is saved each time.
    async fn drain(&mut self) {
        while !self.setup.stream.is_deleted() {
            self.save(self.now_ms(), true);
            let Some(done) = self.requests.join_next_with_id().await else { return };
            self.answered(done).await;
        }
    }

    fn now_ms(&self) -> u64 {
        self.setup.now_ms()
    }

    /// Sleeps until something came back, came in, or is due.
    async fn wait(&mut self, sleep_ms: u64) {
        let sleep = tokio::time::sleep(Duration::from_millis(sleep_ms));
        let map_answer = async {
            match &mut self.map {
                Map::Asked(asked) => asked.join_next().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = self.setup.stop.changed() => {}
            Some(done) = self.requests.join_next_with_id(), if !self.requests.is_empty() => {
                self.answered(done).await;
                // What else is there already is taken in the same turn: fewer, fuller requests.
                while let Some(done) = self.requests.try_join_next_with_id() {
                    self.answered(done).await;
                }
            }
            Some(answer) = map_answer => self.mapped(answer).await,
            Some(chunk) = self.chunks.recv() => {
                self.take_chunk(chunk);
                while let Ok(chunk) = self.chunks.try_recv() {
                    self.take_chunk(chunk);
                }
            }
            () = sleep => {}
        }
    }

    fn take_chunk(&mut self, chunk: Chunk) {
        let shard = &mut self.shards[chunk.at];
        if shard.feed.id == chunk.feed {
            shard.inbox.push_back(chunk);
        }
    }

    fn sleep_ms(&self, now_ms: u64) -> u64 {
        let mut due = now_ms + FIGURES_EVERY_MS;
        let mut at = |ms: u64| due = due.min(ms);
        if let Map::Wanted(from) = &self.map {
            at(*from);
        }
        self.lanes.iter().filter_map(Lanes::next_wake_ms).for_each(&mut at);
        let has_blocks = self.shards.iter().any(Shard::has_blocks);
        let has_ready = has_blocks || self.lanes.iter().any(Lanes::has_ready);
        let may_send = matches!(self.map, Map::Known(_)) && self.requests.len() < self.requests_max();
        if has_ready && may_send {
            let budget = self.setup.budget(|budget| budget.wait_ms(now_ms));
            let linger = self.linger_until_ms.filter(|_| !has_blocks).unwrap_or(now_ms);
            at(self.hold_until_ms.max(linger).max(now_ms + budget));
        }
        for (shard, lanes) in self.shards.iter().zip(&self.lanes) {
            if shard.saved != position(lanes) {
                at(shard.save_at_ms(lanes));
            }
        }
        due.saturating_sub(now_ms)
    }

    // In.

    /// Moves entries from the inbox into the lanes as far as window, memory and gaps allow. While it is not known where to
    /// send them they lie in the log.
    async fn fill(&mut self, now_ms: u64) {
        let Map::Known(_) = self.map else { return };
        let memory = (self.setup.config.sending.memory.0 as usize / self.shards.len().max(1)).max(64 << 10);
        for at in 0..self.shards.len() {
            while self.shards[at].relaying.is_none()
                && self.shards[at].held_until_ms <= now_ms
                && self.lanes[at].held_bytes() < memory
                && self.lanes[at].progress().window_bytes() < self.setup.config.sending.window.0
            {
                let shard = &mut self.shards[at];
                if shard.begun.is_empty() {
                    match shard.inbox.pop_front() {
                        Some(chunk) if !chunk.blocks.is_empty() => match self.take_in_blocks(at, chunk) {
                            true => continue,
                            false => break,
                        },
                        Some(chunk) => shard.begun = chunk.entries.into(),
                        None => break,
                    }
                }
                if !self.take_in(at, now_ms).await {
                    break;
                }
            }
        }
    }

    /// Takes the next entry of a shard; `false` if it has to wait.
    async fn take_in(&mut self, at: usize, now_ms: u64) -> bool {
        let (shard, lanes) = (&mut self.shards[at], &mut self.lanes[at]);
        if lanes.is_telling_a_gap() {
            return false;
        }
        match shard.begun.pop_front() {
            Some(Entry::Record(record)) => {
                self.linger_until_ms.get_or_insert(now_ms + self.setup.config.sending.linger.as_ms());
                match self.setup.config.sink.refusal(&record) {
                    None => lanes.push(Kind::Record, record),
                    Some(why) => return self.take_in_refused(at, record, &why, now_ms).await,
                }
                true
            }
            Some(Entry::Gap(gap)) if lanes.is_empty() => {
                self.linger_until_ms = Some(now_ms);
                self.take_in_gap(at, gap)
            }
            Some(gap) => {
                // It stands in order: what was before it has to be stored first.
                shard.begun.push_front(gap);
                self.linger_until_ms = Some(now_ms);
                false
            }
            None => true,
        }
    }

    /// `false` if it has to wait until the upstream's shards are known.
    fn take_in_gap(&mut self, at: usize, gap: Gap) -> bool {
        let told_by = match (&self.map, gap.reason) {
            // Numbers that nobody was promised: no loss.
            (_, GapReason::Unused) => Vec::new(),
            (Map::Known(map), _) => {
                let cursor = self.lanes[at].progress().cursor(RANGES_MAX);
                gap::records(&gap, &cursor, self.shards[at].range, map, &self.setup.who)
            }
            (_, _) => {
                self.shards[at].begun.push_front(Entry::Gap(gap));
                return false;
            }
        };
        self.lanes[at].push_gap(gap.to, told_by);
        true
    }

    // Out.

    fn wake(&mut self, now_ms: u64) {
        for lanes in &mut self.lanes {
            if lanes.next_wake_ms().is_some_and(|due| due <= now_ms) {
                lanes.wake(now_ms);
                self.linger_until_ms = Some(now_ms);
            }
        }
    }

    fn requests_max(&self) -> usize {
        // After a failure one request asks whether it is over.
        if self.failures > 0 { 1 } else { self.setup.config.sink.limits().requests_in_flight_max.max(1) }
    }

    fn send(&mut self, now_ms: u64) {
        let Map::Known(map) = &self.map else { return };
        let map = map.clone();
        let behind = self.shards.iter().any(|shard| !shard.inbox.is_empty() || !shard.feed.at_tail());
        let lingers = self.linger_until_ms.is_some_and(|until| until > now_ms) && !behind;
        if now_ms < self.hold_until_ms {
            return;
        }
        let mut limits = self.setup.config.sink.limits();
        let cap = self.setup.budget(|budget| budget.bytes_max());
        let blocks_bytes_max = self.pace.bytes_max(usize::MAX).min(cap);
        limits.request_bytes_max = self.pace.bytes_max(limits.request_bytes_max).min(cap);
        while self.requests.len() < self.requests_max() && self.setup.budget(|budget| budget.wait_ms(now_ms)) == 0 {
            if self.send_blocks(blocks_bytes_max, now_ms) {
                continue;
            }
            if lingers {
                return;
            }
            let groups = batch::pack(&mut self.lanes, &mut self.turn, &limits);
            if groups.is_empty() {
                self.linger_until_ms = None;
                return;
            }
            let bytes = groups.iter().map(|group| group.bytes).sum();
            self.setup.budget(|budget| budget.spend(bytes));
            let (sink, request) =
                (self.setup.config.sink.clone(), Request { groups: groups.clone(), map: map.clone() });
            let task = self.requests.spawn(async move { Back::Answer(sink.send(request).await) });
            self.in_flight.insert(task.id(), Flight { what: Sent::Groups(groups), bytes, since_ms: now_ms });
        }
    }

    async fn answered(&mut self, done: Result<(Id, Back), JoinError>) {
        let (id, back) = match done {
            Ok((id, back)) => (id, Some(back)),
            Err(error) => (error.id(), None),
        };
        let Some(Flight { what, bytes, since_ms }) = self.in_flight.remove(&id) else { return };
        let fault = || Fault::Broken("the request could not be made".into());
        match (what, back) {
            (Sent::Blocks(at), back) => {
                let lost = || Relayed { stored: Err(fault()), map_is_stale: false };
                let answer = back.and_then(Back::relayed).unwrap_or_else(lost);
                self.relayed(at, answer, bytes, since_ms);
            }
            (Sent::Groups(groups), Some(Back::Answer(answer))) => {
                self.answered_groups(groups, answer, bytes, since_ms).await;
            }
            (Sent::Groups(groups), _) => {
                let request = Request { groups: groups.clone(), map: Arc::new(ShardMap::whole()) };
                self.answered_groups(groups, Answer::all(&request, fault()), bytes, since_ms).await;
            }
        }
    }

    async fn answered_groups(&mut self, groups: Vec<Group>, answer: Answer, bytes: usize, since_ms: u64) {
        let now_ms = self.now_ms();
        match &answer.whole {
            Some(Fault::Refused(_)) => {}
            Some(fault) => {
                if matches!(fault, Fault::Broken(_) | Fault::Unreachable(_)) {
                    self.pace.failed(bytes);
                }
                self.hold_request(now_ms, fault);
            }
            None => {
                self.pace.answered(bytes, now_ms.saturating_sub(since_ms));
                // One that takes requests and stores nothing of them has not come back.
                if answer.outcomes.iter().any(Outcome::stored_something) {
                    self.recovered();
                }
            }
        }
        if answer.map_is_stale {
            self.map_is_stale(now_ms);
        }
        let is_whole = answer.whole.is_some();
        for (group, outcome) in groups.into_iter().zip(answer.outcomes) {
            self.settle(group, outcome, is_whole, now_ms).await;
        }
    }

    /// A request failed as a whole. Perhaps not the one answers for whom it was made, or not about the stream that was
    /// there: the shard map is asked for before the next request, and settles both.
    fn hold_request(&mut self, now_ms: u64, fault: &Fault) {
        self.hold(now_ms, fault);
        self.request_failed = true;
        if !matches!(fault, Fault::Throttled) {
            self.map_is_stale(self.hold_until_ms);
        }
    }

    /// The destination as a whole is in trouble: everything waits.
    fn hold(&mut self, now_ms: u64, fault: &Fault) {
        self.failures = self.failures.saturating_add(1);
        let backoff = if matches!(fault, Fault::Absent(_)) { Backoff::ABSENT } else { Backoff::DEFAULT };
        let wait_ms = backoff.wait_ms(self.failures, fastrand::u64(..));
        self.hold_until_ms = now_ms + wait_ms;
        if self.setup.trouble.set(&fault.to_string()) {
            tracing::warn!(sink = self.setup.config.common.name, stream = %self.setup.stream.name, %fault, "uplink holds");
        }
    }

    fn recovered(&mut self) {
        self.failures = 0;
        self.hold_until_ms = 0;
        self.request_failed = false;
        if let Map::Wanted(from) = &mut self.map {
            *from = 0;
        }
        if self.setup.trouble.clear() {
            tracing::info!(sink = self.setup.config.common.name, stream = %self.setup.stream.name, "uplink flows again");
        }
    }

    async fn settle(&mut self, group: Group, outcome: Outcome, is_whole: bool, now_ms: u64) {
        let Some(at) = self.shards.iter().position(|shard| shard.index == group.id.shard) else { return };
        let id = group.id;
        let wait_ms = match is_whole {
            // The hold of the whole sink is wait enough.
            true => 0,
            false => Backoff::DEFAULT.wait_ms(self.lanes[at].failures(id) + 1, fastrand::u64(..)),
        };
        if let Outcome::Landed(shard) = outcome {
            self.landed.push((group, shard));
            return;
        }
        drop(group);
        let lanes = &mut self.lanes[at];
        let finished = match &outcome {
            Outcome::Stored => {
                self.refused_in_row = 0;
                lanes.finish(id, Verdict::Stored, now_ms)
            }
            Outcome::Partly(stored, Fault::Refused(_)) => lanes.finish(id, Verdict::PartlyRefused(stored), now_ms),
            Outcome::Partly(stored, _) => lanes.finish(id, Verdict::Partly(stored, wait_ms), now_ms),
            Outcome::Failed(Fault::Refused(_)) => lanes.finish(id, Verdict::Refused, now_ms),
            Outcome::Failed(_) | Outcome::Landed(_) => lanes.finish(id, Verdict::Failed(wait_ms), now_ms),
        };
        if !matches!(outcome, Outcome::Stored) {
            self.figures.retried(1);
        }
        self.note(finished, at, id, outcome, now_ms).await;
    }

    // The cursor and the figures.

    fn save(&mut self, now_ms: u64, all: bool) {
        for (shard, lanes) in self.shards.iter_mut().zip(&self.lanes) {
            if shard.saved == position(lanes) || (now_ms < shard.save_at_ms(lanes) && !all) {
                continue;
            }
            let cursor = lanes.progress().cursor(RANGES_MAX);
            shard.saved = position(lanes);
            (shard.saved_at_ms, shard.saved_large) = (now_ms, cursor.done.len() > LARGE_RANGES);
            self.setup.log.move_cursor(&self.setup.config.common.name, &self.setup.stream, shard.index, cursor);
        }
    }
}

impl Back {
    fn relayed(self) -> Option<Relayed> {
        match self {
            Back::Blocks(answer) => Some(answer),
            Back::Answer(_) => None,
        }
    }
}

impl Shard {
    /// Blocks wait to be sent.
    fn has_blocks(&self) -> bool {
        self.relaying.as_ref().is_some_and(|relaying| !relaying.in_flight)
    }

    /// When the cursor may move next. Once all is acknowledged it is small, whatever it was.
    fn save_at_ms(&self, lanes: &Lanes) -> u64 {
        let is_large = self.saved_large && !lanes.is_empty();
        self.saved_at_ms + if is_large { SAVE_LARGE_EVERY_MS } else { SAVE_EVERY_MS }
    }
}

/// What of a shard's progress a saved cursor stands for.
fn position(lanes: &Lanes) -> (u64, u64) {
    (lanes.progress().next(), lanes.progress().acknowledged_above())
}

#[cfg(test)]
mod tests;
