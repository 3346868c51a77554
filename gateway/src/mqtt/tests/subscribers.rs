//! The way back to subscribers.

use super::harness::*;
use crate::mqtt::{MqttConfig, RouteConfig};
use crate::record::HeaderId;

#[tokio::test]
async fn a_qos_1_subscriber_gets_committed_records_in_order() {
    let gateway = Gateway::start().await;
    let mut publisher = gateway.connected(4, "p").await;
    publisher.send(&publish(1, 1, "a/b", "before")).await;
    publisher.expect(&[0x40, 2, 0, 1]).await;
    let mut subscriber = gateway.connected(4, "s").await;
    subscriber.send(&subscribe(4, 9, "a/+", 1)).await;
    subscriber.expect(&[0x90, 3, 0, 9, 1]).await;
    for n in 0..200u16 {
        publisher.send(&publish(1 + (n % 2) as u8, n + 2, "a/b", &n.to_string())).await;
        publisher.send(&publish(0, 0, "other", "x")).await;
    }
    for n in 0..200u16 {
        let id = (n % 100 + 1).to_be_bytes();
        let got = subscriber.packet().await;
        assert_eq!(got[0], 0x32);
        assert!(got.ends_with(n.to_string().as_bytes()), "{n}: {got:?}");
        let at = 2 + 2 + 3;
        // The window is 100, so identifiers are acknowledged as they come.
        subscriber.send(&packet(0x40, &got[at..at + 2])).await;
        let _ = id;
    }
    subscriber.expect_silence().await;
}

#[tokio::test]
async fn a_qos_2_subscriber_and_its_window() {
    let gateway = Gateway::start().await;
    let mut subscriber = gateway.client().await;
    subscriber.send(&connect_with(5, true, "s", b"\x21\0\x02")).await;
    assert_eq!(subscriber.packet().await[3], 0);
    subscriber.send(&packet(0x82, b"\0\x09\x02\x0b\x07\0\x01a\x02")).await;
    subscriber.expect(&[0x90, 4, 0, 9, 0, 2]).await;
    let mut publisher = gateway.connected(5, "p").await;
    for n in 1..=3u16 {
        publisher.send(&publish5(2, n, "a", &user_property("k", "v"), "x")).await;
        publisher.packet().await;
    }
    let message = |id: u8| [&[0x34, 17, 0, 1, b'a', 0, id, 9][..], b"\x26\0\x01k\0\x01v\x0b\x07x"].concat();
    let message = |id: u8| {
        let mut bytes = message(id);
        bytes[1] = (bytes.len() - 2) as u8;
        bytes
    };
    subscriber.expect(&message(1)).await;
    subscriber.expect(&message(2)).await;
    subscriber.expect_silence().await;
    subscriber.send(&packet(0x50, &[0, 1])).await;
    subscriber.expect(&[0x62, 2, 0, 1]).await;
    subscriber.expect_silence().await;
    subscriber.send(&packet(0x70, &[0, 1])).await;
    subscriber.expect(&message(3)).await;
}

/// What was published with less than the subscription's QoS comes with what it was published with, in its place.
#[tokio::test]
async fn a_subscriber_gets_no_more_than_was_published() {
    let mut gateway = Gateway::start().await;
    let mut publisher = gateway.connected(4, "p").await;
    for (n, qos) in [0, 1, 2].into_iter().enumerate() {
        publisher.send(&publish(qos, n as u16 + 1, "a", &n.to_string())).await;
    }
    publisher.expect(&[0x40, 2, 0, 2]).await;
    publisher.expect(&[0x50, 2, 0, 3]).await;
    let header = |n: usize| gateway.records("default")[n].header(HeaderId::PublishQos).cloned();
    assert_eq!([header(0), header(1), header(2)], [Some(vec![0].into()), None, Some(vec![2].into())]);
    gateway.restart().await;

    let mut subscribers = Vec::new();
    for granted in [1, 2] {
        let mut subscriber = gateway.connected(4, &format!("s{granted}")).await;
        subscriber.send(&subscribe(4, 1, "#", granted)).await;
        subscriber.expect(&[0x90, 3, 0, 1, granted]).await;
        subscribers.push(subscriber);
    }
    let mut publisher = gateway.connected(5, "p").await;
    for qos in [2, 0, 1, 0] {
        publisher.send(&publish5(qos, 1, "a", &user_property("k", "v"), &qos.to_string())).await;
        if qos > 0 {
            publisher.packet().await;
        }
    }
    for (granted, mut subscriber) in [1u8, 2].into_iter().zip(subscribers) {
        let mut id = 0;
        for published in [2u8, 0, 1, 0] {
            let qos = granted.min(published);
            id += u8::from(qos > 0);
            let id = if qos > 0 { vec![0, id] } else { vec![] };
            let body = [text("a"), id, published.to_string().into_bytes()].concat();
            subscriber.expect(&packet(0x30 | qos << 1, &body)).await;
        }
    }
}

