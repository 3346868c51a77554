//! Constraints on members, and the sentence AWS makes of those that fail. Pure.
//!
//! AWS collects up to ten failures of one request into one ValidationException:
//! `2 validation errors detected: Value '' at 'streamName' failed to satisfy constraint: Member must ...; Value ...`

use super::error::ApiError;
use super::sequence::DIGITS_MAX;
use super::shape::{Integer, Text};
use std::fmt::Display;

/// Failures told at once.
const FAILURES_MAX: usize = 10;
/// Characters of a refused value that are echoed.
const ECHO_MAX: usize = 1024;
/// Longest next token, in bytes.
const TOKEN_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
pub struct Checks(Vec<String>);

impl Checks {
    pub fn finish(self) -> Result<(), ApiError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let plural = if self.0.len() == 1 { "" } else { "s" };
        let says = format!("{} validation error{plural} detected: {}", self.0.len(), self.0.join("; "));
        Err(ApiError::validation(says))
    }

    pub fn is_clean(&self) -> bool {
        self.0.is_empty()
    }

    fn told(&mut self, value: String, at: impl Display, constraint: impl Display) {
        if self.0.len() < FAILURES_MAX {
            self.0.push(format!("Value {value} at '{at}' failed to satisfy constraint: {constraint}"));
        }
    }

    pub fn fail(&mut self, value: impl Display, at: impl Display, constraint: impl Display) {
        if self.0.len() < FAILURES_MAX {
            let value: String = value.to_string().chars().take(ECHO_MAX).collect();
            self.told(format!("'{value}'"), at, constraint);
        }
    }

    pub fn present<T>(&mut self, value: &Option<T>, at: impl Display) {
        if value.is_none() {
            self.told("null".into(), at, "Member must not be null");
        }
    }

    fn matches(&mut self, text: &str, at: impl Display, pattern: &str, matches: bool) {
        if !matches {
            self.fail(text, at, format_args!("Member must satisfy regular expression pattern: {pattern}"));
        }
    }

    /// A length in UTF-16 units, as Java counts.
    pub fn length(&mut self, text: &str, at: impl Display, least: usize, most: usize) {
        if text.len() < least {
            self.fail(text, at, format_args!("Member must have length greater than or equal to {least}"));
        } else if text.len() > most && text.encode_utf16().take(most + 1).count() > most {
            self.fail(text, at, format_args!("Member must have length less than or equal to {most}"));
        }
    }

    fn name(&mut self, text: &Option<Text<'_>>, at: &str) {
        if let Some(text) = text {
            let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
            self.matches(text, at, "[a-zA-Z0-9_.-]+", !text.is_empty() && text.bytes().all(good));
            self.length(text, at, 1, 128);
        }
    }

    pub fn stream_name(&mut self, name: &Option<Text<'_>>) {
        self.name(name, "streamName");
    }

    pub fn start_stream_name(&mut self, name: &Option<Text<'_>>) {
        self.name(name, "exclusiveStartStreamName");
    }

    pub fn shard_id(&mut self, id: &Option<Text<'_>>, at: &str) {
        self.name(id, at);
    }

    pub fn stream_arn(&mut self, arn: &Option<Text<'_>>) {
        if let Some(arn) = arn {
            let good = super::arn::is_stream_arn(arn);
            self.matches(arn, "streamARN", r"arn:aws.*:kinesis:.*:\d{12}:stream/\S+", good);
            self.length(arn, "streamARN", 1, 2048);
        }
    }

    pub fn range(&mut self, value: Option<Integer>, at: &str, least: i32, most: i32) {
        match value {
            Some(Integer(n)) if n < least => {
                self.fail(n, at, format_args!("Member must have value greater than or equal to {least}"));
            }
            Some(Integer(n)) if n > most => {
                self.fail(n, at, format_args!("Member must have value less than or equal to {most}"));
            }
            _ => {}
        }
    }

    /// `0|([1-9]\d{0,more})`
    pub fn decimal(&mut self, text: &Option<Text<'_>>, at: impl Display, more: usize) {
        if let Some(text) = text {
            let good = is_decimal(text, more);
            self.matches(text, at, &format!(r"0|([1-9]\d{{0,{more}}})"), good);
        }
    }

    pub fn sequence(&mut self, text: &Option<Text<'_>>, at: &str) {
        self.decimal(text, at, DIGITS_MAX - 1);
    }

    pub fn token(&mut self, token: &Option<Text<'_>>) {
        if let Some(token) = token {
            self.length(token, "nextToken", 1, TOKEN_BYTES_MAX);
        }
    }

    pub fn one_of(&mut self, text: &Option<Text<'_>>, at: &str, values: &[&str]) {
        if let Some(text) = text
            && !values.contains(&&**text)
        {
            let set = values.join(", ");
            self.fail(&**text, at, format_args!("Member must satisfy enum value set: [{set}]"));
        }
    }
}

pub fn is_decimal(text: &str, more: usize) -> bool {
    let digits = text.as_bytes();
    match digits {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.len() <= more && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::borrow::Cow;

    fn text(text: &str) -> Option<Text<'_>> {
        Some(Text(Cow::Borrowed(text)))
    }

    #[test]
    fn failures_of_one_request_are_told_together_as_aws_words_them() {
        let mut checks = Checks::default();
        checks.stream_name(&text(""));
        checks.range(Some(Integer(0)), "limit", 1, 10_000);
        checks.present::<u8>(&None, "shardIteratorType");
        let says = checks.finish().unwrap_err().says;
        assert_eq!(
            says,
            "4 validation errors detected: \
             Value '' at 'streamName' failed to satisfy constraint: Member must satisfy regular expression pattern: [a-zA-Z0-9_.-]+; \
             Value '' at 'streamName' failed to satisfy constraint: Member must have length greater than or equal to 1; \
             Value '0' at 'limit' failed to satisfy constraint: Member must have value greater than or equal to 1; \
             Value null at 'shardIteratorType' failed to satisfy constraint: Member must not be null"
        );
    }

    #[test]
    fn at_most_ten_failures_are_told() {
        let mut checks = Checks::default();
        for n in 0..1000 {
            checks.present::<u8>(&None, format_args!("records.{n}.member.data"));
        }
        assert!(checks.finish().unwrap_err().says.starts_with("10 validation errors detected: "));
    }

    #[test]
    fn decimals_have_no_leading_zero_and_a_bounded_length() {
        for good in ["0", "1", "10", "340282366920938463463374607431768211455"] {
            assert!(is_decimal(good, 38), "{good}");
        }
        for bad in ["", "00", "01", "-1", "1a", &"1".repeat(40)] {
            assert!(!is_decimal(bad, 38), "{bad}");
        }
    }
}
