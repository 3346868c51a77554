//! `headwater passwd FILE USER`: sets a user's password in the file that `mqtt.users_file` names, or takes the user out.
//!
//! What the file becomes is worked out by `mqtt::edit_users`; here are the prompt, which echoes nothing, and the file, which
//! is written aside and renamed, so that a gateway that starts meanwhile reads the old one or the new one.

use super::output::Output;
use super::usage;
use crate::mqtt::{Edit, Edited, UsersError, edit_users, hash_password};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, IsTerminal, Read, Stdin, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Longest password MQTT can carry, in bytes.
const PASSWORD_BYTES_MAX: usize = u16::MAX as usize;
/// The owner, and the group if the file gave it that already: never anyone else.
const MODE: u32 = 0o600;
const MODE_MAX: u32 = 0o640;

/// Set a user's password in a password file, or take the user out.
///
/// Asks for the password twice without echo on a terminal; otherwise it is one line of stdin. A file that is not there is
/// made, for its owner alone. Other lines and comments stay as they are. A gateway reads the file when it starts.
#[derive(Args)]
pub struct Passwd {
    /// The file that `mqtt.users_file` names.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Name of the user, as the client sends it.
    user: String,
    /// Take the user out.
    #[arg(long)]
    delete: bool,
}

impl Passwd {
    pub fn run(self, out: &Output) -> Result<()> {
        // The rename must not put a file in the place of a link.
        let path = std::fs::canonicalize(&self.file).unwrap_or_else(|_| self.file.clone());
        let before = read(&path)?;
        if self.delete && before.is_none() {
            bail!("{}: there is no such file", self.file.display());
        }
        // What would be refused later is told before anybody types a password.
        let text = before.unwrap_or_default();
        edit_users(&text, &path, &self.user, Edit::Set("")).map_err(name_is_usage)?;
        let hash = if self.delete {
            None
        } else {
            let password = ask(&self.user)?;
            Some(hash_password(&password).map_err(|error| anyhow!("no randomness for the salt: {error}"))?)
        };
        let edit = hash.as_deref().map_or(Edit::Delete, Edit::Set);
        let done = change(&path, &self.user, edit)?;
        let done = match done {
            Edited::Added => "added",
            Edited::Changed => "changed",
            Edited::Deleted => "deleted",
        };
        out.result(&serde_json::json!({"file": self.file, "user": self.user, "done": done}), || {
            format!("{}: {done} {}; a gateway reads the file when it starts", self.file.display(), self.user)
        })
    }
}

fn name_is_usage(error: UsersError) -> anyhow::Error {
    match error {
        UsersError::Name { .. } => usage(error.to_string()),
        other => other.into(),
    }
}

/// `None`: there is no file yet.
fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Reads, edits and replaces the file. The new one lies beside it under a name that only one can make at a time, so two
/// of us do not undo each other's work.
fn change(path: &Path, user: &str, edit: Edit<'_>) -> Result<Edited> {
    let name = path.file_name().context("FILE has no name")?.to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.new"));
    let told = || format!("{}", aside.display());
    let mut new = match OpenOptions::new().write(true).create_new(true).mode(MODE).open(&aside) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!("{} is there: another `headwater passwd` is at work, or was killed; then remove it", aside.display())
        }
        opened => opened.with_context(told)?,
    };
    let done = replace(path, &aside, &mut new, user, edit);
    if done.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    done
}

#[expect(clippy::disallowed_methods, reason = "the directory is synced right behind it")]
fn replace(path: &Path, aside: &Path, new: &mut File, user: &str, edit: Edit<'_>) -> Result<Edited> {
    let (text, done) = edit_users(&read(path)?.unwrap_or_default(), path, user, edit)?;
    if let Ok(old) = std::fs::metadata(path) {
        keep_readers(new, &old).with_context(|| {
            format!("{} belongs to another user, who could not read the new one: run this as that user", path.display())
        })?;
    }
    new.write_all(text.as_bytes()).and_then(|()| new.sync_all()).with_context(|| aside.display().to_string())?;
    std::fs::rename(aside, path).with_context(|| path.display().to_string())?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| dir.display().to_string())?;
    Ok(done)
}

/// Whoever runs the gateway could read the old file and must be able to read the new one; nobody else gains anything.
fn keep_readers(new: &File, old: &std::fs::Metadata) -> io::Result<()> {
    let made = new.metadata()?;
    if (made.uid(), made.gid()) != (old.uid(), old.gid()) {
        fchown(new, Some(old.uid()), Some(old.gid()))?;
    }
    new.set_permissions(std::fs::Permissions::from_mode(old.mode() & MODE_MAX | MODE))
}

