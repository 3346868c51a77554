//! Records that a destination refuses for good: into the gap ledger, and, if one is named, a stream of their own.

use super::sink::Identity;
use crate::log::{AppendError, Appender, Batch, Log, Placement, Stream};
use crate::record::{Gap, GapReason, Header, HeaderId, NewRecord, Record, ShardIndex};
use std::sync::Arc;

/// Why a letter is not kept now. The record is held then, and this is tried again.
#[derive(Debug, thiserror::Error)]
pub enum NotKept {
    #[error("the stream for dead letters is full, and refuses more (on_full = \"reject\")")]
    Full,
    #[error(transparent)]
    Append(#[from] AppendError),
}

pub struct DeadLetters {
    log: Log,
    stream: Arc<Stream>,
    /// Name of the local stream that takes them; empty: none.
    letter_stream: String,
    appender: Option<Appender>,
}

impl DeadLetters {
    pub fn new(log: &Log, stream: &Arc<Stream>, letter_stream: &str) -> Self {
        DeadLetters {
            log: log.clone(),
            stream: stream.clone(),
            letter_stream: letter_stream.to_owned(),
            appender: None,
        }
    }

    /// Keeps a refused record and enters it into the ledger; what is returned tells of it upstream. The letter is durable
    /// before this returns, so that the record may then be acknowledged; the ledger's entry is with a later commit, as
    /// the cursor is. A stream for letters that is not there keeps none, and neither does one that cannot hold such a
    /// record: the ledger alone tells of it then.
    pub async fn bury(
        &mut self,
        shard: ShardIndex,
        record: &Record,
        who: &Identity,
        why: &str,
    ) -> Result<Gap, NotKept> {
        self.keep(shard, record, who).await.inspect_err(|error| {
            self.appender = None;
            tracing::warn!(stream = %self.stream.name, shard, number = record.number, %error, "a dead letter is not kept yet");
        })?;
        tracing::warn!(stream = %self.stream.name, shard, number = record.number, why, "record refused for good");
        let gap = Gap {
            shard,
            from: record.number,
            to: record.number,
            reason: GapReason::Rejected,
            from_ms: record.arrival_ms,
            to_ms: record.arrival_ms,
        };
        self.log.record_gap(&self.stream, gap.clone());
        Ok(gap)
    }

    async fn keep(&mut self, shard: ShardIndex, record: &Record, who: &Identity) -> Result<(), NotKept> {
        if self.letter_stream.is_empty() {
            return Ok(());
        }
        let Some(stream) = self.log.stream(&self.letter_stream) else {
            tracing::warn!(stream = self.letter_stream, "the stream for dead letters does not exist");
            return Ok(());
        };
        let mut headers = record.headers.clone();
        if record.header(HeaderId::Origin).is_none() {
            let id = who.id_of(&who.prefix(shard), record).into_owned();
            headers.push(Header::new(HeaderId::Origin, id));
        }
        let new = NewRecord {
            key: &record.key,
            explicit_hash: record.explicit_hash,
            producer: None,
            headers: &headers,
            data: &record.data,
        };
        let mut batch = Batch::new();
        if let Err(error) = batch.push(&stream, &new) {
            tracing::warn!(%error, "a dead letter could not be kept");
            return Ok(());
        }
        let placements = self.appender.get_or_insert_with(|| self.log.appender()).commit(&mut batch).await?;
        let is_full = placements.iter().any(|placement| matches!(placement, Placement::Full { .. }));
        if is_full { Err(NotKept::Full) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::log::{Options, StreamSettings};
    use crate::metrics::Metrics;
    use crate::record::StreamName;

    // The record is acknowledged next, so its letter has to be on the disk.
    #[tokio::test(flavor = "multi_thread")]
    async fn p1_a_letter_is_durable_before_its_record_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(Options::new(dir.path()), Clock::system(), Metrics::new()).unwrap();
        let create = |name: &str| {
            let settings = StreamSettings { shards: 1, ..Default::default() };
            log.create_stream(&StreamName::new(name).unwrap(), settings).unwrap()
        };
        let (stream, letters) = (create("s"), create("letters"));
        let who = Identity { gateway: "g".into(), incarnation: 1, stream: stream.name.clone() };
        let mut dead = DeadLetters::new(&log, &stream, "letters");
        for number in 1..=20 {
            let record = Record {
                number,
                arrival_ms: 0,
                key: "k".into(),
                explicit_hash: None,
                producer: None,
                headers: Vec::new(),
                data: "x".into(),
            };
            dead.bury(0, &record, &who, "no").await.unwrap();
            assert_eq!(letters.shard(0).unwrap().newest(), number);
        }
        let mut reader = log.reader(&letters, 0, crate::log::Position::Oldest).unwrap();
        let kept = reader.next_blocking(1, 1 << 20).unwrap();
        let [crate::log::Entry::Record(letter)] = &kept[..] else { panic!("{kept:?}") };
        assert_eq!(letter.header(HeaderId::Origin).unwrap(), &format!("{}1", who.prefix(0))[..], "its id stays");
    }
}
