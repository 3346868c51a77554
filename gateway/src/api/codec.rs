//! The form requests and answers have on the wire. Operations see typed values only; a second form is a second arm here.

use super::error::{ApiError, Kind};
use super::shape::Shape;
use serde::{Deserialize, Serialize};

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
    ApiError::new(Kind::Serialization, says)
}
