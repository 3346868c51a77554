//! Carries one stream to one sink: the only I/O between the log's readers, the lanes and the destination.
//!
//! ```text
//! feeds -> inbox -> lanes -> pack -> request (a task each, bounded) -> answer -> lanes -> cursor -> log
//! ```
//! What it decides: when to read on (window and memory), when to send (linger, backoff of the whole sink, bandwidth), when
//! the upstream's map is asked for anew, and when the durable cursor moves. Which record may leave is decided by `lanes`.

use super::backoff::Backoff;
use super::batch;
use super::budget::Budget;
use super::config::Common;
use super::dead::DeadLetters;
use super::feed::{Chunk, Feed};
use super::figures::{Backlog, Figures, Trouble};
use super::gap;
use super::lanes::{Finished, Lanes, Verdict};
use super::map::ShardMap;
use super::pace::Pace;
use super::sink::{Answer, Fault, Group, Identity, Kind, Outcome, Outgoing, Request, Sink, weight};
use crate::clock::Clock;
use crate::log::{Entry, Log, Stream};
use crate::metrics::Metrics;
use crate::record::{Gap, GapReason, HashKey, Record};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};

/// Cursors move at most so often; each is a few bytes in the next commit.
const SAVE_EVERY_MS: u64 = 200;
/// With many ranges a cursor is larger, and moves less often.
const SAVE_LARGE_EVERY_MS: u64 = 2_000;
const LARGE_RANGES: usize = 64;
/// Ranges a durable cursor keeps above its low mark; what lies higher is sent again after a restart.
const RANGES_MAX: usize = 2_048;
const FIGURES_EVERY_MS: u64 = 1_000;
/// Single records refused in a row before it is taken for a fault of the destination and everything is held.
const REFUSED_IN_ROW_MAX: u32 = 16;
/// Times an aggregate may land in a shard that a fresh map does not know before that is believed.
const LANDED_MAX: u32 = 3;

/// What a forwarder is made of.
pub struct Setup {
    pub log: Log,
    pub stream: Arc<Stream>,
    pub sink: Arc<dyn Sink>,
    pub common: Common,
    pub who: Identity,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub budget: Arc<Mutex<Budget>>,
    pub trouble: Trouble,
    pub stop: watch::Receiver<bool>,
}

pub struct Forwarder {
    setup: Setup,
    shards: Vec<Shard>,
    lanes: Vec<Lanes>,
    chunks: mpsc::Receiver<Chunk>,
    map: Map,
    requests: JoinSet<Answer>,
    in_flight: HashMap<Id, Flight>,
    pace: Pace,
    landed: Vec<(Group, String)>,
    /// Whole requests that failed in a row.
    failures: u32,
    hold_until_ms: u64,
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
    saved: (u64, u64),
    saved_at_ms: u64,
    saved_large: bool,
}

struct Flight {
    groups: Vec<Group>,
    bytes: usize,
    since_ms: u64,
}

enum Map {
    /// Asked for; nothing is sent meanwhile.
    Asked(JoinSet<Result<ShardMap, Fault>>),
    /// To be asked for from then on.
    Wanted(u64),
    Known(Arc<ShardMap>),
}

impl Forwarder {
    pub fn new(setup: Setup) -> Self {
        let shards: Vec<_> = setup.stream.shards().iter().cloned().collect();
        let (sender, chunks) = mpsc::channel(shards.len().max(1) * 2);
        let whole = Arc::new(ShardMap::whole());
        let (mut states, mut lanes) = (Vec::new(), Vec::new());
        for (at, shard) in shards.iter().enumerate() {
            let cursor = setup.log.cursor(&setup.common.name, &setup.stream, shard.index);
            let feed = Feed::start(&setup.log, &setup.stream, at, shard.index, cursor.next, sender.clone());
            lanes.push(Lanes::new(shard.index, shard.range, &cursor, whole.clone()));
            states.push(Shard {
                index: shard.index,
                range: shard.range,
                feed,
                inbox: VecDeque::new(),
                begun: VecDeque::new(),
                saved: (cursor.next, lanes[at].progress().acknowledged_above()),
                saved_at_ms: 0,
                saved_large: false,
            });
        }
        let figures = Figures::new(setup.metrics.clone(), &setup.common.name, setup.stream.name.as_str());
        let dead = DeadLetters::new(&setup.log, &setup.stream, &setup.common.dead_letter);
        Forwarder {
            shards: states,
            lanes,
            chunks,
            map: Map::Wanted(0),
            requests: JoinSet::new(),
            in_flight: HashMap::new(),
            pace: Pace::default(),
            landed: Vec::new(),
            failures: 0,
            hold_until_ms: 0,
            linger_until_ms: None,
            // Before anything was taken nothing can be told about single records.
            refused_in_row: REFUSED_IN_ROW_MAX,
            turn: 0,
            dead,
            figures,
            figures_at_ms: 0,
            setup,
        }
    }

