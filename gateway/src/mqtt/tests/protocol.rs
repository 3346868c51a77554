//! Routes, rights, properties and refusals, seen from a client.

use super::harness::*;
use crate::log::{OnFull, StreamSettings};
use crate::mqtt::{AllowConfig, MqttConfig, RouteConfig};
use crate::record::HeaderId;
use crate::units::ByteSize;

fn route(topics: &[&str], stream: &str, key: &str) -> RouteConfig {
    let topics = topics.iter().map(|t| t.to_string()).collect();
    RouteConfig { topics, stream: stream.into(), key: key.into(), store: true }
}

#[tokio::test]
async fn a_publish_is_stored_with_key_topic_and_properties_and_acknowledged() {
    let gateway = Gateway::start().await;
    let mut client = gateway.connected(5, "c1").await;
    let properties = [&b"\x01\x01\x03\0\x04text"[..], &user_property("unit", "bar")].concat();
    client.send(&publish5(1, 7, "site/1/t", &properties, "hello")).await;
    client.expect(&[0x40, 2, 0, 7]).await;
    let records = gateway.records("default");
    assert_eq!(records.len(), 1);
    let record = &records[0];
    assert_eq!((&record.key[..], &record.data[..], record.topic()), (&b"c1"[..], &b"hello"[..], Some("site/1/t")));
    assert_eq!(record.header(HeaderId::ContentType).unwrap(), "text");
    assert_eq!(record.header(HeaderId::PayloadFormat).unwrap(), &b"\x01"[..]);
    assert_eq!(record.headers.iter().find_map(|h| h.as_user()), Some(("unit", "bar")));
}

