//! Who is at the other end: the password file.
//!
//! A line is `name:pbkdf2-sha256$<iterations>$<salt>$<hash>`, salt and hash in base64. Deriving costs some ten
//! milliseconds of a core on purpose, so it runs off the async workers and one at a time; a few more may wait, the
//! rest is told to come back, and a failure is answered late. A password that was right once is remembered as a keyed
//! digest, so a fleet that reconnects does not pay again. (Certificates are judged by `tls`.)

use super::codec::Reason;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use ring::{digest, hmac, pbkdf2};
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

const SCHEME: &str = "pbkdf2-sha256";
const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = digest::SHA256_OUTPUT_LEN;
/// For new hashes; the line says its own.
const ITERATIONS: u32 = 100_000;
/// A line that asks for more would stall every login behind it.
const ITERATIONS_MAX: u32 = 2_000_000;
/// Logins that may wait for their turn.
const WAITING_MAX: usize = 256;
/// A wrong password or unknown user is answered after this, whatever it cost.
const FAILURE_DELAY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}, line {line}: write `name:{SCHEME}$iterations$salt$hash`; `headwater passwd` makes such a line")]
    Line { path: PathBuf, line: usize },
    #[error("{path}, line {line}: the user {name:?} stands twice")]
    Twice { path: PathBuf, line: usize, name: String },
    #[error("{path}: there is no user {name:?}")]
    Unknown { path: PathBuf, name: String },
    #[error("{name:?} cannot be a user's name: {says}")]
    Name { name: String, says: &'static str },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hash {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    hash: [u8; HASH_BYTES],
}

/// The users of the password file.
pub struct Users {
    users: HashMap<String, Hash>,
    turn: Arc<Semaphore>,
    waiting: Semaphore,
    /// Keyed digest of the password that was right last, by user.
    right: Mutex<HashMap<String, Vec<u8>>>,
    secret: hmac::Key,
}

/// A line's second half for a password: what `headwater passwd` writes behind the name.
pub fn hash_password(password: &[u8]) -> Result<String, getrandom::Error> {
    let mut salt = [0u8; SALT_BYTES];
    getrandom::fill(&mut salt)?;
    Ok(hash_line(password, &salt, ITERATIONS))
}

fn hash_line(password: &[u8], salt: &[u8], iterations: u32) -> String {
    let count = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    let mut hash = [0u8; HASH_BYTES];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, count, salt, password, &mut hash);
    format!("{SCHEME}${count}${}${}", BASE64.encode(salt), BASE64.encode(hash))
}

impl Users {
    pub fn load(path: &Path) -> Result<Self, UsersError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| UsersError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    pub fn parse(text: &str, path: &Path) -> Result<Self, UsersError> {
        let mut users = HashMap::new();
        for (at, line) in text.lines().enumerate() {
            let (line, number) = (line.trim(), at + 1);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = || UsersError::Line { path: path.to_owned(), line: number };
            let (name, hash) = line.split_once(':').ok_or_else(bad)?;
            let hash = Hash::parse(hash).filter(|_| !name.is_empty()).ok_or_else(bad)?;
            if users.insert(name.to_owned(), hash).is_some() {
                return Err(UsersError::Twice { path: path.to_owned(), line: number, name: name.to_owned() });
            }
        }
        let random = ring::rand::SystemRandom::new();
        // Without randomness the remembered digests would be guessable; an all-zero key still only guards memory.
        let secret = hmac::Key::generate(hmac::HMAC_SHA256, &random)
            .unwrap_or_else(|_| hmac::Key::new(hmac::HMAC_SHA256, &[0; 32]));
        Ok(Users {
            users,
            turn: Arc::new(Semaphore::new(1)),
            waiting: Semaphore::new(WAITING_MAX),
            right: Mutex::default(),
            secret,
        })
    }

