//! Topics between the gateway and its devices: `$headwater/d/{client id}/...`. No route sees them and no record is made.
//!
//! A device subscribes to its own and is greeted: the time, the last of its numbers that is on disk, and what waits for it.
//! Operators push `config`, `command` and `log` down, and a device answers commands on `answer`. What a device is to be
//! told whenever it comes lies in `Table::Retained` under its topic. Everything goes at QoS 0 over a connection that is
//! either whole or gone, and what is kept is said again with each greeting.

mod fit;

pub use fit::{Takes, TooLarge};

use super::bus::LiveMessage;
use super::codec::{PropertyId, Publish, Reason, Value};
use super::firmware::{Firmware, NoFirmware, Offered};
use super::inlet::{Refusal, blob_producer_of, producer_of};
use crate::clock::Clock;
use crate::log::{AppendError, Batch, Log, Table};
use crate::record::{Header, HeaderId};
use bytes::Bytes;
use headwater_wire::firmware::{
    OFFER_TOPIC, PART_HEAD_BYTES, PART_TOPIC, REQUEST_TOPIC, Request, STATUS_BYTES_MAX, STATUS_TOPIC,
};
use headwater_wire::{Hello, LOSSES_TOPIC, Losses, TOPIC_ROOT};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Topics that begin like this are never routed.
const RESERVED: &str = "$headwater/";
/// Devices that are remembered while they are away.
const DEVICES_MAX: usize = 16 << 10;
/// Messages on their way to one device, and commands it has not answered.
const WAITING_MAX: usize = 8;
/// Longest message down, in bytes.
pub const DOWN_BYTES_MAX: usize = 4 << 10;
/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Messages kept for devices that are away, of all of them.
const KEPT_MAX: usize = 4_096;
/// Parts of firmware that are being read, for all devices. Past it a device asks again.
const PARTS_AT_ONCE: usize = 64;
/// Format of a kept message: this byte, then the message.
const KEPT_FORMAT: u8 = 1;

/// What is kept for a device, in the order in which it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    Config,
    Log,
}

impl Setting {
    const ALL: [Setting; 2] = [Setting::Config, Setting::Log];

    fn name(self) -> &'static str {
        match self {
            Setting::Config => "config",
            Setting::Log => "log",
        }
    }
}

/// Why a setting is not kept.
#[derive(Debug, thiserror::Error)]
pub enum NotKept {
    #[error("not a client id that has topics: 1 to 256 bytes without '/', '+' and '#'")]
    Id,
    #[error("at most {DOWN_BYTES_MAX} bytes")]
    TooLong,
    #[error("{KEPT_MAX} messages are kept for devices already: an empty one removes what is kept")]
    TooMany,
    #[error(transparent)]
    TooLarge(TooLarge),
    #[error(transparent)]
    Log(#[from] AppendError),
}

/// Why a command has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    #[error("the device is not connected, or has not subscribed to its topics")]
    NotConnected,
    #[error("at most {DOWN_BYTES_MAX} bytes")]
    TooLong,
    #[error("{WAITING_MAX} commands wait for the device already")]
    Busy,
    #[error(transparent)]
    TooLarge(TooLarge),
    #[error("no answer in time")]
    Late,
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeviceStatus {
    pub id: String,
    pub connected: bool,
    /// Milliseconds since 1970, as this box believes.
    pub last_heard_ms: u64,
    pub kept: Option<KeptNumber>,
    /// The largest packet it takes, if it has said so.
    pub packet_bytes_max: Option<usize>,
    /// Bytes of the packets of what is kept for it that it does not take, by what it is.
    pub too_large: BTreeMap<&'static str, usize>,
    /// What is offered to it.
    pub firmware: Option<Offered>,
    /// What it last said of its firmware, since this gateway's start.
    pub firmware_status: Option<String>,
    /// Bytes of firmware it was sent, since this gateway's start.
    pub firmware_sent_bytes: u64,
    /// What it last told of records that will never come, since this gateway's start; counted since its own: [`Losses`].
    pub losses: Option<BTreeMap<&'static str, u64>>,
}

/// The last number of a device that is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct KeptNumber {
    pub epoch: u32,
    pub sequence: u64,
}

