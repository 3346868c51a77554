//! `headwater bench video`: cameras that send fragments by PutMedia, and what each waits for until it is on disk.
//!
//! The pictures are noise of the right size, since nothing here decodes them: a keyframe of a quarter of a second's bytes,
//! then small ones. `--telemetry` publishes MQTT beside it. `--playlist` fills a stream with as many fragments of a second
//! and times how long the playlist of all of them takes, from a gateway that has just started.

use super::generator::Load;
use super::histogram::{Histogram, Percentiles};
use super::ingest::round3;
use super::machine::{self, MemoryWatch};
use crate::cli::child::{Gateway, Launch, WorkDir};
use crate::cli::client::{block_on, get, until_interrupted};
use crate::cli::output::{Output, Unit};
use crate::cli::usage;
use crate::metrics::Device;
use crate::units::Span;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use headwater_video::media::MS;
use headwater_video::{Codec, Fragment, Frame, Kind, Track, Tracks, matroska};
use serde::Serialize;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Pictures of a second.
const FRAMES: u64 = 25;
/// 2026-01-01: where the cameras' clocks begin.
const EPOCH_MS: i64 = 1_767_225_600_000;
/// A camera without an answer for so long has lost it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Connections of the telemetry beside the cameras.
const TELEMETRY_CONNECTIONS: u32 = 50;

#[derive(Args)]
pub struct Video {
    /// Cameras that send at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=32))]
    cameras: u32,
    /// Kilobits a second of each.
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u64).range(8..=400_000))]
    kbits: u64,
    /// How long to send.
    #[arg(long, default_value = "20 s")]
    duration: Span,
    /// As fast as the gateway takes it, so many fragments of each camera; beside it the same bytes into a plain file.
    #[arg(long, value_name = "FRAGMENTS", conflicts_with_all = ["duration", "playlist"])]
    unpaced: Option<u64>,
    /// Beside it one more camera into a receiver that only writes what comes to a file and syncs it once a second: the least
    /// that a camera can cost.
    #[arg(long, conflicts_with_all = ["unpaced", "playlist"])]
    plain: bool,
    /// Publish so many messages a second of 100 bytes over MQTT as well.
    #[arg(long, value_name = "RATE")]
    telemetry: Option<f64>,
    /// Fill one stream with so many fragments of a second, then time its playlist.
    #[arg(long, value_name = "FRAGMENTS", conflicts_with = "telemetry")]
    playlist: Option<u64>,
    /// Where the temporary directory is made.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Serialize, Default)]
struct Report {
    bench: &'static str,
    cameras: u32,
    kbits: u64,
    seconds: f64,
    fragments_sent: u64,
    fragments_persisted: u64,
    fragments_lost: u64,
    megabytes_per_s: f64,
    /// From the first byte behind a fragment to its PERSISTED.
    persisted_ms: Option<Percentiles>,
    gateway_cpu_s: Option<f64>,
    /// Of one core, for one camera.
    gateway_cpu_percent_per_camera: Option<f64>,
    /// The CPU of a camera over that of a receiver which only writes and syncs.
    #[serde(skip_serializing_if = "Option::is_none")]
    plain_cpu_percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    over_plain_cpu: Option<f64>,
    gateway_resident_bytes_max: Option<u64>,
    disk_bytes_per_payload_byte: Option<f64>,
    /// The same fragments into one file, each synced: megabytes a second, and ours over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    plain_file_megabytes_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    over_plain_file: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    telemetry_acked_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    telemetry_ms: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    playlist_bytes: Option<usize>,
    /// From a gateway that has just started, and once more.
    #[serde(skip_serializing_if = "Option::is_none")]
    playlist_first_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    playlist_again_ms: Option<f64>,
}

impl Video {
    pub fn run(self, out: &Output) -> Result<()> {
        if self.telemetry.is_some_and(|rate| !(rate > 0.0 && rate < 1e9)) {
            return Err(usage("--telemetry is a number of messages a second above 0"));
        }
        let dir = WorkDir::new(self.dir.as_deref(), "bench")?;
        let data = dir.path.join("data");
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let launch = Launch::new(&data, dir.path.join("gateway.log")).listen(any, any, any);
        let gateway = launch.start()?;
        let report = match self.playlist {
            Some(count) => self.playlist(count, gateway, &launch, out)?,
            None => self.send(gateway, &dir.path, out)?,
        };
        out.line(&serde_json::to_string(&report)?)
    }

