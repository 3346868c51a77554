//! What passes between the gateway and the application beside records: configuration, commands, the log level, blobs.

use crate::config::ANSWER_BYTES_MAX;
use crate::mqtt::Message;
use core::task::{Context, Poll};
use headwater_wire::{CHUNK_HEADER_BYTES_MAX, Hello, TOPIC_ROOT};

/// The longest topic and correlation data that an answer may need.
const RESPONSE_TOPIC_BYTES_MAX: usize = 96;
const CORRELATION_BYTES_MAX: usize = 32;

/// What comes from the gateway to the application.
pub trait Downlink {
    /// The configuration that somebody has set for this device; again after each connect.
    fn config(&mut self, _config: &[u8]) {}

    /// A command: its answer goes into `answer`, and this says how long that is.
    fn command(&mut self, _command: &[u8], _answer: &mut [u8]) -> usize {
        0
    }

    /// The blob to send now, if there is one: an image, a clip. It is asked for again until [`Downlink::blob_ended`].
    fn blob(&mut self) -> Option<Blob> {
        None
    }

    /// Reads a part of the blob; `false` if it cannot be read.
    #[allow(async_fn_in_trait)]
    async fn read_blob(&mut self, _id: u32, _offset: u64, _into: &mut [u8]) -> bool {
        false
    }

    /// The blob is on the gateway's disk as a whole; or, if it is not `delivered`, the gateway will not have it, or it
    /// cannot be read.
    fn blob_ended(&mut self, _id: u32, _delivered: bool) {}

    /// How much the device shall log: `error`, `warn`, `info`, `debug` or `trace`.
    fn log_level(&mut self, _level: &str) {}

    /// What else the gateway says on the device's topics, `what` being the topic behind `$headwater/d/{id}/`.
    fn message(&mut self, _what: &str, _payload: &[u8]) {}

    /// A message that goes out at QoS 0 on one of the device's topics: the topic behind `$headwater/d/{id}/`, of 18 bytes at
    /// most, and how much of `to` ([`ANSWER_BYTES_MAX`] long) it takes. Asked while there is a connection.
    fn outgoing(&mut self, _to: &mut [u8]) -> Option<(&'static str, usize)> {
        None
    }

    /// Whether [`Downlink::outgoing`] has something; if not, whoever brings it wakes the context.
    fn poll_outgoing(&mut self, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

/// Nobody listens.
impl Downlink for () {}

/// Something that is too long for a record: it travels in parts, behind all records, and goes on after a reset where the
/// gateway's disk has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Another one than the device's last: a counter, or a random number. The same id after a reset is the same blob.
    pub id: u32,
    /// In bytes.
    pub length: u64,
}

/// The longest part of a blob that goes with batches of so many bytes. It must be the same after a reset.
pub const fn chunk_bytes(batch: usize) -> usize {
    batch.saturating_sub(CHUNK_HEADER_BYTES_MAX)
}

/// What the listener leaves for the driver.
#[derive(Default)]
pub(crate) struct Heard {
    pub hello: Option<Hello>,
    /// Messages other than that.
    pub messages: u32,
    pub answer: Option<Answer>,
}

pub(crate) struct Answer {
    pub topic: Text<RESPONSE_TOPIC_BYTES_MAX>,
    pub correlation: Text<CORRELATION_BYTES_MAX>,
    pub bytes: Text<ANSWER_BYTES_MAX>,
}

impl Answer {
    /// A message on one of the device's topics; nothing if its topic does not fit.
    pub fn new(id: &str, what: &str, bytes: Text<ANSWER_BYTES_MAX>) -> Option<Self> {
        let topic = Text::EMPTY.push(TOPIC_ROOT.as_bytes())?.push(id.as_bytes())?.push(b"/")?.push(what.as_bytes())?;
        Some(Answer { topic, correlation: Text::EMPTY, bytes })
    }
}

/// Bytes of bounded length.
#[derive(Clone)]
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Text<N> {
    pub const EMPTY: Self = Text { bytes: [0; N], length: 0 };

    pub fn push(mut self, bytes: &[u8]) -> Option<Self> {
        let end = self.length.checked_add(bytes.len())?;
        self.bytes.get_mut(self.length..end)?.copy_from_slice(bytes);
        self.length = end;
        Some(self)
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// What the application wants to send; nothing if its topic does not fit.
pub(crate) fn outgoing(id: &str, app: &mut impl Downlink) -> Option<Answer> {
    let mut bytes = Text::<ANSWER_BYTES_MAX>::EMPTY;
    let (what, length) = app.outgoing(&mut bytes.bytes)?;
    bytes.length = length.min(ANSWER_BYTES_MAX);
    Answer::new(id, what, bytes)
}

/// What a message from the gateway is for. Whatever nobody knows is left alone.
pub(crate) fn listen(message: Message<'_>, id: &str, heard: &mut Heard, app: &mut impl Downlink) {
    let topic = core::str::from_utf8(message.topic).unwrap_or_default();
    let of_this_device = topic.strip_prefix(TOPIC_ROOT).and_then(|rest| rest.strip_prefix(id));
    let Some(what) = of_this_device.and_then(|rest| rest.strip_prefix('/')) else { return };
    heard.messages = heard.messages.saturating_add(u32::from(what != "hello"));
    match what {
        "hello" => heard.hello = Hello::read(message.payload).ok(),
        "config" => app.config(message.payload),
        "log" => app.log_level(core::str::from_utf8(message.payload).unwrap_or_default()),
        "command" => {
            let mut bytes = Text::<ANSWER_BYTES_MAX>::EMPTY;
            bytes.length = app.command(message.payload, &mut bytes.bytes).min(ANSWER_BYTES_MAX);
            let topic = message.response_topic.and_then(|topic| Text::EMPTY.push(topic));
            let correlation = Text::EMPTY.push(message.correlation);
            if let (Some(topic), Some(correlation)) = (topic, correlation) {
                heard.answer = Some(Answer { topic, correlation, bytes });
            }
        }
        _ => app.message(what, message.payload),
    }
}
