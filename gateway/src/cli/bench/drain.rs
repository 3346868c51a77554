//! `headwater bench drain`: a gateway fills up while its upstream is away; then the upstream, another gateway, starts.
//! Records a second out, against records a second in, of the same run.

use super::generator::Load;
use super::ingest::round3;
use super::machine;
use crate::cli::child::{Gateway, Launch, WorkDir};
use crate::cli::client::{block_on, get, until_interrupted};
use crate::cli::output::{Output, Unit};
use crate::cli::telemetry;
use crate::units::Span;
use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const STREAM: &str = "bench";
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Without one more record for so long, the drain is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct Drain {
    /// How long the backlog is filled.
    #[arg(long, default_value = "20 s", value_name = "SPAN")]
    duration: Span,
    /// Fill with this many messages instead.
    #[arg(long)]
    count: Option<u64>,
    /// Connections that publish at once.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Unacknowledged messages of one connection, at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=30_000))]
    window: u16,
    /// Shards of the stream, on both sides.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    shards: u32,
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
    records: u64,
    payload_bytes: usize,
    payload_zstd_ratio_64k: f64,
    in_seconds: f64,
    in_per_s: f64,
    /// From the upstream being ready to its first record: what is left of the backoff.
    until_first_s: f64,
    /// From the first record at the upstream to the last.
    out_seconds: f64,
    out_per_s: f64,
    out_over_in: f64,
    gateway_cpu_s: Option<f64>,
    upstream_cpu_s: Option<f64>,
    /// What a record of the drain costs each side.
    gateway_cpu_us_per_record: Option<f64>,
    upstream_cpu_us_per_record: Option<f64>,
    /// The gateway's includes the ingest.
    gateway_resident_bytes_max: Option<u64>,
    upstream_resident_bytes_max: Option<u64>,
}

impl Drain {
    pub fn run(self, out: &Output) -> Result<()> {
        let dir = WorkDir::new(self.dir.as_deref(), "drain")?;
        let upstream_api = free_address()?;
        let gateway = self.launch(&dir.path, "gateway", Some(upstream_api))?.start()?;
        let load = self.load(gateway.mqtt);
        let total = self.count.unwrap_or(self.duration.0.as_secs().max(1));
        let counted = self.count.is_some();
        let bar = out.progress(total, "filling", if counted { Unit::Count } else { Unit::Seconds });
        let shown = bar.clone();
        let seen = block_on(until_interrupted(load.run(move |acked, elapsed| {
            shown.set_position(if counted { acked } else { elapsed.as_secs() });
        })))?;
        bar.finish_and_clear();
        let in_seconds = seen.elapsed.as_secs_f64();

        let cpu = machine::cpu_seconds(gateway.pid());
        let upstream = self.launch(&dir.path, "upstream", None)?;
        let upstream = Launch { args: vec!["--api-listen".into(), upstream_api.to_string()], ..upstream }.start()?;
        let ready = Instant::now();
        let bar = out.progress(seen.acked, "draining", Unit::Count);
        let (first, last, records) =
            block_on(until_interrupted(watch(&upstream, seen.acked, |stored| bar.set_position(stored))))?;
        bar.finish_and_clear();
        let out_seconds = (last - first).as_secs_f64();
        let (in_per_s, out_per_s) = (seen.acked as f64 / in_seconds, records as f64 / out_seconds);
        let gateway_cpu = machine::cpu_seconds(gateway.pid()).zip(cpu).map(|(after, before)| after - before);
        let upstream_cpu = machine::cpu_seconds(upstream.pid());
        let a_record = |seconds: f64| round3(seconds * 1e6 / records.max(1) as f64);
        let report = Report {
            bench: "drain",
            records,
            payload_bytes: load.payload_bytes,
            payload_zstd_ratio_64k: load.payload_ratio()?,
            in_seconds: round3(in_seconds),
            in_per_s: in_per_s.round(),
            until_first_s: round3((first - ready).as_secs_f64()),
            out_seconds: round3(out_seconds),
            out_per_s: out_per_s.round(),
            out_over_in: round3(out_per_s / in_per_s),
            gateway_cpu_s: gateway_cpu.map(round3),
            upstream_cpu_s: upstream_cpu.map(round3),
            gateway_cpu_us_per_record: gateway_cpu.map(a_record),
            upstream_cpu_us_per_record: upstream_cpu.map(a_record),
            gateway_resident_bytes_max: machine::resident_bytes_max(gateway.pid()),
            upstream_resident_bytes_max: machine::resident_bytes_max(upstream.pid()),
        };
        gateway.stop(Duration::from_secs(60))?;
        upstream.stop(Duration::from_secs(60))?;
        out.line(&serde_json::to_string(&report)?)
    }

