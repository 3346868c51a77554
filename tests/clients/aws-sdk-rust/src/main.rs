//! aws-sdk-kinesis against the AWS door: creates, lists, puts, reads, is refused, deletes.
//!
//!     aws-sdk-rust http://127.0.0.1:4567
//!
//! Every request is signed with the test key. Exits 1 at the first answer that is not as it should be.

use aws_sdk_kinesis::config::{Credentials, Region};
use aws_sdk_kinesis::error::ProvideErrorMetadata;
use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, ShardIteratorType, StreamStatus};
use aws_sdk_kinesis::{Client, Config};
use std::collections::BTreeMap;
use std::error::Error;

type Checked<T = ()> = Result<T, Box<dyn Error>>;

const BATCHES: usize = 10;
const BATCH: usize = 100;
const KEYS: usize = 7;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Checked {
    let endpoint = std::env::args().nth(1).ok_or("usage: aws-sdk-rust ENDPOINT")?;
    let config = Config::builder()
        .endpoint_url(endpoint)
        .region(Region::new("eu-west-1"))
        .credentials_provider(Credentials::new("AKIDTEST", "secret", None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    let (client, name) = (Client::from_conf(config), format!("rust-{}", std::process::id()));
    client.create_stream().stream_name(&name).shard_count(2).send().await?;
    let checked = check(&client, &name).await;
    client.delete_stream().stream_name(&name).send().await?;
    checked?;
    let gone = client.describe_stream_summary().stream_name(&name).send().await;
    same(
        "a deleted stream",
        gone.err().and_then(|e| e.code().map(str::to_owned)),
        Some("ResourceNotFoundException".into()),
    )?;
    println!("all passed");
    Ok(())
}

async fn check(client: &Client, name: &str) -> Checked {
    let summary = client.describe_stream_summary().stream_name(name).send().await?;
    let summary = summary.stream_description_summary().ok_or("no summary")?;
    same("status", summary.stream_status(), &StreamStatus::Active)?;
    same("open shards", summary.open_shard_count(), 2)?;
    let listed = client.list_streams().send().await?;
    same("listed", listed.stream_names().iter().filter(|known| *known == name).count(), 1)?;
    let shards = client.list_shards().stream_name(name).send().await?;
    let shards: Vec<_> = shards.shards().iter().map(|shard| shard.shard_id().to_owned()).collect();
    same("shards", &shards[..], &["shardId-000000000000".to_owned(), "shardId-000000000001".to_owned()])?;
    let sent = put(client, name).await?;
    let mut read: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for shard in &shards {
        for (key, number, text) in records(client, name, shard).await? {
            read.entry(key).or_default().push((number, text));
        }
    }
    same("records by key, with their sequence numbers, in order", read, sent)?;
    let refused = client.put_record().stream_name(name).partition_key("").data(Blob::new("x")).send().await;
    same("an empty key", refused.err().and_then(|e| e.code().map(str::to_owned)), Some("ValidationException".into()))
}

/// Puts records under a few keys, one by one and in batches; by key the number and the text of each.
async fn put(client: &Client, name: &str) -> Checked<BTreeMap<String, Vec<(String, String)>>> {
    let mut sent: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let one = client.put_record().stream_name(name).partition_key("key-0").data(Blob::new("first")).send().await?;
    same("digits of a sequence number", one.sequence_number().len(), 56)?;
    sent.entry("key-0".into()).or_default().push((one.sequence_number().into(), "first".into()));
    for batch in 0..BATCHES {
        let texts = (0..BATCH).map(|at| (format!("key-{}", at % KEYS), format!("{batch}/{at} \u{00e9}\u{0000}")));
        let texts: Vec<_> = texts.collect();
        let entry = |(key, text): &(String, String)| {
            PutRecordsRequestEntry::builder().partition_key(key).data(Blob::new(text.as_bytes())).build()
        };
        let entries: Vec<_> = texts.iter().map(entry).collect::<Result<_, _>>()?;
        let answer = client.put_records().stream_name(name).set_records(Some(entries)).send().await?;
        same("failed", answer.failed_record_count(), Some(0))?;
        same("answers", answer.records().len(), BATCH)?;
        for ((key, text), answer) in texts.into_iter().zip(answer.records()) {
            let number = answer.sequence_number().ok_or("no sequence number")?;
            sent.entry(key).or_default().push((number.into(), text));
        }
    }
    Ok(sent)
}

/// Key, sequence number and text of all records of a shard.
async fn records(client: &Client, name: &str, shard: &str) -> Checked<Vec<(String, String, String)>> {
    let from = client.get_shard_iterator().stream_name(name).shard_id(shard);
    let mut next = from.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await?.shard_iterator;
    let mut all = Vec::new();
    while let Some(iterator) = next {
        let page = client.get_records().shard_iterator(iterator).limit(300).send().await?;
        let GetRecordsOutput { records, next_shard_iterator, millis_behind_latest, .. } = page;
        let is_last = millis_behind_latest == Some(0);
        for record in records {
            let text = String::from_utf8(record.data.into_inner())?;
            record.approximate_arrival_timestamp.ok_or("no arrival time")?;
            all.push((record.partition_key.ok_or("no key")?, record.sequence_number, text));
        }
        next = next_shard_iterator.filter(|_| !is_last);
    }
    Ok(all)
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, is: T, should: T) -> Checked {
    if is == should { Ok(()) } else { Err(format!("{what}: {is:?} instead of {should:?}").into()) }
}
