//! A simulated device: it sends its messages in order, keeps what is not acknowledged, and sends that again in order
//! after a failure, as an MQTT client does.

use super::oracle::Oracle;
use headwater::log::sim::SteppedLog;
use headwater::log::{Appender, Batch, Placement, Stream, Ticket};
use headwater::record::{Header, HeaderId, NewRecord, Producer};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

/// One attempt to store one message of a device: what a record's bytes say, and what follows from it byte by byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    pub device: u32,
    pub sequence: u64,
    pub attempt: u32,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {} message {} attempt {}", self.device, self.sequence, self.attempt)
    }
}

impl Message {
    /// The value: the three numbers, then bytes that only they determine. Sizes from nothing to a blob.
    pub fn data(&self) -> Vec<u8> {
        let Message { device, sequence, attempt } = *self;
        let mut rng = fastrand::Rng::with_seed(u64::from(device) << 48 ^ sequence << 16 ^ u64::from(attempt));
        let filler = match rng.u32(0..400) {
            0..300 => rng.usize(0..200),
            300..380 => rng.usize(200..5_000),
            380..398 => rng.usize(5_000..24_000),
            _ => rng.usize(66_000..120_000),
        };
        let mut data = format!("{device}/{sequence}/{attempt}/").into_bytes();
        let start = data.len();
        data.resize(start + filler, 0);
        // Half of them compress.
        if rng.bool() {
            rng.fill(&mut data[start..]);
        } else {
            data[start..].fill(rng.u8(..));
        }
        data
    }

    /// Reads the three numbers; the caller compares the rest.
    pub fn parse(data: &[u8]) -> Option<Message> {
        let mut parts = data.splitn(4, |byte| *byte == b'/');
        let mut next = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
        Some(Message { device: next()? as u32, sequence: next()?, attempt: next()? as u32 })
    }

    pub fn key(device: u32) -> Vec<u8> {
        format!("device-{device}").into_bytes()
    }
}

/// A message on its way.
struct Pending {
    message: Message,
    /// Handed in with this ticket; `None`: to be handed in (again).
    sent: Option<(Ticket, Placement)>,
}

pub struct Device {
    pub id: u32,
    pub stream: usize,
    /// Numbers its records, so that none is stored twice (promise P3).
    pub numbered: bool,
    appender: Option<Appender>,
    next_sequence: u64,
    pending: VecDeque<Pending>,
}

/// Messages of one device that are not acknowledged, at most.
const PENDING_MAX: usize = 60;

impl Device {
    pub fn new(id: u32, stream: usize, numbered: bool) -> Device {
        Device { id, stream, numbered, appender: None, next_sequence: 1, pending: VecDeque::new() }
    }

    /// The connection is gone: what is not acknowledged will be handed in again, as a new attempt.
    pub fn disconnect(&mut self) {
        self.appender = None;
        for pending in &mut self.pending {
            if pending.sent.take().is_some() {
                pending.message.attempt += 1;
            }
        }
    }

    /// Hands in what waits, then new messages, `records` in all.
    pub fn send(&mut self, log: &SteppedLog, stream: &Arc<Stream>, records: u32, oracle: &mut Oracle) {
        let waiting = self.pending.iter().filter(|pending| pending.sent.is_none()).count();
        for _ in waiting..records as usize {
            if self.pending.len() >= PENDING_MAX {
                break;
            }
            let message = Message { device: self.id, sequence: self.next_sequence, attempt: 0 };
            self.next_sequence += 1;
            self.pending.push_back(Pending { message, sent: None });
        }
        let first = self.pending.iter().position(|pending| pending.sent.is_none());
        let Some(first) = first else { return };
        let count = (self.pending.len() - first).min(records as usize);
        let mut batch = Batch::new();
        for pending in self.pending.iter().skip(first).take(count) {
            self.push(&mut batch, stream, pending.message);
        }
        let appender = self.appender.get_or_insert_with(|| log.appender());
        let appended = log.append(appender, &mut batch);
        match appended {
            // The log is behind; it may have taken a part. The device hangs up, as one that is not read does.
            Ok(None) => {
                for pending in self.pending.iter_mut().skip(first).take(count) {
                    oracle.unanswered(pending.message);
                    pending.message.attempt += 1;
                }
                self.disconnect();
            }
            Ok(Some((ticket, placements))) => {
                assert_eq!(placements.len(), count, "one placement a record");
                for (pending, placement) in self.pending.iter_mut().skip(first).zip(placements) {
                    pending.sent = Some((ticket, placement));
                    oracle.given(self.stream, pending.message, placement);
                }
            }
            Err(_) => {
                for pending in self.pending.iter_mut().skip(first).take(count) {
                    oracle.unanswered(pending.message);
                    pending.message.attempt += 1;
                }
                self.disconnect();
            }
        }
    }

    fn push(&self, batch: &mut Batch, stream: &Arc<Stream>, message: Message) {
        let producer = Producer { id: u128::from(self.id), epoch: 1, sequence: message.sequence };
        let headers = [Header::new(HeaderId::Topic, format!("d/{}", self.id).into_bytes())];
        let record = NewRecord {
            key: &Message::key(self.id),
            explicit_hash: None,
            producer: self.numbered.then_some(producer),
            headers: &headers,
            data: &message.data(),
        };
        batch.push(stream, &record).expect("the record is within all limits");
    }

    /// Takes in what became durable; disconnects when a group failed.
    pub fn poll(&mut self, oracle: &mut Oracle) {
        let Some(appender) = &self.appender else { return };
        let durable = match appender.durable_now() {
            Ok(durable) => durable,
            Err(_) => {
                self.disconnect();
                return;
            }
        };
        while let Some(Pending { message, sent: Some((ticket, placement)) }) = self.pending.front()
            && *ticket <= durable
        {
            match placement {
                Placement::Stored { shard, number } => oracle.acknowledged(self.stream, *shard, *number, *message),
                Placement::Duplicate { shard } => oracle.acknowledged_duplicate(self.stream, *shard, *message),
                // Told that it was refused, the device gives the message up.
                Placement::Full { .. } => oracle.refused(self.stream),
            }
            self.pending.pop_front();
        }
    }
}
