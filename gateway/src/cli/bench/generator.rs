//! The load: connections that publish at QoS 1 and count what comes back. Built to be cheap, because it runs on the cores
//! it measures: packets are encoded once and patched (packet id, sequence, time), and go out in as few writes as the
//! window allows, from one thread.

use super::histogram::Histogram;
use crate::cli::telemetry::{self, Sensor};
use crate::cli::wire;
use crate::clock::Clock;
use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Distinct packets of one connection; sequence and time make them distinct for ever.
const PACKETS: usize = 1024;
/// Memory for them, over all connections.
const PACKETS_BYTES: usize = 256 << 20;
const READ_BYTES: usize = 64 << 10;
/// Size of the block that [`Load::payload_ratio`] presses.
const RATIO_BYTES: usize = 64 << 10;
/// How long the last acknowledgements may take.
const SETTLE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Load {
    pub target: SocketAddr,
    pub connections: u32,
    pub window: u16,
    pub payload_bytes: usize,
    pub seed: u64,
    /// Messages a second over all connections; `None`: as fast as they are acknowledged.
    pub rate: Option<f64>,
    pub duration: Duration,
    /// Stop after this many messages of all connections.
    pub count: Option<u64>,
    /// Topic of a connection: `{}` is its number.
    pub topic: String,
}

/// What all connections saw together.
pub struct Seen {
    pub sent: u64,
    pub acked: u64,
    /// Acknowledged with a reason code that means refused.
    pub refused: u64,
    /// From the first PUBLISH to the last acknowledgement.
    pub elapsed: Duration,
    pub latency: Histogram,
}

type Shared = Rc<RefCell<Seen>>;

impl Load {
    /// Connects all, then publishes until duration or count is reached and everything sent is acknowledged.
    /// `progress` hears the number of acknowledged messages now and then.
    pub async fn run(&self, progress: impl Fn(u64, Duration) + 'static) -> Result<Seen> {
        let seen = Seen { sent: 0, acked: 0, refused: 0, elapsed: Duration::ZERO, latency: Histogram::new() };
        let shared: Shared = Rc::new(RefCell::new(seen));
        let mut lanes = Vec::new();
        for number in 0..self.connections {
            lanes.push(Lane::connect(self, number, shared.clone()).await?);
        }
        let start = Instant::now();
        let local = tokio::task::LocalSet::new();
        let tasks: Vec<_> = lanes.into_iter().map(|lane| local.spawn_local(lane.run(start))).collect();
        let watched = shared.clone();
        local.spawn_local(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                progress(watched.borrow().acked, start.elapsed());
            }
        });
        let outcome: Result<()> = local
            .run_until(async {
                for task in tasks {
                    task.await??;
                }
                Ok(())
            })
            .await;
        outcome?;
        drop(local);
        shared.borrow_mut().elapsed = start.elapsed();
        let seen = Rc::try_unwrap(shared).map_err(|_| anyhow::anyhow!("a connection is still running"))?;
        Ok(seen.into_inner())
    }

    /// How far zstd level 1 presses 64 KiB of payloads, in the order they arrive: a window of each connection in turn.
    pub fn payload_ratio(&self) -> Result<f64> {
        let mut block = Vec::new();
        let mut fleet: Vec<Packets> = (0..self.connections.min(64)).map(|number| Packets::new(self, number)).collect();
        let mut first = 0;
        while block.len() < RATIO_BYTES {
            for packets in &mut fleet {
                let (count, range) = packets.patch(first, u64::from(self.window), 1_767_225_600_000);
                for packet in packets.bytes[range].chunks_exact(packets.size).take(count as usize) {
                    block.extend_from_slice(&packet[packets.id_at + 2..]);
                }
            }
            first += u64::from(self.window);
        }
        block.truncate(RATIO_BYTES);
        let pressed = zstd::bulk::compress(&block, 1)?;
        Ok((block.len() as f64 / pressed.len() as f64 * 100.0).round() / 100.0)
    }
}

/// One connection.
struct Lane {
    socket: TcpStream,
    packets: Packets,
    shared: Shared,
    window: u64,
    limit: u64,
    deadline: Duration,
    /// Time between two messages of this connection, and its first moment, when the rate is limited.
    pace: Option<(Duration, Duration)>,
    sent: u64,
    acked: u64,
    /// The message whose acknowledgement is timed, and when it was sent.
    sample: Option<(u64, Instant)>,
    pending: Range<usize>,
    wall_ms: u64,
}

