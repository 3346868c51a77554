//! The one place where PUBACK, PUBREC and PUBCOMP are let go (pure).
//!
//! Answers are encoded when their batch is handed to the log and lie here in order until its ticket is durable
//! (promise P1). Letting a group go is one copy of bytes. Order of answers is the order of the packets
//! [MQTT-4.6.0-2], [MQTT-4.6.0-3].

use super::bus::LiveMessage;
use super::codec::{PacketId, Reason, Version, write};
use crate::log::{Placement, Ticket};
use std::collections::VecDeque;

/// What a packet gets as its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// QoS 0.
    None,
    PubAck(PacketId),
    PubRec(PacketId),
    PubComp(PacketId),
}

/// One packet of the batch that is being filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    pub answer: Answer,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Pushed to the batch: the next placement is its.
    Placed,
    /// An envelope: so many of the next placements are its, and it is refused if one of them is, or for the reason.
    Unpacked {
        records: u16,
        reason: Reason,
    },
    Settled(Reason),
}

impl Outcome {
    /// How many placements are its.
    fn places(self) -> usize {
        match self {
            Outcome::Placed => 1,
            Outcome::Unpacked { records, .. } => usize::from(records),
            Outcome::Settled(_) => 0,
        }
    }
}

/// For each record that was pushed, in order: the QoS 2 identifier that is taken with it.
pub fn placed_ids(items: &[Item]) -> Vec<Option<PacketId>> {
    let ids = |item: &Item| {
        let id = match item.answer {
            Answer::PubRec(id) => Some(id),
            _ => None,
        };
        std::iter::repeat_n(id, item.outcome.places())
    };
    items.iter().flat_map(ids).collect()
}

/// What came of a batch, beside the answers that are held.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Messages refused by full streams.
    pub full: u32,
    /// An envelope was refused. Those of one batch are refused all or none.
    pub envelopes: bool,
    /// QoS 2 identifiers whose message was refused: they are free again.
    pub refused: Vec<PacketId>,
}

/// What was let go.
#[derive(Debug, Default)]
pub struct Released {
    /// PUBACK and PUBREC written.
    pub answered: u32,
    /// A 3.1.1 client has to be closed now: what came next could not be answered.
    pub close: Option<Reason>,
    /// Messages that are committed now and somebody listens for.
    pub live: Vec<LiveMessage>,
}

#[derive(Debug)]
pub struct Acks<T = Ticket> {
    bytes: VecDeque<u8>,
    groups: VecDeque<Group<T>>,
    /// Bytes of live messages and groups that wait.
    waiting: usize,
}

#[derive(Debug)]
struct Group<T> {
    /// `None`: nothing to wait for but the groups before.
    ticket: Option<T>,
    bytes: usize,
    answered: u32,
    close: Option<Reason>,
    live: Vec<LiveMessage>,
    weight: usize,
}

impl<T> Default for Acks<T> {
    fn default() -> Self {
        Acks { bytes: VecDeque::new(), groups: VecDeque::new(), waiting: 0 }
    }
}