/// All devices. Cheap to clone.
#[derive(Clone)]
pub struct Devices {
    inner: Arc<Inner>,
}

struct Inner {
    log: Log,
    clock: Clock,
    devices: Mutex<HashMap<String, Device>>,
    /// Names commands. Begins anywhere, so that no answer to an earlier start is taken for one to this.
    correlation: AtomicU64,
    /// One setting is written at a time: their number is bounded.
    keeping: tokio::sync::Mutex<()>,
    /// Once there is a place for it.
    firmware: OnceLock<Firmware>,
    reading: Arc<Semaphore>,
}

#[derive(Default)]
struct Device {
    link: Option<(u64, mpsc::Sender<LiveMessage>)>,
    heard_ms: Arc<AtomicU64>,
    asked: HashMap<u64, oneshot::Sender<Bytes>>,
    firmware_status: Option<String>,
    firmware_sent_bytes: u64,
    losses: Option<Losses>,
    /// As it said when it came last.
    takes: Option<Takes>,
    /// What is kept for it and was found not to fit it.
    too_large: BTreeMap<&'static str, usize>,
}

/// What a client hears when it has subscribed.
pub struct Greeting {
    pub messages: Vec<LiveMessage>,
    /// How many messages are kept for it that are larger than it takes.
    pub left_out: usize,
}

/// A connection's end of its device's topics.
pub struct Link {
    devices: Devices,
    client_id: String,
    connection: u64,
    heard_ms: Arc<AtomicU64>,
    messages: mpsc::Receiver<LiveMessage>,
}

/// Takes a command back when nobody waits for its answer any more.
struct Asked<'a> {
    devices: &'a Devices,
    client_id: &'a str,
    correlation: u64,
}

/// Whether no route may have the topic or filter.
pub fn is_reserved(topic: &str) -> bool {
    topic.starts_with(RESERVED)
}

/// Whether the topic is one on which the client speaks to the gateway itself.
pub fn is_own_way_up(client_id: &str, topic: &str) -> bool {
    let ways = ["answer", LOSSES_TOPIC, REQUEST_TOPIC, STATUS_TOPIC];
    ways.iter().any(|last| topic_of(client_id, last).is_some_and(|own| own == topic))
}

/// The topic on which a client answers; `None` if its id does not fit one level.
fn own_answer(client_id: &str) -> Option<String> {
    topic_of(client_id, "answer")
}

/// Whether all that the filter matches is the client's own.
pub fn owns(client_id: &str, filter: &str) -> bool {
    topic_of(client_id, "").is_some_and(|own| filter.len() > own.len() && filter.starts_with(&own))
}

fn topic_of(client_id: &str, last: &str) -> Option<String> {
    let fits = !client_id.is_empty() && client_id.len() <= 256 && !client_id.contains(['/', '+', '#', '\0']);
    fits.then(|| format!("{TOPIC_ROOT}{client_id}/{last}"))
}

fn message(topic: String, payload: Bytes, headers: Vec<Header>) -> LiveMessage {
    LiveMessage { topic: topic.into(), payload, headers, stored: false, from: 0 }
}

impl Devices {
    pub fn new(log: Log, clock: Clock) -> Self {
        let correlation = AtomicU64::new(fastrand::u64(..));
        let (devices, keeping) = (Mutex::default(), tokio::sync::Mutex::default());
        let (firmware, reading) = (OnceLock::new(), Arc::new(Semaphore::new(PARTS_AT_ONCE)));
        Devices { inner: Arc::new(Inner { log, clock, devices, correlation, keeping, firmware, reading }) }
    }

