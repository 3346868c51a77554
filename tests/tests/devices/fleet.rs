//! Thousands of devices of the SDK in one process, `headwater-fleet`, against one gateway.

use crate::readings::assert_each_once_in_order;
use headwater_tests::gateway::{Gateway, built};
use headwater_tests::tools::{self, Process, free_port, program, wait_for_port};
use headwater_tests::{aws, need};
use headwater_wire::{CONTENT_TYPE, Envelope};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::File;
use std::process::{Command, Stdio};
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

/// A strict broker that others wrote: it keeps nothing and greets nobody, but what the devices say is MQTT 5.
#[test]
fn devices_deliver_to_mosquitto_as_well() {
    let fleet = need!(built("headwater-fleet", "HEADWATER_FLEET_BIN"), "no headwater-fleet: it is not built");
    let mosquitto = need!(program("mosquitto"), "mosquitto is not installed");
    let listener = need!(program("mosquitto_sub"), "mosquitto-clients is not installed");
    const RECORDS: u64 = 300;
    let (port, home) = (free_port(), tempfile::tempdir().unwrap());
    let mut broker = Command::new(mosquitto);
    let _broker = Process::start(broker.args(["-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null()));
    wait_for_port(([127, 0, 0, 1], port).into(), BOUND);
    let heard = home.path().join("heard");
    let mut listen = Command::new(listener);
    listen.args(["-p", &port.to_string(), "-V", "5", "-q", "1", "-t", "devices/#", "-F", "%C %x"]);
    let _listener = Process::start(listen.stdout(File::create(&heard).unwrap()));
    // It is subscribed before it is told anything: a subscriber of its own would say so, this one is given time.
    std::thread::sleep(Duration::from_secs(1));

    let mut command = Command::new(fleet);
    command.args(["--gateway", &format!("127.0.0.1:{port}"), "--devices", "3", "--records", &RECORDS.to_string()]);
    command.args(["--every-ms", "10", "--topic", "devices", "--timeout-s", "60"]);
    let told = tools::run_ok(&mut command, BOUND);
    let told: Value = serde_json::from_str(told.lines().last().unwrap_or_default()).unwrap();
    assert_eq!((&told["acknowledged"], &told["connections"]), (&(3 * RECORDS).into(), &3.into()), "{told}");
    let mut records: HashMap<u32, Vec<u64>> = HashMap::new();
    let all_heard = tools::eventually(BOUND, || {
        records.clear();
        for line in std::fs::read_to_string(&heard).unwrap().lines() {
            let (content_type, bytes) = line.split_once(' ').unwrap();
            assert_eq!(content_type, CONTENT_TYPE);
            let bytes: Vec<u8> = (0..bytes.len())
                .step_by(2)
                .filter_map(|at| u8::from_str_radix(bytes.get(at..at + 2)?, 16).ok())
                .collect();
            let Ok(envelope) = Envelope::read(&bytes) else { continue };
            records.entry(envelope.epoch).or_default().extend(envelope.first..=envelope.last());
        }
        records.values().map(Vec::len).sum::<usize>() as u64 >= 3 * RECORDS
    });
    assert!(all_heard, "{records:?}");
    assert_eq!(records.len(), 3, "an epoch a device");
    assert!(records.values().all(|numbers| numbers.iter().copied().eq(1..=RECORDS)), "{records:?}");
}