    /// Runs until it is told to stop, and then until what is in flight has come back.
    pub async fn run(mut self) {
        while !*self.setup.stop.borrow() && !self.setup.stream.is_deleted() {
            let now_ms = self.now_ms();
            self.follow_map(now_ms);
            self.fill(now_ms).await;
            self.wake(now_ms);
            self.send(now_ms);
            self.save(now_ms, false);
            self.show(now_ms);
            self.wait(self.sleep_ms(self.now_ms())).await;
        }
        while let Some(done) = self.requests.join_next_with_id().await {
            self.answered(done).await;
        }
        if !self.setup.stream.is_deleted() {
            self.save(self.now_ms(), true);
        }
    }

    fn now_ms(&self) -> u64 {
        self.setup.clock.now().mono_ms
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
                self.shards[chunk.at].inbox.push_back(chunk);
                while let Ok(chunk) = self.chunks.try_recv() {
                    self.shards[chunk.at].inbox.push_back(chunk);
                }
            }
            () = sleep => {}
        }
    }

    fn sleep_ms(&self, now_ms: u64) -> u64 {
        let mut due = now_ms + FIGURES_EVERY_MS;
        let mut at = |ms: u64| due = due.min(ms);
        if let Map::Wanted(from) = &self.map {
            at(*from);
        }
        self.lanes.iter().filter_map(Lanes::next_wake_ms).for_each(&mut at);
        let has_ready = self.lanes.iter().any(Lanes::has_ready);
        let may_send = matches!(self.map, Map::Known(_)) && self.requests.len() < self.requests_max();
        if has_ready && may_send {
            let budget = self.budget(|budget| budget.wait_ms(now_ms));
            at(self.hold_until_ms.max(self.linger_until_ms.unwrap_or(now_ms)).max(now_ms + budget));
        }
        for (shard, lanes) in self.shards.iter().zip(&self.lanes) {
            if shard.saved != position(lanes) {
                at(shard.save_at_ms(lanes));
            }
        }
        due.saturating_sub(now_ms)
    }

    fn budget<T>(&self, what: impl FnOnce(&mut Budget) -> T) -> T {
        what(&mut self.setup.budget.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    // In.

    /// Moves entries from the inbox into the lanes as far as window, memory and gaps allow.
    async fn fill(&mut self, now_ms: u64) {
        let memory = (self.setup.common.memory.0 as usize / self.shards.len().max(1)).max(64 << 10);
        for at in 0..self.shards.len() {
            while self.lanes[at].held_bytes() < memory
                && self.lanes[at].progress().window_bytes() < self.setup.common.window.0
            {
                let shard = &mut self.shards[at];
                if shard.begun.is_empty() {
                    match shard.inbox.pop_front() {
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
                self.linger_until_ms.get_or_insert(now_ms + self.setup.common.linger.as_ms());
                match self.setup.sink.refusal(&record) {
                    None => lanes.push(Kind::Record, record),
                    Some(why) => self.take_in_refused(at, record, &why).await,
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

    async fn take_in_refused(&mut self, at: usize, record: Record, why: &str) {
        if self.lanes[at].progress().is_done(record.number) {
            return;
        }
        let told = self.bury(at, &record, why).await;
        self.lanes[at].push(Kind::Gap, told);
    }

    async fn bury(&mut self, at: usize, record: &Record, why: &str) -> Record {
        let gap = self.dead.bury(self.shards[at].index, record, &self.setup.who, why).await;
        self.figures.dead();
        gap::in_place_of(record, &gap, &self.setup.who)
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
        if self.failures > 0 { 1 } else { self.setup.sink.limits().requests_in_flight_max.max(1) }
    }

    fn send(&mut self, now_ms: u64) {
        let Map::Known(map) = &self.map else { return };
        let map = map.clone();
        let behind = self.shards.iter().any(|shard| !shard.inbox.is_empty() || !shard.feed.at_tail());
        let lingers = self.linger_until_ms.is_some_and(|until| until > now_ms) && !behind;
        if now_ms < self.hold_until_ms || lingers {
            return;
        }
        let mut limits = self.setup.sink.limits();
        let cap = self.budget(|budget| budget.bytes_max());
        limits.request_bytes_max = self.pace.bytes_max(limits.request_bytes_max).min(cap);
        while self.requests.len() < self.requests_max() && self.budget(|budget| budget.wait_ms(now_ms)) == 0 {
            let groups = batch::pack(&mut self.lanes, &mut self.turn, &limits);
            if groups.is_empty() {
                self.linger_until_ms = None;
                return;
            }
            let bytes = groups.iter().map(|group| group.bytes).sum();
            self.budget(|budget| budget.spend(bytes));
            let (sink, request) = (self.setup.sink.clone(), Request { groups: groups.clone(), map: map.clone() });
            let task = self.requests.spawn(async move { sink.send(request).await });
            self.in_flight.insert(task.id(), Flight { groups, bytes, since_ms: now_ms });
        }
    }

    async fn answered(&mut self, done: Result<(Id, Answer), JoinError>) {
        let (id, answer) = match done {
            Ok((id, answer)) => (id, Some(answer)),
            Err(error) => (error.id(), None),
        };
        let Some(Flight { groups, bytes, since_ms }) = self.in_flight.remove(&id) else { return };
        let answer = answer.unwrap_or_else(|| {
            let request = Request { groups: groups.clone(), map: Arc::new(ShardMap::whole()) };
            Answer::all(&request, Fault::Broken("the request could not be made".into()))
        });
        let now_ms = self.now_ms();
        match &answer.whole {
            Some(Fault::Refused(_)) => {}
            Some(fault) => {
                if matches!(fault, Fault::Broken(_) | Fault::Unreachable(_)) {
                    self.pace.failed(bytes);
                }
                self.hold(now_ms, fault);
            }
            None => {
                self.pace.answered(bytes, now_ms.saturating_sub(since_ms));
                self.recovered();
            }
        }
        if answer.map_is_stale && matches!(self.map, Map::Known(_)) {
            self.map = Map::Wanted(now_ms);
        }
        let is_whole = answer.whole.is_some();
        for (group, outcome) in groups.into_iter().zip(answer.outcomes) {
            self.settle(group, outcome, is_whole, now_ms).await;
        }
    }

    /// The destination as a whole is in trouble: everything waits.
    fn hold(&mut self, now_ms: u64, fault: &Fault) {
        self.failures = self.failures.saturating_add(1);
        let wait_ms = Backoff::DEFAULT.wait_ms(self.failures, fastrand::u64(..));
        self.hold_until_ms = now_ms + wait_ms;
        if self.setup.trouble.set(&fault.to_string()) {
            tracing::warn!(sink = self.setup.common.name, stream = %self.setup.stream.name, %fault, "uplink holds");
        }
    }

    fn recovered(&mut self) {
        self.failures = 0;
        self.hold_until_ms = 0;
        if self.setup.trouble.clear() {
            tracing::info!(sink = self.setup.common.name, stream = %self.setup.stream.name, "uplink flows again");
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

    async fn note(&mut self, finished: Finished, at: usize, id: super::sink::GroupId, outcome: Outcome, now_ms: u64) {
        self.figures.stored(finished.records, finished.payload_bytes);
        let Some(dead) = finished.dead else { return };
        let why = match &outcome {
            Outcome::Failed(fault) => fault.to_string(),
            _ => String::new(),
        };
        if self.refused_in_row >= REFUSED_IN_ROW_MAX {
            // So many in a row are no accident of the records: nothing is dropped until the destination takes something.
            self.hold(now_ms, &Fault::Broken(format!("it refuses everything: {why}")));
            self.lanes[at].replace(id, dead.clone(), Some(dead));
            return;
        }
        self.refused_in_row += 1;
        let told = match dead.kind {
            Kind::Record => Some(Outgoing { kind: Kind::Gap, record: self.bury(at, &dead.record, &why).await }),
            // Not even the notice is taken: the ledger has it.
            Kind::Gap => None,
        };
        self.lanes[at].replace(id, dead, told);
    }

    // The map.

    fn follow_map(&mut self, now_ms: u64) {
        if matches!(self.map, Map::Wanted(from) if from <= now_ms) {
            let sink = self.setup.sink.clone();
            let mut asked = JoinSet::new();
            asked.spawn(async move { sink.map().await });
            self.map = Map::Asked(asked);
        }
    }

    async fn mapped(&mut self, answer: Result<Result<ShardMap, Fault>, JoinError>) {
        let now_ms = self.now_ms();
        let answer = answer.unwrap_or_else(|error| Err(Fault::Broken(error.to_string())));
        match answer {
            Err(fault) => {
                self.hold(now_ms, &fault);
                self.map = Map::Wanted(self.hold_until_ms);
            }
            Ok(map) => {
                let map = Arc::new(map);
                self.recovered();
                self.lanes.iter_mut().for_each(|lanes| lanes.follow(&map));
                self.map = Map::Known(map.clone());
                self.linger_until_ms = Some(now_ms);
                for (group, shard) in std::mem::take(&mut self.landed) {
                    self.settle_landed(group, &shard, &map, now_ms).await;
                }
            }
        }
    }

    /// Of an aggregate that landed in another shard, consumers see the records that belong there; the others go again.
    async fn settle_landed(&mut self, group: Group, shard: &str, map: &ShardMap, now_ms: u64) {
        let Some(at) = self.shards.iter().position(|own| own.index == group.id.shard) else { return };
        let id = group.id;
        let index = map.named(shard);
        let stored: Vec<bool> =
            group.records.iter().map(|out| index.is_some_and(|index| map.holds(index, out.record.hash()))).collect();
        let believed = self.lanes[at].failures(id) >= LANDED_MAX;
        let wait_ms = if index.is_some() { 0 } else { Backoff::DEFAULT.wait_ms(3, fastrand::u64(..)) };
        drop(group);
        let verdict = match believed || !stored.contains(&false) {
            true => Verdict::Stored,
            false => Verdict::Partly(&stored, wait_ms),
        };
        let finished = self.lanes[at].finish(id, verdict, now_ms);
        self.figures.stored(finished.records, finished.payload_bytes);
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
            self.setup.log.move_cursor(&self.setup.common.name, &self.setup.stream, shard.index, cursor);
        }
    }

    fn show(&mut self, now_ms: u64) {
        if now_ms < self.figures_at_ms {
            return;
        }
        self.figures_at_ms = now_ms + FIGURES_EVERY_MS;
        let mut backlog = Backlog::default();
        for (shard, lanes) in self.shards.iter().zip(&self.lanes) {
            let newest = self.setup.stream.shard(shard.index).map_or(0, |shard| shard.newest());
            let progress = lanes.progress();
            let open = (newest + 1).saturating_sub(progress.next()).saturating_sub(progress.acknowledged_above());
            backlog.records += open;
            for (records, bytes) in [lanes.held(), shard.read_ahead()] {
                backlog.in_hand = (backlog.in_hand.0 + records, backlog.in_hand.1 + bytes);
            }
            let oldest = lanes.oldest_arrival_ms().or_else(|| shard.oldest_arrival_ms());
            backlog.oldest_arrival_ms = [backlog.oldest_arrival_ms, oldest].into_iter().flatten().min();
        }
        self.figures.backlog(backlog, self.setup.clock.now().wall_ms);
    }
}

impl Shard {
    /// When the cursor may move next. Once all is acknowledged it is small, whatever it was.
    fn save_at_ms(&self, lanes: &Lanes) -> u64 {
        let is_large = self.saved_large && !lanes.is_empty();
        self.saved_at_ms + if is_large { SAVE_LARGE_EVERY_MS } else { SAVE_EVERY_MS }
    }

    /// Arrival of the oldest record that was read and is not in a lane yet.
    fn oldest_arrival_ms(&self) -> Option<u64> {
        self.waiting().next().map(|record| record.arrival_ms)
    }

    /// Records that were read and are not in a lane yet, and what they weigh.
    fn read_ahead(&self) -> (u64, u64) {
        self.waiting().fold((0, 0), |(records, bytes), record| (records + 1, bytes + weight(record) as u64))
    }

    fn waiting(&self) -> impl Iterator<Item = &Record> {
        let inbox = self.inbox.iter().flat_map(|chunk| &chunk.entries);
        self.begun.iter().chain(inbox).filter_map(|entry| match entry {
            Entry::Record(record) => Some(record),
            Entry::Gap(_) => None,
        })
    }
}

/// What of a shard's progress a saved cursor stands for.
fn position(lanes: &Lanes) -> (u64, u64) {
    (lanes.progress().next(), lanes.progress().acknowledged_above())
}
