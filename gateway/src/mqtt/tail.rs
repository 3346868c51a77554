//! What subscribers of QoS 1 and 2 are owed: records from the log's tail, matched to the client's filters.
//!
//! A connection with such subscriptions has one task per shard of the streams its filters can reach. Each follows its
//! shard from the moment of the SUBSCRIBE, so order per key is the shard's order. A task reads only when the connection has
//! taken what was read before, by whichever task, and keeps nothing while it waits: a slow client holds one turn of
//! records, slows its own readers and nobody else.

use super::codec::is_topic_name;
use super::inlet::published_qos;
use super::memory::{Holding, Memory};
use super::session::Subscriptions;
use super::session::subscriptions::Delivery;
use crate::log::{Entry, INLINE_BYTES_MAX, Log, Position, ReadError, Reader, Stream};
use crate::record::{Header, HeaderId, Record, ShardIndex};
use bytes::{Bytes, BytesMut};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Most that is read for a connection at once; at least one record.
const TURN_RECORDS: usize = 128;
const TURN_BYTES: usize = 128 << 10;
/// The same while memory is tight.
const TIGHT_TURN_RECORDS: usize = 16;
const TIGHT_TURN_BYTES: usize = 8 << 10;
/// A shard that cannot be read just now is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// Shards one connection may follow.
pub const FOLLOWED_MAX: usize = 4_096;

/// A record and how it goes to the client.
#[derive(Debug)]
pub struct Owed {
    pub topic: Bytes,
    pub payload: Bytes,
    pub headers: Vec<Header>,
    pub delivery: Delivery,
    /// What it counts for in memory.
    pub weight: usize,
}

/// What one task has read for the connection.
#[derive(Debug)]
struct Turn {
    owed: VecDeque<Owed>,
    holding: Holding,
}

pub struct Tail {
    /// Aborted when this is dropped.
    tasks: JoinSet<()>,
    followed: HashSet<(u32, ShardIndex)>,
    filters: watch::Sender<Arc<Subscriptions>>,
    memory: Arc<Memory>,
    /// Bytes of all turns that were read and are not taken yet.
    held: Arc<AtomicUsize>,
    sender: mpsc::Sender<Turn>,
    receiver: mpsc::Receiver<Turn>,
    turn: Option<Turn>,
}

impl Tail {
    pub fn new(memory: Arc<Memory>) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        let (filters, _) = watch::channel(Arc::new(Subscriptions::default()));
        let held = Arc::default();
        Tail { tasks: JoinSet::new(), followed: HashSet::new(), filters, memory, held, sender, receiver, turn: None }
    }

    /// Bytes that wait for the connection.
    pub fn held_bytes(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// From now on these filters count.
    pub fn set_filters(&self, subscriptions: &Subscriptions) {
        self.filters.send_replace(Arc::new(subscriptions.clone()));
    }

    /// Follows all shards of a stream from its end. False if some cannot be followed.
    pub fn follow(&mut self, log: &Log, stream: &Arc<Stream>) -> bool {
        for shard in stream.shards().iter() {
            let key = (stream.id, shard.index);
            if self.followed.contains(&key) {
                continue;
            }
            if self.followed.len() >= FOLLOWED_MAX {
                return false;
            }
            let Ok(reader) = log.reader(stream, shard.index, Position::Latest) else { return false };
            self.followed.insert(key);
            let follower = Follower {
                log: log.clone(),
                stream: stream.clone(),
                shard: shard.index,
                reader,
                filters: self.filters.subscribe(),
                memory: self.memory.clone(),
                held: self.held.clone(),
            };
            self.tasks.spawn(follower.follow(self.sender.clone()));
        }
        true
    }

    /// The next record that is owed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Owed> {
        loop {
            if let Some(owed) = self.turn.as_mut().and_then(Turn::pop) {
                return Some(owed);
            }
            self.turn = None;
            self.turn = Some(self.receiver.recv().await?);
        }
    }

    /// The same, if it lies ready.
    pub fn next_now(&mut self) -> Option<Owed> {
        if let Some(owed) = self.turn.as_mut().and_then(Turn::pop) {
            return Some(owed);
        }
        self.turn = self.receiver.try_recv().ok();
        self.turn.as_mut()?.pop()
    }
}

