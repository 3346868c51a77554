//! Last wills over a socket: when they are published, where, and that they cost no more than they may.

use super::harness::*;
use crate::mqtt::{AllowConfig, MqttConfig, RouteConfig};
use std::time::Duration;

struct Will<'a> {
    topic: &'a str,
    payload: &'a str,
    /// Of MQTT 5.
    properties: &'a [u8],
    session_expiry_s: u32,
    clean: bool,
    keep_alive_s: u8,
}

const WILL: Will<'static> =
    Will { topic: "plant/gone", payload: "lost", properties: &[], session_expiry_s: 0, clean: true, keep_alive_s: 60 };

/// CONNECT with a will at QoS 1.
fn connect_will(level: u8, id: &str, will: &Will<'_>) -> Vec<u8> {
    let flags = 0x0c | u8::from(will.clean) << 1;
    let mut body = [b"\x00\x04MQTT", &[level, flags, 0, will.keep_alive_s][..]].concat();
    if level == 5 {
        body.extend_from_slice(&[5, 0x11]);
        body.extend_from_slice(&will.session_expiry_s.to_be_bytes());
    }
    body.extend(text(id));
    if level == 5 {
        body.push(will.properties.len() as u8);
        body.extend_from_slice(will.properties);
    }
    body.extend(text(will.topic));
    body.extend(text(will.payload));
    packet(0x10, &body)
}

async fn connected(gateway: &Gateway, level: u8, id: &str, will: &Will<'_>) -> Client {
    let mut client = gateway.client().await;
    client.send(&connect_will(level, id, will)).await;
    let connack = client.packet().await;
    assert_eq!((connack[0], connack[3]), (0x20, 0), "{connack:?}");
    client
}

fn delay(seconds: u32) -> Vec<u8> {
    [&[0x18][..], &seconds.to_be_bytes()].concat()
}

async fn until_gone(gateway: &Gateway) {
    let gone = async {
        while gateway.metrics.mqtt_connections.get() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, gone).await.expect("the gateway to notice");
}

async fn until_kept(gateway: &Gateway, expected: &[&str]) {
    for _ in 0..500 {
        if gateway.payloads("default") == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}, not {expected:?}", gateway.payloads("default"));
}

// Wills were taken with the CONNECT and never published, though the SDK's `Config::will` says that they are.
#[tokio::test]
async fn the_will_of_a_client_that_is_gone_is_a_record_behind_its_own() {
    for level in [4, 5] {
        let gateway = Gateway::start().await;
        let mut listener = gateway.connected(5, "listener").await;
        listener.send(&subscribe(5, 1, "plant/#", 0)).await;
        listener.expect(&[0x90, 4, 0, 1, 0, 0]).await;
        let mut client = connected(&gateway, level, "d1", &WILL).await;
        let sent = if level == 4 { publish(1, 1, "a", "last words") } else { publish5(1, 1, "a", &[], "last words") };
        client.send(&sent).await;
        client.expect(&[0x40, 2, 0, 1]).await;
        drop(client);
        until_kept(&gateway, &["last words", "lost"]).await;
        let records = gateway.records("default");
        assert_eq!(&records[1].key[..], b"d1", "routed as a message of its own");
        assert!(listener.packet().await.ends_with(b"lost"), "and live");
        assert_eq!(gateway.metrics.mqtt_wills.get(), 1);
    }
}

#[tokio::test]
async fn a_goodbye_takes_the_will_back_and_every_other_end_does_not() {
    let gateway = Gateway::start().await;
    for (n, goodbye) in [&[0xe0, 0][..], &[0xe0, 1, 0]].into_iter().enumerate() {
        let mut client = connected(&gateway, 5, &format!("quiet-{n}"), &WILL).await;
        client.send(goodbye).await;
        client.expect_end().await;
    }
    let mut client = connected(&gateway, 4, "quiet-4", &WILL).await;
    client.send(&[0xe0, 0]).await;
    client.expect_end().await;
    until_gone(&gateway).await;
    assert_eq!(gateway.payloads("default").len(), 0);

    let will = |payload| Will { payload, ..WILL };
    let mut client = connected(&gateway, 5, "d1", &will("said so")).await;
    client.send(&[0xe0, 1, 4]).await;
    until_kept(&gateway, &["said so"]).await;
    let mut client = connected(&gateway, 5, "d1", &will("protocol error")).await;
    client.send(&packet(0xc1, &[])).await;
    until_kept(&gateway, &["said so", "protocol error"]).await;
    let silent = connected(&gateway, 5, "d1", &Will { keep_alive_s: 1, ..will("silent") }).await;
    until_kept(&gateway, &["said so", "protocol error", "silent"]).await;
    let taken = connected(&gateway, 4, "d1", &will("taken over")).await;
    // On disk before the one that takes over is let in.
    let mut client = gateway.connected(4, "d1").await;
    assert_eq!(gateway.payloads("default"), ["said so", "protocol error", "silent", "taken over"]);
    client.send(&[0xe0, 0]).await;
    client.expect_end().await;
    drop((silent, taken));
}

