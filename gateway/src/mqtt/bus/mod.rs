//! The live bus: committed messages on their way to whoever listens now (QoS 0 subscribers; later the console).
//!
//! rumqttd's `Router` is the bus, behind a guard: everything travels in frames under one fixed topic, so no topic,
//! filter or client id a stranger chose ever reaches the router, which some of them would panic. It stands off the
//! acknowledgement path: a full queue drops messages, counted, and a router that dies is built anew. Nobody listens:
//! nothing is copied, queued or started. What subscribers are *owed* (QoS 1 and 2) comes from the log, not from here.

mod frame;
mod router;

use super::memory::{Holding, Memory};
use super::topic;
use crate::metrics::Metrics;
use crate::record::Header;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::mpsc;

/// Batches that wait for the router.
const QUEUE_BATCHES: usize = 1_024;
/// Bytes that wait for the router.
const QUEUE_BYTES_MAX: usize = 8 << 20;
/// Messages that wait for one listener.
const TAP_MESSAGES: usize = 1_024;
/// Bytes that wait for one listener.
const TAP_BYTES_MAX: usize = 1 << 20;
/// The same while memory is tight: live messages are what gives way first.
const TIGHT_TAP_BYTES_MAX: usize = 16 << 10;

#[cfg(test)]
pub(super) use router::DEADLY_TOPIC;

/// A committed message, or one of a route that stores nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveMessage {
    pub topic: Bytes,
    pub payload: Bytes,
    pub headers: Vec<Header>,
    /// Whether the log has it too.
    pub stored: bool,
    /// The connection it came from (for No Local).
    pub from: u64,
}

impl LiveMessage {
    pub fn weight(&self) -> usize {
        self.topic.len() + self.payload.len() + self.headers.iter().map(|h| h.value.len() + 8).sum::<usize>() + 64
    }

    pub fn topic(&self) -> &str {
        // It was a &str when it came in; noise on the bus matches no filter.
        std::str::from_utf8(&self.topic).unwrap_or("")
    }
}

/// The door of the bus. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    metrics: Arc<Metrics>,
    memory: Arc<Memory>,
    /// Changes whenever who listens to what does; [`Bus::NOBODY`] while nobody does.
    generation: AtomicU64,
    next: AtomicU64,
    taps: RwLock<HashMap<u64, Listener>>,
    queued_bytes: AtomicUsize,
    /// Started by the first listener.
    queue: Mutex<Option<mpsc::Sender<Vec<LiveMessage>>>>,
}

struct Listener {
    filters: Vec<String>,
    sender: mpsc::Sender<Arc<Heard>>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// A message that one listener or several have not taken yet: they share its memory, and it is counted once until the
/// last of them has it.
struct Heard {
    message: LiveMessage,
    weight: usize,
    _holding: Holding,
}

/// One listener's end.
pub struct Tap {
    bus: Bus,
    id: u64,
    receiver: mpsc::Receiver<Arc<Heard>>,
    waiting_bytes: Arc<AtomicUsize>,
}

impl Bus {
    pub const NOBODY: u64 = 0;

    pub fn new(metrics: Arc<Metrics>, memory: Arc<Memory>) -> Self {
        Bus {
            inner: Arc::new(Inner {
                metrics,
                memory,
                generation: AtomicU64::new(Self::NOBODY),
                next: AtomicU64::new(1),
                taps: RwLock::default(),
                queued_bytes: AtomicUsize::new(0),
                queue: Mutex::new(None),
            }),
        }
    }

    #[inline]
    pub fn generation(&self) -> u64 {
        self.inner.generation.load(Ordering::Acquire)
    }

    /// Whether a message on this topic has a listener; holds for one [`Bus::generation`].
    pub fn wants(&self, topic_name: &str) -> bool {
        let taps = self.inner.taps.read().unwrap_or_else(PoisonError::into_inner);
        taps.values().any(|tap| tap.hears(topic_name))
    }

