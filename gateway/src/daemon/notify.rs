//! What systemd wants to hear from a `Type=notify` service: one datagram to the socket it names. No libsystemd needed.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The watchdog's time when nobody watches.
const UNWATCHED: Duration = Duration::from_secs(120);

/// The socket of the service manager; silent when there is none.
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Duration,
}

impl Notify {
    pub fn from_env() -> Self {
        let watchdog: Option<u64> = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        let for_us = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let watchdog = watchdog.filter(|us| for_us && *us > 0).map_or(UNWATCHED, Duration::from_micros);
        let to = std::env::var_os("NOTIFY_SOCKET").and_then(|name| connect(name.as_bytes()));
        Notify { to, watchdog: watchdog.max(Duration::from_millis(20)) }
    }

    /// Without a beat for so long we are started again.
    pub fn watchdog(&self) -> Duration {
        self.watchdog
    }

    /// How often `WATCHDOG=1` is due: half of the watchdog's time, as sd_watchdog_enabled(3) advises.
    pub fn beat(&self) -> Duration {
        self.watchdog / 2
    }

    /// A manager that does not listen is no reason to stop, so a failure is left at a log line.
    pub fn tell(&self, state: &str) {
        let Some((socket, to)) = &self.to else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), to) {
            tracing::debug!(%error, state, "the service manager was not told");
        }
    }
}

/// `/run/...` is a path, `@...` an abstract name; anything else (vsock) is not spoken here.
fn connect(name: &[u8]) -> Option<(UnixDatagram, SocketAddr)> {
    let to = match name.split_first()? {
        (b'@', rest) => SocketAddr::from_abstract_name(rest).ok()?,
        (b'/', _) => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)).ok()?,
        _ => return None,
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    Some((socket, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &[u8], listener: &UnixDatagram) {
        let notify = Notify { to: connect(name), watchdog: UNWATCHED };
        notify.tell("READY=1");
        let mut heard = [0; 32];
        let length = listener.recv(&mut heard).unwrap();
        assert_eq!(&heard[..length], b"READY=1");
    }

    #[test]
    fn a_path_and_an_abstract_name_are_both_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        told(path.as_os_str().as_bytes(), &UnixDatagram::bind(&path).unwrap());

        let name = format!("headwater-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        told(format!("@{name}").as_bytes(), &UnixDatagram::bind_addr(&address).unwrap());
        assert!(connect(b"vsock:2:1").is_none());
    }
}
