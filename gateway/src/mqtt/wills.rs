//! Last wills on their way: published for clients that have gone without a goodbye, at once or when they stay away.
//!
//! A will takes the way of a message that the client had sent last: route, rights, log, live bus. One that waits for its
//! delay is a task of its own, so that the connection's place is free. A client that takes up its session again in time
//! cancels it; one that starts afresh has ended the session, and the will stands before what it then sends.
//! When a will is due is `session::will`'s.

use super::access::Who;
use super::connection::COMMIT_WITHIN;
use super::inlet::{Inlet, Refusal, Taken};
use super::session::{Due, Will};
use super::shared::Shared;
use crate::log::Placement;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

/// A will of so many bytes is a connection's own; a longer one needs room among [`LARGE_BYTES`].
const SMALL_BYTES: usize = 1 << 10;
/// What all longer wills may have together, in bytes.
const LARGE_BYTES: usize = 8 << 20;
/// Wills that wait for their delay. One more is published at once.
const WAITING_MAX: usize = 4_096;

/// Whose will it is: under a client id that another identity has had, it is not the same client's.
type Whose = (String, Option<String>);

pub struct Wills {
    large: Arc<Semaphore>,
    places: Arc<Semaphore>,
    waiting: Mutex<HashMap<Whose, Waiting>>,
}

/// How a new connection of the client reaches a will that waits.
struct Waiting {
    serial: u64,
    /// The session is over: publish it. Dropped: the session goes on, and the will is void.
    publish: oneshot::Sender<()>,
    /// Closed once it is published.
    done: watch::Receiver<()>,
}

/// The room a will needs while it is kept; `None` where it is small.
pub type Room = Option<OwnedSemaphorePermit>;

impl Default for Wills {
    fn default() -> Self {
        Wills {
            large: Arc::new(Semaphore::new(LARGE_BYTES)),
            places: Arc::new(Semaphore::new(WAITING_MAX)),
            waiting: Mutex::default(),
        }
    }
}

impl Wills {
    fn lock(&self) -> MutexGuard<'_, HashMap<Whose, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room to keep a will in, if there is any.
    pub fn room(&self, will: &Will) -> Result<Room, ()> {
        if will.bytes() <= SMALL_BYTES {
            return Ok(None);
        }
        // It came in one CONNECT, which is far below what a u32 can say.
        let bytes = u32::try_from(will.bytes()).map_err(drop)?;
        self.large.clone().try_acquire_many_owned(bytes).map(Some).map_err(drop)
    }

    /// The client is there again, and nobody else has its id. `clean`: its session does not go on.
    pub async fn client_is_back(&self, who: &Who, clean: bool) {
        let found = self.lock().remove(&whose(who));
        let Some(Waiting { publish, mut done, .. }) = found else { return };
        if clean {
            // If its time has come already, it is on its way.
            let _ = publish.send(());
        } else {
            drop(publish);
        }
        // An error says that the task is over, which is what is waited for: what the client sends comes behind it.
        let _ = tokio::time::timeout(COMMIT_WITHIN, done.changed()).await;
    }

    /// Waits until every will that waits for its delay has been published.
    pub async fn empty(&self) {
        let _ = self.places.acquire_many(WAITING_MAX as u32).await;
    }
}

fn whose(who: &Who) -> Whose {
    (who.client_id.clone(), who.identity.clone())
}

/// A connection is over and has left a will. Returns once it is on disk, or waits for its delay in a task.
pub async fn left(
    shared: &Arc<Shared>,
    who: Who,
    serial: u64,
    Due { will, delay_s }: Due,
    room: Room,
    stopping: watch::Receiver<bool>,
) {
    let place = shared.wills.places.clone().try_acquire_owned().ok().filter(|_| delay_s > 0);
    let Some(place) = place else { return publish(shared, who, serial, &will).await };
    let (publish_now, told) = oneshot::channel();
    let (done_sender, done) = watch::channel(());
    let waiting = Waiting { serial, publish: publish_now, done };
    shared.wills.lock().insert(whose(&who), waiting);
    let shared = shared.clone();
    tokio::spawn(async move {
        let key = whose(&who);
        let is_void = wait(Duration::from_secs(u64::from(delay_s)), told, stopping).await;
        if !is_void {
            publish(&shared, who, serial, &will).await;
        }
        // Only now: a connection that comes meanwhile waits for it.
        let mut waiting = shared.wills.lock();
        if waiting.get(&key).is_some_and(|waiting| waiting.serial == serial) {
            waiting.remove(&key);
        }
        drop(waiting);
        drop((place, room, done_sender));
    });
}

/// Whether the client has taken up its session before the will was due. A gateway that stops waits no longer: the client did
/// go, and nobody would tell afterwards.
async fn wait(delay: Duration, told: oneshot::Receiver<()>, mut stopping: watch::Receiver<bool>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(delay) => false,
        told = told => told.is_err(),
        _ = stopping.wait_for(|stop| *stop) => false,
    }
}

/// Stores a will as its client's last message, and waits until it is on disk.
async fn publish(shared: &Shared, who: Who, serial: u64, will: &Will) {
    let client_id = who.client_id.clone();
    let mut inlet = Inlet::new(who, serial);
    let taken = inlet.take_unless_behind(&will.publish(), shared);
    if let Err(Refusal { label, .. }) = taken {
        return shared.reject_as(label, &client_id, "its last will is not taken");
    }
    // Only an envelope would have to wait, and no will is one.
    debug_assert_eq!(taken, Ok(Taken::Yes));
    let stored = async {
        if inlet.batch.is_empty() {
            return Ok(Vec::new());
        }
        let mut appender = shared.log.appender();
        let (ticket, placements) = appender.append(&mut inlet.batch).await?;
        appender.durable(ticket).await?;
        Ok::<_, crate::log::AppendError>(placements)
    };
    match tokio::time::timeout(COMMIT_WITHIN, stored).await {
        Ok(Ok(placements)) if placements.iter().any(|placed| matches!(placed, Placement::Full { .. })) => {
            shared.reject_as("stream_full", &client_id, "its last will is not taken: the stream is full");
        }
        Ok(Ok(_)) => {
            shared.bus.send(inlet.take_live());
            shared.metrics.mqtt_wills.inc();
        }
        Ok(Err(error)) => shared.reject_as("log_failed", &client_id, &format!("its last will is not kept: {error}")),
        Err(_) => shared.reject_as("log_failed", &client_id, "its last will is not kept: the disk does not answer"),
    }
}