    /// Whether there is no memory for one more message; it is counted as dropped then.
    pub fn gives_way(&self) -> bool {
        let full = self.inner.memory.is_full();
        if full {
            self.inner.dropped(1);
        }
        full
    }

    /// Hands in what is committed. Never waits: what finds no room is dropped and counted.
    pub fn send(&self, messages: Vec<LiveMessage>) {
        if messages.is_empty() {
            return;
        }
        let (count, bytes) = (messages.len(), messages.iter().map(LiveMessage::weight).sum::<usize>());
        let queue = self.inner.queue.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let room = self.inner.queued_bytes.load(Ordering::Relaxed) < QUEUE_BYTES_MAX;
        self.inner.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let sent = room && queue.is_some_and(|queue| queue.try_send(messages).is_ok());
        if !sent {
            self.inner.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.inner.dropped(count as u64);
        }
    }

    /// Listens to nothing yet: see [`Tap::listen`].
    pub fn tap(&self) -> Tap {
        let (sender, receiver) = mpsc::channel(TAP_MESSAGES);
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let listener = Listener { filters: Vec::new(), sender, waiting_bytes: waiting_bytes.clone() };
        self.inner.taps.write().unwrap_or_else(PoisonError::into_inner).insert(id, listener);
        self.start_router();
        Tap { bus: self.clone(), id, receiver, waiting_bytes }
    }

    fn start_router(&self) {
        let mut queue = self.inner.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.is_none() {
            let (sender, receiver) = mpsc::channel(QUEUE_BATCHES);
            if router::start(receiver, Arc::downgrade(&self.inner)) {
                *queue = Some(sender);
            }
        }
    }
}

impl Inner {
    fn dropped(&self, count: u64) {
        let label = crate::metrics::ReasonLabel { part: "mqtt", reason: "live_overflow" };
        self.metrics.rejects.get_or_create(&label).inc_by(count);
    }

    /// To everyone whose filters match.
    fn fan_out(&self, message: &LiveMessage) {
        let taps = self.taps.read().unwrap_or_else(PoisonError::into_inner);
        let weight = message.weight();
        let mut heard = None;
        for tap in taps.values().filter(|tap| tap.hears(message.topic())) {
            let most = if self.memory.is_tight() { TIGHT_TAP_BYTES_MAX } else { TAP_BYTES_MAX };
            let heard = heard.get_or_insert_with(|| {
                let mut holding = Holding::new(self.memory.clone());
                holding.set(weight);
                Arc::new(Heard { message: message.clone(), weight, _holding: holding })
            });
            // One message always fits, however large.
            let waiting = tap.waiting_bytes.fetch_add(weight, Ordering::AcqRel);
            if waiting > most || tap.sender.try_send(heard.clone()).is_err() {
                tap.waiting_bytes.fetch_sub(weight, Ordering::AcqRel);
                self.dropped(1);
            }
        }
    }

    /// Under the write lock of `taps`.
    fn listeners_changed(&self, taps: &HashMap<u64, Listener>) {
        let anyone = taps.values().any(|tap| !tap.filters.is_empty());
        let next = if anyone { self.next.fetch_add(1, Ordering::Relaxed) } else { Bus::NOBODY };
        self.generation.store(next, Ordering::Release);
    }
}

impl Listener {
    fn hears(&self, topic_name: &str) -> bool {
        self.filters.iter().any(|filter| topic::matches(filter, topic_name))
    }
}

impl Tap {
    /// Replaces the topic filters.
    pub fn listen(&self, filters: Vec<String>) {
        let inner = &self.bus.inner;
        let mut taps = inner.taps.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = taps.get_mut(&self.id) {
            listener.filters = filters;
        }
        inner.listeners_changed(&taps);
    }

    /// The next message. Cancel-safe.
    pub async fn next(&mut self) -> Option<LiveMessage> {
        let heard = self.receiver.recv().await?;
        self.waiting_bytes.fetch_sub(heard.weight, Ordering::AcqRel);
        Some(heard.message.clone())
    }

