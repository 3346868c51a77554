#!/usr/bin/env python3
"""boto3 against the AWS door: every operation, its paging, its refusals, and that a put is readable at its number.

    python boto3_api.py http://127.0.0.1:4567

Needs boto3. Credentials come as every AWS tool takes them (AWS_ACCESS_KEY_ID, ...); without any, made-up ones are used,
which a door without access keys does not look at. Prints one line a check and exits 1 at the first that fails.
"""

import datetime
import os
import sys
import time
import uuid

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

os.environ.setdefault("AWS_ACCESS_KEY_ID", "AKIDTEST")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "secret")

ENDPOINT = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:4567"
# Parameters are checked by the gateway here, not by the client.
CONFIG = Config(parameter_validation=False, retries={"max_attempts": 3, "mode": "standard"})
kinesis = boto3.client("kinesis", endpoint_url=ENDPOINT, region_name="eu-west-1", config=CONFIG)
RUN = uuid.uuid4().hex[:8]
HASH_MAX = 2**128 - 1


def passed(what):
    print(f"ok  {what}", flush=True)


def refused(code, says, call, **parameters):
    """The call must be refused with this code and a message that contains `says`."""
    try:
        call(**parameters)
    except ClientError as error:
        told = error.response["Error"]
        assert told["Code"] == code, (told, code)
        assert says in told["Message"], (told, says)
        return
    raise AssertionError(f"{call.__name__}({parameters}) was not refused")


def stream(name, shards=1):
    full = f"boto3-{RUN}-{name}"
    kinesis.create_stream(StreamName=full, ShardCount=shards)
    kinesis.get_waiter("stream_exists").wait(StreamName=full, WaiterConfig={"Delay": 1, "MaxAttempts": 10})
    return full


def iterator(name, shard="shardId-000000000000", kind="TRIM_HORIZON", **more):
    answer = kinesis.get_shard_iterator(StreamName=name, ShardId=shard, ShardIteratorType=kind, **more)
    return answer["ShardIterator"]


def read_all(name, shard):
    """All records of a shard, in pages of 100."""
    records, at = [], iterator(name, shard)
    while True:
        page = kinesis.get_records(ShardIterator=at, Limit=100)
        records += page["Records"]
        at = page["NextShardIterator"]
        if page["MillisBehindLatest"] == 0:
            return records


def streams_come_and_go():
    name = stream("life", 3)
    summary = kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]
    assert summary["StreamStatus"] == "ACTIVE" and summary["OpenShardCount"] == 3, summary
    assert summary["RetentionPeriodHours"] == 24 and summary["EncryptionType"] == "NONE", summary
    arn = summary["StreamARN"]
    assert arn.endswith(f":stream/{name}"), arn
    age = datetime.datetime.now(datetime.timezone.utc) - summary["StreamCreationTimestamp"]
    assert abs(age.total_seconds()) < 60, age
    shards = kinesis.describe_stream(StreamARN=arn)["StreamDescription"]["Shards"]
    ranges = [(int(s["HashKeyRange"]["StartingHashKey"]), int(s["HashKeyRange"]["EndingHashKey"])) for s in shards]
    assert ranges[0][0] == 0 and ranges[-1][1] == HASH_MAX, ranges
    assert all(a[1] + 1 == b[0] for a, b in zip(ranges, ranges[1:])), ranges
    refused("ResourceInUseException", "already exists", kinesis.create_stream, StreamName=name, ShardCount=1)
    first = kinesis.put_record(StreamName=name, PartitionKey="k", Data=b"x")["SequenceNumber"]
    kinesis.delete_stream(StreamARN=arn)
    kinesis.get_waiter("stream_not_exists").wait(StreamName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 10})
    refused("ResourceNotFoundException", f"Stream {name} under account", kinesis.describe_stream, StreamName=name)
    kinesis.create_stream(StreamName=name, ShardCount=1)
    again = kinesis.put_record(StreamName=name, PartitionKey="k", Data=b"y")["SequenceNumber"]
    assert int(again) > int(first), "numbers of a stream made again are above the old ones"
    kinesis.delete_stream(StreamName=name)
    passed("streams come and go")


def records_are_read_where_they_were_put():
    name = stream("put")
    put = kinesis.put_record(StreamName=name, PartitionKey="pump-7", Data=b"\x00\xff one")
    assert put["ShardId"] == "shardId-000000000000" and len(put["SequenceNumber"]) == 56, put
    ordered = kinesis.put_record(
        StreamName=name, PartitionKey="ü" * 256, Data=b"", SequenceNumberForOrdering=put["SequenceNumber"]
    )
    assert int(ordered["SequenceNumber"]) > int(put["SequenceNumber"])
    page = kinesis.get_records(ShardIterator=iterator(name))
    got = [(r["SequenceNumber"], r["PartitionKey"], r["Data"]) for r in page["Records"]]
    expected = [
        (put["SequenceNumber"], "pump-7", b"\x00\xff one"),
        (ordered["SequenceNumber"], "ü" * 256, b""),
    ]
    assert got == expected, got
    age = datetime.datetime.now(datetime.timezone.utc) - page["Records"][0]["ApproximateArrivalTimestamp"]
    assert abs(age.total_seconds()) < 60, age
    passed("records are read where they were put")