    /// Images for devices are kept in this directory. Once.
    pub fn keep_firmware_in(&self, dir: PathBuf) -> std::io::Result<()> {
        let _ = self.inner.firmware.set(Firmware::open(dir)?);
        // Who was quicker than this.
        let there: Vec<String> = self.lock().keys().cloned().collect();
        for id in there {
            if let Some(offer) = self.inner.firmware.get().and_then(|firmware| firmware.offer(&id)) {
                self.send(&id, OFFER_TOPIC, offer);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Device>> {
        self.inner.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client has subscribed to its own topics. From now on what is sent to it comes through the link.
    pub fn link(&self, client_id: &str, connection: u64, takes: Takes) -> Link {
        let mut devices = self.lock();
        if devices.len() >= DEVICES_MAX && !devices.contains_key(client_id) {
            forget_some(&mut devices);
        }
        let (sender, messages) = mpsc::channel(WAITING_MAX);
        let device = devices.entry(client_id.to_owned()).or_default();
        device.link = Some((connection, sender));
        device.asked.clear();
        device.takes = Some(takes);
        let heard_ms = device.heard_ms.clone();
        drop(devices);
        let link = Link { devices: self.clone(), client_id: client_id.to_owned(), connection, heard_ms, messages };
        link.heard(self.inner.clock.now().mono_ms);
        link
    }

    /// What a client hears when it has subscribed: the greeting, and what is kept for it, as far as it takes that.
    pub fn greeting(&self, client_id: &str) -> Greeting {
        let (mut messages, mut left_out) = (Vec::new(), 0);
        for setting in Setting::ALL {
            let Some(topic) = topic_of(client_id, setting.name()) else { continue };
            let value = self.inner.log.state(Table::Retained, topic.as_bytes());
            let kept = value.and_then(|value| kept_message(&value)).map(|kept| message(topic, kept, Vec::new()));
            match self.note_size(client_id, setting, kept.as_ref()) {
                Err(TooLarge { .. }) => left_out += 1,
                Ok(()) => messages.extend(kept),
            }
        }
        if let Some(offer) = self.inner.firmware.get().and_then(|firmware| firmware.offer(client_id)) {
            let topic = topic_of(client_id, OFFER_TOPIC).unwrap_or_default();
            messages.push(message(topic, offer, Vec::new()));
        }
        let now = self.inner.clock.now();
        let hello = Hello {
            time_ms: if now.trusted { now.wall_ms } else { 0 },
            kept: self.inner.log.kept_of(producer_of(client_id)),
            blob: self.inner.log.kept_of(blob_producer_of(client_id)),
            waiting: messages.len() as u32,
        };
        let hello_topic = topic_of(client_id, "hello").unwrap_or_default();
        messages.insert(0, message(hello_topic, Bytes::copy_from_slice(&hello.to_bytes()), Vec::new()));
        Greeting { messages, left_out }
    }

    /// Remembers whether the device takes what is kept for it, if anything is. That it does not is logged when it is new.
    fn note_size(&self, client_id: &str, setting: Setting, kept: Option<&LiveMessage>) -> Result<(), TooLarge> {
        let mut devices = self.lock();
        let Some(device) = devices.get_mut(client_id) else { return Ok(()) };
        let fits = device.takes.zip(kept).map_or(Ok(()), |(takes, kept)| takes.fits(kept));
        match fits {
            Ok(()) => _ = device.too_large.remove(setting.name()),
            Err(too_large) => {
                let before = device.too_large.insert(setting.name(), too_large.bytes);
                if before != Some(too_large.bytes) {
                    let what = setting.name();
                    tracing::warn!(client = ?client_id, what, "what is kept for a device is not sent to it: {too_large}");
                }
            }
        }
        fits
    }

    /// A device speaks to the gateway itself.
    pub fn heard(&self, client_id: &str, publish: &Publish<'_>) -> Result<(), Refusal> {
        if publish.topic.ends_with(REQUEST_TOPIC) {
            return self.part_asked(client_id, publish.payload);
        }
        if publish.topic.ends_with(STATUS_TOPIC) {
            let text = std::str::from_utf8(publish.payload).ok().filter(|text| text.len() <= STATUS_BYTES_MAX);
            let text = text.filter(|text| !text.contains(char::is_control)).ok_or(Reason::PayloadFormatInvalid)?;
            if let Some(device) = self.lock().get_mut(client_id) {
                device.firmware_status = Some(text.to_owned());
            }
            return Ok(());
        }
        if publish.topic.ends_with(LOSSES_TOPIC) {
            let losses = Losses::read(publish.payload).map_err(|_| Reason::PayloadFormatInvalid)?;
            if let Some(device) = self.lock().get_mut(client_id) {
                device.losses = Some(losses);
            }
            return Ok(());
        }
        self.answered(client_id, publish)
    }

    /// Sends a part of its firmware to a device, if that is not more than is good for the others: it asks again.
    fn part_asked(&self, client_id: &str, payload: &[u8]) -> Result<(), Refusal> {
        let request = Request::read(payload).map_err(|_| Reason::PayloadFormatInvalid)?;
        let Ok(turn) = self.inner.reading.clone().try_acquire_owned() else { return Ok(()) };
        let (devices, client_id) = (self.clone(), client_id.to_owned());
        tokio::task::spawn_blocking(move || {
            let part = devices.inner.firmware.get().and_then(|firmware| firmware.part(&client_id, &request));
            if let Some(part) = part {
                if let Some(device) = devices.lock().get_mut(&client_id) {
                    device.firmware_sent_bytes += part.len().saturating_sub(PART_HEAD_BYTES) as u64;
                }
                devices.send(&client_id, PART_TOPIC, part);
            }
            drop(turn);
        });
        Ok(())
    }

    /// Sends if the device is there and takes it.
    fn send(&self, client_id: &str, last: &str, payload: Bytes) {
        let Some(topic) = topic_of(client_id, last) else { return };
        if let Some((_, sender)) = self.lock().get(client_id).and_then(|device| device.link.as_ref()) {
            let _ = sender.try_send(message(topic, payload, Vec::new()));
        }
    }

    /// Keeps an image for a device, durably, and offers it at once if the device is there.
    pub async fn keep_firmware(
        &self,
        client_id: &str,
        version: String,
        signature: String,
        image: Bytes,
    ) -> Result<(), NoFirmware> {
        let keep = move |firmware: &Firmware, id: &str| firmware.keep(id, &version, &signature, &image);
        self.change_firmware(client_id, keep).await
    }

    /// Takes back what a device was offered.
    pub async fn drop_firmware(&self, client_id: &str) -> Result<(), NoFirmware> {
        self.change_firmware(client_id, |firmware, id| firmware.drop_image(id)).await
    }

    async fn change_firmware(
        &self,
        client_id: &str,
        change: impl FnOnce(&Firmware, &str) -> Result<(), NoFirmware> + Send + 'static,
    ) -> Result<(), NoFirmware> {
        topic_of(client_id, OFFER_TOPIC).ok_or(NoFirmware::Id)?;
        let _one = self.inner.keeping.lock().await;
        let (devices, id) = (self.clone(), client_id.to_owned());
        let changed = tokio::task::spawn_blocking(move || {
            let firmware = devices.inner.firmware.get().ok_or(NoFirmware::NoPlace)?;
            change(firmware, &id)?;
            Ok::<_, NoFirmware>(firmware.offer(&id).unwrap_or_default())
        });
        let offer = changed.await.map_err(|_| NoFirmware::NoPlace)??;
        self.send(client_id, OFFER_TOPIC, offer);
        Ok(())
    }

    /// A device has answered. Whether anybody still waits for it is not its business.
    fn answered(&self, client_id: &str, publish: &Publish<'_>) -> Result<(), Refusal> {
        if publish.payload.len() > ANSWER_BYTES_MAX {
            return Err(Reason::QuotaExceeded.into());
        }
        let correlation = publish.properties.iter().find_map(|(id, value)| match (id, value) {
            (PropertyId::CorrelationData, Value::Binary(data)) => data.try_into().ok().map(u64::from_be_bytes),
            _ => None,
        });
        let asked = |of| self.lock().get_mut(client_id)?.asked.remove(&of);
        if let Some(waits) = correlation.and_then(asked) {
            // Whoever asked may just have given up.
            let _ = waits.send(Bytes::copy_from_slice(publish.payload));
        }
        Ok(())
    }

    /// Sends a command to a device and waits for its answer.
    pub async fn command(&self, client_id: &str, command: Bytes, within: Duration) -> Result<Bytes, NoAnswer> {
        if command.len() > DOWN_BYTES_MAX {
            return Err(NoAnswer::TooLong);
        }
        let (answer, _asked) = self.ask(client_id, command)?;
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            // It left, or has come again without its earlier commands.
            Ok(Err(_)) | Err(_) => Err(NoAnswer::Late),
        }
    }

    fn ask<'a>(
        &'a self,
        client_id: &'a str,
        command: Bytes,
    ) -> Result<(oneshot::Receiver<Bytes>, Asked<'a>), NoAnswer> {
        let correlation = self.inner.correlation.fetch_add(1, Ordering::Relaxed);
        let (topic, answer) =
            topic_of(client_id, "command").zip(own_answer(client_id)).ok_or(NoAnswer::NotConnected)?;
        let headers = vec![
            Header::new(HeaderId::ResponseTopic, answer),
            Header::new(HeaderId::CorrelationData, correlation.to_be_bytes().to_vec()),
        ];
        let mut devices = self.lock();
        let device = devices.get_mut(client_id).ok_or(NoAnswer::NotConnected)?;
        let (_, sender) = device.link.as_ref().ok_or(NoAnswer::NotConnected)?;
        if device.asked.len() >= WAITING_MAX {
            return Err(NoAnswer::Busy);
        }
        let command = message(topic, command, headers);
        device.takes.map_or(Ok(()), |takes| takes.fits(&command)).map_err(NoAnswer::TooLarge)?;
        sender.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NoAnswer::Busy,
            mpsc::error::TrySendError::Closed(_) => NoAnswer::NotConnected,
        })?;
        let (answered, answer) = oneshot::channel();
        device.asked.insert(correlation, answered);
        Ok((answer, Asked { devices: self, client_id, correlation }))
    }

