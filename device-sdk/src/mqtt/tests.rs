//! What a session writes is read by rumqttc's codec, and what that writes is read by a session; any bytes, cut anywhere.

use super::*;
use bytes::BytesMut;
use proptest::prelude::*;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnAckProperties, ConnectReturnCode, Disconnect, DisconnectReasonCode, Packet, PingReq, PingResp, PubAck,
    PubAckReason, Publish, PublishProperties, SubAck, SubscribeReasonCode,
};
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

const INPUT: usize = 512;

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn bytes(packet: &Packet) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, None).expect("the oracle writes it");
    bytes.to_vec()
}

/// What the session has to write, as the oracle reads it.
fn written(session: &mut Session<'_>) -> Vec<Packet> {
    let mut bytes = BytesMut::from(session.output());
    session.wrote(bytes.len(), at(0));
    let mut packets = Vec::new();
    while !bytes.is_empty() {
        packets.push(Packet::read(&mut bytes, None).expect("the oracle reads it"));
    }
    packets
}

fn receive(session: &mut Session<'_>, bytes: &[u8]) {
    let room = session.room();
    room[..bytes.len()].copy_from_slice(bytes);
    session.received(bytes.len()).expect("bytes");
}

fn conn_ack(properties: Option<ConnAckProperties>) -> Packet {
    Packet::ConnAck(ConnAck { session_present: false, code: ConnectReturnCode::Success, properties })
}

fn connected(memory: &mut [u8]) -> Session<'_> {
    let mut session = Session::new(memory, INPUT, &Config::new("pump-7", "t"), at(0)).expect("room");
    written(&mut session);
    receive(&mut session, &bytes(&conn_ack(None)));
    assert_eq!(session.event(), Ok(Some(Event::Connected(Ok(())))));
    session
}

fn pub_ack(pkid: u16, reason: PubAckReason) -> Vec<u8> {
    bytes(&Packet::PubAck(PubAck { pkid, reason, properties: None }))
}

#[test]
fn connect_says_who_it_is_and_what_fits() {
    let mut memory = [0; 1024];
    let plain = Config::new("pump-7", "t");
    let full = Config { will: Some(("plant/gone", b"lost")), login: Some(("me", b"secret")), ..plain };
    for config in [plain, full] {
        let mut session = Session::new(&mut memory, INPUT, &config, at(0)).expect("room");
        let Some(Packet::Connect(connect, will, login)) = written(&mut session).pop() else { panic!("no CONNECT") };
        assert_eq!((connect.client_id.as_str(), connect.keep_alive, connect.clean_start), ("pump-7", 60, true));
        assert_eq!(connect.properties.expect("properties").max_packet_size, Some(INPUT as u32));
        let will = will.map(|will| (will.topic.to_vec(), will.message.to_vec(), will.qos, will.retain));
        let asked = config.will.map(|(t, p)| (t.as_bytes().to_vec(), p.to_vec(), QoS::AtLeastOnce, false));
        assert_eq!(will, asked);
        let login = login.map(|login| (login.username, login.password.into_bytes()));
        assert_eq!(login, config.login.map(|(user, password)| (user.to_string(), password.to_vec())));
    }
    let mut small = [0; INPUT + 40];
    assert!(Session::new(&mut small, INPUT, &full, at(0)).is_none(), "CONNECT does not fit");
}

