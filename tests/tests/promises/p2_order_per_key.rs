//! P2: order is kept per partition key, from the device's connection to the reader of the log.
//!
//! Order through kills is judged with P1's hundred kills, order upstream with P4.

use headwater_tests::audit::{Fleet, Verdict, audit};
use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::mqtt::{Client, Version};
use headwater_tests::{aws, tools};
use std::time::Duration;

#[test]
fn p2_a_devices_records_are_read_in_the_order_it_sent_them() {
    let gateway = Gateway::plain();
    let fleet = Fleet::start(gateway.mqtt, 20, 1_000);
    std::thread::sleep(Duration::from_secs(2));
    let acked = fleet.finish();
    let records = aws::read_stream(gateway.api, "default");
    assert_eq!(audit(&acked, &records), Verdict { stored: acked.values().sum(), ..Verdict::default() });
}

/// All records of a key are in one shard, whatever the number of shards, and the key is the client id by default.
#[test]
fn p2_a_key_stays_in_one_shard() {
    let gateway = Setup::new("[[stream]]\nname = \"default\"\nshards = 8\n").start();
    let fleet = Fleet::start(gateway.mqtt, 16, 500);
    std::thread::sleep(Duration::from_secs(1));
    let acked = fleet.finish();
    let mut home = std::collections::BTreeMap::new();
    for shard in aws::shards(gateway.api, "default") {
        for record in aws::read_shard(gateway.api, "default", &shard, None) {
            assert_eq!(home.entry(record.key.clone()).or_insert(shard.clone()), &shard, "{} moved", record.key);
        }
    }
    let devices: Vec<_> = acked.keys().collect();
    assert_eq!(home.keys().collect::<Vec<_>>(), devices, "the default key is the client id");
}

/// A device that reconnects after every few messages while its old connection still has messages on the way.
#[test]
fn p2_a_session_taken_over_does_not_overtake_its_old_connection() {
    let gateway = Gateway::plain();
    let mut sent = 0u32;
    let mut left = Vec::new();
    for _ in 0..tools::rounds(200, 50) {
        let mut client = Client::connect(gateway.mqtt, "impatient", Version::V311).unwrap();
        for _ in 0..5 {
            client.send("dev/impatient", sent.to_string().as_bytes()).unwrap();
            sent += 1;
        }
        // Neither read nor closed: the next connection takes over while these are on their way.
        left.push(client);
        left.drain(..left.len().saturating_sub(8));
    }
    let mut last = Client::connect(gateway.mqtt, "impatient", Version::V311).unwrap();
    last.publish("dev/impatient", sent.to_string().as_bytes()).unwrap();
    let records = aws::read_stream(gateway.api, "default");
    let numbers: Vec<u32> = records.iter().map(|got| String::from_utf8_lossy(&got.data).parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|two| two[0] < two[1]), "out of order: {numbers:?}");
    assert_eq!(numbers.last(), Some(&sent));
}
