//! Where the driver, which hears and speaks to the gateway, and the updater, which writes to flash, meet. A state machine:
//! nothing here waits.

use crate::downlink::{Blob, Downlink};
use crate::ota::{PART_BYTES, Rejection};
use core::cell::RefCell;
use core::task::{Context, Poll};
use embassy_sync::blocking_mutex::Mutex;
use embassy_sync::blocking_mutex::raw::RawMutex;
use embassy_sync::waitqueue::WakerRegistration;
use embassy_time::{Duration, Instant};
use headwater_wire::crc32;
use headwater_wire::firmware::{
    OFFER_TOPIC, Offer, PART_TOPIC, Part, REQUEST_TOPIC, Request, STATUS_TOPIC, VERSION_BYTES_MAX,
};

/// Parts on their way at once: one is written while the next comes.
const WINDOW: usize = 2;
/// How long to wait for a part before it is asked for again; doubled each time.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const ANSWER_WITHIN_MAX: Duration = Duration::from_secs(60);

/// What a device tells of its firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Running,
    Trying,
    /// Per cent.
    Downloading(u8),
    Verified,
    Rejected(Rejection),
}

/// An offer that was read. Its version is only ever told, and compared.
#[derive(Clone, Debug)]
pub(super) struct Offered {
    pub id: u32,
    pub length: u32,
    pub signature: [u8; 64],
    version: [u8; VERSION_BYTES_MAX],
    version_bytes: usize,
}

impl Offered {
    fn read(payload: &[u8]) -> Option<Self> {
        let offer = Offer::read(payload).ok()?;
        let mut version = [0; VERSION_BYTES_MAX];
        version.get_mut(..offer.version.len())?.copy_from_slice(offer.version.as_bytes());
        let version_bytes = offer.version.len();
        Some(Offered { id: offer.id, length: offer.length, signature: *offer.signature, version, version_bytes })
    }

    pub fn version(&self) -> &[u8] {
        self.version.get(..self.version_bytes).unwrap_or_default()
    }
}

/// What came for [`Mailbox::poll_part`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Got {
    /// So many bytes, as many as were asked for.
    Bytes(usize),
    /// The gateway has fewer bytes than it offered.
    Truncated,
    /// Another offer.
    News,
}

/// Between the device's driver and its [`Updater`](super::Updater). Put it into a `static`.
pub struct Mailbox<M: RawMutex> {
    version: &'static str,
    inner: Mutex<M, RefCell<Inner>>,
}

struct Inner {
    /// The gateway's offer and its checksum; no offer if it could not be read.
    offer: Option<(u32, Option<Offered>)>,
    /// The updater has not seen the offer yet.
    news: bool,
    wanted: Option<Wanted>,
    slots: [Slot; WINDOW],
    confirmed: bool,
    status: Status,
    tell: bool,
    driver: WakerRegistration,
    updater: WakerRegistration,
}

/// What is being downloaded.
struct Wanted {
    id: u32,
    /// The next byte that no slot is for.
    next: u32,
    end: u32,
    patience: Duration,
}

struct Slot {
    state: SlotState,
    offset: u32,
    length: usize,
    bytes: [u8; PART_BYTES],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Free,
    ToAsk,
    Asked(Instant),
    /// So many bytes came.
    Here(usize),
}

impl Slot {
    const FREE: Slot = Slot { state: SlotState::Free, offset: 0, length: 0, bytes: [0; PART_BYTES] };
}

impl<M: RawMutex> Mailbox<M> {
    /// For a firmware of this version, which is 1 to 32 visible ASCII characters.
    pub const fn new(version: &'static str) -> Self {
        let inner = Inner {
            offer: None,
            news: false,
            wanted: None,
            slots: [Slot::FREE; WINDOW],
            confirmed: false,
            status: Status::Running,
            tell: true,
            driver: WakerRegistration::new(),
            updater: WakerRegistration::new(),
        };
        Mailbox { version, inner: Mutex::new(RefCell::new(inner)) }
    }

    /// The firmware that runs is good: it does what it is for, and reaches its gateway. One that never says so is taken
    /// back.
    pub fn confirm(&self) {
        self.with(|inner| {
            inner.confirmed = true;
            inner.updater.wake();
        });
    }

    /// Whether a firmware is on its way. A device that sleeps between its sends stays connected
    /// ([`Device::run`](crate::Device::run)) until it is not.
    pub fn is_downloading(&self) -> bool {
        self.with(|inner| inner.news || inner.wanted.is_some()).unwrap_or(false)
    }

