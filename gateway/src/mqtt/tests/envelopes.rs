//! Envelopes of the device SDK, as a device sends them: each record once, in order, under its number.

use super::harness::*;
use crate::log::{OnFull, StreamSettings};
use crate::mqtt::{MqttConfig, RouteConfig};
use crate::record::{HeaderId, StreamName};
use crate::units::ByteSize;
use headwater_wire::{CONTENT_TYPE, Chunk, Column, ColumnType, Envelope, Kind, TableWriter, Value};

/// A PUBLISH of 64 KiB at most.
fn publish_bytes(qos: u8, id: u16, topic: &str, payload: &[u8]) -> Vec<u8> {
    let properties = [&[3u8][..], &text(CONTENT_TYPE)].concat();
    let id = if qos == 0 { vec![] } else { id.to_be_bytes().to_vec() };
    packet(0x30 | qos << 1, &[text(topic), id, vec![properties.len() as u8], properties, payload.to_vec()].concat())
}

fn envelope(kind: Kind, epoch: u32, first: u64, count: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let head = Envelope { kind, epoch, first, count, body }.write_head(&mut bytes).unwrap();
    bytes.truncate(head);
    bytes.extend_from_slice(body);
    bytes
}

fn plain(epoch: u32, first: u64, records: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    for record in records {
        let mut bytes = vec![0; record.len() + 10];
        let length = headwater_wire::plain(record.as_bytes(), &mut bytes).unwrap();
        body.extend_from_slice(&bytes[..length]);
    }
    envelope(Kind::Plain, epoch, first, records.len() as u32, &body)
}

static COLUMNS: [Column<'static>; 3] = [
    Column::new("t", ColumnType::Counter),
    Column::new("site", ColumnType::Text),
    Column::new("v", ColumnType::Decimal(1)),
];

fn readings(epoch: u32, first: u64, rows: &[(i64, &str, i64)]) -> Vec<u8> {
    let mut body = vec![0; 60_000];
    let (mut table, mut length) = TableWriter::begin(&COLUMNS, &mut body).unwrap();
    for (t, site, v) in rows {
        let row = [Value::Integer(*t), Value::Text(site), Value::Integer(*v)];
        length = table.row(&row, &mut body, length).unwrap();
    }
    envelope(Kind::Readings, epoch, first, rows.len() as u32, &body[..length])
}

fn chunk(blob: u32, part: u64, offset: u64, total: u64, bytes: &[u8]) -> Vec<u8> {
    let mut head = [0; headwater_wire::CHUNK_HEADER_BYTES_MAX];
    let length = Chunk { offset, total, bytes }.write_head(&mut head).unwrap();
    envelope(Kind::Chunk, blob, part, 1, &[&head[..length], bytes].concat())
}

fn puback(id: u16, reason: u8) -> Vec<u8> {
    match reason {
        0 => packet(0x40, &id.to_be_bytes()),
        _ => packet(0x40, &[&id.to_be_bytes()[..], &[reason]].concat()),
    }
}

fn numbers(gateway: &Gateway) -> Vec<(u32, u64)> {
    gateway.records("default").iter().filter_map(|r| r.producer.map(|p| (p.epoch, p.sequence))).collect()
}

async fn fill(gateway: &Gateway, on: &str) {
    let name = StreamName::new(on).unwrap();
    let max_bytes = Some(ByteSize(64 << 10));
    let settings = StreamSettings { max_bytes, on_full: OnFull::Reject, ..StreamSettings::default() };
    gateway.log.update_stream(&name, settings).unwrap();
    let mut client = gateway.connected(5, "filler").await;
    let payload = "x".repeat(30_000);
    for id in 1..=2_000u16 {
        client.send(&publish5(1, id, &format!("{on}/fill"), &[], &payload)).await;
        if client.packet().await.len() == 5 {
            return;
        }
    }
    panic!("{on} is never full");
}