#[tokio::test]
async fn routes_choose_stream_and_key() {
    let routes =
        [route(&["site/+/t"], "telemetry", "{topic[1]}"), route(&["ev/#"], "events", "{json:/id}-{property:p}")];
    let gateway = Gateway::with(MqttConfig::default(), &routes, &[]).await;
    let mut client = gateway.connected(5, "c1").await;
    client.send(&publish5(1, 1, "site/9/t", &[], "x")).await;
    client.send(&publish5(1, 2, "ev/a", &user_property("p", "q"), r#"{"id":"k"}"#)).await;
    client.send(&publish5(1, 3, "ev/a", &[], "no json")).await;
    client.send(&publish5(1, 4, "elsewhere", &[], "x")).await;
    for answer in [&[0x40, 2, 0, 1][..], &[0x40, 2, 0, 2], &[0x40, 2, 0, 3], &[0x40, 3, 0, 4, 0x90]] {
        client.expect(answer).await;
    }
    assert_eq!(&gateway.records("telemetry")[0].key[..], b"9");
    let mut keys: Vec<_> =
        gateway.records("events").iter().map(|r| String::from_utf8_lossy(&r.key).into_owned()).collect();
    keys.sort();
    assert_eq!(keys, ["c1-c1", "k-q"]);
    assert_eq!(gateway.rejects("topic_name"), 1);
}

#[tokio::test]
async fn an_unroutable_topic_closes_a_311_client_behind_the_answers_before_it() {
    let gateway = Gateway::with(MqttConfig::default(), &[route(&["a"], "default", "{client_id}")], &[]).await;
    let mut client = gateway.connected(4, "c1").await;
    let burst = [publish(1, 1, "a", "x"), publish(1, 2, "b", "y"), publish(1, 3, "a", "z")].concat();
    client.send(&burst).await;
    client.expect(&[0x40, 2, 0, 1]).await;
    client.expect_end().await;
    assert_eq!(gateway.payloads("default"), ["x"]);
}

#[tokio::test]
async fn a_refused_qos_0_message_is_counted_and_nothing_else_happens() {
    let gateway = Gateway::with(MqttConfig::default(), &[route(&["a"], "default", "{client_id}")], &[]).await;
    for level in [4, 5] {
        let mut client = gateway.connected(level, "c1").await;
        let refused = if level == 4 { publish(0, 0, "b", "x") } else { publish5(0, 0, "b", &[], "x") };
        client.send(&[refused, packet(0xc0, b"")].concat()).await;
        client.expect(&[0xd0, 0]).await;
    }
    assert_eq!(gateway.rejects("topic_name"), 2);
}

#[tokio::test]
async fn dollar_topics_match_only_explicit_routes() {
    let gateway =
        Gateway::with(MqttConfig::default(), &[route(&["#"], "default", "x"), route(&["$own/#"], "own", "x")], &[])
            .await;
    let mut client = gateway.connected(5, "c1").await;
    client.send(&publish5(1, 1, "$own/a", &[], "x")).await;
    client.expect(&[0x40, 2, 0, 1]).await;
    client.send(&publish5(1, 2, "$SYS/a", &[], "x")).await;
    client.expect(&[0x40, 3, 0, 2, 0x90]).await;
    assert_eq!(gateway.payloads("own"), ["x"]);
}

#[tokio::test]
async fn a_full_stream_is_told_by_0x97_and_closes_311() {
    let gateway = Gateway::with(MqttConfig::default(), &[route(&["#"], "small", "{client_id}")], &[]).await;
    let name = crate::record::StreamName::new("small").unwrap();
    let settings = StreamSettings {
        shards: 1,
        max_bytes: Some(ByteSize(64 << 10)),
        on_full: OnFull::Reject,
        ..StreamSettings::default()
    };
    gateway.log.update_stream(&name, settings).unwrap();
    let mut client = gateway.connected(5, "c5").await;
    let payload = "x".repeat(30_000);
    let mut refused = None;
    for id in 1..=2_000u16 {
        client.send(&publish5(2, id, "a", &[], &payload)).await;
        let answer = client.packet().await;
        if answer.len() == 5 {
            refused = Some(answer);
            break;
        }
        client.send(&packet(0x62, &id.to_be_bytes())).await;
        client.expect(&packet(0x70, &id.to_be_bytes())).await;
    }
    let refused = refused.expect("the stream is full at some point");
    assert_eq!((refused[0], refused[4]), (0x50, 0x97));
    let mut old = gateway.connected(4, "c4").await;
    old.send(&publish(1, 1, "a", &payload)).await;
    old.expect_end().await;
    assert!(gateway.rejects("stream_full") >= 2);
}

#[tokio::test]
async fn rights_are_held_for_publish_and_subscribe() {
    let allow = [AllowConfig {
        identity: "*".into(),
        publish: vec!["up/{client_id}/#".into()],
        subscribe: vec!["down/{client_id}/#".into()],
    }];
    let gateway = Gateway::with(MqttConfig::default(), &[], &allow).await;
    let mut client = gateway.connected(5, "c1").await;
    client.send(&publish5(1, 1, "up/c1/x", &[], "x")).await;
    client.expect(&[0x40, 2, 0, 1]).await;
    client.send(&publish5(1, 2, "up/c2/x", &[], "x")).await;
    client.expect(&[0x40, 3, 0, 2, 0x87]).await;
    client.send(&subscribe(5, 3, "down/c1/+", 1)).await;
    client.expect(&[0x90, 4, 0, 3, 0, 1]).await;
    client.send(&subscribe(5, 4, "#", 1)).await;
    client.expect(&[0x90, 4, 0, 4, 0, 0x87]).await;
    let mut old = gateway.connected(4, "c4").await;
    old.send(&subscribe(4, 5, "#", 1)).await;
    old.expect(&[0x90, 3, 0, 5, 0x80]).await;
    old.send(&publish(1, 2, "up/c1/x", "x")).await;
    old.expect_end().await;
    assert_eq!(gateway.rejects("not_authorized"), 2);
}

#[tokio::test]
async fn connack_of_5_announces_what_there_is_and_what_is_not() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    client.send(&connect_with(5, true, "", b"\x11\xff\xff\xff\xff")).await;
    let connack = client.packet().await;
    assert_eq!(connack[2..4], [0, 0]);
    let has = |part: &[u8]| connack.windows(part.len()).any(|w| w == part);
    assert!(has(b"\x21\x04\x00"), "receive maximum 1024");
    assert!(has(b"\x27\x00\x10\x00\x00"), "maximum packet size 1 MiB");
    assert!(has(b"\x25\x00") && has(b"\x2a\x00"), "no retained messages, no shared subscriptions");
    assert!(has(b"\x11\x00\x01\x51\x80"), "a day of session expiry");
    assert!(has(b"\x12\x00") && has(b"auto-"), "an assigned client id");
}

#[tokio::test]
async fn other_versions_and_bad_ids_are_refused_by_connack() {
    let gateway = Gateway::start().await;
    let old = packet(0x10, b"\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01c");
    for (bytes, answer) in [
        (old, &[0x20, 2, 0, 1][..]),
        (connect(4, false, ""), &[0x20, 2, 0, 2]),
        (connect_with(5, true, "c", b"\x15\x00\x01m"), &[0x20, 3, 0, 0x8c, 0]),
        (connect_with(5, true, "c", b"\x21\x00\x00"), &[0x20, 3, 0, 0x82, 0]),
    ] {
        let mut client = gateway.client().await;
        client.send(&bytes).await;
        client.expect(answer).await;
        client.expect_end().await;
    }
}

#[tokio::test]
async fn a_violation_is_told_by_disconnect_in_5_and_closes_311() {
    let gateway = Gateway::start().await;
    for (bytes, reason) in [
        (packet(0x80, b"\0\x01\0\0\x01a\0"), 0x81),
        (connect(5, true, "c"), 0x82),
        (packet(0x31, b"\0\x01a\0x"), 0x9a),
        (packet(0x30, b"\0\x01a\x03\x23\0\x01x"), 0x94),
        (packet(0x30, b"\0\x01#\0x"), 0x90),
        (packet(0x82, b"\0\x01\0\0\x04a#/b\0"), 0x8f),
        (vec![0x30, 0xff, 0xff, 0xff, 0x7f], 0x95),
        (packet(0x20, b"\0\0\0"), 0x82),
        (packet(0xf0, b""), 0x82),
    ] {
        let mut client = gateway.connected(5, "c").await;
        client.send(&[publish5(1, 1, "a", &[], "x"), bytes].concat()).await;
        client.expect(&[0x40, 2, 0, 1]).await;
        client.expect(&[0xe0, 2, reason, 0]).await;
        client.expect_end().await;
    }
    let mut client = gateway.connected(4, "c").await;
    client.send(&packet(0x60, b"\0\x01")).await;
    client.expect_end().await;
}

#[tokio::test]
async fn more_than_receive_maximum_ends_with_0x93() {
    let gateway = Gateway::with(MqttConfig { receive_maximum: 2, ..Default::default() }, &[], &[]).await;
    let mut client = gateway.connected(5, "c").await;
    let burst: Vec<u8> = (1..=3).flat_map(|id| publish5(2, id, "a", &[], "x")).collect();
    client.send(&burst).await;
    client.expect(&[0x50, 2, 0, 1]).await;
    client.expect(&[0x50, 2, 0, 2]).await;
    client.expect(&[0xe0, 2, 0x93, 0]).await;
    // A 3.1.1 client cannot know the bound: it is read as quickly as its messages become durable.
    let mut old = gateway.connected(4, "c").await;
    let burst: Vec<u8> = (1..=50).flat_map(|id| publish(1, id, "a", "x")).collect();
    old.send(&burst).await;
    for id in 1..=50 {
        old.expect(&[0x40, 2, 0, id]).await;
    }
}

#[tokio::test]
async fn a_password_file_lets_its_users_in_and_names_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users");
    std::fs::write(&file, format!("pump:{}\n", crate::mqtt::hash_password(b"s3cret").unwrap())).unwrap();
    let routes = [route(&["#"], "default", "{identity}")];
    let config = MqttConfig { users_file: Some(file), ..Default::default() };
    let gateway = Gateway::with(config, &routes, &[]).await;
    let login = |level: u8, user: &str, password: &str| {
        let properties: &[u8] = if level == 5 { &[0] } else { &[] };
        let body = [b"\x00\x04MQTT", &[level, 0xc2, 0, 60][..], properties, &text("c"), &text(user), &text(password)];
        packet(0x10, &body.concat())
    };
    let mut client = gateway.client().await;
    client.send(&login(4, "pump", "s3cret")).await;
    client.expect(&[0x20, 2, 0, 0]).await;
    client.send(&publish(1, 1, "a", "x")).await;
    client.expect(&[0x40, 2, 0, 1]).await;
    assert_eq!(&gateway.records("default")[0].key[..], b"pump");
    for (bytes, answer) in [
        (login(4, "pump", "wrong"), &[0x20, 2, 0, 4][..]),
        (login(5, "nobody", "x"), &[0x20, 3, 0, 0x86, 0]),
        (connect(5, true, "c"), &[0x20, 3, 0, 0x87, 0]),
    ] {
        let mut client = gateway.client().await;
        client.send(&bytes).await;
        client.expect(answer).await;
    }
}