    /// The application's own messages go on to `app`.
    pub fn downlink<A: Downlink>(&self, app: A) -> FirmwareDownlink<'_, M, A> {
        FirmwareDownlink { mailbox: self, app }
    }

    /// The updater begins, perhaps anew.
    pub(super) fn begin(&self) {
        self.with(|inner| {
            inner.news = inner.offer.is_some();
            inner.wanted = None;
        });
    }

    pub(super) fn version(&self) -> &'static str {
        self.version
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> Option<T> {
        self.inner.lock(|inner| inner.try_borrow_mut().ok().map(|mut inner| work(&mut inner)))
    }

    pub(super) fn set_status(&self, status: Status) {
        self.with(|inner| {
            if inner.status != status {
                inner.status = status;
                inner.tell = true;
                inner.driver.wake();
            }
        });
    }

    pub(super) fn is_told(&self) -> bool {
        self.with(|inner| !inner.tell).unwrap_or(true)
    }

    pub(super) fn poll_confirmed(&self, context: &Context<'_>) -> Poll<()> {
        self.poll(context, |inner| inner.confirmed.then_some(()))
    }

    /// The gateway's offer and its checksum, once it is another than before.
    pub(super) fn poll_news(&self, context: &Context<'_>) -> Poll<Option<(u32, Option<Offered>)>> {
        self.poll(context, |inner| core::mem::take(&mut inner.news).then(|| inner.offer.clone()))
    }

    /// Asks for all bytes of an offer from here on.
    pub(super) fn ask(&self, id: u32, from: u32, end: u32) {
        self.with(|inner| {
            inner.wanted = Some(Wanted { id, next: from, end, patience: ANSWER_WITHIN });
            inner.slots.iter_mut().for_each(|slot| slot.state = SlotState::Free);
            inner.fill();
        });
    }

    /// No more is wanted.
    pub(super) fn asked_all(&self) {
        self.with(|inner| inner.wanted = None);
    }

    /// The bytes at this offset, the next of those asked for.
    pub(super) fn poll_part(&self, context: &Context<'_>, offset: u32, to: &mut [u8; PART_BYTES]) -> Poll<Got> {
        self.poll(context, |inner| {
            if inner.news {
                return Some(Got::News);
            }
            let slot = inner.slots.iter_mut().find(|slot| slot.offset == offset)?;
            let SlotState::Here(bytes) = slot.state else { return None };
            slot.state = SlotState::Free;
            if bytes < slot.length {
                return Some(Got::Truncated);
            }
            to.copy_from_slice(&slot.bytes);
            inner.fill();
            Some(Got::Bytes(bytes))
        })
    }

    fn poll<T>(&self, context: &Context<'_>, ready: impl FnOnce(&mut Inner) -> Option<T>) -> Poll<T> {
        let found = self.with(|inner| {
            let found = ready(inner);
            if found.is_none() {
                inner.updater.register(context.waker());
            }
            found
        });
        found.flatten().map_or(Poll::Pending, Poll::Ready)
    }

    /// When the next part is late, if one is on its way.
    pub(super) fn late_at(&self) -> Option<Instant> {
        self.with(|inner| {
            let patience = inner.wanted.as_ref()?.patience;
            let asked = inner.slots.iter().filter_map(|slot| match slot.state {
                SlotState::Asked(at) => Some(at + patience),
                _ => None,
            });
            asked.min()
        })
        .flatten()
    }

    /// Asks again for what is late.
    pub(super) fn ask_again(&self, now: Instant) {
        self.with(|inner| {
            let Some(wanted) = &mut inner.wanted else { return };
            let mut is_late = false;
            for slot in &mut inner.slots {
                if let SlotState::Asked(at) = slot.state
                    && at + wanted.patience <= now
                {
                    slot.state = SlotState::ToAsk;
                    is_late = true;
                }
            }
            if is_late {
                wanted.patience = (wanted.patience * 2).min(ANSWER_WITHIN_MAX);
                inner.driver.wake();
            }
        });
    }

    fn heard(&self, what: &str, payload: &[u8]) -> bool {
        match what {
            OFFER_TOPIC => self.with(|inner| inner.offered(payload)),
            PART_TOPIC => self.with(|inner| inner.part(payload)),
            _ => return false,
        };
        true
    }

    fn outgoing(&self, now: Instant, to: &mut [u8]) -> Option<(&'static str, usize)> {
        self.with(|inner| {
            if core::mem::take(&mut inner.tell) {
                let offered = inner.offer.as_ref().and_then(|(_, offer)| offer.as_ref()).map(Offered::version);
                return Some((STATUS_TOPIC, inner.status.write(self.version.as_bytes(), offered, to)?));
            }
            let id = inner.wanted.as_ref()?.id;
            let to_ask = inner.slots.iter_mut().filter(|slot| slot.state == SlotState::ToAsk);
            let slot = to_ask.min_by_key(|slot| slot.offset)?;
            slot.state = SlotState::Asked(now);
            inner.updater.wake();
            let request = Request { id, offset: slot.offset, length: slot.length as u16 }.to_bytes();
            to.get_mut(..request.len())?.copy_from_slice(&request);
            Some((REQUEST_TOPIC, request.len()))
        })
        .flatten()
    }

    fn poll_outgoing(&self, context: &Context<'_>) -> Poll<()> {
        let is_some = self.with(|inner| {
            inner.driver.register(context.waker());
            inner.tell || inner.wanted.is_some() && inner.slots.iter().any(|slot| slot.state == SlotState::ToAsk)
        });
        if is_some == Some(true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Inner {
    fn offered(&mut self, payload: &[u8]) {
        let key = crc32(0, payload);
        if self.offer.as_ref().is_some_and(|(known, _)| *known == key) {
            // The gateway repeats itself after each connect: so does the device.
            self.tell = true;
            return;
        }
        self.offer = (!payload.is_empty()).then(|| (key, Offered::read(payload)));
        self.wanted = None;
        self.news = true;
        self.updater.wake();
    }

    fn part(&mut self, payload: &[u8]) {
        let Ok(part) = Part::read(payload) else { return };
        let Some(wanted) = self.wanted.as_mut().filter(|wanted| wanted.id == part.id) else { return };
        let slot = self
            .slots
            .iter_mut()
            .find(|slot| slot.offset == part.offset && matches!(slot.state, SlotState::Asked(_) | SlotState::ToAsk));
        if let Some(slot) = slot
            && part.bytes.len() <= slot.length
            && let Some(to) = slot.bytes.get_mut(..part.bytes.len())
        {
            to.copy_from_slice(part.bytes);
            slot.state = SlotState::Here(part.bytes.len());
            wanted.patience = ANSWER_WITHIN;
            self.updater.wake();
        }
    }

    /// Gives free slots the next bytes.
    fn fill(&mut self) {
        let Some(wanted) = &mut self.wanted else { return };
        for slot in self.slots.iter_mut().filter(|slot| slot.state == SlotState::Free) {
            let length = wanted.end.saturating_sub(wanted.next).min(PART_BYTES as u32);
            if length == 0 {
                // Of no part that is still to come.
                slot.offset = u32::MAX;
                continue;
            }
            (slot.state, slot.offset, slot.length) = (SlotState::ToAsk, wanted.next, length as usize);
            wanted.next += length;
            self.driver.wake();
        }
    }
}

impl Status {
    /// The text that the gateway is told; its length.
    fn write(self, own: &[u8], offered: Option<&[u8]>, to: &mut [u8]) -> Option<usize> {
        let offered = offered.unwrap_or(b"?");
        let mut percent = [b' ', b'0', b'0', b'0', b'%'];
        let (word, version, more): (&str, &[u8], &[u8]) = match self {
            Status::Running => ("running ", own, b""),
            Status::Trying => ("trying ", own, b""),
            Status::Downloading(done) => {
                let digits = [done / 100, done / 10 % 10, done % 10].map(|digit| b'0' + digit);
                percent.get_mut(1..4)?.copy_from_slice(&digits);
                ("downloading ", offered, &percent)
            }
            Status::Verified => ("verified ", offered, b""),
            Status::Rejected(Rejection::RolledBack) => ("rolled back ", offered, b""),
            Status::Rejected(why) => ("rejected ", offered, why.text().as_bytes()),
        };
        let mut length = 0;
        for part in [word.as_bytes(), version, more] {
            to.get_mut(length..length + part.len())?.copy_from_slice(part);
            length += part.len();
        }
        Some(length)
    }
}

/// A [`Downlink`] that keeps what is about firmware and passes on the rest.
pub struct FirmwareDownlink<'a, M: RawMutex, A> {
    mailbox: &'a Mailbox<M>,
    app: A,
}

impl<M: RawMutex, A: Downlink> Downlink for FirmwareDownlink<'_, M, A> {
    fn config(&mut self, config: &[u8]) {
        self.app.config(config);
    }

    fn command(&mut self, command: &[u8], answer: &mut [u8]) -> usize {
        self.app.command(command, answer)
    }

    fn blob(&mut self) -> Option<Blob> {
        self.app.blob()
    }

    async fn read_blob(&mut self, id: u32, offset: u64, into: &mut [u8]) -> bool {
        self.app.read_blob(id, offset, into).await
    }

    fn blob_ended(&mut self, id: u32, delivered: bool) {
        self.app.blob_ended(id, delivered);
    }

    fn log_level(&mut self, level: &str) {
        self.app.log_level(level);
    }

    fn message(&mut self, what: &str, payload: &[u8]) {
        if !self.mailbox.heard(what, payload) {
            self.app.message(what, payload);
        }
    }

    fn outgoing(&mut self, to: &mut [u8]) -> Option<(&'static str, usize)> {
        self.mailbox.outgoing(Instant::now(), to).or_else(|| self.app.outgoing(to))
    }

    fn poll_outgoing(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self.mailbox.poll_outgoing(context) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => self.app.poll_outgoing(context),
        }
    }
}
