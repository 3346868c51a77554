//! One file after the other: written aside, synced, renamed, the directory synced. Blocking.

use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

const ZSTD_LEVEL: i32 = 3;
/// Files of one millisecond are told apart by a counter up to this.
const SAME_NAME_MAX: u32 = 10_000;

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    #[default]
    Zstd,
    Gzip,
    None,
}

impl Compression {
    fn extension(self) -> &'static str {
        match self {
            Compression::Zstd => "ndjson.zst",
            Compression::Gzip => "ndjson.gz",
            Compression::None => "ndjson",
        }
    }
}

pub struct Roller {
    dir: PathBuf,
    prefix: String,
    compression: Compression,
    open: Option<Open>,
    records: u64,
    payload: u64,
}

struct Open {
    writer: Writer,
    aside: PathBuf,
    path: PathBuf,
    bytes: u64,
}

enum Writer {
    Zstd(zstd::stream::write::Encoder<'static, File>),
    Gzip(GzEncoder<BufWriter<File>>),
    Plain(BufWriter<File>),
}

impl Roller {
    /// Makes the directory and deletes what a crash left of this sink's files.
    pub fn start(dir: &Path, prefix: String, compression: Compression) -> io::Result<Self> {
        std::fs::create_dir_all(dir).map_err(at(dir))?;
        for entry in std::fs::read_dir(dir).map_err(at(dir))? {
            let path = entry.map_err(at(dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_ours = name.strip_prefix(&prefix).is_some_and(|rest| is_stamp(rest) && rest.ends_with(".tmp"));
            if is_ours {
                std::fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        Ok(Roller { dir: dir.to_owned(), prefix, compression, open: None, records: 0, payload: 0 })
    }

    /// Bytes in the open file, before compression.
    pub fn bytes(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.bytes)
    }

    pub fn note(&mut self, records: u64, payload: u64) {
        self.records += records;
        self.payload += payload;
    }

    /// What was noted since the last file was completed.
    pub fn noted(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.records), std::mem::take(&mut self.payload))
    }

    pub fn write(&mut self, lines: &[u8], now_ms: u64) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let open = self.begin(now_ms)?;
                self.open.insert(open)
            }
        };
        open.bytes += lines.len() as u64;
        let written = match &mut open.writer {
            Writer::Zstd(writer) => writer.write_all(lines),
            Writer::Gzip(writer) => writer.write_all(lines),
            Writer::Plain(writer) => writer.write_all(lines),
        };
        written.map_err(at(&open.aside))
    }

    fn begin(&self, now_ms: u64) -> io::Result<Open> {
        for again in 0..SAME_NAME_MAX {
            let name = format!("{}-{now_ms:013}-{again:04}.{}", self.prefix, self.compression.extension());
            let (path, aside) = (self.dir.join(&name), self.dir.join(format!("{name}.tmp")));
            if path.exists() {
                continue;
            }
            match OpenOptions::new().write(true).create_new(true).open(&aside) {
                Ok(file) => return Ok(Open { writer: self.writer(file)?, aside, path, bytes: 0 }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(at(&aside)(error)),
            }
        }
        Err(at(&self.dir)(io::Error::new(io::ErrorKind::AlreadyExists, "no name is free for the next file")))
    }

    fn writer(&self, file: File) -> io::Result<Writer> {
        Ok(match self.compression {
            Compression::Zstd => Writer::Zstd(zstd::stream::write::Encoder::new(file, ZSTD_LEVEL)?),
            Compression::Gzip => Writer::Gzip(GzEncoder::new(BufWriter::new(file), flate2::Compression::default())),
            Compression::None => Writer::Plain(BufWriter::new(file)),
        })
    }

    /// Makes the open file complete and durable under its name. Nothing to do if none is open.
    pub fn complete(&mut self) -> io::Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        open.writer.finish().and_then(|file| file.sync_all()).map_err(at(&open.aside))?;
        publish(&open.aside, &open.path)
    }
}

impl Writer {
    fn finish(self) -> io::Result<File> {
        let plain = |writer: BufWriter<File>| writer.into_inner().map_err(io::IntoInnerError::into_error);
        match self {
            Writer::Zstd(writer) => writer.finish(),
            Writer::Gzip(writer) => plain(writer.finish()?),
            Writer::Plain(writer) => plain(writer),
        }
    }
}

impl Drop for Roller {
    fn drop(&mut self) {
        // Given up before it was complete: it will be written again from the log.
        if let Some(open) = self.open.take() {
            let _ = std::fs::remove_file(open.aside);
        }
    }
}

