//! Who a device is, how it behaves, how much memory that takes, and what it says of itself.

use crate::link::Patience;
use crate::mqtt;
use crate::outbox::{HEAD_ROOM, WORD_BYTES_MAX};
use embassy_time::{Duration, Instant};

/// The longest device id, in bytes.
pub const ID_BYTES_MAX: usize = 64;
/// The longest answer to a command, in bytes.
pub const ANSWER_BYTES_MAX: usize = 128;

/// Room for a topic.
pub(crate) const TOPIC_BYTES: usize = 64;

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
    /// Publishes on their way at once, up to 8.
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

/// How much memory [`Device::new`](crate::Device::new) needs for batches of so many bytes: the frame that is read or written
/// and one packet each way. A topic, or a will and a login, of more than 64 bytes needs so much more.
pub const fn memory_bytes(batch: usize) -> usize {
    frame_bytes(batch) + session_bytes(batch, TOPIC_BYTES)
}

/// The part of it in which frames are written and read.
pub(crate) const fn frame_bytes(batch: usize) -> usize {
    HEAD_ROOM + batch + WORD_BYTES_MAX
}

/// The other part: what comes, and a PUBLISH that goes out.
pub(crate) const fn session_bytes(batch: usize, topic: usize) -> usize {
    RECEIVE_BYTES + mqtt::OVERHEAD_BYTES + topic + HEAD_ROOM + batch
}

/// The largest packet that the device takes from the gateway.
pub const RECEIVE_BYTES: usize = 512;

/// Why a device cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum SetupError {
    /// The id is empty or longer than [`ID_BYTES_MAX`], or the will's topic is longer than 128 bytes.
    Id,
    /// Less memory than [`memory_bytes`] says, or than topic, will and login need.
    Memory,
    /// A batch of the recorder does not fit a page of the outbox.
    Batch,
}

/// How a device may rest: see [`Device::flush`](crate::Device::flush).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Rest {
    /// Records that the gateway does not have yet. They are in the outbox. If the gateway could not be reached since a reset,
    /// some that were delivered before it may be among them.
    pub pending: u64,
    /// When trying again makes sense, if the gateway could not be reached.
    pub retry_at: Option<Instant>,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)] // Without one it is all zeroes, and so is a recorder at the start: it costs no flash.
pub enum Failure {
    /// The transport opened no stream: no network, no such host, nobody listens there.
    NoStream = 1,
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
