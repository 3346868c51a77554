//! The loop of a connection: take what came in, let go what is durable, wait for whatever is next.

use super::subscribers::Next;
use super::{
    BEHIND_AFTER, Closing, Connection, Growing, PACKET_WITHIN_MS, WAITING_BYTES_MAX, WANTED_BYTES_PER_MS,
    WANTED_WITHIN_MS,
};
use crate::log::{AppendError, Placement, Ticket};
use crate::mqtt::acks::{Answer, Held};
use crate::mqtt::codec::{Frame, Qos, Reason, Version, decode, frame, frame_bytes, write};
use crate::mqtt::devices::{is_reserved, owns};
use crate::mqtt::inlet::{Refusal, Taken};
use crate::mqtt::session::{Action, Reply, Violation};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

/// What a client that is being replaced gets to take its last bytes.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All that was to be said is said.
    Answered,
    /// The client is gone, or does not listen.
    Gone,
}

/// What the loop waited for.
enum Event {
    Durable(Result<(), AppendError>),
    Wrote(io::Result<usize>),
    Read(io::Result<usize>),
    Room(OwnedSemaphorePermit),
    Unpack(OwnedSemaphorePermit),
    Worked,
    Deliver(Next),
    Leave,
    Stop,
    Timer,
}

/// What came of one packet.
enum Step {
    Go,
    /// The packet has to wait until what was gathered is handed in.
    HandInFirst,
    /// The connection is closing.
    Closed,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    pub(super) async fn run(&mut self, stopping: &mut watch::Receiver<bool>) -> End {
        let mut timer = std::pin::pin!(tokio::time::sleep(Duration::from_secs(3600)));
        let mut armed_ms = u64::MAX;
        loop {
            let now_ms = self.shared.now_ms();
            if self.output.is_empty() {
                self.took_ms = now_ms;
            }
            let more = self.take_packets(now_ms);
            if std::mem::take(&mut self.resubscribed) && self.closing.is_none() {
                // Before anything of it is written, the SUBACK among it.
                self.sources.update(&self.session.subscriptions, &self.shared);
            }
            if let Err(error) = self.hand_in().await {
                return self.log_failed(&error);
            }
            match self.appender.durable_now() {
                Ok(durable) => self.let_go(Some(durable)),
                Err(error) => return self.log_failed(&error),
            }
            if let Some(closing) = self.closing
                && self.acks.is_empty()
            {
                return self.say_goodbye(closing).await;
            }
            self.count_held(now_ms);
            let waits = self.unpacking.is_some() || self.working.is_some();
            if more && self.closing.is_none() && !waits && self.has_room() {
                // What lies here already needs no event to go on.
                continue;
            }
            let deadline_ms = self.deadline_ms(now_ms);
            if deadline_ms < armed_ms {
                armed_ms = deadline_ms;
                timer.as_mut().reset(Instant::now() + Duration::from_millis(deadline_ms.saturating_sub(now_ms).max(1)));
            }
            match self.wait(stopping, timer.as_mut()).await {
                Event::Durable(Ok(())) => {}
                Event::Durable(Err(error)) => return self.log_failed(&error),
                Event::Wrote(Ok(count)) if count > 0 => {
                    self.output.wrote(count);
                    self.burden.took(count);
                    self.took_ms = self.shared.now_ms();
                }
                Event::Wrote(_) => return End::Gone,
                Event::Read(Ok(count)) if count > 0 => {
                    self.input.filled_more(count);
                    self.sources.heard(now_ms);
                }
                // The client may have closed its half only: it gets its answers.
                Event::Read(Ok(_)) => self.close(None),
                Event::Read(Err(_)) => return End::Gone,
                Event::Room(room) => self.grow(room),
                Event::Unpack(room) => {
                    self.unpacking = None;
                    self.inlet.give_room(room);
                    // It was not the client that waited.
                    self.session.excuse(self.shared.now_ms());
                }
                Event::Worked => {
                    self.working = None;
                    self.session.excuse(self.shared.now_ms());
                }
                Event::Deliver(Next::Owed(owed)) => self.deliver_owed(owed),
                Event::Deliver(Next::Live(message)) => self.deliver_live(&message),
                Event::Leave => self.close(Some(Reason::SessionTakenOver)),
                Event::Stop => self.close(Some(Reason::ServerShuttingDown)),
                Event::Timer => {
                    armed_ms = u64::MAX;
                    if let Some(end) = self.overdue() {
                        return end;
                    }
                }
            }
        }
    }

