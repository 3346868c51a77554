//! `firmware-examples/emulated.sh RECORDS PORT`: what its exit code promises, and what the device behind it promises about
//! its flash.

use crate::board::{self, Board, When};
use crate::readings::{assert_each_once_in_order, seq};
use headwater_tests::gateway::Gateway;
use headwater_tests::{aws, tools};
use std::process::Command;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(120);

fn kept(gateway: &Gateway) -> Vec<aws::Got> {
    aws::read_stream(gateway.api, "default")
}

fn emulated_sh(words: &[&str]) -> Command {
    let mut command = board::script("emulated.sh");
    command.args(words);
    command
}

/// Waits until the log has so many records.
fn wait_for(gateway: &Gateway, records: usize) {
    let there = tools::eventually(BOUND, || kept(gateway).len() >= records);
    assert!(there, "{} of {records} records after {BOUND:?}", kept(gateway).len());
}

#[test]
fn emulated_sh_ends_with_0_once_every_record_is_on_the_gateways_disk() {
    if !board::is_there() {
        return;
    }
    let mut gateway = Gateway::plain();
    tools::run_ok(&mut emulated_sh(&["500", &gateway.mqtt.port().to_string()]), BOUND);
    // Acknowledged is on disk: what the exit code says outlives a gateway that dies in the same moment.
    gateway.kill();
    gateway.restart();
    assert_each_once_in_order(["emulated-1".to_owned()], 500, &kept(&gateway));
}

#[test]
fn emulated_sh_waits_for_a_gateway_that_is_not_there_and_survives_one_that_is_killed() {
    if !board::is_there() {
        return;
    }
    let mut gateway = Gateway::plain();
    gateway.kill();
    let mut board = Board::new("patient", 500, gateway.mqtt.port()).with(&["--pace-us", "10000"]);
    board.switch_on();
    std::thread::sleep(Duration::from_secs(2));
    gateway.restart();
    wait_for(&gateway, 1);
    gateway.kill();
    assert_eq!(board.ended(), None, "there are records left");
    std::thread::sleep(Duration::from_secs(1));
    gateway.restart();
    assert_eq!(board.finish(BOUND), 0);
    assert_each_once_in_order(["patient".to_owned()], 500, &kept(&gateway));
}

#[test]
fn emulated_sh_tells_bad_usage_with_2_and_a_gateway_that_never_comes_with_124() {
    if !board::is_there() {
        return;
    }
    let port = tools::free_port().to_string();
    let nobody = ["5", &port, "--timeout", "3"];
    for (words, code) in [(&[][..], 2), (&["ten", &port], 2), (&["5", &port, "--fash", "x"], 2), (&nobody, 124)] {
        let output = tools::run(&mut emulated_sh(words), BOUND);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{words:?}: not a word");
    }
}

#[test]
fn p3_a_device_goes_on_where_its_flash_ends_and_one_that_lost_it_is_not_taken_for_a_duplicate() {
    if !board::is_there() {
        return;
    }
    let gateway = Gateway::plain();
    let port = gateway.mqtt.port();
    let mut board = Board::new("forgetful", 100, port);
    board.switch_on();
    assert_eq!(board.finish(BOUND), 0);
    let mut board = board.with_task(150, port);
    board.switch_on();
    assert_eq!(board.finish(BOUND), 0);
    board.new_flash();
    let mut board = board.with_task(200, port);
    board.switch_on();
    assert_eq!(board.finish(BOUND), 0);
    let log = kept(&gateway);
    assert!(log.iter().all(|got| got.key == "forgetful"), "one device all the time");
    let numbers: Vec<u64> = log.iter().map(seq).collect();
    assert_eq!(numbers, (1..=150).chain(1..=200).collect::<Vec<_>>(), "two lives of one device");
}

#[test]
fn p3_a_device_that_loses_its_flash_in_the_middle_of_sending_starts_again_at_one() {
    if !board::is_there() {
        return;
    }
    let gateway = Gateway::plain();
    let mut board = Board::new("struck", 300, gateway.mqtt.port()).with(&["--pace-us", "10000"]);
    board.switch_on();
    wait_for(&gateway, 50);
    board.cut_power(When::AnyTime);
    let before = kept(&gateway).len() as u64;
    board.new_flash();
    board.switch_on();
    assert_eq!(board.finish(BOUND), 0);
    let numbers: Vec<u64> = kept(&gateway).iter().map(seq).collect();
    let first = numbers.len() as u64 - 300;
    assert!((before..300).contains(&first), "{first} records of the first life, {before} of them seen at its end");
    assert_eq!(numbers, (1..=first).chain(1..=300).collect::<Vec<_>>(), "two lives of one device");
}

/// The policy of the emulated board is to refuse: whoever measures waits.
#[test]
fn a_full_outbox_loses_nothing_of_what_was_recorded_also_when_the_power_fails() {
    if !board::is_there() {
        return;
    }
    let mut gateway = Gateway::plain();
    gateway.kill();
    let mut board = Board::new("full", 5_000, gateway.mqtt.port()).with(&["--arg", "flash-kib=8"]);
    board.switch_on();
    std::thread::sleep(Duration::from_secs(3));
    board.cut_power(When::AnyTime);
    board.switch_on();
    let waiting = |board: &Board| {
        let log = board.log();
        let line = log.lines().find_map(|line| line.split_once("outbox: ")?.1.split_once(" records wait"))?;
        line.0.parse::<u64>().ok()
    };
    assert!(tools::eventually(BOUND, || waiting(&board).is_some()), "{}", board.log());
    let waiting = waiting(&board).unwrap_or_default();
    assert!((500..4_500).contains(&waiting), "{waiting} records fill the flash");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(board.ended(), None, "the gateway is away");
    gateway.restart();
    assert_eq!(board.finish(BOUND), 0);
    assert_each_once_in_order(["full".to_owned()], 5_000, &kept(&gateway));
}
