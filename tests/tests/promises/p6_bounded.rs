//! P6: everything is bounded: memory, disk, queues, connections, request sizes. A full disk is a policy, never an exit and
//! never corruption.

use crate::disk::SmallDisk;
use headwater_tests::audit::{Fleet, Verdict, audit};
use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::mqtt::{Client, Version, kind, packet, publish, put_length};
use headwater_tests::{aws, need, tools};
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// MQTT 5: the reason for a record that a full stream refuses.
const QUOTA_EXCEEDED: u8 = 0x97;

/// Blocks on disk below a folder, in bytes.
fn used(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(about) if about.is_dir() => used(&entry.path()),
            Ok(about) => about.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut payload = vec![0; bytes];
    fastrand::fill(&mut payload);
    payload
}

#[test]
fn p6_an_idle_gateway_takes_less_than_24_mb() {
    let gateway = Gateway::plain();
    std::thread::sleep(Duration::from_secs(2));
    let resident = gateway.resident();
    assert!(resident > 0 && resident < 24_000_000, "{resident} bytes resident");
}

#[test]
fn p6_the_data_directory_stays_within_its_budget() {
    let gateway = Setup::default().data("max_bytes = \"64 MiB\"").start();
    let mut client = Client::connect(gateway.mqtt, "filler", Version::V5).unwrap();
    let (mut most, mut acked) = (0, 0u64);
    for n in 0..20_000 {
        client.send("dev/filler", &noise(10_000)).unwrap();
        if n >= 16 {
            acked += u64::from(client.read().unwrap().reason() < 0x80);
        }
        if n % 500 == 0 {
            most = most.max(used(&gateway.dir()));
        }
    }
    most = most.max(used(&gateway.dir()));
    assert!(most <= 64 * MIB, "{most} bytes on disk with a budget of {}", 64 * MIB);
    assert_eq!(acked, 20_000 - 16, "drop-oldest refuses nothing");
    let kept = aws::read_stream(gateway.api, "default").len() as u64 * 10_000;
    assert!(kept > 8 * MIB, "a budget of 64 MiB holds only {kept} bytes");
}

#[test]
fn p6_a_full_stream_under_reject_says_so_and_keeps_what_it_acknowledged() {
    let stream = "[[stream]]\nname = \"default\"\nshards = 1\nmax_bytes = \"16 MiB\"\non_full = \"reject\"\n";
    let gateway = Setup::new(stream).start();
    let mut client = Client::connect(gateway.mqtt, "filler", Version::V5).unwrap();
    let (mut acked, mut refused) = (Vec::new(), 0);
    for n in 0..4_000u32 {
        let mut payload = noise(10_000);
        payload[..4].copy_from_slice(&n.to_be_bytes());
        match client.publish("dev/filler", &payload).unwrap() {
            QUOTA_EXCEEDED => refused += 1,
            reason if reason < 0x80 => acked.push(n),
            other => panic!("message {n} was answered with {other:#04x}"),
        }
        if refused > 50 {
            break;
        }
    }
    assert!(refused > 50, "16 MiB took {} records of 10,000 bytes and refused {refused}", acked.len());
    let kept = aws::read_stream(gateway.api, "default");
    let kept: Vec<_> = kept.iter().map(|got| u32::from_be_bytes(got.data[..4].try_into().unwrap())).collect();
    assert_eq!(kept, acked, "exactly what was acknowledged, in order");
    // MQTT 3.1.1 has no reason codes: no PUBACK, by the documented policy.
    let mut old = Client::connect(gateway.mqtt, "old-filler", Version::V311).unwrap();
    old.send("dev/old", &noise(10_000)).unwrap();
    let answer = old.read_within(Duration::from_secs(2));
    assert!(!matches!(&answer, Ok(Some(packet)) if packet.kind() == kind::PUBACK), "{answer:?}");
}

