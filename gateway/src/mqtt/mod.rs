//! Bytes in: MQTT 3.1.1 and 5 from the socket to the log's door, and back to subscribers.
//!
//! Way of a message: `listener` -> `handshake` -> `connection` (the only I/O) -> `codec` -> `session` (pure) -> `inlet`
//! (`route`, `access`: pure) -> `log`; when its ticket is durable its answer leaves through `acks` (promise P1).
//! Back: `log` -> `tail` -> `connection` for QoS 1 and 2, `bus` -> `connection` for QoS 0.
//! What is supported and every policy: `docs/mqtt.md`. Nothing here knows of upstreams, HTTP or disks.

mod access;
mod acks;
mod auth;
mod buffers;
mod burst;
mod bus;
mod chunks;
pub mod codec;
mod config;
mod connection;
mod devices;
mod firmware;
mod handshake;
mod inlet;
mod json;
mod lane;
mod listener;
mod memory;
mod places;
mod registry;
mod route;
mod session;
mod shared;
mod tail;
#[cfg(test)]
mod tests;
mod tls;
mod topic;
mod users_file;
mod wills;

pub use auth::{UsersError, hash_password};
pub use bus::{LiveMessage, Tap};
pub use chunks::{ChunkDoor, ChunkFault, ChunkRefusal, Chunked, Work};
pub use codec::is_topic_filter;
pub use config::{AllowConfig, MqttConfig, RouteConfig, TlsConfig};
pub use devices::{DeviceStatus, Devices, KeptNumber, NoAnswer, NotKept, Setting, TooLarge};
pub use firmware::NoFirmware;
pub use inlet::NUMBER_PROPERTY;
pub use tls::TlsError;
pub use topic::matches as topic_matches;
pub use users_file::{Edit, Edited, edit_users};

use crate::clock::Clock;
use crate::log::{AppendError, Log};
use crate::metrics::Metrics;
use crate::problem::Problem;
use listener::{Room, Tls};
use shared::Shared;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

#[derive(Debug, thiserror::Error)]
pub enum MqttStartError {
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Config(Vec<Problem>),
    #[error("cannot listen on {address} for MQTT: {source}")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Users(#[from] UsersError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Log(#[from] AppendError),
}

/// The MQTT door of a running gateway.
pub struct Mqtt {
    shared: Arc<Shared>,
    plain: Option<SocketAddr>,
    tls: Option<SocketAddr>,
    stopping: watch::Sender<bool>,
    room: Room,
    connections_max: u32,
}

impl Mqtt {
    /// Binds the listeners and serves them. The streams that routes name exist by now, `default` among them. What `chunks`
    /// wants is its own before any route is asked.
    pub async fn start(
        config: &MqttConfig,
        routes: &[RouteConfig],
        allow: &[AllowConfig],
        log: Log,
        clock: Clock,
        metrics: Arc<Metrics>,
        chunks: Option<Arc<dyn ChunkDoor>>,
    ) -> Result<Mqtt, MqttStartError> {
        let streams = log.streams();
        let names: Vec<_> = streams.iter().map(|stream| stream.name.as_str()).collect();
        let mut problems = config.check(routes, allow, &names);
        let parsed = route::Routes::new(routes);
        if let Ok(parsed) = &parsed {
            problems.extend(parsed.streams().filter(|name| log.stream(name.as_str()).is_none()).map(|name| {
                Problem::new("route", format!("there is no stream {name}; add a [[stream]] with name = \"{name}\""))
            }));
        }
        let (Ok(parsed), true) = (parsed, problems.is_empty()) else { return Err(MqttStartError::Config(problems)) };
        let users = config.users_file.as_deref().map(auth::Users::load).transpose()?;
        let access = access::Access::new(allow);
        let shared = Arc::new(Shared::new(config, parsed, access, users, log, clock, metrics, chunks));
        shared.clear_stale().await?;
        let (stopping, _) = watch::channel(false);
        let connections_max = within_descriptors(config.connections_max);
        let room = Room::new(connections_max, config.connections_per_address_max);
        let mut mqtt = Mqtt { shared, plain: None, tls: None, stopping, room, connections_max };
        mqtt.listen(config)?;
        Ok(mqtt)
    }

    /// Binds all before serving any, so that a start that fails has let nobody in.
    fn listen(&mut self, config: &MqttConfig) -> Result<(), MqttStartError> {
        let plain = config.listen.address().map(bind).transpose()?;
        let tls = match config.tls.listen.address() {
            None => None,
            Some(address) => Some((bind(address)?, tls_listener(&config.tls)?)),
        };
        self.plain = plain.as_ref().and_then(|listener| listener.local_addr().ok());
        self.tls = tls.as_ref().and_then(|(listener, _)| listener.local_addr().ok());
        let serve = |listener: TcpListener, tls: Option<Tls>| {
            let (shared, room) = (self.shared.clone(), self.room.clone());
            tokio::spawn(listener::accept(listener, tls, shared, room, self.stopping.subscribe()));
        };
        if let Some(listener) = plain {
            serve(listener, None);
        }
        if let Some((listener, tls)) = tls {
            serve(listener, Some(tls));
        }
        Ok(())
    }

    /// Address of the plain listener, if there is one.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.plain
    }

    /// Address of the TLS listener, if there is one.
    pub fn tls_local_addr(&self) -> Option<SocketAddr> {
        self.tls
    }

    /// The devices behind this door.
    pub fn devices(&self) -> Devices {
        self.shared.devices.clone()
    }

    /// Listens live to committed messages, as the console does; messages that find its queue full are dropped.
    pub fn tap(&self, filters: Vec<String>) -> Tap {
        let tap = self.shared.bus.tap();
        tap.listen(filters);
        tap
    }

    /// Takes no more connections, answers what is on its way to disk, says goodbye. Whatever is left after `bound` is
    /// cut off with the runtime; it was not acknowledged.
    pub async fn stop(self, bound: Duration) {
        self.stopping.send_replace(true);
        let all_gone = async {
            let _nobody = self.room.empty(self.connections_max).await;
            self.shared.wills.empty().await;
        };
        if tokio::time::timeout(bound, all_gone).await.is_err() {
            tracing::warn!("some MQTT connections were still open at the end of the time to stop");
        }
    }
}

/// Every connection is an open file. A quarter of what the process may have stays with the log and the other doors: a
/// crowd that took all of it would stop folds, and with them acknowledgements.
fn within_descriptors(connections_max: u32) -> u32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let ours = limit.map_or(u32::MAX, |limit| u32::try_from(limit / 4 * 3).unwrap_or(u32::MAX)).max(1);
    if ours < connections_max {
        tracing::warn!(
            connections_max = ours,
            configured = connections_max,
            "the limit on open files allows fewer connections; raise it (LimitNOFILE in systemd, ulimit -n in a shell)"
        );
    }
    connections_max.min(ours)
}

fn bind(address: SocketAddr) -> Result<TcpListener, MqttStartError> {
    listener::bind(address).map_err(|source| MqttStartError::Bind { address, source })
}

fn tls_listener(config: &TlsConfig) -> Result<Tls, TlsError> {
    Ok(Tls {
        acceptor: tls::server_config(config)?.into(),
        pace: Arc::new(Mutex::new(listener::Pace::new(config.handshakes_per_s))),
        mutual: config.client_ca.is_some(),
    })
}
