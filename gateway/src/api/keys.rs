//! Access keys that may sign requests: from the configuration, or from a file of lines `ID SECRET`.

use crate::problem::Problem;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Access keys of one gateway.
pub const KEYS_MAX: usize = 1024;

/// One access key as a configuration names it. The secret belongs in `keys_file`; here it is for tests and trials.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields, expecting = "a table such as { id = \"...\", secret = \"...\" }")]
pub struct AccessKey {
    pub id: String,
    pub secret: String,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessKey({})", self.id)
    }
}

/// All keys, by id. None: nobody has to sign.
#[derive(Default, Clone)]
pub struct Keys(BTreeMap<String, String>);

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("{path}: {source}")]
    Io { path: std::path::PathBuf, source: std::io::Error },
    #[error("{path}, line {line}: write an access key id and its secret, separated by a space")]
    Line { path: std::path::PathBuf, line: usize },
    #[error("{0} access keys are given; {KEYS_MAX} are the most")]
    TooMany(usize),
    #[error("{path} holds no access key")]
    Empty { path: std::path::PathBuf },
}

impl Keys {
    pub fn load(listed: &[AccessKey], file: Option<&Path>) -> Result<Self, KeysError> {
        let mut keys: BTreeMap<_, _> = listed.iter().map(|key| (key.id.clone(), key.secret.clone())).collect();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| KeysError::Io { path: path.into(), source })?;
            let read = Self::parse(&text).map_err(|line| KeysError::Line { path: path.into(), line })?;
            if read.is_empty() {
                return Err(KeysError::Empty { path: path.into() });
            }
            keys.extend(read);
        }
        if keys.len() > KEYS_MAX { Err(KeysError::TooMany(keys.len())) } else { Ok(Keys(keys)) }
    }

    /// The pairs of a keys file, or the number of the line that is none.
    fn parse(text: &str) -> Result<Vec<(String, String)>, usize> {
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        let pairs = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        pairs
            .map(|(at, line)| {
                let mut words = line.split_whitespace();
                match (words.next(), words.next(), words.next()) {
                    (Some(id), Some(secret), None) => Ok((id.to_owned(), secret.to_owned())),
                    _ => Err(at),
                }
            })
            .collect()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn secret(&self, id: &str) -> Option<&str> {
        self.0.get(id).map(String::as_str)
    }

    pub fn iter(&self) -> impl std::iter::Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(id, secret)| (id.as_str(), secret.as_str()))
    }
}

/// What is wrong with the keys of a configuration.
pub fn check(listed: &[AccessKey], file: Option<&Path>) -> Vec<Problem> {
    match Keys::load(listed, file) {
        Ok(_) => listed
            .iter()
            .enumerate()
            .filter(|(_, key)| key.id.is_empty() || key.secret.is_empty())
            .map(|(at, _)| Problem::new(format!("api.access_keys[{at}]"), "give both an id and a secret"))
            .collect(),
        Err(error) => vec![Problem::new("api.keys_file", error.to_string())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keys_file_has_a_pair_a_line() {
        let read = Keys::parse("# who may write\nAKID secret\n\n  AKID2\tother/secret+= \n").unwrap();
        assert_eq!(read, [("AKID".into(), "secret".into()), ("AKID2".into(), "other/secret+=".into())]);
        assert_eq!(Keys::parse("ok pair\nonly-one\n"), Err(2));
        assert_eq!(Keys::parse("a b c"), Err(1));
    }
}
