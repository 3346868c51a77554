//! `headwater tail`: the records of a stream, of all its shards, as they come or from a position on.

use super::client::{Client, Target, block_on, is_kind};
use super::output::Output;
use super::{stream, usage};
use crate::config::DEFAULT_STREAM;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};
use std::time::Duration;

/// Pause between two looks at shards that had nothing.
const PAUSE: Duration = Duration::from_millis(200);
const CALL_RECORDS_MAX: u32 = 1000;

#[derive(Args)]
pub struct Tail {
    #[command(flatten)]
    target: Target,
    /// Stream to read.
    #[arg(default_value = DEFAULT_STREAM)]
    stream: String,
    /// Where to start: latest, oldest, a Unix time in seconds as @1767225600, or a sequence number (with --shard).
    #[arg(long, default_value = "latest")]
    from: String,
    /// Read this shard alone.
    #[arg(long)]
    shard: Option<String>,
    /// Stop after this many records.
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop at the end instead of waiting for more.
    #[arg(long)]
    no_follow: bool,
}

/// A shard and where we are in it; an iterator of `None` means that the shard is read to its end.
struct Source {
    shard: String,
    iterator: Option<String>,
    /// Of the last record seen, to start again from when an iterator has expired.
    sequence: Option<String>,
}

impl Tail {
    pub fn run(self, out: &Output) -> Result<()> {
        let client = Client::new(&self.target);
        block_on(self.follow(&client, out))
    }

    async fn follow(&self, client: &Client, out: &Output) -> Result<()> {
        let start = self.start()?;
        let mut sources = Vec::new();
        for shard in stream::shards(client, &self.stream).await? {
            let shard = shard["ShardId"].as_str().context("a shard without ShardId")?.to_owned();
            if self.shard.as_ref().is_none_or(|wanted| is_shard(&shard, wanted)) {
                let iterator = self.iterator(client, &shard, &start).await?;
                sources.push(Source { shard, iterator, sequence: None });
            }
        }
        let wanted = self.shard.as_deref().unwrap_or_default();
        anyhow::ensure!(
            !sources.is_empty(),
            "the stream {} has no shard {wanted}; `headwater stream describe {}` names them",
            self.stream,
            self.stream
        );
        let mut left = self.count.unwrap_or(u64::MAX);
        loop {
            let (mut idle, mut behind) = (true, false);
            for source in &mut sources {
                let Some(iterator) = source.iterator.clone() else { continue };
                let answer = match self.records(client, &iterator).await {
                    Err(error) if is_expired(&error) => {
                        let again = match &source.sequence {
                            Some(sequence) => {
                                json!({"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": sequence})
                            }
                            None => start.clone(),
                        };
                        source.iterator = self.iterator(client, &source.shard, &again).await?;
                        continue;
                    }
                    other => other?,
                };
                for record in answer["Records"].as_array().context("the answer has no Records")? {
                    print(out, &source.shard, record)?;
                    source.sequence = record["SequenceNumber"].as_str().map(str::to_owned);
                    idle = false;
                    left -= 1;
                    if left == 0 {
                        return Ok(());
                    }
                }
                source.iterator = answer["NextShardIterator"].as_str().map(str::to_owned);
                behind |= answer["MillisBehindLatest"].as_u64().unwrap_or(0) > 0;
            }
            if sources.iter().all(|source| source.iterator.is_none()) || (self.no_follow && idle && !behind) {
                return Ok(());
            }
            if idle {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// The start as GetShardIterator takes it.
    fn start(&self) -> Result<Value> {
        let from = self.from.trim();
        Ok(match start_of(from)? {
            Some(start) => start,
            None if !from.is_empty() && from.bytes().all(|byte| byte.is_ascii_digit()) => {
                if self.shard.is_none() {
                    return Err(usage("a sequence number belongs to one shard: name it with --shard"));
                }
                json!({"ShardIteratorType": "AT_SEQUENCE_NUMBER", "StartingSequenceNumber": from})
            }
            None => return Err(usage(format!("--from {from}: write latest, oldest, @TIME or a sequence number"))),
        })
    }

    async fn iterator(&self, client: &Client, shard: &str, start: &Value) -> Result<Option<String>> {
        let mut ask = start.clone();
        ask["StreamName"] = self.stream.clone().into();
        ask["ShardId"] = shard.into();
        let answer = client.call_patiently("GetShardIterator", &ask).await?;
        Ok(Some(answer["ShardIterator"].as_str().context("the answer has no ShardIterator")?.to_owned()))
    }

    async fn records(&self, client: &Client, iterator: &str) -> Result<Value> {
        client.call_patiently("GetRecords", &json!({"ShardIterator": iterator, "Limit": CALL_RECORDS_MAX})).await
    }
}

/// `latest`, `oldest` or `@` and a Unix time, as GetShardIterator takes it; `None` if it is none of them.
pub fn start_of(from: &str) -> Result<Option<Value>> {
    let from = from.trim();
    Ok(match from.to_ascii_lowercase().as_str() {
        "latest" => Some(json!({"ShardIteratorType": "LATEST"})),
        "oldest" => Some(json!({"ShardIteratorType": "TRIM_HORIZON"})),
        _ => match from.strip_prefix('@') {
            Some(time) => {
                let time: f64 =
                    time.parse().map_err(|_| usage(format!("--from {from}: write @ and a Unix time in seconds")))?;
                Some(json!({"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": time}))
            }
            None => None,
        },
    })
}

pub fn is_expired(error: &anyhow::Error) -> bool {
    is_kind(error, &["ExpiredIteratorException"])
}

fn print(out: &Output, shard: &str, record: &Value) -> Result<()> {
    let data = STANDARD.decode(record["Data"].as_str().unwrap_or_default())?;
    let text = std::str::from_utf8(&data).ok();
    let time = record["ApproximateArrivalTimestamp"].as_f64().unwrap_or(0.0);
    let (key, sequence) = (&record["PartitionKey"], &record["SequenceNumber"]);
    let mut value = json!({"shard": shard, "sequence": sequence, "time": time, "key": key});
    match text {
        Some(text) => value["data"] = text.into(),
        None => value["data_base64"] = record["Data"].clone(),
    }
    out.result(&value, || {
        let shown = text.map_or_else(|| format!("({} bytes)", data.len()), printable);
        let shard = shard.trim_start_matches("shardId-").trim_start_matches('0');
        let shard = if shard.is_empty() { "0" } else { shard };
        format!("{} {shard} {} {shown}", clock_time(time), printable(key.as_str().unwrap_or("?")))
    })
}

/// A stranger's text for a terminal: no control characters.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `12:34:56.789` of that day, in UTC.
fn clock_time(time: f64) -> String {
    let ms = (time * 1000.0).max(0.0) as u64 % 86_400_000;
    format!("{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}

/// Whether `wanted` names a shard: by its id, or by its number as records are shown with it.
fn is_shard(id: &str, wanted: &str) -> bool {
    id == wanted || crate::record::parse_shard_id(id).is_some_and(|index| index.to_string() == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_strange_text_are_printable() {
        assert_eq!(clock_time(1_767_225_600.25), "00:00:00.250");
        assert_eq!(printable("a\u{1b}[31mb"), "a\u{fffd}[31mb");
    }
}
