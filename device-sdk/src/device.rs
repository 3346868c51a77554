//! The driver: carries records from the recorder to the outbox, and from the outbox to the gateway, for ever or until
//! there is nothing left to carry.

use crate::apart::apart;
use crate::config::{
    Config, Counts, Failure, ID_BYTES_MAX, RECEIVE_BYTES, Rest, SetupError, frame_bytes, session_bytes,
};
use crate::downlink::Downlink;
use crate::link::{IN_FLIGHT_MAX, Link, Step, later};
use crate::mqtt::{Event, Session, flush, next};
use crate::outbox::Outbox;
use crate::recorder::{Recorder, Status};
use crate::run::Run;
use crate::store::{Store, Until};
use crate::trace::info;
use core::pin::pin;
use embassy_futures::select::{Either, select};
use embassy_sync::blocking_mutex::raw::RawMutex;
use embassy_time::{Duration, Instant};
use embedded_io_async::{Read, Write};
use embedded_storage_async::nor_flash::NorFlash;

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
    /// Whether there was a hello on the last connection.
    greeted: bool,
}

impl<'a, M: RawMutex, F: NorFlash, T: Transport, const N: usize> Device<'a, M, F, T, N> {
    /// `memory` is at least [`memory_bytes`](crate::memory_bytes) of `N` long. `seed` is random.
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
        let rest = split::<N>(memory).1;
        if rest.len() < session_bytes(N, config.topic.len()) || session(rest, &config).is_none() {
            return Err(SetupError::Memory);
        }
        recorder.set_linger(config.linger);
        let link = Link::new(config.patience, config.window.min(IN_FLIGHT_MAX), seed, Instant::now());
        let counts = Counts::default();
        let (failure, store_at, greeted) = (None, None, false);
        let device = Device { recorder, outbox, transport, config, link, memory, counts, failure, store_at, greeted };
        tell(device.recorder, &device.outbox, &device.link, device.counts, None);
        Ok(device)
    }

    /// Runs for ever. Whoever drops it while it runs, and then calls it or [`Device::flush`] again, finds that it goes on.
    pub async fn run(&mut self, app: &mut impl Downlink) {
        self.serve(app, Until::Ever).await;
    }

    /// Connects, sends all there is, waits until the gateway has it on disk, and disconnects; for devices that sleep in
    /// between. Ends at the latest when `within` is over; what could not be sent stays in the outbox.
    pub async fn flush(&mut self, app: &mut impl Downlink, within: Duration) -> Rest {
        self.recorder.flush();
        self.serve(app, Until::Empty(later(Instant::now(), within))).await;
        let _ = self.outbox.rest(self.greeted).await;
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
            let frame = split::<N>(self.memory).0;
            let mut store = Store { recorder: self.recorder, outbox: &mut self.outbox, pause: &mut self.store_at };
            apart!(store.all(frame));
            if store.is_done(until, app.blob().is_some()) {
                return;
            }
            if self.link.poll(Instant::now()) == Step::Connect {
                apart!(self.connection(app, until));
            } else {
                store.wait(self.link.next_wake(), until).await;
            }
        }
    }

    /// One connection, from its opening to its end.
    async fn connection(&mut self, app: &mut impl Downlink, until: Until) {
        let Device { recorder, outbox, transport, config, link, memory, counts, failure, store_at, greeted } = self;
        let (frame, rest) = split::<N>(memory);
        let mut store = Store { recorder, outbox, pause: store_at };
        let Some(mut session) = session(rest, config) else { return link.lost(Instant::now()) };
        link.connecting(Instant::now());
        let opened = {
            let connect = async {
                let mut stream = transport.connect().await.map_err(|_| Failure::NoStream)?;
                let closed = |_| Failure::NoGateway;
                flush(&mut session, &mut stream).await.map_err(closed)?;
                match next(&mut session, &mut stream).await.map_err(closed)? {
                    Event::Connected(Err(reason)) => Err(Failure::Refused(reason)),
                    _ => Ok(stream),
                }
            };
            let mut connect = pin!(connect);
            // Sensors do not wait for a gateway that does not answer.
            loop {
                match select(connect.as_mut(), store.wait(link.next_wake(), until)).await {
                    Either::First(opened) => break opened,
                    Either::Second(()) => apart!(store.all(frame)),
                }
                if link.poll(Instant::now()) == Step::Drop || store.is_done(until, app.blob().is_some()) {
                    break Err(Failure::TimedOut);
                }
            }
        };
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(why) => {
                info!("no connection to the gateway: {:?}", why);
                *failure = Some(why);
                return link.lost(Instant::now());
            }
        };
        *failure = None;
        counts.connections = counts.connections.wrapping_add(1);
        link.opened(Instant::now());
        let mut run = Run {
            store,
            link,
            config,
            counts,
            heard: Default::default(),
            app,
            upload: Default::default(),
            owed: None,
            told: None,
        };
        run.store.outbox.rewind();
        let rested = apart!(run.serve(&mut session, &mut stream, frame, until));
        let now = Instant::now();
        *greeted = run.owed.is_some();
        if rested { run.link.rested(now) } else { run.link.lost(now) }
    }
}

/// Tells whoever records how the device is doing.
pub(crate) fn tell<M: RawMutex, F: NorFlash, const N: usize>(
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
fn split<const N: usize>(memory: &mut [u8]) -> (&mut [u8], &mut [u8]) {
    memory.split_at_mut_checked(frame_bytes(N)).unwrap_or_default()
}

fn session<'m>(memory: &'m mut [u8], config: &Config<'_>) -> Option<Session<'m>> {
    Session::new(memory, RECEIVE_BYTES, config, Instant::now())
}
