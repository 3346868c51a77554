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

/// A record that is larger than a client takes is as if it had been sent [MQTT-3.1.2-25]: it holds no place in the window.
#[tokio::test]
async fn a_message_over_the_clients_maximum_packet_size_is_left_out_and_the_next_comes() {
    let gateway = Gateway::start().await;
    let mut small = gateway.client().await;
    // Receive Maximum 1, Maximum Packet Size 64.
    small.send(&connect_with(5, true, "small", b"\x21\0\x01\x27\0\0\0\x40")).await;
    assert_eq!(small.packet().await[3], 0);
    for (id, filter, qos) in [(1, "owed", 1), (2, "live", 0)] {
        small.send(&subscribe(5, id, filter, qos)).await;
        small.expect(&[0x90, 4, 0, id as u8, 0, qos]).await;
    }
    let mut publisher = gateway.connected(5, "p").await;
    let mut id = 0;
    // Of the 64 bytes two are header, six topic and one the length of no properties; an identifier takes two more.
    for (topic, qos, most) in [("owed", 1, 53), ("live", 0, 55)] {
        for size in [most + 1, most, 1_000, 3] {
            id += 1;
            publisher.send(&publish5(1, id, topic, &[], &"x".repeat(size))).await;
            publisher.expect(&[0x40, 2, 0, id as u8]).await;
        }
        for (nth, size) in [(2, most), (4, 3)] {
            let id = if qos == 1 { vec![0, nth] } else { vec![] };
            let body = [text(topic), id.clone(), vec![0], vec![b'x'; size]].concat();
            small.expect(&packet(0x30 | qos << 1, &body)).await;
            if qos == 1 {
                small.send(&packet(0x40, &id)).await;
            }
        }
    }
    assert_eq!(gateway.rejects("subscriber_too_small"), 4);
}

#[tokio::test]
async fn qos_0_messages_give_way_to_a_slow_subscriber_and_are_counted() {
    let gateway = Gateway::start().await;
    let mut slow = gateway.connected(4, "slow").await;
    slow.send(&subscribe(4, 1, "#", 0)).await;
    slow.expect(&[0x90, 3, 0, 1, 0]).await;
    let mut publisher = gateway.connected(4, "p").await;
    let payload = "x".repeat(100_000);
    let mut sent = 0u16;
    while gateway.rejects("live_overflow") < 20 {
        sent += 1;
        assert!(sent < 1_000, "nothing has given way");
        publisher.send(&publish(1, sent, "a", &payload)).await;
        publisher.expect(&packet(0x40, &sent.to_be_bytes())).await;
    }
    // Once it reads it gets what was not dropped, in order, and what comes next.
    publisher.send(&publish(1, 9_999, "last", "x")).await;
    publisher.expect(&packet(0x40, &9_999u16.to_be_bytes())).await;
    let mut got = 0;
    loop {
        let message = tokio::time::timeout(std::time::Duration::from_millis(500), slow.packet()).await;
        let Ok(message) = message else { break };
        assert_eq!(message[0], 0x30);
        got += 1;
    }
    assert_eq!(got + gateway.rejects("live_overflow"), u64::from(sent) + 1, "delivered or counted");
}

/// The bus stands off the acknowledgement path: nothing a publisher is owed waits for it.
#[tokio::test]
async fn the_death_of_the_buss_router_does_not_stop_ingest_and_listeners_hear_again() {
    let gateway = Gateway::start().await;
    let mut subscriber = gateway.connected(4, "s").await;
    subscriber.send(&subscribe(4, 1, "#", 0)).await;
    subscriber.expect(&[0x90, 3, 0, 1, 0]).await;
    let mut publisher = gateway.connected(4, "p").await;
    publisher.send(&publish(1, 1, "a", "before")).await;
    publisher.expect(&[0x40, 2, 0, 1]).await;
    subscriber.expect(&packet(0x30, &[text("a"), b"before".to_vec()].concat())).await;
    publisher.send(&publish(1, 2, crate::mqtt::bus::DEADLY_TOPIC, "x")).await;
    publisher.expect(&[0x40, 2, 0, 2]).await;
    for id in 3..500u16 {
        publisher.send(&publish(1, id, "a", "after")).await;
        publisher.expect(&packet(0x40, &id.to_be_bytes())).await;
        let heard = tokio::time::timeout(std::time::Duration::from_millis(10), subscriber.packet()).await;
        if heard.is_ok_and(|packet| packet.ends_with(b"after")) {
            assert_eq!(gateway.payloads("default").len(), usize::from(id));
            assert!(gateway.rejects("live_overflow") > 0, "what died with it is counted");
            return;
        }
    }
    panic!("nothing is heard any more");
}

#[tokio::test]
async fn subscriptions_are_counted_as_long_as_their_client_is_there() {
    let gateway = Gateway::start().await;
    let counted = || gateway.metrics.mqtt_subscriptions.get();
    let mut client = gateway.connected(4, "c1").await;
    for (id, filter) in [(1, "a"), (2, "b"), (3, "b")] {
        client.send(&subscribe(4, id, filter, 1)).await;
        client.packet().await;
    }
    assert_eq!(counted(), 2);
    drop(client);
    for _ in 0..500 {
        if counted() == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{} are left of a client that is gone", counted());
}