impl<T: Copy + Ord> Acks<T> {
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Bytes held here until the disk has the records, QoS 0 and live messages included: they have no window of their own.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting
    }

    /// The ticket to wait for next.
    pub fn next_ticket(&self) -> Option<T> {
        self.groups.iter().find_map(|group| group.ticket)
    }

    pub fn last_ticket(&self) -> Option<T> {
        self.groups.iter().rev().find_map(|group| group.ticket)
    }

    /// Holds the answers of a batch. In 3.1.1 a refusal cannot be told: the connection is closed at it, and what comes
    /// behind it in the batch stays unanswered.
    pub fn hold(
        &mut self,
        version: Version,
        ticket: Option<T>,
        items: &[Item],
        placements: &[Placement],
        live: Vec<LiveMessage>,
    ) -> Held {
        let (mut held, mut encoded) = (Held::default(), Vec::with_capacity(items.len() * 4));
        let (mut answered, mut close) = (0, None);
        let mut placements = placements.iter();
        for item in items {
            let reason = match item.outcome {
                Outcome::Settled(reason) => reason,
                Outcome::Placed => match is_stored(placements.next()) {
                    true => Reason::Success,
                    false => {
                        held.full += 1;
                        Reason::QuotaExceeded
                    }
                },
                Outcome::Unpacked { records, reason } => {
                    let stored = (0..records).fold(true, |stored, _| is_stored(placements.next()) && stored);
                    held.full += u32::from(!stored);
                    held.envelopes |= !stored;
                    if stored { reason } else { Reason::QuotaExceeded }
                }
            };
            if let (Answer::PubRec(id), true) = (item.answer, reason != Reason::Success) {
                held.refused.push(id);
            }
            if close.is_some() || item.answer == Answer::None {
                continue;
            }
            if version == Version::V4 && reason != Reason::Success {
                close = Some(reason);
                continue;
            }
            answered += u32::from(!matches!(item.answer, Answer::PubComp(_)));
            encode(&mut encoded, item.answer, reason);
        }
        self.bytes.extend(&encoded);
        let weight = live.iter().map(LiveMessage::weight).sum::<usize>() + encoded.len() + size_of::<Group<T>>();
        self.waiting += weight;
        self.groups.push_back(Group { ticket, bytes: encoded.len(), answered, close, live, weight });
        held
    }

    /// Lets go what is durable: everything up to the ticket, in order.
    pub fn release(&mut self, durable: Option<T>, out: &mut Vec<u8>) -> Released {
        let mut released = Released::default();
        let mut bytes = 0;
        while let Some(group) = self.groups.front() {
            if group.ticket.is_some_and(|ticket| durable.is_none_or(|durable| ticket > durable)) {
                break;
            }
            let Some(group) = self.groups.pop_front() else { break };
            bytes += group.bytes;
            self.waiting -= group.weight;
            released.answered += group.answered;
            released.live.extend(group.live);
            if group.close.is_some() {
                released.close = group.close;
                break;
            }
        }
        out.extend(self.bytes.drain(..bytes));
        released
    }
}

/// A record without a placement cannot be; if it is, nothing says that it was stored.
fn is_stored(placement: Option<&Placement>) -> bool {
    matches!(placement, Some(Placement::Stored { .. } | Placement::Duplicate { .. }))
}

