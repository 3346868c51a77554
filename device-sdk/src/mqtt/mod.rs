//! MQTT 5 as a device speaks it: a client's connection as a state machine (pure), and its way over a byte stream.
//!
//! Nothing is kept here for sending it again, and no session outlives its connection: the outbox does the one and the
//! gateway's hello the other. So it needs no memory but one packet each way. What is not in it: QoS 2, topic aliases,
//! enhanced authentication, subscriptions that are taken back.

mod packet;
#[cfg(test)]
mod tests;

use crate::config::Config;
use crate::link::{IN_FLIGHT_MAX, later};
use core::cell::Cell;
use embassy_time::{Duration, Instant};
use embedded_io_async::{Read, Write};
use headwater_wire::CONTENT_TYPE;
use packet::{Malformed, Reader, length};

/// SUBSCRIBE carries this identifier; envelopes have those from 1 to [`ID_MAX`].
const SUBSCRIPTION_ID: u16 = 0xffff;
const ID_MAX: u16 = 0x7fff;
/// A PUBLISH beside its topic and payload, with everything it can have here.
pub const OVERHEAD_BYTES: usize = 64;
/// Reason codes from here on are errors (2.4).
const ERROR: u8 = 0x80;

/// The connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl From<Malformed> for Closed {
    fn from(_: Malformed) -> Self {
        Closed
    }
}

/// What came of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    OnItsWay,
    /// No room before something is answered or written.
    NotNow,
}

/// What the gateway has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'b> {
    /// It has taken the connection, or refused it for this MQTT 5 reason.
    Connected(Result<(), u8>),
    /// The oldest envelope on its way is on its disk.
    Acked,
    /// The oldest envelope on its way is not taken, for this MQTT 5 reason.
    Refused(u8),
    Message(Message<'b>),
    /// Nothing that concerns the driver.
    Other,
}

/// A message from the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'b> {
    pub topic: &'b [u8],
    pub payload: &'b [u8],
    /// Where an answer goes, and what it has to carry.
    pub response_topic: Option<&'b [u8]>,
    pub correlation: &'b [u8],
}

/// One connection, without its stream.
pub struct Session<'m> {
    input: &'m mut [u8],
    /// So much of the input is there, and so much of that was read.
    filled: usize,
    read: usize,
    output: &'m mut [u8],
    /// So much of the output has to be written, and so much of that was.
    queued: usize,
    written: usize,
    is_connected: bool,
    /// Identifiers of the oldest envelope on its way and of the next one.
    oldest: u16,
    next: u16,
    in_flight: u16,
    receive_max: u16,
    packet_bytes_max: u32,
    keep_alive: Duration,
    answer_within: Duration,
    last_sent: Instant,
    /// Something has to come until then: the gateway was asked for a sign of life.
    alive_until: Option<Instant>,
}

impl<'m> Session<'m> {
    /// A session whose CONNECT is in its output. `None` if that does not fit the memory, of which so many bytes are for the
    /// longest packet that may come.
    pub fn new(memory: &'m mut [u8], input_bytes: usize, config: &Config<'_>, now: Instant) -> Option<Self> {
        let (input, output) = memory.split_at_mut_checked(input_bytes)?;
        let mut session = Session {
            input,
            filled: 0,
            read: 0,
            output,
            queued: 0,
            written: 0,
            is_connected: false,
            oldest: 1,
            next: 1,
            in_flight: 0,
            receive_max: IN_FLIGHT_MAX as u16,
            packet_bytes_max: u32::MAX,
            keep_alive: config.keep_alive.clamp(Duration::from_secs(1), Duration::from_secs(u16::MAX as u64)),
            answer_within: config.patience.answer_within,
            last_sent: now,
            alive_until: None,
        };
        session.connect(config)?;
        Some(session)
    }

    /// CONNECT (3.1): a clean start, and no packet that is longer than there is room for.
    fn connect(&mut self, config: &Config<'_>) -> Option<()> {
        let keep_alive = self.keep_alive.as_secs() as u16;
        let size = (self.input.len() as u32).to_be_bytes();
        let (mut flags, none, no_properties) = (0x02, [].as_slice(), [0].as_slice());
        let (topic, payload) = config.will.map_or((none, none), |(topic, payload)| (topic.as_bytes(), payload));
        let (user, password) = config.login.map_or((none, none), |(user, password)| (user.as_bytes(), password));
        let lengths = [topic, payload, user, password].map(length);
        let [topic_length, payload_length, user_length, password_length] = lengths.each_ref().map(<[u8; 2]>::as_slice);
        let will = [no_properties, topic_length, topic, payload_length, payload];
        let login = [user_length, user, password_length, password];
        // A will at QoS 1 that is not kept (3.1.2.5 to 3.1.2.7).
        let will = config.will.map_or([none; 5], |_| {
            flags |= 0x0c;
            will
        });
        let login = config.login.map_or([none; 4], |_| {
            flags |= 0xc0;
            login
        });
        let [w0, w1, w2, w3, w4] = will;
        let [l0, l1, l2, l3] = login;
        let id = config.id.as_bytes();
        let flags = [flags];
        let parts = [
            b"\0\x04MQTT\x05".as_slice(),
            &flags,
            &keep_alive.to_be_bytes(),
            &[5, packet::MAXIMUM_PACKET_SIZE],
            &size,
            &length(id),
            id,
            w0,
            w1,
            w2,
            w3,
            w4,
            l0,
            l1,
            l2,
            l3,
        ];
        self.queue(packet::CONNECT, &parts)
    }

