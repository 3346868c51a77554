//! The codec against packets written by hand, against noise, and against `rumqttc`'s codec as an oracle.

use super::*;
use bytes::BytesMut;
use proptest::prelude::*;
use rumqttc::mqttbytes::v4 as oracle4;
use rumqttc::v5::mqttbytes::v5 as oracle5;

const MAX: usize = 1 << 20;

/// Decodes one whole packet, as the connection does.
fn one(version: Version, bytes: &[u8]) -> Result<Packet<'_>, DecodeError> {
    let frame = frame(bytes, MAX)?.expect("a whole packet");
    assert_eq!(frame.end, bytes.len());
    decode(version, frame.first, &bytes[frame.body..frame.end])
}

fn reason(version: Version, bytes: &[u8]) -> Reason {
    match frame(bytes, MAX) {
        Err(error) => error.reason(),
        Ok(_) => one(version, bytes).expect_err("it must be refused").reason(),
    }
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first, body.len() as u8];
    assert!(body.len() < 128);
    bytes.extend_from_slice(body);
    bytes
}

fn connect(level: u8, flags: u8, rest: &[u8]) -> Vec<u8> {
    packet(0x10, &[b"\x00\x04MQTT", &[level, flags, 0, 60][..], rest].concat())
}

#[test]
fn what_library_codecs_wrongly_accept_is_refused_with_its_reason() {
    use Reason::*;
    use Version::*;
    let cases: &[(&str, Version, Vec<u8>, Reason)] = &[
        ("flags of SUBSCRIBE", V4, packet(0x80, b"\0\x01\0\x01a\0"), MalformedPacket),
        ("flags of SUBSCRIBE", V5, packet(0x83, b"\0\x01\0\0\x01a\0"), MalformedPacket),
        ("flags of PUBREL", V4, packet(0x60, b"\0\x01"), MalformedPacket),
        ("flags of PUBREL", V5, packet(0x6f, b"\0\x01"), MalformedPacket),
        ("flags of PINGREQ", V5, packet(0xc1, b""), MalformedPacket),
        ("reserved flag of CONNECT", V4, connect(4, 3, b"\0\x01c"), MalformedPacket),
        ("reserved flag of CONNECT", V5, connect(5, 3, b"\0\0\x01c"), MalformedPacket),
        ("bytes behind PINGREQ", V4, packet(0xc0, b"x"), MalformedPacket),
        ("bytes behind PUBACK", V4, packet(0x40, b"\0\x01\0"), MalformedPacket),
        ("bytes behind CONNECT", V4, connect(4, 2, b"\0\x01cx"), MalformedPacket),
        ("bytes behind DISCONNECT", V5, packet(0xe0, b"\0\0x"), MalformedPacket),
        ("empty SUBSCRIBE", V4, packet(0x82, b"\0\x01"), ProtocolError),
        ("empty UNSUBSCRIBE", V4, packet(0xa2, b"\0\x01"), ProtocolError),
        ("empty UNSUBSCRIBE", V5, packet(0xa2, b"\0\x01\0"), ProtocolError),
        ("a property twice", V5, packet(0x30, b"\0\x01a\x04\x01\0\x01\0x"), ProtocolError),
        ("wildcard in PUBLISH", V4, packet(0x30, b"\0\x03a/+x"), TopicNameInvalid),
        ("wildcard in PUBLISH", V5, packet(0x30, b"\0\x01#\0x"), TopicNameInvalid),
        ("empty topic", V4, packet(0x30, b"\0\0x"), ProtocolError),
        ("empty topic without an alias", V5, packet(0x30, b"\0\0\0x"), ProtocolError),
        ("a#/b", V4, packet(0x82, b"\0\x01\0\x04a#/b\0"), TopicFilterInvalid),
        ("#/b", V5, packet(0x82, b"\0\x01\0\0\x03#/b\0"), TopicFilterInvalid),
        ("a+", V5, packet(0xa2, b"\0\x01\0\0\x02a+"), TopicFilterInvalid),
        ("CONNACK from a client", V4, packet(0x20, b"\0\0"), ProtocolError),
        ("CONNACK from a client", V5, packet(0x20, b"\0\0\0"), ProtocolError),
        ("UNSUBACK from a client", V5, packet(0xb0, b"\0\x01\0\0"), ProtocolError),
        ("packet id 0", V4, packet(0x32, b"\0\x01a\0\0x"), ProtocolError),
        ("packet id 0", V5, packet(0x40, b"\0\0"), ProtocolError),
        ("a subscription id from a client", V5, packet(0x30, b"\0\x01a\x02\x0b\x01x"), ProtocolError),
        ("QoS 3", V4, packet(0x36, b"\0\x01a\0\x01x"), MalformedPacket),
        ("DUP at QoS 0", V4, packet(0x38, b"\0\x01ax"), MalformedPacket),
        ("QoS 3 in SUBSCRIBE", V4, packet(0x82, b"\0\x01\0\x01a\x03"), MalformedPacket),
        ("reserved bits in SUBSCRIBE", V4, packet(0x82, b"\0\x01\0\x01a\x04"), MalformedPacket),
        ("retain handling 3", V5, packet(0x82, b"\0\x01\0\0\x01a\x30"), ProtocolError),
        ("No Local on a shared one", V5, packet(0x82, b"\0\x01\0\0\x0a$share/g/a\x05"), ProtocolError),
        ("a topic that is not UTF-8", V4, packet(0x30, b"\0\x02\xff\xfex"), MalformedPacket),
        ("a topic with U+0000", V4, packet(0x30, b"\0\x01\0x"), MalformedPacket),
        ("a will QoS without a will", V4, connect(4, 0x0a, b"\0\x01c"), MalformedPacket),
        ("a password without a user", V4, connect(4, 0x42, b"\0\x01c\0\x01p"), MalformedPacket),
        ("a will to a filter", V4, connect(4, 0x06, b"\0\x01c\0\x01#\0\0"), TopicNameInvalid),
        ("receive maximum 0", V5, connect(5, 2, b"\x03\x21\0\0\0\x01c"), ProtocolError),
        ("topic alias 0", V5, packet(0x30, b"\0\x01a\x03\x23\0\0x"), TopicAliasInvalid),
        ("session expiry in PUBLISH", V5, packet(0x30, b"\0\x01a\x05\x11\0\0\0\x01x"), MalformedPacket),
        ("an unknown property", V5, packet(0x30, b"\0\x01a\x02\x7f\0x"), MalformedPacket),
        ("payload format 2", V5, packet(0x30, b"\0\x01a\x02\x01\x02x"), ProtocolError),
        ("a wildcard in a response topic", V5, packet(0x30, b"\0\x01a\x04\x08\0\x01#x"), TopicNameInvalid),
        ("a varint that is not shortest", V5, packet(0x30, b"\0\x01a\x80\0x"), MalformedPacket),
        ("AUTH in 3.1.1", V4, packet(0xf0, b""), MalformedPacket),
        ("MQTT 3.1", V4, packet(0x10, b"\0\x06MQIsdp\x03\x02\0\x3c\0\x01c"), UnsupportedProtocolVersion),
        ("MQTT 6", V4, connect(6, 2, b"\0\x01c"), UnsupportedProtocolVersion),
        ("not MQTT", V4, packet(0x10, b"\0\x04HTTP\x04\x02\0\x3c\0\x01c"), MalformedPacket),
        ("type 0", V4, packet(0x00, b""), MalformedPacket),
        ("five length bytes", V4, vec![0x30, 0xff, 0xff, 0xff, 0xff, 0x01], MalformedPacket),
        ("too large", V4, vec![0x30, 0xff, 0xff, 0xff, 0x7f], PacketTooLarge),
    ];
    for (what, version, bytes, expected) in cases {
        assert_eq!(reason(*version, bytes), *expected, "{what} in {version:?}");
    }
}