fn encode(out: &mut Vec<u8>, answer: Answer, reason: Reason) {
    match answer {
        Answer::None => {}
        Answer::PubAck(id) => write::puback(out, id, reason),
        Answer::PubRec(id) => write::pubrec(out, id, reason),
        Answer::PubComp(id) => write::pubcomp(out, id, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u16) -> PacketId {
        PacketId::new(n).unwrap()
    }
    fn placed(answer: Answer) -> Item {
        Item { answer, outcome: Outcome::Placed }
    }
    const STORED: Placement = Placement::Stored { shard: 0, number: 1 };
    const FULL: Placement = Placement::Full { shard: 0 };

    #[test]
    fn nothing_leaves_before_its_ticket_is_durable_and_then_in_order() {
        let (mut acks, mut out) = (Acks::<u64>::default(), Vec::new());
        acks.hold(Version::V5, Some(1), &[placed(Answer::PubAck(id(1)))], &[STORED], vec![]);
        let second = [placed(Answer::PubRec(id(2))), placed(Answer::None), placed(Answer::PubAck(id(3)))];
        acks.hold(Version::V5, Some(2), &second, &[STORED, STORED, Placement::Duplicate { shard: 0 }], vec![]);
        assert_eq!((acks.next_ticket(), acks.last_ticket()), (Some(1), Some(2)));
        assert_eq!(acks.release(None, &mut out).answered, 0);
        assert!(out.is_empty());
        assert_eq!(acks.release(Some(1), &mut out).answered, 1);
        assert_eq!(out, [0x40, 2, 0, 1]);
        assert_eq!(acks.release(Some(5), &mut out).answered, 2);
        assert_eq!(out[4..], [0x50, 2, 0, 2, 0x40, 2, 0, 3]);
        assert!(acks.is_empty());
    }

    #[test]
    fn a_full_stream_is_told_in_mqtt_5() {
        let (mut acks, mut out) = (Acks::<u64>::default(), Vec::new());
        let items = [placed(Answer::PubAck(id(1))), placed(Answer::PubRec(id(2))), placed(Answer::None)];
        let held = acks.hold(Version::V5, Some(1), &items, &[FULL, FULL, FULL], vec![]);
        assert_eq!(held, Held { full: 3, envelopes: false, refused: vec![id(2)] });
        assert_eq!(acks.release(Some(1), &mut out).close, None);
        assert_eq!(out, [0x40, 3, 0, 1, 0x97, 0x50, 3, 0, 2, 0x97]);
    }

    #[test]
    fn an_envelope_has_one_answer_for_all_its_records() {
        let (mut acks, mut out) = (Acks::<u64>::default(), Vec::new());
        let unpacked =
            |n, records, reason| Item { answer: Answer::PubAck(id(n)), outcome: Outcome::Unpacked { records, reason } };
        let items = [
            unpacked(1, 2, Reason::Success),
            unpacked(2, 3, Reason::Success),
            unpacked(3, 1, Reason::TopicNameInvalid),
            placed(Answer::PubRec(id(4))),
        ];
        let again = Placement::Duplicate { shard: 0 };
        let held =
            acks.hold(Version::V5, Some(1), &items, &[STORED, again, STORED, FULL, STORED, STORED, STORED], vec![]);
        assert_eq!(held, Held { full: 1, envelopes: true, refused: vec![] });
        assert_eq!(placed_ids(&items), [None, None, None, None, None, None, Some(id(4))]);
        assert_eq!(acks.release(Some(1), &mut out).answered, 4);
        assert_eq!(out, [0x40, 2, 0, 1, 0x40, 3, 0, 2, 0x97, 0x40, 3, 0, 3, 0x90, 0x50, 2, 0, 4]);
    }

    #[test]
    fn a_refusal_closes_a_311_client_behind_the_answers_before_it() {
        let (mut acks, mut out) = (Acks::<u64>::default(), Vec::new());
        let items = [1, 2, 3].map(|n| placed(Answer::PubAck(id(n))));
        acks.hold(Version::V4, Some(1), &items, &[STORED, FULL, STORED], vec![]);
        let released = acks.release(Some(1), &mut out);
        assert_eq!((released.answered, released.close), (1, Some(Reason::QuotaExceeded)));
        assert_eq!(out, [0x40, 2, 0, 1]);
    }

    #[test]
    fn what_waits_is_weighed_and_what_was_let_go_is_not() {
        let (mut acks, mut out) = (Acks::<u64>::default(), Vec::new());
        let message = LiveMessage {
            topic: "a".into(),
            payload: vec![0; 5_000].into(),
            headers: Vec::new(),
            stored: false,
            from: 1,
        };
        acks.hold(Version::V5, Some(1), &[placed(Answer::None)], &[STORED], vec![message.clone()]);
        acks.hold(Version::V5, None, &[], &[], vec![message; 2]);
        assert!((15_000..17_000).contains(&acks.waiting_bytes()), "{}", acks.waiting_bytes());
        assert_eq!(acks.release(Some(1), &mut out).live.len(), 3);
        assert_eq!(acks.waiting_bytes(), 0);
    }

    #[test]
    fn an_answer_with_nothing_to_store_waits_for_those_before_it() {
        let (mut acks, mut out) = (Acks::<u64>::default(), Vec::new());
        acks.hold(Version::V4, Some(7), &[placed(Answer::PubRec(id(1)))], &[STORED], vec![]);
        let again = Item { answer: Answer::PubRec(id(1)), outcome: Outcome::Settled(Reason::Success) };
        acks.hold(Version::V4, None, &[again], &[], vec![]);
        acks.release(Some(6), &mut out);
        assert!(out.is_empty());
        acks.release(Some(7), &mut out);
        assert_eq!(out, [0x50, 2, 0, 1, 0x50, 2, 0, 1]);
    }
}