    /// Decodes and handles every packet that is whole, as far as there is room; true if that ended before they did.
    fn take_packets(&mut self, now_ms: u64) -> bool {
        while self.closing.is_none() {
            if !(self.has_room() && self.inlet.has_room(self.input.capacity())) {
                if !self.log_has_room() {
                    // Time in which we wait for the disk does not count against the packet.
                    self.partial_since_ms = None;
                }
                return true;
            }
            let frame = match frame(self.input.filled(), self.shared.limits.packet_bytes_max) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    self.violated(error.into());
                    break;
                }
            };
            self.partial_since_ms = None;
            match self.take_packet(frame, now_ms) {
                Ok(Step::Go) => self.input.consume(frame.end),
                Ok(Step::HandInFirst) => return true,
                Ok(Step::Closed) => break,
                Err(violation) => self.violated(violation),
            }
        }
        if self.input.is_empty() {
            self.partial_since_ms = None;
        } else if self.partial_since_ms.is_none() {
            self.partial_since_ms = Some(now_ms);
        }
        false
    }

    fn has_room(&self) -> bool {
        self.log_has_room() && self.output_has_room()
    }

    fn log_has_room(&self) -> bool {
        self.session.inbound.has_room() && self.acks.waiting_bytes() < WAITING_BYTES_MAX
    }

    #[inline]
    fn take_packet(&mut self, at: Frame, now_ms: u64) -> Result<Step, Violation> {
        let version = self.session.version();
        let body = &self.input.filled()[at.body..at.end];
        let action = self.session.handle(decode(version, at.first, body)?, now_ms)?;
        match action {
            Action::Store(publish) => {
                let stored = self.inlet.take_unless_behind(&publish, &self.shared);
                if let Ok(Taken::Later | Taken::NoRoom(_) | Taken::NotReady) = stored {
                    self.working = self.inlet.take_work();
                    if let Ok(Taken::NoRoom(kib)) = stored {
                        let unpacked = self.shared.memory.unpacked.clone();
                        self.unpacking = Some(Box::pin(unpacked.acquire_many_owned(kib)));
                    }
                    if publish.id.is_some() {
                        self.session.inbound.unsee();
                    }
                    return Ok(Step::HandInFirst);
                }
                if let Err(Refusal { reason, label }) = stored {
                    let says = self.inlet.take_says().unwrap_or_else(|| refused_message(publish.topic, reason));
                    self.shared.reject_as(label, &self.inlet.who().client_id, &says);
                    if let Some(id) = publish.id {
                        if publish.qos == Qos::ExactlyOnce {
                            self.session.inbound.release(id);
                        }
                        // [MQTT-3.3.5-2] of 3.1.1: there is no way to say no but to close.
                        if version == Version::V4 {
                            self.close(Some(reason));
                            return Ok(Step::Closed);
                        }
                        self.inlet.refuse(&publish, reason);
                    }
                } else if publish.qos == Qos::ExactlyOnce {
                    self.disk.changed = true;
                }
            }
            Action::StoredBefore(id) => self.inlet.settle(Answer::PubRec(id), Reason::Success),
            Action::Release(id) => {
                self.disk.changed = true;
                self.inlet.settle(Answer::PubComp(id), Reason::Success);
            }
            Action::Send(reply) => send(&mut self.output.bytes, version, reply),
            Action::Nothing => {}
            Action::Goodbye => {
                self.close(None);
                return Ok(Step::Closed);
            }
            Action::Subscribe(packet) => {
                let who = self.inlet.who();
                let may = |filter: &str| match is_reserved(filter) {
                    true => owns(&who.client_id, filter),
                    false => self.shared.access.may_subscribe(who, filter),
                };
                let greets = packet.filters.iter().any(|wanted| owns(&who.client_id, wanted.filter));
                let before = self.session.subscriptions.len();
                let codes = self.session.subscriptions.subscribe(version, &packet, may);
                self.resubscribed = true;
                self.shared.metrics.mqtt_subscriptions.inc_by((self.session.subscriptions.len() - before) as i64);
                write::suback(&mut self.output.bytes, version, packet.id, &codes);
                if greets {
                    self.greet_device();
                }
            }
            Action::Unsubscribe(packet) => {
                let before = self.session.subscriptions.len();
                let codes = self.session.subscriptions.unsubscribe(&packet);
                self.resubscribed = true;
                self.shared.metrics.mqtt_subscriptions.dec_by((before - self.session.subscriptions.len()) as i64);
                write::unsuback(&mut self.output.bytes, version, packet.id, &codes);
            }
        }
        Ok(Step::Go)
    }

    /// Hands what was gathered to the log, and holds its answers.
    async fn hand_in(&mut self) -> Result<(), AppendError> {
        if self.inlet.is_empty() {
            self.inlet.end_turn();
            return Ok(());
        }
        self.put_session();
        if self.inlet.live_bytes() > 0 {
            // Others are to know of it while the log makes this one wait.
            self.count_held(self.shared.now_ms());
        }
        let (ticket, placements) = match self.inlet.batch.is_empty() {
            true => (None, Vec::new()),
            false => {
                let (ticket, placements) = self.append().await?;
                self.session.excuse(self.shared.now_ms());
                (Some(ticket), placements)
            }
        };
        let live = self.inlet.take_live();
        let held = self.acks.hold(self.version(), ticket, &self.inlet.items, &placements, live);
        if held.envelopes {
            self.inlet.envelopes_refused();
        }
        let lost = self.inlet.take_lost();
        if lost > 0 {
            self.shared.tell_lost(lost, self.client_id());
        }
        self.inlet.end_turn();
        self.settle_full(held);
        Ok(())
    }

    /// While the log makes us wait, nothing is read: that is the back pressure.
    async fn append(&mut self) -> Result<(Ticket, Vec<Placement>), AppendError> {
        let mut append = std::pin::pin!(self.appender.append(&mut self.inlet.batch));
        match tokio::time::timeout(BEHIND_AFTER, append.as_mut()).await {
            Ok(done) => done,
            Err(_) => {
                let _behind = self.shared.mark_behind();
                append.await
            }
        }
    }

    /// A full stream has refused records: count them, and free the QoS 2 identifiers that were to be taken for them. On
    /// disk they never were.
    fn settle_full(&mut self, held: Held) {
        for _ in 0..held.full {
            self.shared.reject_as("stream_full", self.client_id(), "the stream is full and its policy is to reject");
        }
        for id in held.refused {
            self.session.inbound.release(id);
        }
        if self.disk.present && self.session.inbound.taken().len() == 0 {
            self.note_kept(false);
        }
    }

    fn let_go(&mut self, durable: Option<Ticket>) {
        if self.acks.is_empty() {
            return;
        }
        let released = self.acks.release(durable, &mut self.output.bytes);
        self.session.inbound.answered(released.answered);
        self.shared.bus.send(released.live);
        if let Some(reason) = released.close {
            // What came behind the refused message must stay unanswered, however durable it is.
            self.acks = Default::default();
            self.close(Some(reason));
        }
    }

    async fn wait(
        &mut self,
        stopping: &mut watch::Receiver<bool>,
        timer: std::pin::Pin<&mut tokio::time::Sleep>,
    ) -> Event {
        let open = self.closing.is_none();
        let can_read =
            open && self.unpacking.is_none() && self.working.is_none() && self.has_room() && self.has_space();
        let can_send = self.output_has_room() && open;
        let can_owe = can_send && self.session.outbound.has_room();
        let ticket = self.acks.next_ticket();
        let (acks_wait, output_waits) = (ticket.is_some(), !self.output.is_empty());
        let (appender, seat, sources, growing) =
            (&mut self.appender, &mut self.seat, &mut self.sources, &mut self.growing);
        let (unpacking, working) = (&mut self.unpacking, &mut self.working);
        let room = async {
            match growing {
                Some(Growing { room, .. }) => room.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let unpack = async {
            match unpacking {
                Some(room) => room.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let work = async {
            match working {
                Some(work) => work.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let durable = async {
            match ticket {
                Some(ticket) => appender.durable(ticket).await,
                None => Ok(()),
            }
        };
        // In random order: neither a client that never stops sending nor one that is always owed something starves the
        // other way.
        tokio::select! {
            _ = seat.leave.wait_for(|leave| *leave), if open => Event::Leave,
            _ = stopping.wait_for(|stop| *stop), if open => Event::Stop,
            () = timer => Event::Timer,
            wrote = self.writer.write(self.output.pending()), if output_waits => Event::Wrote(wrote),
            done = durable, if acks_wait => Event::Durable(done),
            count = self.reader.read(self.input.space()), if can_read => Event::Read(count),
            Ok(room) = room => Event::Room(room),
            Ok(room) = unpack => Event::Unpack(room),
            () = work => Event::Worked,
            next = sources.next(can_owe), if can_send => Event::Deliver(next),
        }
    }

    /// Whether there is where to read to; if not, it waits for room as the last of those that do.
    fn has_space(&mut self) -> bool {
        if self.growing.is_none() && self.input.prepare().is_some() {
            return true;
        }
        let memory = &self.shared.memory;
        self.growing.get_or_insert_with(|| Growing {
            room: Box::pin(self.input.room(&memory.large)),
            since_ms: self.shared.now_ms(),
            _wanting: memory.want(),
        });
        false
    }

    /// There is room for the packet at the front. The wait for it does not count against the client.
    fn grow(&mut self, room: OwnedSemaphorePermit) {
        let Some(growing) = self.growing.take() else { return };
        self.input.grow(room);
        let now_ms = self.shared.now_ms();
        self.session.excuse(now_ms);
        self.partial_since_ms = self.partial_since_ms.map(|since| since + now_ms.saturating_sub(growing.since_ms));
    }

    fn violated(&mut self, violation: Violation) {
        self.refuse(violation.reason, violation.says);
    }

    /// The batch is not on disk and nothing of it is answered: the client will send it again.
    fn log_failed(&mut self, error: &AppendError) -> End {
        let reason = match error {
            AppendError::Closed => Reason::ServerShuttingDown,
            AppendError::Failed(_) => Reason::ImplementationSpecific,
        };
        self.shared.reject_as("log_failed", self.client_id(), &error.to_string());
        let mut bye = Vec::new();
        write::disconnect(&mut bye, self.version(), reason);
        self.output.bytes.extend_from_slice(&bye);
        // One try: what the socket takes at once is what the client is told.
        let _ = futures_write(&mut self.writer, self.output.pending());
        self.acks = Default::default();
        End::Gone
    }

    async fn say_goodbye(&mut self, closing: Closing) -> End {
        if let Some(reason) = closing.reason {
            write::disconnect(&mut self.output.bytes, self.session.version(), reason);
        }
        // Somebody waits for the client id of a session that is taken over.
        let within = match closing.reason {
            Some(Reason::SessionTakenOver) => GOODBYE_WITHIN,
            _ => self.shared.write_within,
        };
        let until = Instant::now() + within;
        while !self.output.is_empty() {
            let look = until.min(Instant::now() + Duration::from_secs(1));
            let wrote = tokio::time::timeout_at(look, self.writer.write(self.output.pending())).await;
            match wrote {
                Ok(Ok(count)) if count > 0 => {
                    self.output.wrote(count);
                    self.burden.took(count);
                }
                Ok(_) => return End::Gone,
                Err(_) => {}
            }
            let now_ms = self.shared.now_ms();
            self.count_held(now_ms);
            if Instant::now() >= until || self.burden.is_overdue(now_ms, &self.shared.memory) {
                return End::Gone;
            }
        }
        End::Answered
    }

    /// When the timer has to look again.
    fn deadline_ms(&self, now_ms: u64) -> u64 {
        // Memory may become tight at any time, so whoever holds much looks every second.
        let holds_much = self.burden.is_any() || self.wanted_due_ms().is_some();
        // What is read for a client that has no window for it wakes nobody.
        let unseen = self.sources.is_any() && !(self.output_has_room() && self.session.outbound.has_room());
        let look_ms = (holds_much || unseen).then_some(now_ms + 1_000);
        let (packet_ms, room_ms) = (self.packet_due_ms(), self.room_due_ms());
        [self.keep_alive_due_ms(), packet_ms, room_ms, self.write_due_ms(), self.close_due_ms(), look_ms]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now_ms + 3_600_000)
    }

    fn keep_alive_due_ms(&self) -> Option<u64> {
        // While we do not read, silence is our doing.
        let waits = self.growing.is_some() || self.unpacking.is_some();
        let listening = self.closing.is_none() && self.has_room() && !waits;
        self.session.overdue_at_ms().filter(|_| listening)
    }

    /// A client that does not take its answers has no more time for it.
    fn packet_due_ms(&self) -> Option<u64> {
        let listening = self.closing.is_none() && self.log_has_room() && self.growing.is_none();
        let since = self.partial_since_ms.filter(|_| listening)?;
        let size = frame_bytes(self.input.filled()).unwrap_or(0) as u64;
        Some(since + PACKET_WITHIN_MS + size * 1000 / 1024)
    }

    /// When a packet that is not whole has to give its room to others who want it.
    fn wanted_due_ms(&self) -> Option<u64> {
        let since = self.partial_since_ms.filter(|_| self.input.is_large() && self.packet_due_ms().is_some())?;
        let size = frame_bytes(self.input.filled()).unwrap_or(0) as u64;
        Some(since + WANTED_WITHIN_MS + size / WANTED_BYTES_PER_MS)
    }

    /// When a packet has waited too long for room.
    fn room_due_ms(&self) -> Option<u64> {
        Some(self.growing.as_ref()?.since_ms + self.shared.connect_within.as_millis() as u64)
    }

    fn write_due_ms(&self) -> Option<u64> {
        (!self.output.is_empty()).then(|| self.took_ms + self.shared.write_within.as_millis() as u64)
    }

    fn close_due_ms(&self) -> Option<u64> {
        Some(self.closing?.since_ms + self.shared.write_within.as_millis() as u64)
    }

    /// Looks which deadline has passed.
    fn overdue(&mut self) -> Option<End> {
        let now_ms = self.shared.now_ms();
        let passed = |due: Option<u64>| due.is_some_and(|due| due <= now_ms);
        if passed(self.write_due_ms()) {
            self.shared.reject_as("never_reads", self.client_id(), "it takes nothing of what it is sent");
            return Some(End::Gone);
        }
        if passed(self.close_due_ms()) {
            return Some(End::Gone);
        }
        if self.burden.is_overdue(now_ms, &self.shared.memory) {
            self.shared.reject_as(
                "reads_slowly",
                self.client_id(),
                "it takes what it is sent too slowly for a full house",
            );
            return Some(End::Gone);
        }
        if passed(self.room_due_ms()) {
            self.refuse(Reason::QuotaExceeded, "too many large packets at once");
        } else if self.shared.memory.is_wanted() && passed(self.wanted_due_ms()) {
            self.shared.reject_as(
                "slow_packet",
                self.client_id(),
                "a packet takes too long while others want its room",
            );
            self.close(Some(Reason::QuotaExceeded));
        } else if passed(self.packet_due_ms()) {
            self.shared.reject_as("slow_packet", self.client_id(), "a packet takes too long to come in");
            self.close(Some(Reason::KeepAliveTimeout));
        } else if passed(self.keep_alive_due_ms()) {
            // [MQTT-3.1.2-22]
            self.refuse(Reason::KeepAliveTimeout, "silent for one and a half times its keep-alive");
        }
        None
    }
}

fn send(out: &mut Vec<u8>, version: Version, reply: Reply) {
    // 3.1.1 has no reasons in these packets.
    let told = |reason| if version == Version::V4 { Reason::Success } else { reason };
    match reply {
        Reply::Pong => write::pingresp(out),
        Reply::PubRel(id, reason) => write::pubrel(out, id, told(reason)),
        Reply::PubComp(id, reason) => write::pubcomp(out, id, told(reason)),
    }
}

/// One write that does not wait.
fn futures_write<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    matches!(std::pin::Pin::new(writer).poll_write(&mut context, bytes), std::task::Poll::Ready(Ok(_)))
}

/// Why a message of a topic is not taken. A topic may be long, and say anything.
fn refused_message(topic: &str, reason: Reason) -> String {
    let topic: String = topic.chars().take(128).collect();
    let why = match reason {
        Reason::TopicNameInvalid => "no route takes it, or its stream was deleted",
        Reason::PayloadFormatInvalid => "its envelope is malformed, or unpacks to too much",
        _ => "for the reason named",
    };
    format!("a message to {topic:?}: {why}")
}