    /// Keeps a message for a device, durably, and sends it if the device is there; an empty one is kept no more. A device
    /// that does not take what it is sent hears it with its next greeting. One that is there and would never take it keeps
    /// what it has; what a device that is away takes, it says when it comes.
    pub async fn keep(&self, client_id: &str, setting: Setting, payload: Bytes) -> Result<(), NotKept> {
        let topic = topic_of(client_id, setting.name()).ok_or(NotKept::Id)?;
        if payload.len() > DOWN_BYTES_MAX {
            return Err(NotKept::TooLong);
        }
        let _one = self.inner.keeping.lock().await;
        let down = message(topic.clone(), payload.clone(), Vec::new());
        let here = self.lock().get(client_id).filter(|device| device.link.is_some()).and_then(|device| device.takes);
        here.map_or(Ok(()), |takes| takes.fits(&down)).map_err(NotKept::TooLarge)?;
        let log = &self.inner.log;
        let key = Bytes::from(topic);
        let is_new = !payload.is_empty() && log.state(Table::Retained, &key).is_none();
        if is_new && log.state_scan(Table::Retained, TOPIC_ROOT.as_bytes()).len() >= KEPT_MAX {
            return Err(NotKept::TooMany);
        }
        let value = (!payload.is_empty()).then(|| [&[KEPT_FORMAT], &payload[..]].concat().into());
        let mut batch = Batch::new();
        batch.put_state(Table::Retained, key, value);
        log.appender().commit(&mut batch).await?;
        // For one that is away as it said when it came last: the list shows it before it comes.
        let _ = self.note_size(client_id, setting, Some(&down));
        if let Some((_, sender)) = self.lock().get(client_id).and_then(|device| device.link.as_ref()) {
            let _ = sender.try_send(down);
        }
        Ok(())
    }

