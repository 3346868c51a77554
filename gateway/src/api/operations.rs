//! The one table: `X-Amz-Target` to operation. A new operation is a file in `op/` and a line here.

use super::door::heavy;
use super::error::ApiError;
use super::{Call, op};
use std::future::Future;
use std::pin::Pin;

/// `X-Amz-Target` is this, a dot, and the operation.
pub const SERVICE: &str = "Kinesis_20131202";

type Answering<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>, ApiError>> + Send + 'a>>;

pub struct Operation {
    pub name: &'static str,
    pub(super) run: for<'a> fn(&'a Call<'a>) -> Answering<'a>,
}

macro_rules! operations {
    ($( $name:literal => $file:ident, )*) => {
        /// What this gateway offers.
        pub const OPERATIONS: &[Operation] = &[$(
            Operation {
                name: $name,
                run: |call| Box::pin(async move {
                    let request = heavy(call.body.len(), || call.codec.read(call.body))?;
                    let answer = op::$file::run(call, request).await?;
                    call.codec.write(&answer)
                }),
            },
        )*];
    };
}

operations! {
    "CreateStream" => create_stream,
    "DeleteStream" => delete_stream,
    "DescribeStream" => describe_stream,
    "DescribeStreamSummary" => describe_stream_summary,
    "GetRecords" => get_records,
    "GetShardIterator" => get_shard_iterator,
    "ListShards" => list_shards,
    "ListStreams" => list_streams,
    "PutRecord" => put_record,
    "PutRecords" => put_records,
}

/// Every operation of the service, as botocore 1.44 knows it; what is not in the table above is not offered yet.
pub const KNOWN: [&str; 57] = [
    "AcknowledgeDeadLetterQueueRecords",
    "AcknowledgeQueueRecords",
    "AddTagsToStream",
    "CreateChannel",
    "CreateQueue",
    "CreateStream",
    "DecreaseStreamRetentionPeriod",
    "DeleteChannel",
    "DeleteQueue",
    "DeleteResourcePolicy",
    "DeleteStream",
    "DeregisterStreamConsumer",
    "DescribeAccountSettings",
    "DescribeChannel",
    "DescribeLimits",
    "DescribeQueue",
    "DescribeStream",
    "DescribeStreamConsumer",
    "DescribeStreamSummary",
    "DisableEnhancedMonitoring",
    "EnableEnhancedMonitoring",
    "GetRecords",
    "GetResourcePolicy",
    "GetShardIterator",
    "IncreaseStreamRetentionPeriod",
    "ListChannels",
    "ListQueues",
    "ListShards",
    "ListStreamConsumers",
    "ListStreams",
    "ListTagsForResource",
    "ListTagsForStream",
    "MergeShards",
    "PutRecord",
    "PutRecords",
    "PutResourcePolicy",
    "ReceiveDeadLetterQueueRecords",
    "ReceiveQueueRecords",
    "RegisterStreamConsumer",
    "RemoveTagsFromStream",
    "RestoreDeadLetterQueueRecords",
    "SplitShard",
    "StartStreamEncryption",
    "StopStreamEncryption",
    "SubscribeToShard",
    "TagResource",
    "UntagResource",
    "UpdateAccountSettings",
    "UpdateChannel",
    "UpdateDeadLetterQueueRecordsVisibility",
    "UpdateMaxRecordSize",
    "UpdateQueue",
    "UpdateQueueRecordsVisibility",
    "UpdateShardCount",
    "UpdateStreamMode",
    "UpdateStreamRecordDistributionStrategy",
    "UpdateStreamWarmThroughput",
];

/// What a target names.
pub enum Target {
    Offered(&'static Operation),
    /// An operation of the service that this gateway does not offer yet.
    Known(&'static str),
    Unknown,
}

pub fn target(target: &str) -> Target {
    let Some((SERVICE, name)) = target.split_once('.') else { return Target::Unknown };
    if let Some(operation) = OPERATIONS.iter().find(|operation| operation.name == name) {
        return Target::Offered(operation);
    }
    KNOWN.iter().find(|known| **known == name).map_or(Target::Unknown, |known| Target::Known(known))
}

/// The table of `docs/kinesis.md`.
pub fn table() -> String {
    let mut text = String::from("| operation | offered |\n|---|---|\n");
    for name in KNOWN {
        let offered = if OPERATIONS.iter().any(|operation| operation.name == name) { "yes" } else { "not yet" };
        text += &format!("| {name} | {offered} |\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_in_the_docs_is_the_table_in_the_code() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kinesis.md")).unwrap();
        assert!(page.contains(&table()), "put this into docs/kinesis.md:\n{}", table());
    }

    #[test]
    fn operations_are_known_sorted_and_named_once() {
        assert!(KNOWN.is_sorted_by(|a, b| a < b));
        assert!(OPERATIONS.is_sorted_by(|a, b| a.name < b.name));
        assert!(OPERATIONS.iter().all(|operation| KNOWN.contains(&operation.name)));
    }

    #[test]
    fn a_target_names_an_operation_of_this_service_only() {
        assert!(matches!(target("Kinesis_20131202.PutRecord"), Target::Offered(op) if op.name == "PutRecord"));
        assert!(matches!(target("Kinesis_20131202.SplitShard"), Target::Known("SplitShard")));
        for unknown in ["", "PutRecord", "DynamoDB_20120810.PutItem", "Kinesis_20131202.", "Kinesis_20131202.putrecord"]
        {
            assert!(matches!(target(unknown), Target::Unknown), "{unknown}");
        }
    }
}
