//! Firmware updates through the gateway: offered, downloaded part by part into the boot loader's second partition, verified,
//! and tried. Behind the feature `ota`; the boot loader is `embassy-boot`.
//!
//! - **Resumable**: what is in flash stays there. After a reset at any moment the download goes on at most 4 KiB before where
//!   it was (or at the beginning of a flash page that is larger and was torn).
//! - **Signed**: an Ed25519 signature over the firmware's SHA-512 digest, as embassy-boot has it, is checked against a key that
//!   is baked in before the boot loader hears of the firmware. It covers the firmware and not the version's name: who holds
//!   the gateway may offer an older firmware that was signed once.
//!   (`salty` does it; `ed25519-dalek` would take 32 KB of flash more. embassy-boot's own check reads the flash two bytes at a time
//!   in one stretch.)
//! - **On trial**: a new firmware that does not call [`Mailbox::confirm`] in time, or is reset before, is exchanged for the one
//!   before. An offer that failed is remembered and not tried again; the same firmware offered once more is a new offer.
//! - **Small**: two parts of 256 bytes in RAM beside the one that is written.
//!
//! The driver hears and speaks through [`Mailbox::downlink`]; a task beside it runs the [`Updater`].

mod journal;
mod mailbox;
#[cfg(test)]
mod tests;

pub use mailbox::{FirmwareDownlink, Mailbox};

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use embassy_boot::{FirmwareState, State};
use embassy_futures::select::{Either, select};
use embassy_futures::yield_now;
use embassy_sync::blocking_mutex::raw::RawMutex;
use embassy_time::{Duration, Instant, Timer, with_timeout};
use embedded_storage_async::nor_flash::NorFlash;
use journal::{Entry, Journal, Stage};
use mailbox::{Got, Offered, Status};
use salty::{PublicKey, Sha512, Signature};

use crate::trace::{info, warning};

/// Bytes in one part.
const PART_BYTES: usize = 256;
/// The largest unit in which a flash may be programmed.
const WORD_BYTES_MAX: usize = 32;
/// Progress is noted every so many bytes.
const NOTE_EVERY_BYTES: u32 = 4096;
/// After the flash has failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long to wait until the gateway has heard that the firmware is verified.
const TELL_WITHIN: Duration = Duration::from_secs(5);
const TOLD_EVERY: Duration = Duration::from_millis(50);

/// Why an offer is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Rejection {
    /// The signature is not of this firmware and the key that is baked in.
    Signature,
    /// Empty, or longer than the partition.
    Length,
    /// The gateway has fewer bytes than it said.
    Truncated,
    /// It ran, did not confirm itself, and was exchanged for the one before.
    RolledBack,
    /// The offer is not one.
    Malformed,
}

impl Rejection {
    /// In the journal. Never reused.
    fn code(self) -> u8 {
        match self {
            Rejection::Signature => 1,
            Rejection::Length => 2,
            Rejection::Truncated => 3,
            Rejection::RolledBack => 4,
            Rejection::Malformed => 5,
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        let all = [Self::Signature, Self::Length, Self::Truncated, Self::RolledBack, Self::Malformed];
        all.into_iter().find(|why| why.code() == code)
    }

    fn text(self) -> &'static str {
        match self {
            Rejection::Signature => ": wrong signature",
            Rejection::Length => ": does not fit",
            Rejection::Truncated => ": truncated",
            Rejection::RolledBack => ": rolled back",
            Rejection::Malformed => ": malformed offer",
        }
    }
}

/// The parts of the flash that an update needs.
#[derive(Debug)]
pub struct Partitions<D, S, J> {
    /// The boot loader's DFU partition: as long as the active one, and a page.
    pub dfu: D,
    /// The boot loader's state.
    pub state: S,
    /// Two pages at least, for what the device knows of its updates.
    pub journal: J,
}

/// Why there is no updater.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum SetupError {
    /// Words above 32 bytes, pages that are no multiple of 256 bytes, or fewer than two of them.
    Geometry,
    /// The baked-in key is not an Ed25519 public key.
    Key,
}

/// Why the board has to be reset now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Restart {
    /// A new firmware is verified: the boot loader exchanges it.
    Update,
    /// This firmware was not confirmed in time: the boot loader brings back the one before.
    Rollback,
}

/// Downloads, verifies and tries firmware.
pub struct Updater<'a, M: RawMutex, D, S, J> {
    mailbox: &'a Mailbox<M>,
    key: PublicKey,
    trial_within: Duration,
    dfu: D,
    state: S,
    journal: Journal<J>,
    known: Option<Entry>,
}

/// What comes after an offer was served.
enum Next {
    Offer,
    Restart,
}

impl<'a, M: RawMutex, D: NorFlash, S: NorFlash, J: NorFlash> Updater<'a, M, D, S, J> {
    const PAGE: u32 = D::ERASE_SIZE as u32;

