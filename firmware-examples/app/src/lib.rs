//! What every example board does, and what a board has to bring.
//!
//! A board crate sets up its clocks, its network stack, its flash and its sensor, puts them into a [`Board`] and
//! calls [`run`], which never returns. Nothing in here knows a chip: the way of a record is sensor, recorder, outbox in
//! flash, gateway, and it is the same on all of them. The device SDK does that way; what is left for a firmware is to
//! measure, to show how it is doing, to sleep, and to answer the gateway.

#![no_std]

#[cfg(test)]
use headwater_device_host as _;

mod downlink;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "ota")]
pub mod updates;

use core::ops::{Range, RangeInclusive};

use embassy_futures::select::{Either, Either4, select, select4};
use embassy_net::{Stack, StackResources};
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_time::{Duration, Instant, Timer};
use embedded_storage_async::nor_flash::NorFlash;
use headwater_device::net::Tcp;
use headwater_device::outbox::{Outbox, WhenFull};
use headwater_device::{Column, ColumnType, Config, Device, Failure, Null, Recorder, Transport, Value, memory_bytes};
use static_cell::StaticCell;

use downlink::{BLINK, INTERVAL, NEW_INTERVAL};

/// Where the device belongs, from `firmware-examples/credentials.toml`.
pub mod credentials {
    include!(concat!(env!("OUT_DIR"), "/credentials.rs"));
}

/// Memory for the sockets of a board's network stack: DHCP, DNS, the connection to the gateway and one to spare.
pub type NetResources = StackResources<4>;

/// What a board brings. The fields are what the shared logic owns from then on.
pub struct Board<F, H> {
    /// The running network stack, configured by DHCP; its runner is already a task.
    pub stack: Stack<'static>,
    /// Non-volatile memory, its offsets as the driver counts them.
    pub flash: F,
    /// The part of `flash` that is the outbox: two whole erase blocks or more, that no code and nobody else uses.
    pub outbox: Range<u32>,
    /// From the chip's true random number generator, fresh in every boot: jitter and the outbox's identity come of it.
    pub seed: u64,
    /// Sensor, status light and sleep.
    pub hardware: H,
    /// The chip's true random number generator: keys are made of it.
    #[cfg(feature = "tls")]
    pub random: fn(&mut [u8]),
}

/// The board's side that is neither network nor flash.
#[allow(async_fn_in_trait)] // One task owns it and nothing is spawned with it, so no bound on the future is missed.
pub trait Hardware {
    /// One reading. It must not fail: a broken sensor leaves its field out.
    async fn sample(&mut self) -> Sample;

    /// Called on every change of the state; a board with a light shows it.
    async fn status(&mut self, _status: Status) {}

    /// Shows a person which device this is.
    async fn blink(&mut self) {}

    /// How the board spends its time at this interval. Asked anew when the interval has changed.
    fn mode(&self, _interval: Duration) -> Mode {
        Mode::Connected
    }

    /// For [`Mode::SendThenSleep`]: waits until the next reading is due. It may also never return and come back through
    /// a reset, as the outbox in flash outlives that.
    async fn sleep(&mut self, duration: Duration) {
        Timer::after(duration).await;
    }

    /// Milliseconds since 1970 by a clock that went on through a sleep, if the board has one and it was set.
    fn clock(&mut self) -> Option<u64> {
        None
    }

    /// Sets that clock, before a sleep.
    fn set_clock(&mut self, _unix_ms: u64) {}
}

/// How a board spends its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The connection stays: the gateway can ask at any time, and each reading is on its way in a moment. For boards
    /// with mains.
    Connected,
    /// Measure, connect, send, sleep: for boards on a battery. The gateway is heard while the board is awake.
    SendThenSleep,
}

/// One reading. Integers, as two of the boards have no floating-point unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    pub temperature_milli_c: Option<i32>,
}

/// Where the device stands, as far as a person with one light has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// No link or no address yet.
    WaitingForNetwork,
    /// The network is there, the gateway has not acknowledged the newest record yet.
    Sending,
    /// The gateway has acknowledged everything.
    Acknowledged,
    /// The gateway could not be reached or refused; another try follows.
    Failed,
}

/// A reading for those who read the stream: `{"ts":…,"uptime_ms":…,"temperature_c":…}`. `ts` is null until the device
/// has heard the time from its gateway once; the gateway notes when each record came in any case.
const READING: &[Column<'static>] = &[
    Column::new("ts", ColumnType::Counter),
    Column::new("uptime_ms", ColumnType::Counter),
    Column::new("temperature_c", ColumnType::Decimal(3)),
];

/// Bytes of a batch: some fifty readings, when they have to wait for each other.
const BATCH: usize = 512;
/// Publishes on their way at once.
const WINDOW: usize = 4;
/// How long a board that sleeps stays awake for its gateway, joining a Wi-Fi included.
const AWAKE_MAX: Duration = Duration::from_secs(45);
/// A gateway that is gone is noticed within so many intervals, and within these bounds.
const KEEP_ALIVE_INTERVALS: u32 = 3;
const KEEP_ALIVE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(1_200);

