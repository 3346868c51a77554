//! `headwater demo`: the main job with nothing installed. A simulated fleet publishes over real MQTT to a gateway, which
//! is a child process of the same binary; it forwards to a second Headwater in this process, through a link that fails in
//! the middle; the gateway is killed once. At the end both logs are read back and audited.

mod audit;
mod device;
mod display;
mod proxy;
mod sabotage;
mod script;

use super::child::{Gateway, Launch, WorkDir};
use super::client::{Interrupted, until_interrupted};
use super::output::{Output, Unit};
use super::telemetry;
use crate::api::{Api, ApiConfig};
use crate::clock::Clock;
use crate::log::{Entry, Log, Options, Position, StreamSettings};
use crate::metrics::Metrics;
use crate::record::{Record, StreamName};
use crate::units::ByteSize;
use anyhow::{Context, Result, bail, ensure};
use audit::{Audit, Found, Sent, audit};
use clap::Args;
use device::{Device, Fleet};
use display::{Display, Moment};
use indicatif::ProgressBar;
use proxy::Proxy;
use sabotage::Sabotage;
use script::{Does, script};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const STREAM: &str = "telemetry";
const REDRAW: Duration = Duration::from_millis(200);
/// How long the last acknowledgements may take, and how long the backlog may stand still before it is given up: a slow
/// machine shall not look like a loss.
const STALL: Duration = Duration::from_secs(30);
/// How long everything must have arrived before it counts as quiet.
const QUIET: Duration = Duration::from_millis(600);
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// Budget of each of the two logs.
const LOG_BYTES: ByteSize = ByteSize::mib(512);

#[derive(Args)]
pub struct Demo {
    /// Simulated devices.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=2000))]
    devices: u32,
    /// How long they measure.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(5..=3600))]
    seconds: u32,
    /// Messages of one device a second.
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// Seed of everything that is drawn by lot; without it, a new one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Where the temporary directory is made.
    #[arg(long, value_name = "DIR")]
    dir: Option<std::path::PathBuf>,
    /// Keep the directory with both logs.
    #[arg(long)]
    keep: bool,
    /// Breaks the link or the gateway on purpose, to see that the audit says so.
    #[arg(long, hide = true, value_name = "HOW")]
    sabotage: Option<Sabotage>,
    /// Breaks the gateway's log on purpose. Not in a product build.
    #[cfg(feature = "sim")]
    #[arg(long, hide = true, value_name = "NAME")]
    mutation: Option<String>,
}

/// The closing line as JSON.
#[derive(Serialize)]
struct Report {
    seed: u64,
    devices: u32,
    seconds: f64,
    reconnects: u64,
    calls_hurt: u64,
    #[serde(flatten)]
    audit: Audit,
}

impl Demo {
    pub fn run(self, out: &Output) -> Result<()> {
        if !(self.rate > 0.0 && self.rate <= 1000.0) {
            return Err(super::usage("--rate is a number of messages a second, up to 1000"));
        }
        let seed = self.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
        let mut dir = WorkDir::new(self.dir.as_deref(), "demo")?;
        if !out.json {
            out.line(&format!("seed {seed}, files in {}", dir.path.display()))?;
        }
        if let Some(sabotage) = self.sabotage {
            eprintln!("this demo is broken on purpose ({sabotage:?}): the audit must fail");
        }
        let outcome = self.play(seed, &dir.path, out);
        let good = outcome.as_ref().is_ok_and(|report| report.audit.fault().is_none());
        let interrupted = outcome.as_ref().is_err_and(|error| error.is::<Interrupted>());
        if self.keep || !(good || interrupted) {
            dir.keep();
            eprintln!("the logs of both sides stay in {}", dir.path.display());
        }
        let report = outcome?;
        out.result(&report, || report.audit.line())?;
        if report.calls_hurt == 0 {
            eprintln!(
                "no fault of the link met a call, so nothing was shown of them: raise --rate, --devices or --seconds"
            );
        }
        match report.audit.fault() {
            Some(fault) => bail!("{fault}; `headwater demo --seed {seed}` plays the same faults again"),
            None => Ok(()),
        }
    }

