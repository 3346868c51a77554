//! A message as it lies on the router: bytes that mean nothing to it (pure).
//!
//! ```text
//! sequence u64 | from u64 | flags u8 (1 = stored) | topic length u16, topic
//! header count u16, then per header: id u8, length u32, value | payload
//! ```

use super::LiveMessage;
use crate::record::{Header, HeaderId};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const STORED: u8 = 1;

/// `None` if the message does not fit the fields, which one that came in over MQTT always does.
pub fn encode(sequence: u64, message: &LiveMessage) -> Option<Bytes> {
    let mut frame = BytesMut::with_capacity(message.weight());
    frame.put_u64(sequence);
    frame.put_u64(message.from);
    frame.put_u8(if message.stored { STORED } else { 0 });
    frame.put_u16(u16::try_from(message.topic.len()).ok()?);
    frame.put_slice(&message.topic);
    frame.put_u16(u16::try_from(message.headers.len()).ok()?);
    for header in &message.headers {
        frame.put_u8(header.id as u8);
        frame.put_u32(u32::try_from(header.value.len()).ok()?);
        frame.put_slice(&header.value);
    }
    frame.put_slice(&message.payload);
    Some(frame.freeze())
}

/// Shares the frame's memory.
pub fn decode(mut frame: Bytes) -> Option<(u64, LiveMessage)> {
    let (sequence, from) = (frame.try_get_u64().ok()?, frame.try_get_u64().ok()?);
    let stored = frame.try_get_u8().ok()? & STORED != 0;
    let topic_length = usize::from(frame.try_get_u16().ok()?);
    let topic = take(&mut frame, topic_length)?;
    let count = frame.try_get_u16().ok()?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let id = HeaderId::from_u8(frame.try_get_u8().ok()?)?;
        let length = frame.try_get_u32().ok()? as usize;
        headers.push(Header { id, value: take(&mut frame, length)? });
    }
    Some((sequence, LiveMessage { topic, payload: frame, headers, stored, from }))
}

fn take(frame: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= frame.len()).then(|| frame.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_frame_reads_back_what_was_written(
            sequence: u64, from: u64, stored: bool, topic in ".{0,20}", payload: Vec<u8>, text in ".{0,20}",
        ) {
            let message = LiveMessage {
                topic: topic.into(),
                payload: payload.into(),
                headers: vec![Header::new(HeaderId::ContentType, text.clone()), Header::user("n", &text)],
                stored,
                from,
            };
            prop_assert_eq!(decode(encode(sequence, &message).unwrap()), Some((sequence, message)));
        }

        #[test]
        fn noise_is_refused_or_read_and_never_panics(noise in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(Bytes::from(noise));
        }
    }
}
