//! Records that a destination refuses for good: into the gap ledger, and, if one is named, a stream of their own.

use super::sink::Identity;
use crate::log::{Appender, Batch, Log, Stream};
use crate::record::{Gap, GapReason, Header, HeaderId, NewRecord, Record, ShardIndex};
use std::sync::Arc;
use std::time::Duration;

const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

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
    /// before this returns, so that the record may then be acknowledged.
    pub async fn bury(&mut self, shard: ShardIndex, record: &Record, who: &Identity, why: &str) -> Gap {
        tracing::warn!(stream = %self.stream.name, shard, number = record.number, why, "record refused for good");
        self.keep(shard, record, who).await;
        let gap = Gap {
            shard,
            from: record.number,
            to: record.number,
            reason: GapReason::Rejected,
            from_ms: record.arrival_ms,
            to_ms: record.arrival_ms,
        };
        self.log.record_gap(&self.stream, gap.clone());
        gap
    }

    async fn keep(&mut self, shard: ShardIndex, record: &Record, who: &Identity) {
        if self.letter_stream.is_empty() {
            return;
        }
        let mut headers = record.headers.clone();
        if record.header(HeaderId::Origin).is_none() {
            let id = who.id_of(&who.prefix(shard), record).into_owned();
            headers.push(Header::new(HeaderId::Origin, id));
        }
        loop {
            let Some(stream) = self.log.stream(&self.letter_stream) else {
                tracing::warn!(stream = self.letter_stream, "the stream for dead letters does not exist");
                return;
            };
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
                return;
            }
            let appender = self.appender.get_or_insert_with(|| self.log.appender());
            match appender.commit(&mut batch).await {
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(%error, "a dead letter could not be written, tries again");
                    self.appender = None;
                    tokio::time::sleep(TRY_AGAIN_AFTER).await;
                }
            }
        }
    }
}
