//! P1: PUBACK, PUBREC, the HTTP 200 of PutRecord and PutRecords, and PERSISTED of PutMedia leave only after the fsync of the
//! commit that holds the record.
//!
//! A SIGKILL says nothing of fsync, since the page cache survives it. So the proof is the order of system calls, and what
//! the gateway does when a sync is slow or fails.

use headwater_tests::audit::{Fleet, Follower, Verdict};
use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::mqtt::{self, Client, Version, kind};
use headwater_tests::trace::{CALLS, Call, STRACE, parse};
use headwater_tests::video::{self, Put};
use headwater_tests::{aws, matroska, need, tools};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

fn traced(trace: &Path) -> Setup {
    let trace = trace.display().to_string();
    let mut under = STRACE.to_vec();
    under.extend(["-e", CALLS, "-o", &trace]);
    Setup::default().under(&under)
}

/// The trace of a gateway that was stopped, once strace has written all of it.
fn calls_of(mut gateway: Gateway, trace: &Path) -> Vec<Call> {
    gateway.stop();
    let ended = || std::fs::read_to_string(trace).is_ok_and(|text| text.trim_end().ends_with("+++ exited with 0 +++"));
    assert!(tools::eventually(Duration::from_secs(20), ended), "strace did not end its trace");
    parse(&std::fs::read_to_string(trace).expect("a trace"))
}

/// Asserts that between the arrival of `asked` and the departure of `answer` a file was written and then synced, with
/// success, both from begin to end. Returns the write.
fn synced_between<'a>(calls: &'a [Call], asked: &Call, answer: &Call) -> &'a Call {
    which_is_synced_between(calls, asked, answer, |_| true)
}

/// The same of a write that is the one in question.
fn which_is_synced_between<'a>(
    calls: &'a [Call],
    asked: &Call,
    answer: &Call,
    which: impl Fn(&Call) -> bool,
) -> &'a Call {
    let within = |call: &&Call| call.start > asked.start && call.end < answer.start;
    let sync = |call: &&Call| call.is_sync() && call.result == 0 && within(call);
    let held_by = |write: &&Call| calls.iter().filter(sync).any(|sync| sync.start > write.end && sync.on == write.on);
    let mut writes = calls.iter().filter(|call| call.is_file_write() && call.result > 0 && which(call) && within(call));
    let found = writes.find(held_by);
    found.unwrap_or_else(|| {
        let meanwhile: Vec<_> = calls.iter().filter(within).map(|c| (&c.name, &c.on, c.result)).collect();
        panic!("{answer:?} left with no synced write since {asked:?}; meanwhile: {meanwhile:?}")
    })
}

