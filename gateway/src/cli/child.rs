//! A gateway as a child process: `demo` and `bench` start one, kill it, and start it again on the same directory.
//!
//! The child's stderr goes to a file, so that nothing has to drain a pipe; the ready and stopped lines are read from it.

use super::client::{Interrupted, heed_interrupts, is_interrupted};
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How a gateway is started.
#[derive(Clone, Debug)]
pub struct Launch {
    pub data: PathBuf,
    pub config: Option<PathBuf>,
    pub env: Vec<(String, String)>,
    pub args: Vec<String>,
    /// Where its stderr goes; appended to.
    pub log: PathBuf,
    /// How long it may take to be ready.
    pub ready_within: Duration,
}

/// A gateway that said it is ready.
pub struct Gateway {
    child: Child,
    pub mqtt: SocketAddr,
    pub api: SocketAddr,
    pub console: SocketAddr,
    log: PathBuf,
}

impl Launch {
    pub fn new(data: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Launch {
            data: data.into(),
            config: None,
            env: Vec::new(),
            args: Vec::new(),
            log: log.into(),
            ready_within: Duration::from_secs(60),
        }
    }

    /// Listens on these addresses from now on.
    pub fn listen(mut self, mqtt: SocketAddr, api: SocketAddr, console: SocketAddr) -> Self {
        for (flag, address) in [("--mqtt-listen", mqtt), ("--api-listen", api), ("--console-listen", console)] {
            self.args.extend([flag.to_owned(), address.to_string()]);
        }
        self
    }

    /// Starts the process and returns at once.
    pub fn spawn(&self) -> Result<Starting> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| self.log.display().to_string())?;
        let read_from = log.metadata()?.len();
        let mut command = Command::new(std::env::current_exe().context("the path of this binary")?);
        command.arg("run").arg("--stop-with-parent").arg("--data").arg(&self.data).args(&self.args);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let child = child.context("a gateway could not be started")?;
        Ok(Starting { child, log: self.log.clone(), read_from, since: Instant::now(), within: self.ready_within })
    }

    /// Starts the process and waits until it is ready. Blocking.
    pub fn start(&self) -> Result<Gateway> {
        self.spawn()?.wait()
    }

    /// The same for a runtime that must go on.
    pub async fn start_async(&self) -> Result<Gateway> {
        let mut starting = self.spawn()?;
        loop {
            if let Some(addresses) = starting.poll()? {
                return starting.ready(&addresses);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A gateway that has not said yet that it is ready.
pub struct Starting {
    child: Child,
    log: PathBuf,
    read_from: u64,
    since: Instant,
    within: Duration,
}

impl Starting {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it is ready. Blocking.
    pub fn wait(mut self) -> Result<Gateway> {
        loop {
            if let Some(addresses) = self.poll()? {
                return self.ready(&addresses);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The ready line's words, once it is there.
    fn poll(&mut self) -> Result<Option<HashMap<String, String>>> {
        if let Some(line) = find_line(&self.log, self.read_from, "headwater ready")? {
            return Ok(Some(line));
        }
        if let Some(status) = self.child.try_wait()? {
            bail!("the gateway ended before it was ready ({status}):\n{}", tail_of(&self.log, self.read_from));
        }
        if is_interrupted() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            return Err(Interrupted.into());
        }
        if self.since.elapsed() > self.within {
            let _ = self.child.kill();
            let _ = self.child.wait();
            bail!("the gateway was not ready after {:?}:\n{}", self.within, tail_of(&self.log, self.read_from));
        }
        Ok(None)
    }

    fn ready(self, words: &HashMap<String, String>) -> Result<Gateway> {
        let address = |name: &str| -> Result<SocketAddr> {
            let text = words.get(name).with_context(|| format!("the ready line names no {name} address"))?;
            Ok(text.parse()?)
        };
        Ok(Gateway {
            mqtt: address("mqtt")?,
            api: address("api")?,
            console: address("console")?,
            child: self.child,
            log: self.log,
        })
    }
}

impl Gateway {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: nothing is drained, nothing is said. Blocking for the exit.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    pub fn terminate(&self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("the gateway's process id")?;
        Ok(kill_process(pid, Signal::TERM)?)
    }

    /// SIGTERM, then waits for the drain; returns the counters of its last line. Blocking.
    pub fn stop(mut self, within: Duration) -> Result<HashMap<String, u64>> {
        let read_from = std::fs::metadata(&self.log)?.len();
        self.terminate()?;
        let since = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if is_interrupted() {
                // The drop kills it.
                return Err(Interrupted.into());
            }
            if since.elapsed() > within {
                let _ = self.child.kill();
                let _ = self.child.wait();
                bail!("the gateway did not stop within {within:?}:\n{}", tail_of(&self.log, read_from));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        if !status.success() {
            bail!("the gateway stopped with {status}:\n{}", tail_of(&self.log, read_from));
        }
        let words = find_line(&self.log, read_from, "headwater stopped")?.unwrap_or_default();
        Ok(words.into_iter().filter_map(|(name, value)| Some((name, value.parse().ok()?))).collect())
    }
}

impl Drop for Gateway {
    /// Nobody is left to stop it: whoever wanted its counters has called [`Gateway::stop`].
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_from(log: &Path, offset: u64) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    // A log of a start or a stop; more than this is not read.
    file.take(1 << 20).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The `name=value` words of the whole line that starts so.
fn find_line(log: &Path, offset: u64, start: &str) -> Result<Option<HashMap<String, String>>> {
    let text = read_from(log, offset)?;
    let line = text.split_inclusive('\n').find(|line| line.starts_with(start) && line.ends_with('\n'));
    Ok(line.map(|line| {
        let words = line.split_whitespace().filter_map(|word| word.split_once('='));
        words.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }))
}

/// The last lines, for a person who has to find out what went wrong.
fn tail_of(log: &Path, offset: u64) -> String {
    let text = read_from(log, offset).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// A directory of our own that goes when it is dropped, unless it is told to stay.
pub struct WorkDir {
    pub path: PathBuf,
    keep: bool,
}

impl WorkDir {
    pub fn new(parent: Option<&Path>, what: &str) -> Result<Self> {
        // Or an interruption before the work proper would leave the directory behind.
        heed_interrupts()?;
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let name = format!("headwater-{what}-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = parent.join(name);
        std::fs::create_dir(&path).with_context(|| format!("no directory can be made in {}", parent.display()))?;
        Ok(WorkDir { path, keep: false })
    }

    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
