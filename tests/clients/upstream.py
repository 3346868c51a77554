"""Everything in a Kinesis stream, de-aggregated by AWS' own code: one JSON line a record, shard after shard, in order.

    upstream.py create ENDPOINT STREAM SHARDS
    upstream.py split ENDPOINT STREAM
    upstream.py read ENDPOINT STREAM
"""

import base64
import json
import sys
import time

import boto3
from aws_kinesis_agg.deaggregator import deaggregate_records
from botocore.config import Config


def client(endpoint):
    return boto3.client(
        "kinesis",
        region_name="eu-west-1",
        endpoint_url=endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        verify=False,
        config=Config(retries={"max_attempts": 3}, read_timeout=20),
    )


def create(kinesis, stream, shards):
    kinesis.create_stream(StreamName=stream, ShardCount=shards)
    until_active(kinesis, stream)


def until_active(kinesis, stream):
    for _ in range(100):
        summary = kinesis.describe_stream(StreamName=stream)["StreamDescription"]
        if summary["StreamStatus"] == "ACTIVE":
            return
        time.sleep(0.1)
    sys.exit(f"{stream} did not become ACTIVE")


def split(kinesis, stream):
    """Its first shard, in the middle."""
    shard = kinesis.describe_stream(StreamName=stream)["StreamDescription"]["Shards"][0]
    middle = (int(shard["HashKeyRange"]["StartingHashKey"]) + int(shard["HashKeyRange"]["EndingHashKey"])) // 2
    kinesis.split_shard(StreamName=stream, ShardToSplit=shard["ShardId"], NewStartingHashKey=str(middle))
    until_active(kinesis, stream)


def as_lambda(record):
    """The de-aggregator wants records as Lambda gets them."""
    return {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "sequenceNumber": record["SequenceNumber"],
            "partitionKey": record["PartitionKey"],
            "approximateArrivalTimestamp": record["ApproximateArrivalTimestamp"].timestamp(),
            "data": base64.b64encode(record["Data"]).decode(),
        },
        "eventSource": "aws:kinesis",
    }


def read(kinesis, stream):
    shards = kinesis.describe_stream(StreamName=stream)["StreamDescription"]["Shards"]
    aggregates = 0
    for shard in shards:
        iterator = kinesis.get_shard_iterator(
            StreamName=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        while iterator:
            answer = kinesis.get_records(ShardIterator=iterator, Limit=1000)
            for record in answer["Records"]:
                aggregates += record["Data"][:4] == b"\xf3\x89\x9a\xc2"
                for sub in deaggregate_records([as_lambda(record)]):
                    sub = sub["kinesis"]
                    # Text for a plain record, as it came; bytes for what was taken out of an aggregate.
                    data = sub["data"].decode() if isinstance(sub["data"], bytes) else sub["data"]
                    line = {"shard": shard["ShardId"], "key": sub["partitionKey"], "data": data}
                    line["sequence"] = record["SequenceNumber"]
                    print(json.dumps(line))
            iterator = answer["NextShardIterator"]
            if not answer["Records"] and answer.get("MillisBehindLatest", 0) == 0:
                break
    print(f"{aggregates} aggregates", file=sys.stderr)


def main():
    what, endpoint, stream = sys.argv[1:4]
    if what == "create":
        create(client(endpoint), stream, int(sys.argv[4]))
    elif what == "split":
        split(client(endpoint), stream)
    else:
        read(client(endpoint), stream)


main()