    fn send(&self, gateway: Gateway, dir: &Path, out: &Output) -> Result<Report> {
        let camera = Camera::new(self.kbits);
        let plain_before = self.unpaced.map(|count| plain_file(dir, &camera, count)).transpose()?;
        let device = Device::under(dir);
        let written = device.as_ref().and_then(Device::synced_bytes);
        let cpu = machine::cpu_seconds(gateway.pid());
        let watch = MemoryWatch::start(gateway.pid());
        let sent = Arc::new(Sent::new());
        let begun = Instant::now();
        let threads: Vec<_> = (0..self.cameras)
            .map(|index| {
                let (camera, sent, api) = (camera.clone(), sent.clone(), gateway.api);
                let plan = self.plan(index);
                std::thread::spawn(move || camera.run(api, &format!("cam-{index}"), plan, &sent))
            })
            .collect();
        let plain = self.plain.then(|| Plain::start(dir, &camera, self.plan(0))).transpose()?;
        let telemetry = self.telemetry.map(|rate| self.publish(gateway.mqtt, rate, out)).transpose()?;
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a camera's thread panicked"))??;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let cpu = machine::cpu_seconds(gateway.pid()).zip(cpu).map(|(after, before)| after - before);
        let cpu_percent = cpu.map(|cpu| 100.0 * cpu / seconds / f64::from(self.cameras));
        let plain_cpu = plain.map(Plain::finish).transpose()?.map(|cpu| 100.0 * cpu / seconds);
        gateway.stop(Duration::from_secs(60))?;
        let written = device.as_ref().and_then(Device::synced_bytes).zip(written).map(|(after, before)| after - before);
        let plain = self.unpaced.map(|count| plain_file(dir, &camera, count)).transpose()?;
        let plain = plain_before.zip(plain).map(|(before, after)| (before + after) / 2.0);
        let (count, persisted) = (sent.sent.load(Ordering::Relaxed), sent.persisted.load(Ordering::Relaxed));
        let bytes = persisted * camera.bytes as u64;
        let rate = bytes as f64 / 1e6 / seconds;
        Ok(Report {
            bench: "video",
            cameras: self.cameras,
            kbits: self.kbits,
            seconds: round3(seconds),
            fragments_sent: count,
            fragments_persisted: persisted,
            fragments_lost: count - persisted,
            megabytes_per_s: round3(rate),
            persisted_ms: Some(sent.latency.lock().unwrap_or_else(PoisonError::into_inner).percentiles()),
            gateway_cpu_s: cpu.map(round3),
            gateway_cpu_percent_per_camera: cpu_percent.map(round3),
            plain_cpu_percent: plain_cpu.map(round3),
            over_plain_cpu: cpu_percent.zip(plain_cpu).map(|(ours, plain)| round3(ours / plain)),
            gateway_resident_bytes_max: Some(watch.max_bytes()),
            // What the plain receiver writes is on the same device.
            disk_bytes_per_payload_byte: written
                .filter(|_| !self.plain)
                .map(|written| round3(written as f64 / bytes.max(1) as f64)),
            plain_file_megabytes_per_s: plain.map(round3),
            over_plain_file: plain.map(|plain| round3(rate / plain)),
            telemetry_acked_per_s: telemetry.as_ref().map(|(rate, _)| round3(*rate)),
            telemetry_ms: telemetry.map(|(_, latency)| latency),
            ..Report::default()
        })
    }

    fn plan(&self, index: u32) -> Plan {
        match self.unpaced {
            Some(fragments) => Plan { fragments, pace: None, shift: Duration::ZERO },
            // Cameras do not begin together, and their keyframes do not come together.
            None => Plan {
                fragments: self.duration.0.as_secs().max(1),
                pace: Some(Duration::from_secs(1) / FRAMES as u32),
                shift: Duration::from_secs(1) * index / self.cameras,
            },
        }
    }