    fn play(&self, seed: u64, dir: &Path, out: &Output) -> Result<Report> {
        let cloud = Log::open(options(dir.join("upstream")), Clock::system(), Metrics::new())?;
        let settings = StreamSettings { shards: 4, ..StreamSettings::default() };
        cloud.create_stream(&StreamName::new(STREAM)?, settings)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let played = runtime.block_on(until_interrupted(self.direct(seed, dir, cloud.clone(), out)));
        runtime.shutdown_timeout(Duration::from_secs(2));
        cloud.close(STOP_WITHIN);
        drop(cloud);
        let Played { devices, seconds, reconnects, calls_hurt } = played?;
        let bar = out.progress(0, "reading both logs back", Unit::Count);
        let gateway_side = read_back(&dir.join("gateway"), seed, &bar).context("the gateway's log")?;
        let cloud_side = read_back(&dir.join("upstream"), seed, &bar).context("the upstream's log")?;
        bar.finish_and_clear();
        let audit = audit(&devices, &gateway_side, &cloud_side);
        Ok(Report { seed, devices: self.devices, seconds, reconnects, calls_hurt, audit })
    }

    /// Starts everything, plays the script, lets the backlog drain, stops everything.
    async fn direct(&self, seed: u64, dir: &Path, cloud: Log, out: &Output) -> Result<Played> {
        let begun = Instant::now();
        let api = ApiConfig { listen: ([127, 0, 0, 1], 0).into(), ..ApiConfig::default() };
        let api = Api::start(&api, cloud.clone(), Clock::system(), Metrics::new()).await?;
        let proxy = Proxy::start(api.local_addr(), seed, self.sabotage).await?;
        let mut launch = launch(dir, &proxy, self.sabotage)?;
        launch.args.extend(self.mutation_args());
        let gateway = launch.start_async().await?;
        // From now on on the same ports, as devices in the field expect.
        let launch = launch.listen(gateway.mqtt, gateway.api, gateway.console);

        let fleet = Arc::new(Fleet::default());
        let (stop, stopped) = watch::channel(false);
        let mut devices = JoinSet::new();
        for number in 1..=self.devices {
            let device = Device {
                number,
                seed,
                gateway: gateway.mqtt,
                every: Duration::from_secs_f64(1.0 / self.rate),
                fleet: fleet.clone(),
                stop: stopped.clone(),
            };
            devices.spawn(async move { (number, device.run(STALL).await) });
        }
        let mut stage = Stage {
            fleet,
            cloud,
            proxy,
            gateway: Some(gateway),
            display: Display::new(out),
            begun,
            devices: self.devices,
        };
        stage.play(seed, Duration::from_secs(u64::from(self.seconds)), &launch).await?;
        stop.send_replace(true);
        let sent = stage.settle(devices).await?;
        stage.drain().await?;
        let gateway = stage.gateway.take().context("the gateway is gone")?;
        tokio::task::spawn_blocking(move || gateway.stop(STOP_WITHIN + Duration::from_secs(5))).await??;
        api.stop(Duration::from_secs(2)).await;
        let (sabotaged, wanted) = (stage.proxy.sabotaged(), self.sabotage.map_or(0, Sabotage::times));
        ensure!(
            sabotaged == wanted,
            "the link was to be broken {wanted} times and was {sabotaged} times: no call carried two records of one device"
        );
        Ok(Played {
            devices: sent,
            seconds: begun.elapsed().as_secs_f64(),
            reconnects: stage.fleet.reconnects.load(Ordering::Relaxed),
            calls_hurt: stage.proxy.hurt(),
        })
    }

    #[cfg(feature = "sim")]
    fn mutation_args(&self) -> Vec<String> {
        self.mutation.iter().flat_map(|name| ["--mutation".to_owned(), name.clone()]).collect()
    }

