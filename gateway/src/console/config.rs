//! The `[console]` section.

use super::token::Token;
use crate::http::Limits;
use crate::problem::Problem;
use crate::units::{Listen, Span};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Admin endpoints: `/metrics`, `/healthz`, `/readyz`, `/status`, `/devices`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleConfig {
    /// Address and port; "off" turns it off. Anything but loopback wants a token.
    pub listen: Listen,
    /// File whose content is the token that all but `/healthz` and `/readyz` ask for; those two are for everyone.
    pub token_file: Option<PathBuf>,
    /// Listen beyond loopback without a token: anyone who reaches the port sees names and figures, and changes nothing.
    pub insecure_no_token: bool,
    /// Connections open at once.
    pub max_connections: u32,
    /// From connecting to the end of the first request's headers.
    pub head_timeout: Span,
    /// A connection that does nothing for so long is closed.
    pub idle_timeout: Span,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        ConsoleConfig {
            listen: (Ipv4Addr::LOCALHOST, 8080).into(),
            token_file: None,
            insecure_no_token: false,
            max_connections: 64,
            head_timeout: Span::secs(10),
            idle_timeout: Span::secs(75),
        }
    }
}

impl ConsoleConfig {
    /// Mistakes, with what to write instead.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut wrong = |key: &str, says: String| problems.push(Problem::new(format!("console.{key}"), says));
        if self.listen.is_open() && self.token_file.is_none() && !self.insecure_no_token {
            let says = "anyone who reaches this address would see every stream's name and figures: name a token_file, \
                        listen on 127.0.0.1, or set insecure_no_token = true if the network is trusted";
            wrong("listen", says.into());
        }
        if let Some(Err(error)) = self.token_file.as_deref().map(Token::load) {
            wrong("token_file", error.to_string());
        }
        if self.max_connections == 0 {
            wrong("max_connections", "at least 1 connection must be allowed; write listen = \"off\" for none".into());
        }
        for (key, span) in [("head_timeout", self.head_timeout), ("idle_timeout", self.idle_timeout)] {
            if span.as_ms() < 100 {
                wrong(key, "at least \"100 ms\"".into());
            }
        }
        problems
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { connections_max: self.max_connections as usize, head: self.head_timeout.0, idle: self.idle_timeout.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_a_console_wants_a_token_or_a_key_named_insecure() {
        let keys = |config: &ConsoleConfig| config.check().into_iter().map(|p| p.key).collect::<Vec<_>>();
        let open = ConsoleConfig { listen: "0.0.0.0:8080".parse().unwrap(), ..Default::default() };
        assert_eq!(keys(&open), ["console.listen"]);
        assert_eq!(keys(&ConsoleConfig { insecure_no_token: true, ..open.clone() }), [""; 0]);
        let missing = ConsoleConfig { token_file: Some("/nonexistent/token".into()), ..open };
        assert_eq!(keys(&missing), ["console.token_file"]);
        assert_eq!(keys(&ConsoleConfig::default()), [""; 0]);
    }
}