    fn publish(&self, mqtt: SocketAddr, rate: f64, out: &Output) -> Result<(f64, Percentiles)> {
        let load = Load {
            target: mqtt,
            connections: TELEMETRY_CONNECTIONS,
            window: 100,
            payload_bytes: 100,
            seed: 1,
            rate: Some(rate),
            duration: self.duration.0,
            count: None,
            topic: "bench/{}/t".into(),
        };
        let bar = out.progress(self.duration.0.as_secs().max(1), "sending", Unit::Seconds);
        let shown = bar.clone();
        let seen = block_on(until_interrupted(load.run(move |_, elapsed| shown.set_position(elapsed.as_secs()))))?;
        bar.finish_and_clear();
        Ok((seen.acked as f64 / seen.elapsed.as_secs_f64(), seen.latency.percentiles()))
    }

    fn playlist(&self, count: u64, gateway: Gateway, launch: &Launch, out: &Output) -> Result<Report> {
        let camera = Camera::new(self.kbits);
        let sent = Arc::new(Sent::new());
        let bar = out.progress(count, "filling", Unit::Count);
        let plan = Plan { fragments: count, pace: None, shift: Duration::ZERO };
        let filling = {
            let (camera, sent, api) = (camera.clone(), sent.clone(), gateway.api);
            std::thread::spawn(move || camera.run(api, "cam-0", plan, &sent))
        };
        while !filling.is_finished() {
            bar.set_position(sent.persisted.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(100));
        }
        bar.finish_and_clear();
        filling.join().map_err(|_| anyhow::anyhow!("the camera's thread panicked"))??;
        gateway.stop(Duration::from_secs(120))?;
        let gateway = launch.start()?;
        let address = gateway.console.to_string();
        let path = format!("/video/cam-0/playlist.m3u8?from={EPOCH_MS}&to={}", EPOCH_MS + count as i64 * 1000);
        let time = || {
            let begun = Instant::now();
            let (status, body) = block_on(get(&address, &path))?;
            ensure!(status == 200, "the playlist: status {status}");
            let listed = body.windows(8).filter(|at| *at == b"#EXTINF:").count() as u64;
            ensure!(listed == count, "the playlist lists {listed} of {count} fragments");
            anyhow::Ok((begun.elapsed().as_secs_f64() * 1000.0, body.len()))
        };
        let (first, bytes) = time()?;
        let again = time()?.0;
        let resident = machine::resident_bytes_max(gateway.pid());
        gateway.stop(Duration::from_secs(60))?;
        Ok(Report {
            bench: "video",
            cameras: 1,
            kbits: self.kbits,
            fragments_sent: sent.sent.load(Ordering::Relaxed),
            fragments_persisted: sent.persisted.load(Ordering::Relaxed),
            gateway_resident_bytes_max: resident,
            playlist_bytes: Some(bytes),
            playlist_first_ms: Some(round3(first)),
            playlist_again_ms: Some(round3(again)),
            ..Report::default()
        })
    }
}

/// What all cameras together did.
struct Sent {
    sent: AtomicU64,
    persisted: AtomicU64,
    latency: Mutex<Histogram>,
}

impl Sent {
    fn new() -> Sent {
        Sent { sent: AtomicU64::new(0), persisted: AtomicU64::new(0), latency: Mutex::new(Histogram::new()) }
    }
}

#[derive(Clone, Copy)]
struct Plan {
    fragments: u64,
    /// Between pictures.
    pace: Option<Duration>,
    /// Before the first.
    shift: Duration,
}

/// Seconds of pictures, and how large one is with what is around it. Several, in turn: small fragments share a block, and the same
/// noise twice in one would be compressed away.
#[derive(Clone)]
struct Camera {
    seconds: Arc<[Fragment]>,
    bytes: usize,
}

/// Seconds that differ, and what they may take in memory.
const SECONDS: usize = 32;
const SECONDS_BYTES: usize = 16 << 20;

