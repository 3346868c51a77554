//! The driver: carries records from the recorder to the outbox, and from the outbox to the gateway, for ever or until
//! there is nothing left to carry.

use crate::link::{IN_FLIGHT_MAX, Link, Patience, Sent, Step};
use crate::mqtt::{self, Event, Message, Minimq, Mqtt, Published};
use crate::outbox::{self, HEAD_ROOM, Outbox, WORD_BYTES_MAX};
use crate::recorder::{Recorder, Status};
use crate::trace::{info, warning};
use core::future::{Future, poll_fn};
use core::pin::pin;
use embassy_futures::select::{Either, Either3, select, select3};
use embassy_sync::blocking_mutex::raw::RawMutex;
use embassy_time::{Duration, Instant, Timer, with_timeout};
use embedded_io_async::{Read, Write};
use embedded_storage_async::nor_flash::NorFlash;
use headwater_wire::{ENVELOPE_HEADER_BYTES_MAX, Envelope, Hello, TOPIC_ROOT};

/// The longest device id, in bytes.
pub const ID_BYTES_MAX: usize = 64;
/// The longest answer to a command, in bytes.
pub const ANSWER_BYTES_MAX: usize = 128;
/// The longest topic and correlation data that an answer may need.
const RESPONSE_TOPIC_BYTES_MAX: usize = 96;
const CORRELATION_BYTES_MAX: usize = 32;
/// Of a PUBLISH, beside its payload and topic: fixed header, content type and the encoder's workspace.
const PUBLISH_BYTES: usize = 64;
/// CONNECT and SUBSCRIBE, beside the ids and topics in them.
const CONNECT_BYTES: usize = 192;
/// After the flash has failed, or the ring is full.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// Opens byte streams to the gateway: a socket of `embassy-net`, TLS over one, a modem, a serial line.
#[allow(async_fn_in_trait)]
pub trait Transport {
    /// An open stream. Dropping it closes it.
    type Stream<'a>: Read + Write
    where
        Self: 'a;
    /// Why there is none.
    type Error;

    /// Opens one. It may take as long as it likes: the driver gives up on it.
    ///
    /// # Errors
    /// Whatever the transport says; the driver tries again later.
    async fn connect(&mut self) -> Result<Self::Stream<'_>, Self::Error>;
}

/// What comes from the gateway to the application.
pub trait Downlink {
    /// The configuration that somebody has set for this device; again after each connect.
    fn config(&mut self, _config: &[u8]) {}

    /// A command: its answer goes into `answer`, and this says how long that is.
    fn command(&mut self, _command: &[u8], _answer: &mut [u8]) -> usize {
        0
    }

    /// How much the device shall log: `error`, `warn`, `info`, `debug` or `trace`.
    fn log_level(&mut self, _level: &str) {}
}

/// Nobody listens.
impl Downlink for () {}

/// Who the device is and how it behaves.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// The MQTT client id, and the partition key unless the gateway's route says otherwise.
    pub id: &'a str,
    /// Where its records are published.
    pub topic: &'a str,
    /// User and password, if the gateway asks for them.
    pub login: Option<(&'a str, &'a [u8])>,
    /// What the gateway publishes for the device when it vanishes: topic and payload.
    pub will: Option<(&'a str, &'a [u8])>,
    /// The connection is dead if nothing came for so long; also for the gateway, which allows half as much again. A device
    /// that stays connected and sleeps in between wants it longer than its sleep. At most 65,535 seconds.
    pub keep_alive: Duration,
    /// How long a record waits for company before it goes to flash and out.
    pub linger: Duration,
    /// Publishes on their way at once, up to 8. Each needs its place in memory.
    pub window: usize,
    /// How long to wait for what.
    pub patience: Patience,
}

impl<'a> Config<'a> {
    /// A device with this id that publishes to this topic.
    pub fn new(id: &'a str, topic: &'a str) -> Self {
        Config {
            id,
            topic,
            login: None,
            will: None,
            keep_alive: Duration::from_secs(60),
            linger: Duration::from_millis(200),
            window: 4,
            patience: Patience::default(),
        }
    }
}

