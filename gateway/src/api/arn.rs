//! Names of streams as clients give them: by name or by ARN. Pure but for the look into the log.
//!
//! The region and account of an ARN are not compared with ours: an application that was written for a stream at AWS names
//! it by that ARN here too.

use super::Call;
use super::error::ApiError;
use super::shape::Text;
use crate::log::Stream;
use crate::record::StreamName;
use std::sync::Arc;

/// Region and account this gateway shows in ARNs and messages.
#[derive(Clone, Debug)]
pub struct Account {
    pub region: String,
    pub id: String,
}

impl Account {
    pub fn arn(&self, stream: &StreamName) -> String {
        format!("arn:aws:kinesis:{}:{}:stream/{stream}", self.region, self.id)
    }

    pub fn stream_not_found(&self, name: &str) -> ApiError {
        ApiError::not_found(format!("Stream {name} under account {} not found.", self.id))
    }

    pub fn shard_not_found(&self, shard: &str, stream: &str) -> ApiError {
        ApiError::not_found(format!("Shard {shard} in stream {stream} under account {} does not exist", self.id))
    }
}

/// Whether it has the form `arn:aws.*:kinesis:.*:\d{12}:stream/\S+`.
pub fn is_stream_arn(arn: &str) -> bool {
    name_in(arn).is_some()
}

/// The stream's name in its ARN.
pub fn name_in(arn: &str) -> Option<&str> {
    let mut parts = arn.splitn(6, ':');
    let mut next = || parts.next();
    let good = next()? == "arn" && next()?.starts_with("aws") && next()? == "kinesis";
    let (_region, account) = (next()?, next()?);
    let name = next()?.strip_prefix("stream/")?;
    let account_good = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    (good && account_good && !name.is_empty() && !name.contains(char::is_whitespace)).then_some(name)
}

/// The name that is meant by name, ARN or both.
pub fn stream_name<'a>(name: &'a Option<Text<'_>>, arn: &'a Option<Text<'_>>) -> Result<&'a str, ApiError> {
    let in_arn = arn.as_deref().and_then(name_in);
    match (name.as_deref(), in_arn) {
        (Some(name), Some(in_arn)) if name != in_arn => {
            Err(ApiError::invalid(format!("StreamName and StreamARN name two streams: {name} and {in_arn}.")))
        }
        (Some(name), _) => Ok(name),
        (None, Some(name)) => Ok(name),
        (None, None) => Err(ApiError::invalid("Either StreamName or StreamARN should be provided.")),
    }
}

impl Call<'_> {
    pub fn stream(&self, name: &Option<Text<'_>>, arn: &Option<Text<'_>>) -> Result<Arc<Stream>, ApiError> {
        let name = stream_name(name, arn)?;
        self.stream_named(name)
    }

    pub fn stream_named(&self, name: &str) -> Result<Arc<Stream>, ApiError> {
        let stream = self.door.log.stream(name).filter(|stream| !stream.is_deleted());
        stream.ok_or_else(|| self.door.account.stream_not_found(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_names_its_stream() {
        assert_eq!(name_in("arn:aws:kinesis:eu-west-1:123456789012:stream/a.b"), Some("a.b"));
        assert_eq!(name_in("arn:aws-cn:kinesis::123456789012:stream/x"), Some("x"));
        for bad in [
            "",
            "x",
            "arn:aws:s3:::bucket",
            "arn:aws:kinesis:eu:12:stream/a",
            "arn:aws:kinesis:eu:123456789012:stream/",
        ] {
            assert_eq!(name_in(bad), None, "{bad}");
        }
    }
}
