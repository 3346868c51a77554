//! A gateway in a temporary directory, and a client that sends bytes and expects bytes.

use crate::clock::Clock;
use crate::log::{Log, Options, StreamSettings};
use crate::metrics::Metrics;
use crate::mqtt::{AllowConfig, Mqtt, MqttConfig, RouteConfig};
use crate::record::{Record, StreamName};
use crate::units::{ByteSize, Span};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const SOON: Duration = Duration::from_secs(5);

pub struct Gateway {
    pub mqtt: Option<Mqtt>,
    pub log: Log,
    pub metrics: Arc<Metrics>,
    pub config: MqttConfig,
    pub routes: Vec<RouteConfig>,
    pub allow: Vec<AllowConfig>,
    dir: tempfile::TempDir,
}

impl Gateway {
    pub async fn start() -> Self {
        Self::with(MqttConfig::default(), &[], &[]).await
    }

    pub async fn with(config: MqttConfig, routes: &[RouteConfig], allow: &[AllowConfig]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new();
        let log = open(dir.path(), &metrics);
        create(&log, "default", StreamSettings::default());
        let config = MqttConfig { listen: "127.0.0.1:0".parse().unwrap(), ..config };
        let (routes, allow) = (routes.to_vec(), allow.to_vec());
        let mut gateway = Gateway { mqtt: None, log, metrics, config, routes, allow, dir };
        for route in gateway.routes.iter().filter(|r| r.store && r.stream != "default") {
            if gateway.log.stream(&route.stream).is_none() {
                create(&gateway.log, &route.stream, StreamSettings::default());
            }
        }
        gateway.listen().await;
        gateway
    }

    async fn listen(&mut self) {
        let (log, metrics) = (self.log.clone(), self.metrics.clone());
        let mqtt = Mqtt::start(&self.config, &self.routes, &self.allow, log, Clock::system(), metrics, None).await;
        self.mqtt = Some(mqtt.unwrap());
    }

    /// Stops the gateway and starts it again on its directory.
    pub async fn restart(&mut self) {
        self.mqtt.take().unwrap().stop(SOON).await;
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || log.close(SOON)).await.unwrap();
        self.log = open(self.dir.path(), &self.metrics);
        self.listen().await;
    }

    pub fn addr(&self) -> SocketAddr {
        self.mqtt.as_ref().unwrap().local_addr().unwrap()
    }

    pub async fn client(&self) -> Client {
        Client { socket: TcpStream::connect(self.addr()).await.unwrap(), bytes: Vec::new() }
    }

    pub async fn connected(&self, level: u8, id: &str) -> Client {
        let mut client = self.client().await;
        client.send(&connect(level, true, id)).await;
        let connack = client.packet().await;
        assert_eq!((connack[0], connack[3]), (0x20, 0), "{connack:?}");
        client
    }

    /// Everything the stream holds, shard by shard.
    pub fn records(&self, stream: &str) -> Vec<Record> {
        self.log.records(&self.log.stream(stream).unwrap()).unwrap()
    }

    pub fn payloads(&self, stream: &str) -> Vec<String> {
        self.records(stream).iter().map(|r| String::from_utf8_lossy(&r.data).into_owned()).collect()
    }

    pub fn rejects(&self, reason: &str) -> u64 {
        let line = format!(r#"headwater_rejects_total{{part="mqtt",reason="{reason}"}} "#);
        let text = self.metrics.render();
        text.lines().find_map(|l| l.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
    }

    /// Waits until a reason was counted that often.
    pub async fn until_rejects(&self, reason: &str, count: u64) {
        for _ in 0..500 {
            if self.rejects(reason) >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{reason} counted {} times:\n{}", self.rejects(reason), self.metrics.render());
    }
}

pub fn create(log: &Log, name: &str, settings: StreamSettings) {
    log.create_stream(&StreamName::new(name).unwrap(), settings).unwrap();
}

fn open(dir: &Path, metrics: &Arc<Metrics>) -> Log {
    let options = Options { max_bytes: ByteSize::mib(64), linger: Span::ms(1), ..Options::new(dir) };
    Log::open(options, Clock::system(), metrics.clone()).unwrap()
}

pub struct Client {
    pub socket: TcpStream,
    pub bytes: Vec<u8>,
}

impl Client {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    /// The next packet, whole.
    pub async fn packet(&mut self) -> Vec<u8> {
        self.try_packet().await.expect("a packet, not the end")
    }

    /// `None`: the gateway has closed the connection.
    pub async fn try_packet(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = whole(&self.bytes) {
                let rest = self.bytes.split_off(end);
                return Some(std::mem::replace(&mut self.bytes, rest));
            }
            let read = tokio::time::timeout(SOON, self.socket.read_buf(&mut self.bytes)).await;
            if matches!(read.expect("a packet in time"), Ok(0) | Err(_)) {
                return None;
            }
        }
    }

    pub async fn expect(&mut self, packet: &[u8]) {
        assert_eq!(self.packet().await, packet);
    }

    pub async fn expect_end(&mut self) {
        assert_eq!(self.try_packet().await, None);
    }

    /// Nothing comes for a while.
    pub async fn expect_silence(&mut self) {
        let read = tokio::time::timeout(Duration::from_millis(200), self.socket.read_buf(&mut self.bytes)).await;
        assert!(read.is_err(), "{read:?} {:?}", self.bytes);
    }
}

fn whole(bytes: &[u8]) -> Option<usize> {
    let end = crate::mqtt::codec::frame_bytes(bytes)?;
    (bytes.len() >= end).then_some(end)
}

pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    while length >= 128 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(body);
    bytes
}

pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
}

/// Keep-alive of a minute; level 4 or 5.
pub fn connect(level: u8, clean: bool, id: &str) -> Vec<u8> {
    connect_with(level, clean, id, &[])
}

pub fn connect_with(level: u8, clean: bool, id: &str, properties: &[u8]) -> Vec<u8> {
    let mut body = [b"\x00\x04MQTT", &[level, u8::from(clean) << 1, 0, 60][..]].concat();
    if level == 5 {
        body.push(properties.len() as u8);
        body.extend_from_slice(properties);
    }
    body.extend(text(id));
    packet(0x10, &body)
}

/// 3.1.1 form.
pub fn publish(qos: u8, id: u16, topic: &str, payload: &str) -> Vec<u8> {
    let id = if qos == 0 { vec![] } else { id.to_be_bytes().to_vec() };
    packet(0x30 | qos << 1, &[text(topic), id, payload.as_bytes().to_vec()].concat())
}

pub fn publish5(qos: u8, id: u16, topic: &str, properties: &[u8], payload: &str) -> Vec<u8> {
    let id = if qos == 0 { vec![] } else { id.to_be_bytes().to_vec() };
    let properties = [&[properties.len() as u8], properties].concat();
    packet(0x30 | qos << 1, &[text(topic), id, properties, payload.as_bytes().to_vec()].concat())
}

pub fn subscribe(level: u8, id: u16, filter: &str, options: u8) -> Vec<u8> {
    let properties: &[u8] = if level == 5 { &[0] } else { &[] };
    packet(0x82, &[&id.to_be_bytes()[..], properties, &text(filter), &[options]].concat())
}

pub fn user_property(name: &str, value: &str) -> Vec<u8> {
    [vec![0x26], text(name), text(value)].concat()
}
