//! Video's topics, as the MQTT door asks for them.

use crate::log::Batch;
use crate::media::{ChunkError, Media, Taken};
use crate::mqtt::{ChunkDoor, ChunkFault, ChunkRefusal, Chunked};

pub struct Door(pub Media);

impl ChunkDoor for Door {
    fn wants(&self, topic: &str) -> bool {
        self.0.wants_chunk(topic)
    }

    fn notices(&self, topic: &str) -> bool {
        self.0.has_rule_for(topic)
    }

    fn notice(&self, topic: &str, batch: &mut Batch) {
        self.0.notice(topic, batch);
    }

    fn take(&self, client_id: &str, topic: &str, payload: &[u8], batch: &mut Batch) -> Result<Chunked, ChunkRefusal> {
        match self.0.take_chunk(client_id, topic, payload, batch) {
            Ok(Taken::Stored) => Ok(Chunked::Stored),
            Ok(Taken::Noted | Taken::Kept) => Ok(Chunked::Noted),
            Ok(Taken::Later(work)) => Ok(Chunked::Later(work)),
            Err(error) => {
                let fault = match error {
                    ChunkError::Read(_) | ChunkError::Mark(_) if error.is_order() => ChunkFault::Order,
                    ChunkError::Read(_) | ChunkError::Mark(_) => ChunkFault::Payload,
                    ChunkError::Stream(_) => ChunkFault::Topic,
                    ChunkError::TooLarge | ChunkError::Push(_) => ChunkFault::Quota,
                };
                let says = format!("{topic:?}: {error}");
                Err(ChunkRefusal { fault, label: error.label(), says })
            }
        }
    }
}
