//! Thousands of devices of the SDK in one process, `headwater-fleet`, against one gateway.

use crate::readings::assert_each_once_in_order;
use headwater_tests::gateway::{Gateway, built};
use headwater_tests::tools::{self, Process};
use headwater_tests::{aws, need};
use serde_json::Value;
use std::fs::File;
use std::process::Command;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(240);

#[test]
fn p3_a_fleet_has_every_reading_of_every_device_stored_once_in_order_though_the_gateway_is_killed() {
    let fleet = need!(built("headwater-fleet", "HEADWATER_FLEET_BIN"), "no headwater-fleet: it is not built");
    let (devices, records) = (tools::rounds(5_000, 300) as u64, 20);
    let every_ms = tools::rounds(1_000, 400).to_string();
    let mut gateway = Gateway::plain();
    let home = tempfile::tempdir().unwrap();
    let [out, err] = ["out", "err"].map(|name| home.path().join(name));
    let said = || format!("{}{}", std::fs::read_to_string(&out).unwrap(), std::fs::read_to_string(&err).unwrap());
    let mut command = Command::new(fleet);
    command.args(["--gateway", &gateway.mqtt.to_string(), "--devices", &devices.to_string()]);
    command.args(["--records", &records.to_string(), "--every-ms", &every_ms, "--ramp-s", "3"]);
    command.args(["--timeout-s", &BOUND.as_secs().to_string()]);
    command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
    let mut running = Process::start(&mut command);

    // In the middle: a third is stored, a third is under way.
    let middle = devices * records / 3;
    let stored = || gateway.metric("headwater_records_in_total") >= middle as f64;
    assert!(tools::eventually(BOUND, stored), "not {middle} records within {BOUND:?}\n{}", said());
    gateway.kill();
    std::thread::sleep(Duration::from_secs(1));
    gateway.restart();

    let mut status = None;
    tools::eventually(BOUND, || {
        status = running.0.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.is_some_and(|status| status.success()), "the fleet ended with {status:?}\n{}", said());
    let told = std::fs::read_to_string(&out).unwrap();
    let told: Value = serde_json::from_str(told.lines().last().unwrap_or_default()).unwrap();
    eprintln!("{told}");
    assert_eq!(told["acknowledged"], devices * records);
    assert_eq!((&told["unrecorded"], &told["unfinished_devices"]), (&0.into(), &0.into()));
    assert!(told["connections"].as_u64() > Some(devices), "the kill came while they were connected: {told}");
    let log = aws::read_stream(gateway.api, "default");
    assert_each_once_in_order((0..devices).map(|n| format!("fleet-{n:05}")), records, &log);
}
