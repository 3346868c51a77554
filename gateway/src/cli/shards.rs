//! All shards of a stream as one reader: page after page, and no shard before those it came from have been read.

use super::client::Client;
use super::stream;
use super::tail::is_expired;
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

/// Records of one call. Kinesis answers with 10 MiB at most, however many they are.
const CALL_RECORDS_MAX: usize = 1000;
/// Pause once no shard had anything: a shard of Kinesis takes five calls a second from all its readers.
const PAUSE: Duration = Duration::from_secs(1);
/// Shards that are read at once, each with its iterator; the others wait.
const READING_MAX: usize = 1000;

pub struct Record {
    pub key: String,
    pub data: Vec<u8>,
}

pub struct Page {
    pub records: Vec<Record>,
    /// How far the shard's reader is behind its end, in milliseconds.
    pub behind_ms: u64,
}

/// A shard that is not read yet.
#[derive(Debug, PartialEq)]
struct Waiting {
    shard: String,
    parents: Vec<String>,
    /// As GetShardIterator takes it.
    start: Value,
}

struct Source {
    from: Waiting,
    iterator: String,
    /// Of the last record seen, to start again from when an iterator has expired.
    sequence: Option<String>,
}

pub struct Shards {
    stream: String,
    follow: bool,
    /// Every shard there ever was: one that is new was made out of one that ended.
    known: HashSet<String>,
    waiting: Vec<Waiting>,
    reading: VecDeque<Source>,
    /// Sources in a row that had nothing.
    idle: usize,
}

impl Shards {
    /// From `start` on; without `follow` to where the stream ends now.
    pub async fn open(client: &Client, stream: &str, start: &Value, follow: bool) -> Result<Self> {
        let mut shards = Shards {
            stream: stream.to_owned(),
            follow,
            known: HashSet::new(),
            waiting: Vec::new(),
            reading: VecDeque::new(),
            idle: 0,
        };
        shards.look(client, start).await?;
        ensure!(!shards.waiting.is_empty(), "the stream {stream} has no shards");
        Ok(shards)
    }

    /// Takes in the shards that are new.
    async fn look(&mut self, client: &Client, start: &Value) -> Result<()> {
        for shard in stream::shards(client, &self.stream).await? {
            let text = |name: &str| shard[name].as_str().map(str::to_owned);
            let id = text("ShardId").context("a shard without ShardId")?;
            if self.known.insert(id.clone()) {
                let parents = ["ParentShardId", "AdjacentParentShardId"].into_iter().filter_map(text).collect();
                self.waiting.push(Waiting { shard: id, parents, start: start.clone() });
            }
        }
        Ok(())
    }

    /// The next page; `None` once all is read.
    pub async fn next(&mut self, client: &Client) -> Result<Option<Page>> {
        loop {
            let reading = self.reading.iter().map(|source| source.from.shard.as_str());
            let room = READING_MAX.saturating_sub(self.reading.len());
            for from in startable(&mut self.waiting, reading, room) {
                let iterator = self.iterator(client, &from.shard, &from.start).await?;
                self.reading.push_back(Source { from, iterator, sequence: None });
            }
            if self.follow && self.idle >= self.reading.len() {
                tokio::time::sleep(PAUSE).await;
                self.idle = 0;
            }
            let Some(source) = self.reading.pop_front() else { return Ok(None) };
            if let Some(page) = self.read(client, source).await? {
                return Ok(Some(page));
            }
        }
    }