impl Lane {
    async fn connect(load: &Load, number: u32, shared: Shared) -> Result<Lane> {
        let mut socket = TcpStream::connect(load.target)
            .await
            .with_context(|| format!("no MQTT broker answers at {}: is it running?", load.target))?;
        socket.set_nodelay(true)?;
        socket.write_all(&wire::connect_v4(&format!("bench-{number:05}"), 0)).await?;
        let mut connack = [0; 4];
        socket.read_exact(&mut connack).await.context("the broker closed the connection instead of a CONNACK")?;
        if connack[0] >> 4 != wire::CONNACK || connack[3] != 0 {
            bail!("the broker refused the connection: CONNACK {connack:02x?}");
        }
        let share = |total: u64| {
            let (each, rest) = (total / u64::from(load.connections), total % u64::from(load.connections));
            each + u64::from(u64::from(number) < rest)
        };
        let pace = load.rate.map(|rate| {
            let every = Duration::from_secs_f64(f64::from(load.connections) / rate);
            (every, every.mul_f64(f64::from(number) / f64::from(load.connections)))
        });
        Ok(Lane {
            socket,
            packets: Packets::new(load, number),
            shared,
            window: u64::from(load.window),
            limit: load.count.map_or(u64::MAX, share),
            deadline: load.duration,
            pace,
            sent: 0,
            acked: 0,
            sample: None,
            pending: 0..0,
            wall_ms: Clock::system().now().wall_ms,
        })
    }

