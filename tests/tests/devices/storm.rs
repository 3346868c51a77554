//! P3 on both ends: kills of the gateway, cuts of the link and resets of the device, all at random moments, and the log has
//! every record once, in order.
//!
//! A seed decides what happens when; it is printed, and `HEADWATER_STORM_SEED=n` plays it again (the moment within a write
//! or a packet is the machine's).

use crate::board::{self, Board};
use crate::readings::{assert_each_once_in_order, by_device};
use fastrand::Rng;
use headwater_tests::audit::Follower;
use headwater_tests::gateway::Gateway;
use headwater_tests::proxy::Proxy;
use headwater_tests::tools;
use std::time::{Duration, Instant};

const DEVICE: &str = "storm-1";
/// From the last fault to the last record, at least: the faults must hit a device that works.
const CALM: Duration = Duration::from_secs(4);
/// What is left when the records are made: connecting, and sending what has gathered.
const REST_BOUND: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    KillGateway,
    StartGateway,
    UnplugCable,
    PlugInCable,
    ResetConnections,
    /// In the middle of a write to flash, or at any moment.
    PressReset {
        in_write: bool,
    },
    CutPower {
        in_write: bool,
    },
    SwitchOn,
}

/// What happens when, `each` times of each kind. The three kinds know nothing of each other.
fn plan(rng: &mut Rng, each: usize) -> Vec<(Duration, Act)> {
    let mut acts = Vec::new();
    let mut lane = |rng: &mut Rng, faults: &mut dyn FnMut(&mut Rng, usize) -> (Act, Option<(Duration, Act)>)| {
        let mut at = Duration::ZERO;
        for n in 0..each {
            at += between(rng, 500, 6_500);
            let (fault, end) = faults(rng, n);
            acts.push((at, fault));
            if let Some((lasts, end)) = end {
                at += lasts;
                acts.push((at, end));
            }
        }
    };
    lane(rng, &mut |rng, _| (Act::KillGateway, Some((between(rng, 0, 1_500), Act::StartGateway))));
    lane(rng, &mut |rng, n| match n % 2 {
        // Some cuts are longer than the device's patience.
        0 if n % 8 == 2 => (Act::UnplugCable, Some((between(rng, 5_000, 8_000), Act::PlugInCable))),
        0 => (Act::UnplugCable, Some((between(rng, 50, 1_500), Act::PlugInCable))),
        _ => (Act::ResetConnections, None),
    });
    lane(rng, &mut |rng, n| match (n % 2, rng.u32(..3) > 0) {
        (0, in_write) => (Act::CutPower { in_write }, Some((between(rng, 0, 800), Act::SwitchOn))),
        (_, in_write) => (Act::PressReset { in_write }, None),
    });
    acts.sort_by_key(|(at, _)| *at);
    acts
}

fn between(rng: &mut Rng, from_ms: u64, to_ms: u64) -> Duration {
    Duration::from_millis(rng.u64(from_ms..to_ms))
}

struct World {
    gateway: Gateway,
    proxy: Proxy,
    board: Board,
    follower: Follower,
}

impl World {
    fn play(&mut self, act: Act) {
        match act {
            Act::KillGateway => self.gateway.kill(),
            Act::StartGateway => {
                self.gateway.restart();
                self.follower.follow(self.gateway.api, "default");
            }
            Act::UnplugCable => self.board.set_link(false),
            Act::PlugInCable => self.board.set_link(true),
            Act::ResetConnections => self.proxy.cut(),
            Act::PressReset { in_write } => {
                self.wait_for_a_write(in_write);
                self.board.reset();
            }
            Act::CutPower { in_write } => {
                self.wait_for_a_write(in_write);
                self.board.cut_power();
            }
            Act::SwitchOn => self.board.switch_on(),
        }
    }

    fn wait_for_a_write(&self, in_write: bool) {
        if in_write {
            self.board.wait_for_a_write(Duration::from_millis(500));
        }
    }
}

#[test]
fn p3_emulated_device_delivers_every_record_once_in_order_through_kills_cuts_and_resets() {
    if !board::is_there() {
        return;
    }
    let (records, each) = (tools::rounds(10_000, 1_500) as u64, tools::rounds(20, 3));
    let seed =
        std::env::var("HEADWATER_STORM_SEED").map_or_else(|_| fastrand::u64(..), |n| n.parse().expect("a number"));
    let acts = plan(&mut Rng::with_seed(seed), each);
    let last = acts.last().map_or(Duration::ZERO, |(at, _)| *at);
    let pace_us = (last + CALM).as_micros() as u64 / records;
    eprintln!(
        "HEADWATER_STORM_SEED={seed}: {records} records, one every {pace_us} us, {each} faults of each kind in {last:?}"
    );

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let gateway = Gateway::plain();
    let proxy = runtime.block_on(Proxy::start(gateway.mqtt));
    let pace = pace_us.to_string();
    let board = Board::new(DEVICE, records, proxy.addr.port()).with(&["--slow-flash", "--pace-us", &pace]);
    let mut world = World { gateway, proxy, board, follower: Follower::default() };
    world.board.switch_on();
    let started = Instant::now();
    for (at, act) in &acts {
        std::thread::sleep(at.saturating_sub(started.elapsed()));
        assert_eq!(world.board.ended(), None, "the board is done before {act:?} at {at:?}");
        world.play(*act);
        let stored = world.follower.records().count();
        eprintln!("{:8.3} s {act:?}, {stored} records seen", started.elapsed().as_secs_f64());
    }
    assert_eq!(world.board.finish(last + REST_BOUND), 0, "emulated.sh ends with 0 once all are acknowledged");

    world.follower.follow(world.gateway.api, "default");
    let log: Vec<_> = world.follower.records().cloned().collect();
    assert_each_once_in_order([DEVICE.to_owned()], records, &log);
    assert_eq!(by_device(&log)[DEVICE], (1..=records).collect::<Vec<_>>());
    world.follower.same_again(world.gateway.api, "default");
    eprintln!(
        "{:.1} s: lost 0, duplicated 0, reordered 0; {}",
        started.elapsed().as_secs_f64(),
        world.board.log().trim_end()
    );
}
