//! What the file of a blob is called: the device, the blob's id, and what the bytes look like. Pure.
//!
//! ```text
//! cam-1-7.jpg      blob 7 of the device cam-1
//! cam-1-7.2.jpg    another blob of the same id: ids come again
//! ```
//! A device's id comes from a stranger. No name leads out of the directory, is hidden, looks like an option, or is that of
//! another device.

use std::fmt::Write;

/// What is left of an id for a name, in bytes: file systems take 255.
const ID_BYTES_MAX: usize = 160;
const DIGEST_DIGITS: usize = 32;

/// The name of the blob that is the `life`-th of its id, from 1.
pub fn file_name(device: &str, id: u32, life: u32, kind: &str) -> String {
    let device = escape(device);
    match life {
        1 => format!("{device}-{id}.{kind}"),
        _ => format!("{device}-{id}.{life}.{kind}"),
    }
}

/// Percent-encodes all but letters, digits, `_`, `.` and `-`, and the latter two in front. An id that is too long ends in `%%` and
/// a digest of all of it, which nothing encoded does.
fn escape(device: &str) -> String {
    let mut name = String::new();
    for (at, byte) in device.bytes().enumerate() {
        match byte {
            b'.' | b'-' if at > 0 => name.push(byte as char),
            b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => name.push(byte as char),
            // Writing into memory cannot fail.
            _ => drop(write!(name, "%{byte:02X}")),
        }
    }
    if device.is_empty() {
        name.push('%');
    }
    if name.len() > ID_BYTES_MAX {
        name.truncate(ID_BYTES_MAX - DIGEST_DIGITS - 2);
        let digest = reqsign_core::hash::hex_sha256(device.as_bytes());
        name.push_str("%%");
        name.push_str(&digest[..DIGEST_DIGITS]);
    }
    name
}

/// How many of a blob's first bytes [`kind`] looks at.
pub const HEAD_BYTES: usize = 16;

/// The extension for bytes that begin so.
pub fn kind(head: &[u8]) -> &'static str {
    const KINDS: [(usize, &[u8], &str); 16] = [
        (0, b"\xff\xd8\xff", "jpg"),
        (0, b"\x89PNG\r\n\x1a\n", "png"),
        (0, b"GIF8", "gif"),
        (8, b"WEBP", "webp"),
        (8, b"WAVE", "wav"),
        (8, b"AVI ", "avi"),
        (4, b"ftypavif", "avif"),
        (4, b"ftyphei", "heic"),
        (4, b"ftyp", "mp4"),
        (0, b"\x1a\x45\xdf\xa3", "mkv"),
        (0, b"OggS", "ogg"),
        (0, b"fLaC", "flac"),
        (0, b"%PDF-", "pdf"),
        (0, b"\x1f\x8b", "gz"),
        (0, b"\x28\xb5\x2f\xfd", "zst"),
        (0, b"PK\x03\x04", "zip"),
    ];
    let is = |(at, magic, _): &&(usize, &[u8], &str)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    KINDS.iter().find(is).map_or("bin", |(_, _, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_says_whose_it_is_and_leads_nowhere() {
        for (device, name) in [
            ("cam-1", "cam-1-7.jpg"),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd-7.jpg"),
            (".hidden", "%2Ehidden-7.jpg"),
            ("-rf", "%2Drf-7.jpg"),
            ("", "%-7.jpg"),
            ("a b\n\0%", "a%20b%0A%00%25-7.jpg"),
            ("küche", "k%C3%BCche-7.jpg"),
        ] {
            assert_eq!(file_name(device, 7, 1, "jpg"), name);
        }
        assert_eq!(file_name("cam-1", 7, 3, "jpg"), "cam-1-7.3.jpg");
    }

    #[test]
    fn the_first_bytes_say_what_it_is() {
        for (head, expected) in [
            (&b"\xff\xd8\xff\xe0\x00\x10JFIF"[..], "jpg"),
            (b"\x89PNG\r\n\x1a\n", "png"),
            (b"\0\0\0\x18ftypmp42", "mp4"),
            (b"RIFF\0\0\0\0WEBPVP8 ", "webp"),
            (b"\x1f\x8b\x08", "gz"),
            (b"\xff\xd8", "bin"),
            (b"", "bin"),
        ] {
            assert_eq!(kind(head), expected, "{head:?}");
            assert!(head.len() <= HEAD_BYTES);
        }
    }

    proptest! {
        #[test]
        fn names_are_plain_and_each_devices_own(
            one in ("[-.%/a1]{0,4}|\\PC{0,80}|.{300}", 0u32..30, 1u32..4),
            other in ("[-.%/a1]{0,4}|\\PC{0,80}|.{300}", 0u32..30, 1u32..4),
        ) {
            let name = |of: &(String, u32, u32)| file_name(&of.0, of.1, of.2, "bin");
            let (a, b) = (name(&one), name(&other));
            prop_assert!(a.len() <= 255 && !a.starts_with(['.', '-']));
            prop_assert!(a.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._%".contains(&byte)));
            prop_assert_eq!(a == b, one == other);
        }
    }
}