impl Camera {
    fn new(kbits: u64) -> Camera {
        let track = Track {
            number: 1,
            kind: Kind::Video,
            codec: Codec::H264,
            // Configuration record of 1080p, High, level 4: enough for a playlist's codec name.
            private: Bytes::from_static(&[
                1, 0x64, 0, 0x28, 0xff, 0xe1, 0, 4, 0x67, 0x64, 0, 0x28, 1, 0, 4, 0x68, 0xee, 0x3c, 0x80,
            ]),
            name: String::new(),
            width: 1920,
            height: 1080,
            sample_rate: 0,
            channels: 0,
            default_duration_ns: 40 * MS as u64,
            codec_delay_ns: 0,
            seek_preroll_ns: 0,
        };
        let mut random = fastrand::Rng::with_seed(7);
        let bytes = kbits as usize * 125;
        let sizes =
            (0..FRAMES as usize).map(|at| if at == 0 { bytes / 4 } else { bytes * 3 / 4 / (FRAMES as usize - 1) });
        let tracks = Arc::new(Tracks(vec![track]));
        let mut second = || {
            let frames = sizes.clone().enumerate().map(|(at, size)| {
                let mut data = vec![0; size.max(1)];
                random.fill(&mut data);
                let pts_ns = at as i64 * 40 * MS;
                Frame { track: 1, pts_ns, duration_ns: None, keyframe: at == 0, data: data.into() }
            });
            let (tracks, frames) = (tracks.clone(), frames.collect());
            Fragment { tracks, frames, discontinuity: false, tags: Vec::new() }
        };
        let seconds: Arc<[Fragment]> =
            (0..(SECONDS_BYTES / bytes.max(1)).clamp(1, SECONDS)).map(|_| second()).collect();
        let bytes = matroska::cluster(&seconds[0], 0).len();
        Camera { seconds, bytes }
    }

    /// The cluster of a second since the camera's clock began.
    fn cluster(&self, second: u64) -> Vec<u8> {
        let fragment = &self.seconds[second as usize % self.seconds.len()];
        matroska::cluster(fragment, (EPOCH_MS + second as i64 * 1000) * MS)
    }

