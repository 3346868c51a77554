//! What subscribers of QoS 1 and 2 are owed: records from the log's tail, matched to the client's filters.
//!
//! A connection with such subscriptions has one task per shard of the streams its filters can reach. Each follows its
//! shard from the moment of the SUBSCRIBE, so order per key is the shard's order, and hands what matches to the
//! connection through one bounded queue: a slow client slows its own readers and nobody else.

use super::codec::is_topic_name;
use super::inlet::published_qos;
use super::session::Subscriptions;
use super::session::subscriptions::Delivery;
use crate::log::{Entry, Log, Position, Reader, Stream};
use crate::record::{Record, ShardIndex};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Records that wait for one connection.
const QUEUE_RECORDS: usize = 64;
/// Most one task holds in hand.
const TURN_RECORDS: usize = 128;
const TURN_BYTES: usize = 256 << 10;
/// A shard that cannot be read just now is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// Shards one connection may follow.
pub const FOLLOWED_MAX: usize = 4_096;

/// A record and how it goes to the client.
#[derive(Debug)]
pub struct Owed {
    pub record: Record,
    pub delivery: Delivery,
}

pub struct Tail {
    /// Aborted when this is dropped.
    tasks: JoinSet<()>,
    followed: HashSet<(u32, ShardIndex)>,
    filters: watch::Sender<Arc<Subscriptions>>,
    sender: mpsc::Sender<Owed>,
    receiver: mpsc::Receiver<Owed>,
}

impl Tail {
    pub fn new() -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_RECORDS);
        let (filters, _) = watch::channel(Arc::new(Subscriptions::default()));
        Tail { tasks: JoinSet::new(), followed: HashSet::new(), filters, sender, receiver }
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
            self.tasks.spawn(follow(reader, stream.clone(), self.filters.subscribe(), self.sender.clone()));
        }
        true
    }

    /// The next record that is owed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Owed> {
        self.receiver.recv().await
    }

    /// The same, if it lies ready.
    pub fn next_now(&mut self) -> Option<Owed> {
        self.receiver.try_recv().ok()
    }
}

async fn follow(
    mut reader: Reader,
    stream: Arc<Stream>,
    filters: watch::Receiver<Arc<Subscriptions>>,
    sender: mpsc::Sender<Owed>,
) {
    loop {
        reader.ready().await;
        let entries = match reader.next(TURN_RECORDS, TURN_BYTES).await {
            Ok(entries) => entries,
            Err(_) if stream.is_deleted() => return,
            Err(error) => {
                tracing::warn!(stream = %stream.name, %error, "a subscriber waits for a shard that cannot be read");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        if entries.is_empty() && stream.is_deleted() {
            return;
        }
        for entry in entries {
            // MQTT has no way to tell a gap; the ledger has it.
            let Entry::Record(record) = entry else { continue };
            let subscriptions = filters.borrow().clone();
            let Some(topic) = record.topic().filter(|topic| is_topic_name(topic)) else { continue };
            let Some(delivery) = subscriptions.logged(topic, published_qos(&record)) else { continue };
            if sender.send(Owed { record, delivery }).await.is_err() {
                return;
            }
        }
    }
}
