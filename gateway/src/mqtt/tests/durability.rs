//! What an answer promises: on disk, in order, once.

use super::harness::*;
use crate::mqtt::MqttConfig;

#[tokio::test]
async fn p1_every_acknowledged_message_is_there_after_a_restart() {
    let mut gateway = Gateway::start().await;
    let mut client = gateway.connected(4, "c1").await;
    let burst: Vec<u8> = (1..=500u16).flat_map(|id| publish(1, id, "a", &id.to_string())).collect();
    client.send(&burst).await;
    for id in 1..=500u16 {
        client.expect(&packet(0x40, &id.to_be_bytes())).await;
    }
    gateway.restart().await;
    let expected: Vec<_> = (1..=500).map(|id| id.to_string()).collect();
    assert_eq!(gateway.payloads("default"), expected);
}

#[tokio::test]
async fn p2_answers_and_records_keep_the_order_of_the_packets() {
    let gateway = Gateway::start().await;
    let mut client = gateway.connected(5, "c1").await;
    let mut sent = Vec::new();
    for id in 1..=300u16 {
        let qos = (id % 3) as u8;
        sent.push((qos, id));
        client.send(&publish5(qos, id, "a", &[], &id.to_string())).await;
    }
    for (qos, id) in sent.into_iter().filter(|(qos, _)| *qos > 0) {
        client.expect(&packet(if qos == 1 { 0x40 } else { 0x50 }, &id.to_be_bytes())).await;
    }
    let expected: Vec<_> = (1..=300).map(|id| id.to_string()).collect();
    assert_eq!(gateway.payloads("default"), expected);
}

#[tokio::test]
async fn p3_a_numbered_record_is_stored_once_and_its_duplicate_acknowledged() {
    let mut gateway = Gateway::start().await;
    for round in 0..3u16 {
        let mut client = gateway.connected(5, "c1").await;
        for n in 1..=3u16 {
            let number = user_property(crate::mqtt::NUMBER_PROPERTY, &format!("4/{n}"));
            client.send(&publish5(1, n, "a", &number, &n.to_string())).await;
            client.expect(&packet(0x40, &n.to_be_bytes())).await;
        }
        if round == 1 {
            gateway.restart().await;
        }
    }
    assert_eq!(gateway.payloads("default"), ["1", "2", "3"]);
    assert_eq!(gateway.records("default")[0].producer.map(|p| (p.epoch, p.sequence)), Some((4, 1)));
    let mut client = gateway.connected(5, "c1").await;
    let nonsense = user_property(crate::mqtt::NUMBER_PROPERTY, "four");
    client.send(&publish5(1, 9, "a", &nonsense, "x")).await;
    client.expect(&[0x40, 3, 0, 9, 0x83]).await;
}

#[tokio::test]
async fn qos_2_identifiers_outlive_a_restart_so_a_retransmission_is_stored_once() {
    for level in [4, 5] {
        let mut gateway = Gateway::start().await;
        let hello = connect_with(level, false, "c1", b"\x11\0\0\x0e\x10");
        let message = |duplicate: bool, id: u16, payload: &str| {
            let mut bytes = if level == 4 { publish(2, id, "a", payload) } else { publish5(2, id, "a", &[], payload) };
            bytes[0] |= u8::from(duplicate) << 3;
            bytes
        };
        let mut client = gateway.client().await;
        client.send(&hello).await;
        assert_eq!(client.packet().await[2..4], [0, 0], "no session yet");
        client.send(&message(false, 1, "one")).await;
        client.expect(&[0x50, 2, 0, 1]).await;
        client.send(&message(false, 2, "two")).await;
        client.expect(&[0x50, 2, 0, 2]).await;
        drop(client);
        gateway.restart().await;

        let mut client = gateway.client().await;
        client.send(&hello).await;
        assert_eq!(client.packet().await[2..4], [1, 0], "the session is there");
        client.send(&message(true, 1, "one")).await;
        client.expect(&[0x50, 2, 0, 1]).await;
        client.send(&packet(0x62, &[0, 1])).await;
        client.expect(&[0x70, 2, 0, 1]).await;
        // The same identifier after its release is a message of its own; so is one whose client has forgotten.
        client.send(&message(false, 1, "three")).await;
        client.expect(&[0x50, 2, 0, 1]).await;
        client.send(&message(false, 2, "four")).await;
        client.expect(&[0x50, 2, 0, 2]).await;
        let mut stored = gateway.payloads("default");
        stored.sort();
        assert_eq!(stored, ["four", "one", "three", "two"]);

        // A clean start forgets them.
        let mut client = gateway.connected(level, "c1").await;
        client.send(&message(true, 1, "five")).await;
        client.expect(&[0x50, 2, 0, 1]).await;
        assert_eq!(gateway.payloads("default").len(), 5);
    }
}

