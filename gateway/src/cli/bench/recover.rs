//! `headwater bench recover`: fill a log, SIGKILL under load, start again, and time the first PUBACK.
//!
//! The page cache is emptied of the log's files in between, as far as an ordinary user can, so that what recovery reads
//! comes from the disk and is counted.

use super::generator::Load;
use super::ingest::round3;
use super::machine;
use crate::cli::child::{Gateway, Launch, WorkDir};
use crate::cli::client::{block_on, get, until_interrupted};
use crate::cli::output::{Output, Unit};
use crate::cli::{telemetry, usage, wire};
use crate::units::ByteSize;
use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use clap::Args;
use rustix::fs::{Advice, fadvise, syncfs};
use serde::Serialize;
use std::cell::RefCell;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long the first PUBACK may take before we give up.
const PATIENCE: Duration = Duration::from_secs(120);
const KNOCK_EVERY: Duration = Duration::from_millis(2);

#[derive(Args)]
pub struct Recover {
    /// Payload bytes to put into the log first, such as "2 GB".
    #[arg(long, default_value = "2 GB", value_name = "SIZE")]
    bytes: ByteSize,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 1000, value_name = "BYTES")]
    payload: usize,
    /// Connections that publish at once.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Unacknowledged messages of one connection, at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=30_000))]
    window: u16,
    /// Seed of the payloads.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the temporary directory is made.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    bench: &'static str,
    payload_bytes_in_log: u64,
    payload_zstd_ratio_64k: f64,
    disk_bytes_in_log: u64,
    fill_seconds: f64,
    resident_bytes_at_kill: Option<u64>,
    /// From starting the process to the first PUBACK.
    first_puback_s: f64,
    /// Folds that had ended by then: acknowledging does not wait for them.
    folds_at_first_puback: u64,
    /// Bytes the process had read from disk by then, and ten seconds later.
    read_bytes_at_first_puback: Option<u64>,
    read_bytes_later: Option<u64>,
    resident_bytes_at_first_puback: Option<u64>,
    resident_bytes_later: Option<u64>,
}

impl Recover {
    pub fn run(self, out: &Output) -> Result<()> {
        if self.payload < telemetry::FIXED_BYTES_MIN {
            return Err(usage(format!("--payload is at least {}", telemetry::FIXED_BYTES_MIN)));
        }
        let dir = WorkDir::new(self.dir.as_deref(), "recover")?;
        let data = dir.path.join("data");
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let launch = Launch::new(&data, dir.path.join("gateway.log"));
        let gateway = launch.clone().listen(any, any, any).start()?;
        let launch = launch.listen(gateway.mqtt, gateway.api, gateway.console);
        let (mqtt, console, load) = (gateway.mqtt, gateway.console, self.load(gateway.mqtt));
        let begun = Instant::now();
        let resident_bytes_at_kill = self.fill_and_kill(gateway, &load, out)?;
        let fill_seconds = begun.elapsed().as_secs_f64();
        let disk_bytes_in_log = forget(&data)?;

        let started = Instant::now();
        let (first, folds_at_first_puback, starting) = block_on(until_interrupted(async {
            let starting = launch.spawn()?;
            first_puback(mqtt).await?;
            let first = started.elapsed();
            Ok((first, folds(console).await?, starting))
        }))?;
        let read_at_first = machine::read_bytes(starting.pid());
        let resident_at_first = machine::resident_bytes(starting.pid());
        let bar = out.progress(10, "waiting for what recovery reads later", Unit::Seconds);
        for _ in 0..10 {
            std::thread::sleep(Duration::from_secs(1));
            bar.inc(1);
        }
        bar.finish_and_clear();
        let gateway = starting.wait()?;
        let report = Report {
            bench: "recover",
            payload_bytes_in_log: self.bytes.0,
            payload_zstd_ratio_64k: load.payload_ratio()?,
            disk_bytes_in_log,
            fill_seconds: round3(fill_seconds),
            resident_bytes_at_kill,
            first_puback_s: round3(first.as_secs_f64()),
            folds_at_first_puback,
            read_bytes_at_first_puback: read_at_first,
            read_bytes_later: machine::read_bytes(gateway.pid()),
            resident_bytes_at_first_puback: resident_at_first,
            resident_bytes_later: machine::resident_bytes(gateway.pid()),
        };
        gateway.stop(Duration::from_secs(60))?;
        out.line(&serde_json::to_string(&report)?)
    }

