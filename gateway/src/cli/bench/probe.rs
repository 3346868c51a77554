//! The disk alone: 4 KiB written with O_DIRECT into a preallocated file, then fdatasync. What a journal's own write costs,
//! in the same minutes on the same machine, is what an acknowledgement is measured against.

use super::histogram::Histogram;
use anyhow::{Context, Result};
use rustix::fs::OFlags;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PAGE_BYTES: usize = 4096;
/// Size of the preallocated file; the writes go round in it.
const FILE_PAGES: u64 = 4096;

pub struct Probe {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    page: u64,
    pub latency: Histogram,
}

impl Probe {
    pub fn new(dir: &Path) -> Result<Self> {
        let path = dir.join("probe");
        // Written out once, so that no write of the measurement allocates.
        std::fs::write(&path, vec![0x55; PAGE_BYTES * FILE_PAGES as usize])?;
        File::open(&path)?.sync_all()?;
        let direct = i32::try_from(OFlags::DIRECT.bits()).context("O_DIRECT")?;
        let file = File::options().write(true).custom_flags(direct).open(&path);
        let file = file.with_context(|| format!("{}: the file system does not take O_DIRECT", path.display()))?;
        Ok(Probe { file, path, buffer: vec![0x2a; 2 * PAGE_BYTES], page: 0, latency: Histogram::new() })
    }

    /// Writes and syncs `count` times, one every `pace`. Blocking.
    pub fn run(&mut self, count: u64, pace: Duration) -> Result<()> {
        let start = self.buffer.as_ptr().align_offset(PAGE_BYTES);
        for _ in 0..count {
            let begun = Instant::now();
            self.buffer[start] = self.buffer[start].wrapping_add(1);
            self.file.write_all_at(&self.buffer[start..start + PAGE_BYTES], self.page * PAGE_BYTES as u64)?;
            self.file.sync_data()?;
            self.latency.add(begun.elapsed());
            self.page = (self.page + 1) % FILE_PAGES;
            std::thread::sleep(pace.saturating_sub(begun.elapsed()));
        }
        Ok(())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
