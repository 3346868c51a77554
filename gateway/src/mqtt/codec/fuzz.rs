//! Hundreds of thousands of mutated packets from one seed: none may panic, and what is accepted keeps the promises of the
//! module's types. `session/tests.rs` does the same with whole conversations.

use super::*;
use crate::mqtt::topic::is_topic_filter;

const ROUNDS: usize = 400_000;
const MAX: usize = 1 << 20;

/// One good packet of each kind and version, many properties among them.
pub(in crate::mqtt) fn good_packets() -> Vec<Vec<u8>> {
    let bodies: [(u8, &[u8]); 22] = [
        (0x10, b"\0\x04MQTT\x04\xc6\0\x0a\0\x01c\0\x01t\0\x01m\0\x01u\0\x01p"),
        (0x10, b"\0\x04MQTT\x05\x06\0\x0a\x08\x11\0\0\0\x07\x21\0\x05\0\x01c\x05\x18\0\0\0\x01\0\x01t\0\x01m"),
        (0x10, b"\0\x04MQTT\x05\x02\0\x0a\x17\x27\0\0\x10\0\x22\0\x0a\x26\0\x01a\0\x01b\x15\0\x01x\x16\0\x01y\0\0"),
        (0x30, b"\0\x05a/b/cpayload"),
        (0x32, b"\0\x05a/b/c\0\x07payload"),
        (0x3c, b"\0\x05a/b/c\0\x07payload"),
        (0x32, b"\0\x03a/b\0\x07\x1a\x01\x01\x02\0\0\0\x09\x03\0\x01t\x08\0\x01r\x09\0\x01c\x26\0\x01a\0\x01bx"),
        (0x34, "\0\u{6}é/日\0\u{7}\0x".as_bytes()),
        (0x40, b"\0\x01"),
        (0x40, b"\0\x01\x10\x09\x1f\0\x01r\x26\0\0\0\0"),
        (0x50, b"\0\x01\x80"),
        (0x62, b"\0\x01\0\0"),
        (0x70, b"\0\x01\x92\0"),
        (0x82, b"\0\x01\0\x03a/+\x01\0\x01#\x02"),
        (0x82, b"\0\x01\x02\x0b\x05\0\x03a/+\x2d\0\x01#\x02"),
        (0x82, b"\0\x01\x07\x26\0\x01a\0\x01b\0\x0a$share/g/a\x01"),
        (0xa2, b"\0\x01\0\x03a/+\0\x01#"),
        (0xa2, b"\0\x01\0\0\x03a/+"),
        (0xc0, b""),
        (0xe0, b""),
        (0xe0, b"\x04\x05\x11\0\0\0\x09"),
        (0xf0, b"\x18\x0a\x15\0\x02md\x16\0\x02da"),
    ];
    bodies.iter().map(|(first, body)| [&[*first, body.len() as u8], *body].concat()).collect()
}

/// A few changes, most of which keep the outline whole so that they get past it.
pub(in crate::mqtt) fn mutate(random: &mut fastrand::Rng, packet: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..random.usize(1..5) {
        let at = random.usize(..packet.len());
        match random.u8(..8) {
            0 => packet[at] ^= 1 << random.u8(..8),
            1 => packet[at] = random.u8(..),
            2 => packet[at] = [0, 1, 0x7f, 0x80, 0xff][random.usize(..5)],
            3 => packet.insert(at, random.u8(..)),
            4 if packet.len() > 2 => drop(packet.remove(at)),
            5 => packet.truncate(at.max(2)),
            6 => packet.extend(std::iter::repeat_n(random.u8(..), random.usize(..300))),
            _ => {
                let other = &others[random.usize(..others.len())];
                let from = random.usize(..other.len());
                packet.splice(at.max(1).., other[from..].iter().copied());
            }
        }
        if packet.len() < 2 {
            packet.resize(2, 0);
        }
    }
    if random.u8(..8) > 0 {
        fit_length(packet);
    }
}

