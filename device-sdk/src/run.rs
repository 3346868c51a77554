//! One connection, from the subscription to its end: frames and parts of blobs out, answers in.

use crate::apart::apart;
use crate::config::{Config, Counts, ID_BYTES_MAX};
use crate::device::tell;
use crate::downlink::{Answer, Downlink, Heard, Text, chunk_bytes, listen, outgoing};
use crate::link::{Link, Sent, Step, later};
use crate::mqtt::{Event, Published, Session, flush, next};
use crate::outbox::HEAD_ROOM;
use crate::store::{Store, Until, in_time};
use crate::trace::{info, warning};
use core::future::poll_fn;
use core::task::Poll;
use embassy_futures::select::{Either, Either3, select3};
use embassy_sync::blocking_mutex::raw::RawMutex;
use embassy_time::{Duration, Instant};
use embedded_io_async::{Read, Write};
use embedded_storage_async::nor_flash::NorFlash;
use headwater_wire::{
    CHUNK_HEADER_BYTES_MAX, Chunk, ENVELOPE_HEADER_BYTES_MAX, Envelope, Hello, Kind, LOSSES_TOPIC, Losses, TOPIC_ROOT,
};

/// Between two messages that tell what was lost.
const LOSSES_PAUSE: Duration = Duration::from_secs(10);

/// How far a blob is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Upload {
    id: u32,
    /// Parts that are on the gateway's disk.
    kept: u64,
    /// Parts sent on this connection, or kept before.
    sent: u64,
}

/// One connection that was opened.
pub(crate) struct Run<'d, 'a, M: RawMutex, F, A, const N: usize> {
    pub store: Store<'d, M, F, N>,
    pub link: &'d mut Link,
    pub config: &'d Config<'a>,
    pub counts: &'d mut Counts,
    pub heard: Heard,
    pub app: &'d mut A,
    pub upload: Upload,
    /// So many messages follow the hello, and so long they are waited for.
    pub owed: Option<(u32, Instant)>,
    /// How many losses the gateway was told of on this connection, and when it is told again at the earliest.
    pub told: Option<(u64, Instant)>,
}

impl<M: RawMutex, F: NorFlash, A: Downlink, const N: usize> Run<'_, '_, M, F, A, N> {
    /// Serves the connection to its end; whether that is a rest, and not a loss.
    pub async fn serve(
        &mut self,
        mqtt: &mut Session<'_>,
        stream: &mut (impl Read + Write),
        frame: &mut [u8],
        until: Until,
    ) -> bool {
        let filter = Text::<{ ID_BYTES_MAX + 16 }>::EMPTY;
        let filter = filter
            .push(TOPIC_ROOT.as_bytes())
            .and_then(|f| f.push(self.config.id.as_bytes()))
            .and_then(|f| f.push(b"/#"));
        let Some(filter) = filter else { return false };
        if mqtt.subscribe(filter.as_bytes()).is_none() {
            return false;
        }
        let mut last_epoch = None;
        loop {
            apart!(self.store.all(frame));
            tell(self.store.recorder, self.store.outbox, self.link, *self.counts, None);
            let now = Instant::now();
            if self.link.not_greeted(now) {
                info!("no hello: this is a broker, or a gateway of another version");
            }
            if !mqtt.poll(now) {
                info!("the gateway gives no sign of life");
                return false;
            }
            let answer = self.heard.answer.take().or_else(|| self.losses(now, until));
            if let Some(answer) = answer.or_else(|| outgoing(self.config.id, self.app)) {
                // It is the first of this turn: there is room, or never will be.
                let _ = mqtt.message(answer.topic.as_bytes(), answer.bytes.as_bytes(), answer.correlation.as_bytes());
            }
            let has_more = match self.link.poll(now) {
                Step::Drop => {
                    info!("the gateway does not answer");
                    return false;
                }
                Step::Rewind => {
                    self.store.outbox.rewind();
                    self.upload.sent = self.upload.kept;
                    self.link.rewound();
                    continue;
                }
                Step::Send => match apart!(self.send(mqtt, frame, &mut last_epoch)) {
                    None => return false,
                    Some(true) => true,
                    Some(false) => match apart!(self.send_chunk(mqtt, frame)) {
                        None => return false,
                        Some(sent) => sent,
                    },
                },
                Step::Connect | Step::Wait => false,
            };
            let written = in_time(self.config.patience.answer_within, flush(mqtt, stream)).await;
            if !matches!(written, Either::First(Ok(()))) {
                return false;
            }
            // A device that only looks in takes what waits for it along.
            let owed = self.owed.filter(|(messages, until)| self.heard.messages < *messages && now < *until);
            let is_idle = self.link.is_online() && self.link.in_flight() == 0 && owed.is_none();
            if is_idle && self.store.is_done(until, self.app.blob().is_some()) {
                mqtt.disconnect();
                let _ = in_time(self.config.patience.answer_within, flush(mqtt, stream)).await;
                return true;
            }
            if matches!(until, Until::Empty(end) if now >= end) {
                return false;
            }
            // With more to send only a look at what has come, so that answers are never behind.
            let outgoing = poll_fn(|context| if has_more { Poll::Ready(()) } else { self.app.poll_outgoing(context) });
            // There may be more to tell of losses by then.
            let again = self.told.map(|(_, again)| again).filter(|again| now < *again);
            let wakes = [self.link.next_wake(), mqtt.next_wake(), owed.map(|(_, until)| until), again];
            let wake = wakes.into_iter().flatten().min();
            let event = match select3(next(mqtt, stream), self.store.wait(wake, until), outgoing).await {
                Either3::First(Ok(event)) => event,
                Either3::First(Err(_)) => return false,
                Either3::Second(()) | Either3::Third(()) => Event::Other,
            };
            apart!(self.take(event));
        }
    }

