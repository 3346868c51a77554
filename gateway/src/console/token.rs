//! The one token of the console. Kept as its hash, so that comparing takes the same time for every guess.

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use ring::digest;
use std::path::{Path, PathBuf};

/// Shortest token, in bytes: what is shorter can be guessed.
const TOKEN_BYTES_MIN: usize = 16;
const COOKIE_NAME: &[u8] = b"headwater_token";

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

    /// Whether the request carries the token: as a bearer, or as the cookie that a browser has from signing in.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        let bearer = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let cookies = headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
        let cookie = cookies
            .filter_map(|pair| pair.trim_ascii().strip_prefix(COOKIE_NAME))
            .find_map(|rest| rest.strip_prefix(b"="));
        bearer.or(cookie).is_some_and(|sent| self.is(sent))
    }

    pub fn is(&self, sent: &[u8]) -> bool {
        hash(sent) == self.0
    }

    /// What a browser is told to keep: for this console's pages alone, and no script can read it.
    pub fn cookie(sent: &str) -> String {
        let name = String::from_utf8_lossy(COOKIE_NAME);
        format!("{name}={sent}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000")
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
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, http::HeaderValue::from_static("a=b; headwater_token=0123456789abcdef"));
        assert!(token.is_in(&headers));
        headers.insert(COOKIE, http::HeaderValue::from_static("headwater_token=0123456789abcdee"));
        assert!(!token.is_in(&headers));
    }
}
