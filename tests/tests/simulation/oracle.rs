//! What was promised, and the judgement of a log against it. Knows nothing of disks and faults.

use super::device::Message;
use headwater::log::Placement;
use headwater::record::{Gap, GapReason, Number, Record, ShardIndex};
use std::collections::{BTreeMap, BTreeSet};

/// What was told to producers and what readers saw of one shard, over all lives of the log.
#[derive(Default)]
struct Book {
    /// Answered as stored: must be there, or be explained.
    acknowledged: BTreeMap<Number, Message>,
    /// Answered as a duplicate: some attempt of the message must be there, or be explained.
    duplicates: BTreeSet<(u32, u64)>,
    /// Every number that was ever named to a producer, with what it was named for.
    given: BTreeMap<Number, Message>,
    /// Every number that was ever read, with what stood there.
    seen: BTreeMap<Number, Message>,
    /// Where each message of a device that numbers its records was seen.
    once: BTreeMap<(u32, u64), Number>,
    /// Acknowledged, and lost with a damaged last group, which looks like a write that was cut short.
    excused: BTreeSet<Number>,
}

/// What a shard showed in one pass from its oldest record to its tail.
pub struct Pass<'a> {
    pub stream: usize,
    pub shard: ShardIndex,
    pub first_number: Number,
    /// The lowest number still there.
    pub oldest: Number,
    pub newest: Number,
    pub records: &'a [Record],
    /// Gaps as the reader met them.
    pub met: &'a [Gap],
    /// Retention was at work since the start.
    pub live: bool,
    /// The ledger of the shard.
    pub ledger: &'a [Gap],
}

/// What may explain a loss in the stream under judgement.
#[derive(Clone, Copy, Default)]
pub struct Allowed {
    pub evicted: bool,
    pub corrupt: bool,
}

#[derive(Default)]
pub struct Oracle {
    books: BTreeMap<(usize, ShardIndex), Book>,
    numbered: BTreeSet<u32>,
    /// Handed in and never placed: may be anywhere.
    unanswered: BTreeSet<Message>,
    /// Of which an attempt was refused by a full stream: sent again, they stand where they are taken.
    turned_away: BTreeSet<(u32, u64)>,
    /// Handed in with a row that is durable with them or not at all.
    with_row: BTreeSet<Message>,
    pub acknowledged: u64,
    pub refused: u64,
    /// Rows of state: what was acknowledged, then what may be there besides.
    state: BTreeMap<u8, (Option<u64>, BTreeSet<u64>)>,
}

pub type Verdict = Result<(), String>;

macro_rules! judge {
    ($holds:expr, $($says:tt)*) => {
        if !$holds {
            return Err(format!($($says)*));
        }
    };
}

// What is told to producers.
impl Oracle {
    pub fn is_numbered(&mut self, device: u32) {
        self.numbered.insert(device);
    }

    fn book(&mut self, stream: usize, shard: ShardIndex) -> &mut Book {
        self.books.entry((stream, shard)).or_default()
    }

    /// # Panics
    /// When the number was named before for another message.
    pub fn given(&mut self, stream: usize, message: Message, placement: Placement) {
        if let Placement::Full { .. } = placement {
            self.turned_away.insert((message.device, message.sequence));
        }
        if let Placement::Stored { shard, number } = placement {
            let before = self.book(stream, shard).given.insert(number, message);
            assert!(
                before.is_none(),
                "stream {stream} shard {shard}: number {number} was given to {before:?} and to {message:?}"
            );
        }
    }

    pub fn unanswered(&mut self, message: Message) {
        self.unanswered.insert(message);
    }

    pub fn goes_with_a_row(&mut self, message: Message) {
        self.with_row.insert(message);
    }