#[test]
fn what_library_codecs_wrongly_refuse_is_accepted() {
    let gone = |bytes: &[u8]| matches!(one(Version::V5, bytes), Ok(Packet::Disconnect { .. }));
    assert!(gone(&[0xe0, 0]));
    assert!(gone(&[0xe0, 1, 4]));
    assert!(gone(&[0xe0, 2, 0, 0]));
    assert!(matches!(one(Version::V5, &[0xf0, 0]), Ok(Packet::Auth { reason: 0, .. })));
    let with_password = connect(4, 0xc2, b"\0\x01c\0\x01u\0\x03\xff\0\xfe");
    let Packet::Connect(connect) = one(Version::V4, &with_password).unwrap() else { panic!() };
    assert_eq!((connect.user_name, connect.password), (Some("u"), Some(&b"\xff\0\xfe"[..])));
    let alone = self::connect(5, 0x42, b"\0\0\x01c\0\x01p");
    assert!(matches!(one(Version::V5, &alone), Ok(Packet::Connect(Connect { password: Some(b"p"), .. }))));
}

#[test]
fn a_packet_is_whole_only_when_its_last_byte_is_there() {
    let bytes = packet(0x32, b"\0\x01a\0\x07payload");
    for cut in 0..bytes.len() {
        assert_eq!(frame(&bytes[..cut], MAX), Ok(None), "{cut}");
    }
    let Packet::Publish(publish) = one(Version::V4, &bytes).unwrap() else { panic!() };
    assert_eq!((publish.topic, publish.id.map(|id| id.get()), publish.payload), ("a", Some(7), &b"payload"[..]));
}

