//! The emulated board as a user has it: `firmware-examples/emulated.sh`, its reset button, its plug and its cable.
//!
//! The flash is a file that outlives QEMU. A power cut is a SIGKILL of QEMU, which leaves the file as it stood.

use headwater_tests::tools::{self, Process};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::File;
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
const PAGE_BYTES: usize = 4 << 10;
/// How long a write to flash is waited for.
const WRITE_BOUND: Duration = Duration::from_millis(300);
/// From `emulated.sh` to QEMU: cargo has a look whether the firmware is fresh.
const START_BOUND: Duration = Duration::from_secs(60);
const BUILD_BOUND: Duration = Duration::from_secs(900);

/// Whether a board can be emulated here; if not, the test is skipped. Builds the firmware: that takes minutes once.
pub fn is_there() -> bool {
    is_there_with(None)
}

/// The same for a firmware with another feature, which `emulated.sh` keeps in a folder of its own.
pub fn is_there_with(feature: Option<&str>) -> bool {
    let missing = missing(feature);
    if let Some(why) = &missing {
        tools::skip(std::thread::current().name().unwrap_or("a test"), why);
    }
    missing.is_none()
}

fn missing(feature: Option<&str>) -> Option<String> {
    if tools::program("qemu-system-arm").is_none() {
        return Some("qemu-system-arm is not installed".to_owned());
    }
    let mut build = script("build");
    build.arg("mps2-an385");
    if let Some(feature) = feature {
        build.args(["--features", feature]).env("CARGO_TARGET_DIR", tools::target().join("firmware").join(feature));
    }
    let built = tools::run(&mut build, BUILD_BOUND);
    let said = String::from_utf8_lossy(&built.stderr).into_owned();
    // The script's own complaints are about what is not installed, and crates may be out of reach; anything else is a
    // firmware that does not build.
    let missing = ["firmware-examples/build: ", "error: failed to get ", "error: failed to download "];
    let complaint = said.lines().find(|line| missing.iter().any(|word| line.starts_with(word)));
    match (built.status.success(), complaint) {
        (true, _) => None,
        (false, Some(complaint)) => Some(complaint.to_owned()),
        (false, None) => panic!("the firmware does not build:\n{said}"),
    }
}

/// A script of `firmware-examples`, building where the tests build.
pub fn script(name: &str) -> Command {
    let mut command = Command::new(tools::root().join("firmware-examples").join(name));
    command.env("CARGO_TARGET_DIR", tools::target().join("firmware"));
    command
}

/// When something happens to the board.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    AnyTime,
    /// In the middle of a write to flash, as far as this machine can hit it.
    InAWrite,
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

    /// The same device with another task.
    pub fn with_task(mut self, records: u64, port: u16) -> Board {
        self.words[0] = records.to_string();
        self.words[1] = port.to_string();
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
        let log = File::create(self.log_path(self.starts)).expect("a log file");
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

    /// Whether its power and its cable are in place.
    pub fn is_connected(&self) -> bool {
        self.running.is_some() && self.is_plugged_in
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
    pub fn cut_power(&mut self, when: When) {
        let qemu = self.qemu().unwrap_or_else(|| panic!("no QEMU to kill\n{}", self.log()));
        self.wait_for(when);
        kill_process(qemu, Signal::KILL).unwrap_or_else(|e| panic!("{e}: the board is done already\n{}", self.log()));
        assert_eq!(self.finish(Duration::from_secs(10)), 137, "QEMU was killed\n{}", self.log());
    }

    /// The reset button.
    pub fn reset(&mut self, when: When) {
        let mut qmp = self.qmp();
        self.wait_for(when);
        let reset = qmp.run("system_reset", &json!({}));
        reset.unwrap_or_else(|e| panic!("system_reset: {e}\n{}", self.log()));
    }

    /// Pulls the cable, or puts it back.
    pub fn set_link(&mut self, up: bool) {
        self.is_plugged_in = up;
        if self.running.is_some() {
            let pulled = self.qmp().run("set_link", &json!({"name": "lan", "up": up}));
            pulled.unwrap_or_else(|e| panic!("set_link: {e}\n{}", self.log()));
        }
    }

    fn wait_for(&self, when: When) {
        if when == When::InAWrite {
            self.wait_for_a_write();
        }
    }

    /// Returns at the beginning of a write to flash, or when none has come in time. The first one says which page the
    /// board is at, and that one alone can be watched closely enough.
    fn wait_for_a_write(&self) {
        let Ok(flash) = File::open(self.path("flash")) else { return };
        let mut whole = vec![0; FLASH_BYTES];
        let Some(at) = change(&flash, 0, &mut whole) else { return };
        change(&flash, at - at % PAGE_BYTES, &mut [0; PAGE_BYTES]);
    }

    fn qemu(&self) -> Option<Pid> {
        Pid::from_raw(std::fs::read_to_string(self.path("pid")).ok()?.trim().parse().ok()?)
    }

    /// QEMU's control socket, which is not there in QEMU's first moment.
    fn qmp(&mut self) -> Qmp {
        let socket = self.path("qmp");
        let mut open = None;
        tools::eventually(Duration::from_secs(10), || {
            open = Some(Qmp::open(&socket));
            matches!(open, Some(Ok(_))) || self.ended().is_some()
        });
        let open = open.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
        open.unwrap_or_else(|e| panic!("QEMU's control socket: {e}\n{}", self.log()))
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

/// Waits for a change in these bytes from `offset` on, and says where it is. Too late is `None`.
fn change(flash: &File, offset: usize, bytes: &mut [u8]) -> Option<usize> {
    let look = |bytes: &mut [u8]| flash.read_exact_at(bytes, offset as u64).expect("a flash of that size");
    look(bytes);
    let mut now = bytes.to_vec();
    let started = Instant::now();
    while started.elapsed() < WRITE_BOUND {
        look(&mut now);
        if now != bytes {
            let differ = now.iter().zip(&*bytes).position(|(now, before)| now != before);
            return Some(offset + differ.unwrap_or(0));
        }
    }
    None
}

/// A connection to QEMU's control socket.
struct Qmp {
    to: UnixStream,
    from: BufReader<UnixStream>,
}

impl Qmp {
    fn open(socket: &Path) -> io::Result<Qmp> {
        let to = UnixStream::connect(socket)?;
        to.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut qmp = Qmp { from: BufReader::new(to.try_clone()?), to };
        qmp.run("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    fn run(&mut self, name: &str, arguments: &Value) -> io::Result<()> {
        writeln!(self.to, "{}", json!({"execute": name, "arguments": arguments}))?;
        // The greeting and events come in between.
        loop {
            let mut line = String::new();
            if self.from.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let answer: Value = serde_json::from_str(&line)?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if answer.get("error").is_some() {
                return Err(io::Error::other(line));
            }
        }
    }
}