    /// After a start, and after everything was read: a device's row names a message that was stored, and none that was
    /// stored with a row is above it. With `evicted` a message whose place was named to nobody may have been stored, and
    /// removed before anybody read it.
    pub fn judge_row(&self, device: u32, row: Option<u64>, evicted: bool) -> Verdict {
        let row = row.unwrap_or(0);
        let of = |messages: &BTreeMap<Number, Message>| -> Vec<Message> {
            messages.values().filter(|message| message.device == device).copied().collect()
        };
        let (mut seen, mut given) = (Vec::new(), Vec::new());
        for book in self.books.values() {
            seen.extend(of(&book.seen));
            given.extend(of(&book.given));
        }
        let known = |message: &Message| message.sequence == row;
        let unread = evicted && self.unanswered.iter().any(|message| message.device == device && known(message));
        judge!(
            row == 0 || unread || seen.iter().chain(&given).any(known),
            "the row of device {device} names message {row}, which was stored nowhere"
        );
        let above = seen.iter().find(|message| message.sequence > row && self.with_row.contains(message));
        judge!(above.is_none(), "{above:?} is stored and the row that goes with it names message {row}");
        Ok(())
    }

    /// After a clean stop: a number above the newest was of a record that was not stored, and may be given again. After any
    /// other it may not, whatever the disk says of it.
    pub fn forget_unused(&mut self, stream: usize, shard: ShardIndex, newest: Number) {
        self.book(stream, shard).given.split_off(&(newest + 1));
    }

    /// After a start that met a damaged journal and calls its end torn: the last group may be gone with everything above
    /// the newest number, and nobody can tell.
    pub fn excuse_tail(&mut self, stream: usize, shard: ShardIndex, newest: Number) {
        let book = self.book(stream, shard);
        let above = book.acknowledged.range(newest + 1..).chain(book.seen.range(newest + 1..));
        book.excused.extend(above.map(|(number, _)| *number));
    }

    pub fn acknowledged(&mut self, stream: usize, shard: ShardIndex, number: Number, message: Message) {
        self.acknowledged += 1;
        self.book(stream, shard).acknowledged.insert(number, message);
    }

    pub fn acknowledged_duplicate(&mut self, stream: usize, shard: ShardIndex, message: Message) {
        self.acknowledged += 1;
        self.book(stream, shard).duplicates.insert((message.device, message.sequence));
    }

    pub fn refused(&mut self, _stream: usize) {
        self.refused += 1;
    }

    pub fn state_sent(&mut self, key: u8, value: u64) {
        self.state.entry(key).or_default().1.insert(value);
    }

    pub fn state_acknowledged(&mut self, key: u8, value: u64) {
        let row = self.state.entry(key).or_default();
        row.0 = row.0.max(Some(value));
    }

    /// A row after a start: the last acknowledged value or a later one that was sent.
    pub fn judge_state(&self, key: u8, found: Option<u64>) -> Verdict {
        let Some((acknowledged, sent)) = self.state.get(&key) else {
            return found.map_or(Ok(()), |value| Err(format!("state row {key} holds {value}, which nobody stored")));
        };
        judge!(found >= *acknowledged, "state row {key} holds {found:?}; {acknowledged:?} was acknowledged");
        judge!(found.is_none_or(|value| sent.contains(&value)), "state row {key} holds {found:?}, which nobody stored");
        Ok(())
    }
}

// What a reader found.
impl Oracle {
    pub fn judge(&mut self, pass: &Pass<'_>, allowed: Allowed) -> Verdict {
        let place = format!("stream {} shard {}", pass.stream, pass.shard);
        let Oracle { books, numbered, unanswered, turned_away, .. } = self;
        let book = books.entry((pass.stream, pass.shard)).or_default();
        let result = judge_numbers(pass)
            .and_then(|()| book.judge_records(pass, numbered, unanswered, allowed))
            .and_then(|()| book.judge_acknowledged(pass, unanswered, allowed))
            .and_then(|()| judge_ledger(pass, allowed))
            .and_then(
                |()| if allowed.corrupt { Ok(()) } else { book.judge_order(pass, unanswered, turned_away, allowed) },
            );
        result.map_err(|says| format!("{place}: {says}"))
    }
}