/// The fault: a gateway was told 65,535 seconds at most, and asked for a sign of life only after three quarters of what the
/// firmware wanted: with 40 hours it had given the device up before.
#[test]
fn a_keep_alive_that_cannot_be_told_is_kept_as_it_is_told() {
    let mut memory = [0; 1024];
    let day = 86_400;
    for (wanted, told) in [(0, 1), (1, 1), (600, 600), (65_535, 65_535), (65_536, 65_535), (2 * day, 65_535)] {
        let config = Config { keep_alive: Duration::from_secs(wanted), ..Config::new("pump-7", "t") };
        let mut session = Session::new(&mut memory, INPUT, &config, at(0)).expect("room");
        let Some(Packet::Connect(connect, ..)) = written(&mut session).pop() else { panic!("no CONNECT") };
        assert_eq!(u64::from(connect.keep_alive), told, "{wanted}");
        assert_eq!(session.next_wake(), Some(at(told * 750)), "{wanted}");
    }
    let config = Config { keep_alive: Duration::MAX, ..Config::new("pump-7", "t") };
    let mut session = Session::new(&mut memory, INPUT, &config, Instant::MAX).expect("room");
    assert!(session.next_wake() == Some(Instant::MAX) && session.poll(at(0)));
}

#[test]
fn each_packet_is_read_by_the_oracle() {
    let mut memory = [0; 2048];
    let mut session = connected(&mut memory);
    session.subscribe(b"$headwater/d/pump-7/#").expect("room");
    assert_eq!(session.envelope("plant/pumps/7", &[7; 300]), Published::OnItsWay);
    session.message(b"answer/here", b"done", &[1, 2, 3]).expect("room");
    session.message(b"answer/there", b"", &[]).expect("room");
    let mut packets = written(&mut session).into_iter();
    let Some(Packet::Subscribe(subscribe)) = packets.next() else { panic!("no SUBSCRIBE") };
    assert_eq!(subscribe.filters[0].path, "$headwater/d/pump-7/#");
    assert_eq!(subscribe.filters[0].qos, QoS::AtLeastOnce);
    let Some(Packet::Publish(publish)) = packets.next() else { panic!("no PUBLISH") };
    assert_eq!((&publish.topic[..], publish.pkid, publish.qos), (b"plant/pumps/7".as_slice(), 1, QoS::AtLeastOnce));
    assert_eq!((publish.payload.to_vec(), publish.dup, publish.retain), (vec![7; 300], false, false));
    assert_eq!(publish.properties.and_then(|properties| properties.content_type).as_deref(), Some(CONTENT_TYPE));
    let Some(Packet::Publish(answer)) = packets.next() else { panic!("no PUBLISH") };
    assert_eq!(
        (&answer.topic[..], &answer.payload[..], answer.qos),
        (&b"answer/here"[..], &b"done"[..], QoS::AtMostOnce)
    );
    let correlation = answer.properties.and_then(|properties| properties.correlation_data);
    assert_eq!(correlation.as_deref(), Some(&[1u8, 2, 3][..]));
    let Some(Packet::Publish(answer)) = packets.next() else { panic!("no PUBLISH") };
    assert_eq!((&answer.topic[..], answer.payload.len(), answer.properties), (&b"answer/there"[..], 0, None));
    assert_eq!(packets.next(), None);
    session.disconnect();
    // 3.14.2.1; the oracle wants a reason, which may be left out.
    assert_eq!(session.output(), [packet::DISCONNECT, 0]);
}

#[test]
fn messages_come_with_all_the_properties_there_are() {
    let properties = PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: Some(60),
        topic_alias: None,
        response_topic: Some("answer/here".to_string()),
        correlation_data: Some(vec![1, 2, 3].into()),
        user_properties: vec![("a".to_string(), "b".to_string()), ("c".to_string(), String::new())],
        subscription_identifiers: vec![300],
        content_type: Some("text/plain".to_string()),
    };
    let mut memory = [0; 1024];
    let mut session = connected(&mut memory);
    let mut publish = Publish::new("$headwater/d/pump-7/command", QoS::AtLeastOnce, &b"go"[..], Some(properties));
    publish.pkid = 9;
    receive(&mut session, &bytes(&Packet::Publish(publish)));
    let message = Message {
        topic: b"$headwater/d/pump-7/command",
        payload: b"go",
        response_topic: Some(b"answer/here"),
        correlation: &[1, 2, 3],
    };
    assert_eq!(session.event(), Ok(Some(Event::Message(message))));
    assert_eq!(written(&mut session), [Packet::PubAck(PubAck::new(9, None))]);
    let plain = Publish::new("t", QoS::AtMostOnce, &b""[..], None);
    receive(&mut session, &bytes(&Packet::Publish(plain)));
    let message = Message { topic: b"t", payload: b"", response_topic: None, correlation: &[] };
    assert_eq!(session.event(), Ok(Some(Event::Message(message))));
    assert!(session.output().is_empty(), "nobody answers QoS 0");
}

