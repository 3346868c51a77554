//! `headwater put`: records into a stream. What was acknowledged is on the gateway's disk.

use super::client::{Client, Target, block_on, is_throttled};
use super::output::{Output, Unit};
use super::usage;
use crate::config::DEFAULT_STREAM;
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal};
use std::time::Duration;

/// Records and bytes of one PutRecords call; Kinesis takes 500 and 10 MiB.
const CALL_RECORDS_MAX: usize = 500;
const CALL_BYTES_MAX: usize = 4 << 20;
/// Longest line, in bytes: the largest record with the largest key, which PutRecords counts too.
const LINE_BYTES_MAX: usize = crate::record::DATA_BYTES_MAX - crate::record::PARTITION_KEY_BYTES_MAX;
/// How often what failed in part, or what a busy gateway did not take, is sent again.
const ATTEMPTS_MAX: u32 = 10;

#[derive(Args)]
pub struct Put {
    #[command(flatten)]
    target: Target,
    /// The record; without it, one record a line from stdin.
    data: Option<String>,
    /// Stream to put into.
    #[arg(long, short, default_value = DEFAULT_STREAM)]
    stream: String,
    /// Partition key of all records; without it each line goes by its own hash, and order between lines is not kept.
    #[arg(long, short)]
    key: Option<String>,
}

impl Put {
    pub fn run(self, out: &Output) -> Result<()> {
        let client = Client::new(&self.target);
        let stored = block_on(async {
            match &self.data {
                Some(data) => self.put(&client, &[data.clone().into_bytes()]).await,
                None => self.lines(&client, out).await,
            }
        })?;
        out.result(&json!({"stream": self.stream, "stored": stored}), || match stored {
            1 => format!("stored 1 record in {}", self.stream),
            _ => format!("stored {stored} records in {}", self.stream),
        })
    }

    async fn lines(&self, client: &Client, out: &Output) -> Result<usize> {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            eprintln!("one record a line; end with Ctrl-D");
        }
        let bar = out.progress(0, "putting", Unit::Count);
        let mut input = stdin.lock();
        let (mut batch, mut bytes, mut stored) = (Vec::new(), 0, 0);
        loop {
            let read = read_line(&mut input);
            // Before the next line is added, which may be as large as a call; and before an error ends the run.
            let fits = |line: &Vec<u8>| batch.len() < CALL_RECORDS_MAX && bytes + line.len() <= CALL_BYTES_MAX;
            if !batch.is_empty() && !matches!(&read, Ok(Some(line)) if fits(line)) {
                stored += self.put(client, &batch).await.with_context(|| format!("after {stored} stored records"))?;
                bar.set_length(stored as u64);
                bar.set_position(stored as u64);
                batch.clear();
                bytes = 0;
            }
            let Some(line) = read.with_context(|| format!("after {stored} stored records"))? else {
                bar.finish_and_clear();
                return Ok(stored);
            };
            bytes += line.len();
            batch.push(line);
        }
    }

    /// One batch; what failed in part goes again, alone and in order.
    async fn put(&self, client: &Client, records: &[Vec<u8>]) -> Result<usize> {
        let mut left: Vec<&Vec<u8>> = records.iter().collect();
        let mut last = Value::Null;
        for attempt in 0..ATTEMPTS_MAX {
            let entries: Vec<Value> = left.iter().map(|data| self.entry(data)).collect();
            let asked = client.call("PutRecords", json!({"StreamName": self.stream, "Records": entries})).await;
            let wait = Duration::from_millis(50 << attempt.min(5));
            let answer = match asked {
                Err(error) if is_throttled(&error) && attempt + 1 < ATTEMPTS_MAX => {
                    tokio::time::sleep(wait).await;
                    continue;
                }
                asked => asked?,
            };
            let results = answer["Records"].as_array().context("the answer has no Records")?;
            if results.len() != left.len() {
                bail!("{} records were sent and {} answered", left.len(), results.len());
            }
            let failed = |result: &&Value| result["ErrorCode"].is_string();
            last = results.iter().find(failed).cloned().unwrap_or_default();
            left = left.into_iter().zip(results).filter(|(_, result)| failed(result)).map(|(data, _)| data).collect();
            if left.is_empty() {
                return Ok(records.len());
            }
            tokio::time::sleep(wait).await;
        }
        bail!(
            "{} of {} records were refused: {}: {}",
            left.len(),
            records.len(),
            last["ErrorCode"],
            last["ErrorMessage"]
        )
    }

    fn entry(&self, data: &[u8]) -> Value {
        let key = match &self.key {
            Some(key) => key.clone(),
            None => format!("{:016x}", xxhash_rust::xxh3::xxh3_64(data)),
        };
        json!({"Data": STANDARD.encode(data), "PartitionKey": key})
    }
}

/// The next line without its end; `None` at the end of input.
fn read_line(input: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    use std::io::Read;
    let mut line = Vec::new();
    if input.by_ref().take(LINE_BYTES_MAX as u64 + 2).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    if line.len() > LINE_BYTES_MAX {
        return Err(usage(format!("a line is longer than {LINE_BYTES_MAX} bytes, the largest record and its key")));
    }
    Ok(Some(line))
}