#[tokio::test]
async fn a_will_that_waits_is_void_when_the_session_is_taken_up_and_due_when_it_is_not() {
    let gateway = Gateway::start().await;
    let (brief, long) = (delay(2), delay(600));
    let lasting = |properties, payload| Will { properties, payload, session_expiry_s: 3_600, clean: false, ..WILL };
    drop(connected(&gateway, 5, "d1", &lasting(&brief, "void")).await);
    until_gone(&gateway).await;
    let client = connected(&gateway, 5, "d1", &lasting(&long, "afresh")).await;
    tokio::time::sleep(Duration::from_millis(2_300)).await;
    assert_eq!(gateway.payloads("default").len(), 0, "it came back in time");
    drop(client);
    until_gone(&gateway).await;
    // A clean start ends the session that was: its will stands before whatever comes now.
    let client = connected(&gateway, 5, "d1", &Will { clean: true, ..lasting(&brief, "in two seconds") }).await;
    assert_eq!(gateway.payloads("default"), ["afresh"]);
    drop(client);
    until_gone(&gateway).await;
    assert_eq!(gateway.payloads("default"), ["afresh"]);
    until_kept(&gateway, &["afresh", "in two seconds"]).await;
}

#[tokio::test]
async fn a_gateway_that_stops_publishes_the_wills_of_those_who_left_and_of_nobody_else() {
    let mut gateway = Gateway::start().await;
    let long = delay(600);
    let lasting = Will { properties: &long, payload: "left before", session_expiry_s: 3_600, ..WILL };
    drop(connected(&gateway, 5, "d1", &lasting).await);
    until_gone(&gateway).await;
    let _there = connected(&gateway, 5, "d2", &WILL).await;
    gateway.restart().await;
    assert_eq!(gateway.payloads("default"), ["left before"]);
}

#[tokio::test]
async fn a_will_that_could_not_be_published_is_refused_with_the_connect() {
    let route = RouteConfig {
        topics: vec!["plant/#".into()],
        stream: "default".into(),
        key: "{client_id}".into(),
        store: true,
    };
    let allow = AllowConfig { identity: "*".into(), publish: vec!["+/gone".into()], subscribe: vec![] };
    let gateway = Gateway::with(MqttConfig::default(), &[route], &[allow]).await;
    for (topic, v5, v4) in [("plant/x", 0x87, 5), ("other/gone", 0x90, 5), ("$headwater/d/d1/answer", 0x90, 5)] {
        for (level, expected) in [(5, v5), (4, v4)] {
            let mut client = gateway.client().await;
            client.send(&connect_will(level, "d1", &Will { topic, ..WILL })).await;
            let connack = client.packet().await;
            assert_eq!(connack[..4], [0x20, connack[1], 0, expected], "{topic} {level}");
            client.expect_end().await;
        }
    }
    drop(connected(&gateway, 5, "d1", &WILL).await);
    until_kept(&gateway, &["lost"]).await;
}

#[tokio::test]
async fn p6_long_wills_of_all_clients_have_a_bound_and_short_ones_are_always_taken() {
    let gateway = Gateway::start().await;
    let long = "x".repeat(63 << 10);
    let (mut there, mut refused) = (Vec::new(), 0);
    for n in 0..140 {
        let mut client = gateway.client().await;
        client.send(&connect_will(5, &format!("d{n}"), &Will { payload: &long, ..WILL })).await;
        match client.packet().await[3] {
            0 => there.push(client),
            0x97 => refused += 1,
            other => panic!("{other:#x}"),
        }
    }
    assert!(there.len() * (63 << 10) <= 8 << 20 && refused > 0, "{} taken, {refused} refused", there.len());
    let mut client = connected(&gateway, 5, "small", &WILL).await;
    client.send(&[0xe0, 0]).await;
    client.expect_end().await;
    // A goodbye gives the room back.
    let mut one = there.pop().unwrap();
    one.send(&[0xe0, 0]).await;
    one.expect_end().await;
    let mut client = gateway.client().await;
    for _ in 0..100 {
        client.send(&connect_will(5, "again", &Will { payload: &long, ..WILL })).await;
        if client.packet().await[3] == 0 {
            return;
        }
        client = gateway.client().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the room of a will that was taken back stays taken");
}
