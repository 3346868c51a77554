//! What a producer hears of its fragments while it still sends: a line of JSON each, as PutMedia answers. Pure.
//!
//! <https://docs.aws.amazon.com/kinesisvideostreams/latest/dg/API_dataplane_PutMedia.html>. `PERSISTED` is promise P1. A
//! fragment has no number before the log gave it one, so `BUFFERING` has none; producers go by the timecode.

use crate::record::Number;
use std::fmt::Write as _;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ack {
    /// Its first picture is here.
    Buffering { timecode_ms: i64 },
    /// All of it is here.
    Received { timecode_ms: i64, number: Number },
    /// It is on disk.
    Persisted { timecode_ms: i64, number: Number },
    /// The connection ends, or the fragment is dropped: see the id.
    Error { timecode_ms: Option<i64>, id: u16, code: &'static str },
    /// Nothing has come for a while.
    Idle,
}

/// As it is shown: digits that compare as the numbers do.
pub fn fragment_number(number: Number) -> String {
    format!("{number:020}")
}

pub fn parse_fragment_number(text: &str) -> Option<Number> {
    (!text.is_empty() && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

impl Ack {
    pub fn line(&self) -> String {
        let mut line = String::from("{\"EventType\":\"");
        // Writing to a String does not fail.
        let _ = match self {
            Ack::Buffering { timecode_ms } => write!(line, "BUFFERING\",\"FragmentTimecode\":{timecode_ms}"),
            Ack::Received { timecode_ms, number } => {
                let number = fragment_number(*number);
                write!(line, "RECEIVED\",\"FragmentTimecode\":{timecode_ms},\"FragmentNumber\":\"{number}\"")
            }
            Ack::Persisted { timecode_ms, number } => {
                let number = fragment_number(*number);
                write!(line, "PERSISTED\",\"FragmentTimecode\":{timecode_ms},\"FragmentNumber\":\"{number}\"")
            }
            Ack::Error { timecode_ms, id, code } => {
                let at = timecode_ms.map(|at| format!(",\"FragmentTimecode\":{at}")).unwrap_or_default();
                write!(line, "ERROR\"{at},\"ErrorId\":{id},\"ErrorCode\":\"{code}\"")
            }
            Ack::Idle => write!(line, "IDLE\""),
        };
        line.push_str("}\n");
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_lines_of_json_as_producers_read_them() {
        let number = 42;
        let lines = [
            (Ack::Buffering { timecode_ms: 7 }, r#"{"EventType":"BUFFERING","FragmentTimecode":7}"#),
            (
                Ack::Received { timecode_ms: 7, number },
                r#"{"EventType":"RECEIVED","FragmentTimecode":7,"FragmentNumber":"00000000000000000042"}"#,
            ),
            (
                Ack::Persisted { timecode_ms: 7, number },
                r#"{"EventType":"PERSISTED","FragmentTimecode":7,"FragmentNumber":"00000000000000000042"}"#,
            ),
            (
                Ack::Error { timecode_ms: Some(7), id: 4006, code: "INVALID_MKV_DATA" },
                r#"{"EventType":"ERROR","FragmentTimecode":7,"ErrorId":4006,"ErrorCode":"INVALID_MKV_DATA"}"#,
            ),
            (
                Ack::Error { timecode_ms: None, id: 4000, code: "STREAM_READ_ERROR" },
                r#"{"EventType":"ERROR","ErrorId":4000,"ErrorCode":"STREAM_READ_ERROR"}"#,
            ),
            (Ack::Idle, r#"{"EventType":"IDLE"}"#),
        ];
        for (ack, line) in lines {
            assert_eq!(ack.line(), format!("{line}\n"));
            assert!(serde_json::from_str::<serde_json::Value>(&ack.line()).is_ok());
        }
        assert_eq!(parse_fragment_number(&fragment_number(42)), Some(42));
        assert_eq!([parse_fragment_number(""), parse_fragment_number("4x")], [None, None]);
    }
}