fn ask(user: &str) -> Result<Vec<u8>> {
    let stdin = io::stdin();
    let password = if stdin.is_terminal() {
        let first = prompt(&stdin, &format!("Password for {user}: "))?;
        if prompt(&stdin, "The same again: ")? != first {
            bail!("the two are not the same; nothing was changed");
        }
        first
    } else {
        let mut line = Vec::new();
        // One more than the longest with its end, to see that it is too long.
        stdin.lock().take(PASSWORD_BYTES_MAX as u64 + 3).read_until(b'\n', &mut line).context("stdin")?;
        let end = line.strip_suffix(b"\n").map_or(&line[..], |line| line.strip_suffix(b"\r").unwrap_or(line));
        end.to_vec()
    };
    match password.len() {
        0 => bail!("the password is empty; nothing was changed"),
        PASSWORD_BYTES_MAX.. if password.len() > PASSWORD_BYTES_MAX => {
            bail!("MQTT carries passwords of at most 65,535 bytes; nothing was changed")
        }
        _ => Ok(password),
    }
}

/// A terminal that shows nothing and sends every key, until this is dropped. Without signals: a Ctrl-C that ended the
/// program would leave the terminal dumb.
struct Quiet<'a> {
    stdin: &'a Stdin,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn new(stdin: &'a Stdin) -> io::Result<Self> {
        let before = tcgetattr(stdin)?;
        let mut quiet = before.clone();
        quiet.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG;
        tcsetattr(stdin, OptionalActions::Flush, &quiet)?;
        Ok(Quiet { stdin, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.stdin, OptionalActions::Flush, &self.before);
    }
}

fn prompt(stdin: &Stdin, says: &str) -> Result<Vec<u8>> {
    let quiet = Quiet::new(stdin).context("the terminal")?;
    eprint!("{says}");
    let typed = typed_line(stdin.lock().bytes());
    drop(quiet);
    eprintln!();
    typed.context("the terminal")?.context("given up; nothing was changed")
}

/// One line from single keys; `None` if it was given up.
fn typed_line(keys: impl Iterator<Item = io::Result<u8>>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    for key in keys {
        match key? {
            b'\r' | b'\n' => return Ok(Some(line)),
            // Ctrl-C, Ctrl-D, Ctrl-Z and Ctrl-\.
            0x03 | 0x04 | 0x1a | 0x1c => return Ok(None),
            // Backspace takes a whole character.
            0x08 | 0x7f => while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            // Ctrl-U.
            0x15 => line.clear(),
            0x00..0x20 => {}
            byte if line.len() <= PASSWORD_BYTES_MAX => line.push(byte),
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> Option<String> {
        let line = typed_line(keys.iter().map(|key| Ok(*key))).unwrap();
        line.map(|line| String::from_utf8(line).unwrap())
    }

    #[test]
    fn a_typed_line_can_be_mended_and_given_up() {
        assert_eq!(typed(b"s3cret\rrest").as_deref(), Some("s3cret"));
        assert_eq!(typed("xé\x7f\x08\x7fok\n".as_bytes()).as_deref(), Some("ok"));
        assert_eq!(typed(b"wrong\x15right\n").as_deref(), Some("right"));
        assert_eq!(typed(b"secret\x03\n"), None);
        assert_eq!(typed(b"no end"), None);
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn the_file_is_made_for_its_owner_and_never_opened_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        let hash = hash_password(b"x").unwrap();
        assert_eq!(change(&path, "pump", Edit::Set(&hash)).unwrap(), Edited::Added);
        assert_eq!(mode(&path), 0o600);
        for (before, after) in [(0o644, 0o640), (0o640, 0o640), (0o400, 0o600), (0o666, 0o640)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(before)).unwrap();
            assert_eq!(change(&path, "pump", Edit::Set(&hash)).unwrap(), Edited::Changed);
            assert_eq!(mode(&path), after, "{before:o}");
        }
        assert_eq!(change(&path, "pump", Edit::Delete).unwrap(), Edited::Deleted);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_change_that_fails_leaves_the_file_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        std::fs::write(&path, "# mine\n").unwrap();
        assert!(change(&path, "nobody", Edit::Delete).unwrap_err().to_string().contains("no user"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        // Another one is at work.
        std::fs::write(dir.path().join(".users.new"), "").unwrap();
        assert!(change(&path, "pump", Edit::Set("x")).unwrap_err().to_string().contains(".users.new is there"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "# mine\n");
        assert!(dir.path().join(".users.new").exists(), "it is not ours to remove");
    }
}
