//! A transport over `embassy-net`: TCP to an address.

use crate::device::Transport;
use embassy_net::tcp::{ConnectError, TcpSocket};
use embassy_net::{IpEndpoint, Stack};
use embassy_time::Duration;

/// Sent bytes that nobody has confirmed for so long end the connection: the link is cut.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// Connects to one address over these two buffers; half a batch each is the least that works well.
pub struct Tcp<'d> {
    stack: Stack<'d>,
    gateway: IpEndpoint,
    rx: &'d mut [u8],
    tx: &'d mut [u8],
}

impl<'d> Tcp<'d> {
    /// A transport to this address.
    pub fn new(stack: Stack<'d>, gateway: impl Into<IpEndpoint>, rx: &'d mut [u8], tx: &'d mut [u8]) -> Self {
        Tcp { stack, gateway: gateway.into(), rx, tx }
    }
}

impl Transport for Tcp<'_> {
    type Stream<'a>
        = TcpSocket<'a>
    where
        Self: 'a;
    type Error = ConnectError;

    async fn connect(&mut self) -> Result<TcpSocket<'_>, ConnectError> {
        self.stack.wait_config_up().await;
        let mut socket = TcpSocket::new(self.stack, self.rx, self.tx);
        socket.set_timeout(Some(SILENCE_MAX));
        // A publish waits for no other.
        socket.set_nagle_enabled(false);
        socket.connect(self.gateway).await?;
        Ok(socket)
    }
}
