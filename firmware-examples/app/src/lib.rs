//! What every example board does, and what a board has to bring.
//!
//! A board crate sets up its clocks, its network stack, its flash and its sensor, puts them into a [`Board`] and
//! calls [`run`], which never returns. Nothing in here knows a chip: the way of a record is sensor, outbox in flash,
//! gateway, and it is the same on all of them.
//!
//! For now `run` speaks just enough MQTT to place one acknowledged record at a time; the device SDK with its outbox
//! takes that over, behind the same [`Board`].

#![no_std]

mod packet;
mod session;

use core::ops::Range;

use embassy_net::{Stack, StackResources};
use embassy_time::{Duration, Timer};
use embedded_storage_async::nor_flash::NorFlash;

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
    /// The part of `flash` that is the outbox: whole erase blocks that no code and nobody else uses.
    pub outbox: Range<u32>,
    /// From the chip's true random number generator, fresh in every boot: jitter and the outbox's identity come of it.
    pub seed: u64,
    /// Sensor, status light and sleep.
    pub hardware: H,
}

/// The board's side that is neither network nor flash.
#[allow(async_fn_in_trait)] // One task owns it and nothing is spawned with it, so no bound on the future is missed.
pub trait Hardware {
    /// One reading. It must not fail: a broken sensor leaves its field out.
    async fn sample(&mut self) -> Sample;

    /// Called on every change of the state; a board with a light shows it.
    async fn status(&mut self, _status: Status) {}

    /// Waits until the next reading is due. A board that can do better than an idle executor does it here; it may
    /// also never return and come back through a reset, as the outbox in flash outlives that.
    async fn sleep(&mut self, duration: Duration) {
        Timer::after(duration).await;
    }
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

/// From one reading to the next.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Samples, sends and sleeps, for ever.
pub async fn run<F: NorFlash, H: Hardware>(board: Board<F, H>) -> ! {
    let Board { stack, mut flash, outbox, seed, mut hardware } = board;
    check_outbox(&mut flash, &outbox).await;

    let mut backoff = Backoff::new(seed);
    let mut sequence: u32 = 0;
    loop {
        if !stack.is_config_up() {
            hardware.status(Status::WaitingForNetwork).await;
            log::info!("waiting for the network");
            stack.wait_config_up().await;
            if let Some(config) = stack.config_v4() {
                log::info!("network is up, address {}", config.address);
            }
        }
        hardware.status(Status::Sending).await;
        let sample = hardware.sample().await;
        match session::send(stack, sequence, sample).await {
            Ok(()) => {
                log::info!("record {sequence} acknowledged, {sample:?}");
                hardware.status(Status::Acknowledged).await;
                sequence = sequence.wrapping_add(1);
                backoff.reset();
                hardware.sleep(INTERVAL).await;
            }
            Err(error) => {
                let wait = backoff.next();
                log::warn!("{error}; next try in {} ms", wait.as_millis());
                hardware.status(Status::Failed).await;
                Timer::after(wait).await;
            }
        }
    }
}

/// A board whose outbox lies across erase blocks or outside its flash has a bug that no retry heals: say so at once.
async fn check_outbox<F: NorFlash>(flash: &mut F, outbox: &Range<u32>) {
    let block = F::ERASE_SIZE as u32;
    assert!(
        outbox.start.is_multiple_of(block) && outbox.end.is_multiple_of(block),
        "the outbox must be whole erase blocks"
    );
    assert!(outbox.start < outbox.end && outbox.end as usize <= flash.capacity(), "the outbox must lie in the flash");
    let mut head = [0; 32];
    match flash.read(outbox.start, &mut head).await {
        Ok(()) => log::info!("outbox: {} KiB in blocks of {} KiB", outbox.len() / 1024, block / 1024),
        Err(error) => log::error!("outbox cannot be read: {error:?}"),
    }
}

/// Waits that double up to a minute, each a random part of its bound, so that a fleet does not return all at once.
struct Backoff {
    bound_ms: u64,
    random: u64,
}

impl Backoff {
    const FIRST_MS: u64 = 1_000;
    const MAX_MS: u64 = 60_000;

    fn new(seed: u64) -> Self {
        Self { bound_ms: Self::FIRST_MS, random: seed | 1 }
    }

    fn reset(&mut self) {
        self.bound_ms = Self::FIRST_MS;
    }

    fn next(&mut self) -> Duration {
        // xorshift64: never zero from an odd seed, and plenty for jitter.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let wait = self.bound_ms / 2 + self.random % (self.bound_ms / 2 + 1);
        self.bound_ms = (self.bound_ms * 2).min(Self::MAX_MS);
        Duration::from_millis(wait)
    }
}
