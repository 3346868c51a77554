//! The real binary as a child process: a data directory of its own, loopback ports of the system's choice, a log that can
//! be read, and the ways a gateway ends: SIGTERM, SIGKILL, and starting again on the same directory and ports.

use crate::tools;
use rustix::process::{Pid, Signal, kill_process};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a start may take before a test gives up on it. A promise about starting has its own, tighter bound.
const START_BOUND: Duration = Duration::from_secs(60);

/// What a gateway is started with.
#[derive(Default)]
pub struct Setup {
    /// TOML of sections the harness does not write: `[[stream]]`, `[[route]]`, `[[sink]]` ...
    pub toml: String,
    /// Keys of `[data]`, `[mqtt]` and `[api]`, without the section line.
    pub data: String,
    pub mqtt: String,
    pub api: String,
    /// Where the data lives, when not in a temporary directory of the test.
    pub dir: Option<PathBuf>,
    /// Started under this: `strace -D -f ...`.
    pub under: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Another binary than [`binary`].
    pub binary: Option<PathBuf>,
}

impl Setup {
    pub fn new(toml: &str) -> Setup {
        Setup { toml: toml.to_owned(), ..Setup::default() }
    }

    pub fn data(mut self, keys: &str) -> Setup {
        self.data = keys.to_owned();
        self
    }

    pub fn mqtt(mut self, keys: &str) -> Setup {
        self.mqtt = keys.to_owned();
        self
    }

    pub fn api(mut self, keys: &str) -> Setup {
        self.api = keys.to_owned();
        self
    }

    pub fn dir(mut self, dir: &Path) -> Setup {
        self.dir = Some(dir.to_path_buf());
        self
    }

    pub fn under(mut self, command: &[&str]) -> Setup {
        self.under = command.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Setup {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn binary(mut self, path: &Path) -> Setup {
        self.binary = Some(path.to_path_buf());
        self
    }

    pub fn start(self) -> Gateway {
        Gateway::start(self)
    }
}

/// A running gateway. It is killed when the test drops it.
pub struct Gateway {
    setup: Setup,
    /// Config, logs and, unless the setup names another, the data.
    home: TempDir,
    child: Child,
    starts: u32,
    pub mqtt: SocketAddr,
    pub api: SocketAddr,
    pub console: SocketAddr,
    /// From spawn to the ready line.
    pub start_took: Duration,
}

impl Gateway {
    /// Embedded defaults on free loopback ports.
    pub fn plain() -> Gateway {
        Setup::default().start()
    }

    fn start(setup: Setup) -> Gateway {
        let home = tempfile::Builder::new().prefix("headwater-test-").tempdir().expect("a temporary directory");
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let (child, ready, start_took) = spawn(&setup, home.path(), [any; 3], 0);
        let [mqtt, api, console] = ready;
        Gateway { setup, home, child, starts: 1, mqtt, api, console, start_took }
    }

    /// The data directory.
    pub fn dir(&self) -> PathBuf {
        data_dir(&self.setup, self.home.path())
    }

    /// The configuration file of the last start.
    pub fn config(&self) -> PathBuf {
        self.home.path().join("headwater.toml")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything the gateway said since it was last started.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_path(self.home.path(), self.starts - 1)).unwrap_or_default()
    }

    /// Power cut, as far as a process can have one.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks for a graceful stop and waits for it.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let bound = Duration::from_secs(30);
        let mut status = None;
        tools::eventually(bound, || {
            status = self.child.try_wait().expect("a child that can be waited for");
            status.is_some()
        });
        status.unwrap_or_else(|| panic!("the gateway did not stop within {bound:?} of SIGTERM\n{}", self.log()))
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether the process still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Starts again on the same directory and the same ports.
    pub fn restart(&mut self) {
        self.kill();
        let ports = [self.mqtt, self.api, self.console];
        let (child, _, took) = spawn(&self.setup, self.home.path(), ports, self.starts);
        self.child = child;
        self.starts += 1;
        self.start_took = took;
    }

    /// Changes what the next start is given.
    pub fn setup(&mut self) -> &mut Setup {
        &mut self.setup
    }

    /// Status and body of a GET on the console's port.
    pub fn http_get(&self, path: &str) -> (u16, String) {
        crate::aws::get(self.console, path)
    }

    /// Status and body of a request that changes something on the console's port; `line` is method and path.
    pub fn http_send(&self, line: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
        let addr = self.console;
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        crate::aws::request(addr, &head, body).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// Sum of a metric over its labels, from `/metrics`; 0 for one that was never counted.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.http_get("/metrics");
        let is_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        text.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|kib| kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.len().saturating_sub(8_000);
            let tail = (tail..log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
            eprintln!("--- the gateway said (last start):\n{}", &log[tail..]);
        }
    }
}

/// The binary under test: `HEADWATER_BIN`, or the newest one Cargo built.
pub fn binary() -> PathBuf {
    built("headwater", "HEADWATER_BIN")
        .expect("no headwater binary: run `cargo build -p headwater` first, or name one in HEADWATER_BIN")
}

/// A binary of the workspace: the one that the variable names, or the newest one Cargo built.
pub fn built(name: &str, variable: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(PathBuf::from(path));
    }
    let built = |profile: &str| {
        let path = tools::target().join(profile).join(name);
        let when = path.metadata().and_then(|found| found.modified()).ok()?;
        Some((when, path))
    };
    ["release", "debug"].into_iter().filter_map(built).max().map(|(_, path)| path)
}