    /// A cluster as a camera sends it: its keyframe, then picture by picture.
    fn pieces<'a>(&self, cluster: &'a [u8], paced: bool) -> Vec<&'a [u8]> {
        if !paced {
            return vec![cluster];
        }
        let keyframe = self.seconds[0].frames.first().map_or(0, |frame| frame.data.len());
        let around = cluster.len().saturating_sub(self.seconds[0].bytes());
        let (first, rest) = cluster.split_at((keyframe + around).min(cluster.len()));
        let piece = rest.len().div_ceil(FRAMES as usize - 1).max(1);
        std::iter::once(first).chain(rest.chunks(piece)).collect()
    }

    /// Calls back with each piece when it is due, its second and its place in that.
    fn film(&self, plan: Plan, mut send: impl FnMut(u64, usize, &[u8]) -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        for second in 0..plan.fragments {
            let cluster = self.cluster(second);
            for (at, bytes) in self.pieces(&cluster, plan.pace.is_some()).into_iter().enumerate() {
                if let Some(pace) = plan.pace {
                    let due = begun + Duration::from_secs(second) + pace * at as u32;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                send(second, at, bytes)?;
            }
        }
        Ok(())
    }

    /// Sends its fragments and waits until all that will be is persisted.
    fn run(&self, api: SocketAddr, stream: &str, plan: Plan, sent: &Arc<Sent>) -> Result<()> {
        std::thread::sleep(plan.shift);
        let mut socket = TcpStream::connect(api).with_context(|| format!("the gateway at {api}"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        write!(
            socket,
            "POST /putMedia HTTP/1.1\r\nhost: {api}\r\nx-amzn-stream-name: {stream}\r\nx-amzn-fragment-timecode-type: ABSOLUTE\r\n\
             transfer-encoding: chunked\r\n\r\n"
        )?;
        // When each fragment was whole for the gateway: when the next one began.
        let whole: Arc<Mutex<VecDeque<Instant>>> = Arc::default();
        let reader = {
            let (socket, whole, sent) = (socket.try_clone()?, whole.clone(), sent.clone());
            std::thread::spawn(move || hear(socket, plan.fragments, &whole, &sent))
        };
        let note = || whole.lock().unwrap_or_else(PoisonError::into_inner).push_back(Instant::now());
        chunk(&mut socket, &matroska::head(&self.seconds[0].tracks))?;
        self.film(plan, |second, at, bytes| {
            if at == 0 && second > 0 {
                sent.sent.fetch_add(1, Ordering::Relaxed);
                note();
            }
            chunk(&mut socket, bytes)
        })?;
        sent.sent.fetch_add(1, Ordering::Relaxed);
        note();
        socket.write_all(b"0\r\n\r\n")?;
        reader.join().map_err(|_| anyhow::anyhow!("a camera's reader panicked"))?
    }
}

/// In one write, as an HTTP library does: three would wake the gateway three times.
fn chunk(socket: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    let mut chunk = Vec::with_capacity(bytes.len() + 16);
    write!(chunk, "{:x}\r\n", bytes.len())?;
    chunk.extend_from_slice(bytes);
    chunk.extend_from_slice(b"\r\n");
    Ok(socket.write_all(&chunk)?)
}

/// Reads acknowledgements until all fragments are persisted or the answer ends.
fn hear(socket: TcpStream, fragments: u64, whole: &Mutex<VecDeque<Instant>>, sent: &Sent) -> Result<()> {
    let mut lines = BufReader::new(socket);
    let (mut line, mut heard) = (String::new(), 0);
    while heard < fragments {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            break;
        }
        ensure!(!line.contains("\"ERROR\""), "the gateway answered {}", line.trim());
        if line.contains("\"PERSISTED\"") {
            heard += 1;
            sent.persisted.fetch_add(1, Ordering::Relaxed);
            let since = whole.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(since) = since {
                sent.latency.lock().unwrap_or_else(PoisonError::into_inner).add(since.elapsed());
            }
        }
    }
    Ok(())
}

/// A camera and its receiver, which does the least that can be done: reads, writes, syncs after each fragment.
struct Plain {
    camera: std::thread::JoinHandle<Result<()>>,
    receiver: std::thread::JoinHandle<Result<f64>>,
}

impl Plain {
    fn start(dir: &Path, camera: &Camera, plan: Plan) -> Result<Plain> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let mut file = File::create(dir.join("received"))?;
        let (camera, bytes) = (camera.clone(), camera.bytes);
        let receiver = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept()?;
            let (mut buffer, mut unsynced) = (vec![0; 256 << 10], 0);
            loop {
                let count = socket.read(&mut buffer)?;
                file.write_all(&buffer[..count])?;
                unsynced += count;
                if count == 0 || unsynced >= bytes {
                    file.sync_data()?;
                    unsynced = 0;
                }
                if count == 0 {
                    return machine::thread_cpu_seconds().context("no CPU time in /proc/thread-self/stat");
                }
            }
        });
        let camera = std::thread::spawn(move || {
            let mut socket = TcpStream::connect(address)?;
            socket.set_nodelay(true)?;
            camera.film(plan, |_, _, bytes| Ok(socket.write_all(bytes)?))
        });
        Ok(Plain { camera, receiver })
    }

    /// CPU seconds of the receiver.
    fn finish(self) -> Result<f64> {
        let ended = (self.camera.join(), self.receiver.join());
        let (Ok(sent), Ok(cpu)) = ended else { anyhow::bail!("a thread of the plain receiver panicked") };
        sent.and(cpu)
    }
}

/// The same fragments into one file, each synced; megabytes a second.
fn plain_file(dir: &Path, camera: &Camera, count: u64) -> Result<f64> {
    let path = dir.join("plain");
    let mut file = File::create(&path)?;
    let cluster = camera.cluster(0);
    let begun = Instant::now();
    for _ in 0..count {
        file.write_all(&cluster)?;
        file.sync_data()?;
    }
    let rate = (count as usize * cluster.len()) as f64 / 1e6 / begun.elapsed().as_secs_f64();
    drop(file);
    std::fs::remove_file(&path)?;
    Ok(rate)
}
