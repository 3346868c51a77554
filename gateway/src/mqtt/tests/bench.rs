//! What a PUBLISH costs on the hot path, without socket and disk: `cargo test --release mqtt::tests::bench -- --nocapture`.

use super::harness::*;
use crate::log::Batch;
use crate::mqtt::access::{Access, Who};
use crate::mqtt::acks::Acks;
use crate::mqtt::bus::Bus;
use crate::mqtt::codec::{Version, decode, frame};
use crate::mqtt::inlet::{Around, Inlet};
use crate::mqtt::route::Routes;
use crate::mqtt::session::{Action, Limits, Session, accept};
use std::time::Instant;

/// Messages in one read, as a busy connection sees them.
const PER_READ: usize = 500;

/// Not a pass or fail: it prints. The rounds are few so that it costs the test run nothing.
#[tokio::test]
async fn what_a_publish_costs_from_bytes_to_batch_and_back_to_puback() {
    let rounds = if cfg!(debug_assertions) { 20 } else { 4_000 };
    let gateway = Gateway::start().await;
    for (version, name) in [(Version::V4, "3.1.1"), (Version::V5, "5")] {
        let payload = "x".repeat(100);
        let one = |n: usize| match version {
            Version::V4 => publish(1, n as u16 + 1, "site/1/dev/17/t", &payload),
            Version::V5 => publish5(1, n as u16 + 1, "site/1/dev/17/t", &[], &payload),
        };
        let input: Vec<u8> = (0..PER_READ).flat_map(one).collect();
        let ns = run(&gateway, version, &input, rounds);
        println!("MQTT {name}: {ns:.0} ns a PUBLISH of 100 bytes, from read buffer to batch to PUBACK");
    }
}

fn run(gateway: &Gateway, version: Version, input: &[u8], rounds: usize) -> f64 {
    let level = if version == Version::V4 { 4 } else { 5 };
    let hello = connect(level, true, "bench");
    let found = frame(&hello, 1000).unwrap().unwrap();
    let crate::mqtt::codec::Packet::Connect(connect) = decode(version, found.first, &hello[found.body..]).unwrap()
    else {
        panic!()
    };
    let limits = Limits {
        receive_maximum: 1_024,
        packet_bytes_max: 1 << 20,
        keep_alive_max_s: 60,
        subscriptions_max: 1,
        session_expiry_max_s: 0,
    };
    let accepted = accept(&connect, &limits, String::new).unwrap();
    let mut session = Session::new(&accepted, &limits, &[], 0);
    let mut inlet = Inlet::new(Who { identity: None, client_id: "bench".into() }, 1);
    let (routes, access, bus) =
        (Routes::new(&[]).unwrap(), Access::default(), Bus::new(gateway.metrics.clone(), Default::default()));
    let devices = crate::mqtt::Devices::new(gateway.log.clone(), crate::clock::Clock::system());
    let unpacked = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let around = Around {
        routes: &routes,
        access: &access,
        log: &gateway.log,
        bus: &bus,
        devices: &devices,
        chunks: None,
        unpacked: &unpacked,
    };
    let placements = vec![crate::log::Placement::Stored { shard: 0, number: 1 }; PER_READ];
    let (mut acks, mut out) = (Acks::<u64>::default(), Vec::new());
    let begun = Instant::now();
    for round in 0..rounds {
        let mut at = 0;
        while let Some(found) = frame(&input[at..], 1 << 20).unwrap() {
            let packet = decode(version, found.first, &input[at + found.body..at + found.end]).unwrap();
            if let Action::Store(publish) = session.handle(packet, 0).unwrap() {
                inlet.take(&publish, around).unwrap();
            }
            at += found.end;
        }
        acks.hold(version, Some(round as u64), &inlet.items, &placements, Vec::new());
        inlet.items.clear();
        inlet.batch = Batch::new();
        session.inbound.answered(acks.release(Some(round as u64), &mut out).answered);
        assert_eq!(out.len(), PER_READ * 4);
        out.clear();
    }
    begun.elapsed().as_nanos() as f64 / (rounds * PER_READ) as f64
}
