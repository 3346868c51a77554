//! P4: upstream at least once under a stable record id, and exactly once where the destination can: another Headwater can.
//!
//! Faulty upstreams of our own making, and kinesalite and kinesis-mock, are in `uplink.rs` and `clients.rs`.

use headwater_tests::audit::{Acked, Fleet, Verdict, audit};
use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::{aws, tools};
use std::time::Duration;

fn chain() -> (Gateway, Gateway) {
    let cloud = Setup::new("[[stream]]\nname = \"telemetry\"\nshards = 3\n").start();
    let sink = format!(
        "[[sink]]\nname = \"cloud\"\ntype = \"kinesis\"\nstreams = [\"default\"]\ntarget = \"telemetry\"\n\
         region = \"eu-west-1\"\nendpoint = \"http://{}\"\nrequired = true\n",
        cloud.api
    );
    let edge = credentials(Setup::new(&sink)).start();
    (edge, cloud)
}

fn credentials(setup: Setup) -> Setup {
    setup.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").env("AWS_EC2_METADATA_DISABLED", "true")
}

/// Waits until the cloud holds everything that was acknowledged, then audits it.
fn arrived(cloud: &Gateway, acked: &Acked, bound: Duration) -> Verdict {
    let mut verdict = Verdict::default();
    tools::eventually(bound, || {
        verdict = audit(acked, &aws::read_stream(cloud.api, "telemetry"));
        verdict.lost == 0
    });
    verdict
}

#[test]
fn p4_everything_acknowledged_arrives_at_a_second_headwater_once_in_order() {
    let (edge, cloud) = chain();
    let fleet = Fleet::start(edge.mqtt, 10, 500);
    std::thread::sleep(Duration::from_secs(3));
    let acked = fleet.finish();
    let verdict = arrived(&cloud, &acked, Duration::from_secs(30));
    assert_eq!(verdict, Verdict { stored: acked.values().sum(), ..Verdict::default() });
}

/// Both ends are killed in turn under load. Records that arrived at the edge but were never acknowledged may arrive too.
#[test]
fn p4_kills_of_both_ends_lose_double_and_reorder_nothing() {
    let (mut edge, mut cloud) = chain();
    let fleet = Fleet::start(edge.mqtt, 10, 500);
    for _ in 0..tools::rounds(12, 3) {
        fleet.wait_for_more(10, Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..400)));
        cloud.restart();
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..400)));
        edge.restart();
    }
    let acked = fleet.finish();
    let verdict = arrived(&cloud, &acked, Duration::from_secs(60));
    assert_eq!(verdict, Verdict { stored: verdict.stored, ..Verdict::default() });
    assert!(verdict.stored >= acked.values().sum());
}

#[test]
fn p4_a_backlog_drains_after_an_outage() {
    let (mut edge, mut cloud) = chain();
    cloud.kill();
    let fleet = Fleet::start(edge.mqtt, 10, 1_000);
    std::thread::sleep(Duration::from_secs(5));
    let acked = fleet.finish();
    // A start into the outage, too: what was never acknowledged has to be told from what is there.
    edge.restart();
    const SHOWN: [&str; 3] =
        ["headwater_sink_backlog", "headwater_sink_backlog_size_bytes", "headwater_sink_backlog_age_seconds"];
    let shows = || SHOWN.iter().all(|name| edge.metric(name) > 0.0);
    assert!(tools::eventually(Duration::from_secs(20), shows), "the backlog shows in records, bytes and seconds");
    cloud.restart();
    let verdict = arrived(&cloud, &acked, Duration::from_secs(90));
    assert_eq!(verdict, Verdict { stored: acked.values().sum(), ..Verdict::default() });
    let empty = || SHOWN.iter().all(|name| edge.metric(name) == 0.0);
    assert!(tools::eventually(Duration::from_secs(10), empty), "a drained backlog shows in /metrics");
}
