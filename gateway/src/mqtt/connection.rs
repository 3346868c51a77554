//! The only I/O of a connection: one task that reads, decodes, appends, waits and writes.
//!
//! Per read it decodes every packet that is whole, gathers their records in one batch and appends it once; it goes on
//! reading while earlier batches are on their way to disk. Answers leave through `acks` when their ticket is durable,
//! many in one write. Back pressure needs no queue: while the log makes an append wait, or a client takes nothing of
//! what it is sent, its socket is not read.
//! What packets mean is `session`'s, where records go is `inlet`'s, who is let in is `handshake`'s.

mod serving;
mod subscribers;

use super::acks::{Acks, placed_ids};
use super::buffers::{Input, Output};
use super::chunks::Work;
use super::codec::{PacketId, Reason, Version, write};
use super::handshake::{Welcome, handshake};
use super::inlet::Inlet;
use super::memory::{Burden, Holding, LIGHT_BYTES, Wanting};
use super::session::{Kept, Session};
use super::shared::Shared;
use super::wills;
use crate::log::{Appender, Placement, Table};
use serving::End;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use subscribers::Sources;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, watch};

/// What is waiting to be written before the socket is read no further, in bytes.
const OUTPUT_HIGH_BYTES: usize = 128 << 10;
/// What may wait for the disk beside the window of QoS 1 and 2, in bytes.
const WAITING_BYTES_MAX: usize = 256 << 10;
/// A packet that has begun must be whole after this, plus a second for each KiB of it.
const PACKET_WITHIN_MS: u64 = 30_000;
/// The same for a packet that holds room which others wait for: five seconds, and four for each MiB.
const WANTED_WITHIN_MS: u64 = 5_000;
const WANTED_BYTES_PER_MS: u64 = 256;
/// An append that waits longer than this says that the log is behind.
const BEHIND_AFTER: Duration = Duration::from_millis(20);
/// How long a connection that is gone holds its client id for what it has handed to the log.
pub(super) const COMMIT_WITHIN: Duration = Duration::from_secs(30);

/// Serves one connection from its first byte to its end. `identity`: what a verified client certificate said.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(
    mut stream: S,
    from: IpAddr,
    shared: Arc<Shared>,
    identity: Option<String>,
    mut stopping: watch::Receiver<bool>,
) {
    let serial = shared.next_serial();
    let mut input = Input::new(shared.memory.hello.clone());
    let welcome = tokio::select! {
        biased;
        _ = stopping.wait_for(|stop| *stop) => return,
        welcome = handshake(&mut stream, &mut input, &shared, identity, serial) => welcome,
    };
    let welcome = match welcome {
        Ok(welcome) => welcome,
        Err(refusal) => return shared.reject_as(refusal.label, &from.to_string(), refusal.says),
    };
    shared.metrics.mqtt_connects.inc();
    shared.metrics.mqtt_connections.inc();
    input.set_budget(shared.memory.busy.clone());
    let (reader, writer) = tokio::io::split(stream);
    let mut connection = Connection::new(shared.clone(), reader, writer, input, welcome, serial);
    let end = connection.run(&mut stopping).await;
    connection.leave(end, stopping).await;
    shared.metrics.mqtt_connections.dec();
}

struct Connection<S> {
    shared: Arc<Shared>,
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    input: Input,
    output: Output,
    session: Session,
    client_packet_bytes_max: usize,
    inlet: Inlet,
    acks: Acks,
    appender: Appender,
    serial: u64,
    sources: Sources,
    seat: super::registry::Seat,
    disk: OnDisk,
    will_room: wills::Room,
    /// When the packet at the front of the input began to come in.
    partial_since_ms: Option<u64>,
    /// When the client last took something, or there was nothing to take.
    took_ms: u64,
    /// What waits to be taken.
    burden: Burden,
    /// The packet at the front waits for room that others have.
    growing: Option<Growing>,
    /// The envelope at the front waits for room to be unpacked.
    unpacking: Option<Room>,
    /// The message at the front waits for something that has to be made first.
    working: Option<Work>,
    /// Filters have changed since the sources were told.
    resubscribed: bool,
    holding: Holding,
    closing: Option<Closing>,
}

/// Room that somebody else has.
type Room = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

/// Waits in line for room for a large packet.
struct Growing {
    room: Room,
    since_ms: u64,
    _wanting: Wanting,
}

/// The connection takes nothing more: what is on its way is answered, then it ends.
#[derive(Clone, Copy, Debug)]
struct Closing {
    /// For DISCONNECT; `None`: the client knows.
    reason: Option<Reason>,
    since_ms: u64,
}

/// What this session has in `Table::Sessions`.
struct OnDisk {
    wanted: bool,
    present: bool,
    /// Identifiers have changed since they were written.
    changed: bool,
    owner: u64,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    fn new(
        shared: Arc<Shared>,
        reader: ReadHalf<S>,
        writer: WriteHalf<S>,
        input: Input,
        welcome: Welcome,
        serial: u64,
    ) -> Self {
        let Welcome { accepted, who, seat, kept, session_present, keeps, on_disk, owner, will_room } = welcome;
        let now_ms = shared.now_ms();
        let session = Session::new(&accepted, &shared.limits, &kept, now_ms);
        let mut output = Output::default();
        let properties = accepted.connack(&shared.limits, shared.log.gateway_id());
        write::connack(&mut output.bytes, accepted.version, session_present, &properties);
        Connection {
            appender: shared.log.appender(),
            reader,
            writer,
            input,
            output,
            session,
            client_packet_bytes_max: accepted.client_packet_bytes_max,
            inlet: Inlet::new(who, serial),
            acks: Acks::default(),
            serial,
            sources: Sources::new(serial),
            seat,
            will_room,
            disk: OnDisk { wanted: keeps, present: on_disk, changed: false, owner },
            partial_since_ms: None,
            took_ms: now_ms,
            burden: Burden::default(),
            growing: None,
            unpacking: None,
            working: None,
            resubscribed: false,
            holding: Holding::new(shared.memory.clone()),
            closing: None,
            shared,
        }
    }