    fn load(&self, target: SocketAddr) -> Load {
        Load {
            target,
            connections: self.connections,
            window: self.window,
            payload_bytes: telemetry::FIXED_BYTES_MIN,
            seed: self.seed,
            rate: None,
            duration: if self.count.is_some() { Duration::from_secs(86_400) } else { self.duration.0 },
            count: self.count,
            topic: "bench/{}/t".into(),
        }
    }

    fn launch(&self, dir: &Path, side: &str, forwards_to: Option<SocketAddr>) -> Result<Launch> {
        let mut config = format!(
            "[mqtt]\nlisten = \"127.0.0.1:0\"\n[api]\nlisten = \"127.0.0.1:0\"\n[console]\nlisten = \"127.0.0.1:0\"\n\
             [[stream]]\nname = \"{STREAM}\"\nshards = {}\n\
             [[route]]\ntopics = [\"#\"]\nstream = \"{STREAM}\"\nkey = \"{{client_id}}\"\n",
            self.shards
        );
        if let Some(upstream) = forwards_to {
            config.push_str(&format!(
                "[[sink]]\nname = \"upstream\"\ntype = \"kinesis\"\nstreams = [\"{STREAM}\"]\ntarget = \"{STREAM}\"\n\
                 region = \"us-east-1\"\nendpoint = \"http://{upstream}\"\nrequired = true\n"
            ));
        }
        let path = dir.join(format!("{side}.toml"));
        std::fs::write(&path, config)?;
        let mut launch = Launch::new(dir.join(side), dir.join(format!("{side}.log")));
        launch.config = Some(path);
        launch.env = [("AWS_ACCESS_KEY_ID", "bench"), ("AWS_SECRET_ACCESS_KEY", "bench")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
        Ok(launch)
    }
}

/// An address that nobody listens on for now.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// When the first and the last record were there, and how many came.
async fn watch(upstream: &Gateway, wanted: u64, progress: impl Fn(u64)) -> Result<(Instant, Instant, u64)> {
    let console = upstream.console.to_string();
    let (mut first, mut before, mut moved) = (None, 0, Instant::now());
    loop {
        let now = Instant::now();
        let (_, text) = get(&console, "/metrics").await?;
        let stored = metric(std::str::from_utf8(&text)?, "headwater_records_in_total", STREAM);
        progress(stored);
        if stored > before {
            // The first look that sees something comes up to one interval late, which makes the rate no better.
            first.get_or_insert(moved.max(now - LOOK_EVERY));
        }
        if stored != before {
            moved = now;
        }
        if let Some(first) = first
            && stored >= wanted
        {
            return Ok((first, now, stored));
        }
        ensure!(moved.elapsed() < STUCK_AFTER, "the drain is stuck at {stored} of {wanted} records");
        before = stored;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A sample of the Prometheus text, of one stream; 0 if it is not there yet.
fn metric(text: &str, name: &str, stream: &str) -> u64 {
    let label = format!("{{stream=\"{stream}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(&label));
    line.and_then(|value| value.trim().parse::<f64>().ok()).map_or(0, |value| value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_found_by_name_and_stream() {
        let text =
            "# HELP x\nheadwater_records_in_total{stream=\"a\"} 5\nheadwater_records_in_total{stream=\"bench\"} 7\n";
        assert_eq!(metric(text, "headwater_records_in_total", "bench"), 7);
        assert_eq!(metric(text, "headwater_records_in_total", "c"), 0);
    }
}
