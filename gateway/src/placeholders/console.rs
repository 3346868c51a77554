//! Stand-in until the part is merged; this file goes with that merge.
use crate::{log::Log, metrics::Metrics, problem::Problem};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, sync::Arc, time::Duration};

#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleConfig {
    /// Address of the listener.
    pub listen: SocketAddr,
}
impl Default for ConsoleConfig {
    fn default() -> Self {
        ConsoleConfig { listen: ([127, 0, 0, 1], 8080).into() }
    }
}
impl ConsoleConfig {
    pub fn check(&self) -> Vec<Problem> {
        Vec::new()
    }
}
pub struct Console(SocketAddr);
#[derive(Debug, thiserror::Error)]
#[error("console")]
pub struct ConsoleStartError;
impl Console {
    pub async fn start(
        config: &ConsoleConfig,
        _: Log,
        _: Arc<Metrics>,
        _: tokio::sync::watch::Receiver<bool>,
    ) -> Result<Console, ConsoleStartError> {
        Ok(Console(config.listen))
    }
    pub fn local_addr(&self) -> Option<SocketAddr> {
        Some(self.0)
    }
    pub async fn stop(self, _: Duration) {}
}
