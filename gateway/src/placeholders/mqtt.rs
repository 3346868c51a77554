//! Stand-in until the part is merged; this file goes with that merge.
use crate::{clock::Clock, log::Log, metrics::Metrics, problem::Problem};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, sync::Arc, time::Duration};

#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct MqttConfig {
    /// Address of the plain listener.
    pub listen: SocketAddr,
}
impl Default for MqttConfig {
    fn default() -> Self {
        MqttConfig { listen: ([127, 0, 0, 1], 1883).into() }
    }
}
impl MqttConfig {
    pub fn check(&self) -> Vec<Problem> {
        Vec::new()
    }
}
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    pub topics: Vec<String>,
    pub stream: String,
    pub key: String,
}
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct AllowConfig {
    pub identity: String,
}
pub struct Mqtt(SocketAddr);
#[derive(Debug, thiserror::Error)]
#[error("mqtt")]
pub struct MqttStartError;
impl Mqtt {
    pub async fn start(
        config: &MqttConfig,
        _: &[RouteConfig],
        _: &[AllowConfig],
        _: Log,
        _: Clock,
        _: Arc<Metrics>,
    ) -> Result<Mqtt, MqttStartError> {
        Ok(Mqtt(config.listen))
    }
    pub fn local_addr(&self) -> Option<SocketAddr> {
        Some(self.0)
    }
    pub async fn stop(self, _: Duration) {}
}
