//! Firmware updates of the emulated board through the real gateway: its boot loader, its power cuts and resets, and an audit
//! of what it sent meanwhile.

use crate::board::{self, Board, When};
use crate::readings::{assert_each_once_in_order, by_device};
use headwater_tests::audit::Follower;
use headwater_tests::gateway::Gateway;
use headwater_tests::tools;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const DEVICE: &str = "ota-1";
/// One every 20 ms: the board has records to send all the while.
const PACE_US: u32 = 20_000;
const RECORDS: u64 = 3_000;
const BUILD_BOUND: Duration = Duration::from_secs(900);
const STEP_BOUND: Duration = Duration::from_secs(120);
/// What a reset or a power cut may cost: back to the last note, and what was on its way.
const LOST_BYTES_MAX: u64 = 4_096 + 3 * 256;
/// Power cuts and resets in one download.
const CUTS: u64 = 4;

/// A firmware as a user makes it.
struct Image {
    version: &'static str,
    bytes: Vec<u8>,
    signature: String,
    path: PathBuf,
}

impl Image {
    fn build(version: &'static str, home: &Path, is_good: bool) -> Image {
        let path = home.join(format!("{version}.bin"));
        let mut command = Command::new(tools::root().join("firmware-examples/ota-image"));
        command.env("CARGO_TARGET_DIR", tools::target().join("firmware"));
        command.arg(version).arg(home.join("key.pem")).arg(&path);
        if !is_good {
            command.env("FIRMWARE_NEVER_GOOD", "1");
        }
        tools::run_ok(&mut command, BUILD_BOUND);
        let signature = std::fs::read_to_string(path.with_extension("bin.sig")).expect("a signature");
        Image { version, bytes: std::fs::read(&path).expect("an image"), signature, path }
    }
}

struct World {
    gateway: Gateway,
    board: Board,
}

impl World {
    fn offer(&self, image: &Image, signature: &str) {
        let line = format!("PUT /devices/{DEVICE}/firmware?version={}", image.version);
        let answer = self.gateway.http_send(&line, &[("Headwater-Signature", signature)], &image.bytes);
        assert_eq!(answer, (200, "ok\n".into()));
    }

    fn device(&self) -> Value {
        let (code, text) = self.gateway.http_get(&format!("/devices/{DEVICE}"));
        if code == 200 { serde_json::from_str(&text).expect("JSON") } else { Value::Null }
    }

    fn sent_bytes(&self) -> u64 {
        self.device()["firmware_sent_bytes"].as_u64().unwrap_or(0)
    }

    fn stored(&self) -> u64 {
        self.device()["kept"]["sequence"].as_u64().unwrap_or(0)
    }

    fn wait_until_it_says(&self, status: &str) {
        let says = || self.device()["firmware_status"] == status;
        assert!(tools::eventually(STEP_BOUND, says), "not {status:?}: {}\n{}", self.device(), self.board.log());
    }

    /// Lets it send so many records more.
    fn wait_for_records(&self, more: u64) {
        let target = self.stored() + more;
        assert!(tools::eventually(STEP_BOUND, || self.stored() >= target), "{}\n{}", self.device(), self.board.log());
    }
}

#[test]
fn firmware_is_updated_through_power_cuts_refused_unsigned_and_rolled_back_and_no_record_is_lost() {
    let name = "firmware_is_updated";
    if !board::is_there() {
        return;
    }
    for program in ["openssl", "objcopy"] {
        if tools::program(program).is_none() {
            return tools::skip(name, &format!("{program} is not installed"));
        }
    }
    let home = tempfile::tempdir().expect("a temporary directory");
    let [one, two, three] = ["1", "2", "3"].map(|version| Image::build(version, home.path(), true));
    let four = Image::build("4", home.path(), false);
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    eprintln!("seed {seed}");

    let gateway = Gateway::plain();
    let pace = PACE_US.to_string();
    let image = one.path.display().to_string();
    let board = Board::new(DEVICE, RECORDS, gateway.mqtt.port());
    let board = board.with(&["--slow-flash", "--pace-us", &pace, "--ota", &image]);
    let mut world = World { gateway, board };
    world.board.switch_on();
    world.wait_until_it_says("running 1");
    world.wait_for_records(20);

    // Version 2, with resets and power cuts while it comes.
    world.offer(&two, &two.signature);
    let mut cuts: Vec<u64> = (0..CUTS).map(|_| rng.u64(1..two.bytes.len() as u64 * 7 / 10)).collect();
    cuts.sort_unstable();
    for (n, at) in cuts.iter().enumerate() {
        // What was lost to earlier cuts is sent again.
        let reached = || world.sent_bytes() >= *at;
        assert!(tools::eventually(STEP_BOUND, reached), "{}\n{}", world.device(), world.board.log());
        let said = world.device()["firmware_status"].clone();
        assert!(said.as_str().is_some_and(|said| said.starts_with("downloading 2 ") || said == "running 1"), "{said}");
        if n % 2 == 0 {
            world.board.cut_power(When::AnyTime);
            world.board.switch_on();
        } else {
            world.board.reset(When::AnyTime);
        }
    }
    world.wait_until_it_says("running 2");
    let (sent, length) = (world.sent_bytes(), two.bytes.len() as u64);
    eprintln!("{sent} bytes sent for {length}, {CUTS} cuts at {cuts:?}");
    assert!(sent >= length && sent <= length + CUTS * LOST_BYTES_MAX, "it goes on where it was: {sent} bytes sent");
    world.wait_for_records(20);

    // It stays, without another download.
    world.board.cut_power(When::AnyTime);
    world.board.switch_on();
    world.wait_for_records(20);
    world.wait_until_it_says("running 2");
    assert_eq!(world.sent_bytes(), sent);

    // Version 3 was signed by somebody else: by us, but for another firmware.
    world.offer(&three, &two.signature);
    world.wait_until_it_says("rejected 3: wrong signature");
    world.board.reset(When::AnyTime);
    world.gateway.restart();
    world.wait_until_it_says("rejected 3: wrong signature");
    world.wait_for_records(20);
    assert_eq!(world.device()["firmware"]["version"], "3", "the gateway has kept the offer");
    assert_eq!(world.sent_bytes(), 0, "it is not tried again");

    // Version 4 never marks itself good.
    world.offer(&four, &four.signature);
    world.wait_until_it_says("trying 4");
    world.wait_for_records(20);
    world.board.reset(When::AnyTime);
    world.wait_until_it_says("rolled back 4");
    let sent = world.sent_bytes();
    assert!(world.board.log().contains("firmware 2"), "{}", world.board.log());
    world.wait_for_records(20);

    assert_eq!(world.board.finish(STEP_BOUND), 0, "all records are acknowledged");
    assert_eq!(world.sent_bytes(), sent, "it is not tried again");
    let mut follower = Follower::default();
    follower.follow(world.gateway.api, "default");
    let log: Vec<_> = follower.records().cloned().collect();
    assert_each_once_in_order([DEVICE.to_owned()], RECORDS, &log);
    assert_eq!(by_device(&log)[DEVICE], (1..=RECORDS).collect::<Vec<_>>());
}
