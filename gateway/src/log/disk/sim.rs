//! A disk made of memory whose owner decides what a power cut keeps, which I/O fails and when it is full.
//!
//! It promises what POSIX promises and breaks everything else: pages that no sync covered may reach the disk in any
//! order or not at all, the last one torn at a sector; a name whose directory was not synced may vanish or come back; a
//! sync that failed has lost what it was to keep, while readers still see it. All chance comes from one seed, and the
//! trace of everything that was asked of it is one number, so that a seed that is run twice can be compared.
//! For tests only: the product never builds it.

mod image;
mod names;
mod state;
#[cfg(test)]
mod tests;

pub use image::SECTOR_BYTES;
pub use state::Fault;

use super::{Disk, DiskFile, Mode};
use names::Inode;
use state::State;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The disk, while machines that use it come and go. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    /// Called before each write and sync, with no lock held.
    observer: Arc<Mutex<Option<Observer>>>,
}

type Observer = Box<dyn FnMut() + Send>;

impl SimDisk {
    pub fn new(seed: u64) -> Self {
        SimDisk { state: Arc::new(Mutex::new(State::new(seed))), observer: Arc::default() }
    }

    /// The disk as the next run of a process sees it. It and its files fail from the next `crash` or `kill` on.
    pub fn mount(&self) -> Arc<dyn Disk> {
        Arc::new(Mount { disk: self.clone(), life: self.lock().life() })
    }

    /// Cuts the power, or ends a cut that [`Fault::CutPower`] began: draws what survived and clears all faults.
    pub fn crash(&self) {
        self.lock().crash();
    }

    /// Ends the process and leaves the machine on: nothing is lost, nothing more is written.
    pub fn kill(&self) {
        self.lock().kill();
    }

    /// Lets a test look around before each write and sync: what was told by then was told too early or not.
    pub fn observe(&self, observer: impl FnMut() + Send + 'static) {
        *self.observer.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(observer));
    }

    fn look_around(&self) {
        // What the observer itself writes, it need not see.
        if let Ok(mut observer) = self.observer.try_lock()
            && let Some(observer) = observer.as_mut()
        {
            observer();
        }
    }

    /// Files with their lengths, by path.
    pub fn files(&self) -> Vec<(String, u64)> {
        self.lock().list_files()
    }

    pub fn arm(&self, fault: Fault) {
        self.lock().arm(fault);
    }

    /// Takes all faults away that have not struck; a power cut that has stays until `crash`.
    pub fn disarm(&self) {
        self.lock().disarm();
    }

    pub fn power_is_cut(&self) -> bool {
        self.lock().power_is_cut()
    }

    /// Bytes all files together may have from now on; what is there stays.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().set_capacity(bytes);
    }

    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// Flips bits of one byte on the disk, behind everyone's back. Does nothing when the file ends before it.
    pub fn damage(&self, path: &str, offset: u64, xor: u8) {
        self.lock().damage(path, offset, xor);
    }

    /// Makes a page unreadable until it is written again.
    pub fn ruin(&self, path: &str, page: u64) {
        self.lock().ruin(path, page);
    }

    /// Pages of a file that are not all zeros.
    pub fn written_pages(&self, path: &str) -> Vec<u64> {
        self.lock().written_pages(path)
    }

    /// Everything that changes the disk, counted from the start; [`Fault`]s count from now.
    pub fn operations(&self) -> u64 {
        self.lock().operations()
    }

    /// One number for everything that was asked and answered since the start.
    pub fn trace(&self) -> u64 {
        self.lock().trace()
    }

    /// The last operations, one a line, for a person.
    pub fn recent(&self) -> Vec<String> {
        self.lock().recent()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The disk during one life of the process.
struct Mount {
    disk: SimDisk,
    life: u64,
}

impl Mount {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.lock();
        state.check_life(self.life)?;
        Ok(state)
    }
}

impl Disk for Mount {
    fn open(&self, path: &str, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.state()?.open(path, mode.creates())?;
        Ok(Arc::new(SimFile { disk: self.disk.clone(), life: self.life, inode, direct: mode.is_direct() }))
    }
    fn exists(&self, path: &str) -> io::Result<bool> {
        Ok(self.state()?.exists(path))
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        Ok(self.state()?.list(dir))
    }
    fn create_dir(&self, dir: &str) -> io::Result<()> {
        self.state()?.create_dir(dir)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.state()?.remove(path)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.state()?.rename(from, to)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.state()?.sync_dir(dir)
    }
    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.state()?.free_bytes())
    }
}

struct SimFile {
    disk: SimDisk,
    life: u64,
    inode: Inode,
    direct: bool,
}

impl SimFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.lock();
        state.check_life(self.life)?;
        Ok(state)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.len(self.inode))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state()?.set_len(self.inode, len)
    }
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.state()?.read(self.inode, offset, into)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.direct && !(offset.is_multiple_of(4096) && bytes.len().is_multiple_of(4096)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a direct write is of whole pages"));
        }
        self.disk.look_around();
        self.state()?.write(self.inode, offset, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.look_around();
        self.state()?.sync(self.inode)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.lock().close(self.inode, self.life);
    }
}
