//! `$headwater/d/{client id}/...`: the greeting, what operators send down, and what comes back.

use super::harness::*;
use crate::mqtt::{MqttConfig, RouteConfig};
use headwater_wire::{Hello, Losses};

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

#[tokio::test]
async fn what_is_kept_for_a_device_is_told_with_every_greeting() {
    use crate::mqtt::{NotKept, Setting};
    let mut gateway = Gateway::start().await;
    let devices = gateway.mqtt.as_ref().unwrap().devices();
    devices.keep("d1", Setting::Config, "period=5".into()).await.unwrap();
    let (mut client, hello) = greeted(&gateway, "d1").await;
    assert_eq!(hello.waiting, 1);
    assert_eq!(payload_of(&client.packet().await, "$headwater/d/d1/config"), b"period=5");
    // One that is there hears at once; the others hear nothing.
    let (mut other, hello) = greeted(&gateway, "d2").await;
    assert_eq!(hello.waiting, 0);
    devices.keep("d1", Setting::Log, "debug".into()).await.unwrap();
    devices.keep("d1", Setting::Config, "period=9".into()).await.unwrap();
    assert_eq!(payload_of(&client.packet().await, "$headwater/d/d1/log"), b"debug");
    assert_eq!(payload_of(&client.packet().await, "$headwater/d/d1/config"), b"period=9");
    other.expect_silence().await;
    gateway.restart().await;
    let (mut client, hello) = greeted(&gateway, "d1").await;
    assert_eq!(hello.waiting, 2);
    assert_eq!(payload_of(&client.packet().await, "$headwater/d/d1/config"), b"period=9");
    assert_eq!(payload_of(&client.packet().await, "$headwater/d/d1/log"), b"debug");
    let devices = gateway.mqtt.as_ref().unwrap().devices();
    for setting in [Setting::Config, Setting::Log] {
        devices.keep("d1", setting, "".into()).await.unwrap();
    }
    assert_eq!(greeted(&gateway, "d1").await.1.waiting, 0);
    assert!(matches!(devices.keep("a/b", Setting::Config, "x".into()).await, Err(NotKept::Id)));
    let long = vec![0; 4_097].into();
    assert!(matches!(devices.keep("d1", Setting::Config, long).await, Err(NotKept::TooLong)));
}

#[tokio::test]
async fn a_command_reaches_the_device_and_its_answer_comes_back() {
    use crate::mqtt::NoAnswer;
    use std::time::Duration;
    let gateway = Gateway::start().await;
    let devices = gateway.mqtt.as_ref().unwrap().devices();
    let brief = Duration::from_millis(100);
    assert_eq!(devices.command("d1", "x".into(), brief).await, Err(NoAnswer::NotConnected));
    let (mut client, _) = greeted(&gateway, "d1").await;
    let asked = tokio::spawn({
        let devices = devices.clone();
        async move { devices.command("d1", "uptime".into(), SOON).await }
    });
    let command = client.packet().await;
    assert_eq!(payload_of(&command, "$headwater/d/d1/command"), b"uptime");
    let properties = &command[2 + text("$headwater/d/d1/command").len() + 1..];
    let answer_topic = [&[0x08][..], &text("$headwater/d/d1/answer")].concat();
    let correlation = properties.strip_prefix(&answer_topic[..]).expect("a response topic first");
    let correlation = correlation[..11].to_vec();
    assert_eq!(correlation[..3], [0x09, 0, 8]);
    // Answers that nobody asked for are taken and forgotten.
    let mut other = correlation.clone();
    other[10] ^= 1;
    for (id, properties) in [(1, &[][..]), (2, &other[..]), (3, &correlation[..])] {
        client.send(&publish5(1, id, "$headwater/d/d1/answer", properties, "three days")).await;
        client.expect(&packet(0x40, &id.to_be_bytes())).await;
    }
    assert_eq!(asked.await.unwrap().unwrap(), "three days");
    assert_eq!(gateway.payloads("default").len(), 0);

    assert_eq!(devices.command("d1", "x".into(), brief).await, Err(NoAnswer::Late));
    client.packet().await;
    let list = devices.list();
    assert_eq!((list.len(), list[0].id.as_str(), list[0].connected), (1, "d1", true));
    let leaves = tokio::spawn({
        let devices = devices.clone();
        async move { devices.command("d1", "x".into(), SOON).await }
    });
    client.packet().await;
    drop(client);
    assert_eq!(leaves.await.unwrap(), Err(NoAnswer::Late), "told when it leaves, not when the time is over");
    assert_eq!(devices.command("d1", "x".into(), SOON).await, Err(NoAnswer::NotConnected));
    assert!(!devices.list()[0].connected);
}