    /// Sends the next frame, if there is one: whether it did. `None` if the connection is of no use any more.
    async fn send(&mut self, mqtt: &mut Session<'_>, frame: &mut [u8], last_epoch: &mut Option<u32>) -> Option<bool> {
        let outbox = &mut *self.store.outbox;
        let loaded = match outbox.load(frame).await {
            Ok(Some(loaded)) if self.link.takes_epoch(loaded.epoch) => loaded,
            Ok(_) => return Some(false),
            Err(_) => {
                warning!("the flash does not read");
                return None;
            }
        };
        if last_epoch.replace(loaded.epoch).is_some_and(|last| last != loaded.epoch) {
            // Frames of an older epoch must not be sent again after this.
            let _ = outbox.mark().await;
        }
        let (first, count) = (loaded.first, u32::from(loaded.count));
        let envelope = Envelope { kind: loaded.kind, epoch: loaded.epoch, first, count, body: &[] };
        let mut head = [0; ENVELOPE_HEADER_BYTES_MAX];
        let length = envelope.write_head(&mut head)?;
        let start = HEAD_ROOM.checked_sub(length)?;
        frame.get_mut(start..HEAD_ROOM)?.copy_from_slice(head.get(..length)?);
        let payload = frame.get(start..HEAD_ROOM + loaded.length)?;
        match mqtt.envelope(self.config.topic, payload) {
            Published::OnItsWay => {
                self.store.outbox.sent(&loaded);
                self.link.sent(Instant::now(), Sent::Frame { epoch: loaded.epoch, last: loaded.last() });
                self.counts.publishes += 1;
                Some(true)
            }
            Published::NotNow if !mqtt.output().is_empty() => Some(true),
            Published::NotNow if self.link.in_flight() > 0 => Some(false),
            Published::NotNow => {
                warning!("a frame of {} bytes is more than the gateway takes", loaded.length);
                None
            }
        }
    }

    /// Sends the next part of the application's blob, if there is one: whether it did. `None` as in [`Run::send`].
    async fn send_chunk(&mut self, mqtt: &mut Session<'_>, frame: &mut [u8]) -> Option<bool> {
        let Some(blob) = self.app.blob() else { return Some(false) };
        if blob.id != self.upload.id {
            self.upload = Upload { id: blob.id, ..Upload::default() };
        }
        let offset = self.upload.sent.checked_mul(chunk_bytes(N) as u64)?;
        let left = blob.length.saturating_sub(offset);
        if left == 0 {
            if self.upload.kept == self.upload.sent {
                self.app.blob_ended(blob.id, true);
            }
            return Some(false);
        }
        let length = left.min(chunk_bytes(N) as u64) as usize;
        let start = HEAD_ROOM + CHUNK_HEADER_BYTES_MAX;
        let (room, bytes) = frame.split_at_mut_checked(start)?;
        let bytes = bytes.get_mut(..length)?;
        if !self.app.read_blob(blob.id, offset, bytes).await {
            self.app.blob_ended(blob.id, false);
            return Some(false);
        }
        let number = self.upload.sent + 1;
        let mut head = [0; ENVELOPE_HEADER_BYTES_MAX + CHUNK_HEADER_BYTES_MAX];
        let envelope = Envelope { kind: Kind::Chunk, epoch: blob.id, first: number, count: 1, body: &[] };
        let mut head_length = envelope.write_head(&mut head)?;
        let chunk = Chunk { offset, total: blob.length, bytes };
        head_length += chunk.write_head(head.get_mut(head_length..)?)?;
        let begin = start.checked_sub(head_length)?;
        room.get_mut(begin..)?.iter_mut().zip(head).for_each(|(place, byte)| *place = byte);
        let payload = frame.get(begin..start + length)?;
        match mqtt.envelope(self.config.topic, payload) {
            Published::OnItsWay => {
                self.upload.sent = number;
                self.link.sent(Instant::now(), Sent::Chunk { id: blob.id, number });
                self.counts.publishes += 1;
                Some(true)
            }
            Published::NotNow => Some(!mqtt.output().is_empty()),
        }
    }

