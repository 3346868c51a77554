//! P8: bad input costs its sender alone: a clear error, and nothing else is lost, delayed or stopped.
//!
//! Packets are written byte by byte; what a library would never send is what is asked for here. What the others pay for it
//! is measured in `p8_what_others_pay`.

use headwater_tests::audit::{Fleet, Verdict, audit};
use headwater_tests::aws;
use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::mqtt::{Client, Packet, Version, connect_packet, kind, packet, publish, put_text};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const MALFORMED: u8 = 0x81;
const PROTOCOL_ERROR: u8 = 0x82;
const BAD_TOPIC_FILTER: u8 = 0x8f;
const BAD_TOPIC_NAME: u8 = 0x90;
const ID_NOT_FOUND: u8 = 0x92;
const RECEIVE_MAXIMUM: u8 = 0x93;
const BAD_TOPIC_ALIAS: u8 = 0x94;
const TOO_LARGE: u8 = 0x95;
const QUOTA_EXCEEDED: u8 = 0x97;
const BAD_PAYLOAD_FORMAT: u8 = 0x99;
pub const KEEP_ALIVE_TIMEOUT: u8 = 0x8d;

/// What an MQTT 5 client sends behind its CONNECT, and the reason codes that answer it well.
pub struct Bad {
    what: &'static str,
    pub bytes: Vec<u8>,
    reasons: &'static [u8],
}

fn bad(what: &'static str, bytes: Vec<u8>, reasons: &'static [u8]) -> Bad {
    Bad { what, bytes, reasons }
}

