//! The disk of the product: a directory of the file system.

use super::aligned::is_aligned;
use super::{AlignedBuf, Disk, DiskFile, Mode, PAGE_BYTES};
use rustix::fs::{FlockOperation, OFlags};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Name of the file that keeps a second process out of a data directory.
const LOCK_NAME: &str = "lock";

/// How long a cable or a controller has to come back before the first of the next tries.
const PAUSE: Duration = Duration::from_millis(200);

/// Held as long as this process owns the data directory; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct LockFile {
    _file: File,
}

/// Takes the lock of a data directory, making the directory when it is not there. `None` while another process has it.
pub fn lock(dir: &Path) -> io::Result<Option<LockFile>> {
    make_durably(dir)?;
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join(LOCK_NAME))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(LockFile { _file: file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes a directory and its parents, and their names durable: a data directory that a power cut takes back takes
/// everything in it along.
fn make_durably(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> =
        dir.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    fs::create_dir_all(dir)?;
    for made in missing {
        let parent = made.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

#[derive(Clone, Debug)]
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// The disk whose paths are relative to `dir`, which is made when it is not there.
    pub fn open_root(dir: &Path) -> io::Result<Self> {
        make_durably(dir)?;
        Ok(RealDisk { root: dir.to_owned() })
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

impl Disk for RealDisk {
    fn pause(&self, attempt: u32) {
        std::thread::sleep(PAUSE * attempt);
    }

    fn open(&self, path: &str, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.at(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(mode.creates()).truncate(false);
        if !mode.is_direct() {
            return Ok(Arc::new(BufferedFile(options.open(path)?)));
        }
        match options.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(&path) {
            Ok(file) => Ok(Arc::new(DirectFile { file, direct: AtomicBool::new(true) })),
            // tmpfs and some network file systems know no direct I/O; they are as durable buffered.
            Err(error) if is_refusal(&error) => Ok(Arc::new(BufferedFile(options.open(path)?))),
            Err(error) => Err(error),
        }
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.at(path).try_exists()
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.at(dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        fs::create_dir_all(self.at(dir))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let path = self.at(path);
        if fs::symlink_metadata(&path)?.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) }
    }

    #[expect(clippy::disallowed_methods, reason = "this is log::disk; its callers sync the directory")]
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.at(from), self.at(to))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.at(dir))?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

fn is_refusal(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error())
}

struct BufferedFile(File);

impl DiskFile for BufferedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Past the page cache. Reads may be of any range and go through a page-aligned copy; writes must be whole pages.
struct DirectFile {
    file: File,
    /// Off once the file system took the flag at open and refused it at the first transfer.
    direct: AtomicBool,
}

impl DirectFile {
    /// Runs a transfer; when the file system refuses direct I/O only now, goes on through the page cache.
    fn transfer(&self, mut run: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        match run() {
            Err(error) if is_refusal(&error) && self.direct.swap(false, Ordering::Relaxed) => {
                let flags = rustix::fs::fcntl_getfl(&self.file)?;
                rustix::fs::fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
                run()
            }
            done => done,
        }
    }
}

impl DiskFile for DirectFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if is_aligned(into) && offset.is_multiple_of(PAGE_BYTES as u64) {
            return self.transfer(|| self.file.read_exact_at(into, offset));
        }
        let first = offset - offset % PAGE_BYTES as u64;
        let skip = (offset - first) as usize;
        let mut pages = AlignedBuf::zeroed((skip + into.len()).next_multiple_of(PAGE_BYTES));
        let mut got = 0;
        // The last page of the file may be short, so this reads what there is rather than exactly so much.
        self.transfer(|| {
            got = read_up_to(&self.file, first, pages.as_mut_slice(), skip + into.len())?;
            Ok(())
        })?;
        let found = pages.as_slice()[..got].get(skip..skip + into.len());
        into.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !offset.is_multiple_of(PAGE_BYTES as u64) || !bytes.len().is_multiple_of(PAGE_BYTES) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a direct write is of whole pages"));
        }
        if is_aligned(bytes) {
            return self.transfer(|| self.file.write_all_at(bytes, offset));
        }
        let mut pages = AlignedBuf::with_capacity(bytes.len());
        pages.extend_from_slice(bytes);
        self.transfer(|| self.file.write_all_at(pages.as_slice(), offset))
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Reads until `enough` bytes are there or the file ends. A direct read that stops within a page has reached the end.
fn read_up_to(file: &File, offset: u64, into: &mut [u8], enough: usize) -> io::Result<usize> {
    let mut got = 0;
    while got < enough {
        match file.read_at(&mut into[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if !got.is_multiple_of(PAGE_BYTES) {
            break;
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, RealDisk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open_root(dir.path()).unwrap();
        (dir, disk)
    }

    #[test]
    fn a_direct_file_takes_whole_pages_and_reads_any_range() {
        let (_dir, disk) = fresh();
        disk.create_dir("journal").unwrap();
        let file = disk.open("journal/0000", Mode::CreateDirect).unwrap();
        let mut pages = AlignedBuf::default();
        pages.extend_from_slice(&[1; PAGE_BYTES]);
        pages.extend_from_slice(&[2; PAGE_BYTES]);
        file.write_at(0, pages.as_slice()).unwrap();
        file.write_at(2 * PAGE_BYTES as u64, &[3; PAGE_BYTES + 1][1..]).unwrap();
        file.sync().unwrap();
        let mut some = [0; 10];
        file.read_at(PAGE_BYTES as u64 - 5, &mut some).unwrap();
        assert_eq!(some, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]);
        let mut over = [0; 10];
        let end = file.read_at(3 * PAGE_BYTES as u64 - 5, &mut over).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_direct_read_reaches_an_unaligned_end() {
        let (_dir, disk) = fresh();
        disk.open("f", Mode::Create).unwrap().write_at(0, &[5; 5000]).unwrap();
        let file = disk.open("f", Mode::ExistingDirect).unwrap();
        let mut tail = [0; 904];
        file.read_at(4096, &mut tail).unwrap();
        assert_eq!(tail, [5; 904]);
        assert!(file.read_at(4097, &mut tail).is_err());
    }

    #[test]
    fn names_are_listed_in_order_and_a_missing_directory_is_empty() {
        let (_dir, disk) = fresh();
        disk.create_dir("segments/00000001").unwrap();
        for name in ["b", "a", "c"] {
            disk.open(&format!("segments/{name}"), Mode::Create).unwrap();
        }
        disk.rename("segments/c", "segments/0").unwrap();
        disk.remove("segments/b").unwrap();
        disk.sync_dir("segments").unwrap();
        assert_eq!(disk.list("segments").unwrap(), ["0", "00000001", "a"]);
        assert!(disk.list("nowhere").unwrap().is_empty());
        assert!(!disk.exists("segments/b").unwrap());
        assert!(disk.open("segments/b", Mode::Existing).is_err());
        assert!(disk.free_bytes().unwrap() > 0);
    }

    #[test]
    fn the_lock_keeps_a_second_holder_out_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        assert!(held.is_some());
        assert!(lock(dir.path()).unwrap().is_none());
        drop(held);
        assert!(lock(dir.path()).unwrap().is_some());
    }
}