    /// Tells a gateway that has greeted what was lost: once, and when there is more.
    fn losses(&mut self, now: Instant, until: Until) -> Option<Answer> {
        self.owed?;
        let outbox = self.store.outbox.counters();
        let losses = Losses {
            dropped_oldest: outbox.dropped_oldest,
            dropped_newest: outbox.dropped_newest,
            thinned: self.store.recorder.thinned(),
            damaged: outbox.damaged,
            unwritten: outbox.unwritten,
            rejected: self.counts.rejected,
            pending: self.store.outbox.len(),
            programmed_bytes: outbox.programmed_bytes,
            erases: outbox.erases,
        };
        let records = losses.records();
        if !is_news(self.told, records, now, until) {
            return None;
        }
        self.told = Some((records, later(now, LOSSES_PAUSE)));
        Answer::new(self.config.id, LOSSES_TOPIC, Text::EMPTY.push(&losses.to_bytes())?)
    }

    /// Does what an event asks for.
    async fn take(&mut self, event: Event<'_>) {
        let now = Instant::now();
        match event {
            Event::Other | Event::Connected(_) => {}
            Event::Message(message) => {
                listen(message, self.config.id, &mut self.heard, self.app);
                if let Some(hello) = self.heard.hello.take() {
                    apart!(self.greet(hello, now));
                }
            }
            Event::Acked => match self.link.acked(now) {
                Some(Sent::Frame { last, .. }) => {
                    let _ = self.store.outbox.release(last).await;
                    *self.store.pause = None;
                }
                Some(Sent::Chunk { id, number }) if id == self.upload.id => self.upload.kept = number,
                Some(Sent::Chunk { .. }) | None => {}
            },
            // The payload format is invalid: it will be so the next time as well.
            Event::Refused(0x99) => match self.link.acked(now) {
                Some(Sent::Frame { last, .. }) => {
                    let before = self.store.outbox.len();
                    let _ = self.store.outbox.release(last).await;
                    self.counts.rejected += before.saturating_sub(self.store.outbox.len());
                    warning!("the gateway calls records up to {} malformed", last);
                }
                Some(Sent::Chunk { id, .. }) => self.app.blob_ended(id, false),
                None => {}
            },
            Event::Refused(reason) => {
                self.link.refused(now);
                self.counts.refused += 1;
                info!("the gateway does not take records now: reason {}", reason);
            }
        }
    }

    async fn greet(&mut self, hello: Hello, now: Instant) {
        if hello.time_ms > 0 {
            self.store.recorder.set_clock(hello.time_ms, now);
        }
        if self.link.in_flight() > 0 {
            return;
        }
        if let Some((epoch, sequence)) = hello.kept {
            let _ = self.store.outbox.release_epoch(epoch, sequence).await;
        }
        self.store.outbox.rewind();
        if let Some((id, kept)) = hello.blob {
            self.upload = Upload { id, kept, sent: kept };
        }
        self.owed = Some((hello.waiting, later(now, self.config.patience.hello_within)));
        self.link.greeted();
    }
}

/// Whether so many losses are to be told now. A device that is about to sleep does not wait.
fn is_news(told: Option<(u64, Instant)>, records: u64, now: Instant, until: Until) -> bool {
    told.is_none_or(|(told, again)| told != records && (now >= again || until != Until::Ever))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_at_once_and_then_now_and_then() {
        let at = Instant::from_secs;
        let told = Some((3, at(20)));
        assert!(is_news(None, 0, at(10), Until::Ever), "so that the gateway forgets those of an earlier life");
        for (records, now, until, expected) in [
            (3, 30, Until::Ever, false),
            (4, 19, Until::Ever, false),
            (4, 20, Until::Ever, true),
            (4, 19, Until::Empty(at(19)), true),
            (3, 19, Until::Empty(at(19)), false),
        ] {
            assert_eq!(is_news(told, records, at(now), until), expected, "{records} {now}");
        }
    }
}
