//! What a client subscribed to, and how a message reaches it (pure).
//!
//! Subscriptions of QoS 1 and 2 are owed what the log holds; QoS 0 ones get what goes by. A message that several
//! subscriptions match is sent once, at the highest QoS, with all their identifiers [MQTT-3.3.4-4].

use crate::mqtt::codec::{PropertyId, Qos, Reason, Subscribe, Unsubscribe, Version};
use crate::mqtt::topic;
use std::collections::HashSet;

/// Filters of one connection together, in bytes: they are held in several copies and matched against every message.
const FILTERS_BYTES_MAX: usize = 32 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub filter: String,
    pub qos: Qos,
    /// Identifier the client gave [MQTT-3.8.2.1.2].
    pub id: Option<u32>,
    pub no_local: bool,
}

/// How one message goes to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub qos: Qos,
    pub ids: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
pub struct Subscriptions {
    list: Vec<Subscription>,
    most: usize,
}

impl Subscriptions {
    pub fn new(most: u32) -> Self {
        Subscriptions { list: Vec::new(), most: most as usize }
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
    pub fn iter(&self) -> impl Iterator<Item = &Subscription> {
        self.list.iter()
    }

    /// Takes what may be taken; one code a filter for SUBACK [MQTT-3.9.3-1].
    pub fn subscribe(&mut self, version: Version, packet: &Subscribe<'_>, may: impl Fn(&str) -> bool) -> Vec<u8> {
        let id = packet.properties.number(PropertyId::SubscriptionId);
        let mut codes = Vec::new();
        for (nth, wanted) in packet.filters.iter().enumerate() {
            let subscription =
                || Subscription { filter: wanted.filter.to_owned(), qos: wanted.qos, id, no_local: wanted.no_local };
            // A packet can hold a quarter of a million; what cannot fit is not looked at.
            let taken = match nth < 4 * self.most {
                true => self.subscribe_one(subscription(), &may),
                false => Err(Reason::QuotaExceeded),
            };
            codes.push(match taken {
                Ok(qos) => qos as u8,
                // 3.1.1 has one code for every failure.
                Err(_) if version == Version::V4 => Reason::Unspecified as u8,
                Err(reason) => reason as u8,
            });
        }
        codes
    }

    fn subscribe_one(&mut self, wanted: Subscription, may: &impl Fn(&str) -> bool) -> Result<Qos, Reason> {
        if wanted.filter.starts_with("$share/") {
            return Err(Reason::SharedSubscriptionsNotSupported);
        }
        if !may(&wanted.filter) {
            return Err(Reason::NotAuthorized);
        }
        let qos = wanted.qos;
        let bytes = self.list.iter().map(|s| s.filter.len()).sum::<usize>() + wanted.filter.len();
        // [MQTT-3.8.4-3] the same filter again replaces the subscription.
        match self.list.iter().position(|s| s.filter == wanted.filter) {
            Some(same) => self.list[same] = wanted,
            None if self.list.len() >= self.most || bytes > FILTERS_BYTES_MAX => return Err(Reason::QuotaExceeded),
            None => self.list.push(wanted),
        }
        Ok(qos)
    }

    /// One code a filter for UNSUBACK [MQTT-3.11.3-1].
    pub fn unsubscribe(&mut self, packet: &Unsubscribe<'_>) -> Vec<u8> {
        let mut kept: HashSet<&str> = self.list.iter().map(|s| s.filter.as_str()).collect();
        let found = |filter| if kept.remove(filter) { Reason::Success } else { Reason::NoSubscriptionExisted };
        let codes = packet.filters.iter().map(|gone| gone.filter).map(found).map(|reason| reason as u8).collect();
        let kept: Vec<bool> = self.list.iter().map(|s| kept.contains(s.filter.as_str())).collect();
        let mut kept = kept.into_iter();
        self.list.retain(|_| kept.next().unwrap_or(true));
        codes
    }

    /// How a record of the log reaches the client: at the lesser of the QoS it was published with and the highest that
    /// was granted [MQTT-3.8.4-8].
    pub fn logged(&self, topic_name: &str, published: Qos) -> Option<Delivery> {
        let found = self.deliver(topic_name, |s| s.qos > Qos::AtMostOnce)?;
        Some(Delivery { qos: found.qos.min(published), ..found })
    }

    /// How a message of the live bus reaches the client: to subscriptions of QoS 0, and to all if it is not stored, but
    /// not where the log brings it too. `own`: this client published it.
    pub fn live(&self, topic_name: &str, stored: bool, own: bool) -> Option<Delivery> {
        let owed = |s: &Subscription| s.qos > Qos::AtMostOnce && topic::matches(&s.filter, topic_name);
        if stored && self.list.iter().any(owed) {
            return None;
        }
        let found = self.deliver(topic_name, |s| !(own && s.no_local))?;
        Some(Delivery { qos: Qos::AtMostOnce, ..found })
    }

    fn deliver(&self, topic_name: &str, counts: impl Fn(&Subscription) -> bool) -> Option<Delivery> {
        let mut found: Option<Delivery> = None;
        for s in self.list.iter().filter(|s| counts(s) && topic::matches(&s.filter, topic_name)) {
            let delivery = found.get_or_insert(Delivery { qos: s.qos, ids: Vec::new() });
            delivery.qos = delivery.qos.max(s.qos);
            delivery.ids.extend(s.id);
        }
        found
    }
}
