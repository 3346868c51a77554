//! A simulated device: it sends its messages in order, keeps what is not acknowledged, and sends that again in order
//! after a failure, as an MQTT client does.

use super::oracle::Oracle;
use headwater::log::sim::SteppedLog;
use headwater::log::{Appender, Batch, Placement, Stream, Table, Ticket};
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

    /// A device has two keys, by turns, so that what it hands in at once is for more than one shard.
    pub fn key(self) -> Vec<u8> {
        let Message { device, sequence, .. } = self;
        format!("device-{device}-{}", sequence % 2).into_bytes()
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
    /// Keeps a row of state: the highest message that is stored, changed with the records or not at all, as the MQTT side
    /// keeps its identifiers of QoS 2.
    pub keeps_row: bool,
    row: u64,
    /// What an earlier connection has handed in: a device that keeps a row comes back when that is durable or has failed.
    leaving: Option<(Appender, Ticket)>,
    appender: Option<Appender>,
    next_sequence: u64,
    pending: VecDeque<Pending>,
}

/// The row of a device.
pub fn row_of(log: &SteppedLog, device: u32) -> Option<u64> {
    let row = log.state(Table::Sessions, &device.to_be_bytes())?;
    row.as_ref().try_into().ok().map(u64::from_be_bytes)
}

fn highest(row: u64, sequences: &[u64], placements: &[Placement]) -> u64 {
    let placed = sequences.iter().zip(placements).filter(|(_, placement)| !matches!(placement, Placement::Full { .. }));
    placed.map(|(sequence, _)| *sequence).max().unwrap_or(0).max(row)
}

/// A batch of so many bytes fits a group of the simulated log, in bytes.
const WHOLE_BYTES_MAX: usize = 24 << 10;
/// Messages of one device that are not acknowledged, at most.
const PENDING_MAX: usize = 60;

impl Device {
    pub fn new(id: u32, stream: usize, numbered: bool) -> Device {
        // One of those that number their records, one of those that do not, and one whose stream refuses when it is full.
        let keeps_row = matches!(id, 0 | 1 | 7);
        Device {
            id,
            stream,
            numbered,
            keeps_row,
            row: 0,
            leaving: None,
            appender: None,
            next_sequence: 1,
            pending: VecDeque::new(),
        }
    }

    /// The log is gone, and with it whatever was on its way.
    pub fn lose_log(&mut self) {
        self.disconnect();
        self.leaving = None;
    }

    fn may_connect(&mut self) -> bool {
        if let Some((appender, last)) = &self.leaving
            && appender.durable_now().is_ok_and(|durable| durable < *last)
        {
            return false;
        }
        self.leaving = None;
        true
    }

    /// The connection is gone: what is not acknowledged will be handed in again, as a new attempt.
    pub fn disconnect(&mut self) {
        if let Some(mut appender) = self.appender.take().filter(|_| self.keeps_row)
            && let Ok(Some((last, _))) = appender.try_append(&mut Batch::new())
        {
            self.leaving = Some((appender, last));
        }
        for pending in &mut self.pending {
            if pending.sent.take().is_some() {
                pending.message.attempt += 1;
            }
        }
    }

    /// Connects, and hands in what waits, then new messages, `records` in all.
    pub fn send(&mut self, log: &SteppedLog, stream: &Arc<Stream>, records: u32, oracle: &mut Oracle) {
        if self.appender.is_none() && self.may_connect() {
            self.appender = Some(log.appender());
            self.row = row_of(log, self.id).unwrap_or(0);
        }
        self.send_on(stream, records, oracle);
    }

    /// The same, if it is connected.
    pub fn send_on(&mut self, stream: &Arc<Stream>, records: u32, oracle: &mut Oracle) {
        if self.appender.is_none() {
            return;
        }
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
        let sequences: Vec<u64> =
            self.pending.iter().skip(first).take(count).map(|pending| pending.message.sequence).collect();
        if self.keeps_row {
            let (row, sequences) = (self.row, sequences.clone());
            let value = move |placements: &[Placement]| {
                Some(highest(row, &sequences, placements).to_be_bytes().to_vec().into())
            };
            batch.put_state_on_places(Table::Sessions, self.id.to_be_bytes().to_vec(), value);
            let messages = self.pending.iter().skip(first).take(count).map(|pending| pending.message);
            if messages.clone().map(|message| message.data().len() + 100).sum::<usize>() < WHOLE_BYTES_MAX {
                messages.for_each(|message| oracle.goes_with_a_row(message));
            }
        }
        let Some(appender) = &mut self.appender else { return };
        match appender.try_append(&mut batch) {
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
                self.row = highest(self.row, &sequences, &placements);
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
            key: &message.key(),
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
