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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// A gateway's end of one connection: takes the CONNECT, then hands out the publishes as they come.
    struct Peer {
        socket: TcpStream,
        input: BytesMut,
    }

    impl Peer {
        async fn accept(listener: &TcpListener) -> Peer {
            let (socket, _) = listener.accept().await.unwrap();
            let mut peer = Peer { socket, input: BytesMut::new() };
            assert_eq!(peer.packet().await.kind, 1);
            peer.socket.write_all(&[0x20, 3, 0, 0, 0]).await.unwrap();
            peer
        }

        async fn packet(&mut self) -> wire::Packet {
            loop {
                if let Some(packet) = wire::take(&mut self.input).unwrap() {
                    return packet;
                }
                assert_ne!(self.socket.read_buf(&mut self.input).await.unwrap(), 0, "closed");
            }
        }

        /// Number and packet id of the next publish, read from its user property; `None` for a DISCONNECT.
        async fn publish(&mut self) -> Option<(u64, u16)> {
            let packet = self.packet().await;
            if packet.kind == 14 {
                return None;
            }
            assert_eq!(packet.kind, 3);
            let body = String::from_utf8_lossy(&packet.body).into_owned();
            let at = body.find("headwater-number").unwrap() + "headwater-number".len() + 2;
            let number = body[at..].strip_prefix("1/").unwrap();
            let number: String = number.chars().take_while(char::is_ascii_digit).collect();
            let topic = usize::from(u16::from_be_bytes([packet.body[0], packet.body[1]]));
            let id = u16::from_be_bytes([packet.body[topic + 2], packet.body[topic + 3]]);
            Some((number.parse().unwrap(), id))
        }

        async fn acknowledge(&mut self, id: u16) {
            let [high, low] = id.to_be_bytes();
            self.socket.write_all(&[0x40, 2, high, low]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_was_open_at_a_lost_connection_is_sent_again_in_order_under_its_numbers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stop, stopped) = watch::channel(false);
        let device = Device {
            number: 3,
            seed: 1,
            gateway: listener.local_addr().unwrap(),
            every: Duration::from_millis(2),
            fleet: Arc::default(),
            stop: stopped,
        };
        let running = tokio::spawn(device.run(Duration::from_secs(5)));

        let mut peer = Peer::accept(&listener).await;
        for expected in 1..=4 {
            let (number, id) = peer.publish().await.unwrap();
            assert_eq!(number, expected);
            if number <= 2 {
                peer.acknowledge(id).await;
            }
        }
        // The two acknowledgements arrive before the connection goes.
        sleep(Duration::from_millis(50)).await;
        drop(peer);

        let mut peer = Peer::accept(&listener).await;
        for expected in 3..=6 {
            let (number, id) = peer.publish().await.unwrap();
            assert_eq!(number, expected, "the oldest open one comes first");
            peer.acknowledge(id).await;
        }
        stop.send(true).unwrap();
        let mut last = 6;
        while let Some((number, id)) = peer.publish().await {
            last = number;
            peer.acknowledge(id).await;
        }
        let sent = running.await.unwrap();
        assert_eq!(sent, Sent { sent: last, unacknowledged: Default::default() });
    }
}