/// `-<13 digits>-<4 digits>.` and more, as [`Roller::begin`] names files.
fn is_stamp(rest: &str) -> bool {
    let mut parts = rest.splitn(3, '-');
    let digits = |part: Option<&str>, count: usize| {
        part.and_then(|part| part.get(..count)).is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    parts.next() == Some("") && digits(parts.next(), 13) && digits(parts.next(), 4)
}

/// Renames and syncs the directory, so that the name is as durable as the content.
#[expect(clippy::disallowed_methods, reason = "this is the helper that syncs the directory")]
fn publish(aside: &Path, path: &Path) -> io::Result<()> {
    std::fs::rename(aside, path).map_err(at(path))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))
}

/// Names what could not be made, written or renamed: the system's own words do not.
fn at(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_only_once_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let mut roller = Roller::start(dir.path(), "cloud-s".into(), Compression::None).unwrap();
        roller.write(b"one\n", 5).unwrap();
        assert_eq!(names(dir.path()), ["cloud-s-0000000000005-0000.ndjson.tmp"]);
        roller.complete().unwrap();
        roller.write(b"two\n", 5).unwrap();
        roller.complete().unwrap();
        roller.complete().unwrap();
        assert_eq!(names(dir.path()), ["cloud-s-0000000000005-0000.ndjson", "cloud-s-0000000000005-0001.ndjson"]);
        assert_eq!(std::fs::read(dir.path().join("cloud-s-0000000000005-0001.ndjson")).unwrap(), b"two\n");
    }

    #[test]
    fn an_error_names_the_directory_or_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("blocked");
        std::fs::write(&blocked, "a file where the directory should be").unwrap();
        let says = |result: io::Result<()>, path: &Path| {
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}: ", path.display())) && error.contains("os error"), "{error}");
        };
        for dir in [&blocked, &blocked.join("below")] {
            says(Roller::start(dir, "a".into(), Compression::None).map(drop), dir);
        }

        let gone = dir.path().join("gone");
        let mut roller = Roller::start(&gone, "a".into(), Compression::None).unwrap();
        roller.write(b"one\n", 5).unwrap();
        std::fs::remove_dir_all(&gone).unwrap();
        let name = gone.join("a-0000000000005-0000.ndjson");
        says(roller.complete(), &name);
        says(roller.write(b"two\n", 5), &name.with_extension("ndjson.tmp"));

        let aside = dir.path().join("only read");
        std::fs::write(&aside, "").unwrap();
        let writer = Writer::Plain(BufWriter::new(File::open(&aside).unwrap()));
        roller.open = Some(Open { writer, aside: aside.clone(), path: name, bytes: 0 });
        says(roller.write(&vec![b'x'; 1 << 20], 5), &aside);
    }

    #[test]
    fn what_a_crash_left_is_deleted_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a-s-0000000000005-0000.ndjson.tmp", "a-s-more-0000000000005-0000.ndjson.tmp", "a-s.tmp", "x"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        Roller::start(dir.path(), "a-s".into(), Compression::Zstd).unwrap();
        assert_eq!(names(dir.path()), ["a-s-more-0000000000005-0000.ndjson.tmp", "a-s.tmp", "x"]);
    }

    #[test]
    fn compressed_files_read_back() {
        let dir = tempfile::tempdir().unwrap();
        for compression in [Compression::Zstd, Compression::Gzip] {
            let mut roller = Roller::start(dir.path(), "a".into(), compression).unwrap();
            roller.write(b"one\n", 5).unwrap();
            roller.write(b"two\n", 5).unwrap();
            roller.complete().unwrap();
        }
        let zstd = File::open(dir.path().join("a-0000000000005-0000.ndjson.zst")).unwrap();
        assert_eq!(zstd::decode_all(zstd).unwrap(), b"one\ntwo\n");
        let mut text = String::new();
        let gzip = File::open(dir.path().join("a-0000000000005-0000.ndjson.gz")).unwrap();
        flate2::read::GzDecoder::new(gzip).read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ntwo\n");
    }
    // The cursor passes what is in a file that has its name.
    #[test]
    fn p1_a_file_that_cannot_be_synced_gets_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut roller = Roller::start(dir.path(), "s".into(), Compression::None).unwrap();
        roller.write(b"line\n", 1).unwrap();
        let path = roller.open.as_ref().unwrap().path.clone();
        // A device that takes bytes and knows no sync.
        let device = OpenOptions::new().write(true).open("/dev/null").unwrap();
        roller.open.as_mut().unwrap().writer = Writer::Plain(BufWriter::new(device));
        assert!(roller.complete().is_err());
        assert!(!path.exists());
    }
}