/// How much memory [`Device::new`] needs for batches of so many bytes and so many publishes on their way.
pub const fn memory_bytes(batch: usize, window: usize) -> usize {
    HEAD_ROOM
        + batch
        + WORD_BYTES_MAX
        + RECEIVE_BYTES
        + CONNECT_BYTES
        + 128
        + window * (batch + HEAD_ROOM + PUBLISH_BYTES + 64)
}

/// The largest packet that the device takes from the gateway.
pub const RECEIVE_BYTES: usize = 512;

/// Why a device cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum SetupError {
    /// The id is empty or longer than [`ID_BYTES_MAX`], or the will's topic is longer than 128 bytes.
    Id,
    /// Less memory than [`memory_bytes`] says for one publish on its way.
    Memory,
    /// A batch of the recorder does not fit a page of the outbox.
    Batch,
}

/// How a device may rest: see [`Device::flush`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Rest {
    /// Records that the gateway does not have yet. They are in the outbox.
    pub pending: u64,
    /// When trying again makes sense, if the gateway could not be reached.
    pub retry_at: Option<Instant>,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Failure {
    /// The transport opened no stream: no network, no such host, nobody listens there.
    NoStream,
    /// The other side closed the stream, or what it says is not MQTT 5.
    NoGateway,
    /// No answer in time.
    TimedOut,
    /// The gateway does not take this device, for this MQTT 5 reason; 0x86 is a wrong user or password.
    Refused(u8),
}

/// What the device has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Counts {
    /// Connections that a gateway has taken.
    pub connections: u32,
    /// Publishes sent, repetitions included.
    pub publishes: u64,
    /// Publishes refused for the moment.
    pub refused: u64,
    /// Records that the gateway calls malformed. They are not sent again.
    pub rejected: u64,
}

/// A device: one task runs it, others record.
pub struct Device<'a, M: RawMutex, F, T, const N: usize> {
    recorder: &'a Recorder<M, N>,
    outbox: Outbox<F>,
    transport: T,
    config: Config<'a>,
    link: Link,
    memory: &'a mut [u8],
    counts: Counts,
    /// Why the last try came to nothing, if it did.
    failure: Option<Failure>,
    /// The recorder is left alone until then.
    store_at: Option<Instant>,
}

#[derive(Clone, Copy)]
enum Until {
    Ever,
    Empty(Instant),
}