#[test]
fn the_gateway_may_want_less_and_say_much() {
    let properties = ConnAckProperties {
        session_expiry_interval: Some(1),
        receive_max: Some(2),
        max_qos: Some(1),
        retain_available: Some(0),
        max_packet_size: Some(100),
        assigned_client_identifier: Some("other".to_string()),
        topic_alias_max: Some(3),
        reason_string: Some("because".to_string()),
        user_properties: vec![("a".to_string(), "b".to_string())],
        wildcard_subscription_available: Some(1),
        subscription_identifiers_available: Some(1),
        shared_subscription_available: Some(0),
        server_keep_alive: Some(8),
        response_information: Some("r".to_string()),
        server_reference: Some("s".to_string()),
        authentication_method: Some("m".to_string()),
        authentication_data: Some(vec![1].into()),
    };
    let mut memory = [0; 2048];
    let mut session = Session::new(&mut memory, INPUT, &Config::new("d", "t"), at(0)).expect("room");
    written(&mut session);
    receive(&mut session, &bytes(&conn_ack(Some(properties))));
    assert_eq!(session.event(), Ok(Some(Event::Connected(Ok(())))));
    assert_eq!(session.next_wake(), Some(at(6_000)), "three quarters of what it wants");
    assert_eq!(session.envelope("t", &[0; 100]), Published::NotNow, "longer than it takes");
    assert_eq!(session.envelope("t", b"1"), Published::OnItsWay);
    assert_eq!(session.envelope("t", b"2"), Published::OnItsWay);
    assert_eq!(session.envelope("t", b"3"), Published::NotNow, "more than it takes at once");
    receive(&mut session, &pub_ack(1, PubAckReason::Success));
    assert_eq!(session.event(), Ok(Some(Event::Acked)));
    assert_eq!(session.envelope("t", b"3"), Published::OnItsWay);
}

#[test]
fn a_refused_connection_says_why() {
    let code = ConnectReturnCode::BadUserNamePassword;
    let mut memory = [0; 1024];
    let mut session = Session::new(&mut memory, INPUT, &Config::new("d", "t"), at(0)).expect("room");
    receive(&mut session, &bytes(&Packet::ConnAck(ConnAck { session_present: false, code, properties: None })));
    assert_eq!(session.event(), Ok(Some(Event::Connected(Err(0x86)))));
}

#[test]
fn answers_count_in_their_order_and_only_there() {
    let mut memory = [0; 1024];
    let mut session = connected(&mut memory);
    for payload in [b"1", b"2", b"3"] {
        assert_eq!(session.envelope("t", payload), Published::OnItsWay);
    }
    receive(&mut session, &pub_ack(1, PubAckReason::NoMatchingSubscribers));
    receive(&mut session, &pub_ack(2, PubAckReason::PayloadFormatInvalid));
    assert_eq!(session.event(), Ok(Some(Event::Acked)), "a reason below 0x80 is no error");
    assert_eq!(session.event(), Ok(Some(Event::Refused(0x99))));
    assert_eq!(session.event(), Ok(None));
    receive(&mut session, &pub_ack(4, PubAckReason::Success));
    assert_eq!(session.event(), Err(Closed), "an answer to nothing that is on its way");
}