/// Writes the true length in the place of the first length byte.
fn fit_length(packet: &mut Vec<u8>) {
    let mut length = packet.len() - 2;
    let mut bytes = Vec::new();
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    packet.splice(1..2, bytes);
}

fn is_text(text: &str) -> bool {
    !text.contains('\0') && text.len() <= usize::from(u16::MAX)
}

/// What the rest of the gateway relies on without asking again.
fn judge(version: Version, packet: &Packet<'_>) {
    match packet {
        Packet::Connect(connect) => {
            assert!(is_text(connect.client_id) && connect.user_name.is_none_or(is_text));
            assert!(connect.properties.iter().all(|(id, _)| id != PropertyId::TopicAlias));
            assert!(connect.will.is_none_or(|will| is_topic_name(will.topic)));
        }
        Packet::Publish(publish) => {
            // Beside an alias, which the session refuses, a topic may be empty.
            let aliased = version == Version::V5 && publish.properties.number(PropertyId::TopicAlias).is_some();
            assert!(is_topic_name(publish.topic) || (publish.topic.is_empty() && aliased), "{publish:?}");
            assert_eq!(publish.id.is_some(), publish.qos > Qos::AtMostOnce);
            assert!(!(publish.duplicate && publish.qos == Qos::AtMostOnce));
            let response = publish.properties.text(PropertyId::ResponseTopic);
            assert!(response.is_none_or(is_topic_name));
        }
        Packet::Subscribe(subscribe) => {
            assert!(subscribe.filters.iter().count() > 0);
            assert!(subscribe.filters.iter().all(|filter| is_topic_filter(filter.filter)));
            assert_ne!(subscribe.properties.number(PropertyId::SubscriptionId), Some(0));
        }
        Packet::Unsubscribe(unsubscribe) => {
            assert!(unsubscribe.filters.iter().count() > 0);
            assert!(unsubscribe.filters.iter().all(|filter| is_topic_filter(filter.filter)));
        }
        Packet::PubAck(answer) | Packet::PubRec(answer) | Packet::PubRel(answer) | Packet::PubComp(answer) => {
            assert!(version == Version::V5 || answer.reason == 0);
        }
        Packet::PingReq | Packet::Disconnect { .. } | Packet::Auth { .. } => {}
    }
}

#[test]
fn good_packets_are_accepted_by_a_version_at_least() {
    for packet in good_packets() {
        let found = frame(&packet, MAX).unwrap().unwrap();
        let read = |version| decode(version, found.first, &packet[found.body..found.end]).is_ok();
        assert!(read(Version::V4) || read(Version::V5), "{packet:02x?}");
    }
}

#[test]
fn mutated_packets_by_the_hundred_thousand_never_panic_and_never_slip_through() {
    let mut random = fastrand::Rng::with_seed(0x4d51_5454);
    let good = good_packets();
    let (mut accepted, mut refused) = (0usize, 0usize);
    for _ in 0..ROUNDS {
        let mut packet = good[random.usize(..good.len())].clone();
        mutate(&mut random, &mut packet, &good);
        let outline = frame(&packet, MAX);
        let Ok(Some(found)) = outline else { continue };
        assert_eq!(frame_bytes(&packet), Some(found.end));
        assert!(found.end <= packet.len() && found.body <= found.end);
        for version in [Version::V4, Version::V5] {
            match decode(version, found.first, &packet[found.body..found.end]) {
                Ok(packet) => {
                    judge(version, &packet);
                    accepted += 1;
                }
                Err(error) => {
                    assert!(error.reason() as u8 >= 0x80);
                    refused += 1;
                }
            }
        }
    }
    // Neither everything nor nothing gets through, or this would test little.
    assert!(accepted > ROUNDS / 20 && refused > ROUNDS / 20, "{accepted} accepted, {refused} refused");
}
