//! The AWS door: Kinesis Data Streams over JSON 1.1, as boto3, the CLI and the SDKs speak it.
//!
//! Way of a request: `http` (sockets, bounds) -> `door` (which operation, whose signature, which form) -> `operations`
//! (the one table) -> `op/*` (one file an operation) -> the log; an answer goes back the same way. A put is answered
//! only after the log says that it is durable (promise P1).
//!
//! Pure parts: `shape` and `check` (what a request may hold), `sequence`, `token`, `sigv4`, `codec`, `error`. What is
//! missing of the service is a table in `docs/kinesis.md`, made from `operations`.

mod arn;
mod batch;
mod check;
mod codec;
mod config;
mod date;
mod door;
mod error;
mod keys;
mod op;
mod operations;
mod relay;
mod sequence;
mod shape;
mod sigv4;
#[cfg(test)]
mod tests;
mod token;

pub use config::ApiConfig;
pub use keys::{AccessKey, KeysError};
pub use operations::{KNOWN, OPERATIONS, table};
pub use sequence::{NotASequence, Sequence};

use crate::clock::Clock;
use crate::http::{Charge, Guest, Server};
use crate::log::Log;
use crate::metrics::Metrics;
use codec::Codec;
use door::{Door, Session};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The running door.
pub struct Api {
    server: Server,
}

#[derive(Debug, thiserror::Error)]
pub enum ApiStartError {
    #[error("the AWS door is off: api.listen = \"off\"")]
    Off,
    #[error("the AWS door cannot listen on {listen}: {source}")]
    Listen { listen: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Keys(#[from] KeysError),
}

impl Api {
    pub async fn start(
        config: &ApiConfig,
        log: Log,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Api, ApiStartError> {
        Api::start_with(config, log, clock, metrics, None).await
    }

    /// The same with a guest on the port.
    pub async fn start_with(
        config: &ApiConfig,
        log: Log,
        clock: Clock,
        metrics: Arc<Metrics>,
        guest: Option<Arc<dyn Guest>>,
    ) -> Result<Api, ApiStartError> {
        let door = Arc::new(Door::new(config, log, clock, metrics, guest)?);
        let listen = config.listen.address().ok_or(ApiStartError::Off)?;
        let server = Server::start(listen, config.limits(), door).await;
        let server = server.map_err(|source| ApiStartError::Listen { listen, source })?;
        Ok(Api { server })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Accepts nothing more and lets requests in progress be answered, for at most `bound`.
    pub async fn stop(self, bound: Duration) {
        self.server.stop(bound).await;
    }
}

/// One request on its way to its operation.
struct Call<'a> {
    door: &'a Door,
    session: &'a Session,
    codec: Codec,
    body: &'a [u8],
    /// What the request takes of the budget; an operation with a large answer raises it.
    charge: Mutex<Charge>,
    /// The client is a Headwater that asked for what Kinesis has no place for.
    wants_headers: bool,
}

impl Call<'_> {
    fn take_charge(&self) -> Charge {
        std::mem::take(&mut *self.charge.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put_charge(&self, charge: Charge) {
        *self.charge.lock().unwrap_or_else(PoisonError::into_inner) = charge;
    }
}
