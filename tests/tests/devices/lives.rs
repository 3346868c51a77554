//! The emulated board in the lives that a board has in the field: behind TLS, asleep between its records, and with an operator.

use crate::board::{self, Board, When};
use crate::readings::assert_each_once_in_order;
use headwater_tests::certificates::Certificates;
use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::{aws, need, tools};
use std::net::SocketAddr;
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(180);

fn kept(gateway: &Gateway) -> Vec<aws::Got> {
    aws::read_stream(gateway.api, "default")
}

fn wait_for(gateway: &Gateway, board: &Board, records: usize) {
    let there = tools::eventually(BOUND, || kept(gateway).len() >= records);
    assert!(there, "{} of {records} records after {BOUND:?}\n{}", kept(gateway).len(), board.log());
}

/// Both sides show a certificate; the gateway is killed and the board reset meanwhile.
#[test]
fn p3_an_emulated_device_delivers_over_tls_through_a_killed_gateway_and_a_reset() {
    need!(tools::program("openssl"), "openssl is not installed");
    if !board::is_there_with(Some("tls")) {
        return;
    }
    let (certificates, records) = (Certificates::new(), 300);
    certificates.device("behind-tls", "ca");
    let home = tempfile::tempdir().unwrap();
    let pem = home.path().join("device.pem");
    std::fs::write(&pem, certificates.device_pem("ca", Some("behind-tls"))).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], tools::free_port()));
    let toml = format!(
        "[mqtt.tls]\nlisten = \"{address}\"\ncert = {:?}\nkey = {:?}\nclient_ca = {:?}\n",
        certificates.cert("server"),
        certificates.key("server"),
        certificates.cert("ca"),
    );
    let mut gateway = Setup::new(&toml).start();
    let words = ["--tls", pem.to_str().unwrap(), "--pace-us", "20000"];
    let mut board = Board::new("behind-tls", records, address.port()).with(&words);
    board.switch_on();
    wait_for(&gateway, &board, 20);
    gateway.kill();
    std::thread::sleep(Duration::from_millis(500));
    gateway.restart();
    let before = kept(&gateway).len();
    wait_for(&gateway, &board, before + 20);
    board.reset(When::AnyTime);
    assert_eq!(board.finish(BOUND), 0);
    assert_each_once_in_order(["behind-tls".to_owned()], records, &kept(&gateway));
}

/// A gateway whose certificate another authority has signed gets nothing.
#[test]
fn an_emulated_device_gives_nothing_to_a_gateway_that_it_cannot_trust() {
    need!(tools::program("openssl"), "openssl is not installed");
    if !board::is_there_with(Some("tls")) {
        return;
    }
    let certificates = Certificates::new();
    let home = tempfile::tempdir().unwrap();
    let pem = home.path().join("device.pem");
    std::fs::write(&pem, certificates.device_pem("stranger", None)).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], tools::free_port()));
    let toml = format!(
        "[mqtt.tls]\nlisten = \"{address}\"\ncert = {:?}\nkey = {:?}\n",
        certificates.cert("server"),
        certificates.key("server"),
    );
    let gateway = Setup::new(&toml).start();
    let words = ["--tls", pem.to_str().unwrap(), "--timeout", "20"];
    let mut board = Board::new("careful", 10, address.port()).with(&words);
    board.switch_on();
    assert_eq!(board.finish(BOUND), 124, "it goes on trying\n{}", board.log());
    assert!(kept(&gateway).is_empty());
}

#[test]
fn p3_a_board_that_sleeps_between_its_records_delivers_each_once_also_when_the_gateway_was_away_for_a_wake() {
    if !board::is_there() {
        return;
    }
    let mut gateway = Gateway::plain();
    let mut board = Board::new("sleepy", 60, gateway.mqtt.port()).with(&["--sleep-ms", "300"]);
    board.switch_on();
    wait_for(&gateway, &board, 20);
    gateway.kill();
    std::thread::sleep(Duration::from_secs(2));
    gateway.restart();
    assert_eq!(board.finish(BOUND), 0, "{}", board.log());
    assert_each_once_in_order(["sleepy".to_owned()], 60, &kept(&gateway));
    let wakes = board.log().matches(" starts: ").count();
    assert!(wakes >= 6, "ten records a wake, and {wakes} wakes\n{}", board.log());
}

#[test]
fn an_operator_reaches_the_emulated_board_with_a_configuration_a_command_and_a_log_level() {
    if !board::is_there() {
        return;
    }
    let gateway = Gateway::plain();
    let records = 100_000;
    let mut board = Board::new("obedient", records, gateway.mqtt.port()).with(&["--pace-us", "20000"]);
    board.switch_on();
    wait_for(&gateway, &board, 1);
    let answer = gateway.http_send("POST /devices/obedient/command?timeout=20s", &[], b"ping");
    assert_eq!((answer.0, answer.1.contains("pong")), (200, true), "{answer:?}");
    let set = |what: &str, to: &[u8]| gateway.http_send(&format!("PUT /devices/obedient/{what}"), &[], to).0;
    assert_eq!((set("log", b"debug"), set("config", b"color=red\npace-us=1000")), (200, 200));
    let says = |words: &[&str]| {
        let said = tools::eventually(BOUND, || words.iter().all(|word| board.log().contains(word)));
        assert!(said, "not {words:?}\n{}", board.log());
    };
    says(&["log level: debug", " record 1", "configuration: a record every 1000 us"]);
    board.cut_power(When::AnyTime);
    // The gateway keeps both for a board that was away.
    board.switch_on();
    let said = tools::eventually(BOUND, || board.log().contains("configuration: a record every 1000 us"));
    assert!(said, "{}", board.log());
    board.cut_power(When::AnyTime);
}