static RECORDER: Recorder<CriticalSectionRawMutex, BATCH> = Recorder::new();
static MEMORY: StaticCell<[u8; memory_bytes(BATCH)]> = StaticCell::new();

type Node<F, T> = Device<'static, CriticalSectionRawMutex, F, T, BATCH>;

/// Samples, sends and sleeps, for ever. Called once.
pub async fn run<F: NorFlash, H: Hardware>(board: Board<F, H>) -> ! {
    #[cfg(feature = "tls")]
    let random = board.random;
    let Board { stack, flash, outbox, seed, hardware, .. } = board;
    let (mut rx, mut tx) = ([0; 1024], [0; 2048]);
    let transport = Tcp::to_host(stack, credentials::GATEWAY_HOST, credentials::GATEWAY_PORT, &mut rx, &mut tx);
    #[cfg(feature = "tls")]
    let transport = tls::over(transport, random, || tls::now(RECORDER.unix_ms()));
    let mut device = device(flash, outbox, seed, transport).await;
    let mut life = Life { stack, hardware, interval: INTERVAL, shown: None };
    if let Some(unix_ms) = life.hardware.clock() {
        RECORDER.set_unix_ms(unix_ms);
    }
    loop {
        match life.hardware.mode(life.interval) {
            Mode::Connected => {
                // Nothing is on its way into flash when the life in between ends, so the device may be dropped there.
                select(device.run(&mut downlink()), life.connected()).await;
            }
            Mode::SendThenSleep => life.send_then_sleep(&mut device).await,
        }
    }
}

/// Opens the outbox and makes the device. A range that does not fit the flash is a bug that no retry heals: panics.
async fn device<F: NorFlash, T: Transport>(flash: F, range: Range<u32>, seed: u64, transport: T) -> Node<F, T> {
    let (kib, block_kib) = (range.len() / 1024, F::ERASE_SIZE / 1024);
    // A sensor's newest readings are worth more than its oldest: who looks at the data after a long outage wants to
    // know how things are, and the gaps are counted. A meter or a log of events would rather refuse.
    let outbox = match Outbox::open(flash, range, WhenFull::DropOldest, seed).await {
        Ok(outbox) => outbox,
        Err(error) => panic!("the outbox cannot be opened: {error:?}"),
    };
    log::info!("outbox: {kib} KiB in blocks of {block_kib} KiB, {} records wait in it", outbox.len());
    let user = credentials::GATEWAY_USER;
    let config = Config {
        login: (!user.is_empty()).then_some((user, credentials::GATEWAY_PASSWORD.as_bytes())),
        window: WINDOW,
        keep_alive: keep_alive(INTERVAL),
        ..Config::new(credentials::DEVICE_ID, credentials::TOPIC)
    };
    match Device::new(&RECORDER, outbox, transport, config, MEMORY.init([0; _]), seed) {
        Ok(device) => device,
        Err(error) => panic!("the device cannot be made: {error:?}"),
    }
}

/// A board that stays connected and sends seldom is not to send for the connection alone: a PINGREQ comes at three quarters of
/// this, and never if there are records before. Routers forget a silent connection after twenty minutes or so.
fn keep_alive(interval: Duration) -> Duration {
    (interval * KEEP_ALIVE_INTERVALS).clamp(*KEEP_ALIVE.start(), *KEEP_ALIVE.end())
}

/// How long a board sleeps that had this left: until the next reading is due, or until trying again makes sense.
fn pause(interval: Duration, retry_at: Option<Instant>, now: Instant) -> Duration {
    // Trying again comes with a reading, as all a board does: so never before one, and half an interval late at most.
    let retry = retry_at.map_or(Duration::MIN, |at| at.saturating_duration_since(now));
    interval.max(retry.min(interval + interval / 2))
}

/// What the gateway says goes there.
#[cfg(not(feature = "ota"))]
fn downlink() -> impl headwater_device::Downlink {
    downlink::Wishes
}

/// What the gateway says goes there, and what it says of firmware to the updater.
#[cfg(feature = "ota")]
fn downlink() -> impl headwater_device::Downlink {
    updates::downlink()
}

/// The loop beside the device: what it measures and shows.
struct Life<H> {
    stack: Stack<'static>,
    hardware: H,
    interval: Duration,
    shown: Option<Status>,
}

impl<H: Hardware> Life<H> {
    /// Measures as long as the board stays connected at the interval that is wished for.
    async fn connected(&mut self) {
        let mut due = Instant::now();
        loop {
            let status = RECORDER.status();
            self.show(status).await;
            let is_idle = status.pending == 0 && RECORDER.is_empty();
            if is_idle && self.hardware.mode(self.interval) != Mode::Connected {
                return;
            }
            let news = RECORDER.status_change(&status);
            match select4(Timer::at(due), NEW_INTERVAL.wait(), BLINK.wait(), news).await {
                Either4::First(()) => {
                    self.measure().await;
                    due = Instant::now() + self.interval;
                }
                Either4::Second(interval) => {
                    self.set_interval(interval);
                    due = due.min(Instant::now() + interval);
                }
                Either4::Third(()) => self.blink().await,
                Either4::Fourth(_) => {}
            }
        }
    }

