//! What PutMedia answers while it is sent to: JSON objects one after the other, cut anywhere, with or without lines. Pure.

use serde::Deserialize;

/// An acknowledgement is never longer, in bytes.
const ACK_BYTES_MAX: usize = 16 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ack {
    /// Something was heard that moves nothing: BUFFERING, RECEIVED.
    Alive,
    /// Nothing came there for a while.
    Idle,
    Persisted(i64),
    Error {
        timecode: Option<i64>,
        id: u32,
        says: String,
    },
}

/// What is to be done about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// The fragment will never be taken.
    Refused,
    Again,
}

/// By AWS's numbers. What is not known is tried again: nothing is dropped on a guess.
pub fn meaning(id: u32) -> Means {
    match id {
        // Too large, too long, too many tracks, no Matroska, too many tags, tracks that do not match, no frames of a track.
        4001 | 4002 | 4005 | 4006 | 4009 | 4010 | 4011 => Means::Refused,
        _ => Means::Again,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Wire {
    event_type: String,
    fragment_timecode: Option<i64>,
    error_id: Option<u32>,
    error_code: Option<String>,
}

/// Cuts what comes into objects.
#[derive(Debug, Default)]
pub struct Acks {
    object: Vec<u8>,
    depth: u32,
    in_text: bool,
    escaped: bool,
}

impl Acks {
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<Ack>) -> Result<(), String> {
        for byte in bytes {
            let begins = self.depth == 0 && *byte == b'{';
            if self.depth == 0 && !begins {
                if byte.is_ascii_whitespace() {
                    continue;
                }
                return Err("the answer is not made of acknowledgements".into());
            }
            self.object.push(*byte);
            if self.object.len() > ACK_BYTES_MAX {
                return Err(format!("an acknowledgement is longer than {ACK_BYTES_MAX} bytes"));
            }
            match (self.in_text, *byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (_, b'"') => self.in_text = !self.in_text,
                (false, b'{') => self.depth += 1,
                (false, b'}') => self.depth -= 1,
                _ => {}
            }
            if self.depth == 0 {
                out.extend(read(&std::mem::take(&mut self.object))?);
            }
        }
        Ok(())
    }
}

fn read(object: &[u8]) -> Result<Option<Ack>, String> {
    let wire: Wire =
        serde_json::from_slice(object).map_err(|error| format!("an acknowledgement is not understood: {error}"))?;
    Ok(match (wire.event_type.as_str(), wire.fragment_timecode) {
        ("PERSISTED", Some(timecode)) => Some(Ack::Persisted(timecode)),
        ("ERROR", timecode) => {
            let (id, code) = (wire.error_id.unwrap_or_default(), wire.error_code.unwrap_or_default());
            let says = format!("{id} {}", code.chars().filter(|c| !c.is_control()).take(100).collect::<String>());
            Some(Ack::Error { timecode, id, says })
        }
        ("IDLE", _) => Some(Ack::Idle),
        ("BUFFERING" | "RECEIVED", _) => Some(Ack::Alive),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAID: &str = concat!(
        r#"{"EventType":"BUFFERING","FragmentTimecode":7}"#,
        "\r\n",
        r#"{"Acknowledgement":"}{\"","EventType":"PERSISTED","FragmentTimecode":7,"FragmentNumber":"1"}{"EventType":"IDLE"}"#,
        r#" {"EventType":"ERROR","FragmentTimecode":8,"ErrorId":4006,"ErrorCode":"INVALID_MKV_DATA"}{"EventType":"NEW"}"#,
        r#"{"EventType":"ERROR","ErrorId":5000,"ErrorCode":"INTERNAL_ERROR"}"#,
    );

    fn expected() -> Vec<Ack> {
        let error = |timecode, id, says: &str| Ack::Error { timecode, id, says: says.into() };
        let (no_mkv, internal) =
            (error(Some(8), 4006, "4006 INVALID_MKV_DATA"), error(None, 5000, "5000 INTERNAL_ERROR"));
        vec![Ack::Alive, Ack::Persisted(7), Ack::Idle, no_mkv, internal]
    }

    proptest! {
        #[test]
        fn acknowledgements_are_the_same_however_they_are_cut(cuts in prop::collection::vec(0..SAID.len(), 0..9)) {
            let (mut acks, mut out) = (Acks::default(), Vec::new());
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut from = 0;
            for cut in cuts.into_iter().chain([SAID.len()]) {
                acks.push(&SAID.as_bytes()[from..cut], &mut out).unwrap();
                from = cut;
            }
            prop_assert_eq!(out, expected());
        }

        #[test]
        fn noise_is_refused_or_bounded(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut acks = Acks::default();
            let _ = acks.push(&noise, &mut Vec::new());
            prop_assert!(acks.object.len() <= ACK_BYTES_MAX);
        }
    }

    #[test]
    fn only_what_aws_calls_the_fragments_fault_is_refused_for_good() {
        let refused: Vec<u32> = (3990..5010).filter(|id| meaning(*id) == Means::Refused).collect();
        assert_eq!(refused, [4001, 4002, 4005, 4006, 4009, 4010, 4011]);
    }
}
