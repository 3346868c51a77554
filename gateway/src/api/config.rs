//! The `[api]` section.

use super::arn::Account;
use super::keys::{self, AccessKey};
use crate::http::{BodyLimits, Limits};
use crate::problem::Problem;
use crate::units::{ByteSize, Listen, Span};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// A PutRecords request of 10 MiB of data as JSON: base64 makes 4 bytes of 3, keys and names come on top.
pub(super) const BODY_BYTES_MAX: usize = 15 << 20;
/// A byte of a request costs itself and what it becomes in the batch for the log.
pub(super) const BODY_COST: usize = 2;
/// The largest request must fit into memory beside a few small ones.
const IN_FLIGHT_MIN: ByteSize = ByteSize::mib(32);

/// The AWS door: Kinesis Data Streams on one port, HTTP/1.1 and HTTP/2.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Address and port; "off" turns it off. Anything but loopback wants access keys.
    pub listen: Listen,
    /// Region in the ARNs this gateway shows. Requests may be signed for any.
    pub region: String,
    /// Account id in the ARNs this gateway shows, 12 digits.
    pub account: String,
    /// File of lines `ACCESS_KEY_ID SECRET`. With keys, every request must be signed by one of them.
    pub keys_file: Option<PathBuf>,
    /// Access keys written here; better in `keys_file`.
    pub access_keys: Vec<AccessKey>,
    /// Listen beyond loopback without access keys: anyone who reaches the port reads and writes everything.
    pub insecure_no_signature: bool,
    /// Connections open at once.
    pub max_connections: u32,
    /// Memory for requests and answers of all connections together.
    pub in_flight: ByteSize,
    /// From connecting to the end of the first request's headers.
    pub head_timeout: Span,
    /// For the body of a request to come in.
    pub body_timeout: Span,
    /// For an operation to be answered, the commit of a put included.
    pub answer_timeout: Span,
    /// A connection that does nothing for so long is closed.
    pub idle_timeout: Span,
}

impl Default for ApiConfig {
    fn default() -> Self {
        ApiConfig {
            listen: (Ipv4Addr::LOCALHOST, 4567).into(),
            region: "us-east-1".into(),
            account: "000000000000".into(),
            keys_file: None,
            access_keys: Vec::new(),
            insecure_no_signature: false,
            max_connections: 256,
            in_flight: ByteSize::mib(48),
            head_timeout: Span::secs(10),
            body_timeout: Span::secs(30),
            answer_timeout: Span::secs(30),
            idle_timeout: Span::secs(75),
        }
    }
}

impl ApiConfig {
    /// Mistakes, with what to write instead.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = keys::check(&self.access_keys, self.keys_file.as_deref());
        let mut wrong = |key: &str, says: &str| problems.push(Problem::new(format!("api.{key}"), says));
        let keyless = self.keys_file.is_none() && self.access_keys.is_empty();
        if self.listen.is_open() && keyless && !self.insecure_no_signature {
            wrong(
                "listen",
                "anyone who reaches this address could read and write every stream: name a keys_file with access keys, \
                 listen on 127.0.0.1, or set insecure_no_signature = true if the network is trusted",
            );
        }
        if self.account.len() != 12 || !self.account.bytes().all(|b| b.is_ascii_digit()) {
            wrong("account", "an account id has 12 digits, as \"000000000000\"");
        }
        if self.region.is_empty()
            || !self.region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            wrong("region", "a region has small letters, digits and '-', as \"eu-west-1\"");
        }
        if self.max_connections == 0 {
            wrong("max_connections", "at least 1 connection must be allowed; write listen = \"off\" to close the door");
        }
        if self.in_flight < IN_FLIGHT_MIN {
            wrong("in_flight", "at least \"32 MiB\": the largest PutRecords takes 30 MiB on its way");
        }
        for (key, span) in [
            ("head_timeout", self.head_timeout),
            ("body_timeout", self.body_timeout),
            ("answer_timeout", self.answer_timeout),
            ("idle_timeout", self.idle_timeout),
        ] {
            if span.as_ms() < 100 {
                wrong(key, "at least \"100 ms\"");
            }
        }
        problems
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { connections_max: self.max_connections as usize, head: self.head_timeout.0, idle: self.idle_timeout.0 }
    }

    pub(super) fn body_limits(&self) -> BodyLimits {
        BodyLimits { bytes_max: BODY_BYTES_MAX, within: self.body_timeout.0, cost: BODY_COST }
    }

    pub(super) fn account(&self) -> Account {
        Account { region: self.region.clone(), id: self.account.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys_of(problems: &[Problem]) -> Vec<&str> {
        problems.iter().map(|problem| problem.key.as_str()).collect()
    }

    #[test]
    fn beyond_loopback_a_door_wants_keys_or_a_key_named_insecure() {
        let open = ApiConfig { listen: "0.0.0.0:4567".parse().unwrap(), ..Default::default() };
        assert_eq!(keys_of(&open.check()), ["api.listen"]);
        let key = AccessKey { id: "AKID".into(), secret: "s".into() };
        assert_eq!(ApiConfig { access_keys: vec![key], ..open.clone() }.check(), []);
        assert_eq!(ApiConfig { insecure_no_signature: true, ..open }.check(), []);
        assert_eq!(ApiConfig::default().check(), []);
    }

    #[test]
    fn every_mistake_is_told() {
        let config: ApiConfig = toml::from_str(
            r#"
            account = "12"
            region = "EU west"
            max_connections = 0
            in_flight = "1 MiB"
            idle_timeout = "1 ms"
            keys_file = "/nonexistent/keys"
            "#,
        )
        .unwrap();
        assert_eq!(
            keys_of(&config.check()),
            ["api.keys_file", "api.account", "api.region", "api.max_connections", "api.in_flight", "api.idle_timeout"]
        );
        assert!(toml::from_str::<ApiConfig>("lissten = 1").is_err());
    }
}
