//! A disk that nothing reaches: reads come from another disk, changes stay in memory. Lets `log inspect` and `log verify`
//! do all that a start does, and tell what it would do, without touching a damaged directory.

use super::{Disk, DiskFile, Mode, PAGE_BYTES, parent};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub struct OverlayDisk {
    base: Arc<dyn Disk>,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    /// Files that were opened, made or moved here; `None`: removed.
    files: BTreeMap<String, Option<Arc<Overlay>>>,
    dirs: BTreeSet<String>,
}

/// A file: its base, and the pages that were written over it.
struct Overlay {
    base: Option<Arc<dyn DiskFile>>,
    inner: Mutex<Pages>,
}

struct Pages {
    len: u64,
    /// Of the base, only what lies below this counts: the file may have been cut and extended.
    base_len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE_BYTES]>>,
}

impl OverlayDisk {
    pub fn new(base: Arc<dyn Disk>) -> OverlayDisk {
        OverlayDisk { base, names: Mutex::default() }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_base(&self, path: &str) -> io::Result<Arc<Overlay>> {
        let base = self.base.open(path, Mode::Existing)?;
        let len = base.len()?;
        let inner = Mutex::new(Pages { len, base_len: len, pages: BTreeMap::new() });
        Ok(Arc::new(Overlay { base: Some(base), inner }))
    }

    fn find(&self, names: &mut Names, path: &str) -> io::Result<Arc<Overlay>> {
        match names.files.get(path) {
            Some(Some(file)) => Ok(file.clone()),
            Some(None) => Err(io::ErrorKind::NotFound.into()),
            None => {
                let file = self.open_base(path)?;
                names.files.insert(path.to_owned(), Some(file.clone()));
                Ok(file)
            }
        }
    }
}

impl Disk for OverlayDisk {
    fn open(&self, path: &str, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let mut names = self.names();
        match self.find(&mut names, path) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound && mode.creates() => {
                let inner = Mutex::new(Pages { len: 0, base_len: 0, pages: BTreeMap::new() });
                let file = Arc::new(Overlay { base: None, inner });
                names.files.insert(path.to_owned(), Some(file.clone()));
                Ok(file)
            }
            Err(error) => Err(error),
        }
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        match self.names().files.get(path) {
            Some(file) => Ok(file.is_some()),
            None => self.base.exists(path),
        }
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut found: BTreeSet<String> = self.base.list(dir)?.into_iter().collect();
        let names = self.names();
        let in_dir = |path: &String| (parent(path) == dir).then(|| path.rsplit('/').next().unwrap_or(path).to_owned());
        for (path, file) in &names.files {
            if let Some(name) = in_dir(path) {
                match file {
                    Some(_) => found.insert(name),
                    None => found.remove(&name),
                };
            }
        }
        found.extend(names.dirs.iter().filter_map(in_dir));
        Ok(found.into_iter().collect())
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let mut names = self.names();
        let mut at = dir;
        while !at.is_empty() {
            names.dirs.insert(at.to_owned());
            at = parent(at);
        }
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        match self.exists(path)? {
            true => {
                self.names().files.insert(path.to_owned(), None);
                Ok(())
            }
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut names = self.names();
        let file = self.find(&mut names, from)?;
        names.files.insert(from.to_owned(), None);
        names.files.insert(to.to_owned(), Some(file));
        Ok(())
    }

    fn sync_dir(&self, _dir: &str) -> io::Result<()> {
        Ok(())
    }

    fn pause(&self, attempt: u32) {
        self.base.pause(attempt);
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.base.free_bytes()
    }
}

impl Overlay {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page as it stands now, zeros behind the end.
    fn page(&self, pages: &Pages, at: u64) -> io::Result<Box<[u8; PAGE_BYTES]>> {
        if let Some(page) = pages.pages.get(&at) {
            return Ok(page.clone());
        }
        let mut page = Box::new([0; PAGE_BYTES]);
        let offset = at * PAGE_BYTES as u64;
        if let Some(base) = &self.base
            && offset < pages.base_len
        {
            let length = (pages.base_len - offset).min(PAGE_BYTES as u64) as usize;
            base.read_at(offset, &mut page[..length])?;
        }
        Ok(page)
    }
}

impl DiskFile for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.pages().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut pages = self.pages();
        if len < pages.len {
            let last = len / PAGE_BYTES as u64;
            let mut page = self.page(&pages, last)?;
            page[(len % PAGE_BYTES as u64) as usize..].fill(0);
            pages.pages.split_off(&last);
            pages.pages.insert(last, page);
            pages.base_len = pages.base_len.min(len);
        }
        pages.len = len;
        Ok(())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let pages = self.pages();
        if offset + into.len() as u64 > pages.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let within = (at % PAGE_BYTES as u64) as usize;
            let length = (PAGE_BYTES - within).min(into.len() - done);
            let page = self.page(&pages, at / PAGE_BYTES as u64)?;
            into[done..done + length].copy_from_slice(&page[within..within + length]);
            done += length;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut pages = self.pages();
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = (at % PAGE_BYTES as u64) as usize;
            let length = (PAGE_BYTES - within).min(bytes.len() - done);
            let number = at / PAGE_BYTES as u64;
            let mut page = self.page(&pages, number)?;
            page[within..within + length].copy_from_slice(&bytes[done..done + length]);
            pages.pages.insert(number, page);
            done += length;
        }
        pages.len = pages.len.max(offset + bytes.len() as u64);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::RealDisk;
    use super::*;

    #[test]
    fn changes_are_seen_through_it_and_never_reach_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let base = Arc::new(RealDisk::open_root(dir.path()).unwrap());
        base.create_dir("d").unwrap();
        base.open("d/a", Mode::Create).unwrap().write_at(0, &[1; 10_000]).unwrap();
        base.open("d/b", Mode::Create).unwrap().write_at(0, b"b").unwrap();
        let overlay = OverlayDisk::new(base.clone());
        let file = overlay.open("d/a", Mode::Existing).unwrap();
        file.write_at(5_000, &[2; 10]).unwrap();
        file.set_len(6_000).unwrap();
        file.set_len(7_000).unwrap();
        let mut read = vec![9; 7_000];
        file.read_at(0, &mut read).unwrap();
        assert_eq!((read[4_999], read[5_000], read[5_010], read[5_999], read[6_000]), (1, 2, 1, 1, 0));
        overlay.remove("d/b").unwrap();
        overlay.rename("d/a", "d/c").unwrap();
        overlay.open("d/new", Mode::Create).unwrap().write_at(0, b"n").unwrap();
        assert_eq!(overlay.list("d").unwrap(), ["c", "new"]);
        assert_eq!(base.list("d").unwrap(), ["a", "b"]);
        assert_eq!(base.open("d/a", Mode::Existing).unwrap().len().unwrap(), 10_000);
    }
}
