//! The tools a test may need, and what happens when one is missing: the test says so and is counted as skipped.
//!
//! `tests/run` installs them below `target/tests` and sums up the skips; a test run by hand looks in the same places.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

/// The repository.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// Where `tests/run` puts what it installs for the tests.
pub fn installed() -> PathBuf {
    target().join("tests")
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Fewer rounds of the long tests: `tests/run --fast`.
pub fn fast() -> bool {
    std::env::var_os("HEADWATER_TESTS_FAST").is_some_and(|value| value != "0")
}

/// `full` rounds, or `short` in a fast run.
pub fn rounds(full: usize, short: usize) -> usize {
    if fast() { short } else { full }
}

/// Says that a test could not run here and why. `tests/run` counts these lines.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIP {test}: {why}");
    if let Some(path) = std::env::var_os("HEADWATER_TESTS_SKIPS")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        let _ = writeln!(file, "{test}: {why}");
    }
}

/// Leaves the test as skipped unless the value is there.
#[macro_export]
macro_rules! need {
    ($found:expr, $why:expr) => {
        match $found {
            Some(found) => found,
            None => {
                let thread = std::thread::current();
                $crate::tools::skip(thread.name().unwrap_or("a test"), &$why);
                return;
            }
        }
    };
}

/// A program on the path, in the places Debian keeps daemons, or installed by `tests/run`.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = [installed().join("venv/bin"), installed().join("npm/node_modules/.bin")];
    let system = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    own.into_iter()
        .chain(std::env::split_paths(&path))
        .chain(system)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// The Python that has the packages of `tests/clients/requirements.txt`.
pub fn python() -> Option<PathBuf> {
    Some(installed().join("venv/bin/python")).filter(|python| python.exists())
}

/// The folder of an npm package of `tests/clients/package.json`; `None` without it or without node.
pub fn npm_package(name: &str) -> Option<PathBuf> {
    program("node")?;
    Some(installed().join("npm/node_modules").join(name)).filter(|folder| folder.exists())
}

pub const NO_BROWSER: &str = "node, chromium or the packages of tests/clients/package.json are not installed";

/// A script of `tests/clients` that drives a browser, ready for its arguments.
pub fn browser_client(script: &str) -> Option<Command> {
    let (node, chromium) = (program("node")?, program("chromium")?);
    // A module is looked for beside its script: copied to where the packages are.
    let beside = npm_package("puppeteer-core")?.ancestors().nth(2)?.to_path_buf();
    for name in [script, "browser.mjs"] {
        std::fs::copy(root().join("tests/clients").join(name), beside.join(name)).expect("a script that can be copied");
    }
    let mut command = Command::new(node);
    command.arg(beside.join(script)).env("CHROMIUM", chromium);
    Some(command)
}

/// A child process that does not outlive the test.
pub struct Process(pub Child);

impl Process {
    pub fn start(command: &mut Command) -> Process {
        Process(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end, at most `bound`; its output, or a panic that shows it.
pub fn run(command: &mut Command, bound: Duration) -> Output {
    use std::process::Stdio;
    let said = tempfile::tempdir().expect("a temporary directory");
    let (out, err) = (said.path().join("out"), said.path().join("err"));
    let file = |path: &Path| Stdio::from(std::fs::File::create(path).expect("a file for output"));
    command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err));
    let mut process = Process::start(command);
    let started = Instant::now();
    let status = loop {
        match process.0.try_wait().expect("a child that can be waited for") {
            Some(status) => break Some(status),
            None if started.elapsed() > bound => break None,
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let read = |path: &Path| std::fs::read(path).unwrap_or_default();
    let (stdout, stderr) = (read(&out), read(&err));
    let Some(status) = status else {
        let said = String::from_utf8_lossy(&stderr);
        panic!("{command:?} took longer than {bound:?}\n{}{said}", String::from_utf8_lossy(&stdout));
    };
    Output { status, stdout, stderr }
}

/// The same for a command that must succeed; its standard output.
pub fn run_ok(command: &mut Command, bound: Duration) -> String {
    let output = run(command, bound);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

/// A loopback port that was free a moment ago, for servers that cannot choose one themselves.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
    listener.local_addr().expect("a bound address").port()
}

/// Waits until something listens.
pub fn wait_for_port(addr: SocketAddr, bound: Duration) {
    let up = eventually(bound, || TcpStream::connect_timeout(&addr, Duration::from_millis(200)).is_ok());
    assert!(up, "nothing listens on {addr} after {bound:?}");
}

/// Whether `condition` came true within `bound`.
pub fn eventually(bound: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() > bound {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}