    fn load(&self, target: SocketAddr) -> Load {
        Load {
            target,
            connections: self.connections,
            window: self.window,
            payload_bytes: self.payload,
            seed: self.seed,
            rate: None,
            duration: Duration::from_secs(86_400),
            count: None,
            topic: "bench/{}/t".into(),
        }
    }

    /// Publishes until so much is acknowledged, then kills the gateway in the middle of it. Returns its memory by then.
    fn fill_and_kill(&self, gateway: Gateway, load: &Load, out: &Output) -> Result<Option<u64>> {
        let bar = out.progress(self.bytes.0, "filling", Unit::Bytes);
        let state = Rc::new(RefCell::new((Some(gateway), None)));
        let (shared, shown, payload, wanted) = (state.clone(), bar.clone(), self.payload as u64, self.bytes.0);
        let outcome = block_on(until_interrupted(load.run(move |acked, _| {
            shown.set_position(acked * payload);
            if acked * payload >= wanted {
                let (gateway, resident) = &mut *shared.borrow_mut();
                if let Some(gateway) = gateway.take() {
                    *resident = machine::resident_bytes(gateway.pid());
                    let _ = gateway.kill();
                }
            }
        })));
        bar.finish_and_clear();
        let (gateway, resident) = state.take();
        match (outcome, gateway) {
            // The connections broke because we killed their gateway.
            (_, None) => Ok(resident),
            (Err(error), Some(_)) => Err(error.context("while filling the log")),
            (Ok(_), Some(_)) => anyhow::bail!("the load ended before the log was filled"),
        }
    }
}

/// Drops the log's files from the page cache; returns what they take on disk.
fn forget(data: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    syncfs(File::open(data)?)?;
    let mut sum = 0;
    let mut dirs = vec![data.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else if entry.file_type()?.is_file() {
                sum += entry.metadata()?.blocks() * 512;
                fadvise(File::open(entry.path())?, 0, None, Advice::DontNeed)?;
            }
        }
    }
    Ok(sum)
}

/// Knocks until the gateway takes and acknowledges a message.
async fn first_puback(mqtt: SocketAddr) -> Result<()> {
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        if let Ok(true) = tokio::time::timeout(PATIENCE, one_message(mqtt)).await.unwrap_or(Ok(false)) {
            return Ok(());
        }
        tokio::time::sleep(KNOCK_EVERY).await;
    }
    anyhow::bail!("no PUBACK within {PATIENCE:?}")
}

/// Folds that have ended since the start, by the gateway's own count.
async fn folds(console: SocketAddr) -> Result<u64> {
    let (_, text) = get(&console.to_string(), "/metrics").await?;
    let value = str::from_utf8(&text)?.lines().find_map(|line| line.strip_prefix("headwater_folds_total "));
    Ok(value.context("the gateway counts no folds")?.parse()?)
}

async fn one_message(mqtt: SocketAddr) -> Result<bool> {
    let mut socket = TcpStream::connect(mqtt).await?;
    socket.set_nodelay(true)?;
    socket.write_all(&wire::connect_v4("bench-recover", 0)).await?;
    socket.write_all(&wire::publish_v4("bench/recover/t", 1, br#"{"back":true}"#)).await?;
    let mut input = BytesMut::new();
    loop {
        while let Some(packet) = wire::take(&mut input)? {
            if packet.kind == wire::PUBACK {
                ensure!(packet.reason() < 0x80, "refused");
                return Ok(true);
            }
        }
        if socket.read_buf(&mut input).await? == 0 {
            return Ok(false);
        }
    }
}
