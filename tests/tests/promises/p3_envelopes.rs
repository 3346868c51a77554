//! P3 for devices: records that travel in envelopes are stored once and none is lost, whatever is killed between two of them.

use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::mqtt::{Client, Version, kind, packet, put_length, put_text};
use headwater_tests::{aws, tools};
use headwater_wire::{CONTENT_TYPE, Column, ColumnType, Envelope, Hello, Kind, TableWriter, Value};
use std::io::{Read, Write};
use std::net::TcpStream;

const DEVICE: &str = "dev-1";
const EPOCH: u32 = 77;
/// PUBLISHes a device has on their way at once.
const WINDOW: usize = 8;

static COLUMNS: [Column<'static>; 2] = [Column::new("n", ColumnType::Counter), Column::new("k", ColumnType::Integer)];

/// The record of a number. Five keys, over the shards as they fall.
fn json(n: u64) -> String {
    format!(r#"{{"n":{n},"k":{}}}"#, n % 5)
}

/// Numbers `first..first + count`, as they stand or as readings.
fn envelope(first: u64, count: u32, kind: Kind) -> Vec<u8> {
    let mut body = vec![0; 4_096];
    let mut length = 0;
    let numbers = first..first + u64::from(count);
    match kind {
        Kind::Readings => {
            let mut table;
            (table, length) = TableWriter::begin(&COLUMNS, &mut body).unwrap();
            for n in numbers {
                let row = [Value::Integer(n as i64), Value::Integer((n % 5) as i64)];
                length = table.row(&row, &mut body, length).unwrap();
            }
        }
        _ => numbers.for_each(|n| length += headwater_wire::plain(json(n).as_bytes(), &mut body[length..]).unwrap()),
    }
    let mut bytes = vec![0; 64];
    let head = Envelope { kind, epoch: EPOCH, first, count, body: &[] }.write_head(&mut bytes).unwrap();
    bytes.truncate(head);
    bytes.extend_from_slice(&body[..length]);
    bytes
}

fn publish(topic: &str, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    put_text(&mut body, topic);
    body.extend_from_slice(&id.to_be_bytes());
    let mut properties = vec![3];
    put_text(&mut properties, CONTENT_TYPE);
    put_length(&mut body, properties.len());
    body.extend_from_slice(&properties);
    body.extend_from_slice(payload);
    packet(kind::PUBLISH << 4 | 2, &body)
}

/// Connects, subscribes, and reads what the gateway says it has.
fn greeted(gateway: &Gateway) -> (Client, Hello) {
    let mut client = Client::connect(gateway.mqtt, DEVICE, Version::V5).unwrap();
    assert_eq!(client.subscribe(&format!("$headwater/d/{DEVICE}/#"), 0).unwrap(), 0);
    let hello = client.read().unwrap();
    assert_eq!(hello.kind(), kind::PUBLISH);
    let topic = format!("$headwater/d/{DEVICE}/hello");
    let payload = &hello.body[2 + topic.len() + 1..];
    assert_eq!(&hello.body[2..2 + topic.len()], topic.as_bytes());
    (client, Hello::read(payload).unwrap())
}

#[test]
fn p3_a_device_that_sends_envelopes_to_a_gateway_that_is_killed_loses_and_doubles_nothing() {
    let route = "[[stream]]\nname = \"default\"\nshards = 4\n[[route]]\ntopics = [\"#\"]\nstream = \"default\"\nkey = \"{json:/k}\"\n";
    let mut gateway = Setup::new(route).start();
    let mut rng = fastrand::Rng::with_seed(17);
    let rounds = tools::rounds(40, 8);
    // What the device still has is `oldest..`; what it has sent may be on the gateway's disk or not.
    let (mut oldest, mut sent) = (1u64, 1u64);
    for round in 0..=rounds {
        let (mut client, hello) = greeted(&gateway);
        match hello.kept {
            None => assert_eq!(oldest, 1, "a gateway that has acknowledged knows the device"),
            Some((epoch, number)) => {
                assert_eq!(epoch, EPOCH);
                assert!(oldest <= number + 1, "{number} is kept and {} was acknowledged", oldest - 1);
                assert!(number < sent, "{number} is kept and was never sent");
                oldest = number + 1;
            }
        }
        let (mut next, mut lasts) = (oldest, Vec::new());
        for id in 1..=WINDOW as u16 {
            // Another cut than the last time, so what was kept comes again in part.
            let count = rng.u32(1..30);
            let kind = if rng.bool() { Kind::Plain } else { Kind::Readings };
            if client.send_raw(&publish("dev/t", id, &envelope(next, count, kind))).is_err() {
                break;
            }
            next += u64::from(count);
            lasts.push(next - 1);
        }
        sent = sent.max(next);
        let last_round = round == rounds;
        let heard = if last_round { WINDOW } else { rng.usize(0..=WINDOW) };
        let mut answers = Vec::new();
        for _ in 0..heard {
            answers.push(client.read().unwrap());
        }
        if !last_round {
            gateway.kill();
            // What left the gateway before is a promise too.
            while let Ok(answer) = client.read() {
                answers.push(answer);
            }
            gateway.restart();
        }
        for (nth, answer) in answers.iter().enumerate() {
            assert_eq!((usize::from(answer.id()), answer.reason()), (nth + 1, 0));
            oldest = lasts[nth] + 1;
        }
    }
    // What was sent beyond this was on its way when a gateway went, and was not sent again: it is nowhere.
    let end = oldest;
    let (_client, hello) = greeted(&gateway);
    assert_eq!(hello.kept, Some((EPOCH, end - 1)));

    let kept: Vec<String> =
        aws::read_stream(gateway.api, "default").into_iter().map(|got| String::from_utf8(got.data).unwrap()).collect();
    for k in 0..5 {
        let of_key: Vec<&String> = kept.iter().filter(|data| data.ends_with(&format!(":{k}}}"))).collect();
        let expected: Vec<String> = (1..end).filter(|n| n % 5 == k).map(json).collect();
        assert_eq!(of_key, expected.iter().collect::<Vec<_>>(), "of key {k}, in order");
    }
    assert_eq!(kept.len() as u64, end - 1);
    assert_eq!(gateway.metric("headwater_device_lost_records_total"), 0.0);
}

fn http(gateway: &Gateway, line: &str, body: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(gateway.console).unwrap();
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
    socket.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[test]
fn an_operator_sees_a_device_leaves_it_a_setting_and_asks_it_a_command() {
    let mut gateway = Gateway::plain();
    let config = format!("PUT /devices/{DEVICE}/config");
    assert_eq!(http(&gateway, &config, "period=5").0, 200);
    gateway.restart();
    let (mut client, hello) = greeted(&gateway);
    assert_eq!((hello.waiting, hello.kept), (1, None));
    assert!(client.read().unwrap().body.ends_with(b"period=5"), "what was left for it outlives a kill");
    client.send_raw(&publish("dev/t", 1, &envelope(1, 3, Kind::Plain))).unwrap();
    assert_eq!(client.read().unwrap().reason(), 0);
    let list: serde_json::Value = serde_json::from_str(&gateway.http_get("/devices").1).unwrap();
    assert_eq!((&list[0]["id"], &list[0]["connected"]), (&DEVICE.into(), &true.into()), "{list}");
    assert_eq!(list[0]["kept"], serde_json::json!({ "epoch": EPOCH, "sequence": 3 }), "{list}");

    let command = format!("POST /devices/{DEVICE}/command?timeout=10s");
    let device = std::thread::spawn(move || {
        let command = client.read().unwrap();
        assert!(command.body.ends_with(b"uptime"));
        // Response topic, then correlation data: back they go.
        let topic = format!("$headwater/d/{DEVICE}/answer");
        let properties = &command.body[2 + format!("$headwater/d/{DEVICE}/command").len() + 1..];
        let correlation = &properties[3 + topic.len()..][..11];
        let mut answer = Vec::new();
        put_text(&mut answer, &topic);
        put_length(&mut answer, correlation.len());
        answer.extend_from_slice(correlation);
        answer.extend_from_slice(b"three days");
        client.send_raw(&packet(kind::PUBLISH << 4, &answer)).unwrap();
        client
    });
    assert_eq!(http(&gateway, &command, "uptime"), (200, "three days".into()));
    let _client = device.join().unwrap();
    assert_eq!(http(&gateway, &format!("POST /devices/{DEVICE}/command?timeout=100ms"), "again").0, 504);
    assert_eq!(http(&gateway, "POST /devices/other/command", "x").0, 404);
}
