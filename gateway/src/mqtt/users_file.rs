//! The password file as text that people edit: one user's line is set or taken out, everything else stays as it stands.
//! `headwater passwd` is built on it; what the lines mean to a login is `auth`'s (pure).

use super::auth::{Users, UsersError};
use std::path::Path;

/// What to do about a user.
#[derive(Clone, Copy, Debug)]
pub enum Edit<'a> {
    /// The line's second half, from [`super::hash_password`].
    Set(&'a str),
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edited {
    Added,
    Changed,
    Deleted,
}

/// The file with the user set or taken out; every other line is the same, byte for byte. A file with a mistake in it is
/// refused: it may be another kind of file. `path` stands in the errors.
pub fn edit_users(text: &str, path: &Path, name: &str, edit: Edit<'_>) -> Result<(String, Edited), UsersError> {
    Users::parse(text, path)?;
    if let Some(says) = why_not_a_name(name) {
        return Err(UsersError::Name { name: name.to_owned(), says });
    }
    let mut edited = String::with_capacity(text.len() + 256);
    let mut found = false;
    for line in text.split_inclusive('\n') {
        if name_of(line) != Some(name) {
            edited.push_str(line);
            continue;
        }
        found = true;
        if let Edit::Set(hash) = edit {
            push_user(&mut edited, name, hash);
        }
    }
    let done = match (edit, found) {
        (Edit::Set(_), true) => Edited::Changed,
        (Edit::Set(hash), false) => {
            if !edited.is_empty() && !edited.ends_with('\n') {
                edited.push('\n');
            }
            push_user(&mut edited, name, hash);
            Edited::Added
        }
        (Edit::Delete, true) => Edited::Deleted,
        (Edit::Delete, false) => return Err(UsersError::Unknown { path: path.to_owned(), name: name.to_owned() }),
    };
    Ok((edited, done))
}

fn push_user(into: &mut String, name: &str, hash: &str) {
    into.push_str(name);
    into.push(':');
    into.push_str(hash);
    into.push('\n');
}

/// As [`Users::parse`] reads a line.
fn name_of(line: &str) -> Option<&str> {
    let line = line.trim();
    let (name, _) = line.split_once(':').filter(|_| !line.starts_with('#'))?;
    Some(name)
}

/// A name must read back from its line as it was written, and be one that MQTT can carry.
fn why_not_a_name(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("it is empty")
    } else if name.len() > usize::from(u16::MAX) {
        Some("MQTT carries at most 65,535 bytes")
    } else if name.contains(':') {
        Some("a colon ends the name in the file")
    } else if name.starts_with('#') {
        Some("# begins a comment in the file")
    } else if name.trim() != name {
        Some("it begins or ends with white space")
    } else if name.contains(char::is_control) {
        Some("it holds a control character")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::hash_password;

    fn path() -> &'static Path {
        Path::new("users")
    }

    fn user(name: &str) -> String {
        format!("{name}:{}\n", hash_password(b"old").unwrap())
    }

    #[test]
    fn one_line_changes_and_every_other_byte_stays() {
        let hash = hash_password(b"new").unwrap();
        let (before, after) =
            (format!("# fleet\r\n\n  {}", user("pump")), format!("# valve:x\n{}", user("valve2").trim_end()));
        let text = format!("{before}{}{after}", user("valve"));
        let set = edit_users(&text, path(), "valve", Edit::Set(&hash)).unwrap();
        assert_eq!(set, (format!("{before}valve:{hash}\n{after}"), Edited::Changed));
        let deleted = edit_users(&text, path(), "valve", Edit::Delete).unwrap();
        assert_eq!(deleted, (format!("{before}{after}"), Edited::Deleted));
        // The last line had no end.
        let added = edit_users(&text, path(), "new", Edit::Set(&hash)).unwrap();
        assert_eq!(added, (format!("{text}\nnew:{hash}\n"), Edited::Added));
        assert_eq!(edit_users("", path(), "a", Edit::Set(&hash)).unwrap(), (format!("a:{hash}\n"), Edited::Added));
    }

    #[test]
    fn what_would_not_read_back_is_refused() {
        let hash = hash_password(b"new").unwrap();
        for bad in ["", "a:b", "#a", " a", "a\t", "a\nb", "a\0", &"x".repeat(65_536)] {
            let refused = edit_users("", path(), bad, Edit::Set(&hash));
            assert!(matches!(refused, Err(UsersError::Name { .. })), "{bad:?}");
        }
        for good in ["a", "pump 7", "x#y", "é", "a$b"] {
            let (text, _) = edit_users("", path(), good, Edit::Set(&hash)).unwrap();
            assert!(
                matches!(edit_users(&text, path(), good, Edit::Delete), Ok((rest, _)) if rest.is_empty()),
                "{good:?}"
            );
        }
        let unknown = edit_users(&user("a"), path(), "b", Edit::Delete).unwrap_err();
        assert_eq!(unknown.to_string(), "users: there is no user \"b\"");
    }

    #[test]
    fn a_file_that_is_something_else_is_not_touched() {
        for text in ["[mqtt]\nlisten = \"x\"\n", "root:x:0:0::/root:/bin/sh\n", &user("a").repeat(2)] {
            assert!(edit_users(text, path(), "b", Edit::Set("x")).is_err(), "{text}");
        }
    }
}
