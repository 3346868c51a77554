//! Traces of one session.

use super::*;
use crate::mqtt::codec::{Answer, Connect, Properties, Qos, Version, Will, decode, frame};

fn id(n: u16) -> PacketId {
    PacketId::new(n).unwrap()
}

const LIMITS: Limits = Limits {
    receive_maximum: 2,
    packet_bytes_max: 1 << 20,
    keep_alive_max_s: 100,
    subscriptions_max: 2,
    session_expiry_max_s: 86_400,
};

fn connect(version: Version) -> Connect<'static> {
    Connect {
        version,
        clean: true,
        keep_alive_s: 10,
        properties: Properties::NONE,
        client_id: "c",
        will: None,
        user_name: None,
        password: None,
    }
}

fn session(version: Version, kept: &[PacketId]) -> Session {
    let accepted = accept(&connect(version), &LIMITS, String::new).unwrap();
    Session::new(&accepted, &LIMITS, kept, 0)
}

fn publish(qos: Qos, n: u16, duplicate: bool) -> Packet<'static> {
    let id = PacketId::new(n);
    let (properties, payload) = (Properties::NONE, &b""[..]);
    Packet::Publish(Publish { duplicate, qos, retain: false, topic: "a", id, properties, payload })
}

fn answer(n: u16) -> Answer {
    Answer { id: id(n), reason: 0 }
}

fn is_store(action: Result<Action<'_>, Violation>) -> bool {
    matches!(action, Ok(Action::Store(_)))
}

#[test]
fn a_qos_2_message_is_stored_once_until_its_release() {
    let mut s = session(Version::V5, &[]);
    assert!(is_store(s.handle(publish(Qos::ExactlyOnce, 7, false), 1)));
    assert_eq!(s.handle(publish(Qos::ExactlyOnce, 7, true), 2), Ok(Action::StoredBefore(id(7))));
    assert_eq!(s.handle(publish(Qos::ExactlyOnce, 7, false), 2), Ok(Action::StoredBefore(id(7))));
    s.inbound.answered(3);
    assert_eq!(s.inbound.taken().collect::<Vec<_>>(), [id(7)]);
    assert_eq!(s.handle(Packet::PubRel(answer(7)), 3), Ok(Action::Release(id(7))));
    let unknown = Action::Send(Reply::PubComp(id(7), Reason::PacketIdentifierNotFound));
    assert_eq!(s.handle(Packet::PubRel(answer(7)), 4), Ok(unknown));
    assert!(is_store(s.handle(publish(Qos::ExactlyOnce, 7, false), 5)));
}

#[test]
fn an_identifier_of_an_earlier_connection_stops_only_what_comes_again() {
    let mut s = session(Version::V4, &[id(7), id(8), id(9)]);
    assert_eq!(s.handle(publish(Qos::ExactlyOnce, 7, true), 1), Ok(Action::StoredBefore(id(7))));
    // Without DUP it is another message: the client has started afresh.
    assert!(is_store(s.handle(publish(Qos::ExactlyOnce, 8, false), 1)));
    assert_eq!(s.handle(Packet::PubRel(answer(9)), 2), Ok(Action::Release(id(9))));
    assert_eq!(s.inbound.taken().collect::<Vec<_>>(), [id(7), id(8)]);
}

#[test]
fn more_than_receive_maximum_is_a_violation_in_5_and_a_pause_in_311() {
    let mut s = session(Version::V5, &[]);
    for n in 1..=2 {
        assert!(is_store(s.handle(publish(Qos::AtLeastOnce, n, false), 1)));
    }
    assert!(is_store(s.handle(publish(Qos::AtMostOnce, 0, false), 1)));
    assert!(s.inbound.has_room());
    let violation = s.handle(publish(Qos::AtLeastOnce, 3, false), 1).unwrap_err();
    assert_eq!(violation.reason, Reason::ReceiveMaximumExceeded);
    s.inbound.answered(1);
    assert!(is_store(s.handle(publish(Qos::AtLeastOnce, 3, false), 1)));

    let mut s = session(Version::V4, &[]);
    for n in 1..=2 {
        assert!(s.inbound.has_room());
        assert!(is_store(s.handle(publish(Qos::AtLeastOnce, n, false), 1)));
    }
    assert!(!s.inbound.has_room());
    s.inbound.answered(1);
    assert!(s.inbound.has_room());
}