fn publish4(topic: &str, payload: &[u8], qos: u8, id: u16) -> Vec<u8> {
    let qos = rumqttc::mqttbytes::qos(qos).unwrap();
    let mut publish = oracle4::Publish::new(topic, qos, payload);
    publish.pkid = id;
    let mut bytes = BytesMut::new();
    publish.write(&mut bytes).unwrap();
    bytes.to_vec()
}

fn publish5(topic: &str, payload: &[u8], id: u16, user: &[(String, String)]) -> Vec<u8> {
    let properties = oracle5::PublishProperties {
        content_type: Some("application/json".into()),
        correlation_data: Some(payload.to_vec().into()),
        user_properties: user.to_vec(),
        ..Default::default()
    };
    let qos = rumqttc::v5::mqttbytes::QoS::AtLeastOnce;
    let mut publish = oracle5::Publish::new(topic, qos, payload.to_vec(), Some(properties));
    publish.pkid = id;
    let mut bytes = BytesMut::new();
    publish.write(&mut bytes).unwrap();
    bytes.to_vec()
}

proptest! {
    #[test]
    fn it_reads_what_rumqttc_writes(
        topic in "[a-zé/]{1,30}",
        payload in prop::collection::vec(any::<u8>(), 0..300),
        qos in 1u8..3,
        id in 1u16..,
        user in prop::collection::vec(("[a-z]{0,8}", ".{0,8}").prop_map(|(a, b)| (a, b.replace('\0', ""))), 0..4),
    ) {
        let bytes = publish4(&topic, &payload, qos, id);
        let Packet::Publish(publish) = one(Version::V4, &bytes).unwrap() else { panic!() };
        prop_assert_eq!((publish.topic, publish.payload, publish.qos as u8), (&topic[..], &payload[..], qos));
        prop_assert_eq!(publish.id.unwrap().get(), id);

        let bytes = publish5(&topic, &payload, id, &user);
        let Packet::Publish(publish) = one(Version::V5, &bytes).unwrap() else { panic!() };
        prop_assert_eq!((publish.topic, publish.payload), (&topic[..], &payload[..]));
        let found: Vec<_> = publish.properties.iter().filter_map(|(_, value)| match value {
            Value::Pair(name, text) => Some((name.to_owned(), text.to_owned())),
            _ => None,
        }).collect();
        prop_assert_eq!(found, user);
        prop_assert_eq!(publish.properties.text(PropertyId::ContentType), Some("application/json"));
    }

    #[test]
    fn rumqttc_reads_what_it_writes(
        topic in "[a-z/]{1,30}",
        payload in prop::collection::vec(any::<u8>(), 0..300),
        id in 1u16..,
        text in "[a-zé]{0,20}",
        number in 1u32..268_435_455,
    ) {
        use crate::record::{Header, HeaderId};
        let headers = [Header::new(HeaderId::ContentType, text.clone()), Header::user("k", &text)];
        let message = write::Message {
            topic: topic.as_bytes(), payload: &payload, headers: &headers, subscription_ids: &[number],
        };
        let id = PacketId::new(id);
        let mut out = Vec::new();
        prop_assert!(publish(&mut out, Version::V5, Qos::AtLeastOnce, id, &message, MAX));
        let mut bytes = BytesMut::from(&out[..]);
        let oracle5::Packet::Publish(read) = oracle5::Packet::read(&mut bytes, Some(1 << 20)).unwrap() else { panic!() };
        prop_assert_eq!((&read.topic[..], &read.payload[..]), (topic.as_bytes(), &payload[..]));
        let properties = read.properties.unwrap();
        prop_assert_eq!(properties.subscription_identifiers, vec![number as usize]);
        prop_assert_eq!(properties.content_type.as_deref(), Some(&text[..]));
        prop_assert_eq!(properties.user_properties, vec![("k".to_owned(), text.clone())]);

        let mut out = Vec::new();
        prop_assert!(publish(&mut out, Version::V4, Qos::ExactlyOnce, id, &message, MAX));
        let mut bytes = BytesMut::from(&out[..]);
        let oracle4::Packet::Publish(read) = oracle4::Packet::read(&mut bytes, MAX).unwrap() else { panic!() };
        prop_assert_eq!((&read.topic[..], &read.payload[..]), (&topic[..], &payload[..]));
        prop_assert!(!publish(&mut out, Version::V4, Qos::ExactlyOnce, id, &message, payload.len()));
    }

    #[test]
    fn noise_is_refused_or_read_and_never_panics(noise in prop::collection::vec(any::<u8>(), 0..120)) {
        for version in [Version::V4, Version::V5] {
            if let Ok(Some(frame)) = frame(&noise, MAX) {
                let _ = walk(decode(version, frame.first, &noise[frame.body..frame.end]));
            }
            for first in 0..=255u8 {
                let _ = walk(decode(version, first, &noise));
            }
        }
    }

    #[test]
    fn mutated_packets_never_panic(
        which in 0usize..8,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = match which {
            0 => connect(4, 0xc6, b"\0\x01c\0\x01t\0\x01m\0\x01u\0\x01p"),
            1 => connect(5, 0x06, b"\x05\x11\0\0\0\x07\0\x01c\x05\x18\0\0\0\x01\0\x01t\0\x01m"),
            2 => publish4("a/b/c", b"payload", 1, 7),
            3 => publish5("a/b/c", b"payload", 7, &[("n".into(), "v".into())]),
            4 => packet(0x82, b"\0\x01\x02\x0b\x05\0\x03a/+\x01\0\x01#\x02"),
            5 => packet(0xa2, b"\0\x01\0\0\x03a/+"),
            6 => packet(0x40, b"\0\x01\x10\0"),
            _ => packet(0xe0, b"\x04\x05\x11\0\0\0\x09"),
        };
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // Cut at random, and with the length made to fit, so that most get past the outline.
        bytes.truncate(2 + cut.index(bytes.len() * 2).min(bytes.len() - 2));
        let outline = frame(&bytes, MAX);
        for version in [Version::V4, Version::V5] {
            if let Ok(Some(frame)) = outline {
                let _ = walk(decode(version, frame.first, &bytes[frame.body..frame.end]));
            }
            let _ = walk(decode(version, bytes[0], &bytes[2..]));
        }
    }

    #[test]
    fn a_publish_that_rumqttc_and_we_accept_means_the_same(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut bytes = publish4("a/b/c", b"payload", 1, 7);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let Ok(Some(found)) = frame(&bytes, MAX) else { return Ok(()) };
        if let Ok(Packet::Publish(ours)) = decode(Version::V4, found.first, &bytes[found.body..found.end]) {
            let Ok(oracle4::Packet::Publish(theirs)) = oracle4::Packet::read(&mut BytesMut::from(&bytes[..]), MAX) else {
                return Err(TestCaseError::fail("we accept what the oracle refuses"));
            };
            prop_assert_eq!(ours.topic, &theirs.topic);
            prop_assert_eq!(ours.payload, &theirs.payload[..]);
            prop_assert_eq!(ours.id.map_or(0, |id| id.get()), theirs.pkid);
        }
    }
}

/// A whole PUBLISH, as a connection puts it together.
fn publish(
    out: &mut Vec<u8>,
    version: Version,
    qos: Qos,
    id: Option<PacketId>,
    message: &write::Message<'_>,
    most: usize,
) -> bool {
    let fits = write::publish_head(out, version, qos, id, message, most);
    if fits {
        out.extend_from_slice(message.payload);
    }
    fits
}

/// Walks everything that is lazily read.
fn walk(packet: Result<Packet<'_>, DecodeError>) -> usize {
    match packet {
        Ok(Packet::Connect(connect)) => {
            connect.properties.iter().count() + connect.will.map_or(0, |will| will.properties.iter().count())
        }
        Ok(Packet::Publish(publish)) => publish.properties.iter().count(),
        Ok(Packet::Subscribe(packet)) => packet.filters.iter().count() + packet.properties.iter().count(),
        Ok(Packet::Unsubscribe(packet)) => packet.filters.iter().count(),
        Ok(Packet::Disconnect { properties, .. } | Packet::Auth { properties, .. }) => properties.iter().count(),
        _ => 0,
    }
}