/// Whether the one frame of a journal's write holds these bytes. Its body, behind 96 bytes of header and tables of 24, lies
/// there exclusive-or the epoch, which is the header's second 8 bytes.
fn holds(write: &Call, token: &[u8]) -> bool {
    assert!(write.bytes.starts_with(b"HWJ1"), "no frame: {:?}", write.on);
    let epoch = &write.bytes[8..16];
    let body: Vec<u8> = write.bytes.iter().zip(epoch.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    body.windows(token.len()).any(|window| window == token)
}

#[test]
fn p1_a_puback_leaves_after_the_sync_of_the_write_that_holds_its_record() {
    need!(tools::program("strace"), "strace is not installed");
    let home = tempfile::tempdir().unwrap();
    let trace = home.path().join("trace");
    let gateway = traced(&trace).start();
    let mut client = Client::connect(gateway.mqtt, "one-in-flight", Version::V311).unwrap();
    let token = |n: usize| format!("token-{n:04}-{:016x}", (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for n in 0..50 {
        assert_eq!(client.publish("dev/one", token(n).as_bytes()).unwrap(), 0);
    }
    drop(client);
    let calls = calls_of(gateway, &trace);
    for n in 0..50 {
        let token = token(n).into_bytes();
        let asked = calls.iter().find(|call| call.is_receive() && call.contains(&token));
        let asked = asked.unwrap_or_else(|| panic!("the trace shows no arrival of message {n}"));
        let id = (n as u16 + 1).to_be_bytes();
        let puback = [kind::PUBACK << 4, 2, id[0], id[1]];
        let answer = calls.iter().find(|call| call.is_send() && call.start > asked.end && call.contains(&puback));
        let answer = answer.unwrap_or_else(|| panic!("the trace shows no PUBACK of message {n}"));
        let write = synced_between(&calls, asked, answer);
        // A record alone in its group is not compressed: its bytes can be seen on their way to the disk.
        assert!(holds(write, &token), "message {n} is not in the write that its PUBACK waited for: {:?}", write.on);
    }
}

#[test]
fn p1_pubacks_of_a_full_window_leave_after_the_sync_of_their_group() {
    need!(tools::program("strace"), "strace is not installed");
    let home = tempfile::tempdir().unwrap();
    let trace = home.path().join("trace");
    let gateway = traced(&trace).start();
    let addr = gateway.mqtt;
    let devices: Vec<_> = (0..4).map(|device| std::thread::spawn(move || windowed(addr, device, 200, 20))).collect();
    devices.into_iter().for_each(|device| device.join().expect("a device gets its acknowledgements"));
    let calls = calls_of(gateway, &trace);
    let mut proven = 0;
    for device in 0..4 {
        let Some(first) =
            calls.iter().find(|call| call.is_receive() && call.contains(window_token(device, 1).as_bytes()))
        else {
            panic!("the trace shows no arrival from device {device}");
        };
        for n in 1..=200u16 {
            let token = window_token(device, n).into_bytes();
            let id = n.to_be_bytes();
            let puback = [kind::PUBACK << 4, 2, id[0], id[1]];
            // A read may cut a PUBLISH in two; such a message is proven by its neighbours.
            let Some(asked) =
                calls.iter().find(|call| call.is_receive() && call.on == first.on && call.contains(&token))
            else {
                continue;
            };
            let answer =
                calls.iter().find(|c| c.is_send() && c.on == first.on && c.end > asked.start && c.contains(&puback));
            let answer = answer.unwrap_or_else(|| panic!("the trace shows no PUBACK of {n} to device {device}"));
            synced_between(&calls, asked, answer);
            proven += 1;
        }
    }
    assert!(proven > 700, "only {proven} of 800 acknowledgements could be judged");
}

fn window_token(device: u16, n: u16) -> String {
    format!("device {device} message {n:05}.")
}

fn windowed(addr: std::net::SocketAddr, device: u16, count: u16, window: u16) {
    let mut client = Client::connect(addr, &format!("window-{device}"), Version::V311).unwrap();
    let topic = format!("dev/window-{device}");
    for n in 1..=count {
        client.send(&topic, window_token(device, n).as_bytes()).unwrap();
        if n > window {
            assert_eq!(client.read().unwrap().id(), n - window);
        }
    }
    for n in count - window + 1..=count {
        assert_eq!(client.read().unwrap().id(), n);
    }
}

#[test]
fn p1_a_pubrec_and_the_answers_to_put_record_and_put_records_leave_after_the_sync() {
    need!(tools::program("strace"), "strace is not installed");
    let home = tempfile::tempdir().unwrap();
    let trace = home.path().join("trace");
    let gateway = traced(&trace).start();
    aws::create_stream(gateway.api, "traced", 1);
    let mut client = Client::connect(gateway.mqtt, "qos-2", Version::V311).unwrap();
    client.send_raw(&mqtt::publish(Version::V311, "dev/two", b"exactly-once-token", 2, 77, false, None)).unwrap();
    let answer = client.read().unwrap();
    assert_eq!((answer.kind(), answer.id()), (kind::PUBREC, 77));
    let [one, many] = [&b"put-record-token"[..], b"put-records-token"];
    let put = json!({"StreamName": "traced", "PartitionKey": "k", "Data": aws::blob(one)});
    aws::call(gateway.api, "PutRecord", &put).unwrap();
    let put = json!({"StreamName": "traced", "Records": [{"PartitionKey": "k", "Data": aws::blob(many)}]});
    aws::call(gateway.api, "PutRecords", &put).unwrap();
    drop(client);
    let calls = calls_of(gateway, &trace);

    let asked = calls.iter().find(|call| call.is_receive() && call.contains(b"exactly-once-token")).unwrap();
    let pubrec = [kind::PUBREC << 4, 2, 0, 77];
    let answer = calls.iter().find(|call| call.is_send() && call.contains(&pubrec)).expect("a PUBREC in the trace");
    assert!(holds(synced_between(&calls, asked, answer), b"exactly-once-token"));

    for token in [one, many] {
        let asked = |call: &&Call| call.is_receive() && call.contains(aws::blob(token).as_bytes());
        let asked = calls.iter().find(asked).expect("a request in the trace");
        let ok = |call: &&Call| call.is_send() && call.start > asked.end && call.contains(b" 200 OK");
        let answer = calls.iter().find(ok).expect("a 200 in the trace");
        assert!(holds(synced_between(&calls, asked, answer), token));
    }
}

/// Every sync takes 200 ms longer. Strace delays the end of the call, so an acknowledgement that does not wait for it
/// comes too early.
#[test]
fn p1_an_acknowledgement_waits_for_a_slow_disk() {
    need!(tools::program("strace"), "strace is not installed");
    let home = tempfile::tempdir().unwrap();
    let trace = home.path().join("trace").display().to_string();
    let slow = "inject=fsync,fdatasync:delay_exit=200000";
    let under = ["strace", "-D", "-f", "--seccomp-bpf", "-e", "trace=fsync,fdatasync", "-e", slow, "-o", &trace];
    let gateway = Setup::default().under(&under).start();
    let mut client = Client::connect(gateway.mqtt, "slow-disk", Version::V5).unwrap();
    for n in 0..10 {
        let sent = Instant::now();
        assert_eq!(client.publish("dev/slow", format!("message {n}").as_bytes()).unwrap() & 0x80, 0);
        let took = sent.elapsed();
        assert!(took >= Duration::from_millis(195), "acknowledged after {took:?}, before the sync could end");
    }
}

/// Attached to the running gateway, so that it starts on a disk that still works: from here on syncs answer EIO.
fn failing_syncs(gateway: &Gateway, home: &Path) -> Option<tools::Process> {
    let pid = gateway.pid().to_string();
    let trace = home.join("trace").display().to_string();
    let fail = "inject=fsync,fdatasync:error=EIO";
    let mut strace = std::process::Command::new("strace");
    strace.args(["-f", "-e", "trace=fsync,fdatasync", "-e", fail, "-o", &trace, "-p", &pid]);
    let strace = tools::Process::start(strace.stderr(std::process::Stdio::null()));
    let attached =
        || std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|s| !s.contains("TracerPid:\t0"));
    tools::eventually(Duration::from_secs(10), attached).then_some(strace)
}

/// From the moment the log file `fail` is asked for, syncs answer EIO: nothing may be acknowledged then.
#[test]
fn p1_nothing_is_acknowledged_when_the_sync_fails() {
    need!(tools::program("strace"), "strace is not installed");
    let home = tempfile::tempdir().unwrap();
    let mut gateway = Setup::default().dir(&home.path().join("data")).start();
    let mut client = Client::connect(gateway.mqtt, "before", Version::V5).unwrap();
    assert_eq!(client.publish("dev/before", b"kept").unwrap() & 0x80, 0);
    let strace = need!(failing_syncs(&gateway, home.path()), "strace may not attach to a process here");
    for n in 0..5 {
        // A refusal (0x80 and above) is an answer; success is a lie.
        let Ok(mut client) = Client::connect(gateway.mqtt, &format!("after-{n}"), Version::V5) else { continue };
        client.send("dev/after", format!("lost {n}").as_bytes()).unwrap();
        if let Ok(Some(answer)) = client.read_within(Duration::from_secs(1))
            && answer.kind() == kind::PUBACK
        {
            assert!(answer.reason() >= 0x80, "acknowledged with {:#04x} although no sync succeeded", answer.reason());
        }
    }
    assert!(gateway.alive(), "an I/O error of the disk must not end the gateway\n{}", gateway.log());
    assert_ne!(gateway.http_get("/readyz").0, 200, "a gateway that cannot commit is not ready");
    drop(strace);
    gateway.restart();
    let kept = aws::read_stream(gateway.api, "default");
    assert!(kept.iter().any(|got| got.data == b"kept"), "what was acknowledged before is still there");
}

/// Pictures of noise: small ones go through the journal, large ones into a file of blobs beside it.
fn film(home: &Path, name: &str, size: &str, qp: &str) -> Vec<Vec<u8>> {
    let noise = ["-vf", "noise=alls=100:allf=t", "-qp", qp, "-live", "1"];
    let path = video::sample(home, name, 4, size, &[&video::PLAIN[..], &noise].concat(), None);
    let (head, mut clusters) = matroska::by_keyframe(&std::fs::read(path).unwrap());
    clusters[0].splice(0..0, head);
    clusters
}

/// Whether what was received begins within these bytes. Where HTTP puts the length of a piece, the bytes behind it tell.
fn begins_in(call: &Call, bytes: &[u8]) -> bool {
    let shown = [0, 32].into_iter().filter_map(|at| call.bytes.get(at..at + 32));
    shown.into_iter().any(|shown| bytes.windows(32).any(|window| window == shown))
}

/// PERSISTED is video's PUBACK: what syncs the bytes of the fragment returns before the line leaves.
#[test]
fn p1_a_persisted_leaves_after_the_sync_of_the_fragment() {
    need!(tools::program("strace"), "strace is not installed");
    need!(video::ffmpeg(), video::NO_FFMPEG);
    let home = tempfile::tempdir().unwrap();
    let trace = home.path().join("trace");
    let films =
        [("small", film(home.path(), "small", "64x36", "45")), ("large", film(home.path(), "large", "320x180", "20"))];
    let gateway = traced(&trace).start();
    for (name, clusters) in &films {
        let mut put = Put::begin(gateway.api, &video::put_headers(name, Some(1_767_225_600_000))).unwrap();
        for (at, cluster) in clusters.iter().enumerate() {
            put.send(cluster).unwrap();
            // It is whole when the next one begins.
            let persisted = || video::persisted(&put.heard()).len() >= at;
            assert!(tools::eventually(Duration::from_secs(20), persisted), "{name} {at}: {:?}", put.heard());
        }
        let (status, acks) = put.finish();
        assert_eq!((status, video::persisted(&acks).len()), (200, clusters.len()), "{name}: {acks:?}");
    }
    let calls = calls_of(gateway, &trace);
    let mut connection = 0;
    for (name, clusters) in &films {
        let began = calls[connection..].iter().position(|call| call.is_receive() && call.contains(b"/putMedia"));
        connection += began.unwrap_or_else(|| panic!("{name}: the trace shows no request")) + 1;
        for (at, cluster) in clusters.iter().enumerate() {
            // Bytes of its first picture, which no other has, and strace shows them.
            let token = &cluster[1_000..1_032];
            // A read that begins in the fragment before may show only bytes of that one: then the next, which begins in this one.
            let arrives = |call: &&Call| call.is_receive() && (call.contains(token) || begins_in(call, cluster));
            let asked = calls[connection..].iter().find(arrives);
            let asked = asked.unwrap_or_else(|| panic!("{name}: the trace shows no arrival of fragment {at}"));
            let line = format!("\"PERSISTED\",\"FragmentTimecode\":{},", at * 1_000);
            let answer = calls[connection..].iter().find(|call| call.is_send() && call.contains(line.as_bytes()));
            let answer = answer.unwrap_or_else(|| panic!("{name}: the trace shows no PERSISTED of fragment {at}"));
            let frame = |write: &Call| write.bytes.starts_with(b"HWJ1");
            if *name == "small" {
                which_is_synced_between(&calls, asked, answer, |write| frame(write) && holds(write, token));
            } else {
                let blob = which_is_synced_between(&calls, asked, answer, |write| write.contains(token));
                assert!(blob.on.contains("/blobs/"), "{name}: fragment {at} is in {}", blob.on);
                // And what says that it is there.
                which_is_synced_between(&calls, asked, answer, |write| frame(write) && write.start > blob.end);
            }
        }
    }
}

#[test]
fn p1_nothing_is_persisted_when_the_sync_fails() {
    need!(tools::program("strace"), "strace is not installed");
    need!(video::ffmpeg(), video::NO_FFMPEG);
    let home = tempfile::tempdir().unwrap();
    let clusters = film(home.path(), "small", "64x36", "45");
    let mut gateway = Setup::default().dir(&home.path().join("data")).start();
    let mut put = Put::begin(gateway.api, &video::put_headers("cam", Some(1_767_225_600_000))).unwrap();
    put.send(&clusters[..2].concat()).unwrap();
    let first = || video::persisted(&put.heard()).len() == 1;
    assert!(tools::eventually(Duration::from_secs(20), first), "{:?}", put.heard());
    let strace = need!(failing_syncs(&gateway, home.path()), "strace may not attach to a process here");
    let _ = put.send(&clusters[2..].concat());
    let (_, acks) = put.finish();
    assert_eq!(video::persisted(&acks).len(), 1, "{acks:?}");
    let errors: Vec<_> = acks.iter().filter_map(|ack| ack.error).collect();
    assert_eq!(errors, [5001], "the producer hears why: {acks:?}");
    assert!(gateway.alive(), "an I/O error of the disk must not end the gateway\n{}", gateway.log());
    drop(strace);
    gateway.restart();
    let kept = video::fragments(gateway.api, "cam");
    assert_eq!(kept[0].0, video::persisted(&acks)[0], "what was PERSISTED is still there: {kept:?}");
}

/// SIGKILL at random moments under load, on the same directory, over and over.
#[test]
fn p1_every_acknowledged_record_survives_a_hundred_kills_in_order_at_its_number_once() {
    let kills = tools::rounds(100, 10);
    let mut gateway = Gateway::plain();
    let fleet = Fleet::start(gateway.mqtt, 8, 2_000);
    let mut follower = Follower::default();
    for round in 0..kills {
        fleet.wait_for_more(1, Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..300)));
        gateway.kill();
        let acked = fleet.acked();
        gateway.restart();
        follower.follow(gateway.api, "default");
        let verdict = follower.audit(&acked);
        let clean = Verdict { stored: verdict.stored, ..Verdict::default() };
        assert_eq!(verdict, clean, "after kill {round}");
    }
    let acked = fleet.finish();
    follower.follow(gateway.api, "default");
    let verdict = follower.audit(&acked);
    assert_eq!(verdict, Verdict { stored: verdict.stored, ..Verdict::default() }, "at the end");
    follower.same_again(gateway.api, "default");
    eprintln!("{kills} kills, {} acknowledged, {verdict:?}", acked.values().sum::<u64>());
}
