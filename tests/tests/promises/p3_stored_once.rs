//! P3: a numbered record is stored once: a reconnect, a retransmission or a restart of the gateway never doubles it.

use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::mqtt::{Client, Version};
use headwater_tests::{aws, tools};

fn kept(gateway: &Gateway) -> Vec<String> {
    let records = aws::read_stream(gateway.api, "default");
    records.into_iter().map(|got| String::from_utf8(got.data).unwrap()).collect()
}

/// Publishes numbers `from..=to` of an epoch, each acknowledged.
fn publish(gateway: &Gateway, device: &str, epoch: u32, numbers: std::ops::RangeInclusive<u64>, again: bool) {
    let mut client = Client::connect(gateway.mqtt, device, Version::V5).unwrap();
    for n in numbers {
        let data = format!("{device}/{epoch}/{n}");
        let id = client.send_numbered("dev/t", data.as_bytes(), (epoch, n), again).unwrap();
        let answer = client.read().unwrap();
        assert_eq!((answer.id(), answer.reason() & 0x80), (id, 0), "a duplicate is acknowledged like a stored one");
    }
}

#[test]
fn p3_a_reconnect_that_sends_again_doubles_nothing() {
    let gateway = Gateway::plain();
    publish(&gateway, "a", 1, 1..=20, false);
    publish(&gateway, "a", 1, 11..=30, true);
    assert_eq!(kept(&gateway), (1..=30).map(|n| format!("a/1/{n}")).collect::<Vec<_>>());
}

#[test]
fn p3_a_restart_of_the_gateway_forgets_no_number() {
    let mut gateway = Gateway::plain();
    publish(&gateway, "a", 1, 1..=20, false);
    gateway.restart();
    publish(&gateway, "a", 1, 1..=25, true);
    // A graceful stop folds everything: the numbers must not live in the journal alone.
    gateway.stop();
    gateway.restart();
    publish(&gateway, "a", 1, 20..=30, true);
    assert_eq!(kept(&gateway), (1..=30).map(|n| format!("a/1/{n}")).collect::<Vec<_>>());
}

#[test]
fn p3_a_device_that_rebooted_counts_from_one_in_a_new_epoch() {
    let gateway = Gateway::plain();
    publish(&gateway, "a", 1, 1..=5, false);
    publish(&gateway, "a", 2, 1..=5, false);
    let first = (1..=5).map(|n| format!("a/1/{n}"));
    assert_eq!(kept(&gateway), first.chain((1..=5).map(|n| format!("a/2/{n}"))).collect::<Vec<_>>());
}

// The last number was remembered of the device, not of the device and the shard: what went to the second shard of a
// hand-in had lower numbers than what went to the first, was taken for stored, acknowledged, and was nowhere.
#[test]
fn p3_a_device_numbers_across_shards_and_nothing_is_taken_for_stored() {
    let route = "[[stream]]\nname = \"default\"\nshards = 4\n[[route]]\ntopics = [\"#\"]\nstream = \"default\"\nkey = \"{topic}\"\n";
    let mut gateway = Setup::new(route).start();
    let topic = |n: u64| format!("dev/{}", n % 16);
    let send = |gateway: &Gateway, numbers: std::ops::RangeInclusive<u64>| {
        let mut client = Client::connect(gateway.mqtt, "a", Version::V5).unwrap();
        for n in numbers.clone() {
            client.send_numbered(&topic(n), n.to_string().as_bytes(), (1, n), false).unwrap();
        }
        numbers.for_each(|_| assert!(client.read().unwrap().reason() < 0x80));
    };
    send(&gateway, 1..=200);
    gateway.restart();
    send(&gateway, 150..=300);
    let mut there: Vec<u64> = kept(&gateway).iter().map(|n| n.parse().unwrap()).collect();
    there.sort_unstable();
    assert_eq!(there, (1..=300).collect::<Vec<_>>());
}

#[test]
fn p3_devices_do_not_share_numbers() {
    let gateway = Setup::new("[[stream]]\nname = \"default\"\nshards = 1\n").start();
    for device in ["a", "b", "c"] {
        publish(&gateway, device, 1, 1..=10, false);
    }
    assert_eq!(kept(&gateway).len(), 30);
}

#[test]
fn p3_the_same_number_sent_over_and_over_in_a_full_window_is_stored_once() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(gateway.mqtt, "eager", Version::V5).unwrap();
    let sent = tools::rounds(2_000, 500);
    for n in 0..sent {
        client.send_numbered("dev/t", format!("{}", n / 4).as_bytes(), (7, 1 + n as u64 / 4), true).unwrap();
        if n >= 20 {
            assert!(client.read().unwrap().reason() < 0x80);
        }
    }
    for _ in 0..20 {
        assert!(client.read().unwrap().reason() < 0x80);
    }
    assert_eq!(kept(&gateway), (0..sent / 4).map(|n| n.to_string()).collect::<Vec<_>>());
}
