//! A transport over `embassy-net`: TCP to an address, or with the feature `dns` to whatever address a name has.

use crate::device::Transport;
use crate::trace::info;
use embassy_net::tcp::{ConnectError, TcpSocket};
use embassy_net::{IpAddress, IpEndpoint, Stack};
use embassy_time::{Duration, Timer};

/// Sent bytes that nobody has confirmed for so long end the connection: the link is cut.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Whether the network is there.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Connects to one gateway over these two buffers; half a batch each is the least that works well.
pub struct Tcp<'d> {
    stack: Stack<'d>,
    gateway: Gateway<'d>,
    rx: &'d mut [u8],
    tx: &'d mut [u8],
}

#[derive(Clone, Copy)]
enum Gateway<'d> {
    At(IpEndpoint),
    #[cfg_attr(not(feature = "dns"), allow(dead_code))] // Nobody makes one then.
    Named(&'d str, u16),
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum NetError {
    /// The name has no address, or nobody says which.
    NoSuchHost,
    /// Nobody takes the connection at that address.
    Connect(ConnectError),
}

impl<'d> Tcp<'d> {
    /// A transport to this address.
    pub fn new(stack: Stack<'d>, gateway: impl Into<IpEndpoint>, rx: &'d mut [u8], tx: &'d mut [u8]) -> Self {
        Tcp { stack, gateway: Gateway::At(gateway.into()), rx, tx }
    }

    /// A transport to this port of a host: its name, asked for anew with each connection, or its address in digits.
    #[cfg(feature = "dns")]
    pub fn to_host(stack: Stack<'d>, host: &'d str, port: u16, rx: &'d mut [u8], tx: &'d mut [u8]) -> Self {
        Tcp { stack, gateway: Gateway::Named(host, port), rx, tx }
    }

    async fn open(&mut self) -> Result<TcpSocket<'_>, NetError> {
        // Not `wait_config_up`: the stack wakes only one of those who wait for its state, and a radio's task may be one.
        while !self.stack.is_config_up() {
            Timer::after(LOOK_EVERY).await;
        }
        let gateway = match self.gateway {
            Gateway::At(endpoint) => endpoint,
            Gateway::Named(host, port) => (find(self.stack, host).await.ok_or(NetError::NoSuchHost)?, port).into(),
        };
        let mut socket = TcpSocket::new(self.stack, self.rx, self.tx);
        socket.set_timeout(Some(SILENCE_MAX));
        // A publish waits for no other.
        socket.set_nagle_enabled(false);
        socket.connect(gateway).await.map_err(NetError::Connect)?;
        Ok(socket)
    }
}

#[cfg(feature = "dns")]
async fn find(stack: Stack<'_>, host: &str) -> Option<IpAddress> {
    stack.dns_query(host, embassy_net::dns::DnsQueryType::A).await.ok()?.first().copied()
}

#[cfg(not(feature = "dns"))]
async fn find(_stack: Stack<'_>, _host: &str) -> Option<IpAddress> {
    None
}

impl Transport for Tcp<'_> {
    type Stream<'a>
        = TcpSocket<'a>
    where
        Self: 'a;
    type Error = NetError;

    async fn connect(&mut self) -> Result<TcpSocket<'_>, NetError> {
        let opened = self.open().await;
        if let Err(error) = &opened {
            info!("no stream to the gateway: {:?}", error);
        }
        opened
    }
}