    /// The identity of a user whose password is right.
    pub async fn verify(&self, name: Option<&str>, password: Option<&[u8]>) -> Result<String, Reason> {
        let (Some(name), Some(password)) = (name, password) else { return Err(Reason::NotAuthorized) };
        let digest = hmac::sign(&self.secret, password);
        let remembered = self.right.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if remembered.is_some_and(|right| right == digest.as_ref()) {
            return Ok(name.to_owned());
        }
        let waiting = self.waiting.try_acquire().map_err(|_| Reason::ServerBusy)?;
        let is_right = self.derive(name, password).await?;
        // Who is wrong waits on, but in nobody's way.
        drop(waiting);
        if is_right {
            let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
            right.insert(name.to_owned(), digest.as_ref().to_vec());
            return Ok(name.to_owned());
        }
        tokio::time::sleep(FAILURE_DELAY).await;
        Err(Reason::BadUserNameOrPassword)
    }

    async fn derive(&self, name: &str, password: &[u8]) -> Result<bool, Reason> {
        let Some(hash) = self.users.get(name).cloned() else { return Ok(false) };
        // The permit moves into the work: a client that leaves early does not let a second derivation start.
        let turn = self.turn.clone().acquire_owned().await.map_err(|_| Reason::ServerShuttingDown)?;
        let password = password.to_vec();
        let check = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            hash.is_right(&password)
        });
        check.await.map_err(|_| Reason::ServerShuttingDown)
    }
}

impl Hash {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('$');
        let scheme = parts.next()?;
        let iterations: NonZeroU32 = parts.next()?.parse().ok()?;
        let salt = BASE64.decode(parts.next()?).ok()?;
        let hash = BASE64.decode(parts.next()?).ok()?.try_into().ok()?;
        let whole = scheme == SCHEME && iterations.get() <= ITERATIONS_MAX && parts.next().is_none();
        whole.then_some(Hash { iterations, salt, hash })
    }

    fn is_right(&self, password: &[u8]) -> bool {
        pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, self.iterations, &self.salt, password, &self.hash).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(text: &str) -> Result<Users, UsersError> {
        Users::parse(text, Path::new("users"))
    }

    #[tokio::test]
    async fn the_right_password_names_the_user_and_the_wrong_one_does_not() {
        let file = format!("# fleet\n\npump:{}\n", hash_line(b"s3:cret", b"saltsaltsaltsalt", 10));
        let users = users(&file).unwrap();
        for _ in 0..2 {
            assert_eq!(users.verify(Some("pump"), Some(b"s3:cret")).await.as_deref(), Ok("pump"));
        }
        assert_eq!(users.verify(Some("pump"), Some(b"wrong")).await, Err(Reason::BadUserNameOrPassword));
        assert_eq!(users.verify(Some("nobody"), Some(b"s3:cret")).await, Err(Reason::BadUserNameOrPassword));
        assert_eq!(users.verify(None, None).await, Err(Reason::NotAuthorized));
    }

    #[tokio::test]
    async fn a_crowd_that_guesses_does_not_keep_others_out() {
        let users = Arc::new(users(&format!("pump:{}\n", hash_line(b"right", b"saltsaltsaltsalt", 10))).unwrap());
        let mut guesses = tokio::task::JoinSet::new();
        for _ in 0..2 * WAITING_MAX {
            let users = users.clone();
            guesses.spawn(async move { users.verify(Some("nobody"), Some(b"guess")).await });
        }
        // All of them have been told no in silence, and wait for it.
        tokio::time::sleep(FAILURE_DELAY / 4).await;
        assert_eq!(users.verify(Some("pump"), Some(b"right")).await.as_deref(), Ok("pump"));
        assert!(guesses.join_all().await.iter().all(|told| *told == Err(Reason::BadUserNameOrPassword)));
    }

    #[test]
    fn a_line_that_is_no_line_is_told_with_its_number() {
        let good = hash_line(b"x", b"salt", 1);
        for bad in ["pump", "pump:plain", ":x", &format!("a:{good}$"), "a:pbkdf2-sha256$0$AA$AA"] {
            let told = users(&format!("a1:{good}\n{bad}\n")).err().expect(bad).to_string();
            assert!(told.starts_with("users, line 2"), "{told}");
        }
        assert!(users(&format!("a:{good}\na:{good}")).err().unwrap().to_string().contains("stands twice"));
    }

    #[test]
    fn a_new_hash_reads_back() {
        let hash = Hash::parse(&hash_password(b"p").unwrap()).unwrap();
        assert!(hash.is_right(b"p") && !hash.is_right(b"q"));
    }
}