    #[cfg(not(feature = "sim"))]
    fn mutation_args(&self) -> [String; 0] {
        []
    }
}

/// What the audit needs to know of the play.
struct Played {
    devices: BTreeMap<u32, Sent>,
    seconds: f64,
    reconnects: u64,
    calls_hurt: u64,
}

/// Everything that is on while the demo plays.
struct Stage<'o> {
    fleet: Arc<Fleet>,
    cloud: Log,
    proxy: Proxy,
    gateway: Option<Gateway>,
    display: Display<'o>,
    begun: Instant,
    devices: u32,
}

impl Stage<'_> {
    async fn play(&mut self, seed: u64, length: Duration, launch: &Launch) -> Result<()> {
        let start = Instant::now();
        for step in script(seed, length) {
            self.watch_until(start + step.at).await?;
            match step.does {
                Does::Fault(fault) => self.proxy.set(fault),
                Does::Kill => self.kill(launch).await?,
            }
        }
        self.watch_until(start + length).await
    }

    async fn kill(&mut self, launch: &Launch) -> Result<()> {
        let gateway = self.gateway.take().context("the gateway is gone")?;
        gateway.kill()?;
        self.show("SIGKILL: the gateway is gone")?;
        self.proxy.show_offer();
        self.gateway = Some(launch.start_async().await.context("the gateway after SIGKILL")?);
        Ok(())
    }

    async fn watch_until(&mut self, end: Instant) -> Result<()> {
        while Instant::now() < end {
            self.show(self.proxy.fault().says())?;
            if self.gateway.as_mut().is_some_and(|gateway| gateway.has_ended().unwrap_or(false)) {
                bail!("the gateway ended by itself; its last words are in gateway.log");
            }
            sleep(REDRAW.min(end - Instant::now())).await;
        }
        Ok(())
    }

    /// Waits for the devices to have everything acknowledged.
    async fn settle(&mut self, mut devices: JoinSet<(u32, Sent)>) -> Result<BTreeMap<u32, Sent>> {
        let mut sent = BTreeMap::new();
        while !devices.is_empty() {
            tokio::select! {
                Some(done) = devices.join_next() => {
                    sent.extend([done?]);
                }
                () = sleep(REDRAW) => self.show("the devices stop")?,
            }
        }
        Ok(sent)
    }

    /// Waits for the backlog to be gone, and for the upstream to stay as it is for a moment; in vain only as long as the
    /// upstream gets nothing more. What is missing then, the audit will tell.
    async fn drain(&mut self) -> Result<()> {
        let (mut seen, mut since) = (self.upstream(), Instant::now());
        loop {
            self.show("the backlog drains")?;
            let stored = self.upstream();
            if stored != seen {
                (seen, since) = (stored, Instant::now());
            }
            // A message without an acknowledgement may be in the gateway's log, and is owed then.
            let sent = self.fleet.sent.load(Ordering::Relaxed);
            if since.elapsed() > if stored >= sent { QUIET } else { STALL } {
                return self.show("stopping, then reading both logs back");
            }
            sleep(REDRAW / 2).await;
        }
    }

    fn upstream(&self) -> u64 {
        self.cloud.stream(STREAM).map_or(0, |stream| self.cloud.record_count(&stream))
    }

    fn show(&mut self, phase: &'static str) -> Result<()> {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let moment = Moment {
            elapsed: self.begun.elapsed(),
            devices: u64::from(self.devices),
            connected: read(&self.fleet.connected),
            sent: read(&self.fleet.sent),
            acked: read(&self.fleet.acked),
            upstream: self.upstream(),
            hurt: self.proxy.hurt(),
            reconnects: read(&self.fleet.reconnects),
            phase,
            gateway: self.gateway.as_ref().map(Gateway::pid),
        };
        self.display.show(moment)
    }
}

fn options(dir: std::path::PathBuf) -> Options {
    Options { max_bytes: LOG_BYTES, ..Options::new(dir) }
}