#[test]
fn what_was_announced_as_unavailable_is_a_violation() {
    let mut s = session(Version::V5, &[]);
    let Packet::Publish(plain) = publish(Qos::AtMostOnce, 0, false) else { panic!() };
    let retained = Packet::Publish(Publish { retain: true, ..plain });
    assert_eq!(s.handle(retained, 1).unwrap_err().reason, Reason::RetainNotSupported);
    let bytes = b"\x30\x07\0\0\x03\x23\0\x01x";
    let found = frame(bytes, 100).unwrap().unwrap();
    let aliased = decode(Version::V5, found.first, &bytes[found.body..]).unwrap();
    assert_eq!(s.handle(aliased, 1).unwrap_err().reason, Reason::TopicAliasInvalid);
    assert!(is_store(session(Version::V4, &[]).handle(retained, 1)));
}

#[test]
fn out_of_order_packets_are_violations() {
    let mut s = session(Version::V5, &[]);
    let again = s.handle(Packet::Connect(connect(Version::V5)), 1).unwrap_err();
    assert_eq!(again.reason, Reason::ProtocolError);
    let auth = s.handle(Packet::Auth { reason: 0, properties: Properties::NONE }, 1).unwrap_err();
    assert_eq!(auth.reason, Reason::ProtocolError);
}

#[test]
fn a_client_is_overdue_after_one_and_a_half_keep_alives() {
    let mut s = session(Version::V5, &[]);
    assert_eq!(s.overdue_at_ms(), Some(15_000));
    assert_eq!(s.handle(Packet::PingReq, 4_000), Ok(Action::Send(Reply::Pong)));
    assert_eq!(s.overdue_at_ms(), Some(19_000));
    let endless = Connect { keep_alive_s: 0, ..connect(Version::V5) };
    let accepted = accept(&endless, &LIMITS, String::new).unwrap();
    assert_eq!(accepted.connack(&LIMITS, "g").server_keep_alive_s, Some(100));
    let endless = Connect { keep_alive_s: 0, ..connect(Version::V4) };
    assert_eq!(accept(&endless, &LIMITS, String::new).unwrap().keep_alive_ms(), None);
}

#[test]
fn qos_2_to_the_client_goes_through_its_four_steps() {
    let mut out = session(Version::V5, &[]).outbound;
    let first = out.open(Qos::ExactlyOnce).unwrap();
    assert_eq!(out.received(answer(1)), Some(Reply::PubRel(first, Reason::Success)));
    out.acknowledged(first);
    assert_eq!(out.received(answer(1)), Some(Reply::PubRel(first, Reason::Success)));
    out.completed(first);
    assert_eq!(out.received(answer(1)), Some(Reply::PubRel(first, Reason::PacketIdentifierNotFound)));
    let second = out.open(Qos::ExactlyOnce).unwrap();
    assert_eq!(out.received(Answer { id: second, reason: 0x80 }), None);
    assert!(out.has_room());
}

#[test]
fn the_window_to_the_client_is_its_receive_maximum_and_identifiers_are_not_given_twice() {
    let mut out = Outbound::new(2);
    let (a, b) = (out.open(Qos::AtLeastOnce).unwrap(), out.open(Qos::AtLeastOnce).unwrap());
    assert_eq!((a.get(), b.get(), out.open(Qos::AtLeastOnce)), (1, 2, None));
    out.acknowledged(a);
    for n in 3..=65_535u16 {
        let c = out.open(Qos::AtLeastOnce).unwrap();
        assert_eq!(c.get(), n);
        out.acknowledged(c);
    }
    assert_eq!(out.open(Qos::AtLeastOnce).unwrap().get(), 1);
    out.acknowledged(a);
    assert_eq!(out.open(Qos::AtLeastOnce).unwrap().get(), 3, "2 is still in flight");
}