#[test]
fn identifiers_go_round_and_never_are_zero() {
    let mut memory = [0; 1024];
    let mut session = connected(&mut memory);
    for turn in 0..70_000u32 {
        assert_eq!(session.envelope("t", b"x"), Published::OnItsWay);
        let Some(Packet::Publish(publish)) = written(&mut session).pop() else { panic!("no PUBLISH") };
        assert_eq!(u32::from(publish.pkid), turn % u32::from(ID_MAX) + 1);
        receive(&mut session, &pub_ack(publish.pkid, PubAckReason::Success));
        assert_eq!(session.event(), Ok(Some(Event::Acked)));
    }
}

#[test]
fn what_is_not_the_protocol_ends_the_connection() {
    let publish = |qos: u8, pkid: u8, topic: &str| {
        let mut bytes = vec![packet::PUBLISH | qos << 1, topic.len() as u8 + 6, 0, topic.len() as u8];
        bytes.extend_from_slice(topic.as_bytes());
        bytes.extend_from_slice(&[0, pkid, 0, b'x']);
        bytes
    };
    let cases = [
        ("a second CONNACK", bytes(&conn_ack(None))),
        ("DISCONNECT", bytes(&Packet::Disconnect(Disconnect::new(DisconnectReasonCode::ServerShuttingDown)))),
        ("a client's packet", bytes(&Packet::PingReq(PingReq))),
        ("QoS 2, which nobody asked for", publish(2, 1, "t")),
        ("QoS 3", publish(3, 1, "t")),
        ("no identifier", publish(1, 0, "t")),
        ("no topic", publish(1, 1, "")),
        ("a length of five bytes", vec![0x30, 0xff, 0xff, 0xff, 0xff, 1]),
        ("an unknown property", vec![0x30, 6, 0, 1, b't', 2, 0x7f, 1]),
        ("a property longer than the packet", vec![0x30, 7, 0, 1, b't', 3, 8, 0, 9]),
        ("an answer to nothing", pub_ack(1, PubAckReason::Success)),
    ];
    for (what, bytes) in cases {
        let mut memory = [0; 1024];
        let mut session = connected(&mut memory);
        receive(&mut session, &bytes);
        assert_eq!(session.event(), Err(Closed), "{what}");
    }
    let mut memory = [0; 1024];
    let mut session = connected(&mut memory);
    receive(&mut session, &publish(1, 1, "t"));
    assert!(matches!(session.event(), Ok(Some(Event::Message(_)))), "and this is");
    let mut memory = [0; 1024];
    let mut session = Session::new(&mut memory, INPUT, &Config::new("d", "t"), at(0)).expect("room");
    receive(&mut session, &bytes(&Packet::PingResp(PingResp)));
    assert_eq!(session.event(), Err(Closed), "the first packet is CONNACK");
}

#[test]
fn a_packet_that_is_too_long_leaves_no_room() {
    let mut memory = [0; 1024];
    let mut session = connected(&mut memory);
    let long = Publish::new("t", QoS::AtMostOnce, vec![0; INPUT], None);
    receive(&mut session, &bytes(&Packet::Publish(long))[..INPUT]);
    assert_eq!(session.event(), Ok(None));
    assert!(session.room().is_empty());
    assert_eq!(session.received(0), Err(Closed));
}

#[test]
fn silence_is_asked_once_and_then_it_is_the_end() {
    let mut memory = [0; 1024];
    let mut session = connected(&mut memory);
    assert!(session.poll(at(44_999)) && session.output().is_empty());
    assert_eq!(session.next_wake(), Some(at(45_000)));
    assert!(session.poll(at(45_000)));
    let length = session.output().len();
    assert_eq!(session.output(), [packet::PINGREQ, 0]);
    session.wrote(length, at(45_000));
    assert_eq!(session.next_wake(), Some(at(60_000)));
    assert!(session.poll(at(59_999)) && session.output().is_empty());
    assert!(!session.poll(at(60_000)), "15 s and no sign of life");
    receive(&mut session, &bytes(&Packet::PingResp(PingResp)));
    assert_eq!(session.event(), Ok(Some(Event::Other)));
    assert!(session.poll(at(60_000)));
    assert_eq!(session.next_wake(), Some(at(90_000)));
    session.keep_alive = Duration::MIN;
    assert_eq!(session.next_wake(), None, "a gateway that wants no keep-alive");
}

