//! A fleet of real SDK devices in one process, against one gateway. Ends with 0 when every record of every device was
//! acknowledged, and with 1 when some were not in time. The last line is JSON.

use clap::Parser;
use headwater_device_host::fleet::{Behaviour, Totals, device};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A fleet of real SDK devices in one process
#[derive(Debug, Parser)]
#[command(name = "headwater-fleet")]
struct Arguments {
    /// The gateway's MQTT address
    #[arg(long, default_value = "127.0.0.1:1883")]
    gateway: SocketAddr,
    /// How many devices
    #[arg(long, default_value_t = 1_000)]
    devices: u32,
    /// Records that each of them makes
    #[arg(long, default_value_t = 60)]
    records: u64,
    /// Milliseconds between two records of a device
    #[arg(long, default_value_t = 1_000)]
    every_ms: u64,
    /// Milliseconds that a record waits for company
    #[arg(long, default_value_t = 2_000)]
    linger_ms: u64,
    /// Devices come up spread over so many seconds
    #[arg(long, default_value_t = 5)]
    ramp_s: u64,
    /// Seconds after which what is not acknowledged counts as lost
    #[arg(long, default_value_t = 300)]
    timeout_s: u64,
    /// Topic that they publish to
    #[arg(long, default_value = "fleet/readings")]
    topic: String,
    /// Their ids are this and a number
    #[arg(long, default_value = "fleet-")]
    id: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (totals, failed) = (Arc::new(Totals::default()), Arc::new(AtomicU64::new(0)));
    let started = std::time::Instant::now();
    // An SDK device does not move between threads: each thread has a share of the fleet.
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32).min(arguments.devices.max(1));
    std::thread::scope(|scope| {
        for share in 0..threads {
            let (arguments, totals, failed) = (&arguments, &totals, &failed);
            scope.spawn(move || run_share(arguments, share, threads, totals, failed));
        }
        scope.spawn(|| show(&arguments, &totals, &failed, started));
    });
    let seconds = started.elapsed().as_secs_f64();
    let get = |of: &AtomicU64| of.load(Ordering::Relaxed);
    println!(
        "{{\"devices\":{},\"recorded\":{},\"acknowledged\":{},\"unrecorded\":{},\"publishes\":{},\"connections\":{},\
         \"refused\":{},\"unfinished_devices\":{},\"seconds\":{seconds:.3},\"records_per_s\":{:.0}}}",
        arguments.devices,
        get(&totals.recorded),
        get(&totals.acknowledged),
        get(&totals.unrecorded),
        get(&totals.publishes),
        get(&totals.connections),
        get(&totals.refused),
        get(&failed),
        get(&totals.acknowledged) as f64 / seconds,
    );
    let complete = get(&failed) == 0 && get(&totals.acknowledged) == arguments.records * u64::from(arguments.devices);
    if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_share(arguments: &Arguments, share: u32, threads: u32, totals: &Arc<Totals>, failed: &AtomicU64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let start = Instant::now();
        let mut devices = JoinSet::new();
        for number in (share..arguments.devices).step_by(threads as usize) {
            let behaviour = Behaviour {
                gateway: arguments.gateway,
                topic: arguments.topic.clone(),
                every: Duration::from_millis(arguments.every_ms),
                records: arguments.records,
                linger: Duration::from_millis(arguments.linger_ms),
                until: start + Duration::from_secs(arguments.timeout_s),
            };
            let at = start + Duration::from_secs(arguments.ramp_s) * number / arguments.devices;
            let (id, totals) = (format!("{}{number:05}", arguments.id), Arc::clone(totals));
            devices.spawn_local(async move {
                tokio::time::sleep_until(at).await;
                device(id, fastrand::u64(..), behaviour, totals).await
            });
        }
        while let Some(ended) = devices.join_next().await {
            if let Err(why) = ended.unwrap_or_else(|panic| Err(panic.to_string()))
                && failed.fetch_add(1, Ordering::Relaxed) < 10
            {
                eprintln!("{why}");
            }
        }
    });
}

fn show(arguments: &Arguments, totals: &Totals, failed: &AtomicU64, started: std::time::Instant) {
    let get = |of: &AtomicU64| of.load(Ordering::Relaxed);
    let all = u64::from(arguments.devices);
    let mut told = started;
    while get(&totals.done) + get(failed) < all {
        std::thread::sleep(Duration::from_millis(100));
        if told.elapsed() >= Duration::from_secs(2) {
            told = std::time::Instant::now();
            eprintln!(
                "{:4.0} s  {} of {all} devices done  {} recorded  {} acknowledged  {} connections",
                started.elapsed().as_secs_f64(),
                get(&totals.done),
                get(&totals.recorded),
                get(&totals.acknowledged),
                get(&totals.connections),
            );
        }
    }
}
