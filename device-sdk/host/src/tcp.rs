//! TCP over tokio.

use embedded_io_async::{ErrorType, Read, Write};
use headwater_device::Transport;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connects to one address.
#[derive(Clone, Copy, Debug)]
pub struct Tcp(pub SocketAddr);

impl Transport for Tcp {
    type Stream<'a> = TcpStreamIo;
    type Error = io::Error;

    async fn connect(&mut self) -> io::Result<TcpStreamIo> {
        let stream = TcpStream::connect(self.0).await?;
        stream.set_nodelay(true)?;
        Ok(TcpStreamIo(stream))
    }
}

/// A stream as the SDK reads and writes it.
#[derive(Debug)]
pub struct TcpStreamIo(TcpStream);

impl ErrorType for TcpStreamIo {
    type Error = io::Error;
}

impl Read for TcpStreamIo {
    async fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into).await
    }
}

impl Write for TcpStreamIo {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.0.flush().await
    }
}