/// The gateway's configuration, as a user would write it.
fn launch(dir: &Path, proxy: &Proxy, sabotage: Option<Sabotage>) -> Result<Launch> {
    let allows = match sabotage {
        Some(Sabotage::Unacknowledged) => "\n[[allow]]\nidentity = \"nobody\"\n",
        _ => "",
    };
    let config = format!(
        r#"# The gateway of `headwater demo`.
[data]
max_bytes = "{LOG_BYTES}"

[mqtt]
listen = "127.0.0.1:0"
[api]
listen = "127.0.0.1:0"
[console]
listen = "127.0.0.1:0"

[[stream]]
name = "{STREAM}"
shards = 4

[[route]]
topics = ["site/+/dev/+/t"]
stream = "{STREAM}"
key = "{{topic[3]}}"

[[sink]]
name = "cloud"
type = "kinesis"
streams = ["{STREAM}"]
target = "{STREAM}"
region = "us-east-1"
endpoint = "http://{}"
required = true
{allows}"#,
        proxy.address
    );
    let path = dir.join("gateway.toml");
    std::fs::write(&path, config)?;
    let mut launch = Launch::new(dir.join("gateway"), dir.join("gateway.log"));
    launch.config = Some(path);
    launch.ready_within = Duration::from_secs(20);
    launch.env = [("AWS_ACCESS_KEY_ID", "demo"), ("AWS_SECRET_ACCESS_KEY", "demo")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    Ok(launch)
}

/// Reads every shard of a log that nobody runs, in order.
fn read_back(dir: &Path, seed: u64, bar: &ProgressBar) -> Result<Vec<Vec<Found>>> {
    let log = Log::open(options(dir.to_owned()), Clock::system(), Metrics::new())?;
    let stream = log.stream(STREAM).with_context(|| format!("there is no stream {STREAM}"))?;
    bar.inc_length(log.record_count(&stream));
    let mut shards = Vec::new();
    for shard in stream.shards().iter() {
        let mut reader = log.reader(&stream, shard.index, Position::Oldest)?;
        let mut found = Vec::new();
        loop {
            let entries = reader.next_blocking(1000, 4 << 20)?;
            if entries.is_empty() {
                break;
            }
            bar.inc(entries.len() as u64);
            // What a gap took away is missing, and the audit finds that by itself.
            found.extend(entries.iter().filter_map(|entry| match entry {
                Entry::Record(record) => Some(recognise(record, seed)),
                Entry::Gap(_) => None,
            }));
        }
        shards.push(found);
    }
    log.close(Duration::from_secs(5));
    Ok(shards)
}

/// Which message a record is: its key and every byte of it must be what the device made.
fn recognise(record: &Record, seed: u64) -> Found {
    let parse = || {
        let device: u32 = std::str::from_utf8(&record.key).ok()?.strip_prefix("d-")?.parse().ok()?;
        let value: serde_json::Value = serde_json::from_slice(&record.data).ok()?;
        let number = value["n"].as_u64()?;
        let same = record.data == telemetry::reading(seed, device, number).as_bytes()
            && record.key == device::name(device).as_bytes();
        same.then_some(Found::Message { device, number })
    };
    parse().unwrap_or(Found::Alien)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_recognised_by_every_byte() {
        let record = |key: &str, data: String| Record {
            number: 1,
            arrival_ms: 0,
            key: key.as_bytes().to_vec().into(),
            explicit_hash: None,
            producer: None,
            headers: Vec::new(),
            data: data.into(),
        };
        let good = telemetry::reading(5, 7, 3);
        assert_eq!(recognise(&record("d-0007", good.clone()), 5), Found::Message { device: 7, number: 3 });
        for (key, data, seed) in [
            ("d-0008", good.clone(), 5),
            ("d-0007", good.replace("true", "trux"), 5),
            ("d-0007", good.clone(), 6),
            ("d-7", good, 5),
        ] {
            assert_eq!(recognise(&record(key, data), seed), Found::Alien);
        }
    }
}
