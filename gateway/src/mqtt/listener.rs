//! The doors: TCP and TLS listeners with their limits. A connection beyond a limit is told so if it is not one of very
//! many, and costs no more than an accept and a close otherwise.

use super::codec::Reason;
use super::connection::serve;
use super::handshake::turn_away;
use super::memory::Memory;
use super::places::{Place, Places};
use super::shared::Shared;
use super::tls;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio_rustls::TlsAcceptor;

/// Connections the kernel may hold for us.
const BACKLOG: u32 = 1_024;
/// After an accept that failed (out of descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that are being told that there is no room for them.
const TOLD_MAX: usize = 64;

/// The places for connections, over all listeners.
#[derive(Clone)]
pub struct Room {
    all: Arc<Semaphore>,
    by_address: Arc<Places>,
    telling: Arc<Semaphore>,
}

/// What a connection holds while it is open.
struct Admitted {
    _place: Place,
    _permit: OwnedSemaphorePermit,
}

/// Which limit a connection met.
struct NoPlace {
    label: &'static str,
    says: String,
    reason: Reason,
}

impl Room {
    pub fn new(connections_max: u32, per_address_max: u32) -> Self {
        Room {
            all: Arc::new(Semaphore::new(connections_max as usize)),
            by_address: Arc::new(Places::new(per_address_max)),
            telling: Arc::new(Semaphore::new(TOLD_MAX)),
        }
    }

    /// Waits until nobody is in it.
    pub async fn empty(&self, connections_max: u32) -> Option<SemaphorePermit<'_>> {
        self.all.acquire_many(connections_max).await.ok()
    }

    fn admit(&self, from: IpAddr) -> Result<Admitted, NoPlace> {
        let place = self.by_address.take(from).ok_or_else(|| NoPlace {
            label: "connections_per_address_max",
            says: format!("as many connections as mqtt.connections_per_address_max allows are open from {from}"),
            reason: Reason::QuotaExceeded,
        })?;
        let permit = self.all.clone().try_acquire_owned().map_err(|_| NoPlace {
            label: "connections_max",
            says: "as many connections as mqtt.connections_max allows are open".into(),
            reason: Reason::ServerBusy,
        })?;
        Ok(Admitted { _place: place, _permit: permit })
    }

    /// Tells a client of a plain listener why it is turned away, unless many are being told already. Over TLS it would
    /// cost a handshake, which is what the limit is to spare.
    fn turn_away(&self, stream: TcpStream, reason: Reason, memory: Arc<Memory>) {
        if let Ok(telling) = self.telling.clone().try_acquire_owned() {
            tokio::spawn(async move {
                turn_away(stream, reason, memory).await;
                drop(telling);
            });
        }
    }
}

/// TLS of a listener.
#[derive(Clone)]
pub struct Tls {
    pub acceptor: TlsAcceptor,
    pub pace: Arc<Mutex<Pace>>,
    /// Certificates name the devices.
    pub mutual: bool,
}

/// Spreads handshakes over time (pure). A limit on how many run at once would be used up by clients that stall; this
/// one costs a stalling client its own slot and no other.
#[derive(Debug)]
pub struct Pace {
    interval_us: u64,
    next_us: u64,
}

impl Pace {
    pub fn new(per_s: u32) -> Self {
        Pace { interval_us: 1_000_000 / u64::from(per_s.max(1)), next_us: 0 }
    }

    /// How long to wait before beginning, in microseconds; `None` if that is more than `most_us`.
    pub fn reserve(&mut self, now_us: u64, most_us: u64) -> Option<u64> {
        let at = self.next_us.max(now_us);
        let wait = at - now_us;
        if wait > most_us {
            return None;
        }
        self.next_us = at + self.interval_us;
        Some(wait)
    }
}

/// Binds a listening socket.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_keepalive(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts until told to stop.
pub async fn accept(
    listener: TcpListener,
    tls: Option<Tls>,
    shared: Arc<Shared>,
    room: Room,
    mut stopping: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok((stream, from)) => (stream, from.ip()),
            Err(error) => {
                shared.reject_as("accept", "", &error.to_string());
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let admitted = match room.admit(from) {
            Ok(admitted) => admitted,
            Err(no) => {
                shared.reject_as(no.label, &from.to_string(), &no.says);
                if tls.is_none() {
                    room.turn_away(stream, no.reason, shared.memory.clone());
                }
                continue;
            }
        };
        // Without it a PUBACK could wait for the next one.
        let _ = stream.set_nodelay(true);
        tokio::spawn(one((stream, from), tls.clone(), shared.clone(), admitted, stopping.clone()));
    }
}

async fn one(
    (stream, from): (TcpStream, IpAddr),
    tls: Option<Tls>,
    shared: Arc<Shared>,
    admitted: Admitted,
    stopping: watch::Receiver<bool>,
) {
    match tls {
        None => serve(stream, from, shared, None, stopping).await,
        Some(tls) => one_tls((stream, from), tls, shared, stopping).await,
    }
    drop(admitted);
}

async fn one_tls((stream, from): (TcpStream, IpAddr), tls: Tls, shared: Arc<Shared>, stopping: watch::Receiver<bool>) {
    let handshake = async {
        const FAILED: (&str, &str) = ("tls_handshake", "the TLS handshake failed");
        // A client that sends nothing gets no turn.
        stream.readable().await.map_err(|_| FAILED)?;
        let (now_us, most_us) = (shared.now_ms() * 1000, shared.connect_within.as_micros() as u64);
        let turn = tls.pace.lock().unwrap_or_else(PoisonError::into_inner).reserve(now_us, most_us);
        let wait = turn.ok_or(("tls_busy", "more TLS handshakes wait than can be begun in time"))?;
        tokio::time::sleep(Duration::from_micros(wait)).await;
        tls.acceptor.accept(stream).await.map_err(|_| FAILED)
    };
    let stream = match tokio::time::timeout(shared.connect_within, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((label, says))) => return shared.reject_as(label, &from.to_string(), says),
        Err(_) => return shared.reject_as("tls_late", &from.to_string(), "no TLS handshake in time"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = certificate.and_then(tls::identity);
    if tls.mutual && identity.is_none() {
        return shared.reject_as(
            "certificate_name",
            &from.to_string(),
            "the client certificate has no single common name",
        );
    }
    serve(stream, from, shared, identity, stopping).await;
}

#[cfg(test)]
mod tests {
    use super::Pace;

    #[test]
    fn handshakes_are_spread_and_what_would_wait_too_long_is_refused() {
        let mut pace = Pace::new(100);
        assert_eq!(pace.reserve(5_000, 25_000), Some(0));
        assert_eq!(pace.reserve(5_000, 25_000), Some(10_000));
        assert_eq!(pace.reserve(5_000, 25_000), Some(20_000));
        assert_eq!(pace.reserve(5_000, 25_000), None);
        assert_eq!(pace.reserve(16_000, 25_000), Some(19_000));
        assert_eq!(pace.reserve(900_000, 25_000), Some(0));
    }
}
