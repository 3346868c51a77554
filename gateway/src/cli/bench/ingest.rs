//! `headwater bench ingest`: publish at QoS 1 and measure. Without `--target` it starts a gateway of its own, measures it,
//! and stops it, so that folding is finished before the bytes on disk are counted.

use super::generator::{Load, Seen};
use super::histogram::Percentiles;
use super::machine::{self, MemoryWatch};
use super::probe::Probe;
use crate::cli::child::{Gateway, Launch, WorkDir};
use crate::cli::client::{block_on, until_interrupted};
use crate::cli::output::{Output, Unit};
use crate::cli::{telemetry, usage};
use crate::metrics::Device;
use crate::record::DATA_BYTES_MAX;
use crate::units::Span;
use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// MQTT has room for 65,535; a connection's number needs some of it.
const TOPIC_BYTES_MAX: usize = 60_000;

#[derive(Args, Clone)]
pub struct Ingest {
    /// Connections that publish at once.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Unacknowledged messages of one connection, at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=30_000))]
    window: u16,
    /// Bytes of a payload.
    #[arg(long, default_value_t = telemetry::FIXED_BYTES_MIN, value_name = "BYTES")]
    payload: usize,
    /// How long to publish.
    #[arg(long, default_value = "20 s", value_name = "SPAN")]
    duration: Span,
    /// Stop after this many messages instead.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Messages a second over all connections; without it, as fast as they are acknowledged.
    #[arg(long)]
    rate: Option<f64>,
    /// Seed of the payloads.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Topic of a connection; {} is its number.
    #[arg(long, default_value = "bench/{}/t")]
    topic: String,
    /// Measure the broker at this address (any that speaks MQTT 3.1.1) instead of a gateway of our own.
    #[arg(long, value_name = "ADDR")]
    target: Option<String>,
    /// With --target: process whose CPU and memory are told.
    #[arg(long, requires = "target")]
    pid: Option<u32>,
    /// Where the gateway's temporary directory is made; with --target, the directory whose device is watched.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Configuration of the gateway.
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    config: Option<PathBuf>,
    /// Time the disk alone as well, before and after: 4 KiB with O_DIRECT and fdatasync, at the rate of the run.
    #[arg(long)]
    probe: bool,
    /// Keep the gateway's directory and say where it is.
    #[arg(long, conflicts_with = "target")]
    keep: bool,
}

/// One run, as printed.
#[derive(Serialize)]
struct Report {
    bench: &'static str,
    target: String,
    connections: u32,
    window: u16,
    payload_bytes: usize,
    payload_zstd_ratio_64k: f64,
    seed: u64,
    rate: Option<f64>,
    seconds: f64,
    sent: u64,
    acked: u64,
    refused: u64,
    acked_per_s: f64,
    latency_ms: Percentiles,
    /// The disk alone, in the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_probe_ms: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_over_disk_p99: Option<f64>,
    generator_cpu_s: f64,
    gateway_cpu_s: Option<f64>,
    /// The same with start, folding and stop.
    gateway_cpu_total_s: Option<f64>,
    gateway_resident_bytes_idle: Option<u64>,
    gateway_resident_bytes_max: Option<u64>,
    /// From SIGTERM until everything was folded and the process gone.
    drain_s: Option<f64>,
    disk: Option<String>,
    /// Bytes that reached the device from before the load until everything was drained.
    disk_written_bytes: Option<u64>,
    disk_bytes_per_payload_byte: Option<f64>,
    /// What the gateway says it wrote, journal, segments and blobs: a check on a device that others write to as well.
    gateway_bytes_per_payload_byte: Option<f64>,
    /// Size of the data directory without the journal's ring, after the drain, per payload byte.
    folded_bytes_per_payload_byte: Option<f64>,
    /// The gateway's own counters when it stopped.
    gateway_counters: BTreeMap<String, u64>,
}