def batches_keep_order_and_places():
    name = stream("batch", 4)
    sent = {}
    for batch in range(4):
        records = [{"PartitionKey": f"k{n % 16}", "Data": f"{batch}/{n}".encode()} for n in range(500)]
        answer = kinesis.put_records(StreamName=name, Records=records)
        assert answer["FailedRecordCount"] == 0 and len(answer["Records"]) == 500, answer
        for record, result in zip(records, answer["Records"]):
            sent.setdefault(result["ShardId"], []).append((result["SequenceNumber"], record["Data"]))
    assert len(sent) > 1, "16 keys must not meet in one of 4 shards"
    for shard, expected in sent.items():
        got = [(r["SequenceNumber"], r["Data"]) for r in read_all(name, shard)]
        assert got == expected, shard
    edges = [{"PartitionKey": "k", "Data": b"", "ExplicitHashKey": str(h)} for h in (0, HASH_MAX)]
    results = kinesis.put_records(StreamName=name, Records=edges)["Records"]
    assert [r["ShardId"][-1] for r in results] == ["0", "3"], results
    passed("batches keep order and places")


def a_record_may_be_large():
    name = stream("large")
    data = os.urandom(10 << 20)
    kinesis.put_record(StreamName=name, PartitionKey="k", Data=data)
    kinesis.put_record(StreamName=name, PartitionKey="k", Data=b"after")
    got = [r["Data"] for r in read_all(name, "shardId-000000000000")]
    assert got == [data, b"after"], [len(d) for d in got]
    entry = {"PartitionKey": "k", "Data": data[: 6 << 20]}
    both = [entry, {"PartitionKey": "k", "Data": data[: 5 << 20]}]
    refused("InvalidArgumentException", "Records size exceeds", kinesis.put_records, StreamName=name, Records=both)
    one = {"StreamName": name, "PartitionKey": "k", "Data": data + b"x"}
    refused("ValidationException", "less than or equal to 10485760", kinesis.put_record, **one)
    passed("a record may be large, and not too large")


def iterators_begin_where_they_say():
    name = stream("iterators")
    a = kinesis.put_record(StreamName=name, PartitionKey="k", Data=b"a")
    time.sleep(0.05)
    between = datetime.datetime.now(datetime.timezone.utc)
    time.sleep(0.05)
    b = kinesis.put_record(StreamName=name, PartitionKey="k", Data=b"b")
    latest = iterator(name, kind="LATEST")
    kinesis.put_record(StreamName=name, PartitionKey="k", Data=b"c")
    for expected, at in [
        (b"abc", iterator(name)),
        (b"bc", iterator(name, kind="AT_SEQUENCE_NUMBER", StartingSequenceNumber=b["SequenceNumber"])),
        (b"bc", iterator(name, kind="AFTER_SEQUENCE_NUMBER", StartingSequenceNumber=a["SequenceNumber"])),
        (b"bc", iterator(name, kind="AT_TIMESTAMP", Timestamp=between)),
        (b"c", latest),
    ]:
        got = b"".join(r["Data"] for r in kinesis.get_records(ShardIterator=at)["Records"])
        assert got == expected, (got, expected)
    page = kinesis.get_records(ShardIterator=iterator(name), Limit=1)
    assert page["MillisBehindLatest"] > 0 and len(page["Records"]) == 1, page
    passed("iterators begin where they say")


