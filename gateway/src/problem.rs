//! A mistake in the configuration, as every part reports it: which key, and what to write instead. Pure.

use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the key, as in `mqtt.tls.cert` or `sink[0].region`.
    pub key: String,
    /// A sentence that says what is wrong and what to write instead.
    pub says: String,
}

impl Problem {
    pub fn new(key: impl Into<String>, says: impl Into<String>) -> Self {
        Problem { key: key.into(), says: says.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.says)
    }
}