    /// Subscribes at QoS 1 (3.8).
    pub fn subscribe(&mut self, filter: &[u8]) -> Option<()> {
        self.queue(packet::SUBSCRIBE, &[&SUBSCRIPTION_ID.to_be_bytes(), &[0], &length(filter), filter, &[1]])
    }

    /// Sends an envelope at QoS 1 (3.3).
    pub fn envelope(&mut self, topic: &str, payload: &[u8]) -> Published {
        if self.in_flight >= self.receive_max {
            return Published::NotNow;
        }
        let (topic, id, of_type) = (topic.as_bytes(), self.next.to_be_bytes(), CONTENT_TYPE.as_bytes());
        let properties = [of_type.len() as u8 + 3, packet::CONTENT_TYPE, 0, of_type.len() as u8];
        let parts = [&length(topic), topic, &id, &properties, of_type, payload];
        if self.queue(packet::PUBLISH | 0x02, &parts).is_none() {
            return Published::NotNow;
        }
        self.next = following(self.next);
        self.in_flight += 1;
        Published::OnItsWay
    }

    /// Sends a message that is not kept, at QoS 0.
    pub fn message(&mut self, topic: &[u8], payload: &[u8], correlation: &[u8]) -> Option<()> {
        let properties = match correlation.len() {
            0 => [0].as_slice(),
            // More would need a longer length of the properties.
            bytes @ 1..=96 => &[bytes as u8 + 3, packet::CORRELATION_DATA, 0, bytes as u8],
            _ => return None,
        };
        self.queue(packet::PUBLISH, &[&length(topic), topic, properties, correlation, payload])
    }

    /// DISCONNECT, normal and so without its reason (3.14.2.1).
    pub fn disconnect(&mut self) {
        let _ = self.queue(packet::DISCONNECT, &[]);
    }

    fn queue(&mut self, first: u8, parts: &[&[u8]]) -> Option<()> {
        let room = self.output.get_mut(self.queued..)?;
        let length =
            packet::write(room, first, parts).filter(|length| *length as u64 <= self.packet_bytes_max.into())?;
        self.queued += length;
        Some(())
    }

    /// What has to be written.
    pub fn output(&self) -> &[u8] {
        self.output.get(self.written..self.queued).unwrap_or_default()
    }

    /// So much of it was written.
    pub fn wrote(&mut self, bytes: usize, now: Instant) {
        self.last_sent = now;
        self.written = self.written.saturating_add(bytes);
        if self.written >= self.queued {
            (self.written, self.queued) = (0, 0);
        }
    }

    /// Where what comes goes. Empty if the packet that is coming is longer than it may be.
    pub fn room(&mut self) -> &mut [u8] {
        if self.read > 0 {
            let bytes = Cell::from_mut(&mut *self.input).as_slice_of_cells();
            let left = bytes.iter().take(self.filled).skip(self.read);
            bytes.iter().zip(left).for_each(|(to, from)| to.set(from.get()));
            self.filled = self.filled.saturating_sub(self.read);
            self.read = 0;
        }
        self.input.get_mut(self.filled..).unwrap_or_default()
    }

    /// So much has come.
    ///
    /// # Errors
    /// Nothing has: the stream is at its end, or the packet is too long.
    pub fn received(&mut self, bytes: usize) -> Result<(), Closed> {
        self.filled = self.filled.saturating_add(bytes).min(self.input.len());
        self.alive_until = None;
        if bytes > 0 { Ok(()) } else { Err(Closed) }
    }

    fn packet(&self) -> Result<Option<(u8, Reader<'_>, usize)>, Malformed> {
        packet::read(self.input.get(self.read..self.filled).unwrap_or_default())
    }

