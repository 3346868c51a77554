//! One connection to a broker: messages out, acknowledgements matched to who waits for them.

use super::message::Message;
use crate::uplink::sink::Fault;
use crate::wire::GATEWAY_PROPERTY;
use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAck, PubAckReason};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// Messages handed to the client and not yet written.
const QUEUE_MAX: usize = 64;

pub type Acknowledged = Result<(), Fault>;

pub struct Link {
    client: AsyncClient,
    shared: Arc<Mutex<Shared>>,
    /// Largest packet the broker takes.
    packet_bytes_max: usize,
    task: AbortHandle,
}

#[derive(Default)]
struct Shared {
    /// Of messages that have no packet id yet, in the order they were handed to the client.
    unsent: VecDeque<oneshot::Sender<Acknowledged>>,
    sent: HashMap<u16, oneshot::Sender<Acknowledged>>,
    broken: Option<String>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Connects and waits for the broker's consent.
    pub async fn open(options: MqttOptions, gateway: &str, within: Duration) -> Result<Self, Fault> {
        let (client, mut events) = AsyncClient::new(options, QUEUE_MAX);
        let connected = tokio::time::timeout(within, connected(&mut events)).await;
        let packet_bytes_max = match connected {
            Ok(Ok(broker)) if broker.gateway.as_deref() == Some(gateway) => {
                return Err(Fault::Denied("the broker is this gateway itself: records would go in circles".into()));
            }
            Ok(Ok(broker)) => broker.packet_bytes_max,
            Ok(Err(ConnectionError::ConnectionRefused(code))) => {
                return Err(Fault::Denied(format!("the broker refuses the connection: {code:?}")));
            }
            Ok(Err(error)) => return Err(Fault::Unreachable(error.to_string())),
            Err(_) => return Err(Fault::Unreachable(format!("the broker does not answer within {within:?}"))),
        };
        let shared = Arc::new(Mutex::new(Shared::default()));
        let task = tokio::spawn(drive(events, shared.clone())).abort_handle();
        Ok(Link { client, shared, packet_bytes_max, task })
    }

    pub fn is_broken(&self) -> bool {
        lock(&self.shared).broken.is_some()
    }

    pub fn why_broken(&self) -> Fault {
        let why = lock(&self.shared).broken.clone();
        Fault::Unreachable(why.unwrap_or_else(|| "the connection was given up".into()))
    }

    /// Hands a message to the connection. The receiver ends without a word if the connection breaks.
    pub async fn publish(&self, message: Message) -> Result<oneshot::Receiver<Acknowledged>, Fault> {
        let Message { topic, payload, properties } = message;
        let named = properties.user_properties.iter().map(|(name, value)| name.len() + value.len() + 5);
        let bytes = topic.len() + payload.len() + named.sum::<usize>() + 64;
        if bytes > self.packet_bytes_max {
            let max = self.packet_bytes_max;
            return Err(Fault::Refused(format!("a packet of {bytes} bytes; the broker takes {max}")));
        }
        let (waiter, receiver) = oneshot::channel();
        let mut handing = HandingOver { shared: &self.shared, done: false };
        handing.wait(waiter);
        let sent = self.client.publish_with_properties(topic, QoS::AtLeastOnce, false, payload, properties).await;
        handing.done = sent.is_ok();
        Ok(receiver)
    }
}

/// A waiter without its message would take the acknowledgement of the next one: a hand-over that fails, or is given up
/// half-way, ends the connection.
struct HandingOver<'a> {
    shared: &'a Mutex<Shared>,
    done: bool,
}

impl HandingOver<'_> {
    fn wait(&mut self, waiter: oneshot::Sender<Acknowledged>) {
        let mut shared = lock(self.shared);
        if shared.broken.is_none() {
            shared.unsent.push_back(waiter);
        }
    }
}

impl Drop for HandingOver<'_> {
    fn drop(&mut self) {
        if !self.done {
            lock(self.shared).break_off("a message could not be handed over");
        }
    }
}

/// What a broker says of itself.
struct Broker {
    /// Largest packet it takes.
    packet_bytes_max: usize,
    /// Its id, if it is a Headwater.
    gateway: Option<String>,
}

/// Polls until the broker has answered CONNECT.
async fn connected(events: &mut EventLoop) -> Result<Broker, ConnectionError> {
    loop {
        if let Event::Incoming(Packet::ConnAck(answer)) = events.poll().await? {
            let said = answer.properties.map(|said| (said.max_packet_size, said.user_properties));
            let (most, named) = said.unwrap_or_default();
            return Ok(Broker {
                packet_bytes_max: most.map_or(usize::MAX, |max| max as usize),
                gateway: named.into_iter().find(|(name, _)| name == GATEWAY_PROPERTY).map(|(_, id)| id),
            });
        }
    }
}

async fn drive(mut events: EventLoop, shared: Arc<Mutex<Shared>>) {
    loop {
        match events.poll().await {
            Ok(Event::Outgoing(Outgoing::Publish(packet_id))) => {
                let mut shared = lock(&shared);
                if let Some(waiter) = shared.unsent.pop_front() {
                    shared.sent.insert(packet_id, waiter);
                }
            }
            Ok(Event::Incoming(Packet::PubAck(answer))) => {
                if let Some(waiter) = lock(&shared).sent.remove(&answer.pkid) {
                    // Who no longer waits needs no answer.
                    let _ = waiter.send(meaning(&answer));
                }
            }
            Ok(Event::Incoming(Packet::Disconnect(why))) => {
                return lock(&shared).break_off(&format!("the broker disconnects: {:?}", why.reason_code));
            }
            Ok(_) => {}
            Err(error) => return lock(&shared).break_off(&error.to_string()),
        }
    }
}

fn meaning(answer: &PubAck) -> Acknowledged {
    let said = || format!("{:?}", answer.reason);
    match answer.reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
        PubAckReason::QuotaExceeded => Err(Fault::Throttled),
        PubAckReason::NotAuthorized => Err(Fault::denied(&said())),
        PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => Err(Fault::Refused(said())),
        _ => Err(Fault::Broken(said())),
    }
}

impl Shared {
    fn break_off(&mut self, why: &str) {
        self.broken.get_or_insert_with(|| why.to_owned());
        self.unsent.clear();
        self.sent.clear();
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_to_which_nobody_listens_has_accepted_the_message() {
        let said = |reason| meaning(&PubAck { pkid: 1, reason, properties: None });
        assert!(said(PubAckReason::Success).is_ok() && said(PubAckReason::NoMatchingSubscribers).is_ok());
        assert!(matches!(said(PubAckReason::QuotaExceeded), Err(Fault::Throttled)));
        assert!(matches!(said(PubAckReason::NotAuthorized), Err(Fault::Denied(_))));
        assert!(matches!(said(PubAckReason::PayloadFormatInvalid), Err(Fault::Refused(_))));
        assert!(matches!(said(PubAckReason::UnspecifiedError), Err(Fault::Broken(_))));
    }
}