    /// One round of a board that sleeps. What could not be sent stays in the outbox for the next one.
    async fn send_then_sleep<F: NorFlash, T: Transport>(&mut self, device: &mut Node<F, T>) {
        self.measure().await;
        let rest = {
            let mut downlink = downlink();
            let sending = device.flush(&mut downlink, AWAKE_MAX);
            let showing = async {
                loop {
                    let status = RECORDER.status();
                    self.show(status).await;
                    RECORDER.status_change(&status).await;
                }
            };
            match select(sending, showing).await {
                Either::First(rest) => rest,
                Either::Second(never) => never,
            }
        };
        self.show(RECORDER.status()).await;
        if rest.pending > 0 {
            log::warn!("{} records wait in the outbox for the next round", rest.pending);
        }
        if let Some(interval) = NEW_INTERVAL.try_take() {
            self.set_interval(interval);
        }
        if BLINK.try_take().is_some() {
            self.blink().await;
        }
        if let Some(unix_ms) = RECORDER.unix_ms() {
            self.hardware.set_clock(unix_ms);
        }
        self.hardware.sleep(pause(self.interval, rest.retry_at, Instant::now())).await;
    }

    async fn measure(&mut self) {
        let sample = self.hardware.sample().await;
        let ts = RECORDER.unix_ms().map_or(Null.into(), |ms| Value::Integer(ms as i64));
        let uptime = Value::Integer(Instant::now().as_millis() as i64);
        let temperature = sample.temperature_milli_c.map_or(Null.into(), |milli| Value::Integer(milli.into()));
        log::debug!("{sample:?}");
        // Only a flash that does not write lets the recorder fill up. The sensor goes on, and the counters tell.
        if let Err(error) = RECORDER.try_reading(READING, &[ts, uptime, temperature]) {
            log::error!("a reading is lost: {error:?}");
        }
    }

    fn set_interval(&mut self, interval: Duration) {
        if interval != self.interval {
            log::info!("a reading every {} s from now on", interval.as_secs());
            self.interval = interval;
        }
    }

    async fn blink(&mut self) {
        self.hardware.blink().await;
        // Whatever the light showed before.
        if let Some(shown) = self.shown {
            self.hardware.status(shown).await;
        }
    }

    async fn show(&mut self, status: headwater_device::Status) {
        let is_up = self.stack.is_config_up();
        let has_all = status.pending == 0 && RECORDER.is_empty();
        let now = if has_all && status.failure.is_none() && status.counts.connections > 0 {
            Status::Acknowledged
        } else if !is_up {
            Status::WaitingForNetwork
        } else if status.failure.is_some() {
            Status::Failed
        } else {
            Status::Sending
        };
        if self.shown == Some(now) {
            return;
        }
        self.shown = Some(now);
        match now {
            Status::WaitingForNetwork => log::info!("waiting for the network"),
            Status::Sending => log::debug!("sending"),
            Status::Acknowledged => {
                #[cfg(feature = "ota")]
                updates::acknowledged();
                log::info!("all acknowledged, up to record {}", status.next_number.wrapping_sub(1));
            }
            Status::Failed => self.complain(status.failure),
        }
        self.hardware.status(now).await;
    }

    fn complain(&self, failure: Option<Failure>) {
        let (host, port) = (credentials::GATEWAY_HOST, credentials::GATEWAY_PORT);
        match failure {
            Some(Failure::NoStream) => log::warn!("no connection to {host}:{port}"),
            Some(Failure::NoGateway) => log::warn!("{host}:{port} does not speak MQTT 5, or hung up"),
            Some(Failure::Refused(0x86 | 0x87)) => log::warn!("the gateway refuses gateway_user or gateway_password"),
            Some(Failure::Refused(reason)) => log::warn!("the gateway refuses with MQTT reason {reason:#04x}"),
            Some(Failure::TimedOut) | None => log::warn!("no answer from {host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_connection_lives_as_long_as_some_readings_take_and_neither_for_ever_nor_for_a_moment() {
        for (interval, expected) in [(1, 60), (10, 60), (30, 90), (300, 900), (3_600, 1_200)] {
            assert_eq!(keep_alive(s(interval)), s(expected), "{interval}");
        }
    }

    #[test]
    fn a_board_that_found_no_gateway_sleeps_until_it_makes_sense_to_try_again_but_measures_on() {
        let now = Instant::from_secs(1_000);
        for (interval, retry_in, expected) in
            [(10, None, 10), (10, Some(3), 10), (10, Some(12), 12), (10, Some(60), 15)]
        {
            let retry_at = retry_in.map(|seconds| now + s(seconds));
            assert_eq!(pause(s(interval), retry_at, now), s(expected), "{interval} {retry_in:?}");
        }
        assert_eq!(pause(s(10), Some(Instant::from_secs(1)), now), s(10), "long ago");
    }
}