#[test]
fn p6_memory_stays_bounded_while_subscribers_never_read() {
    let gateway = Gateway::plain();
    let mut deaf = Vec::new();
    for n in 0..100 {
        let mut client = Client::connect(gateway.mqtt, &format!("deaf-{n}"), Version::V5).unwrap();
        client.subscribe("#", if n % 2 == 0 { 0 } else { 1 }).unwrap();
        deaf.push(client);
    }
    let mut client = Client::connect(gateway.mqtt, "talker", Version::V5).unwrap();
    let mut most = 0;
    for n in 0..6_000 {
        client.send("dev/talker", &noise(10_000)).unwrap();
        if n >= 16 {
            client.read().unwrap();
        }
        if n % 100 == 0 {
            most = most.max(gateway.resident());
        }
    }
    assert!(most < 128_000_000, "{most} bytes resident after 60 MB for a hundred subscribers that never read");
}

/// Once each of these took hundreds of megabytes or more: a buffer was as large as the packet that was announced, a filter
/// was held three times whatever its length, the list of a message's headers kept the room of the longest there was, and
/// each subscriber that never read held sixty-four large records of its own.
#[test]
fn p6_memory_stays_bounded_whatever_a_crowd_announces_asks_for_or_does_not_take() {
    let gateway = Gateway::plain();
    let mut most = 0;
    let mut look = |what: &str| {
        let now = gateway.resident();
        eprintln!("{what}: {now} bytes resident");
        most = most.max(now);
    };
    // Strangers who announce a CONNECT of 60,000 bytes and send ten.
    let mut strangers = Vec::new();
    for _ in 0..1_000 {
        let mut client = Client::open(gateway.mqtt, Version::V5).unwrap();
        client.send_raw(b"\x10\xe0\xd4\x03\0\x04MQTT").unwrap();
        strangers.push(client);
    }
    look("strangers");
    let connect = |name: &str, n: usize| Client::connect(gateway.mqtt, &format!("{name}-{n}"), Version::V5).unwrap();
    // Filters of 60,000 bytes each, as many as there may be subscriptions.
    let mut greedy: Vec<_> = (0..20).map(|n| connect("filters", n)).collect();
    for client in &mut greedy {
        for n in 0..128 {
            client.subscribe(&format!("{n}/{}", "x".repeat(60_000)), 1).unwrap();
        }
    }
    look("filters");
    // Messages with two hundred thousand properties.
    let mut body = vec![0, 1, b't', 0, 1];
    put_length(&mut body, 5 * 200_000);
    body.extend([0x26, 0, 0, 0, 0].repeat(200_000));
    let many = packet(kind::PUBLISH << 4 | 2, &body);
    // And with few, but as long as they may be.
    let mut body = vec![0, 1, b't', 0, 1];
    put_length(&mut body, 15 * 60_005);
    body.extend([&[0x26, 0, 0, 0xea, 0x60][..], &vec![b'x'; 60_000]].concat().repeat(15));
    let long = packet(kind::PUBLISH << 4 | 2, &body);
    let mut lists: Vec<_> = (0..200).map(|n| connect("properties", n)).collect();
    for (n, client) in lists.iter_mut().enumerate() {
        client.send_raw(if n < 40 { &many } else { &long }).unwrap();
        assert_eq!(client.read().unwrap().reason(), QUOTA_EXCEEDED);
    }
    look("properties");
    // Packets that are never whole.
    let mut unfinished: Vec<_> = (0..1_000).map(|n| connect("unfinished", n)).collect();
    let message = publish(Version::V5, "t", &vec![0; 60_000], 1, 1, false, None);
    for client in &mut unfinished {
        client.send_raw(&message[..50_000]).unwrap();
    }
    look("unfinished");
    // Subscribers that never read, and messages as large as they may be.
    let mut deaf: Vec<_> = (0..100).map(|n| connect("deaf", n)).collect();
    for (n, client) in deaf.iter_mut().enumerate() {
        client.subscribe("#", (n % 2) as u8).unwrap();
    }
    let mut talker = connect("talker", 0);
    // The unfinished packets hold all the room there is for large ones; it is theirs only until somebody wants it.
    for n in 0..tools::rounds(200, 60) {
        assert!(talker.publish("t", &noise(900_000)).unwrap() < 0x80);
        if n % 10 == 0 {
            look("deaf");
        }
    }
    assert!(most < 160_000_000, "{most} bytes resident");
}