impl<'a, M: RawMutex, F: NorFlash, T: Transport, const N: usize> Device<'a, M, F, T, N> {
    /// `memory` is at least [`memory_bytes`] of `N` and the window long. `seed` is random.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(
        recorder: &'a Recorder<M, N>,
        outbox: Outbox<F>,
        transport: T,
        config: Config<'a>,
        memory: &'a mut [u8],
        seed: u64,
    ) -> Result<Self, SetupError> {
        if config.id.is_empty()
            || config.id.len() > ID_BYTES_MAX
            || config.will.is_some_and(|(topic, _)| topic.len() > 128)
        {
            return Err(SetupError::Id);
        }
        if outbox.body_max() < N {
            return Err(SetupError::Batch);
        }
        if memory.len() < memory_bytes(N, 1) + config.topic.len().saturating_sub(64) {
            return Err(SetupError::Memory);
        }
        recorder.set_linger(config.linger);
        let link = Link::new(config.patience, config.window.min(IN_FLIGHT_MAX), seed, Instant::now());
        let counts = Counts::default();
        let device =
            Device { recorder, outbox, transport, config, link, memory, counts, failure: None, store_at: None };
        tell(device.recorder, &device.outbox, &device.link, device.counts, None);
        Ok(device)
    }

    /// Runs for ever. Whoever drops it while it runs, and then calls it or [`Device::flush`] again, finds that it goes on;
    /// only a batch that was on its way into flash in that moment may be stored twice.
    pub async fn run(&mut self, app: &mut impl Downlink) {
        self.serve(app, Until::Ever).await;
    }

    /// Connects, sends all there is, waits until the gateway has it on disk, and disconnects; for devices that sleep in
    /// between. Ends at the latest when `within` is over; what could not be sent stays in the outbox.
    pub async fn flush(&mut self, app: &mut impl Downlink, within: Duration) -> Rest {
        self.recorder.flush();
        self.serve(app, Until::Empty(Instant::now() + within)).await;
        let _ = self.outbox.mark().await;
        let pending = self.outbox.len();
        Rest { pending, retry_at: if pending > 0 { self.link.next_wake() } else { None } }
    }

    async fn serve(&mut self, app: &mut impl Downlink, until: Until) {
        if !self.link.is_offline() {
            // The last run was dropped, and its connection with it.
            self.link.rested(Instant::now());
        }
        loop {
            tell(self.recorder, &self.outbox, &self.link, self.counts, self.failure);
            let frame = frame_bytes::<N>(self.memory).0;
            let mut store = Store { recorder: self.recorder, outbox: &mut self.outbox, pause: &mut self.store_at };
            store.all(frame).await;
            if store.is_done(until) {
                return;
            }
            if self.link.poll(Instant::now()) == Step::Connect {
                self.connection(app, until).await;
            } else {
                store.wait(self.link.next_wake(), until).await;
            }
        }
    }

    /// One connection, from its opening to its end.
    async fn connection(&mut self, app: &mut impl Downlink, until: Until) {
        let Device { recorder, outbox, transport, config, link, memory, counts, failure, store_at } = self;
        let (frame, rest) = frame_bytes::<N>(memory);
        let mut store = Store { recorder, outbox, pause: store_at };
        let Some(mut session) = session(config, rest) else { return };
        link.connecting(Instant::now());
        let opened = {
            let connect = async {
                let stream = transport.connect().await.map_err(|_| Failure::NoStream)?;
                session.connect(stream).await.map_err(|error| match mqtt::refusal(&error) {
                    Some(reason) => Failure::Refused(reason),
                    None => Failure::NoGateway,
                })
            };
            let mut connect = pin!(with_timeout(config.patience.answer_within, connect));
            // Sensors do not wait for a gateway that does not answer.
            loop {
                match select(connect.as_mut(), store.wait(None, until)).await {
                    Either::First(opened) => break opened.unwrap_or(Err(Failure::TimedOut)),
                    Either::Second(()) => store.all(frame).await,
                }
                if store.is_done(until) {
                    break Err(Failure::TimedOut);
                }
            }
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(why) => {
                info!("no connection to the gateway: {:?}", why);
                *failure = Some(why);
                return link.lost(Instant::now());
            }
        };
        *failure = None;
        counts.connections = counts.connections.wrapping_add(1);
        link.opened(Instant::now());
        let mut run = Run { store, link, config, counts, heard: Heard::default(), app };
        run.store.outbox.rewind();
        let mut mqtt = Minimq::new(opened);
        let rested = run.serve(&mut mqtt, frame, until).await;
        let now = Instant::now();
        if rested { run.link.rested(now) } else { run.link.lost(now) }
    }
}

/// Tells whoever records how the device is doing.
fn tell<M: RawMutex, F: NorFlash, const N: usize>(
    recorder: &Recorder<M, N>,
    outbox: &Outbox<F>,
    link: &Link,
    counts: Counts,
    failure: Option<Failure>,
) {
    recorder.set_status(Status {
        is_connected: link.is_connected(),
        failure,
        next_number: outbox.next_number(),
        pending: outbox.len(),
        counts,
        outbox: outbox.counters(),
    });
}

/// The part of the memory in which frames are written and read, and the rest.
fn frame_bytes<const N: usize>(memory: &mut [u8]) -> (&mut [u8], &mut [u8]) {
    memory.split_at_mut_checked(HEAD_ROOM + N + WORD_BYTES_MAX).unwrap_or_default()
}