    /// The next event in what has come, if all of it is there.
    ///
    /// # Errors
    /// The gateway ends the connection, or what it says is not MQTT 5.
    pub fn event(&mut self) -> Result<Option<Event<'_>>, Closed> {
        let input = self.input.get(self.read..self.filled).unwrap_or_default();
        let Some((first, mut body, length)) = packet::read(input)? else { return Ok(None) };
        let is_first = !self.is_connected;
        if is_first != (first == packet::CONNACK) {
            return Err(Closed);
        }
        self.read += length;
        let event = match first & 0xf0 {
            packet::CONNACK => {
                let (_, reason) = (body.byte(), body.byte().ok_or(Closed)?);
                if reason >= ERROR {
                    return Ok(Some(Event::Connected(Err(reason))));
                }
                let properties = body.properties().ok_or(Closed)?;
                self.is_connected = true;
                if let Some(max) = properties.receive_max {
                    self.receive_max = self.receive_max.min(max);
                }
                if let Some(max) = properties.packet_bytes_max {
                    self.packet_bytes_max = max;
                }
                if let Some(seconds) = properties.keep_alive {
                    self.keep_alive = Duration::from_secs(seconds.into());
                }
                Event::Connected(Ok(()))
            }
            packet::PUBACK => {
                // Answers come in the order of the envelopes [MQTT-4.6.0-2].
                if self.in_flight == 0 || body.two_bytes() != Some(self.oldest) {
                    return Err(Closed);
                }
                self.oldest = following(self.oldest);
                self.in_flight -= 1;
                match body.byte() {
                    Some(reason) if reason >= ERROR => Event::Refused(reason),
                    _ => Event::Acked,
                }
            }
            packet::PUBLISH => {
                let (message, id) = read_publish(first, body).ok_or(Closed)?;
                if let Some(id) = id {
                    let room = self.output.get_mut(self.queued..).ok_or(Closed)?;
                    self.queued += packet::write(room, packet::PUBACK, &[&id.to_be_bytes()]).ok_or(Closed)?;
                }
                Event::Message(message)
            }
            // A subscription that is refused is one without a hello.
            packet::SUBACK | packet::PINGRESP => Event::Other,
            _ => return Err(Closed),
        };
        Ok(Some(event))
    }

    /// Asks the gateway for a sign of life when it is time; whether it is alive, as far as one knows.
    pub fn poll(&mut self, now: Instant) -> bool {
        if self.alive_until.is_none() && self.ping_at().is_some_and(|at| now >= at) && self.output().is_empty() {
            let _ = self.queue(packet::PINGREQ, &[]);
            self.alive_until = Some(later(now, self.answer_within));
        }
        self.alive_until.is_none_or(|until| now < until)
    }

    /// When [`Session::poll`] has something to do, if nothing happens before.
    pub fn next_wake(&self) -> Option<Instant> {
        if self.alive_until.is_some() { self.alive_until } else { self.ping_at() }
    }

    /// At three quarters of the keep-alive time: the gateway allows half as much again [MQTT-3.1.2-22].
    fn ping_at(&self) -> Option<Instant> {
        let ticks = self.keep_alive.as_ticks();
        (ticks > 0).then(|| later(self.last_sent, Duration::from_ticks(ticks - ticks / 4)))
    }
}

fn following(id: u16) -> u16 {
    if id >= ID_MAX { 1 } else { id + 1 }
}

/// A PUBLISH (3.3), and its identifier if it is to be answered.
fn read_publish(first: u8, mut body: Reader<'_>) -> Option<(Message<'_>, Option<u16>)> {
    let topic = body.prefixed().filter(|topic| !topic.is_empty())?;
    let id = match first & 0x06 {
        0x00 => None,
        0x02 => Some(body.two_bytes().filter(|id| *id > 0)?),
        _ => return None,
    };
    let properties = body.properties()?;
    let Reader(payload) = body;
    let (response_topic, correlation) = (properties.response_topic, properties.correlation);
    Some((Message { topic, payload, response_topic, correlation }, id))
}

/// Writes all there is to write. May be dropped while it waits, if the stream's `write` may.
pub async fn flush(session: &mut Session<'_>, stream: &mut impl Write) -> Result<(), Closed> {
    if session.output().is_empty() {
        return Ok(());
    }
    while !session.output().is_empty() {
        match stream.write(session.output()).await {
            Ok(bytes) if bytes > 0 => session.wrote(bytes, Instant::now()),
            _ => return Err(Closed),
        }
    }
    stream.flush().await.map_err(|_| Closed)
}

/// Reads until there is an event. May be dropped while it waits, if the stream's `read` may.
pub async fn next<'s>(session: &'s mut Session<'_>, stream: &mut impl Read) -> Result<Event<'s>, Closed> {
    while session.packet()?.is_none() {
        let bytes = stream.read(session.room()).await.map_err(|_| Closed)?;
        session.received(bytes)?;
    }
    Ok(session.event()?.unwrap_or(Event::Other))
}
