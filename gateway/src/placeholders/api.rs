//! Stand-in until the part is merged; this file goes with that merge.
use crate::{clock::Clock, log::Log, metrics::Metrics, problem::Problem};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, sync::Arc, time::Duration};

#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Address of the listener.
    pub listen: SocketAddr,
}
impl Default for ApiConfig {
    fn default() -> Self {
        ApiConfig { listen: ([127, 0, 0, 1], 4567).into() }
    }
}
impl ApiConfig {
    pub fn check(&self) -> Vec<Problem> {
        Vec::new()
    }
}
pub struct Api(SocketAddr);
#[derive(Debug, thiserror::Error)]
#[error("api")]
pub struct ApiStartError;
impl Api {
    pub async fn start(config: &ApiConfig, _: Log, _: Clock, _: Arc<Metrics>) -> Result<Api, ApiStartError> {
        Ok(Api(config.listen))
    }
    pub fn local_addr(&self) -> Option<SocketAddr> {
        Some(self.0)
    }
    pub async fn stop(self, _: Duration) {}
}