fn text(content: &[u8]) -> Vec<u8> {
    let mut bytes = (content.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes
}

/// A PUBLISH from its flags and the parts of its body.
fn publish_of(flags: u8, parts: &[&[u8]]) -> Vec<u8> {
    packet(kind::PUBLISH << 4 | flags, &parts.concat())
}

const EITHER: &[u8] = &[MALFORMED, PROTOCOL_ERROR];

pub fn bad_packets() -> Vec<Bad> {
    let topic = text(b"dev/bad");
    let good = |payload: &[u8]| publish(Version::V5, "dev/bad", payload, 1, 1, false, None);
    let subscribe = |flags: u8, body: &[&[u8]]| packet(kind::SUBSCRIBE << 4 | flags, &body.concat());
    let mut truncated = good(b"payload");
    truncated[1] = 4;
    vec![
        bad("a second CONNECT", connect_packet(Version::V5, "again", true), &[PROTOCOL_ERROR]),
        bad("QoS 3", publish_of(6, &[&topic, &[0, 1, 0], b"x"]), &[MALFORMED]),
        bad("DUP with QoS 0", publish_of(8, &[&topic, &[0], b"x"]), &[MALFORMED]),
        bad("packet identifier 0", publish_of(2, &[&topic, &[0, 0, 0], b"x"]), EITHER),
        bad("a length of five bytes", vec![0x32, 0xff, 0xff, 0xff, 0xff, 0x01], &[MALFORMED]),
        bad("a topic longer than its packet", packet(0x32, &[0x00, 0xff, b'a']), &[MALFORMED]),
        bad("a packet cut short by its own length", truncated, &[MALFORMED]),
        bad(
            "a topic that is not UTF-8",
            publish_of(2, &[&text(&[b'a', 0xff, 0xfe]), &[0, 1, 0]]),
            &[MALFORMED, BAD_TOPIC_NAME],
        ),
        bad(
            "a surrogate in a topic",
            publish_of(2, &[&text(&[0xed, 0xa0, 0x80]), &[0, 1, 0]]),
            &[MALFORMED, BAD_TOPIC_NAME],
        ),
        bad("a zero in a topic", publish_of(2, &[&text(b"a\0b"), &[0, 1, 0]]), &[MALFORMED, BAD_TOPIC_NAME]),
        bad(
            "a wildcard in a topic",
            publish_of(2, &[&text(b"dev/#"), &[0, 1, 0]]),
            &[MALFORMED, PROTOCOL_ERROR, BAD_TOPIC_NAME],
        ),
        bad("an empty topic and no alias", publish_of(2, &[&text(b""), &[0, 1, 0]]), &[PROTOCOL_ERROR, BAD_TOPIC_NAME]),
        bad("topic alias 0", publish_of(2, &[&topic, &[0, 1, 3, 0x23, 0, 0]]), &[BAD_TOPIC_ALIAS]),
        bad(
            "a topic alias over the maximum",
            publish_of(2, &[&topic, &[0, 1, 3, 0x23, 0xff, 0xff]]),
            &[BAD_TOPIC_ALIAS],
        ),
        bad(
            "an alias that was never set",
            publish_of(2, &[&text(b""), &[0, 1, 3, 0x23, 0, 1]]),
            &[PROTOCOL_ERROR, BAD_TOPIC_ALIAS],
        ),
        bad("an unknown property", publish_of(2, &[&topic, &[0, 1, 2, 0x7f, 0]]), &[MALFORMED, PROTOCOL_ERROR]),
        bad("a property twice", publish_of(2, &[&topic, &[0, 1, 4, 0x01, 0, 0x01, 0]]), EITHER),
        bad("properties longer than the packet", publish_of(2, &[&topic, &[0, 1, 50, 0x01]]), &[MALFORMED]),
        bad("a subscription identifier from a client", publish_of(2, &[&topic, &[0, 1, 2, 0x0b, 1]]), EITHER),
        bad(
            "a payload format of 2",
            publish_of(2, &[&topic, &[0, 1, 2, 0x01, 2]]),
            &[MALFORMED, PROTOCOL_ERROR, BAD_PAYLOAD_FORMAT],
        ),
        bad("SUBSCRIBE with wrong flags", subscribe(0, &[&[0, 1, 0], &text(b"a"), &[1]]), &[MALFORMED]),
        bad("SUBSCRIBE to nothing", subscribe(2, &[&[0, 1, 0]]), EITHER),
        bad("SUBSCRIBE with QoS 3", subscribe(2, &[&[0, 1, 0], &text(b"a"), &[3]]), EITHER),
        bad("SUBSCRIBE with packet identifier 0", subscribe(2, &[&[0, 0, 0], &text(b"a"), &[1]]), EITHER),
        bad(
            "a filter with # in the middle",
            subscribe(2, &[&[0, 1, 0], &text(b"a#/b"), &[1]]),
            &[MALFORMED, BAD_TOPIC_FILTER],
        ),
        bad("UNSUBSCRIBE from nothing", packet(0xa2, &[0, 1, 0]), EITHER),
        bad("PUBREL with wrong flags", packet(0x60, &[0, 1]), &[MALFORMED]),
        bad("PUBREC of nothing sent", packet(0x50, &[0, 9]), &[ID_NOT_FOUND]),
        bad("a CONNACK from a client", packet(0x20, &[0, 0, 0]), EITHER),
        bad("a SUBACK from a client", packet(0x90, &[0, 1, 0, 0]), EITHER),
        bad("an UNSUBACK from a client", packet(0xb0, &[0, 1, 0, 0]), EITHER),
        bad("a PINGRESP from a client", packet(0xd0, &[]), EITHER),
        bad("packet type 0", packet(0x00, &[]), EITHER),
        bad("PINGREQ with a body", packet(0xc0, &[1]), &[MALFORMED]),
        bad("AUTH without a method", packet(0xf0, &[0x18, 0]), &[PROTOCOL_ERROR, MALFORMED, 0x8c]),
    ]
}

/// What the gateway says to the packet: a DISCONNECT, a negative answer, or a closed connection without a word.
fn answer_to(addr: SocketAddr, id: &str, bytes: &[u8]) -> Option<Packet> {
    let mut client = Client::connect(addr, id, Version::V5).expect("the offender may connect");
    let _ = client.send_raw(bytes);
    client.read_within(Duration::from_secs(5)).ok().flatten()
}

pub fn reason_of(answer: &Packet) -> u8 {
    match answer.kind() {
        kind::DISCONNECT => answer.body.first().copied().unwrap_or(0),
        kind::SUBACK => answer.body.last().copied().unwrap_or(0),
        _ => answer.reason(),
    }
}

#[test]
fn p8_every_bad_packet_is_answered_with_its_reason_and_nobody_else_notices() {
    let mut gateway = Gateway::plain();
    let fleet = Fleet::start(gateway.mqtt, 4, 500);
    let mut wrong = Vec::new();
    for (n, Bad { what, bytes, reasons }) in bad_packets().into_iter().enumerate() {
        match answer_to(gateway.mqtt, &format!("bad-{n}"), &bytes) {
            Some(answer) if reasons.contains(&reason_of(&answer)) => {}
            Some(answer) => {
                wrong.push(format!("{what}: {:02x} {:02x?}, expected one of {reasons:02x?}", answer.first, answer.body))
            }
            None => wrong.push(format!("{what}: no answer, expected one of {reasons:02x?}")),
        }
        assert!(gateway.alive(), "{what} ended the gateway\n{}", gateway.log());
    }
    let acked = fleet.finish();
    let records = aws::read_stream(gateway.api, "default");
    assert_eq!(audit(&acked, &records), Verdict { stored: acked.values().sum(), ..Verdict::default() });
    assert!(records.iter().all(|got| !got.key.starts_with("bad-")), "nothing of a bad packet is kept");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn p8_a_connection_that_does_not_open_with_a_good_connect_is_closed() {
    let mut gateway = Gateway::plain();
    let flipped = |at: usize, byte: u8| {
        let mut bytes = connect_packet(Version::V311, "flipped", true);
        bytes[at] = byte;
        bytes
    };
    let mut long = connect_packet(Version::V311, "long", true);
    long.push(0);
    long[1] += 1;
    let bad = [
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec()),
        ("a PUBLISH first", publish(Version::V311, "a", b"b", 1, 1, false, None)),
        ("a wrong protocol name", flipped(5, b'X')),
        ("protocol level 9", flipped(8, 9)),
        ("the reserved flag", flipped(9, 3)),
        ("will QoS without a will", flipped(9, 2 | 0x18)),
        ("a user name flag without a user name", flipped(9, 2 | 0x80)),
        ("bytes behind the client id", long),
        ("zeros", vec![0; 64]),
        ("noise", (0..=255).rev().collect()),
    ];
    for (what, bytes) in bad {
        let mut stream = TcpStream::connect(gateway.mqtt).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let _ = stream.write_all(&bytes);
        let mut said = Vec::new();
        let ended = stream.read_to_end(&mut said);
        let closed = ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(closed, "{what}: the connection is still open");
        let welcome = said.first() == Some(&0x20) && said.get(3) == Some(&0);
        assert!(!welcome, "{what} was welcomed: {said:02x?}");
        assert!(gateway.alive(), "{what} ended the gateway\n{}", gateway.log());
    }
    assert!(Client::connect(gateway.mqtt, "good", Version::V311).unwrap().publish("dev/good", b"x").is_ok());
}

#[test]
fn p8_a_payload_over_the_limit_is_refused_with_packet_too_large() {
    let gateway = Setup::default().mqtt("packet_size_max = \"64 KiB\"").start();
    let big = publish(Version::V5, "dev/big", &vec![b'x'; 100 << 10], 1, 1, false, None);
    let answer = answer_to(gateway.mqtt, "big", &big).expect("an answer");
    assert_eq!((answer.kind(), reason_of(&answer)), (kind::DISCONNECT, TOO_LARGE));
    // The promise of a length is enough: nobody waits for, or keeps, the bytes behind it.
    let promise = [0x32, 0xff, 0xff, 0xff, 0x7f];
    let answer = answer_to(gateway.mqtt, "promise", &promise).expect("an answer");
    assert_eq!((answer.kind(), reason_of(&answer)), (kind::DISCONNECT, TOO_LARGE));
}

#[test]
fn p8_half_a_packet_is_nothing() {
    let gateway = Gateway::plain();
    let whole = publish(Version::V5, "dev/half", b"a payload that does not come to its end", 1, 2, false, None);
    for cut in 1..whole.len() {
        let mut client = Client::connect(gateway.mqtt, "half", Version::V5).unwrap();
        assert!(client.publish("dev/whole", b"whole").unwrap() < 0x80);
        client.send_raw(&whole[..cut]).unwrap();
    }
    let kept = aws::read_stream(gateway.api, "default");
    assert_eq!(kept.len(), whole.len() - 1);
    assert!(kept.iter().all(|got| got.data == b"whole"));
}

#[test]
fn p8_more_in_flight_than_the_receive_maximum_ends_the_sender() {
    let gateway = Setup::default().mqtt("receive_maximum = 5").start();
    let mut client = Client::connect(gateway.mqtt, "greedy", Version::V5).unwrap();
    // QoS 2 stays in flight until its PUBREL, which never comes.
    for id in 1..=6 {
        let _ = client.send_raw(&publish(Version::V5, "dev/greedy", b"x", 2, id, false, None));
    }
    let mut last = None;
    while let Ok(packet) = client.read() {
        last = Some(packet);
    }
    let last = last.expect("an answer");
    assert_eq!((last.kind(), reason_of(&last)), (kind::DISCONNECT, RECEIVE_MAXIMUM));
}

#[test]
fn p8_a_pubrel_of_an_unknown_identifier_is_answered_not_found() {
    let gateway = Gateway::plain();
    let answer = answer_to(gateway.mqtt, "pubrel", &packet(0x62, &[0, 9])).expect("an answer");
    assert_eq!((answer.kind(), answer.id(), answer.reason()), (kind::PUBCOMP, 9, ID_NOT_FOUND));
}

/// Three destinations: one that takes, one that is full, and nowhere.
const ROUTES: &str = r#"
[[stream]]
name = "small"
shards = 1
max_bytes = "16 MiB"
on_full = "reject"
[[route]]
topics = ["good/#"]
[[route]]
topics = ["full/#"]
stream = "small"
"#;

/// Publishes until the stream behind `full/#` refuses; how often it did.
fn fill_up(client: &mut Client) -> u64 {
    let mut random = fastrand::Rng::with_seed(8);
    let mut payload = vec![0; 50_000];
    let mut refused = 0;
    for _ in 0..2_000 {
        random.fill(&mut payload);
        refused += u64::from(client.publish("full/t", &payload).unwrap() == QUOTA_EXCEEDED);
        if refused == 20 {
            return refused;
        }
    }
    panic!("16 MiB took 100 MB");
}

/// A topic that no route takes, a payload over the limit, a full stream: MQTT 5 is told why, 3.1.1 is closed behind the
/// acknowledgement of what came before, and all of it is counted, and logged once a burst.
#[test]
fn p8_what_is_refused_has_a_reason_or_is_closed_is_counted_and_logged_once_a_burst() {
    let gateway = Setup::new(ROUTES).mqtt("packet_size_max = \"64 KiB\"").start();
    let begun = Instant::now();
    let mut client = Client::connect(gateway.mqtt, "five", Version::V5).unwrap();
    let full = fill_up(&mut client);
    for _ in 0..20 {
        assert_eq!(client.publish("nowhere", b"x").unwrap(), BAD_TOPIC_NAME);
    }
    // At QoS 0 there is nobody to tell; it is counted.
    client.send_raw(&publish(Version::V5, "nowhere", b"x", 0, 0, false, None)).unwrap();
    assert!(client.publish("good/five", b"x").unwrap() < 0x80, "the connection goes on");
    let big = vec![b'x'; 100 << 10];
    for n in 0..5 {
        let packet = publish(Version::V5, "good/big", &big, 1, 1, false, None);
        let answer = answer_to(gateway.mqtt, &format!("big-{n}"), &packet).expect("an answer");
        assert_eq!((answer.kind(), reason_of(&answer)), (kind::DISCONNECT, TOO_LARGE));
    }
    for n in 0..5 {
        for (topic, payload) in [("nowhere", &b"x"[..]), ("full/t", &big[..50_000]), ("good/big", &big)] {
            let mut old = Client::connect(gateway.mqtt, &format!("old-{n}"), Version::V311).unwrap();
            old.send("good/old", b"before").unwrap();
            let _ = old.send(topic, payload);
            let _ = old.send("good/old", format!("behind {topic}").as_bytes());
            assert_eq!(old.read().map(|packet| (packet.kind(), packet.id())).unwrap(), (kind::PUBACK, 1), "{topic}");
            old.read().expect_err("closed behind what came before");
        }
    }
    for (reason, expected) in [("topic_name", 26), ("stream_full", full + 5), ("too_large", 10)] {
        let name = format!("headwater_rejects_total{{part=\"mqtt\",reason=\"{reason}\"}}");
        assert_eq!(gateway.metric(&name) as u64, expected, "{reason}");
        let lines = gateway.log().lines().filter(|line| line.contains(&format!("reason=\"{reason}\""))).count();
        let most = 1 + begun.elapsed().as_secs() as usize / 10;
        assert!((1..=most).contains(&lines), "{reason} is logged {lines} times\n{}", gateway.log());
    }
    let kept = aws::read_stream(gateway.api, "default");
    let count = |data: &[u8]| kept.iter().filter(|got| got.data == data).count();
    // What stood behind a message that the log itself refused was on its way already: it is kept and not acknowledged.
    assert_eq!([count(b"before"), count(b"behind nowhere"), count(b"behind good/big")], [15, 0, 0]);
}

/// A client that stops in the middle of its CONNECT is let go of in time, so that it cannot hold a place for ever.
#[test]
fn p8_a_connect_that_never_ends_is_cut_off() {
    let gateway = Setup::default().mqtt("connect_within = \"2 s\"").start();
    let mut stream = TcpStream::connect(gateway.mqtt).unwrap();
    stream.write_all(&connect_packet(Version::V5, "half", true)[..7]).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let started = Instant::now();
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    assert!(started.elapsed() < Duration::from_secs(8), "half a CONNECT holds its place");
}

/// Subscribing where one may not, publishing QoS 2 out of order, unsubscribing what was never subscribed: answered, and
/// the session goes on.
#[test]
fn p8_what_is_only_unusual_is_answered_and_the_session_goes_on() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(gateway.mqtt, "unusual", Version::V5).unwrap();
    let mut body = vec![0, 1, 0];
    put_text(&mut body, "never/subscribed");
    client.send_raw(&packet(0xa2, &body)).unwrap();
    let unsuback = client.read().unwrap();
    assert_eq!((unsuback.first, unsuback.body.last()), (0xb0, Some(&0x11)), "no subscription existed");
    let twice = publish(Version::V5, "dev/unusual", b"once", 2, 7, false, None);
    client.send_raw(&twice).unwrap();
    assert_eq!(client.read().unwrap().kind(), kind::PUBREC);
    let again = publish(Version::V5, "dev/unusual", b"once", 2, 7, true, None);
    client.send_raw(&again).unwrap();
    assert_eq!(client.read().unwrap().kind(), kind::PUBREC);
    client.send_raw(&packet(0x62, &[0, 7])).unwrap();
    let pubcomp = client.read().unwrap();
    assert_eq!((pubcomp.kind(), pubcomp.reason()), (kind::PUBCOMP, 0));
    // Answers to what was never asked: clients send some after a reconnect.
    client.send_raw(&[packet(0x40, &[0, 9]), packet(0x70, &[0, 9])].concat()).unwrap();
    assert!(client.publish("dev/unusual", b"goes on").unwrap() < 0x80);
    let kept: Vec<_> = aws::read_stream(gateway.api, "default").into_iter().map(|got| got.data).collect();
    assert_eq!(kept, [b"once".to_vec(), b"goes on".to_vec()]);
}
