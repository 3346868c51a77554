//! The way to the gateway: TCP to the host's loopback. QEMU's user network shows that at the address of its router,
//! which DHCP tells. A connection is opened within a bound.

use core::convert::Infallible;

use embassy_futures::select::{Either, select};
use embassy_net::tcp::TcpSocket;
use embassy_net::{Runner, Stack};
use embassy_time::{Duration, Timer, with_timeout};

use crate::lan9118::Lan9118;

const OPEN_MAX: Duration = Duration::from_secs(10);
/// Sent bytes that nobody has confirmed for so long end the connection: the cable is cut.
const SILENCE_MAX: Duration = Duration::from_secs(10);
const NUDGE_EVERY: Duration = Duration::from_millis(10);

/// The network stack at work.
#[embassy_executor::task]
pub async fn run(mut runner: Runner<'static, Lan9118>) -> ! {
    runner.run().await
}

/// Opens a connection to `port` of the host's loopback, over these two buffers.
pub async fn open<'a>(
    stack: Stack<'static>,
    port: u16,
    rx: &'a mut [u8],
    tx: &'a mut [u8],
) -> Result<TcpSocket<'a>, &'static str> {
    let config = with_timeout(OPEN_MAX, stack.wait_config_up()).await.map(|()| stack.config_v4());
    let host = config.ok().flatten().and_then(|config| config.gateway).ok_or("no address from DHCP")?;
    let mut socket = TcpSocket::new(stack, rx, tx);
    socket.set_timeout(Some(SILENCE_MAX));
    match with_timeout(OPEN_MAX, nudged(socket.connect((host, port)))).await {
        Ok(Ok(())) => Ok(socket),
        Ok(Err(_)) => Err("the gateway's port is closed"),
        Err(_) => Err("no answer from the gateway's port"),
    }
}

/// Waits for the future while a timer runs. QEMU's user network looks after a new connection when its main loop comes
/// round, which without a timer of ours to wake it is up to a second away.
async fn nudged<T>(future: impl Future<Output = T>) -> T {
    match select(future, nudge()).await {
        Either::First(value) => value,
        Either::Second(never) => match never {},
    }
}

async fn nudge() -> Infallible {
    loop {
        Timer::after(NUDGE_EVERY).await;
    }
}