#[tokio::test]
async fn p6_a_device_that_answers_nothing_holds_a_bounded_number_of_commands() {
    use crate::mqtt::NoAnswer;
    let gateway = Gateway::start().await;
    let devices = gateway.mqtt.as_ref().unwrap().devices();
    let (_client, _) = greeted(&gateway, "d1").await;
    let brief = std::time::Duration::from_millis(300);
    let ask = |_| {
        tokio::spawn({
            let devices = devices.clone();
            async move { devices.command("d1", "x".into(), brief).await }
        })
    };
    let asked: Vec<_> = (0..50).map(ask).collect();
    let (mut late, mut busy) = (0, 0);
    for asked in asked {
        match asked.await.unwrap() {
            Err(NoAnswer::Late) => late += 1,
            Err(NoAnswer::Busy) => busy += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((late, busy), (8, 42));
    assert_eq!(devices.command("d1", "x".into(), brief).await, Err(NoAnswer::Late), "there is room again");
}

#[tokio::test]
async fn p5_what_a_device_tells_of_its_losses_is_shown() {
    let gateway = Gateway::start().await;
    let devices = gateway.mqtt.as_ref().unwrap().devices();
    let (mut client, _) = greeted(&gateway, "d1").await;
    assert_eq!(devices.list()[0].losses, None);
    let losses = Losses { dropped_oldest: 7, thinned: 2, pending: 40, erases: 3, ..Losses::default() };
    let payload = String::from_utf8(losses.to_bytes().to_vec()).unwrap();
    client.send(&publish5(1, 1, "$headwater/d/d1/losses", &[], &payload)).await;
    client.expect(&[0x40, 2, 0, 1]).await;
    assert_eq!(devices.list()[0].losses.as_ref().map(|told| (told["thinned"], told["pending"])), Some((2, 40)));
    // Who says it wrongly is told, and what it said before stays.
    for (id, payload) in [(2, "no losses"), (3, "")] {
        client.send(&publish5(1, id, "$headwater/d/d1/losses", &[], payload)).await;
        client.expect(&[0x40, 3, 0, id as u8, 0x99]).await;
    }
    client.send(&publish5(1, 4, "$headwater/d/d2/losses", &[], &payload)).await;
    client.expect(&[0x40, 3, 0, 4, 0x90]).await;
    assert_eq!(devices.list()[0].losses.as_ref().map(|told| told["dropped_oldest"]), Some(7));
    assert_eq!(gateway.payloads("default").len(), 0);
}

/// Takes packets of so many bytes.
async fn small(gateway: &Gateway, id: &str, packet_bytes_max: u32) -> (Client, Hello) {
    let mut client = gateway.client().await;
    let properties = [&[0x27][..], &packet_bytes_max.to_be_bytes()].concat();
    client.send(&connect_with(5, true, id, &properties)).await;
    assert_eq!(client.packet().await[0], 0x20);
    client.send(&subscribe(5, 9, &format!("$headwater/d/{id}/#"), 1)).await;
    client.expect(&[0x90, 4, 0, 9, 0, 1]).await;
    let hello = client.packet().await;
    (client, Hello::read(&payload_of(&hello, &format!("$headwater/d/{id}/hello"))).unwrap())
}

// A configuration larger than the device's Maximum Packet Size was taken with 200 and left out in silence; a command that
// was ended as one that the device did not answer in time.
#[tokio::test]
async fn what_a_connected_device_cannot_take_is_refused_and_what_it_has_is_kept() {
    use crate::mqtt::{NoAnswer, NotKept, Setting};
    let gateway = Gateway::start().await;
    let devices = gateway.mqtt.as_ref().unwrap().devices();
    let (mut client, _) = small(&gateway, "d1", 512).await;
    assert_eq!(devices.list()[0].packet_bytes_max, Some(512));
    devices.keep("d1", Setting::Config, "period=5".into()).await.unwrap();
    assert_eq!(payload_of(&client.packet().await, "$headwater/d/d1/config"), b"period=5");
    let long = || bytes::Bytes::from(vec![b'x'; 600]);
    let refused = devices.keep("d1", Setting::Config, long()).await.unwrap_err();
    let NotKept::TooLarge(too_large) = refused else { panic!("{refused}") };
    assert!(refused.to_string().contains("at most 512 bytes"), "{refused}");
    let refused = devices.command("d1", long(), SOON).await.unwrap_err();
    assert!(matches!(refused, NoAnswer::TooLarge(told) if told.takes == 512), "{refused}");
    client.expect_silence().await;
    // As long as it was told that it may be.
    let fits = bytes::Bytes::from(vec![b'y'; too_large.payload_max]);
    devices.keep("d1", Setting::Config, fits.clone()).await.unwrap();
    let packet = client.packet().await;
    assert!(packet.ends_with(&fits) && (510..=512).contains(&packet.len()), "{}", packet.len());
    assert!(devices.list()[0].too_large.is_empty());
    assert_eq!(small(&gateway, "d1", 512).await.1.waiting, 1);
}

#[tokio::test]
async fn p5_what_is_kept_for_a_device_that_comes_and_cannot_take_it_is_told() {
    use crate::mqtt::Setting;
    let gateway = Gateway::start().await;
    let devices = gateway.mqtt.as_ref().unwrap().devices();
    devices.keep("d1", Setting::Config, vec![b'x'; 600].into()).await.unwrap();
    devices.keep("d1", Setting::Log, "debug".into()).await.unwrap();
    let (mut client, hello) = small(&gateway, "d1", 512).await;
    assert_eq!(hello.waiting, 1, "what will not come is not announced");
    assert_eq!(payload_of(&client.packet().await, "$headwater/d/d1/log"), b"debug");
    assert_eq!(gateway.rejects("device_too_small"), 1);
    let told = devices.list().remove(0);
    assert_eq!(told.too_large.into_iter().collect::<Vec<_>>(), [("config", 600 + 2 + 22 + 1 + 3)]);
    assert_eq!(told.packet_bytes_max, Some(512));
    // A larger one is the same device with more room: it gets what was kept all the time.
    let (mut client, hello) = small(&gateway, "d1", 4_096).await;
    assert_eq!(hello.waiting, 2);
    assert!(client.packet().await.ends_with(&[b'x'; 600]));
    assert!(devices.list()[0].too_large.is_empty());
    // Away again, it is known what it takes; an empty one takes the mark away.
    drop(small(&gateway, "d1", 512).await);
    let gone = async {
        while devices.list()[0].connected {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(SOON, gone).await.unwrap();
    assert!(devices.list()[0].too_large.contains_key("config"));
    devices.keep("d1", Setting::Config, "".into()).await.unwrap();
    assert!(devices.list()[0].too_large.is_empty());
}