    /// All that are remembered, by id.
    pub fn list(&self) -> Vec<DeviceStatus> {
        let now = self.inner.clock.now();
        let heard = |device: &Device| {
            now.wall_ms.saturating_sub(now.mono_ms.saturating_sub(device.heard_ms.load(Ordering::Relaxed)))
        };
        let mut list: Vec<DeviceStatus> = self
            .lock()
            .iter()
            .map(|(id, device)| DeviceStatus {
                id: id.clone(),
                connected: device.link.is_some(),
                last_heard_ms: heard(device),
                kept: None,
                packet_bytes_max: device.takes.map(|takes| takes.packet_bytes_max).filter(|bytes| *bytes < usize::MAX),
                too_large: device.too_large.clone(),
                firmware: None,
                firmware_status: device.firmware_status.clone(),
                firmware_sent_bytes: device.firmware_sent_bytes,
                losses: device.losses.map(|losses| Losses::NAMES.into_iter().zip(losses.fields()).collect()),
            })
            .collect();
        for device in &mut list {
            let kept = self.inner.log.kept_of(producer_of(&device.id));
            device.kept = kept.map(|(epoch, sequence)| KeptNumber { epoch, sequence });
            device.firmware = self.inner.firmware.get().and_then(|firmware| firmware.offered(&device.id));
        }
        list.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        list
    }
}

