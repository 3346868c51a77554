//! What goes to video instead of to a route: `video/{stream}/...`, as the inlet asks for it.
//!
//! This door knows nothing of containers or streams of video: who does implements [`ChunkDoor`], and `daemon` joins them.
//! The rights are those of any PUBLISH, and so is the answer: what a chunk becomes lies in the batch of its turn, and PUBACK
//! leaves when that is durable (promise P1). Nothing may wait in [`ChunkDoor::take`]; what has to is [`Chunked::Later`].

use super::codec::Reason;
use crate::log::Batch;
use std::pin::Pin;

/// What was put in the way of a chunk, such as a stream that has to be made. Short: it holds a connection up.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

pub enum Chunked {
    /// It is one record, the last of the batch.
    Stored,
    /// It is a change of state in the batch, and no record; or nothing, as it is on disk already.
    Noted,
    /// Nothing was done: ask again after this.
    Later(Work),
}

/// Why a chunk is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkRefusal {
    pub fault: ChunkFault,
    /// Names it where it is counted.
    pub label: &'static str,
    /// For whoever looks after the camera: what to do.
    pub says: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkFault {
    /// The bytes are wrong.
    Payload,
    /// There is no such stream, or none of video.
    Topic,
    /// Too much of something.
    Quota,
    /// It does not fit what came before.
    Order,
}

impl ChunkFault {
    pub fn reason(self) -> Reason {
        match self {
            ChunkFault::Payload => Reason::PayloadFormatInvalid,
            ChunkFault::Topic => Reason::TopicNameInvalid,
            ChunkFault::Quota => Reason::QuotaExceeded,
            ChunkFault::Order => Reason::ImplementationSpecific,
        }
    }
}

/// Video, as the MQTT door needs it.
pub trait ChunkDoor: Send + Sync {
    /// Whether the topic is video's; asked once a topic and connection.
    fn wants(&self, topic: &str) -> bool;

    /// Puts into the batch what becomes of the message, all of it or nothing.
    fn take(&self, client_id: &str, topic: &str, payload: &[u8], batch: &mut Batch) -> Result<Chunked, ChunkRefusal>;

    /// Whether a rule wants to know of messages to a topic that is not video's; asked once a topic and connection.
    fn notices(&self, topic: &str) -> bool;

    /// A message to such a topic was taken; what the rule makes of it goes into the batch too.
    fn notice(&self, topic: &str, batch: &mut Batch);
}