/// Numbers rise by one, and every number that is missing is in the ledger.
fn judge_numbers(pass: &Pass<'_>) -> Verdict {
    judge!(pass.oldest >= pass.first_number, "oldest {} is below the first number {}", pass.oldest, pass.first_number);
    judge!(pass.oldest <= pass.newest + 1, "law: trimmed {} <= durable {}", pass.oldest, pass.newest);
    let mut met: BTreeMap<Number, Number> = pass.met.iter().map(|gap| (gap.from, gap.to)).collect();
    let mut next = pass.first_number;
    for record in pass.records {
        judge!(record.number >= pass.oldest, "number {} can be read below the oldest {}", record.number, pass.oldest);
        while let Some(to) = met.remove(&next) {
            next = to + 1;
        }
        judge!(record.number == next, "the reader met number {} where {next} was due", record.number);
        next += 1;
    }
    while let Some(to) = met.remove(&next) {
        next = to + 1;
    }
    judge!(met.is_empty(), "the reader met gaps out of order: {met:?}, at {next}");
    judge!(next == pass.newest + 1, "the reader ended before {next}; the newest is {}", pass.newest);
    let mut at = pass.first_number;
    let there: BTreeSet<Number> = pass.records.iter().map(|record| record.number).collect();
    while at <= pass.newest {
        match explained(pass.ledger, at) {
            Some(gap) => at = gap.to + 1,
            None => {
                judge!(
                    there.contains(&at),
                    "number {at} is missing and the ledger does not explain it: {:?}; oldest {}",
                    pass.ledger,
                    pass.oldest
                );
                at += 1;
            }
        }
    }
    Ok(())
}

/// Rows of losses are apart; every reason in the ledger is one that may have happened, and what the ledger calls lost is not there.
fn judge_ledger(pass: &Pass<'_>, allowed: Allowed) -> Verdict {
    let losses = || pass.ledger.iter().filter(|gap| gap.reason != GapReason::Rejected);
    for (gap, next) in losses().zip(losses().skip(1)) {
        judge!(gap.to < next.from, "rows of the ledger overlap: {gap:?} and {next:?}");
    }
    for gap in pass.ledger {
        judge!(gap.from <= gap.to, "an empty row in the ledger: {gap:?}");
        let may = match gap.reason {
            GapReason::Evicted => allowed.evicted,
            GapReason::Corrupt => allowed.corrupt,
            GapReason::Expired | GapReason::Rejected | GapReason::Unused => true,
        };
        judge!(may, "the ledger names a reason that cannot be: {}", tell(gap));
    }
    for record in pass.records {
        let gone = explained(pass.ledger, record.number);
        // The ledger is durable before the records go; in between both are true.
        let going = gone.is_some_and(|gap| matches!(gap.reason, GapReason::Evicted | GapReason::Expired));
        judge!(
            gone.is_none() || (going && pass.live),
            "number {} can be read and is in the ledger: {}",
            record.number,
            gone.map_or(String::new(), tell)
        );
    }
    Ok(())
}

/// The row that says that a number is gone. What a destination refused is still here.
fn explained(ledger: &[Gap], number: Number) -> Option<&Gap> {
    ledger.iter().find(|gap| gap.reason != GapReason::Rejected && (gap.from..=gap.to).contains(&number))
}

fn tell(gap: &Gap) -> String {
    format!("{} to {} {}", gap.from, gap.to, gap.reason.as_str())
}

impl Allowed {
    fn was_dropped(self, ledger: &[Gap], number: Number) -> bool {
        explained(ledger, number).is_some_and(|gap| self.is_dropped(gap))
    }

    fn is_dropped(self, gap: &Gap) -> bool {
        match gap.reason {
            GapReason::Evicted | GapReason::Expired => true,
            GapReason::Corrupt => self.corrupt,
            GapReason::Rejected | GapReason::Unused => false,
        }
    }
}

impl Book {
    /// Every record is byte for byte one that was handed in, where it always stood, and once if it is numbered.
    fn judge_records(
        &mut self,
        pass: &Pass<'_>,
        numbered: &BTreeSet<u32>,
        unanswered: &BTreeSet<Message>,
        allowed: Allowed,
    ) -> Verdict {
        for record in pass.records {
            let number = record.number;
            let message =
                Message::parse(&record.data).ok_or_else(|| format!("number {number} holds what nobody sent"))?;
            judge!(record.data == message.data(), "number {number}: the bytes of {message:?} are not what was sent");
            judge!(record.key == message.key(), "number {number}: {message:?} has the key {:?}", record.key);
            let given = self.given.get(&number);
            let placed = given == Some(&message) || (given.is_none() && unanswered.contains(&message));
            judge!(placed, "number {number} holds {message:?} and was given to {given:?}");
            let before = self.seen.insert(number, message);
            judge!(before.is_none_or(|b| b == message), "number {number} held {before:?} and now holds {message:?}");
            if numbered.contains(&message.device) && !allowed.corrupt {
                let other = self.once.insert((message.device, message.sequence), number);
                judge!(other.is_none_or(|o| o == number), "{message:?} is stored at {other:?} and at {number}");
            }
        }
        Ok(())
    }