    /// With the public key that new firmware must be signed with. A new firmware has `trial_within` to call
    /// [`Mailbox::confirm`].
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(
        mailbox: &'a Mailbox<M>,
        partitions: Partitions<D, S, J>,
        public_key: &[u8; 32],
        trial_within: Duration,
    ) -> Result<Self, SetupError> {
        let Partitions { dfu, state, journal } = partitions;
        let fits = PART_BYTES.is_multiple_of(D::WRITE_SIZE)
            && PART_BYTES.is_multiple_of(D::READ_SIZE)
            && D::WRITE_SIZE <= WORD_BYTES_MAX
            && S::WRITE_SIZE.max(S::READ_SIZE) <= WORD_BYTES_MAX
            && D::ERASE_SIZE.is_multiple_of(PART_BYTES)
            && dfu.capacity() > D::ERASE_SIZE
            && Journal::fits(&journal);
        if !fits {
            return Err(SetupError::Geometry);
        }
        let key = PublicKey::try_from(public_key).map_err(|_| SetupError::Key)?;
        let journal = Journal::new(journal);
        Ok(Updater { mailbox, key, trial_within, dfu, state, journal, known: None })
    }

    /// Runs until the board has to be reset. May be dropped at any time, and run again.
    pub async fn run(&mut self) -> Restart {
        loop {
            match self.serve().await {
                Ok(restart) => return restart,
                Err(Broken) => {
                    warning!("the flash does not work: no update now");
                    Timer::after(PAUSE).await;
                }
            }
        }
    }

    async fn serve(&mut self) -> Result<Restart, Broken> {
        self.mailbox.begin();
        self.known = self.journal.open().await.or_broken()?;
        if self.boot_state().await? == State::Swap {
            self.mailbox.set_status(Status::Trying);
            let confirmed = poll_fn(|context| self.mailbox.poll_confirmed(context));
            if with_timeout(self.trial_within, confirmed).await.is_err() {
                return Ok(Restart::Rollback);
            }
            // In this order: were the second lost, the boot loader would bring back the old firmware, and be believed.
            let key = self.known.map_or(0, |known| known.key);
            self.note(key, Stage::Installed).await?;
            self.boot(Mark::Good).await?;
            info!("the new firmware is good");
        } else if self.boot_state().await? == State::Revert {
            if let Some(Entry { key, stage: Stage::Verified | Stage::Installed }) = self.known {
                self.note(key, Stage::Rejected(Rejection::RolledBack)).await?;
            }
            self.boot(Mark::Good).await?;
        }
        self.mailbox.set_status(Status::Running);
        loop {
            let Some((key, offer)) = poll_fn(|context| self.mailbox.poll_news(context)).await else {
                self.mailbox.set_status(Status::Running);
                continue;
            };
            let Some(offer) = offer else {
                self.mailbox.set_status(Status::Rejected(Rejection::Malformed));
                continue;
            };
            if let Next::Restart = self.take(key, &offer).await? {
                return Ok(Restart::Update);
            }
        }
    }

    /// Does what an offer asks for, as far as it was not done before.
    async fn take(&mut self, key: u32, offer: &Offered) -> Result<Next, Broken> {
        let known = self.known.filter(|known| known.key == key).map(|known| known.stage);
        let from = match known {
            Some(Stage::Rejected(why)) => {
                self.mailbox.set_status(Status::Rejected(why));
                return Ok(Next::Offer);
            }
            Some(Stage::Installed) => {
                self.mailbox.set_status(Status::Running);
                return Ok(Next::Offer);
            }
            _ if offer.version() == self.mailbox.version().as_bytes() => {
                self.note(key, Stage::Installed).await?;
                self.mailbox.set_status(Status::Running);
                return Ok(Next::Offer);
            }
            // The boot loader was not told: it would have acted.
            Some(Stage::Verified) => offer.length,
            Some(Stage::Download(position)) => position.min(offer.length),
            None => {
                let room = (self.dfu.capacity() as u32).saturating_sub(Self::PAGE);
                if offer.length == 0 || offer.length > room {
                    return self.reject(key, Rejection::Length).await;
                }
                self.note(key, Stage::Download(0)).await?;
                0
            }
        };
        let downloaded = self.download(key, offer, from).await?;
        self.mailbox.asked_all();
        match downloaded {
            Downloaded::All => {}
            Downloaded::Truncated => return self.reject(key, Rejection::Truncated).await,
            Downloaded::Superseded => return Ok(Next::Offer),
        }
        if !self.is_signed(offer).await? {
            return self.reject(key, Rejection::Signature).await;
        }
        self.note(key, Stage::Verified).await?;
        self.boot(Mark::Update).await?;
        self.mailbox.set_status(Status::Verified);
        let told = async {
            while !self.mailbox.is_told() {
                Timer::after(TOLD_EVERY).await;
            }
            // Said is not heard: time for the last byte to leave.
            Timer::after(TOLD_EVERY * 4).await;
        };
        let _ = with_timeout(TELL_WITHIN, told).await;
        Ok(Next::Restart)
    }

    async fn reject(&mut self, key: u32, why: Rejection) -> Result<Next, Broken> {
        warning!("an offered firmware is rejected: {:?}", why);
        self.note(key, Stage::Rejected(why)).await?;
        self.mailbox.set_status(Status::Rejected(why));
        Ok(Next::Offer)
    }

