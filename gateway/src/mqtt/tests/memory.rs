//! P6: what a crowd, or one that knows how, can make the gateway hold, and who waits for it.

use super::harness::*;
use crate::mqtt::MqttConfig;
use crate::mqtt::memory::Holding;
use crate::units::Span;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

fn hold(gateway: &Gateway, bytes: usize) -> Holding {
    let mut holding = Holding::new(gateway.mqtt.as_ref().unwrap().shared.memory.clone());
    holding.set(bytes);
    holding
}

#[tokio::test]
async fn while_memory_is_tight_who_sits_on_a_large_message_is_let_go_and_who_reads_is_served() {
    let gateway = Gateway::start().await;
    let mut deaf = gateway.connected(4, "deaf").await;
    deaf.send(&subscribe(4, 1, "#", 1)).await;
    deaf.expect(&[0x90, 3, 0, 1, 1]).await;
    let mut reader = gateway.connected(4, "reader").await;
    reader.send(&subscribe(4, 1, "#", 1)).await;
    reader.expect(&[0x90, 3, 0, 1, 1]).await;
    let mut publisher = gateway.connected(4, "p").await;
    let payload = "x".repeat(1_000_000);
    let tight = hold(&gateway, 14 << 20);
    let begun = Instant::now();
    let mut sent = 0u16;
    while gateway.rejects("reads_slowly") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "the deaf one is still there");
        sent += 1;
        publisher.send(&publish(1, sent, "a", &payload)).await;
        publisher.expect(&packet(0x40, &sent.to_be_bytes())).await;
        let got = reader.packet().await;
        reader.send(&packet(0x40, &got[7..9])).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(tight);
}

#[tokio::test]
async fn while_memory_is_full_subscribers_wait_and_publishers_do_not() {
    let gateway = Gateway::start().await;
    let mut subscriber = gateway.connected(4, "s").await;
    subscriber.send(&subscribe(4, 1, "#", 1)).await;
    subscriber.expect(&[0x90, 3, 0, 1, 1]).await;
    let mut publisher = gateway.connected(4, "p").await;
    let full = hold(&gateway, 60 << 20);
    for id in 1..=3u16 {
        publisher.send(&publish(1, id, "a", &id.to_string())).await;
        publisher.expect(&packet(0x40, &id.to_be_bytes())).await;
    }
    subscriber.expect_silence().await;
    drop(full);
    for id in 1..=3u8 {
        subscriber.expect(&packet(0x32, &[&text("a")[..], &[0, id], id.to_string().as_bytes()].concat())).await;
    }
}

/// It reads all it is sent, so nothing waits to be written; what it does not acknowledge is held for it all the same.
#[tokio::test]
async fn while_memory_is_tight_who_reads_and_never_acknowledges_is_let_go() {
    let gateway = Gateway::start().await;
    let mut mute = gateway.client().await;
    mute.send(&connect_with(5, true, "mute", b"\x21\0\x01")).await;
    assert_eq!(mute.packet().await[3], 0);
    let mut reader = gateway.connected(5, "reader").await;
    for client in [&mut mute, &mut reader] {
        client.send(&subscribe(5, 1, "#", 1)).await;
        client.expect(&[0x90, 4, 0, 1, 0, 1]).await;
    }
    let mut publisher = gateway.connected(4, "p").await;
    for id in 1..=3u16 {
        publisher.send(&publish(1, id, "a", &"x".repeat(100_000))).await;
        publisher.expect(&packet(0x40, &id.to_be_bytes())).await;
        assert_eq!(reader.packet().await[0], 0x32);
        reader.send(&packet(0x40, &id.to_be_bytes())).await;
    }
    assert_eq!(mute.packet().await[0], 0x32);
    let _tight = hold(&gateway, 14 << 20);
    let begun = Instant::now();
    mute.socket.readable().await.unwrap();
    mute.expect_end().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(gateway.rejects("reads_slowly"), 1);
    publisher.send(&publish(1, 4, "a", "x")).await;
    publisher.expect(&[0x40, 2, 0, 4]).await;
    reader.expect(&packet(0x32, &[&text("a")[..], &[0, 4, 0], b"x"].concat())).await;
}

