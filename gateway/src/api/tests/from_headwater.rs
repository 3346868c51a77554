//! What another Headwater sends: numbered records, and batches with headers.

use super::*;

fn numbered(sequence: u64, data: &str) -> Value {
    let origin = STANDARD.encode(format!("hw1/edge/1/s/0/{sequence}"));
    json!({"Data": STANDARD.encode(data), "PartitionKey": "k", "Headwater": {
        "Producer": format!("{:032x}", 7), "Epoch": 1, "Sequence": sequence,
        "Headers": [[HeaderId::Origin as u8, origin], [250, "AAAA"]],
    }})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_numbered_by_another_headwater_is_stored_once() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.create("s", 1).await;
    let records = [numbered(1, "one"), numbered(2, "two")];
    for _ in 0..2 {
        let answer = client.call("PutRecords", json!({"StreamName": "s", "Records": records})).await;
        assert_eq!(answer["FailedRecordCount"], 0);
        assert_eq!(answer["Records"][1]["ShardId"], "shardId-000000000000");
    }
    let iterator = client.iterator(oldest("s", 0)).await;
    let page = client.read(&iterator).await;
    assert_eq!(page["Records"].as_array().unwrap().len(), 2);
    assert!(page["Records"][0].get("Headwater").is_none(), "others get plain Kinesis");
    client.headers.insert("x-headwater-headers", "1".parse().unwrap());
    let page = client.read(&iterator).await;
    let mut expected = numbered(1, "one")["Headwater"].take();
    // A header of a later version is carried by nobody.
    expected["Headers"].as_array_mut().unwrap().pop();
    assert_eq!(page["Records"][0]["Headwater"], expected);

    for wrong in
        [json!({"Epoch": 1}), json!({"Producer": "7", "Epoch": 1, "Sequence": 1}), json!({"Headers": [[6, "%"]]})]
    {
        let entry = json!({"StreamName": "s", "Data": "", "PartitionKey": "k", "Headwater": wrong});
        let answer = client.post("PutRecord", entry.to_string()).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_another_headwater_is_stored_once_and_answered_in_place() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.create("s", 1).await;
    let name = StreamName::new("s").unwrap();
    let body = |name: &StreamName| {
        let mut writer = BatchWriter::new(name, 0);
        let lane = writer.lane(7, 1, "hw1/edge/1/s/0/");
        let topic = [Header::new(HeaderId::Topic, "site/1")];
        for n in 1..=1000u64 {
            let data = n.to_string();
            let record = NewRecord { key: b"k", headers: &topic, data: data.as_bytes(), ..NewRecord::default() };
            writer.record(lane, n, true, &record);
        }
        writer.finish().unwrap()
    };
    let post = |body: Vec<u8>| {
        Request::post("/").header("content-type", wire::CONTENT_TYPE).body(Full::new(Bytes::from(body))).unwrap()
    };
    for status in [Status::Stored, Status::Duplicate] {
        let answer = client.send(post(body(&name))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(wire::decode_answer(&answer.body, 1000).unwrap(), [status; 1000]);
    }
    let iterator = client.iterator(oldest("s", 0)).await;
    let expected: Vec<_> = (1..=1000).map(|n| n.to_string()).collect();
    assert_eq!(client.texts(&iterator).await, expected);
    let answer = client.send(post(body(&StreamName::new("none").unwrap()))).await;
    assert!(answer.text().contains("ResourceNotFoundException"), "{}", answer.text());
    let answer = client.send(post(b"noise".to_vec())).await;
    assert!(answer.text().contains("SerializationException"), "{}", answer.text());
}

// A record that fits the batch and, with the origin of its lane, not the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_a_batch_that_the_log_refuses_is_refused_alone_and_said_to_be() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.create("s", 1).await;
    let mut writer = BatchWriter::new(&StreamName::new("s").unwrap(), 0);
    let lane = writer.lane(7, 1, "hw1/edge/1/s/0/");
    let large = [Header::new(HeaderId::UserProperty, vec![b'x'; crate::record::HEADERS_BYTES_MAX - 8])];
    for (n, headers) in [(1, &[][..]), (2, &large[..]), (3, &[][..])] {
        let data = n.to_string();
        let record = NewRecord { key: b"k", headers, data: data.as_bytes(), ..NewRecord::default() };
        writer.record(lane, n, true, &record);
    }
    let body = Full::new(Bytes::from(writer.finish().unwrap()));
    let answer = client.send(Request::post("/").header("content-type", wire::CONTENT_TYPE).body(body).unwrap()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let statuses = wire::decode_answer(&answer.body, 3).unwrap();
    assert_eq!(statuses, [Status::Stored, Status::Refused, Status::Stored]);
    let iterator = client.iterator(oldest("s", 0)).await;
    assert_eq!(client.texts(&iterator).await, ["1", "3"]);
}

/// The fault: a stream of video took any record, and no sink of video could send what was no fragment.
#[tokio::test]
async fn a_stream_of_video_takes_no_records_but_another_headwaters() {
    let gateway = Gateway::start().await;
    let settings = StreamSettings { shards: 1, kind: crate::log::StreamKind::Video, ..Default::default() };
    gateway.log.create_stream(&StreamName::new("cam").unwrap(), settings).unwrap();
    let mut client = gateway.client().await;
    let record = json!({"PartitionKey": "k", "Data": "eA=="});
    let alone = json!({"StreamName": "cam", "PartitionKey": "k", "Data": "eA=="});
    for (operation, request) in
        [("PutRecord", alone), ("PutRecords", json!({"StreamName": "cam", "Records": [record]}))]
    {
        let refused = client.post(operation, request.to_string()).await;
        assert_eq!(refused.status, 400, "{operation}");
        assert!(refused.text().contains("PutMedia or POST /streams/cam/media"), "{}", refused.text());
    }
    let headers = json!({"Headers": [[1, "eA=="]]});
    let relayed = json!({"StreamName": "cam", "PartitionKey": "k", "Data": "eA==", "Headwater": headers});
    client.call("PutRecord", relayed).await;
}