fn subscribe<'a>(version: Version, bytes: &'a [u8]) -> Subscribe<'a> {
    let found = frame(bytes, 1000).unwrap().unwrap();
    let Packet::Subscribe(packet) = decode(version, found.first, &bytes[found.body..]).unwrap() else { panic!() };
    packet
}

#[test]
fn subscriptions_are_granted_or_refused_one_by_one() {
    let mut s = session(Version::V5, &[]).subscriptions;
    let may = |filter: &str| filter != "no";
    let wanted =
        subscribe(Version::V5, b"\x82\x20\0\x01\0\0\x01a\x01\0\x02no\x01\0\x0a$share/g/a\x01\0\x01b\0\0\x01c\0");
    assert_eq!(s.subscribe(Version::V5, &wanted, may), [1, 0x87, 0x9e, 0, 0x97]);
    let again = subscribe(Version::V4, b"\x82\x0b\0\x01\0\x01a\x02\0\x02no\x01");
    assert_eq!(s.subscribe(Version::V4, &again, may), [2, 0x80]);
    assert_eq!(s.len(), 2);
    assert_eq!(s.logged("a", Qos::ExactlyOnce), Some(subscriptions::Delivery { qos: Qos::ExactlyOnce, ids: vec![] }));
    assert_eq!(s.logged("b", Qos::ExactlyOnce), None);
    assert_eq!(s.live("b", true, false).unwrap().qos, Qos::AtMostOnce);
    assert_eq!(s.live("a", true, false), None, "the log brings it");
    assert!(s.live("a", false, false).is_some(), "the log does not have it");
}

#[test]
fn filters_are_bounded_in_number_and_in_bytes_and_a_packet_of_many_costs_little() {
    let limits = Limits { subscriptions_max: 10, ..LIMITS };
    let accepted = accept(&connect(Version::V5), &limits, String::new).unwrap();
    let mut s = Session::new(&accepted, &limits, &[], 0).subscriptions;
    let packet = |first: u8, filters: &[String], options: &[u8]| {
        let mut body = vec![0, 1, 0];
        for filter in filters {
            body.extend((filter.len() as u16).to_be_bytes());
            body.extend(filter.as_bytes());
            body.extend(options);
        }
        (first, body)
    };
    let subscribe = |s: &mut Subscriptions, filters: &[String]| {
        let (first, body) = packet(0x82, filters, &[1]);
        let Ok(Packet::Subscribe(packet)) = decode(Version::V5, first, &body) else { panic!() };
        s.subscribe(Version::V5, &packet, |_| true)
    };
    let long = |n: usize| format!("{n}/{}", "x".repeat(20_000));
    assert_eq!(subscribe(&mut s, &[long(1), long(2), long(1)]), [1, 0x97, 1]);
    let many: Vec<_> = (0..100_000).map(|n| n.to_string()).collect();
    let codes = subscribe(&mut s, &many);
    assert_eq!((codes.iter().filter(|code| **code == 1).count(), s.len()), (9, 10));
    let (first, body) = packet(0xa2, &[&many[..], &[long(1), long(1), long(2)]].concat(), &[]);
    let Ok(Packet::Unsubscribe(unsubscribe)) = decode(Version::V5, first, &body) else { panic!() };
    let codes = s.unsubscribe(&unsubscribe);
    assert_eq!((codes.iter().filter(|code| **code == 0).count(), s.len()), (10, 0));
    assert_eq!(codes[codes.len() - 3..], [0, 0x11, 0x11]);
}

#[test]
fn a_message_goes_at_the_lesser_of_published_and_granted() {
    use Qos::*;
    let mut s = session(Version::V5, &[]).subscriptions;
    let wanted = subscribe(Version::V5, b"\x82\x0b\0\x01\0\0\x01a\x01\0\x01+\x02");
    assert_eq!(s.subscribe(Version::V5, &wanted, |_| true), [1, 2]);
    let qos = |topic: &str, published: Qos| s.logged(topic, published).unwrap().qos;
    // "a" is matched by both: the highest that was granted counts.
    for topic in ["a", "b"] {
        assert_eq!(
            [AtMostOnce, AtLeastOnce, ExactlyOnce].map(|p| qos(topic, p)),
            [AtMostOnce, AtLeastOnce, ExactlyOnce]
        );
    }
    let only_one = subscribe(Version::V4, b"\x82\x06\0\x01\0\x01c\x01");
    let mut s = session(Version::V4, &[]).subscriptions;
    assert_eq!(s.subscribe(Version::V4, &only_one, |_| true), [1]);
    assert_eq!(s.logged("c", ExactlyOnce).unwrap().qos, AtLeastOnce);
    assert_eq!(s.live("c", true, false), None, "whatever its QoS, the log brings it");
}