/// Once the process grew by each large message until the next fold: the record that refers to it kept the room that its
/// value would have taken.
#[test]
fn p6_memory_does_not_grow_with_the_number_of_large_messages() {
    let gateway = Gateway::plain();
    let mut client = Client::connect(gateway.mqtt, "large", Version::V5).unwrap();
    let payload = noise(400_000);
    for n in 0..tools::rounds(500, 200) {
        assert!(client.publish("t", &payload).unwrap() < 0x80);
        if n % 50 == 0 {
            let now = gateway.resident();
            assert!(now < 40_000_000, "{now} bytes resident after {n} messages");
        }
    }
}

#[test]
fn p6_connections_over_the_limit_are_refused_and_the_others_stay() {
    let gateway = Setup::default().mqtt("connections_max = 50").start();
    let mut held: Vec<_> = (0..50)
        .map(|n| Client::connect(gateway.mqtt, &format!("held-{n}"), Version::V5).expect("within the limit"))
        .collect();
    let refused = (0..20).filter(|n| Client::connect(gateway.mqtt, &format!("late-{n}"), Version::V5).is_err()).count();
    assert_eq!(refused, 20);
    for client in &mut held {
        assert!(client.publish("dev/held", b"still here").unwrap() < 0x80);
    }
    held.pop();
    let again = || Client::connect(gateway.mqtt, "after", Version::V5).is_ok();
    assert!(tools::eventually(Duration::from_secs(5), again), "a place that was left is given again");
}

/// A gateway whose shell set this limit on open files, and a crowd of 400 that comes in and stays.
fn crowd(limit: &str) -> (Gateway, Vec<Client>) {
    let limited = format!("ulimit {limit} && exec \"$@\"");
    let gateway = Setup::default().under(&["bash", "-c", &limited, "--"]).start();
    let connect = |n| Client::connect(gateway.mqtt, &format!("crowd-{n}"), Version::V5).ok();
    let held = (0..400).filter_map(connect).collect();
    (gateway, held)
}

/// Once a crowd of connections used up all descriptors: the log could open no file, the AWS door accepted nobody. Now
/// connections are counted against the limit on open files, and the rest of the gateway has its share of it.
#[test]
fn p6_a_crowd_leaves_descriptors_to_the_log_and_the_other_doors() {
    let (mut gateway, mut held) = crowd("-n 256");
    assert!((100..200).contains(&held.len()), "{} of 400 came in", held.len());
    assert!(gateway.metric("headwater_rejects_total") >= 200.0, "counted, on a door that still opens");
    // Enough for folds, which open segments.
    for n in 0..1_200u32 {
        let mut payload = noise(10_000);
        payload[..4].copy_from_slice(&n.to_be_bytes());
        assert!(held[0].publish("dev/crowd", &payload).unwrap() < 0x80);
    }
    assert_eq!(aws::read_stream(gateway.api, "default").len(), 1_200);
    assert!(gateway.log().contains("open files"), "it is told at the start\n{}", gateway.log());
    assert!(!gateway.log().contains(" ERROR "), "{}", gateway.log());
    gateway.restart();
    assert_eq!(aws::read_stream(gateway.api, "default").len(), 1_200);
}

/// A shell's soft limit is for programs that use select(); what the hard limit allows is taken.
#[test]
fn p6_the_soft_limit_on_open_files_is_raised() {
    let (gateway, held) = crowd("-Sn 256");
    assert_eq!(held.len(), 400);
    assert!(!gateway.log().contains("open files"), "{}", gateway.log());
}