def lists_have_pages():
    names = sorted(stream(f"list-{n}", 5) for n in range(3))
    listed = []
    for page in kinesis.get_paginator("list_streams").paginate(PaginationConfig={"PageSize": 1}):
        assert len(page["StreamNames"]) <= 1
        listed += page["StreamNames"]
    assert [name for name in listed if name in names] == names and listed == sorted(listed), listed
    # By hand: botocore's paginator sends StreamName with NextToken, which AWS refuses too.
    shards, more = [], {"StreamName": names[0]}
    while more:
        page = kinesis.list_shards(MaxResults=2, **more)
        shards += [shard["ShardId"] for shard in page["Shards"]]
        more = {"NextToken": page["NextToken"]} if "NextToken" in page else None
    assert shards == [f"shardId-{n:012}" for n in range(5)], shards
    described = []
    for page in kinesis.get_paginator("describe_stream").paginate(StreamName=names[0], PaginationConfig={"PageSize": 2}):
        described += [shard["ShardId"] for shard in page["StreamDescription"]["Shards"]]
    assert described == shards, described
    now = datetime.datetime.now(datetime.timezone.utc)
    for shard_filter, count in [
        ({"Type": "AT_LATEST"}, 5),
        ({"Type": "AT_TRIM_HORIZON"}, 5),
        ({"Type": "FROM_TIMESTAMP", "Timestamp": now}, 5),
        ({"Type": "AFTER_SHARD_ID", "ShardId": shards[2]}, 2),
    ]:
        got = kinesis.list_shards(StreamName=names[0], ShardFilter=shard_filter)["Shards"]
        assert len(got) == count, (shard_filter, got)
    passed("lists have pages")


def mistakes_are_told():
    name = stream("mistakes")
    at = iterator(name)
    invalid, wrong = "ValidationException", "InvalidArgumentException"
    put = {"StreamName": name, "PartitionKey": "k", "Data": b""}
    table = [
        (invalid, "Value 'a/b' at 'streamName' failed", kinesis.create_stream, dict(StreamName="a/b", ShardCount=1)),
        (invalid, "at 'shardCount' failed", kinesis.create_stream, dict(StreamName=f"{name}-x", ShardCount=0)),
        ("LimitExceededException", "1024", kinesis.create_stream, dict(StreamName=f"{name}-x", ShardCount=99_999)),
        (invalid, "at 'partitionKey' failed", kinesis.put_record, {**put, "PartitionKey": ""}),
        (invalid, "at 'partitionKey' failed", kinesis.put_record, {**put, "PartitionKey": "k" * 257}),
        (invalid, "Value null at 'data'", kinesis.put_record, dict(StreamName=name, PartitionKey="k")),
        (wrong, "Invalid ExplicitHashKey", kinesis.put_record, {**put, "ExplicitHashKey": str(HASH_MAX + 1)}),
        (wrong, "ExclusiveMinimumSequenceNumber", kinesis.put_record, {**put, "SequenceNumberForOrdering": "7"}),
        ("SerializationException", "can not be converted to", kinesis.put_record, {**put, "PartitionKey": 5}),
        ("ResourceNotFoundException", "not found", kinesis.put_record, {**put, "StreamName": "none"}),
        (invalid, "at 'records' failed", kinesis.put_records, dict(StreamName=name, Records=[])),
        (invalid, "at 'records' failed", kinesis.put_records, dict(StreamName=name, Records=[{"PartitionKey": "k", "Data": b""}] * 501)),
        (invalid, "at 'records.1.member.partitionKey'", kinesis.put_records, dict(StreamName=name, Records=[{"Data": b""}])),
        (invalid, "at 'shardIteratorType'", kinesis.get_shard_iterator, dict(StreamName=name, ShardId="0", ShardIteratorType="X")),
        ("ResourceNotFoundException", "does not exist", kinesis.get_shard_iterator, dict(StreamName=name, ShardId="7", ShardIteratorType="LATEST")),
        (wrong, "Must either specify", kinesis.get_shard_iterator, dict(StreamName=name, ShardId="0", ShardIteratorType="AT_SEQUENCE_NUMBER")),
        (wrong, "Invalid ShardIterator", kinesis.get_records, dict(ShardIterator=at[:-8] + "AAAAAAA=")),
        (invalid, "at 'limit' failed", kinesis.get_records, dict(ShardIterator=at, Limit=10_001)),
        (wrong, "StreamName", kinesis.describe_stream, {}),
        (wrong, "NextToken", kinesis.list_shards, dict(StreamName=name, NextToken="x")),
        ("UnknownOperationException", "SplitShard", kinesis.split_shard, dict(StreamName=name, ShardToSplit="0", NewStartingHashKey="9")),
    ]
    for code, says, call, parameters in table:
        refused(code, says, call, **parameters)
    got = kinesis.get_records(ShardIterator=at)["Records"]
    assert got == [], f"a refused record was stored: {got}"
    passed(f"mistakes are told ({len(table)})")


def clean_up():
    for page in kinesis.get_paginator("list_streams").paginate():
        for name in page["StreamNames"]:
            if name.startswith(f"boto3-{RUN}-"):
                kinesis.delete_stream(StreamName=name)


if __name__ == "__main__":
    try:
        streams_come_and_go()
        records_are_read_where_they_were_put()
        batches_keep_order_and_places()
        iterators_begin_where_they_say()
        lists_have_pages()
        mistakes_are_told()
        a_record_may_be_large()
    finally:
        clean_up()
    print("all passed")
