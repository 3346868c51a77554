//! `headwater stream`: create, list, describe, delete, as a client of the gateway's Kinesis API.

use super::client::{Client, Target, block_on};
use super::output::Output;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// How long a stream may take to become active or to go.
const SETTLE: Duration = Duration::from_secs(30);

#[derive(Args)]
pub struct StreamCommand {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Make a stream that keeps its records for a day, as Kinesis does, and wait until it can be written. Retention and limits
    /// of a stream stand in the configuration (`[[stream]]`).
    Create {
        name: String,
        /// Number of shards.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
        shards: u32,
    },
    /// Name all streams.
    List,
    /// Show one stream and its shards.
    Describe { name: String },
    /// Delete a stream and every record in it.
    Delete {
        name: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

impl StreamCommand {
    pub fn run(self, out: &Output) -> Result<()> {
        let client = Client::new(&self.target);
        block_on(async {
            match self.what {
                What::Create { name, shards } => create(&client, out, &name, shards).await,
                What::List => list(&client, out).await,
                What::Describe { name } => describe(&client, out, &name).await,
                What::Delete { name, yes } => delete(&client, out, &name, yes).await,
            }
        })
    }
}

async fn create(client: &Client, out: &Output, name: &str, shards: u32) -> Result<()> {
    client.call("CreateStream", json!({"StreamName": name, "ShardCount": shards})).await?;
    let (until, spinner) = (Instant::now() + SETTLE, out.spinner("waiting for the stream"));
    while status(client, name).await? != "ACTIVE" {
        anyhow::ensure!(Instant::now() < until, "the stream {name} was made but is not active after {SETTLE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    spinner.finish_and_clear();
    out.result(&json!({"stream": name, "shards": shards, "created": true}), || {
        format!("made stream {name} with {shards} shards")
    })
}

async fn status(client: &Client, name: &str) -> Result<String> {
    let answer = client.call("DescribeStreamSummary", json!({"StreamName": name})).await?;
    let status = answer["StreamDescriptionSummary"]["StreamStatus"].as_str();
    Ok(status.context("the answer has no StreamStatus")?.to_owned())
}

async fn list(client: &Client, out: &Output) -> Result<()> {
    let mut names: Vec<String> = Vec::new();
    loop {
        let mut ask = json!({"Limit": 100});
        if let Some(last) = names.last() {
            ask["ExclusiveStartStreamName"] = last.clone().into();
        }
        let answer = client.call("ListStreams", ask).await?;
        let page = answer["StreamNames"].as_array().context("the answer has no StreamNames")?;
        names.extend(page.iter().filter_map(Value::as_str).map(str::to_owned));
        if page.is_empty() || answer["HasMoreStreams"] != true {
            break;
        }
    }
    for name in names {
        out.result(&json!({"stream": name}), || name.clone())?;
    }
    Ok(())
}

async fn describe(client: &Client, out: &Output, name: &str) -> Result<()> {
    let answer = client.call("DescribeStreamSummary", json!({"StreamName": name})).await?;
    let summary = &answer["StreamDescriptionSummary"];
    let shards = shards(client, name).await?;
    let value = json!({"summary": summary, "shards": shards});
    out.result(&value, || {
        let mut lines = vec![
            format!("stream     {name}"),
            format!("status     {}", summary["StreamStatus"].as_str().unwrap_or("?")),
            format!("retention  {} h", summary["RetentionPeriodHours"]),
            format!("shards     {} open", summary["OpenShardCount"]),
        ];
        for shard in &shards {
            let range = &shard["HashKeyRange"];
            lines.push(format!(
                "  {}  {} .. {}{}",
                shard["ShardId"].as_str().unwrap_or("?"),
                range["StartingHashKey"].as_str().unwrap_or("?"),
                range["EndingHashKey"].as_str().unwrap_or("?"),
                if shard["SequenceNumberRange"]["EndingSequenceNumber"].is_string() { "  closed" } else { "" },
            ));
        }
        lines.join("\n")
    })
}

/// All shards of a stream, page by page.
pub async fn shards(client: &Client, name: &str) -> Result<Vec<Value>> {
    let mut shards = Vec::new();
    let mut ask = json!({"StreamName": name});
    loop {
        let answer = client.call_patiently("ListShards", &ask).await?;
        shards.extend(answer["Shards"].as_array().context("the answer has no Shards")?.iter().cloned());
        match answer["NextToken"].as_str() {
            Some(token) => ask = json!({"NextToken": token}),
            None => return Ok(shards),
        }
    }
}

async fn delete(client: &Client, out: &Output, name: &str, yes: bool) -> Result<()> {
    use std::io::IsTerminal;
    if !yes {
        anyhow::ensure!(
            std::io::stdin().is_terminal(),
            super::Usage(format!("deleting {name} loses its records; say --yes to mean it"))
        );
        eprint!("Delete stream {name} and every record in it? Type its name: ");
        let mut typed = String::new();
        std::io::stdin().read_line(&mut typed)?;
        anyhow::ensure!(typed.trim() == name, "not deleted: {:?} is not {name:?}", typed.trim());
    }
    client.call("DeleteStream", json!({"StreamName": name})).await?;
    let (until, spinner) = (Instant::now() + SETTLE, out.spinner("deleting the stream"));
    while status(client, name).await.is_ok() {
        anyhow::ensure!(Instant::now() < until, "the stream {name} is still being deleted after {SETTLE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    spinner.finish_and_clear();
    out.result(&json!({"stream": name, "deleted": true}), || format!("deleted stream {name}"))
}