#[test]
fn connect_is_judged() {
    let judge = |c: Connect<'_>| accept(&c, &LIMITS, || "fresh".into());
    assert_eq!(judge(Connect { client_id: "", ..connect(Version::V5) }).unwrap().client_id, "fresh");
    let nameless = Connect { client_id: "", clean: false, ..connect(Version::V4) };
    assert_eq!(judge(nameless).unwrap_err(), Reason::ClientIdentifierNotValid);
    let long = "x".repeat(accept::CLIENT_ID_BYTES_MAX + 1);
    assert_eq!(
        judge(Connect { client_id: &long, ..connect(Version::V5) }).unwrap_err(),
        Reason::ClientIdentifierNotValid
    );
    let persistent = judge(Connect { clean: false, ..connect(Version::V4) }).unwrap();
    assert!(persistent.is_persistent());
    assert!(!judge(Connect { clean: false, ..connect(Version::V5) }).unwrap().is_persistent());
}

/// Conversations of mutated packets with one session after another: nothing panics, and nothing grows past its bound.
#[test]
fn no_conversation_panics_or_outgrows_its_bounds() {
    use crate::mqtt::codec::fuzz::{good_packets, mutate};
    let mut random = fastrand::Rng::with_seed(0x5e55);
    let good = good_packets();
    let (mut actions, mut violations) = (0usize, 0usize);
    for round in 0..2_000 {
        let version = if round % 2 == 0 { Version::V4 } else { Version::V5 };
        let mut s = session(version, &[id(1), id(7)]);
        for now_ms in 0..100 {
            let mut bytes = good[random.usize(3..good.len())].clone();
            if random.bool() {
                mutate(&mut random, &mut bytes, &good);
            }
            let Ok(Some(found)) = frame(&bytes, 1 << 20) else { continue };
            let Ok(packet) = decode(version, found.first, &bytes[found.body..found.end]) else { continue };
            // The connection takes no packet while there is no room.
            if !s.inbound.has_room() {
                s.inbound.answered(random.u32(1..3));
            }
            match s.handle(packet, now_ms) {
                Ok(Action::Subscribe(packet)) => {
                    let codes = s.subscriptions.subscribe(version, &packet, |filter| filter.len() % 7 != 0);
                    assert_eq!(codes.len(), packet.filters.iter().count());
                }
                Ok(Action::Unsubscribe(packet)) => {
                    let codes = s.subscriptions.unsubscribe(&packet);
                    assert_eq!(codes.len(), packet.filters.iter().count());
                }
                Ok(_) => actions += 1,
                Err(violation) => {
                    assert!(violation.reason as u8 >= 0x80);
                    violations += 1;
                    break;
                }
            }
            if random.bool() {
                let _ = s.outbound.open([Qos::AtLeastOnce, Qos::ExactlyOnce][random.usize(..2)]);
            }
            assert!(s.inbound.taken().len() <= usize::from(LIMITS.receive_maximum) + 2, "kept ones among them");
            assert!(s.subscriptions.len() <= LIMITS.subscriptions_max as usize);
        }
    }
    assert!(actions > 2_000 && violations > 200, "{actions} actions, {violations} violations");
}

