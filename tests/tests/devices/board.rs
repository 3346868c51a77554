//! The emulated board as a user has it: `firmware-examples/emulated.sh`, its reset button, its plug and its cable.
//!
//! The flash is a file that outlives QEMU. A power cut is a SIGKILL of QEMU, which leaves the file as it stood.

use headwater_tests::tools::{self, Process};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The firmware's flash: what it takes of the file when it is not told otherwise.
const FLASH_BYTES: usize = 256 << 10;
/// From `emulated.sh` to QEMU: cargo has a look whether the firmware is fresh.
const START_BOUND: Duration = Duration::from_secs(60);
const BUILD_BOUND: Duration = Duration::from_secs(900);

/// Whether a board can be emulated here; if not, the test is skipped. Builds the firmware: that takes minutes once.
pub fn is_there() -> bool {
    let missing = missing();
    if let Some(why) = &missing {
        tools::skip(std::thread::current().name().unwrap_or("a test"), why);
    }
    missing.is_none()
}

fn missing() -> Option<String> {
    if tools::program("qemu-system-arm").is_none() {
        return Some("qemu-system-arm is not installed".to_owned());
    }
    let mut build = script("build");
    let built = tools::run(build.arg("mps2-an385"), BUILD_BOUND);
    let said = String::from_utf8_lossy(&built.stderr).into_owned();
    // The script's own complaints are about what is not installed; anything else is a firmware that does not build.
    let complaint = said.lines().find(|line| line.starts_with("firmware-examples/build: "));
    match (built.status.success(), complaint) {
        (true, _) => None,
        (false, Some(complaint)) => Some(complaint.to_owned()),
        (false, None) => panic!("the firmware does not build:\n{said}"),
    }
}

fn script(name: &str) -> Command {
    let mut command = Command::new(tools::root().join("firmware-examples").join(name));
    command.env("CARGO_TARGET_DIR", tools::target().join("firmware"));
    command
}

/// One device. Its power is off until [`Board::switch_on`].
pub struct Board {
    home: TempDir,
    words: Vec<String>,
    running: Option<Process>,
    starts: u32,
    is_plugged_in: bool,
}

impl Board {
    /// A board with a new flash that has so many records to deliver to this port.
    pub fn new(id: &str, records: u64, port: u16) -> Board {
        let home = tempfile::Builder::new().prefix("headwater-board-").tempdir().expect("a temporary directory");
        let mut board = Board { home, words: Vec::new(), running: None, starts: 0, is_plugged_in: true };
        let [flash, qmp, pid] = ["flash", "qmp", "pid"].map(|name| board.path(name).display().to_string());
        board.words = [&records.to_string(), &port.to_string(), "--id", id, "--flash", &flash]
            .into_iter()
            .chain(["--qmp", &qmp, "--pidfile", &pid])
            .map(str::to_owned)
            .collect();
        board
    }

    /// With more options of `emulated.sh`.
    pub fn with(mut self, words: &[&str]) -> Board {
        self.words.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Takes the flash out and puts a new one in.
    pub fn new_flash(&mut self) {
        std::fs::remove_file(self.path("flash")).expect("a flash to take out");
    }

    /// Returns once QEMU runs.
    pub fn switch_on(&mut self) {
        assert!(self.running.is_none(), "the board is on");
        let _ = std::fs::remove_file(self.path("pid"));
        let log = std::fs::File::create(self.log_path(self.starts)).expect("a log file");
        self.starts += 1;
        let mut command = script("emulated.sh");
        command.args(&self.words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.running = Some(Process::start(&mut command));
        let up = tools::eventually(START_BOUND, || self.qemu().is_some() || self.ended().is_some());
        assert!(up, "no QEMU after {START_BOUND:?}\n{}", self.log());
        if !self.is_plugged_in {
            self.set_link(false);
        }
    }

    /// What `emulated.sh` ended with, if it did.
    pub fn ended(&mut self) -> Option<i32> {
        let status = self.running.as_mut()?.0.try_wait().expect("a child that can be waited for")?;
        Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    /// Waits for the end of `emulated.sh`; what it ended with.
    pub fn finish(&mut self, bound: Duration) -> i32 {
        let mut code = None;
        tools::eventually(bound, || {
            code = self.ended();
            code.is_some()
        });
        let code = code.unwrap_or_else(|| panic!("the board did not end within {bound:?}\n{}", self.log()));
        self.running = None;
        code
    }

    /// A power cut. The board had an unfinished task, or it would have ended by itself.
    pub fn cut_power(&mut self) {
        let qemu = self.qemu().unwrap_or_else(|| panic!("no QEMU to kill\n{}", self.log()));
        kill_process(qemu, Signal::KILL).unwrap_or_else(|e| panic!("{e}: the board is done already\n{}", self.log()));
        assert_eq!(self.finish(Duration::from_secs(10)), 137, "QEMU was killed\n{}", self.log());
    }

    /// The reset button.
    pub fn reset(&mut self) {
        self.command("system_reset", &json!({}));
    }

    /// Pulls the cable, or puts it back.
    pub fn set_link(&mut self, up: bool) {
        self.is_plugged_in = up;
        if self.running.is_some() {
            self.command("set_link", &json!({"name": "lan", "up": up}));
        }
    }

    /// Returns in the middle of the next write to flash, or when none has come in time.
    pub fn wait_for_a_write(&self, bound: Duration) {
        let Ok(flash) = std::fs::File::open(self.path("flash")) else { return };
        let look = |bytes: &mut Vec<u8>| flash.read_exact_at(bytes, 0).expect("a flash of that size");
        let (mut before, mut now) = (vec![0; FLASH_BYTES], vec![0; FLASH_BYTES]);
        look(&mut before);
        let started = Instant::now();
        while started.elapsed() < bound {
            look(&mut now);
            if now != before {
                return;
            }
        }
    }

    fn qemu(&self) -> Option<Pid> {
        Pid::from_raw(std::fs::read_to_string(self.path("pid")).ok()?.trim().parse().ok()?)
    }

    fn command(&mut self, name: &str, arguments: &Value) {
        let socket = self.path("qmp");
        let mut said = None;
        let done = tools::eventually(Duration::from_secs(10), || {
            said = qmp(&socket, name, arguments).err();
            said.is_none() || self.ended().is_some()
        });
        assert!(done && said.is_none(), "{name}: {said:?}\n{}", self.log());
    }

    fn log_path(&self, start: u32) -> PathBuf {
        self.path(&format!("log-{start}"))
    }

    /// Everything that the board said since it was last switched on.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path(self.starts.saturating_sub(1))).unwrap_or_default()
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if self.running.is_some()
            && let Some(qemu) = self.qemu()
        {
            let _ = kill_process(qemu, Signal::KILL);
        }
        if std::thread::panicking() {
            eprintln!("--- the board said (last start):\n{}", self.log());
        }
    }
}

/// One command on QEMU's control socket.
fn qmp(socket: &Path, name: &str, arguments: &Value) -> io::Result<()> {
    let mut to = UnixStream::connect(socket)?;
    to.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(to.try_clone()?).lines();
    for command in [json!({"execute": "qmp_capabilities"}), json!({"execute": name, "arguments": arguments})] {
        writeln!(to, "{command}")?;
        // Greetings and events come in between.
        loop {
            let line = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
            let answer: Value = serde_json::from_str(&line)?;
            if answer.get("return").is_some() {
                break;
            }
            if answer.get("error").is_some() {
                return Err(io::Error::other(line));
            }
        }
    }
    Ok(())
}