    /// Promise P1: what was acknowledged is there at its number, or the ledger says why not.
    fn judge_acknowledged(&self, pass: &Pass<'_>, unanswered: &BTreeSet<Message>, allowed: Allowed) -> Verdict {
        let there: BTreeSet<Number> = pass.records.iter().map(|record| record.number).collect();
        for (number, message) in &self.acknowledged {
            let kept =
                there.contains(number) || allowed.was_dropped(pass.ledger, *number) || self.excused.contains(number);
            let why = explained(pass.ledger, *number).map_or("nothing".to_owned(), tell);
            judge!(kept, "{message:?} was acknowledged as number {number} and is lost; the ledger says {why}");
            let stands = self.seen.get(number);
            judge!(
                stands.is_none_or(|s| s == message),
                "number {number} holds {stands:?}; {message:?} was acknowledged"
            );
        }
        for (number, message) in &self.seen {
            let kept =
                there.contains(number) || allowed.was_dropped(pass.ledger, *number) || self.excused.contains(number);
            judge!(kept, "{message:?} was read at number {number} and is gone: what readers see is durable");
        }
        if allowed.corrupt {
            // The marks may be gone with what was damaged.
            return Ok(());
        }
        for (device, sequence) in &self.duplicates {
            let is_it = |message: &&Message| (message.device, message.sequence) == (*device, *sequence);
            let places = self.given.iter().chain(&self.seen).filter(|(_, message)| is_it(message));
            let kept =
                { places }.any(|(number, _)| there.contains(number) || allowed.was_dropped(pass.ledger, *number));
            // An attempt that was never placed may have been stored and dropped before anyone saw it.
            let unseen = unanswered.iter().any(|message| is_it(&message))
                && pass.ledger.iter().any(|gap| allowed.is_dropped(gap));
            judge!(kept || unseen, "device {device} message {sequence} was acknowledged as a duplicate and is nowhere");
        }
        Ok(())
    }

    /// Promise P2: the first occurrences of a device's messages stand in the order it sent them, but for those that were
    /// refused and sent again.
    fn judge_order(
        &self,
        pass: &Pass<'_>,
        unanswered: &BTreeSet<Message>,
        turned_away: &BTreeSet<(u32, u64)>,
        allowed: Allowed,
    ) -> Verdict {
        let mut highest: BTreeMap<u32, (u64, Number)> = BTreeMap::new();
        let mut met: BTreeSet<(u32, u64)> = BTreeSet::new();
        for record in pass.records {
            let Some(message) = self.seen.get(&record.number) else { continue };
            if !met.insert((message.device, message.sequence)) {
                continue;
            }
            let known = highest.entry(message.device).or_insert((0, 0));
            if message.sequence > known.0 {
                *known = (message.sequence, record.number);
                continue;
            }
            // An earlier attempt may have stood in front and be gone by now.
            let earlier = self.given.range(..known.1).any(|(number, m)| {
                (m.device, m.sequence) == (message.device, message.sequence)
                    && allowed.was_dropped(pass.ledger, *number)
            });
            // One that the log took only a part of was placed without being told where.
            let untold = unanswered
                .iter()
                .any(|m| (m.device, m.sequence) == (message.device, message.sequence) && m.attempt < message.attempt)
                && pass.ledger.iter().any(|gap| allowed.is_dropped(gap) && gap.from < known.1);
            let was_refused = turned_away.contains(&(message.device, message.sequence));
            judge!(
                earlier || untold || was_refused,
                "{message:?} at {} comes after message {} at {}",
                record.number,
                known.0,
                known.1
            );
        }
        Ok(())
    }
}
