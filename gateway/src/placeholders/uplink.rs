//! Stand-in until the part is merged; this file goes with that merge.
use crate::{clock::Clock, log::Log, metrics::Metrics};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct SinkConfig {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub streams: Vec<String>,
}
pub struct Uplink;
#[derive(Debug, thiserror::Error)]
#[error("uplink")]
pub struct UplinkStartError;
impl Uplink {
    pub async fn start(_: &[SinkConfig], _: Log, _: Clock, _: Arc<Metrics>) -> Result<Uplink, UplinkStartError> {
        Ok(Uplink)
    }
    pub async fn stop(self, _: Duration) {}
}