impl Turn {
    fn pop(&mut self) -> Option<Owed> {
        let owed = self.owed.pop_front()?;
        self.holding.take_off(owed.weight);
        Some(owed)
    }
}

struct Follower {
    log: Log,
    stream: Arc<Stream>,
    shard: ShardIndex,
    reader: Reader,
    filters: watch::Receiver<Arc<Subscriptions>>,
    memory: Arc<Memory>,
    held: Arc<AtomicUsize>,
}

impl Follower {
    async fn follow(mut self, sender: mpsc::Sender<Turn>) {
        loop {
            self.reader.ready().await;
            let Some(slot) = self.slot(&sender).await else { return };
            match self.turn().await {
                Ok(Some(turn)) if !turn.owed.is_empty() => slot.send(turn),
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) if self.stream.is_deleted() => return,
                Err(error) => {
                    drop(slot);
                    let stream = &self.stream.name;
                    tracing::warn!(%stream, %error, "a subscriber waits for a shard that cannot be read");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Waits until the connection has taken what was read before; `None` once it is gone.
    async fn slot<'a>(&mut self, sender: &'a mpsc::Sender<Turn>) -> Option<mpsc::Permit<'a, Turn>> {
        if let Ok(slot) = sender.try_reserve() {
            return Some(slot);
        }
        self.let_go_of_block();
        sender.reserve().await.ok()
    }

    /// The block in hand would lie in memory for as long as the client, or others, like.
    fn let_go_of_block(&mut self) {
        if let Ok(reader) = self.log.reader(&self.stream, self.shard, Position::At(self.reader.position())) {
            self.reader = reader;
        }
    }

    /// Reads, and keeps what the client is owed. `None`: the stream is gone.
    async fn turn(&mut self) -> Result<Option<Turn>, ReadError> {
        let memory = self.memory.clone();
        // Held until what was read is counted.
        let leave = match memory.leave_to_read_now() {
            Some(leave) => Some(leave),
            None => {
                self.let_go_of_block();
                memory.leave_to_read().await
            }
        };
        let Some(_leave) = leave else { return Ok(None) };
        let (records, bytes) = match memory.is_tight() {
            true => (TIGHT_TURN_RECORDS, TIGHT_TURN_BYTES),
            false => (TURN_RECORDS, TURN_BYTES),
        };
        let entries = self.reader.next(records, bytes).await?;
        if entries.is_empty() && self.stream.is_deleted() {
            return Ok(None);
        }
        let subscriptions = self.filters.borrow().clone();
        let mut turn = Turn { owed: VecDeque::new(), holding: Holding::of(memory.clone(), self.held.clone()) };
        for entry in entries {
            // MQTT has no way to tell a gap; the ledger has it.
            let Entry::Record(record) = entry else { continue };
            let Some(topic) = record.topic().filter(|topic| is_topic_name(topic)) else { continue };
            let Some(delivery) = subscriptions.logged(topic, published_qos(&record)) else { continue };
            let owed = owed(record, delivery);
            turn.holding.add(owed.weight);
            turn.owed.push_back(owed);
        }
        Ok(Some(turn))
    }
}

fn weight(record: &Record) -> usize {
    record.data.len() + record.headers.iter().map(|header| header.value.len() + 64).sum::<usize>() + 256
}

/// The record in memory of its own, in one piece.
fn owed(record: Record, delivery: Delivery) -> Owed {
    let headers = record.headers.iter().map(|header| header.value.len()).sum::<usize>();
    // A value from a blob file lies in memory of its own; others would hold on to the whole block they were read from.
    let own_payload = record.data.len() > INLINE_BYTES_MAX;
    let mut bytes = BytesMut::with_capacity(headers + if own_payload { 0 } else { record.data.len() });
    let mut own = |value: &[u8]| {
        bytes.extend_from_slice(value);
        bytes.split().freeze()
    };
    let mut topic = Bytes::new();
    let mut kept = Vec::with_capacity(record.headers.len());
    for header in &record.headers {
        let value = own(&header.value);
        match header.id {
            HeaderId::Topic => topic = value,
            id => kept.push(Header { id, value }),
        }
    }
    let payload = if own_payload { record.data.clone() } else { own(&record.data) };
    Owed { weight: weight(&record), topic, payload, headers: kept, delivery }
}
