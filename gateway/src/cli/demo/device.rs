//! One simulated device: MQTT 5 at QoS 1, every message numbered, and kept until it is acknowledged, whatever happens to
//! the connection. After a reconnect it sends again what is open, in order and under the same numbers.

use super::audit::Sent;
use crate::cli::{telemetry, wire};
use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, interval_at, sleep, sleep_until, timeout};

/// Messages on their way at once.
const IN_FLIGHT_MAX: usize = 16;
/// Messages a device keeps while it cannot send; a real one has little memory, and stops measuring when it is full.
const KEPT_MAX: usize = 2048;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// An open message that is not acknowledged for so long makes the device connect anew.
const SILENCE_MAX: Duration = Duration::from_secs(5);
const EPOCH: u32 = 1;

/// What the display shows of all devices together.
#[derive(Debug, Default)]
pub struct Fleet {
    pub connected: AtomicU64,
    pub sent: AtomicU64,
    pub acked: AtomicU64,
    pub reconnects: AtomicU64,
}

pub struct Device {
    pub number: u32,
    pub seed: u64,
    pub gateway: SocketAddr,
    /// Time between two messages.
    pub every: Duration,
    pub fleet: Arc<Fleet>,
    /// Turns true when the device shall measure no more.
    pub stop: watch::Receiver<bool>,
}

/// `d-0007`: client id, partition key and part of the topic.
pub fn name(number: u32) -> String {
    format!("d-{number:04}")
}

/// Messages made so far, and which of them are open.
struct Outbox {
    /// The last number made.
    made: u64,
    /// Made and not acknowledged, in order.
    open: VecDeque<u64>,
    /// How many of the open ones were sent on this connection.
    in_flight: usize,
    /// Everything up to this number was sent before, on whatever connection.
    sent: u64,
}

impl Device {
    /// Measures until it is stopped, then goes on until all is acknowledged or `settle` is over.
    pub async fn run(mut self, settle: Duration) -> Sent {
        let mut outbox = Outbox { made: 0, open: VecDeque::new(), in_flight: 0, sent: 0 };
        let mut end = None;
        loop {
            if *self.stop.borrow() {
                let end = *end.get_or_insert_with(|| Instant::now() + settle);
                if outbox.open.is_empty() || Instant::now() >= end {
                    // What was made but never put on the wire was not sent, and numbers go out in order.
                    let sent = outbox.sent;
                    return Sent { sent, unacknowledged: outbox.open.into_iter().filter(|n| *n <= sent).collect() };
                }
            }
            // A connection that ends is what the demo is about; the next one goes on where it ended.
            if let Err(error) = self.connection(&mut outbox).await {
                tracing::debug!(device = self.number, %error, "connection ended");
                self.fleet.reconnects.fetch_add(1, Ordering::Relaxed);
                sleep(RECONNECT_PAUSE).await;
            }
        }
    }

    async fn connection(&mut self, outbox: &mut Outbox) -> Result<()> {
        let mut input = BytesMut::new();
        let mut socket = timeout(CONNECT_TIMEOUT, self.connect(&mut input)).await.context("no CONNACK")??;
        self.fleet.connected.fetch_add(1, Ordering::Relaxed);
        outbox.in_flight = 0;
        let outcome = self.publish(&mut socket, &mut input, outbox).await;
        self.fleet.connected.fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    async fn connect(&self, input: &mut BytesMut) -> Result<TcpStream> {
        let mut socket = TcpStream::connect(self.gateway).await?;
        socket.set_nodelay(true)?;
        socket.write_all(&wire::connect_v5(&name(self.number), 30)).await?;
        loop {
            if let Some(packet) = wire::take(input)? {
                if packet.kind != wire::CONNACK || packet.reason() != 0 {
                    bail!("refused with reason {:#04x}", packet.reason());
                }
                return Ok(socket);
            }
            if socket.read_buf(input).await? == 0 {
                bail!("closed instead of a CONNACK");
            }
        }
    }

    /// Ends without an error when the device is stopped and nothing is open.
    async fn publish(&mut self, socket: &mut TcpStream, input: &mut BytesMut, outbox: &mut Outbox) -> Result<()> {
        let phase = self.every.mul_f64(f64::from(self.number % 97) / 97.0);
        let mut clock = interval_at(Instant::now() + phase, self.every);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heard_at = Instant::now();
        loop {
            let stopped = *self.stop.borrow_and_update();
            if stopped && outbox.open.is_empty() {
                socket.write_all(&wire::DISCONNECT).await?;
                return Ok(());
            }
            self.send(socket, outbox).await?;
            tokio::select! {
                _ = clock.tick(), if !stopped && outbox.open.len() < KEPT_MAX => {
                    // An idle wire is no silence: the wait for a PUBACK begins with the message.
                    if outbox.in_flight == 0 {
                        heard_at = Instant::now();
                    }
                    outbox.made += 1;
                    outbox.open.push_back(outbox.made);
                }
                read = socket.read_buf(input) => {
                    if read? == 0 {
                        bail!("closed by the gateway");
                    }
                    heard_at = Instant::now();
                    while let Some(packet) = wire::take(input)? {
                        self.heard(&packet, outbox)?;
                    }
                }
                _ = self.stop.changed(), if !stopped => {}
                () = sleep_until(heard_at + SILENCE_MAX), if outbox.in_flight > 0 => bail!("no PUBACK for {SILENCE_MAX:?}"),
            }
        }
    }

    /// Puts open messages on the wire, oldest first, as far as the window goes.
    async fn send(&self, socket: &mut TcpStream, outbox: &mut Outbox) -> Result<()> {
        while outbox.in_flight < IN_FLIGHT_MAX {
            let Some(&number) = outbox.open.get(outbox.in_flight) else { return Ok(()) };
            let again = number <= outbox.sent;
            let topic = format!("site/1/dev/{}/t", name(self.number));
            let property = format!("{EPOCH}/{number}");
            let payload = telemetry::reading(self.seed, self.number, number);
            let property = ("headwater-number", property.as_str());
            let packet = wire::publish_v5(&topic, packet_id(number), property, payload.as_bytes(), again);
            // From here on the gateway may have it, even if the write fails.
            if !again {
                outbox.sent = number;
                self.fleet.sent.fetch_add(1, Ordering::Relaxed);
            }
            outbox.in_flight += 1;
            socket.write_all(&packet).await?;
        }
        Ok(())
    }

    fn heard(&self, packet: &wire::Packet, outbox: &mut Outbox) -> Result<()> {
        if packet.kind != wire::PUBACK {
            return Ok(());
        }
        let id = packet.packet_id().context("a PUBACK without a packet id")?;
        if packet.reason() >= 0x80 {
            bail!("a message was refused with reason {:#04x}", packet.reason());
        }
        let on_the_wire = outbox.open.iter().take(outbox.in_flight);
        if let Some(at) = on_the_wire.clone().position(|number| packet_id(*number) == id) {
            outbox.open.remove(at);
            outbox.in_flight -= 1;
            self.fleet.acked.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn packet_id(number: u64) -> u16 {
    (number % 65_535) as u16 + 1
}
