#!/usr/bin/env bash
# The AWS CLI against the gateway: create, put, read back, delete.
#
#   aws_cli.sh AWS ENDPOINT
set -euo pipefail
aws=$1
export AWS_ENDPOINT_URL=$2 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION=eu-west-1
export AWS_EC2_METADATA_DISABLED=true AWS_PAGER="" AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null
kinesis() { "$aws" kinesis "$@"; }
is() { [ "$1" = "$2" ] || { echo "expected $2, got: $1" >&2; exit 1; }; }

kinesis create-stream --stream-name cli --shard-count 2
kinesis wait stream-exists --stream-name cli
is "$(kinesis describe-stream-summary --stream-name cli --query StreamDescriptionSummary.OpenShardCount --output text)" 2
is "$(kinesis list-streams --query "contains(StreamNames, 'cli')" --output text)" True
is "$(kinesis list-shards --stream-name cli --query 'length(Shards)' --output text)" 2

shard=$(kinesis put-record --stream-name cli --partition-key one --data first --query ShardId --output text)
kinesis put-records --stream-name cli --records Data=second,PartitionKey=one Data=third,PartitionKey=one >put.json
is "$(grep -c "$shard" put.json)" 2
is "$(grep FailedRecordCount put.json | tr -dc 0-9)" 0

iterator=$(kinesis get-shard-iterator --stream-name cli --shard-id "$shard" --shard-iterator-type TRIM_HORIZON \
  --query ShardIterator --output text)
got=$(kinesis get-records --shard-iterator "$iterator" --query 'Records[].Data' --output text)
decoded=$(for data in $got; do base64 -d <<<"$data" 2>/dev/null || echo -n "$data"; echo; done | tr '\n' ' ')
is "$decoded" "first second third "

if kinesis describe-stream --stream-name nowhere 2>error.txt; then echo "a stream that is not there was described"; exit 1; fi
grep -q ResourceNotFoundException error.txt
kinesis delete-stream --stream-name cli
kinesis wait stream-not-exists --stream-name cli
echo "the AWS CLI: create, put, read, delete"