    async fn run(mut self, start: Instant) -> Result<()> {
        let mut input = BytesMut::with_capacity(READ_BYTES);
        loop {
            self.fill(start);
            self.flush()?;
            let over = start.elapsed() >= self.deadline || self.sent >= self.limit;
            if over && self.acked == self.sent && self.pending.is_empty() {
                return Ok(());
            }
            if start.elapsed() > self.deadline.saturating_add(SETTLE) {
                bail!("{} messages were not acknowledged within {SETTLE:?}", self.sent - self.acked);
            }
            let interest =
                if self.pending.is_empty() { Interest::READABLE } else { Interest::READABLE.add(Interest::WRITABLE) };
            let wake = self.wake_at(start);
            tokio::select! {
                biased;
                ready = self.socket.ready(interest) => {
                    if ready?.is_readable() {
                        self.read(&mut input)?;
                    }
                }
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// When to look again although nothing came: the next message's time, or the end.
    fn wake_at(&self, start: Instant) -> Instant {
        match self.pace {
            Some((every, first)) if self.sent - self.acked < self.window && self.sent < self.limit => {
                (start + first + every.mul_f64(self.sent as f64)).max(Instant::now())
            }
            _ if start.elapsed() < self.deadline => start + self.deadline,
            _ => Instant::now() + Duration::from_millis(100),
        }
    }

    /// Patches as many packets as the window, the rate and the end of the run allow, in one run of bytes.
    fn fill(&mut self, start: Instant) {
        let elapsed = start.elapsed();
        if !self.pending.is_empty() || elapsed >= self.deadline {
            return;
        }
        let mut count = (self.window - (self.sent - self.acked)).min(self.limit - self.sent);
        if let Some((every, first)) = self.pace {
            let due =
                elapsed.checked_sub(first).map_or(0, |since| (since.as_secs_f64() / every.as_secs_f64()) as u64 + 1);
            count = count.min(due.saturating_sub(self.sent));
        }
        if count == 0 {
            return;
        }
        let (count, bytes) = self.packets.patch(self.sent, count, self.wall_ms + elapsed.as_millis() as u64);
        if self.sample.is_none() {
            self.sample = Some((self.sent + count - 1, Instant::now()));
        }
        self.sent += count;
        self.shared.borrow_mut().sent += count;
        self.pending = bytes;
    }

    fn flush(&mut self) -> Result<()> {
        while !self.pending.is_empty() {
            match self.socket.try_write(&self.packets.bytes[self.pending.clone()]) {
                Ok(written) => self.pending.start += written,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("the broker closed a connection under load"),
            }
        }
        Ok(())
    }

    fn read(&mut self, input: &mut BytesMut) -> Result<()> {
        input.reserve(READ_BYTES / 2);
        match self.socket.try_read_buf(input) {
            Ok(0) => bail!("the broker closed a connection under load"),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("reading from the broker"),
        }
        let before = self.acked;
        // The common case first: a row of PUBACKs of four bytes.
        let mut row = 0;
        while let Some([0x40, 2, high, low]) = input.get(row..row + 4) {
            let id = u16::from_be_bytes([*high, *low]);
            row += 4;
            self.acknowledged(id)?;
        }
        let _ = input.split_to(row);
        while let Some(packet) = wire::take(input)? {
            if packet.kind == wire::PUBACK {
                self.shared.borrow_mut().refused += u64::from(packet.reason() >= 0x80);
                self.acknowledged(packet.packet_id().context("a PUBACK without a packet id")?)?;
            }
        }
        self.shared.borrow_mut().acked += self.acked - before;
        Ok(())
    }

    fn acknowledged(&mut self, id: u16) -> Result<()> {
        // PUBACKs come in the order of the PUBLISHes (MQTT 3.1.1, 4.6), so the next one is known.
        if id != packet_id(self.acked) {
            bail!("PUBACK {id} came where {} was due: acknowledgements are out of order", packet_id(self.acked));
        }
        if let Some((number, at)) = self.sample
            && number == self.acked
        {
            self.shared.borrow_mut().latency.add(at.elapsed());
            self.sample = None;
        }
        self.acked += 1;
        Ok(())
    }
}

/// 1 to 65535, in turn.
fn packet_id(number: u64) -> u16 {
    (number % 65_535) as u16 + 1
}

/// The pre-encoded packets of a connection, one behind the other, all of one size.
struct Packets {
    bytes: Vec<u8>,
    size: usize,
    /// Where the packet id stands in a packet; the payload follows it.
    id_at: usize,
    /// A fleet was not switched on in one moment, so each device counts from somewhere else.
    first_sequence: u64,
}

impl Packets {
    fn new(load: &Load, number: u32) -> Self {
        let topic = load.topic.replace("{}", &number.to_string());
        let mut sensor = Sensor::new(load.seed, number);
        let mut make = || wire::publish_v4(&topic, 1, &sensor.fixed(number, load.payload_bytes));
        let mut bytes = make();
        let size = bytes.len();
        let room = PACKETS_BYTES / load.connections as usize / size;
        for _ in 1..PACKETS.max(usize::from(load.window)).min(room) {
            bytes.extend_from_slice(&make());
        }
        let first_sequence = fastrand::Rng::with_seed(load.seed ^ u64::from(number)).u64(..80_000_000);
        Packets { id_at: size - load.payload_bytes - 2, bytes, size, first_sequence }
    }

    /// Makes packets for up to `count` messages from `first` on; fewer where the buffer ends. Returns how many, and where.
    fn patch(&mut self, first: u64, count: u64, now_ms: u64) -> (u64, Range<usize>) {
        let slots = (self.bytes.len() / self.size) as u64;
        let slot = first % slots;
        let count = count.min(slots - slot);
        // The seconds are now; the milliseconds behind them are the packet's own, as a sensor's sampling would have it.
        let mut time = [0; 10];
        put_digits(&mut time, now_ms / 1000);
        let start = slot as usize * self.size;
        for (at, packet) in self.bytes[start..].chunks_exact_mut(self.size).take(count as usize).enumerate() {
            let number = first + at as u64;
            let (id, payload) = packet[self.id_at..].split_at_mut(2);
            id.copy_from_slice(&packet_id(number).to_be_bytes());
            put_digits(&mut payload[telemetry::SEQUENCE_AT], 10_000_000 + (self.first_sequence + number) % 90_000_000);
            payload[telemetry::SECONDS_AT].copy_from_slice(&time);
        }
        (count, start..start + count as usize * self.size)
    }
}

/// Writes a number into exactly these digits.
fn put_digits(into: &mut [u8], mut value: u64) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> Load {
        Load {
            target: ([127, 0, 0, 1], 1).into(),
            connections: 50,
            window: 100,
            payload_bytes: 100,
            seed: 1,
            rate: None,
            duration: Duration::from_secs(1),
            count: None,
            topic: "bench/{}".into(),
        }
    }

    #[test]
    fn patched_packets_are_whole_numbered_and_json() {
        let mut packets = Packets::new(&load(), 1);
        let (count, range) = packets.patch(1020, 10, 1_800_000_000_123);
        assert_eq!(count, 4, "a run ends at the end of the buffer");
        let mut bytes = BytesMut::from(&packets.bytes[range]);
        for number in 1020..1024u64 {
            let packet = wire::take(&mut bytes).unwrap().unwrap();
            let payload: serde_json::Value = serde_json::from_slice(&packet.body[packet.body.len() - 100..]).unwrap();
            assert_eq!(payload["seq"], 10_000_000 + packets.first_sequence + number);
            assert_eq!(payload["ts"].as_u64().unwrap() / 1000, 1_800_000_000);
            assert!(packet.body.starts_with(b"\0\x07bench/1"));
        }
    }

    #[test]
    fn the_payload_compresses_as_telemetry_does() {
        let ratio = load().payload_ratio().unwrap();
        assert!((2.5..7.0).contains(&ratio), "{ratio}");
    }
}