    /// Bytes that wait for this listener.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let inner = &self.bus.inner;
        let mut taps = inner.taps.write().unwrap_or_else(PoisonError::into_inner);
        taps.remove(&self.id);
        inner.listeners_changed(&taps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::HeaderId;
    use std::time::Duration;

    fn message(topic: &str, payload: &str) -> LiveMessage {
        LiveMessage {
            topic: Bytes::copy_from_slice(topic.as_bytes()),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            headers: vec![Header::new(HeaderId::ContentType, "text/plain")],
            stored: true,
            from: 7,
        }
    }

    async fn next(tap: &mut Tap) -> Option<LiveMessage> {
        tokio::time::timeout(Duration::from_secs(5), tap.next()).await.ok().flatten()
    }

    #[tokio::test]
    async fn a_listener_gets_what_it_listens_to_in_order_through_the_router() {
        let bus = Bus::new(Metrics::new(), Arc::default());
        assert_eq!(bus.generation(), Bus::NOBODY);
        let mut tap = bus.tap();
        tap.listen(vec!["a/#".into()]);
        assert!(bus.wants("a/b") && !bus.wants("b"));
        bus.send(vec![message("a/1", "x"), message("b", "y"), message("a/2", "z")]);
        assert_eq!(next(&mut tap).await, Some(message("a/1", "x")));
        assert_eq!(next(&mut tap).await, Some(message("a/2", "z")));
        drop(tap);
        assert_eq!(bus.generation(), Bus::NOBODY);
    }

    #[tokio::test]
    async fn topics_that_panic_the_router_pass_in_their_frame() {
        let bus = Bus::new(Metrics::new(), Arc::default());
        let mut tap = bus.tap();
        tap.listen(vec!["#".into(), "$SYS/#".into()]);
        for topic in ["é/b", "日本", "$SYS/x", "a//b", "/"] {
            bus.send(vec![message(topic, "")]);
            assert_eq!(next(&mut tap).await.unwrap().topic(), topic);
        }
    }

    /// Once a message counted for each listener as its share of all who heard it, and the last one held a gigabyte that
    /// counted for a megabyte.
    #[tokio::test]
    async fn what_the_last_listener_holds_counts_whole_however_many_have_heard_it() {
        let (metrics, memory) = (Metrics::new(), Arc::<Memory>::default());
        let bus = Bus::new(metrics.clone(), memory.clone());
        let deaf = bus.tap();
        let mut others: Vec<_> = (0..20).map(|_| bus.tap()).collect();
        others.iter().chain([&deaf]).for_each(|tap| tap.listen(vec!["#".into()]));
        for _ in 0..16 {
            bus.send(vec![message("a", &"x".repeat(1_000_000))]);
            for tap in &mut others {
                assert_eq!(next(tap).await.unwrap().payload.len(), 1_000_000);
            }
        }
        assert!((1_000_000..=2 * TAP_BYTES_MAX).contains(&deaf.waiting_bytes()), "{}", deaf.waiting_bytes());
        assert!(!memory.is_tight());
        drop(deaf);
        assert_eq!(memory.outgoing_bytes(), 0);
    }

    #[tokio::test]
    async fn a_listener_that_never_looks_costs_a_bounded_queue_and_others_nothing() {
        let metrics = Metrics::new();
        let bus = Bus::new(metrics.clone(), Arc::default());
        let deaf = bus.tap();
        deaf.listen(vec!["#".into()]);
        let mut tap = bus.tap();
        tap.listen(vec!["#".into()]);
        for n in 0..2 * TAP_MESSAGES {
            bus.send(vec![message("a", &n.to_string())]);
            assert_eq!(next(&mut tap).await.unwrap().payload, n.to_string());
        }
        // The router's thread may count the last one a little after the other listener has it.
        let counted = format!(r#"reason="live_overflow"}} {TAP_MESSAGES}"#);
        for _ in 0..500 {
            if metrics.render().contains(&counted) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{}", metrics.render());
    }
}