#[tokio::test]
async fn a_qos_0_subscriber_gets_committed_messages_over_the_bus() {
    let gateway = Gateway::start().await;
    let mut subscriber = gateway.connected(5, "s").await;
    subscriber.send(&subscribe(5, 1, "#", 0)).await;
    subscriber.expect(&[0x90, 4, 0, 1, 0, 0]).await;
    let mut publisher = gateway.connected(4, "p").await;
    for (n, topic) in ["a", "é/b", "a//b"].into_iter().enumerate() {
        publisher.send(&publish(1, n as u16 + 1, topic, "x")).await;
        publisher.packet().await;
        let expected = [text(topic), vec![0], b"x".to_vec()].concat();
        subscriber.expect(&packet(0x30, &expected)).await;
    }
    subscriber.send(&packet(0xa2, b"\0\x02\0\0\x01#")).await;
    subscriber.expect(&[0xb0, 4, 0, 2, 0, 0]).await;
    publisher.send(&publish(1, 9, "a", "x")).await;
    subscriber.expect_silence().await;
}

#[tokio::test]
async fn a_live_only_route_reaches_subscribers_and_is_not_kept() {
    let live = RouteConfig { topics: vec!["live/#".into()], store: false, ..Default::default() };
    let gateway = Gateway::with(MqttConfig::default(), &[live, RouteConfig::default()], &[]).await;
    let mut subscriber = gateway.connected(4, "s").await;
    subscriber.send(&subscribe(4, 1, "#", 1)).await;
    subscriber.expect(&[0x90, 3, 0, 1, 1]).await;
    let mut publisher = gateway.connected(4, "p").await;
    publisher.send(&publish(1, 1, "live/a", "now")).await;
    publisher.expect(&[0x40, 2, 0, 1]).await;
    subscriber.expect(&packet(0x30, &[text("live/a"), b"now".to_vec()].concat())).await;
    assert!(gateway.payloads("default").is_empty());
    publisher.send(&publish(1, 2, "a", "kept")).await;
    subscriber.expect(&packet(0x32, &[text("a"), vec![0, 1], b"kept".to_vec()].concat())).await;
    subscriber.expect_silence().await;
}

#[tokio::test]
async fn no_local_keeps_a_clients_own_messages_away_at_qos_0() {
    let gateway = Gateway::start().await;
    let mut client = gateway.connected(5, "c").await;
    client.send(&subscribe(5, 1, "a", 4)).await;
    client.expect(&[0x90, 4, 0, 1, 0, 0]).await;
    client.send(&publish5(1, 1, "a", &[], "own")).await;
    client.expect(&[0x40, 2, 0, 1]).await;
    let mut other = gateway.connected(5, "o").await;
    other.send(&publish5(1, 1, "a", &[], "other")).await;
    client.expect(&packet(0x30, &[text("a"), vec![0], b"other".to_vec()].concat())).await;
}

#[tokio::test]
async fn a_subscriber_that_never_reads_does_not_hold_up_anyone() {
    let gateway = Gateway::start().await;
    let mut deaf = gateway.connected(4, "deaf").await;
    deaf.send(&subscribe(4, 1, "#", 1)).await;
    deaf.expect(&[0x90, 3, 0, 1, 1]).await;
    let mut subscriber = gateway.connected(4, "s").await;
    subscriber.send(&subscribe(4, 1, "#", 0)).await;
    subscriber.expect(&[0x90, 3, 0, 1, 0]).await;
    let mut publisher = gateway.connected(4, "p").await;
    let payload = "x".repeat(10_000);
    for n in 1..=1_000u16 {
        publisher.send(&publish(1, n, "a", &payload)).await;
        publisher.expect(&packet(0x40, &n.to_be_bytes())).await;
        assert_eq!(subscriber.packet().await[0], 0x30);
    }
}
