//! The one token of the console. Kept as its hash, so that comparing takes the same time for every guess.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use ring::digest;
use std::path::{Path, PathBuf};

/// Shortest token, in bytes: what is shorter can be guessed.
const TOKEN_BYTES_MIN: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "{path}: a token is at least {TOKEN_BYTES_MIN} characters without spaces; `openssl rand -hex 16` makes one"
    )]
    Weak { path: PathBuf },
}

pub struct Token([u8; 32]);

impl Token {
    pub fn load(path: &Path) -> Result<Self, TokenError> {
        let text = std::fs::read_to_string(path).map_err(|source| TokenError::Io { path: path.into(), source })?;
        Self::new(text.trim()).ok_or_else(|| TokenError::Weak { path: path.into() })
    }

    fn new(text: &str) -> Option<Self> {
        let good = text.len() >= TOKEN_BYTES_MIN && !text.contains(char::is_whitespace);
        good.then(|| Token(hash(text.as_bytes())))
    }

    /// Whether the request carries the token.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        let sent = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        sent.is_some_and(|sent| hash(sent) == self.0)
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_opens() {
        let token = Token::new("0123456789abcdef").unwrap();
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, http::HeaderValue::from_static(value));
            token.is_in(&headers)
        };
        assert!(with("Bearer 0123456789abcdef"));
        assert!(!with("Bearer 0123456789abcdee"));
        assert!(!with("0123456789abcdef"));
        assert!(!token.is_in(&HeaderMap::new()));
        assert!(Token::new("short").is_none());
    }
}