#[tokio::test]
async fn a_start_without_its_stream_is_refused_with_what_to_write() {
    let gateway = Gateway::start().await;
    let routes = [route(&["#"], "nowhere", "{client_id}")];
    let started = crate::mqtt::Mqtt::start(
        &gateway.config,
        &routes,
        &[],
        gateway.log.clone(),
        crate::clock::Clock::system(),
        gateway.metrics.clone(),
        None,
    );
    let told = started.await.err().unwrap().to_string();
    assert!(told.contains("add a [[stream]] with name = \"nowhere\""), "{told}");
}

/// What has more headers than the wire between gateways carries would be stuck on its way upstream for ever.
#[tokio::test]
async fn a_message_with_too_many_properties_is_refused_and_the_next_is_taken() {
    let gateway = Gateway::start().await;
    let mut client = gateway.connected(5, "c").await;
    let property = user_property("a", "b");
    let publish = |id: u16, count: usize| {
        let list = property.repeat(count);
        let length = [list.len() as u8 | 0x80, (list.len() >> 7) as u8];
        packet(0x32, &[&text("t")[..], &id.to_be_bytes(), &length, &list, b"x"].concat())
    };
    client.send(&publish(1, 62)).await;
    client.expect(&[0x40, 3, 0, 1, 0x97]).await;
    client.send(&publish(2, 61)).await;
    client.expect(&[0x40, 2, 0, 2]).await;
    let records = gateway.records("default");
    assert_eq!((records.len(), records[0].headers.len()), (1, crate::wire::HEADERS_MAX - 2));
}

