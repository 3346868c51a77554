//! The disk under the log: everything the log keeps goes through these two traits.
//!
//! Journal, blob files, directories and redb's databases all stand on [`Disk`], so that a test can own every byte and
//! every power cut (`sim`). `real` is the disk of the product; `store` is redb's backend over a [`DiskFile`].
//! What a caller may rely on is what POSIX promises and no more: bytes are durable after [`DiskFile::sync`], a created,
//! removed or renamed name is durable after [`Disk::sync_dir`] of the directory that holds it.

mod aligned;
mod overlay;
mod real;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod store;

pub use aligned::AlignedBuf;
pub use overlay::OverlayDisk;
pub use real::{LockFile, RealDisk, lock};
pub use store::{Store, Written};

use std::io;
use std::sync::Arc;

/// What writes past the page cache are aligned to, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// How a file is opened. Files are always open for reading and writing, and never truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The file must be there.
    Existing,
    /// The file is made when it is not there.
    Create,
    /// As `Existing`, past the page cache: writes are whole pages at page offsets.
    ExistingDirect,
    /// As `Create`, past the page cache.
    CreateDirect,
}

impl Mode {
    pub fn creates(self) -> bool {
        matches!(self, Mode::Create | Mode::CreateDirect)
    }

    pub fn is_direct(self) -> bool {
        matches!(self, Mode::ExistingDirect | Mode::CreateDirect)
    }
}

/// One data directory. Paths are relative to it and separated by '/': `journal/0003`; the directory itself is `""`.
pub trait Disk: Send + Sync + 'static {
    fn open(&self, path: &str, mode: Mode) -> io::Result<Arc<dyn DiskFile>>;
    fn exists(&self, path: &str) -> io::Result<bool>;
    /// Names in a directory, files and directories alike, sorted. A directory that is not there is empty.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Makes a directory and its parents; no error when it is there.
    fn create_dir(&self, dir: &str) -> io::Result<()>;
    /// Removes a file, or a directory that is empty.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Renames a file; one that has the new name is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes the names in `dir` durable as they are now.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Bytes that may still be written here by this process.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Waits before what was refused is asked for again, longer each time. A disk on which no time passes does not wait.
    fn pause(&self, _attempt: u32) {}
}

/// An open file. One that was removed or renamed meanwhile stays usable, as on every Unix.
#[expect(clippy::len_without_is_empty, reason = "a file's length may fail; nobody asks whether it is empty")]
pub trait DiskFile: Send + Sync + 'static {
    fn len(&self) -> io::Result<u64>;
    /// Cuts the file or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Fills `into`; `UnexpectedEof` when the file ends first.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes`, extending the file as needed. After an error any part of them may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes bytes and length durable. After an error nobody knows what is: do not try again in place.
    fn sync(&self) -> io::Result<()>;
}

/// The directory that holds `path`; the data directory for a path without '/'.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}