/// The disk fills up with something that is not ours. Acknowledgements stop; nothing acknowledged is lost; and when the
/// space is back, ingest goes on by itself.
#[test]
fn p6_a_full_disk_is_survived_and_ingest_goes_on_when_space_returns() {
    let disk = need!(SmallDisk::mount(256), "no small file system can be mounted here");
    let setup = Setup::new("[[stream]]\nname = \"default\"\nshards = 1\non_full = \"reject\"\n");
    let mut gateway = setup.data("max_bytes = \"1 GiB\"").dir(&disk.path().join("data")).start();
    let mut acked = Vec::new();
    let mut n = 0u32;
    let mut publish = |gateway: &Gateway, acked: &mut Vec<u32>| -> bool {
        n += 1;
        let mut payload = noise(10_000);
        payload[..4].copy_from_slice(&n.to_be_bytes());
        let Ok(mut client) = Client::connect(gateway.mqtt, "filler", Version::V5) else { return false };
        let answered = client.send("dev/filler", &payload).and_then(|_| client.read_within(Duration::from_secs(2)));
        let good = matches!(answered, Ok(Some(puback)) if puback.kind() == kind::PUBACK && puback.reason() < 0x80);
        if good {
            acked.push(n);
        }
        good
    };
    for _ in 0..200 {
        assert!(publish(&gateway, &mut acked), "an empty disk takes records");
    }
    let ballast = disk.fill_but(0);
    let full = Instant::now();
    let mut refused = 0;
    while refused < 5 && full.elapsed() < Duration::from_secs(60) {
        refused += u32::from(!publish(&gateway, &mut acked));
    }
    assert!(refused >= 5, "{} records were acknowledged and the disk is full", acked.len());
    assert!(gateway.alive(), "a full disk must not end the gateway\n{}", gateway.log());
    let (status, says) = (gateway.http_get("/readyz").0, gateway.http_get("/status").1);
    assert_eq!(status, 503, "a gateway that takes no record is not ready\n{says}");
    assert!(says.contains("the file system is full") && says.contains("\"ready\": false"), "{says}");
    std::fs::remove_file(ballast).unwrap();
    let goes_on = tools::eventually(Duration::from_secs(30), || publish(&gateway, &mut acked));
    assert!(goes_on, "space is back and ingest is not\n{}", gateway.log());
    let ready = || gateway.http_get("/readyz").0 == 200;
    assert!(tools::eventually(Duration::from_secs(30), ready), "{}", gateway.http_get("/status").1);
    // Once more through a kill: what was acknowledged around the full disk survives it.
    gateway.restart();
    let kept = aws::read_stream(gateway.api, "default");
    let kept: Vec<_> = kept.iter().map(|got| u32::from_be_bytes(got.data[..4].try_into().unwrap())).collect();
    let missing: Vec<_> = acked.iter().filter(|n| !kept.contains(n)).collect();
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    assert!(kept.windows(2).all(|two| two[0] < two[1]), "in order, once");
}

/// With `drop-oldest` a full disk takes the oldest and goes on.
#[test]
fn p6_on_a_full_disk_drop_oldest_makes_room() {
    let disk = need!(SmallDisk::mount(256), "no small file system can be mounted here");
    let gateway = Setup::default().data("max_bytes = \"1 GiB\"").dir(&disk.path().join("data")).start();
    let fleet = Fleet::start(gateway.mqtt, 4, 200);
    let mut filler = Client::connect(gateway.mqtt, "filler", Version::V5).unwrap();
    let mut late = 0;
    for _ in 0..10_000 {
        filler.send("dev/filler", &noise(40_000)).unwrap();
        // 400 MB on 256 MiB: the oldest have to go, and each message is answered in the end.
        match filler.read() {
            Ok(puback) => late += u32::from(puback.reason() >= 0x80),
            Err(e) => panic!("no answer on a full disk under drop-oldest: {e}\n{}", gateway.log()),
        }
    }
    assert_eq!(late, 0, "drop-oldest refuses nothing");
    let acked = fleet.finish();
    let verdict = audit(&acked, &aws::read_stream(gateway.api, "default"));
    assert_eq!((verdict.duplicated, verdict.reordered), (0, 0), "{verdict:?}");
    assert_ne!(verdict, Verdict::default());
}