    /// Tells what is held for this client to those who look after all.
    fn count_held(&mut self, now_ms: u64) {
        let held = self.output.len() + self.acks.waiting_bytes() + self.inlet.live_bytes();
        // The little that every connection holds now and then is not worth counting.
        self.holding.set(held.saturating_sub(LIGHT_BYTES));
        self.burden.hold(self.output.len() + self.sources.held_bytes(), now_ms);
    }

    fn version(&self) -> Version {
        self.session.version()
    }

    fn client_id(&self) -> &str {
        &self.inlet.who().client_id
    }

    /// Takes nothing more. The first reason counts.
    fn close(&mut self, reason: Option<Reason>) {
        let since_ms = self.shared.now_ms();
        self.closing.get_or_insert(Closing { reason, since_ms });
        (self.growing, self.unpacking, self.working) = (None, None, None);
        self.sources.stop();
    }

    /// Counts and logs what the client did, and closes.
    fn refuse(&mut self, reason: Reason, says: &str) {
        self.shared.reject(reason, self.client_id(), says);
        self.close(Some(reason));
    }

    /// Puts the QoS 2 identifiers into the batch of the records they belong to. Those whose records are refused for want of
    /// room are not among them: a retransmission after a crash would be acknowledged and stored nowhere.
    fn put_session(&mut self) {
        if !std::mem::take(&mut self.disk.changed) || !self.disk.wanted {
            return;
        }
        let any = self.session.inbound.taken().len() > 0;
        if !(self.disk.present || any && self.claim_place()) {
            return;
        }
        let mut kept = Kept {
            subscribed: !self.session.subscriptions.is_empty(),
            owner: self.disk.owner,
            changed_ms: self.shared.clock.now().wall_ms,
            ids: self.session.inbound.taken().collect(),
        };
        self.note_kept(any);
        let placed = placed_ids(&self.inlet.items);
        let key = self.client_id().as_bytes().to_vec();
        self.inlet.batch.put_state_on_places(Table::Sessions, key, move |placements| {
            let mut refused: Vec<PacketId> = Vec::new();
            for (id, placement) in placed.into_iter().zip(placements) {
                let Some(id) = id else { continue };
                // The last message of an identifier is the one that has it.
                refused.retain(|other| *other != id);
                if matches!(placement, Placement::Full { .. }) {
                    refused.push(id);
                }
            }
            kept.ids.retain(|id| !refused.contains(id));
            (!kept.ids.is_empty()).then(|| kept.encode())
        });
    }

    /// Whether identifiers of this client are on disk from now on.
    fn note_kept(&mut self, any: bool) {
        if self.disk.present && !any {
            self.shared.kept_clients.fetch_sub(1, Ordering::Relaxed);
        }
        self.disk.present = any;
    }

    /// A place among the clients whose identifiers are kept; without one they live as long as the connection.
    fn claim_place(&mut self) -> bool {
        let before = self.shared.kept_clients.fetch_add(1, Ordering::Relaxed);
        let granted = before < super::session::kept::CLIENTS_MAX;
        if !granted {
            self.shared.kept_clients.fetch_sub(1, Ordering::Relaxed);
            self.disk.wanted = false;
            self.shared.reject_as("sessions_full", self.client_id(), "too many clients with unfinished QoS 2");
        }
        granted
    }

    /// The client id stays taken until what was handed to the log is committed: then the next connection of this client
    /// cannot overtake it.
    async fn leave(mut self, end: End, stopping: watch::Receiver<bool>) {
        self.shared.metrics.mqtt_subscriptions.dec_by(self.session.subscriptions.len() as i64);
        self.sources.stop();
        // It may be long until the log has taken the last of it.
        drop(self.input);
        if end == End::Gone {
            self.output = Output::default();
            self.holding.set(0);
        }
        if end == End::Answered {
            let _ = tokio::time::timeout(Duration::from_secs(1), self.writer.shutdown()).await;
        }
        if let Some(last) = self.acks.last_ticket()
            && let Ok(Ok(())) = tokio::time::timeout(COMMIT_WITHIN, self.appender.durable(last)).await
        {
            let released = self.acks.release(Some(last), &mut self.output.bytes);
            self.shared.bus.send(released.live);
        }
        // It is the gateway that goes, and not the client, which comes back to the next start.
        let stops = self.closing.is_some_and(|closing| closing.reason == Some(Reason::ServerShuttingDown));
        if let Some(due) = self.session.end().filter(|_| !stops) {
            let who = self.inlet.who().clone();
            wills::left(&self.shared, who, self.serial, due, self.will_room.take(), stopping).await;
        }
        drop(self.seat);
    }
}