/// Many with a little each would otherwise keep everybody waiting for ever.
#[tokio::test]
async fn while_memory_is_full_even_a_little_has_to_be_taken() {
    let gateway = Gateway::start().await;
    let mut mute = gateway.client().await;
    mute.send(&connect_with(5, true, "mute", b"\x21\0\x01")).await;
    assert_eq!(mute.packet().await[3], 0);
    mute.send(&subscribe(5, 1, "#", 1)).await;
    mute.expect(&[0x90, 4, 0, 1, 0, 1]).await;
    let mut publisher = gateway.connected(4, "p").await;
    publisher.send(&publish(1, 1, "a", "x")).await;
    publisher.expect(&[0x40, 2, 0, 1]).await;
    assert_eq!(mute.packet().await[0], 0x32);
    // It has no window for what comes now, and nothing else happens on its connection.
    tokio::time::sleep(Duration::from_millis(300)).await;
    publisher.send(&publish(1, 2, "a", &"x".repeat(20_000))).await;
    publisher.expect(&[0x40, 2, 0, 2]).await;
    let mut held = hold(&gateway, 14 << 20);
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(gateway.rejects("reads_slowly"), 0, "20 KB are in nobody's way");
    held.set(60 << 20);
    gateway.until_rejects("reads_slowly", 1).await;
}

fn no_room(gateway: &Gateway) -> OwnedSemaphorePermit {
    let large = gateway.mqtt.as_ref().unwrap().shared.memory.large.clone();
    let all = large.available_permits() as u32;
    large.try_acquire_many_owned(all).unwrap()
}

#[tokio::test]
async fn a_packet_that_waits_for_room_holds_up_nothing_else_and_is_refused_in_the_end() {
    let config = MqttConfig { connect_within: Span::secs(2), ..Default::default() };
    let gateway = Gateway::with(config, &[], &[]).await;
    let large = publish5(1, 2, "a", &[], &"x".repeat(200_000));
    let begin = [&publish5(1, 1, "a", &[], "x")[..], &large[..100_000]].concat();

    let room = no_room(&gateway);
    let mut first = gateway.connected(5, "a").await;
    first.send(&begin).await;
    let begun = Instant::now();
    first.expect(&[0x40, 2, 0, 1]).await;
    // Nor is a takeover.
    let mut second = gateway.connected(5, "a").await;
    first.expect(&[0xe0, 2, 0x8e, 0]).await;
    second.send(&begin).await;
    second.expect(&[0x40, 2, 0, 1]).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    drop(room);
    second.send(&large[100_000..]).await;
    second.expect(&[0x40, 2, 0, 2]).await;

    let _room = no_room(&gateway);
    let mut third = gateway.connected(5, "c").await;
    third.send(&begin).await;
    third.expect(&[0x40, 2, 0, 1]).await;
    third.expect(&[0xe0, 2, 0x97, 0]).await;
    assert_eq!(gateway.rejects("quota"), 1);
    assert_eq!(gateway.records("default").len(), 4);
}

/// QoS 0 has no answers whose writing would wake the connection once what waits for the disk has gone.
#[tokio::test]
async fn messages_that_lie_in_the_buffer_whole_need_no_event_to_be_taken() {
    const COUNT: usize = 40_000;
    let gateway = Gateway::start().await;
    let mut listener = gateway.connected(4, "s").await;
    listener.send(&subscribe(4, 1, "#", 0)).await;
    listener.expect(&[0x90, 3, 0, 1, 0]).await;
    let drain = tokio::spawn(async move { while listener.try_packet().await.is_some() {} });
    let mut publisher = gateway.connected(4, "p").await;
    publisher.send(&publish(0, 0, "a", "x").repeat(COUNT)).await;
    let begun = Instant::now();
    loop {
        let taken = gateway.records("default").len() + gateway.rejects("qos0_overload") as usize;
        if taken == COUNT {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{taken} of {COUNT} taken");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drain.abort();
}