// An identifier kept for a message that was refused would answer the next message under it, which is stored nowhere.
#[tokio::test]
async fn the_identifier_of_a_refused_qos_2_message_is_free_again() {
    let allow = [AllowConfig { identity: "*".into(), publish: vec!["up/{client_id}/#".into()], subscribe: Vec::new() }];
    let gateway = Gateway::with(MqttConfig::default(), &[], &allow).await;
    let mut client = gateway.connected(5, "c1").await;
    client.send(&publish5(2, 7, "up/c2/x", &[], "refused")).await;
    client.expect(&[0x50, 3, 0, 7, 0x87]).await;
    client.send(&publish5(2, 7, "up/c1/x", &[], "taken")).await;
    client.expect(&[0x50, 2, 0, 7]).await;
    assert_eq!(gateway.payloads("default"), ["taken"]);
}

// The same where it is the stream that refuses: the message that is sent again is refused again, and not acknowledged.
#[tokio::test]
async fn a_qos_2_message_that_a_full_stream_refused_is_refused_again() {
    let gateway = Gateway::with(MqttConfig::default(), &[route(&["#"], "small", "{client_id}")], &[]).await;
    let name = crate::record::StreamName::new("small").unwrap();
    let max_bytes = Some(ByteSize(64 << 10));
    let settings = StreamSettings { shards: 1, max_bytes, on_full: OnFull::Reject, ..StreamSettings::default() };
    gateway.log.update_stream(&name, settings).unwrap();
    let mut client = gateway.connected(5, "c5").await;
    let payload = "x".repeat(30_000);
    for id in 1..=2_000u16 {
        client.send(&publish5(1, id, "a", &[], &payload)).await;
        if client.packet().await.len() == 5 {
            break;
        }
    }
    for _ in 0..3 {
        client.send(&publish5(2, 7, "a", &[], &payload)).await;
        client.expect(&[0x50, 3, 0, 7, 0x97]).await;
    }
}

// What came behind the refused message is sent again behind it: an answer now would let it overtake.
#[tokio::test]
async fn nothing_behind_a_message_that_a_full_stream_refused_is_answered_to_a_311_client() {
    let routes = [route(&["full"], "small", "{client_id}"), route(&["#"], "default", "{client_id}")];
    let gateway = Gateway::with(MqttConfig::default(), &routes, &[]).await;
    let name = crate::record::StreamName::new("small").unwrap();
    let max_bytes = Some(ByteSize(64 << 10));
    let settings = StreamSettings { shards: 1, max_bytes, on_full: OnFull::Reject, ..StreamSettings::default() };
    gateway.log.update_stream(&name, settings).unwrap();
    let mut filling = gateway.connected(5, "c5").await;
    for id in 1..=2_000u16 {
        filling.send(&publish5(1, id, "full", &[], &"x".repeat(30_000))).await;
        if filling.packet().await.len() == 5 {
            break;
        }
    }
    for round in 0..5 {
        let mut old = gateway.connected(4, &format!("c{round}")).await;
        let mut burst = publish(1, 1, "full", "x");
        (2..=90u16).for_each(|id| burst.extend(publish(1, id, "a", &"x".repeat(200))));
        // Part of it may meet a closed door.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut old.socket, &burst).await;
        old.expect_end().await;
    }
}

#[tokio::test]
async fn qos_0_gives_way_while_connections_wait_for_the_log() {
    let gateway = Gateway::start().await;
    let mut client = gateway.connected(4, "c1").await;
    let shared = gateway.mqtt.as_ref().unwrap().shared.clone();
    let behind = shared.mark_behind();
    client.send(&publish(0, 0, "a", "dropped")).await;
    client.send(&publish(1, 1, "a", "one")).await;
    client.expect(&[0x40, 2, 0, 1]).await;
    drop(behind);
    client.send(&publish(0, 0, "a", "kept")).await;
    client.send(&publish(1, 2, "a", "two")).await;
    client.expect(&[0x40, 2, 0, 2]).await;
    assert_eq!(gateway.payloads("default"), ["one", "kept", "two"]);
    assert_eq!(gateway.rejects("qos0_overload"), 1);
}