#[tokio::test]
async fn a_session_that_is_taken_over_is_committed_before_the_new_connack() {
    let gateway = Gateway::start().await;
    for round in 0..20u16 {
        let mut first = gateway.connected(5, "c1").await;
        let burst: Vec<u8> =
            (1..=100u16).flat_map(|id| publish5(1, id, "a", &[], &format!("{round}/old/{id}"))).collect();
        first.send(&burst).await;
        first.packet().await;
        let mut second = gateway.connected(5, "c1").await;
        second.send(&publish5(1, 1, "a", &[], &format!("{round}/new"))).await;
        second.expect(&[0x40, 2, 0, 1]).await;
        // The first is answered for what it sent, then told.
        let mut last = Vec::new();
        while let Some(packet) = first.try_packet().await {
            last = packet;
        }
        assert_eq!(last, [0xe0, 2, 0x8e, 0]);
        let stored = gateway.payloads("default");
        assert_eq!(stored.last(), Some(&format!("{round}/new")));
    }
}

#[tokio::test]
async fn stopping_answers_what_is_on_its_way_and_says_goodbye() {
    let mut gateway = Gateway::with(MqttConfig::default(), &[], &[]).await;
    let mut client = gateway.connected(5, "c1").await;
    let burst: Vec<u8> = (1..=200u16).flat_map(|id| publish5(1, id, "a", &[], "x")).collect();
    client.send(&burst).await;
    client.packet().await;
    gateway.mqtt.take().unwrap().stop(SOON).await;
    let mut answered = 1;
    let mut last = Vec::new();
    while let Some(packet) = client.try_packet().await {
        answered += usize::from(packet[0] == 0x40);
        last = packet;
    }
    assert_eq!(last, [0xe0, 2, 0x8b, 0]);
    assert_eq!(gateway.payloads("default").len(), answered);
}

// Another user's unfinished messages under this client id would answer for this one's, and so would those of last year.
#[tokio::test]
async fn a_session_of_another_identity_or_of_long_ago_is_not_taken_up() {
    use crate::log::{Batch, Table};
    use crate::mqtt::session::{Kept, kept::KEPT_MS};
    let gateway = Gateway::start().await;
    let now_ms = crate::clock::Clock::system().now().wall_ms;
    let nobody = xxhash_rust::xxh3::xxh3_64(b"");
    let ids = vec![crate::mqtt::codec::PacketId::new(1).unwrap()];
    let ours = Kept { subscribed: false, owner: nobody, changed_ms: now_ms, ids };
    let foreign = Kept { owner: nobody + 1, ..ours.clone() };
    let stale = Kept { changed_ms: now_ms - KEPT_MS - 60_000, ..ours.clone() };
    for (kept, present, stays) in [(&ours, 1, true), (&foreign, 0, true), (&stale, 0, false)] {
        let mut batch = Batch::new();
        batch.put_state(Table::Sessions, b"c1".to_vec(), Some(kept.encode()));
        gateway.log.appender().commit(&mut batch).await.unwrap();
        let mut client = gateway.client().await;
        client.send(&connect_with(5, false, "c1", b"\x11\0\0\x0e\x10")).await;
        assert_eq!(client.packet().await[2..4], [present, 0], "{kept:?}");
        assert_eq!(gateway.log.state(Table::Sessions, b"c1").is_some(), stays, "{kept:?}");
        let stored = gateway.payloads("default").len();
        let mut again = publish5(2, 1, "a", &[], "x");
        again[0] |= 8;
        client.send(&again).await;
        client.expect(&[0x50, 2, 0, 1]).await;
        assert_eq!(gateway.payloads("default").len() - stored, 1 - usize::from(present), "{kept:?}");
        drop(client);
    }
}

// After a crash its retransmission would be acknowledged and stored nowhere.
#[tokio::test]
async fn p1_the_identifier_of_a_message_that_a_full_stream_refused_is_not_kept() {
    use crate::log::{OnFull, StreamSettings, Table};
    let gateway = Gateway::start().await;
    let name = crate::record::StreamName::new("default").unwrap();
    let max_bytes = Some(crate::units::ByteSize(64 << 10));
    let settings = StreamSettings { shards: 1, max_bytes, on_full: OnFull::Reject, ..StreamSettings::default() };
    gateway.log.update_stream(&name, settings).unwrap();
    let mut client = gateway.client().await;
    client.send(&connect_with(5, false, "c5", b"\x11\0\0\x0e\x10")).await;
    client.packet().await;
    let payload = "x".repeat(30_000);
    for id in 1..=2_000u16 {
        client.send(&publish5(1, id, "a", &[], &payload)).await;
        if client.packet().await.len() == 5 {
            break;
        }
    }
    client.send(&publish5(2, 7, "a", &[], &payload)).await;
    client.expect(&[0x50, 3, 0, 7, 0x97]).await;
    assert_eq!(gateway.log.state(Table::Sessions, b"c5"), None);
}
