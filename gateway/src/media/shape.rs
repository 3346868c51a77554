//! Requests and answers of Kinesis Video's operations (REST, JSON): what they have in common, and what is refused. Pure.

use super::StreamError;
use super::archive::FragmentError;
use super::index::By;
use crate::http::Body;
use crate::log::{CreateError, ReadError};
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};

/// What an operation is refused for, by AWS's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    InvalidArgument,
    NotFound,
    InUse,
    ClientLimitExceeded,
    AccountStreamLimitExceeded,
    TagsPerResourceExceeded,
    VersionMismatch,
    UnsupportedMediaType,
    MissingCodecPrivateData,
    InvalidCodecPrivateData,
    ConnectionLimitExceeded,
    NotAuthorized,
    NoDataRetention,
    /// A session's token is not ours, or its time is over.
    AccessDenied,
    UnknownOperation,
    /// Ours: the box cannot decode this.
    NoDecoder,
    Internal,
}

impl Kind {
    /// Exception and status.
    fn wire(self) -> (&'static str, StatusCode) {
        match self {
            Kind::InvalidArgument => ("InvalidArgumentException", StatusCode::BAD_REQUEST),
            Kind::NotFound => ("ResourceNotFoundException", StatusCode::NOT_FOUND),
            Kind::InUse => ("ResourceInUseException", StatusCode::BAD_REQUEST),
            Kind::ClientLimitExceeded => ("ClientLimitExceededException", StatusCode::BAD_REQUEST),
            Kind::AccountStreamLimitExceeded => ("AccountStreamLimitExceededException", StatusCode::BAD_REQUEST),
            Kind::TagsPerResourceExceeded => ("TagsPerResourceExceededLimitException", StatusCode::BAD_REQUEST),
            Kind::VersionMismatch => ("VersionMismatchException", StatusCode::BAD_REQUEST),
            Kind::UnsupportedMediaType => ("UnsupportedStreamMediaTypeException", StatusCode::BAD_REQUEST),
            Kind::MissingCodecPrivateData => ("MissingCodecPrivateDataException", StatusCode::BAD_REQUEST),
            Kind::InvalidCodecPrivateData => ("InvalidCodecPrivateDataException", StatusCode::BAD_REQUEST),
            Kind::ConnectionLimitExceeded => ("ConnectionLimitExceededException", StatusCode::BAD_REQUEST),
            Kind::NotAuthorized => ("NotAuthorizedException", StatusCode::UNAUTHORIZED),
            Kind::NoDataRetention => ("NoDataRetentionException", StatusCode::BAD_REQUEST),
            Kind::AccessDenied => ("AccessDeniedException", StatusCode::FORBIDDEN),
            Kind::UnknownOperation => ("UnknownOperationException", StatusCode::NOT_FOUND),
            Kind::NoDecoder => ("UnsupportedStreamMediaTypeException", StatusCode::NOT_IMPLEMENTED),
            Kind::Internal => ("InternalFailure", StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

impl Kind {
    /// For the metrics.
    pub fn label(self) -> &'static str {
        self.wire().0
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {says}", kind.wire().0)]
pub struct Refusal {
    pub kind: Kind,
    pub says: String,
}

impl Refusal {
    pub fn new(kind: Kind, says: impl Into<String>) -> Refusal {
        Refusal { kind, says: says.into() }
    }

    pub fn invalid(says: impl Into<String>) -> Refusal {
        Refusal::new(Kind::InvalidArgument, says)
    }

    pub fn response(&self) -> Response<Body> {
        let (name, status) = self.kind.wire();
        let body = serde_json::json!({ "Message": self.says }).to_string();
        let mut response = json_response(body);
        *response.status_mut() = status;
        response.headers_mut().insert(HeaderName::from_static("x-amzn-errortype"), HeaderValue::from_static(name));
        response
    }

    /// The same for people: a sentence.
    pub fn page(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(format!("{}\n", self.says)));
        *response.status_mut() = match self.kind {
            Kind::ClientLimitExceeded | Kind::ConnectionLimitExceeded => StatusCode::TOO_MANY_REQUESTS,
            kind => kind.wire().1,
        };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }
}

pub fn json_response(body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub fn answer(value: &impl Serialize) -> Result<Response<Body>, Refusal> {
    let body = serde_json::to_string(value).map_err(|error| Refusal::new(Kind::Internal, error.to_string()))?;
    Ok(json_response(body))
}

/// A request's body; an empty one is `{}`.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let body = if body.is_empty() { &b"{}"[..] } else { body };
    serde_json::from_slice(body).map_err(|error| Refusal::invalid(format!("The request is not understood: {error}")))
}

impl From<StreamError> for Refusal {
    fn from(error: StreamError) -> Refusal {
        let kind = match &error {
            StreamError::NotFound(_) => Kind::NotFound,
            StreamError::NotVideo(_) | StreamError::Name(_) => Kind::InvalidArgument,
            StreamError::Create(CreateError::Exists(_)) => Kind::InUse,
            StreamError::Create(CreateError::TooMany(_) | CreateError::Shards(_)) => Kind::AccountStreamLimitExceeded,
            StreamError::Create(CreateError::NotFound(_)) => Kind::NotFound,
            StreamError::Create(_) | StreamError::Delete(_) | StreamError::Keep(_) => Kind::Internal,
        };
        Refusal::new(kind, error.to_string())
    }
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Refusal {
        let kind = if matches!(error, ReadError::Deleted) { Kind::NotFound } else { Kind::Internal };
        Refusal::new(kind, error.to_string())
    }
}

impl From<FragmentError> for Refusal {
    fn from(error: FragmentError) -> Refusal {
        match error {
            FragmentError::Gone => Refusal::new(Kind::NotFound, error.to_string()),
            FragmentError::Read(error) => error.into(),
            FragmentError::TooMany => Refusal::invalid(error.to_string()),
            FragmentError::Damaged(_) => Refusal::new(Kind::Internal, error.to_string()),
        }
    }
}

impl From<headwater_video::mp4::Mp4Error> for Refusal {
    fn from(error: headwater_video::mp4::Mp4Error) -> Refusal {
        use headwater_video::codecs::CodecError;
        use headwater_video::mp4::Mp4Error;
        let kind = match &error {
            Mp4Error::Codec(CodecError::Private { what: "is missing", .. }) => Kind::MissingCodecPrivateData,
            Mp4Error::Codec(CodecError::Private { .. }) => Kind::InvalidCodecPrivateData,
            Mp4Error::Codec(_) | Mp4Error::NoTrack | Mp4Error::NoFrame => Kind::UnsupportedMediaType,
            _ => Kind::InvalidArgument,
        };
        Refusal::new(kind, error.to_string())
    }
}

/// Which stream a request means: its name or its ARN.
#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "PascalCase", default)]
pub struct StreamRef {
    pub stream_name: Option<String>,
    #[serde(rename = "StreamARN", alias = "ResourceARN")]
    pub stream_arn: Option<String>,
}

impl StreamRef {
    pub fn name(&self) -> Result<&str, Refusal> {
        match (&self.stream_name, &self.stream_arn) {
            (Some(name), None) => Ok(name),
            (None, Some(arn)) => {
                name_in_arn(arn).ok_or_else(|| Refusal::invalid("StreamARN is not an ARN of a video stream"))
            }
            // AWS says the same where both are there.
            _ => Err(Refusal::invalid("Either StreamName or StreamARN is required, and not both")),
        }
    }
}

/// `cam` in `arn:aws:kinesisvideo:us-east-1:000000000000:stream/cam/1700000000000`.
fn name_in_arn(arn: &str) -> Option<&str> {
    let mut parts = arn.splitn(6, ':');
    let (start, _, service) = (parts.next()?, parts.next()?, parts.next()?);
    let mut resource = parts.nth(2)?.split('/');
    let found = (start, service, resource.next()?, resource.next()?);
    match found {
        ("arn", "kinesisvideo", "stream", name) if resource.next().is_some() => Some(name),
        _ => None,
    }
}

pub fn arn(account: &(String, String), name: &str, created_ms: u64) -> String {
    format!("arn:aws:kinesisvideo:{}:{}:stream/{name}/{created_ms}", account.0, account.1)
}

/// A moment as JSON has it: seconds since 1970, with fractions. Some SDKs write them as text (ISO 8601).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(pub i64);

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(self.0 as f64 / 1000.0)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Moment, D::Error> {
        use serde::de::Error;
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Seconds(f64),
            Text(String),
        }
        let ms = match Form::deserialize(from)? {
            Form::Seconds(seconds) => Some((seconds * 1000.0).round() as i64),
            Form::Text(text) => parse_moment(&text),
        };
        ms.map(Moment).ok_or_else(|| D::Error::custom("a timestamp is seconds since 1970, or as 2026-01-31T12:00:00Z"))
    }
}

/// Seconds since 1970 with fractions, or `2026-01-31T12:00:00[.123]Z`.
pub fn parse_moment(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return seconds.is_finite().then(|| (seconds * 1000.0).round() as i64);
    }
    let (date, time) = text.strip_suffix('Z').or(text.strip_suffix("+00:00"))?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':');
    let (hour, minute) = (time.next()?.parse::<i64>().ok()?, time.next()?.parse::<i64>().ok()?);
    let seconds = time.next()?.parse::<f64>().ok()?;
    let sane = (1970..10_000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !sane || !(0..24).contains(&hour) || !(0..60).contains(&minute) || !(0.0..61.0).contains(&seconds) {
        return None;
    }
    let days = days_from_civil(year, month, day);
    Some(((days * 24 + hour) * 60 + minute) * 60_000 + (seconds * 1000.0).round() as i64)
}

/// Days since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectorType {
    #[serde(rename = "PRODUCER_TIMESTAMP")]
    Producer,
    #[serde(rename = "SERVER_TIMESTAMP")]
    Server,
}

