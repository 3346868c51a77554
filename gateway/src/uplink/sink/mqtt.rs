//! An MQTT 5 broker: each record a QoS 1 publish with its record id as a user property; PUBACKs move the cursor.
//!
//! One connection at a time, never resumed: when it breaks, what was not acknowledged goes back to the lanes and leaves again
//! over the next one, so only the lanes decide what is sent. A broker may refuse a single message and take the next, so
//! by default only one message of a key is under way; `pipeline` gives that up for speed.

mod link;
mod message;

use super::{Answer, Fault, Identity, Limits, Outcome, Request, Sink, SinkFuture};
use crate::problem::Problem;
use crate::record::Record;
use crate::units::Span;
use crate::uplink::config::{Common, Sending};
use crate::uplink::map::ShardMap;
use crate::uplink::tls::Trust;
use link::{Acknowledged, Link};
use message::Template;
use rumqttc::v5::MqttOptions;
use rumqttc::{TlsConfiguration, Transport};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, oneshot};

/// Messages under way at once.
const IN_FLIGHT_MAX: u16 = 512;
/// Largest packet sent or taken, in bytes.
const PACKET_BYTES_MAX: u32 = 12 << 20;

/// A broker.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct MqttConfig {
    #[serde(flatten)]
    pub common: Common,
    #[serde(flatten)]
    pub sending: Sending,
    /// `mqtt://host:1883`, or `mqtts://host:8883` for TLS.
    pub broker: String,
    /// Topic of each message; `{topic}` (as it came in), `{stream}`, `{key}` and `{shard}` stand for the record's.
    pub topic: String,
    /// Empty: the gateway's id and the sink's name.
    pub client_id: String,
    /// Empty: nobody in particular.
    pub username: String,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// PEM file of certificate authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// PEM file of the client's certificate, for mutual TLS.
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// The connection is asked so often whether it is alive.
    pub keep_alive: Span,
    /// How long an acknowledgement may take.
    pub timeout: Span,
    /// Send messages of one key without waiting for each. Faster where a key has much to say; out of order if the broker
    /// refuses one message and takes the next.
    pub pipeline: bool,
}

impl Default for MqttConfig {
    fn default() -> Self {
        MqttConfig {
            common: Common::default(),
            sending: Sending::default(),
            broker: String::new(),
            topic: "{topic}".into(),
            client_id: String::new(),
            username: String::new(),
            password_file: None,
            ca: None,
            cert: None,
            key: None,
            keep_alive: Span::secs(30),
            timeout: Span::secs(15),
            pipeline: false,
        }
    }
}

impl MqttConfig {
    pub(in crate::uplink) fn check(&self, key: &str, problems: &mut Vec<Problem>) {
        let mut problem = |of: &str, says: &str| problems.push(Problem::new(format!("{key}.{of}"), says));
        if self.address().is_none() {
            problem("broker", "write the broker as \"mqtt://host:1883\", or \"mqtts://host:8883\" for TLS");
        }
        if self.topic.parse::<Template>().is_err() {
            problem(
                "topic",
                "write a topic without + and #; {topic}, {stream}, {key} and {shard} stand for the record's",
            );
        }
        if self.cert.is_some() != self.key.is_some() {
            problem("cert", "give both cert and key, or neither");
        }
        if self.keep_alive < Span::secs(5) {
            problem("keep_alive", "write at least \"5 s\"");
        }
        if self.timeout < Span::ms(100) || self.timeout > Span::secs(600) {
            problem("timeout", "write \"100 ms\" to \"10 min\"");
        }
        if self.password_file.is_some() && self.username.is_empty() {
            problem("username", "a password needs a username");
        }
    }

