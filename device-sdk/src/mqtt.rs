//! The MQTT core behind the driver: what it is asked for, and `minimq` answering it.
//!
//! `minimq` keeps what it sent until it is acknowledged, says when an operation is no longer pending, and tells a refusal
//! as an error that names no operation. A gateway answers in the order of the publishes [MQTT-4.6.0-2], so the last
//! of those that were answered in that moment is the refused one.

use embedded_io_async::{Read, Write};
use headwater_wire::CONTENT_TYPE;
use minimq::{Connection, Error, Op, PeerError, Property, PubError, Publication, QoS, ResourceError, TopicFilter};

use crate::link::IN_FLIGHT_MAX;

/// The connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// What came of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    OnItsWay,
    /// No room in the core's memory before something is answered.
    NotNow,
}

/// What the connection has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The oldest envelope on its way is on the gateway's disk.
    Acked,
    /// The oldest envelope on its way is not taken, for this MQTT 5 reason.
    Refused(u8),
    /// A message was handed to the listener, or nothing that concerns the driver has happened.
    Other,
}

/// A message from the gateway.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub topic: &'a str,
    pub payload: &'a [u8],
    /// Where an answer goes, and what it has to carry.
    pub response_topic: Option<&'a str>,
    pub correlation: &'a [u8],
}

/// An MQTT 5 connection, as the driver needs it.
#[allow(async_fn_in_trait)]
pub trait Mqtt {
    /// Sends an envelope at QoS 1.
    async fn envelope(&mut self, topic: &str, payload: &[u8]) -> Result<Published, Closed>;
    /// Sends a message that is not kept, at QoS 0.
    async fn message(&mut self, topic: &str, payload: &[u8], correlation: &[u8]) -> Result<(), Closed>;
    async fn subscribe(&mut self, filter: &str) -> Result<(), Closed>;
    /// Waits for the next event; may be dropped while it waits.
    async fn next(&mut self, listener: impl FnOnce(Message<'_>)) -> Result<Event, Closed>;
    async fn disconnect(&mut self);
}

/// The MQTT 5 reason for which a connection was refused, if that is what it was.
pub fn refusal<E>(error: &Error<E>) -> Option<u8> {
    match error {
        Error::Peer(PeerError::Rejected(reason)) => Some(u8::from(*reason)),
        _ => None,
    }
}

pub struct Minimq<'a, 'buf, IO> {
    connection: Connection<'a, 'buf, IO>,
    /// Envelopes on their way, oldest first.
    ops: [Option<Op>; IN_FLIGHT_MAX],
    /// The last of so many answered ones was refused, for this reason.
    refused: Option<(usize, u8)>,
}

impl<'a, 'buf, IO: Read + Write> Minimq<'a, 'buf, IO> {
    pub fn new(connection: Connection<'a, 'buf, IO>) -> Self {
        Minimq { connection, ops: [None; IN_FLIGHT_MAX], refused: None }
    }

    /// How many of the oldest were answered.
    fn answered(&self) -> usize {
        self.ops.iter().take_while(|op| op.as_ref().is_some_and(|op| !self.connection.is_pending(op))).count()
    }

    fn take_oldest(&mut self) {
        self.ops.rotate_left(1);
        if let Some(last) = self.ops.last_mut() {
            *last = None;
        }
    }
}

impl<IO: Read + Write> Mqtt for Minimq<'_, '_, IO> {
    async fn envelope(&mut self, topic: &str, payload: &[u8]) -> Result<Published, Closed> {
        let Some(at) = self.ops.iter().position(Option::is_none) else { return Ok(Published::NotNow) };
        let properties = [Property::ContentType(CONTENT_TYPE)];
        let publication = Publication::new(topic, payload).qos(QoS::AtLeastOnce).properties(&properties);
        match self.connection.publish(publication).await {
            Ok(op) => {
                if let Some(place) = self.ops.get_mut(at) {
                    *place = op;
                }
                Ok(Published::OnItsWay)
            }
            Err(PubError::Payload(())) => Ok(Published::NotNow),
            Err(PubError::Session(Error::NotReady)) => Ok(Published::NotNow),
            Err(PubError::Session(Error::Resource(
                ResourceError::BufferTooSmall | ResourceError::InflightExhausted,
            ))) => Ok(Published::NotNow),
            Err(PubError::Session(_)) => Err(Closed),
        }
    }

    async fn message(&mut self, topic: &str, payload: &[u8], correlation: &[u8]) -> Result<(), Closed> {
        let publication = Publication::new(topic, payload).correlate(correlation);
        self.connection.publish(publication).await.map(|_| ()).map_err(|_| Closed)
    }

    async fn subscribe(&mut self, filter: &str) -> Result<(), Closed> {
        self.connection.subscribe(&[TopicFilter::new(filter)], &[]).await.map(|_| ()).map_err(|_| Closed)
    }

    async fn next(&mut self, listener: impl FnOnce(Message<'_>)) -> Result<Event, Closed> {
        if let Some((answered, reason)) = self.refused {
            self.take_oldest();
            self.refused = answered.checked_sub(1).filter(|left| *left > 0).map(|left| (left, reason));
            return Ok(if self.refused.is_some() { Event::Acked } else { Event::Refused(reason) });
        }
        if self.answered() > 0 {
            self.take_oldest();
            return Ok(Event::Acked);
        }
        let refused = match self.connection.poll().await {
            Ok(None) => return Ok(Event::Other),
            Ok(Some(message)) => {
                listener(Message {
                    topic: message.topic(),
                    payload: message.payload(),
                    response_topic: message.response_topic(),
                    correlation: message.correlation_data().unwrap_or_default(),
                });
                return Ok(Event::Other);
            }
            Err(Error::Peer(PeerError::Rejected(reason))) => u8::from(reason),
            Err(_) => return Err(Closed),
        };
        // None was answered: it is the subscription that the other side does not like.
        let answered = self.answered();
        self.refused = (answered > 0).then_some((answered, refused));
        Ok(Event::Other)
    }

    async fn disconnect(&mut self) {
        let _ = self.connection.disconnect().await;
    }
}