impl Ingest {
    pub fn run(self, out: &Output) -> Result<()> {
        if !(telemetry::FIXED_BYTES_MIN..=DATA_BYTES_MAX).contains(&self.payload) {
            return Err(usage(format!("--payload is {} to {DATA_BYTES_MAX}", telemetry::FIXED_BYTES_MIN)));
        }
        if self.topic.is_empty() || self.topic.len() > TOPIC_BYTES_MAX || self.topic.contains(['#', '+', '\0']) {
            return Err(usage(format!("--topic is a topic without wildcards, of up to {TOPIC_BYTES_MAX} bytes")));
        }
        if self.rate.is_some_and(|rate| !(rate > 0.0 && rate < 1e9)) {
            return Err(usage("--rate is a number of messages a second above 0"));
        }
        let report = match &self.target {
            Some(target) => self.against(target, out)?,
            None => self.own_gateway(out)?,
        };
        out.line(&serde_json::to_string(&report)?)
    }

    /// A broker that somebody else started.
    fn against(&self, target: &str, out: &Output) -> Result<Report> {
        let address = target.to_socket_addrs().with_context(|| format!("--target {target}"))?.next();
        let address = address.with_context(|| format!("--target {target} names no address"))?;
        let device = self.dir.as_deref().and_then(Device::under);
        let written = device.as_ref().and_then(Device::synced_bytes);
        let cpu = self.pid.and_then(machine::cpu_seconds);
        let watch = self.pid.map(MemoryWatch::start);
        let run = self.measure(address, self.dir.as_deref(), out)?;
        let mut report = self.report(target.to_owned(), run)?;
        report.gateway_cpu_s = self.pid.and_then(machine::cpu_seconds).zip(cpu).map(|(after, before)| after - before);
        report.gateway_resident_bytes_max = watch.map(|watch| watch.max_bytes());
        report.count_wear(device.as_ref(), written, self);
        Ok(report)
    }

    /// A gateway of our own, from an empty directory to the end of its last fold.
    fn own_gateway(&self, out: &Output) -> Result<Report> {
        let mut dir = WorkDir::new(self.dir.as_deref(), "bench")?;
        if self.keep {
            dir.keep();
            eprintln!("data stays in {}", dir.path.display());
        }
        let data = dir.path.join("data");
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let mut launch = Launch::new(&data, dir.path.join("gateway.log")).listen(any, any, any);
        launch.config = self.config.clone();
        let (_, ended_before) = machine::own_cpu_seconds();
        let gateway = launch.start()?;
        let idle = machine::resident_bytes(gateway.pid());
        let device = Device::under(&data);
        let written = device.as_ref().and_then(Device::synced_bytes);
        let cpu = machine::cpu_seconds(gateway.pid());
        let watch = MemoryWatch::start(gateway.pid());
        let run = self.measure(gateway.mqtt, Some(&dir.path), out)?;
        let mut report = self.report("headwater".into(), run)?;
        report.gateway_cpu_s =
            machine::cpu_seconds(gateway.pid()).zip(cpu).map(|(after, before)| round3(after - before));
        report.gateway_resident_bytes_idle = idle;
        report.stop(gateway)?;
        // The last folds included.
        report.gateway_resident_bytes_max = Some(watch.max_bytes());
        report.gateway_cpu_total_s = Some(round3(machine::own_cpu_seconds().1 - ended_before));
        report.count_wear(device.as_ref(), written, self);
        let payload = report.acked * self.payload as u64;
        let own: u64 = ["journal_bytes", "segment_bytes", "blob_bytes"]
            .iter()
            .filter_map(|name| report.gateway_counters.get(*name))
            .sum();
        report.gateway_bytes_per_payload_byte = Some(ratio(own, payload));
        report.folded_bytes_per_payload_byte = Some(ratio(folded_bytes(&data)?, payload));
        Ok(report)
    }

