//! One record over one short connection: connect, publish at QoS 1, wait for the acknowledgement, disconnect.
//!
//! Deliberately the smallest thing that the gateway answers. It keeps nothing between records and over a reset; that
//! is the SDK's work.

use core::fmt::{self, Write as _};

use embassy_net::Stack;
use embassy_net::dns::DnsQueryType;
use embassy_net::tcp::TcpSocket;
use embassy_time::{Duration, Instant, with_timeout};
use embedded_io_async::{Read, Write};
use heapless::String;

use crate::{Sample, credentials, packet};

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub enum SendError {
    NoSuchHost,
    Connect(embassy_net::tcp::ConnectError),
    Broken,
    TimedOut,
    Refused(u8),
    NotMqtt,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = (credentials::GATEWAY_HOST, credentials::GATEWAY_PORT);
        match self {
            Self::NoSuchHost => write!(f, "no address for {host}: is the name right, does your DNS know it?"),
            Self::Connect(error) => write!(f, "no connection to {host}:{port}: {error:?}"),
            Self::Broken => write!(f, "{host}:{port} closed the connection"),
            Self::TimedOut => write!(f, "no answer from {host}:{port}"),
            Self::Refused(4 | 5) => write!(f, "the gateway refuses gateway_user or gateway_password"),
            Self::Refused(code) => write!(f, "the gateway refuses with MQTT code {code}"),
            Self::NotMqtt => write!(f, "{host}:{port} does not speak MQTT"),
        }
    }
}

pub async fn send(stack: Stack<'_>, sequence: u32, sample: Sample) -> Result<(), SendError> {
    with_timeout(ANSWER_WITHIN, exchange(stack, sequence, sample)).await.unwrap_or(Err(SendError::TimedOut))
}

async fn exchange(stack: Stack<'_>, sequence: u32, sample: Sample) -> Result<(), SendError> {
    let addresses = stack.dns_query(credentials::GATEWAY_HOST, DnsQueryType::A).await;
    let address = addresses.ok().and_then(|found| found.first().copied()).ok_or(SendError::NoSuchHost)?;

    let (mut receive, mut transmit) = ([0; 256], [0; 1024]);
    let mut socket = TcpSocket::new(stack, &mut receive, &mut transmit);
    socket.connect((address, credentials::GATEWAY_PORT)).await.map_err(SendError::Connect)?;

    let mut buffer = [0; packet::BYTES_MAX];
    let connect =
        packet::connect(&mut buffer, credentials::DEVICE_ID, credentials::GATEWAY_USER, credentials::GATEWAY_PASSWORD);
    write_all(&mut socket, connect).await?;
    let [kind, _, _, code] = read_four(&mut socket).await?;
    if kind != packet::CONNACK {
        return Err(SendError::NotMqtt);
    }
    if code != 0 {
        return Err(SendError::Refused(code));
    }

    let mut topic = String::<96>::new();
    let mut payload = String::<128>::new();
    // The device id has at most 64 bytes and the numbers at most 20 digits, so neither string can be too short.
    let _ = write!(topic, "devices/{}/telemetry", credentials::DEVICE_ID);
    let _ = write!(payload, "{{\"seq\":{sequence},\"uptime_ms\":{}", Instant::now().as_millis());
    if let Some(milli) = sample.temperature_milli_c {
        let sign = if milli < 0 { "-" } else { "" };
        let milli = milli.unsigned_abs();
        let _ = write!(payload, ",\"temperature_c\":{sign}{}.{:03}", milli / 1000, milli % 1000);
    }
    let _ = payload.push('}');
    write_all(&mut socket, packet::publish(&mut buffer, &topic, payload.as_bytes())).await?;
    let [kind, ..] = read_four(&mut socket).await?;
    if kind != packet::PUBACK {
        return Err(SendError::NotMqtt);
    }
    write_all(&mut socket, &packet::DISCONNECT).await?;
    socket.close();
    socket.flush().await.map_err(|_| SendError::Broken)
}

async fn write_all(socket: &mut TcpSocket<'_>, bytes: &[u8]) -> Result<(), SendError> {
    socket.write_all(bytes).await.map_err(|_| SendError::Broken)
}

/// CONNACK and PUBACK of MQTT 3.1.1 are four bytes each, and nothing else comes.
async fn read_four(socket: &mut TcpSocket<'_>) -> Result<[u8; 4], SendError> {
    let mut answer = [0; 4];
    socket.read_exact(&mut answer).await.map_err(|_| SendError::Broken)?;
    Ok(answer)
}