/// The binary with a subcommand, for everything that is not `run`.
pub fn headwater(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("NO_COLOR", "1");
    command
}

fn data_dir(setup: &Setup, home: &Path) -> PathBuf {
    setup.dir.clone().unwrap_or_else(|| home.join("data"))
}

fn log_path(home: &Path, start: u32) -> PathBuf {
    home.join(format!("log-{start}.txt"))
}

fn config_text(setup: &Setup, home: &Path, [mqtt, api, console]: [SocketAddr; 3]) -> String {
    let dir = data_dir(setup, home);
    format!(
        "[data]\ndir = {dir:?}\n{}\n[mqtt]\nlisten = \"{mqtt}\"\n{}\n[api]\nlisten = \"{api}\"\n{}\n[console]\nlisten = \"{console}\"\n{}",
        setup.data, setup.mqtt, setup.api, setup.toml
    )
}

fn spawn(setup: &Setup, home: &Path, ports: [SocketAddr; 3], start: u32) -> (Child, [SocketAddr; 3], Duration) {
    let config = home.join("headwater.toml");
    std::fs::write(&config, config_text(setup, home, ports)).expect("a config file");
    let log = log_path(home, start);
    let said = || Stdio::from(std::fs::OpenOptions::new().append(true).create(true).open(&log).expect("a log file"));
    let mut words = setup.under.iter().cloned().map(std::ffi::OsString::from).collect::<Vec<_>>();
    words.push(setup.binary.clone().unwrap_or_else(binary).into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg("run").arg("--config").arg(&config).current_dir(home);
    command.stdin(Stdio::null()).stdout(said()).stderr(said()).env("NO_COLOR", "1");
    command.envs(setup.env.iter().map(|(name, value)| (name, value)));
    let started = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if let Some(ready) = text.lines().find_map(parse_ready) {
            return (child, ready, started.elapsed());
        }
        let ended = child.try_wait().expect("a child that can be waited for");
        if ended.is_some() || started.elapsed() > START_BOUND {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the gateway was not ready after {:?} ({ended:?}); it said:\n{text}", started.elapsed());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `headwater ready mqtt=127.0.0.1:1883 api=... console=...`, anywhere in a line.
fn parse_ready(line: &str) -> Option<[SocketAddr; 3]> {
    let (_, words) = line.split_once("headwater ready ")?;
    let value = |name: &str| words.split(' ').find_map(|word| word.strip_prefix(name)?.parse().ok());
    Some([value("mqtt=")?, value("api=")?, value("console=")?])
}