    /// Downloads from here on, or a little before.
    async fn download(&mut self, key: u32, offer: &Offered, from: u32) -> Result<Downloaded, Broken> {
        let mut position = self.resume(key, from, offer.length).await?;
        self.mailbox.ask(offer.id, position, offer.length);
        let mut part = [0; PART_BYTES];
        while position < offer.length {
            let percent = u64::from(position) * 10 / u64::from(offer.length) * 10;
            self.mailbox.set_status(Status::Downloading(percent as u8));
            let bytes = match self.part(position, &mut part).await {
                Got::Bytes(bytes) => bytes,
                Got::Truncated => return Ok(Downloaded::Truncated),
                Got::News => return Ok(Downloaded::Superseded),
            };
            if position.is_multiple_of(Self::PAGE) {
                self.dfu.erase(position, position + Self::PAGE).await.or_broken()?;
            }
            let padded = bytes.next_multiple_of(D::WRITE_SIZE).min(PART_BYTES);
            part.get_mut(bytes..padded).unwrap_or_default().fill(0xff);
            self.dfu.write(position, part.get(..padded).unwrap_or_default()).await.or_broken()?;
            position += bytes as u32;
            if position.is_multiple_of(NOTE_EVERY_BYTES) || position == offer.length {
                self.note(key, Stage::Download(position)).await?;
            }
        }
        Ok(Downloaded::All)
    }

    /// Where to go on when bytes up to `from` are known to be in flash: there if nothing is behind them in their page, else
    /// at the page's beginning.
    async fn resume(&mut self, key: u32, from: u32, length: u32) -> Result<u32, Broken> {
        let page = from - from % Self::PAGE;
        if from == page || from == length {
            return Ok(from);
        }
        let mut bytes = [0; PART_BYTES];
        for at in (from..page + Self::PAGE).step_by(PART_BYTES) {
            self.dfu.read(at, &mut bytes).await.or_broken()?;
            if bytes.iter().any(|byte| *byte != 0xff) {
                self.note(key, Stage::Download(page)).await?;
                return Ok(page);
            }
        }
        Ok(from)
    }

    /// The next part, asked for until it comes.
    async fn part(&mut self, offset: u32, to: &mut [u8; PART_BYTES]) -> Got {
        let mailbox = self.mailbox;
        loop {
            let came = pin!(poll_fn(|context| mailbox.poll_part(context, offset, to)));
            // When there is nothing to be late, the driver has not asked yet: it wakes this task when it has.
            let late = poll_fn(|context| match mailbox.late_at() {
                Some(at) if at <= Instant::now() => Poll::Ready(()),
                // A timer that was just made is never ready: this one only wakes.
                Some(at) => pin!(Timer::at(at)).poll(context),
                None => Poll::Pending,
            });
            match select(came, late).await {
                Either::First(got) => return got,
                Either::Second(()) => mailbox.ask_again(Instant::now()),
            }
        }
    }

    async fn is_signed(&mut self, offer: &Offered) -> Result<bool, Broken> {
        let mut digest = Sha512::new();
        let mut bytes = [0; PART_BYTES];
        for at in (0..offer.length).step_by(PART_BYTES) {
            self.dfu.read(at, &mut bytes).await.or_broken()?;
            let end = (offer.length - at).min(PART_BYTES as u32) as usize;
            digest.update(bytes.get(..end).unwrap_or_default());
            yield_now().await;
        }
        let signature = Signature::from(&offer.signature);
        Ok(self.key.verify(&digest.finalize(), &signature).is_ok())
    }

    async fn note(&mut self, key: u32, stage: Stage) -> Result<(), Broken> {
        let entry = Entry { key, stage };
        self.journal.append(entry).await.or_broken()?;
        self.known = Some(entry);
        Ok(())
    }

    async fn boot_state(&mut self) -> Result<State, Broken> {
        let mut word = [0; WORD_BYTES_MAX];
        let word = word.get_mut(..S::WRITE_SIZE.max(S::READ_SIZE)).ok_or(Broken)?;
        FirmwareState::new(&mut self.state, word).get_state().await.or_broken()
    }

    async fn boot(&mut self, mark: Mark) -> Result<(), Broken> {
        let mut word = [0; WORD_BYTES_MAX];
        let word = word.get_mut(..S::WRITE_SIZE.max(S::READ_SIZE)).ok_or(Broken)?;
        let mut state = FirmwareState::new(&mut self.state, word);
        match mark {
            Mark::Good => state.mark_booted().await.or_broken(),
            Mark::Update => state.mark_updated().await.or_broken(),
        }
    }
}

/// What the boot loader is told.
enum Mark {
    Good,
    Update,
}

enum Downloaded {
    All,
    Truncated,
    Superseded,
}

/// The flash does not work.
struct Broken;

trait OrBroken<T> {
    fn or_broken(self) -> Result<T, Broken>;
}

impl<T, E> OrBroken<T> for Result<T, E> {
    fn or_broken(self) -> Result<T, Broken> {
        self.map_err(|_| Broken)
    }
}