async fn unfill(gateway: &Gateway, on: &str) {
    let settings = StreamSettings { max_bytes: None, on_full: OnFull::DropOldest, ..StreamSettings::default() };
    gateway.log.update_stream(&StreamName::new(on).unwrap(), settings).unwrap();
}

fn route(topic: &str, stream: &str, key: &str) -> RouteConfig {
    RouteConfig { topics: vec![topic.into()], stream: stream.into(), key: key.into(), store: true }
}

#[tokio::test]
async fn each_record_is_stored_as_if_it_had_come_by_itself() {
    let routes = [route("by/site", "default", "{json:/site}"), route("#", "default", "{client_id}")];
    let gateway = Gateway::with(MqttConfig::default(), &routes, &[]).await;
    let mut client = gateway.connected(5, "d1").await;
    client.send(&publish_bytes(1, 1, "a", &plain(7, 1, &["one", "", "three"]))).await;
    client.expect(&puback(1, 0)).await;
    client.send(&publish_bytes(1, 2, "by/site", &readings(7, 4, &[(100, "n", 215), (110, "s", -5)]))).await;
    client.expect(&puback(2, 0)).await;
    client.send(&publish_bytes(0, 0, "a", &plain(7, 6, &["six"]))).await;
    client.send(&publish_bytes(1, 3, "img", &chunk(900, 1, 0, 11, b"pict"))).await;
    client.send(&publish_bytes(1, 4, "img", &chunk(900, 2, 4, 11, b"ure"))).await;
    client.expect(&puback(3, 0)).await;
    client.expect(&puback(4, 0)).await;

    let records = gateway.records("default");
    let of = |data: &str| records.iter().find(|r| &r.data[..] == data.as_bytes()).unwrap_or_else(|| panic!("{data}"));
    let seen: Vec<_> = records.iter().map(|r| (r.producer.unwrap().epoch, r.producer.unwrap().sequence)).collect();
    assert_eq!(records.len(), 8, "{seen:?}");
    for (number, data) in [(1, "one"), (2, ""), (3, "three"), (6, "six")] {
        let record = of(data);
        assert_eq!((record.producer.unwrap().epoch, record.producer.unwrap().sequence), (7, number));
        assert_eq!(record.header(HeaderId::Topic).map(|t| &t[..]), Some(&b"a"[..]));
        assert_eq!((&record.key[..], record.header(HeaderId::ContentType)), (&b"d1"[..], None));
    }
    assert_eq!(crate::mqtt::inlet::published_qos(of("six")), crate::mqtt::codec::Qos::AtMostOnce);
    for (number, site, data) in
        [(4, "n", r#"{"t":100,"site":"n","v":21.5}"#), (5, "s", r#"{"t":110,"site":"s","v":-0.5}"#)]
    {
        let record = of(data);
        assert_eq!((record.producer.unwrap().sequence, &record.key[..]), (number, site.as_bytes()));
        assert_eq!(record.header(HeaderId::ContentType).map(|t| &t[..]), Some(&b"application/json"[..]));
    }
    let picture = |bytes: &[u8]| records.iter().find(|r| r.data == bytes).expect("the envelope as it came");
    let parts = [chunk(900, 1, 0, 11, b"pict"), chunk(900, 2, 4, 11, b"ure")];
    for (part, place, bytes) in [(1, "900/0/11", &parts[0]), (2, "900/4/11", &parts[1])] {
        let record = picture(bytes);
        assert_eq!(record.header(HeaderId::ContentType).map(|t| &t[..]), Some(CONTENT_TYPE.as_bytes()));
        assert_eq!((record.producer.unwrap().epoch, record.producer.unwrap().sequence), (900, part));
        let own = record.headers.iter().filter_map(|h| h.as_user()).collect::<Vec<_>>();
        assert_eq!(own, [("headwater-blob", place)]);
    }
    assert_ne!(
        picture(&parts[0]).producer.unwrap().id,
        of("one").producer.unwrap().id,
        "blobs have numbers of their own"
    );
}

#[tokio::test]
async fn p3_an_envelope_sent_again_whole_or_in_part_is_stored_once() {
    let mut gateway = Gateway::start().await;
    for round in 0..3u16 {
        let mut client = gateway.connected(5, "d1").await;
        for (id, bytes) in [
            (1, plain(7, 1, &["1", "2", "3"])),
            (2, plain(7, 2, &["2", "3", "4", "5"])),
            (3, plain(7, 4, &["4"])),
            (4, plain(7, 5, &["5", "6"])),
        ] {
            client.send(&publish_bytes(1, id, "a", &bytes)).await;
        }
        for id in 1..=4 {
            client.expect(&puback(id, 0)).await;
        }
        if round == 1 {
            gateway.restart().await;
        }
    }
    assert_eq!(gateway.payloads("default"), ["1", "2", "3", "4", "5", "6"]);
    // Another epoch begins anew.
    let mut client = gateway.connected(5, "d1").await;
    client.send(&publish_bytes(1, 1, "a", &plain(8, 1, &["again"]))).await;
    client.expect(&puback(1, 0)).await;
    assert_eq!(gateway.payloads("default").len(), 7);
}

#[tokio::test]
async fn p8_a_malformed_envelope_is_refused_alone_and_nothing_of_it_is_stored() {
    let gateway = Gateway::start().await;
    let mut client = gateway.connected(5, "d1").await;
    let good = plain(7, 2, &["2", "3"]);
    let half_bad = [&plain(7, 2, &["2", "3"])[..], b"x"].concat();
    let mut bad_chunk = chunk(900, 1, 0, 4, b"pict");
    *bad_chunk.last_mut().unwrap() ^= 1;
    let cut = &good[..good.len() - 1];
    client.send(&publish_bytes(1, 1, "a", &plain(7, 1, &["1"]))).await;
    for (id, bytes) in [(2, &b""[..]), (3, b"nonsense"), (4, &half_bad), (5, cut), (6, &bad_chunk)] {
        client.send(&publish_bytes(1, id, "a", bytes)).await;
    }
    client.send(&publish_bytes(1, 7, "a", &good)).await;
    client.send(&publish5(1, 8, "a", &[], "ordinary")).await;
    client.expect(&puback(1, 0)).await;
    for id in 2..=6 {
        client.expect(&puback(id, 0x99)).await;
    }
    client.expect(&puback(7, 0)).await;
    client.expect(&puback(8, 0)).await;
    assert_eq!(gateway.payloads("default"), ["1", "2", "3", "ordinary"]);
    assert_eq!(gateway.rejects("envelope"), 5);
    client.send(&publish_bytes(2, 9, "a", &plain(7, 4, &["4"]))).await;
    client.expect(&packet(0x50, &[0, 9, 0x83])).await;
    assert_eq!(gateway.rejects("envelope_qos"), 1);
}

#[tokio::test]
async fn p6_what_an_envelope_unpacks_to_is_bounded() {
    let gateway = Gateway::start().await;
    let mut client = gateway.connected(5, "d1").await;
    let text = "s".repeat(500);
    let same = |rows: usize| vec![(0, &text[..], 0); rows];
    let much = readings(7, 1, &same(4_096));
    assert!(much.len() < 8_192, "{} bytes unpack to two million", much.len());
    client.send(&publish_bytes(1, 1, "a", &much)).await;
    client.expect(&puback(1, 0x99)).await;
    assert_eq!(gateway.payloads("default").len(), 0);
    // Many that are just small enough are handed in one by one.
    let burst: Vec<u8> = (0..20u16)
        .flat_map(|n| publish_bytes(1, n + 1, "a", &readings(7, u64::from(n) * 300 + 1, &same(300))))
        .collect();
    client.send(&burst).await;
    for id in 1..=20 {
        client.expect(&puback(id, 0)).await;
    }
    assert_eq!(numbers(&gateway), (1..=6_000).map(|n| (7, n)).collect::<Vec<_>>());
}

// Two streams: one is full. The batch holds what goes to either, and a later number must not be stored before an earlier.
#[tokio::test]
async fn what_is_behind_a_refused_envelope_waits_for_it() {
    let routes = [route("other/#", "other", "{client_id}"), route("#", "default", "{client_id}")];
    let gateway = Gateway::with(MqttConfig::default(), &routes, &[]).await;
    fill(&gateway, "other").await;
    let mut client = gateway.connected(5, "d1").await;
    let burst = [
        publish_bytes(1, 1, "a", &plain(7, 1, &["1", "2"])),
        publish_bytes(1, 2, "other/a", &plain(7, 3, &["3", "4"])),
        publish_bytes(1, 3, "a", &plain(7, 5, &["5"])),
        publish_bytes(1, 4, "other/a", &plain(7, 6, &["6"])),
        publish_bytes(1, 5, "a", &plain(7, 7, &["7"])),
        publish5(1, 6, "a", &[], "ordinary"),
    ]
    .concat();
    client.send(&burst).await;
    for (id, reason) in [(1, 0), (2, 0x97), (3, 0x97), (4, 0x97), (5, 0x97), (6, 0)] {
        client.expect(&puback(id, reason)).await;
    }
    unfill(&gateway, "other").await;
    client.send(&publish_bytes(1, 7, "a", &plain(7, 8, &["8"]))).await;
    client.expect(&puback(7, 0x97)).await;
    assert_eq!((gateway.rejects("stream_full"), gateway.rejects("behind_refused")), (2, 4));
    let again = [
        publish_bytes(1, 1, "other/a", &plain(7, 3, &["3", "4"])),
        publish_bytes(1, 2, "a", &plain(7, 5, &["5"])),
        publish_bytes(1, 3, "other/a", &plain(7, 6, &["6"])),
        publish_bytes(1, 4, "a", &plain(7, 7, &["7", "8"])),
    ]
    .concat();
    client.send(&again).await;
    for id in 1..=4 {
        client.expect(&puback(id, 0)).await;
    }
    assert_eq!(gateway.payloads("default"), ["1", "2", "ordinary", "5", "7", "8"]);
    let other: Vec<String> = gateway.payloads("other").into_iter().filter(|p| p.len() == 1).collect();
    assert_eq!(other, ["3", "4", "6"]);
}

// The log refuses a part of a batch: the stream fills while several envelopes are gathered.
#[tokio::test]
async fn a_full_stream_swallows_nothing_of_a_device_that_sends_on() {
    let gateway = Gateway::start().await;
    fill(&gateway, "default").await;
    let before = gateway.payloads("default").len();
    let mut client = gateway.connected(5, "d1").await;
    let (mut oldest, mut rounds) = (1u64, 0);
    while oldest <= 40 {
        let window: Vec<u64> = (oldest..=40.min(oldest + 7)).collect();
        let sent = window.iter().map(|n| publish_bytes(1, *n as u16, "a", &plain(7, *n, &[&n.to_string()])));
        client.send(&sent.flatten().collect::<Vec<u8>>()).await;
        for n in window {
            let answer = client.packet().await;
            assert_eq!(answer[3], n as u8);
            if answer.len() == 4 && n == oldest {
                oldest += 1;
            }
        }
        rounds += 1;
        match rounds {
            3 | 6 => unfill(&gateway, "default").await,
            5 => fill(&gateway, "default").await,
            _ => {}
        }
    }
    let stored = gateway.payloads("default").split_off(before);
    let stored: Vec<String> = stored.into_iter().filter(|p| p.len() < 3).collect();
    assert_eq!(stored, (1..=40).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn refused_for_its_topic_it_keeps_what_is_behind_it_out_too() {
    let routes = [route("a", "default", "{client_id}")];
    let gateway = Gateway::with(MqttConfig::default(), &routes, &[]).await;
    let mut client = gateway.connected(5, "d1").await;
    for (id, topic, first, reason) in
        [(1, "a", 1, 0), (2, "b", 2, 0x90), (3, "a", 3, 0x97), (4, "a", 2, 0), (5, "a", 3, 0)]
    {
        client.send(&publish_bytes(1, id, topic, &plain(7, first, &[&first.to_string()]))).await;
        client.expect(&puback(id, reason)).await;
    }
    assert_eq!(gateway.payloads("default"), ["1", "2", "3"]);
}

#[tokio::test]
async fn live_listeners_get_the_records_and_not_the_envelope() {
    let live =
        RouteConfig { topics: vec!["live".into()], stream: "default".into(), key: "{client_id}".into(), store: false };
    let gateway = Gateway::with(MqttConfig::default(), &[live, RouteConfig::default()], &[]).await;
    let mut listener = gateway.connected(4, "listener").await;
    listener.send(&subscribe(4, 1, "#", 0)).await;
    listener.packet().await;
    let mut client = gateway.connected(5, "d1").await;
    for (id, topic) in [(1u16, "a"), (2, "live")] {
        client.send(&publish_bytes(1, id, topic, &plain(7, u64::from(id) * 2, &["one", "two"]))).await;
        client.expect(&puback(id, 0)).await;
        for payload in ["one", "two"] {
            listener.expect(&publish(0, 0, topic, payload)).await;
        }
    }
    assert_eq!(gateway.payloads("default"), ["one", "two"]);
}

#[tokio::test]
async fn records_that_a_device_left_out_are_counted() {
    let mut gateway = Gateway::start().await;
    for (first, lost) in [(1u64, 0), (5, 3), (6, 3), (5, 3), (10, 6)] {
        let mut client = gateway.connected(5, "d1").await;
        client.send(&publish_bytes(1, 1, "a", &plain(7, first, &["x"]))).await;
        client.expect(&puback(1, 0)).await;
        assert_eq!(gateway.metrics.device_lost.get(), lost, "{first}");
        if first == 6 {
            gateway.restart().await;
        }
    }
}

// A crowd whose small packets unpack to much, while the log makes all of them wait.
#[tokio::test]
async fn p6_what_all_envelopes_unpack_to_is_bounded_and_costs_nobody_else() {
    let gateway = Gateway::start().await;
    let unpacked = gateway.mqtt.as_ref().unwrap().shared.memory.unpacked.clone();
    let room = unpacked.available_permits();
    let taken = unpacked.clone().acquire_many_owned(room as u32 - 1).await.unwrap();
    let mut client = gateway.connected(5, "d1").await;
    let text = "s".repeat(500);
    let burst = [
        publish_bytes(1, 1, "a", &plain(7, 1, &["small"])),
        publish_bytes(1, 2, "a", &readings(7, 2, &vec![(0, &text[..], 0); 100])),
        publish_bytes(1, 3, "a", &readings(7, 102, &vec![(0, &text[..], 0); 300])),
        publish5(1, 4, "a", &[], "behind"),
    ];
    client.send(&burst.concat()).await;
    client.expect(&puback(1, 0)).await;
    client.expect_silence().await;
    let mut other = gateway.connected(5, "d2").await;
    other.send(&publish_bytes(1, 1, "a", &plain(7, 1, &["small"]))).await;
    other.expect(&puback(1, 0)).await;
    // One that leaves while it waits takes nothing with it.
    other.send(&publish_bytes(1, 2, "a", &readings(7, 2, &vec![(0, &text[..], 0); 300]))).await;
    other.expect_silence().await;
    drop(other);
    drop(taken);
    for id in 2..=4 {
        client.expect(&puback(id, 0)).await;
    }
    drop(client);
    for _ in 0..500 {
        if unpacked.available_permits() == room {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(unpacked.available_permits(), room);
    let of_first = gateway.records("default").iter().filter(|r| &r.key[..] == b"d1").count();
    assert_eq!(of_first, 1 + 100 + 300 + 1);
}