impl From<SelectorType> for By {
    fn from(selector: SelectorType) -> By {
        match selector {
            SelectorType::Producer => By::Producer,
            SelectorType::Server => By::Server,
        }
    }
}

#[derive(Deserialize, Clone, Copy, Debug, Default)]
#[serde(rename_all = "PascalCase", default)]
pub struct TimestampRange {
    pub start_timestamp: Option<Moment>,
    pub end_timestamp: Option<Moment>,
}

/// `FragmentSelector`, `HLSFragmentSelector`, `DASHFragmentSelector` and `ClipFragmentSelector`.
#[derive(Deserialize, Clone, Copy, Debug)]
#[serde(rename_all = "PascalCase")]
pub struct FragmentSelector {
    pub fragment_selector_type: SelectorType,
    #[serde(default)]
    pub timestamp_range: TimestampRange,
}

impl FragmentSelector {
    /// Both ends, in order.
    pub fn range(&self) -> Result<(By, i64, i64), Refusal> {
        let TimestampRange { start_timestamp: Some(start), end_timestamp: Some(end) } = self.timestamp_range else {
            return Err(Refusal::invalid("StartTimestamp and EndTimestamp are required"));
        };
        if end.0 < start.0 {
            return Err(Refusal::invalid("EndTimestamp is before StartTimestamp"));
        }
        Ok((self.fragment_selector_type.into(), start.0, end.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_named_or_told_by_its_arn() {
        let arn = arn(&("eu-west-1".into(), "000000000000".into()), "cam-1", 1_700_000_000_000);
        assert_eq!(arn, "arn:aws:kinesisvideo:eu-west-1:000000000000:stream/cam-1/1700000000000");
        let by_arn: StreamRef = read(format!(r#"{{"StreamARN":"{arn}"}}"#).as_bytes()).unwrap();
        assert_eq!(by_arn.name().unwrap(), "cam-1");
        for wrong in
            ["{}", r#"{"StreamName":"a","StreamARN":"b"}"#, r#"{"StreamARN":"arn:aws:kinesis:a:b:stream/x/1"}"#]
        {
            assert_eq!(read::<StreamRef>(wrong.as_bytes()).unwrap().name().unwrap_err().kind, Kind::InvalidArgument);
        }
    }

    #[test]
    fn moments_are_seconds_or_iso_8601() {
        assert_eq!(parse_moment("1767225600.25"), Some(1_767_225_600_250));
        assert_eq!(parse_moment("2026-01-01T00:00:00Z"), Some(1_767_225_600_000));
        assert_eq!(parse_moment("2024-02-29T23:59:59.5+00:00"), Some(1_709_251_199_500));
        for noise in ["", "x", "2026-13-01T00:00:00Z", "2026-01-01", "NaN", "9999-99-99T99:99:99Z"] {
            assert_eq!(parse_moment(noise), None, "{noise}");
        }
    }
}
