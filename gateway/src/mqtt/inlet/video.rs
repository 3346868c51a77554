//! What the inlet does for video: chunks on topics of its own, and a word of messages that a rule waits for.

use super::super::chunks::Chunked;
use super::{Around, Inlet, Item, MESSAGE_BYTES, Outcome, Publish, Reason, Refusal, Taken, answer_of};

impl Inlet {
    #[cold]
    pub(super) fn take_chunk(
        &mut self,
        at: usize,
        publish: &Publish<'_>,
        around: Around<'_>,
    ) -> Result<Taken, Refusal> {
        let door = around.chunks.ok_or(Reason::TopicNameInvalid)?;
        let chunked = door.take(&self.who.client_id, publish.topic, publish.payload, &mut self.batch);
        let outcome = match chunked {
            Ok(Chunked::Stored) => Outcome::Placed,
            Ok(Chunked::Noted) => Outcome::Settled(Reason::Success),
            Ok(Chunked::Later(work)) => {
                self.work = Some(work);
                return Ok(Taken::NotReady);
            }
            Err(refusal) => {
                self.says = Some(refusal.says);
                return Err(Refusal { reason: refusal.fault.reason(), label: refusal.label });
            }
        };
        self.gathered_bytes += publish.topic.len() + publish.payload.len() + MESSAGE_BYTES;
        self.items.push(Item { answer: answer_of(publish.qos, publish.id), outcome });
        // Subscribers find no topic in a record of video: they hear of it as of a message that is not kept.
        self.copy_for_listeners(at, publish, false, around.bus);
        Ok(Taken::Yes)
    }

    /// Tells video of a message that was taken, if one of its rules wants to know: a mark stands or falls with its message.
    #[inline]
    pub(super) fn notice(&mut self, at: usize, topic: &str, around: Around<'_>) {
        if self.topics.get(at).is_some_and(|topic| topic.noticed)
            && let Some(door) = around.chunks
        {
            door.notice(topic, &mut self.batch);
        }
    }
}