    /// A page of this source, which is put back unless it ended. `None` if its iterator had to be made again.
    async fn read(&mut self, client: &Client, mut source: Source) -> Result<Option<Page>> {
        let ask = json!({"ShardIterator": source.iterator, "Limit": CALL_RECORDS_MAX});
        let answer = match client.call_patiently("GetRecords", &ask).await {
            Err(error) if is_expired(&error) => {
                let start = match &source.sequence {
                    Some(last) => {
                        json!({"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": last})
                    }
                    None => source.from.start.clone(),
                };
                source.iterator = self.iterator(client, &source.from.shard, &start).await?;
                self.reading.push_back(source);
                return Ok(None);
            }
            other => other?,
        };
        let mut records = Vec::new();
        for record in answer["Records"].as_array().context("the answer has no Records")? {
            let text = |name: &str| record[name].as_str().with_context(|| format!("a record without {name}"));
            source.sequence = Some(text("SequenceNumber")?.to_owned());
            let data = STANDARD.decode(text("Data")?).context("the data of a record is not base64")?;
            records.push(Record { key: text("PartitionKey")?.to_owned(), data });
        }
        let behind_ms = answer["MillisBehindLatest"].as_u64().unwrap_or(0);
        self.idle = if records.is_empty() && behind_ms == 0 { self.idle + 1 } else { 0 };
        let is_at_end = behind_ms == 0 && records.len() < CALL_RECORDS_MAX;
        match answer["NextShardIterator"].as_str() {
            Some(_) if is_at_end && !self.follow => {}
            Some(next) => {
                source.iterator = next.to_owned();
                self.reading.push_back(source);
            }
            // Split or merged: what came of it may be newer than the list of shards, and is read from its beginning.
            None => self.look(client, &json!({"ShardIteratorType": "TRIM_HORIZON"})).await?,
        }
        Ok(Some(Page { records, behind_ms }))
    }

    async fn iterator(&self, client: &Client, shard: &str, start: &Value) -> Result<String> {
        let mut ask = start.clone();
        ask["StreamName"] = self.stream.clone().into();
        ask["ShardId"] = shard.into();
        let answer = client.call_patiently("GetShardIterator", &ask).await?;
        Ok(answer["ShardIterator"].as_str().context("the answer has no ShardIterator")?.to_owned())
    }
}

/// Takes out those whose parents have been read, or are not there any more. Should parents go in circles, all start.
fn startable<'a>(waiting: &mut Vec<Waiting>, reading: impl Iterator<Item = &'a str>, room: usize) -> Vec<Waiting> {
    let reading: HashSet<&str> = reading.collect();
    let unread: HashSet<String> =
        waiting.iter().map(|waiting| waiting.shard.clone()).chain(reading.iter().map(|id| (*id).to_owned())).collect();
    let is_free = |waiting: &Waiting| !waiting.parents.iter().any(|parent| unread.contains(parent));
    let mut free: Vec<_> = waiting.extract_if(.., |waiting| is_free(waiting)).collect();
    if free.is_empty() && reading.is_empty() {
        free = std::mem::take(waiting);
    }
    let later = free.split_off(free.len().min(room));
    waiting.extend(later);
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(shard: &str, parents: &[&str]) -> Waiting {
        Waiting {
            shard: shard.to_owned(),
            parents: parents.iter().map(|parent| (*parent).to_owned()).collect(),
            start: Value::Null,
        }
    }

    fn ids(shards: &[Waiting]) -> Vec<&str> {
        shards.iter().map(|shard| shard.shard.as_str()).collect()
    }

    #[test]
    fn no_shard_is_read_before_those_it_came_from() {
        // 0 was split into 1 and 2, 2 and 3 were merged into 4; the parent of 3 has expired.
        let mut shards = vec![
            waiting("4", &["2", "3"]),
            waiting("2", &["0"]),
            waiting("1", &["0"]),
            waiting("3", &["gone"]),
            waiting("0", &[]),
        ];
        assert_eq!(ids(&startable(&mut shards, [].into_iter(), 9)), ["3", "0"]);
        assert_eq!(ids(&startable(&mut shards, ["3", "0"].into_iter(), 9)), [""; 0]);
        assert_eq!(ids(&startable(&mut shards, ["3"].into_iter(), 9)), ["2", "1"]);
        assert_eq!(ids(&startable(&mut shards, ["3"].into_iter(), 9)), [""; 0], "one of two parents is not enough");
        assert_eq!(ids(&startable(&mut shards, ["1"].into_iter(), 9)), ["4"]);
        assert!(shards.is_empty());
    }

    #[test]
    fn shards_wait_for_room_and_never_for_themselves() {
        let mut shards = vec![waiting("a", &[]), waiting("b", &[]), waiting("c", &[])];
        assert_eq!(ids(&startable(&mut shards, [].into_iter(), 2)), ["a", "b"]);
        assert_eq!(ids(&startable(&mut shards, ["a"].into_iter(), 1)), ["c"]);
        let mut circle = vec![waiting("a", &["b"]), waiting("b", &["a"])];
        assert_eq!(ids(&startable(&mut circle, [].into_iter(), 9)), ["a", "b"]);
    }
}