    /// TLS or not, host, port.
    pub(in crate::uplink) fn address(&self) -> Option<(bool, String, u16)> {
        let uri: http::Uri = self.broker.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "mqtt" => false,
            "mqtts" => true,
            _ => return None,
        };
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some((tls, host, uri.port_u16().unwrap_or(if tls { 8883 } else { 1883 })))
    }

    fn options(&self, who: &Identity) -> Result<MqttOptions, String> {
        let (tls, host, port) = self.address().ok_or("the broker's address is malformed")?;
        let client_id = match self.client_id.as_str() {
            "" => format!("headwater-{}-{}", who.gateway, self.common.name),
            given => given.to_owned(),
        };
        // One connection for each stream: with one id they would throw each other out.
        let mut options = MqttOptions::new(format!("{client_id}-{}", who.stream), host, port);
        options.set_clean_start(true);
        options.set_keep_alive(self.keep_alive.0.max(Duration::from_secs(5)));
        options.set_outgoing_inflight_upper_limit(IN_FLIGHT_MAX);
        options.set_max_packet_size(Some(PACKET_BYTES_MAX));
        if !self.username.is_empty() {
            options.set_credentials(self.username.clone(), self.password()?);
        }
        if tls {
            let trust = Trust { ca: self.ca.clone(), client: self.cert.clone().zip(self.key.clone()) };
            let config = trust.config().map_err(|error| error.to_string())?;
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
        }
        Ok(options)
    }

    fn password(&self) -> Result<String, String> {
        let Some(path) = &self.password_file else { return Ok(String::new()) };
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

pub struct MqttSink {
    config: MqttConfig,
    who: Identity,
    topic: Template,
    link: Mutex<Option<Arc<Link>>>,
}

impl MqttSink {
    pub fn new(config: &MqttConfig, who: Identity) -> Self {
        let topic = config.topic.parse().unwrap_or_default();
        MqttSink { config: config.clone(), who, topic, link: Mutex::new(None) }
    }

    /// The connection in use, or a new one.
    async fn link(&self, slot: &mut Option<Arc<Link>>) -> Result<Arc<Link>, Fault> {
        if let Some(link) = slot.as_ref().filter(|link| !link.is_broken()) {
            return Ok(link.clone());
        }
        *slot = None;
        let options = self.config.options(&self.who).map_err(Fault::Denied)?;
        let link = Arc::new(Link::open(options, &self.who.gateway, self.config.timeout.0).await?);
        Ok(slot.insert(link).clone())
    }

    async fn send_once(&self, request: &Request) -> Result<Answer, Fault> {
        let mut waits: Vec<Vec<Result<oneshot::Receiver<Acknowledged>, Fault>>> = Vec::new();
        let link = {
            // Held while publishing, so that messages and their waiters stand in the same order.
            let mut slot = self.link.lock().await;
            let link = self.link(&mut slot).await?;
            for group in &request.groups {
                let prefix = self.who.prefix(group.id.shard);
                let mut group_waits = Vec::with_capacity(group.records.len());
                for out in group.records.iter() {
                    let message = message::of(out, group.id.shard, &prefix, &self.topic, &self.who);
                    group_waits.push(link.publish(message).await);
                }
                waits.push(group_waits);
            }
            link
        };
        let mut outcomes = Vec::with_capacity(waits.len());
        for group_waits in waits {
            outcomes.push(self.outcome(group_waits, &link).await?);
        }
        Ok(Answer { outcomes, map_is_stale: false, whole: None })
    }

    async fn outcome(
        &self,
        waits: Vec<Result<oneshot::Receiver<Acknowledged>, Fault>>,
        link: &Link,
    ) -> Result<Outcome, Fault> {
        let (mut stored, mut fault) = (Vec::with_capacity(waits.len()), None);
        for wait in waits {
            let acknowledged = match wait {
                Ok(receiver) => receiver.await.map_err(|_| link.why_broken())?,
                Err(fault) => Err(fault),
            };
            stored.push(acknowledged.is_ok());
            if let Err(why) = acknowledged {
                fault = fault.or(Some(why));
            }
        }
        Ok(match fault {
            None => Outcome::Stored,
            Some(fault) if stored.contains(&true) && !self.config.pipeline => Outcome::Partly(stored, fault),
            Some(fault) => Outcome::Failed(fault),
        })
    }
}

impl Sink for MqttSink {
    fn limits(&self) -> Limits {
        Limits {
            group_records_max: 64,
            group_bytes_max: 256 << 10,
            distinct_keys: !self.config.pipeline,
            alone: None,
            headers_max: usize::MAX,
            record_overhead: 128,
            entry_per_record: true,
            request_entries_max: usize::from(IN_FLIGHT_MAX) / 2,
            request_bytes_max: 1 << 20,
            requests_in_flight_max: 4,
            blocks: false,
        }
    }

    fn map(&self) -> SinkFuture<'_, Result<ShardMap, Fault>> {
        Box::pin(async { Ok(ShardMap::whole()) })
    }

    fn send(&self, request: Request) -> SinkFuture<'_, Answer> {
        Box::pin(async move {
            match tokio::time::timeout(self.config.timeout.0, self.send_once(&request)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(fault)) => Answer::all(&request, fault),
                Err(_) => {
                    // Whatever it still holds must not be acknowledged later for others.
                    if let Ok(mut slot) = self.link.try_lock() {
                        *slot = None;
                    }
                    let within = self.config.timeout;
                    Answer::all(&request, Fault::Broken(format!("no acknowledgement within {within}")))
                }
            }
        })
    }

    fn refusal(&self, record: &Record) -> Option<String> {
        let bytes = super::weight(record) + 1024;
        (bytes > PACKET_BYTES_MAX as usize).then(|| format!("it has {bytes} bytes; a packet holds {PACKET_BYTES_MAX}"))
    }
}
