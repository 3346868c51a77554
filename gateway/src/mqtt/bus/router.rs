//! rumqttd's router with one link in and one link out, and the two threads that serve them.
//!
//! Threads, because rumqttd's links block. The router cannot be stopped from outside (it holds a sender of its own
//! queue), so it lives as long as the process, or until it panics; then the next message builds another.

use super::{Inner, LiveMessage, frame};
use rumqttd::local::{LinkBuilder, LinkRx, LinkTx};
use rumqttd::protocol::{Disconnect, DisconnectReasonCode, Packet};
use rumqttd::{Notification, Router, RouterConfig};
use std::future::Future;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;

/// The one topic the router ever sees.
const TOPIC: &str = "live";
/// Tests kill the router with a message on this topic.
#[cfg(test)]
pub const DEADLY_TOPIC: &str = "deadly";
/// What the router holds for a link that lags: segments of these bytes.
const SEGMENT_BYTES: usize = 1 << 20;
const SEGMENTS: usize = 4;

/// Starts the thread that feeds the router; false if there are no threads to be had.
pub(super) fn start(queue: mpsc::Receiver<Vec<LiveMessage>>, bus: Weak<Inner>) -> bool {
    let feeder = std::thread::Builder::new().name("mqtt-bus-in".into());
    feeder.spawn(move || feed(queue, &bus)).is_ok()
}

fn feed(mut queue: mpsc::Receiver<Vec<LiveMessage>>, bus: &Weak<Inner>) {
    let mut links: Option<Links> = None;
    let mut sequence = 0u64;
    while let Some(messages) = queue.blocking_recv() {
        let Some(inner) = bus.upgrade() else { break };
        let bytes = messages.iter().map(LiveMessage::weight).sum::<usize>();
        inner.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        for message in &messages {
            if links.is_none() {
                links = Links::open(bus, sequence);
            }
            let sent = match (&mut links, frame::encode(sequence, message)) {
                (Some(links), Some(frame)) => links.input.publish(topic_of(message), frame).is_ok(),
                _ => false,
            };
            sequence += 1;
            if !sent {
                inner.dropped(1);
                if links.take().is_some() {
                    tracing::warn!("the live bus's router died; it is built anew");
                }
            }
        }
    }
    if let Some(links) = links {
        links.close();
    }
}

#[cfg(not(test))]
fn topic_of(_: &LiveMessage) -> &'static str {
    TOPIC
}

/// A topic that begins with a letter of two bytes panics rumqttd.
#[cfg(test)]
fn topic_of(message: &LiveMessage) -> &'static str {
    if message.topic == DEADLY_TOPIC { "é" } else { TOPIC }
}

struct Links {
    input: LinkTx,
    /// Kept to say goodbye for the reading thread.
    output: LinkTx,
}

impl Links {
    fn open(bus: &Weak<Inner>, sequence: u64) -> Option<Self> {
        let config = RouterConfig {
            max_connections: 4,
            max_outgoing_packet_count: 100,
            max_segment_size: SEGMENT_BYTES,
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        };
        let router = Router::new(0, config).spawn();
        let (mut output, reader, _) = LinkBuilder::new("bus-out", router.clone()).build().ok()?;
        output.subscribe(TOPIC).ok()?;
        let (input, _, _) = LinkBuilder::new("bus-in", router).build().ok()?;
        let bus = bus.clone();
        let thread = std::thread::Builder::new().name("mqtt-bus-out".into());
        thread.spawn(move || drain(reader, &bus, sequence)).ok()?;
        Some(Links { input, output })
    }

    /// Ends the reading thread.
    fn close(mut self) {
        let bye = Disconnect { reason_code: DisconnectReasonCode::NormalDisconnection };
        let send = self.output.send(Packet::Disconnect(bye, None));
        // It is async in name only (it blocks, and never awaits), so one poll is all it takes.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = std::pin::pin!(send).as_mut().poll(&mut context);
    }
}

/// Brings what comes out of the router to the listeners, until the router is gone.
fn drain(mut reader: LinkRx, bus: &Weak<Inner>, mut expected: u64) {
    loop {
        let notification = match reader.recv() {
            Ok(notification) => notification,
            Err(_) => return,
        };
        let Some(inner) = bus.upgrade() else { return };
        match notification {
            Some(Notification::Forward(forward)) => {
                let Some((sequence, message)) = frame::decode(forward.publish.payload) else { continue };
                // A link that lags is moved forward by the router without a word.
                if sequence > expected {
                    inner.dropped(sequence - expected);
                }
                expected = sequence + 1;
                inner.fan_out(&message);
            }
            // The router has paused this link because much was waiting; it goes on when told.
            Some(Notification::Unschedule) if reader.ready().is_err() => {
                return;
            }
            _ => {}
        }
    }
}
