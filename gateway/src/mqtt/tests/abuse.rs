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
    let mut fourth = gateway.client().await;
    fourth.expect_end().await;
    first.send(&publish(1, 1, "a", "x")).await;
    first.expect(&[0x40, 2, 0, 1]).await;
    drop(first);
    for _ in 0..100 {
        let mut client = gateway.client().await;
        client.send(&connect(4, true, "d")).await;
        if client.try_packet().await.is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the place of a connection that left is free again");
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