/// Forgets an eighth of those that are away, those first that were silent longest.
fn forget_some(devices: &mut HashMap<String, Device>) {
    let mut away: Vec<u64> = devices
        .values()
        .filter(|device| device.link.is_none())
        .map(|device| device.heard_ms.load(Ordering::Relaxed))
        .collect();
    if away.is_empty() {
        return;
    }
    let eighth = away.len() / 8;
    let oldest = *away.select_nth_unstable(eighth).1;
    devices.retain(|_, device| device.link.is_some() || device.heard_ms.load(Ordering::Relaxed) > oldest);
}

fn kept_message(value: &Bytes) -> Option<Bytes> {
    (*value.first()? == KEPT_FORMAT).then(|| value.slice(1..))
}

impl Link {
    /// The device has sent something.
    pub fn heard(&self, now_ms: u64) {
        self.heard_ms.store(now_ms, Ordering::Relaxed);
    }

    /// The next message for the device. Cancel-safe.
    pub async fn next(&mut self) -> Option<LiveMessage> {
        self.messages.recv().await
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(device) = self.devices.lock().get_mut(&self.client_id)
            && device.link.as_ref().is_some_and(|(connection, _)| *connection == self.connection)
        {
            device.link = None;
            device.asked.clear();
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Some(device) = self.devices.lock().get_mut(self.client_id) {
            device.asked.remove(&self.correlation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_owns_what_is_below_its_id_and_nothing_else() {
        for (client, filter, expected) in [
            ("d1", "$headwater/d/d1/#", true),
            ("d1", "$headwater/d/d1/config", true),
            ("d1", "$headwater/d/d1/", false),
            ("d1", "$headwater/d/d1", false),
            ("d1", "$headwater/d/d2/#", false),
            ("d1", "$headwater/d/d10/#", false),
            ("d1", "$headwater/d/+/#", false),
            ("d1", "$headwater/#", false),
            ("+", "$headwater/d/+/#", false),
            ("a/b", "$headwater/d/a/b/#", false),
            ("", "$headwater/d//#", false),
        ] {
            assert_eq!(owns(client, filter), expected, "{client} {filter}");
        }
    }
}