fn session<'m>(config: &Config<'m>, memory: &'m mut [u8]) -> Option<minimq::Session<'m>>
where
{
    let keep_alive = config.keep_alive.as_secs().clamp(1, 65_535) as u16;
    let builder = minimq::ConfigBuilder::from_buffer(memory, RECEIVE_BYTES).ok()?;
    let mut builder = builder.client_id(config.id).ok()?.keepalive_interval(keep_alive);
    if let Some((user, password)) = config.login {
        builder = builder.auth(user, password).ok()?;
    }
    if let Some((topic, payload)) = config.will {
        builder = builder.will(minimq::Will::new(topic, payload, &[]).ok()?).ok()?;
    }
    Some(minimq::Session::new(builder))
}

/// The way from the recorder into the outbox.
struct Store<'d, M: RawMutex, F, const N: usize> {
    recorder: &'d Recorder<M, N>,
    outbox: &'d mut Outbox<F>,
    pause: &'d mut Option<Instant>,
}

impl<M: RawMutex, F: NorFlash, const N: usize> Store<'_, M, F, N> {
    /// Puts into flash whatever has to go there now.
    async fn all(&mut self, frame: &mut [u8]) {
        let now = Instant::now();
        if self.pause.is_some_and(|until| now < until) {
            return;
        }
        *self.pause = None;
        while let Some(taken) = self.recorder.take(frame, now) {
            match self.outbox.append(taken.kind, taken.count, frame, taken.length).await {
                Ok(_) | Err(outbox::Error::TooLong | outbox::Error::Geometry) => {
                    self.recorder.took(self.outbox.len(), self.outbox.next_number());
                }
                Err(outbox::Error::Full) => {
                    *self.pause = Some(now + STORE_PAUSE);
                    break;
                }
                Err(outbox::Error::Flash(_)) => {
                    warning!("the flash does not write; {} records wait", taken.count);
                    *self.pause = Some(now + STORE_PAUSE);
                    break;
                }
            }
        }
        self.recorder.set_keep_every(self.outbox.keep_every());
    }

    /// Until something has to go into flash, it is so late, or the end has come.
    async fn wait(&self, wake: Option<Instant>, until: Until) {
        let recorder = self.recorder;
        let pause = *self.pause;
        let ready = poll_fn(|context| match pause {
            Some(_) => core::task::Poll::Pending,
            None => recorder.poll_ready(context, Instant::now()),
        });
        let due = if pause.is_some() { pause } else { recorder.next_wake() };
        let end = match until {
            Until::Ever => None,
            Until::Empty(end) => Some(end),
        };
        let earliest = [wake, due, end].into_iter().flatten().min();
        select(ready, at(earliest)).await;
    }

    fn is_done(&self, until: Until) -> bool {
        match until {
            Until::Ever => false,
            Until::Empty(end) => (self.recorder.is_empty() && self.outbox.is_empty()) || Instant::now() >= end,
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => Timer::at(time).await,
        None => core::future::pending().await,
    }
}

/// What the listener leaves for the driver.
#[derive(Default)]
struct Heard {
    hello: Option<Hello>,
    answer: Option<Answer>,
}

struct Answer {
    topic: Text<RESPONSE_TOPIC_BYTES_MAX>,
    correlation: Text<CORRELATION_BYTES_MAX>,
    bytes: Text<ANSWER_BYTES_MAX>,
}

