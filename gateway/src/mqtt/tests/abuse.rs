//! P8: bad input costs its sender alone.

use super::harness::*;
use crate::mqtt::MqttConfig;
use crate::units::Span;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

#[tokio::test]
async fn a_stranger_that_says_nothing_is_let_go() {
    let config = MqttConfig { connect_within: Span::ms(200), ..Default::default() };
    let gateway = Gateway::with(config, &[], &[]).await;
    let mut silent = gateway.client().await;
    let mut slow = gateway.client().await;
    slow.send(&connect(4, true, "slow")[..5]).await;
    let mut wrong = gateway.client().await;
    wrong.send(b"GET / HTTP/1.1\r\n\r\n").await;
    wrong.expect_end().await;
    silent.expect_end().await;
    slow.expect_end().await;
    assert_eq!(gateway.rejects("connect_late"), 2);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_the_rest_live_on() {
    let gateway = Gateway::with(MqttConfig { connections_max: 3, ..Default::default() }, &[], &[]).await;
    let mut first = gateway.connected(4, "a").await;
    let _others = (gateway.connected(4, "b").await, gateway.connected(4, "c").await);
    for (level, connack) in [(4, &[0x20, 2, 0, 3][..]), (5, &[0x20, 3, 0, 0x89, 0])] {
        let mut fourth = gateway.client().await;
        fourth.send(&connect(level, true, "d")).await;
        fourth.expect(connack).await;
        fourth.expect_end().await;
    }
    let mut mute = gateway.client().await;
    mute.expect_end().await;
    assert_eq!(gateway.rejects("connections_max"), 3);
    first.send(&publish(1, 1, "a", "x")).await;
    first.expect(&[0x40, 2, 0, 1]).await;
    drop(first);
    for _ in 0..100 {
        let mut client = gateway.client().await;
        client.send(&connect(4, true, "d")).await;
        if client.packet().await[3] == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the place of a connection that left is free again");
}

/// Loopback has more addresses than one, so a neighbour is at hand.
async fn from(address: &str, gateway: &Gateway) -> Client {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
    Client { socket: socket.connect(gateway.addr()).await.unwrap(), bytes: Vec::new() }
}

#[tokio::test]
async fn one_address_cannot_take_the_places_of_all_others() {
    let config = MqttConfig { connections_max: 4, connections_per_address_max: 3, ..Default::default() };
    let gateway = Gateway::with(config, &[], &[]).await;
    let (first, mut second) = (gateway.connected(5, "a").await, gateway.connected(4, "b").await);
    // One that has not said CONNECT holds a place too.
    let _silent = gateway.client().await;
    for (level, connack) in [(4, &[0x20, 2, 0, 3][..]), (5, &[0x20, 3, 0, 0x97, 0])] {
        let mut refused = gateway.client().await;
        refused.send(&connect(level, true, "c")).await;
        refused.expect(connack).await;
        refused.expect_end().await;
    }
    assert_eq!(gateway.rejects("connections_per_address_max"), 2);
    let mut neighbour = from("127.0.0.2", &gateway).await;
    neighbour.send(&connect(5, true, "n")).await;
    assert_eq!(neighbour.packet().await[3], 0, "another address has its place");
    second.send(&publish(1, 1, "a", "x")).await;
    second.expect(&[0x40, 2, 0, 1]).await;
    drop(first);
    for _ in 0..100 {
        let mut client = gateway.client().await;
        client.send(&connect(4, true, "d")).await;
        if client.packet().await[3] == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the place of a connection that left is free again");
}

#[tokio::test]
async fn a_crowd_that_finds_no_place_is_not_told_one_by_one() {
    let config = MqttConfig { connections_per_address_max: 1, ..Default::default() };
    let gateway = Gateway::with(config, &[], &[]).await;
    let mut first = gateway.connected(5, "a").await;
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(gateway.client().await);
    }
    gateway.until_rejects("connections_per_address_max", 200).await;
    // Nobody of them says anything: those beyond the bound are closed at once, the rest within a moment.
    let mut closed = 0;
    for client in &mut crowd {
        let mut byte = [0];
        let read = tokio::time::timeout(
            Duration::from_millis(1),
            tokio::io::AsyncReadExt::read(&mut client.socket, &mut byte),
        );
        closed += usize::from(matches!(read.await, Ok(Ok(0) | Err(_))));
    }
    assert!(closed >= 100, "{closed}");
    for mut client in crowd {
        client.expect_end().await;
    }
    first.send(&publish5(1, 1, "a", &[], "x")).await;
    first.expect(&[0x40, 2, 0, 1]).await;
}

#[tokio::test]
async fn a_client_silent_for_one_and_a_half_keep_alives_is_let_go() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client().await;
    let mut hello = connect(5, true, "c");
    hello[11] = 1;
    client.send(&hello).await;
    assert_eq!(client.packet().await[3], 0);
    let begun = Instant::now();
    // Bytes that never become a packet do not count as life.
    client.send(&[0x30, 100, 0]).await;
    client.expect(&[0xe0, 2, 0x8d, 0]).await;
    assert!(begun.elapsed() >= Duration::from_millis(1_400), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_never_reads_its_answers_is_let_go() {
    let config = MqttConfig { write_within: Span::ms(500), ..Default::default() };
    let gateway = Gateway::with(config, &[], &[]).await;
    let mut client = gateway.connected(4, "deaf").await;
    let pings = packet(0xc0, b"").repeat(100_000);
    let flood = async { while client.socket.write_all(&pings).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), flood).await.expect("it is closed at some point");
    gateway.until_rejects("never_reads", 1).await;
}

#[tokio::test]
async fn noise_after_connect_never_stops_the_gateway() {
    let gateway = Gateway::start().await;
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..200 {
        let mut client = gateway.connected(if round % 2 == 0 { 4 } else { 5 }, "noise").await;
        let noise: Vec<u8> = (0..random.usize(1..200)).map(|_| random.u8(..)).collect();
        let _ = client.socket.write_all(&noise).await;
        let _ = client.socket.shutdown().await;
        while client.try_packet().await.is_some() {}
    }
    let mut client = gateway.connected(4, "c").await;
    client.send(&publish(1, 1, "after/noise", "x")).await;
    client.expect(&[0x40, 2, 0, 1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connects_do_not_stop_a_publisher() {
    let gateway = Gateway::start().await;
    let mut client = gateway.connected(4, "c").await;
    let addr = gateway.addr();
    let storm = tokio::spawn(async move {
        let mut held = Vec::new();
        for n in 0..1_000 {
            let Ok(mut socket) = TcpStream::connect(addr).await else { continue };
            if n % 2 == 0 {
                let _ = socket.write_all(&connect(4, true, &format!("s{n}"))).await;
            }
            held.push(socket);
        }
        held
    });
    for id in 1..=300u16 {
        client.send(&publish(1, id, "a", "x")).await;
        client.expect(&packet(0x40, &id.to_be_bytes())).await;
    }
    drop(storm.await);
}

/// 3.1.1 cannot be told: it is closed behind the acknowledgements of what came before, and nothing of the packet is read.
#[tokio::test]
async fn a_publish_over_the_maximum_packet_size_is_refused_by_its_length_alone() {
    let config = MqttConfig { packet_size_max: crate::units::ByteSize(2_048), ..Default::default() };
    let gateway = Gateway::with(config, &[], &[]).await;
    for (level, told) in [(4, None), (5, Some(vec![0xe0, 2, 0x95, 0]))] {
        let mut client = gateway.connected(level, "large").await;
        let properties = if level == 5 { vec![0] } else { vec![] };
        let of = |id: u8, bytes: usize| {
            // One byte of type, two of length, three of topic, two of identifier.
            let payload = vec![b'x'; bytes - 8 - properties.len()];
            packet(0x32, &[&text("a")[..], &[0, id], &properties, &payload].concat())
        };
        let (fits, over) = (of(1, 2_048), of(2, 2_049));
        assert_eq!((fits.len(), over.len()), (2_048, 2_049));
        client.send(&[&fits[..], &over[..3]].concat()).await;
        client.expect(&[0x40, 2, 0, 1]).await;
        if let Some(told) = told {
            client.expect(&told).await;
        }
        client.expect_end().await;
    }
    assert_eq!(gateway.rejects("too_large"), 2);
    assert_eq!(gateway.records("default").len(), 2);
}
