//! The way back: records from the log's tail and messages from the live bus become PUBLISH packets.

use super::{Connection, OUTPUT_HIGH_BYTES};
use crate::mqtt::bus::{LiveMessage, Tap};
use crate::mqtt::codec::write::{self, Message};
use crate::mqtt::codec::{PacketId, Qos};
use crate::mqtt::devices::{Link, Takes, is_reserved};
use crate::mqtt::memory::LIGHT_BYTES;
use crate::mqtt::session::Subscriptions;
use crate::mqtt::session::subscriptions::Delivery;
use crate::mqtt::shared::Shared;
use crate::mqtt::tail::{Owed, Tail};
use crate::record::Header;
use bytes::Bytes;
use std::collections::BTreeSet;

/// A message for the client.
pub(super) enum Next {
    Owed(Owed),
    Live(LiveMessage),
}

/// Where a subscriber's messages come from. Nothing of it exists without a subscription.
pub(super) struct Sources {
    serial: u64,
    tail: Option<Tail>,
    tap: Option<Tap>,
    /// The client's own topics as a device.
    link: Option<Link>,
}

impl Sources {
    pub fn new(serial: u64) -> Self {
        Sources { serial, tail: None, tap: None, link: None }
    }

    /// The client has subscribed to its own topics.
    pub fn link(&mut self, client_id: &str, takes: Takes, shared: &Shared) {
        // The one before goes first, or it would take this one with it.
        self.link = None;
        self.link = Some(shared.devices.link(client_id, self.serial, takes));
    }

    /// The client has sent something.
    pub fn heard(&self, now_ms: u64) {
        if let Some(link) = &self.link {
            link.heard(now_ms);
        }
    }

    /// Follows what the subscriptions can reach, before the client is told that it is subscribed.
    pub fn update(&mut self, subscriptions: &Subscriptions, shared: &Shared) {
        self.update_tail(subscriptions, shared);
        if !subscriptions.iter().any(|s| is_reserved(&s.filter)) {
            self.link = None;
        }
        let live: Vec<String> = subscriptions
            .iter()
            .filter(|s| !is_reserved(&s.filter))
            .filter(|s| s.qos == Qos::AtMostOnce || shared.routes.reaches_live(&s.filter))
            .map(|s| s.filter.clone())
            .collect();
        if live.is_empty() {
            self.tap = None;
        } else {
            self.tap.get_or_insert_with(|| shared.bus.tap()).listen(live);
        }
    }

    fn update_tail(&mut self, subscriptions: &Subscriptions, shared: &Shared) {
        let owed = subscriptions.iter().filter(|s| s.qos > Qos::AtMostOnce && !is_reserved(&s.filter));
        let names: BTreeSet<_> = owed.flat_map(|s| shared.routes.streams_for(&s.filter)).collect();
        if names.is_empty() {
            self.tail = None;
            return;
        }
        let tail = self.tail.get_or_insert_with(|| Tail::new(shared.memory.clone()));
        tail.set_filters(subscriptions);
        for stream in names.into_iter().filter_map(|name| shared.log.stream(name.as_str())) {
            if !tail.follow(&shared.log, &stream) {
                shared.reject_as("follow", "", "a subscriber cannot follow all shards its filters reach");
            }
        }
    }

    pub fn stop(&mut self) {
        (self.tail, self.tap, self.link) = (None, None, None);
    }

    pub fn is_any(&self) -> bool {
        self.tail.is_some() || self.tap.is_some()
    }

    /// Bytes that wait here for the client.
    pub fn held_bytes(&self) -> usize {
        self.tail.as_ref().map_or(0, Tail::held_bytes) + self.tap.as_ref().map_or(0, Tap::waiting_bytes)
    }

    /// The next message, from the log only if the client's window is open. Cancel-safe; never without a subscription.
    pub async fn next(&mut self, can_owe: bool) -> Next {
        let Sources { tail, tap, link, .. } = self;
        let owed = async {
            match tail.as_mut().filter(|_| can_owe) {
                Some(tail) => tail.next().await,
                None => std::future::pending().await,
            }
        };
        let live = async {
            match tap {
                Some(tap) => tap.next().await,
                None => std::future::pending().await,
            }
        };
        let down = async {
            match link {
                Some(link) => link.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(owed) = owed => Next::Owed(owed),
            Some(message) = live => Next::Live(message),
            Some(message) = down => Next::Live(message),
            else => std::future::pending().await,
        }
    }

    fn owed_now(&mut self) -> Option<Owed> {
        self.tail.as_mut()?.next_now()
    }
}

impl<S> Connection<S> {
    pub(super) fn output_has_room(&self) -> bool {
        let tight = self.shared.memory.is_tight();
        self.output.len() < if tight { LIGHT_BYTES } else { OUTPUT_HIGH_BYTES }
    }

    /// Sends what is owed, as far as it lies ready and the client's window is open.
    pub(super) fn deliver_owed(&mut self, first: Owed) {
        let mut next = Some(first);
        while let Some(Owed { topic, payload, headers, delivery, weight }) = next {
            self.burden.took(weight);
            if delivery.qos == Qos::AtMostOnce {
                self.send_message(&topic, &payload, &headers, &delivery, None);
            } else if let Some(id) = self.session.outbound.open(delivery.qos) {
                let sent = self.send_message(&topic, &payload, &headers, &delivery, Some(id));
                if !sent {
                    self.session.outbound.give_back(id);
                }
            }
            let room = self.session.outbound.has_room() && self.output_has_room();
            next = if room { self.sources.owed_now() } else { None };
        }
    }

    /// The client has subscribed to its own topics: it is greeted behind the SUBACK.
    pub(super) fn greet_device(&mut self) {
        let client_id = &self.inlet.who().client_id;
        let takes = Takes { version: self.session.version(), packet_bytes_max: self.client_packet_bytes_max };
        self.sources.link(client_id, takes, &self.shared);
        let greeting = self.shared.devices.greeting(client_id);
        for _ in 0..greeting.left_out {
            self.shared.metrics.reject("mqtt", "device_too_small");
        }
        for message in greeting.messages {
            self.deliver_live(&message);
        }
    }

    pub(super) fn deliver_live(&mut self, message: &LiveMessage) {
        self.burden.took(message.weight());
        let own = message.from == self.sources.serial;
        let found = self.session.subscriptions.live(message.topic(), message.stored, own);
        if let Some(delivery) = found {
            self.send_message(&message.topic, &message.payload, &message.headers, &delivery, None);
        }
    }

    /// False if the message is larger than the client takes: it is as if it had been sent [MQTT-3.1.2-25].
    fn send_message(
        &mut self,
        topic: &[u8],
        payload: &Bytes,
        headers: &[Header],
        delivery: &Delivery,
        id: Option<PacketId>,
    ) -> bool {
        let message = Message { topic, payload, headers, subscription_ids: &delivery.ids };
        let version = self.session.version();
        let most = self.client_packet_bytes_max;
        let sent = write::publish_head(&mut self.output.bytes, version, delivery.qos, id, &message, most);
        if sent {
            self.output.put_payload(payload);
            self.shared.metrics.mqtt_delivered.inc();
        } else {
            self.shared.metrics.reject("mqtt", "subscriber_too_small");
        }
        sent
    }
}