/// Bytes of bounded length.
#[derive(Clone)]
struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    const EMPTY: Self = Text { bytes: [0; N], length: 0 };

    fn push(mut self, bytes: &[u8]) -> Option<Self> {
        let end = self.length.checked_add(bytes.len())?;
        self.bytes.get_mut(self.length..end)?.copy_from_slice(bytes);
        self.length = end;
        Some(self)
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn as_str(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

/// One connection that was opened.
struct Run<'d, 'a, M: RawMutex, F, A, const N: usize> {
    store: Store<'d, M, F, N>,
    link: &'d mut Link,
    config: &'d Config<'a>,
    counts: &'d mut Counts,
    heard: Heard,
    app: &'d mut A,
}

impl<M: RawMutex, F: NorFlash, A: Downlink, const N: usize> Run<'_, '_, M, F, A, N> {
    /// Serves the connection to its end; whether that is a rest, and not a loss.
    async fn serve(&mut self, mqtt: &mut impl Mqtt, frame: &mut [u8], until: Until) -> bool {
        let answer_within = self.config.patience.answer_within;
        let filter = Text::<{ ID_BYTES_MAX + 16 }>::EMPTY;
        let filter = filter
            .push(TOPIC_ROOT.as_bytes())
            .and_then(|f| f.push(self.config.id.as_bytes()))
            .and_then(|f| f.push(b"/#"));
        let Some(filter) = filter else { return false };
        if !in_time(answer_within, mqtt.subscribe(filter.as_str())).await {
            return false;
        }
        let mut last_epoch = None;
        loop {
            self.store.all(frame).await;
            tell(self.store.recorder, self.store.outbox, self.link, *self.counts, None);
            let now = Instant::now();
            if self.link.not_greeted(now) {
                info!("no hello: this is a broker, or a gateway of another version");
            }
            let has_more = match self.link.poll(now) {
                Step::Drop => {
                    info!("the gateway does not answer");
                    return false;
                }
                Step::Rewind => {
                    self.store.outbox.rewind();
                    self.link.rewound();
                    continue;
                }
                Step::Send => match self.send(mqtt, frame, &mut last_epoch).await {
                    None => return false,
                    Some(sent) => sent,
                },
                Step::Connect | Step::Wait => false,
            };
            if let Some(answer) = self.heard.answer.take() {
                let sent = mqtt.message(answer.topic.as_str(), answer.bytes.as_bytes(), answer.correlation.as_bytes());
                if !in_time(answer_within, sent).await {
                    return false;
                }
            }
            if self.link.is_online() && self.link.in_flight() == 0 && self.store.is_done(until) {
                let _ = with_timeout(answer_within, mqtt.disconnect()).await;
                return true;
            }
            if matches!(until, Until::Empty(end) if now >= end) {
                return false;
            }
            // With more to send only a look at what has come, so that answers are never behind.
            let nothing = async {
                if !has_more {
                    core::future::pending::<()>().await;
                }
            };
            let Run { heard, app, config, .. } = self;
            let listener = |message: Message<'_>| listen(message, config.id, heard, *app);
            let wake = self.link.next_wake();
            let event = match select3(mqtt.next(listener), self.store.wait(wake, until), nothing).await {
                Either3::First(Ok(event)) => event,
                Either3::First(Err(_)) => return false,
                Either3::Second(()) | Either3::Third(()) => Event::Other,
            };
            if !self.take(event).await {
                return false;
            }
        }
    }

    /// Sends the next frame, if there is one: whether it did. `None` if the connection is of no use any more.
    async fn send(&mut self, mqtt: &mut impl Mqtt, frame: &mut [u8], last_epoch: &mut Option<u32>) -> Option<bool> {
        let outbox = &mut *self.store.outbox;
        let loaded = match outbox.load(frame).await {
            Ok(Some(loaded)) if self.link.takes_epoch(loaded.epoch) => loaded,
            Ok(_) => return Some(false),
            Err(_) => {
                warning!("the flash does not read");
                return None;
            }
        };
        if last_epoch.replace(loaded.epoch).is_some_and(|last| last != loaded.epoch) {
            // Frames of an older epoch must not be sent again after this.
            let _ = outbox.mark().await;
        }
        let (first, count) = (loaded.first, u32::from(loaded.count));
        let envelope = Envelope { kind: loaded.kind, epoch: loaded.epoch, first, count, body: &[] };
        let mut head = [0; ENVELOPE_HEADER_BYTES_MAX];
        let length = envelope.write_head(&mut head)?;
        let start = HEAD_ROOM.checked_sub(length)?;
        frame.get_mut(start..HEAD_ROOM)?.copy_from_slice(head.get(..length)?);
        let payload = frame.get(start..HEAD_ROOM + loaded.length)?;
        match with_timeout(self.config.patience.answer_within, mqtt.envelope(self.config.topic, payload)).await {
            Ok(Ok(Published::OnItsWay)) => {
                self.store.outbox.sent(&loaded);
                self.link.sent(Instant::now(), Sent { epoch: loaded.epoch, last: loaded.last() });
                self.counts.publishes += 1;
                Some(true)
            }
            Ok(Ok(Published::NotNow)) if self.link.in_flight() > 0 => Some(false),
            Ok(Ok(Published::NotNow)) => {
                warning!("a frame of {} bytes does not fit the memory for publishes", loaded.length);
                None
            }
            _ => None,
        }
    }

    /// Does what an event asks for; `false` if the connection has to end.
    async fn take(&mut self, event: Event) -> bool {
        let now = Instant::now();
        if let Some(hello) = self.heard.hello.take() {
            self.greet(hello, now).await;
        }
        match event {
            Event::Other => {}
            Event::Acked => {
                if let Some(sent) = self.link.acked(now) {
                    let _ = self.store.outbox.release(sent.last).await;
                    *self.store.pause = None;
                }
            }
            // The payload format is invalid: it will be so the next time as well.
            Event::Refused(0x99) => {
                if let Some(sent) = self.link.acked(now) {
                    let before = self.store.outbox.len();
                    let _ = self.store.outbox.release(sent.last).await;
                    self.counts.rejected += before.saturating_sub(self.store.outbox.len());
                    warning!("the gateway calls records up to {} malformed", sent.last);
                }
            }
            Event::Refused(reason) => {
                self.link.refused(now);
                self.counts.refused += 1;
                info!("the gateway does not take records now: reason {}", reason);
            }
        }
        true
    }

    async fn greet(&mut self, hello: Hello, now: Instant) {
        if hello.time_ms > 0 {
            self.store.recorder.set_clock(hello.time_ms, now);
        }
        if self.link.in_flight() > 0 {
            return;
        }
        if let Some((epoch, sequence)) = hello.kept {
            let _ = self.store.outbox.release_epoch(epoch, sequence).await;
        }
        self.store.outbox.rewind();
        self.link.greeted();
    }
}

/// Whether it was done in time.
async fn in_time<E>(within: Duration, work: impl Future<Output = Result<(), E>>) -> bool {
    matches!(with_timeout(within, work).await, Ok(Ok(())))
}

/// What a message from the gateway is for. Whatever it does not know it leaves alone.
fn listen(message: Message<'_>, id: &str, heard: &mut Heard, app: &mut impl Downlink) {
    let of_this_device = message.topic.strip_prefix(TOPIC_ROOT).and_then(|rest| rest.strip_prefix(id));
    let Some(what) = of_this_device.and_then(|rest| rest.strip_prefix('/')) else { return };
    match what {
        "hello" => heard.hello = Hello::read(message.payload).ok(),
        "config" => app.config(message.payload),
        "log" => app.log_level(core::str::from_utf8(message.payload).unwrap_or_default()),
        "command" => {
            let mut bytes = Text::<ANSWER_BYTES_MAX>::EMPTY;
            bytes.length = app.command(message.payload, &mut bytes.bytes).min(ANSWER_BYTES_MAX);
            let topic = message.response_topic.and_then(|topic| Text::EMPTY.push(topic.as_bytes()));
            let correlation = Text::EMPTY.push(message.correlation);
            if let (Some(topic), Some(correlation)) = (topic, correlation) {
                heard.answer = Some(Answer { topic, correlation, bytes });
            }
        }
        _ => {}
    }
}
