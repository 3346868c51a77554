//! The directory whole blobs are written to, and the hidden one in it where they are gathered. Blocking.
//!
//! A blob has its name once it is whole and synced. No file that is there is ever changed: the same bytes are taken for the same
//! blob, so a second run writes nothing; other bytes get the next free name.

use super::name::{self, HEAD_BYTES};
use super::pieces::{Pieces, Place};
use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const GATHERING: &str = ".headwater-blobs";
/// Blobs of one device, id and kind that have files.
const LIVES_MAX: u32 = 1000;
const BUFFER_BYTES: usize = 64 << 10;

pub struct Folder {
    out: PathBuf,
    gathering: PathBuf,
    /// Of the gathering directory: a second run would take the files of this one away.
    _lock: File,
}

/// Where a whole blob is.
#[derive(Debug, PartialEq, Eq)]
pub enum Kept {
    Written(PathBuf),
    /// An earlier run wrote it, or it came twice.
    There(PathBuf),
    /// Too many others have its name.
    Nowhere,
}

impl Folder {
    /// Makes the directory, and deletes what a killed run was gathering.
    pub fn open(out: &Path) -> Result<Self> {
        let gathering = out.join(GATHERING);
        let shown = || gathering.display().to_string();
        std::fs::create_dir_all(&gathering).with_context(shown)?;
        let lock = File::open(&gathering).with_context(shown)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another `headwater blobs` is writing to {}", out.display()),
            Err(TryLockError::Error(error)) => return Err(error).with_context(shown),
        }
        for entry in std::fs::read_dir(&gathering).with_context(shown)? {
            let path = entry.with_context(shown)?.path();
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        Ok(Folder { out: out.to_owned(), gathering, _lock: lock })
    }

    /// Writes a part to its places. Whether bytes that were there were others.
    pub fn put(&self, file: u64, places: &[Place], mut bytes: &[u8]) -> Result<bool> {
        let path = self.gathered(file);
        let mut put = || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let mut differs = false;
            for place in places {
                let (now, rest) = bytes.split_at(place.length as usize);
                bytes = rest;
                if !place.is_new {
                    let mut before = vec![0; now.len()];
                    file.read_exact_at(&mut before, place.at)?;
                    if before == now {
                        continue;
                    }
                    differs = true;
                }
                file.write_all_at(now, place.at)?;
            }
            io::Result::Ok(differs)
        };
        put().with_context(|| path.display().to_string())
    }

    /// Takes the file away.
    pub fn discard(&self, file: u64) -> Result<()> {
        let path = self.gathered(file);
        std::fs::remove_file(&path).with_context(|| path.display().to_string())
    }

    /// Gives the file of a whole blob its name, or takes it away if the blob is there.
    pub fn keep(&self, file: u64, pieces: &Pieces, device: &str, id: u32) -> Result<Kept> {
        let path = self.gathered(file);
        if !pieces.are_in_order() {
            put_in_order(&path, pieces).with_context(|| path.display().to_string())?;
        }
        let mut whole = File::open(&path).with_context(|| path.display().to_string())?;
        let mut head = Vec::new();
        (&mut whole).take(HEAD_BYTES as u64).read_to_end(&mut head).with_context(|| path.display().to_string())?;
        for life in 1..=LIVES_MAX {
            let kept = self.out.join(name::file_name(device, id, life, name::kind(&head)));
            let there = kept.symlink_metadata();
            match there {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    publish(&whole, &path, &kept).with_context(|| kept.display().to_string())?;
                    return Ok(Kept::Written(kept));
                }
                Err(error) => return Err(error).with_context(|| kept.display().to_string()),
                // What is no file, a pipe or a link, is somebody else's.
                Ok(there) if !there.is_file() || there.len() != pieces.bytes() => {}
                Ok(_) => {
                    let all = std::iter::once((0, 0, pieces.bytes()));
                    if same(&whole, &kept, all).with_context(|| kept.display().to_string())? {
                        self.discard(file)?;
                        return Ok(Kept::There(kept));
                    }
                }
            }
        }
        self.discard(file)?;
        Ok(Kept::Nowhere)
    }

    /// What was gathered is in one of these files of whole blobs.
    pub fn is_part_of_any<'a>(
        &self,
        file: u64,
        pieces: &Pieces,
        mut whole: impl Iterator<Item = &'a PathBuf>,
    ) -> Result<bool> {
        let path = self.gathered(file);
        let part = File::open(&path).with_context(|| path.display().to_string())?;
        // The user may have taken the whole one away meanwhile.
        Ok(whole.any(|whole| same(&part, whole, pieces.ranges()).unwrap_or(false)))
    }

    fn gathered(&self, file: u64) -> PathBuf {
        self.gathering.join(file.to_string())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.gathering);
    }
}

/// Whether the ranges are the same: start in `whole`, start in `part`, length.
fn same(part: &File, whole: &Path, ranges: impl Iterator<Item = (u64, u64, u64)>) -> io::Result<bool> {
    let whole = File::open(whole)?;
    let (mut a, mut b) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    for (mut start, mut at, mut length) in ranges {
        while length > 0 {
            let step = length.min(BUFFER_BYTES as u64) as usize;
            part.read_exact_at(&mut a[..step], at)?;
            whole.read_exact_at(&mut b[..step], start)?;
            if a[..step] != b[..step] {
                return Ok(false);
            }
            start += step as u64;
            at += step as u64;
            length -= step as u64;
        }
    }
    Ok(true)
}

/// Writes the file anew, in the blob's order.
#[expect(clippy::disallowed_methods, reason = "the name is a temporary one: it is synced with its last")]
fn put_in_order(path: &Path, pieces: &Pieces) -> io::Result<()> {
    let aside = path.with_extension("ordered");
    let (from, mut to) = (File::open(path)?, File::create(&aside)?);
    let mut buffer = vec![0; BUFFER_BYTES];
    for (_, mut at, mut length) in pieces.ranges() {
        while length > 0 {
            let step = length.min(BUFFER_BYTES as u64) as usize;
            from.read_exact_at(&mut buffer[..step], at)?;
            to.write_all(&buffer[..step])?;
            at += step as u64;
            length -= step as u64;
        }
    }
    std::fs::rename(&aside, path)?;
    // `publish` syncs it once more, for nothing then.
    to.sync_all()
}

/// Content first, then the name, then the directory.
#[expect(clippy::disallowed_methods, reason = "this is the helper that syncs the directory")]
fn publish(whole: &File, path: &Path, kept: &Path) -> io::Result<()> {
    whole.sync_all()?;
    std::fs::rename(path, kept)?;
    let dir = kept.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
