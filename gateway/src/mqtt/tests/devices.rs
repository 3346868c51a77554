//! `$headwater/d/{client id}/...`: the greeting, what operators send down, and what comes back.

use super::harness::*;
use crate::mqtt::{MqttConfig, RouteConfig};
use headwater_wire::Hello;

/// Subscribes to the device's own topics and reads the greeting.
async fn greeted(gateway: &Gateway, id: &str) -> (Client, Hello) {
    let mut client = gateway.connected(5, id).await;
    client.send(&subscribe(5, 9, &format!("$headwater/d/{id}/#"), 1)).await;
    client.expect(&[0x90, 4, 0, 9, 0, 1]).await;
    let hello = client.packet().await;
    let payload = payload_of(&hello, &format!("$headwater/d/{id}/hello"));
    (client, Hello::read(&payload).unwrap())
}

/// Of a QoS 0 PUBLISH of MQTT 5 to the topic, of less than 128 bytes.
fn payload_of(packet: &[u8], topic: &str) -> Vec<u8> {
    assert_eq!(packet[0], 0x30, "{packet:?}");
    let rest = packet[2..].strip_prefix(&text(topic)[..]).unwrap_or_else(|| panic!("{topic}: {packet:?}"));
    rest[1 + usize::from(rest[0])..].to_vec()
}

fn number(n: u64) -> Vec<u8> {
    user_property(crate::mqtt::NUMBER_PROPERTY, &format!("7/{n}"))
}

#[tokio::test]
async fn a_device_is_told_the_time_and_the_last_of_its_numbers_that_is_on_disk() {
    let mut gateway = Gateway::start().await;
    let (mut client, hello) = greeted(&gateway, "d1").await;
    assert_eq!((hello.kept, hello.waiting), (None, 0));
    let now = crate::clock::Clock::system().now();
    assert!(if now.trusted { now.wall_ms.abs_diff(hello.time_ms) < 60_000 } else { hello.time_ms == 0 }, "{hello:?}");
    for n in 1..=3u16 {
        client.send(&publish5(1, n, "a", &number(u64::from(n)), "x")).await;
        client.expect(&packet(0x40, &n.to_be_bytes())).await;
    }
    let (_client, hello) = greeted(&gateway, "d1").await;
    assert_eq!(hello.kept, Some((7, 3)));
    assert_eq!(greeted(&gateway, "d2").await.1.kept, None);
    gateway.restart().await;
    let (mut client, hello) = greeted(&gateway, "d1").await;
    assert_eq!(hello.kept, Some((7, 3)));
    // Once more, by an UNSUBSCRIBE and a second SUBSCRIBE.
    client.send(&packet(0xa2, &[&[0, 1, 0][..], &text("$headwater/d/d1/#")].concat())).await;
    client.expect(&[0xb0, 4, 0, 1, 0, 0]).await;
    client.send(&subscribe(5, 2, "$headwater/d/d1/hello", 0)).await;
    client.expect(&[0x90, 4, 0, 2, 0, 0]).await;
    let again = client.packet().await;
    assert_eq!(Hello::read(&payload_of(&again, "$headwater/d/d1/hello")).unwrap().kept, Some((7, 3)));
}

#[tokio::test]
async fn nobody_reaches_the_topics_of_another_device() {
    // Not even where a route and a right would give them.
    let all = RouteConfig {
        topics: vec!["$headwater/#".into(), "#".into()],
        stream: "default".into(),
        key: "{client_id}".into(),
        store: true,
    };
    let gateway = Gateway::with(MqttConfig::default(), &[all], &[]).await;
    let mut client = gateway.connected(5, "d1").await;
    for filter in ["$headwater/d/d2/#", "$headwater/d/+/#", "$headwater/#", "$headwater/d/d1", "$headwater/d/d10/#"] {
        client.send(&subscribe(5, 1, filter, 0)).await;
        client.expect(&[0x90, 4, 0, 1, 0, 0x87]).await;
    }
    for topic in ["$headwater/d/d2/answer", "$headwater/d/d1/config", "$headwater/d/d1/hello", "$headwater/x"] {
        client.send(&publish5(1, 1, topic, &[], "x")).await;
        client.expect(&[0x40, 3, 0, 1, 0x90]).await;
    }
    assert_eq!(gateway.payloads("default").len(), 0);
}
