//! Against Kinesis as it fails: aggregated and not, throttled, half failing, silent, and resharded meanwhile.

use crate::rig::{Audit, Rig, STREAM};
use headwater_tests::upstream::{Faults, Upstream};
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

fn sink(upstream: &Upstream, more: &str) -> String {
    format!(
        r#"{{"type":"kinesis","name":"cloud","endpoint":"{}","credentials":"none","timeout":"500 ms"{more}}}"#,
        upstream.endpoint
    )
}

fn audit(rig: &Rig, upstream: &Upstream) -> Audit {
    let seen = upstream.seen(STREAM);
    rig.audit(seen.iter().map(|seen| (seen.key.as_str(), seen.data.as_slice(), seen.id.as_deref())))
}

/// Puts a backlog, sends it with these faults, heals the upstream when half is through, and audits what arrived.
async fn through(faults: Faults, more: &str, seed: u64) -> (Audit, Upstream, Rig) {
    let upstream = Upstream::start(seed).await;
    upstream.create_stream(STREAM, 3);
    upstream.set_faults(faults);
    let mut rig = Rig::new(2);
    rig.put(3000, 40).await;
    rig.start(&sink(&upstream, more)).await;
    for _ in 0..10 {
        rig.put(100, 40).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    upstream.set_faults(Faults::none());
    rig.drained("cloud", MINUTE).await;
    (audit(&rig, &upstream), upstream, rig)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_arrives_aggregated_in_order_and_once() {
    let (audit, upstream, rig) = through(Faults::none(), "", 1).await;
    assert_eq!(audit, Audit { arrived: rig.total(), ..Audit::default() });
    assert!(upstream.stored(STREAM) < 2000, "{} entries for {} records", upstream.stored(STREAM), rig.total());
    let seen = upstream.seen(STREAM);
    let id = seen[0].id.as_deref().unwrap();
    assert!(id.starts_with(&format!("hw1/{}/{}/{STREAM}/", rig.log.gateway_id(), rig.log.incarnation())), "{id}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_order_is_kept_when_half_of_every_batch_fails() {
    let (audit, upstream, _) = through(Faults { fail_record: 0.5, ..Faults::none() }, "", 2).await;
    audit.nothing_lost_or_reordered();
    assert_eq!(audit.duplicated, 0, "what failed was not stored");
    assert!(upstream.struck().get("fail_record") > Some(&20));
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_order_is_kept_without_aggregation_when_half_of_every_batch_fails() {
    let (audit, upstream, _) = through(Faults { fail_record: 0.5, ..Faults::none() }, r#","aggregate":false"#, 3).await;
    audit.nothing_lost_or_reordered();
    assert_eq!(audit.duplicated, 0);
    assert!(upstream.struck().get("fail_record") > Some(&20));
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_delays_and_nothing_else() {
    let faults = Faults { throttle: 0.3, throttle_record: 0.3, ..Faults::none() };
    let (audit, ..) = through(faults, "", 4).await;
    audit.nothing_lost_or_reordered();
    assert_eq!(audit.duplicated, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_a_lost_answer_gives_duplicates_that_carry_the_same_id() {
    let faults = Faults { lose_answer: 0.4, half_answer: 0.4, ..Faults::none() };
    let (audit, upstream, _) = through(faults, "", 5).await;
    audit.nothing_lost_or_reordered();
    assert!(audit.duplicated > 0 && !upstream.struck().is_empty(), "{audit:?} {:?}", upstream.struck());
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_and_p4_hold_through_everything_at_once() {
    let faults = Faults {
        refuse: 0.1,
        throttle: 0.1,
        throttle_record: 0.1,
        fail_record: 0.1,
        error_500: 0.1,
        deny_403: 0.05,
        hang: 0.03,
        close_midway: 0.1,
        lose_answer: 0.1,
        half_answer: 0.1,
    };
    for seed in 6..9 {
        through(faults, "", seed).await.0.nothing_lost_or_reordered();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_order_is_kept_through_splits_and_merges_upstream() {
    let upstream = Upstream::start(9).await;
    upstream.create_stream(STREAM, 2);
    upstream.set_faults(Faults { fail_record: 0.2, ..Faults::none() });
    let mut rig = Rig::new(2);
    rig.put(1000, 50).await;
    rig.start(&sink(&upstream, "")).await;
    for round in 0..6 {
        rig.put(1000, 50).await;
        let open = upstream.open_shards(STREAM);
        match round % 3 {
            0 => upstream.split(STREAM, open[0]),
            1 => upstream.split(STREAM, open[open.len() - 1]),
            _ => upstream.merge(STREAM, open[open.len() - 2], open[open.len() - 1]),
        }
        rig.put(500, 50).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    rig.drained("cloud", MINUTE).await;
    let audit = audit(&rig, &upstream);
    audit.nothing_lost_or_reordered();
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_credentials_hold_everything_and_lose_nothing() {
    let upstream = Upstream::start(10).await;
    upstream.create_stream(STREAM, 1);
    let mut rig = Rig::new(1);
    rig.start(&sink(&upstream, "")).await;
    rig.put(100, 5).await;
    rig.drained("cloud", MINUTE).await;
    upstream.set_faults(Faults { deny_403: 1.0, ..Faults::none() });
    rig.put(1000, 5).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(rig.backlog("cloud") >= 1000);
    assert!(rig.status()[0].trouble.as_deref().unwrap().contains("denies access"), "{:?}", rig.status());
    let asked = upstream.requests();
    assert!(asked < 30, "{asked} requests in two seconds of refusal");
    upstream.set_faults(Faults::none());
    rig.drained("cloud", MINUTE).await;
    let audit = audit(&rig, &upstream);
    assert_eq!(audit, Audit { arrived: 1100, ..Audit::default() });
    assert_eq!(rig.status()[0].trouble, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_key_holds_its_lane_alone_also_over_a_restart() {
    let upstream = Upstream::start(11).await;
    upstream.create_stream(STREAM, 1);
    upstream.hold("dev-7");
    let mut rig = Rig::new(1);
    rig.put(4000, 40).await;
    let config = sink(&upstream, "");
    rig.start(&config).await;
    let until = std::time::Instant::now() + MINUTE;
    while rig.backlog("cloud") > 4000 / 5 {
        assert!(std::time::Instant::now() < until, "others wait too: {}", rig.backlog("cloud"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(rig.backlog("cloud") >= 100, "its own records are held");
    rig.restart(&config).await;
    upstream.release("dev-7");
    rig.drained("cloud", MINUTE).await;
    let audit = audit(&rig, &upstream);
    assert_eq!(
        audit,
        Audit { arrived: 4000, ..Audit::default() },
        "what was delivered above the mark is not sent again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_refused_for_good_is_told_kept_and_passed() {
    let upstream = Upstream::start(12).await;
    upstream.create_stream(STREAM, 1);
    let mut rig = Rig::new(1);
    let letters = headwater::record::StreamName::new("dead").unwrap();
    let letters = rig.log.create_stream(&letters, Default::default()).unwrap();
    let more = r#","streams":["telemetry"],"dead_letter":"dead""#;
    rig.start(&sink(&upstream, more)).await;
    rig.put(400, 40).await;
    rig.drained("cloud", MINUTE).await;
    upstream.poison("dev-3");
    rig.put(200, 40).await;
    rig.drained("cloud", MINUTE).await;
    let dead = rig.log.gaps(&rig.stream);
    assert_eq!(dead.len(), 5, "{dead:?}");
    assert_eq!(letters.record_count(), 5);
    let audit = audit(&rig, &upstream);
    assert_eq!((audit.lost, audit.reordered), (5, 0), "{audit:?}");
    // The notices stand under the same key, so this upstream refuses them as well.
    assert!(rig.metrics.render().contains("headwater_sink_dead_total{sink=\"cloud\",stream=\"telemetry\"} 5"));
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_what_is_too_large_for_the_destination_is_told_in_its_place() {
    let upstream = Upstream::start(13).await;
    upstream.create_stream(STREAM, 1);
    let mut rig = Rig::new(1);
    rig.put(10, 1).await;
    let mut batch = headwater::log::Batch::new();
    let data = vec![b'x'; 1 << 20];
    let large = headwater::record::NewRecord { key: b"dev-0", data: &data, ..Default::default() };
    batch.push(&rig.stream, &large).unwrap();
    rig.log.appender().commit(&mut batch).await.unwrap();
    rig.put(10, 1).await;
    rig.start(&sink(&upstream, "")).await;
    rig.drained("cloud", MINUTE).await;
    let audit = audit(&rig, &upstream);
    audit.nothing_lost_or_reordered();
    assert_eq!(audit.gaps.len(), 1);
    assert_eq!((&audit.gaps[0]["reason"], &audit.gaps[0]["from"]), (&"rejected".into(), &11.into()), "{audit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_dropped_while_the_destination_refuses_everything() {
    let upstream = Upstream::start(14).await;
    upstream.create_stream(STREAM, 1);
    for key in 0..5 {
        upstream.poison(&format!("dev-{key}"));
    }
    let mut rig = Rig::new(1);
    rig.put(50, 5).await;
    rig.start(&sink(&upstream, "")).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(rig.backlog("cloud"), 50);
    assert!(rig.log.gaps(&rig.stream).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_what_was_evicted_before_it_could_leave_is_told_upstream() {
    let upstream = Upstream::start(15).await;
    upstream.create_stream(STREAM, 2);
    let mut rig = Rig::new(1);
    let small = headwater::units::ByteSize::mib(8);
    let settings = headwater::log::StreamSettings { max_bytes: Some(small), ..rig.stream.settings() };
    rig.log.update_stream(&rig.stream.name, settings).unwrap();
    rig.put(100, 10).await;
    rig.start(&sink(&upstream, "")).await;
    rig.drained("cloud", MINUTE).await;
    rig.stop().await;
    let until = std::time::Instant::now() + MINUTE;
    while rig.stream.shards()[0].oldest() < 1000 {
        assert!(std::time::Instant::now() < until, "nothing is evicted");
        rig.put_padded(1000, 10, 4000).await;
    }
    rig.start(&sink(&upstream, "")).await;
    rig.drained("cloud", MINUTE).await;
    let audit = audit(&rig, &upstream);
    assert_eq!((audit.reordered, audit.duplicated), (0, 0));
    assert!(audit.lost > 0);
    let told = |shard: u64| {
        let counts = audit.gaps.iter().map(|gap| gap["count"].as_u64().unwrap());
        counts.sum::<u64>() / shard
    };
    assert_eq!(told(2), audit.lost, "each loss told to both upstream shards: {:?}", audit.gaps);
    assert!(audit.gaps.iter().all(|gap| gap["reason"] == "evicted" && gap["stream"] == STREAM));
}
