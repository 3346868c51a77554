//! The form requests and answers have on the wire. Operations see typed values only; a second form is a second arm here.
//! Pure.

use super::error::{ApiError, Kind};
use super::shape::Shape;
use serde::{Deserialize, Serialize};

/// Characters told of why a request is malformed: serde may echo what it does not like.
const ECHO_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// `application/x-amz-json-1.1`
    Json11,
}

impl Codec {
    pub fn content_type(self) -> &'static str {
        match self {
            Codec::Json11 => "application/x-amz-json-1.1",
        }
    }

    pub fn of_content_type(content_type: &str) -> Option<Self> {
        (content_type == Codec::Json11.content_type()).then_some(Codec::Json11)
    }

    pub fn read<'a, T: Deserialize<'a>>(self, body: &'a [u8]) -> Result<T, ApiError> {
        match self {
            Codec::Json11 => {
                // AWS accepts anything after the value; we do not.
                serde_json::from_slice::<Shape<T>>(body).map(|shape| shape.0).map_err(|error| malformed(&error))
            }
        }
    }

    /// An answer that has no members is an empty body.
    pub fn write<T: Serialize>(self, answer: &T) -> Result<Vec<u8>, ApiError> {
        if size_of::<T>() == 0 {
            return Ok(Vec::new());
        }
        match self {
            Codec::Json11 => serde_json::to_vec(answer).map_err(ApiError::internal),
        }
    }
}

/// The words of our own types without serde's position behind them; serde's own where the text is not JSON at all.
fn malformed(error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let says = if error.is_data() { text.strip_suffix(&position).unwrap_or(&text) } else { &text };
    ApiError::new(Kind::Serialization, says.chars().take(ECHO_MAX).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::shape::{Blob, Flag, Integer, List, Moment, Shape, Text};
    use super::*;
    use proptest::prelude::*;
    use std::borrow::Cow;

    #[derive(Deserialize, Debug)]
    #[serde(rename_all = "PascalCase")]
    struct All<'a> {
        #[serde(borrow)]
        text: Option<Text<'a>>,
        number: Option<Integer>,
        flag: Option<Flag>,
        time: Option<Moment>,
        #[serde(borrow)]
        blob: Option<Blob<'a>>,
        #[serde(borrow)]
        list: Option<List<Shape<Inner<'a>>, 2>>,
    }

    #[derive(Deserialize, Debug, Default)]
    #[serde(rename_all = "PascalCase")]
    struct Inner<'a> {
        #[serde(borrow)]
        key: Option<Text<'a>>,
    }

    fn read(json: &str) -> Result<All<'_>, String> {
        Codec::Json11.read::<All>(json.as_bytes()).map_err(|error| {
            assert_eq!(error.kind, Kind::Serialization);
            error.says
        })
    }

    #[test]
    fn members_are_read_as_aws_reads_them() {
        let all = read(
            r#"{"Text":"a\u00e9","Number":7.9,"Flag":true,"Time":1.5,"Blob":"aGk=","List":[{"Key":"k"},null,{},{}],
                "Unknown":[{}],"Other":null}"#,
        )
        .unwrap();
        assert_eq!(all.text.as_deref(), Some("aé"));
        assert_eq!((all.number, all.flag), (Some(Integer(7)), Some(Flag(true))));
        assert_eq!(all.time, Some(Moment(1500)));
        let mut bytes = Vec::new();
        all.blob.unwrap().decode(&mut bytes).unwrap();
        assert_eq!(bytes, b"hi");
        let list = all.list.unwrap();
        assert_eq!((list.members.len(), list.count), (2, 4), "the list keeps its bound and counts the rest");
        assert_eq!(list.members[0].0.key.as_deref(), Some("k"));
        assert!(read(r#"{"Text":null}"#).unwrap().text.is_none());
        assert_eq!(read(r#"{"Number":99999999999}"#).unwrap().number, Some(Integer(i32::MAX)));
    }

    #[test]
    fn a_wrong_type_is_refused_in_aws_words() {
        const BIG: &str = "class com.amazon.coral.value.json.numbers.TruncatingBigNumber";
        for (json, says) in [
            (r#"{"Text":1}"#, format!("{BIG} can not be converted to an String")),
            (r#"{"Text":true}"#, "class java.lang.Boolean can not be converted to an String".into()),
            (r#"{"Text":[]}"#, "Start of list found where not expected".into()),
            (r#"{"Text":{}}"#, "Start of structure or map found where not expected.".into()),
            (r#"{"Number":"1"}"#, "class java.lang.String can not be converted to an Integer".into()),
            (r#"{"Flag":"maybe"}"#, "'MAYBE' can not be converted to an Boolean".into()),
            (r#"{"Time":"now"}"#, "class java.lang.String can not be converted to milliseconds since epoch".into()),
            (r#"{"Blob":3}"#, format!("{BIG} can not be converted to a Blob")),
            (r#"{"List":"x"}"#, "Expected list or null".into()),
            (r#"{"List":{}}"#, "Start of structure or map found where not expected.".into()),
            (r#"{"List":[1]}"#, "Expected null".into()),
            (r#"{"List":[[]]}"#, "Start of list found where not expected".into()),
            ("[]", "Start of list found where not expected".into()),
            ("7", "Expected null".into()),
        ] {
            assert_eq!(read(json).unwrap_err(), says, "{json}");
        }
        assert!(read("{").is_err());
        assert!(read("{} x").is_err());
    }

    #[test]
    fn bad_base64_is_refused_in_aws_words() {
        let refused =
            |text: &'static str| Blob::Base64(Cow::Borrowed(text)).decode(&mut Vec::new()).unwrap_err().to_string();
        assert_eq!(
            refused("abc"),
            "'abc' can not be converted to a Blob: Base64 encoded length is expected a multiple of 4 bytes but found: 3"
        );
        assert_eq!(refused("a$cd"), "'a$cd' can not be converted to a Blob: Invalid Base64 character: '$'");
        assert_eq!(refused("a=cd"), "'a=cd' can not be converted to a Blob: Invalid Base64 character: '='");
        assert_eq!(
            refused("ab5="),
            "'ab5=' can not be converted to a Blob: Invalid last non-pad Base64 character dectected"
        );
    }

    proptest! {
        #[test]
        fn noise_is_refused_or_read_and_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Codec::Json11.read::<All>(&noise);
        }

        #[test]
        fn noise_of_json_pieces_never_panics(noise in r#"([\[\]{},:]|"Text"|"List"|"Blob"|null|1|-1\.5e9|true){0,40}"#) {
            let _ = Codec::Json11.read::<All>(noise.as_bytes());
        }

        #[test]
        fn the_length_of_a_blob_is_known_before_it_is_decoded(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            use base64::Engine;
            let text = base64::engine::general_purpose::STANDARD.encode(&bytes);
            let blob = Blob::Base64(text.into());
            let mut decoded = Vec::new();
            blob.decode(&mut decoded).unwrap();
            prop_assert_eq!(blob.len(), bytes.len());
            prop_assert_eq!(decoded, bytes);
        }
    }
}