/// Everything a gateway may say, one behind the other.
fn conversation() -> Vec<u8> {
    let codes = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce)];
    let sub_ack = SubAck { pkid: SUBSCRIPTION_ID, return_codes: codes, properties: None };
    let mut said = bytes(&Packet::SubAck(sub_ack));
    for n in 1..=8u16 {
        let properties =
            PublishProperties { response_topic: Some(format!("answer/{n}")), ..PublishProperties::default() };
        let mut publish = Publish::new("t", QoS::AtLeastOnce, vec![n as u8; n as usize * 20], Some(properties));
        publish.pkid = n;
        said.extend(bytes(&Packet::Publish(publish)));
        said.extend(pub_ack(n, if n == 5 { PubAckReason::QuotaExceeded } else { PubAckReason::Success }));
        said.extend(bytes(&Packet::PingResp(PingResp)));
    }
    said
}

/// Tells a session all this in pieces; what it makes of it, and what it answers.
fn tell(said: &[u8], pieces: &[usize]) -> (Vec<String>, Vec<u8>) {
    let mut memory = [0; 1024];
    let mut session = connected(&mut memory);
    for n in 0..8u8 {
        assert_eq!(session.envelope("t", &[n]), Published::OnItsWay);
    }
    let length = session.output().len();
    session.wrote(length, at(0));
    let (mut events, mut answers, mut left, mut turn) = (Vec::new(), Vec::new(), said, 0);
    while !left.is_empty() {
        let room = session.room();
        let piece = pieces.get(turn % pieces.len().max(1)).copied().unwrap_or(1).clamp(1, left.len()).min(room.len());
        turn += 1;
        let (now, later) = left.split_at(piece);
        left = later;
        room[..piece].copy_from_slice(now);
        if session.received(piece).is_err() {
            events.push("end".to_string());
            return (events, answers);
        }
        loop {
            match session.event() {
                Ok(Some(event)) => events.push(format!("{event:?}")),
                Ok(None) => break,
                Err(Closed) => {
                    events.push("closed".to_string());
                    return (events, answers);
                }
            }
            answers.extend_from_slice(session.output());
            let length = session.output().len();
            session.wrote(length, at(0));
        }
    }
    (events, answers)
}

#[test]
fn the_conversation_is_heard_as_it_was_said() {
    let (events, answers) = tell(&conversation(), &[INPUT]);
    assert_eq!(events.len(), 25);
    assert_eq!(events.iter().filter(|event| event.contains("Message")).count(), 8);
    assert_eq!(events.iter().filter(|event| *event == "Acked").count(), 7);
    assert_eq!(events[14], "Refused(151)");
    let acks: Vec<u8> = (1..=8).flat_map(|n| [packet::PUBACK, 2, 0, n]).collect();
    assert_eq!(answers, acks);
}

proptest! {
    #[test]
    fn cut_anywhere_it_is_the_same(pieces in prop::collection::vec(1..200usize, 1..40)) {
        let said = conversation();
        prop_assert_eq!(tell(&said, &pieces), tell(&said, &[1]));
    }

    #[test]
    fn no_bytes_do_harm(said in prop::collection::vec(any::<u8>(), 0..2000), pieces in prop::collection::vec(1..600usize, 1..9)) {
        tell(&said, &pieces);
    }

    #[test]
    fn nor_does_a_changed_conversation(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        pieces in prop::collection::vec(1..600usize, 1..9),
    ) {
        let mut said = conversation();
        for (at, byte) in changes {
            let at = at.index(said.len());
            said[at] = byte;
        }
        prop_assert_eq!(tell(&said, &pieces), tell(&said, &[1]));
    }
}
