// @aws-sdk/client-kinesis v3 against the AWS door: it speaks HTTP/2 by prior knowledge on http:// endpoints.
//
//     node h2c.mjs http://127.0.0.1:4567
//
// Needs @aws-sdk/client-kinesis. Exits 1 at the first check that fails.
import assert from "node:assert/strict";
import http2 from "node:http2";
import {
  CreateStreamCommand,
  DeleteStreamCommand,
  DescribeStreamSummaryCommand,
  GetRecordsCommand,
  GetShardIteratorCommand,
  KinesisClient,
  PutRecordCommand,
  PutRecordsCommand,
} from "@aws-sdk/client-kinesis";

const endpoint = process.argv[2] ?? "http://127.0.0.1:4567";
const credentials = {
  accessKeyId: process.env.AWS_ACCESS_KEY_ID ?? "AKIDTEST",
  secretAccessKey: process.env.AWS_SECRET_ACCESS_KEY ?? "secret",
};
const kinesis = new KinesisClient({ endpoint, region: "eu-west-1", credentials });
const StreamName = `h2c-${process.pid}-${Date.now()}`;
const ok = (what) => console.log(`ok  ${what}`);

// The client is what it is tested for: HTTP/2 frames on a plain socket.
await new Promise((resolve, reject) => {
  const session = http2.connect(endpoint);
  session.on("error", reject);
  session.on("remoteSettings", () => session.close(resolve));
});
ok("the port speaks HTTP/2 by prior knowledge");

await kinesis.send(new CreateStreamCommand({ StreamName, ShardCount: 2 }));
try {
  const summary = await kinesis.send(new DescribeStreamSummaryCommand({ StreamName }));
  assert.equal(summary.StreamDescriptionSummary.OpenShardCount, 2);
  ok("a stream is made and described");

  const Data = new TextEncoder().encode("one");
  const put = await kinesis.send(new PutRecordCommand({ StreamName, PartitionKey: "k", Data }));
  assert.equal(put.SequenceNumber.length, 56);
  // Many requests side by side on one connection.
  const batches = await Promise.all(
    Array.from({ length: 20 }, (_, batch) => {
      const Records = Array.from({ length: 100 }, (_, n) => ({
        PartitionKey: `key-${n}`,
        Data: new TextEncoder().encode(`${batch}/${n}`),
      }));
      return kinesis.send(new PutRecordsCommand({ StreamName, Records }));
    }),
  );
  assert.ok(batches.every((answer) => answer.FailedRecordCount === 0 && answer.Records.length === 100));
  ok("20 batches side by side are answered in place");

  let count = 0;
  for (const ShardId of ["shardId-000000000000", "shardId-000000000001"]) {
    const request = { StreamName, ShardId, ShardIteratorType: "TRIM_HORIZON" };
    let { ShardIterator } = await kinesis.send(new GetShardIteratorCommand(request));
    for (;;) {
      const page = await kinesis.send(new GetRecordsCommand({ ShardIterator, Limit: 500 }));
      count += page.Records.length;
      ShardIterator = page.NextShardIterator;
      if (page.MillisBehindLatest === 0) break;
    }
  }
  assert.equal(count, 2001);
  ok("every record is read back");

  await assert.rejects(
    kinesis.send(new PutRecordCommand({ StreamName, PartitionKey: "", Data })),
    (error) => error.name === "ValidationException" && error.message.includes("at 'partitionKey' failed"),
  );
  ok("a mistake is told by its name");
} finally {
  await kinesis.send(new DeleteStreamCommand({ StreamName }));
  kinesis.destroy();
}
console.log("all passed");