/// A client that has left a will with this delay, in a session that lasts so long.
fn with_will(version: Version, delay_s: u32, session_expiry_s: u32) -> Session {
    let delay = [&[0x18][..], &delay_s.to_be_bytes()].concat();
    let expiry = [&[0x11][..], &session_expiry_s.to_be_bytes()].concat();
    let (will_properties, properties) = match version {
        Version::V4 => (Properties::NONE, Properties::NONE),
        Version::V5 => (Properties::again(&delay), Properties::again(&expiry)),
    };
    let will =
        Will { qos: Qos::AtLeastOnce, retain: false, properties: will_properties, topic: "gone", payload: b"bye" };
    let asks = Connect { will: Some(will), properties, ..connect(version) };
    let accepted = accept(&asks, &LIMITS, String::new).unwrap();
    Session::new(&accepted, &LIMITS, &[], 0)
}

fn disconnect(reason: u8, properties: &[u8]) -> Packet<'_> {
    Packet::Disconnect { reason, properties: Properties::again(properties) }
}

// The gateway took wills and published none.
#[test]
fn a_will_is_due_unless_the_client_says_goodbye() {
    for version in [Version::V4, Version::V5] {
        let due = with_will(version, 0, 0).end().expect("a will, as nothing was said");
        let told = due.will.publish();
        assert_eq!((told.topic, told.payload, told.qos, told.id), ("gone", &b"bye"[..], Qos::AtLeastOnce, None));
        assert_eq!(due.delay_s, 0);

        let mut s = with_will(version, 0, 0);
        assert_eq!(s.handle(disconnect(0, &[]), 1), Ok(Action::Goodbye));
        assert_eq!(s.end(), None);
    }
    for reason in [0x04, 0x80, 0x93] {
        let mut s = with_will(Version::V5, 0, 0);
        assert_eq!(s.handle(disconnect(reason, &[]), 1), Ok(Action::Goodbye));
        assert!(s.end().is_some(), "{reason}: [MQTT-3.14.4-3] names reason 0 alone");
        assert_eq!(s.end(), None, "once");
    }
    let mut s = with_will(Version::V5, 0, 0);
    assert!(s.handle(Packet::Auth { reason: 0, properties: Properties::NONE }, 1).is_err());
    assert!(s.end().is_some(), "a protocol error");
}

#[test]
fn a_will_waits_for_its_delay_or_the_end_of_the_session_whichever_is_first() {
    let delay = |asked, session| with_will(Version::V5, asked, session).end().map(|due| due.delay_s);
    assert_eq!(delay(60, 600), Some(60));
    assert_eq!(delay(60, 10), Some(10));
    assert_eq!(delay(60, 0), Some(0));
    assert_eq!(delay(u32::MAX, u32::MAX), Some(LIMITS.session_expiry_max_s), "bounded by what a session may last");
    // The last word on the session counts, and it cannot be made longer than it was to be.
    let expiry = |seconds: u32| [&[0x11][..], &seconds.to_be_bytes()].concat();
    for (said, expected) in [(5, 5), (700, 60)] {
        let mut s = with_will(Version::V5, 60, 600);
        assert_eq!(s.handle(disconnect(0x04, &expiry(said)), 1), Ok(Action::Goodbye));
        assert_eq!(s.end().map(|due| due.delay_s), Some(expected));
    }
    let mut s = with_will(Version::V5, 60, 0);
    assert_eq!(s.handle(disconnect(0, &expiry(9)), 1).unwrap_err().reason, Reason::ProtocolError);
    assert!(s.end().is_some(), "that was no goodbye");
}

#[test]
fn a_will_that_is_retained_or_an_envelope_is_refused() {
    let asks = |version, retain, properties| {
        let will = Will { qos: Qos::AtMostOnce, retain, properties, topic: "gone", payload: b"" };
        accept(&Connect { will: Some(will), ..connect(version) }, &LIMITS, String::new).map(|accepted| accepted.will)
    };
    assert_eq!(asks(Version::V5, true, Properties::NONE), Err(Reason::RetainNotSupported));
    assert!(asks(Version::V4, true, Properties::NONE).unwrap().is_some(), "3.1.1 cannot be told: it is not retained");
    let content_type = headwater_wire::CONTENT_TYPE;
    let envelope = [&[0x03, 0, content_type.len() as u8][..], content_type.as_bytes()].concat();
    assert_eq!(asks(Version::V5, false, Properties::again(&envelope)), Err(Reason::PayloadFormatInvalid));
}