    fn measure(&self, target: SocketAddr, dir: Option<&Path>, out: &Output) -> Result<Run> {
        let load = Load {
            target,
            connections: self.connections,
            window: self.window,
            payload_bytes: self.payload,
            seed: self.seed,
            rate: self.rate,
            duration: if self.count.is_some() { Duration::from_secs(86_400) } else { self.duration.0 },
            count: self.count,
            topic: self.topic.clone(),
        };
        let mut probe = match (self.probe, dir) {
            (false, _) => None,
            (true, Some(dir)) => Some(Probe::new(dir)?),
            (true, None) => return Err(usage("--probe with --target needs --dir: where to write")),
        };
        // Half before, half after, at the pace of the load: a disk that naps answers later.
        let pace = Duration::from_secs_f64(self.rate.map_or(0.0, |rate| 1.0 / rate));
        let half = self.rate.map_or(1000.0, |rate| (rate * self.duration.0.as_secs_f64() / 2.0).min(1000.0)) as u64;
        if let Some(probe) = &mut probe {
            probe.run(half.max(1), pace)?;
        }
        let total = self.count.unwrap_or(self.duration.0.as_secs().max(1));
        let bar = out.progress(total, "publishing", if self.count.is_some() { Unit::Count } else { Unit::Seconds });
        let counted = self.count.is_some();
        let shown = bar.clone();
        let (cpu, _) = machine::own_cpu_seconds();
        let seen = block_on(until_interrupted(load.run(move |acked, elapsed| {
            shown.set_position(if counted { acked } else { elapsed.as_secs() });
        })))?;
        let generator_cpu_s = machine::own_cpu_seconds().0 - cpu;
        bar.finish_and_clear();
        if let Some(probe) = &mut probe {
            probe.run(half.max(1), pace)?;
        }
        let probe = probe.map(|probe| probe.latency.percentiles());
        Ok(Run { seen, generator_cpu_s, ratio: load.payload_ratio()?, probe })
    }

    fn report(&self, target: String, run: Run) -> Result<Report> {
        let Run { seen, generator_cpu_s, ratio, probe } = run;
        let latency_ms = seen.latency.percentiles();
        let seconds = seen.elapsed.as_secs_f64();
        Ok(Report {
            bench: "ingest",
            target,
            connections: self.connections,
            window: self.window,
            payload_bytes: self.payload,
            payload_zstd_ratio_64k: ratio,
            seed: self.seed,
            rate: self.rate,
            seconds: round3(seconds),
            sent: seen.sent,
            acked: seen.acked,
            refused: seen.refused,
            acked_per_s: (seen.acked as f64 / seconds).round(),
            p99_over_disk_p99: probe.map(|probe| round3(latency_ms.p99 / probe.p99)),
            latency_ms,
            disk_probe_ms: probe,
            generator_cpu_s: round3(generator_cpu_s),
            gateway_cpu_s: None,
            gateway_cpu_total_s: None,
            gateway_resident_bytes_idle: None,
            gateway_resident_bytes_max: None,
            drain_s: None,
            disk: None,
            disk_written_bytes: None,
            disk_bytes_per_payload_byte: None,
            gateway_bytes_per_payload_byte: None,
            folded_bytes_per_payload_byte: None,
            gateway_counters: BTreeMap::new(),
        })
    }
}

/// What one load gave.
struct Run {
    seen: Seen,
    generator_cpu_s: f64,
    ratio: f64,
    probe: Option<Percentiles>,
}

impl Report {
    fn stop(&mut self, gateway: Gateway) -> Result<()> {
        let begun = Instant::now();
        self.gateway_counters = gateway.stop(Duration::from_secs(120))?.into_iter().collect();
        self.drain_s = Some(round3(begun.elapsed().as_secs_f64()));
        Ok(())
    }

    fn count_wear(&mut self, device: Option<&Device>, before: Option<u64>, asked: &Ingest) {
        let after = device.and_then(Device::synced_bytes);
        self.disk = device.map(|device| device.name.clone());
        self.disk_written_bytes = after.zip(before).map(|(after, before)| after - before);
        let payload = self.acked * asked.payload as u64;
        self.disk_bytes_per_payload_byte = self.disk_written_bytes.map(|written| ratio(written, payload));
    }
}

pub(super) fn round3(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn ratio(bytes: u64, payload: u64) -> f64 {
    if payload == 0 { 0.0 } else { round3(bytes as f64 / payload as f64) }
}

/// Bytes of all segment and blob files under the directory.
fn folded_bytes(data: &Path) -> Result<u64> {
    let mut sum = 0;
    let mut dirs = vec![data.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if kind.is_dir() && !name.contains("journal") {
                dirs.push(entry.path());
            } else if kind.is_file() && !name.contains("journal") {
                use std::os::unix::fs::MetadataExt;
                sum += entry.metadata()?.blocks() * 512;
            }
        }
    }
    Ok(sum)
}
